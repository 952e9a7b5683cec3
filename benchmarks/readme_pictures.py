"""The README's runs: trained, scored and drawn as far as they are not, and its table and pictures written from them.

    python plot.py --readme [--network_size 16] [--epochs 250] [--lr 1e-4] [--hardware "two cores of ..."]

Two data sets and four models of two latents. What is trained and scored already is not done again, and what was
interrupted goes on. Each run leaves a file in benchmarks/results/; of several settings, the README shows the largest
one of which all runs are there. `python benchmarks/readme_pictures.py` writes that part of the README alone.
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
from benchmarks import readme
from experiment import Config
from experiment.flags import words_of
from plotting.comparisons import Group
from runtime import atomic
from runtime.errors import UserError

RESULTS = Path(__file__).parent / "results"
IMG = readme.README.parent / "img"
DATA_SETS = ("mnist", "fashionmnist")
MODELS = tuple((model, prior) for model in ("vae", "hvae") for prior in ("standard", "vamp"))
FIXED = {"latent_dim": 2}  # of all these runs, whatever becomes usual
SMALL = {"network_size": 1.0, "epochs": 10, "lr": 1e-3}  # what two cores do in an hour
SCORE = {"max_images": 1000, "num_samples": 500}  # flags of evaluate.py
FIGURES = ("input", "reconmanifold", "embedding_mean", "pseudouse", "overlay", "curves", "priors")
HEADER = (
    *("data", "model", "prior", "log p(x)", "± Monte Carlo", "± images", "ELBO", "rate", "distortion"),
    *("doubtful", "pseudo-inputs in use", "training, min", "scoring, min"),
)


def produce(args):
    """Does all of it, as far as it is not done, for the flags of plot.py; returns the exit code."""
    if args.runs or strange_to(args):
        said = "--readme has runs and figures of its own, and writes to img/ and README.md"
        raise UserError(f"{said}; it does not go with {'RUN' if args.runs else f'--{strange_to(args)[0]}'}")
    configs, place = configs_of(args), ["--device", args.device, *(["--backend", args.backend] if args.backend else [])]
    for number, config in enumerate(configs, 1):
        print(f"[{number}/{len(configs)}] {config.path}", flush=True)
        code = train.main([*words_of(config), *place]) or scored(config, place)
        if code:
            return code  # the same command goes on
    for data_set in DATA_SETS:
        runs = [str(config.path) for config in configs if config.data_set == data_set]
        if code := plot.main([*runs, "--figures", *FIGURES, "--out", str(IMG), *place]):
            return code
    for config in configs:
        collect(config, args.hardware or "hardware not stated")
    readme.write("readme_pictures.py", part())
    return 0


def strange_to(args):
    """The names of the flags that were given and do not go with --readme."""
    return [name for name in ("gs_key", "out", "figures", "format", "report", "export") if getattr(args, name)]


def configs_of(args):
    """The Config of each run that the flags ask for. Raises UserError for settings that no run can have."""
    given = {name: getattr(args, name) for name in SMALL if getattr(args, name) is not None} or SMALL
    given = given | FIXED | {"runs_dir": args.runs_dir, "data_dir": args.data_dir}
    return [Config(data_set=name, model=m, prior=p, **given) for name in DATA_SETS for m, p in MODELS]


def scored(config, place):
    """Scores a run unless it is; returns the exit code of evaluate.py."""
    run = experiment.load(config.path, config.data_dir)
    count = min(SCORE["max_images"], len(run.images("test")))
    wanted = {"num_images": count, "split": "test", "num_samples": SCORE["num_samples"], "proposal": "fitted"}
    metrics = run.metrics
    if all(metrics.get(name) == value for name, value in wanted.items()):
        return 0
    words = [word for name, value in SCORE.items() for word in (f"--{name}", str(value))]
    where = ["--data_dir", config.data_dir] if config.data_dir else []
    return evaluate.main([str(config.path), *words, *where, *place])


def collect(config, hardware):
    """Writes what the README needs of a run: settings, commit, how training ended, scores and hardware."""
    run = experiment.load(config.path, config.data_dir)
    settings = {name: value for name, value in dataclasses.asdict(run.config).items() if not name.endswith("_dir")}
    kept = {name: run.record[name] for name in ("backend", "git_commit", "versions", "data_sha256")}
    file = RESULTS / f"readme_{run.config.training_id}.json"
    before = json.loads(file.read_text()) if file.exists() else {}
    if before.get("metrics", {}).get("weights_sha256") == run.weights_sha256 and hardware.endswith("not stated"):
        hardware = before["hardware"]  # drawn again, it was trained where it was
    about = {"settings": settings, "status": run.status, "note": run.note, "hardware": hardware}
    atomic.write_json(file, about | kept | {"metrics": run.metrics})


def shown():
    """The Configs and results of the README's runs, of the largest setting that is complete: a dict, in its order.

    Raises UserError where there is none.
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
    """The README's table and pictures."""
    results = shown()
    head = [f"| {' | '.join(HEADER)} |", "|---|---|---|" + "---:|" * 10]
    lines = [*head, *(row(config, result) for config, result in results.items()), "", about(results)]
    for data_set in DATA_SETS:
        lines += ["", *pictures({one: result for one, result in results.items() if one.data_set == data_set})]
    return "\n".join(lines)


def row(config, result):
    """A line of the table."""
    metrics, minutes = result["metrics"], minutes_of(result)
    used = metrics["components_in_use"]
    cells = [config.data_set, config.model, config.prior]
    cells += [f"{metrics['log_px']:.2f}", f"{metrics['log_px_se']:.3f}", f"{metrics['log_px_se_images']:.2f}"]
    cells += [f"{metrics[name]:.2f}" for name in ("elbo", "rate", "distortion")]
    cells += [str(metrics["doubtful"]), f"{used:.0f} of {config.num_pseudo_inputs}" if used else "", f"{minutes:.1f}"]
    cells.append(f"{metrics['seconds'] / 60:.1f}")
    return f"| {' | '.join(cells)} |"


def about(results):
    """A paragraph on what the table's numbers are, and where and when they were made."""
    config, result = next(iter(results.items()))
    words = {name: dict.fromkeys(one[name] for one in results.values()) for name in ("hardware", "backend", "note")}
    commits = dict.fromkeys((one["git_commit"] or "unknown")[:7] for one in results.values())
    count, samples = result["metrics"]["num_images"], result["metrics"]["num_samples"]
    minutes = sum(one["status"]["seconds"] + one["metrics"]["seconds"] for one in results.values()) / 60
    sentences = [
        f"Nats an image, of the first {count:,} test images, log p(x) by {samples} samples of a fitted density each; "
        f"{setting(config)}, seed {config.seed}, two latent dimensions; commit {', '.join(commits)}, "
        f"{' and '.join(words['backend'])}, {'; '.join(words['hardware'])}; {minutes:.0f} minutes for all of it."
    ]
    return " ".join([*sentences, *(f"{note}." for note in words["note"] if note)])


def setting(config):
    """What the size of the runs was, in words."""
    return f"network size {config.network_size:g}, {config.epochs} epochs, learning rate {config.lr:g}"


def pictures(results):
    """The lines that show the pictures of one data set, those of all its runs first."""
    config = next(iter(results))
    name, group = config.data_set, Group.of(config).name
    minutes = ", ".join(f"{one.model} {one.prior} {minutes_of(result):.1f}" for one, result in results.items())
    lines = [
        f"**{name}**: {setting(config)}; minutes of training: {minutes}.",
        "",
        image(f"{group}_losshistory", f"Validation ELBO of the four models on {name} by epoch"),
        "",
        image(f"{group}_curves", f"Validation ELBO, rate and distortion of the four models on {name} by epoch"),
        "",
        image(f"{group}_priors", f"Samples of the four models on {name}, N(0, I) on the left, VampPrior on the right"),
        "",
        *folded(f"{name}: ten test images of each class", {f"{name}_input": f"Test images of {name}"}),
    ]
    for one, result in results.items():
        lines += ["", *pictures_of(one, result)]
    return lines


def pictures_of(config, result):
    """The lines that show the pictures of one run, below what it is, how good, and how long it took."""
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
    """How long a run was trained."""
    return result["status"]["seconds"] / 60


def folded(summary, images, is_open=False):
    """The lines of pictures, words by file, at the page's whole width, where they can be read, behind their summary."""
    lines = [f"<details{' open' * is_open}><summary>{summary}</summary>"]
    for stem, words in images.items():
        lines += ["", image(stem, words)]
    return [*lines, "", "</details>"]


def image(stem, words):
    """Markdown of a picture that `produce` draws."""
    return f"![{words}](img/{stem}.png)"


if __name__ == "__main__":
    readme.write("readme_pictures.py", part())
