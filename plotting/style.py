"""The one style of all figures."""

import contextlib
import io
import os

import numpy as np

from runtime.errors import UserError

DPI = 150
FORMATS = ("png", "svg")


PALETTE = (  # seaborn's "colorblind", ten colours, the pale ones last
    "#0173b2",
    "#de8f05",
    "#029e73",
    "#d55e00",
    "#cc78bc",
    "#ca9161",
    "#56b4e9",
    "#949494",
    "#fbafe4",
    "#ece133",
)


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
    "svg.hashsalt": "vampvae",  # else the names of its parts are chance
    "text.parse_math": False,  # folders and classes may have any name
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}


@contextlib.contextmanager
def style():
    """The one style of all figures, whatever the user's matplotlibrc says; a context and a decorator.

    Raises UserError where matplotlib is told to use a backend that there is not, though none is used here.
    """
    try:
        import matplotlib
    except ValueError as error:
        told = os.environ.get("MPLBACKEND")
        raise UserError(
            f"matplotlib cannot be imported with MPLBACKEND={told}; unset it, no display is used"
        ) from error
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def new_figure(width, height, **options):
    """An empty figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure((width, height), **options)


@style()
def rendered(figure, kind="png"):
    """The figure as the bytes of a file of this kind, one of FORMATS: PNG at 150 dpi, or SVG, the same every time."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def colours(count):
    """As many colours: the palette, or evenly from a colour map where that has too few."""
    import matplotlib

    if count <= len(PALETTE):
        return PALETTE[:count]
    return tuple(matplotlib.colormaps["turbo"](np.linspace(0.03, 0.97, count)))


def percent(share):
    """A share as a percentage of two digits, small ones as "< 0.01 %"."""
    return f"{100 * share:.2g} %" if share >= 1e-4 else "< 0.01 %"


def decimals(value, digits=2):
    """A number with so many decimals and a minus sign as long as those of the axes."""
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")
