"""Whether a run is new, is resumed or is finished already; what is printed about it, and the exit code."""

import contextlib
import dataclasses
import os
import sys

import experiment
from experiment import own, sources
from experiment.flags import given_settings, pasted
from experiment.folder import finish_replacing
from experiment.record import read_status
from plotting import run_figures
from plotting.output import Output
from runtime import backend
from runtime.command import STOPPED
from runtime.errors import RunError, UserError
from training import messages

HERE = ("save_minutes", "snapshot_epochs", "track", "track_weights", "distribute")  # settings of a command


def fit(config, args, run=None):
    """Trains a new run, or the Run `run` further, or resumes it if `config` is its own; returns the folder.

    Keras is imported here, after the backend has been chosen.
    """
    backend.start(args.device, config.deterministic == "on")
    from training.fit import resume, train

    if run and run.config.training_id == config.training_id:
        return resume(run, config)
    return train(config, args.overwrite, run)


def _settings(args):
    """The settings on the command line, of which each has one value."""
    return {name: value[0] if isinstance(value, list) else value for name, value in given_settings(args).items()}


def refit(args):
    """Fits a prior to the run that --refit_prior names, in a run of its own; returns the exit code."""
    prior, path = own.name_of("prior", args.refit_prior[0]), args.refit_prior[1]
    source = sources.finished(path)
    config = sources.refitted(source, prior, _settings(args))
    backend.settle(source.backend if args.backend in (None, "auto") else args.backend, args.device)
    return run_one(config, args, source)


def run_again(args):
    """Resumes the run that --resume names, or trains it further in a folder of its own; returns the exit code."""
    settings = _settings(args)
    before = experiment.load(os.path.abspath(args.resume))  # `.` and `..` name no run
    backend.settle(before.backend if args.backend in (None, "auto") else args.backend, args.device)
    here = {"data_dir": before.data_dir, "distribute": experiment.Config.distribute}  # devices differ by machine
    config = dataclasses.replace(before.config, **(here | settings))
    if config.training_id == before.config.training_id:
        return resume_or_skip(before, config, args)
    folder = before.path.resolve().parent  # the run may have been moved since it was trained
    return run_one(dataclasses.replace(config, runs_dir=str(folder), gs_key=None), args, before)


def run_one(config, args, source=None):
    """Trains a run, from the state of the Run `source` if there is one; resumes or skips one that exists.

    Returns the exit code. Raises UserError if the run's folder holds another run.
    """
    run, config = existing(config, args)
    if run is None:
        return run_and_report(config, config.path, lambda: fit(config, args, source), args)
    return resume_or_skip(run, config, args)


def existing(config, args):
    """The Run that is in the folder of a Config, None for a new one, and the Config with which it goes on here.

    Raises UserError if the folder holds another run.
    """
    with contextlib.suppress(OSError):  # if nobody may look there, `experiment.create` says why
        finish_replacing(config.path)
    is_done = args.worker and read_status(config.path / "status.json").get("state") == "finished"  # by another grid
    if not os.path.exists(config.path) or (args.overwrite and not is_done):
        return None, config
    run = experiment.load(config.path)
    if run.config.training_id != config.training_id:
        raise UserError(f"{run.path} holds the run {run.config.training_id}; give the folder that name again")
    if run.state != "finished":
        _warn_of_fixed(run, config, args)
    here = {name: getattr(config, name) for name in HERE}
    here["data_dir"] = config.data_dir or run.data_dir
    return run, dataclasses.replace(run.config, **here)


def _warn_of_fixed(run, config, args):
    """Says which flags have no effect on a Run that has begun with other settings of the machine."""
    unnamed = {field.name for field in dataclasses.fields(config) if field.metadata["tag"] is None}
    for name in unnamed.intersection(given_settings(args)).difference(HERE, ("data_dir", "runs_dir", "gs_key")):
        before, now = getattr(run.config, name), getattr(config, name)
        if before != now:
            said = f"{run.path} has begun with --{name} {before}, which stays; --overwrite starts it anew"
            print(f"warning: --{name} {now} has no effect: {said}", file=sys.stderr)


def resume_or_skip(run, config, args):
    """Resumes a Run unless it is finished; returns the exit code."""
    state = run.state
    if state == "finished":
        longer = "" if run.config.is_made_for_its_epochs else "--resume it with more --epochs, or "
        print(f"{run.path} is finished already; {longer}--overwrite trains it again")
        draw(run.path, args)
        return 0
    if state != "running":  # otherwise another process trains it, and `fit` says so
        print(f"resuming {run.path}, {state} after {run.status.get('epochs_done', 0)} epochs", flush=True)
    return run_and_report(config, run.path, lambda: fit(config, args, run), args)


def draw(path, args):
    """Draws the figures of the finished run in a folder, with --plot."""
    if args.plot:
        run_figures.draw_runs([experiment.load(path)], Output(), "pca")


def _identity(path):
    """What tells the run in a folder from one that is made in its place; None where there is none."""
    with contextlib.suppress(OSError):
        record = os.stat(path / "config.json")
        return record.st_ino, record.st_mtime_ns


def run_and_report(config, path, train, args):
    """Calls `train` and prints the folder that it returns, or why it ended and how to resume; returns the exit code."""
    before = _identity(path)
    try:
        folder = train()
        messages.say(*messages.closing(experiment.load(folder)))
    except KeyboardInterrupt:
        if not path.is_dir() or (args.overwrite and _identity(path) == before):  # the run was not made
            raise
        if (run := experiment.load(path)).state == "finished":  # it was in its last steps
            messages.say(*messages.closing(run))
            print(path)
            return STOPPED
        again = pasted("train.py", "--resume", str(path), *own.words_for(config))
        print(f"stopped; {again} resumes it, as does the same command{' without --overwrite' * args.overwrite}")
        if (path / "best.safetensors").is_file():
            print("evaluate.py and plot.py accept it as it is")
        return STOPPED
    except RunError as error:
        print(f"error: {error}; the finished epochs are kept in {path}", file=sys.stderr)
        return 1
    draw(folder, args)
    print(folder)
    return 0
