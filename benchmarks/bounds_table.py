"""Train one VAE by each bound, score all alike, time a step, and write the table of bounds in docs/results.md.

    python benchmarks/bounds_table.py [ROW ...] [--backend jax] [--hardware "two cores of ..."]
    python benchmarks/bounds_table.py --cost [--rounds 7]

A ROW is a preset whose name begins with bounds_, without that, or with mcvae_mnist_, of which the published numbers
stand in the column "reference". What is trained and scored already is not done again, and what was interrupted goes on
(as of benchmarks/paper_table.py). `--cost` times a training step of the rows of bounds_ in turn, each in a process of
its own, and writes medians and peak memory.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from statistics import mean, median

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import paper_table, results_page
from benchmarks.paper_table import RESULTS
from benchmarks.train_step import in_turn
from experiment import presets
from experiment.presets import preset_names
from experiment.record import git_commit, versions
from runtime import atomic, backend
from runtime.backend import settle, start

PRESET = {name.removeprefix("bounds_"): name for name in preset_names() if name.startswith(("bounds_", "mcvae_mnist_"))}
ROWS = list(PRESET)
COST = RESULTS / "bounds_cost.json"
HEADER = (
    *("trained by", "log p(x)", "ELBO", "active units", "s a step", "of elbo's", "memory, MiB", "reference"),
    *("training, min", "hardware"),
)


def cells_of(row, costs):
    """The cells of a row."""
    preset, results = presets.preset(PRESET[row]), paper_table.results_of(PRESET[row])
    cells = ["not run here", *[""] * 2]
    trained = ["", ""]
    if results:
        scores = [one["fitted"] for one in results]
        cells = [paper_table.log_px(scores, "bernoulli"), paper_table.elbo(scores), paper_table.active_units(scores)]
        trained = [f"{mean(paper_table.minutes_of(results)):.0f}", results_page.machines_of(results)]
    spent = [""] * 3
    if cost := costs.get(row):
        spent = [f"{cost['seconds']:.3f}", f"{cost['seconds'] / costs['elbo']['seconds']:.1f}", f"{cost['mib']:.0f}"]
    return [f"`{row}`", *cells, *spent, preset.expected, *trained]


def table():
    """The whole table, in the order of cost."""
    costs = json.loads(COST.read_text())["rows"] if COST.exists() else {}
    ordered = sorted(ROWS, key=lambda row: costs.get(row, {"seconds": math.inf})["seconds"])
    return results_page.table(HEADER, "lrrrrrrlrl", [cells_of(row, costs) for row in ordered])


def work(row, backend):
    """A worker as of train_step.py, for the preset of a row."""
    import resource

    settle(backend)
    start("cpu")
    from training import fit

    prepared = fit.prepare(paper_table.config_of(PRESET[row], 0, "."))
    grey = prepared.batches[0][0]
    prepared.model.train_on_batch(grey)
    print(json.dumps("ready"), flush=True)
    for asked in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(asked)):
            prepared.model.train_on_batch(grey)
        seconds = (time.perf_counter() - began) / int(asked)
        print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]), flush=True)


def measured(args):
    """Median seconds of a step and peak memory of each row, all measured in turn; the first round is not counted."""
    command = [sys.executable, __file__, "--backend", args.backend or "tensorflow", "--worker"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    timed = [row for row in ROWS if row != PRESET[row]]  # of the others, one step takes seconds
    starts = {row: partial(subprocess.Popen, [*command, row], **pipes) for row in timed}
    _, answers = in_turn(starts, args.rounds + 1, 2)
    return {
        row: {"seconds": median(seconds for seconds, _ in values[1:]), "mib": max(mib for _, mib in values)}
        for row, values in answers.items()
    }


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--runs_dir", type=Path, default=Path("runs", "bounds"))
    parser.add_argument("--backend", choices=backend.BACKENDS)
    parser.add_argument("--score_backend", choices=backend.BACKENDS, help="if it is to be another one")
    parser.add_argument("--hardware", default="not stated", help="a word on the machine, stored with the result")
    parser.add_argument("--cost", action="store_true", help="time a step of every row")
    parser.add_argument("--rounds", type=int, default=7, help="of timing (default: 7)")
    parser.add_argument("--worker", choices=ROWS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args.worker, args.backend)
    if unknown := set(args.rows) - set(ROWS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(ROWS)}")
    for row in args.rows:
        paper_table.produce(PRESET[row], 0, args, scores=("fitted",))
    if args.cost:
        about = {"backend": args.backend or "tensorflow", "rounds": args.rounds, "hardware": args.hardware}
        about |= {"cores": os.cpu_count(), "versions": versions(), "git_commit": git_commit()}
        atomic.write_json(COST, about | {"rows": measured(args)})
    results_page.write("bounds_table.py", table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
