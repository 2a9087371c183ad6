"""llama.cpp's models that speak: the calls that the references of speech need.

Runs in the interpreter that has llama-cpp-python, so it imports nothing of this project.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import llama_cpp as llama
import llama_cpp.mtmd_cpp as mtmd
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
N_CTX = 512
FRAME, SOUND = 0, 1  # what is made: a frame of a state, sound of frames


class PeerSpeaker:
    """A text model with the projector that speaks, and a context of ``N_CTX`` tokens."""

    def __init__(self, model: Path, mmproj: Path, n_threads: int, *, flash: bool) -> None:
        """``flash``: fused attention in the projector, where llama.cpp has it. SystemExit if it
        cannot load one of the files."""
        llama.llama_backend_init()
        self.model = llama.llama_model_load_from_file(
            str(model).encode(), llama.llama_model_default_params()
        )
        if not self.model:
            raise SystemExit(f"{model}: llama.cpp cannot load it")
        self.n_embd = int(llama.llama_model_n_embd(self.model))
        params = llama.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = N_CTX
        params.n_threads = params.n_threads_batch = n_threads
        params.embeddings, params.flash_attn_type = True, 0
        params.type_k = params.type_v = 0  # F32
        self.context = llama.llama_init_from_model(self.model, params)
        own = mtmd.mtmd_context_params_default()
        own.use_gpu, own.n_threads, own.warmup, own.print_timings = False, n_threads, False, False
        own.flash_attn_type = -1 if flash else 0
        self.projector = mtmd.mtmd_init_from_file(str(mmproj).encode(), self.model, own)
        if not self.projector:
            raise SystemExit(f"{mmproj}: llama.cpp cannot load it")

    def process(self, kind: int, **given: Any) -> Any:
        """What becomes of a state or of frames; ``given``: fields of mtmd_gen_inp."""
        inputs, out = mtmd.mtmd_gen_inp_default(self.projector), mtmd.mtmd_gen_out()
        inputs.type = kind
        for name, value in given.items():
            setattr(inputs, name, value)
        checked(mtmd.mtmd_gen_audio_process(
            self.projector, ctypes.byref(inputs), ctypes.byref(out)
        ))  # fmt: skip
        return out

    def sound(self, name: str, frames: npt.NDArray[Any], at_once: int, **given: Any) -> Floats:
        """All samples of ``frames`` [n, width], so many of them at once; ``name``: of the field
        that has them, as "feats"."""
        found, state = list[Floats](), b""
        for at in range(0, len(frames), at_once):
            some = np.ascontiguousarray(frames[at : at + at_once])
            before = ctypes.create_string_buffer(state, len(state))
            values: dict[str, Any] = {name: pointer(some), f"n_{name}": some.size}
            if state:
                values["state_data"] = ctypes.cast(before, ctypes.POINTER(ctypes.c_char))
                values["state_size"] = len(state)
            out = self.process(SOUND, **values, **given)
            found.append(array(out.audio, out.n_samples))
            state = ctypes.string_at(out.state_data, out.state_size)
        return np.concatenate(found)

    def begin(self, inputs: Any) -> Any:
        """What says a text (``inputs``: mtmd_helper_gen_audio_inp), its prompt computed."""
        helper = mtmd.mtmd_helper_gen_audio_init(self.context, self.projector)
        checked(mtmd.mtmd_helper_gen_audio_set_input(helper, ctypes.byref(inputs)))
        while (left := mtmd.mtmd_helper_gen_audio_step_prompt(helper, N_CTX)) > 0:
            pass
        checked(left)
        return helper

    def state(self) -> Any:
        """The last hidden state that the context has computed."""
        return llama.llama_get_embeddings_ith(self.context, -1)


def next_state(helper: Any, token: int, state: Any) -> tuple[Any, bool]:
    """The state after a frame of ``state`` and ``token``, and whether the text has ended."""
    found, ends = ctypes.POINTER(ctypes.c_float)(), ctypes.c_bool()
    checked(mtmd.mtmd_helper_gen_audio_step_gen(
        helper, token, state, ctypes.byref(found), ctypes.byref(ends)
    ))  # fmt: skip
    return found, bool(ends)


def spoken(helper: Any) -> Floats:
    """All samples of what has been said."""
    rate, data = ctypes.c_int32(), ctypes.POINTER(ctypes.c_char)()
    n_bytes, n = ctypes.c_size_t(), ctypes.c_int64()
    outputs = (ctypes.byref(each) for each in (rate, data, n_bytes, n))
    checked(mtmd.mtmd_helper_gen_audio_get_output(helper, *outputs))
    return np.frombuffer(ctypes.string_at(data, n_bytes.value), np.float32)


def checked(code: int) -> None:
    """SystemExit where llama.cpp has refused."""
    if code:
        raise SystemExit(f"llama.cpp cannot say it: {code}")


def pointer(values: npt.NDArray[Any]) -> Any:
    """To float32 or int32 values, for llama.cpp."""
    kind = ctypes.c_float if values.dtype == np.float32 else ctypes.c_int32
    return values.ctypes.data_as(ctypes.POINTER(kind))


def array(values: Any, n: int) -> Floats:
    """A copy of n floats of llama.cpp's."""
    return np.ctypeslib.as_array(values, (n,)).copy()
