"""Trains the runs of a grid or a search, each in a process of its own, and prints their table."""

import contextlib
import functools
import os
import sys

from experiment import Config, own
from experiment.differences import label, labels
from experiment.flags import next_commands
from grids import cluster, leaderboard, search, workers
from grids.leaderboard import ALREADY
from grids.view import GridView
from runtime.command import STOPPED
from runtime.errors import DataError, UserError

TRIALS = 20  # of a search


def launcher(args):
    """A context with what starts the runs: Ray tasks on a cluster, or Workers here."""
    on_nodes = args.cluster is not None
    name = args.backend if on_nodes and args.backend == "auto" else os.environ["KERAS_BACKEND"]  # nodes choose theirs
    words = [f"--device={args.device}", f"--backend={name}"] + ["--overwrite"] * args.overwrite
    words += ["--plot"] * args.plot
    words += [f"--code={os.path.abspath(os.path.expanduser(file))}" for file in args.code or ()]
    if on_nodes:
        cpus = 1 if args.cpus_per_run is None else args.cpus_per_run
        return cluster.Tasks(args.cluster, cpus, args.gpus_per_run or 0, words)
    return contextlib.nullcontext(workers.Workers(args.jobs or 1, words))


def train_grid(configs, args):
    """Trains the unfinished runs of a grid, each in a process of its own; returns the exit code."""
    notes = {config: ALREADY for config in configs if leaderboard.is_finished(config)}
    wanted = [config for config in configs if config not in notes]
    names = {config: name or "run" for config, name in zip(configs, labels(configs), strict=True)}
    with launcher(args) as starter, GridView(names.get, len(wanted), starter.slots > 1) as view:
        stopped = workers.work_off(iter(wanted), starter, view, notes.__setitem__)
    return concluded(configs, notes, stopped)


def train_here(configs, train):
    """Trains the unfinished runs of a grid one by one in this process, by `train(config)`; returns the exit code.

    For `--distribute processes`, where several processes have to train the same run at the same time.
    """
    notes = {config: ALREADY for config in configs if leaderboard.is_finished(config)}
    for count, config in enumerate(configs, 1):
        if config in notes:
            continue
        print(f"[{count}/{len(configs)}] {config.path}", flush=True)
        try:
            notes[config] = workers.note_of(config, train(config))
        except KeyboardInterrupt:
            notes[config] = workers.STOPPED_NOTE
        except Exception as error:  # whatever it is, it must not cost the other runs
            said = str(error) if isinstance(error, UserError | DataError) else f"{type(error).__name__}: {error}"
            print(f"error: {config.path}: {said}", file=sys.stderr)
            notes[config] = said.splitlines()[0]
        if notes[config] == workers.STOPPED_NOTE:
            break
    return concluded(configs, notes, stopped=workers.STOPPED_NOTE in notes.values())


def train_search(lists, args):
    """Trains the runs that Optuna proposes; returns the exit code, 0 if at least one is finished."""
    trials = args.trials or TRIALS
    study = search.Search(lists, trials)
    left, named = study.to_train, functools.partial(label, names=study.free)
    with launcher(args) as starter, GridView(named, left, starter.slots > 1) as view:
        stopped = workers.work_off(study, starter, view, study.ended)
    if study.configs:
        print(leaderboard.standings(list(study.configs), study.notes)[0])
    elif not stopped:
        print(f"none of the {trials} trials of this search could be a run; raise --trials", file=sys.stderr)
    if study.best:
        print(f"best: {study.best}")
        print_next(study.configs)
    return STOPPED if stopped else 0 if study.best else 1


def concluded(configs, notes, stopped):
    """Prints the table of a grid; returns the exit code."""
    standings, all_finished = leaderboard.standings(configs, notes)
    print(standings)
    if all_finished:
        print_next(configs)
    return STOPPED if stopped else 0 if all_finished else 1


def print_next(configs):
    """Prints to stderr the commands that score and draw the runs of a grid."""
    one = next(iter(configs))
    words = [] if one.runs_dir == Config.runs_dir else ["--runs_dir", one.runs_dir]
    print(*next_commands("--gs_key", one.gs_key, *words, *own.words_for(*configs)), sep="\n", file=sys.stderr)
