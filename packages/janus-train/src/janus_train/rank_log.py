"""A file for each rank's warnings and errors: on the screen, one rank talks for all."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_LOGGER = "janus_train.rank"


@contextmanager
def rank_log(directory: Path, rank: int) -> Iterator[logging.Logger]:
    """Inside, `logs/rank-NNNN.log` gets this rank's warnings, log records from WARNING on, and how the rank failed.

    A rank that has nothing to say leaves no file. On the screen are warnings of the first rank.
    """
    (directory / "logs").mkdir(exist_ok=True)
    handler = logging.FileHandler(directory / "logs" / f"rank-{rank:04d}.log", delay=True)
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root, log, on_screen = logging.getLogger(), logging.getLogger(_LOGGER), warnings.showwarning
    root.addHandler(handler)

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any) -> None:
        log.warning(warnings.formatwarning(message, category, filename, lineno).strip())
        if rank == 0:
            on_screen(message, category, filename, lineno, *rest)

    warnings.showwarning = show  # type: ignore[assignment]  # the rest are where to write it, and the line
    try:
        yield log
    except Exception:
        log.exception("rank %d ends by an error", rank)
        raise
    finally:
        warnings.showwarning = on_screen
        root.removeHandler(handler)
        handler.close()
