"""The second decoder, continued: GRAIN, from section 17."""

from __future__ import annotations

from stranger_coder import Run


def grain(run: Run) -> list[int]:
    """The seven levels."""
    return run.bits_of(7, 5)


def activity_classes(luma: list[list[int]]) -> list[list[int]]:
    """The class of each place of the base picture, sample by sample."""
    height, width = len(luma), len(luma[0])

    def mirrored(at: int, side: int) -> int:
        while not 0 <= at < side:
            at = -at if at < 0 else 2 * (side - 1) - at
        return at

    def around(values: list[list[int]], y: int, x: int, reach: int) -> int:
        rows = [mirrored(y + d, height) for d in range(-reach, reach + 1)]
        columns = [mirrored(x + d, width) for d in range(-reach, reach + 1)]
        return sum(values[r][c] for r in rows for c in columns)

    detail = [
        [abs(25 * luma[y][x] - around(luma, y, x, 2)) for x in range(width)] for y in range(height)
    ]
    limits = (405, 810, 1620, 3240, 6480, 12960)
    return [
        [sum(limit <= around(detail, y, x, 4) for limit in limits) for x in range(width)]
        for y in range(height)
    ]
