"""The checker of what goes with what: which flags count as given, and the sentences."""

from types import SimpleNamespace

import pytest

from experiment.flags import Range
from runtime.errors import UserError
from runtime.rules import Rule, check, excludes, needs

RULES = [
    needs("process_index", "distribute", "processes"),
    needs("trials", "search"),
    *excludes("overwrite", "cluster", reason="as it would begin again"),
    Rule("lr", lambda values: True, lambda values: f"is {len(values.lr)} values"),
]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"process_index": 0}, "--process_index 0 goes with --distribute processes"),  # 0 is given
        ({"process_index": 1, "distribute": "devices"}, "--process_index 1 goes with --distribute processes"),
        ({"trials": 3, "search": None}, "--trials 3 goes with --search"),
        ({"overwrite": True, "cluster": "auto"}, "--overwrite does not go with --cluster, as it would begin again"),
        ({"lr": [0.1, Range(1.0, 2.0)]}, "--lr 0.1 1..2 is 2 values"),
    ],
)
def test_a_rule_that_refuses_a_flag_is_a_sentence(flags, sentence):
    with pytest.raises(UserError) as refused:
        check(RULES, SimpleNamespace(**flags))
    assert str(refused.value) == sentence


def test_flags_that_go_together_are_not_refused():
    check(RULES, SimpleNamespace(process_index=0, distribute="processes", trials=3, search="optuna"))
    check(RULES, SimpleNamespace(overwrite=False, cluster="auto", lr=None))
