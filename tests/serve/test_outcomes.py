"""Outcomes from logs: weights, and what is read as the logs grow."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import astuple
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cltrain.online.ab import conclude
from cltrain.online.moments import Moments
from cltrain.storage import Storage
from serve.logs.feedback import FOLDER as FEEDBACK
from serve.logs.feedback import join_feedback, read_feedback
from serve.logs.prediction_log import FOLDER, SHADOW_FOLDER, read_predictions
from serve.logs.strata import Strata, drawn
from serve.rollout.experiments import ABTest, tally_of
from serve.rollout.joined import Places
from serve.rollout.outcomes import OutcomeReader, Outcomes, read_outcomes
from tests.serve.logs import ABOUT, NUMBERS, START, answer, label, write


class Row:
    """What `Strata` asks of a logged row."""

    def __init__(self, unit: str, arm: str, prediction: float = 0.5) -> None:
        self.request_id, self.unit_id, self.arm, self.prediction = f"q{next(NUMBERS)}", unit, arm, prediction


def reference(storage: Storage, *, kind: str = "ab", reward_type: str = "implicit", **_: Any) -> dict[Any, Any]:
    """Unit by unit in plain Python over the whole logs: (exposed, sum, weight) by epoch, arm and metric."""
    feedback = read_feedback(storage)
    rewards = pc.equal(feedback["type"], reward_type)
    found: dict[Any, Any] = {}
    for metric, labels in (("loss", feedback.filter(pc.invert(rewards))), ("reward", feedback.filter(rewards))):
        for row in join_feedback(read_predictions(storage, "m"), labels).to_pylist():
            if row["time"] < START:
                continue
            epoch, arm = row["epoch"], row["arm"]
            if kind == "swap":
                epoch, arm = 0, "challenger" if row["version"] == "1.1" else "champion"
            units = found.setdefault((epoch, arm), {}).setdefault(row["unit_id"] or row["request_id"], {})
            units.setdefault("seen", True)
            if row["label_value"] is None:
                continue
            value = row["label_value"]
            if metric == "loss":
                p = row["prediction"] if value == 1 else 1 - row["prediction"]
                value = -math.log(min(max(p, 1e-7), 1.0))
            sums = units.setdefault(metric, [0.0, 0.0, math.inf])
            sums[0] += row["weight"] * value
            sums[1] += row["weight"]
            sums[2] = min(sums[2], row["weight"])
    return found


def check(found: Outcomes, storage: Storage, **about: Any) -> None:
    wanted = reference(storage, **about)
    epochs = sorted({epoch for epoch, _ in wanted})
    assert len(found.periods) == len(epochs)
    for epoch, period in zip(epochs, found.periods, strict=True):
        for arm in ("champion", "challenger"):
            units = wanted.get((epoch, arm), {}).values()
            assert period.exposed[arm] == len(units)
            for metric, place in (("loss", 1), ("reward", 2)):
                sums = [unit[metric] for unit in units if metric in unit]
                moments = period.moments[arm].get(metric, Moments())
                assert moments.n == len(sums)
                if sums:
                    ratio = sum(s[0] for s in sums) / sum(s[place] for s in sums)
                    mean = sum(s[place] for s in sums) / len(sums)
                    assert moments.y == pytest.approx(ratio, abs=1e-9)
                    assert moments.yy == pytest.approx(
                        sum(((s[0] - ratio * s[place]) / mean) ** 2 for s in sums), abs=1e-6
                    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.sampled_from(["ab", "swap"]))
def test_what_is_read_bit_by_bit_is_what_is_read_at_once(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, kind: str
) -> None:
    """Answers, labels, corrections and rewards, by request and by event, early and late, over segments that grow."""
    storage = Storage(tmp_path_factory.mktemp("logs"))
    reader = OutcomeReader(storage, "m", **{**ABOUT, "kind": kind})
    known: list[dict[str, Any]] = []
    for _ in range(data.draw(st.integers(1, 6))):
        rows = []
        for _ in range(data.draw(st.integers(0, 6))):
            before = data.draw(st.integers(0, 9)) == 0
            rows.append(
                answer(
                    data.draw(st.sampled_from(["a", "b", "c", None])),
                    data.draw(st.sampled_from(["champion", "challenger"])),
                    epoch=data.draw(st.sampled_from([3, 4])),
                    prediction=data.draw(st.sampled_from([0.1, 0.5, 0.9])),
                    event_id=data.draw(st.sampled_from(["x", "y", None])),
                    time=START + timedelta(seconds=-1 if before else 1),
                    model="other" if data.draw(st.integers(0, 9)) == 0 else "m",
                )
            )
        known += rows
        labels = []
        for _ in range(data.draw(st.integers(0, 6)) if known else 0):
            row = data.draw(st.sampled_from(known))
            by_event = row["event_id"] is not None and data.draw(st.booleans())
            later = START + timedelta(hours=data.draw(st.integers(0, 3)))
            labels.append(
                label(
                    row,
                    data.draw(st.sampled_from([0.0, 1.0, math.nan])),
                    data.draw(st.sampled_from(["system", "implicit"])),
                    label_time=later,
                    **({"request_id": None, "event_id": row["event_id"]} if by_event else {}),
                )
            )
        for one in labels:
            if math.isnan(one["label_value"]):
                one.update(label="none", label_value=None)
        parts = [(FOLDER, rows), (FEEDBACK, labels)]
        for folder, some in parts if data.draw(st.booleans()) else parts[::-1]:
            if some:
                write(storage, folder, some, data.draw(st.sampled_from(["one", "two"])))
            if data.draw(st.booleans()):
                reader.read()
        found = reader.read()
        check(found, storage, kind=kind)
        assert found is reader.read(), "nothing is new"
        at_once = read_outcomes(storage, "m", **{**ABOUT, "kind": kind})
        assert [p.exposed for p in at_once.periods] == [p.exposed for p in found.periods]


def test_rows_beyond_the_capacity_count_as_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    storage, small, large = Storage(tmp_path), 40, 10_000
    readers = [OutcomeReader(storage, "m", **ABOUT, capacity_rows=n) for n in (small, large)]
    rng = np.random.default_rng(0)
    for _ in range(20):
        arms = rng.choice(["champion", "challenger"], 20)
        rows = [answer(f"u{rng.integers(8)}", str(arm), prediction=float(rng.uniform(0.1, 0.9))) for arm in arms]
        labels = [label(row, float(rng.integers(2)), ("system", "implicit")[rng.integers(2)]) for row in rows]
        write(storage, FEEDBACK, labels)
        write(storage, FOLDER, rows)
        one, other = (reader.read() for reader in readers)
    late = OutcomeReader(storage, "m", **ABOUT, capacity_rows=4 * small).read()
    assert [p.exposed for p in late.periods] == [p.exposed for p in other.periods]
    assert vars(late.contrast("loss")) == pytest.approx(vars(other.contrast("loss"))), "a restart: all of it waits"
    assert len(readers[0]._live.rows) <= small
    assert len(readers[0]._live.labels) <= small
    assert caplog.text.count("lower serve.log.rate") == 2
    for a, b in zip(one.periods, other.periods, strict=True):
        assert a.exposed == b.exposed
        for arm, metric in itertools.product(a.moments, ("loss", "reward")):
            assert astuple(a.moments[arm][metric]) == pytest.approx(astuple(b.moments[arm][metric]))


def test_a_read_that_takes_long_goes_on_the_next_time(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    for _ in range(3):
        rows = [answer("a"), answer("b", "challenger")]
        write(storage, FOLDER, rows)
        write(storage, FEEDBACK, [label(row, 1.0) for row in rows])
    reader = OutcomeReader(storage, "m", **ABOUT, budget_s=0.0)
    found = [reader.read() for _ in range(8)]
    assert found[0] == Outcomes()
    check(found[-1], storage)


def simulated(
    storage: Storage, seed: int, better: float, rates: dict[str, float], units: int = 4_000
) -> Iterator[tuple[str, float]]:
    """An A/B test of units with different habits, logged at these rates. Yields the true mean losses."""
    rng = np.random.default_rng(seed)
    strata, rows, labels = Strata(0.1, rates), [], []
    truth: dict[str, list[float]] = {"champion": [], "challenger": []}
    for number in range(units):
        unit, arm = f"{seed}-{number}", ("champion", "challenger")[rng.integers(2)]
        habit = rng.beta(4, 4)
        for _ in range(rng.integers(1, 5)):
            p = float(np.clip(habit + (better if arm == "challenger" else 0.0), 0.02, 0.98))
            truth[arm].append(-math.log(p))
            row = Row(unit, arm, p)
            chance = strata.chance(row)
            if drawn(row, chance):
                rows.append(answer(unit, arm, prediction=p, weight=1 / chance))
                labels += [label(rows[-1], 1.0), label(rows[-1], p, "implicit")]
    write(storage, FOLDER, rows)
    write(storage, FEEDBACK, labels)
    yield from ((arm, float(np.mean(values))) for arm, values in truth.items())


@pytest.mark.parametrize("better", [0.0, 0.1])
def test_arms_that_are_logged_at_different_rates_compare_as_they_are(tmp_path: Path, better: float) -> None:
    """The champion at one in ten, but for what it is least sure of, the challenger always: 30 tests."""
    kind, rates = ABTest(), {"arm is challenger": 1.0, "score below 0.4": 0.5}
    z, ratio, rewards = [], [], []
    for seed in range(30):
        storage = Storage(tmp_path / str(seed))
        truth = dict(simulated(storage, seed, better, rates, units=2_000))
        found = read_outcomes(storage, "m", **ABOUT)
        loss, reward = found.contrast("loss"), found.contrast("reward")
        assert loss is not None
        assert reward is not None
        z.append((loss.difference - (truth["challenger"] - truth["champion"])) / loss.error)
        rewards.append(reward.difference / reward.error)
        said = conclude(kind.experiment("s"), tally_of(kind.experiment("s"), found), timedelta(days=2))
        ratio.append(said.sample_ratio_p)
    assert min(ratio) > 0.001, "no false alarm"
    assert abs(np.mean(z)) < 3.5 / 30**0.5, "no bias"
    assert 0.6 < np.std(z) < 1.35, "errors are what they say"
    if better:
        assert loss.difference / loss.error < -5
    else:
        assert abs(np.mean(rewards)) < 3.5 / 30**0.5


def test_a_unit_is_logged_whole_and_units_are_counted_by_the_highest_of_their_rates() -> None:
    strata = Strata(0.2, {"arm is challenger": 0.6})
    units: dict[str, list[float]] = {}
    for number in range(3_000):
        for arm in ("champion", "challenger", "champion"):
            row = Row(f"u{number}", arm)
            if drawn(row, strata.chance(row)):
                units.setdefault(row.unit_id, []).append(1 / strata.chance(row))
    assert {len(rows) for rows in units.values()} == {1, 3}
    assert sum(min(rows) for rows in units.values()) == pytest.approx(3_000, rel=0.05)


def test_a_leak_shows_whatever_the_rates_are(tmp_path: Path) -> None:
    storage, strata = Storage(tmp_path), Strata(0.5, {"arm is challenger": 1.0})
    rng, rows = np.random.default_rng(0), []
    for number in range(16_000):
        arm = "challenger" if rng.random() < 0.45 else "champion"
        if drawn(row := Row(f"u{number}", arm), strata.chance(row)):
            rows.append(answer(row.unit_id, arm, weight=1 / strata.chance(row)))
    write(storage, FOLDER, rows)
    experiment = ABTest().experiment("s")
    found = conclude(experiment, tally_of(experiment, read_outcomes(storage, "m", **ABOUT)), timedelta(days=2))
    assert found.sample_ratio_p < 0.001


def test_pairs_of_a_shadow_count_by_unit(tmp_path: Path) -> None:
    """Each unit's rows are alike, so that rows would say that the difference is surer than it is."""
    storage, rng = Storage(tmp_path), np.random.default_rng(0)
    live, copies, labels = [], [], []
    for unit in range(200):
        effect = rng.normal(0, 0.1)
        for _ in range(10):
            row = answer(f"u{unit}", prediction=0.5)
            live.append(row)
            copies.append({**row, "version": "1.1", "arm": "shadow", "prediction": 0.5 + float(effect), "weight": 2.0})
            labels.append(label(row, 1.0))
    write(storage, FOLDER, live)
    write(storage, SHADOW_FOLDER, [*copies, {**copies[0], "version": "1.0"}])
    write(storage, FEEDBACK, labels)
    about = {**ABOUT, "kind": "shadow"}
    found = read_outcomes(storage, "m", **about).contrast("loss")
    assert found is not None
    difference = [-math.log(c["prediction"] / 0.5) for c in copies[::10]]
    assert (found.n, found.level) == (200, pytest.approx(-math.log(0.5)))
    assert found.difference == pytest.approx(np.mean(difference))
    assert found.error == pytest.approx(np.std(difference, ddof=1) / 200**0.5, rel=1e-6)
    small = OutcomeReader(storage, "m", **about, capacity_rows=500)
    assert small.read().contrast("loss") is not None, "labels come last, so that little is left"
    assert len(small._live.rows) <= 500


def test_pairs_that_are_settled_stay(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    readers = [OutcomeReader(storage, "m", **{**ABOUT, "kind": "shadow"}, capacity_rows=n) for n in (60, 10_000)]
    for number in range(10):
        live = [answer(f"u{i % 7}", prediction=0.5) for i in range(20)]
        write(storage, FEEDBACK, [label(row, 1.0) for row in live])
        write(storage, SHADOW_FOLDER, [{**row, "version": "1.1", "prediction": 0.4 + 0.01 * number} for row in live])
        write(storage, FOLDER, live)
        one, other = (reader.read() for reader in readers)
    assert len(readers[0]._live.rows) <= 60
    assert len(readers[0]._shadow.rows) <= 80
    assert astuple(one.paired) == pytest.approx(astuple(other.paired))


@given(st.lists(st.lists(st.integers(-3, 3), max_size=20), max_size=12), st.lists(st.integers(-4, 4), max_size=10))
def test_places_are_all_that_were_added(parts: list[list[int]], asked: list[int]) -> None:
    places = Places()
    for part in parts:
        places.add(np.array(part, np.int64))
    whole = [key for part in parts for key in part]
    found = sorted(zip(*(side.tolist() for side in places.find(np.array(asked, np.int64))), strict=True))
    assert found == [(i, j) for i, key in enumerate(asked) for j, other in enumerate(whole) if key == other != 0]


def test_answers_from_before_the_split_are_no_part_of_an_ab_test(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    staging = [answer(f"s{i}", epoch=2, propensity=1.0) for i in range(400)]
    split = [answer(f"u{i}", ("champion", "challenger")[i % 2]) for i in range(40)]
    write(storage, FOLDER, staging + split)
    (period,) = read_outcomes(storage, "m", **ABOUT).periods
    assert period.exposed == {"champion": 20, "challenger": 20}
    assert len(read_outcomes(storage, "m", **{**ABOUT, "kind": "canary"}).periods) == 2


def test_classes_of_a_multiclass_model_are_compared_by_name(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    rows = [
        answer(f"u{i}", ("champion", "challenger")[i % 2], label_answer=c, prediction=0.8) for i, c in enumerate("0212")
    ]
    write(storage, FOLDER, rows)
    write(storage, FEEDBACK, [label(row, float(row["label_answer"])) for row in rows[:3]] + [label(rows[3], 1.0)])
    (period,) = read_outcomes(storage, "m", **ABOUT).periods
    assert period.moments["champion"]["loss"].y == pytest.approx(-math.log(0.8))
    assert period.moments["challenger"]["loss"].y == pytest.approx(-(math.log(0.8) + math.log(0.2)) / 2)


def test_a_log_without_weights_counts_each_row_once(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    write(storage, FOLDER, [answer("a", weight=None), answer(None, "challenger", weight=None)])
    (period,) = read_outcomes(storage, "m", **{**ABOUT, "reward_type": None}).periods
    assert period.exposed == {"champion": 1, "challenger": 1}
