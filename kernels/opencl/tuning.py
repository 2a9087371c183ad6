"""Sizes that depend on the device, as measured by scripts/tune.py and kept in tuning.json.

An entry of a device holds before one of its vendor, and that before the default; each says only
what differs.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

ROWS = 16  # of a matrix that lie side by side (weights.py)
TABLE = Path(__file__).with_name("tuning.json")


def _size(default: int, *, among: tuple[int, ...]) -> int:
    """``among``: what scripts/tune.py tries."""
    size: int = field(default=default, metadata={"choices": among})
    return size


@dataclass(frozen=True, slots=True)
class Tuning:
    """Which of them a kernel depends on is said by its row (``Variant.tuned``)."""

    # Shares per core of a matrix's rows, for one token.
    ranges: int = _size(4, among=(1, 2, 4, 8, 16))
    # Bytes ahead of the codes in use that are asked for.
    prefetch: int = _size(6144, among=(2048, 4096, 6144, 8192, 12288))
    # Work-items that share a row of a matrix, for few tokens.
    slices: int = _size(8, among=(2, 4, 8, 16))
    # Work-items of a query head.
    attention_group: int = _size(128, among=(64, 128, 256))

    def within(self, max_work_group: int) -> Tuning:
        """The same for a device that has no larger work-groups; of powers of two, by whose halves
        the kernels sum."""
        return replace(
            self,
            slices=power_of_two(min(self.slices, max_work_group // ROWS)),
            attention_group=power_of_two(min(self.attention_group, max_work_group)),
        )


def power_of_two(most: int) -> int:
    """The largest that is no more."""
    return 1 << max(most.bit_length() - 1, 0)


def choices(name: str) -> tuple[int, ...]:
    """What a size may be."""
    found: dict[str, tuple[int, ...]] = {f.name: f.metadata["choices"] for f in fields(Tuning)}
    return found[name]


@functools.cache
def _table() -> Mapping[str, Any]:
    table: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return table


def find_tuning(device: str, vendor: str, table: Mapping[str, Any] | None = None) -> Tuning:
    """The sizes for a device of that name and vendor, as OpenCL gives them.

    ``table``: ``{"default": sizes, "vendors": {name: sizes}, "devices": {name: sizes}}``, else
    the packaged one. Raises ValueError for a size that is not known or not a positive integer.
    """
    entries = _table() if table is None else table
    sizes = {
        **entries["default"],
        **entries["vendors"].get(vendor, {}),
        **entries["devices"].get(device, {}),
    }
    known = {field.name for field in fields(Tuning)}
    for name, size in sizes.items():
        if name not in known or not isinstance(size, int) or size < 1:
            raise ValueError(f"tuning of {device!r} ({vendor!r}): {name} = {size!r}")
    return Tuning(**sizes)
