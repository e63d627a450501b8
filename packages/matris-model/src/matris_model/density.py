"""What surrounds an atom, as sums over its neighbours and invariant products of two and three of them."""

from __future__ import annotations

import copy
import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from janus_graph import AtomGraph
from janus_moe import ELEMENTS
from matris_model.config import MatRISMoEConfig
from matris_model.embedding import RADIAL_GAIN
from matris_model.geometry import Geometry
from matris_model.harmonics import raising_coefficients, spherical_harmonics

# Neighbours that features are divided by, once a sum: about as many as count in a solid.
_TYPICAL_SUM = 4.0
_PRODUCTS_OF_THREE = 2
# Means over the sphere of two harmonics of degree 1 and one of degree 2, over what raises degree 1 to 2.
_MEANS_OVER_RAISING = 6 / 5
# Atoms of an element after which its own mean and spread count as much as those of all elements together.
_SHRINKAGE = 10.0
_LEAST_SPREAD = 1e-2


class DensityEmbedding(nn.Module):
    """What atoms know of their surroundings before the first block: `h_i ← h_i + W₂ silu(W₁ [d_i ; h_i])`.

    A_i^{n,lm} = Σ_k T[z_j]_n R_n(r_k) Y_lm(r̂_k) with learned radial functions R_n in the Bessel basis and a factor T of
    the neighbour's element; d_i are A^{n,00}, the invariants Σ_m A^{n,lm} (M_l A)^{n,lm} (power spectrum, Bartók et
    al., Phys. Rev. B 87, 184115 (2013), eq. 30), and of the vectors v and traceless tensors Q that the degrees 1 and 2
    are, v·Qv' and tr(Q Q' Q'') (of the bispectrum there, eq. 28; in this form: moment tensors, Shapeev, Multiscale
    Model. Simul. 14, 1153 (2016)); all less their mean and over their spread for the element.

    An attention is a mean over neighbours: whether one of them is missing hardly shows in it. These are sums.

    Args:
        config: shape of the model; `density_channels` is how many radial functions there are, `density_degrees` how
            many degrees l.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, config: MatRISMoEConfig) -> None:
        super().__init__()
        channels, degrees, width = config.density_channels, config.density_degrees, config.width
        self.features = channels * (1 + degrees + _PRODUCTS_OF_THREE)
        self._raising = raising_coefficients(degrees)
        self.radial = nn.Linear(config.radial_functions, channels, bias=False)
        self.neighbour = nn.Parameter(torch.empty(ELEMENTS, channels))
        self.mix = nn.Parameter(torch.empty(degrees, channels, channels))
        self.mix_of_three = nn.Parameter(torch.empty(3, channels, channels))
        self.hidden = nn.Linear(self.features + width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.register_buffer("centre", torch.zeros(ELEMENTS, self.features))
        self.register_buffer("spread", torch.ones(ELEMENTS, self.features))

    def reset_parameters(self) -> None:
        """Radial functions of unit size at bond lengths, neighbours of all elements nearly alike."""
        nn.init.normal_(self.radial.weight, std=RADIAL_GAIN * self.radial.in_features**-0.5)
        nn.init.normal_(self.neighbour, mean=1.0, std=0.3)
        nn.init.normal_(self.mix, std=self.mix.shape[1] ** -0.5)
        nn.init.normal_(self.mix_of_three, std=self.mix_of_three.shape[1] ** -0.5)
        nn.init.normal_(self.hidden.weight, std=self.hidden.in_features**-0.5)
        nn.init.normal_(self.out.weight, std=2 * self.out.in_features**-0.5)
        nn.init.zeros_(self.centre)
        nn.init.ones_(self.spread)

    def forward(
        self, atoms: Float[Tensor, "atoms width"], graph: AtomGraph, geometry: Geometry
    ) -> Float[Tensor, "atoms width"]:
        """The atoms' features with what surrounds them."""
        invariants = self.invariants(graph, geometry)
        numbers = graph.atomic_numbers
        known = (invariants - self.centre.index_select(0, numbers)) / self.spread.index_select(0, numbers)
        return atoms + self.out(silu(self.hidden(torch.cat([known, atoms], dim=1))))

    def invariants(self, graph: AtomGraph, geometry: Geometry) -> Float[Tensor, "atoms features"]:
        """Sums over neighbours, and products of two and three of them that do not turn with the structure."""
        # Not a buffer, which would lose digits when the weights become float32 for a while.
        like = geometry.directions
        raising = [torch.from_numpy(part).to(like.device, like.dtype, non_blocking=True) for part in self._raising]
        sums = self._sums(graph, geometry, spherical_harmonics(geometry.directions, raising))
        found = [sums[:, 0]]
        for degree, mix in enumerate(self.mix):
            own = sums[:, degree**2 : (degree + 1) ** 2]
            found.append((own * (own @ mix)).sum(dim=1) / math.sqrt(2 * degree + 1))
        return torch.cat([*found, *self._of_three(sums, raising[0])], dim=1)

    def _of_three(
        self, sums: Float[Tensor, "atoms harmonics channels"], raising: Float[Tensor, "3 3 5"]
    ) -> list[Float[Tensor, "atoms channels"]]:
        """v·Qv' and a third of tr(Q Q' Q''), where v = Σ r̂, Q = Σ (3 r̂ r̂ᵀ − 1), and primed ones are mixtures."""
        of_vectors, second, third = self.mix_of_three
        vectors, quadrupoles = sums[:, 1:4] / math.sqrt(3), sums[:, 4:9]
        # 3 r̂ r̂ᵀ − 1 is the part of degree 2 of the products of harmonics of degree 1.
        to_tensors = _MEANS_OVER_RAISING * raising.flatten(0, 1)
        tensors, seconds, thirds = (
            (to_tensors @ part).unflatten(1, (3, 3))
            for part in (quadrupoles, quadrupoles @ second, quadrupoles @ third)
        )
        turned = (tensors * vectors[:, None]).sum(dim=2)
        products = (tensors[:, :, :, None] * seconds[:, None]).sum(dim=2)
        # The transpose of a tensor is the tensor.
        return [(turned * (vectors @ of_vectors)).sum(dim=1), (products * thirds).sum(dim=(1, 2)) / 3]

    def _sums(
        self, graph: AtomGraph, geometry: Geometry, harmonics: Float[Tensor, "edges harmonics"]
    ) -> Float[Tensor, "atoms harmonics channels"]:
        channels = self.radial(geometry.radial) * self.neighbour.index_select(0, graph.neighbour_numbers)
        angular = harmonics.shape[1]
        parts = geometry.around.spread(torch.cat([harmonics, channels], dim=1))
        sums = [part[..., :angular].transpose(1, 2) @ part[..., angular:] for part in parts]
        # What an atom without edges has around it; part of the history of what edges there are, as in an attention.
        nothing = channels.new_zeros(1, angular, channels.shape[1])
        if not sums:
            nothing = nothing + channels.sum()
        return torch.cat([*sums, nothing]).index_select(0, geometry.around.rows) / _TYPICAL_SUM

    @torch.no_grad()
    def calibrate(self, graph: AtomGraph, geometry: Geometry) -> None:
        """Takes mean and spread of the invariants of each element from a batch; of elements that it has few atoms of,
        in part from all atoms.

        In float64, and rounded to float32, whatever the precision of the weights and of the geometry.
        """
        found = copy.deepcopy(self).double().invariants(graph, geometry)
        mean, square = found.mean(dim=0), found.square().mean(dim=0)
        of_element = graph.atomic_numbers
        count = torch.bincount(of_element, minlength=ELEMENTS).double()[:, None] + _SHRINKAGE
        sums = (_SHRINKAGE * mean).expand(ELEMENTS, -1).index_add(0, of_element, found)
        squares = (_SHRINKAGE * square).expand(ELEMENTS, -1).index_add(0, of_element, found.square())
        centre = sums / count
        spread = (squares / count - centre.square()).clamp(min=0).sqrt().clamp(min=_LEAST_SPREAD)
        self.centre.copy_(centre.float())
        self.spread.copy_(spread.float())
