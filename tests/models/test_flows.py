"""Flows: inverses, Jacobians, densities that integrate to one, and posteriors and VampPriors that are bent alike."""

import keras
import numpy as np
import pytest
from conftest import bend, compiled, slow_on_jax
from keras import ops
from keras.random import SeedGenerator

import models
from evaluation.compiled import KeyedSeeds, key_of
from evaluation.latents import latents
from evaluation.proposals import Calls, PosteriorProposal
from experiment import Config
from models.distributions import Flow, Mixture, Normal
from models.flows import COUPLINGS, RealNVP

rng = np.random.default_rng(0)


def flow(dim):
    made = RealNVP(dim)
    bend(made)
    return made


@pytest.mark.keras
@pytest.mark.parametrize("dim", [2, 3, 5])
def test_inverse_undoes_forward_and_both_know_the_jacobian(dim):
    made, z = flow(dim), rng.normal(size=(4, 3, dim)).astype("float32")
    image, log_det = made.forward(z)
    back, same = made.inverse(image)
    assert np.abs(np.asarray(image) - z).max() > 0.1 and log_det.shape == (4, 3)
    np.testing.assert_allclose(back, z, atol=1e-4)
    np.testing.assert_allclose(same, log_det, atol=1e-4)
    h = 1e-2
    for i, j in ((0, 0), (3, 2)):
        moved = z[i, j] + h * np.array([-2, -1, 1, 2], "float32")[:, None, None] * np.eye(dim, dtype="float32")
        jacobian = np.tensordot(np.array([1, -8, 8, -1]) / (12 * h), made.forward(moved)[0], axes=1)  # to O(h^4)
        assert np.linalg.slogdet(jacobian)[1] == pytest.approx(float(log_det[i, j]), abs=1e-2)


def test_a_flow_begins_as_the_identity_and_bends_every_dimension():
    z = rng.normal(size=(5, 3)).astype("float32")
    np.testing.assert_array_equal(RealNVP(3).forward(z)[0], z)
    assert np.all(np.abs(np.asarray(flow(3).forward(z)[0]) - z).max(axis=0) > 0.05) and COUPLINGS == 5


@pytest.mark.parametrize("dim", [2, 3, 4, 5])
def test_every_dimension_bends_others(dim):
    """Of an odd number the middle one, too, which halves that are rounded down would never hand to a network."""
    z = rng.normal(size=dim).astype("float32")
    made = flow(dim)
    change = np.asarray(made.forward(z + 0.1 * np.eye(dim, dtype="float32"))[0]) - np.asarray(made.forward(z[None])[0])
    assert np.all(np.abs(change * (1 - np.eye(dim))).max(axis=1) > 1e-3)


@pytest.mark.parametrize("base", ["normal", "mixture"])
def test_a_density_sums_to_one_and_is_that_of_its_samples(base):
    mean, logvar = np.float32([[0.5, -0.3], [-1, 1]]), np.float32([[-0.5, 0.2], [-1, 0]])
    law = Normal(mean[0], logvar[0]) if base == "normal" else Mixture(np.log(np.float32([0.3, 0.7])), mean, logvar)
    made = RealNVP(2)
    bend(made, size=0.1)
    law = Flow(law, made)
    x = np.linspace(-12, 12, 601, dtype="float32")
    grid = np.stack(np.meshgrid(x, x), axis=-1)
    p = np.exp(np.asarray(law.log_prob(grid), "float64"))
    cell = (x[1] - x[0]) ** 2
    assert p.sum() * cell == pytest.approx(1, abs=2e-3)
    z, log_p = law.sample_and_log_prob(20_000, SeedGenerator(0))
    np.testing.assert_allclose(log_p, law.log_prob(z), atol=1e-3)
    z = np.asarray(z, "float64")
    expected = (grid * p[..., None]).sum(axis=(0, 1)) * cell
    assert np.all(np.abs(z.mean(axis=0) - expected) < 4.5 * z.std(axis=0) / np.sqrt(len(z)))
    if base == "mixture":
        np.testing.assert_allclose(ops.logsumexp(law.log_parts(z[:9].astype("float32")), -1), log_p[:9], atol=1e-3)


@pytest.fixture(params=["vae", "hvae"])
def model(request):
    """One whose flows bend."""
    keras.utils.set_random_seed(0)
    config = Config(
        model=request.param, prior="vamp", posterior="realnvp", network="mlp", data_set="digits", latent_dim=4,
        num_pseudo_inputs=3,
    )  # fmt: skip
    built = models.build(config, (4, 4, 1), from_data=rng.random((3, 4, 4, 1)).astype("float32"))
    heads = [built.q_z] if request.param == "vae" else [built.q_z2, built.q_z1]
    bend(*(head.flow for head in heads), size=0.03)
    return built


def images(n):
    return (rng.random((n, 4, 4, 1)) > 0.5).astype("float32")


def test_a_vamp_prior_is_the_mean_of_the_bent_posteriors_of_its_pseudo_inputs(model):
    top = model.posterior(model.top_prior.pseudo_inputs).top
    z = rng.normal(size=(7, 1, top.base.mean.shape[-1])).astype("float32")
    each = np.asarray(top.log_prob(z), "float64")  # (7, 3)
    expected = np.log(np.exp(each).mean(axis=1))
    np.testing.assert_allclose(model.prior().top.log_prob(z[:, 0]), expected, rtol=1e-3, atol=1e-3)


@slow_on_jax
@pytest.mark.keras
def test_samples_of_q_have_its_density_and_scores_and_diagnostics_take_it(model):
    x = images(20)
    z, log_q = compiled(lambda: model.posterior(x).sample_and_log_prob(6, SeedGenerator(0)))
    np.testing.assert_allclose(log_q, compiled(lambda: model.posterior(x).log_prob(z)), rtol=1e-3, atol=2e-3)
    assert model.embed(x).shape == (20, 4)
    log_px_z, log_ratio = PosteriorProposal(model, Calls(6, 6, 20, 120, 20)).drawn([x], np.random.SeedSequence(1))
    terms = compiled(lambda: model.terms(x, 6, KeyedSeeds(key_of(np.random.SeedSequence(1)))))
    np.testing.assert_allclose(log_px_z, np.transpose(terms.log_px_z), rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(log_ratio, np.transpose(terms.log_pz - terms.log_qz_x), rtol=1e-3, atol=1e-2)
    found = latents(model, x)
    assert found.mutual_information + found.marginal_kl == pytest.approx(found.rates[0], abs=1e-3)
    assert -0.5 < found.mutual_information < np.log(20) + 0.5 and 1 <= found.components_in_use <= 3
