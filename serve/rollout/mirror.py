"""The shadow of one replica: started and stopped with the desired state, compared with what was answered live."""

from __future__ import annotations

import time
from typing import Any

from cltrain.registry import Store
from cltrain.registry.deployment import SHADOW, Trial
from serve.logs.prediction_log import Prediction, PredictionLog
from serve.resident import Served
from serve.rollout.recorder import Recorder
from serve.rollout.shadow import Answered, Copy, ShadowProcess
from serve.scores import agree, chosen, is_finite
from serve.settings import ServerSettings


class Mirror:
    """At most one shadow process, of the version in the role `shadow`."""

    def __init__(self, store: Store, settings: ServerSettings, recorder: Recorder, log: PredictionLog) -> None:
        self._store, self._settings, self._recorder, self._log = store, settings, recorder, log
        self.shed = 0
        self._process: ShadowProcess | None = None
        self._roll_out, self._target_std = "", 1.0

    @property
    def active(self) -> bool:
        return self._process is not None

    def follow(self, served: Served) -> None:
        """What is deployed has changed."""
        trial = served.deployment.running
        version = served.deployment.roles.get(SHADOW) if trial else None
        if self._process is not None and self._process.version != version:
            process, self._process = self._process, None
            process.close()
        if trial is None or version is None:
            return
        self._roll_out, self._target_std = trial.id, served.predictor.state.encoder.target_std
        if self._process is None:
            self._process = ShadowProcess(
                self._store,
                self._settings.model,
                version,
                capacity=self._settings.shadow_capacity,
                max_age_s=self._settings.shadow_max_age_s,
                device=self._settings.device,
                on_answer=self._answered,
                on_shed=self._shed,
                on_crash=self._crashed,
            )

    def staged(self, trial: Trial) -> tuple[bool, str | None]:
        """Whether the shadow is ready to answer, and what keeps it from that."""
        process = self._process
        if process is None or process.version != trial.version:
            return False, None
        return process.staged, process.problem

    def offer(self, rows: list[dict[str, Any]], live: list[dict[str, Any]], log: list[Prediction]) -> None:
        process = self._process
        if process is not None:
            process.offer(Copy(rows, live, log, time.monotonic()))

    def close(self) -> None:
        if self._process is not None:
            self._process.close()

    def _answered(self, found: Answered) -> None:
        counters = self._recorder.shadow(self._roll_out)
        if counters is None:
            return
        if found.answers is None or not is_finite(found.answers):
            counters.failed(found.seconds, finite=found.answers is None)
            return
        pairs = [(chosen(a), chosen(b)) for a, b in zip(found.answers, found.copy.live, strict=True)]
        scores = [ours[0] for ours, _ in pairs]
        seconds = found.seconds if found.alone else None
        counters.answered(seconds, scores, [self._recorder.bin(ours) for ours, _ in pairs])
        counters.compared += len(pairs)
        counters.agreed += sum(agree(ours, theirs, self._target_std) for ours, theirs in pairs)
        counters.difference += sum(abs(ours[0] - theirs[0]) for ours, theirs in pairs)
        process = self._process
        if process is not None:
            latency_us = int(1e6 * found.seconds)
            self._log.log(
                [
                    row._replace(
                        version=process.version,
                        prediction=ours[0],
                        label_answer=ours[1],
                        latency_us=latency_us,
                        arm=SHADOW,
                        experiment=self._roll_out,
                        propensity=0.0,
                        policy_version=None,
                        decision_propensity=None,
                    )
                    for row, (ours, _) in zip(found.copy.log, pairs, strict=True)
                ]
            )

    def _shed(self, count: int) -> None:
        self.shed += count
        if (counters := self._recorder.shadow(self._roll_out)) is not None:
            counters.shed += count

    def _crashed(self) -> None:
        if (counters := self._recorder.shadow(self._roll_out)) is not None:
            counters.crashes += 1
