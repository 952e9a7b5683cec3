"""The progress of a grid: a live table, or a line where a run starts or ends."""

import time

import rich.console
import rich.live
import rich.table
import rich.text

from grids.leaderboard import status_of
from runtime.text import duration


class GridView:
    """A context that shows the progress of `total` runs: a live table on a terminal, otherwise lines.

    `names` gives the label of a Config. Without `live` there is no table: the terminal is that of the one run.
    """

    def __init__(self, names, total, live=True):
        self.names, self.total, self.began, self.notes = names, total, {}, {}
        console = rich.console.Console()
        self.is_live = live and console.is_terminal
        self.live = rich.live.Live(console=console, get_renderable=self.shown, refresh_per_second=1)

    def __enter__(self):
        if self.is_live:
            self.live.start()
        return self

    def __exit__(self, *_):
        self.live.stop()

    def say(self, text):
        """Prints a line, above the table if there is one."""
        self.live.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def started(self, config):
        """Notes that a run starts."""
        self.began[config] = time.monotonic()
        if not self.is_live:
            self.say(f"[{len(self.began)}/{self.total}] {self.names(config)}: started")

    def ended(self, config, note):
        """Notes that a run has ended, and how."""
        self.notes[config] = note
        status, spent = status_of(config), duration(time.monotonic() - self.began[config])
        best = f"{status['best_val_elbo']:.2f}" if "best_val_elbo" in status else "unknown"
        said = "; ".join(filter(None, [f"{status.get('state', 'none')}, val_elbo {best} after {spent}", note]))
        self.say(f"[{len(self.notes)}/{self.total} ended] {self.names(config)}: {said}")

    def shown(self):
        """The table of the runs that are being trained."""
        running = [config for config in list(self.began) if config not in self.notes]
        title = f"{len(running)} running, {len(self.notes)} ended, of {self.total}"
        found = rich.table.Table(title=title, title_justify="left", box=None)
        for name in ("run", "epochs", "best val_elbo", "time"):
            found.add_column(name, justify="left" if name == "run" else "right")
        for config in running:
            best = (status := status_of(config)).get("best_val_elbo")
            epochs = f"{status.get('epochs_done', 0)} of {config.epochs}"
            spent = duration(time.monotonic() - self.began[config])
            found.add_row(rich.text.Text(self.names(config)), epochs, "" if best is None else f"{best:.2f}", spent)
        return found
