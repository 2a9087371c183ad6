"""Programs of later steps: what takes their place, and that they are compiled once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from stepping import SIZES, Floats, Stepper, sequence

from gguf_serve.engine.errors import EngineError
from gguf_serve.engine.loading.compiling import longest_first
from gguf_serve.engine.loading.loader import compile_model, load_model
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.recording.step import PROMPT_TILE, Mode, first_modes, later_modes
from gguf_serve.kernels.attention.attention import PART
from gguf_serve.kernels.attention.kv import PAGE
from gguf_serve.kernels.opencl import program
from gguf_serve.kernels.opencl.compiling import compiler, program_cache
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.platforms import list_devices
from gguf_serve.kernels.opencl.program import Programs, Spec


class Compiling:
    """Has modes of some tiles ready, those of prompts or all, and never gets on."""

    def __init__(self, *tiles: int, of_prompts: bool = False) -> None:
        self.tiles, self.of_prompts, self.continues, self.begun = tiles, of_prompts, True, False
        self.first, self.later = first_modes(generates=True), later_modes(generates=True)

    def continue_later(self) -> None:
        self.begun = True

    def ready(self, mode: Mode) -> bool:
        return mode.tile in self.tiles and (mode.attention == "tiles" or not self.of_prompts)


def test_a_larger_tile_in_the_place_of_one_that_is_being_compiled(
    device: Device, programs: Programs, conformance_model: Callable[[str], Path]
) -> None:
    """Bit for bit the same; on devices without that promise the step waits for its own."""
    stepper = Stepper(conformance_model("llama-dense"), device, programs)
    tokens = np.arange(1, 40).reshape(3, 13)

    def decode() -> Floats:
        sequences = [sequence(row, i, [i]) for i, row in enumerate(tokens)]
        stepper.step(*((seq, 12) for seq in sequences))
        return np.concatenate(stepper.step(*((seq, 1) for seq in sequences)))

    runner = stepper.runner
    expected = decode()
    runner._recordings.clear()
    runner._of_step.clear()
    runner.warm_up(Compiling(32))
    assert (decode() == expected).all()
    tiles = {mode.tile for mode in runner._recordings if mode.attention != "tiles"}
    assert tiles == ({1, 32} if device.is_simd else {1, 8})
    runner._compiling = Compiling(8)
    assert (decode() == expected).all()
    assert any(mode.tile == 8 for mode in runner._recordings)


def test_no_token_waits_for_attention_to_many_keys(
    device: Device, programs: Programs, conformance_model: Callable[[str], Path]
) -> None:
    """The first token whose keys are more than one part is computed as a prompt is, as long as
    attention in parts is being compiled, bit for bit the same."""
    if not device.is_simd:
        pytest.skip("promised for CPUs only")
    sizes = replace(SIZES, n_ctx_slot=PART + PAGE, n_pages=PART // PAGE + 1)
    stepper = Stepper(conformance_model("llama-dense"), device, programs, sizes=sizes)
    runner, table = stepper.runner, list(range(PART // PAGE + 1))
    tokens = np.random.default_rng(3).integers(stepper.n_vocab, size=PART + 2)
    counts = [96, 96, PART - 193, 1, 1, 1]
    expected = stepper.run(sequence(tokens, 0, table), counts)
    assert {mode.attention for mode in runner._recordings} == {"tiles", "single", "split"}
    runner._recordings.clear()
    runner._of_step.clear()
    runner.warm_up(Compiling(PROMPT_TILE, of_prompts=True))
    assert (stepper.run(sequence(tokens, 0, table), counts) == expected).all()
    assert {mode.attention for mode in runner._recordings} == {"tiles", "single"}


def test_a_pause_is_used_a_little_at_a_time(
    device: Device, programs: Programs, conformance_model: Callable[[str], Path]
) -> None:
    """What is compiled is recorded, one mode at a time, until nothing can come any more."""
    if not device.is_simd:
        pytest.skip("the same for every device")
    runner = Stepper(conformance_model("llama-dense"), device, programs).runner
    compiling = Compiling(8)
    runner.warm_up(compiling)
    n_eight = sum(mode.tile == 8 for mode in compiling.later)
    before = len(runner._recordings)
    assert not compiling.begun
    for n in range(1, n_eight + 1):
        assert runner.use_pause() is not None
        assert len(runner._recordings) == before + n
    assert compiling.begun
    assert runner.use_pause() is not None  # the others may come
    assert len(runner._recordings) == before + n_eight
    compiling.continues = False
    assert not runner.is_complete
    assert runner.use_pause() is None
    assert runner.is_complete


@pytest.fixture
def options() -> EngineOptions:
    found = [info for info in list_devices() if "ortable" not in info.platform]
    if not found:
        pytest.skip("no device that children compile for")
    return EngineOptions(n_ctx=64, device=str(found[0].index))


def test_what_has_been_compiled_ahead_is_loaded(
    conformance_model: Callable[[str], Path], options: EngineOptions
) -> None:
    path, shares = conformance_model("llama-dense"), list[float]()
    compile_model(path, options, shares.append)
    assert shares[-1] == 1
    n_missing, n_programs = compile_model(path, options, shares.append)
    assert n_missing == 0
    assert n_programs > 10
    loaded = load_model(path, options, shares.append).info.loading
    assert "programs from the cache" in loaded
    assert "compiled" not in loaded


def test_compiling_ahead_into_a_folder_that_cannot_be_written(
    conformance_model: Callable[[str], Path],
    options: EngineOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A start would only warn of it; here it is what was asked for."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(program_cache.ProgramCache, "load", lambda self, key: None)
    monkeypatch.setattr(program, "default_folder", lambda: tmp_path / "file" / "programs")
    monkeypatch.setattr(compiler.Worker, "compile", lambda self, *job: b"binary")
    with pytest.raises(EngineError, match=f"cannot be kept in {tmp_path}"):
        compile_model(conformance_model("llama-dense"), options, lambda share: None)


def test_the_order_of_work() -> None:
    """What takes long comes first, so that it does not run alone at the end."""
    few, many = (Spec("matrix/matmul_simd.cl", (f"NT={n}", "TYPE_Q4_K")) for n in (1, 32))
    attention, rope = Spec("attention/attention_simd.cl", ()), Spec("attention/rope.cl", ())
    assert longest_first([rope, few, attention, many]) == [many, few, attention, rope]
