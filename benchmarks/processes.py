"""Images a second of a training on JAX in one process and in two, each on a core of its own: results/processes.json.

    python benchmarks/processes.py --hardware "two cores of ..."

Both train the same: the global batch is the same, and so are the numbers. Epochs but the first are timed, in turns.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import experiment  # noqa: E402
from experiment.record import git_commit, versions  # noqa: E402

COMMON = {"data_set": "mnist", "prior": "vamp", "latent_dim": 40, "batch_size": 250, "lr": 1e-3, "track": "none"}
MODELS = {
    "mlp": COMMON | {"network": "mlp", "max_train_images": 5000},
    "conv": COMMON | {"network_size": 1.0, "num_pseudo_inputs": 50, "max_train_images": 1000},
}


def free_port():
    """A port that nobody listens to."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def trained(settings, count, epochs):
    """Images a second of each epoch but the first, of a run in so many processes."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "train.py", "--backend", "jax", "--runs_dir", folder, "--epochs", str(epochs)]
        words += [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        if count > 1:
            place = ["--process_address", f"127.0.0.1:{free_port()}", "--num_processes", str(count)]
            words += ["--distribute", "processes", *place]
        cores = sorted(os.sched_getaffinity(0))
        processes = []
        for index in range(count):
            more = ["--process_index", str(index)] if count > 1 else []
            command = ["taskset", "-c", str(cores[index]), *words, *more]
            processes.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        said = [process.communicate()[0] for process in processes]
        if any(process.returncode for process in processes):
            sys.exit("a training failed; see above")
        run = experiment.load(said[0].splitlines()[-1])
        return [settings["max_train_images"] / seconds for seconds in run.history["seconds"][1:]]


def main():
    """Times both in turns, prints their medians and writes them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hardware", required=True, help="what it ran on, in words")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    rates = {(name, count): [] for name in MODELS for count in (1, 2)}
    for _ in range(args.rounds):
        for (name, count), found in rates.items():
            found.extend(trained(MODELS[name], count, args.epochs))
    result = {"hardware": args.hardware, "rounds": args.rounds, "epochs": args.epochs, "settings": MODELS}
    result |= {"versions": versions(), "commit": git_commit(), "images_a_second": {}}
    for (name, count), found in rates.items():
        numbers = {"median": statistics.median(found), "lowest": min(found), "highest": max(found)}
        result["images_a_second"][f"{name}, {count}"] = {key: round(value, 1) for key, value in numbers.items()}
    print(json.dumps(result, indent=2))
    (ROOT / "benchmarks" / "results" / "processes.json").write_text(f"{json.dumps(result, indent=2)}\n")


if __name__ == "__main__":
    main()
