"""The variational auto-encoder with one latent layer."""

from .base import LatentModel


class VAE(LatentModel):
    """q(z|x), p(z), p(x|z) with one layer of latents (Kingma & Welling 2014)."""

    def __init__(self, sizes, networks, make_prior, objective, dynamic, seed):
        super().__init__(objective, dynamic, seed)
        (latent_dim,) = self.sizes = sizes
        self.encoder = networks.image_encoder()
        self.q_z = networks.head(networks.image_features, latent_dim)
        self.decoder = networks.decoder(latent_dim)
        self.top_prior = make_prior(latent_dim, self.posterior)
        self.built = True

    def posterior(self, x):
        return self.q_z(self.encoder(self.checked(x)))

    def prior(self, top=None):
        return self.top_prior.distribution() if top is None else top
