"""What a data set holds, and what looks wrong in it, before any training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from janus_graph import neighbor_list
from janus_train.config import load_config
from janus_train.data.frame import Frame
from janus_train.data.load import coverage, data_fingerprint, load_data
from janus_train.data.statistics import fit_statistics
from janus_train.display import coverage_table

# Closer than this no two nuclei are in a structure that anybody computed on purpose, Å (H2 has 0.74).
_CLOSEST = 0.5
# A force component beyond this is an outlier for any potential near equilibrium, eV/Å.
_LARGEST_FORCE = 50.0
# At most so many frames are named for each kind of problem.
_NAMED = 5


@dataclass(frozen=True)
class DataReport:
    """What was found: for people, and for programs."""

    text: str
    content: dict[str, Any]


def check(config_path: Path | None, overrides: Sequence[str]) -> DataReport:
    """Reads the data of a configuration as training would, and reports on them.

    Raises:
        UserError: whatever would stop training.
    """
    data = load_data(load_config(config_path, overrides))
    statistics = fit_statistics(data.train, data.tasks)
    frames = [*data.train, *data.val]
    problems = {
        f"atoms closer than {_CLOSEST} Å": _named(frames, _too_close),
        f"a force component above {_LARGEST_FORCE} eV/Å": _named(frames, _too_strong),
        "a stress, but no periodic cell to have it in (not used)": _named(
            frames, lambda frame: frame.has("stress") and not frame.structure.has_volume
        ),
    }
    residuals = dict(zip(data.tasks, statistics.residuals.tolist(), strict=True))
    warnings = list(statistics.warnings)
    for problem, (count, names) in problems.items():
        if count:
            warnings.append(f"{count} frame(s) with {problem}: {', '.join(names)}{' …' if count > len(names) else ''}")
    tasks, fingerprint = coverage(data), data_fingerprint(data)
    lines = [
        coverage_table(tasks),
        *(f"{task}: reference energies leave {1000 * value:.1f} meV/atom" for task, value in residuals.items()),
        *(f"warning: {warning}" for warning in warnings),
        f"{len(frames)} frames, fingerprint {fingerprint[:16]}",
    ]
    content = {
        "tasks": tasks,
        "reference_residuals": residuals,
        "warnings": warnings,
        "fingerprint": fingerprint,
    }
    return DataReport("\n".join(lines), content)


def _named(frames: Sequence[Frame], wrong: Any) -> tuple[int, list[str]]:
    found = [frame.origin for frame in frames if wrong(frame)]
    return len(found), found[:_NAMED]


def _too_close(frame: Frame) -> bool:
    return len(neighbor_list(frame.structure, _CLOSEST)) > 0


def _too_strong(frame: Frame) -> bool:
    return frame.forces is not None and bool(np.abs(frame.forces).max() > _LARGEST_FORCE)
