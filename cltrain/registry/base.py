"""What the parts of the registry share: a store, a model in it, and how its versions are named."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from cltrain.errors import StoreError
from cltrain.registry.store import Store
from cltrain.registry.tables import AliasRow, VersionRow
from cltrain.registry.versions import VersionRecord, describe

CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"
_SHOWN = 20  # versions that an error names


class OfModel:
    """All that is known of one `model` in a store. Every public method is one transaction."""

    def __init__(self, store: Store, model: str) -> None:
        self.store, self.model = store, model

    def _row(self, session: Session, name: str) -> VersionRow:
        """A version by its number, by `model:number` or by an alias."""
        number = name.removeprefix(f"{self.model}:")
        if not number[:1].isdigit():  # as the name of an alias never starts
            alias = session.get(AliasRow, (self.model, number))
            number = alias.version if alias else number
        row = session.get(VersionRow, (self.model, number))
        if row is not None:
            return row
        here = VersionRow.model == self.model
        newest = session.scalars(
            select(VersionRow.version).where(here).order_by(VersionRow.ordinal.desc()).limit(_SHOWN)
        )
        have = list(newest)[::-1]
        more = (session.scalar(select(func.count()).where(here)) or 0) - len(have)
        known = ", ".join(have) or "none yet"
        raise StoreError(
            f"{self.model} has no version {name!r}; it has: {f'{more} older ones and ' if more else ''}{known}"
        )

    def _record(self, session: Session, row: VersionRow) -> VersionRecord:
        return describe(session, [row])[0]

    def _records(self, session: Session, rows: Sequence[VersionRow]) -> list[VersionRecord]:
        return describe(session, rows)

    def _aliases(self, session: Session) -> dict[str, AliasRow]:
        return {row.alias: row for row in session.scalars(select(AliasRow).where(AliasRow.model == self.model))}

    def _epoch(self, session: Session) -> int:
        champion = session.get(AliasRow, (self.model, CHAMPION))
        return champion.epoch if champion else 0
