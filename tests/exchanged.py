"""Exchanges equals in pairs of models, and sees whether the law of functions finds them.

Each of two leaves, or of two modules, of one shape stands in the place of the other; the halves or
the heads of one leaf change places. What the law must find changes the function that the model
computes; what changes nothing, for another exchange undoes it, must pass. ``python
tests/exchanged.py`` prints tables, and with ``--write`` puts them into ``docs/mutants.md``.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from exchange_models import SMALL, small
from flax import nnx

import ckpt_schema as cs
from ckpt_schema._layouts.paths import format_path
from ckpt_schema._trees.containers import flatten
from ckpt_schema.testing._gradients import Measured, Model
from ckpt_schema.testing._laws import LawError
from ckpt_schema.testing._outputs import Comparison
from ckpt_schema.testing._suite import Options

PAGE = Path(__file__).parent.parent / "docs" / "mutants.md"
Leaves = Mapping[str, Any]
Exchange = Callable[[Leaves], dict[str, Any]]
"""From leaves, or their gradients, by path, to those with some exchanged; twice is not at all."""


# --- What is exchanged  ---


def swap(one: str, other: str) -> Exchange:
    """Two leaves, or all below two modules, in each other's place."""

    def exchange(leaves: Leaves) -> dict[str, Any]:
        found = dict(leaves)
        for path in leaves:
            below = path.removeprefix(f"{one}/")
            there = f"{other}/{below}"
            if path != below and there in leaves:
                found[path], found[there] = leaves[there], leaves[path]
        return found

    return exchange


def turn(pattern: str, axis: int, parts: int) -> Exchange:
    """So many equal parts of an axis in reverse, in all leaves of a pattern."""

    def exchange(leaves: Leaves) -> dict[str, Any]:
        found = dict(leaves)
        for path, value in leaves.items():
            if re.fullmatch(pattern, path):
                found[path] = np.concatenate(
                    np.split(np.asarray(value), parts, axis)[::-1], axis
                ).astype(value.dtype)
        return found

    return exchange


def every(*exchanges: Exchange) -> Exchange:
    """All of them."""
    return lambda leaves: functools.reduce(lambda found, each: each(found), exchanges, dict(leaves))


class Exchanged(Model):
    """A model whose state has some leaves exchanged; it is not compiled for that."""

    def __init__(self, model: Model, exchange: Exchange) -> None:
        """Keeps the model and what is exchanged."""
        self._model, self._exchange, self.unit = model, exchange, model.unit

    def __call__(self, state: Any) -> Measured:
        """What it computes, and its gradient by the leaves of the state that is given."""
        flat = flatten(state)
        paths = [format_path(key) for key in flat.keys]
        leaves = self._exchange(dict(zip(paths, flat.leaves, strict=True)))
        found = self._model(flat.treedef.unflatten(leaves[path] for path in paths))
        self.unit = self._model.unit
        turned = self._exchange({paths[at]: x for at, x in found.gradients.items()})
        gradients = {at: turned[paths[at]] for at in found.gradients}
        return dataclasses.replace(found, gradients=gradients)


# --- The pairs  ---


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """Two models, a lens between them, and a state of each at its own scale.

    Attributes:
        lens: The lens.
        s: The state of the source.
        v: That of the view.
        models: Both models, compiled once.
    """

    lens: cs.Lens
    s: Any
    v: Any
    models: tuple[Model, Model]

    def compared(self, exchange: Exchange | None = None) -> Comparison:
        """The two models, with something exchanged in the second."""
        f, g = self.models
        models = (f, g if exchange is None else Exchanged(g, exchange))
        return Comparison(self.lens, self.s, self.v, models)


def _made(model: Callable[[], nnx.Module]) -> tuple[Any, Any]:
    return nnx.split(nnx.jit(model)())


def _decoder(*, scan: bool) -> Any:
    import flax_models as m

    layout = m.ScannedSchema if scan else m.UnrolledSchema
    graph, v = _made(lambda: m.NnxDecoder(nnx.Rngs(0)))
    s = jax.jit(m.Decoder(scan).init)(jax.random.key(0), m.TOKENS)
    lens = cs.derive(cs.linen.Params[layout], cs.nnx.Params[m.NnxSchema])
    f, g = m.Decoder(scan).apply, lambda state: nnx.merge(graph, state)(m.TOKENS)
    return lens, s, v, (lambda state: f(state, m.TOKENS), g)


def _whisper() -> Any:
    import test_whisper as layouts
    import whisper_models as m

    graph, v = _made(lambda: m.NnxWhisper(nnx.Rngs(0)))
    s = jax.jit(m.LinenWhisper().init)(jax.random.key(0), m.mel, m.tokens)
    lens = cs.derive(cs.linen.Params[layouts.Linen], cs.nnx.Params[layouts.Nnx])

    def computed(state: Any) -> Any:
        model = nnx.merge(graph, state)
        model.set_attributes(deterministic=True)
        return model(m.mel, m.tokens)

    return lens, s, v, (lambda state: m.LinenWhisper().apply(state, m.mel, m.tokens), computed)


def _gemma() -> Any:
    import gemma as m

    text = m.tokens(0)[0]
    graph, v = _made(lambda: m.NnxGemma(True, nnx.Rngs(0)))
    s = jax.jit(m.LinenGemma(True).init)(jax.random.key(0), text)
    layouts = cs.linen.Params[m.LinenScanned], cs.nnx.Params[m.NnxScanned]
    lens = cs.derive(*layouts, dims={"blocks": m.BLOCKS})
    f, g = m.LinenGemma(True).apply, lambda state: nnx.merge(graph, state)(text)
    return lens, s, v, (lambda state: f(state, text), g)


def _paired(name: str) -> Any:
    import pair_models as m
    import pair_schemas as layouts

    linen, batch = (m.LinenLstm(), m.tokens) if name == "Lstm" else (m.LinenResNet(), m.images)
    inputs, train = batch(0)[0], {} if name == "Lstm" else {"train": False}
    graph, v = _made(lambda: getattr(m, f"Nnx{name}")(nnx.Rngs(0)))
    s = jax.jit(functools.partial(linen.init, **train))(jax.random.key(0), inputs)
    both = (getattr(layouts, f"{side}{name}") for side in ("Linen", "Nnx"))
    source, view = both
    lens = cs.derive(cs.linen.Params[source], cs.nnx.Params[view])

    def computed(state: Any) -> Any:
        model = nnx.merge(graph, state)
        model.eval()
        return model(inputs)

    return lens, s, v, (lambda state: linen.apply(state, inputs, **train), computed)


_LARGE: dict[str, Callable[[], Any]] = {
    "decoder, scanned": functools.partial(_decoder, scan=True),
    "decoder, unrolled": functools.partial(_decoder, scan=False),
    "Whisper": _whisper,
    "Gemma": _gemma,
    "LSTM": functools.partial(_paired, "Lstm"),
    "ResNet": functools.partial(_paired, "ResNet"),
}
PAIRS = (*_LARGE, *SMALL)


@functools.cache
def pair(name: str) -> Pair:
    """A pair of models."""
    lens, s, v, (f, g) = _LARGE[name]() if name in _LARGE else small(name)
    models = (
        Model("source_outputs", f, gradients=True),
        Model("view_outputs", g, gradients=True),
    )
    return Pair(lens, s, v, models)


# --- The kinds  ---

Planted = list[tuple[str, Exchange]]
_DECODERS = ("decoder, scanned", "decoder, unrolled")
_ATTENTION = {**dict.fromkeys(_DECODERS, "layers/1/attention"), "Whisper": "encoder/0/attn"}
_HEADS = {name: 3 if name == "Whisper" else 2 for name in _ATTENTION}
_GATES = (("i", "f_"), ("f_", "o"), ("g", "o"), ("i", "g"))


def _in_attention(one: str, other: str) -> Planted:
    found = [(name, swap(f"{at}/{one}", f"{at}/{other}")) for name, at in _ATTENTION.items()]
    return [*found, ("Gemma", swap(f"blocks/layers/2/{one[0]}", f"blocks/layers/2/{other[0]}"))]


def _in_query(what: str) -> Planted:
    """The heads of the query alone in reverse, or the halves of each."""
    found: Planted = []
    for name, at in _ATTENTION.items():
        axis, parts = (-2, _HEADS[name]) if what == "heads" else (-1, 2)
        found.append((name, turn(f"{at}/query/(kernel|bias)/value", axis, parts)))
    return found


def _cells() -> Iterator[tuple[str, Exchange]]:
    cells = {
        "LSTM": "upper/cell",
        "LSTMs both ways, side by side": "forward",
        "LSTMs both ways, summed": "backward",
    }
    for name, at in cells.items():
        for one, other in _GATES:
            inputs = swap(f"{at}/i{one}", f"{at}/i{other}")
            yield name, every(inputs, swap(f"{at}/h{one[0]}", f"{at}/h{other[0]}"))


KINDS: dict[str, Planted] = {
    "query and key": _in_attention("query", "key"),
    "key and value": _in_attention("key", "value"),
    "gate and up": [(f"gated by {act}", swap("gate", "up")) for act in ("gelu", "silu", "tanh")],
    "two norms": [
        *((name, swap("layers/0/norm1", "layers/0/norm2")) for name in _DECODERS),
        ("Whisper", swap("decoder/1/attn_norm", "decoder/1/cross_norm")),
        ("Gemma", swap("blocks/layers/0/attention_norm", "blocks/layers/0/mlp_norm")),
        ("ResNet", swap("blocks/0/norm1", "blocks/0/norm2")),
    ],
    "scale and bias of a norm": [
        *((name, swap("layers/0/norm1/scale", "layers/0/norm1/bias")) for name in _DECODERS),
        ("Whisper", swap("ln_post/scale", "ln_post/bias")),
        ("ResNet", swap("down/norm1/scale", "down/norm1/bias")),
    ],
    "two experts": [
        (name, swap("expert_0", f"expert_{other}"))
        for name in PAIRS
        if name.endswith("experts")
        for other in (1, 2)
    ],
    "two equal layers": [
        *((name, swap("layers/0", "layers/2")) for name in _DECODERS),
        ("Whisper", swap("encoder/1", "encoder/2")),
        ("Whisper", swap("decoder/0", "decoder/1")),
        ("ResNet", swap("blocks/0", "blocks/1")),
        ("Gemma", swap("blocks/layers/0", "blocks/layers/3")),
        ("Gemma", swap("rest/0", "rest/1")),
    ],
    "gates of a cell": [*_cells()],
    "forward and backward cells": [
        (name, swap("forward", "backward")) for name in PAIRS if "both ways" in name
    ],
    "heads of the query": _in_query("heads"),
    "halves of the query's heads": _in_query("halves"),
    "two embeddings of one size": [
        (name, swap("words", "speakers")) for name in PAIRS if name.startswith("two tables")
    ],
    "two convolutions": [
        *((name, swap("conv1", "conv2")) for name in PAIRS if name.startswith("two conv")),
        ("ResNet", swap("blocks/1/conv1", "blocks/1/conv2")),
    ],
    "both matrices of an adapter": [
        (name, swap("a", "b")) for name in PAIRS if name.startswith("an adapter")
    ],
}

SYMMETRIES: dict[str, Planted] = {
    "experts with their router": [
        (name, every(swap("expert_0", "expert_2"), turn("router/kernel/value", -1, 3)))
        for name in PAIRS
        if name.endswith("experts")
    ],
    "heads of query, key, value and out": [
        (
            name,
            every(
                turn(f"{at}/(query|key|value)/(kernel|bias)/value", -2, _HEADS[name]),
                turn(f"{at}/out/kernel/value", -3, _HEADS[name]),
            ),
        )
        for name, at in _ATTENTION.items()
    ],
    "halves of the heads of query and key": [
        (name, turn(f"{at}/(query|key)/(kernel|bias)/value", -1, 2))
        for name, at in _ATTENTION.items()
    ],
    "hidden units of a gated layer": [
        (
            f"gated by {act}",
            every(turn("(gate|up)/kernel/value", -1, 10), turn("down/kernel/value", -2, 10)),
        )
        for act in ("gelu", "silu", "tanh")
    ],
}


# --- The command  ---


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the law said of an exchange in a pair, or of the pair as it is.

    Attributes:
        kind: What was exchanged.
        pair: In which models.
        found: For how many seeds the law was broken.
        seeds: Of how many.
        units: For an exchange the least of what differed most in each state, or else the greatest,
            as a multiple of what one rounding changes.
        shown: By how much outputs differed at most, as a ratio to their size.
    """

    kind: str
    pair: str
    found: int
    seeds: int
    units: float
    shown: float


def outcome(kind: str, name: str, exchange: Exchange | None, seeds: int) -> Outcome:
    """Tries the law for so many seeds."""
    at = pair(name).compared(exchange)
    found, worst, shown = 0, list[float](), 0.0
    for seed in range(seeds):
        draws = at.draws(seed)
        worst += [max(each.units for each in draw) for draw in draws]
        outputs = [each for draw in draws for each in draw if each.kind == "outputs"]
        shown = max(shown, *(each.off / each.size for each in outputs))
        # What fits in both states is not looked at again, but for the first seed.
        found += (not seed or worst[-1] > Options.tolerance or worst[-2] > Options.tolerance) and (
            _broken(at, seed)
        )
    units = min(worst) if exchange else max(worst)
    return Outcome(kind, name, found, seeds, units, shown)


def _broken(at: Comparison, seed: int) -> bool:
    try:
        at.verify(Options.tolerance, seed)
    except LawError:
        return True
    return False


def report(right: list[Outcome], planted: list[Outcome], symmetric: list[Outcome]) -> Iterator[str]:
    """Three tables in Markdown."""
    yield "| exchanged | pairs | exchanges | found | least, in roundings | of outputs alone |"
    yield "|---|---|---|---|---|---|"
    for kind in KINDS:
        own = [each for each in planted if each.kind == kind]
        if own:
            tries, found = sum(each.seeds for each in own), sum(each.found for each in own)
            least, shown = min(each.units for each in own), min(each.shown for each in own)
            yield (
                f"| {kind} | {len({each.pair for each in own})} | {len(own)} | "
                f"{found} of {tries}, {found / tries:.0%} | {least:.2g} | {shown:.1g} |"
            )
    yield ""
    yield "| symmetry | pairs | found, rightly none | greatest, in roundings |"
    yield "|---|---|---|---|"
    for kind in SYMMETRIES:
        own = [each for each in symmetric if each.kind == kind]
        if own:
            tries, found = sum(each.seeds for each in own), sum(each.found for each in own)
            yield f"| {kind} | {len(own)} | {found} of {tries} | {max(x.units for x in own):.2g} |"
    yield ""
    yield "| the right lens of | found, rightly none | greatest, in roundings |"
    yield "|---|---|---|"
    for each in right:
        yield f"| {each.pair} | {each.found} of {each.seeds} seeds | {each.units:.2g} |"


START, END = "<!-- exchanged: written by tests/exchanged.py -->", "<!-- exchanged: end -->"


def write(text: str) -> None:
    """Puts the tables into their place on the page."""
    before, _, rest = PAGE.read_text().partition(START)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{START}\n\n{text}\n\n{END}{after}")


def main() -> int:
    """Prints the tables; exits with 1 where an exchange is not found, or a right lens is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=50, help="how many, for right lenses")
    parser.add_argument("--planted", type=int, default=3, help="how many, for each exchange")
    parser.add_argument("--pairs", nargs="*", default=PAIRS, help="which pairs")
    parser.add_argument("--write", action="store_true", help=f"write them into {PAGE.name}")
    told = parser.parse_args()
    found: tuple[list[Outcome], ...] = ([], [], [])
    for name in told.pairs:
        start = time.process_time()
        found[0].append(outcome("", name, None, told.seeds))
        for at, kinds in ((1, KINDS), (2, SYMMETRIES)):
            for kind, (where, exchange) in ((k, each) for k in kinds for each in kinds[k]):
                if where == name:
                    found[at].append(outcome(kind, name, exchange, told.planted))
        print(f"{name}: {time.process_time() - start:.0f} CPU s", file=sys.stderr, flush=True)
    text = "\n".join(report(*found))
    print(text)
    if told.write:
        write(text)
    missed = [each for each in found[1] if each.found < each.seeds]
    alarms = [each for each in (*found[0], *found[2]) if each.found]
    for each in (*missed, *alarms):
        print(each, file=sys.stderr)
    return int(bool(missed or alarms))


if __name__ == "__main__":
    sys.exit(main())
