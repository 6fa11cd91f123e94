"""From a checkpoint file to a model that works, without any YAML."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mtl.config.load import build_family
from mtl.config.schema import RunConfig
from mtl.core import plugins
from mtl.core.errors import CheckpointError, ConfigError
from mtl.drawing.palette import coloured, colours_of
from mtl.model import MultiTaskModel
from mtl.runs.checkpoint import config_of, read_checkpoint
from mtl.runs.folder import checkpoint_path
from mtl.runs.precision import AUTO, Computation, usable

MODEL_PREFIX = "model."
DRAWN = ("colours", "unremarkable", "labels")  # keys of a spec that say how classes are drawn and written
PRETRAINING_NOTE = (
    "{count} groups of the test images bear the names of patients that the network behind backbone.weights or the start "
    "of a stage was trained or selected on ({names}): these figures are not a test."
)


@dataclass
class LoadedModel:
    """A model with what its checkpoint says about it.

    Attributes:
        model: On the device, in eval mode.
        config: The run configuration it was trained with.
        thresholds: By task; chosen on validation.
        split: Rows of the training run's split: sample id, group, source, split, content hash.
        path: The checkpoint file.
        epoch: The training epoch it was saved after, from 0; of its stage in a curriculum.
        thresholds_source: The split on which the thresholds were chosen.
        pretraining: Groups of this run's test images that the network it started from had seen.
        stage: Name of its stage; empty without a curriculum.
        computation: The precision and memory format it computes in.
    """

    model: MultiTaskModel
    config: RunConfig
    thresholds: dict[str, dict[str, float]]
    split: list[dict[str, str]]
    path: Path
    epoch: int
    thresholds_source: str
    pretraining: list[str]
    stage: str = ""
    computation: Computation = field(default_factory=Computation)


def load_model(
    checkpoint: str | Path, device: str = "auto", precision: str | int = AUTO, channels_last: str | bool = AUTO
) -> LoadedModel:
    """Load a checkpoint strictly.

    Args:
        checkpoint: A checkpoint file, or a run directory (its best checkpoint is taken).
        device: `auto`, `cpu`, `cuda`, ...
        precision: As in `usable`.
        channels_last: As in `usable`.

    Raises:
        CheckpointError: Missing, unreadable, foreign, not matching the model it describes, or in need of an unknown plug-in.
    """
    path = checkpoint_path(checkpoint)
    content = read_checkpoint(path)
    about = content["mtl"]
    if missing := [
        f"`mtl.{key}`"
        for key in ("model", "thresholds", "split", "epoch", "thresholds_source", "pretraining")
        if key not in about
    ]:
        raise CheckpointError(f"`{path}` lacks {', '.join(missing)}. Expected a checkpoint as training wrote it.")
    if lacking := plugins.missing(about["config"].get("plugins", []), f"`{path}`"):
        raise CheckpointError("\n".join(lacking))
    config = config_of(about, path)
    described = {**about["model"], "specs": _complete_specs(about, config)}
    model = MultiTaskModel.from_config(described, load_weights=False)
    hint = "The file was edited or belongs to another release; train again or use the release that wrote it."
    load_state(model, content["state_dict"], f"`{path}` does not fit the model it describes", hint)
    place = pick_device(device)
    computation = usable(config, place, precision, channels_last)
    model = model.to(place).eval()
    computation.arrange(model)
    return LoadedModel(
        model, config, about["thresholds"], about["split"], path, about["epoch"], about["thresholds_source"],
        about["pretraining"], about.get("stage", ""), computation,
    )  # fmt: skip


def _complete_specs(about: dict[str, Any], config: RunConfig) -> list[dict[str, Any]]:
    """Return the stored task specs; of a checkpoint from before they told how classes are drawn and written, with that."""
    stored: list[dict[str, Any]] = about["model"]["specs"]
    if all(values.keys() >= set(DRAWN) for values in stored):
        return stored
    offered = build_family(config.data).specs()
    colours = colours_of(offered.values())
    known = {name: coloured(spec, colours).to_dict() for name, spec in offered.items()}
    return [{**{key: known[spec["name"]][key] for key in DRAWN if spec["name"] in known}, **spec} for spec in stored]


def load_state(model: MultiTaskModel, state: dict[str, Any], problem: str, hint: str) -> None:
    """Load the network's part of a checkpoint's `state_dict`: all keys or none.

    Args:
        model: The network.
        state: Names as in a `MultiTaskModule`.
        problem: How the error begins.
        hint: How it ends.

    Raises:
        CheckpointError: Keys are missing, unexpected or of another shape.
    """
    own = {name.removeprefix(MODEL_PREFIX): value for name, value in state.items() if name.startswith(MODEL_PREFIX)}
    wanted = model.state_dict()
    wrong = [f"it lacks {_some(wanted.keys() - own.keys())}"] if wanted.keys() - own.keys() else []
    wrong += [f"it has {_some(own.keys() - wanted.keys())} besides"] if own.keys() - wanted.keys() else []
    shapes = {name for name in wanted.keys() & own.keys() if wanted[name].shape != own[name].shape}
    wrong += [f"other shapes in {_some(shapes)}"] if shapes else []
    if wrong:
        raise CheckpointError(f"{problem}: {'; '.join(wrong)}. {hint}")
    model.load_state_dict(own, strict=True)


def _some(names: set[str]) -> str:
    first = sorted(names)[0]
    return f"`{first}`" if len(names) == 1 else f"{len(names)} keys (first: `{first}`)"


def pick_device(device: str) -> torch.device:
    """Turn `auto` into the best device there is.

    Raises:
        ConfigError: The device does not exist here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"`device={device}` is not available here. Use device=auto or device=cpu.") from error
    return chosen
