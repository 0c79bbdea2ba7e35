"""Installs Detectron2 into the environment of the Python that runs this file; leaves a working one alone.

No registry has Detectron2 under its own name. Without an argument the copy pinned in requirements-detectron2.txt is
installed: pure Python, no compiler, no `detectron2._C`. With one, e.g.
`git+https://github.com/facebookresearch/detectron2.git`, that is built instead (needs a compiler).

Runs before anything else is there: standard library only.
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import importlib.metadata
import json
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WHEEL_NAME = "sal-detectron2"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", nargs="?", default="", help="what pip installs in place of the registry's copy")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()

    is_wheel = has_distribution(WHEEL_NAME)
    is_there = imports_detectron2()
    if is_there and not (arguments.source and is_wheel):
        action = "left alone"
    elif arguments.source:
        install_from(arguments.source, replaces_wheel=is_wheel)
        action = f"installed from {arguments.source}"
    else:
        install_wheel()
        action = f"installed from {WHEEL_NAME}"
    if not is_there or action != "left alone":
        remove_stray_tools(site_packages())
    works = imports_detectron2()
    print(f"Detectron2: {action}" if works else "Detectron2 is installed but does not import; the error stands above")
    if arguments.json:
        print(json.dumps({"action": action, "works": works}))
    return 0 if works else 1


def site_packages() -> Path:
    """Where pure Python packages of this environment lie."""
    return Path(sysconfig.get_paths()["purelib"])


def has_distribution(name: str) -> bool:
    """Whether pip's records in this environment name the distribution."""
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def imports_detectron2() -> bool:
    """Whether `import detectron2` works here, in a fresh process and away from this folder."""
    check = subprocess.run(
        [sys.executable, "-c", "import detectron2.config"], cwd=site_packages(), capture_output=True, text=True
    )
    if check.returncode != 0 and "No module named 'detectron2'" not in check.stderr:
        print(check.stderr, file=sys.stderr)
    return check.returncode == 0


def install_wheel() -> None:
    """Unpacks the pinned wheel. It is tagged cp310 but holds Python code only, so it is asked for as Python 3.10."""
    pip(
        *("install", "--no-deps", "--only-binary=:all:", "--python-version", "3.10"),
        *("--target", str(site_packages()), "--requirement", str(ROOT / "requirements-detectron2.txt")),
    )


def install_from(source: str, replaces_wheel: bool) -> None:
    """Builds `source` against the torch that is installed; its dependencies are setup.py's."""
    if replaces_wheel:
        pip("uninstall", "--yes", WHEEL_NAME)
    pip("install", "--no-deps", "--no-build-isolation", source)


def pip(*arguments: str) -> None:
    """Runs pip of this environment; its own message explains a failure."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    finished = subprocess.run(command)
    if finished.returncode:
        sys.exit(f"failed: {' '.join(command)}")


def remove_stray_tools(folder: Path) -> list[Path]:
    """Removes the wheel's top-level package `tools`, which would hide ours; only files that its own record lists.

    Args:
        folder: the site-packages folder.

    Returns:
        The files removed.
    """
    records = sorted(folder.glob(f"{WHEEL_NAME.replace('-', '_')}-*.dist-info/RECORD"))
    removed = []
    for record in records:
        with record.open(encoding="utf-8", newline="") as lines:
            listed = [(folder / row[0], row[1]) for row in csv.reader(lines) if row and row[0].startswith("tools/")]
        for file, recorded in listed:
            if file.is_file() and (not recorded or recorded == recorded_digest(file)):
                file.unlink()
                removed.append(file)
    _remove_empty_folders(folder / "tools")
    return removed


def recorded_digest(file: Path) -> str:
    """The digest of a file as wheels record it."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(file.read_bytes()).digest()).decode().rstrip("=")
    return f"sha256={digest}"


def _remove_empty_folders(folder: Path) -> None:
    if not folder.is_dir():
        return
    for cached in folder.rglob("__pycache__/*.pyc"):
        # Byte code without its source would still import.
        if not (cached.parent.parent / f"{cached.name.split('.')[0]}.py").exists():
            cached.unlink()
    for inner in sorted(folder.rglob("*"), reverse=True):
        if inner.is_dir() and not any(inner.iterdir()):
            inner.rmdir()
    if not any(folder.iterdir()):
        folder.rmdir()


if __name__ == "__main__":
    sys.exit(main())
