"""The generator as a decoder runs it equals the generator as it is trained."""

from __future__ import annotations

import itertools

import pytest
import torch
from networks import filled, fresh
from torch import Tensor

from semvc.nets import folded
from semvc.nets.folded import FoldedGenerator, FrameInputs, PatchMemory, Settings
from semvc.nets.generator import Conditioning, Generator, Memory

HEIGHT, WIDTH = 32, 48
SETTINGS = Settings(timestep=999, crf=55, spatial_log2=1, temporal_log2=2, phase=0.25)


def values(seed: int, channels: int = 3, scale: int = 1) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand((1, channels, HEIGHT // scale, WIDTH // scale), generator=draw) * 2 - 1


def patches(x: Tensor) -> Tensor:
    return folded.to_patches(x[0].permute(1, 2, 0))


def inputs(seed: int, *, sketch: bool = True, skeleton: bool = True) -> FrameInputs:
    before, held, after = (patches(values(10 * seed + k)) for k in range(3))
    maps = [values(10 * seed + k, 1, 4)[0, 0].abs() for k in (3, 4)]
    return FrameInputs(
        patches(values(5)),
        (before, held, after),
        maps[0] if sketch else None,
        maps[1] if skeleton else None,
    )


def plain(
    network: Generator, given: FrameInputs, settings: Settings, memory: Memory | None
) -> tuple[Tensor, Memory]:
    """The same by the network itself: the frame [1, 3, H, W] and the memory."""

    def planes(x: Tensor) -> Tensor:
        return folded.from_patches(x).permute(2, 0, 1)[None]

    def scalar(value: float) -> Tensor:
        return torch.tensor([value], dtype=torch.float32)

    conditioning = Conditioning(
        torch.cat([planes(b) for b in given.base], 1),
        None if given.sketch is None else given.sketch[None, None],
        None if given.skeleton is None else given.skeleton[None, None],
        *(scalar(v) for v in (settings.crf, settings.spatial_log2)),
        *(scalar(v) for v in (settings.temporal_log2, settings.phase)),
    )
    return network(planes(given.noise), torch.tensor([settings.timestep]), conditioning, memory)


def assert_alike(
    made: tuple[Tensor, PatchMemory], given: FrameInputs, frame: Tensor, memory: Memory
) -> None:
    residual, kept = made
    assert torch.allclose(residual + given.base[1], patches(frame), atol=1e-4)
    assert torch.allclose(kept.frame, patches(memory.frame), atol=1e-4)
    assert torch.allclose(kept.features, memory.features, atol=1e-4)


def test_patches_are_cells_of_the_picture() -> None:
    picture = torch.arange(8 * 12 * 3).reshape(8, 12, 3)
    found = folded.to_patches(picture)
    assert found.shape == (2, 3, 48)
    assert torch.equal(found[1, 2], picture[4:, 8:].flatten())


def test_patches_give_the_picture_back() -> None:
    picture = torch.arange(8 * 12 * 3).reshape(8, 12, 3)
    assert torch.equal(folded.from_patches(folded.to_patches(picture)), picture)


@pytest.mark.parametrize(("sketch", "skeleton"), list(itertools.product([True, False], repeat=2)))
def test_folded_frames_equal_unfolded_ones(sketch: bool, skeleton: bool) -> None:
    network = filled()
    runner = FoldedGenerator(network)
    kept: PatchMemory | None = None
    memory: Memory | None = None
    for t in range(3):
        given = inputs(t, sketch=sketch, skeleton=skeleton)
        made = runner(given, SETTINGS, kept)
        frame, memory = plain(network, given, SETTINGS, memory)
        assert_alike(made, given, frame, memory)
        kept = made[1]


@pytest.mark.parametrize("name", Settings.__slots__)
def test_another_setting_is_folded_anew(name: str) -> None:
    network, given = filled(), inputs(1)
    runner = FoldedGenerator(network)
    numbers = {n: getattr(SETTINGS, n) for n in Settings.__slots__}
    other = Settings(**numbers | {name: numbers[name] / 2 if name != "timestep" else 300})
    pictures = []
    for settings in (SETTINGS, other, SETTINGS):
        made = runner(given, settings, None)
        assert_alike(made, given, *plain(network, given, settings, None))
        pictures.append(made[0])
    assert torch.equal(pictures[0], pictures[2])
    assert not torch.equal(pictures[0], pictures[1])


def test_more_settings_than_are_kept_still_come_out_right() -> None:
    network, given = filled(), inputs(1)
    runner = FoldedGenerator(network)
    first = runner(given, SETTINGS, None)[0]
    for crf in range(folded._KEPT + 2):
        runner(given, Settings(999, crf, 0, 0, 0), None)
    assert len(runner._folded) <= folded._KEPT
    assert torch.equal(runner(given, SETTINGS, None)[0], first)


def test_conditions_that_come_and_go_leave_nothing_behind() -> None:
    network = filled()
    runner = FoldedGenerator(network)
    memory = runner(inputs(1), SETTINGS, None)[1]
    runner(inputs(2), SETTINGS, memory)
    given = inputs(3, sketch=False, skeleton=False)
    assert_alike(runner(given, SETTINGS, None), given, *plain(network, given, SETTINGS, None))


def test_a_frame_of_another_size_is_made_right() -> None:
    network = filled()
    runner = FoldedGenerator(network)
    runner(inputs(1), SETTINGS, None)
    small = FrameInputs(
        patches(values(5)[..., :16, :32]),
        (*(patches(values(k)[..., :16, :32]) for k in range(3)),),
        None,
        None,
    )
    assert_alike(runner(small, SETTINGS, None), small, *plain(network, small, SETTINGS, None))


def test_the_given_network_is_left_as_it_was() -> None:
    network = filled()
    before = {n: p.clone() for n, p in network.named_parameters()}
    FoldedGenerator(network)(inputs(1), SETTINGS, None)
    assert all(torch.equal(p, before[n]) for n, p in network.named_parameters())


def test_a_network_in_training_can_be_folded() -> None:
    network = filled().requires_grad_(True)
    residual, _ = FoldedGenerator(network)(inputs(1), SETTINGS, None)
    assert not residual.requires_grad


def test_folding_in_bfloat16_stays_close_to_float32() -> None:
    given = inputs(1)
    exact = FoldedGenerator(filled())(given, SETTINGS, None)[0]
    rough = FrameInputs(
        given.noise.bfloat16(),
        (*(b.bfloat16() for b in given.base),),
        *(m.bfloat16() for m in (given.sketch, given.skeleton)),
    )
    found = FoldedGenerator(filled().bfloat16())(rough, SETTINGS, None)[0]
    assert float((found - exact).abs().mean()) < 0.02 * float(exact.abs().mean()) + 0.005


def test_an_untrained_network_adds_nothing() -> None:
    residual, _ = FoldedGenerator(fresh())(inputs(1), SETTINGS, None)
    assert not residual.any()
