"""Resolve the workspace and keep uv.lock versions only: no addresses, no hashes, the same file behind any mirror.

usage: python scripts/lock.py [arguments of uv lock, such as --upgrade]

`uv sync` takes each version from the kept file as its preference and fills the rest into the working copy, which
is not to be committed: `git update-index --skip-worktree uv.lock` keeps it out of sight; undo that before running this.
"""

import re
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).resolve().parent.parent / "uv.lock"


def versions_only(lock: str) -> str:
    """The lock without sdist, wheels and package.metadata entries, its registries named "."."""
    lock = re.sub(r"^sdist = \{.*\}\n", "", lock, flags=re.MULTILINE)
    lock = re.sub(r"^wheels = \[\n(?:    .*\n)*\]\n", "", lock, flags=re.MULTILINE)
    lock = re.sub(r"^\[package\.metadata[^\n]*\]\n(?:(?!\[).*\n)*", "", lock, flags=re.MULTILINE)
    lock = re.sub(r'registry = "[^"]*"', 'registry = "."', lock)
    return re.sub(r"\n{3,}", "\n\n", lock).rstrip("\n") + "\n"


if __name__ == "__main__":
    subprocess.run([LOCK.parent / "scripts" / "uv", "lock", *sys.argv[1:]], check=True, cwd=LOCK.parent)
    LOCK.write_text(versions_only(LOCK.read_text()))
    if "://" in LOCK.read_text():
        sys.exit(f"{LOCK.name} still holds an address; teach scripts/lock.py to drop it")
