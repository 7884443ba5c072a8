"""Compares two systems' throughput, round by round: compare.py RESULTS BASE OTHER."""

import json
import statistics
import sys

path, base, other = sys.argv[1:]
cells = {}
for line in open(path):
    result = json.loads(line)
    key = (result["cell"]["operation"], result["cell"]["clients"])
    cells.setdefault(key, {}).setdefault(result["system"], {})[result["round"]] = result["throughput"]
for (operation, clients), systems in cells.items():
    rounds = sorted(systems[base].keys() & systems[other].keys())
    ratios = [systems[other][number] / systems[base][number] for number in rounds]
    each = ", ".join(f"{ratio:.3f}" for ratio in ratios)
    print(
        f"{operation} with {clients} clients: {statistics.median(systems[base].values()):.0f}/s, "
        f"{other} {statistics.median(systems[other].values()):.0f}/s; ratio per round {each}; "
        f"median {statistics.median(ratios):.3f}"
    )
