"""Independent classes of an image."""

from __future__ import annotations

from mtl.core.registry import HEADS
from mtl.heads.classification import ClassifierHead


@HEADS.register("multilabel_classifier")
class MultilabelClassifierHead(ClassifierHead):
    """Mean of the last map, then fully connected layers; every class is a question of its own, and its probability too.

    Args:
        spec: The task.
        channels: Channels of the maps.
        strides: Strides of the maps.
        loss: The loss (a name and its keys).
        hidden: Widths of the hidden layers (with ReLU); an empty list gives a linear classifier.
        dropout: Dropout after every hidden layer; before the linear classifier where there is none.
    """

    kind = "multilabel_classification"
