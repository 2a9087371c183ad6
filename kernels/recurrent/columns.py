"""Recurrences whose state has columns that share nothing: a kernel for each family of devices."""

from __future__ import annotations

from collections.abc import Sequence

from gguf_serve.kernels.opencl.signature import Arguments
from gguf_serve.kernels.opencl.tape import SEQUENCES, Per, Tape

COLUMNS = 16  # of a work-item on CPUs (columns.cl); of a GPU's it is one, in registers


def recurrence(
    tape: Tape, name: str, defines: Sequence[str], args: Arguments, n_columns: int, *heads: int
) -> None:
    """Launch the kernel ``name`` of recurrent/``name``_simd.cl, or of its _simt.cl, for so many
    columns of each head and all sequences of the step."""
    items = -(-n_columns // COLUMNS) if tape.device.is_simd else n_columns
    source = f"recurrent/{name}_{tape.device.family}.cl"
    tape.add(source, name, defines, args, (items, *heads, Per(SEQUENCES)))
