"""Fixtures: throw-away databases, and models in a folder that the server can read."""

from __future__ import annotations

import hashlib
import os
import pathlib
import shutil
import subprocess
import uuid
from collections.abc import Iterator

import pytest
from psycopg import sql

import support


def pytest_sessionstart() -> None:
    missing = [name for name in ("PGHOST", "PGPORT", "PGUSER") if not os.environ.get(name)]
    if missing:
        pytest.exit(
            f'{", ".join(missing)} not set: run `make test`, or eval "$(CLUSTER=test make -s env)" first', returncode=4
        )
    if not os.environ["PGHOST"].startswith("/"):
        pytest.exit(
            f"PGHOST={os.environ['PGHOST']} is not a socket directory: these tests give files to the server, "
            "so run them against the cluster of `make test-cluster`",
            returncode=4,
        )


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--order",
        default=os.environ.get("ORDER") or "none",
        help="the seed of a shuffled order, in which no test may need what another has left; none: as they are written",
    )


def pytest_report_header(config: pytest.Config) -> str:
    return f"order: ORDER={config.getoption('order')} (a number shuffles the tests)"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Shuffles the files, and the tests within each file: the tests of a file share a database, which is made once.
    Tests that share a parameter of a module-scoped fixture stay together."""
    seed = config.getoption("order")
    if seed == "none":
        return

    def place(*names: object) -> str:
        return hashlib.sha256(repr((seed, *names)).encode()).hexdigest()

    def key(item: pytest.Item) -> tuple:
        file = str(item.path.relative_to(item.config.rootpath))
        callspec = getattr(item, "callspec", None)
        scopes = getattr(callspec, "_arg2scope", {})
        shared = [
            (name, repr(callspec.params[name]))
            for name, scope in scopes.items()
            if scope.value in ("module", "session")
        ]
        return place(file), place(file, *sorted(shared)) if shared else "", place(item.nodeid)

    items.sort(key=key)


# Where every test must run (SKIPS=fail, as in CI), only these reasons excuse a skip.
GOOD_REASONS = (
    # Debian's packages include contrib; a server from a wheel doesn't, and only `make matrix` uses one.
    "this server has no postgres_fdw (contrib)",
    "the server has no dblink",
    "the server has no pg_stat_statements",
    "the server was built without ICU",
    "an assertion of PostgreSQL 18 fails",
    "pg_cursors crashes older servers",
    # When run as root in a container that lacks the privilege.
    "mounting needs root",
    "giving files to another user needs root",
)
skipped: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(good in reason for good in GOOD_REASONS):
            skipped.append(f"{report.nodeid}: {reason}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if skipped and os.environ.get("SKIPS") == "fail":
        print("\nskipped without a reason that tests/conftest.py lists:", *skipped, sep="\n  ")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="module")
def database() -> Iterator[support.Database]:
    """A database with the extension, for the tests of one file."""
    made = support.Database()
    try:
        yield made
    finally:
        made.drop()


@pytest.fixture
def empty_database() -> Iterator[support.Database]:
    """A database without the extension, for one test."""
    made = support.Database(extension=False)
    try:
        yield made
    finally:
        made.drop()


@pytest.fixture
def plain_role(database: support.Database) -> Iterator[str]:
    """A role that can only log in and create tables in a schema of its own."""
    name = f"clip_test_{uuid.uuid4().hex[:12]}"
    identifier = sql.Identifier(name)
    with database.connect() as db:
        db.execute(sql.SQL("CREATE ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE").format(identifier))
        db.execute(sql.SQL("CREATE SCHEMA {} AUTHORIZATION {}").format(identifier, identifier))
    try:
        yield name
    finally:
        with database.connect() as db:
            db.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(identifier))
            db.execute(sql.SQL("DROP ROLE {}").format(identifier))


@pytest.fixture(scope="session")
def server_folder() -> Iterator[support.ServerFolder]:
    """A folder that the server can read."""
    folder = support.ServerFolder()
    try:
        yield folder
    finally:
        folder.remove()


@pytest.fixture(scope="session")
def clip_mini(server_folder: support.ServerFolder) -> pathlib.Path:
    """The committed miniature, in a folder that the server can read, as the model clip-mini."""
    return server_folder.add(support.FIXTURES / "clip-mini")


@pytest.fixture(scope="session")
def pg_program():
    """Finds a program of the server's installation, such as pg_dump."""
    config = os.environ.get("PG_CONFIG") or "pg_config"
    assert shutil.which(config), f"{config} is not a program: set PG_CONFIG to your server's pg_config"
    folder = subprocess.run([config, "--bindir"], capture_output=True, text=True, check=True).stdout.strip()

    def find(name: str) -> str:
        path = pathlib.Path(folder, name)
        assert path.exists(), f"{path} is missing: install PostgreSQL's client programs of the server's version"
        return str(path)

    return find


@pytest.fixture(scope="session")
def bindir(pg_program) -> pathlib.Path:
    """Where the server's programs are."""
    return pathlib.Path(pg_program("pg_ctl")).parent


@pytest.fixture(scope="session")
def sharedir() -> pathlib.Path:
    """The directory that holds the server's extension scripts."""
    config = os.environ.get("PG_CONFIG") or "pg_config"
    return pathlib.Path(
        subprocess.run([config, "--sharedir"], capture_output=True, text=True, check=True).stdout.strip()
    )
