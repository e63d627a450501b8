"""Copies of weights that autograd keeps, found in one forward pass: memory that sharding could not give back."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Copies(TorchDispatchMode):
    """Watches one forward pass for copies of weights that autograd keeps: their memory would stay, bucket by bucket.

    Args:
        names: of the buckets, by what the storage of their weights is known by.
    """

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = names
        self._found: dict[int, tuple[str, Tensor, torch.dtype]] = {}
        self.checked = False

    def __exit__(self, *details: Any) -> None:
        self.checked = True
        self._found.clear()
        super().__exit__(*details)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.clone.default):
            name = self._names.get(args[0].untyped_storage()._cdata)
            if name is not None:
                self._found[result.untyped_storage()._cdata] = name, result, args[0].dtype
        return result

    def kept(self, storage: int) -> None:
        """Autograd keeps something with this storage."""
        if storage not in self._found:
            return
        name, copy, dtype = self._found.pop(storage)
        told = f"{name} keeps a copy of a weight of shape {list(copy.shape)} for its derivatives"
        if copy.dtype != dtype:
            raise RuntimeError(
                f"{told}, cast from {dtype} to {copy.dtype}: memory that sharding cannot give back; "
                f"gather the weights in what the block computes in, with dtype={copy.dtype}, or set checkpoint=True"
            )
        warnings.warn(f"{told}, which stays in memory; set checkpoint=True, or do without the copy", stacklevel=2)
