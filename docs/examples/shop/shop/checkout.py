"""The checkout in the web server: store an order, and enqueue its jobs.

`python -m shop.checkout rrq.toml` does this once, with an example order.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from rrq.client import RRQClient

from .store import Order, Store


async def check_out(client: RRQClient, store: Store, order: Order) -> list[str]:
    """Stores an order, enqueues its jobs, and returns their ids."""
    await asyncio.to_thread(store.add, order)
    mail = {"to": order.email, "subject": "Your order", "text": f"Thank you, {order.customer}!"}
    jobs: list[tuple[str, dict[str, object]]] = [
        ("send_mail", {"params": mail, "job_id": f"mail-{order.id}"}),
        ("write_invoice", {"params": {"order": order.id}, "job_id": f"invoice-{order.id}"}),
    ]
    return [await client.enqueue(name, options) for name, options in jobs]


async def main(config: str) -> None:
    folder = Path(os.environ.get("SHOP_FOLDER", "shop-data"))
    folder.mkdir(parents=True, exist_ok=True)
    store = Store(folder / "orders.sqlite")
    order = Order(1, "Ada", "ada@example.com", 1999, "2026-10", is_paid=True)
    client = RRQClient(config_path=config)
    print(*await check_out(client, store, order), sep="\n")
    print(await client.enqueue("report_sales", {"params": {"month": order.month}}))
    await client.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
