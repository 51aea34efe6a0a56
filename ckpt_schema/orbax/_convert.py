"""A checkpoint of one layout made into one of another on disk, or each of a whole run: what only moves is not read."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from etils import epath

from ckpt_schema._compat import ROOT_FILE
from ckpt_schema._layouts.table import Layout
from ckpt_schema._lens.adapt.stacks import Scan
from ckpt_schema._lens.lens import Lens
from ckpt_schema._lens.registry import Registry
from ckpt_schema._lens.rules import Rule
from ckpt_schema._messages.text import counted
from ckpt_schema._safetensors.weights import is_of_weights
from ckpt_schema.errors import CkptSchemaError, ConformanceError, Mismatch
from ckpt_schema.orbax._adapt import Words, spare_words
from ckpt_schema.orbax._collector import old_objects_aside
from ckpt_schema.orbax._conversion import Conversion, TimedLeaf
from ckpt_schema.orbax._folders import is_checkpoint, refusal, steps_of
from ckpt_schema.orbax._places import Site, absolute, is_remote, verify_free, verify_writable
from ckpt_schema.orbax._rewriting import Rewriting
from ckpt_schema.orbax._route import Whereabouts, route_through, route_to
from ckpt_schema.orbax._sides import Side, verify_arguments, verify_names
from ckpt_schema.orbax._versions import newest, reading, version_of
from ckpt_schema.orbax._whereabouts import verify_standing

__all__ = ["convert"]

_LOGGER = logging.getLogger("ckpt_schema")


@old_objects_aside()
def convert(
    src: epath.PathLike,
    dst: epath.PathLike,
    lens_or_target: Any,
    *,
    rules: Sequence[Rule] = (),
    scan: Scan | None = None,
    lists: Sequence[str] | None = None,
    item: str | None = None,
    at: str | None = None,
    items: Mapping[str, str] | None = None,
    disk_side: Side | None = None,
    to: Any = None,
    aux: str | None = "nnx_aux",
    verify: bool = False,
    dry_run: bool = False,
    timed: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Conversion:
    """Makes a checkpoint of one side of a lens into one of the other side, on disk.

    A leaf that only moves, or has another name, is not read: the files of its array get a second
    name (a hard link; where the file system has none, they are copied). Leaves that are edited are
    read and written one by one: the peak of memory is twice the largest leaf, but where something
    needs all params at once. With ``verify`` it is three times that.

    All that is beside the state comes along: other items, metadata, keys' implementations,
    shardings, private leaves. What is converted is restored as the source is through the lens, bit
    for bit. The source is not touched, and may be deleted afterwards.

    The new checkpoint comes to its place by one rename, when it is whole. A conversion that was
    killed leaves a directory beside it whose name says that it is unfinished.

    Of the directory of a run, each checkpoint is converted, into one of the same name. Those that
    the new directory has already are left as they are: what was stopped can so be run again. They
    are to have the new layout. How each is to be converted is known before anything is written.

    Args:
        src: The directory of a checkpoint, written by Orbax's v1 or v0 API; or a directory of such.
        dst: The directory to make. It must not exist; links need it on the same file system.
        lens_or_target: A lens, of which either side is on disk; or a target as `restore` takes it,
            of which only the layout counts; or a registry, whose versions the checkpoints are of,
            each its own.
        rules: What names and shapes do not tell, for a target; see `ckpt_schema.adapt`.
        scan: The axis of stacked nodes, for a target.
        lists: Patterns of lists of layers, for a target.
        item: Which pytree of the checkpoint, where it holds several.
        at: The key path in it where the state stands; what is beside it comes along as it is.
        items: For a state that is spread over several pytrees, which one holds what is at a key.
            The new one is spread so too if it has these keys, and else in one, called "state".
        disk_side: The side that is on disk, for checkpoints that could be of either.
        to: Of a registry, the version that is made: a schema, a layout, or a target. Unless given, the
            newest, which no lens leads on from.
        aux: What the private leaves that stand beside the state are called. With None they are left
            out, and with them what the new layout has no place for.
        verify: Whether all is read again, of both checkpoints, and compared bit for bit.
        dry_run: Whether nothing is written: what is returned is then a plan, and reads metadata only.
        timed: Whether the plan tells how long it will take: one leaf is then read, made, and written
            beside the new place, where it is removed again. It is the one whose size is nearest to
            32 MiB.
        progress: Called with the bytes that are written and those that are to be, of what is edited
            or made, each time that some are.

    Returns:
        What was done.

    Raises:
        CheckpointExistsError: There is something at ``dst``, or a checkpoint of another layout in
            the place of one of a run.
        CheckpointMismatchError: There is no checkpoint at ``src``, or of another layout.
        CheckpointWriteError: The new one could not be written; nothing of it is left.
        ConformanceError: A value does not survive, or an argument is none.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> import ckpt_schema as cs
        >>> folder = tempfile.mkdtemp()
        >>> old = {"dense": {"kernel": jnp.ones((2, 3))}}
        >>> cs.orbax.save(folder + "/old", old)
        >>> new = {"linear": {"kernel": jnp.ones((2, 3))}}
        >>> rules = [cs.rename("dense", "linear")]
        >>> print(cs.orbax.convert(folder + "/old", folder + "/new", new, rules=rules))
        1 leaf moved (24 bytes, none of them read), 0 edited and 0 made (0 bytes)
    """
    verify_names(item=item, aux=aux)
    verify_standing(at, items)
    # These are words for making a lens: beside one that is given they would mean nothing.
    is_given = isinstance(lens_or_target, (Lens, Registry))
    if is_given and (rules or scan is not None or lists is not None):
        raise spare_words()
    words, where = Words(rules, scan, lists), Whereabouts(item, at, items, aux)
    order = _Order(
        lens_or_target, words, where, disk_side, _version_made(lens_or_target, to, disk_side)
    )
    source, place = absolute(src), absolute(dst)
    _verify_mounted(source, place)
    verify_writable(place)
    steps = steps_of(source)
    # The directory of a run holds checkpoints and is none itself.
    if steps:
        how = _How(verify, dry_run, timed, progress)
        return _convert_run(source, place, steps, order, how)
    verify_free(place)
    work = order.planned(source)
    # Known from metadata already, so that a dry run returns what the conversion would.
    done = work.outcome
    if not dry_run:
        _write(work, place, verify, _Meter(done.written, progress))
    elif timed:
        done = dataclasses.replace(done, sample=_sample([work], place))
    return done


@dataclasses.dataclass(frozen=True, slots=True)
class _Order:
    """What is asked for, of whichever checkpoint."""

    lens_or_target: Any
    words: Words
    where: Whereabouts
    disk_side: Side | None
    version: Layout | None

    def planned(self, source: epath.Path) -> Rewriting:
        """What is to be done with a checkpoint.

        Raises:
            CheckpointMismatchError: There is none that could be converted.
        """
        if is_of_weights(source):
            hint = "ckpt_schema.hf.restore reads it, and save of ckpt_schema.orbax writes what it returns"
            found = "a folder of Hugging Face, whose files are no arrays of Orbax"
            raise refusal(source, found, hint)
        through: tuple[str, ...] = ()
        if isinstance(self.lens_or_target, Registry):
            assert self.version is not None
            told = dataclasses.asdict(self.where)
            found = reading(source, self.version, self.lens_or_target, **told)
            route = route_through(source, found.lens, "source", self.where, found.disk)
            through = found.versions
        elif isinstance(self.lens_or_target, Lens):
            verify_arguments(self.lens_or_target, disk_side=self.disk_side)
            route = route_through(source, self.lens_or_target, self.disk_side, self.where)
        else:
            route = route_to(source, self.lens_or_target, self.words, self.where)
        # What has a reader of its own has no arrays in files of Orbax that a link could share.
        disks = [route.disk]
        for _, part in route.disk.parts:
            disks.append(part)
        if any(disk.reader is not None for disk in disks):
            hint = "restore it, and save what that returns: it is read whole in any case"
            raise refusal(source, "a file of an older release", hint)
        return Rewriting(route, self.where, Path(source), through)


def _version_made(given: Any, to: Any, disk_side: Side | None) -> Layout | None:
    """The version that is made of checkpoints of any, of a registry.

    Raises:
        ConformanceError: The registry does not tell it, and it was not said; or what is said of one
            lens is said beside a registry, or of a registry beside something else.
    """
    if isinstance(given, Registry) and disk_side is None:
        return newest(given) if to is None else version_of(to, given)
    faults: list[Mismatch] = []
    if isinstance(given, Registry):
        hint = "a checkpoint tells its version by its structure; of two lenses between, take one"
        faults.append(
            Mismatch("disk_side", "argument", "none beside a registry", repr(disk_side), hint)
        )
    elif to is not None:
        hint = "a lens and a target say themselves what is made"
        faults.append(Mismatch("to", "argument", "none without a registry", "one", hint))
    if faults:
        raise ConformanceError("wrong arguments", faults)
    return None


@dataclasses.dataclass(frozen=True, slots=True)
class _How:
    """What `convert` is told beside what is to be converted; see there."""

    verify: bool
    dry_run: bool
    timed: bool
    progress: Callable[[int, int], None] | None


class _Meter:
    """Tells how much of what is to be written is."""

    def __init__(self, whole: int, progress: Callable[[int, int], None] | None) -> None:
        self._whole, self._progress, self._done = whole, progress, 0

    def add(self, number: int) -> None:
        """Counts bytes that were written."""
        self._done += number
        if self._progress is not None:
            self._progress(self._done, self._whole)


def _convert_run(
    source: epath.Path,
    place: epath.Path,
    steps: Sequence[str],
    order: _Order,
    how: _How,
) -> Conversion:
    """Converts each checkpoint of a run that is not there yet."""
    # A directory that has some of the steps is that of a conversion which was stopped, and goes on.
    if is_checkpoint(place) or not place.is_dir():
        verify_free(place)
    missing = [step for step in steps if not (place / step).exists()]
    # All plans come before the first write: a step that cannot be converted stops the run at once.
    works = {step: order.planned(source / step) for step in missing}
    # What is there already may come of other rules, and a run of two layouts is of use to nobody.
    for step in steps:
        if step not in works:
            order.planned(source / step).verify_there(place / step)
    outcomes = {step: work.outcome for step, work in works.items()}
    done = Conversion.of_steps(outcomes, len(steps) - len(missing))
    text = "%s: of %s, %s are converted already"
    _LOGGER.info(text, place, counted(len(steps), "checkpoint"), len(steps) - len(missing))
    if how.dry_run:
        sample = _sample([*works.values()], place / "0") if how.timed else None
        return dataclasses.replace(done, sample=sample)
    # One meter for all steps: progress goes from nothing to the end once.
    meter = _Meter(done.written, how.progress)
    for step, work in works.items():
        _write(work, place / step, how.verify, meter)
    # The file by which a manager knows the directory for its own; it may have its own already.
    root, own = source / ROOT_FILE, place / ROOT_FILE
    if root.exists() and not own.exists():
        own.parent.mkdir(parents=True, exist_ok=True)
        root.copy(own)
    return done


def _sample(works: Sequence[Rewriting], place: epath.Path) -> TimedLeaf | None:
    """How fast the first of several conversions goes that makes anything, tried beside its place.

    None where none does, or where nothing can be written there, which the conversion will say.
    """
    above = place.parent
    while not above.exists():
        above = above.parent
    site = Site.beside(above / place.name)
    try:
        for number, work in enumerate(works):
            sample = work.sample(Path(site.own) / str(number))
            if sample is not None:
                return sample
    except OSError as error:
        _LOGGER.info("how long it takes is not known: %s", error)
    finally:
        site.sweep()
    return None


def _write(work: Rewriting, place: epath.Path, verify: bool, meter: _Meter) -> None:
    """Writes a checkpoint beside its place, and puts it there when it is whole."""
    site = Site.beside(place)
    scrap = Path(site.own) / "scrap"
    # The scrap holds arrays that are made, until the new pytree links them:
    # it is no part of the draft.
    try:
        work.write(Path(site.draft), Path(place), scrap, meter.add)
        work.verify(Path(site.draft), values=verify)
        shutil.rmtree(scrap, ignore_errors=True)
    # An error of the library says what is wrong; any other would be a riddle,
    # and gets a text around it.
    except CkptSchemaError:
        site.sweep()
        raise
    except Exception as error:  # Orbax and TensorStore have no one class for what may go wrong
        raise site.failed(error) from error
    site.finish()


def _verify_mounted(*places: epath.Path) -> None:
    faults: list[Mismatch] = []
    # A store has neither links nor a rename in one step, and both are what this stands on.
    for place in places:
        if is_remote(place):
            hint = "copy the checkpoint to a disk, or restore it and save it elsewhere"
            expected = "a path of a mounted file system"
            faults.append(Mismatch(str(place), "argument", expected, "a remote store", hint))
    if jax.process_count() > 1:
        found = f"one of {jax.process_count()}"
        hint = "convert in a program of its own: the files of all processes are converted"
        faults.append(Mismatch("jax.distributed", "process", "one process", found, hint))
    if faults:
        raise ConformanceError("convert works on files, in one process", faults)
