"""Runs the cluster of infra/k8s on this machine and does to it what Kubernetes does to pods.

Runs in a mount namespace of its own (ci/k8s sees to that), because names are resolved by a hosts file.

    executed.py BINARY DIRECTORY
"""

import http.client
import json
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from manifests import Objects, pod_template, top_level
from pods import Cluster, Pod, Service

READY_SECONDS_MAX = 60.0
RUN_SECONDS_MAX = 150
# Keys begin with all of these in turn, so that writes go to shards of all groups.
FIRST_LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
WRITERS = 3
# Between two writes of a writer: a load that a small machine bears beside eight processes.
WRITER_PAUSE_SECONDS = 0.1
# From a pod's end to the start of its successor: scheduling, attaching the volume, starting the container.
SUCCESSOR_SECONDS = 2.0
REPLICAS = ("shardmaster", "shardkv")


class Client:
    """The command line, as an operator uses it: with a certificate, through the Service."""

    def __init__(self, cluster: Cluster, endpoint: str):
        directory = cluster.directory / "operator"
        directory.mkdir()
        for name, text in cluster.secrets["cloudpaxos-operator"].items():
            (directory / name).write_text(text)
        self.binary = cluster.binary
        self.access = ["--endpoints", endpoint, "--cacert", str(directory / "ca.crt")]
        self.access += ["--cert", str(directory / "tls.crt"), "--key", str(directory / "tls.key")]

    def run(self, *words: str) -> subprocess.CompletedProcess:
        return subprocess.run([self.binary, *words, *self.access], env={}, capture_output=True, text=True)


class Writers:
    """Write new keys, one after the other, and keep the books."""

    def __init__(self, client: Client):
        self.client = client
        self.phase = "start"
        self.acknowledged: dict[str, str] = {}
        self.counts: dict[str, int] = {}
        self.slowest: dict[str, float] = {}
        self.failures: list[tuple[str, float, float, str]] = []
        self.began = time.monotonic()
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self.write, args=(writer,)) for writer in range(WRITERS)]
        for thread in self.threads:
            thread.start()

    def write(self, writer: int):
        number = 0
        while not self.stopping.wait(WRITER_PAUSE_SECONDS):
            key = f"{FIRST_LETTERS[number % len(FIRST_LETTERS)]}/{writer}/{number}"
            value, number, phase = f"{writer}-{number}", number + 1, self.phase
            began = time.monotonic()
            done = self.client.run("kv", "put", key, value)
            took = time.monotonic() - began
            if done.returncode == 0:
                self.acknowledged[key] = value
                self.counts[phase] = self.counts.get(phase, 0) + 1
                self.slowest[phase] = max(self.slowest.get(phase, 0.0), took)
            else:
                self.failures.append((phase, began - self.began, took, done.stderr.strip()))

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join()


def bootstrap(objects: Objects, binary: str, directory: Path) -> Cluster:
    """Runs what the bootstrap Job runs before it calls kubectl, and takes the secrets that it wrote."""
    cluster = Cluster(objects, binary, directory)
    pod = Pod(cluster, objects.get("Job", "bootstrap"), "bootstrap", cluster.fresh_address())
    # A pod that is started again finds the files of its first start, and nothing may change by that.
    written = []
    for _ in range(2):
        words, variables = pod.command(pod.spec["initContainers"][0])
        subprocess.run(words, env=variables, check=True, stdout=subprocess.DEVNULL)
        work = pod.mounts(pod.spec["initContainers"][0])["/work"]
        written.append(json.loads((work / "secrets.json").read_text()))
    assert written[0] == written[1], "the second run of the bootstrap command made other secrets"
    assert written[0]["kind"] == "List"
    for secret in written[0]["items"]:
        assert secret["metadata"]["namespace"] == cluster.namespace, secret["metadata"]
        cluster.secrets[secret["metadata"]["name"]] = secret["stringData"]
    # What the second init container makes a secret of.
    authority = {file.name for file in (work / "certs" / "ca").iterdir()}
    assert authority == {"nodes.crt", "nodes.key", "clients.crt", "clients.key"}, authority
    expected = {name: keys for name, keys in objects.bootstrap_secrets().items() if name != "cloudpaxos-authority"}
    assert {name: set(files) for name, files in cluster.secrets.items()} == expected
    return cluster


def start_all(cluster: Cluster) -> int:
    """All pods at once, as `podManagementPolicy: Parallel` and Deployments have it. How many there are."""
    objects, pods = cluster.objects, []
    for name in REPLICAS:
        workload = objects.get("StatefulSet", name)
        pods += [(workload, f"{name}-{ordinal}") for ordinal in range(workload["spec"]["replicas"])]
    gateways = objects.get("HorizontalPodAutoscaler", "gateway")["spec"]["minReplicas"]
    pods += [(objects.get("Deployment", "gateway"), f"gateway-{number}") for number in range(gateways)]
    for workload, name in pods:
        Pod(cluster, workload, name, cluster.fresh_address()).start()
    for pod in list(cluster.pods.values()):
        pod.wait_ready(READY_SECONDS_MAX)
    return len(pods)


def check_log(cluster: Cluster):
    """No process complains about what the manifests tell it."""
    for pod in cluster.pods.values():
        text = pod.log.read_text()
        assert text[:1] in ("", "{"), f"{pod.name} does not log JSON: {text[:200]}"
        strange = [line for line in text.splitlines() if "CLOUDPAXOS_" in line]
        assert not strange, f"{pod.name}: {strange[0]}"


def succeed(cluster: Cluster, old: Pod, address: str) -> float:
    """Starts a pod's successor, with its volume. How long it took to become ready."""
    time.sleep(SUCCESSOR_SECONDS)
    return Pod(cluster, old.workload, old.name, address).start().wait_ready(READY_SECONDS_MAX)


def replace(cluster: Cluster, name: str, address: str | None = None) -> tuple[float, float]:
    """Ends a pod and starts its successor. How long it took to end, and to become ready."""
    old = cluster.pods[name]
    code, ending = old.delete()
    assert code == 0, f"{name} ended with {code} within {ending:.1f} s of SIGTERM: {old.last_words()}"
    return ending, succeed(cluster, old, address or old.address)


def roll_replicas(cluster: Cluster):
    """An update of both StatefulSets at once: in each the highest ordinal first, one waits for the one before."""

    def roll(workload: str):
        for ordinal in reversed(range(cluster.objects.get("StatefulSet", workload)["spec"]["replicas"])):
            ending, ready = replace(cluster, f"{workload}-{ordinal}")
            print(f"  {workload}-{ordinal}: ended within {ending:.1f} s, ready after {ready:.1f} s")

    with ThreadPoolExecutor() as threads:
        list(threads.map(roll, REPLICAS))


def roll_gateways(cluster: Cluster):
    """An update of the Deployment: a new pod first, an old one goes once that is ready."""
    strategy = cluster.objects.get("Deployment", "gateway")["spec"]["strategy"]["rollingUpdate"]
    assert strategy == {"maxSurge": 1, "maxUnavailable": 0}, "this is not the order that is played"
    for name in [name for name in cluster.pods if name.startswith("gateway-")]:
        old = cluster.pods[name]
        new = Pod(cluster, old.workload, f"{name}-new", cluster.fresh_address()).start()
        new.wait_ready(READY_SECONDS_MAX)
        code, ending = old.delete()
        assert code == 0, f"{name} ended with {code}: {old.last_words()}"
        del cluster.pods[name]
        print(f"  {name}: ended within {ending:.1f} s of SIGTERM")


def reschedule(cluster: Cluster):
    """Pods go to other nodes, because theirs is drained or has died: the volume follows, the address does not."""
    for workload in REPLICAS:
        name = f"{workload}-0"
        before = cluster.pods[name].address
        ending, ready = replace(cluster, name, cluster.fresh_address())
        now = cluster.pods[name].address
        print(f"  {name}: {before} -> {now}, ended within {ending:.1f} s, ready after {ready:.1f} s")
    for workload in REPLICAS:
        name = f"{workload}-2"
        old = cluster.pods[name]
        old.kill()
        ready = succeed(cluster, old, cluster.fresh_address())
        print(f"  {name}: {old.address} -> {cluster.pods[name].address}, killed, ready after {ready:.1f} s")


def lose_volume(cluster: Cluster):
    """A pod whose volume is empty must not run: it has forgotten what it promised."""
    for workload in REPLICAS:
        name = f"{workload}-1"
        old = cluster.pods[name]
        code, _ = old.delete()
        assert code == 0, f"{name} ended with {code}"
        volume = cluster.volume(old.claim("data"))
        saved = volume.rename(volume.with_suffix(".saved"))
        log_bytes = old.log.stat().st_size
        began = time.monotonic()
        stranger = Pod(cluster, old.workload, name, cluster.fresh_address()).start()
        try:
            code = stranger.process.wait(20)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{name} runs without its volume: {stranger.last_words()}") from None
        took = time.monotonic() - began
        stranger.kill()
        said = stranger.log.read_bytes()[log_bytes:].decode(errors="replace").strip().splitlines()
        assert code != 0, f"{name} without its volume ended as if all was well"
        assert not stranger.ready, f"{name} without its volume was ready for a moment"
        wanted = ("another data directory", "under a new name")
        assert all(words in said[-1] for words in wanted), f"{name} does not say what to do: {said[-3:]}"
        print(f"  {name}: refused within {took:.1f} s with exit code {code}: {said[-1]}")
        # The same directory helps, as it says.
        shutil.rmtree(volume)
        saved.rename(volume)
        succeed(cluster, old, cluster.fresh_address())


def scrape(cluster: Cluster) -> int:
    """Asks every pod for its metrics as prometheus.yml says: names, authority, certificate."""
    jobs = yaml.safe_load(cluster.config_map("prometheus")["prometheus.yml"])["scrape_configs"]
    prometheus = pod_template(cluster.objects.get("Deployment", "prometheus"))["spec"]
    mount = next(m["mountPath"] for m in prometheus["containers"][0]["volumeMounts"] if m["name"] == "tls")
    secret = next(volume["secret"]["secretName"] for volume in prometheus["volumes"] if volume["name"] == "tls")
    directory = cluster.directory / "prometheus"
    directory.mkdir()
    for name, text in cluster.secrets[secret].items():
        (directory / name).write_text(text)
    scraped = 0
    for job in jobs:
        tls = {key: value.replace(mount, str(directory)) for key, value in job["tls_config"].items()}
        context = ssl.create_default_context(cafile=tls["ca_file"])
        context.load_cert_chain(tls["cert_file"], tls["key_file"])
        keep = next(rule for rule in job["relabel_configs"] if rule.get("action") == "keep")
        rename = next((rule for rule in job["relabel_configs"] if rule.get("target_label") == "__address__"), None)
        for pod in cluster.pods.values():
            component = pod.template["metadata"]["labels"]["app.kubernetes.io/component"]
            if not re.fullmatch(keep["regex"], f"cloudpaxos;{component};metrics"):
                continue
            address = f"{pod.address}:2378"
            if rename:
                match = re.fullmatch(rename["regex"], f"{pod.name};{component}")
                address = match.expand(re.sub(r"\$(\d)", r"\\\1", rename["replacement"]))
            host, port = address.rsplit(":", 1)
            page = fetch(host, int(port), tls.get("server_name", host), context)
            assert f'node="{pod.name}"' in page, page[:300]
            scraped += 1
    assert scraped == len(cluster.pods), f"{scraped} of {len(cluster.pods)} pods are scraped"
    return scraped


def fetch(host: str, port: int, server_name: str, context: ssl.SSLContext) -> str:
    """A page of metrics, from a server whose certificate must bear `server_name`."""
    connection = http.client.HTTPConnection(host, port, timeout=5)
    connection.sock = context.wrap_socket(socket.create_connection((host, port), 5), server_hostname=server_name)
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        page = response.read().decode()
        assert response.status == 200, f"{host}: {response.status} {page[:200]}"
        return page
    finally:
        connection.close()


def read_back(client: Client, acknowledged: dict[str, str]) -> int:
    """Every acknowledged write is there, with its value."""
    answer = client.run("kv", "get", "0", "--from-key", "--output", "json")
    assert answer.returncode == 0, answer.stderr
    found = {pair["key"]: pair["value"] for pair in json.loads(answer.stdout)["kvs"]}
    lost = {key: value for key, value in acknowledged.items() if found.get(key) != value}
    assert not lost, f"{len(lost)} acknowledged writes are not there, for instance {next(iter(lost.items()))}"
    return len(acknowledged)


def run(cluster: Cluster):
    began = time.monotonic()
    service = Service(cluster, "cloudpaxos")
    count = start_all(cluster)
    print(f"{count} pods are ready after {time.monotonic() - began:.1f} s")
    check_log(cluster)
    client = Client(cluster, f"{service.host}:{service.port['port']}")
    print(f"{scrape(cluster)} pods are scraped as prometheus.yml says")
    writers = Writers(client)
    try:
        for phase, action in (
            ("rolling update of the replicas", roll_replicas),
            ("rolling update of the gateways", roll_gateways),
            ("replicas with new addresses", reschedule),
            ("replicas that lost their volumes", lose_volume),
        ):
            writers.phase = phase
            print(phase)
            action(cluster)
    finally:
        writers.stop()
        for phase, number in writers.counts.items():
            failed = sum(failure[0] == phase for failure in writers.failures)
            print(f"{phase}: {number} writes acknowledged, {failed} failed, the slowest took {writers.slowest[phase]:.2f} s")
        for phase, at, took, text in writers.failures:
            print(f"  failed at {at:.1f} s after {took:.2f} s ({phase}): {text}")
        print(f"service: {service.carried} connections carried, {service.refused} refused")
    print(f"{read_back(client, writers.acknowledged)} acknowledged writes are read with their values")
    assert not writers.failures, f"{len(writers.failures)} writes failed"
    sick = {pod.name: pod.liveness_failures for pod in cluster.pods.values() if pod.liveness_failures}
    assert not sick, f"livenessProbes failed: {sick}"
    for name in list(cluster.pods):
        code, took = cluster.pods[name].delete()
        assert code == 0, f"{name} ended with {code} after {took:.1f} s"


def main() -> int:
    binary, directory = sys.argv[1], Path(sys.argv[2]).resolve()
    # As an exception, so that what was started is stopped.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(130))
    def late(*_):
        raise AssertionError(f"not done after {RUN_SECONDS_MAX} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(RUN_SECONDS_MAX)
    cluster = bootstrap(Objects(top_level()), binary, directory)
    try:
        run(cluster)
    except AssertionError as error:
        print(f"executed: {error}", file=sys.stderr)
        for pod in cluster.pods.values():
            print(f"--- {pod.name}\n{pod.last_words()}", file=sys.stderr)
        return 1
    finally:
        for pod in cluster.pods.values():
            pod.kill()
    return 0


if __name__ == "__main__":
    sys.exit(main())
