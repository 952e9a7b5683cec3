"""What the latents of a trained model carry: rates by layer, active units, ELBO surgery, components in use."""

from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from .distributions import Mixture

BATCH = 500  # images, or latents, at once
ACTIVE = 0.01  # variance of a posterior mean over the images, above which a unit counts (Burda et al. 2016)


class Latents(NamedTuple):
    """What `latents` finds of N images and one sample z ~ q(z|x) each; lists have an entry a layer, the top one first.

    `rates` are E[log q(z_l|.) - log p(z_l|.)] in nats, whose sum is the rate. `active_units` are the dimensions whose
    posterior mean has a variance over the images above 0.01, of `units`; a lower layer's mean is the one at the mean of
    the layer above. With q(z) = (1/N) sum_n q(z|x_n), the top layer's rate is `mutual_information`, E[log q(z|x) -
    log q(z)], at most log N, plus `marginal_kl`, KL(q(z) || p(z)) (Hoffman & Johnson 2016). `components_in_use` is the
    perplexity exp(H(r)) of the mean responsibilities r_k = E[p(k|z)] of a mixture prior, of 1 to K; None without one.
    """

    rates: list
    active_units: list
    units: list
    mutual_information: float
    marginal_kl: float
    components_in_use: float | None


def latents(model, images, seed=0):
    """The `Latents` of a model on images (N, H, W, C). Stochastic, a function of `seed`."""
    noise, prior = keras.random.SeedGenerator(seed), model.prior()
    parts = [_of_batch(model, prior, images[start : start + BATCH], noise) for start in range(0, len(images), BATCH)]
    log_ratios, means, z, top_means, top_logvars = (np.concatenate(part) for part in zip(*parts, strict=True))
    dim, n = top_means.shape[1], len(images)
    widths = [dim] if means.shape[1] == dim else [dim, means.shape[1] - dim]
    posterior = model.posterior(ops.convert_to_tensor(images[:1])).top.of(  # q(z), over all images
        Mixture(np.full(n, -np.log(n), "float32"), top_means, top_logvars)
    )
    top, log_q = prior.top, _in_batches(posterior.log_prob, z[:, :dim])
    own = _in_batches(top.log_prob, z[:, :dim]) + log_ratios[:, 0]  # log q(z|x) of the top layer
    active = np.split(means.var(axis=0) > ACTIVE, np.cumsum(widths)[:-1])
    return Latents(
        rates=[float(rate) for rate in log_ratios.mean(axis=0, dtype="float64")],
        active_units=[int(layer.sum()) for layer in active],
        units=widths,
        mutual_information=float(np.mean(own - log_q, dtype="float64")),
        marginal_kl=float(np.mean(log_ratios[:, 0] - (own - log_q), dtype="float64")),
        components_in_use=_perplexity(top, z[:, :dim]) if isinstance(top.base, Mixture) else None,
    )


def _of_batch(model, prior, x, noise):
    """log q - log p by layer (B, L), means and samples (B, D), and both parts of the top layer's q(z|x) (B, D2)."""
    posterior = model.posterior(ops.convert_to_tensor(x))
    z = posterior.sample(1, noise)
    log_q, log_p = (law.log_prob_of_layers(z) for law in (posterior, prior))
    ratios = ops.stack([(q - p)[0] for q, p in zip(log_q, log_p, strict=True)], axis=-1)
    values = (ratios, posterior.at_mean().mean, z[0], posterior.top.base.mean, posterior.top.base.logvar)
    return [ops.convert_to_numpy(value) for value in values]


def _in_batches(function, z):
    parts = [ops.convert_to_numpy(function(z[start : start + BATCH])) for start in range(0, len(z), BATCH)]
    return np.concatenate(parts)


def _perplexity(mixture, z):
    """exp of the entropy of the mean responsibilities of the components."""
    used = _in_batches(lambda part: ops.softmax(mixture.log_parts(part), axis=-1), z).mean(axis=0, dtype="float64")
    used = used[used > 0]
    return float(np.exp(-np.sum(used * np.log(used))))
