"""A request whose replica dies under it goes to another replica; the client sees a slower answer.

Serve's proxy sends a request again only while no replica has taken it. One that dies later leaves the proxy without
anything to send, which clients see as 500. This is an ASGI middleware of the proxy: nothing of an answer has been sent
then, and asking again changes nothing, so it asks again.
"""

from __future__ import annotations

import asyncio

from serve.http.limits import App, Message, Receive, Send, refuse

REPEATABLE = ("/predict", "/rank", "/feedback")  # and whatever is read with GET; a promotion, say, is done once
ATTEMPTS, PAUSE_S = 3, 0.05
GIVEN_UP = f"{ATTEMPTS} replicas died over this request: try again in a second"
UNKNOWN = "the replica died over this request, which may be done all the same: see GET /versions before you repeat it"


class Failover:
    """Up to `ATTEMPTS` attempts at a request that may be repeated, while the application has sent no part of an answer
    and the client is there; 503 where that does not help. A request that takes too long, or is refused, is answered by
    Serve, so it is not tried again."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        attempts = ATTEMPTS if scope["method"] == "GET" or scope["path"] in REPEATABLE else 1
        seen: list[Message] = []
        held: list[Message] = []
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            if not started and message["type"] == "http.response.start":
                held[:] = [message]  # a replica can still die between this and the body
                return
            started = True
            for one in (*held, message):
                await send(one)
            held.clear()

        for attempt in range(attempts):
            await asyncio.sleep(PAUSE_S * attempt)
            held.clear()
            await self._app(dict(scope), self._replay(seen, receive), answer)
            if started or any(message["type"] == "http.disconnect" for message in seen):
                return
        await refuse(send, 503, GIVEN_UP if attempts > 1 else UNKNOWN)

    def _replay(self, seen: list[Message], receive: Receive) -> Receive:
        """What was received before, then what comes."""
        place = 0

        async def replayed() -> Message:
            nonlocal place
            if place == len(seen):
                seen.append(await receive())
            place += 1
            return seen[place - 1]

        return replayed
