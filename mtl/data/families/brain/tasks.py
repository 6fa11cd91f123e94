"""What brain MRI can be labelled with: regions of a tumour, each inside another, and whether there is one."""

from __future__ import annotations

import numpy as np

from mtl.core.task import TaskSpec

# Labels by task and class, first the one of what a region has beyond the one inside it.
REGIONS = {"whole_tumor": (2, 1, 4), "tumor_core": (1, 4), "enhancing_tumor": (4,)}
MEMBERS = np.asarray([[label in values for label in range(5)] for values in REGIONS.values()], np.uint8)  # [region, label]
TOGETHER = "tumor_regions"
PRESENCE = ("no_tumor", "tumor")


def region_tasks() -> list[TaskSpec]:
    """Return a task for each region, and one for all together, whose masks share a file with the labels of BraTS."""
    alone = [TaskSpec(name, "segmentation", (name,), label=f"mask:{name}", volumetric=True) for name in REGIONS]
    labels = tuple(REGIONS.values())
    together = TaskSpec(
        TOGETHER, "segmentation", tuple(REGIONS), label=f"mask:{TOGETHER}", volumetric=True, labels=labels
    )  # fmt: skip
    return [*alone, together]


def presence_task() -> TaskSpec:
    """Return the task whether an image shows a tumour."""
    return TaskSpec("presence", "classification", PRESENCE, label="class:presence")
