"""Score trained runs on held-out images: python evaluate.py runs/RUN [runs/RUN ...] --estimator is"""

import sys

import numpy as np

import data
import models
from evaluation import features
from evaluation.estimators import ESTIMATORS, MOST_SAMPLES, SIMULATED, Scoring, check, usual
from evaluation.score import COLUMNS, GENERATED, LATENTS, compared, evaluate, highest_khat
from experiment.flags import add_runs, chosen_runs, grid_folders
from grids import leaderboard
from runtime import backend
from runtime.command import Parser, command, number, path, whole
from runtime.errors import UserError
from runtime.text import table

DISTANCES = ("num_images", "num_held_out", "fid", "kid", "kid_se")


def add_arguments(parser):
    """Adds the flags of evaluate.py."""
    add_runs(parser)
    parser.add_argument("--split", choices=data.SPLITS, default="test", help="images to score (default: test)")
    parser.add_argument("--max_images", type=whole(1), metavar="N", help="score the first N images only")
    parser.add_argument("--seed", type=whole(0), default=0, help="seed of the samples (default: 0)")
    parser.add_argument("--compare", action="store_true", help="compare the runs with the first one, image by image")
    text = "is: importance sampling; quadrature: a sum over a grid, for two latent dimensions at most, as good as "
    text += "exact; ais: annealed importance sampling by Hamiltonian steps, slow (default: is)"
    parser.add_argument("--estimator", choices=tuple(ESTIMATORS), default="is", help=text)
    text = "samples an image (default: is 1000, or 5000 from posterior of vae and hvae; ais, where they are chains, 16)"
    parser.add_argument("--num_samples", type=whole(2), metavar="S", help=text)
    text = (
        "is: what is drawn from, a density fitted to p(z|x) of each image, or its posterior q(z|x), as in most papers, "
    )
    text += "which needs far more samples (default: fitted; posterior for deep models)"
    parser.add_argument("--proposal", choices=("fitted", "posterior"), help=text)
    text = "is: as many samples as each image needs for this standard error, instead of --num_samples"
    parser.add_argument("--target_se", type=number(1e-4), metavar="NATS", help=text)
    text = f"is: the most that --target_se may take of an image (default: {MOST_SAMPLES})"
    parser.add_argument("--max_samples", type=whole(2), metavar="M", help=text)
    text = "ais: temperatures between start and p(z|x) (default: 100)"
    parser.add_argument("--num_steps", type=whole(1), metavar="T", help=text)
    parser.add_argument("--leapfrogs", type=whole(1, 100), metavar="L", help="ais: of each step (default: 5)")
    text = "ais: where chains begin, at q(z|x) or p(z), which needs many more steps (default: posterior)"
    parser.add_argument("--start", choices=("posterior", "prior"), help=text)
    text = "ais: also N images drawn from the model, with bounds from both sides; their gap says how far to trust the "
    text += f"others' scores (default: {SIMULATED}, if given)"
    parser.add_argument("--bracket", type=whole(1), nargs="?", const=SIMULATED, metavar="N", help=text)
    text = "of what is computed at once (default: on a CPU, where more gains nothing, 1/8 at most or what 200 samples "
    text += "take; on a GPU up to 1; less where less is free)"
    parser.add_argument("--max_memory", type=number(1e-3), metavar="GIB", help=text)
    text = "also FID and KID of samples, by the features of this network, which features.py trains, or one of your own"
    parser.add_argument("--features", metavar="FILE.keras", type=path, help=text)
    text = f"with --features: images drawn from the model (default: {GENERATED})"
    parser.add_argument("--num_generated", type=whole(2), metavar="N", help=text)


def run(args):
    """Scores the runs that the flags name and prints tables; returns the exit code."""
    own = {name for usual in ESTIMATORS.values() for name in usual}
    runs = chosen_runs(args)[::-1]
    grid = leaderboard.runs_in(grid_folders(args)) if args.gs_key else []  # now: scoring may take hours
    given = {name: getattr(args, name) for name in own}

    def scoring(one):
        return Scoring.of(args.estimator, args.seed, args.max_memory, **usual(one, args.estimator, given))

    if args.compare and len(runs) < 2:
        raise UserError("--compare needs two runs or more")
    if args.num_generated and not args.features:
        raise UserError("--num_generated goes with --features")
    if len(runs) == 1:
        check(runs[0], scoring(runs[0]))  # of several, the others are worth having
    for one in runs:
        scoring(one)  # of strange settings nothing is scored
        if args.compare and (one.config.likelihood_tag, one.image_shape) != (
            runs[-1].config.likelihood_tag,
            runs[-1].image_shape,
        ):
            raise UserError(
                f"{one.path} and {runs[-1].path} have other images or another likelihood: nothing to compare"
            )
    backend.settle(args.backend, args.device)
    backend.start(args.device)
    network = features.load(args.features) if args.features else None
    count = args.num_generated or GENERATED
    found, failed = [], False
    while runs:  # popped, so that one model at a time is in memory
        try:
            one = runs.pop()
            found.append(evaluate(one, scoring(one), args.split, args.max_images, network, count))
            say(found[-1])
        except UserError as error:  # the scores of the others are worth having
            print(f"error: {error}", file=sys.stderr)
            failed = True
    if found:
        report(found, grid, args.split, network)
    if args.compare and not failed:
        report_compared(found)
    return 2 if failed else 0


def report(found, grid, split, network):
    """Prints the tables of what was `found`, a list of Scored, and the ranking of the Runs of the `grid`, if any."""
    said = "; ".join(dict.fromkeys(one.scoring.said for one in found))
    print(f"{split} split, {said}; nats an image, but for bits_per_dim")
    print(table([row(one, COLUMNS) | {"note": one.metrics["note"]} for one in found]))
    print("\nlatents, the top layer first")
    print(table([row(one, LATENTS) for one in found]))
    if network:
        print(f"\nall {split} images against samples and against real ones, by the features of {network.said}")
        print(table([line for one in found for line in distance_rows(one)]))
    if grid:
        leaderboard.report(grid, {one.name: one.metrics for one in found})


def report_compared(found):
    """Prints the table of what was found of each run but the first, compared with that."""
    print(f"\ncompared with {found[0].name}, image by image, in nats")
    print(table([compared(one, found[0]) for one in found[1:]]))


def row(one, columns):
    """A line of a table: the name of what was scored, and these of its metrics."""
    return {"run": one.name} | {name: shown(one.metrics[name]) for name in columns}


def distance_rows(one):
    """Two lines of a table: the distances of a run's samples, and those of real images."""
    found = one.metrics["distances"]
    rows = {"samples": found, "real images": found["real"]}
    return [
        {"run": one.name, "images": name} | {column: row[column] for column in DISTANCES} for name, row in rows.items()
    ]


def shown(value):
    """A value of one layer or several as a cell of the table: 12.3 + 4.56."""
    if not isinstance(value, list):
        return value
    return " + ".join(f"{one:.2f}" if isinstance(one, float) else str(one) for one in value)


def say(one):
    """Prints what has to be said of a score beside its numbers; of what is doubtful, on stderr."""
    metrics, name = one.metrics, one.name
    if one.config.is_autoregressive:
        height, width, _ = metrics["image_shape"]
        print(f"{name}: to sample an image costs {height} x {width} passes through the decoder, one for each pixel")
    if not models.MODELS[one.config.model].is_exact:
        steps = one.config.diffusion_steps
        print(f"{name}: log p(x) is that of {steps} steps of diffusion, as samples are drawn, each weighed along its "
              "path; the ELBO is that of infinitely many")  # fmt: skip
    for warning in (doubts(one), missed(one)):
        if warning:
            print(f"warning: {name}: {warning}", file=sys.stderr)
    if metrics.get("acceptance") is not None:
        print(f"{name}: {metrics['acceptance']:.0%} of all steps were accepted")
    if bracket := metrics.get("bracket"):
        print(f"{name}: on {bracket['num_images']} images drawn from the model, log p(x) is above "
              f"{bracket['lower']:.2f} and below {bracket['upper']:.2f}, a gap of {bracket['gap']:.3f}")  # fmt: skip


def doubts(one):
    """A sentence on the images whose weights have too heavy a tail, if there are any."""
    if not one.metrics["doubtful"]:
        return ""
    settings = one.scoring.settings
    remedy = "raise --max_samples" if settings.get("target_se") else "raise --num_samples"
    if one.scoring.estimator == "ais":
        remedy = "raise --num_steps"
    elif settings["proposal"] == "posterior" and not one.config.is_deep:
        remedy = "try --proposal fitted"
    khat = one.estimate.khat
    reason = "few of their samples count"
    if not np.isnan(khat).all():
        worst = np.nanargmax(khat)
        limit = highest_khat(one.estimate.samples[worst])
        reason = f"Pareto k-hat is above {limit:.2g} (it is {khat[worst]:.2f} for image {worst}) or {reason}"
    return (
        f"the estimates of {one.metrics['doubtful']} of {one.metrics['num_images']} images are not to be trusted, nor "
        f"are their errors: {reason}; {remedy}"
    )


def missed(one):
    """A sentence on the images whose error did not come down to --target_se, if there are any."""
    target, errors = one.scoring.settings.get("target_se"), one.estimate.log_px_se
    if target is None or (errors <= target).all():
        return ""
    return (
        f"--target_se {target} was not reached for {np.count_nonzero(errors > target)} of {len(errors)} images with "
        f"{one.scoring.settings['num_samples']} samples each, where it is up to {errors.max():.2g}; raise --max_samples"
    )


def main(argv=None):
    """The command line of evaluate.py; returns the exit code."""
    parser = Parser(prog="evaluate.py", description=__doc__)
    add_arguments(parser)
    return command(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
