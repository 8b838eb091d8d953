"""No job is lost while runners, the orchestrator and Redis are killed at random.

Two sites run side by side, with the same plan of kills: one with the stock runner, for comparison,
and one with this package's runner.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter

import pytest
from redis import Redis
from redis.exceptions import RedisError

from rrq_fastwire.cli.runner_process import free_port

from .orchestrator import HERE, Orchestrator, Pool, session, wait_until

RUNNERS = {"stock": ["rrq-runner"], "ours": ["rrq-fastwire-runner"]}

# What is killed, and by which signal. At SIGTERM, the orchestrator stops its runners itself.
PLAN = [
    ("runner", signal.SIGKILL),
    ("runner", signal.SIGTERM),
    ("orchestrator", signal.SIGKILL),
    ("orchestrator", signal.SIGTERM),
    ("redis", signal.SIGKILL),
]

# Short times, because the jobs of a killed orchestrator run again only when their lock has expired.
SETTINGS = """
default_job_timeout_seconds = 10
default_lock_timeout_extension_seconds = 1
max_retry_delay_seconds = 1
worker_health_check_interval_seconds = 1
worker_health_check_ttl_buffer_seconds = 1
"""

# Seconds after the last kill until one more job has ended. A busy machine leaves many to run.
DRAIN_SECONDS = 120

# A runner that has lost its orchestrator ends within a second, unless the machine is busy.
ORPHAN_SECONDS = 20


class Site:
    """A Redis, an orchestrator with its runners, and a producer of jobs.

    Attributes:
        kills: how often each entry of PLAN was carried out.
        orphans: how many runners kept running after their orchestrator had been killed.
    """

    def __init__(self, stack, version, bin, directory, runner):
        self._name = directory.name
        self.kills = Counter()
        self.orphans = 0
        self._stack = stack
        self._redis_port = free_port()
        self._redis_directory = directory / "redis"
        self._redis_directory.mkdir()
        self._redis = self._start_redis()
        self.database = Redis(port=self._redis_port, decode_responses=True)
        wait_until(self._redis_answers)
        orchestrator = Orchestrator(version, bin, self.database, directory)
        self.deployment = orchestrator.deploy(runner, Pool(2, 4))
        self._ends_orphans_itself = runner != RUNNERS["stock"]
        config = self.deployment.directory / "rrq.toml"
        config.write_text(config.read_text().replace("[rrq]\n", f"[rrq]{SETTINGS}"))
        self._worker = self._start_worker()
        self._acknowledged = directory / "acknowledged"
        self._producer = self._spawn(
            [bin / "python", HERE / "produce.py", config, self._acknowledged, self._name]
        )

    def run(self, seconds, seed):
        """Kills something about once a second, and restarts it."""
        plan = random.Random(seed)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pause = time.monotonic() + plan.uniform(0.3, 1.7)
            self._kill(*plan.choice(PLAN), plan)
            while time.monotonic() < pause:
                self._tend()
                time.sleep(0.05)
        self._producer.kill()
        self._producer.wait()

    def drain(self):
        """Keeps everything running until every job has ended, or none has for DRAIN_SECONDS."""
        left = self.acknowledged()
        limit = time.monotonic() + DRAIN_SECONDS
        while left and time.monotonic() < limit:
            self._tend()
            with contextlib.suppress(RedisError):
                statuses = zip(left, self._statuses(left), strict=True)
                still = [id for id, status in statuses if status not in ("COMPLETED", "FAILED")]
                if len(still) < len(left):
                    limit = time.monotonic() + DRAIN_SECONDS
                left = still
            time.sleep(0.2)

    def statuses(self):
        """The number of acknowledged jobs in each status."""
        return Counter(self._statuses(self.acknowledged()))

    def _statuses(self, jobs):
        with self.database.pipeline(transaction=False) as pipeline:
            for id in jobs:
                pipeline.hget(f"rrq:job:{id}", "status")
            return pipeline.execute()

    def failures(self):
        """The errors of the jobs that failed, and how often each came."""
        states = self.deployment.states(self.acknowledged())
        return Counter(
            state["last_error"] for state in states.values() if state["status"] == "FAILED"
        )

    def acknowledged(self):
        """The ids of the jobs that Redis has acknowledged to the producer."""
        return self._acknowledged.read_text().splitlines()

    def ledger(self):
        """How often each job has run to its end."""
        ledger = Counter((self.deployment.directory / "ledger").read_text().splitlines())
        assert all(id.startswith(self._name) for id in ledger), "jobs of another site"
        return ledger

    def _kill(self, victim, number, plan):
        if victim == "redis":
            pid = self._redis.pid
        elif victim == "orchestrator":
            pid = self._worker.pid
        else:
            runners = [pid for pid in session(self._worker.pid) if pid != self._worker.pid]
            if not runners:
                return
            pid = plan.choice(runners)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            self.kills[victim, number.name] += 1

    def _tend(self):
        """Restarts Redis and the orchestrator if they are down."""
        if self._redis.poll() is not None:
            self._redis = self._start_redis()
            wait_until(self._redis_answers)
        if self._worker.poll() is not None:
            if self._ends_orphans_itself:
                limit = time.monotonic() + ORPHAN_SECONDS
                wait_until(lambda: not session(self._worker.pid), limit)
                self.orphans += len(session(self._worker.pid))
            self._stop_worker.close()
            self._worker = self._start_worker()

    def _start_worker(self):
        self._stop_worker = contextlib.ExitStack()
        self._stack.callback(self._stop_worker.close)
        return self._stop_worker.enter_context(self.deployment.worker())

    def _start_redis(self):
        # With these options, Redis acknowledges only what is on the disk.
        options = ["--appendonly", "yes", "--appendfsync", "always", "--save"]
        return self._spawn(
            ["redis-server", "--bind", "127.0.0.1", "--port", str(self._redis_port), *options, ""],
            cwd=self._redis_directory,
            stdout=subprocess.DEVNULL,
        )

    def _redis_answers(self):
        with contextlib.suppress(RedisError):
            return self.database.ping()
        return False

    def _spawn(self, command, **options):
        process = self._stack.enter_context(subprocess.Popen(command, **options))
        self._stack.callback(process.kill)
        return process


@pytest.mark.parametrize("orchestrator", ["0.11.1"], indirect=True)
def test_no_job_is_lost_while_everything_is_killed(request, orchestrator, tmp_path):
    seconds = request.config.getoption("chaos_seconds")
    seed = random.SystemRandom().randrange(10**6)
    print(f"\n{seconds} s, seed {seed}")
    with contextlib.ExitStack() as stack:
        sites = {}
        for name, runner in RUNNERS.items():
            (tmp_path / name).mkdir()
            sites[name] = Site(
                stack, orchestrator.version, orchestrator.bin, tmp_path / name, runner
            )
        threads = [
            threading.Thread(target=live, args=(site, seconds, seed)) for site in sites.values()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for name, site in sites.items():
            jobs, ledger = site.acknowledged(), site.ledger()
            print(f"{name}: {len(jobs)} jobs, {dict(site.statuses())} {dict(site.failures())}")
            print(
                f"    {len(set(jobs) - ledger.keys())} lost, {sum(ledger.values()) - len(ledger)} duplicates"
            )
            kills = ", ".join(
                f"{victim} by {name} {times}" for (victim, name), times in site.kills.items()
            )
            print(f"    {site.kills.total()} kills: {kills}")
        ours = sites["ours"]
        assert set(ours.acknowledged()) <= ours.ledger().keys()
        assert ours.statuses() == {"COMPLETED": len(ours.acknowledged())}
        assert ours.orphans == 0


def live(site, seconds, seed):
    """Kills processes of a site for some seconds, and then lets its jobs end."""
    site.run(seconds, seed)
    site.drain()
