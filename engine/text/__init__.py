"""Text to token ids and back, from the metadata of a GGUF file alone."""
