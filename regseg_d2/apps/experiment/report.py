"""The report of an experiment: Markdown, CSV tables and plots from a folder of records, and nothing else."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from regseg_d2.apps.experiment import tables
from regseg_d2.apps.experiment.plots import draw_all
from regseg_d2.apps.experiment.report_input import Results, read_results
from regseg_d2.apps.experiment.scores import MEASURE, METRIC, TAIL, Quantity, Scores
from regseg_d2.apps.experiment.statistics import ALPHA, TOO_FEW_SEEDS, VERDICTS, simultaneous_level
from regseg_d2.apps.experiment.tables import Compared, markdown, number, seed_list, short
from regseg_d2.common.files import atomic_writer, write_text

# A doubled schedule that gains less than this says that the schedule was long enough.
FLAT = 0.5
# The report shows all classes of a data set with up to so many; of others the rare ones.
MAX_CLASSES = 40
_PLOTS = ("differences", "pairs", "conditions", "curves")


def write_report(results_folder: Path, output: Path) -> None:
    """Writes ``report.md``, ``tables/*.csv`` and ``plots/*.svg`` and ``.png``.

    The same records give the same bytes, with the same versions of the libraries.

    Args:
        results_folder: with ``experiment.json``, ``classes.json`` and
            ``<condition>/<arm>/seed<k>.json``.
        output: folder to write to; made where it is missing. It may be the same folder.

    Raises:
        ConfigError: a file is missing or damaged, or does not fit the others. Nothing is written then.
    """
    scores = Scores(read_results(Path(results_folder)))
    report = _Report(scores)
    text = report.text()
    csv_files = tables.csv_files(scores, report.compared)
    output = Path(output)
    for name, content in csv_files.items():
        write_text(output / "tables" / name, content)
    for name, data in report.plots.items():
        with atomic_writer(output / "plots" / name, "wb") as file:
            file.write(data)
    for name in _PLOTS:  # of an earlier report of other records
        for kind in ("svg", "png"):
            if f"{name}.{kind}" not in report.plots:
                (output / "plots" / f"{name}.{kind}").unlink(missing_ok=True)
    write_text(output / "report.md", text)


class _Report:
    """Puts the sections together; each method gives the paragraphs of one."""

    def __init__(self, scores: Scores) -> None:
        self.scores = scores
        self.results: Results = scores.results
        self.primary = scores.primary()
        self.condition = self.results.primary.condition
        self.compared: dict[tuple[str, Quantity], Compared] = {
            (condition, quantity): scores.compare(condition, quantity)
            for condition in self.results.conditions
            for dataset in self.results.datasets()
            for quantity in tables.all_quantities(scores, dataset)
        }
        self.main = self.compared.get((self.condition, self.primary), {})
        others = {
            (condition, quantity.dataset): compared
            for (condition, quantity), compared in self.compared.items()
            if (quantity.kind, quantity.name) == (self.primary.kind, self.primary.name)
        }
        self.digits = tables.digits_of(scores, self.primary)
        self.plots = draw_all(self.results, self.primary, self.digits, self.main, others)

    def text(self) -> str:
        """The Markdown file."""
        parts = [f"# {self.results.name}"]
        if not self.results.records:
            parts.append("There is no record yet.")
        parts += self._verdicts()
        if self.results.records:
            parts += [*self._schedule(), *self._scores(), *self._classes(), *self._measures()]
        parts += [*self._runs(), *self._arms()]
        return "\n\n".join(parts) + "\n"

    def _verdicts(self) -> list[str]:
        primary, methods = self.results.primary, len(self.main)
        about = (
            f"Primary number: **{primary.metric} on {primary.dataset}, condition {primary.condition}**"
            f"{', of which less is better' if self.primary.lower_is_better else ''}. "
            "Verdicts are about it alone."
        )
        if not self.main:
            return [about]
        words = {
            word: [arm for arm, (_, result) in self.main.items() if result.verdict == word]
            for word in VERDICTS
        }
        summary = [f"- **{word}**: {', '.join(arms)}" for word, arms in words.items() if arms]
        level = f"{100 * simultaneous_level(methods):.4g}"
        how = (
            f"Each arm is compared with its control at the same seeds; {_count(methods, 'comparison')} "
            "in all. "
            f"A gain or a loss is shown if p after Holm's correction is below {ALPHA} and the simultaneous "
            f"interval (BCa bootstrap over seeds, {level} %) leaves zero out. p is of the sign-flip test, "
            "two-sided. ± is the standard deviation over seeds."
        )
        parts = [about, "\n".join(summary), "## Verdicts"]
        parts += [tables.primary_table(self.main, self.digits), how]
        few = [arm for arm, (_, result) in self.main.items() if result.verdict == TOO_FEW_SEEDS]
        if few:
            parts.append(
                "Too few seeds: whatever came out, p after Holm's correction could not have been below "
                f"{ALPHA}."
            )
        parts += self._unpaired(self.main)
        return [*parts, *self._plot("differences"), *self._plot("pairs")]

    def _unpaired(self, compared: Compared) -> list[str]:
        lines = [
            f"- {arm} against {pairs.control}: left out, having no partner: {_seeds(seeds)} of {name}"
            for arm, (pairs, _) in compared.items()
            for name, seeds in pairs.unpaired.items()
        ]
        return ["\n".join(lines)] if lines else []

    def _plot(self, name: str) -> list[str]:
        return [f"![{name}](plots/{name}.png)"] if f"{name}.png" in self.plots else []

    def _schedule(self) -> list[str]:
        return ["## Is the schedule long enough?", self._schedule_sentence(), *self._plot("curves")]

    def _schedule_sentence(self) -> str:
        check = self.results.schedule_check
        if check is None:
            return "It was not checked with a longer one."
        longer = self.scores.values(check.name, check.arm, self.primary)
        usual = self.scores.values(check.condition, check.arm, self.primary)
        seeds = sorted(longer.keys() & usual.keys())
        times = {2: "doubled", 3: "tripled"}.get(check.factor, f"{check.factor} times longer")
        if not seeds:
            return f"The {times} schedule of {check.arm} has not been run yet."
        gain = sum(longer[seed] - usual[seed] for seed in seeds) / len(seeds)
        if self.primary.lower_is_better:
            return (
                f"A {times} schedule changes {check.arm} by {number(gain, self.digits, sign=True)} "
                f"{self.primary.name} ({_count(len(seeds), 'seed')}: {seed_list(seeds)})."
            )
        verdict = (
            f"less than {FLAT} points: the schedule is long enough"
            if gain < FLAT
            else f"{FLAT} points or more: **the schedule is too short**, and arms may differ in speed alone"
        )
        return (
            f"A {times} schedule gains {number(gain, 2, sign=True)} points of {self.primary.name} on "
            f"{self.primary.dataset} for {check.arm} "
            f"({_count(len(seeds), 'seed')}: {seed_list(seeds)}), {verdict}."
        )

    def _scores(self) -> list[str]:
        parts = ["## Scores"]
        parts.append(
            "Mean ± standard deviation over all seeds of an arm. Differences are paired, with their 95 % "
            "interval, not corrected for how many there are: they are for reading on, and no verdicts."
        )
        for condition in self.results.conditions:
            for dataset in self.results.datasets():
                parts += self._block(condition, dataset, (METRIC,))
        return [*parts, *self._plot("conditions")]

    def _measures(self) -> list[str]:
        parts: list[str] = []
        for condition in self.results.conditions:
            for dataset in self.results.datasets():
                parts += self._block(condition, dataset, (MEASURE,))
        return ["## Measures", *parts] if parts else []

    def _block(self, condition: str, dataset: str, kinds: Iterable[str]) -> list[str]:
        """Means and differences of the numbers of some kinds, in a condition, on a data set."""
        quantities = [
            quantity
            for quantity in tables.all_quantities(self.scores, dataset)
            if quantity.kind in kinds
            and any(self.scores.values(condition, arm, quantity) for arm in self.results.arms_of(condition))
        ]
        if not quantities:
            return []
        parts = [
            f"### {condition}: {dataset}",
            tables.scores_table(self.scores, condition, quantities),
        ]
        compared = {quantity: self.compared[condition, quantity] for quantity in quantities}
        if any(compared.values()):
            parts.append(tables.differences_table(self.scores, compared))
        return parts

    def _classes(self) -> list[str]:
        parts: list[str] = []
        for dataset in self.results.datasets():
            classes = self.scores.classes(dataset)
            if not classes:
                continue
            tail = self.scores.tail(dataset)
            shown = classes if len(classes) <= MAX_CLASSES or not tail else tail
            note = f"IoU in condition {self.condition}, most frequent classes first; Δ is arm minus control."
            if len(shown) < len(classes):
                note += f" {len(shown)} rare classes of {len(classes)}; all are in `tables/classes.csv`."
            if not tail:
                note += " How frequent the classes are is not known, so no tail is shown."
            parts += [f"### {dataset}", note]
            parts.append(tables.classes_table(self.scores, self.condition, dataset, shown))
        tails = [
            part
            for condition in self.results.conditions
            for dataset in self.results.datasets()
            for part in self._block(condition, dataset, (TAIL,))
        ]
        if tails:
            parts += [
                "## Tail",
                "Mean IoU of the third of the classes with the least training pixels.",
                *tails,
            ]
        return ["## Classes", *parts] if parts else []

    def _runs(self) -> list[str]:
        results = self.results
        parts = ["## Runs", *self._missing()]
        if not results.records:
            return parts
        commits: dict[str, int] = {}
        for record in results.records.values():
            commits[record.commit] = commits.get(record.commit, 0) + 1
        named = ", ".join(f"`{short(name)}` ({_count(n, 'run')})" for name, n in sorted(commits.items()))
        parts.append(f"Commits: {named}." + (" **They differ.**" if len(commits) > 1 else ""))
        if any("+" in name for name in commits):
            parts.append("**`+changes`: files under version control differed from the commit.**")
        mixed = dict.fromkeys(
            f"{condition}/{arm}"
            for condition, arm, _ in results.records
            if len({r.config_digest for r in results.runs(condition, arm).values()}) > 1
        )
        if mixed:
            parts.append(f"**Seeds of one arm were run with different configs: {', '.join(mixed)}.**")
        skipped = sum(record.skipped_steps for record in results.records.values())
        parts.append(f"Skipped steps (loss not finite): {skipped}.")
        parts.append(tables.runs_table(results))
        return parts

    def _missing(self) -> list[str]:
        results = self.results
        lines = []
        for condition in results.conditions:
            for arm in results.arms_of(condition):
                missing = set(results.planned[condition][arm]) - results.runs(condition, arm).keys()
                if missing:
                    lines.append(f"- {condition}/{arm}: {_seeds(missing)}")
        if not lines:
            return ["All pairs are complete."] if results.records else []
        return ["Missing runs:", "\n".join(lines)]

    def _arms(self) -> list[str]:
        rows = [
            [arm, control or tables.NOTHING, ", ".join(f"`{k} {v}`" for k, v in sorted(overrides.items()))]
            for arm, control in self.results.arms.items()
            for overrides in [self.results.overrides[arm]]
        ]
        return ["## Arms", markdown(["arm", "control", "sets"], rows, texts=3)]


def _seeds(seeds: Collection[int]) -> str:
    return f"seed{'' if len(seeds) == 1 else 's'} {seed_list(seeds)}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
