"""The report card of a version on one page, to be read like a pull request."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jinja2

from cltrain.records import Json
from cltrain.tracking import card_charts
from cltrain.tracking import card_text as text
from cltrain.tracking.report import _asset, _figure, _plotly, script_json
from cltrain.tracking.review import Review, changes

PLOTLY = "plotly.min.js"


def render(review: Review, *, shared_script: bool = False) -> str:
    """The page. It needs nothing else; with `shared_script` it is small and draws its charts with `plotly.min.js` in
    its folder, and without that file it has all its text and no charts."""
    found = changes(review.card)
    drawn = {c.id: c for c in card_charts.drawn(review.card)}
    return template("card.html.j2").render(
        r=review,
        card=review.card,
        said=text.sentence(review, found),
        rules=[text.rule(reason, review.verdict.accepted) for reason in review.verdict.reasons],
        tiles=text.tiles(review, found),
        changed=text.changed(found),
        sure=text.interval_of(review),
        sets=text.sets(review.card),
        slices=text.slices(found, review.card),
        tests=[text.finding(f) for f in sorted(review.card.findings, key=lambda f: (f.passed, f.kind))],
        transfer=text.transfer(review),
        spots=[text.spot(s) for s in review.card.spots],
        moved=text.moved(review.card.drift),
        facts=text.facts(review),
        signed=text.sign_offs(review.approval),
        charts=dict.fromkeys(("differences", "reliability", "transfer", "importance")) | drawn,
        **page(list(drawn.values()), shared_script),
    )


def page(drawn: Sequence[Any], shared_script: bool) -> Json:
    """What every page is made with: look, script and figures."""
    return {
        "css": _asset("report.css") + _asset("card.css"),
        "js": _asset("report.js"),
        "plotly": None if shared_script else _plotly(),
        "shared": PLOTLY,
        "figures": script_json([_figure(c) for c in drawn]),
    }


@functools.cache
def template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    macros = _asset("report.html.j2").partition("<!doctype html>")[0] + _asset("card_parts.html.j2")
    return environment.from_string(macros + _asset(name))
