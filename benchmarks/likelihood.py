"""Time log p(x) by importance sampling against the naive way, on the same images, in turn, in one run.

    python benchmarks/likelihood.py RUN [--num_samples 5000] [--images 100]

The naive way takes one image at a time, repeats it for each sample before the encoder, and encodes the pseudo-inputs
again in each chunk of 100 samples. It is timed on every image for one such chunk and extrapolated to S; ours is timed
in full, its compilation included. Memory is the peak of the process, read after a tenth of S and again after S.
"""

import argparse
import resource
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

import atomic
import commandline
import engine
import experiment

CHUNK = 100


def naive_way(model):
    """A function of one image that draws CHUNK log-weights: x repeated, pseudo-inputs encoded again; (CHUNK,)."""
    import keras

    class Chunk(keras.Model):
        """One image (1, H, W, C), repeated, to log-weights (CHUNK, 1)."""

        def __init__(self):
            super().__init__()
            self.model, self.noise = model, keras.random.SeedGenerator(0)
            self.built = True

        def call(self, x):
            terms = self.model.terms(keras.ops.repeat(x, CHUNK, axis=0), 1, self.noise)
            return keras.ops.transpose(terms.log_w())

    chunk = Chunk()
    chunk.compile(jit_compile="auto")
    return chunk.predict_on_batch


def timed(function):
    """The seconds that a call takes, and what it returns."""
    start = time.perf_counter()
    value = function()
    return time.perf_counter() - start, value


def peak_memory():
    """The largest resident size of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def compare(run, samples, count, rounds):
    """A row: medians of both sides' seconds at equal S, their ratio, and the memory of ours."""
    from models.likelihood import importance_sampling

    images, model = run.images("test")[:count], run.model
    importance_sampling(model, images, max(1, samples // 10))
    memory_tenth = peak_memory()
    naive, ours, theirs = naive_way(model), [], []
    naive(images[:1])  # its compilation is not counted
    for number in range(rounds):
        seconds, estimate = timed(lambda: importance_sampling(model, images, samples))
        ours.append(seconds)
        if number == 0:
            memory = peak_memory()
        seconds, log_w = timed(lambda: np.concatenate([naive(image[None]) for image in images]))
        theirs.append(seconds * samples / CHUNK)
    return {
        "run": run.path.name,
        "S": samples,
        "images": len(images),
        "ours s": median(ours),
        "naive s (extrapolated)": median(theirs),
        "ratio": median(theirs) / median(ours),
        "GiB at S/10": memory_tenth,
        "GiB at S": memory,
        "log p(x) ours": float(np.mean(estimate.log_px)),
        "naive at S=100": float(np.mean(np.logaddexp.reduce(log_w.astype("float64"), axis=1) - np.log(CHUNK))),
    }


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="the folder of a trained run")
    parser.add_argument("--num_samples", type=int, default=5000)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--data_dir")
    parser.add_argument("--json", type=Path, help="write the row to this file too")
    commandline.add_backend(parser)
    args = parser.parse_args()
    engine.settle(args.backend)
    engine.start()
    row = compare(experiment.load(args.run, args.data_dir), args.num_samples, args.images, args.rounds)
    print(commandline.table([row]))
    if args.json:
        atomic.write_json(args.json, row | {"versions": experiment.versions()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
