"""Rules: what a user adds to a derivation where types cannot say it.

Where several rules of a kind speak of one leaf, the longest path wins, whatever their order. Two rules of one path that say
different things are an error, and so is a rule whose leaves are all decided by others.

A path may be a glob: ``*`` is one segment or a part of one, ``**`` any number of segments. It may be a Variable type of NNX,
for all leaves of that type. Of these, the rule with more literal segments wins, and a draw is an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts.dims import Dim
from ckpt_schema._layouts.leaves import Default
from ckpt_schema._layouts.paths import LogicalPath, VariableKind, rule_path
from ckpt_schema._layouts.table import Series
from ckpt_schema._lens.axis_rules import Grown, Padding, Repeated, Replicated, Reverse
from ckpt_schema._lens.fold_rules import FoldRule
from ckpt_schema._lens.spelled_axes import ARROW, SpelledAxes, parse_spelled
from ckpt_schema._lens.value_rules import Factor, Offset, Rounding
from ckpt_schema._lens.wellformed import default_of, not_well_formed, one_dim, verify_paths
from ckpt_schema.errors import DerivationError, Mismatch

__all__ = [
    "Apart",
    "Factor",
    "Fuse",
    "Move",
    "Offset",
    "Private",
    "RawKey",
    "Rename",
    "Reset",
    "Rounding",
    "Rule",
    "Tie",
    "VariableKind",
    "apart",
    "fuse",
    "move",
    "own",
    "private",
    "raw_key",
    "rename",
    "reset",
    "tie",
    "verify_rules",
    "without_lesser",
]


@dataclasses.dataclass(frozen=True, slots=True)
class Rename:
    """See `rename`."""

    source: LogicalPath
    view: LogicalPath
    axes: tuple[int, ...] | None = None
    spelled: SpelledAxes | None = None

    def __str__(self) -> str:
        """The rule as it is written."""
        axes = "" if self.axes is None else f", axes={' '.join(map(str, self.axes))!r}"
        axes = axes if self.spelled is None else f", axes={str(self.spelled)!r}"
        return f"rename({'/'.join(self.source)!r}, {'/'.join(self.view)!r}{axes})"

    __repr__ = __str__


class Own:
    """The class of `own`."""

    def __str__(self) -> str:
        """The word as it is written."""
        return "own"

    __repr__ = __str__


own = Own()
"""A default of `private`: what ``onto`` has, or the target of a restore."""


@dataclasses.dataclass(frozen=True, slots=True)
class Private:
    """See `private`; without a default a leaf keeps its own."""

    path: LogicalPath
    default: Default | None

    def __str__(self) -> str:
        """The rule as it is written."""
        default = own if self.default is None else self.default
        return f"private({'/'.join(self.path)!r}, {default})"

    __repr__ = __str__


@dataclasses.dataclass(frozen=True, slots=True)
class Apart:
    """See `apart`."""

    path: LogicalPath
    default: Default | None

    def __str__(self) -> str:
        """The rule as it is written."""
        default = "" if self.default is None else f", {self.default}"
        return f"apart({'/'.join(self.path)!r}{default})"

    __repr__ = __str__


@dataclasses.dataclass(frozen=True, slots=True)
class Move:
    """See `move`."""

    source: LogicalPath
    view: LogicalPath

    def __str__(self) -> str:
        """The rule as it is written."""
        return f"move({'/'.join(self.source)!r}, {'/'.join(self.view)!r})"

    __repr__ = __str__


@dataclasses.dataclass(frozen=True, slots=True)
class Reset:
    """See `reset`."""

    source: LogicalPath | None = None
    view: LogicalPath | None = None

    def __str__(self) -> str:
        """The rule as it is written."""
        written: list[str] = []
        for side, path in (("source", self.source), ("view", self.view)):
            if path is not None:
                written.append(f"{side}={'/'.join(path)!r}")
        return f"reset({', '.join(written)})"

    __repr__ = __str__


@dataclasses.dataclass(frozen=True, slots=True)
class RawKey:
    """See `raw_key`."""

    path: LogicalPath

    def __str__(self) -> str:
        """The rule as it is written."""
        return f"raw_key({'/'.join(self.path)!r})"

    __repr__ = __str__


@dataclasses.dataclass(frozen=True, slots=True)
class Tie:
    """See `tie`."""

    copy: LogicalPath
    of: LogicalPath
    axes: tuple[int, ...] | None = None

    def __str__(self) -> str:
        """The rule as it is written."""
        axes = "" if self.axes is None else f", axes={' '.join(map(str, self.axes))!r}"
        return f"tie({'/'.join(self.copy)!r}, {'/'.join(self.of)!r}{axes})"

    __repr__ = __str__


@dataclasses.dataclass(frozen=True, slots=True)
class Fuse:
    """See `fuse`."""

    whole: LogicalPath
    parts: tuple[LogicalPath, ...]
    axis: Dim | None = None
    spelled: SpelledAxes | None = None

    def __str__(self) -> str:
        """The rule as it is written."""
        axis = "" if self.axis is None else f", axis={dims_.format_dim(self.axis)!r}"
        axis += "" if self.spelled is None else f", axes={str(self.spelled)!r}"
        parts = ["/".join(part) for part in self.parts]
        return f"fuse({'/'.join(self.whole)!r}, {parts}{axis})"

    __repr__ = __str__


Rule = (
    Rename
    | Private
    | Apart
    | Move
    | Reset
    | RawKey
    | Tie
    | Fuse
    | FoldRule
    | Series
    | Reverse
    | Padding
    | Grown
    | Repeated
    | Replicated
    | Factor
    | Offset
    | Rounding
)


def rename(source: str, view: str, *, axes: str | None = None) -> Rename:
    """A rule: the node or leaf at logical path ``source`` is the view's node or leaf at ``view``.

    It holds in the model and in every part of the optimizer state that mirrors it.

    Args:
        source: Its path in the source.
        view: Its path in the view, ``""`` for one level less. A leaf of the source that has that
            name of its own has no partner then, and is to be `private`.
        axes: Of a leaf whose dims do not say it, as those that `infer` reads off a tree: which axis of the source each axis of
            the view is, ``"1 0"`` for a transpose, ``"0 1"`` for the order it has. Where axes are split or joined, the axes of
            both sides in words, ``"heads*dim embed -> embed heads dim"``. An axis that stacks layers is not counted.

    Raises:
        SchemaError: One of the two is no string, or ``axes`` is no order.

    Example:
        >>> print(rename("layers[]/LayerNorm_0", "layers[]/norm"))
        rename('layers[]/LayerNorm_0', 'layers[]/norm')
        >>> print(rename("fc/weight", "Dense_0/kernel", axes="1 0"))
        rename('fc/weight', 'Dense_0/kernel', axes='1 0')
        >>> print(rename("q_proj/weight", "query/kernel", axes="heads*dim embed -> embed heads dim"))
        rename('q_proj/weight', 'query/kernel', axes='heads*dim embed -> embed heads dim')
    """
    # The empty path is one in the view alone.
    verify_paths("rename", source=source, view="one level less" if view == "" else view)
    paths = rule_path(source), rule_path(view)
    # An order in numbers has no arrow, and words have one.
    if isinstance(axes, str) and ARROW in axes:
        return Rename(*paths, spelled=parse_spelled("rename", axes))
    return Rename(*paths, None if axes is None else _axes("rename", axes))


def _axes(rule: str, text: object) -> tuple[int, ...]:
    """The order of axes that a rule says."""
    words = text.split() if isinstance(text, str) else []
    # `isdecimal` is true of digits of every script.
    order = tuple([int(word) for word in words if word.isascii() and word.isdecimal()])
    if not order or len(order) < len(words) or sorted(order) != [*range(len(order))]:
        expected = 'the axes of the leaf in another order, such as "1 0" or "0 2 1"'
        hint = "for each axis of the second: which axis of the first it is, counted from 0"
        fault = Mismatch("axes", "declaration", expected, repr(text), hint)
        raise not_well_formed(rule, fault)
    return order


def private(
    path: str | type,
    default: Default | float | Own,
    *,
    small: str | None = None,
    large: str | None = None,
) -> Private | Grown:
    """A rule: what is at logical path ``path`` has no partner on the other side; where none is given it holds ``default``.

    With ``small`` and ``large`` that is so of a part: one side has an axis, or layers, of size
    ``small``, the other of size ``large``, and what that has beyond the first ``small`` is its own,
    as the rows of new words in a vocabulary are, or layers that a model has grown by. ``onto`` gives
    it, else it holds ``default``, and what the other side makes of it is nothing. (What is the same
    in every tree is padding, see `pad`.) What an optimizer keeps for it comes from ``onto`` too, else
    it is what the transformation starts with; where that depends on the params it takes a rule
    of its own, ``private("opt_state/...", ...)``.

    Args:
        path: A leaf or node; its path in the view, where it is a part.
        default: What it holds where no tree gives it: a number, `fresh_key`, or `own` for a whole
            leaf, without a default: then ``get`` and ``put`` without ``onto`` are an error.
        small: The dim of the side that has less: ``"vocab"``.
        large: The dim of the side that has more: ``"grown"``.

    Raises:
        SchemaError: ``path`` is no string, ``default`` no number and no `fresh_key`, one of ``small``
            and ``large`` is given alone, or is no dim.

    Example:
        >>> print(private("head", 0.0), private("**/lora_*", own))
        private('head', 0.0) private('**/lora_*', own)
        >>> print(private("embed/embedding", 0.0, small="vocab", large="grown"))
        private('embed/embedding', 0.0, small='vocab', large='grown')
    """
    verify_paths("private", path=path)
    where, whole = rule_path(path), small is None and large is None
    # Of a part the rest has a partner, so that nothing of it is only the target's.
    if whole and isinstance(default, Own):
        return Private(where, None)
    held = default_of("private", default)
    if whole:
        return Private(where, held)
    return Grown(where, held, one_dim("private", small), one_dim("private", large))


def apart(path: str | type, default: Default | float | None = None) -> Apart:
    """A rule: what both sides have at logical path ``path`` are two things of one name, as the head of another task is.

    Each side keeps its own: ``get`` and ``put`` take it from ``onto``, else from ``default``, or from the default that its
    field declares; without one it is an error, and a law suite needs one. A restore leaves the target's own.
    What the optimizer keeps for it starts as
    the transformation starts it. A dim that both sides have in such leaves alone may differ in size: the view's is called
    ``<name>_view`` then.

    Args:
        path: A leaf or node that both sides have.
        default: What it holds where no tree gives it.

    Raises:
        SchemaError: ``path`` is no string.

    Example:
        >>> print(apart("head"), apart("head", 0.0))
        apart('head') apart('head', 0.0)
    """
    verify_paths("apart", path=path)
    # None is no default at all: then the one that the field declares holds, if there is one.
    given = None if default is None else default_of("apart", default)
    return Apart(rule_path(path), given)


def move(source: str, view: str) -> Move:
    """A rule: the part of the optimizer state at ``source`` is the view's part at ``view``, whatever their types.

    Parts of one type that stand elsewhere because the chain has grown or shrunk are found without it, where there is no doubt.

    Raises:
        SchemaError: One of the two is no string.

    Example:
        >>> print(move("opt_state/0", "opt_state/1/0"))
        move('opt_state/0', 'opt_state/1/0')
    """
    verify_paths("move", source=source, view=view)
    return Move(rule_path(source), rule_path(view))


def reset(*, source: str | type | None = None, view: str | type | None = None) -> Reset:
    """A rule: what is at these logical paths is not carried over; where none is given it is as the transformation starts.

    Args:
        source: A part of the source's optimizer state that the view has no place for, or shall not get.
        view: A part of the view's that the source does not have, or that shall start anew.

    Raises:
        SchemaError: Neither is given, or one is no string.

    Example:
        >>> print(reset(view="opt_state/1/2"))
        reset(view='opt_state/1/2')
    """
    given: dict[str, str | type] = {}
    if source is not None:
        given["source"] = source
    if view is not None:
        given["view"] = view
    # Where neither is given the fault has to name one of both.
    verify_paths("reset", **(given or {"view": None}))
    return Reset(**{side: rule_path(path) for side, path in given.items()})


def raw_key(path: str | type) -> RawKey:
    """A rule: what is at logical path ``path`` of the view is a typed key on one side, and its raw data on the other.

    The raw side declares ``UInt32[Array, "2"]``, or 4 words where the implementation is rbg or unsafe_rbg.

    Raises:
        SchemaError: ``path`` is no string.

    Example:
        >>> print(raw_key("dropout/key"))
        raw_key('dropout/key')
    """
    verify_paths("raw_key", path=path)
    return RawKey(rule_path(path))


def tie(copy: str, of: str, *, axes: str | None = None) -> Tie:
    """A rule: on the side that has both, the leaf or node at logical path ``copy`` is the one at ``of``, stored twice.

    The other side stores it once. Where one is made of the two, that they are equal to the last bit is verified; where two are
    made of the one, both get it. It holds in the model and in every part of the optimizer state that mirrors it. The two may
    differ in the order or grouping of their dims.

    Args:
        copy: The path of the copy.
        of: That of what it is a copy of.
        axes: Of leaves whose dims do not say it, as those that `infer` reads off a tree: which axis of the copy each axis of
            the other is, ``"1 0"`` for a transpose. An axis that stacks layers is not counted.

    Raises:
        SchemaError: One of the two is no string, or ``axes`` is no order.

    Example:
        >>> print(tie("head/kernel", "embed/embedding"))
        tie('head/kernel', 'embed/embedding')
        >>> print(tie("head/kernel", "embed/embedding", axes="1 0"))
        tie('head/kernel', 'embed/embedding', axes='1 0')
    """
    verify_paths("tie", copy=copy, of=of)
    return Tie(rule_path(copy), rule_path(of), None if axes is None else _axes("tie", axes))


def fuse(
    whole: str, parts: Sequence[str], axis: str | None = None, *, axes: str | None = None
) -> Fuse:
    """A rule: what one side has at ``whole``, the other has in parts: each leaf there is a part of one axis.

    The axis is the one that is declared as a sum of as many terms, ``"embed q+k+v"``, or with a factor that is the number of
    parts: ``"embed 3*heads"``, ``"embed heads 3 dim"``. The parts have what is theirs of it, in this order, and the other dims,
    in any order. It holds in the model and in every part of the optimizer state that mirrors it.

    Args:
        whole: The logical path of the leaf or node that is one, in the words of the side that has it.
        parts: Those of its parts, in the words of theirs.
        axis: The factor, or the whole dim, where more than one could be meant.
        axes: Of leaves whose dims do not say it, as those that `infer` reads off a tree: the axes of the whole, and behind an
            arrow those of each part, or once for all: ``"embed q+k+v -> embed q, embed k, embed v"``,
            ``"heads*3*dim embed -> embed heads dim"``.

    Raises:
        SchemaError: A path is no string, a part is there twice, or ``axis`` is no dim.

    Example:
        >>> print(fuse("attention/qkv", ["attention/q", "attention/k", "attention/v"]))
        fuse('attention/qkv', ['attention/q', 'attention/k', 'attention/v'])
        >>> print(fuse("qkv", ["q", "k", "v"], axes="heads*3*dim embed -> embed heads dim"))
        fuse('qkv', ['q', 'k', 'v'], axes='heads*3*dim embed -> embed heads dim')
    """
    # A string is a sequence of strings too: of its letters.
    several: list[str] = list(parts) if isinstance(parts, (list, tuple)) else [str(parts)]
    # Of no parts at all the fault is that there is no first one.
    numbered = {f"parts[{number}]": part for number, part in enumerate(several or [None])}
    verify_paths("fuse", whole=whole, **numbered)
    faults: list[Mismatch] = []
    for part in sorted(set(several)):
        if several.count(part) > 1:
            found, hint = f"{part!r} twice", "a leaf has one place"
            faults.append(Mismatch("parts", "declaration", "each part once", found, hint))
    if faults:
        raise not_well_formed("fuse", *faults)
    shared = None if axis is None else one_dim("fuse", axis)
    return Fuse(
        rule_path(whole),
        tuple(map(rule_path, several)),
        shared,
        None if axes is None else parse_spelled("fuse", axes, len(several)),
    )


def verify_rules(rules: object) -> None:
    """Raises unless these are rules.

    Raises:
        DerivationError: With everything that is none.
    """
    # A lone rule is no sequence, and a string is one of the wrong things.
    wrong: list[object] = [rules]
    if isinstance(rules, (list, tuple)):
        wrong = [rule for rule in rules if not isinstance(rule, Rule)]
    if wrong:
        expected = (
            "a list of rename(...), private(...), apart(...), move(...), reset(...), raw_key(...), "
            "tie(...), fuse(...), total(...), dequantize(...), lora(...), series(...), flip(...), "
            "pad(...), repeat(...), "
            "replicated(...), cast(...), scale(...) and shift(...)"
        )
        faults = [Mismatch("rules", "rule", expected, _spelled(rule)) for rule in wrong]
        raise DerivationError("rules= is not well formed", faults)


def without_lesser(rules: Sequence[Rule]) -> list[Rule]:
    """The rules without each rename that another one says with the axes too, as where a line of an error was added.

    Example:
        >>> without_lesser([rename("a", "b"), rename("c", "d"), rename("a", "b", axes="1 0")])
        [rename('c', 'd'), rename('a', 'b', axes='1 0')]
    """
    fuller: set[tuple[LogicalPath, LogicalPath]] = set()
    for rule in rules:
        if isinstance(rule, Rename) and _has_axes(rule):
            fuller.add((rule.source, rule.view))
    left: list[Rule] = []
    for rule in rules:
        if isinstance(rule, Rename) and not _has_axes(rule) and (rule.source, rule.view) in fuller:
            continue
        left.append(rule)
    return left


def _has_axes(rule: Rename) -> bool:
    """Whether a rename says something of axes."""
    return rule.axes is not None or rule.spelled is not None


def _spelled(rule: object) -> str:
    """What was given in the place of a list of rules."""
    return f"{rule} by itself" if isinstance(rule, Rule) else repr(rule)
