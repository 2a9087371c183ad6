"""T5: an encoder alone, and one whose output a decoder attends to, against llama.cpp."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from conformance_data import arrays
from stepping import Stepper, nmse, sequence

from gguf_serve.engine.loading.assembly import Sizes
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs

SIZES = Sizes(n_pages=32, n_slots=3, n_ctx_slot=320, n_tokens=192, n_batch=192, n_outputs=160)
GELU_NMSE = 1e-7  # llama.cpp has a table of halves
TABLE = [3, 7, 5, 9, 2, 11, 1, 0, 4]

Build = Callable[[str], Path]


def test_encoder(device: Device, programs: Programs, conformance_model: Build) -> None:
    """Distances of all buckets, beside others."""
    path = conformance_model("t5encoder")
    model, found = Stepper(path, device, programs, sizes=SIZES), arrays("t5encoder")
    tokens = found["tokens"].tolist()
    tables = ([12], TABLE, [13])
    prompts = (tokens[:9], tokens, tokens[3:20])
    seqs = [sequence(prompts[i], i, tables[i]) for i in range(3)]
    assert nmse(model.states(*seqs)[1], found["embeddings"]) <= GELU_NMSE
