"""The pictures and texts of docs/gallery.md: runs the examples, and keeps what they print and draw.

`python -m benchmarks.gallery` runs them all, one after the other, in about five minutes, and `python -m
benchmarks.gallery digits filter` some of them. What NAME.py prints and draws stands in docs/images/gallery/NAME.txt and
NAME.png, and on what machine, and when, in measured.txt beside them. `doctor` is what `python -m jax_nano doctor` says
of the model of docs/guide/inspecting.md.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from typing import Any

from PIL import Image

from benchmarks import report
from jax_nano.runtime.progress import progress

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "images" / "gallery"
MODEL = ROOT / "docs" / "guide" / "model.py"  # that doctor looks at
COLUMNS = 132  # of what is printed: the widest table
OF_NO_USE = re.compile(r"^picture: |^\[Gloo\]|━ 100% ")  # on a page: places of files, and bars of what is done
PIXELS = 1200  # of a picture, at most: its width
COLORS = 128  # of a picture, which keeps it small
COMMANDS = {  # by example, its arguments: the long ones in short forms
    "digits": "",
    "characters": "",
    "gpt": "--count 16",
    "attention": "",
    "recurrent": "",
    "filter": "",
    "moe": "--tokens 64 --count 4",
    "vision": "--batch 4",
    "distributed": "",
}


def run(name: str, folder: pathlib.Path) -> str:
    """Runs a copy of an example in a folder, where its picture stays; gives what it printed.

    Raises:
      RuntimeError: it failed.
    """
    for path in (ROOT / "examples" / f"{name}.py", ROOT / "examples" / "sonnets.txt"):
        shutil.copy(path, folder)
    done = python(str(folder / f"{name}.py"), *COMMANDS[name].split())
    return transcript(f"python examples/{name}.py {COMMANDS[name]}", done.stdout)


def examine(folder: pathlib.Path) -> str:
    """Has doctor look at a model, and draw its kernels; gives what it says.

    Raises:
      RuntimeError: it failed.
    """
    command = ["-m", "jax_nano", "doctor", "--as-is", "--picture"]
    done = python(*command, str(folder / "doctor.png"), str(MODEL))
    said = done.stderr.replace(f"{folder}/doctor.png", "roof.png")
    return transcript(f"python {' '.join(command)} roof.png {MODEL.name}", said)


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a program.

    Raises:
      RuntimeError: it failed.
    """
    environment = os.environ | {"COLUMNS": str(COLUMNS), "PYTHONPATH": search_path()}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with status {done.returncode}:\n{done.stderr}")
    return done


def search_path() -> str:
    """Where examples find this tree's jax_nano, and what this process finds elsewhere."""
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def transcript(command: str, printed: str) -> str:
    """The command, and what it printed, without what would be no use on a page."""
    lines = [f"$ {command}".rstrip()]
    lines += [line.rstrip() for line in printed.splitlines() if not OF_NO_USE.search(line)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def shrink(picture: pathlib.Path, target: pathlib.Path) -> None:
    """Writes a picture as wide as a page, in few colors."""
    with Image.open(picture) as image:
        width = min(PIXELS, image.width)
        size = width, round(image.height * width / image.width)
        small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        small.quantize(COLORS, dither=Image.Dither.NONE).save(target, optimize=True)


def measured(found: dict[str, Any]) -> str:
    """A sentence on the machine, the versions and the date."""
    machine, versions = found["machine"], found["versions"]
    return (
        f"Times are those of {machine['threads']} cores of {machine['processor']} ({machine['target']}) with JAX "
        f"{versions['jax']}, {found['date'][:10]}; `python -m benchmarks.gallery` ran the examples.\n"
    )


def main() -> None:
    """Runs the examples that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gallery", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(COMMANDS)} and doctor (default: all)")
    parser.add_argument("--folder", type=pathlib.Path, default=FOLDER)
    options = parser.parse_args()
    if unknown := set(options.names) - {*COMMANDS, "doctor"}:
        parser.error(f"there is no example {', '.join(sorted(unknown))}; name some of {', '.join(COMMANDS)}, doctor")
    options.folder.mkdir(parents=True, exist_ok=True)
    names = options.names or [*COMMANDS, "doctor"]
    with progress(len(names), "examples") as bar:
        for name in names:
            with tempfile.TemporaryDirectory() as folder:
                text = examine(pathlib.Path(folder)) if name == "doctor" else run(name, pathlib.Path(folder))
                (options.folder / f"{name}.txt").write_text(text)
                if (picture := pathlib.Path(folder) / f"{name}.png").exists():
                    shrink(picture, options.folder / f"{name}.png")
            bar.advance(name)
    (options.folder / "measured.txt").write_text(measured(report.circumstances()))


if __name__ == "__main__":
    main()
