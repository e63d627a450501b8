"""The configuration of a run: one YAML file, every field of which can be set on the command line."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from janus_train.failure import UserError


class Section(BaseModel):
    """A part of the configuration. Keys it does not know are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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


class RouterConfig(Section):
    """How the experts of elements are settled: by the data alone, or by a first part of the training."""

    noise: float = Field(
        default=0.0, ge=0, description="on the choice of experts at the start; the initial choice has a lead of 0.01"
    )
    freeze_at: int = Field(
        default=0, ge=0, description="step from which the experts of elements stay; until then noise fades out"
    )

    @model_validator(mode="after")
    def _noise_has_time(self) -> RouterConfig:
        if self.noise > 0 and self.freeze_at == 0:
            raise ValueError(
                f"noise is {self.noise}, but experts are frozen from the first step; set freeze_at to some hundred "
                "steps, or leave noise out"
            )
        return self


class ModelConfig(BaseModel):
    """The model: a preset, and any field of its configuration that shall differ."""

    model_config = ConfigDict(extra="allow", frozen=True)

    preset: str = Field(default="nano", description="nano, micro, mini, base, S, M, L; matris-6m or matris-10m")
    fused: bool = Field(default=False, description="compile elementwise formulas: a faster step, after a minute's wait")
    triton: bool = Field(default=False, description="Triton kernels for attentions and experts; on CUDA devices")
    checkpoint: bool | None = Field(
        default=None, description="compute blocks again in the backward pass: less memory, slower; null: if a unit must"
    )
    router: RouterConfig = RouterConfig()

    @property
    def changes(self) -> dict[str, Any]:
        """Fields of the preset that the user set."""
        return dict(self.__pydantic_extra__ or {})


class LossConfig(Section):
    """Weights of the loss terms; zero leaves a term out."""

    energy: float = Field(default=2.0, ge=0, description="per-atom energy, mean absolute error, 1/eV")
    forces: float = Field(default=5.0, ge=0, description="mean length of the force error vector, Å/eV")
    stress: float = Field(default=5.0, ge=0, description="stress, mean absolute error, Å³/eV")
    magmoms: float = Field(default=0.0, ge=0, description="magnetic moments, mean absolute error, 1/μB")

    @model_validator(mode="after")
    def _something_to_learn(self) -> LossConfig:
        if not any((self.energy, self.forces, self.stress, self.magmoms)):
            raise ValueError("all weights are zero, so there is nothing to learn; set loss.energy or loss.forces")
        return self

    @property
    def weights(self) -> dict[str, float]:
        """The terms that count, by property."""
        every = {"energy": self.energy, "forces": self.forces, "stress": self.stress, "magmoms": self.magmoms}
        return {name: weight for name, weight in every.items() if weight > 0}


class OptimConfig(Section):
    """AdamW with linear warm-up and cosine decay."""

    lr: float = Field(default=1.5e-3, gt=0, description="highest learning rate")
    warmup_steps: int = Field(default=100, ge=0, description="steps until it is reached")
    final_lr_fraction: float = Field(default=0.01, ge=0, le=1, description="lr of the last step over the highest")
    weight_decay: float = Field(default=1e-3, ge=0, description="on matrices; never on norms, biases, router tables")
    clip: float = Field(default=10.0, gt=0, description="largest norm of the gradient")
    ema_decay: float = Field(default=0.995, ge=0, lt=1, description="of the mean of weights that is saved")


class MeshConfig(Section):
    """How many ranks, and what they share. `replica × unit` must be the number of launched ranks."""

    replica: int = Field(default=1, ge=1, description="replicas of a unit; they share the structures of a step")
    unit: int = Field(
        default=1, ge=1, description="ranks of a unit; they share the model and cut structures that are large"
    )
    route: Literal["auto", "backward", "tangent"] = Field(
        default="auto", description="of a unit's gradients; tangent: slower, and less memory with model.checkpoint"
    )
    weights: Literal["auto", "keep", "regather"] = Field(
        default="auto",
        description="whole weights of blocks on route backward: through a step, or one by one",
    )


class RunConfig(Section):
    """Where, how long, how."""

    dir: Path | None = Field(default=None, description="run directory; the next free runs/PRESET-NNN where null")
    seed: int = Field(default=0, ge=0, description="of the weights and of the order of the data")
    max_steps: int = Field(default=4500, ge=1, description="optimiser steps; the schedules span them")
    stop_at_step: int | None = Field(default=None, ge=1, description="write a checkpoint and end there; resume goes on")
    memory_gb: float | None = Field(
        default=None,
        gt=0,
        description="that a rank may use, for what is auto; most of what there is where null",
    )
    dtype: Literal["float32", "float64"] = Field(default="float32", description="precision of the weights")
    device: Literal["cpu", "cuda"] = Field(default="cpu", description="where to compute")
    timeout: float = Field(default=1800.0, gt=0, description="seconds that a rank waits for the others")
    checked: bool | None = Field(
        default=None, description="ranks compare each exchange before they make it; where null, JANUS_CHECKED=1 says so"
    )
    deterministic: bool = Field(default=False, description="only algorithms that give the same bits every time")
    log_every: int = Field(default=10, ge=1, description="steps between lines of metrics.jsonl")
    val_every: int = Field(default=500, ge=1, description="steps between validations")
    checkpoint_every: int = Field(default=500, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(default=2, ge=1, description="newest checkpoints that are kept")
    checkpoint_in_background: bool = Field(
        default=True, description="copy the state, then write while the training goes on; else write without a copy"
    )
    max_bad_steps: int = Field(default=10, ge=1, description="steps in a row without finite gradients before giving up")


class Config(Section):
    """A run."""

    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    mesh: MeshConfig = MeshConfig()

    @model_validator(mode="after")
    def _kernels_have_a_device(self) -> Config:
        if self.model.triton and self.run.device != "cuda":
            raise ValueError(
                f"model.triton is for CUDA devices, and run.device is {self.run.device}; set run.device=cuda, or leave "
                "model.triton out"
            )
        return self

    @model_validator(mode="after")
    def _experts_settle(self) -> Config:
        if self.model.router.freeze_at >= self.run.max_steps:
            raise ValueError(
                f"model.router.freeze_at is {self.model.router.freeze_at} and run.max_steps {self.run.max_steps}: the "
                "experts of elements would never be settled; freeze earlier or train longer"
            )
        return self


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """The configuration in a YAML file (or the defaults), with `path.to.field=value` settings on top.

    Raises:
        UserError: the file is missing or not YAML, or a key or value is wrong; the message names the nearest key.
    """
    values: dict[str, Any] = {} if path is None else _read_yaml(path)
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name:
            raise UserError(f"'{override}' is not a setting; write path.to.field=value, such as optim.lr=0.001")
        _set(values, name, _parse_value(override, text))
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(error, path)) from error


def save_config(config: Config, path: Path) -> None:
    """Writes every field, defaults too, so that the file alone repeats the run."""
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


def config_schema() -> dict[str, Any]:
    """The JSON schema of the configuration file."""
    return Config.model_json_schema()


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {type(values).__name__}, not sections such as 'run:' and 'data:'")
    return values


def _parse_value(override: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"'{override}': the value is not YAML ({error})") from error


def _set(values: dict[str, Any], name: str, value: Any) -> None:
    *sections, field = name.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise UserError(f"'{name}': {section} is a value, not a section")
        values = inner
    values[field] = value


def _explain(error: ValidationError, path: Path | None) -> str:
    lines = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown key '{name}'{_nearest(name)}")
        else:
            given = f" (given: {problem['input']!r})" if not isinstance(problem["input"], Mapping) else ""
            lines.append(f"{name}: {problem['msg'].removeprefix('Value error, ')}{given}")
    where = "settings" if path is None else f"{path} and settings"
    return f"wrong configuration ({where}):\n  " + "\n  ".join(lines)


def known_keys() -> list[str]:
    """Every field as path.to.field."""
    return list(_keys_of(Config, ""))


def _keys_of(section: type[BaseModel], prefix: str) -> Sequence[str]:
    keys: list[str] = []
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            keys += _keys_of(inner, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def _nearest(name: str) -> str:
    # The last part is what people mistype or put into another section; the whole path is the second guess.
    last = name.rsplit(".", 1)[-1]
    keys = known_keys()
    same_name = [key for key in keys if key.rsplit(".", 1)[-1] == last]
    by_last = {key.rsplit(".", 1)[-1]: key for key in reversed(keys)}
    close = same_name or difflib.get_close_matches(name, keys, n=1, cutoff=0.6)
    close = close or [by_last[k] for k in difflib.get_close_matches(last, by_last, n=1, cutoff=0.6)]
    close = close or difflib.get_close_matches(name, list(Config.model_fields), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; sections are {', '.join(Config.model_fields)}"
