"""Bounds on log p(x): each is one function of log-weights log p(x|z) + beta (log p(z) - log q(z|x))."""

from keras import ops


def elbo(log_w):
    """Evidence lower bound, the mean over samples (Kingma & Welling 2014, eq. 2): (n, B) -> (B,) nats, <= log p(x)."""
    return ops.mean(log_w, axis=0)
