"""Reviews of versions on record: the report card with its verdict, its sign-offs and where it came from."""

from __future__ import annotations

import json
from typing import NoReturn, TypeVar

from cltrain.evaluate import headline
from cltrain.records import Json, Observation, ReportCard, Round, Verdict, to_json
from cltrain.registry import Registry, RoundLog, VersionRecord
from cltrain.registry.rounds import DONE
from cltrain.storage import Storage
from cltrain.tracking.card import render
from cltrain.tracking.review import (
    TRAINED,
    Review,
    about_seen,
    about_window,
    document,
    fate_of,
    level_of,
    named,
    transfer_of,
)

T = TypeVar("T")


def review_of(registry: Registry, version: str) -> Review:
    """The review of a version, by number or alias. Raises `StoreError` that names the versions there are."""
    found = registry.version(version)
    chain = registry.lineage(found.version)[::-1]
    cards = {v.version: registry.card(v.version) for v in chain}
    made_in = on_file(registry, found, DONE, Round)
    seen = made_in.observation if made_in else on_file(registry, found, "observe", Observation)
    approval = registry.approval(found.version)
    return _review(
        registry,
        found,
        found.compared_to,
        cards[found.version],
        found.verdict,
        fate=fate_of(made_in, found.version, found.verdict.accepted) if made_in else None,
        data=(about_window(made_in.index, made_in.window, made_in.observation) if made_in else {})
        | (about_seen(seen) if seen else {})
        | _data(found),
        transfer=transfer_of([(v.version, cards[v.version].transfer) for v in chain]),
        lineage=named([(v.version, v.kind) for v in chain]),
        ancestors=len(chain) - 1,
        approval=None if approval is None else to_json(approval) | {"missing": approval.missing},
    )


def review_of_evaluation(
    registry: Registry, version: str, against: str | None, card: ReportCard, verdict: Verdict
) -> Review:
    """The review of a card that `jobs.evaluate` made of a version on record."""
    found = registry.version(version)
    chain = registry.lineage(found.version)[::-1]
    return _review(
        registry,
        found,
        against,
        card,
        verdict,
        data=_data(found),
        lineage=named([(v.version, v.kind) for v in chain]),
        ancestors=len(chain) - 1,
    )


def write_card(review: Review, folder: str) -> None:
    """`card.html`, which needs nothing else, and `card.json` in a folder."""
    storage = Storage(folder)
    storage.write("card.html", render(review).encode())
    storage.write("card.json", json.dumps(document(review), ensure_ascii=False, allow_nan=False).encode())


def _review(
    registry: Registry, v: VersionRecord, compared_to: str | None, card: ReportCard, verdict: Verdict, **more: object
) -> Review:
    settings = registry.settings(v.version)
    task = task_of(settings, card)
    return Review(
        notes=tuple(registry.notes(v.version)),
        model=registry.model,
        version=v.version,
        task=task,
        metric=headline(task),
        kind=v.kind,
        parent=v.parent,
        compared_to=compared_to,
        verdict=verdict,
        card=card,
        level=level_of(settings),
        reason=v.reason,
        training={"rows": v.challenger.snapshot.rows, "seed": v.seed}
        | {
            name: value for name in (*TRAINED, "parameters") if (value := getattr(v.challenger, name, None)) is not None
        },
        provenance={
            "created": v.created_at.strftime("%Y-%m-%d %H:%M:%S UTC"),
            "code": v.code_commit,
            "weights": v.weights_digest,
            "settings": v.settings_digest,
            "aliases": ", ".join(v.aliases),
            "stage": v.stage,
            "served": "; ".join(f"{_at(t['start'])} to {_at(t['end'])}" for t in registry.served(v.version)),
            "depends on": ", ".join(v.depends_on),
            "packages": registry.packages(v.version),
        },
        **more,  # type: ignore[arg-type]
    )


def task_of(settings: Json, card: ReportCard) -> str:
    """The task of the settings; where they do not say it, what the card's metrics are of."""
    if named_task := (settings.get("data") or {}).get("task"):
        return str(named_task)
    metrics = card.comparisons[0].challenger if card.comparisons else {}
    return "regression" if "rmse" in metrics else "binary" if "auc" in metrics else "multiclass"


def _at(instant: str | None) -> str:
    return instant[:16].replace("T", " ") if instant else "now"


def _data(v: VersionRecord) -> Json:
    c = v.challenger
    return {
        "rows": c.snapshot.rows,
        "late_rows": c.snapshot.late_rows,
        "trained_until": c.cursor.until.isoformat(),
        "snapshot": v.snapshot_digest,
    }


def on_file(registry: Registry, v: VersionRecord, stage: str, kind: type[T]) -> T | None:
    """The record of a stage of the round that made a version, None where it has not come so far."""
    try:
        return RoundLog(registry.store, registry.model).once(v.round_index, stage, kind, _missing)
    except LookupError:
        return None


def _missing() -> NoReturn:
    raise LookupError
