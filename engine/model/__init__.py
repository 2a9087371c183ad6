"""A whole model: its weights, on their devices, and the recording of its steps."""
