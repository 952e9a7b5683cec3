"""Train and score rows of the VampPrior paper's table, and write docs/results.md's and README's tables of them.

    python benchmarks/paper_table.py [ROW ...] [--seeds 0 1 2] [--backend jax] [--hardware "two cores of ..."]

A ROW is a preset (`python train.py --list_presets`). What is trained and scored already is not done again, and what was
interrupted goes on. Each result becomes a file in benchmarks/results/; without a ROW the table alone is written, from
the files that are there. What others report stands in the column "reference" alone.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

sys.path.insert(0, str(Path(__file__).parent.parent))

import experiment
from benchmarks import results_page
from experiment import presets
from experiment.presets import preset, preset_names
from runtime import atomic, backend

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DENSE = [name for name in preset_names() if preset(name).settings.get("network", "conv") != "conv"]
ROWS = [name for name in DENSE if not name.startswith(("bounds_", "mcvae_"))]  # those have a table of their own
SCORES = {  # what is scored, how its file is named, and the words that ask for it
    "metrics": ("is_S5000", ("--proposal", "posterior", "--num_samples", "5000")),  # as in the paper
    "fitted": ("isfitted_S500", ("--proposal", "fitted", "--num_samples", "500")),
}
HEADER = (
    *("ROW", "K", "log p(x) by q", "log p(x)", "doubtful", "ELBO", "active units", "ESS by q", "reference"),
    *("seeds", "backend", "training, min", "hardware"),
)

BEST = (  # the rows of the README
    *("staticmnist_vae_standard", "staticmnist_vae_vamp", "staticmnist_hvae_standard", "staticmnist_hvae_vamp"),
    *("caltech101_hvae_vamp", "freyfaces_hvae_vamp"),
)


def result_file(name, seed):
    """Where the result of a row and a seed is."""
    return RESULTS / f"paper_{name}_seed{seed}.json"


def config_of(name, seed, runs_dir):
    """The Config of a row and a seed."""
    return experiment.Config(**(preset(name).settings | {"seed": seed, "runs_dir": str(runs_dir)}))


def produce(name, seed, args, scores=tuple(SCORES)):
    """Trains and scores a row, as far as that is not done, and writes its result file; stops if a score has a note."""
    config = config_of(name, seed, args.runs_dir)
    backend = args.backend or (experiment.load(config.path).backend if config.path.is_dir() else None)
    place = ["--preset", name, "--seed", str(seed), "--runs_dir", str(args.runs_dir)]
    call("train.py", *place, *with_backend(backend))
    run = experiment.load(config.path)
    if run.note:
        sys.exit(f"{run.path}: {run.note}; such a result has no place in the table")
    for tag, words in (SCORES[score] for score in scores):
        if not is_scored(run, tag):
            call("evaluate.py", run.path, *words, *with_backend(args.score_backend or backend))
    path = result_file(name, seed)
    hardware = results_page.hardware_of(path, run, args.hardware)
    atomic.write_json(path, collected(run, name, hardware, scores))


def call(script, *words):
    """Runs a script of this project, and ends as it does if it fails."""
    if code := subprocess.run([sys.executable, ROOT / script, *words], check=False).returncode:
        sys.exit(code)


def with_backend(name):
    """The words that choose it, if it is named."""
    return ["--backend", name] if name else []


def score_file(run, tag):
    """Where evaluate.py writes a score of the whole test split."""
    return run.path / "evaluations" / f"test_{tag}_N{len(run.images('test'))}.json"


def is_scored(run, tag):
    """Whether that score is there, and of the weights that the run has."""
    try:
        metrics = json.loads(score_file(run, tag).read_text())
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(metrics, dict) and metrics.get("weights_sha256") == run.weights_sha256


def collected(run, name, hardware, scores):
    """What the table needs of a run, and what it takes to repeat it."""
    return about(run, name, hardware) | {
        score: json.loads(score_file(run, SCORES[score][0]).read_text()) for score in scores
    }


def about(run, name, hardware):
    """What it takes to repeat a run of a preset."""
    return {"preset": name} | facts(run, hardware)


def facts(run, hardware):
    """What it takes to repeat a run."""
    record = run.record
    return {
        "settings": {key: value for key, value in record["config"].items() if not key.endswith("_dir")},
        "backend": run.backend,
        "git_commit": record["git_commit"],
        "versions": record["versions"],
        "data_sha256": record["data_sha256"],
        "status": run.status,
        "hardware": hardware,
    }


def results_of(name):
    """The results of a row that there are, one for each seed."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"paper_{name}_seed*.json"))]


def cells_of(name):
    """The cells of a row."""
    preset, results = presets.preset(name), results_of(name)
    config = experiment.Config(**preset.settings)
    what = [f"`{name}`", config.settings.get("num_pseudo_inputs", "")]
    if not results:
        return [*what, "not run here", *[""] * 5, preset.expected, *[""] * 4]
    metrics = [one["metrics"] for one in results]
    scores = [log_px([one.get(score) for one in results], config.observation) for score in SCORES]
    scores += [doubtful([one.get("fitted") for one in results]), elbo(metrics), active_units(metrics)]
    scores.append(f"{mean(one['ess_median'] for one in metrics):.0f}")
    trained = [len(results), backends(results), f"{mean(minutes_of(results)):.0f}", results_page.machines_of(results)]
    return [*what, *scores, preset.expected, *trained]


def backends(results):
    """The backends of training and, where it was another, of scoring."""
    scored = [one[name].get("backend", one["backend"]) for one in results for name in SCORES if name in one]
    return ", ".join(dict.fromkeys([*(one["backend"] for one in results), *scored]))


def minutes_of(results):
    """How long each training took."""
    return [one["status"]["seconds"] / 60 for one in results]


def elbo(metrics):
    """The mean ELBO."""
    return f"{mean(one['elbo'] for one in metrics):.2f}"


def log_px(scores, observation):
    """A mean and its error, that of Monte Carlo or, of several seeds, their sd; nothing where a score is missing."""
    if None in scores:
        return ""
    values = [one["log_px"] for one in scores]
    error = stdev(values) if len(values) > 1 else scores[0]["log_px_se"]
    bits = "" if observation == "bernoulli" else f" ({mean(one['bits_per_dim'] for one in scores):.3f} bits/dim)"
    return f"{mean(values):.2f} ± {error:.2g}{bits}"


def doubtful(scores):
    """How many images have no log p(x) that can be trusted, the mean over seeds, of how many; or nothing."""
    if None in scores:
        return ""
    return f"{round(mean(one['doubtful'] for one in scores), 1):g} of {scores[0]['num_images']}"


def active_units(metrics):
    """The active units of each layer, the top one first, the mean over seeds, of how many there are: 38 + 25 of 80."""
    layers = zip(*(one["active_units"] for one in metrics), strict=True)
    return f"{' + '.join(f'{round(mean(layer), 1):g}' for layer in layers)} of {sum(metrics[0]['units'])}"


def table():
    """The whole table, the rows with results first."""
    ordered = sorted(ROWS, key=lambda name: not results_of(name))
    return results_page.table(HEADER, "lrrrrrrrlrlrl", [cells_of(name) for name in ordered])


def best():
    """The README's table: of the rows BEST, the scores, the reference, the seeds and the minutes of training."""
    shown = ("ROW", "log p(x) by q", "log p(x)", "reference", "seeds", "training, min")
    columns = [HEADER.index(name) for name in shown]
    lines = [[cells_of(name)[column] for column in (*columns, -1)] for name in BEST]
    return results_page.table([*(HEADER[column] for column in columns), "hardware"], "lrrlrrl", lines)


def write():
    """Writes both tables."""
    results_page.write("paper_table.py", table())
    results_page.write("paper_table.py", best(), results_page.README)


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs_dir", type=Path, default=Path("runs", "paper"))
    parser.add_argument("--backend", choices=backend.BACKENDS)
    parser.add_argument("--score_backend", choices=backend.BACKENDS, help="if it is to be another one")
    parser.add_argument("--hardware", default="not stated", help="a word on the machine, stored with the result")
    args = parser.parse_args()
    if unknown := set(args.rows) - set(ROWS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(ROWS)}")
    for name in args.rows:
        for seed in args.seeds:
            produce(name, seed, args)
            write()
    write()


if __name__ == "__main__":
    main()
