"""The project's VAEs in plain PyTorch, as a good user writes them: what a step is measured against.

Convolutions are channels last, a mixture's density is a product of matrices. On CUDA, all of it is compiled.
"""

import math
import os
import time

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


def soft_bound(raw):
    """raw, bounded to [-6, 2] by a scaled tanh."""
    return -2 + 4 * torch.tanh((raw + 2) / 4)


def hard_clip(raw):
    """raw, clipped to [-6, 2]."""
    return raw.clamp(-6, 2)


class Head(nn.Module):
    """Features to (mean, logvar), in float32, the log-variance bounded."""

    def __init__(self, features, units, bound=soft_bound):
        super().__init__()
        self.both, self.bound = nn.Linear(features, 2 * units), bound

    def forward(self, h):
        with torch.autocast(h.device.type, enabled=False):
            mean, raw = self.both(h.float()).chunk(2, -1)
        return mean, self.bound(raw)


class Gated(nn.Module):
    """linear(h) * sigmoid(linear'(h)), both by one product."""

    def __init__(self, features, units):
        super().__init__()
        self.both = nn.Linear(features, 2 * units)

    def forward(self, h):
        return F.glu(self.both(h))


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
    return nn.Sequential(*modules, Float32(nn.ConvTranspose2d(f8, 1, 3, 1, 1)))


class Float32(nn.Module):
    """A layer that computes in float32 where others are cast."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, h):
        with torch.autocast(h.device.type, enabled=False):
            return self.layer(h.float())


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
        return log_mixture(z, *encode(self.u))


def log_mixture(z, mean, logvar):
    """log of the mean of K densities N(mean, diag exp(logvar)): z (B, D), mean and logvar (K, D) -> (B,)."""
    centre = mean.mean(0)
    z, mean, precision = z - centre, mean - centre, torch.exp(-logvar)
    with torch.autocast(z.device.type, enabled=False):
        squared = torch.cat([z**2, z], 1) @ torch.cat([precision, -2 * mean * precision], 1).T  # (B, K)
    of_component = (LOG_2PI + logvar + mean**2 * precision).sum(1)
    return torch.logsumexp(-0.5 * (squared + of_component), 1) - math.log(len(mean))


class VAE(nn.Module):
    """One latent layer, between convolutions, or the paper's gated dense layers of 300 units."""

    def __init__(self, network, latent_dim, size, k):
        super().__init__()
        if network == "mlp":
            self.net = nn.Sequential(nn.Flatten(), Gated(784, 300), Gated(300, 300))
            self.head, self.prior = Head(300, latent_dim, hard_clip), Vamp(k)
            layers = [Gated(latent_dim, 300), Gated(300, 300), Float32(nn.Linear(300, 784))]
            self.dec = nn.Sequential(*layers, nn.Unflatten(1, (1, 28, 28)))
        else:
            self.net, self.head, self.prior = encoder(size), Head(256, latent_dim), Vamp(k)
            self.dec = decoder(latent_dim, size)

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


def make_steps(model, prior, network, latent_dim, size, batch, k, is_mixed):
    """A function of n that trains n steps on a fixed grey batch, binarized afresh in each, and waits for the last one.

    With `is_mixed` convolutions and products of matrices are cast to bfloat16, but for those that are float32 in ours.
    """
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.backends.cudnn.allow_tf32 = False  # float32 is to be that of the other side
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    components = k if prior == "vamp" else 0
    net = VAE(network, latent_dim, size, components) if model == "vae" else HVAE(latent_dim, size, components)
    net = net.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), 1e-4, fused=True)
    grey = torch.rand(batch, 1, 28, 28, device=device).contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(net) if device.type == "cuda" else net

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=is_mixed):
            loss = compiled(torch.bernoulli(grey))
        loss.backward()
        optimizer.step()
        if net.prior.u is not None:
            net.prior.u.data.clamp_(0, 1)
        return loss.detach()

    return lambda n: float([step() for _ in range(n)][-1])


def matmul_peak():
    """Operations a second of large bfloat16 matrix products on the GPU; of smaller ones on a CPU."""
    device, n, repeats = ("cuda", 8192, 50) if torch.cuda.is_available() else ("cpu", 1024, 2)
    a = torch.rand(n, n, device=device, dtype=torch.bfloat16)
    times = []
    for _ in range(4):  # the first of which begins cold
        start = time.perf_counter()
        for _ in range(repeats):
            product = a @ a
        float(product[0, 0])  # waits for all of them
        times.append((time.perf_counter() - start) / repeats)
    return 2 * n**3 / min(times)


def peak_mib():
    """The most memory that was used at once on the GPU, in MiB; None on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None
