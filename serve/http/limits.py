"""Limits on what clients send, before anything is read or parsed."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.requests import ClientDisconnect

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

OPEN = ("/healthz", "/readyz", "/metrics")  # probes are answered whatever the load


class Bucket:
    """Tokens that come back at `rate` a second, one second's worth at most.

    >>> bucket = Bucket(2.0, clock=lambda: 0.0)
    >>> [bucket.take() for _ in range(3)]
    [True, True, False]
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = rate, clock
        self._most = max(rate, 1.0)
        self._left, self._at = self._most, clock()

    def take(self) -> bool:
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Limits:
    """An ASGI middleware: 413 for a body of more than `max_body_bytes`, 429 above `max_requests_per_s`."""

    def __init__(self, app: App, *, max_body_bytes: int, max_requests_per_s: float | None) -> None:
        self._app, self._max_body_bytes = app, max_body_bytes
        self._bucket = Bucket(max_requests_per_s) if max_requests_per_s else None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._bucket is not None and scope["path"] not in OPEN and not self._bucket.take():
            await refuse(send, 429, "too many requests: send fewer, or try again in a second", {"retry-after": "1"})
            return
        too_large = f"a body of more than {self._max_body_bytes} bytes: send fewer rows in one request"
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._max_body_bytes:
            await refuse(send, 413, too_large)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            return message if seen <= self._max_body_bytes else {"type": "http.disconnect"}

        async def answer(message: Message) -> None:
            if seen <= self._max_body_bytes:  # whatever the application makes of half a body is not sent
                await send(message)

        try:
            await self._app(scope, counted, answer)
        except ClientDisconnect:
            if seen <= self._max_body_bytes:
                raise
        if seen > self._max_body_bytes:
            await refuse(send, 413, too_large)


async def refuse(send: Send, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
    """Answer with `{"detail": detail}`, as every error is answered."""
    fields = {"content-type": "application/json", **(headers or {})}
    raw = [(name.encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": json.dumps({"detail": detail}).encode()})
