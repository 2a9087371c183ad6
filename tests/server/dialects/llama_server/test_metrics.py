"""The names under which /metrics shows things, by the rules of ``promtool check metrics``."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import pytest
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from gguf_serve.engine.stats import DiskStats, ReplicaStats
from gguf_serve.server.dialects.llama_server.metrics import OWN, exposition
from gguf_serve.server.http.traffic import Traffic

# Words of units that are none of Prometheus' base units, and of types
DERIVED = {
    "milliseconds", "ms", "microseconds", "us", "minutes", "hours", "days", "kilobytes", "kb",
    "megabytes", "mb", "gigabytes", "gb", "bits", "percent", "kilometers", "grams",
}  # fmt: skip
TYPES = {"counter", "gauge", "histogram", "summary"}
TAKEN = ("llamacpp:", "vllm:")  # other programs' names, with their colons


@pytest.fixture
def text(fakes: Any) -> str:
    """All that there can be."""
    stats = replace(
        fakes.stats,
        disk=DiskStats(
            n_bytes=1, n_files=2, n_hit_tokens=3, load_seconds=4.0, n_written=5, n_evicted=6,
            n_corrupt=7,
        ),
        replicas=ReplicaStats(n_engines=1, n_lost=0, n_moved=0, routed=(("prefix", "a", 3),)),
    )  # fmt: skip
    traffic = Traffic(by_key=True)
    traffic.usage("k")
    traffic.ended["stop"] += 1
    return exposition(stats, False, traffic, "m", ["m:a"]).decode()


def own(exposed: str) -> str:
    """Without what has other programs' names."""
    kept = [
        line
        for line in exposed.splitlines(keepends=True)
        if not re.sub(r"^# (HELP|TYPE) ", "", line).startswith(TAKEN)
    ]
    return "".join(kept)


def test_names_of_our_own_are_as_prometheus_wants_them(text: str) -> None:
    families = list(text_string_to_metric_families(own(text)))
    assert len(families) > 30
    for family in families:
        words = set(family.name.split("_"))
        assert re.fullmatch(f"{OWN}[a-z0-9_]+", family.name)
        assert not words & (DERIVED | TYPES), family.name
        assert family.documentation.strip()
        assert family.samples
        for sample in family.samples:
            is_total = sample.name.endswith("_total")
            assert is_total == (family.type == "counter"), sample.name
            assert re.fullmatch("[a-z_]+", "".join(sample.labels) or "_")
            assert family.type == "histogram" or not {"le", "quantile"} & set(sample.labels)


def test_each_of_llama_servers_has_one_of_our_own(text: str) -> None:
    """With the same values, whatever they are called."""
    found: dict[str, list[float]] = {"llamacpp": [], OWN: []}
    for family in text_string_to_metric_families(text):
        for start, values in found.items():
            if family.name.startswith(start):
                values += [sample.value for sample in family.samples]
    missing = list(found["llamacpp"])
    for value in found[OWN]:
        if value in missing:
            missing.remove(value)
    assert not missing


def test_no_family_is_there_twice(text: str) -> None:
    names = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    assert len(names) == len(set(names))


def test_all_have_colons_but_our_own(text: str) -> None:
    names = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    assert all(name.startswith(TAKEN) != name.startswith(OWN) for name in names)


def test_promtool_accepts_them(text: str) -> None:
    """And finds nothing but colons and llama-server's counter without "_total" in all."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not in the PATH")
    command = [promtool, "check", "metrics"]
    done = subprocess.run(command, input=own(text), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    every = subprocess.run(command, input=text, capture_output=True, text=True).stderr
    left = [line for line in every.splitlines() if "should not contain ':'" not in line]
    assert left == ['llamacpp:n_tokens_max counter metrics should have "_total" suffix']


def test_a_sleeping_model_has_no_gauge_under_any_name(fakes: Any) -> None:
    exposed = exposition(fakes.stats, True).decode()
    for family in text_string_to_metric_families(own(exposed)):
        is_state = family.name in (f"{OWN}requests", f"{OWN}longest_sequence_tokens")
        if family.type == "gauge" and not is_state:
            assert [sample.value for sample in family.samples] == [0.0], family.name
