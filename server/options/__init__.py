"""Command-line options, each stated once."""
