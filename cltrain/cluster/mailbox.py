"""Between the driver, which puts commands, the workers, which take them, and the Ray Train controller, which settles
them. Plain asyncio: `warm.py` makes an actor of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

Report = dict[str, Any]


class Mailbox:
    """Holds the commands not yet done. A command leaves only when it is settled, so that a worker which starts afresh
    finds it again. What must survive the mailbox is in the registry's rounds.

    idle_s: seconds without a command after which the group is let go. grace_s: how long a rank that failed waits for
    the others. max_losses: how often a command may lose its workers before it is given up."""

    def __init__(self, idle_s: float | None = None, grace_s: float = 5.0, max_losses: int = 3) -> None:
        self._idle_s, self._grace_s, self._max_losses = idle_s, grace_s, max_losses
        self._pending: dict[int, Any] = {}
        self._settled: dict[int, list[Report]] = {}
        self._ended: dict[int, set[int]] = {}
        self._losses, self._groups, self._last, self._closed = 0, 0, -1, False
        self._changed = asyncio.Condition()

    async def put(self, number: int, payload: Any) -> bool:
        """Driver: a command. False if the group has let go of itself, idle."""
        if self._closed:
            return False
        self._pending[number] = payload
        await self._notify()
        return True

    async def result(self, number: int) -> list[Report]:
        """Driver: wait for the reports of all ranks."""
        await self._wait(lambda: number in self._settled)
        return self._settled.pop(number)

    async def close(self) -> None:
        self._closed = True
        await self._notify()

    async def next(self, rank: int, after: int | None) -> tuple[int, Any] | None:
        """Worker: the first command after `after` (None from a worker that starts: the oldest not done), or None to
        stop."""
        floor = self._last if after is None else after

        def first() -> int | None:
            return next((n for n in self._pending if n > floor), None)

        in_time = await self._wait(lambda: self._closed or first() is not None, self._idle_s)
        if not in_time and first() is None:
            await self.close()
        number = first()
        if self._closed or number is None:
            return None
        self._ended.get(number, set()).discard(rank)  # it was a rank of another group that ended
        return number, self._pending[number]

    async def end(self, report: Report, world: int) -> bool:
        """Worker of `world`: through with a command. After an error it waits for the others; False if they do not come,
        since they are stuck in a collective, or gone. An error of ours (it has a `kind`) then settles the command; any
        other may come of their loss, and the restarted group tries again."""
        number, group = report["command"], self._groups
        self._ended.setdefault(number, set()).add(report["rank"])
        await self._notify()

        def all_ended() -> bool:
            return self._ended.get(number, set()).issuperset(range(world))

        if report["error"] is None:
            return True
        await self._wait(lambda: all_ended() or self._groups != group, self._grace_s)
        if self._groups == group and all_ended():
            return True
        if self._groups == group and report["kind"]:
            await self._settle(number, [report])
        return False

    async def done(self, number: int, reports: list[Report]) -> None:
        """Controller: the reports of all ranks have been consumed."""
        self._losses = 0
        await self._settle(number, reports)

    async def lost(self, failures: dict[int, str]) -> bool:
        """Controller: workers were lost and their group restarts. True to give the group up."""
        self._losses += 1
        self._groups += 1
        self._ended.clear()
        if self._losses <= self._max_losses:
            return False
        if not self._pending:
            return True
        number, losses, self._losses = next(iter(self._pending)), self._losses, 0
        said = {"command": number, "result": None, "kind": "UpdateError"}
        reports = [
            {**said, "rank": r, "error": f"its workers were lost {losses} times: {text}"}
            for r, text in failures.items()
        ]
        await self._settle(number, reports)
        return False

    async def _settle(self, number: int, reports: list[Report]) -> None:
        if self._pending.pop(number, None) is not None:
            self._settled[number], self._last = reports, number
            self._ended.pop(number, None)
        await self._notify()

    async def _wait(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(predicate), timeout)
            except TimeoutError:
                return False
            return True

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
