"""OpenCL: devices, programs, tensors, one launcher per operation. Knows no model."""

import os

# pyopencl's caches know devices by their names only, and end the start where they cannot be
# written; ours is program_cache.py. Read when pyopencl is first imported, which is below here.
os.environ.setdefault("PYOPENCL_NO_CACHE", "1")
