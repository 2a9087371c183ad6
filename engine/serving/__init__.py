"""Requests on their way through the engine: in, and what comes of their steps out."""
