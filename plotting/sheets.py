"""Sheets of images."""

import numpy as np

from plotting.style import DPI, decimals, new_figure, style

SHEET_PIXELS = (1200, 1800)  # greatest width and height of a sheet whose pixels are enlarged
GAP, BREAK = 2, 12  # pixels between images, and between groups of them
TILE_TEXT = 7.5  # points of the words under an image
WRITTEN = round(1.5 * TILE_TEXT * DPI / 72)  # pixels of a break with such words


def in_rows(images, columns):
    """Images (N, H, W, C) in rows of `columns`, the last row filled with NaN: (rows, columns, H, W, C)."""
    padded = np.pad(images, [(0, -len(images) % columns), (0, 0), (0, 0), (0, 0)], constant_values=np.nan)
    return padded.reshape(-1, columns, *images.shape[1:])


def alternating(upper, lower):
    """Each row of one grid above the same row of another: two of (R, columns, H, W, C) -> (2 R, columns, H, W, C)."""
    return np.stack([upper, lower], axis=1).reshape(-1, *upper.shape[1:])


def starts(count, size, breaks=(), room=BREAK):
    """First pixel of each of `count` tiles of `size` pixels, (count,), and their length together; see `tiled`."""
    gaps = [0, *(room if index in breaks else GAP for index in range(1, count))]
    first = np.cumsum(gaps) + size * np.arange(count)
    return first, int(first[-1]) + size


def tiled(grid, row_breaks=(), column_breaks=(), room=BREAK):
    """A grid (R, columns, H, W, C) in [0, 1] as one picture (h, w, C), and the first pixels of rows and columns.

    NaN is white, as are GAP pixels between images, or `room` and BREAK pixels before rows and columns in the breaks.
    """
    rows, columns, height, width, channels = grid.shape
    top, h = starts(rows, height, row_breaks, room)
    left, w = starts(columns, width, column_breaks)
    picture = np.ones((h, w, channels), np.float32)
    for row, y in enumerate(top):
        for column, x in enumerate(left):
            picture[y : y + height, x : x + width] = grid[row, column]
    return np.nan_to_num(picture, nan=1.0), top, left


def enlarged(grid):
    """The grid with every pixel repeated k times along both axes; k is the most that SHEET_PIXELS allow, at least 1."""
    rows, columns, height, width, _ = grid.shape
    factor = max(1, min(SHEET_PIXELS[0] // (columns * width), SHEET_PIXELS[1] // (rows * height)))
    return grid.repeat(factor, axis=2).repeat(factor, axis=3)


@style()
def sheet(grid, caption="", rows=(), columns=(), axis_names=("", ""), words=(), row_breaks=(), column_breaks=()):
    """A figure of a grid of images (R, columns, H, W, C) in [0, 1], where NaN is white.

    It is drawn as one array whose pixels are whole pixels of the PNG. `rows` and `columns` are names beside the rows
    and below the columns, one for each or for each group of equally many; `axis_names` are those of x and y. `words`
    (groups, columns) stand under the last tile of each column in each group of equally many rows.
    """
    big = enlarged(grid)
    picture, top, left = tiled(big, row_breaks, column_breaks, WRITTEN if words else BREAK)
    (h, w, _), (tall, wide) = picture.shape, big.shape[2:4]
    figure = new_figure(w / DPI, h / DPI)
    axes = figure.add_axes((0, 0, 1, 1), title=caption, xlabel=axis_names[0], ylabel=axis_names[1])
    axes.imshow(picture, vmin=0, vmax=1, extent=(0, w, h, 0), aspect="auto")
    axes.spines[:].set_visible(False)
    for axis, middles, names in ((axes.xaxis, left + wide / 2, columns), (axes.yaxis, top + tall / 2, rows)):
        places = middles.reshape(len(names) or len(middles), -1).mean(axis=1)
        axis.set_ticks(places, names or [""] * len(places))
    axes.tick_params(length=0)
    place = {"xytext": (0, -1), "textcoords": "offset points", "ha": "center", "va": "top"}
    for group, several in enumerate(words, 1):
        bottom = top[group * len(top) // len(words) - 1] + tall
        for x, word in zip(left + wide / 2, several, strict=True):
            axes.annotate(word, (x, bottom), annotation_clip=False, fontsize=TILE_TEXT, **place)
    return figure


def every_other(values):
    """Labels of rising values, empty for every other one, with the 0 to 6 decimals that tell them apart."""
    span = max(values[-1] - values[0], 1e-12)
    digits = int(np.clip(2 - np.floor(np.log10(span)), 0, 6))
    return [decimals(value, digits) if index % 2 else "" for index, value in enumerate(values)]
