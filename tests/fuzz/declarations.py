"""Schema classes drawn at random, from what users write and from what nobody should."""

from __future__ import annotations

import dataclasses
import math
import re
import types
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, BFloat16, Bool, Complex64, Float32, Int32, UInt32

import ckpt_schema as cs
from fuzz.attempts import SilentError
from fuzz.hostile import DIMS, NUMBERS, pick
from fuzz.seen import same


class Below(cs.Schema):
    x: Float32[Array, "a b"]


TYPES = (Float32, Int32, UInt32, Bool, BFloat16, Complex64)
ANNOTATIONS: tuple[Any, ...] = (
    *(Below, list[Below], list[Float32[Array, " a"]], Float32[Array, " a"] | None, Below | None),
    *("Float32[Array, 'a b']", "Nope", "1/0", "(", "", None, int, list, list[int], 5, ...),
    *(list[list[Below]], dict[str, Below], tuple[Below], cs.Schema, Float32, Array, object()),
    *(Float32[np.ndarray, " a"], Float32[Array, "..."], [Below], {"a": 1}, "list['Self']"),
    *(cs.Key["fry"], cs.Stream["fry"], cs.Key["urbg", "layers"], cs.Key, cs.Stream),
)
VALUES: tuple[Any, ...] = (
    *(
        *NUMBERS,
        "a",
        "a/{i}",
        "{i}",
        "a/{i}/{j}",
        "{i+1}",
        "{2*i}",
        "{0*i}",
        "{i:02}",
        "{i:2}",
        "{i",
    ),
    *("x" * 5000, "9" * 5000, "'0'", "0", "//", "a//b", [], {}, {"a": "b"}, {"a": 1}, {1: 2}),
    *({"a": "b c"}, {"a": None}, {"nope": "b"}, int, cs.fresh_key(0), cs.field(), nnx.Param),
    *("RngKey", dict, tuple, jnp.float32, Ellipsis, "depth", 2),
)
ARGUMENTS = (
    *("key", "default", "scan", "axis", "length", "dims", "type", "collection", "optional"),
    *("ephemeral", "value", "tag"),
)
NAMES = ("w", "x", "é", "key", "value", "step", "params", "layers", "mro", "_hidden", "rows")


NUMBER = re.compile(r"[1-9]\d{0,2}")
NAME = re.compile(r"[a-z]\w{0,9}", re.ASCII)
SIZE = {"a": 2, "b": 3, "q": 2, "k": 1, "v": 3}
LARGEST = 5000


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A declaration.

    Attributes:
        schema: The class.
        arrays: The dtype and the dims of each attribute that is an array and no more, by name.
        whole: Whether that is all that there is.
    """

    schema: type[cs.Schema]
    arrays: dict[str, tuple[str, str]]
    whole: bool


def drawn(rng: np.random.Generator, *, well_formed: bool = False) -> Drawn | None:
    """A class of one or two attributes; None where jaxtyping itself refuses an annotation."""
    body: dict[str, Any] = {}
    annotations: dict[str, Any] = {}
    arrays: dict[str, tuple[str, str]] = {}
    for _ in range(int(rng.integers(1, 3))):
        name = pick(rng, NAMES)
        annotations[name] = pick(rng, ANNOTATIONS)
        arrays.pop(name, None)
        if well_formed or rng.integers(2):
            kind = pick(rng, TYPES)
            dims = plain_dims(rng) if well_formed else pick(rng, DIMS)
            try:
                annotations[name] = kind[Array, dims]
            except Exception:  # jaxtyping's own word on its own syntax
                return None
            arrays[name] = (kind.__name__.lower(), dims)
        if not well_formed and rng.integers(2):
            count = int(rng.integers(1, 4))
            given = {str(a): pick(rng, VALUES) for a in rng.permutation(ARGUMENTS)[:count]}
            body[name] = cs.field(**given)
        elif not well_formed and rng.integers(8) == 0:
            body[name] = pick(rng, VALUES)
    body["__annotations__"] = annotations
    schema = types.new_class("Drawn", (cs.Schema,), exec_body=lambda space: space.update(body))
    return Drawn(schema, arrays, arrays.keys() == annotations.keys() and len(body) == 1)


def plain_dims(rng: np.random.Generator) -> str:
    """Dims that are well formed."""
    terms = ("a", "b", "q", "3", "2*a", "a*b", "a+b", "q+2*k", "1")
    return " ".join(pick(rng, terms) for _ in range(int(rng.integers(4))))


def attempt(rng: np.random.Generator) -> None:
    """Declares a schema, well formed now and then, and uses it in the ways there are."""
    well_formed = rng.integers(3) == 0
    try:
        used(rng, well_formed=well_formed)
    except cs.CkptSchemaError as error:
        if well_formed:
            raise SilentError(f"what is right is refused: {error}"[:300]) from error
        raise


def used(rng: np.random.Generator, *, well_formed: bool) -> None:
    """Declares a schema, and uses it."""
    made = None
    while made is None:  # what jaxtyping refuses is no case
        made = drawn(rng, well_formed=well_formed)
    schema = made.schema
    str(cs.layout(schema))
    lens = cs.derive(schema, schema)
    str(lens)
    str(cs.check(schema, {"w": np.zeros((2, 3), "float32")}).mismatches)
    if made.whole:
        held(rng, lens, made)
    use = int(rng.integers(4))
    if use == 0:
        str(cs.layout(cs.linen.Params[schema]))
    elif use == 1:
        str(cs.layout(cs.nnx.Params[schema]))
    elif use == 2:
        cs.derive(cs.linen.Params[schema], cs.nnx.Params[schema])


# --- What is accepted, held against a reading of its own ---


def held(rng: np.random.Generator, lens: cs.Lens, made: Drawn) -> None:
    """Raises unless what is declared is taken as it is, and nothing else is taken for it."""
    shapes = {name: shape(dims) for name, (_, dims) in made.arrays.items()}
    if None in shapes.values():
        return
    names = {name for _, dims in made.arrays.values() for name in re.findall(r"[a-z]\w*", dims)}
    sizes = {name: SIZE.get(name, 2) for name in names}
    tree: dict[str, Any] = {}
    for name, (dtype, _) in made.arrays.items():
        tree[name] = rng.integers(0, 2, shapes[name]).astype(jnp.dtype(dtype))
    if not cs.check(made.schema, tree, sizes).ok:
        raise SilentError(f"{made.arrays} refuses what it declares")
    same(lens.bind(**sizes).get(tree), tree)
    name = pick(rng, [*tree])
    leaf = tree[name]
    for what, other in (
        ("another dtype", {**tree, name: np.zeros(leaf.shape, "float16")}),
        ("one axis more", {**tree, name: leaf[None]}),
        ("nothing", {key: value for key, value in tree.items() if key != name}),
        ("one leaf more", {**tree, "unheard_of": leaf}),
        ("a longer axis", {**tree, name: np.repeat(leaf, 7, -1) if leaf.ndim else leaf[None]}),
    ):
        if cs.check(made.schema, other, sizes).ok:
            raise SilentError(f"{made.arrays} takes {what} for {name}")


def shape(dims: str) -> tuple[int, ...] | None:
    """The shape that dims have for the sizes of this module; None where they are not plain enough."""
    found: list[int] = []
    for dim in dims.split():
        terms = [term.split("*") for term in dim.split("+")]
        if not all(NUMBER.fullmatch(x) or NAME.fullmatch(x) for term in terms for x in term):
            return None
        sized = [[int(x) if x.isdigit() else SIZE.get(x, 2) for x in term] for term in terms]
        found.append(sum(math.prod(term) for term in sized))
    return tuple(found) if math.prod(found) < LARGEST else None
