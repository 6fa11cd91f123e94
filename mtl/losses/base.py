"""What every loss does, and how a head builds the one its configuration names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mtl.core.errors import ConfigError
from mtl.core.registry import LOSSES
from mtl.core.task import TaskSpec


class Loss(nn.Module, ABC):
    """A scalar from what a head computed and what was annotated.

    Sub-classes are registered with `@LOSSES.register("name")`; arguments after `*` are the keys a YAML may set, `spec` is
    wired by the head. All rows that a loss sees are labelled; the head selects them. Whatever the precision of the forward
    pass, a loss is computed in float32.

    Attributes:
        kinds: Task kinds the loss makes sense for.
        can_be_negative: It has no lower bound of 0.
    """

    kinds: ClassVar[tuple[str, ...]] = ()
    can_be_negative: ClassVar[bool] = False

    def __init__(self, spec: TaskSpec | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.ignore_index = spec.ignore_index if spec is not None and spec.kind == "segmentation" else -100

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute the loss in float32.

        Args:
            prediction: Logits [B, C, ...], or for heatmap losses the map itself, [B, K, h, w] in [0, 1], or for numbers
                standardised outputs [B, `outputs`].
            target: Class indices (int64, without the channel axis) or values of the prediction's shape (floating point); of
                numbers [B].

        Returns:
            A finite scalar; 0, attached to the graph, where nothing counts.
        """
        with torch.autocast(prediction.device.type, enabled=False):
            return self.compute(prediction.float(), target.float() if target.is_floating_point() else target)

    def outputs(self, classes: int) -> int:
        """Return how many outputs a head of whole images computes for this many classes (1 for a number)."""
        return classes

    def probabilities(self, logits: Tensor) -> Tensor:
        """Turn an image classifier's logits [B, `outputs`] into probabilities [B, C]; of exclusive classes they sum to 1."""
        return logits.softmax(dim=1)

    @abstractmethod
    def compute(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of float32 predictions."""


class WeightedLoss(Loss):
    """A loss that weighs classes.

    Args:
        spec: The task, which knows the class names.
        class_weights: One weight per class in class order, or a mapping from class name to weight, in which names of
            classes that the task does not have are skipped, so that one mapping serves a family of tasks.
    """

    class_weights: Tensor | None

    def __init__(self, spec: TaskSpec | None, class_weights: list | dict | None) -> None:
        super().__init__(spec)
        # Not saved: the weights come from the configuration, and a checkpoint should load under new ones.
        self.register_buffer("class_weights", class_weight_tensor(spec, class_weights), persistent=False)


def class_weight_tensor(
    spec: TaskSpec | None, class_weights: list | dict | None, key: str = "class_weights"
) -> Tensor | None:  # fmt: skip
    """Turn configured class weights into a [C] float32 tensor in class order; `key` names them in messages.

    Raises:
        ConfigError: The weights do not fit the classes of the task.
    """
    if class_weights is None:
        return None
    if isinstance(class_weights, dict):
        if spec is None:
            raise ConfigError(f"{key} by name need a task; give a list in class order.")
        missing = [name for name in spec.classes if name not in class_weights]
        if missing:
            raise ConfigError(
                f"{key} of `{spec.name}` name {sorted(class_weights)}; a weight is missing for {', '.join(missing)}."
            )
        class_weights = [class_weights[name] for name in spec.classes]
    elif spec is not None and len(class_weights) != len(spec.classes):
        raise ConfigError(
            f"{key} of `{spec.name}`: expected {len(spec.classes)} weights ({', '.join(spec.classes)}), "
            f"found {len(class_weights)}."
        )
    weights = torch.tensor([float(weight) for weight in class_weights])
    if not bool((weights > 0).all()):
        raise ConfigError(f"{key} must be positive, found {weights.tolist()}.")
    return weights


def build_loss(config: dict[str, Any], spec: TaskSpec) -> Loss:
    """Build the loss that a head's `loss` entry names, after checking that it suits the task.

    Raises:
        ConfigError: Unknown loss or key, or a loss made for another kind of task.
    """
    where = f"heads.{spec.name}.loss"
    if not isinstance(config, dict) or "name" not in config:
        raise ConfigError(f"`{where}` must be a mapping with a `name`; found {config!r}.")
    kinds = LOSSES.entry(config["name"], where).constant("kinds")
    if kinds and spec.kind not in kinds:
        suited = sorted(name for name, entry in LOSSES.entries().items() if spec.kind in entry.constants.get("kinds", ()))
        raise ConfigError(
            f"Loss `{config['name']}` in `{where}` does not fit a {spec.kind} task. Expected one of: {', '.join(suited)}."
        )
    return LOSSES.build(config, spec, where=where)


def is_multilabel(prediction: Tensor, target: Tensor) -> bool:
    """Return whether a target holds independent channels (values of the prediction's shape), not class indices."""
    return target.is_floating_point() and target.shape == prediction.shape
