"""Runs a command with a malloc that keeps the memory it has freed.

    python benchmarks/malloc.py COMMAND …

glibc reads these variables when a program starts. Other C libraries don't know them.
"""

import os
import platform
import sys

MALLOC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
    "MALLOC_TOP_PAD_": str(1 << 26),
}
KEEPS, DEFAULT = "keeps freed memory", "default"


def in_use() -> str:
    """The malloc of this process."""
    is_glibc = platform.libc_ver()[0] == "glibc"
    return KEEPS if is_glibc and MALLOC.items() <= os.environ.items() else DEFAULT


def main():
    command = sys.argv[1:]
    if not command:
        sys.exit(__doc__)
    os.execvpe(command[0], command, {**os.environ, **MALLOC})


if __name__ == "__main__":
    main()
