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
import ctypes
import math
from pathlib import Path
from typing import Any

import llama_cpp
import llama_cpp.mtmd_cpp as mtmd
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
SEED, TEMPERATURE, VARIANT_TEMPERATURE = 7, 0.7, 0.3
N_STEPS, N_FRAMES, AT_ONCE = 8, 45, 9
EVERY = 161  # has no divisor with a frame in common, so it meets all of a frame's places
VOICE_SAMPLES, FRAME = 4000, 1920
SAID = "the voice speaks to a child, and then it is silent. but not for long; is it?"
GEN_CODE, GEN_WAV = 0, 1
NO_TOKEN, PCM = -1, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path, help="a GGUF file, of a text model")
    parser.add_argument("mmproj", type=Path, help="a GGUF file, of a projector that speaks")
    parser.add_argument("reference", type=Path, help="the .npz file")
    args = parser.parse_args()
    model, context = open_context(args.text, args.mmproj)
    rng, width = np.random.default_rng(SEED), llama_cpp.llama_model_n_embd(model)
    states = rng.standard_normal((N_STEPS, width), dtype=np.float32)
    points, embeddings, ends = zip(*(step(context, state) for state in states), strict=True)
    n_latent = len(points[0])
    latents = rng.standard_normal((N_FRAMES, n_latent)).astype(np.float16)
    voice = rng.integers(-64, 64, VOICE_SAMPLES, np.int8)
    spoken = said(model, context, voice)
    np.savez_compressed(
        args.reference, states=states, noise=drawn(N_STEPS, n_latent, TEMPERATURE), points=points,
        embeddings=embeddings, ends=ends, every=EVERY, latents=latents,
        samples=sound(context, latents.astype(np.float32))[::EVERY], voice=voice, text=SAID,
        said=spoken[::EVERY],
        said_noise=drawn(len(spoken) // FRAME + 2, n_latent, VARIANT_TEMPERATURE, SEED + 1),
    )  # fmt: skip


def open_context(text: Path, mmproj: Path) -> tuple[Any, Any]:
    """llama.cpp's model, and its context for a projector."""
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(
        str(text).encode(), llama_cpp.llama_model_default_params()
    )
    params = mtmd.mtmd_context_params_default()
    params.use_gpu, params.n_threads, params.warmup = False, 1, False
    params.flash_attn_type = 0
    context = mtmd.mtmd_init_from_file(str(mmproj).encode(), model, params)
    if not context:
        raise SystemExit(f"{mmproj}: llama.cpp cannot load it")
    return model, context


def said(model: Any, context: Any, voice: npt.NDArray[np.int8]) -> Floats:
    """All samples of ``SAID``."""
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.embeddings, params.flash_attn_type = 512, True, 0
    params.type_k = params.type_v = 0  # F32
    decoder = llama_cpp.llama_init_from_model(model, params)
    helper = mtmd.mtmd_helper_gen_audio_init(decoder, context)
    samples = (voice / 128).astype(np.float32)
    bitmap = mtmd.mtmd_bitmap_init_from_audio(len(samples), pointer(samples))
    inputs = mtmd.mtmd_helper_gen_audio_inp()
    inputs.prompt, inputs.prompt_len = SAID.encode(), len(SAID.encode())
    inputs.speaker_ref, inputs.seed, inputs.out_type = bitmap, SEED + 1, PCM  # draws anew
    checked(mtmd.mtmd_helper_gen_audio_set_input(helper, ctypes.byref(inputs)))
    checked(mtmd.mtmd_helper_gen_audio_step_prompt(helper, 512))
    state, stop = llama_cpp.llama_get_embeddings_ith(decoder, -1), ctypes.c_bool()
    while not stop:
        given, state = state, ctypes.POINTER(ctypes.c_float)()
        checked(mtmd.mtmd_helper_gen_audio_step_gen(
            helper, NO_TOKEN, given, ctypes.byref(state), ctypes.byref(stop)
        ))  # fmt: skip
    rate, data = ctypes.c_int32(), ctypes.POINTER(ctypes.c_char)()
    n_bytes, n = ctypes.c_size_t(), ctypes.c_int64()
    outputs = (ctypes.byref(each) for each in (rate, data, n_bytes, n))
    checked(mtmd.mtmd_helper_gen_audio_get_output(helper, *outputs))
    return array(ctypes.cast(data, ctypes.POINTER(ctypes.c_float)), n.value)


def checked(code: int) -> None:
    if code:
        raise SystemExit(f"llama.cpp cannot say it: {code}")


def process(context: Any, **given: Any) -> Any:
    inputs, out = mtmd.mtmd_gen_inp_default(context), mtmd.mtmd_gen_out()
    inputs.seed = SEED
    for name, value in given.items():
        setattr(inputs, name, value)
    if mtmd.mtmd_gen_audio_process(context, ctypes.byref(inputs), ctypes.byref(out)):
        raise SystemExit("llama.cpp cannot compute it")
    return out


def step(context: Any, state: Floats) -> tuple[Floats, Floats, bool]:
    out = process(context, type=GEN_CODE, embd=pointer(state), temp=TEMPERATURE)
    return array(out.feats, out.n_feats), array(out.embd, len(state)), out.is_eos


def sound(context: Any, latents: Floats) -> Floats:
    """All samples, a few frames at a time."""
    found, kept = [], b""
    for at in range(0, len(latents), AT_ONCE):
        some = np.ascontiguousarray(latents[at : at + AT_ONCE])
        before = ctypes.create_string_buffer(kept, len(kept))
        out = process(
            context, type=GEN_WAV, feats=pointer(some), n_feats=some.size,
            state_data=ctypes.cast(before, ctypes.POINTER(ctypes.c_char)) if kept else None,
            state_size=len(kept),
        )  # fmt: skip
        found.append(array(out.audio, out.n_samples))
        kept = ctypes.string_at(out.state_data, out.state_size)
    return np.concatenate(found)


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


def pointer(values: Floats) -> Any:
    return values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))


def array(values: Any, n: int) -> Floats:
    return np.ctypeslib.as_array(values, (n,)).copy()


if __name__ == "__main__":
    main()
