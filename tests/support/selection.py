"""Which cases of a table run: each pair of a place and other values, and what make test keeps."""

import pytest
from conftest import PLACES
from pairwise import each_pair


def each_pair_on(name="place", places=PLACES, **factors):
    """``each_pair`` with a place as one of the factors; ``name``: of the fixture that enters it."""
    mark = each_pair(**{name: {place.name: place for place in places}}, **factors)
    return pytest.mark.parametrize(*mark.args, indirect=[name])


def kept(mark, *ids):
    """The cases of a parametrisation, of which make test runs those with these ids alone."""
    names, cases = mark.args
    labels = mark.kwargs.get("ids", cases)
    marked, unknown = [], set(ids)
    for label, case in zip(labels, cases, strict=True):
        values = case.values if hasattr(case, "id") else (case if "," in names else (case,))
        label = case.id if hasattr(case, "id") else label
        unknown.discard(label)
        marks = () if label in ids else pytest.mark.thorough
        marked.append(pytest.param(*values, id=label, marks=marks))
    assert not unknown, f"no cases: {unknown}"
    options = {k: v for k, v in mark.kwargs.items() if k != "ids"}
    return pytest.mark.parametrize(names, marked, **options)
