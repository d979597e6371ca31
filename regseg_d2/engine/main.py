"""What every process of ``tools/train_net.py`` does."""

from __future__ import annotations

import argparse
import difflib
import logging
import shlex
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.logger import setup_logger

from regseg_d2.common.errors import check_key, printable_lines
from regseg_d2.common.files import write_text
from regseg_d2.common.yaml_files import parse_yaml, read_yaml
from regseg_d2.config.files import describe_changed_defaults, format_config, load_config_with_origins
from regseg_d2.config.keys import flatten_config
from regseg_d2.engine.devices import limit_cpu_threads, with_available_device
from regseg_d2.engine.hooks import Results
from regseg_d2.engine.run_lock import run_lock
from regseg_d2.engine.run_report import describe_environment
from regseg_d2.engine.seeding import make_deterministic, seed_everything
from regseg_d2.engine.trained_model import load_trained_model
from regseg_d2.engine.trainer import Trainer
from regseg_d2.evaluation.inference import refuse_unsupported

logger = logging.getLogger(__name__)

#: Copy of the declared data sets in a run's folder.
DECLARED_COPY = "declared.yaml"


def main(args: argparse.Namespace) -> Results:
    """Trains or evaluates, as the arguments say.

    Returns:
        ``{data set: {task: {metric: score}}}`` of the last evaluation.

    Raises:
        UserError: anything that the user can cure.
    """
    # Importing them registers data sets, backbones, heads and the meta-architecture.
    import regseg_d2.data
    import regseg_d2.segmentor  # noqa: F401
    from regseg_d2.data.checks import check_datasets
    from regseg_d2.data.datasets.declared import register_declared

    cfg, origins = load_config_with_origins(args.config_file, args.opts)
    cfg.MODEL.TRUST_PICKLE = cfg.MODEL.TRUST_PICKLE or args.trust_pickle
    cfg.freeze()
    check_key("OUTPUT_DIR", cfg.OUTPUT_DIR, bool(cfg.OUTPUT_DIR), "a folder")
    with nullcontext() if args.eval_only else run_lock(cfg.OUTPUT_DIR):
        set_up(cfg, args)
        if message := describe_changed_defaults(cfg, origins):
            logger.warning(message)
        register_declared(cfg.DATASETS.DECLARED)
        check_datasets(cfg)
        return (
            evaluate_checkpoint(cfg, resume=args.resume) if args.eval_only else train(cfg, resume=args.resume)
        )


def train(cfg: CfgNode, *, resume: bool = False) -> Results:
    """Trains, and writes ``config.yaml`` once the run has made a step."""
    trainer = Trainer(cfg)
    if resume:
        warn_about_changes(cfg)
    trainer.resume_or_load(resume=resume)
    # Not before: a start that fails leaves the files of the run that it found.
    trainer.on_first_step.append(partial(save_config, cfg, seed=trainer.seed))
    return trainer.train()


def set_up(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Prepares the output folder, logging and threads of this process.

    Does what Detectron2's ``default_setup`` does, but for seeding (the trainer's) and ``config.yaml``
    (:func:`save_config`), and with this package's logger.
    """
    if comm.is_main_process():
        Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    comm.synchronize()
    for name in ("fvcore", "detectron2", "regseg_d2"):
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name=name, abbrev_name=name)
    for handler in logging.getLogger("regseg_d2").handlers:
        handler.addFilter(_make_printable)
    limit_cpu_threads()
    logger.info("%s; process %d of %d.", describe_environment(), comm.get_rank(), comm.get_world_size())
    logger.info("Config: %s %s", args.config_file or "the defaults", shlex.join(map(str, args.opts)))


def _make_printable(record: logging.LogRecord) -> bool:
    """A filter of messages: names of files and classes in them cannot steer the terminal."""
    record.msg, record.args = printable_lines(record.getMessage()), ()
    return True


def evaluate_checkpoint(cfg: CfgNode, *, resume: bool = False) -> Results:
    """Evaluates MODEL.WEIGHTS, or the last checkpoint of OUTPUT_DIR, on all of DATASETS.TEST.

    Raises:
        CheckpointError: there are no weights, or they do not fit the model.
    """
    refuse_unsupported(cfg)
    saved_config = cfg
    cfg = with_available_device(cfg)
    if cfg.DETERMINISTIC:
        make_deterministic()
    seed_everything(max(cfg.SEED, 0))
    trained = load_trained_model(cfg, resume=resume)
    if not (Path(cfg.OUTPUT_DIR) / "config.yaml").exists():
        save_config(saved_config, seed=cfg.SEED)  # a training run's own is kept
    return Trainer.test(cfg, trained.model, completed_steps=trained.completed_steps)


def save_config(cfg: CfgNode, *, seed: int) -> None:
    """Writes ``<OUTPUT_DIR>/config.yaml``: the config as given ("auto" stays), with the seed of the run.

    Versions and devices of this machine go into ``environment.txt``; files of ``DATASETS.DECLARED`` are
    copied into ``declared.yaml``: they may change later.
    """
    if not comm.is_main_process():
        return
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SEED = seed
    path = Path(cfg.OUTPUT_DIR) / "config.yaml"
    write_text(path, format_config(cfg))
    write_text(path.with_name("environment.txt"), f"{collect_env_info()}\n")
    logger.info("Wrote the config to %s, and versions and devices to environment.txt beside it.", path)
    if cfg.DATASETS.DECLARED:
        write_text(Path(cfg.OUTPUT_DIR) / DECLARED_COPY, _declarations(cfg))


def warn_about_changes(cfg: CfgNode) -> None:
    """Logs which keys, and lines of declared data sets, differ from those of the run that is resumed.

    Raises:
        ConfigError: the run's ``config.yaml`` is damaged.
    """
    copy = Path(cfg.OUTPUT_DIR) / DECLARED_COPY
    if copy.is_file():
        _warn_about_declarations(copy.read_text(encoding="utf-8", errors="replace"), _declarations(cfg))
    path = Path(cfg.OUTPUT_DIR) / "config.yaml"
    if not path.is_file():
        return
    before = flatten_config(read_yaml(path))
    if not before:
        logger.warning("'%s' is empty: what differs from the run that is resumed is not known.", path)
        return
    now = flatten_config(parse_yaml(cfg.dump(), "the config"))
    changed = [
        f"{key}: {before.get(key)!r} -> {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if key != "SEED" and before.get(key) != now.get(key)
    ]
    if changed:
        logger.warning("Keys that differ from the run that is resumed:\n%s", "\n".join(changed))


def _declarations(cfg: CfgNode) -> str:
    """The files of ``DATASETS.DECLARED``, one YAML document each."""
    files = [Path(name) for name in cfg.DATASETS.DECLARED]
    return "".join(f"--- # {file}\n{file.read_text(encoding='utf-8').rstrip()}\n" for file in files)


def _warn_about_declarations(before: str, now: str) -> None:
    lines = difflib.unified_diff(before.splitlines(), now.splitlines(), lineterm="", n=0)
    # Behind the two lines that would name files; places in them ("@@") say little here.
    changed = [line for line in list(lines)[2:] if not line.startswith("@@")]
    if changed:
        logger.warning("Lines of declared data sets that differ from the run's:\n%s", "\n".join(changed))
