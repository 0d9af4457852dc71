"""Generated sets: the rows against a plain loop, and caches altered, interrupted, raced for and not writable."""

import errno
import os
import random
import resource
import signal
import subprocess
import sys
from functools import partial
from itertools import product
from operator import truediv
from pathlib import Path

import datasets
import pytest
from datasets import Dataset, Features, Value

from mimo_benchmarks.data.storage.generated import cache, generated
from mimo_benchmarks.errors import ConfigError, DatasetError


def thirds(chunk):
    """Ten rows, of which up to three in a row are equal; there are 51 different ones."""
    numbers = range(10 * chunk, 10 * chunk + 10)
    return {"third": [str(number // 3 % 51).encode() for number in numbers], "number": [*numbers]}


def never(chunk):
    raise AssertionError("the cache was not used")


def obtain(folder, count=30, produce=thirds, workers=1, version=1, **arguments):
    return generated(
        folder,
        "thirds",
        version=version,
        arguments={"of": 51, **arguments},
        produce=produce,
        features=Features({"third": Value("binary"), "number": Value("int64")}),
        count=count,
        workers=workers,
    )


def place(folder, count=30):
    return cache(folder, "thirds", version=1, arguments={"of": 51}, count=count)


def contents(path):
    return {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("count", [1, 9, 10, 11, 30, 51])
def test_rows_are_the_first_different_ones_in_order(tmp_path, count):
    expected = {}
    for number in range(1000):
        expected.setdefault(number // 3 % 51, number)
    found = obtain(tmp_path, count)
    assert [*zip(map(int, found["third"]), found["number"], strict=True)] == [*expected.items()][:count]


def test_a_set_is_made_once_and_then_found_where_cache_says(tmp_path):
    first = obtain(tmp_path)
    assert place(tmp_path).is_dir()
    found = obtain(tmp_path, produce=never)
    assert (found[:], found.features) == (first[:], first.features)
    assert [path.name for path in (tmp_path / "generated").iterdir()] == [place(tmp_path).name]
    obtain(tmp_path / "elsewhere")
    assert contents(place(tmp_path / "elsewhere")) == contents(place(tmp_path))


def test_another_recipe_is_another_cache():
    recipes = product(["a", "b"], [1, 2], [{"x": 1, "y": 2}, {"x": 2, "y": 1}, {"x": 1}, {}], [10, 11])
    places = {cache(Path(), name, version=v, arguments=arguments, count=n) for name, v, arguments, n in recipes}
    assert len(places) == 2 * 2 * 4 * 2
    assert cache(Path(), "a", version=1, arguments={"y": 2, "x": 1}, count=10) in places


@pytest.mark.parametrize(
    ("produce", "error"),
    [(partial(truediv, 1), ZeroDivisionError), (partial(os._exit), r"a process that generates data died.*fewer workers")],
    ids=["raises", "dies"],
)
def test_a_worker_that_fails_ends_the_run(tmp_path, produce, error):
    expected, match = (DatasetError, error) if isinstance(error, str) else (error, None)
    with pytest.raises(expected, match=match):
        obtain(tmp_path, produce=produce, workers=2)
    assert not contents(tmp_path)


def altered(data, rng):
    """A flipped, lost or added byte, or the end lost."""
    at = rng.randrange(len(data))
    return rng.choice(
        [
            data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :],
            data[:at] + data[at + 1 :],
            data[:at] + bytes([rng.randrange(256)]) + data[at:],
            data[:at],
        ]
    )


def test_no_altered_cache_is_read(tmp_path):
    """500 alterations over its four files, and each is noticed."""
    rng = random.Random(0)
    obtain(tmp_path)
    path = place(tmp_path)
    files = sorted(path.iterdir())
    assert len(files) == 4
    for _ in range(500):
        file = rng.choice(files)
        intact = file.read_bytes()
        file.write_bytes(altered(intact, rng))
        with pytest.raises(DatasetError, match=rf"{path} is not as it was written.*delete {path}, and it is made anew"):
            obtain(tmp_path)
        file.write_bytes(intact)
    obtain(tmp_path, produce=never)


def test_a_cache_that_lacks_files_or_is_none_is_not_read(tmp_path):
    obtain(tmp_path)
    path = place(tmp_path)
    for file in sorted(path.iterdir()):
        intact = file.read_bytes()
        file.unlink()
        with pytest.raises(DatasetError, match=f"{path} lacks files: delete"):
            obtain(tmp_path)
        file.write_bytes(intact)
    place(tmp_path, 31).mkdir()
    place(tmp_path, 32).touch()
    for count in (31, 32):
        with pytest.raises(DatasetError, match=f"{place(tmp_path, count)} lacks files: delete"):
            obtain(tmp_path, count)


def test_a_set_at_the_place_of_another_is_not_read(tmp_path):
    obtain(tmp_path)
    place(tmp_path).rename(place(tmp_path, 31))
    with pytest.raises(DatasetError, match=r'holds another set, .*"count": 30.*: delete'):
        obtain(tmp_path, 31)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError(errno.EIO, "of its own")], ids=repr)
def test_an_interrupted_run_leaves_nothing(tmp_path, error):
    """And what interrupted it comes out as it was."""

    def interrupted(chunk):
        if chunk == 2:
            raise error
        return thirds(chunk)

    with pytest.raises(type(error) if isinstance(error, OSError) else error):
        obtain(tmp_path, produce=interrupted)
    assert not [*(tmp_path / "generated").iterdir()]
    obtain(tmp_path)


def failing_after(done, real, calls):
    """Such a function on a disk that is full after so many calls; `done` counts them."""

    def function(*args, **kwargs):
        done.append(args)
        if len(done) > calls:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **kwargs)

    return function


@pytest.mark.parametrize(("owner", "name", "calls"), [(Dataset, "save_to_disk", 1), (os, "fsync", 6), (Path, "rename", 1)])
def test_no_failing_write_leaves_a_cache_that_looks_whole(tmp_path, monkeypatch, owner, name, calls):
    """A full disk at each call that puts the set there: its four files, their folder and its parent are synchronised."""
    for before in range(calls):
        folder, done = tmp_path / str(before), []
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, failing_after(done, getattr(owner, name), before))
            with pytest.raises(DatasetError, match=rf"{place(folder)} cannot be read or written \(No space left .*make room"):
                obtain(folder)
        assert len(done) == before + 1
        moved = name == "fsync" and before == 5  # the last call is after the move: all is there
        assert place(folder).exists() == moved
        obtain(folder)


def test_a_full_disk_is_named(tmp_path):
    """Files may have 1000 bytes for a while, which is what a full disk does to a write; the data has more."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(DatasetError, match=r"cannot be read or written .*make room"):
            obtain(tmp_path, 51)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not contents(tmp_path)
    obtain(tmp_path, 51)


def test_a_folder_that_cannot_be_one_is_named_before_any_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match=r"cannot be read or written \(Not a directory\)"):
        obtain(tmp_path / "file", produce=never)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_rights_is_named_before_any_work(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(DatasetError, match=r"cannot be read or written \(Permission denied\)"):
        obtain(tmp_path, produce=never)
    tmp_path.chmod(0o700)


def test_of_two_runs_at_once_both_end_well(tmp_path):
    """Another run makes the same set while this one is at it."""

    def raced(chunk):
        obtain(tmp_path)
        return thirds(chunk)

    assert obtain(tmp_path, produce=raced)[:] == obtain(tmp_path, produce=never)[:]
    assert [path.name for path in (tmp_path / "generated").iterdir()] == [place(tmp_path).name]


def test_too_few_different_rows_end_the_search(tmp_path):
    with pytest.raises(DatasetError, match=r"thirds: 51 of 52 different rows were found.*ask for fewer, or change the arguments"):
        obtain(tmp_path, 52)
    with pytest.raises(DatasetError, match="thirds: 0 of 52 different"):
        obtain(tmp_path, 52, produce=lambda chunk: {"third": [], "number": []})


@pytest.mark.parametrize("changed", [{"count": 0}, {"count": -1}, {"workers": 0}], ids=str)
def test_settings_that_cannot_work_are_refused(tmp_path, changed):
    ((name, value),) = changed.items()
    with pytest.raises(ConfigError, match=f"{name} is {value}; it must be at least 1"):
        obtain(tmp_path, **changed)


@pytest.mark.parametrize("shown", [True, False])
def test_progress_bars_of_datasets_stay_off_the_screen_and_as_they_were_set(tmp_path, capfd, shown):
    (datasets.enable_progress_bars if shown else datasets.disable_progress_bars)()
    try:
        obtain(tmp_path)
        assert datasets.are_progress_bars_disabled() is not shown
    finally:
        datasets.enable_progress_bars()
    assert capfd.readouterr() == ("", "")  # none of ours either, as this is no terminal


SLOW = """
import signal, sys, time
from pathlib import Path
from datasets import Features, Value
from mimo_benchmarks.data.storage.generated import generated

def slow(chunk):
    if chunk % 4 == 0:
        time.sleep(2)  # meanwhile the other worker makes the chunks ahead and then waits
    else:
        print(chunk, flush=True)
    return {"row": [b"%d" % chunk]}

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in the background of a shell
    features = Features({"row": Value("binary")})
    generated(Path(sys.argv[1]), "slow", version=1, arguments={}, produce=slow, features=features, count=10_000, workers=2)
"""


@pytest.mark.once
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent(tmp_path, how):
    """Ctrl-C reaches all processes of a terminal, a kill one. The output ends when the last process that has it open ends."""
    (tmp_path / "slow.py").write_text(SLOW)
    environment = {**os.environ, "HOME": str(tmp_path / "home"), "HF_HOME": str(tmp_path / "home")}
    with subprocess.Popen(
        [sys.executable, "slow.py", "data"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    ) as run:
        try:
            assert [run.stdout.readline() for _ in range(3)] == ["1\n", "2\n", "3\n"]
            os.killpg(run.pid, how) if how == signal.SIGINT else run.kill()
            output, _ = run.communicate(timeout=600)
        except BaseException:
            os.killpg(run.pid, signal.SIGKILL)
            raise
    assert run.returncode == -how
    assert output.count("Traceback") == (how == signal.SIGINT)  # the parent's alone
    assert not [*(tmp_path / "data" / "generated").glob("slow-*")]
    assert not (tmp_path / "home").exists()
