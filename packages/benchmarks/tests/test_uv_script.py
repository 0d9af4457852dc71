"""scripts/uv acts on its own checkout, or refuses: tested with a stand-in for uv that says how it was called."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "uv"
STAND_IN = """#!/bin/sh
echo "folder $(pwd)"
echo "python ${UV_PYTHON:-none}"
echo "active ${VIRTUAL_ENV:-none}"
echo "virtual ${PIP_REQUIRE_VIRTUALENV:-none}"
for word; do echo "word $word"; done
"""


@pytest.fixture
def checkout(tmp_path):
    """A checkout without .venv, and beside it a folder elsewhere, a stand-in for uv, and a machine's own Python."""
    for folder in ("checkout/scripts", "elsewhere", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(SCRIPT, tmp_path / "checkout" / "scripts" / "uv")
    for name, text in (("uv", STAND_IN), ("python3", f"#!/bin/sh\necho {tmp_path}/bin/python3\n")):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path / "checkout"


def make_environment(path):
    (path / "bin").mkdir(parents=True)
    (path / "pyvenv.cfg").touch()


def call(checkout, *words, path=None, script=None, **variables):
    """Call scripts/uv, or a link to it, from elsewhere; returns the process, and what uv was told, such as {"folder": [..]}."""
    environment = {"PATH": f"{path or checkout.parent / 'bin'}:/usr/bin:/bin", **variables}
    done = subprocess.run(
        [script or checkout / "scripts" / "uv", *words],
        check=False,
        cwd=checkout.parent / "elsewhere",
        env=environment,
        capture_output=True,
        text=True,
    )
    told: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        name, _, value = line.partition(" ")
        told.setdefault(name, []).append(value)
    return done, told


@pytest.mark.parametrize("command", ["sync", "run", "add", "remove", "lock", "export", "tree"])
def test_commands_on_a_project_are_about_this_one(checkout, command):
    """Wherever they are called from, and whatever environment is active there; the folder stays, as `run` needs it."""
    _, told = call(checkout, command, "a b", VIRTUAL_ENV="/another")
    assert told["word"] == ["--project", str(checkout), command, "a b"]
    assert told["folder"] == [str(checkout.parent / "elsewhere")]
    assert told["python"] == [str(checkout.parent / "bin" / "python3")]
    assert told["active"] == ["none"]


@pytest.mark.parametrize("command", ["venv", "build", "publish"])
def test_commands_on_a_folder_are_called_in_this_one(checkout, command):
    _, told = call(checkout, command, "--quiet")
    assert (told["word"], told["folder"]) == ([command, "--quiet"], [str(checkout)])


def test_pip_never_takes_the_machines_python(checkout):
    """Without .venv it refuses; with it, uv is told .venv, even where UV_PYTHON or an active environment says otherwise."""
    done, told = call(checkout, "pip", "install", "x")
    assert (done.returncode, told) == (2, {})
    assert done.stderr == f"scripts/uv: {checkout}/.venv is not a virtual environment: `scripts/uv sync` makes .venv\n"
    make_environment(checkout / ".venv")
    _, told = call(checkout, "pip", "install", "x", UV_PYTHON="/usr/bin/python3", VIRTUAL_ENV="/another")
    assert told["word"] == ["pip", "install", "x"]
    assert (told["python"], told["active"]) == ([f"{checkout}/.venv"], ["none"])


def test_pip_takes_the_environment_that_is_named(checkout):
    """As UV_PROJECT_ENVIRONMENT, absolute or below the checkout, or as --python, which must be in an environment."""
    other = checkout.parent / "other"
    make_environment(other)
    make_environment(checkout / "inside")
    for named, expected in ((str(other), other), ("inside", checkout / "inside")):
        _, told = call(checkout, "pip", "list", UV_PROJECT_ENVIRONMENT=named)
        assert told["python"] == [str(expected)]
    for words in (["--python", f"{other}/bin/python"], [f"--python={other}/bin/python"], ["-p", str(other)], [f"-p{other}"]):
        _, told = call(checkout, "pip", "install", *words, "x")
        assert told["word"] == ["pip", "install", *words, "x"]


def test_pip_itself_is_that_of_the_environment(checkout):
    """`run pip` takes the pip of .venv or none; pip under another name changes virtual environments only."""
    make_environment(checkout / ".venv")
    for words in (["run", "pip", "install", "x"], ["run", "--no-sync", "pip3", "list"]):
        done, told = call(checkout, *words)
        assert (done.returncode, told) == (2, {})
        name = next(word for word in words if word.startswith("pip"))
        assert done.stderr == f"scripts/uv: {checkout}/.venv has no {name}: `scripts/uv sync` puts pip into .venv\n"
        (checkout / ".venv" / "bin" / name).touch(mode=0o755)
        _, told = call(checkout, *words)
        assert told["word"] == ["--project", str(checkout), *words]
        assert told["virtual"] == ["1"]


@pytest.mark.parametrize("command", ["sync", "run", "pip"])
def test_a_python_outside_virtual_environments_is_no_environment(checkout, command):
    """uv itself would install into UV_PROJECT_ENVIRONMENT=/usr; a folder that is yet to be made is left to it."""
    done, told = call(checkout, command, "x", UV_PROJECT_ENVIRONMENT=str(checkout.parent))
    assert (done.returncode, told) == (2, {})
    assert done.stderr.startswith(f"scripts/uv: {checkout.parent} is not a virtual environment")


def test_the_environment_has_pip():
    """For `pip` after `. .venv/bin/activate`, which otherwise is the machine's."""
    groups = tomllib.loads((SCRIPT.parents[1] / "pyproject.toml").read_text())["dependency-groups"]
    assert any(re.match(r"pip\b(?!-)", requirement) for requirement in groups["dev"])


def test_only_a_path_names_a_python(checkout):
    """A version stays a version where the current folder is a virtual environment, or holds one of that name."""
    make_environment(checkout / ".venv")
    for folder in ("", "bin", "3.11"):
        make_environment(checkout.parent / "elsewhere" / folder)
    for name in ("3.11", "python3"):
        for words in (["--python", name], [f"--python={name}"], ["-p", name], [f"-p{name}"]):
            done, told = call(checkout, "pip", "install", *words, "x")
            assert (done.returncode, told) == (2, {})
            assert f"--python {name} is not a path" in done.stderr


def test_flags_come_after_the_command(checkout):
    done, told = call(checkout, "-v", "sync")
    assert (done.returncode, told) == (2, {})
    line = "-v is before the command: put flags after the command, as in `scripts/uv sync --verbose`"
    assert done.stderr == f"scripts/uv: {line}\n"


@pytest.mark.parametrize("absolute", [True, False])
def test_a_link_to_the_script_is_the_script(checkout, absolute):
    """It acts on the checkout that holds the script, not on the folder that holds the link."""
    folder = checkout.parent / "links" / "scripts"
    folder.mkdir(parents=True)
    (folder / "first").symlink_to(checkout / "scripts" / "uv" if absolute else "../../checkout/scripts/uv")
    (folder / "second").symlink_to("first")
    _, told = call(checkout, "sync", script=folder / "second")
    assert told["word"] == ["--project", str(checkout), "sync"]


@pytest.mark.parametrize(
    "words",
    [
        ["tool", "install", "x"],
        ["python", "install"],
        ["self", "update"],
        ["cache", "clean"],
        ["init"],
        ["--quiet", "sync"],
        ["pip", "install", "--system", "x"],
        ["pip", "install", "--target", "folder", "x"],
        ["pip", "install", "-tfolder", "x"],
        ["pip", "install", "--prefix=folder", "x"],
        ["pip", "install", "--python", "/usr/bin/python3", "x"],
        ["pip", "install", "--python=3.12", "x"],
        ["pip", "install", "-p/usr/bin/python3", "x"],
        ["pip", "install", "-vp", "/usr/bin/python3", "x"],
        ["pip", "install", "-qqp/usr/bin/python3", "x"],
        ["pip", "install", "-vt", "folder", "x"],
    ],
    ids=" ".join,
)
def test_what_may_change_the_machine_is_refused(checkout, words):
    make_environment(checkout / ".venv")
    done, told = call(checkout, *words)
    assert (done.returncode, told) == (2, {})
    assert done.stderr.startswith("scripts/uv: ")
    assert len(done.stderr.splitlines()) == 1


def test_the_folder_of_the_script_on_the_path(checkout):
    """Then `uv` is the script itself; it takes the uv of its checkout instead of calling itself for ever."""
    (checkout / ".uv" / "bin").mkdir(parents=True)
    shutil.move(checkout.parent / "bin" / "uv", checkout / ".uv" / "bin" / "uv")
    assert os.access(checkout / "scripts" / "uv", os.X_OK)
    _, told = call(checkout, "sync", path=f"{checkout}/scripts:{checkout.parent}/bin")
    assert told["word"] == ["--project", str(checkout), "sync"]


def test_uv_itself_is_fetched_by_its_hashes(checkout):
    """Where there is none. The stand-in for Python makes an environment whose pip says how it was called."""
    python = checkout.parent / "bin" / "python3"
    pip = '#!/bin/sh\\nfor word; do echo "word $word"; done\\n'
    making = f'mkdir -p "$3/bin" && printf \'{pip}\' > "$3/bin/pip" && chmod +x "$3/bin/pip"'
    python.write_text(f'#!/bin/sh\n[ "$1" != -m ] || {{ {making}; }}\n')
    (checkout.parent / "bin" / "uv").unlink()
    _, told = call(checkout, "sync")
    assert told["word"][-4:] == ["--no-deps", "--require-hashes", "-r", f"{checkout}/scripts/uv.txt"]
    first, *hashes = (SCRIPT.parent / "uv.txt").read_text().replace("\\", "").split()
    assert re.fullmatch(r"uv==[\d.]+", first)
    assert len(hashes) > 10
    assert all(re.fullmatch("--hash=sha256:[0-9a-f]{64}", each) for each in hashes)
