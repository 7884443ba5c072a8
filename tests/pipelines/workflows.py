#!/usr/bin/env python3
"""Judges .github: what GitHub would only say when a workflow runs, or never.

Every `run:` calls one script of ci/ and nothing else, so that what runs there runs here. Jobs have an end
and the permissions that they need. Actions are pinned. Cron expressions mean something.
"""

import os
import re
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = ROOT / ".github" / "workflows"
EXPECTED = {"lint", "test", "simulation", "chaos", "benchmarks", "image", "release"}
# GitHub ends a job after six hours.
TIMEOUT_MINUTES_MAX = 360
PERMISSIONS = {"actions", "attestations", "checks", "contents", "deployments", "id-token", "issues", "packages",
               "pages", "pull-requests", "security-events", "statuses"}
# Who may write what; nobody else anything.
WRITES = {"image": {"packages"}, "release": {"contents", "attestations", "id-token"}}
# On these somebody else's code would run with our secrets.
FORBIDDEN_EVENTS = {"pull_request_target", "workflow_run"}
CRON = [("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 6)]


def cron_complaints(expression: str) -> list[str]:
    """What is wrong with a cron expression, as GitHub understands it."""
    fields = expression.split()
    if len(fields) != len(CRON):
        return [f"{expression!r} has {len(fields)} fields, not {len(CRON)}"]
    complaints = []
    for text, (name, low, high) in zip(fields, CRON):
        for item in text.split(","):
            found = re.fullmatch(r"(?:\*|(\d+)(?:-(\d+))?)(?:/(\d+))?", item)
            if not found:
                complaints.append(f"{expression!r}: {item!r} is no {name}")
                continue
            first, last, every = (int(group) if group else None for group in found.groups())
            numbers = [number for number in (first, last) if number is not None]
            if any(not low <= number <= high for number in numbers) or numbers != sorted(numbers) or every == 0:
                complaints.append(f"{expression!r}: {item!r} is no {name} from {low} to {high}")
    return complaints


class Unique(yaml.SafeLoader):
    """Refuses a key that is there twice; the second would win silently. `on` stays a word."""


def mapping(loader: Unique, node: yaml.MappingNode) -> dict:
    keys = [loader.construct_object(key) for key, _ in node.value]
    twice = {key for key in keys if keys.count(key) > 1}
    if twice:
        raise yaml.YAMLError(f"line {node.start_mark.line + 1}: {twice} is there twice")
    return {key: loader.construct_object(value, deep=True) for key, (_, value) in zip(keys, node.value)}


Unique.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
# YAML 1.1 takes `on` for true.
Unique.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Unique.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|false)$"), list("tf"))


class File:
    """A workflow or an action, and what is wrong with it."""

    def __init__(self, path: Path):
        self.path = path
        self.text = path.read_text()
        self.complaints: list[str] = []
        try:
            self.content = yaml.load(self.text, Loader=Unique)
        except yaml.YAMLError as error:
            self.complaints.append(str(error))
            self.content = {}

    def complain(self, text: str) -> None:
        self.complaints.append(text)

    def step(self, where: str, step: dict) -> None:
        if ("run" in step) == ("uses" in step):
            self.complain(f"{where}: a step either runs or uses something")
        for line in str(step.get("run", "")).splitlines():
            self.command(where, line.strip())
        if "uses" in step:
            self.action(where, step["uses"])

    def command(self, where: str, line: str) -> None:
        found = re.fullmatch(r"\./ci/([\w-]+)((?: [\w./=-]+| \"\$[A-Z_]+\")*)", line)
        if not found:
            self.complain(f"{where}: {line!r} is more than the call of a script of ci/")
            return
        script = ROOT / "ci" / found[1]
        if not script.is_file():
            self.complain(f"{where}: there is no ci/{found[1]}")
        elif not os.access(script, os.X_OK):
            self.complain(f"{where}: ci/{found[1]} is not executable")

    def action(self, where: str, uses: str) -> None:
        if uses.startswith("./"):
            if not (ROOT / uses / "action.yml").is_file():
                self.complain(f"{where}: there is no {uses}/action.yml")
            return
        for line in (line for line in self.text.splitlines() if f"uses: {uses}" in line):
            if re.search(r"@[0-9a-f]{40}$", uses):
                if not re.search(r"# v\d+\.\d+\.\d+$", line):
                    self.complain(f"{where}: no version stands beside {uses}")
            elif not re.search(r"@v\d+$", uses) or "pin" not in line.partition("#")[2]:
                self.complain(f"{where}: {uses} is not pinned to a commit")

    def job(self, name: str, job: dict, jobs: dict) -> None:
        where = f"job {name}"
        timeout = job.get("timeout-minutes")
        if not isinstance(timeout, int) or not 0 < timeout <= TIMEOUT_MINUTES_MAX:
            self.complain(f"{where}: no timeout-minutes up to {TIMEOUT_MINUTES_MAX}")
        permissions = job.get("permissions")
        if not isinstance(permissions, dict):
            self.complain(f"{where}: no permissions")
            permissions = {}
        for permission, level in permissions.items():
            if permission not in PERMISSIONS or level not in ("read", "write", "none"):
                self.complain(f"{where}: permission {permission}: {level} does not exist")
            elif level == "write" and permission not in WRITES.get(self.path.stem, set()):
                self.complain(f"{where}: may write {permission}")
        runner = job.get("runs-on", "")
        matrix = job.get("strategy", {}).get("matrix", {})
        if runner == "${{ matrix.runner }}":
            runners = matrix.get("runner", [])
        else:
            runners = [runner]
        for runner in runners or [""]:
            # `latest` becomes another machine without a commit.
            if not re.fullmatch(r"ubuntu-\d\d\.04(-arm)?", runner):
                self.complain(f"{where}: runs on {runner or 'nothing'!r}")
        for used in set(re.findall(r"\bmatrix\.([\w-]+)", str(job))):
            if used not in matrix:
                self.complain(f"{where}: matrix.{used} is not in the matrix")
        container = job.get("container", {})
        if container and not re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*", container.get("image", "")):
            self.complain(f"{where}: the container's image has no version")
        needs = job.get("needs", [])
        for needed in [needs] if isinstance(needs, str) else needs:
            if needed not in jobs:
                self.complain(f"{where}: needs {needed}, which does not exist")
        if not job.get("steps"):
            self.complain(f"{where}: no steps")
        for number, step in enumerate(job.get("steps", []), 1):
            self.step(f"{where}, step {number}", step)
        first = (job.get("steps") or [{}])[0]
        if not first.get("uses", "").startswith("actions/checkout@") or first.get("with", {}).get("persist-credentials") is not False:
            self.complain(f"{where}: does not begin with a checkout that forgets its credentials")

    def workflow(self) -> None:
        for key in ("name", "on", "permissions", "concurrency", "jobs"):
            if key not in self.content:
                self.complain(f"no {key}")
        if self.content.get("permissions") != {}:
            self.complain("the workflow itself has permissions; jobs should")
        if not self.content.get("concurrency", {}).get("group"):
            self.complain("no concurrency group")
        events = self.content.get("on") or {}
        for event in FORBIDDEN_EVENTS & set(events):
            self.complain(f"runs on {event}")
        for schedule in events.get("schedule") or []:
            for complaint in cron_complaints(schedule.get("cron", "")):
                self.complain(complaint)
        jobs = self.content.get("jobs") or {}
        for name, job in jobs.items():
            self.job(name, job, jobs)


def main() -> int:
    # The judge of cron expressions is judged first.
    for good in ("17 1 * * *", "*/15 0-6 1,15 * 0"):
        assert not cron_complaints(good), good
    for bad in ("60 1 * * *", "* * *", "5-1 * * * *", "0 0 0 * *", "0 0 * * 7", "*/0 * * * *", "a * * * *"):
        assert cron_complaints(bad), bad

    failed = 0
    workflows = [File(path) for path in sorted(WORKFLOWS.iterdir())]
    for name in sorted(EXPECTED - {file.path.stem for file in workflows}):
        print(f"there is no workflow {name}", file=sys.stderr)
        failed += 1
    for file in workflows:
        file.workflow()
    actions = [File(path) for path in sorted((ROOT / ".github" / "actions").glob("*/action.yml"))]
    for file in actions:
        for number, step in enumerate(file.content.get("runs", {}).get("steps", []), 1):
            file.step(f"step {number}", step)
    for file in workflows + actions:
        for complaint in file.complaints:
            print(f"{file.path.relative_to(ROOT)}: {complaint}", file=sys.stderr)
        failed += len(file.complaints)
    jobs = sum(len(file.content.get("jobs") or {}) for file in workflows)
    print(f"{len(workflows)} workflows, {jobs} jobs, {len(actions)} actions, {failed} complaints")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
