"""Windows of images with the targets of several tasks; each item depends on (seed, epoch, position, index) only."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from mtl.core.cores import usable_cores
from mtl.core.errors import DataError
from mtl.core.family import DataFamily
from mtl.core.task import TaskSpec
from mtl.core.types import REGION, ImageResult, Record, Sample, SampleMeta, Window
from mtl.data.formats.images import image_size
from mtl.data.pipeline.cache import RasterCache
from mtl.data.pipeline.sampling import SampledItem, item_weights
from mtl.imaging.content import Box
from mtl.imaging.outlines import cut_to_content
from mtl.imaging.preprocessing import Preprocessing
from mtl.kinds.base import Annotations, rules_of

log = logging.getLogger("mtl")
MASK_BYTES_KEPT = 256 * 2**20  # masks in the working raster kept per process; decoding them is slow
RASTERS_KEPT = 2  # decoded images kept per process; neighbouring windows come from the same image
INSIDE = "__inside__"  # mask of image content, to tell padding from background after the transform


class SampleDataset(Dataset):
    """One item per window.

    Args:
        family: Reads images and labels.
        records: Samples of this split.
        specs: All tasks of the data set.
        preprocessing: Makes network images.
        transform: `mtl.data.pipeline.transforms.Transform`, or None for evaluation.
        tasks: Names of the tasks whose targets are made.
        cache: Working rasters, or None to decode each time.
        seed: Seed of the run.
        random_offset: Move tile windows at random, anew in every draw (training).
        contents: By sample id, which part of an image is shown (`Preprocessing.content`); filled where an entry is missing, so
            that the data sets of a run share the work.
    """

    def __init__(
        self,
        family: DataFamily,
        records: list[Record],
        specs: dict[str, TaskSpec],
        preprocessing: Preprocessing,
        transform: Any = None,
        tasks: list[str] | None = None,
        cache: RasterCache | None = None,
        seed: int = 0,
        random_offset: bool = False,
        contents: dict[str, Box | None] | None = None,
    ) -> None:
        self.family, self.specs, self.preprocessing, self.cache = family, specs, preprocessing, cache
        self.transform, self.seed = transform, seed
        self.tasks = list(specs) if tasks is None else list(tasks)
        self.random_offset = random_offset and preprocessing.geometry.mode == "tiles"
        self.epoch = 0
        self.records = [self._with_size(record) for record in records]
        self._contents = {} if contents is None else contents
        self._find_contents()
        self.windows = [
            preprocessing.windows(_size(record), record.pixel_scale, self._contents.get(record.sample_id))
            for record in self.records
        ]
        self.items = [(image, number) for image, some in enumerate(self.windows) for number in range(len(some))]
        self._number = {record.sample_id: image for image, record in enumerate(self.records)}
        self._rasters: OrderedDict[int, np.ndarray] = OrderedDict()
        self._labels: dict[int, Sample] = {}
        self._mask_bytes = 0

    def __len__(self) -> int:
        return len(self.items)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rasters": OrderedDict(), "_labels": {}, "_mask_bytes": 0}

    @property
    def sources(self) -> list[str]:
        """Source of each item; what `Mixing` takes."""
        return [self.records[image].source for image, _ in self.items]

    @property
    def images(self) -> list[int]:
        """Image number of each item; what `WindowShardSampler` takes."""
        return [image for image, _ in self.items]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of items asked for by a plain index; items asked for by a `SampledItem` carry their own."""
        self.epoch = int(epoch)

    def __getitem__(self, key: int | SampledItem) -> dict[str, Any]:
        """Return `image` [C, H, W] float32, `targets` (None where absent) and `present` by task, and `meta`."""
        sampled = key if isinstance(key, tuple) else SampledItem(self.epoch, int(key), int(key))
        image_number, window_number = self.items[sampled.item]
        record, window = self.records[image_number], self.windows[image_number][window_number]
        rng = np.random.default_rng([self.seed, sampled.epoch, sampled.position, sampled.item])
        geometry = self.preprocessing.geometry
        if self.random_offset:
            window = geometry.jitter(window, rng)
        image = self.preprocessing.crop(self._raster(image_number), window)
        sample = self._sample(image_number)
        objects = sample.objects
        enough = inside = None
        if objects is not None:
            objects = objects.map(lambda points: window.working_to_network(window.original_to_working(points)))
            objects, enough, inside = cut_to_content(objects, window.valid, geometry.min_visible)
        masks = self._window_masks(sample, window)
        if self.transform is not None:
            image, objects, masks = self.transform(image, objects, masks, int(rng.integers(2**63)))
        masks = self._mark_padding(masks)
        unseen = masks.pop(REGION, None)
        known = Annotations(
            window.size, objects, masks, sample.labels, self.family.object_classes, geometry.min_visible, enough, inside,
            moved=self.transform is not None, region=None if unseen is None else unseen == 0,
        )  # fmt: skip
        targets = {task: rules_of(self.specs[task]).target(self.specs[task], known) for task in self.tasks}
        return {
            "image": self.preprocessing.normalize(image),
            "targets": targets,
            "present": {task: target is not None for task, target in targets.items()},
            "meta": SampleMeta(record.sample_id, record.group, record.source, window),
        }

    def truth(self, sample_id: str, native: bool = False) -> ImageResult:
        """Return what is known of a whole image, in its working raster; tasks without a label are missing.

        Args:
            sample_id: Which image.
            native: Give masks in the original raster.
        """
        image_number = self._number[sample_id]
        record, window, sample = self.records[image_number], self.windows[image_number][0], self._sample(image_number)
        original = working = self._working(image_number)
        if native and sample.masks:
            stored = self.family.read_labels(record)
            original = replace(working, size=window.original_size, objects=stored.objects, masks=stored.masks)
        elif native:
            original = replace(working, size=window.original_size, objects=sample.objects)
        known = {}
        for task in self.tasks:
            rules = rules_of(self.specs[task])
            target = rules.target(self.specs[task], original if rules.areas else working)
            if target is not None:
                known[task] = rules.truth(target)
        about = record.attributes, record.spacing, record.case, record.skew
        return ImageResult(record.sample_id, record.group, record.source, window, known, *about)

    def _working(self, image_number: int) -> Annotations:
        """What is known of a whole image, moved to its working raster."""
        window, sample = self.windows[image_number][0], self._sample(image_number)
        size = window.working_size
        objects = None if sample.objects is None else sample.objects.map(window.original_to_working)
        region = sample.masks.get(REGION, np.ones(size, np.uint8)) > 0
        return Annotations(size, objects, sample.masks, sample.labels, self.family.object_classes, region=region)

    def targets(self, task: str) -> list[Any]:
        """Return the target of one task for each whole image that is labelled for it, in its working raster."""
        rules, found = rules_of(self.specs[task]), []
        for image_number in range(len(self.records)):
            target = rules.target(self.specs[task], self._working(image_number))
            found += [] if target is None else [target]
        return found

    def class_aware_weights(self, tasks: Sequence[str], priority: str | None) -> np.ndarray | None:
        """Weigh items by the rarity of their classes (`item_weights`); None where the index counts no class of the tasks.

        Args:
            tasks: Tasks that are trained.
            priority: Class that is to weigh most.
        """
        presence = self.class_presence(tasks)
        if not any(presence):
            log.warning(
                f"data.loader.sampler=class_aware has no effect: no class of {', '.join(tasks)} is counted before images are "
                "read. Samples are shuffled."
            )
            return None
        known = {*self.family.known_classes(), *self._counted_names(self.family.specs())}
        if priority in known - self._counted_names({task: self.specs[task] for task in tasks}):
            # A suite may name it for all its tasks; a single-task twin or a stage without it has nothing to favour.
            log.warning(f"data.loader.priority_class={priority} has no effect: it is no class of {', '.join(tasks)}.")
            priority = None
        return item_weights(presence, priority)

    def class_presence(self, tasks: Sequence[str]) -> list[dict[str, int]]:
        """Count classes per item: of the image where it is one window, else of the points inside each window.

        Args:
            tasks: Whose classes count; what an image shows of others must not decide how often these tasks see it.
        """
        counted = self._counted_names({task: self.specs[task] for task in tasks})
        return [{name: count for name, count in shown.items() if name in counted} for shown in self._classes_shown()]

    @staticmethod
    def _counted_names(specs: Mapping[str, TaskSpec]) -> set[str]:
        return set().union(*(rules_of(spec).counted_names(spec) for spec in specs.values()))

    def _classes_shown(self) -> list[dict[str, int]]:
        presence = []
        for image_number, number in self.items:
            window = self.windows[image_number][number]
            objects = None if window.count == 1 else self._sample(image_number).objects
            if objects is None:
                presence.append(dict(self.records[image_number].class_counts))
                continue
            points = window.working_to_network(window.original_to_working(objects.points))
            inside = ((points >= 0) & (points < np.asarray(window.size[::-1]))).all(axis=1)
            labels, counts = np.unique(objects.labels[inside], return_counts=True)
            # What else an image shows (tissue) is known of the whole image only.
            found = {n: c for n, c in self.records[image_number].class_counts.items() if n not in self.family.object_classes}
            presence.append(found | {self.family.object_classes[k]: int(n) for k, n in zip(labels, counts, strict=True)})
        return presence

    def raster(self, sample_id: str) -> np.ndarray:
        """Return the whole image [H, W, C] in its working raster, for figures."""
        return self._raster(self._number[sample_id])

    def _with_size(self, record: Record) -> Record:
        if record.size is not None:
            return record
        if self.cache is not None and record.sample_id in self.cache:
            return replace(record, size=self.cache.original_size(record.sample_id))
        return replace(record, size=size_of(self.family, record))

    def _find_contents(self) -> None:
        """Look for the borders of images for which that was not done yet; a cache has done it."""
        if self.preprocessing.crop_border is None:
            return
        missing = [record for record in self.records if record.sample_id not in self._contents]
        if self.cache is not None:
            self._contents.update({record.sample_id: self.cache.content(record.sample_id) for record in missing})
            return
        with ThreadPoolExecutor(min(4, usable_cores())) as pool:
            boxes = pool.map(lambda record: self.preprocessing.content(self.family.read_image(record)), missing)
            self._contents.update({record.sample_id: box for record, box in zip(missing, boxes, strict=True)})

    def _raster(self, image_number: int) -> np.ndarray:
        record = self.records[image_number]
        if self.cache is not None:
            return self.cache.read(record.sample_id, lambda: self._made(record))
        if image_number not in self._rasters:
            self._rasters[image_number] = self._made(record)
            while len(self._rasters) > RASTERS_KEPT:
                self._rasters.popitem(last=False)
        return self._rasters[image_number]

    def _made(self, record: Record) -> np.ndarray:
        """Make the working raster of an image from its file."""
        image = self.family.read_image(record)
        if tuple(image.shape[:2]) != _size(record):
            raise DataError(
                f"Image `{record.path}` is {image.shape[1]} x {image.shape[0]} pixels, but its annotation says "
                f"{_size(record)[1]} x {_size(record)[0]}. Run `mtl data check`."
            )
        return self.preprocessing.working(image, record.pixel_scale, self._contents.get(record.sample_id))

    def _sample(self, image_number: int) -> Sample:
        """Read labels once per process, masks (in the working raster) as long as there is room for them."""
        if image_number not in self._labels:
            sample = self.family.read_labels(self.records[image_number])
            names, classes = self._mask_names(), self._class_masks()
            sample.masks = {
                name: self.preprocessing.geometry.mask_to_working(mask, self.windows[image_number][0], name in classes)
                for name, mask in sample.masks.items()
                if name in names
            }
            needed = sum(mask.nbytes for mask in sample.masks.values())
            if self._mask_bytes + needed > MASK_BYTES_KEPT:
                return sample
            self._mask_bytes += needed
            self._labels[image_number] = sample
        return self._labels[image_number]

    def _mask_names(self) -> set[str]:
        """Names of the masks that active tasks are made from or scored within."""
        return set().union(*(rules_of(self.specs[task]).mask_names(self.specs[task]) for task in self.tasks))

    def _class_masks(self) -> dict[str, int]:
        """Return the value to ignore by name of each mask that holds one class per pixel."""
        specs = [self.specs[task] for task in self.tasks]
        return {name: spec.ignore_index for spec in specs if (name := rules_of(spec).class_mask(spec))}

    def _window_masks(self, sample: Sample, window: Window) -> dict[str, np.ndarray]:
        geometry = self.preprocessing.geometry
        masks = {name: geometry.crop(mask, window, fill=name == REGION) for name, mask in sample.masks.items()}
        if REGION in masks:  # upside down, since what a transform moves into the frame is 0: there is nothing to be found there
            masks[REGION] = (masks[REGION] == 0).astype(np.uint8)
        if masks:
            masks[INSIDE] = geometry.crop(np.ones(window.working_size, np.uint8), window, fill=0)
        return masks

    def _mark_padding(self, masks: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Set what lies outside the image to `ignore_index` where a mask holds one class per pixel."""
        outside = masks.pop(INSIDE, None)
        if outside is None or outside.all():
            return masks
        multiclass = self._class_masks()
        return {
            name: np.where(outside == 0, np.uint8(multiclass[name]), mask) if name in multiclass else mask
            for name, mask in masks.items()
        }


def size_of(family: DataFamily, record: Record) -> tuple[int, int]:
    """Return (height, width) as stored: from the file's header where that is known, else by decoding."""
    try:
        return image_size(Path(record.path))[0]
    except DataError:
        height, width = family.read_image(record).shape[:2]
        return height, width


def _size(record: Record) -> tuple[int, int]:
    assert record.size is not None
    return record.size
