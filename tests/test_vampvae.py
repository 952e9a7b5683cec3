"""The help of every script, and vampvae.py as a user runs it."""

import dataclasses
import re

import pytest
from conftest import SETTINGS, called, files_below, flags, read

import data
import vampvae
from experiment import Config

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


def test_one_command_trains_evaluates_and_plots(run, capfd):
    assert called(vampvae.main, "train", *flags(runs_dir=run.parent, **SETTINGS)) == 0
    assert "is finished already" in capfd.readouterr().out
    assert called(vampvae.main, "eval", run, "--num_samples", 3, "--max_images", 5) == 0
    assert called(vampvae.main, "plot", run) == 0
    assert "Traceback" not in capfd.readouterr().err
    assert read(run / "metrics.json")["num_samples"] == 3
    assert {"digits_input.png", f"{run.name}_samples.png"} <= set(files_below(run / "figures"))


def test_what_data_there_is_is_said_without_keras(script):
    code = "import sys, vampvae; code = vampvae.main(['data', '--list']); print(code, 'keras' in sys.modules)"
    done = script("-c", code)
    assert done.stdout.splitlines()[-1] == "0 False" and done.stderr == ""
    for name, source in data.DATA_SETS.items():
        assert re.search(f"^{name}: ", done.stdout, re.MULTILINE) and source.origin in done.stdout
        assert all(f"  {file.name} (" in done.stdout for file in source.files)
    assert "  train-images-idx3-ubyte.gz (9,912,422 bytes): " in done.stdout
    assert "  histopathology.pkl (unknown size): " in done.stdout


def test_data_are_fetched_and_verified_without_training(tmp_path, capfd, monkeypatch):
    assert called(vampvae.main, "data", "digits", "folder:/cats") == 0
    printed = capfd.readouterr().out
    assert "digits: nothing to fetch, it is Optical" in printed and "/cats: nothing to fetch, it is /cats" in printed
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(b"broken")
    assert called(vampvae.main, "data", "mnist", "--data_dir", tmp_path) == 2
    assert re.fullmatch("error: .*is not the published file.*\n", capfd.readouterr().err)
    for words in (["data"], ["data", "digits", "--list"], ["data", "cats"], []):
        assert called(vampvae.main, *words) == 2
        assert capfd.readouterr().err.count("\n") == 1
