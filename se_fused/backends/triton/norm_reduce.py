"""The sums of a block with BatchNorm before the squeeze: its moments, squeeze and gradients.

u = (x - center) · scale + shift and v = act(u) exist in registers only. Sums go through slots, as
in reduce.py.
"""

import triton
import triton.language as tl

from se_fused.backends.triton.activations import act, act_derivative
from se_fused.backends.triton.bits import load_bits
from se_fused.backends.triton.excitation import ROUND, finishes_sample, store_slot_sums
from se_fused.backends.triton.tiles import (
    channel_sums,
    normalization,
    per_element,
    program_index,
    tile_offsets,
    zeros,
)

# As many of a thread's elements as lie along positions, in either layout, with up to 4 warps.
FOLD = tl.constexpr(2)
# Channels whose slots are merged at once: a thread has three values of ROUND slots for each of its.
MOMENTS_CHUNK = tl.constexpr(128)


# mean = Σ x / M, m2 = Σ (x - mean)², each [N, C].
# One program: BLOCK_C channels of one sample, tiles_per_split tiles of BLOCK_M positions; sums of
# d = x - shift and of d², with the first tile's mean as the shift: nothing cancels that is large
# beside m2, to which that tile adds its own distance from the mean.
# Reads x once; the last program of a sample reads its slots. Writes slots, mean and m2.
# Budget: 112 registers, 8 KB of shared memory.
@triton.jit(do_not_specialize=["samples", "splits", "tiles_per_split"])
def moments_kernel(
    x_ptr, slot_ptr, counter_ptr, mean_ptr, m2_ptr,
    samples, channels, spatial, splits, tiles_per_split,
    LAYOUT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, PLANE: tl.constexpr,
    ALIGN: tl.constexpr, INT64: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = mean_ptr.dtype.element_ty
    blocks = tl.cdiv(channels, BLOCK_C)
    sample, block, split = program_index(blocks, splits, REVERSE=False, INT64=INT64)
    first = split * tiles_per_split
    offset, inside = tile_offsets(
        sample, block, first, channels, spatial, LAYOUT, BLOCK_C, BLOCK_M, PLANE, ALIGN
    )
    x = tl.load(x_ptr + offset, inside, other=0).to(ACC)
    left = spatial - first * BLOCK_M
    sums = channel_sums(x, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
    shift = sums / tl.minimum(left, BLOCK_M)
    of_tile = per_element(shift, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
    total = tl.where(inside, x - of_tile, 0)
    squares = total * total
    for step in range(1, tiles_per_split):
        offset, inside = tile_offsets(
            sample, block, first + step, channels, spatial, LAYOUT, BLOCK_C, BLOCK_M, PLANE, ALIGN
        )
        x = tl.load(x_ptr + offset, inside, other=0).to(ACC)
        d = tl.where(inside, x - of_tile, 0)
        total += d
        squares += d * d
    sums = channel_sums(total, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
    rest = sums / tl.minimum(left, tiles_per_split * BLOCK_M)
    m2 = channel_sums(squares, LAYOUT, BLOCK_C, BLOCK_M, PLANE) - sums * rest

    channel = block * BLOCK_C + tl.arange(0, BLOCK_C)
    if counter_ptr is None:
        tl.store(mean_ptr + sample * channels + channel, shift + rest, channel < channels)
        tl.store(m2_ptr + sample * channels + channel, m2, channel < channels)
    else:
        slot = (sample * splits + split) * channels + channel
        slots = tl.cast(samples, tl.int64) * splits * channels
        tl.store(slot_ptr + slot, shift, channel < channels)
        tl.store(slot_ptr + slots + slot, rest, channel < channels)
        tl.store(slot_ptr + 2 * slots + slot, m2, channel < channels)
        if finishes_sample(counter_ptr, sample, blocks * splits):
            _store_slot_moments(
                slot_ptr, slots, mean_ptr, m2_ptr, sample, channels, spatial,
                splits, tiles_per_split * BLOCK_M, min(CHUNK, MOMENTS_CHUNK),
            )  # fmt: skip


# z = Σ v / M [N, C].
# One program: BLOCK_C channels of one sample, tiles_per_split tiles of BLOCK_M positions.
# Reads x once; the last program of a sample reads its slots. Writes slots and z.
# Budget: 120 registers, 8 KB of shared memory.
@triton.jit(do_not_specialize=["splits", "tiles_per_split"])
def norm_squeeze_kernel(
    x_ptr, center_ptr, scale_ptr, shift_ptr, slot_ptr, counter_ptr, z_ptr,
    channels, spatial, splits, tiles_per_split,
    LAYOUT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, PLANE: tl.constexpr,
    ALIGN: tl.constexpr, INT64: tl.constexpr, CHUNK: tl.constexpr, ACT: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = slot_ptr.dtype.element_ty
    blocks = tl.cdiv(channels, BLOCK_C)
    sample, block, split = program_index(blocks, splits, REVERSE=False, INT64=INT64)
    channel = block * BLOCK_C + tl.arange(0, BLOCK_C)
    center, scale, shift = normalization(
        center_ptr, scale_ptr, shift_ptr, channel, channels, LAYOUT, BLOCK_C, BLOCK_M, PLANE
    )
    total = zeros(LAYOUT, BLOCK_C, BLOCK_M, ACC)
    for step in range(tiles_per_split):
        offset, inside = tile_offsets(
            sample, block, split * tiles_per_split + step, channels, spatial,
            LAYOUT, BLOCK_C, BLOCK_M, PLANE, ALIGN,
        )  # fmt: skip
        x = tl.load(x_ptr + offset, inside, other=0).to(ACC)
        total += tl.where(inside, act((x - center) * scale + shift, ACT), 0)
    slot = (sample * splits + split) * channels + channel
    sums = channel_sums(total, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
    tl.store(slot_ptr + slot, sums / spatial, channel < channels)

    if counter_ptr is not None:
        if finishes_sample(counter_ptr, sample, blocks * splits):
            store_slot_sums(slot_ptr, z_ptr, sample, channels, splits, CHUNK)


# sums = [Σ q·v', Σ q·v'·(x - center), Σ q·v, Σ v', Σ v'·(x - center)], the first two for identity,
# with q = dy where its bit of the mask is set (mask_ptr None: everywhere), else 0.
# One program: BLOCK_C channels of one sample, tiles_per_split tiles of BLOCK_M positions.
# Reads dy, x and the mask once; the last program of a sample reads its slots.
# Writes slots and sums.
# Budget: 208 registers, 8 KB of shared memory.
@triton.jit(do_not_specialize=["samples", "splits", "tiles_per_split"])
def norm_sums_kernel(
    dy_ptr, x_ptr, mask_ptr, center_ptr, scale_ptr, shift_ptr, slot_ptr, counter_ptr, sums_ptr,
    samples, channels, spatial, splits, tiles_per_split,
    LAYOUT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, PLANE: tl.constexpr,
    ALIGN: tl.constexpr, INT64: tl.constexpr, CHUNK: tl.constexpr, ACT: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = slot_ptr.dtype.element_ty
    blocks = tl.cdiv(channels, BLOCK_C)
    sample, block, split = program_index(blocks, splits, REVERSE=False, INT64=INT64)
    channel = block * BLOCK_C + tl.arange(0, BLOCK_C)
    center, scale, shift = normalization(
        center_ptr, scale_ptr, shift_ptr, channel, channels, LAYOUT, BLOCK_C, BLOCK_M, PLANE
    )
    dv = _folded_zeros(LAYOUT, BLOCK_C, BLOCK_M, ACC)
    dv_centered, dv_v, slopes, slopes_centered = dv, dv, dv, dv
    for step in range(tiles_per_split):
        tile = split * tiles_per_split + step
        offset, inside = tile_offsets(
            sample, block, tile, channels, spatial, LAYOUT, BLOCK_C, BLOCK_M, PLANE, ALIGN
        )
        q = tl.load(dy_ptr + offset, inside, other=0).to(ACC)
        x = tl.load(x_ptr + offset, inside, other=0).to(ACC)
        if mask_ptr is not None:
            bits = load_bits(
                mask_ptr, sample, block, tile, channels, spatial, LAYOUT, BLOCK_C, BLOCK_M, PLANE
            )
            q = tl.where(bits == 1, q, 0)
        centered = x - center
        if ACT == "identity":
            dv += _fold(q, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
            dv_centered += _fold(q * centered, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
        else:
            u = centered * scale + shift
            slope = tl.where(inside, act_derivative(u, ACT), 0)
            dv += _fold(q * slope, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
            dv_centered += _fold(q * slope * centered, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
            dv_v += _fold(q * act(u, ACT), LAYOUT, BLOCK_C, BLOCK_M, PLANE)
            slopes += _fold(slope, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
            slopes_centered += _fold(slope * centered, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
    slot = (sample * splits + split) * channels + channel
    sums = tl.cast(samples, tl.int64) * channels  # from one of the sums to the next
    tl.store(slot_ptr + slot, _unfold(dv, LAYOUT), channel < channels)
    tl.store(slot_ptr + sums * splits + slot, _unfold(dv_centered, LAYOUT), channel < channels)
    if ACT != "identity":
        tl.store(slot_ptr + 2 * sums * splits + slot, _unfold(dv_v, LAYOUT), channel < channels)
        tl.store(slot_ptr + 3 * sums * splits + slot, _unfold(slopes, LAYOUT), channel < channels)
        tl.store(
            slot_ptr + 4 * sums * splits + slot, _unfold(slopes_centered, LAYOUT),
            channel < channels,
        )  # fmt: skip

    if counter_ptr is not None:
        if finishes_sample(counter_ptr, sample, blocks * splits):
            for number in tl.static_range(2 if ACT == "identity" else 5):
                store_slot_sums(
                    slot_ptr + number * sums * splits, sums_ptr + number * sums,
                    sample, channels, splits, CHUNK,
                )  # fmt: skip


@triton.jit
def _store_slot_moments(
    slot_ptr, slots, mean_ptr, m2_ptr, sample, channels, spatial, splits, per_split,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """The splits of a sample merged by Chan's rule, always in the same order. Of means far from
    zero, only differences from the first split's shift are rounded."""
    ACC: tl.constexpr = slot_ptr.dtype.element_ty
    for start in range(0, channels, CHUNK):
        channel = start + tl.arange(0, CHUNK)
        slot = sample * splits * channels + channel
        first = tl.load(slot_ptr + slot, channel < channels, other=0)
        mean = tl.zeros([CHUNK], ACC)
        m2 = tl.zeros([CHUNK], ACC)
        for start_split in range(0, splits, ROUND):
            for step in tl.static_range(ROUND):
                split = start_split + step
                before = split * per_split
                size = tl.maximum(tl.minimum(per_split, spatial - before), 0)
                share = tl.cast(size, ACC) / (before + size)
                inside = (channel < channels) & (split < splits)
                at = slot + split * channels
                shift = tl.load(slot_ptr + at, inside, other=0) - first
                rest = tl.load(slot_ptr + slots + at, inside, other=0)
                m2_of_split = tl.load(slot_ptr + 2 * slots + at, inside, other=0)
                delta = tl.where(split < splits, shift + rest - mean, 0)
                m2 += m2_of_split + delta * delta * (share * before)
                mean += delta * share
        index = sample * channels + channel
        tl.store(mean_ptr + index, first + mean, channel < channels)
        tl.store(m2_ptr + index, m2, channel < channels)


@triton.jit
def _fold(
    tile,
    LAYOUT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, PLANE: tl.constexpr,
):  # fmt: skip
    """A tile, zero where it is masked, with FOLD positions summed that one thread holds: so that
    the accumulators of five sums fit in registers. A flat tile is alone: all of it."""
    if LAYOUT == "flat":
        return channel_sums(tile, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
    else:
        GROUP: tl.constexpr = min(BLOCK_M, FOLD)
        if LAYOUT == "channels_last":
            return tl.sum(tl.reshape(tile, [BLOCK_C, GROUP, BLOCK_M // GROUP]), 1)
        else:
            return tl.sum(tl.reshape(tile, [BLOCK_C, BLOCK_M // GROUP, GROUP]), 2)


@triton.jit
def _folded_zeros(
    LAYOUT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, ACC: tl.constexpr
):
    if LAYOUT == "flat":
        return tl.zeros([BLOCK_C], ACC)
    else:
        return tl.zeros([BLOCK_C, BLOCK_M // min(BLOCK_M, FOLD)], ACC)


@triton.jit
def _unfold(sums, LAYOUT: tl.constexpr):
    """Folded tiles summed over positions, [BLOCK_C]."""
    if LAYOUT == "flat":
        return sums
    else:
        return tl.sum(sums, 1)
