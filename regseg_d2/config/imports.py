"""The modules that a config names in ``IMPORTS``: imported, and asked for keys of their own."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from detectron2.config import CfgNode

from regseg_d2.common.errors import ConfigError
from regseg_d2.common.suggestions import did_you_mean
from regseg_d2.common.yaml_files import shown
from regseg_d2.config import get_regseg_cfg
from regseg_d2.config.keys import IMPORTS_KEY, flatten_config

# Function of a module that adds its keys, where the entry names no other.
ADD_CONFIG = "add_config"

_ENTRY = re.compile(r"(?:(?P<folder>.*)/)?(?P<module>[^\W\d]\w*(?:\.[^\W\d]\w*)*)(?::(?P<function>\w+))?")
_FORM = "a list of modules, such as [my_project.networks] or ['my_project.networks:add_my_config']"


@dataclass(frozen=True)
class UserModule:
    """An entry of ``IMPORTS``.

    ``folder`` is where it was found beside the config that names it; None leaves it to the Python path.
    ``function`` adds its keys; None is ``add_config``, where there is one. ``origin`` is the config's file.
    """

    folder: str | None
    module: str
    function: str | None
    origin: str

    def __str__(self) -> str:
        """The entry with its folder: it names the same module from any other config."""
        text = self.module if self.folder is None else f"{self.folder}/{self.module}"
        return text if self.function is None else f"{text}:{self.function}"


def find_modules(entries: Any, folder: str | None, origin: str) -> list[UserModule]:
    """Reads a value of ``IMPORTS``; nothing is imported.

    Args:
        entries: names of modules. A name may have a folder in front, ``../code/my_networks``, and a function
            behind, ``my_networks:add_keys``.
        folder: absolute path of the folder that modules are looked for in before the Python path, and that
            theirs are relative to; None where the entries are those of a config that was loaded.
        origin: the file that has the entries, for errors.

    Raises:
        ConfigError: that is no list of such names.
    """
    if not isinstance(entries, (list, tuple)):
        raise ConfigError(f"{origin}: '{IMPORTS_KEY}' is {shown(entries)}; expected {_FORM}.")
    modules = []
    for entry in entries:
        match = _ENTRY.fullmatch(entry) if isinstance(entry, str) else None
        if match is None:
            raise ConfigError(f"{origin}: '{IMPORTS_KEY}' has the entry {shown(entry)}; expected {_FORM}.")
        given, name = match["folder"], match["module"]
        if given is not None:  # "/" alone is the root
            place: str | None = os.path.abspath(os.path.join(folder or "", os.path.expanduser(given or "/")))
        else:
            place = folder if folder is not None and _find_in(folder, name) else None
        modules.append(UserModule(place, name, match["function"], origin))
    return modules


def default_config(modules: Sequence[UserModule]) -> tuple[CfgNode, dict[str, str]]:
    """Returns the defaults, with ``IMPORTS`` and the keys that its modules add.

    Returns:
        The defaults; and of each key that was there before a module changed it, ``{dotted key: "IMPORTS" and
        the module}``. The value of a key that a module took away is no longer in the defaults.
    """
    adders = import_modules(modules)
    cfg = get_regseg_cfg()  # behind the imports: a module may register a regularizer, which has a section
    changed: dict[str, str] = {}
    for module, add_keys in adders.items():
        before = flatten_config(cfg.clone())  # a list may be changed in place
        add_keys(cfg)
        now = flatten_config(cfg)
        origin = f"{IMPORTS_KEY} {module}"
        changed.update((key, origin) for key, value in before.items() if key not in now or now[key] != value)
    cfg.IMPORTS = list(adders)
    return cfg, changed


def import_modules(modules: Iterable[UserModule]) -> dict[str, Callable[[CfgNode], None]]:
    """Imports modules, each once however often it is named.

    Their folders are on ``sys.path`` from then on, as that of a script is.

    Returns:
        What adds the keys of each, by module and in order: functions of a config that raise ConfigError.

    Raises:
        ConfigError: a module or a function is not there, or a module fails; with the user's traceback.
    """
    adders: dict[str, Callable[[CfgNode], None]] = {}
    for module in modules:
        if str(module) in adders:
            continue
        loaded = _import(module)
        function = getattr(loaded, module.function or ADD_CONFIG, None)
        if module.function and not callable(function):
            functions = [name for name, value in vars(loaded).items() if callable(value)]
            raise ConfigError(
                f"{_start(module)} {loaded.__name__!r} has no function {module.function!r}"
                f"{did_you_mean(module.function, functions)}."
            )
        adders[str(module)] = _Adder(module, function)
    return adders


@dataclass(frozen=True)
class _Adder:
    module: UserModule
    function: Callable[[CfgNode], Any] | None

    def __call__(self, cfg: CfgNode) -> None:
        if self.function is None:
            return
        try:
            self.function(cfg)
        except (Exception, SystemExit) as error:
            name = f"{self.module.module}.{self.module.function or ADD_CONFIG}"
            raise ConfigError(
                f"{_start(self.module)} {name}(cfg) failed:\n{_own_traceback(error)}"
            ) from error


def _import(module: UserModule) -> ModuleType:
    if module.folder is not None:
        _refuse_namesakes(module, module.folder)
        if module.folder not in sys.path:
            sys.path.insert(0, module.folder)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module.module)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module.module}.".startswith(f"{missing}."):
            raise ConfigError(_missing_message(module)) from error
        raise ConfigError(
            f"{_start(module)} importing {module.module!r} failed:\n{_own_traceback(error)}"
        ) from error


def _find_in(folder: str, name: str) -> ModuleSpec | None:
    """Finds a module below a folder, without running anything; a plain folder is none."""
    path: Sequence[str] | None = [folder]
    spec = None
    parts = name.split(".")
    for number in range(len(parts)):
        # A package's parts are looked up by their full name.
        spec = PathFinder.find_spec(".".join(parts[: number + 1]), path)
        if spec is None:
            return None
        path = spec.submodule_search_locations or []
    return spec if spec is not None and spec.origin is not None else None


def _refuse_namesakes(module: UserModule, folder: str) -> None:
    """Python would hand out the module of that name that it has."""
    top = module.module.split(".")[0]
    there, spec = sys.modules.get(top), PathFinder.find_spec(top, [folder])
    if there is None or spec is None:
        return
    places = [getattr(there, "__file__", None), *getattr(there, "__path__", [])]
    wanted = [spec.origin, *(spec.submodule_search_locations or [])]
    real = {os.path.realpath(place) for place in wanted if place is not None}
    if not any(os.path.realpath(place) in real for place in places if place is not None):
        other = next((place for place in places if place is not None), "Python itself")
        raise ConfigError(
            f"{_start(module)} {module.module!r} is in {folder!r}, and another {top!r} is in use, that of "
            f"{other!r}. Give yours another name."
        )


def _missing_message(module: UserModule) -> str:
    parent, _, _ = module.module.rpartition(".")
    package = sys.modules.get(parent)
    if package is not None and hasattr(package, "__path__"):
        names = [f"{parent}.{found.name}" for found in pkgutil.iter_modules(package.__path__)]
    else:
        beside = [] if module.folder is None else [module.folder]
        names = [found.name for found in pkgutil.iter_modules([*beside, *sys.path])]
    place = (
        "beside the config file or on the Python path" if module.folder is None else f"in {module.folder!r}"
    )
    return (
        f"{_start(module)} there is no such module {place}{did_you_mean(module.module, names)}. Install it, "
        f"put its folder on PYTHONPATH, or name the folder, as in ../code/{module.module}."
    )


def _start(module: UserModule) -> str:
    return f"{module.origin}: {IMPORTS_KEY} names {str(module)!r}:"


def _own_traceback(error: BaseException) -> str:
    """The traceback of an error from the first line of the user's on."""
    summary = traceback.TracebackException.from_exception(error)
    frames = list(summary.stack)
    machinery = (__file__, importlib.__file__)
    while frames and (frames[0].filename in machinery or "<frozen importlib" in frames[0].filename):
        frames.pop(0)
    summary.stack = traceback.StackSummary.from_list(frames)
    if not frames:
        return "".join(summary.format_exception_only()).rstrip()
    return "".join(summary.format()).rstrip()
