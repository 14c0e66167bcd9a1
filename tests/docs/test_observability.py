"""docs/observability.md and examples/observability: their queries, metrics, rules and dashboard, with the real
exporter and the real Prometheus if PROMETHEUS names a folder with these programs (scripts/lib/observability.sh
fetches them).
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator

import psycopg
import pytest

import support
from pages import DOCS
from servers import Server
from support import until, value

EXAMPLE = support.ROOT / "examples" / "observability"
PAGE = (DOCS / "observability.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"<!-- run -->\n```sql\n(.*?)```", PAGE, re.DOTALL)
PROGRAMS = pathlib.Path(os.environ["PROMETHEUS"]) if os.environ.get("PROMETHEUS") else None
DASHBOARD = json.loads((EXAMPLE / "dashboard.json").read_text(encoding="utf-8"))
CAT = (support.ROOT / "examples" / "gallery" / "photos" / "cat.jpg").read_bytes()
WATCHES = "SELECT relation, embedding, active, queued, pending, failed FROM clip_monitor.watches() ORDER BY 1"


@pytest.fixture(scope="module")
def own(bindir: pathlib.Path) -> Iterator[Server]:
    """A server with a table in each mode, one of them with a failed row, and the exporter's role."""
    with support.connect("postgres") as db:
        if not value(db, "SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_stat_statements'"):
            pytest.skip("the server has no pg_stat_statements")
    settings = {
        "shared_preload_libraries": "clip_search,pg_stat_statements",
        "track_functions": "all",
        "clip_search.preload": "photo-mini",
    }
    made = Server(bindir, settings)
    try:
        made.start()
        with made.connect() as db:
            db.execute("SET client_min_messages = warning")
            db.execute("CREATE EXTENSION clip_search CASCADE")
            db.execute("CREATE EXTENSION pg_stat_statements")
            db.execute((EXAMPLE / "setup.sql").read_text(encoding="utf-8"))
            db.execute("CREATE ROLE exporter LOGIN IN ROLE pg_monitor")
            for name, mode in (("photo", "immediate"), ("queued", "queued")):
                db.execute(f"CREATE TABLE {name} (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, data bytea)")
                db.execute(f"SELECT clip_watch('{name}', 'data', mode => '{mode}', on_error => 'skip')")
                db.execute(f"INSERT INTO {name} (data) VALUES (%b), ('not an image')", (CAT,))
            db.execute("SELECT clip_embed_text('a cat'), clip_embed_text('a cat')")
            until(lambda: value(db, "SELECT count(*) FROM clip_search.failure") == 2, "the worker's work")
        yield made
    finally:
        made.remove()


def as_exporter(own: Server) -> psycopg.Connection:
    return psycopg.connect(host=str(own.folder), user="exporter", dbname="postgres", autocommit=True)


def test_it_counts_all_tables_for_a_role_that_may_read_none(own: Server) -> None:
    with as_exporter(own) as db:
        assert db.execute("SELECT * FROM clip_search.failure").fetchall() == []
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            db.execute("TABLE photo")
        assert db.execute(WATCHES).fetchall() == [
            ("public.photo", "embedding", 1, 0, 0, 1),
            ("public.queued", "embedding", 1, 1, 0, 1),
        ]
    with own.connect() as db:
        db.execute("CREATE ROLE nobody")
        db.execute("SET ROLE nobody")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            db.execute("SELECT * FROM clip_monitor.watches()")


def test_a_queue_that_nobody_works_off_grows_old(own: Server) -> None:
    with own.connect() as db:
        db.execute("ALTER SYSTEM SET clip_search.worker = off")
        db.execute("SELECT pg_reload_conf()")
        until(lambda: value(db, "SHOW clip_search.worker") == "off")
        try:
            db.execute("INSERT INTO queued (data) VALUES (%b)", (CAT,))
            time.sleep(1.1)
            row = db.execute(
                "SELECT pending, oldest_seconds FROM clip_monitor.watches() WHERE relation = 'public.queued'"
            )
            pending, oldest = row.fetchone()
            assert pending == 1 and 1 <= oldest < 30
        finally:
            db.execute("ALTER SYSTEM RESET clip_search.worker")
            db.execute("SELECT pg_reload_conf()")
        until(
            lambda: db.execute(WATCHES).fetchall()[1] == ("public.queued", "embedding", 1, 1, 0, 1), "the queue's end"
        )


def test_triggers_that_are_disabled_show(own: Server) -> None:
    with own.connect() as db:
        db.execute("ALTER TABLE photo DISABLE TRIGGER USER")
        assert db.execute(WATCHES).fetchall()[0][:3] == ("public.photo", "embedding", 0)
        db.execute("ALTER TABLE photo ENABLE TRIGGER USER")


def test_a_cache_that_cannot_be_written_shows(own: Server) -> None:
    query = "SELECT bytes, graphs, refused FROM clip_monitor.cache()"
    cache = own.data / "pgsql_tmp.clip_search"
    with as_exporter(own) as db:
        bytes, graphs, refused = db.execute(query).fetchone()
        assert bytes > 50_000_000 and (graphs, refused) == (2, 0), "preloading has filled it"
        own.run("touch", f"{cache}/0123456789abcdef-0123456789abcdef-0123456789abcdef.words")
        own.run("touch", f"{cache}/0123456789abcdef-0123456789abcdef.failed")
        assert db.execute(query).fetchone() == (bytes, 2, 1)
        own.run("touch", "-d", "2 hours ago", f"{cache}/0123456789abcdef-0123456789abcdef.failed")
        assert db.execute(query).fetchone() == (bytes, 2, 0)
    with own.connect() as db:
        for path, empty in (("/proc/cache", (0, 0, 0)), ("", (None, None, None))):
            db.execute(f"ALTER SYSTEM SET clip_search.cache_path = '{path}'")
            db.execute("SELECT pg_reload_conf()")
            until(lambda: value(db, "SHOW clip_search.cache_path") == path)
            # With two threads, a connection loads a model of its own and would keep it in the cache.
            with own.connect() as other:
                other.execute("SET clip_search.threads = 2")
                other.execute("SELECT clip_embed_image(%b)", (CAT,))
            assert db.execute(query).fetchone() == empty
        db.execute("ALTER SYSTEM RESET clip_search.cache_path")
        db.execute("SELECT pg_reload_conf()")


def test_the_pages_queries(own: Server) -> None:
    assert PAGE.count("```sql") == len(BLOCKS) == 4
    with own.connect() as db:
        db.execute("SELECT id FROM photo ORDER BY embedding <=> clip_embed_text('a dog') LIMIT 1")
        for block in BLOCKS:
            for statement in filter(str.strip, block.split(";\n")):
                assert db.execute(statement).fetchall(), statement
        statements = [row[3] for row in db.execute(BLOCKS[2])]
        assert any("clip_embed_text($1)" in statement for statement in statements)
        assert any(row[0] == "clip_watch_row" for row in db.execute(BLOCKS[3]))


def expressions() -> list[str]:
    """The expressions of the dashboard's panels and of the rules, without the rules' comparisons, which are false
    while all is well."""
    found = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    found = [
        expression.replace('{instance=~"$instance"}', "").replace("$__rate_interval", "1m") for expression in found
    ]
    rules = re.findall(r"^ +expr: (.*)$", (EXAMPLE / "alerts.yaml").read_text(encoding="utf-8"), re.MULTILINE)
    return found + [name for rule in rules for name in re.findall(r"\bclip_search_\w+", rule)]


def test_the_dashboard_is_what_the_script_writes() -> None:
    script = [sys.executable, "-B", str(EXAMPLE / "make_dashboard.py")]
    assert json.loads(subprocess.run(script, capture_output=True, check=True).stdout) == DASHBOARD
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    cells = {(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])}
    assert len(cells) == sum(p["w"] * p["h"] for p in places) and max(x for x, _ in cells) == 23, "none over another"
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    metrics = set(re.findall(r"\bclip_search_\w+", json.dumps(DASHBOARD) + " ".join(expressions())))
    queries = (EXAMPLE / "queries.yaml").read_text(encoding="utf-8")
    tables = re.split(r"^(clip_search_\w+):$", queries, flags=re.MULTILINE)[1:]
    defined = {
        f"{name}_{column}"
        for name, text in zip(tables[::2], tables[1::2], strict=True)
        for column in re.findall(r"^    - (\w+): \{usage: (?:GAUGE|COUNTER)", text, re.MULTILINE)
    }
    assert metrics <= defined


# ---------------------------------------------------------------- with the real programs

if PROGRAMS:

    def free_port() -> int:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            return listener.getsockname()[1]

    def get(url: str) -> str:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.read().decode()

    def answers(url: str) -> bool:
        try:
            return bool(get(url))
        except OSError:
            return False

    @pytest.fixture(scope="module")
    def prometheus(own: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
        """The address of the exporter, and of a Prometheus that scrapes it every second."""
        folder, exporter, port = tmp_path_factory.mktemp("prometheus"), free_port(), free_port()
        (folder / "prometheus.yml").write_text(f"""
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: ["{EXAMPLE}/alerts.yaml"]
scrape_configs: [{{job_name: postgres, static_configs: [{{targets: ["127.0.0.1:{exporter}"]}}]}}]
""")
        source = {"DATA_SOURCE_NAME": f"postgresql:///postgres?host={own.folder}&user=exporter&sslmode=disable"}
        commands = [
            [
                str(PROGRAMS / "prometheus-postgres-exporter"),
                f"--extend.query-path={EXAMPLE}/queries.yaml",
                f"--web.listen-address=127.0.0.1:{exporter}",
            ],
            [
                str(PROGRAMS / "prometheus"),
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
        ]
        logs = [(folder / f"log-{number}").open("wb") for number in range(2)]
        running = [
            subprocess.Popen(command, env=os.environ | source, stdout=log, stderr=log)
            for command, log in zip(commands, logs, strict=True)
        ]
        try:
            addresses = f"http://127.0.0.1:{exporter}", f"http://127.0.0.1:{port}"
            until(lambda: answers(f"{addresses[0]}/metrics"), "the exporter")
            until(lambda: answers(f"{addresses[1]}/-/ready"), "Prometheus")
            yield addresses
        finally:
            for process in running:
                process.terminate()
                process.wait(30)
            for log in logs:
                log.close()

    def ask(prometheus: tuple[str, str], expression: str) -> list:
        answer = get(f"{prometheus[1]}/api/v1/query?query={urllib.parse.quote(expression)}")
        return json.loads(answer)["data"]["result"]

    def test_the_exporter_has_every_metric(prometheus: tuple[str, str]) -> None:
        metrics = get(f"{prometheus[0]}/metrics")
        assert 'clip_search_watch_failed{datname="postgres",embedding="embedding",relation="public.photo"' in metrics
        assert re.search(r"^clip_search_server_launcher\S* 1$", metrics, re.MULTILINE)
        assert re.search(r'^clip_search_model_texts\{model="photo-mini"\S* [1-9]', metrics, re.MULTILINE)
        assert re.search(r"^pg_exporter_user_queries_load_error\S* 0$", metrics, re.MULTILINE)

    def test_every_expression_returns_a_value(prometheus: tuple[str, str]) -> None:
        for expression in expressions():
            until(lambda: ask(prometheus, expression), expression)

    def test_the_alert_is_raised(prometheus: tuple[str, str]) -> None:
        alert = 'ALERTS{alertname="ClipSearchRowsFailed"}'
        until(lambda: ask(prometheus, alert), "the alert")
        assert {found["metric"]["relation"] for found in ask(prometheus, alert)} == {"public.photo", "public.queued"}
        assert not ask(prometheus, 'ALERTS{alertname=~"ClipSearch(WorkerDown|WatchInactive|CacheFull)"}')

    def test_the_rules_pass_their_tests() -> None:
        done = subprocess.run(
            [str(PROGRAMS / "promtool"), "test", "rules", "alerts_test.yaml"],
            cwd=EXAMPLE,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
