"""Objects as the centres of a detector's boxes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from mtl.core.errors import ConfigError
from mtl.core.registry import HEADS
from mtl.core.task import TaskSpec
from mtl.heads.base import Head, Output
from mtl.heads.points.base import Candidates, PointsHead


@HEADS.register("box_centres")
class BoxCentresHead(PointsHead):
    """Any head that finds boxes, with its own losses and targets; points are the centres of its boxes.

    Args:
        spec: The task.
        channels: Channels of the maps.
        strides: Strides of the maps.
        detector: The head that finds boxes (a name and its keys); `features` is ignored.
        suppression_radius: Microns below which two points are the same object, whatever their classes.
    """

    def __init__(
        self,
        spec: TaskSpec,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        *,
        detector: dict,
        suppression_radius: float = 2.0,
    ) -> None:
        super().__init__(spec, channels, strides, suppression_radius)
        where = f"heads.{spec.name}.detector"
        if not isinstance(detector, dict) or "name" not in detector:
            raise ConfigError(f"`{where}` must be a head with a `name`; found {detector!r}.")
        kind = HEADS.entry(detector["name"], where).constant("kind")
        if kind != "detection":
            raise ConfigError(
                f"`{where}` is `{detector['name']}`, a {kind} head. Choose one that finds boxes, for example fcos."
            )
        own = {key: value for key, value in detector.items() if key != "features"}
        self.detector: Head = HEADS.build(own, replace(spec, kind="detection"), channels, strides, where=where)

    def set_progress(self, progress: float) -> None:
        """Pass the share of training that is done to the detector."""
        self.detector.set_progress(progress)

    def forward(self, features: tuple[Tensor, ...], image_size: tuple[int, int]) -> Output:
        """Return what the detector computes."""
        output: Output = self.detector(features, image_size)
        return output

    def loss(self, output: Output, target: Any) -> dict[str, Tensor]:
        """Compute the detector's losses."""
        return self.detector.loss(output, target)

    @property
    def monitored(self) -> tuple[str, ...]:
        """Names of what `monitor` returns."""
        return self.detector.monitored

    def monitor(self, output: Output) -> dict[str, Tensor]:
        """Compute what the detector lets others watch."""
        return self.detector.monitor(output)

    def candidates(self, output: Output) -> list[Candidates]:
        """Take the middles of the boxes."""
        found = []
        for row in self.detector.decode(output):
            boxes = row["boxes"]
            found.append(((boxes[:, :2] + boxes[:, 2:]) / 2, row["scores"], row["labels"]))
        return found
