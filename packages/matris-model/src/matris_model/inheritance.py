"""Models that go on from the weights of others, with more tasks and elements."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn

from janus_moe import MoELayer
from matris_model.elements import CHEMICAL_SYMBOLS
from matris_model.model import MatRISMoE
from matris_model.pruning import BY_ELEMENT, copy_elements

# Tensors with a row for each task.
_BY_TASK = ("atom_embedding.structure.task", "references", "scales")

_NO_MATRICES = ("radial", "charge_and_spin", "energy_out", "magmom_out")

_NOBLE_GASES = (0, 2, 10, 18, 36, 54, 86, 118)


@torch.no_grad()
def inherit_weights(
    model: MatRISMoE,
    module: nn.Module,
    read: Callable[[str], Tensor | None],
    tasks: Mapping[int, int],
    elements: Mapping[int, int],
) -> None:
    """Weights of a trained model of the same shape, in one block of a model or, given the model itself, in everything
    outside its blocks.

    The trained model's tasks are the first of this one's. Block by block: no rank needs to hold a whole model for it.

    Args:
        model: that goes on.
        module: one of its blocks, or itself.
        read: a tensor of the trained model by name; None where it has none of that name, and this one's stays.
        tasks: which of the trained model's tasks a new one begins as, by index.
        elements: which element a new one begins as, by atomic number: its experts, gates, embedding, references.

    Raises:
        ValueError: a module that is no part of the model, or a tensor of another shape.
    """
    name_of = {part: name for name, part in model.named_modules()}
    if module not in name_of:
        raise ValueError(f"{type(module).__name__} is no part of this model")
    prefix = f"{name_of[module]}." if module is not model else ""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, tensor in tensors.items():
        if module is model and name.startswith("blocks."):
            continue
        trained = read(prefix + name)
        if trained is None:
            continue
        if prefix + name in _BY_TASK:
            rows = [*range(len(trained)), *(tasks[place] for place in sorted(tasks))]
            trained = trained[rows]
        if trained.shape != tensor.shape:
            raise ValueError(
                f"{prefix}{name} has shape {list(trained.shape)} in the trained model, {list(tensor.shape)} in this one"
            )
        tensor.copy_(trained)
        if prefix + name in BY_ELEMENT:
            copy_elements(tensor, tensor, BY_ELEMENT[prefix + name], list(elements), list(elements.values()))
    for part in module.modules() if module is not model else ():
        if isinstance(part, MoELayer):
            part.router.stand_in(elements)


def is_table(name: str) -> bool:
    """Whether the parameter of this name has rows for elements or tasks: what a batch does not have is not in it."""
    return name in _BY_TASK or name in BY_ELEMENT or name.endswith("router.logits")


def is_matrix(name: str) -> bool:
    """Whether the parameter of this name is a matrix, or a stack of matrices, whose rows and columns are all features:
    no table, no bias, no coefficients of distances or angles, no single output."""
    if is_table(name):
        return False
    *_, owner, last = ("", *name.split("."))
    if last in ("gate_up", "down", "mix", "mix_of_three"):
        return True
    return last == "weight" and owner not in _NO_MATRICES and not owner.endswith("norm")


def nearest_element(atomic_number: int, known: Collection[int]) -> int:
    """Of the elements that are known the one nearest in the periodic table: a column counts as much as two rows, and of
    those as near the closest atomic number comes first.

    Raises:
        ValueError: none is known.
    """
    if not known:
        raise ValueError(f"no element is known that {CHEMICAL_SYMBOLS[atomic_number]} could begin as")
    row, column = _row_and_column(atomic_number)

    def apart(other: int) -> tuple[int, int, int]:
        other_row, other_column = _row_and_column(other)
        return 2 * abs(column - other_column) + abs(row - other_row), abs(atomic_number - other), other

    return min(known, key=apart)


def _row_and_column(atomic_number: int) -> tuple[int, int]:
    """Period and group, both from 1; all lanthanides and actinides are of group 3."""
    row = next(period for period, last in enumerate(_NOBLE_GASES) if atomic_number <= last)
    first, last = _NOBLE_GASES[row - 1] + 1, _NOBLE_GASES[row]
    place = atomic_number - first
    if place < 2:
        return row, 18 if atomic_number == last else place + 1
    return row, max(3, 18 - (last - atomic_number))
