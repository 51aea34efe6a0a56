"""The laws of a lens, each a function that raises where it is broken. Equality is bitwise throughout."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import NamedSharding

import ckpt_schema as cs
from ckpt_schema import leaves
from ckpt_schema.conformance import Matcher
from ckpt_schema.lens.joins import instances

identical = cs.assert_trees_identical


def get_put(lens: cs.Lens, s: Any) -> None:
    """``put(get(s), onto=s) == s``."""
    identical(lens.put(lens.get(s), onto=s), s)


def put_get(lens: cs.Lens, v: Any) -> None:
    """``get(put(v), onto=v) == v``."""
    identical(lens.get(lens.put(v), onto=v), v)


def put_put(lens: cs.Lens, s: Any, v: Any, w: Any) -> None:
    """``put(w, onto=put(v, onto=s)) == put(w, onto=s)``."""
    identical(lens.put(w, onto=lens.put(v, onto=s)), lens.put(w, onto=s))


def get_get(lens: cs.Lens, s: Any, t: Any, v: Any) -> None:
    """``get(t, onto=get(s, onto=v)) == get(t, onto=v)``."""
    put_put(~lens, v, s, t)


def conformance(lens: cs.Lens, s: Any, v: Any) -> None:
    """``check(View, get(s)) == []``, with ``onto`` and without."""
    dims = {name: size for name, size in lens.dims.items() if name in lens.view.names()}
    assert cs.check(lens.view, lens.get(s), dims) == []
    assert cs.check(lens.view, lens.get(s, onto=v), dims) == []


def abstraction(lens: cs.Lens, s: Any, v: Any) -> None:
    """``abstract(get(s)) == get(abstract(s))``, shardings included, with ``onto`` and without."""
    identical(abstract(lens.get(abstract(s))), abstract(lens.get(s)))
    identical(abstract(lens.get(abstract(s), onto=v)), abstract(lens.get(s, onto=v)))
    identical(abstract(lens.get(abstract(s), onto=abstract(v))), abstract(lens.get(s, onto=v)))


def abstract(tree: Any) -> Any:
    """The abstract values of a tree; being on the one default device is the same as not being placed yet."""
    return jax.tree.map(_abstract, tree)


def _abstract(value: Any) -> Any:
    found = value if leaves.is_abstract(value) else leaves.abstract(value)
    return found if isinstance(found.sharding, NamedSharding) else jax.ShapeDtypeStruct(found.shape, found.dtype)


def sharing(lens: cs.Lens, s: Any, v: Any) -> None:
    """A leaf that only moves is the same object; so is a private one of ``onto``."""
    found, before, kept = _slots(lens.view, lens.get(s, onto=v)), _slots(lens.source, s), _slots(lens.view, v)
    for slot in found.keys() - {(row, at) for row, at in found if row in lens.joined[1]}:
        assert found[slot] is kept[slot], f"private {slot} was made anew"
    sizes = {**cs.check(lens.source, s).dims, **cs.check(lens.view, v).dims, **lens.dims}
    for join in lens.joins:
        for inputs, outputs in instances((join.sources, join.views), join.levels, sizes) if not join.chain else ():
            for one, other in zip(inputs, outputs, strict=True):
                if one in before and other in found:
                    assert found[other] is before[one], f"{other} was copied"


def _slots(layout: cs.Layout, tree: Any) -> dict[Any, Any]:
    match = Matcher(layout).match(tree)
    return {slot: match.flat.leaves[position] for slot, position in match.slots.items()}


def inverse(lens: cs.Lens, s: Any, v: Any) -> None:
    """``(~l).get == l.put`` and ``(~l).put == l.get``."""
    identical((~lens).get(v, onto=s), lens.put(v, onto=s))
    identical((~lens).put(s, onto=v), lens.get(s, onto=v))
    identical((~lens).get(v), lens.put(v))


def composition(first: cs.Lens, second: cs.Lens, s: Any, w: Any) -> None:
    """``(a >> b).get == b.get . a.get``, and so for put; with ``onto``, the tree between takes its private leaves from it.

    A composed lens drops detours, and so keeps shardings that are lost on them: the bits are compared, wherever they are.
    """
    both = first >> second
    identical(gathered(both.get(s)), gathered(second.get(first.get(s))))
    identical(gathered(both.get(s, onto=w)), gathered(second.get(first.get(s, onto=second.put(w)), onto=w)))
    identical(gathered(both.put(w)), gathered(first.put(second.put(w))))
    identical(gathered(both.put(w, onto=s)), gathered(first.put(second.put(w, onto=first.get(s)), onto=s)))


def gathered(tree: Any) -> Any:
    """The tree with all jax arrays on one device."""
    return jax.tree.map(lambda x: jax.device_put(x, jax.devices()[0]) if isinstance(x, jax.Array) else x, tree)


def gathers_nothing(before: Any, after: Any) -> bool:
    """Whether ``after`` is split over as many devices as ``before``, unless none of its axes divides so."""
    return _ways(after) == _ways(before)


def _ways(value: Any) -> int:
    sharding = value.sharding
    shard = sharding.shard_shape(value.shape)
    total, own = 1, 1
    for size, part in zip(value.shape, shard, strict=True):
        total, own = total * size, own * part
    return total // max(own, 1)
