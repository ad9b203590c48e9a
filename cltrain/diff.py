"""Two versions of a model side by side: metrics, settings, data, code, cost and weights, from what is on record."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
from torch import Tensor

from cltrain.clock import from_us
from cltrain.data.snapshot import cache_name, read_rows
from cltrain.errors import CltrainError
from cltrain.evaluate import headline
from cltrain.monitor.profile import NumericProfile, Profile, profile_of
from cltrain.records import Json, ReportCard, to_json
from cltrain.registry import Registry, VersionRecord
from cltrain.reviews import task_of
from cltrain.storage import Storage
from cltrain.tracking.history import finite, redacted
from cltrain.train.state import load_state

COSTS = ("rows", "rows_trained", "rows_replayed", "steps", "seconds", "absorb_seconds", "parameters", "workers")
RULE_TIMES = ("start", "end", "after", "until")  # of a snapshot's rule, in microseconds
TENSORS = 1_000  # of a model at most, the ones that moved most


def diff(registry: Registry, first: str, second: str) -> Json:
    """What differs between two versions, by number or alias. Numbers go from the `first` to the `second`; what is not
    on record any more is null. Raises `StoreError` for a version that is not there."""
    a, b = registry.version(first), registry.version(second)
    ours, theirs = registry.card(a.version), registry.card(b.version)
    settings = [registry.settings(v.version) for v in (a, b)]
    task = task_of(settings[1], theirs)
    storage = registry.store.storage
    return finite(
        {
            "model": registry.model,
            "task": task,
            "metric": headline(task),
            "first": _about(a),
            "second": _about(b),
            "relation": relation(registry, a, b),
            "direct": direct(a, b, ours, theirs),
            "same_rows": same_rows(ours, theirs),
            "metrics": metrics(ours, theirs),
            "settings": changed(*(dict(leaves(redacted(s))) for s in settings)),
            "data": data(storage, a, b),
            "code": {"first": a.code_commit, "second": b.code_commit, "same": a.code_commit == b.code_commit},
            "packages": changed(registry.packages(a.version), registry.packages(b.version)),
            "cost": cost(a, b, ours, theirs),
            "weights": weights(storage, a, b),
        }
    )


def relation(registry: Registry, a: VersionRecord, b: VersionRecord) -> Json:
    """The nearest version that both come from, and how many updates lie between; null where they share none."""
    chains = [[v.version for v in registry.lineage(name)] for name in (a.version, b.version)]
    shared = next((name for name in chains[0] if name in chains[1]), None)
    steps = [None, None] if shared is None else [chain.index(shared) for chain in chains]
    return {"ancestor": shared, "first_updates": steps[0], "second_updates": steps[1]}


def direct(a: VersionRecord, b: VersionRecord, ours: ReportCard, theirs: ReportCard) -> Json | None:
    """Where one was weighed against the other: its comparisons, of which a difference is `challenger` − `champion`."""
    for challenger, champion, card in ((b, a, theirs), (a, b, ours)):
        if challenger.compared_to == champion.version:
            found = [c for c in (*card.comparisons, *card.slices) if c.champion is not None]
            return {
                "challenger": challenger.version,
                "champion": champion.version,
                "comparisons": [to_json(c) for c in found],
            }
    return None


def same_rows(ours: ReportCard, theirs: ReportCard) -> list[Json]:
    """Mean loss on the windows of which both were weighed on the same number of held-out rows, so on the same ones."""
    first = {c["window"]: c for c in ours.transfer}
    return [
        {
            "window": c["window"],
            "rows": c["rows"],
            "first": first[c["window"]]["loss"],
            "second": c["loss"],
            "difference": c["loss"] - first[c["window"]]["loss"],
        }
        for c in theirs.transfer
        if c["window"] in first and first[c["window"]]["rows"] == c["rows"]
    ]


def metrics(ours: ReportCard, theirs: ReportCard) -> list[Json]:
    """Every metric of each comparison and slice, as its own card has it: of rows of the time when each was made."""
    sides = [{c.name: c for c in (*card.comparisons, *card.slices)} for card in (ours, theirs)]
    found = []
    for on in dict.fromkeys((*sides[0], *sides[1])):
        values = [side[on].challenger if on in side else {} for side in sides]
        for metric in dict.fromkeys((*values[0], *values[1])):
            if metric != "rows":
                pair = [v.get(metric) for v in values]
                found.append({
                    "on": on, "metric": metric, "first": pair[0], "second": pair[1], "difference": _minus(*pair),
                    "first_rows": values[0].get("rows"), "second_rows": values[1].get("rows"),
                })  # fmt: skip
    return found


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """
    >>> dict(leaves({"train": {"epochs": 2}, "names": [1, 2], "none": {}}))
    {'train.epochs': 2, 'names': [1, 2], 'none': {}}
    """
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from leaves(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def changed(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Json]:
    """What is not the same on both sides, by its key; null where a side does not have it.

    >>> changed({"a": 1, "b": 2}, {"a": 1, "b": 3})
    [{'key': 'b', 'first': 2, 'second': 3}]
    """
    keys = dict.fromkeys((*first, *second))
    return [
        {"key": key, "first": first.get(key), "second": second.get(key)}
        for key in keys
        if first.get(key) != second.get(key) or (key in first) != (key in second)
    ]


def data(storage: Storage, a: VersionRecord, b: VersionRecord) -> Json:
    """Their snapshots: rows, rule, files and features, and how far columns moved where the decoded rows are there."""
    before, after = (_manifest(storage, v.snapshot_digest) for v in (a, b))
    found: Json = {
        side: {
            "snapshot": v.snapshot_digest,
            "rows": v.challenger.snapshot.rows,
            "late_rows": v.challenger.snapshot.late_rows,
            "trained_until": v.challenger.cursor.until.isoformat(),
        }
        for side, v in (("first", a), ("second", b))
    } | {"same": a.snapshot_digest == b.snapshot_digest}
    if before is None or after is None:
        return found | {"rule": None, "files": None, "features": None, "shift": None}
    files = [{f["name"]: f["digest"] for f in side["files"]} for side in (before, after)]
    features = [{f["name"]: f["kind"] for f in side["features"]} for side in (before, after)]
    rules = [{k: _said(k, v) for k, v in side["rule"].items() if k != "seen"} for side in (before, after)]
    return found | {
        "rule": changed(*rules),
        "files": {
            "added": sorted(files[1].keys() - files[0].keys()),
            "removed": sorted(files[0].keys() - files[1].keys()),
            "altered": sorted(n for n in files[0].keys() & files[1].keys() if files[0][n] != files[1][n]),
            "same": sum(files[0][n] == files[1][n] for n in files[0].keys() & files[1].keys()),
        },
        "features": changed(*features),
        "shift": _shift(storage, a, b),
    }


def shift(first: Profile, second: Profile) -> list[Json]:
    """How far each feature of both moved, the furthest first: of a number by how many standard deviations (of the
    first) its mean did, of a category what share of the rows would have to change theirs (total variation)."""
    found: list[Json] = []
    for name in first.numeric.keys() & second.numeric.keys():
        means = [_mean(p.numeric[name]) for p in (first, second)]
        std = _std(first.numeric[name])
        if means[0] is not None and means[1] is not None and std:
            found.append({"feature": name, "kind": "mean", "distance": abs(means[1] - means[0]) / std})
    for name in first.categorical.keys() & second.categorical.keys():
        counts = [p.categorical[name].counts for p in (first, second)]
        totals = [sum(c.values()) for c in counts]
        if all(totals):
            shares = [{k: n / total for k, n in c.items()} for c, total in zip(counts, totals, strict=True)]
            apart = sum(abs(shares[0].get(k, 0.0) - shares[1].get(k, 0.0)) for k in {**shares[0], **shares[1]})
            found.append({"feature": name, "kind": "share", "distance": apart / 2})
    return sorted(found, key=lambda f: (-f["distance"], f["feature"]))


def cost(a: VersionRecord, b: VersionRecord, ours: ReportCard, theirs: ReportCard) -> list[Json]:
    """What each took to make, and what it takes to answer."""
    sides = [_costs(v, card) for v, card in ((a, ours), (b, theirs))]
    return [
        {
            "name": name,
            "first": sides[0][name],
            "second": sides[1][name],
            "ratio": _ratio(sides[0][name], sides[1][name]),
        }
        for name in sides[0]
    ]


def weights(storage: Storage, a: VersionRecord, b: VersionRecord) -> Json:
    """How far the weights lie apart; without tensors where a state is not there any more, and why."""
    same = a.weights_digest == b.weights_digest
    empty: Json = {"same": same, "distance": None, "tensors": [], "other": [], "missing": None}
    try:
        states = [load_state(storage, v.state, only_weights=True).served_weights for v in (a, b)]
    except CltrainError as error:
        return empty | {"missing": str(error)}
    return empty | distance(*states)


def distance(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Json:
    """‖second − first‖ / ‖first‖ (L2), of all tensors together and of each, the furthest first. other: names of those
    that only one of them has, or in another shape."""
    both = [n for n, t in first.items() if n in second and t.shape == second[n].shape and t.is_floating_point()]
    squares = {n: (_squares(second[n].double() - first[n].double()), _squares(first[n].double())) for n in both}
    apart = {n: _root(*squares[n]) for n in both}
    order = sorted(both, key=lambda n: -math.inf if apart[n] is None else -(apart[n] or 0.0))
    tensors = [{"name": n, "shape": list(first[n].shape), "distance": apart[n]} for n in order]
    other = [n for n in dict.fromkeys((*first, *second)) if n not in both and not _equal(first.get(n), second.get(n))]
    total = [sum(pair[i] for pair in squares.values()) for i in (0, 1)]
    return {"distance": _root(*total) if both else None, "tensors": tensors[:TENSORS], "other": other}


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and a.shape == b.shape and bool((a == b).all())


def _squares(tensor: Tensor) -> float:
    return float(tensor.square().sum())


def _root(moved: float, base: float) -> float | None:
    return math.sqrt(moved / base) if base else (0.0 if not moved else None)


def _about(v: VersionRecord) -> Json:
    kept = ("version", "kind", "parent", "compared_to", "round_index", "reason", "weights_digest", "settings_digest")
    return {name: getattr(v, name) for name in kept} | {
        "created_at": v.created_at.isoformat(),
        "verdict": v.judged,
        "aliases": list(v.aliases),
        "stage": v.stage,
        "approval": v.approval,
        "tags": v.tags,
    }


def _costs(v: VersionRecord, card: ReportCard) -> Json:
    known = {"rows": v.challenger.snapshot.rows} | v.trained
    return {name: known.get(name) for name in COSTS} | {"latency_ms": card.latency_ms, "size_bytes": card.size_bytes}


def _said(name: str, value: Any) -> Any:
    return from_us(value).isoformat() if name in RULE_TIMES and value is not None else value


def _manifest(storage: Storage, digest: str) -> Json | None:
    name = f"snapshots/{digest}.json"
    return storage.read_json(name) if storage.exists(name) else None


def _shift(storage: Storage, a: VersionRecord, b: VersionRecord) -> list[Json] | None:
    digests = [v.snapshot_digest for v in (a, b)]
    if not all(storage.exists(cache_name(digest)) for digest in digests):
        return None
    try:
        return shift(*(profile_of(read_rows(storage, digest)) for digest in digests))
    except (OSError, pa.ArrowException):  # a cache is nobody's record
        return None


def _mean(p: NumericProfile) -> float | None:
    known = p.rows - p.nulls
    return p.total / known if known else None


def _std(p: NumericProfile) -> float:
    mean, known = _mean(p), p.rows - p.nulls
    return math.sqrt(max(p.squares / known - mean * mean, 0.0)) if mean is not None else 0.0


def _minus(first: Any, second: Any) -> float | None:
    return None if first is None or second is None else second - first


def _ratio(first: Any, second: Any) -> float | None:
    return second / first if first and second is not None else None
