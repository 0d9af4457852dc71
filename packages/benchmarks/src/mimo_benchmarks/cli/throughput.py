"""`mimonets throughput`: measure how fast the network of a preset is on this device, and how many times faster than before."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import count
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
from mimo_benchmarks.run_directory import flatten_settings, settings_as_json
from mimo_benchmarks.settings import require
from vsa_core.hub.markdown import markdown_table

Settings = dict[str, Any]
"""Preset, network and the like; two files can be compared if all of these are the same."""
EarlierMedians = dict[int, dict[str, float]]
"""Median seconds of "latency" and "batch" for each n of an earlier file."""


def execute_throughput(arguments: Sequence[str]) -> None:
    """Run `throughput` with these arguments.

    Raises:
        ConfigError: a value that cannot work, or files that cannot be compared, read or written.
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
    device: Literal["cpu", "cuda"] | None = None,
    threads: int | None = None,
    compare: Path | None = None,
    out: Path | None = None,
) -> None:
    """Measure how fast a preset's network is, untrained and on random inputs: print a table and write a JSON file.

    Args:
        preset: the preset whose network is measured.
        n: inputs per pass, or the side of a MIMOFormer's grid; the preset's unless given. A plain network has 1 only.
        passes: passes in the batch that throughput is measured with; latency is that of one pass.
        rounds: calls that are timed for each number of the table, after some to warm up; it shows their median and quartiles.
        precision: precision of the passes, by autocast; fp16 needs a GPU.
        compile: compile the network with torch.compile.
        device: where to run; a GPU if there is one, unless given.
        threads: CPU threads; unless given, OMP_NUM_THREADS, else all cores but one.
        compare: an earlier file of this command; adds how many times faster each n is now.
        out: file to write, which must not exist yet; runs/throughput-PRESET-001.json, -002, .. unless given.
    """
    config = find_preset(preset)
    known = describe(config.model)
    if n:
        config = replace(config, n=n, n_odds=(1,) * len(n), curriculum=(), curriculum_share=0)  # the dataclass checks n
        require(not known.plain or n == (1,), f"n = {n}, but the network of {preset} takes its inputs one by one")
    for name, value in (("passes", passes), ("rounds", rounds)):
        require(1 <= value < 2**31, f"{name} must be from 1 to 2^31 - 1, got {value}")
    place = prepare_device(device, threads, precision)
    where = environment(place)
    settings = {
        "preset": preset,
        "network": settings_as_json(config)["model"],
        "passes": passes,
        "precision": precision,
        "device": where["device"],
    }
    before = read_earlier(compare, settings) if compare else {}
    path = new_file(out, preset)
    module = build(config.model).to(place).eval()
    peak = device_peak(place, DTYPES[precision])
    try:
        found_n = known.evaluated_n(config.n)
        options: dict[str, Any] = {"peak": peak, "rounds": rounds, "precision": precision, "compiled": compile}
        with progress_bar(preset, len(found_n) * 2 * len(known.layouts) * rounds, unit=" calls") as bar:
            rows = [measure(known, module, each, passes, **options, after_call=bar.update) for each in found_n]
    except ValueError as error:  # DataMUX accepts its own n only
        raise ConfigError(str(error)) from error
    print(f"{known.config.label} on {settings['device']}\n\n{measurement_table(rows, passes, before)}")
    content = {**settings, "compile": compile, "rounds": rounds, "peak": peak, "rows": [asdict(row) for row in rows]}
    try:
        with path.open("x") as file:
            file.write(json.dumps({**content, "environment": where}, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error}): choose another --out") from error
    print(path)


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
    return place


def new_file(given: Path | None, preset: str) -> Path:
    """Return the file to write: the given one, else the first of runs/throughput-PRESET-001.json, -002, .. that does not exist.

    Raises:
        ConfigError: it exists already, or its folder cannot be made.
    """
    names = (Path("runs") / f"throughput-{preset}-{number:03}.json" for number in count(1))
    path = given or next(name for name in names if not name.exists())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        require(not path.exists(), f"{path} exists already, and is never overwritten: choose another --out")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error}): choose another --out") from error
    return path


def read_earlier(path: Path, settings: Settings) -> EarlierMedians:
    """Read what an earlier file measured.

    Raises:
        ConfigError: it is not such a file, or was measured with other settings; the message names both values.
    """
    try:
        content = json.loads(path.read_text())
        old, new = (
            flatten_settings({name: content[name] for name in settings} | {"network": dict(content["network"])}),
            flatten_settings(settings),
        )
        rows = {int(row["n"]): {name: float(row[name]["median"]) for name in ("latency", "batch")} for row in content["rows"]}
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is not a file of `mimonets throughput` ({error}): name one that it wrote") from error
    for name in [*new, *old]:
        there, here = old.get(name), new.get(name)
        require(there == here, f"{path} cannot be compared: its {name} is {there}, and here it is {here}")
    return rows


def measurement_table(rows: list[Measurement], passes: int, before: EarlierMedians) -> str:
    """Write a Markdown table with a line for each n, and with the ratios old / new of the medians where there are old ones."""
    timed = ["one pass, ms (quartiles)", f"{passes} passes, ms (quartiles)", "inputs/s (quartiles)"]
    columns = ["n", *timed, "of peak", "memory, MB"]
    columns += ["one pass, old/new", f"{passes} passes, old/new"] * bool(before)
    lines = []
    for row in rows:
        memory = "-" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:,.0f}"
        line = [
            str(row.n),
            in_milliseconds(row.latency),
            in_milliseconds(row.batch),
            f"{row.inputs_per_second:,.0f} ({' to '.join(f'{rate:,.0f}' for rate in row.inputs_per_second_quartiles)})",
            f"{row.share:.1%}",
            memory,
        ]
        old = before.get(row.n)
        ratios = [f"{old['latency'] / row.latency.median:.2f}x", f"{old['batch'] / row.batch.median:.2f}x"] if old else ["-", "-"]
        lines.append(line + ratios * bool(before))
    return markdown_table(columns, lines)


def in_milliseconds(timing: Timing) -> str:
    """Write the median in milliseconds, and the two quartiles."""
    return f"{1e3 * timing.median:.3g} ({1e3 * timing.low:.3g} to {1e3 * timing.high:.3g})"
