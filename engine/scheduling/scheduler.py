"""Continuous batching: which tokens of which sequences the next forward computes.

Integers and lists only: no arrays, no clock, no device. The engine's loop is ``plan``, the
plan's copies and its forward, ``advance``, then ``append`` or ``finish`` for each chunk that
reached the end of its sequence.

Clients, and the requests of each, get slots in turn (turns.py), those of one request by arrival;
a client's prompts are computed by arrival, those of several clients in turn. If the pool of pages
runs out, the youngest pauses: it gives its pages back (they stay cached while the room lasts),
keeps its slot, and comes back as the first of those that wait. The oldest is never paused, so all
of them end.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping
from collections.abc import Sequence as PlainSequence
from operator import attrgetter

from msgspec.structs import replace

from gguf_serve.engine.errors import ContextOverflowError, RequestError
from gguf_serve.engine.request import Request
from gguf_serve.engine.scheduling.checkpoints import Checkpoints, StateCopy
from gguf_serve.engine.scheduling.chunks import next_chunk
from gguf_serve.engine.scheduling.page_cache import PageCache, PageCopy, n_common
from gguf_serve.engine.scheduling.sequence import Chunk, Plan, Sequence
from gguf_serve.engine.scheduling.turns import PromptTurns, WaitingLine

_arrival = attrgetter("arrival")
# The end of a prompt opens the answer, which the next turn of a chat may render otherwise.
PROMPT_END = 16  # tokens
LEAST_DROPPED = 4  # tokens after those to keep, of which a full context drops half
LEAST_PAGES = 2  # a checkpoint after fewer new ones is not worth a step of its own


class Scheduler:
    """Slots, the waiting line, and the share of each sequence in the next forward."""

    def __init__(
        self,
        cache: PageCache,
        *,
        n_slots: int,
        n_ctx_slot: int,
        n_batch: int,
        n_ubatch: int,
        prompt_chunk: int | None = None,
        max_outputs: int | None = None,
        share: bool = True,
        checkpoints: Checkpoints | None = None,
        shift_keep: int | None = None,
        whole_prompts: bool = False,
        encodes: bool = False,
        rewinds: bool = False,
    ) -> None:
        """A forward takes at most min(n_batch, n_ubatch) tokens and max_outputs logits rows.

        While a sequence is decoding, a forward takes at most ``prompt_chunk`` prompt tokens.
        Both default to ``n_ubatch``. ``checkpoints``: the model keeps more of a sequence than
        its pages, so that prefixes are shared up to a checkpoint only. ``share`` False: no
        sequence uses what another computed. ``whole_prompts``: a prompt is one chunk, because
        its tokens see those after them; they share nothing. ``encodes``: prompts are one chunk,
        too, in forwards of their own, and a decoder's tokens follow. ``shift_keep``: tokens that
        ``shift`` keeps beside those of a request's n_keep; None: contexts do not shift.
        ``rewinds``: slots keep a state that takes no token back, so a guess that is wrong has its
        sequence rewound.
        Raises ValueError for numbers that leave a sequence without a token per forward.
        """
        self.cache = cache
        self.n_ctx = min(n_ctx_slot, cache.n_pages * cache.page_size)
        self.max_tokens = min(n_batch, n_ubatch)
        self.prompt_chunk = n_ubatch if prompt_chunk is None else prompt_chunk
        self.max_outputs = n_ubatch if max_outputs is None else max_outputs
        if n_slots < 1 or self.prompt_chunk < 1:
            raise ValueError(f"{n_slots=} and prompt_chunk={self.prompt_chunk} must be positive")
        if min(self.max_tokens, self.max_outputs) < n_slots:
            raise ValueError(
                f"a forward of {self.max_tokens} tokens and {self.max_outputs} rows of logits "
                f"is too small for {n_slots} slots"
            )
        self.slots: list[Sequence | None] = [None] * n_slots
        self.running: list[Sequence] = []  # by arrival
        self.waiting = WaitingLine()
        self._prompt_turns = PromptTurns()
        self.n_preempted = 0
        self._share = share and not whole_prompts
        self.checkpoints = checkpoints
        self.whole_prompts, self._encodes = whole_prompts, encodes
        self.shift_keep = shift_keep
        self.rewinds = rewinds
        self._saves: list[StateCopy] = []  # for the next plan
        self._n_arrived = 0

    def add(self, seq: Sequence) -> None:
        """Put a new sequence at the end of the line.

        Raises RequestError if its prompt is empty, ContextOverflowError if too long.
        """
        self.check(seq.request)
        if seq.state != "new":
            raise ValueError(f"sequence {seq.id} was added before")
        seq.state = "waiting"
        seq.share = seq.share and self._share
        seq.arrival = self._n_arrived
        self._n_arrived += 1
        self.waiting.add(seq)

    def check(self, request: Request) -> None:
        """Raise what ``add`` raises for this request."""
        n = len(request.prompt) + (self._encodes and request.has_text)
        if not request.prompt:
            raise RequestError("the prompt has no tokens")
        if n > self.n_ctx or (n == self.n_ctx and request.goes_on):
            raise ContextOverflowError(n, self.n_ctx)
        n_whole = len(request.prompt) * (self.whole_prompts or self._encodes)
        if n_whole > self.max_tokens:
            raise RequestError(
                f"the input has {n_whole} tokens, but this model must process it at once: increase "
                f"the physical batch size (--ubatch-size and --batch-size), now {self.max_tokens}"
            )
        most = self.max_tokens - len(self.slots)
        for span in request.media:
            if span.together and span.count > most:
                raise RequestError(
                    f"an image has {span.count} tokens, which this model must process at once: "
                    f"increase the physical batch size (--ubatch-size and --batch-size), now "
                    f"{self.max_tokens} of which images may take {most}"
                )

    def plan(self, most_tokens: int | None = None, most_decoding: int | None = None) -> Plan | None:
        """The next forward, of at most so many prompt tokens and decoding sequences; None: none."""
        self._make_room()
        encoding = any(seq.encodes for seq in self.running)
        going = [] if encoding else [seq for seq in self.running if seq.decodes][:most_decoding]
        decoding = [self._chunk(seq, seq.n_pending, 1) for seq in going]
        chunks = [chunk for chunk in decoding if chunk.count]  # else its embedding is missing
        n_tokens = self.max_tokens - sum([chunk.count for chunk in chunks])
        n_outputs = self.max_outputs - sum([chunk.outputs != "none" for chunk in chunks])
        if chunks and not self.whole_prompts:
            n_tokens = min(n_tokens, self.prompt_chunk)
        if most_tokens is not None and not (self.whole_prompts or encoding):
            n_tokens = min(n_tokens, most_tokens)
        plan, n_decoding = Plan(chunks), len(chunks)
        prompts = [seq for seq in self.running if seq.has_prompt]
        while prompts and self.waiting.has_newcomer(self.running):
            if (seq := self._admit(plan)) is None:
                break
            prompts.append(seq)
        self._prompt_turns.sort(prompts)
        while n_tokens > 0:
            seq = prompts.pop(0) if prompts else self._admit(plan)
            if seq is None:
                break
            planned = sum([chunk.count for chunk in chunks])
            chunk = self._chunk(seq, n_tokens, n_outputs, self.max_tokens - planned)
            if chunk.count and (not chunks or chunk.encodes == chunks[0].encodes):
                chunks.append(chunk)
                n_tokens -= chunk.count
                n_outputs -= chunk.n_outputs
        self._prompt_turns.note([chunk.seq for chunk in chunks[n_decoding:]])
        self.cache.unpin_sources()
        # Who starts, or goes on after a pause, may wait for an image; its copies may not.
        if not (chunks or plan.started or plan.copies or plan.restores):
            return None
        plan.saves.extend(self.take_saves())
        return plan

    def take_saves(self) -> list[StateCopy]:
        """What is to be saved before anything changes a slot's state; the caller does it."""
        saves, self._saves = self._saves, []
        return saves

    def advance(self, plan: Plan) -> None:
        """The plan's forward is enqueued: whatever is enqueued later finds its KV written."""
        for chunk in plan.chunks:
            seq, end = chunk.seq, chunk.end
            if seq.state == "running":
                seq.rewound = seq.rewound and end < len(seq.tokens)
                self._commit(seq, end)
                if chunk.outputs == "all":
                    seq.n_scored = end

    def _commit(self, seq: Sequence, end: int) -> None:
        self.cache.commit(seq, end)
        if self._next_mark(seq, end - 1) == end:
            self._checkpoint(seq)

    def room_for_drafts(self, plan: Plan) -> int:
        """How many tokens of drafts a plan may have: none beside prompts."""
        if not plan.decodes or plan.started or plan.copies or plan.restores:
            return 0
        return min(self.max_tokens - plan.n_tokens, self.max_outputs - len(plan.chunks))

    def reserve(self, plan: Plan, i: int, n_tokens: int) -> int:
        """Have pages for so many tokens after those of chunk ``i`` of a plan, or for as many as
        there is room for; how many.

        Nobody pauses for the pages of a draft: one is left for each that runs.
        """
        chunk = plan.chunks[i]
        seq, mark = chunk.seq, self._next_mark(chunk.seq, chunk.start)
        n = min(n_tokens, self.n_ctx - len(seq.tokens))
        if mark is not None:  # a checkpoint is of this position
            n = min(n, max(mark - chunk.end, 0))
        n_pages = len(seq.table) + max(self.cache.n_available - len(self.running), 0)
        n = min(n, n_pages * self.cache.page_size - len(seq.tokens))
        return n if n > 0 and self.cache.extend(seq, len(seq.tokens) + n) else 0

    def draft(self, plan: Plan, i: int, tokens: PlainSequence[int]) -> int:
        """Have chunk ``i`` of a plan guess these tokens, or as many as there is room for; how many.

        What is rejected later is not seen by the cache, and overwritten by the tokens that come
        instead.
        """
        n, chunk = self.reserve(plan, i, len(tokens)), plan.chunks[i]
        if n:
            plan.chunks[i] = replace(chunk, count=chunk.count + n, draft=tuple(tokens[:n]))
            chunk.seq.n_ahead = n if self.rewinds else 0
        return n

    def accept(self, seq: Sequence) -> None:
        """The token appended last is what a draft has guessed: its KV is written."""
        seq.n_ahead = max(seq.n_ahead - 1, 0)
        self._commit(seq, len(seq.tokens))

    def rewind(self, seq: Sequence, start: int) -> None:
        """The slot's state is that before token ``start`` again, after a guess that was wrong: what
        has come since is computed anew with the next token."""
        seq.n_computed, seq.n_ahead, seq.rewound = start, 0, True

    def append(self, seq: Sequence, token: int) -> None:
        """Add a sampled token. Raises ValueError if there is no room or none was due."""
        if seq.n_pending or len(seq.tokens) >= self.n_ctx:
            raise ValueError(f"no token can follow the {len(seq.tokens)} of sequence {seq.id}")
        seq.tokens.append(token)

    def unmask(self, seq: Sequence, tokens: Mapping[int, int]) -> None:
        """Put tokens in the place of masks, by position; all is computed again."""
        for position, token in tokens.items():
            seq.tokens[position] = token
        seq.masks = [position for position in seq.masks if position not in tokens]
        seq.n_computed = 0

    def resume(self, seq: Sequence, tokens: PlainSequence[int]) -> None:
        """Have a new sequence begin after tokens that another engine has generated.

        Raises ContextOverflowError where they do not fit and contexts do not shift.
        """
        for token in tokens:
            seq.tokens.append(token)
            if self.is_full(seq) and self.shifts(seq):
                self._drop(seq)
        if len(seq.tokens) > self.n_ctx:
            raise ContextOverflowError(len(seq.tokens), self.n_ctx)
        seq.n_resumed = len(tokens)

    def cut(self, seq: Sequence, end: int) -> None:
        """Drop the tokens from a position on, masks or not, before the sequence ends."""
        del seq.tokens[end:]
        seq.masks.clear()

    def is_full(self, seq: Sequence) -> bool:
        """The context has no room for a further token: generation ends, truncated.

        llama-server's ``n_tokens + 1 >= n_ctx`` counts the computed tokens, after sampling one:
        8 tokens of prompt and 248 generated ones fill a context of 256.
        """
        return len(seq.tokens) >= self.n_ctx

    def shifts(self, seq: Sequence) -> bool:
        """Whether a full context can be shifted; one with images has them where they are, and so
        has one with adapters that begin to count at a token."""
        fixed = seq.request.media or seq.adapter_starts or seq.n_encoder
        return self.shift_keep is not None and not fixed

    def shift(self, seq: Sequence) -> None:
        """Make room in a full context: after the tokens to keep, drop as many as the request
        says, or half. Those that stay are computed anew, at their new positions.

        So pages that others share stay what they are, and a sequence of any kind of layers is
        as if it had never been longer. ValueError if contexts do not shift.
        """
        self.pause(seq)
        self._drop(seq)

    def _drop(self, seq: Sequence) -> None:
        if self.shift_keep is None:
            raise ValueError("contexts do not shift")
        n_keep = seq.request.n_keep if seq.request.n_keep >= 0 else seq.n_prompt
        n_keep = min(n_keep + self.shift_keep, self.n_ctx - LEAST_DROPPED)
        n_left = len(seq.tokens) - n_keep
        n_drop = min(seq.request.n_discard or n_left // 2, n_left - 1)
        del seq.tokens[n_keep : n_keep + n_drop]
        seq.n_dropped += n_drop
        seq.marks.clear()

    def finish(self, seq: Sequence) -> None:
        """End a sequence, at any time and wherever it is, and give back all that it holds;
        idempotent."""
        if seq.state == "running":
            self.running.remove(seq)
        elif seq.state == "waiting":
            self.waiting.remove(seq)
        self._release(seq)
        seq.embeddings.clear()  # the slot's last sequence stays known
        seq.state = "finished"
        if seq.slot >= 0 and self.slots[seq.slot] is seq:
            self.slots[seq.slot] = None

    def recompute(self, seq: Sequence) -> bool:
        """Have a sequence computed anew, without what others have computed; False: it was so far.

        For one whose logits are no numbers: then the next ones tell whether the cache was at
        fault. What it has computed itself is discarded.
        """
        if seq.recomputed or not seq.n_reused:
            return False
        self.discard(seq)
        self.pause(seq)
        seq.recomputed, seq.keep = True, True
        return True

    def discard(self, seq: Sequence) -> None:
        """Nobody may begin with what this sequence has computed, which is no numbers."""
        if seq.share:  # else nothing of it is to be found before it ends
            self.forget(seq, seq.n_reused)
        seq.share = seq.keep = False

    def forget(self, seq: Sequence, start: int = 0) -> None:
        """Have nobody find what is cached of a sequence's tokens from ``start`` on."""
        self.cache.cut(seq.tokens, seq.salt, start)
        if self.checkpoints is not None:
            self.checkpoints.forget(seq.tokens, seq.salt, start)

    def _make_room(self) -> None:
        """Give each sequence the page for its next token, the oldest first."""
        for seq in self.running.copy():
            while seq.state == "running" and not self.cache.extend(seq, len(seq.tokens)):
                self._preempt(self.running[-1])

    def _preempt(self, seq: Sequence) -> None:
        assert len(self.running) > 1, "n_ctx is not more than the pool, so one always fits"
        self.pause(seq)
        self.n_preempted += 1

    def pause(self, seq: Sequence) -> None:
        """Take all pages from a running sequence; it keeps its slot."""
        self.running.remove(seq)
        self._release(seq)
        seq.state = "waiting"
        self.waiting.add(seq)

    def _admit(self, plan: Plan) -> Sequence | None:
        """Give the first one that can have it a slot and pages, or None.

        Only a slot or a prefix in the making, or on its way from a disk, lets others pass;
        who waits for pages is not overtaken, or a long prompt might wait forever. A page is left
        for each of those that run, so that the new one is not paused at their next step.
        """
        if len(self.running) == len(self.slots):
            return None
        for seq in self.waiting.in_turn(self.running):
            slot = self._free_slot(seq)
            if slot is None or seq.is_loading or self._is_in_the_making(seq):
                continue
            found = self._acquire(seq, slot, spare=len(self.running))
            if found is None:
                return None
            plan.copies.extend(found[0])
            plan.restores.extend(found[1])
            self._start(seq, slot, plan)
            return seq
        return None

    def _acquire(
        self, seq: Sequence, slot: int, spare: int
    ) -> tuple[list[PageCopy], list[StateCopy]] | None:
        """Pages for all tokens, and what is to be copied; None if there is no room."""
        n_agreed = None
        if seq.share and (self.checkpoints is not None or seq.request.media or seq.n_encoder):
            n_agreed = seq.sound_beginning(self.cache.match(seq.tokens, seq.salt))
        if self.checkpoints is None or n_agreed is None:
            copies = self.cache.acquire(seq, spare, n_agreed)
            return None if copies is None else (copies, [])
        found = self.checkpoints.find(seq.tokens, seq.salt, n_agreed)
        copies = self.cache.acquire(seq, spare, found.position if found else 0)
        if found and copies is not None and seq.n_computed < found.position:  # a page short
            self.cache.release(seq)
            found, copies = None, self.cache.acquire(seq, spare, 0)
        if copies is None:
            return None
        self._mark(seq, n_agreed, len(seq.tokens) - PROMPT_END)
        return copies, [StateCopy(slot, *found)] if found else []

    def _mark(self, seq: Sequence, *positions: int) -> None:
        """Have checkpoints made at the ends of the pages before these positions."""
        size = self.cache.page_size
        ends = {position // size * size for position in positions}
        seq.marks |= {end for end in ends if end - seq.n_computed >= LEAST_PAGES * size}

    def _next_mark(self, seq: Sequence, start: int) -> int | None:
        """The next position after ``start`` at which a checkpoint is to be made."""
        if self.checkpoints is None or not seq.share:
            return None
        step = self.checkpoints.min_step
        return min([(start // step + 1) * step, *(mark for mark in seq.marks if mark > start)])

    def _checkpoint(self, seq: Sequence) -> None:
        """Have the state copied before the next forward changes it, unless there is a copy."""
        if self.checkpoints is None or not seq.share or seq.n_computed < self.cache.page_size:
            return
        copy = self.checkpoints.add(seq.tokens, seq.salt, seq.n_computed)
        if copy is not None:
            self._saves.append(StateCopy(seq.slot, seq.n_computed, copy))

    def _release(self, seq: Sequence) -> None:
        if not seq.n_ahead:  # else the slot's state is of other tokens
            self._checkpoint(seq)
        seq.n_ahead, seq.rewound = 0, False
        self.cache.release(seq)

    def _start(self, seq: Sequence, slot: int, plan: Plan) -> None:
        self.waiting.take(seq, self.running)
        insort(self.running, seq, key=_arrival)
        seq.state = "running"
        seq.n_reused = max(seq.n_reused, seq.n_computed)
        if seq.slot < 0:
            seq.slot = slot
            self.slots[slot] = seq
            seq.n_cached = seq.n_computed
            plan.started.append(seq)

    def _free_slot(self, seq: Sequence) -> int | None:
        if seq.slot >= 0:  # it was paused
            return seq.slot
        if seq.request.id_slot >= 0:
            slot = seq.request.id_slot % len(self.slots)
            return slot if self.slots[slot] is None else None
        return next((i for i, holder in enumerate(self.slots) if holder is None), None)

    def _is_in_the_making(self, seq: Sequence) -> bool:
        """Another one is about to compute at least a page of this one's prompt.

        So the n choices of one request, or agents with one system prompt, compute it once.
        """
        size = self.cache.page_size
        for other in self.running:
            end = other.n_computed + size
            if end >= len(seq.tokens) or end > len(other.tokens):
                continue
            if not (seq.share and other.share and seq.salt == other.salt):
                continue
            # Most differ in the last page already; the whole comparison is for the rest.
            agree = seq.tokens[end - size : end] == other.tokens[end - size : end]
            if agree and seq.tokens[:end] == other.tokens[:end]:
                if seq.awaited != other.id:  # it is to leave what this one can begin with
                    seq.awaited = other.id
                    self._mark(other, n_common(seq.tokens[:-1], other.tokens))
                return True
        return False

    def _chunk(self, seq: Sequence, n_tokens: int, n_outputs: int, most: int = 1) -> Chunk:
        mark = self._next_mark(seq, seq.n_computed)
        return next_chunk(seq, n_tokens, n_outputs, most, mark, whole_prompt=self.whole_prompts)
