"""A cancel ends every function soon, whatever it is given. benches/server/cancel.py measures how soon."""

from __future__ import annotations

from collections.abc import Iterator

import cancels
import pytest

import support

# Of what the backend computes, whatever else the machine does. Measured are 0.2 s at most (docs/limits.md); processors of
# half the speed pass.
SOON = 0.6
# These load graphs, each of which is one call of ONNX Runtime that nothing ends (docs/limits.md): 0.6 to 1.6 s.
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
    """Of images, tests/embed/test_image_limits.py does the same."""
    took = [
        cancels.cancel_after(prepared.connect, cancels.OTHERS[name], delay, cancels.SETTINGS.get(name, ""))
        for delay in (0.05, 0.15, 0.4)
    ]
    # A text of 100 MB is refused at once. Beside other tests, some calls may end before a cancel is sent at all.
    while not any(took) and len(took) < 10 and not name.startswith("clip_embed_text,"):
        took.append(cancels.cancel_after(prepared.connect, cancels.OTHERS[name], 0.0, cancels.SETTINGS.get(name, "")))
    seen = [cancelled.cpu for cancelled in took if cancelled is not None]
    assert seen or name.startswith("clip_embed_text,")
    assert max(seen, default=0.0) < LOADING.get(name, SOON), took
