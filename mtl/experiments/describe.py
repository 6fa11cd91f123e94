"""What a network consists of and needs: parts, shapes, parameters, multiply-adds, memory."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mtl.config.plan import Plan
from mtl.core.errors import MtlError
from mtl.model import MultiTaskModel
from mtl.training.fitting import labels_together, measured, room_of
from mtl.training.optim import split_parts
from mtl.training.step_memory import largest


def describe(model: nn.Module, balancer: nn.Module | None, image_size: tuple[int, int]) -> dict[str, Any]:
    """Describe a model by running one empty image through it.

    Args:
        model: `MultiTaskModel`; its mode and its random state do not change.
        balancer: Its parameters are counted as the part `balancer`.
        image_size: (height, width) of the network input.

    Returns:
        `input` [C, H, W]; `parameters` {`total`, `trainable`, `by_part`}; `parts`, each with `part`, `kind` (class) and
        `outputs` (name: shape without the batch); `multiply_adds` of one forward pass, counting convolutions and matrix
        products, without stages whose cost depends on the number of boxes.
    """
    channels = len(model.preprocessing.mean)  # type: ignore[arg-type]
    first = next(model.parameters())
    image = torch.zeros((1, channels, *image_size), device=first.device, dtype=first.dtype)
    sections = _sections(model)
    seen: dict[str, Any] = {}
    handles = [module.register_forward_hook(_recorder(seen, name)) for name, module in sections.items()]
    was_training = model.training
    try:
        model.eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(image)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return {
        "input": list(image.shape[1:]),
        "parameters": count_parameters(model, balancer),
        "parts": [
            {"part": name, "kind": type(module).__name__, "outputs": seen.get(name, {})} for name, module in sections.items()
        ],
        "multiply_adds": counter.get_total_flops() // 2,
    }


def describe_stages(model: MultiTaskModel, plan: Plan) -> dict[str, Any]:
    """Describe the stages of a curriculum.

    Args:
        model: The network; everything trains again afterwards.
        plan: Of the run.

    Returns:
        `stages`, each with `name`, `text` and the number of `trainable` parameters; nothing without a curriculum.
    """
    found = []
    for stage in (stage for stage in plan.stages if stage.name):
        model.train_only(stage.tasks, stage.freeze)
        trainable = count_parameters(model)["trainable"]
        found.append({"name": stage.name, "text": stage.describe(), "trainable": trainable})
    model.train_only(plan.config.tasks)
    return {"stages": found} if found else {}


def describe_memory(plan: Plan) -> dict[str, Any]:
    """Estimate the peak memory of training.

    Args:
        plan: Of the run. Where its data are there, labels come together as in them; else every image has all labels.

    Returns:
        `memory`: `peak` and its `parts` in bytes, `batch_size`, `device`, `free` (bytes, null where unknown), `labels` (`data`
        or `all`); nothing where the network cannot be tried.
    """
    try:
        labelled, source = labels_together(plan), "data"
    except MtlError:
        labelled, source = set(), "all"
    room = room_of(plan.config.trainer)
    memories = measured(plan, room, labelled)
    if not memories:
        return {}
    parts = largest(memories, plan)
    about = {"batch_size": plan.config.data.loader.batch_size, "device": room.device, "free": room.free, "labels": source}
    return {"memory": {"peak": sum(parts.values()), "parts": parts, **about}}


def count_parameters(model: nn.Module, balancer: nn.Module | None = None) -> dict[str, Any]:
    """Count parameters: `total`, `trainable` and both `by_part`; parts are those of the optimizer."""
    by_part = {
        part: {
            "total": sum(parameter.numel() for _, parameter in named),
            "trainable": sum(parameter.numel() for _, parameter in named if parameter.requires_grad),
        }
        for part, named in split_parts(model, balancer).items()
    }
    totals = {key: sum(counts[key] for counts in by_part.values()) for key in ("total", "trainable")}
    return {**totals, "by_part": by_part}


def render(description: dict[str, Any]) -> str:
    """Render the result of `describe` as plain text tables."""
    from rich.console import Console
    from rich.table import Table

    parameters = description["parameters"]
    counts = Table("part", title="parameters", title_justify="left")
    for column in ("total", "trainable"):
        counts.add_column(column, justify="right")
    for part, values in parameters["by_part"].items():
        counts.add_row(part, f"{values['total']:,}", f"{values['trainable']:,}")
    counts.add_section()
    counts.add_row("all", f"{parameters['total']:,}", f"{parameters['trainable']:,}")

    shapes = Table("part", "kind", "output", "shape", title="shapes", title_justify="left")
    shapes.add_row("input", "", "", _shape(description["input"]))
    for part in description["parts"]:
        for row, (name, shape) in enumerate(part["outputs"].items()):
            shapes.add_row(*((part["part"], part["kind"]) if row == 0 else ("", "")), name, _shape(shape))

    console = Console(file=io.StringIO(), width=110, color_system=None)
    console.print(shapes)
    console.print(counts)
    console.print(f"multiply-adds per image: {description['multiply_adds'] / 1e9:,.2f} G (without stages that work box by box)")
    for stage in description.get("stages", ()):
        console.print(f"{stage['text']}; {stage['trainable']:,} parameters train", soft_wrap=True, highlight=False)
    if "memory" in description:
        about = description["memory"]
        labels = {"data": "labelled as the data are", "all": "every image with all labels"}[about["labels"]]
        console.print(f"\nmemory of a training step, estimated: batches of {about['batch_size']}, {labels}", highlight=False)
        console.print(_memory_table(about))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines())


def _memory_table(memory: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table("part")
    table.add_column("MiB", justify="right")
    for part, size in memory["parts"].items():
        if size:
            table.add_row(part, f"{size / 2**20:,.0f}")
    table.add_section()
    table.add_row("peak", f"{memory['peak'] / 2**20:,.0f}")
    if memory["free"] is not None:
        table.add_row(f"free here ({memory['device']})", f"{memory['free'] / 2**20:,.0f}")
    return table


def _sections(model: nn.Module) -> dict[str, nn.Module]:
    """Name the encoder (backbone and adapters together), the necks and the heads; otherwise as the optimizer's parts."""
    named: dict[str, nn.Module] = {"encoder": model.get_submodule("encoder")}
    for section in ("neck", "head"):
        for name, module in model.get_submodule(f"{section}s").named_children():
            copies = module.items() if isinstance(module, nn.ModuleDict) else []  # a neck that its heads do not share
            named |= {f"{section}.{name}.{task}": copy for task, copy in copies} or {f"{section}.{name}": module}
    return named


def _recorder(seen: dict[str, Any], name: str) -> Any:
    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        # Per-task adapters run the encoder once per task with equal shapes.
        strides = getattr(module, "strides", None)
        if isinstance(output, tuple) and strides is not None and len(strides) == len(output):
            seen[name] = {f"/{stride}": list(level.shape[1:]) for stride, level in zip(strides, output, strict=True)}
        else:
            seen[name] = _shapes(output)

    return record


def _shapes(value: Any, name: str = "") -> dict[str, list[int]]:
    """Flatten nested tensors to {dotted name: shape without the batch}."""
    if isinstance(value, Tensor):
        return {name or "output": list(value.shape[1:])}
    if isinstance(value, dict):
        entries = list(value.items())
    elif isinstance(value, list | tuple):
        entries = list(enumerate(value))
    else:
        return {}
    found: dict[str, list[int]] = {}
    for key, entry in entries:
        found |= _shapes(entry, f"{name}.{key}" if name else str(key))
    return found


def _shape(sizes: list[int]) -> str:
    return " x ".join(str(size) for size in sizes) or "scalar"
