"""A mirror of the registry in MLflow's. Ours is the truth: nothing is ever read back, and what was changed there by
hand is put right by the next export."""

from __future__ import annotations

import json
import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy.exc import SQLAlchemyError

from cltrain.errors import ConfigError, ConflictError, StoreError
from cltrain.records import Json

OURS = "cltrain."
LONGEST = 5000  # characters of a tag
PAGE = 1000
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
COPIED = (
    "parent",
    "kind",
    "state",
    "snapshot_digest",
    "weights_digest",
    "settings_digest",
    "code_commit",
    "seed",
    "created_at",
    "trained_until",
    "rows_trained",
    "stage",
    "approval",
)
_RESERVED = re.compile(r"latest|v\d+", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Mirrored:
    """name: of the model in MLflow. created and changed: versions. aliases: those that were set, with their version, or
    None where one was taken away. versions: number in MLflow of each version."""

    name: str
    created: tuple[str, ...]
    changed: tuple[str, ...]
    aliases: dict[str, str | None]
    versions: dict[str, str]


def mirror(uri: str, model: str, versions: Sequence[Json], *, name: str | None = None) -> Mirrored:
    """Bring the registered model `name` (None: `model`) of the MLflow at `uri` to what `versions` say, the summaries of
    all versions of a model, oldest first. Doing it again changes nothing.

    A version is found by its tag `cltrain.version`; parent, digests, verdict and the tags of people are tags too.
    MLflow's aliases have no dots: they become dashes. Raises `StoreError` where MLflow cannot be reached, before
    anything is changed; `ConflictError` for a model of this name that was not mirrored from these versions.
    """
    if urlsplit(uri).scheme in ("", "file") and uri != "databricks":
        raise ConfigError(f"--uri {uri} is no MLflow: pass that of a server, http://…, or a database, sqlite:///FILE")
    wanted = _aliases(versions)
    with _quiet(), _told(uri):
        client = _client(uri)
        target = _Target(client, name or model)
        target.check(model, versions)
        return target.write(model, versions, wanted)


class _Target:
    """A registered model as it is now."""

    def __init__(self, client: Any, name: str) -> None:
        from mlflow.exceptions import MlflowException

        self.client, self.name, self.about = client, name, None
        self.found: dict[str, Any] = {}
        try:
            self.about = client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return
        token = None
        while token != "":
            page = client.search_model_versions(f"name='{name}'", max_results=PAGE, page_token=token)
            self.found |= {v.tags[f"{OURS}version"]: v for v in page if f"{OURS}version" in v.tags}
            token = page.token or ""

    def check(self, model: str, versions: Sequence[Json]) -> None:
        """Refuse a model that somebody else made, or that was mirrored from another store."""
        if self.about is None:
            return
        if self.about.tags.get(f"{OURS}model") != model:
            raise ConflictError(f"MLflow has a model {self.name!r} that is not a mirror of {model}: pass --name")
        for v in versions:
            there = self.found.get(v["version"])
            if there is not None and there.tags.get(f"{OURS}weights_digest") != v["weights_digest"]:
                raise ConflictError(
                    f"MLflow's {self.name!r} is a mirror of another store: its {v['version']} has other weights."
                    " Pass --name"
                )

    def write(self, model: str, versions: Sequence[Json], wanted: Mapping[str, str]) -> Mirrored:
        if self.about is None:
            about = {f"{OURS}model": model}
            self.about = self.client.create_registered_model(self.name, tags=about, description=_DESCRIPTION)
        created, changed = [], []
        for v in versions:
            tags, there = _tags(v), self.found.get(v["version"])
            if there is None:
                source = f"cltrain://{model}/{v['version']}"
                there = self.client.create_model_version(self.name, source, tags=tags, description=_description(v))
                self.found[v["version"]] = there
                created.append(v["version"])
            elif self._set_tags(there, tags):
                changed.append(v["version"])
        numbers = {v["version"]: str(self.found[v["version"]].version) for v in versions}
        return Mirrored(
            name=self.name,
            created=tuple(created),
            changed=tuple(changed),
            aliases=self._move_aliases(wanted, numbers),
            versions=numbers,
        )

    def _set_tags(self, there: Any, tags: Mapping[str, str]) -> bool:
        set_ = {key: value for key, value in tags.items() if there.tags.get(key) != value}
        gone = [key for key in there.tags if key.startswith(OURS) and key not in tags]
        for key, value in set_.items():
            self.client.set_model_version_tag(self.name, str(there.version), key, value)
        for key in gone:
            self.client.delete_model_version_tag(self.name, str(there.version), key)
        return bool(set_ or gone)

    def _move_aliases(self, wanted: Mapping[str, str], numbers: Mapping[str, str]) -> dict[str, str | None]:
        """Those that people gave in MLflow, to names that are not ours, stay."""
        now = {alias: str(version) for alias, version in self.about.aliases.items()}  # type: ignore[union-attr]
        ours = json.loads(self.about.tags.get(f"{OURS}aliases", "[]"))  # type: ignore[union-attr]
        moved: dict[str, str | None] = {}
        if set(ours) != set(wanted):  # before they are set, so that one that was cut off is known to be ours
            value = json.dumps(sorted({*ours, *wanted}))
            self.client.set_registered_model_tag(self.name, f"{OURS}aliases", value)
        for alias, version in wanted.items():
            if now.get(alias) != numbers[version]:
                self.client.set_registered_model_alias(self.name, alias, numbers[version])
                moved[alias] = version
        for alias in set(ours) - set(wanted):
            if alias in now:
                self.client.delete_registered_model_alias(self.name, alias)
                moved[alias] = None
        if set(ours) - set(wanted):
            self.client.set_registered_model_tag(self.name, f"{OURS}aliases", json.dumps(sorted(wanted)))
        return moved


_DESCRIPTION = "A mirror of a cltrain registry, which is the truth: changes that are made here are undone."


def _tags(v: Json) -> dict[str, str]:
    """Of a version, by its summary."""
    tags = {"version": v["version"], **{name: v[name] for name in COPIED if v.get(name) is not None}}
    tags["verdict"] = "accepted" if v["verdict"]["accepted"] else "rejected"
    tags["reasons"] = "; ".join(v["verdict"]["reasons"])
    if v["depends_on"]:
        tags["depends_on"] = ", ".join(v["depends_on"])
    tags |= {f"tag.{name}": value for name, value in v["tags"].items()}
    return {f"{OURS}{name}": str(value)[:LONGEST] for name, value in tags.items() if str(value)}


def _description(v: Json) -> str:
    origin = f"an update of {v['parent']}" if v["parent"] else "trained from scratch"
    return f"{v['version']}, {origin} on snapshot {v['snapshot_digest'][:12]}"


def _aliases(versions: Sequence[Json]) -> dict[str, str]:
    """Version of each alias, by a name that MLflow takes."""
    found: dict[str, str] = {}
    for v in versions:
        for alias in v["aliases"]:
            name = alias.replace(".", "-")
            name = f"cltrain-{name}" if _RESERVED.fullmatch(name) else name
            if found.setdefault(name, v["version"]) != v["version"]:
                raise ConfigError(
                    f"two aliases would both be {name!r} in MLflow, which takes no dots: rename {alias!r}"
                )
    return found


def shown(uri: str) -> str:
    """A URI without its password."""
    return re.sub(r"(?<=//)([^/@:]*):[^/@]*@", r"\1:…@", uri)


@contextmanager
def _told(uri: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError, OSError) as error:
        why = str(error).replace(uri, shown(uri))
        raise StoreError(f"cannot export to MLflow at {shown(uri)}: {' '.join(why.split())}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No telemetry, no waiting for minutes, and no warnings and messages of MLflow, which are not ours to mend."""
    kept = {name: os.environ.get(name) for name in QUIET}
    os.environ.update({name: value for name, value in QUIET.items() if kept[name] is None})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                import mlflow  # absolute: the library, not this file
            except ImportError as error:
                raise ConfigError(f"MLflow is not here ({error}): pip install 'cltrain[mlflow]'") from error
            for name in (mlflow.__name__, "alembic"):
                logging.getLogger(name).setLevel(logging.WARNING)
            yield
    finally:
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)


def _client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)
