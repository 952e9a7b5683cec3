"""Time a training step of each model against the same network in plain PyTorch (channels last), in turn, in one run.

    python benchmarks/train_step.py [--network_size 4] [--batch_size 256] [--rounds 7]
    python benchmarks/train_step.py --objective elbo iwae dreg lmcvae amcvae [--network mlp]

Each side runs in a process of its own, and only one of them works at a time. Printed: median seconds a step, the ratio
of medians, and the fraction of this machine's float32 matrix-multiply peak, from the floating-point operations of the
convolutions and dense layers (forward, and backward for weights and inputs, but for the first layer's inputs).
With --objective, the project's objectives are compared with the first one named, and with the peak memory of each.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))


def keras_step(args):
    """A function that trains one step of the project's model on a fixed grey batch, and the operations of a step."""
    import engine
    import experiment

    engine.settle(args.worker)
    engine.start()
    import keras
    import numpy as np

    import models

    k, batch, size = args.num_pseudo_inputs, args.batch_size, args.network_size
    sizes = {"network": args.network} | ({"network_size": size} if args.network == "conv" else {})
    settings = {"model": args.model[0], "prior": args.prior[0], "num_pseudo_inputs": k, "latent_dim": args.latent_dim}
    config = experiment.Config(**settings, **sizes, objective=(args.objective or ["elbo"])[0])
    rng = np.random.default_rng(0)
    net = models.build(config, (28, 28, 1), True, rng.random((k, 28, 28, 1), np.float32))
    net.compile(keras.optimizers.Adam(1e-4), jit_compile="auto")
    grey = rng.random((batch, 28, 28, 1), np.float32)
    operations = step_operations(net, batch, k if config.prior == "vamp" else 0) if args.network == "conv" else None
    return lambda: float(net.train_on_batch(grey)[0]), operations


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
    """Builds one side's step, then trains `n` steps for each line "n" on stdin; says seconds a step and peak MiB."""
    operations = None
    started = time.perf_counter()
    if args.worker == "torch":
        step = torch_step(args.model[0], args.prior[0], args.network_size, args.batch_size, args.num_pseudo_inputs)
    else:
        step, operations = keras_step(args)
    step()
    print(json.dumps({"first": time.perf_counter() - started, "operations": operations}), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            step()
        seconds = (time.perf_counter() - start) / int(line)
        print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]), flush=True)


def start(side, model, prior, args, objective="elbo"):
    """A worker process for one side."""
    words = ["--network", args.network, "--latent_dim", str(args.latent_dim), "--objective", objective]
    words += ["--worker", side, "--model", model, "--prior", prior, "--network_size", str(args.network_size)]
    words += ["--batch_size", str(args.batch_size), "--num_pseudo_inputs", str(args.num_pseudo_inputs)]
    command = [sys.executable, __file__, *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def in_turn(workers, rounds, steps, between=lambda: None):
    """What each worker says when it is ready, and its answers [seconds a step, peak MiB], all of them asked in turn.

    Dicts by the names of `workers`, which are processes, and are killed at the end.
    """
    answers = {name: [] for name in workers}
    try:
        ready = {name: json.loads(worker.stdout.readline()) for name, worker in workers.items()}
        for _ in range(rounds):
            between()
            for name, worker in workers.items():
                worker.stdin.write(f"{steps}\n")
                worker.stdin.flush()
                answers[name].append(json.loads(worker.stdout.readline()))
                time.sleep(0.3)  # until its threads sleep
    finally:
        for worker in workers.values():
            worker.kill()
    return ready, answers


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
    peaks = []
    sides = {side: start(side, model, prior, args) for side in ("torch", args.backend)}
    ready, answers = in_turn(sides, args.rounds, args.steps, lambda: peaks.append(matmul_peak()))
    theirs, ours = (median(seconds for seconds, _ in answers[side]) for side in ("torch", args.backend))
    peak = max(peaks)
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


def compare_objectives(model, prior, args):
    """Rows of the project's objectives, measured in turn: seconds a step, ratio to the first, and peak memory."""
    workers = {name: start(args.backend, model, prior, args, name) for name in args.objective}
    _, answers = in_turn(workers, args.rounds, args.steps)
    medians = {name: median(seconds for seconds, _ in values) for name, values in answers.items()}
    return [
        {
            "model": model,
            "prior": prior,
            "objective": name,
            "s/step": seconds,
            "ratio": seconds / medians[args.objective[0]],
            "peak MiB": max(mib for _, mib in answers[name]),
        }
        for name, seconds in medians.items()
    ]


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["vae", "hvae"], choices=("vae", "hvae"))
    parser.add_argument("--prior", nargs="+", default=["standard", "vamp"], choices=("standard", "vamp"))
    parser.add_argument("--objective", nargs="+", help="compare these objectives, instead of with PyTorch")
    parser.add_argument("--network", default="conv", help="with --objective (default: conv)")
    parser.add_argument("--latent_dim", type=int, default=2)
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
    pairs = [(model, prior) for model in args.model for prior in args.prior]
    if args.objective:
        rows = [row for pair in pairs for row in compare_objectives(*pair, args)]
    else:
        rows = [compare(*pair, args) for pair in pairs]
    print(commandline.table(rows))
    if args.json:
        atomic.write_json(args.json, {"settings": vars(args) | {"json": None}, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
