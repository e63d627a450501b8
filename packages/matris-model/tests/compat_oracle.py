"""The published equations one edge and one angle at a time, by the names of weights: an oracle for small structures."""

import math

import torch

from matris_model.compat.basis import _radial_constants


class Naive:
    """The published equations with loops, on one structure; every layer by its name in the state dict."""

    def __init__(self, model, graph):
        self.state, self.config, self.graph = model.state_dict(), model.config, graph
        self.edges = list(zip(*graph.edge_index.tolist(), graph.edge_shifts.tolist(), strict=True))
        self.bonds = sorted({min(k, self.reverse(k)) for k in range(len(self.edges))})
        self.bond_of = [self.bonds.index(min(k, self.reverse(k))) for k in range(len(self.edges))]
        self.lengths = [float(self.vector(k).norm()) for k in self.bonds]
        near = [k for k in range(len(self.edges)) if self.lengths[self.bond_of[k]] < self.config.near_cutoff]
        self.angles = [(p, q) for p in near for q in near if p != q and self.edges[p][0] == self.edges[q][0]]

    def reverse(self, k):
        i, j, shift = self.edges[k]
        return self.edges.index((j, i, [-x if x else x for x in shift]))

    def vector(self, k):
        i, j, shift = self.edges[k]
        cell = self.graph.cells[self.graph.structure_index[i]]
        return self.graph.positions[i] - self.graph.positions[j] - torch.tensor(shift, dtype=torch.float64) @ cell

    def linear(self, name, x):
        y = self.state[f"{name}.weight"] @ x
        return y + self.state[f"{name}.bias"] if f"{name}.bias" in self.state else y

    def mlp(self, name, x):
        places = sorted(
            int(key.split(".")[-2])
            for key in self.state
            if key.startswith(f"{name}.layers.") and key.endswith(".weight")
        )
        for place in places:
            x = self.linear(f"{name}.layers.{place}", x if place == 0 else silu(x))
        return x

    def norm(self, name, x, kind=None):
        if (kind or self.config.norm_type) == "layer":
            x = (x - x.mean()) / torch.sqrt(((x - x.mean()) ** 2).mean() + 1e-5)
            return x * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]
        return x / torch.sqrt((x**2).mean() + torch.finfo(torch.float64).eps) * self.state[f"{name}.weight"]

    def gated(self, name, *parts):
        x = torch.cat(parts)
        core = self.norm(f"{name}.core_norm", self.mlp(f"{name}.mlp_core", x))
        gate = self.norm(f"{name}.gate_norm", self.mlp(f"{name}.mlp_gate", x))
        return silu(core) / (1 + torch.exp(-gate))

    def bessel(self, kind, r):
        cutoff = self.config.cutoff if kind == "pairwise" else self.config.near_cutoff
        p, x = self.config.envelope_exponent, r / cutoff
        u = 1 - (p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1) - p * (p + 1) / 2 * x ** (p + 2)
        frequencies = self.state[f"edge_embedding.{kind}_rbf_expansion.frequencies"]
        return (u if x < 1 else 0.0) * math.sqrt(2 / cutoff) * torch.sin(frequencies * x) / r

    def angle(self, p, q):
        u, v = self.vector(p), self.vector(q)
        cosine = (1 - 1e-6) * (u @ v) / (u.norm() * v.norm())
        if self.config.three_body_expansion == "fourier":
            waves = torch.acos(cosine) * self.state["three_body_embedding.expansion.frequencies"]
            constant = torch.tensor([2**-0.5], dtype=torch.float32).double()
            return torch.cat([constant, torch.sin(waves), torch.cos(waves)]) / math.sqrt(math.pi)
        legendre = [torch.ones(()), cosine, (3 * cosine**2 - 1) / 2, (5 * cosine**3 - 3 * cosine) / 2]
        constants = _radial_constants(self.config.cutoff)
        rounding = float(self.state["three_body_embedding.expansion.factor"]) / math.sqrt(2 / self.config.cutoff**3)
        return torch.stack(
            [rounding * constants[d][n] * math.sqrt((2 * d + 1) / (4 * math.pi)) * legendre[d]
             for d in range(4) for n in range(4)]
        )  # fmt: skip

    def attention(self, name, nodes, rows, messages, copies):
        """`messages` are (row, target, source); `copies` the messages of each row."""
        sent = [self.gated(f"{name}.edge_nonlinear_update", rows[b], nodes[t], nodes[s]) for b, t, s in messages]
        after = []
        for i, node in enumerate(nodes):
            gathered = [node]
            for end, side in ((1, "target"), (2, "source")):
                mine = [k for k, message in enumerate(messages) if message[end] == i]
                weights = [torch.exp(self.linear(f"{name}.{side}_weight_linear", rows[messages[k][0]])) for k in mine]
                parts = [w / sum(weights) * sent[k] for k, w in zip(mine, weights, strict=True)]
                gathered.append(sum(parts, torch.zeros(len(rows[0]) if len(rows) else 0, dtype=torch.float64)))
            after.append(
                self.gated(f"{name}.node_nonlinear_update", *gathered) + self.state[f"{name}.node_res_weight"][0] * node
            )
        scale = self.state[f"{name}.edge_res_weight"][0]
        return after, [sum(sent[k] for k in ks) / len(ks) + scale * row for ks, row in zip(copies, rows, strict=True)]

    def refinement(self, name, nodes, rows, targets, inputs, envelopes, copies, smooth):
        messages = [self.gated(f"{name}.edge_nonlinear_update", *parts) for parts in inputs]
        weighted = [m * e for m, e in zip(messages, envelopes, strict=True)]
        after = []
        for i, node in enumerate(nodes):
            mine = [weighted[k] for k, target in enumerate(targets) if target == i]
            total = sum(mine, torch.zeros(len(rows[0]), dtype=torch.float64))
            after.append(self.mlp(f"{name}.node_FFN", total) + self.state[f"{name}.node_res_weight"][0] * node)
        changes = [self.mlp(f"{name}.edge_FFN", x) for x in (weighted if smooth else messages)]
        scale = self.state[f"{name}.edge_res_weight"][0]
        return after, [sum(changes[k] for k in ks) / len(ks) + scale * r for ks, r in zip(copies, rows, strict=True)]

    def block(self, name, v, e, a):
        incoming = e
        messages = [(self.bond_of[k], i, j) for k, (i, j, _) in enumerate(self.edges)]
        copies = [[k for k, b in enumerate(self.bond_of) if b == bond] for bond in range(len(self.bonds))]
        line = [(t, self.bond_of[p], self.bond_of[q]) for t, (p, q) in enumerate(self.angles)]
        itself = [[t] for t in range(len(line))]
        if line:
            e, a = self.attention(f"{name}.attn_block_line_graph", e, a, line, itself)
        v, e = self.attention(f"{name}.attn_block_atom_graph", v, e, messages, copies)
        if line:
            layer = f"{name}.refine_block_line_graph"
            near = [self.linear(f"{layer}.learnable_envelope", self.bessel("threebody", r)) for r in self.lengths]
            inputs = [(a[t], v[self.edges[self.angles[t][0]][0]], e[p], e[q]) for t, p, q in line]
            envelopes = [near[p] * near[q] for _, p, q in line]
            e, a = self.refinement(layer, e, a, [p for _, p, _ in line], inputs, envelopes, itself, False)
        else:
            e = incoming
        layer = f"{name}.refine_block_atom_graph"
        far = [self.linear(f"{layer}.learnable_envelope", self.bessel("pairwise", r)) for r in self.lengths]
        inputs = [(e[b], v[i], v[j]) for b, i, j in messages]
        smooth = self.config.use_smoothed_for_delta_edge
        targets, envelopes = [i for _, i, _ in messages], [far[b] for b, _, _ in messages]
        return *self.refinement(layer, v, e, targets, inputs, envelopes, copies, smooth), a

    def energy(self):
        """Of all structures in the graph together, without reference energies, eV."""
        rows = self.state["atom_embedding.embedding.weight"][self.graph.atomic_numbers - 1]
        v = [silu(self.linear("atom_embedding.atom_swish_layer.linear", row)) for row in rows]
        e = []
        for r in self.lengths:
            x = self.linear("edge_embedding.edge_linear1", self.bessel("pairwise", r))
            x = self.norm("edge_embedding.edge_init_norm", self.linear("edge_embedding.edge_linear2", x), "layer")
            e.append(silu(self.linear("edge_embedding.swish_layer.linear", x)))
        a = [
            silu(self.linear("three_body_embedding.swish_layer.linear",
                             self.linear("three_body_embedding.angle_embedding", self.angle(p, q))))
            for p, q in self.angles
        ]  # fmt: skip
        for number in range(self.config.num_layers):
            v, e, a = self.block(f"interaction_block.{number}", v, e, a)
        v = [self.norm("readout_norm", row) for row in v]
        return float(sum(self.mlp("energy_head.energy_head", row) for row in v))


def silu(x):
    return x / (1 + torch.exp(-x))
