"""Which data is in which version, and the versions in other systems."""

from __future__ import annotations

from typing import Annotated

import typer

from cltrain.cli.options import ByOption, command, out, print_json
from cltrain.errors import ConfigError
from cltrain.records import to_json
from cltrain.registry import Registry, Store
from cltrain.registry import impact as impact_of
from cltrain.registry import models as all_models
from cltrain.rows import Answer, Place, versions_with
from cltrain.tracking.mlflow import mirror, shown


@command
def rows(store: Store, models: list[str] | None, as_json: bool, event_id: str) -> None:
    """Which versions were trained on a row.

    By their own snapshot, or through a version that they came from or were trained with. Exit code 1 if no file has
    such a row."""
    answer = versions_with(store, event_id, models)
    if as_json:
        print_json(answer.to_json())
    else:
        for place in answer.places:
            _print_place(place)
        if not answer.places:
            print("not found")
        _print_unknown(answer)
    raise typer.Exit(0 if answer.places else 1)


@command
def impact(
    store: Store,
    models: list[str] | None,
    as_json: bool,
    file: Annotated[str | None, typer.Option("--file", help="Name or digest of a file of events.")] = None,
    snapshot: Annotated[str | None, typer.Option("--snapshot", help="Digest of a snapshot.")] = None,
) -> None:
    """Which versions contain a file or a snapshot.

    Themselves or by inheritance, with their aliases."""
    found = impact_of(store, file=file, snapshot=snapshot)
    parts = {"direct": found.direct, "inherited": found.inherited, "live": found.live}
    kept = {name: [v for v in part if models is None or v.model in models] for name, part in parts.items()}
    if as_json:
        return print_json(
            {
                name: [{"model": v.model, "version": v.version, "aliases": list(v.aliases)} for v in part]
                for name, part in kept.items()
            }
        )
    for name in ("direct", "inherited"):
        for v in kept[name]:
            out.print(f"{v.name}  {name}{_aliases(v.aliases)}", highlight=False)
    out.print(f"{len(kept['direct'])} direct, {len(kept['inherited'])} inherited, {len(kept['live'])} with an alias")


@command
def export(
    store: Store,
    models: list[str] | None,
    as_json: bool,
    uri: Annotated[
        str, typer.Option("--uri", envvar="MLFLOW_TRACKING_URI", help="http://… of a server, or sqlite:///FILE.")
    ],
    to: Annotated[str, typer.Option("--to", help="mlflow")] = "mlflow",
    name: Annotated[str | None, typer.Option("--name", help="Of the model there, if it should have another.")] = None,
    by: ByOption = None,
) -> None:
    """Mirror versions, aliases and lineage in MLflow.

    Doing it again brings over what is new and puts right what was changed there."""
    if to != "mlflow":
        raise ConfigError(f"--to must be mlflow, not {to!r}")
    wanted = all_models(store) if models is None else models
    if name is not None and len(wanted) != 1:
        raise ConfigError(f"--name is for one model, and the store holds {', '.join(wanted)}: pass --model too")
    done = []
    for model in wanted:
        registry = Registry(store, model)
        made = mirror(uri, model, [v.summary() for v in registry.versions()], name=name)
        about = {"created": len(made.created), "changed": len(made.changed), "aliases": made.aliases}
        registry.log("export", made.name, by=by, to=to, uri=shown(uri), **about)
        done.append({"model": model, "to": to, **to_json(made)})
        if not as_json:
            moved = ", ".join(f"{alias} → {version or '–'}" for alias, version in made.aliases.items())
            print(f"{model}: {len(made.created)} created, {len(made.changed)} changed, aliases: {moved or 'unchanged'}")
    if as_json:
        print_json({"exported": done})


def _print_place(place: Place) -> None:
    times = [f"{t:%Y-%m-%d %H:%M:%S}" if t else "–" for t in (place.event_time, place.label_time)]
    out.print(f"{place.file}  event {times[0]}, label known {times[1]}", highlight=False, markup=False)
    if place.why_not:
        out.print(f"    in no version: {place.why_not}", highlight=False)
    for h in place.versions:
        how = f"through {h.through}" if h.through else f"trained on it, snapshot {h.snapshot[:12]}"
        out.print(f"    {h.model}:{h.version}{_aliases(h.aliases)}  {how}", highlight=False)


def _print_unknown(answer: Answer) -> None:
    if answer.not_indexed:
        few = ", ".join(answer.not_indexed[:5])
        print(f"note: not known of {len(answer.not_indexed)} file(s) that have no index: {few}")
    if answer.lost:
        print(f"note: not known of {len(answer.lost)} snapshot(s) whose manifests are gone: cltrain doctor")


def _aliases(aliases: tuple[str, ...]) -> str:
    return f" ({', '.join(aliases)})" if aliases else ""
