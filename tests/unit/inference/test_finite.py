"""What is not finite is refused by the name of the image, before it becomes an empty answer."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mtl.imaging.geometry import Geometry
from mtl.inference.finite import NotFiniteError, check_finite
from mtl.inference.predictor import Predictor

BAD = [float("nan"), float("inf"), -float("inf")]
GEOMETRY = Geometry(mode="stretch", size=(256, 320))


@pytest.mark.parametrize("bad", BAD)
def test_raw_outputs_are_looked_at_wherever_they_are(bad: float) -> None:
    maps = [torch.zeros(3, 2, 4, 4), torch.zeros(3, 2, 2, 2)]
    outputs = {"grade": {"logits": torch.zeros(3, 2)}, "detection": {"levels": maps, "sizes": (4, 4), "empty": torch.zeros(0)}}
    names = ["a", "b", "c"]
    check_finite(outputs, [{}] * 3, names)
    maps[1][2, 0, 1, 1] = bad
    with pytest.raises(NotFiniteError, match=r"^c: what the network says for detection is not finite"):
        check_finite(outputs, [{}] * 3, names)


@pytest.mark.parametrize("bad", BAD)
def test_decoded_numbers_are_looked_at_too(bad: float) -> None:
    decoded = [{"roi": {"probabilities": np.array([[0.5, 0.5]]), "labels": np.array([1])}} for _ in range(2)]
    check_finite({}, decoded, ["a", "b"])
    decoded[1]["roi"]["probabilities"][0, 1] = bad
    with pytest.raises(NotFiniteError, match=r"^b: what the network says for roi"):
        check_finite({}, decoded, ["a", "b"])


def test_a_prediction_that_is_not_finite_names_its_image(make_model, field, tmp_path: Path) -> None:
    image, *_ = field
    paths = [tmp_path / "one.png", tmp_path / "two.png"]
    for number, path in enumerate(paths):
        cv2.imwrite(str(path), image * (1 - number))
    model = make_model(GEOMETRY)
    whole = type(model).forward

    def forward(images: torch.Tensor) -> dict[str, torch.Tensor]:
        spoiled = images.clone()
        spoiled[spoiled.flatten(1).amax(1) < 0.5] = float("nan")  # the black picture
        return whole(model, spoiled)

    predictor = Predictor(model, device="cpu", batch_size=2)
    assert len(list(predictor.predict_paths(paths))) == 2
    model.forward = forward
    with pytest.raises(NotFiniteError, match=f"^{paths[1]}: what the network says for \\w+ is not finite"):
        list(predictor.predict_paths(paths))
    with pytest.raises(NotFiniteError, match=r"^image 0: "):
        predictor.predict(image * 0)
