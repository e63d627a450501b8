"""Golden structures: small inputs whose outputs travel with a model file, which can check itself with them.

Checksums find weights that have changed. What they cannot find is a program, a library or a machine that makes other
numbers of the same weights; the outputs can.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float64

from janus_graph import Structure, build_graph

if TYPE_CHECKING:
    from matris_model.model_file import SavedModel

# Above this many parameters one structure has to do: each costs a pass through all the weights.
_LARGE = 30_000_000

# Elements for models that know all.
_COMMON_ELEMENTS = (1, 6, 8, 14, 26)

# Rounding errors that are allowed, in units of the precision of the weights times the size of what is compared. Other
# orders of summation came to 8 of them at most, and float32 was within 28 of float64, on stirred models.
_ROUNDINGS = 100.0


def golden_structures(model: SavedModel) -> list[Structure]:
    """A crystal, a charged cluster and a pair of atoms, of the model's own elements and tasks; the crystal alone for
    large models. They depend on the configuration alone, and reach all cutoffs with few edges.
    """
    config = model.config
    elements = config.elements or _COMMON_ELEMENTS
    length, last = config.cutoff, len(config.tasks) - 1
    crystal = Structure(
        _spread(elements, 2),
        np.array([[0.03, -0.02, 0.01], [0.29, 0.33, 0.27]]) * length,
        np.array([[0.62, 0.0, 0.0], [0.05, 0.58, 0.0], [-0.04, 0.07, 0.6]]) * length,
        np.array([True, True, True]),
    )
    if sum(parameter.numel() for parameter in model.parameters()) > _LARGE:
        return [crystal]
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1]])
    bent = corners @ np.array([[1.0, 0.1, 0.0], [-0.1, 1.1, 0.2], [0.0, 0.1, 0.9]]) * 0.33 * length
    alone = np.zeros((3, 3)), np.array([False, False, False])
    cluster = Structure(_spread(elements, 6), bent, *alone, charge=1, spin=2, task=last // 2)
    pair = Structure(
        _spread(elements[::-1], 2), np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.31 * length]]), *alone, task=last
    )
    return [crystal, cluster, pair]


def golden_values(model: SavedModel, structures: Sequence[Structure]) -> list[dict[str, Any]]:
    """Each structure with what the model says of it, as plain values for JSON: numbers are kept to the last bit."""
    config = model.config
    graph = build_graph(structures, config.cutoff, config.near_cutoff).to(model.references.device)
    properties = ("energy", "forces", "stress") + ("magmoms",) * config.magnetic_moments
    with torch.no_grad():
        found = model(graph, properties)
    outputs = {"energy": _host(found.energy), "stress": _host(found.stress)}
    per_atom = {"forces": _host(graph.in_input_order(found.forces))}
    if found.magmoms is not None:
        per_atom["magmoms"] = _host(graph.in_input_order(found.magmoms))
    cuts = np.cumsum([len(structure) for structure in structures])[:-1]
    rows = {name: np.split(values, cuts) for name, values in per_atom.items()}
    return [
        {
            "structure": _plain(structure),
            **{name: values[place].tolist() for name, values in outputs.items()},
            **{name: parts[place].tolist() for name, parts in rows.items()},
        }
        for place, structure in enumerate(structures)
    ]


def first_difference(model: SavedModel, golden: Sequence[dict[str, Any]]) -> str | None:
    """Where the model gives other values than these, in a sentence; None where all agree to the weights' precision.

    Raises:
        KeyError, TypeError, ValueError: values that describe no structures.
    """
    structures = [Structure(**{name: _array(value) for name, value in entry["structure"].items()}) for entry in golden]
    epsilon = torch.finfo(model.dtype).eps
    for place, (found, expected) in enumerate(zip(golden_values(model, structures), golden, strict=True)):
        references = _references(model, structures[place])
        size = 1.0 + abs(expected["energy"] - references) + float(np.abs(expected["forces"]).max())
        for name in ("energy", "forces", "stress", "magmoms"):
            if name not in found and name not in expected:
                continue
            values, before = np.asarray(found[name]), np.asarray(expected[name], dtype=np.float64)
            allowed = _ROUNDINGS * epsilon * float(np.nan_to_num(size, nan=1.0))
            if values.shape != before.shape or not np.allclose(values, before, rtol=0, atol=allowed, equal_nan=True):
                return f"{name} of golden structure {place} {_off(values, before)}, and {allowed:.1e} is allowed"
    return None


def _off(values: np.ndarray, before: np.ndarray) -> str:
    if values.shape != before.shape:
        return f"has shape {values.shape} and had {before.shape}"
    worst = int(np.argmax(np.nan_to_num(np.abs(values - before), nan=np.inf)))
    return f"is {values.flat[worst]:.9g} and was {before.flat[worst]:.9g}"


def _references(model: SavedModel, structure: Structure) -> float:
    return float(model.references[structure.task].cpu().numpy()[structure.atomic_numbers].sum())


def _spread(elements: Sequence[int], count: int) -> np.ndarray:
    """So many elements from first to last, evenly; some twice where there are fewer."""
    return np.array(elements)[np.linspace(0, len(elements) - 1, count).round().astype(np.int64)]


def _host(values: torch.Tensor) -> Float64[np.ndarray, "..."]:
    return np.asarray(values.detach().double().cpu())


def _plain(structure: Structure) -> dict[str, Any]:
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(structure).items()}


def _array(value: Any) -> Any:
    return np.array(value) if isinstance(value, list) else value
