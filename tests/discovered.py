"""Discovery against lenses that were declared by hand: which pairs it finds, and whether each is right.

`python tests/discovered.py` runs every pair of models of the tests, with all names of the source
replaced by random words and its leaves shuffled, and prints a table. `python tests/discovered.py NAME
--seeds 3` runs some, with several seeds. A pair that is wrong, or open with the right one not among
the candidates, makes the exit status 1. `--kept FILE` remembers outcomes, so that a run that was
interrupted goes on. Beside this stand `discovered_drawn.py`, of models that are drawn at random,
`discovered_wrong.py`, of twins that are other functions, and `discovered_choices.py`, of symmetries.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import itertools
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

sys.path.insert(0, str(Path(__file__).parent))

import drawn_models
import exchange_models
import flax_models
import image_models
import pair_schemas
import rewritten
import whisper_models
from support.kept import Kept

import ckpt_schema as cs
from ckpt_schema._layouts.paths import format_path
from ckpt_schema._trees.containers import flatten
from ckpt_schema.discovery import Discovery, discover
from ckpt_schema.testing._discovered import named_floats

TESTS = Path(__file__).parent
DISCOVERY = Path(cs.discovery.__file__).parent
SOURCES = (
    DISCOVERY.parent,
    *sorted(TESTS.glob("*_models.py")),
    TESTS / "discovered.py",
)
Leaves = Mapping[str, np.ndarray]
Surgery = Callable[[Any], Any]
"""Changes a module in place, and gives what is to be entered while it runs, or None."""


@dataclasses.dataclass(frozen=True)
class Twins:
    """Two implementations of one function, and a state of each that holds the same.

    Attributes:
        runs: What both compute, of their trees.
        trees: Their leaves: each a random number that no other leaf has.
    """

    runs: tuple[Callable[[Any], Any], Callable[[Any], Any]]
    trees: tuple[Any, Any]


def drawn_floats(tree: Any, seed: int = 0) -> Any:
    """A tree with random floats, of the size that training begins with."""
    numbers = itertools.count()

    def value(leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return jnp.asarray(drawn_models.moderate(leaf.shape, seed, next(numbers)), leaf.dtype)

    return jax.tree.map(value, tree)


def _nnx_run(
    module: nnx.Module, call: Callable[[Any], Any], surgery: Surgery | None
) -> Callable[[Any], Any]:
    """What a module computes of its state, after surgery where there is some."""
    graph, _ = nnx.split(module)

    def run(state: Any) -> Any:
        merged = nnx.merge(graph, state)
        merged.eval()
        held = surgery(merged) if surgery is not None else None
        with held or contextlib.nullcontext():
            return call(merged)

    return run


def _decoder(scan: bool, surgery: Surgery | None = None) -> Twins:
    variables = drawn_floats(flax_models.linen_variables(scan=scan))
    schema = flax_models.ScannedSchema if scan else flax_models.UnrolledSchema
    lens = cs.derive(cs.linen.Params[schema], cs.nnx.Params[flax_models.NnxSchema])
    return Twins(
        (
            lambda params: flax_models.Decoder(scan).apply(params, flax_models.TOKENS),
            _nnx_run(flax_models.nnx_decoder(), lambda model: model(flax_models.TOKENS), surgery),
        ),
        (variables, lens.get(variables)),
    )


def _pair(name: str, surgery: Surgery | None = None) -> Twins:
    pair = pair_schemas.pair(name)
    inputs = pair.linen.batch(0)[0]
    state = pair.linen.start
    statistics = getattr(state, "batch_stats", None)
    fresh = {"params": drawn_floats(state.params)}
    if statistics is not None:
        fresh["batch_stats"] = drawn_floats(statistics, 1)
    state = state.replace(**fresh)
    view = pair.lens.get(state)["model"]

    quiet = {"train": False} if statistics is not None else {}
    tree = {"params": state.params} if pair.linen.bare else state.params
    if statistics is not None:
        tree["batch_stats"] = state.batch_stats

    def source(variables: Any) -> Any:
        return pair.linen.model.apply(variables, inputs, **quiet)

    view_run = _nnx_run(pair.nnx.model(nnx.Rngs(0)), lambda model: model(inputs), surgery)
    return Twins((source, view_run), (tree, view))


def _whisper(surgery: Surgery | None = None) -> Twins:
    from test_whisper import Linen, Nnx

    inputs = whisper_models.mel, whisper_models.tokens
    model = whisper_models.LinenWhisper()
    variables = drawn_floats(jax.jit(model.init)(jax.random.key(0), *inputs))
    lens = cs.derive(cs.linen.Params[Linen], cs.nnx.Params[Nnx])
    view_run = _nnx_run(
        whisper_models.NnxWhisper(nnx.Rngs(0)), lambda model: model(*inputs), surgery
    )
    return Twins(
        (lambda given: model.apply(given, *inputs), view_run), (variables, lens.get(variables))
    )


def _named(linen: Any, module: nnx.Module, inputs: Any, names: Mapping[str, str] | None) -> Twins:
    """A pair that no lens is declared for: which leaf is which stands in a table of names.

    None is for modules whose leaves have the names of Linen's.
    """
    variables = drawn_floats(jax.jit(linen.init)(jax.random.key(0), inputs))
    flat = flatten(variables["params"])
    values = {format_path(k): x for k, x in zip(flat.keys, flat.leaves, strict=True)}

    def value(path: Any, leaf: Any) -> Any:
        name = format_path(path).removesuffix("/value")
        name = name if names is None else names.get(name, "")
        return values.pop(name).astype(leaf.dtype) if name in values else leaf

    own = flatten(nnx.state(module))
    view = own.treedef.unflatten(map(value, own.keys, own.leaves))
    assert not values, f"the view has no place for {values.keys()}"
    return Twins(
        (
            lambda given: linen.apply(given, inputs),
            _nnx_run(module, lambda model: model(inputs), None),
        ),
        (variables, view),
    )


def _bridge() -> Twins:
    """A Linen model, and the same wrapped for NNX."""
    linen = flax_models.Decoder(scan=False)
    module = nnx.bridge.ToNNX(linen, nnx.Rngs(0)).lazy_init(flax_models.TOKENS)
    return _named(linen, module, flax_models.TOKENS, None)


def _vit() -> Twins:
    module = image_models.NnxViT(nnx.Rngs(0))
    return _named(image_models.LinenViT(), module, image_models.IMAGES, image_models.vit_names())


def _mlp() -> Twins:
    inputs = jax.random.normal(jax.random.key(2), (5, image_models.EMBED))
    module = image_models.NnxMlp(nnx.Rngs(0))
    return _named(image_models.LinenMlp(), module, inputs, image_models.mlp_names())


def _scanned_to_unrolled() -> Twins:
    """Both of Linen."""
    variables = drawn_floats(flax_models.linen_variables(scan=True))
    schemas = flax_models.ScannedSchema, flax_models.UnrolledSchema
    lens = cs.derive(*(cs.linen.Params[schema] for schema in schemas))

    def run(scan: bool) -> Callable[[Any], Any]:
        return lambda params: flax_models.Decoder(scan).apply(params, flax_models.TOKENS)

    return Twins((run(True), run(False)), (variables, lens.get(variables)))


def _gemma() -> Twins:
    """Layers of two kinds, scanned in blocks."""
    import gemma

    inputs = gemma.tokens(0)[0]
    linen, module = gemma.LinenGemma(True), gemma.NnxGemma(True, nnx.Rngs(0))
    variables = drawn_floats(jax.jit(linen.init)(jax.random.key(0), inputs))
    layouts = cs.linen.Params[gemma.LinenScanned], cs.nnx.Params[gemma.NnxScanned]
    lens = cs.derive(*layouts, dims={"blocks": gemma.BLOCKS})
    return Twins(
        (
            lambda given: linen.apply(given, inputs),
            _nnx_run(module, lambda model: model(inputs), None),
        ),
        (variables, lens.get(variables)),
    )


def _demo(scanned: bool) -> Twins:
    """The demo's models: attention in one kernel."""
    from ckpt_schema.demo import linen_gpt, nnx_gpt, schemas

    sizes = linen_gpt.ModelSizes(11, 12, 2, 6, 25, 2, 5)
    inputs = jax.numpy.arange(10).reshape(2, 5) * 7 % 11
    linen = linen_gpt.LinenGPT(sizes, scanned)
    variables = drawn_floats(jax.jit(linen.init)(jax.random.key(0), inputs))
    source = schemas.LinenScanned if scanned else schemas.LinenUnrolled
    lens = cs.derive(cs.linen.Params[source], cs.nnx.Params[schemas.NnxUnrolled])
    module = nnx_gpt.NnxGPT(sizes, nnx.Rngs(0))
    return Twins(
        (
            lambda given: linen.apply(given, inputs),
            _nnx_run(module, lambda model: model(inputs), None),
        ),
        (variables, lens.get(variables)),
    )


def _small(name: str) -> Twins:
    lens, source, _, runs = exchange_models.small(name)
    drawn_source = drawn_floats(source)
    return Twins(runs, (drawn_source, lens.get(drawn_source)))


def _rewritten(name: str) -> Twins:
    way = {**rewritten.WAYS, **rewritten.GAUGES}[name]
    own = rewritten.leaves()
    model = rewritten.Model()
    return Twins(
        (
            lambda tree: model(rewritten.flattened(tree)),
            lambda tree: model(way.back(rewritten.flattened(tree))),
        ),
        (rewritten.nested(own), rewritten.nested(way.there(own))),
    )


LARGE: dict[str, Callable[..., Twins]] = {
    "decoder": functools.partial(_decoder, False),
    "decoder, scanned": functools.partial(_decoder, True),
    "ResNet": functools.partial(_pair, "ResNet"),
    "LSTM": functools.partial(_pair, "LSTM"),
    "Whisper": _whisper,
    "tied embeddings": functools.partial(_pair, "tied embeddings"),
}
"""Pairs in which the view is a module, and may be given surgery."""

CASES: dict[str, Callable[[], Twins]] = {
    **LARGE,
    "decoder, scanned to unrolled": _scanned_to_unrolled,
    "decoder through the bridge": _bridge,
    "perceptron": _mlp,
    "ViT": _vit,
    "LoRA": lambda: _pair("LoRA"),
    "Gemma": _gemma,
    "the demo's GPT": lambda: _demo(False),
    "the demo's GPT, scanned": lambda: _demo(True),
    **{
        f"decoder, {name}": functools.partial(_rewritten, name)
        for name in (*rewritten.WAYS, *rewritten.GAUGES)
    },
    **{name: functools.partial(_small, name) for name in exchange_models.SMALL},
}


# --- Names that say nothing  ---


def scrambled(run: Callable[[Any], Any], tree: Any, seed: int) -> tuple[Callable[[Any], Any], Any]:
    """The same function of a dict of leaves with random words as names, in another order."""
    leaves, treedef = jax.tree.flatten(tree)
    random = np.random.default_rng(seed)
    words = ["".join(random.choice(list("abcdefghjkmnpqrstuvwxyz"), 7)) for _ in leaves]
    order = random.permutation(len(leaves))
    named = {words[at]: leaves[at] for at in order}

    def renamed(given: Mapping[str, Any]) -> Any:
        return run(jax.tree.unflatten(treedef, [given[word] for word in words]))

    return renamed, named


# --- What is right  ---


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What came of one discovery.

    Attributes:
        status: What it says of itself.
        right: How many pieces of the view have the values that the declared lens gives them.
        wrong: Which do not.
        lost: Leaves of the view that are open, and what they are is not among the candidates.
        open: How many leaves are open.
        seconds: How long it took.
    """

    status: str
    right: int
    wrong: tuple[str, ...]
    lost: tuple[str, ...]
    open: int
    seconds: float


def judged(found: Discovery, source: Any, view: Any, seconds: float) -> Verdict:
    """Holds what was found against values that are known to be right."""
    before, after = named_floats(source), named_floats(view)
    right, wrong = 0, list[str]()
    for pairing in found.pairings:
        goal = after[pairing.view.leaf].reshape(-1)[pairing.view.places]
        if np.allclose(pairing.made_of(before), goal, rtol=1e-5, atol=1e-12):
            right += 1
        else:
            wrong.append(f"{pairing.view} <- {' and '.join(map(str, pairing.sources))}")
    lost = [] if found.status == "refused" else lost_leaves(found, before, after)
    return Verdict(found.status, right, tuple(wrong), tuple(lost), len(found.open), seconds)


def lost_leaves(found: Discovery, before: Leaves, after: Leaves) -> list[str]:
    """Leaves of the view that are open, of none of whose candidates they hold the values.

    All values are drawn, so leaves that share one are of one origin.
    """
    lost: list[str] = []
    for each in found.open:
        sources = {piece.partition("[")[0] for piece in each.sources}
        for view in {piece.partition("[")[0] for piece in each.views}:
            own = after[view].ravel()
            if not any(np.isin(own, before[source]).any() for source in sources):
                lost.append(f"{view}: {', '.join(sorted(sources))}")
    return lost


def run(name: str, seed: int, *, words: bool, budget: int = 12_000) -> tuple[Discovery, Verdict]:
    """Discovers one pair of twins."""
    twins = CASES[name]()
    source_run, source = twins.runs[0], twins.trees[0]
    if words:
        source_run, source = scrambled(source_run, source, seed)
    start = time.process_time()
    found = discover(source_run, source, twins.runs[1], twins.trees[1], seed=seed, budget=budget)
    return found, judged(found, source, twins.trees[1], time.process_time() - start)


def gives_lens(found: Discovery) -> bool:
    """Whether a discovery gives a lens without a word of the user's."""
    try:
        found.lens()
    except cs.CkptSchemaError:
        return False
    return True


def attempt(name: str, seed: int, words: bool, budget: int) -> dict[str, Any]:
    """Discovers one pair; what came of it, for a file."""
    found, verdict = run(name, seed, words=words, budget=budget)
    return {**dataclasses.asdict(verdict), "said": [str(each)[:300] for each in found.open]}


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--names-kept", action="store_true", help="do not replace the names")
    parser.add_argument("--budget", type=int, default=12_000, help="readings of each to try")
    parser.add_argument("--kept", type=Path, help="a file of outcomes: these are not tried again")
    given = parser.parse_args()
    jax.config.update("jax_disable_most_optimizations", True)  # compiling is what takes long
    kept = Kept(given.kept, SOURCES)
    failed = False
    for name in given.names or CASES:
        for seed in range(given.seeds):
            settings = name, seed, not given.names_kept, given.budget
            outcome = kept.outcome(repr(settings), lambda each=settings: attempt(*each))
            print(
                f"{name:34} {outcome['status']:24} {outcome['right']:4} right "
                f"{len(outcome['wrong']):3} wrong {outcome['open']:3} open "
                f"{outcome['seconds']:6.1f} s"
            )
            for word, lines in (("WRONG", "wrong"), ("NOT AMONG", "lost"), ("open", "said")):
                for line in outcome[lines]:
                    print(f"    {word} {line}")
            failed |= bool(outcome["wrong"] or outcome["lost"])
            sys.stdout.flush()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
