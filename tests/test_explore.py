"""models/program.py and explore.py alone, then the page that they make: its file here, and it at work in Chromium.

The latter tests are marked `browser`: `make test-browser` runs them.
"""

import base64
import html
import io
import itertools
import json
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import first_on_both, save_weights
from PIL import Image
from test_plot import noise, numpy, stub

import experiment
import explore
import plot
from errors import UserError
from models.program import NotListedError, program

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "runs" / "digits_hvae_vamp_bs64_dim2_factor1.0_epochs120_lr0.001_K50_warmup100"  # of `make demo`
NASTY = "</script><script>document.title='run'</script><!-- \u2028 & <img src=x onerror=alert(1)>"
DECODERS = {  # shape of the images and settings
    "conv": ((8, 12, 1), {"latent_dim": 2}),
    "conv, silu, hvae": ((28, 20, 1), {"model": "hvae", "latent_dim": 5, "activation": "silu"}),
    "conv, logistic": ((8, 8, 3), {"latent_dim": 3, "likelihood": "logistic", "activation": "selu"}),
    "conv, gaussian": ((8, 8, 3), {"latent_dim": 1, "likelihood": "gaussian", "activation": "softplus"}),
    "mlp": ((7, 5, 1), {"latent_dim": 3, "network": "mlp"}),
    "mlp, hvae": ((7, 5, 3), {"model": "hvae", "latent_dim": 2, "network": "mlp", "hidden_units": 11}),
    "gatedconv": ((6, 5, 1), {"model": "hvae", "latent_dim": 3, "network": "gatedconv"}),
}
ACTIVATIONS = {
    "linear": lambda h: h,
    "relu": lambda h: np.maximum(h, 0),
    "silu": lambda h: h * squashed(h),
    "selu": lambda h: 1.0507009873554805 * np.where(h > 0, h, 1.6732632423543772 * np.expm1(np.minimum(h, 0))),
    "softplus": lambda h: np.logaddexp(h, 0),
}


def squashed(h):
    """The sigmoid."""
    return 1 / (1 + np.exp(-h))


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
    view = plot.View(run, "pca")
    mean = np.random.default_rng(2).normal(0, 1.5, (24, run.latent_dim)).astype("float32")
    view.embedding = plot.Embedding(mean + 0.1, mean, np.full_like(mean, -4))  # all alike, before training
    return view


def floats(text, *shape):
    """An array that `packed` made."""
    return np.frombuffer(base64.b64decode(text), "<f4").reshape(shape or -1)


def tiles(sprite, channels=1):
    """The pictures of a sprite: (N, H, W, C) bytes."""
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(sprite["url"].partition(",")[2]))))
    height, width, columns = sprite["height"], sprite["width"], sprite["columns"]
    cut = sheet.reshape(-1, height, columns, width, channels).swapaxes(1, 2)
    return cut.reshape(-1, height, width, channels)[: sprite["count"]]


def content(path):
    """The data inside a page."""
    text = Path(path).read_text()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found[1])


# ---------------------------------------------------------------------------------------------- models/program.py


def computed(steps, h, weights):
    """What steps make of h (F,) or (H, W, F), in NumPy, by their definition in models/program.py."""
    for step in steps:
        h = KINDS[step["kind"]](step, h, weights)
    return h


def affine(step, weights, *kernel):
    """Kernel (*kernel, inputs, units) and bias of a step."""
    shape = (*kernel, step["inputs"], step["units"])
    end = step["at"] + np.prod(shape)
    return weights[step["at"] : end].reshape(shape), weights[end : end + step["units"]]


def dense(step, h, weights):
    kernel, bias = affine(step, weights)
    return ACTIVATIONS[step["activation"]](h.ravel() @ kernel + bias)


def conv(step, h, weights):
    size, stride = step["kernel"], step["stride"]
    kernel, bias = affine(step, weights, size, size)
    h = h.reshape(step["height"], step["width"], -1)
    out = np.zeros((*(stride * side + size for side in h.shape[:2]), step["units"]))
    for y, x in np.ndindex(h.shape[:2]):
        out[stride * y : stride * y + size, stride * x : stride * x + size] += h[y, x] @ kernel
    before = max(size - stride, 0) // 2
    whole = out[before : before + stride * step["height"], before : before + stride * step["width"]]
    return ACTIVATIONS[step["activation"]](whole + bias)


def gated(step, h, weights):
    return computed([step["linear"]], h, weights) * squashed(computed([step["gate"]], h, weights))


def parts(step, h, weights):
    pieces = np.split(h, np.cumsum([part["size"] for part in step["parts"]])[:-1])
    return np.concatenate([computed(p["steps"], h, weights) for p, h in zip(step["parts"], pieces, strict=True)])


KINDS = {"dense": dense, "conv": conv, "gated": gated, "parts": parts}


@pytest.mark.keras
@pytest.mark.parametrize("name", first_on_both(*DECODERS))
def test_the_steps_compute_what_the_decoder_does(name):
    shape, settings = DECODERS[name]
    view = view_of(shape, **settings)
    made = program(view.model)
    json.dumps(made.steps)
    assert len(made.weights) == sum(int(np.prod(weight.shape)) for weight in view.model.decoder.weights)
    z = np.random.default_rng(1).normal(size=(4, settings["latent_dim"])).astype("float32")
    expected = view.decoded(z)
    assert np.ptp(expected) > 0.3 and np.abs(expected[0] - expected[1]).max() > 0.05
    for one, picture in zip(z, expected, strict=True):
        maps = computed(made.steps, one, made.weights).reshape(*shape[:2], -1)
        np.testing.assert_allclose(squashed(maps[..., : shape[2]]), picture, atol=2e-4)


def test_multiplications_are_counted():
    view = view_of((8, 8, 1), latent_dim=2)
    sizes = [w.shape for w in view.model.decoder.weights if len(w.shape) > 1]
    pixels = [1, 4, 4, 16, 16, 64]  # that each layer reads
    assert program(view.model).multiplications == sum(n * np.prod(s) for n, s in zip(pixels, sizes, strict=True))


@pytest.mark.parametrize(
    ("shape", "settings", "reason"),
    [
        ((8, 8, 1), {"activation": "gelu"}, "activation gelu"),
        ((8, 8, 3), {"likelihood": "mixlogistic"}, "law"),
    ],
)
def test_what_the_page_cannot_compute_is_said(shape, settings, reason):
    with pytest.raises(NotListedError, match=reason):
        program(view_of(shape, latent_dim=2, **settings).model)


# ---------------------------------------------------------------------------------------------- explore.py


def test_a_square_is_true_to_scale_unless_it_would_be_a_strip():
    np.testing.assert_allclose(explore.squared(np.array([[0.0, 1], [2, 5]])), [[-1, 1], [3, 5]])
    strip = np.array([[0.0, 0], [10, 1]])
    np.testing.assert_array_equal(explore.squared(strip), strip)


def test_millions_are_words():
    assert [explore.millions(n) for n in (1, 12_001, 16_543_210)] == ["1 thousand", "13 thousand", "16.5 million"]


@pytest.mark.parametrize("shape", [(5, 3, 1), (4, 6, 3)])
def test_a_sprite_holds_its_pictures(shape):
    pictures = noise(7, *shape)
    made = explore.sprite(pictures)
    assert made["columns"] == 3 and made["count"] == 7
    np.testing.assert_array_equal(tiles(made, shape[2]), np.rint(255 * pictures).astype("uint8"))


@pytest.mark.keras
def test_a_panel_has_what_the_model_says():
    view = view_of((8, 12, 1), np.arange(24) % 3, ("a", "b", "c"), latent_dim=5, model="hvae")
    made = explore.panel(view, "mine")
    index = np.array(made["images"]["index"])
    means = floats(made["means"], -1, 5)
    np.testing.assert_array_equal(means, view.embedding.mean[index])
    centre, basis = floats(made["centre"], 5), floats(made["basis"], 2, 5)
    np.testing.assert_allclose(basis @ basis.T, np.eye(2), atol=1e-5)
    np.testing.assert_allclose(floats(made["plane"], -1, 2), (means - centre) @ basis.T, atol=1e-5)
    np.testing.assert_array_equal(tiles(made["images"]["sprite"]), np.rint(255 * view.images[index]))
    assert made["images"]["sprite"]["count"] == 24 and made["images"]["labels"] == (index % 3).tolist()
    np.testing.assert_array_equal(floats(made["decoder"]["weights"]), program(view.model).weights)
    names = [one["name"] for one in made["sliders"]]
    assert sorted(names) == ["z1[0]", "z1[1]", "z2[0]", "z2[1]", "z2[2]"]
    assert all(one["low"] < one["high"] for one in made["sliders"])
    np.testing.assert_array_equal(floats(made["pseudo"]["means"], -1, 5), view.components)
    assert floats(made["pseudo"]["draws"], -1, explore.DRAWS, 5).shape[0] == len(view.components) == 3
    assert made["grid"] is None and made["pseudo"]["pictures"] is None and made["contours"] == []


def test_two_dimensions_are_their_own_plane_under_the_prior():
    view = view_of((8, 8, 1), latent_dim=2, model="hvae")
    made = explore.panel(view, "mine")
    assert made["names"] == ["z2", "z1"] and made["sliders"] == []
    np.testing.assert_array_equal(made["plane"], made["means"])
    assert [one["share"] for one in made["contours"]] == [0.5, 0.8, 0.95]
    line = np.array(made["contours"][0]["lines"][0]).reshape(-1, 2)
    log_p = numpy(view.model.prior().log_prob(line.astype("float32")))
    assert np.ptp(log_p) < 0.1  # one level
    low, high = made["limits"]
    assert (view.embedding.mean >= low).all() and (view.embedding.mean <= high).all()
    assert np.subtract(high, low)[0] == pytest.approx(np.subtract(high, low)[1])


def test_shown_images_are_some_of_all_with_one_of_each_class(monkeypatch):
    monkeypatch.setattr(explore, "POINTS", 14)
    view = view_of((8, 8, 1), np.arange(24) // 2, tuple("abcdefghijkl"), latent_dim=2)
    chosen = explore.points(view)
    assert len(chosen) == len(set(chosen)) == 14 and (np.diff(chosen) > 0).all()
    shown = explore.images(view, chosen)
    assert len({shown["labels"][at] for at in shown["examples"]}) == explore.EXAMPLES
    assert explore.facts(view, 14, {"multiplications": 9}, None, "")[0].startswith("14 of 24 test images")


@pytest.mark.parametrize("dim", [1, 2, 4])
def test_a_decoder_that_is_not_for_a_page_is_a_grid_of_pictures(monkeypatch, dim):
    monkeypatch.setattr(explore, "MULTIPLICATIONS", 100)
    monkeypatch.setattr(explore, "GRID", 5)
    view = view_of((8, 8, 1), latent_dim=dim)
    made = explore.panel(view, "mine")
    assert made["decoder"] is None and made["sliders"] == [] and made["grid"]["side"] == 5
    pictures = tiles(made["grid"]["sprite"])
    low, high = np.array(made["limits"])
    corner = np.array([high[0], low[1]], "float32")  # the fifth picture: rows begin below
    z = floats(made["centre"]) + corner @ floats(made["basis"], 2, dim)
    assert np.abs(pictures[4] / 255 - view.decoded(z[None])[0]).max() <= 0.51 / 255
    expected = np.rint(255 * view.decoded(view.components))
    np.testing.assert_allclose(tiles(made["pseudo"]["pictures"]), expected, atol=1)
    said = " ".join(made["facts"])
    assert "interpolated" in said and "multiplications a picture" in said and "live" not in said


@pytest.mark.parametrize("label", ["plain", NASTY], ids=["plain", "nasty"])
def test_the_file_stands_alone_and_lets_nothing_else_in(label):
    view = view_of((8, 8, 1), np.arange(24) % 2, (NASTY, "b"), latent_dim=2)
    text = explore.page([explore.panel(view, label)], label).decode()
    assert text.count("<script") == text.count("</script>") == 2 and text.count("<style>") == 1
    ours = re.sub(r'id="data">.*?</script>', "", text, flags=re.DOTALL).replace(html.escape(label), "")
    assert not re.search(r"https?:|//\w|\bsrc=|\bhref=|@import|url\(|\bon\w+=\"|eval|innerHTML", ours)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
    script = re.search(r'<script type="module">(.*?)</script>', text, re.DOTALL)[1]
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy and "*" not in policy
    assert f"script-src '{explore.checksum(script)}'" in policy and f"style-src '{explore.checksum(style)}'" in policy
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert data["title"] == data["panels"][0]["label"] == label and data["panels"][0]["images"]["classes"][0] == NASTY
    assert html.unescape(re.search("<title>(.*?)</title>", text, re.DOTALL)[1]) == label


def test_runs_on_the_same_images_share_them():
    views = [view_of((8, 8, 1), latent_dim=dim, prior="standard") for dim in (2, 3)]
    text = explore.page([explore.panel(view, str(n)) for n, view in enumerate(views)], "both").decode()
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert len(data["sprites"]) == 1 and len({one["images"]["sprite"] for one in data["panels"]}) == 1


# ---------------------------------------------------------------------------------------------- plot.py --explore


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two finished tiny runs on digits, whose decoders are then made loud: a list of folders."""
    import training

    tiny = {
        "data_set": "digits",
        "network_size": 0.5,
        "epochs": 1,
        "lr": 1e-3,
        "num_pseudo_inputs": 12,
        "max_train_images": 200,
        "batch_size": 50,
    }
    tiny |= {"prior": "vamp", "runs_dir": str(tmp_path_factory.mktemp("explore"))}
    paths = [training.train(experiment.Config(model=m, latent_dim=d, **tiny)) for m, d in (("vae", 2), ("hvae", 3))]
    for path in paths:
        run = experiment.load(path)
        save_weights(loud(run.model), path / "best.safetensors")
    return paths


def explored(*words):
    """Calls plot.py --explore, which must succeed."""
    assert plot.main([*map(str, words), "--explore"]) == 0


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
        ("--projection", "tsne"): "no way back",
        ("--estimates",): "--estimates does not go with --explore",
        ("--report",): "--report does not go with --explore",
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
    assert reason in explore.refused(run) and bool(reason) == bool(explore.refused(run))


def test_of_a_grid_search_the_others_are_explored(capsys):
    def run(name, **settings):
        return SimpleNamespace(path=Path(name), config=experiment.Config(**settings), image_shape=(8, 8, 1))

    both = [run("deep", model="ladder"), run("flat")]
    others = dict.fromkeys(("estimates", "figures", "report", "export"))
    args = SimpleNamespace(projection="pca", gs_key="key", **others)
    assert [one.path.name for one in explore.explorable(both, args)] == ["flat"]
    assert capsys.readouterr().err.startswith("warning: left out: deep cannot be explored")
    with pytest.raises(UserError, match="deep cannot"):
        explore.explorable(both[:1], args)
    args.gs_key = None
    with pytest.raises(UserError, match="deep cannot"):
        explore.explorable(both, args)


# ---------------------------------------------------------------------------------------------- in Chromium


PROGRAMS = {"chromium": ("chromium", "chromium-browser", "google-chrome"), "chromedriver": ("chromedriver",)}
NEEDED = "which `apt-get install chromium chromium-driver` brings on Debian"
MINUS = "\N{MINUS SIGN}"
NAME = "(e) => e.ariaLabel || e.labels?.[0]?.textContent || e.textContent"
PICTURE = """
const [shown, copy] = [arguments[0], document.createElement("canvas")];
Object.assign(copy, { width: shown.width, height: shown.height });
const pen = copy.getContext("2d", { willReadFrequently: true });
pen.drawImage(shown, 0, 0);
return Array.from(pen.getImageData(0, 0, copy.width, copy.height).data);
"""


@pytest.fixture(scope="module")
def driver():
    """Chromium without a window, and without a network. Its absence is an error: who asks for these tests has one."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    found = {name: next(filter(None, map(shutil.which, names)), None) for name, names in PROGRAMS.items()}
    if missing := [name for name, path in found.items() if not path]:
        pytest.fail(f"the browser tests need {' and '.join(missing)}, {NEEDED}")
    options = webdriver.ChromeOptions()
    options.binary_location = found["chromium"]
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(flag)  # without a sandbox, which root in a container has none of; the pages are ours
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(found["chromedriver"]))
    driver.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    yield driver
    driver.quit()


class Page:
    """A page that is open in the browser."""

    def __init__(self, driver, path, width=1200, height=900, mobile=False, scheme="light"):
        self.driver, self.path = driver, Path(path)
        size = {"width": width, "height": height, "deviceScaleFactor": 1 + mobile, "mobile": mobile}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": mobile})
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        driver.get_log("browser"), driver.get_log("performance")
        driver.get(self.path.resolve().as_uri())
        self.until(lambda: driver.execute_script("return document.documentElement.dataset.ready"))
        self.settle()

    def until(self, condition, seconds=30):
        """Waits for a condition."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "the page did not come so far"
            time.sleep(0.02)

    def settle(self):
        """Waits for the picture of what has just been done: for the frame after the next."""
        self.driver.execute_async_script(
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))"
        )

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def one(self, selector):
        return self.all(selector)[0]

    def move(self, across, up, panel=0):
        """The mouse to this share of the plane's canvas."""
        self.actions().move_to_element_with_offset(*self.place(across, up, panel)).perform()
        self.settle()

    def click(self, across, up, panel=0):
        """The same, with a click."""
        self.actions().move_to_element_with_offset(*self.place(across, up, panel)).click().perform()
        self.settle()

    def place(self, across, up, panel):
        plane = self.all(".plane")[panel]
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", plane)
        size = plane.size
        return plane, round((across - 0.5) * size["width"]), round((0.5 - up) * size["height"])

    def actions(self):
        from selenium.webdriver.common.action_chains import ActionChains

        return ActionChains(self.driver, duration=10)

    def press(self, element, *keys):
        """Keys, pressed where this element has the focus."""
        self.driver.execute_script("arguments[0].focus({preventScroll: true})", element)
        self.actions().send_keys(*keys).perform()
        self.settle()

    def push(self, element):
        """A click on a button, wherever it is."""
        self.driver.execute_script("arguments[0].click()", element)
        self.settle()

    def z(self, panel=0):
        """The latents that are decoded now."""
        return np.array(json.loads(self.all(".decoded canvas")[panel].get_attribute("data-z")), "float32")

    def picture(self, canvas=".decoded canvas", at=0):
        """What a canvas shows: (H, W, 3) in [0, 1]."""
        element = self.all(canvas)[at]
        data = np.array(self.driver.execute_script(PICTURE, element), float)
        shape = [int(element.get_property(side)) for side in ("height", "width")]
        assert (data.reshape(*shape, 4)[..., 3] == 255).all()
        return data.reshape(*shape, 4)[..., :3] / 255

    def complaints(self):
        """What stands in the console."""
        return self.driver.get_log("browser")

    def requests(self):
        """Addresses that were asked for, but those of data inside of the page."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [one["params"]["request"]["url"] for one in events if one["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith("data:")]

    def screenshot(self, path):
        """Writes a PNG of a page that fits into the window, and of nothing below it."""
        width, height = self.driver.execute_script("return [innerWidth, document.body.offsetHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip})
        Path(path).write_bytes(base64.b64decode(shot["data"]))


def written(view, folder, label="run"):
    """The path of a page of this view."""
    path = folder / "page.html"
    path.write_bytes(explore.page([explore.panel(view, label)], label))
    return path


def assert_pictured(page, decoded, canvas=".decoded canvas", at=0):
    """What a canvas shows is a picture (H, W, C) of Python's, to 2 / 255."""
    shown = page.picture(canvas, at)
    assert shown.shape[:2] == decoded.shape[:2]
    assert np.abs(shown - decoded).max() <= 2 / 255
    return shown


@pytest.mark.browser
@pytest.mark.parametrize("name", DECODERS)
def test_the_picture_follows_the_pointer_and_is_the_models(driver, tmp_path, name):
    shape, settings = DECODERS[name]
    view = view_of(shape, **settings)
    page = Page(driver, written(view, tmp_path))
    seen = [assert_pictured(page, view.decoded(page.z()[None])[0])]
    for across, up in ((0.3, 0.3), (0.8, 0.4), (0.5, 0.9)):
        page.move(across, up)
        seen.append(assert_pictured(page, view.decoded(page.z()[None])[0]))
        assert np.abs(seen[-1] - seen[-2]).max() > 2 / 255
    assert page.complaints() == []
    assert page.requests() == [page.path.as_uri()]


@pytest.mark.browser
def test_the_pointer_is_where_the_axes_say(driver, tmp_path):
    view = view_of((8, 8, 1), latent_dim=2)
    page = Page(driver, written(view, tmp_path))
    page.click(0.4, 0.7)
    low, high = np.array(explore.Plane(view).limits)
    box = page.one(".plane canvas").size
    inner = box["width"] - 56, box["height"] - 50
    expected = low + (high - low) * [
        (round(-0.1 * box["width"]) + box["width"] / 2 - 46) / inner[0],
        1 - (box["height"] / 2 + round(-0.2 * box["height"]) - 10) / inner[1],
    ]
    np.testing.assert_allclose(page.z(), expected, atol=0.01 * np.ptp([low, high]))


@pytest.mark.browser
def test_a_grid_is_interpolated_between_pictures(driver, tmp_path, monkeypatch):
    monkeypatch.setattr(explore, "MULTIPLICATIONS", 100)
    monkeypatch.setattr(explore, "GRID", 6)
    view = view_of((8, 8, 1), latent_dim=3)
    page = Page(driver, written(view, tmp_path))
    plane = explore.Plane(view)
    axes = np.linspace(*plane.limits, 6)
    for across, up in ((0.3, 0.35), (0.77, 0.6)):
        page.move(across, up)
        point = plane.of(page.z())
        place = 5 * (point - plane.limits[0]) / np.ptp(plane.limits, axis=0)
        cell = np.minimum(place.astype(int), 4)
        dx, dy = place - cell
        corners = np.array([[axes[cell[0] + i, 0], axes[cell[1] + j, 1]] for j in (0, 1) for i in (0, 1)], "float32")
        a, b, c, d = view.decoded(plane.centre + corners @ plane.basis)
        assert_pictured(page, (1 - dy) * ((1 - dx) * a + dx * b) + dy * ((1 - dx) * c + dx * d))
    page.push(page.all(".pseudo button")[1])
    assert_pictured(page, view.decoded(view.components[1:2])[0])
    assert page.one(".sliders").get_attribute("hidden") and not page.complaints()


@pytest.mark.browser
def test_a_click_holds_and_a_second_one_lets_go(driver, tmp_path):
    page = Page(driver, written(view_of((8, 8, 1), latent_dim=2), tmp_path))
    page.click(0.1, 0.95)
    held = page.z()
    page.move(0.6, 0.5)
    np.testing.assert_array_equal(page.z(), held)
    page.click(0.9, 0.95)
    page.move(0.5, 0.2)
    assert (page.z() != held).all()


@pytest.mark.browser
def test_a_test_image_is_shown_below_the_pointer_and_taken_by_a_click(driver, tmp_path):
    view = view_of((8, 12, 1), np.arange(24) % 2, ("left", "right"), latent_dim=4)
    page = Page(driver, written(view, tmp_path))
    plane = explore.Plane(view)
    index = 5
    where = (plane.of_images[index] - plane.limits[0]) / np.ptp(plane.limits, axis=0)
    size = page.one(".plane").size
    across = (46 + where[0] * (size["width"] - 56)) / size["width"]
    up = (40 + where[1] * (size["height"] - 50)) / size["height"]
    page.move(across, up)
    tooltip = page.one(".tooltip")
    assert tooltip.is_displayed() and tooltip.text == "right, test image 5"
    assert np.abs(page.picture(".tooltip canvas") - view.images[5]).max() <= 0.51 / 255
    page.click(across, up)
    np.testing.assert_array_equal(page.z(), view.embedding.mean[index])
    page.move(0.05, 0.99)
    assert not tooltip.is_displayed()


@pytest.mark.browser
def test_every_latent_dimension_has_a_slider(driver, tmp_path):
    view = view_of((8, 8, 1), model="hvae", latent_dim=5)
    page = Page(driver, written(view, tmp_path))
    before, knobs = page.z(), page.all(".sliders input")
    assert len(knobs) == 5
    page.press(knobs[0], *["\ue014"] * 9)  # to the right
    first = explore.sliders(view)[0]["at"]
    moved = page.z()
    assert moved[first] > before[first]
    np.testing.assert_array_equal(np.delete(moved, first), np.delete(before, first))
    assert_pictured(page, view.decoded(moved[None])[0])
    point = explore.Plane(view).of(moved)
    assert page.one(".decoded span").text == f"at ({point[0]:.2f}, {point[1]:.2f})".replace("-", MINUS)


@pytest.mark.browser
def test_keys_move_the_point_and_are_told(driver, tmp_path):
    view = view_of((8, 8, 1), np.arange(24) % 2, ("left", "right"), latent_dim=2)
    page = Page(driver, written(view, tmp_path))
    spans = np.ptp(explore.Plane(view).limits, axis=0)
    plane = page.one(".plane")
    page.press(plane, "\ue011")  # Home
    middle = page.z()
    page.press(plane, "\ue014", "\ue014", "\ue013")  # right, right, up
    np.testing.assert_allclose(page.z() - middle, [0.02, 0.01] * spans, rtol=1e-3)
    page.until(lambda: "nearest: " in page.one(".status").get_property("textContent"))
    page.press(plane, "\ue007")  # Enter
    assert (np.abs(view.embedding.mean - page.z()).max(axis=1) == 0).any()
    page.driver.execute_script("document.activeElement.blur()")
    stops = []
    for _ in range(6):
        page.actions().send_keys("\ue004").perform()  # Tab
        stops.append(page.driver.execute_script(f"return ({NAME})(document.activeElement)"))
    assert any("Latent plane" in stop for stop in stops) and any("pseudo-input" in stop for stop in stops)


@pytest.mark.browser
def test_everything_that_can_be_used_has_a_name(driver, tmp_path):
    view = view_of((8, 8, 1), np.arange(24) % 2, ("left", "right"), latent_dim=3)
    page = Page(driver, written(view, tmp_path))
    page.push(page.all(".pseudo .tiles button")[0])
    usable = 'document.querySelectorAll("button, input, summary, [tabindex], [role=img]")'
    names = page.driver.execute_script(f"return [...{usable}].map({NAME})")
    assert len(names) > 20 and all(names)


@pytest.mark.browser
def test_a_pseudo_input_shows_its_decoded_posterior(driver, tmp_path):
    view = view_of((8, 8, 1), latent_dim=3)
    page = Page(driver, written(view, tmp_path))
    made = explore.panel(view, "")
    page.push(page.all(".pseudo .tiles button")[2])
    assert_pictured(page, view.decoded(view.components[2:3])[0])
    draws = floats(made["pseudo"]["draws"], -1, explore.DRAWS, 3)[2]
    expected = [numpy(view.model.top_prior.pseudo_inputs)[2], *view.decoded(np.stack([view.components[2], *draws]))]
    for at, picture in enumerate(expected):
        assert_pictured(page, picture, ".posterior canvas", at)
    page.press(page.one(".plane"), "\ue014")
    assert not page.one(".posterior").is_displayed()


@pytest.mark.browser
def test_classes_are_hidden_and_their_names_never_run(driver, tmp_path):
    view = view_of((8, 8, 1), np.arange(24) % 2, (NASTY, "b"), latent_dim=2)
    page = Page(driver, written(view, tmp_path, NASTY))
    assert page.one(".legend button").get_property("textContent") == NASTY
    assert page.one("h1").get_property("textContent") == NASTY
    page.press(page.one(".legend button"), " ")
    assert page.one(".legend button").get_attribute("aria-pressed") == "false"
    page.press(page.one(".plane"), "\ue011")
    assert page.one(".nearest span").text.startswith("b, test image")
    assert page.driver.execute_script("return document.title").startswith("</script>")
    assert page.complaints() == []


@pytest.mark.browser
def test_a_phone_needs_no_scrolling_to_the_side_and_fingers_decode(driver, tmp_path):
    view = view_of((8, 8, 1), np.arange(24) % 2, ("left", "right"), latent_dim=4)
    page = Page(driver, written(view, tmp_path), 360, 740, mobile=True)
    assert page.driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    plane = page.one(".plane")
    page.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", plane)
    box = page.driver.execute_script(
        "const b = arguments[0].getBoundingClientRect(); return [b.x, b.y, b.width]", plane
    )
    seen = []
    for kind, share in (("touchStart", 0.3), ("touchMove", 0.5), ("touchMove", 0.8)):
        point = {"x": box[0] + share * box[2], "y": box[1] + 0.4 * box[2]}
        page.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [point]})
        page.settle()
        seen.append(assert_pictured(page, view.decoded(page.z()[None])[0]))
    page.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert min(np.abs(b - a).max() for a, b in itertools.pairwise(seen)) > 2 / 255
    sizes = [button.size for button in page.all("button") if button.is_displayed()]
    assert min(min(size.values()) for size in sizes) >= 24  # CSS pixels, WCAG 2.2's target size


@pytest.mark.browser
def test_dark_mode_is_dark(driver, tmp_path):
    path = written(view_of((8, 8, 1), latent_dim=2), tmp_path)
    background = "return getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)"
    for scheme, dark in (("light", False), ("dark", True)):
        page = Page(driver, path, scheme=scheme)
        assert (max(page.driver.execute_script(background)) < 60) == dark


@pytest.mark.browser
def test_several_runs_take_the_same_test_image(driver, runs):
    explored(*runs)
    page = Page(driver, runs[0].parent / "figures" / "digits_explore.html")
    views = [plot.View(experiment.load(path), "pca") for path in runs]
    assert len(page.all(".panel")) == 2
    button = page.all(".strip button")[3]
    index = int(re.search(r"test image (\d+)", button.get_attribute("aria-label"))[1])
    page.push(button)
    for panel, view in enumerate(views):
        np.testing.assert_allclose(page.z(panel), view.embedding.mean[index], atol=1e-5)
        assert_pictured(page, view.decoded(page.z(panel)[None])[0], at=panel)
    assert page.complaints() == [] and page.requests() == [page.path.as_uri()]


@pytest.mark.browser
def test_the_page_of_the_demo_is_pictured(driver, runs, tmp_path, screenshots):
    """The picture in the README where `make demo` has left its run, else one of a tiny run."""
    chosen = DEMO if (DEMO / "best.safetensors").is_file() else runs[0]
    explored(chosen, "--out", tmp_path)
    page = Page(driver, tmp_path / f"{chosen.name}_explore.html", height=1300)
    page.push(page.all(".pseudo .tiles button")[7])
    page.move(0.728, 0.333)  # while the point is held, so that only a test image of the demo shows itself
    page.until(lambda: chosen != DEMO or page.one(".tooltip").is_displayed())
    target = screenshots / f"{chosen.name}_explore.png"
    page.screenshot(target)
    shown = np.asarray(Image.open(target).convert("RGB"))
    assert shown.shape[1] == 1200 and len(np.unique(shown.reshape(-1, 3), axis=0)) > 100
    assert page.complaints() == []
