"""Sizes that depend on the device, as measured by scripts/tune.py and kept in tuning.json.

An entry of a device holds before one of its vendor, and that before the default; each says only
what differs.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

ROWS = 16  # of a matrix that lie side by side (weights.py)
TABLE = Path(__file__).with_name("tuning.json")


@dataclass(frozen=True, slots=True)
class Tuning:
    """``ranges`` and ``prefetch`` are of the simd family, the others of simt."""

    ranges: int = 4  # shares per core of a matrix's rows, for one token
    prefetch: int = 6144  # bytes ahead of the codes in use that are asked for
    slices: int = 8  # work-items that share a row of a matrix, for few tokens
    attention_group: int = 128  # work-items of a query head

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
