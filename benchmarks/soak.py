"""Train many tiny runs, kill their processes at random moments, start them again, and count what was lost.

    python benchmarks/soak.py [--runs 200] [--kills 40] [--epochs 10] [--backend jax] [--json FILE]

`python train.py` trains one grid of runs that differ in their seed. Two of three times, it and the process of its run
are killed (kill -9), the third time it is asked to stop; then the same command resumes the grid. Reported at the end:
epochs that were finished before a kill and are missing from the history, or were trained again (lost); runs whose
history has a gap or a duplicate; and how many of a sample of runs differ in any number from the same run trained
without a kill.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

import experiment
from experiment.record import git_commit, versions
from runtime import atomic, backend
from runtime.command import STOPPED
from runtime.text import table

ROOT = Path(__file__).parent.parent
SETTINGS = {
    "data_set": "digits",
    "model": "vae",
    "prior": "vamp",
    "network_size": 0.25,
    "num_pseudo_inputs": 10,
    "batch_size": 100,
    "max_train_images": 400,
    "lr": 1e-3,
    "beta_warmup": 3,
    "save_minutes": 1e-3,
}
COMPARED = 5  # runs that are trained again without interruption


def command(runs_dir, epochs, seeds, backend):
    """The words that train a grid with these seeds."""
    flags = [word for name, value in SETTINGS.items() for word in (f"--{name}", str(value))]
    grid = ["--gs_key", "soak", "--seed", *map(str, seeds), "--epochs", str(epochs), "--runs_dir", str(runs_dir)]
    return [sys.executable, str(ROOT / "train.py"), *flags, *grid, "--backend", backend]


def path_of(runs_dir, epochs, seed):
    """Where the run of this seed lies."""
    return experiment.Config(**SETTINGS, epochs=epochs, seed=seed, gs_key="soak", runs_dir=str(runs_dir)).path


def rows_of(path):
    """The lines of a history without its head; none where there is no history yet."""
    file = path / "history.csv"
    return file.read_text().splitlines()[1:] if file.is_file() else []


def soak(words, paths, kills, rng):
    """Trains the grid to its end through so many kills; returns the rows that each kill found."""
    found, done = [], 0
    due = sorted(rng.choices(range(2 * len(paths) // 3), k=kills))  # numbers of finished runs at which to kill
    with tqdm(total=len(paths), unit="run", disable=not sys.stderr.isatty()) as bar:
        while done < len(paths):
            with (
                tempfile.TemporaryFile("w+") as errors,  # not a pipe, which would block a process that says much
                subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=errors) as process,
            ):
                moment, reached = rng.uniform(0, 4), None
                while process.poll() is None:
                    done = sum(map(_finished, paths))
                    bar.update(done - bar.n)
                    if due and done >= due[0] and reached is None and _trains(paths, process):
                        reached = time.monotonic()
                    if reached is not None and time.monotonic() - reached > moment:
                        _kill(process, signal.SIGTERM if len(found) % 3 == 2 else signal.SIGKILL)
                        found.append({path: rows_of(path) for path in paths if path.is_dir()})
                        due.pop(0)
                        break
                    time.sleep(0.02)
                if process.returncode not in (0, -signal.SIGKILL, STOPPED):
                    errors.seek(0)
                    raise SystemExit(f"train.py ended with {process.returncode}: {errors.read()[-2000:]}")
            done = sum(map(_finished, paths))
    return found


def _kill(process, number):
    """Sends a signal to the process of the grid, SIGKILL also to that of its run, and waits until both have ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children()
        process.send_signal(number)
        for child in children if number == signal.SIGKILL else []:
            child.kill()
        psutil.wait_procs(children)
    process.wait()


def _finished(path):
    try:
        return json.loads((path / "status.json").read_text())["state"] == "finished"
    except FileNotFoundError:
        return False


def _trains(paths, process):
    """Whether a process that this one has started trains one of the runs."""
    with contextlib.suppress(psutil.NoSuchProcess):
        pids = {child.pid for child in psutil.Process(process.pid).children()}
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                if json.loads((path / "status.json").read_text()).get("process", {}).get("pid") in pids:
                    return True
    return False


def lost_epochs(found, paths):
    """How many rows that a kill found are not in the final history, to the last digit and second."""
    final = {path: rows_of(path) for path in paths}
    return sum(row not in final[path] for rows in found for path in rows for row in rows[path])


def broken_histories(paths, epochs):
    """How many runs' epochs are not 1 to `epochs`, each once."""
    return sum([row.split(",")[0] for row in rows_of(path)] != [str(n + 1) for n in range(epochs)] for path in paths)


def main():
    """Runs the soak test and prints its counts; returns 0 if nothing was lost."""
    args = arguments()
    with tempfile.TemporaryDirectory() as folder:
        row = soaked(args, Path(folder))
    print(table([row]))
    if args.json:
        atomic.write_json(args.json, row | {"versions": versions(), "git_commit": git_commit()})
    return int(any(row[name] for name in ("lost_epochs", "broken_histories", "different", "files_left")))


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--backend", choices=backend.BACKENDS, default="tensorflow")
    parser.add_argument("--json", type=Path, help="write the counts to this file too")
    return parser.parse_args()


def soaked(args, folder):
    """The counts of a soak test in this empty folder: a dict."""
    rng, started = random.Random(args.seed), time.perf_counter()
    seeds = list(range(args.runs))
    paths = [path_of(folder / "runs", args.epochs, seed) for seed in seeds]
    words = command(folder / "runs", args.epochs, seeds, args.backend)
    found = soak(words, paths, args.kills, rng)
    interrupted = [i for i in seeds if any(len(rows.get(paths[i], range(args.epochs))) < args.epochs for rows in found)]
    sample = sorted(rng.sample(interrupted, min(COMPARED, len(interrupted))))
    same = same_alone(args, folder / "alone", {seed: paths[seed] for seed in sample})
    left = [path for path in folder.rglob(".*") if path.name != ".lock"]
    return {
        "backend": args.backend,
        "runs": args.runs,
        "kills": len(found),
        "lost_epochs": lost_epochs(found, paths),
        "broken_histories": broken_histories(paths, args.epochs),
        "compared": len(sample),
        "different": same.count(False),
        "files_left": len(left),
        "minutes": (time.perf_counter() - started) / 60,
    }


def same_alone(args, folder, paths):
    """Whether each of these runs, by seed, has the numbers of the same run trained without a kill: a list."""
    again = command(folder, args.epochs, [*paths, args.runs], args.backend)  # one seed more: a grid even of one run
    subprocess.run(again, check=True, stdout=subprocess.DEVNULL)
    return [_numbers(path_of(folder, args.epochs, seed)) == _numbers(path) for seed, path in paths.items()]


def _numbers(path):
    return [row.rsplit(",", 1)[0] for row in rows_of(path)], (path / "best.safetensors").read_bytes()


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.exit(main())
