"""The class Clip: it finds the model and ONNX Runtime, and hands the work to the engine."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import subprocess
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from ._clip_search import Engine
from ._errors import ClipError

Image = bytes | bytearray | memoryview | str | os.PathLike[str]

# Where the packages of clip_search put them.
_PACKAGED_MODELS = pathlib.Path("/usr/share/clip-search/models")
_PACKAGED_RUNTIME = pathlib.Path("/usr/lib/clip-search/libonnxruntime.so")


def _installed(which: str, below: str) -> pathlib.Path | None:
    """A file below a directory of the PostgreSQL server on this machine, if there is one."""
    program = os.environ.get("PG_CONFIG") or "pg_config"
    try:
        done = subprocess.run([program, which], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    path = pathlib.Path(done.stdout.strip()) / below
    return path if path.exists() else None


def _models() -> list[pathlib.Path]:
    found = [_installed("--sharedir", "clip_search/models"), _PACKAGED_MODELS]
    return [path for path in found if path is not None and path.exists()]


def _runtime() -> pathlib.Path:
    if path := os.environ.get("ORT_DYLIB_PATH"):
        return pathlib.Path(path)
    if path := _installed("--pkglibdir", "clip_search/libonnxruntime.so"):
        return path
    if _PACKAGED_RUNTIME.exists():
        return _PACKAGED_RUNTIME
    # Found without an import, which would load it a second time.
    package = importlib.util.find_spec("onnxruntime")
    for place in (package.submodule_search_locations or []) if package else []:
        for path in sorted(pathlib.Path(place, "capi").glob("libonnxruntime.so*")):
            return path
    raise ClipError(
        "ONNX Runtime is not installed",
        "Neither a PostgreSQL server with clip_search, nor its package, nor the Python package onnxruntime is there.",
        "Run: pip install onnxruntime. Or give onnxruntime= the path of libonnxruntime.so.",
        "missing file",
    )


class Clip:
    """A CLIP model that embeds images and texts as clip_search does in PostgreSQL.

    model:       its name, as in clip_search.model, or the path of its directory (with a slash in it, or a pathlib.Path)
    model_path:  directories to search for a name [default: those of clip_search on this machine]
    onnxruntime: path of libonnxruntime.so [default: ORT_DYLIB_PATH, that of clip_search on this machine, or the
                 package onnxruntime]
    threads:     threads of one inference, as clip_search.threads
    cache:       directory for optimized copies of models; the variant NAME:auto-int8 needs one
    truncate:    whether a text over the model's context is cut, with a ClipWarning; otherwise it is an error

    The other arguments are the settings of the same names. The model is loaded by the first call. A Clip can be used by any
    thread; it embeds one image after another, so several of them use several cores. It can be pickled: the other process loads
    the model of the same path.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = "photo-mini",
        *,
        model_path: Iterable[str | os.PathLike[str]] | None = None,
        onnxruntime: str | os.PathLike[str] | None = None,
        threads: int = 1,
        cache: str | os.PathLike[str] | None = None,
        truncate: bool = True,
        max_image_pixels: int | None = None,
        max_image_bytes: int | None = None,
        max_image_memory: int | None = None,
        allow_truncated_images: bool = False,
        exact_jpeg: bool = False,
    ) -> None:
        if not 1 <= threads <= 256:
            raise ValueError(f"threads={threads} is not from 1 to 256")
        if isinstance(model, os.PathLike) or "/" in model:
            path = pathlib.Path(model).absolute()
            search, name = [path.parent], path.name
        else:
            search, name = [pathlib.Path(p) for p in (_models() if model_path is None else model_path)], model
        self._arguments: dict[str, Any] = {
            "search": search,
            "model": name,
            "library": pathlib.Path(onnxruntime) if onnxruntime is not None else _runtime(),
            "threads": threads,
            "cache": None if cache is None else pathlib.Path(cache),
            "truncate": truncate,
            "max_pixels": max_image_pixels,
            "max_bytes": max_image_bytes,
            "max_memory": max_image_memory,
            "allow_truncated": allow_truncated_images,
            "exact_jpeg": exact_jpeg,
        }
        self._engine = Engine(**self._arguments)

    def images(self, images: Iterable[Image]) -> npt.NDArray[np.float32]:
        """The unit vectors of images, as rows. Each is the bytes of a file, or its path.

        Raises ClipError for the first image that can't be embedded; its element is the image's index.
        """
        return self._engine.images(_images(images))

    def try_images(self, images: Iterable[Image]) -> list[npt.NDArray[np.float32] | ClipError]:
        """For each image its vector, or the ClipError that says why it has none. Raises ClipError if the model can't be loaded."""
        return self._engine.try_images(_images(images))

    def texts(self, texts: Iterable[str]) -> npt.NDArray[np.float32]:
        """The unit vectors of texts, as rows."""
        if isinstance(texts, str):
            raise TypeError("texts is one str: give a list of them")
        return self._engine.texts(list(texts))

    def check(self) -> list[tuple[str, str]]:
        """What clip_check_model says of the model: (item, value); the last is the verdict."""
        return self._engine.check()

    def __repr__(self) -> str:
        return f"Clip({self._arguments['model']!r})"

    def __getstate__(self) -> dict[str, Any]:
        return self._arguments

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._arguments = state
        self._engine = Engine(**state)


def _images(images: Iterable[Image]) -> list[bytes | bytearray | pathlib.Path]:
    if isinstance(images, (str, bytes, bytearray, memoryview, os.PathLike)):
        raise TypeError("images is one image: give a list of them")
    taken: list[bytes | bytearray | pathlib.Path] = []
    for image in images:
        if isinstance(image, memoryview):
            taken.append(image.tobytes())
        elif isinstance(image, (str, os.PathLike)):
            taken.append(pathlib.Path(image))
        else:
            taken.append(image)
    return taken
