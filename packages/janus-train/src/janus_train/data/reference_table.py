"""Reference energies that a user gives, and those of a run, for people and for its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from janus_train.failure import UserError

if TYPE_CHECKING:
    from janus_train.data.statistics import Statistics

_IN_A_LINE = 8


def table_of(energies: Mapping[str, float] | Path) -> dict[int, float]:
    """A user's table, or the one in a YAML or JSON file: eV by atomic number.

    Raises:
        UserError: no such file, or something in it that is no element or no energy.
    """
    from ase.data import atomic_numbers

    if not isinstance(energies, Path):
        return {atomic_numbers[symbol]: float(energy) for symbol, energy in energies.items()}
    try:
        content = yaml.safe_load(energies.read_text())
    except OSError as error:
        raise UserError(
            f"references.energies: cannot read {energies} ({error.strerror}); give atoms, fit, a table or its file"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"references.energies: {energies} is neither YAML nor JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"references.energies: {energies} is no table; write lines such as H: -13.6")
    table = {}
    for symbol, energy in content.items():
        number = isinstance(energy, (int, float)) and not isinstance(energy, bool) and np.isfinite(energy)
        if not atomic_numbers.get(symbol) or not number:
            raise UserError(
                f"references.energies: {energies} has {symbol!r}: {energy!r}, no element with an energy in eV; write "
                "lines such as H: -13.6 (with quotes around a symbol that YAML takes for a word: 'No')"
            )
        table[atomic_numbers[symbol]] = float(energy)
    return table


def references_text(statistics: Statistics, tasks: Sequence[str]) -> str:
    """For people: where the references of each task come from, what they leave, and the energies themselves."""
    from ase.data import chemical_symbols

    lines = []
    for index, (task, found) in enumerate(zip(tasks, statistics.fits, strict=True)):
        row = statistics.references[index]
        if found is None:
            lines.append(f"references of {task}: {'as they were' if row.any() else 'none, for want of energies'}")
            continue
        rank = f", rank {found.fit.rank} of {len(found.fit.fitted)}" if found.fit.fitted else ""
        left = 1000 * statistics.residuals[index]
        lines.append(f"references of {task}: {found.source}{rank}; they leave {left:.1f} meV/atom (eV):")
        cells = [f"{chemical_symbols[z]:>2} {row[z]:12.4f}" for z in np.flatnonzero(row)]
        lines += ["  " + " ".join(cells[at : at + _IN_A_LINE]) for at in range(0, len(cells), _IN_A_LINE)]
    return "\n".join(lines)


def about_references(statistics: Statistics, tasks: Sequence[str]) -> dict[str, Any]:
    """The same for programs, by task; every number to the last bit."""
    from ase.data import chemical_symbols

    about = {}
    for task, found, residual in zip(tasks, statistics.fits, statistics.residuals.tolist(), strict=True):
        about[task] = {
            "source": None if found is None else found.source,
            "rank": None if found is None else found.fit.rank,
            "fitted": [] if found is None else [chemical_symbols[z] for z in found.fit.fitted],
            "open": [] if found is None else [chemical_symbols[z] for z in found.fit.open],
            "residual": residual,
        }
    return about
