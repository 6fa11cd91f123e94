"""Random choice of the anchors and proposals that a detection loss looks at."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler


class ReproducibleSampler(BalancedPositiveNegativeSampler):
    """torchvision's sampler, but with a choice that repeats when `fixed` is set.

    A validation loss then neither varies between calls nor moves the global random state of the training.
    """

    fixed = False

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Choose positives (label >= 1) and negatives (label 0) per image; returns two lists of uint8 masks."""
        generator = None
        if self.fixed:
            generator = torch.Generator(matched_idxs[0].device).manual_seed(0)
        positives, negatives = [], []
        for labels in matched_idxs:
            positive = self._choose(labels >= 1, int(self.batch_size_per_image * self.positive_fraction), generator)
            negative = self._choose(labels == 0, self.batch_size_per_image - int(positive.sum()), generator)
            positives.append(positive)
            negatives.append(negative)
        return positives, negatives

    @staticmethod
    def _choose(candidates: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
        index = torch.where(candidates)[0]
        chosen = index[torch.randperm(len(index), device=index.device, generator=generator)[:count]]
        mask = torch.zeros_like(candidates, dtype=torch.uint8)
        mask[chosen] = 1
        return mask
