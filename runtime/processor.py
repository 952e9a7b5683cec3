"""What the processor does faster in half precision."""

import functools
import os
import re
from pathlib import Path

from runtime.memory import gpus

CPUINFO = Path("/proc/cpuinfo")
# Linux' names of instructions, the fastest first, and how many times as fast as in float32 TensorFlow trains
# convolutional networks with them (medians at network size 4; see benchmarks/NOTES.md)
GAINS = {"amx_bf16": 2.2, "avx512_bf16": 1.5}


def gain_of_bfloat16():
    """How many times as fast convolutional networks train here in mixed_bfloat16, as measured on such a processor.

    1.0 where there is no gain or nobody has measured: on GPUs, on JAX, where no system tells what the processor has.
    """
    if gpus() or (os.environ.get("KERAS_BACKEND") or "tensorflow") != "tensorflow":
        return 1.0
    return next((gain for name, gain in GAINS.items() if name in instructions()), 1.0)


@functools.cache
def instructions():
    """The names of the processor's instructions, a set, which is empty where no system tells."""
    try:
        text = CPUINFO.read_text()
    except OSError:
        return frozenset()
    return frozenset(" ".join(re.findall(r"^flags\s*:(.*)$", text, re.MULTILINE)[:1]).split())
