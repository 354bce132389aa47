"""Results come back from their files as they were, and what is no such file is refused."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest

from invertible.errors import DataError
from invertible.instruments import Finding, Result

NAN, INF = math.nan, math.inf


@dataclass(frozen=True)
class Part:
    name: str
    size: float
    by_key: dict[str, float]


@dataclass(frozen=True)
class Sample(Result):
    parts: tuple[Part, ...]
    numbers: tuple[float, ...]
    count: int
    is_fine: bool
    note: str | None

    @property
    def table(self):
        return [{"name": part.name, "size": part.size} for part in self.parts]

    def plot(self, ax=None):
        raise NotImplementedError


@dataclass(frozen=True)
class Other(Result):
    @property
    def table(self):
        return []

    def plot(self, ax=None):
        raise NotImplementedError


def sample(**changes: object) -> Sample:
    findings = (Finding("note", "a"), Finding("error", "b", 0), Finding("warning", "c"), Finding("error", "d"))
    parts = (Part("é", 1.5, {"x": -INF, "y": 0.1}), Part("nan", NAN, {}))
    values = {"parts": parts, "numbers": (NAN, INF, -INF, 1e-300, 3.0, -0.0), "count": 2**60, "is_fine": False}
    return Sample(findings, **{**values, "note": None, **changes})  # type: ignore[arg-type]


def test_findings_are_ranked_worst_first_and_otherwise_kept_in_order() -> None:
    assert [finding.sentence for finding in sample().findings] == ["b", "d", "c", "a"]


def test_results_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        sample().count = 3  # type: ignore[misc]


@pytest.mark.parametrize("changes", [{}, {"note": "nan"}, {"parts": (), "numbers": ()}])
@pytest.mark.parametrize("kind", [Sample, Result])
def test_round_trip(kind: type[Result], changes: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "result.json"
    sample(**changes).save(path)
    # repr, since NaN is unequal to itself; it tells 3.0 from 3, tuples from lists and one class from another.
    assert repr(kind.load(path)) == repr(sample(**changes))


def test_the_file_is_json_of_the_strict_kind(tmp_path: Path) -> None:
    sample().save(tmp_path / "a.json")

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    content = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert content["kind"] == "Sample"
    assert content["fields"]["numbers"] == ["nan", "inf", "-inf", 1e-300, 3.0, 0.0]


def test_another_instruments_result_is_refused(tmp_path: Path) -> None:
    sample().save(tmp_path / "a.json")
    with pytest.raises(DataError, match=r"another instrument's: expected one of Other, got Sample. Try: Result\.load"):
        Other.load(tmp_path / "a.json")


def edited(path: Path, **fields: object) -> Path:
    sample().save(path)
    content = json.loads(path.read_text())
    content["fields"] |= fields
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    "fields",
    [
        {"count": 1.5},
        {"count": "3"},
        {"count": True},
        {"is_fine": 0},
        {"note": 3},
        {"numbers": 3},
        {"numbers": [None]},
        {"numbers": ["many"]},
        {"parts": [{"name": "a"}]},
        {"parts": [{"name": "a", "size": 1.0, "by_key": []}]},
        {"findings": [{"severity": "fatal", "sentence": "", "row": None}]},
        {"findings": [{"severity": [], "sentence": "", "row": None}]},
        {"unheard_of": 1},
    ],
)
def test_wrong_fields_are_refused(fields: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is corrupt: expected a Sample"):
        Sample.load(edited(tmp_path / "a.json", **fields))


@pytest.mark.parametrize("text", ["", "{", '{"format": 1}', "[]", '"invertible result 1"', "\x00", "[" * 100_000])
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=r"is corrupt|holds no result"):
        Result.load(tmp_path / "a.json")


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    sample().save(tmp_path / "a.json")
    whole = (tmp_path / "a.json").read_bytes()
    for n in range(0, len(whole.rstrip()), 37):
        (tmp_path / "a.json").write_bytes(whole[:n])
        with pytest.raises(DataError, match="is corrupt"):
            Result.load(tmp_path / "a.json")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(DataError, match="is corrupt"):
        Result.load(tmp_path / "a.json")


def test_a_missing_file_and_an_unknown_kind_say_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        Result.load(tmp_path / "none.json")
    path = edited(tmp_path / "a.json")
    path.write_text(path.read_text().replace('"Sample"', '"os.system"'))
    with pytest.raises(DataError, match=r"got os\.system.*once the module of that instrument is imported"):
        Result.load(path)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    sample().save(path)
    before = path.read_bytes()

    def fail(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(DataError, match="No space left"):
        sample(count=1).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_that_is_a_file_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        sample().save(tmp_path / "file" / "a.json")
