"""CLIP embeddings of images and texts on the CPU: the vectors of clip_search, outside PostgreSQL."""

from ._clip import Clip, Image
from ._clip_search import __version__
from ._errors import ClipError, ClipWarning

__all__ = ["Clip", "ClipError", "ClipWarning", "Image", "__version__"]
