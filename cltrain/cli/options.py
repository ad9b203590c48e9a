"""What every command has in common: options, the store that they mean, errors of one line."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer
from rich.console import Console

from cltrain.assemble import latest_store
from cltrain.errors import CltrainError, StoreError
from cltrain.registry import Registry, Store, VersionRecord, models

app = typer.Typer(
    help="Versions, lineage and champions of a cltrain store.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
out = Console()

StoreOption = Annotated[str | None, typer.Option("--store", help="Folder or URI of the store; else the one used last.")]
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--store-url", envvar="CLTRAIN_STORE_URL", help="SQLAlchemy URL, if the registry is not SQLite there."
    ),
]
ModelOption = Annotated[str | None, typer.Option("--model", help="Needed only where a store holds several models.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ByOption = Annotated[str | None, typer.Option("--by", help="Who decides; else the user of this machine.")]
CommentOption = Annotated[str, typer.Option("--comment", help="Why; it stays on record.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why; it stays on record.")]


def _shared(
    store: StoreOption = None, store_url: UrlOption = None, model: ModelOption = None, as_json: JsonOption = False
) -> None:
    """The options that every command has after its own."""


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A command whose errors are one line and exit code 2. `function` takes `registry`, of the model that the options
    mean, or `store` and `models`, those that `--model` names or all; and `as_json`. The rest are its own arguments."""
    own = inspect.signature(function, eval_str=True).parameters
    given = ("registry", "store", "models", "as_json")
    parameters = [p for name, p in own.items() if name not in given]
    parameters += inspect.signature(_shared, eval_str=True).parameters.values()

    @wraps(function)
    def run(store: str | None, store_url: str | None, model: str | None, as_json: bool, **words: Any) -> None:
        try:
            found = open_store(store, store_url)
            if "registry" in own:
                function(registry=Registry(found, _one_model(found, model)), as_json=as_json, **words)
            else:
                only = None if model is None else [_one_model(found, model)]
                function(store=found, models=only, as_json=as_json, **words)
        except CltrainError as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(2) from error

    run.__signature__ = inspect.Signature([p.replace(kind=p.KEYWORD_ONLY) for p in parameters])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return app.command()(run)


def open_store(store: str | None, url: str | None) -> Store:
    return Store(root=store or latest_store(), url=url) if url else Store.at(store or latest_store())


def _one_model(store: Store, model: str | None) -> str:
    names = models(store)
    if model is None:
        if len(names) != 1:
            raise StoreError(f"the store holds {', '.join(names) or 'no model yet'}: pass --model NAME")
        return names[0]
    if model not in names:
        raise StoreError(f"the store has no model {model!r}; it holds {', '.join(names) or 'none yet'}")
    return model


def champion_moved(registry: Registry, before: VersionRecord | None, after: str, epoch: int, as_json: bool) -> None:
    old = before.version if before else None
    if as_json:
        return print_json({"model": registry.model, "champion": after, "previous": old, "epoch": epoch})
    out.print(f"champion of {registry.model}: {old or '–'} → {after} (epoch {epoch})")


def number(value: float | None, form: str = ".4f") -> str:
    return "–" if value is None else format(value, form)


def print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False))
