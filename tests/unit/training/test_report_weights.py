"""What the log says of the encoder's weights."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
from torch import nn

from mtl.training.fit import report_weights


@pytest.mark.parametrize(("frozen", "said"), [((), ""), ((0,), "partly frozen"), ((0, 1), "is frozen")])
def test_a_frozen_encoder_of_random_weights_is_reported(
    frozen: tuple[int, ...], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    body = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    for index in frozen:
        body[index].requires_grad_(False)
    with caplog.at_level(logging.WARNING):
        report_weights(SimpleNamespace(encoder=SimpleNamespace(report=None, body=body)))  # type: ignore[arg-type]
    assert said in caplog.text and bool(caplog.text) == bool(frozen)
