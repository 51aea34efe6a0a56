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
# The e of 1e3 follows a digit, and is no name.
_NAME = re.compile(r"\b[^\W\d]\w*")
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
    # A text of many parentheses may be more than the parser takes.
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
    for operand in inner:
        stray = _stray(operand, text)
        if stray is not None:
            return stray
    return None


def _is_number(node: ast.expr) -> bool:
    """Whether a node is a real number: True is an int to Python, and 1j a number."""
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
        number = _value(ast.parse(text.strip(), mode="eval").body, sizes)
    # `math.pow` raises it for the root of a negative number, of which `**` makes a complex one.
    except ValueError as error:
        raise ArithmeticError(str(error)) from error
    if not math.isfinite(number):
        raise ArithmeticError(f"it is {number}")
    return number


def _value(node: ast.expr, sizes: Mapping[str, int]) -> float:
    """What a part of an expression is worth."""
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_value(node.left, sizes), _value(node.right, sizes))
    if isinstance(node, ast.UnaryOp):
        return _SIGNS[type(node.op)](_value(node.operand, sizes))
    if isinstance(node, ast.Name):
        return float(sizes[node.id])
    assert isinstance(node, ast.Constant) and isinstance(node.value, (int, float))
    return float(node.value)
