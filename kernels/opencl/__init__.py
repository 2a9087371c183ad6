"""OpenCL: devices, programs, memory, and launches recorded on a tape."""
