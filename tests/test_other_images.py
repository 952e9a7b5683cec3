"""Runs whose images have moved, and runs that score and draw images which are not theirs, as a user does it."""

import shutil

import numpy as np
import pytest
from conftest import called, files_below, read, refused
from PIL import Image

import evaluate
import experiment
import plot
import train

SIZE = (9, 6)
WORDS = ["--network", "mlp", "--hidden_units", 5, "--epochs", 1, "--batch_size", 26, "--track", "none"]


def write_pictures(folder, seed=0, count=40, size=SIZE):
    folder.mkdir(parents=True)
    for number, image in enumerate(np.random.default_rng(seed).integers(0, 256, (count, *size), np.uint8)):
        Image.fromarray(image).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A run on own images, which are gone afterwards, and where they were."""
    top = tmp_path_factory.mktemp("own")
    cats = write_pictures(top / "cats")
    assert called(train.main, "--data_set", f"folder:{cats}", *WORDS, "--runs_dir", top / "runs") == 0
    shutil.rmtree(cats)
    (path,) = (top / "runs").iterdir()
    return path, cats


@pytest.fixture
def moved(own, tmp_path):
    """A copy of the run, and where its images are now."""
    return shutil.copytree(own[0], tmp_path / "runs" / own[0].name), write_pictures(tmp_path / "elsewhere" / "tigers")


def test_data_dir_says_where_own_images_have_moved(moved, capfd):
    run, images = moved
    refused(capfd, evaluate.main, [run], "if it has moved since a run was trained on it, by --data_dir")
    assert called(evaluate.main, run, "--num_samples", 3, "--data_dir", images) == 0
    assert read(run / "metrics.json")["num_images"] == 4
    assert called(plot.main, run, "--figures", "input", "--data_dir", images) == 0
    label = run.name.split("_")[0]
    assert files_below(run / "figures") == [f"{label}_input.png"]
    assert experiment.load(run, images).images("train").shape == (32, *SIZE, 1)


def test_data_dir_of_a_resumed_run_says_so_too_and_is_remembered(moved):
    run, images = moved
    assert called(train.main, "--resume", run, "--epochs", 2, "--data_dir", images) == 0
    (longer,) = run.parent.glob("*_epochs2*")
    assert longer.name.split("_")[0] == run.name.split("_")[0]
    assert experiment.load(longer).images("test").shape == (4, *SIZE, 1)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("nowhere", "nowhere cannot be read (No such file or directory): name your folder"),
        ("elsewhere", "was trained on another folder-cats-"),  # which holds the folder
        ("lions", "was trained on another folder-cats-"),
        ("empty", "empty holds no image"),
    ],
)
def test_images_that_are_not_the_moved_ones_are_refused(moved, tmp_path, capfd, place, expected):
    write_pictures(tmp_path / "lions", seed=1)
    (tmp_path / "empty").mkdir()
    refused(capfd, evaluate.main, [moved[0], "--data_dir", tmp_path / place], expected)


def test_a_new_run_takes_own_images_from_their_path_alone(tmp_path, capfd):
    words = ["--data_set", f"folder:{tmp_path}", "--data_dir", tmp_path, "--runs_dir", tmp_path]
    expected = "does not go with --data_set folder:PATH, whose images are at PATH; with --resume it says where"
    refused(capfd, train.main, words, expected)
