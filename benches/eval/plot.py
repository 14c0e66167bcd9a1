"""Draws the figures of evaluate.py as one self-contained SVG: no script, no font, no network."""

from __future__ import annotations

from html import escape

WIDTH, HEIGHT = 920, 420
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1c2430; }
.title { font-size: 16px; font-weight: 600; } .small { font-size: 11px; fill: #56606e; }
.grid { stroke: #d8dde4; } .page { fill: #fff; }
.one { fill: #1f6feb; } .line1 { stroke: #1f6feb; } .line2 { stroke: #b35900; stroke-dasharray: 5 3; }
.line1, .line2 { fill: none; stroke-width: 2; } .key2 { fill: #b35900; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6e9ee; } .small { fill: #a8b0bb; } .page { fill: #14181e; } .grid { stroke: #333b46; }
  .one { fill: #6ea8ff; } .line1 { stroke: #6ea8ff; } .line2 { stroke: #ffb057; } .key2 { fill: #ffb057; }
}"""


def text(x: float, y: float, content: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(content)}</text>'


def bars(result: dict) -> list[str]:
    found = result["retrieval"]
    share = lambda entry: entry["right"] / entry["of"] if entry["of"] else 0.0
    rows = [(f"text to picture, R@{k}", found[f"recall_at_{k}"]) for k in (1, 5, 10)]
    rows += [("nearest is of its folder", share(result["neighbours"]["folder"]))]
    rows += [("nearest is of its top folder", share(result["neighbours"]["category"]))]
    for names, about in (("folder", "folders"), ("category", "top folders")):
        best = max((entry for entry in result["zero_shot"] if entry["names"] == names), key=share)
        rows.append((f"zero-shot, {best['labels']} {about}", share(best)))
    left, top, length, step = 220, 70, 200, 42
    shapes = []
    for index, (name, value) in enumerate(rows):
        y = top + index * step
        shapes.append(text(left - 10, y + 17, name, anchor="end"))
        shapes.append(f'<rect class="one" x="{left}" y="{y}" width="{value * length:.1f}" height="24" rx="3"/>')
        shapes.append(text(left + value * length + 6, y + 17, f"{value:.3f}"))
    return shapes


def curves(result: dict) -> list[str]:
    """The precision of groups, and the number of pictures in groups, by threshold."""
    left, right, top, bottom = 560, 880, 70, 340
    points = result["groups"]
    low, high = points[0]["threshold"], points[-1]["threshold"]
    x = lambda threshold: left + (threshold - low) / (high - low) * (right - left)
    y = lambda value: bottom - value * (bottom - top)
    shapes = [text(left, 50, "groups by threshold")]
    for tenth in range(0, 11, 2):
        shapes.append(f'<path class="grid" d="M{left} {y(tenth / 10):.1f}H{right}"/>')
        shapes.append(text(left - 8, y(tenth / 10) + 4, f"{tenth / 10:.1f}", "small", "end"))
    for threshold in (0.70, 0.75, 0.80, 0.85, 0.90, 0.95):
        shapes.append(text(x(threshold), bottom + 18, f"{threshold:.2f}", "small", "middle"))
    shapes.append(text((left + right) / 2, bottom + 36, "cosine threshold", "small", "middle"))
    precision = [(x(p["threshold"]), y(p["right"] / p["pairs"])) for p in points if p["pairs"]]
    grouped = [(x(p["threshold"]), y(p["pictures"] / result["pictures"])) for p in points]
    for kind, line in (("line1", precision), ("line2", grouped)):
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in line)
        shapes.append(f'<polyline class="{kind}" points="{path}"/>')
    shapes.append(text(left, bottom + 58, "— pairs in a group that are of one folder", "one"))
    shapes.append(text(left, bottom + 76, "- - pictures that are in a group", "key2"))
    return shapes


def draw(result: dict) -> str:
    title = f"{result['model']} on {result['pictures']} labelled photographs"
    shapes = [f'<rect class="page" width="{WIDTH}" height="{HEIGHT}"/>', text(20, 30, title, "title")]
    shapes += bars(result) + curves(result)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="t">\n'
        f'<title id="t">{escape(title)}</title>\n<style>{STYLE}</style>\n' + "\n".join(shapes) + "\n</svg>\n"
    )
