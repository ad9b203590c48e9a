"""Where to draw each version: rounds go to the right, branches down."""

from __future__ import annotations

from collections.abc import Sequence

from cltrain.tracking.history import Entry

REJECTED_BELOW = 0.38
LANES = 6


def places(found: Sequence[Entry]) -> dict[str, tuple[int, float]]:
    """(round, lane) of each version; lane 0 is on top and grows downwards.

    A stateful version stays on its parent's lane, a rejected one just below it; a second branch of the same parent
    and every stateless version open a lane: the first free one below, or, past `LANES`, the first free one anywhere.
    """
    parents = {e.data.get("parent") for e in found} | {e.data.get("compared_to") for e in found}
    place: dict[str, tuple[int, float]] = {}
    tail: dict[int, str] = {}  # lane: the version that a child may continue
    until = _last_rounds(found)
    busy: dict[int, int] = {}  # lane: round after which it is free
    taken: set[tuple[int, float]] = set()
    for e in found:
        parent, x = e.data.get("parent"), e.round.index
        beside = place.get(str(parent or e.data.get("compared_to")))
        if parent in place and e.fate == "rejected" and e.version not in parents:
            y = place[parent][1] + REJECTED_BELOW
        elif parent in place and tail.get(lane := int(place[parent][1])) == parent:
            y, tail[lane] = float(lane), e.version
        else:
            lane = _free(busy, x, int(beside[1]) + 1 if beside else 0)
            y, tail[lane] = float(lane), e.version
            busy[lane] = until[e.version] + 1
        while (x, y) in taken:
            y += REJECTED_BELOW / 2
        place[e.version] = (x, y)
        taken.add((x, y))
    return place


def _last_rounds(found: Sequence[Entry]) -> dict[str, int]:
    """Round of the last descendant of each version."""
    until = {e.version: e.round.index for e in found}
    for e in reversed(found):
        parent = e.data.get("parent")
        if parent in until:
            until[parent] = max(until[parent], until[e.version])
    return until


def _free(busy: dict[int, int], x: int, below: int) -> int:
    for lane in [*range(below, LANES), *range(below)]:
        if busy.get(lane, -1) < x:
            return lane
    return max(busy, default=-1) + 1
