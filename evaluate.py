"""Score trained runs on held-out images: python evaluate.py runs/RUN [runs/RUN ...] --num_samples 5000"""

import argparse
import hashlib
import math
import sys
import time

import numpy as np
from tqdm import tqdm

import commandline
import data
import engine
import experiment
from errors import UserError

COLUMNS = (
    "num_images",
    "log_px",
    "log_px_se",
    "log_px_se_images",
    "bits_per_dim",
    "elbo",
    "rate",
    "distortion",
    "ess_median",
    "seconds",
)
LATENTS = ("rates", "active_units", "units", "mutual_information", "marginal_kl", "components_in_use")


def add_arguments(parser):
    """Adds the flags of evaluate.py."""
    commandline.add_runs(parser)
    parser.add_argument("--num_samples", type=whole(1), default=5000, metavar="S", help="samples an image (5000)")
    parser.add_argument("--split", choices=data.SPLITS, default="test", help="images to score (default: test)")
    parser.add_argument("--max_images", type=whole(1), metavar="N", help="score the first N images only")
    parser.add_argument("--seed", type=whole(0), default=0, help="seed of the samples (default: 0)")


def whole(low, high=2**31 - 1):
    """A reader of integers from `low` to `high` for argparse."""

    def read(text):
        if not low <= (value := int(text)) <= high:
            raise argparse.ArgumentTypeError(f"{text} must be at least {low} and at most {high}")
        return value

    read.__name__ = "int"  # for argparse's "invalid int value"
    return read


def run(args):
    """Scores the runs that the flags name and prints one table; returns the exit code."""
    runs = commandline.chosen_runs(args)[::-1]
    engine.settle(args.backend, args.device)
    engine.start(args.device)
    rows, carried, failed = [], [], False
    while runs:  # popped, so that one model at a time is in memory
        one = runs.pop()
        try:
            metrics = evaluate(one, args.num_samples, args.split, args.max_images, args.seed)
        except UserError as error:  # the scores of the others are worth having
            print(f"error: {error}", file=sys.stderr)
            failed = True
            continue
        name = one.path.resolve().name  # `.` has none
        if one.config.is_autoregressive:
            height, width, _ = one.dataset.image_shape
            print(f"{name}: to sample an image costs {height} x {width} passes through the decoder, one for each pixel")
        rows.append({"run": name} | {column: metrics[column] for column in COLUMNS} | {"note": metrics["note"]})
        carried.append({"run": name} | {column: shown(metrics[column]) for column in LATENTS})
    if rows:
        print(f"{args.split} split, S = {args.num_samples}; nats an image, but for bits_per_dim")
        print(commandline.table(rows))
        print("\nlatents, the top layer first")
        print(commandline.table(carried))
    return 2 if failed else 0


def shown(value):
    """A value of one layer or several as a cell of the table: 12.3 + 4.56."""
    if not isinstance(value, list):
        return value
    return " + ".join(f"{one:.2f}" if isinstance(one, float) else str(one) for one in value)


def evaluate(run, num_samples, split="test", max_images=None, seed=0):
    """Scores one run, stores the result in its folder and returns the metrics, a dict.

    `log_px` is the mean over images in nats; `log_px_se` its Monte-Carlo error, sqrt(sum se_i^2) / N;
    `log_px_se_images` the standard deviation over images / sqrt(N). Raises UserError for a run that cannot be scored.
    """
    import keras

    run.check_writable()
    images = run.images(split)[:max_images]
    started = time.perf_counter()
    estimate, carried = estimated(run, images, num_samples, seed)
    metrics = (
        summary(estimate, images[0].size)
        | carried._asdict()
        | {
            "num_samples": num_samples,
            "num_images": len(images),
            "split": split,
            "estimator": "is",
            "seed": seed,
            "seconds": round(time.perf_counter() - started, 3),
            "note": run.note,
            "weights_sha256": hashlib.sha256(run.weights.read_bytes()).hexdigest(),
            "data_sha256": run.dataset.sha256,
            "git_commit": experiment.git_commit(),
            "backend": keras.backend.backend(),
            "versions": experiment.versions(),
        }
    )
    if not math.isfinite(metrics["log_px"]):
        bad = int(np.flatnonzero(~np.isfinite(estimate.log_px))[0])
        raise UserError(f"{run.path}: log p(x) of {split} image {bad} is not finite; the weights are not usable")
    per_image = {"log_px": estimate.log_px, "log_px_se": estimate.log_px_se, "ess": estimate.ess}
    run.save_evaluation(metrics, per_image | {"index": np.arange(len(images))})
    return metrics


def estimated(run, images, num_samples, seed):
    """The `Estimate` and the `Latents` of these images. Raises UserError where memory is too small."""
    from models.diagnostics import latents
    from models.likelihood import importance_sampling

    with tqdm(total=len(images), unit="image", desc=run.path.name[:40], disable=not sys.stderr.isatty()) as bar:
        try:
            carried = latents(run.model, images, seed)  # first: it takes seconds, and may fail, too
            return importance_sampling(run.model, images, num_samples, seed, progress=bar.update), carried
        except Exception as error:
            if not engine.is_out_of_memory(error):
                raise
            raise UserError(
                f"out of memory while {run.path} is scored; it goes in small chunks whatever --num_samples and "
                "--max_images say, so its --network_size or --num_pseudo_inputs is too large here: try --device cpu"
            ) from error


def summary(estimate, dimensions):
    """The means over N images of an `Estimate`, with both standard errors of log p(x); None where N or S is 1."""
    n = len(estimate.log_px)
    log_px = float(np.mean(estimate.log_px))
    error = float(np.sqrt(np.sum(np.square(estimate.log_px_se))) / n)
    spread = float(np.std(estimate.log_px, ddof=1)) / math.sqrt(n) if n > 1 else None
    return {
        "log_px": log_px,
        "log_px_se": error if math.isfinite(error) else None,
        "log_px_se_images": spread,
        "bits_per_dim": -log_px / (dimensions * math.log(2)),
        "elbo": float(np.mean(estimate.elbo)),
        "rate": float(np.mean(estimate.rate)),
        "distortion": float(np.mean(estimate.distortion)),
        "ess_median": float(np.median(estimate.ess)),
    }


def main(argv=None):
    """The command line of evaluate.py; returns the exit code."""
    parser = commandline.Parser(prog="evaluate.py", description=__doc__)
    add_arguments(parser)
    return commandline.command(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
