"""Processes that start runners at the same time do not get the same ports."""

from __future__ import annotations

import itertools

from rrq_fastwire.cli.runner_process import free_port


def test_processes_with_successive_ids_get_different_ports(monkeypatch):
    taken = {}
    for pid in range(1000, 1010):
        monkeypatch.setattr("os.getpid", lambda pid=pid: pid)
        taken[pid] = {free_port() for _ in range(50)}
    assert len(set.union(*taken.values())) == 500


def test_ports_that_follow_each_other_are_given_to_one_caller(monkeypatch):
    for begin in range(220):
        monkeypatch.setattr("rrq_fastwire.cli.runner_process._places", itertools.count(begin))
        first = free_port(50)
        assert free_port() not in range(first, first + 50)
