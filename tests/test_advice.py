"""Who follows the advice of an error ends in the planted lens, or in candidates that are no rule.

Renames of leaves and nodes, nested ones, other numbers, levels that come and go, wrappers of the
optimizer and transformations that start anew are planted in a layout with many leaves of one shape.
Then what the errors print is followed. The oracle is where each value ends up.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import hypothesis
import jax
import numpy as np
import optax
import pytest
from hypothesis import strategies as st
from jaxtyping import Array, Float32

import ckpt_schema as cs
from tests.support.profiles import examples

Path = tuple[str, ...]
SIZES = {"vocab": 5, "embed": 2, "heads": 3, "mlp": 4, "depth": 2}

# A leaf is its dims, a node a dict, a list of layers a dict whose name ends in "[]". Many leaves are
# of one shape on purpose: what is right for them no shape tells.
Spec = dict[str, Any]
BODY: Spec = {
    "embed": {"table": "vocab embed"},
    "blocks[]": {
        "norm1": {"scale": "embed"},
        "attn": {
            "q": "embed heads",
            "k": "embed heads",
            "o": {"kernel": "heads embed", "bias": "embed"},
        },
        "norm2": {"scale": "embed"},
        "mlp": {"gate": "embed mlp", "up": "embed mlp", "down": "mlp embed"},
    },
    "norm": {"scale": "embed", "bias": "embed"},
    "head": {"kernel": "embed vocab", "bias": "vocab"},
}


def leaves(spec: Spec, at: Path = ()) -> Iterator[tuple[Path, str]]:
    """The path and dims of every leaf."""
    for name, child in spec.items():
        if isinstance(child, str):
            yield (*at, name), child
        else:
            yield from leaves(child, (*at, name))


def built(paths: Mapping[Path, str]) -> Spec:
    """The nested form of leaves by path."""
    root: Spec = {}
    for path, dims in paths.items():
        node = root
        for segment in path[:-1]:
            node = node.setdefault(segment, {})
        node[path[-1]] = dims
    return root


def schema(spec: Spec, name: str) -> type[cs.Schema]:
    """A schema class of this form."""
    annotations: dict[str, Any] = {}
    namespace: dict[str, Any] = {"__annotations__": annotations, "__module__": __name__}
    for key, child in spec.items():
        attribute = key.removesuffix("[]")
        if isinstance(child, str):
            text = child if " " in child else f" {child}"
            annotations[attribute] = Float32[Array, text]
        elif attribute != key:
            annotations[attribute] = list[schema(child, f"{name}_{attribute}")]
            namespace[attribute] = cs.field(length="depth")
        else:
            annotations[attribute] = schema(child, f"{name}_{attribute}")
    return type(name, (cs.Schema,), namespace)


# --- what is planted in the model  ---


@dataclasses.dataclass(frozen=True)
class Planted:
    """The view that plants make: where each leaf of the source is, and how many rules say so."""

    moved: Mapping[Path, Path]
    plants: int
    rules: int


# New names, some of which other nodes have.
FRESH = (
    "tok",
    "core",
    "ln",
    "dense",
    "gain",
    "inner",
    "scale",
    "kernel",
    "bias",
    "up",
    "q",
    "attn",
)


KINDS = ("leaf", "node", "number", "numbers", "level", "level of all", "drop")


@st.composite
def planted(draw: Any) -> Planted:
    """Up to four plants, one after the other."""
    dims = dict(leaves(BODY))
    moved = {path: path for path in dims}
    rules = 0
    fresh = iter(draw(st.permutations(FRESH)))
    count = draw(st.integers(0, 4))
    for _ in range(count):
        kind = draw(st.sampled_from(KINDS))
        now = sorted(moved.values())
        nodes = sorted({path[:end] for path in now for end in range(1, len(path))})
        change: dict[Path, Path] = {}
        if kind == "leaf":
            path = draw(st.sampled_from(now))
            change = {path: (*path[:-1], next(fresh))}
            rules += 1
        elif kind in ("node", "number"):
            node = draw(st.sampled_from(nodes))
            name = node[-1].removesuffix("[]")
            new = next(fresh) if kind == "node" else f"{name.rstrip('0123456789')}{9 - rules}"
            new += node[-1][len(name) :]
            change = {p: (*node[:-1], new, *p[len(node) :]) for p in now if p[: len(node)] == node}
            rules += 1
        elif kind == "numbers":
            numbered = [n for n in nodes if n[-1].rstrip("0123456789") != n[-1]]
            numbers = draw(st.permutations(range(5, 5 + len(numbered))))
            word = next(fresh)
            for node, number in zip(numbered, numbers, strict=True):
                below = [p for p in now if p[: len(node)] == node]
                change |= {p: (*node[:-1], f"{word}{number}", *p[len(node) :]) for p in below}
            rules += len(numbered)
        elif kind == "level":
            node = draw(st.sampled_from(nodes))
            new = next(fresh)
            change = {p: (*node, new, *p[len(node) :]) for p in now if p[: len(node)] == node}
            rules += len({p[len(node)] for p in change})
        elif kind == "level of all":
            new = next(fresh)
            change = {p: (new, *p) for p in now}
            rules += len({p[0] for p in now})
        else:
            inner = [n for n in nodes if len(n) > 1 and not n[-1].endswith("[]")]
            node = draw(st.sampled_from(inner))
            change = {p: (*node[:-1], *p[len(node) :]) for p in now if p[: len(node)] == node}
            rules += len(change)
        made = {path: change.get(to, to) for path, to in moved.items()}
        if well_formed([*made.values()]) and not confused(made):
            moved = made
    return Planted(moved, count, rules)


def well_formed(paths: Sequence[Path]) -> bool:
    """Whether each leaf has a place of its own, and none stands where a node does."""
    if len(set(paths)) < len(paths):
        return False
    nodes = {path[:end] for path in paths for end in range(1, len(path))}
    names = {(*n[:-1], n[-1].removesuffix("[]")) for n in {*nodes, *paths}}
    return not nodes & set(paths) and len(names) == len({*nodes, *paths})


def confused(moved: Mapping[Path, Path]) -> bool:
    """Whether a leaf is called what another was: equal names are one leaf, and no error is raised."""
    return any(to in moved and to != path for path, to in moved.items())


# --- what is planted in the optimizer  ---

Transformation = optax.GradientTransformation


@dataclasses.dataclass(frozen=True)
class Chain:
    """An optimizer of the view, and how many rules take Adam's state to it."""

    make: Callable[[], Transformation]
    rules: int = 0


CHAINS = {
    "the same": Chain(lambda: optax.adam(1e-3)),
    "clipping": Chain(lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))),
    "a level more": Chain(lambda: optax.chain(optax.chain(optax.adam(1e-3)))),
    "a schedule": Chain(lambda: optax.adam(optax.linear_schedule(1e-3, 0.0, 10)), 1),
    "apply_if_finite": Chain(lambda: optax.apply_if_finite(optax.adam(1e-3), 5), 3),
    "MultiSteps": Chain(lambda: optax.MultiSteps(optax.adam(1e-3), 2).gradient_transformation(), 3),
    "inject_hyperparams": Chain(
        lambda: optax.inject_hyperparams(optax.adam)(learning_rate=1e-3), 2
    ),
    "conditionally_mask": Chain(
        lambda: optax.conditionally_mask(optax.adam(1e-3), lambda step: step > 0), 1
    ),
    "a group": Chain(
        lambda: optax.partition(
            {"all": optax.adam(1e-3)}, lambda params: jax.tree.map(lambda _: "all", params)
        )
    ),
    "two wrappers": Chain(
        lambda: optax.apply_if_finite(optax.inject_hyperparams(optax.adam)(learning_rate=1e-3), 5),
        5,
    ),
    "another": Chain(lambda: optax.sgd(1e-3, momentum=0.9), 2),
}


def is_adam(node: Any) -> bool:
    return isinstance(node, optax.ScaleByAdamState)


# --- following what is printed  ---


def followed(
    source: Any, view: Any, pick: Callable[[Sequence[Any]], Sequence[Any]], most: int
) -> tuple[cs.Lens | None, list[Any]]:
    """The lens that following the rules of errors ends in, or None where an error has none, and these rules."""
    rules: list[Any] = []
    for _ in range(most + 1):
        try:
            return cs.derive(source, view, rules=rules), rules
        except cs.DerivationError as error:
            more = [rule for rule in error.rules if rule not in rules]
            assert all(fault.kind in ("unplaced", "chain") for fault in error.mismatches), str(
                error
            )
            assert len(more) == len(error.rules), f"advised again: {error}"
            open_ = [fault for fault in error.mismatches if not fault.rules]
            assert all("rename(" not in f.hint and "private(" not in f.hint for f in open_)
            if not more:
                assert all(" may be " in fault.hint for fault in error.mismatches), str(error)
                return None, rules
            rules += pick(more)
    raise AssertionError(f"no end after {most} rounds: {rules}")


def agree(rules: Sequence[Any], moved: Mapping[Path, Path]) -> None:
    """No rule takes a leaf of the model to where another belongs."""
    there = set(moved.values())
    renames = {rule.source: rule.view for rule in rules if hasattr(rule, "source") and rule.view}
    for path, to in moved.items():
        ends = [end for end in range(len(path), 0, -1) if path[:end] in renames]
        now = (*renames[path[: ends[0]]], *path[ends[0] :]) if ends else path
        assert now in (to, path) or now not in there, f"{path} goes to {now}, not {to}: {rules}"


def at(tree: Any, path: Path, index: int) -> Any:
    for segment in path:
        tree = tree[segment.removesuffix("[]")]
        tree = tree[index] if segment.endswith("[]") else tree
    return tree


def values(spec: Mapping[Path, str], start: int) -> dict[str, Any]:
    """A tree whose elements are all different, with one subtree a layer."""
    count = itertools.count(start)
    root: dict[str, Any] = {}
    for path, text in spec.items():
        for index in range(SIZES["depth"]) if any(s.endswith("[]") for s in path) else (0,):
            shape = [SIZES[name] for name in text.split()]
            node = root
            for segment in path[:-1]:
                node = node.setdefault(segment.removesuffix("[]"), {})
                node = node.setdefault(index, {}) if segment.endswith("[]") else node
            size = int(np.prod(shape))
            leaf = np.float32([next(count) for _ in range(size)]).reshape(shape)
            node[path[-1]] = leaf
    return root


PICKS = st.sampled_from(("all", "first", "last"))


def picker(how: str) -> Callable[[Sequence[Any]], Sequence[Any]]:
    return {"all": lambda r: r, "first": lambda r: r[:1], "last": lambda r: r[-1:]}[how]


@examples(1)
@hypothesis.given(planted(), PICKS)
def test_following_the_advice_ends_in_the_planted_lens(plan: Planted, how: str) -> None:
    dims = dict(leaves(BODY))
    view = {to: dims[path] for path, to in plan.moved.items()}
    layouts = schema(BODY, "Old"), schema(built(view), "New")
    most = plan.plants if how == "all" else plan.rules
    lens, rules = followed(*layouts, picker(how), most)
    agree(rules, plan.moved)
    if lens is None:
        return
    tree = values(dims, 1)
    made = lens.get(tree)
    for path, to in plan.moved.items():
        for index in range(SIZES["depth"]):
            np.testing.assert_array_equal(at(made, to, index), at(tree, path, index))


@pytest.mark.parametrize("name", CHAINS)
@examples(0.16)
@hypothesis.given(planted(), PICKS, st.booleans())
def test_following_the_advice_keeps_the_moments(
    name: str, plan: Planted, how: str, turned: bool
) -> None:
    """An optimizer that is wrapped, unwrapped, extended or replaced, while leaves are renamed."""
    dims = dict(leaves(BODY))
    spec = {to: dims[path] for path, to in plan.moved.items()}
    chain, tx = CHAINS[name], (optax.adam(1e-3), CHAINS[name].make())
    tx = tx[::-1] if turned else tx
    old, new = schema(BODY, "Old"), schema(built(spec), "New")
    layouts = cs.linen.BareTrainState[old, tx[0]], cs.linen.BareTrainState[new, tx[1]]
    most = plan.plants + 1 if how == "all" else plan.rules + chain.rules
    lens, rules = followed(*layouts, picker(how), most)
    agree(rules, plan.moved)
    if name != "another":
        assert not [rule for rule in rules if "mu" in str(rule)]
    if lens is None:
        return
    params, moments = values(dims, 1), values(dims, 1000)
    state = jax.tree.map(
        lambda node: node._replace(count=np.int32(7), mu=moments) if is_adam(node) else node,
        tx[0].init(params),
        is_leaf=is_adam,
    )
    made = lens.get({"step": np.int32(3), "params": params, "opt_state": state})
    there = renamed(params, plan), renamed(moments, plan)
    expected = jax.tree.map(
        lambda node: node._replace(count=np.int32(7), mu=there[1]) if is_adam(node) else node,
        tx[1].init(there[0]),
        is_leaf=is_adam,
    )
    cs.assert_trees_identical(
        jax.tree.map(np.asarray, made),
        jax.tree.map(np.asarray, {"step": np.int32(3), "params": there[0], "opt_state": expected}),
    )


def renamed(tree: Any, plan: Planted) -> Any:
    """What the planted lens makes of a tree."""
    root: dict[str, Any] = {}
    for path, to in plan.moved.items():
        for index in range(SIZES["depth"]) if any(s.endswith("[]") for s in path) else (0,):
            node = root
            for segment in to[:-1]:
                node = node.setdefault(segment.removesuffix("[]"), {})
                node = node.setdefault(index, {}) if segment.endswith("[]") else node
            node[to[-1]] = at(tree, path, index)
    return root
