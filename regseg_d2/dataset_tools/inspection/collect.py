"""Reads all pairs of data sets in several processes and puts together what was found."""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from detectron2.data import MetadataCatalog
from rich.markup import escape

from regseg_d2.common.errors import listed, printable
from regseg_d2.common.parallel import available_cores, parallel_results
from regseg_d2.data.balance import ClassBalance, count_classes
from regseg_d2.data.labels import LabelReader, label_reader_for
from regseg_d2.dataset_tools.inspection.pairs import find_pairs
from regseg_d2.dataset_tools.inspection.samples import (
    CLASSES,
    DUPLICATE,
    KINDS,
    Problem,
    SampleFacts,
    inspect_sample,
    known_values,
    num_classes_of,
)
from regseg_d2.dataset_tools.inspection.suggestions import (
    Suggestion,
    is_binary_mask,
    suggest_color_table,
    suggest_label_map,
)
from regseg_d2.drawing.pictures import class_colors

# A process takes seconds to start: it pays from about so many pairs on.
_PAIRS_PER_WORKER = 50
_CHUNK = 16


class ValueCount(NamedTuple):
    """How many pixels of all labels have a file value, and how many label files hold it."""

    pixels: int
    files: int


@dataclass
class DatasetFacts:
    """What was found in one data set.

    Attributes:
        name: its registered name.
        classes: K class names.
        colors: (K, 3) uint8, RGB.
        reader: its label reader.
        samples: facts of each pair.
        problems: what is wrong, of all pairs and of the whole, in the order of ``KINDS``.
        notes: what is worth knowing and stops nothing.
        sizes: number of images of each height and width.
        image_kinds: number of images of each format and mode.
        label_kinds: the same of the labels.
        values: how often each file value occurs, ascending.
        meanings: class index or ignore value of each file value that is accounted for.
        per_image: pixels of each class in each sample (N, K).
        balance: frequencies of the classes, over all labels that could be read.
        suggestion: a line for the declaration, where there is one to suggest.
    """

    name: str
    classes: list[str]
    colors: np.ndarray
    reader: LabelReader
    samples: list[SampleFacts]
    problems: list[Problem]
    notes: list[str]
    sizes: Counter[tuple[int, int]]
    image_kinds: Counter[str]
    label_kinds: Counter[str]
    values: dict[int, ValueCount]
    meanings: dict[int, int]
    per_image: np.ndarray
    balance: ClassBalance
    suggestion: Suggestion | None


def collect_facts(names: Sequence[str], *, workers: int | None = None) -> list[DatasetFacts]:
    """Reads every pair of data sets, through all problems, and compares the sets.

    0 ``workers`` read in this process, None chooses by the number of pairs.

    Raises:
        ConfigError: a name is unknown.
        DatasetError: metadata names no classes, or a reading process was ended by the system.
    """
    facts = [_collect_one(name, workers) for name in names]
    for problem, name in _duplicates_between(facts):
        next(one for one in facts if one.name == name).problems.append(problem)
    for one in facts:
        one.problems.sort(key=lambda problem: KINDS.index(problem.kind))
    return facts


def _collect_one(name: str, workers: int | None) -> DatasetFacts:
    records, problems = find_pairs(name)
    reader = label_reader_for(name)
    metadata = MetadataCatalog.get(name)
    samples = _inspect(name, records, reader, workers)
    per_image, ignored = _count(samples, reader)
    values = _histogram(samples)
    readable = np.array([len(sample.values) > 0 for sample in samples], dtype=bool)
    facts = DatasetFacts(
        name=name,
        classes=list(metadata.stuff_classes),
        colors=class_colors(metadata, num_classes_of(reader)),
        reader=reader,
        samples=samples,
        problems=[*problems, *(problem for sample in samples for problem in sample.problems)],
        notes=[],
        sizes=Counter(sample.image_size for sample in samples if sample.image_size),
        image_kinds=Counter(sample.image_kind for sample in samples if sample.image_kind),
        label_kinds=Counter(sample.label_kind for sample in samples if sample.label_kind),
        values=values,
        meanings=known_values(reader),
        per_image=per_image,
        balance=count_classes(per_image[readable], ignored),
        suggestion=None,
    )
    facts.suggestion = suggest_label_map(list(values), reader) or suggest_color_table(
        {color for sample in samples for color in sample.colors}, facts.classes, facts.colors
    )
    facts.problems += _class_problems(facts)
    facts.notes += _notes(facts)
    return facts


# -------------------------------------------------------------------------------------------- reading


def _inspect(name: str, records: list[dict], reader: LabelReader, workers: int | None) -> list[SampleFacts]:
    if workers is None:
        workers = min(available_cores(), len(records) // _PAIRS_PER_WORKER)
    chunks = [(start, records[start : start + _CHUNK]) for start in range(0, len(records), _CHUNK)]
    title = f"reading {escape(printable(name))}, in chunks of {_CHUNK}"
    inspect = functools.partial(_inspect_chunk, reader=reader)
    found = dict(parallel_results(chunks, inspect, title=title, workers=workers if workers > 1 else 0))
    return [sample for start in sorted(found) for sample in found[start]]


def _inspect_chunk(chunk: tuple[int, list[dict]], reader: LabelReader) -> tuple[int, list[SampleFacts]]:
    return chunk[0], [inspect_sample(record, reader) for record in chunk[1]]


# ------------------------------------------------------------------------------------------- counting


def _histogram(samples: Sequence[SampleFacts]) -> dict[int, ValueCount]:
    pixels: Counter[int] = Counter()
    files: Counter[int] = Counter()
    for sample in samples:
        values = sample.values.tolist()
        pixels.update(dict(zip(values, sample.counts.tolist(), strict=True)))
        files.update(values)
    return {value: ValueCount(pixels[value], files[value]) for value in sorted(pixels)}


def _count(samples: Sequence[SampleFacts], reader: LabelReader) -> tuple[np.ndarray, int]:
    """Pixels of each class in each sample (N, K), and the ignored pixels of all."""
    meanings = known_values(reader)
    per_image = np.zeros((len(samples), reader.num_classes), dtype=np.int32)  # N x K can be large
    ignored = 0
    for row, sample in zip(per_image, samples, strict=True):
        for value, count in zip(sample.values.tolist(), sample.counts.tolist(), strict=True):
            target = meanings.get(value)
            if target == reader.ignore_value:
                ignored += count
            elif target is not None:
                row[target] += count
    return per_image, ignored


# ------------------------------------------------------------------------------------------ judgement


def _class_problems(facts: DatasetFacts) -> list[Problem]:
    values = list(facts.values)
    if values and is_binary_mask(values, facts.reader) and facts.reader.ignore_value == 255:
        text = (
            "The labels hold only 0 and 255, and 255 is the ignore value: the foreground of these binary "
            "masks would be ignored. See the suggested label_map."
        )
        return [Problem(CLASSES, "", text)]
    if values and not facts.balance.pixels.any():
        return [Problem(CLASSES, "", "No pixel of any label has a class: there is nothing to learn from.")]
    return []


def _notes(facts: DatasetFacts) -> list[str]:
    notes = []
    balance = facts.balance
    if balance.pixels.any() and not balance.pixels.all():
        never = [facts.classes[i] for i in np.flatnonzero(balance.pixels == 0)]
        notes.append(f"{len(never)} of {len(facts.classes)} classes have no pixel: {', '.join(never)}.")
    empty = [
        sample.label_file
        for sample, row in zip(facts.samples, facts.per_image, strict=True)
        if len(sample.values) and not row.any()
    ]
    if empty and balance.pixels.any():
        notes.append(f"{len(empty)} labels have no pixel with a class: {listed(empty)}.")
    twice = [files for files in _by_digest([facts]).values() if len(files) > 1]
    if twice:
        groups = ["  =  ".join(file for _, file in files) for files in twice]
        notes.append(f"{len(twice)} images occur more than once within the data set: {listed(groups)}.")
    return notes


def _duplicates_between(facts: Sequence[DatasetFacts]) -> list[tuple[Problem, str]]:
    """Images of a data set that are also in one before it, each with the data set's name."""
    found = []
    for copies in _by_digest(facts).values():
        first_name, first_file = copies[0]
        for name, file in copies[1:]:
            if name != first_name:
                text = f'{file} is the same picture as {first_file} of "{first_name}".'
                found.append((Problem(DUPLICATE, file, text), name))
    return found


def _by_digest(facts: Sequence[DatasetFacts]) -> dict[str, list[tuple[str, str]]]:
    """Data set and file of each image, by the hash of its pixels."""
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for one in facts:
        for sample in one.samples:
            if sample.digest:
                found[sample.digest].append((one.name, sample.image_file))
    return found
