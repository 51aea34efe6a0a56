"""Whether checkpoints of an old layout load into new code, and the other way round: restores that read nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from ckpt_schema._breaking.saved_form import saved_form
from ckpt_schema._breaking.verdicts import MEANINGS, Breaking, Migration, RuleName, Verdict
from ckpt_schema._diff.comparing import diff
from ckpt_schema._frameworks.state_names import WEIGHTS
from ckpt_schema._frameworks.variables import passing, state_of
from ckpt_schema._layouts.pytrees import children
from ckpt_schema._layouts.schema import Schema, layout
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.codecs import Exact, Word, holds
from ckpt_schema._lens.lens import Lens
from ckpt_schema._lens.read_sides import is_path, made_abstract
from ckpt_schema._messages.text import shown
from ckpt_schema._trees.abstract_states import abstract
from ckpt_schema._trees.inference import infer_tree
from ckpt_schema.errors import CkptSchemaError, Mismatch, SchemaError
from ckpt_schema.orbax._adapt import Words
from ckpt_schema.orbax._metadata import DiskTree, read_metadata
from ckpt_schema.orbax._restore import Prepared, prepared

__all__ = ["breaking"]

RULES: tuple[RuleName, ...] = ("READ", "WRITE", "RESUME", "EXACT")


def breaking(
    old: Any,
    new: Any,
    lens: Lens | None = None,
    *,
    rules: Sequence[RuleName] = RULES,
) -> Breaking:
    """What a change of a layout breaks, told without a checkpoint and without reading anything.

    Each rule is a restore in one line, of which all is done but the reading:

    - ``READ``: ``cs.orbax.restore(path, model)`` loads the model of an old checkpoint into new code.
    - ``WRITE``: old code loads the model of a new checkpoint so.
    - ``RESUME``: ``cs.orbax.restore(path, state)`` loads the whole state of an old checkpoint, the optimizer
      too, and leaves nothing that training needs as it starts, as a random stream.
    - ``EXACT``: and no leaf has another dtype.

    What breaks ``READ`` breaks ``RESUME`` and ``EXACT`` as well, and is told once. A cast is breaking where the new
    dtype does not hold every value of the old one. With a lens, a rule that is broken passes if a restore through
    the lens does what the rule asks for; ``EXACT``, if the lens loses nothing.

    Args:
        old: A layout, such as that in a lock file; or a schema, a tree, a module, a function that makes either, or the path
            of a checkpoint.
        new: The same.
        lens: The lens between the two, in either direction.
        rules: The rules that are asked for.

    Raises:
        SchemaError: No layout can be read off a side, a side has dims without sizes, or there is no such rule.
        CheckpointMismatchError: There is no checkpoint at a path.

    Example:
        >>> import jax
        >>> leaf, half = (jax.ShapeDtypeStruct((4, 8), dtype) for dtype in ("float32", "bfloat16"))
        >>> print(breaking({"params": {"a": leaf}}, {"params": {"b": leaf}}, rules=["READ"]))
        old -> new: 1 rule broken
        READ breaking: 2 faults
          params/a  expected a partner in new, found float32[4 8] in old alone
                    -> only params/b can be it; rename('a', 'b') joins them
          params/b  expected a partner in old, found float32[4 8] in new alone
                    -> only params/a can be it; rename('a', 'b') joins them
        to paste, for all of them:
        rules=[
            cs.rename('a', 'b'),
        ]
        >>> breaking({"params": {"a": half}}, {"params": {"a": leaf}})["EXACT"].breaks
        True
    """
    unknown = [rule for rule in rules if rule not in RULES]
    if unknown:
        fault = Mismatch("rules", "argument", f"some of {', '.join(RULES)}", shown(unknown[0]))
        raise SchemaError("there is no such rule", [fault])
    with _quietly():
        change = _Change(_Side.of(old, "old"), _Side.of(new, "new"), lens)
        verdicts = [change.verdict(rule) for rule in RULES if rule in rules]
    return Breaking((change.old.name, change.new.name), tuple(verdicts))


@contextlib.contextmanager
def _quietly() -> Generator[None]:
    """No warnings of what a restore would do, and no lines of it in the log."""
    level = _LOGGER.level
    _LOGGER.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        _LOGGER.setLevel(level)


_LOGGER = logging.getLogger("ckpt_schema")


@dataclasses.dataclass(frozen=True)
class _Side:
    """The old or the new side: a checkpoint of it, and what its code restores into.

    Attributes:
        name: What messages call it.
        given: What the caller gave.
        table: Its layout.
        disk: What a checkpoint of it holds.
        target: Its state, abstract.
        model: The model in that; the state itself where it is a model alone.
    """

    name: str
    given: Any
    table: Layout
    disk: DiskTree
    target: Any
    model: Any

    @classmethod
    def of(cls, given: Any, name: str) -> _Side:
        """A side.

        Raises:
            SchemaError: No layout can be read off it.
            CheckpointMismatchError: It is a path without a checkpoint.
        """
        if is_path(given):
            disk = read_metadata(given).without("nnx_aux")
            target, table = disk.tree, infer_tree(disk.tree, name=name, joined=disk.joined)
        else:
            is_declared = isinstance(given, type) and issubclass(given, Schema)
            if is_declared or isinstance(given, Layout):
                table, target = layout(given), None
            else:
                target = state_of(made_abstract(given))
                table = infer_tree(target, name=name)
            disk = dataclasses.replace(saved_form(table), path=epath.Path(name))
            target = abstract(table) if target is None else target
        return cls(name, given, table, disk, target, _model(target))


def _model(target: Any) -> Any:
    """The model in a state, without the averages of it that are kept beside it."""
    rows = infer_tree(target).rows
    roots = {row.key[0] for row in rows}
    weights = {row.key[0] for row in rows if row.is_weight and row.root == (WEIGHTS,)}
    model = weights - {row.key[0] for row in rows if row.optimizer}
    if not model or weights == roots:
        return target
    # A state of NNX hands out states of what is in it, and has something else as its children.
    each = target.items() if isinstance(target, Mapping) else children(target)
    parts = {key: child for key, child in each if key in model}
    return parts if len(parts) > 1 else next(iter(parts.values()))


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """How a restore would end.

    Attributes:
        faults: Why it fails, or would fail with values that are likely.
        notes: What else the error says.
        ready: The restore, where it does not fail before it reads.
    """

    faults: tuple[Mismatch, ...]
    notes: tuple[str, ...] = ()
    ready: Prepared | None = None


def _restored(source: _Side, view: _Side, target: Any, lens: Lens | None) -> _Outcome:
    """How the restore of one side's checkpoint into a target of the other would end."""
    try:
        ready = prepared(source.disk, target, lens, Words(), name=view.name, valued=True)
    except CkptSchemaError as error:
        faults = error.mismatches or (Mismatch("", "checkpoint", error.header, "an error"),)
        return _Outcome(tuple(faults), error.notes)
    return _Outcome(tuple(_refused(ready.side)), (), ready)


def _recast(lens: Lens) -> Iterator[tuple[Row, Row, Word]]:
    """Rows whose dtype a lens changes, and the word that does it."""
    rows = lens.source.rows, lens.view.rows
    for join in lens.joins:
        for cell in join.cells:
            if not isinstance(cell.source, int) or not isinstance(cell.view, int):
                continue
            before, after = rows[0][cell.source], rows[1][cell.view]
            for word in cell.codec:
                yield before, after, word


def _refused(lens: Lens) -> Iterator[Mismatch]:
    """Casts to a dtype that does not hold every value: one that it does not hold is refused when it is read."""
    for before, after, word in _recast(lens):
        is_counter = not before.leaf.dims and before.leaf.dtype.lstrip("u").startswith("int")
        if isinstance(word, Exact) and not holds(word.view, word.source) and not is_counter:
            path = "/".join(after.path)
            hint = f"cast({'/'.join(after.model_path)!r}, rounding='nearest') rounds them"
            expected, found = f"values that {word.view} holds", f"any of {word.source}"
            yield Mismatch(path, "cast", expected, found, hint, mirrors=after.mirrors)


def _turned(source: Layout, view: Layout) -> Iterator[Mismatch]:
    """Leaves that have the same sizes on both sides, and their axes in another order: no restore can see it."""
    known = {row.path: row for row in view.rows}
    for row in source.rows:
        other = known.get(row.path)
        if other is None or row.dims != other.dims:
            continue
        names = [[str(name) for name in one.stored.own] for one in (row, other)]
        if names[0] != names[1] and sorted(names[0]) == sorted(names[1]):
            here, there = (" ".join(each) for each in names)
            hint = "its sizes do not show the order: give a lens, which is derived from the names"
            yield Mismatch("/".join(row.path), "shape", here, there, hint, mirrors=row.mirrors)


def _left(ready: Prepared) -> Iterator[Mismatch]:
    """What training needs and no checkpoint tells: streams, and what an optimizer starts anew."""
    view = ready.side.view
    there = {number for number, _ in ready.match.slots}
    for number in sorted(ready.side.private[1] & there):
        row = view.rows[number]
        kind = passing(row.kind) if isinstance(row.kind, type) else None
        if row.ephemeral or kind in ("cache", "record") or row.kind in _RECORDS:
            continue
        hint = "it starts anew, or keeps what the target has"
        where = "/".join(row.path)
        yield Mismatch(where, "missing", "a leaf of the checkpoint", "none", hint)


_RECORDS = ("cache", "intermediates")
"""Linen's collections without which a model works."""


class _Change:
    """A change, and the lens between its two sides if there is one."""

    def __init__(self, old: _Side, new: _Side, lens: Lens | None) -> None:
        """Has looked at nothing yet."""
        self.old, self.new, self.lens = old, new, lens
        self._outcomes: dict[tuple[str, bool], _Outcome] = {}

    def verdict(self, rule: RuleName) -> Verdict:
        """Whether the change breaks a rule, and whether the lens mends it."""
        found = _VERDICTS[rule](self)
        if not found.breaks or self.lens is None:
            return found
        return dataclasses.replace(found, migration=self._migration(rule, self.lens))

    def loaded(self, way: str, *, whole: bool = False) -> _Outcome:
        """How the restore of an old checkpoint into new code ends, or the other way round."""
        source, view = (self.old, self.new) if way == "read" else (self.new, self.old)
        known = self._outcomes.get((way, whole))
        if known is None:
            target = view.target if whole else view.model
            known = self._outcomes[way, whole] = _restored(source, view, target, None)
        return known

    def read(self) -> Verdict:
        """See `breaking`."""
        found, turned = self.loaded("read"), _turned(self.old.table, self.new.table)
        return Verdict("READ", (*found.faults, *turned), notes=found.notes)

    def write(self) -> Verdict:
        """See `breaking`."""
        found, turned = self.loaded("write"), _turned(self.new.table, self.old.table)
        return Verdict("WRITE", (*found.faults, *turned), notes=found.notes)

    def resume(self) -> Verdict:
        """See `breaking`."""
        whole = self.loaded("read", whole=True)
        known = {fault.path for fault in self.read().faults}
        faults = [fault for fault in whole.faults if fault.path not in known]
        faults = [fault for fault in faults if fault.mirrors not in known]
        if whole.ready is not None:
            faults += _left(whole.ready)
        follows: RuleName | None = "READ" if known else None
        notes = () if follows else whole.notes
        return Verdict("RESUME", tuple(faults), follows, notes)

    def exact(self) -> Verdict:
        """See `breaking`."""
        whole = self.loaded("read", whole=True)
        follows: RuleName | None = "RESUME" if whole.faults else None
        follows = "READ" if self.read().faults else follows
        return Verdict("EXACT", tuple(self._other_dtypes(whole)), follows)

    def _other_dtypes(self, whole: _Outcome) -> Iterator[Mismatch]:
        """Rows that have another dtype on the other side."""
        told: dict[Mismatch, None] = {}
        if whole.ready is not None:
            for before, after, _ in _recast(whole.ready.side):
                both = before.leaf.dtype, after.leaf.dtype
                path = "/".join(after.path)
                told[Mismatch(path, "dtype", *both, mirrors=after.mirrors)] = None
        else:
            for change in diff(self.old.given, self.new.given).changes:
                if change.kind == "recast":
                    told[Mismatch(change.path, "dtype", change.before, change.after)] = None
        yield from told

    def _migration(self, rule: RuleName, lens: Lens) -> Migration:
        """What the lens does about a rule."""
        source, view = (self.new, self.old) if rule == "WRITE" else (self.old, self.new)
        # A lens of the model alone serves the model alone.
        found = _restored(source, view, view.target, lens)
        if found.ready is None and rule in ("READ", "WRITE"):
            model = _restored(source, view, view.model, lens)
            found = model if model.ready is not None else found
        name = f"{lens.source.name} -> {lens.view.name}"
        if found.ready is None:
            total = len(infer_tree(view.target).rows)
            return Migration(name, 0, total, lens.exact, found.faults)
        faults = [*found.faults]
        slots = [number for number, _ in found.ready.match.slots]
        joined = found.ready.side.joined[1]
        if rule == "RESUME":
            faults += _left(found.ready)
        if rule == "EXACT" and not lens.exact:
            for path, lost in lens.loss.items():
                faults.append(Mismatch(path, "dtype", "every bit", lost))
        carried = sum(number in joined for number in slots)
        return Migration(name, carried, len(slots), lens.exact, tuple(faults))


_VERDICTS: dict[RuleName, Callable[[_Change], Verdict]] = {
    "READ": _Change.read,
    "WRITE": _Change.write,
    "RESUME": _Change.resume,
    "EXACT": _Change.exact,
}
assert _VERDICTS.keys() == MEANINGS.keys()
