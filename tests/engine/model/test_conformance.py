"""Every architecture's small random model against the logits of llama.cpp, four ways."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from conformance_data import DATA, arrays, names, read_spec, reference
from msgspec.structs import replace
from stepping import SIZES, Floats, Stepper, nmse, sequence

from gguf_serve.engine.architecture.arch import Quirk
from gguf_serve.engine.architecture.table import ARCHITECTURES
from gguf_serve.engine.scheduling.sequence import Chunk
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs

NAMES = names()
# Architectures and variants that ../shared has apart.
SECOND = [
    "apertus", "arwkv7", "arwkv7-nogate", "bailingmoe2-nextn", "bitnet", "chameleon",
    "deepseek2-lite", "deepseek2-ocr", "draft-target", "exaone-moe-nextn", "exaone4-nextn",
    "gemma4-26b-a4b", "gemma4-31b", "gemma4-e4b", "glm4-nextn", "gpt-oss-yarn", "granitehybrid-moe",
    "graniteswitch", "jamba-moe", "llama-linear", "nemotron_h_moe-moe", "nemotron_h_moe-puzzle",
    "plm", "pockettts", "qwen3-yarn", "qwen3tts", "rwkv6", "rwkv6qwen2", "step35",
]  # fmt: skip
# Token ids that are never generated
SILENT = {"chameleon": slice(4, 8196), "qwen3tts": slice(128)}
# llama.cpp's GELU is a table of halves; all others are below 1e-11.
FLOAT_NMSE = 1e-7
# What the published model does, and llama.cpp does not: left out for the comparison.
PUBLISHED: dict[str, set[Quirk]] = {"gemma3n": {"population_deviation"}}
# One of each kind of layer.
FAST = [
    "deepseek2-moe", "deepseek4-moe", "falcon-dense", "gemma3n", "gemma4-e2b", "glm5-next-moe",
    "gpt-oss-moe", "grok-moe", "lfm2-dense", "llama4-moe", "mamba2-dense", "qwen3next-moe",
    "qwen4exp-moe", "refact-moe", "rwkv7",
]  # fmt: skip
# Norms after sublayers, experts of all kinds, several streams, two parts side by side, other
# weights for images.
ENDINGS = [
    "cogvlm-dense", "deepseek2-moe", "deepseek4-moe", "falcon-dense", "gemma3-dense", "gpt-oss-moe",
    "grovemoe-moe", "lfm2-dense", "llama4-moe", "olmo2-dense", "qwen3next-moe",
]  # fmt: skip
TABLE = [3, 7, 5, 9, 2, 11, 1, 0]
ON_BOTH_DRIVERS = pytest.mark.whole_models(
    "deepseek2-moe", "gemma4-e2b", "gpt-oss-moe", "qwen3next-moe"
)

Load = Callable[[str], Stepper]


@pytest.fixture(scope="session")
def load(device: Device, programs: Programs, conformance_model: Callable[[str], Path]) -> Load:
    """Loads a model of the conformance data once per device."""

    @cache
    def loaded(name: str) -> Stepper:
        without = PUBLISHED.get(name, set())
        return Stepper(conformance_model(name), device, programs, without=without)

    return loaded


def beside_others(model: Stepper, tokens: list[int]) -> Floats:
    """The logits of a sequence that shares its steps with two of other lengths."""
    rng = np.random.default_rng(1)
    me = sequence(tokens, 1, [4, 6])
    others = [
        sequence(rng.integers(model.n_vocab, size=90), slot, pages)
        for slot, pages in ((0, [3, 7, 5]), (2, [9, 2, 11]))
    ]
    model.step((others[0], 35))
    rows = [
        model.step((others[0], 1), (me, 30), (others[1], 5))[1],
        model.step((others[0], 20), (me, 1), (others[1], 1))[1],
        *(model.step((me, 1), (others[1], 1), (others[0], 1))[0] for _ in range(3)),
        model.step((others[1], 40), (me, 30))[1],
    ]
    return np.concatenate(rows)


def test_every_architecture_is_in_the_table() -> None:
    for name in NAMES:
        assert read_spec(name)["arch"] in ARCHITECTURES, name


@pytest.mark.parametrize("name", sorted({*FAST, *ENDINGS}))
def test_a_clone_has_the_daily_models(name: str) -> None:
    assert (DATA / "specs" / f"{name}.json").is_file()
    assert (DATA / "logits" / f"{name}.npz").is_file()


@ON_BOTH_DRIVERS
@pytest.mark.parametrize("name", FAST)
def test_a_prompt_and_single_tokens(load: Load, name: str) -> None:
    tokens, logits = reference(name)
    result = load(name).run(sequence(tokens, 1, TABLE), [59, 1, 1, 1, 1, 1])
    assert nmse(result, logits) <= FLOAT_NMSE


@ON_BOTH_DRIVERS
@pytest.mark.parametrize("name", FAST)
def test_company_changes_nothing(load: Load, device: Device, name: str) -> None:
    """On CPUs the bits are those of a sequence alone."""
    model, (tokens, logits) = load(name), reference(name)
    result = beside_others(model, tokens)
    assert nmse(result, logits) <= FLOAT_NMSE
    if device.is_simd:
        assert np.array_equal(result, model.run(sequence(tokens, 1, TABLE), [64]))


def drafts_verified(model: Stepper, tokens: list[int], counts: list[int]) -> tuple[Floats, Floats]:
    """The logits after a prompt of 33, of steps of so many tokens, and of steps of one."""
    found = [
        model.run(sequence(tokens, 1, TABLE), [33, *some])[33:]
        for some in (counts, [1] * sum(counts))
    ]
    return found[0], found[1]


@ON_BOTH_DRIVERS
@pytest.mark.parametrize("name", FAST)
def test_tokens_at_once_have_the_bits_of_single_ones(load: Load, device: Device, name: str) -> None:
    """What speculation stands on."""
    if not device.is_simd:
        pytest.skip("promised for CPUs only")
    at_once, apart = drafts_verified(load(name), reference(name)[0], [3, 8])
    assert np.array_equal(at_once, apart)


def some_rows(model: Stepper, tokens: list[int], positions: list[int]) -> Floats:
    """The logits of some positions, of a prompt in chunks beside another one."""
    rng = np.random.default_rng(1)
    me = sequence(tokens, 1, [4, 6])
    other = sequence(rng.integers(model.n_vocab, size=64), 0, [3, 7])
    rows = [
        model.step((other, 10), (me, count), wants=positions.__contains__)[1]
        for count in (20, 12, 32)
    ]
    return np.concatenate([row for row in rows if len(row)])


@ON_BOTH_DRIVERS
@pytest.mark.parametrize("name", ENDINGS)
def test_rows_that_are_not_wanted_change_nothing(load: Load, device: Device, name: str) -> None:
    """A chunk without such rows, one with one, one with many."""
    model, (tokens, logits) = load(name), reference(name)
    positions = [25, *range(40, 64, 2)]
    result = some_rows(model, tokens, positions)
    assert nmse(result, logits[positions]) <= FLOAT_NMSE
    if device.is_simd:
        whole = model.run(sequence(tokens, 1, TABLE), [64])
        assert np.array_equal(result, whole[positions])


def test_tokens_after_prompts_of_which_no_row_was_wanted(load: Load) -> None:
    """The step before has had fewer rows of logits than this one."""
    model, (tokens, logits) = load(FAST[0]), reference(FAST[0])
    seqs = [sequence(tokens, slot, pages) for slot, pages in enumerate(([4, 6], [3, 7]))]
    for seq, count in zip(seqs, (20, 9), strict=True):
        model.runner.forward([Chunk(seq, 0, count, "none")], (), ())
        seq.n_computed = count
    found = model.step((seqs[0], 1), (seqs[1], 1))
    assert nmse(np.concatenate(found), logits[[20, 9]]) <= FLOAT_NMSE


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, *SECOND])
def test_drafts_of_every_model(load: Load, device: Device, name: str) -> None:
    if not device.is_simd:
        pytest.skip("promised for CPUs only")
    at_once, apart = drafts_verified(load(name), reference(name)[0], [2, 8, 1, 20])
    assert np.array_equal(at_once, apart)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dream", "llada", "llada-moe", "rnd1"])
def test_attention_both_ways(load: Load, name: str) -> None:
    """Of models whose tokens see all others: a prompt alone, and beside others."""
    model, (tokens, logits) = load(name), reference(name)
    assert nmse(model.run(sequence(tokens, 1, TABLE), [len(tokens)]), logits) <= FLOAT_NMSE
    others = sequence(tokens[:9], 0, [3]), sequence(tokens[5:20], 2, [11])
    me = sequence(tokens, 1, [4, 6])
    beside = model.step((others[0], 9), (me, len(tokens)), (others[1], 15))[1]
    assert nmse(beside, logits) <= FLOAT_NMSE


@pytest.mark.slow
@pytest.mark.parametrize(("n_ctx", "name"), [(512, "logits"), (256, "logits_short")])
def test_longrope(
    device: Device,
    programs: Programs,
    conformance_model: Callable[[str], Path],
    n_ctx: int,
    name: str,
) -> None:
    """The long factors count where the context is longer than the original one of 256 tokens."""
    sizes, found = replace(SIZES, n_ctx_slot=n_ctx), arrays("phi3-longrope")
    model = Stepper(conformance_model("phi3-longrope"), device, programs, sizes=sizes)
    result = model.run(sequence(found["tokens"], 1, TABLE), [40] + [1] * 24)
    assert nmse(result, found[name]) <= FLOAT_NMSE


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, *SECOND])
def test_four_ways(load: Load, name: str) -> None:
    """One prompt, a prompt and single tokens, uneven chunks, in company."""
    model, (tokens, logits) = load(name), reference(name)
    columns = arrays(name).get("columns", slice(None))  # token ids that the reference has
    for counts in ([64], [40] + [1] * 24, [7, 20, 37]):
        found = model.run(sequence(tokens, 1, TABLE), counts)
        assert nmse(found[:, columns], logits) <= FLOAT_NMSE
        assert name not in SILENT or (found[:, SILENT[name]] == np.finfo(np.float32).min).all()
    assert nmse(beside_others(model, tokens)[:, columns], logits) <= FLOAT_NMSE
    assert nmse(some_rows(model, tokens, [25, 50])[:, columns], logits[[25, 50]]) <= FLOAT_NMSE
