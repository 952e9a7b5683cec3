"""The Ladder VAE: many layers of latents, all of which p(x|z) is given."""

from types import SimpleNamespace

from keras import ops

from .base import LatentModel
from .hierarchy import BottomUp, TopDown, scales_of
from .objectives import layered


class Ladder(LatentModel):
    """prod q(z_l | z_>l, x), prod p(z_l | z_>l) and p(x|z), each z_l a Normal map (Sonderby et al. 2016).

    The baseline of Kuzina & Tomczak (2024): q is given the state of the top-down path and the features of the image,
    and p(x|z) all layers. z is [z_L, ..., z_1], each flattened, the coarsest first.
    """

    def __init__(self, config, image_shape, observation, objective, dynamic, _=None):
        super().__init__(objective, dynamic, config.seed, config.layers)
        scales = scales_of(config.scales, image_shape)
        hidden = config.hidden_channels
        self.encoder = BottomUp(scales, image_shape, config.channels, hidden, config.encoder_blocks)
        self.decoder = TopDown(scales, image_shape, config.channels, hidden, observation)
        self.sizes = self.decoder.sizes
        self.top_prior = SimpleNamespace(
            distribution=tuple, trainable_weights=(), floats_per_sample=0
        )  # the decoder has it
        self.built = True

    def posterior(self, x):
        return self.decoder.posterior(self.encoder(self.checked(x)))

    def prior(self, top=None):
        return self.decoder.prior()

    def terms(self, x, n, seed, prior=None, training=False):
        descent = self.decoder.drawn(self.encoder(x), n, seed)
        return layered(self._log_px_z(x, descent), *descent.log_probs())

    def expected_terms(self, x, n, seed, training=False):
        """As of LatentModel: each layer's KL in closed form, given a draw of those above."""
        descent = self.decoder.drawn(self.encoder(x), n, seed)
        return layered(self._log_px_z(x, descent), *descent.expected_log_probs())

    def warmer(self, n, temperature, seed):
        """n latents of the prior, its variances multiplied by `temperature`: (n, D). Stochastic."""
        return self.decoder.prior(temperature=temperature).sample(n, seed)

    def mixed(self, x, kept, seed):
        """Latents (B, D) whose `kept` upper layers are what q(z|x) means, the others drawn from p. Stochastic."""
        return self.decoder.mixed(self.encoder(x), kept, seed, batch=ops.shape(x)[:1])

    def _log_px_z(self, x, descent):
        return self.likelihood(ops.concatenate(descent.z, axis=-1)).log_prob(x)
