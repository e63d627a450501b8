"""metrics.jsonl: one line of JSON a log step and a validation."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class MetricsLog:
    """A file that grows by a line at a time and is complete up to the last line whatever happens."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting = ""

    def write(self, line: Mapping[str, Any]) -> None:
        """Appends one line. Numbers that JSON does not know (NaN, infinity) become null.

        Raises:
            OSError: it cannot be written; it is kept, and goes with the next line that can.
        """
        self._waiting += json.dumps(plain_line(line), allow_nan=False) + "\n"
        rest = self._waiting.encode()
        with self.path.open("ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:
                file.truncate(end)  # half a line would make the next one unreadable
                raise
        self._waiting = ""

    def read(self) -> list[dict[str, Any]]:
        """All complete lines; one that was cut short is left out."""
        if not self.path.exists():
            return []
        lines = []
        for text in self.path.read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                continue
        return lines

    def forget_after(self, step: int) -> None:
        """Drops lines of steps that will be done again because a run resumes before them."""
        if not self.path.exists():
            return
        kept = [line for line in self.read() if line["step"] <= step]
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        partial.replace(self.path)


def plain_line(line: Mapping[str, Any]) -> dict[str, Any]:
    """The line as JSON knows it: NaN and infinity are null."""
    return {key: _plain(value) for key, value in line.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return plain_line(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
