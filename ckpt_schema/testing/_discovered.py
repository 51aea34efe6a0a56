"""A declared lens against what running both models shows; the two share no code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ckpt_schema._layouts.paths import format_path
from ckpt_schema._lens.lens import Lens
from ckpt_schema._trees.containers import flatten
from ckpt_schema.discovery._discovery import Discovery, discover
from ckpt_schema.discovery._matching import Pairing
from ckpt_schema.discovery._models import model_of

__all__ = ["assert_discovered", "drawn_floats", "named_floats"]

Values = dict[str, np.ndarray[Any, Any]]


def assert_discovered(
    lens: Lens,
    source_run: Callable[[Any], Any] | None,
    source: Any,
    view_run: Callable[[Any], Any] | None,
    view: Any,
    *,
    seed: int = 0,
    budget: int = 20_000,
) -> Discovery:
    """Verifies that a lens carries each leaf to the leaf that running both models shows it to be.

    Both models are run as `ckpt_schema.discover` runs them; then random values go through the lens, and are held, piece by
    piece, against what was found. Pieces that are open are not looked at.

    Args:
        lens: From the source to the view.
        source_run: Computes outputs of what ``source`` is; None where that has a run of its own.
        source: The source's model: a tree of arrays, an ``nnx.Module``, or what
            `ckpt_schema.discovery.torch_model` makes.
        view_run: Computes outputs of what ``view`` is, of the same input.
        view: The view's model.
        seed: Of the random values.
        budget: See `ckpt_schema.discover`.

    Returns:
        What was found.

    Raises:
        AssertionError: The two are not one function, or the lens carries leaves elsewhere; each is named.
        DiscoveryError: The models cannot be run.

    Example:
        >>> import ckpt_schema as cs
        >>> x = jnp.ones((2, 4))
        >>> old, new = {"w": jnp.ones((4, 3))}, {"w": jnp.ones((3, 4))}
        >>> lens = cs.adapt(old, new, rules=[cs.rename("w", "w", axes="1 0")])
        >>> assert_discovered(lens, lambda p: x @ p["w"], old, lambda p: x @ p["w"].T, new).status
        'complete'
    """
    old, new = model_of(source_run, source, "source"), model_of(view_run, view, "view")
    found = discover(None, old, None, new, seed=seed, budget=budget)
    if found.status in ("refused", "incomplete"):
        raise AssertionError(f"the two models are not seen to be one function\n{found}")
    # Values of a model itself may be equal in many places, as those of a bias are.
    values = drawn_floats(old.tree, seed)
    made = lens.get(values, onto=new.tree)
    before, after = named_floats(values), named_floats(made)
    lines = ["the lens is not what running both models shows"]
    for pairing in found.pairings:
        if not _holds(pairing, before, after):
            sources = " and ".join(map(str, pairing.sources))
            lines.append(f"  {pairing.view} is {sources}, and the lens makes it of another")
    if len(lines) > 1:
        raise AssertionError("\n".join(lines))
    return found


def drawn_floats(tree: Any, seed: int = 0) -> Any:
    """A tree with random floats."""
    random = np.random.default_rng(seed)

    def value(leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        # Away from zero, for values are compared by what they differ in relation to their size.
        return jnp.asarray(random.uniform(0.5, 1.5, leaf.shape), leaf.dtype)

    return jax.tree.map(value, tree)


def named_floats(tree: Any) -> Values:
    """The floats of a tree, by their key paths."""
    flat = flatten(tree)
    floats: Values = {}
    for key, leaf in zip(flat.keys, flat.leaves, strict=True):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            floats[format_path(key)] = np.asarray(leaf, np.float64)
    return floats


def _holds(pairing: Pairing, before: Values, after: Values) -> bool:
    """Whether a piece of the view has the values that its pieces of the source have."""
    goal = after[pairing.view.leaf].reshape(-1)[pairing.view.places]
    # Floats that were scaled are rounded; values that belong elsewhere differ by far more.
    return np.allclose(pairing.made_of(before), goal, rtol=1e-3, atol=1e-6)
