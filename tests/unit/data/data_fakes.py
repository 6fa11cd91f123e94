"""A small data family, so that these tests need no real one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import yaml

from mtl.config.compose import configs_folder
from mtl.config.parts import validate
from mtl.config.schema import DataConfig, SplitConfig
from mtl.config.strict import Strict
from mtl.core.errors import ConfigError, DataError
from mtl.core.family import CheckReport, DataFamily
from mtl.core.task import TaskSpec
from mtl.core.types import Objects, Record, Sample

CLASSES = ("infected", "healthy")
Checked = TypeVar("Checked", bound=Strict)


def disc(x: float, y: float, radius: float, vertices: int = 16) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, vertices, endpoint=False)
    return np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], 1).astype(np.float32)


def make_objects(points: list[tuple[float, float]], radius: float = 6.0, labels: list[int] | None = None) -> Objects:
    return Objects(
        outlines=[disc(x, y, radius) for x, y in points],
        labels=np.asarray(labels if labels is not None else [0] * len(points), np.int64),
        points=np.asarray(points, np.float32).reshape(-1, 2),
        derived=np.zeros(len(points), bool),
    )


class FakeFamily(DataFamily):
    """Discs on a plain ground; sample `sNN` of patient `pN`. Odd samples have neither mask nor grade."""

    object_classes = CLASSES

    def __init__(self, root: Path, patients: int = 6, fields: int = 2, size: tuple[int, int] = (96, 160)) -> None:
        self.root, self.patients, self.fields, self.size = root, patients, fields, size
        self.decoded: list[str] = []

    def generate(self) -> FakeFamily:
        for number in range(self.patients * self.fields):
            image = np.full((*self.size, 3), 200, np.uint8)
            for x, y in self.points(number):
                cv2.circle(image, (round(x - 0.5), round(y - 0.5)), 6, (90, 30, 140), -1)
            image[0, 0] = number
            cv2.imwrite(str(self.root / f"s{number:02d}.png"), image[..., ::-1])
        return self

    def points(self, number: int) -> list[tuple[float, float]]:
        rng = np.random.default_rng(number)
        height, width = self.size
        return [(float(rng.uniform(10, width - 10)), float(rng.uniform(10, height - 10))) for _ in range(number % 4 + 1)]

    def specs(self) -> dict[str, TaskSpec]:
        members = (("infected",), ("healthy",))
        return {
            "detection": TaskSpec("detection", "detection", CLASSES, members=members),
            "heatmap": TaskSpec("heatmap", "heatmap", ("infected",), members=(("infected",),)),
            "cells": TaskSpec("cells", "segmentation", ("cell",), members=(CLASSES,)),
            "tissue": TaskSpec("tissue", "segmentation", ("right", "left"), label="mask:tissue", multilabel=False),
            "grade": TaskSpec("grade", "classification", ("low", "high"), label="class:grade"),
            "load": TaskSpec("load", "regression", ("load",), label="class:load"),
        }

    def locate(self) -> Path:
        return self.root

    def records(self) -> list[Record]:
        records = []
        for number in range(self.patients * self.fields):
            patient = f"p{number // self.fields}"
            count = len(self.points(number))
            records.append(
                Record(
                    sample_id=f"s{number:02d}",
                    group=patient,
                    source="fake",
                    path=str(self.root / f"s{number:02d}.png"),
                    size=self.size if number % 2 else None,
                    stratum=number // self.fields % 2,
                    class_counts={"infected": 1, "healthy": count - 1},
                    groups={"patient": patient, "field": f"f{number % self.fields}"},
                )
            )
        return records

    def read_image(self, record: Record) -> np.ndarray:
        self.decoded.append(record.sample_id)
        image = cv2.imread(record.path)
        if image is None:
            raise DataError(f"Image `{record.path}` cannot be decoded.")
        return np.ascontiguousarray(image[..., ::-1])

    def read_labels(self, record: Record) -> Sample:
        number = int(record.sample_id[1:])
        points = self.points(number)
        objects = make_objects(points, labels=[0] + [1] * (len(points) - 1))
        sample = Sample(np.zeros((0, 0, 3), np.uint8), record.sample_id, record.group, "fake", objects=objects)
        if number % 2 == 0:
            tissue = np.zeros(self.size, np.uint8)
            tissue[:, : self.size[1] // 2] = 1
            sample.masks["tissue"] = tissue
            sample.labels.update(grade=number % 4 // 2, load=number / 10)
        return sample

    def check(self) -> CheckReport:
        return CheckReport()


class Bordered(DataFamily):
    """Grey pictures with a black border left and right; a white mark, its mask, and a point at its middle."""

    object_classes = ("mark",)
    size = (120, 240)
    picture = (50, 0, 200, 120)  # x_min, y_min, x_max, y_max
    mark = (140, 30, 158, 48)

    def specs(self) -> dict[str, TaskSpec]:
        return {
            "mask": TaskSpec("mask", "segmentation", ("mark",), label="mask:mark"),
            "drawn": TaskSpec("drawn", "segmentation", ("mark",), members=(("mark",),)),
            "peak": TaskSpec("peak", "heatmap", ("mark",), members=(("mark",),)),
        }

    def locate(self) -> Path:
        return Path()

    def records(self) -> list[Record]:
        return [Record("b0", "g0", "bordered", "b0.png", size=self.size)]

    def read_image(self, record: Record) -> np.ndarray:
        image = np.zeros((*self.size, 3), np.uint8)
        left, top, right, bottom = self.picture
        image[top:bottom, left:right] = 90
        left, top, right, bottom = self.mark
        image[top:bottom, left:right] = 255
        return image

    def read_labels(self, record: Record) -> Sample:
        left, top, right, bottom = self.mark
        mask = np.zeros(self.size, np.uint8)
        mask[top:bottom, left:right] = 1
        outline = np.asarray([(left, top), (right, top), (right, bottom), (left, bottom)], np.float32)
        middle = outline.mean(axis=0, keepdims=True)
        objects = Objects([outline], np.zeros(1, np.int64), middle, np.zeros(1, bool))
        return Sample(np.zeros((0, 0, 3), np.uint8), "b0", "g0", "bordered", objects, {"mark": mask})

    def check(self) -> CheckReport:
        return CheckReport()


DEFAULT: dict[str, Any] = yaml.safe_load((configs_folder() / "data" / "default.yaml").read_text(encoding="utf-8"))
STILL: dict[str, Any] = {
    **dict.fromkeys(("vertical_flip", "rotate90", "channel_dropout"), 0.0),
    **{
        step: {**DEFAULT["augmentation"][step], "probability": 0.0}
        for step in ("color_jitter", "stain_jitter", "intensity_jitter", "blur", "noise")
    },
}


def checked(model: type[Checked], values: dict[str, Any], where: str) -> Checked:
    """Return a section of the configuration; refuses what the command line would refuse, in the same words."""
    _, problems = validate(model, values, where)
    if problems:
        raise ConfigError(problems)
    return model.model_validate(values)


def split_config(**values: Any) -> SplitConfig:
    return checked(SplitConfig, {**DEFAULT["split"], "seed": 0, **values}, "data.split")


def data_config(**groups: dict[str, Any]) -> DataConfig:
    affine = {**DEFAULT["augmentation"]["affine"], "scale": [1, 1], "translate": 0, "shear": 0, "probability": 1, "rotate": 20}
    defaults: dict[str, Any] = {
        "augmentation": {**DEFAULT["augmentation"], **STILL, "horizontal_flip": 0.5, "affine": affine},
        "split": {**DEFAULT["split"], "scheme": "holdout", "seed": 1},
        "loader": {**DEFAULT["loader"], "batch_size": 4},
        "cache": {"enabled": False, "folder": None},
    }
    sections = {name: {**entry, **groups.get(name, {})} for name, entry in defaults.items()}
    return checked(DataConfig, {**DEFAULT, **sections, "name": "fake"}, "data")
