"""llama-server's own object for an answer: what /completion gives, and ``__verbose`` elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gguf_serve.engine.request import Request
from gguf_serve.server.requests.answer import Choice, Piece, timings
from gguf_serve.server.requests.generate import Options
from gguf_serve.server.requests.logprobs import content_logprobs
from gguf_serve.server.requests.parameters import generation_settings
from gguf_serve.server.requests.prompts import prompt_text
from gguf_serve.server.requests.service import Service

STOP_TYPES = {"eos": "eos", "word": "word", "limit": "limit", "cancelled": "none"}


class NativeAnswers:
    """Of each choice of a request, in the order of ``requests``."""

    def __init__(
        self,
        service: Service,
        choices: Sequence[Choice],
        requests: Sequence[Request],
        options: Options,
    ) -> None:
        self.choices = choices
        self.requests = requests
        self.options = options
        self.model = service.model_name
        self.engine = service.engine

    def whole(self, index: int, piece: Piece, has_new_line: bool) -> dict[str, Any]:
        """What is known at the end, with a content of ``piece``."""
        choice, finished = self.choices[index], self.choices[index].finished
        assert finished is not None
        started, n_generated = choice.started, finished.timings.predicted_n
        whole = {
            "index": index,
            "content": piece.text,
            "tokens": piece.tokens if self.options.return_tokens else [],
            "id_slot": started.id_slot,
            "stop": True,
            "model": self.model,
            "tokens_predicted": n_generated,
            "tokens_evaluated": started.n_prompt,
            "generation_settings": {
                **generation_settings(self.requests[index], self.engine),
                "stream": self.options.stream,
                "timings_per_token": self.options.timings_per_token,
            },
            "prompt": prompt_text(choice.prompt, self.engine.tokenizer),
            "has_new_line": has_new_line,
            "truncated": finished.truncated,
            "stop_type": STOP_TYPES[finished.reason],
            "stopping_word": finished.stopping_word,
            "tokens_cached": started.n_prompt + max(n_generated - 1, 0),
            "timings": timings([choice]),
        }
        return whole | self.probabilities(piece)

    def verbose(self, index: int, piece: Piece) -> dict[str, Any]:
        """The same of an answer that was parsed: its content is what the model has written."""
        tokenizer = self.engine.tokenizer
        ids = [id for id in piece.tokens if id not in tokenizer.eog_ids]
        text = tokenizer.decode(ids, special=True)
        return self.whole(index, Piece(text, piece.tokens), "\n" in text)

    def probabilities(self, piece: Piece) -> dict[str, Any]:
        if self.options.n_top is None or not piece.scores:
            return {}
        content = content_logprobs(piece.scores, self.options.n_top, self.options.post_sampling)
        return {"completion_probabilities": content}
