"""The shop's orders, in SQLite."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Order:
    """An order. The month is a text such as "2026-10"."""

    id: int
    customer: str
    email: str
    cents: int
    month: str
    is_paid: bool


class Store:
    """The orders in a file. Every method blocks, so handlers use asyncio.to_thread()."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with closing(self._connect()) as connection, connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS orders"
                " (id INTEGER PRIMARY KEY, customer, email, cents, month, is_paid)"
            )

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path)

    def add(self, order: Order) -> None:
        """Stores an order, or replaces the one with the same id."""
        values = order.id, order.customer, order.email, order.cents, order.month, order.is_paid
        with closing(self._connect()) as connection, connection:
            connection.execute("INSERT OR REPLACE INTO orders VALUES (?, ?, ?, ?, ?, ?)", values)

    def order(self, id: int) -> Order:
        """The order with this id. Raises LookupError if there is none."""
        with closing(self._connect()) as connection:
            row = connection.execute("SELECT * FROM orders WHERE id = ?", (id,)).fetchone()
        if row is None:
            raise LookupError(f"there is no order {id}")
        return Order(*row[:5], is_paid=bool(row[5]))

    def sales(self, month: str) -> tuple[int, int]:
        """The number of paid orders of a month, and their sum in cents."""
        with closing(self._connect()) as connection:
            row: tuple[int, int] = connection.execute(
                "SELECT count(*), coalesce(sum(cents), 0) FROM orders WHERE month = ? AND is_paid",
                (month,),
            ).fetchone()
        return row
