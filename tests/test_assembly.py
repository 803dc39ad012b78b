"""What the compiler made of kernels, read from their assembly."""

import re

MULTIPLY_ADDS = re.compile(r"vfmadd\w+p[sd]|vdpbf16ps|vpdp\w+|vpmaddwd")
SCALARS = re.compile(r"vfmadd\w+s[sd]|v?(add|mul)s[sd]|vpinsr\w|vpextr\w|vinsertps|vextractps")
LABEL, JUMP = re.compile(r"(\.L\w+):"), re.compile(r"j\w+\s+(\.L\w+)")


def loops(assembly):
    """The innermost loops: instructions from a label to a jump back to it, with no label between."""
    lines = [line.split("#")[0].strip() for line in assembly.splitlines()]
    lines = [line for line in lines if line and (LABEL.match(line) or not line.startswith("."))]
    begin, label = 0, None
    for i, line in enumerate(lines):
        if found := LABEL.match(line):
            begin, label = i + 1, found[1]
        elif (found := JUMP.match(line)) and found[1] == label:
            yield lines[begin : i + 1]


def loads(loop):
    """The instructions that read memory: those with an address among their sources."""
    return [
        line for line in loop if "(" in line.rpartition(",")[0] and not line.startswith(("lea", "prefetch"))
    ]  # in AT&T syntax the destination stands last


def multiply_adds(lines):
    return [line for line in lines if MULTIPLY_ADDS.match(line)]


def main_loop(assembly):
    """The loop that goes by whole iterations of the microkernel."""
    return max(loops(assembly), key=lambda loop: len(multiply_adds(loop)))
