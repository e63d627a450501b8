"""Other people's potentials, as contenders: each at the size of its universal model, with random weights.

Nothing is downloaded. What a package trains with by default is used, without compilers: none of them is compiled here,
and neither is ours unless asked for. Imports are inside the functions, as each environment has one of the packages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols

UNIVERSAL = [*range(1, 84), *range(89, 95)]
"""The 89 elements of the Materials Project, which universal models are made for."""

Values = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Energies of structures, forces of atoms, stresses of structures."""


@dataclass
class Contender:
    """A model with its own kind of batch.

    Attributes:
        about: its size, cutoffs, edges and pairs.
        graph: makes the batch from structures.
        infer: energies, forces and stress of a batch.
        train: the same, a loss of them, and its gradient in every parameter.
    """

    about: dict[str, Any]
    graph: Callable[[], Any]
    infer: Callable[[Any], object]
    train: Callable[[Any], object]


def loss(energy: torch.Tensor, forces: torch.Tensor, stress: torch.Tensor) -> torch.Tensor:
    """A sum that depends on every energy, force and stress component."""
    return energy.abs().sum() + forces.square().sum(dim=-1).add(1e-12).sqrt().sum() + stress.abs().sum()


def parameters(model: torch.nn.Module) -> int:
    """Numbers that training changes."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def pairs(structures: list[Atoms], cutoff: float) -> int:
    """Ordered pairs of neighbours within a cutoff, for models that do not say how many they have."""
    from ase.neighborlist import neighbor_list

    counts = [torch.bincount(torch.from_numpy(neighbor_list("i", atoms, cutoff))) for atoms in structures]
    return int(sum((count * (count - 1)).sum() for count in counts))


def contender(
    model: torch.nn.Module,
    graph: Callable[[], Any],
    values: Callable[[Any], Values],
    about: dict[str, Any],
    forces: Literal["derivatives", "direct"] = "derivatives",
) -> Contender:
    """A module that is in training mode exactly where a history of its forces is wanted."""

    def infer(batch: Any) -> None:
        model.eval()
        if forces == "derivatives":
            values(batch)
        else:
            with torch.no_grad():
                values(batch)

    def train(batch: Any) -> None:
        model.train()
        model.zero_grad()
        loss(*values(batch)).backward()

    told = {"parameters": parameters(model), "forces": forces, "pairs": 0, "pairs_at_once": 0}
    return Contender(told | about, graph, infer, train)


def chgnet(structures: list[Atoms]) -> Contender:
    """CHGNet 0.3.0, the default of its package."""
    from chgnet.model.model import CHGNet
    from pymatgen.io.ase import AseAtomsAdaptor

    crystals = [AseAtomsAdaptor.get_structure(atoms) for atoms in structures]
    model = CHGNet()
    model.graph_converter.set_isolated_atom_response("ignore")

    def graph() -> Any:
        return [model.graph_converter(crystal) for crystal in crystals]

    def values(graphs: Any) -> Values:
        found = model(graphs, task="efs")
        return found["e"], torch.cat(list(found["f"])), torch.stack(list(found["s"]))

    made = graph()
    near = sum(len(one.bond_graph) for one in made)
    about = {
        "cutoffs": (model.graph_converter.atom_graph_cutoff, model.graph_converter.bond_graph_cutoff),
        "edges": sum(len(one.atom_graph) for one in made),
        "pairs": near,
        "pairs_at_once": near,
    }
    return contender(model, graph, values, about)


def matgl(structures: list[Atoms], kind: str) -> Contender:
    """A model of matgl, with its own defaults."""
    from matgl import models
    from matgl.apps.pes import Potential
    from matgl.ext.ase import Atoms2Graph
    from torch_geometric.data import Batch

    elements = tuple(sorted({symbol for atoms in structures for symbol in atoms.get_chemical_symbols()}))
    model = getattr(models, kind)(element_types=elements, is_intensive=False)
    potential, converter = Potential(model), Atoms2Graph(elements, model.cutoff)

    def graph() -> Any:
        made = [converter.get_graph(atoms) for atoms in structures]
        return Batch.from_data_list([one[0] for one in made]), torch.cat([one[1].reshape(-1, 3, 3) for one in made])

    def values(batch: Any) -> Values:
        energy, forces, stress, *_ = potential(*batch)
        return energy, forces, stress

    near = getattr(model, "threebody_cutoff", None)
    count = pairs(structures, near) if near else 0
    about = {
        "parameters": parameters(model),
        "cutoffs": (model.cutoff, near),
        "edges": graph()[0].edge_index.shape[1],
        "pairs": count,
        "pairs_at_once": count,
    }
    return contender(potential, graph, values, about)


def mace(structures: list[Atoms]) -> Contender:
    """MACE-MPA-0 medium, the default of `mace_mp`: 9,063,204 parameters, as published."""
    # Constants of e3nn 0.4, which mace asks for, hold slices; torch opens such files only where they are allowed.
    torch.serialization.add_safe_globals([slice])
    from e3nn import o3
    from mace import data, modules, tools
    from mace.tools.torch_geometric import Batch

    model = modules.ScaleShiftMACE(
        r_max=6.0, num_bessel=10, num_polynomial_cutoff=5, radial_type="bessel", radial_MLP=[64, 64, 64],
        distance_transform="Agnesi", pair_repulsion=True, max_ell=3, correlation=3, num_interactions=2,
        interaction_cls_first=modules.interaction_classes["RealAgnosticDensityInteractionBlock"],
        interaction_cls=modules.interaction_classes["RealAgnosticDensityResidualInteractionBlock"],
        hidden_irreps=o3.Irreps("128x0e + 128x1o"), MLP_irreps=o3.Irreps("16x0e"), gate=torch.nn.functional.silu,
        atomic_numbers=UNIVERSAL, num_elements=len(UNIVERSAL), atomic_energies=np.zeros((1, len(UNIVERSAL))),
        avg_num_neighbors=60.0, atomic_inter_scale=1.0, atomic_inter_shift=0.0, use_reduced_cg=False,
    )  # fmt: skip
    table = tools.AtomicNumberTable(UNIVERSAL)

    def graph() -> Any:
        configs = [data.config_from_atoms(atoms) for atoms in structures]
        return Batch.from_data_list([data.AtomicData.from_config(config, table, 6.0) for config in configs])

    def values(batch: Any) -> Values:
        found = model(batch.clone().to_dict(), training=model.training, compute_stress=True)
        return found["energy"], found["forces"], found["stress"]

    return contender(model, graph, values, {"cutoffs": (6.0, None), "edges": graph().edge_index.shape[1]})


def sevenn(structures: list[Atoms]) -> Contender:
    """SevenNet-0, from the settings that come with the package: 842,440 parameters, as published."""
    from pathlib import Path

    import sevenn as package
    import yaml
    from sevenn import _keys as key
    from sevenn.atom_graph_data import AtomGraphData
    from sevenn.model_build import build_E3_equivariant_model
    from sevenn.parse_input import init_model_config
    from sevenn.train.dataload import unlabeled_atoms_to_graph
    from sevenn.util import chemical_species_preprocess
    from torch_geometric.data import Batch

    preset = yaml.safe_load((Path(package.__file__).parent / "presets" / "sevennet-0.yaml").read_text())
    settings = init_model_config(preset["model"])
    settings |= chemical_species_preprocess([chemical_symbols[z] for z in UNIVERSAL])
    settings |= {key.SHIFT: 0.0, key.SCALE: 1.0, key.CONV_DENOMINATOR: 35.0}
    model = build_E3_equivariant_model(settings)
    model.set_is_batch_data(True)
    cutoff = settings[key.CUTOFF]

    def graph() -> Any:
        made = [unlabeled_atoms_to_graph(atoms, cutoff) for atoms in structures]
        return Batch.from_data_list([AtomGraphData.from_numpy_dict(one) for one in made])

    def values(batch: Any) -> Values:
        found = model(batch.clone())
        return found[key.PRED_TOTAL_ENERGY], found[key.PRED_FORCE], found[key.PRED_STRESS]

    return contender(model, graph, values, {"cutoffs": (cutoff, None), "edges": graph().edge_index.shape[1]})


def nequip(structures: list[Atoms]) -> Contender:
    """NequIP's preset L, the size of its universal model NequIP-OAM-L, at that one's cutoff."""
    from nequip.data import AtomicDataDict, compute_neighborlist_
    from nequip.data.ase import from_ase
    from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper
    from nequip.model import PresetNequIPGNNModel
    from nequip.utils.global_state import set_global_state

    set_global_state()
    names = [chemical_symbols[z] for z in UNIVERSAL]
    model = PresetNequIPGNNModel(
        preset="L", seed=0, model_dtype="float32", type_names=names, r_max=6.0, avg_num_neighbors=60.0,
        per_type_energy_scales=1.0, per_type_energy_shifts=dict.fromkeys(names, 0.0),
    )  # fmt: skip
    typed = ChemicalSpeciesToAtomTypeMapper(names)

    def graph() -> Any:
        made = [compute_neighborlist_(typed(from_ase(atoms)), 6.0) for atoms in structures]
        return AtomicDataDict.batched_from_list(made)

    def values(batch: Any) -> Values:
        found = model(dict(batch))
        return tuple(found[name] for name in (
            AtomicDataDict.TOTAL_ENERGY_KEY, AtomicDataDict.FORCE_KEY, AtomicDataDict.STRESS_KEY
        ))  # fmt: skip

    return contender(model, graph, values, {"cutoffs": (6.0, None), "edges": AtomicDataDict.num_edges(graph())})


def orb(structures: list[Atoms], direct: bool) -> Contender:
    """Orb-v3 with up to 120 neighbours: conservative, or with forces and stress that are no derivatives of anything."""
    from orb_models.forcefield import pretrained
    from orb_models.forcefield.atomic_system import SystemConfig, ase_atoms_to_atom_graphs
    from orb_models.forcefield.base import batch_graphs

    settings = SystemConfig(radius=6.0, max_num_neighbors=120)
    build = pretrained.orb_v3_direct_architecture if direct else pretrained.orb_v3_conservative_architecture
    model = build(device="cpu", system_config=settings)
    names = ("energy", "forces", "stress") if direct else ("energy", "grad_forces", "grad_stress")

    # Without what else the file says: charges that are numpy's integers are refused.
    bare = [Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=atoms.pbc) for atoms in structures]

    def graph() -> Any:
        return batch_graphs([ase_atoms_to_atom_graphs(atoms, settings, device="cpu") for atoms in bare])

    def values(batch: Any) -> Values:
        found = model(batch.clone())
        return found[names[0]], found[names[1]], found[names[2]]

    about = {"cutoffs": (6.0, None), "edges": len(graph().senders)}
    return contender(model, graph, values, about, "direct" if direct else "derivatives")


def fairchem(structures: list[Atoms]) -> Contender:
    """UMA-S: 32 mixed experts, of which a structure sees one weighted mean, lmax 2, four layers."""
    from fairchem.core.datasets.atomic_data import AtomicData, atomicdata_list_to_batch
    from fairchem.core.models.base import HydraModel

    sets = ["oc20", "omol", "omat", "odac", "omc"]
    backbone = {
        "model": "fairchem.core.models.uma.escn_moe.eSCNMDMoeBackbone", "num_experts": 32, "moe_dropout": 0.05,
        "use_composition_embedding": True, "max_num_elements": 100, "sphere_channels": 128, "lmax": 2, "mmax": 2,
        "cutoff": 6.0, "max_neighbors": 300, "edge_channels": 128, "num_distance_basis": 64, "num_layers": 4,
        "hidden_channels": 128, "norm_type": "rms_norm_sh", "act_type": "gate", "ff_type": "spectral",
        "chg_spin_emb_type": "rand_emb", "cs_emb_grad": True, "dataset_mapping": {name: name for name in sets},
        "regress_forces": True, "regress_stress": True, "direct_forces": False, "otf_graph": False,
    }  # fmt: skip
    head = {
        "module": "fairchem.core.models.uma.escn_moe.DatasetSpecificSingleHeadWrapper", "dataset_names": sets,
        "head_cls": "fairchem.core.models.uma.escn_md.MLP_EFS_Head", "head_kwargs": {"wrap_property": False},
        "wrap_property": False,
    }  # fmt: skip
    model = HydraModel(backbone, {"efs": head}, otf_graph=False)

    def graph() -> Any:
        return atomicdata_list_to_batch([
            AtomicData.from_ase(
                atoms, r_edges=True, radius=6.0, max_neigh=300, task_name="omat", external_graph_method="nvidia"
            )
            for atoms in structures
        ])  # fmt: skip

    def values(batch: Any) -> Values:
        found = model(batch.clone())["efs"]
        return found["omat_energy"], found["omat_forces"], found["omat_stress"]

    return contender(model, graph, values, {"cutoffs": (6.0, None), "edges": graph().edge_index.shape[1]})
