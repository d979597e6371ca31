"""Changed files of every kind that a stranger can hand over: only our errors may come out.

    python -m tests.fuzz --minutes 10

reads each in another process within two seconds and one gigabyte, and keeps those that broke something.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.readers import read_any
from tests.fuzz.seeds import Kind, kinds
from tests.fuzz.worker import LimitedReader, Outcome

# The memory of a process that has read many files is no measure any more.
_INPUTS_PER_PROCESS = 2000
# Of each kind and outcome; they mostly have one cause.
_MOST_KEPT = 20


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Returns the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="of the changes (default: a random one)")
    parser.add_argument("--kinds", nargs="+", choices=sorted(kinds()), default=sorted(kinds()))
    parser.add_argument("--failures", type=Path, default=Path("output/fuzz"), help="(default: %(default)s)")
    return parser.parse_args(arguments)


def inputs(chosen: dict[str, Kind], seed: int):
    """Yields kind, number, file name and bytes without end; each follows from kind, seed and number.

    Args:
        chosen: kinds by name.
        seed: of the changes.
    """
    number = 0
    while True:
        for name, kind in chosen.items():
            yield name, number, *kind.draw(random.Random(f"{name} {seed} {number}"))
        number += 1


def keep(folder: Path, kind: str, name: str, data: bytes, outcome: Outcome) -> Path:
    """Writes a file that broke something, and what it broke; returns its path.

    Args:
        folder: where to.
        kind: of the file.
        name: file name, whose ending counts.
        data: the bytes.
        outcome: what came out.
    """
    path = folder / kind / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.with_name(f"{name}.txt").write_text(f"{outcome.kind}\n{outcome.detail}\n", errors="backslashreplace")
    return path


def main(arguments: list[str] | None = None) -> int:
    """Runs until the time is over; returns the exit status."""
    args = parse_arguments(arguments)
    seed = random.randrange(1 << 30) if args.seed is None else args.seed
    print(f"seed: {seed}", flush=True)
    counts: Counter[tuple[str, str]] = Counter()
    slowest: dict[str, float] = {}
    chosen = {name: kind for name, kind in kinds().items() if name in args.kinds}
    end = time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory() as folder, LimitedReader(read_any) as reader:
        for kind, number, name, data in inputs(chosen, seed):
            if time.monotonic() > end:
                break
            path = Path(folder, kind, name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
            outcome = reader.read(path)
            path.unlink()
            counts[kind, outcome.kind] += 1
            slowest[kind] = max(slowest.get(kind, 0.0), outcome.seconds)
            if not outcome.is_right and counts[kind, outcome.kind] <= _MOST_KEPT:
                kept = keep(args.failures, kind, f"{seed}_{number}_{name}", data, outcome)
                print(f"{kept}: {outcome.kind}: {outcome.detail.strip().splitlines()[-1][:200]}", flush=True)
            if sum(counts.values()) % _INPUTS_PER_PROCESS == 0:
                reader.stop()
    for (kind, outcome_kind), count in sorted(counts.items()):
        print(f"{kind}: {count} {outcome_kind}")
    print(", ".join(f"slowest of {kind}: {seconds:.2f} s" for kind, seconds in sorted(slowest.items())))
    return 0 if all(kind in ("accepted", "refused") for _, kind in counts) else 1


if __name__ == "__main__":
    sys.exit(main())
