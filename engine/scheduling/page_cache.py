"""KV pages: who owns which, and a prefix tree by which every request finds computed ones.

Integers and lists only; it knows no tensor. A page is the room for the keys and values of
``page_size`` tokens in all layers; token i of a sequence lives in page
``table[i // page_size]``, row ``i % page_size``.

A node of the tree is a page with the tokens whose KV it holds, and its place in the tree
is the tokens before them, so equal content is stored once and nothing but equal tokens is
ever shared. Full pages enter the tree as soon as they are computed, the partly filled last
page when its sequence ends; until then the sequence itself is asked for it. Pages that
nobody references stay in the tree until the room is needed, least recently used first.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from operator import attrgetter
from typing import NamedTuple
from weakref import WeakValueDictionary

from msgspec import Struct, field


class PageCopy(NamedTuple):
    """The first ``n_rows`` rows of page ``source`` go to page ``target``, in all layers."""

    source: int
    target: int
    n_rows: int


class CacheStats(Struct, frozen=True):
    """Pages by state, and how much of the prompts was found; tokens count since the start."""

    n_used: int  # pages that sequences hold
    n_cached: int  # pages with computed KV that nobody holds
    n_free: int
    n_hit_tokens: int
    n_prompt_tokens: int  # of the sequences that were allowed to share


class _Node(Struct, eq=False, weakref=True):
    tokens: tuple[int, ...]  # page_size of them, or fewer: then there are no children
    page: int  # -1: a root
    depth: int  # number of pages from the root to this one, itself included
    parent: _Node | None
    # Sorted by tokens, so that the best agreement is a neighbour of the place searched
    # for; no child's tokens are the beginning of another's.
    children: list[_Node] = field(default_factory=list)


_tokens = attrgetter("tokens")


class PagedTokens(Struct, eq=False):
    """Token ids and the pages that their KV lives in.

    The tokens may grow at any time; the rest is changed by the cache alone.
    """

    tokens: list[int]
    salt: Hashable = None  # sequences with different salts share nothing
    share: bool = True  # False: never use a page that another sequence has computed
    keep: bool = True  # False: what it computes is not to be used by another
    table: list[int] = field(default_factory=list)
    n_computed: int = 0  # leading tokens whose KV is in the pages
    leaf: _Node | None = None  # the cache's: the last page of the table that is in the tree


class PageCache:
    """A pool of ``n_pages`` pages of ``page_size`` tokens (a power of two)."""

    def __init__(self, n_pages: int, page_size: int) -> None:
        """Raises ValueError for an empty pool or a page size that is no power of two."""
        if n_pages < 1:
            raise ValueError(f"a KV cache needs at least one page, not {n_pages}")
        if page_size < 1 or page_size & (page_size - 1):
            raise ValueError(f"page size {page_size} is not a power of two")
        self.n_pages = n_pages
        self.page_size = page_size
        self._free = list(range(n_pages - 1, -1, -1))
        self._refs = [0] * n_pages
        self.n_uses = [0] * n_pages  # how often each has been given away, for new content
        self._nodes: list[_Node | None] = [None] * n_pages  # by page
        # Pages in the tree that nobody references, oldest first. A page is referenced as
        # long as one below it is, and released after it: so the first has no children.
        self._unreferenced: OrderedDict[int, None] = OrderedDict()
        # A root lives as long as a page below it or a sequence that began there.
        self._roots: WeakValueDictionary[Hashable, _Node] = WeakValueDictionary()
        self._sequences: dict[PagedTokens, None] = {}  # those that hold pages, oldest first
        self._pinned: list[int] = []
        self._n_hit_tokens = 0
        self._n_prompt_tokens = 0

    @property
    def n_available(self) -> int:
        """Pages that can be had now, the cached ones included."""
        return len(self._free) + len(self._unreferenced)

    def stats(self) -> CacheStats:
        return CacheStats(
            n_used=self.n_pages - self.n_available,
            n_cached=len(self._unreferenced),
            n_free=len(self._free),
            n_hit_tokens=self._n_hit_tokens,
            n_prompt_tokens=self._n_prompt_tokens,
        )

    def match(self, tokens: Sequence[int], salt: Hashable = None) -> int:
        """How many leading tokens are computed already; the last one never counts."""
        path, _, n_rows = self._longest_prefix(tokens, self._root(salt))
        return len(path) * self.page_size + n_rows

    def find_pages(self, tokens: Sequence[int], salt: Hashable = None) -> tuple[list[int], int]:
        """The pages of the longest computed prefix, and its length; the last token counts."""
        path, source, n_rows = self._longest_prefix([*tokens, -1], self._root(salt))
        table = [node.page for node in path] + [source] * (n_rows > 0)
        return table, len(path) * self.page_size + n_rows

    def insert(
        self, tokens: Sequence[int], salt: Hashable, start: int, spare: int = 0
    ) -> tuple[int, list[int]]:
        """New pages for those full pages of these tokens that are not in the tree, as many as leave
        ``spare`` pages: how many were there, and the new ones. None if there were fewer than
        ``start``. They are in the tree at once and hold nothing: the caller writes to them
        before it does anything else.
        """
        node = self._root(salt)
        path, _, _ = self._longest_prefix([*tokens, -1], node)
        pages: list[int] = []
        if len(path) < start:
            return len(path), pages
        for found in path:
            self._reference(found.page)
            node = found
        while (end := (node.depth + 1) * self.page_size) <= len(tokens):
            if self.n_available <= spare:
                break
            page = self._take()
            node = self._insert(node, tuple(tokens[end - self.page_size : end]), page)
            pages.append(page)
        for page in [*reversed(pages), *(found.page for found in reversed(path))]:
            self._unreference(page)
        return len(path), pages

    def forget(self, tokens: Sequence[int], salt: Hashable = None) -> int:
        """Free the pages of these tokens that nobody holds and no other tokens continue.

        Returns how many of the tokens were cached.
        """
        table, n = self.find_pages(tokens, salt)
        for depth in range(len(table) - 1, -1, -1):
            node = self._nodes[table[depth]]
            if node is None or self._refs[node.page] or node.children:
                break
            start = depth * self.page_size
            if tuple(tokens[start : start + len(node.tokens)]) == node.tokens:
                self._forget(node)
        return n

    def cut(self, tokens: Sequence[int], salt: Hashable, start: int) -> None:
        """Forget the pages of these tokens, from the one with token ``start`` on, and what
        continues them. Who holds some keeps them, and what it computes is not kept."""
        path, _, _ = self._longest_prefix([*tokens, -1], self._root(salt))
        depth = start // self.page_size
        found = path[depth : depth + 1]
        if len(path) <= depth:  # the last page is not full
            parent = path[-1] if path else self._root(salt)
            rest = tokens[parent.depth * self.page_size :]
            found = [node for node in parent.children if n_common(node.tokens, rest)]
        below = list[_Node]()
        for node in found:
            assert node.parent is not None
            siblings = node.parent.children
            del siblings[bisect_left(siblings, node.tokens, key=_tokens)]
            below.append(node)
        for node in below:
            below += node.children
            self._nodes[node.page] = None
            if node.page in self._unreferenced:
                del self._unreferenced[node.page]
                self._free.append(node.page)
        gone = {id(node) for node in below}
        for seq in self._sequences:
            seq.keep = seq.keep and id(seq.leaf) not in gone

    def acquire(
        self, seq: PagedTokens, spare: int = 0, most: int | None = None
    ) -> list[PageCopy] | None:
        """Give ``seq`` pages for all its tokens, computed ones as far as there are any.

        Sets ``seq.table`` and ``seq.n_computed``, at most ``most`` and at most the number of
        tokens - 1: the last one is always evaluated. Returns the copies to issue before the
        next forward; no copy reads what another one writes, and their sources are not given
        away before ``unpin_sources``. None, and nothing changed, if fewer than ``spare`` pages
        would remain. Raises ValueError if there are no tokens or the sequence has pages already.
        """
        if seq.table or not seq.tokens:
            raise ValueError(f"{len(seq.tokens)} tokens with {len(seq.table)} pages: not new")
        root = self._root(seq.salt)
        path: list[_Node] = []
        source, n_rows = -1, 0
        if seq.share:
            path, source, n_rows = self._longest_prefix(seq.tokens, root, most)
        n_new = self._pages_of(len(seq.tokens)) - len(path)
        n_left = self.n_available - sum(not self._refs[node.page] for node in path)
        if n_new + spare > n_left:
            return None
        for node in path:
            self._reference(node.page)
            seq.table.append(node.page)
        copies: list[PageCopy] = []
        if n_rows and self._adopt(source, n_rows):
            seq.table.append(source)
        elif n_rows and (self._refs[source] or n_new + spare < n_left):
            copies.append(self._copy(source, n_rows))
            seq.table.append(copies[0].target)
        else:  # nothing agrees, or the room is too short for the source and its copy
            n_rows = 0
        seq.leaf = path[-1] if path else root
        seq.n_computed = len(path) * self.page_size + n_rows
        self._sequences[seq] = None
        self._n_hit_tokens += seq.n_computed
        self._n_prompt_tokens += len(seq.tokens) if seq.share else 0
        self.extend(seq, len(seq.tokens))
        return copies

    def unpin_sources(self) -> None:
        """The copies of all ``acquire`` since the last call precede whatever comes now."""
        for page in self._pinned:
            self._unreference(page)
        self._pinned.clear()

    def extend(self, seq: PagedTokens, n_tokens: int) -> bool:
        """Give ``seq`` the pages that ``n_tokens`` tokens need; False, and nothing, if none."""
        n_new = self._pages_of(n_tokens) - len(seq.table)
        if n_new <= 0:
            return True
        if n_new > self.n_available:
            return False
        seq.table.extend([self._take() for _ in range(n_new)])
        return True

    def commit(self, seq: PagedTokens, n_computed: int) -> None:
        """The KV of the first ``n_computed`` tokens is written; others may use it from now on.

        A page that became full may be exchanged in ``seq.table`` for one with the same
        content, if another sequence has computed it meanwhile.
        """
        seq.n_computed = n_computed
        if seq.share and seq.keep:
            self._index_full_pages(seq)

    def release(self, seq: PagedTokens) -> None:
        """Take all pages from ``seq``; what is computed in them stays cached."""
        if seq.leaf is None:
            return
        if seq.keep:
            leaf = self._index_full_pages(seq)
            if seq.n_computed > leaf.depth * self.page_size:
                self._index_next_page(seq, leaf, seq.n_computed)
        for page in reversed(seq.table):
            self._unreference(page)
        seq.table.clear()
        seq.n_computed = 0
        seq.leaf = None
        del self._sequences[seq]

    def clear(self) -> None:
        """Forget every page that no sequence holds."""
        while self._unreferenced:
            self._free.append(self._evict())

    def _pages_of(self, n_tokens: int) -> int:
        return -(-n_tokens // self.page_size)

    # --- the tree ---

    def _root(self, salt: Hashable) -> _Node:
        root = self._roots.get(salt)
        if root is None:
            root = self._roots[salt] = _Node((), -1, 0, None)
        return root

    def _longest_prefix(
        self, tokens: Sequence[int], node: _Node, most: int | None = None
    ) -> tuple[list[_Node], int, int]:
        """(full pages that agree, the page that agrees with what follows, its rows that do)."""
        path: list[_Node] = []
        end = len(tokens) - 1 if most is None else min(most, len(tokens) - 1)
        while True:
            start = node.depth * self.page_size
            wanted = tuple(tokens[start : max(start, min(start + self.page_size, end))])
            i = bisect_left(node.children, wanted, key=_tokens)
            if len(wanted) < self.page_size or i == len(node.children):
                break
            if node.children[i].tokens != wanted:
                break
            node = node.children[i]
            path.append(node)
        source, n_rows = -1, 0
        for child in node.children[max(i - 1, 0) : i + 1]:
            n = n_common(child.tokens, wanted)
            if n > n_rows:
                source, n_rows = child.page, n
        for seq in self._sequences:
            if seq.leaf is node and seq.share and seq.keep:
                n = n_common(seq.tokens[start : seq.n_computed], wanted)
                if n > n_rows:
                    source, n_rows = seq.table[node.depth], n
        return path, source, n_rows

    def _index_full_pages(self, seq: PagedTokens) -> _Node:
        leaf = seq.leaf
        assert leaf is not None, "the sequence holds no pages"
        while (end := (leaf.depth + 1) * self.page_size) <= seq.n_computed:
            leaf = self._index_next_page(seq, leaf, end)
        seq.leaf = leaf
        return leaf

    def _index_next_page(self, seq: PagedTokens, leaf: _Node, end: int) -> _Node:
        """Put the page of ``seq`` after ``leaf`` into the tree, with its tokens up to ``end``."""
        own = seq.table[leaf.depth]
        node = self._insert(leaf, tuple(seq.tokens[leaf.depth * self.page_size : end]), own)
        if node.page != own:
            self._reference(node.page)
            seq.table[leaf.depth] = node.page
            self._unreference(own)
        return node

    def _insert(self, parent: _Node, tokens: tuple[int, ...], page: int) -> _Node:
        """A child of ``parent`` that begins with ``tokens``: one that is there, or ``page``."""
        children = parent.children
        i = bisect_left(children, tokens, key=_tokens)
        if i < len(children) and children[i].tokens[: len(tokens)] == tokens:
            return children[i]
        if i > 0 and children[i - 1].tokens == tokens[: len(children[i - 1].tokens)]:
            i -= 1
            self._forget(children[i])
        node = _Node(tokens, page, parent.depth + 1, parent)
        children.insert(i, node)
        self._nodes[page] = node
        return node

    def _forget(self, node: _Node) -> None:
        """Free a page that is not needed, because its content is in another one, too."""
        self._detach(node)
        if node.page in self._unreferenced:  # else it is pinned, and freed afterwards
            del self._unreferenced[node.page]
            self._free.append(node.page)

    def _detach(self, node: _Node) -> None:
        assert node.parent is not None
        assert not node.children, "a page goes before the pages that continue it"
        siblings = node.parent.children
        del siblings[bisect_left(siblings, node.tokens, key=_tokens)]
        self._nodes[node.page] = None

    def _adopt(self, page: int, n_rows: int) -> bool:
        """Take a page out of the tree for its new owner, who continues all that is in it."""
        node = self._nodes[page]
        if node is None or self._refs[page] or n_rows < len(node.tokens):
            return False
        self._detach(node)
        del self._unreferenced[page]
        self._refs[page] = 1
        return True

    def _copy(self, source: int, n_rows: int) -> PageCopy:
        self._reference(source)
        self._pinned.append(source)
        return PageCopy(source, self._take(), n_rows)

    # --- pages ---

    def _take(self) -> int:
        """A page with one reference; there must be one available."""
        page = self._free.pop() if self._free else self._evict()
        self._refs[page] = 1
        self.n_uses[page] += 1
        return page

    def _evict(self) -> int:
        page, _ = self._unreferenced.popitem(last=False)
        node = self._nodes[page]
        assert node is not None
        self._detach(node)
        return page

    def _reference(self, page: int) -> None:
        if not self._refs[page]:
            del self._unreferenced[page]
        self._refs[page] += 1

    def _unreference(self, page: int) -> None:
        self._refs[page] -= 1
        if self._refs[page]:
            return
        node = self._nodes[page]
        if node is None:
            self._free.append(page)
            return
        self._unreferenced[page] = None
        # Only a pinned source can outlive the owners of the pages before it.
        parent = node.parent
        while parent is not None and parent.page in self._unreferenced:
            self._unreferenced.move_to_end(parent.page)
            parent = parent.parent


def n_common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading items agree."""
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n
