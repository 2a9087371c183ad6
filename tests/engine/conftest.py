"""Fixtures of the engine's tests: ``device`` and ``programs``, see opencl_devices.py."""

from __future__ import annotations

from opencl_devices import device, programs

__all__ = ["device", "programs"]
