"""The parts of pages that scripts write from result files, each between two comments that name its script."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from runtime import atomic

README = Path(__file__).parent.parent / "README.md"
PAGE = README.parent / "docs" / "results.md"
NOT_STATED = "not stated"  # of the hardware


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


def hardware_of(path, run, stated):
    """The machine that a result file is to name: as stated, else that of a former result of the same weights."""
    before = json.loads(path.read_text()) if path.exists() else {}
    scores = [one for one in before.values() if isinstance(one, dict)]
    is_same = any(one.get("weights_sha256") == run.weights_sha256 for one in scores)
    return before["hardware"] if is_same and stated == NOT_STATED else stated


def check_same(path, about):
    """Ends the program where a result file has rows for which one of these facts is another one."""
    before = json.loads(path.read_text()) if path.exists() else about
    for name, value in about.items():
        if before.get(name) != value:
            sys.exit(f"{path} has rows of {name} {before.get(name)}, and these would be of {value}: move it away first")


def machines_of(results):
    """The machines of the results of a row, which may be several seeds: a tuple, each once."""
    return tuple(dict.fromkeys(one["hardware"] for one in results))


def table(header, alignment, rows):
    """A Markdown table whose last column is the hardware, and a line that explains its letters.

    `alignment` has a letter for each column: l (left) or r (right). A row ends with its `machines_of`, or something
    empty.
    """
    machines = dict.fromkeys(machine for row in rows for machine in row[-1])
    letters = {machine: chr(ord("a") + index) for index, machine in enumerate(machines)}
    lines = [f"| {' | '.join(header)} |", f"|{''.join('---:|' if one == 'r' else '---|' for one in alignment)}"]
    named = [[*cells, ", ".join(sorted(letters[machine] for machine in several))] for *cells, several in rows]
    lines += [f"| {' | '.join(map(str, cells))} |" for cells in named]
    said = "; ".join(f"{letter}: {machine}" for machine, letter in letters.items())
    return "\n".join([*lines, "", f"Hardware {said}.", ""])
