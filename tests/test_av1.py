"""The AV1 base layer: closed segments, exact decoding, and nothing hostile gets through."""

from __future__ import annotations

import os
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semvc.errors import BitstreamError, LimitError, SemvcError
from semvc.media import av1, color, obu
from semvc.signals.baselayer import BaseLayer, decode_base_layer, encode_base_layer, rounded_crf

SIZE = (48, 32)


@pytest.fixture(scope="module")
def small(frames: Any) -> Any:
    return color.resize(frames[:12], SIZE[1], SIZE[0])


@pytest.fixture(scope="module")
def segment(small: Any) -> tuple[bytes, bytes]:
    return av1.encode_segment(small, crf=40, preset=8)


def test_a_segment_comes_back_close_to_what_it_was(small: Any, segment: Any) -> None:
    planes = av1.decode_segment(*segment, SIZE, 12)
    assert [p.shape for p in planes] == [(12, 32, 48), (12, 16, 24), (12, 16, 24)]
    assert [p.dtype for p in planes] == [np.uint16] * 3
    error = color.yuv420_to_rgb(planes).astype(float) - small
    assert 10 * np.log10(65025 / np.mean(error**2)) > 24


def test_the_same_frames_give_the_same_bytes(small: Any, segment: Any) -> None:
    assert av1.encode_segment(small, crf=40, preset=8) == segment


def test_segments_of_one_stream_share_their_sequence_header(small: Any, segment: Any) -> None:
    others = [av1.encode_segment(small[::-1], crf=63, preset=8)[0]]
    others += [av1.encode_segment(small[:count], crf=20, preset=8)[0] for count in (1, 5)]
    assert set(others) == {segment[0]}


def test_obus_hold_coded_frames_only_and_no_size_is_missing(segment: Any) -> None:
    header, obus = segment
    kinds = [kind for kind, _ in obu.split_obus(obus)]
    assert set(kinds) <= set(obu.CODED)
    assert b"".join(whole for _, whole in obu.split_obus(obus)) == obus
    assert [kind for kind, _ in obu.split_obus(header)] == [obu.SEQUENCE_HEADER]


@pytest.mark.parametrize(("w", "h"), [(16, 16), (17, 23), (33, 16), (8, 5), (2, 2), (1, 40)])
def test_small_and_odd_sizes_work(frames: Any, w: int, h: int) -> None:
    pictures = color.resize(frames[:3], h, w)
    planes = av1.decode_segment(*av1.encode_segment(pictures, crf=20, preset=8), (w, h), 3)
    assert planes[0].shape == (3, h, w)
    assert planes[1].shape == (3, (h + 1) // 2, (w + 1) // 2)
    assert np.abs(color.yuv420_to_rgb(planes).astype(float) - pictures).mean() < 12


def test_the_child_process_decodes_what_this_process_decodes(segment: Any) -> None:
    here = av1.decode_segment(*segment, SIZE, 12, isolate=False)
    with av1.SegmentDecoder() as decoder:
        for _ in range(3):
            there = decoder.decode(*segment, SIZE, 12)
            assert all((a == b).all() for a, b in zip(here, there, strict=True))


@pytest.mark.parametrize("isolate", [True, False])
@pytest.mark.parametrize("count", [11, 13])
def test_another_number_of_frames_is_an_error(segment: Any, count: int, isolate: bool) -> None:
    with pytest.raises(BitstreamError, match="frames"):
        av1.decode_segment(*segment, SIZE, count, isolate=isolate)


def test_another_size_is_an_error_before_decoding(segment: Any) -> None:
    with pytest.raises(BitstreamError, match="sequence header"):
        av1.decode_segment(*segment, (46, 32), 12)


def test_a_larger_picture_behind_a_small_header_is_refused(frames: Any, segment: Any) -> None:
    large = av1.encode_segment(color.resize(frames[:12], 320, 480), crf=60, preset=12)
    with pytest.raises(BitstreamError):
        av1.decode_segment(segment[0], large[0] + large[1], SIZE, 12)
    with pytest.raises(BitstreamError):
        av1.decode_segment(large[0], large[1], SIZE, 12)


def test_a_flood_of_repeated_frames_is_refused(segment: Any) -> None:
    shown = bytes([obu.FRAME_HEADER << 3 | 2, 1, 0x80])  # show_existing_frame
    with pytest.raises(LimitError, match="coded frames"):
        av1.decode_segment(segment[0], segment[1] + shown * 100_000, SIZE, 12)
    with pytest.raises(BitstreamError):
        av1.decode_segment(segment[0], segment[1] + shown * 8, SIZE, 12)


def test_a_segment_that_would_fill_memory_is_refused(segment: Any) -> None:
    with pytest.raises(LimitError, match="too much"):
        av1.decode_segment(*segment, (4096, 2304), 1024)


@pytest.mark.parametrize("bit", [0, 1, 3, 4, 5, 6, 7])
def test_a_sequence_header_with_other_features_is_refused(segment: Any, bit: int) -> None:
    header = bytearray(segment[0])
    header[2] ^= 0x80 >> bit
    with pytest.raises(BitstreamError):
        av1.decode_segment(bytes(header), segment[1], SIZE, 12)


def test_film_grain_is_refused(segment: Any) -> None:
    header = bytearray(segment[0])
    grain = header[-1] & -header[-1]  # the trailing one bit; film grain is the bit before it
    header[-1] |= grain << 1
    if grain == 0x80:
        header[-2] |= 1
    with pytest.raises(BitstreamError, match="sequence header"):
        obu.check_sequence_header(bytes(header), *SIZE)


@pytest.mark.parametrize("kind", [1, 2, 5, 15])
def test_obus_that_do_not_belong_in_a_segment_are_refused(segment: Any, kind: int) -> None:
    with pytest.raises(BitstreamError, match="OBU type"):
        av1.decode_segment(segment[0], segment[1] + bytes([kind << 3 | 2, 0]), SIZE, 12)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_raises_an_error_or_gives_frames_and_never_hangs(data: Any) -> None:
    header, obus = _cached()
    changed = bytearray(obus)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(obus) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(obus)))
    for stream in (bytes(changed), bytes(changed[:cut])):
        start = time.monotonic()
        try:
            planes = DECODER.decode(header, stream, SIZE, 12)
            assert planes[0].shape == (12, 32, 48)
        except SemvcError:
            pass
        assert time.monotonic() - start < 10


DECODER = av1.SegmentDecoder()
_SEGMENT: list[tuple[bytes, bytes]] = []


def _cached() -> tuple[bytes, bytes]:
    if not _SEGMENT:
        ramp = np.add.outer(np.arange(12) * 5, np.arange(48) * 3).astype(np.uint8)
        pictures = np.broadcast_to(ramp[:, None, :, None], (12, 32, 48, 3))
        _SEGMENT.append(av1.encode_segment(np.ascontiguousarray(pictures), crf=40, preset=10))
    return _SEGMENT[0]


@pytest.fixture(scope="module", autouse=True)
def _end_child() -> Any:
    yield
    DECODER.close()


def test_a_child_that_dies_is_replaced(segment: Any) -> None:
    with av1.SegmentDecoder() as decoder:
        decoder.decode(*segment, SIZE, 12)
        child = decoder._child
        assert child is not None
        child.kill()
        child.wait()
        assert len(decoder.decode(*segment, SIZE, 12)[0]) == 12


def test_a_child_killed_at_work_is_a_clear_error(
    segment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = av1._exchange

    def kill_first(child: Any, *rest: Any) -> None:
        child.kill()
        child.wait()
        real(child, *rest)

    monkeypatch.setattr(av1, "_exchange", kill_first)
    with av1.SegmentDecoder() as decoder, pytest.raises(LimitError, match="stopped"):
        decoder.decode(*segment, SIZE, 12)


def test_a_stalled_child_is_killed_in_time(segment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av1, "_DEADLINE", -9.0)
    with av1.SegmentDecoder() as decoder, pytest.raises(LimitError, match="stopped"):
        decoder.decode(*segment, SIZE, 12)
        assert decoder._child is not None
        decoder._child.send_signal(19)  # SIGSTOP
        decoder.decode(*segment, SIZE, 12)


def test_a_child_out_of_memory_is_a_clear_error(
    frames: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = av1.encode_segment(color.resize(frames[:2], 640, 960), crf=60, preset=12)
    monkeypatch.setattr(av1, "_CHILD_BYTES", 1 << 20)
    monkeypatch.setattr(av1, "_CHILD_BYTES_PER_SAMPLE", 1)
    with pytest.raises((LimitError, BitstreamError)):
        av1.decode_segment(*large, (960, 640), 2)


def test_settings_out_of_range_are_refused(small: Any) -> None:
    for crf in (0, 71):
        with pytest.raises(ValueError, match="crf"):
            av1.encode_segment(small, crf=crf)


@given(st.sampled_from((1, 2, 4, 8)), st.floats(1, 70), st.booleans())
def test_a_base_layer_round_trips_and_is_canonical(temporal: int, crf: float, own: bool) -> None:
    header, obus = _cached()
    layer = BaseLayer(temporal, rounded_crf(crf), header, obus)
    shared = bytes(12) if own else header
    payload, check = encode_base_layer(layer, shared, 5)
    assert len(payload) == 1 + len(obus) + own * len(header)
    assert decode_base_layer(payload, shared, 5) == (layer, check)


def test_a_base_layer_that_repeats_the_shared_header_is_refused() -> None:
    header, obus = _cached()
    payload = encode_base_layer(BaseLayer(1, 40, header, obus), bytes(12))[0]
    with pytest.raises(BitstreamError, match="stream states"):
        decode_base_layer(payload, header)
    for bad in (b"", b"\x00", b"\x00" + header, payload + b"\x12\x00", payload[:-1]):
        with pytest.raises(BitstreamError):
            decode_base_layer(bad, bytes(12))


def test_a_temporal_factor_tells_how_many_frames_are_coded() -> None:
    layer = BaseLayer(4, 40, b"", b"")
    assert [layer.coded_frames(n) for n in (1, 4, 5, 8, 9)] == [1, 1, 2, 2, 3]


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(os, "geteuid") or os.geteuid() != 0,
    reason="only root can be given real-time priority",
)
def test_encoding_leaves_threads_at_ordinary_priority() -> None:
    av1.encode_segment(np.zeros((2, 64, 64, 3), np.uint8), crf=60, preset=10, fps=Fraction(24))
    tasks = Path("/proc/self/task").iterdir()
    policies = {os.sched_getscheduler(int(task.name)) for task in tasks}
    assert policies == {os.SCHED_OTHER}
