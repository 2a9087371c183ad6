"""OpenCL: devices, programs, tensors, one launcher per operation. Knows no model."""
