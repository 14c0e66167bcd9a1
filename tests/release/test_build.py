"""The build compiles no library twice: the extension, clip-embed and the unit tests share their compiled
dependencies."""

from __future__ import annotations

import collections
import json
import os
import re
import subprocess

import support


def libraries(*command: str) -> dict[str, dict[int, str]]:
    """The files to which a cargo command compiles each library, by the library's id and kind. A file is identified
    by its inode, since a directly requested target gets a link in target/release."""
    config = os.environ.get("PG_CONFIG") or "pg_config"
    version = subprocess.run([config, "--version"], capture_output=True, text=True, check=True).stdout
    major = re.match(r"PostgreSQL (\d+)", version)[1]
    formats = [name for name in ("heic", "avif", "jxl") if os.environ.get(name.upper()) != "0"]
    # The same value as in scripts/lib/common.sh.
    formats += ["remote"] * (os.environ.get("REMOTE", "0") != "0")
    selection = ["--workspace", "--no-default-features", "--features", " ".join([f"pg{major}", *formats])]
    done = subprocess.run(
        [*command, "--locked", "--offline", "--release", *selection, "--message-format=json"],
        cwd=support.ROOT,
        env=os.environ | {"PGRX_HOME": str(support.ROOT / "target" / "pgrx" / f"pg{major}")},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[int, str]] = collections.defaultdict(dict)
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message["reason"] == "compiler-artifact" and not message["profile"]["test"]:
            library = f"{message['package_id']} {','.join(message['target']['kind'])}"
            for name in message["filenames"]:
                if name.endswith((".rlib", ".so")):
                    found[library][os.stat(name).st_ino] = name
    return found


def test_no_library_is_compiled_twice() -> None:
    # The commands of cargo-pgrx (scripts/build.sh) and of scripts/test.sh.
    built = libraries("cargo", "build", "--lib", "--bins")
    tested = libraries("cargo", "test", "--no-run")
    shared = built.keys() & tested.keys()
    names = {re.split("[#@]", library.split(" ")[0].rsplit("/", 1)[1])[-2] for library in shared}
    assert {"clip", "ort", "tokenizers", "image", "memchr"} <= names, names
    again = {
        library: files
        for library in shared
        if (files := [tested[library][n] for n in tested[library].keys() - built[library]])
    }
    assert not again, f"compiled again: {again}"


def test_the_sql_of_watches_comes_after_the_functions_that_it_calls() -> None:
    """pgrx orders the extension's SQL by its `requires`; without them, the order is random and changes from build to
    build."""
    sql = re.sub(r"--[^\n]*|COMMENT ON [^;]*;", "", (support.ROOT / "sql/watch.sql").read_text())
    required = re.search(r'sql/watch\.sql",.*?requires = \[(.*?)\]', (support.ROOT / "src/lib.rs").read_text(), re.S)[1]
    names = {path.rsplit("::", 1)[-1] for path in re.findall(r"[\w:]+", required)}
    # Only functions of the schema clip_search; the others are called in their own definitions or in PL/pgSQL.
    written = "".join(path.read_text() for path in (support.ROOT / "src").rglob("*.rs"))
    module = r"mod clip_search \{(.*?)\n\}"
    defined = {
        name
        for body in re.findall(module, written, re.S)
        for options, name in re.findall(r"#\[pg_extern(.*?)\]\s*(?:#\[[^\]]*\]\s*)*(?:pub )?fn (\w+)", body, re.S)
        if "sql = false" not in options
    }
    called = set(re.findall(r"clip_search\.(\w+)\(", sql)) & defined
    assert len(called) > 10
    assert called <= names, f"not required in src/lib.rs: {sorted(called - names)}"
