"""An attacker's role."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from psycopg import sql

import support


@pytest.fixture
def eve(database: support.Database) -> Iterator[str]:
    """An ordinary role with a schema, whose functions record which role runs them."""
    name = f"clip_role_{uuid.uuid4().hex[:10]}"
    with database.connect() as db:
        db.execute(sql.SQL("CREATE ROLE {0} LOGIN; CREATE SCHEMA {0} AUTHORIZATION {0}").format(sql.Identifier(name)))
    with database.connect(user=name) as db:
        db.execute(f"""
            CREATE TABLE {name}.ran (role name, inside text);
            CREATE FUNCTION {name}.note(place text) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
                BEGIN
                    INSERT INTO {name}.ran VALUES (current_user, place);
                    ALTER ROLE {name} SUPERUSER;
                EXCEPTION WHEN OTHERS THEN
                    INSERT INTO {name}.ran VALUES (current_user, place);
                END $$;
            CREATE FUNCTION {name}.evil(int, place text) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
                $$ BEGIN PERFORM {name}.note(place); RETURN $1; END $$;
            CREATE FUNCTION {name}.trigger() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN PERFORM {name}.note('trigger'); RETURN new; END $$;
            CREATE TABLE {name}.t (id int PRIMARY KEY, embedding vector(3), cluster_id bigint, body text, tags text[])""")
        db.execute(
            f"INSERT INTO {name}.t SELECT n, ARRAY[1, n % 2, 0]::vector, NULL, 'a cat', '{{cat}}' FROM generate_series(1, 6) n"
        )
    yield name
    with database.connect() as db:
        db.execute("SET client_min_messages = warning")
        db.execute(f"DROP SCHEMA {name} CASCADE")
        db.execute("SELECT clip_drop_collection(name) FROM clip_search.collection")
        db.execute(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")
