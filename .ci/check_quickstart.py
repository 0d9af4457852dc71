"""Hold a quickstart run against what the README promises, one seed with 1.5 points of margin; and its files against the docs."""

import json
import sys
from pathlib import Path

PROMISED = {1: 0.97, 2: 0.965, 4: 0.955}
MARGIN = 0.015
SPEEDUP = 2.5
FILES = {
    "config.json",
    "environment.json",
    "metrics.jsonl",
    "result.json",
    "report.html",
    "accuracy_throughput.png",
    "crosstalk.png",
}

run = Path(sys.argv[1])
result = json.loads((run / "result.json").read_text())
rows = result["rows"]
failures = [f"missing file: {name}" for name in FILES if not (run / name).stat().st_size]
reached = {row["n"]: row["accuracy"] for row in rows if row["superposed"]}
for n, promised in PROMISED.items():
    print(f"n={n}: {reached[n]:.2%}, promised {promised:.1%} as a mean of three seeds")
    if reached[n] < promised - MARGIN:
        failures.append(f"n={n}: {reached[n]:.2%} is below {promised - MARGIN:.1%}")
if len(rows) != len(PROMISED) + 2:
    failures.append(f"{len(rows)} rows: a control is missing")
speedup = next(row["speedup"] for row in rows if row["superposed"] and row["n"] == 4)
print(f"n=4: {speedup:.2f}x the images/s of n=1, promised {SPEEDUP}x; {result['wall_seconds']:.0f} s from start to table")
if speedup < SPEEDUP:
    failures.append(f"n=4: {speedup:.2f}x is below {SPEEDUP}x")
sys.exit("\n".join(failures) or 0)
