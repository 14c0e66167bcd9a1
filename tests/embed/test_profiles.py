"""Thumbnails are in sRGB, whatever colour profile a file has; embeddings ignore the profile, as the reference
pipelines do."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

import support
from reference import cosine
from support import embed_one, value

CORPUS = support.FIXTURES / "corpus"


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.open(support.ROOT / "examples" / "gallery" / "photos" / "dahlia.jpg").convert("RGB").resize((200, 150))


@pytest.fixture(scope="module")
def profile() -> bytes:
    """Display P3: sRGB's profile with other primaries (their XYZ at D50) and its curve."""
    base = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for name, xyz in {
        b"rXYZ": (0.51512, 0.24120, -0.00105),
        b"gXYZ": (0.29198, 0.69225, 0.04189),
        b"bXYZ": (0.15710, 0.06657, 0.78407),
    }.items():
        at = next(at for at in range(132, 132 + 12 * 30, 12) if base[at : at + 4] == name)
        place = int.from_bytes(base[at + 4 : at + 8], "big")
        for index, number in enumerate(xyz):
            fixed = round(number * 65536).to_bytes(4, "big", signed=True)
            base[place + 8 + 4 * index : place + 12 + 4 * index] = fixed
    return bytes(base)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_a_thumbnail_is_srgb(database: support.Database, photo: Image.Image, profile: bytes, form: str) -> None:
    options = {} if form in ("PNG", "TIFF") else {"quality": 95}
    plain, stated = io.BytesIO(), io.BytesIO()
    photo.save(plain, form, **options)
    photo.save(stated, form, icc_profile=profile, **options)
    decoded = Image.open(io.BytesIO(stated.getvalue())).convert("RGB")
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    expected = ImageCms.profileToProfile(decoded, source, ImageCms.createProfile("sRGB"), renderingIntent=intent)
    before = np.asarray(decoded).astype(int)
    assert np.abs(np.asarray(expected) - before).mean() > 3, "the profile changes too little to tell"
    with database.connect() as db:
        png = value(db, "SELECT clip_thumbnail(%s, 200, 'png')", stated.getvalue())
        found = Image.open(io.BytesIO(png))
        assert "icc_profile" not in found.info
        assert np.abs(np.asarray(found).astype(int) - np.asarray(expected)).mean() < 1.5
        one, other = (embed_one(db, "image", data.getvalue()) for data in (plain, stated))
        assert cosine(one, other) > 0.999999
