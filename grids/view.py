"""How the runs of a grid get on: a live table, or a line where one begins or ends."""

import time

import rich.console
import rich.live
import rich.table

from grids.leaderboard import row_of, status_of
from grids.workers import LOOK
from runtime.text import duration


class GridView:
    """A context that shows how the runs do: a live table on a terminal, else a line where one begins or ends."""

    def __init__(self, names, total):
        self.names, self.total = names, total  # names: of a Config, short
        self.began, self.notes, self.seen = {}, {}, 0.0
        console = rich.console.Console()
        self.live = rich.live.Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self):
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_):
        if self.live:
            self.live.update(self.shown(), refresh=True)
            self.live.stop()

    def say(self, text):
        """Says it, above the table."""
        if self.live:
            self.live.console.print(text, highlight=False, markup=False)
        else:
            print(text, flush=True)

    def started(self, config):
        """Notes that a run begins."""
        self.began[config] = time.monotonic()
        if not self.live:
            self.say(f"[{len(self.began)}/{self.total}] {self.names(config)}: started")

    def ended(self, config, note):
        """Notes that a run has ended, and how."""
        self.notes[config] = note
        row, spent = row_of(config, note), duration(time.monotonic() - self.began[config])
        said = "; ".join(filter(None, [f"{row['state']}, val_elbo {row['val_elbo']:.2f} after {spent}", note]))
        self.say(f"[{len(self.notes)}/{self.total} ended] {self.names(config)}: {said}")

    def look(self):
        """Draws the table anew, if it is a while ago."""
        if self.live and time.monotonic() - self.seen > LOOK:
            self.seen = time.monotonic()
            self.live.update(self.shown(), refresh=True)

    def shown(self):
        """The table of the runs that are being trained."""
        running = [config for config in self.began if config not in self.notes]
        title = f"{len(running)} running, {len(self.notes)} ended, of {self.total}"
        found = rich.table.Table(title=title, title_justify="left", box=None)
        for name in ("run", "epochs", "best val_elbo", "time"):
            found.add_column(name, justify="left" if name == "run" else "right")
        for config in running:
            best = (status := status_of(config)).get("best_val_elbo")
            epochs = f"{status.get('epochs_done', 0)} of {config.epochs}"
            spent = duration(time.monotonic() - self.began[config])
            found.add_row(self.names(config), epochs, "" if best is None else f"{best:.2f}", spent)
        return found
