"""The table of faults (docs/faults.md) names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

ROW = re.compile(r"\| .+ \| .+ \| .+ \| (?P<tests>`.+`) \|")


def test_every_fault_has_its_test(root: Path) -> None:
    lines = (root / "docs" / "faults.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("|") and not line.startswith(("| fault", "|---"))]
    assert len(rows) > 50
    for row in rows:
        match = ROW.fullmatch(row)
        assert match, row
        for name in match["tests"].split(", "):
            file, _, function = name.strip("`").partition("::")
            source = (root / "tests" / file).read_text(encoding="utf-8")
            assert re.search(rf"^def {function}\(", source, re.MULTILINE), name


def test_every_test_of_a_fault_is_in_the_table(root: Path) -> None:
    table = (root / "docs" / "faults.md").read_text(encoding="utf-8")
    files = [*(root / "tests").glob("test_faults_*.py"), *(root / "tests").glob("test_fuzz_*.py")]
    assert len(files) >= 6
    for file in files:
        if file.name != Path(__file__).name:
            for name in re.findall(r"^def (test_\w+)\(", file.read_text(encoding="utf-8"), re.MULTILINE):
                assert f"`{file.name}::{name}`" in table, name
