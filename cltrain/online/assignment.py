"""Which arm a unit belongs to: a hash of who it is and of the experiment's salt, so nothing needs to be stored."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

from cltrain.errors import ConfigError

HOLDOUT = "holdout"


def bucket(unit_id: str, salt: str) -> float:
    """A uniform number in [0, 1), the same for the same unit and salt on every machine. Other salts give numbers that
    are independent of it, so experiments with salts of their own (layers) do not interact.

    >>> bucket("user-1", "ranker") == bucket("user-1", "ranker") != bucket("user-1", "price")
    True
    """
    # Its length comes first, so that no other pair of salt and unit gives the same bytes.
    text = f"{len(salt)}:{salt}{unit_id}".encode()
    return (int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 11) * 2.0**-53


def arm_of(unit_id: str, salt: str, shares: Mapping[str, float]) -> str:
    """The arm of a unit. shares: of each arm, the base (champion) first, adding up to 1; `check_shares` says whether
    they are, once and not for each request.

    Ramps are monotone: each arm but the base has a place of its own in the unit interval, at which it starts and from
    which it grows, and the base takes what is left. So a unit which is in the challenger at 5 % is there at 25 %, and
    units come to an arm from the base and from no other arm. (With n arms beside the base that holds until an arm
    grows above 1/n; what it takes beyond is of the parts that the base has left.)

    >>> arm_of("user-1", "ranker", {"champion": 0.0, "challenger": 1.0})
    'challenger'
    """
    base, *arms = shares
    if not arms:
        return base
    width, place = 1.0 / len(arms), bucket(unit_id, salt)
    region = min(int(place / width), len(arms) - 1)
    within = place - region * width
    if within < shares[arms[region]]:
        return arms[region]
    # What the base has left, from the top of each region down, is where arms that are wider than a region go on.
    left = sum(max(width - shares[arm], 0.0) for arm in arms[:region]) + width - within
    for arm in arms:
        left -= max(shares[arm] - width, 0.0)
        if left <= 0:
            return arm
    return base


def is_held_out(unit_id: str, share: float, salt: str = HOLDOUT) -> bool:
    """Whether a unit is in no experiment at all: it gets the champion, and what it does shows what all experiments
    together have brought. It is asked before `arm_of`, with a salt of its own that no experiment has, and the shares of
    an experiment are those of the other units."""
    return share > 0 and bucket(unit_id, salt) < share


def check_shares(shares: Mapping[str, float]) -> None:
    """Raise `ConfigError` unless `shares` are shares of traffic that add up to 1."""
    if not shares:
        raise ConfigError("shares is empty: name one arm or more with its share of traffic")
    if not all(0 <= share <= 1 for share in shares.values()) or not math.isclose(sum(shares.values()), 1, abs_tol=1e-9):
        raise ConfigError(f"shares must be between 0 and 1 and add up to 1, not {dict(shares)}")
