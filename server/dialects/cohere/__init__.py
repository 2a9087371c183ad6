"""Cohere's embeddings and reranking."""
