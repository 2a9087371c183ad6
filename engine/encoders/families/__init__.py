"""Families of encoders, each of which a few types of projectors share."""
