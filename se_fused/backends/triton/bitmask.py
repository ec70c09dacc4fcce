"""The bit mask of a ReLU: a byte for eight elements of a tile, along what runs fastest.

Rows and bits as in ``se_fused/backends/README.md``; LAYOUT and tiles as in tiles.py.
"""

import triton
import triton.language as tl

from se_fused.backends.triton.tiles import unflatten_planes


@triton.jit
def store_bits(
    mask_ptr, bits, sample, block, tile, channels, spatial,
    LAYOUT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, PLANE: tl.constexpr,
):  # fmt: skip
    """Packs a tile of int32 that is 1 or 0, and 0 where it is masked."""
    if LAYOUT == "flat":
        bits = unflatten_planes(bits, BLOCK_C, BLOCK_M, PLANE)
    offset, inside = _byte_offsets(sample, block, tile, channels, spatial, LAYOUT, BLOCK_C, BLOCK_M)
    if LAYOUT == "channels_last":
        GROUP: tl.constexpr = min(BLOCK_C, 8)
        groups = tl.reshape(bits, [BLOCK_C // GROUP, GROUP, BLOCK_M])
        packed = tl.sum(groups << tl.arange(0, GROUP)[None, :, None], 1)
    else:
        GROUP: tl.constexpr = min(BLOCK_M, 8)
        groups = tl.reshape(bits, [BLOCK_C, BLOCK_M // GROUP, GROUP])
        packed = tl.sum(groups << tl.arange(0, GROUP)[None, None, :], 2)
    tl.store(mask_ptr + offset, packed.to(tl.uint8), inside)


@triton.jit
def load_bits(
    mask_ptr, sample, block, tile, channels, spatial,
    LAYOUT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, PLANE: tl.constexpr,
):  # fmt: skip
    """A tile of int32 that is 1 or 0."""
    offset, inside = _byte_offsets(sample, block, tile, channels, spatial, LAYOUT, BLOCK_C, BLOCK_M)
    packed = tl.load(mask_ptr + offset, inside, other=0).to(tl.int32)
    if LAYOUT == "channels_last":
        GROUP: tl.constexpr = min(BLOCK_C, 8)
        groups = packed[:, None, :] >> tl.arange(0, GROUP)[None, :, None]
        bits = tl.reshape(groups, [BLOCK_C, BLOCK_M])
    elif LAYOUT == "contiguous":
        GROUP: tl.constexpr = min(BLOCK_M, 8)
        groups = packed[:, :, None] >> tl.arange(0, GROUP)[None, None, :]
        bits = tl.reshape(groups, [BLOCK_C, BLOCK_M])
    else:
        BYTES: tl.constexpr = (BLOCK_M + 7) // 8
        element = tl.arange(0, BLOCK_C * BLOCK_M)
        channel = tl.minimum(element // PLANE, BLOCK_C - 1)
        position = element % PLANE
        packed = tl.reshape(packed, [BLOCK_C * BYTES])
        bits = tl.gather(packed, channel * BYTES + position // 8, 0) >> position % 8
    return bits & 1


@triton.jit
def _byte_offsets(
    sample, block, tile, channels, spatial,
    LAYOUT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Offsets into the mask, and which of them are inside, of a tile's bytes. A tile of fewer than
    eight elements along what runs fastest is alone there."""
    if LAYOUT == "channels_last":
        BYTES: tl.constexpr = (BLOCK_C + 7) // 8
        row = tile * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
        column = block * BYTES + tl.arange(0, BYTES)[:, None]
        rows, columns = spatial, tl.cdiv(channels, 8)
    else:
        BYTES: tl.constexpr = (BLOCK_M + 7) // 8
        row = block * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]
        column = tile * BYTES + tl.arange(0, BYTES)[None, :]
        rows, columns = channels, tl.cdiv(spatial, 8)
    return (sample * rows + row) * columns + column, (row < rows) & (column < columns)
