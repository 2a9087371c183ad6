"""The drafters that a request has, by the server's options and its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from pathlib import Path

from gguf_serve.engine.grammar.guide import Guide
from gguf_serve.engine.request import Request
from gguf_serve.engine.speculation.drafter import Drafter, Forced, Prediction
from gguf_serve.engine.speculation.model_drafter import ByModel
from gguf_serve.engine.speculation.ngram_cache import NGramCache, read_counts
from gguf_serve.engine.speculation.ngram_pool import NGramMod, NGramTables
from gguf_serve.engine.speculation.ngrams import NGramMap, NGramSimple
from gguf_serve.engine.speculation.proposals import Proposals
from gguf_serve.engine.speculation_options import SpeculationOptions

MakeDrafter = Callable[[tuple[int, ...], Hashable], Drafter]  # of a prompt, and its salt


class Drafting:
    """Makes the proposals of requests, in the threads of those who submit."""

    def __init__(
        self,
        options: SpeculationOptions,
        eog_ids: Collection[int],
        by_model: Callable[[], ByModel | None] = lambda: None,
    ) -> None:
        """``by_model``: for each request, if a model guesses. EngineError for a file of n-grams
        that cannot be read."""
        self._eog_ids, self._types, self._by_model = eog_ids, options.in_use, by_model
        tables = NGramTables()
        files = [{} if path is None else read_counts(Path(path))
                 for path in (options.dynamic, options.static)]  # fmt: skip
        known: dict[str, MakeDrafter] = {
            "ngram-simple": lambda prompt, salt: NGramSimple(options.simple, prompt),
            "ngram-map-k": lambda prompt, salt: NGramMap(options.map_k, prompt, by_value=False),
            "ngram-map-k4v": lambda prompt, salt: NGramMap(options.map_k4v, prompt, by_value=True),
            "ngram-mod": lambda prompt, salt: NGramMod(options.mod, tables.of(salt), prompt),
            "ngram-cache": lambda prompt, salt: NGramCache(prompt, *files),
        }
        self._ngrams = [known[name] for name in self._types if name in known]

    def proposals(
        self, request: Request, guide: Guide | None, salt: Hashable = None
    ) -> Proposals | None:
        """None if nothing is to be guessed. The surest drafters come first."""
        if not self._types or not request.has_text or request.drafts.most == 0:
            return None
        drafters = list[Drafter]()
        if guide is not None:
            drafters.append(Forced(guide))
        if request.prediction:
            drafters.append(Prediction(request.prediction, len(request.prompt)))
        drafters += [make(request.prompt, salt) for make in self._ngrams]
        if (by_model := self._by_model()) is not None:
            drafters.append(by_model)
        if not drafters:
            return None
        return Proposals(request.prompt, drafters, self._eog_ids, guide, request.drafts)
