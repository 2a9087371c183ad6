"""Layers: one file per mixer or FFN, with its weights and what it computes; what ties them."""
