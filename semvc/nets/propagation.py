"""Detail propagation: frames that a coder spends little on borrow fine detail from its best ones.

SVT-AV1 codes a pyramid. Every 16th frame is an anchor, coded well; those between are predicted from
anchors, at these rates nearly without residual, and lose fine detail to interpolation and filters.
Here each of them gets its detail back from the anchors before and after, along optical flow, where
their coarse pictures agree: multi-frame quality enhancement (Yang et al., CVPR 2018; Guan et al.
2019) without a network. No torch.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

ANCHORS = 16  # received frames from one anchor to the next, from a segment's first on
_FINE = 3.0  # deviation of the Gaussian, in samples, that detail is finer than
_AGREE = 6.0  # codes by which coarse pictures may differ
_SPREAD = 1.5  # deviation that confidence is smoothed by
_SIDE = 48  # smaller pictures are left as they are
_FLOW_SIDE = 720  # flow of larger ones is found in smaller pictures


def anchors_of(index: int, count: int) -> list[int]:
    """Return which of `count` received frames have detail for frame `index`: none, one or two.

    The first frame, predicted from nothing, is an anchor that takes detail from the next one.
    """
    before = index - index % ANCHORS
    around = [before, before + ANCHORS]
    if index == before:
        around = [ANCHORS] if index == 0 else []
    return [k for k in around if k < count]


class Propagator:
    """Gives frames the detail of their anchors."""

    def __init__(self, width: int, height: int) -> None:
        self._search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._search.setVariationalRefinementIterations(0)  # smoother flow measures worse
        self._small = min(width, height) < _SIDE
        self._shrink = -(-min(width, height) // _FLOW_SIDE)
        self._columns, self._rows = np.meshgrid(
            np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
        )

    def __call__(self, frame: UInt8, anchors: list[UInt8]) -> UInt8:
        """Return uint8 [h, w, 3] RGB, `frame` itself where there is nothing to borrow."""
        if self._small or not anchors:
            return frame
        luma = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        coarse = _coarse(luma.astype(np.float32))
        detail, trust = np.zeros_like(coarse), np.full_like(coarse, 1e-6)
        for anchor in anchors:
            found, confidence = self._borrowed(luma, coarse, anchor)
            detail += confidence * found
            trust += confidence
        change = np.minimum(trust, 1) * (detail / trust - (luma - coarse))
        moved = np.rint(change).astype(np.int16)
        return cv2.add(frame, cv2.merge([moved] * 3), dtype=cv2.CV_8U).astype(np.uint8)

    def _borrowed(self, luma: UInt8, coarse: Float32, anchor: UInt8) -> tuple[Float32, Float32]:
        """An anchor's detail where it is in this frame, and how far to trust it, in [0, 1]."""
        other = cv2.cvtColor(anchor, cv2.COLOR_RGB2GRAY)
        flow = self._flow(luma, other)
        x, y = self._columns + flow[..., 0], self._rows + flow[..., 1]
        warped = cv2.remap(
            other.astype(np.float32), x, y, cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REPLICATE
        )
        level = _coarse(warped)
        likeness = np.exp(-np.square((level - coarse) / np.float32(_AGREE)))
        confidence = cv2.GaussianBlur(likeness, (0, 0), _SPREAD) ** 2
        return warped - level, confidence

    def _flow(self, luma: UInt8, other: UInt8) -> Float32:
        """Where each sample of `luma` lies in `other`, as steps (x, y), [h, w, 2]."""
        if self._shrink == 1:
            return self._search.calc(luma, other, None)
        height, width = luma.shape
        size = (width // self._shrink, height // self._shrink)
        small = [cv2.resize(p, size, interpolation=cv2.INTER_AREA) for p in (luma, other)]
        flow = cv2.resize(self._search.calc(*small, None), (width, height))
        return flow * np.array([width / size[0], height / size[1]], np.float32)


def propagated(base: UInt8) -> UInt8:
    """Return all received frames of a segment, uint8 [K, h, w, 3], with their detail."""
    propagator = Propagator(base.shape[2], base.shape[1])
    anchors = ([base[a] for a in anchors_of(k, len(base))] for k in range(len(base)))
    return np.stack([propagator(f, found) for f, found in zip(base, anchors, strict=True)])


def _coarse(luma: Float32) -> Float32:
    return cv2.GaussianBlur(luma, (0, 0), _FINE).astype(np.float32)
