"""The estimators of log p(x) by name, with their settings, limits and remedies."""

import contextlib
import math
import sys
from typing import NamedTuple

from tqdm import tqdm

import data
import models
from runtime import backend
from runtime.errors import UserError
from runtime.memory import free_memory, is_out_of_memory

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


MOST_READ = 2**28  # bytes of images that are read from disk at once, for quadrature


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


def usual(run, estimator, given):
    """The settings `given`, a dict in which None stands for the usual value, with those that are usual for the run."""
    if estimator != "is" or given["proposal"] or not too_many(run):
        return given
    counted = given["num_samples"] or given["target_se"] or not run.config.is_deep
    return given | {"proposal": "posterior"} | ({} if counted else {"num_samples": DEEP_SAMPLES})


def too_many(run):
    """Whether a run has too many latents, or of too vague a density, for another to be fitted to it."""
    return run.config.is_deep or run.latent_dim > MOST_FITTED


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


def at_once(scoring):
    """The bytes that may be computed on at once; None, what the estimators choose for a CPU's caches."""
    if scoring.max_bytes is not None:
        return scoring.max_bytes
    share = free_memory() // 8
    if backend.has_gpu():
        return min(2**30, share)
    return None if share > 2**28 else share // 4


def unusable(run, split, image):
    """The UserError for weights that give an image no log p(x)."""
    return UserError(f"{run.path}: log p(x) of {split} image {image} is not finite; the weights are not usable")


def estimated(run, images, scoring, split):
    """The Estimate and the Latents of these images, and metrics of the estimator's own.

    Raises UserError where memory is too small, weights are unusable, or an integral is not resolved.
    """
    from evaluation.importance import NotFiniteError
    from evaluation.latents import latents
    from evaluation.quadrature import NotResolvedError

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
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"out of memory while {run.path} is scored; it goes in small chunks whatever --num_samples and "
            "--max_images say, so try a small --max_memory, or --device cpu"
        ) from error


def by_importance_sampling(run, images, scoring, split, bar):
    """An Estimate, and nothing else."""
    from evaluation import importance

    arguments = (run.model, images, scoring.settings["num_samples"], scoring.seed, bar.update)
    rest = {name: scoring.settings[name] for name in ("proposal", "target_se")}
    return importance.importance_sampling(*arguments, max_bytes=at_once(scoring), **rest), {}


def by_quadrature(run, images, scoring, split, bar):
    """An Estimate, and nothing else. Raises UserError for more images on disk than memory should hold."""
    from evaluation.quadrature import quadrature

    if isinstance(images, data.Grey):
        if (most := MOST_READ // (4 * math.prod(images.shape[1:]))) < len(images):
            raise UserError(f"--estimator quadrature has all images in memory at once; add --max_images {most}")
        images = images[:]
    return quadrature(run.model, images, progress=bar.update, seed=scoring.seed, max_bytes=at_once(scoring)), {}


def by_annealing(run, images, scoring, split, bar):
    """An Estimate, with the acceptance and, where it is asked for, the bracket on simulated images."""
    from evaluation.ais import AnnealedSampling, Annealing

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


ESTIMATE = {"is": by_importance_sampling, "quadrature": by_quadrature, "ais": by_annealing}


def known(value):
    """A number as a float; None, which JSON has, for one that is not finite."""
    return float(value) if math.isfinite(value) else None
