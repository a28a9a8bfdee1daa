"""Skeletons from and to JSON in COCO's keypoint format, one annotation a frame and person."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from semvc.errors import UsageError
from semvc.signals.skeleton import HIGH, JOINTS, LOW, MAX_PEOPLE, UNITS, Skeleton

Floats = npt.NDArray[np.float64]

_LOST_AFTER = 24  # frames after which a person who comes back is a new one


@dataclass(frozen=True, slots=True)
class Pose:
    """One person in one frame: `track` (negative: made by us), `keypoints` float64 [17, 3].

    Rows are x and y in source pixels, and visibility 0, 1 or 2.
    """

    track: int
    keypoints: Floats


Poses = dict[int, list[Pose]]  # by frame number, from 0


def read_coco(text: str) -> Poses:
    """Poses of a JSON text: a list of annotations, or an object with `annotations`.

    An annotation has `keypoints` (51 numbers) and `image_id`, the frame's number from 0; if the
    object has `images`, frame numbers are their `frame_index`, else their place in order of id.
    `track_id` (or `id_track`) is kept; people without one are followed greedily by distance.
    Raises UsageError for anything else.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the skeleton file is not JSON: {error}") from error
    entries = document.get("annotations") if isinstance(document, dict) else document
    if not isinstance(entries, list):
        raise UsageError("the skeleton file has no list of annotations")
    numbers = _frame_numbers(document)
    poses: Poses = {}
    for place, entry in enumerate(entries):
        frame, track, keypoints = _read_entry(entry, numbers, place)
        if keypoints[:, 2].any():
            poses.setdefault(frame, []).append(Pose(-1 if track is None else track, keypoints))
    return _follow_people(dict(sorted(poses.items())))


def make_skeleton(
    poses: Poses, *, start: int, frames: int, step: int, size: tuple[int, int]
) -> Skeleton | None:
    """Skeleton of frames start, start + step, ... of a segment; None when nobody is there.

    `size` is the frame's (width, height) in pixels. Of more than eight people, those who are
    there longest are kept; positions far outside the frame are clamped.
    """
    chosen = [poses.get(number, []) for number in range(start, start + frames, step)]
    lengths: dict[int, int] = {}
    for people in chosen:
        for pose in people:
            lengths[pose.track] = lengths.get(pose.track, 0) + 1
    if not lengths:
        return None
    longest = sorted(lengths, key=lambda track: -lengths[track])[:MAX_PEOPLE]
    slots = {track: slot for slot, track in enumerate(t for t in lengths if t in longest)}
    shape = (len(chosen), len(slots), JOINTS)
    points, visible = np.zeros((*shape, 2), np.int16), np.zeros(shape, np.uint8)
    present = np.zeros(shape[:2], np.uint8)
    for t, people in enumerate(chosen):
        for pose in people:
            slot = slots.get(pose.track)
            if slot is None or present[t, slot]:
                continue
            known = pose.keypoints[:, 2] > 0
            scaled = pose.keypoints[:, :2] * UNITS / np.array(size, np.float64)
            points[t, slot][known] = np.clip(np.rint(scaled[known]), LOW, HIGH)
            visible[t, slot] = pose.keypoints[:, 2]
            present[t, slot] = 1
    return Skeleton(points, visible, present, step)


def to_coco(skeleton: Skeleton, *, start: int, size: tuple[int, int]) -> dict[str, Any]:
    """COCO object of a segment that starts at frame `start`, positions in pixels of `size`."""
    scale = np.array(size, np.float64) / UNITS
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for t, people in enumerate(skeleton.present):
        frame = start + t * skeleton.step
        images.append({"id": frame, "frame_index": frame, "width": size[0], "height": size[1]})
        for slot in np.flatnonzero(people).tolist():
            where = np.round(skeleton.points[t, slot] * scale, 2)
            flags = skeleton.visible[t, slot]
            keypoints = [
                number
                for (x, y), flag in zip(where.tolist(), flags.tolist(), strict=True)
                for number in (x, y, flag)
            ]
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": frame,
                    "category_id": 1,
                    "track_id": slot,
                    "num_keypoints": int((flags > 0).sum()),
                    "keypoints": keypoints,
                }
            )
    return {"images": images, "annotations": annotations, "categories": [_CATEGORY]}


_CATEGORY = {
    "id": 1,
    "name": "person",
    "keypoints": [
        *("nose", "left_eye", "right_eye", "left_ear", "right_ear"),
        *("left_shoulder", "right_shoulder", "left_elbow", "right_elbow"),
        *("left_wrist", "right_wrist", "left_hip", "right_hip"),
        *("left_knee", "right_knee", "left_ankle", "right_ankle"),
    ],
}


def _frame_numbers(document: Any) -> dict[int, int] | None:
    """Frame number of each image id; None when ids are frame numbers themselves."""
    images = document.get("images") if isinstance(document, dict) else None
    if images is None:
        return None
    try:
        ordered = sorted(images, key=lambda image: _integer(image["id"], "image id"))
        return {
            image["id"]: _integer(image.get("frame_index", place), "frame_index")
            for place, image in enumerate(ordered)
        }
    except (TypeError, KeyError, AttributeError) as error:
        raise UsageError("the skeleton file has images without a number as id") from error


def _read_entry(
    entry: Any, numbers: dict[int, int] | None, place: int
) -> tuple[int, int | None, Floats]:
    """Frame, track and keypoints [17, 3] of one annotation."""
    where = f"annotation {place} of the skeleton file"
    if not isinstance(entry, dict):
        raise UsageError(f"{where} is not an object")
    image = _integer(entry.get("image_id"), f"image_id of {where}")
    if numbers is not None and image not in numbers:
        raise UsageError(f"{where} has an image_id that is not among the images")
    frame = image if numbers is None else numbers[image]
    if frame < 0:
        raise UsageError(f"{where} has a negative frame number")
    track = entry.get("track_id", entry.get("id_track"))
    if track is not None and _integer(track, f"track_id of {where}") < 0:
        raise UsageError(f"{where} has a negative track_id")
    values = entry.get("keypoints")
    if not isinstance(values, list) or len(values) != 3 * JOINTS:
        raise UsageError(f"{where} needs {3 * JOINTS} numbers as keypoints")
    if not all(
        isinstance(value, int | float) and abs(value) < 1e9 and not math.isnan(value)
        for value in values
    ):
        raise UsageError(f"{where} has keypoints that are no positions")
    keypoints = np.array(values, np.float64).reshape(JOINTS, 3)
    if not np.isin(keypoints[:, 2], (0, 1, 2)).all():
        raise UsageError(f"{where} has a visibility other than 0, 1 or 2")
    return frame, track, keypoints


def _integer(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 1 << 53:
        raise UsageError(f"{what} must be an integer, not {value!r:.40}")
    return value


def _follow_people(poses: Poses) -> Poses:
    """Give a negative track to everyone without one: the nearest who was there lately, or new."""
    last: dict[int, tuple[int, Floats]] = {}
    following = -2
    result: Poses = {}
    for frame, people in poses.items():
        last = {key: seen for key, seen in last.items() if frame - seen[0] <= _LOST_AFTER}
        nameless = [k for k, pose in enumerate(people) if pose.track == -1]
        pairs = sorted(
            (_distance(people[k].keypoints, seen[1]), k, track)
            for k in nameless
            for track, seen in last.items()
        )
        taken: dict[int, int] = {}
        for distance, k, track in pairs:
            if distance < 1 and k not in taken and track not in taken.values():
                taken[k] = track
        named = list(people)
        for k in nameless:
            if k not in taken:
                taken[k], following = following, following - 1
            named[k] = Pose(taken[k], people[k].keypoints)
            last[taken[k]] = (frame, people[k].keypoints)
        result[frame] = named
    return result


def _distance(one: Floats, other: Floats) -> float:
    """Mean distance of common keypoints over the larger side of both people; inf if none."""
    common = (one[:, 2] > 0) & (other[:, 2] > 0)
    if not common.any():
        return math.inf
    both = np.concatenate([one[one[:, 2] > 0], other[other[:, 2] > 0]])[:, :2]
    side = max(float(np.ptp(both, axis=0).max()), 1.0)
    apart = np.hypot(*(one[common, :2] - other[common, :2]).T)
    return float(apart.mean()) / (0.5 * side)
