"""Makes structured values from a fuzzer's bytes. After the last byte, all choices are zero."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeVar

    T = TypeVar("T")


class Choices:
    """Makes choices. Each takes the next bytes.

    Arguments:
        data: the bytes that the fuzzer mutates.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        """Whether bytes are left. Loops need this to end, because choices never fail."""
        return self._at < len(self._data)

    def bytes(self, size: int) -> bytes:
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken

    def rest(self) -> bytes:
        return self.bytes(max(0, len(self._data) - self._at))

    def number(self, largest: int) -> int:
        """An integer from 0 to `largest`."""
        size = (largest.bit_length() + 7) // 8
        return int.from_bytes(self.bytes(size)) % (largest + 1)

    def one_of(self, options: Sequence[T]) -> T:
        return options[self.number(len(options) - 1)]

    def text(self) -> str:
        """Text in which lone surrogates can occur."""
        return self.bytes(self.number(40)).decode("utf-8", "surrogateescape")
