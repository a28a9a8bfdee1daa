"""Captions: every text round-trips, ordinary English is small, damage is reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semvc.entropy import ASSETS
from semvc.entropy.coder import Counter, Decoder, Encoder
from semvc.entropy.reference import ReferenceDecoder
from semvc.errors import BitstreamError
from semvc.signals.caption import (
    MAX_BYTES,
    Caption,
    code_caption,
    decode_caption,
    encode_caption,
)
from semvc.train import tables

CAPTIONS = (Path(__file__).parent / "data" / "captions.txt").read_text("utf-8").splitlines()
ODD = [
    "",
    "A",
    "a man",
    "Ein Mann läuft über die Straße und trägt einen grünen Hut.",
    "一个女人在雪地里遛狗，孩子们在旁边堆雪人。",
    "Мужчина в шляпе читает газету.",
    "A dog 🐕 and a family 👨‍👩‍👧 at the beach 🏖️!",
    "escape \x1b[31m red, bidi \u202e, tab\t, newline\n, DEL \x7f",
    "ALL CAPITALS, 1234567890 <lora:x:1> ((very)) {long}",
]
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60)


def test_fifty_english_captions_take_less_than_seventeen_bytes_on_average():
    sizes = [len(encode_caption(Caption(text))[0]) for text in CAPTIONS]
    assert len(sizes) == 50
    assert sum(sizes) / 50 < 17  # brotli: 53; zstd with a trained dictionary: 40


@pytest.mark.parametrize("text", ODD)
def test_any_language_and_any_character_round_trips(text):
    payload, check = encode_caption(Caption(text), 7)
    assert decode_caption(payload, 7) == (Caption(text), check)
    assert len(payload) <= 4 + len(text.encode()) * 8 // 5
    if len(text) > 20:
        counter = Counter(7)
        assert code_caption(counter, Caption(text)) == Caption(text)
        assert counter.check == check
        assert abs(counter.bits - 8 * len(payload)) <= 64


@settings(max_examples=40, deadline=None)
@given(TEXTS)
def test_arbitrary_text_round_trips(text):
    payload, check = encode_caption(Caption(text))
    assert decode_caption(payload) == (Caption(text), check)


def test_the_reference_decoder_reads_the_same_caption():
    payload, check = encode_caption(Caption(CAPTIONS[3]))
    decoder = ReferenceDecoder(payload, 8 * 200)
    assert code_caption(decoder, None) == Caption(CAPTIONS[3])
    assert decoder.check == check


@pytest.mark.slow
def test_the_longest_caption_round_trips():
    text = ("A very long caption repeats itself. " * 200)[:MAX_BYTES]
    payload, check = encode_caption(Caption(text))
    assert decode_caption(payload) == (Caption(text), check)
    assert len(payload) < 200


@pytest.mark.parametrize("text", ["a" * (MAX_BYTES + 1), "é" * (MAX_BYTES // 2 + 1), "a\0b"])
def test_texts_that_do_not_fit_are_refused(text):
    with pytest.raises(ValueError):
        Caption(text)


def test_a_lone_surrogate_is_a_value_error():
    with pytest.raises(ValueError):
        Caption("\ud800")


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=40))
def test_garbage_is_reported_or_is_the_only_spelling_of_its_text(payload):
    try:
        caption, _ = decode_caption(payload)
    except BitstreamError:
        return
    assert encode_caption(caption)[0] == payload


def test_a_truncated_caption_is_reported_or_reads_differently():
    payload, _ = encode_caption(Caption(CAPTIONS[0]))
    for size in range(len(payload)):
        try:
            caption, _ = decode_caption(payload[:size])
        except BitstreamError:
            continue
        assert caption.text != CAPTIONS[0]


def test_a_text_without_an_end_is_stopped_at_its_limit(monkeypatch):
    monkeypatch.setattr("semvc.signals.caption.MAX_BYTES", 10)
    payload = encode_caption(Caption("0123456789"))[0]
    monkeypatch.setattr("semvc.signals.caption.MAX_BYTES", 9)
    with pytest.raises(BitstreamError, match="longer"):
        code_caption(Decoder(payload, 1000), None)


def test_bytes_that_are_not_utf8_are_damage():
    class Wrong(Caption):
        def canonical_bytes(self):
            return b"abc\xff\xfe"

    encoder = Encoder()
    with pytest.raises(BitstreamError, match="UTF-8"):
        code_caption(encoder, Wrong("x"))
    with pytest.raises(BitstreamError, match="UTF-8"):
        decode_caption(encoder.finish())


def test_the_caption_asset_is_what_its_builder_writes():
    sources = [(Path(tables.__file__).parent / name) for name in ("captions.txt", "words.txt")]
    built = tables.build_caption_text(*(source.read_bytes() for source in sources))
    assert (ASSETS / "caption.txt").read_bytes() == built


@pytest.mark.nightly
def test_the_caption_mixture_can_be_trained_again():
    built = tables.build_caption_mixture((ASSETS / "caption.txt").read_bytes())
    stored = np.frombuffer((ASSETS / "caption.i16").read_bytes(), "<i2").astype(int)
    assert abs(np.frombuffer(built, "<i2") - stored).max() <= 2
