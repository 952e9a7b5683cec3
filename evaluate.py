"""Score trained runs on held-out images: python evaluate.py runs/RUN [runs/RUN ...] --max_images 1000"""

import sys

import data
from evaluation import estimators, features, tables
from evaluation.estimators import Scoring
from evaluation.score import GENERATED, evaluate
from experiment.flags import add_backend, add_runs, chosen_runs, grid_folders
from grids import leaderboard
from runtime import backend, rules
from runtime.command import Parser, command, number, path, whole
from runtime.errors import DataError, UserError
from runtime.rules import Rule


def add_arguments(parser):
    """Adds the flags of evaluate.py."""
    add_runs(parser)
    options = {"topic": "images", "common": True}
    text = "images to score [test]"
    parser.add_argument("--split", choices=data.SPLITS, metavar="NAME", help=text, **options)
    text = "score images that are not of the run's data set, to find outliers among them: a split of this data set, or "
    text += "all images of folder:PATH; a .csv beside the scores names each image"
    parser.add_argument("--on", metavar="NAME", choices=data.NAMES, help=text, **options)
    text = "score a fixed random subset of N images; larger subsets contain the smaller ones"
    parser.add_argument("--max_images", type=whole(1), metavar="N", help=text, **options)
    text = "compare each run with the first one, image by image"
    parser.add_argument("--compare", action="store_true", help=text, **options)
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N", topic="estimator", help="seed of the samples")
    estimators.add_arguments(parser)
    text = "also compute FID and KID of samples with the features of this network, which `vampvae.py features` trains, "
    text += "or a Keras model of your own"
    parser.add_argument("--features", metavar="FILE.keras", type=path, topic="samples", common=True, help=text)
    text = f"with --features: images to draw from the model [{GENERATED}]"
    parser.add_argument("--num_generated", type=whole(2), metavar="N", topic="samples", help=text)
    text = "with --features, for ladder and dvp: what the prior's variances are multiplied by [1]"
    parser.add_argument("--temperature", type=number(1e-3), metavar="X", topic="samples", help=text)
    add_backend(parser)
    text = "compute in this precision [that of each run's training]"
    parser.add_argument("--precision", choices=("float32",), metavar="float32", topic="machine", help=text)
    text = "memory for activations at a time [on a CPU up to 64 MiB per thread, or what 200 samples take; on a GPU up "
    text += "to 1 GiB; less if little is free]"
    parser.add_argument("--max_memory", type=number(1e-3), metavar="GIB", topic="machine", help=text)


def _difference(args):
    """What is wrong where the images or the likelihood of a run are not those of the first one, else None.

    A data set is another one by its name and its files: a folder of images may have been moved.
    """
    first, *others = args.runs
    for one in others:
        pairs = (one.config.data_set, first.config.data_set), (one.record["data_sha256"], first.record["data_sha256"])
        is_other = not args.on and all(mine != theirs for mine, theirs in pairs)
        if is_other or (one.config.pixels, one.image_shape) != (first.config.pixels, first.image_shape):
            return f"needs runs with the same images and likelihood; those of {one.path} and {first.path} differ"
    return None


RULES = [
    *estimators.RULES,
    rules.needs("num_generated", "features"),
    rules.needs("temperature", "features"),
    Rule("temperature", lambda args: not all(one.config.is_deep for one in args.runs), "goes with ladder and dvp only"),
    Rule("compare", lambda args: len(args.runs) < 2, "needs two runs or more"),
    Rule("compare", _difference, _difference),
    *rules.excludes("on", "features", reason="which compares samples with the run's own images"),
    Rule("split", lambda args: args.on not in (None, *data.DATA_SETS), "does not go with --on folder:PATH, as all "
         "images there are scored"),
    Rule("data_dir", lambda args: args.on not in (None, *data.DATA_SETS), "does not go with --on folder:PATH, which "
         "says where its images lie"),
]  # fmt: skip


def scoring_of(one, args):
    """The Scoring of a Run by these flags. Raises UserError where the estimator cannot score it."""
    settings = {name: getattr(args, name) for name in estimators.OWNERS}
    return Scoring.of(one, args.estimator, args.seed, args.max_memory, **settings)


def scored(one, args, network=None):
    """The Scored of a Run by these flags. Raises UserError for a run that cannot be scored."""
    count = args.num_generated or GENERATED
    temperature = args.temperature or 1.0
    one = one.in_precision(args.precision) if args.precision else one
    return evaluate(one, scoring_of(one, args), args.split or "test", args.max_images, network, count, temperature)


def run(args):
    """Scores the runs that the flags name and prints tables; returns the exit code."""
    args.runs = chosen_runs(args)
    rules.check(RULES, args)
    ranks = args.gs_key and not args.on
    grid = leaderboard.runs_in(grid_folders(args)) if ranks else []  # now: scoring may take hours
    backend.settle(args.backend, args.device)
    backend.start(args.device)
    network = features.load(args.features) if args.features else None
    found, failed = [], False
    while args.runs:  # popped, so that one model is in memory at a time
        one = args.runs.pop(0)
        try:
            found.append(scored(one.on(args.on) if args.on else one, args, network))
            tables.print_notes(found[-1])
        except (UserError, DataError) as error:  # the scores of the other runs are worth having
            print(f"error: {error}", file=sys.stderr)
            failed = True
    if found:
        tables.print_scores(found, args.on, network)
    if found and grid:
        leaderboard.report(grid, {one.name: one.metrics for one in found})
    if args.compare and not failed:
        tables.print_comparison(found)
    if found:
        sys.stdout.flush()
        print(f"how to read it: {tables.READING}", file=sys.stderr)
    return 2 if failed else 0


def main(argv=None):
    """The command line of evaluate.py; returns the exit code."""
    parser = Parser(prog="evaluate.py", description=__doc__)
    add_arguments(parser)
    return command(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
