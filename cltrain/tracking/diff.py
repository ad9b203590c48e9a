"""Two versions side by side, on one page and as plain tables, from what `cltrain.diff.diff` returns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Any

from cltrain.records import Comparison, Json, from_json
from cltrain.tracking.card import page, template
from cltrain.tracking.card_charts import ROW_PX, cut, whole
from cltrain.tracking.card_charts import differences as forest
from cltrain.tracking.card_text import plain, size
from cltrain.tracking.charts import CHAMPION, STATIC, Chart, short
from cltrain.tracking.headlines import count, duration, figure, plural, signed
from cltrain.tracking.history import number
from cltrain.tracking.review import Change, label_of, of_comparison

Rows = list[tuple[str, ...]]
TENSORS_CAP = 25
FILES_CAP = 8
_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?[+]00:00")
LABELS = {"window": "new window", "past": "past windows"}


def render(found: Json) -> str:
    """The page; it needs nothing else."""
    drawn = [c for c in (_direct(found), _windows(found), _tensors(found)) if c.rows]
    return template("diff.html.j2").render(
        d=found,
        said=sentence(found),
        tables=tables(found),
        files=_files(found["data"]),
        charts=dict.fromkeys(("differences", "windows", "tensors")) | {c.id: c for c in drawn},
        **page(drawn, False),
    )


def sentence(found: Json) -> str:
    """How the two are related, and which is better where both were weighed on the same rows."""
    a, b = found["first"]["version"], found["second"]["version"]
    of, parts = found["relation"], []
    if a == b:
        return f"Both are {a}."
    if of["ancestor"] == a:
        parts.append(f"{b} continues {a} by {plural(of['second_updates'], 'update')}.")
    elif of["ancestor"] == b:
        parts.append(f"{a} continues {b} by {plural(of['first_updates'], 'update')}.")
    elif of["ancestor"]:
        parts.append(f"Both come from {of['ancestor']}.")
    else:
        parts.append("They have no common ancestor.")
    if found["same_rows"]:
        rows = sum(w["rows"] for w in found["same_rows"])
        mean = sum(w["difference"] * w["rows"] for w in found["same_rows"]) / rows
        side = "the same as" if not mean else f"{abs(mean):.4f} {'lower' if mean < 0 else 'higher'} than"
        parts.append(
            f"On the {count(rows)} held-out rows that both were weighed on, the loss of {b} is {side} that of {a}."
        )
    return " ".join(parts)


def tables(found: Json) -> list[tuple[str, tuple[str, ...], Rows]]:
    """Title, columns and rows of everything, as text; those without rows are left out."""
    names = (found["first"]["version"], found["second"]["version"])
    sides = ("", *names)
    data = found["data"]
    made = [
        ("versions", sides, _versions(found)),
        ("on the same held-out rows", ("window", "rows", *names, "difference"), _same(found)),
        ("metrics of each one's own card", ("on", "metric", *names, "difference", "rows"), _metrics(found)),
        ("settings", sides, _changes(found["settings"])),
        ("rows trained on", sides, _data(data)),
        ("which rows", sides, _changes(data["rule"])),
        ("features", sides, _changes(data["features"])),
        ("how far the data moved", ("feature", "distance", "of"), _shift(data)),
        ("code and packages", sides, _code(found)),
        ("cost", (*sides, "ratio"), _cost(found["cost"])),
        ("weights", ("tensor", "shape", "distance"), _weights(found["weights"])),
    ]
    return [table for table in made if table[2]]


def _versions(found: Json) -> Rows:
    a, b = found["first"], found["second"]
    keys = ("kind", "parent", "compared_to", "created_at", "reason", "stage", "approval")
    rows: Rows = [(key.replace("_", " "), _told(a[key]), _told(b[key])) for key in keys if a[key] or b[key]]
    rows.append(("verdict", *("accepted" if v["verdict"]["accepted"] else "rejected" for v in (a, b))))
    reasons = ["; ".join(v["verdict"]["reasons"]) for v in (a, b)]
    return [*rows, ("reasons", *reasons), ("aliases", *(", ".join(v["aliases"]) or "–" for v in (a, b)))]


def _same(found: Json) -> Rows:
    return [
        (str(w["window"]), count(w["rows"]), figure(w["first"]), figure(w["second"]), signed(w["difference"]))
        for w in found["same_rows"]
    ]


def _metrics(found: Json) -> Rows:
    def rows(m: Json) -> str:
        a, b = m["first_rows"], m["second_rows"]
        return count(a) if a == b else f"{count(a)} and {count(b)}"

    return [
        (LABELS.get(m["on"], m["on"]), label_of(m["metric"]), figure(number(m["first"])), figure(number(m["second"])),
         signed(m["difference"]), rows(m))
        for m in found["metrics"]
    ]  # fmt: skip


def _changes(changed: Sequence[Json] | None) -> Rows:
    return [(c["key"], _told(c["first"]), _told(c["second"])) for c in changed or ()]


def _data(data: Json) -> Rows:
    a, b = data["first"], data["second"]
    rows = [(key.replace("_", " "), _told(a[key]), _told(b[key])) for key in ("rows", "late_rows", "trained_until")]
    if (files := data["files"]) is not None:
        added, removed, altered = (len(files[key]) for key in ("added", "removed", "altered"))
        before, after = files["same"] + altered + removed, files["same"] + altered + added
        rows.append(("files", count(before), f"{count(after)}, {added} of them not in the other"))
    return [*rows, ("snapshot", a["snapshot"][:12], b["snapshot"][:12])]


def _files(data: Json) -> list[Json]:
    """Names of files, not too many, under what became of them."""
    found = data["files"] or {}
    return [
        {"what": what, "total": len(names), "names": names[:FILES_CAP]}
        for what in ("added", "removed", "altered")
        if (names := found.get(what))
    ]


def _shift(data: Json) -> Rows:
    said = {"mean": "its standard deviations", "share": "its rows"}
    return [(s["feature"], f"{s['distance']:.3f}", said[s["kind"]]) for s in data["shift"] or ()]


def _code(found: Json) -> Rows:
    code = found["code"]
    commits = [] if code["same"] else [("code", plain(code["first"])[:13], plain(code["second"])[:13])]
    return [*commits, *_changes(found["packages"])]


def _cost(costs: Sequence[Json]) -> Rows:
    write = {"seconds": duration, "absorb_seconds": duration, "latency_ms": lambda v: f"{v:.3g} ms", "size_bytes": size}
    rows = []
    for c in costs:
        if c["first"] is not None or c["second"] is not None:
            said = [("–" if v is None else write.get(c["name"], _told)(v)) for v in (c["first"], c["second"])]
            name = c["name"].removesuffix("_ms").removesuffix("_bytes").replace("_", " ")
            rows.append((name, *said, "–" if c["ratio"] is None else f"{c['ratio']:.2f}×"))
    return rows


def _weights(of: Json) -> Rows:
    if of["same"]:
        return [("all", "", "the same, bit for bit")]
    if of["missing"]:
        return [("all", "", f"differ; by how much cannot be told: {of['missing']}")]
    far = [("all", "", _share(of["distance"]))]
    far += [(t["name"], "×".join(map(str, t["shape"])), _share(t["distance"])) for t in of["tensors"][:TENSORS_CAP]]
    return far + [(name, "", "only in one, or of another shape") for name in of["other"][:TENSORS_CAP]]


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.3g} %"


def _told(value: Any) -> str:
    if isinstance(value, str) and _INSTANT.fullmatch(value):
        return value[:16].replace("T", " ")
    return count(value) if isinstance(value, int) and not isinstance(value, bool) else plain(value)


def _direct(found: Json) -> Chart:
    """What the card of one says of the other."""
    of: list[Change] = []
    for item in (found["direct"] or {}).get("comparisons", ()):
        of += of_comparison(from_json(Comparison, item))
    return forest(of)


def _windows(found: Json) -> Chart:
    same = sorted(found["same_rows"], key=lambda w: w["window"])
    x = [w["window"] for w in same]
    names = {side: found[side]["version"] for side in ("first", "second")}
    lines = [
        {"type": "scatter", "mode": "lines+markers", "name": escape(names[side]), "x": x,
         "y": [short(w[side]) for w in same], "line": style, "marker": {"color": style["color"], "size": 6},
         "hovertemplate": "%{y:.4f}<extra>" + escape(names[side]) + "</extra>"}
        for side, style in (("first", STATIC), ("second", CHAMPION))
    ]  # fmt: skip
    layout = {
        "hovermode": "x unified",
        "xaxis": {"title": {"text": "held-out rows of window"}, "zeroline": False, **whole(x)},
        "yaxis": {"title": {"text": "mean loss"}},
    }  # fmt: skip
    return Chart(
        id="windows",
        label="Loss of both on the held-out rows of each window",
        variants=({"key": "all", "label": "all", "data": lines, "layout": layout},),
        columns=("window", "rows", names["first"], names["second"], "difference"),
        rows=tuple((w["window"], w["rows"], *map(short, (w["first"], w["second"], w["difference"]))) for w in same),
        height_px=300,
    )


def _tensors(found: Json) -> Chart:
    far = [t for t in found["weights"]["tensors"] if t["distance"] is not None]
    shown = far[:TENSORS_CAP]
    bars = {
        "type": "scatter", "mode": "markers", "name": "distance", "showlegend": False,
        "marker": {"color": "--champion", "symbol": "circle", "size": 9},
        "x": [short(t["distance"]) for t in shown], "y": list(range(len(shown))),
        "text": [escape(t["name"]) for t in shown], "hovertemplate": "%{text}: %{x:.3g}<extra></extra>",
    }  # fmt: skip
    layout = {
        "hovermode": "closest",
        "xaxis": {"title": {"text": "relative L2 distance"}, "rangemode": "tozero", "zeroline": True},
        "yaxis": {
            "tickvals": list(range(len(shown))), "ticktext": [escape(cut(t["name"])) for t in shown],
            "range": [len(shown) - 0.4, -0.6], "zeroline": False,
        },
    }  # fmt: skip
    return Chart(
        id="tensors",
        label="How far each tensor moved, relative to its norm",
        variants=({"key": "all", "label": "all", "data": [bars], "layout": layout},),
        columns=("tensor", "shape", "relative L2 distance"),
        rows=tuple((t["name"], "×".join(map(str, t["shape"])), short(t["distance"])) for t in far),
        height_px=96 + ROW_PX * max(len(shown), 2),
        note=f"{len(shown)} of {len(far)} tensors, those that moved most" if len(shown) < len(far) else "",
    )
