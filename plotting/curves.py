"""Curves over epochs."""

import numpy as np

from plotting.style import PALETTE, decimals, new_figure, style


@style()
def losshistory(history, note=""):
    """A figure of ELBO, rate and distortion of training and validation by epoch, with the best epoch marked.

    Args: history, columns (epochs,): epoch, and {train,val}_{elbo,rate,distortion} in nats. If it has a `bound`, that
    was trained, and comes first.
    """
    names = ("bound",) * ("val_bound" in history) + ("elbo", "rate", "distortion")
    figure = new_figure(3 * len(names), 3, layout="constrained")
    best = int(np.argmax(history[f"val_{names[0]}"]))
    for axes, name in zip(figure.subplots(1, len(names)), names, strict=True):
        curves = {label: history[f"{split}_{name}"] for split, label in (("train", "training"), ("val", "validation"))}
        for (label, values), colour in zip(curves.items(), ("#949494", PALETTE[0]), strict=True):
            draw_curve(axes, history["epoch"], values, color=colour, label=label)
        axes.axvline(history["epoch"][best], color="black", linewidth=0.8, linestyle=":", label="best epoch, kept")
        axes.plot(history["epoch"][best], curves["validation"][best], "o", color="black", markersize=3.5)
        by_epoch(axes, f"{name.upper() if name == 'elbo' else name} (nats)")
        zoom(axes, curves.values())
    value = decimals(history[f"val_{names[0]}"][best])
    figure.axes[0].set_title(f"best: {value} in epoch {history['epoch'][best]:.0f}")
    figure.axes[1].set_title(note)
    figure.legend(handles=figure.axes[0].lines[:3], loc="outside upper right", ncols=3)
    return figure


@style()
def layerrates(epochs, rates, note=""):
    """A figure of the rate of each layer by epoch, and in the last epoch as bars.

    Args: epochs (n,); rates, a dict of the names of layers, the top one first, to (n,) in nats.
    """
    import matplotlib

    figure = new_figure(7.6, max(3.0, 0.2 * len(rates) + 0.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.6, 1))
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(rates)))
    last = [values[-1] for values in rates.values()]
    for (name, values), colour in zip(rates.items(), shades, strict=True):
        draw_curve(left, epochs, values, color=colour, label=name)
    by_epoch(left, "rate of the layer (nats)")
    left.set(yscale="symlog", title=note)
    left.yaxis.set_major_formatter("{x:g}")
    right.barh(range(len(rates)), last, color=shades)
    right.set_yticks(range(len(rates)), rates)
    right.invert_yaxis()
    right.set(xlabel="nats", ylabel="layer, the top one first", title=f"epoch {epochs[-1]:.0f}")
    right.bar_label(right.containers[0], [decimals(value) for value in last], padding=2, fontsize=7)
    right.margins(x=0.15)
    return figure


@style()
def curves(runs, note=""):
    """A figure of validation ELBO, rate and distortion by epoch: means over seeds in bands of one standard deviation.

    Args: runs, a dict of labels to lists of (history as of `losshistory`, index of the kept epoch), one for each seed.
    A dot marks the kept epoch of each seed, at that seed's own value.
    """
    figure = new_figure(9, 3.5, layout="constrained")
    for axes, name in zip(figure.subplots(1, 3), ("elbo", "rate", "distortion"), strict=True):
        column = f"val_{name}"
        zoom(axes, [draw_seeds(axes, n, label, seeds, column) for n, (label, seeds) in enumerate(runs.items())])
        by_epoch(axes, f"{name.upper() if name == 'elbo' else name} (nats)")
    figure.axes[0].set_title("validation; dots: kept epochs")
    figure.axes[1].set_title("bands: mean ± sd over seeds" if any(len(seeds) > 1 for seeds in runs.values()) else "")
    figure.axes[2].set_title(note)
    handles = figure.axes[0].get_legend_handles_labels()[0]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
    return figure


def draw_seeds(axes, number, label, seeds, column):
    """Draws the mean of a column over seeds, for the epochs that all have, its band, and a dot for each seed.

    Returns the values (n,) that should be visible: all but the first tenth, whose steep start would flatten the rest.
    """
    colour, dash = line_of(number)
    length = min(len(history[column]) for history, _ in seeds)
    values = np.stack([history[column][:length] for history, _ in seeds])
    epochs, mean = seeds[0][0]["epoch"][:length], values.mean(axis=0)
    spread = values.std(axis=0, ddof=1) if len(seeds) > 1 else np.zeros(length)
    if len(seeds) > 1:
        axes.fill_between(epochs, mean - spread, mean + spread, color=colour, alpha=0.25, linewidth=0)
    draw_curve(axes, epochs, mean, color=colour, linestyle=dash, label=label)
    for history, best in seeds:
        dot = {"color": colour, "markersize": 4.5, "markeredgecolor": "white", "markeredgewidth": 0.6}
        axes.plot(history["epoch"][best], history[column][best], "o", **dot)
    start, dots = length // 10, [history[column][best] for history, best in seeds]
    return np.concatenate([(mean - spread)[start:], (mean + spread)[start:], dots])


def line_of(number):
    """The colour and the dashes of the curve of this number, which differ among the first forty."""
    return PALETTE[number % len(PALETTE)], ("-", "--", ":", "-.")[number // len(PALETTE) % 4]


@style()
def overlay(curves):
    """A figure of the validation ELBO of each run by epoch; the legend begins with the best run.

    Args: curves, a dict of labels to (epochs (E,), ELBO (E,) in nats).
    """
    figure = new_figure(6, 3.8)
    axes = figure.add_subplot()
    by_epoch(axes, "validation ELBO (nats)")
    numbers = {label: number for number, label in enumerate(curves)}  # for the same colours as in `curves`
    for label, (epochs, values) in sorted(curves.items(), key=lambda item: -max(item[1][1])):
        colour, dash = line_of(numbers[label])
        draw_curve(axes, epochs, values, color=colour, linestyle=dash, label=f"{label}: {decimals(max(values))}")
        axes.plot(epochs[np.argmax(values)], max(values), "o", color=colour, markersize=3.5)
    zoom(axes, [values for _, values in curves.values()])
    axes.legend(title="best epoch (dot)", loc="upper left", bbox_to_anchor=(1, 1), alignment="left", title_fontsize=8)
    return figure


def by_epoch(axes, label):
    """Labels both axes, with whole numbers at the ticks of the x-axis."""
    from matplotlib.ticker import MaxNLocator

    axes.set(xlabel="epoch", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def draw_curve(axes, epochs, values, **options):
    """A line, with dots if it is so short that it would hardly show."""
    axes.plot(epochs, values, marker="." if len(epochs) < 10 else None, **options)


def zoom(axes, curves, start=0.1):
    """Limits the y-axis to the values after the first tenth of each curve, whose steep start would flatten the rest."""
    values = np.concatenate([curve[int(start * len(curve)) :] for curve in curves])
    limit(axes, values)


def limit(axes, values):
    """Limits the y-axis to these values."""
    pad = 0.06 * max(np.ptp(values), 1e-3)
    axes.set_ylim(values.min() - pad, values.max() + pad)
