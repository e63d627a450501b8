"""What to learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from janus_train.config.section import Section


class KeyNames(Section):
    """Under which names a file holds its labels."""

    energy: str = Field(default="energy", description="total energy, eV")
    forces: str = Field(default="forces", description="forces, eV/Å")
    stress: str = Field(default="stress", description="stress, eV/Å³, tension positive; 9 or 6 (Voigt) numbers")
    magmoms: str = Field(default="magmoms", description="magnetic moments, μB")
    task: str = Field(default="task", description="name of the level of theory")
    split: str = Field(default="split", description="train, val or test")
    group: str = Field(default="group", description="frames of one group never part between train and val")


class DataConfig(Section):
    """What to learn from."""

    train: list[Path] | None = Field(default=None, description="files that ASE reads; the bundled data set where null")
    val: list[Path] | None = Field(
        default=None, description="validation files; where null, frames marked val or a part"
    )
    val_fraction: float = Field(default=0.1, gt=0, lt=1, description="part set aside where nothing is marked")
    keys: KeyNames = KeyNames()
    batch_edges: int = Field(default=4000, ge=1, description="edges of one optimiser step, over all ranks")
    pass_edges: int | None = Field(
        default=None, ge=1, description="edges a rank computes at a time; a step with more adds up several passes"
    )

    @field_validator("train", "val", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, (str, Path)) else value
