"""The context of the caller, in which Orbax reads and writes, and what is changed in it."""

from __future__ import annotations

import contextlib
import contextvars
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

__all__ = ["active_context", "alone", "directories_first", "patience"]


def active_context() -> ocp.Context | None:
    """The context that the caller has made for Orbax.

    It has no public name, but Python lists it.
    """
    for value in contextvars.copy_context().values():
        if isinstance(value, ocp.Context):
            return value
    return None


def directories_first() -> ocp.Context:
    """The caller's context, but that Orbax makes its directories before it starts to write.

    It would make them in a thread, for whose end others wait; where that fails, no process ends
    that has tried.
    """
    context = ocp.Context(active_context())
    context.asynchronous.create_directories_asynchronously = False
    return context


def patience() -> int:
    """The seconds that a process waits for others: those that Orbax waits in a save, as the caller has said."""
    return ocp.Context(active_context()).asynchronous.timeout_secs


def alone() -> contextlib.AbstractContextManager[Any]:
    """The caller's context, but that Orbax reads without waiting for other processes: one that fails would not come.

    What is read is agreed on afterwards.
    """
    # There is nobody to wait for.
    if jax.process_count() == 1:
        return contextlib.nullcontext()
    # To Orbax this process is the only one, and the first.
    context, number = ocp.Context(active_context()), jax.process_index()
    context.multiprocessing.primary_host = number
    context.multiprocessing.active_processes = {number}
    return context
