"""What ``tools/check_dataset.py`` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from regseg_d2.common.errors import ConfigError, check_key, printable
from regseg_d2.common.files import write_text
from regseg_d2.data.balance import write_frequencies
from regseg_d2.dataset_tools.inspection.collect import collect_facts
from regseg_d2.dataset_tools.inspection.report import print_report, render_page
from regseg_d2.dataset_tools.inspection.thumbnails import make_thumbnails
from regseg_d2.dataset_tools.names import named_datasets

# Problems of one kind in the terminal, where a page lists all.
_SHOWN_BESIDE_A_PAGE = 10


def check_named_datasets(
    names: Sequence[str],
    *,
    declared: Sequence[str] = (),
    output: str = "",
    frequencies: str = "",
    workers: int | None = None,
    num_shown: int = 12,
) -> bool:
    """Checks data sets, prints a report and writes the files that were asked for.

    Args:
        names: registered names; without any, all splits of ``declared``.
        declared: YAML files that declare data sets.
        output: HTML file to write; "" writes none.
        frequencies: JSON file of class frequencies to write; "" writes none.
        workers: processes that read; 0 reads in this one, None chooses by the number of pairs.
        num_shown: samples that the page shows of each data set.

    Returns:
        Whether no problem was found.

    Raises:
        ConfigError: an argument cannot be used, or no data set has such a name.
        DatasetError: a declaration cannot be used.
    """
    check_key("--workers", workers, workers is None or workers >= 0, "0 or more")
    check_key("--num-shown", num_shown, num_shown >= 0, "0 or more")
    for option, file in (("--output", output), ("--json", frequencies)):
        if file and Path(file).is_dir():
            raise ConfigError(f"{option} is {file}, which is a folder; expected a file in it to write.")
    names = named_datasets(names, declared)
    if frequencies and len(names) > 1:
        raise ConfigError(
            f"--json takes the frequencies of one data set, and these are {len(names)}: {', '.join(names)}. "
            "Name the one to measure, usually the training split."
        )
    all_facts = collect_facts(names, workers=workers)
    print_report(Console(), all_facts, shown=_SHOWN_BESIDE_A_PAGE if output else None)
    if output:
        thumbnails = [make_thumbnails(facts, num_shown) for facts in all_facts]
        write_text(output, render_page(all_facts, thumbnails))
        print(f"Wrote {printable(output, None)}")
    if frequencies:
        write_frequencies(frequencies, all_facts[0].name, all_facts[0].balance)
        print(f"Wrote {printable(frequencies, None)}")
    return not any(facts.problems for facts in all_facts)
