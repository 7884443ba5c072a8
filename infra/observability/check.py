#!/usr/bin/env python3
"""Asks a Prometheus that scrapes a cluster under some load whether dashboards and rules mean what exists.

    check.py URL [--healthy]

Fails, and names each, for
  - a query of a dashboard that is no PromQL, returns no series, or nothing but "not a number";
  - a variable of a dashboard without a value;
  - a metric or label in a dashboard or rule that no target shows and no rule records: mostly a typo;
  - a rule that could not be evaluated;
  - a panel without a description or a unit;
  - a runbook_url whose section is not there, once its document is;
  - with --healthy: an alert that fires, or is about to. Alerts about speed may be about to, for a machine
    that tests is slow at times.
"""

import json
import math
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

# What Grafana would put in.
VARIABLES = {
    "__rate_interval": "15s",
    "__interval": "15s",
    "__range": "1m",
    "interval": "15s",
    "node": ".*",
    "group": ".*",
}

# There only while an alert is about to fire.
MADE_BY_PROMETHEUS = {"ALERTS"}
# Alerts that depend on how fast the machine is.
ABOUT_SPEED = {"CloudPaxosLogSyncSlow", "CloudPaxosRequestsSlow"}

KEYWORDS = {"and", "or", "unless", "offset", "bool", "inf", "nan", "start", "end", "atan2"}
# After these comes a list of labels in parentheses.
LABEL_LISTS = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
STRING = re.compile(r'"(?:[^"\\]|\\.)*"' + r"|'(?:[^'\\]|\\.)*'")
MATCHERS = re.compile(r"\{([^}]*)\}")
DURATION = re.compile(r"\[[^\]]*\]")
NAME = re.compile(r"(?<![\w:.])([A-Za-z_:][\w:]*)(\s*\()?")
LABEL = re.compile(r"[A-Za-z_]\w*")


class Prometheus:
    """Its HTTP API."""

    def __init__(self, url):
        self.url = url.rstrip("/")

    def get(self, path, **parameters):
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            # Prometheus says in the body what it does not like.
            raise ValueError(json.load(error).get("error", str(error))) from None

    def query(self, expression):
        return self.get("query", query=expression)["result"]


def substituted(expression):
    """The expression as Grafana would send it."""
    return re.sub(r"\$\{?(\w+)\}?", lambda found: VARIABLES.get(found[1], found[0]), expression)


def names(expression):
    """The metrics and the labels in a PromQL expression. Enough of a parser for what is written here."""
    labels = set()
    rest = STRING.sub('""', expression)
    for matchers in MATCHERS.findall(rest):
        labels.update(LABEL.findall(matchers))
    rest = MATCHERS.sub(" ", rest)
    for listed in LABEL_LISTS.findall(rest):
        labels.update(LABEL.findall(listed))
    rest = DURATION.sub(" ", LABEL_LISTS.sub(" ", rest))
    metrics = {
        name
        for name, call in NAME.findall(rest)
        # Functions and operators are what parentheses follow; `and (…)` is among them.
        if not call and name.lower() not in KEYWORDS
    }
    return metrics, labels


def panels(dashboard):
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", [])


class Check:
    """Collects what is wrong."""

    def __init__(self, prometheus):
        self.prometheus = prometheus
        self.wrong = []
        self.queries = 0
        # Everything that was there at any time since Prometheus started.
        self.metrics = set(prometheus.get("label/__name__/values")) | MADE_BY_PROMETHEUS
        self.labels = set(prometheus.get("labels"))
        self.rules = [
            dict(rule, group=group["name"]) for group in prometheus.get("rules")["groups"] for rule in group["rules"]
        ]
        self.alerts = [rule for rule in self.rules if rule["type"] == "alerting"]
        # What an alert or a label_replace adds.
        self.made_labels = {"alertname", "alertstate", "queue"}
        for rule in self.rules:
            self.made_labels.update(rule.get("labels", {}))
            if rule["type"] == "recording":
                self.metrics.add(rule["name"])

    def names_exist(self, where, expression):
        metrics, labels = names(expression)
        for metric in sorted(metrics - self.metrics):
            self.wrong.append(f"{where}: no metric is called {metric}, in: {expression}")
        for label in sorted(labels - self.labels - self.made_labels):
            self.wrong.append(f"{where}: no series has a label {label}, in: {expression}")

    def returns_something(self, where, expression):
        self.queries += 1
        try:
            result = self.prometheus.query(expression)
        except ValueError as error:
            self.wrong.append(f"{where}: {error}, in: {expression}")
            return
        if not result:
            self.wrong.append(f"{where}: no series, for: {expression}")
        elif all(math.isnan(float(series["value"][1])) for series in result):
            self.wrong.append(f"{where}: not a number, for: {expression}")

    def dashboard(self, path):
        dashboard = json.loads(path.read_text())
        for variable in dashboard["templating"]["list"]:
            where = f"{path.name}: variable {variable['name']}"
            if variable["type"] == "query":
                found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"])
                if found is None:
                    self.wrong.append(f"{where}: only label_values(metric, label) is understood here")
                    continue
                metric, label = found.groups()
                self.names_exist(where, metric)
                self.returns_something(where, f"count by ({label}) ({metric})")
            elif variable["type"] != "datasource":
                self.wrong.append(f"{where}: of a type that is not understood here")
        for panel in panels(dashboard):
            if panel["type"] == "row":
                continue
            where = f"{path.name}: panel \"{panel['title']}\""
            if not panel.get("description"):
                self.wrong.append(f"{where}: no description")
            if not panel["fieldConfig"]["defaults"].get("unit"):
                self.wrong.append(f"{where}: no unit")
            if not panel["targets"]:
                self.wrong.append(f"{where}: no query")
            for target in panel["targets"]:
                query = substituted(target["expr"])
                here = f"{where}, query {target['refId']}"
                if "$" in query:
                    self.wrong.append(f"{here}: a variable without a value, in: {query}")
                self.names_exist(here, query)
                self.returns_something(here, query)

    def recorded_and_alerts(self):
        if not self.alerts:
            self.wrong.append("Prometheus has loaded no alert")
        for rule in self.rules:
            where = f"rule {rule['name']}"
            if rule["health"] != "ok":
                self.wrong.append(f"{where}: {rule['health']} {rule.get('lastError', '')}")
            self.names_exist(where, rule["query"])
        for alert in self.alerts:
            where = f"alert {alert['name']}"
            if alert["labels"].get("severity") not in ("critical", "warning", "info"):
                self.wrong.append(f"{where}: no severity")
            for annotation in ("summary", "description", "runbook_url"):
                if not alert["annotations"].get(annotation):
                    self.wrong.append(f"{where}: no {annotation}")
            self.runbook(where, alert["annotations"].get("runbook_url", ""))

    def runbook(self, where, url):
        path, _, anchor = url.partition("#")
        document = ROOT / path
        if not path or not document.is_file():
            return
        # A heading's anchor as GitHub and most others make it.
        headings = re.findall(r"^#+\s+(.*)$", document.read_text(), re.MULTILINE)
        anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
        if anchor not in anchors:
            self.wrong.append(f"{where}: {path} has no section #{anchor}")

    def healthy(self):
        for alert in self.prometheus.get("alerts")["alerts"]:
            name = alert["labels"]["alertname"]
            if alert["labels"].get("severity") == "info":
                continue
            if alert["state"] == "pending" and name in ABOUT_SPEED:
                continue
            self.wrong.append(f"alert {name} is {alert['state']}: {alert['annotations'].get('summary')}")


def main():
    arguments = [argument for argument in sys.argv[1:] if argument != "--healthy"]
    if len(arguments) != 1 or arguments[0].startswith("-"):
        sys.exit(__doc__)
    check = Check(Prometheus(arguments[0]))
    dashboards = sorted((HERE / "grafana" / "dashboards").glob("*.json"))
    if not dashboards:
        check.wrong.append("there are no dashboards")
    for path in dashboards:
        check.dashboard(path)
    check.recorded_and_alerts()
    if "--healthy" in sys.argv[1:]:
        check.healthy()
    for wrong in check.wrong:
        print(wrong, file=sys.stderr)
    print(f"{len(dashboards)} dashboards, {check.queries} queries, {len(check.rules)} rules: {len(check.wrong)} wrong")
    sys.exit(1 if check.wrong else 0)


if __name__ == "__main__":
    main()
