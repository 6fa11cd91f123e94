"""Weights from a local file, with an exact account of what was loaded and what was not."""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtl.core.digest import archive_damage
from mtl.core.errors import CheckpointError
from mtl.encoders.keys import KeyReport, canonical, spelled, under

# Where tools put the state dict inside a file (DINO keeps two, VISSL nests several), and what they put in front of its keys.
CONTAINERS = (
    "state_dict", "model_state_dict", "model_state", "classy_state_dict", "base_model", "model", "net", "weights", "teacher",
    "student", "trunk",
)  # fmt: skip
# Self-supervised training keeps two copies of a network. The second is taken only from a file that has no other.
SECOND_COPIES = (
    "student.", "student_backbone.", "encoder_k.", "momentum_encoder.", "target_network.", "target_encoder.",
    "backbone_momentum.",
)  # fmt: skip
PREFIXES = (
    "module.", "_orig_mod.", "model.", "backbone.", "encoder.", "body.", "net.", "resnet.", "trunk.", "_feature_blocks.",
    "teacher.", "teacher_backbone.", "encoder_q.", "base_encoder.", "online_network.", "online_encoder.", *SECOND_COPIES,
)  # fmt: skip
# A ResNet of torchvision that was cut open and put into `nn.Sequential`: its children by position.
POSITIONS = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
# Buffers that networks compute when they are built; older files still carry them. In the form of `canonical`.
COMPUTED = ("relative.position.index", "relative.coords.table", "attn.mask", "num.batches.tracked")
OWN_PREFIX = "model.encoder."


def load_weights(
    module: nn.Module, path: str | Path, *, prefix: str = "", strict: bool = True, keep: Collection[str] = ()
) -> KeyReport:
    """Load a weight file into a network.

    Args:
        module: The network; usually a timm features-only body.
        path: `.safetensors`, a torch file (state dict, or one under `state_dict` or `model`), or an mtl checkpoint, of
            which the encoder is taken.
        prefix: Take only the keys of the file that start with this; by default known prefixes are skipped.
        strict: Refuse a file that does not fill the network exactly (leftover parts such as a classifier are fine).
        keep: Parts of the network that stay as they are, whatever the file has for them.

    Raises:
        CheckpointError: No such file, not readable, nothing fits, or (`strict`) not everything fits.
    """
    found = read_weights(path)
    if prefix:
        found = {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}
    report, values = match(module, found, str(path), keep)
    if not report.loaded:
        found_keys = ", ".join(list(found)[:3]) or "no tensors"
        expected = ", ".join(list(module.state_dict())[:3])
        raise CheckpointError(
            f"No key of `{path}` fits this network: expected keys such as {expected}; found {found_keys}. "
            "Choose a file of the same architecture (`backbone.architecture`)."
        )
    if strict and not report.complete:
        raise CheckpointError(_incomplete(report))
    module.load_state_dict(values, strict=False)
    return report


def _incomplete(report: KeyReport) -> str:
    parts = []
    for title, keys in (("missing", report.missing), ("unexpected", report.unexpected), ("mismatched", report.mismatched)):
        if keys:
            parts.append(f"{len(keys)} {title} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})")
    return (
        f"`{report.source}` belongs to another network: expected all keys to fit; found {len(report.loaded)} that do, "
        f"{' and '.join(parts)}. Choose a file of the same architecture (`backbone.architecture`)."
    )


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a weight file; of an mtl checkpoint those of its encoder, without their prefix.

    Raises:
        CheckpointError: No such file, not readable, or without tensors.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"Weight file `{path}` does not exist: expected a .safetensors, .pth, .pt or .ckpt file.")
    if damage := archive_damage(file):
        raise CheckpointError(
            f"Weight file `{path}` is damaged: it is not what was written ({damage}). Download it again or restore a copy."
        )
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        # Some authors store their command line beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        # The unpickler answers foreign bytes with a bare number or nothing.
        reason = reason if " " in reason else f"{file.stat().st_size} bytes that are neither"
        raise CheckpointError(
            f"Weight file `{path}` cannot be read: expected safetensors or a torch file that holds only tensors and plain "
            f"values; found: {reason}. Save its state dict again, or download it again."
        ) from error
    own = isinstance(content, dict) and "mtl" in content
    while isinstance(content, dict) and (inner := next((c for c in CONTAINERS if isinstance(content.get(c), Mapping)), None)):
        content = content[inner]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"Weight file `{path}` holds no state dict: expected a dict, found {type(content).__name__}.")
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if own:
        tensors = {key.removeprefix(OWN_PREFIX): value for key, value in tensors.items() if key.startswith(OWN_PREFIX)}
    if not tensors:
        raise CheckpointError(f"Weight file `{path}` holds no {'encoder' if own else 'tensors'}: choose another file.")
    return tensors


def match(
    module: nn.Module, found: dict[str, Tensor], source: str, keep: Collection[str] = ()
) -> tuple[KeyReport, dict[str, Tensor]]:
    """Match a file's tensors with a network's; return the account and the values to load by the network's keys."""
    state = module.state_dict()
    target = {canonical(_base_key(key)): key for key in state if not _is_adapter(key)}
    parts = {spelled(key).split(".")[0] for key in state}
    kept = {key: None for key in target.values() if any(under(key, part) for part in keep)}
    stem = _stem_key(module)
    values: dict[str, Tensor] = {}
    mismatched: list[str] = []
    adapted: list[str] = []
    unexpected: list[str] = []
    names, leftover = _names(found, target)
    for key, bare in names.items():
        value, name = found[key], canonical(bare)
        if name not in target:
            known = bare.split(".")[0] in parts and not _is_adapter(key) and not any(under(bare, part) for part in keep)
            if not name.endswith(COMPUTED):
                (unexpected if known else leftover).append(key)
            continue
        own = target[name]
        expected = state[own].shape
        if own in kept:
            continue
        if value.shape == expected:
            values[own] = value
        elif own == stem and value.ndim == 4 and value.shape[0] == expected[0] and value.shape[2:] == expected[2:]:
            values[own] = adapt_stem(value, expected[1])
            adapted.append(own)
        else:
            mismatched.append(f"{own}: {list(value.shape)} in the file, {list(expected)} in the network")
    touched = {*values, *kept, *(line.split(":")[0] for line in mismatched)}
    missing = [key for key in target.values() if key not in touched and not key.endswith("num_batches_tracked")]
    account = [tuple(keys) for keys in (values, missing, unexpected, mismatched, adapted, leftover, kept)]
    return KeyReport(source, *account), values


def _names(found: Collection[str], target: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the keys of a file with their names in the network, and the keys of further copies of it.

    Keys with the same wrappers in front belong to one copy. Where copies hold the same layer, one of them is taken as a whole.
    """
    stripped = {key: _strip(_base_key(key), target) for key in found}
    copies: dict[str, list[str]] = {}
    for key, (wrapper, name) in stripped.items():
        if canonical(name) in target:
            copies.setdefault(wrapper, []).append(key)
    taken: set[str] = set()
    others: list[str] = []
    for wrapper in sorted(copies, key=lambda wrapper: any(copy in wrapper for copy in SECOND_COPIES)):
        layers = {canonical(stripped[key][1]) for key in copies[wrapper]}
        if layers & taken:
            others += copies[wrapper]
        taken |= layers
    return {key: name for key, (_, name) in stripped.items() if key not in others}, others


def adapt_stem(weight: Tensor, in_chans: int) -> Tensor:
    """Fit the first convolution to another number of channels, as timm does.

    For one channel the filters are summed, so that a grey image copied to all channels would give the same map; for
    more they are repeated and scaled to keep the size of the response.

    Args:
        weight: [out, channels of the file, kh, kw].
        in_chans: Channels of the network's input.
    """
    channels = weight.shape[1]
    if in_chans == 1:
        return weight.float().sum(1, keepdim=True).to(weight.dtype)
    repeated = weight.float().repeat(1, math.ceil(in_chans / channels), 1, 1)[:, :in_chans]
    return (repeated * (channels / in_chans)).to(weight.dtype)


def _strip(key: str, target: dict[str, str]) -> tuple[str, str]:
    """Split known wrappers from the front of a key until it is one of the network's; returns them and the rest."""
    wrapper = ""
    while canonical(key) not in target:
        first, _, rest = key.partition(".")
        named = f"{POSITIONS.get(first, first)}.{rest}"
        if canonical(named) in target:
            return wrapper, named
        prefix = next((p for p in PREFIXES if key.startswith(p)), None)
        if prefix is None:
            break
        wrapper, key = wrapper + prefix, key.removeprefix(prefix)
    return wrapper, key


def _base_key(key: str) -> str:
    """Undo the renaming that LoRA causes: the frozen weight of an adapted layer is still that layer's weight."""
    if ".parametrizations." in key and key.endswith(".original"):
        return key.replace(".parametrizations.", ".").removesuffix(".original")
    return key


def _is_adapter(key: str) -> bool:
    inside = ".parametrizations." in key and not key.endswith(".original")
    return inside or key.startswith("adapters.") or ".adapters." in key


def _stem_key(module: nn.Module) -> str | None:
    first = next((name for name, part in module.named_modules() if isinstance(part, nn.Conv2d)), None)
    return None if first is None else f"{first}.weight"
