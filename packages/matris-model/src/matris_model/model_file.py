"""Model files: weights as safetensors beside their meaning as JSON. Opening one never executes code."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from matris_model.config import MatRISMoEConfig
from matris_model.golden import first_difference, golden_structures, golden_values
from matris_model.model import MatRISMoE

if TYPE_CHECKING:
    from matris_model.compat import MatRIS, MatRISConfig

SavedModel: TypeAlias = "MatRISMoE | MatRIS"
"""What a model file can hold."""

FORMAT = "matris-moe"
VERSION = 5


def save_model(model: SavedModel, path: str | Path, about: dict[str, Any] | None = None) -> Path:
    """Writes `model.safetensors` and `model.json` into a directory (made where it is missing), and returns it.

    Both are written beside the old ones first and then renamed, so a reader never sees half a file. What the model says
    of a few small structures is written too, and compared when the file is opened.

    Args:
        model: what to save: weights, reference energies and configuration.
        path: the directory.
        about: further plain values for the JSON file, e.g. where the weights come from.
    """
    directory = Path(path)
    directory.mkdir(parents=True, exist_ok=True)
    weights, meaning = directory / "model.safetensors", directory / "model.json"
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    partial = weights.with_suffix(".safetensors.partial")
    save_file(state, partial)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "kind": type(model).__name__,
        "config": model.config.to_dict(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "sha256": _sha256(partial),
        "about": about or {},
        "written_by": _versions(),
        "golden": golden_values(model, golden_structures(model)),
    }
    partial_meaning = meaning.with_suffix(".json.partial")
    partial_meaning.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(weights)
    partial_meaning.replace(meaning)
    return directory


def load_model(path: str | Path, device: str | torch.device = "cpu", check: bool = True) -> SavedModel:
    """The model in a directory (a run directory too), or that a `model.safetensors` or `model.json` belongs to.

    Args:
        path: where it is.
        device: where it shall compute.
        check: whether to compare what it says there of the golden structures in the file with what it said when it was
            saved. Files without golden structures are opened all the same.

    Raises:
        ValueError: no model there, one of another kind or version, files that are damaged, or a model that does not
            compute what it did. The message says which file and what to do.
    """
    directory = _directory_of(Path(path))
    weights, meaning = directory / "model.safetensors", directory / "model.json"
    content = _read_meaning(meaning)
    if _sha256(weights) != content.get("sha256"):
        raise ValueError(
            f"{weights} does not belong to {meaning.name} beside it (checksums differ): one of them is damaged or from "
            "another model; copy both files again"
        )
    try:
        state = load_file(weights)
        model = _new_model(_config(content.get("kind", MatRISMoE.__name__), content["config"]))
        model.to(getattr(torch, content["dtype"])).load_state_dict(state)
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{weights} or {meaning.name} beside it is damaged: {error}; copy both files again") from error
    model = model.to(device).eval()
    if check and "golden" in content:
        _check_golden(model, content, meaning)
    return model


def saved_config(path: str | Path) -> MatRISMoEConfig | MatRISConfig:
    """The configuration of a saved model, whose weights are not looked at.

    Raises:
        ValueError: no model there, or one that this version does not read.
    """
    meaning = _directory_of(Path(path)) / "model.json"
    content = _read_meaning(meaning)
    try:
        return _config(content.get("kind", MatRISMoE.__name__), content["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{meaning} is damaged: {error}; copy it again") from error


def _check_golden(model: SavedModel, content: dict[str, Any], meaning: Path) -> None:
    try:
        difference = first_difference(model, content["golden"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ValueError(f"the golden structures in {meaning} are damaged: {error!r}; copy the file again") from error
    if difference is not None:
        writer = ", ".join(f"{name} {number}" for name, number in content.get("written_by", {}).items())
        raise ValueError(
            f"the model at {meaning.parent} does not compute what it did when it was saved: {difference}. The weights "
            f"are not those that were saved, or the software is not: it was saved with {writer or 'unknown versions'}, "
            "and reduced precision of matrix products (torch.set_float32_matmul_precision) counts too. Install those "
            "versions, or open it with load_model(path, check=False) and judge it yourself"
        )


def _versions() -> dict[str, str]:
    versions = {"torch": str(torch.__version__)}
    for package in ("matris-model", "janus-graph", "janus-moe"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # run from a source tree that is not installed
            continue
    return versions


def _config(kind: str, config: dict[str, Any]) -> MatRISMoEConfig | MatRISConfig:
    if kind == MatRISMoE.__name__:  # also of files that were written before there were kinds
        return MatRISMoEConfig.from_dict(config)
    if kind == "MatRIS":
        from matris_model.compat import MatRISConfig

        return MatRISConfig.from_dict(config)
    raise ValueError(f"kind is {kind!r}; this program knows MatRISMoE and MatRIS")


def _new_model(config: MatRISMoEConfig | MatRISConfig) -> SavedModel:
    if isinstance(config, MatRISMoEConfig):
        return MatRISMoE(config)
    from matris_model.compat import MatRIS

    return MatRIS(config)


def _directory_of(path: Path) -> Path:
    directory = path if path.is_dir() else path.parent
    if not path.exists() or not (directory / "model.json").exists() or not (directory / "model.safetensors").exists():
        raise ValueError(
            f"no model at {path}: expected a directory with model.safetensors and model.json, such as a finished run"
        )
    return directory


def _read_meaning(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: it is not JSON ({error}); copy it again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} does not describe a {FORMAT} model; give the directory of a trained model")
    if content.get("version") != VERSION:
        raise ValueError(
            f"{path} is of version {content.get('version')}, this program reads version {VERSION}; "
            "install the matris-model release that wrote it"
        )
    return content


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
