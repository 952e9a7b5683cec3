"""Settles the backend before any test imports Keras; what several test files use."""

import dataclasses
import gc
import hashlib
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import safetensors.numpy
import trustme

import models
from experiment import Config, own, tracking, weights
from experiment.settings import is_list, kind_of
from runtime import backend

ROOT = Path(__file__).parent.parent
ASKED_FOR = {"browser": "of pages in a real browser", "slow": "that take long"}  # by -m
TINY = {"data_set": "digits", "network_size": "0.25", "batch_size": "64", "lr": "1e-3", "num_pseudo_inputs": "12"}
TINY |= {"track": "none"}  # of scripts; see below

FIELDS = {field.name: field for field in dataclasses.fields(Config) if field.metadata["help"]}  # with a flag
NUMBERS = [name for name, field in FIELDS.items() if field.metadata["tag"] is not None]
PLACES = [name for name in FIELDS if name not in NUMBERS]
SMALL = {"model": "hvae", "prior": "vamp", "latent_dim": 4, "lr_schedule": "cosine", "beta_warmup": 9}
SMALL |= {"likelihood": "gaussian", "binarize": "none", "objective": "lmcvae"}  # so that most settings mean something
DEEP = {"model": "dvp", "lr_schedule": "cosine", "likelihood": "gaussian", "binarize": "none", "beta_warmup": 9}

TRACKING = dict(tracking.TRACKERS)
tracking.TRACKERS["tensorboard"] = ()  # pictures of every tiny run would take longer than the runs
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".pytest_cache" / "jax")  # tests compile the same over and over
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
LEAST = "--xla_backend_optimization_level=0"  # of LLVM, which would take a quarter of the time; XLA's passes stay
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {LEAST}".strip()
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")  # TensorFlow's; as tests run side by side, a core each
backend.settle(os.environ.get("KERAS_BACKEND"))
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore; tests are about it
on_tensorflow = pytest.mark.skipif(os.environ["KERAS_BACKEND"] == "jax", reason="would take minutes to compile")


def slow_on_jax(test):
    """Marks a test as slow on JAX alone, which compiles all that it calls."""
    return pytest.mark.slow(test) if os.environ["KERAS_BACKEND"] == "jax" else test


def pytest_configure(config):
    """Imports Keras as scripts do, before a test file does, except in the process that only distributes tests.

    No test makes TensorFlow deterministic for all later ones, which could not use XLA then.
    """
    if not getattr(config.option, "numprocesses", None) or hasattr(config, "workerinput"):
        backend.start()
        if os.environ["KERAS_BACKEND"] == "tensorflow":
            import tensorflow as tf

            tf.config.experimental.enable_op_determinism = lambda: None


def pytest_addoption(parser):
    """The folder that browser tests write pictures into."""
    parser.addoption("--screenshots", metavar="DIR", type=Path, help="where browser tests write (default: temporary)")


def pytest_collection_modifyitems(config, items):
    """Leaves tests of ASKED_FOR out unless -m asks for them."""
    for item in items:
        for name, what in ASKED_FOR.items():
            if name not in config.option.markexpr and item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=what))


def pytest_collection_finish():
    """Each training collects garbage, and need not look for it among all modules."""
    gc.freeze()


def pytest_terminal_summary(terminalreporter):
    """Says what was left out, and how to run it."""
    skipped = terminalreporter.stats.get("skipped", [])  # whole files among them, which have no keywords
    for name, what in ASKED_FOR.items():
        if name in terminalreporter.config.option.markexpr:
            continue
        count = sum(name in getattr(report, "keywords", ()) for report in skipped)
        if count:
            terminalreporter.write_line(f"left out: {count} tests {what}; `make test-{name}` runs them")


@pytest.fixture(autouse=True, scope="module")
def seeded_module():
    """Fixes the seed for the fixtures of a file."""
    _seed()


@pytest.fixture(autouse=True)
def seeded_test():
    """Fixes the seed from which layers draw their first weights."""
    _seed()


@pytest.fixture(autouse=True)
def handlers_stay():
    """A test that left another handler behind would let the next one that stops a run end the whole process."""
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.fixture
def no_code(monkeypatch):
    """No file of code was named before the test, and no class of one stays in the registries after it."""
    monkeypatch.setattr(own, "_files", {})
    monkeypatch.setattr(own, "_classes", {})
    yield
    for entries in models.REGISTRIES.values():
        for name in [name for name, entry in entries.items() if models.is_own(entry)]:
            del entries[name]


def _seed():
    import keras

    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def screenshots(request, tmp_path_factory):
    """The folder that --screenshots names, or a temporary one."""
    folder = request.config.option.screenshots or tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def first_on_both(*values):
    """Parameters of a test, of which JAX gets the first only, as each would take it long to compile."""
    return [values[0], *(pytest.param(value, marks=on_tensorflow) for value in values[1:])]


def third_on_jax(*cases):
    """Parameters of a test, of which JAX gets every third at once, and the others among the tests that take long."""
    slow = [pytest.mark.slow] if os.environ["KERAS_BACKEND"] == "jax" else []
    cases = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*case, marks=slow if index % 3 else []) for index, case in enumerate(cases)]


def shapes_of(function):
    """What a function of nothing returns, or only its shapes: on JAX nothing is computed, nor compiled for it.

    Generators of random numbers must be made inside of the function there, as their state is no number afterwards.
    """
    if os.environ["KERAS_BACKEND"] != "jax":
        return function()
    import jax

    return jax.eval_shape(function)


def compiled(function):
    """What a function of nothing returns; on JAX it is compiled as one, instead of each of its operations for itself.

    Generators of random numbers must be made inside of it there, as their state is no number afterwards.
    """
    if os.environ["KERAS_BACKEND"] != "jax":
        return function()
    import jax

    return jax.jit(function)()


@pytest.fixture
def script():
    """Runs a script as a user does: `script("train.py", "--epochs", 3)` returns the finished process with its text."""

    def run(*words, **environment):
        command, env = [sys.executable, *map(str, words)], {**os.environ, **environment}
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=env)

    return run


def as_flags(settings):
    """A list of command-line words: each name and value of a dict."""
    return [str(word) for name, value in settings.items() for word in (f"--{name}", value)]


def flags(**settings):
    """A list of command-line words: the tiny settings of the tests, changed and extended by `settings`."""
    return as_flags(TINY | settings)


def validated(run):
    """What validation gives, with the noise that it has in training, for the weights that a run kept."""
    from training.batches import validation_batch

    run.model.compile()
    run.model.test_noise.state.assign(run.config.stream("validation noise").generate_state(2) % 2**31)
    return run.model.evaluate(run.images("val"), batch_size=validation_batch(run.config), verbose=0, return_dict=True)


def owner_of(name):
    """SMALL with a model, prior, network and objective that have this setting."""
    chosen = SMALL | {pick: SMALL[pick] if SMALL.get(pick) in names else names[0]
                      for pick, names in models.owners(name).items()}  # fmt: skip
    return DEEP | {"model": chosen["model"]} if models.MODELS[chosen["model"]].is_deep else chosen


def other(name):
    """Another value of this setting than the usual one, made from its field, so that a new field has one too."""
    field, used = FIELDS[name], getattr(Config(**owner_of(name)), name)
    choices, kind = field.metadata["choices"], kind_of(field)
    # lr_final lies below lr; the network goes with every objective, the model with what vae has, too
    chosen = {"lr_final": 1e-6, "network": "mlp", "model": "vae", "scales": "2x7", "num_groups": 16}
    if name in (chosen := chosen | {"latent_dims": (3, 1)}):
        return chosen[name]
    if choices:
        return next(choice for choice in reversed(choices) if choice != used)
    value = "tanh" if kind is str else kind(min((used or 6) + 2 - (used or 1) % 2, field.metadata["high"]))
    return (value,) if is_list(field) else value


def sha256(content):
    """Of bytes, in hex."""
    return hashlib.sha256(content).hexdigest()


def train_a_step(model, optimizer, batch):
    """Compiles a model, trains it for one step, and returns its logs.

    On TensorFlow each operation is computed at once, as it would take longer to trace a step than to compute it.
    """
    model.compile(optimizer, run_eagerly=os.environ["KERAS_BACKEND"] == "tensorflow")
    return model.train_on_batch(batch, return_dict=True)


def log_joint(model, x, z):
    """log p(x, z) in nats for x (B, H, W, C) and z (..., B, D): (..., B)."""
    return model.likelihood(z).log_prob(x) + model.prior().log_prob(z)


def save_weights(model, path):
    """Writes the weights of a model as a run keeps its best ones."""
    from models.weight_names import named_weights

    path.write_bytes(safetensors.numpy.save(weights.values(named_weights(model))))


def put(folder, contents):
    """Writes files, a dict of name to content, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)


def damaged(packed):
    """The same bytes, but for one."""
    middle = len(packed) // 2
    return packed[:middle] + bytes([packed[middle] ^ 255]) + packed[middle + 1 :]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of this test alone; no variable of the user's environment has a say."""
    for name in ("VAMPVAE_DATA", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / "cache" / name))
    return tmp_path / "cache" / "vampvae"


class Site:
    """A local https server: `pages` maps a path to (status, headers, body), `asked` lists the requests."""

    def __init__(self, authority):
        self.pages, self.asked, site = {}, [], self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                site.asked.append(self.path)
                status, headers, body = site.pages.get(self.path, (404, {}, b""))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                """Keeps the requests out of the test's output."""

        self.server = ThreadingHTTPServer(("localhost", 0), Handler)
        self.server.handle_error = lambda *_: None  # a client that hangs up is what some tests want
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(context)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"https://localhost:{self.server.server_port}/"
        Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def offer(self, folder, contents, status=200, **headers):
        """Serves `contents`, a dict of name to body, under `folder`; returns the mirror's url."""
        for name, body in contents.items():
            lengths = {"Content-Length": str(len(body))} | {key.replace("_", "-"): v for key, v in headers.items()}
            self.pages[f"/{folder}/{name}"] = (status, lengths, body)
        return f"{self.url}{folder}/"


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def site(authority, tmp_path, monkeypatch):
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "authority.pem"))
    site = Site(authority)
    yield site
    site.server.shutdown()
    site.server.server_close()


SETTINGS = {"model": "hvae", "prior": "vamp", "latent_dim": 3, "epochs": 2, "batch_size": 63}  # 19 even batches
ID = "digits_hvae_vamp_bs63_dim3_factor0.25_epochs2_lr0.001_K12"
STATES = [f"last/epoch{epoch:09d}_step{0:09d}.safetensors" for epoch in (1, 2)]
FILES = [".lock", "best.safetensors", "config.json", "history.csv", *STATES, "status.json"]
QUICK = {"epochs": 1, "batch_size": 399}  # three steps


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The finished process of one `python train.py`, and the folder of its run, which no test changes."""
    runs_dir = tmp_path_factory.mktemp("trained") / "runs"
    command = [sys.executable, "train.py", *flags(runs_dir=runs_dir, **SETTINGS)]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done, runs_dir / ID


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the trained run, where its training would put it with --runs_dir tmp_path/runs."""
    return shutil.copytree(trained[1], tmp_path / "runs" / ID)


def called(main, *words):
    """The exit code of a script's main, whether it returns or exits with it."""
    try:
        return main([str(word) for word in words])
    except SystemExit as exit_:
        return exit_.code


def read(path):
    return json.loads(path.read_text())


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def complaints(text):
    """The lines of stderr, without those that every run writes there about itself."""
    own = re.compile("(data|model|folder|best validation ELBO|next|then|how to read it): |look first at ")
    return [line for line in text.splitlines() if not own.match(line)]


def refused(capfd, main, words, expected, nothing_in=None):
    """Checks for exit code 2, exactly one line on stderr, which has `expected`, nothing on stdout, and no file."""
    assert called(main, *words) == 2
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and printed.err.endswith("\n"), printed
    assert expected in printed.err and re.match(r"(error|\w+\.py( \w+)?): ", printed.err), printed.err
    assert nothing_in is None or not nothing_in.exists() or not any(nothing_in.iterdir())


def bend(*layers, size=0.5):
    """Gives the last maps of every coupling weights, which begin as zeros."""
    import numpy as np

    draw = np.random.default_rng(1)
    for layer in layers:
        for coupling in layer.couplings:
            for weight in (*coupling.scale.weights, *coupling.shift.weights):
                weight.assign(size * draw.normal(size=weight.shape))
