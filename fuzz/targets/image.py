"""Pictures that robots send.

Input: a byte that says how (modulo 4: JPEG, PNG, a raw ``Tensor``, a format that there is none of), and the picture.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from PIL import Image, JpegImagePlugin, MpoImagePlugin, PngImagePlugin, TiffImagePlugin

from chunkcast.server.errors import ObservationRejected
from chunkcast.server.images import decoded, raw_picture, resized
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1.tensors import encode_tensor
from fuzz.checks import require, require_array, require_clear
from fuzz.mutators import as_bytes, as_png, as_protobuf
from fuzz.policies import EYE, SIZE
from fuzz.registry import Mutate

SHAPE = (SIZE, SIZE, 3)
CODES = (
    pb.ERROR_CODE_BAD_IMAGE,
    pb.ERROR_CODE_WRONG_SHAPE,
    pb.ERROR_CODE_WRONG_DTYPE,
)
JPEG, PNG, RAW, UNKNOWN = range(4)

# Imported here, so that they are instrumented: Pillow imports them when it first needs them.
PLUGINS = (JpegImagePlugin, MpoImagePlugin, PngImagePlugin, TiffImagePlugin)


def run(data: bytes) -> None:
    """Decode a picture and bring it to the policy's size."""
    way, content = (data[0] % 4, data[1:]) if data else (UNKNOWN, b"")
    try:
        if way == RAW:
            try:
                tensor = pb.Tensor.FromString(content)
            except DecodeError:
                return
            raw = raw_picture(EYE, tensor, SHAPE)
            require(raw.tobytes() == tensor.data, "a raw picture is not what was sent")
            picture = raw if raw.shape == SHAPE else resized(raw, SHAPE)
        else:
            form: Any = (pb.IMAGE_FORMAT_JPEG, pb.IMAGE_FORMAT_PNG, None, 77)[way]
            picture = decoded(EYE, pb.Image(format=form, data=content), SHAPE)
    except ObservationRejected as rejected:
        require(rejected.code in CODES, f"a picture is refused with the code {int(rejected.code)}")
        require_clear(rejected)
        return
    require_array("a picture", picture, SHAPE, np.uint8)


def mutate(data: bytes, most: int, seed: int, plain: Mutate) -> bytes:
    """Within the format that the first byte says."""
    way = data[0] % 4 if data else UNKNOWN
    mutator = {PNG: as_png, RAW: as_protobuf}.get(way, as_bytes)
    return bytes([way]) + mutator(data[1:] or b"\0", most - 1, seed, plain)


def encoded(form: str, mode: str = "RGB", size: int = SIZE, **options: Any) -> bytes:
    """A small picture with some structure."""
    ramp = np.arange(size * size * 3, dtype=np.uint32).reshape(size, size, 3) * 7 % 256
    stream = io.BytesIO()
    Image.fromarray(ramp.astype(np.uint8)).convert(mode).save(stream, form, **options)
    return stream.getvalue()


def png_part(name: bytes, content: bytes) -> bytes:
    """A chunk."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_claim(height: int, width: int) -> bytes:
    """A PNG of some sixty bytes that claims a size."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = png_part(b"IHDR", head) + png_part(b"IDAT", zlib.compress(b"")) + png_part(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def with_segment(jpeg: bytes, marker: int, content: bytes) -> bytes:
    """``jpeg`` with an application segment in the place of its first."""
    rest = jpeg[4 + int.from_bytes(jpeg[4:6], "big") :]
    return jpeg[:2] + b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content + rest


def directory(entries: int, size: int) -> bytes:
    """A TIFF directory each of whose entries says that the same bytes are its own."""
    start = 8 + 2 + 12 * entries + 4
    rows = b"".join(struct.pack(">HHLL", 0x9000 + i, 7, size, start) for i in range(entries))
    return b"MM\0*\0\0\0\x08" + struct.pack(">H", entries) + rows + bytes(4) + bytes(size)


def seeds() -> dict[str, bytes]:
    """Every way, whole, in other modes, cut, and with claims that are not so."""
    jpeg, png = encoded("JPEG"), encoded("PNG")
    start = png.index(b"IDAT") - 4
    text = zlib.compress(bytes(2**20 + 1))
    pictures = {
        JPEG: {
            "jpeg": jpeg,
            "jpeg-progressive": encoded("JPEG", progressive=True),
            "jpeg-larger": encoded("JPEG", size=64),
            "jpeg-optimised": encoded("JPEG", optimize=True, subsampling=2, restart_marker_blocks=1),
            "jpeg-grey": encoded("JPEG", "L"),
            "jpeg-cmyk": encoded("JPEG", "CMYK"),
            "jpeg-cut": jpeg[:-60],
            "jpeg-empty-comments": b"\xff\xd8" + b"\xff\xfe\x00\x02" * 1100,
            "jpeg-exif": with_segment(jpeg, 0xE1, b"Exif\0\0" + directory(4, 16)),
            "jpeg-exif-overlaps": with_segment(jpeg, 0xE1, b"Exif\0\0" + directory(600, 8000)),
            "jpeg-two-pictures": encoded("MPO", save_all=True, append_images=[Image.new("RGB", (SIZE, SIZE))]),
            "jpeg-profile": encoded("JPEG", icc_profile=bytes(200)),
            "jpeg-is-png": png,
        },
        PNG: {
            "png": png,
            "png-larger": encoded("PNG", size=64),
            "png-palette": encoded("PNG", "P"),
            "png-grey": encoded("PNG", "L"),
            "png-alpha": encoded("PNG", "RGBA"),
            "png-bits": encoded("PNG", "1"),
            "png-cut": png[:-30],
            "png-claims-100000": png_claim(100_000, 100_000),
            "png-claims-2000": png_claim(2000, 2000),
            "png-claims-none": png_claim(0, 0),
            "png-text-bomb": png[:start] + png_part(b"zTXt", b"a\0\0" + text) + png[start:],
            "png-profile-bomb": png[:start] + png_part(b"iCCP", b"a\0\0" + text) + png[start:],
            "png-animated": encoded("PNG", save_all=True, append_images=[Image.new("RGB", (SIZE, SIZE))]),
        },
        RAW: {
            name: encode_tensor(np.ones(shape, dtype)).SerializeToString()
            for name, shape, dtype in (
                ("raw", SHAPE, np.uint8),
                ("raw-smaller", (4, 4, 3), np.uint8),
                ("raw-larger", (32, 32, 3), np.uint8),
                ("raw-wide", (4, 8, 3), np.uint8),
                ("raw-grey", (16, 16), np.uint8),
                ("raw-float", SHAPE, np.float32),
            )
        },
        UNKNOWN: {"unknown": jpeg},
    }
    return {name: bytes([way]) + content for way, named in pictures.items() for name, content in named.items()}
