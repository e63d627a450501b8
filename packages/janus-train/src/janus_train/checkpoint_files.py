"""Pieces to and from files, by torch.distributed.checkpoint. Importing it takes as long as importing torch."""

from __future__ import annotations

import os
import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from janus_train.pieces import Piece

# Modules whose classes metadata consist of.
_OF_METADATA = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")

PROGRESS = "progress.json"
"""The file of a checkpoint that is no tensor."""


class CannotWrite(Exception):
    """The files of a checkpoint cannot be written: the disk is full, or not there."""


class CheckpointFailed(Exception):
    """Something else is wrong with a checkpoint, on this rank or another."""


class CannotRead(Exception):
    """The files of a checkpoint are damaged, or hold something else."""


def write_checkpoint(
    pieces: Mapping[str, Piece],
    progress: str,
    final: Path,
    group: ProcessGroup | None,
    files: FileSystem | None = None,
) -> None:
    """Writes the pieces of all ranks beside each other under another name, and renames that when all is on the disk.

    Every rank of the group calls it, and raises what any of them does. What several ranks hold is written by one.

    Args:
        pieces: of this rank.
        progress: what goes into `progress.json`.
        final: the directory that is there afterwards, on a file system that all ranks share.
        group: the ranks; None is one.
        files: how files are made.

    Raises:
        CannotWrite: a file could not be written; nothing of it is left.
        CheckpointFailed: any other error.
    """
    writer = _RenamingWriter(final, progress, files or FileSystem())
    try:
        with _one_process():
            save(
                _stored(pieces),
                storage_writer=writer,
                planner=_SavePlanner(),
                process_group=group,
                no_dist=group is None,
            )
    except CheckpointException as failed:
        errors = [error for error, _ in failed.failures.values()]
        cause = next((error for error in errors if not isinstance(error, OSError)), None)
        if cause is not None:
            ranks = ", ".join(map(str, failed.failures))
            raise CheckpointFailed(f"{final} on rank {ranks}: {type(cause).__name__}: {cause}") from failed
        if group is None or group.rank() == 0:
            shutil.rmtree(writer.path, ignore_errors=True)
        rank, (error, _) = next(iter(failed.failures.items()))
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CannotWrite(f"{final} cannot be written (rank {rank}: {reason})") from failed


class Stored:
    """The tensors in a checkpoint.

    Attributes:
        directory: where it is.
        tensors: by name, what there is.

    Raises:
        CannotRead: none there.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            found = _Reader(directory).read_metadata().state_dict_metadata
        except Exception as error:
            raise CannotRead(f"{type(error).__name__}: {error}") from error
        self.tensors = {name: of for name, of in found.items() if isinstance(of, TensorStorageMetadata)}

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole tensor."""
        return tuple(self.tensors[name].size)

    def dtype(self, name: str) -> torch.dtype:
        """As it was saved."""
        return self.tensors[name].properties.dtype

    def fill(self, pieces: Mapping[str, Piece]) -> None:
        """Reads what belongs into these pieces, however the ranks that wrote it had cut it. No rank waits for another.

        Raises:
            CannotRead: a tensor is missing, of another shape, or damaged.
        """
        for name, piece in pieces.items():
            if name not in self.tensors:
                raise CannotRead(f"it holds no {name}")
            if self.shape(name) != piece.portion.shape:
                raise CannotRead(f"{name} has shape {list(self.shape(name))} there, {list(piece.portion.shape)} here")
        try:
            with _one_process():
                load(
                    _stored(pieces), storage_reader=_Reader(self.directory), planner=_LoadPlanner(),
                    no_dist=True,
                )  # fmt: skip
        except CheckpointException as failed:
            cause = next(iter(failed.failures.values()))[0]
            raise CannotRead(f"{type(cause).__name__}: {cause}") from failed


def sync_directory(directory: Path) -> None:
    """Makes what was created and renamed in the directory outlast a loss of power."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Reader(FileSystemReader):
    """Reads metadata, which torch pickles, as plain values: whatever else is in there, nothing of it is executed."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with self.fs.create_stream(self.fs.concat_path(self.path, ".metadata"), "rb") as file:
            metadata: Metadata = _PlainValues(file).load()
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _PlainValues(pickle.Unpickler):
    """Knows the classes that metadata consist of, and no others."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch.serialization" and name == "_get_layout":
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module.startswith("pathlib") and name in ("PosixPath", "WindowsPath"):
            return Path
        if (module, name) == ("torch", "Size") or (module in _OF_METADATA and "." not in name):
            found = super().find_class(module, name)
            if isinstance(found, type) and found.__module__ == module:
                return found
        raise pickle.UnpicklingError(f"{module}.{name} does not belong into the metadata of a checkpoint")


class _StoredPiece:
    """A piece as torch.distributed.checkpoint asks for it (its `_Checkpointable` protocol)."""

    def __init__(self, piece: Piece) -> None:
        self.tensor, self._whole = piece.tensor, torch.Size(piece.portion.shape)
        self._chunk = ChunkStorageMetadata(torch.Size(piece.portion.offsets), piece.tensor.shape)

    def __create_write_items__(self, name: str, _: object) -> list[WriteItem]:
        if not self.tensor.numel():
            return []
        about = TensorWriteData(self._chunk, TensorProperties.create_from_tensor(self.tensor), self._whole)
        return [WriteItem(MetadataIndex(name, self._chunk.offsets), WriteItemType.SHARD, tensor_data=about)]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [self._chunk] if self.tensor.numel() else []


class _SavePlanner(DefaultSavePlanner):
    def lookup_object(self, index: MetadataIndex) -> Tensor:
        return self.state_dict[index.fqn].tensor


class _LoadPlanner(DefaultLoadPlanner):
    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        # The default goes through the values, to make room where there is none, and knows tensors only.
        super().set_up_planner({}, metadata, is_coordinator)
        self.state_dict = state_dict

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self.state_dict[index.fqn].tensor


def _stored(pieces: Mapping[str, Piece]) -> dict[str, Any]:
    return {name: _StoredPiece(piece) for name, piece in pieces.items()}


class _RenamingWriter(FileSystemWriter):
    """Writes under another name, and renames once every rank's files and the list of them are on the disk."""

    def __init__(self, final: Path, progress: str, files: FileSystem) -> None:
        super().__init__(final.with_name(f".{final.name}.partial"))
        self._final, self._progress, self.fs = final, progress, files

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        # Only the first rank comes here, while the others wait for their part of the plan.
        shutil.rmtree(self.path, ignore_errors=True)
        self.fs.mkdir(self.path)
        return super().prepare_global_plan(plans)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            # torch.save ends its file also after an error in it, which fails in turn: what came first is what counts.
            if error.__context__ is not None:
                raise error.__context__ from error
            raise

    def finish(self, metadata: Metadata, results: Any) -> None:
        super().finish(metadata, results)
        self._write(PROGRESS, lambda file: file.write(self._progress.encode()))
        partial = Path(self.path)
        sync_directory(partial)
        replaced = self._final.with_name(f".{self._final.name}.replaced")
        if self._final.exists():
            self.fs.rename(self._final, replaced)
        self.fs.rename(partial, self._final)
        sync_directory(self._final.parent)

    def _write(self, name: str, write: Callable[[Any], object]) -> None:
        with self.fs.create_stream(self.fs.concat_path(self.path, name), "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def _one_process() -> Iterator[None]:
    """Ranks read by themselves, and one rank writes by itself: torch warns of what was asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield
