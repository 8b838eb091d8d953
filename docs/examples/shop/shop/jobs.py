"""The handlers of the shop, and the `settings` and `lifespan` of its runner."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rrq.exc import RetryJob
from rrq.registry import Registry
from rrq.runner_settings import PythonRunnerSettings

from rrq_fastwire.runner import lifespan_value

from .outbox import Outbox
from .store import Store

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


@dataclass
class Shop:
    """The resources that the handlers share. lifespan() opens them before the first job."""

    folder: Path
    store: Store
    outbox: Outbox


@asynccontextmanager
async def lifespan() -> AsyncGenerator[Shop]:
    """Opens the shop in SHOP_FOLDER. Mail also goes to the server SHOP_SMTP if it is set."""
    folder = Path(os.environ.get("SHOP_FOLDER", "shop-data"))
    folder.mkdir(parents=True, exist_ok=True)
    store = await asyncio.to_thread(Store, folder / "orders.sqlite")
    yield Shop(folder, store, Outbox(folder / "mail", os.environ.get("SHOP_SMTP", "")))


async def send_mail(request: Any) -> None:
    """Sends a mail. Params: to, subject, text."""
    shop: Shop = lifespan_value()
    params = request.params
    await asyncio.to_thread(
        shop.outbox.send, request.job_id, params["to"], params["subject"], params["text"]
    )


async def write_invoice(request: Any) -> dict[str, Any]:
    """Writes an invoice, or asks for a retry if the order is not paid yet.

    Params: order, the order's id; wait, the seconds until the retry (60 by default).
    """
    shop: Shop = lifespan_value()
    order = await asyncio.to_thread(shop.store.order, request.params["order"])
    if not order.is_paid:
        raise RetryJob(f"order {order.id} is not paid yet", request.params.get("wait", 60))
    file = shop.folder / f"invoice-{order.id}.txt"
    text = f"Invoice {order.id}\n{order.customer}\n{order.cents / 100:.2f} EUR\n"
    await asyncio.to_thread(file.write_text, text)
    return {"file": file.name, "cents": order.cents}


async def report_sales(request: Any) -> dict[str, Any]:
    """Counts the paid orders of a month, and adds them up. Params: month, such as "2026-10"."""
    shop: Shop = lifespan_value()
    month = request.params["month"]
    orders, cents = await asyncio.to_thread(shop.store.sales, month)
    return {"month": month, "orders": orders, "cents": cents}


registry = Registry()
for handler in (send_mail, write_invoice, report_sales):
    registry.register(handler.__name__, handler)
settings = PythonRunnerSettings(registry=registry)
