"""The one style of all figures."""

import contextlib
import io

import numpy as np

DPI = 150
FORMATS = ("png", "svg")
# seaborn's "colorblind", with the pale colours last
PALETTE = ("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#56b4e9", "#949494", "#fbafe4",
           "#ece133")  # fmt: skip
STYLE = {
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "figure.dpi": DPI,
    "font.size": 9,
    "image.cmap": "gray",
    "image.interpolation": "none",
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "savefig.bbox": "tight",
    "savefig.dpi": DPI,
    "savefig.pad_inches": 0.06,
    "svg.hashsalt": "vampvae",  # so that the ids of its elements are always the same
    "text.parse_math": False,  # names of folders and classes may contain $
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}


@contextlib.contextmanager
def style():
    """The style of all figures, independent of the user's matplotlibrc; a context and a decorator."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def new_figure(width, height, **options):
    """An empty figure of this size in inches."""
    from matplotlib.figure import Figure

    return Figure((width, height), **options)


@style()
def rendered(figure, kind="png"):
    """The figure as the bytes of a file of this kind, one of FORMATS; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def colours(count):
    """`count` colours: those of the palette or, where it has too few, evenly spaced ones of a colour map."""
    import matplotlib

    if count <= len(PALETTE):
        return PALETTE[:count]
    return tuple(matplotlib.colormaps["turbo"](np.linspace(0.03, 0.97, count)))


def decimals(value, digits=2):
    """A number with this many decimals and the minus sign that axes have."""
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")
