"""What `adapt` makes of pairs of trees, against NumPy, and what it refuses: never wrong."""

from __future__ import annotations

from typing import Any

import adapted
import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx

import ckpt_schema as cs


def test_random_pairs_are_right_or_refused() -> None:
    counts = adapted.histogram(0, 60)
    assert counts["wrong"] == counts["refused"] == counts["refused, whatever is said"] == 0
    assert counts["right"] > 20


def stack(*shape: int) -> np.ndarray[Any, Any]:
    return np.arange(np.prod(shape), dtype="float32").reshape(shape)


def test_a_square_stack_is_doubtful_where_one_of_its_name_moves() -> None:
    """The decoder's layers move from axis 1 to axis 0; the encoder has as many layers as it is wide."""
    kernel, bias, square = stack(4, 3, 5), stack(5, 3), stack(4, 4, 5)
    source = {
        "params": {
            "decoder": {"layers": {"kernel": kernel, "bias": bias}},
            "encoder": {"layers": {"kernel": square}},
        }
    }
    view = {
        "params": {
            "decoder": {"layers": {"kernel": kernel.swapaxes(0, 1), "bias": bias.T}},
            "encoder": {"layers": {"kernel": square.swapaxes(0, 1)}},
        }
    }
    with pytest.raises(cs.DerivationError) as caught:
        cs.adapt(source, view)
    assert "scan={'encoder/layers': (0, 1)} or scan={'encoder/layers': None}" in str(caught.value)
    moved = cs.adapt(source, view, scan={"encoder/layers": (0, 1)})
    cs.assert_trees_identical(moved.get(source), view)
    stayed = cs.adapt(source, view, scan={"encoder/layers": None})
    assert np.array_equal(stayed.get(source)["params"]["encoder"]["layers"]["kernel"], square)


def test_a_square_stack_is_doubtful_where_one_of_as_many_layers_moves() -> None:
    """The decoder moves axis 1 to axis 0, which looks as axis 0 to axis 1 does, of three layers, not four."""
    kernels = {"up": stack(3, 4, 5), "down": stack(3, 4, 7)}
    square = stack(4, 4, 6)
    source = {"decoder": {"layers": kernels}, "encoder": {"blocks": {"w": square}}}
    moved = {name: kernel.swapaxes(0, 1) for name, kernel in kernels.items()}
    view = {"decoder": {"layers": moved}, "encoder": {"blocks": {"w": square.swapaxes(0, 1)}}}
    with pytest.raises(cs.DerivationError) as caught:
        cs.adapt({"params": source}, {"params": view})
    assert "scan={'encoder/blocks': (1, 0)}" in str(caught.value)
    lens = cs.adapt({"params": source}, {"params": view}, scan={"encoder/blocks": (1, 0)})
    cs.assert_trees_identical(lens.get({"params": source}), {"params": view})


@pytest.mark.parametrize("size", [2, 5])
def test_a_list_in_a_stack_is_held_against_a_stack_in_a_list(size: int) -> None:
    """Two axes are said at once: the error has the lines, of which one is true."""
    values = np.arange(3 * 2 * size * 4, dtype="float32").reshape(3, 2, size, 4)
    source = {"towers": {f"layers_{n}": {"w": values[:, n]} for n in range(2)}}
    view = {f"towers_{n}": {"layers": {"w": values[n].swapaxes(0, 1)}} for n in range(3)}
    with pytest.raises(cs.DerivationError) as caught:
        cs.adapt({"params": source}, {"params": view})
    assert "scan={'towers': 0, 'towers/layers': 1}" in str(caught.value)
    assert ("'towers/layers': 0}" in str(caught.value)) == (size == 2)
    for scan in (
        {"towers": 0, "towers/layers": 1},
        {"towers": (0, None), "towers/layers": (None, 1)},
    ):
        lens = cs.adapt({"params": source}, {"params": view}, scan=scan)
        cs.assert_trees_identical(lens.get({"params": source}), {"params": view})
        cs.assert_trees_identical(lens.put({"params": view}), {"params": source})


def test_two_lists_of_as_many_are_no_rename_of_one_another() -> None:
    """Names are equal but for what is numbered: nothing proves that one is the other."""
    source = {"towers": {f"layers_{n}": {"w": stack(5) + n} for n in range(2)}}
    view = {f"towers_{n}": {"layers": {"w": stack(5) + n}} for n in range(2)}
    with pytest.raises(cs.DerivationError) as caught:
        cs.adapt({"params": source}, {"params": view})
    assert not caught.value.rules


def test_siblings_on_both_sides_are_settled_by_one_line() -> None:
    """Each stage has two layers of width two; nobody calls the stages a list."""
    kernels = [stack(2, 2) + 10 * n for n in range(6)]
    view = {
        f"stages_{s}": {f"layers_{n}": {"w": kernels[2 * s + n]} for n in range(2)}
        for s in range(3)
    }
    source = {
        f"stages_{s}": {"layers": {"w": np.stack(kernels[2 * s : 2 * s + 2], axis=1)}}
        for s in range(3)
    }
    with pytest.raises(cs.DerivationError) as caught:
        cs.adapt({"params": source}, {"params": view})
    assert "scan={'stages_*/layers': 1}" in str(caught.value)
    lens = cs.adapt({"params": source}, {"params": view}, scan={"stages_*/layers": 1})
    cs.assert_trees_identical(lens.get({"params": source}), {"params": view})


def test_leaves_of_two_collections_may_be_stacked_on_two_axes() -> None:
    """One axis fits all, and is not the only way: the line that settles it names the axis of each."""
    layers = [{"w": stack(4, 5) + n, "m": stack(3) + n} for n in range(3)]
    one = {
        "params": {"layers": {"w": np.stack([each["w"] for each in layers])}},
        "batch_stats": {"layers": {"m": np.stack([each["m"] for each in layers], axis=1)}},
    }
    many = {
        "params": {f"layers_{n}": {"w": each["w"]} for n, each in enumerate(layers)},
        "batch_stats": {f"layers_{n}": {"m": each["m"]} for n, each in enumerate(layers)},
    }
    with pytest.raises(cs.DerivationError) as caught:
        cs.adapt(one, many)
    line = "scan={'layers': {'batch_stats': 1, 'params': 0}}"
    assert line in str(caught.value).replace("\n", " ")
    lens = cs.adapt(one, many, scan={"layers": {"params": 0, "batch_stats": 1}})
    cs.assert_trees_identical(lens.get(one), many)


def test_all_leaves_of_a_stack_have_as_many_layers() -> None:
    """Two kernels that are transposed are no stack, though each alone could be one."""
    one = {"params": {"node": {"a": {"w": stack(4, 6)}, "b": {"w": stack(5, 6)}}}}
    two = {"params": {"node": {"a": {"w": stack(4, 6).T}, "b": {"w": stack(5, 6).T}}}}
    lens = cs.adapt(one, two)
    cs.assert_trees_identical(lens.get(one), two)
    with pytest.raises(cs.DerivationError):
        cs.adapt(
            {"params": {"node": {"a": {"w": stack(4, 6)}, "b": {"w": stack(5, 7)}}}},
            {"params": {"node": {"a": {"w": stack(6, 4)}, "b": {"w": stack(7, 5)}}}},
        )


def test_lists_inside_of_stacks_and_of_lists_are_lists() -> None:
    """Blocks of two layers each, three times: unrolled, in lists, and stacked on two axes."""
    values = [
        [{"w": stack(4, 5) + 100 * b + 10 * n, "b": stack(6) + 10 * b + n} for n in range(2)]
        for b in range(3)
    ]
    unrolled = {f"blocks_{b}": {f"layers_{n}": values[b][n] for n in range(2)} for b in range(3)}
    listed = {"blocks": {b: {"layers": {n: values[b][n] for n in range(2)}} for b in range(3)}}

    def stacked(axis: int) -> Any:
        layers = [
            {name: np.stack([each[n][name] for each in values], axis=axis) for name in ("w", "b")}
            for n in range(2)
        ]
        return {"blocks": {"layers": dict(enumerate(layers))}}

    front, behind = stacked(0), stacked(1)
    bodies: list[Any] = [unrolled, listed, front, behind]
    spelled = [{"params": body} for body in bodies]
    for source in spelled:
        for view in spelled:
            lens = cs.adapt(source, view)
            cs.assert_trees_identical(lens.get(source), view)
            cs.assert_trees_identical(lens.put(view), source)


def test_stacks_inside_of_lists_are_named_without_numbers() -> None:
    """Each of two towers has three stacked layers, on another axis of each side."""
    kernels = [stack(3, 4, 5) + 100 * n for n in range(2)]
    biases = [stack(3, 4) + 100 * n for n in range(2)]
    one = {"towers": {n: {"layers": {"w": kernels[n], "b": biases[n]}} for n in range(2)}}
    two = {
        f"towers_{n}": {"layers": {"w": kernels[n].swapaxes(0, 1), "b": biases[n].T}}
        for n in range(2)
    }
    source, view = {"params": one}, {"params": two}
    lens = cs.adapt(source, view)
    cs.assert_trees_identical(lens.get(source), view)
    cs.assert_trees_identical(lens.put(view), source)
    made = cs.infer(source, scan={"towers/layers": 0})
    assert "towers[]/layers[]/w" in str(made)


def test_the_counts_of_stacked_streams_are_streams_of_their_own() -> None:
    """A save keeps no Variable types: what stands beside a key, and counts, is its count."""
    key = jax.random.split(jax.random.key(0), 3)
    source = {
        "params": {
            "layers": {
                "w": stack(3, 4),
                "dropout": {"rngs": {"count": np.zeros(3, "uint32"), "key": key}},
            }
        }
    }
    view = {"params": {f"layers_{n}": {"w": stack(3, 4)[n]} for n in range(3)}}
    cs.assert_trees_identical(cs.adapt(source, view).get(source), view)


class Plain(nn.Module):
    """A model whose submodules Linen numbers by itself."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(2):
            x = nn.LayerNorm()(nn.Dense(8)(x))
        x = nn.Dense(8)(x)
        return nn.Dense(3)(x)


class Twin(nnx.Module):
    """The same, named by hand."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.inner = nnx.Linear(4, 8, rngs=rngs)
        self.first = nnx.LayerNorm(8, rngs=rngs)
        self.middle = nnx.Linear(8, 8, rngs=rngs)
        self.second = nnx.LayerNorm(8, rngs=rngs)
        self.last = nnx.Linear(8, 8, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)


def test_names_without_a_like_are_settled_by_one_block_in_one_round() -> None:
    """What shapes make certain are rules; what they allow are lines of which the true ones are pasted."""
    params = jax.jit(Plain().init)(jax.random.key(0), np.zeros((2, 4), "float32"))
    twin = Twin(nnx.Rngs(1))
    with pytest.raises(cs.DerivationError) as caught:
        cs.adapt(params, twin)
    certain = [cs.rename("Dense_0", "inner"), cs.rename("Dense_3", "head")]
    assert list(caught.value.rules) == certain
    text = str(caught.value)
    offered = [line.strip() for line in text.splitlines() if line.strip().startswith("# cs.rename")]
    assert offered == [
        "# cs.rename('Dense_1', 'last'), or 'middle'",
        "# cs.rename('Dense_2', 'last'), or 'middle'",
        "# cs.rename('LayerNorm_0', 'first'), or 'second'",
        "# cs.rename('LayerNorm_1', 'first'), or 'second'",
    ]
    pasted = [
        cs.rename("Dense_1", "middle"),
        cs.rename("Dense_2", "last"),
        cs.rename("LayerNorm_0", "first"),
        cs.rename("LayerNorm_1", "second"),
    ]
    with pytest.warns(cs.AxesWarning):  # square kernels are not transposed
        lens = cs.adapt(params, twin, rules=[*certain, *pasted])
    view = lens.get(params, onto=twin)
    assert np.array_equal(view.middle.kernel[...], params["params"]["Dense_1"]["kernel"])


def test_a_list_of_another_name_is_one_though_its_layers_have_dropout() -> None:
    """Its streams are of NNX alone; without a list no leaf had a type that the other side has."""

    class Block(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.up = nnx.Linear(4, 5, rngs=rngs)
            self.drop = nnx.Dropout(0.1, rngs=rngs)

    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.blocks = nnx.List([Block(rngs) for _ in range(3)])

    layers = {
        f"Layer_{n}": {"Dense_0": {"kernel": stack(4, 5) + n, "bias": stack(5) + n}}
        for n in range(3)
    }
    with pytest.raises(cs.DerivationError) as caught:
        cs.adapt({"params": layers}, lambda: Model(nnx.Rngs(0)))
    assert caught.value.rules == (cs.rename("Layer[]/Dense_0", "blocks[]/up"),)


def test_of_several_nodes_that_shapes_allow_the_one_of_its_own_name_is_offered_first() -> None:
    heads = {name: {"kernel": stack(4, 3)} for name in ("key", "query", "value")}
    old = {"Attention_0": heads, "Attention_1": heads}
    with pytest.raises(cs.DerivationError) as caught:
        cs.adapt({"params": old}, {"params": {"own": heads, "cross": heads}})
    told = str(caught.value)
    assert "# cs.rename('Attention_0/query', 'cross/query'), or 'own/query' or " in told


def test_of_several_nodes_that_shapes_allow_those_beside_its_siblings_are_offered_first() -> None:
    """One layer of each block is certain, and so the others are likely to be in that block too."""
    square, first = {"w": stack(4, 4)}, [{"w": stack(2, size)} for size in (3, 5)]
    old = {f"down_{n}": {"a_0": first[n], "a_1": square, "a_2": square} for n in range(2)}
    new = {f"x{n}": {"p": first[1 - n], "q": square, "r": square} for n in range(2)}
    with pytest.raises(cs.DerivationError) as caught:
        cs.adapt({"params": old}, {"params": new})
    assert "# cs.rename('down_0/a_1', 'x1/q'), or 'x1/r' or 'x0/q'" in str(caught.value)
