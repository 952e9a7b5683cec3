"""The variational auto-encoder of two latent layers that form a Markov chain with the image: z2 - z1 - x."""

from keras import layers

from .base import LatentModel
from .distributions import Chain, Upward


class OfLower(layers.Layer):
    """Latents z = [z2, z1] (..., D) to the p(x|z1) of a decoder; z2 has `split` dimensions."""

    def __init__(self, split, decoder):
        super().__init__()
        self.split, self.decoder, self.floats_per_sample = split, decoder, decoder.floats_per_sample
        self.built = True

    def call(self, z):
        return self.decoder(z[..., self.split :])

    def start_at(self, mean):
        """As of the decoder."""
        self.decoder.start_at(mean)


class Markov(LatentModel):
    """q(z1|x) q(z2|z1) and p(z2) p(z1|z2) p(x|z1) (Burda et al. 2016, section 2 and appendix C).

    The latent vector everywhere is z = [z2, z1]; `sizes` are the dimensions of z2 and z1. Of a pseudo-input, the prior
    takes q(z2|z1) at the mean of z1, since q(z2|x) is an integral over z1.
    """

    def __init__(self, sizes, networks, make_prior, objective, dynamic, seed):
        super().__init__(objective, dynamic, seed)
        dim_z2, dim_z1 = self.sizes = sizes
        self.encoder = networks.image_encoder()
        self.q_z1 = networks.head(networks.image_features, dim_z1)
        self.q_z2 = networks.upward(dim_z1, dim_z2)
        self.p_z1 = networks.conditional(dim_z2, dim_z1)
        self.decoder = OfLower(dim_z2, networks.decoder(dim_z1))
        self.top_prior = make_prior(dim_z2, lambda x: self._upward(x).top)
        self.built = True

    def _upward(self, x):
        return Upward(self.q_z1(self.encoder(x)), self.q_z2, self.sizes[0])

    def posterior(self, x):
        """Upward q(z1|x) q(z2|z1): batch (B,), event (D,)."""
        return self._upward(self.checked(x))

    def prior(self, top=None):
        """Chain p(z2) p(z1|z2): event (D,)."""
        return Chain(self.top_prior.distribution() if top is None else top, self.p_z1, self.sizes[0])
