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
superposed = {row["n"]: row for row in rows if row["superposed"]}
controls = {row["model"]: row for row in rows if not row["superposed"]}
for n, promised in PROMISED.items():
    accuracy = superposed[n]["accuracy"]
    print(f"n={n}: {accuracy:.2%}, promised {promised:.1%} as a mean of three seeds")
    if not accuracy >= promised - MARGIN:
        failures.append(f"n={n}: {accuracy:.2%} is below {promised - MARGIN:.1%}")
for n in (1, 4):
    row = controls.pop(f"plain CNN, cost of n={n}")
    print(f"{row['model']}: {row['accuracy']:.2%}, {row['macs'] / superposed[n]['macs']:.2f} of its multiply-adds")
    if not row["accuracy"] >= PROMISED[1]:
        failures.append(f"{row['model']}: {row['accuracy']:.2%} is below {PROMISED[1]:.1%}")
    if not abs(row["macs"] / superposed[n]["macs"] - 1) < 0.1:
        failures.append(f"{row['model']}: it does not cost as much")
if set(superposed) != set(PROMISED) or controls:
    failures.append(f"other rows than expected: {[(row['model'], row['n']) for row in rows]}")
speedup = superposed[4]["speedup"]
print(f"n=4: {speedup:.2f}x the images/s of n=1, promised {SPEEDUP}x; {result['wall_seconds']:.0f} s, imports aside")
if not speedup >= SPEEDUP:
    failures.append(f"n=4: {speedup:.2f}x is below {SPEEDUP}x")
sys.exit("\n".join(failures) or 0)
