#!/usr/bin/env python3
"""Writes the two files of this folder that repeat what others say.

60-observability.yaml: rules and dashboards of infra/observability, as ConfigMaps. `kubectl apply -f` can
read no file that is not a manifest.

base/cloudpaxos.yaml: all manifests of this folder in one file. Overlays need a base, and kustomize takes
none that lies above it, nor single files from there.

    infra/k8s/generate.py            writes them
    infra/k8s/generate.py --check    says which are not current, and writes nothing
"""

import json
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
OBSERVABILITY = FOLDER.parent / "observability"
CONFIG = FOLDER / "60-observability.yaml"
BASE = FOLDER / "base" / "cloudpaxos.yaml"
NOTE = "# Written by infra/k8s/generate.py; changes belong into {}.\n"
# `kubectl apply` keeps a copy of each object in an annotation, and annotations may have 256 KiB.
CONFIG_MAP_BYTES_MAX = 250_000


def text(file: Path) -> str:
    """What goes into the ConfigMap: a rule as it is, a dashboard without the white space of its source."""
    if file.suffix == ".json":
        return json.dumps(json.loads(file.read_text()), separators=(",", ":"), ensure_ascii=False) + "\n"
    return file.read_text()


def config_map(name: str, files: list[Path]) -> str:
    """A ConfigMap with these files."""
    data = {file.name: text(file) for file in files}
    size = len(json.dumps(data).encode())
    if size > CONFIG_MAP_BYTES_MAX:
        sys.exit(f"generate.py: {size} bytes are too many for the ConfigMap {name}: make two of it")
    lines = [
        "apiVersion: v1",
        "kind: ConfigMap",
        "metadata:",
        f"  name: {name}",
        "  namespace: cloudpaxos",
        "  labels:",
        "    app.kubernetes.io/part-of: cloudpaxos",
        "data:" if data else "data: {}",
    ]
    for file_name, content in data.items():
        # The indicator, because a text may itself begin with spaces.
        lines.append(f"  {file_name}: |2")
        lines += [f"    {line}" if line else "" for line in content.rstrip("\n").split("\n")]
    return "\n".join(lines) + "\n"


def observability() -> str:
    """The ConfigMaps that Prometheus and Grafana mount."""
    maps = [
        config_map("prometheus-rules", sorted(OBSERVABILITY.glob("prometheus/alerts.yml"))),
        config_map("grafana-dashboards", sorted(OBSERVABILITY.glob("grafana/dashboards/*.json"))),
    ]
    return NOTE.format("infra/observability") + "---\n".join(maps)


def base(config: str) -> str:
    """All manifests, in the order in which `kubectl apply -f` takes them."""
    files = sorted(set(FOLDER.glob("*.yaml")) | {CONFIG})
    texts = [config if file == CONFIG else file.read_text() for file in files]
    return NOTE.format("infra/k8s/*.yaml") + "---\n".join(texts)


def main() -> int:
    config = observability()
    stale = 0
    for path, text in ((CONFIG, config), (BASE, base(config))):
        if path.exists() and path.read_text() == text:
            continue
        if "--check" in sys.argv[1:]:
            print(f"{path.relative_to(FOLDER.parent.parent)} is not current; run infra/k8s/generate.py", file=sys.stderr)
            stale = 1
        else:
            path.write_text(text)
    return stale


if __name__ == "__main__":
    sys.exit(main())
