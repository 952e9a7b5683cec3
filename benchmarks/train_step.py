"""Time a training step of each model against the same network in plain PyTorch, in turn, in one run.

    python benchmarks/train_step.py [--network_size 4] [--batch_size 256] [--rounds 7]
    python benchmarks/train_step.py --network mlp
    python benchmarks/train_step.py --backend jax --against tensorflow
    python benchmarks/train_step.py --against tensorflow --jit on
    python benchmarks/train_step.py --backend jax --precision mixed_bfloat16 --network_size 16 --steps 50
    python benchmarks/train_step.py --objective elbo iwae dreg lmcvae amcvae [--network mlp]

Each side runs in a process of its own, starts alone, and only one of them works at a time. Printed: median seconds a
step, the ratio of medians, the seconds from a process' start to the end of its first step (import, build, trace), the
peak memory of both, on a GPU that of the GPU, on Linux's CPUs also without pages of files (see `peak_of_own`), and the
fraction of the peak of matrix products, from the operations of the convolutions and dense layers (forward, and backward
for weights and inputs, but for the first layer's inputs). That peak is this machine's in float32, by NumPy; in other
precisions and on a GPU, of bfloat16 on the same device, by either side. PyTorch is compiled where it finds a GPU. With
--against tensorflow or jax, it is the project on that backend, with --jit auto. With --objective, the project's
objectives are compared with the first one named.
"""

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from statistics import median

import psutil

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))


USUAL = {  # of what is left out on the command line, by network
    "conv": {"model": ["vae", "hvae"], "latent_dim": 2, "batch_size": 256, "steps": 2},
    "mlp": {"model": ["vae"], "latent_dim": 40, "batch_size": 100, "steps": 20},
}
PASSED_ON = ("network", "latent_dim", "network_size", "batch_size", "num_pseudo_inputs", "precision")
ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}  # two share a GPU


def keras_steps(args):
    """A function of n that trains n steps of the project's model on a fixed grey batch; the operations of a step."""
    import experiment
    from runtime import backend

    backend.settle(args.worker)
    backend.start()
    import keras
    import numpy as np

    import models
    from training import optimizers
    from training.fit import JIT

    k, batch, size = args.num_pseudo_inputs, args.batch_size, args.network_size
    sizes = {"network": args.network} | ({"network_size": size} if args.network == "conv" else {})
    settings = {"model": args.model[0], "prior": args.prior[0], "num_pseudo_inputs": k, "latent_dim": args.latent_dim}
    objective = (args.objective or ["elbo"])[0]
    config = experiment.Config(**settings, **sizes, objective=objective, precision=args.precision, lr=1e-4)
    rng = np.random.default_rng(0)
    net = models.build(config, (28, 28, 1), True, rng.random((k, 28, 28, 1), np.float32))
    net.compile(optimizers.optimizer(config, 1, net), jit_compile=JIT[args.jit])
    grey = rng.random((batch, 28, 28, 1), np.float32)
    net.train_on_batch(grey)
    grey = keras.ops.convert_to_tensor(grey)  # on the device, as the other side's
    return lambda n: bare_steps(net, [grey] * n), step_operations(net, batch, k if config.prior == "vamp" else 0)


def bare_steps(net, batches):
    """Trains a step on each batch by the compiled function that `fit` calls, and waits for the last one.

    The model must have been trained for a step, on a batch of this size.
    """
    import keras

    if keras.backend.backend() == "jax":
        from runtime import internals

        logs = internals.train_on_jax(net, batches)
    else:
        for x in batches:
            logs = net.train_function(iter([(x, None, None)]))
    return float(logs["loss"])


def step_operations(net, batch, k):
    """Floating-point operations of a step: 2 for each multiply-add, three passes, two for the images' first layer.

    Without those of the heads, which are 3 % in a dense VAE, and next to nothing among convolutions.
    """
    encoders = [layer for layer in net.layers if layer.name.startswith("sequential")]
    total = batch * 6 * multiply_adds(net.decoder)
    for number, encoder in enumerate(encoders):
        first = next(filter(None, map(multiply_adds, encoder.layers)))
        every = multiply_adds(encoder)
        total += batch * (6 * every - 2 * first)
        if number == 0:  # the pseudo-inputs go through the top encoder, and want a gradient themselves
            total += k * 6 * every
    return total


def multiply_adds(layer):
    """Multiply-adds of a layer, and those in it, for one example: a kernel's size for each position it is laid on."""
    from runtime import internals

    return sum(_own_multiply_adds(one) for one in internals.sublayers(layer) if hasattr(one, "kernel"))


def _own_multiply_adds(layer):
    size = 1
    for n in layer.kernel.shape:
        size *= n
    if len(layer.kernel.shape) == 2:
        return size
    shape = layer.input.shape if "Transpose" in type(layer).__name__ else layer.output.shape
    return size * shape[1] * shape[2]


class Torch:
    """The side that is plain PyTorch: `take(n)` trains n steps."""

    operations = None

    def __init__(self, args):
        import torch_models

        self.take = torch_models.make_steps(
            *(args.model[0], args.prior[0], args.network, args.latent_dim, args.network_size, args.batch_size),
            *(args.num_pseudo_inputs, args.precision == "mixed_bfloat16"),
        )
        self.matmul_peak, self.gpu_mib = torch_models.matmul_peak, torch_models.peak_mib
        self.take(1)


class Ours:
    """A side that is the project on a backend: `take(n)` trains n steps of so many `operations`."""

    def __init__(self, args):
        self.take, self.operations = keras_steps(args)

    @staticmethod
    def matmul_peak():
        """Operations a second of large bfloat16 matrix products on the GPU; of smaller ones on a CPU."""
        import keras
        import numpy as np

        from runtime import backend

        n, repeats = (8192, 50) if backend.has_gpu() else (1024, 2)
        a = keras.ops.convert_to_tensor(np.random.default_rng(0).random((n, n), np.float32), "bfloat16")
        times = []
        for _ in range(4):  # the first of which begins cold
            start = time.perf_counter()
            for _ in range(repeats):
                product = keras.ops.matmul(a, a)
            float(product[0, 0])  # waits for all of them
            times.append((time.perf_counter() - start) / repeats)
        return 2 * n**3 / min(times)

    @staticmethod
    def gpu_mib():
        """The most memory that was used at once on the GPU, in MiB; None on a CPU."""
        import keras

        from runtime import backend

        if not backend.has_gpu():
            return None
        if keras.backend.backend() == "jax":
            import jax

            return jax.devices()[0].memory_stats()["peak_bytes_in_use"] / 2**20
        import tensorflow as tf

        return tf.config.experimental.get_memory_info("GPU:0")["peak"] / 2**20


def peak_of_own(work):
    """The most MiB that were the process' own while work() ran, looked at every 2 ms; None where no system tells.

    Pages that a file has too are not: of a library they are most, several processes share them, and the system takes
    them back when it needs memory. Linux alone tells which they are.
    """
    process, most, ended = psutil.Process(), [], threading.Event()
    if not hasattr(process.memory_info(), "shared"):
        return None

    def look():
        while not (most and ended.wait(0.002)):
            now = process.memory_info()
            most.append(now.rss - now.shared)

    watch = threading.Thread(target=look)
    watch.start()
    try:
        work()
    finally:
        ended.set()
        watch.join()
    return max(most) / 2**20


def worker(args):
    """Makes one side, then trains `n` steps for each line "n" on stdin; says seconds a step, peak MiB, CPU seconds.

    A line "peak" asks for the operations a second of matrix products.
    """
    side = (Torch if args.worker == "torch" else Ours)(args)
    first = time.time() - psutil.Process().create_time()
    on_gpu = side.gpu_mib() is not None
    own = None if on_gpu else peak_of_own(lambda: side.take(2))
    about = {"first": first, "operations": side.operations, "on_gpu": on_gpu, "own": own}
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        if line.strip() == "peak":
            print(json.dumps(side.matmul_peak()), flush=True)
            continue
        start, cpu = time.perf_counter(), time.process_time()
        side.take(int(line))
        seconds = [
            (end - begin) / int(line) for begin, end in ((start, time.perf_counter()), (cpu, time.process_time()))
        ]
        mib = side.gpu_mib() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps([seconds[0], mib, seconds[1]]), flush=True)


def start(side, model, prior, args, objective="elbo", jit="auto"):
    """A worker process for one side."""
    words = [word for name in PASSED_ON for word in (f"--{name}", str(getattr(args, name)))]
    words += ["--worker", side, "--model", model, "--prior", prior, "--objective", objective, "--jit", jit]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, __file__, *words], **pipes, env=ENVIRONMENT | os.environ)


def asked(process, line):
    """The answer of a worker to this line. Raises RuntimeError where it has ended."""
    if line:
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
    if not (answer := process.stdout.readline()):
        raise RuntimeError("a side ended before it was measured; its message is above")
    return json.loads(answer)


def in_turn(starts, rounds, steps, between=lambda processes, ready: None):
    """What each worker says when it is ready, and its answers [seconds a step, peak MiB, ...], all asked in turn.

    Dicts by the names of `starts`, functions that start a process, called each when the one before is ready; all are
    killed at the end. `between` is called before each round, with the processes and with what they said, by name.
    """
    processes, ready, answers = {}, {}, {name: [] for name in starts}
    try:
        for name, begin in starts.items():
            processes[name] = begin()
            ready[name] = asked(processes[name], None)
        for _ in range(rounds):
            between(processes, ready)
            for name, process in processes.items():
                answers[name].append(asked(process, steps))
                time.sleep(0.3)  # until its threads sleep
    finally:
        for process in processes.values():
            process.kill()
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

    def measure_peak(processes, ready):
        if args.precision == "float32" and not any(side["on_gpu"] for side in ready.values()):
            peaks.append(matmul_peak())
        else:
            peaks.extend(asked(process, "peak") for process in processes.values())

    sides = {
        "theirs": partial(start, args.against, model, prior, args),
        "ours": partial(start, args.backend, model, prior, args, jit=args.jit),
    }
    return row_of(model, prior, args.against, *in_turn(sides, args.rounds, args.steps, measure_peak), max(peaks))


def row_of(model, prior, against, ready, answers, peak):
    """The row of what `in_turn` gave for the sides "theirs" and "ours"."""
    theirs, ours = (median(seconds for seconds, *_ in answers[side]) for side in ("theirs", "ours"))
    their_mib, our_mib = (max(mib for _, mib, *_ in answers[side]) for side in ("theirs", "ours"))
    operations = ready["ours"]["operations"]
    their_own, our_own = (ready[side]["own"] for side in ("theirs", "ours"))
    owned = {}
    if their_own and our_own:
        owned = {f"{against} own MiB": their_own, "ours own MiB": our_own, "own MiB ratio": our_own / their_own}
    return {
        "model": model,
        "prior": prior,
        f"{against} s/step": theirs,
        "ours s/step": ours,
        "ratio": ours / theirs,
        "peak GFLOP/s": peak / 1e9,
        "GFLOP/step": operations / 1e9,
        "of peak": operations / ours / peak,
        f"{against} first step s": ready["theirs"]["first"],
        "first step s": ready["ours"]["first"],
        f"{against} MiB": their_mib,
        "ours MiB": our_mib,
        "MiB ratio": our_mib / their_mib,
        **owned,
    }


def compare_objectives(model, prior, args):
    """Rows of the project's objectives, measured in turn: seconds a step, ratio to the first, and peak memory."""
    workers = {name: partial(start, args.backend, model, prior, args, name, args.jit) for name in args.objective}
    _, answers = in_turn(workers, args.rounds, args.steps)
    medians = {name: median(seconds for seconds, *_ in values) for name, values in answers.items()}
    return [
        {
            "model": model,
            "prior": prior,
            "objective": name,
            "s/step": seconds,
            "ratio": seconds / medians[args.objective[0]],
            "peak MiB": max(mib for _, mib, _ in answers[name]),
        }
        for name, seconds in medians.items()
    ]


def parsed(words=None):
    """The command line's arguments, with what is left out as usual for the network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=("vae", "hvae"), help="default: both, of mlp vae")
    parser.add_argument("--prior", nargs="+", default=["standard", "vamp"], choices=("standard", "vamp"))
    parser.add_argument("--objective", nargs="+", help="compare these objectives, instead of with another side")
    parser.add_argument("--network", default="conv", choices=tuple(USUAL))
    parser.add_argument("--latent_dim", type=int, help="default: 2, of mlp 40")
    parser.add_argument("--network_size", type=float, default=4, help="of conv (default: 4)")
    parser.add_argument("--batch_size", type=int, help="default: 256, of mlp 100")
    parser.add_argument("--num_pseudo_inputs", type=int, default=500)
    parser.add_argument("--precision", choices=("float32", "mixed_bfloat16"), default="float32", help="of both sides")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each side, in turn (default: 7)")
    parser.add_argument("--steps", type=int, help="steps in a measurement (default: 2, of mlp 20)")
    parser.add_argument("--backend", choices=("tensorflow", "jax"), default="tensorflow", help="our side")
    parser.add_argument("--jit", choices=("auto", "on", "off"), default="auto", help="of our side (default: auto)")
    parser.add_argument("--against", choices=("torch", "tensorflow", "jax"), default="torch", help="the other side")
    parser.add_argument("--hardware", default="not stated", help="a word on the machine, stored with the result")
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    for name, value in USUAL[args.network].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.network == "mlp" and "hvae" in args.model and args.against == "torch" and not args.objective:
        parser.error("in PyTorch, --network mlp is written for --model vae only")
    return args


def main():
    """The command line."""
    args = parsed()
    if args.worker:
        with contextlib.suppress(BrokenPipeError):  # whoever asked has been stopped
            worker(args)
        return 0
    from experiment.record import git_commit, versions
    from runtime import atomic
    from runtime.text import table

    sizes = f"network_size {args.network_size:g}, " if args.network == "conv" else ""
    about = f"{args.network}, {args.precision}, {sizes}batch {args.batch_size}, {args.latent_dim} latents"
    print(f"{args.backend}, {about}, K = {args.num_pseudo_inputs}")
    pairs = [(model, prior) for model in args.model for prior in args.prior]
    if args.objective:
        rows = [row for pair in pairs for row in compare_objectives(*pair, args)]
    else:
        rows = [compare(*pair, args) for pair in pairs]
    print(table(rows))
    if args.json:
        settings, about = vars(args) | {"json": None}, {"versions": versions(), "git_commit": git_commit()}
        atomic.write_json(args.json, about | {"settings": settings, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
