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
    # A restore warns of what it would do to a state, and here nothing is restored.
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
            # A checkpoint may keep what NNX writes beside a state, which no code restores into.
            disk = read_metadata(given).without("nnx_aux")
            target, table = disk.tree, infer_tree(disk.tree, name=name, joined=disk.joined)
        else:
            is_declared = isinstance(given, type) and issubclass(given, Schema)
            if is_declared or isinstance(given, Layout):
                table, target = layout(given), None
            else:
                target = state_of(made_abstract(given))
                table = infer_tree(target, name=name)
            # Nobody has saved it, so its checkpoint is made up: a save of this state would hold this.
            disk = dataclasses.replace(saved_form(table), path=epath.Path(name))
            target = abstract(table) if target is None else target
        return cls(name, given, table, disk, target, _model(target))


def _model(target: Any) -> Any:
    """The model in a state, without the averages of it that are kept beside it."""
    rows = infer_tree(target).rows
    roots = {row.key[0] for row in rows}
    weights = {row.key[0] for row in rows if row.is_weight and row.root == (WEIGHTS,)}
    model = weights - {row.key[0] for row in rows if row.optimizer}
    # Nothing but a model, or nothing that is known for one: then all of it is loaded.
    if not model or weights == roots:
        return target
    # A state of NNX hands out states of what is in it, and has something else as its children.
    each = target.items() if isinstance(target, Mapping) else children(target)
    parts = {key: child for key, child in each if key in model}
    # Of {"params": ..., "batch_stats": ...} both are the model; of {"model": ..., "step": ...} one is it.
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
        # Some errors have a header alone; a rule that breaks for no reason would be taken to hold.
        faults = error.mismatches or (Mismatch("", "checkpoint", error.header, "an error"),)
        return _Outcome(tuple(faults), error.notes)
    return _Outcome(tuple(_refused(ready.side)), (), ready)


def _recast(lens: Lens) -> Iterator[tuple[Row, Row, Word]]:
    """Rows whose dtype a lens changes, and the word that does it."""
    rows = lens.source.rows, lens.view.rows
    for join in lens.joins:
        for cell in join.cells:
            # A constant, as padding or a default, is of no row, and no dtype of it changes.
            if not isinstance(cell.source, int) or not isinstance(cell.view, int):
                continue
            before, after = rows[0][cell.source], rows[1][cell.view]
            for word in cell.codec:
                yield before, after, word


def _refused(lens: Lens) -> Iterator[Mismatch]:
    """Casts to a dtype that does not hold every value: one that it does not hold is refused when it is read."""
    for before, after, word in _recast(lens):
        # No count of steps comes near the bounds of an integer, and so int64 to int32 is no risk.
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
        # float32[embed heads] became float32[heads embed], and both are 512 long.
        here, there = [*map(str, row.stored.own)], [*map(str, other.stored.own)]
        if here != there and sorted(here) == sorted(there):
            path, expected, found = "/".join(row.path), " ".join(here), " ".join(there)
            hint = "its sizes do not show the order: give a lens, which is derived from the names"
            yield Mismatch(path, "shape", expected, found, hint, mirrors=row.mirrors)


def _left(ready: Prepared) -> Iterator[Mismatch]:
    """What training needs and no checkpoint tells: streams, and what an optimizer starts anew."""
    view = ready.side.view
    there = {number for number, _ in ready.match.slots}
    # Private rows of the view are those that no leaf of the checkpoint goes to.
    for number in sorted(ready.side.private[1] & there):
        row = view.rows[number]
        kind = passing(row.kind) if isinstance(row.kind, type) else None
        # Training goes on as well without these; another stream would be other dropout.
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
        # Several rules ask for one restore, and each takes as long as to derive a lens.
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
        faults: list[Mismatch] = []
        for fault in whole.faults:
            # What READ tells of a param is not told again of it, nor of its mu and nu.
            if fault.path not in known and fault.mirrors not in known:
                faults.append(fault)
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
        told: dict[Mismatch, None] = {}  # a row in several cells is told once
        if whole.ready is not None:
            for before, after, _ in _recast(whole.ready.side):
                both = before.leaf.dtype, after.leaf.dtype
                path = "/".join(after.path)
                told[Mismatch(path, "dtype", *both, mirrors=after.mirrors)] = None
        else:
            # There is no lens to ask, for the restore fails; a diff needs none.
            for change in diff(self.old.given, self.new.given).changes:
                if change.kind == "recast":
                    told[Mismatch(change.path, "dtype", change.before, change.after)] = None
        yield from told

    def _migration(self, rule: RuleName, lens: Lens) -> Migration:
        """What the lens does about a rule."""
        source, view = (self.new, self.old) if rule == "WRITE" else (self.old, self.new)
        # A lens of the model alone serves the model alone.
        outcome = _restored(source, view, view.target, lens)
        if outcome.ready is None and rule in ("READ", "WRITE"):
            of_model = _restored(source, view, view.model, lens)
            outcome = of_model if of_model.ready is not None else outcome
        name = f"{lens.source.name} -> {lens.view.name}"
        if outcome.ready is None:
            total = len(infer_tree(view.target).rows)
            return Migration(name, 0, total, lens.exact, outcome.faults)
        faults = [*outcome.faults]
        if rule == "RESUME":
            faults += _left(outcome.ready)
        # A lens may restore all, and lose bits on the way: that is no error, but breaks this rule.
        if rule == "EXACT" and not lens.exact:
            for path, lost in lens.loss.items():
                faults.append(Mismatch(path, "dtype", "every bit", lost))
        # Leaves and not rows: of a list of twelve layers twelve are carried.
        slots = [number for number, _ in outcome.ready.match.slots]
        joined = outcome.ready.side.joined[1]
        carried = sum([number in joined for number in slots])
        return Migration(name, carried, len(slots), lens.exact, tuple(faults))


_VERDICTS: dict[RuleName, Callable[[_Change], Verdict]] = {
    "READ": _Change.read,
    "WRITE": _Change.write,
    "RESUME": _Change.resume,
    "EXACT": _Change.exact,
}
assert _VERDICTS.keys() == MEANINGS.keys()
