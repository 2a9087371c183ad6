"""Mixers with a state per sequence: convolutions, recurrences, RWKV's token shift."""
