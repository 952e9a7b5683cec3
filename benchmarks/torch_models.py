"""The project's convolutional VAE and HVAE in plain PyTorch, channels last: what a step is measured against."""

import math

import torch
from torch import nn
from torch.nn import functional as F

LOG_2PI = math.log(2 * math.pi)


def log_normal(z, mean, logvar):
    """log N(z; mean, diag exp(logvar)): (..., D) -> (...)."""
    return -0.5 * (LOG_2PI + logvar + (z - mean) ** 2 * torch.exp(-logvar)).sum(-1)


def draw(mean, logvar):
    """A reparameterised draw of N(mean, diag exp(logvar))."""
    return mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)


class Head(nn.Module):
    """Features to (mean, logvar), logvar bounded to [-6, 2] by a scaled tanh."""

    def __init__(self, features, units):
        super().__init__()
        self.mean, self.raw = nn.Linear(features, units), nn.Linear(features, units)

    def forward(self, h):
        return self.mean(h), -2 + 4 * torch.tanh((self.raw(h) + 2) / 4)


def encoder(size):
    """28x28 images to 256 features; padding as TensorFlow's "same" on even sizes differs by a shift only."""
    f8, f16, f32 = (round(n * size) for n in (8, 16, 32))
    layers = [nn.Conv2d(1, f8, 7, 1, 3), nn.Conv2d(f8, f16, 3, 2, 1), nn.Conv2d(f16, f16, 5, 1, 2)]
    layers += [nn.Conv2d(f16, f32, 3, 2, 1), nn.Flatten(), nn.Linear(49 * f32, 256)]
    return nn.Sequential(*(module for layer in layers for module in _activated(layer)))


def decoder(latent_dim, size):
    """Latents to 28x28 logits."""
    f8, f16, f32 = (round(n * size) for n in (8, 16, 32))
    layers = [nn.Linear(latent_dim, 49 * 32), nn.Unflatten(1, (32, 7, 7)), nn.ConvTranspose2d(32, f32, 3, 1, 1)]
    layers += [nn.ConvTranspose2d(f32, f16, 3, 2, 1, 1), nn.ConvTranspose2d(f16, f16, 3, 1, 1)]
    layers += [nn.ConvTranspose2d(f16, f8, 3, 2, 1, 1)]
    modules = [module for layer in layers for module in _activated(layer)]
    return nn.Sequential(*modules, nn.ConvTranspose2d(f8, 1, 3, 1, 1))


def _activated(layer):
    return [layer] if isinstance(layer, nn.Flatten | nn.Unflatten) else [layer, nn.ReLU()]


class Vamp(nn.Module):
    """The log-density of a mixture of the posteriors of K trained pseudo-inputs, or of N(0, I) for K = 0."""

    def __init__(self, k):
        super().__init__()
        images = torch.rand(k, 1, 28, 28).contiguous(memory_format=torch.channels_last)
        self.u = nn.Parameter(images) if k else None

    def forward(self, z, encode):
        if self.u is None:
            return log_normal(z, torch.zeros_like(z), torch.zeros_like(z))
        mean, logvar = encode(self.u)
        each = log_normal(z[:, None], mean, logvar)  # (B, K)
        return torch.logsumexp(each, 1) - math.log(len(self.u))


class VAE(nn.Module):
    """One latent layer."""

    def __init__(self, latent_dim, size, k):
        super().__init__()
        self.net, self.head, self.dec, self.prior = (
            encoder(size),
            Head(256, latent_dim),
            decoder(latent_dim, size),
            Vamp(k),
        )

    def encode(self, x):
        return self.head(self.net(x))

    def forward(self, x):
        """The negative ELBO of a binarized batch (B, 1, 28, 28)."""
        q = self.encode(x)
        z = draw(*q)
        return bernoulli_loss(self.dec(z), x) + (log_normal(z, *q) - self.prior(z, self.encode)).mean()


class HVAE(nn.Module):
    """Two latent layers."""

    def __init__(self, latent_dim, size, k):
        super().__init__()
        d1, d2 = latent_dim // 2, latent_dim - latent_dim // 2
        self.net2, self.head2, self.net1 = encoder(size), Head(256, d2), encoder(size)
        self.from_z2 = nn.Sequential(nn.Linear(d2, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
        self.joint, self.head1 = nn.Sequential(nn.Linear(512, 256), nn.ReLU()), Head(256, d1)
        self.p_net = nn.Sequential(nn.Linear(d2, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU())
        self.p_head, self.dec, self.prior = Head(300, d1), decoder(latent_dim, size), Vamp(k)

    def encode(self, x):
        return self.head2(self.net2(x))

    def forward(self, x):
        """The negative ELBO of a binarized batch (B, 1, 28, 28)."""
        q2 = self.encode(x)
        z2 = draw(*q2)
        q1 = self.head1(self.joint(torch.cat([self.net1(x), self.from_z2(z2)], 1)))
        z1 = draw(*q1)
        log_p = self.prior(z2, self.encode) + log_normal(z1, *self.p_head(self.p_net(z2)))
        rate = log_normal(z2, *q2) + log_normal(z1, *q1) - log_p
        return bernoulli_loss(self.dec(torch.cat([z2, z1], 1)), x) + rate.mean()


def bernoulli_loss(logits, x):
    """-log p(x|z), the mean over the batch."""
    return F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum((1, 2, 3)).mean()


def make_step(model, prior, size, batch, k):
    """A function of no arguments that trains one step on a fixed grey batch, binarized afresh."""
    net = {"vae": VAE, "hvae": HVAE}[model](2, size, k if prior == "vamp" else 0).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), 1e-4)
    grey = torch.rand(batch, 1, 28, 28).contiguous(memory_format=torch.channels_last)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = net(torch.bernoulli(grey))
        loss.backward()
        optimizer.step()
        if net.prior.u is not None:
            net.prior.u.data.clamp_(0, 1)
        return float(loss.detach())

    return step
