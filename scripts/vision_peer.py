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


def encode(question: Answer) -> Answer:
    """Seconds of the encoder alone, and the first embedding."""
    width, height = question["size"]
    pixels = bytes.fromhex(question["pixels"])
    buffer = (ctypes.c_uint8 * len(pixels)).from_buffer_copy(pixels)
    bitmap = mtmd.mtmd_bitmap_init(width, height, buffer)
    text = mtmd.mtmd_input_text(b"<__media__>", len(b"<__media__>"), False, True)
    chunks = mtmd.mtmd_input_chunks_init()
    bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
    if mtmd.mtmd_tokenize(state["context"], chunks, ctypes.byref(text), bitmaps, 1):
        raise RuntimeError("the image cannot be prepared")
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
    mtmd.mtmd_bitmap_free(bitmap)
    return {"seconds": seconds, "first": list(first)}


OPERATIONS = {"load": load, "encode": encode}

if __name__ == "__main__":
    answer_lines(lambda question: OPERATIONS[question["op"]](question))
