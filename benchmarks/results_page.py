"""The parts of the README that scripts write from result files, each between two comments that name its script."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from runtime import atomic

README = Path(__file__).parent.parent / "README.md"


def replaced(text, script, part):
    """The README's `text` with `part` in the place of what the `script` of this folder wrote. ValueError: no place."""
    start, end = (f"<!-- benchmarks/{script} {words} here -->\n" for words in ("writes from", "wrote to"))
    if not text.count(start) == text.count(end) == 1:
        raise ValueError(f"the README has not one place for benchmarks/{script}")
    before, rest = text.split(start)
    return f"{before}{start}\n{part.strip()}\n\n{end}{rest.split(end)[1]}"


def write(script, part):
    """Writes that part of the README."""
    atomic.write(README, replaced(README.read_text(), script, part).encode())
