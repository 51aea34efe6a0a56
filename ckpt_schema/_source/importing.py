"""How classes are imported that a text speaks of."""

from __future__ import annotations

import sys

import jax

from ckpt_schema._frameworks.named_types import given_out_by
from ckpt_schema._layouts.leaves import kind_name
from ckpt_schema.errors import Mismatch

__all__ = ["Imports", "quoted"]

_KNOWN = {
    "jax": ("jax", "import jax"),
    "flax.nnx": ("nnx", "from flax import nnx"),
    "flax.nnx.optimizer": ("nnx.optimizer", "from flax import nnx"),
    "optax": ("optax", "import optax"),
    "optax.contrib": ("optax.contrib", "import optax.contrib"),
}
"""The modules that users import whole: what they are called, and how they are imported."""


class Imports:
    """The import statements of a text, and what cannot be imported.

    Attributes:
        faults: Classes that no module gives out.
    """

    def __init__(self) -> None:
        """Knows what each text imports."""
        self._lines: set[str] = set()
        self._from: dict[str, set[str]] = {}
        self._has_blocks = False
        self.faults: list[Mismatch] = []

    def jaxtyping(self, name: str) -> str:
        """A name of jaxtyping."""
        self._from.setdefault("jaxtyping", set()).update(("Array", name))
        return name

    def whole(self, module: str) -> None:
        """Notes a module."""
        self._lines.add(f"import {module}")

    def block(self, library: str, name: str, is_taken: bool) -> str:
        """A ready-made block.

        Args:
            library: The module that has it.
            name: What it is called there.
            is_taken: Whether a class has an attribute ``blocks``, which would stand for it.
        """
        if is_taken:
            return f"cs.blocks.{library}.{name}"
        self._has_blocks = True
        return f"blocks.{library}.{name}"

    def spell(self, kind: type) -> str:
        """How a class is written."""
        if kind is type(None):
            return "None"
        if kind.__module__ == "builtins":
            return kind.__qualname__
        for module, (alias, line) in _KNOWN.items():
            name = kind_name(kind) if kind is jax.Array else kind.__qualname__
            if getattr(sys.modules.get(module), name, None) is kind:
                self._lines.add(line)
                return f"{alias}.{name}"
        # What a package gives out is imported from there, and not from where it is written.
        module = given_out_by(kind)
        if module is not None:
            self._from.setdefault(module, set()).add(kind.__qualname__)
            return kind.__qualname__
        hint = "define the class on the top level of a module"
        expected, found = "a class that a module gives out", "one that none does"
        where = f"{kind.__module__}.{kind.__qualname__}"
        self.faults.append(Mismatch(where, "declaration", expected, found, hint))
        return kind.__qualname__

    def names(self) -> set[str]:
        """Every name that the statements bind."""
        whole = {line.rpartition(" ")[2].partition(".")[0] for line in self._lines}
        own = {"cs", "blocks"} if self._has_blocks else {"cs"}
        return whole.union(own, *self._from.values())

    def lines(self) -> list[str]:
        """The statements."""
        several = [
            f"from {module} import {', '.join(sorted(names))}"
            for module, names in self._from.items()
        ]
        found = sorted([*self._lines, *several], key=lambda line: (line.startswith("from"), line))
        own = ["import ckpt_schema as cs"]
        if self._has_blocks:
            own.append("from ckpt_schema import blocks")
        return [*found, "", *own] if found else own


def quoted(text: str) -> str:
    """A string as it is written, in double quotes where it holds none."""
    found = repr(text)
    return f'"{found[1:-1]}"' if found[0] == "'" and '"' not in found else found
