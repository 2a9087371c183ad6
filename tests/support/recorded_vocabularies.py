"""Real vocabularies whose ids of many texts llama.cpp has given."""

from __future__ import annotations

import functools
from pathlib import Path

from gguf_serve.engine.gguf.file import open_gguf
from gguf_serve.engine.text.tokenizer import Tokenizer, load_tokenizer

RECORDED = [
    "aquila",
    "baichuan",
    "bert-bge",
    "command-r",
    "deepseek-coder",
    "deepseek-llm",
    "falcon",
    "gemma-4",
    "gpt-2",
    "gpt-neox",
    "llama-bpe",
    "llama-spm",
    "mpt",
    "nomic-bert-moe",
    "phi-3",
    "qwen2",
    "qwen35",
    "refact",
    "starcoder",
]


@functools.cache
def tokenizer_at(path: Path) -> Tokenizer:
    with open_gguf(path) as file:
        return load_tokenizer(file.metadata)


def vocab_path(shared: Path, name: str) -> Path:
    return shared / "vocabs" / f"ggml-vocab-{name}.gguf"
