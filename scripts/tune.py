"""Searches the sizes in kernels/opencl/tuning.py that are best on a device, and stores them.

    python scripts/tune.py [--device NAME] [--family simd] [--vendor] [--dry-run]

One size at a time, twice around, each by the time of products and attention as a model of a
few billion parameters has them. Every run with it is followed by one with the size in use, so that
a busy neighbour meets both, and it takes that one's place if it is 1 % faster each of three times.
What differs from the default is written to kernels/opencl/tuning.json under the device's name, or
with --vendor under its vendor's, for all devices without an entry of their own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench_types import inputs, random_matrix

from gguf_serve.kernels.attention import attention
from gguf_serve.kernels.attention.attention import PART, AttentionInputs, Mask, split_scratch
from gguf_serve.kernels.attention.kv import PAGE, KVPages, KVShape
from gguf_serve.kernels.matrix import matmul
from gguf_serve.kernels.opencl.device import Device, open_device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tape import N_COUNTS, Counts, Tape
from gguf_serve.kernels.opencl.tensor import empty, upload
from gguf_serve.kernels.opencl.tuning import TABLE, Tuning, choices
from gguf_serve.kernels.opencl.variant import Variant, tuned_sizes
from gguf_serve.kernels.profile import touch_pages
from gguf_serve.kernels.quantization.activations import Activations

TABLES: tuple[Variant[Any], ...] = (
    *matmul.VARIANTS,
    *attention.FUSED,
)  # of the kernels that are measured
SHAPES = (("Q4_K", 4096, 4096), ("Q4_K", 16384, 4096), ("Q6_K", 4096, 8192))
N_HEADS, ATTENDED, CONTEXT = 32, KVShape(8, 128, 128), 4096
GAIN = 1.01  # by how much a size must win
SECONDS, ROUNDS, TURNS = 0.1, 2, 3

Work = Callable[[Tape], None]


def products(device: Device, programs: Programs) -> list[Work]:
    """Products of one token with matrices of several shapes."""
    counts = upload(device, np.ones(N_COUNTS, np.int32))
    works: list[Work] = []
    for name, n_rows, n_cols in SHAPES:
        w = random_matrix(device, programs, name, (n_rows, n_cols))
        x, out = inputs(device, programs, w, 1), empty(device, (1, n_rows))
        works.append(lambda tape, w=w, x=x, out=out: matmul.matmul(tape, w, x, out, counts, tile=1))  # type: ignore[misc]
    return works


def attending(device: Device) -> Work:
    """One token's attention after a long context."""
    pages = KVPages(device, [ATTENDED], CONTEXT // PAGE, "f16", "f16")
    touch_pages(device, pages, pages.n_pages)
    read = AttentionInputs(
        tiles=upload(device, np.array([[0, 1, 0, CONTEXT]], np.int32)),
        positions=upload(device, np.array([CONTEXT - 1], np.int32)),
        tables=upload(device, np.arange(pages.n_pages, dtype=np.int32)[None]),
        counts=upload(device, np.ones(N_COUNTS, np.int32)),
    )
    width = (N_HEADS + 2 * ATTENDED.n_kv) * ATTENDED.head
    qkv = upload(device, np.full((1, width), 0.01, np.float32))
    n_cols = N_HEADS * ATTENDED.head_v
    out = Activations(n_cols, empty(device, (1, n_cols)))
    scratch = split_scratch(device, 1, N_HEADS, ATTENDED, CONTEXT)
    return lambda tape: attention.attention(
        tape, qkv, N_HEADS, pages.layers[0], read, out, Mask(), split=scratch
    )


def gain(device: Device, programs: Programs, works: list[Work], old: Tuning, new: Tuning) -> float:
    """How much faster the works are with the new sizes, by the sums of their shortest times."""
    totals = [0.0, 0.0]
    counts: Counts = (1, 1, 1, CONTEXT // PART, 1)
    for work in works:
        tapes = [Tape(replace(device, tuning=sizes), programs) for sizes in (old, new)]
        for tape in tapes:
            work(tape)
            tape.run(counts)  # may compile
        device.finish()
        times: list[tuple[float, ...]] = []
        while sum(map(sum, times)) < SECONDS or len(times) < 4:
            times.append(tuple(timed(device, tape, counts) for tape in tapes))
        for i, each in enumerate(zip(*times, strict=True)):
            totals[i] += min(each)
    return totals[0] / totals[1]


def timed(device: Device, tape: Tape, counts: Counts) -> float:
    start = time.perf_counter()
    tape.run(counts)
    device.finish()
    return time.perf_counter() - start


def search(device: Device) -> Tuning:
    """The best sizes, one after the other; prints every comparison."""
    programs = Programs(device)
    works = [*products(device, programs), attending(device)]
    best = device.tuning
    print(f"{device.info.name}, {device.family}: {best}")
    print(f"instructions: {' '.join(device.capabilities.forms) or 'none of those that are tried'}")
    for _ in range(ROUNDS):
        before = best
        for name in tuned_sizes(TABLES, device):
            for choice in choices(name):
                tried = dataclasses.replace(best, **{name: choice})
                if tried == best or tried != tried.within(device.capabilities.work_group):
                    continue
                ratios = [gain(device, programs, works, best, tried) for _ in range(TURNS)]
                print(f"  {name} {choice}: {' '.join(f'{r:.3f}' for r in ratios)} x", flush=True)
                if min(ratios) > GAIN:
                    best = tried
        if best == before:
            break
    return best


def store(table: Path, kind: str, name: str, found: Tuning) -> None:
    """Write what differs from the default, in place of what was there; nothing else changes."""
    entries = json.loads(table.read_text(encoding="utf-8"))
    default = dataclasses.asdict(Tuning(**entries["default"]))
    sizes = {k: v for k, v in dataclasses.asdict(found).items() if v != default[k]}
    entries[kind][name] = sizes
    table.write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default=None, help="as serve --device")
    parser.add_argument("--family", choices=("simd", "simt"), help="as serve --kernel-family")
    parser.add_argument("--vendor", action="store_true", help="store for the device's vendor")
    parser.add_argument("--dry-run", action="store_true", help="print, and write nothing")
    args = parser.parse_args()
    device = open_device(args.device, family=args.family)
    found = search(device)
    print(f"best: {found}")
    if not args.dry_run:
        kind, name = ("vendors", device.vendor) if args.vendor else ("devices", device.info.name)
        store(TABLE, kind, name, found)


if __name__ == "__main__":
    main()
