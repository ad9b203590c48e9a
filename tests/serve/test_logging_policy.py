"""What of the answers is kept: all, a sample by stratum with weights, or only profiles; and metrics of one's own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cltrain.config import build
from cltrain.errors import ConfigError
from cltrain.registry import Registry, Store
from cltrain.storage import Storage
from serve.logs import profiles
from serve.logs.prediction_log import Prediction, PredictionLog, read_predictions
from serve.logs.profiles import Key, read_profiles, summary
from serve.logs.segments import new_id
from serve.settings import LogSettings, ServerSettings

NOW = datetime(2024, 1, 1, tzinfo=UTC)


def prediction(number: int, version: str = "1.0", **more: Any) -> Prediction:
    features = {"x": number % 10, "country": "NZ" if number % 20 == 0 else "DE", "vip": number % 2 == 0}
    given = Prediction(new_id(), None, NOW, NOW, "m", version, 1, (number % 100) / 100, "1", features, 1000)
    return given._replace(**more)


def logged(root: Path, rows: list[Prediction], **settings: Any) -> list[dict[str, Any]]:
    log = PredictionLog(Storage(root), "r", LogSettings(flush_s=0.01, **settings))
    for start in range(0, len(rows), 50):
        log.log(rows[start : start + 50])
    log.close()
    assert (log.shed, log.lost, log.error) == (0, 0, None)
    return read_predictions(Storage(root)).to_pylist()


def busy(row: Prediction) -> bool:
    """A metric of three lines."""
    return row.features["x"] > 4


def broken(row: Prediction) -> float:
    return float(row.features["nothing"])


def test_strata_have_rates_and_rows_have_weights(tmp_path: Path) -> None:
    rows = [prediction(i, arm="challenger" if i % 5 == 0 else "champion") for i in range(10_000)]
    rates = {
        "arm is challenger": 0.5,
        "features.country is NZ": 1.0,
        "score above 0.985": 1.0,
        "features.vip is true": 0.1,
    }
    found = logged(tmp_path, rows, rate=0.1, rates=rates)
    assert {row["version"] for row in found} == {"1.0"}
    by_weight = {w: sum(row["weight"] == w for row in found) for w in (1.0, 2.0, 10.0)}
    sizes = {1.0: 500 + 100, 2.0: 1500, 10.0: 7900}  # countries and scores do not overlap
    assert sum(by_weight.values()) == len(found)
    assert by_weight[1.0] == sizes[1.0]
    for weight in (2.0, 10.0):
        n, p = sizes[weight], 1 / weight
        assert abs(by_weight[weight] - n * p) < 4 * np.sqrt(n * p * (1 - p))
    estimate = sum(row["weight"] * row["prediction"] for row in found)
    assert estimate == pytest.approx(sum(row.prediction for row in rows), rel=0.15)


def test_full_keeps_all_and_profiles_none(tmp_path: Path) -> None:
    rows = [prediction(i, version=f"1.{i % 2}") for i in range(200)]
    assert len(logged(tmp_path / "full", rows, keep="full", rate=0.1)) == 200
    assert not (tmp_path / "full/profiles").exists()
    assert logged(tmp_path / "none", rows, keep="profiles") == []
    assert not (tmp_path / "none/predictions").exists()
    found = read_profiles(Storage(tmp_path / "none"), "m")
    assert set(found) == {Key("m", int(NOW.timestamp()), f"1.{i}", "champion") for i in (0, 1)}
    both = sum(found.values(), start=next(iter(found.values()))).rows - next(iter(found.values())).rows
    assert both == 200
    even = found[Key("m", int(NOW.timestamp()), "1.0", "champion")]
    assert even.numeric["x"].total == sum(i % 10 for i in range(0, 200, 2))
    assert even.categorical["country"].counts == {"DE": 90, "NZ": 10}
    assert even.categorical["vip"].counts == {"true": 100}
    assert even.numeric["served.prediction"].rows == 100


def test_a_metric_of_three_lines_by_version_and_window(tmp_path: Path) -> None:
    place = f"{__name__}.busy" if __name__.startswith("tests.") else "tests.serve.test_logging_policy.busy"
    rows = [prediction(i, version="1.0" if i < 100 else "1.1") for i in range(200)]
    rows += [prediction(9, time=NOW + timedelta(seconds=90)) for _ in range(10)]
    metrics = {"busy": place, "broken": place.replace("busy", "broken")}
    log = PredictionLog(Storage(tmp_path), "r", LogSettings(rate=0.0, metrics=metrics, flush_s=0.01))
    log.log(rows)
    log.close()
    assert log.profiles is not None
    assert "KeyError" in (log.profiles.error or "")
    lines = summary(read_profiles(Storage(tmp_path), "m"))
    assert [(line["window"][14:16], line["version"], line["rows"]) for line in lines] == [
        ("00", "1.0", 100),
        ("00", "1.1", 100),
        ("01", "1.0", 10),
    ]
    assert lines[0]["metrics"]["busy"] == {"mean": 0.5, "deviation": 0.5, "n": 100}
    assert lines[2]["metrics"]["busy"]["mean"] == 1.0
    assert "broken" not in lines[0]["metrics"]


def test_replicas_add_up_and_windows_that_are_over_are_let_go(tmp_path: Path) -> None:
    for replica in ("a", "b"):
        kept = profiles.Profiles(Storage(tmp_path), replica, "1m", {})
        for minute in range(5):
            kept.add([prediction(1, time=NOW + timedelta(minutes=minute))])
            kept.write(now=True)
        assert len(kept.latest) == 2
    found = read_profiles(Storage(tmp_path), "m", since=NOW + timedelta(minutes=3))
    assert [profile.rows for profile in found.values()] == [2, 2]


def test_old_segments_go(tmp_path: Path) -> None:
    (tmp_path / "predictions").mkdir()
    old, recent = tmp_path / "predictions/old.arrow", tmp_path / "predictions/recent.arrow"
    for path, age_s in ((old, 7200), (recent, 60)):
        path.write_bytes(b"")
        os.utime(path, (time.time() - age_s,) * 2)
    logged(tmp_path, [prediction(1)], retain="1h")
    assert not old.exists()
    assert recent.exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"keep": "some"}, "serve.log.keep"),
        ({"rates": {"arm is a": 1.5}}, "serve.log.rates.arm is a"),
        ({"rates": {"colour is red": 1.0}}, "write a field"),
        ({"rates": {"score below high": 1.0}}, "no number"),
        ({"metrics": {"a": "no.such.function"}}, "serve.log.metrics.a"),
        ({"retain": "long"}, "duration"),
    ],
)
def test_settings_name_what_is_wrong(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LogSettings(**settings)


def test_the_settings_reach_a_replica(settings_of: Callable[..., dict[str, Any]]) -> None:
    given = settings_of(
        "serve.log.keep=profiles",
        "+serve.log.metrics.busy=math.isfinite",
        "serve.log.retain=30d",
        "+serve.log.rates={arm is challenger: 1.0}",
    )
    told = build(given["serve"], "serve").settings(Store(root="."), "m")
    assert ServerSettings.from_json(told).log == LogSettings(
        keep="profiles", rates={"arm is challenger": 1.0}, metrics={"busy": "math.isfinite"}, retain="30d"
    )


def test_a_server_that_keeps_profiles_alone(serve_store: Callable[..., Any], store: Store, registry: Registry) -> None:
    registry.promote("1.0", reason="first")
    client = serve_store(store, log=LogSettings(keep="profiles", flush_s=0.01))
    for _ in range(3):
        client.post("/predict", json={"rows": [{"features": {"distance": 100, "carrier": "UA"}}] * 2})
    client.server.predictions.close()
    (line,) = summary(read_profiles(store.storage, "binary"))
    assert (line["rows"], line["version"], line["metrics"]["served.latency_ms"]["n"]) == (6, "1.0", 6)
    assert read_predictions(store.storage).num_rows == 0
