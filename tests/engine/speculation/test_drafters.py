"""What each kind guesses of plain lists of tokens."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from gguf_serve.engine.errors import EngineError
from gguf_serve.engine.speculation.drafter import Prediction
from gguf_serve.engine.speculation.ngram_cache import NGramCache, read_counts
from gguf_serve.engine.speculation.ngram_index import NGramIndex
from gguf_serve.engine.speculation.ngram_pool import (
    MOST_LOW,
    MOST_TABLES,
    NGramMod,
    NGramTable,
    NGramTables,
)
from gguf_serve.engine.speculation.ngrams import NGramMap, NGramSimple
from gguf_serve.engine.speculation_options import NGramModSizes, NGramSizes

TEXT = list(range(100, 140))
SIZES = NGramSizes(n=3, m=5, min_hits=1)


def test_an_index_finds_what_a_search_finds():
    rng = random.Random(1)
    tokens = [rng.randrange(3) for _ in range(200)]
    index, n = NGramIndex(4), 4
    for end in range(1, len(tokens) + 1):
        seen = tokens[:end]
        expected = [at for at in range(end - 1, n - 1, -1) if seen[at - n : at] == seen[-n:]]
        assert list(index.earlier(seen)) == (expected if end >= n else [])


def test_simple_takes_what_followed_last():
    prompt = [*TEXT, 1, *TEXT[:10], 7, 8, 9, 10, 2]
    drafter = NGramSimple(SIZES, prompt)
    tokens = [*prompt, *TEXT[5:8]]
    assert drafter.propose(tokens, 64) == [108, 109, 7, 8, 9]
    tokens += [55]
    assert list(drafter.propose(tokens, 64)) == []


def test_map_k_takes_what_followed_first_as_far_as_it_was_right():
    prompt = [*TEXT, 1, *TEXT[:10], 7, 8, 9, 10, 2]
    drafter = NGramMap(SIZES, prompt, by_value=False)
    tokens = [*prompt, *TEXT[5:8]]
    assert drafter.propose(tokens, 64) == (108, 109, 110, 111, 112)
    drafter.judge(2, 5)
    assert drafter.propose([*tokens, 3, *TEXT[5:8]], 64) == (108, 109)


def test_map_k4v_takes_what_followed_mostly():
    often, once = [5, 6, 7, 21, 22, 23, 24, 25], [5, 6, 7, 31, 32, 33, 34, 35]
    sizes = NGramSizes(n=3, m=5, min_hits=2)
    tokens = [*often, *once, 5, 6, 7]
    assert not NGramMap(sizes, tokens, by_value=True).propose(tokens, 64)
    tokens = [*often, *once, *often, 5, 6, 7]
    assert NGramMap(sizes, tokens, by_value=True).propose(tokens, 64) == (21, 22, 23, 24, 25)
    assert not NGramMap(NGramSizes(3, 5, 4), tokens, by_value=True).propose(tokens, 64)


def test_mod_shares_what_others_have_written():
    table, sizes = NGramTable(), NGramModSizes(n_match=4, n_min=10, n_max=20)
    NGramMod(sizes, table, TEXT)
    other = NGramMod(sizes, table, [1, 2])
    assert other.propose([1, 2, *TEXT[:4]], 64) == TEXT[4:24]
    late = NGramMod(sizes, table, [1, 2])
    assert late.propose([1, 2, *TEXT[25:35]], 64) == ()  # too few follow
    for _ in range(MOST_LOW):
        other.judge(0, 20)
    assert other.propose([1, 2, *TEXT[:5]], 64) == ()


def test_tables_are_few():
    tables = NGramTables()
    first = tables.of("a")
    assert tables.of("a") is first
    for salt in range(MOST_TABLES):
        assert tables.of(salt) is not first
    assert tables.of("a") is not first


def test_cache_counts(tmp_path: Path):
    tokens = [1, 2, 3, 1, 2, 3, 1, 2]
    assert NGramCache(tokens, {}, {}).propose(tokens, 4) == [3, 1, 2, 3]
    path = tmp_path / "counts"
    path.write_bytes(struct.pack("<9i", 8, 9, -1, -1, 2, 50, 3, 51, 1))
    counts = read_counts(path)
    assert counts == {(8, 9): {50: 3, 51: 1}}
    assert NGramCache([], {}, counts).propose([8, 9], 1) == [50]
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(EngineError, match="no n-gram cache"):
        read_counts(path)
    with pytest.raises(EngineError, match="cannot be read"):
        read_counts(tmp_path / "none")


def test_a_prediction_is_followed_through_edits():
    drafter, tokens = Prediction(TEXT, 2), [1, 2]
    assert drafter.propose(tokens, 3) == TEXT[:3]
    tokens += TEXT[:10]
    assert drafter.propose(tokens, 3) == TEXT[10:13]
    tokens += [7]
    assert drafter.propose(tokens, 3) == []
    tokens += [8, *TEXT[20:23]]
    assert drafter.propose(tokens, 3) == TEXT[23:26]
    tokens += TEXT[23:]
    assert drafter.propose(tokens, 3) == []
