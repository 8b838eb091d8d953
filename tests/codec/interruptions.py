"""Runs other code in the middle of a call: when it runs, and where.

The moments are events of tracing and profiling, collections, and calls of `__del__`. Python code has
them at each line or bytecode. Compiled code has them where it calls Python, and where it allocates a
container that does not come from a free list of CPython.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import tracemalloc
from _thread import interrupt_main
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from itertools import count, cycle


class Interruption:
    """Calls `action` once, at the moment of this number. Its own calls do not count as moments."""

    def __init__(self, number, action):
        self._left = number
        self._action = action
        self._is_busy = False
        self.happened = False

    def moment(self):
        if self._is_busy or self.happened:
            return
        self._left -= 1
        if self._left:
            return
        self._is_busy = self.happened = True
        try:
            self._action()
        finally:
            self._is_busy = False


# When


@contextmanager
def traced(interruption, *, by_bytecode=False):
    moments = ("opcode" if by_bytecode else "line", "exception", "return")

    def trace(frame, event, argument):
        if interruption.happened or "rrq_fastwire" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = by_bytecode
        if event in moments:
            interruption.moment()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


traced_by_bytecode = partial(traced, by_bytecode=True)


@contextmanager
def profiled(interruption):
    def profile(frame, event, argument):
        # Calls of functions in C are events, too, compiled code's only where Python calls it.
        interruption.moment()

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(before)


@contextmanager
def collecting_often():
    before = gc.get_threshold()
    gc.freeze()  # else each collection would look at all objects of the tests
    gc.set_threshold(1)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


@contextmanager
def collecting(interruption):
    def callback(phase, info):
        interruption.moment()

    gc.callbacks.append(callback)
    try:
        with collecting_often():
            yield
    finally:
        gc.callbacks.remove(callback)


@contextmanager
def finalizing(interruption):
    class Cycle:
        """Is found by the next collection, and leaves another one behind."""

        def __init__(self):
            self.me = self

        def __del__(self):
            if is_on and not interruption.happened:
                Cycle()
                interruption.moment()

    is_on = True
    with collecting_often():
        Cycle()
        try:
            yield
        finally:
            is_on = False


@contextmanager
def tracking_memory(interruption):
    """As collecting(), while tracemalloc looks at each allocation."""
    tracemalloc.start(5)
    try:
        with collecting(interruption):
            yield
    finally:
        tracemalloc.stop()


# Where


def in_place(action):
    action()


def in_a_signal_handler(action):
    before = signal.signal(signal.SIGTERM, lambda *_: action())
    try:
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


@cache
def another_thread():
    return ThreadPoolExecutor(1)


def in_a_thread(action):
    another_thread().submit(action).result()


def in_a_forked_process(action):
    """Forks in another thread, so that the call that is interrupted never ends in the child."""

    def fork():
        child = os.fork()
        if child == 0:
            status = 1
            try:
                action()
                status = 0
            finally:
                os._exit(status)
        return os.waitpid(child, 0)[1]

    assert another_thread().submit(fork).result() == 0


def at_each_moment(when, where, prepare, action):
    """Makes a call again and again, and each time does the action at a later moment of it.

    Arguments:
        when, where: functions of this file.
        prepare: returns a new object for each call, which has the method `call`.
        action: gets this object.

    Yields the object after each call.
    """
    for number in count(1):
        subject = prepare()
        interruption = Interruption(number, partial(where, partial(action, subject)))
        with when(interruption):
            subject.call()
        yield subject
        if not interruption.happened:
            break


# All the time


@contextmanager
def by_a_thread(actions):
    """Does the actions in another thread. Yields a function that returns whether all are done."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    done = another_thread().submit(lambda: [action() for action in actions])
    try:
        yield done.done
        done.result()
    finally:
        sys.setswitchinterval(before)


@contextmanager
def by_signals(actions):
    """As by_a_thread(), but the thread sends a signal for each action, and the handler does it."""
    following = cycle(actions)
    before = signal.signal(signal.SIGTERM, lambda *_: next(following)())
    try:
        with by_a_thread([partial(interrupt_main, signal.SIGTERM)] * len(actions)) as is_done:
            yield is_done
    finally:
        signal.signal(signal.SIGTERM, before)
