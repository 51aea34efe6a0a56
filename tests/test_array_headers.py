"""What the headers of arrays tell of a pytree is what Orbax's own metadata tells, in every format that it writes."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from etils import epath
from flax.training.train_state import TrainState
from orbax.checkpoint import v1 as ocp

from ckpt_schema.orbax import _array_headers as array_headers
from ckpt_schema.orbax import _metadata as metadata
from ckpt_schema.orbax import _pytree_files as pytree_files

FORMATS = [(ocdbt, zarr3) for ocdbt in (True, False) for zarr3 in (True, False)]
BITS = [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
SMALL = [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.int4]
DTYPES = ["bool", *BITS, "float16", "float32", "float64", "complex64", *SMALL]
OLDER = {
    "0.5.3": ["pytree_files", "pytree_database", "standard", "manager/7/default"],
    "0.11.0": ["pytree", "pytree_zarr3", "pytree_zarr3_files", "standard"],
}
AGES = [(release, form) for release, forms in OLDER.items() for form in forms]


def trees() -> dict[str, Any]:
    params = {"dense": {"kernel": np.ones((2, 3), "float32"), "bias": np.zeros(3, "float32")}}
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))
    return {
        "train state": TrainState.create(apply_fn=None, params=params, tx=tx),
        "dtypes": {str(np.dtype(dtype)): np.ones(3, dtype) for dtype in DTYPES},
        "numbers": {"step": 7, "rate": 0.5, "key": jax.random.key(3)},
        "empty": {"none": None, "dict": {}, "list": [], "tuple": (), "state": optax.EmptyState()},
        "lists": [{"w": jnp.ones(2)}, [jnp.zeros(()), (np.ones(1, "int32"), {"1": np.ones(4)})]],
        "names": {"a/b": np.ones(2), "c.d": {"a b%20?": np.ones(1)}, "0": {"1": np.ones(3)}},
    }


def said(tree: Any) -> Any:
    """Containers, shapes and dtypes; of numbers their type."""
    if isinstance(tree, dict):
        return {key: said(child) for key, child in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [type(tree).__name__, *map(said, tree)]
    return (tree.shape, tree.dtype) if hasattr(tree, "shape") else type(tree)


def headers(place: Path, item: str = "state") -> Any:
    return array_headers.read_headers(epath.Path(place / item))


def written(tree: Any, place: Path, *, ocdbt: bool = True, zarr3: bool = True) -> Path:
    context = ocp.Context()
    context.array.saving.use_ocdbt = ocdbt
    context.array.saving.use_zarr3 = zarr3
    with context:
        ocp.save(place, tree)
    return place


@pytest.mark.parametrize(("ocdbt", "zarr3"), FORMATS)
def test_they_tell_what_orbax_tells(tmp_path: Path, *, ocdbt: bool, zarr3: bool) -> None:
    for name, tree in trees().items():
        place = written(tree, tmp_path / name, ocdbt=ocdbt, zarr3=zarr3)
        found = headers(place)
        assert found is not None, name
        assert said(found) == said(ocp.metadata(place).metadata), name


@pytest.mark.parametrize(("release", "form"), AGES)
def test_they_tell_it_of_older_checkpoints(tmp_path: Path, release: str, form: str) -> None:
    with tarfile.open(Path(__file__).parent / "older" / f"orbax-{release}.tar.xz") as packed:
        packed.extractall(tmp_path, filter="data")
    place = tmp_path / form
    is_item = (place.parent / "_CHECKPOINT_METADATA").exists() or place.name == "default"
    parent, item = (place.parent, place.name) if is_item else (place, None)
    found = headers(place, "")
    assert found is not None
    assert said(found) == said(ocp.metadata(parent, checkpointable_name=item).metadata)


def test_orbax_is_not_asked_and_each_header_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = written(trees()["train state"], tmp_path / "0")
    asked: list[str] = []
    opened = pytree_files.database

    class Counted:
        def __init__(self, store: Any) -> None:
            self._store = store

        def read(self, key: str) -> Any:
            asked.append(key)
            return self._store.read(key)

    monkeypatch.setattr(array_headers, "database", lambda *given: Counted(opened(*given)))
    monkeypatch.setattr(ocp, "metadata", None)
    disk = metadata.read_metadata(place)
    assert len(asked) == len({*asked}) == len(jax.tree.leaves(disk.tree)) == 8


def _changed(file: str, change: Callable[[Any], None]) -> Callable[[Path], None]:
    def damage(item: Path) -> None:
        told = json.loads((item / file).read_text())
        change(told)
        (item / file).write_text(json.dumps(told))

    return damage


def _entry(told: Any) -> Any:
    return told["tree_metadata"]["('a', 'w')"]


DAMAGES = {
    "no header": lambda item: (item / "a.w" / "zarr.json").unlink(),
    "half a header": lambda item: (item / "a.w" / "zarr.json").write_text('{"shape":'),
    "no structure": lambda item: (item / "_METADATA").write_text("{}"),
    "an unknown kind": _changed(
        "_METADATA", lambda told: _entry(told)["value_metadata"].update(value_type="text")
    ),
    "a number with axes": _changed(
        "_METADATA", lambda told: _entry(told)["value_metadata"].update(value_type="scalar")
    ),
    "a node of two kinds": _changed(
        "_METADATA", lambda told: _entry(told)["key_metadata"][0].update(key_type=1)
    ),
    "a dtype of fields": _changed("a.w/zarr.json", lambda told: told.update(data_type=[["a"]])),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_as_it_is_known_is_left_to_orbax(tmp_path: Path, damage: str) -> None:
    place = written({"a": {"w": np.ones(3)}, "b": np.ones(2)}, tmp_path / "0", ocdbt=False)
    assert headers(place) is not None
    DAMAGES[damage](place / "state")
    assert headers(place) is None


def test_names_that_meet_are_left_to_orbax(tmp_path: Path) -> None:
    place = written({"a": {"w": np.ones(3)}, "b": np.ones(2)}, tmp_path / "0")
    key = {"key": "a.w", "key_type": 2}
    other = _changed(
        "_METADATA",
        lambda told: told["tree_metadata"].update(other={**_entry(told), "key_metadata": [key]}),
    )
    other(place / "state")
    assert headers(place) is None
