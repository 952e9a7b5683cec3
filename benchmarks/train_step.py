"""Time a training step of each model against the same network in plain PyTorch (channels last), in turn, in one run.

    python benchmarks/train_step.py [--network_size 4] [--batch_size 256] [--rounds 7]

Each side runs in a process of its own, and only one of them works at a time. Printed: median seconds a step, the ratio
of medians, and the fraction of this machine's float32 matrix-multiply peak, from the floating-point operations of the
convolutions and dense layers (forward, and backward for weights and inputs, but for the first layer's inputs).
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))


def keras_step(model, prior, size, batch, k, backend):
    """A function that trains one step of the project's model on a fixed grey batch, and the operations of a step."""
    import engine
    import experiment

    engine.settle(backend)
    engine.start()
    import keras
    import numpy as np

    import models

    config = experiment.Config(model=model, prior=prior, network_size=float(size), num_pseudo_inputs=k)
    rng = np.random.default_rng(0)
    net = models.build(config, (28, 28, 1), True, rng.random((k, 28, 28, 1), np.float32))
    net.compile(keras.optimizers.Adam(1e-4), jit_compile="auto")
    grey = rng.random((batch, 28, 28, 1), np.float32)
    return lambda: float(net.train_on_batch(grey)[0]), step_operations(net, batch, k if prior == "vamp" else 0)


def step_operations(net, batch, k):
    """Floating-point operations of a step: 2 for each multiply-add, three passes, two for the images' first layer."""
    encoders = [layer for layer in net.layers if layer.name.startswith("sequential")]
    total = batch * 6 * sum(multiply_adds(layer) for layer in net.decoder.net.layers)
    for number, encoder in enumerate(encoders):
        first, rest = multiply_adds(encoder.layers[0]), sum(map(multiply_adds, encoder.layers[1:]))
        total += batch * (4 * first + 6 * rest)
        if number == 0:  # the pseudo-inputs go through the top encoder, and want a gradient themselves
            total += k * 6 * (first + rest)
    return total


def multiply_adds(layer):
    """Multiply-adds of a layer for one example: the kernel's size for each position that it is laid on."""
    if not hasattr(layer, "kernel"):
        return 0
    shape = layer.input.shape if "Transpose" in type(layer).__name__ else layer.output.shape
    positions = 1 if len(shape) == 2 else shape[1] * shape[2]
    size = 1
    for n in layer.kernel.shape:
        size *= n
    return size * positions


def torch_step(model, prior, size, batch, k):
    """The same in PyTorch."""
    import torch
    import torch_models

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return torch_models.make_step(model, prior, size, batch, k)


def worker(args):
    """Builds one side's step, then trains `n` steps for each line "n" on stdin and answers with seconds a step."""
    settings = (args.model[0], args.prior[0], args.network_size, args.batch_size, args.num_pseudo_inputs)
    operations = None
    started = time.perf_counter()
    if args.worker == "torch":
        step = torch_step(*settings)
    else:
        step, operations = keras_step(*settings, args.worker)
    step()
    print(json.dumps({"first": time.perf_counter() - started, "operations": operations}), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            step()
        print(json.dumps((time.perf_counter() - start) / int(line)), flush=True)


def start(side, model, prior, args):
    """A worker process for one side."""
    words = ["--worker", side, "--model", model, "--prior", prior, "--network_size", str(args.network_size)]
    words += ["--batch_size", str(args.batch_size), "--num_pseudo_inputs", str(args.num_pseudo_inputs)]
    command = [sys.executable, __file__, *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(process, steps):
    """Seconds a step of `steps` steps, by a worker."""
    process.stdin.write(f"{steps}\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def matmul_peak(n=2048, repeats=3):
    """Operations a second of the fastest of some float32 matrix products, by NumPy."""
    import numpy as np

    a = np.random.default_rng(0).random((n, n), np.float32)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return 2 * n**3 / min(times)


def compare(model, prior, args):
    """A row: medians of both sides, measured in turn, their ratio, and the fraction of the peak that ours reaches."""
    sides = {side: start(side, model, prior, args) for side in ("torch", args.backend)}
    try:
        ready = {side: json.loads(process.stdout.readline()) for side, process in sides.items()}
        times, peak = {side: [] for side in sides}, 0
        for _ in range(args.rounds):
            peak = max(peak, matmul_peak())
            for side, process in sides.items():
                times[side].append(ask(process, args.steps))
                time.sleep(0.3)  # until the other side's threads sleep
    finally:
        for process in sides.values():
            process.kill()
    theirs, ours = median(times["torch"]), median(times[args.backend])
    return {
        "model": model,
        "prior": prior,
        "torch s/step": theirs,
        "ours s/step": ours,
        "ratio": ours / theirs,
        "peak GFLOP/s": peak / 1e9,
        "GFLOP/step": ready[args.backend]["operations"] / 1e9,
        "of peak": ready[args.backend]["operations"] / ours / peak,
        "first step s": ready[args.backend]["first"],
    }


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["vae", "hvae"], choices=("vae", "hvae"))
    parser.add_argument("--prior", nargs="+", default=["standard", "vamp"], choices=("standard", "vamp"))
    parser.add_argument("--network_size", type=float, default=4)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--num_pseudo_inputs", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each side, in turn (default: 7)")
    parser.add_argument("--steps", type=int, default=2, help="steps in a measurement (default: 2)")
    parser.add_argument("--backend", choices=("tensorflow", "jax"), default="tensorflow")
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(args)
    import atomic
    import commandline

    print(f"{args.backend}, network_size {args.network_size}, batch {args.batch_size}, K = {args.num_pseudo_inputs}")
    rows = [compare(model, prior, args) for model in args.model for prior in args.prior]
    print(commandline.table(rows))
    if args.json:
        atomic.write_json(args.json, {"settings": vars(args) | {"json": None}, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
