"""What bench.py prints: the machine, the versions, and the results as a table or Markdown."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

BUSY_LOAD = 0.3  # of a core, per core: above it somebody else is at work


@dataclass
class Row:
    """Results of one measurement: one number per repetition."""

    name: str
    unit: str
    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)
    lower_is_better: bool = False

    @property
    def ratio(self) -> float | None:
        """How many times better ours is than the peer's, by the medians."""
        if not self.ours or not self.peer:
            return None
        ours, peer = median(self.ours), median(self.peer)
        return peer / ours if self.lower_is_better else ours / peer

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "unit": self.unit,
            "ours": self.ours,
            "peer": self.peer,
            "ratio": self.ratio,
        }


def machine() -> dict[str, str]:
    """Where and when this is measured."""
    cores = len(os.sched_getaffinity(0))
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": f"{processor()}, {cores} cores usable",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "load before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def is_busy() -> bool:
    return os.getloadavg()[0] > BUSY_LOAD * len(os.sched_getaffinity(0))


def versions(engine: Any) -> dict[str, str]:
    """Ours, and what it runs on."""
    return {
        "gguf-serve": installed("gguf-serve"),
        "pyopencl": installed("pyopencl"),
        "device": engine.info.device_name,
        "driver": engine.info.driver,
    }


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "a checkout that is not installed"


def number(values: Sequence[float]) -> str:
    """The median, and the range if there are several."""
    if not values:
        return ""
    digits = 0 if median(values) >= 100 else 1 if median(values) >= 10 else 2
    text = f"{median(values):.{digits}f}"
    if len(values) > 1:
        text += f" ({min(values):.{digits}f}-{max(values):.{digits}f})"
    return text


def cells(rows: Sequence[Row], with_peer: bool) -> list[list[str]]:
    """The table, its head first."""
    table = [["measurement", "unit", "gguf-serve", *(["llama.cpp", "ratio"] if with_peer else [])]]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        peer = [number(row.peer), ratio] if with_peer else []
        table.append([row.name, row.unit, number(row.ours), *peer])
    return table


def text_table(table: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def markdown_table(table: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in table]
    return "\n".join([lines[0], "|" + "---|" * len(table[0]), *lines[1:]])


def facts(items: dict[str, str], *, markdown: bool) -> str:
    if markdown:
        return "\n".join(f"- {name}: {value}" for name, value in items.items())
    width = max(map(len, items))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in items.items())
