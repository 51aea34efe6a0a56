"""Rules by the paths that they speak of: which of them speak of a row, and which one decides.

Rules of a kind go into one trie of path segments, and each row is walked down it once: what speaks
of a row is looked up and handed on, not asked for again. So the work grows with the rows and with
the rules, and not with their product.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Generic, NamedTuple, TypeAlias, TypeVar

from ckpt_schema._layouts import paths
from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.table import Layout, Row

__all__ = ["GlobPath", "Hit", "Scope", "Spoken", "is_mirror", "said_paths", "standing"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class GlobPath(tuple[str, ...]):
    """The path of a node that a rule for many leaves means.

    Attributes:
        weight: What decides between rules for one leaf, the greater one first: how many segments of
            the rule's own path are literal. A rename says what one node is called, and nothing of
            those above: there the deeper node comes first.
    """

    weight: tuple[int, int]

    def __new__(cls, path: LogicalPath, literal: int, *, by_depth: bool) -> GlobPath:
        """The path, with its weight."""
        glob = super().__new__(cls, path)
        glob.weight = len(path) if by_depth else literal, literal
        return glob

    def __getnewargs_ex__(self) -> tuple[tuple[LogicalPath, int], dict[str, bool]]:
        """What a copy is made of."""
        return (tuple(self), self.weight[1]), {"by_depth": self.weight[0] != self.weight[1]}


class Hit(NamedTuple, Generic[T_co]):
    """A rule that speaks of a row.

    Attributes:
        rule: The rule.
        number: Its place among all rules.
        start: Where its path starts in that of the row: at the root, or at the model's root.
        end: Where it ends there.
        weight: How much of its path the rule names, see `GlobPath`; otherwise its length, twice.
    """

    rule: T_co
    number: int
    start: int
    end: int
    weight: tuple[int, int]

    @property
    def rank(self) -> tuple[int, int]:
        """How much it names of the row's path; the greater one wins."""
        return self.start + self.weight[0], self.weight[1]

    def draws(self, other: Hit[object]) -> bool:
        """Whether neither is more specific: they name one node, or as much of it, where one is a glob."""
        if self.start != other.start or self.weight != other.weight:
            return False
        # Of two plain paths the longer one decides; a glob may end anywhere and name no more.
        is_glob = any(hit.weight[1] < hit.end - hit.start for hit in (self, other))
        return is_glob or self.end == other.end


Spoken: TypeAlias = Mapping[int, Sequence[Hit[T]]]
"""The rules that speak of each row, by its number, the most specific first.

Other rows are left out.
"""


class _Node(Generic[T]):
    __slots__ = ("below", "hits")

    def __init__(self) -> None:
        self.below: dict[str, _Node[T]] = {}
        self.hits: list[Hit[T]] = []  # of a row whose path starts at the root of the trie


class Scope(Generic[T]):
    """Rules by path."""

    def __init__(self, entries: Iterable[tuple[LogicalPath, T]], *, follows: bool = False) -> None:
        """Reads rules, each with the path that it speaks of.

        With ``follows`` a path of a param from the root speaks of what mirrors it too.
        """
        self._follows = follows
        self._root: _Node[T] = _Node()
        self._size = 0
        for number, (path, rule) in enumerate(entries):
            node = self._root
            for segment in path:
                below = node.below.get(segment)
                if below is None:
                    below = node.below[segment] = _Node()
                node = below
            weight = path.weight if isinstance(path, GlobPath) else (len(path), len(path))
            node.hits.append(Hit(rule, number, 0, len(path), weight))
            self._size = number + 1

    def __bool__(self) -> bool:
        """Whether there is any rule."""
        return self._size > 0

    def over(self, row: Row) -> list[Hit[T]]:
        """The rules that speak of a row, the most specific first.

        The longer path is the more specific one, wherever it starts: at the root, or at the model's
        root. For what mirrors a param in the optimizer state, a path from the root comes first, for
        it speaks of that state itself.
        """
        return self._over(row.path, row)

    def _over(self, path: LogicalPath, row: Row) -> list[Hit[T]]:
        """The rules that speak of a row, or of a node above it."""
        hits = self._walk(path)
        if row.body:
            # A user writes the paths of the model, whatever state it stands in.
            more = self._walk(path, row.body)
            if self._follows and row.mirrors:
                more = [*self._mirrored(path, row), *more]
            # A rule may match at both starts, and counts once.
            known = {hit.number for hit in hits}
            for hit in more:
                if hit.number not in known:
                    hits.append(hit)
        if len(hits) > 1:
            mirrors = is_mirror(row)

            def rank(hit: Hit[T]) -> tuple[object, ...]:
                at_root = int(hit.start == 0)
                return (at_root, hit.rank, hit.end) if mirrors else (hit.rank, at_root, hit.end)

            hits.sort(key=rank, reverse=True)
        return hits

    def _mirrored(self, path: LogicalPath, row: Row) -> Iterator[Hit[T]]:
        """The rules that speak of the param that a row mirrors, from the root: here they speak of the same node."""
        head, body = _param_head(row), row.body or 0
        for hit in self._walk((*head, *path[body:])):
            # Without the head it names as much as if it had been written in the model.
            weight = max(0, hit.weight[0] - len(head)), max(0, hit.weight[1] - len(head))
            end = body + max(0, hit.end - len(head))
            yield hit._replace(start=body, end=end, weight=weight)

    def prefixes(self, path: LogicalPath) -> list[Hit[T]]:
        """The rules whose path ``path`` starts with, the longest first."""
        return self._walk(path)[::-1]

    def along(self, rows: Iterable[Row]) -> Spoken[T]:
        """The rules that speak of each of some rows, by the number of the row.

        Leaves of one node that no rule tells apart share one list.
        """
        heads = self._root.below
        by_row: dict[int, list[Hit[T]]] = {}
        node: LogicalPath | None = None
        start: int | None = None
        shared: list[Hit[T]] = []
        leaves: list[Container[str]] = []
        for number, row in enumerate(rows) if heads else ():
            path, body = row.path, row.body
            # Most rows are spoken of by no rule, and are told by their first segments.
            own = path[body] if body and body < len(path) else path[0]  # a collection may be a leaf
            spoken = path[0] in heads or own in heads
            if not spoken and not (self._follows and row.mirrors.split("/", 1)[0] in heads):
                continue
            above = path[:-1]
            if above != node or body != start:  # leaves of one node stand side by side
                node, start = above, body
                shared = self._over(above, row)
                # The leaves of the node that a rule names, by each way in which it may.
                leaves = [self._below(above)]
                if body:
                    leaves.append(self._below(above[body:]))
                if self._follows and row.mirrors:
                    leaves.append(self._below((*_param_head(row), *above[body or 0 :])))
            apart = any(path[-1] in names for names in leaves)
            hits = self._over(path, row) if apart else shared
            if hits:
                by_row[number] = hits
        return by_row

    def _below(self, path: LogicalPath) -> Container[str]:
        """The names below a node that rules speak of."""
        node = self._root
        for segment in path:
            below = node.below.get(segment)
            if below is None:
                return ()
            node = below
        return node.below

    def matched(self, rows: Iterable[Row]) -> set[int]:
        """The numbers of the rules that speak of any of these rows."""
        numbers: set[int] = set()
        for hits in self.along(rows).values():
            numbers.update(hit.number for hit in hits)
        return numbers

    def _walk(self, path: LogicalPath, start: int = 0) -> list[Hit[T]]:
        """The rules whose path stands in ``path`` at ``start``, the shortest first."""
        node, hits = self._root, list[Hit[T]]()
        for segment in path[start:] if start else path:
            below = node.below.get(segment)
            if below is None:
                break
            node = below
            hits += node.hits
        if start:
            return [hit._replace(start=start, end=start + hit.end) for hit in hits]
        return hits


def standing(table: Layout, paths: Iterable[LogicalPath]) -> set[LogicalPath]:
    """Those of some paths that a row of ``table`` stands at or below."""
    scope = Scope((path, path) for path in paths)
    stand: set[LogicalPath] = set()
    for hits in scope.along(table.rows).values():
        stand.update(hit.rule for hit in hits)
    return stand


def _param_head(row: Row) -> LogicalPath:
    """Where the model stands whose leaf a row mirrors."""
    param = paths.parse_path(row.mirrors)
    names, own = paths.path_names(param), paths.path_names(row.model_path)
    # An optimizer may keep a container for a param, so the row's path may go on below it.
    for start in range(1, len(param)):
        if names[start:] == own[: len(param) - start]:
            return param[:start]
    return ()


def is_mirror(row: Row) -> bool:
    """Whether a row is what an optimizer keeps for a param."""
    return bool(row.mirrors)


def said_paths(table: Layout, far: Layout) -> dict[LogicalPath, LogicalPath]:
    """What a rule calls each leaf of a layout: its path in the model, where that means no other leaf; else its whole path.

    Args:
        table: The layout.
        far: The other side's, whose trees like the weights are called the same or not.
    """
    common = {row.root for row in far.rows if row.is_weight}
    roots: dict[LogicalPath, set[LogicalPath]] = {}
    for row in table.rows:
        if not row.mirrors:
            roots.setdefault(row.model_path, set()).add(row.root)
    said: dict[LogicalPath, LogicalPath] = {}
    for row in table.rows:
        # A path in the model means an average of the weights, too.
        is_alone = len(roots.get(row.model_path, ())) < 2
        said[row.path] = row.model_path if row.root in common and is_alone else row.path
    return said
