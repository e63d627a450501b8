"""Published checkpoint files: opened without running code, and checked before anything is loaded."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Names in a message; more say nothing new.
_SHOWN = 4


def read_file(path: Path) -> Any:
    """What a file written by `torch.save` holds, on the CPU, if it is nothing but numbers, text and tensors.

    Raises:
        ValueError: no such file, one that is damaged or of another kind, or one that would run code.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror or error}); give a checkpoint file") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError,
            AssertionError, UnicodeDecodeError) as error:  # fmt: skip
        reason = str(error).strip().split("\n")[0].split(". ")[0]
        raise ValueError(
            "is damaged, no checkpoint, or holds more than numbers, text and tensors, which is not opened because it "
            f"could run code ({type(error).__name__}: {reason})"
        ) from error


def split_checkpoint(checkpoint: Any) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
    """Configuration and weights of a checkpoint.

    Raises:
        ValueError: it is not made of these two.
    """
    wanted = "a published checkpoint is a dictionary of 'config' (constructor arguments) and 'state_dict' (tensors)"
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"this is {type(checkpoint).__name__}; {wanted}")
    for name in ("config", "state_dict"):
        if not isinstance(checkpoint.get(name), Mapping):
            held = ", ".join(sorted(map(str, checkpoint))[:_SHOWN]) or "nothing"
            raise ValueError(f"there is no '{name}' here, but {held}; {wanted}")
    state = checkpoint["state_dict"]
    strange = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if strange:
        raise ValueError(f"state_dict holds things that are no tensors: {_listed(strange)}")
    return checkpoint["config"], state


def check_state(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> torch.dtype:
    """The precision of weights that have exactly the expected names and shapes.

    Raises:
        ValueError: names that are missing or unknown, shapes that differ, or values that are not floating point.
    """
    problems = []
    if missing := [name for name in expected if name not in state]:
        problems.append(f"{len(missing)} tensors are missing: {_listed(missing)}")
    if unknown := [name for name in state if name not in expected]:
        problems.append(f"{len(unknown)} tensors are unknown: {_listed(unknown)}")
    shapes = [
        f"{name} is {list(state[name].shape)}, expected {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if shapes:
        problems.append(f"{len(shapes)} tensors have another shape: {_listed(shapes)}")
    if problems:
        raise ValueError(f"the weights do not belong to this configuration; {'; '.join(problems)}")
    kinds = {state[name].dtype for name, tensor in expected.items() if tensor.is_floating_point()}
    if not all(kind.is_floating_point for kind in kinds):
        raise ValueError(f"the weights are {', '.join(sorted(map(str, kinds)))}; they must be floating point")
    widest = torch.float16
    for kind in kinds:
        widest = torch.promote_types(widest, kind)
    return widest


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
