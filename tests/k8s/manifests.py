"""The manifests as data: read from their files, or rendered by kustomize."""

import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "infra" / "k8s"
OVERLAYS = sorted(path.parent for path in FOLDER.glob("overlays/*/kustomization.yaml"))


def top_level() -> list[dict]:
    """What `kubectl apply -f infra/k8s/` applies, in its order."""
    files = sorted(path for path in FOLDER.iterdir() if path.suffix in (".yaml", ".yml", ".json"))
    return [document for file in files for document in yaml.safe_load_all(file.read_text())]


def rendered(directory: Path) -> list[dict]:
    """What `kubectl apply -k DIRECTORY` applies."""
    output = subprocess.run(["kubectl", "kustomize", str(directory)], check=True, capture_output=True, text=True)
    return list(yaml.safe_load_all(output.stdout))


def pod_template(document: dict) -> dict | None:
    """The pod that a workload makes, as metadata and spec."""
    if document["kind"] == "CronJob":
        return document["spec"]["jobTemplate"]["spec"]["template"]
    return document["spec"].get("template") if document["kind"] in ("Deployment", "StatefulSet", "Job") else None


def containers(pod_spec: dict) -> list[dict]:
    """All containers of a pod, those that run first included."""
    return pod_spec.get("initContainers", []) + pod_spec["containers"]


class Objects:
    """Documents, found by kind and name."""

    def __init__(self, documents: list[dict]):
        self.all = documents
        self.by_name = {(document["kind"], document["metadata"]["name"]): document for document in documents}

    def kind(self, kind: str) -> list[dict]:
        return [document for document in self.all if document["kind"] == kind]

    def get(self, kind: str, name: str) -> dict:
        return self.by_name[kind, name]

    def bootstrap_secrets(self) -> dict[str, set[str]]:
        """The secrets that the bootstrap Job makes, with their keys; read off its arguments."""
        spec = pod_template(self.get("Job", "bootstrap"))["spec"]
        arguments = spec["initContainers"][0]["args"]
        values = lambda flag: [value for word, value in zip(arguments, arguments[1:]) if word == flag]
        files = {"tls.crt", "tls.key", "ca.crt"}
        secrets = {"cloudpaxos-tokens": {"tokens"}, "cloudpaxos-authority": set()}
        for node in values("--node"):
            name = node.split("=")[0]
            secrets |= {f"cloudpaxos-{name}-client": files, f"cloudpaxos-{name}-peer": files}
        return secrets | {f"cloudpaxos-{client}": files for client in values("--client")}
