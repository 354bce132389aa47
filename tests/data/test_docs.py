import re
from pathlib import Path

import pytest

from invertible.data import describe, names

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_blocks_run_and_print_what_they_say(number, capsys):
    exec(compile(BLOCKS[number], f"{PAGE}:block {number}", "exec"), {})
    printed = capsys.readouterr().out
    for line in re.findall(r"^# (.*)$", BLOCKS[number], flags=re.MULTILINE):
        assert re.search(re.escape(line).replace(r"\.\.\.", ".*"), printed)


@pytest.mark.parametrize("name", names())
def test_the_table_has_every_set(name):
    row = next(line for line in TEXT.splitlines() if line.startswith(f"| `{name}` |"))
    source = describe(name)
    if source.files:
        assert f"{source.n_train:,} / {source.n_test:,}" in row
        assert "x".join(map(str, source.shape)) in row
