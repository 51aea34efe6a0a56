"""The classes that declare a layout, as Python text.

The second step of a text, after ``source`` has settled what is written. The rows of each attribute of the whole
tree are read as branches (``branches``), dims of which numbers alone are known get names (``size_names``), and
classes are written (``python_text``). What an optimizer keeps is no class: ``kept_text`` writes it.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ckpt_schema._frameworks.state_names import USUAL_COLLECTION
from ckpt_schema._layouts import paths
from ckpt_schema._layouts.dims import Dim
from ckpt_schema._layouts.immutable import replaced
from ckpt_schema._layouts.leaves import Leaf
from ckpt_schema._layouts.paths import Index, LogicalPath, Pattern
from ckpt_schema._layouts.precision import open_rows
from ckpt_schema._layouts.presence import may_lack
from ckpt_schema._layouts.table import Layout, Node, Row
from ckpt_schema._source.branches import Branch, Grower
from ckpt_schema._source.class_names import class_name
from ckpt_schema._source.equal_parts import Sharing
from ckpt_schema._source.flat_keys import Placed, holds_levels, parted_rows, separator_of
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
        chains: The transformations of its optimizers, as they are written, by what the text calls them.
        taken: The names that stand for something.
        known: The classes that are written, by what stands in them.
    """

    imports: Imports = dataclasses.field(default_factory=Imports)
    chains: dict[str, str] = dataclasses.field(default_factory=dict[str, str])
    taken: set[str] = dataclasses.field(default_factory=lambda: {"tx", "lens"})
    known: dict[str, str] = dataclasses.field(default_factory=dict[str, str])

    def text(self, blocks: Sequence[str], name: str) -> str:
        """The whole text.

        Raises:
            SchemaError: A class in it, or a name in what `tx` says, cannot be imported.
        """
        chains = [""] if self.chains else []
        for called, expression in self.chains.items():
            self.imports.whole("optax")
            self.imports.expression(expression, "tx")
            chains.append(f"{called} = {expression}")
        faults = self.imports.faults
        if faults:
            raise SchemaError(f"{name} cannot be written as classes", faults)
        top = "\n".join([*self.imports.lines(), *chains])
        return "\n\n\n".join([top, *blocks]) + "\n"


@dataclasses.dataclass(frozen=True, slots=True)
class _Root:
    """An attribute of the class of the whole tree, before anything is written.

    Attributes:
        branch: The attribute.
        rows: Its rows, and their keys: from its own root on, where it is a model.
        is_model: Whether it is a model.
    """

    branch: Branch
    rows: tuple[Placed, ...]
    is_model: bool


class LayoutText:
    """Writes one layout.

    Attributes:
        name: What the class of the whole tree is called.
    """

    def __init__(self, table: Layout, around: Around, chain: str = "") -> None:
        """Reads a layout.

        Args:
            table: The layout.
            around: What it shares with the rest of the text.
            chain: What the text calls the transformation of its optimizer; empty where it has none, and what that keeps is
                written out.
        """
        imports, taken = around.imports, around.taken
        self._chain = chain
        self._separator = _separator(table)
        if self._separator:
            # The classes are nested as in a tree of dicts; that of the whole joins their keys.
            rows: list[Row] = []
            for row, key in parted_rows(_placed(table.rows), 0, self._separator):
                rows.append(replaced(row, key=key))
            table = dataclasses.replace(table, rows=tuple(rows))
        self._table, self._imports = table, imports
        self._states = {path[0]: key for path, key in table.states if len(path) == 1}
        # Whether the whole tree is one model, as a bare tree of weights is.
        self._is_model = all(row.body == 0 for row in table.rows)
        self.name = class_name(table.name)
        while self.name in taken:
            self.name += "_"
        taken |= {self.name, "SIZES", "layout"}
        groups: dict[str, list[Row]] = {}
        for row in table.rows:
            groups.setdefault(row.path[0], []).append(row)
        self._kept: dict[str, list[Row]] = {name: [] for name in self._states}
        for name, of_name in groups.items():
            if of_name[0].optimizer:
                self._kept[name] = of_name
        self._trained = self._trained_models(groups)
        self._order = self._attribute_order(groups)
        self._roots = self._read(groups)
        self._sizes = SizeNames({}, {}, {}, {})
        # A layout that was read off a tree has numbers alone; a declared one keeps its own names.
        if not table.names():
            self._sizes = guessed_names(self._models())
            self._roots = [self._with_names(root) for root in self._roots]
        branches: list[Branch] = []
        models: list[Branch] = []
        for root in self._roots:
            branches.append(root.branch)
            if root.is_model:
                models.append(root.branch)
        self.writer = ClassWriter(
            Sharing(branches),
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
            models=models,
        )

    def _attribute_order(self, groups: Iterable[str]) -> Sequence[str]:
        """The attributes as the tree has them, but that what an optimizer keeps comes after the model it is of.

        Args:
            groups: Those that have rows. A state that keeps nothing has none, and stands all the same.
        """
        names = list(dict.fromkeys((*groups, *self._states)))
        awaited = {name for name in self._trained if name in names}
        order: list[str] = []
        held: list[str] = []
        for name in names:
            if name in self._kept and awaited:
                held.append(name)
                continue
            order.append(name)
            awaited.discard(name)
            if not awaited:
                order += held
                held = []
        return [*order, *held]

    def _trained_models(self, groups: Mapping[str, Sequence[Row]]) -> set[str]:
        """The names of the models that optimizer states are of.

        Args:
            groups: The rows of each attribute of the whole tree.
        """
        kept = itertools.chain.from_iterable(self._kept.values())
        names = _mirrored(kept)
        if self._kept and not names:
            # A state that keeps nothing for a param, as plain SGD's, names no model: it is of the first.
            for name, rows in groups.items():
                if rows[0].body is not None and name not in self._kept:
                    return {name}
            return {""}
        return names

    def _models(self) -> list[Branch]:
        """The models of the whole tree, which may be one itself: then without a name."""
        if self._is_model:
            return [Branch("", children=tuple([root.branch for root in self._roots]))]
        return [root.branch for root in self._roots if root.is_model]

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
        """The same with names for dims, where it is a model or a part of one: a step counter has no sizes to tell."""
        if not root.is_model and not self._is_model:
            return root
        branch, named = root.branch, self._sizes.named
        if self._is_model:
            return dataclasses.replace(root, branch=named(branch))
        # Paths of counts begin below the model: what stands at one path in two models is one thing.
        children = tuple([named(child) for child in branch.children])
        return dataclasses.replace(root, branch=replaced(branch, children=children))

    def _read(self, groups: Mapping[str, Sequence[Row]]) -> list[_Root]:
        """The attributes of the whole tree, without what optimizers keep."""
        is_nnx = self._table.container == "nnx"
        roots: list[_Root] = []
        for name, rows in groups.items():
            if name in self._kept:
                continue
            if not self._is_model and rows[0].body is not None:
                roots.append(self._model(name, rows))
                continue
            # What is beside models, a step counter; or all of a tree that is one model.
            usual = ("Variable", "RngKey") if is_nnx else ("", "")
            placed = _placed(rows)
            for branch in Grower(self._imports, usual).grow(placed):
                roots.append(_Root(branch, tuple(placed), False))
        return roots

    def _model(self, name: str, rows: Sequence[Row]) -> _Root:
        """One model of the whole tree."""
        is_nnx = self._table.container == "nnx"
        usual = ("Param", "RngKey") if is_nnx else (USUAL_COLLECTION, USUAL_COLLECTION)
        heads = _heads(rows, one=is_nnx)
        # The field of the model has the keys to its collections; below it, keys begin anew.
        placed: list[Placed] = []
        for row in rows:
            head = heads[None if is_nnx else row.kind]
            placed.append((row, row.key[len(head) :]))
        separator = separator_of(placed, 1, 0)
        parted = parted_rows(placed, 0, separator) if separator else placed
        children = Grower(self._imports, usual).grow(parted, 1)
        said = tuple(self._model_key(name, heads))
        branch = Branch(name, said, children=children, separator=separator)
        return _Root(branch, tuple(placed), True)

    def _model_key(self, name: str, heads: Mapping[Any, Pattern]) -> Iterator[tuple[str, str]]:
        """How the key of a model is written, of each of its collections if they stand apart.

        Args:
            name: The attribute.
            heads: The key path of each collection; of Variables, that of all, under None.
        """
        kind, head = next(iter(heads.items()))
        is_alone = len(heads) == 1 and kind in (None, USUAL_COLLECTION)
        # Params of Linen of which no optimizer is stand in a dict of variables, in which others may be.
        is_nnx = self._table.container == "nnx"
        if is_alone and (is_nnx or name in self._trained or not head):
            text = paths.format_path(head)
            if text != name:
                yield "key", quoted(text)
            return
        apart: list[str] = []
        for kind, head in heads.items():
            if head != (kind,):
                where = quoted(paths.format_path(head))
                apart.append(f"{quoted(kind or USUAL_COLLECTION)}: {where}")
        # All others stand under their own names.
        if len(apart) < len(heads):
            apart.append('...: "{collection}"')
        yield "key", f"{{{', '.join(apart)}}}"

    def classes(self) -> Iterator[str]:
        """The class statements, that of the whole tree last."""
        self.writer.settle_names([root.branch for root in self._roots])
        for root in self._roots:
            yield from self.writer.classes(root.branch, self.writer.dims(root.branch))
        if not self._order:  # a model without a leaf
            yield "class Nothing(cs.Schema):\n    pass"
        lines = [f"class {self.name}({', '.join(self._bases())}):"]
        # A tree that is one model is written as any class is, its numbered attributes as lists.
        if self._is_model:
            attributes: list[Branch] = []
            own: list[Dim] = []
            for root in self._roots:
                attributes.append(root.branch)
                own += self.writer.dims(root.branch)
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

    def _bases(self) -> Iterator[str]:
        """What stands between the brackets of the class of the whole tree."""
        if self._table.container == "nnx":
            yield "cs.nnx.State"
        elif self._is_plain or not self._order:
            yield "cs.Plain"
        else:
            yield "cs.Schema"
        # Else a layout is called as its class.
        if self.name != self._table.name:
            yield f"name={quoted(self._table.name)}"
        if self._separator:
            yield f"joined={quoted(self._separator)}"
        items = container_items(self._outer_nodes(), (), self._imports, [()])
        if items:
            yield f"containers={mapping(items, 0)}"

    def _with_collections(self, branch: Branch, dims: Sequence[Dim]) -> Branch:
        """A model of params alone, with a key for the other collections that blocks in it speak of."""
        if self._side() != "linen":
            return branch
        if not any(fit.has_collections for _, fit in self.writer.fits(branch, dims)):
            return branch
        said = dict(branch.said)
        key = said.get("key", quoted(branch.name))
        said["key"] = f'{{"{USUAL_COLLECTION}": {key}, ...: "{{collection}}"}}'
        return replaced(branch, said=tuple(said.items()))

    def _outer_nodes(self) -> list[Node]:
        """The containers that are in no state: of those in one, its own line tells."""
        nodes: list[Node] = []
        for node in self._table.nodes:
            if not any(node.key[: len(home)] == home for home in self._states.values()):
                nodes.append(node)
        return nodes

    def _kept_line(self, name: str) -> str:
        """The line of what an optimizer keeps."""
        rows = self._kept[name]
        models = _mirrored(rows) or self._trained
        root = next(root for root in self._roots if root.branch.name in models)
        home = self._states[name]
        where = paths.format_path(home)
        if self._chain:
            arguments = f"of={quoted(root.branch.name)}"
            arguments += "" if where == name else f", key={quoted(where)}"
            return f"{name}: cs.OptState = cs.optimizer({self._chain}, {arguments})"
        params: dict[LogicalPath, Placed] = {}
        others: dict[LogicalPath, Placed] = {}
        # Where no leaf has a collection or a Variable type, all are trained.
        has_kinds = root.rows[0][0].kind is not None
        for row, key in root.rows:
            is_trained = not has_kinds or row.kind == USUAL_COLLECTION or _is_param(row.kind)
            (params if is_trained else others)[row.path[1:]] = row, key
        model = TrainedModel(root.branch.name, params, others)
        text = KeptText(model, self._imports, self._annotation)
        said = text.arguments(rows, self._table.nodes, home, None if where == name else where)
        return f"{name}: cs.OptState = {call('cs.kept', said)}"

    def _annotation(self, leaf: Leaf) -> str:
        """The annotation of a leaf that an optimizer keeps, its sizes called as in the model."""
        dims = tuple([self._sizes.axis(dim) for dim in leaf.dims])
        return self.writer.annotation(dataclasses.replace(leaf, dims=dims, names=()))

    def last_lines(self, layout: str = "layout", sizes: str = "SIZES") -> list[str]:
        """The sizes of all dims, and the layout at these."""
        lines: list[str] = []
        arguments = [self.name]
        if self._sizes.sizes:
            lines.append(f"{sizes} = {{")
            for name, size in self._sizes.sizes.items():
                # What is to be doubted of a name stands beside it, for who reads the text to mend.
                doubt = self._sizes.doubts.get(name)
                lines.append(f"    {quoted(name)}: {size},{f'  # {doubt}' if doubt else ''}")
            lines.append("}")
            arguments.append(f"dims={sizes}")
        arguments += self._of_blocks()
        return [*lines, f"{layout} = {bracketed('cs.layout(', arguments, ')', 0)}"]

    def _of_blocks(self) -> Iterator[str]:
        """What the layout says of all its blocks: of which floats they are, and what they have."""
        present: list[LogicalPath] = []
        absent: list[LogicalPath] = []
        open_leaves: dict[LogicalPath, None] = {}
        for root in self._roots:
            for path, fit in self.writer.fits(root.branch, self.writer.dims(root.branch)):
                for inner in fit.open_leaves:
                    open_leaves[*path, *inner] = None
                for inner in fit.present:
                    present.append((*path, *inner))
                for inner in fit.absent:
                    absent.append((*path, *inner))
        if open_leaves:
            rows = {row.path: row for row in self._table.rows}
            dtypes = {path: rows[path].leaf.dtype for path in open_leaves}
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
    # Of several globs the one that names more of a path decides: this one where no other does.
    globs = {"**": quoted(usual)}
    for dtype in others:
        rest = [path for path, other in dtypes.items() if other != dtype]
        globs |= dict.fromkeys(globs_of(groups[dtype], rest), quoted(dtype))
    return mapping(globs, 4)


def _mirrored(rows: Iterable[Row]) -> set[str]:
    """The names of the models that leaves of optimizer states stand for."""
    names: set[str] = set()
    for row in rows:
        if row.mirrors:
            names.add(row.mirrors.split("/")[0])
    return names


def _is_param(kind: Any) -> bool:
    """Whether a leaf is a Param of NNX, or of a class below that: told by its name, without importing NNX."""
    return isinstance(kind, type) and any(base.__name__ == "Param" for base in kind.__mro__)


def _heads(rows: Sequence[Row], *, one: bool) -> dict[Any, Pattern]:
    """The key path below which the leaves of each collection stand; of Variables, those of all."""
    if one:
        return {None: _head(rows)}
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.kind, []).append(row)
    return {kind: _head(group) for kind, group in groups.items()}


def _head(rows: Sequence[Row]) -> Pattern:
    """What the keys of rows of one model begin with: ``model/params`` where all are below it."""
    first = rows[0].key
    end = min([len(row.key) - _segments(row) for row in rows])
    # Keys that are whole key paths joined: the last segment is the model's, and what is before it the head.
    if end <= 0 and all(holds_levels(row.key, _segments(row)) for row in rows):
        end = min([len(row.key) for row in rows]) - 1
    # A key that is spelled longer than its path leaves too much: the head ends where keys part.
    while end > 0 and any(row.key[:end] != first[:end] for row in rows):
        end -= 1
    return first[: max(end, 0)]


def _segments(row: Row) -> int:
    """How many segments of a key a path in a model takes, if all are spelled as they are called."""
    if not row.repeats:  # and no symbols, then
        return len(row.path) - 1
    segments = len(row.path) - 1
    for segment in row.key:
        # `layers/{i}` has a segment more than the path's `layers[]`; `layers_{i}` has not.
        if isinstance(segment, Index) and not segment.prefix and not segment.suffix:
            segments += 1
    return segments


def _stack_axes(table: Layout) -> Iterator[int]:
    """The axes that layers are stacked on."""
    for row in table.rows:
        for repeat in row.repeats:
            if repeat.axis is not None:
                yield repeat.axis


def _separator(table: Layout) -> str:
    """What joins the segments of all paths to one key, as in flat files; empty where nothing does."""
    depths: list[int] = []
    for row in table.rows:
        if len(row.key) != 1:  # as of nearly all
            return ""
        depths.append(row.body or 0)
    return separator_of(_placed(table.rows), min(depths, default=0), 0)


def _placed(rows: Sequence[Row]) -> list[Placed]:
    """Rows with their whole keys."""
    return [(row, row.key) for row in rows]
