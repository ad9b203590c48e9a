"""What one replica does, without HTTP: answer rows with one version, take labels, and move the champion."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from datetime import UTC, datetime
from typing import Any

from cltrain.errors import ConflictError, DataError, DigestError, ServingError
from cltrain.records import EVENT_TIME
from cltrain.registry import Registry
from cltrain.registry.registry import PREVIOUS
from cltrain.train.predictor import Predictor
from serve.feedback import Feedback, FeedbackLog, label_text
from serve.prediction_log import Prediction, PredictionLog
from serve.resident import ResidentVersions, chosen
from serve.schemas import FeedbackRow, PredictRow, Resident, VersionsAnswer
from serve.segments import new_id
from serve.settings import ServerSettings


class NoChampionError(ServingError):
    """There is no version to answer with yet."""


class NoSuchVersionError(ServingError):
    """The version that was named is not there."""


class Server:
    """Constructing it reads the registry first, so a restarted replica never serves an older version than it says."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.replica = new_id()
        self.served: Counter[str] = Counter()
        self.failed = 0
        store = settings.open_store()
        self.registry = Registry(store, settings.model)
        self.resident = ResidentVersions(self.registry, settings.poll_s)
        self.resident.start()
        self.predictions = PredictionLog(store.storage, self.replica, settings.log)
        self.labels = FeedbackLog(store.storage, self.replica, settings.log)

    def close(self) -> None:
        self.resident.stop()
        self.predictions.close()
        self.labels.close()
        self.registry.store.engine.dispose()

    def name(self, version: str) -> str:
        return f"{self.settings.model}:{version}"

    def not_ready(self) -> NoChampionError:
        why = f": {self.resident.error}" if self.resident.error else "; ask again when one is promoted"
        return NoChampionError(f"{self.settings.model} has no champion to answer with yet{why}")

    def predict(self, rows: list[PredictRow]) -> dict[str, Any]:
        """The body of the answer. All rows are answered by the version that is current now, whatever happens meanwhile.

        Raises `NoChampionError`, `DataError` for a number that cannot be read, `ServingError` for an answer that is
        not finite.
        """
        started = time.perf_counter_ns()
        served = self.resident.current
        if served is None:
            raise self.not_ready()
        now = datetime.now(UTC)
        times = [row.event_time or now for row in rows]
        try:
            answers = _answer(
                served.predictor, [{**r.features, EVENT_TIME: t} for r, t in zip(rows, times, strict=True)]
            )
        except Exception as error:
            self.failed += not isinstance(error, DataError)
            raise
        ids = [new_id() for _ in rows]
        body = {
            "version": self.name(served.version),
            "epoch": served.epoch,
            "predictions": [
                {"request_id": id_, "event_id": row.event_id, **answer}
                for id_, row, answer in zip(ids, rows, answers, strict=True)
            ],
        }
        self.served[served.version] += 1
        latency_us = (time.perf_counter_ns() - started) // 1000
        self.predictions.log(
            [
                Prediction(
                    id_,
                    row.event_id,
                    event_time,
                    now,
                    self.settings.model,
                    served.version,
                    served.epoch,
                    *chosen(answer),
                    row.features,
                    latency_us,
                )
                for id_, row, event_time, answer in zip(ids, rows, times, answers, strict=True)
            ]
        )
        return body

    async def feedback(self, rows: list[FeedbackRow]) -> dict[str, int]:
        """Returns when the labels are on disk; raises `StoreError` when they cannot be put there."""
        now = datetime.now(UTC)
        labels = [
            Feedback(row.request_id, row.event_id, row.type, *label_text(row.label), row.label_time or now, now)
            for row in rows
        ]
        stored = await asyncio.wrap_future(self.labels.append(labels))
        return {"stored": stored, "duplicates": len(rows) - stored}

    def promote(self, version: str, reason: str, expected: str | None) -> tuple[str, int]:
        """Load, verify, and only then commit to the registry. Raises `NoSuchVersionError`, or `ConflictError` when the
        version is unfit or somebody else was first; blocks while it loads."""
        number = version.removeprefix(f"{self.settings.model}:")
        record = next((v for v in self.registry.versions() if v.version == number), None)
        if record is None:
            raise NoSuchVersionError(f"{self.settings.model} has no version {number!r}: see `cltrain versions`")
        try:
            self.resident.stage(record)
        except (DigestError, ServingError) as error:
            raise ConflictError(f"{version} is not promoted: {error}") from error
        epoch = self.registry.promote(number, by="POST /promote", reason=reason, expected=expected)
        self.resident.wake()
        return number, epoch

    def rollback(self, reason: str) -> tuple[str, int]:
        """Raises `NoSuchVersionError` when there is no previous champion."""
        if not any(PREVIOUS in v.aliases for v in self.registry.versions()):
            raise NoSuchVersionError(f"{self.settings.model} has no previous champion to go back to")
        version, epoch = self.registry.rollback(by="POST /rollback", reason=reason)
        self.resident.wake()
        return version, epoch

    def versions(self) -> VersionsAnswer:
        served, resident = self.resident.current, self.resident.resident()
        return VersionsAnswer(
            replica=self.replica,
            model=self.settings.model,
            champion=self.name(served.version) if served else None,
            epoch=served.epoch if served else 0,
            registry_epoch=self.resident.registry_epoch,
            loaded_at=served.since if served else None,
            resident=[
                Resident(
                    version=self.name(version),
                    weights_digest=loaded.weights_digest,
                    size_bytes=loaded.predictor.size_bytes,
                    loaded_at=loaded.loaded_at,
                    load_s=loaded.load_s,
                )
                for version, loaded in resident.items()
            ],
            served=dict(self.served),
            failed=self.failed,
            predictions_log=self.predictions.counts(),
            feedback_log=self.labels.counts(),
            error=self.resident.error,
        )


def _answer(predictor: Predictor, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    answers = predictor.answer(rows)
    if not all(math.isfinite(chosen(answer)[0]) for answer in answers):
        raise ServingError("the model's answer is not a finite number")
    return answers
