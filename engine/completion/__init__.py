"""One request while it runs: its text, its vectors, its events."""
