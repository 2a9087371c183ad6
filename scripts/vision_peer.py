"""llama.cpp's image encoder for bench_vision.py, through llama-cpp-python."""

from __future__ import annotations

import ctypes
import time
from typing import Any

import llama_cpp
import llama_cpp.mtmd_cpp as mtmd
from peer_process import Answer, answer_lines

state: dict[str, Any] = {}


def load(question: Answer) -> Answer:
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(
        question["model"].encode(), llama_cpp.llama_model_default_params()
    )
    params = mtmd.mtmd_context_params_default()
    params.use_gpu, params.n_threads, params.print_timings = False, question["n_threads"], False
    context = mtmd.mtmd_init_from_file(question["mmproj"].encode(), model, params)
    if not context:
        raise RuntimeError("the projector cannot be loaded")
    state.update(model=model, context=context, n_embd=llama_cpp.llama_model_n_embd(model))
    return {}


def chunks_of(question: Answer, text: bytes) -> Any:
    """The prompt of a text that has a marker where the image is."""
    width, height = question["size"]
    pixels = bytes.fromhex(question["pixels"])
    buffer = (ctypes.c_uint8 * len(pixels)).from_buffer_copy(pixels)
    bitmap = mtmd.mtmd_bitmap_init(width, height, buffer)
    given = mtmd.mtmd_input_text(text, len(text), False, True)
    chunks = mtmd.mtmd_input_chunks_init()
    bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
    if mtmd.mtmd_tokenize(state["context"], chunks, ctypes.byref(given), bitmaps, 1):
        raise RuntimeError("the image cannot be prepared")
    mtmd.mtmd_bitmap_free(bitmap)
    return chunks


def encode(question: Answer) -> Answer:
    """Seconds of the encoder alone, and the first embedding."""
    chunks = chunks_of(question, b"<__media__>")
    found = [
        mtmd.mtmd_input_chunks_get(chunks, i) for i in range(mtmd.mtmd_input_chunks_size(chunks))
    ]
    (image,) = [chunk for chunk in found if mtmd.mtmd_input_chunk_get_type(chunk) == 1]
    began = time.perf_counter()
    if mtmd.mtmd_encode_chunk(state["context"], image):
        raise RuntimeError("the image cannot be encoded")
    seconds = time.perf_counter() - began
    first = mtmd.mtmd_get_output_embd(state["context"])[: state["n_embd"]]
    mtmd.mtmd_input_chunks_free(chunks)
    return {"seconds": seconds, "first": list(first)}


def first_token(question: Answer) -> Answer:
    """Seconds from the pixels and the text to the likeliest next token."""
    if "decoder" not in state:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = 2048
        params.n_threads = params.n_threads_batch = question["n_threads"]
        state["decoder"] = llama_cpp.llama_init_from_model(state["model"], params)
    decoder = state["decoder"]
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(decoder), False)
    began = time.perf_counter()
    chunks = chunks_of(question, question["text"].encode())
    past = llama_cpp.llama_pos(0)
    arguments = (state["context"], decoder, chunks, 0, 0, 2048, True, ctypes.byref(past))
    if mtmd.mtmd_helper_eval_chunks(*arguments):
        raise RuntimeError("the prompt cannot be computed")
    n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(state["model"]))
    logits = llama_cpp.llama_get_logits_ith(decoder, -1)[:n_vocab]
    logits.index(max(logits))
    seconds = time.perf_counter() - began
    mtmd.mtmd_input_chunks_free(chunks)
    return {"seconds": seconds, "n_tokens": past.value}


OPERATIONS = {"load": load, "encode": encode, "first_token": first_token}

if __name__ == "__main__":
    answer_lines(lambda question: OPERATIONS[question["op"]](question))
