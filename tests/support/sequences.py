"""Steps of several sequences for the kernels that go through them token by token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.tape import Counts
from gguf_serve.kernels.opencl.tensor import Tensor, upload

SLOTS = 3


@dataclass(frozen=True)
class Division:
    """Tokens of two sequences over steps: (slot, how many of its tokens) in each."""

    steps: tuple[tuple[tuple[int, int], ...], ...]


# The same 9 and 6 tokens: at once, and in pieces with and without each other.
WHOLE = Division((((2, 9), (0, 6)),))
PIECES = Division((((2, 4),), ((0, 3), (2, 1)), ((0, 1),), ((2, 4), (0, 2))))
LENGTHS = {2: 9, 0: 6}


def place(
    device: Device, step: tuple[tuple[int, int], ...], done: dict[int, int]
) -> tuple[Tensor, Counts, list[tuple[int, npt.NDArray[np.int64]]]]:
    """The sequences of a step on the device, its counts, and which tokens of which slot."""
    rows, parts, n = [], [], 0
    for slot, count in step:
        start = done.get(slot, 0)
        rows.append((n, count, slot, start))
        parts.append((slot, np.arange(start, start + count)))
        done[slot] = start + count
        n += count
    return upload(device, np.array(rows, np.int32)), (n, 0, 0, 0, len(rows)), parts
