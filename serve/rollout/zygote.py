"""A process that has imported what its children need and forks one whenever it is asked, so that one that crashes is
back in milliseconds rather than after seconds of imports, which would slow what else runs on the machine."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from typing import IO, Any

from cltrain.config import locate

NICENESS = 10  # from the first import on; children get it too


@dataclass(frozen=True)
class Child:
    """One process and the pipes to it. It ends when they are closed, if it reads."""

    pid: int
    to: IO[bytes]
    of: IO[bytes]

    def close(self) -> None:
        for pipe in (self.to, self.of):
            with contextlib.suppress(OSError):
                pipe.close()


class Zygote:
    """function: of two pipes, to read from and to write to, by its dotted name; its module
    is what is imported once."""

    def __init__(self, function: str) -> None:
        self._function = function
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def start(self) -> None:
        """Once more if it has died; it need not have imported anything when this returns."""
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        code = f"import os; os.nice({NICENESS}); from serve.rollout.zygote import wait; wait({theirs.fileno()})"
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "OMP_NUM_THREADS": "1",
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # asking for GPUs starts nothing that would not survive a fork
        }
        command = [sys.executable, "-c", code, self._function]
        with theirs:
            # a group, so that all are killed together, and no session: those share processors as equals, whatever the
            # priority of what runs in them
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment, process_group=0)

    def fork(self) -> Child:
        """Waits for the imports. Raises `OSError` or `EOFError` when the zygote dies meanwhile."""
        assert self._control is not None, "start() comes first"
        their_source, to = os.pipe()
        of, their_sink = os.pipe()
        try:
            socket.send_fds(self._control, [b"."], [their_source, their_sink])
            said = self._control.recv(32)
            if not said:
                raise EOFError
        except BaseException:
            os.close(to)
            os.close(of)
            raise
        finally:
            os.close(their_source)
            os.close(their_sink)
        return Child(int(said), os.fdopen(to, "wb"), os.fdopen(of, "rb"))

    def kill(self) -> None:
        """It and its children, at once, also while another thread forks. Safe to call at any time."""
        if self._process is not None:
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def close(self) -> None:
        """`kill`, when no other thread forks any more."""
        self.kill()
        if self._control is not None:
            self._control.close()


def wait(descriptor: int) -> None:
    """The process: fork for each message, until the other side is gone."""
    function: Any = locate(sys.argv[1], "zygote")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children that end leave nothing behind
    with socket.socket(fileno=descriptor) as control:
        while True:
            message, pipes, *_ = socket.recv_fds(control, 1, 2)
            if not message:
                return
            pid = os.fork()
            if pid == 0:
                control.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                try:
                    with os.fdopen(pipes[0], "rb") as source, os.fdopen(pipes[1], "wb") as sink:
                        function(source, sink)
                except (EOFError, BrokenPipeError, ValueError):  # the other side is gone
                    os._exit(0)
                except BaseException:
                    sys.excepthook(*sys.exc_info())
                    os._exit(1)
                os._exit(0)
            for pipe in pipes:
                os.close(pipe)
            control.send(str(pid).encode())
