"""The mailbox, without Ray: a command leaves only when it is settled."""

from __future__ import annotations

import asyncio
from typing import Any

from cltrain.cluster.mailbox import Mailbox


def report(number: int, rank: int = 0, error: str | None = None, kind: str | None = None) -> dict[str, Any]:
    return {"command": number, "rank": rank, "result": {"n": number}, "error": error, "kind": kind}


def test_a_command_goes_to_every_rank_and_its_result_to_the_driver() -> None:
    async def scene() -> None:
        box = Mailbox()
        assert await box.put(0, "first")
        assert await box.next(0, None) == (0, "first")
        assert await box.next(1, None) == (0, "first")
        await box.done(0, [report(0), report(0, 1)])
        assert [r["rank"] for r in await box.result(0)] == [0, 1]

    asyncio.run(scene())


def test_a_worker_that_starts_afresh_finds_the_command_that_was_not_done() -> None:
    async def scene() -> None:
        box = Mailbox()
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
        box = Mailbox(max_losses=2)
        await box.put(0, "poison")
        assert [await box.lost({0: "killed"}) for _ in range(3)] == [False, False, False]
        (said,) = await box.result(0)
        assert said["error"].startswith("its workers were lost 3 times")
        assert [await box.lost({0: "killed"}) for _ in range(3)] == [False, False, True], "nothing to blame: give up"

    asyncio.run(scene())


def test_an_error_of_one_rank_is_told_when_the_others_are_stuck() -> None:
    async def scene() -> None:
        box = Mailbox(grace_s=0.05)
        await box.put(0, "x")
        assert not await box.end(report(0, error="boom", kind="UpdateError"), world=2)
        (said,) = await box.result(0)
        assert said["error"] == "boom"
        await box.put(1, "x")
        both = await asyncio.gather(box.end(report(1, error="boom"), 2), box.end(report(1, rank=1), 2))
        assert both == [True, True], "all came to the end: the group stays"

    asyncio.run(scene())


def test_an_error_that_may_come_of_the_loss_of_a_rank_settles_nothing() -> None:
    async def scene() -> None:
        box = Mailbox(grace_s=0.05)
        await box.put(0, "x")
        assert not await box.end(report(0, error="connection closed by peer"), world=2)
        assert await box.next(0, None) == (0, "x"), "the next group tries again"
        box = Mailbox(grace_s=60)
        await box.put(0, "x")
        waiting = asyncio.create_task(box.end(report(0, error="not mine", kind="UpdateError"), world=2))
        await asyncio.sleep(0)
        assert not await box.lost({1: "killed"})
        assert not await waiting
        assert await box.next(0, None) == (0, "x")

    asyncio.run(scene())


def test_a_group_may_come_back_smaller() -> None:
    async def scene() -> None:
        box = Mailbox(grace_s=0.05)
        await box.put(0, "x")
        assert await box.end(report(0, rank=1), world=2)
        await box.lost({0: "killed"})
        assert await box.next(0, None) == (0, "x")
        assert await box.end(report(0, error="boom"), world=1)

    asyncio.run(scene())


def test_a_group_that_was_made_larger_in_mid_update_waits_for_all_its_ranks() -> None:
    async def scene() -> None:
        box = Mailbox(grace_s=0.05)
        await box.put(0, "x")
        await box.end(report(0), world=1)
        for rank in (0, 1):
            assert await box.next(rank, None) == (0, "x")
        assert not await box.end(report(0, rank=1, error="boom"), world=2), "rank 0 of now has not ended"

    asyncio.run(scene())


def test_closing_and_idling_stop_the_workers_and_refuse_commands() -> None:
    async def scene() -> None:
        box = Mailbox(idle_s=0.05)
        assert await box.next(0, None) is None
        assert not await box.put(0, "late")

    asyncio.run(scene())
