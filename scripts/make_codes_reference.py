"""Writes a speaking model's reference for tests/data/speech: what llama.cpp computes with it.

    other-venv/bin/python scripts/make_codes_reference.py model.gguf mmproj.gguf reference.npz

Runs in an interpreter with numpy and llama-cpp-python (0.3.36), for Qwen3-TTS. The file has

    states  float32 [n, n_embd]   random ones, of the model
    firsts  int32 [n]             random codes of the first book
    codes   int32 [n, books]      all codes of these frames, each the likeliest
    embeddings  float32 [n, n_embd]  the sums of their embeddings
    frames  int32 [m, books]      random codes
    samples float32 [samples]     every ``EVERY``-th of the sound of these, made of two parts
    text    a text, and what is said of it with the likeliest codes:
    spoken  float32 [samples]     the same of its first frames
"""

from __future__ import annotations

import argparse
import ctypes
from ctypes import POINTER, c_bool, c_float, c_int32
from pathlib import Path
from typing import Any

import llama_cpp as llama
import llama_cpp.mtmd_cpp as mtmd
import numpy as np

N_STATES, N_FRAMES, WINDOW, N_SPOKEN, SEED = 4, 90, 72, 6, 7
EVERY = 161  # has no divisor with a frame in common, so it meets all of a frame's places
TEXT = "Yes, and no."  # no two codes of its frames are nearly as likely


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("model", "mmproj", "reference"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    peer = Peer(args.model, args.mmproj)
    np.savez_compressed(args.reference, **peer.codes(), **peer.samples(), **peer.speech())


class Peer:
    def __init__(self, model: Path, mmproj: Path) -> None:
        llama.llama_backend_init()
        params = llama.llama_model_default_params()
        self.model = llama.llama_model_load_from_file(str(model).encode(), params)
        context = llama.llama_context_default_params()
        context.n_ctx = context.n_batch = context.n_ubatch = 512
        context.n_threads = context.n_threads_batch = 2
        context.embeddings = True
        context.type_k = context.type_v = 0  # float32
        context.flash_attn_type = 0
        self.context = llama.llama_init_from_model(self.model, context)
        own = mtmd.mtmd_context_params_default()
        own.use_gpu, own.n_threads, own.print_timings = False, 2, False
        self.media = mtmd.mtmd_init_from_file(str(mmproj).encode(), self.model, own)
        self.n_embd = llama.llama_model_n_embd(self.model)

    def process(self, given: Any) -> Any:
        found = mtmd.mtmd_gen_out()
        if mtmd.mtmd_gen_audio_process(self.media, ctypes.byref(given), ctypes.byref(found)):
            raise SystemExit("llama.cpp has refused")
        return found

    def default(self) -> Any:
        given = mtmd.mtmd_gen_inp_default(self.media)
        given.top_k, given.seed = 1, SEED
        return given

    def codes(self) -> dict[str, Any]:
        rng = np.random.default_rng(SEED)
        states = rng.standard_normal((N_STATES, self.n_embd), dtype=np.float32)
        firsts = rng.integers(0, 64, N_STATES, dtype=np.int32)
        codes, embeddings = [], []
        for state, first in zip(states, firsts, strict=True):
            given = self.default()
            given.type, given.code0 = 0, int(first)
            given.embd = np.ascontiguousarray(state).ctypes.data_as(POINTER(c_float))
            found = self.process(given)
            codes.append(np.array(found.codes[: found.n_codes], np.int32))
            embeddings.append(np.array(found.embd[: self.n_embd], np.float32))
        self.n_books = len(codes[0])
        return {
            "states": states, "firsts": firsts, "codes": np.array(codes),
            "embeddings": np.array(embeddings),
        }  # fmt: skip

    def samples(self) -> dict[str, Any]:
        rng = np.random.default_rng(SEED + 1)
        frames = rng.integers(0, 64, (N_FRAMES, self.n_books), dtype=np.int32)
        state, sound = b"", list[float]()
        for at in range(0, N_FRAMES, WINDOW):
            some = np.ascontiguousarray(frames[at : at + WINDOW]).reshape(-1)
            given = self.default()
            given.type, given.n_codes = 1, len(some)
            given.codes = some.ctypes.data_as(POINTER(c_int32))
            kept = ctypes.create_string_buffer(state, len(state)) if state else None
            if kept is not None:
                given.state_data = ctypes.cast(kept, POINTER(ctypes.c_char))
                given.state_size = len(state)
            found = self.process(given)
            sound += found.audio[: found.n_samples]
            state = ctypes.string_at(found.state_data, found.state_size)
        return {"frames": frames, "samples": np.array(sound, np.float32)[::EVERY]}

    def speech(self) -> dict[str, Any]:
        vocab = llama.llama_model_get_vocab(self.model)
        speaking = mtmd.mtmd_helper_gen_audio_init(self.context, self.media)
        given = mtmd.mtmd_helper_gen_audio_inp()
        given.prompt, given.prompt_len = TEXT.encode(), len(TEXT.encode())
        given.lang, given.top_k, given.top_p, given.seed = b"english", 1, 1.0, SEED
        if mtmd.mtmd_helper_gen_audio_set_input(speaking, ctypes.byref(given)):
            raise SystemExit("llama.cpp does not take the text")
        while mtmd.mtmd_helper_gen_audio_step_prompt(speaking, 512) > 0:
            pass
        n_vocab = llama.llama_vocab_n_tokens(vocab)
        texts = [llama.llama_vocab_get_text(vocab, i).decode() for i in range(n_vocab)]
        allowed = [texts.index(f"<|codec_{i}|>") for i in range(64)]
        state = llama.llama_get_embeddings_ith(self.context, -1)
        tokens = list[int]()
        for _ in range(N_SPOKEN):
            logits = np.ctypeslib.as_array(
                llama.llama_get_logits_ith(self.context, -1), shape=(n_vocab,)
            )
            tokens.append(allowed[int(logits[allowed].argmax())])
            before, state, stop = state, POINTER(c_float)(), c_bool()
            if mtmd.mtmd_helper_gen_audio_step_gen(
                speaking, tokens[-1], before, ctypes.byref(state), ctypes.byref(stop)
            ):
                raise SystemExit("a frame cannot be made")
        rate, data = c_int32(), POINTER(ctypes.c_char)()
        n_bytes, n = ctypes.c_size_t(), ctypes.c_int64()
        mtmd.mtmd_helper_gen_audio_get_output(
            speaking, *(ctypes.byref(each) for each in (rate, data, n_bytes, n))
        )
        spoken = np.frombuffer(ctypes.string_at(data, n_bytes.value), np.float32)
        return {"text": TEXT, "tokens": np.array(tokens, np.int32), "spoken": spoken[::EVERY]}


if __name__ == "__main__":
    main()
