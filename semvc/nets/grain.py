"""Grain synthesis: measures the fine texture that a base layer lost and puts noise in its place.

After AV1's film grain (Norkin and Birkbeck, DCC 2018), with two changes: the strength follows the
activity of the base layer instead of its brightness, since coders smooth by texture; and noise
stays where it is as long as the base layer stands still, so that still places do not boil. All
arithmetic of the synthesis is on integers. No torch.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from semvc.nets import noise

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

CLASSES = 7  # of activity
UNIT = 16  # levels in one 8-bit code of luma
MAX_LEVEL = 31
_PURPOSE = 1  # of the counter-based noise; 0 is the generator's
_DETAIL, _PLACE = 5, 9  # sides of the boxes that detail is measured against and gathered in
# classes part at a standard deviation of detail of 1/4, 1/2, 1, 2, 4, 8 codes, in the sums' unit
_LIMITS = (405, 810, 1620, 3240, 6480, 12960)
_GAIN = 0.5  # of the lost deviation: noise of all of it looks, and measures, worse than none
# codes, by class: more is seen as noise; where the base layer is busy it was not the fine texture
# that was lost
_MOST = (1.2, 1.2, 1.2, 1.2, 1.2, 0.3, 0.3)
_SHARE = 1 / 2000  # of the places that a class needs to be measured
_SIGHT = (0.9, 2.0)  # deviations of the two Gaussians between which fine texture lies
_MARGIN = 64  # noise is shifted by up to this in every frame
_STILL = 1  # change of luma up to which a place stands still


def luma_of(frame: UInt8) -> UInt8:
    """Return BT.709 luma uint8 [H, W] of an RGB frame [H, W, 3], full range, by integers."""
    weighed = cv2.transform(frame.astype(np.int32), np.array([[13933, 46871, 4732]], np.float64))
    return ((weighed.astype(np.int64) + 32768) >> 16).astype(np.uint8)


def classes(luma: UInt8) -> UInt8:
    """Return the activity class of each place, uint8 [H, W] in 0..6, of luma [H, W]."""
    area = _DETAIL * _DETAIL
    sums = cv2.boxFilter(luma, cv2.CV_32S, (_DETAIL, _DETAIL), normalize=False)
    detail = np.abs(luma.astype(np.int32) * area - sums)
    activity = cv2.boxFilter(detail, cv2.CV_32S, (_PLACE, _PLACE), normalize=False)
    found = np.zeros(luma.shape, np.uint8)
    for limit in _LIMITS:
        found += activity >= limit
    return found


def measure_grain(source: list[UInt8], shown: list[UInt8]) -> tuple[int, ...]:
    """Return the levels of grain, 0..31, that `shown` lacks of `source`, for each class.

    Both are RGB frames [H, W, 3]; `shown` are the base layer's at the picture's size.
    """
    lost: list[Float32] = []
    where: list[UInt8] = []
    for true, made in zip(source, shown, strict=True):
        luma = luma_of(made)
        missing = _fine(luma_of(true)) - _fine(luma)
        lost.append(np.sqrt(np.maximum(missing, 0)).ravel())
        where.append(classes(luma).ravel())
    values, places = np.concatenate(lost), np.concatenate(where)
    levels, deviation = [], 0.0
    for k in range(CLASSES):
        found = values[places == k]
        if len(found) > len(values) * _SHARE:  # else as in the class before
            deviation = _GAIN * float(np.median(found))
        levels.append(min(round(min(deviation, _MOST[k]) * UNIT), MAX_LEVEL))
    return tuple(levels)


def _fine(luma: UInt8) -> Float32:
    """Energy of fine texture around each place."""
    wide: Float32 = luma.astype(np.float32)
    detail: Float32 = wide - cv2.GaussianBlur(wide, (0, 0), _SIGHT[1])
    return cv2.GaussianBlur(detail * detail, (0, 0), 2 * _SIGHT[1]).astype(np.float32)


class GrainSynthesizer:
    """Adds the grain of one segment to its frames, in order.

    All segments draw the same noise, so that a still picture stays still where one ends.
    """

    def __init__(self, levels: tuple[int, ...], size: tuple[int, int], *, seed: int) -> None:
        """`levels` are one for each class, 0..31; `size` is (width, height)."""
        self._width, self._height = size
        self._levels = np.zeros(256, np.int16)
        self._levels[:CLASSES] = levels
        self._field = _field(size, seed)
        self._starts = np.random.Philox(key=np.array([seed, _PURPOSE], np.uint64))
        self._luma: UInt8 | None = None
        self._pattern = np.zeros((self._height, self._width), np.int16)
        self._added: npt.NDArray[np.int16] = self._pattern

    def apply(self, frame: UInt8, base: UInt8) -> UInt8:
        """Return RGB `frame` [H, W, 3] with grain; `base` is the upsampled base frame behind it."""
        luma = luma_of(base)
        if self._luma is None or not np.array_equal(self._luma, luma):
            self._move(luma)
        return cv2.add(frame, cv2.merge([self._added] * 3), dtype=cv2.CV_8U).astype(np.uint8)

    def _move(self, luma: UInt8) -> None:
        """Draw new noise where the base layer has changed."""
        word = int(self._starts.random_raw())
        y, x = (word >> 32) % (_MARGIN + 1), (word & 0xFFFFFFFF) % (_MARGIN + 1)
        fresh = self._field[y : y + self._height, x : x + self._width]
        if self._luma is None:
            self._pattern = fresh.copy()
        else:
            changed = cv2.dilate(cv2.absdiff(luma, self._luma), np.ones((_PLACE, _PLACE), np.uint8))
            self._pattern = np.where(changed > _STILL, fresh, self._pattern)
        strength = cv2.LUT(classes(luma), self._levels)
        scaled = np.multiply(self._pattern, strength, dtype=np.int32)
        self._added = ((scaled + 128 * UNIT) >> 8 + UNIT.bit_length() - 1).astype(np.int16)
        self._luma = luma


def _field(size: tuple[int, int], seed: int) -> npt.NDArray[np.int16]:
    """Noise int16 of deviation 256 in the band of fine texture, larger than a frame by a margin."""
    width, height = (side + _MARGIN for side in size)
    drawn = noise.gaussian(width * height, seed=seed, segment=0, purpose=_PURPOSE)
    white = (drawn * np.float32(1024)).astype(np.int16).reshape(height, width).astype(np.float64)
    row = np.array([1, 2, 1])
    fine = cv2.filter2D(white, cv2.CV_64F, np.outer(row, row)).astype(np.int64)  # sums are exact
    coarse = cv2.boxFilter(white, cv2.CV_64F, (5, 5), normalize=False).astype(np.int64)
    # both in 1/400: 25 times the binomial mean over 16, less 16 times the box over 25
    band = 25 * fine - 16 * coarse
    return (band // _SPREAD).astype(np.int16)


_KERNEL = np.pad(25 * np.outer([1, 2, 1], [1, 2, 1]), 1) - 16
_SPREAD = int(np.rint(np.sqrt(float((_KERNEL**2).sum())) * 1024 / 256))
