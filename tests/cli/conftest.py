"""Directories of photos."""

from __future__ import annotations

import pathlib
import shutil

import pytest

from clip_embed_runs import PHOTOS


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """The demo's photos, some of them in subdirectories."""
    photos = tmp_path / "photos"
    (photos / 'more, "quoted"').mkdir(parents=True)
    for number, photo in enumerate(sorted(PHOTOS.glob("*.jpg"))[:24]):
        shutil.copy(photo, photos / ('more, "quoted"' if number % 2 else "") / photo.name)
    (photos / "notes.txt").write_text("no image")
    (photos / ".hidden.jpg").write_text("no image either")
    return photos


@pytest.fixture
def listed(tmp_path: pathlib.Path) -> pathlib.Path:
    """All photos that LISTS names, except one."""
    photos = tmp_path / "listed"
    for name in ("cat.jpg", "clock.jpg", "dahlia.jpg", 'größe, "quoted"/clock.jpg', "a b/cat.jpg"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PHOTOS / pathlib.Path(name).name, photos / name)
    return photos
