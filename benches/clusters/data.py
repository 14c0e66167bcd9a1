"""Vectors to cluster, as unit rows of float32."""

from __future__ import annotations

import numpy as np

THRESHOLD = 0.82


def unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, np.float64)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def blobs(n: int, d: int, rng: np.random.Generator) -> np.ndarray:
    """Groups of about ten around independent directions; cosines of 0.9 within a group, 0 between groups."""
    centres = unit(rng.normal(size=(n // 10, d)))
    spread = np.sqrt(1 / 0.9 - 1)
    return _around(centres, spread, n, rng)


def photos(n: int, d: int, rng: np.random.Generator) -> np.ndarray:
    """Distributed like embeddings of photos: a direction common to all, so that unrelated ones have a cosine of 0.5
    with a standard deviation of 0.1; variance that falls with the inverse of the axis; and groups whose sizes follow
    a power law, with cosines from 0.75 to 0.98 within."""
    scale = np.arange(1, d + 1) ** -0.5
    common = rng.normal(size=d)
    common /= np.linalg.norm(common)
    count = max(n // 4, 1)
    centres = rng.normal(size=(count, d)) * scale / np.linalg.norm(scale)
    centres = unit(centres + common)
    size = rng.pareto(1.5, count) + 1
    of = rng.choice(count, n, p=size / size.sum())
    spread = np.sqrt(1 / rng.uniform(0.75, 0.98, count) - 1)[of, None]
    noise = rng.normal(size=(n, d)).astype(np.float32) * (scale / np.linalg.norm(scale)).astype(np.float32)
    return unit(centres[of] + spread * noise)


def giant(n: int, d: int, rng: np.random.Generator) -> np.ndarray:
    """A single component around one direction: all cosines are 0.82 with a standard deviation of 0.008, and half of
    the pairs reach the threshold."""
    centre = unit(rng.normal(size=(1, d)))
    return _around(centre, np.sqrt(1 / THRESHOLD - 1), n, rng)


def _around(centres: np.ndarray, spread: float, n: int, rng: np.random.Generator) -> np.ndarray:
    of = rng.integers(0, len(centres), n)
    noise = rng.normal(size=(n, centres.shape[1])).astype(np.float32) / np.sqrt(centres.shape[1])
    return unit(centres[of] + spread * noise)


SETS = {"blobs": blobs, "photos": photos, "giant": giant}
