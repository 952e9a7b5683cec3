"""Grids: processes that are killed, stopped or lose their parent, searches that are resumed, and what is refused."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

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
from grids.launch import ALREADY, launcher, train_here
from grids.view import GridView
from grids.workers import Workers, log_of, note_of, stop, was_killed, work_off
from runtime.command import STOPPED, Parser, stoppable
from runtime.errors import UserError
from runtime.memory import gpus, memory

FAKE = Path(__file__).with_name("fake_train.py")


@pytest.fixture
def fake(monkeypatch):
    """Runs of grids are not trained: how one ends depends on its learning rate, as fake_train.py says."""
    monkeypatch.setattr("grids.workers.TRAIN", FAKE)


def words(tmp_path, *lrs):
    return [*flags(runs_dir=tmp_path, gs_key="key"), "--lr", *map(str, lrs)]


def seen(tmp_path, lr):
    """What each process of the run with this learning rate saw, a list of dicts."""
    path = tmp_path / "seen"
    found = map(json.loads, path.read_text().splitlines()) if path.exists() else []
    return [one for one in found if one["lr"] == lr]


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


def test_a_run_whose_process_dies_is_resumed_and_one_that_always_dies_costs_the_others_nothing(tmp_path, fake, capfd):
    assert train.main([*words(tmp_path, 1, 2, 3, 4), "--jobs", "2"]) == 1
    out = capfd.readouterr().out
    table = {line.split()[0].rsplit("_lr")[1]: line for line in out.splitlines()[-4:]}
    assert [(name, line.split()[1]) for name, line in table.items()] == [
        *(("2.0", "finished"), ("1.0", "finished")),
        *(("3.0", "none"), ("4.0", "none")),
    ]
    assert "killed by SIGKILL, probably for lack of memory" in table["3.0"] and "RuntimeError: no luck" in table["4.0"]
    assert [len(seen(tmp_path, lr)) for lr in (1, 2, 3, 4)] == [1, 2, 2, 1]
    assert out.count(": started") == 4 and "[4/4 ended]" in out
    cores = len(os.sched_getaffinity(0))
    for lr in (1, 4):
        (told,) = seen(tmp_path, lr)
        assert int(told["memory"]) == memory() // 2 and int(told["threads"]) == told["cores"]
        assert cores % 2 or told["cores"] == cores // 2
    logs = {path.stem.rsplit("_lr")[1]: path.read_text() for path in (tmp_path / "key" / "logs").iterdir()}
    assert logs["2.0"].count("lr 2.0") == 2  # both attempts, also the one that was killed
    assert train.main([*words(tmp_path, 1, 2), "--jobs", "2"]) == 0  # nothing is done again
    printed = capfd.readouterr()
    assert [len(seen(tmp_path, lr)) for lr in (1, 2)] == [1, 2] and printed.out.count(ALREADY) == 2
    commands = [f"{script} --gs_key key --runs_dir {tmp_path}" for script in ("evaluate.py", "plot.py")]
    assert printed.err.splitlines() == [f"next: python {commands[0]}", f"then: python {commands[1]}"]


def test_one_at_a_time_is_ranked_shown_and_a_failure_does_not_stop_it(tmp_path, fake, capfd):
    """Also where a folder that is no run is in the way."""
    given = words(tmp_path, 0.25, 0.5, 4, 1)
    parser = Parser()
    train.add_arguments(parser)
    obstacle = configs_of(parser.parse_args(given))[0].path
    obstacle.mkdir(parents=True)
    assert train.main(given) == 1
    printed = capfd.readouterr()
    table = [line.split() for line in printed.out.splitlines()[-4:]]
    assert [row[0].rsplit("_lr")[1] for row in table] == ["1.0", "0.5", "0.25", "4.0"]
    assert [row[1] for row in table] == ["finished", "finished", "none", "none"]
    assert [row[2] for row in table[:2]] == ["-7.00", "-200.00"]
    assert [" ".join(row[2:]) for row in table[2:]] == [f"exit code {n}; its output says why" for n in (2, 1)]
    assert "RuntimeError: no luck" in printed.err and f"error: {obstacle} is no run" in printed.err
    assert "lr 1.0\n" in printed.out and not (tmp_path / "key" / "logs").exists()  # the terminal has its output
    assert {(one["memory"], one["threads"], one["cores"]) for one in seen(tmp_path, 1)} == {
        (None, os.environ.get("OMP_NUM_THREADS"), len(os.sched_getaffinity(0)))
    }

    obstacle.rmdir()
    for lr in (1, 0.5):
        assert train.main([*words(tmp_path, 1, 0.5), "--overwrite"]) == 0  # --overwrite is for unfinished runs
        assert len(seen(tmp_path, lr)) == 1


def test_what_is_begun_again_does_not_overwrite_what_it_did_before(tmp_path, fake, capfd):
    assert train.main([*words(tmp_path, 1, 2), "--jobs", "2", "--overwrite"]) == 0
    assert [[one["overwrite"] for one in seen(tmp_path, lr)] for lr in (1, 2)] == [[True], [True, False]]
    assert train.main([*words(tmp_path, 1, 2), "--cluster", "auto", "--overwrite"]) == 2
    assert "--overwrite does not go with --cluster" in capfd.readouterr().err


@pytest.mark.parametrize(("number", "jobs"), [(signal.SIGINT, 1), (signal.SIGTERM, 2), (signal.SIGKILL, 2)])
def test_no_run_outlives_its_grid(tmp_path, number, jobs):
    """Ctrl-C and its like are passed on; a grid that is killed leaves processes whose input ends."""
    code = f"import sys, train; from grids import workers; workers.TRAIN = {str(FAKE)!r}; sys.exit(train.main())"
    command = [sys.executable, "-c", code, *words(tmp_path, 5, 1), "--jobs", str(jobs)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: seen(tmp_path, 5))
    children = psutil.Process(process.pid).children()
    assert 1 <= len(children) <= jobs
    process.send_signal(number)
    out = process.communicate(timeout=60)[0]
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    if number != signal.SIGKILL:
        assert process.returncode == 130 and "stopped; the same command resumes it" in out
    if jobs == 1:
        assert "not started" in out and not seen(tmp_path, 1)


def test_a_closed_terminal_lets_runs_finish_their_step(tmp_path):
    """It sends SIGHUP twice."""
    code = "import signal, sys, time\n"
    code += "signal.signal(15, lambda *_: (time.sleep(1), print('saved', flush=True), sys.exit(130)))\n"
    code += "print(flush=True); time.sleep(60)"
    busy = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    busy.stdout.readline()
    with stoppable(signal.default_int_handler):
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGHUP))
        timer.start()
        assert list(stop({"run": (0, busy)}).values()) == [130]
        timer.join()
    assert busy.stdout.read() == "saved\n"


def test_a_second_ctrl_c_ends_runs_at_once(tmp_path, monkeypatch):
    """It comes while the first one waits for the runs to stop, and those that it ends are not said to be killed."""
    asleep = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); "
                               "print(flush=True); time.sleep(60)"], stdout=subprocess.PIPE)  # fmt: skip
    asleep.stdout.readline()
    launcher = SimpleNamespace(slots=1, start=lambda *_: asleep, log=lambda config: None)
    asked = []

    def interrupted(seconds):
        asked.append(seconds)
        raise KeyboardInterrupt

    monkeypatch.setattr("grids.workers.time.sleep", interrupted)
    config, notes = Config(runs_dir=str(tmp_path), gs_key="key"), {}
    with GridView({config: "one"}.get, 1) as view:
        assert work_off(iter([config]), launcher, view, notes.__setitem__)
    assert len(asked) == 2 and asleep.poll() == -signal.SIGKILL
    assert notes == {config: "stopped; the same command resumes it"}


@pytest.mark.parametrize("stopped", [lambda: STOPPED, lambda: signal.raise_signal(signal.SIGINT)])
def test_a_grid_in_one_process_ends_with_a_run_that_is_stopped_but_not_with_one_that_fails(tmp_path, capfd, stopped):
    configs = [Config(runs_dir=str(tmp_path), gs_key="key", lr=lr) for lr in (1.0, 2.0, 3.0, 4.0)]
    asked = []

    def train_one(config):
        asked.append(config)
        if config.lr == 1.0:
            raise UserError("too little memory")
        return 1 if config.lr == 2.0 else stopped()

    assert train_here(configs, train_one) == STOPPED and asked == configs[:3]
    printed = capfd.readouterr()
    for note in ("too little memory", "exit code 1; its output says why", "stopped; the same", "not started"):
        assert printed.out.count(note) == 1
    assert "too little memory" in printed.err and f"[2/4] {configs[1].path}\n" in printed.out


@pytest.mark.slow
def test_runs_of_a_grid_are_what_one_process_trains(tmp_path):
    given = flags(runs_dir=tmp_path, epochs=2, network="mlp", batch_size=256)
    del given[given.index("--network_size") : given.index("--network_size") + 2]
    assert train.main([*given, "--gs_key", "key", "--jobs", "2"]) == 0
    assert train.main(given) == 0
    (alone,) = tmp_path.glob("digits*")
    runs = [experiment.load(path).history for path in (alone, tmp_path / "key" / alone.name)]
    for name in set(runs[0]) - {"seconds"}:
        np.testing.assert_allclose(runs[0][name], runs[1][name], rtol=1e-4)
    (log,) = (tmp_path / "key" / "logs").iterdir()
    assert log.stem == alone.name and log.read_text().splitlines()[-1].endswith(alone.name)


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


def test_values_of_a_list_are_trained_as_they_stand_and_proposed_ones_are_short(tmp_path, monkeypatch):
    """A proposed number does not leave its range."""
    lists = {"lr": [0.00031622, 0.0012345], "ema": [Range(0.99, 0.9999)]}
    found, _ = study(tmp_path, monkeypatch, 30, **lists)
    configs = list(found)
    assert {config.lr for config in configs} == set(lists["lr"])
    assert all(len(f"{config.ema:g}") <= 6 and 0.99 <= config.ema <= 0.9999 for config in configs)


def worked_off(found, states):
    """The Configs of a search, each trained before the next is asked for."""
    configs = []
    for config in found:
        states[config] = "finished"
        found.ended(config, "")
        configs.append(config)
    return configs


def test_a_search_finds_the_best_by_logarithms(tmp_path, monkeypatch):
    found, states = study(tmp_path, monkeypatch, 24)
    exponents = np.log10([config.lr for config in worked_off(found, states)])
    assert len(exponents) >= 20 and exponents.min() >= -6 and exponents.max() <= 0
    assert np.mean(exponents[:10] < -3) == pytest.approx(0.5, abs=0.35)  # else nearly none of them were
    best = float(found.best.removeprefix("--lr "))
    assert abs(np.log10(best) + 3) < 0.2 and np.abs(exponents[14:] + 3).mean() < np.abs(exponents[:10] + 3).mean()
    assert all(float(f"{config.lr:.3g}") == config.lr for config in found.configs)


def test_a_killed_search_goes_on_with_what_it_was_training(tmp_path, monkeypatch):
    found, states = study(tmp_path, monkeypatch, 6)
    first, second, third = (next(found) for _ in range(3))
    states |= {second: "finished", third: "stopped"}
    found.ended(second, "")
    found.ended(third, "stopped; the same command resumes it")
    again, states = study(tmp_path, monkeypatch, 6)
    assert again.notes == {second: "already trained"} and again.to_train == 5
    configs = worked_off(again, states)
    assert configs[:2] == [first, third] and len(configs) == 5
    assert {trial.state.name for trial in again.study.trials} == {"COMPLETE"} and len(again.study.trials) == 6
    assert worked_off(*study(tmp_path, monkeypatch, 6)) == []
    assert len(worked_off(*study(tmp_path, monkeypatch, 8))) == 2


def test_two_searches_of_one_name_may_tell_the_same_trial(tmp_path, monkeypatch):
    found, states = study(tmp_path, monkeypatch, 2)
    config = next(found)
    again, again_states = study(tmp_path, monkeypatch, 2)
    assert next(again) == config
    states[config] = again_states[config] = "finished"
    found.ended(config, "")
    again.ended(config, "")
    assert again.study.trials[0].state.name == "COMPLETE"


def test_what_was_stopped_before_it_had_a_folder_and_what_failed_are_tried_again(tmp_path, monkeypatch):
    luck = []
    found, states = study(tmp_path, monkeypatch, 3, lambda config: -1 if luck else None)
    stopped, failed, third = (next(found) for _ in range(3))
    found.ended(stopped, "stopped; the same command resumes it")
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
    with pytest.raises(UserError, match="cannot be written: database or disk is full; the same command resumes it"):
        next(found)


def test_a_search_over_what_changes_no_number_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--save_minutes takes one value in a search: it changes no number"):
        study(tmp_path, monkeypatch, 2, save_minutes=[Range(1.0, 2.0)])


def test_a_search_of_which_nothing_could_be_a_run_says_so(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(search.Search, "_check_together", lambda self: None)  # which would see it beforehand
    given = ["--model", "hvae", "--latent_dim", "1", "--lr", "1..4", "--gs_key", "key", "--runs_dir", str(tmp_path)]
    given += ["--data_set", "digits", "--search", "optuna", "--trials", "2"]
    for _ in range(2):
        assert train.main(given) == 1
        assert "none of the 2 trials of this search could be a run" in capfd.readouterr().err


def test_what_fails_counts_and_what_cannot_be_is_left_out(tmp_path, monkeypatch, capfd):
    lists = {"latent_dim": [Range(1, 3)], "model": ["vae", "hvae"], "lr": [1e-3], "seed": [3]}
    found, states = study(tmp_path, monkeypatch, 16, lambda config: None if config.latent_dim == 3 else -1, **lists)
    worked_off(found, states)
    trials = [trial.state.name for trial in found.study.trials]
    assert len(trials) == 16 and set(trials) == {"COMPLETE", "FAIL", "RUNNING"}
    assert {t.params["latent_dim"] for t in found.study.trials if t.state.name == "RUNNING"} == {3}  # to be tried again
    assert 3 not in {t.params["latent_dim"] for t in found.study.trials if t.state.name == "COMPLETE"}
    out = capfd.readouterr().out
    assert "is too small: hvae needs at least 2" in out
    assert out.count(" repeats trial ") == 16 - out.count(" is skipped: ") - len(found.configs)
    assert {config.latent_dim for config in found.configs} <= {1, 2, 3} and len(found.configs) <= 5
    assert found.best in ("--latent_dim 1 --model vae", "--latent_dim 2 --model vae", "--latent_dim 2 --model hvae")


def test_a_search_through_processes(tmp_path, fake, capfd):
    given = [*words(tmp_path, 1), "2", "4", "--search", "optuna", "--trials", "5", "--jobs", "2"]
    assert train.main(given) == 0
    out = capfd.readouterr().out
    assert "best: --lr " in out and out.count(": started") == sum(bool(seen(tmp_path, lr)) for lr in (1, 2, 4))
    stored = optuna.load_study(study_name="key", storage=f"sqlite:///{tmp_path / 'key' / 'optuna.db'}")
    assert len(stored.trials) == 5
    assert train.main([*given, "--lr", "1..2"]) == 2
    assert "is a search over other settings" in capfd.readouterr().err


@pytest.mark.parametrize("name", [b"who?", b"c#%20", b"${HOME}*[x]", b"a b'\"&;:", b"line\nend", b"\xff"])
def test_a_search_lies_in_a_folder_of_any_name(tmp_path, name):
    """Also of those that would mean something in a URL."""
    lists = {"gs_key": ["key"], "runs_dir": [f"{tmp_path}/{os.fsdecode(name)}"], "lr": [Range(1e-4, 1e-2)]}
    config = next(search.Search(lists, 1))
    assert (config.path.parent / "optuna.db").is_file() and [*os.listdir(os.fsencode(tmp_path))] == [name]
    assert next(search.Search(lists, 1)) == config


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
    for given in (["--jobs", "2"], ["--cluster", "auto"], ["--search", "optuna"]):
        assert train.main(given) == 2
        said = f"error: {' '.join(given)} is for a grid, which needs a name: add --gs_key NAME\n"
        assert capfd.readouterr().err == said
    for name, owner in {"cpus_per_run": "cluster", "gpus_per_run": "cluster", "trials": "search"}.items():
        assert train.main([f"--{name}", "3"]) == 2
        assert re.fullmatch(rf"error: --{name} 3(\.0)? goes with --{owner}\n", capfd.readouterr().err)
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


def test_a_search_in_which_nothing_can_be_a_run_writes_nothing(tmp_path, capfd):
    given = ["--lr", "1e-5..1e-2", "--prior", "flow", "--latent_dim", "1", "--trials", "3", "--search", "optuna"]
    assert train.main([*given, "--gs_key", "best", "--runs_dir", str(tmp_path)]) == 2
    assert "--prior flow" in capfd.readouterr().err and not any(tmp_path.iterdir())
    assert (
        train.main(["--lr", "1e-5..1e-2", "--search", "optuna", "--gs_key", "../x", "--runs_dir", str(tmp_path)]) == 2
    )
    assert not (tmp_path.parent / "x").exists()


def test_a_flag_beside_a_preset_takes_settings_of_the_other_objective_away():
    parser = Parser()
    train.add_arguments(parser)
    preset_of_chains = ["--preset", "mcvae_mnist_lmcvae5", "--gs_key", "key"]
    (one,) = configs_of(parser.parse_args([*preset_of_chains, "--objective", "elbo"]))
    assert one.objective == "elbo" and one.step_rule == Config.step_rule and one.network == "mcvae"
    of_chains = configs_of(parser.parse_args([*preset_of_chains, "--objective", "lmcvae", "amcvae"]))
    assert [other.step_rule for other in of_chains] == ["variance"] * 2


def test_a_search_may_have_ends_that_are_no_run(tmp_path, monkeypatch):
    """8 groups need a number of samples that they divide."""
    lists = {"objective": ["piwae"], "num_samples": [Range(10, 100)], "lr": [1e-3]}
    found, _ = study(tmp_path, monkeypatch, 40, **lists)
    assert next(found).num_samples % 8 == 0


def test_processes_of_a_grid_know_the_files_of_classes(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("x = 1\n")
    parser = Parser()
    train.add_arguments(parser)
    with launcher(parser.parse_args(["--code", str(file), "--gs_key", "key", "--seed", "0", "1"])) as starter:
        assert f"--code={file}" in starter.words


def test_an_address_of_a_cluster_is_no_empty_text(tmp_path, capfd):
    assert train.main([*words(tmp_path, 1, 2), "--cluster", ""]) == 2
    assert "--cluster has an empty address" in capfd.readouterr().err


def test_gpus_are_shared_out(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    shares = [Workers(3).environment(slot) for slot in range(3)]
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares] == ["3", "5", "3"]
    assert {share["XLA_PYTHON_CLIENT_MEM_FRACTION"] for share in shares} == {"0.450"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert gpus() == [] and "CUDA_VISIBLE_DEVICES" not in Workers(3).environment(0)
    assert Workers(1).environment(0) == {}  # the whole machine


def test_a_live_table_says_what_is_running(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    config = Config(runs_dir=str(tmp_path), gs_key="key", epochs=7)
    config.path.mkdir(parents=True)
    with GridView({config: "[lr] 0.1"}.get, 3) as view:
        view.started(config)
        shown = view.shown()
        assert shown.title == "1 running, 0 ended, of 3"
        assert [str(next(iter(column.cells))) for column in shown.columns][:2] == ["[lr] 0.1", "0 of 7"]
        view.ended(config, "no luck")
        assert view.shown().row_count == 0
    assert "none, val_elbo unknown after 0 s; no luck" in json.dumps(capfd.readouterr().out)


def test_wanted_texts_of_ends():
    config = Config(gs_key="key")
    assert {note_of(config, code) for code in (130, -signal.SIGTERM)} == {"stopped; the same command resumes it"}
    assert was_killed(-9) and not any(map(was_killed, (0, 1, 130, -signal.SIGTERM, -signal.SIGINT)))
    with pytest.raises(UserError, match="cannot write to /proc/key/logs"):
        log_of(Config(runs_dir="/proc", gs_key="key"))
