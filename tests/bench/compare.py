"""Compares two systems, round by round: compare.py RESULTS BASE OTHER.

Throughput moves with the machine's mood. What the servers' CPU costs is compared with what the load
generator's costs in the same seconds: both slow down together, so their quotient shows what is the servers'.
"""

import json
import statistics
import sys

path, base, other = sys.argv[1:]
cells = {}
for line in open(path):
    result = json.loads(line)
    key = (result["cell"]["operation"], result["cell"]["clients"])
    cells.setdefault(key, {}).setdefault(result["system"], {})[result["round"]] = result


def compared(title, systems, value):
    rounds = sorted(systems[base].keys() & systems[other].keys())
    ratios = sorted(value(systems[other][number]) / value(systems[base][number]) for number in rounds)
    middle = statistics.median(ratios)
    print(f"  {title}: median ratio {middle:.3f} over {len(rounds)} rounds ({ratios[0]:.3f} to {ratios[-1]:.3f})")


for (operation, clients), systems in cells.items():
    print(f"{operation} with {clients} clients, {other} to {base}:")
    compared("throughput", systems, lambda result: result["throughput"])
    compared("servers' CPU by the load's", systems, lambda result: result["server_cpu_micros"] / result["client_cpu_micros"])
