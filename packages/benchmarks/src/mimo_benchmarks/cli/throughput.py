"""`mimonets throughput`: measure how fast the network of a preset is on this device, and how many times faster than before."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from itertools import count
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from mimo_benchmarks.data.storage.files import cores
from mimo_benchmarks.environment import environment
from mimo_benchmarks.errors import ConfigError
from mimo_benchmarks.evaluation.rates import DTYPES, Measurement, Timing, device_peak, measure
from mimo_benchmarks.networks.registry import build, describe
from mimo_benchmarks.presets.find import find_preset
from mimo_benchmarks.progress import progress_bar
from mimo_benchmarks.result import positive, whole
from mimo_benchmarks.run_directory import flatten_settings, parse_json, read_text, settings_as_json
from mimo_benchmarks.settings import require
from vsa_core import graphs
from vsa_core.hub.markdown import markdown_table

Settings = dict[str, Any]
"""Preset, network and the like; two files can be compared if all of these are the same."""
EarlierMedians = dict[int, dict[str, float]]
"""Median seconds of "latency" and "batch" for each n of an earlier file."""
TOLERANCE = 0.1
"""How much slower than an earlier file a median may be, as a share of the earlier one, unless the command line says otherwise."""


def execute_throughput(arguments: Sequence[str]) -> None:
    """Run `throughput` with these arguments.

    Raises:
        ConfigError: a value that cannot work, files that cannot be compared, read or written, or a network that is slower now.
        SystemExit: a flag that tyro refuses (code 2), or --help (code 0).
    """
    tyro.cli(throughput, args=arguments, prog="mimonets throughput")


def throughput(
    preset: Annotated[str, tyro.conf.Positional],
    *,
    n: tuple[int, ...] = (),
    passes: int = 64,
    rounds: int = 30,
    precision: Literal["no", "bf16", "fp16"] = "no",
    compile: bool = False,
    cuda_graphs: bool = True,
    device: Literal["cpu", "cuda"] | None = None,
    threads: int | None = None,
    compare: Path | None = None,
    tolerance: float = TOLERANCE,
    out: Path | None = None,
) -> None:
    """Measure how fast a preset's network is, untrained and on random inputs: print a table and write a JSON file.

    What is timed is `predict`, as a user calls it. If it is slower than in an earlier file, the program ends with exit code 2.

    Args:
        preset: the preset whose network is measured.
        n: inputs per pass, or the side of a MIMOFormer's grid; the preset's unless given. A plain network has 1 only.
        passes: passes in the batch that throughput is measured with; latency is that of one pass.
        rounds: calls that are timed for each number of the table, after some to warm up; it shows their median and quartiles.
        precision: precision of the passes, by autocast; fp16 needs a GPU.
        compile: compile the network with torch.compile.
        cuda_graphs: on a GPU, replay batches as CUDA graphs, as `predict` does; without, Python starts each kernel.
        device: where to run; a GPU if there is one, unless given.
        threads: CPU threads; unless given, OMP_NUM_THREADS, else all cores but one.
        compare: an earlier file of this command; adds how many times faster each n is now, and fails if one is slower.
        tolerance: share of its earlier time by which the median of an n may be slower before that fails; faster never fails.
        out: file to write, which must not exist yet; runs/throughput-PRESET-001.json, -002, .. unless given.
    """
    config = find_preset(preset)
    known = describe(config.model)
    if n:
        config = replace(config, n=n, n_odds=(1,) * len(n), curriculum=(), curriculum_share=0)  # the dataclass checks n
        require(not known.plain or n == (1,), f"n = {n}, but the network of {preset} takes its inputs one by one")
    for name, value in (("passes", passes), ("rounds", rounds)):
        require(1 <= value < 2**31, f"{name} must be from 1 to 2^31 - 1, got {value}")
    require(0 <= tolerance < inf, f"tolerance must be finite and not negative, got {tolerance}")
    place = prepare_device(device, threads, precision)
    where = environment(place)
    settings = {
        "preset": preset,
        "network": settings_as_json(config)["model"],
        "passes": passes,
        "precision": precision,
        "device": where["device"],
    }
    found_n = known.evaluated_n(config.n)
    before = read_earlier(compare, settings, found_n) if compare else {}
    path = new_file(out, preset)
    module = build(config.model).to(place).eval()
    peak = device_peak(place, DTYPES[precision])
    try:
        options: dict[str, Any] = {"peak": peak, "rounds": rounds, "precision": precision, "compiled": compile}
        launching = nullcontext() if cuda_graphs else graphs.disabled()
        with launching, progress_bar(preset, len(found_n) * 2 * rounds, unit=" calls") as bar:
            rows = [measure(known, module, each, passes, **options, after_call=bar.update) for each in found_n]
    except ValueError as error:  # DataMUX accepts its own n only
        raise ConfigError(str(error)) from error
    print(f"{known.config.label} on {settings['device']}\n\n{measurement_table(rows, passes, before)}")
    content = {
        **settings,
        "compile": compile,
        "cuda_graphs": cuda_graphs,
        "rounds": rounds,
        "peak": peak,
        "rows": [asdict(row) for row in rows],
    }
    try:
        with path.open("x") as file:
            file.write(json.dumps({**content, "environment": where}, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error}): choose another --out") from error
    print(path)
    slower = list(slower_medians(rows, passes, before, tolerance))
    require(not slower, f"slower than in {compare} by more than {tolerance:.0%}: {'; '.join(slower)}")


def slower_medians(rows: list[Measurement], passes: int, before: EarlierMedians, tolerance: float) -> Iterator[str]:
    """Say which medians are above the earlier ones by more than the tolerance, with both."""
    for row in rows:
        for name, what in (("latency", "one pass"), ("batch", f"{passes} passes")):
            now, earlier = getattr(row, name).median, before.get(row.n, {}).get(name, inf)
            if now > (1 + tolerance) * earlier:
                yield f"n = {row.n}, {what}: {1e3 * now:.3g} ms, and {1e3 * earlier:.3g} ms there"


def prepare_device(device: str | None, threads: int | None, precision: str) -> torch.device:
    """Set the number of CPU threads and return the device; ConfigError if this machine has no such device or threads."""
    gpu = torch.cuda.is_available()
    require(device != "cuda" or gpu, "device = cuda, but torch finds no GPU: choose --device cpu")
    place = torch.device(device or ("cuda" if gpu else "cpu"))
    require(precision != "fp16" or place.type == "cuda", "precision = fp16 is for GPUs: choose bf16 or no")
    if threads is not None:
        available = cores()
        require(1 <= threads <= available, f"threads = {threads}, but this process may use 1 to {available}")
        torch.set_num_threads(threads)
    if place.type == "cuda":
        torch.backends.cudnn.benchmark = True  # as in training: shapes are few, so trying all algorithms once pays
    return place


def new_file(given: Path | None, preset: str) -> Path:
    """Return the file to write: the given one, else the first of runs/throughput-PRESET-001.json, -002, .. that does not exist.

    Raises:
        ConfigError: it exists already, or its folder cannot be made.
    """
    names = (Path("runs") / f"throughput-{preset}-{number:03}.json" for number in count(1))
    path = given or next(name for name in names if not os.path.lexists(name))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        require(not os.path.lexists(path), f"{path} exists already, and is never overwritten: choose another --out")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error}): choose another --out") from error
    return path


def read_earlier(path: Path, settings: Settings, wanted: Sequence[int]) -> EarlierMedians:
    """Read what an earlier file measured.

    Raises:
        ConfigError: it is not such a file, has none of the n that are wanted, or was measured with other settings; the message
            names both values.
    """
    try:
        content = parse_json(read_text(path))
        old, new = (
            flatten_settings({name: content[name] for name in settings} | {"network": dict(content["network"])}),
            flatten_settings(settings),
        )
        rows = {
            whole(row["n"]): {name: positive(row[name]["median"]) for name in ("latency", "batch")} for row in content["rows"]
        }
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is not a file of `mimonets throughput` ({error}): name one that it wrote") from error
    for name in [*new, *old]:
        there, here = old.get(name), new.get(name)
        require(there == here, f"{path} cannot be compared: its {name} is {there}, and here it is {here}")
    require(bool(rows.keys() & wanted), f"{path} cannot be compared: its n are {list(rows)}, and here they are {list(wanted)}")
    return rows


def measurement_table(rows: list[Measurement], passes: int, before: EarlierMedians) -> str:
    """Write a Markdown table with a line for each n, and with the ratios old / new of the medians where there are old ones."""
    timed = [(f"{what}, ms (quartiles)", "kernels, ms", "memory, MB") for what in ("one pass", f"{passes} passes")]
    columns = ["n", *timed[0], *timed[1], "inputs/s (quartiles)", "of peak"]
    columns += ["one pass, old/new", f"{passes} passes, old/new"] * bool(before)
    lines = []
    for row in rows:
        line = [
            str(row.n),
            *timing_cells(row.latency),
            *timing_cells(row.batch),
            f"{row.inputs_per_second:,.0f} ({' to '.join(f'{rate:,.0f}' for rate in row.inputs_per_second_quartiles)})",
            f"{row.share:.1%}",
        ]
        old = before.get(row.n)
        ratios = [f"{old['latency'] / row.latency.median:.2f}x", f"{old['batch'] / row.batch.median:.2f}x"] if old else ["-", "-"]
        lines.append(line + ratios * bool(before))
    return markdown_table(columns, lines)


def timing_cells(timing: Timing) -> tuple[str, str, str]:
    """Write the median in milliseconds with the two quartiles, the time of the kernels, and the peak of the memory."""
    times = f"{1e3 * timing.median:.3g} ({1e3 * timing.low:.3g} to {1e3 * timing.high:.3g})"
    kernels = "-" if timing.kernels is None else f"{1e3 * timing.kernels:.3g}"
    return times, kernels, "-" if timing.peak_bytes is None else f"{timing.peak_bytes / 1e6:,.0f}"
