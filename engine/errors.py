"""The errors that a caller of the engine can act on."""


class EngineError(Exception):
    """Anything the engine refuses or cannot do; the message is for a person."""


class ModelError(EngineError):
    """The model file cannot be served: malformed, truncated or of an unknown kind."""


class RequestError(EngineError):
    """A request is not acceptable; the message names the offending value."""


class ContextOverflowError(RequestError):
    """The prompt does not fit the context of a slot."""

    def __init__(self, n_prompt_tokens: int, n_ctx: int) -> None:
        super().__init__(
            f"request ({n_prompt_tokens} tokens) exceeds the available context size "
            f"({n_ctx} tokens), try increasing it"
        )
        self.n_prompt_tokens = n_prompt_tokens
        self.n_ctx = n_ctx


class EngineStoppedError(EngineError):
    """The engine has ended, or is ending, and takes no further requests."""


class MediaError(RequestError):
    """An image or a sound that cannot be used; the text says why."""
