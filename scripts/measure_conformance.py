"""Measure how far the engine is from the references of small models, for docs/architectures.md.

    python scripts/measure_conformance.py [NAME ...]

Of each model of ``tests/data/variants.json``, or of those named, a prompt and five single tokens
(of models whose tokens see each other the whole prompt) are computed on the first OpenCL device.
The NMSE is kept there; ``python scripts/list_variants.py`` then writes the table anew.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "support")]

import random_model  # noqa: E402
from conformance_data import arrays, read_spec  # noqa: E402
from stepping import SIZES, Stepper, nmse, sequence  # noqa: E402

from gguf_serve.engine.architecture.arch import Quirk  # noqa: E402
from gguf_serve.engine.architecture.table import ARCHITECTURES  # noqa: E402
from gguf_serve.engine.loading.assembly import Sizes  # noqa: E402
from gguf_serve.engine.scheduling.sequence import Chunk  # noqa: E402
from gguf_serve.kernels.attention.kv import PAGE  # noqa: E402
from gguf_serve.kernels.opencl.device import Device, open_device  # noqa: E402
from gguf_serve.kernels.opencl.program import Programs  # noqa: E402

VARIANTS = ROOT / "tests" / "data" / "variants.json"
# What the published model does, and llama.cpp does not: left out for the comparison.
PUBLISHED: dict[str, set[Quirk]] = {"gemma3n": {"population_deviation"}}
APART = ("chameleon-swin",)  # tests/engine/model/test_chameleon.py compares it with the model
T5_SIZES = Sizes(n_pages=32, n_slots=3, n_ctx_slot=320, n_tokens=192, n_batch=192, n_outputs=160)


def main() -> None:
    variants = json.loads(VARIANTS.read_text("utf-8"))
    device = open_device()
    programs = Programs(device)
    for name in sys.argv[1:] or sorted(set(variants) - {*APART}):
        found = measured(name, device, programs)
        variants[name] = [read_spec(name)["arch"], float(f"{found:.0e}")]
        lines = (f"{json.dumps(key)}: {json.dumps(variants[key])}" for key in sorted(variants))
        VARIANTS.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
        print(f"{name}: {found:.0e}", flush=True)


def measured(name: str, device: Device, programs: Programs) -> float:
    """The NMSE of what a model's reference has."""
    found, n = arrays(name), len(arrays(name)["tokens"])
    tokens, long = found["tokens"].tolist(), "encoder_tokens" in found or n > SIZES.n_tokens
    sizes = T5_SIZES if long else SIZES
    table = list(range(sizes.n_ctx_slot // PAGE))
    with TemporaryDirectory() as folder:
        path = random_model.build(read_spec(name), Path(folder) / "model.gguf")
        model = Stepper(path, device, programs, sizes=sizes, without=PUBLISHED.get(name, set()))
    if "embeddings" in found:
        return nmse(model.states(sequence(tokens, 1, table))[0], found["embeddings"])
    if "encoder_tokens" in found:
        prompt = found["encoder_tokens"].tolist()
        seq = sequence([*prompt, *tokens], 1, table)
        seq.n_computed = seq.n_encoder = len(prompt)
        model.runner.forward([Chunk(seq, 0, len(prompt), "none")], (), ())
        return nmse(model.run(seq, [n]), found["logits"])
    both_ways = "denoises" in ARCHITECTURES[read_spec(name)["arch"]].quirks
    logits = model.run(sequence(tokens, 1, table), [n] if both_ways else [n - 5, *[1] * 5])
    expected = found.get("logits_short", found["logits"])  # which is of so short a context
    return nmse(logits[:, found.get("columns", slice(None))], expected)


if __name__ == "__main__":
    main()
