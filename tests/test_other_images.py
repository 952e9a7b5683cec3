"""Runs whose images have moved, and runs that score and draw images which are not theirs, as a user does it."""

import csv
import re
import shutil

import numpy as np
import pytest
from conftest import called, files_below, read, refused
from PIL import Image

import data
import evaluate
import experiment
import plot
import train
from data import splits
from plotting import latents
from plotting.view import View

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
    refused(capfd, evaluate.main, [run], "name your folder, .npy or .npz file, with --data_dir if it has moved since")
    assert called(evaluate.main, run, "--num_samples", 3, "--data_dir", images) == 0
    assert read(run / "metrics.json")["num_images"] == 4
    assert called(plot.main, run, "--figures", "input", "--data_dir", images) == 0
    label = run.name.split("_")[0]
    assert files_below(run / "figures") == [f"{label}_input.png"]
    assert experiment.load(run, images).images("train").shape == (32, *SIZE, 1)


def test_images_that_have_moved_cost_no_other_run_its_scores(own, run, capfd):
    assert called(evaluate.main, own[0], run, "--num_samples", 3, "--max_images", 4) == 2
    printed = capfd.readouterr()
    assert "cats cannot be read" in printed.err and f"\nrun: {run.name}\n" in printed.out


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


@pytest.mark.slow
def test_a_run_of_a_version_that_split_classes_by_chance_is_refused(tmp_path, monkeypatch, capfd):
    for name in ("cat", "dog"):
        write_pictures(tmp_path / "pets" / name, seed=len(name), count=20)
    with monkeypatch.context() as patch:
        patch.setattr(splits, "_split", lambda rows, classes, *more, _split=splits._split: _split(rows, None, *more))
        assert called(train.main, "--data_set", f"folder:{tmp_path}/pets", *WORDS, "--runs_dir", tmp_path / "runs") == 0
    (run,) = (tmp_path / "runs").iterdir()
    capfd.readouterr()
    for main, words in ((evaluate.main, [run]), (plot.main, [run]), (train.main, ["--resume", run, "--epochs", 2])):
        refused(capfd, main, words, "or, if it is the same, train anew, as older versions split classes by chance")


def test_a_new_run_takes_own_images_from_their_path_alone(tmp_path, capfd):
    words = ["--data_set", f"folder:{tmp_path}", "--data_dir", tmp_path, "--runs_dir", tmp_path]
    expected = "does not go with --data_set folder:PATH, whose images are at PATH; with --resume it says where"
    refused(capfd, train.main, words, expected)


# Images that are not the run's own


def scored_on(run, name, *more):
    assert called(evaluate.main, run, "--num_samples", 3, "--on", name, *more) == 0


@pytest.mark.parametrize("count", [1, 7])
def test_all_images_of_a_folder_are_scored_by_name_and_become_no_score_of_the_run(own, tmp_path, capfd, count):
    run, others = own[0], write_pictures(tmp_path / f"others {count}", 3, count)
    before = files_below(run)
    scored_on(run, f"folder:{others}")
    printed, new = capfd.readouterr().out, sorted(set(files_below(run)) - set(before))
    assert [path.rsplit(".", 1)[1] for path in new] == ["csv", "json", "npz"] and "metrics.json" not in files_below(run)
    assert all(re.fullmatch(rf"evaluations/on_folder-others-{count}-[0-9a-f]{{8}}_all_isfitted_S3_N{count}\.\w+", path)
               for path in new)  # fmt: skip
    with open(run / new[0], newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["image"] for row in rows) == [f"{number:02d}.png" for number in range(count)]
    values = [float(row["log_px"]) for row in rows]
    assert values == sorted(values) and f"folder:{others}, all images, is, num_samples 3" in printed
    metrics = read(run / new[1])
    note = f"not the run's data but folder:{others}, binarization none, likelihood logistic"
    assert (metrics["split"], metrics["num_images"], metrics["note"]) == ("all", count, note) and note in printed
    assert np.mean(values) == pytest.approx(metrics["log_px"])
    lowest = printed.split("lowest log p(x)")[1]
    assert [row["image"] in lowest for row in rows] == [True] * min(count, 5) + [False] * max(0, count - 5)
    assert experiment.load(run).evaluation("test") is None and experiment.load(run).metrics == {}


def test_a_named_data_set_is_scored_by_index_and_a_grid_is_not_ranked(run, tmp_path, capfd):
    np.save(tmp_path / "odd.npy", np.random.default_rng(0).random((20, 8, 8)))
    grid = shutil.copytree(run, tmp_path / "runs" / "key" / run.name)
    words = ["--gs_key", "key", "--runs_dir", tmp_path / "runs", "--max_images", 4]
    assert called(evaluate.main, *words, "--num_samples", 3, "--on", f"folder:{tmp_path}/odd.npy") == 0
    printed = capfd.readouterr().out
    assert "ranked by" not in printed and not (grid.parent / "ranking.csv").exists()
    (path,) = grid.glob("evaluations/*.csv")
    with open(path, newline="") as file:
        assert {int(row["image"]) for row in csv.DictReader(file)} == set(data.subset(20, 4))


@pytest.mark.parametrize(
    ("name", "more", "expected"),
    [
        ("folder:nowhere", (), "nowhere cannot be read (No such file or directory)"),
        ("folder:{cats}", (), " itself; leave out --on"),
        ("digits", (), "was trained on images (9, 6, 1), but those of digits are (8, 8, 1)"),
        ("folder:{tmp}/wide", (), "was trained on images (9, 6, 1), but those of folder:"),
        ("folder:{tmp}/wide", ("--split", "val"), "--split val does not go with --on folder:PATH, as all images there"),
        ("folder:{tmp}/wide", ("--data_dir", "x"), "does not go with --on folder:PATH, which says where its images"),
        ("digits", ("--features", "f.keras"), "--on digits does not go with --features"),
        ("cats", (), "argument --on: invalid choice: 'cats'"),
    ],
)
def test_what_cannot_be_scored_is_refused(own, tmp_path, capfd, name, more, expected):
    write_pictures(tmp_path / "wide", size=(9, 8))
    name = name.format(cats=own[1], tmp=tmp_path)
    refused(capfd, evaluate.main, [own[0], "--on", name, *more], expected)


def test_data_dir_is_for_a_named_data_set_where_the_run_s_own_images_are_a_folder(moved, tmp_path, monkeypatch):
    run, _ = moved
    np.save(tmp_path / "x.npy", np.zeros((20, *SIZE)))
    monkeypatch.setattr(experiment.Run, "_check_fits", lambda *_: None)
    monkeypatch.setattr("experiment.run.data.load", lambda name, place, *_: (name, place))
    for given, place in ((None, None), (tmp_path, tmp_path), (tmp_path / "x.npy", None)):  # the run's own, moved
        assert experiment.load(run, given).on("mnist").dataset == ("mnist", place)
        assert experiment.load(run, given).on("folder:/cats").dataset == ("folder:/cats", None)


def test_others_are_drawn_over_the_run_s_own(moved, tmp_path, capfd):
    run, images = moved
    others = write_pictures(tmp_path / "others", 3, 5)
    assert called(plot.main, run, "--on", f"folder:{others}", "--data_dir", images) == 0
    names = files_below(run / "figures")
    assert [name.rsplit("_", 1)[1] for name in names] == ["embedding.png", "reconmanifold.png"]
    assert all(re.fullmatch(rf"{run.name}_on_folder-others-[0-9a-f]{{8}}_\w+\.png", name) for name in names)
    own = View(experiment.load(run, images), "pca")
    other = View(own.run.on(f"folder:{others}"), "pca")
    assert other.model is own.model and len(other.images) == 5
    axes = latents.draw_embedding_on((own, other)).axes[0]
    below, above = (collection.get_offsets() for collection in axes.collections)
    np.testing.assert_allclose(np.sort(below, axis=0), np.sort(own.embedding.mean, axis=0), rtol=1e-5)
    np.testing.assert_allclose(np.sort(above, axis=0), np.sort(other.embedding.mean, axis=0), rtol=1e-5)
    words = [text.get_text() for text in axes.get_legend().get_texts()]
    assert words == ["the run's own test images", f"images of folder:{others}"]
    capfd.readouterr()
    refused(capfd, plot.main, [run, "--on", "digits", "--data_dir", images], "but those of digits are (8, 8, 1)")
    refused(capfd, plot.main, [run, "--on", "digits", "--report"], "--on digits does not go with --report")
