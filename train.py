"""Train a variational auto-encoder, or a grid of them: python train.py --model hvae --prior vamp --latent_dim 2"""

import argparse
import contextlib
import dataclasses
import json
import os
import shlex
import sys

import cluster
import commandline
import data
import engine
import experiment
import grid
import members
import models
import search
from commandline import STOPPED
from errors import RunError, UserError

# what may be others in a run that goes on; other settings make another run
CHANGEABLE = ("epochs", "patience", "data_dir", "save_minutes", "track", "distribute")
TRIALS = 20  # of a search
# of flags that are nothing without another, that one
OWNERS = {"cpus_per_run": "cluster", "gpus_per_run": "cluster", "trials": "search"}


def add_arguments(parser):
    """Adds the flags of train.py."""
    place = commandline.add_settings(parser)
    text = "go on with the run in this folder; with --epochs or --patience, in a folder of its own (so does the same "
    text += "command again with an unfinished run)"
    parser.add_argument("--resume", metavar="RUN", type=commandline.path, help=text)
    text = "train again although the run's folder exists (in a grid: the unfinished runs only)"
    place.add_argument("--overwrite", action="store_true", help=text)
    text = "print the presets, what they cost and what comes out, and train nothing"
    parser.add_argument("--list_presets", action="store_true", help=text)
    commandline.add_backend(place)
    several = parser.add_argument_group("where the processes of --distribute processes are", "Slurm's are found")
    text = "a free port of the first one, the same for all (default: $JAX_COORDINATOR_ADDRESS)"
    several.add_argument("--process_address", metavar="HOST:PORT", help=text)
    text = "how many there are (default: $JAX_NUM_PROCESSES)"
    several.add_argument("--num_processes", type=commandline.whole(1), metavar="N", help=text)
    text = "which one this is, the first one being 0 (default: $JAX_PROCESS_ID)"
    several.add_argument("--process_index", type=commandline.whole(0), metavar="I", help=text)
    many = parser.add_argument_group("how the runs of a grid are trained", "with --gs_key")
    text = "so many at once, each in a process of its own with its share of cores and memory (default: 1, in this one)"
    many.add_argument("--jobs", type=commandline.whole(1, 1024), metavar="N", help=text)
    text = (
        "on the Ray cluster of this address (auto: of this machine), whose nodes all have checkout, data and RUNS_DIR"
    )
    many.add_argument("--cluster", metavar="ADDRESS", help=text)
    text = "that a run asks of the cluster (default: 1)"
    many.add_argument("--cpus_per_run", type=commandline.number(0), metavar="CPUS", help=text)
    text = "that a run asks of the cluster, also a part of one (default: 0)"
    many.add_argument("--gpus_per_run", type=commandline.number(0), metavar="GPUS", help=text)
    text = "let Optuna propose the runs: flags may be ranges, as --lr 1e-5..1e-2, and the validation ELBO is maximised"
    many.add_argument("--search", choices=("optuna",), help=text)
    text = f"runs of a search in all, those of an earlier command included (default: {TRIALS})"
    many.add_argument("--trials", type=commandline.whole(1), metavar="N", help=text)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--member", metavar="FLAGS", help=argparse.SUPPRESS)


def run(args):
    """Trains what the flags ask for; returns the exit code, 0 if all of it is finished."""
    if args.list_presets:
        return list_presets()
    for name, owner in OWNERS.items():
        if getattr(args, name) is not None and not getattr(args, owner):
            raise UserError(f"--{name} goes with --{owner}")
    check_distribute(args)
    if spread_by(args) == "processes" and not args.member:
        return members.guarded({name: value for name, value in vars(args).items() if name != "run"})
    if args.member:
        join(args)
        if not members.leads():
            return follow(args)
    if args.resume is not None:
        return run_again(args)
    networks = commandline.lists_of(args).get("network", [experiment.Config.network])
    engine.settle(args.backend, args.device, dense=all(models.NETWORKS[name].is_dense for name in networks))
    if args.search:
        return run_search(args)
    configs = commandline.grid(args)
    if (args.jobs or args.cluster) and not configs[0].gs_key:
        raise UserError(f"--{'jobs' if args.jobs else 'cluster'} is for a grid, which needs a name: add --gs_key NAME")
    if args.cluster and args.overwrite:
        raise UserError("--overwrite does not go with --cluster: a run that loses its node would begin anew, not go on")
    if args.cluster or (args.jobs or 1) > 1:
        return run_at_once(configs, args)
    return run_one(configs[0], args) if len(configs) == 1 else run_grid(configs, args)


def spread_by(args):
    """What --distribute says."""
    return getattr(args, "distribute", experiment.Config.distribute)


def check_distribute(args):
    """Raises UserError where --distribute does not go with another flag, or a flag with it."""
    kind = spread_by(args)
    if kind != "none" and (many := next((name for name in ("jobs", "cluster", "search") if getattr(args, name)), None)):
        raise UserError(f"--distribute {kind} does not go with --{many}, which trains several runs at a time; "
                        "without it, the runs of a grid are trained one by one")  # fmt: skip
    given = [name for name in members.VARIABLES if getattr(args, name) is not None]
    if kind != "processes" and given:
        raise UserError(f"--{given[0]} goes with --distribute processes")


def join(args):
    """Connects this process with the others. Raises UserError where it cannot be one of them."""
    place = members.place(args)
    engine.settle(args.backend, args.device)
    if os.environ["KERAS_BACKEND"] != "jax":
        raise UserError("--distribute processes needs --backend jax: Keras' fit fails with TensorFlow's strategy for "
                        "several machines; on one machine, --distribute devices runs on both")  # fmt: skip
    deterministic = getattr(args, "deterministic", experiment.Config.deterministic) == "on"
    engine.start(args.device, deterministic, lambda: members.join(*place))


def follow(args):
    """Trains what the first process does, until that has nothing more; returns the exit code that it gives."""
    import training

    while "config" in (order := members.order()):
        config = experiment.Config.from_dict(order["config"])
        if place := getattr(args, "data_dir", None):
            config = dataclasses.replace(config, data_dir=place)
        try:
            training.follow(config)
        except KeyboardInterrupt:
            if members.is_busy():  # it was asked twice, and is not where the others are
                raise
    return order["code"]


def list_presets():
    """Prints each preset with its cost and its expected result; returns the exit code."""
    for name in commandline.preset_names():
        about, cost, expected, _ = commandline.preset(name)
        print(f"{name}\n  {about}\n  {cost}; {expected}")
    return 0


def fit(config, args, run=None):
    """Trains a new run, or the Run `run` longer, or goes on with it if `config` is its own; returns the folder.

    Keras is imported here, after the backend is settled.
    """
    engine.start(args.device, config.deterministic == "on")
    import training

    if run and run.config.training_id == config.training_id:
        return training.resume(run, config)
    return training.train(config, args.overwrite, run)


def run_again(args):
    """Goes on with the run that --resume names, or trains it longer; returns the exit code."""
    settings = commandline.given(args)
    words = ["overwrite"] * args.overwrite
    words += [name for name in ("preset", "jobs", "cluster", "search") if getattr(args, name) is not None]
    if fixed := [name for name in settings if name not in CHANGEABLE] + words:
        raise UserError(f"--{fixed[0]} cannot be given with --resume; only --{', --'.join(CHANGEABLE)} can")
    for name, value in settings.items():
        if isinstance(value, list) and len(value) > 1:
            raise UserError(f"--{name} takes one value with --resume, not {len(value)}")
    settings = {name: value[0] if isinstance(value, list) else value for name, value in settings.items()}
    if ranges := [name for name, value in settings.items() if isinstance(value, commandline.Range)]:
        raise UserError(f"--{ranges[0]} takes one value with --resume, not a range")
    before = experiment.load(os.path.abspath(args.resume))  # `.` and `..` name no run
    engine.settle(before.backend if args.backend in (None, "auto") else args.backend, args.device)
    places = {"data_dir": before.data_dir, "distribute": spread_by(args)}  # the devices are this machine's
    config = dataclasses.replace(before.config, **(places | settings))
    if config.training_id == before.config.training_id:
        return go_on(before, config, args)
    folder = before.path.resolve().parent  # which need not be the one that it was trained in
    return run_one(dataclasses.replace(config, runs_dir=str(folder), gs_key=None), args, before)


def run_one(config, args, source=None):
    """Trains one run, or goes on with it, unless it is finished; returns the exit code."""
    if exists(config) and not args.overwrite:
        run = there(config)
        return go_on(run, placed(run, config), args)
    return reported(config.path, lambda: fit(config, args, source))


def there(config):
    """The Run in the place of `config`. Raises UserError if it is another one's, by its settings."""
    run = experiment.load(config.path)
    if run.config.training_id != config.training_id:
        raise UserError(f"{run.path} holds the run {run.config.training_id}; give the folder that name again")
    return run


def placed(run, config):
    """The settings of a Run, but for where things lie, as `config` has it."""
    where = {name: getattr(config, name) for name in ("save_minutes", "track", "distribute")}
    return dataclasses.replace(run.config, data_dir=config.data_dir or run.data_dir, **where)


def go_on(run, config, args):
    """Goes on with a Run unless it is finished; returns the exit code."""
    state = run.state
    if state == "finished":
        longer = "" if run.config.is_made_for_its_epochs else "--resume it with more --epochs, or "
        print(f"{run.path} is finished already; {longer}--overwrite trains it again")
        return 0
    if state != "running":  # else it is another process', and the sentence that says so follows
        print(f"going on with {run.path}, {state} after {run.status.get('epochs_done', 0)} epochs", flush=True)
    return reported(run.path, lambda: fit(config, args, run))


def reported(path, train):
    """Calls `train`, prints the folder that it returns, or what ended it and how to go on; returns the exit code."""
    try:
        print(train())
        return 0
    except KeyboardInterrupt:
        if not path.is_dir():
            raise
        print(f"stopped; python train.py --resume {shlex.quote(str(path))} goes on, as the same command does")
        if (path / "best.safetensors").is_file():
            print("evaluate.py and plot.py take it as it is")
        return STOPPED
    except RunError as error:
        print(f"error: {error}; what was finished is kept in {path}", file=sys.stderr)
        return 1


def exists(config):
    """Whether something is where the run goes; False, too, where nobody may look: `create` says why."""
    with contextlib.suppress(OSError):
        experiment.finish_replacing(config.path)
    return os.path.exists(config.path)


def run_grid(configs, args):
    """Trains the runs of a grid that are not finished, one by one, and prints their table; returns the exit code."""
    notes, stopped = {}, False
    for number, config in enumerate(configs, 1):
        print(f"[{number}/{len(configs)}] {config.path}", flush=True)
        try:
            notes[config] = train_in_grid(config, args)
        except KeyboardInterrupt:
            notes[config], stopped = "stopped; the same command goes on", True
            break
    return concluded(configs, notes, stopped)


def concluded(configs, notes, stopped):
    """Prints the table of a grid; returns the exit code."""
    table, all_finished = grid.table(configs, notes)
    print(table)
    return STOPPED if stopped else 0 if all_finished else 1


def launcher(args):
    """What trains several runs at a time, on a cluster or here."""
    words = [f"--device={args.device}"] + ([f"--backend={args.backend}"] if args.backend else [])
    words += ["--overwrite"] * args.overwrite
    if args.cluster:
        cpus = 1 if args.cpus_per_run is None else args.cpus_per_run
        return cluster.Tasks(args.cluster, cpus, args.gpus_per_run or 0, words)
    return grid.Workers(args.jobs or 1, words)


def run_at_once(configs, args):
    """Trains the runs of a grid that are not finished, several at a time; returns the exit code."""
    finished = [config for config in configs if grid.status_of(config).get("state") == "finished"]
    notes = dict.fromkeys(finished, "already trained")
    wanted = [config for config in configs if config not in notes]
    with launcher(args) as workers, grid.View(grid.labels(configs).get, len(wanted)) as view:
        stopped = grid.work_off(iter(wanted), workers, view, notes.__setitem__)
    return concluded(configs, notes, stopped)


def run_search(args):
    """Trains the runs that Optuna proposes; returns the exit code, 0 if at least one is finished."""
    lists = commandline.lists_of(args)
    if not lists.get("gs_key"):
        raise UserError("--search needs a name: add --gs_key NAME")
    trials = args.trials or TRIALS
    study = search.Search(lists, trials)
    with launcher(args) as workers, grid.View(study.label, trials - study.done) as view:
        stopped = grid.work_off(study, workers, view, study.ended)
    if study.configs:
        print(grid.table(list(study.configs), study.notes)[0])
    elif not stopped:
        print(f"none of the {trials} trials of this search could be a run; raise --trials", file=sys.stderr)
    if study.best:
        print(f"best: {study.best}")
    return STOPPED if stopped else 0 if study.best else 1


def train_in_grid(config, args):
    """Trains one run of a grid unless it is finished; returns a word on it, and never fails for one run's sake."""
    try:
        run = there(config) if exists(config) else None
        if run and run.state == "finished":
            return "already trained"
        if run and not args.overwrite:
            fit(placed(run, config), args, run)
            return "gone on with"
        fit(config, args)
        return ""
    except Exception as error:  # whatever it was, the other runs of the grid are worth having
        expected = isinstance(error, UserError | RunError | data.DataError)
        said = str(error) if expected else f"{type(error).__name__}: {error}"
        print(f"error: {config.path}: {said}", file=sys.stderr)
        return said.splitlines()[0]


def main(argv=None):
    """The command line of train.py; returns the exit code."""
    parser = commandline.Parser(prog="train.py", description=__doc__)
    add_arguments(parser)
    args = parser.parse_args(argv)
    if args.member:
        given = argparse.Namespace(**json.loads(args.member) | {"member": True})
        return members.serve(lambda: commandline.command(run, given))
    return grid.serve(main) if args.worker else commandline.command(run, args)


if __name__ == "__main__":
    sys.exit(main())
