"""Restore and save through a lens, on Orbax v1. The only place that imports orbax."""

from __future__ import annotations

from ckpt_schema.orbax._conversion import Conversion as Conversion
from ckpt_schema.orbax._convert import convert as convert
from ckpt_schema.orbax._cost import RestoreCost as RestoreCost
from ckpt_schema.orbax._cost import dry_run as dry_run
from ckpt_schema.orbax._items import items_of as items_of
from ckpt_schema.orbax._load import load as load
from ckpt_schema.orbax._managed import abstract_items as abstract_items
from ckpt_schema.orbax._managed import state_of as state_of
from ckpt_schema.orbax._private_leaves import load_private as load_private
from ckpt_schema.orbax._restore import RestoreTimes as RestoreTimes
from ckpt_schema.orbax._restore import restore as restore
from ckpt_schema.orbax._save import save as save
from ckpt_schema.orbax._versions import lens_between as lens_between

__all__ = [
    "Conversion",
    "RestoreCost",
    "RestoreTimes",
    "abstract_items",
    "convert",
    "dry_run",
    "items_of",
    "lens_between",
    "load",
    "load_private",
    "restore",
    "save",
    "state_of",
]
