"""A store goes on from other data than its versions were made from, such as from what they have served."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from cltrain.config import build
from cltrain.data.event_log import EventLog
from cltrain.data.feedback import FeedbackSource, NothingJoinedError
from cltrain.data.snapshot import Snapshots, SnapshotSettings
from cltrain.errors import DataError, DigestError, StoreError
from cltrain.parts import Timeline
from cltrain.records import Json, Round
from cltrain.registry import Registry, Store
from cltrain.registry.store import DATABASE
from cltrain.storage import digest_json
from cltrain.train.state import schema_from_json

log = logging.getLogger(__name__)
EMPTY_WINDOWS = 100  # between the last event and now, from which on a clock is worth a word


def read_log(parts: Mapping[str, Any], settings: Mapping[str, Any], store: Store) -> EventLog:
    """The events of `parts["data"]`. What was served is read as the champion of the store reads it, and a job that
    waits for data and does not serve itself waits for the first label."""
    source = parts["data"]
    if not isinstance(source, FeedbackSource):
        return EventLog(source)
    if (about := _learned(store, settings["model"]["name"])) is not None:
        source = source.learned_by(schema_from_json(about | {"ignored": []}))
    told = False
    while True:
        try:
            return EventLog(source)
        except NothingJoinedError as error:
            if not parts["clock"].waits or parts["serve"].needs_ray:
                raise
            if not told:
                log.warning("waiting for the first label: %s", error)
            told = True
            parts["clock"].wait()


def _learned(store: Store, model: str) -> Json | None:
    """Columns and features that the champion learned from; None where there is no champion yet."""
    if store.url is None and store.storage.is_local and not store.storage.exists(DATABASE):
        return None
    champion = Registry(store, model).champion()
    if champion is None:
        return None
    manifest = store.storage.read_json(f"snapshots/{champion.snapshot_digest}.json")
    return {name: manifest[name] for name in ("columns", "features")}


def warn(parts: Mapping[str, Any], event_log: EventLog, rounds: Sequence[Round]) -> None:
    """Say what a job that goes on after `rounds` will not do, or only after a long time."""
    last = rounds[-1]
    timeline = Timeline(event_log, parts["clock"])
    if parts["clock"].waits:
        windows = sum(w.end > event_log.end() for w in parts["window"].cut(timeline, last.window))
        if windows >= EMPTY_WINDOWS:
            log.warning(
                "the events end at %s, and %d windows without any follow up to now: clock=data takes the time from the "
                "events, as for a replay of the past",
                event_log.end(),
                windows,
            )
    every = parts["recalibrate"].every
    lost = set(last.cursor.files) - event_log.files.keys() - event_log.set_aside.keys()
    if lost and every is not None and isinstance(event_log.source, FeedbackSource):
        log.warning(
            "training from scratch (recalibrate.every=%d) will learn from what was served alone: data.history=DIR, "
            "with data.event_time, data.label, data.label_time and data.event_id as there, adds the %d file(s) from "
            "before, and recalibrate.every=null never trains from scratch",
            every,
            len(lost),
        )


class EarlierSnapshots(Snapshots):
    """Snapshots of which those that were made from other data are decoded again from there: the settings of the
    versions say where it is."""

    def __init__(
        self, log: EventLog, registry: Registry, data: Json, settings: SnapshotSettings, seed: int = 0
    ) -> None:
        super().__init__(log, registry.store.storage, settings, seed)
        self._registry, self._data = registry, data
        self._others: dict[str, Snapshots] = {}

    def rebuild(self, digest: str) -> None:
        """As of `Snapshots`; raises `StoreError` also where the other data is gone."""
        try:
            super().rebuild(digest)
        except DigestError:
            raise
        except StoreError:
            if not (elsewhere := self._elsewhere()):
                raise
            for data in elsewhere:
                if (snapshots := self._of(data)) is not None:
                    try:
                        return snapshots.rebuild(digest)
                    except DigestError:
                        raise
                    except StoreError:
                        continue
            places = ", ".join(str(data.get("path") or data["_target_"]) for data in elsewhere)
            raise StoreError(
                f"snapshot {digest[:12]} was made from other data than that of this job, and cannot be decoded again "
                f"from there: restore the files in {places}"
            ) from None

    def _elsewhere(self) -> list[Json]:
        """Settings of the other data that versions were made from."""
        given = (self._registry.settings(v.version).get("data") for v in self._registry.versions())
        known = {digest_json(data): data for data in given if data}
        known.pop(digest_json(self._data), None)
        return list(known.values())

    def _of(self, data: Json) -> Snapshots | None:
        """Snapshots of other data; None where it is gone."""
        key = digest_json(data)
        if key not in self._others:
            try:
                log = EventLog(build(data, "data"))
            except DataError:
                return None
            self._others[key] = Snapshots(log, self._storage, self._settings, self._seed)
        return self._others[key]
