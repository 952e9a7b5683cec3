"""Train a variational auto-encoder, or a grid of them: python train.py --model hvae --prior vamp --latent_dim 2"""

import contextlib
import dataclasses
import math
import os
import sys

import commandline
import data
import engine
import experiment
from commandline import STOPPED
from errors import RunError, UserError

CHANGEABLE = ("epochs", "patience", "data_dir", "save_minutes")  # in a run that goes on; the others make another run


def add_arguments(parser):
    """Adds the flags of train.py."""
    place = commandline.add_settings(parser)
    text = "go on with the run in this folder; with --epochs or --patience, in a folder of its own (so does the same "
    parser.add_argument("--resume", metavar="RUN", help=f"{text}command again with an unfinished run)")
    text = "train again although the run's folder exists (in a grid: the unfinished runs only)"
    place.add_argument("--overwrite", action="store_true", help=text)
    text = "print the presets, what they cost and what comes out, and train nothing"
    parser.add_argument("--list_presets", action="store_true", help=text)
    commandline.add_backend(place)


def run(args):
    """Trains what the flags ask for; returns the exit code, 0 if all of it is finished."""
    if args.list_presets:
        return list_presets()
    if args.resume is not None:
        return run_again(args)
    engine.settle(args.backend, args.device)
    configs = commandline.grid(args)
    return run_one(configs[0], args) if len(configs) == 1 else run_grid(configs, args)


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
    words = ["overwrite"] * args.overwrite + ["preset"] * (args.preset is not None)
    if fixed := [name for name in settings if name not in CHANGEABLE] + words:
        raise UserError(f"--{fixed[0]} cannot be given with --resume; only --{', --'.join(CHANGEABLE)} can")
    for name, value in settings.items():
        if isinstance(value, list) and len(value) > 1:
            raise UserError(f"--{name} takes one value with --resume, not {len(value)}")
    settings = {name: value[0] if isinstance(value, list) else value for name, value in settings.items()}
    before = experiment.load(os.path.abspath(args.resume))  # `.` and `..` name no run
    engine.settle(args.backend or before.backend, args.device)
    config = dataclasses.replace(before.config, **({"data_dir": before.data_dir} | settings))
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
    where = {"data_dir": config.data_dir or run.data_dir, "save_minutes": config.save_minutes}
    return dataclasses.replace(run.config, **where)


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
        print(f"stopped; python train.py --resume {path} goes on, as the same command does")
        if (path / "best.weights.h5").is_file():
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
    rows = [row_of(config, notes.get(config, "not started")) for config in configs]
    ranked = sorted(zip(configs, rows, strict=True), key=lambda pair: rank(*pair))
    print(commandline.table([row for _, row in ranked]))
    all_finished = all(row["state"] == "finished" for row in rows)
    return STOPPED if stopped else 0 if all_finished else 1


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


def status_of(config):
    """status.json of a run; empty where it was not started, or something else is in the way."""
    try:
        return experiment.load(config.path).status
    except UserError:
        return {}


def rank(config, row):
    """Sorts by validation ELBO, the best first, among runs that can be compared: of the same law of the same pixels."""
    return config.data_set, config.law, -row["val_elbo"]


def row_of(config, note):
    """A row of the grid's table: run, state, best validation ELBO (nats; -inf where there is none), epoch, note."""
    status = status_of(config)
    best = status.get("best_val_elbo")
    notes = (note, "" if best is None else status.get("note", ""))
    return {
        "run": config.training_id,
        "state": status.get("state", "none"),
        "val_elbo": -math.inf if best is None else best,
        "best_epoch": status.get("best_epoch") or "",
        "note": "; ".join(filter(None, notes)),
    }


def main(argv=None):
    """The command line of train.py; returns the exit code."""
    parser = commandline.Parser(prog="train.py", description=__doc__)
    add_arguments(parser)
    return commandline.command(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
