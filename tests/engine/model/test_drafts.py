"""Drafts in files of their own, beside their target, against llama.cpp."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conformance_data import arrays, read_spec
from stepping import Stepper, nmse, sequence

from gguf_serve.engine.architecture.drafts import read_draft
from gguf_serve.engine.architecture.shapes import check_tensors
from gguf_serve.engine.architecture.table import find_architecture
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import open_gguf
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs

FLOAT_NMSE = 1e-7
TABLE = [3, 7, 5, 9]
Build = Callable[[str], Path]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eagle3", "eagle3-own"])
def test_eagle3(device: Device, programs: Programs, conformance_model: Build, name: str) -> None:
    """The states that its target makes, a prompt at once and in pieces, and drafting."""
    path, found = conformance_model(name), arrays(name)
    target = conformance_model(read_spec(name)["target"])
    tokens, draft = found["tokens"].tolist(), found["draft_tokens"].tolist()
    model = Stepper(target, device, programs, draft=path)
    logits, fused = model.with_states(sequence(tokens, 1, TABLE), len(tokens))
    assert nmse(fused[-8:], found["fused"]) <= FLOAT_NMSE
    assert logits[-1].argmax() == draft[0]
    drafter = Stepper(path, device, programs, target=target)
    seq = sequence([*tokens[1:], *draft], 1, TABLE)
    n = len(tokens) - 1
    logits, hidden = drafter.with_states(seq, n, fused[:-1])
    assert nmse(logits, found["logits"]) <= FLOAT_NMSE
    assert nmse(hidden[-8:], found["hidden"]) <= FLOAT_NMSE
    rows, state = [], fused[-1:]
    for _ in draft[:-1]:
        logits, state = drafter.with_states(seq, 1, state)
        rows.append(logits[0])
    assert nmse(np.array(rows), found["draft_logits"]) <= FLOAT_NMSE
    again = sequence(tokens[1:], 2, [11, 1])
    pieces = [
        drafter.with_states(again, count, fused[again.n_computed :][:count])[0]
        for count in (7, 1, 40, n - 48)
    ]
    assert nmse(np.concatenate(pieces), found["logits"]) <= FLOAT_NMSE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dflash", "dspark", "dspark-gemma4"])
def test_dflash(device: Device, programs: Programs, conformance_model: Build, name: str) -> None:
    """The keys of its target's states, at once and in pieces, and a block; then the same block
    after keys of tokens that a block before it had in their places."""
    path, found = conformance_model(name), arrays(name)
    target = conformance_model(read_spec(name)["target"])
    tokens, block = found["tokens"].tolist(), found["block_tokens"].tolist()
    model = Stepper(target, device, programs, draft=path)
    logits, states = model.with_states(sequence(tokens, 1, TABLE), len(tokens))
    assert nmse(logits[-1], found["target_last"]) <= FLOAT_NMSE
    assert logits[-1].argmax() == block[0]
    drafter = Stepper(path, device, programs, target=target)
    for slot, counts in ((1, [len(tokens)]), (2, [7, 1, 40, len(tokens) - 48])):
        seq = sequence([*tokens, *block], slot, TABLE)
        for count in counts:
            drafter.read_states(seq, states[seq.n_computed :][:count])
        rows, own = drafter.with_states(seq, len(block))
        if drafter.corrections is not None:
            corrected = drafter.corrections.correct(block[0], rows, own)
            rows = corrected.logits
            assert corrected.confidence is not None
            n_bare = len(block) - len(corrected.tokens)
            assert corrected.tokens == found["draft_tokens"].tolist()[1:]
            assert np.allclose(corrected.confidence[n_bare:], found["confidence"][n_bare:])
        assert nmse(rows, found["draft_logits"]) <= FLOAT_NMSE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma4-assistant", "gemma4-assistant-e2b"])
def test_assistants(
    device: Device, programs: Programs, conformance_model: Build, name: str
) -> None:
    """The states of their target, and drafting with its keys at one position."""
    path, found = conformance_model(name), arrays(name)
    target = conformance_model(read_spec(name)["target"])
    tokens, draft = found["tokens"].tolist(), found["draft_tokens"].tolist()
    model = Stepper(target, device, programs, gives_states=True)
    logits, states = model.with_states(sequence(tokens, 1, TABLE), len(tokens))
    assert nmse(logits, found["target_logits"]) <= FLOAT_NMSE
    assert nmse(states[-1:], found["hidden"]) <= FLOAT_NMSE
    drafter = Stepper(path, device, programs, target=target, lender=model)
    rows, own, state = [], [], states[-1:]
    for token in draft[:-1]:
        seq = sequence([*tokens, token], 1, TABLE)
        seq.n_computed = seq.n_encoder = len(tokens)
        logits, state = drafter.with_states(seq, 1, state)
        rows.append(logits[0])
        own.append(state[0])
    assert nmse(np.array(rows), found["draft_logits"]) <= FLOAT_NMSE
    assert nmse(np.array(own), found["draft_hidden"]) <= FLOAT_NMSE


@pytest.mark.parametrize(
    "name",
    [
        "dflash", "dspark", "dspark-gemma4", "eagle3", "eagle3-own", "gemma4-assistant",
        "gemma4-assistant-e2b",
    ],
)  # fmt: skip
def test_the_tensors_of_each_are_taken(conformance_model: Build, name: str) -> None:
    """Those of DSpark's corrections, which are narrower, too."""
    target = conformance_model(read_spec(name)["target"])
    with open_gguf(conformance_model(name)) as gguf, open_gguf(target) as lender:
        draft = read_draft(gguf, lender)
        check_tensors(draft.gguf, draft.hparams)
        assert (draft.bigrams is None) == ("dspark" not in name)
        if draft.bigrams is not None:
            check_tensors(*draft.bigrams)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dflash2", r"DFlash 2 with a selector \(selector_hidden\.weight\) is not supported"),
        ("dspark-deepseek4", r"a draft with several residual streams \(output_hc_fn\.weight\)"),
    ],
)
def test_drafts_of_other_kinds_are_refused(
    conformance_model: Build, name: str, message: str
) -> None:
    target = conformance_model(read_spec(name)["target"])
    with (
        open_gguf(conformance_model(name)) as gguf,
        open_gguf(target) as lender,
        pytest.raises(ModelError, match=message),
    ):
        read_draft(gguf, lender)


def test_it_is_not_served_by_itself() -> None:
    with pytest.raises(ModelError, match="eagle3 drafts for another model"):
        find_architecture("eagle3")


def test_another_model_is_no_draft(conformance_model: Build) -> None:
    with (
        open_gguf(conformance_model("llama-dense")) as gguf,
        pytest.raises(ModelError, match="llama is not one of dflash, eagle3, gemma4-assistant"),
    ):
        read_draft(gguf, gguf)
