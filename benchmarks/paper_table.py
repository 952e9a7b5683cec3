"""Train and score rows of the VampPrior paper's table, and write the README's table from their results.

    python benchmarks/paper_table.py [ROW ...] [--seeds 0 1 2] [--backend jax] [--hardware "two cores of ..."]

A ROW is a preset (`python train.py --list_presets`). What is trained and scored already is not done again, and what was
interrupted goes on. Each result becomes a file in benchmarks/results/; without a ROW the table alone is written, from
the files that are there. The last column but one is of this project, the last one somebody else's.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

sys.path.insert(0, str(Path(__file__).parent.parent))

import atomic
import commandline
import engine
import experiment

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
ROWS = [name for name in commandline.preset_names() if commandline.preset(name).settings["network"] != "conv"]
NUM_SAMPLES = 5000
HEADER = ("preset", "K", "log p(x)", "bits/dim", "ELBO", "rate", "seeds", "training, min", "hardware", "reference")
START, END = "<!-- benchmarks/paper_table.py writes from here -->\n", "<!-- to here -->\n"


def result_file(name, seed):
    """Where the result of a row and a seed is."""
    return RESULTS / f"paper_{name}_seed{seed}.json"


def config_of(name, seed, runs_dir):
    """The Config of a row and a seed."""
    return experiment.Config(**(commandline.preset(name).settings | {"seed": seed, "runs_dir": str(runs_dir)}))


def produce(name, seed, args):
    """Trains and scores a row, as far as that is not done, and writes its result file."""
    config = config_of(name, seed, args.runs_dir)
    where = ["--backend", args.backend] if args.backend else []
    place = ["--preset", name, "--seed", str(seed), "--runs_dir", str(args.runs_dir)]
    subprocess.run([sys.executable, ROOT / "train.py", *place, *where], check=True)
    if not is_scored(config):
        words = [config.path, "--num_samples", str(NUM_SAMPLES), *where]
        subprocess.run([sys.executable, ROOT / "evaluate.py", *words], check=True)
    atomic.write_json(result_file(name, seed), collected(experiment.load(config.path), name, args.hardware))


def is_scored(config):
    """Whether the run's latest evaluation is of the whole test split with all samples."""
    try:
        metrics = json.loads((config.path / "metrics.json").read_text())
    except FileNotFoundError:
        return False
    wanted = {"split": "test", "num_samples": NUM_SAMPLES, "num_images": config.source.num_images["test"]}
    return wanted.items() <= metrics.items()


def collected(run, name, hardware):
    """What the table needs of a run, and what it takes to repeat it."""
    record = run.record
    return {
        "preset": name,
        "settings": {key: value for key, value in record["config"].items() if not key.endswith("_dir")},
        "backend": run.backend,
        "git_commit": record["git_commit"],
        "versions": record["versions"],
        "data_sha256": record["data_sha256"],
        "status": run.status,
        "metrics": json.loads((run.path / "metrics.json").read_text()),
        "hardware": hardware,
    }


def results_of(name):
    """The results of a row that there are, one for each seed."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"paper_{name}_seed*.json"))]


def line(name):
    """A line of the table."""
    preset, results = commandline.preset(name), results_of(name)
    k = preset.settings.get("num_pseudo_inputs", experiment.Config.num_pseudo_inputs)
    k = k if experiment.Config(**preset.settings).has_components else ""
    if not results:
        cells = [f"`{name}`", k, "not run here", "", "", "", "", "", "", preset.expected]
    else:
        values = {key: [one["metrics"][key] for one in results] for key in ("log_px", "bits_per_dim", "elbo", "rate")}
        error = stdev(values["log_px"]) if len(results) > 1 else results[0]["metrics"]["log_px_se"]
        minutes = mean(one["status"]["seconds"] for one in results) / 60
        cells = [f"`{name}`", k, f"{mean(values['log_px']):.2f} ± {error:.2g}"]
        cells += [f"{mean(values['bits_per_dim']):.3f}", f"{mean(values['elbo']):.2f}", f"{mean(values['rate']):.2f}"]
        cells += [len(results), f"{minutes:.0f}", results[0]["hardware"], preset.expected]
    return f"| {' | '.join(map(str, cells))} |"


def table():
    """The whole table."""
    return "\n".join([f"| {' | '.join(HEADER)} |", "|---|---:|---|" + "---:|" * 5 + "---|---|", *map(line, ROWS), ""])


def with_table(readme):
    """The text of the README with the table of today in its place."""
    before, rest = readme.split(START)
    return before + START + "\n" + table() + "\n" + END + rest.split(END)[1]


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs_dir", type=Path, default=Path("runs", "paper"))
    parser.add_argument("--backend", choices=engine.BACKENDS)
    parser.add_argument("--hardware", default="not stated", help="a word on the machine, stored with the result")
    args = parser.parse_args()
    if unknown := set(args.rows) - set(ROWS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(ROWS)}")
    for name in args.rows:
        for seed in args.seeds:
            produce(name, seed, args)
            atomic.write(ROOT / "README.md", with_table((ROOT / "README.md").read_text()).encode())
    atomic.write(ROOT / "README.md", with_table((ROOT / "README.md").read_text()).encode())


if __name__ == "__main__":
    main()
