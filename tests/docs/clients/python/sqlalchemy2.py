import functools

import program
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

page = program.example()
with Session(create_engine("postgresql+psycopg://")) as session:
    names = ("add", "search", "similar", "groups")
    program.run(*(functools.partial(page[name], session) for name in names), lambda error: error.orig.sqlstate)
    session.commit()
    # Read back the columns that the watch fills.
    cat = session.query(page["Photo"]).filter_by(title="cat").one()
    assert cat.cluster_id is not None and len(cat.embedding) == 512
