"""The names and letters by which requests and options call samplers; llama.cpp's."""

from __future__ import annotations

from collections.abc import Sequence

from gguf_serve.engine.errors import RequestError
from gguf_serve.engine.request import DEFAULT_SAMPLERS

SAMPLERS = (*DEFAULT_SAMPLERS, "infill")
LETTERS = dict(zip("edskypmxti", SAMPLERS, strict=True))
OTHER_NAMES = {
    "nucleus": "top_p",
    "typical": "typ_p",
    "typical_p": "typ_p",
    "typ": "typ_p",
    "temp": "temperature",
}


def parse_samplers(samplers: str | Sequence[str]) -> tuple[str, ...]:
    """Samplers' names from a list, from a text "top_k;min_p" or from letters like "kmt".

    Raises RequestError for an unknown one.
    """
    if isinstance(samplers, str):
        if ";" not in samplers and samplers not in SAMPLERS:
            return tuple(_known(letter, LETTERS.get(letter)) for letter in samplers)
        samplers = [name for name in samplers.split(";") if name]
    return tuple(_known(name, _canonical(name)) for name in samplers)


def _canonical(name: str) -> str | None:
    name = name.strip().replace("-", "_")
    name = OTHER_NAMES.get(name, name)
    return name if name in SAMPLERS else None


def _known(name: str, sampler: str | None) -> str:
    if sampler is None:
        known = f"{', '.join(SAMPLERS)}, or letters of {''.join(LETTERS)}"
        raise RequestError(f"unknown sampler {name!r} (known: {known})")
    return sampler
