"""``regseg experiment FILE``: trains the arms of an experiment over seeds, and reports what differs."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from regseg_d2.apps.experiment.plan import Run, choose_runs, plan_runs
from regseg_d2.apps.experiment.running import TAKEN, Options, check_records, work_off, write_description
from regseg_d2.apps.experiment.slurm import parse_parameters, require_slurm, work_off_with_slurm
from regseg_d2.apps.experiment.spec import read_experiment
from regseg_d2.common.errors import errors_end_the_program, print_error
from regseg_d2.engine.interruption import INTERRUPTED_EXIT_CODE, Interrupted
from regseg_d2.engine.run_lock import FolderInUseError


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Returns the arguments of the command line."""
    parser = argparse.ArgumentParser(
        description="Trains the arms of an experiment, each over several seeds, and reports what differs. "
        "What has a record is not trained again; a training that was interrupted goes on.",
    )
    parser.add_argument("file", metavar="FILE", help="YAML file of the experiment; see docs/experiments.md")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trainings at a time (default: 1)")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="RUN",
        help="runs by name, CONDITION/ARM/seedN, with * for anything (default: all)",
    )
    parser.add_argument(
        "--slurm",
        nargs="+",
        metavar="KEY=VALUE",
        help="train in SLURM jobs with these options of sbatch, such as time=240 partition=gpu gres=gpu:1",
    )
    parser.add_argument("--list", action="store_true", help="show what is done and what is missing, and stop")
    parser.add_argument("--report", action="store_true", help="write the report from the records, and stop")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/experiments"),
        help="folder of the trainings' folders (default: %(default)s)",
    )
    parser.add_argument(
        "--keep-weights", action="store_true", help="keep the checkpoints of finished trainings"
    )
    parser.add_argument(
        "--nice",
        type=int,
        default=0,
        metavar="N",
        help="be nice to other processes (0 to 19); where Linux groups them by session, to those of this "
        "one: echo N > /proc/self/autogroup makes the whole session nice",
    )
    parser.add_argument(
        "--allow-commit-mix", action="store_true", help="take records of other commits and arms as they are"
    )
    parser.add_argument("--run", metavar="RUN", help="make this one run in this process, and stop")
    args = parser.parse_args(words)
    if args.jobs < 1:
        parser.error(f"--jobs is {args.jobs}; expected 1 or more")
    if args.slurm and args.nice:
        parser.error("--nice is for trainings on this machine; SLURM's own is --slurm nice=N")
    return args


def main() -> None:
    """Does what the command line says."""
    args = parse_arguments()
    with errors_end_the_program():
        experiment = read_experiment(args.file)
        runs = plan_runs(experiment)
        if args.run:
            make_one(choose_runs(runs, [args.run])[0], args)
            return
        check_records(runs, args.allow_commit_mix)
        chosen = choose_runs(runs, args.only)
        if args.list:
            for run in chosen:
                print(f"{'done   ' if run.record.is_file() else 'missing'}  {run.name}")
            return
        slurm = args.slurm and not args.report and parse_parameters(args.slurm, args.jobs)
        if slurm:
            require_slurm()  # before anything is written
        # Not above: a training of its own process draws nothing.
        from regseg_d2.apps.experiment.report import write_report

        write_description(experiment)
        try:
            if not args.report:
                options = Options(args.output, args.jobs, args.keep_weights, args.nice)
                if slurm:
                    work_off_with_slurm(chosen, options, slurm)
                else:
                    work_off(chosen, options)
        finally:
            # Also of what there is when some runs failed or were stopped.
            write_report(experiment.results, experiment.results)
            print(f"The report is in {experiment.results / 'report.md'}", flush=True)


def make_one(run: Run, args: argparse.Namespace) -> None:
    """Makes one run in this process, and ends with a status that the runner knows."""
    # Not above: only a training needs the engine.
    from regseg_d2.apps.experiment.one_run import perform

    try:
        perform(run, args.output, keep_weights=args.keep_weights)
    except FolderInUseError as error:
        print_error(error, "")
        sys.exit(TAKEN)
    except Interrupted as interruption:
        print_error(interruption, "")
        os._exit(INTERRUPTED_EXIT_CODE)
