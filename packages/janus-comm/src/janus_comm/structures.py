"""Nested tuples, lists, dicts and dataclasses taken apart into tensors, and filled with others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a tensor was."""

    index: int


def apart(value: Any) -> tuple[Any, list[Tensor]]:
    """The same structure with places where its tensors were, and the tensors."""
    tensors: list[Tensor] = []

    def take(tensor: Tensor) -> Place:
        tensors.append(tensor)
        return Place(len(tensors) - 1)

    return _map_leaves(value, Tensor, take), tensors


def fill(structure: Any, tensors: Sequence[Tensor]) -> Any:
    """The structure with tensors in its places."""
    return _map_leaves(structure, Place, lambda place: tensors[place.index])


def _map_leaves(value: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, tuple):
        mapped = [_map_leaves(item, kind, function) for item in value]
        return type(value)(*mapped) if hasattr(value, "_fields") else tuple(mapped)
    if isinstance(value, list):
        return [_map_leaves(item, kind, function) for item in value]
    if isinstance(value, dict):
        return {key: _map_leaves(item, kind, function) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, (type, Place)):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        changed = {name: _map_leaves(item, kind, function) for name, item in fields.items()}
        if all(changed[name] is item for name, item in fields.items()):
            return value
        return dataclasses.replace(value, **changed)
    return value
