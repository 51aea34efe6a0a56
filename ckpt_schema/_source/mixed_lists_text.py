"""Attributes that differ in their number alone as one list: ``layers: list[Dense | Experts]`` in the place of 28 lines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from ckpt_schema._layouts import paths
from ckpt_schema._source.branches import Branch
from ckpt_schema._source.importing import quoted

__all__ = ["item_key", "items_text", "numbered_runs"]

_FEWEST = 3
"""From how many items on a list is shorter than a line for each."""

_LONGEST = 32
"""How many classes of items may take turns: to look for longer groups in thousands of items would take minutes."""

_NUMBERED = re.compile(r"(.*?[^\d]|)(0|[1-9]\d*)")
"""A name that ends in a number as Python writes it: no ``layer_01``, which is another name than that of item 1."""


def numbered_runs(children: Sequence[Branch]) -> Iterator[tuple[str, Sequence[Branch]]]:
    """The attributes of a class in their order: those that count from 0, by what stands before their numbers, and others alone.

    Yields:
        What stands before the numbers, and the attributes; of one that stands alone, its own name.

    Example:
        >>> from ckpt_schema._source.branches import Branch
        >>> part = (Branch("w"),)
        >>> names = ["embed", "layers_0", "layers_1", "layers_2", "norm_1"]
        >>> runs = numbered_runs([Branch(name, children=part) for name in names])
        >>> [(stem, len(run)) for stem, run in runs]
        [('embed', 1), ('layers_', 3), ('norm_1', 1)]
    """
    lists, told = _lists(children), set[str]()
    for child in children:
        stem, number = _parted(child)
        if number is None or stem not in lists:
            yield child.name, [child]
        elif stem not in told:
            # Keys of a dict come as strings are sorted, layers_10 before layers_2: all stand where the first does.
            told.add(stem)
            yield stem, lists[stem]


def _lists(children: Sequence[Branch]) -> Mapping[str, Sequence[Branch]]:
    """The attributes that may be one list, by what stands before their numbers."""
    stems: dict[str, dict[int, Branch]] = {}
    for child in children:
        stem, number = _parted(child)
        if number is not None:
            stems.setdefault(stem, {})[number] = child
    lists: dict[str, Sequence[Branch]] = {}
    for stem, numbered in stems.items():
        # 0, 1, 2 without a gap: a list has an item at each number.
        counts = sorted(numbered) == list(range(len(numbered)))
        if counts and len(numbered) >= _FEWEST:
            lists[stem] = [numbered[number] for number in range(len(numbered))]
    return lists


def _parted(child: Branch) -> tuple[str, int | None]:
    """The name of an attribute before its number, and the number; None where it has no place in a list."""
    parts = _NUMBERED.fullmatch(child.name)
    if parts is None or child.leaf is not None or child.stream or child.count is not None:
        return child.name, None
    return parts[1], int(parts[2])


def item_key(child: Branch) -> str | None:
    """How the first item of a list spells its number, ``{i}`` or ``'{i}'``; None where its field says anything else.

    Example:
        >>> item_key(Branch("0")), item_key(Branch("0", (("key", '''"'0'"'''),)))
        ('{i}', "'{i}'")
        >>> item_key(Branch("0", (("key", '"first"'),)))
    """
    if not child.said:
        return "{i}"
    as_text = quoted(paths.format_path((child.name,)))
    return "'{i}'" if child.said == (("key", as_text),) else None


def items_text(names: Sequence[str]) -> str:
    """The classes of the items of a list as Python text, equal ones and repeated groups told once.

    Example:
        >>> items_text(["Dense", "Experts", "Experts", "Experts"])
        '[Dense, *[Experts] * 3]'
        >>> items_text(["Local", "Global", "Local", "Global"])
        '[Local, Global] * 2'
    """
    # Groups of names, and how often each stands in a row.
    parts: list[tuple[Sequence[str], int]] = []
    at = 0
    while at < len(names):
        group, times = _repeated(names, at)
        parts.append((group, times))
        at += len(group) * times
    if len(parts) == 1:
        group, times = parts[0]
        return f"[{', '.join(group)}] * {times}"
    written: list[str] = []
    for group, times in parts:
        several = ", ".join(group)
        written.append(several if times == 1 else f"*[{several}] * {times}")
    return f"[{', '.join(written)}]"


def _repeated(names: Sequence[str], start: int) -> tuple[Sequence[str], int]:
    """The group of names, from one on, whose repeats reach farthest; of several such the shortest."""
    best, most = 1, 1
    for length in range(1, min((len(names) - start) // 2, _LONGEST) + 1):
        # How often the next names are these again.
        group, times = names[start : start + length], 1
        while names[start + times * length : start + (times + 1) * length] == group:
            times += 1
        if times > 1 and times * length > best * most:
            best, most = length, times
        # No group reaches farther than to the end: of thousands alike the first one does.
        if start + best * most == len(names):
            break
    return names[start : start + best], most
