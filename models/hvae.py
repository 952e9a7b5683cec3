"""The variational auto-encoder with two latent layers, z2 on top of z1."""

from keras import ops

from .base import LatentModel
from .distributions import Chain


class HVAE(LatentModel):
    """q(z2|x) q(z1|x, z2) and p(z2) p(z1|z2) p(x|z1, z2) (Tomczak & Welling 2018, section 4).

    The latent vector everywhere is z = [z2, z1]; `sizes` are the dimensions of z2 and z1.
    """

    def __init__(self, sizes, networks, make_prior, objective, dynamic, seed):
        super().__init__(objective, dynamic, seed)
        self.dim_z2, self.dim_z1 = self.sizes = sizes
        self.encoder_z2 = networks.image_encoder()
        self.q_z2 = networks.head(networks.image_features, self.dim_z2)
        self.encoder_z1 = networks.image_encoder(is_lower=True)
        self.encoder_z1_z2 = networks.latent_encoder(self.dim_z2)
        self.joint_z1 = networks.joint()
        self.q_z1 = networks.head(networks.joint_features, self.dim_z1)
        self.p_z1 = networks.conditional(self.dim_z2, self.dim_z1)
        self.decoder = networks.decoder(self.dim_z2, self.dim_z1)
        self.top_prior = make_prior(self.dim_z2, self.posterior_z2)
        self.built = True

    def posterior_z2(self, x):
        """Normal q(z2|x): mean and logvar (B, D2)."""
        return self.q_z2(self.encoder_z2(x))

    def posterior(self, x):
        """Chain q(z2|x) q(z1|x, z2): batch (B,), event (D,). The images are encoded once, not once a sample."""
        features_x = self.encoder_z1(x := self.checked(x))  # (B, F)

        def posterior_z1(z2):  # (..., B, D2)
            features_z2 = self.encoder_z1_z2(z2)  # (..., B, F)
            both = [ops.broadcast_to(features_x, ops.shape(features_z2)), features_z2]
            return self.q_z1(self.joint_z1(ops.concatenate(both, axis=-1)))

        return Chain(self.posterior_z2(x), posterior_z1, self.dim_z2)

    def prior(self, top=None):
        """Chain p(z2) p(z1|z2): event (D,)."""
        top = self.top_prior.distribution() if top is None else top
        return Chain(top, self.p_z1, self.dim_z2)
