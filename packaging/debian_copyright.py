"""The file copyright of a Debian package, from a comment and licence texts:

    debian_copyright.py COMMENT FILE… > copyright

Debian has the texts of common licences once, below /usr/share/common-licenses; where one is quoted in full, this names it instead.
"""

from __future__ import annotations

import pathlib
import re
import sys

# For each licence: its title, its last words, and the text that may follow them, with any indentation.
COMMON = {
    "Apache-2.0": (
        r"Apache License\s+Version 2\.0, January 2004",
        r"END OF TERMS AND CONDITIONS",
        r"\s+APPENDIX:.*?limitations under the\s+License\.",
    ),
    "GPL-3": (r"GNU GENERAL PUBLIC LICENSE\s+Version 3, 29 June 2007", r"why-not-lgpl\.html>\.", ""),
    "LGPL-3": (
        r"GNU LESSER GENERAL PUBLIC LICENSE\s+Version 3, 29 June 2007",
        r"choose that version for the\s+Library\.",
        "",
    ),
    "MPL-2.0": (r"Mozilla Public License,? Version 2\.0\s+[=1]", r"Mozilla\s+Public\s+License,\s+v\.\s+2\.0\.\s*$", ""),
}
RULE = "-" * 72


def shortened(text: str) -> str:
    for name, (title, last, rest) in COMMON.items():
        # Never past the next title: an incomplete text stays as it is.
        whole = rf"(?sm)^[ \t]*{title}(?:(?!{title}).)*?{last}(?:{rest})?"
        text = re.sub(whole, f"On Debian systems, the complete text is in /usr/share/common-licenses/{name}.", text)
    return text


def indented(text: str) -> str:
    """The text as the continuation of a field: a space before each line, and a dot in empty lines."""
    lines = (line.rstrip().expandtabs() for line in text.splitlines())
    return "\n".join(f" {line}" if line.strip() else " ." for line in lines)


def main() -> None:
    comment, *files = sys.argv[1:]
    texts = [pathlib.Path(file).read_text(encoding="utf-8", errors="replace").strip() for file in files]
    print("Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/")
    print(f"Upstream-Name: clip_search\nComment: {comment}\n")
    print("Files: *\nCopyright: the authors whom the texts below name")
    print("License: collection")
    print(indented(shortened(f"\n\n{RULE}\n\n".join(texts))))


if __name__ == "__main__":
    main()
