"""How many bytes an update takes on its way, by how its entries are coded."""

from __future__ import annotations

from dataclasses import dataclass

FLOAT_BITS = 32
INDEX_BITS = 32


@dataclass(frozen=True, kw_only=True)
class Coding:
    """How an update is put into bytes: codes of fixed length, no entropy coding.

    None leaves what the parts before have made of it.

    Args:
        entries: how many are sent; the others are zero.
        index_bits: bits that say which entry is meant; 0 where all are sent in order.
        value_bits: bits of an entry's value.
        extra_bytes: what is sent beside, such as a scale a tensor.
    """

    entries: int | None = None
    index_bits: int | None = None
    value_bits: int | None = None
    extra_bytes: int | None = None

    @classmethod
    def dense(cls, entries: int) -> Coding:
        """Return the coding of so many plain float32 numbers."""
        return cls(entries=entries, index_bits=0, value_bits=FLOAT_BITS, extra_bytes=0)

    @classmethod
    def sparse(cls, entries: int) -> Coding:
        """Return the coding of a few entries, each with its place."""
        return cls(entries=entries, index_bits=INDEX_BITS)

    def then(self, later: Coding | None) -> Coding:
        """Return this coding as a later part changes it."""
        if later is None:
            return self
        return Coding(
            entries=_either(later.entries, self.entries),
            index_bits=_either(later.index_bits, self.index_bits),
            value_bits=_either(later.value_bits, self.value_bits),
            extra_bytes=_either(later.extra_bytes, self.extra_bytes),
        )

    def bytes_of(self, total: int) -> int:
        """Return the bytes of an update of so many entries; all of them, where that is shorter."""
        sent = total if self.entries is None else self.entries
        value = FLOAT_BITS if self.value_bits is None else self.value_bits
        listed = sent * ((self.index_bits or 0) + value)
        bits = min(listed, total * value) if self.index_bits else listed
        return -(-bits // 8) + (self.extra_bytes or 0)


def _either(later: int | None, earlier: int | None) -> int | None:
    return earlier if later is None else later
