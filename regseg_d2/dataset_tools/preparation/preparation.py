"""What the preparations of all benchmarks share: arguments, unpacking, reading all, and what is written."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regseg_d2.common.errors import UserError, print_error, printable_lines
from regseg_d2.data.datasets.definitions import Definition, load_definition
from regseg_d2.data.datasets.spec import DatasetSpec, datasets_root
from regseg_d2.dataset_tools.preparation.archives import unpack_archives
from regseg_d2.dataset_tools.preparation.report import below, report_splits


@dataclass
class Copy:
    """A copy of a data set, unpacked, before its labels are converted.

    Attributes:
        root: folder of all data sets.
        folder: that of the data set.
        definition: what is published about it.
        specs: the splits by their name within the data set. A conversion takes out those that are not there.
        counts: published numbers of images; None accepts any.
        workers: number of processes; 0 works in this one.
    """

    root: Path
    folder: Path
    definition: Definition
    specs: dict[str, DatasetSpec]
    counts: Mapping[str, int] | None
    workers: int

    def expected(self, name: str) -> int | None:
        """A published number; None where any is accepted."""
        return self.counts[name] if self.counts else None


@dataclass(frozen=True)
class Preparation:
    """How a copy of a benchmark is unpacked, converted, checked and described; called, it does that.

    Attributes:
        name: that of its definition.
        folder: of the data set, below the folder of all data sets.
        archives: names of archives that can be unpacked, with the place below the folder of all data sets.
        convert: checks the copy and makes labels and lists, where the published ones do not do; returns lines
            for people. Has the keywords of ``options``.
        options: further options of the command line, as keywords of ``ArgumentParser.add_argument``.
        size: height and width of every image, unless a part is accepted; None accepts any.
        apart: splits that must not share an image, as far as they are there; None means all.
        description: the file that says what the splits hold, below ``folder``.
    """

    name: str
    folder: str
    archives: Mapping[str, str] = field(default_factory=dict)
    convert: Callable[..., list[str]] | None = None
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    apart: Sequence[str] | None = None
    description: str = "splits.json"

    def __call__(
        self,
        root: Path,
        *,
        workers: int = 0,
        partial: bool = False,
        archives: Path | None = None,
        output: Path | None = None,
        **options: Any,
    ) -> list[str]:
        """Prepares a copy and writes what its splits hold.

        Args:
            root: folder of all data sets.
            workers: number of processes; 0 works in this one.
            partial: accept any number of images, of any size.
            archives: folder of the downloaded archives, to unpack; None where they are unpacked.
            output: description to write; None for the one beside the data.
            **options: those of ``options``.

        Returns:
            Lines for people.

        Raises:
            DatasetError: the copy is not as it should be, or a file cannot be written.
        """
        definition = load_definition(self.name)
        places = {name: root / place for name, place in self.archives.items()}
        lines = unpack_archives(places, archives, definition.checksums)
        copy = Copy(
            root,
            root / self.folder,
            definition,
            specs={split: below(spec, root) for split, spec in definition.specs.items()},
            counts=None if partial else definition.counts,
            workers=workers,
        )
        if self.convert:
            lines += self.convert(copy, **options)
        return lines + report_splits(
            output or copy.folder / self.description,
            self.name,
            copy.specs,
            counts=copy.counts,
            workers=workers,
            size=None if partial else self.size,
            apart=[split for split in copy.specs if self.apart is None or split in self.apart],
        )

    def main(self, description: str, arguments: Sequence[str] | None = None) -> int:
        """Runs the command line of the data set's script; returns its exit status, 1 after a user's error."""
        options = self._parser(description).parse_args(arguments)
        try:
            lines = self(**vars(options))
        except UserError as error:
            print_error(error, "error: ")
            return 1
        except KeyboardInterrupt:
            print("stopped; start again to go on where it stopped", file=sys.stderr)
            return 130
        print(printable_lines("\n".join(lines)))
        return 0

    def _parser(self, description: str) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        add = parser.add_argument
        help_ = "folder of all data sets (default: $DETECTRON2_DATASETS, or ./datasets)"
        add("--root", type=Path, default=datasets_root(), metavar="FOLDER", help=help_)
        help_ = "processes that read and convert files; 0 works in this one (default: %(default)s)"
        add("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help=help_)
        help_ = "accept other numbers of images than the published ones, for a part of the data set"
        add("--partial", action="store_true", help=help_)
        help_ = f"description of the splits to write (default: {self.description} beside the data)"
        add("--output", type=Path, metavar="FILE", help=help_)
        if self.archives:
            help_ = f"check and unpack those of these archives that lie there: {', '.join(self.archives)}"
            add("--archives", type=Path, metavar="FOLDER", help=help_)
        for name, keywords in self.options.items():
            add(name, **keywords)
        return parser
