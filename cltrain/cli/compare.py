"""The commands that show a version as a reviewer reads it: its report card, and what differs from another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from cltrain.cli.options import command, out, print_json
from cltrain.diff import diff as difference
from cltrain.errors import StoreError
from cltrain.registry import Registry
from cltrain.reviews import review_of
from cltrain.tracking import card as card_page
from cltrain.tracking import diff as diff_page
from cltrain.tracking.card_text import difference_of, rule, sentence
from cltrain.tracking.review import changes, document

HtmlOption = Annotated[Path | None, typer.Option("--html", help="Write a page that needs nothing else.")]


@command
def card(registry: Registry, as_json: bool, version: str, html: HtmlOption = None) -> None:
    """The report card of a version, by number or alias: verdict, what got better, what got worse, for whom."""
    review = review_of(registry, version)
    if html is not None:
        _write(html, card_page.render(review))
    if as_json:
        return print_json(document(review))
    found = changes(review.card)
    out.print(f"{review.model}:{review.version}  {sentence(review, found)}", highlight=False, markup=False)
    for reason in review.verdict.reasons:
        said = rule(reason, review.verdict.accepted)
        name = f"{said['name']}: " if said["name"] else ""
        out.print(f"{'✓' if said['passed'] else '✗'} {name}{said['text']}", highlight=False, markup=False)
    sure = [c for c in found if c.direction in ("better", "worse")]
    if sure:
        rows = [(f"{c.label} on {c.where}", difference_of(c), str(c.rows), c.direction) for c in sure]
        _print("better or worse by their intervals", ("what", "challenger − champion", "rows", ""), rows)
    if html is not None:
        out.print(f"written: {html}", highlight=False, markup=False)


@command
def diff(registry: Registry, as_json: bool, first: str, second: str, html: HtmlOption = None) -> None:
    """Two versions side by side: metrics, settings, data, code, cost and weights."""
    found = difference(registry, first, second)
    if html is not None:
        _write(html, diff_page.render(found))
    if as_json:
        return print_json(found)
    out.print(diff_page.sentence(found), highlight=False, markup=False)
    for title, columns, rows in diff_page.tables(found):
        _print(title, columns, rows)
    if html is not None:
        out.print(f"written: {html}", highlight=False, markup=False)


def _print(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(escape(column))
    for row in rows:
        table.add_row(*map(escape, row))
    out.print(table)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"--html={path} cannot be written: {error}") from error
