"""Hold a quickstart run against what the README promises, one seed with 1.5 points of margin; and its files against the docs."""

import json
import sys
from pathlib import Path

PROMISED = {1: 0.97, 2: 0.965, 4: 0.955}
MARGIN = 0.015
SPEEDUP = 2.5
CONTROLS = ("equal_cost_n1", "equal_cost_n4", "thin")
OF_A_RUN = {"config.json", "environment.json", "metrics.jsonl", "result.json"}
FILES = OF_A_RUN | {"report.md", "report.html", "accuracy_throughput.png", "learning_curves.png", "crosstalk.png"}
FILES |= {f"{control}/{name}" for control in CONTROLS for name in OF_A_RUN}

run = Path(sys.argv[1])
failures = [f"missing file: {name}" for name in FILES if not (run / name).is_file() or not (run / name).stat().st_size]
result = json.loads((run / "result.json").read_text())
superposed = {row["n"]: row for row in result["rows"]}
for n, promised in PROMISED.items():
    accuracy = superposed[n]["accuracy"]
    print(f"n={n}: {accuracy:.2%}, promised {promised:.1%} as a mean of three seeds")
    if not accuracy >= promised - MARGIN:
        failures.append(f"n={n}: {accuracy:.2%} is below {promised - MARGIN:.1%}")
for control in CONTROLS:
    (row,) = json.loads((run / control / "result.json").read_text())["rows"]
    print(f"{control}: {row['accuracy']:.2%}, {row['macs'] / 1e6:.3f} M multiply-adds")
    if not row["accuracy"] >= PROMISED[1]:
        failures.append(f"{control}: {row['accuracy']:.2%} is below {PROMISED[1]:.1%}")
    if control != "thin" and not abs(row["macs"] / superposed[int(control[-1])]["macs"] - 1) < 0.1:
        failures.append(f"{control}: it does not cost as much")
speedup = superposed[4]["inputs_per_second"] / superposed[1]["inputs_per_second"]
print(f"n=4: {speedup:.2f}x the inputs/s of n=1, promised {SPEEDUP}x; {result['wall_seconds']:.0f} s, imports aside")
if not speedup >= SPEEDUP:
    failures.append(f"n=4: {speedup:.2f}x is below {SPEEDUP}x")
sys.exit("\n".join(failures) or 0)
