"""Time estimates of log p(x) against the naive way, on the same test images, in turn, in one run; and their errors.

    python benchmarks/likelihood.py RUN [RUN ...] [--num_samples 5000] [--images 100] [--json FILE] [--hardware "..."]

The naive way takes one image at a time, repeats it for each sample before the encoder, and encodes the pseudo-inputs
again in each chunk of 100 samples; log p(z) has all differences from the K means in memory, and log p(x|z) is of
clipped probabilities, as is commonly written. "With our densities" it has log p(z) and log p(x|z) of this project. Both
are timed on every image for one such chunk and extrapolated to S, compilation not counted; ours is timed in full, and
compared with and without what it does once, whatever S: it compiles and encodes the pseudo-inputs, which is what two
samples of one image take. Errors are against a reference: the integral over a grid where there are two latent
dimensions, else the fitted proposal with 20,000 samples; "worst" is the mean over the 5 % of images with the largest.
The floor is the decoder's operations over this machine's matrix-multiply peak. `dmis` is deterministic-mixture
importance sampling, as many draws of all images' q(z|x) shared by all images, which is not part of the project.
"""

import argparse
import math
import resource
import sys
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

import experiment
from benchmarks.train_step import matmul_peak, multiply_adds
from experiment.record import git_commit, versions
from runtime import atomic, backend
from runtime.command import command
from runtime.text import cell

CHUNK = 100
CLIPPED = 1e-5
REFERENCE = 20_000
SAMPLES = (10, 25, 50, 100, 200, 400, 800)  # of the fitted proposal, of which the first that is as good is taken


class Way(NamedTuple):
    """Seconds that an estimate took, and its errors in nats: root of the mean square, and mean of the worst 5 %."""

    seconds: float
    rmse: float
    worst: float


def naive_way(model, densities):
    """A function of one image that draws CHUNK log-weights (CHUNK, 1): x repeated, pseudo-inputs encoded again.

    `densities` maps the value of the top prior and p(x|z) to those whose log_prob is taken.
    """
    import keras

    class Chunk(keras.Model):
        """One image (1, H, W, C), repeated, to log-weights (CHUNK, 1)."""

        def __init__(self):
            super().__init__()
            self.model, self.noise = model, keras.random.SeedGenerator(0)
            self.built = True

        def call(self, x):
            x = keras.ops.repeat(x, CHUNK, axis=0)
            z, log_qz_x = self.model.posterior(x).sample_and_log_prob(1, self.noise)
            top, law = densities(self.model.top_prior.distribution(), self.model.likelihood(z))
            return keras.ops.transpose(law.log_prob(x) + self.model.prior(top).log_prob(z) - log_qz_x)

    chunk = Chunk()
    chunk.compile(jit_compile="auto")
    return chunk.predict_on_batch


def ours(top, law):
    """The densities of this project, as they are."""
    return top, law


def commonly_written(top, law):
    """The same densities as they are commonly computed, of a Mixture and a Bernoulli; others as they are."""
    from keras import ops

    from models.distributions import Mixture, Normal
    from models.pixels import IMAGE_AXES, Bernoulli

    class AllDifferences(Mixture):
        """With a temporary (..., K, D)."""

        def log_parts(self, z):
            return self.log_weights + Normal(self.mean, self.logvar).log_prob(ops.expand_dims(z, -2))

    class Clipped(Bernoulli):
        """By logarithms of p and 1 - p."""

        def log_prob(self, x):
            p = ops.clip(self.mean, CLIPPED, 1 - CLIPPED)
            return ops.sum(x * ops.log(p) + (1 - x) * ops.log(1 - p), axis=IMAGE_AXES)

    return (
        AllDifferences(*top) if isinstance(top, Mixture) else top,
        Clipped(*law) if isinstance(law, Bernoulli) else law,
    )


def deterministic_mixture(model, images, draws):
    """log p(x) of a VAE's images (N, H, W, C) by N times `draws` latents of the mean of all q(z|x): (N,)."""
    from keras import ops, random

    from models.distributions import Mixture

    n, noise = len(images), random.SeedGenerator(0)
    posterior, prior = model.posterior(images), model.prior()
    mixture = Mixture(np.full(n, -math.log(n), "float32"), posterior.mean, posterior.logvar)
    log_w = np.full(n, -np.inf)
    for _ in range(draws):  # one of each image, so that the mixture is sampled in strata
        z = posterior.sample(1, noise)[0]
        log_p = model.likelihood(z).log_prob_of_each(ops.convert_to_tensor(images)) + prior.log_prob(z)
        log_w = np.logaddexp(log_w, ops.convert_to_numpy(ops.logsumexp(log_p - mixture.log_prob(z), axis=1)))
    return log_w - math.log(n * draws)


def timed(function):
    """The seconds that a call takes, and what it returns."""
    start = time.perf_counter()
    value = function()
    return time.perf_counter() - start, value


def peak_memory():
    """The largest resident size of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def way(seconds, log_px, reference):
    """The Way of an estimate (N,) that took so long, more than once."""
    error = np.abs(log_px - reference)
    return Way(
        median(seconds), float(np.sqrt(np.mean(error**2))), float(np.sort(error)[-max(1, len(error) // 20) :].mean())
    )


def as_good(model, images, reference, wanted):
    """The fewest of SAMPLES with which the fitted proposal has errors no larger than those of `wanted`, a Way."""
    from evaluation.importance import importance_sampling

    for samples in SAMPLES:
        found = way([0.0], importance_sampling(model, images, samples).log_px, reference)
        if found.rmse <= wanted.rmse and found.worst <= wanted.worst:
            return samples
    return SAMPLES[-1]


def reference_of(run, images):
    """log p(x) to compare with: by quadrature where there are two latents at most, else by many fitted samples."""
    from evaluation.importance import importance_sampling
    from evaluation.quadrature import quadrature

    if run.config.latent_dim <= 2:
        return quadrature(run.model, images).log_px
    return importance_sampling(run.model, images, REFERENCE).log_px


def compare(run, args):
    """A row: seconds and errors of the naive way, of ours at equal S, and of ours at equal error."""
    from evaluation.importance import importance_sampling

    images, model, samples = run.images("test", args.images), run.model, args.num_samples
    importance_sampling(model, images, max(2, samples // 10), proposal="posterior")
    memory_tenth = peak_memory()
    by_q = importance_sampling(model, images, samples, proposal="posterior").log_px
    memory = peak_memory()
    reference = reference_of(run, images)
    enough = as_good(model, images, reference, way([0.0], by_q, reference))
    times, found, peak = in_turn(ways_of(model, images, samples, enough), args.rounds)
    theirs, leaner = (median(times[name]) * samples / CHUNK for name in ("naive", "lean"))
    by_posterior, better = way(times["by q"], by_q, reference), way(times["fitted"], found["fitted"].log_px, reference)
    once = median(times["once"])
    at_equal_s = {
        "run": run.path.resolve().name,
        "backend": sys.modules["keras"].backend.backend(),
        "S": samples,
        "images": len(images),
        "naive s (extrapolated)": theirs,
        "naive with our densities s (extrapolated)": leaner,
        "ours s": by_posterior.seconds,
        "of which once s": once,
        "ratio": theirs / by_posterior.seconds,
        "ratio without what is done once": theirs / (by_posterior.seconds - once),
        "ratio to our densities": leaner / by_posterior.seconds,
        "floor s": 2 * multiply_adds(model.decoder) * samples * len(images) / peak,
        "error": by_posterior.rmse,
        "worst": by_posterior.worst,
    }
    at_equal_error = {
        "fitted S": enough,
        "fitted s": better.seconds,
        "fitted error": better.rmse,
        "fitted worst": better.worst,
        "ratio at equal error": theirs / better.seconds,
        "ratio to our densities at equal error": leaner / better.seconds,
    }
    spent = {"peak GFLOP/s": peak / 1e9, "GiB at S/10": memory_tenth, "GiB at S": memory}
    row = at_equal_s | at_equal_error | spent
    return row | shared_pools(run, images, reference) | whole_split(run, peak)


def ways_of(model, images, samples, enough):
    """Functions by name: a chunk of each image by either naive way, `samples` of q(z|x), so few of them that what
    is done once takes the time, `enough` of what is fitted.
    """
    from evaluation.importance import importance_sampling

    naive, lean = naive_way(model, commonly_written), naive_way(model, ours)
    for chunk in (naive, lean):
        chunk(images[:1])  # compiled
    return {
        "naive": lambda: [naive(image[None]) for image in images],
        "lean": lambda: [lean(image[None]) for image in images],
        "by q": lambda: importance_sampling(model, images, samples, proposal="posterior"),
        "once": lambda: importance_sampling(model, images[:1], 2, proposal="posterior"),
        "fitted": lambda: importance_sampling(model, images, enough),
    }


def in_turn(ways, rounds):
    """The seconds of each of these functions, and what it found last, dicts; and the operations a second of the fastest
    matrix product beside them.
    """
    times, found, peak = {name: [] for name in ways}, {}, 0
    for _ in range(rounds):
        peak = max(peak, matmul_peak())
        for name, function in ways.items():
            seconds, found[name] = timed(function)
            times[name].append(seconds)
    return times, found, peak


def shared_pools(run, images, reference):
    """Seconds and errors of deterministic-mixture importance sampling, for a VAE; else nothing."""
    row = {}
    for draws in (1, 10, 100) if run.config.model == "vae" else ():
        seconds, log_px = timed(lambda draws=draws: deterministic_mixture(run.model, images, draws))
        row |= {f"dmis {draws}: s": seconds, f"dmis {draws}: error": way([seconds], log_px, reference).rmse}
    return row


def whole_split(run, peak):
    """Seconds, floor and memory of quadrature of the whole test split, for two latents at most; else nothing."""
    from evaluation.quadrature import quadrature

    if run.config.latent_dim > 2:
        return {}
    images = run.images("test")
    seconds, estimate = timed(lambda: quadrature(run.model, images))
    points = int(estimate.samples[0])
    floor = (2 * multiply_adds(run.model.decoder) + 2 * images[0].size * len(images)) * points / peak
    row = {"grid images": len(images), "grid points": points, "grid s": seconds, "grid floor s": floor}
    return row | {"grid GiB": peak_memory()}


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of trained runs")
    parser.add_argument("--num_samples", type=int, default=5000)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data_dir")
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    parser.add_argument("--hardware", default="not stated", help="what it runs on, in words, stored with the rows")
    parser.add_argument("--backend", choices=backend.BACKENDS, help="default: $KERAS_BACKEND, else tensorflow")
    return command(run, parser.parse_args())


def run(args):
    """Measures the runs that the flags name, and prints a row for each; returns the exit code."""
    backend.settle(args.backend)
    backend.start()
    rows = []
    for path in args.runs:
        rows.append(compare(experiment.load(path, args.data_dir), args))
        print("\n".join(f"{name}: {cell(value)}" for name, value in rows[-1].items()), flush=True)
    if args.json:
        about = {"hardware": args.hardware, "versions": versions(), "commit": git_commit()}
        atomic.write_json(args.json, about | {"rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
