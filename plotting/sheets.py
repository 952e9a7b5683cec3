"""Sheets of images."""

import numpy as np

from plotting.style import DPI, decimals, new_figure, style

SHEET_PIXELS = (1200, 1800)  # greatest width and height of a sheet whose pixels are enlarged
GAP, BREAK = 2, 12  # pixels between images, and between groups of them
TILE_TEXT = 7.5  # points of the words under an image
WRITTEN = round(1.5 * TILE_TEXT * DPI / 72)  # pixels of a break with such words


def in_rows(images, columns):
    """Images (N, H, W, C) in rows of `columns`, the last row filled with NaN: (rows, columns, H, W, C)."""
    missing = -len(images) % columns
    padded = np.concatenate([images, np.full((missing, *images.shape[1:]), np.nan, images.dtype)])
    return padded.reshape(-1, columns, *images.shape[1:])


def alternating(upper, lower):
    """Each row of one grid above the same row of another: two of (R, columns, H, W, C) -> (2 R, columns, H, W, C)."""
    return np.stack([upper, lower], axis=1).reshape(-1, *upper.shape[1:])


def starts(count, size, breaks=(), room=BREAK):
    """First pixel of each of `count` tiles of `size` pixels, (count,), and their length together.

    Tiles lie GAP pixels apart, or `room` pixels before those whose index is in `breaks`.
    """
    gaps = [0, *(room if index in breaks else GAP for index in range(1, count))]
    first = np.cumsum(gaps) + size * np.arange(count)
    return first, int(first[-1]) + size


def tiled(grid, row_breaks=(), column_breaks=(), room=BREAK):
    """A grid of images as one picture, white between images and where pixels are NaN.

    Args: grid (R, columns, H, W, C) in [0, 1]; room, pixels at each of row_breaks. Returns the picture (h, w, C) and
    the first pixels of rows and columns.
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
def sheet(grid, caption="", row_breaks=(), column_breaks=(), room=BREAK):
    """A figure of a grid of images (R, columns, H, W, C) in [0, 1], where NaN is white.

    It is drawn as one array whose pixels are whole pixels of the PNG, with `room` pixels at each of `row_breaks`. Its
    axes are bare; see `name_rows`, `name_columns` and `name_tiles`.
    """
    big = enlarged(grid)
    picture, top, left = tiled(big, row_breaks, column_breaks, room)
    h, w, _ = picture.shape
    figure = new_figure(w / DPI, h / DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(picture, vmin=0, vmax=1, extent=(0, w, h, 0), aspect="auto")
    axes.spines[:].set_visible(False)
    axes.set_xticks(left + big.shape[3] / 2, [""] * len(left))
    axes.set_yticks(top + big.shape[2] / 2, [""] * len(top))
    axes.tick_params(length=0)
    axes.set_title(caption)
    return figure


@style()
def name_rows(figure, names, label=""):
    """Writes names beside the rows of a sheet: one for each row, or for each group of equally many rows."""
    axes = figure.axes[0]
    places = axes.get_yticks().reshape(len(names), -1).mean(axis=1)
    axes.set_yticks(places, names)
    axes.set_ylabel(label)


@style()
def name_columns(figure, names, label=""):
    """Writes names below the columns of a sheet: one for each column, or for each group of equally many columns."""
    axes = figure.axes[0]
    axes.set_xticks(axes.get_xticks().reshape(len(names), -1).mean(axis=1), names)
    axes.set_xlabel(label)


@style()
def name_tiles(figure, names):
    """Writes names (groups, columns) under the last tile of each column in each group of equally many rows."""
    axes = figure.axes[0]
    rows, columns = axes.get_yticks(), axes.get_xticks()
    per_group, half = len(rows) // len(names), rows[0]  # the middle of the first row is half a tile from the edge
    for middle, words in zip(rows[per_group - 1 :: per_group], names, strict=True):
        for x, word in zip(columns, words, strict=True):
            place = {"textcoords": "offset points", "ha": "center", "va": "top"}
            axes.annotate(word, (x, middle + half), (0, -1), annotation_clip=False, fontsize=TILE_TEXT, **place)


def every_other(values):
    """Labels of rising values, empty for every other one, with the 0 to 6 decimals that tell them apart."""
    span = max(values[-1] - values[0], 1e-12)
    digits = int(np.clip(2 - np.floor(np.log10(span)), 0, 6))
    return [decimals(value, digits) if index % 2 else "" for index, value in enumerate(values)]
