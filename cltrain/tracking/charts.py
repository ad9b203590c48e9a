"""Charts of the report: Plotly figures as plain JSON, each with the numbers it shows.

A colour is named by a token of `report.css` (`--champion`); the page resolves it, so a figure fits light and dark.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from cltrain.records import Comparison, Json, Round, from_json
from cltrain.tracking.history import METRICS, Cost, Entry, metric_names, number
from cltrain.tracking.lineage import places

COMPARISONS_CAP = 12
STATIC = {"color": "--static", "width": 1.8, "dash": "dot"}
CHAMPION = {"color": "--champion", "width": 2.4}
FATES = {
    "champion": "champion now",
    "promoted": "promoted",
    "accepted": "accepted, not promoted",
    "rejected": "rejected",
}
SYMBOLS = {"stateful": "circle", "stateless": "diamond", "surgery": "star"}
QUIET = {"empty": "no data", "quarantined": "quarantined", "waited": "waited", "failed": "the update failed"}


@dataclass(frozen=True, kw_only=True)
class Chart:
    """`variants` are figures to switch between; `columns` and `rows` are the numbers of all of them. `scroll_px` is
    the least width at which it can be read: on a narrower page it scrolls. `shared` are traces of every variant."""

    id: str
    label: str
    variants: tuple[Json, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    height_px: int = 350
    scroll_px: int = 0
    note: str = ""
    shared: tuple[Json, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Marks:
    """Points of one look: one trace each, so that the legend explains them."""

    name: str
    style: Json
    x: list[Any] = field(default_factory=list)
    y: list[Any] = field(default_factory=list)
    hover: list[str] = field(default_factory=list)

    def trace(self, **more: Any) -> Json:
        return {
            "type": "scatter", "mode": "markers", "name": self.name, "marker": self.style, "x": self.x, "y": self.y,
            "text": self.hover, "hovertemplate": "%{text}<extra></extra>", **more,
        }  # fmt: skip


def prequential(rounds: Sequence[Round], found: Sequence[Entry], metric: str) -> Chart:
    """Each window predicted by the champion of the moment and by the first champion, with what was made of it."""
    names = metric_names(rounds, metric)
    columns = ["round", "window start", "window end", "status", "champion after"]
    columns += [f"{name} {who}" for name in names for who in ("champion", "first champion")]
    rows = []
    for r in rounds:
        seen, never = r.observation.prequential, r.observation.static
        pairs = [short(side.get(name)) for name in names for side in (seen, never)]
        rows.append((r.index, day(r.window.start), day(r.window.end), r.status, r.champion or "", *pairs))
    return Chart(
        id="prequential",
        label="Prequential metric of each window: champion of the moment against the first champion, never updated",
        variants=tuple(_prequential(rounds, name) for name in names),
        shared=tuple(_strip(rounds, found)),
        columns=tuple(columns),
        rows=tuple(rows),
        height_px=430,
    )


def _prequential(rounds: Sequence[Round], name: str) -> Json:
    label, higher = METRICS.get(name, (name, None))
    measured = [r for r in rounds if number(r.observation.prequential.get(name)) is not None]
    x = [day(r.window.end) for r in measured]
    sides = (("first champion", "static", STATIC), ("champion of the moment", "prequential", CHAMPION))
    lines = [
        _line(who, x, [short(getattr(r.observation, side).get(name)) for r in measured], style, ".4f")
        for who, side, style in sides
    ]
    if x and all(v is not None for line in lines for v in line["y"]):
        lines[1] |= {"fill": "tonexty", "fillcolor": "--champion-faint"}
    better = "" if higher is None else (" · higher is better" if higher else " · lower is better")
    strip = {
        "domain": [0, 0.2], "range": [-0.6, 2.6], "tickvals": [0, 1, 2],
        "ticktext": ["no update", "rejected", "promoted"],
        "showgrid": False, "zeroline": False, "fixedrange": True,
    }  # fmt: skip
    layout = {
        "hovermode": "x unified" if len(rounds) <= 120 else "closest",
        "xaxis": {"anchor": "y2", **dates(rounds)},
        "yaxis": {"domain": [0.27, 1], "title": {"text": escape(label) + better}},
        "yaxis2": strip,
    }
    return {"key": name, "label": label, "data": lines, "layout": layout}


def _strip(rounds: Sequence[Round], found: Sequence[Entry]) -> list[Json]:
    """Versions by verdict and rounds without one, below the curves."""
    lane = {"champion": 2, "promoted": 2, "accepted": 1.5, "rejected": 1}
    marks = _by_fate(found, lambda e: day(e.round.window.end), lambda e: lane[e.fate])
    quiet = Marks(name="no update", style={"color": "--muted", "symbol": "line-ns-open", "size": 7})
    for r in rounds:
        if r.status in QUIET:
            quiet.x.append(day(r.window.end))
            quiet.y.append(0)
            quiet.hover.append(f"round {r.index}: {QUIET[r.status]}<br>{escape(wrap(why(r)))}")
    return [m.trace(yaxis="y2") for m in (*marks, quiet) if m.x]


def differences(found: Sequence[Entry]) -> Chart:
    """Challenger minus champion on the same held-out rows: what the gate saw, with its verdict."""
    compared: dict[str, list[tuple[Entry, Comparison]]] = {}
    for e in found:
        for item in e.data.get("comparisons") or ():
            comparison = from_json(Comparison, item)
            if number(comparison.difference) is not None:
                compared.setdefault(comparison.name, []).append((e, comparison))
    names = sorted(compared, key=lambda n: ({"window": 0, "past": 1}.get(n, 2), -len(compared[n]), n))[:COMPARISONS_CAP]
    said = {"window": "new window", "past": "past windows"}
    rows = [
        (e.version, e.round.index, e.kind, FATES[e.fate], name, c.rows, *map(short, (c.difference, c.low, c.high)))
        for name in names
        for e, c in compared[name]
    ]
    return Chart(
        id="verdicts",
        label="Loss of each challenger minus loss of its champion on the same held-out rows, with interval and verdict",
        variants=tuple(_differences(compared[n], n, said.get(n, n)) for n in names),
        columns=("version", "round", "kind", "verdict", "rows of", "held-out rows", "difference", "low", "high"),
        rows=tuple(rows),
    )


def _differences(pairs: list[tuple[Entry, Comparison]], name: str, label: str) -> Json:
    of = {e.version: c for e, c in pairs}
    marks = _by_fate(
        [e for e, _ in pairs], lambda e: day(e.round.window.end), lambda e: short(of[e.version].difference)
    )
    bars: dict[str, list[tuple[float | None, float | None]]] = {}
    for e, c in pairs:
        bars.setdefault(_look(e), []).append((short((c.high or 0) - c.difference), short(c.difference - (c.low or 0))))  # type: ignore[operator]
    data = []
    for m in marks:
        up, down = zip(*bars[m.name], strict=True)
        error = {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "width": 0, "thickness": 1.3}
        data.append(m.trace(error_y={**error, "color": m.style["line"]["color"]}))
    layout = {
        "xaxis": dates([e.round for e, _ in pairs]),
        "yaxis": {"title": {"text": "challenger − champion · below 0 is better"}, "zeroline": True},
    }
    return {"key": name, "label": label, "data": data, "layout": layout}


def lineage(found: Sequence[Entry], rounds: int) -> Chart:
    """Versions as a graph: a line from the parent, a dashed one from what a version without parent was held against."""
    place = places(found)
    solid, dashed = ([], []), ([], [])  # type: tuple[list, list], tuple[list, list]
    for e in found:
        for key, edge in (("parent", solid), ("compared_to", dashed)):
            start = place.get(e.data.get(key) or "")
            if start and not (key == "compared_to" and e.data.get("parent")):
                edge[0].extend((start[0], place[e.version][0], None))
                edge[1].extend((start[1], place[e.version][1], None))
    lines = [
        {"type": "scatter", "mode": "lines", "x": xs, "y": ys, "name": name, "hoverinfo": "skip",
         "line": {"color": colour, "width": 1.4, "dash": dash}}
        for (xs, ys), name, colour, dash in (
            (solid, "continues", "--edge", "solid"),
            (dashed, "compared to", "--muted", "dot"),
        )
        if xs
    ]  # fmt: skip
    marks = _by_fate(found, lambda e: place[e.version][0], lambda e: place[e.version][1])
    per_round_px = 22 if rounds <= 150 else 9
    kept = [e for e in found if e.fate != "rejected"]
    step = 1 if rounds <= 36 else -(-30 // per_round_px)
    named = {e.version for i, e in enumerate(kept) if i % step == 0 or e.fate == "champion"}
    lowest = max((y for _, y in place.values()), default=0.0)
    names = {
        "type": "scatter", "mode": "text", "hoverinfo": "skip", "showlegend": False,
        "textposition": "top center", "textfont": {"size": 10.5, "color": "--muted"}, "cliponaxis": False,
        "x": [place[e.version][0] for e in found],
        "y": [place[e.version][1] - (0.18 if e.fate == "champion" else 0.06) for e in found],
        "text": [escape(e.version) if e.version in named else "" for e in found],
    }  # fmt: skip
    layout = {
        "dragmode": "pan",
        "xaxis": {
            "title": {"text": "round"},
            "range": [-0.8, max(rounds, 2) - 0.2],
            "zeroline": False,
            "dtick": 1 if rounds <= 24 else 5 if rounds <= 150 else 10,
        },
        "yaxis": {"range": [lowest + 0.6, -0.7], "visible": False, "fixedrange": True},
    }
    rows = [
        (e.version, e.round.index, e.kind, e.data.get("parent") or "", e.data.get("compared_to") or "", FATES[e.fate],
         e.data.get("rows"), str(e.data.get("snapshot_digest") or ""), str(e.data.get("weights_digest") or ""))
        for e in found
    ]  # fmt: skip
    return Chart(
        id="lineage",
        label="Lineage: each version, the version it continues, and the verdict on it",
        variants=({"key": "all", "label": "all", "data": [*lines, *marks_of(marks), names], "layout": layout},),
        columns=("version", "round", "kind", "parent", "compared to", "verdict", "rows", "snapshot", "weights"),
        rows=tuple(rows),
        height_px=int(120 + 66 * (lowest + 1)),
        scroll_px=per_round_px * rounds,
    )


def row_visits(points: Sequence[Cost]) -> Chart:
    """Row visits so far against retraining from scratch at every update."""
    x = [day(p.round.window.end) for p in points]
    scratch, trained = [p.from_scratch for p in points], [p.trained for p in points]
    bare = [
        _line("from scratch at every update (arithmetic)", x, scratch, STATIC, ",.4s"),
        _line("this run (measured)", x, trained, CHAMPION, ",.4s"),
    ]
    lines = [bare[0], {**bare[1], "fill": "tozeroy", "fillcolor": "--champion-faint"}]
    layout = {
        "hovermode": "x unified",
        "xaxis": dates([p.round for p in points]),
        "yaxis": {"title": {"text": "row visits so far"}, "rangemode": "tozero"},
    }
    log = {**layout, "yaxis": {"title": {"text": "row visits so far"}, "type": "log"}}
    return Chart(
        id="cost",
        label="Row visits so far: this run against training from scratch at every update",
        variants=(
            {"key": "linear", "label": "linear", "data": lines, "layout": layout},
            {"key": "log", "label": "logarithmic", "data": bare, "layout": log},
        ),
        columns=(
            "round",
            "window end",
            "row visits (measured)",
            "row visits from scratch (arithmetic)",
            "training seconds",
        ),
        rows=tuple(
            (p.round.index, day(p.round.window.end), p.trained, p.from_scratch, round(p.seconds, 2)) for p in points
        ),
        height_px=310,
    )


def _line(name: str, x: list[Any], y: list[Any], style: Json, shape: str) -> Json:
    return {
        "type": "scatter", "mode": "lines" if len(x) > 1 else "markers", "name": name, "x": x, "y": y, "line": style,
        "marker": {"color": style["color"], "size": 9}, "hovertemplate": f"%{{y:{shape}}}<extra>{escape(name)}</extra>",
    }  # fmt: skip


def _look(e: Entry) -> str:
    return f"{FATES[e.fate]} ({e.kind})"


def _by_fate(found: Sequence[Entry], x: Callable[[Entry], Any], y: Callable[[Entry], Any]) -> list[Marks]:
    """Marks of versions: colour and filling say the fate, the symbol the kind."""
    size = 10 if len(found) <= 150 else 7
    marks: dict[str, Marks] = {}
    for e in sorted(found, key=lambda e: (-list(FATES).index(e.fate), e.round.index)):
        symbol = SYMBOLS.get(e.kind, "circle") + ("-open" if e.fate == "rejected" else "")
        if e.fate == "champion":
            symbol = "star"
        colour = {"rejected": "--rejected", "accepted": "--accepted", "champion": "--now"}.get(e.fate, "--champion")
        wide = {"champion": 6, "rejected": -1}.get(e.fate, 0)
        style = {"color": colour, "symbol": symbol, "size": size + wide, "line": {"color": colour, "width": 1.5}}
        mark = marks.setdefault(_look(e), Marks(name=_look(e), style=style))
        mark.x.append(x(e))
        mark.y.append(y(e))
        mark.hover.append(told(e))
    return list(marks.values())


def marks_of(marks: Sequence[Marks]) -> list[Json]:
    return [m.trace() for m in marks]


def told(e: Entry) -> str:
    """Hover text of a version."""
    parts = [f"<b>{escape(e.version)}</b> {FATES[e.fate]}, {escape(e.kind)}, round {e.round.index}"]
    if e.data.get("parent"):
        parts.append(f"continues {escape(str(e.data['parent']))}")
    elif e.data.get("compared_to"):
        parts.append(f"from scratch, compared to {escape(str(e.data['compared_to']))}")
    parts += [escape(wrap(reason)) for reason in e.reasons[:6]]
    return "<br>".join(parts).replace("\n", "<br>")


def why(r: Round) -> str:
    """Why a round did what it did."""
    return r.decision.reason


def wrap(text: str, width: int = 70) -> str:
    """Text in lines, at most 4."""
    import textwrap

    return "\n".join(textwrap.wrap(text, width, max_lines=4, placeholder=" …"))


def short(value: Any) -> float | None:
    """A number to six significant digits."""
    found = number(value)
    return None if found is None else float(f"{found:.6g}")


def dates(rounds: Sequence[Round]) -> Json:
    """A time axis with some room at both ends."""
    start, end = rounds[0].window.start, rounds[-1].window.end
    room = (end - start) * 0.02
    return {"type": "date", "range": [day(start - room), day(end + room)]}


def day(moment: Any) -> str:
    """An instant as Plotly and people read it; midnight is a date."""
    return moment.strftime("%Y-%m-%d" if not (moment.hour or moment.minute or moment.second) else "%Y-%m-%d %H:%M:%S")
