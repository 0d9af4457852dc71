"""`mimonets data` through the command line."""

import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mimo_benchmarks.__main__ import main
from mimo_benchmarks.cli import data as data_program
from mimo_benchmarks.data.storage.folder import data_folder
from mimo_benchmarks.errors import DatasetError
from mimo_benchmarks.tasks import catalogue
from mimo_benchmarks.tasks.registry import TASKS, load

SETS = catalogue.sets()
RUN = Path(__file__).parent.parent / "run.py"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("something was asked of a server")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def printed_by(capsys, *arguments):
    """Return what the command prints when it succeeds."""
    main(["data", *map(str, arguments)])
    return capsys.readouterr().out


def refusal_of(capsys, *arguments):
    """Return what the command prints when it fails with exit code 2."""
    with pytest.raises(SystemExit) as exit_:
        main(["data", *map(str, arguments)])
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out
    return captured.err + captured.out


def test_list_tells_size_terms_source_and_what_is_missing(capsys, tmp_path):
    told = printed_by(capsys, "list", "--data-dir", tmp_path)
    blocks = {block.split(" ", 1)[0]: block for block in told.split("\n\n")}
    for name, wanted in SETS.items():
        block = blocks[name]
        assert wanted.terms in block
        assert wanted.origin in block
        assert all(file in block for file in wanted.files)
        assert ("bundled" if name == "digits" else " MB") in block
        if wanted.sources:
            assert f"`mimonets data prepare {name} --data-dir {tmp_path} --download`" in block
        elif wanted.cache:
            assert f"not generated yet: `mimonets data prepare {name} --data-dir {tmp_path}`" in block
        else:
            assert ("state: ready" if name == "digits" else "lra_release.gz") in block
    assert not list(tmp_path.iterdir())
    assert set(told.rsplit(":", 1)[1].replace(",", "").split()) == TASKS.keys() - {
        task for wanted in SETS.values() for task in wanted.tasks
    }


def listed_sets(capsys, folder):
    """Return the entry of each set that `list` prints, by name."""
    return {block.split(" ", 1)[0]: block for block in printed_by(capsys, "list", "--data-dir", folder).split("\n\n")}


def test_list_tells_what_is_there_of_the_right_size(capsys, tmp_path):
    for name in ("svhn", "listops_lra", "imdb"):
        for file in SETS[name].files:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).touch()
    for source in SETS["svhn"].sources:
        with (tmp_path / source.files[0].path).open("r+b") as handle:
            handle.truncate(source.files[0].size)  # a sparse file, which takes no space
    cache = SETS["listops"].cache(tmp_path)
    cache.mkdir(parents=True)
    (tmp_path / SETS["listops_lra"].files[1]).unlink()
    told = listed_sets(capsys, tmp_path)
    assert "state: ready" in told["svhn"]
    assert "state: ready" in told["imdb"]  # its size is not known
    assert "not generated yet" in told["listops"]
    assert f"missing {SETS['listops_lra'].files[1]}: download" in told["listops_lra"]
    (cache / "SHA256SUMS").touch()
    (tmp_path / SETS["svhn"].files[0]).write_bytes(b"short")
    (tmp_path / SETS["svhn"].files[1]).unlink()
    (tmp_path / SETS["svhn"].files[1]).mkdir()
    told = listed_sets(capsys, tmp_path)
    assert "state: ready" in told["listops"]
    assert f"missing {', '.join(SETS['svhn'].files)}: get it" in told["svhn"]


@pytest.mark.parametrize("verb", ["list", "verify", "prepare"])
def test_what_the_file_system_refuses_is_told(verb, capsys, tmp_path):
    """A name that is too long stands for a folder without permissions, which root could read."""
    folder = tmp_path / ("x" * 300)
    if verb == "list":
        assert listed_sets(capsys, folder)["mnist"].count("cannot be read (File name too long)") == 1
    for name in ("text", "mnist", "pathfinder_lra", "listops") if verb != "list" else ():
        told = refusal_of(capsys, verb, name, "--data-dir", folder)
        assert "File name too long" in told
        assert "--data-dir" in told


def test_the_command_leaves_out_the_folder_that_is_meant_anyway(monkeypatch, tmp_path):
    monkeypatch.setenv("MIMO_DATA", str(tmp_path / "a b"))
    assert catalogue.command("prepare", "mnist", data_folder()) == "mimonets data prepare mnist"
    elsewhere = catalogue.command("verify", "mnist", tmp_path / "c d")
    assert shlex.split(elsewhere)[-2:] == ["--data-dir", str(tmp_path / "c d")]


def test_verify_says_what_is_in_it(capsys, tmp_path):
    told = printed_by(capsys, "verify", "digits", "--data-dir", tmp_path)
    assert "digits: images 1 x 8 x 8" in told
    assert "train: 1,437, 139 to 146 of each class" in told
    assert "test: 360, 35 to 37 of each class" in told


def test_verify_prints_guesses_beside_chance(capsys, tmp_path):
    told = printed_by(capsys, "verify", "recall_vs10", "--data-dir", tmp_path)
    assert "5,000 + 500 sequences of 22 tokens" in told
    assert "chance: 25.00%" in told
    assert "keys: 5" in told  # 54 % by the published rule
    assert not list(tmp_path.iterdir())


@pytest.mark.once
def test_verify_tells_the_share_of_padding(capsys):
    if not (data_folder() / "imdb" / "train.parquet").is_file():
        pytest.skip(f"IMDb is not in {data_folder()}")
    told = printed_by(capsys, "verify", "text")
    assert "train: 22,500, 11,250 to 11,250 of each class; 1294 tokens on average" in told
    line = next(line for line in told.splitlines() if "train" in line)
    like, chance = (float(part.split("%")[0].split()[-1]) for part in (line, line[line.index("%") + 1 :]))
    assert like < 5
    assert chance > 50


@pytest.mark.parametrize("verb", ["prepare", "verify"])
def test_an_unknown_name_is_refused_with_those_that_there_are(verb, capsys, tmp_path):
    told = refusal_of(capsys, verb, "cifar", "--data-dir", tmp_path)
    assert "there is no data set or task 'cifar': did you mean cifar10 or cifar100?" in told
    assert "choose one of digits, mnist, cifar10" in refusal_of(capsys, verb, "zzz", "--data-dir", tmp_path)


@pytest.mark.parametrize("verb", ["prepare", "verify"])
@pytest.mark.parametrize("name", ["mnist", "image", "svhn", "text", "retrieval", "listops_lra", "pathfinder_lra"])
def test_what_is_missing_is_refused_with_the_way_to_get_it(verb, name, capsys, tmp_path):
    told = refusal_of(capsys, verb, name, "--data-dir", tmp_path)
    (wanted,) = (wanted for wanted in SETS.values() if name in wanted.tasks)
    assert str(tmp_path / wanted.files[0]) in told
    assert ("lra_release.gz" if wanted.by_hand else "--download") in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["listops", "pathfinder_published"])
def test_verify_generates_nothing(name, capsys, tmp_path):
    told = refusal_of(capsys, "verify", name, "--data-dir", tmp_path)
    assert f"generate it with `mimonets data prepare {name}" in told
    assert not list(tmp_path.iterdir())


def test_download_fetches_the_sources_of_the_set_alone(capsys, tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setattr(data_program, "fetch", lambda sources, folder: fetched.append((sources, folder)))
    refusal_of(capsys, "prepare", "mnist20", "--download", "--data-dir", tmp_path)
    assert {file.path for source in fetched[0][0] for file in source.files} == set(SETS["mnist"].files)
    assert fetched[0][1] == tmp_path
    printed_by(capsys, "prepare", "digits", "--download", "--data-dir", tmp_path)
    assert fetched[1:] == [((), tmp_path)]


def test_a_flag_that_is_none_is_refused(capsys):
    assert "--dowload" in refusal_of(capsys, "prepare", "mnist", "--dowload")
    refusal_of(capsys, "fetch", "mnist")


def test_what_is_downloaded_is_pinned_and_all_but_text_is_checked_by_published_checksums_ever_after():
    for name, wanted in SETS.items():
        for source in wanted.sources:
            assert all(url.startswith(("https://", "http://")) for url in source.urls)
            assert name == "imdb" or all(file.digest.startswith("sha256:") for file in source.files)
            served = source.archive or source.served or source.files[0]
            assert re.fullmatch("sha256:[0-9a-f]{64}", served.digest)


def test_every_set_says_all_of_it():
    for wanted in SETS.values():
        assert wanted.about
        assert wanted.tasks
        assert wanted.terms
        assert wanted.origin
        assert bool(wanted.sources) + bool(wanted.by_hand) + bool(wanted.cache) == (wanted != SETS["digits"])


@pytest.mark.once
def test_a_reader_that_has_seen_enough_is_no_error():
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, RUN, "data", "list"], text=True, **pipes) as program:
        program.stdout.readline()
        program.stdout.close()
        assert program.stderr.read() == ""
        assert program.wait() in (0, 1)


@pytest.mark.parametrize("name", ["listops", "pathfinder"])
def test_the_catalogue_knows_where_a_generated_set_is_cached(name, tmp_path):
    """Loading the task looks for its files in the folder that the catalogue names."""
    cache = SETS[name].cache(tmp_path)
    cache.mkdir(parents=True)
    with pytest.raises(DatasetError, match=f"{cache} lacks files"):
        load(name, tmp_path)
