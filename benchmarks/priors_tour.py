"""Train one VAE with each prior on real digits, and write the numbers and pictures of docs/priors.md.

    python benchmarks/priors_tour.py --train [--runs_dir runs/tour] [--hardware "two cores of ..."]

What is finished is skipped, and what was interrupted continues. Without --train, only that part of the page is written,
from the results that are there.
"""

import argparse
import json
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import evaluate
import experiment
import plot
import train
from benchmarks import results_page
from evaluation.score import error_of_mean
from experiment import Config
from experiment.flags import words_of
from plotting.comparisons import INSIDE, group_of
from runtime import atomic

RESULTS = Path(__file__).parent / "results"
PAGE = results_page.README.parent / "docs" / "priors.md"
IMG = results_page.README.parent / "img"
PRIORS = ("standard", "mog", "vampdata", "vamp", "flow")
SETTINGS = {"data_set": "mnist5k", "network": "mlp", "latent_dim": 2, "batch_size": 64, "epochs": 80, "lr": 2e-3,
            "lr_schedule": "cosine", "beta_warmup": 40, "num_pseudo_inputs": 100}  # fmt: skip
TOGETHER = {
    "densities": "The aggregated posterior and the prior of five VAEs",
    "priors": "Samples of five VAEs, z from the trained prior",
}
OF_VAMP = {
    "embedding_mean": "Test images in the latent plane over the VampPrior, with its pseudo-inputs",
    "pseudoinputs": "Pseudo-inputs after training, each above the image decoded at its posterior's mean",
}
HEADER = ("prior", "log p(x)", "against N(0, I)", "ELBO", "rate", "marginal KL", "p(z) in holes", "components in use")
HEADER += ("training, min", "hardware")


def config_of(prior, runs_dir="runs"):
    """The Config of the run with this prior."""
    settings = {name: value for name, value in SETTINGS.items() if prior != "flow" or name != "num_pseudo_inputs"}
    return Config(prior=prior, runs_dir=str(runs_dir), **settings)


def result_file(prior):
    """Where the result of a prior is."""
    return RESULTS / f"tour_{prior}.json"


def produce(args):
    """Trains, scores and draws what is missing, and writes a result file for each prior; returns the exit code."""
    configs = {prior: config_of(prior, args.runs_dir) for prior in PRIORS}
    for config in configs.values():
        if code := train.main(words_of(config)) or evaluate.main([str(config.path)]):
            return code
    paths = [str(config.path) for config in configs.values()]
    for runs, figures in ((paths, TOGETHER), ([str(configs["vamp"].path)], OF_VAMP)):
        if code := plot.main([*runs, "--figures", *figures, "--out", str(IMG)]):
            return code
    base = experiment.load(paths[0]).evaluation("test").log_px
    for prior, config in configs.items():
        run, path = experiment.load(config.path), result_file(prior)
        atomic.write_json(path, collected(run, base, results_page.hardware_of(path, run, args.hardware)))
    return 0


def collected(run, base, hardware):
    """What the page needs of a run, whose log p(x) is compared with that of the run with N(0, I), image by image."""
    from plotting.view import View

    aggregate, prior = View(run, "pca").densities
    difference = run.evaluation("test").log_px - base
    found = {"settings": {name: getattr(run.config, name) for name in (*SETTINGS, "prior", "seed")}}
    found |= {"difference": float(difference.mean()), "difference_se": error_of_mean(difference)}
    found |= {"in_holes": prior.outside(aggregate, INSIDE), "seconds": run.status["seconds"], "hardware": hardware}
    kept = {name: run.record[name] for name in ("backend", "git_commit", "versions", "data_sha256")}
    return found | kept | {"metrics": run.metrics}


def cells_of(prior):
    """The cells of a row."""
    result = json.loads(result_file(prior).read_text())
    metrics, used = result["metrics"], result["metrics"]["components_in_use"]
    difference = f"{result['difference']:+.2f} ± {result['difference_se']:.2f}" if prior != PRIORS[0] else ""
    cells = [f"`{prior}`", f"{metrics['log_px']:.2f}", difference, f"{metrics['elbo']:.2f}", f"{metrics['rate']:.2f}"]
    cells += [f"{metrics['marginal_kl']:.2f}", f"{result['in_holes']:.0%}"]
    cells += [f"{used:.0f} of {SETTINGS['num_pseudo_inputs']}" if used and not math.isnan(used) else ""]
    return [*cells, f"{result['seconds'] / 60:.1f}", results_page.machines_of([result])]


def part():
    """The table and the pictures."""
    vamp = config_of("vamp")
    names = {f"{group_of(vamp)}_{name}": words for name, words in TOGETHER.items()}
    names |= {f"{vamp.training_id}_{name}": words for name, words in OF_VAMP.items()}
    lines = [f"![{words}](../img/{name}.png)\n" for name, words in names.items()]
    return "\n".join([results_page.table(HEADER, "lrrrrrrrrl", [cells_of(prior) for prior in PRIORS]), *lines])


def main():
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", action="store_true", help="train, score and draw what is missing")
    parser.add_argument("--runs_dir", type=Path, default=Path("runs", "tour"))
    parser.add_argument("--hardware", default="not stated", help="a word on the machine, stored with the result")
    args = parser.parse_args()
    code = produce(args) if args.train else 0
    if not code:
        results_page.write("priors_tour.py", part(), PAGE)
    return code


if __name__ == "__main__":
    sys.exit(main())
