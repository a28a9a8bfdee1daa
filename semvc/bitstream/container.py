"""The container's public names in one place; each is explained where it is made."""

from __future__ import annotations

from semvc.bitstream.edit import edit
from semvc.bitstream.partfile import PartFile
from semvc.bitstream.probe import SectionInfo, SegmentInfo, StreamInfo, VerifyReport, probe, verify
from semvc.bitstream.reader import End, Gap, StreamReader
from semvc.bitstream.segments import Segment
from semvc.bitstream.writer import StreamWriter, part_header, resume_writer

__all__ = [
    "End",
    "Gap",
    "PartFile",
    "SectionInfo",
    "Segment",
    "SegmentInfo",
    "StreamInfo",
    "StreamReader",
    "StreamWriter",
    "VerifyReport",
    "edit",
    "part_header",
    "probe",
    "resume_writer",
    "verify",
]
