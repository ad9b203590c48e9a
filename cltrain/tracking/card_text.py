"""What a report card says in words, lists and tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cltrain.records import Finding, Json, ReportCard
from cltrain.tracking.headlines import count, duration, figure, large, signed
from cltrain.tracking.history import number
from cltrain.tracking.review import Change, Review, label_of, newest_and_past, of_comparison

SIGNS = {"better": "good", "worse": "bad", "unsure": "", "same": ""}
SAID = {"better": "better", "worse": "worse", "unsure": "not certain", "same": "the same"}
SAID_OF_ALL = ("new window", "past windows")
FEATURES = 12  # of which it is told how far they moved
MOST = 6  # lines in a list of what changed
LOSSES = ("log_loss", "squared_error", "loss")
MEANS = {
    "average": ("mean loss", figure, "Over the windows it was measured on, each with the same weight."),
    "backward": ("backward transfer", signed, "Above 0: later updates of its line improved old windows."),
    "forward": (
        "forward transfer",
        signed,
        "Above 0: champions of its line met new windows better than a constant answer.",
    ),
    "forgetting": (
        "forgetting",
        signed,
        "Loss minus the least one of its line before it. Above 0: something was lost.",
    ),
}


def sentence(review: Review, found: Sequence[Change]) -> str:
    """The verdict, which rules refused, and what the new window says, in words."""
    rules = [rule(reason, review.verdict.accepted) for reason in review.verdict.reasons]
    refused = ", ".join(r["name"] for r in rules if r["name"] and not r["passed"])
    verdict = "Accepted" if review.verdict.accepted else f"Rejected by the rules: {refused}" if refused else "Rejected"
    rival = f"champion {review.compared_to}" if review.compared_to else "the champion"
    window = next((c for c in found if c.name == "window"), None)
    if window is None:
        return f"{verdict}. There was no champion to hold it against."
    if window.direction == "same":
        return f"{verdict}. It answers exactly like {rival}."
    sure = "leaves 0 out" if window.direction != "unsure" else "does not leave 0 out"
    better = "better" if window.difference < 0 else "worse"
    where = f"Its {window.label} on {count(window.rows)} new held-out rows"
    interval = f"its interval of {interval_of(review)} {sure}"
    return f"{verdict}. {where} is {_apart(window)} {better} than that of {rival}, and {interval}."


def interval_of(review: Review) -> str:
    """Both bounds of an interval are one-sided at the level."""
    return f"{100 * (1 - 2 * review.level):.3g} %"


def rule(reason: str, accepted: bool) -> Json:
    """One reason of a verdict: the name of its rule, what it found, and whether it passed.

    >>> rule("past: refused, +0.06 on 230 rows", False)
    {'name': 'past', 'text': '+0.06 on 230 rows', 'passed': False}
    """
    name, colon, text = reason.partition(": ")
    if not colon or len(name) > 40:
        return {"name": "", "text": reason, "passed": accepted}
    refused = text.startswith("refused, ")
    return {"name": name, "text": text.removeprefix("refused, "), "passed": not refused}


def tiles(review: Review, found: Sequence[Change]) -> list[Json]:
    card, trained = review.card, review.training
    made = []
    for where in SAID_OF_ALL:
        c = next((c for c in found if c.where == where), None)
        if c is not None:
            pill = SAID["same"] if c.direction == "same" else f"{signed(c.difference)} · {SAID[c.direction]}"
            made.append(
                _tile(
                    f"{c.label} on {'the new window' if where == 'new window' else where}",
                    figure(c.challenger),
                    f"champion {figure(c.champion)} · {count(c.rows)} rows",
                    pill,
                    SIGNS[c.direction],
                )
            )
    if not found and card.comparisons:
        of = card.comparisons[0].challenger
        made.append(
            _tile(label_of(review.metric), figure(number(of.get(review.metric))), f"{count(of.get('rows'))} rows")
        )
    window = next((c for c in card.comparisons if c.flips), None)
    if window is not None and window.flips:
        more = f"right before, wrong now · {_percent(window.flips.get('positive'))} the reverse"
        made.append(_tile("Negative flips", _percent(window.flips.get("negative")), more))
    was = "" if card.champion_latency_ms is None else f"champion {card.champion_latency_ms:.3g} ms"
    made.append(_tile("Latency of one row", f"{card.latency_ms:.3g} ms", was))
    was = "" if card.champion_size_bytes is None else f"champion {size(card.champion_size_bytes)}"
    made.append(_tile("Size", size(card.size_bytes), was))
    if trained.get("rows_trained") is not None:
        replayed = f" · {count(trained['rows_replayed'])} replayed" if trained.get("rows_replayed") else ""
        visits = f"{count(trained.get('rows'))} rows{replayed} · {duration(trained.get('seconds'))}"
        made.append(_tile("Row visits in training", large(trained["rows_trained"]), visits))
    if card.findings:
        failed = sum(not f.passed for f in card.findings)
        pill, tone = (f"{failed} failed", "bad") if failed else ("all passed", "good")
        made.append(_tile("Tests", str(len(card.findings)), "of behaviour, robustness and labels", pill, tone))
    return made


def changed(found: Sequence[Change]) -> list[Json]:
    """What got better, what got worse, what cannot be told: the largest changes first."""
    lists = []
    for title, which in (("Got worse", "worse"), ("Got better", "better"), ("Not certain", "unsure")):
        some = [c for c in found if c.direction == which]
        some.sort(key=lambda c: (c.where not in SAID_OF_ALL, c.metric not in LOSSES, -abs(c.share or 0)))
        lists.append(
            {
                "title": title,
                "tone": SIGNS[which],
                "total": len(some),
                "lines": [
                    {"what": c.label, "where": c.where, "found": c.found, "by": difference_of(c), "rows": count(c.rows)}
                    for c in some[:MOST]
                ],
            }
        )
    return lists


def difference_of(c: Change) -> str:
    """With its interval, as one reads it."""
    row = _row(c)
    return f"{row['difference']} {row['interval']}".strip()


def size(count_: float) -> str:
    """
    >>> size(22676), size(52)
    ('22.7 kB', '52 B')
    """
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count_ >= unit:
            return f"{count_ / unit:.3g} {name}"
    return f"{int(count_)} B"


def plain(value: Any) -> str:
    """A value of settings, features or examples, as one reads it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _tile(name: str, value: str, more: str = "", pill: str = "", tone: str = "") -> Json:
    return {"name": name, "value": value, "more": more, "pill": pill, "tone": tone}


def sets(card: ReportCard) -> list[Json]:
    """A table of metrics for each of the comparisons."""
    tables = []
    for c in card.comparisons:
        of = {change.metric: change for change in of_comparison(c)}
        lines = [
            {
                "label": label_of(name),
                "challenger": figure(number(value)),
                "champion": figure(number((c.champion or {}).get(name))),
                **_row(of.get(name)),
            }
            for name, value in c.challenger.items()
            if name != "rows"
        ]
        named = {"window": "On the new window", "past": "On past windows", "golden": "On the golden set"}
        title = named.get(c.name, c.name)
        flips = None if not c.flips else {k: _percent(v) for k, v in c.flips.items()}
        tables.append({"title": title, "rows": count(c.rows), "lines": lines, "flips": flips})
    return tables


def slices(found: Sequence[Change], card: ReportCard) -> list[Json]:
    """Slices by their loss, worse ones first."""
    of = {c.name: c for c in found if c.metric in LOSSES}
    order = {"worse": 0, "unsure": 1, "same": 2, "better": 3}
    lines = []
    for c in card.slices:
        change = of.get(c.name)
        loss = next((n for n in ("log_loss", "squared_error") if n in c.challenger), "")
        lines.append(
            {
                "name": c.name,
                "where": c.where if c.where != c.name else "",
                "found": c.found,
                "rows": count(c.rows),
                "challenger": figure(number(c.challenger.get(loss))),
                "champion": figure(number((c.champion or {}).get(loss))),
                "order": order[change.direction] if change else 4,
                "flips": _percent((c.flips or {}).get("negative")),
                **_row(change),
            }
        )
    return sorted(lines, key=lambda line: line["order"])


def _row(c: Change | None) -> Json:
    if c is None:
        return {"difference": "–", "interval": "", "said": "", "tone": ""}
    bounds = "" if c.low is None or c.high is None else f"[{signed(c.low)}, {signed(c.high)}]"
    return {
        "difference": signed(c.difference),
        "interval": bounds,
        "said": SAID[c.direction],
        "tone": SIGNS[c.direction],
    }


def finding(f: Finding) -> Json:
    examples = [", ".join(f"{key} {plain(value)}" for key, value in e.items()) for e in f.examples]
    was = "" if f.champion_failed is None else f"{count(f.champion_failed)}"
    return {
        "name": f.name,
        "kind": f.kind,
        "passed": f.passed,
        "rows": count(f.rows),
        "failed": count(f.failed),
        "bound": _percent(f.bound),
        "champion": was,
        "examples": examples,
    }


def transfer(review: Review) -> list[Json]:
    """What learning did to other windows, in numbers."""
    _, past = newest_and_past(review.card.transfer)
    pairs = [(float(c["loss"]), float(c["champion"])) for c in past if number(c.get("champion")) is not None]
    facts = []
    if pairs:
        mean = sum(a - b for a, b in pairs) / len(pairs)
        worse = sum(a > b for a, b in pairs)
        facts.append(
            (
                "against the champion",
                signed(mean),
                f"Mean loss on {len(pairs)} past windows, minus the champion's; worse on {worse} of them.",
            )
        )
    for name, (label, write, said) in MEANS.items():
        if (value := number(review.transfer.get(name))) is not None:
            facts.append((label, write(value), said))
    return [{"name": name, "value": value, "means": said} for name, value, said in facts]


def spot(s: Mapping[str, Any]) -> Json:
    features = ", ".join(f"{name} {plain(value)}" for name, value in (s.get("features") or {}).items())
    sides = {who: s[who] for who in ("challenger", "champion") if isinstance(s.get(who), Mapping)}
    return {
        "id": plain(s.get("id")),
        "why": plain(s.get("why")),
        "label": plain(s.get("label")),
        "features": features,
        **{
            who: plain(number(sides[who].get("prediction"))) if who in sides else "–"
            for who in ("challenger", "champion")
        },
        "worse": len(sides) == 2 and (sides["challenger"].get("loss") or 0) > (sides["champion"].get("loss") or 0),
    }


def moved(of: Mapping[str, Any]) -> Json | None:
    """What the version was trained on beside the version before it, as a table of features."""
    before = of.get("before")
    if not before:
        return None
    said = {"mean": "standard deviations of its mean", "share": "of the rows have another value"}
    nulls = of.get("nulls") or {}
    lines = [
        {
            "name": f["feature"],
            "distance": f"{f['distance']:.3f}" if f["kind"] == "mean" else _percent(f["distance"]),
            "of": said.get(f["kind"], f["kind"]),
            "nulls": _percent(nulls.get(f["feature"])),
        }
        for f in (of.get("distances") or ())[:FEATURES]
    ]
    return {
        "rows": count(of.get("rows")),
        "before": count(before.get("rows")),
        "lines": lines,
        "left_out": max(0, len(of.get("distances") or ()) - FEATURES),
        "new": ", ".join(of.get("new") or ()),
        "gone": ", ".join(of.get("gone") or ()),
    }


def facts(review: Review) -> list[tuple[str, list[tuple[str, str]]]]:
    """Where it came from: data, training and what it was made with, as names and values."""
    d, t, p = review.data, review.training, review.provenance
    span = (
        f"{str(d['window_start'])[:16]} to {str(d['window_end'])[:16]}".replace("T", " ")
        if d.get("window_start")
        else None
    )
    data = [
        ("window", span),
        ("events", d.get("events")),
        ("labelled", d.get("labelled")),
        ("late labels", d.get("late_labels")),
        ("late rows trained on", d.get("late_rows")),
        ("rows trained on", d.get("rows")),
        ("trained until", str(d["trained_until"])[:16].replace("T", " ") if d.get("trained_until") else None),
        ("held-out rows", d.get("held_out")),
        ("problems", "; ".join(d.get("problems") or ()) or None),
        ("snapshot", d.get("snapshot")),
    ]
    training = [
        ("why", review.reason),
        ("rows", t.get("rows")),
        ("row visits", t.get("rows_trained")),
        ("replayed", t.get("rows_replayed")),
        ("steps", t.get("steps")),
        ("time", duration(t["seconds"]) if t.get("seconds") is not None else None),
        ("workers", t.get("workers")),
        ("training loss", figure(number(t["loss"])) if t.get("loss") is not None else None),
        ("parameters", t.get("parameters")),
        ("seed", str(t["seed"]) if t.get("seed") is not None else None),
    ]
    made = [(name.replace("_", " "), value) for name, value in p.items() if name != "packages"]
    made += [(name, value) for name, value in (p.get("packages") or {}).items() if value]
    tables = (("Data", data), ("Training", training), ("Made with", made))
    return [(title, [(k, _told(v)) for k, v in lines if v not in (None, "")]) for title, lines in tables]


def _told(value: Any) -> str:
    return count(value) if isinstance(value, int) and not isinstance(value, bool) else plain(value)


def sign_offs(approval: Json | None) -> Json | None:
    if approval is None:
        return None
    lines = [
        {"at": str(s.get("at"))[:16].replace("T", " "), **{k: s.get(k) or "" for k in ("by", "role", "comment")}}
        for s in approval.get("signed") or ()
    ]
    roles = ", ".join(approval.get("roles") or ()) or "anybody"
    tone = {"approved": "good", "rejected": "bad", "expired": "bad"}.get(str(approval.get("state")), "blue")
    return {
        "state": approval.get("state"),
        "tone": tone,
        "lines": lines,
        "roles": roles,
        "missing": approval.get("missing") or "",
        "comment": approval.get("comment") or "",
        "by": approval.get("by") or "",
    }


def _apart(c: Change) -> str:
    return f"{abs(c.share) * 100:.2g} %" if c.share is not None else f"{abs(c.difference):.4f}"


def _percent(value: Any) -> str:
    found = number(value)
    return "–" if found is None else f"{100 * found:.2g} %" if found < 1 else f"{100 * found:.0f} %"
