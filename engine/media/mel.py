"""Log-mel spectrograms of sounds: Whisper's and its kin's, and Gemma 4's.

Whisper's: frames of 400 samples every 160 at 16 kHz, a periodic Hann window, Slaney's mel filters,
base-10 logarithms cut off 8 below the largest, then (x + 4) / 4.
Source: https://github.com/openai/whisper/blob/main/whisper/audio.py.
Arithmetic is in double precision.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

SAMPLE_RATE, SPEECH_RATE = 16000, 24000  # the latter of what makes codes of a sound
WINDOW, HOP = 400, 160
EDGE = WINDOW // 2  # samples that are mirrored at an end
BLOCK = 8192  # frames transformed at a time, for the memory of long sounds
WHISPER_FRAMES = 3000  # of a piece: 30 seconds
GEMMA4_WINDOW, GEMMA4_FFT, GEMMA4_FLOOR = 320, 512, 1e-3
PIECE = SAMPLE_RATE * 30  # samples, the most that Gemma 4 takes at once
MINUTE = SAMPLE_RATE * 60
MIMO_WINDOW, VOICE_WINDOW = 960, 1024
MIMI_STRIDES, MIMI_FRAME = (4, 5, 6), 1920  # of convolutions; samples of a row in the end
NEMO_FFT, NEMO_FLOOR, PREEMPHASIS = 512, 2.0**-24, 0.97
QWEN3_FRAMES, QWEN3_UNIT = 800, 100  # the most of a piece, and what its length is a multiple of

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


def whisper_pieces(samples: Floats, n_mels: int) -> list[Floats]:
    """[n_mels, 3000] for every 30 seconds or a part of them."""
    samples = _not_too_short(samples)
    silence = np.zeros(PIECE + EDGE)
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


def dots3_pieces(samples: Floats, n_mels: int) -> list[Floats]:
    """[n_mels, n / 160] for every minute or a part of it, after which there is silence."""
    pieces = []
    for at in range(0, max(len(samples) - HOP, 0) + 1, MINUTE):
        piece = _not_too_short(samples[at : at + MINUTE])
        end = piece[-2 : -EDGE - 2 : -1] if len(piece) == MINUTE else np.zeros(EDGE)
        spectra = mel_spectra(
            np.concatenate([piece[EDGE:0:-1], piece, end]), hann(WINDOW), mel_filters(n_mels)
        )
        pieces.append(_compressed(spectra[:, : len(piece) // HOP]))
    return pieces


def mimo_piece(samples: Floats, n_mels: int) -> Floats:
    """[n_mels, n / 240 + 1] of a sound at 24 kHz: logarithms of magnitudes on HTK's scale."""
    samples = np.pad(samples, (0, max(0, MIMO_WINDOW - len(samples))))
    edge = MIMO_WINDOW // 2
    mirrored = np.concatenate([samples[edge:0:-1], samples, samples[-2 : -edge - 2 : -1]])
    filters = triangles(MIMO_WINDOW, _htk_edges(n_mels, SPEECH_RATE), SPEECH_RATE)
    mel = mel_spectra(mirrored, hann(MIMO_WINDOW), filters, power=1, hop=MIMO_WINDOW // 4)
    result: Floats = np.log(np.maximum(mel, 1e-7)).astype(np.float32)
    return result


def mimi_piece(samples: Floats) -> Floats:
    """[1, n] samples of whole frames, the last of which ends with silence."""
    return np.pad(samples, (0, -len(samples) % MIMI_FRAME))[None]


def voice_piece(samples: Floats, n_mels: int) -> Floats:
    """[n_mels, n / 256] of a sound at 24 kHz: logarithms of magnitudes on Slaney's scale."""
    samples = np.pad(samples, (0, max(0, 2 * VOICE_WINDOW - len(samples))))
    edge = (VOICE_WINDOW - VOICE_WINDOW // 4) // 2
    mirrored = np.concatenate([samples[edge:0:-1], samples, samples[-2 : -edge - 2 : -1]])
    filters = mel_filters(n_mels, VOICE_WINDOW, SPEECH_RATE)
    mel = mel_spectra(mirrored, hann(VOICE_WINDOW), filters, power=1, hop=VOICE_WINDOW // 4)
    result: Floats = np.log(np.maximum(mel, 1e-5)).astype(np.float32)
    return result


def nemo_piece(samples: Floats, window: Doubles, filters: Doubles, *, silent_end: bool) -> Floats:
    """[n_mels, n / 160 + 1] of all of a sound, as NVIDIA's NeMo has it: preemphasis, ln(x + 2^-24),
    each mel without its mean and divided by its deviation. ``silent_end``: what lies beyond the
    last whole frame is 0."""
    samples = _not_too_short(samples)
    sharp = np.append(samples[:1], samples[1:] - np.float32(PREEMPHASIS) * samples[:-1])
    edge = np.zeros(len(window) // 2)
    mel = np.log(mel_spectra(np.concatenate([edge, sharp, edge]), window, filters) + NEMO_FLOOR)
    n_whole = len(samples) // HOP
    whole = mel[:, :n_whole]
    mean = whole.mean(axis=1, keepdims=True)
    mel = (mel - mean) / (whole.std(axis=1, ddof=1, keepdims=True) + 1e-5)
    if silent_end:
        mel[:, n_whole:] = 0
    result: Floats = mel.astype(np.float32)
    return result


def granite_piece(samples: Floats, n_mels: int) -> Floats:
    """[n_mels, n / 320]: half as many mels on HTK's scale, of two frames above each other."""
    samples = _not_too_short(samples)
    mirrored = [samples[EDGE:0:-1], samples, samples[-2 : -EDGE - 2 : -1]]
    filters = triangles(NEMO_FFT, _htk_edges(n_mels // 2))
    mel = _compressed(mel_spectra(np.concatenate(mirrored), hann(WINDOW), filters))
    n = mel.shape[1] // 2
    return np.concatenate([mel[:, 0 : 2 * n : 2], mel[:, 1 : 2 * n : 2]])


def sample_pieces(samples: Floats, n_frame: int) -> list[Floats]:
    """float32 [samples, frames] of up to 30 seconds each; the last frame is filled with zeros."""
    samples = _not_too_short(samples)
    frames = np.pad(samples, (0, -len(samples) % n_frame)).reshape(-1, n_frame)
    most = PIECE // n_frame
    return [frames[at : at + most].T for at in range(0, len(frames), most)]


def gemma4_pieces(samples: Floats, n_mels: int, like_llama_cpp: bool = False) -> list[Floats]:
    """[n_mels, n] for every 30 seconds or a part of them: magnitudes of frames of 320 samples, by
    filters on the HTK scale, ln(x + 0.001); llama.cpp's ln(max(x, 0.001)) instead."""
    filters = triangles(GEMMA4_FFT, _htk_edges(n_mels))
    pieces = []
    for at in range(0, len(samples), PIECE):
        piece = _not_too_short(samples[at : at + PIECE])
        padded = np.concatenate([np.zeros(GEMMA4_WINDOW // 2), piece])
        n = (len(padded) - GEMMA4_WINDOW - 1) // HOP + 1  # frames that have a sample after them
        mel = mel_spectra(padded, hann(GEMMA4_WINDOW), filters, power=1)[:, :n]
        mel = np.maximum(mel, GEMMA4_FLOOR) if like_llama_cpp else mel + GEMMA4_FLOOR
        pieces.append(np.log(mel).astype(np.float32))
    return pieces


def _not_too_short(samples: Floats) -> Floats:
    """With silence at the end if there is not enough for a window."""
    return np.pad(samples, (0, max(0, WINDOW - len(samples))))


def log_mel(samples: npt.NDArray[np.floating], n_mels: int) -> Floats:
    """[n_mels, frames]"""
    return _compressed(mel_spectra(samples, hann(WINDOW), mel_filters(n_mels)))


def _compressed(mel: Doubles) -> Floats:
    """Whisper's logarithms."""
    mel = np.log10(np.maximum(mel, 1e-10))
    mel = np.maximum(mel, mel.max() - 8.0)
    result: Floats = ((mel + 4.0) / 4.0).astype(np.float32)
    return result


def hann(n: int) -> Doubles:
    """The periodic Hann window of n samples."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n)


def mel_spectra(
    samples: npt.NDArray[np.floating], window: Doubles, filters: Doubles, *, power: int = 2,
    hop: int = HOP,
) -> Doubles:  # fmt: skip
    """[n_mels, frames]: filters of the magnitudes, to that power, of windows every ``hop`` samples,
    filled with zeros to the size that filters [n_mels, size / 2 + 1] are for."""
    size = 2 * (filters.shape[1] - 1)
    frames = np.lib.stride_tricks.sliding_window_view(samples, len(window))[::hop]
    mel = np.empty((len(filters), len(frames)))
    for at in range(0, len(frames), BLOCK):
        spectra = np.fft.rfft(frames[at : at + BLOCK] * window, size, axis=1)
        mel[:, at : at + BLOCK] = filters @ (np.abs(spectra) ** power).T
    return mel


def symmetric_hann(n: int) -> Doubles:
    """The Hann window of n samples whose ends are equal."""
    return np.hanning(n)


@cache
def mel_filters(n_mels: int, size: int = WINDOW, rate: int = SAMPLE_RATE) -> Doubles:
    """[n_mels, size / 2 + 1]: triangles between frequencies equally far apart on Slaney's scale,
    each of unit area."""
    edges = _from_mel(np.linspace(0.0, _to_mel(rate / 2), n_mels + 2))
    area = 2.0 / (edges[2:] - edges[:-2])
    return triangles(size, edges, rate) * area[:, None]


def triangles(size: int, edges: Doubles, rate: int = SAMPLE_RATE) -> Doubles:
    """[edges - 2, size / 2 + 1]: filter i rises from edge i (Hz) to 1 and falls to edge i + 2."""
    bins = np.arange(size // 2 + 1) * rate / size
    widths = np.diff(edges)[:, None]
    rising = (bins - edges[:-2, None]) / widths[:-1]
    falling = (edges[2:, None] - bins) / widths[1:]
    filters: Doubles = np.maximum(0.0, np.minimum(rising, falling))
    return filters


def _htk_edges(n_mels: int, rate: int = SAMPLE_RATE) -> Doubles:
    """n_mels + 2 frequencies in Hz equally far apart on HTK's scale, 2595 log10(1 + f / 700)."""
    mels = np.linspace(0.0, np.log10(1 + rate / 2 / 700), n_mels + 2)
    edges: Doubles = 700 * (10.0**mels - 1)
    return edges


# Slaney's scale is linear below 1000 Hz (mel 15) and logarithmic above.
_LINEAR, _KNEE, _STEP = 200.0 / 3, 1000.0, np.log(6.4) / 27


def _to_mel(hertz: float) -> float:
    knee = _KNEE / _LINEAR
    return hertz / _LINEAR if hertz < _KNEE else float(knee + np.log(hertz / _KNEE) / _STEP)


def _from_mel(mels: Doubles) -> Doubles:
    knee = _KNEE / _LINEAR
    return np.where(mels < knee, mels * _LINEAR, _KNEE * np.exp(_STEP * (mels - knee)))
