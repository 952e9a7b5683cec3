"""Classes from a user's file: how they are named, entered and refused. No Keras, and nothing of a file runs."""

import hashlib
import json
import sys

import pytest
from conftest import called, refused

import evaluate
import experiment
import models
import plot
import train
import vampvae
from experiment import Config, own, record
from experiment.flags import words_of
from grids.configs import configs_of
from runtime.command import Parser
from runtime.errors import UserError

CODE = """raise SystemExit("this must not run")

class Mine:
    has_components: bool = True
    settings = ["num_pseudo_inputs"]
    other = object()
    def distribution(self): pass

class Other: samples, fewest = 7, 2
"""
pytestmark = pytest.mark.usefixtures("no_code")
SHA256 = hashlib.sha256(CODE.encode()).hexdigest()
NAME = f"Mine-{SHA256[:8]}"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my prior.py"
    path.write_text(CODE)
    return path


def configs(*words):
    parser = Parser(raises=True)
    train.add_arguments(parser)
    return configs_of(parser.parse_args([str(word) for word in words]))


def test_a_class_is_an_entry_named_by_its_checksum(file):
    (config,) = configs("--prior", f"{file}:Mine", "--num_pseudo_inputs", 5, "--latent_dim", 3)
    assert config.prior == NAME and config.training_id.startswith(f"mnist_vae_{NAME}_bs256_dim3_")
    assert config.training_id.endswith("_K5")
    entry = models.PRIORS[NAME]
    assert entry[1:] == (("num_pseudo_inputs",), True, False) and models.is_own(entry)
    assert config.has("num_pseudo_inputs") and not config.has("num_couplings") and not config.has_pseudo_inputs
    with pytest.raises(UserError, match=f"--num_couplings 3 does not go with --prior {NAME}, but with flow"):
        configs("--prior", f"{file}:Mine", "--num_couplings", 3)


@pytest.mark.parametrize(("pick", "fields"), [("network", {"models": ("vae", "hvae")}), ("objective", {"samples": 1})])
def test_networks_and_objectives_are_entered_likewise(file, pick, fields):
    (config,) = configs(f"--{pick}", f"{file}:Mine")
    assert getattr(config, pick) == NAME and NAME in config.training_id and NAME not in models.PRIORS
    entry = models.REGISTRIES[pick][NAME]
    assert {name: getattr(entry, name) for name in fields} == fields


def test_a_relative_path_and_one_in_the_home_are_taken(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    names = {configs("--prior", f"{text}:Mine")[0].prior for text in ("my prior.py", "./my prior.py", "~/my prior.py")}
    assert names == {NAME}


def test_a_path_of_windows_is_split_at_its_last_colon(monkeypatch):
    asked = []
    monkeypatch.setattr(
        own, "_read", lambda path, sha256: asked.append(path) or own.Source(path, SHA256, CODE.encode())
    )
    assert own.name_of("prior", r"C:\my code\mine.py:Mine") == NAME and asked == [r"C:\my code\mine.py"]


@pytest.mark.parametrize(
    ("content", "text", "expected"),
    [
        (CODE, "FILE", "must be FILE.py:CLASS, as my_prior.py:MyPrior"),
        (CODE, r"C:\my.py", "must be FILE.py:CLASS"),
        (CODE, "FILE:", "must be FILE.py:CLASS"),
        (CODE, "FILE:a.b", "must be FILE.py:CLASS"),
        (CODE, "FILE:Absent", "has no class Absent; it has Mine, Other"),
        ("def f(): pass", "FILE:Mine", "has no class Mine; it has none"),
        (CODE, "nowhere.py:Mine", "nowhere.py cannot be read: No such file or directory"),
        (CODE, "FOLDER.py:Mine", "FOLDER.py cannot be read"),
        ("class Mine(:", "FILE:Mine", "line 1 is no Python: "),
        ("x = '\0'", "FILE:Mine", "is no Python: "),
        ("# " + "x" * (1 << 20), "FILE:Mine", "has more than 1,048,576 bytes"),
        ("class Mine: has_components = 1", "FILE:Mine", "line 1: Mine.has_components must be a bool, written out"),
        ("class Mine: has_components = f()", "FILE:Mine", "Mine.has_components must be a bool, written out"),
        ("class Mine: settings = 'lr'", "FILE:Mine", "Mine.settings must be a tuple of names, written out"),
        ("class Mine: settings = ('lr',)", "FILE:Mine", "Mine.settings has 'lr', which is none of prior, network"),
        (CODE, f"FILE:Mine@{'0' * 64}", f"has changed: its sha256 is {SHA256}, and {'0' * 64} was asked for"),
        (CODE, "Mine", "invalid choice: 'Mine' (choose from"),
        (CODE, NAME, f"invalid choice: '{NAME}' (choose from"),
    ],
)
def test_what_is_no_class_of_a_file_is_refused(tmp_path, capfd, content, text, expected):
    (tmp_path / "mine.py").write_text(content)
    (tmp_path / "FOLDER.py").mkdir()
    text = text.replace("FILE", str(tmp_path / "mine.py")).replace("FOLDER.py", str(tmp_path / "FOLDER.py"))
    expected = expected.replace("FOLDER.py", str(tmp_path / "FOLDER.py"))
    refused(capfd, train.main, ["--prior", text, "--runs_dir", tmp_path / "runs"], expected, tmp_path / "runs")


def test_words_of_a_run_have_path_and_checksum_for_its_process(file, monkeypatch):
    (config,) = configs("--prior", f"{file}:Mine")
    assert words_of(config) == ["--prior", f"{file}:Mine@{SHA256}"]
    assert own.entered() == [("prior", f"{file}:Mine@{SHA256}")]
    assert own.words_for(config, Config())[::2] == ["--code"] and own.words_for(Config()) == []
    assert configs(*words_of(config)) == [config]
    file.write_text(CODE + "# another")
    with pytest.raises(UserError, match="has changed: its sha256 is"):
        configs(*words_of(config))


def recorded(folder, config, **changes):
    """A folder with the config.json of a run."""
    folder.mkdir()
    found = {"format": record.FORMAT, "backend": "jax", "versions": {}, "data_sha256": {}}
    found |= {"config": vars(config) | {}, "code": own.record(config)} | changes
    (folder / "config.json").write_text(json.dumps(found))
    return folder


def test_a_run_is_opened_with_its_file_alone(file, tmp_path, monkeypatch):
    (config,) = configs("--prior", f"{file}:Mine")
    run = recorded(tmp_path / "run", config)
    code = json.loads((run / "config.json").read_text())["code"]
    assert code == {"prior": {"file": "my prior.py", "class": "Mine", "sha256": SHA256}}
    (run / "my prior.py").write_text(CODE)  # in the folder, or where it was: not looked for
    monkeypatch.chdir(run)
    monkeypatch.setattr(own, "_files", {})
    with pytest.raises(
        UserError, match=rf"prior Mine of my prior.py, of sha256 {SHA256}; name it with --code 'my prior"
    ):
        experiment.load(run)
    other = tmp_path / "other.py"
    other.write_text(CODE + "#")
    with pytest.raises(
        UserError, match=r"name it with --code 'my prior\.py'; .*other\.py with sha256 .*, is another file$"
    ):
        vampvae.load(run, code=str(other))
    assert vampvae.load(run, code=str(file)).config == config
    assert not [name for name in sys.modules if "my prior" in name]


TEXTS = {"file": "", "class": "", "sha256": ""}


@pytest.mark.parametrize(
    "code", [[], "x", {"prior": "x"}, {"prior": {}}, {"lr": TEXTS}, {"prior": TEXTS | {"class": []}}]
)
def test_damaged_code_in_a_record_is_refused(tmp_path, code):
    with pytest.raises(UserError, match="json whose code is"):
        experiment.load(recorded(tmp_path / "run", Config(), code=code))


def test_a_class_that_the_record_leaves_out_is_unknown(file, tmp_path, monkeypatch):
    (config,) = configs("--prior", f"{file}:Mine")
    run = recorded(tmp_path / "run", config, code={})
    del models.PRIORS[NAME]
    with pytest.raises(UserError, match=f"--prior '{NAME}' is unknown"):
        experiment.load(run)


@pytest.mark.parametrize("main", [train.main, evaluate.main, plot.main])
@pytest.mark.parametrize("text", ["mine.txt", "mine.py:Mine", "nowhere.py"])
def test_code_is_a_file(tmp_path, capfd, main, text):
    assert called(main, "--code", tmp_path / text, tmp_path) == 2
    assert "must be a file FILE.py" in (err := capfd.readouterr().err) or "cannot be read" in err
