"""What energies are measured against before a model learns the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

from pydantic import Field, field_validator

from janus_train.config.section import Section

T = TypeVar("T")

Energies: TypeAlias = Literal["auto", "atoms", "fit"] | dict[str, float] | Path
"""Where reference energies come from: a way to find them, a table by symbol, or a file that holds one."""


class TaskReferences(Section):
    """Reference energies of one task; what is null is as for all tasks."""

    energies: Energies | None = Field(default=None, description="as references.energies")
    ridge: float | None = Field(default=None, ge=0, description="as references.ridge")
    scale: float | None = Field(default=None, gt=0, description="as references.scale")

    @field_validator("energies")
    @classmethod
    def _of_elements(cls, value: Energies | None) -> Energies | None:
        return _checked(value)


class ReferencesConfig(Section):
    """Reference energies of elements and the scale of a model's output, for all tasks or one by one."""

    energies: Energies = Field(
        default="auto",
        description="atoms: isolated ones in the data; fit: least squares; auto: atoms where each element has one, "
        "else fit; or a table {H: -13.6, ...} in eV, or a YAML or JSON file with one",
    )
    ridge: float | None = Field(
        default=None,
        ge=0,
        description="pull of a fit towards the mean energy per atom; null: what compositions leave open is an error",
    )
    scale: float | None = Field(
        default=None, gt=0, description="eV that a unit of the model's output means; from the forces where null"
    )
    tasks: dict[str, TaskReferences] = Field(default={}, description="by task, where it differs")

    @field_validator("energies")
    @classmethod
    def _of_elements(cls, value: Energies) -> Energies:
        return _checked(value)

    def of(self, task: str) -> ReferencesConfig:
        """What holds for a task."""
        own = self.tasks.get(task, TaskReferences())
        given = {name: value for name in ("energies", "ridge", "scale") if (value := getattr(own, name)) is not None}
        return self.model_copy(update={**given, "tasks": {}})

    def names_energies_of(self, task: str) -> bool:
        """Whether the user said where the reference energies of this very task come from."""
        return task in self.tasks and self.tasks[task].energies is not None


def _checked(value: T) -> T:
    if isinstance(value, dict):
        from ase.data import atomic_numbers

        if unknown := [symbol for symbol in value if not atomic_numbers.get(symbol)]:
            raise ValueError(f"'{unknown[0]}' is not an element; write symbols H to Og")
    return value
