"""How matrices of a tensor type are packed, and what follows from it for kernels.

A row of the table in quants.py says what a code is and in which form the scales are; sizes, the
defines of the .cl files and the bounds of integer sums are worked out here. unpack.cl describes
where codes lie, scales.cl where scales do. Knows nothing of devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass

from msgspec import Struct

ROWS = 16  # side by side (lanes.cl)
BLOCK = 32  # columns per block
SPAN = 8  # blocks of activations that may share a scale

# Of activations (activation.cl): the largest code of 16 and of 8 bits, and the largest sum of the
# magnitudes of 64 columns where blocks share a scale.
CODE_MAX, BYTE_CODE_MAX, SPAN_SUM_MAX = 16383, 127, 524224
INT_MAX, SHORT_MAX = 2**31 - 1, 2**15 - 1


@dataclass(frozen=True, slots=True)
class Scales:
    """A form of scales, SCALES_x of scales.cl: weight = code * d + m, by super-block.

    ``head`` and ``per_block`` are bytes of a row: of a super-block, and of each block in it.
    """

    name: str
    head: int
    per_block: int = 0
    _: KW_ONLY
    parts: int = 1  # float scales of a block's columns
    columns: int = BLOCK  # that a scale covers
    has_offset: bool = False  # m is not a multiple of the super-block's d
    signed: bool = False  # codes are: their sign is at the top of a short
    code_factor: int = 1  # the largest integer by which codes are multiplied
    sum_factor: int = 1  # the same of sums of products
    takes_bytes: bool = True  # quads.cl has it, for activations of 8 bits
    of_matrix: bool = False  # the whole matrix has a scale beside those of blocks


HALF = Scales("HALF", 2)
HALVES = Scales("HALVES", 4, has_offset=True)
K = Scales("K", 4, 2, has_offset=True, sum_factor=63)
K2 = Scales("2K", 4, 2, parts=2, columns=16, has_offset=True)
CHAR = Scales("CHAR", 2, 1)
CHARS = Scales("CHARS", 2, 2, columns=16, signed=True, code_factor=128)
NIBBLES = Scales("NIBBLES", 2, 1, columns=16, code_factor=31)
IQ1S = Scales("1S", 2, 1, has_offset=True)
IQ1M = Scales("1M", 2, 2, columns=16, code_factor=15 * 9, takes_bytes=False)  # eighths
E8M0 = Scales("E8M0", 1)
UE4M3 = Scales("UE4M3", 1, 2, parts=2, columns=16, takes_bytes=False, of_matrix=True)
FLOAT = Scales("FLOAT", 4, takes_bytes=False)


@dataclass(frozen=True, slots=True)
class Packing:
    """Integer codes: weight = scale * (code * step - offset), where no form says otherwise.

    ``values`` is what the codes stand for, else themselves: ascending, or a 0 first, so that code
    0 is 0 in the tables that they become. ``halves``: the bytes of a block in the file where its
    half-precision scale, and offset, begin. ``largest``: of the codes in the mean
    of a block, if their bits allow more.
    """

    bits: int
    scales: Scales = HALF
    _: KW_ONLY
    step: float = 1.0
    offset: float = 0.0
    values: tuple[int, ...] = ()
    halves: tuple[int, ...] = (0,)
    largest: int | None = None

    @property
    def code_bytes(self) -> int:
        """Of a block of 16 rows."""
        return ROWS * BLOCK * self.bits // 8

    def scale_bytes(self, n_blocks: int) -> int:
        """Of a super-block, of so many blocks, of 16 rows."""
        return ROWS * (self.scales.head + self.scales.per_block * n_blocks)

    @property
    def moved_up(self) -> int:
        """What is added to all values so that the first is 0."""
        return -self.values[0] if self.values else 0

    @property
    def code_at(self) -> int:
        """The bit of a short where a code is placed."""
        if self.scales.signed:
            return 16 - self.bits
        return 8 if self.values and not self.moved_up else 0  # makes a signed short of a byte

    @property
    def code_max(self) -> int:
        """The largest magnitude of an integer that is multiplied with activations of 16 bits, its
        integer scale included: at most 4096, or so much in the mean of a block, since an int32
        holds the sum of 32 products."""
        if self.largest is not None:
            return self.largest
        factor, signed = self.scales.code_factor, self.scales.signed or self.bits == 8
        if not self.values:
            return factor * (1 << (self.bits - 1) if signed else self._most)
        if self.moved_up:
            return max(self.values) + self.moved_up
        if factor == 1:  # nothing moves it down from where the table placed it
            factor = 1 << self.code_at
        return factor * max(map(abs, self.values))

    @property
    def span(self) -> int:
        """Blocks whose products, times their integer scales, an int32 holds the sum of, if their
        activations share a scale; 1 for forms whose scales do not multiply sums."""
        if self.scales.sum_factor == 1:
            return 1
        weight = self._most * self.scales.sum_factor
        most = INT_MAX // (weight * SPAN_SUM_MAX) * 64 // BLOCK
        return _power_of_two(min(most, SPAN))

    @property
    def byte_max(self) -> int:
        """The largest magnitude of a code as a byte (quads.cl)."""
        if self.values:
            return max(map(abs, self.values))
        return 128 if self.bits == 8 else self._most

    @property
    def depth(self) -> int:
        """How many quads' products of bytes a sum of 16 bits holds, at most those of a scale."""
        of_quad = 2 * self.byte_max * BYTE_CODE_MAX
        return _power_of_two(min(SHORT_MAX // of_quad, self.scales.columns // 4))

    @property
    def _most(self) -> int:
        """The largest code that is not signed."""
        return (1 << self.bits) - 1

    def defines(self, n_blocks: int) -> Iterator[str]:
        """For super-blocks of so many blocks."""
        high = {5: 1, 6: 2}.get(self.bits, 0)  # bits that lie in planes of their own
        scales, offset = self.scales, self.offset or self.moved_up * self.step
        yield f"LOW_BITS={self.bits - high}"
        yield f"HIGH_BITS={high}"
        yield f"QBYTES={self.code_bytes}"
        yield f"SCALES_{scales.name}"
        yield f"SUPER={n_blocks}"
        yield f"SBYTES={self.scale_bytes(n_blocks)}"
        yield f"PARTS={scales.parts}"
        yield f"STEP={float(self.step)!r}f"
        yield f"OFFSET={float(offset)!r}f"
        yield f"CODE_AT={self.code_at}"
        if offset or scales.has_offset:
            yield "WITH_M"
        if self.values:
            yield from _table("TABLE", [value + self.moved_up for value in self.values])
        if self.span > 1:
            yield f"MOST_SPAN={self.span}"
        if scales.takes_bytes:
            yield f"DEPTH={self.depth}"
            if self.values:
                yield from _table("BYTE_TABLE", self.values)
            if self.values or self.bits == 8:
                yield "SIGNED_CODES"
        yield from (f"{name}_AT={at}" for name, at in zip("DM", self.halves, strict=False))


class Floats(Struct, frozen=True):
    """Floating-point numbers as they are; ``load`` is what lanes.cl calls reading them."""

    n_bytes: int
    load: str

    def defines(self) -> Iterator[str]:
        yield f"WEIGHT_BYTES={self.n_bytes}"
        yield f"LOAD_WEIGHT={self.load}"


def _power_of_two(most: int) -> int:
    return 1 << (most.bit_length() - 1)


def _table(name: str, values: list[int] | tuple[int, ...]) -> Iterator[str]:
    """Up to 16 bytes, the first the lowest, in two words."""
    data = bytes(value & 0xFF for value in values).ljust(16, b"\0")
    for half, at in (("LOW", 0), ("HIGH", 8)):
        yield f"{name}_{half}=0x{int.from_bytes(data[at : at + 8], 'little'):016X}"
