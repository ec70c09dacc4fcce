"""Launches on "cuda" tensors, compiled to Triton's IR and executed on the CPU by ttsem (PyPI).

    pip install --no-deps --ignore-requires-python ttsem==0.1.0
    TRITON_INTERPRET=0 python -m pytest tests/machine_code/ttsem_*.py

A launch fails, at the kernel's line, where it reads or writes outside its tensors or where two of
its programs race. Memory from ``torch.empty`` holds NaN, so that an uninitialised read shows in
the values. ttsem changes torch.cuda for the whole process: ``make test`` does not collect these
files, whose names do not begin with test.

ttsem reports what one program stores and another loads, whatever orders the two. The sums that a
sample's last program collects are ordered, by a counter that every program updates with acquire
and release after its stores. COUNTED_BUFFERS are excused, where that is what happened.
"""

import linecache
import os
import re
import tempfile
from collections import defaultdict

import numpy as np
import pytest
import triton
from ttsem import pidraces, sanitize

from se_fused.backends.triton import feature_map, plan

# IR from Triton's cache names the lines of the tree that it was compiled from: compile it anew.
CACHE = tempfile.TemporaryDirectory()
os.environ["TRITON_CACHE_DIR"] = CACHE.name

COUNTED_BUFFERS = ("partial_ptr",)
ACQ_REL = "sem = 4 :"  # in the text of an atomic update
# What launches are planned for; the excitation is part of the reduce launch.
DEVICE = plan.Device(multiprocessors=132, l2_bytes=50 << 20, shared_bytes=227 << 10)


@pytest.fixture(autouse=True)
def races(monkeypatch):
    assert not triton.knobs.runtime.interpret, "set TRITON_INTERPRET=0"
    found = Races(pidraces.find_race)
    monkeypatch.setattr(pidraces, "find_race", found)
    monkeypatch.setattr(feature_map, "device_of", lambda x: DEVICE)
    with sanitize.session(90, __file__) as session:
        yield found
    assert session.races_unchecked == 0, "a launch was too large for the race check"


class Races:
    """``pidraces.find_race`` without the excused loads; counts what it excused."""

    def __init__(self, find_race):
        self.find_race = find_race
        self.excused = 0

    def __call__(self, log):
        log = log or []  # None: too large, which ttsem counts by itself
        excused = ordered_loads(log)
        self.excused += len(excused)
        return self.find_race([entry for at, entry in enumerate(log) if at not in excused])


def ordered_loads(log) -> set[int]:
    """The loads of COUNTED_BUFFERS that come after all of the other programs' stores to the same
    bytes by way of a counter: store, update of the counter, a later update of it, load."""
    updates, stores = defaultdict(list), []
    for at, (program, kind, op, addresses, size, _) in enumerate(log):
        if kind == "a" and ACQ_REL in op:
            updates[program].append((at, int(addresses[0])))
        if kind != "r":
            stores.append((at, program, touched(addresses, size)))

    def before(store, storer, load, loader):
        return any(
            store < release < acquire < load and counter == same
            for release, counter in updates[storer]
            for acquire, same in updates[loader]
        )

    found = set()
    for at, (program, kind, op, addresses, size, _) in enumerate(log):
        if kind != "r" or not any(name in source_line(op) for name in COUNTED_BUFFERS):
            continue
        loaded = touched(addresses, size)
        others = [
            before(store, storer, at, program)
            for store, storer, stored in stores
            if storer != program and np.intersect1d(stored, loaded).size
        ]
        if others and all(others):
            found.add(at)
    return found


def touched(addresses, size):
    return (addresses[:, None] + np.arange(size)).ravel()


def source_line(op: str) -> str:
    """The line of Python that an operation of the IR was compiled from."""
    place = re.search(r'loc\(.*?"([^"]+\.py)":(\d+):', op)
    return linecache.getline(place[1], int(place[2])) if place else ""
