"""Two versions side by side: the golden answer for two known ones."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from cltrain.clock import to_us
from cltrain.data.encoder import Encoder
from cltrain.data.schema import Columns, Schema
from cltrain.data.snapshot import Rule
from cltrain.diff import diff, distance, shift
from cltrain.errors import StoreError
from cltrain.methods import MethodState
from cltrain.monitor.profile import profile_of
from cltrain.records import Challenger, Comparison, Cursor, ReportCard, Snapshot, Verdict
from cltrain.registry import Registry, Store
from cltrain.reviews import review_of, review_of_evaluation, write_card
from cltrain.storage import write_arrow
from cltrain.tracking.card import render as card_page
from cltrain.tracking.diff import render, sentence, tables
from cltrain.train.state import State, save_state

GOLDEN = Path(__file__).with_name("diff_golden.json")


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """1.0 from scratch and 1.1, which continues it with twice the learning rate on another file."""
    registry = Registry(Store(root=str(tmp_path)), "ranker")
    monkeypatch.setattr("cltrain.registry.registry.code_commit", lambda: "c0ffee")
    for index, torch_version in enumerate(("2.12.0", "2.13.0")):
        monkeypatch.setattr("cltrain.registry.registry.package_versions", lambda v=torch_version: {"torch": v})
        parent = registry.version("1.0") if index else None
        snapshot = Snapshot(digest=f"{index:064x}", role="train", rows=100 - 60 * index, late_rows=3 * index)
        write_manifest(registry, snapshot, index)
        at = datetime(2024, 1, 8 + 7 * index, tzinfo=UTC)
        state = State(
            weights={"head.weight": torch.tensor([3.0, 4.0 + index]), "head.bias": torch.tensor([1.0])},
            optimizer={},
            method=MethodState(),
            encoder=Encoder(task="binary", numeric={}, categorical={}),
            schema=Schema(columns=Columns(event_time="when", label="y", task="binary"), features=()),
            model={},
            cursor=Cursor(until=at, files=()),
            updates=index,
            steps=10,
        )
        registry.register(
            Challenger(
                kind="stateful" if parent else "stateless", state=f"states/{index}",
                parent=parent.state if parent else None, snapshot=snapshot, cursor=Cursor(until=at, files=()),
                weights_digest=save_state(state, registry.store.storage, f"states/{index}"),
                rows_trained=500 - 400 * index, rows_replayed=20 * index, steps=10,
                seconds=2.0 - index, loss=0.5, parameters=3, seed=index,
            ),
            card(index),
            Verdict(accepted=True, reasons=("past: fine",), score=None),
            round_index=index,
            reason="a window ended",
            compared_to=parent.version if parent else None,
            settings={"data": {"task": "binary"}, "train": {"rate": 0.1 * (index + 1)}, "token": str(index)},
        )  # fmt: skip
    return registry


def card(index: int) -> ReportCard:
    cells = [{"window": k, "rows": 50, "loss": 0.5 - 0.1 * index + 0.1 * k, "champion": None} for k in range(index + 1)]
    ours, theirs = {"log_loss": 0.5 - 0.1 * index, "auc": 0.75, "rows": 50}, {"log_loss": 0.5, "auc": 0.75, "rows": 50}
    window = Comparison(name="window", rows=50, challenger=ours)
    if index:
        window = Comparison(
            name="window", rows=50, challenger=ours, champion=theirs, difference=-0.1, low=-0.2, high=-0.05
        )
    of = Comparison(name="shop == 'a'", rows=20, challenger={"log_loss": 0.25, "rows": 20}, where="shop == 'a'")
    measured = {"latency_ms": 0.5, "size_bytes": 12}
    return ReportCard(comparisons=(window,), transfer=tuple(cells), slices=(of,) * index, **measured)


def write_manifest(registry: Registry, snapshot: Snapshot, index: int) -> None:
    names = ("a.parquet", "b.parquet") if index else ("a.parquet",)
    rule = Rule(role="train", split="train", until=to_us(datetime(2024, 1, 8 + 7 * index, tzinfo=UTC)))
    registry.store.storage.write_json(f"snapshots/{snapshot.digest}.json", {
        "rule": dataclasses.asdict(rule),
        "files": [{"name": n, "digest": n * (1 + index * (n == "a.parquet")), "rows": 50} for n in names],
        "features": [{"name": "x", "kind": "numeric"}, *([{"name": "shop", "kind": "categorical"}] * index)],
    })  # fmt: skip


def test_two_known_versions_give_the_golden_answer(registry: Registry) -> None:
    found = diff(registry, "1.0", "1.1")
    for side in ("first", "second"):
        datetime.fromisoformat(found[side].pop("created_at"))
        assert len(found[side].pop("weights_digest")) == 64
        assert len(found[side].pop("settings_digest")) == 64
    assert rounded(found) == json.loads(GOLDEN.read_text())


def test_what_it_says(registry: Registry) -> None:
    found = diff(registry, "1.0", "1.1")
    assert sentence(found) == (
        "1.1 continues 1.0 by 1 update. "
        "On the 50 held-out rows that both were weighed on, the loss of 1.1 is 0.1000 lower than that of 1.0."
    )
    of = {title: rows for title, _, rows in tables(found)}
    assert of["settings"] == [("train.rate", "0.1", "0.2")]
    assert ("rows trained", "500", "100", "0.20×") in of["cost"]
    assert ("until", "2024-01-08 00:00", "2024-01-15 00:00") in of["which rows"]
    assert of["features"] == [("shop", "–", "categorical")]
    assert of["code and packages"] == [("torch", "2.12.0", "2.13.0")]
    assert of["weights"][0] == ("all", "", "19.6 %")
    page = render(found)
    for _, _, rows in tables(found):
        assert all(cell.replace("'", "&#39;") in page for cell in rows[0])


def test_a_version_and_itself_do_not_differ(registry: Registry) -> None:
    found = diff(registry, "1.1", "1.1")
    assert (found["settings"], found["packages"], found["weights"]["distance"]) == ([], [], 0.0)
    assert found["data"]["same"]
    assert sentence(found) == "Both are 1.1."


def test_what_is_gone_is_said(registry: Registry) -> None:
    storage = registry.store.storage
    storage.delete("states/0/state.json")
    storage.delete(f"snapshots/{0:064x}.json")
    found = diff(registry, "1.0", "1.1")
    assert "states/0" in found["weights"]["missing"]
    assert found["data"]["files"] is None
    assert "cannot be told" in render(found)
    with pytest.raises(StoreError, match=r"has no version '9.9'; it has: 1.0, 1.1"):
        diff(registry, "1.0", "9.9")


def test_how_far_the_data_moved_is_told_where_its_rows_are_there(registry: Registry, tmp_path: Path) -> None:
    for index, values in enumerate(([0.0, 2.0], [3.0, 3.0])):
        (tmp_path / "cache").mkdir(exist_ok=True)
        write_arrow(tmp_path / "cache" / f"{index:064x}.arrow", pa.table({"x": values, "shop": ["a", "ab"[index]]}))
    assert diff(registry, "1.0", "1.1")["data"]["shift"] == [
        {"feature": "x", "kind": "mean", "distance": 2.0},
        {"feature": "shop", "kind": "share", "distance": 0.5},
    ]
    same = profile_of(pa.table({"x": [1.0, 2.0]}))
    assert shift(same, same) == [{"feature": "x", "kind": "mean", "distance": 0.0}]


def test_distance_of_weights_by_hand() -> None:
    first = {"a": torch.tensor([3.0, 4.0]), "b": torch.ones(2), "gone": torch.ones(1), "count": torch.tensor([1])}
    second = {
        "a": torch.tensor([3.0, 4.0]),
        "b": torch.tensor([1.0, 2.0]),
        "c": torch.ones(3),
        "count": torch.tensor([1]),
    }
    found = distance(first, second)
    assert found["distance"] == pytest.approx((1 / 27) ** 0.5)
    assert [(t["name"], t["distance"]) for t in found["tensors"]] == [("b", pytest.approx(0.5**0.5)), ("a", 0.0)]
    assert found["other"] == ["gone", "c"]


def test_a_review_from_the_registry_has_the_line_and_who_signs(registry: Registry) -> None:
    registry.ask("1.1", roles=("owner", "risk"), needed=2)
    registry.approve("1.1", "ann", "looked at it", role="owner")
    registry.note("1.1", "rows of shop b look right", by="bob")
    found = review_of(registry, "1.1")
    assert (found.task, found.metric, found.ancestors, found.fate) == ("binary", "log_loss", 1, None)
    assert [v["version"] for v in found.lineage] == ["1.0", "1.1"]
    assert found.transfer["forgetting"] == pytest.approx(-0.1)
    assert found.approval is not None
    assert (found.approval["state"], found.approval["missing"]) == ("awaiting", "1 of risk")
    assert found.data["late_rows"] == 3
    assert "rows of shop b look right" in card_page(found)
    assert found.provenance["packages"] == {"torch": "2.13.0"}


def test_the_card_of_an_evaluation_is_written_with_the_rival_it_was_held_against(
    registry: Registry, tmp_path: Path
) -> None:
    verdict = Verdict(accepted=False, reasons=("window: refused, it is worse",))
    write_card(review_of_evaluation(registry, "1.1", "1.0", card(1), verdict), str(tmp_path / "run"))
    found = json.loads((tmp_path / "run" / "card.json").read_text())
    assert (found["version"], found["compared_to"], found["verdict"]["accepted"]) == ("1.1", "1.0", False)
    assert "held against champion 1.0" in (tmp_path / "run" / "card.html").read_text()


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return round(value, 9) if isinstance(value, float) else value
