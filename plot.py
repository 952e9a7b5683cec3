"""Draw figures of trained runs: python plot.py runs/RUN [runs/RUN ...] --projection tsne"""

import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

import experiment
from data import as_folder
from experiment import Config
from experiment.flags import add_runs, chosen_runs
from plotting import export, planes, report, style
from plotting.comparisons import draw_groups
from plotting.explorer import page
from plotting.explorer.page import write_explorer
from plotting.output import Output
from plotting.projections import PROJECTIONS
from plotting.run_figures import NAMES, draw_run
from plotting.view import View
from runtime import backend
from runtime.command import Parser, command
from runtime.errors import UserError

NOT_OF_TOY = ("gs_key", "readme", "explore", "figures", "estimates", "report", "export")
OF_README = ("network_size", "epochs", "lr", "hardware")  # flags that go with --readme only
OF_FIGURES = ("report", "figures", "estimates", "format")
NOT_OF_EXPLORE = ("estimates", "figures", "report", "export")


def add_arguments(parser):
    """Adds the flags of plot.py."""
    add_runs(parser)
    text = "where all figures go (default: figures/ in each run; what compares runs: figures/ beside them)"
    parser.add_argument("--out", metavar="DIR", type=as_folder, help=text)
    text = "train the two-dimensional example of the Monte Carlo VAE paper, in a minute or two, and draw its posteriors"
    parser.add_argument("--toy_posteriors", action="store_true", help=text)
    text = "how more than two dimensions are drawn in the plane; tsne takes minutes for 10,000 images (default: pca)"
    parser.add_argument("--projection", choices=tuple(PROJECTIONS), default="pca", help=text)
    text = "also draw how estimates of log p(x) depend on the number of samples, which takes a minute or more"
    parser.add_argument("--estimates", action="store_true", help=text)
    text = "instead of figures, write one HTML file in which latents are decoded as you move; several runs share a page"
    parser.add_argument("--explore", action="store_true", help=text)
    text = "draw these figures only"
    parser.add_argument("--figures", nargs="+", metavar="NAME", choices=NAMES, help=f"{text}: {', '.join(NAMES)}")
    text = "of the files of figures (default: png)"
    parser.add_argument("--format", choices=style.FORMATS, help=text)
    text = "also write one HTML page of settings, scores, figures and the commands that repeat them"
    parser.add_argument("--report", action="store_true", help=text)
    text = "write samples, reconstructions and embeddings (npz), the first two as files (png), or the decoder (onnx), "
    text += "and draw nothing"
    parser.add_argument("--export", choices=tuple(export.KINDS), help=text)
    add_readme_arguments(parser)


def draw_toy(args):
    """Trains the example whose posterior is a ring by each bound, and draws what comes out; returns the exit code."""
    if args.runs:
        raise UserError("--toy_posteriors is an example of its own, and takes no runs")
    if strange := [name for name in NOT_OF_TOY if getattr(args, name)]:
        raise UserError(f"--toy_posteriors is an example of its own, and does not go with --{strange[0]}")
    output = Output(args.out, args.format)
    backend.settle(args.backend, args.device)
    backend.start(args.device)
    from plotting import toy

    fitted = [toy.fit(name) for name in tqdm(toy.CASES, unit="model", disable=not sys.stderr.isatty())]
    axis = np.linspace(-3.5, 3.5, 401)
    density = planes.Density(axis, axis, toy.log_joint(np.stack(np.meshgrid(axis, axis), axis=-1)))
    output.draw(Path(args.runs_dir, "figures"), "toy_posteriors", planes.posteriors, density, fitted, toy.log_px())
    return 0


def add_readme_arguments(parser):
    """Adds --readme and what goes with it."""
    readme = parser.add_argument_group("what the README shows")
    text = "train what is missing of its eight runs, score and draw them, and write its table and pictures; with none "
    text += "of the next three, of network size 1 in 10 epochs with a learning rate of 1e-3"
    readme.add_argument("--readme", action="store_true", help=text)
    for name in OF_README[:-1]:
        text, usual = "of these runs (default: as of train.py, {})", getattr(Config, name)
        readme.add_argument(f"--{name}", type=type(usual), metavar=name.split("_")[-1].upper(), help=text.format(usual))
    readme.add_argument("--hardware", metavar="WORDS", help="a word on the machine, stored with the results")


def run(args):
    """Draws the figures of the runs that the flags name and prints each file; returns the exit code."""
    if args.toy_posteriors:
        return draw_toy(args)
    if args.readme:
        from benchmarks import readme_pictures  # which calls all three scripts

        return readme_pictures.produce(args)
    if strange := [name for name in OF_README if getattr(args, name) is not None]:
        raise UserError(f"--{strange[0]} goes with --readme")
    runs = list({one.path.resolve(): one for one in chosen_runs(args)}.values())
    ids = [one.config.training_id for one in runs]
    if args.out and len(set(ids)) < len(ids):
        raise UserError("two of these runs have the same id, so their figures cannot share --out; leave it away")
    if args.explore:
        check_explore(args)
        runs = page.explorable(runs, skip=bool(args.gs_key))
    if args.export and (strange := [name for name in OF_FIGURES if getattr(args, name)]):
        raise UserError(f"--export draws nothing, so --{strange[0]} does not go with it; give one of them")
    output = Output(args.out, args.format)
    backend.settle(args.backend, args.device)
    export.check(args.export)
    backend.start(args.device)
    if args.explore:
        return write_explorer(runs, output)
    members, paths = [], [one.path for one in runs]
    runs.reverse()
    while runs:  # popped, so that one model at a time is in memory
        if args.export:
            export.KINDS[args.export](View(runs.pop(), args.projection), output)
        else:
            members.append(draw_run(runs.pop(), output, args.projection, args.estimates, args.figures))
    draw_groups(members, output, args.figures)
    if args.report:
        report.write([experiment.load(path, args.data_dir) for path in paths], output)
    return 0 if output.written else 2  # the reasons are said


def check_explore(args):
    """Raises UserError for flags that do not go with --explore."""
    if args.projection != "pca":
        raise UserError(f"--explore decodes points of the plane, and those of --projection {args.projection} cannot be")
    if strange := [name for name in NOT_OF_EXPLORE if getattr(args, name)]:
        raise UserError(f"--{strange[0]} does not go with --explore, which writes a page instead of figures")


def main(argv=None):
    """The command line of plot.py; returns the exit code."""
    parser = Parser(prog="plot.py", description=__doc__)
    add_arguments(parser)
    return command(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
