"""evaluate.py as a user runs it, end to end on digits, and what it refuses."""

import csv
import hashlib
import json
import math
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.io
from conftest import (
    ID,
    QUICK,
    as_flags,
    called,
    complaints,
    files_below,
    flags,
    read,
    refused,
    save_weights,
    slow_on_jax,
)
from PIL import Image
from tqdm import tqdm

import data
import evaluate
import experiment
import plot
import train
import vampvae
from data import OTHER_DATA
from evaluation import estimators, features, score, tables
from experiment import Config
from experiment.config import BINARIZED_NOTE
from experiment.record import versions
from plotting import comparisons, latents
from plotting.view import View
from runtime import atomic, backend, memory
from runtime.backend import BACKENDS
from runtime.errors import UserError

GREY = "grey-pixel bound, not a likelihood"
SHARED = Path(os.environ.get("VAMPVAE_DATA", "/nowhere"), "mnist")


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_grid_with_a_run_that_fails_is_trained_evaluated_and_ranked(tmp_path, capfd):
    words = [*flags(runs_dir=tmp_path, **QUICK), "--lr", "1e30", "1e-3", "--gs_key", "key"]
    assert called(train.main, *words) == 1
    table = [line.split(maxsplit=2) for line in capfd.readouterr().out.splitlines()[-2:]]
    assert [row[1] for row in table] == ["finished", "failed"] and "epoch 1, step 2: distortion" in table[1][2]
    elbo = float(table[0][2].split()[0])
    assert called(evaluate.main, "--gs_key", "key", "--runs_dir", tmp_path, "--num_samples", 3, "--max_images", 5) == 0
    printed = capfd.readouterr()
    assert printed.err.count("has no weights yet (it is failed)") == 1
    (name,) = [line for line in printed.out.splitlines() if line.startswith("run: digits")]
    assert name.endswith("_lr0.001")
    (evaluated,) = tmp_path.glob("key/*/evaluations/test_isfitted_S3_N5.json")

    rows, lines = rows_of(tmp_path / "key" / "ranking.csv"), rows_of(tmp_path / "key" / "ranking_runs.csv")
    assert [(row["rank"], row["lr"], row["finished"]) for row in rows] == [("1", "0.001", "1"), ("", "1e+30", "0")]
    assert elbo == pytest.approx(float(rows[0]["val_elbo"]), abs=0.01) and lines[0]["val_elbo"] == rows[0]["val_elbo"]
    assert float(rows[0]["log_px"]) == read(evaluated)["log_px"]
    ranked = [line.split() for line in printed.out.split("ranked by validation ELBO alone")[1].splitlines()]
    assert ranked[1][:4] == ["rank", "lr", "seeds", "val_elbo"] and "sd" not in "".join(ranked[1])
    assert ranked[2][:2] == ["1", "0.001"] and ranked[3][1:] == ["0", "of", "1", "finished"]
    assert f"written to {tmp_path}/key/ranking.csv and {tmp_path}/key/ranking_runs.csv" in printed.out


S, N = 23, 37


def test_an_evaluation_is_stored_with_both_standard_errors_and_every_image(run, capfd, monkeypatch):
    backend.start()
    from evaluation import importance

    monkeypatch.setattr(importance, "CHUNK_BYTES", 300_000)  # several chunks, the last one with fewer samples
    words = ["--num_samples", S, "--max_images", N, "--split", "val", "--proposal", "posterior"]
    assert called(evaluate.main, run, *words) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith(f"val split, is, num_samples {S}, proposal posterior; in ")
    names = ["num_images", "estimator", "log_px", "log_px_se", "log_px_se_images", "bits_per_dim", "elbo", "rate"]
    names += ["distortion", "ess_median", "samples_mean", "doubtful", "seconds"]
    assert lines[1] == f"run: {ID}" and [line.split()[0] for line in lines[2 : lines.index("")]] == names

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
    assert images["index"].tolist() == data.subset(300, N).tolist() and metrics["selection"] == "random"
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


@pytest.mark.slow
def test_a_second_evaluation_is_the_latest_and_the_first_is_kept(run, capfd):
    words = [run, "--proposal", "posterior", "--num_samples"]
    assert called(evaluate.main, *words, 3, "--max_images", 5) == 0
    first = read(run / "metrics.json")
    assert called(evaluate.main, *words, 4, "--max_images", 400, "--split", "val") == 0
    assert read(run / "metrics.json")["num_images"] == 300  # as many as there are
    endings = [f"{name}.{ending}" for name in ("test_is_S3_N5", "val_is_S4_N300") for ending in ("json", "npz")]
    assert files_below(run / "evaluations") == endings
    assert read(run / "evaluations" / "test_is_S3_N5.json") == first
    assert called(evaluate.main, *words, 3, "--max_images", 5, "--seed", 1) == 0
    again = read(run / "metrics.json")
    assert again["log_px"] != first["log_px"] and again["seed"] == 1 and len(files_below(run / "evaluations")) == 6
    assert "Traceback" not in capfd.readouterr().err


@pytest.fixture(scope="module")
def plane(tmp_path_factory):
    """A run with two latent dimensions whose posteriors are no Gaussians and no priors: it is trained for a while."""
    place = tmp_path_factory.mktemp("plane")
    settings = {"network": "mlp", "model": "hvae", "prior": "vamp", "latent_dim": 2, "epochs": 20, "lr": 2e-3}
    words = as_flags(settings)
    words += ["--data_set", "digits", "--num_pseudo_inputs", 20, "--batch_size", 100, "--runs_dir", place]
    assert called(train.main, *words) == 0
    return next(place.iterdir())


@pytest.mark.slow
def test_all_estimators_agree_on_a_trained_model_and_its_elbo_is_below(plane, capfd):
    """Two latent dimensions: the integral, both ways of importance sampling, and annealing, image by image."""
    ask = {
        "quadrature": "--estimator quadrature",
        "isfitted_S2000": "--num_samples 2000",
        "is_S2000": "--num_samples 2000 --proposal posterior",
        "aisfitted_S25_T40_L3_B20": "--estimator ais --num_samples 25 --num_steps 40 --leapfrogs 3 --bracket 20",
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
    annealed = read(plane / "evaluations" / "test_aisfitted_S25_T40_L3_B20_N20.json")
    assert 0.3 < annealed["acceptance"] < 0.95 and annealed["bracket"]["num_images"] == 20
    assert annealed["bracket"]["gap"] == pytest.approx(annealed["bracket"]["upper"] - annealed["bracket"]["lower"])
    assert "of all steps were accepted" in capfd.readouterr().out


@pytest.mark.slow
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
        worst = file["index"][np.nanargmax(file["khat"])]
    said = capfd.readouterr().err
    assert f"{doubtful} of 100 estimates are unreliable (Pareto k-hat above 0.7, up to " in said
    assert f"for image {worst}, or too few effective samples); try --proposal fitted" in said


def test_a_score_has_the_errors_of_its_estimator_and_bits_where_pixels_have_values():
    values = {"log_px": [-3.0, -5.0], "log_px_se": [0.3, 0.4], "elbo": [-4.0, -6.0], "rate": [1.0, 2.0]}
    values |= {"distortion": [3.0, 4.0], "ess": [20.0, 30.0], "khat": [0.1, 0.2], "samples": [50.0, 70.0]}
    estimate = SimpleNamespace(**{name: np.array(value) for name, value in values.items()})
    drawn, summed = score.summary(estimate, 8, True), score.summary(estimate, math.nan, False)
    assert drawn["log_px_se"] == pytest.approx(math.hypot(0.3, 0.4) / 2)  # of independent draws
    assert summed["log_px_se"] == pytest.approx(0.35)  # of a sum that errs in one direction
    assert drawn["bits_per_dim"] == pytest.approx(4 / 8 / math.log(2)) and summed["bits_per_dim"] is None
    assert drawn["log_px_se_images"] == pytest.approx(1.0) and drawn["rate"] == 1.5 and drawn["samples_mean"] == 60


def test_classes_go_with_the_images_that_are_scored(plane, monkeypatch):
    run, given = experiment.load(plane), []

    def estimated(run, images, scoring, split, names, labels):
        given.append(labels)
        raise UserError("seen")

    monkeypatch.setattr(score, "estimated", estimated)
    with pytest.raises(UserError, match="seen"):
        score.evaluate(run, max_images=20)
    expected = run.dataset.split("test").labels[run.index("test", 20)]
    assert given[0].tolist() == expected.tolist() != run.dataset.split("test").labels[:20].tolist()


@pytest.mark.parametrize(
    ("split", "has_val", "others"), [("test", True, "val"), ("val", True, "train"), ("test", False, "train")]
)
def test_annealing_is_tuned_on_images_that_are_not_scored(monkeypatch, split, has_val, others):
    class Tuned(Exception):
        pass

    class Sampling:
        def __init__(self, *_, **__):
            pass

        def tune(self, images):
            raise Tuned(images)

    monkeypatch.setattr("evaluation.ais.AnnealedSampling", Sampling)
    settings = {"num_samples": 5, "num_steps": 4, "leapfrogs": 3, "start": "prior", "bracket": None}
    run = SimpleNamespace(model=None, has_val=has_val, images=lambda name: name)
    with pytest.raises(Tuned, match=f"^{others}$"):
        estimators.by_annealing(run, "images", estimators.Scoring("ais", settings, 0, None), split, tqdm(disable=True))


@pytest.mark.parametrize(
    ("khat", "said"),
    [
        ([0.3, 0.9, 0.2], "Pareto k-hat above 0.67, up to 0.90 for image b, or too few effective samples"),
        ([0.3, 0.5, 0.2], "too few effective samples"),
        ([math.nan] * 3, "too few effective samples"),
    ],
)
def test_only_a_high_khat_is_called_one(khat, said):
    estimate = SimpleNamespace(khat=np.array(khat), samples=np.full(3, 1000.0))
    one = score.Scored("a", None, None, {"doubtful": 2}, None, estimate, list("abc"), "draw more")
    assert tables.unreliable(one) == f"2 of 3 estimates are unreliable ({said}); draw more"


def test_a_comparison_is_of_log_px_and_of_the_elbo():
    def scored(log_px, elbo):
        estimate = SimpleNamespace(log_px=np.array(log_px), elbo=np.array(elbo))
        return SimpleNamespace(name="a", metrics={"images_sha256": "0", "log_px_se": 0.3}, estimate=estimate)

    found = score.compared(scored([-1.0, -2.0, -3.0], [-2.0, -2.0, -2.0]), scored([-2.0, -2.0, -2.0], [-9.0] * 3))
    expected = {"difference": 0, "se": 1 / math.sqrt(3), "better": 1 / 3, "elbo_difference": 7, "elbo_se": 0}
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["estimators_se"] == pytest.approx(0.3 * math.sqrt(2))
    resampled = scored([-1.0, -2.0], [-2.0, -2.0])
    resampled.metrics["log_z_se"] = 0.4
    assert score.compared(resampled, scored([0.0, 0.0], [0.0, 0.0]))["estimators_se"] == pytest.approx(math.sqrt(0.34))
    unknown = scored([-1.0], [math.nan])
    assert [score.compared(unknown, unknown)[name] for name in ("se", "elbo_difference", "elbo_se")] == [None] * 3


@pytest.mark.parametrize(
    ("names", "pattern", "rests"),
    [
        (["a_b"], "a_b", ["a_b"]),
        (["mnist_vae_lr1_seed1", "mnist_hvae_lr1_seed1"], "mnist_*_lr1_seed1", ["vae", "hvae"]),
        (["a_b", "a_b_c", "a_b_d"], "a_*", ["b", "b_c", "b_d"]),
        (["a_b", "b_b"], "*_b", ["a", "b"]),
        (["a_a", "a_a_a"], "a_*", ["a", "a_a"]),
        (["one", "other"], "*", ["one", "other"]),
        (["same_run", "same_run"], "*", ["g0/same_run", "g1/same_run"]),  # in folders of their own
    ],
)
def test_what_names_of_runs_share_is_said_once(names, pattern, rests):
    file = Path("evaluations", "test.json")
    found = [score.Scored(name, *[None] * 3, Path(f"g{at}", name, file), *[None] * 3) for at, name in enumerate(names)]
    said, short = tables.shortened(found)
    assert (said, [one.name for one in short]) == (pattern, rests)


def test_rows_are_a_table_and_a_single_one_is_a_list():
    one, two, three = ({"run": name, "log_px": -7.0, "rates": None, "note": "grey"} for name in "abc")
    assert tables.as_text([one]).splitlines() == ["log_px  -7.00"]
    assert tables.as_text([one, two]).splitlines() == ["run  log_px  rates", "a     -7.00", "b     -7.00"]
    head, *_ = tables.as_text([one, two, three | {"note": ""}]).splitlines()
    assert head.split() == ["run", "log_px", "rates", "note"]


def test_a_resampled_prior_says_what_it_accepts_and_how_well_that_is_known():
    def scored(log_z):
        entry, config = SimpleNamespace(notes=lambda metrics: []), Config(prior="lars")
        metrics = {"log_z": log_z, "log_z_se": 0.0123}
        return SimpleNamespace(metrics=metrics, config=config, scoring=SimpleNamespace(entry=entry))

    (note,) = tables.notes(scored(-1.5))
    assert note.startswith("log Z of the prior is -1.5000 with a standard error of 0.012, which log p(x) of all images")
    assert tables.rejecting(scored(-1.5)) == ""
    said = "the prior accepts a share of 4.5e-05 of its proposals, and takes the last of 100 in any case: most of its "
    assert tables.rejecting(scored(-10.0)) == said + "samples are those of N(0, I); train with more --num_proposals"


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


def test_runs_of_other_images_are_refused_before_they_are_scored():
    """A folder that was moved has another name, and a data set with other files the same one."""

    def run_on(name, sha256):
        record = {"data_sha256": {"train": sha256}}
        return SimpleNamespace(path=name, config=Config(data_set=name), record=record, image_shape=(28, 28, 1))

    first, other = run_on("mnist", "a"), run_on("fashionmnist", "b")
    assert "same images" in evaluate._difference(SimpleNamespace(runs=[first, other], on=None))
    for runs, on in ([first, other], "omniglot"), ([first, run_on("mnist", "b")], None):
        assert evaluate._difference(SimpleNamespace(runs=runs, on=on)) is None
    assert evaluate._difference(SimpleNamespace(runs=[first, run_on("fashionmnist", "a")], on=None)) is None


def test_one_temperature_and_one_simulated_image_are_stored_too(run, capfd):
    words = ["--estimator", "ais", "--num_steps", 1, "--bracket", 1, "--max_images", 2]
    assert called(evaluate.main, run, *words) == 0
    metrics = read(run / "metrics.json")
    assert metrics["acceptance"] is None and metrics["bracket"]["gap_se"] is None
    assert "accepted" not in capfd.readouterr().out


def test_fewer_than_ten_effective_samples_are_doubtful(run, capfd):
    assert called(evaluate.main, run, "--num_samples", 12, "--proposal", "posterior", "--max_images", 300) == 0
    metrics = read(run / "metrics.json")
    with np.load(run / "evaluations" / "test_is_S12_N300.npz") as file:
        assert np.isnan(file["khat"]).all() and metrics["doubtful"] == (file["ess"] < 10).sum() > 0


def test_an_estimate_is_doubtful_by_its_k_hat_or_for_too_few_samples_that_count():
    """A k-hat that is high for 64 samples is none for 5000, and three effective samples are too few whatever it is."""
    nan = math.nan
    cases = [(0.5, 30, 64, True), (0.4, 30, 64, False), (0.6, 3.4, 5000, True), (0.69, 90, 5000, False)]
    cases += [
        (0.71, 90, 5000, True),
        (nan, 2, 16, True),
        (nan, 9, 16, True),
        (nan, 10, 16, False),
        (nan, 1, 1, True),
        (nan, nan, 9, False),
    ]
    khat, ess, samples, expected = map(np.array, zip(*cases, strict=True))
    found = score.doubtful(SimpleNamespace(khat=khat, ess=ess, samples=samples))
    np.testing.assert_array_equal(found, expected)


def unloaded(config, latent_dim):
    """What a Scoring needs of a run."""
    return SimpleNamespace(path="a run", config=config, precision=config.precision, latent_dim=latent_dim)


def test_the_number_of_samples_is_that_of_the_proposal_or_estimator():
    cases = [
        {},
        {"proposal": "posterior"},
        {"target_se": 0.1},
        {"num_samples": 7},
        {"target_se": 0.1, "max_samples": 9},
    ]
    run = unloaded(Config(), 40)
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
    assert estimators.Scoring.of(run, "ais", bracket=3, seed=2).tag == "aisfitted_S16_T100_L5_B3_seed2"
    assert estimators.Scoring.of(run, "ais", start="posterior").tag == "ais_S16_T100_L5"
    assert estimators.Scoring.of(run, num_starts=0).tag == "isfitted_S1000_M0"
    assert estimators.Scoring.of(unloaded(Config(), 2), "quadrature").tag == "quadrature"
    for kind in ({"model": "dvp"}, {"latent_dim": 257}):
        config = Config(**kind)
        wide = unloaded(config, config.latent_dim)
        usual = "is_S1000" if config.is_deep else "is_S5000"
        assert estimators.Scoring.of(wide).tag == usual


@pytest.mark.parametrize(
    ("settings", "latents", "given", "expected"),
    [
        ({}, 2, {}, "quadrature"),
        ({"model": "hvae"}, 2, {}, "quadrature"),
        ({"model": "markov"}, 2, {}, "quadrature"),
        ({}, 2, {"num_samples": 10}, "is"),
        ({}, 2, {"proposal": None}, "quadrature"),
        ({}, 3, {}, "is"),
        ({"model": "ladder"}, 2, {}, "is"),
        ({"network": "pixel", "model": "hvae"}, 2, {}, "is"),
        ({"likelihood": "logistic"}, 2, {}, "is"),
        ({"precision": "mixed_bfloat16"}, 2, {}, "is"),
    ],
)
def test_the_usual_estimator_is_the_first_that_applies(settings, latents, given, expected):
    run = unloaded(Config(**settings), latents)
    found = estimators.Scoring.of(run, **given)
    assert found.estimator == expected
    assert found.fallback == (estimators.Scoring.of(run, "is") if expected == "quadrature" else None)


def test_a_run_that_a_grid_does_not_resolve_is_scored_by_importance_sampling(plane, capfd, monkeypatch):
    backend.start()
    from evaluation import quadrature

    monkeypatch.setattr(quadrature, "MOST_POINTS", 4500)
    assert called(evaluate.main, plane, "--max_images", 5) == 0
    found = read(plane / "metrics.json")
    assert found["estimator"] == "is" and found["tag"] == "isfitted_S1000" and found["num_samples"] == 1000
    assert "not resolved by 4,500 points; scored with --estimator is instead" in capfd.readouterr().err
    refused(capfd, evaluate.main, [plane, "--max_images", 5, "--estimator", "quadrature"], "try --estimator is")


@pytest.mark.slow
def test_more_modes_are_looked_for_on_a_few_images(plane, capfd, monkeypatch):
    """What they find is stored and printed; a fit that lost most of p(x) is noticed."""
    assert called(evaluate.main, plane, "--max_images", 100, "--num_samples", 500) == 0
    found = read(plane / "metrics.json")["checked"]
    assert found["images"] == 10 and found["missed"] == 0 and abs(found["gain"]) < 0.3
    assert "with 16 more starts, log p(x) of 10 images rises by" in capfd.readouterr().out
    from evaluation import importance

    real = importance.importance_sampling

    def losing(model, images, *args, **options):
        estimate = real(model, images, *args, **options)
        return estimate._replace(log_px=estimate.log_px - (len(images) == 100))

    monkeypatch.setattr(importance, "importance_sampling", losing)
    assert called(evaluate.main, plane, "--max_images", 100, "--num_samples", 500) == 0
    assert "; 10 have a mode that was missed: raise --num_starts" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--estimator quadrature --target_se 1", "--target_se 1.0 goes with --estimator auto or is"),
        ("--estimator quadrature --num_samples 3", "--num_samples 3 goes with --estimator auto or is or ais"),
        ("--estimator ais --proposal fitted", "--proposal fitted goes with --estimator auto or is"),
        ("--num_starts 4 --proposal posterior", "--num_starts 4 goes with --proposal fitted"),
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
        (
            "quadrature",
            {"model": "ladder"},
            2,
            "--estimator quadrature is for vae, hvae, markov, and a run is a lad",
        ),
        (
            "quadrature",
            {"network": "pixel", "model": "hvae"},
            2,
            "--estimator quadrature would pass the pixel network of a run over",
        ),
        ("ais", {"model": "ladder"}, 9, "--start fitted is for vae, hvae, markov with 256 latent dimensions at most"),
        ("ais", {"model": "dvp"}, 9, "--estimator ais needs the density of the prior, of which a run has"),
        (
            "fitted",
            {"model": "ladder"},
            9,
            "--proposal fitted is for vae, hvae, markov with 256 latent dim",
        ),
        ("fitted", {}, 257, "--proposal fitted is for .*, and a run is a vae with 257; try --proposal posterior"),
    ],
)
def test_what_an_estimator_cannot_score_is_refused(words, settings, latents, expected):
    run = unloaded(Config(**settings), latents)
    asked = {"proposal": words} if words == "fitted" else {"estimator": words}
    asked |= {"start": "fitted"} if "--start" in expected else {}
    with pytest.raises(UserError, match=expected):
        estimators.Scoring.of(run, **asked)


def test_a_remedy_is_one_that_the_run_can_take():
    small, wide = (unloaded(Config(), size) for size in (40, 257))
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
    save_weights(model, run / "best.safetensors")
    for main in (evaluate.main, plot.main):
        refused(capfd, main, [run], "/kernel is not finite, so log p(x) of image 0, or of any other, is not either")


@pytest.mark.parametrize("estimator", ["is", pytest.param("ais", marks=pytest.mark.slow)])
def test_weights_that_are_too_large_name_the_image(run, capfd, estimator):
    """The decoder's weights, for which this is found when images are scored."""
    model = experiment.load(run).model
    model.decoder.weights[-1].assign(np.full(model.decoder.weights[-1].shape, 3e38))
    save_weights(model, run / "best.safetensors")
    words = [run, "--estimator", estimator, "--max_images", 3]
    first = data.subset(300, 3)[0]
    refused(capfd, evaluate.main, words, f"log p(x) of test image {first} is not finite; the weights are not usable")


@pytest.mark.slow
def test_a_run_of_half_precision_is_scored_as_trained_or_in_float32(run, capfd):
    words = ["--num_samples", 20, "--max_images", 5]
    assert called(evaluate.main, run, *words) == 0
    whole, text = read(run / "metrics.json"), capfd.readouterr().out
    assert whole["precision"] == "float32" and "precision" not in text
    record = read(run / "config.json")
    (run / "config.json").write_text(
        json.dumps(record | {"config": record["config"] | {"precision": "mixed_bfloat16"}})
    )
    found = {}
    for precision, more in (("mixed_bfloat16", ()), ("float32", ("--precision", "float32"))):
        assert called(evaluate.main, run, *words, *more) == 0
        found[precision] = read(run / "metrics.json")
        assert found[precision]["precision"] == precision
        assert f"precision         {precision}" in capfd.readouterr().out
    assert found["float32"]["log_px"] == whole["log_px"] and found["float32"]["tag"] == "isfitted_S20_float32"
    assert 0 < abs(found["mixed_bfloat16"]["log_px"] - whole["log_px"]) < 1


def test_a_grid_is_the_usual_estimator_in_float32_only(plane, tmp_path, capfd, monkeypatch):
    """Rounded p(x|z) is no smooth function of z, so that a grid may not resolve it, however fine it is."""
    run = experiment.load(shutil.copytree(plane, tmp_path / plane.name))
    record = read(run.path / "config.json")
    half = {"config": record["config"] | {"precision": "mixed_bfloat16"}}
    (run.path / "config.json").write_text(json.dumps(record | half))
    half, whole = experiment.load(run.path), experiment.load(run.path).in_precision("float32")
    assert (score.Scoring.of(half).tag, score.Scoring.of(whole).tag) == ("isfitted_S1000", "quadrature_float32")
    words = [run.path, "--max_images", 3]
    assert called(evaluate.main, *words, "--precision", "float32") == 0
    assert (run.path / "evaluations" / "test_quadrature_float32_N3.json").exists()
    monkeypatch.setattr("evaluation.quadrature.MOST_POINTS", 2000)
    words += ["--estimator", "quadrature"]
    capfd.readouterr()
    refused(capfd, evaluate.main, words, "; try --precision float32, or --estimator is")
    refused(capfd, evaluate.main, [*words, "--precision", "float32"], "; try --estimator is")


def test_samples_that_are_no_numbers_are_refused():
    run = SimpleNamespace(path="run", model=SimpleNamespace(sample=lambda n, noise: np.full((n, 8, 8, 1), np.nan)))
    with pytest.raises(UserError, match="run: images drawn from the model are not finite"):
        next(score.draws(run, 3, 0, None))


def test_samples_of_black_and_white_images_are_black_and_white():
    means = np.linspace(0, 1, 5, dtype="float32")
    model = SimpleNamespace(sample=lambda n, noise: np.tile(means, (n, 40, 1))[..., None])
    run, bar = SimpleNamespace(path="run", model=model), SimpleNamespace(update=id)
    ((images, _),) = score.draws(run, 500, 0, bar, is_binary=True)
    assert images.dtype == np.float32 and set(np.unique(images)) == {0, 1}
    assert images.mean(axis=(0, 1, 3)) == pytest.approx(means, abs=0.02)  # five standard errors


@pytest.mark.parametrize(
    "shades, likelihood, pixels", [(2, "bernoulli", "drawn"), (2, "gaussian", "means"), (9, "bernoulli", "means")]
)
def test_samples_are_like_the_images_that_they_are_compared_with(shades, likelihood, pixels):
    images = np.random.default_rng(0).integers(0, shades, (40, 4, 1, 1)) / np.float32(shades - 1)
    split = SimpleNamespace(images=images, grey=lambda chosen=slice(None): images[chosen])
    run = SimpleNamespace(path=Path("run"), config=SimpleNamespace(observation=likelihood), check_data=id, has_val=True)
    run.dataset = SimpleNamespace(split=lambda name: split)
    run.model = SimpleNamespace(sample=lambda n, noise: np.full((n, 4, 1, 1), 0.5, "float32"))
    network = SimpleNamespace(of=lambda x: x.reshape(len(x), -1), record={}, path=Path("x.keras"), sha256="")
    found = score.distances(run, network, "test", 40, 0)
    assert found["pixels"] == pixels and (found["fid"] < 0.2) is (pixels == "drawn")


def test_samples_of_a_deep_model_are_drawn_at_a_temperature():
    model = SimpleNamespace(warmer=lambda n, temperature, noise: np.full((n, 2), temperature))
    model.decode = lambda z, noise: np.tile(z[:, :1, None, None], (1, 8, 8, 1))
    ((images, seconds),) = score.draws(SimpleNamespace(path="run", model=model), 3, 0, SimpleNamespace(update=id), 0.6)
    assert images.shape == (3, 8, 8, 1) and np.all(images == 0.6) and seconds >= 0


def test_a_temperature_is_for_samples_of_deep_models(run, capfd):
    refused(capfd, evaluate.main, [run, "--temperature", 0.6], "--temperature 0.6 goes with --features")
    words = [run, "--temperature", 0.6, "--features", "any.keras"]
    refused(capfd, evaluate.main, words, "--temperature 0.6 goes with ladder and dvp only")


@slow_on_jax
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
    assert [line.split()[:3] for line in lines[2:]] == [["samples", "530", "300"], ["real", "images", "530"]]

    name = f"test_isfitted_S3_seed4_F{network.sha256[:8]}_G{count}_N5"
    assert files_below(run / "evaluations") == [f"{name}.json", f"{name}.npz"]
    found = read(run / "evaluations" / f"{name}.json")["distances"]
    assert found == read(run / "metrics.json")["distances"]
    test_accuracy = read(file.with_suffix(".json"))["test_accuracy"]
    about = {
        "data_set": "digits",
        "layer": "features",
        "test_accuracy": test_accuracy,
        "file": "digits.keras",
        "note": "",
    }
    assert found["network"] == about | {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()}

    noise = loaded.model.test_noise.__class__(4)
    drawn = np.concatenate([network.of(np.asarray(loaded.model.sample(n, noise))) for n in (500, 30)])
    images = network.of(loaded.dataset.split("test").grey())  # all of them, whatever --max_images says, and grey
    expected = {"num_images": count, "num_held_out": 300, "kid_subsets": 10, "kid_subset_size": 30}
    expected |= {"fid": distances.frechet(drawn, images), "kid": distances.kernel(drawn, images, 4)["kid"]}
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-3)
    assert found["pixels"] == "means" and found["temperature"] == 1 and 0 < found["seconds_per_image"] < 10
    assert found["real"]["num_images"] == count and found["real"]["fid"] < 0.5 * found["fid"]
    assert abs(found["real"]["kid"]) < 5 * found["real"]["kid_se"] and found["kid"] > 5 * found["kid_se"]


@pytest.mark.slow
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
    run = unloaded(Config(), 40)
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


def test_scores_of_grey_pixels_say_what_they_are(tmp_path, capfd):
    words = flags(runs_dir=tmp_path, binarize="none", gs_key="key", **QUICK)
    assert called(train.main, *words) == 0
    (path,) = tmp_path.glob("key/*")
    assert path.name.endswith("_binarizenone") and read(path / "status.json")["note"] == GREY
    assert called(evaluate.main, path, "--num_samples", 3, "--max_images", 5) == 0
    assert f"\nnote: {GREY}\n" in capfd.readouterr().out
    assert read(path / "metrics.json")["note"] == GREY
    images = experiment.load(path).images("test")
    assert 0.2 < images.mean() < 0.5 and len(np.unique(images)) == 17


@pytest.mark.slow
def test_both_backends_give_the_same_log_px_for_the_same_weights(trained, tmp_path, script):
    """This process evaluates on its own backend, and another one on the other."""
    words, metrics, per_image = ["--num_samples", 1000, "--max_images", 50, "--backend"], {}, {}
    for name in BACKENDS:
        path = shutil.copytree(trained[1], tmp_path / name)
        if name == os.environ["KERAS_BACKEND"]:
            assert called(evaluate.main, path, *words, name) == 0
        else:
            done = script("evaluate.py", path, *words, name)
            assert (done.returncode, complaints(done.stderr)) == (0, [])
        metrics[name] = read(path / "metrics.json")
        per_image[name] = np.load(path / "evaluations" / "test_isfitted_S1000_N50.npz")["log_px"]
    ours, theirs = metrics.values()
    error = math.hypot(ours["log_px_se"], theirs["log_px_se"])
    assert (ours["backend"], theirs["backend"]) == BACKENDS
    assert 0 < error < 0.01 < ours["log_px_se_images"]
    assert abs(ours["log_px"] - theirs["log_px"]) < 4 * error
    assert np.corrcoef(*per_image.values())[0, 1] > 0.95
    assert not np.array_equal(*per_image.values())  # else one backend was compared with itself


def other_omniglot(folder, seed):
    """Writes a tiny chardata.mat of noise."""
    images = np.random.default_rng(seed).random((784, 60))
    (folder / "omniglot").mkdir(parents=True)
    scipy.io.savemat(folder / "omniglot" / "chardata.mat", {"data": images[:, :48], "testdata": images[:, 48:]})
    return folder


def test_scores_on_other_data_say_so_everywhere(tmp_path, capfd, monkeypatch):
    settings = {"data_set": "omniglot", "epochs": 1, "batch_size": 12, "runs_dir": tmp_path / "runs", "gs_key": "key"}
    words = [*flags(data_dir=other_omniglot(tmp_path / "data", seed=0), **settings), "--binarize", "none"]
    assert called(train.main, *words) == 2
    assert "is not the published file" in (said := capfd.readouterr().err) and "trained with --other_data on" in said
    assert not (tmp_path / "runs").exists()
    assert called(train.main, *words, "--other_data", "on") == 0
    assert capfd.readouterr().err.count("warning: ") == 1
    (path,) = (tmp_path / "runs" / "key").iterdir()
    record = read(path / "config.json")
    assert (record["config"]["other_data"], record["data_note"]) == ("on", OTHER_DATA)
    assert read(path / "status.json")["note"] == experiment.load(path).note == f"{GREY}; {OTHER_DATA}"
    assert called(evaluate.main, path, "--num_samples", 3) == 0  # without the flag
    assert f"\nnote: {GREY}; {OTHER_DATA}\n" in capfd.readouterr().out
    assert read(path / "metrics.json")["note"] == f"{GREY}; {OTHER_DATA}"
    assert comparisons.drawn_of(View(experiment.load(path), "pca")).note == f"{GREY}; {OTHER_DATA}"
    other_omniglot(tmp_path / "other", seed=1)
    expected = "was trained on another chardata.mat, of sha256 "
    assert called(evaluate.main, path, "--num_samples", 3, "--data_dir", tmp_path / "other") == 2
    assert expected in capfd.readouterr().err


@pytest.mark.slow
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
    assert called(plot.main, path, "--figures", "input", "samples") == 0
    assert files_below(path / "figures") == [f"{label}_input.png", f"{path.name}_samples.png"]
    Image.fromarray(images[0]).save(tmp_path / "here" / "cats" / "more.png")  # the split is now another one
    capfd.readouterr()
    refused(capfd, evaluate.main, [path], f"was trained on another {label}, of sha256 ")
    refused(capfd, train.main, ["--resume", path, "--epochs", 2], f"was trained on another {label}, of sha256 ")


@pytest.mark.slow
def test_natural_images_of_ones_own_are_scored_by_their_colours(tmp_path, capfd):
    for number, image in enumerate(np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)):
        place = tmp_path / "cats" / ("train" if number < 30 else "test") / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(0 * image if number > 30 else image).save(place / f"{number}.png")
    (tmp_path / "cats" / "one.gif").touch()
    words = ["--data_set", f"folder:{tmp_path}/cats", "--network", "mlp", "--hidden_units", 8, "--epochs", 1]
    words += ["--batch_size", 9, "--track", "none", "--runs_dir", tmp_path / "runs"]
    assert called(train.main, *words) == 0
    line = "folder:cats: 40 images 8x8 with 3 channels (27 train, 3 val, 10 test); val is a tenth of train, as no "
    line += "image is in such a folder; 2 classes; left out: 1 .gif"
    assert f"data: {line}; not binarized, mixlogistic likelihood\n" in capfd.readouterr().err
    (path,) = (tmp_path / "runs").iterdir()
    assert path.name.endswith("_epochs1_units8")
    config = read(path / "config.json")["config"]
    assert (config["likelihood"], config["auto_likelihood"]) == ("auto", "mixlogistic")
    assert called(train.main, *words) == 0 and "finished already" in capfd.readouterr().out
    assert called(evaluate.main, path, "--num_samples", 3) == 0  # although the test images are blank, but for one
    assert capfd.readouterr().err.startswith(f"{line}\n")
    metrics = read(path / "metrics.json")
    assert (metrics["num_images"], metrics["note"]) == (10, "")
    view = View(experiment.load(path), "pca")
    assert view.class_names == ("a", "b") and len(view.rows) == 2
    assert called(train.main, *words, "--binarize", "dynamic", "--max_train_images", 18) == 0
    assert f"data: {line}; trained on 18 images; binarized anew in each step" in capfd.readouterr().err
    (binarized,) = (tmp_path / "runs").glob("*_binarizedynamic_n18")
    assert experiment.load(binarized).note == BINARIZED_NOTE


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


@pytest.mark.slow
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
    assert called(plot.main, path, "--figures", "input", "reconmanifold", "embedding_z") == 0
    view = View(experiment.load(path), "pca")
    assert view.rows == () and set(view.examples.ravel()) == set(data.subset(200, 100))
    axes = latents.draw_embedding_z(view).axes[0]
    assert len(np.unique(axes.collections[0].get_facecolors(), axis=0)) == 1
    assert axes.get_legend().get_texts()[0].get_text() == "test images"


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
    content = (run / "best.safetensors").read_bytes()
    (run / "best.safetensors").write_bytes(content[:1000])
    refused(capfd, evaluate.main, [run], f"{run}/best.safetensors does not fit {run}/config.json: ")
    (run / "best.safetensors").unlink()
    refused(capfd, evaluate.main, [run], f"{run} has no weights yet (it is finished)")
    (run / "best.safetensors").write_bytes(content)
    record = read(run / "config.json")
    record["config"]["network_size"] = 0.5
    atomic.write_json(run / "config.json", record)
    refused(capfd, evaluate.main, [run], f"{run}/best.safetensors does not fit {run}/config.json: ")
    assert not (run / "evaluations").exists()
