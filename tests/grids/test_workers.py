"""Grids at scale: workers that are killed, stopped or lose their parent, searches that go on, and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import optuna
import psutil
import pytest
from conftest import ROOT, SMALL, flags, other

import experiment
import train
from experiment import Config
from experiment.flags import Range, words_of
from experiment.presets import preset, preset_names
from grids import leaderboard, search
from grids.configs import configs_of
from grids.view import GridView
from grids.workers import Workers, log_of, note_of, was_killed
from runtime.command import Parser
from runtime.errors import UserError
from runtime.memory import gpus, memory

WORKER = f"""
import os, signal, sys, time
sys.path[:0] = {[str(ROOT), str(ROOT / "tests")]}
from pathlib import Path
import conftest, train
from grids import workers

def fit(config, args, run=None):
    tries = Path(config.runs_dir, f"tries{{config.lr}}")
    tries.write_text(tries.read_text() + "+" if tries.exists() else "+")
    Path(config.runs_dir, f"overwrites{{config.lr}}").open("a").write(str(int(args.overwrite)))
    print("lr", config.lr, os.environ["VAMPVAE_MEMORY"], os.environ["OMP_NUM_THREADS"], len(os.sched_getaffinity(0)))
    if config.lr == 2.0 and tries.read_text() == "+" or config.lr == 3.0:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(30 if config.lr == 5.0 else 0)
    return conftest.without_training({{1.0: -7.0, 2.0: -5.0, 4.0: RuntimeError("no luck")}})(config, args)

train.fit = fit
sys.exit(workers.serve(train.main))
"""


@pytest.fixture
def workers(tmp_path, monkeypatch):
    """Workers that train nothing: lr 1 is well, 2 is killed once, 3 always, 4 fails, 5 takes half a minute."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    monkeypatch.setattr("grids.workers.TRAIN", script)


def words(tmp_path, *lrs):
    return [*flags(runs_dir=tmp_path, gs_key="key"), "--lr", *map(str, lrs)]


def tries(tmp_path, lr):
    """How often a run was begun."""
    path = tmp_path / f"tries{float(lr)}"
    return len(path.read_text()) if path.exists() else 0


def wait_for(true, seconds=60):
    """Waits until `true()` is."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


# ---------------------------------------------------------------------------------------------- workers


def test_a_config_becomes_the_flags_that_make_it():
    parser = Parser()
    train.add_arguments(parser)
    changed = [
        Config(**(SMALL | {name: other(name)})) for name in ("lr", "seed", "patience", "jit", "runs_dir", "gs_key")
    ]
    presets = [Config(**preset(name).settings) for name in preset_names()]
    for config in [Config(), Config(**SMALL), *changed, *presets]:
        assert configs_of(parser.parse_args(words_of(config))) == [config]


def test_a_run_whose_worker_dies_is_begun_again_and_one_that_always_dies_costs_the_others_nothing(
    tmp_path, workers, capfd
):
    assert train.main([*words(tmp_path, 1, 2, 3, 4), "--jobs", "2"]) == 1
    out = capfd.readouterr().out
    table = {line.split()[0].rsplit("_lr")[1]: line for line in out.splitlines()[-4:]}
    assert [(name, line.split()[1]) for name, line in table.items()] == [
        *(("2.0", "finished"), ("1.0", "finished")),
        *(("3.0", "none"), ("4.0", "none")),
    ]
    assert "killed by SIGKILL, as for want of memory" in table["3.0"] and "RuntimeError: no luck" in table["4.0"]
    assert [tries(tmp_path, lr) for lr in (1, 2, 3, 4)] == [1, 2, 2, 1]
    assert out.count(": started") == 4 and "[4/4 ended]" in out
    logs = {path.stem.rsplit("_lr")[1]: path.read_text() for path in (tmp_path / "key" / "logs").iterdir()}
    cores = len(os.sched_getaffinity(0))
    share = max(1, cores // 2) if cores % 2 == 0 else None
    for lr in ("1.0", "4.0"):
        _, said, gib, threads, affinity = logs[lr].split()[:5]
        assert (said, int(gib)) == (lr, memory() // 2) and threads == affinity
        assert share in (None, int(threads))
    assert len(logs["2.0"].split("lr ")) == 3  # both tries, one after the other

    assert train.main([*words(tmp_path, 1, 2), "--jobs", "2"]) == 0  # nothing is done again
    assert [tries(tmp_path, lr) for lr in (1, 2)] == [1, 2] and capfd.readouterr().out.count("already trained") == 2


def test_what_is_begun_again_does_not_overwrite_what_it_did_before(tmp_path, workers, capfd):
    assert train.main([*words(tmp_path, 1, 2), "--jobs", "2", "--overwrite"]) == 0
    assert [(tmp_path / f"overwrites{lr}").read_text() for lr in ("1.0", "2.0")] == ["1", "10"]
    assert train.main([*words(tmp_path, 1, 2), "--cluster", "auto", "--overwrite"]) == 2
    assert "--overwrite does not go with --cluster" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_its_grid(tmp_path, workers, number):
    """Ctrl-C and its like are passed on; a grid that is killed leaves workers whose input ends."""
    code = "import sys, train; from grids import workers; "
    code += f"workers.TRAIN = {str(tmp_path / 'worker.py')!r}; sys.exit(train.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *words(tmp_path, 5, 1), "--jobs", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: tries(tmp_path, 5) and (tmp_path / "key").exists())
    children = psutil.Process(process.pid).children()
    assert len(children) == 2
    process.send_signal(number)
    out = process.communicate(timeout=60)[0]
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    if number != signal.SIGKILL:
        assert process.returncode == 130 and "stopped; the same command goes on" in out


@pytest.mark.keras
def test_workers_train_what_one_process_trains(tmp_path, capfd):
    settings = {"epochs": 2, "network": "mlp", "batch_size": 256}
    settings = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    grids = {}
    for key, jobs in (("one", 1), ("two", 2)):
        given = flags(runs_dir=tmp_path, gs_key=key)
        del given[given.index("--network_size") : given.index("--network_size") + 2]
        assert train.main([*given, *settings, "--seed", "0", "1", "--jobs", str(jobs)]) == 0
        grids[key] = [experiment.load(path.parent).history for path in sorted(tmp_path.glob(f"{key}/*/config.json"))]
    for one, two in zip(*grids.values(), strict=True):
        for name in set(one) - {"seconds"}:
            np.testing.assert_allclose(one[name], two[name], rtol=1e-4)
    logs = {path.stem: path.read_text() for path in (tmp_path / "two" / "logs").iterdir()}
    assert len(logs) == 2 and all(said.splitlines()[-1].endswith(name) for name, said in logs.items())


# ---------------------------------------------------------------------------------------------- searches


def study(tmp_path, monkeypatch, trials, value=lambda config: -((np.log10(config.lr) + 3) ** 2), **lists):
    """A Search whose runs are never trained, and the dict of Config to state that says how they are.

    Those that are finished have the validation ELBO `value(config)`, or have failed where that is None.
    """
    lists = {"lr": [Range(1e-6, 1.0)], "gs_key": ["key"], "runs_dir": [str(tmp_path)], "data_set": ["digits"]} | lists

    def status_of(config):
        state, found = states.get(config), value(config)
        if state is None:
            return {}
        return {"state": "failed"} if found is None else {"state": state, "best_val_elbo": float(found)}

    states = {}
    monkeypatch.setattr(leaderboard, "status_of", status_of)
    return search.Search(lists, trials), states


def worked_off(found, states):
    """The Configs of a search, each trained before the next is asked for."""
    configs = []
    for config in found:
        states[config] = "finished"
        found.ended(config, "")
        configs.append(config)
    return configs


def test_a_search_finds_the_best_by_logarithms(tmp_path, monkeypatch):
    found, states = study(tmp_path, monkeypatch, 40)
    exponents = np.log10([config.lr for config in worked_off(found, states)])
    assert len(exponents) >= 35 and exponents.min() >= -6 and exponents.max() <= 0
    assert np.mean(exponents[:10] < -3) == pytest.approx(0.5, abs=0.35)  # else nearly none of them were
    best = float(found.best.removeprefix("--lr "))
    assert abs(np.log10(best) + 3) < 0.2 and np.abs(exponents[20:] + 3).mean() < np.abs(exponents[:10] + 3).mean()
    assert all(float(f"{config.lr:.3g}") == config.lr for config in found.configs)


def test_a_killed_search_goes_on_with_what_it_was_training(tmp_path, monkeypatch):
    found, states = study(tmp_path, monkeypatch, 6)
    first, second, third = (next(found) for _ in range(3))
    states |= {second: "finished", third: "stopped"}
    found.ended(second, "")
    found.ended(third, "stopped; the same command goes on")
    again, states = study(tmp_path, monkeypatch, 6)
    assert again.notes == {second: "already trained"} and again.done == 1
    configs = worked_off(again, states)
    assert configs[:2] == [first, third] and len(configs) == 5
    assert {trial.state.name for trial in again.study.trials} == {"COMPLETE"} and len(again.study.trials) == 6
    assert worked_off(*study(tmp_path, monkeypatch, 6)) == []
    assert len(worked_off(*study(tmp_path, monkeypatch, 8))) == 2


def test_what_was_stopped_before_it_had_a_folder_and_what_failed_are_tried_again(tmp_path, monkeypatch):
    luck = []
    found, states = study(tmp_path, monkeypatch, 3, lambda config: -1 if luck else None)
    stopped, failed, third = (next(found) for _ in range(3))
    found.ended(stopped, "stopped; the same command goes on")
    states[failed] = states[third] = "failed"
    found.ended(failed, "no luck")
    luck.append(True)
    states[third] = "finished"
    found.ended(third, "")
    again, states = study(tmp_path, monkeypatch, 3, lambda config: -1)
    assert worked_off(again, states) == [stopped, failed]
    assert {trial.state.name for trial in again.study.trials} == {"COMPLETE"} and len(again.study.trials) == 3


def test_a_search_that_cannot_be_written_is_a_sentence(tmp_path, monkeypatch):
    found, _ = study(tmp_path, monkeypatch, 3)

    def full(*_, **__):
        raise optuna.exceptions.StorageInternalError("An exception") from OSError("database or disk is full")

    monkeypatch.setattr(found.study, "ask", full)
    with pytest.raises(UserError, match="cannot be written: database or disk is full; the same command goes on"):
        next(found)


def test_a_search_over_what_changes_no_number_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--save_minutes takes one value in a search: it changes no number"):
        study(tmp_path, monkeypatch, 2, save_minutes=[Range(1.0, 2.0)])


def test_a_search_of_which_nothing_could_be_a_run_says_so(tmp_path, capfd):
    given = ["--model", "hvae", "--latent_dim", "1", "--lr", "1..4", "--gs_key", "key", "--runs_dir", str(tmp_path)]
    given += ["--data_set", "digits", "--search", "optuna", "--trials", "2"]
    for _ in range(2):
        assert train.main(given) == 1
        assert "none of the 2 trials of this search could be a run" in capfd.readouterr().err


def test_what_fails_counts_and_what_cannot_be_is_left_out(tmp_path, monkeypatch, capfd):
    lists = {"latent_dim": [Range(1, 3)], "model": ["vae", "hvae"], "lr": [1e-3], "seed": [3]}
    found, states = study(tmp_path, monkeypatch, 30, lambda config: None if config.latent_dim == 3 else -1, **lists)
    worked_off(found, states)
    trials = [trial.state.name for trial in found.study.trials]
    assert len(trials) == 30 and set(trials) == {"COMPLETE", "FAIL", "RUNNING"}
    assert {t.params["latent_dim"] for t in found.study.trials if t.state.name == "RUNNING"} == {3}  # to be tried again
    assert 3 not in {t.params["latent_dim"] for t in found.study.trials if t.state.name == "COMPLETE"}
    assert "is too small: hvae needs at least 2" in capfd.readouterr().out
    assert {config.latent_dim for config in found.configs} <= {1, 2, 3} and len(found.configs) <= 5
    assert found.best in ("--latent_dim 1 --model vae", "--latent_dim 2 --model vae", "--latent_dim 2 --model hvae")


def test_a_search_through_workers(tmp_path, workers, capfd):
    given = [*words(tmp_path, 1), "2", "4", "--search", "optuna", "--trials", "5", "--jobs", "2"]
    assert train.main(given) == 0
    out = capfd.readouterr().out
    assert "best: --lr " in out and out.count(": started") == len({*(lr for lr in (1, 2, 4) if tries(tmp_path, lr))})
    stored = optuna.load_study(study_name="key", storage=f"sqlite:///{tmp_path / 'key' / 'optuna.db'}")
    assert len(stored.trials) == 5
    assert train.main([*given, "--lr", "1..2"]) == 2
    assert "is a search over other settings" in capfd.readouterr().err


@pytest.mark.parametrize(
    "given, sentence",
    [
        (["--lr", "1e-5..1e-2"], "--lr 1e-05..0.01 is a range, which needs --search optuna"),
        (["--search", "optuna"], "--search optuna needs a range to search, as --lr 1e-5..1e-2, or several values"),
        (["--search", "optuna", "--lr", "0..1"], "--lr 0.0 must be more than 0"),
        (["--search", "optuna", "--lr", "1..2", "3"], "--lr takes a range or single values, not both"),
        (["--search", "optuna", "--binarize", "none", "threshold"], "--binarize takes one value in a search"),
        (["--search", "optuna", "--latent_dim", "2..5000"], "--latent_dim 5000 must be at least 1 and at most 4096"),
    ],
)
def test_ranges_that_cannot_be_searched_are_refused(tmp_path, capfd, given, sentence):
    assert train.main([*flags(runs_dir=tmp_path, gs_key="key", data_set="mnist"), *given]) == 2
    assert sentence in capfd.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["3..1", "1..", "1..2..3", "a..b", "..", "1.5..2"])
def test_texts_that_are_no_range_are_refused(capfd, text):
    with pytest.raises(SystemExit):
        train.main(["--latent_dim", text])
    assert "argument --latent_dim" in capfd.readouterr().err


def test_many_runs_need_a_name_and_what_is_missing_is_said(tmp_path, capfd, monkeypatch):
    for given, name in ((["--jobs", "2"], "jobs"), (["--cluster", "auto"], "cluster")):
        assert train.main(given) == 2
        assert capfd.readouterr().err == f"error: --{name} is for a grid, which needs a name: add --gs_key NAME\n"
    assert train.main(["--search", "optuna"]) == 2
    assert capfd.readouterr().err == "error: --search needs a name: add --gs_key NAME\n"
    for name, owner in train.OWNERS.items():
        assert train.main([f"--{name}", "3"]) == 2
        assert capfd.readouterr().err == f"error: --{name} goes with --{owner}\n"
    place = flags(runs_dir=tmp_path, gs_key="key")
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert train.main([*place, "--cluster", "auto"]) == train.main([*place, "--search", "optuna", "--lr", "1..2"]) == 2
    assert capfd.readouterr().err.count("pip install -r requirements/extras.txt") == 2


def test_a_search_in_what_is_no_database_is_refused(tmp_path, capfd):
    (tmp_path / "key").mkdir()
    (tmp_path / "key" / "optuna.db").write_text("no database " * 100)
    assert train.main([*flags(runs_dir=tmp_path, gs_key="key"), "--search", "optuna", "--lr", "1..2"]) == 2
    assert "optuna.db cannot be used" in capfd.readouterr().err


def test_gpus_are_shared_out(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    shares = [Workers(3).environment(slot) for slot in range(3)]
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares] == ["3", "5", "3"]
    assert {share["XLA_PYTHON_CLIENT_MEM_FRACTION"] for share in shares} == {"0.450"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert gpus() == [] and "CUDA_VISIBLE_DEVICES" not in Workers(3).environment(0)


def test_a_live_table_says_what_is_running(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    config = Config(runs_dir=str(tmp_path), gs_key="key", epochs=7)
    config.path.mkdir(parents=True)
    with GridView({config: "lr 0.1"}.get, 3) as view:
        view.started(config)
        shown = view.shown()
        assert shown.title == "1 running, 0 ended, of 3"
        assert [next(iter(column.cells)) for column in shown.columns][:2] == ["lr 0.1", "0 of 7"]
        view.ended(config, "no luck")
        assert view.shown().row_count == 0
    assert "none, val_elbo -inf after 0 s; no luck" in json.dumps(capfd.readouterr().out)


def test_wanted_texts_of_ends():
    config = Config(gs_key="key")
    assert {note_of(config, code) for code in (130, -signal.SIGTERM)} == {"stopped; the same command goes on"}
    assert was_killed(-9) and not any(map(was_killed, (0, 1, 130, -signal.SIGTERM, -signal.SIGINT)))
    with pytest.raises(UserError, match="cannot write to /proc/key/logs"):
        log_of(Config(runs_dir="/proc", gs_key="key"))
