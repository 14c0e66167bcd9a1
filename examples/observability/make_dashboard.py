"""Writes dashboard.json for import into Grafana: make_dashboard.py > dashboard.json."""

import json
import sys

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WHERE = '{instance=~"$instance"}'
# Title, unit, kind, meaning, and expressions with the names of their curves.
PANELS = [
    (
        "Worker",
        "none",
        "stat",
        "Launchers of background workers: 1 on a primary that preloads clip_search, 0 on a standby",
        [(f"clip_search_server_launcher{WHERE}", "{{instance}}")],
    ),
    ("Pending rows", "short", "stat", "Rows in the queue", [(f"sum(clip_search_watch_pending{WHERE})", "pending")]),
    (
        "Failed rows",
        "short",
        "stat",
        "Rows that could not be embedded: clip_search.failure lists them",
        [(f"sum(clip_search_watch_failed{WHERE})", "failed")],
    ),
    (
        "Cache",
        "bytes",
        "stat",
        "Size of the cache of optimized graphs",
        [(f"clip_search_cache_bytes{WHERE}", "{{instance}}")],
    ),
    (
        "Queue",
        "short",
        "timeseries",
        "Rows that await embedding, by table",
        [(f"clip_search_watch_pending{WHERE}", "{{relation}}.{{embedding}}")],
    ),
    (
        "Age of the oldest queued row",
        "s",
        "timeseries",
        "Grows if the worker does not keep up",
        [(f"clip_search_watch_oldest_seconds{WHERE}", "{{relation}}.{{embedding}}")],
    ),
    (
        "Embedded per second",
        "short",
        "timeseries",
        "Images and texts, of all connections and by the worker",
        [
            (f"rate(clip_search_model_images{WHERE}[$__rate_interval])", "images, {{model}}"),
            (f"rate(clip_search_model_texts{WHERE}[$__rate_interval])", "texts, {{model}}"),
            (f"rate(clip_search_model_memo_hits{WHERE}[$__rate_interval])", "texts from memory, {{model}}"),
        ],
    ),
    (
        "Failed calls per second",
        "short",
        "timeseries",
        "Mostly files that are no images",
        [(f"rate(clip_search_model_errors{WHERE}[$__rate_interval])", "{{model}}")],
    ),
    (
        "Where the time goes",
        "percentunit",
        "timeseries",
        "Seconds of a processor per second: 1 is one core that does nothing else",
        [
            (f"rate(clip_search_model_inference_seconds{WHERE}[$__rate_interval])", "inference, {{model}}"),
            (f"rate(clip_search_model_decode_seconds{WHERE}[$__rate_interval])", "decoding, {{model}}"),
            (f"rate(clip_search_model_load_seconds{WHERE}[$__rate_interval])", "loading, {{model}}"),
        ],
    ),
    (
        "Graphs loaded per second",
        "short",
        "timeseries",
        "Many mean short connections: preload the model, or use a pool",
        [(f"rate(clip_search_model_loads{WHERE}[$__rate_interval])", "{{model}}")],
    ),
]


def panel(number: int, x: int, y: int, width: int, height: int) -> dict:
    title, unit, kind, description, curves = PANELS[number]
    return {
        "id": number + 1,
        "type": kind,
        "title": title,
        "description": description,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": width, "h": height},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + n), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
            for n, (expression, legend) in enumerate(curves)
        ],
    }


def main() -> None:
    stats = [n for n, (_, _, kind, _, _) in enumerate(PANELS) if kind == "stat"]
    graphs = [n for n in range(len(PANELS)) if n not in stats]
    panels = [panel(n, 6 * place, 0, 6, 4) for place, n in enumerate(stats)]
    panels += [panel(n, 12 * (place % 2), 4 + 8 * (place // 2), 12, 8) for place, n in enumerate(graphs)]
    dashboard = {
        "uid": "clip-search",
        "title": "clip_search",
        "tags": ["postgresql"],
        "timezone": "browser",
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
                {
                    "name": "instance",
                    "label": "Server",
                    "type": "query",
                    "datasource": SOURCE,
                    "query": {"query": "label_values(clip_search_server_launcher, instance)", "refId": "instance"},
                    "includeAll": True,
                    "multi": True,
                    "allValue": ".*",
                    "refresh": 2,
                },
            ]
        },
        "panels": panels,
    }
    json.dump(dashboard, sys.stdout, indent=2)
    print()


main()
