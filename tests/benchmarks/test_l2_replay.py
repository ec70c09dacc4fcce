"""The cache model of benchmarks/traffic/l2_replay.py, against cases that can be counted by hand."""

import pytest
from traffic import l2_replay
from traffic.l2_replay import DIRECTIONS, GPUS, ORDERS, Cache, interleave, replay

TILES = 240
FLOOR = {"forward": 1, "backward": 2}  # every map read once

each_direction = pytest.mark.parametrize("direction", DIRECTIONS)
each_order = pytest.mark.parametrize("order", ORDERS)


def reads_of(tiles: str, capacity: int) -> int:
    """Each letter is a tile; a capital touches it evict-first."""
    cache = Cache(capacity)
    for tile in tiles:
        cache.touch(tile.lower(), False, tile.isupper())
    return cache.reads


def test_least_recently_used_is_evicted():
    assert reads_of("abcabc", 3) == 3
    assert reads_of("abcabc", 2) == 6
    assert reads_of("abacab", 2) == 4  # c evicts b, b evicts c


def test_evict_first_is_evicted_before_what_is_older():
    assert reads_of("aBca", 2) == 3  # c evicts b
    assert reads_of("abBca", 2) == 3  # also if b was held before
    assert reads_of("abca", 2) == reads_of("aBbca", 2) == 4  # the last touch counts


def test_stores_are_written_once_and_fetch_nothing():
    cache = Cache(1)
    for tile in "aaba":  # b evicts a, a evicts b
        cache.touch(tile, True, False)
    assert (cache.reads, cache.writes) == (0, 2)
    cache.touch("a", False, False)
    cache.evict()
    assert (cache.reads, cache.writes) == (0, 3)


def test_programs_take_turns():
    programs = ["abc", "d", "ef", "g"]
    assert "".join(interleave(programs, 1)) == "abcdefg"
    assert "".join(interleave(programs, 2)) == "adbecfg"
    assert "".join(interleave(programs, 9)) == "adegbfc"


@each_direction
@each_order
@pytest.mark.parametrize("in_flight, tiles_per_program", [(1, 1), (7, 3), (500, 4)])
def test_maps_that_fit_are_read_once(direction, order, in_flight, tiles_per_program):
    fits = 3 * TILES  # x, dy and dx
    found = replay(direction, order, TILES, fits, in_flight, tiles_per_program)
    assert found == (FLOOR[direction], 1)


@each_direction
@each_order
def test_in_a_cache_of_one_tile_nothing_is_found_again(direction, order):
    reads, writes = replay(direction, order, TILES, 1)
    # In reverse order, forward, the last tile of reduce is the first of apply.
    found = 1 if direction == "forward" and order != "ascending" else 0
    assert (reads * TILES, writes) == ((FLOOR[direction] + 1) * TILES - found, 1)


# Reads of a map twice the cache. The cache holds its last half (backward without hints: the last
# quarter, and of x as much). Walking back, each tile that is found lets in a tile of the output,
# which pushes out the oldest: the two meet half-way (backward: at a third of the cache, for what is
# pushed out is half x). With hints it pushes out what was found before.
TWICE = {
    ("forward", "ascending"): 2,
    ("forward", "reverse"): 2 - 1 / 4,
    ("forward", "reverse, evict-first"): 2 - 1 / 2,
    ("backward", "ascending"): 3,
    ("backward", "reverse"): 3 - 1 / 6,
    ("backward", "reverse, evict-first"): 3 - 1 / 2,
}


@pytest.mark.parametrize("case", TWICE, ids=" ".join)
def test_a_map_twice_the_cache(case):
    reads, writes = replay(*case, TILES, TILES // 2)
    assert reads == pytest.approx(TWICE[case], abs=2 / TILES)
    assert writes == 1


@each_direction
@pytest.mark.parametrize("size", [1, 2, 4], ids="map-{}x-the-cache".format)
@pytest.mark.parametrize("in_flight, tiles_per_program", [(1, 1), (7, 1), (20, 4)])
def test_hints_save_the_share_that_the_cache_holds(direction, size, in_flight, tiles_per_program):
    arguments = TILES, TILES // size, in_flight, tiles_per_program
    ascending, reverse, hinted = (replay(direction, order, *arguments)[0] for order in ORDERS)
    assert hinted <= reverse <= ascending <= FLOOR[direction] + 1
    assert hinted == pytest.approx(FLOOR[direction] + 1 - 1 / size, abs=2 * in_flight / TILES)


def test_the_table_says_that_it_is_modelled(monkeypatch):
    monkeypatch.setitem(GPUS, "small", l2_replay.Gpu(1, 1, hints=True))
    lines = l2_replay.table("small").splitlines()
    assert "modelled" in lines[0]
    assert [line.split("  ")[0] for line in lines[2:]] == [
        f"{direction}, {order}" for direction in DIRECTIONS for order in ORDERS
    ]
    monkeypatch.setitem(GPUS, "small", l2_replay.Gpu(1, 1, hints=False))
    assert "evict-first" not in l2_replay.table("small")
