"""Numbers and tables as text for people, and names of files."""

import hashlib


def duration(seconds):
    """Seconds in words, "3 h 05 min", "2 min 10 s" or "4 s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def bounded(name, most=255):
    """A file's name or, where it is longer than `most`, its start, a hash and its end: file systems take 255 bytes."""
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:8]
    return name if len(name) <= most else f"{name[: most - 49]}-{digest}{name[-40:]}"


def word(value):
    """A value as one word of a command; the values of a tuple are joined by commas."""
    return ",".join(map(str, value)) if type(value) is tuple else str(value)


def table(rows):
    """Dicts with the same keys as aligned text: a line of names, then one per row; numbers below 1 keep two digits."""
    shown = [[cell(value) for value in row.values()] for row in rows]
    lines = [list(rows[0]), *shown]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    numeric = [any(isinstance(row[name], int | float) for row in rows) for name in rows[0]]
    cells = [[c.rjust(w) if n else c.ljust(w) for c, w, n in zip(line, widths, numeric, strict=True)] for line in lines]
    return "\n".join("  ".join(line).rstrip() for line in cells)


def listed(row):
    """A dict as aligned text: a line for each name with its value, but none for an empty value."""
    cells, width = {name: cell(value) for name, value in row.items()}, max(map(len, row))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in cells.items() if value)


def cell(value):
    """A value as text in a table."""
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:.2f}" if abs(value) >= 1 or value == 0 else f"{value:.2g}"
