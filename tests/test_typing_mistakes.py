"""Mistakes in declarations, and in edits, that are found when a lens is derived: before there is a tree, and for all sizes."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from typing import Any

import pytest
from jaxtyping import Array, BFloat16, Float32, Int32

import ckpt_schema as cs
from ckpt_schema.dims import parse_dims
from ckpt_schema.lens import parts, relate
from ckpt_schema.lens.edits import Chain
from ckpt_schema.lens.rearranged import Rearrange
from ckpt_schema.lens.stacks import Beside, Concat, Split, Stack, Unstack


def schema(**leaves: Any) -> type[cs.Schema]:
    """A schema of leaves, given by their dims, or by an annotation and a field."""
    given = {
        name: each if isinstance(each, tuple) else (each, cs.field())
        for name, each in leaves.items()
    }
    kinds = {
        name: Float32[Array, kind] if isinstance(kind, str) else kind
        for name, (kind, _) in given.items()
    }
    body = {"__annotations__": kinds, **{name: value for name, (_, value) in given.items()}}
    return types.new_class(
        "Model", (cs.Schema,), exec_body=lambda namespace: namespace.update(body)
    )


def listed(count: str, dims: str = "a b") -> type[cs.Schema]:
    """Layers in a list."""
    return schema(layers=(list[schema(w=dims)], cs.field(length=count)))  # type: ignore[misc]


def scanned(count: str, dims: str = "a b", axis: int = 0) -> type[cs.Schema]:
    """Layers in a stack."""
    return schema(layers=(schema(w=dims), cs.field(scan=count, axis=axis)))


def in_blocks(inside: int, dims: str = "a b") -> type[cs.Schema]:
    """Layers in blocks, with a remainder."""
    layer = schema(w="a b")
    block = schema(layers=(list[layer], cs.field(length=inside)))  # type: ignore[valid-type]

    class Blocks(cs.Schema):
        blocks: block = cs.field(scan="blocks", axis=0)  # type: ignore[valid-type]
        rest: list[schema(w=dims)] = cs.field(length="rest")  # type: ignore[misc]
        layers = cs.series("blocks[]/layers[]", "rest[]")

    return Blocks


def _derived(sides: tuple[Any, ...]) -> cs.Lens:
    """The lens between two layouts, with rules if there are any."""
    source, view, *rules = sides
    return cs.derive(source, view, rules=rules[0] if rules else ())


@dataclasses.dataclass(frozen=True)
class Mistake:
    """Two layouts that do not go together, and the same without the mistake.

    Attributes:
        wrong: The layouts, and rules.
        right: The same, as was meant.
        path: What the error is about.
        shown: What it shows of both sides.
    """

    wrong: tuple[Any, ...]
    right: tuple[Any, ...]
    path: str
    shown: tuple[str, str]


QKV = [cs.fuse("qkv", ["q", "k", "v"])]
APART = {"q": "embed heads*dim", "k": "embed kv*dim", "v": "embed kv*dim"}
FUSED = schema(qkv="embed heads*dim+2*kv*dim")
BLOCKED = "6*blocks+rest"

MISTAKES = {
    "axes of equal size under names that are not the other side's": Mistake(
        (schema(w="query key"), schema(w="key value")),
        (schema(w="query key"), schema(w="key query")),
        "w",
        ("float32[key value]", "float32[query key]"),
    ),
    "sizes that say nothing about which axis is which": Mistake(
        (schema(w="8 8 4"), schema(w="8 4 8")),
        (schema(w="a b 4"), schema(w="a 4 b")),
        "w",
        ("float32[8 4 8]", "float32[8 8 4]"),
    ),
    "a factor that is lost in a merge": Mistake(
        (schema(w="embed heads dim"), schema(w="embed heads")),
        (schema(w="embed heads dim"), schema(w="embed heads*dim")),
        "w",
        ("float32[embed heads]", "float32[embed heads dim]"),
    ),
    "a factor that is there twice": Mistake(
        (schema(w="embed heads dim"), schema(w="embed heads*heads*dim")),
        (schema(w="embed heads dim"), schema(w="embed dim*heads")),
        "w",
        ("float32[embed heads*heads*dim]", "float32[embed heads dim]"),
    ),
    "a dim that occurs twice, moved": Mistake(
        (schema(w="n n m"), schema(w="n m n")),
        (schema(w="n k m"), schema(w="n m k")),
        "w",
        ("float32[n m n]", "float32[n n m]"),
    ),
    "an axis squeezed that is longer than 1": Mistake(
        (schema(w="n 2 m"), schema(w="n m")),
        (schema(w="n 1 m"), schema(w="n m")),
        "w",
        ("float32[n m]", "float32[n 2 m]"),
    ),
    "another float": Mistake(
        (schema(w="n m"), schema(w=(BFloat16[Array, "m n"], cs.field()))),
        (schema(w="n m"), schema(w="m n")),
        "w",
        ("bfloat16[m n]", "float32[n m]"),
    ),
    "a stack and a list that are counted differently": Mistake(
        (scanned("depth"), listed("blocks")),
        (scanned("depth"), listed("depth")),
        "layers[]/w",
        ("repeats: blocks", "depth in the source"),
    ),
    "a stack that is a level short": Mistake(
        (scanned("stages*depth"), listed("depth")),
        (scanned("stages*depth"), listed("stages*depth")),
        "layers[]/w",
        ("depth in the view", "stages*depth in the source"),
    ),
    "a stack axis that is declared as one of the leaf's own": Mistake(
        (schema(layers=(schema(w="depth a b"), cs.field())), listed("depth")),
        (scanned("depth"), listed("depth")),
        "layers/w",
        ("a partner", "alone"),
    ),
    "blocks without their remainder": Mistake(
        (in_blocks(6), listed("6*blocks")),
        (in_blocks(6), listed(BLOCKED)),
        "layers[]/w",
        ("blocks*6+rest repeats", "6*blocks"),
    ),
    "blocks of another size": Mistake(
        (in_blocks(5), listed(BLOCKED)),
        (in_blocks(6), listed(BLOCKED)),
        "layers[]/w",
        ("blocks*5+rest repeats", "6*blocks+rest"),
    ),
    "a remainder of other layers than the blocks'": Mistake(
        (in_blocks(6, dims="a c"), listed(BLOCKED)),
        (in_blocks(6), listed(BLOCKED)),
        "layers[]/w",
        ("float32[a c]", "float32[a b]"),
    ),
    "parts that are not the terms of the sum": Mistake(
        (FUSED, schema(**{**APART, "k": "embed heads*dim"}), QKV),
        (FUSED, schema(**APART), QKV),
        "qkv",
        ("float32[embed heads*dim]", "kv"),
    ),
    "parts of which one has another axis": Mistake(
        (FUSED, schema(**{**APART, "v": "hidden kv*dim"}), QKV),
        (FUSED, schema(**{**APART, "v": "kv*dim embed"}), QKV),
        "qkv",
        ("hidden", "embed"),
    ),
    "parts of a whole that is no sum": Mistake(
        (schema(qkv="embed joined"), schema(**APART), QKV),
        (FUSED, schema(**APART), QKV),
        "qkv",
        ("one axis that 3 leaves share", "none in float32[embed joined]"),
    ),
    "parts in another order": Mistake(
        (FUSED, schema(**APART), [cs.fuse("qkv", ["k", "q", "v"])]),
        (FUSED, schema(**APART), QKV),
        "qkv",
        ("heads", "kv"),
    ),
    "padding of an axis that is not there": Mistake(
        (schema(w="vocab embed"), schema(w="padded embed"), [cs.pad("w", "tokens", "padded")]),
        (schema(w="vocab embed"), schema(w="padded embed"), [cs.pad("w", "vocab", "padded")]),
        "pad('w', 'tokens', 'padded', fill=0)",
        ("tokens", "none"),
    ),
    "a flip of an axis that is not there": Mistake(
        (schema(w="a b"), schema(w="a b"), [cs.flip("w", "c")]),
        (schema(w="a b"), schema(w="a b"), [cs.flip("w", "b")]),
        "flip('w', 'c')",
        ("an axis c", "none"),
    ),
    "integers that are scaled": Mistake(
        (
            schema(n=(Int32[Array, " k"], cs.field())),
            schema(n=(Int32[Array, " k"], cs.field())),
            [cs.scale("n", 0.5)],
        ),
        (schema(n=" k"), schema(n=" k"), [cs.scale("n", 0.5)]),
        "scale('n', 0.5)",
        ("", ""),
    ),
}
each_mistake = pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)


@each_mistake
def test_a_mistake_in_a_declaration_is_found_without_a_tree(mistake: Mistake) -> None:
    with pytest.raises(cs.DerivationError) as caught:
        _derived(mistake.wrong)
    message = str(caught.value)
    assert mistake.path in [m.path for m in caught.value.mismatches], message
    assert all(each in message for each in mistake.shown), message


@each_mistake
def test_what_was_meant_is_derived(mistake: Mistake) -> None:
    assert _derived(mistake.right).joins


# --- Edits  ---

Plant = Callable[[Chain], Chain]


def _swapped(dims: str) -> Plant:
    """The chain with two axes of its result exchanged: of equal size they may be, but not of one name."""
    before = parse_dims(dims)
    return lambda chain: chain >> Rearrange(before, (before[1], before[0], *before[2:]))


def _replaced(kind: type[Any], make: Callable[[Any], Any]) -> Plant:
    """The chain with another edit in the place of those of one kind."""
    return lambda chain: Chain(
        tuple(make(edit) if isinstance(edit, kind) else edit for edit in chain.edits)
    )


def _beside(make: Callable[[Chain], Chain]) -> Plant:
    return _replaced(Beside, lambda edit: Beside((make(edit.chains[0]), *edit.chains[1:])))


MATRIX = schema(w="a b"), schema(w="b a")
HEADS = schema(w="embed heads*dim"), schema(w="heads embed dim")
STACKED = scanned("depth", axis=1), listed("depth", "b a")
STACKING = listed("depth", "b a"), scanned("depth", axis=1)

PLANTS: dict[str, tuple[Any, Plant]] = {
    "a transposition dropped": (
        MATRIX,
        lambda _: Chain((Rearrange(parse_dims("a b"), parse_dims("a b")),)),
    ),
    "axes swapped once more": (MATRIX, _swapped("b a")),
    "axes of a product swapped": (HEADS, _swapped("heads embed dim")),
    "an axis merged that is to stand alone": (
        HEADS,
        lambda _: Chain((Rearrange(parse_dims("embed heads*dim"), parse_dims("heads embed*dim")),)),
    ),
    "unstacked on the wrong axis": (
        STACKED,
        _replaced(Unstack, lambda edit: dataclasses.replace(edit, axis=0)),
    ),
    "not unstacked": (STACKED, lambda chain: Chain(chain.edits[1:])),
    "not transposed after unstacking": (STACKED, lambda chain: Chain(chain.edits[:1])),
    "stacked on the wrong axis": (
        STACKING,
        _replaced(Stack, lambda edit: dataclasses.replace(edit, axis=0)),
    ),
    "not transposed before stacking": (STACKING, lambda chain: Chain(chain.edits[1:])),
    "the way back instead of the way there": (HEADS, lambda chain: ~chain),
    "split into parts of other sizes": (
        (FUSED, schema(**APART), QKV),
        _replaced(
            Split, lambda edit: Split(edit.axis, (edit.parts[1], edit.parts[0], edit.parts[2]))
        ),
    ),
    "split on the wrong axis": (
        (FUSED, schema(**APART), QKV),
        _replaced(Split, lambda edit: Split(0, edit.parts)),
    ),
    "a part that is turned": (
        (FUSED, schema(**{**APART, "q": "heads dim embed"}), QKV),
        _beside(
            lambda chain: (
                chain >> Rearrange(parse_dims("heads dim embed"), parse_dims("dim heads embed"))
            )
        ),
    ),
}


@pytest.mark.parametrize(("layouts", "plant"), PLANTS.values(), ids=PLANTS)
def test_a_wrong_edit_is_found_on_symbolic_shapes(
    layouts: Any, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _derived(layouts).joins
    _plant(plant, monkeypatch)
    with pytest.raises(
        (cs.DerivationError, TypeError, ValueError)
    ) as caught:  # of what does no array at all, jax says so
        _derived(layouts)
    if isinstance(caught.value, cs.DerivationError):
        fault = caught.value.mismatches[0]
        assert fault.kind == "dims"
        assert "float32" in fault.expected
        assert "float32" in f"{fault.found} {fault.hint}"


def _plant(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the mistake where chains are made: between two rows, and between a whole and its parts."""
    real = relate._Work.chain
    monkeypatch.setattr(relate._Work, "chain", lambda self: plant(real(self)))
    typed = parts._type_fault

    def with_mistake(whole: Any, rows: Any, join: Any) -> Any:
        return typed(whole, rows, dataclasses.replace(join, chain=plant(join.chain)))

    monkeypatch.setattr(parts, "_type_fault", with_mistake)


def test_parts_are_joined_on_the_axis_that_they_share() -> None:
    lens = cs.derive(schema(**APART), FUSED, rules=QKV)
    (join,) = lens.joins
    assert any(isinstance(edit, Concat) for edit in join.chain.edits)
