"""Classes as Python text: annotations, fields, class statements.

The last step of a text: branches (``branches``) that are equal but for sizes are one class (``equal_parts``), a layer
of Flax is its block (``ready_blocks``), what counts from 0 is a list (``mixed_lists_text``), and of the rest each class
is written after those that it is made of, under a name of ``class_names``.
"""

from __future__ import annotations

import ast
import keyword
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jaxtyping

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts.dims import Dim
from ckpt_schema._layouts.leaves import Leaf
from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._source.branches import Branch
from ckpt_schema._source.class_names import ClassNames
from ckpt_schema._source.equal_parts import SharedClass, Sharing
from ckpt_schema._source.importing import Imports, quoted
from ckpt_schema._source.mixed_lists_text import item_key, items_text, numbered_runs
from ckpt_schema._source.ready_blocks import BlockFit, ReadyBlocks
from ckpt_schema._source.size_names import identifier
from ckpt_schema.errors import Mismatch

__all__ = ["ClassWriter", "bracketed", "call", "mapping"]

_WIDTH = 100
"""How long a line may be."""

_DTYPES = {"bfloat16": "BFloat16", "bool": "Bool"}
"""What jaxtyping calls dtypes, where that is not the name with a capital."""


def call(function: str, arguments: Sequence[tuple[str, str]], indent: int = 4) -> str:
    """A call with keyword arguments, on one line where it fits.

    Example:
        >>> call("cs.field", [("length", '"depth"')])
        'cs.field(length="depth")'
    """
    return bracketed(f"{function}(", [f"{name}={value}" for name, value in arguments], ")", indent)


def bracketed(start: str, several: Iterable[str], end: str, indent: int, beside: int = 0) -> str:
    """What is written between brackets, on one line where it fits.

    Args:
        start: What opens them.
        several: What is between them.
        end: What closes them.
        indent: Where its line begins.
        beside: How much of the line is for what stands around it.

    Example:
        >>> bracketed("[", ['"a"', '"b"'], "]", 4)
        '["a", "b"]'
    """
    written = [*several]
    line = f"{start}{', '.join(written)}{end}"
    if indent + len(line) <= _WIDTH - beside and "\n" not in line:
        return line
    lines = [start]
    for text in written:
        lines.append(f"{' ' * (indent + 4)}{text},")
    return "\n".join([*lines, f"{' ' * indent}{end}"])


def mapping(items: Mapping[str, str], indent: int = 8, beside: int = 20) -> str:
    """A dict from strings to what is written for them.

    Args:
        items: What is in it.
        indent: Where its line begins.
        beside: How much of the line is for what stands around it.
    """
    written = [f"{quoted(name)}: {value}" for name, value in items.items()]
    return bracketed("{", written, "}", indent, beside)


class _Total(NamedTuple):
    """What attributes have together.

    Attributes:
        leaves: How many leaves, those of streams too.
        elements: How many elements, those of streams not counted; None where a size is not known.
        is_whole: Whether the length of each list is known; else each counts with one item.
    """

    leaves: int
    elements: int | None
    is_whole: bool


class ClassWriter:
    """Writes classes, each after those that it is made of."""

    def __init__(
        self,
        sharing: Sharing,
        imports: Imports,
        sizes: Mapping[str, int],
        taken: set[str],
        known: dict[str, str],
        root: str = "",
        *,
        ready: ReadyBlocks | None = None,
        models: Sequence[Branch] = (),
    ) -> None:
        """Has written nothing.

        Args:
            sharing: The classes.
            imports: Where imports are noted.
            sizes: The sizes of dims that are known, for docstrings.
            taken: Names that no class may have.
            known: The classes that are written already, by what stands in them; these are added.
            root: What the class of the whole tree is called.
            ready: The blocks that stand in the place of classes; none unless given.
            models: What has a class of its own, whatever is in it.
        """
        self._sharing, self._imports, self._sizes = sharing, imports, sizes
        self._names: dict[int, str] = {}
        # What equal parts have, and whether they count from 0, by their identity.
        self._totals: dict[tuple[int, tuple[Dim, ...]], _Total] = {}
        self._numbered: dict[int, bool] = {}
        # The blocks in each class, by its shape.
        self._fits: dict[int, list[tuple[LogicalPath, BlockFit]]] = {}
        self._written: set[str] = set()  # these names
        self._known = known
        self._ready = ready
        # The models are kept, so that nothing else has the identity of what is in them.
        self._models = models
        self._of_models = {id(model.children) for model in models}
        # In the body of a class that has an attribute of its name, a class could not be spoken of.
        self._attributes: set[str] = set()
        for shared in sharing.classes.values():
            self._attributes.update([child.name for child in shared.children])
        self._class_names = ClassNames(sharing, taken, self._attributes, root)

    def dims(self, branch: Branch) -> tuple[Dim, ...]:
        """Every dim of an attribute, see `Sharing`."""
        return self._sharing.dims(branch)

    def name(self, branch: Branch) -> str:
        """The name of the class below an attribute."""
        return self._names[self._sharing.shape(branch)]

    def settle_names(self, roots: Sequence[Branch]) -> None:
        """Settles which of the classes below some attributes have the names that several could have.

        Args:
            roots: The attributes of the class of the whole tree.
        """
        met: dict[int, SharedClass] = {}
        for root in roots:
            self._note_classes(root, self.dims(root), met)
        # What may be a list of items has no class, and contends for no name.
        named = [shared for shared in met.values() if not self._may_be_items(shared.first[-1])]
        self._class_names.settle(named)

    def _note_classes(
        self, branch: Branch, dims: Sequence[Dim], met: dict[int, SharedClass]
    ) -> None:
        """Notes each class that `classes` would write, after those that it is made of."""
        if branch.leaf is not None or branch.stream:
            return
        number = self._sharing.shape(branch)
        if number in met or self.fit(branch, dims) is not None:
            return
        shared = self._sharing.shared(branch)
        for child, own in self._with_dims(shared.children, shared.own):
            self._note_classes(child, own, met)
        met[number] = shared

    def fit(self, branch: Branch, dims: Sequence[Dim]) -> BlockFit | None:
        """The block in the place of the class below an attribute, whose dims the class around it calls so."""
        if self._ready is None or self._is_model(branch):
            return None
        # The first dim of what is repeated is how often.
        return self._ready.fit(branch, dims if branch.count is None else dims[1:])

    def _is_model(self, branch: Branch) -> bool:
        """Whether an attribute is a model. It is told by its children, for its field may say more by now."""
        return id(branch.children) in self._of_models

    def fits(
        self, branch: Branch, dims: Sequence[Dim], above: LogicalPath = ()
    ) -> Iterator[tuple[LogicalPath, BlockFit]]:
        """The blocks in and below an attribute, each at its logical path."""
        if branch.leaf is not None or branch.stream:
            return
        here = (*above, branch.name + ("" if branch.count is None else "[]"))
        fit = self.fit(branch, dims)
        if fit is not None:
            yield here, fit
            return
        for inner, inner_fit in self._fits_within(branch):
            yield (*here, *inner), inner_fit

    def _fits_within(self, branch: Branch) -> Sequence[tuple[LogicalPath, BlockFit]]:
        """The blocks below an attribute, each at its logical path from there: the same in all places of a class."""
        shape = self._sharing.shape(branch)
        within = self._fits.get(shape)
        if within is None:
            within = self._fits[shape] = []
            shared = self._sharing.shared(branch)
            for child, own in self._with_dims(branch.children, shared.own):
                within.extend(self.fits(child, own))
        return within

    def _with_dims(
        self, children: Sequence[Branch], own: Sequence[Dim]
    ) -> Iterator[tuple[Branch, Sequence[Dim]]]:
        """The attributes of a class, each with what the class calls its dims."""
        start = 0
        for child in children:
            end = start + len(self.dims(child))
            yield child, own[start:end]
            start = end

    def classes(self, branch: Branch, dims: Sequence[Dim]) -> Iterator[str]:
        """The class of an attribute, and before it those that it is made of, as far as they are not written yet.

        Args:
            branch: The attribute.
            dims: What the class around it calls its dims.
        """
        if branch.leaf is not None or branch.stream:
            return
        number = self._sharing.shape(branch)
        if number in self._names and not self._may_be_items(branch):
            return
        if self.fit(branch, dims) is not None:
            return
        shared = self._sharing.shared(branch)
        # First those that it is made of: its own text has their names.
        for child, own in self._with_dims(shared.children, shared.own):
            yield from self.classes(child, own)
        # Of a list of items only the items have classes.
        if number in self._names or self._own_items(branch):
            return
        lines = [f'    """{self._counts(shared)}"""', ""]
        bases = "(cs.Schema):"
        if shared.separator:
            bases = f"(cs.Schema, joined={quoted(shared.separator)}):"
        body = "\n".join([bases, *lines, *self.attributes(shared.children, shared.own)])
        # Two layouts of one lens may have a class in common, to the letter.
        known = self._known.get(body)
        if known is not None and known not in self._attributes:
            self._names[number] = known
            self._written.add(known)
            return
        name = self._names[number] = self._known[body] = self._class_names.name(shared)
        self._written.add(name)
        yield f"class {name}{body}"

    def attributes(self, children: Sequence[Branch], own: Sequence[Dim]) -> Iterator[str]:
        """The lines of the attributes of a class, whose dims it calls so."""
        used: set[str] = set()
        dims: dict[int, Sequence[Dim]] = {}
        for child, of_child in self._with_dims(children, own):
            dims[id(child)] = of_child
        for stem, run in numbered_runs(children):
            pairs = [(child, dims[id(child)]) for child in run]
            named = self._item_classes(pairs)
            # Where the first says more than its class, a line for each says what.
            if named and stem and not run[0].said:
                yield "    " + self._siblings(stem, named, used)
                continue
            for child, of_child in pairs:
                yield "    " + self.attribute(child, of_child, used)

    def _siblings(self, stem: str, named: Sequence[str], used: set[str]) -> str:
        """The line of a list whose items stand side by side, ``layers_0`` and so on."""
        written = self._identifier(stem.strip("_") or "items", used)
        said = [("items", items_text(named)), ("name", quoted(f"{stem}{{i}}"))]
        return call(f"{written}: {_list_of(named)} = cs.field", said)

    def _item_classes(self, run: Sequence[tuple[Branch, Sequence[Dim]]]) -> Sequence[str]:
        """The classes of attributes, with their dims, that may be one list; none where a line for each says more."""
        named: list[str] = []
        for child, dims in run:
            is_class = child.leaf is None and not child.stream
            if len(run) == 1 or not is_class or self.fit(child, dims) is not None:
                return []
            # Items have no field of their own, which could rename dims.
            if self._renames(self._sharing.shared(child), dims):
                return []
            named.append(self.name(child))
        # Where all differ, a list is no shorter.
        return named if len(set(named)) < len(named) else []

    def _may_be_items(self, branch: Branch) -> bool:
        """Whether what is below an attribute counts from 0, and nothing else is there."""
        mark = id(branch.children)
        is_numbered = self._numbered.get(mark)
        if is_numbered is None:
            # Items of one list have names that are numbers alone.
            runs = [*numbered_runs(branch.children)]
            is_numbered = self._numbered[mark] = len(runs) == 1 and not runs[0][0]
        if not is_numbered or branch.count is not None or branch.separator:
            return False
        # As a field writes it: a string, or a tuple where no string says it.
        key = ast.literal_eval(dict(branch.said).get("key", '""'))
        return isinstance(key, str) and not self._is_model(branch)

    def _own_items(self, branch: Branch) -> Sequence[str]:
        """The classes of the items of an attribute that is a list of them; none where it has a class of its own."""
        if not self._may_be_items(branch) or item_key(branch.children[0]) is None:
            return []
        shared = self._sharing.shared(branch)
        return self._item_classes([*self._with_dims(shared.children, shared.own)])

    def attribute(
        self,
        branch: Branch,
        own: Sequence[Dim],
        used: set[str],
        more: Sequence[tuple[str, str]] = (),
    ) -> str:
        """The line of an attribute, whose dims the class around it calls so."""
        said: list[tuple[str, str]] = [*branch.said, *more]
        written = self._identifier(branch.name, used)
        # Its logical name, where Python has no such name.
        if written != branch.name:
            said.insert(0, ("name", quoted(branch.name)))
        dims = [*own]
        fit = self.fit(branch, own)
        if branch.count is not None:
            count = dims_.format_dim(dims.pop(0))
            word = "length" if branch.is_list else "scan"
            said.append((word, count if count.isdecimal() else quoted(count)))
        # What is there: a leaf, a stream, a layer of Flax, a list of items, or a class of the text.
        if branch.leaf is not None:
            kind = self._annotation(branch.leaf, dims)
        elif branch.stream:
            kind = f'cs.Stream["{branch.stream}"]'
        elif fit is not None and self._ready is not None:
            kind = self._imports.block(self._ready.library, fit.name, "blocks" in self._attributes)
            if fit.dims:
                said.append(("dims", mapping(_as_written(fit.dims), beside=len("dims=,"))))
        else:
            items = self._own_items(branch)
            if items:
                kind = _list_of(items)
                said = _with_items(branch, said, items)
            else:
                kind = self.name(branch)
            renames = self._renames(self._sharing.shared(branch), dims)
            if renames:
                said.append(("dims", mapping(renames, beside=len("dims=,"))))
        kind = f"list[{kind}]" if branch.is_list else kind
        if not said:
            return f"{written}: {kind}"
        return call(f"{written}: {kind} = cs.field", said)

    def _renames(self, shared: SharedClass, dims: Sequence[Dim]) -> dict[str, str]:
        """What the place of a class calls the dims that are the class's own."""
        renames: dict[str, str] = {}
        if tuple(dims) == shared.own:
            return renames
        names = shared.renamed
        for inner, outer in zip(shared.own, dims, strict=True):
            if inner == outer or len(inner) != 1 or str(inner[0]) not in names:
                continue
            renames[str(inner[0])] = dims_.format_dim(outer)
        return _as_written(dict(sorted(renames.items())))

    def _identifier(self, name: str, used: set[str]) -> str:
        """How the text writes the name of an attribute.

        Args:
            name: The name, which may be any string.
            used: What the attributes before it are called; its own is added.
        """
        # In the body of a class an attribute hides what the module calls so; `list` is in annotations.
        taken = {"list"}.union(used, self._imports.names(), self._written)
        is_name = name.isidentifier() and name.isascii() and not keyword.iskeyword(name)
        written = name if is_name and not name.startswith("_") else identifier(name)
        while written in taken or keyword.iskeyword(written):
            written += "_"
        used.add(written)
        return written

    def annotation(self, leaf: Leaf) -> str:
        """The annotation of a leaf."""
        return self._annotation(leaf, leaf.dims)

    def _annotation(self, leaf: Leaf, dims: Sequence[Dim]) -> str:
        """The annotation of a leaf whose dims the class around it calls so."""
        labels = [name.label for name in leaf.names] or [""] * len(dims)
        words: list[str] = []
        for label, dim in zip(labels, dims, strict=True):
            word = dims_.format_dim(dim)
            words.append(f"{label}={word}" if label else word)
        text = " ".join(words)
        if leaf.is_key:
            # "threefry2x32" of the dtype "key<threefry2x32>".
            return f'cs.Key["{leaf.dtype[4:-1]}"{f", {quoted(text)}" if text else ""}]'
        # A string that is one word is a forward reference to most tools.
        text = f" {text}" if len(words) == 1 else text
        # `UInt8` of "uint8", `Float8e4m3fn` of "float8_e4m3fn".
        usual = leaf.dtype.replace("_", "").capitalize().replace("Uint", "UInt")
        dtype = _DTYPES.get(leaf.dtype, usual)
        if not hasattr(jaxtyping, dtype):
            hint = "no annotation of jaxtyping has this dtype"
            self._imports.faults.append(
                Mismatch(str(leaf), "dtype", "a dtype of jaxtyping", leaf.dtype, hint)
            )
        return f"{self._imports.jaxtyping(dtype)}[Array, {quoted(text)}]"

    def _counts(self, shared: SharedClass) -> str:
        """How many leaves a class has, and how many parameters at the sizes that are known."""
        # Each place has the class with its own sizes.
        numbers: list[int] = []
        elements: list[int] = []
        is_whole = True
        for dims in shared.uses:
            total = self._total(shared.children, dims)
            numbers.append(total.leaves)
            is_whole = is_whole and total.is_whole
            if total.elements is not None:
                elements.append(total.elements)
        leaves = _span(numbers, "leaf", "leaves")
        if not is_whole:
            leaves += " with one item in each list"
        if len(elements) < len(numbers) or not self._sizes:
            return f"{leaves}."
        return f"{leaves}, {_span(elements, 'parameter', 'parameters')}."

    def _total(self, children: tuple[Branch, ...], dims: tuple[Dim, ...]) -> _Total:
        """What attributes have together with these dims."""
        mark = id(children), dims
        known = self._totals.get(mark)
        if known is None:
            leaves, is_whole = 0, True
            elements: int | None = 0
            for child, of_child in self._with_dims(children, dims):
                total = self._total_of(child, tuple(of_child))
                leaves += total.leaves
                # One size that is not known leaves the whole unknown.
                if elements is not None:
                    elements = None if total.elements is None else elements + total.elements
                is_whole = is_whole and total.is_whole
            known = self._totals[mark] = _Total(leaves, elements, is_whole)
        return known

    def _total_of(self, branch: Branch, dims: tuple[Dim, ...]) -> _Total:
        """What one attribute has."""
        times: int | None = 1
        if branch.count is not None:
            times, dims = dims_.size_of(dims[0], self._sizes), dims[1:]
        if branch.leaf is not None:
            shape = dims_.sizes_of(dims, self._sizes)
            one = _Total(1, None if shape is None else math.prod(shape), True)
        # A stream has a key and a count, and neither is a parameter.
        elif branch.stream:
            one = _Total(2, 0, True)
        else:
            one = self._total(branch.children, dims)
        is_known = times is not None or not branch.is_list
        # A stack has the leaves of one layer, and a list those of each.
        leaves = one.leaves * (times if branch.is_list and times is not None else 1)
        elements = None if one.elements is None or times is None else one.elements * times
        return _Total(leaves, elements, one.is_whole and is_known)


def _span(numbers: Sequence[int], one: str, several: str) -> str:
    """Numbers of things, from the least to the most.

    Example:
        >>> _span([4, 4], "leaf", "leaves"), _span([1], "leaf", "leaves"), _span([8000, 4], "", "parameters")
        ('4 leaves', '1 leaf', '4 to 8,000 parameters')
    """
    least, most = min(numbers), max(numbers)
    if least == most:
        return f"{most:,} {one if most == 1 else several}"
    return f"{least:,} to {most:,} {several}"


def _list_of(named: Sequence[str]) -> str:
    """The annotation of a list of items of these classes."""
    return f"list[{' | '.join(dict.fromkeys(named))}]"


def _with_items(
    branch: Branch, said: Sequence[tuple[str, str]], items: Sequence[str]
) -> list[tuple[str, str]]:
    """What the field of a list of items says, whose key spells their numbers."""
    symbol = item_key(branch.children[0])
    told = dict(said)
    own = ast.literal_eval(told.pop("key", quoted(branch.name)))
    key = f"{own}/{symbol}" if own else symbol
    # A list is spelled so unless its field says otherwise.
    if key != f"{branch.name}/{{i}}":
        told["key"] = quoted(str(key))
    return [("items", items_text(items)), *told.items()]


def _as_written(dims: Mapping[str, str]) -> dict[str, str]:
    """Names of dims as they are written: a size as a number."""
    return {old: new if new.isdecimal() else quoted(new) for old, new in dims.items()}
