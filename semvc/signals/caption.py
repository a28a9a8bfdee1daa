"""Caption: a text of at most 4096 bytes of UTF-8, coded bit by bit with a trained byte model.

Any text round-trips; ordinary English captions take about two bits a letter. The text has no
meaning to the coder: control and bidirectional characters pass through and affect nothing. The
character NUL is the only one not allowed, because it closes the text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semvc.entropy.coder import Decoder, Encoder, SymbolCoder
from semvc.entropy.tables import logistic_tables
from semvc.entropy.textmodel import END, TextModel, load_model
from semvc.errors import BitstreamError

MAX_BYTES = 4096
_SECTION = "CAPTION"


@dataclass(frozen=True, slots=True)
class Caption:
    """A description of a segment: any text without NUL, at most 4096 bytes as UTF-8.

    Raises ValueError for a text that is too long, holds NUL or is not encodable.
    """

    text: str

    def __post_init__(self) -> None:
        size = len(self.text.encode("utf-8"))  # a lone surrogate raises UnicodeEncodeError
        if size > MAX_BYTES:
            raise ValueError(f"a caption has at most {MAX_BYTES} bytes of UTF-8, not {size}")
        if "\0" in self.text:
            raise ValueError("a caption must not contain the character NUL")

    def canonical_bytes(self) -> bytes:
        """The text as UTF-8."""
        return self.text.encode("utf-8")


def code_caption(coder: SymbolCoder, caption: Caption | None) -> Caption:
    """Code a caption; raises BitstreamError for bytes that are too many or not UTF-8."""
    content = None if caption is None else caption.canonical_bytes() + bytes([END])
    shipped, mixture = load_model()
    model = TextModel(shipped, mixture)
    result = bytearray()
    while True:
        byte = _code_byte(coder, model, None if content is None else content[len(result)])
        if byte == END:
            break
        if len(result) == MAX_BYTES:
            raise BitstreamError(f"a caption is longer than {MAX_BYTES} bytes", section=_SECTION)
        result.append(byte)
    try:
        return Caption(result.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BitstreamError("a caption is not UTF-8", section=_SECTION) from error


def encode_caption(caption: Caption, check: int = 0) -> tuple[bytes, int]:
    """Payload of a CAPTION section and the chained check."""
    encoder = Encoder(check)
    code_caption(encoder, caption)
    return encoder.finish(), encoder.check


def decode_caption(payload: bytes, check: int = 0) -> tuple[Caption, int]:
    """Inverse of `encode_caption`; raises BitstreamError for a damaged payload."""
    decoder = Decoder(payload, 8 * (MAX_BYTES + 1), check)
    caption = code_caption(decoder, None)
    decoder.finish()
    return caption, decoder.check


def _code_byte(coder: SymbolCoder, model: TextModel, byte: int | None) -> int:
    keys = model.keys()
    cells = model.cells(keys)
    result = 0
    for position in range(7, -1, -1):
        row = np.array([model.row(next(cells) if position == 7 else cells.send(result & 1))])
        bit = None if byte is None else np.array([byte >> position & 1])
        result = result << 1 | int(coder.code(bit, 1, logistic_tables(), row)[0])
    model.learn(keys, result)
    return result
