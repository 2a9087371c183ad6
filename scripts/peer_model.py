"""llama.cpp as the peer: the few calls that the benchmark and the comparison need.

Runs in the interpreter that has llama-cpp-python, so it imports nothing of this project.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import Any

import llama_cpp as llama
import numpy as np
import numpy.typing as npt

N_BATCH, N_UBATCH = 2048, 512  # llama-server's defaults


class PeerModel:
    """A model that llama.cpp has loaded."""

    def __init__(self, path: str, n_threads: int) -> None:
        """``n_threads``: 0 for every core. Raises RuntimeError if it cannot be loaded."""
        llama.llama_backend_init()
        self.n_threads = n_threads or len(os.sched_getaffinity(0))
        self.model = llama.llama_model_load_from_file(
            path.encode(), llama.llama_model_default_params()
        )
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self.vocab = llama.llama_model_get_vocab(self.model)
        self.n_vocab = int(llama.llama_vocab_n_tokens(self.vocab))
        self.has_window = llama.llama_model_n_swa(self.model) > 0

    def context(
        self, n_ctx: int, n_sequences: int = 1, *, flash: bool = True, embeddings: bool = False
    ) -> PeerContext:
        """Room for ``n_sequences`` of ``n_ctx`` tokens each; KV in f16. ``embeddings``: of whole
        batches, which an encoder computes at once."""
        params = llama.llama_context_default_params()
        params.n_ctx = n_ctx * n_sequences
        params.n_batch, params.n_ubatch = N_BATCH, N_UBATCH
        params.n_seq_max = n_sequences
        params.n_threads = params.n_threads_batch = self.n_threads
        params.flash_attn_type = int(flash)
        if embeddings:
            params.embeddings, params.n_ubatch = True, N_BATCH
        params.swa_full = False  # as llama-server: windowed layers keep their window only
        context = llama.llama_init_from_model(self.model, params)
        if not context:
            raise RuntimeError(f"llama.cpp has no room for {n_sequences} x {n_ctx} tokens")
        return PeerContext(context, self.n_vocab, n_sequences)

    def tokenize(self, text: str) -> list[int]:
        """Token ids, with BOS where the model wants one, special tokens not parsed."""
        data = text.encode()
        room = len(data) + 8
        ids = (llama.llama_token * room)()
        n = llama.llama_tokenize(self.vocab, data, len(data), ids, room, True, False)
        return list(ids[:n])


class PeerContext:
    """Sequences in a context, each continued by ``decode``."""

    def __init__(self, context: Any, n_vocab: int, n_sequences: int) -> None:
        self._context, self._n_vocab = context, n_vocab
        self._memory = llama.llama_get_memory(context)
        self._batch = llama.llama_batch_init(N_BATCH, 0, 1)
        self._greedy = llama.llama_sampler_init_greedy()
        self._n_past = [0] * n_sequences

    def clear(self) -> None:
        if self._memory:  # an encoder has none
            llama.llama_memory_clear(self._memory, True)
        self._n_past = [0] * len(self._n_past)

    def keep(self, n_tokens: int) -> bool:
        """Forget all of sequence 0 but its first tokens, if that can be: a state of a recurrence
        holds no past."""
        if not llama.llama_memory_seq_rm(self._memory, 0, n_tokens, -1):
            return False
        self._n_past[0] = n_tokens
        return True

    def decode(self, tokens: Sequence[Sequence[int]], *, all_logits: bool = False) -> None:
        """Continue sequence i by ``tokens[i]``; logits of the last token of each, or of all."""
        n = 0
        for sequence, ids in enumerate(tokens):
            for i, token in enumerate(ids):
                if n == N_BATCH:
                    self._run(n)
                    n = 0
                self._put(n, sequence, token, all_logits or i + 1 == len(ids))
                n += 1
        self._run(n)

    def _put(self, at: int, sequence: int, token: int, logits: bool) -> None:
        batch = self._batch
        batch.token[at] = token
        batch.pos[at] = self._n_past[sequence]
        batch.n_seq_id[at] = 1
        batch.seq_id[at][0] = sequence
        batch.logits[at] = logits
        self._n_past[sequence] += 1

    def _run(self, n: int) -> None:
        self._batch.n_tokens = n
        status = llama.llama_decode(self._context, self._batch)
        if status != 0:
            raise RuntimeError(f"llama_decode of {n} tokens ended with {status}")

    def synchronize(self) -> None:
        llama.llama_synchronize(self._context)

    def greedy(self, row: int = -1) -> int:
        """The likeliest token by a row of logits: an index into the last batch, -1 the last."""
        return int(llama.llama_sampler_sample(self._greedy, self._context, row))

    def embedding(self, sequence: int) -> float:
        """The first value of a sequence's vector, which has been computed then."""
        return float(llama.llama_get_embeddings_seq(self._context, sequence)[0])

    def logits(self, row: int = -1) -> npt.NDArray[np.float32]:
        """A row of logits, float32 [n_vocab], valid until the next ``decode``."""
        pointer = llama.llama_get_logits_ith(self._context, row)
        return np.ctypeslib.as_array(pointer, (self._n_vocab,))


def _errors_only(level: int, text: bytes, user_data: Any) -> None:
    if level == 4:  # GGML_LOG_LEVEL_ERROR
        os.write(2, text)


_log_callback = llama.llama_log_callback(_errors_only)  # kept: llama.cpp has only its address
llama.llama_log_set(_log_callback, ctypes.c_void_p(0))
