"""Processes forked from one that has imported what they need: each can die alone, and all end together."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import IO

import psutil
import pytest

from serve.rollout.zygote import Child, Zygote


def echo(source: IO[bytes], sink: IO[bytes]) -> None:
    """Says its process, then each line that it gets."""
    sink.write(f"{os.getpid()}\n".encode())
    sink.flush()
    while line := source.readline():
        if line == b"raise\n":
            raise RuntimeError("asked to")
        sink.write(line)
        sink.flush()


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    zygote = Zygote(f"{__name__}.echo")
    zygote.start()
    yield zygote
    zygote.close()


def ask(child: Child, line: bytes) -> bytes:
    child.to.write(line)
    child.to.flush()
    return child.of.readline()


def ended(pid: int) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.01)
    return False


def test_a_child_dies_alone(zygote: Zygote) -> None:
    one, other, third = (zygote.fork() for _ in range(3))
    assert [int(child.of.readline()) for child in (one, other, third)] == [one.pid, other.pid, third.pid]
    os.kill(one.pid, signal.SIGKILL)
    assert one.of.readline() == b""
    assert ask(third, b"raise\n") == b""
    assert ask(other, b"hello\n") == b"hello\n"
    other.close()
    assert ended(other.pid), "nobody is at the other end of its pipes"
    again = zygote.fork()
    assert int(again.of.readline()) == again.pid
    for child in (one, third, again):
        child.close()


def test_its_own_end_is_an_error_and_mended_by_starting_it_again(zygote: Zygote) -> None:
    child = zygote.fork()
    child.of.readline()
    first = psutil.Process(child.pid).parent()
    assert first is not None
    first.kill()
    assert zygote._process is not None
    zygote._process.wait(20)
    assert ask(child, b"hello\n") == b"hello\n", "its children go on"
    with pytest.raises((OSError, EOFError)):
        zygote.fork()
    zygote.start()
    zygote.start()
    other = zygote.fork()
    assert int(other.of.readline()) == other.pid
    child.close()
    zygote.kill()
    assert ended(other.pid)
    assert other.of.readline() == b""
    other.close()
