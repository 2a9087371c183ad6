"""Mixers with a KV cache, and what they share: the indexer, attention to an encoder's output."""
