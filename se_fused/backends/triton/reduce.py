"""The first launch of each direction: sums over the spatial extent, then the excitation.

A program sums a row of ``tiles_per_split`` tiles into its own slot of [N, splits, C]; the last of a
sample's programs adds the slots in a fixed order and goes on from there. It waits for nobody.
``counter_ptr`` [N] starts at zero; None: nothing to finish, the slots are the result.
"""

import triton
import triton.language as tl

from se_fused.backends.triton.excitation import (
    excite,
    excite_backward,
    finishes_sample,
    store_slot_sums,
)
from se_fused.backends.triton.tiles import (
    channel_sums,
    per_element,
    program_index,
    tile_offsets,
    zeros,
)


# z = Σ x / M [N, C], eq. 2; with weights also g = gate(W2 act(W1 z + b1) + b2), eq. 3.
# One program: BLOCK_C channels of one sample, tiles_per_split tiles of BLOCK_M positions.
# Reads x once; the last program of a sample reads its slots and the weights (w1_ptr None: no
# excitation). Writes slots, z and g: (splits + 2)·N·C.
# Budget: 104 registers, 16 KB of shared memory.
@triton.jit(do_not_specialize=["splits", "tiles_per_split"])
def squeeze_kernel(
    x_ptr, slot_ptr, counter_ptr, z_ptr, g_ptr, w1_ptr, b1_ptr, w2_ptr, b2_ptr,
    channels, spatial, hidden, splits, tiles_per_split,
    LAYOUT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, PLANE: tl.constexpr,
    ALIGN: tl.constexpr, INT64: tl.constexpr,
    ACT: tl.constexpr, GATE: tl.constexpr, BLOCK_R: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = slot_ptr.dtype.element_ty
    blocks = tl.cdiv(channels, BLOCK_C)
    sample, block, split = program_index(blocks, splits, REVERSE=False, INT64=INT64)
    channel = block * BLOCK_C + tl.arange(0, BLOCK_C)
    total = zeros(LAYOUT, BLOCK_C, BLOCK_M, ACC)
    for step in range(tiles_per_split):
        offset, mask = tile_offsets(
            sample, block, split * tiles_per_split + step, channels, spatial,
            LAYOUT, BLOCK_C, BLOCK_M, PLANE, ALIGN,
        )  # fmt: skip
        total += tl.load(x_ptr + offset, mask, other=0).to(ACC)
    slot = (sample * splits + split) * channels + channel
    sums = channel_sums(total, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
    tl.store(slot_ptr + slot, sums / spatial, channel < channels)

    if counter_ptr is not None:
        if finishes_sample(counter_ptr, sample, blocks * splits):
            if w1_ptr is None:
                store_slot_sums(slot_ptr, z_ptr, sample, channels, splits, CHUNK)
            else:
                excite(
                    slot_ptr, z_ptr, g_ptr, w1_ptr, b1_ptr, w2_ptr, b2_ptr,
                    sample, channels, hidden, splits, ACT, GATE, BLOCK_R, CHUNK,
                )  # fmt: skip


# dg = Σ dy·x [N, C]; with dx_ptr also dx = dy·g (rescale alone); with weights instead of dg the
# gradients of the excitation: dp2 = dg·gate', dp1 = (dp2 W2)·act', share = (dp1 W1) / M.
# One program: BLOCK_C channels of one sample, tiles_per_split tiles of BLOCK_M positions.
# Reads dy and x once; the last program of a sample reads its slots, z, g and the weights.
# Writes slots, dp2, share [N, C] and h, dp1 [N, R].
# Budget: 152 registers (208 with dx), 16 KB of shared memory.
@triton.jit(do_not_specialize=["splits", "tiles_per_split"])
def gate_gradient_kernel(
    dy_ptr, x_ptr, slot_ptr, counter_ptr, dg_ptr, g_ptr, dx_ptr,
    z_ptr, w1_ptr, b1_ptr, w2_ptr, dp1_ptr, h_ptr, dp2_ptr, share_ptr,
    channels, spatial, hidden, splits, tiles_per_split,
    LAYOUT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, PLANE: tl.constexpr,
    ALIGN: tl.constexpr, INT64: tl.constexpr,
    ACT: tl.constexpr, GATE: tl.constexpr, BLOCK_R: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = slot_ptr.dtype.element_ty
    blocks = tl.cdiv(channels, BLOCK_C)
    sample, block, split = program_index(blocks, splits, REVERSE=False, INT64=INT64)
    channel = block * BLOCK_C + tl.arange(0, BLOCK_C)
    if dx_ptr is not None:
        g = tl.load(g_ptr + sample * channels + channel, channel < channels, other=0)
        g = per_element(g, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
    total = zeros(LAYOUT, BLOCK_C, BLOCK_M, ACC)
    for step in range(tiles_per_split):
        offset, mask = tile_offsets(
            sample, block, split * tiles_per_split + step, channels, spatial,
            LAYOUT, BLOCK_C, BLOCK_M, PLANE, ALIGN,
        )  # fmt: skip
        dy = tl.load(dy_ptr + offset, mask, other=0).to(ACC)
        # x is not read again, dy is.
        x = tl.load(x_ptr + offset, mask, other=0, eviction_policy="evict_first").to(ACC)
        total += dy * x
        if dx_ptr is not None:
            tl.store(dx_ptr + offset, dy * g, mask)
    slot = (sample * splits + split) * channels + channel
    sums = channel_sums(total, LAYOUT, BLOCK_C, BLOCK_M, PLANE)
    tl.store(slot_ptr + slot, sums, channel < channels)

    if counter_ptr is not None:
        if finishes_sample(counter_ptr, sample, blocks * splits):
            if w1_ptr is None:
                store_slot_sums(slot_ptr, dg_ptr, sample, channels, splits, CHUNK)
            else:
                excite_backward(
                    slot_ptr, z_ptr, g_ptr, w1_ptr, b1_ptr, w2_ptr,
                    dp1_ptr, h_ptr, dp2_ptr, share_ptr,
                    sample, channels, spatial, hidden, splits, ACT, GATE, BLOCK_R, CHUNK,
                )  # fmt: skip
