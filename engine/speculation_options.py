"""Options of speculation: what guesses tokens, several of which are then verified in a step.

Names and defaults are llama-server's, save for the type ``grammar``, which it has not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from gguf_serve.engine.option import COUNT, FILE, Parsed, Whole, option

GROUP = "Speculation"
NGRAM_TYPES = ("ngram-simple", "ngram-map-k", "ngram-map-k4v", "ngram-mod", "ngram-cache")
TYPES = ("none", "grammar", *NGRAM_TYPES)
MODEL_TYPES = ("draft-simple", "draft-eagle3", "draft-mtp", "draft-dflash", "draft-dspark")
SIZE, SIZE_OR_0 = Whole(1, 1024), Whole(0, 1024)


def spec_types(text: str) -> tuple[str, ...]:
    """Types separated by commas; ValueError for one that there is not."""
    types = tuple(part.strip() for part in text.split(","))
    for name in types:
        if name not in TYPES + MODEL_TYPES:
            raise ValueError(f"{name!r} is none of the types {', '.join(TYPES)}")
    return types


class NGramSizes(NamedTuple):
    """Tokens that are looked up, tokens that are guessed, and how often they were seen before."""

    n: int
    m: int
    min_hits: int


class NGramModSizes(NamedTuple):
    """Tokens that are looked up; the least and the most that are guessed."""

    n_match: int
    n_min: int
    n_max: int


# fmt: off
@dataclass(frozen=True, slots=True)
class SpeculationOptions:
    """What guesses, apart from what a request says."""

    types: tuple[str, ...] = option(
        "--spec-type", group=GROUP, env="SPEC_TYPE", type=Parsed("TYPE,...", spec_types),
        multiple=True, default=(),
        help="what guesses tokens, beside grammar, which guesses what a schema or grammar forces: "
        f"{', '.join(NGRAM_TYPES)}; none: nothing, grammar neither; repeatable",
    )
    default: bool = option(
        "--spec-default", group=GROUP, default=False, help="the same as --spec-type ngram-mod",
    )
    simple_n: int = option(
        "--spec-ngram-simple-size-n", group=GROUP, type=SIZE, default=12,
        help="last tokens that ngram-simple looks up",
    )
    simple_m: int = option(
        "--spec-ngram-simple-size-m", group=GROUP, type=SIZE, default=48,
        help="tokens that it guesses at most",
    )
    simple_min_hits: int = option(
        "--spec-ngram-simple-min-hits", group=GROUP, type=COUNT, default=1,
        help="how often it has seen the tokens before",
    )
    map_k_n: int = option(
        "--spec-ngram-map-k-size-n", group=GROUP, type=SIZE, default=12,
        help="last tokens that ngram-map-k looks up",
    )
    map_k_m: int = option(
        "--spec-ngram-map-k-size-m", group=GROUP, type=SIZE, default=48,
        help="tokens that it guesses at most",
    )
    map_k_min_hits: int = option(
        "--spec-ngram-map-k-min-hits", group=GROUP, type=COUNT, default=1,
        help="how often it has seen the tokens before",
    )
    map_k4v_n: int = option(
        "--spec-ngram-map-k4v-size-n", group=GROUP, type=SIZE, default=12,
        help="last tokens that ngram-map-k4v looks up",
    )
    map_k4v_m: int = option(
        "--spec-ngram-map-k4v-size-m", group=GROUP, type=SIZE, default=48,
        help="tokens that it guesses at most",
    )
    map_k4v_min_hits: int = option(
        "--spec-ngram-map-k4v-min-hits", group=GROUP, type=COUNT, default=1,
        help="how often it has seen the tokens before",
    )
    mod_n_match: int = option(
        "--spec-ngram-mod-n-match", group=GROUP, type=SIZE, default=24,
        help="last tokens that ngram-mod looks up",
    )
    mod_n_min: int = option(
        "--spec-ngram-mod-n-min", group=GROUP, type=SIZE_OR_0, default=48,
        help="tokens that it guesses at least",
    )
    mod_n_max: int = option(
        "--spec-ngram-mod-n-max", group=GROUP, type=SIZE_OR_0, default=64,
        help="tokens that it guesses at most",
    )
    static: str | None = option(
        "-lcs", "--lookup-cache-static", group=GROUP, type=FILE, default=None,
        help="llama-server's file of n-grams that ngram-cache compares its own with",
    )
    dynamic: str | None = option(
        "-lcd", "--lookup-cache-dynamic", group=GROUP, type=FILE, default=None,
        help="and one that it looks in after its own; it is not written",
    )
# fmt: on

    @property
    def in_use(self) -> tuple[str, ...]:
        """The types that are asked for, and that there are, each once; none: nothing guesses."""
        if "none" in self.types:
            return ()
        asked = ("grammar", *self.types, *("ngram-mod",) * self.default)
        return tuple(dict.fromkeys(name for name in asked if name in TYPES))

    @property
    def missing(self) -> tuple[str, ...]:
        """The types that are asked for and need a model, none of which can be loaded yet."""
        return tuple(name for name in self.types if name in MODEL_TYPES)

    @property
    def simple(self) -> NGramSizes:
        return NGramSizes(self.simple_n, self.simple_m, self.simple_min_hits)

    @property
    def map_k(self) -> NGramSizes:
        return NGramSizes(self.map_k_n, self.map_k_m, self.map_k_min_hits)

    @property
    def map_k4v(self) -> NGramSizes:
        return NGramSizes(self.map_k4v_n, self.map_k4v_m, self.map_k4v_min_hits)

    @property
    def mod(self) -> NGramModSizes:
        return NGramModSizes(self.mod_n_match, self.mod_n_min, self.mod_n_max)


OFF = SpeculationOptions(types=("none",))
