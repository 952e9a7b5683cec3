"""Train and score one dense VAE with every prior, and write docs/results.md's and README's tables of them.

    python benchmarks/priors_table.py --train [--data_sets staticmnist] [--latent_dims 2] [--seeds 0 1 2]
    python benchmarks/priors_table.py --time

--train trains and scores what is missing, and what was interrupted goes on. Each run becomes a file in
benchmarks/results/, with its paired differences from the runs with N(0, I) and with a VampPrior. --time measures a
training step of every prior, in turn. --draw draws the densities of runs with two latents. With none of them, the
tables alone are written, from the files that are there.
"""

import argparse
import itertools
import json
import math
import sys
import time
from pathlib import Path
from statistics import mean, median, stdev

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

import experiment
import models
from benchmarks import results_page
from benchmarks.paper_table import RESULTS, ROOT, call, facts
from evaluation.estimators import Scoring
from evaluation.score import error_of_mean
from experiment import Config
from experiment.flags import words_of
from runtime import atomic, backend
from runtime.errors import UserError

BASES = ("standard", "vamp")  # with which every other prior is compared
PRIORS = (*BASES, *(name for name in models.PRIORS if name not in BASES))
SETTINGS = {"network": "mlp", "batch_size": 250, "epochs": 50, "lr": 1e-3, "lr_schedule": "cosine", "beta_warmup": 20}
DATA_SETS = {  # their settings, and the images that the classifier for FID knows
    "staticmnist": ({}, "mnist"),
    "fashionmnist": ({"binarize": "dynamic"}, "fashionmnist"),
}
LATENT_DIMS = (2, 40)
IMG = ROOT / "img"
IMAGES = 1000  # of the test split, which are scored
ROUNDS, STEPS = 7, 20  # of --time: measurements of each prior, in turn, and steps in each
HEADER = ("prior", "log p(x)", "against N(0, I)", "against `vamp`", "doubtful", "ELBO", "rate", "marginal KL", "FID")
HEADER += ("components in use", "step", "seeds", "training, min", "hardware")


def config_of(data_set, latent_dim, prior, seed, runs_dir="runs"):
    """The Config of a run."""
    settings = SETTINGS | DATA_SETS[data_set][0] | {"seed": seed, "runs_dir": str(runs_dir)}
    return Config(data_set=data_set, latent_dim=latent_dim, prior=prior, **settings)


def result_file(data_set, latent_dim, prior, seed):
    """Where the result of a run is."""
    return RESULTS / f"priors_{data_set}_dim{latent_dim}_{prior}_seed{seed}.json"


def times_file(latent_dim):
    """Where the times of training steps are."""
    return RESULTS / f"priors_steps_dim{latent_dim}.json"


def produce(data_set, latent_dim, seed, args):
    """Trains and scores the runs with every prior, and writes a result file as soon as each can be compared."""
    chosen = ["--backend", args.backend]
    for prior in args.priors:
        config = config_of(data_set, latent_dim, prior, seed, args.runs_dir)
        call("train.py", *words_of(config), *chosen)
        run = experiment.load(config.path)
        if run.note:
            sys.exit(f"{run.path}: {run.note}; such a result has no place in the table")
        if not is_scored(run):
            network = features(data_set, args)
            call("evaluate.py", run.path, "--max_images", str(IMAGES), "--features", network, *chosen)
        bases = bases_of(data_set, latent_dim, seed, args.runs_dir)
        path = result_file(data_set, latent_dim, prior, seed)
        hardware = results_page.hardware_of(path, run, args.hardware)
        atomic.write_json(path, collected(run, bases, hardware))
        write()


def bases_of(data_set, latent_dim, seed, runs_dir):
    """The runs with the priors BASES that are scored: a dict."""
    paths = {prior: config_of(data_set, latent_dim, prior, seed, runs_dir).path for prior in BASES}
    runs = {prior: experiment.load(path) for prior, path in paths.items() if path.is_dir()}
    return {prior: run for prior, run in runs.items() if is_scored(run)}


def features(data_set, args):
    """The file of the classifier whose features FID takes, which is trained if it is missing."""
    known = DATA_SETS[data_set][1]
    path = args.runs_dir / "features" / f"{known}.keras"
    if not path.exists():
        call("vampvae.py", "features", "--data_set", known, "--out", path)
    return path


def is_scored(run):
    """Whether the newest score of the run is of its weights and of these images, with FID."""
    metrics = run.metrics or {}
    wanted = {"weights_sha256": run.weights_sha256, "num_images": IMAGES, "split": "test"}
    of_features = f"{Scoring.of(run).tag}_F"  # what follows names the network
    return wanted.items() <= metrics.items() and metrics["tag"].startswith(of_features)


def collected(run, bases, hardware):
    """What the table needs of a run, with the mean differences of log p(x) from `bases`, image by image."""
    differences = {name: difference_of(run, base) for name, base in bases.items() if name != run.config.prior}
    return facts(run, hardware) | {"differences": differences, "metrics": run.metrics}


def difference_of(run, base):
    """The mean of log p(x) minus that of another run, image by image, and its standard error.

    Raises UserError where the images differ.
    """
    if run.metrics["images_sha256"] != base.metrics["images_sha256"]:
        raise UserError(f"{run.name} and {base.name} were not scored on the same images")
    found = run.evaluation("test").log_px - base.evaluation("test").log_px
    return [float(found.mean()), error_of_mean(found)]


def measure(latent_dim, args):
    """Writes the median seconds of a training step of each prior, and their ratios to N(0, I), measured in turn."""
    backend.settle(args.backend)
    backend.start()
    from experiment.record import git_commit, versions

    steppers = {prior: stepper(config_of("staticmnist", latent_dim, prior, 0)) for prior in PRIORS}
    seconds = {prior: [] for prior in PRIORS}
    for _ in range(ROUNDS):
        for prior, step in steppers.items():
            start = time.perf_counter()
            step()
            seconds[prior].append((time.perf_counter() - start) / STEPS)
    medians = {prior: median(values) for prior, values in seconds.items()}
    ratios = {prior: value / medians["standard"] for prior, value in medians.items()}
    found = {"seconds": medians, "ratios": ratios, "hardware": args.hardware, "backend": args.backend}
    atomic.write_json(times_file(latent_dim), found | {"versions": versions(), "git_commit": git_commit()})


def stepper(config):
    """A function that trains STEPS steps of a run, each on a batch of its own, as in its first epoch."""
    import dataclasses

    from benchmarks.train_step import bare_steps
    from training.fit import prepare

    _, batches, _, net = prepare(dataclasses.replace(config, steps_per_execution=1))
    if batches.exemplars:
        net.top_prior.refresh(batches.split.grey)
        batches.exemplars.start_epoch(0, np.asarray(net.top_prior.means))
    chosen = [batches[index][0] for index in range(STEPS)]
    net.train_on_batch(chosen[0])
    return lambda: bare_steps(net, chosen)


def results_of(data_set, latent_dim, prior):
    """The results of a row that there are, one for each seed."""
    found = RESULTS.glob(result_file(data_set, latent_dim, prior, "*").name)
    return [json.loads(path.read_text()) for path in sorted(found)]


def spread(values, error=None, digits=2):
    """The mean of values, and their standard deviation or, of one value, its error if it has one."""
    error = stdev(values) if len(values) > 1 else error
    return f"{mean(values):.{digits}f}" + (f" ± {error:.2g}" if error is not None else "")


def difference(results, bases):
    """The mean difference of log p(x) from the runs with another prior and the same seeds, on the same images.

    Nothing for these runs themselves, and where one is missing.
    """
    same = {(one["settings"]["seed"], one["metrics"]["images_sha256"]): one for one in bases}
    pairs = [(one, same.get((one["settings"]["seed"], one["metrics"]["images_sha256"]))) for one in results]
    if not all(base for _, base in pairs) or results == bases:
        return ""
    values = [one["metrics"]["log_px"] - base["metrics"]["log_px"] for one, base in pairs]
    _, error = results[0]["differences"].get(pairs[0][1]["settings"]["prior"], (None, None))
    said = spread(values, error)
    return said if said.startswith("-") else f"+{said}"


def cells_of(data_set, latent_dim, prior, ratios):
    """The cells of a row; none where nothing was run."""
    results = results_of(data_set, latent_dim, prior)
    metrics = [one["metrics"] for one in results]
    if not metrics:
        return []
    used = [one["components_in_use"] for one in metrics]
    bases = [results_of(data_set, latent_dim, base) for base in BASES]
    gains = [difference(results, base) if prior != BASES[0] else "" for base in bases]
    cells = [f"`{prior}`", spread([one["log_px"] for one in metrics]), *gains]
    cells += [f"{mean(one['doubtful'] for one in metrics):g}"]
    cells += [f"{mean(one[name] for one in metrics):.2f}" for name in ("elbo", "rate", "marginal_kl")]
    cells += [f"{mean(one['distances']['fid'] for one in metrics):.2f}"]
    cells += [f"{mean(used):.0f}" if None not in used and not any(map(math.isnan, used)) else ""]
    cells += [f"{ratios[prior]:.2f}" if ratios else "", len(results)]
    return [*cells, f"{mean(one['status']['seconds'] for one in results) / 60:.1f}", results_page.machines_of(results)]


def part(data_set, latent_dim):
    """The table of a data set and a number of latents, under its title, with what real images reach; or nothing."""
    path = times_file(latent_dim)
    ratios = json.loads(path.read_text())["ratios"] if path.exists() else {}
    rows = [row for prior in PRIORS if (row := cells_of(data_set, latent_dim, prior, ratios))]
    if not rows:
        return ""
    real = results_of(data_set, latent_dim, PRIORS[0])[0]["metrics"]["distances"]["real"]["fid"]
    title = f"**{data_set}, {latent_dim} latents.** FID of training images: {real:.2f}."
    return f"{title}\n\n{results_page.table(HEADER, 'l' + 'r' * (len(HEADER) - 2) + 'l', rows)}"


def best():
    """The README's table: log p(x) with N(0, I), and what other priors add to it, image by image.

    It has a column for each data set and number of latents of which there are results.
    """
    everything = itertools.product(DATA_SETS, LATENT_DIMS, PRIORS)
    found = {(*column, prior): values for *column, prior in everything if (values := results_of(*column, prior))}
    columns = list(dict.fromkeys((data_set, latent_dim) for data_set, latent_dim, _ in found))
    lines = [["prior", *(f"{data_set}, {latent_dim} latents" for data_set, latent_dim in columns)]]
    for prior in [prior for prior in PRIORS if any(prior == name for *_, name in found)]:
        results = [found.get((*column, prior), []) for column in columns]
        scores = [spread([one["metrics"]["log_px"] for one in several]) if several else "" for several in results]
        bases = [found.get((*column, "standard"), []) for column in columns]
        gains = [difference(*pair) if pair[0] else "" for pair in zip(results, bases, strict=True)]
        lines.append([f"`{prior}`", *(scores if prior == "standard" else gains)])
    head, *rows = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([head, "|---|" + "---:|" * len(columns), *rows])


def table():
    """The page's tables, and pictures of two latents."""
    parts = [part(data_set, latent_dim) for data_set in DATA_SETS for latent_dim in LATENT_DIMS]
    pictures = {data_set: f"{data_set}_ldim2_mlp_densities.png" for data_set in DATA_SETS}
    words = "The aggregated posterior and each prior in the latent plane"
    shown = [f"![{words}: {name}](../img/{file})" for name, file in pictures.items() if (IMG / file).exists()]
    return "\n\n".join([*filter(None, parts), *shown])


def draw(args):
    """Draws the densities of the runs with two latents of each data set into img/."""
    for data_set in args.data_sets:
        paths = [config_of(data_set, 2, prior, args.seeds[0], args.runs_dir).path for prior in PRIORS]
        call("plot.py", *paths, "--figures", "densities", "--out", IMG)


def write():
    """Writes both tables."""
    results_page.write("priors_table.py", table())
    results_page.write("priors_table.py", best(), results_page.README)


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", action="store_true", help="train and score what is missing")
    parser.add_argument("--time", action="store_true", help="measure training steps")
    parser.add_argument("--draw", action="store_true", help="draw the densities of runs with two latents")
    parser.add_argument("--data_sets", nargs="+", choices=DATA_SETS, default=list(DATA_SETS))
    parser.add_argument("--latent_dims", nargs="+", type=int, choices=LATENT_DIMS, default=LATENT_DIMS)
    parser.add_argument("--priors", nargs="+", choices=PRIORS, default=PRIORS, help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs_dir", type=Path, default=Path("runs", "priors"))
    parser.add_argument("--backend", choices=backend.BACKENDS, default="jax")
    parser.add_argument("--hardware", default="not stated", help="a word on the machine, stored with the result")
    args = parser.parse_args()
    if args.train:
        for data_set, latent_dim, seed in itertools.product(args.data_sets, args.latent_dims, args.seeds):
            produce(data_set, latent_dim, seed, args)
    if args.time:
        for latent_dim in args.latent_dims:
            measure(latent_dim, args)
    if args.draw:
        draw(args)
    write()


if __name__ == "__main__":
    main()
