"""The shape of a MatRIS-MoE model, and the presets from a laptop to a machine room."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_SIZES = (
    "blocks", "width", "edge_width", "heads", "experts", "top_k", "expert_hidden", "message_hidden", "feature_hidden",
    "structure_width", "density_channels", "density_degrees", "radial_functions", "angular_functions",
)  # fmt: skip


@dataclass(frozen=True)
class MatRISMoEConfig:
    """Everything that decides the parameters and the meaning of a model.

    Attributes:
        blocks: interaction blocks.
        width: features of an atom and of a message.
        edge_width: features of an edge, and of the keys of both attentions.
        heads: attention heads; divides width and edge_width.
        experts: routed experts of each MoE layer (two layers a block).
        top_k: routed experts that one element uses.
        expert_hidden: hidden width of a routed expert.
        message_hidden: hidden width of the shared expert of the message update, paid once per edge.
        feature_hidden: hidden width of the shared expert of the feature update, paid once per atom.
        density_channels: radial functions of the sums over neighbours that atoms begin with.
        density_degrees: degrees of spherical harmonics in these sums, 0 to n-1; at least 3.
        structure_width: features of what a structure knows as a whole (task, charge, spin, composition).
        radial_functions: Bessel functions of the distance.
        angular_functions: Legendre polynomials of the cosine of the angle, P_0 to P_{n-1}.
        cutoff: edges are strictly shorter, Å.
        near_cutoff: edges with three-body terms are strictly shorter, Å.
        composition: whether atoms see the mean composition of their structure. It lets distant parts know of each
            other, so the model is not size-consistent with it: two far fragments do not add up.
        magnetic_moments: whether there is a head for magnetic moments.
        tasks: names of the data sets (levels of theory); a structure's task is an index into it.
        elements: atomic numbers the model was trained for; empty means all.

    Raises:
        ValueError: sizes that do not fit together.
    """

    blocks: int = 3
    width: int = 64
    edge_width: int = 32
    heads: int = 4
    experts: int = 16
    top_k: int = 2
    expert_hidden: int = 32
    message_hidden: int = 64
    feature_hidden: int = 256
    structure_width: int = 32
    density_channels: int = 16
    density_degrees: int = 5
    radial_functions: int = 16
    angular_functions: int = 8
    cutoff: float = 6.0
    near_cutoff: float = 4.5
    composition: bool = True
    magnetic_moments: bool = False
    tasks: tuple[str, ...] = ("default",)
    elements: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", tuple(self.tasks))
        object.__setattr__(self, "elements", tuple(sorted(self.elements)))
        for name in _SIZES:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.density_degrees < 3:
            raise ValueError(
                f"density_degrees = {self.density_degrees} must be at least 3: products of three sums need degrees 0 "
                "to 2"
            )
        if self.width % self.heads or self.edge_width % self.heads:
            raise ValueError(
                f"heads = {self.heads} must divide width = {self.width} and edge_width = {self.edge_width}"
            )
        if self.top_k > self.experts:
            raise ValueError(f"top_k = {self.top_k} of experts = {self.experts}; an element cannot use more than all")
        if not 0 < self.near_cutoff <= self.cutoff:
            raise ValueError(f"near_cutoff = {self.near_cutoff} Å must be above 0 and at most cutoff = {self.cutoff} Å")
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"tasks = {self.tasks} must name at least one task, each once")

    def replace(self, **changes: Any) -> MatRISMoEConfig:
        """The same configuration with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MatRISMoEConfig:
        """The configuration that `to_dict` described.

        Raises:
            ValueError: a field that this version does not know.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown configuration fields {unknown}; this version knows {sorted(known)}")
        return cls(**values)


# Dense capacity stands where it is cheap: the shared expert of the feature update runs once per atom, the one of the
# message update once per edge, some sixty times as often. S, M and L meet the total and active parameter counts of
# arXiv 2604.15821 within 3 % that way.
PRESETS: Mapping[str, MatRISMoEConfig] = {
    # One block, and little that is paid once per edge: a first training ends while one watches. On DFT data it is ahead
    # of two blocks with shorter cutoffs, which take longer, and few functions of distances and angles are ahead of many
    # (docs/accuracy.md).
    "nano": MatRISMoEConfig(
        blocks=1, width=96, edge_width=32, heads=4, experts=24, top_k=2, expert_hidden=32, message_hidden=32,
        feature_hidden=768, structure_width=32, density_channels=64, radial_functions=10, angular_functions=5,
        near_cutoff=4.0,
    ),
    "micro": MatRISMoEConfig(
        blocks=4, width=128, edge_width=64, heads=8, experts=32, top_k=4, expert_hidden=48, message_hidden=128,
        feature_hidden=512, structure_width=64, density_channels=32,
    ),
    "mini": MatRISMoEConfig(
        blocks=5, width=384, edge_width=128, heads=8, experts=64, top_k=4, expert_hidden=72, message_hidden=384,
        feature_hidden=1536, structure_width=128, density_channels=64,
    ),
    "base": MatRISMoEConfig(
        blocks=6, width=640, edge_width=192, heads=8, experts=96, top_k=4, expert_hidden=128, message_hidden=640,
        feature_hidden=2560, structure_width=192, density_channels=64,
    ),
    "S": MatRISMoEConfig(
        blocks=6, width=1024, edge_width=256, heads=16, experts=128, top_k=4, expert_hidden=200, message_hidden=768,
        feature_hidden=6144, structure_width=256, density_channels=64,
    ),
    "M": MatRISMoEConfig(
        blocks=6, width=1536, edge_width=384, heads=16, experts=128, top_k=8, expert_hidden=288, message_hidden=1536,
        feature_hidden=11264, structure_width=256, density_channels=64,
    ),
    "L": MatRISMoEConfig(
        blocks=6, width=3072, edge_width=768, heads=16, experts=128, top_k=16, expert_hidden=704, message_hidden=3072,
        feature_hidden=20480, structure_width=256, density_channels=64,
    ),
}  # fmt: skip
"""Published and small sizes by name."""


def preset_config(name: str, **changes: Any) -> MatRISMoEConfig:
    """The configuration of a preset, with some fields changed.

    Raises:
        ValueError: no preset of that name.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset '{name}'; there are {', '.join(PRESETS)}")
    return PRESETS[name].replace(**changes)
