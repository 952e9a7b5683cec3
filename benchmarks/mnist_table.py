"""Write the README's table of the four models on MNIST from benchmarks/results/mnist_*.json, or collect those first.

python benchmarks/mnist_table.py                              # write the table
python benchmarks/mnist_table.py --collect runs/RUN [RUN ...] # write a result file for each run first
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import atomic
import experiment
from benchmarks import readme

RESULTS = Path(__file__).parent / "results"
NAMES = ("model", "prior", "log p(x)", "± Monte Carlo", "± images", "ELBO", "rate", "distortion", "ESS")
HEADER = f"| {' | '.join(NAMES)} | training, min | scoring, min |"


def collect(path, hardware):
    """Writes what the table needs of one run: settings, commit, history's end, metrics, minutes and hardware."""
    run = experiment.load(path)
    record = json.loads((run.path / "config.json").read_text())
    result = {
        "training_id": run.config.training_id,
        "config": {name: value for name, value in dataclasses.asdict(run.config).items() if not name.endswith("_dir")},
        "git_commit": record["git_commit"],
        "data_sha256": record["data_sha256"],
        "status": run.status,
        "metrics": json.loads((run.path / "metrics.json").read_text()),
        "hardware": hardware,
    }
    atomic.write_json(RESULTS / f"{run.config.training_id}.json", result)


def row(result):
    """A line of the table."""
    m, config = result["metrics"], result["config"]
    cells = [
        config["model"],
        config["prior"],
        f"{m['log_px']:.2f}",
        f"{m['log_px_se']:.3f}",
        f"{m['log_px_se_images']:.2f}",
    ]
    cells += [f"{m[name]:.2f}" for name in ("elbo", "rate", "distortion")]
    cells += [f"{m['ess_median']:.0f}", f"{result['status']['seconds'] / 60:.1f}", f"{m['seconds'] / 60:.1f}"]
    return f"| {' | '.join(cells)} |"


def table():
    """The whole table."""
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("mnist_*.json"))]
    results.sort(key=lambda r: (r["config"]["model"] != "vae", r["config"]["prior"] != "standard"))
    return "\n".join([HEADER, "|---|---|" + "---:|" * 9, *map(row, results), ""])


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collect", nargs="+", metavar="RUN", default=[])
    parser.add_argument("--hardware", default="not stated", help="a word on the machine, stored with the result")
    args = parser.parse_args()
    for path in args.collect:
        collect(path, args.hardware)
    readme.write("mnist_table.py", table())


if __name__ == "__main__":
    main()
