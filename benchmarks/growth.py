"""Seconds a step and peak memory against K, latent_dim, batch_size and network_size, each varied alone.

    python benchmarks/growth.py --hardware "two cores of ..." [--backend tensorflow jax]
    python benchmarks/growth.py --draw

Of the convolutional VAE with a VampPrior, around the settings of USUAL. Each point is a process of its own, of which
the fastest of some measurements counts, as other work can only slow it down; CPU time it slows down least, and is kept
beside the time by the wall clock, which is drawn. Points are kept in results/growth.json as they are measured, and not
measured again: what was stopped goes on. The figure is img/growth.png. Printed are the exponents p of the power laws,
seconds or MiB ~ value^p, through the last two points.
"""

import argparse
import contextlib
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import results_page, train_step
from experiment.record import git_commit, versions
from plotting import style
from runtime import atomic
from runtime.text import table

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "growth.json"
FIGURE = ROOT / "img" / "growth.png"
USUAL = {"num_pseudo_inputs": 500, "latent_dim": 2, "batch_size": 256, "network_size": 1.0}
VALUES = {
    "num_pseudo_inputs": (125, 250, 500, 1000, 2000),
    "latent_dim": (2, 8, 32, 128, 512),
    "batch_size": (64, 128, 256, 512, 1024),
    "network_size": (0.5, 1.0, 2.0, 4.0, 8.0),
}
NAMES = {
    "num_pseudo_inputs": "pseudo-inputs K",
    "latent_dim": "latent dimensions",
    "batch_size": "batch size",
    "network_size": "network size",
}
MEASURES = {"cpu": "CPU seconds a step", "mib": "peak memory, MiB", "seconds": "seconds a step"}
DRAWN = ("seconds", "mib")
COLOURS = dict(zip(("tensorflow", "jax"), style.PALETTE, strict=False))


def points(backends):
    """What is to be measured: (backend, settings), each once."""
    settings = [USUAL | {name: value} for name, values in VALUES.items() for value in values]
    unique = [one for index, one in enumerate(settings) if one not in settings[:index]]
    return [(backend, one) for one in unique for backend in backends]


def measured(backend, settings, args):
    """The point of a process of its own: backend, settings, seconds a step, MiB."""
    whole = SimpleNamespace(**settings, network="conv", precision="float32")
    starts = {backend: lambda: train_step.start(backend, "vae", "vamp", whole)}
    _, answers = train_step.in_turn(starts, args.rounds, args.steps)
    seconds, mib, cpu = zip(*answers[backend], strict=True)
    return {"backend": backend, "settings": settings, "seconds": min(seconds), "cpu": min(cpu), "mib": max(mib)}


def kept():
    """The points that are there already."""
    with contextlib.suppress(FileNotFoundError):
        return json.loads(RESULT.read_text())["points"]
    return []


def measure(args):
    """Measures the points that are missing, and writes each when it is there."""
    found = kept()
    known = [(point["backend"], point["settings"]) for point in found]
    about = {"hardware": args.hardware, "versions": versions()}
    about |= {"rounds": args.rounds, "steps": args.steps, "usual": USUAL}
    results_page.check_same(RESULT, about)
    about["commit"] = git_commit()
    for backend, settings in points(args.backend):
        if (backend, settings) in known:
            continue
        found.append(measured(backend, settings, args))
        print(json.dumps(found[-1]), flush=True)
        atomic.write_json(RESULT, about | {"points": found})


def curve(found, backend, name, measure):
    """The values of a setting and what was measured there, all others being as usual: two lists."""
    at = {point["settings"][name]: point[measure] for point in found
          if point["backend"] == backend and point["settings"] == USUAL | {name: point["settings"][name]}}  # fmt: skip
    return sorted(at), [at[value] for value in sorted(at)]


def exponent(x, y):
    """p of the power law y ~ x^p through the last two points; None where there are fewer."""
    return math.log(y[-1] / y[-2]) / math.log(x[-1] / x[-2]) if len(x) > 1 else None


def exponents(found):
    """Rows of the exponents, one for each setting and measure, a column for each backend."""
    rows = []
    for name in VALUES:
        for measure, words in MEASURES.items():
            slopes = {backend: exponent(*curve(found, backend, name, measure)) for backend in COLOURS}
            rows.append({"setting": NAMES[name], "of": words} | slopes)
    return rows


@style.style()
def drawn(found):
    """The figure: time above, memory below, a column for each setting, both axes logarithmic, exponents at the ends."""
    figure = style.new_figure(10, 4.6, layout="constrained")
    axes = figure.subplots(len(DRAWN), len(VALUES), sharex="col", sharey="row", squeeze=False)
    for row, measure in zip(axes, DRAWN, strict=True):
        row[0].set_ylabel(MEASURES[measure])
        for ax, name in zip(row, VALUES, strict=True):
            _panel(ax, found, name, measure)
    for ax, name in zip(axes[-1], VALUES, strict=True):
        ax.set_xlabel(NAMES[name])
    axes[0, 0].legend(loc="upper left", handlelength=1.2)
    return figure


def _panel(ax, found, name, measure):
    """Both backends' points, with the exponent behind the last one; the usual value is marked."""
    from matplotlib.ticker import LogLocator, NullLocator

    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.margins(x=0.16)
    ax.axvline(USUAL[name], color="0.85", linewidth=1, zorder=0)
    curves = {backend: curve(found, backend, name, measure) for backend in COLOURS}
    highest = max(y[-1] for _, y in curves.values() if y)
    for backend, colour in COLOURS.items():
        x, y = curves[backend]
        ax.plot(x, y, marker="o", markersize=3.5, color=colour, label=backend)
        if (slope := exponent(x, y)) is not None:
            side = "bottom" if y[-1] == highest else "top"  # so that near ends can be read
            place = {"xytext": (5, 0), "textcoords": "offset points", "va": side}
            ax.annotate(f"{round(slope, 2) + 0.0:.2f}", (x[-1], y[-1]), **place, color=colour, fontsize=7.5)
    ax.set_xticks(VALUES[name], [f"{value:g}" for value in VALUES[name]])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if measure == "seconds" else (1, 1.5, 2, 3, 5, 7)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_locator(NullLocator())


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hardware", default="not stated", help="what it runs on, in words, stored with the result")
    parser.add_argument("--backend", nargs="+", choices=tuple(COLOURS), default=list(COLOURS))
    parser.add_argument("--rounds", type=int, default=5, help="measurements of a point (default: 5)")
    parser.add_argument("--steps", type=int, default=2, help="steps in a measurement (default: 2)")
    parser.add_argument("--draw", action="store_true", help="draw what there is, and measure nothing")
    args = parser.parse_args()
    if not args.draw:
        measure(args)
    found = kept()
    print(table(exponents(found)))
    atomic.write(FIGURE, style.rendered(drawn(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
