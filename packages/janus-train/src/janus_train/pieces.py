"""The state of a training as flat, named tensors, of each of which a rank holds a piece."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from janus_train.moving_mean import own_part
from janus_train.state import Portion, TrainingState


@dataclass(frozen=True, eq=False)
class Piece:
    """A rank's piece of a tensor: an ordinary tensor that shares its memory with the state, and where it belongs.

    Scalars are tensors of one row here, whatever the state makes of them: ranks can then hold none of it.
    """

    tensor: Tensor
    portion: Portion


def pieces_of(state: TrainingState, rank: int) -> dict[str, Piece]:
    """Everything that makes the trajectory and is a tensor, as far as this rank holds it.

    `model.NAME` for parameters and buffers, `mean.NAME` and `optimizer.NAME.MOMENT` for what belongs to a parameter and
    is cut as it is, `random.RANK.DEVICE` for the state of a rank's random generators.
    """
    pieces: dict[str, Piece] = {}
    saved = state.model.state_dict(keep_vars=True)
    for name, buffer in state.model.named_buffers():
        if name in saved:  # else it follows from other things
            pieces[f"model.{name}"] = _piece(buffer, None)
    for name, parameter in state.model.named_parameters():
        portion = portion_of(name, parameter, state.portions)
        part = own_part(parameter)
        pieces[f"model.{name}"] = _piece(part, portion)
        if name in state.mean.weights:
            pieces[f"mean.{name}"] = _piece(state.mean.weights[name], portion)
        for moment, value in state.optimizer.state.get(parameter, {}).items():
            own = own_part(value)
            pieces[f"optimizer.{name}.{moment}"] = _piece(own, portion if own.shape == part.shape else None)
    for device, generator in random_states(state.model).items():
        pieces[random_name(rank, device)] = _piece(generator, None)
    return pieces


def portion_of(name: str, parameter: nn.Parameter, portions: Mapping[str, Portion]) -> Portion | None:
    """Which part of a parameter this rank holds; None where it is whole."""
    if name in portions:
        return portions[name]
    if hasattr(parameter, "device_mesh"):
        from janus_comm.sharding import offsets_of

        return Portion(tuple(parameter.shape), offsets_of(parameter))
    return None


def random_states(model: nn.Module) -> dict[str, Tensor]:
    """States of this process's random generators: of the CPU, and of the GPU where the model is on one."""
    states = {"cpu": torch.get_rng_state()}
    for device in {parameter.device for parameter in model.parameters() if parameter.is_cuda}:
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def random_name(rank: int, device: str) -> str:
    """The name of the state of one rank's random generator."""
    return f"random.{rank:05d}.{device}"


def staged(pieces: Mapping[str, Piece]) -> dict[str, Piece]:
    """Copies in memory of the host, which stay as they are while the training goes on."""
    copies = {name: Piece(_on_host(piece.tensor), piece.portion) for name, piece in pieces.items()}
    if any(piece.tensor.is_cuda for piece in pieces.values()):
        torch.cuda.synchronize()
    return copies


def _on_host(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor.clone()
    # Pinned, so that the copies follow each other without a wait between; torch keeps such memory for the next time.
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)


def _piece(tensor: Tensor, portion: Portion | None) -> Piece:
    rows = tensor.detach()
    rows = rows.reshape(1) if rows.dim() == 0 else rows
    if portion is None:
        portion = Portion(tuple(rows.shape), (0,) * rows.dim())
    elif not portion.shape:
        portion = Portion((1,), portion.offsets or (0,))
    return Piece(rows, portion)
