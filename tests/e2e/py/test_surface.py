# SPDX-License-Identifier: Apache-2.0
"""docs/compat.md lists every public method of the installed package, and what it says is tested, is."""

import os
import re
from pathlib import Path

from surface import surface, version

HERE = Path(__file__).parent
TESTS = [path for path in HERE.glob("test_*.py") if path.name != "test_surface.py"]


def listed():
    """{class: (tested, refused, local)} of the table below the heading of this package."""
    text = Path(os.environ["NEARBOX_COMPAT"]).read_text(encoding="utf-8")
    heading = f"PyPI e2b {version()}\n"
    (part,) = [section for section in re.split(r"^### ", text, flags=re.M) if section.startswith(heading)]
    out = {}
    for line in part.splitlines():
        if not line.startswith("| ") or line.startswith("| class"):
            continue
        name, *columns = [cell.strip() for cell in line.split("|")[1:-1]]
        out[name] = [[] if cell == "–" else cell.split(", ") for cell in columns]
    return out


def test_every_public_method_is_listed():
    flat = {name: sorted(sum(columns, [])) for name, columns in listed().items()}
    assert flat == surface()


def test_what_is_listed_as_tested_is_called():
    sources = "\n".join(path.read_text(encoding="utf-8") for path in TESTS)
    halves = {True: (HERE / "test_async.py").read_text(encoding="utf-8"), False: sources}
    refused_tests = (HERE / "test_refused.py").read_text(encoding="utf-8")
    for name, (tested, refused, _) in listed().items():
        source = halves[name.startswith("Async")]
        for method in tested:
            assert re.search(rf"\.{method}\b", source + refused_tests), f"{name}.{method}"
        for method in refused:
            assert re.search(rf"\.{method}\b", refused_tests), f"{name}.{method}"
