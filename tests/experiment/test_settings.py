"""Settings that are lists: how they are checked, typed, named and searched."""

import dataclasses
import json

import pytest

import grids.configs
from experiment import Config, flags
from experiment.differences import labels
from experiment.settings import checked, setting
from grids.search import Search
from runtime.command import Parser
from runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Listing(Config):
    """A Config with a setting that is a list, and with one that changes no number."""

    widths: tuple[int, ...] = setting(None, "model", "units of layers", tag="widths", low=1, high=99)
    marks: tuple[float, ...] = setting(None, "runs", "marks", low=0)


FIELDS = {field.name: field for field in dataclasses.fields(Listing)}


@pytest.fixture
def configs(monkeypatch):
    """The grid that words on the command line make of Listing."""
    for module in (flags, grids.configs):
        monkeypatch.setattr(module, "Config", Listing)

    def made(*words):
        parser = Parser(raises=True)
        flags.add_settings(parser)
        return grids.configs.configs_of(parser.parse_args([str(word) for word in words]))

    return made


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("widths", (20, 10), (20, 10)),
        ("widths", [20, 10], (20, 10)),
        ("widths", 20, (20,)),
        ("widths", None, None),
        ("marks", [1, 0.5], (1.0, 0.5)),
        ("widths", [], "--widths needs one value or more"),
        ("widths", [20, 0], "--widths 0 must be at least 1 and at most 99"),
        ("widths", [20, True], "--widths True must be int, not bool"),
        ("widths", [20, None], "--widths None must be int, not NoneType"),
        ("widths", [[20]], r"--widths \[20\] must be int, not list"),
        ("widths", "20,10", "--widths '20,10' must be int, not str"),
        ("marks", [1, float("nan")], "--marks nan must be a finite number"),
    ],
)
def test_a_list_is_a_tuple_whose_values_are_checked_one_by_one(name, value, expected):
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            checked(FIELDS[name], value)
    else:
        assert checked(FIELDS[name], value) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((20,), [(20,)]),
        ((20, 10), [(20, 10)]),  # as one word has no comma
        (("20,10",), [(20, 10)]),
        (("20,10", "30,", 40), [(20, 10), (30,), (40,)]),
        (("None",), [None]),
        (("None", "20,10"), [None, (20, 10)]),
    ],
)
def test_a_flag_takes_one_list_or_those_of_a_grid(configs, words, expected):
    found = configs("--widths", *words, "--gs_key", "key", "--marks", 1, 2.5)
    assert [config.widths for config in found] == expected and {config.marks for config in found} == {(1.0, 2.5)}
    for config in found:
        assert Listing.from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config
        assert configs(*flags.words_of(config)) == [config]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--widths", "20,x"), "argument --widths: invalid int value: '20,x'"),
        (("--widths", ","), "argument --widths: invalid int value: ','"),
        (("--widths", "20,10", "30,20"), "these flags make a grid of 2 runs"),
        (("--marks", "1,2", "3,4", "--gs_key", "key"), "argument --marks: takes one list"),
        (("--widths", "10..20"), "--widths 10..20 is a range, which needs --search optuna"),
    ],
)
def test_words_that_make_no_list_are_refused(configs, words, message):
    with pytest.raises(UserError, match=message):
        configs(*words)


def test_ids_and_labels_name_a_list(monkeypatch):
    monkeypatch.setattr("experiment.differences.Config", Listing)
    several = [Listing(widths=(20, 10)), Listing(widths=20), Listing()]
    assert [one.training_id.removeprefix(Config().training_id) for one in several] == ["_widths20-10", "_widths20", ""]
    assert labels(several) == ["widths 20,10", "widths 20", "widths None"]
    assert Listing(marks=(1, 2)).training_id == Config().training_id


@pytest.mark.filterwarnings("error::UserWarning")  # of Optuna, for what it cannot store
def test_a_search_chooses_among_lists(tmp_path, monkeypatch):
    monkeypatch.setattr("grids.search.Config", Listing)
    lists = {"widths": [(20, 10), (30,), None], "gs_key": ["key"], "runs_dir": [str(tmp_path)]}
    search = Search(lists, 8)
    found = {next(search).widths for _ in range(3)}
    assert found <= {(20, 10), (30,), None}
    assert {config.widths for config in Search(lists, 8)} >= found  # as another process reads the study
