"""What trained weights a run begins with."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator, model_validator

from janus_train.config.section import Section


class StartConfig(Section):
    """Weights to go on from, instead of random ones. The model keeps its shape, its tasks and its elements."""

    model: Path | None = Field(default=None, description="run, saved model or official MatRIS file to start from")
    task: str | None = Field(
        default=None, description="task of that model which new tasks begin as; needed where it has several"
    )
    elements: dict[str, str] = Field(
        default={}, description="{new: known}: what a new element begins as; else its nearest in the periodic table"
    )
    freeze: list[str] = Field(default=[], description="parts of names of parameters that stay as they are: [blocks.0]")

    @field_validator("elements")
    @classmethod
    def _are_elements(cls, value: dict[str, str]) -> dict[str, str]:
        from ase.data import atomic_numbers

        if unknown := [symbol for pair in value.items() for symbol in pair if not atomic_numbers.get(symbol)]:
            raise ValueError(f"'{unknown[0]}' is not an element; write symbols H to Og")
        return value

    @model_validator(mode="after")
    def _has_a_model(self) -> StartConfig:
        for name in ("task", "elements", "freeze"):
            if getattr(self, name) and self.model is None:
                raise ValueError(f"start.{name} is for runs that start from a model; set start.model=PATH")
        return self
