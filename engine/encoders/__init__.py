"""Encoders of images and sounds: from pixels or spectrograms to rows of embeddings."""
