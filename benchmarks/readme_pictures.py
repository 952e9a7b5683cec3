"""Trains, scores and draws the eight runs of docs/results.md, and writes their table and pictures.

    python plot.py --readme [--network_size 16] [--epochs 250] [--lr 1e-4] [--hardware "two cores of ..."]

Two data sets and four models with two latent dimensions. What is finished is skipped, and what was interrupted
continues. Each run leaves a file in benchmarks/results/; the page shows the largest setting for which all runs are
there. Without --readme, this script only writes that part of the page.
"""

import dataclasses
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import evaluate
import experiment
import plot
import train
from benchmarks import results_page
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
FIXED = {"latent_dim": 2}  # of all these runs, even if the default changes
SMALL = {"network_size": 1.0, "epochs": 10, "lr": 1e-3}  # takes two cores an hour
MOST_IMAGES = 1000  # that are scored
FIGURES = ("input", "reconmanifold", "embedding_mean", "pseudouse", "overlay", "curves", "priors")
HEADER = (
    *("data", "model", "prior", "log p(x)", "by", "± estimator", "± images", "ELBO", "rate", "distortion"),
    *("doubtful", "pseudo-inputs in use", "training, min", "scoring, min"),
)


def produce(args):
    """Does what is not finished yet, for the flags of plot.py; returns the exit code."""
    check(plot.RULES, args)
    configs, place = configs_of(args), ["--device", args.device, *(["--backend", args.backend] if args.backend else [])]
    for number, config in enumerate(configs, 1):
        print(f"[{number}/{len(configs)}] {config.path}", flush=True)
        code = train.main([*words_of(config), *place]) or scored(config, place)
        if code:
            return code  # the same command continues
    for data_set in DATA_SETS:
        runs = [str(config.path) for config in configs if config.data_set == data_set]
        if code := plot.main([*runs, "--figures", *FIGURES, "--out", str(IMG), *place]):
            return code
    for config in configs:
        collect(config, args.hardware or "hardware not stated")
    return write(args)


def write(args):
    """Writes the page's table and pictures; returns the exit code."""
    results_page.write("readme_pictures.py", part())
    return 0


def configs_of(args):
    """The Config of each run that the flags ask for. Raises UserError for settings that no run can have."""
    given = {name: getattr(args, name) for name in SMALL if getattr(args, name) is not None} or SMALL
    given = given | FIXED | {"runs_dir": args.runs_dir, "data_dir": args.data_dir}
    return [Config(data_set=name, model=m, prior=p, **given) for name in DATA_SETS for m, p in MODELS]


def scored(config, place):
    """Scores a run unless it is scored; returns the exit code of evaluate.py."""
    run = experiment.load(config.path, config.data_dir)
    wanted = {"num_images": min(MOST_IMAGES, len(run.images("test"))), "split": "test", "tag": Scoring.of(run).tag}
    if wanted.items() <= run.metrics.items() and "selection" in run.metrics:  # without, of the first images
        return 0
    where = ["--data_dir", config.data_dir] if config.data_dir else []
    return evaluate.main([str(config.path), "--max_images", str(MOST_IMAGES), *where, *place])


def collect(config, hardware):
    """Writes what the page needs of a run: settings, commit, how training ended, scores and hardware."""
    run = experiment.load(config.path, config.data_dir)
    settings = {name: value for name, value in dataclasses.asdict(run.config).items() if not name.endswith("_dir")}
    kept = {name: run.record[name] for name in ("backend", "git_commit", "versions", "data_sha256")}
    file = RESULTS / f"readme_{run.config.training_id}.json"
    before = json.loads(file.read_text()) if file.exists() else {}
    if before.get("metrics", {}).get("weights_sha256") == run.weights_sha256 and hardware.endswith("not stated"):
        hardware = before["hardware"]  # it was trained where it was said to be
    about = {"settings": settings, "status": run.status, "note": run.note, "hardware": hardware}
    atomic.write_json(file, about | kept | {"metrics": run.metrics})


def shown():
    """A dict of the Configs of the page's runs to their results, for the largest complete setting.

    Raises UserError if there is none.
    """
    settings = {}
    for path in RESULTS.glob("readme_*.json"):
        result = json.loads(path.read_text())
        config = Config(**result["settings"])
        one = settings.setdefault(tuple(getattr(config, name) for name in SMALL), {})
        one[config.data_set, config.model, config.prior] = config, result
    wanted = [(name, *model) for name in DATA_SETS for model in MODELS]
    complete = {setting: found for setting, found in settings.items() if set(wanted) <= set(found)}
    if not complete:
        raise UserError(f"{RESULTS} has no setting of which all {len(wanted)} runs are there; see plot.py --readme")
    largest = complete[max(complete, key=lambda setting: (setting[0] * setting[1], setting))]
    return dict(largest[name] for name in wanted)


def part():
    """The table and the pictures."""
    results = shown()
    head = [f"| {' | '.join(HEADER)} |", "|---|---|---|---:|---|" + "---:|" * 9]
    lines = [*head, *(row(config, result) for config, result in results.items()), "", about(results)]
    for data_set in DATA_SETS:
        lines += ["", *pictures({one: result for one, result in results.items() if one.data_set == data_set})]
    return "\n".join(lines)


def row(config, result):
    """A line of the table."""
    metrics, minutes = result["metrics"], minutes_of(result)
    used = metrics["components_in_use"]
    cells = [config.data_set, config.model, config.prior]
    cells += [f"{metrics['log_px']:.2f}", metrics["estimator"], f"{metrics['log_px_se']:.3f}"]
    cells.append(f"{metrics['log_px_se_images']:.2f}")
    cells += [f"{metrics[name]:.2f}" for name in ("elbo", "rate", "distortion")]
    cells += [str(metrics["doubtful"]), f"{used:.0f} of {config.num_pseudo_inputs}" if used else "", f"{minutes:.1f}"]
    cells.append(f"{metrics['seconds'] / 60:.1f}")
    return f"| {' | '.join(cells)} |"


def about(results):
    """A paragraph on what the numbers of the table are, and where they were computed."""
    config, result = next(iter(results.items()))
    words = {name: dict.fromkeys(one[name] for one in results.values()) for name in ("hardware", "backend", "note")}
    commits = dict.fromkeys((one["git_commit"] or "unknown")[:7] for one in results.values())
    count, order = result["metrics"]["num_images"], result["metrics"].get("selection", "the first")
    minutes = sum(one["status"]["seconds"] + one["metrics"]["seconds"] for one in results.values()) / 60
    words["note"].pop("", None)
    said = f"In nats per image, for {order} {count:,} test images. All runs have {setting(config)}, "
    said += f"seed {config.seed} and two latent dimensions. "
    said += f"Commit {', '.join(commits)}, {' and '.join(words['backend'])}, {'; '.join(words['hardware'])}; "
    said += f"{minutes:.0f} minutes in all."
    return " ".join([said, *(f"{note}." for note in words["note"])])


def setting(config):
    """The settings that the flags may change, in words."""
    return f"network size {config.network_size:g}, {config.epochs} epochs, learning rate {config.lr:g}"


def pictures(results):
    """The lines that show the pictures of one data set, beginning with those that compare its runs."""
    config = next(iter(results))
    name, group = config.data_set, group_of(config)
    minutes = ", ".join(f"{one.model} {one.prior} {minutes_of(result):.1f}" for one, result in results.items())
    words = {
        "losshistory": f"Validation ELBO of the four models on {name} by epoch",
        "curves": f"Validation ELBO, rate and distortion of the four models on {name} by epoch",
        "priors": f"Samples of the four models on {name}, N(0, I) on the left, VampPrior on the right",
    }
    lines = [f"**{name}**: {setting(config)}; minutes of training: {minutes}."]
    lines += [*images({f"{group}_{stem}": text for stem, text in words.items()}), ""]
    lines += folded(f"{name}: ten test images of each class", {f"{name}_input": f"Test images of {name}"})
    for one, result in results.items():
        lines += ["", *pictures_of(one, result)]
    return lines


def pictures_of(config, result):
    """The lines that show the pictures of one run, below its settings, its score and its time."""
    name = f"{config.data_set}, {config.model}, {config.prior}"
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
