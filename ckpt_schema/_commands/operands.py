"""What stands on the command line for a layout, a lens or a tree: a path, or a name in a module.

The first step of each command: the text is read as what it means, and all that may be wrong with that is an error in the
words of the command line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import inspect
import math
import subprocess
import sys
import traceback
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ckpt_schema._diff.found_lists import found_lists
from ckpt_schema._json.json_text import from_json, kind_of_text
from ckpt_schema._layouts.paths import format_path
from ckpt_schema._layouts.schema import Schema, layout
from ckpt_schema._layouts.table import Layout
from ckpt_schema._lens.lens import Lens
from ckpt_schema._lens.read_sides import made_abstract
from ckpt_schema._trees.infer import infer
from ckpt_schema.errors import CkptSchemaError, DerivationError, Mismatch, SchemaError
from ckpt_schema.orbax._folders import RunFolderError
from ckpt_schema.orbax._metadata import DiskTree
from ckpt_schema.orbax._whereabouts import all_meant

__all__ = [
    "Operand",
    "from_text",
    "is_there",
    "made_mesh",
    "read_locked",
    "read_newest",
    "read_operand",
    "write_file",
    "wrong_operand",
]

_DEFAULTS = ("lens", "layout")
"""What is meant in a file of which no name is given, as `to_source` calls it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Operand:
    """What was meant.

    Attributes:
        text: As it was given.
        value: A layout, a schema, a lens, or a tree of arrays, abstract ones or metadata.
        notes: What is known of a checkpoint besides: its item or its items, where in it the state stands,
            what else is in it, and of which steps of a run it is the last.
        joined: What joins the segments of a path to one key, as in files of Hugging Face.
        disk: The checkpoint, where it is one.
    """

    text: str
    value: Any
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    joined: str | None = None
    disk: DiskTree | None = None

    @property
    def stored(self) -> bool:
        """Whether it is a checkpoint."""
        return self.disk is not None

    @property
    def is_declared(self) -> bool:
        """Whether it is a layout or a schema."""
        return isinstance(self.value, Layout) or (
            isinstance(self.value, type) and issubclass(self.value, Schema)
        )

    def layout(
        self, scan: Mapping[str, int] | None = None, lists: Sequence[str] | None = None
    ) -> Layout:
        """The layout, read off a tree where none is declared; siblings with numbers that are alike are lists.

        Args:
            scan: See `infer`.
            lists: The lists, where they are not to be found.

        Raises:
            SchemaError: It is a lens, or no layout can be read off it.
        """
        if self.is_declared:
            return layout(self.value)
        if isinstance(self.value, Lens):
            raise wrong_operand(self.text, "a layout or a tree", "a lens")
        # `Run` of `train.py:Run`, `step_4` of `/runs/step_4`.
        name = PurePath(self.text.rpartition(":")[2]).stem

        def read(known: Sequence[str]) -> Layout:
            return infer(self.value, scan=scan, lists=known, joined=self.joined, name=name)

        return found_lists(read)[1] if lists is None else read(lists)


def wrong_operand(text: str, expected: str, found: str, hint: str = "") -> SchemaError:
    """The error for what is of no use to a command."""
    fault = Mismatch(text, "argument", expected, found, hint)
    return SchemaError(f"{text} cannot be used", [fault])


def is_there(text: str) -> bool:
    """Whether there is a file or a folder; not where the system takes no such name."""
    try:
        return Path(text).exists()
    except OSError:  # too long a name
        return False


def write_file(output: str, text: str) -> None:
    """Writes a file.

    Raises:
        SchemaError: It cannot be written.
    """
    try:
        Path(output).write_text(text)
    except (OSError, ValueError) as error:  # of a null byte, the latter
        raise wrong_operand(output, "a file that can be written", _first_line(error)) from error


def read_operand(
    text: str,
    item: str | None = None,
    at: str | None = None,
    like: Sequence[Layout] = (),
    mesh: Mesh | None = None,
) -> Operand:
    """What is meant by a text: ``module:attr``, ``file.py``, ``file.py:attr``, a file of JSON, or the path of a checkpoint.

    Of a checkpoint the metadata alone is read. A name in a module imports it, which runs it.

    Args:
        text: The text.
        item: Which pytree of a checkpoint, where it holds several; all, where none is called ``state``.
        at: The key path in it where the state stands.
        like: Layouts that have types which a file of JSON may name.
        mesh: What a function is called with that takes a mesh; what it gives is taken as it is.

    Raises:
        SchemaError: The module has no such name, or cannot be imported; or the file is damaged; or
            ``item`` or ``at`` is said of what is no checkpoint.
        CheckpointMismatchError: There is no checkpoint at the path, or nothing in it of this name.
    """
    named = _named(text, like, mesh)
    if named is None:
        return _stored(text, item, at)
    # Both say where in a checkpoint to look.
    faults: list[Mismatch] = []
    for name, given in {"--item": item, "--at": at}.items():
        if given is not None:
            expected = "the path of a checkpoint"
            faults.append(Mismatch(name, "argument", expected, text, f"leave {name} out"))
    if faults:
        raise SchemaError(f"{text} is no checkpoint", faults)
    return named


def read_newest(text: str, item: str | None, at: str | None) -> Operand:
    """The same; of the folder of a run its last checkpoint, with a note of all that there are.

    Raises:
        SchemaError: As `read_operand` does.
        CheckpointMismatchError: The same.
    """
    try:
        return read_operand(text, item, at)
    except RunFolderError as error:
        # Step 1000 comes after step 200, as a person counts.
        steps = [*error.steps]
    operand = read_operand(f"{text.rstrip('/')}/{steps[-1]}", item, at)
    return dataclasses.replace(operand, notes={**operand.notes, "steps": steps})


def _named(text: str, like: Sequence[Layout], mesh: Mesh | None) -> Operand | None:
    """What is in a file of Python or JSON, or has a name in a module; None for all other texts."""
    module, colon, name = text.rpartition(":")
    if text.endswith(".py") and is_there(text):
        value = _in_module(text, _run(Path(text)), None)
        return Operand(text, _usable(text, value, mesh))
    if text.endswith(".json") and is_there(text) and Path(text).is_file():
        return Operand(text, from_text(text, Path(text).read_bytes(), like))
    # A colon may be in a path too: in that of a file that is there, or of a bucket, `gs://runs/4`.
    is_name = colon and "/" not in name and not is_there(text)
    if is_name and module.endswith(".py"):
        value = _in_module(text, _run(Path(module)), name)
        return Operand(text, _usable(text, value, mesh))
    if is_name and all(map(str.isidentifier, module.split("."))):
        value = _in_module(text, _imported(text, module), name)
        return Operand(text, _usable(text, value, mesh))
    return None


def _stored(text: str, item: str | None, at: str | None) -> Operand:
    """What a checkpoint holds, of which the metadata is read."""
    disk = all_meant(text, item=item, at=at)
    # Only what there is something to tell of.
    notes: dict[str, Any] = {"path": str(disk.path)}
    if disk.item is not None:
        notes["item"] = disk.item
    if disk.parts:
        notes["items"] = [str(part.item) for _, part in disk.parts]
    if disk.root:
        notes["at"] = format_path(disk.root)
    if disk.beside:
        notes["beside"] = sorted(disk.beside)
    if disk.path.name.isdecimal():
        notes["step"] = int(disk.path.name)
    return Operand(text, disk.tree, notes, disk.joined, disk)


def from_text(where: str, content: bytes, like: Sequence[Layout] = ()) -> Layout | Lens:
    """The layout or the lens in a file of JSON.

    Args:
        where: The file, for messages.
        content: What is in it.
        like: See `ckpt_schema.from_json`.

    Raises:
        SchemaError: There is something else in it.
    """
    text = content.decode(errors="replace")
    try:
        if kind_of_text(text) is Lens:
            return from_json(text, Lens, like=like)
        return from_json(text, Layout, like=like)
    except SchemaError as error:
        raise SchemaError(f"{where}: {error.header}", error.mismatches, error.notes) from error


def read_locked(text: str, file: str, like: Sequence[Layout]) -> Operand:
    """What a change is held against: an operand, or the lock file of a commit of git.

    Args:
        text: A file of `lock`, any other operand, or the name of a commit, ``origin/main``.
        file: The lock file in the commit.
        like: Layouts that have types which the file may name.

    Raises:
        SchemaError: There is no such file in the commit, or no such commit.
        CheckpointMismatchError: It looks like a path, and there is no checkpoint.
    """
    # The name of a commit has no colon, and no slash in front.
    if is_there(text) or ":" in text or text.startswith("/"):
        return read_operand(text, like=like)
    # `./` is below the current directory, as the file's name is; a text like `--output=x` is no option.
    command = ["git", "show", "--end-of-options", f"{text}:./{file}"]
    expected = f"a file, a checkpoint, or a commit that has {file}"
    try:
        shown = subprocess.run(command, capture_output=True, check=False)
    except (OSError, ValueError) as error:  # of a null byte, the latter
        raise wrong_operand(text, expected, _first_line(error)) from error
    if shown.returncode:
        why = shown.stderr.decode(errors="replace").strip().splitlines()
        hint = f"write it there with ckpt-schema lock TARGET -o {file}, or name a file"
        raise wrong_operand(text, expected, why[0] if why else "nothing", hint)
    where = f"{file} of {text}"
    return Operand(where, from_text(where, shown.stdout, like))


@contextlib.contextmanager
def made_mesh(axes: Sequence[tuple[str, int]]) -> Generator[Mesh | None]:
    """A mesh of these axes, in context; none where there are none.

    Raises:
        SchemaError: There are fewer devices.
    """
    if not axes:
        yield None
        return
    names, sizes = zip(*axes, strict=True)
    count, there = math.prod(sizes), jax.device_count()
    # The command makes as many devices as it is told before jax starts, unless XLA_FLAGS says how many.
    if count > there:
        hint = f"XLA_FLAGS=--xla_force_host_platform_device_count={count} makes as many of the CPU"
        raise wrong_operand("x".join(map(str, sizes)), f"{count} devices", str(there), hint)
    devices = np.asarray(jax.devices()[:count]).reshape(sizes)
    mesh = Mesh(devices, names)
    with jax.set_mesh(mesh):
        yield mesh


def _run(file: Path) -> Any:
    """The module in a file."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if not is_there(str(file)) or spec is None or spec.loader is None:
        raise wrong_operand(str(file), "a file of Python", "none")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise _not_run(str(file), file.stem, "a file that runs", error) from error
    return module


def _imported(text: str, module: str) -> Any:
    """The module of a name; those of the current directory are found as well."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise _not_run(text, module, "a module to import", error) from error


def _not_run(text: str, module: str, expected: str, error: Exception) -> CkptSchemaError:
    """The error for a module that raised another: all of that, where it is one of this library."""
    # A lens that is derived in a module tells there what is open: all of its faults are told on.
    if isinstance(error, CkptSchemaError):
        header = f"{text}: {module} raised {type(error).__name__}: {error.header}"
        return DerivationError(header, error.mismatches, error.notes)
    # A module that is there may lack another: then its own line is told, as of other errors.
    is_missing = isinstance(error, ModuleNotFoundError) and module.startswith(error.name or module)
    if is_missing:
        hint = "run the command where the module is, or install it"
        return wrong_operand(text, expected, _first_line(error), hint)
    # What the module's own code did last says more than where a library noticed it.
    hint = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if Path(frame.filename).stem == module.rpartition(".")[2]:
            hint = f"line {frame.lineno} of {frame.filename}: {frame.line}"
    return wrong_operand(text, expected, _first_line(error), hint)


def _first_line(error: Exception) -> str:
    """An error in one line."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def _in_module(text: str, module: Any, name: str | None) -> Any:
    """What has a name in a module; of one that nobody has named, what `to_source` would have called so."""
    if name is None:
        # The text of a lens has both its layouts too: it is the lens that is meant.
        name = next((name for name in _DEFAULTS if hasattr(module, name)), _DEFAULTS[-1])
    value = module
    for part in name.split("."):
        if not hasattr(value, part):
            known = ", ".join(sorted(word for word in vars(module) if word[0] != "_"))
            hint = f"it has {known}" if known else ""
            raise wrong_operand(text, f"a name in {module.__name__}", f"no {part}", hint)
        value = getattr(value, part)
    return value


def _usable(text: str, value: Any, mesh: Mesh | None = None) -> Any:
    """The value, made abstract where it is a function."""
    takes = inspect.signature(value).parameters if inspect.isfunction(value) else {}
    # Such a function says itself how what it makes lies on the mesh: that is taken as it is.
    if mesh is not None and "mesh" in takes:
        return value(mesh=mesh)
    # A class could be called too, and is not what anyone means.
    if isinstance(value, type) and not issubclass(value, Schema):
        hint = "write a function that makes one, def make(): return Model(nnx.Rngs(0))"
        raise wrong_operand(text, "a layout, a lens, a tree or a function", "a class", hint)
    try:
        return made_abstract(value)
    except TypeError as error:
        hint = "give a function without arguments"
        raise wrong_operand(
            text, "a function that makes a tree", _first_line(error), hint
        ) from error
