"""Sizes by device, vendor and default."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.tuning import TABLE as TUNING_TABLE
from gguf_serve.kernels.opencl.tuning import Tuning, find_tuning

TABLE: dict[str, Any] = {
    "default": {"slices": 2},
    "vendors": {"ACME": {"slices": 4, "ranges": 2}},
    "devices": {"ACME 9": {"slices": 16}},
}


def test_a_device_comes_before_its_vendor_and_that_before_the_default() -> None:
    assert find_tuning("ACME 9", "ACME", TABLE) == Tuning(slices=16, ranges=2)
    assert find_tuning("ACME 8", "ACME", TABLE) == Tuning(slices=4, ranges=2)
    assert find_tuning("other", "other", TABLE) == Tuning(slices=2)


@pytest.mark.parametrize("sizes", [{"tiles": 3}, {"slices": 0}, {"slices": "4"}])
def test_a_wrong_table_is_refused(sizes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="tuning of 'a' \\('b'\\)"):
        find_tuning("a", "b", {**TABLE, "default": sizes})


def test_the_packaged_table_has_good_sizes_for_every_entry(device: Device) -> None:
    table = json.loads(TUNING_TABLE.read_text(encoding="utf-8"))
    for vendor in table["vendors"]:
        assert find_tuning("", vendor)
    for name in table["devices"]:
        assert find_tuning(name, "")
    assert device.tuning == find_tuning(device.info.name, device.vendor).within(
        device.capabilities.work_group
    )


def test_work_groups_are_no_larger_than_the_device_has() -> None:
    small = Tuning(slices=16, attention_group=256).within(64)
    assert (small.slices, small.attention_group) == (4, 64)
    odd = Tuning(slices=32, attention_group=512).within(384)
    assert (odd.slices, odd.attention_group) == (16, 256)
