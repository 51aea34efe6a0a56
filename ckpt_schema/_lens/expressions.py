"""Numbers that are written with dims: ``head_dim ** -0.5``, ``2*heads``, ``(heads + kv_heads) / 2``.

Names, numbers, parentheses, ``+``, ``-``, ``*``, ``/`` and ``**``, which mean what they do in Python,
all of them computed with floats. Nothing else is read, and nothing is run.
"""

from __future__ import annotations

import ast
import functools
import math
import operator
import re
from collections.abc import Callable, Mapping

__all__ = ["dims_in", "value", "with_dims", "wrong"]

_LONGEST = 200
_NAME = re.compile(r"\b[^\W\d]\w*")  # the e of 1e3 follows a digit, and is none
_OPERATORS: Mapping[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: math.pow,
}
_SIGNS: Mapping[type, Callable[[float], float]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}


def wrong(text: str) -> str | None:
    """Why a text is no expression; None where it is one.

    Example:
        >>> wrong("head_dim ** -0.5") is None
        True
        >>> wrong("sqrt(head_dim)"), wrong("2 *")
        ("'sqrt(head_dim)' is no name, number or operator", 'it does not parse')
    """
    if len(text) > _LONGEST:
        return f"it has more than {_LONGEST} characters"
    try:
        parsed = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return "it does not parse"
    return _stray(parsed, text.strip())


def _stray(node: ast.expr, text: str) -> str | None:
    """What stands in an expression and is none."""
    inner: list[ast.expr] = []
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        inner = [node.left, node.right]
    elif isinstance(node, ast.UnaryOp) and type(node.op) in _SIGNS:
        inner = [node.operand]
    elif not isinstance(node, ast.Name) and not _is_number(node):
        return f"{ast.get_source_segment(text, node)!r} is no name, number or operator"
    return next(filter(None, (_stray(each, text) for each in inner)), None)


def _is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


@functools.lru_cache(maxsize=1024)
def dims_in(text: str) -> frozenset[str]:
    """The dims that an expression names.

    Example:
        >>> sorted(dims_in("2*heads / (kv_heads + 1)"))
        ['heads', 'kv_heads']
    """
    nodes = ast.walk(ast.parse(text.strip(), mode="eval"))
    return frozenset(node.id for node in nodes if isinstance(node, ast.Name))


def with_dims(text: str, called: Mapping[str, str]) -> str:
    """The expression with other names of dims.

    Example:
        >>> with_dims("head_dim ** -0.5", {"head_dim": "size"})
        'size ** -0.5'
    """
    return _NAME.sub(lambda found: called.get(found[0], found[0]), text)


def value(text: str, sizes: Mapping[str, int]) -> float:
    """What an expression is worth.

    Args:
        text: The expression, in which nothing is `wrong`.
        sizes: The sizes of the dims that it names.

    Raises:
        ArithmeticError: It divides by zero, or is no finite number.

    Example:
        >>> value("head_dim ** -0.5", {"head_dim": 64})
        0.125
    """
    try:
        found = _value(ast.parse(text.strip(), mode="eval").body, sizes)
    except ValueError as error:  # of math.pow, such as the root of a negative number
        raise ArithmeticError(str(error)) from error
    if not math.isfinite(found):
        raise ArithmeticError(f"it is {found}")
    return found


def _value(node: ast.expr, sizes: Mapping[str, int]) -> float:
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_value(node.left, sizes), _value(node.right, sizes))
    if isinstance(node, ast.UnaryOp):
        return _SIGNS[type(node.op)](_value(node.operand, sizes))
    if isinstance(node, ast.Name):
        return float(sizes[node.id])
    assert isinstance(node, ast.Constant) and isinstance(node.value, (int, float))
    return float(node.value)
