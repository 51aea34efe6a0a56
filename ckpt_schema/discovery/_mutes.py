"""What of two models differs, told by muting: where pieces of one form are zero, what they let through is silent.

If the outputs agree while a form is muted, then what differs is silent then; if they do not, then
something that differs is still heard. So a few runs of both models leave few leaves under suspicion,
and most readings need not be tried.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ckpt_schema.discovery._cutting import Cutting, ReadingChange, ReadingChanges
from ckpt_schema.discovery._leaf_pieces import AxisSizes, LeafPiece
from ckpt_schema.discovery._leaf_ways import LeafWay
from ckpt_schema.discovery._models import RunnableModel
from ckpt_schema.discovery._points import gradients_at, relative_gap

__all__ = ["Mute", "Suspicion"]

Models = tuple[RunnableModel, RunnableModel]
Array = np.ndarray[Any, Any]
_LeafForms = dict[str, collections.Counter[AxisSizes]]

_NOTHING = 1e-9
"""Outputs that are smaller than this, beside what they are otherwise, say nothing."""


@dataclasses.dataclass(frozen=True)
class Mute:
    """Both models with one form muted.

    Attributes:
        form: The form.
        agrees: Whether the outputs are equal then.
        silent: The leaves of each side that no output depends on then.
        own: The leaves of each side that have pieces of the form.
    """

    form: AxisSizes
    agrees: bool
    silent: tuple[frozenset[str], frozenset[str]]
    own: tuple[frozenset[str], frozenset[str]]


class Suspicion:
    """Which leaves may be read wrongly under one reading.

    Attributes:
        mutes: What each form tells, those that tell something.
    """

    def __init__(
        self, models: Models, cutting: Cutting, base: ReadingChanges, agrees: float
    ) -> None:
        """Runs both models with each form muted that both have as often.

        Args:
            models: The source and the view.
            cutting: Their pieces.
            base: The reading.
            agrees: The largest difference of outputs that is none.
        """
        self._models, self._cutting, self._base, self._agrees = models, cutting, base, agrees
        self._pieces = cutting.both_pieces(base)
        counts = _form_counts(self._pieces[0]), _form_counts(self._pieces[1])
        # How many pieces of each form each leaf has, for each side.
        self._forms: tuple[_LeafForms, _LeafForms] = {}, {}
        for pieces, forms in zip(self._pieces, self._forms, strict=True):
            for piece in pieces:
                forms.setdefault(piece.leaf, collections.Counter())[piece.form] += 1
        self._is_even = counts[0] == counts[1]
        # How large outputs are when nothing is muted, to tell whether any are left.
        self._size = 0.0
        for side, model in enumerate(models):
            outputs = model.run(cutting.shared_leaves(side, base))
            self._size = max(self._size, float(np.linalg.norm(outputs)))
        self.mutes: list[Mute] = []
        for form, count in counts[0].items():
            # Where one side has more of a form, muting it takes more away there.
            mute = self._muted(form) if counts[1][form] == count else None
            if mute is not None:
                self.mutes.append(mute)

    def _muted(self, form: AxisSizes) -> Mute | None:
        """Both models with one form muted; None where nothing is left to be heard."""
        outputs: list[Array] = []
        silent: list[frozenset[str]] = []
        muted: list[frozenset[str]] = []
        for side, model in enumerate(self._models):
            pieces = self._pieces[side]
            leaves = self._cutting.shared_leaves(side, self._base, form)
            made = model.run(leaves)
            if not np.isfinite(made).all() or np.linalg.norm(made) < _NOTHING * self._size:
                return None
            gradients = gradients_at(model, pieces, leaves, made, 0)
            sizes = [float(np.linalg.norm(gradient)) for gradient in gradients]
            floor = _NOTHING * max(sizes)
            # A muted piece has a gradient all the same, but it holds zero however it is scaled.
            heard: set[str] = set()
            muted_here: set[str] = set()
            for piece, size in zip(pieces, sizes, strict=True):
                if piece.form == form:
                    muted_here.add(piece.leaf)
                elif size > floor:
                    heard.add(piece.leaf)
            outputs.append(made)
            silent.append(frozenset(model.shapes) - heard)
            muted.append(frozenset(muted_here))
        agrees = relative_gap(*outputs) < self._agrees
        return Mute(form, agrees, (silent[0], silent[1]), (muted[0], muted[1]))

    @property
    def suspects(self) -> tuple[frozenset[str], frozenset[str]] | None:
        """The leaves of each side among which is all that differs; None where the outputs agree under no mute."""
        silent = [mute.silent for mute in self.mutes if mute.agrees]
        if not silent:
            return None
        # What is heard while the outputs agree is no other than on the other side.
        before, after = zip(*silent, strict=True)
        return before[0].intersection(*before[1:]), after[0].intersection(*after[1:])

    def allows(self, changes: Iterable[ReadingChange]) -> bool:
        """Whether these changes alone may be what is missing."""
        several = tuple(changes)
        if not all(map(self._keeps_forms, several)):
            return False
        return all(self._fits(mute, several) for mute in self.mutes)

    def may_be_one(self, change: ReadingChange) -> bool:
        """Whether a change may be one of several that are missing: all of it is silent where outputs agree."""
        if change.what == "halve":
            return True
        if not self._keeps_forms(change):
            return False
        # Others that are missing may be heard where outputs differ, so that this says nothing there.
        names = set(change.names)
        return all(names <= mute.silent[change.side] for mute in self.mutes if mute.agrees)

    def _keeps_forms(self, change: ReadingChange) -> bool:
        """Whether both models still have as many pieces of each form, where they have now."""
        if not self._is_even or change.what != "cut":
            return True
        after = self._way(change, change.names[0]).forms
        return all(self._forms[change.side][name] == after for name in change.names)

    def _way(self, change: ReadingChange, name: str) -> LeafWay:
        """The way that a change cuts a leaf in."""
        ways = self._cutting.ways(change.side, name)
        return ways[min(change.how, len(ways) - 1)]

    def _fits(self, mute: Mute, changes: Sequence[ReadingChange]) -> bool:
        """Whether what a muted form shows may be so where these changes are missing, and no others."""
        is_silent = True
        for change in changes:
            if change.what != "halve" and not set(change.names) <= mute.silent[change.side]:
                is_silent = False
        # Equal outputs: a change that is heard would make them unlike, so it cannot be missing.
        if mute.agrees:
            return is_silent
        # Other outputs: one of the changes has to be heard, or nothing would explain them.
        return not is_silent or any(self._is_heard(mute, change) for change in changes)

    def _is_heard(self, mute: Mute, change: ReadingChange) -> bool:
        """Whether a change of silent leaves is heard all the same: it makes other pieces, or values that are not zero."""
        if change.what == "halve":
            return True
        if change.what == "recode":
            return bool(change.how.offset) and bool(set(change.names) & mute.own[change.side])
        # Cut otherwise, a silent leaf is no longer all zero, or it is zero in another part.
        for name in change.names:
            after = set(self._way(change, name).forms)
            before = set(self._forms[change.side].get(name, ()))
            if mute.form in after | before and not after == before == {mute.form}:
                return True
        return False


def _form_counts(pieces: Sequence[LeafPiece]) -> collections.Counter[AxisSizes]:
    """How many pieces there are of each form."""
    return collections.Counter(piece.form for piece in pieces)
