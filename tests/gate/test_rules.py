"""Each rule passes what it should, refuses what it should, says why, and says what it lacks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cltrain.errors import ConfigError
from cltrain.gate import (
    AllOf,
    AnyOf,
    AtLeast,
    Better,
    Calibrated,
    Flips,
    Forgetting,
    Latency,
    NonInferiority,
    NotWorse,
    Passed,
    Rows,
    Rule,
    Rules,
    Size,
    Unharmed,
    Within,
    choose,
)
from cltrain.gate.compare import rejected
from cltrain.records import Comparison, ReportCard, Verdict
from tests.gate.cards import FIRST, card, comparison, finding

PAST = comparison(name="past")
BAD_SLICE = card(comparison(), slices=(comparison(0.2, 0.01, name="shop == 'a'"), comparison(name="shop == 'b'")))
GOOD_SLICE = card(comparison(), slices=(comparison(name="shop == 'a'"),))

CASES: dict[str, tuple[Rule, ReportCard, ReportCard, str]] = {
    "not worse": (NotWorse(), card(), card(comparison(0.02)), "+0.02 [+0.019, +0.021] on 1000 rows, margin 0.01"),
    "not worse, metric": (
        NotWorse(metric="auc", margin=0.01, relative=False),
        card(comparison(0.01)),
        card(comparison(-0.02)),
        "auc -0.02 [-0.021, -0.019] on 1000 rows, margin 0.01",
    ),
    "not worse on slices": (NotWorse(over="slices"), GOOD_SLICE, BAD_SLICE, "shop == 'a'"),
    "not worse on one slice": (NotWorse(over="shop == 'a'"), GOOD_SLICE, BAD_SLICE, "+0.2"),
    "better": (Better(), card(comparison(-0.1)), card(comparison(0.0)), "must be better by more than 0"),
    "better by": (Better(by=0.1), card(comparison(-0.1)), card(comparison(-0.04)), "more than 0.05"),
    "unharmed": (Unharmed(), GOOD_SLICE, BAD_SLICE, "2 slices share the level of 0.05 (Holm)"),
    "forgetting": (
        Forgetting(metric="auc", most=0.02),
        card(comparison(), PAST),
        card(comparison(), comparison(-0.05, name="past")),
        "may be worse by 0.02",
    ),
    "flips": (
        Flips(most=0.02),
        card(),
        card(comparison(flips={"negative": 0.05, "positive": 0.0})),
        "5.00% of rows of window were right and are wrong now",
    ),
    "within": (
        Within(metric="auc", least=0.7, most=0.9),
        card(),
        card(comparison(-0.2)),
        "auc is window 0.6; it must be at least 0.7",
    ),
    "calibrated": (Calibrated(rise=0.02), card(), card(comparison(challenger={"ece": 0.05})), "was 0.02"),
    "rows": (Rows(least=200), card(), card(comparison(rows=50)), "50 held-out rows on window, at least 200"),
    "latency": (Latency(times=2), card(), card(latency_ms=50.0), "was 20 and may be 2 times that"),
    "absolute latency": (Latency(most_ms=40), card(), card(latency_ms=50.0), "at most 40"),
    "size": (Size(times=2), card(), card(size_bytes=2_000), "was 800"),
    "absolute size": (Size(most_bytes=1_500), card(), card(size_bytes=2_000), "at most 1,500"),
    "passed": (
        Passed(),
        card(findings=(finding(),)),
        card(findings=(finding(), finding(False))),
        "invariance the device fails on 10 of 100 rows, at most 5.0%",
    ),
    "passed kinds": (
        Passed(kinds=("safety",)),
        card(findings=(finding(False), finding(kind="safety"))),
        card(findings=(finding(False, "safety"),)),
        "safety the device",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_rule_passes_and_refuses(name: str) -> None:
    rule, good, bad, why = CASES[name]
    assert rule.check(good).passed
    refused = rule.check(bad)
    assert not refused.passed
    assert why in refused.reason
    verdict = Rules(rules={name: rule}, tie="promote").judge(bad)
    assert not verdict.accepted
    assert verdict.reasons == (f"{name}: refused, {refused.reason}",)


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (NotWorse(metric="f1"), "the card has no f1 of the champion on window: name it in evaluate.metrics"),
        (NotWorse(over="slices"), "name slices in evaluate.slices"),
        (Better(over="shop == 'z'"), "name slices in evaluate.slices"),
        (Better(metric="brier"), "evaluate.metrics"),
        (Unharmed(), "evaluate.slices"),
        (Within(metric="r2", least=0.0), "evaluate.metrics"),
        (Passed(), "checks.tests"),
        (Passed(kinds=("robustness",)), "no test of robustness"),
    ],
)
def test_a_rule_without_its_evidence_refuses_and_says_where_it_comes_from(rule: Rule, says: str) -> None:
    outcome = rule.check(card())
    assert not outcome.passed
    assert says in outcome.reason


def test_evidence_of_another_task() -> None:
    regression = card(comparison(challenger={"rmse": 1.0}, champion={"rmse": 1.0, "squared_error": 1.0}, flips=None))
    assert "binary tasks" in Calibrated().check(regression).reason
    assert not Flips().check(regression).passed


@pytest.mark.parametrize(
    "rule",
    [NotWorse(), NotWorse(over="past"), Better(), Unharmed(), Forgetting(most=0.1), Flips(), Latency(), Size()],
    ids=str,
)
def test_without_a_champion_what_compares_with_it_does_not_apply_and_the_rest_does(rule: Rule) -> None:
    outcome = rule.check(FIRST)
    assert outcome.passed
    assert not outcome.applies
    assert Rules(rules={"x": rule}).judge(FIRST).reasons == ("there is no champion yet",)
    both = Rules(rules={"x": rule, "good enough": Within(metric="auc", least=0.9)})
    assert not both.judge(FIRST).accepted
    assert both.judge(FIRST).reasons == ("good enough: refused, auc is window 0.8; it must be at least 0.9",)


def test_the_past_may_lose_what_is_gained_on_the_new_window() -> None:
    gain = comparison(-0.2, 0.05)
    for difference, half, accepted in ((0.04, 0.01, True), (0.19, 0.04, True), (0.21, 0.02, False)):
        weighed = card(gain, comparison(difference, half, name="past"))
        assert NonInferiority().judge(weighed).accepted is accepted
        assert NonInferiority(exchange=0).judge(weighed).accepted is (difference + half <= 0.05)
    unsure = card(comparison(-0.2, 0.21), comparison(0.1, 0.04, name="past"))
    assert not NonInferiority().judge(unsure).accepted, "it may be that nothing is gained"


def test_nesting() -> None:
    good, bad = NotWorse(), Better()
    assert AnyOf(rules={"a": bad, "b": good}).check(card()).passed
    assert not AllOf(rules={"a": bad, "b": good}).check(card()).passed
    assert AtLeast(count=2, rules={"a": bad, "b": good, "c": Rows()}).check(card()).passed
    nested = AllOf(rules={"any": AnyOf(rules={"a": bad, "b": bad}), "rows": Rows()})
    assert not nested.check(card()).passed
    assert "one of (refused, a:" in nested.check(card()).reason
    only_first = AnyOf(rules={"compared": bad, "auc": Within(metric="auc", least=0.9)})
    assert not only_first.check(FIRST).passed, "what does not apply is no reason to pass"
    assert AnyOf(rules={"compared": bad}).check(FIRST).passed


def test_the_default_gate_lists_every_rule_with_its_finding() -> None:
    weighed = card(comparison(), PAST, slices=GOOD_SLICE.slices, findings=(finding(), finding(kind="labels")))
    verdict = NonInferiority().judge(weighed)
    assert verdict.accepted
    assert [reason.split(":")[0] for reason in verdict.reasons] == ["window", "past", "slices", "tests", "latency"]
    for changed, name in (
        ({"slices": BAD_SLICE.slices}, "slices"),
        ({"findings": (finding(False),)}, "tests"),
        ({"latency_ms": 500.0}, "latency"),
    ):
        refused = NonInferiority().judge(replace(weighed, **changed))
        assert not refused.accepted
        assert [r.split(":")[0] for r in refused.reasons if "refused" in r] == [name]
    assert NonInferiority(max_latency=None).judge(replace(weighed, latency_ms=500.0)).accepted
    assert NonInferiority().judge(replace(weighed, latency_ms=19.0, champion_latency_ms=0.1)).accepted, "noise"


def test_the_first_version_must_pass_its_tests() -> None:
    assert NonInferiority().judge(replace(FIRST, findings=(finding(),))).accepted
    verdict = NonInferiority().judge(replace(FIRST, findings=(finding(False, "safety"),)))
    assert not verdict.accepted
    assert "safety the device" in verdict.reasons[0]


def test_the_card_of_noisy_labels_says_why() -> None:
    noisy = finding(False, "labels", failed=55, bound=0.2)
    assert "the labels of the window look like noise" in NonInferiority().judge(card(findings=(noisy,))).reasons[1]


def test_holm_by_hand() -> None:
    assert rejected([0.01, 0.04, 0.03], 0.05) == [0]
    assert rejected([0.01, 0.02, 0.03], 0.05) == [0, 1, 2]
    assert rejected([], 0.05) == []


@given(st.lists(st.floats(0, 1), max_size=30))
def test_holm_rejects_no_more_than_unadjusted_and_no_less_than_bonferroni(p_values: list[float]) -> None:
    found = set(rejected(p_values, 0.05))
    assert {i for i, p in enumerate(p_values) if p <= 0.05 / len(p_values)} <= found
    assert found <= {i for i, p in enumerate(p_values) if p <= 0.05}


def test_many_slices_of_an_equal_challenger_share_the_level() -> None:
    generator, refused = np.random.default_rng(0), 0
    for _ in range(400):
        slices = tuple(
            comparison(float(generator.normal()) * 0.1, 0.1 * 1.645, name=str(i), rows=100) for i in range(20)
        )
        refused += not Unharmed(margin=0.0, floor=0.0).check(card(comparison(), slices=slices)).passed
    assert refused / 400 <= 0.05 + 2.6 * (0.05 * 0.95 / 400) ** 0.5


def test_the_best_of_those_that_pass() -> None:
    def verdict(accepted: bool, score: float | None) -> Verdict:
        return Verdict(accepted=accepted, reasons=("x",), score=score)

    cards = [card(), card(size_bytes=10), card()]
    assert choose(cards, [verdict(True, 0.1), verdict(True, -0.1), verdict(False, -1.0)]) == 1
    assert choose(cards, [verdict(True, 0.1), verdict(True, 0.1), verdict(True, 0.2)]) == 1, "the smaller one"
    assert choose(cards, [verdict(True, None), verdict(True, 0.1), verdict(False, None)]) == 0
    assert choose(cards, [verdict(False, 0.1)] * 3) is None
    assert choose([], []) is None


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (NotWorse, {"margin": -1.0}, "gate.margin must be 0 or more"),
        (NotWorse, {"metric": "profit"}, "higher_is_better must be true or false, since profit"),
        (Better, {"by": -1.0}, "gate.by"),
        (Unharmed, {"level": 0.7}, "gate.level must be between"),
        (Unharmed, {"margin": -0.1}, "gate.margin"),
        (Forgetting, {"most": -0.1}, "gate.most"),
        (Flips, {"most": 1.5}, "gate.most must be a share"),
        (Within, {"metric": "auc"}, "gate.least or gate.most"),
        (Within, {"metric": "auc", "least": 1.0, "most": 0.0}, "gate.least must be below"),
        (Calibrated, {"most": 2.0}, "gate.most must be between"),
        (Calibrated, {"rise": None}, "gate.most or gate.rise"),
        (Rows, {"least": 0}, "gate.least"),
        (Latency, {"times": 0.0}, "gate.times must be above 0"),
        (Latency, {"times": None}, "gate.most_ms or gate.times"),
        (Latency, {"ignore_ms": -1.0}, "gate.ignore_ms"),
        (Size, {"times": None}, "gate.most_bytes or gate.times"),
        (Size, {"most_bytes": 0}, "gate.most_bytes"),
        (Rules, {"rules": {}}, "gate.rules must have one rule or more"),
        (Rules, {"rules": {"a": 1}}, "gate.rules.a must be settings with a _target_"),
        (AtLeast, {"count": 2, "rules": {"a": Rows()}}, "gate.count must be between 1 and the number of rules, 1"),
        (NonInferiority, {"exchange": -1.0}, "gate.exchange must be 0 or more"),
        (NonInferiority, {"max_latency": 0.0}, "gate.max_latency"),
        (NonInferiority, {"level": 0.9}, "gate.level"),
    ],
)
def test_ranges(kind: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kind(**settings)


def test_a_metric_of_your_own() -> None:
    given: dict[str, Any] = {
        "challenger": {"profit": 9.0}, "champion": {"profit": 10.0},
        "metrics": {"profit": {"difference": -1.0, "low": -1.2, "high": -0.8}},
    }  # fmt: skip
    weighed = card(Comparison(name="window", rows=500, difference=0.0, low=0.0, high=0.0, **given))
    assert not NotWorse(metric="profit", higher_is_better=True, margin=0.1).check(weighed).passed
    assert NotWorse(metric="profit", higher_is_better=True, margin=0.13).check(weighed).passed
