"""Log-mel spectrograms of sounds, as Whisper and its kin take them.

Frames of 400 samples every 160 at 16 kHz, a periodic Hann window, Slaney's mel filters, base-10
logarithms cut off 8 below the largest, then (x + 4) / 4. Arithmetic is in double precision.
Source: https://github.com/openai/whisper/blob/main/whisper/audio.py.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

SAMPLE_RATE = 16000
WINDOW, HOP = 400, 160
EDGE = WINDOW // 2  # samples that are mirrored at an end
BLOCK = 8192  # frames transformed at a time, for the memory of long sounds
WHISPER_FRAMES = 3000  # of a piece: 30 seconds
QWEN3_FRAMES, QWEN3_UNIT = 800, 100  # the most of a piece, and what its length is a multiple of

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


def whisper_pieces(samples: Floats, n_mels: int) -> list[Floats]:
    """[n_mels, 3000] for every 30 seconds or a part of them."""
    samples = _not_too_short(samples)
    silence = np.zeros(SAMPLE_RATE * 30 + EDGE)
    mel = log_mel(np.concatenate([samples[EDGE:0:-1], samples, silence]), n_mels)
    n_pieces = -(-len(samples) // (WHISPER_FRAMES * HOP))
    return [mel[:, i * WHISPER_FRAMES : (i + 1) * WHISPER_FRAMES] for i in range(n_pieces)]


def qwen3_pieces(samples: Floats, n_mels: int) -> list[Floats]:
    """[n_mels, n] for every 8 seconds, n filled up with zeros to a multiple of 100."""
    samples = _not_too_short(samples)
    mirrored = [samples[EDGE:0:-1], samples, samples[-2 : -EDGE - 2 : -1]]
    mel = log_mel(np.concatenate(mirrored), n_mels)
    pieces = [mel[:, at : at + QWEN3_FRAMES] for at in range(0, mel.shape[1], QWEN3_FRAMES)]
    return [np.pad(piece, ((0, 0), (0, -piece.shape[1] % QWEN3_UNIT))) for piece in pieces]


def sample_pieces(samples: Floats, n_frame: int) -> list[Floats]:
    """float32 [samples, frames] of up to 30 seconds each; the last frame is filled with zeros."""
    samples = _not_too_short(samples)
    frames = np.pad(samples, (0, -len(samples) % n_frame)).reshape(-1, n_frame)
    most = 30 * SAMPLE_RATE // n_frame
    return [frames[at : at + most].T for at in range(0, len(frames), most)]


def _not_too_short(samples: Floats) -> Floats:
    """With silence at the end if there is not enough for a window."""
    return np.pad(samples, (0, max(0, WINDOW - len(samples))))


def log_mel(samples: npt.NDArray[np.floating], n_mels: int) -> Floats:
    """[n_mels, frames]"""
    n = 1 + (len(samples) - WINDOW) // HOP
    frames = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP][:n]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    mel = np.empty((n_mels, n))
    for at in range(0, n, BLOCK):
        power = np.abs(np.fft.rfft(frames[at : at + BLOCK] * hann, axis=1)) ** 2
        mel[:, at : at + BLOCK] = mel_filters(n_mels) @ power.T
    mel = np.log10(np.maximum(mel, 1e-10))
    mel = np.maximum(mel, mel.max() - 8.0)
    result: Floats = ((mel + 4.0) / 4.0).astype(np.float32)
    return result


@cache
def mel_filters(n_mels: int) -> Doubles:
    """[n_mels, 201]: triangles between frequencies equally far apart on Slaney's scale, each of
    unit area."""
    edges = _from_mel(np.linspace(0.0, _to_mel(SAMPLE_RATE / 2), n_mels + 2))
    bins = np.arange(WINDOW // 2 + 1) * SAMPLE_RATE / WINDOW
    widths = np.diff(edges)[:, None]
    rising = (bins - edges[:-2, None]) / widths[:-1]
    falling = (edges[2:, None] - bins) / widths[1:]
    area = 2.0 / (edges[2:] - edges[:-2])
    filters: Doubles = np.maximum(0.0, np.minimum(rising, falling)) * area[:, None]
    return filters


# Slaney's scale is linear below 1000 Hz (mel 15) and logarithmic above.
_LINEAR, _KNEE, _STEP = 200.0 / 3, 1000.0, np.log(6.4) / 27


def _to_mel(hertz: float) -> float:
    knee = _KNEE / _LINEAR
    return hertz / _LINEAR if hertz < _KNEE else float(knee + np.log(hertz / _KNEE) / _STEP)


def _from_mel(mels: Doubles) -> Doubles:
    knee = _KNEE / _LINEAR
    return np.where(mels < knee, mels * _LINEAR, _KNEE * np.exp(_STEP * (mels - knee)))
