"""Damaged and hostile files: a reader returns a valid value or raises its own error. benchmarks/fuzz.py tries more."""

import faulthandler
import json

import pytest
from conftest import FIELDS
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fuzz import TARGETS, accepts

EXAMPLES = 60  # of damage to each file
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
RECORD = ("format", "config", "backend", "versions", "data_sha256", "data_note")  # what stands in a config.json


@pytest.fixture(scope="module", params=TARGETS)
def target(request, tmp_path_factory):
    return TARGETS[request.param](tmp_path_factory.mktemp(request.param))


@st.composite
def damaged(draw, contents):
    """One of these contents with bytes changed, cut out, put in, or taken from another of them."""
    content = draw(st.sampled_from(contents))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        end = start + draw(st.sampled_from([0, 1, 2, 8, 100, len(content)]))
        other = draw(st.sampled_from(contents))
        part = draw(st.binary(max_size=8) | st.just(other[start:end]) | st.just(other[-end:]))
        content = content[:start] + part + content[end:]
    return content


@pytest.fixture(autouse=True)
def ends():
    """Ends the process where a reader hangs, in a library that hears no signal."""
    faulthandler.dump_traceback_later(120, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def test_what_is_valid_is_taken(target):
    assert all(accepts(target, content) for content in target.valid)


def test_what_is_hostile_harms_nobody(target):
    for content in target.hostile:
        accepts(target, content)


def test_damage_is_found_or_does_no_harm(target):
    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
    @given(damaged(target.valid))
    def check(content):
        accepts(target, content)

    check()


@pytest.fixture(scope="module")
def config_target(tmp_path_factory):
    return TARGETS["config"](tmp_path_factory.mktemp("config"))


@settings(max_examples=120, deadline=None, derandomize=True)
@given(st.sampled_from(RECORD), st.dictionaries(st.sampled_from([*FIELDS, "other"]), JSON), JSON)
def test_any_json_for_any_setting_is_taken_or_named(config_target, name, settings, value):
    record = json.loads(config_target.valid[0])
    accepts(config_target, json.dumps(record | {"config": record["config"] | settings}).encode())
    accepts(config_target, json.dumps(record | {name: value}).encode())
