"""Ends the process by force, and when its parent goes away.

This module is imported before anything that takes long, so that the parent is watched from the
start. What SIGTERM does is the business of process.py.
"""

from __future__ import annotations

import _thread
import os
import select
import signal
import socket
import sys
import threading
import time
from contextlib import suppress

__all__ = ["DEFAULT_GRACE", "Guard"]

# A worker has two seconds to end all of its runner processes, one after another. This is enough for
# fifty of them that do not end by themselves.
DEFAULT_GRACE = 0.02

# How often the guard looks whether the parent is alive, and how long the handlers have if it is
# not: together less than a second.
_PARENT_POLL_SECONDS = 0.2
_ORPHAN_GRACE_SECONDS = 0.6

# What remains when the event loop is closed, such as threads and atexit functions, has this long.
_EXIT_SECONDS = 0.1

# How long the last line may take: stderr may be a pipe that is full.
_LAST_LINE_SECONDS = 0.01

_LAST_LINE = (
    b"rrq-fastwire-runner: ended by force: a handler, or what it left running, did not end\n"
)

# A process that is to be replaced has this long instead of the grace, and of the time after that:
# no orchestrator waits for its end.
_RENEWAL_SECONDS = 5.0

# What the main thread sends to the guard.
_ENDING, _DRAINED, _CLOSED = b"e", b"d", b"c"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .handover import Handover


class Guard:
    """A thread that ends the process in any case, once the process has begun to end.

    The thread exists from the start and takes no lock: handlers may hold any of them, and a signal
    handler may interrupt the code that starts a thread.

    Arguments:
        grace: seconds from begin_end() until the event loop should be closed.
        watch_parent: whether to end the process when its parent goes away: as SIGTERM does, but
            within a second.
        drain: seconds from begin_end() that come before the grace, or less: see is_drained().
    """

    def __init__(self, grace: float, *, watch_parent: bool, drain: float = 0.0) -> None:
        self._grace = grace
        self._drain = drain
        self._handover: Handover | None = None
        self._parent = os.getppid() if watch_parent and os.name == "posix" else None
        self._starter = threading.get_ident()
        self._reader, self._writer = socket.socketpair()
        threading.Thread(target=self._run, name="rrq-fastwire-guard", daemon=True).start()

    def begin_end(self) -> None:
        """Starts the grace. Signal handlers may call this, and more than once."""
        self._writer.send(_ENDING)

    def is_drained(self) -> None:
        """Says that the jobs have ended, or were given up: the grace starts."""
        self._writer.send(_DRAINED)

    def begin_renewal(self, handover: Handover) -> None:
        """As begin_end(), for a process that is to be replaced in the end, by force if need be."""
        self._handover = handover
        self._drain, self._grace = 0.0, max(self._grace, _RENEWAL_SECONDS)
        self._writer.send(_ENDING)

    def loop_is_closed(self) -> None:
        """Says that the grace was enough. Only what Python does at its end remains."""
        self._writer.send(_CLOSED)

    def _run(self) -> None:
        if self._is_told_to_end():
            grace = self._grace
            if self._drain:
                self._receives(_DRAINED, self._drain)
        else:
            grace = min(self._grace, _ORPHAN_GRACE_SECONDS)
            # The main thread, which made this, has to wake up: it runs the signal handlers.
            signal.pthread_kill(self._starter, signal.SIGTERM)
        if self._receives(_CLOSED, grace):
            time.sleep(_EXIT_SECONDS if self._handover is None else _RENEWAL_SECONDS)
        with suppress(RuntimeError):  # CPython 3.12 starts no threads during its own end
            _thread.start_new_thread(os.write, (2, _LAST_LINE))
        time.sleep(_LAST_LINE_SECONDS)
        if self._handover is not None:
            self._handover.replace_process()
        os._exit(0)

    def _is_told_to_end(self) -> bool:
        """Waits for begin_end(); False if the parent goes away before."""
        parent = self._parent
        if parent is None:
            return self._receives(_ENDING, None)
        if _was_adopted_by(parent):
            return False
        while not self._receives(_ENDING, _PARENT_POLL_SECONDS):
            if os.getppid() != parent:
                return False
        return True

    def _receives(self, message: bytes, seconds: float | None) -> bool:
        """Waits for a message, and passes over others."""
        while select.select((self._reader,), (), (), seconds)[0]:
            if self._reader.recv(1) == message:
                return True
        return False


def _was_adopted_by(parent: int) -> bool:
    """Whether the process that started this one ended before it could be asked for.

    A process has the session of the one that started it, unless it leads one of its own. Who adopts
    orphans has another, as a rule: init, or a subreaper such as systemd.
    """
    if sys.platform != "linux" or parent == 0:  # 0 is a parent outside of the PID namespace
        return False
    session = os.getsid(0)
    try:
        return session not in (os.getpid(), os.getsid(parent))
    except OSError:  # the parent has just ended, which shows in getppid()
        return False
