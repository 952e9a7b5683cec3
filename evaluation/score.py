"""One run scored on held-out images: metrics, distances of samples, paired comparisons."""

import contextlib
import hashlib
import math
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

import experiment
from evaluation.distances import frechet, kernel
from evaluation.estimators import NotApplicableError, Scoring, error_of_mean, finite_or_none
from experiment import tracking
from experiment.record import git_commit, versions
from experiment.run import PER_IMAGE
from runtime.errors import UserError
from runtime.memory import is_out_of_memory
from runtime.progress import Progress

COLUMNS = ("num_images", "estimator", "log_px", "log_px_se", "log_px_se_images", "bits_per_dim", "elbo", "rate")
COLUMNS += ("distortion", "ess_median", "samples_mean", "doubtful", "seconds")
LATENTS = ("rates", "rates_se", "active_units", "units", "mutual_information", "marginal_kl", "components_in_use")
GENERATED = 10_000  # images, with --features
DRAWN_AT_ONCE = 500  # of these
FEW = 10  # effective samples, below which an estimate is unreliable whatever k-hat is
DOUBTFUL = 0.7  # Pareto k-hat, above which estimate and error are unreliable, however many samples there are
NORMALISING = 1_000_000  # draws that estimate the normaliser of a resampled prior
PIECE = 500  # images that are read at once


class Scored(NamedTuple):
    """A score of a run: its metrics, a dict, the `file` that has them, the Estimate of the images of these names, and
    what to do about unreliable estimates.
    """

    name: str
    config: experiment.Config
    scoring: Scoring
    metrics: dict
    file: Path
    estimate: object
    names: list
    remedy: str


def evaluate(run, scoring=None, split="test", max_images=None, network=None, count=GENERATED, temperature=1.0):
    """Scores one run, stores the result in its folder and returns it, a `Scored`. Stochastic, a function of the seed.

    With a features.Network, `count` images drawn from the model at a `temperature` are scored as well, see `distances`.
    `log_px` is the mean over images in nats; `log_px_se` its Monte-Carlo error, sqrt(sum se_i^2) / N, or for quadrature
    the mean of the images' errors; `log_px_se_images` the standard deviation over images / sqrt(N), like the
    `_se_images` of `elbo`, `rate` and `distortion`; `doubtful` the number of images whose estimate is unreliable;
    `diffusion_steps` those of the prior in log p(x), None for a model without (the ELBO has infinitely many). Raises
    UserError for a run that cannot be scored.
    """
    scoring = scoring or Scoring.of(run)
    if network:
        network.check(run.image_shape)
    run.check_writable()
    images, index = run.images(split, max_images), run.index(split, max_images)
    names, weights_sha256 = run.image_names(index), run.weights_sha256  # of the weights that are loaded now
    started = time.perf_counter()
    of_samples, tag = {}, ""
    if network:  # first, as the estimate may take hours
        of_samples["distances"] = distances(run, network, split, count, scoring.seed, temperature)
        tag = f"_F{network.sha256[:8]}_G{count}" + f"_t{temperature:g}" * (temperature != 1)
    labels = run.dataset.split(split).labels
    labels = None if labels is None else labels[index]
    scoring, estimate, latents, more = estimated(run, images, scoring, split, names, labels)
    pixels = math.nan if run.config.observation == "gaussian" else math.prod(run.image_shape)  # a density has no bits
    metrics = summary(estimate, pixels, scoring.entry.is_sampled) | latents._asdict() | scoring.settings
    metrics |= more | of_samples | {"estimator": scoring.estimator, "tag": scoring.tag + tag, "seed": scoring.seed}
    metrics |= {"seconds": round(time.perf_counter() - started, 3), "weights_sha256": weights_sha256}
    metrics |= circumstances(run, images, split)
    metrics["selection"] = "all" if len(index) == len(run.index(split)) else "random"
    per_image = {name: getattr(estimate, name) for name in PER_IMAGE}
    stored = run.save_evaluation(metrics, per_image | {"index": index}, names)
    tracked = {name: metrics[name] for name in (*COLUMNS, *LATENTS, "clusters")} | of_samples
    tracking.evaluated(run.path, run.config, stored.stem, tracked, run.status.get("best_epoch", 0))
    remedy = scoring.entry.remedy(run, scoring.settings)
    return Scored(run.name, run.config, scoring, metrics, stored, estimate, names, remedy)


def estimated(run, images, scoring, split, names, labels=None):
    """The Scoring that suits these images, their Estimate and Latents, and metrics of the estimator's own.

    That Scoring is the fallback where the one that was asked for turns out not to apply. Raises UserError where memory
    is too small, weights are unusable, or the estimator fails.
    """
    from evaluation.compiled import NotFiniteError
    from evaluation.latents import latents

    with progress(run, len(images)) as bar:
        try:
            renormalise = getattr(run.model.top_prior, "renormalise", None)
            of_prior = renormalise(NORMALISING, scoring.seed) if renormalise else {}
            statistics = latents(run.model, images, scoring.seed, labels)  # first: it takes seconds, and may fail too
            try:
                estimate, more = scoring.entry.estimate(run, images, scoring, split, bar)
            except NotApplicableError as error:
                if scoring.fallback is None:
                    raise UserError(f"{error}; {scoring.entry.remedy(run, scoring.settings)}") from error
                scoring = scoring.fallback
                bar.reset()
                bar.write(f"note: {error}; scored with --estimator {scoring.estimator} instead", file=sys.stderr)
                estimate, more = scoring.entry.estimate(run, images, scoring, split, bar)
            NotFiniteError.check(0, estimate.log_px)
        except NotFiniteError as error:
            said = f"log p(x) of {split} image {names[error.image]} is not finite; the weights are not usable"
            raise UserError(f"{run.path}: {said}") from error
    return scoring, estimate, statistics.with_rate(float(np.mean(estimate.rate))), more | of_prior


@contextlib.contextmanager
def progress(run, total):
    """A Progress over `total` images. "Out of memory" in the block is a UserError."""
    try:
        with Progress(total=total, unit=" images", desc=run.path.name[:40]) as bar:
            yield bar
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"out of memory while {run.path} is scored; the work is done in small chunks whatever --num_samples and "
            "--max_images are, so try a small --max_memory, or --device cpu"
        ) from error


def circumstances(run, images, split):
    """What was scored, and with which code: a part of the metrics, a dict."""
    import keras

    found = {"num_images": len(images), "image_shape": list(run.image_shape), "note": run.note}
    found["precision"] = run.precision
    found |= {"data_set": run.dataset.name, "split": run.part(split)}
    found |= {"diffusion_steps": run.config.settings.get("diffusion_steps"), "images_sha256": sha256_of(images)}
    found |= {"data_sha256": run.dataset.sha256, "git_commit": git_commit(), "backend": keras.backend.backend()}
    return found | {"versions": versions()}


def sha256_of(images):
    """The checksum of the bytes of images (N, H, W, C), in pieces: they need not fit into memory."""
    digest = hashlib.sha256()
    for start in range(0, len(images), PIECE):
        digest.update(np.ascontiguousarray(images[start : start + PIECE]))
    return digest.hexdigest()


def distances(run, network, split, count, seed, temperature=1.0):
    """How far `count` samples, means of p(x|z) with z from the prior, are from all grey images of a split.

    Where all images of the split are black and white, means are no such images, and samples are draws of p(x|z). Of a
    deep model, the prior's variances are multiplied by `temperature`. A dict: which of both the `pixels` are, the
    seconds that drawing an image took, FID and KID (see evaluation/distances.py) with the features of `network`, the
    number of images on both sides, the same for `real` images of another split, which is the best that a model can
    reach, and the network. Stochastic, a function of `seed`. Raises UserError for too few images, too little memory, or
    unusable weights.
    """
    beside_train = "val" if run.has_val else "test"  # otherwise val is a part of train
    other = run.dataset.split(beside_train if split == "train" else "train")
    chosen = np.random.default_rng(seed).permutation(len(other.images))[:count]  # equally many, as FID is biased
    images = run.dataset.split(split).grey()
    run.check_data(run.dataset)
    if min(len(images), len(chosen)) < 2:
        raise UserError(f"{run.path} has fewer than two images in a split, too few for --features")
    with progress(run, count) as bar:
        held_out, real = network.of(images), network.of(other.grey(np.sort(chosen)))
        pieces = (images[start : start + PIECE] for start in range(0, len(images), PIECE))
        is_binary = run.config.observation == "bernoulli" and all(np.isin(piece, (0, 1)).all() for piece in pieces)
        batches = draws(run, count, seed, bar, temperature, is_binary)
        parts, seconds = zip(*[(network.of(batch), spent) for batch, spent in batches], strict=True)
    found = distance(held_out, np.concatenate(parts), seed) | {"real": distance(held_out, real, seed)}
    found |= {
        "pixels": "drawn" if is_binary else "means",
        "temperature": temperature,
        "seconds_per_image": sum(seconds) / count,
    }
    about = {name: network.record.get(name) for name in ("data_set", "layer", "test_accuracy", "note")}
    return found | {"network": about | {"file": network.path.name, "sha256": network.sha256}}


def draws(run, count, seed, bar, temperature=1.0, is_binary=False):
    """Yields batches of grey images from a run's model, `count` in all, arrays (n, H, W, C), and the seconds of each.

    They are means of p(x|z) or, if `is_binary`, pixels that are 1 with that probability. Stochastic. Raises UserError
    for an image that is not finite.
    """
    from models.base import generator

    noise, rng = generator(seed), np.random.default_rng(seed)
    for start in range(0, count, DRAWN_AT_ONCE):
        n = min(DRAWN_AT_ONCE, count - start)
        started = time.perf_counter()
        if temperature == 1:
            images = np.asarray(run.model.sample(n, noise))
        else:
            images = np.asarray(run.model.decode(run.model.warmer(n, temperature, noise), noise))
        seconds = time.perf_counter() - started
        if not np.isfinite(images).all():
            raise UserError(f"{run.path}: images drawn from the model are not finite; the weights are not usable")
        yield (rng.random(images.shape) < images).astype("float32") if is_binary else images, seconds
        bar.update(n)


def distance(held_out, others, seed):
    """FID and KID of two sets of features, (N, F) and (M, F), and the sizes of the sets: a dict."""
    found = {"fid": frechet(others, held_out)} | kernel(others, held_out, seed)
    return found | {"num_images": len(others), "num_held_out": len(held_out)}


def summary(estimate, pixels, is_sampled):
    """The means of an `Estimate` over N images, with both standard errors of log p(x); None for what is unknown."""
    log_px, n, samples = float(np.mean(estimate.log_px)), len(estimate.log_px), estimate.samples
    error = np.sqrt(np.sum(np.square(estimate.log_px_se))) / n if is_sampled else np.mean(estimate.log_px_se)
    means = {"log_px_se": error, "bits_per_dim": -log_px / (pixels * math.log(2))}
    means |= {name: np.mean(getattr(estimate, name)) for name in ("elbo", "rate", "distortion")}
    means |= {"ess_median": np.median(estimate.ess), "samples_mean": np.mean(samples), "samples_max": np.max(samples)}
    found = {"log_px": log_px} | {name: finite_or_none(value) for name, value in means.items()}
    names = ("log_px", "elbo", "rate", "distortion")
    found |= {f"{name}_se_images": error_of_mean(getattr(estimate, name)) for name in names}
    return found | {"doubtful": int(np.count_nonzero(doubtful(estimate)))}


def doubtful(estimate):
    """For each image of an Estimate, whether log p(x) and its error are unreliable: (N,), booleans.

    They are where k-hat is above `highest_khat`, or fewer than ten samples are effective: k-hat knows no weights that
    were not drawn, and a few draws show no tail.
    """
    return (estimate.ess < FEW) | (estimate.khat > highest_khat(estimate.samples))


def highest_khat(samples):
    """The Pareto k-hat above which S samples, S > 1, are too few: min(1 - 1 / log10 S, 0.7) (Vehtari et al. 2024)."""
    return np.minimum(1 - 1 / np.log10(np.maximum(samples, 2)), DOUBTFUL)


def compared(one, base):
    """A row of the table of paired comparisons: the mean of log p(x) minus the other run's, and its standard errors.

    `se` is the error over images, sd(difference) / sqrt(N); `estimators_se` that of both estimates, log Z included;
    `better` the share of images with a higher log p(x); `elbo_difference` and `elbo_se` are the same for the ELBO,
    which stays reliable with many latents. Raises UserError where the images differ.
    """
    if one.metrics["images_sha256"] != base.metrics["images_sha256"]:
        raise UserError(f"{one.name} and {base.name} were not scored on the same images")
    difference = one.estimate.log_px - base.estimate.log_px
    elbo = one.estimate.elbo - base.estimate.elbo
    errors = [scored.metrics.get(name) or 0.0 for scored in (one, base) for name in ("log_px_se", "log_z_se")]
    found = {"run": one.name, "difference": float(difference.mean()), "se": error_of_mean(difference)}
    found |= {"estimators_se": math.hypot(*errors), "better": float(np.mean(difference > 0))}
    return found | {"elbo_difference": finite_or_none(elbo.mean()), "elbo_se": error_of_mean(elbo)}
