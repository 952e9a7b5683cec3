"""Which training images are the exemplars of a step: the nearest ones to the images of its batch, and random ones."""

import numpy as np

CANDIDATES = 2000  # random images, among which the nearest ones of an epoch are
ROWS = 500  # images at once whose nearest ones are looked for


class Exemplars:
    """The E = `num_exemplars` exemplars of each step on N training images, a pure function of (seed, epoch, means).

    At most half of them are the nearest ones to each image of the batch, as many for each as there is room for, but one
    at least, by the means of the epoch's begin. The others are drawn from the rest.
    """

    def __init__(self, config, n):
        self.config, self.n = config, n
        self.nearest, self.epoch = np.zeros((n, 0), int), 0

    def start_epoch(self, epoch, means):
        """Looks for the nearest ones of all images, by their means (N, D)."""
        rng, self.epoch = np.random.default_rng(self.config.stream("exemplars", epoch)), epoch
        candidates = np.sort(rng.choice(self.n, min(self.n, CANDIDATES), replace=False))
        count = max(1, self.config.num_exemplars // (2 * self.config.batch_size))
        self.nearest = nearest(means, candidates, min(count, len(candidates) - 1))

    def of(self, chosen, step):
        """The indices (E,) of the exemplars of a step on the images `chosen`, and 1.0 for near ones, 0.0 for others."""
        stream = self.config.stream("exemplars", self.epoch, step + 1)  # not 0, which is that of the epoch's candidates
        rng, total = np.random.default_rng(stream), self.config.num_exemplars
        near = rng.permutation(np.unique(self.nearest[chosen]))[: total // 2]
        drawn = rng.choice(self.n, total, replace=False)
        drawn = drawn[~np.isin(drawn, near)][: total - len(near)]
        return np.concatenate([near, drawn]), np.repeat(np.float32([1, 0]), [len(near), len(drawn)])


def nearest(means, candidates, count):
    """The `count` nearest of the indices `candidates` to each of the `means` (N, D), but its own: (N, count)."""
    theirs, found = means[candidates], []
    half, place = 0.5 * np.square(theirs).sum(axis=1), np.full(len(means), -1)
    place[candidates] = np.arange(len(candidates))
    for start in range(0, len(means), ROWS):
        rows, own = slice(start, start + ROWS), place[start : start + ROWS]
        distance = half - means[rows] @ theirs.T  # but for the own square, which is the same for all candidates
        distance[own >= 0, own[own >= 0]] = np.inf
        best = np.argmin(distance, axis=1)[:, None]
        if count > 1:
            best = np.argpartition(distance, count - 1, axis=1)[:, :count]
        found.append(candidates[best])
    return np.concatenate(found)
