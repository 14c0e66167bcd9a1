import pathlib

import numpy as np
import numpy.typing as npt

from ._errors import ClipError

__version__: str

class Engine:
    def __new__(
        cls,
        *,
        search: list[pathlib.Path],
        model: str,
        library: pathlib.Path,
        threads: int,
        cache: pathlib.Path | None,
        truncate: bool,
        max_pixels: int | None,
        max_bytes: int | None,
        max_memory: int | None,
        allow_truncated: bool,
        exact_jpeg: bool,
    ) -> Engine: ...
    def images(self, images: list[bytes | bytearray | pathlib.Path]) -> npt.NDArray[np.float32]: ...
    def try_images(
        self, images: list[bytes | bytearray | pathlib.Path]
    ) -> list[npt.NDArray[np.float32] | ClipError]: ...
    def texts(self, texts: list[str]) -> npt.NDArray[np.float32]: ...
    def check(self) -> list[tuple[str, str]]: ...
