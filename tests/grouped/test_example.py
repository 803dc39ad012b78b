"""The example of a mixture-of-experts decoder, small."""

import pathlib
import re
import runpy
import shutil
import sys

ROOT = pathlib.Path(__file__).parents[2]


def test_it_writes_the_same_every_way(tmp_path, capsys, monkeypatch):
    example = shutil.copy(ROOT / "examples" / "moe.py", tmp_path)
    small = "--experts 8 --choices 2 --width 128 --hidden 64 --layers 1 --tokens 12 --count 4"
    small += " --types f32 bf16 int8 int4"
    monkeypatch.setattr(sys, "argv", ["moe.py", *small.split()])
    runpy.run_path(str(example), run_name="__main__")
    printed = capsys.readouterr().out
    ways = "jax_nano|ragged_dot|dense masks"
    rows = re.findall(rf"│ (f32|bf16|int8|int4) +│ ({ways}) +│[^│]+│[^│]+│[^│]+│ first (\d)", printed)
    assert len(rows) == 12
    assert all(same == "4" for dtype, _, same in rows if dtype == "f32")
    assert (tmp_path / "moe.png").stat().st_size > 10_000
