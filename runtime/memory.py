"""The memory of the machine, its container and its GPUs."""

import contextlib
import os
import sys
from pathlib import Path

import psutil


def gpus():
    """The NVIDIA GPUs that this process may use, named as in $CUDA_VISIBLE_DEVICES; this starts no backend."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in named.split(",") if name and name != "-1"]
    return [str(number) for number, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]


def memory():
    """Bytes of memory that this process may have: the machine's, its container's or, in a grid, $VAMPVAE_MEMORY."""
    total = psutil.virtual_memory().total
    for read in (Path("/sys/fs/cgroup/memory.max").read_text, lambda: os.environ["VAMPVAE_MEMORY"]):
        with contextlib.suppress(OSError, ValueError, KeyError):  # no container, or "max"; no grid
            total = min(total, int(read()))
    return total


def free_memory():
    """Bytes of free memory: on the GPU that JAX uses, else of this machine, or its container if that is less.

    TensorFlow does not tell how much memory of a GPU is free.
    """
    if "jax" in sys.modules and sys.modules["keras"].backend.backend() == "jax":
        stats = sys.modules["jax"].devices()[0].memory_stats()  # None on a CPU
        if stats and "bytes_limit" in stats:
            return stats["bytes_limit"] - stats["bytes_in_use"]
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / f"memory.{name}").read_text() for name in ("max", "current"))
        free = min(free, max(0, int(limit) - int(used)))
    return free


def is_out_of_memory(error):
    """Whether this exception of Python, NumPy, TensorFlow or JAX means that there was not enough memory."""
    words = ("resource_exhausted", "resourceexhausted", "out of memory", "oom when allocating", "bad_alloc")
    return isinstance(error, MemoryError) or any(word in f"{type(error).__name__}: {error}".lower() for word in words)
