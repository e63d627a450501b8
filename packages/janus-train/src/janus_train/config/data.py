"""What to learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

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


KeyName = Literal["energy", "forces", "stress", "magmoms", "task", "split", "group"]


class SourceConfig(Section):
    """Where frames come from, and how they are taken. A path alone is a source with everything else as it is here."""

    path: Path = Field(description="a file, a directory, a pattern such as runs/*/OUTCAR, or a converted store")
    task: str | None = Field(default=None, description="task of its frames that name none; 'default' where null")
    weight: float = Field(default=1.0, gt=0, description="how often each of its frames is drawn in an epoch")
    keys: dict[KeyName, str] = Field(default={}, description="names of its labels that differ from data.keys")

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, (str, Path)) else value

    def __str__(self) -> str:
        return str(self.path)


class DataConfig(Section):
    """What to learn from."""

    train: list[SourceConfig] | None = Field(
        default=None,
        description="paths, or mappings with path, task, weight, keys; the bundled data set where null",
    )
    val: list[SourceConfig] | None = Field(
        default=None, description="the same for validation; where null, frames marked val or a part"
    )
    val_fraction: float = Field(default=0.1, gt=0, lt=1, description="part set aside where nothing is marked")
    split_by: Literal["group", "composition", "frame"] = Field(
        default="group", description="what stays together when a part is set aside: groups, formulas, or nothing"
    )
    keys: KeyNames = KeyNames()
    batch_edges: int = Field(default=7000, ge=1, description="edges of one optimiser step, over all ranks")
    pass_edges: int | None = Field(
        default=None, ge=1, description="edges a rank computes at a time; a step with more adds up several passes"
    )

    @field_validator("train", "val", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, (str, Path, dict)) else value

    @field_validator("val")
    @classmethod
    def _each_once(cls, value: list[SourceConfig] | None) -> list[SourceConfig] | None:
        for source in value or []:
            if source.weight != 1:
                raise ValueError(
                    f"{source} has the weight {source.weight:g}; every validation frame counts once: leave weight out"
                )
        return value

    def keys_of(self, source: SourceConfig) -> KeyNames:
        """Under which names a source holds its labels."""
        return self.keys.model_copy(update=dict[str, str](source.keys.items()))
