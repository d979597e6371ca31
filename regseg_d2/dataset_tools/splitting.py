"""Splits a data set into lists of exact sizes; each class has its share in each, groups stay together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from regseg_d2.common.errors import DatasetError, check_key
from regseg_d2.common.files import write_text
from regseg_d2.data.label_counts import count_label_files
from regseg_d2.data.labels import label_reader_for
from regseg_d2.data.loader import load_records
from regseg_d2.data.subsets import GROUPINGS
from regseg_d2.dataset_tools.lists import list_text
from regseg_d2.dataset_tools.names import named_datasets

_ROUNDING = 1e-9


def divide(
    holds: np.ndarray, shares: Sequence[float], *, groups: Sequence[str] = (), seed: int = 0
) -> list[list[int]]:
    """Divides images so that each part has its share of them and of the images of each class.

    The rarest class is given out first: each of its groups goes to the part that lacks most of that class,
    and of equal ones to that which lacks most images (iterative stratification; Sechidis et al., "On the
    Stratification of Multi-label Data", ECML PKDD 2011; here with groups, and with sizes that hold).

    Args:
        holds: ``(N, K)``, whether image n has pixels of class k.
        shares: of the parts; their sum is at most 1.
        groups: of each image; one of the same name stays together. Empty: each image is a group.
        seed: of the order in which equal ones are given out.

    Returns:
        Positions of each part's images, increasing. Sizes are the shares' to one image, if no group is
        larger.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for position in range(len(holds)):
        members[groups[position] if groups else str(position)].append(position)
    order = np.random.default_rng(seed).permutation(len(members))
    waiting = [list(members.values())[i] for i in order]
    counts = np.array([holds[group].sum(0) for group in waiting], dtype=np.float64).reshape(len(waiting), -1)
    ends = np.round(np.cumsum([0, *shares]) * len(holds)).astype(int)
    # A last part that is given no images takes what the shares leave over, and is not returned.
    room = np.append(np.diff(ends), len(holds) - ends[-1]).astype(np.float64)
    lacking = np.outer(room / max(len(holds), 1), holds.sum(0)).astype(np.float64)
    parts: list[list[int]] = [[] for _ in room]
    left = np.ones(len(waiting), dtype=bool)
    while left.any():
        remaining = counts[left].sum(0)
        rarest = int(np.argmin(np.where(remaining > 0, remaining, np.inf))) if (remaining > 0).any() else None
        chosen = left if rarest is None else left & (counts[:, rarest] > 0)
        # Large groups first: they fit only where there is room.
        for i in sorted(np.flatnonzero(chosen), key=lambda i: -len(waiting[i])):
            fits = room >= min(len(waiting[i]), room.max())
            need = room if rarest is None else lacking[:, rarest]
            part = max(np.flatnonzero(fits), key=lambda p: (need[p], room[p]))
            parts[part] += waiting[i]
            room[part] -= len(waiting[i])
            lacking[part] -= counts[i]
            left[i] = False
    return [sorted(part) for part in parts[: len(shares)]]


def split_dataset(
    names: Sequence[str],
    shares: Mapping[str, float],
    output: Path,
    *,
    declared: Sequence[str] = (),
    grouping: str = "",
    seed: int = 0,
    workers: int = 0,
) -> str:
    """Writes a list for each part, ``<output>/<part>.txt``, of the images of data sets together.

    Args:
        names: registered data sets; none: all splits of ``declared``.
        shares: of each part.
        output: folder of the lists.
        declared: YAML files that declare data sets.
        grouping: what stays together: one of :data:`~regseg_d2.data.subsets.GROUPINGS`.
        seed: another one divides in another way.
        workers: processes that read labels.

    Returns:
        What was written: sizes, how many images of each class, and the ``splits`` for a declaration.

    Raises:
        ConfigError: an argument cannot be used.
        DatasetError: a data set or a label cannot be read; a list is there already.
    """
    check_key("--by", grouping, grouping in GROUPINGS, f"one of {', '.join(g for g in GROUPINGS if g)}")
    fine = all(0 < share <= 1 for share in shares.values()) and sum(shares.values()) <= 1 + _ROUNDING
    check_key("--parts", dict(shares), bool(shares) and fine, "shares above 0 with a sum of at most 1")
    names = named_datasets(names, declared)
    there = [path for path in (output / f"{part}.txt" for part in shares) if path.exists()]
    if there:
        raise DatasetError(f"{there[0]} is there already. Delete it, or name another folder with --output.")
    records = list({record["file_name"]: record for name in names for record in load_records(name)}.values())
    readers = {name: label_reader_for(name) for name in names}
    holds = count_label_files(records, readers, workers=workers).per_image > 0
    groups = [GROUPINGS[grouping](Path(record["file_name"])) for record in records] if grouping else []
    parts = divide(holds, list(shares.values()), groups=groups, seed=seed)
    empty = [name for name, part in zip(shares, parts, strict=True) if not part]
    if empty:
        raise DatasetError(
            f"The part '{empty[0]}' would be empty: {len(records)} images"
            + (f" in {len(set(groups))} groups" if groups else "")
            + " are too few for its share."
        )
    lines = []
    for name, part in zip(shares, parts, strict=True):
        pairs = [(records[i]["file_name"], records[i]["sem_seg_file_name"]) for i in part]
        write_text(output / f"{name}.txt", list_text([tuple(map(Path, pair)) for pair in pairs], None))
        per_class = ", ".join(map(str, holds[part].sum(0)))
        lines.append(f"{output / f'{name}.txt'}: {len(part)} images; with a pixel of each class: {per_class}")
    splits = [f"  {name}: {{list: {(output / f'{name}.txt').resolve()}}}" for name in shares]
    return "\n".join([*lines, "", "In the declaration:", "splits:", *splits])
