"""What a device computes and sends in a second: machines by name, or from files like theirs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from janus_train.failure import UserError


class Link(BaseModel):
    """A way between devices."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gb_per_s: float = Field(gt=0, description="that a device sends while it receives as many")
    latency_us: float = Field(ge=0, description="of one collective between two devices")


class Machine(BaseModel):
    """A device, and what it is connected by.

    Attributes:
        name: where it was read from.
        devices_per_node: that share the faster way.
        memory_gb: of a device.
        peak_tflops: of products of matrices, in the precision of training.
        product_rate: what large products reach of it.
        memory_gb_per_s: that a device reads and writes.
        operation_us: what starting an operation takes its host.
        within: a node.
        between: nodes.
        assumed: fields whose values nobody has published.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    devices_per_node: int = Field(ge=1)
    memory_gb: float = Field(gt=0)
    peak_tflops: float = Field(gt=0)
    product_rate: float = Field(gt=0, le=1)
    memory_gb_per_s: float = Field(gt=0)
    operation_us: float = Field(ge=0)
    within: Link
    between: Link
    assumed: tuple[str, ...] = ()

    def seconds_to_send(self, sent: int, calls: int, ranks: int) -> float:
        """What so many bytes of one device take in so many collectives over this many ranks that stand side by side.

        A collective waits for as many hops as it takes to reach all ranks when their number doubles in each.
        """
        link = self.within if ranks <= self.devices_per_node else self.between
        hops = max(ranks - 1, 0).bit_length()
        return sent / (link.gb_per_s * 1e9) + calls * hops * link.latency_us * 1e-6

    def seconds_between_nodes(self, sent: int, calls: int, ranks: int) -> float:
        """The same over ranks of which no two share a node."""
        hops = max(ranks - 1, 0).bit_length()
        return sent / (self.between.gb_per_s * 1e9) + calls * hops * self.between.latency_us * 1e-6


def machine_names() -> list[str]:
    """Machines that come with the package."""
    folder = files("janus_train.plan") / "machines"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def load_machine(name_or_path: str) -> Machine:
    """A machine that comes with the package, or one from a file.

    Raises:
        UserError: neither, or a file that does not describe one.
    """
    named = files("janus_train.plan") / "machines" / f"{name_or_path}.yaml"
    if name_or_path in machine_names():
        text = named.read_text()
    else:
        try:
            text = Path(name_or_path).read_text()
        except OSError as error:
            known = ", ".join(machine_names())
            raise UserError(
                f"--machine: no machine '{name_or_path}', and no such file; there are {known}, or write a file like "
                "theirs"
            ) from error
    try:
        values = yaml.safe_load(text)
        if not isinstance(values, Mapping):
            raise UserError(f"--machine: {name_or_path} holds no fields such as 'peak_tflops: 67'")
        return Machine.model_validate({"name": Path(name_or_path).stem, **values})
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--machine: {name_or_path} is not YAML: {error}") from error
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise UserError(f"--machine: {name_or_path}: {told}") from error
