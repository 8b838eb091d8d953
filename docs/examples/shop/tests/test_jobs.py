"""Tests of the handlers: each job runs in a new runner, without Redis and the orchestrator."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from rrq_fastwire import ExecutionOutcome
from rrq_fastwire.testing import running
from shop.jobs import lifespan, settings
from shop.store import Order, Store

PAID = Order(1, "Ada", "ada@example.com", 1999, "2026-10", is_paid=True)
UNPAID = Order(2, "Grace", "grace@example.com", 500, "2026-10", is_paid=False)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shop's folder, which has a paid and an unpaid order."""
    monkeypatch.setenv("SHOP_FOLDER", str(tmp_path))
    store = Store(tmp_path / "orders.sqlite")
    store.add(PAID)
    store.add(UNPAID)
    return tmp_path


def run(function_name: str, **params: Any) -> ExecutionOutcome:
    """The outcome of one job."""

    async def execute() -> ExecutionOutcome:
        async with running(settings.registry, lifespan=lifespan) as client:
            return await client.execute(function_name, params, job_id="job-1", timeout=10)

    return asyncio.run(execute())


def test_mail_is_sent_once_if_its_job_runs_twice(folder):
    for _ in range(2):
        outcome = run("send_mail", to="ada@example.com", subject="Your order", text="Thank you!")
        assert outcome.type == "success"
    (mail,) = folder.glob("mail/*.eml")
    assert "To: ada@example.com" in mail.read_text()


def test_invoice_of_a_paid_order_is_written(folder):
    assert run("write_invoice", order=1).result == {"file": "invoice-1.txt", "cents": 1999}
    assert "19.99 EUR" in (folder / "invoice-1.txt").read_text()


def test_invoice_of_an_unpaid_order_is_tried_again_later():
    outcome = run("write_invoice", order=2)
    assert (outcome.type, outcome.retry_after_seconds) == ("retry_after", 60)


def test_invoice_of_an_unknown_order_fails():
    outcome = run("write_invoice", order=3)
    assert (outcome.type, outcome.error.message) == ("failure", "there is no order 3")


def test_report_counts_paid_orders():
    result = run("report_sales", month="2026-10").result
    assert result == {"month": "2026-10", "orders": 1, "cents": 1999}
