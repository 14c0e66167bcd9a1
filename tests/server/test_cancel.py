"""A cancel ends every function soon, whatever its arguments. benches/server/cancel.py measures how soon."""

from __future__ import annotations

from collections.abc import Iterator

import cancels
import pytest

import support

# Seconds of the backend's own CPU time, which other processes don't affect. At most 0.2 s were measured
# (docs/limits.md), so processors of half the speed pass.
SOON = 0.6
# These load graphs. Each load is one call of ONNX Runtime that nothing can end (docs/limits.md): 0.6 to 1.6 s.
LOADING = {"clip_check_model": 4.0, "precision int8 made": 4.0}


@pytest.fixture(scope="module")
def prepared() -> Iterator[support.Database]:
    made = support.Database()
    with made.connect() as db:
        cancels.prepare(db, {})
    yield made
    made.drop()


@pytest.mark.parametrize("name", cancels.OTHERS)
def test_a_cancel_is_seen(prepared: support.Database, name: str) -> None:
    """tests/embed/test_image_limits.py does the same for images."""
    took = [
        cancels.cancel_after(prepared.connect, cancels.OTHERS[name], delay, cancels.SETTINGS.get(name, ""))
        for delay in (0.05, 0.15, 0.4)
    ]
    # A text of 100 MB is refused at once. If other tests run at the same time, some calls may end before the cancel is
    # sent.
    while not any(took) and len(took) < 10 and not name.startswith("clip_embed_text,"):
        took.append(cancels.cancel_after(prepared.connect, cancels.OTHERS[name], 0.0, cancels.SETTINGS.get(name, "")))
    seen = [cancelled.cpu for cancelled in took if cancelled is not None]
    assert seen or name.startswith("clip_embed_text,")
    assert max(seen, default=0.0) < LOADING.get(name, SOON), took
