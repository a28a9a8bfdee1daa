"""Running a generator over a segment."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from networks import filled, fresh

from semvc.bitstream.container import Segment
from semvc.bitstream.headers import ProfileId, StreamHeader
from semvc.errors import ResourceError
from semvc.media import color
from semvc.nets import conditioning, noise, schedule
from semvc.nets.conditioning import SegmentConditions
from semvc.nets.generator import Conditioning, Generator
from semvc.nets.grain import GrainSynthesizer
from semvc.nets.restore import Restorer
from semvc.profiles import disco
from semvc.signals.baselayer import BaseLayer
from semvc.signals.grain import Grain


def picture(
    width: int = 48, height: int = 32, frames: int = 4, *, factor: int = 1, step: int = 1
) -> SegmentConditions:
    """A segment with random received frames."""
    columns, rows = conditioning.base_size(width, height, factor)
    count = conditioning.arrivals(frames, step)
    base = np.random.default_rng(3).integers(0, 256, (count, rows, columns, 3), np.uint8)
    return SegmentConditions(width, height, frames, base, factor, step, crf=50.0)


def restored(
    network: Generator, given: SegmentConditions, *, segment: int = 0, seed: int = 7, steps: int = 1
) -> np.ndarray:
    restorer = Restorer(
        network, device=torch.device("cpu"), dtype=torch.float32, steps=steps, seed=seed
    )
    return np.stack(list(restorer.frames(given, segment)))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (2, 3), (16, 16), (53, 37), (97, 31)])
@pytest.mark.parametrize("factor", [1, 2, 8])
def test_odd_sizes_give_exact_shapes(width: int, height: int, factor: int) -> None:
    made = restored(filled(), picture(width, height, 2, factor=factor))
    assert made.shape == (2, height, width, 3)
    assert made.dtype == np.uint8


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_an_untrained_restorer_returns_the_upsampled_held_frames(factor: int) -> None:
    given = picture(45, 35, 5, factor=factor, step=2)
    received = conditioning.Upsampler(given)
    big = np.stack([received(k) for k in range(3)])
    assert np.array_equal(restored(fresh(), given), big[[0, 0, 1, 1, 2]])


def test_a_restorer_repeats_itself_for_a_seed() -> None:
    assert np.array_equal(restored(filled(), picture()), restored(filled(), picture()))


def test_another_seed_gives_another_picture() -> None:
    a, b = (restored(filled(), picture(), seed=seed) for seed in (7, 8))
    assert not np.array_equal(a, b)


def test_another_segment_has_other_noise() -> None:
    a, b = (restored(filled(), picture(), segment=segment) for segment in (0, 1))
    assert not np.array_equal(a, b)


def test_a_segment_starts_without_memory_of_the_one_before() -> None:
    cpu = torch.device("cpu")
    restorer = Restorer(filled(), device=cpu, dtype=torch.float32, steps=1, seed=7)
    list(restorer.frames(picture(), 0))
    after = np.stack(list(restorer.frames(picture(), 1)))
    assert np.array_equal(after, restored(filled(), picture(), segment=1))


def test_memory_runs_from_frame_to_frame() -> None:
    given = picture(frames=3)
    still = replace(given, base=np.repeat(given.base[:1], 3, 0))
    made = restored(filled(), still)
    assert not np.array_equal(made[0], made[1])


def test_more_diffusion_steps_change_the_picture_and_run_the_network_more_often() -> None:
    pictures, counts = [], []
    for steps in (1, 3):
        network, calls = filled(), []
        network.down_middle.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        pictures.append(restored(network, picture(), steps=steps))
        counts.append(len(calls))
    assert counts == [4, 12]
    assert not np.array_equal(*pictures)


def test_frames_are_made_when_asked_for() -> None:
    network, calls = filled(), []
    network.down_middle.register_forward_hook(lambda *_: calls.append(1))
    cpu = torch.device("cpu")
    frames = Restorer(network, device=cpu, dtype=torch.float32, steps=1, seed=7).frames(
        picture(), 0
    )
    assert calls == []
    next(frames)
    next(frames)
    assert len(calls) == 2


@pytest.mark.parametrize("steps", [1, 3])
def test_frames_are_those_of_the_generator_as_it_was_trained(steps: int) -> None:
    given, rng, network = picture(45, 35, 5, factor=2, step=2), np.random.default_rng(4), filled()
    sketch = rng.integers(0, 2, (3, 9, 12), np.uint8)
    made = restored(network, replace(given, sketch=sketch, sketch_step=2), steps=steps)
    expected = plainly_restored(network, given, sketch, steps)
    assert np.abs(made.astype(int) - expected).max() <= 1
    assert (made != expected).mean() < 0.01


def plainly_restored(
    network: Generator, given: SegmentConditions, sketch: np.ndarray, steps: int
) -> np.ndarray:
    """The frames of `given`, made by calling the network itself; maps every second frame."""
    columns, rows = 48, 48
    flat = noise.gaussian(3 * rows * columns, seed=7, segment=0, purpose=0)
    start = torch.from_numpy(flat.reshape(1, 3, rows, columns))
    fill, times = conditioning.forward_fill(given.frames, given.step), schedule.timesteps(steps)
    one, alphas = torch.ones(1), schedule.alphas_cumprod()
    out, memory = [], None
    for t in range(given.frames):
        big = [conditioning.enlarged(given.base[int(k)], given) for k in fill[t]]
        big = [np.pad(b, ((0, rows - 35), (0, columns - 45), (0, 0)), "edge") for b in big]
        base = torch.from_numpy(np.concatenate(big, 2)).permute(2, 0, 1)[None] / 127.5 - 1
        drawn = np.zeros((12, 12), np.float32)
        drawn[:9] = conditioning.render_map(sketch[t // 2], 9, 12) / 255
        maps = torch.from_numpy(drawn)[None, None]
        c = Conditioning(base, maps, None, 50 * one, one, one, one * (t % 2 / 2))
        sample, kept = start, memory
        for now, after in zip(times, [*times[1:], None], strict=True):
            clean, kept = network(sample, torch.tensor([now]), c, memory)
            if after is not None:
                sample = schedule.step(clean, sample, now, after, alphas)
        memory = kept
        values = ((kept.frame[0] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        out.append(values.permute(1, 2, 0)[:35, :45].numpy())
    return np.stack(out)


def test_every_signal_reaches_the_picture() -> None:
    given, rng = picture(), np.random.default_rng(4)
    plain = restored(filled(), given)
    sketch = rng.integers(0, 2, (2, 8, 12), np.uint8)
    points = rng.uniform(0, 1, (4, 1, 17, 2)).astype(np.float32)
    drawn = replace(given, sketch=sketch, sketch_step=2)
    posed = replace(given, points=points, visible=np.ones((4, 1, 17), np.uint8))
    assert not np.array_equal(restored(filled(), drawn), plain)
    assert not np.array_equal(restored(filled(), posed), plain)


def test_a_sketch_is_held_until_the_next_one() -> None:
    given, rng = picture(frames=4), np.random.default_rng(4)
    sketch = rng.integers(0, 2, (2, 8, 12), np.uint8)
    held = restored(filled(), replace(given, sketch=sketch, sketch_step=2))
    every = restored(filled(), replace(given, sketch=np.repeat(sketch, 2, 0), sketch_step=1))
    assert np.array_equal(held, every)


def test_bfloat16_stays_close_to_float32() -> None:
    made = [
        np.stack(list(Restorer(n, device=torch.device("cpu"), dtype=d, steps=1, seed=7).frames(
            picture(), 0)))
        for n, d in ((filled(), torch.float32), (filled().bfloat16(), torch.bfloat16))
    ]  # fmt: skip
    assert np.abs(made[0].astype(int) - made[1]).mean() < 4


def test_running_out_of_memory_is_a_resource_error() -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError

    network = filled()
    network.down_middle.register_forward_pre_hook(fail)
    with pytest.raises(ResourceError, match=r"48x32.*--tier preview"):
        restored(network, picture())


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("model", [False, True])
def test_every_received_frame_is_enlarged_once_for_model_and_grain(
    step: int, model: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = picture(45, 35, 7, factor=2, step=step)
    planes = color.rgb_to_yuv420(given.base)
    levels = (12, 9, 8, 7, 6, 5, 4)
    signals = disco.Signals(BaseLayer(step, 50, b"", b""), planes, None, None, None, Grain(levels))
    header = StreamHeader(
        salt=0,
        entropy_id=bytes(8),
        decoder_id=bytes(4),
        width=45,
        height=35,
        frame_rate=Fraction(24),
        segment_frames=7,
        profile=ProfileId.DISCO,
        sections=disco.SECTIONS,
        base_size=given.base.shape[2:0:-1],
    )
    segment = Segment(0, 0, 7, {}, 0, 0, 0)
    given = disco.conditions(signals, segment, header)
    big = [conditioning.enlarged(frame, given) for frame in given.base]
    held = [big[k] for k in conditioning.forward_fill(7, step)[:, 1]]
    made = restored(filled(), given, seed=0) if model else np.stack(held)
    texture = GrainSynthesizer(levels, (45, 35), seed=0)
    wanted = [texture.apply(frame, base) for frame, base in zip(made, held, strict=True)]
    profile = disco.Disco()
    if model:
        profile._restorer = Restorer(
            filled(), device=torch.device("cpu"), dtype=torch.float32, steps=1, seed=0
        )
    seen = []
    real = conditioning.enlarged
    monkeypatch.setattr(conditioning, "enlarged", lambda *a: seen.append(a[0]) or real(*a))
    assert np.array_equal(list(profile.synthesize(signals, segment, header)), wanted)
    assert np.array_equal(seen, given.base)
