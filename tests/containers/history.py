#!/usr/bin/env python3
"""Loads a cluster through its command line, keeps a history of the answers, and judges it.

    history.py load --cloudpaxos FILE --history FILE     until SIGTERM
    history.py judge --cloudpaxos FILE --history FILE    exit code 1 if an answer was wrong
    history.py leader < STATUS                           the leader in `cloudpaxos status -o json`

Every key has one writer, which waits for each answer before its next request. A write without an answer may
happen at any time later; so its key is written no more, and the writer takes another one. Then a key has at
most one write of unknown outcome, its last, and what may be read is known exactly.

Where to send requests, and with which certificate, is in the environment (CLOUDPAXOS_ENDPOINTS and so on).
"""

import argparse
import collections
import concurrent.futures
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time

WRITERS = 8
# Initials of keys, spread over all shards and so over all groups.
INITIALS = "$2@LVbks"
# Every so many requests of a writer one reads.
READ_EVERY = 4
PAUSE_SECONDS = 0.02
REQUEST_TIMEOUT = "5s"
SNAPSHOTS_MAX = 120


class Cluster:
    """The cluster as its command line shows it."""

    def __init__(self, program):
        self.program = program
        self.endpoints = os.environ["CLOUDPAXOS_ENDPOINTS"].split(",")

    def run(self, *arguments, first=0):
        """An answer, or None and the complaint. Endpoint `first` is asked first."""
        endpoints = self.endpoints[first:] + self.endpoints[:first]
        command = [self.program, *arguments, "-o", "json", "--timeout", REQUEST_TIMEOUT]
        environment = {**os.environ, "CLOUDPAXOS_ENDPOINTS": ",".join(endpoints)}
        # A session of its own: a Ctrl-C for this script is none for the requests under way.
        done = subprocess.run(command, env=environment, capture_output=True, text=True, start_new_session=True)
        return (json.loads(done.stdout), "") if done.returncode == 0 else (None, done.stderr.strip())


# ---- load


def load(cluster, path):
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    lock = threading.Lock()
    with open(path, "w", encoding="utf-8") as history:

        def record(**request):
            with lock:
                history.write(json.dumps(request) + "\n")

        writers = [threading.Thread(target=write, args=(cluster, stop, record, writer)) for writer in range(WRITERS)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()


def write(cluster, stop, record, writer):
    """One writer: numbers its values, and reads them back now and then."""
    keys = (f"{INITIALS[writer]}/{writer}/{number}" for number in itertools.count())
    key = next(keys)
    written = False
    for number in itertools.count():
        if stop.wait(PAUSE_SECONDS):
            return
        reads = written and number % READ_EVERY == 0
        value = f"{writer}-{number}"
        begin = time.monotonic()
        if reads:
            # By the other gateway than most writes.
            answer, error = cluster.run("kv", "get", key, "--prefix", first=(writer + 1) % 2)
        else:
            answer, error = cluster.run("kv", "put", key, value, first=writer % 2)
        request = {"kind": "get" if reads else "put", "key": key, "begin": begin, "end": time.monotonic()}
        request |= {} if reads else {"value": value}
        record(**request, answer=answer, error=error)
        if not reads:
            written = answer is not None
            key = key if written else next(keys)


# ---- judge


class Key:
    """What is known of one key."""

    def __init__(self):
        self.acknowledged = []  # (revision, value), in the order of writing
        self.unknown = None  # the value of the last write, if nobody knows whether it happened

    def allows(self, revision, item):
        """Whether `item`, (mod_revision, value) or None, may be read at `revision`; None is now."""
        past = [write for write in self.acknowledged if revision is None or write[0] <= revision]
        if item == (past[-1] if past else None):
            return True
        behind = len(past) == len(self.acknowledged) and item is not None and item[1] == self.unknown
        return behind and (not past or item[0] > past[-1][0])


def judge(cluster, path):
    with open(path, encoding="utf-8") as history:
        requests = [json.loads(line) for line in history]
    wrong = []
    keys = collections.defaultdict(Key)
    for request in requests:
        wrong += follow(keys[request["key"]], request)
    wrong += order(requests)
    wrong += read_back(cluster, keys)

    writes = [request for request in requests if request["kind"] == "put"]
    answered = sum(request["answer"] is not None for request in writes)
    slowest = max(request["end"] - request["begin"] for request in requests)
    print(
        f"{len(writes)} writes of {len(keys)} keys, {answered} acknowledged; {len(requests) - len(writes)} reads; "
        f"the slowest request took {slowest:.1f} s"
    )
    complaints = collections.Counter(complaint(request) for request in requests if request["answer"] is None)
    for text, count in complaints.most_common():
        print(f"{count:5} × {text}")
    if answered == 0:
        wrong.append("no write was acknowledged: nothing was tested")
    for text in wrong[:20]:
        print(f"WRONG: {text}", file=sys.stderr)
    print(f"{len(wrong)} wrong answers")
    return 1 if wrong else 0


def complaint(request):
    return f"{request['kind']}: {request['error']}"


def follow(key, request):
    """Takes one request of a key's only writer, in order; says what is wrong with the answer."""
    answer = request["answer"]
    if request["kind"] == "get":
        if answer is None or key.allows(None, item(answer["kvs"][:1])):
            return []
        return [f"{request['key']} was read as {answer['kvs']}, and {key.acknowledged[-1]} was acknowledged"]
    if answer is None:
        key.unknown = request["value"]
        return []
    revision = answer["revision"]
    before = key.acknowledged[-1][0] if key.acknowledged else 0
    key.acknowledged.append((revision, request["value"]))
    return [] if revision > before else [f"{request['key']}: revision {revision} was answered after {before}"]


def item(kvs):
    return (kvs[0]["mod_revision"], kvs[0]["value"]) if kvs else None


def order(requests):
    """Over all keys: what begins after an answer has a higher revision, or for a read no lower one."""
    answered = [request for request in requests if request["answer"] is not None]
    ends = sorted(answered, key=lambda request: request["end"])
    wrong, seen, highest, at = [], {}, 0, 0
    for request in sorted(answered, key=lambda request: request["begin"]):
        while ends[at]["end"] < request["begin"]:
            highest = max(highest, ends[at]["answer"]["revision"])
            at += 1
        revision = request["answer"]["revision"]
        is_write = request["kind"] == "put"
        if revision < highest + is_write:
            wrong.append(f"{request['kind']} {request['key']}: revision {revision} after {highest} had been answered")
        if is_write and seen.setdefault(revision, request["key"]) != request["key"]:
            wrong.append(f"revision {revision} was answered for {request['key']} and {seen[revision]}")
    return wrong


def read_back(cluster, keys):
    """Reads all keys in one range over all groups: now, by both gateways, and as they were in between."""
    revisions = sorted(revision for key in keys.values() for revision, _ in key.acknowledged)
    step = -(-len(revisions) // SNAPSHOTS_MAX) or 1
    snapshots = [(None, 0), (None, 1)] + [(revision, at % 2) for at, revision in enumerate(revisions[::step])]

    def check(snapshot):
        revision, gateway = snapshot
        at = [] if revision is None else ["--revision", str(revision)]
        for _ in range(3):
            answer, error = cluster.run("kv", "get", "!", "--from-key", *at, first=gateway)
            if answer is not None:
                break
        else:
            return [f"all keys at revision {revision or 'now'} cannot be read: {error}"]
        found = {kv["key"]: item([kv]) for kv in answer["kvs"]}
        when = "now" if revision is None else f"at revision {revision}"
        return [
            f"{name} is {found.get(name)} {when}; acknowledged were {key.acknowledged[-3:]}, unknown is {key.unknown}"
            for name, key in keys.items()
            if not key.allows(revision, found.get(name))
        ] + [f"{name} is there {when}, and nobody wrote it" for name in found.keys() - keys.keys()]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        return [text for texts in pool.map(check, snapshots) for text in texts]


# ---- leader


def leader():
    """The name of the node that leads the first group, the shardmaster's."""
    status = json.load(sys.stdin)
    names = {node["id"]: node["name"] for node in status["nodes"]}
    name = names.get(min(status["groups"], key=lambda group: group["id"])["leader"])
    if name is None:
        return 1
    print(name)
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["load", "judge", "leader"])
    parser.add_argument("--cloudpaxos", help="the command line")
    parser.add_argument("--history", help="requests and answers, one JSON object a line")
    options = parser.parse_args()
    if options.command == "leader":
        return leader()
    cluster = Cluster(options.cloudpaxos)
    return judge(cluster, options.history) if options.command == "judge" else load(cluster, options.history)


if __name__ == "__main__":
    sys.exit(main())
