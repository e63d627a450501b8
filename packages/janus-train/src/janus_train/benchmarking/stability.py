"""How well a predicted distance to the convex hull tells which crystals are stable: the numbers of Matbench-Discovery
(Riebesell et al., Nat. Mach. Intell. 2025, 7, 836, doi:10.1038/s42256-025-01055-1).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64


def stability_metrics(
    true: Float64[np.ndarray, "crystals"],
    predicted: Float64[np.ndarray, "crystals"],
    prevalence: float | None = None,
    threshold: float = 0.0,
) -> dict[str, float | int | None]:
    """Classification of crystals as stable, and errors of their distance to the hull. None where it is not defined.

    Stable is what lies at or below the threshold; what has no prediction (NaN) counts as predicted unstable, and not in
    the errors. With TP, FP, TN and FN the numbers of crystals that are rightly or wrongly called stable or unstable:
    precision TP / (TP + FP); recall TP / (TP + FN); F1 = 2 precision · recall / (precision + recall); accuracy
    (TP + TN) / all; DAF = precision / prevalence, how many times more of the crystals called stable are so than of all;
    R² = 1 − Σ(predicted − true)² / Σ(true − mean true)².

    Args:
        true: distance to the hull by the reference method, eV/atom.
        predicted: by the potential.
        prevalence: part that is stable; None for that of these crystals.
        threshold: eV/atom.
    """
    stable, called = true <= threshold, predicted <= threshold
    tp, fp = int((stable & called).sum()), int((~stable & called).sum())
    fn, tn = int((stable & ~called).sum()), int((~stable & ~called).sum())
    precision, recall = _ratio(tp, tp + fp), _ratio(tp, tp + fn)
    prevalence = _ratio(tp + fn, len(true)) if prevalence is None else prevalence
    f1 = _ratio(2 * precision * recall, precision + recall) if precision is not None and recall is not None else None
    known = np.isfinite(predicted)
    errors, kept = (predicted - true)[known], true[known]
    spread = float(np.square(kept - kept.mean()).sum()) if len(kept) else 0.0
    return {
        "crystals": len(true),
        "missing": int((~known).sum()),
        "f1": f1,
        "daf": _ratio(precision, prevalence) if precision is not None and prevalence is not None else None,
        "precision": precision,
        "recall": recall,
        "accuracy": _ratio(tp + tn, len(true)),
        "tpr": recall,
        "fpr": _ratio(fp, fp + tn),
        "tnr": _ratio(tn, fp + tn),
        "fnr": _ratio(fn, tp + fn),
        "tp": tp,
        "fp": fp,
        "tn": tn,
        "fn": fn,
        "mae": float(np.abs(errors).mean()) if len(errors) else None,
        "rmse": float(np.sqrt(np.square(errors).mean())) if len(errors) else None,
        "r2": 1 - float(np.square(errors).sum()) / spread if spread > 0 else None,
    }


def _ratio(part: float, of: float) -> float | None:
    return part / of if of else None
