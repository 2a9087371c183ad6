"""Heads of speculation in the files of their models, against llama.cpp."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conformance_data import arrays
from stepping import Stepper, nmse, sequence

from gguf_serve.engine.architecture.heads import read_head
from gguf_serve.engine.architecture.table import find_architecture
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import open_gguf
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs

MODELS = [
    "bailingmoe3-mtp", "cohere2moe-mtp", "deepseek2-mtp", "deepseek32-mtp", "deepseek4-mtp",
    "glm-dsa-mtp", "glm4moe-mtp", "hy_v3-mtp", "mimo2-mtp", "nemotron_h_moe-mtp", "qwen35-mtp",
    "qwen35moe-mtp", "qwen3next-mtp", "step35-mtp",
]  # fmt: skip
# Whose streams llama.cpp hands over normalized, but only those of the model, not of the head: the
# norm that comes next writes over them. The head's own norm takes out what that changes.
NORMALIZED = ("deepseek4-mtp",)
FLOAT_NMSE = 1e-7
TABLE = [3, 7, 5, 9]
Build = Callable[[str], Path]
Arrays = dict[str, npt.NDArray[Any]]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_heads(device: Device, programs: Programs, conformance_model: Build, name: str) -> None:
    """The model, the states that it hands over, each head beside it, and drafting."""
    path, found = conformance_model(name), arrays(name)
    tokens = found["tokens"].tolist()
    model = Stepper(path, device, programs, gives_states=True)
    logits, states = model.with_states(sequence(tokens, 1, TABLE), len(tokens))
    assert nmse(logits, found["logits"]) <= FLOAT_NMSE
    size = np.sqrt((states**2).mean(1, keepdims=True)) if name in NORMALIZED else 1.0
    assert nmse((states / size)[-8:], found["hidden"]) <= FLOAT_NMSE
    before = np.concatenate([np.zeros_like(states[:1]), states[:-1]])
    heads = [Stepper(path, device, programs, head=i) for i in range(len(found["mtp_logits"]))]
    for i, head in enumerate(heads):
        logits, own = head.with_states(sequence(tokens, 1, TABLE), len(tokens), before)
        assert nmse(logits, found["mtp_logits"][i]) <= FLOAT_NMSE
        assert nmse(own[-8:], found["mtp_hidden"][i]) <= FLOAT_NMSE
        pieces, seq = [], sequence(tokens, 1, TABLE)
        for count in (7, 1, 20, 36):
            given = before[seq.n_computed : seq.n_computed + count]
            pieces.append(head.with_states(seq, count, given)[0])
        assert nmse(np.concatenate(pieces), found["mtp_logits"][i]) <= FLOAT_NMSE
    drafts = drafted(heads, tokens, found["draft_tokens"].tolist(), before, states[-1:])
    assert nmse(drafts, found["draft_logits"]) <= FLOAT_NMSE


def drafted(
    heads: list[Stepper],
    tokens: list[int],
    draft: list[int],
    before: npt.NDArray[np.float32],
    last: npt.NDArray[np.float32],
) -> npt.NDArray[np.float32]:
    """The logits after each of the drafted tokens but the last. One head goes on with its own
    states; of several, each reads all drafted tokens with the states of those before it."""
    rows, states = [], [last]
    for step in range(len(draft) - 1):
        head = heads[min(step, len(heads) - 1)]
        seq = sequence([*tokens, *draft], 1, TABLE)
        head.with_states(seq, len(tokens), before)
        logits, own = head.with_states(seq, step + 1, np.concatenate(states))
        rows.append(logits[-1])
        states.append(own[-1:])
    return np.array(rows)


def test_a_head_that_is_not_there(conformance_model: Build) -> None:
    with open_gguf(conformance_model("llama-dense")) as gguf:
        arch = find_architecture(gguf.architecture)
        with pytest.raises(ModelError, match="no head 0 of speculation, of 0"):
            read_head(gguf, arch, 0)


def test_a_head_whose_tensors_are_not_there(conformance_model: Build) -> None:
    """llama.cpp saves models without them, but says how many heads there were."""
    with open_gguf(conformance_model("llama-dense")) as gguf:
        claimed = gguf.with_metadata({**gguf.metadata, "llama.nextn_predict_layers": 1})
        without = {n: t for n, t in gguf.tensors.items() if not n.startswith("blk.1.")}
        with pytest.raises(ModelError, match="predict_layers is 1, but no tensors of layer 1"):
            read_head(claimed.with_tensors(without), find_architecture(gguf.architecture), 0)
