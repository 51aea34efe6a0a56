"""States of NNX that Flax 0.8 to 0.11 saved are restored into today's modules by their paths; see tests/older/write_nnx.py.

What each release held itself, as it wrote it down with NumPy, is the oracle.
"""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import ckpt_schema as cs

ARCHIVES = Path(__file__).parent / "older"
RELEASES = ["0.8.3", "0.9.0", "0.10.4", "0.11.0"]
EMBED, HEADS, VOCAB, LENGTH, DEPTH = 4, 2, 5, 3, 2
TOKENS = np.arange(2 * LENGTH).reshape(2, LENGTH) % VOCAB


# --- the model that was saved, as it is written today  ---


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm = nnx.BatchNorm(EMBED, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            num_heads=HEADS, in_features=EMBED, decode=False, rngs=rngs
        )
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.dropout(self.attention(self.norm(x)))


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(VOCAB, EMBED, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(DEPTH)])
        self.head = nnx.Linear(EMBED, VOCAB, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def model() -> Net:
    """One that has none of the values."""
    return Net(nnx.Rngs(params=5, dropout=6))


def run() -> dict[str, Any]:
    own = model()
    return {"model": own, "optimizer": nnx.Optimizer(own, optax.adam(1e-2), wrt=nnx.Param)}


# --- what the old release held  ---


@pytest.fixture(scope="session")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nnx")
    for release in RELEASES:
        with tarfile.open(ARCHIVES / f"nnx-{release}.tar.xz") as packed:
            packed.extractall(folder / release, filter="data")
    return folder


def written(folder: Path, form: str) -> dict[str, np.ndarray]:
    """What the old release held of a form, by key path without the level of a Variable."""
    held: dict[str, np.ndarray] = {}
    with np.load(folder / "values.npz") as values:
        for name in values.files:
            first, *keys = name.split("/")
            if first == form:
                keys = keys[:-1] if keys[-1] in ("value", "raw_value") else keys
                held["/".join(keys)] = values[name]
    return held


def flat(tree: Any) -> dict[str, np.ndarray]:
    """What a tree of today holds, by key path, with keys as their data."""
    if isinstance(tree, dict):
        found: dict[str, np.ndarray] = {}
        for key, child in tree.items():
            found |= {f"{key}/{path}".strip("/"): leaf for path, leaf in flat(child).items()}
        return found
    if isinstance(tree, nnx.Pytree):
        return flat(nnx.to_pure_dict(nnx.state(tree)))
    is_key = jax.numpy.issubdtype(tree.dtype, jax.dtypes.prng_key)
    return {"": np.asarray(jax.random.key_data(tree) if is_key else tree)}


def verify_same(
    found: dict[str, np.ndarray], expected: dict[str, np.ndarray], own: dict[str, np.ndarray]
) -> None:
    """Every leaf has the bits that the old release held; streams that it had elsewhere are those of the target."""
    apart = found.keys() ^ expected.keys()
    assert all("/rngs/" in path for path in apart)
    for path in found:
        wanted = own[path] if path in apart else expected[path]
        assert found[path].dtype == wanted.dtype
        assert found[path].tobytes() == wanted.tobytes(), path


def rules(release: str) -> list[Any]:
    """Since 0.11 streams stand where they do today: that they are raw is all that there is to say."""
    return [cs.raw_key("**/rngs/key")] if release == "0.11.0" else []


@pytest.mark.parametrize("release", RELEASES)
def test_a_model_and_its_optimizer(older: Path, release: str) -> None:
    target = run()
    own = flat(target)
    cs.orbax.restore(older / release / "run", target, rules=rules(release))
    expected = written(older / release, "run")
    if "optimizer/step" not in expected:  # until Flax 0.10 an optimizer held its model
        expected = {
            path if path.startswith("model/") else f"optimizer/{path}": value
            for path, value in expected.items()
        }
    verify_same(flat(target), expected, own)
    target["model"].eval()
    with np.load(older / release / "values.npz") as values:
        np.testing.assert_allclose(target["model"](TOKENS), values["output"], atol=1e-5)


@pytest.mark.parametrize("release", RELEASES)
def test_a_model_alone(older: Path, release: str) -> None:
    for form in ("pure", "named"):
        target = model()
        own = flat(target)
        cs.orbax.restore(older / release / form, target, rules=rules(release))
        verify_same(flat(target), written(older / release, form), own)


def test_a_raw_key_that_stands_where_it_does_today_is_told(older: Path) -> None:
    with pytest.raises(cs.DerivationError, match=r"raw_key\('blocks\[\]/dropout/rngs/key'\)"):
        cs.orbax.restore(older / "0.11.0" / "run", run())


def test_a_model_with_typed_keys(older: Path) -> None:
    target = {"model": model()}
    own = flat(target)
    cs.orbax.restore(older / "0.11.0" / "typed", target)
    verify_same(flat(target), written(older / "0.11.0", "typed"), own)


# --- streams by themselves  ---


def stream(number: int) -> dict[str, Any]:
    return {"key": np.full((2,), number, "uint32"), "count": np.uint32(number)}


class Lone(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.dense = nnx.Linear(2, 3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)


def older_state(**streams: int) -> dict[str, Any]:
    """A state with streams of these names, in the layout of old."""
    rngs = {name: stream(number) for name, number in streams.items()}
    dense = {"kernel": np.ones((2, 3), "float32"), "bias": np.ones(3, "float32")}
    return {"dense": dense, "dropout": {"rngs": rngs}}


def newer_state(*names: str, impl: str | None = None) -> Any:
    """That of a module of today that was made with streams of these names."""
    keys: Any = {name: jax.random.key(9, impl=impl) for name in names}
    return nnx.state(Lone(nnx.Rngs(**keys)))


@pytest.mark.parametrize(
    ("streams", "drawn"),
    [({"default": 1}, 1), ({"params": 1, "dropout": 2}, 2), ({"default": 1, "dropout": 2}, 2)],
)
def test_a_layer_goes_on_with_the_stream_it_drew_from(streams: dict[str, int], drawn: int) -> None:
    old, new = older_state(**streams), newer_state(*streams)
    found = flat(nnx.to_pure_dict(cs.adapt(old, new).get(old, onto=new)))
    assert found["dropout/rngs/key"].tolist() == [drawn, drawn]
    assert found["dropout/rngs/count"] == drawn


def test_what_no_stream_of_the_layer_is_called_is_an_error() -> None:
    with pytest.raises(cs.DerivationError, match="dropout/rngs/noise/key"):
        cs.adapt(older_state(noise=1), newer_state("default"))


def test_raw_data_of_two_implementations_is_an_error_that_says_what_to_write() -> None:
    old = older_state(default=1)
    old["dropout"]["rngs"]["default"]["key"] = np.ones(4, "uint32")
    with pytest.raises(cs.DerivationError, match=r"raw_key\('dropout/rngs/key'\)"):
        cs.adapt(old, newer_state("default", impl="rbg"))


class Stack(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([Lone(rngs) for _ in range(2)])


def test_a_stream_that_layers_share_keeps_no_list_apart() -> None:
    first, second = older_state(default=1), older_state()
    del second["dropout"]
    old, new = {"layers_0": first, "layers_1": second}, nnx.state(Stack(nnx.Rngs(5)))
    found = flat(nnx.to_pure_dict(cs.adapt(old, new).get(old, onto=new)))
    own = flat(nnx.to_pure_dict(new))
    for number in range(2):
        key = f"layers/{number}/dropout/rngs/key"
        assert found[f"layers/{number}/dense/kernel"].all()
        assert found[key].tolist() == own[key].tolist()
