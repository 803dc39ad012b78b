"""examples/distributed.py: processes train what one does, and none is left where one dies."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

EXAMPLE = pathlib.Path(__file__).parents[1] / "examples" / "distributed.py"
SMALL = "--width 64 --layers 1 --length 16 --batch 4".split()


def start(*arguments):
    command = [sys.executable, str(EXAMPLE), *SMALL, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def losses(*arguments):
    process = start(*arguments, "--steps", 3)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert re.search(r"^[\d,]+ tokens/s, mesh \d x \d, [1-9]\d* kernels a step and process$", out, re.M)
    return [float(x) for x in re.findall(r"loss ([\d.]+)$", out, re.M)]


def test_two_processes_learn_what_one_does():
    one, two = losses("--processes", 1), losses("--processes", 2)
    assert len(one) == 3 and one[-1] < one[0]
    assert all(abs(x - y) < 1e-3 for x, y in zip(one, two, strict=True))


def test_a_process_that_dies_ends_the_others():
    parent = start("--processes", 2, "--steps", 100_000)
    children = pathlib.Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    while len(pids := children.read_text().split()) < 2:
        time.sleep(0.05)
    os.kill(int(pids[1]), signal.SIGKILL)
    _, err = parent.communicate(timeout=30)
    assert parent.returncode == 1
    assert "process 1 of 2 was ended by signal 9: the others are ended" in err
    assert not any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids)


def test_what_cannot_be_divided_is_an_error():
    process = start("--processes", 3, "--model", 3)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "--model 3 has to divide --processes 3, 8 heads and 4 experts" in err
