"""The processor on which figures are measured."""

from __future__ import annotations

import os
import pathlib

INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_int8")


def processor() -> dict[str, object]:
    """The description of the processor in raw figures, including the instruction sets that matter."""
    lines = pathlib.Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = fields.get("flags", "").split()
    return {
        "name": fields.get("model name"),
        "family": fields.get("cpu family"),
        "model": fields.get("model"),
        "cores": os.cpu_count(),
        "instructions": [name for name in INSTRUCTIONS if name in flags],
    }


def in_words(about: dict[str, object]) -> str:
    return f"{about['name']}, {about['cores']} cores: {', '.join(about['instructions'])}"
