"""A little of Kubernetes on one machine: enough to run this folder's pods as their manifests say.

What is as in a cluster: commands, arguments and environment with all their references; secrets, ConfigMaps
and volumes as files; probes with their periods and thresholds; SIGTERM, the pause before it, the grace
period after it; names that follow addresses; a Service that gives each new connection to a ready pod, and
learns late that one is going.

What is not: a pod has no file system and no network of its own. So paths of mounts, and 0.0.0.0, are
replaced by the pod's directories and its address, one of 127/8. Names are resolved by a hosts file, which
needs a mount namespace of our own. Users and network policies are not played.
"""

import http.client
import random
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path

from manifests import Objects, pod_template

# How long the nodes go on sending connections to a pod that is going. In a cluster it is the time that
# EndpointSlices take to get around.
ENDPOINTS_DELAY_SECONDS = 1.0
DOMAIN = "svc.cluster.local"


class Names:
    """Names and their addresses, as everybody in our mount namespace resolves them."""

    def __init__(self, directory: Path):
        self.file = directory / "hosts"
        self.addresses: dict[str, str] = {}
        self.lock = threading.Lock()
        # Files alone: a name that is not there is not there, and nobody outside is asked.
        switch = directory / "nsswitch.conf"
        switch.write_text("hosts: files\n")
        self.file.write_text("")
        for source, target in ((self.file, "/etc/hosts"), (switch, "/etc/nsswitch.conf")):
            subprocess.run(["mount", "--bind", source, target], check=True)

    def set(self, name: str, address: str | None):
        with self.lock:
            if address is None:
                self.addresses.pop(name, None)
            else:
                self.addresses[name] = address
            lines = [f"{address} {name}\n" for name, address in sorted(self.addresses.items())]
            # In place: what is mounted is this file, not this path.
            with self.file.open("r+") as file:
                file.write("127.0.0.1 localhost\n" + "".join(lines))
                file.truncate()


class Cluster:
    """The objects that were applied, and what pods share."""

    def __init__(self, objects: Objects, binary: str, directory: Path):
        self.objects, self.binary, self.directory = objects, binary, directory
        self.namespace = "cloudpaxos"
        self.names = Names(directory)
        self.secrets: dict[str, dict[str, str]] = {}
        self.pods: dict[str, Pod] = {}
        self.addresses = 0

    def fresh_address(self) -> str:
        self.addresses += 1
        return f"127.1.{self.addresses // 250}.{self.addresses % 250 + 1}"

    def config_map(self, name: str) -> dict[str, str]:
        return self.objects.get("ConfigMap", name)["data"]

    def volume(self, claim: str) -> Path:
        return self.directory / "volumes" / claim


def expand(text: str, variables: dict[str, str]) -> str:
    """References as Kubernetes expands them: `$(NAME)`."""
    return re.sub(r"\$\((\w+)\)", lambda match: variables.get(match[1], match[0]), text)


class Pod:
    """One pod, from its start to its end. Started anew, it is another one with the same name."""

    def __init__(self, cluster: Cluster, workload: dict, name: str, address: str):
        self.cluster, self.workload, self.name, self.address = cluster, workload, name, address
        self.template = pod_template(workload)
        # Where a control plane gives pods no label, the variable is empty: here only those with data have one.
        ordinal = name.rpartition("-")[2]
        self.zone = f"zone-{int(ordinal) % 3}" if ordinal.isdigit() and "shardkv" in name else ""
        self.spec = self.template["spec"]
        self.container = self.spec["containers"][0]
        self.directory = cluster.directory / "pods" / f"{name}.{address}.{time.monotonic_ns()}"
        self.log = cluster.directory / "logs" / f"{name}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.started = self.ready = self.terminating = False
        self.not_ready: list[str] = []
        self.liveness_failures = 0
        self.process: subprocess.Popen | None = None
        self.ended = threading.Event()

    # Files.

    def claim(self, volume: str) -> str:
        return f"{volume}-{self.name}"

    def mounts(self, container: dict) -> dict[str, Path]:
        """Makes what the container mounts; mount paths and where they lie here."""
        volumes = {volume["name"]: volume for volume in self.spec.get("volumes", [])}
        paths = {}
        for mount in container.get("volumeMounts", []):
            assert "subPath" not in mount, "not played"
            volume = volumes.get(mount["name"])
            if volume is None:
                path = self.cluster.volume(self.claim(mount["name"]))
                path.mkdir(parents=True, exist_ok=True)
            else:
                path = self.directory / mount["name"]
                path.mkdir(parents=True, exist_ok=True)
                files, mode = {}, 0o644
                if "secret" in volume:
                    files, mode = self.cluster.secrets[volume["secret"]["secretName"]], volume["secret"]["defaultMode"]
                elif "configMap" in volume:
                    files = self.cluster.config_map(volume["configMap"]["name"])
                else:
                    assert "emptyDir" in volume, volume
                for name, text in files.items():
                    (path / name).write_text(text)
                    (path / name).chmod(mode)
            paths[mount["mountPath"]] = path
        return paths

    # Commands.

    def environment(self, container: dict) -> dict[str, str]:
        fields = {
            "metadata.name": self.name,
            "metadata.namespace": self.cluster.namespace,
            "status.podIP": self.address,
            # As a control plane gives it to pods that run in a zone.
            "metadata.labels['topology.kubernetes.io/zone']": self.zone,
        }
        variables = {}
        for source in container.get("envFrom", []):
            variables |= self.cluster.config_map(source["configMapRef"]["name"])
        for variable in container.get("env", []):
            match variable.get("valueFrom"):
                case None:
                    value = expand(variable["value"], variables)
                case {"fieldRef": {"fieldPath": field}}:
                    value = fields[field]
                case {"configMapKeyRef": {"name": name, "key": key}}:
                    value = self.cluster.config_map(name)[key]
                case {"secretKeyRef": {"name": name, "key": key}}:
                    value = self.cluster.secrets[name][key]
            variables[variable["name"]] = value
        return variables

    def command(self, container: dict) -> tuple[list[str], dict[str, str]]:
        """Arguments and environment, with what is replaced replaced."""
        mounts = self.mounts(container)
        variables = self.environment(container)

        def here(text: str) -> str:
            for mount in sorted(mounts, key=len, reverse=True):
                text = re.sub(rf"(?<![\w/]){re.escape(mount)}(?=/|$)", str(mounts[mount]), text)
            return re.sub(r"^0\.0\.0\.0:", f"{self.address}:", text)

        words = container["command"] + container.get("args", [])
        assert words[0] == "cloudpaxos", words
        words = [self.cluster.binary] + [here(expand(word, variables)) for word in words[1:]]
        return words, {name: here(value) for name, value in variables.items()}

    # Life.

    def host_name(self) -> str | None:
        service = self.workload["spec"].get("serviceName")
        return service and f"{self.name}.{service}.{self.cluster.namespace}.{DOMAIN}"

    def start(self) -> "Pod":
        words, variables = self.command(self.container)
        if name := self.host_name():
            self.cluster.names.set(name, self.address)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                words, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.cluster.directory
            )
        self.cluster.pods[self.name] = self
        threading.Thread(target=self.probe, daemon=True).start()
        return self

    def delete(self) -> tuple[int, float]:
        """Ends it as a kubelet does. Its exit code, and how long it took from SIGTERM on."""
        self.terminating = True
        pause = self.container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        grace = self.spec.get("terminationGracePeriodSeconds", 30) - pause
        time.sleep(pause)
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(grace)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        took = time.monotonic() - began
        self.ended.set()
        if name := self.host_name():
            self.cluster.names.set(name, None)
        shutil.rmtree(self.directory, ignore_errors=True)
        return code, took

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.ended.set()

    # Probes.

    def ask(self, probe: dict) -> str | None:
        """What is wrong, if anything is."""
        request = probe["httpGet"]
        ports = {port["name"]: port["containerPort"] for port in self.container["ports"]}
        # A kubelet shows no certificate and checks none.
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(
            self.address, ports[request["port"]], timeout=probe.get("timeoutSeconds", 1), context=context
        )
        try:
            connection.request("GET", request["path"])
            response = connection.getresponse()
            text = response.read().decode(errors="replace").strip()
            return None if response.status < 400 else f"{response.status} {text}"
        except (OSError, http.client.HTTPException) as error:
            return f"{type(error).__name__}: {error}"
        finally:
            connection.close()

    def probe(self):
        """Asks as the manifest says, until the pod ends."""
        startup = self.container["startupProbe"]
        for _ in range(startup["failureThreshold"]):
            if self.ask(startup) is None:
                self.started = True
                break
            if self.ended.wait(startup["periodSeconds"]):
                return
        due = {"readinessProbe": 0.0, "livenessProbe": 0.0}
        failures = {"readinessProbe": 0, "livenessProbe": 0}
        while not self.ended.wait(0.05):
            for kind in due:
                if time.monotonic() < due[kind]:
                    continue
                probe = self.container[kind]
                due[kind] = time.monotonic() + probe["periodSeconds"]
                wrong = self.ask(probe)
                if self.terminating or self.ended.is_set():
                    continue
                failures[kind] = failures[kind] + 1 if wrong else 0
                enough = failures[kind] >= probe["failureThreshold"]
                if kind == "livenessProbe":
                    self.liveness_failures += bool(wrong)
                elif wrong is None:
                    self.ready = True
                else:
                    self.not_ready.append(wrong)
                    self.ready = self.ready and not enough

    def wait_ready(self, limit: float) -> float:
        """How long it took."""
        began = time.monotonic()
        while not self.ready:
            if self.process.poll() is not None:
                raise AssertionError(f"{self.name} ended with {self.process.returncode}: {self.last_words()}")
            if time.monotonic() - began > limit:
                raise AssertionError(f"{self.name} is not ready after {limit} s: {self.not_ready[-1:]}")
            time.sleep(0.05)
        return time.monotonic() - began

    def last_words(self) -> str:
        return " | ".join(self.log.read_text(errors="replace").splitlines()[-3:])


class Service:
    """The virtual address of a Service. Gives each connection to one ready pod, and carries bytes."""

    def __init__(self, cluster: Cluster, name: str):
        self.cluster = cluster
        self.document = cluster.objects.get("Service", name)
        self.port = self.document["spec"]["ports"][0]
        self.host = f"{name}.{cluster.namespace}.{DOMAIN}"
        address = cluster.fresh_address()
        cluster.names.set(self.host, address)
        self.listener = socket.create_server((address, self.port["port"]), backlog=256)
        self.gone_at: dict[Pod, float] = {}
        self.refused = self.carried = 0
        threading.Thread(target=self.accept, daemon=True).start()

    def endpoints(self) -> list[tuple[str, int]]:
        """Ready pods, and for a moment those that were until just now."""
        found, now = [], time.monotonic()
        selector = self.document["spec"]["selector"]
        for pod in list(self.cluster.pods.values()) + list(self.gone_at):
            if not selector.items() <= pod.template["metadata"]["labels"].items():
                continue
            if pod.ready and not pod.terminating:
                self.gone_at.pop(pod, None)
            elif pod.ready and now - self.gone_at.setdefault(pod, now) > ENDPOINTS_DELAY_SECONDS:
                continue
            elif not pod.ready:
                continue
            ports = {port["name"]: port["containerPort"] for port in pod.container["ports"]}
            found.append((pod.address, ports[self.port["targetPort"]]))
        return found

    def accept(self):
        while True:
            client, _ = self.listener.accept()
            threading.Thread(target=self.carry, args=(client,), daemon=True).start()

    def carry(self, client: socket.socket):
        endpoints = self.endpoints()
        try:
            server = socket.create_connection(random.choice(endpoints), timeout=5)
            server.settimeout(None)
        except (OSError, IndexError):
            self.refused += 1
            # A reset, as from the pod's node.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
            return
        self.carried += 1

        def pump(source: socket.socket, target: socket.socket):
            try:
                while data := source.recv(65536):
                    target.sendall(data)
                target.shutdown(socket.SHUT_WR)
            except OSError:
                for end in (source, target):
                    try:
                        end.shutdown(socket.SHUT_RDWR)
                    except OSError:
                        pass

        back = threading.Thread(target=pump, args=(server, client), daemon=True)
        back.start()
        pump(client, server)
        back.join()
        client.close()
        server.close()
