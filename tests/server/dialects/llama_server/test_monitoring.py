"""/slots, /metrics and the options that turn endpoints on and off."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from gguf_serve.engine.request import Request
from gguf_serve.engine.stats import DiskStats, EngineStats, SlotFile, SlotState
from gguf_serve.server.dialects.llama_server.metrics import exposition
from gguf_serve.server.requests.service import Endpoints

FRESH = SlotState(id=0, n_ctx=100, is_processing=False)
BUSY = SlotState(
    id=1,
    n_ctx=100,
    is_processing=True,
    request=Request((1, 2), max_tokens=9),
    id_task=3,
    n_prompt=2,
    n_cached=1,
    n_processed=1,
    n_decoded=4,
    n_remain=5,
    has_next_token=True,
)
STATS = EngineStats(
    n_prompt_tokens=100,
    prompt_seconds=2.0,
    n_generated_tokens=30,
    generation_seconds=3.0,
    n_decodes=40,
    n_busy_slots=60,
    n_tokens_max=70,
    n_processing=1,
    n_deferred=2,
    n_slots=4,
    n_preempted=0,
    n_cached_tokens=11,
    page_size=32,
    n_pages=10,
    n_pages_used=5,
    n_pages_cached=2,
)


@pytest.fixture
def engine(fakes: Any) -> Any:
    made = fakes.engine()
    made.slots = lambda: [FRESH, BUSY]
    made.stats = lambda: STATS
    return made


def test_slots(serve: Any, engine: Any) -> None:
    url = serve(engine)
    fresh, busy = httpx.get(url + "/slots").json()
    assert fresh == {"id": 0, "n_ctx": 100, "speculative": False, "is_processing": False}
    assert (busy["id_task"], busy["n_prompt_tokens"], busy["is_processing"]) == (3, 2, True)
    assert (busy["n_prompt_tokens_processed"], busy["n_prompt_tokens_cache"]) == (1, 1)
    assert busy["params"]["n_predict"] == 9
    assert busy["next_token"] == [
        {"has_next_token": True, "has_new_line": False, "n_remain": 5, "n_decoded": 4}
    ]
    assert httpx.get(url + "/slots?fail_on_no_slot=1").status_code == 200
    engine.slots = lambda: [BUSY]
    assert httpx.get(url + "/slots?fail_on_no_slot=1").status_code == 503
    assert httpx.get(url + "/slots").status_code == 200


def test_metrics_say_how_long_requests_wait(serve: Any, engine: Any) -> None:
    waits = (2, 0, 1, *[0] * 6, 3)
    stats = replace(STATS, waits=waits, wait_seconds=345.5, n_deferred=7, n_paused=2)
    engine.stats = lambda: stats
    text = httpx.get(serve(engine, endpoints=Endpoints(metrics=True)) + "/metrics").text
    lines = text.splitlines()
    name = "llamacpp:request_queue_seconds"
    for le, n in (("0.01", 2), ("0.1", 3), ("100", 3), ("+Inf", 6)):
        assert f'{name}_bucket{{le="{le}"}} {n}.0' in lines
    assert f"{name}_sum 345.5" in lines
    assert f"{name}_count 6.0" in lines
    assert 'llamacpp:requests{state="waiting"} 5.0' in lines
    assert 'llamacpp:requests{state="paused"} 2.0' in lines


@pytest.mark.parametrize("place", ["disk", "ram"])
def test_metrics_of_what_is_kept_elsewhere(serve: Any, engine: Any, place: Any) -> None:
    url = serve(engine, endpoints=Endpoints(metrics=True)) + "/metrics"
    name = f"cache_{place}_"
    assert name not in httpx.get(url).text
    disk = DiskStats(
        place=place, n_bytes=1, n_files=2, n_hit_tokens=3, load_seconds=4.5,
        n_written=6, n_evicted=7, n_corrupt=8,
    )  # fmt: skip
    engine.stats = lambda: replace(STATS, disk=disk)
    lines = httpx.get(url).text.splitlines()
    start = f"llamacpp:{name}"
    assert [line.removeprefix(start) for line in lines if line.startswith(start)] == [
        "bytes 1.0", "files 2.0", "hit_tokens_total 3.0", "load_seconds_total 4.5",
        "written_total 6.0", "evicted_total 7.0", "corrupt_total 8.0",
    ]  # fmt: skip


def test_metrics(serve: Any, engine: Any) -> None:
    response = httpx.get(serve(engine, endpoints=Endpoints(metrics=True)) + "/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert int(response.headers["process-start-time-unix"]) > 0
    samples = {
        sample.name.removeprefix("llamacpp:"): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
    assert samples["prompt_tokens_total"] == 100
    assert samples["prompt_seconds_total"] == 2.0
    assert samples["tokens_predicted_total"] == 30
    assert samples["tokens_predicted_seconds_total"] == 3.0
    assert samples["n_decode_total"] == 40
    assert samples["prompt_tokens_seconds"] == 50
    assert samples["predicted_tokens_seconds"] == 10
    assert samples["requests_processing"] == 1
    assert samples["requests_deferred"] == 2
    assert "llamacpp:n_tokens_max 70.0" in response.text.splitlines()
    assert "# TYPE llamacpp:n_tokens_max counter" in response.text
    assert samples["n_busy_slots_per_decode"] == 1.5
    assert samples["kv_cache_usage_ratio"] == 0.5


def test_gauges_of_a_model_that_sleeps_are_0() -> None:
    awake, asleep = exposition(STATS).decode(), exposition(STATS, is_sleeping=True).decode()
    assert "llamacpp:predicted_tokens_seconds 10.0" in awake
    for name in ("predicted_tokens_seconds", "prompt_tokens_seconds", "requests_processing"):
        assert f"llamacpp:{name} 0.0" in asleep
    assert "llamacpp:prompt_tokens_total 100.0" in asleep


def test_what_is_not_turned_on_says_how(serve: Any, engine: Any) -> None:
    url = serve(engine, endpoints=Endpoints(slots=False))
    for method, path, option in (
        ("GET", "/slots", "--slots"),
        ("GET", "/metrics", "--metrics"),
        ("POST", "/props", "--props"),
    ):
        response = httpx.request(method, url + path, json={})
        assert response.status_code == 501
        assert option in response.json()["error"]["message"]
    props = httpx.get(url + "/props").json()
    assert (props["endpoint_slots"], props["endpoint_metrics"]) == (False, False)
    url = serve(engine, endpoints=Endpoints(props=True))
    assert httpx.post(url + "/props", json={}).json() == {"success": True}


def done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def test_actions_of_slots(serve: Any, engine: Any, tmp_path: Path) -> None:
    asked: list[tuple[Any, ...]] = []

    def act(*values: Any) -> Future[Any]:
        asked.append(values)
        return done(SlotFile(n_tokens=5, n_bytes=600, seconds=0.25))

    engine.save_slot = engine.restore_slot = act
    engine.erase_slot = lambda id: done(7)
    url = serve(engine, endpoints=Endpoints(slot_save_path=str(tmp_path)))

    def post(query: str, status: int = 200, **body: Any) -> Any:
        response = httpx.post(f"{url}/slots/{query}", json=body)
        assert response.status_code == status, response.text
        return response.json()

    assert post("1?action=save", filename="a.bin") == {
        "id_slot": 1,
        "filename": "a.bin",
        "n_saved": 5,
        "n_written": 600,
        "timings": {"save_ms": 250.0},
    }
    restored = post("0?action=restore", filename="a.bin")
    assert (restored["n_restored"], restored["n_read"]) == (5, 600)
    assert restored["timings"] == {"restore_ms": 250.0}
    assert asked == [(1, tmp_path / "a.bin"), (0, tmp_path / "a.bin")]
    assert post("1?action=erase") == {"id_slot": 1, "n_erased": 7}
    for name in ("../a", "a/b", "", ".hidden", "a\\b"):
        assert "filename" in post("1?action=save", 400, filename=name)["error"]["message"]
    message = post("1?action=save", 400, filename="é" * 200)["error"]["message"]
    assert message == "Field 'filename': 400 bytes in UTF-8, at most 255 are allowed"
    assert "action" in post("1?action=jump", 400)["error"]["message"]
    assert "slot ID" in post("x?action=erase", 400)["error"]["message"]


def test_actions_need_a_folder(serve: Any, engine: Any) -> None:
    response = httpx.post(serve(engine) + "/slots/0?action=erase")
    assert response.status_code == 501
    assert "--slot-save-path" in response.json()["error"]["message"]
