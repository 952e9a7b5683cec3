"""plotting/explorer/page.py, and the file that plot.py --explore writes; test_browser.py opens it in Chromium."""

import base64
import html
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import save_weights, slow_on_jax
from made import noise, numpy, stub
from PIL import Image

import experiment
import plot
from plotting.explorer import page
from plotting.explorer.decoder_steps import decoder_steps
from plotting.view import Embedding, View
from runtime.errors import UserError

NASTY = "</script><script>document.title='run'</script><!-- \u2028 & <img src=x onerror=alert(1)>"
DECODERS = {  # shape of the images and settings
    "conv": ((8, 12, 1), {"latent_dim": 2}),
    "conv, silu, hvae": ((28, 20, 1), {"model": "hvae", "latent_dim": 5, "activation": "silu"}),
    "conv, logistic": ((8, 8, 3), {"latent_dim": 3, "likelihood": "logistic", "activation": "selu"}),
    "conv, gaussian": ((8, 8, 3), {"latent_dim": 1, "likelihood": "gaussian", "activation": "softplus"}),
    "mlp": ((7, 5, 1), {"latent_dim": 3, "network": "mlp"}),
    "mlp, hvae": ((7, 5, 3), {"model": "hvae", "latent_dim": 2, "network": "mlp", "hidden_units": 11}),
    "dense": ((7, 5, 1), {"latent_dim": 3, "network": "dense", "activation": "tanh", "hidden_units": (9, 7)}),
    "gatedconv": ((6, 5, 1), {"model": "hvae", "latent_dim": 3, "network": "gatedconv"}),
}


def loud(model, size=0.9):
    """The model, with decoder weights so large that its pictures are neither grey nor all the same."""
    rng = np.random.default_rng(0)
    for weight in model.decoder.weights:
        inputs = 30 if len(weight.shape) == 1 else np.prod(weight.shape) / weight.shape[-1]
        weight.assign(rng.normal(0, size * np.sqrt(4 / inputs), weight.shape))
    return model


def view_of(shape, labels=None, names=(), **settings):
    """A View of an untrained run with a loud decoder, and latents that differ."""
    settings = {"prior": "vamp", "network_size": 1.0 if settings.get("network", "conv") == "conv" else 4.0} | settings
    if shape[2] == 3:
        settings = {"binarize": "none"} | settings
    run = stub(shape, labels, names, **settings)
    run.image_shape = shape
    loud(run.model)
    view = View(run, "pca")
    mean = np.random.default_rng(2).normal(0, 1.5, (24, run.latent_dim)).astype("float32")
    view.embedding = Embedding(mean + 0.1, mean, np.full_like(mean, -4))  # all alike, before training
    return view


def floats(text, *shape):
    """An array that `packed` made."""
    return np.frombuffer(base64.b64decode(text), "<f4").reshape(shape or -1)


def tiles(sprite, channels=1):
    """The pictures of a sprite: (N, H, W, C) bytes."""
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(sprite.url.partition(",")[2]))))
    height, width = sprite.height, sprite.width
    cut = sheet.reshape(-1, height, sprite.columns, width, channels).swapaxes(1, 2)
    return cut.reshape(-1, height, width, channels)[: sprite.count]


def content(path):
    """The data inside a page."""
    text = Path(path).read_text()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found[1])


# ---------------------------------------------------------------------------------------------- page.py


def test_a_square_is_true_to_scale_unless_it_would_be_a_strip():
    np.testing.assert_allclose(page.squared(np.array([[0.0, 1], [2, 5]])), [[-1, 1], [3, 5]])
    strip = np.array([[0.0, 0], [10, 1]])
    np.testing.assert_array_equal(page.squared(strip), strip)


@pytest.mark.parametrize("shape", [(5, 3, 1), (4, 6, 3)])
def test_a_sprite_holds_its_pictures(shape):
    pictures = noise(7, *shape)
    made = page.sprite(pictures)
    assert made.columns == 3 and made.count == 7
    np.testing.assert_array_equal(tiles(made, shape[2]), np.rint(255 * pictures).astype("uint8"))


@slow_on_jax
@pytest.mark.keras
def test_a_panel_has_what_the_model_says():
    view = view_of((8, 12, 1), np.arange(24) % 3, ("a", "b", "c"), latent_dim=5, model="hvae")
    made = page.panel(view, "mine")
    index = np.array(made["images"]["index"])
    means = floats(made["means"], -1, 5)
    np.testing.assert_array_equal(means, view.embedding.mean[index])
    centre, basis = floats(made["centre"], 5), floats(made["basis"], 2, 5)
    np.testing.assert_allclose(basis @ basis.T, np.eye(2), atol=1e-5)
    np.testing.assert_allclose(floats(made["plane"], -1, 2), (means - centre) @ basis.T, atol=1e-5)
    np.testing.assert_array_equal(tiles(made["images"]["sprite"]), np.rint(255 * view.images[index]))
    assert made["images"]["sprite"].count == 24 and made["images"]["labels"] == (index % 3).tolist()
    np.testing.assert_array_equal(floats(made["decoder"]["weights"]), decoder_steps(view.model).weights)
    names = [one["name"] for one in made["sliders"]]
    assert sorted(names) == ["z1[0]", "z1[1]", "z2[0]", "z2[1]", "z2[2]"]
    assert all(one["low"] < one["high"] for one in made["sliders"])
    np.testing.assert_array_equal(floats(made["pseudo"]["means"], -1, 5), view.components)
    assert floats(made["pseudo"]["draws"], -1, page.DRAWS, 5).shape[0] == len(view.components) == 3
    assert made["grid"] is None and made["pseudo"]["pictures"] is None and made["contours"] == []


def test_two_dimensions_are_their_own_plane_under_the_prior():
    view = view_of((8, 8, 1), latent_dim=2, model="hvae")
    made = page.panel(view, "mine")
    assert made["names"] == ["z2", "z1"] and made["sliders"] == []
    np.testing.assert_array_equal(made["plane"], made["means"])
    assert [one["share"] for one in made["contours"]] == [0.5, 0.8, 0.95]
    line = np.array(made["contours"][0]["lines"][0]).reshape(-1, 2)
    log_p = numpy(view.model.prior().log_prob(line.astype("float32")))
    assert np.ptp(log_p) < 0.1  # one level
    low, high = made["limits"]
    assert (view.embedding.mean >= low).all() and (view.embedding.mean <= high).all()
    assert np.subtract(high, low)[0] == pytest.approx(np.subtract(high, low)[1])


def test_a_plane_has_a_width_where_all_means_are_the_same():
    view = view_of((8, 8, 1), latent_dim=3)
    view.embedding = Embedding(*np.full((3, 24, 3), 5, "float32"))
    view.components = np.full((3, 3), 5, "float32")
    made = page.panel(view, "mine")
    assert (np.ptp(made["limits"], axis=0) >= 0.02).all()
    assert all(one["high"] - one["low"] >= 0.019 for one in made["sliders"])


def test_shown_images_are_some_of_all_with_one_of_each_class(monkeypatch):
    monkeypatch.setattr(page, "POINTS", 14)
    view = view_of((8, 8, 1), np.arange(24) // 2, tuple("abcdefghijkl"), latent_dim=2)
    chosen = page.points(view)
    assert len(chosen) == len(set(chosen)) == 14 and (np.diff(chosen) > 0).all()
    shown = page.images(view, chosen)
    assert len({shown["labels"][at] for at in shown["examples"]}) == page.EXAMPLES
    assert "14 of 24 test images" in page.panel(view, "mine")["facts"][0]


@pytest.mark.parametrize("dim", [1, 2, 4])
def test_a_decoder_that_is_not_for_a_page_is_a_grid_of_pictures(monkeypatch, dim):
    monkeypatch.setattr("plotting.explorer.decoder_steps.MULTIPLICATIONS", 100)
    monkeypatch.setattr(page, "GRID", 5)
    view = view_of((8, 8, 1), latent_dim=dim)
    made = page.panel(view, "mine")
    assert made["decoder"] is None and made["sliders"] == [] and made["grid"]["side"] == 5
    pictures = tiles(made["grid"]["sprite"])
    low, high = np.array(made["limits"])
    corner = np.array([high[0], low[1]], "float32")  # the fifth picture: rows begin below
    z = floats(made["centre"]) + corner @ floats(made["basis"], 2, dim)
    assert np.abs(pictures[4] / 255 - view.decoded(z[None])[0]).max() <= 0.51 / 255
    expected = np.rint(255 * view.decoded(view.components))
    np.testing.assert_allclose(tiles(made["pseudo"]["pictures"]), expected, atol=1)
    said = " ".join(made["facts"])
    assert "interpolated" in said and "multiplications per picture" in said and "live" not in said


@pytest.mark.parametrize("label", ["plain", NASTY], ids=["plain", "nasty"])
def test_the_file_stands_alone_and_lets_nothing_else_in(label):
    view = view_of((8, 8, 1), np.arange(24) % 2, (NASTY, "b"), latent_dim=2)
    text = page.page([page.panel(view, label)], label).decode()
    assert text.count("<script") == text.count("</script>") == 2 and text.count("<style>") == 1
    ours = re.sub(r'id="data">.*?</script>', "", text, flags=re.DOTALL).replace(html.escape(label), "")
    assert not re.search(r"https?:|//\w|\bsrc=|\bhref=|@import|url\(|\bon\w+=\"|eval|innerHTML", ours)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
    script = re.search(r'<script type="module">(.*?)</script>', text, re.DOTALL)[1]
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy and "*" not in policy
    assert f"script-src '{page.checksum(script)}'" in policy and f"style-src '{page.checksum(style)}'" in policy
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert data["panels"][0]["label"] == label and data["panels"][0]["images"]["classes"][0] == NASTY
    assert html.unescape(re.search("<title>(.*?)</title>", text, re.DOTALL)[1]) == label


def test_runs_on_the_same_images_share_them():
    views = [view_of((8, 8, 1), latent_dim=dim, prior="standard") for dim in (2, 3)]
    text = page.page([page.panel(view, str(n)) for n, view in enumerate(views)], "both").decode()
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert len(data["sprites"]) == 1 and len({one["images"]["sprite"] for one in data["panels"]}) == 1


# ---------------------------------------------------------------------------------------------- plot.py --explore


def tiny_runs(folder):
    """Two finished tiny runs on digits, whose decoders are then made loud: a list of folders."""
    from training import fit

    tiny = {"data_set": "digits", "network_size": 0.5, "epochs": 1, "lr": 1e-3, "batch_size": 50}
    tiny |= {"prior": "vamp", "num_pseudo_inputs": 12, "max_train_images": 200, "runs_dir": str(folder)}
    paths = [fit.train(experiment.Config(model=m, latent_dim=d, **tiny)) for m, d in (("vae", 2), ("hvae", 3))]
    for path in paths:
        run = experiment.load(path)
        save_weights(loud(run.model), path / "best.safetensors")
    return paths


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tiny_runs(tmp_path_factory.mktemp("explore"))


def explored(*words):
    """Calls plot.py --explore, which must succeed."""
    assert plot.main([*map(str, words), "--explore"]) == 0


@pytest.mark.slow
def test_one_run_is_explored_in_one_file_and_several_share_another(runs, capsys):
    explored(runs[0])
    path = runs[0] / "figures" / f"{runs[0].name}_explore.html"
    assert capsys.readouterr().out == f"{path}\n" and [*path.parent.iterdir()] == [path]
    assert len(content(path)["panels"]) == 1
    explored(*runs)
    path = runs[0].parent / "figures" / "digits_explore.html"
    assert capsys.readouterr().out == f"{path}\n"
    labels = [one["label"] for one in content(path)["panels"]]
    assert labels == ["vae, latent_dim 2", "hvae, latent_dim 3"]


def test_what_cannot_be_explored_is_refused_in_a_sentence(runs, capsys, tmp_path):
    (tmp_path / "file").write_text("mine")
    refusals = {
        ("--projection", "tsne"): "those of --projection tsne cannot be",
        ("--estimates",): "--explore does not go with --estimates",
        ("--format", "svg"): "--explore does not go with --format",
        ("--report",): "--explore does not go with --report",
        ("--out", str(tmp_path / "file")): "cannot write",
    }
    for words, reason in refusals.items():
        assert plot.main([str(runs[0]), "--explore", *words]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ") and reason in captured.err and captured.out == ""
    assert plot.main(["--toy_posteriors", "--explore"]) == 2
    assert "does not go with --explore" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "channels", "reason"),
    [
        ({"model": "dvp"}, 1, "maps of many layers"),
        ({"model": "hvae", "network": "pixel"}, 1, "64 passes"),
        ({}, 2, "2 channels"),
        ({}, 3, ""),
    ],
)
def test_runs_without_a_plane_or_a_mean_picture_are_refused(settings, channels, reason):
    run = SimpleNamespace(config=experiment.Config(**settings), image_shape=(8, 8, channels))
    assert reason in page.refused(run) and bool(reason) == bool(page.refused(run))


def test_of_a_grid_search_the_others_are_explored(capsys):
    def run(name, **settings):
        return SimpleNamespace(path=Path(name), config=experiment.Config(**settings), image_shape=(8, 8, 1))

    both = [run("deep", model="ladder"), run("flat")]
    assert [one.path.name for one in page.explorable(both, skip=True)] == ["flat"]
    assert capsys.readouterr().err.startswith("warning: left out: deep cannot be explored")
    with pytest.raises(UserError, match="deep cannot"):
        page.explorable(both[:1], skip=True)
    with pytest.raises(UserError, match="deep cannot"):
        page.explorable(both)
