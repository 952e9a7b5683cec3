"""train.py as a user runs it, end to end on digits, and what it refuses."""

import dataclasses
import errno
import gzip
import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from conftest import (
    FILES,
    ID,
    QUICK,
    ROOT,
    SETTINGS,
    STATES,
    as_flags,
    called,
    complaints,
    files_below,
    flags,
    read,
    refused,
    slow_on_jax,
)

import data
import evaluate
import experiment
import plot
import train
from experiment import Config, presets
from experiment.flags import next_commands, pasted
from experiment.presets import preset, preset_names
from experiment.record import FORMAT, git_commit
from grids import launch
from grids.configs import configs_of
from plotting import run_figures
from runtime import atomic
from runtime.command import Parser
from runtime.text import duration

HEEDING_CTRL_C = """import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)  # a background job, as CI may be, ignores it and hands that on
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"""
SHARED = Path(os.environ.get("VAMPVAE_DATA", "/nowhere"), "mnist")


def parsed(words):
    """The flags of train.py."""
    parser = Parser()
    train.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


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


@slow_on_jax
@pytest.mark.keras
def test_training_says_how_long_it_takes_and_ends_with_the_folder(trained):
    done, path = trained
    first, last = done.stdout.splitlines()
    assert first.startswith("expected time: ") and "(2 epochs of 19 steps, " in first
    assert last == str(path)


@slow_on_jax
@pytest.mark.keras
def test_a_run_says_what_it_is_how_it_ended_and_what_comes_next(trained):
    """And nothing else: neither a bar, as this is no terminal, nor notes of the backend."""
    done, path = trained
    status = experiment.load(path).status
    best = f"{status['best_val_elbo']:.2f} nats, in epoch {status['best_epoch']} of 2; "
    assert done.stderr.splitlines() == [
        "data: digits, 1,197 training, 300 validation, 300 test images of 8x8x1; binarized anew in each step, "
        "bernoulli likelihood",
        "model: hvae, 2 latent layers of 2 + 1 dimensions, vamp prior of 12 components, 314,005 weights "
        f"({', '.join(f'{part} {count:,}' for part, count in status['weights'].items())})",
        f"folder: {path}",
        f"best validation ELBO: {best}{duration(status['seconds'])} of training",
        f"next: python evaluate.py {path}",
        f"then: python plot.py {path}",
    ]
    assert sum(status["weights"].values()) == 314_005 and list(status["weights"]) == ["encoder", "decoder", "prior"]


def test_the_next_commands_are_quoted_and_name_the_scripts_where_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train_ = shlex.split(pasted("train.py", "--resume", "my runs/a"))
    assert (tmp_path / train_[1]).resolve() == ROOT / "train.py" and train_[2:] == ["--resume", "my runs/a"]
    evaluate_, plot_ = (shlex.split(line) for line in next_commands("--runs_dir", "my runs"))
    assert [evaluate_[0], plot_[0]] == ["next:", "then:"] and evaluate_[3:] == plot_[3:] == ["--runs_dir", "my runs"]
    assert [(tmp_path / words[2]).resolve() for words in (evaluate_, plot_)] == [ROOT / "evaluate.py", ROOT / "plot.py"]


@pytest.mark.slow
def test_warnings_of_libraries_end_no_script(script, tmp_path):
    done = script("train.py", *flags(runs_dir=tmp_path, **QUICK), PYTHONWARNINGS="error")
    assert (done.returncode, complaints(done.stderr)) == (0, [])


@slow_on_jax
@pytest.mark.keras
def test_a_run_is_the_documented_files(trained):
    path = trained[1]
    assert files_below(path.parent) == [f"{ID}/{name}" for name in FILES]


@slow_on_jax
@pytest.mark.keras
def test_config_json_has_what_is_needed_to_do_it_again(trained):
    from sklearn.datasets import load_digits

    record = read(trained[1] / "config.json")
    named = {"format", "config", "backend", "git_commit", "versions", "data_sha256", "data_note", "image_shape"}
    assert set(record) == named and record["image_shape"] == [8, 8, 1]
    small = {"data_set": "digits", "network_size": 0.25, "lr": 1e-3, "num_pseudo_inputs": 12, "track": "none"}
    assert Config.from_dict(record["config"]) == Config(runs_dir=str(trained[1].parent), **small, **SETTINGS)
    assert record["backend"] == os.environ["KERAS_BACKEND"]
    assert record["git_commit"] == git_commit()
    assert record["versions"]["numpy"] == np.__version__
    assert {"python", "keras", os.environ["KERAS_BACKEND"]} <= set(record["versions"])
    digest = hashlib.sha256(load_digits().images.astype(np.uint8).tobytes()).hexdigest()
    assert record["data_sha256"] == {"sklearn.digits": digest}


@slow_on_jax
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


def test_figures_are_drawn_when_a_run_is_finished(tmp_path, capfd, monkeypatch):
    chosen = [one for one in run_figures.FIGURES if one.name in ("losshistory", "input")]
    monkeypatch.setattr(run_figures, "FIGURES", chosen)
    assert called(train.main, *flags(runs_dir=tmp_path, **QUICK), "--plot") == 0
    *printed, folder = capfd.readouterr().out.splitlines()
    names = [Path(folder, "figures", name) for name in ("digits_input.png", f"{Path(folder).name}_losshistory.png")]
    assert printed[-2:] == list(map(str, names)) and all(path.is_file() for path in names)
    asked = SimpleNamespace(backend=None, device="cpu", overwrite=False, plot=True, cluster=None, jobs=2, code=[])
    with launch.launcher(asked) as starter:
        assert "--plot" in starter.words  # of each run of a grid


def test_a_finished_run_is_not_trained_again(run, capfd, monkeypatch):
    monkeypatch.setattr("training.start.fit", lambda *_: pytest.fail("trained"))
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
    (config,) = configs_of(parsed(words))
    (path := config.path).mkdir()
    record = {"format": FORMAT, "config": dataclasses.asdict(config), "backend": os.environ["KERAS_BACKEND"]}
    atomic.write_json(path / "config.json", record | {"versions": {}, "data_sha256": {}})
    atomic.write_json(path / "status.json", {"state": "stopped"})
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
    assert "is finished already" in capfd.readouterr().out and (run / "best.safetensors").is_file()


def test_a_folder_that_holds_another_run_is_not_taken_for_it(run, capfd):
    words = flags(runs_dir=run.parent, **(SETTINGS | {"epochs": 6}))
    other = shutil.copytree(run, configs_of(parsed(words))[0].path)
    assert called(train.main, *words) == 2
    assert capfd.readouterr().err == f"error: {other} holds the run {ID}; give the folder that name again\n"


@pytest.mark.slow
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


@slow_on_jax
@pytest.mark.keras
def test_a_term_that_is_no_number_stops_the_run_and_is_named(tmp_path, capfd):
    words = flags(runs_dir=tmp_path, lr="1e30", **QUICK)
    assert called(train.main, *words) == 1
    (path,) = tmp_path.iterdir()
    message = r"epoch 1, step 2: distortion, -log p\(x\|z\), is -?(nan|inf)"
    (line,) = complaints(capfd.readouterr().err)
    message += r"; try a lower --lr \(now 1e\+30\), .*"
    assert re.fullmatch(rf"error: {message}; the finished epochs are kept in {re.escape(str(path))}", line)
    status = read(path / "status.json")
    assert status["state"] == "failed" and re.fullmatch(message, status["message"])
    assert files_below(path) == [".lock", "config.json", "status.json"]
    assert called(evaluate.main, path) == 2
    assert "has no weights yet (it is failed)" in capfd.readouterr().err


@slow_on_jax
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
    assert f"stopped; python train.py --resume {path} resumes it" in out  # as it was started there
    assert len(run.history["epoch"]) == run.status["epochs_done"] >= 1
    assert called(evaluate.main, path, "--num_samples", 3, "--max_images", 5) == 0
    printed = capfd.readouterr()
    assert f"warning: {path} is stopped, not finished; its best weights so far are taken\n" in printed.err
    assert path.name in printed.out


def test_overwrite_leaves_a_link_alone(run, capfd):
    moved = run.rename(run.with_name("moved"))
    run.symlink_to(moved)
    assert called(train.main, *flags(runs_dir=run.parent, **SETTINGS), "--overwrite") == 2
    assert f"{run} is a link, which --overwrite leaves alone; move it away" in capfd.readouterr().err
    assert experiment.load(run).state == "finished" and run.is_symlink()


def test_ctrl_c_before_a_run_is_made_says_nothing_of_the_one_that_it_was_to_replace(run, capfd, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("training.start.fit", interrupted)
    assert called(train.main, *flags(runs_dir=run.parent, **SETTINGS), "--overwrite") == 130
    printed = capfd.readouterr()
    assert "best validation ELBO" not in printed.err and str(run) not in printed.out


def test_what_is_said_after_ctrl_c_is_true_with_overwrite(run, capfd, monkeypatch):
    """That command would begin again."""

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("keras.Model.fit", interrupted)
    words = flags(runs_dir=run.parent, **SETTINGS)
    for more, without in ([], ""), (["--overwrite"], " without --overwrite"):
        shutil.rmtree(run)
        assert called(train.main, *words, *more) == 130
        assert capfd.readouterr().out.endswith(f" resumes it, as does the same command{without}\n")


def test_ctrl_c_in_the_last_steps_of_a_run_finishes_it(tmp_path, capfd, monkeypatch):
    """A grid does not go on: the command ends as if it had been stopped."""
    fit, settings = keras.Model.fit, QUICK | {"epochs": 2}

    class Ask(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(keras.Model, "fit", lambda *a, callbacks, **k: fit(*a, callbacks=[Ask(), *callbacks], **k))
    assert called(train.main, *flags(runs_dir=tmp_path, **settings)) == 130
    (path,) = tmp_path.iterdir()
    printed = capfd.readouterr()
    assert experiment.load(path).state == "finished" and printed.out == f"{path}\n"
    assert "best validation ELBO: " in printed.err


def test_flags_that_have_no_effect_on_a_run_that_has_begun_are_told(run, capfd):
    words = flags(runs_dir=run.parent, **SETTINGS)
    atomic.write_json(run / "status.json", read(run / "status.json") | {"state": "stopped"})
    assert called(train.main, *words, "--jit", "off", "--save_minutes", "5", "--deterministic", "on") == 0
    said = f"--jit off has no effect: {run} has begun with --jit auto, which stays; --overwrite starts it anew"
    assert complaints(capfd.readouterr().err) == [f"warning: {said}"]


def test_ctrl_c_before_anything_was_written_promises_nothing(tmp_path, capfd, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("training.start.fit", interrupted)
    assert called(train.main, *flags(runs_dir=tmp_path / "runs", **SETTINGS)) == 130
    assert capfd.readouterr().err.startswith("stopped")
    monkeypatch.setattr(evaluate, "chosen_runs", interrupted)
    assert called(evaluate.main, "a") == 130
    assert capfd.readouterr().err.startswith("stopped")


PRESETS = ["staticmnist_vae_vampdata", "staticmnist_pixelhvae_vamp"]  # .ci/run trains those of other networks


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_trains_is_scored_and_drawn(tmp_path, capfd, preset):
    small = {"data_set": "digits", "epochs": 1, "max_train_images": 40, "batch_size": 20, "num_pseudo_inputs": 3}
    assert train.main(as_flags({"preset": preset} | small | {"runs_dir": tmp_path})) == 0
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
        ({"latent": 3}, "unrecognized arguments: --latent 3; did you mean --latent_dim?"),
        ({"epoch": 1}, "unrecognized arguments: --epoch 1; did you mean --epochs?"),
        ({"beta_w": 4}, "unrecognized arguments: --beta_w 4"),
        ({"dataset": "mnist"}, "unrecognized arguments: --dataset mnist; did you mean --data_set?"),
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
        ({"gs_key": "中" * 86}, "must be a folder name"),  # of 258 bytes
        ({"activation": "../relu"}, "--activation '../relu' must be a name"),
        ({"activation": "r" * 300}, "must be a name that keras.activations knows"),
    ],
    ids=str,
)
def test_a_bad_flag_is_one_sentence_and_nothing_is_written(tmp_path, capfd, monkeypatch, settings, expected):
    monkeypatch.setattr("training.start.fit", lambda *_: pytest.fail("trained"))
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
    expected = {"swapped": "but this is mnist's t10k-images", "truncated": "is truncated", "corrupted": "corrupted"}
    expected = expected.get(damage, "is not the published file")
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


@pytest.mark.slow
def test_a_disk_that_gets_full_fails_the_run_without_a_traceback(tmp_path):
    """The limit on the size of a file stands in for a disk on which config.json fits and the weights do not."""
    words = " ".join(flags(runs_dir=tmp_path, **QUICK))
    command = ["bash", "-c", f"ulimit -f 20; exec {sys.executable} train.py {words}"]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    (path,) = tmp_path.iterdir()
    (line,) = complaints(done.stderr)
    assert done.returncode == 1 and line.startswith(f"error: {path} can no longer be written: File too large")
    assert files_below(path) == [".lock", "config.json", "status.json"] and experiment.load(path).state == "failed"
