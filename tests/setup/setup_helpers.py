"""Shared by the tests of the set-up: a stand-in for the wheel."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
INFO = "sal_detectron2-0.7.2.dist-info"
SUBMODULES = ("config", "data", "modeling", "engine", "evaluation", "projects", "projects/deeplab")


def write_package(folder, version="0.7.2"):
    """Writes a package with the submodules that the installer imports."""
    for name in ("", *SUBMODULES):
        path = folder / "detectron2" / name
        path.mkdir(parents=True, exist_ok=True)
        (path / "__init__.py").write_text("" if name else f'__version__ = "{version}"\n')


def write_unpacked_wheel(folder, version="0.7.2"):
    """Writes what pip unpacks the wheel to, stray files included."""
    write_package(folder, version)
    (folder / "detectron2" / "_C.cpython-310-x86_64-linux-gnu.so").write_bytes(b"\x7fELF")
    (folder / "tools").mkdir()
    (folder / "tools" / "__init__.py").write_text("")
    info = folder / INFO
    info.mkdir()
    requires = ["Requires-Dist: Pillow>=7.1", "Requires-Dist: numpy<2", "Requires-Dist: black"]
    (info / "METADATA").write_text(
        "\n".join(["Metadata-Version: 2.1", "Name: sal-detectron2", *requires]) + "\n"
    )
    (info / "WHEEL").write_text(
        "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: cp310-cp310-linux_x86_64\n\n"
    )
    (info / "top_level.txt").write_text("detectron2\ntools\n")
    (info / "RECORD").write_text("")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    (info / "RECORD").write_text("".join(f"{path.relative_to(folder).as_posix()},,\n" for path in files))
