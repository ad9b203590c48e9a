"""One list of two rankings, as `/rank` gives it while an interleaving roll-out or a duel of re-ranking weights runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from cltrain.errors import DataError
from cltrain.online.interleave import Interleaved, Team, team_draft
from cltrain.records import EVENT_TIME
from cltrain.registry.base import CHALLENGER, CHAMPION
from cltrain.registry.deployment import Trial
from cltrain.seeding import numpy_generator
from serve.http.schemas import PredictRow
from serve.logs.prediction_log import Prediction
from serve.logs.segments import new_id
from serve.policy.reranking import DUEL, WeightsPolicy, blended
from serve.resident import Loaded, Served
from serve.rollout.preference import INTERLEAVE
from serve.scores import chosen
from serve.server import Answer, Server

log = logging.getLogger(__name__)

NEITHER: Team = "neither"


@dataclass(frozen=True)
class Candidates:
    """What one request asks to be ranked: the ids of the items, and their rows as clients sent them; `top` of them at
    most are shown to the unit."""

    items: Sequence[str]
    rows: Sequence[PredictRow]
    unit: str
    top: int | None = None

    @property
    def length(self) -> int:
        return min(self.top or len(self.items), len(self.items))

    def order(self, answers: Sequence[Mapping[str, Any]], weights: Mapping[str, float] | None = None) -> list[int]:
        """Places of the candidates, best first; of equal scores the one that was asked first."""
        if weights is None:
            scores = [one.get("probability", one.get("value")) for one in answers]
        else:
            scores = blended(answers, [row.features for row in self.rows], weights).tolist()
        return sorted(range(len(scores)), key=lambda i: -scores[i])


@dataclass(frozen=True)
class Ranking:
    """What one version says of all candidates, in which `seconds`, and the order that comes of it."""

    loaded: Loaded
    answers: list[dict[str, Any]]
    seconds: float
    order: list[int]


def contest(served: Served) -> Trial | None:
    """The interleaving that has traffic, if one does."""
    trial = served.deployment.running
    return trial if trial is not None and trial.kind == INTERLEAVE and trial.step >= 0 else None


def interleave(
    server: Server, served: Served, trial: Trial, asked: Candidates, policy: WeightsPolicy | None = None
) -> Answer:
    """Both versions score all candidates, and what they rank, by the policy's weights in force, is drafted into one
    list. The body has it as `ranking`, each item with the version that scored it and its team. Where the challenger
    cannot answer, the list is the champion's alone, which `stands_in` says, and the failure is held against the
    challenger.

    A unit that asks for the same candidates again sees them drafted by the same coins. Raises as `Server.answer`.
    """
    weights = policy.weights if policy else None
    champion, challenger = served.arms[CHAMPION], served.arms.get(CHALLENGER)
    now = datetime.now(UTC)
    rankings = {CHAMPION: _asked_first(server, champion, asked, now, weights, both=True)}
    if challenger is not None:
        try:
            rankings[CHALLENGER] = _ranking(server, challenger, asked, now, weights, both=True)
        except DataError:  # the champion could read it
            server.recorder.failed(challenger.version, 0.0, both=True)
        except Exception as error:
            log.debug("%s cannot answer: %s", challenger.version, error)
    named = {team: server.name(ranking.loaded.version) for team, ranking in rankings.items()}
    who: dict[str, Any] = {"version": None, "versions": named, "epoch": served.epoch, "arm": INTERLEAVE}
    if CHALLENGER not in named:
        who = {"version": named[CHAMPION], "epoch": served.epoch, "arm": INTERLEAVE, "stands_in": True}
    return _list(server, rankings, asked, who, now, coins=(INTERLEAVE, trial.id), experiment=trial.id, policy=policy)


def duel(server: Server, served: Served, asked: Candidates, policy: WeightsPolicy) -> Answer:
    """One version scores all candidates, and what they are by the weights in force is drafted with what they are by
    the others. Raises as `Server.answer`."""
    now = datetime.now(UTC)
    ours = _asked_first(server, served.arms[CHAMPION], asked, now, policy.weights, both=False)
    rankings = {CHAMPION: ours, CHALLENGER: replace(ours, order=asked.order(ours.answers, policy.candidate))}
    who = {"version": server.name(ours.loaded.version), "epoch": served.epoch, "arm": CHAMPION}
    return _list(server, rankings, asked, who, now, coins=(DUEL, policy.version), experiment=None, policy=policy)


def _list(
    server: Server,
    rankings: Mapping[str, Ranking],
    asked: Candidates,
    who: dict[str, Any],
    now: datetime,
    *,
    coins: tuple[str, ...],
    experiment: str | None,
    policy: WeightsPolicy | None,
) -> Answer:
    """Draft the list, log it, and say who answered."""
    shown = _drafted(rankings, asked, coins)
    places = {item: place for place, item in enumerate(shown.items)}
    latencies = {ranking.loaded.version: ranking.seconds for ranking in rankings.values()}
    logged = []
    for i, row in enumerate(asked.rows):
        team: Team = shown.teams[places[i]] if i in places else NEITHER
        scored = rankings.get(team, rankings[CHAMPION])
        logged.append(
            Prediction(
                new_id(),
                row.event_id,
                row.event_time or now,
                now,
                server.settings.model,
                scored.loaded.version,
                who["epoch"],
                *chosen(scored.answers[i]),
                row.features,
                int(1e6 * sum(latencies.values())),
                asked.unit,
                team,
                experiment,
                shown.propensity,
                position=places[i] + 1 if i in places else None,
                policy_version=policy.version if policy else None,
                credit=shown.credits[places[i]] if i in places else None,
            )
        )
    server.predictions.log(logged)
    for arm, ranking in rankings.items():
        if (seconds := latencies.pop(ranking.loaded.version, None)) is not None:
            server.served[ranking.loaded.version] += 1
            told = {"version": server.name(ranking.loaded.version), "arm": arm}
            lines = [logged[0]._replace(latency_us=int(1e6 * seconds))] * len(logged)
            server.on_answer(Answer(told, [], ranking.answers, lines))
    body = who | ({"policy_version": policy.version} if policy else {})
    body["ranking"] = [
        {
            "item_id": asked.items[i],
            "request_id": logged[i].request_id,
            "score": logged[i].prediction,
            "version": server.name(logged[i].version),
            "team": logged[i].arm,
        }
        for i in shown.items
    ]
    return Answer(body, [], rankings[CHAMPION].answers, logged)


def _drafted(rankings: Mapping[str, Ranking], asked: Candidates, coins: tuple[str, ...]) -> Interleaved[int]:
    ours = rankings[CHAMPION].order
    if CHALLENGER not in rankings:
        return Interleaved(items=tuple(ours[: asked.length]), teams=(NEITHER,) * asked.length)
    generator = numpy_generator(0, *coins, asked.unit, *sorted(asked.items))
    return team_draft(ours, rankings[CHALLENGER].order, asked.length, generator)


def _asked_first(
    server: Server, loaded: Loaded, asked: Candidates, now: datetime, weights: Mapping[str, float] | None, both: bool
) -> Ranking:
    """Of the champion, whose failure is that of the request; a row that it cannot read is the client's fault."""
    try:
        return _ranking(server, loaded, asked, now, weights, both)
    except Exception as error:
        server.failed += not isinstance(error, DataError)
        raise


def _ranking(
    server: Server, loaded: Loaded, asked: Candidates, now: datetime, weights: Mapping[str, float] | None, both: bool
) -> Ranking:
    started = time.perf_counter()
    answers = server._by(loaded, [{**row.features, EVENT_TIME: row.event_time or now} for row in asked.rows], both)
    return Ranking(loaded, answers, time.perf_counter() - started, asked.order(answers, weights))
