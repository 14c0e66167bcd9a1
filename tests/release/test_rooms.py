"""scripts/rooms.py finds the violations in trees written for this test, and none in this repository."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

import support

ROOMS = support.ROOT / "scripts" / "rooms.py"
LIB = "mod guc;\nmod pg;\nmod watch;\n"


def run(root: pathlib.Path) -> tuple[int, str]:
    done = subprocess.run([sys.executable, str(ROOMS), str(root)], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def write(root: pathlib.Path, **files: str) -> None:
    for name, text in files.items():
        path = root / "src" / f"{name.replace('__', '/')}.rs"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_this_tree_has_no_lapse() -> None:
    assert run(support.ROOT) == (0, "")


def test_a_tree_without_a_lapse(tmp_path: pathlib.Path) -> None:
    """Re-exports, inline modules, strings, comments and tests don't count as circles."""
    write(
        tmp_path,
        lib=LIB,
        guc='pub fn get() -> &\'static str { "use crate::watch::Watch; crate::watch::go()" }\n// crate::watch::go()\n',
        pg__mod="mod error;\nmod spi;\npub use self::error::Failure;\npub use spi::get;\n",
        pg__error="use crate::guc;\npub struct Failure;\n",
        pg__spi="use super::Failure;\npub fn get() -> Failure { crate::pg::Failure }\n"
        "#[cfg(test)]\nmod tests {\n    use super::*;\n    fn f() { crate::watch::go('{') }\n}\n",
        watch__mod="pub mod queue;\n#[pg_schema]\nmod schema {\n    use super::*;\n    fn f() { super::queue::run() }\n}\npub fn go() {}\n",
        watch__queue="use crate::pg::{self, spi::get, Failure as Failed};\npub fn run() { crate::guc::get(); }\n",
    )
    assert run(tmp_path) == (0, "")


@pytest.mark.parametrize(
    ("below", "line"),
    [
        ("\nuse crate::{pg::error, watch::{self, queue::run}};\n", 2),
        ("fn f() {\n    crate::watch::queue::run();\n}\n", 2),
        ("use super::watch;\n", 1),
    ],
)
def test_a_room_that_uses_one_above(tmp_path: pathlib.Path, below: str, line: int) -> None:
    write(
        tmp_path,
        lib=LIB,
        guc=below,
        pg__mod="pub mod error;\n",
        pg__error="",
        watch__mod="pub mod queue;\n",
        watch__queue="pub fn run() {}\n",
    )
    status, text = run(tmp_path)
    assert status == 1 and f"src/guc.rs:{line}: crate::guc uses crate::watch" in text and "a room above its own" in text


def test_a_circle_is_named_step_by_step(tmp_path: pathlib.Path) -> None:
    """The circle goes through a re-export: an item that `rows` imports from the room's mod.rs comes from `queue`."""
    write(
        tmp_path,
        lib=LIB,
        guc="",
        pg__mod="",
        watch__mod="mod queue;\nmod rows;\nmod trigger;\npub use queue::claim;\n",
        watch__queue="use super::trigger::Plan;\npub fn claim() {}\n",
        watch__rows="pub fn read() { crate::watch::claim() }\n",
        watch__trigger="use super::rows;\npub struct Plan;\n",
    )
    status, text = run(tmp_path)
    assert status == 1
    steps = {line.strip() for line in text.splitlines()[1:]}
    assert text.startswith("a circle of modules:") and steps == {
        "src/watch/queue.rs:1: crate::watch::queue uses crate::watch::trigger",
        "src/watch/trigger.rs:1: crate::watch::trigger uses crate::watch::rows",
        "src/watch/rows.rs:1: crate::watch::rows uses crate::watch::queue",
    }


def test_a_child_may_use_its_parents_type(tmp_path: pathlib.Path) -> None:
    """Methods of one type may be in several files; using a sibling through the parent is still a circle."""
    write(
        tmp_path,
        lib=LIB,
        guc="",
        pg__mod="",
        watch__mod="mod a;\nmod b;\nuse a::go;\npub struct Watch;\n",
        watch__a="use super::Watch;\n",
        watch__b="",
    )
    assert run(tmp_path) == (0, "")
    write(tmp_path, watch__a="use super::{Watch, b};\n", watch__b="use super::a::go;\n")
    assert run(tmp_path)[0] == 1


def test_a_room_that_is_not_known(tmp_path: pathlib.Path) -> None:
    write(tmp_path, lib=LIB, guc="use crate::attic::f;\n", attic="pub fn f() {}\n")
    status, text = run(tmp_path)
    assert status == 1 and "attic is no room of scripts/rooms.py" in text
