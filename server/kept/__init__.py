"""Answers that are kept while and after they are written."""
