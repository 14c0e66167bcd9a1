"""How well relevance separates answers from neighbours, and how often tags are right: part of evaluate.py.

queries.csv has the queries: the text; its half (`choose`: the constants of clip_relevance were chosen on these;
`report`: the results are measured on these); the pictures that it is about (`stamp`, `gallery`, or none for a query
without an answer); and a regular expression on their names that matches the answers. queries-fresh.csv has queries
about a second collection, that of gcompris.py. They were fixed before any result on it was known, and nothing was
chosen by them.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import pathlib
import re
import time
from collections.abc import Iterator

import psycopg
from PIL import Image
from plot import STYLE, text

HERE = pathlib.Path(__file__).resolve().parent
GALLERY = HERE.parent.parent / "examples" / "gallery" / "photos"
CUT = 0.5
CUTS = [step / 50 for step in range(1, 50)]
SHOWN = [step / 10 for step in range(1, 10)]
CROPS = 4  # a crop of each corner
EMPTY = 0.85  # the share of queries without an answer that came out empty on the choosing half, when 0.5 was chosen
FRESH = "gcompris"

TABLE = """
CREATE TABLE picture (
    id        integer PRIMARY KEY,
    kind      text NOT NULL,           -- stamp, crop (of a stamp), gallery, gcompris
    name      text NOT NULL,
    label     text NOT NULL,
    embedding vector NOT NULL
)"""
# All queries of a picture together, so that its place among the words is computed once. Each collection's queries
# apart: a connection remembers the vectors of 256 texts, and with more texts in turn, each would be computed again for
# every picture.
SCORES = """
SELECT kind, name, scores.relevance, scores.cosine
FROM picture, LATERAL (SELECT array_agg(clip_relevance(embedding, query) ORDER BY n) AS relevance,
                              array_agg(1 - (embedding <=> clip_embed_text(query)) ORDER BY n) AS cosine
                       FROM unnest(%s::text[]) WITH ORDINALITY AS asked (query, n)) AS scores
WHERE (kind = 'gcompris') = %s
ORDER BY id"""
TIMED = "SELECT sum(clip_relevance(embedding, 'a cat')), count(*) FROM picture"
TAGS = """
SELECT name, label, ARRAY(SELECT tag FROM clip_tags(embedding, 5)), (SELECT max(relevance) FROM clip_tags(embedding, 1))
FROM picture WHERE kind = 'stamp' ORDER BY id"""


@dataclasses.dataclass
class Query:
    text: str
    half: str
    kind: str
    truth: str

    def answers(self, kind: str, names: list[str]) -> list[bool] | None:
        """For each picture, whether it is an answer; None if the query is about other pictures."""
        if (self.half == "fresh") != (kind == FRESH):
            return None
        if not self.kind:
            return [False] * len(names)
        if self.kind != kind.replace("crop", "stamp"):
            return None
        found = [bool(re.search(self.truth, name)) for name in names]
        return found if any(found) else None


def queries() -> list[Query]:
    with (HERE / "queries.csv").open(encoding="utf-8", newline="") as file:
        found = [Query(row["query"], row["split"], row["photos"], row["truth"]) for row in csv.DictReader(file)]
    with (HERE / "queries-fresh.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return found + [Query(row["query"], "fresh", FRESH if row["truth"] else "", row["truth"]) for row in rows]


def quarter(data: bytes, corner: int) -> bytes:
    """Three quarters of a picture's width and height, from one of its corners, on white."""
    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    page = Image.new("RGB", picture.size, "white")
    page.paste(picture, mask=picture.getchannel("A"))
    width, height = page.size[0] * 3 // 4, page.size[1] * 3 // 4
    left, top = (corner % 2) * (page.size[0] - width), (corner // 2) * (page.size[1] - height)
    out = io.BytesIO()
    page.crop((left, top, left + width, top + height)).save(out, "PNG")
    return out.getvalue()


def pictures(
    stamps: list[tuple[str, str, bytes]], fresh: list[tuple[str, bytes]]
) -> Iterator[tuple[str, str, str, bytes]]:
    for number, (name, label, data) in enumerate(stamps):
        yield "stamp", name, label, data
        yield "crop", name, label, quarter(data, number % CROPS)
    for path in sorted(GALLERY.glob("*.jpg")):
        yield "gallery", path.stem, path.stem, path.read_bytes()
    for name, data in fresh:
        yield FRESH, name, name, data


def load(db: psycopg.Connection, stamps: list[tuple[str, str, bytes]], fresh: list[tuple[str, bytes]]) -> dict:
    db.execute(TABLE)
    insert = "INSERT INTO picture VALUES (%s, %s, %s, %s, clip_embed_image(%s))"
    with db.cursor() as cursor:
        cursor.executemany(insert, [(number, *row) for number, row in enumerate(pictures(stamps, fresh))])
    began = time.perf_counter()
    words = db.execute("SELECT clip_prepare_words()").fetchone()[0]
    return {"words": words, "prepare_s": time.perf_counter() - began}


def f1(scores: list[float], answers: list[bool], cut: float) -> float:
    shown = [score >= cut for score in scores]
    right = sum(a and b for a, b in zip(shown, answers, strict=True))
    return 2 * right / (sum(shown) + sum(answers)) if right else 0.0


def share(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


class Judged:
    """Each query with the scores of its pictures and which of them are answers, by kind of pictures."""

    def __init__(self) -> None:
        self.of: dict[tuple[str, str], list[tuple[list[float], list[bool]]]] = {}

    def add(self, half: str, kind: str, scores: list[float], answers: list[bool]) -> None:
        self.of.setdefault((half, kind), []).append((scores, answers))

    def at(self, half: str, kind: str, cut: float) -> dict:
        of_both = self.of.get((half, kind), [])
        with_answers = [f1(scores, answers, cut) for scores, answers in of_both if any(answers)]
        empty = [max(scores) < cut for scores, answers in of_both if not any(answers)]
        return {"queries": len(with_answers), "f1": share(with_answers), "without": len(empty), "empty": share(empty)}

    def mean(self, half: str, cut: float) -> dict:
        """The mean over the kinds of pictures, with equal weights."""
        found = [self.at(half, kind, cut) for kind in sorted({kind for of, kind in self.of if of == half})]
        found = [entry for entry in found if entry["queries"]]
        return {name: share([entry[name] for entry in found]) for name in ("f1", "empty")}

    def best(self, half: str) -> float:
        """The cut with the best mean F1."""
        every = sorted(s for (of, _), entries in self.of.items() if of == half for scores, _ in entries for s in scores)
        cuts = sorted({every[int(len(every) * (1 - 0.0005 * 1.06**step))] for step in range(110)}) if every else [0.0]
        return max(cuts, key=lambda cut: self.mean(half, cut)["f1"])

    def emptying(self, half: str, wanted: float) -> float:
        """The lowest cut that leaves this share of the queries without an answer empty."""
        entries = [entry for (of, _), of_kind in self.of.items() if of == half for entry in of_kind]
        highest = sorted(max(scores) for scores, answers in entries if not any(answers))
        cuts = (math.nextafter(score, math.inf) for score in highest)
        return next((cut for cut in cuts if self.mean(half, cut)["empty"] >= wanted), 1.0)


def measure(db: psycopg.Connection, stamps: list[tuple[str, str, bytes]], fresh: list[tuple[str, bytes]]) -> dict:
    result = load(db, stamps, fresh)
    relevance, cosine = Judged(), Judged()
    for second in (False, True):
        asked = [query for query in queries() if (query.half == "fresh") == second]
        scored = db.execute(SCORES, ([query.text for query in asked], second)).fetchall()
        for number, query in enumerate(asked):
            for kind in (FRESH,) if second else ("stamp", "crop", "gallery"):
                of_kind = [row for row in scored if row[0] == kind]
                answers = query.answers(kind, [row[1] for row in of_kind])
                if answers:
                    relevance.add(query.half, kind, [row[2][number] for row in of_kind], answers)
                    cosine.add(query.half, kind, [row[3][number] for row in of_kind], answers)
    began = time.perf_counter()
    rows = db.execute(TIMED).fetchone()[1]
    took = time.perf_counter() - began
    chosen, ideal = cosine.best("choose"), cosine.best("report")
    kinds = ("stamp", "crop", "gallery")
    result |= {
        "ms_a_row": took / rows * 1000,
        "at_cut": {kind: relevance.at("report", kind, CUT) for kind in kinds} | {"mean": relevance.mean("report", CUT)},
        "flat": {kind: cosine.at("report", kind, chosen) for kind in kinds}
        | {"cut": chosen, "mean": cosine.mean("report", chosen)},
        "flat_in_hindsight": {"cut": ideal, "mean": cosine.mean("report", ideal)},
        "curve": [{"cut": cut, **relevance.mean("report", cut)} for cut in CUTS],
    }
    for name, judged in (("own_cut", relevance), ("flat_as_empty", cosine)):
        cut = judged.emptying("choose", EMPTY)
        result[name] = {"cut": cut, "mean": judged.mean("report", cut)}
    if fresh:
        ideal = cosine.best("fresh")
        result["fresh"] = {
            "at_cut": relevance.at("fresh", FRESH, CUT),
            "flat": cosine.at("fresh", FRESH, chosen),
            "flat_as_empty": cosine.at("fresh", FRESH, result["flat_as_empty"]["cut"]),
            "flat_in_hindsight": {"cut": ideal} | cosine.at("fresh", FRESH, ideal),
            "curve": [{"cut": cut, **relevance.at("fresh", FRESH, cut)} for cut in CUTS],
        }
    return result | {"tags": tags(db)}


def stems(words: str) -> set[str]:
    return {word.removesuffix("s") for word in re.findall(r"[a-z]+", words.lower())}


def tags(db: psycopg.Connection) -> dict:
    """A tag is right if it shares a word with the picture's label or with the folders that contain the picture."""
    first, five, sure = [], [], []
    for name, label, found, relevance in db.execute(TAGS):
        known = stems(f"{label} {name.rpartition('/')[0]}")
        right = [bool(stems(tag) & known) for tag in found]
        first.append(right[0])
        five.append(any(right))
        if relevance >= CUT:
            sure.append(right[0])
    return {
        "of": len(first),
        "first": share(first),
        "one_of_five": share(five),
        "of_relevant": len(sure),
        "first_if_relevant": share(sure),
    }


def table(result: dict) -> list[tuple[str, str]]:
    shown = lambda entry: f"F1 {entry['f1']:.3f}, {entry['empty']:.0%} of queries without an answer empty"
    rows = [
        (f"relevance from {CUT} on, {kind}", shown(result["at_cut"][kind]))
        for kind in ("stamp", "crop", "gallery", "mean")
    ]
    rows.append((f"cosine from {result['flat']['cut']:.3f} on, mean", shown(result["flat"]["mean"])))
    hindsight = result["flat_in_hindsight"]
    rows.append((f"cosine from {hindsight['cut']:.3f} on (best in hindsight), mean", shown(hindsight["mean"])))
    for name, about in (("own_cut", "relevance"), ("flat_as_empty", "cosine")):
        entry = result[name]
        rows.append((f"{about} from {entry['cut']:.3f} on ({EMPTY:.0%} empty when chosen), mean", shown(entry["mean"])))
    at = {round(entry["cut"], 2): entry for entry in result["curve"]}
    rows += [(f"curve: relevance from {cut} on, mean", shown(at[cut])) for cut in SHOWN]
    if fresh := result.get("fresh"):
        rows.append((f"relevance from {CUT} on, {FRESH}", shown(fresh["at_cut"])))
        rows.append((f"cosine from {result['flat']['cut']:.3f} on, {FRESH}", shown(fresh["flat"])))
        rows.append((f"cosine from {result['flat_as_empty']['cut']:.3f} on, {FRESH}", shown(fresh["flat_as_empty"])))
        hindsight = fresh["flat_in_hindsight"]
        rows.append((f"cosine from {hindsight['cut']:.3f} on (best in hindsight), {FRESH}", shown(hindsight)))
        at = {round(entry["cut"], 2): entry for entry in fresh["curve"]}
        rows += [(f"curve: relevance from {cut} on, {FRESH}", shown(at[cut])) for cut in SHOWN]
    found = result["tags"]
    rows.append(
        ("tags", f"first right {found['first']:.3f}, one of five {found['one_of_five']:.3f} (of {found['of']})")
    )
    rows.append(
        (
            "",
            f"first right {found['first_if_relevant']:.3f} where its relevance is {CUT} or more ({found['of_relevant']})",
        )
    )
    rows.append(
        (
            "time of relevance",
            f"{result['ms_a_row']:.2f} ms a row; {result['words']} words in {result['prepare_s']:.0f} s",
        )
    )
    return rows


def draw(result: dict, title: str) -> str:
    """F1 and the share of empty results, by cut."""
    left, right, top, bottom = 60, 440, 60, 300
    x = lambda cut: left + cut * (right - left)
    y = lambda value: bottom - value * (bottom - top)
    shapes = [text(20, 30, title, "title")]
    for tenth in range(0, 11, 2):
        shapes.append(f'<path class="grid" d="M{left} {y(tenth / 10):.1f}H{right}"/>')
        shapes.append(text(left - 8, y(tenth / 10) + 4, f"{tenth / 10:.1f}", "small", "end"))
        shapes.append(text(x(tenth / 10), bottom + 18, f"{tenth / 10:.1f}", "small", "middle"))
    for kind, name in (("line1", "f1"), ("line2", "empty")):
        path = " ".join(f"{x(point['cut']):.1f},{y(point[name]):.1f}" for point in result["curve"])
        shapes.append(f'<polyline class="{kind}" points="{path}"/>')
    shapes.append(text((left + right) / 2, bottom + 36, "lowest relevance", "small", "middle"))
    shapes.append(text(left, bottom + 58, "— F1 of queries with answers", "one"))
    shapes.append(text(left, bottom + 76, "- - queries without an answer that come out empty", "key2"))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 480 400" role="img" aria-labelledby="t">\n'
        f'<title id="t">{title}</title>\n<style>{STYLE}</style>\n<rect class="page" width="480" height="400"/>\n'
        + "\n".join(shapes)
        + "\n</svg>\n"
    )
