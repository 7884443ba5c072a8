#!/usr/bin/env python3
"""Executes docs/quick-start.md, as a reader would who pastes one block after the other into one shell.

    quick_start.py DOCUMENT DIRECTORY [SECONDS]

All ```sh blocks run in one bash, in DIRECTORY, with `cloudpaxos` on PATH. A ```text block behind one is what it
must print: line by line, where `…` stands for anything within a line and a run of blanks for one blank. Stops at the
first block that fails, takes too long or prints something else, and says which line of the document that is. At the end
no process and no file may be left.
"""

import fcntl
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

FENCE = re.compile(r"^```(\w*)\s*$")

# Reads the names of blocks from one descriptor, runs each, and says "done" on another. What the blocks leave running in
# the background must hold neither. With `set -e` the first command that fails ends it.
SESSION = """
set -euo pipefail
while read -r block <&{names}; do
    source "$block" >"$block.out" 2>&1 </dev/null {names}<&- {answers}>&-
    echo done >&{answers}
done
"""
# The blocks' own redirections use low numbers.
DESCRIPTORS_MIN = 100


class Failed(Exception):
    """With what is told."""


class Block:
    """Commands, and what they must print."""

    def __init__(self, line, commands):
        # The fence's, from 1: the commands begin one below.
        self.line = line
        self.commands = commands
        self.expected = None
        self.expected_line = 0


def blocks(path):
    """The blocks of a document, in order."""
    found, last, language, start, body = [], None, None, 0, []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        fence = FENCE.match(line)
        if language is None:
            if fence:
                language, start, body = fence[1], number, []
        elif fence and not fence[1]:
            if language == "sh":
                last = Block(start, body)
                found.append(last)
            elif language == "text" and last is not None:
                last.expected, last.expected_line = body, start
            if language != "sh":
                last = None
            language = None
        else:
            body.append(line)
    if language is not None:
        raise Failed(f"{path}:{start}: the block has no end")
    return found


def normal(line):
    return " ".join(line.split())


def matches(expected, printed):
    pattern = ".*".join(re.escape(part) for part in normal(expected).split("…"))
    return re.fullmatch(pattern, normal(printed)) is not None


def compare(path, block, printed):
    """Names the first line that differs."""
    for index in range(max(len(block.expected), len(printed))):
        line = f"{path}:{block.expected_line + 1 + index}"
        if index >= len(printed):
            raise Failed(f"{line}: expected, and not printed: {block.expected[index]}")
        if index >= len(block.expected):
            raise Failed(f"{line}: printed, and not expected: {printed[index]}")
        if not matches(block.expected[index], printed[index]):
            raise Failed(f"{line}: expected: {block.expected[index]}\n{line}: printed:  {printed[index]}")


def members(group):
    """The processes of a process group, but for those that are dead and wait to be asked for."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # Behind the name, which is in parentheses and may hold anything: state, parent, group.
            name, rest = stat.read_text().split("(", 1)[1].rsplit(") ", 1)
        except OSError:
            continue
        state, _, its_group = rest.split()[:3]
        if its_group == str(group) and state != "Z":
            found[int(stat.parent.name)] = name
    return found


class Session:
    """One bash that runs blocks."""

    def __init__(self, directory, scratch, deadline):
        self.scratch, self.deadline = scratch, deadline
        (names, self.names), (self.answers, answers) = os.pipe(), os.pipe()
        theirs = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, DESCRIPTORS_MIN) for descriptor in (names, answers)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CLOUDPAXOS_")}
        script = SESSION.format(names=theirs[0], answers=theirs[1])
        # A session of its own is a process group of its own, so that it can be told what was started here.
        self.shell = subprocess.Popen(
            ["bash", "--noprofile", "--norc", "-c", script],
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            pass_fds=theirs,
            start_new_session=True,
        )
        for descriptor in (names, answers, *theirs):
            os.close(descriptor)

    def run(self, number, block):
        """Runs a block; returns the lines that it printed, and whether it came to its end."""
        script = self.scratch / f"block-{number}"
        script.write_text("\n".join(block.commands) + "\n")
        os.write(self.names, f"{script}\n".encode())
        ready, _, _ = select.select([self.answers], [], [], max(0.0, self.deadline - time.monotonic()))
        answer = os.read(self.answers, 5) if ready else None
        output = script.with_name(script.name + ".out")
        printed = output.read_text(errors="replace").splitlines() if output.exists() else []
        return printed, {b"done\n": "done", b"": "failed", None: "late"}[answer]

    def end(self):
        """Lets the shell end; returns the processes that outlive it."""
        os.close(self.names)
        self.shell.wait(timeout=10)
        return members(self.shell.pid)

    def kill(self):
        """Ends what was started here, and nothing else."""
        while left := members(self.shell.pid):
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            self.shell.poll()
            time.sleep(0.01)
        self.shell.wait()


def execute(path, directory, deadline):
    found = blocks(path)
    if not found:
        raise Failed(f"{path}: no ```sh block")
    scratch, working = directory / "blocks", directory / "work"
    scratch.mkdir()
    working.mkdir()
    session = Session(working, scratch, deadline)
    try:
        for number, block in enumerate(found):
            printed, outcome = session.run(number, block)
            where = f"{path}:{block.line + 1}"
            said = "".join(f"\n    {line}" for line in printed[-20:])
            if outcome == "late":
                raise Failed(f"{where}: not done in time; printed so far:{said}")
            if outcome == "failed":
                raise Failed(f"{where}: a command of this block failed; printed:{said}")
            if block.expected is not None:
                compare(path, block, printed)
        left = session.end()
        if left:
            raise Failed(f"{path}: these run on behind the last block: {left}")
        files = sorted(file.name for file in working.iterdir())
        if files:
            raise Failed(f"{path}: these are left behind the last block: {files}")
    except Failed:
        for log in sorted(working.glob("*.log")):
            lines = log.read_text(errors="replace").splitlines()[-5:]
            print(f"-- the end of {log.name}", *lines, sep="\n", file=sys.stderr)
        raise
    finally:
        session.kill()
    return len(found)


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    path, directory = Path(sys.argv[1]), Path(sys.argv[2]).resolve()
    seconds = float(sys.argv[3]) if len(sys.argv) > 3 else 45.0
    # So that `finally` is heeded.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    began = time.monotonic()
    try:
        count = execute(path, directory, began + seconds)
    except Failed as failed:
        sys.exit(str(failed))
    print(f"{path}: {count} blocks, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
