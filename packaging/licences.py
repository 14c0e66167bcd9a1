"""The licences of the crates that are built into a package of the workspace, as Cargo.lock has them:

    licences.py CHECKOUT [PACKAGE [TARGET]] > FILE      (clip_search, this machine's)

A text that several crates share is printed once, below all of their names.
"""

import collections
import json
import os
import pathlib
import subprocess
import sys

# Sources vendored within a crate have their own licences.
NAMES = ("licen[cs]e*", "copying*", "notice*", "copyright*", "unlicense*", "readme.ijg")
FOLDERS = ("", "libjpeg-turbo/", "oniguruma/")


def built_in(root: pathlib.Path, name: str, target: str) -> dict[str, dict]:
    """Packages by id that are linked into `name`, without build tools and the dependencies of macros."""
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", target]
    # The same selection as in scripts/lib/common.sh.
    if os.environ.get("REMOTE", "0") != "0":
        command += ["--features", "clip-embed/remote"]
    metadata = json.loads(subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout)
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    found, waiting = {}, [id for id in metadata["workspace_members"] if packages[id]["name"] == name]
    if not waiting:
        sys.exit(f"licences.py: the workspace has no package {name}")
    while waiting:
        package = packages[waiting.pop()]
        if package["id"] in found:
            continue
        found[package["id"]] = package
        if any("proc-macro" in target["kind"] for target in package["targets"]):
            continue
        for dependency in nodes[package["id"]]["deps"]:
            if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
                waiting.append(dependency["pkg"])
    return found


def host() -> str:
    version = subprocess.run(["rustc", "-vV"], check=True, capture_output=True, text=True).stdout
    return next(line.split()[1] for line in version.splitlines() if line.startswith("host:"))


def texts(folder: pathlib.Path) -> list[str]:
    files = []
    for below in FOLDERS:
        for path in sorted(folder.glob(below + "*")):
            if path.is_file() and any(pathlib.PurePath(path.name.lower()).match(name) for name in NAMES):
                files.append(path)
    return [
        "\n".join(line.rstrip() for line in file.read_text(errors="replace").strip().splitlines()) for file in files
    ]


def main(checkout: str, name: str = "clip_search", target: str = "") -> None:
    names: dict[str, list[str]] = collections.defaultdict(list)
    print("Crates (name, version, licence):\n")
    missing = []
    for package in sorted(
        built_in(pathlib.Path(checkout), name, target or host()).values(),
        key=lambda package: (package["name"], package["version"]),
    ):
        if package["source"] is None:  # this project's own
            continue
        name, licence = f"{package['name']} {package['version']}", package["license"] or package["license_file"]
        print(f"  {name}: {licence}")
        found = texts(pathlib.Path(package["manifest_path"]).parent)
        if not found:
            missing.append(name)
        for text in found:
            names[text].append(name)
    if missing:
        print("\nWithout a text of their own, under the licences named above: " + ", ".join(missing))
    for text, users in names.items():
        print(f"\n{'-' * 72}\n{', '.join(users)}\n\n{text}")


main(*sys.argv[1:])
