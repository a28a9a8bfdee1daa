"""Bundle adjustment: camera poses, focal length and points from tracks, by Levenberg-Marquardt.

Points are homogeneous, unit vectors (x, y, z, w), so that far points do no harm: a camera sees
`rotation @ (x, y, z) + translation * w`. A camera that only turns is the same problem with w = 0.
Points are eliminated (Schur complement); the cost of a residual is bounded (Geman and McClure's),
so that what moves on its own counts nothing in the end. After Triggs et al., "Bundle adjustment - a
modern synthesis", 2000.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from semvc.analysis.types import Bool, Float64

Ints = npt.NDArray[np.intp]

SOFT = 0.5  # samples of residual at which an observation costs half of what it can
_BEHIND = 1e-4  # depth below which a point counts as behind the camera


@dataclass(frozen=True, slots=True)
class Observations:
    """Where tracks were seen, sorted by track: `track`, `frame` int [M] and `place` [M, 2].

    `place` is in samples from the principal point. There are `tracks` tracks in `frames` frames.
    """

    track: Ints
    frame: Ints
    place: Float64
    tracks: int
    frames: int

    @classmethod
    def of(cls, points: Float64, centre: tuple[float, float]) -> Observations:
        """Observations of `points` [N, F, 2], NaN where not seen."""
        track, frame = np.nonzero(np.isfinite(points[..., 0]))
        place = points[track, frame] - np.asarray(centre)
        return cls(track, frame, place, points.shape[0], points.shape[1])


@dataclass(frozen=True, slots=True)
class Bundle:
    """A solution: rotations [F, 3, 3], translations [F, 3], focal in samples, points [N, 4].

    `cost` is the mean robust cost of an observation, in [0, 1].
    """

    rotations: Float64
    translations: Float64
    focal: float
    points: Float64
    cost: float = np.inf

    def camera(self, seen: Observations) -> Float64:
        """Return every observation's point in its camera's coordinates, [M, 3]."""
        x = self.points[seen.track]
        turned = np.einsum("mij,mj->mi", self.rotations[seen.frame], x[:, :3])
        return np.asarray(turned + self.translations[seen.frame] * x[:, 3:])

    def residuals(self, seen: Observations) -> Float64:
        """Return reprojection errors in samples, [M, 2]."""
        p = self.camera(seen)
        z = np.maximum(p[:, 2:], _BEHIND)
        return np.asarray(self.focal * p[:, :2] / z - seen.place)


@dataclass(frozen=True, slots=True)
class Freedom:
    """What may change: turning only or also moving, the focal length, poses and points.

    `prior` is (focal in samples, standard deviation of its logarithm): a weak opinion that decides
    only where the pictures say nothing. `soft`: samples of residual at which an observation costs
    half of what it can at most.
    """

    moving: bool = True
    focal: bool = True
    poses: bool = True
    points: bool = True
    prior: tuple[float, float] | None = None
    soft: float = SOFT


def adjust(start: Bundle, seen: Observations, free: Freedom, rounds: int = 20) -> Bundle:
    """Return the bundle after at most `rounds` accepted steps; the first pose stays as it is."""
    best, damping = replace(start, cost=_cost(start, seen, free)), 1e-3
    for _ in range(rounds):
        system = _System.build(best, seen, free)
        gain = 0.0
        for _ in range(6):
            new = system.step(best, damping)
            cost = _cost(new, seen, free)
            if cost < best.cost:
                gain = (best.cost - cost) / best.cost
                best, damping = replace(new, cost=cost), max(damping / 6, 1e-9)
                break
            damping *= 8
        if gain < 2e-4:
            break
    return best


def triangulate(start: Bundle, seen: Observations) -> Bundle:
    """Return `start` with all points anew from its poses (linear, least squares in directions)."""
    ray = np.concatenate((seen.place / start.focal, np.ones((len(seen.place), 1))), 1)
    ray /= np.linalg.norm(ray, axis=1, keepdims=True)
    pose = np.concatenate((start.rotations, start.translations[..., None]), 2)[seen.frame]
    across = pose - ray[:, :, None] * np.einsum("mi,mij->mj", ray, pose)[:, None]
    normal = _by_track(np.einsum("mki,mkj->mij", across, across), seen)
    points = np.linalg.eigh(normal)[1][..., 0]
    first = np.searchsorted(seen.track, np.arange(seen.tracks)).clip(max=len(seen.track) - 1)
    forward = np.einsum("nj,nj->n", pose[first, 2], points)
    return replace(start, points=points * np.where(forward < 0, -1, 1)[:, None])


def rotation_of(turn: Float64) -> Float64:
    """Return rotation matrices [..., 3, 3] of rotation vectors [..., 3] in radians (Rodrigues)."""
    angle = np.linalg.norm(turn, axis=-1)[..., None, None]
    k = np.zeros((*turn.shape, 3))
    k[..., 0, 1], k[..., 0, 2], k[..., 1, 2] = -turn[..., 2], turn[..., 1], -turn[..., 0]
    k = k - np.swapaxes(k, -1, -2)
    small = angle < 1e-6
    safe = np.where(small, 1, angle)
    one = np.where(small, 1 - angle**2 / 6, np.sin(safe) / safe)
    two = np.where(small, 0.5 - angle**2 / 24, (1 - np.cos(safe)) / safe**2)
    return np.asarray(np.eye(3) + one * k + two * (k @ k))


def vector_of(rotation: Float64) -> Float64:
    """Return rotation vectors [..., 3] in radians of matrices [..., 3, 3] below half a turn."""
    trace = np.trace(rotation, axis1=-2, axis2=-1)
    angle = np.arccos(np.clip((trace - 1) / 2, -1, 1))
    axis = np.stack(
        (
            rotation[..., 2, 1] - rotation[..., 1, 2],
            rotation[..., 0, 2] - rotation[..., 2, 0],
            rotation[..., 1, 0] - rotation[..., 0, 1],
        ),
        -1,
    )
    sine = np.sin(angle)
    scale = np.where(angle < 1e-6, 0.5, angle / np.where(sine < 1e-12, 1, 2 * sine))
    return np.asarray(axis * scale[..., None])


def _cost(bundle: Bundle, seen: Observations, free: Freedom) -> float:
    square = (bundle.residuals(seen) ** 2).sum(1)
    total = (square / (square + free.soft**2)).sum()
    if free.focal and free.prior:
        total += (np.log(bundle.focal / free.prior[0]) / free.prior[1]) ** 2
    return float(total / max(len(square), 1))


def _by_track(values: Float64, seen: Observations) -> Float64:
    """Sums of `values` [M, ...] over each track's observations, [N, ...]."""
    return _sums(values, seen.track, seen.tracks)


def _sums(values: Float64, group: Ints, count: int) -> Float64:
    """Sums over sorted `group`s."""
    out = np.zeros((count, *values.shape[1:]))
    if len(group):
        starts = np.flatnonzero(np.diff(group, prepend=-1))
        out[group[starts]] = np.add.reduceat(values, starts, axis=0)
    return out


@dataclass(frozen=True, slots=True)
class _System:
    """Normal equations in blocks: cameras `u`, points `v`, both `w`; `basis` spans point steps."""

    u: Float64  # [C, C] of the free camera parameters: focal, then poses
    w: Float64  # [C, N, k]
    v: Float64  # [N, k, k]
    gradient_c: Float64  # [C]
    gradient_p: Float64  # [N, k]
    basis: Float64  # [N, 4, k]
    used: Bool  # [C] parameters that may change
    free: Freedom

    @classmethod
    def build(cls, bundle: Bundle, seen: Observations, free: Freedom) -> _System:
        p = bundle.camera(seen)
        z = np.maximum(p[:, 2], _BEHIND)
        scale = bundle.focal / z
        residual = bundle.focal * p[:, :2] / z[:, None] - seen.place
        weight = (free.soft / ((residual**2).sum(1) + free.soft**2)) ** 2
        by_place = np.zeros((len(z), 2, 3))
        by_place[:, 0, 0] = by_place[:, 1, 1] = scale
        by_place[:, :, 2] = -scale[:, None] * p[:, :2] / z[:, None]
        focal = (residual + seen.place)[..., None]  # by the logarithm
        turned = p - bundle.translations[seen.frame] * bundle.points[seen.track, 3:]
        pose = np.empty((len(z), 2, 6))
        pose[..., :3] = np.cross(turned[:, None], by_place)
        pose[..., 3:] = by_place * bundle.points[seen.track, 3][:, None, None]
        basis = _basis(bundle.points, free.moving)
        matrix = np.concatenate((bundle.rotations, bundle.translations[..., None]), 2)[seen.frame]
        point = by_place @ (matrix @ basis[seen.track])
        return cls._assemble(seen, free, (focal, pose, point), residual, weight, basis, bundle)

    @classmethod
    def _assemble(
        cls,
        seen: Observations,
        free: Freedom,
        jacobians: tuple[Float64, Float64, Float64],
        residual: Float64,
        weight: Float64,
        basis: Float64,
        bundle: Bundle,
    ) -> _System:
        focal, pose, point = jacobians
        frames, size, k = seen.frames, 1 + 6 * seen.frames, basis.shape[2]
        order = np.argsort(seen.frame, kind="stable")

        def per_frame(values: Float64) -> Float64:
            return _sums(values[order], seen.frame[order], frames)

        heavy_pose, heavy_point = pose * weight[:, None, None], point * weight[:, None, None]
        u, w = np.zeros((size, size)), np.zeros((size, seen.tracks, k))
        u[0, 0] = np.einsum("mac,mac,m->", focal, focal, weight)
        cross = per_frame(np.einsum("mac,mai->mi", focal, heavy_pose)).ravel()
        u[0, 1:], u[1:, 0] = cross, cross
        blocks = per_frame(np.swapaxes(heavy_pose, 1, 2) @ pose)
        for i in range(frames):
            u[1 + 6 * i : 7 + 6 * i, 1 + 6 * i : 7 + 6 * i] = blocks[i]
        w[0] = _by_track(np.einsum("mac,mai->mi", focal, heavy_point), seen)
        w[1:].reshape(frames, 6, seen.tracks, k)[seen.frame, :, seen.track] = (
            np.swapaxes(pose, 1, 2) @ heavy_point
        )
        v = _by_track(np.swapaxes(heavy_point, 1, 2) @ point, seen)
        gradient_c = np.zeros(size)
        gradient_c[0] = np.einsum("mac,ma,m->", focal, residual, weight)
        gradient_c[1:] = per_frame(np.einsum("mai,ma->mi", heavy_pose, residual)).ravel()
        gradient_p = _by_track(np.einsum("mai,ma->mi", heavy_point, residual), seen)
        if free.prior:
            u[0, 0] += 1 / free.prior[1] ** 2
            gradient_c[0] += np.log(bundle.focal / free.prior[0]) / free.prior[1] ** 2
        used = np.zeros(size, bool)
        used[0] = free.focal
        if free.poses:
            each = used[1:].reshape(frames, 6)
            each[1:, : 6 if free.moving else 3] = True
        return cls(u, w, v, gradient_c, gradient_p, basis, used, free)

    def step(self, bundle: Bundle, damping: float) -> Bundle:
        """Return `bundle` after one damped step."""
        k = self.v.shape[1]
        ridge = damping * np.einsum("nii->ni", self.v) + 1e-9
        inverse = np.linalg.inv(self.v + ridge[..., None] * np.eye(k))
        w, u = self.w[self.used], self.u[np.ix_(self.used, self.used)]
        camera = np.zeros(len(self.used))
        if self.used.any():
            right = self.gradient_c[self.used]
            left = u + np.diag(damping * np.diag(u) + 1e-9)
            if self.free.points:
                flat = np.einsum("cni,nij->cnj", w, inverse).reshape(len(w), -1)
                left = left - flat @ w.reshape(len(w), -1).T
                right = right - flat @ self.gradient_p.ravel()
            camera[self.used] = np.linalg.solve(left, -right)
        poses = camera[1:].reshape(-1, 6)
        points = bundle.points
        if self.free.points:
            pull = self.gradient_p + np.einsum("cni,c->ni", w, camera[self.used])
            points = points - np.einsum("nai,nij,nj->na", self.basis, inverse, pull)
            points = points / np.linalg.norm(points, axis=1, keepdims=True)
        return replace(
            bundle,
            rotations=rotation_of(poses[:, :3]) @ bundle.rotations,
            translations=bundle.translations + poses[:, 3:],
            focal=float(bundle.focal * np.exp(np.clip(camera[0], -0.5, 0.5))),
            points=points,
        )


def _basis(points: Float64, moving: bool) -> Float64:
    """Directions in which unit points [N, 4] may go, [N, 4, 3] (or 2, with w = 0, if not moving).

    Columns of the Householder reflection that takes the last used axis to the point.
    """
    size = 4 if moving else 3
    x = points[:, :size]
    sign = np.where(x[:, -1] < 0, -1.0, 1.0)
    v = x.copy()
    v[:, -1] += sign * np.linalg.norm(x, axis=1)
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    reflection = np.eye(size) - 2 * v[:, :, None] * v[:, None, :]
    out = np.zeros((len(points), 4, size - 1))
    out[:, :size] = reflection[:, :, : size - 1]
    return out
