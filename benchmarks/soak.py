"""Train many tiny runs, kill the process at random moments, start it again, and count what was lost.

    python benchmarks/soak.py [--runs 200] [--kills 40] [--epochs 10] [--backend jax] [--json FILE]

One grid of runs that differ in their seed is trained by `python train.py`; whenever it has been killed (kill -9, or a
request to stop every third time), the same command goes on. Reported at the end: epochs that were finished when a kill
came and were not in the history afterwards, or had been trained again (lost); runs whose history has a gap or a
duplicate; runs whose every number differs from that of the same run trained alone, for a sample of them; and the
growth of the process' memory over the runs that one uninterrupted process trains.
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

import numpy as np
import psutil
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

import atomic
import commandline
import engine
import experiment

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
WARM = 20  # runs after which a process' memory is expected to stay
ALLOWED_GROWTH = 0.15  # MiB a run


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


def soak(runs_dir, words, paths, kills, rng):
    """Trains the grid to its end through so many kills; returns the rows that each kill found, and memory readings.

    The readings are lists of (runs finished by this process, resident MiB), one list for each process.
    """
    found, readings, done = [], [], 0
    spans = sorted(rng.choices(range(2 * len(paths) // 3), k=kills))  # runs that are finished when a kill falls due
    with tqdm(total=len(paths), unit="run", disable=not sys.stderr.isatty()) as bar:
        while done < len(paths):
            with (
                tempfile.TemporaryFile("w+") as errors,  # not a pipe, which would block a process that says much
                subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=errors) as process,
            ):
                due = spans.pop(0) if spans else None
                moment = rng.uniform(0, 4)
                began, readings_here, reached = done, [], None
                while process.poll() is None:
                    done = sum((path / "status.json").is_file() and _finished(path) for path in paths)
                    bar.update(done - bar.n)
                    if done > began + len(readings_here):
                        readings_here.append((done - began, _resident(process.pid)))
                    if due is not None and done >= due:
                        if reached is None and _trains(paths, process.pid):
                            reached = time.monotonic()
                        if reached is not None and time.monotonic() - reached > moment:
                            process.send_signal(signal.SIGTERM if len(found) % 3 == 2 else signal.SIGKILL)
                            process.wait()
                            found.append({path: rows_of(path) for path in paths if path.is_dir()})
                            break
                    time.sleep(0.02)
                if process.returncode not in (0, -signal.SIGKILL, commandline.STOPPED):
                    errors.seek(0)
                    raise SystemExit(f"train.py ended with {process.returncode}: {errors.read()[-2000:]}")
            readings.append(readings_here)
            done = sum(_finished(path) for path in paths)
    return found, readings


def _finished(path):
    try:
        return json.loads((path / "status.json").read_text())["state"] == "finished"
    except FileNotFoundError:
        return False


def _trains(paths, pid):
    """Whether this process has begun to train one of the runs."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            if json.loads((path / "status.json").read_text()).get("process", {}).get("pid") == pid:
                return True
    return False


def _resident(pid):
    try:
        return psutil.Process(pid).memory_info().rss / 2**20
    except psutil.NoSuchProcess:
        return float("nan")


def lost_epochs(found, paths):
    """How many rows that a kill found are not in the final history, to the last digit and second."""
    final = {path: rows_of(path) for path in paths}
    return sum(row not in final[path] for rows in found for path in rows for row in rows[path])


def broken_histories(paths, epochs):
    """How many runs' epochs are not 1 to `epochs`, each once."""
    return sum([row.split(",")[0] for row in rows_of(path)] != [str(n + 1) for n in range(epochs)] for path in paths)


def growth(readings):
    """MiB of resident memory by which a process grew for each run, by least squares after the first ones."""
    longest = np.array(max(readings, key=len)[WARM:])
    return float(np.polyfit(*longest[np.isfinite(longest[:, 1])].T, 1)[0]) if len(longest) > WARM else None


def main():
    """Runs the soak test and prints its counts; returns 0 if nothing was lost and memory did not grow."""
    args = arguments()
    with tempfile.TemporaryDirectory() as folder:
        row = soaked(args, Path(folder))
    print(commandline.table([row]))
    if args.json:
        atomic.write_json(args.json, row | {"versions": experiment.versions(), "git_commit": experiment.git_commit()})
    grew = row["mib_a_run"] is not None and row["mib_a_run"] > ALLOWED_GROWTH
    return int(grew or any(row[name] for name in ("lost_epochs", "broken_histories", "different", "files_left")))


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--backend", choices=engine.BACKENDS, default="tensorflow")
    parser.add_argument("--json", type=Path, help="write the counts to this file too")
    return parser.parse_args()


def soaked(args, folder):
    """The counts of a soak test in this empty folder: a dict."""
    rng, started = random.Random(args.seed), time.perf_counter()
    seeds = list(range(args.runs))
    paths = [path_of(folder / "runs", args.epochs, seed) for seed in seeds]
    words = command(folder / "runs", args.epochs, seeds, args.backend)
    found, readings = soak(folder / "runs", words, paths, args.kills, rng)
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
        "mib_a_run": growth(readings),
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
