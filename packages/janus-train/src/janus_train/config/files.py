"""Configurations from YAML files and settings, checked, and back."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from janus_train.config.config import Config
from janus_train.failure import UserError


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


def file_and_settings(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The configuration file and the settings among the words of a command.

    Raises:
        UserError: several files.
    """
    files = [word for word in words if "=" not in word]
    if len(files) > 1:
        raise UserError(f"one configuration file at most, got {', '.join(files)}; settings are written key=value")
    return (Path(files[0]) if files else None), [word for word in words if "=" in word]


def with_data_files(words: Sequence[str]) -> list[str]:
    """The same words, where those that name data, and no YAML file, have become the setting `data.train`."""
    paths = [word for word in words if "=" not in word and not word.endswith((".yaml", ".yml"))]
    rest = [word for word in words if word not in paths]
    return [*rest, f"data.train={json.dumps(paths)}"] if paths else rest


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
    section, _, last = name.rpartition(".")
    keys = known_keys()
    beside = {key.rsplit(".", 1)[-1]: key for key in keys if key.rpartition(".")[0] == section}
    inside = [beside[near] for near in difflib.get_close_matches(last, beside, n=1, cutoff=0.7)]
    same_name = [key for key in keys if key.rsplit(".", 1)[-1] == last]
    by_last = {key.rsplit(".", 1)[-1]: key for key in reversed(keys)}
    close = inside or same_name or difflib.get_close_matches(name, keys, n=1, cutoff=0.6)
    close = close or [by_last[k] for k in difflib.get_close_matches(last, by_last, n=1, cutoff=0.6)]
    close = close or difflib.get_close_matches(name, list(Config.model_fields), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; sections are {', '.join(Config.model_fields)}"
