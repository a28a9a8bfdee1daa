"""Bundled models give their golden numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from golden import measure

from semvc import weights

REFS = weights.index()
TOLERANCE = 0.6  # code values, mean of a cell: float32 on another processor


def test_there_is_a_bundled_model_for_tier_small() -> None:
    assert weights.for_profile("disco", "small") in REFS


@pytest.mark.parametrize("ref", REFS, ids=lambda ref: ref.id)
def test_a_bundled_model_gives_its_golden_numbers(ref: weights.ModelRef) -> None:
    folder = weights.resolve(ref)
    golden = np.array(json.loads((folder / "golden.json").read_text("utf-8"))["cells"])
    found = np.array(measure(ref))
    assert found.shape == golden.shape
    assert np.abs(found - golden).max() < TOLERANCE
    assert np.abs(found - golden[:, ::-1]).max() > 10 * TOLERANCE  # the comparison can fail
