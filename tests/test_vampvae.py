"""The help of every script, and vampvae.py as a user runs it."""

import importlib
import re

import numpy as np
import pytest
from conftest import FIELDS, SETTINGS, called, files_below, flags, read, refused

import data
import vampvae
from experiment.settings import TOPICS
from runtime.command import Parser

TRAIN_FLAGS = [*FIELDS, "overwrite", "backend"]
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
    done = script("-X", "importtime", *words.split(), "--help", "all")
    assert done.returncode == 0
    assert set(expected) <= set(re.findall(r"--(\w+)", done.stdout))
    imported = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "experiment" in imported
    assert not imported & {"keras", "tensorflow", "jax", "matplotlib", "sklearn", "urllib3", "requests"}


def test_help_needs_no_docstrings(script):
    done = script("-OO", "vampvae.py", "--help")
    assert (done.returncode, done.stderr) == (0, "") and "features" in done.stdout


SCRIPTS = ("train", "evaluate", "plot")
FIRST = ("reconmanifold", "embedding_mean")


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", SCRIPTS)
def test_help_is_short_and_all_of_it_is_grouped(name, columns, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    main = importlib.import_module(name).main
    texts = {}
    for topic in ("", "all"):
        assert called(main, "--help", *filter(None, [topic])) == 0
        texts[topic] = capfd.readouterr().out
    short, every = texts.values()
    assert short.splitlines()[0].startswith(f"usage: {name}.py ") and short.splitlines()[1] == ""
    assert short.count("\n") <= 65 and set(short.splitlines()) < set(every.splitlines())
    assert max(map(len, every.splitlines())) <= columns
    flags = re.findall(r"^  --(\w+)", every, re.MULTILINE)
    assert len(flags) == len(set(flags)) and "--help TOPIC those on a topic: " in " ".join(every.split())
    if name == "train":
        assert set(re.findall(r"^(\w.*):$", every, re.MULTILINE)) == set(TOPICS)


def test_help_on_a_topic_is_that_group_alone(capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    for words in (["train", "--help", "optimisation"], ["train", "-h", "opt"]):
        assert called(vampvae.main, *words) == 0
        out = capfd.readouterr().out
        assert "  --lr X                   learning rate [0.0001]\n" in out and "--num_samples" not in out
    assert called(vampvae.main, "--help", "plot") == 0
    assert "usage: vampvae.py plot [RUN ...]" in capfd.readouterr().out


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_on_an_unknown_topic_names_the_topics(name, capfd):
    refused(capfd, importlib.import_module(name).main, ["--help", "colours"], "--help knows no topic 'colours'; choose")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"choices": ("a", "b"), "help": "kinds", "metavar": "NAME"}, "--x NAME  a, b: kinds"),
        ({"choices": ("a", "b"), "help": "a: one; b: two", "metavar": "NAME"}, "--x NAME  a: one; b: two"),
        ({"choices": ("off", "on"), "default": "off", "metavar": "on", "help": "more"}, "--x on  more [off]"),
        ({"type": int, "default": 0, "help": "seed"}, "--x X  seed [0]"),
        ({"action": "store_true", "help": "more"}, "--x  more"),
        ({"nargs": "?", "metavar": "N", "const": 3, "help": "more"}, "--x [N]  more"),
    ],
)
def test_a_flag_is_described_in_a_line_that_names_its_choices_once(options, expected):
    parser = Parser()
    parser.add_argument("--x", **options)
    (line,) = [line for line in parser.format_help().splitlines() if "--x" in line]
    assert re.sub(r" {3,}", "  ", line.strip()) == expected


def test_one_command_trains_evaluates_and_plots(run, capfd):
    assert called(vampvae.main, "train", *flags(runs_dir=run.parent, **SETTINGS)) == 0
    assert "is finished already" in capfd.readouterr().out
    assert called(vampvae.main, "eval", run, "--num_samples", 3, "--max_images", 5) == 0
    assert capfd.readouterr().err.splitlines()[-1].startswith("how to read it: higher log_px is better; log_px_se is ")
    assert called(vampvae.main, "plot", run) == 0
    err, first = capfd.readouterr().err, [f"{run}/figures/{run.name}_{name}.png" for name in FIRST]
    assert "Traceback" not in err and err.splitlines()[-1] == f"look first at {' and '.join(first)}"
    assert read(run / "metrics.json")["num_samples"] == 3
    assert {"digits_input.png", f"{run.name}_samples.png"} <= set(files_below(run / "figures"))


@pytest.mark.parametrize(
    ("words", "prog", "near"),
    [
        (["train", "--latent", 3], "vampvae.py train", "--latent_dim"),
        (["train", "--learning_rate", 1], "vampvae.py train", "--lr"),
        (["train", "--model", "havae"], "vampvae.py train", "hvae"),
        (["train", "--data_set", "minst"], "vampvae.py train", "mnist"),
        (["plot", "RUN", "--figure", "samples"], "vampvae.py plot", "--figures"),
        (["plot", "RUN", "--figures", "sample"], "vampvae.py plot", "samples"),
        (["eval", "RUN", "--estimator", "quadratur"], "vampvae.py eval", "quadrature"),
        (["features", "--epoch", 3], "vampvae.py features", "--epochs"),
        (["trian"], "vampvae.py", "train"),
    ],
)
def test_near_names_of_commands_flags_and_values_are_proposed(words, prog, near, capfd):
    refused(capfd, vampvae.main, words, f"; did you mean {near}? (see {prog} --help)")


def test_a_folder_in_the_place_of_a_data_set_is_said_to_need_its_prefix(tmp_path, capfd):
    words = ["train", "--data_set", tmp_path]
    refused(
        capfd, vampvae.main, words, f"; for images of your own, write folder:{tmp_path} (see vampvae.py train --help)"
    )


def test_another_spelling_of_a_topic_is_understood(capfd):
    assert called(vampvae.main, "train", "--help", "optimization") == 0
    assert capfd.readouterr().out.count("optimisation:") == 1


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
    np.save(tmp_path / "cats.npy", np.arange(20 * 8 * 8, dtype=np.uint8).reshape(20, 8, 8))
    assert called(vampvae.main, "data", "digits", f"folder:{tmp_path}/cats.npy") == 0
    printed = capfd.readouterr()
    assert "digits: nothing to fetch, it is Optical" in printed.out
    assert f"/cats.npy: nothing to fetch, it is {tmp_path}/cats.npy\n" in printed.out
    assert printed.err == "folder:cats.npy: 20 images 8x8 with 1 channel (16 train, 2 val, 2 test)\n"
    assert called(vampvae.main, "data", "folder:/no/cats") == 2 and "name your folder" in capfd.readouterr().err
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(b"broken")
    assert called(vampvae.main, "data", "mnist", "--data_dir", tmp_path) == 2
    assert re.fullmatch("error: .*is not the published file.*\n", capfd.readouterr().err)
    for words in (["data"], ["data", "digits", "--list"], ["data", "cats"], []):
        assert called(vampvae.main, *words) == 2
        assert capfd.readouterr().err.count("\n") == 1
