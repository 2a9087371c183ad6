"""How many tokens a step may take so that nobody waits long for it.

A step cannot be interrupted: who cancels a request, or waits for the next token beside
another one's long prompt, waits for the step that is running.
"""

from __future__ import annotations

STEP_SECONDS = 0.5
BESIDE_SECONDS = 0.15  # of a step in which others wait for their next token
LEAST_TOKENS = 64  # below that, a step's time says little of the time per token
LEAST_PATIENCE, MOST_PATIENCE = 0.002, 0.1  # seconds for which a step waits for a mask
TILE = 32  # kernels take prompts in tiles of so many tokens


class Pace:
    """The most tokens of a step of about STEP_SECONDS, from how long the last ones took."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.n_tokens = min(LEAST_TOKENS, most)  # until the speed is known
        self.n_beside = self.n_tokens  # while others generate
        self._patience = LEAST_PATIENCE
        self.speed = 0.0  # tokens of prompts per second, in the last large step; 0: not known

    def patience(self, is_alone: bool) -> float:
        """Seconds for which a step waits for masks, from when the device computes: as long as
        it takes for that, so that those without one wait no longer than twice as long; and long
        where there is nobody else."""
        return MOST_PATIENCE if is_alone else self._patience

    def note(self, n_tokens: int, seconds: float, has_masks: bool = False) -> None:
        """Take note of a step; one of a few tokens changes only how long masks are waited for,
        if it has waited for none."""
        if not has_masks:
            self._patience = min(max(seconds, LEAST_PATIENCE), MOST_PATIENCE)
        if n_tokens < min(LEAST_TOKENS, self._most) or seconds <= 0.0:
            return
        self.speed = n_tokens / seconds
        self.n_tokens = self._fitting(self.speed * STEP_SECONDS, LEAST_TOKENS)
        self.n_beside = self._fitting(self.speed * BESIDE_SECONDS, TILE)

    def _fitting(self, n_tokens: float, least: int) -> int:
        """Whole tiles, within the limits."""
        return min(max(int(n_tokens) // TILE * TILE, least), self._most)
