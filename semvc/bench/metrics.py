"""Quality of a reconstruction: every figure of `rows.METRICS`, measured while frames stream by.

Both videos are full-range RGB, made by the same conversions. Figures of single frames look at one
frame in `every`, unevenly spaced: a fixed step would fall on the frames that encoders code well.
Figures of motion look at the same frames and the ones after them, and leave out steps over a cut.
Of two videos no more than a few frames are held.

Luma is BT.709's in the limited range, 16 to 235, without rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from semvc.bench import motion, vdp
from semvc.bench.networks import FILES, Maps, Networks, missing, patch_kid
from semvc.errors import MediaError
from semvc.media.scenes import CutDetector

if TYPE_CHECKING:
    import numpy.typing as npt

    UInt8 = npt.NDArray[np.uint8]
    Float32 = npt.NDArray[np.float32]
    Pair = tuple[UInt8, UInt8]  # source, rebuilt

MS_SSIM_SIDE = 176  # smallest side for five scales with windows of 11
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_GOLDEN = 0.618034
_PERFECT = 100.0  # dB, of equal frames


@dataclass(frozen=True, slots=True)
class Measured:
    """Values by the names of `rows.METRICS`, and why others that were asked for are missing."""

    values: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def sampled(count: int, every: int) -> tuple[int, ...]:
    """Return about one frame number in `every` of `count`, spaced unevenly, beginning with 0."""
    spread = (int((i + i * _GOLDEN % 1) * every) for i in range(-(-count // every)))
    return tuple(t for t in spread if t < count)


class Meter:
    """Measures pairs of videos. `names` are of `rows.METRICS`, `weights` the learned ones' folder.

    `device` and `dtype` are the networks'. What cannot be measured is named in `missing`, with the
    reason; every result repeats it.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        weights: Path | None = None,
        every: int = 4,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self._every, self._device = every, torch.device(device)
        self.missing = {name: why for name in names if (why := _unavailable(name, weights))}
        self._names = frozenset(names) - set(self.missing)
        self._networks: Networks | None = None
        if weights is not None and self._names & set(FILES):
            self._networks = Networks(weights, device=self._device, dtype=dtype)

    def measure(
        self, pairs: Callable[[], Iterable[Pair]], shape: tuple[int, int, int], fps: float
    ) -> Measured:
        """Measure frames uint8 [H, W, 3] of (source, rebuilt); `shape` is height, width, number.

        `pairs` is called once for each pass over the videos: one, or two with ColorVideoVDP.
        MediaError when there are fewer frames or they have another size.
        """
        height, width, count = shape
        pass_ = _Pass(self._names, self._networks, sampled(count, self._every), fps)
        seen = 0
        with torch.inference_mode():
            for pair in pairs():
                if any(frame.shape != (height, width, 3) for frame in pair):
                    raise MediaError(f"frames of another size than {width}x{height}")
                pass_.push(pair)
                seen += 1
        if seen != count:
            raise MediaError(f"{seen} frames where {count} were expected")
        found = pass_.finish()
        if "cvvdp" in self._names:
            found.values["cvvdp"] = vdp.jod(pairs, shape, fps, self._device)
        return Measured(found.values, {**self.missing, **found.missing})


def psnr(a: npt.NDArray[np.generic], b: npt.NDArray[np.generic]) -> float:
    """Return the peak signal-to-noise ratio in dB of values in [0, 255]; 100 for equal ones."""
    error = float(np.square(a.astype(np.float32) - b.astype(np.float32)).mean())
    return min(_PERFECT, 10 * float(np.log10(255**2 / error))) if error else _PERFECT


def luma(frame: UInt8) -> Float32:
    """Return float32 [H, W] in [16, 235] of full-range RGB uint8 [H, W, 3]."""
    weights = np.array((0.2126, 0.7152, 0.0722), np.float32) * np.float32(219 / 255)
    found: Float32 = frame.astype(np.float32) @ weights + np.float32(16)
    return found


def ms_ssim(a: Float32, b: Float32) -> float:
    """Return multi-scale SSIM (Wang et al. 2003) of luma [H, W], sides at least `MS_SSIM_SIDE`.

    Five scales with the paper's weights, Gaussian window of 11 with sigma 1.5, constants for 255.
    """
    x, y = (torch.from_numpy(image)[None, None].double() for image in (a, b))
    score = 1.0
    for scale, weight in enumerate(_SCALES):
        whole, contrast = _ssim(x, y)
        score *= max(whole if scale == len(_SCALES) - 1 else contrast, 0.0) ** weight
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return score


def _ssim(x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """Mean SSIM and its mean contrast-structure term over whole windows."""
    taps = torch.exp(-(torch.arange(11) - 5).double().square() / (2 * 1.5**2))
    taps = taps / taps.sum()

    def blur(image: torch.Tensor) -> torch.Tensor:
        rows = F.conv2d(image, taps.reshape(1, 1, 11, 1))
        return F.conv2d(rows, taps.reshape(1, 1, 1, 11))

    mx, my = blur(x), blur(y)
    vx, vy, covariance = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    contrast = (2 * covariance + c2) / (vx + vy + c2)
    lightness = (2 * mx * my + c1) / (mx * mx + my * my + c1)
    return float((contrast * lightness).mean()), float(contrast.mean())


def _unavailable(name: str, weights: Path | None) -> str:
    if name in FILES:
        return missing(name, weights)
    if name in motion.FLOW:
        return motion.missing()
    return vdp.missing() if name == "cvvdp" else ""


@dataclass(slots=True)
class _Held:
    """What is kept of a sampled frame for the step to the next."""

    luma: tuple[Float32, Float32]
    alex: Maps


class _Pass:
    """One pass over two videos."""

    def __init__(
        self,
        names: frozenset[str],
        networks: Networks | None,
        frames: tuple[int, ...],
        fps: float,
    ) -> None:
        self._names, self._networks, self._frames = names, networks, frozenset(frames)
        self._flow = motion.Flow() if names & set(motion.FLOW) else None
        self._cuts, self._cut_at = CutDetector(fps), set[int]()
        self._t = 0
        self._held: _Held | None = None
        self._singles: dict[str, list[float]] = {}
        self._sharp = np.zeros(2)
        self._patches: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        self._steps: dict[int, dict[str, float]] = {}
        self._flicker: dict[int, motion.Flicker] = {}

    def push(self, pair: Pair) -> None:
        """Look at the next frames."""
        self._cut_at.update(self._cuts.push(pair[0]))
        held, now = self._held, self._t in self._frames
        self._held = None
        if now or held is not None:
            lumas = luma(pair[0]), luma(pair[1])
            alex = self._alex(pair)
            if held is not None:
                self._step(held, lumas, alex)
            if now:
                self._single(pair, lumas, alex)
                self._held = _Held(lumas, alex)
        self._t += 1

    def finish(self) -> Measured:
        """Return the figures of all frames."""
        self._cut_at.update(self._cuts.finish())
        found = Measured()
        for name, values in self._singles.items():
            found.values[name] = float(np.mean(values))
        if "sharp_db" in self._names:
            energies = self._sharp / len(self._frames)
            found.values["sharp_db"] = motion.decibel(energies[1], energies[0])
        if "pkid" in self._names:
            self._add_kid(found)
        self._add_steps(found)
        for name in self._names - set(found.values) - {"cvvdp"}:
            small = f"needs sides of {MS_SSIM_SIDE} luma samples"
            why = small if name == "ms_ssim" else "needs two frames of one shot"
            found.missing.setdefault(name, why)
        return found

    def _alex(self, pair: Pair) -> Maps:
        if self._networks is None or not self._names & {"lpips", "tlpips"}:
            return []
        return self._networks.lpips_maps(self._networks.frames(*pair))

    def _single(self, pair: Pair, lumas: tuple[Float32, Float32], alex: Maps) -> None:
        found = dict(self._pixels(pair, lumas))
        self._sharp += [motion.laplacian_energy(plane) for plane in lumas]
        if self._networks is not None:
            found |= self._learned(self._networks, pair, alex)
        for name, value in found.items():
            self._singles.setdefault(name, []).append(value)

    def _pixels(self, pair: Pair, lumas: tuple[Float32, Float32]) -> Iterator[tuple[str, float]]:
        if "psnr_y" in self._names:
            yield "psnr_y", psnr(*lumas)
        if "psnr_rgb" in self._names:
            yield "psnr_rgb", psnr(*pair)
        if "ms_ssim" in self._names and min(lumas[0].shape) >= MS_SSIM_SIDE:
            yield "ms_ssim", ms_ssim(*lumas)

    def _learned(self, networks: Networks, pair: Pair, alex: Maps) -> dict[str, float]:
        found: dict[str, float] = {}
        if "lpips" in self._names:
            found["lpips"] = float(networks.lpips(*_halves(alex)))
        if self._names & {"lpips_vgg", "dists", "pkid"}:
            frames = networks.frames(*pair)
            if "lpips_vgg" in self._names:
                maps = networks.lpips_maps(frames, "vgg")
                found["lpips_vgg"] = float(networks.lpips(*_halves(maps), "vgg"))
            if self._names & {"dists", "pkid"}:
                maps = networks.dists_maps(frames)
                if "dists" in self._names:
                    found["dists"] = float(networks.dists(*_halves(maps)))
                for kept, patches in zip(self._patches, networks.patches(maps), strict=True):
                    kept.append(patches.cpu())
        return found

    def _step(self, held: _Held, lumas: tuple[Float32, Float32], alex: Maps) -> None:
        """The step from the frame held to this one."""
        found: dict[str, float] = {}
        source, rebuilt = zip(held.luma, lumas, strict=True)
        if self._names & set(motion.FLICKER):
            self._flicker[self._t] = motion.Flicker.empty()
            self._flicker[self._t].add(source, rebuilt)
        if self._networks is not None and "tlpips" in self._names:
            change = self._networks.lpips(held.alex, alex)  # of the source, of the rebuilt
            found["tlpips"] = abs(float(change[0] - change[1]))
        if self._flow is not None:
            flows = self._flow.step(source, rebuilt)
            if flows is None:  # a cut that the other detector did not see
                self._cut_at.add(self._t)
            else:
                found |= flows
        self._steps[self._t] = found

    def _add_steps(self, found: Measured) -> None:
        kept = [t for t in self._steps if t not in self._cut_at]
        if not kept:
            return
        for name in self._names & {"tlpips", *motion.FLOW}:
            found.values[name] = float(np.mean([self._steps[t][name] for t in kept]))
        if self._names & set(motion.FLICKER):
            total = motion.Flicker.empty()
            for t in kept:
                total.moved += self._flicker[t].moved
                total.still += self._flicker[t].still
            figures = total.of(len(kept))
            found.values.update({name: figures[name] for name in figures if name in self._names})

    def _add_kid(self, found: Measured) -> None:
        source, rebuilt = (torch.cat(parts) for parts in self._patches)
        if len(source) < 2:
            found.missing["pkid"] = "frames too small for patches of 128 luma samples"
        else:
            found.values["pkid"] = patch_kid(source, rebuilt)


def _halves(maps: Maps) -> tuple[Maps, Maps]:
    """The maps of the first and of the second frame of a batch of two."""
    return [m[:1] for m in maps], [m[1:] for m in maps]
