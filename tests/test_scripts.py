"""train.py, evaluate.py and vampvae.py as a user runs them, end to end on digits."""

import csv
import dataclasses
import errno
import gzip
import hashlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.io
from conftest import ROOT, flags, without_training
from PIL import Image

import data
import evaluate
import experiment
import plot
import train
import vampvae
from data.dataset import STAND_IN
from data.files import StandIn
from evaluation import estimators, features, score
from experiment import Config, presets
from experiment.config import UserError
from experiment.presets import preset, preset_names
from experiment.record import git_commit, versions
from grids.configs import configs_of
from plotting import comparisons, run_figures
from plotting.view import View
from runtime import atomic, backend, memory
from runtime.backend import BACKENDS
from runtime.command import Parser

GREY = "grey-pixel bound, not a likelihood"
SETTINGS = {"model": "hvae", "prior": "vamp", "latent_dim": 3, "epochs": 2, "batch_size": 63}  # 19 even batches
ID = "digits_hvae_vamp_bs63_dim3_factor0.25_epochs2_lr0.001_K12"
STATES = [f"last/epoch{epoch:09d}_step{0:09d}.zip" for epoch in (1, 2)]
FILES = [".lock", "best.weights.h5", "config.json", "history.csv", *STATES, "status.json"]
QUICK = {"epochs": 1, "batch_size": 399}  # three steps
HEEDING_CTRL_C = """import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)  # a background job, as CI may be, ignores it and hands that on
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"""
SHARED = Path(os.environ.get("VAMPVAE_DATA", "/nowhere"), "mnist")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The finished process of one `python train.py`, and the folder of its run, which no test changes."""
    runs_dir = tmp_path_factory.mktemp("trained") / "runs"
    command = [sys.executable, "train.py", *flags(runs_dir=runs_dir, **SETTINGS)]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done, runs_dir / ID


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the trained run, where its training would put it with --runs_dir tmp_path/runs."""
    return shutil.copytree(trained[1], tmp_path / "runs" / ID)


def called(main, *words):
    """The exit code of a script's main, whether it returns or exits with it."""
    try:
        return main([str(word) for word in words])
    except SystemExit as exit_:
        return exit_.code


def parsed(words):
    """The flags of train.py."""
    parser = Parser()
    train.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def read(path):
    return json.loads(path.read_text())


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# ---------------------------------------------------------------------------------------------- help

TRAIN_FLAGS = [field.name for field in dataclasses.fields(Config)] + ["overwrite", "backend"]
TRAIN_FLAGS += ["process_address", "num_processes", "process_index"]
EVALUATE_FLAGS = ["gs_key", "runs_dir", "data_dir", "backend", "num_samples", "split", "max_images", "seed"]
EVALUATE_FLAGS += ["estimator", "proposal", "target_se", "max_samples", "num_steps", "bracket", "compare", "max_memory"]
EVALUATE_FLAGS += ["features", "num_generated"]
FEATURES_FLAGS = ["data_set", "data_dir", "epochs", "seed", "out", "overwrite", "backend", "device"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("train.py", TRAIN_FLAGS),
        ("vampvae.py train", TRAIN_FLAGS),
        ("evaluate.py", EVALUATE_FLAGS),
        ("vampvae.py eval", EVALUATE_FLAGS),
        ("plot.py", ["gs_key", "runs_dir", "data_dir", "backend", "out", "projection"]),
        ("vampvae.py features", FEATURES_FLAGS),
        ("vampvae.py data", ["data_dir", "list"]),
        ("vampvae.py", ["help"]),
    ],
)
def test_help_names_every_flag_and_imports_nothing_slow(script, words, expected):
    done = script("-X", "importtime", *words.split(), "--help")
    assert done.returncode == 0
    assert set(expected) <= set(re.findall(r"--(\w+)", done.stdout))
    imported = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "experiment" in imported
    assert not imported & {"keras", "tensorflow", "jax", "matplotlib", "sklearn", "urllib3", "requests"}


# ---------------------------------------------------------------------------------------------- train.py


@pytest.mark.slow
def test_chains_train_with_xla(script, tmp_path):
    """In a process of its own: where operations are to be deterministic, TensorFlow does not compile with XLA."""
    settings = {"network": "mlp", "objective": "lmcvae", "num_steps": 1, "epochs": 2, "max_train_images": 200}
    words = flags(**settings, jit="on", deterministic="off", runs_dir=tmp_path)
    del words[words.index("--network_size") : words.index("--network_size") + 2]
    done = script("train.py", *words)
    assert done.returncode == 0 and "doesn't support" not in done.stderr
    history = experiment.load(done.stdout.strip().splitlines()[-1]).history
    assert history["val_bound"][1] > history["val_bound"][0] and history["val_diverged"].max() == 0


@pytest.mark.keras
def test_training_says_how_long_it_takes_and_ends_with_the_folder(trained):
    done, path = trained
    first, last = done.stdout.splitlines()
    assert first.startswith("expected time: ") and "(2 epochs of 19 steps, " in first
    assert last == str(path)
    assert done.stderr == ""  # neither a bar, as this is no terminal, nor notes of the backend


@pytest.mark.keras
def test_a_run_is_the_documented_files(trained):
    path = trained[1]
    assert files_below(path.parent) == [f"{ID}/{name}" for name in FILES]


@pytest.mark.keras
def test_config_json_has_what_is_needed_to_do_it_again(trained):
    from sklearn.datasets import load_digits

    record = read(trained[1] / "config.json")
    named = {"format", "config", "backend", "git_commit", "versions", "data_sha256", "image_shape"}
    assert set(record) == named and record["image_shape"] == [8, 8, 1]
    small = {"data_set": "digits", "network_size": 0.25, "lr": 1e-3, "num_pseudo_inputs": 12, "track": "none"}
    assert Config.from_dict(record["config"]) == Config(runs_dir=str(trained[1].parent), **small, **SETTINGS)
    assert record["backend"] == os.environ["KERAS_BACKEND"]
    assert record["git_commit"] == git_commit()
    assert record["versions"]["numpy"] == np.__version__
    assert {"python", "keras", os.environ["KERAS_BACKEND"]} <= set(record["versions"])
    digest = hashlib.sha256(load_digits().images.astype(np.uint8).tobytes()).hexdigest()
    assert record["data_sha256"] == {"sklearn.digits": digest}


@pytest.mark.keras
def test_history_has_a_row_for_each_epoch_and_status_agrees(trained):
    run = experiment.load(trained[1])
    history = run.history
    columns = [f"{split}_{name}" for split in ("train", "val") for name in ("loss", "elbo", "rate", "distortion")]
    assert list(history) == ["epoch", *columns, "seconds"]
    assert history["epoch"].tolist() == [1, 2]
    np.testing.assert_allclose(history["val_elbo"], -history["val_rate"] - history["val_distortion"], rtol=1e-5)
    best = int(np.argmax(history["val_elbo"]))
    assert (run.state, run.status["epochs_done"], run.status["best_epoch"]) == ("finished", 2, best + 1)
    assert run.status["best_val_elbo"] == pytest.approx(history["val_elbo"][best])


def test_a_finished_run_is_not_trained_again(run, capfd, monkeypatch):
    monkeypatch.setattr(train, "fit", lambda *_: pytest.fail("trained"))
    assert called(train.main, *flags(runs_dir=run.parent, **SETTINGS)) == 0
    assert (
        capfd.readouterr().out
        == f"{run} is finished already; --resume it with more --epochs, or --overwrite trains it again\n"
    )


def test_no_test_image_is_opened_in_training_and_overwrite_keeps_the_old_run_until_the_new_one_is_finished(
    tmp_path, capfd, monkeypatch
):
    opened, split = set(), data.Dataset.split
    monkeypatch.setattr(data.Dataset, "split", lambda self, name: opened.add(name) or split(self, name))
    words = flags(runs_dir=tmp_path, **QUICK)
    path = without_training({1e-3: -7.0}, state="stopped")(*configs_of(parsed(words)), None)
    before = {name: (path / name).read_bytes() for name in files_below(path)}

    def fail(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("keras.Model.fit", fail)
        for _ in range(2):  # the second replaces an unfinished run, and keeps what that one was to replace
            assert called(train.main, *words, "--overwrite") == 130
            kept = {name: (path / "replaced" / name).read_bytes() for name in before}
            assert kept == before and experiment.load(path).state == "stopped"
    assert called(train.main, *words) == 0  # and goes on from nothing
    assert experiment.load(path).state == "finished" and opened == {"train", "val"}
    assert files_below(path) == [name for name in FILES if name != STATES[1]]


def test_overwrite_keeps_the_finished_run_not_an_older_one(run, capfd, monkeypatch):
    """A killed process may leave what the finished run has replaced, inside of it or beside."""

    def fail(*_, **__):
        raise KeyboardInterrupt

    newest = (run / "history.csv").read_bytes()
    for older in (run / "replaced", run.with_name(f".replaced.{run.name}")):
        older.mkdir()
        (older / "config.json").write_text("an older run")
        with monkeypatch.context() as patch:
            patch.setattr("keras.Model.fit", fail)
            assert called(train.main, *flags(runs_dir=run.parent, **SETTINGS), "--overwrite") == 130
        assert (run / "replaced" / "history.csv").read_bytes() == newest
        assert [path.name for path in run.parent.iterdir()] == [run.name]
        kept = shutil.copytree(run / "replaced", run.parent.parent / "kept", dirs_exist_ok=True)
        shutil.rmtree(run)
        shutil.copytree(kept, run)


def test_a_run_that_was_about_to_be_replaced_is_found_again(run, capfd):
    """The process was killed between the two renames, and its successor never came to be."""
    run.rename(run.with_name(f".replaced.{run.name}"))
    assert called(train.main, *flags(runs_dir=run.parent, **SETTINGS)) == 0
    assert "is finished already" in capfd.readouterr().out and (run / "best.weights.h5").is_file()


def test_a_folder_that_holds_another_run_is_not_taken_for_it(run, capfd):
    words = flags(runs_dir=run.parent, **(SETTINGS | {"epochs": 6}))
    other = shutil.copytree(run, configs_of(parsed(words))[0].path)
    assert called(train.main, *words) == 2
    assert capfd.readouterr().err == f"error: {other} holds the run {ID}; give the folder that name again\n"


def test_a_reader_of_our_output_that_goes_away_does_not_end_the_training(tmp_path):
    words = " ".join(flags(runs_dir=tmp_path, **QUICK | {"batch_size": 63}))
    command = ["bash", "-c", f"{sys.executable} train.py {words} | true; echo ${{PIPESTATUS[0]}}"]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    (path,) = tmp_path.iterdir()
    assert experiment.load(path).state == "finished" and "error" not in done.stderr
    assert done.stdout.strip() in ("0", "1")  # 1 where even the last line had no reader


def test_overwrite_does_not_remove_what_is_no_run(tmp_path, capfd):
    words = flags(runs_dir=tmp_path, **SETTINGS)
    (tmp_path / ID).mkdir()
    (tmp_path / ID / "thesis.txt").write_text("years of work")
    assert called(train.main, *words) == 2 and "is no run" in capfd.readouterr().err
    assert called(train.main, *words, "--overwrite") == 2
    assert "exists and is no run, so --overwrite leaves it alone" in capfd.readouterr().err
    assert files_below(tmp_path) == [f"{ID}/thesis.txt"]


@pytest.mark.keras
def test_a_term_that_is_no_number_stops_the_run_and_is_named(tmp_path, capfd):
    words = flags(runs_dir=tmp_path, lr="1e30", **QUICK)
    assert called(train.main, *words) == 1
    (path,) = tmp_path.iterdir()
    message = r"epoch 1, step 2: distortion, -log p\(x\|z\), is -?(nan|inf)"
    expected = rf"error: {message}; what was finished is kept in {re.escape(str(path))}\n"
    assert re.fullmatch(expected, capfd.readouterr().err)
    status = read(path / "status.json")
    assert status["state"] == "failed" and re.fullmatch(message, status["message"])
    assert files_below(path) == [".lock", "config.json", "status.json"]
    assert called(evaluate.main, path) == 2
    assert "has no weights yet (it is failed)" in capfd.readouterr().err


@pytest.mark.keras
def test_ctrl_c_keeps_the_finished_epochs_and_says_how_to_go_on(tmp_path, capfd):
    words = flags(runs_dir=tmp_path, epochs=50_000, batch_size=399)
    process = subprocess.Popen(
        [sys.executable, "-c", HEEDING_CTRL_C, "train.py", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        waited_until = time.monotonic() + 100
        while not list(tmp_path.glob("*/history.csv")) and process.poll() is None and time.monotonic() < waited_until:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    (path,) = tmp_path.iterdir()
    run = experiment.load(path)
    assert (process.returncode, run.state, "Traceback" in err) == (130, "stopped", False), err
    assert f"stopped; python train.py --resume {path} goes on" in out
    assert len(run.history["epoch"]) == run.status["epochs_done"] >= 1
    assert called(evaluate.main, path, "--num_samples", 3, "--max_images", 5) == 0
    printed = capfd.readouterr()
    assert f"warning: {path} is stopped, not finished; its best weights so far are taken\n" in printed.err
    assert path.name in printed.out


def test_ctrl_c_before_anything_was_written_promises_nothing(tmp_path, capfd, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "fit", interrupted)
    assert called(train.main, *flags(runs_dir=tmp_path / "runs", **SETTINGS)) == 130
    assert capfd.readouterr().err.startswith("stopped")
    monkeypatch.setattr("experiment.flags.chosen_runs", interrupted)
    assert called(evaluate.main, "a") == 130
    assert capfd.readouterr().err.startswith("stopped")


# ---------------------------------------------------------------------------------------------- grid search


def test_a_grid_is_ranked_by_validation_elbo_and_a_failure_does_not_stop_it(tmp_path, capfd, monkeypatch):
    values = {1.0: -30.0, 2.0: RuntimeError("out of memory\nand more"), 3.0: -10.0, 4.0: -200.0}
    monkeypatch.setattr(train, "fit", without_training(values))
    words = [*flags(runs_dir=tmp_path, gs_key="key"), "--lr", *values]
    assert called(train.main, *words) == 1
    printed = capfd.readouterr()
    table = [line.split() for line in printed.out.splitlines()[-4:]]
    assert [row[0].rsplit("_lr")[-1] for row in table] == ["3.0", "1.0", "4.0", "2.0"]
    assert [row[1] for row in table] == ["finished"] * 3 + ["none"]
    assert [row[2] for row in table] == ["-10.00", "-30.00", "-200.00", "-inf"]
    assert "RuntimeError: out of memory" in printed.err and "Traceback" not in printed.err
    assert {path.parent.name for path in tmp_path.glob("*/*")} == {"key"}

    monkeypatch.setattr(train, "fit", without_training({2.0: -1.0}))  # any other would be a KeyError
    assert called(train.main, *words) == 0
    assert capfd.readouterr().out.count("already trained") == 3
    assert called(train.main, *words, "--overwrite") == 0  # which is for the unfinished ones
    assert capfd.readouterr().out.count("already trained") == 4


def test_what_cannot_be_compared_is_ranked_apart(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(train, "fit", without_training({1.0: -30.0, 2.0: -10.0}))
    words = [*flags(runs_dir=tmp_path, gs_key="key"), "--lr", 1, 2, "--binarize", "threshold", "none"]
    assert called(train.main, *words) == 0
    ranked = [line.split()[0].split("_lr")[1] for line in capfd.readouterr().out.splitlines()[-4:]]
    assert ranked == ["2.0_binarizenone", "1.0_binarizenone", "2.0_binarizethreshold", "1.0_binarizethreshold"]


def test_ctrl_c_in_a_grid_leaves_the_rest_for_the_same_command(tmp_path, capfd, monkeypatch):
    values = {1.0: -3.0, 2.0: KeyboardInterrupt(), 3.0: -1.0}
    monkeypatch.setattr(train, "fit", without_training(values))
    words = [*flags(runs_dir=tmp_path, gs_key="key"), "--lr", *values]
    assert called(train.main, *words) == 130
    out = capfd.readouterr().out
    assert "the same command goes on" in out and "not started" in out
    monkeypatch.setattr(train, "fit", without_training(values | {2.0: -2.0}))
    assert called(train.main, *words) == 0


def test_what_is_no_run_in_a_grids_way_does_not_cost_the_others_their_table(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(train, "fit", without_training({1.0: -3.0, 2.0: -2.0}))
    words = [*flags(runs_dir=tmp_path, gs_key="key"), "--lr", 1, 2]
    first, _ = configs_of(parsed(words))
    first.path.mkdir(parents=True)
    assert called(train.main, *words) == 1
    assert [line.split()[1] for line in capfd.readouterr().out.splitlines()[-2:]] == ["finished", "none"]


def test_a_real_grid_with_a_run_that_fails_is_trained_skipped_and_evaluated(tmp_path, capfd):
    grid = ["--latent_dim", 2, 3, "--lr", "1e-3", "1e30", "--gs_key", "key"]
    words = [*flags(runs_dir=tmp_path, **QUICK), *grid]
    assert called(train.main, *words) == 1
    capfd.readouterr()
    weights = {path: path.stat().st_mtime_ns for path in tmp_path.glob("key/*/best.weights.h5")}
    assert sorted(path.parent.name.split("_")[4] for path in weights) == ["dim2", "dim3"]
    assert called(train.main, *words) == 1
    table = capfd.readouterr().out.splitlines()[-4:]
    assert ["already trained" in line for line in table] == ["log p(x|z)" not in line for line in table]
    assert [line.split()[1] for line in table] == ["finished", "finished", "failed", "failed"]
    elbos = [float(line.split()[2]) for line in table]
    assert elbos == sorted(elbos, reverse=True) and all(map(math.isfinite, elbos[:2]))
    assert weights == {path: path.stat().st_mtime_ns for path in tmp_path.glob("key/*/best.weights.h5")}
    assert called(evaluate.main, "--gs_key", "key", "--runs_dir", tmp_path, "--num_samples", 3, "--max_images", 5) == 0
    printed = capfd.readouterr()
    assert printed.err.count("has no weights yet (it is failed)") == 2
    for table in printed.out.split("latents, the top layer first"):
        assert [line.split("_")[4] for line in table.splitlines() if line.startswith("digits")] == ["dim2", "dim3"]
    evaluated = sorted(tmp_path.glob("key/*/evaluations/test_isfitted_S3_N5.json"))
    assert [path.parents[1].name.split("_")[4] for path in evaluated] == ["dim2", "dim3"]

    rows, lines = rows_of(tmp_path / "key" / "ranking.csv"), rows_of(tmp_path / "key" / "ranking_runs.csv")
    best = [float(row["val_elbo"]) for row in rows[:2]]
    assert best == sorted(best, reverse=True) == pytest.approx(elbos[:2], abs=0.01)
    assert [(row["rank"], row["lr"], row["finished"]) for row in rows] == [
        ("1", "0.001", "1"),
        ("2", "0.001", "1"),
        ("", "1e+30", "0"),
        ("", "1e+30", "0"),
    ]
    assert [float(row["val_elbo"]) for row in lines[:2]] == best
    scores = {f"dim{row['latent_dim']}": float(row["log_px"]) for row in rows[:2]}
    assert scores == {path.parents[1].name.split("_")[4]: read(path)["log_px"] for path in evaluated}
    table = printed.out.split("ranked by validation ELBO alone")[1].splitlines()
    assert table[1].split()[:5] == ["rank", "latent_dim", "lr", "seeds", "val_elbo"] and "sd" not in table[1]
    assert table[2].split()[:3] == ["1", rows[0]["latent_dim"], "0.001"]
    assert table[4].split()[2:] == ["0", "of", "1", "finished"]
    assert f"written to {tmp_path}/key/ranking.csv and {tmp_path}/key/ranking_runs.csv" in printed.out


# ---------------------------------------------------------------------------------------------- evaluate.py

S, N = 23, 37


@pytest.mark.keras
def test_an_evaluation_is_stored_with_both_standard_errors_and_every_image(run, capfd, monkeypatch):
    backend.start()
    from evaluation import importance

    monkeypatch.setattr(importance, "CHUNK_BYTES", 300_000)  # several chunks, the last one with fewer samples
    words = ["--num_samples", S, "--max_images", N, "--split", "val", "--proposal", "posterior"]
    assert called(evaluate.main, run, *words) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith(f"val split, is, num_samples {S}, proposal posterior; in ") and lines[2].startswith(ID)
    names = ["num_images", "log_px", "log_px_se", "log_px_se_images", "bits_per_dim", "elbo", "rate", "distortion"]
    names += ["ess_median", "samples_mean", "doubtful", "seconds"]
    assert lines[1].split() == ["run", *names, "note"]

    assert files_below(run / "evaluations") == [f"val_is_S{S}_N{N}.json", f"val_is_S{S}_N{N}.npz"]
    metrics = read(run / "metrics.json")
    assert metrics == read(run / "evaluations" / f"val_is_S{S}_N{N}.json")
    about = {"num_samples": S, "num_images": N, "split": "val", "estimator": "is", "proposal": "posterior", "note": ""}
    about |= {"backend": os.environ["KERAS_BACKEND"], "versions": versions()}
    assert set(names) <= set(metrics) and {name: metrics[name] for name in about} == about

    with np.load(run / "evaluations" / f"val_is_S{S}_N{N}.npz", allow_pickle=False) as file:
        images = dict(file)
    assert set(images) == {"log_px", "log_px_se", "ess", "khat", "samples", "index"}
    assert {len(column) for column in images.values()} == {N} and set(images["samples"]) == {S}
    assert images["index"].tolist() == list(range(N))
    assert (images["ess"] >= 1).all() and (images["ess"] <= S).all()
    expected = {
        "log_px": images["log_px"].mean(),
        "log_px_se": math.sqrt((images["log_px_se"] ** 2).sum()) / N,
        "log_px_se_images": images["log_px"].std(ddof=1) / math.sqrt(N),
        "bits_per_dim": -images["log_px"].mean() / 64 / math.log(2),
        "elbo": -metrics["rate"] - metrics["distortion"],
        "ess_median": np.median(images["ess"]),
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert metrics["elbo"] < metrics["log_px"] < 0


def test_a_second_evaluation_is_the_latest_and_the_first_is_kept(run, capfd):
    assert called(evaluate.main, run, "--num_samples", 3, "--max_images", 5) == 0
    first = read(run / "metrics.json")
    assert called(evaluate.main, run, "--num_samples", 4, "--max_images", 400, "--split", "val") == 0
    assert read(run / "metrics.json")["num_images"] == 300  # as many as there are
    endings = [
        f"{name}.{ending}" for name in ("test_isfitted_S3_N5", "val_isfitted_S4_N300") for ending in ("json", "npz")
    ]
    assert files_below(run / "evaluations") == endings
    assert read(run / "evaluations" / "test_isfitted_S3_N5.json") == first
    assert called(evaluate.main, run, "--num_samples", 3, "--max_images", 5, "--seed", 1) == 0
    again = read(run / "metrics.json")
    assert again["log_px"] != first["log_px"] and again["seed"] == 1 and len(files_below(run / "evaluations")) == 6
    assert "Traceback" not in capfd.readouterr().err


@pytest.fixture(scope="module")
def plane(tmp_path_factory):
    """A run with two latent dimensions whose posteriors are no Gaussians and no priors: it is trained for a while."""
    place = tmp_path_factory.mktemp("plane")
    settings = {"network": "mlp", "model": "hvae", "prior": "vamp", "latent_dim": 2, "epochs": 20, "lr": 2e-3}
    words = [word for name, value in settings.items() for word in (f"--{name}", value)]
    words += ["--data_set", "digits", "--num_pseudo_inputs", 20, "--batch_size", 100, "--runs_dir", place]
    assert called(train.main, *words) == 0
    return next(place.iterdir())


def test_all_estimators_agree_on_a_trained_model_and_its_elbo_is_below(plane, capfd):
    """Two latent dimensions: the integral, both ways of importance sampling, and annealing, image by image."""
    ask = {
        "quadrature": "--estimator quadrature",
        "isfitted_S2000": "--num_samples 2000",
        "is_S2000": "--num_samples 2000 --proposal posterior",
        "ais_S25_T40_L3_B20": "--estimator ais --num_samples 25 --num_steps 40 --leapfrogs 3 --bracket 20",
    }
    found = {}
    for tag, words in ask.items():
        assert called(evaluate.main, plane, "--max_images", 20, *words.split()) == 0
        found[tag] = np.load(plane / "evaluations" / f"test_{tag}_N20.npz")
    exact = found.pop("quadrature")
    assert (exact["log_px_se"] <= 0.01).all() and (exact["samples"] > 4096).all()
    bound = (
        found.pop("is_S2000")["log_px"] - exact["log_px"]
    )  # q is too narrow here, so its errors are not to be trusted
    assert -0.5 < bound.mean() < 3 * bound.std() / math.sqrt(20)
    for tag, one in found.items():
        error = (one["log_px"] - exact["log_px"]) / one["log_px_se"]
        good = ~(one["khat"] > 0.7)
        assert good.sum() > 15 and np.all(np.abs(error[good]) < 5), tag
        assert abs(error[good].mean()) < 5 / math.sqrt(good.sum()), tag
    assert read(plane / "evaluations" / "test_isfitted_S2000_N20.json")["elbo"] < exact["log_px"].mean()
    annealed = read(plane / "evaluations" / "test_ais_S25_T40_L3_B20_N20.json")
    assert 0.3 < annealed["acceptance"] < 0.95 and annealed["bracket"]["num_images"] == 20
    assert annealed["bracket"]["gap"] == pytest.approx(annealed["bracket"]["upper"] - annealed["bracket"]["lower"])
    assert "of all steps were accepted" in capfd.readouterr().out


def test_a_target_error_takes_what_each_image_needs_and_says_where_it_failed(plane, capfd):
    assert called(evaluate.main, plane, "--max_images", 20, "--target_se", 0.05) == 0
    with np.load(plane / "evaluations" / "test_isfitted_se0.05_N20.npz") as file:
        assert (file["log_px_se"] <= 0.05).all() and len(set(file["samples"])) > 1
    metrics = read(plane / "metrics.json")
    assert metrics["target_se"] == 0.05 and metrics["samples_max"] <= metrics["max_samples"] == 100_000
    capfd.readouterr()
    assert called(evaluate.main, plane, "--max_images", 20, "--target_se", 1e-4, "--max_samples", 300) == 0
    said = capfd.readouterr().err
    assert "20 of 20 images did not reach --target_se 0.0001 with 300 samples; their standard errors go up to" in said


def test_doubtful_estimates_are_counted_and_named(plane, capfd):
    assert called(evaluate.main, plane, "--num_samples", 2000, "--max_images", 100, "--proposal", "posterior") == 0
    doubtful = read(plane / "metrics.json")["doubtful"]
    with np.load(plane / "evaluations" / "test_is_S2000_N100.npz") as file:
        assert doubtful == ((file["khat"] > 1 - 1 / np.log10(2000)) | (file["ess"] < 10)).sum() > 0
        worst = np.nanargmax(file["khat"])
    said = capfd.readouterr().err
    assert f"{doubtful} of 100 estimates are unreliable (Pareto k-hat above 0.7, up to " in said
    assert f"for image {worst}, or too few effective samples); try --proposal fitted" in said


def test_a_comparison_is_of_log_px_and_of_the_elbo():
    def scored(log_px, elbo):
        estimate = SimpleNamespace(log_px=np.array(log_px), elbo=np.array(elbo))
        return SimpleNamespace(name="a", metrics={"images_sha256": "0", "log_px_se": 0.3}, estimate=estimate)

    found = score.compared(scored([-1.0, -2.0, -3.0], [-2.0, -2.0, -2.0]), scored([-2.0, -2.0, -2.0], [-9.0] * 3))
    expected = {"difference": 0, "se": 1 / math.sqrt(3), "better": 1 / 3, "elbo_difference": 7, "elbo_se": 0}
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["estimators_se"] == pytest.approx(0.3 * math.sqrt(2))
    unknown = scored([-1.0], [math.nan])
    assert [score.compared(unknown, unknown)[name] for name in ("se", "elbo_difference", "elbo_se")] == [None] * 3


def test_runs_are_compared_image_by_image(run, tmp_path, capfd):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    assert called(evaluate.main, run, other, "--compare", "--max_images", 10, "--num_samples", 50) == 0
    line = capfd.readouterr().out.splitlines()[-1].split()
    assert line[0] == "other" and line[1:3] == line[5:7] == ["0.00", "0.00"] and float(line[4]) == 0
    record = read(other / "config.json")
    record["config"] |= {"likelihood": "gaussian", "binarize": "none"}
    (other / "config.json").write_text(json.dumps(record))
    said = f"--compare needs runs with the same images and likelihood; those of {other} and {run} differ"
    refused(capfd, evaluate.main, [run, other, "--compare"], said)


def test_one_temperature_and_one_simulated_image_are_stored_too(run, capfd):
    words = ["--estimator", "ais", "--num_steps", 1, "--bracket", 1, "--max_images", 2]
    assert called(evaluate.main, run, *words) == 0
    metrics = read(run / "metrics.json")
    assert metrics["acceptance"] is None and metrics["bracket"]["gap_se"] is None
    assert "accepted" not in capfd.readouterr().out


def test_two_samples_are_doubtful(run, capfd):
    assert called(evaluate.main, run, "--num_samples", 12, "--proposal", "posterior", "--max_images", 300) == 0
    metrics = read(run / "metrics.json")
    with np.load(run / "evaluations" / "test_is_S12_N300.npz") as file:
        assert np.isnan(file["khat"]).all() and metrics["doubtful"] == (file["ess"] < 6).sum()


def test_an_estimate_is_doubtful_by_its_k_hat_or_for_too_few_samples_that_count():
    """A k-hat that is high for 64 samples is none for 5000, and three effective samples are too few whatever it is."""
    nan = math.nan
    cases = [(0.5, 30, 64, True), (0.4, 30, 64, False), (0.6, 3.4, 5000, True), (0.69, 90, 5000, False)]
    cases += [(0.71, 90, 5000, True), (nan, 2, 16, True), (nan, 9, 16, False), (nan, 1, 1, False), (nan, nan, 9, False)]
    khat, ess, samples, expected = map(np.array, zip(*cases, strict=True))
    found = score.doubtful(SimpleNamespace(khat=khat, ess=ess, samples=samples))
    np.testing.assert_array_equal(found, expected)


def test_the_number_of_samples_is_that_of_the_proposal_or_estimator():
    cases = [
        {},
        {"proposal": "posterior"},
        {"target_se": 0.1},
        {"num_samples": 7},
        {"target_se": 0.1, "max_samples": 9},
    ]
    run = SimpleNamespace(config=Config(), latent_dim=40)
    found = [estimators.Scoring.of(run, **case) for case in cases]
    numbers = [(one.settings["num_samples"], one.settings["max_samples"]) for one in found]
    assert numbers == [(1000, None), (5000, None), (None, 100_000), (7, None), (None, 9)]
    assert [one.tag for one in found] == [
        "isfitted_S1000",
        "is_S5000",
        "isfitted_se0.1",
        "isfitted_S7",
        "isfitted_se0.1_S9",
    ]
    assert estimators.Scoring.of(run, "ais", start="prior").tag == "aisprior_S16_T100_L5"
    assert estimators.Scoring.of(run, "ais", bracket=3, seed=2).tag == "ais_S16_T100_L5_B3_seed2"
    assert estimators.Scoring.of(run, "quadrature").tag == "quadrature"
    for kind in ({"model": "dvp"}, {"latent_dim": 257}):
        config = Config(**kind)
        wide = SimpleNamespace(config=config, latent_dim=config.latent_dim)
        usual = "is_S1000" if config.is_deep else "is_S5000"
        assert estimators.Scoring.of(wide).tag == usual


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--estimator quadrature --target_se 1", "--target_se 1.0 goes with --estimator is"),
        ("--estimator quadrature --num_samples 3", "--num_samples 3 goes with --estimator is or ais"),
        ("--estimator ais --proposal fitted", "--proposal fitted goes with --estimator is"),
        ("--bracket", "--bracket 64 goes with --estimator ais"),
        ("--num_samples 10 --target_se 1", "--num_samples 10 does not go with --target_se, which chooses the number"),
        ("--max_samples 10", "--max_samples 10 goes with --target_se"),
        ("--num_generated 5", "--num_generated 5 goes with --features"),
        ("--compare", "--compare needs two runs or more"),
    ],
)
def test_settings_of_estimators_that_do_not_go_together_are_refused(run, capfd, words, expected):
    refused(capfd, evaluate.main, [run, *words.split()], expected)


@pytest.mark.parametrize(
    ("words", "settings", "latents", "expected"),
    [
        ("quadrature", {}, 3, "--estimator quadrature needs two latent dimensions at most, and a run has 3; try"),
        ("quadrature", {"model": "ladder"}, 2, "--estimator quadrature is for vae and hvae, and a run is a ladder"),
        (
            "quadrature",
            {"network": "pixel", "model": "hvae"},
            2,
            "--estimator quadrature would pass the pixel network of a run over",
        ),
        ("ais", {"model": "dvp"}, 9, "--estimator ais needs the density of the prior, of which a run has"),
        ("fitted", {"model": "ladder"}, 9, "--proposal fitted is for vae and hvae with 256 latent dimensions at most"),
        ("fitted", {}, 257, "--proposal fitted is for .*, and a run is a vae with 257; try --proposal posterior"),
    ],
)
def test_what_an_estimator_cannot_score_is_refused(words, settings, latents, expected):
    run = SimpleNamespace(path="a run", config=Config(**settings), latent_dim=latents)
    asked = {"proposal": words} if words == "fitted" else {"estimator": words}
    with pytest.raises(UserError, match=expected):
        estimators.Scoring.of(run, **asked).check(run)


def test_a_remedy_is_one_that_the_run_can_take():
    small, wide = (SimpleNamespace(config=Config(), latent_dim=size) for size in (40, 257))
    cases = {"raise --num_samples": {}, "try --proposal fitted": {"proposal": "posterior"}}
    cases |= {"raise --max_samples": {"target_se": 0.1}, "raise --num_steps": {"estimator": "ais"}}
    for remedy, asked in cases.items():
        scoring = estimators.Scoring.of(small, **asked)
        assert scoring.entry.remedy(small, scoring.settings) == remedy
    scoring = estimators.Scoring.of(wide)
    assert scoring.entry.remedy(wide, scoring.settings) == "raise --num_samples"


@pytest.mark.parametrize("value", [np.nan, pytest.param(np.inf, marks=pytest.mark.slow)])
def test_weights_that_are_no_numbers_are_refused(run, capfd, value):
    """The encoder's, too, of whose NaN ReLU makes 0 where it is compiled: a score would be a number."""
    model = experiment.load(run).model
    weight = next(weight for weight in model.weights if len(weight.shape) == 4)
    weight.assign(np.where(np.arange(weight.shape[-1]), weight, value))
    model.save_weights(run / "best.weights.h5")
    for main in (evaluate.main, plot.main):
        refused(capfd, main, [run], "/kernel is not finite, so log p(x) of image 0, or of any other, is not either")


@pytest.mark.parametrize("estimator", ["is", pytest.param("ais", marks=pytest.mark.slow)])
def test_weights_that_are_too_large_name_the_image(run, capfd, estimator):
    """The decoder's weights, for which this is found when images are scored."""
    model = experiment.load(run).model
    model.decoder.weights[-1].assign(np.full(model.decoder.weights[-1].shape, 3e38))
    model.save_weights(run / "best.weights.h5")
    words = [run, "--estimator", estimator, "--max_images", 3]
    refused(capfd, evaluate.main, words, "log p(x) of test image 0 is not finite; the weights are not usable")


def test_samples_that_are_no_numbers_are_refused():
    run = SimpleNamespace(path="run", model=SimpleNamespace(sample=lambda n, noise: np.full((n, 8, 8, 1), np.nan)))
    with pytest.raises(UserError, match="run: images drawn from the model are not finite"):
        next(score.draws(run, 3, 0, None))


@pytest.mark.keras
def test_samples_are_compared_with_images_by_the_features_of_a_classifier(run, tmp_path, capfd):
    from evaluation import distances

    file, count = tmp_path / "digits.keras", 530  # more than are drawn at once
    assert called(vampvae.main, "features", "--data_set", "digits", "--epochs", 2, "--out", file) == 0
    words = ["--num_samples", 3, "--max_images", 5, "--seed", 4, "--features", file, "--num_generated", count]
    capfd.readouterr()
    assert called(evaluate.main, run, *words) == 0
    network, loaded = features.load(file), experiment.load(run)
    lines = capfd.readouterr().out.splitlines()[-4:]
    assert lines[0] == f"all test images compared with samples and with real images, by the features of {network.said}"
    assert [line.split()[1:4] for line in lines[2:]] == [["samples", "530", "300"], ["real", "images", "530"]]

    name = f"test_isfitted_S3_seed4_F{network.sha256[:8]}_G{count}_N5"
    assert files_below(run / "evaluations") == [f"{name}.json", f"{name}.npz"]
    found = read(run / "evaluations" / f"{name}.json")["distances"]
    assert found == read(run / "metrics.json")["distances"]
    test_accuracy = read(file.with_suffix(".json"))["test_accuracy"]
    about = {"data_set": "digits", "layer": "features", "test_accuracy": test_accuracy, "file": "digits.keras"}
    assert found["network"] == about | {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()}

    noise = loaded.model.test_noise.__class__(4)
    drawn = np.concatenate([network.of(np.asarray(loaded.model.sample(n, noise))) for n in (500, 30)])
    images = network.of(loaded.dataset.split("test").grey())  # all of them, whatever --max_images says, and grey
    expected = {"num_images": count, "num_held_out": 300, "kid_subsets": 10, "kid_subset_size": 30}
    expected |= {"fid": distances.frechet(drawn, images), "kid": distances.kernel(drawn, images, 4)["kid"]}
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-3)
    assert found["real"]["num_images"] == count and found["real"]["fid"] < 0.5 * found["fid"]
    assert abs(found["real"]["kid"]) < 5 * found["real"]["kid_se"] and found["kid"] > 5 * found["kid_se"]


def test_training_images_are_compared_with_validation_images(run, capfd):
    network = own_network(run.parent / "own.keras", (8, 8, 1))
    words = ["--num_samples", 3, "--max_images", 5, "--split", "train", "--features", network, "--num_generated", 20]
    assert called(evaluate.main, run, *words) == 0
    found = read(run / "metrics.json")["distances"]
    assert (found["num_held_out"], found["real"]["num_images"]) == (1197, 20) and found["real"]["fid"] > 0
    assert found["network"]["test_accuracy"] is None and f"the features of {network}\n" in capfd.readouterr().out


def own_network(path, image_shape):
    """The file of a network that nothing is known of: its features are the pixels."""
    import keras

    keras.Sequential([keras.Input(image_shape), keras.layers.Flatten()]).save(path)
    return path


def test_networks_that_do_not_fit_are_refused_before_anything_is_computed(run, capfd, monkeypatch):
    backend.start()
    monkeypatch.setattr(score, "estimated", lambda *_: pytest.fail("scored"))
    wide = own_network(run.parent / "wide.keras", (28, 28, 1))
    said = f"--features {wide} takes images (28, 28, 1), but these are (8, 8, 1)"
    refused(capfd, evaluate.main, [run, "--features", wide], said)
    refused(
        capfd, evaluate.main, [run, "--features", run / "none.keras"], f"cannot read {run}/none.keras: No such file"
    )


@pytest.mark.parametrize(
    ("free", "max_memory", "has_gpu", "expected"),
    [(2**34, None, False, None), (2**30, None, False, 2**25), (2**31, None, True, 2**28), (2**34, 0.5, True, 2**29)],
)
def test_little_free_memory_means_small_chunks(free, max_memory, has_gpu, expected, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: free)
    monkeypatch.setattr(backend, "has_gpu", lambda: has_gpu)
    run = SimpleNamespace(config=Config(), latent_dim=40)
    assert estimators.Scoring.of(run, max_memory=max_memory).bytes_at_once == expected


def test_an_estimator_gets_its_bytes(run, monkeypatch):
    backend.start()
    from evaluation import importance

    asked, real = [], importance.importance_sampling
    monkeypatch.setattr(
        importance, "importance_sampling", lambda *a, **k: asked.append(k["max_bytes"]) or real(*a, **k)
    )
    assert called(evaluate.main, run, "--num_samples", 5, "--max_images", 3, "--max_memory", 0.001) == 0
    assert asked == [int(0.001 * 2**30)]


def test_an_evaluation_that_could_not_be_stored_does_not_begin(run, capfd, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    refused(capfd, evaluate.main, [run], f"cannot write the evaluation to {run}: Permission denied")


def test_want_of_memory_in_an_evaluation_is_a_sentence(run, capfd, monkeypatch):
    backend.start()
    from evaluation import importance

    def exhausted(*_, **__):
        raise MemoryError("Unable to allocate 7 TiB")

    monkeypatch.setattr(importance, "importance_sampling", exhausted)
    refused(capfd, evaluate.main, [run], f"out of memory while {run} is scored")
    assert not (run / "evaluations").exists()


def test_scores_of_grey_pixels_say_what_they_are(tmp_path, capfd, monkeypatch):
    words = flags(runs_dir=tmp_path, binarize="none", gs_key="key", **QUICK)
    assert called(train.main, *words) == 0
    (path,) = tmp_path.glob("key/*")
    assert path.name.endswith("_binarizenone") and read(path / "status.json")["note"] == GREY
    assert called(evaluate.main, path, "--num_samples", 3, "--max_images", 5) == 0
    assert f"  {GREY}\n" in capfd.readouterr().out
    assert read(path / "metrics.json")["note"] == GREY
    images = experiment.load(path).images("test")
    assert 0.2 < images.mean() < 0.5 and len(np.unique(images)) == 17
    monkeypatch.setattr(train, "fit", without_training({1e-3: -7.0}))
    assert called(train.main, *words, "--max_train_images", "None", 1000) == 0
    assert capfd.readouterr().out.count(GREY) == 2


def test_both_backends_give_the_same_log_px_for_the_same_weights(trained, tmp_path, script):
    """This process evaluates on its own backend, and another one on the other."""
    words, metrics, per_image = ["--num_samples", 1000, "--max_images", 50, "--backend"], {}, {}
    for name in BACKENDS:
        path = shutil.copytree(trained[1], tmp_path / name)
        if name == os.environ["KERAS_BACKEND"]:
            assert called(evaluate.main, path, *words, name) == 0
        else:
            done = script("evaluate.py", path, *words, name)
            assert (done.returncode, done.stderr) == (0, "")
        metrics[name] = read(path / "metrics.json")
        per_image[name] = np.load(path / "evaluations" / "test_isfitted_S1000_N50.npz")["log_px"]
    ours, theirs = metrics.values()
    error = math.hypot(ours["log_px_se"], theirs["log_px_se"])
    assert (ours["backend"], theirs["backend"]) == BACKENDS
    assert 0 < error < 0.01 < ours["log_px_se_images"]
    assert abs(ours["log_px"] - theirs["log_px"]) < 4 * error
    assert np.corrcoef(*per_image.values())[0, 1] > 0.95
    assert not np.array_equal(*per_image.values())  # else one backend was compared with itself


def omniglot_stand_in(folder, monkeypatch, seed):
    """Writes a tiny chardata.mat of noise, which is made a stand-in for the one of OMNIGLOT."""
    images = np.random.default_rng(seed).random((784, 48))
    (folder / "omniglot").mkdir(parents=True)
    path = folder / "omniglot" / "chardata.mat"
    scipy.io.savemat(path, {"data": images[:, :36], "testdata": images[:, 36:]})
    monkeypatch.setattr(data.sources, "OMNIGLOT_VAL", 12)
    stand_in = StandIn(hashlib.sha256(path.read_bytes()).hexdigest(), {"train": 24, "val": 12, "test": 12})
    source = data.DATA_SETS["omniglot"]
    file = dataclasses.replace(source.files[0], stand_in=stand_in)
    monkeypatch.setitem(data.DATA_SETS, "omniglot", dataclasses.replace(source, files=(file,)))


def test_scores_on_stand_in_data_say_so_everywhere(tmp_path, capfd, monkeypatch):
    settings = {"data_set": "omniglot", "epochs": 1, "batch_size": 12, "runs_dir": tmp_path / "runs", "gs_key": "key"}
    omniglot_stand_in(tmp_path / "data", monkeypatch, seed=0)
    words = [*flags(data_dir=tmp_path / "data", **settings), "--seed", 1, 2, "--binarize", "none"]
    assert called(train.main, *words) == 0
    printed = capfd.readouterr()
    assert printed.out.count(f"{GREY}; {STAND_IN}\n") == 2 and printed.err.count("warning: ") == 2
    path, _ = sorted((tmp_path / "runs" / "key").iterdir())
    assert read(path / "status.json")["note"] == f"{GREY}; {STAND_IN}"
    assert called(evaluate.main, path, "--num_samples", 3) == 0
    assert f"  {GREY}; {STAND_IN}\n" in capfd.readouterr().out
    assert read(path / "metrics.json")["note"] == f"{GREY}; {STAND_IN}"
    assert comparisons.drawn_of(View(experiment.load(path), "pca")).note == f"{GREY}; {STAND_IN}"
    omniglot_stand_in(tmp_path / "other", monkeypatch, seed=1)
    expected = "was trained on another chardata.mat, of sha256 "
    assert called(evaluate.main, path, "--num_samples", 3, "--data_dir", tmp_path / "other") == 2
    assert expected in capfd.readouterr().err


def test_own_images_are_trained_on_scored_and_drawn(tmp_path, capfd, monkeypatch):
    """From a path that is relative; the run is then found and understood from everywhere."""
    images = np.random.default_rng(0).integers(0, 256, (130, 9, 6, 3), np.uint8)
    (tmp_path / "here" / "cats").mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "here" / "cats" / f"{number}.png")
    monkeypatch.chdir(tmp_path / "here")
    words = ["--data_set", "folder:cats", "--network", "mlp", "--epochs", 1, "--prior", "vamp", "--batch_size", 26]
    assert called(train.main, *words, "--num_pseudo_inputs", 7) == 0
    (path,) = (tmp_path / "here" / "runs").iterdir()
    assert re.fullmatch(r"folder-cats-[0-9a-f]{8}_vae_vamp_bs26_dim2_mlp_epochs1_K7", path.name)
    record = read(path / "config.json")
    assert record["config"]["data_set"] == f"folder:{tmp_path}/here/cats" and record["image_shape"] == [9, 6, 3]
    label = path.name.split("_")[0]
    assert set(record["data_sha256"]) == {label, f"{label} train", f"{label} val"}
    assert called(train.main, *words, "--num_pseudo_inputs", 7) == 0
    assert "is finished already" in capfd.readouterr().out
    monkeypatch.chdir(tmp_path)
    assert called(evaluate.main, path, "--num_samples", 3) == 0 and read(path / "metrics.json")["num_images"] == 13
    assert called(plot.main, path) == 0 and f"{label}_input.png" in files_below(path / "figures")
    Image.fromarray(images[0]).save(tmp_path / "here" / "cats" / "more.png")  # the split is now another one
    capfd.readouterr()
    refused(capfd, evaluate.main, [path], f"was trained on another {label}, of sha256 ")
    refused(capfd, train.main, ["--resume", path, "--epochs", 2], f"was trained on another {label}, of sha256 ")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--data_set", "folder:nowhere"], "nowhere cannot be read (No such file or directory): name your folder"),
        (["--data_set", "folder:"], "argument --data_set: invalid choice: 'folder:' (choose from"),
        (["--data_set", "folder:odd.npy"], "divisible by 4"),
        (["--data_set", "folder:odd.npy", "--batch_size", "17"], "--batch_size 17 is more than the 16 training images"),
    ],
)
def test_own_images_that_cannot_be_trained_on_are_refused(tmp_path, capfd, monkeypatch, words, expected):
    monkeypatch.chdir(tmp_path)
    np.save("odd.npy", np.random.default_rng(0).random((20, 9, 6)))
    refused(capfd, train.main, ["--batch_size", "4", *words, "--runs_dir", "runs"], expected, tmp_path / "runs")


@pytest.mark.skipif(not (SHARED.parent / "freyfaces").is_dir(), reason="needs the Frey faces in $VAMPVAE_DATA")
def test_a_set_without_labels_is_trained_on_scored_and_drawn_in_one_colour(tmp_path, capfd):
    words = flags(data_set="freyfaces", network="mlp", epochs=1, max_train_images=128, runs_dir=tmp_path)
    words[(at := words.index("--network_size")) : at + 2] = []  # which mlp does not take
    assert called(train.main, *words) == 0
    (path,) = tmp_path.iterdir()
    assert path.name == "freyfaces_vae_standard_bs64_dim2_mlp_epochs1_lr0.001_n128"
    assert called(evaluate.main, path, "--num_samples", 3) == 0
    metrics = read(path / "metrics.json")
    assert (metrics["num_images"], metrics["note"]) == (200, "")  # a likelihood of grey values
    assert called(plot.main, path) == 0
    view = View(experiment.load(path), "pca")
    assert view.rows == () and view.examples.ravel().tolist() == list(range(100))
    axes = run_figures.draw_embedding_z(view).axes[0]
    assert len(np.unique(axes.collections[0].get_facecolors(), axis=0)) == 1
    assert axes.get_legend().get_texts()[0].get_text() == "test images"


# ---------------------------------------------------------------------------------------------- vampvae.py


def test_one_command_trains_evaluates_and_plots(tmp_path, capfd):
    assert called(vampvae.main, "train", *flags(runs_dir=tmp_path, **QUICK)) == 0
    (path,) = tmp_path.iterdir()
    assert called(vampvae.main, "eval", path, "--num_samples", 3, "--max_images", 5) == 0
    assert called(vampvae.main, "plot", path) == 0
    assert "Traceback" not in capfd.readouterr().err
    assert read(path / "metrics.json")["num_samples"] == 3
    assert {"digits_input.png", f"{path.name}_samples.png"} <= set(files_below(path / "figures"))


def test_what_data_there_is_is_said_without_keras(script):
    code = "import sys, vampvae; code = vampvae.main(['data', '--list']); print(code, 'keras' in sys.modules)"
    done = script("-c", code)
    assert done.stdout.splitlines()[-1] == "0 False" and done.stderr == ""
    for name, source in data.DATA_SETS.items():
        assert re.search(f"^{name}: ", done.stdout, re.MULTILINE) and source.origin in done.stdout
        assert all(f"{file.name} ({file.size})" in done.stdout for file in source.files)


def test_data_are_fetched_and_verified_without_training(tmp_path, capfd, monkeypatch):
    assert called(vampvae.main, "data", "digits", "folder:/cats") == 0
    printed = capfd.readouterr().out
    assert "digits: nothing to fetch, it is Optical" in printed and "/cats: nothing to fetch, it is /cats" in printed
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(b"broken")
    assert called(vampvae.main, "data", "mnist", "--data_dir", tmp_path) == 2
    assert re.fullmatch("error: .*is truncated or corrupted.*\n", capfd.readouterr().err)
    for words in (["data"], ["data", "digits", "--list"], ["data", "cats"], []):
        assert called(vampvae.main, *words) == 2
        assert capfd.readouterr().err.count("\n") == 1


# ---------------------------------------------------------------------------------------------- bad input


def refused(capfd, main, words, expected, nothing_in=None):
    """Checks for exit code 2, exactly one line on stderr, which has `expected`, nothing on stdout, and no file."""
    assert called(main, *words) == 2
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and printed.err.endswith("\n"), printed
    assert expected in printed.err and re.match(r"(error|\w+\.py( \w+)?): ", printed.err), printed.err
    assert nothing_in is None or not nothing_in.exists() or not any(nothing_in.iterdir())


PRESETS = ["mnist_hvae_vamp", "staticmnist_vae_vampdata", "staticmnist_convhvae_vamp"]


@pytest.mark.parametrize("preset", [*PRESETS, pytest.param("staticmnist_pixelhvae_vamp", marks=pytest.mark.slow)])
def test_a_preset_of_each_network_trains_is_scored_and_drawn(tmp_path, capfd, preset):
    small = {"data_set": "digits", "epochs": 1, "max_train_images": 40, "batch_size": 20, "num_pseudo_inputs": 3}
    words = ["--preset", preset, *(word for name, value in small.items() for word in (f"--{name}", str(value)))]
    assert train.main([*words, "--runs_dir", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    assert experiment.load(path).config.network == presets.preset(preset).settings["network"]
    assert evaluate.main([str(path), "--num_samples", "5", "--max_images", "20"]) == 0
    said = "sampling an image takes 8 x 8 passes through the decoder, one per pixel"
    assert (said in capfd.readouterr().out) == ("pixel" in preset)
    assert plot.main([str(path)]) == 0
    assert (path / "figures" / f"{path.name}_samples.png").is_file()


def test_presets_are_listed_with_cost_and_result(capfd):
    assert train.main(["--list_presets"]) == 0
    out = capfd.readouterr().out
    for name in preset_names():
        about, cost, expected, _ = preset(name)
        assert f"{name}\n  {about}\n  {cost}; {expected}\n" in out


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"model": "gan"}, "argument --model: invalid choice: 'gan' (choose from"),
        ({"data_set": "cats"}, "argument --data_set: invalid choice: 'cats' (choose from"),
        ({"jit": "maybe"}, "argument --jit: invalid choice: 'maybe' (choose from"),
        ({"backend": "torch"}, "argument --backend: invalid choice: 'torch' (choose from"),
        ({"colour": "red"}, "unrecognized arguments: --colour red"),
        ({"epochs": "ten"}, "argument --epochs: invalid int value: 'ten'"),
        ({"latent_dim": 0}, "--latent_dim 0 must be at least 1"),
        ({"latent_dim": -3}, "--latent_dim -3 must be at least 1"),
        ({"latent_dim": 1, "model": "hvae"}, "--latent_dim 1 is too small: hvae needs at least 2"),
        ({"network_size": 0}, "--network_size 0.0 must be more than 0 and at most 64"),
        ({"lr": -1e-4}, "--lr -0.0001 must be more than 0"),
        ({"lr": 0}, "--lr 0.0 must be more than 0"),
        ({"lr": "nan"}, "--lr nan must be a finite number"),
        ({"lr": "inf"}, "--lr inf must be a finite number"),
        ({"epochs": 0}, "--epochs 0 must be at least 1"),
        ({"batch_size": 0}, "--batch_size 0 must be at least 1"),
        ({"patience": -1}, "--patience -1 must be at least 0"),
        ({"num_pseudo_inputs": 0}, "--num_pseudo_inputs 0 must be at least 1"),
        ({"gs_key": "../elsewhere"}, "--gs_key '../elsewhere' must be a folder name"),
        ({"activation": "../relu"}, "--activation '../relu' must be a name"),
        ({"activation": "r" * 300}, "must be a name that keras.activations knows"),
    ],
    ids=str,
)
def test_a_bad_flag_is_one_sentence_and_nothing_is_written(tmp_path, capfd, monkeypatch, settings, expected):
    monkeypatch.setattr(train, "fit", lambda *_: pytest.fail("trained"))
    refused(capfd, train.main, flags(runs_dir=tmp_path / "runs", **settings), expected, tmp_path / "runs")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"batch_size": 1198}, "--batch_size 1198 is more than the 1197 training images"),
        ({"batch_size": 51, "max_train_images": 50}, "--batch_size 51 is more than the 50 training images"),
        ({"num_pseudo_inputs": 1198, "prior": "vamp"}, "--num_pseudo_inputs 1198 is more than the 1197 training"),
        ({"max_train_images": 1198}, "--max_train_images 1198 is more than the 1197 training images"),
        ({"activation": "sinus"}, "unknown activation 'sinus'; Keras knows celu, elu"),
        ({"activation": "get"}, "unknown activation 'get'; Keras knows"),
        ({"activation": "glu"}, "activation 'glu' changes the number of features"),
        ({"data_dir": "/nowhere"}, "data_dir /nowhere is not a folder"),
    ],
    ids=str,
)
def test_what_does_not_fit_data_or_keras_is_one_sentence_and_nothing_is_written(tmp_path, capfd, settings, expected):
    refused(capfd, train.main, flags(runs_dir=tmp_path / "runs", **settings), expected, tmp_path / "runs")


def test_a_grid_without_a_name_is_refused(tmp_path, capfd):
    words = [*flags(runs_dir=tmp_path / "runs"), "--lr", "1e-3", "1e-4", "--latent_dim", 2, 3, 4]
    refused(capfd, train.main, words, "a grid of 6 runs, which needs a name: add --gs_key NAME", tmp_path / "runs")


def test_an_unknown_backend_in_the_environment_is_refused(tmp_path, script):
    done = script("train.py", *flags(runs_dir=tmp_path / "runs"), KERAS_BACKEND="nonsense")
    assert (done.returncode, done.stdout) == (2, "") and not (tmp_path / "runs").exists()
    assert done.stderr == "error: KERAS_BACKEND is 'nonsense'; choose from tensorflow, jax\n"


def mnist_file(name):
    """A real file of MNIST, as bytes."""
    if not (SHARED / name).is_file():
        pytest.skip("needs the files of MNIST in $VAMPVAE_DATA/mnist")
    return (SHARED / name).read_bytes()


IMAGES = "train-images-idx3-ubyte.gz"
DAMAGED = {
    "empty": lambda: b"",
    "no gzip": lambda: b"<html>404 not found</html>",
    "another idx file": lambda: gzip.compress(bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 7])),
    "truncated": lambda: mnist_file(IMAGES)[:-1000],
    "corrupted": lambda: mnist_file(IMAGES)[:5000] + b"\0\0\0" + mnist_file(IMAGES)[5003:],
    "swapped": lambda: mnist_file("t10k-images-idx3-ubyte.gz"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_data_file_is_named_and_nothing_is_written(tmp_path, capfd, damage):
    (tmp_path / IMAGES).write_bytes(DAMAGED[damage]())
    words = flags(data_set="mnist", data_dir=tmp_path, runs_dir=tmp_path / "runs")
    expected = "but this is mnist's t10k-images" if damage == "swapped" else "is truncated or corrupted"
    refused(capfd, train.main, words, expected, tmp_path / "runs")
    assert called(train.main, *words) == 2 and str(tmp_path / IMAGES) in capfd.readouterr().err


def test_offline_without_data_says_which_files_to_put_where(tmp_path, capfd, monkeypatch):
    monkeypatch.delenv("VAMPVAE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    words = flags(data_set="fashionmnist", runs_dir=tmp_path / "runs")
    refused(capfd, train.main, words, "put train-images-idx3-ubyte.gz, train-labels", tmp_path / "runs")
    called(train.main, *words)
    error = capfd.readouterr().err
    for expected in (str(tmp_path / "cache" / "vampvae" / "fashionmnist"), "--data_dir", "VAMPVAE_DATA"):
        assert expected in error


@pytest.mark.parametrize("below", ["file", "file/deeper", "x" * 300])
def test_runs_that_cannot_be_written_are_refused(tmp_path, capfd, below):
    (tmp_path / "file").write_text("in the way")
    refused(capfd, train.main, flags(runs_dir=tmp_path / below), "choose another --runs_dir")
    assert files_below(tmp_path) == ["file"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_is_full_from_the_start_leaves_no_half_written_run(tmp_path, capfd, monkeypatch, call):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    words = flags(runs_dir=tmp_path / "runs")
    refused(capfd, train.main, words, "No space left on device; choose another --runs_dir", tmp_path / "runs")


def test_a_disk_that_gets_full_fails_the_run_without_a_traceback(tmp_path):
    """The limit on the size of a file stands in for a disk on which config.json fits and the weights do not."""
    words = " ".join(flags(runs_dir=tmp_path, **QUICK))
    command = ["bash", "-c", f"ulimit -f 20; exec {sys.executable} train.py {words}"]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    (path,) = tmp_path.iterdir()
    assert done.returncode == 1 and done.stderr.startswith(f"error: {path} can no longer be written: File too large")
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1
    assert files_below(path) == [".lock", "config.json", "status.json"] and experiment.load(path).state == "failed"


@pytest.mark.parametrize("main", [evaluate.main, plot.main], ids=["evaluate", "plot"])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "name either the folders of runs or a grid search with --gs_key"),
        (["{run}", "--gs_key", "key"], "name either the folders of runs or a grid search with --gs_key"),
        (["{tmp}"], "is no run: it has no readable config.json"),
        (["{tmp}/nothing"], "nothing is no run: it has no readable config.json"),
        (["{run}/config.json"], "config.json is no run: it has no readable config.json"),
        (["--gs_key", "nothing", "--runs_dir", "{tmp}"], "nothing holds no run with weights"),
        (["{run}", "--backend", "torch"], "invalid choice: 'torch'"),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else "",
)
def test_what_is_no_run_is_neither_evaluated_nor_plotted(tmp_path, capfd, main, words, expected):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    refused(capfd, main, [word.format(run=tmp_path / "run", tmp=tmp_path) for word in words], expected)


@pytest.mark.parametrize(
    "words",
    [
        *("--num_samples 1", "--num_samples many", "--max_images -1", "--seed -1", f"--seed {2**40}", "--split dev"),
        *("--target_se 0", "--target_se nan", "--estimator guess", "--num_steps 0", "--leapfrogs 0", "--max_memory -1"),
        *("--bracket 0", "--proposal vamp"),
    ],
)
def test_a_bad_flag_of_an_evaluation_is_named(tmp_path, capfd, words):
    words = words.split()
    refused(capfd, evaluate.main, [tmp_path, *words], f"evaluate.py: argument {words[0]}: ")


def test_weights_that_are_missing_damaged_or_another_networks_are_refused(run, capfd):
    content = (run / "best.weights.h5").read_bytes()
    (run / "best.weights.h5").write_bytes(content[:1000])
    refused(capfd, evaluate.main, [run], f"{run}/best.weights.h5 does not fit {run}/config.json: ")
    (run / "best.weights.h5").unlink()
    refused(capfd, evaluate.main, [run], f"{run} has no weights yet (it is finished)")
    (run / "best.weights.h5").write_bytes(content)
    record = read(run / "config.json")
    record["config"]["network_size"] = 0.5
    atomic.write_json(run / "config.json", record)
    refused(capfd, evaluate.main, [run], f"{run}/best.weights.h5 does not fit {run}/config.json: ")
    assert not (run / "evaluations").exists()
