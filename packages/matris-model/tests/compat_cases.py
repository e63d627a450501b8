"""Small stirred models of the published architecture, and the fixture of official outputs where it is at hand."""

import os
from pathlib import Path

import torch

from matris_model.compat import MatRIS, MatRISConfig

# Widths that all differ, so that nothing fits where it does not belong.
TINY_SH = MatRISConfig(
    num_layers=2,
    node_feat_dim=10,
    edge_feat_dim=8,
    three_body_feat_dim=6,
    mlp_hidden_dims=(7, 5),
    num_radial=5,
    num_angular=5,
    pairwise_cutoff=4.0,
    three_body_cutoff=3.0,
)
TINY_FOURIER = TINY_SH.replace(
    mlp_hidden_dims=(9,),
    three_body_expansion="fourier",
    norm_type="layer",
    use_smoothed_for_delta_edge=True,
    reference_energy="mptrj",
)
FLAVOURS = {"SH, rms norm": TINY_SH, "Fourier, layer norm": TINY_FOURIER}


def stirred_compat(config: MatRISConfig = TINY_FOURIER, seed: int = 0) -> MatRIS:
    """A model in float64 in which no parameter sits where it starts: nothing is hidden by a zero."""
    model = MatRIS(config, seed).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def as_checkpoint(model: MatRIS) -> dict:
    """What an official file of these weights would hold."""
    return {"config": model.config.to_reference(), "state_dict": model.state_dict()}


def fixture_directory() -> Path:
    """Where the official outputs are, if they are: beside the repository, or under JANUS_SHARED."""
    beside = Path(__file__).resolve().parents[4] / "shared"
    return Path(os.environ.get("JANUS_SHARED", beside)) / "data" / "matris_parity"
