"""Training caches in small pieces, to keep or to send to another machine.

A piece is a ZIP file of whole shards. Frames are in it as video: 8-bit 4:2:0 BT.709 planes of
limited range, what 8-bit video shows, the colour planes below the luma as one grey picture, coded
as H.264 at a high quality (or without loss). Maps and numbers are exact. Unpacking needs PyAV or
OpenCV, and gives the same whichever it is.
"""

from __future__ import annotations

import io
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from semvc.errors import UsageError
from semvc.train import losses
from semvc.train.data import FIELDS

UInt8 = npt.NDArray[np.uint8]
_FRAMES = ("source", "arrivals")
_NUMBERS = "rest.npz"
_BATCH = 64  # frames converted at a time


@dataclass(frozen=True, slots=True)
class Packing:
    """`megabytes` of a piece at most (10^6 bytes); `crf` of x264, 0 codes without loss."""

    megabytes: float = 30.0
    crf: int = 8
    preset: str = "medium"

    def __post_init__(self) -> None:
        if self.megabytes <= 0 or not 0 <= self.crf <= 51:
            raise UsageError("a piece has more than 0 MB, and crf is from 0 to 51")


def pack(
    caches: list[Path],
    out: Path,
    packing: Packing,
    *,
    on_shards: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write all shards of cache folders into pieces in the folder `out`; return their paths.

    UsageError if there are none, or if one shard alone is too large for a piece.
    """
    shards = [(f"{n:02d}-{p.name}", p) for n, cache in enumerate(caches) for p in _shards(cache)]
    if not shards:
        raise UsageError(f"no training data in {', '.join(map(str, caches))}")
    out.mkdir(parents=True, exist_ok=True)
    limit = packing.megabytes * 1e6
    done: list[Path] = []
    waiting: dict[str, bytes] = {}
    for number, (name, shard) in enumerate(shards):
        members = {f"{name}/{file}": body for file, body in _packed(shard, packing)}
        if _size(members) > limit:
            raise UsageError(
                f"{shard} alone takes {_size(members) / 1e6:.1f} MB packed: make pieces larger"
            )
        if _size(waiting) + _size(members) > limit:
            done.append(_write(out, len(done), waiting))
            waiting = {}
        waiting |= members
        if on_shards is not None:
            on_shards(number + 1, len(shards))
    done.append(_write(out, len(done), waiting))
    return done


def unpack(
    pieces: list[Path], out: Path, *, on_shards: Callable[[int, int], None] | None = None
) -> int:
    """Write the shards of pieces into the cache folder `out`; return how many were new."""
    names = [(piece, name) for piece in pieces for name in _names(piece)]
    new = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(lambda pair: _unpack_shard(pair[0], pair[1], out), names)
        for number, was_new in enumerate(done):
            new += was_new
            if on_shards is not None:
                on_shards(number + 1, len(names))
    return new


def _unpack_shard(piece: Path, name: str, out: Path) -> bool:
    """Write one shard unless it is there; whether it was new."""
    folder = out / name
    if (folder / f"{FIELDS[-1]}.npy").exists():
        return False
    with zipfile.ZipFile(piece) as archive:
        arrays = _unpacked(archive, name)
    folder.mkdir(parents=True, exist_ok=True)
    for field in FIELDS:  # the last one marks the shard complete
        np.save(folder / f"{field}.npy", arrays[field])
    return True


def _shards(cache: Path) -> list[Path]:
    if not cache.is_dir():
        raise UsageError(f"no folder {cache}")
    return sorted(p for p in cache.iterdir() if (p / f"{FIELDS[-1]}.npy").exists())


def _names(piece: Path) -> list[str]:
    try:
        with zipfile.ZipFile(piece) as archive:
            files = {n.partition("/")[::2] for n in archive.namelist()}
    except (OSError, zipfile.BadZipFile) as error:
        raise UsageError(f"{piece} is not a piece of training data: {error}") from error
    names = sorted({name for name, _ in files})
    expected = {*(f"{f}.mkv" for f in _FRAMES), _NUMBERS}
    for name in names:
        if not name.replace("-", "").isalnum() or {f for n, f in files if n == name} != expected:
            raise UsageError(f"{piece} is not a piece of training data: {name}")
    return names


def _size(members: dict[str, bytes]) -> int:
    """Bytes in a ZIP file: the members, and twice their names and headers."""
    return 22 + sum(len(body) + 2 * len(name) + 76 for name, body in members.items())


def _write(out: Path, number: int, members: dict[str, bytes]) -> Path:
    path = out / f"piece-{number:04d}.zip"
    part = path.with_name(path.name + ".part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        for name, body in members.items():
            archive.writestr(zipfile.ZipInfo(name), body)
    part.replace(path)
    return path


def _packed(shard: Path, packing: Packing) -> Iterator[tuple[str, bytes]]:
    arrays = {n: np.load(shard / f"{n}.npy") for n in FIELDS}
    arrays["arrivals"] = arrays["arrivals"][:, : int(arrays["held"].max()) + 1]
    for name in _FRAMES:
        frames = arrays.pop(name)
        stacks = np.concatenate([*_stacks(frames.reshape(-1, *frames.shape[2:]))])
        yield f"{name}.mkv", _encode(stacks, frames.shape[1], packing)
        arrays[f"{name}_shape"] = np.array(frames.shape[:2])
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    yield _NUMBERS, buffer.getvalue()


def _unpacked(archive: zipfile.ZipFile, name: str) -> dict[str, npt.NDArray[np.generic]]:
    with np.load(io.BytesIO(archive.read(f"{name}/{_NUMBERS}"))) as stored:
        arrays = {field: stored[field] for field in stored.files}
    for field in _FRAMES:
        count, length = (int(v) for v in arrays.pop(f"{field}_shape"))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "frames.mkv"
            path.write_bytes(archive.read(f"{name}/{field}.mkv"))
            pictures = np.concatenate([*_pictures(_decode(path))])
        if len(pictures) != count * length:
            raise UsageError(f"{archive.filename}: {name} has {len(pictures)} {field} frames")
        arrays[field] = pictures.reshape(count, length, *pictures.shape[1:])
    return arrays


def _stacks(frames: UInt8) -> Iterator[UInt8]:
    """Grey pictures [n, 3H/2, W] of RGB frames [T, H, W, 3] with even sides."""
    for start in range(0, len(frames), _BATCH):
        x = torch.from_numpy(frames[start : start + _BATCH]).permute(0, 3, 1, 2).float()
        luma, colour = losses.video_codes(x / 127.5 - 1)
        stack = torch.cat([luma, torch.cat([colour[:, 0], colour[:, 1]], 2)], 1)
        yield stack.round().clamp(0, 255).to(torch.uint8).numpy()


def _pictures(stacks: UInt8) -> Iterator[UInt8]:
    """The inverse of `_stacks`, up to its rounding."""
    rows = stacks.shape[1] * 2 // 3
    for start in range(0, len(stacks), _BATCH):
        x = torch.from_numpy(stacks[start : start + _BATCH]).float()
        colour = torch.stack(x[:, rows:].chunk(2, 2), 1)
        frames = losses.picture_of_codes(x[:, :rows], colour)
        codes = ((frames + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        yield codes.permute(0, 2, 3, 1).contiguous().numpy()


def _encode(stacks: UInt8, length: int, packing: Packing) -> bytes:
    """H.264 in Matroska of grey pictures [T, H, W]; every `length` frames stand alone."""
    import av

    quality = {"crf": str(packing.crf)} if packing.crf else {"qp": "0"}
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        options = quality | {"preset": packing.preset, "x264-params": "threads=1"}
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.height, stream.width = stacks.shape[1:]
        stream.pix_fmt = "gray"
        stream.codec_context.gop_size = length
        stream.codec_context.color_range = 2  # full: decoders leave the values alone
        for picture in stacks:
            frame = av.VideoFrame.from_ndarray(picture, format="gray")
            frame.color_range = 2
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def _decode(path: Path) -> UInt8:
    """Grey pictures uint8 [T, H, W] of a video, by PyAV or, where there is none, by OpenCV."""
    try:
        import av
    except ImportError:
        return _decode_by_opencv(path)
    with av.open(str(path)) as container:
        frames = [f.to_ndarray(format="gray") for f in container.decode(video=0)]
    return np.stack(frames).astype(np.uint8, copy=False)


def _decode_by_opencv(path: Path) -> UInt8:
    try:
        import cv2
    except ImportError as error:
        raise UsageError("unpacking needs PyAV or OpenCV: pip install av") from error
    video, frames = cv2.VideoCapture(str(path)), []
    while (found := video.read())[0]:
        frames.append(found[1][:, :, 0])
    video.release()
    if not frames:
        raise UsageError(f"OpenCV cannot read {path}: pip install av")
    return np.stack(frames).astype(np.uint8, copy=False)
