"""A word has one meaning: in the glossary, and among the names of modules and of what they define."""

from __future__ import annotations

import ast
import collections
import re
from pathlib import Path

import ckpt_schema

ROOT = Path(ckpt_schema.__file__).parent
GLOSSARY = ROOT.parent / "docs" / "glossary.md"
ENTRY = re.compile(r"^\| (?P<word>[^|]+?) \| (?P<meaning>[^|]+?) \| (?P<where>[^|]+?) \|$", re.M)
# Names that stand in two modules all the same, and why.
TWICE = {
    "linen": "Linen's layouts, and Linen's layers",
    "nnx": "NNX's layouts, and NNX's layers",
    **dict.fromkeys(
        ("Bidirectional", "GRUCell", "LSTMCell", "MultiHeadAttention", "OptimizedLSTMCell"),
        "a layer that NNX keeps otherwise than Linen",
    ),
    **dict.fromkeys(
        ("RNN", "SimpleCell", "SpectralNorm", "WeightNorm"),
        "a layer that NNX keeps otherwise than Linen",
    ),
    "Decoder": "a model with a head of its own: each family's",
    "Files": "the files of a model with a head of its own: each family's",
    "TiedDecoder": "a model whose head is its embedding: each family's",
    "TiedFiles": "the files of a model whose head is its embedding: each family's",
    "dims_from": "what a config tells: to each family",
    "lens_of": "the lens of a folder: of each family",
    "maxtext": "how MaxText has a family: of each, and the module of what these have in common",
    "abstract": "the abstract value, of a leaf and of a whole layout",
    "Key": "a segment of a key path, and the annotation of a PRNG key, as jax calls both",
    "Params": "the layout of weights alone: Linen's and NNX's",
    "TrainState": "the layout of a whole state: Linen's and NNX's",
    "load": "a tree from disk without a target: from Orbax's files, and from Hugging Face's",
    "metadata": "what is known of arrays on disk without reading them: of Orbax's, and of Hugging Face's",
    "restore": "from disk into a target: from Orbax's files, and from Hugging Face's",
    "holds": "whether a dtype has a value: asked of a leaf, a codec, a format",
    "read": "the elements of a block: of arrays, and as a program",
    "save": "a state to disk: as Orbax's files, and as Hugging Face's",
    "samples": "the strategy that draws what the module defines",
    "sizes": "the strategy that draws what the module defines",
    "state_of": "the state in a module, and in what a manager has read",
    "states": "the strategy that draws what the module defines",
}


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in ROOT.rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    }


def defined(source: str) -> list[str]:
    """The names that a module gives out, without those that it only hands on."""
    tree = ast.parse(source)
    handed_on = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return [name for name in ast.literal_eval(node.value) if name not in handed_on]
    return []


def homonyms(sources: dict[str, str]) -> dict[str, list[str]]:
    """Words that stand for two things: names and last parts of module names, each with the modules that have it."""
    places: dict[str, set[str]] = collections.defaultdict(set)
    for module, source in sources.items():
        # A module may be called what it defines.
        for word in {module.rsplit(".", 1)[-1].lstrip("_"), *defined(source)}:
            places[word].add(module)
    return {word: sorted(found) for word, found in places.items() if len(found) > 1}


def test_no_name_stands_for_two_things() -> None:
    found = homonyms({name: path.read_text() for name, path in modules().items()})
    assert found.keys() == TWICE.keys(), {w: found.get(w) for w in found.keys() ^ TWICE.keys()}


def test_the_check_can_fail() -> None:
    one, two = "__all__ = ['Cell']\n", "from a import Cell\n__all__ = ['Cell']\n"
    assert homonyms({"a": one, "b": one}) == {"Cell": ["a", "b"]}
    assert homonyms({"a": one, "b": two}) == {}
    assert homonyms({"x.cells": "", "y._cells": ""}) == {"cells": ["x.cells", "y._cells"]}


def test_each_word_of_the_glossary_has_one_entry_and_a_place() -> None:
    found = (match.groupdict() for match in ENTRY.finditer(GLOSSARY.read_text()))
    entries = [entry for entry in found if entry["word"] != "word" and entry["word"][0] != "-"]
    words = [entry["word"] for entry in entries]
    assert len(words) > 40
    assert len(set(words)) == len(words)
    known = modules()
    for entry in entries:
        for place in re.findall(r"`([^`]+)`", entry["where"]):
            module = place.removesuffix(".py").replace("/", ".")
            assert module in known or (ROOT / place).is_dir(), f"{entry['word']}: {place}"
