#!/usr/bin/env python3
"""Checks that what the documents point at exists.

    links.py [DOCUMENT…]

Every relative link of README.md, ARCHITECTURE.md and docs/**/*.md (or of the documents given) leads to a file, and to a
heading if it has an anchor. Every alert of infra/observability has a runbook_url whose section exists, and
docs/operations.md has the sections of all alerts, in their order and no others.
"""

import re
import sys
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent.parent
ALERTS = Path("infra/observability/prometheus/alerts.yml")
RUNBOOK = Path("docs/operations.md")

CODE = re.compile(r"`[^`]*`")
LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)|^\[[^\]]+\]:\s*<?(\S+?)>?$")
HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*$")
ALERT = re.compile(r"^\s*- alert:\s*(\S+)")
RUNBOOK_URL = re.compile(r"^\s*runbook_url:\s*(\S+)")


def text(path):
    """The lines of a document that are not in a fenced block, numbered from 1."""
    fenced = False
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            yield number, line


def anchors(path):
    """The anchors of a document's headings, as GitHub makes them: the second of two alike ends in -1."""
    found, seen = set(), {}
    for _, line in text(path):
        heading = HEADING.match(line)
        if heading:
            anchor = re.sub(r"[^\w\- ]", "", heading[1].lower()).strip().replace(" ", "-")
            count = seen[anchor] = seen.get(anchor, -1) + 1
            found.add(f"{anchor}-{count}" if count else anchor)
    return found


def links(path):
    for number, line in text(path):
        for found in LINK.finditer(CODE.sub("", line)):
            yield number, found[1] or found[2]


def broken(path, target):
    """What is wrong with a link, if anything."""
    if re.match(r"[a-z][a-z0-9+.-]*:", target):
        return None
    file, _, anchor = unquote(target).partition("#")
    leads_to = (path.parent / file).resolve() if file else path
    if ROOT not in (leads_to, *leads_to.parents):
        return f"{target} leads out of the repository"
    if not leads_to.exists():
        return f"{target} does not exist"
    if anchor and (leads_to.suffix != ".md" or anchor not in anchors(leads_to)):
        return f"{target}: no such heading"
    return None


def documents():
    return [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").rglob("*.md"))]


def runbooks():
    """What is wrong between alerts and their sections."""
    alerts, sections = [], []
    for number, line in enumerate((ROOT / ALERTS).read_text().splitlines(), 1):
        if found := ALERT.match(line):
            alerts.append([found[1], number, None])
        elif (found := RUNBOOK_URL.match(line)) and alerts:
            alerts[-1][2] = found[1]
    for name, number, url in alerts:
        if url is None:
            yield f"{ALERTS}:{number}: {name} has no runbook_url"
        elif url != f"{RUNBOOK}#{name.lower()}":
            yield f"{ALERTS}:{number}: the runbook_url of {name} is not {RUNBOOK}#{name.lower()}"
        elif problem := broken(ROOT / "here", url):
            yield f"{ALERTS}:{number}: {problem}"
    inside = False
    for _, line in text(ROOT / RUNBOOK):
        if line.startswith("## "):
            inside = line == "## Alerts"
        elif inside and line.startswith("### "):
            sections.append(line.removeprefix("### "))
    expected = [name for name, _, _ in alerts]
    if sections != expected:
        missing, extra = sorted({*expected} - {*sections}), sorted({*sections} - {*expected})
        what = f"missing {missing}, too many {extra}" if missing or extra else "another order, or one twice"
        yield f"{RUNBOOK}: the sections of ## Alerts are not the alerts of {ALERTS}: {what}"


def main():
    given = [Path(argument).resolve() for argument in sys.argv[1:]]
    wrong, count = [], 0
    for path in given or documents():
        for number, target in links(path):
            count += 1
            if problem := broken(path, target):
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {problem}")
    wrong.extend(runbooks())
    for problem in wrong:
        print(problem, file=sys.stderr)
    print(f"{count} links, {len(wrong)} wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
