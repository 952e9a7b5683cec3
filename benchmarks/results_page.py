"""The parts of pages that scripts write from result files, each between two comments that name its script."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from runtime import atomic

README = Path(__file__).parent.parent / "README.md"
PAGE = README.parent / "docs" / "results.md"


def replaced(text, script, part):
    """A page's `text` with `part` in the place of what the `script` of this folder wrote. ValueError: no place."""
    start, end = (f"<!-- benchmarks/{script} {words} here -->\n" for words in ("writes from", "wrote to"))
    if not text.count(start) == text.count(end) == 1:
        raise ValueError(f"the page has not one place for benchmarks/{script}")
    before, rest = text.split(start)
    return f"{before}{start}\n{part.strip()}\n\n{end}{rest.split(end)[1]}"


def write(script, part, page=None):
    """Writes that part of a page, which is usually docs/results.md."""
    page = page or PAGE
    atomic.write(page, replaced(page.read_text(), script, part).encode())


def table(header, alignment, rows):
    """A Markdown table whose last column is the hardware: a letter in each row, and a line that explains the letters.

    `alignment` has a letter for each column: l (left) or r (right).
    """
    machines = list(dict.fromkeys(row[-1] for row in rows if row[-1]))
    letters = {machine: chr(ord("a") + index) for index, machine in enumerate(machines)}
    lines = [f"| {' | '.join(header)} |", f"|{''.join('---:|' if one == 'r' else '---|' for one in alignment)}"]
    lines += [f"| {' | '.join(map(str, [*cells, letters.get(machine, '')]))} |" for *cells, machine in rows]
    said = "; ".join(f"{letter}: {machine}" for machine, letter in letters.items())
    return "\n".join([*lines, "", f"Hardware {said}.", ""])
