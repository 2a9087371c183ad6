"""Tokens in, tokens out: GGUF, tokenizers, models, scheduling, sampling. Knows no HTTP."""
