"""Every Python block of README and docs runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHOWN_ONLY = {"docs/index.md"}  # needs images; the tutorial runs the same when the docs are built


def blocks() -> list:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    found = []
    for page in pages:
        name = page.relative_to(ROOT).as_posix()
        code = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        found += [pytest.param("\n".join(code), id=name)] if code and name not in SHOWN_ONLY else []
    return found


@pytest.mark.parametrize("code", blocks())
def test_a_page_s_python_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "page", "exec"), {"__name__": "page"})


def test_each_file_that_readme_links_to_exists() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#:]+)\)", text) if "://" not in link]
    assert links
    assert all((ROOT / link).exists() for link in links)
