"""Training data made of footage: shards, moving photographs, drawn people."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scene import Scene, write_video

from semvc.errors import UsageError
from semvc.train import figures, motion, prepare
from semvc.train.data import FIELDS, Cache
from semvc.train.prepare import LENGTH, SIDE, Footage, Settings

ARRIVALS = LENGTH + 2
QUICK = Settings(samples=3, preset=10)

SHAPES = {
    "source": (LENGTH, SIDE, SIDE, 3),
    "arrivals": (ARRIVALS, SIDE, SIDE, 3),
    "sketch": (LENGTH, SIDE // 4, SIDE // 4),
    "skeleton": (LENGTH, SIDE // 4, SIDE // 4),
    "held": (LENGTH, 3),
    "phase": (LENGTH,),
    "settings": (3,),
    "figure": (),
}


@pytest.fixture(scope="module")
def footage() -> list[Footage]:
    """A shot of a room, and the same with people drawn on it."""
    frames = Scene(width=208, height=176, frames=8).render()[0]
    people, points = figures.draw(frames, np.random.default_rng(3))
    return [Footage("room", frames, None), Footage("people", people, points)]


@pytest.fixture(scope="module")
def cache(footage: list[Footage], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    assert prepare.prepare(iter(footage), folder, QUICK) == 6
    return folder


def shard(cache: Path, number: int) -> dict[str, np.ndarray]:
    return {n: np.load(cache / f"{number:05d}" / f"{n}.npy") for n in FIELDS}


@pytest.mark.parametrize("name", FIELDS)
def test_a_shard_has_the_declared_arrays(cache: Path, name: str) -> None:
    found = shard(cache, 0)[name]
    assert found.shape == (3, *SHAPES[name])
    assert found.dtype == (np.float32 if name in ("phase", "settings") else np.uint8)


def test_the_trainer_can_read_what_was_prepared(cache: Path) -> None:
    batch = Cache([cache]).batch(2, unroll=2, crop=64, key=(1, 2))
    assert batch.true[0].shape == (2, 3, 64, 64)


def test_samples_are_crops_of_the_footage(cache: Path, footage: list[Footage]) -> None:
    frames = footage[0].frames
    for source in shard(cache, 0)["source"]:
        places = [
            (t, y, x)
            for t in range(8 - LENGTH + 1)
            for y in range(0, 176 - SIDE + 1, 8)
            for x in range(0, 208 - SIDE + 1, 8)
            if np.array_equal(frames[t : t + LENGTH, y : y + SIDE, x : x + SIDE], source)
        ]
        assert len(places) == 1


def test_received_frames_resemble_the_source(cache: Path) -> None:
    for number in range(2):
        found = shard(cache, number)
        for source, arrivals, held in zip(
            found["source"], found["arrivals"], found["held"], strict=True
        ):
            error = np.abs(arrivals[held[:, 1]].astype(int) - source).mean()
            assert error < 25
            assert held.max() < ARRIVALS


def test_skeletons_lie_where_people_were_drawn(cache: Path) -> None:
    room, people = shard(cache, 0), shard(cache, 1)
    assert room["figure"].max() == room["skeleton"].max() == 0
    assert people["figure"].min() == 1
    assert people["skeleton"].max() == 255


def test_sketches_are_binary_and_sparse(cache: Path) -> None:
    sketch = shard(cache, 0)["sketch"]
    assert set(np.unique(sketch)) == {0, 255}
    assert 0.005 < (sketch > 0).mean() < 0.4


def test_a_finished_shard_is_not_made_again(cache: Path, footage: list[Footage]) -> None:
    assert prepare.prepare(iter(footage), cache, QUICK) == 0


def test_preparing_twice_gives_the_same_data(
    cache: Path, footage: list[Footage], tmp_path: Path
) -> None:
    prepare.prepare(iter(footage[:1]), tmp_path, QUICK)
    for name, array in shard(tmp_path, 0).items():
        assert np.array_equal(array, shard(cache, 0)[name]), name


@pytest.mark.parametrize(("frames", "side"), [(LENGTH - 1, SIDE), (LENGTH, SIDE - 1)])
def test_footage_too_short_or_small_is_passed_over(tmp_path: Path, frames: int, side: int) -> None:
    piece = Footage("small", np.zeros((frames, side, SIDE, 3), np.uint8), None)
    assert prepare.prepare(iter([piece]), tmp_path, QUICK) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_a_crop_of_the_upsampled_base_layer_needs_only_its_surroundings(factor: int) -> None:
    rng = np.random.default_rng(5)
    side = 320 // factor
    base = rng.integers(0, 256, (1, side, side, 3), np.uint8)
    big = prepare.color.resize(base, 320, 320)
    for y, x in ((0, 0), (80, 160), (160, 48)):
        found = prepare._upsampled_crop(base, factor, y, x)
        assert np.array_equal(found, big[:, y : y + SIDE, x : x + SIDE])


def test_every_video_of_a_folder_is_read_in_every_round(tmp_path: Path) -> None:
    frames = Scene(frames=8).render()[0]
    write_video(tmp_path / "a.mp4", frames)
    write_video(tmp_path / "b.mkv", frames)
    write_video(tmp_path / "short.mp4", frames[: LENGTH - 1])
    (tmp_path / "notes.txt").write_text("no video")
    found = list(prepare.clips(tmp_path, seed=1, rounds=2))
    assert [piece.name for piece in found] == ["a", "b", "a", "b"]
    assert all(piece.frames.shape == frames.shape for piece in found)


def test_a_photograph_becomes_a_moving_crop(tmp_path: Path) -> None:
    picture = Scene(width=480, height=360, frames=1).render()[0]
    options = {"codec": "mjpeg", "pixels": "yuvj420p", "container": "image2"}
    write_video(tmp_path / "a.jpg", picture, **options)  # type: ignore[arg-type]
    (piece,) = prepare.photos(tmp_path, seed=1)
    assert piece.frames.shape == (20, 320, 448, 3)
    assert not np.array_equal(piece.frames[0], piece.frames[-1])
    assert np.abs(piece.frames[0].astype(int) - piece.frames[1]).mean() < 20


def test_drawn_people_leave_the_given_frames_as_they_were() -> None:
    frames = np.full((3, 64, 96, 3), 128, np.uint8)
    drawn, points = figures.draw(frames, np.random.default_rng(1))
    assert (frames == 128).all()
    assert (drawn != 128).any()
    assert points.shape[0] == 3
    assert points.shape[2:] == (17, 2)


def test_drawn_people_stand_on_their_points() -> None:
    frames = np.full((1, 128, 128, 3), 128, np.uint8)
    drawn, points = figures.draw(frames, np.random.default_rng(2))
    changed = (drawn[0] != 128).any(2)
    for x, y in points[0].reshape(-1, 2) * 128:
        if 0 <= x < 128 and 0 <= y < 128:
            assert changed[max(0, int(y) - 3) : int(y) + 4, max(0, int(x) - 3) : int(x) + 4].any()


# Longer samples, folders, motion


def test_samples_have_the_length_asked_for(footage: list[Footage], tmp_path: Path) -> None:
    settings = Settings(samples=2, length=8, preset=10)
    assert prepare.prepare(iter(footage[:1]), tmp_path, settings) == 2
    found = shard(tmp_path, 0)
    assert found["source"].shape == (2, 8, SIDE, SIDE, 3)
    assert found["arrivals"].shape[1] == 10
    assert len(Cache([tmp_path]).batch(1, unroll=8, crop=32, key=(1, 0)).true) == 8


@pytest.mark.parametrize("given", [{"samples": 0}, {"length": 1}, {"length": 41}])
def test_settings_out_of_range_are_refused(given: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        Settings(**given)


def test_a_folder_is_filled_shot_by_shot(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        scene = Scene(width=208, height=176, frames=8).render()[0]
        write_video(tmp_path / "in" / f"{name}.mp4", scene)
    seen: list[tuple[int, int]] = []
    count = prepare.fill(
        tmp_path / "in",
        tmp_path / "out",
        "clips",
        Settings(samples=1, preset=12),
        on_shots=lambda done, total: seen.append((done, total)),
    )
    assert count == 2
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.parametrize("kind", ["clips", "photos"])
def test_a_folder_without_footage_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(UsageError, match=f"holds no {kind}"):
        prepare.fill(tmp_path, tmp_path / "out", kind, QUICK)


def photograph() -> np.ndarray:
    return Scene(width=480, height=360, frames=1).render()[0][0]


def moved(seed: int, frames: int = 6) -> np.ndarray:
    random = np.random.default_rng(seed)
    return motion.move(photograph(), random, frames=frames, height=64, width=96)


def test_motion_depends_on_the_seed_alone() -> None:
    assert np.array_equal(moved(1), moved(1))
    assert not np.array_equal(moved(1), moved(2))


def shift(a: np.ndarray, b: np.ndarray) -> tuple[int, int]:
    """By how many samples (down, right) `b` is shifted against `a`, by phase correlation."""
    spectrum = np.fft.fft2(a - a.mean()) * np.conj(np.fft.fft2(b - b.mean()))
    peak = np.fft.ifft2(spectrum / (np.abs(spectrum) + 1e-9)).real.argmax()
    y, x = divmod(int(peak), a.shape[1])
    return (y + 32) % 64 - 32, (x + 48) % 96 - 48


def test_parts_of_a_moving_photograph_move_at_different_speeds() -> None:
    noise = np.random.default_rng(3).integers(0, 256, (96, 144, 3), np.uint8)
    big = noise.repeat(4, 0).repeat(4, 1)
    spread = []
    for seed in range(8):
        frames = motion.move(
            big, np.random.default_rng(seed), frames=8, height=128, width=192
        ).mean(3)
        corners = [
            shift(frames[0, y : y + 64, x : x + 96], frames[7, y : y + 64, x : x + 96])
            for y in (0, 64)
            for x in (0, 96)
        ]
        spread.append(float(np.ptp(np.array(corners), axis=0).max()))
    assert np.median(spread) >= 2


def test_a_near_layer_covers_and_uncovers_what_is_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(motion, "_pick_layers", lambda _: 2)
    with_layers = moved(4)
    monkeypatch.setattr(motion, "_pick_layers", lambda _: 0)
    assert not np.array_equal(with_layers[-1], moved(4)[-1])


def test_a_cut_joins_two_shots_away_from_their_ends() -> None:
    first, second = (np.full((8, 4, 4, 3), v, np.uint8) for v in (10, 200))
    places = set()
    for seed in range(30):
        values = motion.cut(first, second, np.random.default_rng(seed))[:, 0, 0, 0]
        assert sorted(values) == values.tolist()
        places.add(int((values == 10).sum()))
    assert places == {2, 3, 4, 5, 6}
