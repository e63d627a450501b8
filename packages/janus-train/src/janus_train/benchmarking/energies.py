"""Errors of energies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def mean_absolute(errors: Sequence[float]) -> float | None:
    """The mean of the sizes; None of nothing."""
    return float(np.abs(np.asarray(errors)).mean()) if len(errors) else None


def root_mean_square(errors: Sequence[float]) -> float | None:
    """The root of the mean of the squares; None of nothing."""
    return float(np.sqrt(np.square(np.asarray(errors)).mean())) if len(errors) else None
