"""What the project does on a GPU, in stages, of which each writes a file and is skipped where that is there.

    bash benchmarks/gpu.sh [--tiny] [--results DIR]

- A training step of each model with network size 16, JAX in mixed_bfloat16 against torch.compile in bfloat16 autocast,
  in turn, by train_step.py.
- Seconds an epoch of a real train.py with the full settings of docs/results.md, validation and checkpoint included,
  and the minutes that 250 of them take.
- Seconds of log p(x) of the 10,000 test images with S = 5000 by evaluate.py: of a dense VAE, and of the convolutional
  one that was trained before.

With --tiny, all of it in small on a CPU, to see that it works: its numbers mean nothing. A stage that fails is said,
the others go on, and the exit code is 1. Printed is the table of what there is.
"""

import argparse
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))  # from here on; what it needs may have to be installed first

ROOT = Path(__file__).parent.parent
REQUIREMENTS = ROOT / "requirements.txt"
UNUSED = ("tensorflow", "tensorboard", "tensorboardX")  # by JAX with --track none
PRECISION = "mixed_bfloat16"
EPOCHS = 250  # of the runs of docs/results.md
MODELS = [(model, prior) for prior in ("vamp", "standard") for model in ("vae", "hvae")]
SEES = "import jax; device = jax.devices()[0]; print(device.platform, device.device_kind, sep=';')"
TORCH_SEES = "import torch; print('gpu' if torch.cuda.is_available() else 'cpu')"


class Sizes(NamedTuple):
    """How large all of it is: flags of train_step.py, train.py and evaluate.py."""

    device: str
    step: dict
    train: dict
    dense: dict
    score: dict


FULL = Sizes(
    "gpu",
    {"network_size": 16, "batch_size": 256, "num_pseudo_inputs": 500, "rounds": 7, "steps": 30},
    {"data_set": "mnist", "network_size": 16, "batch_size": 256, "epochs": 4},
    {"data_set": "mnist", "batch_size": 100, "epochs": 3},
    {"num_samples": 5000, "max_images": 10_000},
)
TINY = Sizes(
    "cpu",
    {"network_size": 0.25, "batch_size": 8, "num_pseudo_inputs": 5, "rounds": 1, "steps": 1},
    {"data_set": "digits", "network_size": 0.25, "batch_size": 64, "num_pseudo_inputs": 5, "epochs": 2},
    {"data_set": "digits", "batch_size": 64, "num_pseudo_inputs": 5, "epochs": 2},
    {"num_samples": 50, "max_images": 30},
)


class Failed(Exception):
    """A stage that could not be done, and why."""


def flags(settings):
    """A dict of settings as words of a command."""
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def called(*words, **environment):
    """What a Python process prints, which is given these words. Raises Failed where it fails."""
    command = [sys.executable, *map(str, words)]
    environment = {**os.environ, **environment}
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    if done.returncode:
        raise Failed(f"{' '.join(command[1:3])} ... ended with {done.returncode}")
    return done.stdout


def machine(sizes, folder):
    """The device, the processor count and versions. Raises Failed where there is no device of the kind asked for.

    So it does where what is here already was measured on another machine, or with other versions.
    """
    platform, kind = called("-c", SEES).splitlines()[-1].split(";")
    torch_platform = called("-c", TORCH_SEES).splitlines()[-1]
    for name, found in (("JAX", platform), ("PyTorch", torch_platform)):
        if found != sizes.device and (name, sizes.device) != ("PyTorch", "cpu"):
            raise Failed(f"{name} sees a {found}, and a {sizes.device} is needed; --tiny tries all of it on a CPU")
    names = ("jax", "keras", "torch", "numpy")
    versions = {one: importlib.metadata.version(one) for one in names}
    here = {"device": kind, "cores": os.cpu_count(), "versions": versions}
    if (before := done(folder).get("machine", here)) != here:
        raise Failed(f"{folder} has results of {before}, and here are {here}; choose another --results")
    return here


def step(model, prior, sizes, folder):
    """The row of train_step.py."""
    path = folder / f"rows_{model}_{prior}.json"
    words = ["--model", model, "--prior", prior, "--backend", "jax", "--precision", PRECISION, "--json", path]
    print(called("benchmarks/train_step.py", *words, *flags(sizes.step)), flush=True)
    (row,) = json.loads(path.read_text())["rows"]
    return row


def trained(settings, sizes, folder, *words):
    """The folder of a run with these settings, trained or gone on with, or found as it is where it is finished."""
    import experiment

    settings = settings | {"precision": PRECISION, "track": "none", "runs_dir": str(folder / "runs")}
    called("train.py", "--backend", "jax", "--device", sizes.device, *flags(settings), *words, **cache(folder))
    return experiment.Config(**settings).path


def cache(folder):
    """Where JAX keeps what it compiles: a stage that was stopped compiles less the second time."""
    return {"JAX_COMPILATION_CACHE_DIR": str(ROOT / "runs" / "compiled" / folder.name)}


def epoch(model, prior, sizes, folder):
    """Seconds of the last epoch, from state to state, and minutes for EPOCHS of them."""
    run = trained(sizes.train | {"model": model, "prior": prior}, sizes, folder, "--overwrite")  # in one go
    seconds = between_states(run)
    return {"run": str(run), "epoch s": seconds, f"{EPOCHS} epochs min": EPOCHS * seconds / 60}


def between_states(run):
    """Seconds from the one of a run's newest two states to the other, so all that an epoch takes. Raises Failed."""
    states = sorted((run / "last").glob("epoch*_step000000000.safetensors"))
    if len(states) < 2:
        raise Failed(f"{run} has not the states of two epochs")
    return states[-1].stat().st_mtime - states[-2].stat().st_mtime


def likelihood(settings, sizes, folder):
    """Seconds that log p(x) takes, those of the whole process, and what came out."""
    run = trained(settings, sizes, folder)
    words = [run, "--backend", "jax", "--device", sizes.device, "--proposal", "posterior", *flags(sizes.score)]
    start = time.perf_counter()
    called("evaluate.py", *words, **cache(folder))
    whole = time.perf_counter() - start
    metrics = json.loads((run / "metrics.json").read_text())
    return {name: metrics[name] for name in ("seconds", "log_px", "num_images", "num_samples")} | {"process s": whole}


def stages(sizes, folder):
    """What is to be done: a dict of name to a function that returns what is to be written, the cheapest news first."""

    def of(function, *given):
        return lambda: function(*given, sizes, folder)

    dense = sizes.dense | {"network": "mlp", "model": "vae", "prior": "vamp", "latent_dim": 40}
    conv = sizes.train | {"model": "vae", "prior": "vamp"}
    return (
        {"machine": of(machine)}
        | {f"step_{model}_{prior}": of(step, model, prior) for model, prior in MODELS}
        | {f"epoch_{model}_{prior}": of(epoch, model, prior) for model, prior in MODELS}
        | {"likelihood_mlp": of(likelihood, dense), "likelihood_conv": of(likelihood, conv)}
    )


def done(folder):
    """What was written by stages: a dict of name to content."""
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("[a-z]*.json") if "rows_" not in path.name}


def work(todo, folder):
    """Does the stages that are not done, and says how long each took; returns the names of those that failed."""
    from runtime import atomic

    failed = []
    for name, stage in todo.items():
        path = folder / f"{name}.json"
        if path.exists() and name != "machine":  # which may be another one now
            continue
        start = time.perf_counter()
        try:
            atomic.write_json(path, stage())
            print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
        except Failed as failure:
            failed.append(name)
            print(f"error: {name}: {failure}", file=sys.stderr, flush=True)
            if name == "machine":  # which all others would be measured on
                break
    return failed


def table(found):
    """What was found by stages, as Markdown: steps and epochs by model, then log p(x)."""
    about = found.get("machine", {"device": "not known", "cores": "?", "versions": {}})
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    said = f"{PRECISION}; epochs and scores with deterministic operations, steps without; a score's seconds include "
    said += "its rates and what was not compiled yet"
    lines = [f"{about['device']}, {about['cores']} cores, {versions}, {said}", ""]
    names = ("PyTorch, ms", "JAX, ms", "ratio", "of the bf16 peak", "first step, s", "memory ratio", "epoch, s")
    lines += [
        f"| model | prior | {' | '.join(names)} | {EPOCHS} epochs, min |",
        f"|---|---|{(len(names) + 1) * '---:|'}",
    ]
    for model, prior in MODELS:
        cells = step_cells(found.get(f"step_{model}_{prior}")) + epoch_cells(found.get(f"epoch_{model}_{prior}"))
        lines.append(f"| {model} | {prior} | {' | '.join(cells)} |")
    lines += [
        "",
        "| log p(x) of | images | S | seconds | with start | nats |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    return "\n".join([*lines, *(score_line(kind, found.get(f"likelihood_{kind}")) for kind in ("mlp", "conv"))])


def step_cells(row):
    """The cells of a row of train_step.py."""
    if not row:
        return ["not run here", *[""] * 5]
    times = [f"{1000 * row[name]:.2f}" for name in ("torch s/step", "ours s/step")]
    ratios = [f"{row[name]:.2f}" for name in ("ratio", "of peak")]
    return [*times, *ratios, f"{row['first step s']:.1f}", f"{row['MiB ratio']:.2f}"]


def epoch_cells(found):
    """The cells of what `epoch` found."""
    return [f"{found['epoch s']:.2f}", f"{found[f'{EPOCHS} epochs min']:.1f}"] if found else ["not run here", ""]


def score_line(kind, found):
    """The line of what `likelihood` found."""
    if not found:
        return f"| {kind} | not run here | | | | |"
    counts = [f"{found[name]:,}" for name in ("num_images", "num_samples")]
    return f"| {' | '.join([kind, *counts, *(f'{found[name]:.2f}' for name in ('seconds', 'process s', 'log_px'))])} |"


def missing():
    """The lines of requirements.txt whose packages are not installed, but for those that are not used here."""
    lines = [line for line in REQUIREMENTS.read_text().splitlines() if re.match(r"\w", line)]
    return [
        line.split("#")[0].strip()
        for line in lines
        if (name := re.match(r"[\w-]+", line)[0]) not in UNUSED and not is_installed(name)
    ]


def install(lines):
    """Installs packages one by one, and says which cannot be had: not every stage needs every one."""
    for line in lines:
        print(f"installing {line}", flush=True)
        if subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", line], check=False).returncode:
            print(f"warning: {line} could not be installed; going on without it", file=sys.stderr, flush=True)


def is_installed(name):
    """Whether any version of a package is here."""
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def main(words=None):
    """The command line; returns 1 where a stage failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="on a CPU, with tiny sizes, to see that it works")
    parser.add_argument("--results", type=Path, help="default: benchmarks/results/gpu, with --tiny runs/gpu_tiny")
    args = parser.parse_args(words)
    folder = (args.results or ROOT / ("runs/gpu_tiny" if args.tiny else "benchmarks/results/gpu")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    install(missing())
    from runtime.command import STOPPED, stoppable  # which needs some of these

    try:
        with stoppable():  # so that SIGTERM, too, ends what a stage has started
            failed = work(stages(TINY if args.tiny else FULL, folder), folder)
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return STOPPED
    print(f"\n{table(done(folder))}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
