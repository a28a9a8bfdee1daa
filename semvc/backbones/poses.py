"""People's keypoints by RT-DETR and ViTPose (extra `skeleton`): who is where, then how they stand.

Two local folders as transformers saves them; nothing is fetched. Inputs are built here, because the
library's own processors want torchvision.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from semvc.errors import ModelError

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

_FOUND = 0.5  # score from which a detection is a person
_SEEN = 0.3  # score from which a keypoint is seen
_MOST = 8  # people of a frame, the surest
_SIDE = 640  # luma samples of RT-DETR's pictures
_MARGIN = 1.25  # a person's picture over the box
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


@dataclass(frozen=True, slots=True)
class Person:
    """One person in a frame: box (x, y, width, height) and keypoints float32 [17, 3] in pixels.

    Rows are x, y and the keypoint's score in [0, 1]; `confidence` is the detection's, in [0, 1].
    """

    box: tuple[float, float, float, float]
    keypoints: Float32
    confidence: float

    def to_coco(self, frame: int) -> dict[str, Any]:
        """Return a COCO annotation; keypoints with little score count as not labelled."""
        seen = self.keypoints[:, 2] >= _SEEN
        rows = np.where(seen[:, None], self.keypoints, 0).astype(float)
        rows[:, 2] = np.where(seen, 2, 0)
        return {
            "image_id": frame,
            "score": self.confidence,
            "keypoints": [round(v, 2) if k % 3 < 2 else int(v) for k, v in enumerate(rows.flat)],
        }


class PoseFinder:
    """Both models, loaded."""

    def __init__(self, detector: Path, pose: Path, device: str = "cpu") -> None:
        """Load the folders of both; ModelError for what is missing."""
        try:
            library: Any = importlib.import_module("transformers")
        except ImportError as error:
            raise ModelError(
                "skeletons by a model need transformers: pip install 'semvc[skeleton]', or give"
                " them with --skeleton FILE"
            ) from error
        self._device = torch.device(device)
        self._detector = self._load(library.RTDetrForObjectDetection, detector)
        self._pose = self._load(library.VitPoseForPoseEstimation, pose)
        names = getattr(self._detector.config, "id2label", {})
        self._person = next((int(k) for k, v in names.items() if str(v).lower() == "person"), 0)
        size = self._pose.config.backbone_config.image_size
        self._size = (int(size[0]), int(size[1]))
        self._experts = int(getattr(self._pose.config.backbone_config, "num_experts", 1))

    def _load(self, kind: Any, folder: Path) -> Any:
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder} has no config.json: give the folder of a {kind.__name__}")
        try:
            model = kind.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
            )
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(f"cannot load {kind.__name__} from {folder}: {first}") from error
        return model.to(self._device).eval().requires_grad_(False)

    @torch.inference_mode()
    def find(self, frame: UInt8, *, threshold: float | None = None) -> list[Person]:
        """Return the people of a frame uint8 [H, W, 3], surest first, at most eight.

        `threshold` is the least confidence of a detection, 0.5 if None.
        """
        picture = torch.tensor(np.ascontiguousarray(frame)).to(self._device)
        picture = picture.permute(2, 0, 1)[None].float() / 255
        boxes, scores = self._detect(picture, _FOUND if threshold is None else threshold)
        if not len(boxes):
            return []
        crops, corners, spans = self._crops(picture, boxes)
        extra = {}
        if self._experts > 1:  # one head for each data set it was trained on; COCO is the first
            extra["dataset_index"] = torch.zeros(len(crops), dtype=torch.int64).to(self._device)
        maps = self._pose(pixel_values=crops, **extra).heatmaps.float()
        points, sure = peaks(maps)
        scale = spans / torch.tensor([maps.shape[3], maps.shape[2]]).to(spans)
        points = corners[:, None] + (points + 0.5) * scale[:, None]
        rows = torch.cat([points, sure[..., None]], 2).cpu().numpy().astype(np.float32)
        return [
            Person((float(x), float(y), float(w), float(h)), row, float(score))
            for (x, y, w, h), row, score in zip(boxes.tolist(), rows, scores.tolist(), strict=True)
        ]

    def _detect(self, picture: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
        """Boxes [N, 4] (x, y, width, height) in pixels, and scores [N]."""
        height, width = picture.shape[2:]
        small = functional.interpolate(
            picture, (_SIDE, _SIDE), mode="bilinear", antialias=True, align_corners=False
        )
        found = self._detector(pixel_values=small)
        scores = found.logits[0].float().sigmoid()[:, self._person]
        order = scores.argsort(descending=True)[:_MOST]
        order = order[scores[order] >= threshold]
        x, y, w, h = found.pred_boxes[0].float()[order].unbind(1)
        size = torch.tensor([width, height, width, height], device=picture.device)
        return torch.stack([x - w / 2, y - h / 2, w, h], 1) * size, scores[order]

    def _crops(self, picture: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each person's picture at ViTPose's size and aspect, its corner and its span in pixels."""
        rows, columns = self._size
        centre = boxes[:, :2] + boxes[:, 2:] / 2
        wide = torch.maximum(boxes[:, 2], boxes[:, 3] * columns / rows).clamp(min=1) * _MARGIN
        spans = torch.stack([wide, wide * rows / columns], 1)
        corners = centre - spans / 2
        height, width = picture.shape[2:]
        at_y = (torch.arange(rows, device=picture.device) + 0.5) / rows
        at_x = (torch.arange(columns, device=picture.device) + 0.5) / columns
        ys = corners[:, 1, None] + at_y * spans[:, 1, None]
        xs = corners[:, 0, None] + at_x * spans[:, 0, None]
        grid = torch.stack(
            [
                (2 * xs / width - 1)[:, None].expand(-1, rows, -1),
                (2 * ys / height - 1)[:, :, None].expand(-1, -1, columns),
            ],
            3,
        )
        many = picture.expand(len(boxes), -1, -1, -1)
        crops = functional.grid_sample(many, grid, padding_mode="zeros", align_corners=False)
        mean, deviation = (
            torch.tensor(v, device=picture.device)[:, None, None] for v in (_MEAN, _DEVIATION)
        )
        return (crops - mean) / deviation, corners, spans


def peaks(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return where heat maps [N, K, h, w] are highest, [N, K, 2] as (x, y), and how high, [N, K].

    Positions are refined by a parabola through the neighbours' logarithms (Zhang et al.,
    "Distribution-Aware Coordinate Representation for Human Pose Estimation", section 3.2, in each
    direction by itself). Heights are clipped to [0, 1].
    """
    count, joints, height, width = maps.shape
    best, at = maps.flatten(2).max(2)
    y, x = at // width, at % width
    logs = maps.clamp(min=1e-6).log()
    n, k = torch.meshgrid(torch.arange(count), torch.arange(joints), indexing="ij")

    def shift(here: Tensor, last: int, rows: Any) -> Tensor:
        before, now, after = (rows((here + d).clamp(0, last)) for d in (-1, 0, 1))
        bend = before - 2 * now + after
        moved = torch.where(bend < -1e-9, (before - after) / (2 * bend.clamp(max=-1e-9)), 0.0)
        inside = (here > 0) & (here < last)
        return torch.where(inside, moved.clamp(-0.5, 0.5), 0.0)

    dx = shift(x, width - 1, lambda v: logs[n, k, y, v])
    dy = shift(y, height - 1, lambda v: logs[n, k, v, x])
    return torch.stack([x + dx, y + dy], 2), best.clamp(0, 1)
