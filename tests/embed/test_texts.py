"""Texts of any length: only their beginning counts, a cancel is noticed, memory stays bounded, and none crashes the
server."""

from __future__ import annotations

import os
import pathlib
import subprocess
from collections.abc import Iterator

import psycopg
import pytest

import support
from support import embed_one, value

MEGABYTES = 1 << 20


@pytest.fixture
def db(database: support.Database) -> Iterator[psycopg.Connection]:
    with database.connect() as connection:
        yield connection


def backend(db: psycopg.Connection) -> int:
    return int(value(db, "SELECT pg_backend_pid()"))


def status(pid: int, key: str) -> int:
    """A value of /proc/PID/status; sizes are in kilobytes."""
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def limit_memory(pid: int, most: str) -> None:
    """Sets the soft limit of a backend's address space, as the server's own user."""
    owner = pathlib.Path(f"/proc/{pid}").stat()
    # Both the real and the effective user id must be the process's (man 2 prlimit).
    command = ["prlimit", f"--pid={pid}", f"--as={most}:"]
    subprocess.run(command, check=True, user=owner.st_uid, group=owner.st_gid, extra_groups=[])


@pytest.mark.parametrize("unit", ["a", "abcdefghij", "a photo of a cat, ", " x", "猫", "e\u0301", "😀"])
def test_sixteen_megabytes_have_the_vector_of_their_beginning(db: psycopg.Connection, unit: str) -> None:
    db.execute("SET client_min_messages = error")
    warm = embed_one(db, "text", "a cat")
    assert warm is not None
    pid = backend(db)
    before, computed = status(pid, "VmHWM"), support.cpu_seconds(pid)
    long = value(db, "SELECT clip_embed_text(repeat(%s, %s))::text", unit, 16_000_000 // len(unit.encode()))
    took = support.cpu_seconds(pid) - computed
    short = value(db, "SELECT clip_embed_text(repeat(%s, %s))::text", unit, 20_000 // len(unit.encode()))
    assert long == short
    assert took < 8, f"{took} s"  # 0.2 s; 14 s where all of it is tokenized
    # The text itself and PostgreSQL's copies of it, 16 MB each.
    assert status(pid, "VmHWM") - before < 130 * 1024, f"{status(pid, 'VmHWM') - before} kB more"


def test_a_cancel_is_seen_between_texts_and_labels(db: psycopg.Connection) -> None:
    db.execute("SET client_min_messages = error")
    embed_one(db, "text", "a cat")
    # Each call takes minutes on any machine.
    statements = [
        "SELECT clip_embed_texts(array_agg(CASE WHEN n <= 20 THEN repeat('x, ', 5000000 + n) ELSE 'photo number ' || n END))"
        " FROM generate_series(1, 120000) n",
        "SELECT clip_embed_texts(array_agg('photo number ' || n)) FROM generate_series(1, 120000) n",
        "SELECT count(*) FROM clip_classify(clip_embed_text('a cat'),"
        " (SELECT array_agg('label ' || n) FROM generate_series(1, 300000) n))",
    ]
    pid = backend(db)
    for statement in statements:
        db.execute("SET statement_timeout = 400")
        computed = support.cpu_seconds(pid)
        with pytest.raises(psycopg.errors.QueryCanceled):
            db.execute(statement)
        took = support.cpu_seconds(pid) - computed
        db.execute("RESET statement_timeout")
        assert took < 5, f"{took} s: {statement}"


def test_a_text_that_is_cut_warns_each_time(db: psycopg.Connection) -> None:
    """The warning doesn't depend on whether the connection remembers the text."""
    heard: list[str] = []
    db.add_notice_handler(lambda diag: heard.append(diag.message_primary))
    for _ in range(2):
        embed_one(db, "text", "word " * 200)
    assert heard == ["text is longer than the model's context of 128 tokens"] * 2


@pytest.mark.parametrize("room", [4, 16, 48, 96])
def test_a_backend_without_memory_refuses_and_lives(database: support.Database, room: int) -> None:
    statements = [
        "SELECT clip_embed_text(repeat('abcdefghij', 1500000))",
        "SELECT clip_embed_text(repeat('a cat, ', 2000000))",
        "SELECT count(*) FROM clip_classify(clip_embed_text('a cat'),"
        " (SELECT array_agg(repeat('ab ', 33000) || n) FROM generate_series(1, 300) n))",
        "SELECT count(*) FROM clip_classify(clip_embed_text('a cat'), ARRAY[repeat('x', 100000)], repeat('{}', 10000))",
    ]
    with database.connect() as db:
        db.execute("SET client_min_messages = error")
        embed_one(db, "text", "a cat")
        pid = backend(db)
        for statement in statements:
            limit = status(pid, "VmSize") * 1024 + room * MEGABYTES
            limit_memory(pid, str(limit))
            try:
                db.execute(statement)
            except psycopg.Error as error:
                assert error.sqlstate in ("53200", "54000"), f"{statement}: {error.sqlstate} {error}"
            finally:
                limit_memory(pid, "unlimited")
            assert backend(db) == pid
            assert embed_one(db, "text", "a dog") is not None


def test_many_labels_take_little_memory(db: psycopg.Connection) -> None:
    db.execute("SET client_min_messages = error")
    few = "SELECT sum(probability) FROM clip_classify(clip_embed_text('a cat'), %s)"
    assert value(db, few, ["dog", "cat"]) == pytest.approx(1)
    pid = backend(db)
    before = status(pid, "VmHWM")
    labels = ["word " * 20_000 + str(n) for n in range(300)]
    assert value(db, few, labels) == pytest.approx(1)
    # 30 MB of labels: PostgreSQL's own copies of the array, and rows with the labels.
    assert status(pid, "VmHWM") - before < 250 * 1024, f"{status(pid, 'VmHWM') - before} kB more"


def test_an_array_of_texts_has_a_limit(db: psycopg.Connection) -> None:
    """100,000 texts took 1 GB, and 0.8 s of processor time after the last one was embedded, in which no cancel was seen."""
    value(db, "SELECT clip_embed_text('a')")
    pid = backend(db)
    before = status(pid, "VmHWM")
    with pytest.raises(psycopg.errors.ProgramLimitExceeded) as error:
        db.execute("SELECT clip_embed_texts(array_fill('a'::text, ARRAY[200000]))")
    assert "200000 texts" in str(error.value) and "392 MB" in error.value.diag.message_detail
    assert value(db, "SELECT cardinality(clip_embed_texts(array_fill('a'::text, ARRAY[100000])))") == 100_000
    # The vectors have 205 MB, and exist twice.
    assert status(pid, "VmHWM") - before < 700 * 1024, f"{status(pid, 'VmHWM') - before} kB more"
    mixed = "SELECT clip_embed_texts(ARRAY['a', NULL, 'a cat', 'a'])"
    assert value(db, f"SELECT array_positions(({mixed}), NULL)") == [2]
    assert value(db, f"SELECT ({mixed})[3] = clip_embed_text('a cat') AND ({mixed})[1] = ({mixed})[4]")
    assert value(db, "SELECT clip_embed_texts('{}')::text") == "{}"
    assert value(db, "SELECT clip_embed_texts('{NULL}')::text") == "{NULL}"


def test_a_prompt_has_a_limit(db: psycopg.Connection) -> None:
    with pytest.raises(psycopg.errors.ProgramLimitExceeded, match="label is too long for its template") as raised:
        db.execute(
            "SELECT * FROM clip_classify(clip_embed_text('a cat'), ARRAY['a', repeat('x', 100000)], repeat('{}', 1000))"
        )
    assert raised.value.diag.message_detail == (
        "This is element 2 of the array. It has 100000 bytes, and the template 1000 places for it:"
        " the prompt would have 100000000; the limit is 16777216."
    )


def test_an_ordinary_role_makes_no_more_threads_than_it_may(database: support.Database) -> None:
    role = f"{database.name}_threads"
    with database.connect() as db:
        db.execute(f"CREATE ROLE {role} LOGIN")
        try:
            with database.connect(user=role) as theirs:
                # Before the library is loaded, any setting is accepted; loading then discards these.
                theirs.execute("SET clip_search.max_threads = 256")
                theirs.execute("SET clip_search.threads = 256")
                embed_one(theirs, "text", "a cat")
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    theirs.execute("SET clip_search.max_threads = 256")
                cores = len(os.sched_getaffinity(0))
                threads = status(backend(theirs), "Threads")
                assert threads <= cores + 1, f"{threads} threads on {cores} cores"
            # A superuser can raise and lower the limit.
            for most, threads in ((1, 1), (3, 3)):
                db.execute(f"SET clip_search.max_threads = {most}; SET clip_search.threads = 256")
                embed_one(db, "text", "a cat")
                # One additional thread checks for interrupts.
                assert status(backend(db), "Threads") <= threads + 1
        finally:
            db.execute(f"DROP ROLE {role}")
