"""Rounds as a durable state machine: what each stage returned is written down before the next one starts."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

from sqlalchemy import func, select

from cltrain.records import Json, Round, from_json, to_json
from cltrain.registry.store import Store
from cltrain.registry.tables import StageRow

T = TypeVar("T")
DONE, ASKED = "done", "asked"


class RoundLog:
    """Stages of the rounds of one model. A stage runs once: after a crash its record is read back instead."""

    def __init__(self, store: Store, model: str) -> None:
        self._store, self._model = store, model

    def once(self, index: int, stage: str, kind: type[T], produce: Callable[[], T]) -> T:
        """The record of `stage` in round `index`: the one on file, or what `produce` returns, which is put on file.

        A stage must be safe to run again as long as its record is not on file.
        """
        key = (self._model, index, stage)
        with self._store.reading() as session:
            row = session.get(StageRow, key)
            if row is not None:
                return from_json(kind, row.record)
        record = produce()
        with self._store.writing() as session:
            row = StageRow(
                model=self._model, round_index=index, stage=stage, record=to_json(record), at=datetime.now(UTC)
            )
            session.merge(row)
        return record

    def finished(self) -> list[Round]:
        """Rounds of the series that came to their end, in order."""
        with self._store.reading() as session:
            query = select(StageRow).where(
                StageRow.model == self._model, StageRow.stage == DONE, StageRow.round_index >= 0
            )
            rows = session.scalars(query.order_by(StageRow.round_index)).all()
            return [from_json(Round, row.record) for row in rows]

    def by_hand(self, asked: Json) -> int:
        """Number for a round outside the series, -1, -2 and so on, in which `asked` is done. One in which the very same
        was asked for and that was not finished is taken up again."""
        with self._store.reading() as session:
            here = StageRow.model == self._model
            last = session.scalar(select(func.min(StageRow.round_index)).where(here)) or 0
            same = last < 0 and (row := session.get(StageRow, (self._model, last, ASKED))) and row.record == asked
            index = last if same and session.get(StageRow, (self._model, last, DONE)) is None else min(last, 0) - 1
        self.once(index, ASKED, dict, lambda: asked)
        return index
