import functools
import pathlib
import sys

import numpy as np
import program
import psycopg

page = program.example()
with psycopg.connect(autocommit=True) as db:
    names = ("add", "search", "similar", "groups")
    program.run(*(functools.partial(page[name], db) for name in names), lambda error: error.sqlstate)
    # The part for which the other clients have no function.
    with db.transaction(force_rollback=True):
        clock = (pathlib.Path(sys.argv[1]) / "clock.jpg").read_bytes()
        page["add_many"](db, [("clock", clock), ("clock again", clock)])
        embeddings = page["embeddings"](db)
        assert embeddings.shape == (6, 512) and np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
        assert np.array_equal(embeddings[4], embeddings[5]) and not np.array_equal(embeddings[0], embeddings[5])
