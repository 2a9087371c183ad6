"""Grammars and schemas that a text must match, token by token."""
