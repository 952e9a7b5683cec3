"""The ranking of a grid, of made-up runs: by validation ELBO alone, seeds in one row."""

import csv
import dataclasses
import itertools

import numpy as np
import pytest

import experiment
from experiment import Config
from experiment.config import GREY_NOTE
from experiment.record import FORMAT
from grids import leaderboard
from runtime import atomic
from runtime.errors import UserError

FILES = {"mnist": "abc"}


def made(folder, val_elbo, state="finished", note="", files=FILES, name=None, **settings):
    """A Run on disk without weights, whose training ended so."""
    config = Config(**settings)
    path = folder / (name or config.training_id)
    path.mkdir()
    record = {"format": FORMAT, "config": dataclasses.asdict(config), "backend": "tensorflow"}
    atomic.write_json(path / "config.json", record | {"versions": {}, "data_sha256": files})
    best = {} if val_elbo is None else {"best_val_elbo": val_elbo, "best_epoch": 4}
    atomic.write_json(path / "status.json", {"state": state, "note": note} | best)
    return experiment.load(path)


def score(value, **more):
    """The metrics of an evaluation."""
    scores = {"log_px": value, "elbo": value - 1, "bits_per_dim": -value / 7, "log_px_se": 0.25}
    return scores | {"split": "test", "tag": "is_S3", "num_images": 5, "note": ""} | more


def scores_of(runs, values):
    """Scores by the names of runs."""
    return {run.name: score(value) for run, value in zip(runs, values, strict=True)}


def column(rows, name):
    return [row[name] for row in rows]


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_seeds_are_one_row_with_mean_and_sample_deviation(tmp_path):
    seeds = {(lr, seed): -100 + 10 * lr + seed**2 for lr in (1.0, 2.0) for seed in (0, 1, 3)}
    runs = [made(tmp_path, value, lr=lr, seed=seed) for (lr, seed), value in seeds.items()]
    log_px = [-3.0, -5.0, -8.0, -20.0, -21.0, -25.0]
    rows, lines = leaderboard.ranking(runs[::-1], scores_of(runs, log_px))
    assert [[row[name] for name in ("rank", "lr", "seeds", "finished", "scored")] for row in rows] == [
        [1, "2.0", 3, 3, 3],
        [2, "1.0", 3, 3, 3],
    ]
    for row, values, tested in zip(rows, ([-80, -79, -71], [-90, -89, -81]), (log_px[3:], log_px[:3]), strict=True):
        assert row["val_elbo"] == pytest.approx(np.mean(values), rel=1e-12)
        assert row["val_elbo_sd"] == pytest.approx(np.std(values, ddof=1), rel=1e-12)
        assert row["log_px"] == pytest.approx(np.mean(tested), rel=1e-12)
        assert row["log_px_sd"] == pytest.approx(np.std(tested, ddof=1), rel=1e-12)
        assert row["bits_per_dim_sd"] == pytest.approx(np.std(tested, ddof=1) / 7, rel=1e-12)
    assert rows[0]["runs"].split("; ") == [run.name for run in runs[3:]]
    assert column(lines, "run") == [run.name for run in (*runs[3:], *runs[:3])]
    assert column(lines, "seed") == [0, 1, 3] * 2 and column(lines, "rank") == [1] * 3 + [2] * 3
    assert column(lines, "log_px") == [*log_px[3:], *log_px[:3]] and column(lines, "log_px_se") == [0.25] * 6


def test_no_score_of_the_test_split_has_a_say_in_the_order(tmp_path):
    runs = [made(tmp_path, value, lr=lr) for lr, value in enumerate([-3.0, -1.0, -2.0, -2.0], 1)]
    orders = set()
    for values in itertools.permutations([-5.0, -6.0, -7.0, -8.0]):
        rows, lines = leaderboard.ranking(runs, scores_of(runs, values))
        orders.add((*column(rows, "lr"), *column(lines, "run")))
    assert len(orders) == 1 and column(rows, "lr") == ["2.0", "3.0", "4.0", "1.0"]
    without = scores_of(runs[2:], [-5.0, -6.0])  # nor has whether there is one
    rows, _ = leaderboard.ranking(runs, without)
    assert column(rows, "lr") == ["2.0", "3.0", "4.0", "1.0"] and column(rows, "rank") == [1, 2, 3, 4]
    assert column(rows, "log_px") == [None, -5.0, -6.0, None]


def test_seeds_that_are_not_finished_or_not_scored_are_said_and_not_averaged(tmp_path):
    ended = {0: ("finished", -10.0), 1: ("finished", -12.0), 2: ("failed", -1.0), 3: ("stopped", -2.0)}
    runs = [made(tmp_path, value, state, seed=seed, lr=1.0) for seed, (state, value) in ended.items()]
    runs.append(made(tmp_path, -11.5, lr=2.0))
    runs.append(made(tmp_path, None, "failed", lr=3.0))
    scores = scores_of([runs[0], *runs[2:5]], [-5.0, -1.0, -1.0, -6.0])
    rows, lines = leaderboard.ranking(runs, scores)
    assert column(rows, "rank") == [1, 2, None] and column(rows, "lr") == ["1.0", "2.0", "3.0"]
    assert column(rows, "val_elbo") == [-11.0, -11.5, None]
    assert column(rows, "val_elbo_sd") == [pytest.approx(2**0.5), None, None]
    assert column(rows, "log_px") == [-5.0, -6.0, None] and column(rows, "log_px_sd") == [None] * 3
    assert column(leaderboard.shown(rows), "seeds") == ["2 of 4 finished, 1 scored", 1, "0 of 1 finished"]
    assert column(lines, "state") == ["finished", "finished", "failed", "stopped", "finished", "failed"]
    assert column(lines, "val_elbo")[2:] == [-1.0, -2.0, -11.5, None]
    assert column(lines, "log_px") == [-5.0, None, -1.0, -1.0, -6.0, None]
    assert leaderboard.counted({"seeds": 3, "finished": 3, "scored": 2}) == "2 of 3 scored"


def test_what_cannot_be_compared_is_ranked_apart(tmp_path):
    runs = [made(tmp_path, -lr, lr=lr) for lr in (1.0, 2.0)]
    runs += [made(tmp_path, -lr / 10, lr=lr, data_set="digits", files={}) for lr in (1.0, 2.0)]
    runs += [made(tmp_path, -lr / 100, lr=lr, binarize="none", note="grey") for lr in (1.0, 2.0)]
    rows, _ = leaderboard.ranking(runs, scores_of(runs, range(6)))
    blocks = [("digits", "dynamic"), ("mnist", "dynamic"), ("mnist", "none")]
    assert [(row["data_set"], row["binarize"]) for row in rows] == [block for block in blocks for _ in range(2)]
    assert column(rows, "rank") == [1, 2] * 3 and column(rows, "lr") == ["1.0", "2.0"] * 3


def test_the_table_of_a_grid_ranks_apart_what_cannot_be_compared_and_has_the_notes(tmp_path):
    """Also of runs that have not been started, and of folders that hold another run."""
    made_of = [{"lr": lr, "binarize": binarize} for lr in (1.0, 2.0) for binarize in ("threshold", "none")]
    configs = [Config(runs_dir=str(tmp_path), **one) for one in made_of]
    for config in configs:
        made(tmp_path, -30 / config.lr, note=config.note, lr=config.lr, binarize=config.binarize)
    table, all_finished = leaderboard.standings(configs, dict.fromkeys(configs, "") | {configs[0]: "already trained"})
    rows = [line.split(maxsplit=4) for line in table.splitlines()[1:]]
    assert [row[0].split("_lr")[1] for row in rows] == [
        *("2.0_binarizenone", "1.0_binarizenone", "2.0_binarizethreshold", "1.0_binarizethreshold")
    ]
    assert [row[4:] for row in rows] == [[GREY_NOTE]] * 2 + [[], ["already trained"]] and all_finished

    sigmas = [Config(runs_dir=str(tmp_path), likelihood="gaussian", sigma=sigma) for sigma in ("learned", 0.5)]
    table, _ = leaderboard.standings(sigmas, {})  # a word and a number
    assert [line.split()[1] for line in table.splitlines()[1:]] == ["none", "none"]

    absent = Config(runs_dir=str(tmp_path), lr=3.0)
    made(tmp_path, -1.0, name=Config(lr=4.0).training_id, lr=5.0)
    odd = Config(runs_dir=str(tmp_path), lr=4.0)
    table, all_finished = leaderboard.standings([configs[1], absent, odd], {})
    assert not all_finished and [line.split()[1] for line in table.splitlines()[1:]] == ["none", "none", "finished"]
    assert table.count("not started") == 3


def test_runs_on_other_files_of_the_same_data_set_are_no_seeds_of_one_another(tmp_path):
    runs = [made(tmp_path, -1.0, seed=0), made(tmp_path, -2.0, seed=1, files={"mnist": "def"})]
    rows, _ = leaderboard.ranking(runs, scores_of(runs, [-3.0, -4.0]))
    assert column(rows, "rank") == [1, 1] and column(rows, "seeds") == [1, 1]


def test_a_copy_of_a_run_is_no_seed(tmp_path):
    runs = [made(tmp_path, -1.0, seed=seed) for seed in (0, 1)] + [made(tmp_path, -1.0, name="a copy")]
    rows, _ = leaderboard.ranking(runs, scores_of(runs, [-3.0] * 3))
    assert column(rows, "seeds") == [2, 1] and rows[1]["runs"] == "a copy"


def test_only_settings_that_vary_where_they_mean_something_have_a_column(tmp_path):
    settings = [
        {"prior": "standard"},
        {"prior": "vamp", "num_pseudo_inputs": 5},
        {"prior": "vamp", "num_pseudo_inputs": 7},
        {"prior": "vamp", "num_pseudo_inputs": 7, "max_train_images": 9},
        {"prior": "vamp", "num_pseudo_inputs": 7, "lr": 1.23456e-7},
    ]
    runs = [made(tmp_path, -k, **one) for k, one in enumerate(settings)]
    runs.append(made(tmp_path, -9, model="dvp", seed=3, num_samples=1))
    rows, lines = leaderboard.ranking(runs, scores_of(runs, range(6)))
    names = ["lr", "num_pseudo_inputs", "max_train_images"]
    assert list(rows[0])[:8] == ["rank", "model", "prior", *names, "seeds", "finished"]
    assert list(lines[0])[:8] == ["rank", "run", "model", "prior", *names, "seed"]
    assert [[row[name] for name in ("model", "prior", *names)] for row in rows] == [
        ["vae", "standard", "0.0001", "", ""],
        ["vae", "vamp", "0.0001", "5", ""],
        ["vae", "vamp", "0.0001", "7", ""],
        ["vae", "vamp", "0.0001", "7", "9"],
        ["vae", "vamp", "1.23456e-07", "7", ""],
        ["dvp", "", "0.0001", "", ""],
    ]


def test_the_files_have_every_digit_and_the_table_says_what_it_is_ranked_by(tmp_path, capsys):
    values = {(lr, seed): -1 / 3 - lr / 7 - seed for lr in (1e-3, 3e-4) for seed in (0, 1)}
    runs = [made(tmp_path, value, lr=lr, seed=seed, note="grey, or so") for (lr, seed), value in values.items()]
    scores = scores_of(runs, np.linspace(-7.1, -3.3, 4).tolist())
    for one in scores.values():
        one["note"] = "grey, or so"
    scores[runs[0].name]["bits_per_dim"] = None  # of a density
    leaderboard.report(runs, scores)
    rows, lines = leaderboard.ranking(runs, scores)
    for name, content in {"ranking.csv": rows, "ranking_runs.csv": lines}.items():
        found = read(tmp_path / name)
        assert found == [{key: "" if value is None else str(value) for key, value in row.items()} for row in content]
    found = read(tmp_path / "ranking.csv")
    assert [float(row["val_elbo_sd"]) for row in found] == column(rows, "val_elbo_sd") and len(found) == 2
    assert [float(row["val_elbo"]) for row in read(tmp_path / "ranking_runs.csv")] == column(lines, "val_elbo")

    _, heading, names, first, *_, last = capsys.readouterr().out.splitlines()
    assert "ranked by validation ELBO alone (log_px, elbo, bits_per_dim are of the test split)" in heading
    sds = ["val_elbo", "val_elbo_sd", "log_px", "log_px_sd", "elbo", "elbo_sd", "bits_per_dim", "bits_per_dim_sd"]
    assert names.split() == ["rank", "lr", "seeds", *sds, "note"]
    assert first.split()[:5] == ["1", "0.0003", "2", "-0.83", "0.71"] and "mnist" not in first
    assert last == f"written to {tmp_path / 'ranking.csv'} and {tmp_path / 'ranking_runs.csv'}"


def test_a_grid_of_seeds_alone_has_no_column_of_a_setting(tmp_path):
    runs = [made(tmp_path, -1.0 - seed, seed=seed) for seed in (0, 1)]
    (row,), _ = leaderboard.ranking(runs, scores_of(runs, [-2.0, -3.0]))
    assert list(leaderboard.shown([row])[0])[:3] == ["rank", "seeds", "val_elbo"]


def test_what_is_no_run_is_passed_over_and_a_folder_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    run = made(tmp_path, -1.0)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.json").write_text("{")
    (found,) = leaderboard.runs_in([tmp_path / "damaged", run.path])
    assert found.path == run.path

    def full(path, rows):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "write_csv", full)
    with pytest.raises(UserError, match=f"cannot write the ranking to {tmp_path}: No space left on device"):
        leaderboard.report([run], scores_of([run], [-2.0]))


def test_a_value_that_was_given_is_shown_also_where_it_is_the_usual_one(tmp_path):
    runs = [made(tmp_path, -one, objective="iwae", num_samples=one) for one in (5, 50)]
    assert column(leaderboard.ranking(runs, scores_of(runs, range(2)))[0], "num_samples") == ["5", "50"]
