"""LoRA: a trainable low-rank update of the weights of convolutions and linear layers.

Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, https://arxiv.org/abs/2106.09685.
"""

from __future__ import annotations

import math
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.utils import parametrize

from mtl.core.errors import ConfigError
from mtl.core.registry import ADAPTERS
from mtl.encoders.adapters import check_rank, set_names
from mtl.encoders.base import PASSAGE, SHARED, Adapter, Encoder, output_shapes
from mtl.encoders.keys import canonical, spelled

KINDS = ("conv", "grouped", "linear")


class LowRankUpdate(Adapter):
    """W + alpha / rank * up @ down, where W is seen as a matrix [outputs, inputs x kernel].

    `up` starts at zero, so the layer starts as it was. The update has the shape of the weight itself, so grouped
    convolutions, other strides and paddings need no special case.

    Args:
        weight: The weight to be updated; only its shape is used.
        sets: Keys of the sets, one per task or a single shared one.
        rank: Rank of the update.
        alpha: Scale; the update is multiplied by alpha / rank.
        per_task: Each task has a set of its own.
    """

    def __init__(self, weight: Tensor, sets: list[str], rank: int, alpha: float, per_task: bool) -> None:
        super().__init__(per_task)
        outputs, inputs = weight.shape[0], weight[0].numel()
        self.scale = alpha / rank
        self.down = nn.ParameterDict({key: nn.Parameter(weight.new_empty(rank, inputs)) for key in sets})
        self.up = nn.ParameterDict({key: nn.Parameter(weight.new_zeros(outputs, rank)) for key in sets})
        for parameter in self.down.values():
            nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the updated weight, same shape; the weight itself outside of a task."""
        passage = PASSAGE.get()
        if self.per_task and passage is None:
            return weight
        key = passage.task if self.per_task and passage else SHARED
        return weight + self.scale * (self.up[key] @ self.down[key]).view_as(weight)


@ADAPTERS.register("lora")
def attach_lora(
    encoder: Encoder,
    tasks: list[str],
    *,
    rank: int = 8,
    alpha: float = 16.0,
    targets: list = ["conv", "linear"],  # noqa: B006 (read only)
    per_task: bool = False,
) -> Encoder:
    """Give layers of an encoder a low-rank update, in place.

    Layers that the update would not make smaller (rank * (outputs + inputs) >= outputs * inputs, typical of depthwise and
    of very narrow layers) are left alone, as are layers that the features never pass through.

    Args:
        encoder: Receives the adapters; its weights must be loaded before.
        tasks: Names of the tasks; used where `per_task`.
        rank: Rank of every update.
        alpha: Updates are multiplied by alpha / rank.
        targets: Kinds (`conv`: ungrouped convolutions, `grouped`: grouped and depthwise ones, `linear`) and patterns of
            module names as in timm (`layer4.*`, `*.attn.qkv`); a layer is taken if any fits.
        per_task: One set of updates per task instead of a shared one.

    Returns:
        The same encoder.

    Raises:
        ConfigError: A rank below 1, a pattern that fits no layer, or no layer left to adapt.
    """
    check_rank(rank)
    sets = set_names(encoder, tasks, per_task)
    layers = {n: m for n, m in encoder.body.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    used = output_shapes(encoder, [name for name in layers if any(_fits(name, layers[name], str(t)) for t in targets)])
    problems = []
    for target in targets:
        if target not in KINDS and not any(_fits(name, layer, str(target)) for name, layer in layers.items()):
            names = ", ".join(spelled(name) for name in list(layers)[1:4])
            problems.append(
                f"`peft.targets` names `{target}`, which fits no layer: expected {', '.join(KINDS)} or a pattern of layer "
                f"names such as {names}."
            )
    if problems:
        raise ConfigError(problems)
    chosen = [layer for name, layer in layers.items() if name in used and _smaller(layer.weight, rank)]
    if not chosen:
        raise ConfigError(
            f"`peft.targets={list(targets)}` leaves no layer to adapt: {len(used)} of `{encoder.architecture}` fit, and "
            f"`peft.rank={rank}` is too large for all of them. Choose other targets or a smaller rank."
        )
    for layer in chosen:
        update = LowRankUpdate(layer.weight, sets, rank, alpha, per_task)
        parametrize.register_parametrization(layer, "weight", update)
    encoder.announce_adapters(tasks, per_task)
    return encoder


def merge_lora(encoder: Encoder) -> None:
    """Write shared updates into the weights and remove the adapters: same output, plain layers (for export)."""
    if encoder.per_task:
        raise ValueError("Updates per task cannot be merged into one set of weights")
    for layer in list(encoder.body.modules()):
        updates = getattr(layer, "parametrizations", {})
        if "weight" in updates and isinstance(updates["weight"][0], LowRankUpdate):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def _fits(name: str, layer: nn.Module, target: str) -> bool:
    grouped = isinstance(layer, nn.Conv2d) and layer.groups > 1
    if target in KINDS:
        return target == ("linear" if isinstance(layer, nn.Linear) else "grouped" if grouped else "conv")
    return fnmatchcase(canonical(name), canonical(target))


def _smaller(weight: Tensor, rank: int) -> bool:
    outputs, inputs = weight.shape[0], weight[0].numel()
    return rank * (outputs + inputs) < outputs * inputs
