"""Looking into a stream: deep verification, dumping of signals, editing of sections."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

from semvc import decoder, describe, profiles
from semvc.bitstream import container
from semvc.bitstream.container import PartFile, Segment, StreamReader
from semvc.bitstream.headers import AUDIO_SECTIONS, SectionType, StreamHeader
from semvc.errors import BitstreamError, LimitError, UsageError
from semvc.media.audioformat import AudioConfig
from semvc.media.files import write_packets
from semvc.signals.audio import decode_audio
from semvc.signals.caption import Caption, encode_caption

_NEEDED = frozenset(
    {
        *(SectionType.BASE_AV1, SectionType.TIMING, SectionType.LATENT),
        *(SectionType.KEYFRAME, SectionType.CAMERA),
    }
)


def verify_signals(source: BinaryIO, models_dir: Path | None = None) -> list[str]:
    """Decode every integer and the base layer; return what is wrong, one sentence each.

    ModelError if a codec is needed that is not in `models_dir` or bundled.
    """
    source.seek(0)
    reader = StreamReader(source)
    decoder.check_entropy(reader.header)
    damage: list[str] = []
    with contextlib.closing(profiles.create(reader.header.profile, models_dir)) as profile:
        for segment in reader:
            try:
                decoder.unpack(profile, segment, reader.header)
                for kind in AUDIO_SECTIONS & segment.sections.keys():
                    decode_audio(segment.sections[kind])
            except (BitstreamError, LimitError) as error:
                damage.append(f"segment {segment.index}: {error}")
    return damage


def dump(source: BinaryIO, folder: Path, *, force: bool, models_dir: Path | None = None) -> int:
    """Write every signal as files a person can open; return how many there are.

    `info.json` describes the stream; each segment has its own files, named by its number.
    UsageError for a folder that has files, unless `force`. Where nothing could be written, no
    folder is left.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file: choose a folder")
    if folder.exists() and any(folder.iterdir()) and not force:
        raise UsageError(f"{folder} exists and is not empty: use --force to write into it")
    reader = StreamReader(source)
    decoder.check_entropy(reader.header)
    sound: list[tuple[int, tuple[bytes, ...]]] = []
    with (
        _folders(folder),
        contextlib.closing(profiles.create(reader.header.profile, models_dir)) as profile,
    ):
        for segment in reader:
            timing, signals = decoder.unpack(profile, segment, reader.header)
            if timing is not None:
                lines = "".join(f"{pts}\n" for pts in timing.pts)
                (folder / f"{segment.index:05d}-timing.txt").write_text(lines, "ascii")
            profile.dump(signals, segment, reader.header, folder)
            for kind in AUDIO_SECTIONS & segment.sections.keys():
                audio, _ = decode_audio(segment.sections[kind])
                begin = timing.pts[0] if timing else segment.start
                sound.append((_samples(begin, reader.header) + audio.offset, audio.packets))
    source.seek(0)
    account = describe.stream(container.probe(source), models_dir, segments=True)
    (folder / "info.json").write_text(json.dumps(account, indent=2) + "\n", "utf-8")
    if sound:
        write_packets(folder / "audio", AudioConfig.from_bytes(reader.header.audio), sound)
    return sum(1 for path in folder.iterdir() if path.is_file())


def edit(
    source: BinaryIO,
    target: Path,
    *,
    drop: tuple[str, ...] = (),
    caption: str | None = None,
    force: bool = False,
    models_dir: Path | None = None,
) -> None:
    """Copy a stream without some section types, or with another caption; the rest byte for byte."""
    kinds = {_section(name) for name in drop}
    if lost := kinds & _NEEDED:
        names = ", ".join(sorted(kind.name.lower() for kind in lost))
        raise UsageError(f"{names} cannot be dropped: nothing decodes without")
    replace = {} if caption is None else {SectionType.CAPTION: encode_caption(Caption(caption))[0]}
    header = StreamReader(source).header
    decoder.check_entropy(header)
    source.seek(0)
    with (
        contextlib.closing(profiles.create(header.profile, models_dir)) as profile,
        PartFile(target, force=force) as part,
    ):

        def check(segment: Segment, sections: Mapping[SectionType, bytes]) -> int:
            changed = dataclasses.replace(segment, sections=sections)
            return decoder.signals_check(profile, changed, header) & 0xFFFF

        container.edit(
            source, part.sink, drop=kinds, replace=replace, state_check=check, sync=part.sync
        )


@contextlib.contextmanager
def _folders(folder: Path) -> Iterator[None]:
    """Make a folder and those above it; after an error, remove those of them that are empty."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # one that is not empty ends it
            for path in made:
                path.rmdir()
        raise


def _section(name: str) -> SectionType:
    with contextlib.suppress(KeyError):
        return SectionType[name.upper()]
    known = ", ".join(kind.name.lower() for kind in SectionType)
    raise UsageError(f"unknown section type {name!r}; known: {known}")


def _samples(begin: int, header: StreamHeader) -> int:
    base = header.time_base or 1 / header.frame_rate
    return int(begin * base * AudioConfig.from_bytes(header.audio).rate + Fraction(1, 2))
