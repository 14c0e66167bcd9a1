#!/usr/bin/env python3
"""Make everyday.txt, the words that relevance and tags compare a photo with.

    make_words.py WORDNET [--out FILE]

WORDNET is the directory with WordNet 3.0's database files (data.noun, cntlist.rev, …): usr/share/wordnet of Debian's package
wordnet-base. Its nouns for things, animals, plants, food, places, people, activities and events are ranked by how often WordNet's
tagged texts and its definitions use them, and the 5,500 most frequent are taken. phrases.txt adds scenes, activities, events and
kinds of pictures, as tags only: a photo would otherwise be compared with one scene in twenty variations.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import math
import pathlib
import re

HERE = pathlib.Path(__file__).resolve().parent
NOUNS = 5500
HEADER = """\
# Words that clip_relevance and clip_tags compare a photo with, most frequent first. One a line; those with a + are tags only.
# Made by make_words.py from WordNet 3.0 and from phrases of its own.
#
"""
# WordNet's lexicographer files (lexnames(5WN)) to use. If not all nouns of a file can be seen in a photo: the words
# from which a noun must descend. A word stands for its first sense in that file.
FILES: dict[int, tuple[str, ...]] = {
    4: ("sport", "game", "diversion", "dance", "ceremony", "exercise", "performance", "show"),  # acts
    5: (),  # animals
    6: (),  # artifacts
    8: (),  # body
    11: ("social_event", "fire", "wave", "explosion"),
    13: (),  # food
    14: ("gathering", "family", "band", "herd", "team"),
    15: ("landing", "geographical_area", "tract", "field", "park", "desert", "public_square"),
    17: (),  # natural objects
    18: (),  # people
    19: ("weather", "light", "precipitation", "fire", "electrical_discharge"),
    20: (),  # plants
    27: ("wood", "rock", "paper", "fabric", "metal", "fuel", "soil", "ice", "glass", "sand"),
}
# Words to leave out together with their descendants, which can't be seen in a photo or are no everyday words.
WITHOUT = {
    5: ("microorganism", "worm_family"),
    6: (
        "drug",
        "line",
        "facility",
        "weaponry",
        "layer",
        "surface",
        "way",
        "electronic_component",
        "court",
        "excavation",
        "system",
    ),
    8: (
        "bodily_fluid",
        "cell",
        "nerve",
        "blood_vessel",
        "bone",
        "muscle",
        "gland",
        "ligament",
        "membrane",
        "body_covering",
        "structure",
        "internal_organ",
        "tissue",
        "system",
        "area",
        "part",
        "passage",
    ),
    13: ("diet", "fare", "nutrient", "feed"),
    17: ("part", "body", "unit", "particle", "film"),
    18: (
        "relative",
        "bad_person",
        "unwelcome_person",
        "communicator",
        "intellectual",
        "capitalist",
        "advocate",
        "debtor",
        "creditor",
        "appointee",
        "unfortunate",
        "organism",
        "simpleton",
        "disputant",
        "inhabitant",
        "religionist",
        "adherent",
        "juvenile_person",
        "primitive",
        "compeer",
        "authority",
    ),
}
# The only kinds of people to use: a photo shows what people do or wear, not that somebody is a trustee.
KEEP = {
    18: (
        "worker",
        "athlete",
        "entertainer",
        "traveler",
        "child",
        "adult",
        "soldier",
        "artist",
        "creator",
        "musician",
        "player",
        "clergyman",
        "male",
        "female",
        "contestant",
        "health_professional",
        "leader",
    ),
}


class WordNet:
    def __init__(self, directory: pathlib.Path):
        self.file: dict[str, int] = {}
        self.words: dict[str, list[str]] = {}
        self.above: dict[str, list[str]] = {}
        self.senses: dict[str, list[str]] = {}
        self.frequency: collections.Counter[str] = collections.Counter()  # sums of weights
        self.tagged: dict[str, collections.Counter[int]] = collections.defaultdict(collections.Counter)
        for part in ("noun", "verb", "adj", "adv"):
            for line in (directory / f"data.{part}").read_text(encoding="latin-1").splitlines():
                if line.startswith("  "):
                    continue
                head, _, gloss = line.partition("|")
                if part == "noun":
                    self.add(head.split())
                # Definitions of plants, animals, body parts and substances are full of rare words: spathes, bivalves.
                weight = 0.15 if part == "noun" and int(head.split()[1]) in (5, 8, 20, 27) else 1
                spoken = re.findall(r"[a-z]+", gloss.lower())
                for word in itertools.chain(spoken, map("_".join, itertools.pairwise(spoken))):
                    self.frequency[word] += weight
        for line in (directory / "index.noun").read_text(encoding="latin-1").splitlines():
            if not line.startswith("  "):
                fields = line.split()
                self.senses[fields[0]] = fields[6 + int(fields[3]) :]
        for line in (directory / "cntlist.rev").read_text(encoding="latin-1").splitlines():
            key, _, count = line.split()
            lemma, _, rest = key.partition("%")
            # Part of speech 1 is the noun. Other parts of speech are counted under -1.
            part, file = rest.split(":")[:2]
            self.tagged[lemma][int(file) if part == "1" else -1] += int(count)

    def add(self, fields: list[str]) -> None:
        offset, count = fields[0], int(fields[3], 16)
        self.file[offset] = int(fields[1])
        self.words[offset] = fields[4 : 4 + 2 * count : 2]
        pointers = 5 + 2 * count
        rest = fields[pointers:]
        self.above[offset] = [rest[n + 1] for n in range(0, len(rest) - 3, 4) if rest[n] in ("@", "@i")]

    def ancestors(self, offset: str) -> set[str]:
        found, open_ones = set(), [offset]
        while open_ones:
            one = open_ones.pop()
            if one not in found:
                found.add(one)
                open_ones += self.above.get(one, [])
        return found

    def named(self, names: tuple[str, ...], file: int) -> set[str]:
        return {next((s for s in self.senses.get(name, []) if self.file[s] == file), "") for name in names} - {""}


def nouns(wordnet: WordNet) -> list[str]:
    within = {file: wordnet.named((*names, *KEEP.get(file, ())), file) for file, names in FILES.items()}
    without = {file: wordnet.named(names, file) for file, names in WITHOUT.items()}
    scores: dict[str, float] = {}
    for lemma, senses in wordnet.senses.items():
        first = senses[0]
        file = wordnet.file[first]
        if file not in FILES or not re.fullmatch(r"[a-z]{3,}(_[a-z]+){0,2}|[a-z]+_[a-z]+", lemma):
            continue
        # Skips names, and then words that are more often verbs or adjectives.
        if any(word != lemma and word.lower() == lemma for word in wordnet.words[first]):
            continue
        tagged = wordnet.tagged[lemma]
        if tagged[-1] > tagged[file]:
            continue
        above = wordnet.ancestors(first)
        own = {first}
        if (
            (within[file] and not above & within[file])
            or (above - own) & without.get(file, set())
            or first in without.get(file, set())
        ):
            continue
        said = wordnet.frequency[lemma] + wordnet.frequency[f"{lemma}s"]
        score = 2 * math.log1p(tagged[file]) + math.log1p(said) * (1.6 if "_" in lemma else 1)
        if score > 0:
            scores[lemma.replace("_", " ")] = score
    return sorted(scores, key=lambda word: (-scores[word], word))[:NOUNS]


def phrases() -> list[str]:
    found = []
    for line in (HERE / "phrases.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            parts = [part.split("|") for part in re.split(r"[()]", line)]
            found += ["".join(parts) for parts in itertools.product(*parts)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wordnet", type=pathlib.Path, metavar="WORDNET")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "everyday.txt")
    arguments = parser.parse_args()
    words = nouns(WordNet(arguments.wordnet))
    scenes = [phrase for phrase in dict.fromkeys(phrases()) if phrase not in set(words)]
    licence = "".join(
        f"# {line}".rstrip() + "\n" for line in (HERE / "LICENSE").read_text(encoding="utf-8").splitlines()
    )
    lines = [*words, *(f"+{phrase}" for phrase in scenes)]
    arguments.out.write_text(HEADER + licence + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(words)} words and {len(scenes)} phrases in {arguments.out}")


if __name__ == "__main__":
    main()
