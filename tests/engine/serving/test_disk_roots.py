"""What decides the bytes of pages decides their names: nothing else is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from asking import DISK, N_TOKENS, SECONDS, Start, ask, disk, engine_of, forget, kept, random_prompt
from model_files import updates_of, write_adapter

from gguf_serve.engine.disk_cache import page_file
from gguf_serve.engine.engine import Engine
from gguf_serve.engine.gguf.file import open_gguf
from gguf_serve.engine.loading.loader import load_model
from gguf_serve.engine.options import RopeOptions
from gguf_serve.engine.serving import disk as disk_module
from gguf_serve.engine.serving.disk import disk_options


@pytest.fixture(scope="module")
def prompt(engine: Engine) -> list[int]:
    """What is in the folder."""
    return kept(engine, 40)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"rope": RopeOptions(base=5e5)}, marks=pytest.mark.slow),
        pytest.param({"cache_type_k": "q8_0"}, marks=pytest.mark.slow),
        pytest.param({"cache_type_v": "q8_0"}, marks=pytest.mark.slow),
        pytest.param({"activation_type": "int8"}, marks=pytest.mark.slow),
        pytest.param({"flash_attn": "off"}, marks=pytest.mark.slow),
        pytest.param({"kernel_family": "simt"}, marks=pytest.mark.slow),
        {"override_kv": (("llama.attention.layer_norm_rms_epsilon", 1e-3),)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_options_find_nothing(prompt: list[int], start: Start, change: dict) -> None:
    other = start(**change)
    assert ask(other, prompt, 1).n_cached == 0
    assert disk(other).n_corrupt == 0


def test_another_file(
    prompt: list[int], folder: Path, conformance_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """Of one architecture, with the same shapes, that differs in a single weight."""
    path = conformance_model("llama-dense")
    raw = bytearray(path.read_bytes())
    with open_gguf(path) as gguf:
        raw[gguf.tensors["blk.0.attn_k.weight"].offset] ^= 1
    (tmp_path / "other.gguf").write_bytes(raw)
    options = replace(DISK, cache_disk=str(folder))
    model = load_model(tmp_path / "other.gguf", options, lambda share: None)
    other = engine_of(model, disk=disk_options(options))
    assert ask(other, prompt, 1).n_cached == 0
    assert disk(other).n_corrupt == 0
    other.close()


def test_another_layout_of_pages(
    prompt: list[int], start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_module, "LAYOUT", disk_module.LAYOUT + 1)
    other = start()
    assert ask(other, prompt, 1).n_cached == 0
    assert disk(other).n_corrupt == 0


def test_another_version_of_files(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have the same names, so they are found, and are of no use to anybody any more."""
    prompt = kept(engine, 41)
    n = disk(engine).n_corrupt
    with monkeypatch.context() as patch:
        patch.setattr(page_file, "VERSION", page_file.VERSION + 1)
        assert ask(engine, prompt, 1).n_cached == 0
        assert disk(engine).n_corrupt == n + 1
        assert engine.wait_until_kept(SECONDS)


def test_another_scale_of_an_adapter(
    start: Start, conformance_model: Callable[[str], Path], tmp_path: Path
) -> None:
    base, prompt = conformance_model("llama-dense"), random_prompt(N_TOKENS, 42)
    file = write_adapter(tmp_path / "lora.gguf", updates_of(base, 1), 16.0)
    engine = start(adapters=((file, 1.0),))
    ask(engine, prompt, 1)
    assert engine.wait_until_kept(SECONDS)
    forget(engine)
    for scale, n_cached in ((0.5, 0), (0.0, 0), (1.0, 320)):
        assert ask(engine, prompt, 1, adapters=((0, scale),)).n_cached == n_cached
