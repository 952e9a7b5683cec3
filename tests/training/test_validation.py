"""Runs of --validation none: all training images train, the last weights are kept, nothing needs what is missing."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import as_flags, complaints
from test_resume import called, config, die, interrupted, numbers_of

import data
import evaluate
import experiment
import plot
from evaluation import score
from experiment import Config
from grids import leaderboard
from grids.search import Search
from plotting import comparisons, curves
from runtime.errors import UserError
from training import fit

pytestmark = pytest.mark.slow

NONE = {"validation": "none", "max_train_images": None, "batch_size": 499}  # all 1,497: three steps


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The small run without validation, and which splits its training opened."""
    opened, split = set(), data.Dataset.split
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.Dataset, "split", lambda self, name: opened.add(name) or split(self, name))
        folder = fit.train(config(tmp_path_factory.mktemp("runs"), **NONE))
    assert opened == {"train", "val"}
    return experiment.load(folder)


@pytest.mark.parametrize("name", ["digits", "mnist5k", "mnist"])
def test_all_training_images_come_in_the_order_of_the_file(name):
    whole, joined = data.load(name), data.load(name, joined=True)
    try:
        parts = [whole.split(split) for split in ("train", "val")]
    except data.DataError:
        pytest.skip("its files are not here")
    found = joined.split("train")
    assert len(found.images) == {"digits": 1497, "mnist5k": 4500, "mnist": 60_000}[name]
    for column in ("images", "labels"):
        np.testing.assert_array_equal(getattr(found, column), np.concatenate([getattr(one, column) for one in parts]))


def test_images_on_disk_are_joined_unread():
    parts = [data.Stored(lambda name: np.full((2, 2, 1), name), np.array(names), (2, 2, 1)) for names in ([1, 2], [7])]
    found = data.Split(parts[0], None, 255).joined(data.Split(parts[1], None, 255))
    assert found.images[[0, 2]][:, 0, 0, 0].tolist() == [1, 7] and len(found.images) == 3 and found.labels is None


def test_the_last_weights_are_kept_and_the_history_has_training_alone(run):
    assert run.config.training_id.endswith("_validationnone") and run.state == "finished"
    columns = ["epoch", "train_loss", "train_elbo", "train_rate", "train_distortion", "seconds"]
    assert list(run.history) == columns
    assert run.status["best_epoch"] == run.status["epochs_done"] == 4 and "best_val_elbo" not in run.status
    _, arrays, _ = numbers_of(run.path)
    for name in [name for name in arrays if name.startswith("best/")]:
        assert arrays[name] == arrays[f"model/{name.removeprefix('best/')}"]
    assert len(run.images("train")) == 1497 and run.index("train").max() == 1496


def test_images_that_are_not_its_own_are_not_joined(run, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((7, 8, 8)))
    other = run.on(f"folder:{tmp_path}/x.npy")
    assert [len(other.images(split)) for split in data.SPLITS] == [7, 7, 7] and other.has_val and not run.has_val


@pytest.mark.parametrize(("split", "other"), [("train", "test"), ("test", "train")])
def test_real_images_for_comparison_are_not_those_of_the_split(run, monkeypatch, split, other):
    used = []
    network = SimpleNamespace(of=lambda images: used.append(images) or images.reshape(len(images), -1))
    network.record, network.path, network.sha256 = {}, run.path, ""
    score.distances(run, network, split, 20, seed=0)
    first, second, _ = ({image.tobytes() for image in images} for images in used)
    assert len(used[0]) == len(run.images(split)) and not first & second
    assert second <= {image.tobytes() for image in run.dataset.split(other).grey()}


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_numbers(run, tmp_path, monkeypatch):
    one = interrupted(tmp_path, monkeypatch, 1, 1, die, **NONE)
    fit.resume(one, one.config)
    assert numbers_of(one.path) == numbers_of(run.path)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"patience": 5}, "patience 5"),
        ({"lr_schedule": "plateau"}, "lr_schedule plateau"),
    ],
)
def test_what_follows_the_validation_bound_is_refused(settings, expected):
    said = f"--validation none leaves no validation bound that --{expected} could follow; leave one of them out"
    with pytest.raises(UserError, match=re.escape(said)):
        Config(validation="none", **settings)


@pytest.mark.parametrize(("name", "value"), [("watch_log_px", 5), ("diagnostics", "on")])
def test_nothing_is_watched_of_images_that_are_not_there(name, value):
    with pytest.raises(UserError, match=f"--{name} {value} needs validation images, and --validation none has none"):
        Config(validation="none", **{name: value})


def test_a_search_is_refused_and_a_ranking_leaves_it_without_a_rank(run, tmp_path, capsys):
    with pytest.raises(UserError, match="maximises the validation ELBO, and --validation none has none"):
        Search({"validation": ["none"], "lr": [1e-3, 1e-2], "gs_key": ["key"], "runs_dir": [str(tmp_path)]}, 3)
    score = {"log_px": -9.0, "elbo": -10.0, "bits_per_dim": 1.0, "split": "test", "note": run.config.note}
    leaderboard.report([run], {run.name: score})
    printed = capsys.readouterr().out
    assert "runs of --validation none have no validation ELBO, and so no rank" in printed
    rows, _ = leaderboard.ranking([run], {run.name: score})
    assert (rows[0]["rank"], rows[0]["val_elbo"], rows[0]["log_px"], rows[0]["finished"]) == (None, None, -9.0, 1)


def test_it_is_scored_on_test_images_alone_and_drawn(run, tmp_path, capsys):
    assert evaluate.main([str(run.path), "--num_samples", "5", "--max_images", "9"]) == 0
    assert "trained without a validation split" in capsys.readouterr().out
    assert evaluate.main([str(run.path), "--split", "val", "--num_samples", "5"]) == 2
    assert f"{run.path} was trained on the split val, too (--validation none)" in capsys.readouterr().err
    names = ["losshistory", "embedding_mean", "likelihood"]
    assert plot.main([str(run.path), "--figures", *names, "--report", "--out", str(tmp_path)]) == 0
    assert not complaints(capsys.readouterr().err) and len(list(tmp_path.iterdir())) == 4
    axes = curves.losshistory(SimpleNamespace(run=run, config=run.config)).axes[0]
    assert axes.get_title("left").startswith("last: ") and axes.lines[0].get_label() == "training"


def test_runs_without_validation_are_compared_by_their_training_alone(run):
    drawn = [comparisons.Drawn(run.path, one, run.history, None, None, None, None, None, note="")
             for one in (run.config, Config(**{"data_set": "digits", "seed": 3} | NONE))]  # fmt: skip
    assert comparisons.group_of(run.config).endswith("_validationnone") and drawn[0].best == 3
    (axes,) = comparisons.draw_overlay(drawn).axes
    assert axes.get_title("left") == "training" and len(axes.get_legend().get_texts()) == 2
    assert comparisons.draw_curves(drawn).axes[0].get_title("left") == "training; dots: kept epochs"


def test_a_finished_run_says_whose_weights_it_kept(tmp_path, capfd):
    words = {**{"data_set": "digits", "network": "mlp", "hidden_units": 5, "epochs": 1, "validation": "none"},
             "batch_size": 499, "runs_dir": tmp_path, "track": "none"}  # fmt: skip
    assert called(*as_flags(words)) == 0
    said = capfd.readouterr().err
    assert re.search(r"weights of the last epoch \(train_elbo -[\d.]+ nats\), 1 of 1; ", said)
    assert "digits, 1,497 training, 300 test images" in said
