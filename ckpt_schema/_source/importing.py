"""How classes are imported that a text speaks of.

While a text is written, each class in it is spelled here, and noted; the statements on top of the text are made last.
"""

from __future__ import annotations

import ast
import builtins
import importlib.util
import sys
from collections.abc import Iterator

import jax

from ckpt_schema._frameworks.named_types import given_out_by
from ckpt_schema._layouts.leaves import kind_name
from ckpt_schema._messages.text import shown
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


_SHORT = {"jnp": "import jax.numpy as jnp", "nnx": "from flax import nnx"}
"""How names are imported that everybody gives to modules."""


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

    def expression(self, text: str, where: str) -> None:
        """Notes the modules that an expression names, ``my_models.training.tx``; those that there are not are faults."""
        try:
            tree = ast.parse(text, mode="eval")
        except (SyntaxError, ValueError) as error:  # of a null byte, the latter
            found = f"{shown(text)}: {error.args[0]}"
            hint = 'such as tx="optax.adamw(3e-4)"'
            self.faults.append(Mismatch(where, "argument", "an expression of Python", found, hint))
            return
        for chain in _free_names(tree):
            if chain[0] in _SHORT:
                self._lines.add(_SHORT[chain[0]])
                continue
            module = _module_of(chain)
            if module is not None:
                self.whole(module)
                continue
            hint = 'write it as seen from its module, tx="my_training.tx"'
            found = f"{chain[0]}, which is none"
            self.faults.append(Mismatch(where, "argument", "names of modules", found, hint))

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
            # The class of arrays has another name than the one that users know it by.
            name = kind_name(kind) if kind is jax.Array else kind.__qualname__
            # What nobody has imported is looked into by nobody: no class of it can be here.
            if getattr(sys.modules.get(module), name, None) is kind:
                self._lines.add(line)
                return f"{alias}.{name}"
        # What a package gives out is imported from there, and not from where it is written.
        module = given_out_by(kind)
        if module is not None:
            self._from.setdefault(module, set()).add(kind.__qualname__)
            return kind.__qualname__
        # The text is written to its end all the same: it is refused with all faults at once.
        hint = "define the class on the top level of a module"
        expected, found = "a class that a module gives out", "one that none does"
        where = f"{kind.__module__}.{kind.__qualname__}"
        self.faults.append(Mismatch(where, "declaration", expected, found, hint))
        return kind.__qualname__

    def names(self) -> set[str]:
        """Every name that the statements bind."""
        names = {"cs", "blocks"} if self._has_blocks else {"cs"}
        for line in self._lines:
            # "import optax.contrib" binds `optax`, "from flax import nnx" binds `nnx`.
            names.add(line.rpartition(" ")[2].partition(".")[0])
        return names.union(*self._from.values())

    def lines(self) -> list[str]:
        """The statements."""
        others = [*self._lines]
        for module, names in self._from.items():
            others.append(f"from {module} import {', '.join(sorted(names))}")
        # As a formatter has them: modules before names, and this package apart from the others.
        others.sort(key=lambda line: (line.startswith("from"), line))
        of_package = ["import ckpt_schema as cs"]
        if self._has_blocks:
            of_package.append("from ckpt_schema import blocks")
        return [*others, "", *of_package] if others else of_package


def _free_names(tree: ast.AST) -> Iterator[tuple[str, ...]]:
    """The names in an expression that it does not bind itself, each with the attributes behind it."""
    bound: set[str] = set(dir(builtins))
    inner: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
    # From the outside in: of a.b.c the whole comes first, and a.b and a are parts of it.
    for node in ast.walk(tree):
        if id(node) in inner:
            continue
        names: list[str] = []
        part = node
        while isinstance(part, ast.Attribute):
            names.append(part.attr)
            part = part.value
            inner.add(id(part))
        if isinstance(part, ast.Name) and part.id not in bound:
            yield (part.id, *names[::-1])


def _module_of(chain: tuple[str, ...]) -> str | None:
    """The deepest module that a name with its attributes leads to, if it begins with one."""
    found: str | None = None
    for end in range(1, len(chain) + 1):
        name = ".".join(chain[:end])
        try:
            # What is below a module that is no package is no module.
            if importlib.util.find_spec(name) is None:
                break
        except (ImportError, ValueError):
            break
        found = name
    return found


def quoted(text: str) -> str:
    """A string as it is written, in double quotes where it holds none."""
    literal = repr(text)
    return f'"{literal[1:-1]}"' if literal[0] == "'" and '"' not in literal else literal
