"""Outcomes in a file, so that a command that takes hours can be interrupted and goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


class Kept:
    """Outcomes by name, and by all that they depend on: an outcome of other sources is not used."""

    def __init__(self, path: Path | None, sources: Iterable[Path]) -> None:
        """Reads the file, if there is one.

        Args:
            path: The file; None keeps nothing.
            sources: What outcomes depend on: modules, and folders of them.
        """
        self._path = path
        files: list[Path] = []
        for source in sources:
            files += sorted(source.rglob("*.py")) if source.is_dir() else [source]
        self._mark = hashlib.sha256(b"\n".join(each.read_bytes() for each in files)).hexdigest()
        self._found: dict[str, Any] = {}
        if path is not None and path.exists():
            for line in path.read_text().splitlines():
                mark, name, outcome = json.loads(line)
                if mark == self._mark:
                    self._found[name] = outcome

    def outcome(self, name: str, attempt: Callable[[], Any]) -> Any:
        """What came of this; it is tried where that is not known."""
        if name not in self._found:
            self._found[name] = attempt()
            if self._path is not None:
                with self._path.open("a") as file:
                    file.write(json.dumps([self._mark, name, self._found[name]]) + "\n")
        return self._found[name]
