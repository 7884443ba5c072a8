#!/usr/bin/env python3
"""Writes the dashboards beside it, dashboards/*.json, for Grafana 10 and 11.

    generate.py            writes them
    generate.py --check    fails if they are not what it would write

A dashboard is a list of rows, a row a list of panels; here stands what tells them apart, and everything
that Grafana wants to be told for each is filled in below. Every panel says what is good and what is bad.
"""

import json
import sys
from pathlib import Path

DIRECTORY = Path(__file__).resolve().parent / "dashboards"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24

# Selectors: what has a node, and what has a group, too.
N = 'node=~"$node"'
G = 'node=~"$node", group=~"$group"'
RATE = "[$__rate_interval]"


def quantile(q, metric, by, selector):
    return f"histogram_quantile({q}, sum by ({by}, le) (rate({metric}_bucket{{{selector}}}{RATE})))"


def average(metric, by, selector):
    return (
        f"sum by ({by}) (rate({metric}_sum{{{selector}}}{RATE}))"
        f" / sum by ({by}) (rate({metric}_count{{{selector}}}{RATE}))"
    )


class Panel:
    """One panel. `queries` are pairs of PromQL and legend; `steps` are (from, colour), for stats and states."""

    def __init__(self, title, unit, queries, text, kind="timeseries", width=8, height=8, steps=None, **more):
        self.title, self.unit, self.queries, self.text = title, unit, queries, text
        self.kind, self.width, self.height, self.steps, self.more = kind, width, height, steps, more

    def json(self, number, x, y):
        defaults = {"unit": self.unit}
        if self.kind == "timeseries":
            stacked = self.more.get("stacked", False)
            defaults["color"] = {"mode": "palette-classic"}
            defaults["custom"] = {
                "drawStyle": "line",
                "fillOpacity": 30 if stacked else 8,
                "lineWidth": 1,
                "showPoints": "never",
                "spanNulls": False,
                "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
                "thresholdsStyle": {"mode": "line" if self.steps else "off"},
                "scaleDistribution": {"type": "log", "log": 10} if self.more.get("log") else {"type": "linear"},
            }
            if not self.more.get("log"):
                defaults["min"] = 0
        elif self.kind == "state-timeline":
            defaults["color"] = {"mode": "thresholds" if self.steps else "palette-classic"}
            defaults["custom"] = {"fillOpacity": 70, "lineWidth": 0}
        elif self.kind == "stat":
            defaults["color"] = {"mode": "thresholds"}
        steps = self.steps or [(None, "green")]
        defaults["thresholds"] = {
            "mode": "absolute",
            "steps": [{"color": colour, "value": value} for value, colour in steps],
        }
        if "max" in self.more:
            defaults["max"] = self.more["max"]
        targets = []
        for index, (expression, legend) in enumerate(self.queries):
            target = {
                "datasource": DATASOURCE,
                "editorMode": "code",
                "expr": expression,
                "legendFormat": legend,
                "range": self.kind not in ("stat", "table"),
                "instant": self.kind in ("stat", "table"),
                "refId": chr(ord("A") + index),
            }
            if self.kind == "heatmap":
                target["format"] = "heatmap"
            if self.kind == "table":
                target["format"] = "table"
            targets.append(target)
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.text,
            "datasource": DATASOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "fieldConfig": {"defaults": defaults, "overrides": []},
            "options": self.options(),
            "targets": targets,
        }

    def options(self):
        if self.kind == "stat":
            return {
                "colorMode": "background",
                "graphMode": "none",
                "justifyMode": "auto",
                "orientation": "auto",
                "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
                "textMode": "auto",
            }
        if self.kind == "heatmap":
            return {
                "calculate": False,
                "cellGap": 0,
                "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5},
                "yAxis": {"unit": self.unit},
                "tooltip": {"show": True, "yHistogram": True},
                "legend": {"show": True},
            }
        if self.kind == "state-timeline":
            return {
                "mergeValues": True,
                "showValue": "auto",
                "rowHeight": 0.8,
                "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
                "tooltip": {"mode": "single", "sort": "none"},
            }
        if self.kind == "table":
            return {"showHeader": True, "cellHeight": "sm"}
        return {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }


def stat(title, unit, query, text, steps, legend=""):
    return Panel(title, unit, [(query, legend)], text, kind="stat", width=4, height=4, steps=steps)


GOOD_IF_ZERO = [(None, "green"), (1, "red")]
FLAG = [(None, "red"), (1, "green")]

OVERVIEW = [
    (
        "At a glance",
        [
            stat(
                "Nodes down",
                "none",
                'count(up{job="cloudpaxos-node"} == 0) or vector(0)',
                "Nodes that Prometheus cannot scrape. Good: 0. With one of three down everything is served and the next "
                "failure stops writes; with two nothing is.",
                GOOD_IF_ZERO,
            ),
            stat(
                "Groups without a leader",
                "none",
                "count(cloudpaxos:group_leaders:sum == 0) or vector(0)",
                "Good: 0. For about a second after a leader is lost it may be more; while it is, the group's keys can be "
                "neither read nor written.",
                GOOD_IF_ZERO,
            ),
            stat(
                "Sequencers",
                "none",
                "count(cloudpaxos_sequencer_revision) or vector(0)",
                "Nodes that hand out revisions. Good: 1. With 0, no group can write.",
                [(None, "red"), (1, "green"), (2, "orange")],
            ),
            stat(
                "Nodes with a full disk",
                "none",
                "sum(cloudpaxos_disk_full)",
                "Nodes that refuse writes for want of room. Good: 0.",
                GOOD_IF_ZERO,
            ),
            stat(
                "Requests failed",
                "percentunit",
                "max(cloudpaxos:rpc_errors:ratio_rate5m)",
                "The worst gateway's share of requests, over 5 minutes, that failed through no fault of the client. Good: "
                "below 0.1 %; somebody is told at 2 % and woken at 25 %.",
                [(None, "green"), (0.001, "yellow"), (0.02, "red")],
            ),
            stat(
                "Alerts",
                "none",
                'count(ALERTS{alertname=~"CloudPaxos.+", alertstate="firing", severity!="info"}) or vector(0)',
                "Alerts that fire. Good: 0. Each has a section in docs/operations.md.",
                GOOD_IF_ZERO,
            ),
        ],
    ),
    (
        "Requests",
        [
            Panel(
                "Requests by method",
                "reqps",
                [(f"sum by (method) (rate(cloudpaxos_rpc_duration_seconds_count{{{N}}}{RATE}))", "{{method}}")],
                "What clients ask for. Good: what the applications are known to do. A sudden zero means that clients do "
                "not get through, or are not there.",
                stacked=True,
            ),
            Panel(
                "Requests by code",
                "reqps",
                [(f"sum by (code) (rate(cloudpaxos_rpc_duration_seconds_count{{{N}}}{RATE}))", "{{code}}")],
                "How requests end. Good: OK nearly everywhere. INVALID_ARGUMENT, NOT_FOUND, OUT_OF_RANGE and the like are "
                "mistakes of clients.",
                stacked=True,
            ),
            Panel(
                "Errors by method",
                "reqps",
                [
                    (
                        "sum by (method, code) (rate(cloudpaxos_rpc_duration_seconds_count{"
                        f'{N}, code!="OK"}}{RATE})) or vector(0)',
                        "{{method}} {{code}}",
                    )
                ],
                "Good: nothing, or a trickle of CANCELLED; much of it means that clients give up waiting. UNAVAILABLE and "
                "DEADLINE_EXCEEDED: no leader, no sequencer, no majority. RESOURCE_EXHAUSTED: a queue at its bound or a full disk. INTERNAL: read the log.",
            ),
            Panel(
                "Latency of all requests",
                "s",
                [
                    (quantile(q, "cloudpaxos_rpc_duration_seconds", "job", f'{N}, code="OK"'), f"p{name} {{{{job}}}}")
                    for q, name in ((0.5, "50"), (0.9, "90"), (0.99, "99"))
                ],
                "From a request's headers to its answer's, where it was OK. Good: p50 close to the log's sync for writes, "
                "below a millisecond for reads, and p99 not more than ten times that. Bad: p99 above 0.5 s.",
                log=True,
            ),
            Panel(
                "p99 by method",
                "s",
                [(quantile(0.99, "cloudpaxos_rpc_duration_seconds", "method", f'{N}, code="OK"'), "{{method}}")],
                "Good: flat. If only writes grew, look at syncs and commits; if reads did, too, at CPU and the mailbox. "
                "Large ranges are slow by nature. The line is where somebody is told.",
                steps=[(None, "green"), (0.5, "red")],
                log=True,
            ),
            Panel(
                "Distribution of latency",
                "s",
                [(f'sum by (le) (increase(cloudpaxos_rpc_duration_seconds_bucket{{{N}, code="OK"}}{RATE}))', "{{le}}")],
                "Good: one or two narrow bands, reads and writes. A second band far above means that some requests wait "
                "for something: retries, a slow replica, a queue.",
                kind="heatmap",
            ),
        ],
    ),
    (
        "Leaders and replicas",
        [
            Panel(
                "Leader of each group",
                "none",
                [('max by (group) (cloudpaxos_group_leader_node{group=~"$group"})', "group {{group}}")],
                "The number of the node that leads, as replicas know; 0 is none. Good: long bands of one colour. Many "
                "short ones: elections that do not come to rest.",
                kind="state-timeline",
            ),
            Panel(
                "Groups led by each node",
                "none",
                [(f"sum by (node) (cloudpaxos_group_leads{{{G}}})", "{{node}}")],
                "Leaders do most of the work. Good: spread evenly. After a node was down all may sit on the others, which "
                "is safe and only less even.",
                stacked=True,
            ),
            Panel(
                "Replicas behind their leader",
                "none",
                [('cloudpaxos:group_peer_lag_slots:max{group=~"$group"}', "group {{group}}, node {{peer}}")],
                "Log entries that a replica is behind its leader. Good: a few, those on their way. Bad: a line that "
                "rises for minutes; the group has one replica less until it comes down.",
            ),
            Panel(
                "Revisions per second",
                "ops",
                [("rate(cloudpaxos:revision:max[$__rate_interval])", "all groups")],
                "Writes that were ordered, over all groups. Good: about the writes above. Zero while clients write means "
                "that the sequencer hands nothing out.",
            ),
        ],
    ),
    (
        "Shards and balance",
        [
            Panel(
                "Load of each group",
                "reqps",
                [
                    (f"sum by (group) (cloudpaxos_group_writes_per_second{{{G}}})", "group {{group}}: writes"),
                    (f"sum by (group) (cloudpaxos_group_reads_per_second{{{G}}})", "group {{group}}: reads"),
                ],
                "Requests to the shards of a group, lately. Good: alike, as far as shards can be shared out. One group far "
                "above the others for minutes: `cloudpaxos balance explain` says why nothing is done.",
            ),
            Panel(
                "Busiest shard of each group",
                "reqps",
                [(f"max by (group) (cloudpaxos_group_busiest_shard_per_second{{{G}}})", "group {{group}}")],
                "Good: a fraction of the group's load. About all of it: one range, or one key, is hot; "
                "`cloudpaxos shards top` names it.",
            ),
            Panel(
                "Bytes of each group",
                "bytes",
                [(f"max by (group) (cloudpaxos_group_stored_bytes{{{G}}})", "group {{group}}")],
                "What its shards hold, history included, about. Good: alike.",
            ),
            Panel(
                "Shards of each group",
                "none",
                [('max by (group) (cloudpaxos_group_shards{group=~"$group"})', "group {{group}}")],
                "Good: steady, with steps where the balancer or an operator moves some.",
            ),
            Panel(
                "Changes of shards",
                "none",
                [
                    (f"max by (kind) (cloudpaxos_shard_changes_under_way{{{N}}})", "{{kind}} under way"),
                    (f"max(increase(cloudpaxos_shard_changes_total{{{N}}}{RATE}))", "planned"),
                ],
                "Moves, splits and merges. Good: now and then some, none that stays. An alert tells of one that does.",
            ),
            Panel(
                "Members change, balancer paused",
                "none",
                [
                    ('max by (group) (cloudpaxos_group_members_change{group=~"$group"})', "group {{group}} changes"),
                    (f"max(cloudpaxos_balancer_paused{{{N}}})", "paused"),
                ],
                "1 while a group is to have other members, or while somebody has paused the balancer. Good: 0 most of the "
                "time.",
            ),
        ],
    ),
    (
        "Saturation",
        [
            Panel(
                "CPU",
                "percentunit",
                [(f'rate(process_cpu_seconds_total{{job=~"cloudpaxos-.+", {N}}}{RATE})', "{{node}}")],
                "Cores used; 1 is one core. Good: well below the cores of the machine. A node that is out of CPU time "
                "misses heartbeats and loses its leaders.",
            ),
            Panel(
                "Requests being answered",
                "none",
                [(f"cloudpaxos_rpc_in_flight{{{N}}}", "{{node}}")],
                "Good: about rate times latency, steady. Rising without a rise in rate: something behind is slow.",
            ),
            Panel(
                "Fullest queue of each node",
                "percentunit",
                [
                    (
                        "max by (node) ("
                        f"cloudpaxos_mailbox_waiting{{{N}}} / 65536"
                        f" or cloudpaxos_group_waiting_writes_bytes{{{N}}} / (64 * 1024 * 1024)"
                        f" or cloudpaxos_gateway_calls_bytes{{{N}}} / (512 * 1024 * 1024))",
                        "{{node}}: requests",
                    ),
                    (f"max by (node) (cloudpaxos_group_apply_lag_bytes{{{N}}}) / (64 * 1024 * 1024)", "{{node}}: apply"),
                    (f"cloudpaxos_wal_queued_bytes{{{N}}} / (8 * 1024 * 1024)", "{{node}}: log"),
                    (f"max by (node) (cloudpaxos_peer_queued_bytes{{{N}}}) / (16 * 1024 * 1024)", "{{node}}: peers"),
                ],
                "What waits, as a share of the default bound. Good: near 0. From 75 % on somebody is told; at 100 % "
                "requests are refused with RESOURCE_EXHAUSTED. Which part is full says what is slow.",
                steps=[(None, "green"), (0.75, "red")],
            ),
            Panel(
                "Refused",
                "ops",
                [
                    (f"sum by (node) (rate(cloudpaxos_group_writes_refused_total{{{G}}}{RATE}))", "{{node}}: writes"),
                    (f"rate(cloudpaxos_mailbox_refused_total{{{N}}}{RATE})", "{{node}}: mailbox"),
                ],
                "Good: 0. More means that a limit holds the load off; see which queue is full, or whether a disk is.",
            ),
        ],
    ),
]

CONSENSUS = [
    (
        "Leaders",
        [
            Panel(
                "Leaders per group",
                "none",
                [('cloudpaxos:group_leaders:sum{group=~"$group"}', "group {{group}}")],
                "Replicas that lead, and reach a majority. Good: 1. 0: no leader. 2 for one scrape: a change between two "
                "scrapes.",
                kind="state-timeline",
                steps=[(None, "red"), (1, "green"), (2, "orange")],
            ),
            Panel(
                "Leader changes",
                "none",
                [(f"sum by (group) (increase(cloudpaxos_group_leader_changes_total{{{G}}}{RATE}))", "group {{group}}")],
                "Times that replicas saw another leader, summed over them. Good: 0 but for restarts and deployments. Each "
                "change costs the group about a second.",
            ),
            Panel(
                "Terms begun",
                "none",
                [(f"sum by (node) (increase(cloudpaxos_group_terms_led_total{{{G}}}{RATE}))", "{{node}}")],
                "Times that a node's replicas became leader. Good: 0. Two nodes in turn: they cannot agree who reaches "
                "whom; look at reachability.",
            ),
            Panel(
                "Ballots",
                "none",
                [(f"max by (group) (cloudpaxos_group_ballot_round{{{G}}})", "group {{group}}")],
                "The round of the promised ballot. Good: flat. It rises with each election, also with those that nobody "
                "wins.",
            ),
            Panel(
                "Leases held",
                "none",
                [(f"sum by (group) (cloudpaxos_group_lease_held{{{G}}})", "group {{group}}")],
                "Good: 1 with --read-mode lease: the leader reads without asking. 0: it asks a majority for each batch of "
                "reads, which is safe and slower.",
            ),
            Panel(
                "Suspect and fenced replicas",
                "none",
                [
                    (f"sum by (node) (cloudpaxos_group_suspect{{{G}}})", "{{node}} suspect"),
                    (f"sum by (node) (cloudpaxos_group_fenced{{{G}}})", "{{node}} fenced"),
                ],
                "Replicas that cannot prove their log and wait for repair, and those whose state is not what the others "
                "have. Good: 0. More than 0 for minutes: a damaged disk or memory, and no majority to repair from.",
            ),
        ],
    ),
    (
        "A write's way",
        [
            Panel(
                "Waiting for revisions (stamp)",
                "s",
                [
                    (quantile(q, "cloudpaxos_group_stamp_duration_seconds", "group", G), f"p{name} group {{{{group}}}}")
                    for q, name in ((0.5, "50"), (0.99, "99"))
                ],
                "From a batch's request to the sequencer until its answer. Good: next to nothing where the sequencer is on "
                "the leader's node, a round trip otherwise. Bad: more than commits take.",
                log=True,
            ),
            Panel(
                "Sync of the log",
                "s",
                [
                    (quantile(q, "cloudpaxos_wal_sync_duration_seconds", "node", N), f"p{name} {{{{node}}}}")
                    for q, name in ((0.5, "50"), (0.99, "99"))
                ],
                "One group commit: write and fdatasync. Good: below 2 ms on NVMe, below 20 ms on network disks, alike on "
                "all nodes. The line, 100 ms, is where somebody is told.",
                steps=[(None, "green"), (0.1, "red")],
                log=True,
            ),
            Panel(
                "Commit",
                "s",
                [
                    (quantile(q, "cloudpaxos_group_commit_duration_seconds", "group", G), f"p{name} group {{{{group}}}}")
                    for q, name in ((0.5, "50"), (0.99, "99"))
                ],
                "From an entry's proposal until a quorum has it and the leader has applied it. Good: the second slowest "
                "node's sync plus a round trip. Far above: the network, or the store behind.",
                log=True,
            ),
            Panel(
                "Commands per entry",
                "none",
                [(average("cloudpaxos_group_batch_commands", "group", G), "group {{group}}")],
                "Average of what is proposed together. Good: 1 when idle, and growing with the load: that is what keeps "
                "throughput up. The bound is --batch-entries-max.",
            ),
            Panel(
                "Bytes per entry",
                "bytes",
                [
                    (average("cloudpaxos_group_batch_bytes", "group", G), "average, group {{group}}"),
                    (quantile(0.99, "cloudpaxos_group_batch_bytes", "group", G), "p99, group {{group}}"),
                ],
                "Good: below --batch-bytes-max (1 MiB). At it, all the time: values are large and entries cannot grow "
                "with the load.",
                log=True,
            ),
            Panel(
                "Records per sync",
                "none",
                [(average("cloudpaxos_wal_records_per_sync", "node", N), "{{node}}")],
                "What all groups of a node make durable at once. Good: growing with the load.",
            ),
            Panel(
                "Entries applied",
                "ops",
                [(f"sum by (node) (rate(cloudpaxos_group_applied_entries_total{{{G}}}{RATE}))", "{{node}}")],
                "Good: the same on all nodes. A node below the others falls behind, one above catches up.",
            ),
            Panel(
                "Decided, not yet applied: bytes",
                "bytes",
                [(f"max by (node) (cloudpaxos_group_apply_lag_bytes{{{G}}})", "{{node}}")],
                "Good: near 0. At --apply-lag-bytes-max (64 MiB) the group waits for the store; see \"Storage\".",
            ),
            Panel(
                "Waiting at leaders",
                "none",
                [
                    (f"sum by (group) (cloudpaxos_group_waiting_writes{{{G}}})", "writes, group {{group}}"),
                    (f"sum by (group) (cloudpaxos_group_waiting_reads{{{G}}})", "reads, group {{group}}"),
                ],
                "Writes that wait for a revision, reads that wait for a write before them. Good: no more than the clients "
                "in flight. Growing: the sequencer or the log does not keep up.",
            ),
        ],
    ),
    (
        "The log",
        [
            Panel(
                "Entries kept",
                "none",
                [
                    (
                        f"max by (node, group) (cloudpaxos_group_length_slot{{{G}}}"
                        f" - cloudpaxos_group_first_kept_slot{{{G}}})",
                        "{{node}}, group {{group}}",
                    )
                ],
                "What a replica keeps for peers that lag. Good: bounded, a sawtooth. Growing without end: a peer is away "
                "and the log waits for it.",
            ),
            Panel(
                "Decided, not yet applied: entries",
                "none",
                [
                    (
                        f"max by (node) (cloudpaxos_group_decided_slot{{{G}}} - cloudpaxos_group_applied_slot{{{G}}})",
                        "{{node}}",
                    )
                ],
                "Entries between decision and application. Good: a few. Many: the store is slow.",
            ),
            Panel(
                "Segments of the write-ahead log",
                "bytes",
                [(f"cloudpaxos_wal_live_bytes{{{N}}}", "{{node}}")],
                "Good: a few segments of 64 MiB. Growing: something keeps old records from being released, a flush of "
                "the store or a lagging peer.",
            ),
            Panel(
                "Bytes logged",
                "Bps",
                [(f"rate(cloudpaxos_wal_payload_bytes_total{{{N}}}{RATE})", "{{node}}")],
                "Good: alike on all nodes, and well below what the disks write.",
            ),
            Panel(
                "Waiting for the log's thread",
                "bytes",
                [(f"cloudpaxos_wal_queued_bytes{{{N}}}", "{{node}}")],
                "Good: near 0. At --wal-queue-bytes-max (8 MiB) groups wait for the disk.",
            ),
            Panel(
                "Revisions in reserve",
                "none",
                [("max(cloudpaxos_sequencer_reserved_revision) - max(cloudpaxos_sequencer_revision)", "in reserve")],
                "Revisions that the sequencer may hand out before it writes to its log again. Good: a sawtooth above 0. "
                "At 0 all writes wait for the shardmaster's group.",
            ),
        ],
    ),
    (
        "Nodes among themselves",
        [
            Panel(
                "Reachable",
                "none",
                [(f"cloudpaxos_peer_reachable{{{N}}}", "{{node}} to node {{peer}}")],
                "1 where a heartbeat came back lately. Good: 1 everywhere. One red line: that link. All lines to one node: "
                "that node.",
                kind="state-timeline",
                steps=FLAG,
            ),
            Panel(
                "Streams",
                "none",
                [
                    (f"sum by (node) (cloudpaxos_peer_connected{{{N}}})", "{{node}}: up"),
                    (f"sum by (node) (increase(cloudpaxos_peer_streams_total{{{N}}}{RATE}))", "{{node}}: new"),
                ],
                "Good: one up for each other node and none new. New ones again and again: connections break.",
            ),
            Panel(
                "Waiting to be sent",
                "bytes",
                [(f"cloudpaxos_peer_queued_bytes{{{N}}}", "{{node}} to node {{peer}}")],
                "Good: near 0. At --peer-queue-bytes-max (16 MiB) messages are dropped: the network or the receiver is "
                "slow.",
            ),
            Panel(
                "Messages dropped",
                "ops",
                [(f"rate(cloudpaxos_peer_dropped_messages_total{{{N}}}{RATE})", "{{node}} to node {{peer}}")],
                "Good: 0, but for nodes that are down. They are sent again, later.",
            ),
            Panel(
                "Mailbox",
                "none",
                [(f"cloudpaxos_mailbox_waiting{{{N}}}", "{{node}}: {{kind}}")],
                "Inputs that wait for the node's next turn; of each kind 65,536 at most. Good: hundreds at most. Growing: "
                "the turn loop is out of CPU time.",
            ),
            Panel(
                "Shards per group",
                "none",
                [('max by (group) (cloudpaxos_group_shards{group=~"$group"})', "group {{group}}")],
                "Good: spread evenly over the data groups. The shardmaster's group has none.",
            ),
            Panel(
                "Version of the shard map",
                "none",
                [(f"cloudpaxos_shard_map_version{{{N}}}", "{{node}}")],
                "Good: the same on all nodes. One that stays behind does not hear of the shardmaster's group.",
            ),
        ],
    ),
]

STORAGE = [
    (
        "Disk",
        [
            Panel(
                "Disk full",
                "none",
                [(f"cloudpaxos_disk_full{{{N}}}", "{{node}}")],
                "1 while a node refuses writes for want of room. Good: 0. Make room on its volume; it recovers by itself.",
                kind="state-timeline",
                steps=GOOD_IF_ZERO,
            ),
            Panel(
                "Bytes on disk",
                "bytes",
                [
                    (f"cloudpaxos_rocksdb_files_bytes{{{N}}}", "{{node}}: store"),
                    (f"cloudpaxos_wal_live_bytes{{{N}}}", "{{node}}: log"),
                ],
                "Good: growing as the data does, alike on nodes with the same groups. A saw's tooth of the store is "
                "compaction; it needs room for its largest tooth.",
            ),
            Panel(
                "Rows",
                "none",
                [(f"cloudpaxos_rocksdb_estimated_rows{{{N}}}", "{{node}}")],
                "Keys and their history, about. Growing while the number of keys does not: nobody compacts old revisions.",
            ),
        ],
    ),
    (
        "RocksDB",
        [
            Panel(
                "Writes stopped",
                "none",
                [(f"cloudpaxos_rocksdb_writes_stopped{{{N}}}", "{{node}}")],
                "1 while writes wait for flushes or compactions. Good: 0 always; somebody is woken after a minute.",
                kind="state-timeline",
                steps=GOOD_IF_ZERO,
            ),
            Panel(
                "Writes slowed down to",
                "Bps",
                [(f"cloudpaxos_rocksdb_delayed_write_bytes_per_second{{{N}}}", "{{node}}")],
                "Good: 0, which means not at all. Otherwise compactions are behind the writes.",
            ),
            Panel(
                "Failed flushes and compactions",
                "none",
                [(f"increase(cloudpaxos_rocksdb_background_errors_total{{{N}}}{RATE})", "{{node}}")],
                "Good: 0. Anything else is a disk that is full or faulty.",
            ),
            Panel(
                "Files of level 0",
                "none",
                [(f"cloudpaxos_rocksdb_level_0_files{{{N}}}", "{{node}}")],
                "Good: below 10, up and down. Rising: compactions do not keep up, reads become slow, then writes stop.",
            ),
            Panel(
                "Pending compactions",
                "bytes",
                [(f"cloudpaxos_rocksdb_compaction_pending_bytes{{{N}}}", "{{node}}")],
                "Good: coming back to 0 between bursts. Rising for an hour: more is written than the disk bears.",
            ),
            Panel(
                "Work in the background",
                "none",
                [
                    (f"cloudpaxos_rocksdb_compactions_running{{{N}}}", "{{node}}: compactions"),
                    (f"cloudpaxos_rocksdb_flushes_running{{{N}}}", "{{node}}: flushes"),
                ],
                "Good: now and then. All the time: see pending compactions.",
            ),
            Panel(
                "Memtables",
                "bytes",
                [(f"cloudpaxos_rocksdb_memtables_bytes{{{N}}}", "{{node}}")],
                "What is not yet flushed; after a crash it comes from the log. Good: a sawtooth.",
            ),
            Panel(
                "Block cache",
                "bytes",
                [(f"cloudpaxos_rocksdb_block_cache_bytes{{{N}}}", "{{node}}")],
                "Good: full on a busy node.",
            ),
            Panel(
                "Applied",
                "Bps",
                [(f"sum by (node) (rate(cloudpaxos_group_applied_bytes_total{{{G}}}{RATE}))", "{{node}}")],
                "What the groups' logs bring to the store. Good: alike on all nodes.",
            ),
        ],
    ),
    (
        "Reads",
        [
            Panel(
                "Row cache: share of hits",
                "percentunit",
                [
                    (
                        f'rate(cloudpaxos_row_cache_lookups_total{{{N}, result="hit"}}{RATE})'
                        f" / ignoring (result) sum without (result) (rate(cloudpaxos_row_cache_lookups_total{{{N}}}{RATE}))",
                        "{{node}}",
                    )
                ],
                "Good: what the access pattern allows; above 90 % if few keys are hot. A fall means that the hot keys do "
                "not fit any more.",
                max=1,
            ),
            Panel(
                "Row cache: lookups",
                "ops",
                [
                    (
                        f"sum by (node, result) (rate(cloudpaxos_row_cache_lookups_total{{{N}}}{RATE}))",
                        "{{node}}: {{result}}",
                    )
                ],
                "Each miss goes to RocksDB. Good: fewer misses than hits, unless keys are read once.",
                stacked=True,
            ),
            Panel(
                "Row cache: size",
                "bytes",
                [(f"cloudpaxos_row_cache_bytes{{{N}}}", "{{node}}")],
                "Good: at its bound on a busy node, and below while the data is small.",
            ),
            Panel(
                "Ranges being read",
                "none",
                [(f"cloudpaxos_range_scans{{{N}}}", "{{node}}")],
                "Reads of ranges have threads of their own. Good: a few. Many for long: clients read everything at once; "
                "have them page.",
            ),
        ],
    ),
]

P = f'job=~"cloudpaxos-.+", {N}'

PROCESS = [
    (
        "Processes",
        [
            Panel(
                "Versions",
                "none",
                [(f"count by (version) (cloudpaxos_build{{{N}}})", "{{version}}")],
                "Processes of each version. Good: one version, but for the time of an upgrade.",
                stacked=True,
            ),
            Panel(
                "Up since",
                "s",
                [(f"time() - process_start_time_seconds{{{P}}}", "{{node}}")],
                "Good: rising lines. Each fall is a restart; many are a crash loop.",
            ),
            Panel(
                "CPU",
                "percentunit",
                [(f"rate(process_cpu_seconds_total{{{P}}}{RATE})", "{{node}}")],
                "Cores used; 1 is one core. Good: below the cores that the process may use.",
            ),
            Panel(
                "Memory",
                "bytes",
                [(f"process_resident_memory_bytes{{{P}}}", "{{node}}")],
                "Good: a plateau once the caches are full, below the limit of the container. Rising without end: a leak.",
            ),
            Panel(
                "Address space",
                "bytes",
                [(f"process_virtual_memory_bytes{{{P}}}", "{{node}}")],
                "Memory mapped, not held. Good: flat.",
            ),
            Panel(
                "Threads",
                "none",
                [(f"process_threads{{{P}}}", "{{node}}")],
                "Good: flat, a few dozen at most.",
            ),
            Panel(
                "File descriptors",
                "percentunit",
                [(f"process_open_fds{{{P}}} / process_max_fds{{{P}}}", "{{node}}")],
                "Share of what is allowed. Good: below 50 %. The line is where somebody is told; at 100 % no connection is "
                "accepted and no file opened.",
                steps=[(None, "green"), (0.8, "red")],
            ),
        ],
    ),
    (
        "Ports",
        [
            Panel(
                "Connections",
                "none",
                [(f"cloudpaxos_connections{{{N}}}", "{{node}}: {{port}}")],
                "Open at each port; --connections-max is the bound (8192). Good: steady. Growing: clients do not close.",
            ),
            Panel(
                "New connections",
                "cps",
                [(f"rate(cloudpaxos_connections_accepted_total{{{N}}}{RATE})", "{{node}}: {{port}}")],
                "Good: few. As many as requests: clients connect for each request, which costs a TLS handshake each.",
            ),
            Panel(
                "Handshakes refused",
                "cps",
                [(f"rate(cloudpaxos_handshakes_refused_total{{{N}}}{RATE})", "{{node}}: {{port}}")],
                "Good: 0. At the peer port: one of the nodes has a wrong certificate. At the client port also: load "
                "balancers that probe with bare TCP.",
            ),
            Panel(
                "Requests without token or certificate",
                "reqps",
                [(f"rate(cloudpaxos_requests_unauthenticated_total{{{N}}}{RATE})", "{{node}}: {{port}}")],
                "Good: 0. A client has an old token, or somebody tries.",
            ),
            Panel(
                "Certificates expire in",
                "s",
                [
                    (
                        f"min by (node, port) (cloudpaxos_certificate_expiry_timestamp_seconds{{{N}}}) - time()",
                        "{{node}}: {{port}}",
                    )
                ],
                "Good: more than two weeks (the line); something renews them in time. Below 0: nobody connects.",
                steps=[(None, "red"), (14 * 86400, "green")],
            ),
        ],
    ),
    (
        "Gateways",
        [
            Panel(
                "Calls in flight",
                "none",
                [(f"cloudpaxos_gateway_calls{{{N}}}", "{{node}}")],
                "Good: about rate times latency; 65,536 is the bound.",
            ),
            Panel(
                "Memory of calls",
                "bytes",
                [(f"cloudpaxos_gateway_calls_bytes{{{N}}}", "{{node}}")],
                "Requests and answers that are held; 512 MiB is the bound. Good: far below. Clients that read large ranges "
                "drive it up.",
            ),
            Panel(
                "Retries",
                "ops",
                [(f"rate(cloudpaxos_gateway_retries_total{{{N}}}{RATE})", "{{node}}")],
                "Attempts beyond the first. Good: near 0, with a burst at each change of leaders. All the time: the "
                "gateway does not find the leaders.",
            ),
            Panel(
                "Stray replies",
                "ops",
                [(f"rate(cloudpaxos_gateway_stray_replies_total{{{N}}}{RATE})", "{{node}}")],
                "Replies that came after their call had given up. Good: near 0. Otherwise nodes answer too late: latency.",
            ),
            Panel(
                "Revisions behind the cluster",
                "none",
                [
                    (
                        f"clamp_min(scalar(max(cloudpaxos_known_revision)) - cloudpaxos_gateway_known_revision{{{N}}}, 0)",
                        "{{node}}",
                    )
                ],
                "How far a gateway's newest revision is behind the nodes'. It learns revisions with answers, so one without "
                "requests stays behind and is well. Bad: far behind and busy.",
            ),
            Panel(
                "Shard map in use",
                "none",
                [(f"cloudpaxos_gateway_shard_map_version{{{N}}}", "{{node}}")],
                "The version that requests are routed by. 0: none, nothing can be routed. An older one than the nodes' is "
                "corrected by the first request that goes astray.",
            ),
        ],
    ),
]

DASHBOARDS = {
    "overview": ("CloudPaxos: Cluster overview", "Is the cluster well, and what do its clients see?", OVERVIEW, True),
    "consensus": ("CloudPaxos: Consensus and log", "Elections, and a write's way through the log.", CONSENSUS, True),
    "storage": ("CloudPaxos: Storage", "Disks, RocksDB and the cache in front of it.", STORAGE, True),
    "process": ("CloudPaxos: Process and ports", "Processes, connections, certificates, gateways.", PROCESS, False),
}


def variable(name, label, query):
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": f"variable-{name}"},
        "definition": query,
        "refresh": 2,
        "sort": 3 if name == "group" else 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "hide": 0,
    }


def dashboard(key, title, text, rows, grouped):
    panels, number, y = [], 0, 0
    for row_title, row in rows:
        number += 1
        panels.append(
            {
                "id": number,
                "type": "row",
                "title": row_title,
                "collapsed": False,
                "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
                "panels": [],
            }
        )
        x, y, height = 0, y + 1, 0
        for panel in row:
            if x + panel.width > WIDTH:
                x, y, height = 0, y + height, 0
            number += 1
            panels.append(panel.json(number, x, y))
            x, height = x + panel.width, max(height, panel.height)
        y += height
    variables = [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "refresh": 1, "hide": 0},
        variable("node", "Node", "label_values(cloudpaxos_build, node)"),
    ]
    if grouped:
        variables.append(variable("group", "Group", "label_values(cloudpaxos_group_leads, group)"))
    return {
        "uid": f"cloudpaxos-{key}",
        "title": title,
        "description": text,
        "tags": ["cloudpaxos"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [
            {
                "type": "dashboards",
                "title": "CloudPaxos",
                "tags": ["cloudpaxos"],
                "asDropdown": True,
                "includeVars": True,
                "keepTime": True,
            }
        ],
        "annotations": {"list": []},
        "templating": {"list": variables},
        "panels": panels,
    }


def main():
    check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not check:
        sys.exit(__doc__)
    texts = {
        DIRECTORY / f"{key}.json": json.dumps(dashboard(key, *parts), indent=2) + "\n" for key, parts in DASHBOARDS.items()
    }
    if not check:
        for path, text in texts.items():
            path.write_text(text)
        return
    strangers = set(DIRECTORY.glob("*.json")) - set(texts)
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
    for path in [*stale, *strangers]:
        print(f"{path.name} is not what {Path(__file__).name} writes: change that script and run it", file=sys.stderr)
    sys.exit(1 if stale or strangers else 0)


if __name__ == "__main__":
    main()
