"""Write docs/architectures.md anew: which architectures are served, and how each is tested.

    python scripts/list_variants.py

From the engine's table of architectures, the list of llama.cpp's, and ``tests/data/variants.json``,
which has the architecture of each model that tests compare with a reference, and the NMSE that
``scripts/measure_conformance.py`` has measured (null: none yet).
"""

from __future__ import annotations

import json
from pathlib import Path

from gguf_serve.engine.architecture.table import ARCHITECTURES

ROOT = Path(__file__).resolve().parents[1]
DOC, README = ROOT / "docs" / "architectures.md", ROOT / "README.md"
VARIANTS = ROOT / "tests" / "data" / "variants.json"
LLAMA_KEYS = ROOT / "tests" / "engine" / "data" / "llama_keys.json"  # an entry for each of its

# What is not served, and why
MISSING = {
    "dflash": "drafts for another model, of the inputs of its layers: [with `-md`](speculation.md) "
    "(tested with `dflash`, `dflash2`, `dspark`, `dspark-deepseek4` and `dspark-gemma4`)",
    "eagle3": "drafts for another model, of the inputs of its layers: [with `-md`](speculation.md) "
    "(tested with `eagle3` and `eagle3-own`)",
    "gemma4-assistant": "drafts for another model, of the K and V of its layers: [with "
    "`-md`](speculation.md) (tested with `gemma4-assistant` and `gemma4-assistant-e2b`)",
}
# Where what is computed is not what llama.cpp computes, or not what was published
DIFFERENCES = {
    "bitnet": "as llama.cpp: SiLU and float activations; the published 2B model squares a ReLU and "
    "rounds activations to 8 bits",
    "chameleon": "as published: with `swin_norm` the FFN reads the stream; llama.cpp's reads what "
    "attention adds to it",
    "gemma3n": "as published: the deviation of sparse activations divides by n; llama.cpp's by n - "
    "1 (and here for the comparison)",
    "refact": "as llama.cpp: files with experts, of which none is known, use none of them",
    "t5": "as llama.cpp: the state is not scaled before a tied output; the published T5 scales it "
    "by width^-0.5",
    "wavtokenizer-dec": "llama.cpp convolves halves, which is all of the NMSE; as llama.cpp: GELU "
    "by tanh, the published model's by erf",
}
INTRODUCTION = """\
# Architectures

What `serve` takes, by the name in the file (`general.architecture`), and how each is tested: small
models with random weights, of which llama.cpp (that of llama-cpp-python 0.3.36) has computed
references. The names are those of the references; "plain" has no more than its architecture's.

The NMSE is the squared error of logits, or of an encoder's hidden states, relative to the squares
of the reference. Tests hold every variant below 1e-7 (`wavtokenizer-dec` below 2e-7), in both
families of kernels: whole, one by one, in uneven chunks and beside other requests (`pytest -m slow
tests/engine/model`). A figure is the largest one of the variants, of a prompt and single tokens, as
`scripts/measure_conformance.py` measures it. llama.cpp looks GELU up in a table of halves, which
shows where it is used.
`python scripts/list_variants.py` writes this page.

"""
BESIDE = """.
Beside them it names `clip`, which is what projector files have, and `gptj`, which it does not load.

"""


def page() -> str:
    """The whole page in Markdown."""
    variants: dict[str, tuple[str, float | None]] = json.loads(VARIANTS.read_text("utf-8"))
    lines = [INTRODUCTION, claim(), " are served", BESIDE, "| not served | why |\n|---|---|\n"]
    lines += [f"| `{name}` | {why} |\n" for name, why in sorted(MISSING.items())]
    lines += ["\n| architecture | variants | NMSE | what differs |\n|---|---|---|---|\n"]
    for arch in sorted(ARCHITECTURES):
        mine = {name: value for name, (of, value) in variants.items() if of == arch}
        found = [value for value in mine.values() if value is not None]
        worst = f"{max(found):.0e}" if found else "< 1e-7"
        names = ", ".join(sorted(_variant(name, arch) for name in mine))
        lines.append(f"| `{arch}` | {names} | {worst} | {DIFFERENCES.get(arch, '')} |\n")
    return "".join(lines)


def claim() -> str:
    """How many of llama.cpp's there are."""
    n, of = len(ARCHITECTURES), len(llama_architectures())
    return f"{n} of the {of} architectures of language models that llama.cpp loads"


def llama_architectures() -> set[str]:
    """Those of language models that llama.cpp loads."""
    return set(json.loads(LLAMA_KEYS.read_text("utf-8")))


def _variant(name: str, arch: str) -> str:
    """What a model's name says beside its architecture."""
    return name.removeprefix(arch).removeprefix("-") or "plain"


if __name__ == "__main__":
    DOC.write_text(page(), "utf-8")
