"""Compiling programs aside from this process, and keeping them on disk."""
