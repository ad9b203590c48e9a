"""Hard rows are kept more often."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from cltrain.errors import ConfigError
from cltrain.memory import LossWeighted, Reservoir, Seen
from cltrain.memory.loss_weighted import log_weights
from tests.memory.made import rows


def opinion(table: pa.Table) -> Seen:
    """Every fourth row is three times as hard, and every fifth is in doubt."""
    x = np.asarray(table.column("x"))
    return Seen(losses=np.where(x % 4 == 0, 3.0, 1.0), uncertainty=(x % 5 == 0) * 1.0, embeddings=np.zeros((len(x), 1)))


def admitted(memory: LossWeighted, parts: int) -> np.ndarray:
    kept = None
    for part in range(parts):
        kept = memory.admit(kept, rows(part * 500, part * 500 + 500), opinion)
    assert kept is not None
    return np.asarray(kept.column("x"))


def test_the_share_of_hard_rows_is_that_of_their_loss_in_one_update_and_in_many() -> None:
    """A quarter of the rows with three times the loss have half of the memory."""
    hard = np.concatenate([admitted(LossWeighted(capacity_rows=20, salt=salt), 4) % 4 == 0 for salt in range(60)])
    assert abs(hard.mean() - 0.5) < 4.5 * (0.25 / len(hard)) ** 0.5
    sharper = [admitted(LossWeighted(capacity_rows=20, salt=salt, power=2.0), 4) % 4 == 0 for salt in range(60)]
    assert abs(np.concatenate(sharper).mean() - 0.75) < 4.5 * (0.19 / len(hard)) ** 0.5


def test_rows_without_doubt_are_kept_only_where_there_is_room() -> None:
    kept = admitted(LossWeighted(by="uncertainty", capacity_rows=150), 1)
    assert (kept % 5 == 0).sum() == 100
    certain = kept[kept % 5 != 0]
    reservoir = Reservoir(capacity_rows=500).admit(None, rows(0, 500)).column("x").to_numpy()
    assert certain.tolist() == reservoir[reservoir % 5 != 0][:50].tolist(), "by chance among themselves"


def test_power_0_is_a_reservoir() -> None:
    kept = LossWeighted(capacity_rows=20, power=0.0).admit(None, rows(0, 500), opinion)
    assert kept.equals(Reservoir(capacity_rows=20).admit(None, rows(0, 500)))


def test_remembered_rows_are_weighed_by_the_model_of_now() -> None:
    """What was hard and is easy gives way."""
    memory = LossWeighted(capacity_rows=50)
    first = memory.admit(None, rows(0, 500), lambda t: opinion_of(t, old=1e3))
    assert memory.admit(first, rows(500, 1_000), lambda t: opinion_of(t, old=1e3)).equals(first)
    later = memory.admit(first, rows(500, 1_000), lambda t: opinion_of(t, old=1e-6))
    assert (np.asarray(later.column("x")) >= 500).all()


def opinion_of(table: pa.Table, old: float) -> Seen:
    x = np.asarray(table.column("x"))
    return Seen(losses=np.where(x < 500, old, 1e-3), uncertainty=x, embeddings=x[:, None])


def test_weights_of_nothing_are_finite() -> None:
    assert np.isfinite(log_weights(np.zeros(3, np.float32), 10.0)).all()
    assert log_weights(np.array([np.e]), 2.0).tolist() == [2.0]


def test_ranges() -> None:
    with pytest.raises(ConfigError, match=r"memory\.by must be loss or uncertainty"):
        LossWeighted(by="margin")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"memory\.power must be between 0 and 10"):
        LossWeighted(power=-1.0)
