"""Training states cut over ranks, whose every number is known: what checkpoints are tested with."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from janus_moe.planner import slice_sizes
from janus_train.config import OptimConfig
from janus_train.moving_mean import MovingMean, own_part
from janus_train.optim import make_optimizer
from janus_train.state import Portion, Progress, TrainingState

SHAPES = {
    "rows": (5, 3),  # cut along dim 0
    "few_rows": (1, 4),  # which most ranks have none of
    "experts": (2, 7, 3),  # cut along dim 1
    "scale": (),  # a row of its own
    "norm": (3,),  # whole on every rank
    "frozen": (2,),  # not trained
}
CUT_ALONG = {"rows": 0, "few_rows": 0, "experts": 1, "scale": 0}


def whole(name: str, kind: str) -> Tensor:
    """The numbers of a whole tensor of the state; different ones for each name and kind."""
    generator = torch.Generator().manual_seed(sum(map(ord, name + kind)))
    return torch.randn(SHAPES[name], generator=generator, dtype=torch.float64)


def portion_of(name: str, ranks: int, rank: int) -> tuple[Portion, tuple[slice, ...]]:
    """What a rank of a unit holds of a tensor, and how to cut that out of the whole with at least one dimension."""
    shape = SHAPES[name] or (1,)
    dim = CUT_ALONG[name]
    sizes = slice_sizes(shape[dim], ranks)
    begin = min(sum(sizes[:rank]), shape[dim])
    offsets = tuple(begin if place == dim else 0 for place in range(len(shape)))
    cut = tuple(slice(o, o + sizes[rank]) if place == dim else slice(None) for place, o in enumerate(offsets))
    return Portion(SHAPES[name], offsets if SHAPES[name] else (begin,)), cut


def part_of(name: str, kind: str, ranks: int, rank: int) -> Tensor:
    """The part of the whole that a rank of a unit holds."""
    if ranks == 1 or name not in CUT_ALONG:
        return whole(name, kind)
    return whole(name, kind).reshape(SHAPES[name] or (1,))[portion_of(name, ranks, rank)[1]].contiguous()


def make_state(
    ranks: int, rank: int, ema_decay: float = 0.9, present: Callable[[str, Tensor], Tensor] | None = None
) -> TrainingState:
    """A state full of zeros, of a rank of a unit; one rank holds everything.

    Parameters that are cut along rows are whatever `present` makes of this rank's rows; others are then left out.
    """
    zeros = {name: torch.zeros_like(part_of(name, "", ranks, rank)) for name in SHAPES}
    if present is not None:
        zeros = {name: present(name, part) for name, part in zeros.items() if CUT_ALONG.get(name) == 0}
    model = nn.ParameterDict({name: nn.Parameter(part, name != "frozen") for name, part in zeros.items()})
    model.register_buffer("count", torch.zeros((), dtype=torch.int64))
    model.register_buffer("derived", torch.zeros(2), persistent=False)
    portions = (
        {} if ranks == 1 or present is not None else {name: portion_of(name, ranks, rank)[0] for name in CUT_ALONG}
    )
    optimizer = make_optimizer(model, OptimConfig())
    return TrainingState(model, MovingMean(model, ema_decay), optimizer, Progress(), portions)


def fill(state: TrainingState, ranks: int, rank: int) -> TrainingState:
    """The numbers of the whole, as if after some steps."""
    model = state.model
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            own_part(parameter).copy_(part_of(name, "model", ranks, rank))
            if name in state.mean.weights:
                state.mean.weights[name].copy_(part_of(name, "mean", ranks, rank))
            for moment in ("exp_avg", "exp_avg_sq"):
                if parameter.requires_grad:
                    own_part(state.optimizer.state[parameter][moment]).copy_(part_of(name, moment, ranks, rank))
        model.get_buffer("count").fill_(17)
    state.mean.updates = 11
    state.progress = progress()
    return state


def assert_whole(state: TrainingState, ranks: int, rank: int) -> None:
    """The state is this rank's part of what `fill` fills in, to the bit."""
    for name, parameter in state.model.named_parameters():
        assert torch.equal(own_part(parameter), part_of(name, "model", ranks, rank)), name
        if not parameter.requires_grad:
            continue
        if state.mean.weights:
            assert torch.equal(state.mean.weights[name], part_of(name, "mean", ranks, rank)), name
        moments = state.optimizer.state[parameter]
        assert moments["step"].item() == 1
        for moment in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(own_part(moments[moment]), part_of(name, moment, ranks, rank)), (name, moment)
    assert state.model.get_buffer("count").item() == 17
    assert state.mean.updates == 11
    assert state.progress == progress()


def progress() -> Progress:
    """Where a training stands after some steps; nothing in it is as at the start."""
    return Progress(
        step=12, epoch=3, batch=2, watched="forces_mae", best_value=0.25, best_step=9, better_value=0.5, better_step=6,
        no_better=1, skipped=3, skipped_in_a_row=2, seconds=1.5,
    )  # fmt: skip


def elements_of(name: str) -> int:
    """Elements of a whole tensor."""
    return math.prod(SHAPES[name])
