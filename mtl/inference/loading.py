"""From a checkpoint file to something that predicts, without any YAML."""

from __future__ import annotations

from pathlib import Path

from mtl.config.load import build_family
from mtl.inference.predictor import Predictor
from mtl.runs.build import build_study
from mtl.runs.loading import load_model
from mtl.runs.precision import AUTO


def load_predictor(
    checkpoint: str | Path, device: str = "auto", precision: str | int = AUTO, channels_last: str | bool = AUTO
) -> Predictor:
    """Load a checkpoint as a `Predictor`; the precision as in `mtl.runs.precision.usable`."""
    loaded = load_model(checkpoint, device, precision, channels_last)
    family = build_family(loaded.config.data)
    return Predictor(
        loaded.model, device=next(loaded.model.parameters()).device, thresholds=loaded.thresholds,
        pixel_scale=family.pixel_scale_of, microns=family.microns, modalities=family.modalities,
        picture_modality=family.picture_modality,
        study=build_study(loaded.config.study_metrics, family, loaded.model.specs), computation=loaded.computation,
    )  # fmt: skip
