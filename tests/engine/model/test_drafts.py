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
from gguf_serve.engine.forward.batch import OutputRow
from gguf_serve.engine.gguf.file import open_gguf
from gguf_serve.engine.scheduling.sequence import Chunk
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
@pytest.mark.parametrize("name", ["dflash", "dspark", "dspark-deepseek4", "dspark-gemma4"])
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
def test_dflash2(device: Device, programs: Programs, conformance_model: Build) -> None:
    """The likeliest tokens of a block's rows, and the scores of pairs of them."""
    path, found = conformance_model("dflash2"), arrays("dflash2")
    model = Stepper(conformance_model("draft-target"), device, programs, draft=path)
    tokens, block = found["tokens"].tolist(), found["block_tokens"].tolist()
    states = model.with_states(sequence(tokens, 1, TABLE), len(tokens))[1]
    drafter = Stepper(path, device, programs, target=conformance_model("draft-target"))
    seq = sequence([*tokens, *block], 1, TABLE)
    drafter.read_states(seq, states)
    chunk, selection = Chunk(seq, len(tokens), len(block), "hidden"), drafter.selection
    assert selection is not None
    wanted = [OutputRow(chunk, len(tokens) + i, selection.top_k) for i in range(len(block))]
    rows = drafter.runner.forward([chunk], (), wanted)
    gates = drafter.runner.scores_of(range(1, len(rows)))
    lattice = selection.lattice(block[0], rows[1:], gates)
    candidates, scores = found["candidates"][1:], found["scores"][1:]
    mine, theirs = np.argsort(lattice.candidates), np.argsort(candidates)  # whose order is any
    assert np.array_equal(np.sort(lattice.candidates), np.sort(candidates))
    for i, (own, other) in enumerate(zip(mine, theirs, strict=True)):
        rows_of = (mine[i - 1], theirs[i - 1]) if i else (own, other)  # the first are all alike
        ours = lattice.scores[i][np.ix_(rows_of[0], own)]
        assert nmse(ours, scores[i][np.ix_(rows_of[1], other)]) <= FLOAT_NMSE
    walked = list(lattice.walk())
    assert [token for token, _ in walked] == found["draft_tokens"][1:].tolist()
    assert all(1 / selection.top_k < chance <= 1 for _, chance in walked)


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
        "dflash", "dflash2", "dspark", "dspark-deepseek4", "dspark-gemma4", "eagle3",
        "eagle3-own", "gemma4-assistant", "gemma4-assistant-e2b",
    ],
)  # fmt: skip
def test_the_tensors_of_each_are_taken(conformance_model: Build, name: str) -> None:
    """Those of the models that blocks' tokens are chosen by, which are narrower, too."""
    target = conformance_model(read_spec(name)["target"])
    with open_gguf(conformance_model(name)) as gguf, open_gguf(target) as lender:
        draft = read_draft(gguf, lender)
        check_tensors(draft.gguf, draft.hparams)
        assert len(draft.beside) == (2 if name == "dflash2" else "dspark" in name)
        for each in draft.beside:
            check_tensors(*each)


@pytest.mark.parametrize(
    ("name", "key", "value", "expected"),
    [
        ("dspark", "sample_from_anchor", None, True),
        ("dspark", "sample_from_anchor", False, False),
        ("dflash", "sample_from_anchor", None, False),
        ("dflash", "sample_from_anchor", True, False),
    ],
)
def test_what_the_first_place_of_a_block_is(
    conformance_model: Build, name: str, key: str, value: bool | None, expected: bool
) -> None:
    """As in llama.cpp, DSpark's is a token to guess, unless the file says no, and no other's is."""
    with (
        open_gguf(conformance_model(name)) as gguf,
        open_gguf(conformance_model("draft-target")) as lender,
    ):
        metadata = {**gguf.metadata, gguf.arch_key(key): value}
        given = {name: each for name, each in metadata.items() if each is not None}
        assert read_draft(gguf.with_metadata(given), lender).from_anchor == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selector_top_k": 0}, r"dflash\.selector_top_k is 0, expected 1 to 64"),
        ({"selector_top_k": 65}, r"dflash\.selector_top_k is 65, expected 1 to 64"),
        ({"-": "selector_predecessor.weight"}, "tensor selector_predecessor.weight is missing"),
        ({"-": "selector_hidden.weight"}, r"has shape None, expected \(256, 16\)"),
        ({"+": "selector_hidden.weight"}, r"selector_hidden.weight has shape \(256, 128\), exp"),
    ],
)
def test_selectors_that_do_not_fit(
    conformance_model: Build, changes: dict[str, str | int], message: str
) -> None:
    with (
        open_gguf(conformance_model("dflash2")) as gguf,
        open_gguf(conformance_model("draft-target")) as lender,
    ):
        tensors = {name: info for name, info in gguf.tensors.items() if name != changes.get("-")}
        if "+" in changes:
            tensors[str(changes["+"])] = tensors["blk.0.attn_k.weight"]
        keys = {gguf.arch_key(name): value for name, value in changes.items() if name not in "+-"}
        changed = gguf.with_tensors(tensors).with_metadata({**gguf.metadata, **keys})
        with pytest.raises(ModelError, match=message):
            read_draft(changed, lender)


def test_a_draft_does_not_compress(conformance_model: Build) -> None:
    with (
        open_gguf(conformance_model("dspark-deepseek4")) as gguf,
        open_gguf(conformance_model("deepseek4-moe")) as lender,
    ):
        ratios = {gguf.arch_key("attention.compress_ratios"): np.array([0, 4, 0])}
        changed = gguf.with_metadata({**gguf.metadata, **ratios})
        with pytest.raises(ModelError, match=r"a draft with compressed keys \(0, 4, 0\)"):
            read_draft(changed, lender)


def test_it_is_not_served_by_itself() -> None:
    with pytest.raises(ModelError, match="eagle3 drafts for another model"):
        find_architecture("eagle3")


def test_another_model_is_no_draft(conformance_model: Build) -> None:
    with (
        open_gguf(conformance_model("llama-dense")) as gguf,
        pytest.raises(ModelError, match="llama is not one of dflash, eagle3, gemma4-assistant"),
    ):
        read_draft(gguf, gguf)
