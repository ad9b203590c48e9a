"""The mailbox, without Ray: a command leaves only when it is settled."""

from __future__ import annotations

import asyncio
from typing import Any

from cltrain.cluster.mailbox import Mailbox


def report(number: int, rank: int = 0, error: str | None = None) -> dict[str, Any]:
    return {"command": number, "rank": rank, "result": {"n": number}, "error": error, "kind": None}


def test_a_command_goes_to_every_rank_and_its_result_to_the_driver() -> None:
    async def scene() -> None:
        box = Mailbox(world=2)
        assert await box.put(0, "first")
        assert await box.next(0, None) == (0, "first")
        assert await box.next(1, None) == (0, "first")
        await box.done(0, [report(0), report(0, 1)])
        assert [r["rank"] for r in await box.result(0)] == [0, 1]

    asyncio.run(scene())


def test_a_worker_that_starts_afresh_finds_the_command_that_was_not_done() -> None:
    async def scene() -> None:
        box = Mailbox(world=1)
        await box.put(4, "again")
        assert await box.next(0, None) == (4, "again")
        assert not await box.lost({0: "killed"})
        assert await box.next(0, None) == (4, "again")
        await box.done(4, [report(4)])
        await box.put(5, "next")
        assert await box.next(0, 4) == (5, "next")

    asyncio.run(scene())


def test_a_command_that_kills_its_workers_is_given_up_after_a_while() -> None:
    async def scene() -> None:
        box = Mailbox(world=1, max_losses=2)
        await box.put(0, "poison")
        assert [await box.lost({0: "killed"}) for _ in range(3)] == [False, False, False]
        (said,) = await box.result(0)
        assert said["error"].startswith("its workers were lost 3 times")
        assert [await box.lost({0: "killed"}) for _ in range(3)] == [False, False, True], "nothing to blame: give up"

    asyncio.run(scene())


def test_an_error_of_one_rank_is_told_when_the_others_are_stuck() -> None:
    async def scene() -> None:
        box = Mailbox(world=2, grace_s=0.05)
        await box.put(0, "x")
        assert await box.end(0, 0, "boom") is False
        (said,) = await box.result(0)
        assert said["error"] == "boom"
        await box.put(1, "x")
        both = await asyncio.gather(box.end(1, 0, "boom"), box.end(1, 1, None))
        assert both == [True, True], "all came to the end: the group stays"

    asyncio.run(scene())


def test_closing_and_idling_stop_the_workers_and_refuse_commands() -> None:
    async def scene() -> None:
        box = Mailbox(world=1, idle_s=0.05)
        assert await box.next(0, None) is None
        assert not await box.put(0, "late")

    asyncio.run(scene())
