"""Does a device compute what a CPU computes in float64?

    python benchmarks/device.py [--device cuda] [--presets nano micro] [--formulas plain fused triton]

Energies, forces, stress, and the gradient of a loss of all three in every parameter, of the same weights on the same
structures: by the plain formulas on the CPU in float64, and by each of the formulas on the device in float64 and in
float32. Prints, as JSON, the largest difference over the largest value of the same kind and a hundredth of the largest
of all kinds, and where it is; ends with code 1 where that is more than rounding.
"""

import argparse
import json
import math
import sys

import torch

from janus_graph import build_graph
from janus_train.recipes.matris_check import ROUNDINGS, differences, values_and_gradients
from matris_model import PLAIN, Formulas, MatRISMoE, fused_formulas, golden_structures, preset_config, triton_formulas

FORMULAS = {
    "plain": lambda: PLAIN,
    "fused": fused_formulas,
    "triton": triton_formulas,
    "triton and fused": lambda: triton_formulas(fused_formulas()),
}


def difference(preset: str, formulas: Formulas, device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """The largest relative difference, and of what it is."""
    config = preset_config(preset)
    expected_of = MatRISMoE(config, 0)
    structures = golden_structures(expected_of)
    graph = build_graph(structures, config.cutoff, config.near_cutoff)
    found_of = MatRISMoE(config, 0, formulas).to(device, dtype)
    expected = values_and_gradients(expected_of.double(), graph)
    found = values_and_gradients(found_of, graph.to(device))
    relative = [(off / size, name) for name, off, size in differences(expected, found)]
    return max(relative, key=lambda one: math.inf if math.isnan(one[0]) else one[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--presets", nargs="+", default=["nano", "micro"])
    parser.add_argument("--formulas", nargs="+", choices=list(FORMULAS), default=["plain", "fused", "triton"])
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    name = torch.cuda.get_device_name(arguments.device) if arguments.device.type == "cuda" else str(arguments.device)
    report, within = [], True
    for preset in arguments.presets:
        for formulas in arguments.formulas:
            for dtype in (torch.float64, torch.float32):
                off, of = difference(preset, FORMULAS[formulas](), arguments.device, dtype)
                within &= off < ROUNDINGS * torch.finfo(dtype).eps
                report.append({"preset": preset, "formulas": formulas, "dtype": str(dtype), "off": off, "of": of})
    print(
        json.dumps({"device": name, "torch": torch.__version__, "within_rounding": within, "report": report}, indent=1)
    )
    sys.exit(not within)


if __name__ == "__main__":
    main()
