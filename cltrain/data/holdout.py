"""Which rows are held out for ever: a fixed share of all event ids, chosen by a hash and by nothing else."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from cltrain.seeding import hash_ids


def is_held_out(ids: pa.Array | pa.ChunkedArray, share: float) -> np.ndarray:
    """(N,) bool. A row is held out whatever the seed of the run, so no version of any run has trained on it."""
    return hash_ids(ids, salt=0x9E3779B9) < share
