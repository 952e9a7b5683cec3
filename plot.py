"""Draw figures of trained runs: python plot.py runs/RUN [runs/RUN ...] --projection tsne"""

import os
import sys
from pathlib import Path

from data import NAMES, as_folder
from experiment import Config
from experiment.flags import add_backend, add_runs, chosen_runs
from plotting import export, latents, report, run_figures, style
from plotting.explorer import page
from plotting.output import Output
from runtime import backend
from runtime.command import Parser, command
from runtime.errors import UserError
from runtime.rules import Rule, check, excludes, needs

README_PICTURES = Path(__file__).parent / "benchmarks" / "readme_pictures.py"
README_SIZES = ("network_size", "epochs", "lr", "lr_schedule", "beta_warmup", "precision")
README_SETTINGS = (*README_SIZES, "latent_dim")
README_FLAGS = (*README_SETTINGS, "hardware", "runs_dir", "data_dir", "backend", "device")
OF_RUNS = ("gs_key", "explore", "figures", "estimates", "report", "export", "on")
DRAWS_EXAMPLE = "because it draws an example of its own"
DRAWS_README = "because it trains and draws runs of its own"
FIRST = ("_report.", "_explore.", "_reconmanifold.", "_embedding_mean.")  # in names of files, where to look first
HAS_NO_WAY_BACK = "decodes points of the plane, and those of --projection {} cannot be decoded"
RULES = (
    Rule("toy_posteriors", lambda args: args.runs, f"does not go with RUN, {DRAWS_EXAMPLE}"),
    *excludes("toy_posteriors", "readme", "projection", "data_dir", "code", *OF_RUNS, reason=DRAWS_EXAMPLE),
    Rule("readme", lambda args: args.runs, f"does not go with RUN, {DRAWS_README}"),
    *excludes("readme", "out", "format", "projection", "code", *OF_RUNS, reason=DRAWS_README),
    *(needs(name, "readme") for name in (*README_SETTINGS, "hardware")),
    *excludes("explore", "figures", "estimates", "format", "report", "export", reason="as it writes a page instead"),
    *excludes("figures", "estimates", reason="because it names all that is drawn"),
    Rule(
        "explore",
        lambda args: args.projection in ("tsne", "umap"),
        lambda args: HAS_NO_WAY_BACK.format(args.projection),
    ),
    *excludes("export", "figures", "estimates", "format", "projection", "report", reason="because it draws no figures"),
    *excludes("on", "explore", "figures", "estimates", "report", "export", reason="because it draws its own figures"),
)


def add_arguments(parser):
    """Adds the flags of plot.py."""
    add_runs(parser)
    figures = {"topic": "figures", "common": True}
    text = "instead of the run's figures, draw reconstructions and embeddings of images that are not of its data set: "
    text += "the test split of this data set, or all images of folder:PATH"
    parser.add_argument("--on", metavar="NAME", choices=NAMES, help=text, **figures)
    names = run_figures.NAMES
    text = f"draw only these: {', '.join(names)}"
    parser.add_argument("--figures", nargs="+", metavar="NAME ...", choices=names, help=text, **figures)
    text = "projection of more than two latents to the plane [pca]; tsne and umap take minutes for 10,000 images; "
    text += "umap needs a package"
    projections = tuple(latents.PROJECTIONS)
    parser.add_argument("--projection", choices=projections, metavar="NAME", help=text, **figures)
    text = "also draw how estimates of log p(x) depend on the number of samples, and embedding_weighted, which takes a "
    text += "minute or more"
    parser.add_argument("--estimates", action="store_true", topic="figures", help=text)
    text = f"file format: {', '.join(style.FORMATS)} [{style.FORMATS[0]}]"
    parser.add_argument("--format", choices=style.FORMATS, metavar="NAME", help=text, **figures)
    text = "folder of all figures [figures/ in each run; of figures that compare runs, figures/ beside them]"
    parser.add_argument("--out", metavar="DIR", type=as_folder, help=text, **figures)
    pages = {"topic": "pages and files", "common": True}
    text = "instead of figures, write one HTML page that decodes the latents under the pointer; several runs share it"
    parser.add_argument("--explore", action="store_true", help=text, **pages)
    text = "also write one HTML page with settings, scores, figures and the commands that repeat them"
    parser.add_argument("--report", action="store_true", help=text, **pages)
    text = "instead of figures, write npz: samples, reconstructions and embeddings; or onnx: the decoder"
    parser.add_argument("--export", choices=tuple(export.KINDS), metavar="NAME", help=text, **pages)
    examples = {"topic": "examples"}
    text = "train the two-dimensional example of Thin et al. (2021), in a minute or two, and draw its posteriors"
    parser.add_argument("--toy_posteriors", action="store_true", help=text, **examples)
    text = "regenerate the eight runs, table and figures of docs/results.md; finished parts are skipped. If "
    text += f"none of --{', --'.join(README_SIZES)} is given, network size 1, 10 epochs and learning rate 1e-3"
    parser.add_argument("--readme", action="store_true", help=text, **examples)
    for name in README_SETTINGS:
        text, usual = "of the runs of --readme [see there, else {}]", getattr(Config, name)
        options = {"type": type(usual), "metavar": {float: "X", int: "N"}.get(type(usual), "NAME"), **examples}
        parser.add_argument(f"--{name}", help=text.format(usual), **options)
    text = "name of the machine, which is stored with the results"
    parser.add_argument("--hardware", metavar="WORDS", help=text, **examples)
    add_backend(parser)


def chosen(args):
    """The Runs that the flags name, each once. Raises UserError where their figures would have the same names."""
    runs = list({one.path.resolve(): one for one in chosen_runs(args)}.values())
    if args.out and len({one.config.training_id for one in runs}) < len(runs):
        raise UserError("two of these runs have the same id, so their figures cannot go to one --out; leave it out")
    return page.explorable(runs, skip=bool(args.gs_key)) if args.explore else runs


def run(args):
    """Does what the flags ask for and prints the name of each file; returns the exit code."""
    check(RULES, args)
    projection = args.projection or "pca"
    latents.check(projection)
    if args.readme:  # by another program, which takes the place of this one
        words = [f"--{name}={getattr(args, name)}" for name in README_FLAGS if getattr(args, name) is not None]
        os.execv(sys.executable, [sys.executable, str(README_PICTURES), "--readme", *words])
    runs = [] if args.toy_posteriors else chosen(args)
    output = Output(args.out, args.format)
    backend.settle(args.backend, args.device)
    export.check(args.export)
    backend.start(args.device)
    if args.toy_posteriors:
        from plotting import toy

        toy.draw(output, Path(args.runs_dir, "figures"))
    elif args.explore:
        page.write_explorer(runs, output)
    elif args.export:
        export.write(runs, output, args.export)
    elif args.on:
        run_figures.draw_on(runs, args.on, output, projection)
    else:
        run_figures.draw_runs(runs, output, projection, args.estimates, args.figures)
        if args.report:
            report.write(runs, output)
    best = [str(path) for part in FIRST for path in sorted(output.written) if part in path.name]
    if best:
        sys.stdout.flush()
        print(f"look first at {' and '.join(best[:2])}", file=sys.stderr)
    return 0 if output.written else 2  # the reasons have been printed


def main(argv=None):
    """The command line of plot.py; returns the exit code."""
    parser = Parser(prog="plot.py", description=__doc__)
    add_arguments(parser)
    return command(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
