"""Calls of models that have forgotten their syntax."""
