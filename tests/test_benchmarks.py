"""The README's tables are those of the committed results."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import block  # noqa: E402
import bounds  # noqa: E402
import network  # noqa: E402
import traffic  # noqa: E402

TABLES = {
    "block table": (block, "cpu.json"),
    "network table": (network, "cpu_networks.json"),
    "pass table": (traffic, "traffic.json"),
    "bound table": (bounds, "traffic.json"),
}


@pytest.mark.parametrize("name, source", TABLES.items(), ids=TABLES)
def test_readme_shows_the_committed_results(name, source):
    script, file = source
    result = json.loads((ROOT / "benchmarks" / "results" / file).read_text())
    shown = re.search(rf"<!-- {name} -->\n(.*)\n<!-- end of {name} -->",
                      (ROOT / "README.md").read_text(), re.DOTALL)
    assert shown[1] == script.table(result)


def test_bound_is_the_bytes_of_the_passes_over_the_bandwidth():
    # 7 × 51.4 MB at 3.35 TB/s
    found = bounds.microseconds(7, bounds.MEMORIES["H100"].bandwidth)
    assert found == pytest.approx(107.4, abs=0.1)


def test_bound_names_each_side_by_its_passes():
    layouts = {"contiguous": 8, "channels_last": 7}
    found = bounds.columns({"one": layouts, "other": dict.fromkeys(layouts, 7)})
    assert found == {8: ["one, contiguous"], 7: ["one, channels_last", "other"], 5: ["floor"]}
