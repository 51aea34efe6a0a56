"""Variables that no body declares and a model works without: streams, caches, records of a pass.

What to do about each. A model that draws numbers has a stream in its state, and one that ran with
``sow`` a record: `conformance` meets them as leaves without a row, and asks here for a better cure than
a likely other spelling.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Container, Iterable
from typing import Any

from ckpt_schema._compat import Tracer
from ckpt_schema._layouts import leaves
from ckpt_schema._layouts.paths import KeyPath, format_path
from ckpt_schema._trees.containers import FlatTree, flatten

__all__ = ["undeclared", "unread"]


def undeclared(flat: FlatTree, strays: Collection[int]) -> dict[int, str]:
    """The cure for leaves that no row of a layout has, by position, where they are of Variables that a model works without."""
    if "flax.nnx" not in sys.modules:  # then none of the tree is of it
        return {}
    # The core imports no framework where none of it is in use.
    from ckpt_schema._frameworks.variables import passing, variables_of

    tree = flat.treedef.unflatten(flat.leaves)
    cures: dict[int, str] = {}
    variables = variables_of(tree)
    tops = {key[0] for key in variables}
    is_training = {"model", "optimizer"} <= tops
    for position in strays if variables else ():
        key = flat.keys[position]
        # The leaf may stand inside of the Variable, as a field of its value.
        variable = _innermost(key, variables)
        if variable is None:
            continue
        kind, tags = variables[variable]
        what = passing(kind)
        if what == "stream":
            is_in_model = key[0] == "model" or not is_training
            line = _stream(variable, flat.leaves[position], dict(tags))
            cures[position] = line if is_in_model else _BESIDE
        elif what is not None:
            rest = f"nnx.state(model, nnx.Not(nnx.{_public(kind)}))"
            cures[position] = f"a {what} that the layout does not declare: leave it out, {rest}"
    return cures


def _innermost(key: KeyPath, variables: Container[KeyPath]) -> KeyPath | None:
    """The key of the Variable that a leaf stands in."""
    for end in range(len(key), 0, -1):
        if key[:end] in variables:
            return key[:end]
    return None


_BESIDE = "a stream beside the model, which no body declares: restore leaves it as it is; leave it out elsewhere"


def _stream(key: KeyPath, leaf: Any, tags: dict[str, Any]) -> str:
    """The line that declares a stream, told at its key; at its count, where that line is."""
    # A field stands in the schema of the model, so its key begins below the model.
    inside = key[1:] if key[0] == "model" else key
    where = format_path(inside[:-1]) or format_path(inside)
    signature = leaves.signature(leaf)
    # A stream is a key and a count. At the count the line would stand twice.
    if signature is None or not signature[1].startswith("key<"):
        return f"a stream that the layout does not declare: Stream[...] with key={where!r} has both"
    # signature[1] is such as key<fry>, and the implementation what is in it.
    name = str(inside[0]).replace("-", "_")
    tag = f", tag={tags['tag']!r}" if "tag" in tags else ""
    line = f'{name}: cs.Stream["{signature[1][4:-1]}"] = '
    line += f"cs.field(key={where!r}, default=cs.fresh_key(0){tag})"
    return f"a stream that the layout does not declare: {line}"


def _public(kind: Any) -> str:
    """The name of a Variable type in ``flax.nnx``."""
    return f"metrics.{kind.__name__}" if kind.__name__ == "MetricState" else kind.__name__


def unread(state: Any, known: Callable[[KeyPath], bool]) -> set[KeyPath]:
    """Key paths of leaves with values, of Variables that a model works without, that no layout of some knows.

    Args:
        state: A state of a model, or of a training.
        known: Says whether a key path is known.
    """
    if "flax.nnx" not in sys.modules:
        return set()
    from ckpt_schema._frameworks.variables import passing, variables_of

    left = {key for key, (kind, _) in variables_of(state).items() if passing(kind)}
    if not left:
        return set()
    flat = flatten(state)
    keys: set[KeyPath] = set()
    for key, leaf in zip(flat.keys, flat.leaves, strict=True):
        # Without a value there is nothing to be lost.
        has_value = not leaves.is_abstract(leaf) and not isinstance(leaf, Tracer)
        if has_value and _innermost(key, left) is not None and not known(key):
            keys.add(key)
    return keys


def one_key(strays: Iterable[KeyPath]) -> dict[str, str]:
    """What to do about leaves whose key path is declared, and one key in the tree, by either spelling."""
    keys: dict[str, str] = {}
    for key in strays:
        texts = [str(segment) for segment in key]
        where = format_path(key)
        # The layout's path of the same leaf is written as the joined key is, the tree's with quotes.
        if "/" in "".join(texts):
            hint = f"the tree has it as one key: key={where!r}, or class ...(cs.Schema, joined='/')"
            keys["/".join(texts)] = keys[where] = hint
        elif texts and "." in texts[0]:
            hint = "the tree has it as one key: class ...(cs.Schema, joined='.')"
            # In layers.0.w the 0 is a number, as the layout of a list has it.
            names = ".".join(texts).split(".")
            apart = [int(name) if name.isdecimal() else name for name in names]
            keys[format_path(apart)] = hint
    return keys
