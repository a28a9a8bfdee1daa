"""FORMAT.md says what the declarations say; `python tests/test_format_doc.py` writes its tables."""

from __future__ import annotations

import dataclasses
import re
from enum import IntEnum
from pathlib import Path

import pytest

from semvc.bitstream import framing, headers, reader, salvage, wire
from semvc.bitstream import writer as writer_module
from semvc.types import Limits

PATH = Path(headers.__file__).parent / "FORMAT.md"


def frame_rates() -> str:
    rows = [f"| {code} | {rate} |" for code, rate in enumerate(headers.FRAME_RATES, 1)]
    return "\n".join(["| code | frames per second |", "|---|---|", *rows]) + "\n"


def colors() -> str:
    rows = [
        f"| {code} | {c.primaries} | {c.transfer} | {c.matrix} | {int(c.full_range)} |"
        for code, c in enumerate(headers.COLORS, 1)
    ]
    head = ["| code | primaries | transfer | matrix | full range |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows]) + "\n"


def limits() -> str:
    rows = [f"| {f.name} | {f.default} |" for f in dataclasses.fields(Limits)]
    return "\n".join(["| limit | default |", "|---|---|", *rows]) + "\n"


def tables() -> dict[str, str]:
    return {
        "header": wire.table(headers.StreamHeader),
        "frame_rates": frame_rates(),
        "colors": colors(),
        "end": wire.table(reader.End),
        "limits": limits(),
    }


def block(name: str) -> re.Pattern[str]:
    return re.compile(f"(<!-- begin {name} -->\n)(.*?)(<!-- end {name} -->\n)", re.DOTALL)


@pytest.mark.parametrize("name", list(tables()))
def test_generated_tables_are_up_to_date(name: str) -> None:
    found = block(name).search(PATH.read_text())
    assert found is not None
    assert found[2] == tables()[name]


@pytest.mark.parametrize("names", [headers.SectionType, headers.ProfileId, framing.ChunkType])
def test_every_number_and_name_is_described(names: type[IntEnum]) -> None:
    rows = re.findall(r"^\| (\d+) \| ([A-Z0-9_]+) \| \S", PATH.read_text(), re.MULTILINE)
    assert {(str(int(item)), item.name) for item in names} <= set(rows)


def test_no_undeclared_number_is_described() -> None:
    rows = re.findall(r"^\| (\d+) \| ([A-Z0-9_]{2,}) \| \S", PATH.read_text(), re.MULTILINE)
    known = [*headers.SectionType, *headers.ProfileId, *framing.ChunkType]
    assert len(rows) == len(known)


def test_numbers_in_the_text_are_those_of_the_program() -> None:
    text = PATH.read_text().replace("\n", " ")
    assert f"{headers.MIN_BODY}..{headers.MAX_BODY}" in text
    assert f"at most {Limits().max_chunk_bytes:,}".replace(",", " ") in text
    assert f"END: at most {framing.END_BYTES}" in text
    assert f"longer than {writer_module.COPY_ABOVE:,} bytes".replace(",", " ") in text
    assert f"If k is {salvage.NEAR} or more" in text
    assert f"bounded by {salvage.WORK_FACTOR} times" in text
    assert headers.MAGIC.hex(" ").upper() in text
    assert f"version {headers.VERSION >> 4}.{headers.VERSION & 15}" in text


def write() -> None:
    text = PATH.read_text()
    for name, table in tables().items():
        text = block(name).sub(lambda m, table=table: m[1] + table + m[3], text)  # type: ignore[misc]
    PATH.write_text(text)


if __name__ == "__main__":
    write()
