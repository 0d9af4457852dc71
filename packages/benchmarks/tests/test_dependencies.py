"""The page of dependencies names exactly those of the pyproject files, and who asks for them."""

import re
import tomllib
from collections import defaultdict
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).parents[3]


def asked_for():
    """Who asks for each distribution, by its name."""
    found = defaultdict(set)
    for path in (ROOT / "pyproject.toml", *ROOT.glob("packages/*/pyproject.toml")):
        settings = tomllib.loads(path.read_text())
        project = settings.get("project", {"name": ""})
        groups = {project["name"]: project.get("dependencies", [])}
        groups |= {f"{project['name']}[{extra}]": names for extra, names in project.get("optional-dependencies", {}).items()}
        groups["development"] = [*chain.from_iterable(settings.get("dependency-groups", {}).values())]
        groups["building all packages"] = settings.get("build-system", {}).get("requires", [])
        for who, requirements in groups.items():
            for requirement in requirements:
                found[re.match(r"[\w.-]+", requirement)[0]].add(who)
    return dict(found)


def test_the_page_names_the_dependencies_of_the_pyproject_files():
    rows = [row.split(" | ") for row in (ROOT / "docs" / "dependencies.md").read_text().splitlines() if row.startswith("| ")][2:]
    assert {row[0].removeprefix("| "): set(row[1].split(", ")) for row in rows} == asked_for()
    assert len({row[0] for row in rows}) == len(rows)
    assert all(len(row) == 5 and all(cell.strip(" |") for cell in row) for row in rows)
