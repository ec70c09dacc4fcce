"""The README's tables are those of the committed results."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import block  # noqa: E402
import network  # noqa: E402
import traffic  # noqa: E402

TABLES = {
    "block table": (block, "cpu.json"),
    "network table": (network, "cpu_networks.json"),
    "pass table": (traffic, "traffic.json"),
}


@pytest.mark.parametrize("name, source", TABLES.items(), ids=TABLES)
def test_readme_shows_the_committed_results(name, source):
    script, file = source
    result = json.loads((ROOT / "benchmarks" / "results" / file).read_text())
    shown = re.search(rf"<!-- {name} -->\n(.*)\n<!-- end of {name} -->",
                      (ROOT / "README.md").read_text(), re.DOTALL)
    assert shown[1] == script.table(result)
