"""What one replica does, without HTTP: answer rows with one version, take labels, and move the champion."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from cltrain.errors import ConflictError, DataError, DigestError, ServingError
from cltrain.records import EVENT_TIME
from cltrain.registry import Registry, VersionRecord
from cltrain.registry.base import CHAMPION, PREVIOUS
from cltrain.registry.deployment import SHADOW, Deployments, Trial
from serve.http.schemas import FeedbackRow, PredictRow, Resident, VersionsAnswer
from serve.logs.feedback import Feedback, FeedbackLog, label_text
from serve.logs.prediction_log import SHADOW_FOLDER, Prediction, PredictionLog
from serve.logs.segments import new_id
from serve.policy.policy_layer import BINARY, ThresholdPolicy
from serve.resident import Choice, Loaded, ResidentVersions, Served
from serve.rollout.controller import end
from serve.rollout.machine import Action
from serve.rollout.mirror import Mirror
from serve.rollout.recorder import Recorder
from serve.scores import chosen
from serve.settings import ServerSettings

log = logging.getLogger(__name__)


class NoChampionError(ServingError):
    """There is no version to answer with yet."""


class NoSuchVersionError(ServingError):
    """The version that was named is not there."""


@dataclass(frozen=True)
class Answer:
    """The body for the client, and what a shadow gets: the rows as asked, the answers, and their lines of the log."""

    body: dict[str, Any]
    asked: list[dict[str, Any]]
    answers: list[dict[str, Any]]
    log: list[Prediction]


class Server:
    """Constructing it reads the registry first, so a restarted replica never serves an older version than it says."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.replica = new_id()
        self.served: Counter[str] = Counter()
        self.failed = 0
        self.on_answer: Callable[[Answer], None] = lambda _: None
        store = settings.open_store()
        self.registry = Registry(store, settings.model)
        self.deployments = Deployments(self.registry)
        self.predictions = PredictionLog(store.storage, self.replica, settings.log)
        self.labels = FeedbackLog(store.storage, self.replica, settings.log)
        self.shadows = PredictionLog(store.storage, self.replica, settings.log, SHADOW_FOLDER)
        device = torch.device(settings.device)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ServingError(
                "serve.num_gpus is set, but torch sees no GPU here: install a build of torch for CUDA, or leave it 0"
            )
        self.resident = ResidentVersions(
            self.registry, settings.poll_s, settings.memory_mb, settings.new_features, device
        )
        self.recorder = Recorder(store.storage, self.replica, settings.evidence_s, self._staged)
        self.shadow = Mirror(store, settings, self.recorder, self.shadows)
        self.resident.on_change = self._follow
        self.resident.start()

    def close(self) -> None:
        self.resident.stop()
        self.shadow.close()
        self.recorder.close()
        for segments in (self.predictions, self.labels, self.shadows):
            segments.close()
        self.registry.store.engine.dispose()

    def _follow(self, served: Served) -> None:
        self.recorder.follow(served)
        self.shadow.follow(served)

    def _staged(self, trial: Trial) -> tuple[bool, str | None]:
        """Whether this replica is ready to give traffic to a version under trial."""
        served = self.resident.current
        if served is None or served.deployment.roll_out is None or served.deployment.roll_out.id != trial.id:
            return False, None
        if trial.kind == SHADOW:
            return self.shadow.staged(trial)
        deployment, problems = served.deployment, self.resident.problems
        versions = {deployment.roles[role] for role in deployment.shares} | {trial.version}
        if broken := sorted(versions & problems.keys()):
            return False, problems[broken[0]]
        return versions <= self.resident.resident().keys(), None

    def name(self, version: str) -> str:
        return f"{self.settings.model}:{version}"

    def not_ready(self) -> NoChampionError:
        why = f": {self.resident.error}" if self.resident.error else "; ask again when one is promoted"
        return NoChampionError(f"{self.settings.model} has no champion to answer with yet{why}")

    def predict(self, rows: list[PredictRow], unit_id: str | None = None) -> dict[str, Any]:
        """`answer`, and what a shadow is to see of it."""
        answer = self.answer(rows, unit_id)
        self.mirror(answer)
        return answer.body

    def answer(
        self,
        rows: list[PredictRow],
        unit_id: str | None = None,
        *,
        decides: bool = True,
        policy_version: str | None = None,
    ) -> Answer:
        """All rows are answered by one version of those that serve at this moment, whatever happens meanwhile. Where an
        arm under trial cannot answer, the champion stands in, and what went wrong is held against the arm. The policy
        in force makes labels of a binary model's scores, unless the request asks for scores alone (`decides`), which
        may go through a policy of another kind, `policy_version`.

        Raises `NoChampionError`, `DataError` for a number that cannot be read, `ServingError` for an answer that is
        not finite.
        """
        served = self.resident.current
        if served is None:
            raise self.not_ready()
        ids = [new_id() for _ in rows]
        unit = unit_id or rows[0].event_id or ids[0]
        now = datetime.now(UTC)
        times = [row.event_time or now for row in rows]
        asked = [{**row.features, EVENT_TIME: t} for row, t in zip(rows, times, strict=True)]
        choice = served.choose(unit, ids[0], asked[0])
        started = time.perf_counter()
        try:
            loaded, stands_in, answers = self._answer(served, choice, asked)
        except Exception as error:
            self.failed += not isinstance(error, DataError)
            raise
        latency_us = int(1e6 * (time.perf_counter() - started))
        body: dict[str, Any] = {"version": self.name(loaded.version), "epoch": served.epoch, "arm": choice.arm}
        if stands_in:
            body["stands_in"] = True
        decided = answers
        chances: list[float | None] = [None] * len(rows)
        if decides and served.predictor.task == BINARY:
            decided, chances = _decided(served.policy, ids, answers)
            if served.policy is not None:
                body["policy_version"] = policy_version = served.policy.version
        body["predictions"] = [
            {"request_id": id_, "event_id": row.event_id, **answer}
            for id_, row, answer in zip(ids, rows, decided, strict=True)
        ]
        self.served[loaded.version] += 1
        trial = served.deployment.running
        logged = [
            Prediction(
                id_,
                row.event_id,
                event_time,
                now,
                self.settings.model,
                loaded.version,
                served.epoch,
                *chosen(answer),
                row.features,
                latency_us,
                unit,
                choice.arm,
                trial.id if trial else None,
                choice.share,
                snapshot=choice.snapshot,
                context=choice.context,
                policy_version=policy_version,
                decision_propensity=chance,
            )
            for id_, row, event_time, answer, chance in zip(ids, rows, times, decided, chances, strict=True)
        ]
        self.predictions.log(logged)
        answer = Answer(body, asked, answers, logged)
        self.on_answer(answer)
        return answer

    def mirror(self, answer: Answer) -> None:
        """Give the shadow its copy, if there is one; never waits."""
        if self.shadow.active:
            self.shadow.offer(answer.asked, answer.answers, answer.log)

    def _answer(
        self, served: Served, choice: Choice, asked: list[dict[str, Any]]
    ) -> tuple[Loaded, bool, list[dict[str, Any]]]:
        """Who answers, whether it stands in for the arm, and the answers."""
        champion = served.arms[CHAMPION]
        if choice.loaded is not champion:
            try:
                return choice.loaded, False, self._by(choice.loaded, asked)
            except DataError:  # is it the row, or does this version read rows differently?
                answers = self._by(champion, asked)
                self.recorder.failed(choice.loaded.version, 0.0)
                return champion, True, answers
            except Exception as error:
                log.debug("%s cannot answer: %s", choice.loaded.version, error)
                return champion, True, self._by(champion, asked)
        return champion, choice.stands_in, self._by(champion, asked)

    def _by(self, loaded: Loaded, asked: list[dict[str, Any]], both: bool = False) -> list[dict[str, Any]]:
        """What a version answers; both: whether another is asked the same, to interleave them."""
        started = time.perf_counter()
        with loaded.uses.one():
            try:
                answers = loaded.predictor.answer(asked)
            except DataError:
                raise
            except Exception:
                self.recorder.failed(loaded.version, time.perf_counter() - started, both=both)
                raise
            seconds = time.perf_counter() - started
            found = [chosen(answer) for answer in answers]
            if not all(math.isfinite(score) for score, _ in found):
                self.recorder.failed(loaded.version, seconds, finite=False, both=both)
                raise ServingError("the model's answer is not a finite number")
            self.recorder.answered(loaded.version, seconds, found, both)
        return answers

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
        """Load, verify, and only then commit to the registry; a roll-out that runs is over. Raises
        `NoSuchVersionError`, or `ConflictError` when the version is unfit or somebody else was first; blocks while it
        loads."""
        record = self.record(version)
        try:
            self.resident.stage(record)
        except (DigestError, ServingError) as error:
            raise ConflictError(f"{version} is not promoted: {error}") from error
        try:
            epoch = self.registry.promote(record.version, by="POST /promote", reason=reason, expected=expected)
        except ConflictError:
            self.resident.release(record.version)
            raise
        self.resident.wake()
        return record.version, epoch

    def record(self, version: str) -> VersionRecord:
        """A version by its number, with the model's name before it or without; raises `NoSuchVersionError`."""
        number = version.removeprefix(f"{self.settings.model}:")
        record = self.registry.find(number)
        if record is None:
            raise NoSuchVersionError(f"{self.settings.model} has no version {number!r}: see `cltrain versions`")
        return record

    def rollback(self, reason: str) -> tuple[str, int]:
        """A roll-out that runs is over, and the champion from before it answers everything; else the previous champion
        is the champion again. Raises `NoSuchVersionError` when there is none, `ConflictError` when it was taken
        back."""
        now = self.deployments.current()
        if now.running is not None:
            done = end(self.deployments, Action("stop", reason), by="POST /rollback")
            self.resident.wake()
            assert done.champion is not None
            return done.champion, done.epoch
        previous = now.roles.get(PREVIOUS)
        if previous is None:
            raise NoSuchVersionError(f"{self.settings.model} has no previous champion to go back to")
        if why := self.deployments.refused(previous):
            raise ConflictError(
                f"the previous champion {previous} was taken back by its guardrails ({why}): promote the "
                "version that you want by its number"
            )
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
            roles={role: self.name(version) for role, version in served.deployment.roles.items()} if served else {},
            shares=dict(served.deployment.shares) if served else {},
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


def _decided(
    policy: ThresholdPolicy | None, ids: list[str], answers: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[float | None]]:
    """Answers with the labels that a policy gives them, and the chances with which it decided; the model's own label is
    decided with certainty."""
    if policy is None:
        return answers, [1.0] * len(answers)
    found = [policy.decide(id_, answer["probability"]) for id_, answer in zip(ids, answers, strict=True)]
    labels = [{**answer, "label": label} for answer, (label, _) in zip(answers, found, strict=True)]
    return labels, [chance for _, chance in found]
