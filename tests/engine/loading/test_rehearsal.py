"""A rehearsal on meta devices asks for exactly the programs that recording asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from gguf_serve.engine.loading.assembly import CacheTypes, assemble
from gguf_serve.engine.loading.preparation import prepare, read_model
from gguf_serve.engine.model.weights import allocate_weights
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.recording.step import (
    PROMPT_TILE,
    AttentionMode,
    Mode,
    as_prompt,
    first_modes,
    later_modes,
    mode_of,
)
from gguf_serve.kernels.opencl.compiling.compiler import BuildError
from gguf_serve.kernels.opencl.platforms import list_devices
from gguf_serve.kernels.opencl.program import Programs, Spec
from gguf_serve.kernels.quantization.quants import by_name

# Mixers of all kinds, experts, encoders, streams beside layers, adapters of the embedding.
MODELS = [
    "llama-dense", "llama-moe", "glm-dsa-moe", "jamba-dense", "kimi-k3-moe", "deepseek4-moe",
    "gemma3-dense", "qwen4exp-moe",
]  # fmt: skip


class Kernel:
    def set_args(self, *args: object) -> None:
        pass


class Asked(Programs):
    """Notes what is asked for, and builds nothing."""

    specs: set[Spec]

    def kernel(self, source: str, name: str, defines: Sequence[str] = ()) -> Any:
        self.specs = {*getattr(self, "specs", ()), self.spec(source, defines)}
        return Kernel()


def devices() -> list[str]:
    found = [info for info in list_devices() if "ortable" not in info.platform]
    return [str(info.index) for info in found[:1]]


@pytest.mark.parametrize("family", ["simd", "simt"])
@pytest.mark.parametrize("model", MODELS)
def test_programs(conformance_model: Callable[[str], Path], model: str, family: str) -> None:
    if not devices():
        pytest.skip("no device that children compile for")
    (index,) = devices()
    options = EngineOptions(n_ctx=256, device=index, kernel_family=family, fit=False)
    gguf, hparams = read_model(conformance_model(model), options)
    prepared = prepare(gguf, hparams, options)
    assert prepared.compiling is not None
    rehearsal = prepared.compiling._rehearsal
    asked = [Asked(device) for device in prepared.devices]
    weights, jobs = allocate_weights(
        gguf, prepared.hparams, prepared.devices, prepared.placement, prepared.additions
    )
    runner = assemble(
        prepared.hparams, weights, list(zip(prepared.devices, asked, strict=True)),
        prepared.sizes, CacheTypes(options.cache_type_k, options.cache_type_v), flash=True,
    )  # fmt: skip
    modes = first_modes(generates=rehearsal.generates)
    for mode in modes:
        runner._recording(mode)
    (found,), (specs,) = asked, rehearsal.of_modes(modes)
    assert set(specs) == found.specs
    for mode in later_modes(generates=rehearsal.generates):
        runner._recording(mode)
    (specs,) = rehearsal.of_modes([*modes, *later_modes(generates=rehearsal.generates)])
    assert set(specs) == found.specs
    packed = {job.matrix.type.name for some in jobs for job in some}
    assert {spec.defines for spec in prepared.compiling._packing[0]} == {
        found.spec("quantization/pack.cl", by_name(name).defines).defines for name in packed
    }


def test_every_mode_of_a_step_is_known() -> None:
    attentions: tuple[AttentionMode, ...] = ("tiles", "single", "split")
    known = {*first_modes(generates=True), *later_modes(generates=True)}
    possible: set[Mode] = {
        mode_of(n, n_outputs, attention, hidden=hidden)
        for n in range(1, 40)
        for n_outputs in range(n + 1)
        for attention in attentions
        for hidden in (False, True)
        if not hidden or n_outputs == 0
    }
    assert possible <= known


def test_what_a_first_start_waits_for(conformance_model: Callable[[str], Path]) -> None:
    """Not for the programs of long contexts, which a short first request does not need."""
    if not devices():
        pytest.skip("no device that children compile for")
    (index,) = devices()
    options = EngineOptions(n_ctx=1024, device=index, kernel_family="simd", fit=False)
    prepared = prepare(*read_model(conformance_model("llama-dense"), options), options)
    assert prepared.compiling is not None
    (specs,) = prepared.compiling._rehearsal.of_modes(first_modes(generates=True))
    assert not [spec for spec in specs if "SPLIT" in spec.defines]
    assert len(specs) <= 17
    few, next_one = prepared.compiling.later[:2]  # what is compiled next
    assert few == mode_of(PROMPT_TILE, 2, "tiles")
    assert (next_one.tile, next_one.attention) == (1, "split")


@pytest.mark.parametrize("kept", [False, True])
def test_attention_of_the_first_tokens(
    conformance_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """As prompts have it, until their own has been compiled: that is begun after the start."""
    if not devices():
        pytest.skip("no device that children compile for")
    (index,) = devices()
    options = EngineOptions(n_ctx=1024, device=index, kernel_family="simd", fit=False)
    compiling = prepare(*read_model(conformance_model("llama-dense"), options), options).compiling
    assert compiling is not None
    asked = list[Spec]()
    monkeypatch.setattr(Programs, "load", lambda self, specs: kept)
    monkeypatch.setattr(Programs, "request", lambda self, specs: asked.extend(specs) or [])
    compiling.begin()
    own = mode_of(1, 1, "single")
    assert compiling.first[0] == (own if kept else as_prompt(own))
    assert (compiling.later[1] == own) is not kept
    attention = [spec for spec in asked if spec.source == "attention/attention_simd.cl"]
    assert len(attention) == 1 + kept


def test_what_cannot_be_compiled(conformance_model: Callable[[str], Path]) -> None:
    """The error is a word on the program, and every process that compiles ends."""
    if not devices():
        pytest.skip("no device that children compile for")
    (index,) = devices()
    options = EngineOptions(n_ctx=256, device=index, fit=False)
    prepared = prepare(*read_model(conformance_model("llama-dense"), options), options)
    (programs,) = (programs for _, programs in prepared.placed)
    with pytest.raises(BuildError, match=r"embed\.cl with PARTS=0"):
        programs.request([programs.spec("matrix/embed.cl", ["PARTS=0"])])[0].result(120)
    programs.stop()
