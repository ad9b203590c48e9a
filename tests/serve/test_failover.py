"""What the proxy's middleware sends on, and what it asks again, over an application that dies as replicas do."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from serve.failover import ATTEMPTS, Failover
from serve.proxy import middlewares

START = {"type": "http.response.start", "status": 200, "headers": []}
BODY = {"type": "http.response.body", "body": b"answer"}


def ask(attempts: Sequence[list[Any]], method: str = "POST", path: str = "/predict", leaves: bool = False) -> Any:
    """What the client gets, and the bodies that the application read, if its attempts send these messages."""
    left, sent, read = iter(attempts), [], []
    messages = [{"type": "http.request", "body": b"a", "more_body": True}, {"type": "http.request", "body": b"b"}]
    messages += [{"type": "http.disconnect"}] if leaves else []
    incoming = iter(messages)

    async def receive() -> Any:
        return next(incoming)

    async def send(message: Any) -> None:
        sent.append(message)

    async def replica(scope: Any, receive: Any, send: Any) -> None:
        read.append([(await receive()).get("body") for _ in messages])
        for message in next(left):
            await send(message)

    asyncio.run(Failover(replica)({"type": "http", "method": method, "path": path}, receive, send))
    return sent, read


@pytest.mark.parametrize("died", [[], [START]])
def test_a_request_whose_replica_dies_is_asked_again_whole(died: list[Any]) -> None:
    sent, read = ask([died, [START, BODY]])
    assert sent == [START, BODY]
    assert read == [[b"a", b"b"]] * 2


def test_an_answer_that_has_begun_is_not_begun_again() -> None:
    sent, read = ask([[START, {**BODY, "more_body": True}], [START, BODY]])
    assert (len(sent), len(read)) == (2, 1)


def test_it_gives_up() -> None:
    sent, read = ask([[]] * ATTEMPTS)
    assert (sent[0]["status"], len(sent), len(read)) == (503, 2, ATTEMPTS)
    assert b"try again" in sent[1]["body"]


def test_nobody_is_asked_for_a_client_that_left() -> None:
    sent, read = ask([[]] * ATTEMPTS, leaves=True)
    assert (sent, len(read)) == ([], 1)


def test_what_is_read_is_asked_again() -> None:
    assert len(ask([[], [START, BODY]], "GET", "/versions")[1]) == 2


@pytest.mark.parametrize("path", ["/promote", "/rollback", "/rollouts"])
def test_what_changes_the_registry_is_asked_once(path: str) -> None:
    sent, read = ask([[], [START, BODY]], path=path)
    assert (sent[0]["status"], len(read)) == (503, 1)
    assert b"may be done all the same" in sent[1]["body"]


def test_it_is_what_serves_proxy_is_told_to_use() -> None:
    assert [one.cls for one in middlewares()] == [Failover]
