"""Flags made from Config, and the runs that flags name."""

import argparse
import dataclasses
import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

from experiment import own, sources
from experiment.config import Config
from experiment.run import Run
from experiment.settings import TOPICS, is_list, kind_of
from runtime import backend
from runtime.command import path
from runtime.errors import UserError
from runtime.text import word

PATHS = ("runs_dir", "data_dir", "init_from")  # settings
SCRIPTS = Path(__file__).parents[1]


def add_settings(parser):
    """Adds a flag for each field of Config; those that change the numbers take one value or more, which form a grid.

    Only what was given lands in the parsed arguments; `grids.configs.configs_of` fills in the rest.
    """
    for field in sorted(dataclasses.fields(Config), key=lambda field: TOPICS.index(field.metadata["topic"])):
        if field.metadata["help"]:
            add_setting(parser, field)
    text = "settings of a published experiment (--list_presets shows them); flags beside it override them"
    parser.add_argument("--preset", metavar="NAME", topic="runs", common=True, help=text)


def add_setting(parser, field):
    """Adds the flag of a field. One that is a list takes `200 100` or `200,100`, and of a grid `200,100 50,`."""
    meta = field.metadata
    options = {"type": _reader(field), "default": argparse.SUPPRESS, "metavar": _metavar(field)}
    usual = {value: one for one, value in meta["words"].items()}.get(field.default, field.default)
    options["help"] = meta["help"] + (f" [{word(usual)}]" if usual is not None else "")
    options |= {name: meta[name] for name in ("topic", "common", "choices")}
    is_grid = meta["tag"] is not None
    options |= {"action": partial(_Lists, is_grid=is_grid)} if is_list(field) else {}
    parser.add_argument(f"--{field.name}", nargs="+" if is_grid or is_list(field) else None, **options)


class _Lists(argparse.Action):
    """Keeps the lists that words make: one of all of them, or one of each word where a word has a comma."""

    def __init__(self, *args, is_grid, **options):
        super().__init__(*args, **options)
        self.is_grid = is_grid

    def __call__(self, parser, namespace, values, flag=None):
        whole = [value is None or isinstance(value, tuple) for value in values]  # a Range among them
        lists = [value if is_whole else (value,) for value, is_whole in zip(values, whole, strict=True)]
        lists = lists if any(whole) else [tuple(values)]
        if len(lists) > 1 and not self.is_grid:
            raise argparse.ArgumentError(self, "takes one list: of several, each would be a run of a grid")
        setattr(namespace, self.dest, lists)


def _metavar(field):
    """What stands for the value of a setting: a letter for a number, both of two values, else a word."""
    if (choices := field.metadata["choices"]) and len(choices) == 2:
        return "|".join(choices)
    name = "NAME" if choices else field.name.split("_")[-1].upper()
    return {int: "N", float: "X"}.get(kind_of(field), name) + " ..." * is_list(field)


def given_settings(args):
    """The settings that stand on the command line: a dict of field name to value, or list of values."""
    return {field.name: getattr(args, field.name) for field in dataclasses.fields(Config) if field.name in args}


class Range(NamedTuple):
    """Numbers from `low` to `high`, both included, as `--lr 1e-5..1e-2` gives them."""

    low: float
    high: float

    def __repr__(self):
        return f"{self.low:g}..{self.high:g}"


def is_one_value(value):
    """Whether a setting on the command line is a single value: neither a list of several nor a Range."""
    values = value if isinstance(value, list) else [value]
    return len(values) == 1 and not isinstance(values[0], Range)


def _reader(field):
    kind, words = path if field.name in PATHS else kind_of(field), field.metadata["words"]

    if field.name in own.PICKS:
        return of_user(partial(own.name_of, field.name))

    def read(text):
        if is_list(field) and "," in text:
            return tuple(kind(part) for part in text.removesuffix(",").split(","))
        if ".." in text and kind in (int, float):
            low, high = (kind(part) for part in text.split(".."))
            if not low < high:
                raise argparse.ArgumentTypeError(f"{text} is an empty range: the lower end comes first")
            return Range(low, high)
        if field.default is None and text == "None":
            return None
        return words[text] if text in words else kind(text)

    read.__name__ = kind.__name__  # argparse's "invalid int value" is made from it
    return read


def of_user(read):
    """A reader for argparse whose UserErrors are its sentences."""

    def reader(text):
        try:
            return read(text)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return reader


def add_code(parser):
    """Adds --code."""
    text = (
        "a file of your own classes, FILE.py:CLASS as --prior, --network or --objective, that runs were trained with; "
    )
    text += "once for each file"
    options = {"action": "append", "type": of_user(own.take), "metavar": "FILE.py", "topic": "runs"}
    parser.add_argument("--code", help=text, **options)


def add_backend(parser):
    """Adds --backend and --device."""
    options = {"topic": "machine", "common": True, "metavar": "NAME"}
    text = "jax, tensorflow; auto: jax on a GPU that it can use and to train dense networks, else tensorflow "
    text += "[$KERAS_BACKEND, else tensorflow]"
    parser.add_argument("--backend", choices=("auto", *backend.BACKENDS), help=text, **options)
    text = "auto: a GPU if there is one; gpu: stop without one; cpu: use none"
    parser.add_argument("--device", choices=backend.DEVICES, default="auto", help=text, **options)


def add_runs(parser):
    """Adds how evaluate.py and plot.py name runs: RUN..., --gs_key, --runs_dir and --data_dir."""
    options = {"topic": "runs", "common": True}
    parser.add_argument("runs", nargs="*", metavar="RUN", help="folders of runs, as train.py prints them", **options)
    parser.add_argument("--gs_key", metavar="NAME", help="take every run of this grid", **options)
    add_code(parser)
    options = {"topic": "runs", "type": path, "metavar": "DIR"}
    parser.add_argument("--runs_dir", default="runs", help="where the grid lies", **options)
    text = "where the data files lie [where training found them]; for folder:PATH, the folder or file itself"
    parser.add_argument("--data_dir", help=text, **options)


def unusual(config):
    """The settings with a flag of this Config that have not their usual value: a dict of name to text."""
    implied = ("latent_dim",) if config.latent_dims else ()  # their sum
    fields = [one for one in dataclasses.fields(config) if one.metadata["help"] and one.name not in implied]
    values = {field.name: (getattr(config, field.name), field.default) for field in fields}
    return {name: word(value) for name, (value, usual) in values.items() if value != usual}


def words_of(config):
    """The flags that make this Config, as words of a command: those of every setting that has not its usual value.

    Where it keeps q and p(x|z) of another run, that run, and all settings that may differ from it.
    """
    words, texts = [], unusual(config)
    if config.refit:
        words = ["--refit_prior", own.flag_of(config.prior), sources.place_of(config)]
        texts = {name: word(value) for name, value in config.settings.items() if name in sources.OF_REFITS}
    texts |= {name: own.flag_of(texts[name]) for name in own.PICKS if name in texts}
    for name, text in texts.items():  # one word if the value would look like another flag
        words += [f"--{name}={text}"] if text.startswith("-") else [f"--{name}", text]
    return words


def pasted(script, *words):
    """A command that can be pasted: a script, from where the user is, with these words."""
    return f"python {shlex.join([os.path.relpath(SCRIPTS / script), *words])}"


def next_commands(*words):
    """Two lines with the commands that score and draw the runs that these words name."""
    for when, script in ("next:", "evaluate.py"), ("then:", "plot.py"):
        yield f"{when} {pasted(script, *words)}"


def chosen_runs(args):
    """The Runs that RUN... or --gs_key name, those with weights. Raises UserError if there is none."""
    if bool(args.runs) == bool(args.gs_key):
        raise UserError("name either the folders of runs or a grid search with --gs_key")
    if args.runs:
        runs = [Run(path, args.data_dir) for path in _without_others(args.runs)]
        without = [str(run.path) for run in runs if not run.weights.is_file()]
        if 0 < len(without) < len(runs):  # as in RUNS_DIR/*
            print(f"warning: left out, as they have no weights yet: {', '.join(without)}", file=sys.stderr)
            runs = [run for run in runs if run.weights.is_file()]
        return [_with_weights(run) for run in runs]
    runs = []
    for folder in grid_folders(args):
        try:
            runs.append(_with_weights(Run(folder, args.data_dir)))
        except UserError as error:  # the others of the group are worth having
            print(f"warning: left out: {error}", file=sys.stderr)
    if not runs:
        group = Path(args.runs_dir, args.gs_key)
        raise UserError(f"{group} holds no run with weights; train it with --gs_key {args.gs_key}")
    return runs


def _without_others(paths):
    """The paths without what is no run, as in RUNS_DIR/*, of which a warning says so; all where none is a run."""
    others = [path for path in paths if os.path.exists(path) and not os.path.lexists(Path(path, "config.json"))]
    if len(others) in (0, len(paths)):
        return paths
    print(f"warning: left out, as no config.json is found in them: {', '.join(others)}", file=sys.stderr)
    return [path for path in paths if path not in others]


def grid_folders(args):
    """The folders of the runs of the grid that --gs_key names."""
    return [config.parent for config in sorted(Path(args.runs_dir, args.gs_key).glob("[!.]*/config.json"))]


def _with_weights(run):
    if not run.weights.is_file():
        raise UserError(f"{run.path} has no weights yet (it is {run.state}); train it for at least one epoch")
    if run.state != "finished":
        print(f"warning: {run.path} is {run.state}, not finished; its best weights so far are taken", file=sys.stderr)
    return run
