"""Shows loggers a few validation images after every validation: always the same ones, annotated and predicted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from mtl.core.task import TaskSpec
from mtl.core.types import ImageResult, Record
from mtl.drawing.paint import fit, side_by_side, with_legend
from mtl.evaluation.examples import masks_for_pictures
from mtl.evaluation.pictures import draw_pair
from mtl.training.callbacks.recorder import RunRecorder
from mtl.training.distributed import gather_objects
from mtl.training.loggers import log_pictures

LONGEST = 512  # pixels of the longer side of a panel


class ExamplePictures(Callback):
    """Keeps what validation says of some images anyway, so that showing them costs no further prediction.

    Args:
        count: How many images.
        recorder: Knows the steps of the stages before.
    """

    def __init__(self, count: int, recorder: RunRecorder) -> None:
        self.count = count
        self._recorder = recorder
        self._chosen: dict[str, Record] = {}
        self._images: dict[str, np.ndarray] = {}
        self._kept: dict[str, tuple[ImageResult, ImageResult]] = {}

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Choose the images, the same on all ranks; have them kept."""
        module, data = _parts(trainer, pl_module)
        if not self._chosen:
            records = diverse(data.records_by_split["val"], module.model.specs, self.count)
            self._chosen = {record.sample_id: record for record in records}
        self._kept = {}

        def keep(prediction: ImageResult, truth: ImageResult) -> None:
            if truth.sample_id in self._chosen:
                small = masks_for_pictures(truth, module.model.specs) if module.evaluator.native else truth
                self._kept[truth.sample_id] = (prediction, small)

        module.keep_images, module.examples = keep, self._chosen.keys()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make pictures of what was kept, at the thresholds that this validation has chosen, and hand them on."""
        if trainer.sanity_checking:
            return
        pictures = {name: self._picture(name, trainer, pl_module) for name in self._kept}
        self._kept = {}
        for others in gather_objects(pictures, pl_module):
            pictures = others | pictures
        if trainer.is_global_zero:
            log_pictures(trainer.loggers, dict(sorted(pictures.items())), self._recorder.before[1] + trainer.global_step)

    def _picture(self, name: str, trainer: pl.Trainer, pl_module: pl.LightningModule) -> np.ndarray:
        module, data = _parts(trainer, pl_module)
        prediction, truth = self._kept[name]
        if name not in self._images:
            stored = data.family.read_image(self._chosen[name])
            self._images[name] = fit(prediction.window.cut(module.model.preprocessing.picture(stored)), LONGEST)
        predicted, annotated = draw_pair(
            self._images[name], truth, prediction, module.model.specs, module.thresholds, LONGEST, module.evaluator.study
        )
        if annotated is None:
            return predicted
        return side_by_side([with_legend(annotated, [], "annotated"), with_legend(predicted, [], "predicted")])


def diverse(records: Iterable[Record], specs: Mapping[str, TaskSpec], count: int) -> list[Record]:
    """Choose images that together show as many labels and classes as can be, each time the same ones.

    Args:
        records: To choose from.
        specs: The tasks whose labels count.
        count: How many to choose.
    """
    left = {record.sample_id: record for record in sorted(records, key=lambda record: record.sample_id)}
    shows = {
        name: [spec.label for spec in specs.values() if record.knows(spec.label)]
        + [class_name for class_name, number in record.class_counts.items() if number]
        for name, record in left.items()
    }
    shown: Counter[str] = Counter()
    chosen: list[Record] = []
    while left and len(chosen) < count:
        best = max(left, key=lambda name: sum(1 / (1 + shown[what]) ** 2 for what in shows[name]))
        shown.update(shows[best])
        chosen.append(left.pop(best))
    return chosen


def _parts(trainer: pl.Trainer, pl_module: pl.LightningModule) -> tuple[Any, Any]:
    """Return the module and the data module as what they are here."""
    owner: Any = trainer
    return pl_module, owner.datamodule
