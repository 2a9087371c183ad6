from __future__ import annotations

import pytest

from gguf_serve.engine.errors import RequestError
from gguf_serve.engine.sampling_params import DEFAULT_SAMPLERS, parse_samplers


@pytest.mark.parametrize(
    ("samplers", "expected"),
    [
        ("edskypmxt", DEFAULT_SAMPLERS),
        ("kt", ("top_k", "temperature")),
        ("", ()),
        ([], ()),
        ("xtc", ("xtc",)),
        ("top_k;min_p", ("top_k", "min_p")),
        ("penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature", DEFAULT_SAMPLERS),
        ("kpi", ("top_k", "top_p", "infill")),
        (["top_k", "top_p", "infill"], ("top_k", "top_p", "infill")),
        ("kfypmt", ("top_k", "typ_p", "top_p", "min_p", "temperature")),
        ("top_k;tfs_z;typical_p", ("top_k", "typ_p")),
        (["top-k", "temp", "typical"], ("top_k", "temperature", "typ_p")),
    ],
)
def test_parse_samplers(samplers: str | list[str], expected: tuple[str, ...]) -> None:
    assert parse_samplers(samplers) == expected


@pytest.mark.parametrize(
    ("samplers", "unknown"), [("kz", "'z'"), (["top_k", "best"], "'best'"), ("top_k;k", "'k'")]
)
def test_unknown_sampler_is_named(samplers: str | list[str], unknown: str) -> None:
    with pytest.raises(RequestError, match=f"unknown sampler {unknown}"):
        parse_samplers(samplers)
