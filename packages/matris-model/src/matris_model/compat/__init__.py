"""The published MatRIS, exactly: for those who hold official weights, and to compare with. See docs/matris.md."""

from matris_model.compat.config import PRESETS, MatRISConfig, preset_config
from matris_model.compat.model import MatRIS

__all__ = ["PRESETS", "MatRIS", "MatRISConfig", "preset_config"]
