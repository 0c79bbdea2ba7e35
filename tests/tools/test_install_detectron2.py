"""The installer of Detectron2: what it leaves alone and what it removes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import install_detectron2 as installer


def write_record(folder: Path, files: list[Path]) -> None:
    record = folder / "sal_detectron2-0.7.2.dist-info" / "RECORD"
    record.parent.mkdir(parents=True)
    rows = [f"{file.relative_to(folder).as_posix()},{installer.recorded_digest(file)},1" for file in files]
    record.write_text("\n".join([*rows, "detectron2/__init__.py,sha256=x,1"]))


def test_remove_stray_tools_removes_the_wheels_package(tmp_path: Path) -> None:
    files = [tmp_path / "tools" / name for name in ("__init__.py", "train_net.py")]
    files[0].parent.mkdir()
    for file in files:
        file.write_text(file.name)
    write_record(tmp_path, files)
    cached = tmp_path / "tools" / "__pycache__" / "train_net.cpython-311.pyc"
    cached.parent.mkdir()
    cached.write_bytes(b"")

    assert installer.remove_stray_tools(tmp_path) == files
    assert not (tmp_path / "tools").exists()


def test_remove_stray_tools_leaves_files_that_are_not_the_wheels(tmp_path: Path) -> None:
    own, other = tmp_path / "tools" / "__init__.py", tmp_path / "tools" / "mine.py"
    own.parent.mkdir()
    own.write_text("the wheel's")
    other.write_text("mine")
    write_record(tmp_path, [own])
    own.write_text("changed since")

    assert installer.remove_stray_tools(tmp_path) == []
    assert own.exists()
    assert other.exists()


def test_remove_stray_tools_without_the_wheel_removes_nothing(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "mine.py").write_text("mine")
    assert installer.remove_stray_tools(tmp_path) == []
    assert (tmp_path / "tools" / "mine.py").exists()


@pytest.fixture
def pip_calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, ...]]:
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(installer, "pip", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(installer, "site_packages", lambda: tmp_path)
    return calls


@pytest.mark.parametrize(
    ("works", "is_wheel", "arguments", "expected"),
    [
        (True, True, [], []),
        (True, False, [], []),
        (True, False, ["git+https://example.org/d2.git"], []),
        (True, True, ["git+https://example.org/d2.git"], ["uninstall", "install"]),
        (False, False, ["git+https://example.org/d2.git"], ["install"]),
        (False, False, [], ["install"]),
    ],
)
def test_main_installs_only_what_is_missing_or_asked_for(
    monkeypatch: pytest.MonkeyPatch,
    pip_calls: list[tuple[str, ...]],
    works: bool,
    is_wheel: bool,
    arguments: list[str],
    expected: list[str],
) -> None:
    answers = iter([works, True])
    monkeypatch.setattr(installer, "imports_detectron2", lambda: next(answers))
    monkeypatch.setattr(installer, "has_distribution", lambda _: is_wheel)
    monkeypatch.setattr("sys.argv", ["install_detectron2.py", *arguments])
    assert installer.main() == 0
    assert [call[0] for call in pip_calls] == expected
    if expected == ["install"] and not arguments:
        assert "--require-hashes" in pip_calls[0] or "requirements-detectron2.txt" in pip_calls[0][-1]


def test_main_detectron2_that_does_not_import_afterwards_fails(
    monkeypatch: pytest.MonkeyPatch, pip_calls: list[tuple[str, ...]]
) -> None:
    monkeypatch.setattr(installer, "imports_detectron2", lambda: False)
    monkeypatch.setattr("sys.argv", ["install_detectron2.py"])
    assert installer.main() == 1


def test_requirements_pin_the_wheel_by_hash(repository: Path) -> None:
    lines = (repository / "requirements-detectron2.txt").read_text().splitlines()
    (pinned,) = [line for line in lines if line and not line.startswith("#")]
    assert pinned == (
        "sal-detectron2==0.7.2 --hash=sha256:491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
    )
