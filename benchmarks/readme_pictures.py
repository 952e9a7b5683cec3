"""Trains, scores and draws the eight runs of docs/results.md, and writes their table and pictures.

    python plot.py --readme [--network_size 16] [--epochs 250] [--latent_dim 40] [--hardware "two cores of ..."]

Two data sets and four models. What is finished is skipped, and what was interrupted continues. Each run leaves a file
in benchmarks/results/, with its paired difference from the run with N(0, I); of each data set and number of latents the
page shows the largest setting of which all four runs are there. Without --readme, this script only writes that part of
the page.
"""

import dataclasses
import itertools
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import evaluate
import experiment
import plot
import train
from benchmarks import results_page
from benchmarks.paper_table import active_units
from benchmarks.priors_table import difference_of
from evaluation.estimators import Scoring
from experiment import Config
from experiment.flags import words_of
from plotting.comparisons import group_of
from runtime import atomic
from runtime.command import Parser, command
from runtime.errors import UserError
from runtime.rules import check

RESULTS = Path(__file__).parent / "results"
IMG = Path(__file__).parent.parent / "img"
DATA_SETS = ("mnist", "fashionmnist")
MODELS = tuple((model, prior) for model in ("vae", "hvae") for prior in ("standard", "vamp"))
SMALL = {"network_size": 1.0, "epochs": 10, "lr": 1e-3}  # takes two cores an hour
MOST_IMAGES = 1000  # that are scored
FIGURES = ("input", "reconmanifold", "embedding_mean", "pseudouse", "overlay", "curves", "priors")
HEADER = (
    *("model", "prior", "log p(x)", "± estimator", "± images", "against N(0, I)", "ELBO", "rate", "marginal KL"),
    *("active units", "doubtful", "pseudo-inputs in use", "training, min", "scoring, min", "hardware"),
)


def produce(args):
    """Does what is not finished yet, for the flags of plot.py; returns the exit code."""
    check(plot.RULES, args)
    place = ["--device", args.device, *(["--backend", args.backend] if args.backend else [])]
    for data_set, members in itertools.groupby(configs_of(args), lambda config: config.data_set):
        configs = list(members)
        for config in configs:
            print(config.path, flush=True)
            code = train.main([*words_of(config), *place]) or scored(config, place)
            if code:
                return code  # the same command continues
            collect(config, args.hardware or results_page.NOT_STATED)
        print(f"the figures of {data_set}", flush=True)
        runs = [str(config.path) for config in configs]
        if code := plot.main([*runs, "--figures", *FIGURES, "--out", str(IMG), *place]):
            return code
        write(args)
    return 0


def write(args):
    """Writes the page's tables and pictures; returns the exit code."""
    results_page.write("readme_pictures.py", part())
    return 0


def configs_of(args):
    """The Config of each run that the flags ask for. Raises UserError for settings that no run can have."""
    given = {name: getattr(args, name) for name in plot.README_SIZES if getattr(args, name) is not None} or SMALL
    given = given | {"latent_dim": args.latent_dim or 2, "runs_dir": args.runs_dir, "data_dir": args.data_dir}
    return [Config(data_set=name, model=m, prior=p, **given) for name in DATA_SETS for m, p in MODELS]


def scored(config, place):
    """Scores a run in float32, as quadrature needs, unless it is scored; returns the exit code of evaluate.py."""
    run = experiment.load(config.path, config.data_dir).in_precision("float32")
    wanted = {"num_images": min(MOST_IMAGES, len(run.images("test"))), "split": "test", "tag": Scoring.of(run).tag}
    if wanted.items() <= run.metrics.items() and "selection" in run.metrics:  # without, of the first images
        return 0
    where = ["--data_dir", config.data_dir] if config.data_dir else []
    words = ["--max_images", str(MOST_IMAGES), "--precision", "float32"]
    return evaluate.main([str(config.path), *words, *where, *place])


def collect(config, hardware):
    """Writes what the page needs of a run: settings, commit, how training ended, scores and hardware."""
    run = experiment.load(config.path, config.data_dir)
    settings = {name: value for name, value in dataclasses.asdict(run.config).items() if not name.endswith("_dir")}
    kept = {name: run.record[name] for name in ("backend", "git_commit", "versions", "data_sha256")}
    file = RESULTS / f"readme_{run.config.training_id}.json"
    hardware = results_page.hardware_of(file, run, hardware)
    about = {"settings": settings, "status": run.status, "note": run.note, "hardware": hardware}
    atomic.write_json(file, about | kept | {"metrics": run.metrics, "difference": difference(run)})


def difference(run):
    """The `difference_of` the run and that with N(0, I); None for the latter."""
    if run.config.prior == "standard":
        return None
    return difference_of(run, experiment.load(dataclasses.replace(run.config, prior="standard").path))


def shown():
    """The runs of each part of the page: (latent_dim, data set) to a dict of Config to result.

    Of each, the largest setting of which all models are there. Raises UserError if there is none at all.
    """
    settings = {}
    for path in RESULTS.glob("readme_*.json"):
        result = json.loads(path.read_text())
        config = Config(**result["settings"])
        one = settings.setdefault((config.latent_dim, config.data_set), {})
        one = one.setdefault(tuple(getattr(config, name) for name in plot.README_SIZES), {})
        one[config.model, config.prior] = config, result
    found = {}
    for place in itertools.product(sorted({latent_dim for latent_dim, _ in settings}), DATA_SETS):
        complete = {setting: one for setting, one in settings.get(place, {}).items() if set(MODELS) <= set(one)}
        if complete:
            largest = complete[max(complete, key=lambda setting: (setting[0] * setting[1], setting))]
            found[place] = dict(largest[model] for model in MODELS)
    if not found:
        raise UserError(f"{RESULTS} has no setting of which all {len(MODELS)} runs are there; see plot.py --readme")
    return found


def part():
    """The tables and the pictures."""
    lines = []
    for results in shown().values():
        config = next(iter(results))
        lines += [f"**{config.data_set}, {config.latent_dim} latents.** {about(results)}", ""]
        rows = [cells_of(config, result) for config, result in results.items()]
        lines += [results_page.table(HEADER, "ll" + "r" * (len(HEADER) - 3) + "l", rows)]
        lines += [*pictures(results), ""]
    return "\n".join(lines)


def cells_of(config, result):
    """The cells of a run's line."""
    metrics, (gain, error) = result["metrics"], result.get("difference") or (None, None)
    used = metrics["components_in_use"]
    cells = [config.model, config.prior, f"{metrics['log_px']:.2f}", f"{metrics['log_px_se']:.3f}"]
    cells += [f"{metrics['log_px_se_images']:.2f}", "" if gain is None else f"{gain:+.2f} ± {error:.2g}"]
    cells += [f"{metrics[name]:.2f}" for name in ("elbo", "rate", "marginal_kl")]
    cells += [active_units([metrics]), metrics["doubtful"]]
    cells += [f"{used:.0f} of {config.num_pseudo_inputs}" if used else "", f"{minutes_of(result):.1f}"]
    return [*cells, f"{metrics['seconds'] / 60:.1f}", results_page.machines_of([result])]


def about(results):
    """Sentences on what the numbers of a table are."""
    config, result = next(iter(results.items()))
    words = {name: dict.fromkeys(one[name] for one in results.values()) for name in ("backend", "note")}
    words["estimator"] = dict.fromkeys(scores_of(config, one["metrics"]) for one in results.values())
    commits = dict.fromkeys((one["git_commit"] or "unknown")[:7] for one in results.values())
    count = f"{result['metrics']['num_images']:,}"
    which = f"{count} random" if "selection" in result["metrics"] else f"the first {count}"
    words["note"].pop("", None)
    said = f"All four have {setting(config)}, seed {config.seed}. In nats per image, for {which} test images; "
    said += f"log p(x) is by {' and '.join(words['estimator'])}. "
    said += f"Commit {', '.join(commits)}, {' and '.join(words['backend'])}."
    return " ".join([said, *(f"{note}." for note in words["note"])])


def scores_of(config, metrics):
    """The estimator, and the precision where that of the training was another one, in words."""
    precision = metrics.get("precision", config.precision)  # which older results lack
    return metrics["estimator"] + f" in {precision}" * (precision != config.precision)


def setting(config):
    """The settings that the flags may change, in words."""
    said = f"network size {config.network_size:g}, {config.epochs} epochs, learning rate {config.lr:g}"
    said += f" ({config.lr_schedule})" if config.lr_schedule != Config.lr_schedule else ""
    said += f", {config.beta_warmup} epochs of warm-up" if config.beta_warmup else ""
    return said + (f", {config.precision}" if config.precision != Config.precision else "")


def pictures(results):
    """The lines that show the pictures of one part, beginning with those that compare its runs."""
    config = next(iter(results))
    name, group = f"{config.data_set}, {config.latent_dim} latents", group_of(config)
    words = {
        "losshistory": f"Validation ELBO of the four models by epoch: {name}",
        "curves": f"Validation ELBO, rate and distortion of the four models by epoch: {name}",
        "priors": f"Samples of the four models, N(0, I) on the left, VampPrior on the right: {name}",
    }
    lines = [*images({f"{group}_{stem}": text for stem, text in words.items()}), ""]
    input_of = {f"{config.data_set}_input": f"Test images of {config.data_set}"}
    lines += folded(f"{config.data_set}: ten test images of each class", input_of)
    for one, result in results.items():
        lines += ["", *pictures_of(one, result)]
    return lines


def pictures_of(config, result):
    """The lines that show the pictures of one run, below its settings, its score and its time."""
    name = f"{config.data_set}, {config.latent_dim} latents, {config.model}, {config.prior}"
    words = {
        "reconmanifold": f"Test images above their reconstructions and their log p(x): {name}",
        "embedding_mean": f"Posterior means of the test images over the prior's density: {name}",
    }
    if config.has_pseudo_inputs:
        words["pseudouse"] = f"How much of the test images each pseudo-input stands for: {name}"
    said = f"{name}: {setting(config)}, {minutes_of(result):.1f} min; log p(x) {result['metrics']['log_px']:.2f}"
    is_richest = (config.model, config.prior) == MODELS[-1]
    return folded(said, {f"{config.training_id}_{stem}": text for stem, text in words.items()}, is_richest)


def minutes_of(result):
    """The minutes of a run's training."""
    return result["status"]["seconds"] / 60


def folded(summary, words, is_open=False):
    """The lines of `images` folded behind a summary."""
    return [f"<details{' open' * is_open}><summary>{summary}</summary>", *images(words), "", "</details>"]


def images(words):
    """Lines that show pictures in img/, a dict of stems to words, at full width."""
    return [line for stem, text in words.items() for line in ("", f"![{text}](../img/{stem}.png)")]


def main(argv=None):
    """The command line, which is that of `plot.py --readme`; returns the exit code."""
    parser = Parser(prog="readme_pictures.py", description=__doc__.partition("\n")[0])
    plot.add_arguments(parser)
    args = parser.parse_args(argv)
    return command(produce if args.readme else write, args)


if __name__ == "__main__":
    sys.exit(main())
