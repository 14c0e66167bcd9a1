#!/usr/bin/env python3
"""Prints docs/reference.md: every function, setting, view and column as the catalogue describes it, and every SQLSTATE.

    catalogue.py > docs/reference.md        (make docs)

It reads the database that PGHOST, PGPORT, PGUSER and PGDATABASE name, as a superuser. The texts come from COMMENT ON
(sql/) and from the settings (src/guc.rs); psql shows the same texts in \\df+, \\d+ and pg_settings. This file adds only
the topics and the explanation of each SQLSTATE. A function without a topic, or a SQLSTATE without an explanation, is an
error.
"""

from __future__ import annotations

import pathlib
import re
import sys

import psycopg

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Functions by topic, in the order of the page. Each pattern must match the whole of a name.
TOPICS = {
    "Embedding": r"clip_embed_.*",
    "Searching": r"clip_find|clip_query|clip_diversify",
    "Relevance, tags and labels": r"clip_relevance|clip_tags|clip_explain|clip_classify|clip_classify_or_none|clip_prepare_words",
    "Grouping": r".*_clusters?|.*_collection|clip_has_collection_privilege|clip_cluster_groups|clip_recluster|clip_duplicates",
    "Keeping embeddings in sync": r"clip_(un)?watch|clip_watch_row|clip_backfill|clip_retry|clip_reembed|clip_group",
    "Image files": r"clip_thumbnail|clip_image_info",
    "Models and statistics": r"clip_models|clip_check_model|.*_stats|clip_benchmark|clip_version",
}

# PostgreSQL's condition names, and when each is raised.
CONDITIONS = {
    "active_sql_transaction": "clip_backfill or clip_reembed is called inside a transaction block",
    "ambiguous_parameter": "several columns of the table are watched: name the one you mean",
    "config_file_error": "a file of the model can't be used, or ONNX Runtime is too old",
    "data_exception": "a vector differs in length or model from its collection, or from the vectors it is compared with",
    "datatype_mismatch": "a column has the wrong type",
    "dependent_objects_still_exist": "an object such as a view, a CHECK or a partial index prevents clip_reembed from replacing a column; a watch uses "
    "the collection that clip_drop_collection is to drop",
    "disk_full": "the cache directory has no room for the eight-bit form of a model",
    "duplicate_column": "all names that clip_reembed would give the new column, or its collection, are taken",
    "duplicate_object": "the collection already exists, or has its members in another table; the column is already "
    "watched",
    "trigger_protocol_violated": "the trigger function was called by a trigger that clip_watch did not create",
    "feature_not_supported": "an image format that is recognised but not decoded (JPEG 2000, SVG, …); an image processor of "
    "another model family; a text in a database whose encoding is not UTF-8; a Citus table, where a function needs its "
    "rows on this server",
    "insufficient_privilege": "a privilege is missing, on the function or on the table that it works on",
    "internal_error": "a bug in the extension: please report it",
    "invalid_parameter_value": "not an image, or an empty, truncated or corrupt one; an empty text; a zero vector; no "
    "label, or a template without {}; terms of a query that cancel out; any other argument that is out of range",
    "invalid_schema_name": "the schema of a table was renamed or dropped while the function ran",
    "invalid_transaction_state": "assignment to a cluster, or a change to a collection or a watch, in a parallel "
    "worker",
    "lock_not_available": "another session uses the table: clip_watch, clip_unwatch and clip_reembed don't wait long for "
    "it; try again",
    "name_too_long": "the name of a column that clip_watch would add exceeds PostgreSQL's limit",
    "not_null_violation": "the key of a watched row is NULL",
    "null_value_not_allowed": "an argument that needs a value is NULL",
    "object_in_use": "the watched table, or one of its columns, was renamed while the function ran",
    "object_not_in_prerequisite_state": "the collection has no members' table; the table can't be watched (it has no "
    "primary key, for example), or not in that mode",
    "out_of_memory": "the system refuses the memory that an image or a text needs",
    "program_limit_exceeded": "an image over clip_search.max_image_pixels, "
    "max_image_bytes or max_image_memory; a text over the model's "
    "context with clip_search.truncate_text off; a key that is too long for the queue of clip_watch",
    "query_canceled": "a cancel or a timeout interrupts the function",
    "read_only_sql_transaction": "assignment to a cluster, or a change to a collection or a watch, in a read-only "
    "transaction or on a standby",
    "reserved_name": "the name of a new collection begins with clip_reembed_, which is clip_reembed's",
    "serialization_failure": "members of a distributed table changed while clip_recluster ran: try again",
    "triggered_data_change_violation": "a trigger or a rule on a table prevented rows from being updated",
    "undefined_column": "the table has no such column",
    "undefined_file": "ONNX Runtime or a file of the model is missing",
    "undefined_object": "no such model (the error lists the available ones) or collection",
    "undefined_table": "no such table",
    "wrong_object_type": "this kind of table can't be watched",
}
# PostgreSQL functions that the code calls, and the conditions that they raise.
CALLED = {
    "PreventCommandIfReadOnly": "read_only_sql_transaction",
    "PreventCommandIfParallelMode": "invalid_transaction_state",
}

# Of overloaded functions, the one with the longest description comes first.
FUNCTIONS = """
SELECT p.proname, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid), obj_description(p.oid, 'pg_proc'),
       p.prokind, p.provolatile, p.proisstrict, p.proparallel, p.procost, p.prorows, p.prosecdef,
       has_function_privilege('public', p.oid, 'EXECUTE')
FROM pg_depend d JOIN pg_proc p ON p.oid = d.objid JOIN pg_extension e ON e.oid = d.refobjid
WHERE d.classid = 'pg_proc'::regclass AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
  AND e.extname = 'clip_search' AND p.pronamespace = e.extnamespace
ORDER BY p.proname COLLATE "C", cardinality(string_to_array(obj_description(p.oid, 'pg_proc'), E'\n')) DESC,
         pg_get_function_identity_arguments(p.oid) COLLATE "C"
"""
# Views that every role may read; other relations are internal.
VIEWS = """
SELECT c.oid, format('%s.%s', c.relnamespace::regnamespace, c.relname), obj_description(c.oid, 'pg_class')
FROM pg_depend d JOIN pg_class c ON c.oid = d.objid JOIN pg_extension e ON e.oid = d.refobjid
WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
  AND e.extname = 'clip_search' AND c.relkind IN ('r', 'v', 'm', 'p', 'f')
  AND has_table_privilege('public', c.oid, 'SELECT')
ORDER BY c.relname COLLATE "C"
"""
COLUMNS = """
SELECT attname, format_type(atttypid, atttypmod), col_description(attrelid, attnum)
FROM pg_attribute WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""
TYPES = """
SELECT t.typname, obj_description(t.oid, 'pg_type')
FROM pg_depend d JOIN pg_type t ON t.oid = d.objid JOIN pg_extension e ON e.oid = d.refobjid
WHERE d.classid = 'pg_type'::regclass AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
  AND e.extname = 'clip_search' AND t.typtype = 'b' AND t.typelem = 0
ORDER BY t.typname COLLATE "C"
"""
SETTINGS = """
SELECT name, vartype, unit, context, min_val, max_val, boot_val, short_desc, extra_desc
FROM pg_settings WHERE name LIKE 'clip\\_search.%' ORDER BY name COLLATE "C"
"""
# Objects of kinds that the page does not show. Event triggers are internal, and the comment on a type says what it
# compares with. Since PostgreSQL 17, the row types of tables are members, too.
OTHERS = """
SELECT pg_describe_object(classid, objid, objsubid) FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND e.extname = 'clip_search'
  AND classid NOT IN ('pg_proc'::regclass, 'pg_class'::regclass, 'pg_namespace'::regclass, 'pg_event_trigger'::regclass,
                      'pg_cast'::regclass, 'pg_operator'::regclass, 'pg_opclass'::regclass, 'pg_opfamily'::regclass)
  AND NOT EXISTS (
      SELECT FROM pg_type t
      WHERE classid = 'pg_type'::regclass AND t.oid = objid AND (t.typtype = 'b' OR t.typrelid <> 0)
  )
"""

VOLATILITY = {"i": "IMMUTABLE", "s": "STABLE", "v": "VOLATILE"}
PARALLEL = {"s": "PARALLEL SAFE", "r": "PARALLEL RESTRICTED", "u": "PARALLEL UNSAFE"}
CONTEXT = {
    "user": "by anyone",
    "superuser": "by superusers",
    "sighup": "in the server's configuration",
    "postmaster": "in the server's configuration",
}
# The planner's default row count.
UNSTATED_ROWS = 1000
# A default value as it was written; the catalogue adds a cast.
CAST = re.compile(r"(DEFAULT (?:'(?:[^']|'')*'|NULL|-?[\d.]+))::(?:double precision|[a-z]+)(?:\[\])?")
# A line of a comment that describes an argument or a column, or several.
ITEM = re.compile(r"(\w+(?:, \w+)*): (.+)")
# A function or a setting of the extension, or a variable in a setting.
NAME = re.compile(r"\bclip_\w+(?:\.\w+)?(?:\(\))?|\$(?:system|data|libdir)\b|(?<![\w.])max_image_(?:bytes|memory)\b")


class Incomplete(Exception):
    """Something that the page needs is missing."""


def escape(text: str) -> str:
    """Escapes Markdown, and marks names of the extension as code."""
    return NAME.sub(r"`\g<0>`", re.sub(r"([|<>*\\])", r"\\\1", text))


def code(names: str) -> str:
    return ", ".join(f"`{name}`" for name in names.split(", "))


def described(comment: str) -> list[str]:
    """A comment as Markdown: paragraphs and a list."""
    lines: list[str] = []
    listed = False
    for line in comment.splitlines():
        item = ITEM.fullmatch(line)
        # A blank line before and after a list, and between paragraphs.
        if lines and not (item and listed):
            lines.append("")
        if item:
            # "cohesion: …; lowest: …" describes two columns.
            rest = re.sub(r"; (\w+(?:, \w+)*): ", lambda m: f"; {code(m[1])}: ", escape(item[2]))
            lines.append(f"- {code(item[1])}: {rest}")
        else:
            lines.append(escape(line) + ("" if line.endswith((".", ":")) else "."))
        listed = bool(item)
    return lines


def topic(name: str) -> str:
    for title, pattern in TOPICS.items():
        if re.fullmatch(pattern, name):
            return title
    raise Incomplete(f"{name} has no topic: add it to TOPICS in scripts/catalogue.py")


def small_print(row: tuple) -> str:
    _, _, _, _, kind, volatility, strict, parallel, cost, rows, definer, public = row
    parts = []
    if kind != "p":
        on_null = "STRICT" if strict else "called on NULL"
        parts = [VOLATILITY[volatility], on_null, PARALLEL[parallel], f"cost {cost:.0f}"]
    if rows not in (0, UNSTATED_ROWS):
        parts.append(f"rows {rows:.0f}")
    if definer:
        parts.append("SECURITY DEFINER")
    if not public:
        parts.append("superusers, and by GRANT")
    return f"<sub>{' · '.join(parts)}</sub>" if parts else ""


def signature(name: str, arguments: str, result: str | None) -> str:
    arguments = CAST.sub(r"\1", arguments)
    whole = f"{name}({arguments})" + (f" → {result}" if result else "")
    if len(whole) <= 110:
        return whole
    # One argument or column per line; commas inside brackets and strings don't count.
    split = re.compile(r", (?=\w+ [a-z])")
    inside = ",\n    ".join(split.split(arguments))
    whole = f"{name}(\n    {inside}\n)" if ", " in arguments else f"{name}({arguments})"
    table = re.fullmatch(r"TABLE\((.*)\)", result or "")
    if table and len(result or "") > 100:
        return f"{whole} → TABLE(\n    " + ",\n    ".join(split.split(table[1])) + "\n)"
    return f"{whole} → {result}" if result else whole


def functions(db: psycopg.Connection) -> list[str]:
    topics: dict[str, dict[str, list[tuple]]] = {title: {} for title in TOPICS}
    for row in db.execute(FUNCTIONS):
        if not row[3]:
            raise Incomplete(f"{row[0]} has no comment")
        topics[topic(row[0])].setdefault(row[0], []).append(row)
    lines = ["## Functions", "", "| | |", "|---|---|"]
    for title, names in topics.items():
        if names:
            lines.append(f"| {title} | " + ", ".join(f"[{name}](#{name})" for name in names) + " |")
    for title, names in topics.items():
        if not names:
            continue
        lines += ["", f"### {title}"]
        for name, overloads in names.items():
            lines += ["", f"#### {name}"]
            for row in overloads:
                called, arguments = (f"CALL {name}", row[1].replace("IN ", "")) if row[4] == "p" else (name, row[1])
                lines += ["", "```", signature(called, arguments, row[2]), "```", *described(row[3])]
                if printed := small_print(row):
                    lines += ["", printed]
    return lines


def in_bytes(number: str) -> str:
    """As SHOW prints it, for example 256MB."""
    value, units = int(number), iter(("B", "kB", "MB", "GB"))
    unit = next(units)
    while value % 1024 == 0 and unit != "GB":
        value, unit = value // 1024, next(units)
    return f"{value}{unit}"


def settings(db: psycopg.Connection) -> list[str]:
    # A session knows the settings once it has called a function of the extension.
    db.execute("SELECT clip_version()")
    lines = ["## Settings", "", "A session knows the settings once it has called a function of the extension."]
    for name, kind, unit, context, low, high, default, short, more in db.execute(SETTINGS):
        lines += ["", f"#### {name}", escape(short), *(["", escape(more)] if more else [])]
        value = f"`{in_bytes(default) if unit == 'B' else default}`" if default else "empty"
        scope = f" from {low} to {high}" if low else ""
        in_unit = {"B": " bytes, or as 10MB", None: ""}.get(unit, f" {unit}")
        lines += ["", f"<sub>{kind}{scope}{in_unit} · default {value} · set {CONTEXT[context]}</sub>"]
    return lines


def views(db: psycopg.Connection) -> list[str]:
    lines = ["## Views"]
    for oid, name, comment in db.execute(VIEWS).fetchall():
        lines += ["", f"#### {name}", *described(comment), "", "| column | type | |", "|---|---|---|"]
        for column, kind, text in db.execute(COLUMNS, (oid,)):
            if not text:
                raise Incomplete(f"{name}.{column} has no comment")
            lines.append(f"| `{column}` | {kind} | {escape(text)} |")
    return lines


def types(db: psycopg.Connection) -> list[str]:
    lines = ["## Types"]
    for name, comment in db.execute(TYPES).fetchall():
        if not comment:
            raise Incomplete(f"type {name} has no comment")
        lines += ["", f"#### {name}", *described(comment)]
    return lines


def conditions() -> list[str]:
    source = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "src").rglob("*.rs")))
    # E_R_I_E and T_R: their classes, external routine invocation exception and transaction rollback.
    raised = {name.lower() for name in re.findall(r"PgSqlErrorCode::ERRCODE_(?:E_R_I_E_|T_R_)?(\w+)", source)}
    raised |= {condition for call, condition in CALLED.items() if call in source}
    if unknown := sorted(raised - CONDITIONS.keys()):
        names = ", ".join(unknown)
        raise Incomplete(f"when {names} is raised is not explained: add it to CONDITIONS in scripts/catalogue.py")
    lines = ["## Errors", "", "| SQLSTATE | condition | when |", "|---|---|---|"]
    rows = []
    for name in raised:
        # psycopg has a class for each condition; InternalError is a name of DB-API's.
        camel = {"internal_error": "InternalError_"}.get(name) or "".join(part.capitalize() for part in name.split("_"))
        rows.append((getattr(psycopg.errors, camel).sqlstate, name, CONDITIONS[name]))
    lines += [f"| {state} | {name} | {escape(when)} |" for state, name, when in sorted(rows)]
    return lines


def page(db: psycopg.Connection) -> str:
    if others := [row[0] for row in db.execute(OTHERS)]:
        raise Incomplete(f"the page has no place for {', '.join(others)}")
    lines = [
        "# Reference",
        "",
        "Generated by `make docs` from the texts that psql shows with `\\df+ clip_*`, `\\d+ clip_search.*` and",
        "`SELECT * FROM pg_settings WHERE name LIKE 'clip_search.%'`; a test compares the two.",
        "",
        "A STRICT function returns NULL, or no rows, if an argument is NULL. Costs are in units of",
        "`cpu_operator_cost`. Every role may call a function unless it is marked *superusers, and by GRANT*.",
        "",
        *functions(db),
        "",
        *settings(db),
        "",
        *views(db),
        "",
        *types(db),
        "",
        *conditions(),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    with psycopg.connect(autocommit=True) as db:
        try:
            sys.stdout.write(page(db))
        except Incomplete as error:
            sys.exit(f"catalogue.py: {error}")


if __name__ == "__main__":
    main()
