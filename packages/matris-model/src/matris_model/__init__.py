"""MatRIS-MoE: an invariant Mixture-of-Experts interatomic potential with exact forces."""

from typing import TYPE_CHECKING, Any

from matris_model.config import PRESETS, MatRISMoEConfig, preset_config
from matris_model.density import DensityEmbedding
from matris_model.formulas import PLAIN, Formulas, fused_formulas, triton_formulas
from matris_model.golden import golden_structures
from matris_model.inheritance import inherit_weights, is_matrix, is_table, nearest_element
from matris_model.interaction import BlockRunner, call_block, checkpoint_block
from matris_model.model import MatRISMoE, count_parameters
from matris_model.model_file import load_model, save_model, saved_config
from matris_model.pruning import graft_model, prune_model, stand_in

if TYPE_CHECKING:
    from matris_model.calculator import MatRISCalculator

__all__ = [
    "PLAIN",
    "PRESETS",
    "BlockRunner",
    "DensityEmbedding",
    "Formulas",
    "MatRISCalculator",
    "MatRISMoE",
    "MatRISMoEConfig",
    "call_block",
    "checkpoint_block",
    "count_parameters",
    "fused_formulas",
    "golden_structures",
    "graft_model",
    "inherit_weights",
    "is_matrix",
    "is_table",
    "load_model",
    "nearest_element",
    "preset_config",
    "prune_model",
    "save_model",
    "saved_config",
    "stand_in",
    "triton_formulas",
]


def __getattr__(name: str) -> Any:
    # ASE is an extra, and takes a third of a second to import: only those who want the calculator pay for it.
    if name == "MatRISCalculator":
        from matris_model.calculator import MatRISCalculator

        return MatRISCalculator
    raise AttributeError(f"module 'matris_model' has no attribute '{name}'")
