"""Measure what `--deterministic on` costs: the same training with it and without, in turn, on each backend.

    python benchmarks/deterministic.py [--rounds 5] [--json FILE] [--backends tensorflow jax]

Each training is a process of its own, for the choice is one for good. Printed: median seconds of an epoch after the
first, which compiles, their ratio, and whether both ways gave the same history.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

import experiment
from experiment.record import git_commit, versions
from runtime import atomic, text
from runtime.backend import BACKENDS

TRAIN = Path(__file__).parent.parent / "train.py"
SETTINGS = {
    "data_set": "digits",
    "model": "hvae",
    "prior": "vamp",
    "network_size": 1.0,
    "num_pseudo_inputs": 100,
    "batch_size": 100,
    "epochs": 4,
    "lr": 1e-3,
}


def epochs(backend, deterministic):
    """The rows of history.csv of one training."""
    with tempfile.TemporaryDirectory() as folder:
        config = experiment.Config(**SETTINGS, deterministic=deterministic, runs_dir=folder)
        flags = [word for name, value in SETTINGS.items() for word in (f"--{name}", str(value))]
        flags += ["--deterministic", deterministic, "--runs_dir", folder, "--backend", backend]
        subprocess.run([sys.executable, str(TRAIN), *flags], check=True, capture_output=True)
        with open(config.path / "history.csv", newline="") as file:
            return [dict(row) for row in csv.DictReader(file)]


def compare(backend, rounds, bar):
    """A row of the table."""
    seconds, seen = {"on": [], "off": []}, set()
    for _ in range(rounds):
        for way in seconds:
            rows = epochs(backend, way)
            seconds[way] += [float(row.pop("seconds")) for row in rows][1:]
            seen.add(json.dumps(rows))
            bar.update()
    on, off = (median(measured) for measured in seconds.values())
    return {"backend": backend, "on, s": on, "off, s": off, "on / off": on / off, "same history": len(seen) == 1}


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="trainings each way")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    parser.add_argument("--hardware", default="not stated", help="a word on the machine, stored with the rows")
    args = parser.parse_args()
    with tqdm(total=2 * args.rounds * len(args.backends), disable=not sys.stderr.isatty()) as bar:
        table = [compare(backend, args.rounds, bar) for backend in args.backends]
    print(text.table(table))
    if args.json:
        settings = SETTINGS | {"rounds": args.rounds}
        about = {"hardware": args.hardware, "versions": versions(), "git_commit": git_commit()}
        atomic.write_json(args.json, about | {"settings": settings, "rows": table})


if __name__ == "__main__":
    main()
