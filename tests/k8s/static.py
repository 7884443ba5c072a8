"""What can be judged of the manifests without running them: kubectl's schemas, the restricted pod security
standard, and that everything that is referred to exists.

Each judgement is a function that yields complaints. All are collected, so that one run tells all.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator

import kubernetes_validate
import yaml

from manifests import FOLDER, OVERLAYS, ROOT, Objects, containers, pod_template, rendered, top_level

# The oldest version that is meant to work (the first with `preStop.sleep` on by default) and the newest
# that the validator knows.
VERSIONS = ["1.30", kubernetes_validate.latest_version()]
NAMESPACE = "cloudpaxos"
CLUSTER_WIDE = {"Namespace", "PriorityClass"}
# Of a plain cluster. Anything else needs a definition that it may not have.
BUILT_IN = {
    "v1": {"Namespace", "ServiceAccount", "ConfigMap", "PersistentVolumeClaim", "Service"},
    "apps/v1": {"Deployment", "StatefulSet"},
    "autoscaling/v2": {"HorizontalPodAutoscaler"},
    "batch/v1": {"CronJob", "Job"},
    "networking.k8s.io/v1": {"NetworkPolicy"},
    "policy/v1": {"PodDisruptionBudget"},
    "rbac.authorization.k8s.io/v1": {"Role", "RoleBinding"},
    "scheduling.k8s.io/v1": {"PriorityClass"},
}
RESTRICTED_VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret", "csi", "downwardAPI"}


def title(document: dict) -> str:
    return f"{document['kind']} {document['metadata']['name']}"


def schemas(objects: Objects) -> Iterator[str]:
    for document in objects.all:
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                yield f"{title(document)}: Kubernetes {version}: {'.'.join(map(str, error.path))}: {error.message}"


def kinds_and_namespaces(objects: Objects) -> Iterator[str]:
    for document in objects.all:
        if document["kind"] not in BUILT_IN.get(document["apiVersion"], set()):
            yield f"{title(document)}: {document['apiVersion']} is not a built-in kind that is used here"
        expected = None if document["kind"] in CLUSTER_WIDE else NAMESPACE
        if document["metadata"].get("namespace") != expected:
            yield f"{title(document)}: its namespace is not {expected}"
    names = [(document["kind"], document["metadata"]["name"]) for document in objects.all]
    for twice in {name for name in names if names.count(name) > 1}:
        yield f"{' '.join(twice)} is there twice"


def order(objects: Objects) -> Iterator[str]:
    """What others need comes first: `kubectl apply` goes through the list once."""
    position = {id(document): index for index, document in enumerate(objects.all)}
    first = lambda kind: min(position[id(document)] for document in objects.kind(kind))
    if first("Namespace") != 0:
        yield "the namespace is not the first object"
    for workload in filter(pod_template, objects.all):
        account = ("ServiceAccount", pod_template(workload)["spec"]["serviceAccountName"])
        if account in objects.by_name and position[id(objects.by_name[account])] > position[id(workload)]:
            yield f"{title(workload)}: comes before its ServiceAccount"
        # A pod that starts before its policies is for a moment under none.
        if max(position[id(policy)] for policy in objects.kind("NetworkPolicy")) > position[id(workload)]:
            yield f"{title(workload)}: comes before a NetworkPolicy"


def restricted(objects: Objects) -> Iterator[str]:
    """The pod security standard that the namespace demands, and a little more."""
    labels = objects.get("Namespace", NAMESPACE)["metadata"]["labels"]
    if labels.get("pod-security.kubernetes.io/enforce") != "restricted":
        yield "the namespace does not enforce the restricted pod security standard"
    for workload in filter(pod_template, objects.all):
        spec, where = pod_template(workload)["spec"], title(workload)
        context = spec["securityContext"]
        if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
            yield f"{where}: may run as root"
        if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{where}: has not the runtime's seccomp profile"
        # Secrets are readable for their group alone, and volumes writable.
        if not context.get("fsGroup") == context.get("runAsGroup") == context.get("runAsUser"):
            yield f"{where}: user, group and fsGroup differ"
        if any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
            yield f"{where}: uses the host's namespaces"
        for volume in spec.get("volumes", []):
            if not set(volume) - {"name"} <= RESTRICTED_VOLUMES:
                yield f"{where}: the volume {volume['name']} is of a forbidden kind"
            if "secret" in volume and volume["secret"].get("defaultMode") != 0o440:
                yield f"{where}: the secret {volume['name']} is readable for others than user and group"
        for container in containers(spec):
            where = f"{title(workload)}, {container['name']}"
            if container.get("securityContext") != {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }:
                yield f"{where}: is not confined as all are"
            resources = container.get("resources", {})
            if not {"cpu", "memory"} <= set(resources.get("requests", {})) or "memory" not in resources.get("limits", {}):
                yield f"{where}: requests no CPU or memory, or has no limit of memory"
            if any("hostPort" in port for port in container.get("ports", [])):
                yield f"{where}: takes a port of its host"
            if not re.fullmatch(r"\S+:v?\d+\.\d+\.\d+", container["image"]):
                yield f"{where}: the image {container['image']} is not of one fixed version"


def references(objects: Objects) -> Iterator[str]:
    secrets = objects.bootstrap_secrets()
    config_maps = {document["metadata"]["name"]: document["data"] for document in objects.kind("ConfigMap")}
    accounts = {document["metadata"]["name"] for document in objects.kind("ServiceAccount")}
    for workload in filter(pod_template, objects.all):
        spec, where = pod_template(workload)["spec"], title(workload)
        if spec["serviceAccountName"] not in accounts:
            yield f"{where}: there is no ServiceAccount {spec['serviceAccountName']}"
        if priority := spec.get("priorityClassName"):
            if ("PriorityClass", priority) not in objects.by_name:
                yield f"{where}: there is no PriorityClass {priority}"
        volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
        for volume in volumes.values():
            if "secret" in volume and volume["secret"]["secretName"] not in secrets:
                yield f"{where}: nothing makes the secret {volume['secret']['secretName']}"
            if "secret" in volume and volume["secret"]["secretName"] == "cloudpaxos-authority":
                yield f"{where}: no pod may have the authorities' keys"
            if "configMap" in volume and volume["configMap"]["name"] not in config_maps:
                yield f"{where}: there is no ConfigMap {volume['configMap']['name']}"
        claims = {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])}
        for container in containers(spec):
            where = f"{title(workload)}, {container['name']}"
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes.keys() | claims:
                    yield f"{where}: there is no volume {mount['name']}"
                    continue
                source = volumes.get(mount["name"], {}).get("configMap")
                if source and "subPath" in mount and mount["subPath"] not in config_maps[source["name"]]:
                    yield f"{where}: the ConfigMap {source['name']} has no {mount['subPath']}"
            for source in container.get("envFrom", []):
                if source["configMapRef"]["name"] not in config_maps:
                    yield f"{where}: there is no ConfigMap {source['configMapRef']['name']}"
            for variable in container.get("env", []):
                reference = variable.get("valueFrom", {})
                if key := reference.get("configMapKeyRef"):
                    if key["key"] not in config_maps.get(key["name"], {}):
                        yield f"{where}: there is no {key['key']} in a ConfigMap {key['name']}"
                if key := reference.get("secretKeyRef"):
                    if key["key"] not in secrets.get(key["name"], set()):
                        yield f"{where}: there is no {key['key']} in a secret {key['name']}"
            # Kubernetes leaves a reference as it is where there is no such variable.
            known = {variable["name"] for variable in container.get("env", [])}
            used = re.findall(r"\$\((\w+)\)", " ".join(container.get("command", []) + container.get("args", [])))
            for name in set(used) - known:
                yield f"{where}: its arguments use ${name}, which `env` does not define"
    for binding in objects.kind("RoleBinding"):
        if ("Role", binding["roleRef"]["name"]) not in objects.by_name:
            yield f"{title(binding)}: there is no Role {binding['roleRef']['name']}"
        for subject in binding["subjects"]:
            if subject["name"] not in accounts or subject["namespace"] != NAMESPACE:
                yield f"{title(binding)}: there is no ServiceAccount {subject['name']}"
    for scaler in objects.kind("HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        workload = objects.by_name.get((target["kind"], target["name"]))
        if workload is None:
            yield f"{title(scaler)}: there is no {target['kind']} {target['name']}"
        elif "replicas" in workload["spec"]:
            yield f"{title(workload)}: says how many replicas, which is its autoscaler's to say"


def matches(selector: dict, labels: dict) -> bool:
    """Whether a label selector selects these labels."""
    expressions = selector.get("matchExpressions", [])
    assert all(expression["operator"] == "In" for expression in expressions), "no other operator is used here"
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(expression["key"]) in expression["values"] for expression in expressions
    )


def selectors(objects: Objects) -> Iterator[str]:
    pods = [
        (workload, pod_template(workload)["metadata"]["labels"], pod_template(workload)["spec"])
        for workload in filter(pod_template, objects.all)
    ]

    def ports(spec: dict) -> set[str]:
        return {port["name"] for container in spec["containers"] for port in container.get("ports", [])}

    for workload, labels, spec in pods:
        own = workload["spec"].get("selector")
        if own is not None and not matches(own, labels):
            yield f"{title(workload)}: does not select its own pods"
        if own is not None and sum(matches(own, other) for _, other, _ in pods) != 1:
            yield f"{title(workload)}: selects pods of others"
        for term in spec.get("affinity", {}).get("podAntiAffinity", {}).values():
            for preferred in term:
                if not matches(preferred["podAffinityTerm"]["labelSelector"], labels):
                    yield f"{title(workload)}: keeps away from others than its own pods"
        for constraint in spec.get("topologySpreadConstraints", []):
            if not matches(constraint["labelSelector"], labels):
                yield f"{title(workload)}: spreads others than its own pods"
        if workload["kind"] == "StatefulSet":
            service = objects.by_name.get(("Service", workload["spec"]["serviceName"]))
            if service is None or service["spec"].get("clusterIP") != "None":
                yield f"{title(workload)}: has no headless Service"
            elif service["spec"].get("publishNotReadyAddresses") is not True:
                yield f"{title(service)}: hides pods that are not ready from their peers"
    for service in objects.kind("Service"):
        selected = [spec for _, labels, spec in pods if matches({"matchLabels": service["spec"]["selector"]}, labels)]
        if len(selected) != 1:
            yield f"{title(service)}: selects the pods of {len(selected)} workloads"
        for port in service["spec"]["ports"]:
            if any(port["targetPort"] not in ports(spec) for spec in selected):
                yield f"{title(service)}: its pods have no port named {port['targetPort']}"
    for budget in objects.kind("PodDisruptionBudget"):
        if sum(matches(budget["spec"]["selector"], labels) for _, labels, _ in pods) != 1:
            yield f"{title(budget)}: is not about exactly one workload"
    for policy in objects.kind("NetworkPolicy"):
        subject = policy["spec"]["podSelector"]
        rules = [("ingress", "from", rule) for rule in policy["spec"].get("ingress", [])]
        rules += [("egress", "to", rule) for rule in policy["spec"].get("egress", [])]
        if not any(matches(subject, labels) for _, labels, _ in pods):
            yield f"{title(policy)}: is about no pod"
        for direction, side, rule in rules:
            peers = [peer["podSelector"] for peer in rule.get(side, []) if "podSelector" in peer]
            for peer in peers:
                if not any(matches(peer, labels) for _, labels, _ in pods):
                    yield f"{title(policy)}: {side} {peer} is nobody"
            # The port's owner: the policy's subject, or whom it may reach.
            owners = [subject] if direction == "ingress" else peers
            for port in rule.get("ports", []):
                for owner in owners if isinstance(port["port"], str) else []:
                    if any(port["port"] not in ports(spec) for _, labels, spec in pods if matches(owner, labels)):
                        yield f"{title(policy)}: {owner} have no port named {port['port']}"


def conversations(objects: Objects) -> Iterator[str]:
    """What the policies allow is what must be allowed, and no more."""
    pods = {title(w).split()[1]: pod_template(w) for w in filter(pod_template, objects.all)}

    def allows(source: str, target: str, port: str) -> bool:
        def side(direction: str, key: str, subject: str, other: str) -> bool:
            for policy in objects.kind("NetworkPolicy"):
                if not matches(policy["spec"]["podSelector"], pods[subject]["metadata"]["labels"]):
                    continue
                for rule in policy["spec"].get(direction, []):
                    named = any(entry["port"] == port for entry in rule.get("ports", []))
                    peers = rule.get(key, [])
                    selected = any(
                        matches(peer["podSelector"], pods[other]["metadata"]["labels"])
                        for peer in peers
                        if "podSelector" in peer
                    )
                    if named and selected:
                        return True
            return False

        return side("egress", "to", source, target) and side("ingress", "from", target, source)

    cluster, replicas = ["shardmaster", "shardkv", "gateway"], ["shardmaster", "shardkv"]
    wanted = {(source, target, "peer") for source in cluster for target in replicas}
    wanted |= {("prometheus", target, "metrics") for target in cluster} | {("grafana", "prometheus", "web")}
    wanted |= {(source, "otel-collector", "otlp") for source in cluster}
    every = {
        (source, target, port["name"])
        for source in pods
        for target, template in pods.items()
        for container in template["spec"]["containers"]
        for port in container.get("ports", [])
    }
    for conversation in every:
        if allows(*conversation) != (conversation in wanted):
            verb = "may not" if conversation in wanted else "may"
            yield "network policies: {} {} reach {} at its port {}".format(conversation[0], verb, *conversation[1:])
    denied = objects.get("NetworkPolicy", "default-deny")["spec"]
    if denied != {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}:
        yield "network policies: what is not allowed is not forbidden"


def probes(objects: Objects) -> Iterator[str]:
    for workload in filter(pod_template, objects.all):
        if workload["kind"] in ("CronJob", "Job"):
            continue
        for container in pod_template(workload)["spec"]["containers"]:
            where = f"{title(workload)}, {container['name']}"
            named = {port["name"]: port["containerPort"] for port in container["ports"]}
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                request = container.get(kind, {}).get("httpGet")
                if request is None:
                    yield f"{where}: has no {kind}"
                elif request["port"] not in named:
                    yield f"{where}: its {kind} asks a port without a name"
                elif container["name"] == "cloudpaxos":
                    path = "/readyz" if kind == "readinessProbe" else "/livez"
                    if (request.get("scheme"), named[request["port"]], request["path"]) != ("HTTPS", 2378, path):
                        yield f"{where}: its {kind} does not ask for {path} by HTTPS at 2378"
            grace = pod_template(workload)["spec"].get("terminationGracePeriodSeconds", 30)
            pause = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            if container["name"] == "cloudpaxos" and grace - pause < 10:
                yield f"{where}: has less than 10 s to hand over and answer"


def disruption(objects: Objects) -> Iterator[str]:
    for name in ("shardmaster", "shardkv", "gateway"):
        if objects.get("PodDisruptionBudget", name)["spec"].get("maxUnavailable") != 1:
            yield f"PodDisruptionBudget {name}: lets more than one pod go"
    for name in ("shardmaster", "shardkv"):
        spec = objects.get("StatefulSet", name)["spec"]
        if spec["podManagementPolicy"] != "Parallel":
            yield f"StatefulSet {name}: its pods wait for each other"
    members = objects.get("ConfigMap", "cloudpaxos")["data"]["CLOUDPAXOS_INITIAL_CLUSTER"].split(",")
    expected = [
        f"{name}-{ordinal}={name}-{ordinal}.{name}.{NAMESPACE}.svc.cluster.local:2380/{name}"
        for name in ("shardmaster", "shardkv")
        for ordinal in range(objects.get("StatefulSet", name)["spec"]["replicas"])
    ]
    if members != expected:
        yield f"CLOUDPAXOS_INITIAL_CLUSTER is {members}, and the StatefulSets' pods are {expected}"


def permissions(objects: Objects) -> Iterator[str]:
    """Who speaks with the API server, and what they may ask."""
    allowed = {
        "bootstrap": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]}],
        "prometheus": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}],
    }
    for role in objects.kind("Role"):
        if role["rules"] != allowed.get(role["metadata"]["name"]):
            yield f"{title(role)}: allows something else than it is there for"
    for workload in filter(pod_template, objects.all):
        spec = pod_template(workload)["spec"]
        if spec.get("automountServiceAccountToken") is not (spec["serviceAccountName"] in allowed):
            yield f"{title(workload)}: has a token that it does not need, or lacks one"
    for container in containers(pod_template(objects.get("Job", "bootstrap"))["spec"]):
        if container["command"] == ["kubectl"] and container["args"][0] != "create":
            yield "Job bootstrap: changes secrets that exist"


# Of objects that are what their schemas say; of others nothing more can be said.
JUDGEMENTS = [
    kinds_and_namespaces, restricted, references, selectors, conversations, probes, disruption, permissions,
]  # fmt: skip


def extras() -> Iterator[str]:
    """Kinds of others have no schema here; what they refer to is ours."""
    secrets = Objects(top_level()).bootstrap_secrets()
    for file in sorted(FOLDER.glob("extras/*.yaml")):
        text = file.read_text()
        for document in yaml.safe_load_all(text):
            if document["apiVersion"] in BUILT_IN:
                yield from (f"{file.name}: {complaint}" for complaint in schemas(Objects([document])))
        for name in re.findall(r"name: (cloudpaxos-[\w-]+), key: ", text):
            if name not in secrets:
                yield f"{file.name}: nothing makes the secret {name}"


def readable() -> Iterator[str]:
    """kubectl itself takes the folder, as `apply -f` reads it; it asks no cluster for this."""
    command = ["kubectl", "annotate", "--local", "--filename", str(FOLDER), "--output", "name", "read=yes"]
    read = subprocess.run(command, capture_output=True, text=True)
    if read.returncode != 0 or len(read.stdout.splitlines()) != len(top_level()):
        yield f"kubectl reads {len(read.stdout.splitlines())} of {len(top_level())} objects: {read.stderr.strip()}"


def generated() -> Iterator[str]:
    """The files that repeat others say what those say."""
    check = subprocess.run([FOLDER / "generate.py", "--check"], capture_output=True, text=True)
    yield from check.stderr.splitlines()
    objects = Objects(top_level())
    for name, pattern, read in (
        ("prometheus-rules", "prometheus/alerts.yml", yaml.safe_load),
        ("grafana-dashboards", "grafana/dashboards/*.json", json.loads),
    ):
        sources = {file.name: read(file.read_text()) for file in (ROOT / "infra" / "observability").glob(pattern)}
        copies = {file: read(text) for file, text in objects.get("ConfigMap", name)["data"].items()}
        if copies != sources or not sources:
            yield f"ConfigMap {name} does not hold what infra/observability/{pattern} does"


def main() -> int:
    sources = [("infra/k8s", top_level())] + [(str(path.relative_to(ROOT)), rendered(path)) for path in OVERLAYS]
    complaints = list(generated()) + list(readable()) + list(extras())
    for name, documents in sources:
        objects = Objects(documents)
        found = list(schemas(objects)) or [complaint for judgement in JUDGEMENTS for complaint in judgement(objects)]
        print(f"{name}: {len(documents)} objects, {len(found)} complaints")
        complaints += [f"{name}: {complaint}" for complaint in found]
    complaints = complaints or list(order(Objects(top_level())))
    for complaint in complaints:
        print(f"  {complaint}", file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
