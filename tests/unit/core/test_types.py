"""Batches on their way to a device."""

from __future__ import annotations

import torch

from mtl.core.types import TaskBatch


def test_what_is_labelled_stays_on_the_cpu() -> None:
    targets = {"mask": torch.zeros(2, 1, 4, 4), "cells": [{"points": torch.zeros(3, 2)}, {"points": torch.zeros(0, 2)}]}
    present = {"mask": torch.tensor([True, False]), "cells": torch.tensor([True, True])}
    moved = TaskBatch(torch.zeros(2, 3, 4, 4), targets, present, []).to("meta")
    assert moved.images.is_meta and moved.targets["mask"].is_meta
    assert all(row["points"].is_meta for row in moved.targets["cells"])
    assert moved.present["mask"].tolist() == [True, False] and moved.present["cells"].device.type == "cpu"
