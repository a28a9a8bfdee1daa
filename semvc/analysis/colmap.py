"""A camera path from COLMAP: pycolmap (extra `pose`), its global mapper, then the incremental."""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from semvc.analysis.bundle import rotation_of, vector_of
from semvc.analysis.types import Bool, CameraPath, Float64, UInt8
from semvc.errors import UsageError

_ENOUGH = 0.8  # share of the frames that a model must place
_SEED = 0


def find_path(lumas: list[UInt8], movers: Bool | None, threads: int = 2) -> CameraPath | None:
    """Return the path that COLMAP finds in pictures uint8 [h, w], or None if it finds none.

    Features within `movers`, bool [T, h, w], are not looked at. Lengths are in COLMAP's unit.
    Frames between placed ones are interpolated. Raises UsageError if pycolmap is not installed.
    """
    try:
        pycolmap: Any = importlib.import_module("pycolmap")
    except ImportError as error:
        raise UsageError(
            "method pycolmap needs the extra `pose`: pip install semvc[pose]"
        ) from error
    pycolmap.logging.minloglevel = 3  # its notes would land on the user's terminal
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _match(pycolmap, folder, lumas, movers, threads)
        for mapping in (_global, _incremental):
            models = mapping(pycolmap, folder, threads)
            best = max(models.values(), key=lambda m: m.num_reg_images(), default=None)
            if best is not None and best.num_reg_images() >= _ENOUGH * len(lumas):
                height, width = lumas[0].shape
                return _path(best, len(lumas), (width, height))
    return None


def _match(
    pycolmap: Any, folder: Path, lumas: list[UInt8], movers: Bool | None, threads: int
) -> None:
    """Write pictures, find features and match them in order of time."""
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    for t, luma in enumerate(lumas):
        cv2.imwrite(str(folder / "images" / f"{t:05d}.png"), luma)
        if movers is not None:
            still = np.where(movers[t], np.uint8(0), np.uint8(255))
            cv2.imwrite(str(folder / "masks" / f"{t:05d}.png.png"), still)
    reader = pycolmap.ImageReaderOptions()
    reader.camera_model = "SIMPLE_PINHOLE"
    if movers is not None:
        reader.mask_path = folder / "masks"
    extraction = pycolmap.FeatureExtractionOptions()
    extraction.num_threads = threads
    matching = pycolmap.FeatureMatchingOptions()
    matching.num_threads = threads
    pycolmap.set_random_seed(_SEED)
    database = folder / "database.db"
    pycolmap.extract_features(
        database,
        folder / "images",
        camera_mode=pycolmap.CameraMode.SINGLE,
        reader_options=reader,
        extraction_options=extraction,
        device=pycolmap.Device.cpu,
    )
    pycolmap.match_sequential(database, matching_options=matching, device=pycolmap.Device.cpu)


def _global(pycolmap: Any, folder: Path, threads: int) -> dict[int, Any]:
    options = pycolmap.GlobalPipelineOptions()
    options.num_threads = threads
    return _run(pycolmap, pycolmap.global_mapping, folder, options)


def _incremental(pycolmap: Any, folder: Path, threads: int) -> dict[int, Any]:
    options = pycolmap.IncrementalPipelineOptions()
    options.num_threads = threads
    return _run(pycolmap, pycolmap.incremental_mapping, folder, options)


def _run(pycolmap: Any, mapping: Any, folder: Path, options: Any) -> dict[int, Any]:
    """Run a mapper; one that gives up has no models."""
    output = folder / mapping.__name__
    output.mkdir()
    pycolmap.set_random_seed(_SEED)
    try:
        models: dict[int, Any] = mapping(
            folder / "database.db", folder / "images", output, options=options
        )
    except (RuntimeError, ValueError):
        return {}
    return models


def _path(model: Any, frames: int, size: tuple[int, int]) -> CameraPath:
    """The model's poses, relative to the first frame, with gaps filled."""
    width, height = size
    placed: dict[int, Float64] = {}
    for image in model.images.values():
        if image.has_pose:
            placed[int(Path(image.name).stem)] = np.asarray(image.cam_from_world().matrix())
    camera = next(iter(model.cameras.values()))
    focal, cx, cy = (float(p) for p in camera.params[:3])
    keys = np.array(sorted(placed))
    known = np.stack([placed[k] for k in keys])
    rotations, places = np.empty((frames, 3, 3)), np.empty((frames, 3))
    where = -np.einsum("tji,tj->ti", known[:, :, :3], known[:, :, 3])
    for t in range(frames):
        i = int(np.clip(np.searchsorted(keys, t, side="right") - 1, 0, len(keys) - 2))
        share = np.clip((t - keys[i]) / (keys[i + 1] - keys[i]), 0, 1)
        turn = vector_of(known[i + 1, :, :3] @ known[i, :, :3].T)
        rotations[t] = rotation_of(share * turn) @ known[i, :, :3]
        places[t] = where[i] + share * (where[i + 1] - where[i])
    first, origin = rotations[0].copy(), places[0].copy()
    rotations = rotations @ first.T
    translations = -np.einsum("tij,tj->ti", rotations, (places - origin) @ first.T)
    centre = (cx / width, cy / height)
    return CameraPath(rotations, translations, focal / width, centre, method="pycolmap")
