"""The page of plot.py --explore at work in Chromium; `make test-browser` runs these tests, marked `browser`."""

import base64
import itertools
import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from made import numpy
from PIL import Image
from test_explore import DECODERS, NASTY, explored, floats, tiny_runs, view_of

import experiment
from plotting.explorer import page
from plotting.explorer.page import DRAWS, Plane, panel, sliders
from plotting.view import View

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "runs" / "mnist5k_hvae_vamp_bs64_dim2_mlp_epochs80_lr0.002_schedulecosine_K100_warmup40"  # `make demo`
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
def runs(tmp_path_factory):
    return tiny_runs(tmp_path_factory.mktemp("explore"))


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
    path.write_bytes(page.page([page.panel(view, label)], label))
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
    low, high = np.array(Plane(view).limits)
    box = page.one(".plane canvas").size
    inner = box["width"] - 56, box["height"] - 50
    expected = low + (high - low) * [
        (round(-0.1 * box["width"]) + box["width"] / 2 - 46) / inner[0],
        1 - (box["height"] / 2 + round(-0.2 * box["height"]) - 10) / inner[1],
    ]
    np.testing.assert_allclose(page.z(), expected, atol=0.01 * np.ptp([low, high]))


@pytest.mark.browser
def test_a_grid_is_interpolated_between_pictures(driver, tmp_path, monkeypatch):
    monkeypatch.setattr("plotting.explorer.decoder_steps.MULTIPLICATIONS", 100)
    monkeypatch.setattr("plotting.explorer.page.GRID", 6)
    view = view_of((8, 8, 1), latent_dim=3)
    page = Page(driver, written(view, tmp_path))
    plane = Plane(view)
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
    plane = Plane(view)
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
    first = sliders(view)[0]["at"]
    moved = page.z()
    assert moved[first] > before[first]
    np.testing.assert_array_equal(np.delete(moved, first), np.delete(before, first))
    assert_pictured(page, view.decoded(moved[None])[0])
    point = Plane(view).of(moved)
    assert page.one(".decoded span").text == f"at ({point[0]:.2f}, {point[1]:.2f})".replace("-", MINUS)


@pytest.mark.browser
def test_keys_move_the_point_and_are_told(driver, tmp_path):
    view = view_of((8, 8, 1), np.arange(24) % 2, ("left", "right"), latent_dim=2)
    page = Page(driver, written(view, tmp_path))
    spans = np.ptp(Plane(view).limits, axis=0)
    plane = page.one(".plane")
    page.press(plane, "\ue011")  # Home
    middle = page.z()
    page.actions().key_down("\ue00a").send_keys("\ue014").key_up("\ue00a").perform()  # Alt with an arrow
    page.settle()  # is the browser's
    np.testing.assert_array_equal(page.z(), middle)
    page.press(plane, "\ue014", "\ue014", "\ue013")  # right, right, up
    np.testing.assert_allclose(page.z() - middle, [0.02, 0.01] * spans, rtol=1e-3)
    page.until(lambda: "nearest: " in page.one(".status").get_property("textContent"))
    page.press(plane, "\ue007")  # Enter
    assert (np.abs(view.embedding.mean - page.z()).max(axis=1) == 0).any()
    assert page.all(".cross.held")
    page.press(plane, "\ue00c")  # Escape
    assert not page.all(".cross.held")
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
    made = panel(view, "")
    page.push(page.all(".pseudo .tiles button")[2])
    assert_pictured(page, view.decoded(view.components[2:3])[0])
    draws = floats(made["pseudo"]["draws"], -1, DRAWS, 3)[2]
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
    page.press(page.all(".legend button")[1], " ")
    assert not page.one(".nearest").is_displayed()
    before = page.z()
    page.press(page.one(".plane"), "\ue007")  # Enter, where there is nothing to select
    np.testing.assert_array_equal(page.z(), before)
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
    assert not any((page.z() == mean).all() for mean in view.embedding.mean)  # a drag takes no image
    where = ((Plane(view).of_images[5] - Plane(view).limits[0]) / np.ptp(Plane(view).limits, axis=0)).tolist()
    point = {"x": box[0] + 46 + where[0] * (box[2] - 56), "y": box[1] + box[2] - 40 - where[1] * (box[2] - 50)}
    for kind, points in (("touchStart", [point]), ("touchEnd", [])):
        page.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    page.settle()
    np.testing.assert_array_equal(page.z(), view.embedding.mean[5])  # a tap does
    sizes = [button.size for button in page.all("button") if button.is_displayed()]
    assert min(min(size.values()) for size in sizes) >= 24  # CSS pixels, WCAG 2.2's target size


@pytest.mark.browser
@pytest.mark.parametrize("size", [(740, 360), (667, 375), (768, 640)])
def test_beside_the_plane_there_is_room_for_a_finger_that_scrolls(driver, tmp_path, size):
    page = Page(driver, written(view_of((8, 8, 1), latent_dim=2), tmp_path), *size, mobile=True)
    assert page.one(".plane").size["height"] <= 0.81 * size[1]


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
    views = [View(experiment.load(path), "pca") for path in runs]
    assert len(page.all(".panel")) == 2
    button = page.all(".strip button")[3]
    index = int(re.search(r"test image (\d+)", button.get_attribute("aria-label"))[1])
    page.push(button)
    for number, view in enumerate(views):
        np.testing.assert_allclose(page.z(number), view.embedding.mean[index], atol=1e-5)
        assert_pictured(page, view.decoded(page.z(number)[None])[0], at=number)
    assert page.complaints() == [] and page.requests() == [page.path.as_uri()]


@pytest.mark.browser
def test_the_page_of_the_demo_is_pictured(driver, runs, tmp_path, screenshots):
    """The picture in the README where `make demo` has left its run, else one of a tiny run."""
    chosen = DEMO if (DEMO / "best.safetensors").is_file() else runs[0]
    explored(chosen, "--out", tmp_path)
    page = Page(driver, tmp_path / f"{chosen.name}_explore.html", height=1300)
    page.push(page.all(".pseudo .tiles button")[7])
    for across, up in itertools.product(np.linspace(0.5, 0.8, 31), np.linspace(0.2, 0.4, 11)):
        page.move(across, up)  # while the point is held, so that only a test image shows itself
        if chosen != DEMO or page.one(".tooltip").is_displayed():
            break
    assert chosen != DEMO or page.one(".tooltip").is_displayed()
    target = screenshots / f"{chosen.name}_explore.png"
    page.screenshot(target)
    shown = np.asarray(Image.open(target).convert("RGB"))
    assert shown.shape[1] == 1200 and len(np.unique(shown.reshape(-1, 3), axis=0)) > 100
    assert page.complaints() == []
