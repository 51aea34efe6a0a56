"""What families have in common: how files are found to be of one spelling, and what a config tells."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from etils import epath

from ckpt_schema import hf, nnx
from ckpt_schema._layouts.paths import Index, Pattern
from ckpt_schema._layouts.schema import Schema, layout
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.derived_lens import derive
from ckpt_schema._lens.lens import Lens
from ckpt_schema._lens.rules import Rule, tie
from ckpt_schema._messages.text import shown
from ckpt_schema._trees.conformance import Matcher
from ckpt_schema.errors import CheckpointMismatchError, Mismatch

__all__ = [
    "Family",
    "FileForm",
    "ToldSizes",
    "config_of",
    "tied_head",
    "told_by",
    "told_size",
    "width_of",
]

ToldSizes = dict[str, tuple[str, Any]]
"""What a config has for each dim, and under which name."""


@dataclasses.dataclass(frozen=True, slots=True)
class FileForm:
    """One of the ways in which the files of a family are written.

    Attributes:
        files: Their layout.
        rules: What they have in other parts than a model has, such as two weights in one tensor.
    """

    files: type[Schema] | Layout
    rules: tuple[Rule, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Family:
    """Models that Hugging Face and NNX have in layouts with the same logical names.

    Attributes:
        name: What messages call it.
        types: What a config of it may have as its ``model_type``.
        spellings: How its files may be written.
        prefixes: What the names of its files may begin with, in place of the first.
        view: A model of NNX.
        sizes: What a config has for each dim.
    """

    name: str
    types: tuple[str, ...]
    spellings: tuple[FileForm, ...]
    prefixes: tuple[str, ...]
    view: type[Schema]
    sizes: Callable[[Mapping[str, Any]], ToldSizes]

    def lens_of(
        self,
        path: epath.PathLike,
        view: type[Schema] | Layout | None = None,
        *,
        rules: Iterable[Rule] = (),
    ) -> Lens:
        """The lens between a folder of Hugging Face and a model of NNX.

        The headers of the folder say its dtypes, which spelling it has, and whether it has a head.
        Where it has none, that of a decoder is the embedding: written to both, and held against it on
        the way back.

        Args:
            path: A folder, a safetensors file, or the index of several.
            view: The family's own, with a head or without, or a layout of yours with the same
                logical names; the one with a head unless given. A train state of NNX is one too.
            rules: What a layout of yours has otherwise, such as a query that is scaled, and what to
                leave aside of a folder, such as a tower that sees: ``cs.private("vision_tower", cs.own)``.

        Returns:
            The lens, for `ckpt_schema.hf.restore` and `ckpt_schema.hf.save`.

        Raises:
            CheckpointMismatchError: There is no such folder, its files are damaged, or its config
                is that of another family.
            DerivationError: The view is no model of this family, or the folder holds something that
                no rule leaves aside.

        Example:
            ``model = cs.hf.restore(folder, model, cs.families.llama.lens_of(folder))``
        """
        # The folder says how it is written, and with which dtypes; a model says no more than where it keeps what.
        files = self.stored(path)
        target = _as_nnx(self.view if view is None else view)
        own = tied_head(files.files, target)
        return derive(files.files, target, rules=[*files.rules, *own, *rules])

    def stored(self, path: epath.PathLike, forms: Sequence[FileForm] = ()) -> FileForm:
        """How the files of a folder are written, with the dtypes that they have.

        Args:
            path: The folder.
            forms: Those that are meant, where it is not any of the family.

        Raises:
            CheckpointMismatchError: There is no such folder, its files are damaged, or its config
                is that of another family.
        """
        tensors = hf.metadata(path)
        self._verify_type(path)
        # A damaged folder, or one with a tower beside, fits none: what is nearest tells best what is wrong.
        spelled = self._spelled(forms or self.spellings)
        nearest = min(spelled, key=lambda form: Matcher(layout(form.files)).distance(tensors))
        return FileForm(hf.as_stored(nearest.files, path), nearest.rules)

    def dims_from(self, config: Mapping[str, Any] | epath.PathLike) -> dict[str, int]:
        """The sizes that a config of Hugging Face tells, by the names of these layouts.

        Args:
            config: What stands in a ``config.json``, or the path of one, or of its folder.

        Returns:
            The sizes, for `ckpt_schema.abstract`.

        Raises:
            CheckpointMismatchError: With everything that it does not tell.

        Example:
            >>> import ckpt_schema as cs
            >>> sizes = {"hidden_size": 8, "intermediate_size": 24, "vocab_size": 32}
            >>> sizes |= {"num_attention_heads": 4, "num_hidden_layers": 2}
            >>> cs.families.llama.dims_from(sizes)
            {'embed': 8, 'heads': 4, 'kv': 4, 'head_dim': 2, 'mlp': 24, 'vocab': 32, 'depth': 2}
        """
        sizes: dict[str, int] = {}
        faults: list[Mismatch] = []
        for dim, (key, size) in self.sizes(told_by(config)).items():
            # To Python, true is an int as well.
            if type(size) is int and size >= 1:
                sizes[dim] = size
            else:
                found = "none" if size is None else shown(size)
                faults.append(Mismatch(key, "checkpoint", "a size", found))
        if faults:
            raise CheckpointMismatchError(f"the config is none of {self.name}", faults)
        return sizes

    def _spelled(self, forms: Iterable[FileForm]) -> Iterator[FileForm]:
        """Spellings, each with every prefix."""
        first = self.prefixes[0]
        for spelling in forms:
            table = layout(spelling.files)
            yield FileForm(table, spelling.rules)
            for prefix in self.prefixes[1:]:
                yield FileForm(_moved(table, first, prefix), spelling.rules)

    def _verify_type(self, path: epath.PathLike) -> None:
        """Raises where a config stands beside the weights that is of another family.

        Two families may have the same names, and compute other things with what they name.
        """
        config = _beside(path)
        found = _told(config).get("model_type") if config.is_file() else None
        # Weights may come without a config, and a config without a type.
        if found is None or found in self.types:
            return
        hint = "derive(hf.as_stored(files, folder), nnx.Params[view])"
        hint += " says that names alone are meant"
        fault = Mismatch("model_type", "checkpoint", " or ".join(self.types), shown(found), hint)
        raise CheckpointMismatchError(f"{config} is none of {self.name}", [fault])


def _as_nnx(view: type[Schema] | Layout) -> type[Schema]:
    """A state of NNX; what is none is the model that it has."""
    is_state = isinstance(view, type) and issubclass(view, nnx.State)
    return view if is_state else nnx.Params[view]


def tied_head(files: type[Schema] | Layout, view: type[Schema] | Layout) -> tuple[Rule, ...]:
    """What to say of a head that the files leave out, for it is their embedding, and a model has."""
    stored = {row.model_path for row in layout(files).rows}
    wanted = {row.model_path for row in layout(view).rows}
    head, embed = ("head", "weight"), ("embed", "weight")
    is_left_out = {head, embed} <= wanted and head not in stored
    return (tie("head/weight", "embed/weight"),) if is_left_out else ()


def told_by(config: Mapping[str, Any] | epath.PathLike) -> Mapping[str, Any]:
    """What stands in a config; of that of a model that sees, what it says of the part that reads.

    Raises:
        CheckpointMismatchError: There is none, or it is no JSON.
    """
    told = _told(config)
    text: Any = told.get("text_config", told)
    return cast(Mapping[str, Any], text) if isinstance(text, Mapping) else told


def config_of(path: epath.PathLike) -> Mapping[str, Any]:
    """The same of a folder, or of the folder of a file.

    Raises:
        CheckpointMismatchError: There is none, or it is no JSON.
    """
    return told_by(_beside(path))


def _beside(path: epath.PathLike) -> Path:
    """Where the config of a folder stands, or of the folder of a file."""
    place = Path(path)
    return (place if place.is_dir() else place.parent) / "config.json"


def told_size(told: Mapping[str, Any], *names: str) -> tuple[str, Any]:
    """What a config has under the first of several names that it knows.

    Example:
        >>> told_size({"n_embd": 8, "n_inner": None}, "hidden_size", "n_embd"), told_size({}, "a", "b")
        (('n_embd', 8), ('a', None))
    """
    for name in names:
        if told.get(name) is not None:
            return name, told[name]
    # A fault names the one that most configs have.
    return names[0], None


def width_of(embed: tuple[str, Any], heads: tuple[str, Any]) -> tuple[str, Any]:
    """The width of a head where the heads divide all.

    Example:
        >>> width_of(("d_model", 8), ("heads", 2)), width_of(("d_model", 8), ("heads", 3))
        (('d_model / heads', 4), ('d_model / heads', None))
    """
    name, (whole, parts) = f"{embed[0]} / {heads[0]}", (embed[1], heads[1])
    known = type(whole) is int and type(parts) is int and parts > 0
    return name, whole // parts if known and whole % parts == 0 else None


def _told(config: Mapping[str, Any] | epath.PathLike) -> Mapping[str, Any]:
    """What stands in a config.

    Raises:
        CheckpointMismatchError: There is none, or it is no JSON.
    """
    if isinstance(config, Mapping):
        return config
    path = Path(config)
    path = path / "config.json" if path.is_dir() else path
    try:
        told = json.loads(path.read_text())
        if isinstance(told, dict):
            return cast(dict[str, Any], told)
        found = shown(told)
    except (OSError, ValueError) as error:
        found = (str(error) or type(error).__name__).splitlines()[0]
    fault = Mismatch(str(path), "checkpoint", "an object of JSON", found)
    raise CheckpointMismatchError(f"{path} is no config", [fault])


def _moved(table: Layout, old: str, new: str) -> Layout:
    """The layout, its names that begin with ``old`` beginning with ``new``."""
    rows: list[Row] = []
    for row in table.rows:
        rows.append(dataclasses.replace(row, key=_renamed(row.key, old, new)))
    return dataclasses.replace(table, rows=tuple(rows))


def _renamed(key: Pattern, old: str, new: str) -> Pattern:
    """A key with another prefix. Files have one segment, in which the layers' numbers are symbols."""
    first, *rest = key
    if isinstance(first, Index) and first.prefix.startswith(old):
        return (dataclasses.replace(first, prefix=new + first.prefix.removeprefix(old)), *rest)
    if isinstance(first, str) and first.startswith(old):
        return (new + first.removeprefix(old), *rest)
    return key
