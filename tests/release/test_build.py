"""The build compiles no library twice: the extension, clip-embed and the unit tests use the same compiled dependencies."""

from __future__ import annotations

import collections
import json
import os
import re
import subprocess

import support


def libraries(*command: str) -> dict[str, dict[int, str]]:
    """The files that each library is compiled to by a command of cargo, by the library's id and kind. A file is known by its
    inode: what is asked for by name gets a link in target/release."""
    config = os.environ.get("PG_CONFIG") or "pg_config"
    version = subprocess.run([config, "--version"], capture_output=True, text=True, check=True).stdout
    major = re.match(r"PostgreSQL (\d+)", version)[1]
    formats = [name for name in ("heic", "avif", "jxl") if os.environ.get(name.upper()) != "0"]
    # As scripts/lib/common.sh has it.
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
    # As cargo-pgrx calls it (scripts/build.sh), and as scripts/test.sh does.
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
