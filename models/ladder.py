"""The Ladder VAE: many layers of latents, all of which p(x|z) is given."""

from types import SimpleNamespace

from keras import ops

from . import find_activation
from .base import LatentModel
from .hierarchy import BottomUp, TopDown, scales_of
from .objectives import layered


class Ladder(LatentModel):
    """prod q(z_l | z_>l, x), prod p(z_l | z_>l) and p(x|z), each z_l a Normal map (Sonderby et al. 2016).

    The baseline of Kuzina & Tomczak (2024): q is given the state of the top-down path and the features of the image,
    and p(x|z) all layers. z is [z_L, ..., z_1], each flattened, the coarsest first. With prior "standard", p(z_L) is
    the Normal of the top-down path, which is trained, as there; any other prior takes its place.
    """

    def __init__(self, config, image_shape, observation, objective, dynamic, make_prior):
        super().__init__(objective, dynamic, config.seed, config.layers)
        scales = scales_of(config.scales, image_shape)
        hidden = config.hidden_channels
        activation = find_activation(config.block_activation)
        self.encoder = BottomUp(scales, image_shape, config.channels, hidden, config.encoder_blocks, activation)
        self.decoder = TopDown(scales, image_shape, config.channels, hidden, observation, activation=activation)
        self.sizes = self.decoder.sizes
        if config.prior == "standard":  # the decoder has it
            self.top_prior = SimpleNamespace(distribution=tuple, trainable_weights=(), floats_per_sample=0)
        else:
            self.top_prior = make_prior(self.sizes[0], lambda x: self.decoder.top_posterior(self.encoder(x)))
        self.built = True

    def posterior(self, x):
        return self.decoder.posterior(self.encoder(self.checked(x)))

    def prior(self, top=None):
        return self.decoder.prior(top=self.top_prior.distribution() if top is None else top)

    def terms(self, x, n, seed, prior=None, training=False):
        descent = self.decoder.drawn(self.encoder(x), n, seed)
        return self._layered(x, descent, *descent.log_probs())

    def expected_terms(self, x, n, seed, training=False):
        """As of LatentModel: each layer's KL in closed form given those above, but for a prior of its own."""
        descent = self.decoder.drawn(self.encoder(x), n, seed)
        return self._layered(x, descent, *descent.expected_log_probs())

    def warmer(self, n, temperature, seed):
        """n latents of the prior, its variances multiplied by `temperature`: (n, D). Stochastic."""
        return self.decoder.prior(temperature=temperature, top=self.top_prior.distribution()).sample(n, seed)

    def mixed(self, x, kept, seed):
        """Latents (B, D) whose `kept` upper layers are what q(z|x) means, the others drawn from p. Stochastic."""
        top = self.top_prior.distribution()
        return self.decoder.mixed(self.encoder(x), kept, seed, batch=ops.shape(x)[:1], top=top)

    def _layered(self, x, descent, log_p, log_q):
        if top := self.top_prior.distribution():  # whose KL has no closed form
            log_p, log_q = [top.log_prob(descent.z[0]), *log_p[1:]], [descent.q[0].log_prob(descent.z[0]), *log_q[1:]]
        return layered(self.likelihood(ops.concatenate(descent.z, axis=-1)).log_prob(x), log_p, log_q)
