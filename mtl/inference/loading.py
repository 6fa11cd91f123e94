"""From a checkpoint file to something that predicts, without any YAML."""

from __future__ import annotations

from pathlib import Path

from mtl.config.load import build_family
from mtl.inference.predictor import Predictor
from mtl.runs.build import build_study
from mtl.runs.loading import load_model


def load_predictor(checkpoint: str | Path, device: str = "auto") -> Predictor:
    """Load a checkpoint as a `Predictor`."""
    loaded = load_model(checkpoint, device)
    family = build_family(loaded.config.data)
    return Predictor(
        loaded.model, device=next(loaded.model.parameters()).device, thresholds=loaded.thresholds,
        pixel_scale=family.pixel_scale_of, microns=family.microns, modalities=family.modalities,
        picture_modality=family.picture_modality,
        study=build_study(loaded.config.study_metrics, family, loaded.model.specs),
    )  # fmt: skip
