"""HTTP below the dialects: keys, bodies, downloads, streams."""
