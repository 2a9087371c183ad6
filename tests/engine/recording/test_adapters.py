"""LoRA adapters against the same updates merged into the weights, and per sequence."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from asking import ask, assert_same_logits
from gguf import GGUFReader
from gguf.quants import dequantize
from model_files import Updates, copy_model, updates_of, write_adapter
from msgspec.structs import replace
from stepping import Floats, Stepper, nmse, sequence

from gguf_serve.engine.engine import Engine
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import open_gguf
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.recording.adapters import invoked_at, switched_adapters
from gguf_serve.engine.scheduling.sequence import Sequence as RunningSequence
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs

TABLE = [3, 7]
TOKENS = list(range(5, 53))


def merged(path: Path, target: Path, *scaled: tuple[Updates, float]) -> Path:
    """A copy of a model with float weights to which updates, times a factor, are added."""
    tensors = {}
    for tensor in GGUFReader(path).tensors:
        data = dequantize(tensor.data, tensor.tensor_type)
        for updates, factor in scaled:
            if tensor.name in updates:
                a, b = (m.astype(np.float64) for m in updates[tensor.name])
                update = a @ b.T if tensor.name == "token_embd.weight" else b @ a
                data = (data + factor * update).astype(np.float32)
        tensors[tensor.name] = data
    return copy_model(path, target, tensors)


def logits(model: Stepper, scales: tuple[float, ...] = ()) -> Floats:
    seq = sequence(TOKENS, 1, TABLE)
    seq.adapter_scales = scales
    return model.run(seq, [30, 1, 17])


def check_merged(
    base: Path,
    device: Device,
    programs: Programs,
    folder: Path,
    first: Updates,
    second: Updates,
    pairs: Sequence[tuple[tuple[float, float], tuple[float, float]]],
) -> None:
    """Two adapters with scales are as merged into the weights by factors: (scales, factors); with
    scales of 0 they are as none."""
    with open_gguf(base) as gguf:
        arch = gguf.architecture
    files = [
        write_adapter(folder / "a.gguf", first, 16.0, arch),
        write_adapter(folder / "b.gguf", second, 8.0, arch),
    ]
    model = Stepper(base, device, programs, adapters=files)
    plain = logits(Stepper(base, device, programs))
    assert nmse(logits(model, (0.0, 0.0)), plain) < 1e-11
    for scales, factors in pairs:
        merge = merged(base, folder / "m.gguf", (first, factors[0]), (second, factors[1]))
        expected = logits(Stepper(merge, device, programs))
        assert nmse(plain, expected) > 1e-4
        assert nmse(logits(model, scales), expected) < 1e-9


@pytest.mark.parametrize("name", ["llama-dense", "gemma3-dense", "phi3-dense"])
def test_like_merged_weights(
    device: Device,
    programs: Programs,
    conformance_model: Callable[[str], Path],
    tmp_path: Path,
    name: str,
) -> None:
    """One adapter, two at once with scales of their own, and none."""
    base = conformance_model(name)
    first, second = updates_of(base, 1), updates_of(base, 2, ("attn_output.weight", "up.weight"))
    both = (((1.0, 0.0), (2.0, 0.0)), ((0.5, -1.5), (1.0, -1.5)))
    check_merged(base, device, programs, tmp_path, first, second, both)


@pytest.mark.whole_models
@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("llama-dense", ("token_embd.weight",)),
        ("gemma3-dense", ("output.weight", "token_embd.weight")),  # scales embeddings
        ("granite-dense", ("output.weight",)),  # scales logits
        ("llama-moe", ("_exps.weight",)),
        ("gpt-oss-moe", ("_exps.weight",)),  # with biases, in slots of floats
        ("qwen3next-moe", ("_exps.weight",)),  # gate and up in one
        ("llama4-moe", ("down_exps.weight",)),
        ("nemotron_h_moe-dense", ("ffn_up.weight", "ffn_down.weight")),
        ("grovemoe-moe", ("exps.weight",)),  # chunks too
        ("minicpm-moe", ("up_exps.weight",)),
    ],
)
def test_embeddings_outputs_and_experts(
    device: Device,
    programs: Programs,
    conformance_model: Callable[[str], Path],
    tmp_path: Path,
    name: str,
    ends: tuple[str, ...],
) -> None:
    base = conformance_model(name)
    first, second = updates_of(base, 1, ends), updates_of(base, 2, ends)
    check_merged(base, device, programs, tmp_path, first, second, (((0.5, -1.5), (1.0, -1.5)),))


def test_experts_whose_input_is_weighted(
    device: Device, programs: Programs, conformance_model: Callable[[str], Path], tmp_path: Path
) -> None:
    base = conformance_model("llama4-moe")
    updates = updates_of(base, 1, ("up_exps.weight",))
    file = write_adapter(tmp_path / "a.gguf", updates, 1.0, "llama4")
    with pytest.raises(ModelError, match="ffn_up_exps are not supported, whose input llama4"):
        Stepper(base, device, programs, adapters=[file])


def scaled(scales: list[tuple[float, ...]]) -> list[RunningSequence]:
    """The same tokens in slots side by side, each with scales of its own."""
    seqs = [sequence(TOKENS, slot, [2 * slot, 2 * slot + 1]) for slot in range(len(scales))]
    for seq, own in zip(seqs, scales, strict=True):
        seq.adapter_scales = own
    return seqs


def test_each_sequence_has_its_own_scales(
    device: Device, programs: Programs, conformance_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """In one batch as alone, whatever the others have."""
    base = conformance_model("llama-dense")
    file = write_adapter(tmp_path / "a.gguf", updates_of(base, 1), 8.0)
    model = Stepper(base, device, programs, adapters=[file])
    scales = [(1.0,), (0.0,), (-0.5,)]
    seqs = scaled(scales)
    steps = [model.step(*((seq, n) for seq in seqs)) for n in (30, 1, 17)]
    for i, own in enumerate(scales):
        together = np.concatenate([step[i] for step in steps])
        assert nmse(together, logits(model, own)) < 1e-11


@pytest.mark.parametrize(
    ("name", "ends"), [("llama-dense", ()), ("granite-dense", ("output.weight",))]
)
def test_rows_alone_have_their_own_scales(
    device: Device,
    programs: Programs,
    conformance_model: Callable[[str], Path],
    tmp_path: Path,
    name: str,
    ends: tuple[str, ...],
) -> None:
    """The last layer's FFN and the output see the last tokens of two prompts only."""
    base = conformance_model(name)
    arch = name.removesuffix("-dense")
    file = write_adapter(tmp_path / "a.gguf", updates_of(base, 1, ends), 8.0, arch)
    model = Stepper(base, device, programs, adapters=[file])
    scales = [(1.0,), (-0.5,)]
    seqs = scaled(scales)
    last = model.step(*((seq, 40) for seq in seqs), wants=lambda at: at == 39)
    for row, own in zip(last, scales, strict=True):
        assert nmse(row, logits(model, own)[39:40]) < 1e-11


def test_quantized_weights_beneath(
    device: Device, programs: Programs, shared: Path, tmp_path: Path
) -> None:
    """As merged into the same weights as floats, but for what quantized activations lose."""
    base = shared / "conformance" / "quants" / "Q4_0.gguf"
    if not base.is_file():
        pytest.skip(f"{base.name} is not among the conformance data")
    updates = updates_of(base, 3)
    file = write_adapter(tmp_path / "a.gguf", updates, 8.0)
    found = logits(Stepper(base, device, programs, adapters=[file]), (1.0,))
    merge = merged(base, tmp_path / "m.gguf", (updates, 1.0))
    assert nmse(found, logits(Stepper(merge, device, programs))) < 2e-8


@pytest.mark.parametrize(
    ("name", "shape_a", "shape_b", "message"),
    [
        (
            "blk.0.attn_q.weight",
            (8, 33),
            (None, 8),
            r"attn_q.*\(33, 8\) and \(8, 256\).*\(256, 256\)",
        ),
        ("blk.9.attn_q.weight", (8, 256), (256, 8), "blk.9.attn_q.weight, which the model lacks"),
        ("token_embd.weight", (8, 256), (128, 8), r"token_embd.*\(256, 8\) and \(8, 128\)"),
        ("output_norm.weight", (8, 256), (128, 8), "output_norm.weight of shape"),
    ],
)
def test_what_does_not_fit(
    device: Device, programs: Programs, conformance_model: Callable[[str], Path], tmp_path: Path,
    name: str, shape_a: tuple[int, int], shape_b: tuple[int | None, int], message: str,
) -> None:  # fmt: skip
    base = conformance_model("llama-dense")
    shapes = {t.name: [int(n) for n in t.shape] for t in GGUFReader(base).tensors}
    rows = shape_b[0] or shapes[name][-1]
    updates = {name: (np.zeros(shape_a, np.float32), np.zeros((rows, shape_b[1]), np.float32))}
    file = write_adapter(tmp_path / "a.gguf", updates, 1.0)
    with pytest.raises(ModelError, match=message):
        Stepper(base, device, programs, adapters=[file])


def test_an_adapter_of_another_architecture(
    device: Device, programs: Programs, conformance_model: Callable[[str], Path], tmp_path: Path
) -> None:
    base = conformance_model("llama-dense")
    file = write_adapter(tmp_path / "a.gguf", updates_of(base, 1), 1.0, "qwen2")
    with pytest.raises(ModelError, match="an adapter of qwen2, the model is llama"):
        Stepper(base, device, programs, adapters=[file])


def test_tokens_invoke_an_adapter(
    device: Device, programs: Programs, conformance_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """It counts from a token on, however the prompt is divided: what is before is as without
    it, and what follows as if the same keys had been computed without it and then with it."""
    base = conformance_model("llama-dense")
    file = write_adapter(tmp_path / "a.gguf", updates_of(base, 1), 8.0)
    model, start = Stepper(base, device, programs, adapters=[file]), 35

    def run(counts: list[int], starts: tuple[int, ...] = (start,)) -> Floats:
        seq = sequence(TOKENS, 1, TABLE)
        seq.adapter_scales, seq.adapter_starts = (1.0,), starts
        return model.run(seq, counts)

    switched = sequence(TOKENS, 1, TABLE)
    first = model.step((switched, start))[0]
    switched.adapter_scales = (1.0,)
    expected = np.concatenate([first, model.step((switched, len(TOKENS) - start))[0]])
    for counts in ([48], [30, 1, 17], [start, 13]):
        assert nmse(run(counts), expected) < 1e-11
    assert nmse(run([48], (0,)), expected) > 1e-4


def test_where_a_prompt_invokes() -> None:
    assert invoked_at((1, 2, 3, 1, 2, 4), (1, 2)) == 3
    assert invoked_at((1, 2), (1, 2)) == 0
    assert invoked_at((1, 2, 3), (2, 1)) is None
    assert invoked_at((1,), (1, 2)) is None


def test_an_engine_with_an_adapter_that_tokens_invoke(
    conformance_model: Callable[[str], Path],
    tmp_path: Path,
    start_engine: Callable[[str, EngineOptions], Engine],
) -> None:
    """Prompts without the tokens are as without the adapter; others share nothing with those
    that invoke it elsewhere."""
    updates = updates_of(conformance_model("llama-dense"), 1)
    file = write_adapter(tmp_path / "a.gguf", updates, 8.0, invocation=[7, 8])
    options = EngineOptions(
        n_ctx=1024, n_parallel=2, n_ubatch=64, n_gpu_layers=0, kernel_family="simd",
        cache_type_k="f32", cache_type_v="f32",
    )  # fmt: skip
    with_it = start_engine("llama-dense", dataclasses.replace(options, adapters=((file, 1.0),)))
    without = start_engine("llama-dense", options)
    assert with_it.adapters()[0].invocation == (7, 8)
    plain, invoking = [9] * 70, [*[9] * 60, 7, 8, *[9] * 8]
    expected = ask(without, plain, 4, n_probs=128)
    assert_same_logits(ask(with_it, plain, 4, n_probs=128), expected)
    ask(with_it, [7, 8, *invoking[2:60]], 1)
    found = ask(with_it, invoking, 4, n_probs=128)
    assert found.n_cached == 0
    elsewhere = [*[9] * 40, 7, 8, *invoking[42:60], *[9] * 10]
    ask(with_it, elsewhere, 1, adapters=((0, 0.0),))
    off = ask(with_it, invoking, 4, n_probs=128, adapters=((0, 0.0),))
    assert off.n_cached > 30  # without a scale it is nothing where it is invoked
    assert_same_logits(off, ask(without, invoking, 4, n_probs=128))
    with pytest.raises(AssertionError):
        assert_same_logits(found, off)


@pytest.mark.parametrize(
    ("tensor", "shape"),
    [("blk.0.attn_qkv.weight", (256,)), ("blk.1.attn_q.lora_a", (256, 32))],
)
def test_a_models_own_adapters_that_do_not_fit(
    conformance_model: Callable[[str], Path], tensor: str, shape: tuple[int, ...]
) -> None:
    with open_gguf(conformance_model("graniteswitch")) as gguf:
        assert len(switched_adapters(gguf, 2, 3)) == 3
        changed = {tensor: replace(gguf.tensors[tensor], shape=shape)}
        with pytest.raises(ModelError, match="do not fit"):
            switched_adapters(gguf.with_tensors({**gguf.tensors, **changed}), 2, 3)
