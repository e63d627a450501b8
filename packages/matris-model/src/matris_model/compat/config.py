"""The constructor arguments of the published MatRIS, and what of them is supported."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

HIGHEST_ELEMENT = 94
"""Plutonium: the published element table ends there."""

# What belongs to a model here and is no argument of the published one.
_OWN_FIELDS = ("tasks", "elements")

# Spelled in lower case; the published code does not look at case either.
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "distance_expansion": ("bessel",),
    "three_body_expansion": ("sh", "fourier"),
    "graph_conv_mlp": ("gatemlp", "mlp"),
    "activation_type": ("silu",),
    "norm_type": ("rms", "layer", "batch"),
}
_WHY_NOT: Mapping[str, str] = {
    "distance_expansion": "without an envelope nothing decays at the cutoff, and no published weights use another",
    "graph_conv_mlp": "the published 'MoE' is a stub that raises an error",
    "is_conservation": "forces that are no derivative of the energy are not on offer here",
    "is_intensive": "what the published code adds up then is not known, and no published weights use it",
}
_COUNTS = (
    "num_layers", "node_feat_dim", "edge_feat_dim", "three_body_feat_dim", "num_radial", "num_angular", "max_l",
    "max_n", "envelope_exponent",
)  # fmt: skip
_SWITCHES = ("use_bias", "use_smoothed_for_delta_edge", "learnable_basis", "is_intensive", "is_conservation")


@dataclass(frozen=True)
class MatRISConfig:
    """The 24 constructor arguments of the published model with its constructor's defaults, and two fields of ours.

    Attributes:
        num_layers: interaction blocks.
        node_feat_dim: features of an atom.
        edge_feat_dim: features of a bond.
        three_body_feat_dim: features of an angle.
        mlp_hidden_dims: hidden widths of the energy head.
        dropout: in the refinement layers, while training.
        use_bias: biases of the refinement layers' feed-forward networks.
        distance_expansion: "bessel".
        three_body_expansion: "sh" or "fourier".
        num_radial: Bessel functions of a distance.
        num_angular: functions of an angle with "fourier"; always the same number as `num_radial`.
        max_l: Legendre polynomials of the cosine with "sh".
        max_n: constants to each of them with "sh".
        envelope_exponent: p of the envelope.
        graph_conv_mlp: "gatemlp" or "mlp", what the messages come from.
        activation_type: "silu".
        norm_type: "rms", "layer" or "batch".
        pairwise_cutoff: Å; edges are shorter.
        three_body_cutoff: Å; edges that make angles are shorter.
        use_smoothed_for_delta_edge: whether the atom refinement's envelope acts on its bond update too.
        learnable_basis: whether the frequencies of distances and angles are parameters.
        is_intensive: True. The published model gives energies per atom; totals come out here all the same.
        is_conservation: True. Forces are derivatives.
        reference_energy: name of the published table the weights carry; None for weights without one.
        tasks: name of the one data set the model is for.
        elements: atomic numbers the model was trained for; empty means hydrogen to plutonium.

    Raises:
        ValueError: an option that is not supported, values of the wrong kind, or sizes that do not fit together.
    """

    num_layers: int = 6
    node_feat_dim: int = 128
    edge_feat_dim: int = 128
    three_body_feat_dim: int = 128
    mlp_hidden_dims: tuple[int, ...] = (128, 128)
    dropout: float = 0.0
    use_bias: bool = False
    distance_expansion: str = "bessel"
    three_body_expansion: str = "sh"
    num_radial: int = 7
    num_angular: int = 7
    max_l: int = 4
    max_n: int = 4
    envelope_exponent: int = 8
    graph_conv_mlp: str = "gatemlp"
    activation_type: str = "silu"
    norm_type: str = "rms"
    pairwise_cutoff: float = 6.0
    three_body_cutoff: float = 4.0
    use_smoothed_for_delta_edge: bool = False
    learnable_basis: bool = True
    is_intensive: bool = True
    is_conservation: bool = True
    reference_energy: str | None = None
    tasks: tuple[str, ...] = ("default",)
    elements: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self._check_kinds()
        for name in _CHOICES:
            object.__setattr__(self, name, str(getattr(self, name)).lower())
        object.__setattr__(self, "mlp_hidden_dims", tuple(self.mlp_hidden_dims))
        object.__setattr__(self, "pairwise_cutoff", float(self.pairwise_cutoff))
        object.__setattr__(self, "three_body_cutoff", float(self.three_body_cutoff))
        object.__setattr__(self, "tasks", tuple(self.tasks))
        object.__setattr__(self, "elements", tuple(sorted(self.elements)))
        self._check_choices()
        self._check_sizes()

    def _check_kinds(self) -> None:
        def whole(value: Any) -> bool:
            return isinstance(value, int) and not isinstance(value, bool)

        def number(value: Any) -> bool:
            return isinstance(value, float) or whole(value)

        wanted: dict[str, tuple[str, Callable[[Any], bool]]] = {
            **dict.fromkeys(_COUNTS, ("a whole number of at least 1", lambda x: whole(x) and x >= 1)),
            **dict.fromkeys(_SWITCHES, ("True or False", lambda x: isinstance(x, bool))),
            **dict.fromkeys(_CHOICES, ("a name", lambda x: isinstance(x, str))),
            "mlp_hidden_dims": (
                "a sequence of whole numbers of at least 1",
                lambda x: isinstance(x, (list, tuple)) and all(whole(width) and width >= 1 for width in x),
            ),
            "dropout": ("a fraction from 0 to below 1", lambda x: number(x) and 0 <= x < 1),
            "pairwise_cutoff": ("a length in Å above 0", lambda x: number(x) and x > 0),
            "three_body_cutoff": ("a length in Å above 0", lambda x: number(x) and x > 0),
            "reference_energy": ("None or the name of a table", lambda x: x is None or isinstance(x, str)),
        }
        for name, (kind, holds) in wanted.items():
            if not holds(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be {kind}")

    def _check_choices(self) -> None:
        for name, choices in (*_CHOICES.items(), ("is_conservation", (True,)), ("is_intensive", (True,))):
            if getattr(self, name) not in choices:
                reason = f" ({_WHY_NOT[name]})" if name in _WHY_NOT else ""
                raise ValueError(
                    f"{name} = {getattr(self, name)!r} is not supported{reason}; "
                    f"it must be {' or '.join(map(repr, choices))}"
                )

    def _check_sizes(self) -> None:
        if self.num_angular != self.num_radial:
            raise ValueError(
                f"num_angular = {self.num_angular} must equal num_radial = {self.num_radial}: "
                "one envelope layer takes both"
            )
        if self.three_body_expansion == "fourier" and self.num_angular % 2 == 0:
            raise ValueError(f"num_angular = {self.num_angular} must be odd with three_body_expansion = 'fourier'")
        if self.max_l > 4 or self.max_n > 4:
            raise ValueError(f"max_l = {self.max_l} and max_n = {self.max_n} must be at most 4")
        if self.three_body_cutoff > self.pairwise_cutoff:
            raise ValueError(
                f"three_body_cutoff = {self.three_body_cutoff} Å must be at most "
                f"pairwise_cutoff = {self.pairwise_cutoff} Å"
            )
        if len(self.tasks) != 1:
            raise ValueError(f"tasks = {self.tasks}: this model has one table of reference energies, so one task")
        if self.elements and not 1 <= self.elements[0] <= self.elements[-1] <= HIGHEST_ELEMENT:
            raise ValueError(f"elements = {self.elements} must lie between 1 and {HIGHEST_ELEMENT}")

    @property
    def cutoff(self) -> float:
        """Of the graphs this model needs, Å."""
        return self.pairwise_cutoff

    @property
    def near_cutoff(self) -> float:
        """Of the near edges of the graphs this model needs, Å."""
        return self.three_body_cutoff

    @property
    def magnetic_moments(self) -> bool:
        """Whether there is a head for magnetic moments: always."""
        return True

    def replace(self, **changes: Any) -> MatRISConfig:
        """The same configuration with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values of all fields, for JSON."""
        return dataclasses.asdict(self)

    def to_reference(self) -> dict[str, Any]:
        """The 24 constructor arguments of the published model."""
        return {name: value for name, value in self.to_dict().items() if name not in _OWN_FIELDS}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MatRISConfig:
        """The configuration that `to_dict` described.

        Raises:
            ValueError: a field that does not exist; the message names the nearest.
        """
        _refuse_unknown(values, [field.name for field in dataclasses.fields(cls)])
        return cls(**values)

    @classmethod
    def from_reference(cls, values: Mapping[str, Any]) -> MatRISConfig:
        """The configuration of a published checkpoint. Nothing is taken from defaults, of which the published
        constructor and the published weights have different ones.

        Raises:
            ValueError: an argument that is missing, unknown or not supported.
        """
        names = [field.name for field in dataclasses.fields(cls) if field.name not in _OWN_FIELDS]
        _refuse_unknown(values, names)
        missing = [name for name in names if name not in values]
        if missing:
            raise ValueError(f"the configuration lacks {', '.join(missing)}; it must hold all {len(names)} arguments")
        return cls(**values)


def _refuse_unknown(values: Mapping[str, Any], names: list[str]) -> None:
    for name in values:
        if name not in names:
            nearest = difflib.get_close_matches(str(name), names, n=1)
            hint = f"did you mean '{nearest[0]}'?" if nearest else f"there are {', '.join(names)}"
            raise ValueError(f"unknown configuration field '{name}'; {hint}")


PRESETS: Mapping[str, MatRISConfig] = {
    "matris-6m": MatRISConfig(),
    "matris-10m": MatRISConfig(
        num_layers=10,
        mlp_hidden_dims=(128, 256, 128),
        three_body_expansion="fourier",
        norm_type="layer",
        three_body_cutoff=4.5,
        use_smoothed_for_delta_edge=True,
        reference_energy="mptrj",
    ),
}
"""The defaults of the published constructor, and the published model of 10 million parameters."""


def preset_config(name: str, **changes: Any) -> MatRISConfig:
    """The configuration of a preset, with some fields changed.

    Raises:
        ValueError: no preset of that name, or what `MatRISConfig` refuses.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset '{name}'; there are {', '.join(PRESETS)}")
    return PRESETS[name].replace(**changes)
