"""Generated sets: rows against a plain loop, and caches that are altered, interrupted, written twice or not writable."""

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

from mimo_benchmarks.data.storage.generated import Recipe, load_or_generate
from mimo_benchmarks.errors import ConfigError, DatasetError


def thirds(chunk):
    """Return ten rows. Up to three rows in a row are equal, and there are 51 different rows."""
    numbers = range(10 * chunk, 10 * chunk + 10)
    return {"third": [str(number // 3 % 51).encode() for number in numbers], "number": [*numbers]}


def never(chunk):
    raise AssertionError("the cache was not used")


def thirds_recipe(count=30, version=1, **arguments):
    return Recipe(name="thirds", version=version, arguments={"of": 51, **arguments}, count=count)


def obtain_thirds(folder, count=30, produce=thirds, workers=1):
    features = Features({"third": Value("binary"), "number": Value("int64")})
    return load_or_generate(folder, thirds_recipe(count), produce=produce, features=features, workers=workers)


def cache_of_thirds(folder, count=30):
    return thirds_recipe(count).cache_folder(folder)


def contents(path):
    return {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("count", [1, 9, 10, 11, 30, 51])
def test_rows_are_the_first_different_ones_in_order(tmp_path, count):
    expected = {}
    for number in range(1000):
        expected.setdefault(number // 3 % 51, number)
    found = obtain_thirds(tmp_path, count)
    assert [*zip(map(int, found["third"]), found["number"], strict=True)] == [*expected.items()][:count]


def test_a_set_is_generated_once_and_then_read_from_its_cache(tmp_path):
    first = obtain_thirds(tmp_path)
    assert cache_of_thirds(tmp_path).is_dir()
    found = obtain_thirds(tmp_path, produce=never)
    assert (found[:], found.features) == (first[:], first.features)
    assert [path.name for path in (tmp_path / "generated").iterdir()] == [cache_of_thirds(tmp_path).name]
    obtain_thirds(tmp_path / "elsewhere")
    assert contents(cache_of_thirds(tmp_path / "elsewhere")) == contents(cache_of_thirds(tmp_path))


def test_another_recipe_is_another_cache():
    recipes = product(["a", "b"], [1, 2], [{"x": 1, "y": 2}, {"x": 2, "y": 1}, {"x": 1}, {}], [10, 11])
    folders = {
        Recipe(name=name, version=version, arguments=arguments, count=count).cache_folder(Path())
        for name, version, arguments, count in recipes
    }
    assert len(folders) == 2 * 2 * 4 * 2
    assert Recipe(name="a", version=1, arguments={"y": 2, "x": 1}, count=10).cache_folder(Path()) in folders


@pytest.mark.parametrize(
    ("produce", "error"),
    [(partial(truediv, 1), ZeroDivisionError), (partial(os._exit), r"a process that generates data died.*fewer workers")],
    ids=["raises", "dies"],
)
def test_a_worker_that_fails_ends_the_run(tmp_path, produce, error):
    expected, match = (DatasetError, error) if isinstance(error, str) else (error, None)
    with pytest.raises(expected, match=match):
        obtain_thirds(tmp_path, produce=produce, workers=2)
    assert not contents(tmp_path)


def altered(data, rng):
    """Flip a bit, drop or add a byte, or cut off the end."""
    at = rng.randrange(len(data))
    return rng.choice(
        [
            data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :],
            data[:at] + data[at + 1 :],
            data[:at] + bytes([rng.randrange(256)]) + data[at:],
            data[:at],
        ]
    )


@pytest.mark.parametrize("tries", [500, pytest.param(5_000, marks=pytest.mark.torture)])
def test_no_altered_cache_is_read(tmp_path, tries):
    """Alterations of its four files are all noticed."""
    rng = random.Random(0)
    obtain_thirds(tmp_path)
    path = cache_of_thirds(tmp_path)
    files = sorted(path.iterdir())
    assert len(files) == 4
    for _ in range(tries):
        file = rng.choice(files)
        intact = file.read_bytes()
        file.write_bytes(altered(intact, rng))
        with pytest.raises(
            DatasetError, match=rf"{path} was altered after it was written.*delete {path}, and it will be generated anew"
        ):
            obtain_thirds(tmp_path)
        file.write_bytes(intact)
    obtain_thirds(tmp_path, produce=never)


def test_a_cache_that_lacks_files_or_is_a_file_is_not_read(tmp_path):
    obtain_thirds(tmp_path)
    path = cache_of_thirds(tmp_path)
    for file in sorted(path.iterdir()):
        intact = file.read_bytes()
        file.unlink()
        with pytest.raises(DatasetError, match=f"{path} lacks files: delete"):
            obtain_thirds(tmp_path)
        file.write_bytes(intact)
    cache_of_thirds(tmp_path, 31).mkdir()
    cache_of_thirds(tmp_path, 32).touch()
    for count in (31, 32):
        with pytest.raises(DatasetError, match=f"{cache_of_thirds(tmp_path, count)} lacks files: delete"):
            obtain_thirds(tmp_path, count)


def test_a_set_at_the_place_of_another_is_not_read(tmp_path):
    obtain_thirds(tmp_path)
    cache_of_thirds(tmp_path).rename(cache_of_thirds(tmp_path, 31))
    with pytest.raises(DatasetError, match=r'holds another set, .*"count": 30.*: delete'):
        obtain_thirds(tmp_path, 31)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError(errno.EIO, "of its own")], ids=repr)
def test_an_interrupted_run_leaves_nothing(tmp_path, error):
    """The error that interrupted the run is not changed."""

    def interrupted(chunk):
        if chunk == 2:
            raise error
        return thirds(chunk)

    with pytest.raises(type(error) if isinstance(error, OSError) else error):
        obtain_thirds(tmp_path, produce=interrupted)
    assert not [*(tmp_path / "generated").iterdir()]
    obtain_thirds(tmp_path)


def failing_after(done, real, calls):
    """Wrap a function so that the disk is full after `calls` calls; `done` counts them."""

    def function(*args, **kwargs):
        done.append(args)
        if len(done) > calls:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **kwargs)

    return function


@pytest.mark.parametrize(("owner", "name", "calls"), [(Dataset, "save_to_disk", 1), (os, "fsync", 6), (Path, "rename", 1)])
def test_no_failing_write_leaves_a_cache_that_looks_whole(tmp_path, monkeypatch, owner, name, calls):
    """The disk is full at one of the calls that write the set: its four files, their folder and its parent are synchronised."""
    for before in range(calls):
        folder, done = tmp_path / str(before), []
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, failing_after(done, getattr(owner, name), before))
            with pytest.raises(
                DatasetError, match=rf"{cache_of_thirds(folder)} cannot be read or written \(No space left .*free some space"
            ):
                obtain_thirds(folder)
        assert len(done) == before + 1
        moved = name == "fsync" and before == 5  # the last call comes after the rename, so the cache is complete
        assert cache_of_thirds(folder).exists() == moved
        obtain_thirds(folder)


def test_a_full_disk_is_named(tmp_path):
    """A limit of 1000 bytes per file acts on a write like a full disk; the data has more."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(DatasetError, match=r"cannot be read or written .*free some space"):
            obtain_thirds(tmp_path, 51)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not contents(tmp_path)
    obtain_thirds(tmp_path, 51)


def test_a_file_in_place_of_the_folder_is_named_before_any_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match=r"cannot be read or written \(Not a directory\)"):
        obtain_thirds(tmp_path / "file", produce=never)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_rights_is_named_before_any_work(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(DatasetError, match=r"cannot be read or written \(Permission denied\)"):
        obtain_thirds(tmp_path, produce=never)
    tmp_path.chmod(0o700)


def test_two_runs_at_once_both_succeed(tmp_path):
    """Another run generates the same set while this one does."""

    def raced(chunk):
        obtain_thirds(tmp_path)
        return thirds(chunk)

    assert obtain_thirds(tmp_path, produce=raced)[:] == obtain_thirds(tmp_path, produce=never)[:]
    assert [path.name for path in (tmp_path / "generated").iterdir()] == [cache_of_thirds(tmp_path).name]


def test_too_few_different_rows_end_the_search(tmp_path):
    with pytest.raises(
        DatasetError, match=r"thirds: only 51 of 52 different rows were found.*ask for fewer, or change the arguments"
    ):
        obtain_thirds(tmp_path, 52)
    with pytest.raises(DatasetError, match="thirds: only 0 of 52 different"):
        obtain_thirds(tmp_path, 52, produce=lambda chunk: {"third": [], "number": []})


@pytest.mark.parametrize("changed", [{"count": 0}, {"count": -1}, {"workers": 0}], ids=str)
def test_arguments_out_of_range_are_refused(tmp_path, changed):
    ((name, value),) = changed.items()
    with pytest.raises(ConfigError, match=f"{name} is {value}; it must be at least 1"):
        obtain_thirds(tmp_path, **changed)


@pytest.mark.parametrize("shown", [True, False])
def test_progress_bars_of_datasets_stay_hidden_and_their_setting_is_kept(tmp_path, capfd, shown):
    (datasets.enable_progress_bars if shown else datasets.disable_progress_bars)()
    try:
        obtain_thirds(tmp_path)
        assert datasets.are_progress_bars_disabled() is not shown
    finally:
        datasets.enable_progress_bars()
    printed = capfd.readouterr()
    assert printed.out == ""
    assert [line.split()[0] for line in printed.err.splitlines()] == ["generating", "saving", "checking"]  # our own


SLOW = """
import sys, time
from pathlib import Path

def slow(chunk):
    if chunk % 4 == 0:
        time.sleep(1)  # meanwhile the other worker produces the chunks ahead and then waits
    else:
        print(chunk, flush=True)
    return {"row": [b"%d" % chunk]}

if __name__ == "__main__":
    import signal  # the workers need none of these imports, and start faster without them

    signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in the background of a shell
    if sys.argv[2] == "workers alone":
        from mimo_benchmarks.data.storage.workers import produce_in_order

        for _ in produce_in_order(slow, 2):
            pass
    from datasets import Features, Value
    from mimo_benchmarks.data.storage.generated import Recipe, load_or_generate

    recipe, features = Recipe(name="slow", version=1, arguments={}, count=10_000), Features({"row": Value("binary")})
    load_or_generate(Path(sys.argv[1]), recipe, produce=slow, features=features, workers=2)
"""


@pytest.mark.once
@pytest.mark.parametrize(
    ("how", "what"), [(signal.SIGINT, "the whole set"), (signal.SIGKILL, "workers alone")], ids=["interrupted", "killed"]
)
def test_workers_end_with_their_parent(tmp_path, how, what):
    """Ctrl-C reaches all processes, a kill only the parent. The output ends when the last process that writes to it ends."""
    (tmp_path / "slow.py").write_text(SLOW)
    environment = {**os.environ, "HOME": str(tmp_path / "home"), "HF_HOME": str(tmp_path / "home")}
    with subprocess.Popen(
        [sys.executable, "slow.py", "data", what],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    ) as run:
        try:
            if what == "the whole set":
                assert run.stdout.readline().startswith("generating slow: 0 of 10000 rows")
            assert sorted(run.stdout.readline() for _ in range(3)) == ["1\n", "2\n", "3\n"]
            os.killpg(run.pid, how) if how == signal.SIGINT else run.kill()
            output, _ = run.communicate(timeout=600)
        except BaseException:
            os.killpg(run.pid, signal.SIGKILL)
            raise
    assert run.returncode == -how
    assert output.count("Traceback") == (how == signal.SIGINT)  # only the parent's
    assert not [*(tmp_path / "data" / "generated").glob("slow-*")]
    assert not (tmp_path / "home").exists()
