"""The estimators of log p(x): one entry each, with its flags, usual values, function, limits and remedy."""

import math
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

import data
import models
from evaluation import STARTS
from runtime import backend, memory, rules
from runtime.command import number, whole
from runtime.errors import UserError

SAMPLES, MANY = 1000, 5000  # per image; deep models take 1000 in any case, as in the paper of DVP-VAE
MOST_FITTED = 256  # latent dimensions: a fit takes some 6 gradients for each of them, and stores a D x D matrix
MOST = 100_000  # per image, with --target_se
SIMULATED = 64  # images, with --bracket
CHECKED, MORE_STARTS, FEWEST_CHECKED = 10, 16, 100  # images for which so many more modes are looked for, of so many
MISSED = 0.05  # nats, on top of three standard errors, by which a missed mode raises log p(x)
MOST_READ = 2**28  # bytes of images on disk that quadrature reads into memory
SHALLOW = ", ".join(name for name, entry in models.MODELS.items() if not entry.is_deep)
AUTO = "auto"  # the first of PREFERRED that can score a run and has the settings that were given
PREFERRED = ("quadrature", "is")  # the last can score every run


class NotApplicableError(UserError):
    """An estimator turned out not to be able to score a run; `Scoring.fallback` may be."""


class Flag(NamedTuple):
    """A setting of an estimator: its help, its usual value, and what argparse takes (`const` makes a value optional).

    In a file's name, numbers follow `short`, words stand alone, and the value `untagged` is left out.
    """

    help: str
    short: str = ""
    type: Callable = str
    usual: object = None
    untagged: object = None
    choices: tuple | None = None
    const: object = None
    common: bool = False  # in --help


class Estimator(NamedTuple):
    """A way to estimate log p(x).

    `estimate(run, images, scoring, split, bar)` returns an Estimate of the images and more metrics, a dict.
    `refusal(run, settings)` says why it cannot score a run, None if it can; `remedy(run, settings)` what to do about
    unreliable estimates; `notes(metrics)` lists sentences to print. `rules` are on the flags. `complete(run, settings)`
    fills in values that depend on the run or on other settings. `is_sampled`: `log_px_se` is a Monte-Carlo error, which
    averages out over images.
    """

    help: str
    flags: dict
    estimate: Callable
    refusal: Callable
    remedy: Callable
    rules: tuple = ()
    complete: Callable = lambda run, settings: settings
    is_sampled: bool = True
    is_preferred: Callable = lambda run: True  # whether AUTO takes it, where it is not refused
    notes: Callable = lambda metrics: []


class Scoring(NamedTuple):
    """How log p(x) of a run is estimated: an estimator, its settings by name, the seed, and the most bytes in use.

    `fallback` is the Scoring to use if the estimator raises NotApplicableError, or None. `precision` is "" or differs
    from that of the training.
    """

    estimator: str
    settings: dict
    seed: int
    max_bytes: int | None
    fallback: object = None
    precision: str = ""

    @classmethod
    def of(cls, run, estimator=AUTO, seed=0, max_memory=None, **given):
        """The Scoring of a run with the `given` settings, None for the usual value; `max_memory` is in GiB.

        Raises UserError where the estimator cannot score the run.
        """
        given = {name: value for name, value in given.items() if value is not None}
        fallback = None
        if estimator == AUTO:
            *others, estimator = PREFERRED
            for name in others:
                entry = ESTIMATORS[name]
                if given.keys() <= entry.flags.keys() and entry.is_preferred(run) and not entry.refusal(run, given):
                    fallback, estimator = cls.of(run, estimator, seed, max_memory, **given), name
                    break
        entry = ESTIMATORS[estimator]
        settings = entry.complete(run, {name: flag.usual for name, flag in entry.flags.items()} | given)
        if reason := entry.refusal(run, settings):
            raise UserError(reason)
        most = max_memory and int(min(max_memory * 2**30, sys.maxsize))
        return cls(estimator, settings, seed, most, fallback, run.precision * (run.precision != run.config.precision))

    @property
    def entry(self):
        """The Estimator."""
        return ESTIMATORS[self.estimator]

    @property
    def tag(self):
        """All that changes a score, as a part of file names: is_S5000, isfitted_se0.05_float32, ais_S16_T100_L5_B64."""
        words, numbers = [self.estimator], []
        for name, flag in self.entry.flags.items():
            if (value := self.settings[name]) not in (None, flag.untagged):
                numbers.append(f"_{flag.short}{value}") if flag.short else words.append(value)
        more = [f"_seed{self.seed}"] * bool(self.seed) + [f"_{self.precision}"] * bool(self.precision)
        return "".join([*words, *numbers, *more])

    @property
    def said(self):
        """The estimator and its settings in words."""
        return ", ".join([self.estimator, *(f"{name} {value}" for name, value in self.settings.items() if value)])

    @property
    def bytes_at_once(self):
        """The bytes of activations at a time; None leaves them to the estimator, which suits a CPU's caches."""
        if self.max_bytes is not None:
            return self.max_bytes
        share = memory.free_memory() // 8
        if backend.has_gpu():
            return min(2**30, share)
        return None if share > 2**28 else share // 4


def add_arguments(parser):
    """Adds --estimator and the flags of all estimators."""
    topic, helps = "estimator", f"{AUTO}: quadrature for up to two latents and Bernoulli pixels in float32, else is; "
    helps += "; ".join(f"{name}: {entry.help}" for name, entry in ESTIMATORS.items())
    options = {"choices": (AUTO, *ESTIMATORS), "default": AUTO, "metavar": "NAME", "topic": topic, "common": True}
    parser.add_argument("--estimator", help=helps, **options)
    for name, owners in OWNERS.items():
        flag, text = next(iter(owners.values())), "; ".join(f"{owner}: {flag.help}" for owner, flag in owners.items())
        nargs, metavar = "?" if flag.const else None, flag.short.upper() or "NAME"
        options = {"type": flag.type, "choices": flag.choices, "const": flag.const, "nargs": nargs, "metavar": metavar}
        parser.add_argument(f"--{name}", help=text, topic=topic, common=flag.common, **options)


def finite_or_none(value):
    """A number as a float; None, which JSON has, for one that is not finite."""
    return float(value) if math.isfinite(value) else None


def error_of_mean(values):
    """The standard error of the mean of N values, sd / sqrt(N); None for one value, or an unknown one."""
    return finite_or_none(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


def usual_proposal(run):
    """What latents are drawn from by default: "fitted", or "posterior" where a fit takes too long or does not suit."""
    return "posterior" if run.config.is_deep or run.latent_dim > MOST_FITTED else "fitted"


def _refusal_of_fits(run, flag, value):
    if value != "fitted" or usual_proposal(run) == "fitted":
        return None
    text = f"{flag} fitted is for {SHALLOW} with {MOST_FITTED} latent dimensions at most, and {run.path} "
    return text + f"is a {run.config.model} with {run.latent_dim}; try {flag} posterior"


def by_importance_sampling(run, images, scoring, split, bar):
    """An Estimate, and for fits what more of them find on a few of many images: `checked`, a dict."""
    from evaluation.importance import importance_sampling

    settings, seed = scoring.settings, scoring.seed
    count, starts = settings["max_samples"] or settings["num_samples"], settings["num_starts"]
    options = {name: settings[name] for name in ("proposal", "target_se")} | {"max_bytes": scoring.bytes_at_once}
    estimate = importance_sampling(run.model, images, count, seed, bar.update, starts=starts, **options)
    if settings["proposal"] != "fitted" or len(images) < FEWEST_CHECKED:
        return estimate, {}
    bar.set_postfix_str("looking for more modes")
    index = np.unique(np.linspace(0, len(images) - 1, CHECKED).round().astype(int))
    again = importance_sampling(run.model, images[index], count, seed + 1, starts=starts + MORE_STARTS, **options)
    gain = again.log_px - estimate.log_px[index]
    missed = gain > MISSED + 3 * np.hypot(again.log_px_se, estimate.log_px_se[index])
    return estimate, {"checked": {"images": len(index), "gain": float(gain.max()), "missed": int(missed.sum())}}


def _complete_sampling(run, settings):
    """The settings with a proposal that suits the run, and a number of samples that suits the proposal."""
    proposal = settings["proposal"] or usual_proposal(run)
    found = settings | {"proposal": proposal}
    if proposal == "fitted" and settings["num_starts"] is None:
        found["num_starts"] = STARTS
    if settings["target_se"]:
        return found | {"max_samples": settings["max_samples"] or MOST}
    usual = MANY if proposal == "posterior" and not run.config.is_deep else SAMPLES
    return found | {"num_samples": settings["num_samples"] or usual}


def _remedy_of_sampling(run, settings):
    if settings["proposal"] != usual_proposal(run):
        return "try --proposal fitted"
    return "raise --max_samples" if settings["target_se"] else "raise --num_samples"


def _notes_on_modes(metrics):
    if not (checked := metrics.get("checked")):
        return []
    text = "with {} more starts, log p(x) of {images} images rises by {gain:.3f} at most"
    text += "; {missed} have a mode that was missed: raise --num_starts" * bool(checked["missed"])
    return [text.format(MORE_STARTS, **checked)]


OF_SAMPLES = f"samples per image [{SAMPLES}; {MANY} from q(z|x) of {SHALLOW}]"
OF_PROPOSAL = "draw latents from a density fitted to each p(z|x), or from the posterior q(z|x), as in most papers, "
OF_PROPOSAL += "which needs far more samples [fitted; posterior for deep models and more than 256 latent dimensions]"
OF_STARTS = f"fits to look for further modes of each p(z|x), beside the one from q(z|x) [{STARTS}]"
OF_TARGET = "draw as many samples as each image needs for this error, not --num_samples"
SAMPLING_FLAGS = {
    "num_samples": Flag(OF_SAMPLES, "S", whole(2), common=True),
    "proposal": Flag(OF_PROPOSAL, choices=("fitted", "posterior"), untagged="posterior"),
    "num_starts": Flag(OF_STARTS, "M", whole(0, 1000), untagged=STARTS),
    "target_se": Flag(OF_TARGET, "se", number(1e-4), common=True),
    "max_samples": Flag(f"with --target_se: most samples per image [{MOST}]", "S", whole(2), untagged=MOST),
}
IMPORTANCE_SAMPLING = Estimator(
    "importance sampling",
    SAMPLING_FLAGS,
    by_importance_sampling,
    refusal=lambda run, settings: _refusal_of_fits(run, "--proposal", settings["proposal"]),
    remedy=_remedy_of_sampling,
    rules=(
        *rules.excludes("num_samples", "target_se", reason="which chooses the number; limit it by --max_samples"),
        rules.needs("max_samples", "target_se"),
        rules.Rule("num_starts", lambda args: args.proposal == "posterior", "goes with --proposal fitted"),
    ),
    complete=_complete_sampling,
    notes=_notes_on_modes,
)


def by_quadrature(run, images, scoring, split, bar):
    """An Estimate, and no other metrics. Raises NotApplicableError for too many images, or an integral not resolved."""
    from evaluation.quadrature import NotResolvedError, quadrature

    if isinstance(images, data.Stored):
        if (most := MOST_READ // (4 * math.prod(images.shape[1:]))) < len(images):
            raise NotApplicableError(f"{run.path}: quadrature keeps all images in memory; add --max_images {most}")
        images = images[:]
    options = {"progress": bar.update, "seed": scoring.seed, "max_bytes": scoring.bytes_at_once}
    try:
        return quadrature(run.model, images, **options), {}
    except NotResolvedError as error:
        raise NotApplicableError(f"{run.path}: {error}") from error


def _refusal_of_quadrature(run, settings):
    reason = None
    if run.latent_dim > 2:
        reason = f"needs two latent dimensions at most, and {run.path} has {run.latent_dim}"
    elif run.config.is_deep:
        reason = f"is for {SHALLOW}, and {run.path} is a {run.config.model}"
    elif run.config.is_autoregressive:
        reason = f"would pass the pixel network of {run.path} over each image at each point"
    return reason and f"--estimator quadrature {reason}; try --estimator is"


QUADRATURE = Estimator(
    "a sum over a grid of latents, practically exact, for two latent dimensions at most",
    {},
    by_quadrature,
    refusal=_refusal_of_quadrature,
    remedy=lambda run, settings: "try " + "--precision float32, or " * (run.precision != "float32") + "--estimator is",
    is_sampled=False,
    # of other pixels, it takes minutes or hours; where hidden layers are rounded, finer grids go on changing the sum
    is_preferred=lambda run: run.config.observation == "bernoulli" and run.precision == "float32",
)


def by_annealing(run, images, scoring, split, bar):
    """An Estimate, with the acceptance rate and, with --bracket, the means of both bounds on simulated images."""
    from evaluation.ais import AnnealedSampling, Annealing

    annealing = Annealing(*(scoring.settings[name] for name in ("num_samples", "num_steps", "leapfrogs", "start")))
    count = scoring.settings["bracket"] or 0
    most = max(len(images), count)
    sampling = AnnealedSampling(run.model, annealing, scoring.seed, max_bytes=scoring.bytes_at_once, images=most)
    bar.set_postfix_str("choosing step sizes")
    others = "train" if split == "val" or not run.has_val else "val"
    sampling.tune(run.images(others))  # images that are not scored
    bar.set_postfix_str("")
    estimate = sampling.log_px(images, bar.update)
    more = {"acceptance": finite_or_none(sampling.acceptance)}
    if count:
        bar.set_postfix_str("bracketing")
        lower, upper = sampling.bracket(count)
        bounds = {"lower": lower, "upper": upper, "gap": upper - lower}
        more["bracket"] = {name: finite_or_none(values.mean()) for name, values in bounds.items()}
        more["bracket"] |= {"gap_se": error_of_mean(upper - lower), "num_images": count}
    return estimate, more


def _refusal_of_annealing(run, settings):
    if models.MODELS[run.config.model].is_exact:
        return _refusal_of_fits(run, "--start", settings["start"])
    return f"--estimator ais needs the density of the prior, of which {run.path} has estimates only; try --estimator is"


def _notes_on_annealing(metrics):
    rate, bracket = metrics["acceptance"], metrics["bracket"]
    text = "{num_images} images drawn from the model have log p(x) from {lower:.2f} to {upper:.2f}, "
    text += "a gap of {gap:.3f}; scores of held-out images can be off by more"
    accepted = [] if rate is None else [f"{rate:.0%} of all steps were accepted"]
    return accepted + ([text.format(**bracket)] if bracket else [])


OF_START = "start chains at a density fitted to several modes of each p(z|x), at the posterior q(z|x), or at the prior "
OF_START += "p(z), which needs many more temperatures [as for --proposal]"
OF_BRACKET = "also bound log p(x) of B images drawn from the model from both sides; the gap shows how far the scores "
OF_BRACKET += f"of other estimators can be off [without B: {SIMULATED}]"
ANNEALING_FLAGS = {
    "num_samples": Flag("chains per image [16]", "S", whole(2), 16),
    "num_steps": Flag("temperatures from start to p(z|x) [100]", "T", whole(1), 100),
    "leapfrogs": Flag("leapfrog steps per temperature [5]", "L", whole(1, 100), 5),
    "start": Flag(OF_START, choices=("fitted", "posterior", "prior"), untagged="posterior"),
    "bracket": Flag(OF_BRACKET, "B", whole(1), const=SIMULATED),
}
ANNEALING = Estimator(
    "annealed importance sampling with Hamiltonian Monte Carlo, slow",
    ANNEALING_FLAGS,
    by_annealing,
    refusal=_refusal_of_annealing,
    remedy=lambda run, settings: "raise --num_steps",
    complete=lambda run, settings: settings | {"start": settings["start"] or usual_proposal(run)},
    notes=_notes_on_annealing,
)
ESTIMATORS = {"is": IMPORTANCE_SAMPLING, "quadrature": QUADRATURE, "ais": ANNEALING}
OWNERS = {}  # for each flag, the estimators that have it: a dict of name to Flag
for name, entry in ESTIMATORS.items():
    for flag, one in entry.flags.items():
        OWNERS.setdefault(flag, {})[name] = one
RULES = [
    rules.needs(flag, "estimator", *[AUTO] * any(name in owners for name in PREFERRED), *owners)
    for flag, owners in OWNERS.items()
]
RULES += [rule for entry in ESTIMATORS.values() for rule in entry.rules]
