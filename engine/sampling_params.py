"""Sampling parameters, stated once: name, default, range, flags and what they mean.

From here they are on the command line, in the bodies of requests, in ``/props`` and
``generation_settings`` and in the docs. Names, defaults and meanings are llama.cpp's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial

from msgspec import Struct

from gguf_serve.engine.errors import RequestError
from gguf_serve.engine.option import (
    INT32_MAX,
    LARGEST,
    NATURAL,
    NUMBER,
    OR_ALL,
    Option,
    Parsed,
    Real,
    Whole,
    option,
)
from gguf_serve.engine.option_values import token_bias

GROUP = "Sampling (defaults of requests)"
DEFAULT_SAMPLERS = (
    "penalties",
    "dry",
    "top_n_sigma",
    "top_k",
    "typ_p",
    "top_p",
    "min_p",
    "xtc",
    "temperature",
)
SAMPLERS = (*DEFAULT_SAMPLERS, "infill", "adaptive_p")
LETTERS = dict(zip("edskypmxtia", SAMPLERS, strict=True))
OTHER_NAMES = {
    "nucleus": "top_p",
    "typical": "typ_p",
    "typical_p": "typ_p",
    "typ": "typ_p",
    "temp": "temperature",
}
# llama-server has it no more and passes over its name and letter, which old lists still have.
DROPPED = ("tfs_z", "f")


def parse_samplers(samplers: str | Sequence[str]) -> tuple[str, ...]:
    """Samplers' names from a list, from a text "top_k;min_p" or from letters like "kmt".

    Those that llama-server has dropped are left out. Raises RequestError for an unknown one.
    """
    if isinstance(samplers, str):
        if ";" not in samplers and samplers not in SAMPLERS:
            return tuple(
                _known(letter, LETTERS.get(letter)) for letter in samplers if letter not in DROPPED
            )
        samplers = [name for name in samplers.split(";") if name]
    return tuple(_known(name, _canonical(name)) for name in samplers if name not in DROPPED)


def _canonical(name: str) -> str | None:
    name = name.strip().replace("-", "_")
    name = OTHER_NAMES.get(name, name)
    return name if name in SAMPLERS else None


def _known(name: str, sampler: str | None) -> str:
    if sampler is None:
        known = f"{', '.join(SAMPLERS)}, or letters of {''.join(LETTERS)}"
        raise RequestError(f"unknown sampler {name!r} (known: {known})")
    return sampler


def _by_name(text: str) -> tuple[str, ...]:
    """Of --samplers: a single name is none of letters."""
    try:
        return parse_samplers([name for name in text.split(";") if name])
    except RequestError as error:
        raise ValueError(str(error)) from None


def _breaker(text: str) -> tuple[str, ...]:
    return () if text == "none" else (text,)


sampling = partial(option, group=GROUP)
SHARE = Real(clamp=(0.0, 1.0))


# fmt: off
@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen."""

    seed: int = sampling(
        "-s", "--seed", type=Whole(-INT32_MAX, 2**32 - 1), default=-1,
        help="of the random numbers; -1: a random one",
    )
    samplers: tuple[str, ...] = sampling(
        "--samplers", type=Parsed("NAMES", _by_name), default=DEFAULT_SAMPLERS,
        help="samplers in their order, ';' between",
    )
    temperature: float = sampling(
        "--temp", "--temperature", env="TEMPERATURE", type=Real(clamp=(0.0, LARGEST)),
        default=0.8, help="temperature; 0: always the likeliest token",
    )
    dynatemp_range: float = sampling(
        "--dynatemp-range", type=NUMBER, default=0.0,
        help="by how much the temperature may rise and fall with the entropy; 0: off",
    )
    dynatemp_exponent: float = sampling(
        "--dynatemp-exp", type=Real(0.0), default=1.0,
        help="exponent of the entropy in the dynamic temperature",
    )
    top_k: int = sampling(
        "--top-k", env="TOP_K", type=Whole(clamp=(0, INT32_MAX)), default=40,
        help="keep the so many likeliest tokens; 0: off",
    )
    top_p: float = sampling(
        "--top-p", env="TOP_P", type=SHARE, default=0.95,
        help="keep the likeliest tokens of this probability together; 1: off",
    )
    min_p: float = sampling(
        "--min-p", env="MIN_P", type=SHARE, default=0.05,
        help="keep tokens of at least this share of the likeliest's probability; 0: off",
    )
    typical_p: float = sampling(
        "--typical", "--typical-p", type=NUMBER, default=1.0,
        help="keep the tokens of typical surprise of this probability together; 1: off",
    )
    top_n_sigma: float = sampling(
        "--top-nsigma", "--top-n-sigma", type=NUMBER, default=-1.0,
        help="keep logits within so many standard deviations of the highest; -1: off",
    )
    xtc_probability: float = sampling(
        "--xtc-probability", type=SHARE, default=0.0,
        help="how often all but the least likely of the likely tokens go; 0: never",
    )
    xtc_threshold: float = sampling(
        "--xtc-threshold", type=SHARE, default=0.1,
        help="what is likely for that; above 0.5: off",
    )
    repeat_last_n: int = sampling(
        "--repeat-last-n", type=OR_ALL, default=64,
        help="tokens that penalties look at; 0: off, -1: the context",
    )
    repeat_penalty: float = sampling(
        "--repeat-penalty", env="REPEAT_PENALTY", type=Real(1 / LARGEST), default=1.0,
        help="divides the logits of tokens that were there; 1: off",
    )
    presence_penalty: float = sampling(
        "--presence-penalty", env="PRESENCE_PENALTY", type=NUMBER, default=0.0,
        help="taken off the logits of tokens that were there; 0: off",
    )
    frequency_penalty: float = sampling(
        "--frequency-penalty", env="FREQUENCY_PENALTY", type=NUMBER, default=0.0,
        help="the same for each time they were; 0: off",
    )
    dry_multiplier: float = sampling(
        "--dry-multiplier", type=NUMBER, default=0.0,
        help="weight of the DRY penalty on what would repeat a sequence; 0: off",
    )
    dry_base: float = sampling(
        "--dry-base", type=NUMBER, default=1.75,
        help="by which that grows with each token of the sequence; below 1: off",
    )
    dry_allowed_length: int = sampling(
        "--dry-allowed-length", type=NATURAL, default=2,
        help="sequences up to this length are free",
    )
    dry_penalty_last_n: int = sampling(
        "--dry-penalty-last-n", type=OR_ALL, default=64,
        help="tokens that DRY looks at; 0: off, -1: the context",
    )
    dry_sequence_breakers: tuple[str, ...] = sampling(
        "--dry-sequence-breaker", type=Parsed("TEXT", _breaker), multiple=True,
        default=("\n", ":", '"', "*"),
        help="texts that no sequence reaches over, in place of the default's; none: no such text; "
        "repeatable",
    )
    mirostat: int = sampling(
        "--mirostat", type=Whole(0, 2, clamp=(0, 2)), default=0,
        help="version of Mirostat, which replaces other samplers; 0: off",
    )
    mirostat_tau: float = sampling(
        "--mirostat-ent", type=NUMBER, default=5.0, help="its target entropy, tau",
    )
    mirostat_eta: float = sampling(
        "--mirostat-lr", type=NUMBER, default=0.1, help="its learning rate, eta",
    )
    adaptive_target: float = sampling(
        "--adaptive-target", type=Real(high=1.0), default=-1.0,
        help="of the sampler adaptive_p: the probability that drawn tokens have on average; "
        "negative: off",
    )
    adaptive_decay: float = sampling(
        "--adaptive-decay", type=Real(0.0, 0.99), default=0.9,
        help="how slowly that average forgets; it spans about 1 / (1 - X) tokens",
    )
    min_keep: int = sampling(
        type=NATURAL, default=0, help="tokens that samplers leave at least",
    )
    ignore_eos: bool = sampling(
        "--ignore-eos", default=False, help="do not end at the end token",
    )
    logit_bias: tuple[tuple[int, float], ...] = sampling(
        "-l", "--logit-bias", type=Parsed("TOKEN(+/-)BIAS", token_bias), multiple=True,
        default=(), help="make a token likelier or rarer, such as 15043+1 or 15043-1; -inf bans; "
        "repeatable",
    )

    def check(self) -> None:
        """RequestError for a value with which logits would not stay finite, or that means
        nothing."""
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                limits = f"{low:.10g} and {high:.10g}"
                raise RequestError(f"{name} must be between {limits}, not {value}")
# fmt: on


class TokenRules(Struct, frozen=True):
    """Which tokens may be written, whatever the samplers make of them; as in vLLM.

    ``stop_ids`` end the text as an end token does. Before ``min_tokens`` tokens nothing ends it:
    no end token, none of ``stop_ids``, no stop string. ``bad_words`` are sequences of tokens that
    are never written. ``allowed``, if there are any, are the only tokens that may be.
    """

    min_tokens: int = 0
    stop_ids: frozenset[int] = frozenset()
    bad_words: tuple[tuple[int, ...], ...] = ()
    allowed: tuple[int, ...] = ()


NO_RULES = TokenRules()


PARAMETERS: dict[str, Option] = {
    field.name: field.metadata["option"] for field in fields(SamplingParams)
}
RANGES = {
    name: (stated.type.low, stated.type.high)
    for name, stated in PARAMETERS.items()
    if isinstance(stated.type, Whole | Real)
}
