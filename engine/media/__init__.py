"""Images and sounds on their way to the encoder: decoding, resizing, tiling, spectrograms."""
