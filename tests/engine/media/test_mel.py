"""Spectrograms against llama.cpp's, and their shapes at the edges."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from vision_data import Reference

from gguf_serve.engine.encoders.audio_file import read_audio_file
from gguf_serve.engine.gguf.file import open_gguf
from gguf_serve.engine.media.mel import gemma4_pieces, mel_filters, qwen3_pieces, whisper_pieces
from gguf_serve.engine.media.sound import decode_sound
from gguf_serve.engine.media.sounds import SOUNDS


@pytest.mark.parametrize(
    "name", ["dots3note_a", "gemma4a", "granite_speech", "lfm2a", "qwen2a", "qwen3a"]
)
def test_a_spectrogram_of_speech_length(vision_folder: Path, name: str) -> None:
    samples = decode_sound((vision_folder / "images" / "sound.wav").read_bytes())
    assert len(samples) == 32000
    expected = Reference(vision_folder, name.replace("note_a", "note")).arrays["mel.sound.0"]
    found = SOUNDS[name].pieces(samples, expected.shape[0], True)
    assert len(found) == 1
    assert np.abs(found[0] - expected).max() < 1e-4


@pytest.mark.parametrize("name", ["mimo_audio", "pockettts_spkenc", "qwen3tts_spkenc"])
def test_sounds_at_24_khz(vision_folder: Path, name: str) -> None:
    kind = SOUNDS[name]
    data = (vision_folder / "images" / "sound24.wav").read_bytes()
    expected = Reference(vision_folder, name).arrays["mel.sound24.0"]
    (found,) = kind.pieces(decode_sound(data, rate=kind.rate), expected.shape[0], True)
    assert np.abs(found - expected).max() < 1e-4


def test_parakeets_window_and_filters_are_in_its_file(
    vision_folder: Path, conformance_model: Callable[[str], Path]
) -> None:
    reference = Reference(vision_folder, "parakeet")
    samples = decode_sound((vision_folder / "images" / "sound.wav").read_bytes())
    with open_gguf(conformance_model(reference.spec)) as gguf:
        spec = read_audio_file(gguf)
        found = spec.input.pieces(samples, spec.n_mels, True)
    assert np.abs(found[0] - reference.arrays["mel.sound.0"]).max() < 1e-4


@pytest.mark.parametrize("n", [1, 160, 199, 201, 480_000, 480_161])
def test_lengths(n: int) -> None:
    samples = np.random.default_rng(2).standard_normal(n).astype(np.float32)
    whole = whisper_pieces(samples, 80)
    assert [piece.shape for piece in whole] == [(80, 3000)] * -(-n // 480_000)
    pieces = qwen3_pieces(samples, 128)
    assert all(piece.shape[1] % 100 == 0 for piece in pieces)
    assert sum(piece.shape[1] for piece in pieces) >= n // 160


def test_the_floor_of_gemma4_is_added_and_for_llama_cpp_the_least() -> None:
    tone = np.sin(np.arange(1600, dtype=np.float32)) * 0.9
    ours, theirs = (gemma4_pieces(tone, 128, like)[0] for like in (False, True))
    added, least = np.exp(ours.astype(float)), np.exp(theirs.astype(float))
    np.testing.assert_allclose(np.maximum(added - 1e-3, 1e-3), least, rtol=1e-4, atol=1e-6)
    assert np.abs(ours - theirs).max() > 0.1


def test_filters_are_triangles_of_unit_area() -> None:
    filters = mel_filters(80)
    assert filters.shape == (80, 201)
    areas = filters.sum(axis=1) * 40  # hertz per bin
    np.testing.assert_allclose(areas[40:], 1.0, atol=0.08)
