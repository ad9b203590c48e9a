"""What a reviewer of a version reads: its report card, the verdict on it, and where it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from cltrain.evaluate.transfer import Transfer
from cltrain.records import (
    Comparison,
    Json,
    Observation,
    ReportCard,
    Round,
    RunInfo,
    Verdict,
    Window,
    from_json,
    to_json,
)
from cltrain.tracking.history import METRICS, finite, measured, number

Direction = Literal["better", "worse", "unsure", "same"]
NEAREST = 20  # ancestors that are named
TRAINED = (
    "rows",
    "rows_trained",
    "rows_replayed",
    "steps",
    "seconds",
    "absorb_seconds",
    "workers",
    "loss",
    "parameters",
)
SAID = {"window": "new window", "past": "past windows", "golden": "the golden set"}


@dataclass(frozen=True, kw_only=True)
class Review:
    """The JSON beside the page, as `to_json` writes it.

    metric: the one that the task is judged by. level: of each one-sided bound of the card's intervals. reason: why the
    update took place. fate: what became of it, where that is known. data: of the rows it was trained on and of the
    window it was weighed on. training: what the update cost. transfer: `average`, `backward`, `forward` and
    `forgetting` of its line up to it (`cltrain.evaluate.transfer`). lineage: version and kind of the root, its nearest
    ancestors and itself, of which there are `ancestors`. approval: who was asked and who signed. notes: what people
    said of it. provenance: digests,
    seed, code and packages."""

    model: str
    version: str
    task: str
    metric: str
    kind: str
    parent: str | None
    compared_to: str | None
    verdict: Verdict
    card: ReportCard
    level: float = 0.05
    reason: str = ""
    fate: str | None = None
    data: Json = field(default_factory=dict)
    training: Json = field(default_factory=dict)
    transfer: Json = field(default_factory=dict)
    lineage: tuple[Json, ...] = ()
    ancestors: int = 0
    approval: Json | None = None
    notes: tuple[Json, ...] = ()
    provenance: Json = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Change:
    """One metric on one set of rows, challenger against champion; `direction` is better or worse where the interval
    leaves 0 out. name: of the comparison; where: as one reads it. share: the difference as a share of the champion's
    value."""

    name: str
    where: str
    metric: str
    label: str
    rows: int
    challenger: float | None
    champion: float | None
    difference: float
    low: float | None
    high: float | None
    direction: Direction
    found: bool = False

    @property
    def share(self) -> float | None:
        return self.difference / abs(self.champion) if self.champion else None


def of_round(run: RunInfo, last: Round, known: Mapping[str, Json], version: str) -> Review:
    """The review of a version that the round `last` made. known: the entries in `Round.versions` of all versions up to
    it, by name."""
    item = known[version]
    chain = ancestry(known, version)
    return Review(
        model=run.model,
        version=version,
        task=run.task,
        metric=run.metric,
        kind=str(item.get("kind") or "stateful"),
        parent=item.get("parent"),
        compared_to=item.get("compared_to"),
        verdict=Verdict(
            accepted=bool(item.get("accepted")),
            reasons=tuple(item.get("reasons") or ()),
            score=number(item.get("score")),
        ),
        card=card_of(item),
        level=level_of(run.settings),
        reason=last.decision.reason,
        fate=fate_of(last, version, bool(item.get("accepted"))),
        data=about_window(last.index, last.window, last.observation)
        | {"snapshot": item.get("snapshot_digest"), "rows": item.get("rows")},
        training={name: item.get(name) for name in TRAINED if item.get(name) is not None},
        transfer=transfer_of([(name, known[name].get("transfer") or ()) for name in chain]),
        lineage=named([(name, str(known[name].get("kind") or "stateful")) for name in chain]),
        ancestors=len(chain) - 1,
        provenance={
            "run": run.name, "round": last.index, "weights": item.get("weights_digest"),
            "snapshot": item.get("snapshot_digest"),
        },
    )  # fmt: skip


def document(review: Review) -> Json:
    """The JSON of a review; what is not a finite number is null."""
    return finite(to_json(review))


def schema() -> Json:
    """JSON Schema of `document`."""
    from pydantic import TypeAdapter

    return TypeAdapter(Review).json_schema(mode="serialization")


def card_of(item: Mapping[str, Any]) -> ReportCard:
    """The report card in an entry of `Round.versions`."""
    empty: Json = {"comparisons": (), "transfer": (), "latency_ms": 0.0, "size_bytes": 0}
    return from_json(ReportCard, empty | {f.name: item[f.name] for f in fields(ReportCard) if f.name in item})


def level_of(settings: Mapping[str, Any]) -> float:
    evaluate = settings.get("evaluate")
    found = number(evaluate.get("level")) if isinstance(evaluate, Mapping) else None
    return found or 0.05


def about_window(index: int, window: Window, seen: Observation) -> Json:
    """What was seen in the window of a round."""
    return {
        "round": index,
        "window_start": window.start.isoformat(),
        "window_end": window.end.isoformat(),
    } | about_seen(seen)


def about_seen(seen: Observation) -> Json:
    return {
        "trained_until": seen.cursor.until.isoformat(),
        "events": seen.events,
        "labelled": seen.labelled,
        "late_labels": seen.late_labels,
        "held_out": seen.holdout.rows,
        "problems": list(seen.problems),
    }


def fate_of(r: Round, version: str, accepted: bool) -> str:
    if r.roll_out is not None and r.roll_out.version == version:
        return r.roll_out.status
    return "promoted" if r.champion == version else "accepted" if accepted else "rejected"


def ancestry(known: Mapping[str, Json], version: str) -> list[str]:
    """From the root, or from the oldest that is known, down to the version."""
    chain = [version]
    while (parent := known[chain[-1]].get("parent")) in known and parent not in chain:
        chain.append(str(parent))
    return chain[::-1]


def named(chain: Sequence[tuple[str, str]]) -> tuple[Json, ...]:
    """The root and the nearest of a chain."""
    near = chain if len(chain) <= NEAREST + 1 else [chain[0], *chain[-NEAREST:]]
    return tuple({"version": version, "kind": kind} for version, kind in near)


def transfer_of(line: Sequence[tuple[str, Sequence[Json]]]) -> Json:
    """Average, backward and forward transfer and forgetting of the last version of a line."""
    cards = [(name, measured(cells)) for name, cells in line]
    return Transfer.of(cards).summary() if cards and cards[-1][1] else {}


def changes(card: ReportCard) -> list[Change]:
    """All that was compared with the champion: the new window, the past, then slices."""
    return [change for c in (*card.comparisons, *card.slices) for change in of_comparison(c)]


def of_comparison(c: Comparison) -> list[Change]:
    """The loss and every further metric of a comparison that has a champion."""
    if c.champion is None or number(c.difference) is None:
        return []
    loss = next((name for name in ("log_loss", "squared_error") if name in c.challenger), "loss")
    found = [_change(c, loss, {"difference": c.difference, "low": c.low, "high": c.high}, False)]
    for name, of in c.metrics.items():
        if number(of.get("difference")) is not None:
            higher = of.get("higher_is_better", METRICS.get(name, ("", False))[1])
            found.append(_change(c, name, of, bool(higher)))
    return found


def label_of(metric: str) -> str:
    return METRICS.get(metric, (metric.replace("_", " "), None))[0]


def _change(c: Comparison, metric: str, of: Mapping[str, Any], higher: bool) -> Change:
    low, high = number(of.get("low")), number(of.get("high"))
    difference = float(of["difference"])
    return Change(
        name=c.name,
        where=c.where if c.found and c.where else SAID.get(c.name, c.name),
        metric=metric,
        label=label_of(metric),
        rows=c.rows,
        challenger=number(c.challenger.get(metric)),
        champion=number((c.champion or {}).get(metric)),
        difference=difference,
        low=low,
        high=high,
        direction=direction(difference, low, high, higher),
        found=c.found,
    )


def direction(difference: float, low: float | None, high: float | None, higher: bool) -> Direction:
    """
    >>> direction(-0.1, -0.2, -0.01, higher=False), direction(-0.1, -0.2, 0.01, higher=False)
    ('better', 'unsure')
    """
    if difference == 0 and (low or 0) == 0 and (high or 0) == 0:
        return "same"
    if low is None or high is None or low <= 0 <= high:
        return "unsure"
    return "better" if (low > 0) == higher else "worse"


def newest_and_past(cells: Sequence[Json]) -> tuple[list[Json], list[Json]]:
    """Cells of a transfer row on the newest window, and those on the ones before it, that have a loss."""
    known = measured(cells)
    newest = max((c["window"] for c in known), default=None)
    return [c for c in known if c["window"] == newest], [c for c in known if c["window"] != newest]
