"""Scores as they are printed: tables, notes and warnings."""

import math
import sys
from itertools import takewhile

import numpy as np

import models
from evaluation.score import COLUMNS, LATENTS, compared, highest_khat
from experiment.sources import is_of
from runtime.text import listed, table

READING = "higher log_px is better; log_px_se is its error by the estimator, log_px_se_images that by the choice of "
READING += "images; doubtful counts unreliable estimates (docs/scores.md)"
LOWEST = 5  # images that are named, of those that are not the run's own
DISTANCES = ("num_images", "num_held_out", "fid", "kid", "kid_se", "temperature", "seconds_per_image")


def print_scores(found, on, network):
    """Prints the tables of a list of Scored: of a features.Network, or None, and `on` a data set that is not theirs.

    Names of runs are long: a single run is a list of numbers, and what several names or all notes share is said once.
    """
    said, split = "; ".join(dict.fromkeys(one.scoring.said for one in found)), found[0].metrics["split"]
    images = [on] * bool(on) + ["all images" if split == "all" else f"{split} split"]
    print(f"{', '.join([*images, said])}; in nats per image, except bits_per_dim")
    pattern, found = shortened(found)
    if pattern != "*":
        print(f"run{'s' * (len(found) > 1)}: {pattern}")
    if len(notes := {one.metrics["note"] for one in found}) == 1 and any(notes):
        print("note:", *notes)
    columns = COLUMNS + ("precision",) * any(one.config.precision != "float32" for one in found)
    print(as_text([row(one, columns) | {"note": one.metrics["note"]} for one in found]))
    print("\nlatents, the top layer first")
    print(as_text([row(one, LATENTS) for one in found]))
    if rows := [{"run": one.name} | clusters for one in found if (clusters := one.metrics["clusters"])]:
        print("\nclasses told apart by the components of the prior (docs/scores.md)")
        print(as_text(rows))
    if network:
        print(f"\nall {split} images compared with samples and with real images, by the features of {network.said}")
        rows = []
        for one in found:
            drawn = one.metrics["distances"]
            for kind, of in {"samples": drawn, "real images": drawn["real"]}.items():
                rows.append({"run": one.name, "images": kind} | {name: of.get(name) for name in DISTANCES})
        print(as_text(rows))
    if on:
        print_lowest(found)


def print_lowest(found):
    """Prints the names of the images with the lowest log p(x) of a list of Scored."""
    print(f"\nlowest log p(x) (all of them are in {found[0].file.parent.name}/{found[0].file.stem}.csv of each run)")
    rows = []
    for one in found:
        for at in np.argsort(one.estimate.log_px)[:LOWEST]:
            name, log_px, error = str(one.names[at]), *(float(column[at]) for column in one.estimate[:2])
            name = name if name.isprintable() else repr(name)
            rows.append({"run": one.name, "image": name, "log_px": log_px, "log_px_se": error})
    print(as_text(rows))


def print_comparison(found):
    """Prints the table of all scores but the first, compared with the first."""
    _, found = shortened(found)
    print(f"\ncompared with {found[0].name}, image by image, in nats")
    print(table([compared(one, found[0]) for one in found[1:]]))
    print(*of_priors(found), sep="", end="")


def of_priors(found):
    """Yields a line on each Scored that is the first one with another prior: what the prior explains of a gap."""
    base, *others = found
    for one in others:
        if not is_of(one.config, base.metrics["weights_sha256"]):
            continue
        gain = compared(one, base)
        said = f"{one.name} keeps q(z|x) and p(x|z) of {base.name}; its prior alone changes log p(x) by"
        error = "" if gain["se"] is None else f" (se {gain['se']:.2g})"  # of one image there is none
        yield f"{said} {gain['difference']:+.2f} nats{error}\n"
        for other in others:
            if other.config.prior == one.config.prior and not other.config.refit:
                gap = compared(other, base)["difference"]
                rest = gap - gain["difference"]
                said = f"  {other.name} differs by {gap:+.2f} nats; the other {rest:+.2f} come from training"
                yield f"{said} q(z|x) and p(x|z) with this prior\n"


def print_notes(one):
    """Prints what a reader of a Scored must know besides its numbers; warnings go to stderr."""
    for note in notes(one):
        print(f"{one.name}: {note}")
    for warning in filter(None, (unreliable(one), missed_target(one), rejecting(one))):
        print(f"warning: {one.name}: {warning}", file=sys.stderr)


def shortened(found):
    """What the names of several Scored share, with * for what they do not, and the Scored under the latter alone."""
    if len(found) == 1:
        return found[0].name, found
    if len({one.name for one in found}) < len(found):  # folders of the same name
        found = [one._replace(name=str(one.file.parent.parent)) for one in found]
        return "*", found

    def same(names, most):
        columns = takewhile(lambda column: len(set(column)) == 1, zip(*names, strict=False))
        return min(len([*columns]), most)

    words = [one.name.split("_") for one in found]
    most = min(map(len, words)) - 1  # a word of each name is left
    start = same(words, most)
    end = same([name[::-1] for name in words], most - start)
    rests = ["_".join(name[start : len(name) - end]) for name in words]
    pattern = "_".join([*words[0][:start], "*", *words[0][len(words[0]) - end :]])
    return pattern, [one._replace(name=rest) for one, rest in zip(found, rests, strict=True)]


def as_text(rows):
    """Rows on runs as a table, or a single row as a list, without the name or note that they share."""
    shared = [name for name in ("run", "note") if len({one.get(name) for one in rows}) == 1]
    rows = [{name: one[name] for name in one if name not in shared} for one in rows]
    return table(rows) if len(rows) > 1 else listed(rows[0])


def row(one, columns):
    """A row of a table: the name of the run, and these of its metrics; a value per layer as 12.30 + 4.56."""
    cells = {"run": one.name} | {name: one.metrics[name] for name in columns}
    for name, value in cells.items():
        if isinstance(value, list):
            cells[name] = " + ".join(f"{part:.2f}" if isinstance(part, float) else str(part) for part in value)
    return cells


def notes(one):
    """Sentences on the model and the estimator: a list."""
    found = []
    if one.config.is_autoregressive:
        height, width, _ = one.metrics["image_shape"]
        found.append(f"sampling an image takes {height} x {width} passes through the decoder, one per pixel")
    if not models.MODELS[one.config.model].is_exact:
        found.append(f"log p(x) is that of {one.config.diffusion_steps} diffusion steps, as in sampling, with one path "
                     "per sample; the ELBO is that of infinitely many steps")  # fmt: skip
    if "log_z" in one.metrics:
        found.append("log Z of the prior is {log_z:.4f} with a standard error of {log_z_se:.2g}, which log p(x) of all "
                     "images shares, so it is not in log_px_se".format(**one.metrics))  # fmt: skip
    return found + one.scoring.entry.notes(one.metrics)


def unreliable(one):
    """A sentence on the images whose estimates are unreliable; "" if there are none."""
    if not (count := one.metrics["doubtful"]):
        return ""
    reason, khat = "too few effective samples", one.estimate.khat
    limits = highest_khat(one.estimate.samples)
    if (above := khat > limits).any():
        worst = np.argmax(np.where(above, khat, -np.inf))
        limit = f"{limits[worst]:.2g}, up to {khat[worst]:.2f} for image {one.names[worst]}"
        reason = f"Pareto k-hat above {limit}, or {reason}"
    return f"{count} of {len(khat)} estimates are unreliable ({reason}); {one.remedy}"


def rejecting(one):
    """A sentence on a resampled prior that accepts hardly any proposal; "" for others."""
    z, most = math.exp(one.metrics.get("log_z", 0.0)), one.config.num_proposals
    if (1 - z) ** (most - 1) <= 0.5:
        return ""
    text = f"the prior accepts a share of {z:.2g} of its proposals, and takes the last of {most} in any case: most of "
    return text + "its samples are those of N(0, I); train with more --num_proposals"


def missed_target(one):
    """A sentence on the images whose error is above --target_se; "" if there are none."""
    target, errors = one.scoring.settings.get("target_se"), one.estimate.log_px_se
    if target is None or (errors <= target).all():
        return ""
    text = f"{np.count_nonzero(errors > target)} of {len(errors)} images did not reach --target_se {target} with "
    text += f"{one.scoring.settings['max_samples']} samples; their standard errors go up to {errors.max():.2g}; "
    return text + "raise --max_samples"
