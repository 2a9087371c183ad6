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
from conformance_data import read_spec  # noqa: E402
from stepping import distance  # noqa: E402

from gguf_serve.kernels.opencl.device import open_device  # noqa: E402
from gguf_serve.kernels.opencl.program import Programs  # noqa: E402

VARIANTS = ROOT / "tests" / "data" / "variants.json"
APART = ("chameleon-swin",)  # tests/engine/model/test_chameleon.py compares it with the model


def main() -> None:
    variants = json.loads(VARIANTS.read_text("utf-8"))
    device = open_device()
    programs = Programs(device)
    for name in sys.argv[1:] or sorted(set(variants) - {*APART}):
        with TemporaryDirectory() as folder:
            path = random_model.build(read_spec(name), Path(folder) / "model.gguf")
            found = distance(name, path, device, programs)
        variants[name] = [read_spec(name)["arch"], float(f"{found:.0e}")]
        lines = (f"{json.dumps(key)}: {json.dumps(variants[key])}" for key in sorted(variants))
        VARIANTS.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
        print(f"{name}: {found:.0e}", flush=True)


if __name__ == "__main__":
    main()
