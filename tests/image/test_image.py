"""The image of `make image`, run by podman: the README's first five minutes, the worker, the health check, a
read-only root, and a volume of the previous version. IMAGE names it; the tests use psql inside the container, so
that no port is needed.
"""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import time
import uuid
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
IMAGE, MAJOR = os.environ["IMAGE"], os.environ["MAJOR"]
CURRENT = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]
OLD = "0.2.0"
BUILT = ROOT / "target" / "releases" / OLD / f"pg{MAJOR}"
NUMBER = re.compile(r"-?\d+\.\d+")


def podman(*arguments: str, input: str | None = None, code: int | None = 0) -> str:
    done = subprocess.run(["podman", *arguments], input=input, capture_output=True, text=True, timeout=300)
    assert code is None or done.returncode == code, f"podman {' '.join(arguments)}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


# Runs the container with runc, without a network, with limits that an unprivileged session may set, and without
# systemd, which podman would use to repeat the health check.
RUN = (
    *("--runtime", "runc", "--network", "none", "--health-interval=disable"),
    *("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"),
)


class Container:
    def __init__(self, *options: str, image: str = IMAGE, command: tuple[str, ...] = ()):
        self.name = f"clip-search-{uuid.uuid4().hex[:8]}"
        mounts = ("-v", f"{ROOT}:/checkout:ro")
        podman("run", "-d", "--name", self.name, *RUN, *mounts, *options, image, *command)

    def ready(self) -> Container:
        """Waits until its health check succeeds, as an orchestrator would."""
        deadline = time.monotonic() + 180
        while subprocess.run(["podman", "healthcheck", "run", self.name], capture_output=True).returncode != 0:
            assert time.monotonic() < deadline, podman("logs", self.name)
            time.sleep(1)
        return self

    def psql(self, script: str, database: str = "postgres", user: str = "postgres") -> str:
        arguments = ["exec", "-i", "-w", "/checkout", "-e", "PGOPTIONS=-c client_min_messages=warning", self.name]
        return podman(
            *arguments, "psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-U", user, "-d", database, "-f", "-", input=script
        )

    def value(self, query: str, database: str = "postgres") -> str:
        return self.psql(f"\\pset format unaligned\n\\pset tuples_only\n{query}", database).strip()

    def remove(self) -> None:
        podman("rm", "-f", "-v", "-t", "0", self.name, code=None)


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    made = Container("-e", "POSTGRES_PASSWORD=secret", "-e", "POSTGRES_DB=gallery")
    try:
        yield made.ready()
    finally:
        made.remove()


def test_a_new_volume_needs_a_password() -> None:
    made = Container()
    try:
        assert podman("wait", made.name).strip() != "0"
        assert "POSTGRES_PASSWORD" in podman("logs", made.name)
    finally:
        made.remove()


def shape(output: str) -> list[str]:
    lines = [re.sub(r"\s+", " ", NUMBER.sub("#", line)).strip() for line in output.splitlines()]
    return [line for line in lines if line and not re.fullmatch(r"[-+]*", line)]


def test_the_first_five_minutes_of_the_readme(container: Container) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sql\n(.*?)```\n(?:```\n(.*?)```\n)?", readme, re.DOTALL)
    # The extension already exists: the README's CREATE EXTENSION works with and without IF NOT EXISTS.
    create = next(block for block, _ in blocks if "CREATE EXTENSION" in block)
    assert container.value("SELECT extversion FROM pg_extension WHERE extname = 'clip_search'", "gallery") == CURRENT
    started = readme.index("## Getting started")
    first = [(block, printed) for block, printed in blocks if readme.index(block) > started and block != create][:3]
    assert "clip_watch" in first[0][0] and "ORDER BY embedding" in first[0][0]
    script = "\\pset footer off\n" + "".join(f"{block}\\echo == end ==\n" for block, _ in first)
    printed = container.psql(script, "gallery").split("== end ==\n")[:-1]
    for (block, written), found in zip(first, printed, strict=True):
        found = re.sub(r"^ clip_watch *\n-+\n *\n\n?", "", found, flags=re.MULTILINE)
        assert shape(found) == shape(written), block


def test_every_new_database_has_the_extension(container: Container) -> None:
    container.psql("CREATE DATABASE fresh")
    assert container.value("SELECT vector_dims(clip_embed_text('a cat'))", "fresh") == "512"


def test_the_worker_embeds(container: Container) -> None:
    container.psql(
        """CREATE TABLE later (id int PRIMARY KEY, data bytea);
        SELECT clip_watch('later', 'data', mode => 'queued');
        \\set cat `base64 -w0 examples/gallery/photos/cat.jpg`
        INSERT INTO later VALUES (1, decode(:'cat', 'base64'));""",
        "gallery",
    )
    deadline = time.monotonic() + 60
    while container.value("SELECT count(*) FROM later WHERE embedding IS NOT NULL", "gallery") != "1":
        assert time.monotonic() < deadline, container.value("SELECT * FROM clip_search.pending", "gallery")
        time.sleep(0.5)


def test_what_the_image_says_and_holds() -> None:
    labels = podman("image", "inspect", IMAGE, "--format", "{{json .Labels}}")
    assert f'"org.opencontainers.image.version":"{CURRENT}"' in labels.replace(" ", "")
    assert '"org.opencontainers.image.title":"clip_search"' in labels.replace(" ", "")
    # No build tools, and no package lists.
    look = "ls -d /packages/* /clip_search /var/lib/apt/lists/* 2>/dev/null; command -v cargo gcc pg_config; echo end"
    command = ["podman", "run", "--rm", *RUN, "--entrypoint", "sh", IMAGE, "-c", look]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "end\n"


def test_with_a_read_only_root_as_its_own_user() -> None:
    made = Container(
        *("--read-only", "--user", "999:999", "--tmpfs", "/tmp", "--tmpfs", "/run"),
        *("-e", "POSTGRES_PASSWORD=secret", "--shm-size=256m"),
    )
    try:
        made.ready()
        assert made.value("SELECT vector_dims(clip_embed_text('a cat'))") == "512"
        start = time.monotonic()
        podman("stop", "-t", "30", made.name)
        assert time.monotonic() - start < 20, "it stops by its signal"
        assert podman("inspect", made.name, "--format", "{{.State.ExitCode}}").strip() == "0"
    finally:
        made.remove()


@pytest.fixture(scope="module")
def old_image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """This image with the library and the SQL of the previous version."""
    assert BUILT.exists(), "scripts/releases.sh builds it"
    context, tag = tmp_path_factory.mktemp("old"), f"localhost/clip_search:{OLD}-test"
    subprocess.run(["cp", "-a", str(BUILT / "usr"), str(context)], check=True)
    (context / "Containerfile").write_text(
        f"FROM {IMAGE}\nRUN rm /usr/share/postgresql/{MAJOR}/extension/clip_search*\nCOPY usr /usr\n"
    )
    podman("build", "-q", "-t", tag, str(context))
    try:
        yield tag
    finally:
        podman("rmi", "-f", tag, code=None)


def test_a_volume_of_the_version_before(old_image: str) -> None:
    volume = f"clip-search-{uuid.uuid4().hex[:8]}"
    options = ("-v", f"{volume}:/var/lib/postgresql/data", "-e", "POSTGRES_PASSWORD=secret")
    try:
        old = Container(*options, image=old_image)
        try:
            # OCI's image format, podman's default, has no health check.
            deadline = time.monotonic() + 180
            while "accepting" not in podman("exec", old.name, "pg_isready", "-h", "127.0.0.1", code=None):
                assert time.monotonic() < deadline, podman("logs", old.name)
                time.sleep(1)
            assert old.value("SELECT extversion FROM pg_extension WHERE extname = 'clip_search'") == OLD
            old.psql(
                """CREATE TABLE photo (id int PRIMARY KEY, data bytea);
                SELECT clip_watch('photo', 'data', cluster => 'cluster_id');
                \\set cat `base64 -w0 examples/gallery/photos/cat.jpg`
                INSERT INTO photo VALUES (1, decode(:'cat', 'base64'));"""
            )
            podman("stop", "-t", "30", old.name)
        finally:
            old.remove()
        new = Container(*options)
        try:
            new.ready()
            search = "SELECT id FROM photo ORDER BY embedding <=> clip_embed_text('a cat') LIMIT 1"
            assert new.value(search) == "1"
            new.psql("ALTER EXTENSION clip_search UPDATE")
            assert new.value("SELECT extversion FROM pg_extension WHERE extname = 'clip_search'") == CURRENT
            assert new.value(search) == "1"
            new.psql("INSERT INTO photo SELECT 2, data FROM photo")
            assert new.value("SELECT count(DISTINCT cluster_id) FROM photo") == "1"
        finally:
            new.remove()
    finally:
        podman("volume", "rm", "-f", volume, code=None)
