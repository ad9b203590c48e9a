"""The numbers that a report opens with, and how numbers are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cltrain.records import Json, Round, RunInfo
from cltrain.tracking.history import METRICS, Cost, Entry, Transfer, losses, number, overall, served_requests


@dataclass(frozen=True, kw_only=True)
class Tile:
    name: str
    value: str
    more: str = ""
    pill: str = ""
    tone: str = ""
    sides: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Fact:
    name: str
    value: str
    formula: str
    means: str


def sides(rounds: Sequence[Round], summary: Json | None) -> tuple[Json, Json]:
    """Metrics over all windows of the champion of the moment and of the first champion."""
    if summary and summary.get("prequential"):
        return summary["prequential"], summary.get("static") or {}
    return overall(r.observation.prequential for r in rounds), overall(r.observation.static for r in rounds)


def gain(ours: float | None, theirs: float | None, metric: str) -> tuple[str, str]:
    """By how much `ours` differs, as text, and whether that is good or bad.

    >>> gain(0.3, 0.4, "log_loss")
    ('25.0 % lower', 'good')
    >>> gain(0.9, 0.8, "auc")
    ('+0.1000', 'good')
    """
    if ours is None or theirs is None:
        return "", ""
    higher = METRICS.get(metric, ("", False))[1]
    better = ours > theirs if higher else ours < theirs
    tone = "" if ours == theirs else ("good" if better else "bad")
    if ours == theirs:
        return "the same", tone
    if higher or not theirs:
        return f"{ours - theirs:+.4f}".replace("-", "−"), tone
    share = (ours - theirs) / abs(theirs)
    return f"{abs(share) * 100:.1f} % {'lower' if share < 0 else 'higher'}", tone


def sentence(run: RunInfo, rounds: Sequence[Round], found: Sequence[Entry], summary: Json | None) -> str:
    """What happened, in words."""
    champion = (summary or {}).get("champion") or (rounds[-1].champion if rounds else None)
    if not rounds:
        return "No round has ended yet."
    if champion is None:
        return "There is no champion yet: no version has passed the gate."
    ours, theirs = (number(side.get(run.metric)) for side in sides(rounds, summary))
    label = METRICS.get(run.metric, (run.metric, False))[0]
    opening = f"Version {champion} is the champion"
    if ours is None or theirs is None:
        return f"{opening}. No later window has been predicted yet."
    said, tone = gain(ours, theirs, run.metric)
    if not tone:
        return f"{opening}. Its line and the first champion have the same {label}, {figure(ours)}."
    verdict = "Keeping the model fresh paid" if tone == "good" else "Updating did not pay here"
    said = f"{label} {figure(ours)}, {said} than the {figure(theirs)} of the first champion, never updated"
    return f"{opening}. {verdict}: {said}."


def tiles(
    run: RunInfo, rounds: Sequence[Round], found: Sequence[Entry], points: Sequence[Cost], summary: Json | None
) -> list[Tile]:
    done = summary or {}
    made = [_metric_tile(run, rounds, summary)]
    majors = len({e.version.split(".")[0] for e in found})
    made.append(
        Tile(name="Versions", value=count(len(found)), more=f"{plural(majors, 'major')} · {_promoted(found)} promoted")
    )
    if points:
        last = points[-1]
        ratio = last.from_scratch / last.trained if last.trained else None
        pill = f"{ratio:.1f}× fewer" if ratio and ratio > 1.05 else ""
        more = f"{large(last.from_scratch)} from scratch at every update (arithmetic)"
        made.append(Tile(name="Row visits in training", value=large(last.trained), more=more, pill=pill, tone="good"))
    rejected = done.get("rejected", sum(e.fate == "rejected" for e in found))
    quiet = sum(not r.versions for r in rounds)
    rolled = f" · {plural(done['rollbacks'], 'rollback')}" if done.get("rollbacks") else ""
    made.append(
        Tile(
            name="Rejected by the gate", value=count(rejected), more=f"{plural(quiet, 'round')} without update{rolled}"
        )
    )
    made.append(_served_tile(rounds, done))
    made.append(_retention_tile(run, found, done))
    times = sorted(r.freshness_s for r in rounds if r.freshness_s is not None)
    middle = done.get("freshness_s") or (times[len(times) // 2] if times else None)
    more = "median from the start of a round until its version answered" if times else "no version has been rolled out"
    made.append(Tile(name="Time to traffic", value=duration(middle), more=more))
    return made


def _metric_tile(run: RunInfo, rounds: Sequence[Round], summary: Json | None) -> Tile:
    ours, theirs = sides(rounds, summary)
    label = METRICS.get(run.metric, (run.metric, False))[0]
    said, tone = gain(number(ours.get(run.metric)), number(theirs.get(run.metric)), run.metric)
    known = [(name, number(ours.get(name)), number(theirs.get(name))) for name in dict.fromkeys((run.metric, *METRICS))]
    return Tile(
        name=f"Prequential {label}",
        value=figure(number(ours.get(run.metric))),
        more=f"over {count(ours['rows'])} rows, each predicted before it was trained on" if ours.get("rows") else "",
        pill=f"{said} than never updated" if said and said != "the same" else said,
        tone=tone,
        sides=tuple(
            (METRICS[name][0], figure(a), figure(b)) for name, a, b in known if a is not None and b is not None
        ),
    )


def _served_tile(rounds: Sequence[Round], done: Json) -> Tile:
    told = [served_requests(r) for r in rounds]
    answered = done.get(
        "served_requests", sum(a for a, _ in told if a) if any(a is not None for a, _ in told) else None
    )
    failed = done.get("failed_requests", sum(f for _, f in told if f))
    if not answered and not failed:
        return Tile(name="Requests served", value="–", more="nothing was served in this run")
    swaps = sum(r.roll_out is not None and r.roll_out.status == "promoted" for r in rounds)
    return Tile(
        name="Requests served",
        value=large(answered or 0),
        more=f"across {plural(swaps, 'roll-out')}",
        pill=f"{count(failed)} failed",
        tone="bad" if failed else "good",
    )


def _retention_tile(run: RunInfo, found: Sequence[Entry], done: Json) -> Tile:
    """The last champion on held-out rows of past windows."""
    kept = done.get("retention") or {}
    value, label = number(kept.get(run.metric)), METRICS.get(run.metric, (run.metric, False))[0]
    more = f"{label} of the champion on all past windows"
    if value is None:
        now = next((e for e in reversed(found) if e.fate == "champion"), None)
        known = list(losses(now).values()) if now else []
        value = sum(known) / len(known) if known else None
        more = "mean loss of the champion on past windows"
    if (accuracy := number(kept.get("accuracy"))) is not None:
        more += f" · accuracy {figure(accuracy)}"
    return Tile(name="Retention", value=figure(value), more=more)


def facts(t: Transfer) -> list[Fact]:
    """The formulas beside the transfer matrix: c is the champion, served versions are those that were promoted."""
    who = f"champion {t.champion}" if t.champion else "champion"
    return [
        Fact(
            name="mean loss",
            value=figure(t.mean),
            formula="meanₖ ℓ(c, k)",
            means=f"The {who} on the {plural(t.windows, 'window')} it was measured on, each with the same weight.",
        ),
        Fact(
            name="backward transfer",
            value=signed(t.backward),
            formula="meanₖ [ ℓ(first(k), k) − ℓ(c, k) ]",
            means="first(k) is the first promoted version measured on window k. Above 0: later updates improved "
            "old windows.",
        ),
        Fact(
            name="forgetting",
            value=signed(t.forgetting),
            formula="meanₖ [ ℓ(c, k) − minᵥ ℓ(v, k) ]",
            means="v goes over promoted versions before the champion. Above 0: some of what was once known was lost.",
        ),
    ]


def _promoted(found: Sequence[Entry]) -> int:
    return sum(e.fate in ("champion", "promoted") for e in found)


def figure(value: float | None) -> str:
    """A metric: four decimals, or four significant digits from 100 on; a dash for None."""
    if value is None:
        return "–"
    return (f"{value:.4f}" if abs(value) < 100 else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}").replace(
        "-", "−"
    )


def signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.4f}".replace("-", "−")


def count(value: Any) -> str:
    """
    >>> count(1234567)
    '1,234,567'
    """
    found = number(value)
    return "–" if found is None else f"{int(found):,}"


def large(value: float) -> str:
    """
    >>> large(1234567), large(987)
    ('1.23 M', '987')
    """
    for unit, sign in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= unit:
            scale = 1e3 if sign == "k" else unit
            return f"{value / scale:.3g} {sign}"
    return f"{int(value):,}"


def duration(seconds: Any) -> str:
    """
    >>> duration(0.25), duration(75), duration(7260), duration(200000)
    ('0.25 s', '1 min 15 s', '2 h 1 min', '2 d 7 h')
    """
    found = number(seconds)
    if found is None:
        return "–"
    if found < 60:
        return f"{found:.2g} s" if found < 10 else f"{found:.0f} s"
    for big, small, one, other in ((60, 1, "min", "s"), (3600, 60, "h", "min"), (86400, 3600, "d", "h")):
        if found < big * {60: 60, 3600: 24, 86400: float("inf")}[big]:
            return f"{int(found // big)} {one} {int(found % big // small)} {other}"
    return "–"


def plural(number_: int, word: str) -> str:
    """
    >>> plural(1, "round"), plural(2, "round")
    ('1 round', '2 rounds')
    """
    return f"{number_:,} {word}{'' if number_ == 1 else 's'}"
