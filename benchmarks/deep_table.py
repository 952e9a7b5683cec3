"""Train and score the small deep models, and write their table in docs/results.md from the results.

    python benchmarks/deep_table.py [ROW ...] [--features FILE.keras] [--hardware "two cores of ..."]

A ROW is a preset whose name ends in _small. What is trained and scored already is not done again, and what was
interrupted goes on (as of benchmarks/paper_table.py). The ELBO, rates and units are of the whole test split; log p(x)
is of some of its images (random ones where a result's "selection" says so, else the first ones), as many samples of a
deep model take long. FID, where --features names a network of vampvae.py for the data set of a row, is of 10,000
samples against the test images. The last rows are what pixels that know nothing of one another give, each with the
frequencies of its values in the training images (deep_baselines.json keeps them).
"""

import argparse
import hashlib
import json
import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

import data
import experiment
from benchmarks import paper_table, results_page
from benchmarks.paper_table import RESULTS, call, with_backend
from evaluation.score import GENERATED
from experiment.presets import preset
from runtime import atomic, backend

ROWS = (
    *("mnist_hvae_vamp_wide_small", "mnist_hvae_vamp_small", "mnist_ladder_small"),
    *("mnist_dvp_small", "mnist_dvp_context3_small"),
    *("cifar10_dvp_small", "cifar10_vae_gaussian_small"),
)
IMAGES = 1000  # whose log p(x) is estimated
FEW = 100  # that are scored beside what is drawn from a model, as evaluate.py scores some in any case
SCORES = {  # samples an image, and of how many images, by whether a model is deep: those of deep ones take long
    False: {"elbo": (20, None), "log_px": (500, IMAGES)},
    True: {"elbo": (2, None), "log_px": (100, IMAGES)},  # the ELBO is by 20 draws, whatever this says
}
HEADER = (
    *(
        "run",
        "weights",
        "epochs",
        "ELBO",
        "bits/dim by it",
        f"log p(x) of {IMAGES:,} images",
        "doubtful",
        "FID of samples",
        "rate by layer, from the top",
    ),
    *("active units", "training, min", "hardware"),
)
BASELINES = RESULTS / "deep_baselines.json"


def result_file(name):
    """Where the result of a row is."""
    return RESULTS / f"deep_{name}.json"


def produce(name, args):
    """Trains and scores a row, as far as that is not done, and writes its result file."""
    config = paper_table.config_of(name, 0, args.runs_dir)
    words = ["--runs_dir", str(args.runs_dir), "--other_data", args.other_data]
    call("train.py", "--preset", name, *words, *with_backend(args.backend))
    run = experiment.load(config.path)
    before = json.loads(result_file(name).read_text()) if result_file(name).exists() else {}
    is_same = before.get("elbo", {}).get("weights_sha256") == run.weights_sha256
    found = {"distances": before["distances"]} if is_same and "distances" in before else {}
    for score, (samples, images) in SCORES[config.is_deep].items():
        found[score] = scored(run, score_file(run, samples, images), samples, images, args)
    if args.features:
        network = hashlib.sha256(args.features.read_bytes()).hexdigest()[:8]
        path = score_file(run, 2, FEW, f"_F{network}_G{GENERATED}")
        found["distances"] = scored(run, path, 2, FEW, args, "--features", args.features)["distances"]
    about = paper_table.about(run, name, results_page.hardware_of(result_file(name), run, args.hardware))
    atomic.write_json(result_file(name), about | {"weights": weights_of(run)} | found)


def scored(run, path, samples, images, args, *more):
    """What evaluate.py stores at `path`, a dict, which it is called for unless it is there, and of these weights."""
    known = json.loads(path.read_text()) if path.exists() else {}
    if known.get("weights_sha256") != run.weights_sha256 or (images and "selection" not in known):  # of first images
        words = ["--num_samples", samples, "--proposal", "posterior" if run.config.is_deep else "fitted", *more]
        words += ["--max_images", images] if images else []
        call("evaluate.py", run.path, *map(str, words), *with_backend(args.backend))
    return json.loads(path.read_text())


def score_file(run, samples, images, more=""):
    """Where evaluate.py writes a score."""
    fitted = "" if run.config.is_deep else "fitted"
    count = min(images or sys.maxsize, len(run.images("test")))
    return run.path / "evaluations" / f"test_is{fitted}_S{samples}{more}_N{count}.json"


def weights_of(run):
    """How many numbers are trained: the pseudo-inputs of a VampPrior among them."""
    return sum(int(np.prod(weight.shape)) for weight in run.model.trainable_weights)


def baselines(other_data):
    """Of each data set of a row with a result, `baseline`; what is known already is not computed again."""
    names = dict.fromkeys(preset(name).settings["data_set"] for name in ROWS if result_file(name).exists())
    known = json.loads(BASELINES.read_text()) if BASELINES.exists() else {}
    return {name: known.get(name) or baseline(name, other_data) for name in names}


def baseline(name, other_data):
    """Mean log p of the test images in nats, and bits a dimension, of independent pixels with smoothed frequencies."""
    dataset = data.load(name, other_data=other_data)
    mode = data.binarization(dataset.source, "auto")
    levels = 2 if mode != "none" or dataset.source.is_binary else 256
    train, test = (
        np.rint((levels - 1) * data.held_out(dataset, split, mode)[:]).astype(int) for split in ("train", "test")
    )
    counts = np.stack([np.sum(train == level, axis=0) for level in range(levels)])
    log_p = np.log((counts + 1) / (len(train) + levels))  # one of each value more than there are: none is impossible
    each = np.take_along_axis(log_p, test, axis=0)
    nats = float(each.sum(axis=(1, 2, 3)).mean())
    return nats, -nats / math.log(2) / each[0].size


def cells_of(name):
    """The cells of a row; empty ones where it was not run."""
    path = result_file(name)
    if not path.exists():
        return [f"`{name}`", "not run here", *[""] * 10]
    result = json.loads(path.read_text())
    whole, some = result["elbo"], result["log_px"]
    rates = " + ".join(f"{rate:.1f}" for rate in whole["rates"])
    units = f"{' + '.join(map(str, whole['active_units']))} of {sum(whole['units'])}"
    note = f" ({whole['note']})" if whole["note"] else ""
    fid = result.get("distances", {}).get("fid")
    bits = -whole["elbo"] / math.log(2) / math.prod(whole["image_shape"])
    return [
        f"`{name}`{note}",
        f"{result['weights']:,}",
        result["settings"]["epochs"],
        f"{whole['elbo']:.2f}",
        "a density" if whole["bits_per_dim"] is None else f"{bits:.3f}",
        f"{some['log_px']:.2f} ± {some['log_px_se']:.2g}",
        some["doubtful"],
        "" if fid is None else f"{fid:.2f}",
        rates,
        units,
        f"{result['status']['seconds'] / 60:.0f}",
        results_page.machines_of([result]),
    ]


def table():
    """The whole table, with a row for the baseline of each data set."""
    lines = [cells_of(name) for name in ROWS]
    for name, (nats, bits) in json.loads(BASELINES.read_text()).items():
        lines.append([f"independent pixels, {name}", "", "", f"{nats:.2f}", f"{bits:.3f}", *[""] * 7])
    return results_page.table(HEADER, "lrrrrrrrllrl", lines)


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--runs_dir", type=Path, default=Path("runs", "deep"))
    parser.add_argument("--features", type=Path, metavar="FILE.keras", help="a network of `vampvae.py features`")
    parser.add_argument("--other_data", choices=("off", "on"), default="off", help="as in train.py")
    parser.add_argument("--backend", choices=backend.BACKENDS)
    parser.add_argument("--hardware", default="not stated", help="a word on the machine, stored with the result")
    args = parser.parse_args()
    if unknown := set(args.rows) - set(ROWS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(ROWS)}")
    backend.settle(args.backend, "cpu")
    for name in args.rows:
        produce(name, args)
    atomic.write_json(BASELINES, baselines(args.other_data == "on"))
    results_page.write("deep_table.py", table())


if __name__ == "__main__":
    main()
