"""How a case ended: named, accepted, raw, silent or hung."""

from __future__ import annotations

import dataclasses
import signal
import traceback
import types
import warnings
from collections.abc import Callable

import numpy as np

import ckpt_schema as cs

SECONDS = 60
"""What one case may take; everything else is a hang."""

Attempt = Callable[[np.random.Generator], object]
"""Draws an input and uses it; what it returns is not looked at."""


class SilentError(AssertionError):
    """What was accepted gave another result than the oracle says."""


class HangError(BaseException):
    """The time is over. No library catches it by accident."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a case ended.

    Attributes:
        kind: ``named``, ``accepted``, ``raw``, ``silent`` or ``hang``.
        said: The error, with where it was raised from, for those that are faults.
    """

    kind: str
    said: str = ""

    @property
    def fault(self) -> bool:
        """Whether the library failed."""
        return self.kind not in ("named", "accepted")


def ended(attempt: Attempt, seed: int, seconds: float = SECONDS) -> Outcome:
    """Runs one case, for so many seconds at most."""

    def over(_: int, __: types.FrameType | None) -> None:
        late.append(True)
        raise HangError

    late: list[bool] = []
    before = signal.signal(signal.SIGALRM, over)
    # Again and again, for what is raised in a callback is lost.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            attempt(np.random.default_rng(seed))
    except (SilentError, cs.TreesDifferError) as error:
        # That two trees differ is an error of the library's own, and nothing that it may say here.
        return Outcome("silent", str(error)[:300])
    except cs.CkptSchemaError as error:
        # An error must be worth reading: a text, of a length that a person reads.
        text = str(error)
        if not text or text.count("\n") > 60:
            return Outcome("raw", f"an error of {text.count(chr(10))} lines")
        return Outcome("named")
    except HangError as error:
        return Outcome("hang", f"at {_place(error)}")
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return Outcome("raw", f"{type(error).__name__} at {_place(error)}: {str(error)[:200]}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return Outcome("hang" if late else "accepted")


def _place(error: BaseException) -> str:
    """The last line of the package that an exception came through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "ckpt_schema" in frame.filename]
    if not ours:
        return "?"
    return f"{ours[-1].filename.rpartition('ckpt_schema/')[2]}:{ours[-1].lineno}"
