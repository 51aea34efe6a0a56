"""JSON as every reader takes it: no words that are no numbers, and each name once."""

from __future__ import annotations

import contextlib
import json
from typing import Any

__all__ = ["parsed"]


def parsed(text: bytes) -> tuple[Any, list[str]]:
    """What a text of JSON tells, and the names that an object in it has more than once.

    Raises:
        ValueError: It is no JSON as every reader takes it, and why.

    Example:
        >>> parsed(b'{"a": 1, "a": 2}')
        ({'a': 2}, ['a'])
    """
    twice: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        # Python takes the last of two: of a merge that left both, half would be lost in silence.
        if len(entries) < len(pairs):
            names = [name for name, _ in pairs]
            for name in entries:
                if names.count(name) > 1:
                    twice.append(name)
        for name in entries:
            name.encode()  # half of a pair of surrogates is no text
        return entries

    def refused(word: str) -> Any:
        raise ValueError(f"{word}, which is no number of JSON")

    # Damaged files may be nested without an end, which Python tells by an error of its own.
    problem = ""
    with contextlib.suppress(RecursionError):
        try:
            told = json.loads(text.decode(), object_pairs_hook=once, parse_constant=refused)
            return told, list(dict.fromkeys(twice))
        except UnicodeError:
            problem = "bytes that are no UTF-8"
        except ValueError as error:
            problem = str(error)
    raise ValueError(problem or "lists in lists without an end")
