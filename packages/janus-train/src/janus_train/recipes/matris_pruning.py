"""Saved models cut down to the elements that somebody needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from janus_train.failure import UserError
from janus_train.recipes.matris import open_matris
from matris_model import MatRISMoE, prune_model, save_model


def prune_file(model_path: Path, elements: str, output: Path) -> dict[str, Any]:
    """Writes a saved model without the experts that these elements do not use; returns what is in both.

    Args:
        model_path: run directory or saved model.
        elements: chemical symbols with commas between them, `Cu,O`.
        output: model directory; must not exist.

    Raises:
        UserError: no such model, one without experts, an output that exists, or elements that the model does not know.
    """
    from ase.data import atomic_numbers

    if output.exists():
        raise UserError(f"{output} exists; remove it or choose another --output")
    symbols = [symbol.strip() for symbol in elements.split(",")]
    if unknown := [symbol for symbol in symbols if not atomic_numbers.get(symbol)]:
        raise UserError(f"--elements {elements}: '{unknown[0]}' is not an element; write symbols such as Cu,O")
    model = open_matris(model_path)
    if not isinstance(model, MatRISMoE):
        raise UserError(f"{model_path} is a {type(model).__name__}, which has no experts to leave out")
    try:
        pruned = prune_model(model, [atomic_numbers[symbol] for symbol in symbols])
    except ValueError as error:
        raise UserError(f"--elements {elements}: {error}") from error
    save_model(pruned, output, {"cut_down_to": symbols})
    return {
        "parameters": sum(parameter.numel() for parameter in pruned.parameters()),
        "parameters_before": sum(parameter.numel() for parameter in model.parameters()),
        "experts": pruned.config.experts,
        "experts_before": model.config.experts,
    }
