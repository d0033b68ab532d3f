"""JPEGs and JPEG 2000 whose bytes show that they are damaged, where a decoder makes tissue of them."""

from __future__ import annotations

import zlib
from io import BytesIO
from typing import Any

import imagecodecs
import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from PIL import Image
from slide_files import texture

from wsi_meta.tiffs.codestreams import (
    check_deflate,
    check_jpeg,
    check_jpeg2000,
    declared_size,
    decode_jpeg,
    decode_jpeg2000,
    stated_colours,
    stored_colours,
    tables_of,
)
from wsi_meta.tiffs.pixel_form import OtherFormError, refuse_other_colours
from wsi_meta.tiffs.tags import RGB, YCBCR

ZEROS = bytes(16)


def jpeg_of(pixels: NDArray[np.uint8], **options: Any) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "jpeg", **{"quality": 85} | options)
    return stream.getvalue()


def test_declared_size() -> None:
    frame = b"\xff\xc0\x00\x11\x08\x00\x10\x00\x20\x03"
    assert declared_size(b"\xff\xd8" + frame) == (32, 16)
    assert declared_size(b"\xff\xd8\xff\xdb\x00\x04ab\xff" + frame) == (32, 16), "after tables and a byte that fills"
    for without in (b"", b"\xff\xd8", b"\xff\xd8\xff\xda\x00\x02" + frame, b"\xff\xd8\xff\xdb\x00\x04ab", b"\xff\xd8 text"):
        assert declared_size(without) is None


JFIF = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
ADOBE_RGB, ADOBE_YCBCR = (b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + end for end in (b"\0", b"\1"))


@pytest.mark.parametrize(
    ("markers", "sampling", "said"),
    [
        (b"", b"\x11\x11\x11", None),
        (JFIF, b"\x11\x11\x11", YCBCR),
        (ADOBE_RGB, b"\x11\x11\x11", RGB),
        (JFIF + ADOBE_YCBCR, b"\x11\x11\x11", YCBCR),
        (JFIF + ADOBE_RGB, b"\x11\x11\x11", None),
        (b"", b"\x22\x11\x11", YCBCR),
        (ADOBE_RGB, b"\x22\x11\x11", None),
        (JFIF, b"\x11", None),
    ],
)
def test_the_colours_that_a_jpeg_says(markers: bytes, sampling: bytes, said: int | None) -> None:
    assert stored_colours(jpeg_head(markers, sampling)) == said
    assert stored_colours(b"no" + jpeg_head(markers, sampling)[2:]) is None


def jpeg_head(markers: bytes, sampling: bytes = b"\x11\x11\x11") -> bytes:
    components = b"".join(bytes([number, both, 0]) for number, both in enumerate(sampling))
    frame = b"\xff\xc0\0" + bytes([8 + len(components), 8, 0, 16, 0, 16, len(sampling)]) + components
    return b"\xff\xd8" + markers + frame + b"\xff\xd9"


SILENT, SAYS_YCBCR, SAYS_RGB, DAMAGED = jpeg_head(b""), jpeg_head(JFIF), jpeg_head(ADOBE_RGB), bytes(64)


@pytest.mark.parametrize(
    ("jpegs", "agreed"),
    [
        ([SAYS_YCBCR], {YCBCR}),
        ([], set()),
        ([SILENT, SAYS_YCBCR, SAYS_YCBCR], {YCBCR}),
        ([SAYS_YCBCR, SILENT, SILENT], set()),
        ([SILENT, SAYS_YCBCR], {YCBCR}),
        ([SAYS_RGB, SAYS_YCBCR], set()),
        ([DAMAGED, DAMAGED, SAYS_YCBCR], {YCBCR}),
        ([DAMAGED, b"\xff\xd8" + bytes(64), SILENT, SAYS_RGB, SAYS_RGB], {RGB}),
        ([SAYS_YCBCR, SAYS_YCBCR, SAYS_YCBCR, SAYS_RGB, SAYS_RGB], {YCBCR, RGB}),
    ],
)
def test_one_jpeg_does_not_say_the_colours_of_all(jpegs: list[bytes], agreed: set[int]) -> None:
    assert stated_colours(jpegs) == agreed


def test_tiles_of_two_kinds_are_refused_whatever_the_file_says() -> None:
    for stated, other in ((YCBCR, "RGB"), (RGB, "YCbCr")):
        with pytest.raises(OtherFormError, match=rf"s\.tif: says that its colours are .*, but its JPEG tiles say {other}; "):
            refuse_other_colours("s.tif", stated, {YCBCR, RGB})
    refuse_other_colours("s.tif", RGB, {RGB})
    refuse_other_colours("s.tif", None, {RGB})


def test_a_deflate_stream_is_sound_by_its_checksum_and_its_length() -> None:
    stored = zlib.compress(bytes(range(200)))
    check_deflate(stored + b"filled up", 200)
    for damaged, most in ((stored, 199), (stored[:-1], 300), (stored[:-1] + b"\0", 300), (b"", 300)):
        with pytest.raises(ValueError, match=r"^a deflate stream that is damaged, or too long"):
            check_deflate(damaged, most)


def test_the_tables_alone_are_taken_and_damaged_ones_refused() -> None:
    first, second = b"\xff\xdb\0\5abc", b"\xff\xc4\0\4de"
    assert tables_of(b"\xff\xd8" + JFIF + first + ADOBE_RGB + b"\xff\xff" + second + b"\xff\xfe\0\3c\xff\xd9") == first + second
    assert tables_of(b"\xff\xd8\xff\xd9") == b""
    for damaged in (b"\xff\xd8" + first, b"no" + first + b"\xff\xd9", b"\xff\xd8" + first[:-1] + second + b"\xff\xd9"):
        with pytest.raises(ValueError, match=r"^shared JPEG tables that are damaged$"):
            tables_of(damaged)


@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"subsampling": 0}, {"restart_marker_rows": 1}, {"grey": True}])
def test_zeros_amid_a_jpeg_are_a_hole(options: dict[str, Any]) -> None:
    pixels = texture(256, 256)
    grey = "grey" in options
    jpeg = jpeg_of(pixels[..., 0]) if grey else jpeg_of(pixels, **options)
    start, unnoticed = jpeg.index(b"\xff\xda") + 14, 0
    for at in np.linspace(start, len(jpeg) - 80, 40).astype(int).tolist():
        holed = jpeg[:at] + bytes(64) + jpeg[at + 64 :]
        for read in (decode_jpeg, check_jpeg):
            with pytest.raises(ValueError, match=r"zeros amid|Corrupt"):
                read(holed)
        try:
            simplejpeg.decode_jpeg(holed, "RGB", strict=True)
            unnoticed += 1
        except ValueError:
            pass
    assert unnoticed, "else nothing is tried here"
    check_jpeg(jpeg)


@pytest.mark.parametrize("progressive", [False, True])
def test_zeros_may_spell_glass(progressive: bool) -> None:
    glass = np.full((1024, 1024, 3), 240, np.uint8)
    glass[:8, :8] = texture(8, 8)
    jpeg = jpeg_of(glass, optimize=True, progressive=progressive)
    assert ZEROS in jpeg[jpeg.index(b"\xff\xda") :]
    check_jpeg(jpeg)
    assert np.abs(decode_jpeg(jpeg).astype(int) - glass)[16:].max() <= 2
    assert ZEROS not in jpeg_of(glass)[700:], "an encoder's usual tables have no such codes"


def test_zeros_may_spell_a_ramp() -> None:
    ramp = np.broadcast_to(250 - (np.arange(512) // 8)[None, :, None], (512, 512, 3)).astype(np.uint8)
    jpeg = jpeg_of(ramp, optimize=True, quality=75, subsampling=0)
    assert ZEROS in jpeg[jpeg.index(b"\xff\xda") :]
    check_jpeg(jpeg)
    assert np.abs(decode_jpeg(jpeg).astype(int) - ramp).max() <= 2


def test_zeros_beside_what_is_coded_do_not_count() -> None:
    jpeg = jpeg_of(texture(64, 64), comment=ZEROS * 4)
    assert ZEROS in jpeg
    assert np.array_equal(decode_jpeg(jpeg), decode_jpeg(jpeg + ZEROS))


def test_a_jpeg2000_that_breaks_off_is_damaged() -> None:
    pixels = texture(128, 128)
    whole = bytes(imagecodecs.jpeg2k_encode(pixels, level=30, reversible=False))
    part = whole.index(b"\xff\x90")
    for cut in (1, 2, 3, len(whole) // 20, len(whole) // 2, len(whole) - part - 3, len(whole) - part + 9):
        for damaged in (whole[:-cut], whole[:-cut] + bytes(cut), whole[:-cut] + b"\xff" * cut):
            with pytest.raises(ValueError, match=r"JPEG 2000 (that breaks off|whose header)"):
                decode_jpeg2000(damaged, pixels.size)
    to_the_end = whole[: part + 6] + bytes(4) + whole[part + 10 :]
    for sound in (whole, whole + bytes(7), whole + b"\xff", to_the_end, to_the_end + bytes(3)):
        assert np.abs(decode_jpeg2000(sound, pixels.size).astype(int) - pixels).mean() < 12
    for damaged in (b"", to_the_end[:-1], to_the_end[:-9] + bytes(9)):
        with pytest.raises(ValueError, match="JPEG 2000"):
            check_jpeg2000(damaged)
