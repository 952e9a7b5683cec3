"""What the scripts share on the command line: flags made from `Config`, exit codes, which runs are meant, tables."""

import argparse
import contextlib
import dataclasses
import difflib
import errno
import itertools
import math
import os
import signal
import sys
import threading
import tomllib
from pathlib import Path
from typing import NamedTuple

import data
import engine
import experiment
import models
from errors import UserError
from experiment import Config

PRESETS = Path(__file__).parent / "presets"
STOPPED = 130  # the shell's exit code for Ctrl-C
PATHS = ("runs_dir", "data_dir")  # settings
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # where what is printed goes to a file
WIDE = 10  # times as large: from here on a range of positive numbers is searched by its logarithm


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence and a hint, not a page of usage; exit code 2."""

    def error(self, message):
        """Prints the sentence and exits with 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def add_settings(parser):
    """Adds a flag for each field of Config; those that change the numbers take one value or more, which form a grid.

    Only what was given lands in the parsed arguments; `grid` fills in the rest.
    """
    grid = parser.add_argument_group("what is trained", "each takes one value or more; more make a grid, with --gs_key")
    grid.add_argument("--preset", metavar="NAME", help="settings that belong together; flags beside it override them")
    place = parser.add_argument_group("where things lie and how fast they run")
    for field in dataclasses.fields(Config):
        meta = field.metadata
        options = {"type": _reader(field), "default": argparse.SUPPRESS, "choices": meta["choices"]}
        options["help"] = f"{meta['help']} (default: {field.default})"
        if not meta["choices"]:
            options["metavar"] = field.name.split("_")[-1].upper()
        group = place if meta["tag"] is None else grid
        group.add_argument(f"--{field.name}", nargs=None if meta["tag"] is None else "+", **options)
    return place


class Preset(NamedTuple):
    """Settings that belong together, with words on what they are, what they cost and what comes out."""

    about: str
    cost: str
    expected: str
    settings: dict


def preset_names():
    """The names that --preset takes."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def preset(name):
    """The Preset of this name. Raises UserError for an unknown one, or one with something unknown in its file."""
    if name not in preset_names():
        near = difflib.get_close_matches(name, preset_names(), 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"--preset {name or repr(name)} is unknown{hint} (see --list_presets)")
    path = PRESETS / f"{name}.toml"
    try:
        content = tomllib.loads(path.read_text())
        if set(content) != set(Preset._fields):
            raise UserError(f"it has {', '.join(content) or 'nothing'}, and should have {', '.join(Preset._fields)}")
        found = Preset(**content)
        Config.from_dict(found.settings)
    except (TypeError, tomllib.TOMLDecodeError, UserError) as error:
        raise UserError(f"{path}: {error}") from error
    return found


def given(args):
    """The settings that stand on the command line: a dict of field name to value, or list of values."""
    return {field.name: getattr(args, field.name) for field in dataclasses.fields(Config) if field.name in args}


class Range(NamedTuple):
    """Numbers from `low` to `high`, both included, as `--lr 1e-5..1e-2` gives them."""

    low: float
    high: float

    def __str__(self):
        return f"{self.low:g}..{self.high:g}"

    @classmethod
    def read(cls, text, kind):
        """The Range of integers or floats that a text names. Raises ValueError, or argparse's error, for another."""
        low, high = (kind(part) for part in text.split(".."))
        if not low < high:
            raise argparse.ArgumentTypeError(f"{text} is an empty range: the lower end comes first")
        return cls(low, high)

    @property
    def is_logarithmic(self):
        """Whether factors count in it, rather than differences."""
        return self.low > 0 and self.high >= WIDE * self.low


def path(text):
    """A path as a flag gives it, with ~ expanded: a shell does not do that in --out=~/pictures."""
    return os.path.expanduser(text)


def _reader(field):
    kind, words = path if field.name in PATHS else field.metadata["kind"], field.metadata["words"]

    def read(text):
        if ".." in text and kind in (int, float):
            return Range.read(text, kind)
        if field.default is None and text == "None":
            return None
        return words[text] if text in words else kind(text)

    read.__name__ = kind.__name__  # argparse's "invalid int value" is made from it
    return read


def add_backend(parser):
    """Adds --backend and --device."""
    text = "what Keras runs on; auto: jax on a GPU that it can use, and to train dense networks, else tensorflow"
    choices, usual = ("auto", *engine.BACKENDS), "the environment's KERAS_BACKEND, else tensorflow"
    parser.add_argument("--backend", choices=choices, default=None, help=f"{text} (default: {usual})")
    text = "auto: a GPU where there is one; gpu: stop where there is none; cpu: leave GPUs alone (default: auto)"
    parser.add_argument("--device", choices=engine.DEVICES, default="auto", help=text)


def add_runs(parser):
    """Adds what evaluate.py and plot.py share: RUN..., --gs_key, --runs_dir, --data_dir, --backend and --device."""
    parser.add_argument("runs", nargs="*", metavar="RUN", help="folders of runs, as train.py prints them")
    parser.add_argument("--gs_key", help="take every run of this grid search")
    parser.add_argument("--runs_dir", type=path, default="runs", help="where the grid search lies (default: runs)")
    text = "where the data files lie (default: where training found them)"
    parser.add_argument("--data_dir", type=path, help=text)
    add_backend(parser)


def whole(low, high=2**31 - 1):
    """A reader of integers from `low` to `high` for argparse."""

    def read(text):
        if not low <= (value := int(text)) <= high:
            raise argparse.ArgumentTypeError(f"{text} must be at least {low} and at most {high}")
        return value

    read.__name__ = "int"  # for argparse's "invalid int value"
    return read


def number(low):
    """A reader of finite numbers from `low` for argparse."""

    def read(text):
        if not low <= (value := float(text)) < math.inf:
            raise argparse.ArgumentTypeError(f"{text} must be at least {low}, and finite")
        return value

    read.__name__ = "float"
    return read


def unusual(config):
    """The settings of this Config that have not their usual value: a dict of name to text."""
    values = {field.name: (getattr(config, field.name), field.default) for field in dataclasses.fields(config)}
    return {name: str(value) for name, (value, usual) in values.items() if value != usual}


def words(config):
    """The flags that make this Config, as words of a command: those of every setting that has not its usual value."""
    return [word for name, text in unusual(config).items() for word in _flag(name, text)]


def _flag(name, text):
    """A flag as words: one, if its value would look like another flag."""
    return [f"--{name}={text}"] if text.startswith("-") else [f"--{name}", text]


def lists_of(args):
    """What the flags and the preset ask for: a dict of setting to the list of its values."""
    lists = {name: value if isinstance(value, list) else [value] for name, value in given(args).items()}
    return lists if args.preset is None else _preset_settings(args.preset, lists) | lists


def check_ranges(name, values):
    """Raises UserError where a Range of a setting stands beside other values, or could not have its own ends."""
    if any(isinstance(value, Range) for value in values) and len(values) > 1:
        raise UserError(f"--{name} takes a range or single values, not both")
    field = next(field for field in dataclasses.fields(Config) if field.name == name)
    for value in values:
        for end in value if isinstance(value, Range) else (value,):
            experiment.checked(field, end)


def grid(args):
    """The Configs that the flags ask for, each training id once. Raises UserError for several without --gs_key."""
    lists = lists_of(args)
    for name, values in lists.items():
        if ranges := [value for value in values if isinstance(value, Range)]:
            raise UserError(f"--{name} {ranges[0]} is a range, which needs --search optuna")
    configs = _configs([dict(zip(lists, choice, strict=True)) for choice in itertools.product(*lists.values())])
    if "network_size" in lists and (fixed := next((one.network for one in configs if not one.is_sized), None)):
        raise UserError(f"--network_size does not go with --network {fixed}, which has the sizes of its paper")
    for model in {config.model for config in configs}:
        if strange := [name for name in lists if name in models.OWNED and name not in models.MODELS[model].settings]:
            raise UserError(experiment.not_of(model, strange[0], lists[strange[0]][0]))
    unique = list({config.training_id: config for config in configs}.values())
    if len(unique) > 1 and not unique[0].gs_key:
        raise UserError(f"these flags make a grid of {len(unique)} runs, which needs a name: add --gs_key NAME")
    return unique


def _configs(choices):
    """A Config for each choice of settings. Raises UserError, for several with the number of those that are none."""
    configs, errors = [], []
    for settings in choices:
        try:
            configs.append(Config(**settings))
        except UserError as error:
            errors.append(str(error))
    if errors:
        many = f" (so {len(errors)} of the {len(choices)} runs of this grid cannot be)" if len(choices) > 1 else ""
        raise UserError(f"{errors[0]}{many}")
    return configs


def _preset_settings(name, overriding):
    """The settings of a preset as lists of one, but for sizes that a network chosen instead does not have."""
    settings = preset(name).settings
    networks = overriding.get("network", [settings.get("network", Config.network)])
    unsized = [one for one in networks if not models.NETWORKS[one].is_sized]
    dropped = ("network_size", "activation") if unsized else ()
    return {key: [value] for key, value in settings.items() if key not in dropped}


def command(run, args):
    """Runs a script's `run(args)` and returns its exit code; a mistake of the user's is a sentence on stderr and 2."""
    _open_streams()
    try:
        with stoppable():
            code = run(args)
            sys.stdout.flush()  # here, where a reader that has gone is no surprise
            return code
    except (UserError, data.DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has gone, as head does
        _write_no_more(sys.stdout)
        return 1
    except OSError as error:
        if error.filename is not None or error.errno not in NO_ROOM:
            raise
        _write_no_more(sys.stdout)
        try:
            print(f"error: writing failed: {error.strerror}", file=sys.stderr, flush=True)
        except OSError:  # it lies there, too
            _write_no_more(sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; what was written is whole and kept", file=sys.stderr)
        return STOPPED


def _open_streams():
    """Gives a process that was started without them, as a daemon may be, standard streams; no character fails there."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)  # the one that is free
            setattr(sys, name, os.fdopen(number, mode))
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def _write_no_more(stream):
    """Lets what could not be written go nowhere: Python would try again at exit, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def stoppable():
    """Makes SIGTERM and SIGHUP what Ctrl-C is, for the block; what is ignored, as SIGHUP under nohup, stays ignored."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    usual = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():  # elsewhere it is forbidden
        usual = []
    for number in usual:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in usual:
            signal.signal(number, signal.SIG_DFL)


def duration(seconds):
    """Seconds in words, "3 h 05 min", "2 min 10 s" or "4 s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def table(rows):
    """Dicts of equal keys as aligned text, a line of names and one for each row; small numbers keep two digits."""
    shown = [[cell(value) for value in row.values()] for row in rows]
    lines = [list(rows[0]), *shown]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    numeric = [any(isinstance(row[name], int | float) for row in rows) for name in rows[0]]
    cells = [[c.rjust(w) if n else c.ljust(w) for c, w, n in zip(line, widths, numeric, strict=True)] for line in lines]
    return "\n".join("  ".join(line).rstrip() for line in cells)


def cell(value):
    """A value as it stands in a table."""
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:.2f}" if abs(value) >= 1 or value == 0 else f"{value:.2g}"


def chosen_runs(args):
    """The Runs that RUN... or --gs_key name, those with weights. Raises UserError if there is none."""
    if bool(args.runs) == bool(args.gs_key):
        raise UserError("name either the folders of runs or a grid search with --gs_key")
    if args.runs:
        return [_with_weights(path, args.data_dir) for path in args.runs]
    runs = []
    for folder in grid_folders(args):
        try:
            runs.append(_with_weights(folder, args.data_dir))
        except UserError as error:  # the others of the group are worth having
            print(f"warning: left out: {error}", file=sys.stderr)
    if not runs:
        group = Path(args.runs_dir, args.gs_key)
        raise UserError(f"{group} holds no run with weights; train it with --gs_key {args.gs_key}")
    return runs


def grid_folders(args):
    """The folders of the runs of the grid that --gs_key names."""
    return [config.parent for config in sorted(Path(args.runs_dir, args.gs_key).glob("[!.]*/config.json"))]


def _with_weights(path, data_dir):
    run = experiment.load(path, data_dir)
    if not run.weights.is_file():
        raise UserError(f"{path} has no weights yet (it is {run.state}); train it for at least one epoch")
    if run.state != "finished":
        print(f"warning: {path} is {run.state}, not finished; its best weights so far are taken", file=sys.stderr)
    return run
