"""Mixers with a state: convolutions, scans and delta rules."""
