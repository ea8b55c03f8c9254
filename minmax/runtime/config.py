"""Flags and configuration files: one dataclass field is one flag, one line of help and one line of YAML."""

import argparse
import contextlib
import dataclasses
import io
import logging
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NoReturn, Protocol, TypeVar, get_type_hints

import cattrs
import tyro
import yaml
from cattrs.v import format_exception

from minmax.runtime.devices import Precision
from minmax.runtime.errors import RunError, SettingError, UsageError, problem_of_the_machine
from minmax.runtime.errors import require as require

REPOSITORY = Path(__file__).resolve().parents[2]
DEFAULT_RUNS = REPOSITORY / "runs" if (REPOSITORY / "pyproject.toml").is_file() else Path("runs")
"""In a checkout at its top; an installed package has none around it and takes the working folder."""
SECTIONS = {"train_day": "day", "train_darkener": "darkener", "train": "adapt", "test": "test"}
"""The section of a recipe that a script reads, by the script's name."""


class DataclassInstance(Protocol):
    """Any dataclass instance."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


ConfigT = TypeVar("ConfigT", bound=DataclassInstance)

Switch = Annotated[
    bool,
    tyro.conf.FlagConversionOff,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="{true,false}",
        instance_from_str=lambda arguments: arguments[0] == "true",
        is_instance=lambda value: isinstance(value, bool),
        str_from_instance=lambda value: ["true" if value else "false"],
        choices=("true", "false"),
    ),
]
"""A boolean that is on unless it is told otherwise: `--flag false`."""


SHIPPED_DARKENERS = ("starting-point", "night-to-look-at")
"""Names that stand for files of the package, where a path is expected."""


@dataclass(frozen=True, kw_only=True)
class CommonFlags:
    """The flags that every training script has."""

    name: str
    """Name of the run; its folder is RUNS/TASK/NAME and must not exist yet."""
    data: str = "scenes"
    """Folder of the data set, or `scenes` for the built-in data."""
    seed: int = 0
    """Seed of everything random."""
    device: str = "auto"
    """auto, cpu, mps, cuda, cuda:1, or cuda:0,1 for DataParallel; start with torchrun for DDP."""
    precision: Precision = "fp32"
    """Arithmetic of the forward passes (autocast)."""
    compile: bool = False
    """Compile the network (torch.compile): the first steps take a minute or more, later ones less time on a GPU."""
    workers: int = 2
    """Processes that decode and augment images; 0 does it in the main process."""
    threads: int = 0
    """CPU threads of torch; 0 keeps torch's choice."""
    resume: bool = False
    """Continue the run NAME exactly where its last checkpoint stands. Other flags need not be typed again; data and
    checkpoints may have moved (type where they are now), and --optim.epochs may grow."""
    quick: bool = False
    """Shrink everything to a smoke test of a minute; what is typed beside it stays."""
    config: Path | None = None
    """A recipe, or the config.yaml of an earlier run: its values become the defaults of all flags."""
    runs: Path = DEFAULT_RUNS
    """Folder that holds the runs of all tasks."""
    profile: bool = False
    """Tell where the time of a step goes: parts and operators of steps 4 to 13, into profile.txt of the run."""
    save_minutes: float = 5.0
    """Write a checkpoint at least this often; one is also written after every epoch and on SIGTERM or Ctrl-C."""

    def __post_init__(self) -> None:
        """Refuse values that no script can work with, and make paths absolute: a run can be replayed from anywhere."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Path) and str(value) in SHIPPED_DARKENERS:
                continue
            if isinstance(value, Path) or (field.name == "data" and value != "scenes"):
                absolute = Path(value).expanduser().absolute()
                object.__setattr__(self, field.name, str(absolute) if field.name == "data" else absolute)
        if not self.name or Path(self.name).name != self.name or self.name.startswith("."):
            raise UsageError(f"--name {self.name!r}: expected a plain folder name")
        require(self.workers >= 0, "--workers", self.workers, "0 or more")
        require(self.threads >= 0, "--threads", self.threads, "0 or more")
        require(self.save_minutes > 0, "--save-minutes", self.save_minutes, "more than 0")


Brightening = Literal["none", "gamma", "clahe"]


@dataclass(frozen=True, kw_only=True)
class MeasuringFlags:
    """The flags that every script that only measures has."""

    checkpoint: Path
    """The network to measure: best.pt or last-epoch.pt of a run."""
    before: Path | None = None
    """A second network to compare with, such as the daytime one."""
    output: Path | None = None
    """Folder of the results; by default test/ beside the checkpoint, test-adabn/ and the like of other measurements."""
    brighten: Brightening = "none"
    """What brightens every image before the network: gamma, a power that brings a darker one to a mean of 0.45; clahe,
    local equalisation."""
    adabn: bool = False
    """AdaBN: count BatchNorm's statistics anew on each data set before it is measured. Not zero-shot."""
    device: str = "auto"
    """auto, cpu, mps, cuda or cuda:1."""
    precision: Precision = "fp32"
    """Arithmetic of the forward passes (autocast)."""
    threads: int = 0
    """CPU threads of torch; 0 keeps torch's choice."""
    batch_size: int = 64
    """Images per forward pass; the result does not depend on it."""
    workers: int = 0
    """Processes that decode images."""
    quick: bool = False
    """A few images only."""
    config: Path | None = None
    """A recipe: its section `test` becomes the defaults of all flags."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UsageError("only training is shared out; start test.py without torchrun")
        require(self.batch_size >= 1, "--batch-size", self.batch_size, "1 or more")
        require(self.workers >= 0, "--workers", self.workers, "0 or more")
        require(self.threads >= 0, "--threads", self.threads, "0 or more")

    @property
    def checkpoints(self) -> dict[str, Path]:
        """The files to measure by name: `before`, if there is one, and `checkpoint`."""
        files = {"before": self.before, "checkpoint": self.checkpoint}
        return {name: file for name, file in files.items() if file is not None}

    def open_output(self) -> Path:
        """The folder of the results, made when it is missing.

        Raises:
            UsageError: when it cannot be made.
        """
        variant = [*(["kept"] if self.checkpoint.stem == "kept" else []), *(["adabn"] if self.adabn else [])]
        variant += [self.brighten] if self.brighten != "none" else []
        folder = self.output or self.checkpoint.parent / "-".join(["test", *variant])
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--output {folder}: cannot make this folder ({error})") from error
        return folder


_converter = cattrs.Converter(forbid_extra_keys=True)
_converter.register_unstructure_hook(Path, str)
# A flag that must be typed may be missing in a file.
_converter.register_structure_hook(Path, lambda value, _: value if value is tyro.MISSING else Path(value))


def _only(*kinds: type) -> Callable[[Any, Any], Any]:
    def structure(value: Any, _: Any) -> Any:
        if type(value) not in kinds:
            raise ValueError(f"{value!r} is not {kinds[0].__name__}")
        return value

    return structure


_converter.register_structure_hook(int, _only(int))
_converter.register_structure_hook(bool, _only(bool))


def to_plain(config: DataclassInstance) -> dict[str, Any]:
    """A config as nested dicts of numbers, words and lists: what YAML, JSON and checkpoints hold."""
    plain = _converter.unstructure(config)
    # A round trip turns tuples into lists, so that a config compares equal to one read back from YAML.
    return yaml.safe_load(yaml.safe_dump(plain, sort_keys=False))  # type: ignore[no-any-return]


def from_plain(config_class: type[ConfigT], plain: Any, source: Path | str) -> ConfigT:
    """Build a config from plain values, refusing unknown names and wrong types.

    Raises:
        UsageError: names the source and the first thing that does not fit.
    """
    wrong = f"{source} does not fit the flags of {_file_of(config_class).name}"
    if not isinstance(plain, dict):
        raise UsageError(f"{wrong}: expected names and values")
    try:
        return _converter.structure(plain, config_class)
    except cattrs.BaseValidationError as error:
        details = "; ".join(cattrs.transform_error(error, format_exception=_told))
        raise UsageError(f"{wrong}: {details}") from error


def _file_of(config_class: type[Any]) -> Path:
    """The script or module that defines a config."""
    module = sys.modules.get(config_class.__module__)
    return Path(getattr(module, "__file__", None) or config_class.__module__)


def _told(error: BaseException, kind: type | None) -> str:
    return str(error) if isinstance(error, UsageError) else format_exception(error, kind)


def write_yaml(config: DataclassInstance, path: Path) -> None:
    """Write a config as YAML."""
    path.write_text(yaml.safe_dump(to_plain(config), sort_keys=False), encoding="utf-8")


class _PlainLoader(yaml.SafeLoader):
    """Safe YAML without aliases, by which a few lines can stand for billions of values."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """A node that is written out."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.YAMLError(f"line {mark.line + 1}: expected values, found an alias")
        return super().compose_node(parent, index)


def read_yaml(path: Path) -> Any:
    """Read a YAML file of plain values.

    Raises:
        UsageError: when the file is missing or is not YAML, holds aliases or is nested deeply.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _PlainLoader)  # noqa: S506  (a SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"--config {path}: {' '.join(str(error).split())}") from error


def read_recipe(path: Path) -> dict[str, Any]:
    """The sections of a recipe.

    Raises:
        UsageError: when the file cannot be read, holds anything else or lacks a section.
    """
    plain = read_yaml(path)
    if not _is_recipe(plain) or set(plain) != set(SECTIONS.values()):
        found = " ".join(map(str, plain)) if isinstance(plain, dict) else "none"
        raise UsageError(f"{path} is no recipe: expected the sections {' '.join(SECTIONS.values())}, found {found}")
    return dict(plain)


def _is_recipe(plain: Any) -> bool:
    return isinstance(plain, dict) and bool(plain) and set(plain) <= set(SECTIONS.values())


def read_defaults(config_class: type[ConfigT], path: Path) -> ConfigT:
    """The defaults of a script's flags: its own, with those of a run's config.yaml or of a recipe in their place.

    Of a recipe it takes the section of this script. Where it names only some of a group's flags the others keep the
    script's defaults.

    Raises:
        UsageError: names the file, the script and the first thing that does not fit.
    """
    plain, source = read_yaml(path), f"--config {path}"
    if isinstance(plain, dict) and all(isinstance(value, dict) for value in plain.values()):
        known = {*SECTIONS.values(), *(field.name for field in dataclasses.fields(config_class))}
        if unknown := " ".join(sorted(map(str, plain.keys() - known))):
            raise UsageError(f"{source}: no section or group {unknown}; a recipe has {' '.join(SECTIONS.values())}")
    if _is_recipe(plain):
        script = _file_of(config_class)
        section = SECTIONS.get(script.stem)
        if section not in plain:
            raise UsageError(f"{source} has no section for {script.name}: expected {section}, found {' '.join(plain)}")
        plain, source = plain[section], f"{source}, section {section},"
    if isinstance(plain, dict):
        plain = _merged(_own_defaults(config_class), plain)
        if "resume" in plain:  # asked anew each time; it is not a property of a run
            plain["resume"] = False
    return from_plain(config_class, plain, source)


def _own_defaults(config_class: type[Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    typed: dict[str, Any] = {}
    for field in dataclasses.fields(config_class):
        if field.default is not dataclasses.MISSING:
            values[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            values[field.name] = field.default_factory()
        elif field.type is Path:
            typed[field.name] = tyro.MISSING
    return {**yaml.safe_load(yaml.safe_dump(_converter.unstructure(values))), **typed}


def _merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    both = {**values, **changes}
    for name in set(values) & set(changes):
        if isinstance(values[name], dict) and isinstance(changes[name], dict):
            both[name] = _merged(values[name], changes[name])
    return both


def parse_flags(config_class: type[ConfigT], description: str | None, argv: Sequence[str] | None = None) -> ConfigT:
    """Read the command line into a config.

    `--config FILE` is read first and gives the defaults; with `--resume` the flags that the run was started with do.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    file = _config_file(config_class, arguments)
    parse: Callable[..., ConfigT] = partial(tyro.cli, config_class, args=arguments, description=description)
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            config = parse() if file is None else parse(default=read_defaults(config_class, file))
    except SystemExit as stop:
        # tyro turns what a group of settings refuses into a box of its own; ours is one line with the flag.
        refused = _setting_error(stop)
        if refused is None:
            sys.stderr.write(re.sub(r"\[/?bold\]", "", shown.getvalue()))  # of an error that tyro leaves unrendered
            raise
        raise _by_flag(refused, config_class) from refused
    for flag, value in by_flag(to_plain(config)).items():
        for number in value if isinstance(value, list) else [value]:
            require(not isinstance(number, float) or math.isfinite(number), flag, number, "a finite number")
    typed = {argument[2:].split("=")[0].replace("-", "_") for argument in arguments if argument.startswith("--")}
    object.__setattr__(config, "_typed", frozenset(typed))
    # The config.yaml of a quick run holds what the run was made of.
    object.__setattr__(config, "_shrunk", file is not None and read_yaml(file).get("quick") is True)
    return config


def by_flag(plain: Mapping[str, Any], prefix: str = "--") -> dict[str, Any]:
    """The plain values of a config, those in its groups too, by their flags."""
    found: dict[str, Any] = {}
    for name, value in plain.items():
        flag = prefix + name.replace("_", "-")
        found |= by_flag(value, f"{flag}.") if isinstance(value, dict) else {flag: value}
    return found


def _config_file(config_class: type[Any], arguments: Sequence[str]) -> Path | None:
    """The file that gives the defaults: that of --config, or with --resume the config.yaml of the run.

    Raises:
        UsageError: when there is no such run.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--resume", action="store_true")
    for flag in ("--config", "--name", "--runs"):
        finder.add_argument(flag, nargs="?")  # tyro says it of a flag without its value
    found = finder.parse_known_args(arguments)[0]
    name = found.name or getattr(config_class, "name", None)
    if found.config or not (found.resume and name and issubclass(config_class, CommonFlags)):
        return Path(found.config) if found.config else None
    file = Path(found.runs or config_class.runs) / _file_of(config_class).parent.name / name / "config.yaml"
    if not file.is_file() and "--help" not in arguments:
        raise UsageError(f"--resume: there is no run at {file.parent}; start it without --resume")
    return file if file.is_file() else None


def _setting_error(error: BaseException | None) -> SettingError | None:
    """The SettingError that an error was raised for."""
    while error is not None and not isinstance(error, SettingError):
        error = error.__context__
    return error


def _by_flag(error: SettingError, config_class: type) -> UsageError:
    """The same error, which names the flag in place of the field."""
    name = error.name.replace("_", "-")
    flags = [f"{prefix}{name}" for prefix in _prefixes(config_class, error.owner)]
    return UsageError(f"{' or '.join(flags) or name} {error.problem}")


def _prefixes(config_class: type, group: type, prefix: str = "--") -> Iterator[str]:
    """What the flags of a group of settings begin with, wherever a config has it."""
    if issubclass(config_class, group):
        yield prefix
    for name, kind in get_type_hints(config_class).items():
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            yield from _prefixes(kind, group, f"{prefix}{name.replace('_', '-')}.")


def run_script(config_class: type[ConfigT], main: Callable[[ConfigT], object], description: str | None) -> None:
    """Parse the flags, run `main`, and turn errors of input into one line and an exit code (2 refused, 1 failed)."""
    # Under torchrun the first process speaks for all.
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files need not be text
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main(parse_flags(config_class, description))
    except (UsageError, RunError) as error:
        told = _by_flag(error, config_class) if isinstance(error, SettingError) else error
        _fail(told, 1 if isinstance(error, RunError) else 2)
    except (OSError, EOFError, MemoryError, RuntimeError) as error:
        if hasattr(signal, "SIGCHLD"):  # by which torch's data loader would raise once more, in the midst of the end
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        problem = problem_of_the_machine(error)
        if problem is None:
            raise
        _fail(problem, 1)
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        sys.exit(130)


def _fail(error: Exception | str, code: int) -> NoReturn:
    sys.stderr.write(f"error: {error}\n")
    sys.exit(code)


def replace_settings(config: ConfigT, **groups: Any) -> ConfigT:
    """A copy of `config` with other values; a dict replaces fields inside a group."""
    values = {
        name: dataclasses.replace(getattr(config, name), **value) if isinstance(value, dict) else value
        for name, value in groups.items()
    }
    copy = dataclasses.replace(config, **values)
    object.__setattr__(copy, "_typed", getattr(config, "_typed", frozenset()))
    object.__setattr__(copy, "_shrunk", getattr(config, "_shrunk", False))
    return copy


def shrink_settings(config: ConfigT, **groups: Any) -> ConfigT:
    """`replace_settings` for --quick: what was typed beside it, or comes from the config of a quick run, stays."""
    if getattr(config, "_shrunk", False):
        return config
    typed: frozenset[str] = getattr(config, "_typed", frozenset())
    inside = {
        name: {key: new for key, new in value.items() if f"{name}.{key}" not in typed}
        for name, value in groups.items()
        if isinstance(value, dict)
    }
    return replace_settings(
        config, **{name: value for name, value in {**groups, **inside}.items() if name not in typed}
    )
