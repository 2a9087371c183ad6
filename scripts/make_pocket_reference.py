"""Writes Pocket TTS's reference for tests/data/speech: what llama.cpp computes with a small one.

    other-venv/bin/python scripts/make_pocket_reference.py text.gguf mmproj.gguf reference.npz

Runs in an interpreter with numpy and llama-cpp-python. The file has

    states      float32 [n, width]     random ones, of one step after the other
    noise       float32 [n, n_latent]  what each flow begins with, as llama.cpp draws it
    points      float32 [n, n_latent]  what becomes of it
    embeddings  float32 [n, width]     of the points
    ends        bool [n]               whether the score is that of an end
    latents     float16 [m, n_latent]  random ones
    samples     float32                of their sound, each of number ``every``
    voice       int8                   random samples
    text                               what is said in that voice
    said        float32                its samples, each of number ``every``
    said_noise  float32 [k, n_latent]  the noise of its steps

by llama.cpp's backend for CPUs.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import llama_cpp.mtmd_cpp as mtmd
import numpy as np
import numpy.typing as npt
from peer_speech import FRAME, Floats, PeerSpeaker, array, next_state, pointer, spoken

SEED, TEMPERATURE, VARIANT_TEMPERATURE = 7, 0.7, 0.3
N_STEPS, N_FRAMES, AT_ONCE = 8, 45, 9
EVERY = 161  # has no divisor with a frame in common, so it meets all of a frame's places
VOICE_SAMPLES, FRAME_SAMPLES = 4000, 1920
SAID = "the voice speaks to a child, and then it is silent. but not for long; is it?"
NO_TOKEN, PCM = -1, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path, help="a GGUF file, of a text model")
    parser.add_argument("mmproj", type=Path, help="a GGUF file, of a projector that speaks")
    parser.add_argument("reference", type=Path, help="the .npz file")
    args = parser.parse_args()
    peer = PeerSpeaker(args.text, args.mmproj, n_threads=1, flash=False)
    rng = np.random.default_rng(SEED)
    states = rng.standard_normal((N_STEPS, peer.n_embd), dtype=np.float32)
    points, embeddings, ends = zip(*(step(peer, state) for state in states), strict=True)
    n_latent = len(points[0])
    latents = rng.standard_normal((N_FRAMES, n_latent)).astype(np.float16)
    voice = rng.integers(-64, 64, VOICE_SAMPLES, np.int8)
    samples = peer.sound("feats", latents.astype(np.float32), AT_ONCE, seed=SEED)
    speech = said(peer, voice)
    np.savez_compressed(
        args.reference, states=states, noise=drawn(N_STEPS, n_latent, TEMPERATURE), points=points,
        embeddings=embeddings, ends=ends, every=EVERY, latents=latents, samples=samples[::EVERY],
        voice=voice, text=SAID, said=speech[::EVERY],
        said_noise=drawn(
            len(speech) // FRAME_SAMPLES + 2, n_latent, VARIANT_TEMPERATURE, SEED + 1
        ),
    )  # fmt: skip


def said(peer: PeerSpeaker, voice: npt.NDArray[np.int8]) -> Floats:
    """All samples of ``SAID``."""
    samples = (voice / 128).astype(np.float32)
    inputs = mtmd.mtmd_helper_gen_audio_inp()
    inputs.prompt, inputs.prompt_len = SAID.encode(), len(SAID.encode())
    inputs.speaker_ref = mtmd.mtmd_bitmap_init_from_audio(len(samples), pointer(samples))
    inputs.seed, inputs.out_type = SEED + 1, PCM  # draws anew
    helper, ends = peer.begin(inputs), False
    state = peer.state()
    while not ends:
        state, ends = next_state(helper, NO_TOKEN, state)
    return spoken(helper)


def step(peer: PeerSpeaker, state: Floats) -> tuple[Floats, Floats, bool]:
    """Of a state: the point that its flow ends at, the embedding of that, and whether it ends."""
    out = peer.process(FRAME, embd=pointer(state), temp=TEMPERATURE, seed=SEED)
    return array(out.feats, out.n_feats), array(out.embd, len(state)), out.is_eos


def drawn(n: int, width: int, temperature: float, seed: int = SEED) -> Floats:
    """What ``std::normal_distribution<float>`` of GNU's library draws of ``std::mt19937``: by the
    polar method, of points in a circle, whose second coordinate comes first."""
    bits, found = np.random.MT19937(), list[np.float32]()
    bits._legacy_seeding(seed)
    one, two = np.float32(1), np.float32(2)
    last = np.nextafter(one, np.float32(0))

    def uniform() -> np.float32:
        return min(np.float32(bits.random_raw()) / np.float32(2**32), last)

    while len(found) < n * width:
        x, y = two * uniform() - one, two * uniform() - one
        square = x * x + y * y
        if 0 < square <= 1:
            factor = np.sqrt(-two * np.log(square) / square)
            found += [y * factor, x * factor]
    deviation = np.float32(math.sqrt(temperature))
    return (np.array(found, np.float32) * deviation).reshape(n, width)


if __name__ == "__main__":
    main()
