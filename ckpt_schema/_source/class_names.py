"""Names for the classes of a text: what the attributes of each have in common, and what tells it from others.

``self_attention`` and ``cross_attention`` of one class make it an ``Attention``. Where two classes could have one name, the
one that stands in most places has it, and the other is called by its number or by what it is in.
"""

from __future__ import annotations

import collections
import itertools
import keyword
import re
from collections.abc import Collection, Iterator, Sequence

from ckpt_schema._frameworks.state_names import USUAL_COLLECTION
from ckpt_schema._source.branches import Branch
from ckpt_schema._source.equal_parts import SharedClass, Sharing
from ckpt_schema._source.size_names import identifier

__all__ = ["ClassNames", "class_name"]

_KERNELS = {2: "Linear", 3: "Projection", 4: "Conv"}
"""What classes of a kernel are called, by the number of its axes."""

_LEAVES: dict[tuple[str, ...], str] = {
    ("scale",): "Norm",
    ("bias", "scale"): "Norm",
    ("embedding",): "Embed",
}
"""What classes of leaves alone are called."""


def class_name(text: str) -> str:
    """The name of a class for an attribute.

    Example:
        >>> class_name("layers"), class_name("LayerNorm_0"), class_name("self_attention")
        ('Layers', 'LayerNorm', 'SelfAttention')
    """
    words = [word for word in identifier(text).split("_") if word]
    # Linen numbers its layers; the class is of all of them.
    while len(words) > 1 and words[-1].isdecimal():
        words.pop()
    return "".join([word[0].upper() + word[1:] for word in words])


class ClassNames:
    """Gives each class a name.

    Args:
        sharing: The classes.
        taken: Names that no class may have; those that are given are added.
        attributes: The names of attributes, which no class may have either.
        root: What the class of the whole tree is called.
    """

    def __init__(
        self, sharing: Sharing, taken: set[str], attributes: Collection[str], root: str
    ) -> None:
        """Has given none."""
        self._sharing, self._taken, self._attributes, self._root = sharing, taken, attributes, root
        # By the identity of a class: whether it leaves its plain name to another, and its outline.
        self._losers: set[int] = set()
        self._outlines: dict[int, int] = {}
        self._numbers: dict[tuple[object, ...], int] = {}

    def settle(self, several: Sequence[SharedClass]) -> None:
        """Settles which classes have to leave their plain name to another one.

        Args:
            several: The classes that a text has, each after those that it is made of.
        """
        rivals: dict[str, list[SharedClass]] = collections.defaultdict(list)
        for shared in several:
            rivals[_plain_name(shared)].append(shared)
        for group in rivals.values():
            winner = self._winner(group)
            for shared in group:
                if self._outline(shared) != winner:
                    self._losers.add(id(shared))

    def _winner(self, group: Sequence[SharedClass]) -> int | None:
        """The outline of the class that stands in most places; None where two do that are apart."""
        places: collections.Counter[int] = collections.Counter()
        # The first class of each outline.
        firsts: dict[int, SharedClass] = {}
        for shared in group:
            outline = self._outline(shared)
            places[outline] += shared.places.total()
            firsts.setdefault(outline, shared)
        most = max(places.values())
        first, *others = [outline for outline, times in places.items() if times == most]
        for outline in others:
            # A group of layers leaves the name to the layers in it, which come before it.
            outer = firsts[outline]
            if all(branch.children is not outer.children for branch in firsts[first].first):
                return None
        return first

    def _outline(self, shared: SharedClass) -> int:
        """What tells a class from others but for its dtypes, as a number.

        Of two that differ in dtypes alone a text may have one class, if they are made of blocks.
        """
        known = self._outlines.get(id(shared))
        if known is None:
            parts: list[object] = []
            for child in shared.children:
                is_node = child.leaf is None and not child.stream
                below = self._outline(self._sharing.shared(child)) if is_node else child.stream
                parts.append((child.name, child.said, child.count is None, below))
            known = self._numbers.setdefault(tuple(parts), len(self._numbers))
            self._outlines[id(shared)] = known
        return known

    def name(self, shared: SharedClass) -> str:
        """A name for a class that nothing else has."""
        for name in self._choices(shared):
            is_free = name not in self._taken and name not in self._attributes
            if is_free and not keyword.iskeyword(name):
                self._taken.add(name)
                return name
        raise AssertionError("the choices have no end")

    def _choices(self, shared: SharedClass) -> Iterator[str]:
        """What a class may be called, the best first."""
        names: list[str] = []
        rank = 0
        for child in shared.children:
            names.append(child.name)
            if child.leaf is not None:
                rank = max(rank, len(child.leaf.dims))
        # What has the leaves of a known layer is called as that is, whatever its attribute is.
        leaves = tuple(sorted(names))
        if leaves in (("kernel",), ("bias", "kernel")):
            if rank in _KERNELS:
                yield _KERNELS[rank]
        elif leaves in _LEAVES:
            yield _LEAVES[leaves]
        plain = _plain_name(shared)
        if id(shared) not in self._losers:
            yield plain
        elif self._is_group(shared, plain):
            yield f"{plain}Group"
        own = plain + _number(shared.first[-1].name)
        # Of several that have numbers, one that is unlike the rest is told by its own.
        if own != plain:
            yield own
        # By what it is in, as little of that as tells it apart: `LayerMlp`, `EncoderLayerMlp`.
        above = self._above(shared.first)
        for at in range(len(above) - 1, -1, -1):
            yield "".join(above[at:]) + own
        yield f"{self._root}{own}"
        for number in itertools.count(2):
            yield f"{own}{number}"

    def _is_group(self, shared: SharedClass, plain: str) -> bool:
        """Whether a class is of layers that are repeated together, each called as one layer would be."""
        if shared.first[-1].count is None:
            return False
        for child in shared.children:
            if child.leaf is not None or child.stream:
                return False
            if _plain_name(self._sharing.shared(child)) != plain:
                return False
        return True

    def _above(self, way: Sequence[Branch]) -> list[str]:
        """What the classes around the last of some nested attributes are called."""
        names: list[str] = []
        for branch in way[:-1]:
            shared = self._sharing.shared(branch)
            lost = id(shared) in self._losers
            if branch.name.isdecimal() and names:  # one of what it is in
                names.pop()
            names.append(_plain_name(shared) + (_number(branch.name) if lost else ""))
        if way[-1].name.isdecimal():
            names = names[:-1]
        return names


def _number(name: str) -> str:
    """The number of one of several siblings at the end of its name; empty where it has none.

    Example:
        >>> _number("layers_3"), _number("7"), _number("wi_fused")
        ('3', '7', '')
    """
    number = name.rpartition("_")[2]
    return number if number.isdecimal() else ""


def _plain_name(shared: SharedClass) -> str:
    """What a class is called for itself: what the attributes have in common that it is the class of."""
    # Of `layers_0`, `layers_1` and so on one name is made, not one for each.
    stems: collections.Counter[tuple[str, bool]] = collections.Counter()
    for (name, is_repeated), times in shared.places.items():
        number = _number(name)
        if not name.isdecimal():
            stem = name.removesuffix(f"_{number}") if number else name
            stems[stem, is_repeated or number != ""] += times
    names: dict[str, None] = {}
    for (stem, is_repeated), _ in stems.most_common():
        names[_one_of(stem, is_repeated=is_repeated)] = None
    if not names:  # numbers alone, each one of what it is in
        around = shared.first[-2:-1]
        return _singular(_one_of(around[0].name)) if around else class_name(shared.first[-1].name)
    first, *others = names
    words = _words(first)
    # The last words that all of them have: of SelfAttention and CrossAttention, Attention.
    for other in others:
        common = 0
        for one, two in zip(reversed(words), reversed(_words(other)), strict=False):
            if one != two:
                break
            common += 1
        words = words[len(words) - common :]
    return "".join(words) or first


def _words(name: str) -> list[str]:
    """The words in the name of a class.

    Example:
        >>> _words("SelfAttention"), _words("LSTMCell")
        (['Self', 'Attention'], ['LSTM', 'Cell'])
    """
    words = re.findall("[A-Z]+(?![a-z])|[A-Z][a-z0-9]*", name)
    return words if "".join(words) == name else [name]


def _one_of(name: str, *, is_repeated: bool = False) -> str:
    """What one of the repeats of an attribute is called."""
    written = "Model" if name == USUAL_COLLECTION else class_name(name)
    return _singular(written) if is_repeated else written


def _singular(name: str) -> str:
    """What one of several is called.

    Example:
        >>> _singular("Layers"), _singular("Mass")
        ('Layer', 'Mass')
    """
    is_plural = name.endswith("s") and not name.endswith("ss") and len(name) > 2
    return name[:-1] if is_plural else name
