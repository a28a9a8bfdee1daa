"""Shared by all tests: no network, small known videos and streams."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from program import Call, call
from scene import Scene, Sound, beeps, write_video

from semvc.encoder import EncodeJob, encode
from semvc.types import EncodeOptions

settings.register_profile("semvc", deadline=None)  # a busy machine is not a failure
settings.load_profile("semvc")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a test tried to open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Call:
    """Run one command inside this process, as `run("info", path)`."""
    return lambda *words: call(capfd, *words)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with one tiny model; do not change it."""
    from modelfolder import write_models  # torch: only for those who need it

    return write_models(tmp_path_factory.mktemp("models"))


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


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MP4 of one second: 24 frames of 64 x 48, and beeps every half a second."""
    frames = Scene(64, 48, 24).render()[0]
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return write_video(path, frames, sound=Sound(beeps(1.0)))


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MP4 of five seconds with a cut at every second, and beeps every half a second."""
    shots = [Scene(64, 48, 24, seed=seed).render()[0] for seed in (0, 5)]
    frames = np.concatenate((shots[0], shots[1], shots[0], shots[1], shots[0]))
    path = tmp_path_factory.mktemp("scenes") / "scenes.mp4"
    return write_video(path, frames, sound=Sound(beeps(5.0)))


@pytest.fixture(scope="session")
def stream(clip: Path) -> Path:
    """`clip` as a stream of one segment; do not change it."""
    path = clip.with_suffix(".svc")
    encode(clip, path, EncodeOptions(preset=12), job=EncodeJob(deterministic=True))
    return path


@pytest.fixture(scope="session")
def long_stream(scenes: Path) -> Path:
    """`scenes` as a stream of five segments; do not change it."""
    path = scenes.with_suffix(".svc")
    encode(scenes, path, EncodeOptions(preset=12), job=EncodeJob(deterministic=True))
    return path


@pytest.fixture(scope="session")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip that takes a second or more to encode or decode."""
    shots = [Scene(320, 240, 8, seed=seed).render()[0].repeat(3, axis=0) for seed in (0, 5)]
    path = tmp_path_factory.mktemp("larger") / "a.mp4"
    return write_video(path, np.concatenate(shots * 3))


@pytest.fixture(scope="session")
def larger_stream(larger: Path) -> Path:
    """`larger` as a stream of segments of a second; do not change it."""
    path = larger.with_suffix(".svc")
    encode(larger, path, EncodeOptions(preset=12, segment_seconds=1.0))
    return path
