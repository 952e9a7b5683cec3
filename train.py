"""Train a variational auto-encoder, or a grid of them: python train.py --model hvae --prior vamp --latent_dim 2"""

import math
import os
import sys

import data
import experiment
from experiment import STOPPED, RunError, UserError


def add_arguments(parser):
    """Adds the flags of train.py."""
    place = experiment.add_settings(parser)
    text = "train again although the run's folder exists (in a grid: the unfinished runs only)"
    place.add_argument("--overwrite", action="store_true", help=text)
    experiment.add_backend(place)


def run(args):
    """Trains what the flags ask for; returns the exit code, 0 if all of it is finished."""
    configs = experiment.grid(args)
    return run_one(configs[0], args.overwrite) if len(configs) == 1 else run_grid(configs, args.overwrite)


def run_one(config, overwrite):
    """Trains one run, unless its folder is there already; returns the exit code."""
    if not overwrite and exists(config):
        state = experiment.load(config.path).state
        if state == "finished":
            print(f"{config.path} is finished already; --overwrite trains it again")
            return 0
        raise UserError(f"{config.path} exists and is {state}, not finished; --overwrite starts it again from nothing")
    try:
        print(fit(config, overwrite))
        return 0
    except KeyboardInterrupt:
        if (config.path / "best.weights.h5").is_file():
            print(f"stopped; the finished epochs are kept in {config.path}: evaluate.py and plot.py take it as it is,")
            print("and the same command with --overwrite trains it again from the start")
        else:
            print("stopped before an epoch was finished; the same command with --overwrite starts it again")
        return STOPPED
    except RunError as error:
        print(f"error: {error}; what was finished is kept in {config.path}", file=sys.stderr)
        return 1


def exists(config):
    """Whether something is where the run goes; False, too, where nobody may look: `create` says why."""
    return os.path.exists(config.path)


def run_grid(configs, overwrite):
    """Trains the runs of a grid that are not finished, one by one, and prints their table; returns the exit code."""
    notes, stopped = {}, False
    for number, config in enumerate(configs, 1):
        print(f"[{number}/{len(configs)}] {config.path}", flush=True)
        try:
            notes[config] = train_in_grid(config, overwrite)
        except KeyboardInterrupt:
            notes[config], stopped = "stopped; the same command goes on with the next run", True
            break
    rows = [row_of(config, notes.get(config, "not started")) for config in configs]
    ranked = sorted(zip(configs, rows, strict=True), key=lambda pair: rank(*pair))
    print(experiment.table([row for _, row in ranked]))
    all_finished = all(row["state"] == "finished" for row in rows)
    return STOPPED if stopped else 0 if all_finished else 1


def train_in_grid(config, overwrite):
    """Trains one run of a grid unless it is finished; returns a word on it, and never fails for one run's sake."""
    try:
        if exists(config):
            state = status_of(config).get("state")
            if state == "finished" or not overwrite:
                return "already trained" if state == "finished" else "in the way; --overwrite starts it again"
        fit(config, overwrite)
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
    """Sorts by validation ELBO, the best first, within a data set and a binarization: others cannot be compared."""
    return config.data_set, config.binarization, -row["val_elbo"]


def row_of(config, note):
    """A row of the grid's table: run, state, best validation ELBO (nats; -inf where there is none), epoch, note."""
    status = status_of(config)
    best = status.get("best_val_elbo")
    notes = (note, "" if best is None else config.note)
    return {
        "run": config.training_id,
        "state": status.get("state", "none"),
        "val_elbo": -math.inf if best is None else best,
        "best_epoch": status.get("best_epoch") or "",
        "note": "; ".join(filter(None, notes)),
    }


def fit(config, overwrite):
    """Trains one run and returns its folder. Keras is imported here, after the backend is settled."""
    experiment.start_keras()
    import training

    return training.train(config, overwrite)


def main(argv=None):
    """The command line of train.py; returns the exit code."""
    parser = experiment.Parser(prog="train.py", description=__doc__)
    add_arguments(parser)
    return experiment.command(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
