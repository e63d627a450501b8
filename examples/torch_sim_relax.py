"""Relaxes many crystals and their cells at once with torch-sim: pip install 'matris-model[torch-sim]'.

The weights here are random and the result means nothing: write "runs/nano-001", task="metals" in place of the model.
"""

import warnings
from importlib.util import find_spec

from ase.build import bulk

from matris_model import MatRISMoE


def main() -> None:
    if find_spec("torch_sim") is None:
        print("torch-sim is not installed: pip install 'matris-model[torch-sim]'")
        return
    import torch_sim as ts

    from matris_model.torch_sim import MatRISTorchSimModel

    model = MatRISTorchSimModel(MatRISMoE.from_preset("nano", blocks=1))
    systems = [bulk(symbol, "fcc", a=a) for symbol, a in (("Al", 4.1), ("Cu", 3.7), ("Ag", 4.2), ("Pt", 3.8))]
    # Since its version 0.4 torch-sim names optimisers in an enumeration, and moves cells where it is told to.
    newer = hasattr(ts, "Optimizer")
    how = {"optimizer": ts.Optimizer.fire, "init_kwargs": {"cell_filter": ts.CellFilter.frechet}} if newer else {
        "optimizer": ts.frechet_cell_fire
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random weights do not get there in so few steps
        relaxed = ts.optimize(systems, model, max_steps=10, **how)
    for atoms, energy in zip(relaxed.to_atoms(), relaxed.energy, strict=True):
        print(f"{atoms.symbols}: {float(energy):.4f} eV, {atoms.get_volume():.3f} Å³")


if __name__ == "__main__":
    main()
