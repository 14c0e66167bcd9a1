"""Checks the extension's scripts with pgspot: what an attacker could slip in under an unqualified name."""

from __future__ import annotations

import collections
import pathlib
import re
import subprocess
import sys

from support import ROOT

PGSPOT = pathlib.Path(sys.executable).with_name("pgspot")

# Accepted findings, with their number. pgvector's functions can't be qualified: their schema is not known before the
# extension is created, and @extschema:vector@ is an error before PostgreSQL 16. sql/bootstrap.sql sets the search_path
# to that schema for the views that call them, so no other schema's functions are found; test_server.py tries.
ACCEPTED = collections.Counter(
    {
        "PS016: Unqualified function call: l2_normalize": 1,
        "PS016: Unqualified function call: vector_norm": 1,
        "PS016: Unqualified function call: vector_dims": 1,
        "PS016: Unqualified function call: sum": 2,
        # Procedures that commit can't have a search_path of their own. They run with the caller's rights, and they
        # qualify all names; otherwise those would be listed here.
        "PS005: Function without explicit search_path: clip_backfill(relation regclass,batch integer,embedding text)": 1,
        "PS005: Function without explicit search_path: clip_reembed(relation regclass,model text,embedding text,batch integer)": 1,
        "PS005: Function without explicit search_path: clip_search.backfill_here(parent bigint,distributed regclass,batch integer)": 1,
        # With a search_path, these functions would not be inlined, and no index would be used; they qualify all names.
        **{
            f"PS005: Function without explicit search_path: clip_search.key_to_{kind}(extschema.clip_key)": 1
            for kind in ("bigint", "numeric", "uuid")
        },
    }
)
# Views and functions that an update replaces belong to the extension: PostgreSQL refuses CREATE OR REPLACE of objects
# that don't (since 15.0, CVE-2022-2625), and the schema clip_search belongs to it too.
REPLACED = collections.Counter(
    f"PS015: Unsafe view creation: clip_search.{view}"
    for view in ("cluster", "collection", "failure", "pending", "watch", "watch_live")
)
REPLACED.update(
    f"PS002: Unsafe function creation: {function}"
    for function in (
        "clip_backfill(relation regclass,batch integer,embedding text)",
        "clip_reembed(relation regclass,model text,embedding text,batch integer)",
        "clip_search.watch_progress(relation regclass,image name,text name,embedding name,cluster name,OUT rows bigint,OUT embedded bigint,OUT open bigint)",
    )
)
# The update qualifies the name, and pgspot takes that for another function.
QUALIFIED = "extschema.clip_backfill(relation regclass,batch integer,embedding text)"
REPLACED[f"PS002: Unsafe function creation: {QUALIFIED}"] = 1
REPLACED[f"PS005: Function without explicit search_path: {QUALIFIED}"] = 1


def findings(*scripts: pathlib.Path) -> list[str]:
    done = subprocess.run([PGSPOT, *scripts], capture_output=True, text=True)
    assert "Errors:" in done.stdout, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("PS")]
    assert re.search(r"Errors: \d+ Warnings: \d+ Unknown: 0\b", done.stdout), done.stdout
    return [re.sub(r" at line \d+$", "", line) for line in lines]


def test_the_linter_sees_what_it_should(tmp_path: pathlib.Path) -> None:
    script = tmp_path / "bad.sql"
    script.write_text("CREATE FUNCTION f() RETURNS int LANGUAGE sql SECURITY DEFINER AS $$ SELECT now() $$;\n")
    found = findings(script)
    assert any("search_path" in line for line in found) and any("now" in line for line in found), found


def test_the_scripts_have_no_finding_that_is_not_accepted(sharedir: pathlib.Path) -> None:
    # Only the scripts that end at this version: an earlier build may have left its own.
    version = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]
    scripts = sorted((sharedir / "extension").glob(f"clip_search--*{version}.sql"))
    assert scripts, f"no script of the extension in {sharedir}"
    for script in scripts:
        found = collections.Counter(findings(script))
        update = script.name.count("--") > 1
        bad = found - ACCEPTED - (REPLACED if update else collections.Counter())
        assert not bad, f"{script.name}: {sorted(bad.elements())}"
        # Updates have fewer findings.
        if not update:
            assert not ACCEPTED - found, f"{script.name}: accepted, and not found {sorted(ACCEPTED - found)}"
