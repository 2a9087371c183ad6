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
from pathlib import Path
from typing import Any

import llama_cpp as llama
import llama_cpp.mtmd_cpp as mtmd
import numpy as np
from peer_speech import FRAME, PeerSpeaker, array, next_state, pointer, spoken

N_STATES, N_FRAMES, WINDOW, N_SPOKEN, SEED = 4, 90, 72, 6, 7
N_CODES = 64  # of a book
EVERY = 161  # has no divisor with a frame in common, so it meets all of a frame's places
TEXT = "Yes, and no."  # no two codes of its frames are nearly as likely


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("model", "mmproj", "reference"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    peer = PeerSpeaker(args.model, args.mmproj, n_threads=2, flash=True)
    found = codes(peer)
    n_books = found["codes"].shape[1]
    np.savez_compressed(args.reference, **found, **samples(peer, n_books), **speech(peer))


def codes(peer: PeerSpeaker) -> dict[str, Any]:
    """Frames of random states and first codes."""
    rng = np.random.default_rng(SEED)
    states = rng.standard_normal((N_STATES, peer.n_embd), dtype=np.float32)
    firsts = rng.integers(0, N_CODES, N_STATES, dtype=np.int32)
    books, embeddings = [], []
    for state, first in zip(states, firsts, strict=True):
        out = peer.process(FRAME, embd=pointer(state), code0=int(first), top_k=1, seed=SEED)
        books.append(np.array(out.codes[: out.n_codes], np.int32))
        embeddings.append(array(out.embd, peer.n_embd))
    return {
        "states": states, "firsts": firsts, "codes": np.array(books),
        "embeddings": np.array(embeddings),
    }  # fmt: skip


def samples(peer: PeerSpeaker, n_books: int) -> dict[str, Any]:
    """The sound of random codes."""
    rng = np.random.default_rng(SEED + 1)
    frames = rng.integers(0, N_CODES, (N_FRAMES, n_books), dtype=np.int32)
    sound = peer.sound("codes", frames, WINDOW, top_k=1, seed=SEED)
    return {"frames": frames, "samples": sound[::EVERY]}


def speech(peer: PeerSpeaker) -> dict[str, Any]:
    """The first frames of ``TEXT``, each of the likeliest code."""
    inputs = mtmd.mtmd_helper_gen_audio_inp()
    inputs.prompt, inputs.prompt_len = TEXT.encode(), len(TEXT.encode())
    inputs.lang, inputs.top_k, inputs.top_p, inputs.seed = b"english", 1, 1.0, SEED
    helper = peer.begin(inputs)
    vocab = llama.llama_model_get_vocab(peer.model)
    n_vocab = llama.llama_vocab_n_tokens(vocab)
    texts = [llama.llama_vocab_get_text(vocab, i).decode() for i in range(n_vocab)]
    allowed = [texts.index(f"<|codec_{i}|>") for i in range(N_CODES)]
    state, tokens = peer.state(), list[int]()
    for _ in range(N_SPOKEN):
        logits = array(llama.llama_get_logits_ith(peer.context, -1), n_vocab)
        tokens.append(allowed[int(logits[allowed].argmax())])
        state, _ = next_state(helper, tokens[-1], state)
    sound = spoken(helper)
    return {"text": TEXT, "tokens": np.array(tokens, np.int32), "spoken": sound[::EVERY]}


if __name__ == "__main__":
    main()
