"""What a version was trained on, in short, and how far that has moved from what the version before it was trained on.
Profiles are kept in the store, so that the rows of the version before may be gone."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pyarrow as pa

from cltrain.data.snapshot import Snapshots, cache_name, read_rows
from cltrain.diff import shift
from cltrain.monitor.profile import CategoricalProfile, NumericProfile, Profile, profile_of
from cltrain.records import Json, Snapshot, to_json
from cltrain.storage import Storage

FOLDER = "drift"


def drift(snapshots: Snapshots, storage: Storage, now: Snapshot, before: Snapshot | None) -> Json:
    """rows and snapshot of both sets, the share of nulls in each feature of the newer one, and `distances` of features
    in both, the furthest first (`cltrain.diff.shift`); `new` and `gone` are features of one of them alone. Without
    `before`, or where neither its rows nor their profile are there any more, only the newer set is described."""
    ours = _kept(storage, now.digest) or _keep(storage, now.digest, snapshots.table(now))
    about: Json = {
        "rows": ours.rows,
        "snapshot": now.digest,
        "nulls": {name: ours.null_share(name) for name in _names(ours)},
        "before": None,
        "distances": [],
        "new": [],
        "gone": [],
    }
    theirs = _known(storage, before.digest) if before is not None else None
    if before is None or theirs is None:
        return about
    names = _names(ours), _names(theirs)
    return about | {
        "before": {"rows": theirs.rows, "snapshot": before.digest},
        "distances": [moved for moved in shift(theirs, ours) if math.isfinite(moved["distance"])],
        "new": [name for name in names[0] if name not in names[1]],
        "gone": [name for name in names[1] if name not in names[0]],
    }


def _names(profile: Profile) -> list[str]:
    return sorted({**profile.numeric, **profile.categorical})


def _known(storage: Storage, digest: str) -> Profile | None:
    if (kept := _kept(storage, digest)) is not None or not storage.exists(cache_name(digest)):
        return kept
    try:
        return _keep(storage, digest, read_rows(storage, digest))
    except (OSError, pa.ArrowException):  # a cache is nobody's record
        return None


def _kept(storage: Storage, digest: str) -> Profile | None:
    name = f"{FOLDER}/{digest}.json"
    if not storage.exists(name):
        return None
    found: dict[str, Any] = storage.read_json(name)
    return Profile(
        rows=found["rows"],
        numeric={column: NumericProfile(**p) for column, p in found["numeric"].items()},
        categorical={column: CategoricalProfile(**p) for column, p in found["categorical"].items()},
    )


def _keep(storage: Storage, digest: str, rows: pa.Table) -> Profile:
    found = profile_of(rows)
    with contextlib.suppress(ValueError):  # sums of numbers so large that they are infinite have no JSON
        storage.write_json(f"{FOLDER}/{digest}.json", to_json(found))
    return found
