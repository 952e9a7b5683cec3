"""Deep chains of latent layers: the networks of a bottom-up and a top-down path, and the distributions made of these.

After Kuzina & Tomczak (2024, section 4 and code). Latents are maps of a few channels at falling resolutions; z is their
concatenation, each flattened, the top layer first. Maps are (..., height, width, channels).
"""

import itertools
import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from keras import Sequential, activations, backend, initializers, layers, ops

from .distributions import Normal, warmed
from .networks import as_one_batch, built, hard_clip

LOGVAR = (-10.0, 1.0)  # bounds of log-variances
UNUSED = "unused_from_z"  # of the last layer, which the paper counts, too: no state comes after it
warnings.filterwarnings("ignore", rf"Gradients do not exist for variables \['{UNUSED}/kernel', '{UNUSED}/bias'\]")


class Scale(NamedTuple):
    """`count` latent layers of height x width maps."""

    count: int
    height: int
    width: int


def scales_of(text, image_shape):
    """The Scales, finest first, that "4x14,4x7" (counts and heights) means for images (H, W, C).

    Raises ValueError where a scale does not fit the image, or the one before it.
    """
    height, width, _ = image_shape
    found, finer, images = [], height, f"images of {height}x{width} pixels"
    for part in text.split(","):
        count, side = map(int, part.split("x"))
        if side > height:
            raise ValueError(f"scale {part} is finer than the {images}; choose other scales")
        if finer % side or width * side % height:
            above = f"{finer} rows above it" if finer != height else images
            raise ValueError(f"scale {part} does not fit the {above}: it must divide them evenly; choose other scales")
        found.append(Scale(count, side, width * side // height))
        finer = side
    return tuple(found)


def conv(filters, kernel, features, gain=1.0, bias=1.0, **kwargs):
    """A convolution of maps of `features` channels, built.

    Its weights are uniform up to gain / sqrt(fan-in), its biases up to bias / sqrt(fan-in).
    """
    limit = 1 / math.sqrt(kernel * kernel * features)
    uniform = [initializers.RandomUniform(-one * limit, one * limit) for one in (gain, bias)]
    kwargs |= {"kernel_initializer": uniform[0], "bias_initializer": uniform[1], "padding": "same"}
    return built(layers.Conv2D(filters, kernel, **kwargs), features)


def on_maps(layer, maps):
    """A layer of (M, H, W, C) on maps (..., H, W, C), as numbers of the usual precision: (..., H', W', C')."""
    return ops.cast(as_one_batch(layer, maps, 3), backend.floatx())


class Residual(layers.Layer):
    """skip(x) + conv1(a(conv3(a(conv3(a(conv1(x))))))), a the `activation`, with `hidden` channels between.

    The skip is linear, or nothing where the channels stay. With `activates_first`, the branch begins with a, too. The
    last convolution begins with weights scaled by `gain`. A head (`is_head`) gives the parameters of a
    distribution: its last convolution starts at zero, and neither that nor the skip is a hidden layer.
    """

    def __init__(self, features, hidden, outputs, activates_first=False, gain=1.0, is_head=False,
                 activation=activations.silu):  # fmt: skip
        dtype = backend.floatx() if is_head else None
        super().__init__(dtype=dtype)
        gains = {"gain": 0.0, "bias": 0.0} if is_head else {"gain": gain}
        last = conv(outputs, 1, hidden, dtype=dtype, **gains)
        self.convs = [conv(hidden, 1, features), conv(hidden, 3, hidden), conv(hidden, 3, hidden), last]
        self.skip = conv(outputs, 1, features, dtype=dtype) if outputs != features else None
        self.activates_first, self.activation = activates_first, activation
        self.built = True

    def call(self, x):
        h = self.activation(x) if self.activates_first else x
        for one in self.convs[:-1]:
            h = self.activation(one(h))
        return (self.skip(x) if self.skip else x) + self.convs[-1](h)


class BottomUp(layers.Layer):
    """Images (B, H, W, C) in [0, 1] to a map of `channels` at each scale, finest first."""

    def __init__(self, scales, image_shape, channels, hidden, blocks, activation=activations.silu):
        super().__init__()
        self.start = conv(channels, 1, image_shape[2])
        self.stacks, height, width = [], *image_shape[:2]
        for scale in scales:
            options = {"activates_first": True, "activation": activation}
            stack = [Residual(channels, hidden, channels, **options) for _ in range(blocks)]
            pool = [layers.AveragePooling2D(height // scale.height)] * (height > scale.height)
            self.stacks.append(Sequential([*stack, *pool]))
            self.stacks[-1].build((None, height, width, channels))
            _, height, width = scale
        self.built = True

    def call(self, x):
        features, h = [], self.start(2 * x - 1)
        for stack in self.stacks:
            h = stack(h)
            features.append(ops.cast(h, backend.floatx()))
        return features


def resizing(side, target):
    """The (target, side) matrix of linear interpolation with half-pixel centres, rims repeated.

    A product with it has second derivatives, which TensorFlow's own resize has not.
    """
    places = np.clip((np.arange(target) + 0.5) * side / target - 0.5, 0, side - 1)
    low = np.minimum(places.astype(int), max(side - 2, 0))
    matrix = np.zeros((target, side), "float32")
    matrix[np.arange(target), low] = 1 - (places - low)
    matrix[np.arange(target), np.minimum(low + 1, side - 1)] += places - low
    return matrix


def resized(maps, height, width):
    """Maps (..., h, w, C), bilinearly interpolated: (..., height, width, C)."""
    h, w = maps.shape[-3:-1]
    if h != height:
        maps = ops.moveaxis(ops.tensordot(maps, resizing(h, height), axes=(-3, 1)), -1, -3)
    if w != width:
        maps = ops.moveaxis(ops.tensordot(maps, resizing(w, width), axes=(-2, 1)), -1, -2)
    return maps


class Block(layers.Layer):
    """One latent layer of the top-down path, maps of `width` channels at a Scale; `coarser` is followed by `finer`.

    `depth` is the number L of all layers. `context_width` channels are what p is also given.
    """

    def __init__(self, index, scale, finer, depth, channels, hidden, width, context_width, is_last, activation):
        super().__init__(name=f"layer{depth - index}")
        self.scale, self.finer, self.width, gain = scale, finer, width, 1 / math.sqrt(depth)
        self.p = Residual(channels + context_width, hidden, 2 * width + channels, is_head=True, activation=activation)
        self.q = Residual(channels, hidden, 2 * width, is_head=True, activation=activation)
        self.from_z = conv(channels, 1, width, gain, name=UNUSED if is_last else None)
        self.after = None if is_last else Residual(channels, hidden, channels, gain=gain, activation=activation)
        self.size = scale.height * scale.width * width
        self.built = True

    def prior(self, s, context):
        """p(z | above), a Normal over (..., size), and what is added to the state s (..., h, w, channels)."""
        if context is not None:  # either may have more batch axes than the other
            both = s + ops.zeros_like(context[..., :1]), context + ops.zeros_like(s[..., :1])
            s = ops.concatenate(both, axis=-1)
        heads = on_maps(self.p, s)
        return self._normal(heads), heads[..., 2 * self.width :]

    def posterior(self, s, features):
        """q(z | above, x), a Normal over (..., size), of the state s and the features of images."""
        return self._normal(on_maps(self.q, (features + s) / math.sqrt(2)))

    def _normal(self, heads):
        mean, logvar = heads[..., : self.width], hard_clip(heads[..., self.width : 2 * self.width], *LOGVAR)
        shape = (*ops.shape(heads)[:-3], self.size)
        return Normal(ops.reshape(mean, shape), ops.reshape(logvar, shape))

    def maps(self, z):
        """z (..., size) as maps (..., h, w, width)."""
        return ops.reshape(z, (*ops.shape(z)[:-1], *self.scale[1:], self.width))

    def below(self, s, z):
        """The state of the next layer, at its resolution."""
        s = s + on_maps(self.from_z, self.maps(z))
        return resized(on_maps(self.after, s), *self.finer[1:])


class Hierarchy(NamedTuple):
    """prod_l p(z_l | z_>l) over the concatenation [z_L, ..., z_1], each distribution a Normal.

    `descend(pick)` goes down the layers: `pick(index, distribution)` returns the z of a layer from its distribution
    given the layers above. `ends` are the positions in z at which the layers end.
    """

    descend: Callable
    ends: tuple

    @property
    def top(self):
        """The distribution of the top layer."""
        return self._chosen(lambda index, distribution: distribution.mean)[1][0]

    def sample(self, n, seed):
        """`n` ancestral draws: (n, ..., D). Stochastic."""
        return self.sample_and_log_prob(n, seed)[0]

    def log_prob(self, z):
        """The sum over layers in nats: (..., D) -> (...)."""
        return sum(self.log_prob_of_layers(z))

    def log_prob_of_layers(self, z):
        """log p(z_l | z_>l) in nats, the top layer first: (..., D) -> L of (...)."""
        parts, distributions = self._chosen(lambda index, distribution: sliced(z, self.ends, index))
        return log_probs(distributions, parts)

    def sample_and_log_prob(self, n, seed):
        """As `sample` and `log_prob`, in one pass: (n, ..., D) and (n, ...). Stochastic."""

        def pick(index, distribution):
            return distribution.sample(1, seed)[0] if index else distribution.sample(n, seed)

        draws, distributions = self._chosen(pick)
        return ops.concatenate(draws, axis=-1), sum(log_probs(distributions, draws))

    def at_mean(self):
        """The Normal over [z_L, ..., z_1] each of whose layers is the one at the means above; no density."""
        _, normals = self._chosen(lambda index, distribution: distribution.mean)
        return Normal(*(ops.concatenate(parts, axis=-1) for parts in zip(*normals, strict=True)))

    def _chosen(self, pick):
        """The z_l that `pick` returns, and the distributions that it was given, of each layer."""
        found = []

        def noted(index, distribution):
            found.append((pick(index, distribution), distribution))
            return found[-1][0]

        self.descend(noted)
        return tuple(zip(*found, strict=True))


def log_probs(distributions, z):
    """The log_prob of each distribution at its own z, in nats: a list."""
    return [one.log_prob(part) for one, part in zip(distributions, z, strict=True)]


def sliced(z, ends, index):
    """The part of z (..., D) of the layer of this index, the top one being 0."""
    return z[..., ends[index - 1] if index else 0 : ends[index]]


class Descent(NamedTuple):
    """A z_l for each layer, the top one first, and the two Normals that it has a density under, those above given."""

    z: list
    p: list
    q: list

    def log_probs(self):
        """log p(z_l | z_>l) and log q(z_l | z_>l, x) of each layer, in nats: two lists of (n, B)."""
        return log_probs(self.p, self.z), log_probs(self.q, self.z)

    def expected_log_probs(self):
        """The same, each in expectation over its own z_l, in closed form: their difference is -KL(q || p)."""
        return tuple([p.expected_log_prob(q) for p, q in zip(all_p, self.q, strict=True)] for all_p in (self.p, self.q))


class TopDown(layers.Layer):
    """The top-down path through all latent layers, and p(x|z) of the sum of these.

    It begins with a state of ones at the coarsest scale. From state s, layer l has p(z_l | z_>l, u), which also gives
    h, and q(z_l | z_>l, x); then s becomes up(R(s + h + W z_l)). The maps of p(x|z) are linear in the mean of all z_l,
    each interpolated to the image's size, times sqrt(L). So z is as wide as the image has channels.
    """

    def __init__(
        self, scales, image_shape, channels, hidden, observation, context_width=0, activation=activations.silu
    ):
        super().__init__(dtype=backend.floatx())
        width = image_shape[2]
        self.image_shape, self.observation, self.channels = image_shape, observation, channels
        order = [scale for scale in reversed(scales) for _ in range(scale.count)]  # the top layer first
        depth = len(order)
        self.blocks = [
            Block(index, scale, finer, depth, channels, hidden, width, context_width, index == depth - 1, activation)
            for index, (scale, finer) in enumerate(zip(order, [*order[1:], order[-1]], strict=True))
        ]
        self.sizes = tuple(block.size for block in self.blocks)
        self.ends = tuple(itertools.accumulate(self.sizes))
        self.of_scale = [scales.index(scale) for scale in order]
        outputs = observation.outputs(width)
        self.out = Sequential([conv(channels, 1, width), conv(outputs, 3, channels, dtype=backend.floatx())])
        self.out.build((None, *image_shape))
        area = sum(block.scale.height * block.scale.width for block in self.blocks)
        pixels = image_shape[0] * image_shape[1]
        each, image = 4 * channels + 8 * hidden, pixels * (channels + outputs)
        self.floats_per_sample = area * each + image
        self.floats_at_once = max(scale.height * scale.width for scale in scales) * each + image  # without a gradient
        self.built = True

    def descend(self, pick, features=None, contexts=None, batch=()):
        """The Descent of the z_l (..., size) that `pick(index, p, q)` gives from p(z_l | z_>l) and q(z_l | z_>l, x).

        q is None without `features`, maps of images a scale. `contexts` are maps a scale, too, of batch `batch`.
        """
        descent = Descent([], [], [])
        s = ops.ones((*batch, *self.blocks[0].scale[1:], self.channels))
        for index, (block, scale) in enumerate(zip(self.blocks, self.of_scale, strict=True)):
            p, h = block.prior(s, None if contexts is None else contexts[scale])
            q = None if features is None else block.posterior(s, features[scale])
            z = pick(index, p, q)
            for found, one in zip(descent, (z, p, q), strict=True):
                found.append(one)
            if block.after is not None:
                s = block.below(s + h, z)
        return descent

    def prior(self, contexts=None, batch=(), temperature=1.0, top=()):
        """p(z) as a Hierarchy, all variances multiplied by `temperature`; `top` takes the place of its own p(z_L)."""

        def descend(pick):
            def warm(index, p, q):
                return pick(index, warmed(p if index or not top else top, temperature))

            self.descend(warm, None, contexts, batch)

        return Hierarchy(descend, self.ends)

    def posterior(self, features, contexts=None, batch=()):
        """q(z|x) as a Hierarchy, of the `features` of images."""

        def descend(pick):
            self.descend(lambda index, p, q: pick(index, q), features, contexts, batch)

        return Hierarchy(descend, self.ends)

    def top_posterior(self, features):
        """q(z_L|x), a Normal (B, size), of the `features` of images."""
        block = self.blocks[0]
        return block.posterior(ops.ones((*block.scale[1:], self.channels)), features[self.of_scale[0]])

    def drawn(self, features, n, seed, contexts=None, batch=()):
        """The Descent of z ~ q(z|x) in one pass, n draws for each of the batch, or one if n is None. Stochastic."""

        def pick(index, p, q):
            one = q.sample(1 if index else n or 1, seed)
            return one[0] if index or n is None else one

        return self.descend(pick, features, contexts, batch)

    def mixed(self, features, kept, seed, contexts=None, batch=(), top=()):
        """z (..., D): `kept` upper layers are means of q given those above, the others are drawn from p. Stochastic.

        `top` takes the place of its own p(z_L).
        """

        def pick(index, p, q):
            if top and index == 0 and not kept:
                return top.sample(batch[0], seed)
            return q.mean if index < kept else p.sample(1, seed)[0]

        parts = self.descend(pick, features, contexts, batch).z
        wide = ops.zeros_like(parts[-1][..., :1])  # a layer that no image has a part in has no batch
        return ops.concatenate([part + wide for part in parts], axis=-1)

    def call(self, z):
        """p(x|z) for z (..., D), all layers of it."""
        height, width, _ = self.image_shape
        maps = [block.maps(sliced(z, self.ends, index)) for index, block in enumerate(self.blocks)]
        maps = [resized(one, height, width) for one in maps]
        return self.observation.of(on_maps(self.out, sum(maps) / math.sqrt(len(maps))), hard_clip)
