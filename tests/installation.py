"""A copy of the server's programs, into which other versions of the extension can be installed."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess


def config(what: str) -> pathlib.Path:
    done = subprocess.run([os.environ["PG_CONFIG"], f"--{what}"], capture_output=True, text=True, check=True)
    return pathlib.Path(done.stdout.strip())


class Copy:
    """A copy of the server's programs and scripts into which other versions can be installed. PostgreSQL finds its
    directories relative to its program; the libraries are the installed ones, except the extension's."""

    def __init__(self, folder: pathlib.Path):
        binaries, scripts, libraries = config("bindir"), config("sharedir"), config("pkglibdir")
        root = pathlib.Path(os.path.commonpath([binaries, scripts, libraries]))
        self.folder, self.bindir = folder, folder / binaries.relative_to(root)
        self.extension = folder / scripts.relative_to(root) / "extension"
        self.bindir.mkdir(parents=True)
        for name in ("postgres", "initdb", "pg_ctl", "pg_config", "pg_basebackup"):
            shutil.copy2((binaries / name).resolve(), self.bindir / name)
        shutil.copytree(scripts, folder / scripts.relative_to(root), symlinks=False)
        self.libraries = folder / libraries.relative_to(root)
        self.libraries.mkdir(parents=True)
        for path in libraries.iterdir():
            (self.libraries / path.name).symlink_to(path)
        for path in (folder, *folder.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.parent == self.bindir else 0o644)

    def put(self, share: pathlib.Path, library: pathlib.Path) -> None:
        """Installs a version over the current one, as a package does."""
        for path in (share / "extension").glob("clip_search*"):
            shutil.copyfile(path, self.extension / path.name)
            (self.extension / path.name).chmod(0o644)
        new = self.libraries / "clip_search.so.new"
        shutil.copyfile(library, new)
        new.chmod(0o755)
        new.rename(self.libraries / "clip_search.so")

    def put_onnxruntime(self, library: pathlib.Path) -> None:
        """Replaces the installed ONNX Runtime by another one, also by rename."""
        place = self.libraries / "clip_search"
        if place.is_symlink():
            place.unlink()
            place.mkdir(mode=0o755)
        new = place / "libonnxruntime.so.new"
        shutil.copyfile(library, new)
        new.chmod(0o755)
        new.rename(place / "libonnxruntime.so")
