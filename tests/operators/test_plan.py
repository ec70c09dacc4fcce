"""Tiles, splits and the place of the excitation: pure functions, for GPUs that are not here."""

from itertools import product

import pytest
from shapes import LARGE, SHAPES

from se_fused.backends.triton import plan

KB, MB = 1 << 10, 1 << 20
# Multiprocessors, L2 and shared memory of one program, from the vendors' data sheets
# (MI300X: the L2 of one of its dies).
DEVICES = {
    "T4": plan.Device(40, 4 * MB, 64 * KB),
    "A100": plan.Device(108, 40 * MB, 163 * KB),
    "H100": plan.Device(132, 50 * MB, 227 * KB),
    "B200": plan.Device(148, 126 * MB, 227 * KB),
    "RTX 4090": plan.Device(128, 72 * MB, 99 * KB),
    "MI300X": plan.Device(304, 4 * MB, 64 * KB),
}
each_device = pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
MAPS = [(shape[1], shape[2:]) for shape, _ in [*SHAPES.values(), *LARGE.values()]] + [
    (2048, (7, 7)), (1024, (14, 14)), (72, (28, 28)), (24, (112, 112)), (8, (15, 15)),
    (4096, (2, 2)), (3, (224, 224)), (1, (1, 1)), (64, (5, 157)), (16, (1000,)),
]  # fmt: skip


def positions(spatial) -> int:
    count = 1
    for extent in spatial:
        count *= extent
    return count


@each_device
@pytest.mark.parametrize("itemsize", [2, 4, 8])
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("samples", [1, 3, 256])
def test_every_tile_is_covered_and_fits(device, itemsize, channels_last, samples):
    for channels, spatial in MAPS:
        spatial = positions(spatial)
        p = plan.plan(samples, channels, spatial, channels_last, itemsize, device)
        for block in (p.block_c, p.block_m):
            assert block & (block - 1) == 0 and block > 0
        assert p.block_c * p.block_m * max(itemsize, 4) <= plan.TILE_BYTES
        # Every channel and position in exactly one tile, every tile in exactly one split.
        assert (p.channel_blocks - 1) * p.block_c < channels <= p.channel_blocks * p.block_c
        assert (p.spatial_tiles - 1) * p.block_m < spatial <= p.spatial_tiles * p.block_m
        assert (p.splits - 1) * p.tiles_per_split < p.spatial_tiles
        assert p.spatial_tiles <= p.splits * p.tiles_per_split
        fastest = channels if p.layout in ("channels_last", "flat") else spatial
        assert fastest % p.align == 0
        if p.layout == "flat":
            assert (p.spatial_tiles, p.splits) == (1, 1)


LAYOUTS = {
    # channels, spatial, channels_last, itemsize: layout
    "7x7-fp32": (2048, 49, False, 4, "flat"),
    "7x7-bf16": (2048, 49, False, 2, "flat"),
    "14x14-fp32-is-aligned": (1024, 196, False, 4, "contiguous"),
    "14x14-bf16": (1024, 196, False, 2, "flat"),
    "28x28-bf16-is-aligned": (512, 784, False, 2, "contiguous"),
    "odd-channels-align-nothing": (33, 49, False, 4, "contiguous"),
    "long-odd-planes": (64, 75 * 75, False, 4, "contiguous"),
    "7x7-channels-last": (2048, 49, True, 4, "channels_last"),
    "no-spatial-dims": (2048, 1, False, 4, "channels_last"),
}


@pytest.mark.parametrize("case", LAYOUTS.values(), ids=LAYOUTS)
def test_layout(case):
    *arguments, layout = case
    for device in DEVICES.values():
        assert plan.tile(*arguments, device)[0] == layout


def test_the_shapes_of_the_tests_meet_every_layout():
    device = DEVICES["T4"]
    met = {
        plan.tile(shape[1], positions(shape[2:]), channels_last, itemsize, device)[0]
        for shape, _ in SHAPES.values()
        for channels_last in (False, True)
        for itemsize in (2, 4)
    }
    assert met == {"contiguous", "channels_last", "flat"}


@each_device
@pytest.mark.parametrize("samples", [1, 8, 64, 4096])
def test_planes_are_split_until_the_device_is_busy(device, samples):
    p = plan.plan(samples, 64, 112 * 112, False, 4, device)
    whole = samples * p.channel_blocks  # programs, if none shared its positions
    programs = whole * p.splits
    busy = plan.BUSY_PROGRAMS * device.multiprocessors
    assert 2 * programs >= busy or 2 * p.splits > plan.MAX_SPLITS or p.tiles_per_split == 1
    wanted = plan.PROGRAMS_PER_MULTIPROCESSOR * device.multiprocessors
    assert p.splits == 1 or programs <= 2 * wanted


@each_device
def test_the_last_program_of_a_sample_has_few_partial_sums_to_load(device):
    for samples, channels, side in product((1, 8, 32, 256), (64, 256, 1024), (7, 14, 56, 224)):
        p = plan.plan(samples, channels, side * side, True, 2, device)
        assert p.splits <= plan.MAX_SPLITS
        programs = samples * p.channel_blocks * plan.PARTIALS_PER_ROUND
        is_busy = programs >= plan.BUSY_PROGRAMS * device.multiprocessors
        assert p.splits <= plan.PARTIALS_PER_ROUND or not is_busy


SPLITS = {
    # samples, channels, side: splits in bfloat16, channels_last, on an H100
    (32, 256, 56): 7,  # one round of slots; 7 tiles each of 49
    (1, 256, 56): 25,
    (256, 256, 56): 2,
    (32, 2048, 7): 1,
}


@pytest.mark.parametrize("map", SPLITS, ids=str)
def test_splits_of_maps_of_resnet(map):
    samples, channels, side = map
    p = plan.plan(samples, channels, side * side, True, 2, DEVICES["H100"])
    assert p.splits == SPLITS[map]


EXCITATION = {
    # samples, channels, hidden, weight bytes, splits: in the reduce launch?
    "SE-ResNet-50-stage-1": (32, 256, 16, 4, 7, True),
    "SE-ResNet-50-stage-2": (32, 512, 32, 4, 5, True),
    "SE-ResNet-50-stage-4": (32, 2048, 128, 4, 1, False),
    "SE-ResNet-50-stage-4-bf16": (32, 2048, 128, 2, 1, False),
    "MobileNetV3-Large-last": (128, 960, 240, 4, 1, False),
    "EfficientNet-B0-480": (64, 480, 20, 4, 2, True),
    "EfficientNet-B0-1152": (128, 1152, 48, 4, 1, False),
    "wider-than-registers": (1, 512, plan.MAX_HIDDEN + 1, 2, 1, False),
}


@each_device
@pytest.mark.parametrize("case", EXCITATION.values(), ids=EXCITATION)
def test_where_the_excitation_runs(device, case):
    *arguments, inside = case
    assert plan.excites_in_reduce(*arguments, 4, device) == inside


def test_the_excitation_leaves_the_launch_when_samples_outweigh_the_device():
    small, large = DEVICES["T4"], DEVICES["H100"]
    assert plan.excites_in_reduce(400, 512, 16, 4, 1, 4, large)
    assert not plan.excites_in_reduce(400, 512, 16, 4, 1, 4, small)


def test_weights_that_would_not_stay_in_l2_are_read_between():
    assert not plan.excites_in_reduce(1, 512, 32, 4, 1, 4, plan.Device(40, 200 * KB, 64 * KB))
    assert plan.excites_in_reduce(1, 512, 32, 4, 1, 4, plan.Device(40, 300 * KB, 64 * KB))


def test_slots_that_only_the_excitation_reads_count():
    # Weights: 11.3 µs, slots: 0.5 µs in float32 and 1 µs in float64; the other way: 12 µs. Several
    # splits have slots to add either way.
    device = DEVICES["H100"]
    assert plan.excites_in_reduce(1, 2048, 11, 4, 1, 4, device)
    assert not plan.excites_in_reduce(1, 2048, 11, 4, 1, 8, device)
    assert plan.excites_in_reduce(1, 2048, 11, 4, 2, 8, device)


@pytest.mark.parametrize("acc_bytes", [4, 8])
def test_excitation_tile_holds_all_hidden_units(acc_bytes):
    for hidden in (1, 5, 64, plan.MAX_HIDDEN):
        block_r, chunk = plan.excitation_tile(2048, hidden, acc_bytes)
        assert hidden <= block_r < 2 * hidden
        assert chunk >= 1 and block_r * chunk * acc_bytes <= plan.EXCITATION_TILE_BYTES
