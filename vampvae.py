"""One command for all of it, python vampvae.py train|eval|plot|features|data ..., and `import vampvae` for Python."""

import dataclasses
import sys
from pathlib import Path

import numpy as np

import experiment  # first, as it names a module of another program that is in the way

# isort: split
import data
import evaluate as evaluate_script
import models
import plot as plot_script
import train as train_script
from data.arrays import as_grey, stored
from evaluation import features, score, tables
from experiment import Config, own
from experiment.settings import is_list
from grids.configs import configs_of
from plotting import run_figures
from plotting.view import in_batches
from runtime import backend
from runtime.command import Parser, command, path
from runtime.errors import DataError, RunError, UserError
from runtime.rules import check, shown
from runtime.text import word
from train import SEVERAL
from training import start

__all__ = ["DataError", "Run", "RunError", "UserError", "evaluate", "load", "plot", "train"]

SCRIPTS = {"train": train_script, "eval": evaluate_script, "plot": plot_script, "features": features}
OF_COMMANDS = {  # the flags that make no sense for one run in Python
    train_script: ("data_set", "gs_key", "resume", "refit_prior", "list_presets", "worker", "member", "plot", *SEVERAL),
    evaluate_script: ("gs_key", "runs_dir", "compare"),
    plot_script: (),
}
LISTS = [field.name for field in dataclasses.fields(Config) if is_list(field)]  # settings that take a tuple
MAY_BE_NONE = [field.name for field in dataclasses.fields(Config) if field.default is None]  # as a preset's may not be
OF_SPLITS = ("split", "on", "max_images", "data_dir", "features", "num_generated", "temperature")  # of evaluate.py


def _of_disk(name):
    return property(lambda run: getattr(run.on_disk, name))


class Run:
    """A run in Python: what `on_disk`, an experiment.Run, has, and methods that take and return NumPy arrays.

    Images are (N, H, W) or (N, H, W, C) of the run's size: bytes, booleans or floats from 0 to 1, which are binarized
    once for all if the run binarizes. Raises UserError or DataError.
    """

    path, name, config, backend, weights = map(_of_disk, ("path", "name", "config", "backend", "weights"))
    status, state, history, metrics, note = map(_of_disk, ("status", "state", "history", "metrics", "note"))
    best_val_elbo, latent_dim, model = map(_of_disk, ("best_val_elbo", "latent_dim", "model"))
    data_set, dataset, image_shape = map(_of_disk, ("data_set", "dataset", "image_shape"))
    snapshots = _of_disk("snapshots")

    def __init__(self, path, data_dir=None):
        self.on_disk = experiment.load(path, data_dir)

    def __repr__(self):
        return repr(self.on_disk)

    def images(self, split, n=None):
        """The images of a split as the run scores them, or a fixed random n: float32 (N, H, W, C) in [0, 1]."""
        return self.on_disk.images(split, None if n is None else _whole("images", n, 1))

    def sample(self, n, seed=0):
        """n images of the model, means of p(x|z) with z from its prior: (n, H, W, C). Stochastic, by the seed."""
        n, seed = _whole("sample", n, 1), _whole("seed", seed, 0)
        with backend.borrowed(), score.progress(self.on_disk, n) as bar:
            return np.concatenate([images for images, _ in score.draws(self.on_disk, n, seed, bar)])

    def reconstruct(self, images, seed=0):
        """Images decoded at the posterior means of these: (N, H, W, C); draws, by the seed, from a pixel network."""
        from models.base import generator

        with backend.borrowed():
            noise = generator(_whole("seed", seed, 0))
            return in_batches(lambda x: self.model.reconstruct(x, noise), self._as_scored(images))

    def embed(self, images):
        """Latents, the posterior means of q(z|x): (N, D)."""
        with backend.borrowed():
            return in_batches(self.model.embed, self._as_scored(images))

    def log_px(self, images, **settings):
        """log p(x) of each image in nats, (N,); the settings are evaluate.py's flags on estimators. Stochastic."""
        args = _flags(evaluate_script, settings, OF_SPLITS)
        with backend.borrowed(args.backend, args.device):
            one = self.on_disk.in_precision(args.precision) if args.precision else self.on_disk
            scoring, as_scored = evaluate_script.scoring_of(one, args), self._as_scored(images)
            return score.estimated(one, as_scored, scoring, "test", range(len(as_scored)))[1].log_px

    def _as_scored(self, images):
        """The images as those of `images` are: float32 (N, H, W, C) in [0, 1], binary if the run binarizes."""
        if np.shape(images) == self.image_shape:
            raise DataError(f"images has the shape of one image, {self.image_shape}: pass images[None]")
        grey = as_grey(images)
        if grey.shape[1:] != self.image_shape:
            raise DataError(f"images are {grey.shape[1:]}, and {self.path} was trained on images {self.image_shape}")
        mode = "dynamic" if self.config.source.is_binary else self.config.binarization
        return data.binarized(grey, mode, np.random.default_rng(data.HELD_OUT_SEED))


def load(path, data_dir=None, code=()):
    """The Run in a folder; `code` is the file of your own classes that it has, or a list of files.

    Raises UserError if it is none.
    """
    for file in _listed(code):
        own.take(str(file))
    return Run(path, data_dir)


def train(images, **settings):
    """Trains on a data set, by name, or an array of images, (N, H, W) or (N, H, W, C), and returns the Run.

    The settings are the flags of train.py, such as model="hvae", epochs=10, backend="jax" or overwrite=True. A run that
    exists is resumed, or returned if it is finished. Raises UserError or DataError before anything is trained; RunError
    and KeyboardInterrupt leave a run that the same call resumes.
    """
    if isinstance(images, Path):
        raise UserError(f"train({images}): pass images, or the name of a data set, as folder:{images}")
    args = _flags(train_script, settings)
    place = getattr(args, "runs_dir", Config.runs_dir)
    args.data_set = [images if isinstance(images, str) else stored(images, place)]
    check(train_script.RULES, args)  # anew, as a data_dir does not go with every data set
    (config,) = configs_of(args)
    dense = models.NETWORKS[config.network].is_dense
    with backend.borrowed(args.backend, args.device, dense, config.deterministic == "on"):
        run, config = start.existing(config, args)
        is_finished = run is not None and run.state == "finished"
        return Run(run.path if is_finished else start.fit(config, args, run))


def evaluate(run, **settings):
    """The scores of a Run or the run in a folder, a dict, stored there too; the settings are evaluate.py's flags."""
    args = _flags(evaluate_script, settings)
    with backend.borrowed(args.backend, args.device):
        network = features.load(args.features) if args.features else None
        one = _run(run, args.data_dir)
        args.runs = [one]
        check(evaluate_script.RULES, args)  # anew, as some flags do not go with every run
        scored = evaluate_script.scored(one.on(args.on) if args.on else one, args, network)
    tables.print_notes(scored)
    return scored.metrics


def plot(run, name, projection="pca", code=()):
    """The matplotlib Figure that `python plot.py RUN --figures NAME` writes, of a Run or the run in a folder."""
    args = _flags(plot_script, {"projection": projection, "code": code})
    with backend.borrowed():
        return run_figures.drawn(_run(run), name, args.projection)


def _run(run, data_dir=None):
    """The experiment.Run of a Run, or of a folder."""
    if isinstance(run, Run) and not data_dir:
        return run.on_disk
    return experiment.load(getattr(run, "path", run), data_dir)


def _listed(code):
    """The files of your own classes: one, or several."""
    return [] if code is None else code if isinstance(code, list | tuple) else [code]


def _whole(name, value, low):
    """A whole number of Python or NumPy. Raises UserError for anything else, and for less than `low`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
        raise UserError(f"{name}({shown(value)}): it must be a whole number from {low}")
    return int(value)


def _flags(script, settings, refused=()):
    """The arguments of a script that these settings stand for. Raises UserError with the script's sentence."""
    parser, words = Parser(raises=True), []
    script.add_arguments(parser)
    if script is not train_script:
        words += [f"--code={file}" for file in _listed(settings.get("code"))]
        settings = {name: value for name, value in settings.items() if name != "code"}
    for name, given in settings.items():
        value = word(given) if type(given) is tuple and name in LISTS else given
        is_one = not isinstance(value, list | tuple) and (name, value) != ("distribute", "processes")
        if not is_one or name in (*OF_COMMANDS[script], *refused, "help"):
            raise UserError(f"{name}={shown(value)} is not for one run in Python; see {script.__name__}.py --help")
        if value is not False and (value is not None or name in MAY_BE_NONE):
            words.append(f"--{name}" if value is True else f"--{name}={value}")
    args = parser.parse_args(words)
    check(script.RULES, args)
    return args


def add_data_arguments(parser):
    """Adds the flags of `vampvae.py data`."""
    text = f"data sets to fetch and verify: {', '.join(data.DATA_SETS)}"
    parser.add_argument("names", nargs="*", metavar="NAME", help=text)
    text = "folder that is searched first and downloaded to [a per-user cache]"
    parser.add_argument("--data_dir", type=path, metavar="DIR", help=text)
    parser.add_argument("--list", action="store_true", help="list the data sets, and where their files were found")


def run_data(args):
    """Lists data sets, or fetches and verifies them without training; returns the exit code."""
    if args.list == bool(args.names):
        raise UserError("name the data sets to fetch, or list them with --list")
    for name in args.names:
        for file, verdict in data.fetch(name, args.data_dir).items():
            print(f"{name}: {file}, {file.stat().st_size:,} bytes: {verdict}")
        if not (source := data.source(name)).files:
            print(f"{name}: nothing to fetch, it is {source.origin}")
    if args.list:
        print("\n\n".join(describe(source, args.data_dir) for source in data.DATA_SETS.values()))
        print("\nfolder:PATH: your own images, a folder of them or one .npy or .npz file")
    return 0


def describe(source, data_dir):
    """A paragraph on a data set: title, image size, splits, origin, and where each file was found."""
    height, width, channels = source.image_shape
    splits = ", ".join(f"{count:,} {name}" for name, count in source.num_images.items())
    lines = [f"{source.name}: {source.title}", f"  {height}x{width}x{channels}; {splits}", f"  {source.origin}"]
    found = dict(data.found(source.name, data_dir))
    for file in source.files:
        size = f"{file.packed.bytes:,} bytes" if file.packed.bytes else "unknown size"
        lines.append(f"  {file.name} ({size}): {found[file.name] or 'not found'}")
    return "\n".join(lines)


def main(argv=None):
    """The command line of vampvae.py; returns the exit code."""
    parser = Parser(prog="vampvae.py", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, script in SCRIPTS.items():
        aliases = ["evaluate"] if name == "eval" else []
        one = commands.add_parser(name, aliases=aliases, description=script.__doc__ or "")  # python -OO leaves it out
        script.add_arguments(one)
        one.set_defaults(run=script.run)
    about = "Fetch and verify data sets, or list them: python vampvae.py data --list"
    one = commands.add_parser("data", description=about)
    add_data_arguments(one)
    one.set_defaults(run=run_data)
    args = parser.parse_args(argv)
    return command(args.run, args)


if __name__ == "__main__":
    sys.exit(main())
