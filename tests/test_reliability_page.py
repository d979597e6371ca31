"""The tests that docs/reliability.md names beside what was done are there."""

import fnmatch
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_row_names_tests_that_are_there():
    lines = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| ") and "test" in line.rpartition("| ")[2] + line]
    rows = [line for line in rows if not line.startswith(("| --- ", "| what "))]
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.M)
    }
    named, unknown = set(), set()
    for row in rows:
        for quoted in re.findall(r"`([^`]*test_[^`]*)`", row.rstrip("| ").rpartition(" | ")[2]):
            file, _, test = quoted.rpartition("::")
            test = test.partition("[")[0]
            if file and file != "..." and not (ROOT / file).is_file():
                unknown.add(file)
            if test.endswith(".py"):
                unknown |= set() if (ROOT / test).is_file() else {test}
            elif not fnmatch.filter(defined, test):
                unknown.add(test)
            named.add(test)
    print(f"{len(rows)} rows name {len(named)} tests or files of tests")
    assert not sorted(unknown)
    assert len(rows) >= 43
