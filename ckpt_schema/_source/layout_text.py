"""The classes that declare a layout, as Python text."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ckpt_schema._frameworks.state_names import USUAL_COLLECTION
from ckpt_schema._layouts import paths
from ckpt_schema._layouts.dims import Dim
from ckpt_schema._layouts.immutable import replaced
from ckpt_schema._layouts.paths import Index, LogicalPath, Pattern
from ckpt_schema._layouts.precision import open_rows
from ckpt_schema._layouts.presence import may_lack
from ckpt_schema._layouts.table import Layout, Node, Row
from ckpt_schema._source.branches import Branch, Grower
from ckpt_schema._source.class_names import class_name
from ckpt_schema._source.equal_parts import Sharing
from ckpt_schema._source.flat_keys import Placed, holds_levels, parted_key, separator_of
from ckpt_schema._source.importing import Imports, quoted
from ckpt_schema._source.kept_text import KeptText, TrainedModel, container_items
from ckpt_schema._source.python_text import ClassWriter, bracketed, call, mapping
from ckpt_schema._source.ready_blocks import BlockKind, ReadyBlocks, globs_of
from ckpt_schema._source.size_names import SizeNames, guessed_names
from ckpt_schema.errors import SchemaError

__all__ = ["Around", "LayoutText"]


@dataclasses.dataclass(frozen=True, slots=True)
class Around:
    """What the layouts of one text share.

    Attributes:
        imports: Its imports.
        tx: The transformation of its optimizers, as it is written.
        taken: The names that stand for something.
        known: The classes that are written, by what stands in them.
    """

    imports: Imports = dataclasses.field(default_factory=Imports)
    tx: str = ""
    taken: set[str] = dataclasses.field(default_factory=lambda: {"tx", "lens"})
    known: dict[str, str] = dataclasses.field(default_factory=dict[str, str])

    def text(self, blocks: Sequence[str], name: str) -> str:
        """The whole text.

        Raises:
            SchemaError: A class in it cannot be imported.
        """
        faults = self.imports.faults
        if faults:
            raise SchemaError(f"{name} cannot be written as classes", faults)
        tx: list[str] = []
        if self.tx:
            self.imports.whole("optax")
            tx.append(f"tx = {self.tx}")
        return (
            "\n\n\n".join(["\n".join([*self.imports.lines(), *([""] if tx else []), *tx]), *blocks])
            + "\n"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class _Root:
    """An attribute of the class of the whole tree, before anything is written."""

    branch: Branch
    rows: tuple[Placed, ...]
    is_model: bool


class LayoutText:
    """Writes one layout.

    Attributes:
        name: What the class of the whole tree is called.
    """

    def __init__(self, table: Layout, around: Around) -> None:
        """Reads a layout.

        Args:
            table: The layout.
            around: What it shares with the rest of the text.
        """
        imports, taken = around.imports, around.taken
        self._tx = around.tx
        self._separator = _separator(table)
        if self._separator:
            sep = self._separator
            rows = (replaced(row, key=parted_key(row.key, 0, sep)) for row in table.rows)
            table = dataclasses.replace(table, rows=tuple(rows))
        self._table, self._imports = table, imports
        self._states = {path[0]: key for path, key in table.states if len(path) == 1}
        self._is_model = all(row.body == 0 for row in table.rows)
        self.name = class_name(table.name)
        while self.name in taken:
            self.name += "_"
        taken |= {self.name, "SIZES", "layout"}
        groups: dict[str, list[Row]] = collections.defaultdict(list)
        for row in table.rows:
            groups[row.path[0]].append(row)
        # A state that keeps nothing has no rows, and stands all the same.
        self._order = list(dict.fromkeys((*groups, *self._states)))
        self._kept = {name: groups[name] for name in groups if groups[name][0].optimizer}
        self._kept |= {name: [] for name in self._states if name not in self._kept}
        mirrored = [row.mirrors for rows in self._kept.values() for row in rows if row.mirrors]
        self._trained = {path.split("/")[0] for path in mirrored}
        if self._kept and not mirrored:  # of what keeps nothing for a param
            models = (n for n, r in groups.items() if r[0].body is not None and n not in self._kept)
            self._trained = {next(models, "")}
        self._roots = self._read({n: rows for n, rows in groups.items() if n not in self._kept})
        models = [root for root in self._roots if root.is_model]
        if self._is_model:
            models = [_Root(Branch("", children=tuple(r.branch for r in self._roots)), (), True)]
        self._sizes = SizeNames({}, {}, {}, {})
        if not table.names():
            self._sizes = guessed_names([root.branch for root in models])
            self._roots = [self._with_names(root) for root in self._roots]
        sharing = Sharing([root.branch for root in self._roots])
        self.writer = ClassWriter(
            sharing,
            imports,
            self._sizes.sizes,
            taken,
            around.known,
            self.name,
            ready=ReadyBlocks(
                self._side(),
                tells_dtypes=not open_rows(self._table),
                tells_presence=not any(map(may_lack, self._table.rows)),
                axes=frozenset(_stack_axes(self._table)),
            ),
            models=[root.branch for root in self._roots if root.is_model],
        )

    def _side(self) -> BlockKind:
        """What the leaves of blocks are in this layout."""
        if self._table.container == "nnx":
            return "nnx"
        if self._is_model:
            return "bare"
        return "plain" if self._is_plain else "linen"

    @property
    def _is_plain(self) -> bool:
        """Whether models in it tell of no framework."""
        return any(root.is_model and root.rows[0][0].kind is None for root in self._roots)

    def _with_names(self, root: _Root) -> _Root:
        if not root.is_model and not self._is_model:
            return root
        branch, named = root.branch, self._sizes.named
        if self._is_model:
            return dataclasses.replace(root, branch=named(branch))
        children = tuple([named(child) for child in branch.children])
        return dataclasses.replace(root, branch=replaced(branch, children=children))

    def _read(self, groups: Mapping[str, Sequence[Row]]) -> list[_Root]:
        nnx = self._table.container == "nnx"
        roots: list[_Root] = []
        for name, rows in groups.items():
            if self._is_model or rows[0].body is None:
                usual = ("Variable", "RngKey") if nnx else ("", "")
                placed = [(row, row.key) for row in rows]
                branches = Grower(self._imports, usual).grow(placed)
                roots += (_Root(branch, tuple(placed), False) for branch in branches)
                continue
            usual = ("Param", "RngKey") if nnx else (USUAL_COLLECTION, USUAL_COLLECTION)
            heads = _heads(rows, one=nnx)
            starts = {kind: len(head) for kind, head in heads.items()}
            placed = [(row, row.key[starts[None if nnx else row.kind] :]) for row in rows]
            separator = separator_of(placed, 1, 0)
            parted = placed
            if separator:
                parted = [(row, parted_key(key, 0, separator)) for row, key in placed]
            children = Grower(self._imports, usual).grow(parted, 1)
            said = tuple(self._model_key(name, heads))
            branch = Branch(name, said, children=children, separator=separator)
            roots.append(_Root(branch, tuple(placed), True))
        return roots

    def _model_key(self, name: str, heads: Mapping[Any, Pattern]) -> Iterator[tuple[str, str]]:
        """How the key of a model is written, of each of its collections if they stand apart."""
        is_trained = name in self._trained
        one = next(iter(heads.values()))
        if (
            len(heads) == 1
            and next(iter(heads)) in (None, USUAL_COLLECTION)
            and (is_trained or not one)
        ):
            text = paths.format_path(one)
            if text != name:
                yield "key", quoted(text)
            return
        if all(head == (kind,) for kind, head in heads.items()):
            yield "key", '{...: "{collection}"}'
            return
        apart = {kind or USUAL_COLLECTION: head for kind, head in heads.items() if head != (kind,)}
        items = [
            f"{quoted(kind)}: {quoted(paths.format_path(head))}" for kind, head in apart.items()
        ]
        if len(apart) < len(heads):
            items.append('...: "{collection}"')
        yield "key", f"{{{', '.join(items)}}}"

    def classes(self) -> Iterator[str]:
        """The class statements, that of the whole tree last."""
        self.writer.settle_names([root.branch for root in self._roots])
        for root in self._roots:
            yield from self.writer.classes(root.branch, self.writer.dims(root.branch))
        base = "cs.Schema"
        if not self._order:  # a model without a leaf
            base = "cs.Plain"
            yield "class Nothing(cs.Schema):\n    pass"
        if self._table.container == "nnx":
            base = "cs.nnx.State"
        elif self._is_plain:
            base = "cs.Plain"
        arguments = [base]
        if self.name != self._table.name:
            arguments.append(f"name={quoted(self._table.name)}")
        if self._separator:
            arguments.append(f"joined={quoted(self._separator)}")
        items = container_items(self._outer_nodes(), (), self._imports, [()])
        if items:
            arguments.append(f"containers={mapping(items, 0)}")
        lines = [f"class {self.name}({', '.join(arguments)}):"]
        if self._is_model:
            attributes = [root.branch for root in self._roots]
            own = [dim for branch in attributes for dim in self.writer.dims(branch)]
            lines += self.writer.attributes(attributes, own)
        used: set[str] = set()
        by_name = {root.branch.name: root for root in self._roots}
        for name in () if self._is_model else self._order:
            root = by_name.get(name.removesuffix("[]"))
            if name in self._kept:
                lines.append("    " + self._kept_line(name))
            elif root is not None:
                dims = self.writer.dims(root.branch)
                branch = root.branch
                if root.is_model and not dict(branch.said).get("key", "").startswith("{"):
                    branch = self._with_collections(root.branch, dims)
                lines.append("    " + self.writer.attribute(branch, dims, used))
        if not self._order:
            lines.append('    params: Nothing = cs.field(key="")')
        yield "\n".join(lines)

    def _with_collections(self, branch: Branch, dims: Sequence[Dim]) -> Branch:
        """A model of params alone, with a key for the other collections that blocks in it speak of."""
        if self._side() != "linen":
            return branch
        if not any(fit.has_collections for _, fit in self.writer.fits(branch, dims)):
            return branch
        said = dict(branch.said)
        own = said.get("key", quoted(branch.name))
        said["key"] = f'{{"{USUAL_COLLECTION}": {own}, ...: "{{collection}}"}}'
        return replaced(branch, said=tuple(said.items()))

    def _outer_nodes(self) -> list[Node]:
        homes = [*self._states.values()]
        return [
            node
            for node in self._table.nodes
            if not any(node.key[: len(home)] == home for home in homes)
        ]

    def _kept_line(self, name: str) -> str:
        rows = self._kept[name]
        mirrored = {row.mirrors.split("/")[0] for row in rows if row.mirrors} or self._trained
        of = next(root for root in self._roots if root.branch.name in mirrored)
        kind = of.rows[0][0].kind
        params: dict[Any, Placed] = {}
        others: dict[Any, Placed] = {}
        for row, key in of.rows:
            trained = kind is None or row.kind == USUAL_COLLECTION or _is_param(row.kind)
            (params if trained else others)[row.path[1:]] = row, key
        home = self._states[name]
        where = paths.format_path(home)
        key = [] if where == name else [("key", quoted(where))]
        if self._tx:
            arguments = ", ".join(f"{n}={v}" for n, v in [("of", quoted(of.branch.name)), *key])
            return f"{name}: cs.OptState = cs.optimizer(tx, {arguments})"
        text = KeptText(
            TrainedModel(of.branch.name, params, others), self._imports, self._annotation
        )
        said = text.arguments(rows, self._table.nodes, home, None if where == name else where)
        return f"{name}: cs.OptState = {call('cs.kept', said)}"

    def _annotation(self, leaf: Any) -> str:
        dims: list[Dim] = [self._sizes.axis(dim) for dim in leaf.dims]
        return self.writer.annotation(dataclasses.replace(leaf, dims=tuple(dims), names=()))

    def last_lines(self, layout: str = "layout", sizes: str = "SIZES") -> list[str]:
        """The sizes of all dims, and the layout at these."""
        lines: list[str] = []
        said = [*self._of_blocks()]
        if self._sizes.sizes:
            lines.append(f"{sizes} = {{")
            for name, size in self._sizes.sizes.items():
                doubt = self._sizes.doubts.get(name)
                lines.append(f"    {quoted(name)}: {size},{f'  # {doubt}' if doubt else ''}")
            lines.append("}")
            said.insert(0, f"dims={sizes}")
        return [*lines, f"{layout} = {bracketed('cs.layout(', [self.name, *said], ')', 0)}"]

    def _of_blocks(self) -> Iterator[str]:
        """What the layout says of all its blocks: of which floats they are, and what they have."""
        dtypes: dict[LogicalPath, str] = {}
        present: list[LogicalPath] = []
        absent: list[LogicalPath] = []
        rows = {row.path: row for row in self._table.rows}
        for root in self._roots:
            for path, fit in self.writer.fits(root.branch, self.writer.dims(root.branch)):
                dtypes |= {(*path, *own): rows[*path, *own].leaf.dtype for own in fit.open_leaves}
                present += [(*path, *own) for own in fit.present]
                absent += [(*path, *own) for own in fit.absent]
        if dtypes:
            yield f"dtype={_dtype_text(dtypes)}"
        if present or absent:
            yield f"has={bracketed('[', map(quoted, globs_of(present, absent)), ']', 4)}"


def _dtype_text(dtypes: Mapping[LogicalPath, str]) -> str:
    """The dtypes of leaves as ``dtype=`` says them: the usual one of all, and of the others by globs."""
    groups: dict[str, list[LogicalPath]] = collections.defaultdict(list)
    for path, dtype in dtypes.items():
        groups[dtype].append(path)
    usual, *others = sorted(groups, key=lambda dtype: -len(groups[dtype]))
    if not others:
        return quoted(usual)
    said = {"**": quoted(usual)}
    for dtype in others:
        rest = [path for path, other in dtypes.items() if other != dtype]
        said |= dict.fromkeys(globs_of(groups[dtype], rest), quoted(dtype))
    return mapping(said, 4)


def _is_param(kind: Any) -> bool:
    return isinstance(kind, type) and any(base.__name__ == "Param" for base in kind.__mro__)


def _heads(rows: Sequence[Row], *, one: bool) -> dict[Any, Pattern]:
    """The key path below which the leaves of each collection stand; of Variables, those of all."""
    groups: dict[Any, list[Row]] = collections.defaultdict(list)
    for row in rows:
        groups[None if one else row.kind].append(row)
    return {kind: _head(group) for kind, group in groups.items()}


def _head(rows: Sequence[Row]) -> Pattern:
    first = rows[0].key
    end = min(len(row.key) - _segments(row) for row in rows)
    if end <= 0 and all(holds_levels(row.key, _segments(row)) for row in rows):
        end = min(len(row.key) for row in rows) - 1
    while end > 0 and any(row.key[:end] != first[:end] for row in rows):
        end -= 1
    return first[: max(end, 0)]


def _segments(row: Row) -> int:
    """How many segments of a key a path in a model takes, if all are spelled as they are called."""
    if not row.repeats:  # and no symbols, then
        return len(row.path) - 1
    bare = [s for s in row.key if isinstance(s, Index) and not s.prefix and not s.suffix]
    return len(row.path) - 1 + len(bare)


def _stack_axes(table: Layout) -> Iterator[int]:
    """The axes that layers are stacked on."""
    for row in table.rows:
        yield from (repeat.axis for repeat in row.repeats if repeat.axis is not None)


def _separator(table: Layout) -> str:
    """What joins the segments of all paths to one key, as in flat files; empty where nothing does."""
    if any(len(row.key) != 1 for row in table.rows):  # as of nearly all
        return ""
    bodies = {row.body or 0 for row in table.rows}
    placed = [(row, row.key) for row in table.rows]
    return separator_of(placed, min(bodies, default=0), 0)
