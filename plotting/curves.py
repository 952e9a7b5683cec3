"""Curves over epochs."""

import numpy as np

from plotting.style import PALETTE, decimals, new_figure, style

SPLITS = {"train": "training", "val": "validation"}


@style()
def losshistory(view):
    history, config = view.run.history, view.config
    names = ("bound",) * ("bound" in config.terms) + ("elbo", "rate", "distortion")  # what was trained comes first
    kind = "best" if "val" in config.splits else "last"
    figure = new_figure(3 * len(names), 3, layout="constrained")
    best, seen = config.kept(history[config.monitor]), [name for name in SPLITS if name in config.splits]
    for axes, name in zip(figure.subplots(1, len(names)), names, strict=True):
        for split, colour in zip(seen, ("#949494", PALETTE[0]), strict=False):
            draw_curve(axes, history["epoch"], history[f"{split}_{name}"], color=colour, label=SPLITS[split])
        axes.axvline(history["epoch"][best], color="black", linewidth=0.8, linestyle=":", label=f"{kind} epoch, kept")
        axes.plot(history["epoch"][best], history[f"{seen[-1]}_{name}"][best], "o", color="black", markersize=3.5)
        by_epoch(axes, name)
        zoom(axes, [history[f"{split}_{name}"] for split in seen])
    value = decimals(history[config.monitor][best])
    figure.axes[0].set_title(f"{kind}: {value} in epoch {history['epoch'][best]:.0f}")
    figure.axes[1].set_title(view.run.note)
    figure.legend(handles=figure.axes[0].lines[: len(seen) + 1], loc="outside upper right", ncols=3)
    return figure


@style()
def layerrates(view):
    import matplotlib

    history, names = view.run.history, view.config.layers
    rates = [history[f"{view.config.splits[-1]}_rate_{name}"] for name in names]
    figure = new_figure(7.6, max(3.0, 0.2 * len(names) + 0.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.6, 1))
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(names)))
    for name, values, colour in zip(names, rates, shades, strict=True):
        draw_curve(left, history["epoch"], values, color=colour, label=name)
    by_epoch(left, "rate of the layer")
    left.set(yscale="symlog", title=view.run.note)
    left.yaxis.set_major_formatter("{x:g}")
    bars = right.barh(range(len(names)), [values[-1] for values in rates], color=shades)
    right.set_yticks(range(len(names)), names)
    right.invert_yaxis()
    right.set(xlabel="nats", ylabel="layer, the top one first", title=f"epoch {history['epoch'][-1]:.0f}")
    right.bar_label(bars, [decimals(values[-1]) for values in rates], padding=2, fontsize=7)
    right.margins(x=0.15)
    return figure


def by_epoch(axes, quantity):
    """Labels both axes, with whole numbers at the ticks of the x-axis."""
    from matplotlib.ticker import MaxNLocator

    axes.set(xlabel="epoch", ylabel=f"{'ELBO' if quantity == 'elbo' else quantity} (nats)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def draw_curve(axes, epochs, values, **options):
    """A line, with dots if it is so short that it would hardly show."""
    axes.plot(epochs, values, marker="." if len(epochs) < 10 else None, **options)


def zoom(axes, curves):
    """Limits the y-axis to the values after the first tenth of each curve, whose steep start would flatten the rest."""
    limit(axes, [curve[int(0.1 * len(curve)) :] for curve in curves])


def limit(axes, curves):
    """Limits the y-axis to the values of these curves."""
    values = np.concatenate([np.ravel(curve) for curve in curves])
    pad = 0.06 * max(np.ptp(values), 1e-3)
    axes.set_ylim(values.min() - pad, values.max() + pad)
