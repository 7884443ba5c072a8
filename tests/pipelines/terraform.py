#!/usr/bin/env python3
"""Judges Terraform code by its structure, where the providers that `terraform validate` needs are missing.

    tests/pipelines/terraform.py DIRECTORY [--providers MODULE]

Every directory with *.tf files below DIRECTORY is a module. In each: variables have description and type
and are used, outputs have a description, locals are used, and what is referred to is declared: variables,
locals, resources, data, modules and their outputs. Modules are called with arguments that they know and
with all that they need. Providers are pinned from below and above, and those of all resources are named.

With --providers it prints the providers of one module, called ones included, that are not built in.
"""

import argparse
import re
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

BUILT_IN = {"terraform"}
# What precedes a name when it is no reference to a resource: `each.value`, `var.x`, …
NOT_RESOURCES = {"var", "local", "module", "data", "each", "self", "count", "path", "terraform"}


@dataclass
class Block:
    """A block such as `resource "aws_vpc" "this" { … }`, with its arguments and the blocks in it."""

    kind: str
    labels: list[str]
    arguments: dict[str, str] = field(default_factory=dict)
    blocks: list["Block"] = field(default_factory=list)

    def inner(self, kind: str) -> list["Block"]:
        return [block for block in self.blocks if block.kind == kind]


class Malformed(Exception):
    """Text that this small reader does not understand."""


def mask(text: str) -> str:
    """The text without comments and without what strings hold literally, as long as before.

    Interpolations stay: what they refer to counts. Newlines stay as well.
    """
    out = list(text)
    heredocs: list[str] = []

    def blank(start: int, end: int) -> None:
        for index in range(start, end):
            if out[index] != "\n":
                out[index] = " "

    def string(at: int) -> int:
        """Masks the string that begins at the quote `at`; returns the place after its end."""
        at += 1
        while text[at] != '"':
            if text[at] == "\\":
                blank(at, at + 2)
                at += 2
            elif text.startswith(("$${", "%%{"), at):
                blank(at, at + 3)
                at += 3
            elif text.startswith(("${", "%{"), at):
                blank(at, at + 2)
                at = code(at + 2, "}")
                blank(at - 1, at)
            else:
                blank(at, at + 1)
                at += 1
        return at + 1

    def heredoc(at: int, end: str) -> int:
        """Masks the lines from `at` on until the one that is `end`."""
        while at < len(text):
            line_end = text.find("\n", at)
            line_end = len(text) if line_end < 0 else line_end
            if text[at:line_end].strip() == end:
                blank(at, line_end)
                return line_end
            while at < line_end:
                if text.startswith("${", at) and not text.startswith("$${", at - 1):
                    blank(at, at + 2)
                    at = code(at + 2, "}")
                    blank(at - 1, at)
                else:
                    blank(at, at + 1)
                    at += 1
            at = line_end + 1
        raise Malformed(f"a heredoc without its {end}")

    def code(at: int, until: str) -> int:
        """Masks code from `at` up to the closing `until`, or the end; returns the place after it."""
        depth = 0
        while at < len(text):
            if text[at] == '"':
                at = string(at)
            elif text[at] == "#" or text.startswith("//", at):
                end = text.find("\n", at)
                end = len(text) if end < 0 else end
                blank(at, end)
                at = end
            elif text.startswith("/*", at):
                end = text.index("*/", at) + 2
                blank(at, end)
                at = end
            elif found := re.compile(r"<<-?(\w+)(?=\n)").match(text, at):
                heredocs.append(found[1])
                at = found.end()
                # An operator stands for the whole of it, so that the argument has a value.
                blank(found.start(), at)
            elif text[at] == "\n" and heredocs:
                at = heredoc(at + 1, heredocs.pop())
            else:
                if until and depth == 0 and text[at] == until:
                    return at + 1
                depth += (text[at] in "{[(") - (text[at] in "}])")
                at += 1
        if until:
            raise Malformed(f"a {until} is missing")
        return at

    code(0, "")
    return "".join(out)


LINE = re.compile(r"\s*(?:([\w-]+)[ \t]*=(?![=>])|([\w-]+)((?:[ \t]+(?:\"[^\"\n]*\"|[\w-]+))*)[ \t]*\{)")


def read(text: str) -> list[Block]:
    """The blocks of a file."""
    masked = mask(text)

    def closing(at: int) -> int:
        depth = 1
        while depth:
            if at >= len(masked):
                raise Malformed("a closing bracket is missing")
            depth += (masked[at] in "{[(") - (masked[at] in "}])")
            at += 1
        return at

    def body(block: Block, at: int, end: int) -> None:
        while masked[at:end].strip():
            found = LINE.match(masked, at, end)
            if not found:
                raise Malformed(f"line {text.count(chr(10), 0, at) + 2}: neither an argument nor a block")
            at = found.end()
            if name := found[1]:
                start = at
                while at < end and masked[at] != "\n":
                    at = closing(at + 1) if masked[at] in "{[(" else at + 1
                # A heredoc's lines have been blanked; they belong to the argument that began it.
                block.arguments[name] = masked[start:at]
                block.arguments[name + "\0source"] = text[start:at]
            else:
                labels = re.findall(r'"([^"\n]*)"|([\w-]+)', text[found.start(3):found.end(3)])
                inner = Block(found[2], [quoted or bare for quoted, bare in labels])
                after = closing(at)
                body(inner, at, after - 1)
                block.blocks.append(inner)
                at = after

    root = Block("file", [])
    body(root, 0, len(masked))
    return root.blocks


class Module:
    """A directory with Terraform code."""

    def __init__(self, path: Path):
        self.path = path
        self.complaints: list[str] = []
        self.blocks: list[Block] = []
        self.text = ""
        for file in sorted(path.glob("*.tf")):
            try:
                self.blocks += read(file.read_text())
            except Malformed as error:
                self.complaints.append(f"{file.name}: {error}")
            self.text += mask(file.read_text())

    def named(self, kind: str) -> dict[str, Block]:
        return {block.labels[-1]: block for block in self.blocks if block.kind == kind}

    def variables(self) -> dict[str, Block]:
        return self.named("variable")

    def calls(self) -> dict[str, Block]:
        return self.named("module")

    def source(self, call: Block) -> Path | None:
        source = call.arguments.get("source\0source", "").strip().strip('"')
        return (self.path / source).resolve() if source.startswith(".") else None


    def pin_sources(self) -> dict[str, str]:
        return {
            name.removesuffix("\0source"): source
            for terraform in self.blocks if terraform.kind == "terraform"
            for required in terraform.inner("required_providers")
            for name, source in required.arguments.items() if name.endswith("\0source")
        }

    def needed(self) -> set[str]:
        """Local names of the providers of this module's own resources and data."""
        kinds = [block for block in self.blocks if block.kind in ("resource", "data", "ephemeral")]
        return {block.labels[0].split("_")[0] for block in kinds} - BUILT_IN

    def providers(self) -> set[str]:
        """Addresses of all providers, those of called modules included."""
        found = set()
        for source in self.pin_sources().values():
            if address := re.search(r'source\s*=\s*"([^"]+)"', source):
                found.add(address[1])
        for call in self.calls().values():
            if source := self.source(call):
                found |= Module(source).providers()
        return found

    def locals(self) -> set[str]:
        return {
            name for block in self.blocks if block.kind == "locals" for name in block.arguments if "\0" not in name
        }

    def check(self) -> list[str]:
        complain = self.complaints.append
        self.check_declarations(complain)
        self.check_references(complain)
        self.check_calls(complain)
        self.check_versions(complain)
        return self.complaints

    def check_declarations(self, complain) -> None:
        for kind, wanted in (("variable", ("description", "type")), ("output", ("description", "value"))):
            seen = set()
            for block in self.blocks:
                if block.kind != kind:
                    continue
                name = block.labels[0]
                if name in seen:
                    complain(f"{kind} {name} is declared twice")
                seen.add(name)
                for argument in wanted:
                    if argument not in block.arguments:
                        complain(f"{kind} {name} has no {argument}")
                if not block.arguments.get("description\0source", '""').strip().strip('"'):
                    complain(f"{kind} {name} has an empty description")
        for block in self.variables().values():
            for validation in block.inner("validation"):
                for argument in ("condition", "error_message"):
                    if argument not in validation.arguments:
                        complain(f"a validation of variable {block.labels[0]} has no {argument}")

    def check_references(self, complain) -> None:
        # A validation uses its own variable, which is no use of it.
        def texts(block: Block):
            yield from (value for name, value in block.arguments.items() if "\0" not in name)
            for inner in block.blocks:
                yield from texts(inner)

        used = " \n".join(text for block in self.blocks if block.kind != "variable" for text in texts(block))
        for kind, prefix, declared in (("variable", "var", set(self.variables())), ("local", "local", self.locals())):
            found = set(re.findall(rf"(?<![\w.-]){prefix}\.([\w-]+)", used))
            for name in sorted(declared - found):
                complain(f"{kind} {name} is not used")
            for name in sorted(found - declared):
                complain(f"{kind} {name} is not declared")

        def inside(blocks: list[Block]):
            for block in blocks:
                yield block
                yield from inside(block.blocks)

        dynamic = {block.labels[0] for block in inside(self.blocks) if block.kind == "dynamic"}
        things = defaultdict(set)
        for block in self.blocks:
            if block.kind in ("resource", "data"):
                things[block.kind].add(".".join(block.labels))
        for name in sorted(set(re.findall(r"(?<![\w.-])data\.(\w+\.[\w-]+)", used)) - things["data"]):
            complain(f"data {name} is not declared")
        for kind, name in set(re.findall(r"(?<![\w.-])([a-z][a-z0-9]*_[a-z0-9_]+)\.([\w-]+)", used)):
            if kind.split("_")[0] not in NOT_RESOURCES - {"terraform"} and f"{kind}.{name}" not in things["resource"]:
                # The name of an iterator, of `for` or of a dynamic block, is no resource.
                iterator = re.search(rf"\bfor\s+(?:\w+\s*,\s*)?{kind}\b|\bfor\s+{kind}\s*,", used)
                if not iterator and kind not in dynamic:
                    complain(f"resource {kind}.{name} is not declared")

    def check_calls(self, complain) -> None:
        for name, call in self.calls().items():
            path = self.source(call)
            if path is None or not list(path.glob("*.tf")):
                complain(f"module {name} has no source that is here")
                continue
            called = Module(path)
            given = {a for a in call.arguments if "\0" not in a} - {"source", "for_each", "count", "depends_on", "providers", "version"}
            variables = called.variables()
            for argument in sorted(given - set(variables)):
                complain(f"module {name} knows no variable {argument}")
            for argument, block in variables.items():
                if "default" not in block.arguments and argument not in given:
                    complain(f"module {name} needs variable {argument}")
            for output in sorted(set(re.findall(rf"(?<![\w.-])module\.{name}\.([\w-]+)", self.text)) - set(called.named("output"))):
                complain(f"module {name} has no output {output}")
        for name in sorted(set(re.findall(r"(?<![\w.-])module\.([\w-]+)", self.text)) - set(self.calls())):
            complain(f"module {name} is not called")

    def check_versions(self, complain) -> None:
        if not any("required_version" in block.arguments for block in self.blocks if block.kind == "terraform"):
            complain("no required_version")
        pins = self.pin_sources()
        for name in sorted(self.needed() - set(pins)):
            complain(f"provider {name} is not among required_providers")
        for name, source in pins.items():
            if not re.search(r'version\s*=\s*"[^"]*(~>|<)', source):
                complain(f"provider {name} is not pinned from above")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--providers", action="store_true", help="print the providers of this one module")
    options = parser.parse_args()
    if options.providers:
        print(*sorted(Module(options.directory.resolve()).providers()), sep="\n")
        return 0
    paths = sorted({file.parent for file in options.directory.rglob("*.tf") if ".terraform" not in file.parts})
    if not paths:
        print(f"no Terraform code below {options.directory}", file=sys.stderr)
        return 1
    failed = 0
    for path in paths:
        module = Module(path.resolve())
        complaints = module.check()
        if path.parent.name == "modules" and not (path / "README.md").exists():
            complaints.append("no README.md")
        for complaint in complaints:
            print(f"{path}: {complaint}", file=sys.stderr)
        failed += len(complaints)
        print(f"{path}: {len(module.variables())} variables, {len(module.named('output'))} outputs, {len(module.blocks)} blocks")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
