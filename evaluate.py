"""Score trained runs on held-out images: python evaluate.py runs/RUN [runs/RUN ...] --estimator is"""

import contextlib
import hashlib
import math
import sys
import time
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

import commandline
import data
import engine
import experiment
import features
import leaderboard
import models
import tracking
from commandline import number, whole
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
    "samples_mean",
    "doubtful",
    "seconds",
)
LATENTS = ("rates", "active_units", "units", "mutual_information", "marginal_kl", "components_in_use")
DISTANCES = ("num_images", "num_held_out", "fid", "kid", "kid_se")
ESTIMATORS = {  # which flags go with each, and their usual values
    "is": {"num_samples": None, "proposal": "fitted", "target_se": None, "max_samples": None},
    "quadrature": {},
    "ais": {"num_samples": 16, "num_steps": 100, "leapfrogs": 5, "start": "posterior", "bracket": None},
}
SHORT = {"target_se": "se", "num_samples": "S", "num_steps": "T", "leapfrogs": "L"}  # in the names of files
SHORT |= {"bracket": "B", "seed": "seed"}
SAMPLES = {"fitted": 1000, "posterior": 5000}  # of an image
DEEP_SAMPLES = 1000  # of an image by a deep model, as in the paper of DVP-VAE
MOST_FITTED = 256  # latent dimensions: a density is fitted by some 6 gradients for each, and holds a matrix
MOST_SAMPLES = 100_000  # with --target_se
SIMULATED = 64  # images, with --bracket
GENERATED = 10_000  # images, with --features
DRAWN_AT_ONCE = 500  # of these
FEW = 10  # effective samples, below which an estimate is doubtful whatever k-hat is
PIECE = 500  # images whose bytes are hashed at once
MOST_READ = 2**28  # bytes of images that are read from disk at once, for quadrature
DOUBTFUL = 0.7  # Pareto k-hat, above which neither estimate nor error can be trusted, however many samples there are


def add_arguments(parser):
    """Adds the flags of evaluate.py."""
    commandline.add_runs(parser)
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
    parser.add_argument("--features", metavar="FILE.keras", type=commandline.path, help=text)
    text = f"with --features: images drawn from the model (default: {GENERATED})"
    parser.add_argument("--num_generated", type=whole(2), metavar="N", help=text)


class Scoring(NamedTuple):
    """How log p(x) is estimated: an estimator, its own settings by name, the seed, and bytes to be used at once."""

    estimator: str
    settings: dict
    seed: int
    max_bytes: int | None

    @classmethod
    def of(cls, estimator="is", seed=0, max_memory=None, **given):
        """The Scoring with these settings, None standing for the usual value. Raises UserError for strange ones."""
        usual = ESTIMATORS[estimator]
        given = {name: value for name, value in given.items() if value is not None}
        if strange := [name for name in given if name not in usual]:
            owners = " or ".join(name for name, its in ESTIMATORS.items() if strange[0] in its)
            raise UserError(f"--{strange[0]} goes with --estimator {owners}, not {estimator}")
        settings = usual | given
        if given.get("target_se") is not None:
            if "num_samples" in given:
                raise UserError("--target_se says how many samples there are; limit them by --max_samples")
            settings |= {"num_samples": given.get("max_samples", MOST_SAMPLES)}
        elif "max_samples" in given:
            raise UserError("--max_samples goes with --target_se; without it, say --num_samples")
        if settings.get("num_samples", 0) is None:
            settings["num_samples"] = SAMPLES[settings["proposal"]]
        settings.pop("max_samples", None)
        return cls(estimator, settings, seed, None if max_memory is None else int(min(max_memory * 2**30, sys.maxsize)))

    @property
    def tag(self):
        """Part of the names of files, of all that changes a score: is_S5000, isfitted_se0.05, ais_S16_T100_L5_B64."""
        values = self.settings | {"seed": self.seed or None}
        if self.settings.get("target_se") and values["num_samples"] == MOST_SAMPLES:
            del values["num_samples"]
        numbers = [f"{short}{values[name]}" for name, short in SHORT.items() if values.get(name) is not None]
        fitted = "fitted" * (self.settings.get("proposal") == "fitted")
        prior = "prior" * (self.settings.get("start") == "prior")
        return "_".join([f"{self.estimator}{fitted}{prior}", *numbers])

    @property
    def said(self):
        """The same in words, for the line above the table."""
        words = {name: value for name, value in self.settings.items() if value is not None}
        if "target_se" in words:
            words["max_samples"] = words.pop("num_samples")
        return ", ".join([self.estimator, *(f"{name} {value}" for name, value in words.items())])


class Scored(NamedTuple):
    """What `evaluate` finds of a run: the metrics that it stores, a dict, and the Estimate of each image."""

    name: str
    config: experiment.Config
    scoring: Scoring
    metrics: dict
    estimate: object


def run(args):
    """Scores the runs that the flags name and prints tables; returns the exit code."""
    own = {name for usual in ESTIMATORS.values() for name in usual}
    runs = commandline.chosen_runs(args)[::-1]
    grid = leaderboard.runs_in(commandline.grid_folders(args)) if args.gs_key else []  # now: scoring may take hours
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
        if args.compare and (one.config.law, one.image_shape) != (runs[-1].config.law, runs[-1].image_shape):
            raise UserError(
                f"{one.path} and {runs[-1].path} have other images or another likelihood: nothing to compare"
            )
    engine.settle(args.backend, args.device)
    engine.start(args.device)
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
    print(commandline.table([row(one, COLUMNS) | {"note": one.metrics["note"]} for one in found]))
    print("\nlatents, the top layer first")
    print(commandline.table([row(one, LATENTS) for one in found]))
    if network:
        print(f"\nall {split} images against samples and against real ones, by the features of {network.said}")
        print(commandline.table([line for one in found for line in distance_rows(one)]))
    if grid:
        leaderboard.report(grid, {one.name: one.metrics for one in found})


def report_compared(found):
    """Prints the table of what was found of each run but the first, compared with that."""
    print(f"\ncompared with {found[0].name}, image by image, in nats")
    print(commandline.table([compared(one, found[0]) for one in found[1:]]))


def usual(run, estimator, given):
    """The settings `given`, a dict in which None stands for the usual value, with those that are usual for the run."""
    if estimator != "is" or given["proposal"] or not too_many(run):
        return given
    counted = given["num_samples"] or given["target_se"] or not run.config.is_deep
    return given | {"proposal": "posterior"} | ({} if counted else {"num_samples": DEEP_SAMPLES})


def too_many(run):
    """Whether a run has too many latents, or of too vague a density, for another to be fitted to it."""
    return run.config.is_deep or run.latent_dim > MOST_FITTED


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


def check(run, scoring):
    """Raises UserError where this estimator cannot score the run."""
    if scoring.estimator == "quadrature" and run.latent_dim > 2:
        raise UserError(
            f"--estimator quadrature goes as far as 2 latent dimensions, and {run.path} has {run.latent_dim}; "
            "try --estimator is"
        )
    if scoring.estimator == "quadrature" and run.config.is_deep:
        raise UserError(f"--estimator quadrature is for vae and hvae, and {run.path} is a {run.config.model}")
    if scoring.settings.get("proposal") == "fitted" and too_many(run):
        raise UserError(
            f"--proposal fitted is for vae and hvae with {MOST_FITTED} latent dimensions at most, and {run.path} is a "
            f"{run.config.model} with {run.latent_dim}; try --proposal posterior"
        )
    if scoring.estimator == "ais" and not models.MODELS[run.config.model].is_exact:
        raise UserError(
            f"--estimator ais needs the density of the prior, and that of {run.path} is known by estimates only; try "
            "--estimator is"
        )
    if scoring.estimator == "quadrature" and run.config.is_autoregressive:
        raise UserError(
            f"--estimator quadrature does not go with the network of {run.path}, which would have to pass over each "
            "image at each point; try --estimator is"
        )


def evaluate(run, scoring=None, split="test", max_images=None, network=None, count=GENERATED):
    """Scores one run as of `scoring`, stores the result in its folder and returns it, a `Scored`.

    With a features.Network, `count` images drawn from the model are scored, too, see `distances`.

    `log_px` is the mean over images in nats; `log_px_se` its Monte-Carlo error, sqrt(sum se_i^2) / N, or for quadrature
    the mean of the images' bounds; `log_px_se_images` the standard deviation over images / sqrt(N), as of `elbo`,
    `rate` and `distortion` their `_se_images`; `doubtful` the number of images that `doubtful` marks; `diffusion_steps`
    those of the prior whose log p(x) it is, None of a model without; its ELBO has infinitely many. Raises UserError for
    a run that cannot be scored.
    """
    scoring = scoring or Scoring.of(**usual(run, "is", dict.fromkeys(ESTIMATORS["is"])))
    check(run, scoring)
    if network:
        network.check(run.image_shape)
    run.check_writable()
    images = run.images(split, max_images)
    weights_sha256 = run.weights_sha256  # of those that are loaded now, should training go on
    started = time.perf_counter()
    apart, tag = {}, scoring.tag
    if network:  # first, as the estimate may take hours
        apart = {"distances": distances(run, network, split, count, scoring.seed)}
        tag += f"_F{network.sha256[:8]}_G{count}"
    estimate, carried, more = estimated(run, images, scoring, split)
    metrics = (
        summary(estimate, dimensions(run), is_sampled=scoring.estimator != "quadrature")
        | carried._asdict()
        | more
        | apart
        | {name: value for name, value in scoring.settings.items() if name != "bracket"}
        | {"estimator": scoring.estimator, "tag": tag, "seed": scoring.seed}
        | {"seconds": round(time.perf_counter() - started, 3), "weights_sha256": weights_sha256}
        | circumstances(run, images, split)
    )
    if not math.isfinite(metrics["log_px"]):
        raise unusable(run, split, int(np.flatnonzero(~np.isfinite(estimate.log_px))[0]))
    per_image = {name: getattr(estimate, name) for name in experiment.PER_IMAGE}
    stored = run.save_evaluation(metrics, per_image | {"index": np.arange(len(images))})
    told = {name: metrics[name] for name in (*COLUMNS, *LATENTS)} | apart
    tracking.evaluated(run.path, run.config, stored.stem, told, run.status.get("best_epoch", 0))
    return Scored(run.name, run.config, scoring, metrics, estimate)


def circumstances(run, images, split):
    """What was scored, and by which code, for the metrics: a dict."""
    import keras

    return {
        "num_images": len(images),
        "image_shape": list(run.image_shape),
        "split": split,
        "note": run.note,
        "diffusion_steps": run.config.settings.get("diffusion_steps"),
        "images_sha256": sha256_of(images),
        "data_sha256": run.dataset.sha256,
        "git_commit": experiment.git_commit(),
        "backend": keras.backend.backend(),
        "versions": experiment.versions(),
    }


def sha256_of(images):
    """The checksum of the bytes of images (N, H, W, C), in pieces: they need not be in memory."""
    digest = hashlib.sha256()
    for start in range(0, len(images), PIECE):
        digest.update(np.ascontiguousarray(images[start : start + PIECE]))
    return digest.hexdigest()


def at_once(scoring):
    """The bytes that may be computed on at once; None, what the estimators choose for a CPU's caches."""
    if scoring.max_bytes is not None:
        return scoring.max_bytes
    share = engine.free_memory() // 8
    if engine.has_gpu():
        return min(2**30, share)
    return None if share > 2**28 else share // 4


def unusable(run, split, image):
    """The UserError for weights that give an image no log p(x)."""
    return UserError(f"{run.path}: log p(x) of {split} image {image} is not finite; the weights are not usable")


@engine.forgetting_graphs()
def estimated(run, images, scoring, split):
    """The Estimate and the Latents of these images, and metrics of the estimator's own.

    Raises UserError where memory is too small, weights are unusable, or an integral is not resolved.
    """
    from models.diagnostics import latents
    from models.likelihood import NotFiniteError
    from models.quadrature import NotResolvedError

    with progress(run, len(images)) as bar, enough_memory(run):
        try:
            carried = latents(run.model, images, scoring.seed)  # first: it takes seconds, and may fail, too
            estimate, more = ESTIMATE[scoring.estimator](run, images, scoring, split, bar)
            return estimate, carried, more
        except NotFiniteError as error:
            raise unusable(run, split, error.image) from error
        except NotResolvedError as error:
            raise UserError(f"{run.path}: {error}; try --estimator is") from error


def progress(run, total):
    """A bar of so many images, silent where the output is no terminal."""
    return tqdm(total=total, unit="image", desc=run.path.name[:40], disable=not sys.stderr.isatty())


@contextlib.contextmanager
def enough_memory(run):
    """Turns what the block raises for want of memory into a UserError."""
    try:
        yield
    except Exception as error:
        if not engine.is_out_of_memory(error):
            raise
        raise UserError(
            f"out of memory while {run.path} is scored; it goes in small chunks whatever --num_samples and "
            "--max_images say, so try a small --max_memory, or --device cpu"
        ) from error


def by_importance_sampling(run, images, scoring, split, bar):
    """An Estimate, and nothing else."""
    from models import likelihood

    arguments = (run.model, images, scoring.settings["num_samples"], scoring.seed, bar.update)
    rest = {name: scoring.settings[name] for name in ("proposal", "target_se")}
    return likelihood.importance_sampling(*arguments, max_bytes=at_once(scoring), **rest), {}


def by_quadrature(run, images, scoring, split, bar):
    """An Estimate, and nothing else. Raises UserError for more images on disk than memory should hold."""
    from models.quadrature import quadrature

    if isinstance(images, data.Grey):
        if (most := MOST_READ // (4 * math.prod(images.shape[1:]))) < len(images):
            raise UserError(f"--estimator quadrature has all images in memory at once; add --max_images {most}")
        images = images[:]
    return quadrature(run.model, images, progress=bar.update, seed=scoring.seed, max_bytes=at_once(scoring)), {}


def by_annealing(run, images, scoring, split, bar):
    """An Estimate, with the acceptance and, where it is asked for, the bracket on simulated images."""
    from models.ais import AnnealedSampling, Annealing

    settings = scoring.settings
    annealing = Annealing(settings["num_samples"], settings["num_steps"], settings["leapfrogs"], settings["start"])
    most = max(len(images), settings["bracket"] or 0)
    sampling = AnnealedSampling(run.model, annealing, scoring.seed, max_bytes=at_once(scoring), images=most)
    bar.set_postfix_str("choosing step sizes")
    sampling.tune(run.images("train" if split == "val" else "val"))  # images that are not scored
    bar.set_postfix_str("")
    estimate = sampling.log_px(images, bar.update)
    more = {"acceptance": known(sampling.acceptance)}
    if count := settings["bracket"]:
        bar.set_postfix_str("bracketing")
        bracket = sampling.bracket(count)
        gap = bracket.upper - bracket.lower
        error = float(gap.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan
        means = {"lower": bracket.lower, "upper": bracket.upper, "gap": gap}
        more["bracket"] = {name: float(values.mean()) for name, values in means.items()}
        more["bracket"] |= {"gap_se": known(error), "num_images": count}
    return estimate, more


def distances(run, network, split, count, seed):
    """How far `count` images drawn from the model's prior, means of p(x|z), are from all grey images of a split.

    A dict: FID and KID (see models/distances.py) by the features of `network`, how many images were on both sides, the
    same of `real` images of another split, the floor of what a model can reach, and what network it was. Stochastic, a
    function of `seed`. Raises UserError where there are too few images, memory is too small, or weights are unusable.
    """
    other = run.dataset.split("val" if split == "train" else "train")
    chosen = np.random.default_rng(seed).permutation(len(other.images))[:count]  # as many, for the bias of FID
    images = run.dataset.split(split).grey()
    run.check_data(run.dataset)
    if min(len(images), len(chosen)) < 2:
        raise UserError(f"{run.path} has fewer than two images in a split, too few for --features")
    with progress(run, count) as bar, enough_memory(run):
        held_out, real = network.of(images), network.of(other.grey(np.sort(chosen)))
        drawn = np.concatenate([network.of(batch) for batch in draws(run, count, seed, bar)])
    known_of_it = {name: network.record.get(name) for name in ("data_set", "layer", "test_accuracy")}
    return (
        distance(held_out, drawn, seed)
        | {"real": distance(held_out, real, seed)}
        | {"network": known_of_it | {"file": network.path.name, "sha256": network.sha256}}
    )


def draws(run, count, seed, bar):
    """Batches of grey images drawn from a run's prior, `count` in all: arrays (n, H, W, C). Stochastic.

    Raises UserError where one is not finite.
    """
    from models.base import generator

    noise = generator(seed)
    for start in range(0, count, DRAWN_AT_ONCE):
        n = min(DRAWN_AT_ONCE, count - start)
        images = np.asarray(run.model.sample(n, noise))
        if not np.isfinite(images).all():
            raise UserError(f"{run.path}: images drawn from the model are not finite; the weights are not usable")
        yield images
        bar.update(n)


def distance(held_out, others, seed):
    """FID and KID of two sets of features, (N, F) and (M, F), and their numbers, as a dict."""
    from models.distances import frechet, kernel

    found = kernel(others, held_out, seed)
    return {
        "fid": frechet(others, held_out),
        "kid": found.value,
        "kid_se": known(found.se),
        "kid_subsets": found.subsets,
        "kid_subset_size": found.subset_size,
        "num_images": len(others),
        "num_held_out": len(held_out),
    }


ESTIMATE = {"is": by_importance_sampling, "quadrature": by_quadrature, "ais": by_annealing}


def dimensions(run):
    """D of log p(x) in bits a dimension, -log2 p(x) / D; nan where p(x) is a density, which is no number of bits."""
    return math.nan if run.config.observation == "gaussian" else math.prod(run.image_shape)


def summary(estimate, dimensions, is_sampled=True):
    """The means over N images of an `Estimate`, with both standard errors of log p(x); None for what is not known."""
    n = len(estimate.log_px)
    log_px = float(np.mean(estimate.log_px))
    error = np.sqrt(np.sum(np.square(estimate.log_px_se))) / n if is_sampled else np.mean(estimate.log_px_se)
    means = {
        "log_px_se": error,
        "bits_per_dim": -log_px / (dimensions * math.log(2)),
        "elbo": np.mean(estimate.elbo),
        "rate": np.mean(estimate.rate),
        "distortion": np.mean(estimate.distortion),
        "ess_median": np.median(estimate.ess),
        "samples_mean": np.mean(estimate.samples),
        "samples_max": np.max(estimate.samples),
    }
    for name in ("log_px", "elbo", "rate", "distortion"):
        means[f"{name}_se_images"] = np.std(getattr(estimate, name), ddof=1) / math.sqrt(n) if n > 1 else math.nan
    means = {name: known(value) for name, value in means.items()}
    return {"log_px": log_px} | means | {"doubtful": int(np.count_nonzero(doubtful(estimate)))}


def doubtful(estimate):
    """Whether neither log p(x) nor its error can be trusted, of each image of an Estimate: (N,).

    So it is where k-hat is above `highest_khat`, and where fewer than ten samples count, or half of all: weights that
    no draw has shown are not in k-hat, and among few draws there is no tail to see.
    """
    few = estimate.ess < np.minimum(FEW, estimate.samples / 2)
    return few | (estimate.khat > highest_khat(estimate.samples))


def highest_khat(samples):
    """Pareto k-hat above which S samples, S > 1, are too few: min(1 - 1 / log10 S, 0.7) (Vehtari et al. 2024)."""
    return np.minimum(1 - 1 / np.log10(np.maximum(samples, 2)), DOUBTFUL)


def known(value):
    """A number as a float; None, which JSON has, for one that is not finite."""
    return float(value) if math.isfinite(value) else None


def compared(one, base):
    """A line of the table of paired comparisons: the mean of log p(x) minus the other's, and its standard errors.

    `se` is that over images, sd(difference) / sqrt(N); `estimators_se` that of both estimates; `better` the share of
    images that gain; `elbo_difference` and `elbo_se` are of the ELBO, which for many latents is what can be trusted.
    Raises UserError where the images are not the same.
    """
    if one.metrics["images_sha256"] != base.metrics["images_sha256"]:
        raise UserError(f"{one.name} and {base.name} were not scored on the same images")
    difference = one.estimate.log_px - base.estimate.log_px
    of_elbo = one.estimate.elbo - base.estimate.elbo
    errors = [scored.metrics["log_px_se"] or 0.0 for scored in (one, base)]
    return {
        "run": one.name,
        "difference": float(difference.mean()),
        "se": error_of_mean(difference),
        "estimators_se": math.hypot(*errors),
        "better": float(np.mean(difference > 0)),
        "elbo_difference": known(of_elbo.mean()),
        "elbo_se": error_of_mean(of_elbo),
    }


def error_of_mean(values):
    """The standard error of the mean of N values, sd / sqrt(N); None for one value, or any that is not known."""
    return known(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


def main(argv=None):
    """The command line of evaluate.py; returns the exit code."""
    parser = commandline.Parser(prog="evaluate.py", description=__doc__)
    add_arguments(parser)
    return commandline.command(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
