"""What computes fast is compared with what computes plainly before anything is learnt with it."""

from dataclasses import replace

import pytest
import torch

from janus_train.failure import UserError
from janus_train.recipes.matris_check import check_formulas
from matris_model import PLAIN, MatRISMoE

TINY = {
    "blocks": 2, "width": 16, "edge_width": 8, "heads": 2, "experts": 4, "expert_hidden": 8, "message_hidden": 8,
    "feature_hidden": 8, "structure_width": 4, "cutoff": 4.0, "near_cutoff": 3.0, "tasks": ("a", "b"),
    "elements": (8, 14),
}  # fmt: skip


class _WrongSecondDerivative(torch.autograd.Function):
    """The activation with the right value and the right derivative, whose own derivative is a tenth too large."""

    @staticmethod
    def forward(ctx, both):
        ctx.save_for_backward(both)
        return PLAIN.activation(both)

    @staticmethod
    def backward(ctx, gradient):
        (both,) = ctx.saved_tensors
        with torch.enable_grad():
            leaf = both.detach().requires_grad_()
            (slope,) = torch.autograd.grad(PLAIN.activation(leaf), leaf, gradient, create_graph=True)
            again = both if both.requires_grad else leaf
            (exact,) = torch.autograd.grad(PLAIN.activation(again), again, gradient, create_graph=True)
        return 1.1 * exact - 0.1 * slope.detach()


def wrong_norm(features, weight):
    return PLAIN.norm(features, weight) * (1 + 1e-3)


@pytest.mark.parametrize(
    ("formulas", "differs"),
    [
        (PLAIN, None),
        (replace(PLAIN, activation=lambda both: PLAIN.activation(both.clone())), None),
        (replace(PLAIN, norm=wrong_norm), ""),
        (replace(PLAIN, activation=_WrongSecondDerivative.apply), "the gradient of"),
    ],
    ids=["plain", "equal", "wrong value", "wrong second derivative"],
)
def test_every_fast_path_is_compared_with_the_plain_one_with_both_derivatives(formulas, differs):
    model = MatRISMoE.from_preset("nano", **TINY)
    if differs is None:
        check_formulas(model, formulas, torch.device("cpu"))
        return
    with pytest.raises(UserError, match=r"the fast formulas \(model\.fused, model\.triton\) do not compute") as raised:
        check_formulas(model, formulas, torch.device("cpu"))
    assert differs in str(raised.value)
