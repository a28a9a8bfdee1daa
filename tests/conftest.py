"""Shared by all tests: no network, a small known video."""

from __future__ import annotations

import socket
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from scene import Scene

settings.register_profile("semvc", deadline=None)  # a busy machine is not a failure
settings.load_profile("semvc")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a test tried to open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="session")
def frames() -> Any:
    """24 frames of 96 x 64, uint8 [T, H, W, 3]; do not change them."""
    rendered = Scene().render()[0]
    rendered.flags.writeable = False
    return rendered


@pytest.fixture(scope="session")
def rng() -> np.random.Generator:
    """Numbers for noise, the same in every run of one test alone."""
    return np.random.default_rng(7)
