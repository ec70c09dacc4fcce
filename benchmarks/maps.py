"""Feature maps of real networks, as (N, C, H, W), and the width of their excitation."""

# The four stages of SE-ResNet-50 at batch 32, an early and a single map, and EfficientNet's widest.
BLOCK_SHAPES = [
    (32, 256, 56, 56),
    (32, 512, 28, 28),
    (32, 1024, 14, 14),
    (32, 2048, 7, 7),
    (8, 64, 112, 112),
    (1, 256, 56, 56),
    (64, 96, 56, 56),
]
TINY_SHAPES = [(1, 64, 7, 7), (2, 128, 4, 4)]
# Maps of 2 to 4 MB in float32.
CACHED_SHAPES = [(1, 256, 56, 56), (8, 256, 28, 28), (8, 512, 14, 14), (4, 96, 56, 56)]
REDUCTION = 16
