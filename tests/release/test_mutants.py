"""Each mutation of tests/mutants/glue.py applies to the current source, and its test exists."""

from __future__ import annotations

import pytest

import support
from mutants.glue import MUTATIONS


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name.replace(" ", "-"))
def test_a_mutation_applies_and_names_a_test(mutation) -> None:
    assert (support.ROOT / mutation.file).read_text().count(mutation.old) == 1
    assert mutation.old != mutation.new
    file, _, name = mutation.test.partition("::")
    test = support.ROOT / file
    assert test.exists() and (not name or f"def {name}(" in test.read_text())
