"""Discovery against lenses that were declared by hand: which pairs it finds, and whether each is right.

`python tests/discovered.py` runs every pair of models of the tests, with all names of the source
replaced by random words and its leaves shuffled, and prints a table. `python tests/discovered.py NAME
--seeds 3` runs some, with several seeds. `--declared` holds the lens that is declared for each pair by
`cs.testing.assert_discovered`, all names as they are. A pair that is wrong, or open with the right one not among
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
from collections.abc import Callable, Mapping, Sequence
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
import gemma
import image_models
import maxtext_states
import pair_schemas
import rewritten
import whisper_models
from support.kept import Kept

import ckpt_schema as cs
from ckpt_schema._layouts.paths import format_path
from ckpt_schema._trees.containers import flatten
from ckpt_schema.discovery import Discovery, discover
from ckpt_schema.testing import assert_discovered
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
        lens: What is declared for them, where it is by a lens.
    """

    runs: tuple[Callable[[Any], Any], Callable[[Any], Any]]
    trees: tuple[Any, Any]
    lens: cs.Lens | None = None


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
        lens,
    )


_BODIES = {
    "ResNet": (pair_schemas.LinenResNet, pair_schemas.NnxResNet),
    "LSTM": (pair_schemas.LinenLstm, pair_schemas.NnxLstm),
    "LoRA": (pair_schemas.LinenAdaptedModel, pair_schemas.NnxAdaptedModel),
    "tied embeddings": (pair_schemas.LinenTied, pair_schemas.NnxTied),
}
"""What is declared of the models that train."""


def _pair(name: str, surgery: Surgery | None = None) -> Twins:
    pair = pair_schemas.pair(name)
    inputs = pair.linen.batch(0)[0]
    state = pair.linen.start
    variables = {"params": drawn_floats(state.params)}
    if not pair.linen.bare:
        variables = variables["params"]
    statistics = getattr(state, "batch_stats", None)
    if statistics is not None:
        variables["batch_stats"] = drawn_floats(statistics, 1)
    quiet = {"train": False} if statistics is not None else {}
    source, view = _BODIES[name]
    lens = cs.derive(cs.linen.Params[source], cs.nnx.Params[view])

    def run(given: Any) -> Any:
        return pair.linen.model.apply(given, inputs, **quiet)

    view_run = _nnx_run(pair.nnx.model(nnx.Rngs(0)), lambda model: model(inputs), surgery)
    return Twins((run, view_run), (variables, lens.get(variables)), lens)


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
        (lambda given: model.apply(given, *inputs), view_run),
        (variables, lens.get(variables)),
        lens,
    )


def _flax(linen: Any, module: nnx.Module, inputs: tuple[Any, ...], lens: cs.Lens) -> Twins:
    """A model of Linen and one of NNX, and what is declared for them."""
    variables = drawn_floats(jax.jit(linen.init)(jax.random.key(0), *inputs))
    return Twins(
        (
            lambda given: linen.apply(given, *inputs),
            _nnx_run(module, lambda model: model(*inputs), None),
        ),
        (variables, lens.get(variables)),
        lens,
    )


def _adapted(
    linen: Any, module: nnx.Module, inputs: Any, names: Mapping[str, str] | None = None
) -> Twins:
    """A pair whose lens `cs.adapt` makes of their names, or of a table of them, view to source."""
    variables = jax.eval_shape(linen.init, jax.random.key(0), inputs)
    if names is None:
        return _flax(linen, module, (inputs,), cs.adapt(variables, module))
    rules: list[Any] = []
    for view, source in names.items():
        rules.append(cs.rename(source, view, axes="0 1" if source.endswith("kernel") else None))
    lens = cs.adapt(variables, module, rules=rules, lists=())  # each leaf by its own name
    return _flax(linen, module, (inputs,), lens)


def _bridge() -> Twins:
    """A Linen model, and the same wrapped for NNX."""
    linen = flax_models.Decoder(scan=False)
    module = nnx.bridge.ToNNX(linen, nnx.Rngs(0)).lazy_init(flax_models.TOKENS)
    return _adapted(linen, module, flax_models.TOKENS)


def _vit() -> Twins:
    """By a table of names: no lens of today calls every second norm of a module the norm of a layer."""
    linen, inputs = image_models.LinenViT(), image_models.IMAGES
    module = image_models.NnxViT(nnx.Rngs(0))
    variables = drawn_floats(jax.jit(linen.init)(jax.random.key(0), inputs))
    values, names = named(variables["params"]), image_models.vit_names()
    view = jax.tree.unflatten(
        jax.tree.structure(nnx.state(module)),
        [values.pop(names[name.removesuffix("/value")]) for name in named(nnx.state(module))],
    )
    assert not values, f"the view has no place for {values.keys()}"
    return Twins(
        (
            lambda given: linen.apply(given, inputs),
            _nnx_run(module, lambda model: model(inputs), None),
        ),
        (variables, view),
    )


def named(tree: Any) -> dict[str, Any]:
    """Leaves by their key paths, in the order of the tree."""
    flat = flatten(tree)
    return {format_path(key): leaf for key, leaf in zip(flat.keys, flat.leaves, strict=True)}


def perceptrons(names: Mapping[str, str]) -> Twins:
    """Three layers of one size, by a table of names."""
    inputs = jax.random.normal(jax.random.key(2), (5, image_models.EMBED))
    module = image_models.NnxMlp(nnx.Rngs(0))
    return _adapted(image_models.LinenMlp(), module, inputs, names)


def _maxtext(form: str, shape: str) -> Twins:
    """As MaxText has it in both of its layouts."""
    linen, module = maxtext_states.LinenModel(form, shape), maxtext_states.Model(form, shape, 0)
    return _adapted(linen, module, maxtext_states.TOKENS)


def _scanned_to_unrolled() -> Twins:
    """Both of Linen."""
    variables = drawn_floats(flax_models.linen_variables(scan=True))
    schemas = flax_models.ScannedSchema, flax_models.UnrolledSchema
    lens = cs.derive(*(cs.linen.Params[schema] for schema in schemas))

    def run(scan: bool) -> Callable[[Any], Any]:
        return lambda params: flax_models.Decoder(scan).apply(params, flax_models.TOKENS)

    return Twins((run(True), run(False)), (variables, lens.get(variables)), lens)


def _gemma(*forms: str) -> Twins:
    """Layers of two kinds, scanned in blocks or not, of Linen or of NNX."""
    inputs = gemma.tokens(0)[0]
    first = gemma.LinenGemma(scanned=True)
    variables = drawn_floats(jax.jit(first.init)(jax.random.key(0), inputs))
    layouts = {
        "Linen scanned": cs.linen.Params[gemma.LinenScanned],
        "Linen unrolled": cs.linen.Params[gemma.LinenUnrolled],
        "NNX scanned": cs.nnx.Params[gemma.NnxScanned],
        "NNX unrolled": cs.nnx.Params[gemma.NnxUnrolled],
    }

    def lens(source: str, view: str) -> cs.Lens:
        return cs.derive(layouts[source], layouts[view], dims={"blocks": gemma.BLOCKS})

    def run(form: str) -> Callable[[Any], Any]:
        scanned = form.endswith("scanned")
        if form.startswith("NNX"):
            module = gemma.NnxGemma(scanned, nnx.Rngs(0))
            return _nnx_run(module, lambda model: model(inputs), None)
        return lambda given: gemma.LinenGemma(scanned).apply(given, inputs)

    one, other = forms
    tree = lens("Linen scanned", one).get(variables) if one != "Linen scanned" else variables
    between = lens(one, other)
    return Twins((run(one), run(other)), (tree, between.get(tree)), between)


def _demo(scanned: bool) -> Twins:
    """The demo's models: attention in one kernel."""
    from ckpt_schema.demo import linen_gpt, nnx_gpt, schemas

    sizes = linen_gpt.ModelSizes(11, 12, 2, 6, 25, 2, 5)
    inputs = jax.numpy.arange(10).reshape(2, 5) * 7 % 11
    source = schemas.LinenScanned if scanned else schemas.LinenUnrolled
    lens = cs.derive(cs.linen.Params[source], cs.nnx.Params[schemas.NnxUnrolled])
    module = nnx_gpt.NnxGPT(sizes, nnx.Rngs(0))
    return _flax(linen_gpt.LinenGPT(sizes, scanned), module, (inputs,), lens)


def _small(name: str) -> Twins:
    lens, source, _, runs = exchange_models.small(name)
    drawn_source = drawn_floats(source)
    return Twins(runs, (drawn_source, lens.get(drawn_source)), lens)


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
    "perceptron": lambda: perceptrons(image_models.mlp_names()),
    "ViT": _vit,
    "LoRA": lambda: _pair("LoRA"),
    **{
        f"Gemma, {one} to {other}": functools.partial(_gemma, one, other)
        for one, other in (
            ("Linen scanned", "Linen unrolled"),
            ("Linen scanned", "NNX unrolled"),
            ("Linen unrolled", "NNX scanned"),
            ("Linen scanned", "NNX scanned"),
            ("NNX unrolled", "NNX scanned"),
            ("Linen unrolled", "NNX unrolled"),
        )
    },
    **{
        f"MaxText's, {form}, {shape}": functools.partial(_maxtext, form, shape)
        for form, shape in (
            ("scanned", "plain"),
            ("unrolled", "plain"),
            ("scanned", "blocks"),
            ("scanned", "lora"),
        )
    },
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
        views = {piece.partition("[")[0] for piece in each.views}
        for view in views & after.keys():  # others are no floats: counts and keys of streams
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


def held(twins: Twins, seed: int, budget: int) -> dict[str, Any]:
    """Whether the lens of a pair is what running both models shows, all names as they are."""
    assert twins.lens is not None
    start = time.process_time()
    try:
        found = assert_discovered(
            twins.lens,
            *(twins.runs[0], twins.trees[0], twins.runs[1], twins.trees[1]),
            seed=seed,
            budget=budget,
        )
    except AssertionError as error:
        said = " ".join(str(error).split())[:400]
        return {"status": "not held", "pieces": 0, "said": [said], "seconds": 0.0}
    return {
        "status": found.status,
        "pieces": len(found.pairings),
        "said": [str(each)[:300] for each in found.open],
        "seconds": time.process_time() - start,
    }


def declared(names: Sequence[str], seeds: int, budget: int, kept: Kept) -> bool:
    """Holds each lens that is declared, and prints a table; whether one is not held."""
    failed = False
    for name in names:
        for seed in range(seeds):
            if CASES[name]().lens is None:
                continue
            settings = "declared", name, seed, budget
            outcome = kept.outcome(
                repr(settings), lambda *, name=name, seed=seed: held(CASES[name](), seed, budget)
            )
            failed |= outcome["status"] == "not held"
            print(
                f"{name:38} {outcome['status']:24} {outcome['pieces']:4} pieces "
                f"{len(outcome['said']):3} open {outcome['seconds']:6.1f} s",
                flush=True,
            )
            for line in outcome["said"] if outcome["status"] == "not held" else ():
                print("   ", line)
    return failed


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
    parser.add_argument(
        "--declared", action="store_true", help="hold each declared lens by cs.testing instead"
    )
    parser.add_argument("--budget", type=int, default=12_000, help="readings of each to try")
    parser.add_argument("--kept", type=Path, help="a file of outcomes: these are not tried again")
    given = parser.parse_args()
    jax.config.update("jax_disable_most_optimizations", True)  # compiling is what takes long
    kept = Kept(given.kept, SOURCES)
    if given.declared:
        return int(declared(given.names or [*CASES], given.seeds, given.budget, kept))
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
