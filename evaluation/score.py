"""One run scored on held-out images: metrics, distances of samples, paired comparisons."""

import hashlib
import math
import time
from typing import NamedTuple

import numpy as np

import experiment
from evaluation.estimators import ESTIMATORS, Scoring, check, enough_memory, estimated, known, progress, unusable, usual
from experiment import tracking
from experiment.record import git_commit, versions
from experiment.run import PER_IMAGE
from runtime.errors import UserError

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


GENERATED = 10_000  # images, with --features
DRAWN_AT_ONCE = 500  # of these
FEW = 10  # effective samples, below which an estimate is doubtful whatever k-hat is
PIECE = 500  # images whose bytes are hashed at once


DOUBTFUL = 0.7  # Pareto k-hat, above which neither estimate nor error can be trusted, however many samples there are


class Scored(NamedTuple):
    """What `evaluate` finds of a run: the metrics that it stores, a dict, and the Estimate of each image."""

    name: str
    config: experiment.Config
    scoring: Scoring
    metrics: dict
    estimate: object


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
    per_image = {name: getattr(estimate, name) for name in PER_IMAGE}
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
        "git_commit": git_commit(),
        "backend": keras.backend.backend(),
        "versions": versions(),
    }


def sha256_of(images):
    """The checksum of the bytes of images (N, H, W, C), in pieces: they need not be in memory."""
    digest = hashlib.sha256()
    for start in range(0, len(images), PIECE):
        digest.update(np.ascontiguousarray(images[start : start + PIECE]))
    return digest.hexdigest()


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
    from evaluation.distances import frechet, kernel

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
