"""Tensor types and packed weights, and the forms of activations that they are multiplied with."""
