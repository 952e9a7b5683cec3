"""Progress of long work on stderr: a bar on a terminal, elsewhere a line now and then."""

import contextlib
import io
import sys
import time

from tqdm.auto import tqdm

EVERY = 60.0  # seconds between lines, or a hundredth of the time so far if that is more
LINE = "{desc}{n_fmt} of {total_fmt}{unit}, {elapsed} so far, {remaining} left{postfix}"


class Progress(tqdm):
    """A tqdm bar on a terminal and in a notebook; elsewhere lines of the format `line`, none in the first minute."""

    def __init__(self, line=LINE, **options):
        self.is_bar = (sys.stderr is not None and sys.stderr.isatty()) or "ipykernel" in sys.modules
        if not self.is_bar:  # with a file that nobody sees for all that clears and draws bars
            about = f"{options['desc']}: " if "desc" in options else ""
            options |= {"bar_format": line, "file": io.StringIO(), "desc": about}
            options |= dict.fromkeys(("mininterval", "maxinterval", "delay"), EVERY)
        super().__init__(**options)

    def display(self, msg=None, pos=None, **options):
        if self.is_bar:
            return super().display(msg, pos, **options)
        seconds = time.time() - self.start_t
        self.mininterval = self.maxinterval = max(EVERY, seconds / 100)
        with contextlib.suppress(OSError):  # its reader has ended, or a disk is full; the work goes on
            if msg is None and sys.stderr and seconds >= EVERY:  # a new postfix comes here, too
                print(self, file=sys.stderr, flush=True)
