"""The SQL that `make valgrind` runs under memcheck gives the same output on an ordinary server, so its expected output
is never outdated."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
from collections.abc import Callable, Iterator

import pytest

import support
from servers import Server

PLACE = support.ROOT / "tests" / "valgrind"


@pytest.fixture(scope="module")
def models(server_folder: support.ServerFolder) -> pathlib.Path:
    """One model under the two names that the tests use."""
    for name in ("mini", "copy"):
        server_folder.add(support.FIXTURES / "clip-mini", f"memcheck/{name}")
    server_folder.open(server_folder.path / "memcheck")
    return server_folder.path / "memcheck"


@pytest.fixture
def regress(bindir: pathlib.Path, tmp_path: pathlib.Path) -> Iterator[Callable[[Server, list[str]], str]]:
    """Runs tests of tests/valgrind/sql; yields a function that returns the differences."""
    config = os.environ.get("PG_CONFIG") or "pg_config"
    pgxs = subprocess.run([config, "--pgxs"], capture_output=True, text=True, check=True).stdout.strip()
    program = pathlib.Path(pgxs).parent.parent / "test" / "regress" / "pg_regress"

    def run(made: Server, names: list[str]) -> str:
        command = [
            program,
            f"--host={made.folder}",
            "--user=postgres",
            "--dbname=contrib_regression",
            f"--bindir={bindir}",
        ]
        done = subprocess.run(
            [*map(str, command), f"--inputdir={PLACE}", f"--outputdir={tmp_path}", "setup", *names],
            cwd=support.ROOT,
            capture_output=True,
            text=True,
            timeout=240,
        )
        differences = tmp_path / "regression.diffs"
        if done.returncode == 0:
            return ""
        if place := os.environ.get("REGRESS_RESULTS"):
            # Keep the results, so that they can be reviewed and become the expected output.
            shutil.copytree(tmp_path / "results", place, dirs_exist_ok=True)
        return differences.read_text() if differences.exists() else done.stdout + done.stderr

    yield run


@pytest.mark.parametrize(
    ("names", "preloads"), [(["embed", "groups", "watch"], False), (["worker"], True)], ids=["sessions", "worker"]
)
def test_the_expected_output_is_todays(bindir, models, regress, names: list[str], preloads: bool) -> None:
    settings = {
        "clip_search.model_path": f"$system:{models}",
        "clip_search.model": "mini",
        "max_prepared_transactions": "20",
    }
    if preloads:
        settings |= {"clip_search.preload": "mini", "clip_search.worker_retry_delay": "20ms"}
    else:
        settings["shared_preload_libraries"] = ""
    made = Server(bindir, settings)
    try:
        made.start()
        assert regress(made, names) == ""
    finally:
        made.remove()
