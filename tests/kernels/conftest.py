"""Fixtures of the kernels' tests: ``device`` and ``programs``, see opencl_devices.py."""

from __future__ import annotations

from opencl_devices import called_functions, device, programs

__all__ = ["called_functions", "device", "programs"]
