"""The packages' descriptions of the project: META.json for PGXN, and the licences in Debian's packages."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys

import support

META = json.loads((support.ROOT / "META.json").read_text(encoding="utf-8"))
COPYRIGHT = support.ROOT / "packaging" / "debian_copyright.py"


def test_pgxns_description_is_this_version() -> None:
    version = re.search(r'^version = "(.*)"', (support.ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]
    provided = META["provides"]["clip_search"]
    assert META["version"] == provided["version"] == version and re.fullmatch(r"\d+\.\d+\.\d+(-\w+)?", version)
    assert META["license"] == "postgresql" and (support.ROOT / "LICENSE").read_text().startswith("PostgreSQL License")
    control = (support.ROOT / provided["file"]).read_text()
    assert set(META["prereqs"]["runtime"]["requires"]) - {"PostgreSQL"} == set(
        re.findall(r"'(\w+)'", re.search(r"^requires = .*$", control, re.MULTILINE)[0])
    )
    assert (support.ROOT / provided["docfile"]).exists()
    # The fields that PGXN indexes.
    assert {"name", "abstract", "maintainer", "provides", "meta-spec", "tags"} <= META.keys()
    supported = re.findall(r"^pg(\d+) =", (support.ROOT / "Cargo.toml").read_text(), re.MULTILINE)
    assert META["prereqs"]["runtime"]["requires"]["PostgreSQL"] == f"{min(map(int, supported))}.0.0"


def written(*texts: str, folder: pathlib.Path) -> str:
    files = []
    for number, text in enumerate(texts):
        files.append(folder / str(number))
        files[-1].write_text(text, encoding="utf-8")
    command = [sys.executable, str(COPYRIGHT), "What it is of.", *map(str, files)]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout


def test_debian_has_common_licences_by_reference(tmp_path: pathlib.Path) -> None:
    model = (support.ROOT / "models" / "photo-mini" / "LICENSE").read_text(encoding="utf-8")
    assert "1. Definitions." in model and "TERMS AND CONDITIONS FOR USE" in model
    page = written((support.ROOT / "LICENSE").read_text(), model, "The end.\n", folder=tmp_path)
    assert "/usr/share/common-licenses/Apache-2.0" in page and "TERMS AND CONDITIONS" not in page
    for kept in ("PostgreSQL License", "ML Illustrated", "Licensed under the Apache License", " The end."):
        assert kept in page
    header, body = page.split("License: collection\n")
    assert header.startswith("Format: ") and "Comment: What it is of." in header
    assert all(re.fullmatch(r" \.| .*\S", line) for line in body.splitlines()), "a field's continuation"


def test_a_text_that_is_cut_off_stays(tmp_path: pathlib.Path) -> None:
    title = "Apache License\nVersion 2.0, January 2004\n"
    whole = f"{title}Terms of the second.\nEND OF TERMS AND CONDITIONS\nCopyright of the second\n"
    page = written(f"{title}Cut off here.\n{whole}", folder=tmp_path)
    assert " Cut off here." in page and "Terms of the second" not in page and " Copyright of the second" in page
