"""GGUF files: their header, their metadata and tensors as they are."""
