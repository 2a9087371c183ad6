"""Requests that nobody waits for, read from files: storage, their lines, and running them."""
