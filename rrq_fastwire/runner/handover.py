"""Replace the process with a new one that has its sockets, its process id and its command line.

An orchestrator does not notice this. If the process ended instead, the orchestrator would start
another one. But jobs that it sends in the meantime would fail, because a job fails if its
connection is closed or cannot be opened. POSIX only.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import FrameType

__all__ = ["Handover"]

# The descriptors of the sockets, as "listener,connection,...".
_VARIABLE = "RRQ_FASTWIRE_RUNNER_SOCKETS"

# Not those of process.py: it imports asyncio, which imports logging, whose atexit function is then
# registered before that of the command, and does not run at a restart.
_ENDING_SIGNALS = signal.SIGTERM, signal.SIGINT


class Handover:
    """What a process inherits from the one that it replaces, and passes on to the next one.

    Create it before the settings are imported, which may change the directory, the environment or
    the blocked signals.

    Attributes:
        listener: the inherited socket that listens; None if this process replaces no other.
        connections: the inherited sockets of connections.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._directory = os.getcwd()
        self._blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        text = os.environ.pop(_VARIABLE, "")
        self._environment = dict(os.environ)
        self._kept: list[socket.socket] = []
        self._is_due = False
        sockets = [socket.socket(fileno=int(number)) for number in text.split(",") if number]
        for each in sockets:
            each.set_inheritable(False)
            each.setblocking(False)
        self.listener = sockets[0] if sockets else None
        self.connections = sockets[1:]
        if sockets:
            _reap_children()

    def keep(self, descriptors: Iterable[int]) -> None:
        """Keep sockets open for the next process, even if this one closes them.

        Arguments:
            descriptors: the file descriptors of the listening socket and of the connections.

        Raises OSError, and keeps none, if there are not enough file descriptors.
        """
        try:
            for descriptor in descriptors:
                self._kept.append(socket.socket(fileno=os.dup(descriptor)))
        except OSError:
            self.abandon()
            raise
        self._is_due = True

    def keep_inherited(self) -> None:
        """Pass on to the next process the sockets that this one inherited and has not used."""
        if self.listener is not None:
            self._kept = [self.listener, *self.connections]
        self._is_due = True

    def is_due(self) -> bool:
        """Return whether the process is to be replaced at its end."""
        return self._is_due

    def abandon(self) -> None:
        """Close the kept sockets, so that the process ends instead of being replaced."""
        self._is_due = False
        for each in self._kept:
            each.close()
        self._kept.clear()

    def end_at_signals(self) -> None:
        """If the process is to be replaced, let SIGTERM and SIGINT end it instead, but not at once.

        The event loop no longer handles signals, but the lifespan, `atexit` functions and open
        files still have to end. Only the main thread can call this.
        """

        def end(number: int, _: FrameType | None) -> None:
            self.abandon()
            signal.signal(number, signal.SIG_DFL)  # so that the second signal kills

        for number in _ENDING_SIGNALS if self._is_due else ():
            if signal.getsignal(number) is signal.SIG_DFL:  # otherwise it is the user's own
                signal.signal(number, end)

    def replace_process(self) -> None:
        """Start the next process in place of this one, if that is due.

        Returns only if it is not due, or if it fails. Any thread may call this.
        """
        if not self._is_due or os.getpid() != self._pid:  # an atexit function has forked
            return
        self._restore_signals()
        if not self._is_due:  # a signal has just arrived
            return
        for each in self._kept:
            each.set_inheritable(True)
        self._environment[_VARIABLE] = ",".join(str(each.fileno()) for each in self._kept)
        with suppress(OSError):
            os.chdir(self._directory)
        with suppress(OSError):
            os.execve(sys.executable, sys.orig_argv, self._environment)

    def _restore_signals(self) -> None:
        """Undo what the settings and handlers have changed, as far as `exec` would keep it."""
        with suppress(ValueError):  # in the guard's thread
            for number in _ENDING_SIGNALS:
                if callable(signal.getsignal(number)):  # would be lost, and the signal with it
                    signal.signal(number, signal.SIG_DFL)
        for timer in signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF:
            signal.setitimer(timer, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._blocked)


def _reap_children() -> None:
    """Reap ended children of the previous program, which nothing in this one knows."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
