"""The web shop of docs/examples works: its own tests pass, and its jobs run in the orchestrators."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path

import pytest

from rrq_fastwire.cli.runner_process import free_port

from .orchestrator import PORTS, RUN_SECONDS, SOCKETS, Deployment, call

ROOT = Path(__file__).parents[2]
SHOP = ROOT / "docs" / "examples" / "shop"

# The first test of a version waits for the build, the installation and the run.
pytestmark = pytest.mark.timeout(900)

MAIL = {"to": "ada@example.com", "subject": "Your order", "text": "Thank you, Ada!"}
JOBS = {
    "mail-1": ("send_mail", {"params": MAIL}),
    "invoice-1": ("write_invoice", {"params": {"order": 1}}),
    "invoice-2": ("write_invoice", {"params": {"order": 2, "wait": 0.1}, "max_retries": 2}),
    "report": ("report_sales", {"params": {"month": "2026-10"}}),
}
ADD_ORDERS = """
from pathlib import Path
from shop.store import Order, Store

store = Store(Path("shop-data") / "orders.sqlite")
store.add(Order(1, "Ada", "ada@example.com", 1999, "2026-10", is_paid=True))
store.add(Order(2, "Grace", "grace@example.com", 500, "2026-10", is_paid=False))
"""


@pytest.fixture
def shop(orchestrator, monkeypatch, tmp_path):
    """A copy of the shop, with two orders, one of them not paid, and an empty Redis."""
    folder = tmp_path / "shop"
    shutil.copytree(SHOP, folder, ignore=shutil.ignore_patterns("__pycache__", "shop-data"))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("PATH", str(orchestrator.bin), prepend=os.pathsep)
    (folder / "shop-data").mkdir()
    call(orchestrator.bin / "python", "-c", ADD_ORDERS)
    port = orchestrator.database.get_connection_kwargs()["port"]
    socket = SOCKETS[orchestrator.version].format(port=free_port(PORTS))
    text = (folder / "rrq.toml").read_text()
    text = re.sub("redis_dsn = .*", f'redis_dsn = "redis://127.0.0.1:{port}/0"', text)
    text = re.sub("tcp_port = .*", socket, text)
    # Lets retries follow soon.
    text = text.replace("[rrq]\n", "[rrq]\nbase_retry_delay_seconds = 0.1\n", 1)
    (folder / "rrq.toml").write_text(text)
    orchestrator.database.flushall()
    return folder


def test_jobs_of_the_shop_end_as_expected(orchestrator, shop):
    # The port and the command matter only for runners that a test starts.
    deployment = Deployment(orchestrator.bin, orchestrator.database, shop, port=0, command=[])
    deployment.enqueue(JOBS)
    deployment.work(JOBS, time.monotonic() + RUN_SECONDS)

    states = deployment.states(JOBS)
    results = {id: (state["status"], state["result"]) for id, state in states.items()}
    assert results == {
        "mail-1": ("COMPLETED", None),
        "invoice-1": ("COMPLETED", {"file": "invoice-1.txt", "cents": 1999}),
        "invoice-2": ("FAILED", None),
        "report": ("COMPLETED", {"month": "2026-10", "orders": 1, "cents": 1999}),
    }, deployment.log
    assert "order 2 is not paid yet" in states["invoice-2"]["last_error"]
    files = sorted(path.name for path in (shop / "shop-data").rglob("*") if path.is_file())
    assert files == ["invoice-1.txt", "mail-1.eml", "orders.sqlite"]


def test_a_checkout_enqueues_its_jobs(orchestrator, shop):
    call(orchestrator.bin / "python", "-m", "shop.checkout", "rrq.toml")
    params = json.loads(orchestrator.database.hget("rrq:job:invoice-1", "job_params"))
    assert params == {"order": 1}


def test_the_shops_own_tests_pass(orchestrator, shop):
    call(orchestrator.bin / "python", "-m", "pip", "install", "--quiet", "pytest")
    call(orchestrator.bin / "python", "-m", "pytest", "-p", "no:cacheprovider", "tests")
