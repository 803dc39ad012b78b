"""The pictures of the documentation: what is measured, and what is drawn of it."""

import json

import jax.numpy as jnp
import pytest
from PIL import Image

from benchmarks import gallery, overview, pictures
from benchmarks.overview import Program
from jax_nano.runtime.progress import progress


def test_rows_have_the_milliseconds_of_both(quick, capsys):
    programs = [Program("product", jnp.matmul, ((8, 8), (8, 8)))]
    with progress(2, "measuring") as bar:
        (row,) = pictures.measured(programs, ("f32", "bf16"), 1, bar)
    assert row["name"] == "product"
    assert all(len(row[dtype]) == 2 and min(row[dtype]) > 0 for dtype in ("f32", "bf16"))


def test_pictures_are_drawn_of_what_was_measured(tmp_path):
    found = json.loads((overview.FOLDER / "performance.json").read_text())
    pictures.draw(found, tmp_path)
    for name in ("attention", *pictures.BARS):
        assert "<svg" in (tmp_path / f"{name}.svg").read_text()[:500]
        assert [row["name"] for row in found[name]], name


@pytest.mark.parametrize("rows, groups", [(1024, 64), (16, 8)])
def test_groups_share_out_all_rows(rows, groups):
    for sizes in (pictures.evenly(rows, groups), pictures.by_power_law(rows, groups)):
        assert len(sizes) == groups and sizes.sum() == rows and sizes.min() >= 0


def test_transcripts_have_the_command_and_no_bars():
    printed = "one  ━━━━ 100% 0:00:00\ntext\n\n\n\nmore  \npicture: /somewhere\n"
    assert gallery.transcript("python examples/filter.py ", printed) == "$ python examples/filter.py\ntext\n\nmore\n"


def test_pictures_shrink_to_the_width_of_a_page(tmp_path):
    Image.new("RGB", (3000, 1000), "white").save(tmp_path / "large.png")
    gallery.shrink(tmp_path / "large.png", tmp_path / "small.png")
    with Image.open(tmp_path / "small.png") as image:
        assert image.size == (gallery.PIXELS, gallery.PIXELS // 3)
