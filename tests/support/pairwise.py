"""Cases in which every pair of values of two factors occurs, instead of all combinations.

Faults of a kernel show with one value or with two together: a dtype in a layout, an act beside a
gate. What three together could break is the few cases that tests name by hand.
"""

from collections.abc import Iterable, Mapping
from itertools import combinations

import pytest


def pairwise(factors: Mapping[str, Iterable], skip=lambda row: False) -> list[tuple]:
    """Rows with a value of each factor, in their order, the same in each run.

    skip: whether a row, {factor: value}, does not exist; pairs that occur in no other are left out.
    """
    names, values = list(factors), {name: list(of) for name, of in factors.items()}

    def cells(row):
        return {(name, values[name].index(row[name])) for name in row}

    missing = [
        frozenset({(a, i), (b, j)})
        for a, b in combinations(names, 2)
        for i in range(len(values[a]))
        for j in range(len(values[b]))
    ] or [frozenset({(names[0], i)}) for i in range(len(values[names[0]]))]
    missing, rows = dict.fromkeys(missing), []

    def complete(row):
        """With what covers most of the missing pairs, or None if no such row exists."""
        free = [name for name in names if name not in row]
        if not free:
            return None if skip(row) else row

        def gain(value):
            found = cells(row | {free[0]: value})
            return sum(pair <= found for pair in missing)

        for value in sorted(values[free[0]], key=gain, reverse=True):
            if done := complete(row | {free[0]: value}):
                return done
        return None

    while missing:
        pair = next(iter(missing))
        row = complete({name: values[name][index] for name, index in pair})
        if row is None:
            del missing[pair]
            continue
        found = cells(row)
        missing = {pair: None for pair in missing if not pair <= found}
        rows.append(tuple(row[name] for name in names))
    return rows


def each_pair(skip=lambda row: False, **factors):
    """Parametrises by ``pairwise``. A factor is {id: value} or a sequence of strings."""
    labelled = {
        name: of if isinstance(of, Mapping) else {str(value): value for value in of}
        for name, of in factors.items()
    }

    def of_ids(row):
        return {name: labelled[name][label] for name, label in row.items()}

    rows = pairwise(labelled, lambda row: skip(of_ids(row)))
    cases = [
        pytest.param(*of_ids(dict(zip(labelled, row))).values(), id="-".join(row)) for row in rows
    ]
    return pytest.mark.parametrize(",".join(labelled), cases)
