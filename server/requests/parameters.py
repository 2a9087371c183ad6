"""The parameters of a request as llama-server shows them, in answers, /slots and /props."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

from gguf_serve.engine.request import Request
from gguf_serve.engine.sampling_params import SamplingParams
from gguf_serve.server.interface import Engine

SAMPLING_NAMES = tuple(field.name for field in fields(SamplingParams))


def generation_settings(request: Request, engine: Engine) -> dict[str, Any]:
    """``ignore_eos`` shows as what it does: the tokens that end generation are banned."""
    sampling, tokenizer = request.sampling, engine.tokenizer
    constraint = request.constraint
    banned = sorted(tokenizer.eog_ids) if sampling.ignore_eos else ()
    biases = [*sampling.logit_bias, *((id, -math.inf) for id in banned)]
    return {
        **{name: getattr(sampling, name) for name in SAMPLING_NAMES},
        "max_tokens": request.max_tokens,
        "n_predict": request.max_tokens,
        "n_keep": request.n_keep,
        "n_discard": request.n_discard,
        "speculative.n_max": request.drafts.most,
        "speculative.n_min": request.drafts.least,
        "speculative.p_min": request.drafts.chance,
        "stop": request.stop,
        "lora": lora(request, engine),
        "n_probs": request.n_probs,
        "post_sampling_probs": request.post_sampling_probs,
        "grammar": constraint.text if constraint is not None else "",
        "grammar_lazy": bool(constraint is not None and constraint.triggers),
        "logit_bias": [
            {"token": id, "bias": None if bias == -math.inf else bias} for id, bias in biases
        ],
    }


def lora(request: Request, engine: Engine) -> list[dict[str, float]]:
    """The adapters that are loaded, with their scales for this request."""
    own = None if request.adapters is None else dict(request.adapters)
    return [
        {"id": adapter.id, "scale": adapter.scale if own is None else own.get(adapter.id, 0.0)}
        for adapter in engine.adapters()
    ]
