"""Parameters by parts of their names."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase

from janus_train.failure import UserError


def matches(pattern: str, name: str) -> bool:
    """Whether a dotted name has these parts in a row, `*` and `?` standing for letters within a part.

    `blocks.0` is in `blocks.0.query.weight`, not in `blocks.01.query.weight`; so are `query`, `qu*.weight` and `0`.
    """
    wanted, parts = pattern.split("."), name.split(".")
    return any(
        all(fnmatchcase(part, want) for part, want in zip(parts[at:], wanted, strict=False))
        for at in range(len(parts) - len(wanted) + 1)
    )


def require_matches(patterns: Iterable[str], names: Collection[str], key: str) -> None:
    """Refuses patterns that are in none of the names.

    Raises:
        UserError: names the key of the configuration, the pattern, and parts of names like it.
    """
    parts = list(dict.fromkeys(part for name in names for part in name.split(".")[:-1] or [name]))
    for pattern in patterns:
        if any(matches(pattern, name) for name in names):
            continue
        near = difflib.get_close_matches(pattern, parts, n=3, cutoff=0.4) or parts[:8]
        raise UserError(
            f"{key}: no parameter has '{pattern}' in its name; parts of names are {', '.join(near)} and others"
        )
