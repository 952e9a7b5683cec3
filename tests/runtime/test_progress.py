"""Progress where stderr is no terminal: lines, and none of a short work."""

import re
import time

import pytest

from runtime import progress
from runtime.progress import Progress


@pytest.mark.parametrize(("every", "lines"), [(60.0, 0), (0.02, 5)])
def test_lines_come_now_and_then_and_none_of_a_short_work(monkeypatch, capfd, every, lines):
    monkeypatch.setattr(progress, "EVERY", every)
    with Progress(total=50, unit=" images", desc="a run") as bar:
        bar.set_postfix_str("")
        for _ in range(50):
            time.sleep(0.004)
            bar.update(1)
        bar.write("a note")
    printed = capfd.readouterr()
    assert printed.out == "a note\n" and "\r" not in printed.err
    found = printed.err.splitlines()
    assert min(lines, 2) <= len(found) <= 6 * lines
    assert all(re.fullmatch(r"a run: \d+ of 50 images, 00:00 so far, 00:00 left", line) for line in found)


def test_a_reader_that_has_ended_does_not_end_the_work(monkeypatch):
    class Closed:
        isatty = staticmethod(lambda: False)

        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(progress, "EVERY", 1e-9)
    monkeypatch.setattr("sys.stderr", Closed())
    assert sum(Progress(iterable=range(3))) == 3
