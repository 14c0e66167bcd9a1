"""The build compiles a library once: the extension's packages and clip-embed's ask for the same features of those they share."""

from __future__ import annotations

import collections
import subprocess

import pytest

import support


def features(edges: str, *packages: str) -> dict[str, set[str]]:
    """What each library of the packages is compiled with: more than one set where build tools have it, too."""
    command = ["cargo", "tree", "--locked", "--offline", "--edges", edges, "--prefix", "none", "--no-dedupe", "--format", "{p}\t{f}"]
    names = [argument for package in packages for argument in ("--package", package)]
    done = subprocess.run([*command, *names], cwd=support.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = collections.defaultdict(set)
    for line in filter(None, done.stdout.splitlines()):
        package, _, enabled = line.partition("\t")
        found[package.removesuffix(" (proc-macro)")].add(enabled)
    return found


# The server's process and programs; and with these what macros and build scripts are made of, which cargo compiles apart.
@pytest.mark.parametrize("edges", ["normal,no-proc-macro", "normal,build"])
def test_no_library_is_compiled_twice(edges: str) -> None:
    first, second = features(edges, "clip_search"), features(edges, "clip", "clip-embed")
    shared = first.keys() & second.keys()
    assert {"clip", "ort", "tokenizers", "image", "memchr"} <= {package.split(" v")[0] for package in shared}
    anew = {
        package: f"{sorted(second[package])}, and the extension's {sorted(first[package])}"
        for package in shared
        if second[package] - first[package]
    }
    assert not anew, f"compiled again: {anew}"
