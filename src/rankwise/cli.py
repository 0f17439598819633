"""The commands: they read flags, call the code that does the work, and print. No logic of their own.

Nothing heavy is loaded before a command runs, so `--help` is quick.
"""

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Group, Parameter, Token
from cyclopts.config import Dict

from rankwise.errors import CheckpointError, ConfigError, RankwiseError, suggest
from rankwise.tasks.options import DigitsOptions, parse_numbers, parse_rates, parse_seeds

COMMANDS = ("digits", "report")
EXIT_OK, EXIT_MISTAKE, EXIT_DIVERGED, EXIT_INTERRUPTED = 0, 2, 3, 130

app = App(
    name="rankwise",
    help="Find the smallest LoRA that does the job: many ranks trained together over one frozen base.",
    help_flags=["--help", "-h"],
    version_flags=["--version"],
)


def _reader(parse: Any) -> Any:
    """Make a cyclopts converter of a parser for one text; a list in a YAML file comes as several tokens."""

    def convert(kind: Any, tokens: Sequence[Token]) -> Any:
        return parse(",".join(token.value for token in tokens))

    return convert


def _numbers(parse: Any) -> Parameter:
    return Parameter(converter=_reader(parse), n_tokens=1, accepts_keys=False)


HOW = Group("How it runs", sort_key=2)


@app.command
def digits(
    *,
    ranks: Annotated[tuple[int, ...] | None, _numbers(parse_numbers)] = None,
    seeds: Annotated[tuple[int, ...] | None, _numbers(parse_seeds)] = None,
    protocol: str = "right",
    data: str = "embedded",
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: Annotated[tuple[float, ...] | None, _numbers(parse_rates)] = None,
    baseline_lr: Annotated[tuple[float, ...] | None, _numbers(parse_rates)] = None,
    alpha: float | None = None,
    rungs: Annotated[tuple[int, ...] | None, _numbers(parse_numbers)] = None,
    tolerance: float | None = None,
    device: Annotated[str, Parameter(group=HOW)] = "cpu",
    out: Annotated[Path | None, Parameter(group=HOW)] = None,
    overwrite: Annotated[bool, Parameter(group=HOW, negative="")] = False,
    resume: Annotated[Path | None, Parameter(group=HOW)] = None,
    checkpoint_epochs: Annotated[int | None, Parameter(group=HOW)] = None,
    checkpoint_seconds: Annotated[float | None, Parameter(group=HOW)] = None,
    config: Annotated[Path | None, Parameter(group=HOW)] = None,
    print_config: Annotated[bool, Parameter(name=["--print-config", "--print_config"], group=HOW, negative="")] = False,
    quiet: Annotated[bool, Parameter(group=HOW, negative="")] = False,
    json_: Annotated[bool, Parameter(name="--json", group=HOW, negative="")] = False,
) -> int:
    """Train LoRA at several ranks, and full fine-tuning beside them, on handwritten digits.

    A small network that knows the digits 0-4 learns 5-9. The answer is the fewest trainable parameters that come
    within the tolerance of full fine-tuning, with a table, two figures and a page.

    Parameters
    ----------
    ranks:
        LoRA ranks: 1,2,4 or a range, 1:64:x2 (1, 2, 4, ... 64). [default: 1:64:x2]
    seeds:
        How many seeds, or a list of them: 3, or 0,7. [default: 5]
    protocol:
        "right": equal budgets, learning rates chosen on validation data. "published": the notebook's own settings.
    data:
        "embedded" (10,000 images in the package), "mnist" (70,000, downloaded once: 12 MB), or a folder of IDX files.
    epochs:
        Passes over the training data, at the most. [default: 60; published: 100]
    batch_size:
        Images a step. [default: 64]
    lr:
        Learning rates of LoRA, the best of which is chosen for each rank: 3e-4,1e-3. [default: the protocol's]
    baseline_lr:
        Learning rates of full fine-tuning. [default: the protocol's]
    alpha:
        Numerator of the scale alpha / r. [default: 32; published: r, so that the scale is 1]
    rungs:
        Epochs after which the worse half of each configuration's learning rates leaves, and ranks that a smaller one
        clearly beats: 4,12. [default: none; all train to their end]
    tolerance:
        How much worse than full fine-tuning is good enough, as a share of all images. [default: 1% of its accuracy]
    device:
        Where to compute: cpu, cuda, cuda:1.
    out:
        Directory for the results; made if it is not there. [default: runs/digits]
    overwrite:
        Replace results, or an unfinished run, that lie in --out.
    resume:
        Go on with the unfinished run in this directory, with its own options, as if it had never been stopped.
    checkpoint_epochs:
        Write a checkpoint after every so many epochs.
    checkpoint_seconds:
        Write a checkpoint after every so many seconds. [default: 20, or more, so that writing takes 2% of the time]
    config:
        Read settings from a YAML file, such as a run's config.yaml; flags go before it.
    print_config:
        Print the complete configuration as YAML and stop.
    quiet:
        Show nothing while training.
    json_:
        Print the answer as JSON on standard output; everything else goes to standard error.
    """
    given = {"ranks": ranks, "seeds": seeds}
    options = DigitsOptions(
        protocol=protocol,
        data=data,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        baseline_lr=baseline_lr,
        alpha=alpha,
        rungs=rungs,
        tolerance=tolerance,
        device=device,
        out=resume or out or Path("runs/digits"),
        **{key: value for key, value in given.items() if value is not None},
    )
    from rankwise.tasks.digits_config import check_same, config_yaml

    text = config_yaml(options)
    if resume is not None:
        for flag, value in (("--out", out), ("--overwrite", overwrite or None), ("--config", config)):
            if value is not None:
                raise ConfigError(f"{flag} does not go with --resume, which takes all from {resume}; leave it out.")
        check_same(options, _unfinished(resume).read_text(encoding="utf-8"))
    if print_config:
        print(text, end="")
        return EXIT_OK
    from rankwise.sweeps.directory import can_resume
    from rankwise.tasks.digits_run import run_digits
    from rankwise.train.checkpoints import Every
    from rankwise.train.live import progress

    every = Every(checkpoint_epochs, checkpoint_seconds)
    go_on = f"go on with: rankwise digits --resume {shlex.quote(str(options.out))}"
    try:
        with progress("quiet" if quiet else "auto") as shown:
            results, files = run_digits(
                options,
                config=text,
                command=_command_line(),
                progress=shown,
                overwrite=overwrite,
                resume=resume is not None,
                every=every,
            )
    except KeyboardInterrupt:
        what = go_on if can_resume(options.out) else "nothing was written."
        print(f"Interrupted before any run had finished; {what}", file=sys.stderr)
        return EXIT_INTERRUPTED
    _show(results, files, as_json=json_)
    if not results["complete"]:
        print(f"Interrupted: what had finished is in {options.out}; {go_on}", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_DIVERGED if any(run["status"] == "diverged" for run in results["runs"]) else EXIT_OK


@app.command
def report(directory: Path, /) -> int:
    """Draw table, figures and page again from a run's results.json.

    Parameters
    ----------
    directory:
        The run directory.
    """
    from rankwise.report import read_results, write_report

    results = read_results(directory / "results.json")
    _show(results, write_report(results, directory), as_json=False)
    return EXIT_OK


def _show(results: dict[str, Any], files: Sequence[Path], *, as_json: bool) -> None:
    from rich.console import Console

    from rankwise.report import answer_words, terminal_table

    console = Console(stderr=as_json, soft_wrap=False)
    console.print(terminal_table(results))
    console.print(answer_words(results), highlight=False)
    for path in files:
        print(path, file=sys.stderr if as_json else sys.stdout)
    if as_json:
        print(json.dumps(results["answer"]))


def _command_line() -> str:
    return shlex.join(["rankwise", *sys.argv[1:]])


def _path_of(flag: str, arguments: Sequence[str]) -> Path | None:
    """The path that a flag names which must be known before the others are read."""
    for i, argument in enumerate(arguments):
        if argument.startswith(f"{flag}="):
            return Path(argument.partition("=")[2])
        if argument == flag and i + 1 < len(arguments):
            return Path(arguments[i + 1])
    return None


def _unfinished(directory: Path) -> Path:
    """The configuration of the unfinished run in a directory.

    Raises:
        CheckpointError: There is none.
    """
    from rankwise.sweeps.directory import UNFINISHED, can_resume

    if not can_resume(directory):
        raise CheckpointError(f"{directory} holds no unfinished run; --resume takes the directory of one.")
    return directory / UNFINISHED / "config.yaml"


def _settings(path: Path) -> Dict:
    """Read a --config file.

    Raises:
        ConfigError: It is missing, or not YAML with the settings of commands.
    """
    import yaml

    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} can't be read ({error.strerror}); --config takes a YAML file.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict) or not all(isinstance(value, dict) for value in settings.values()):
        raise ConfigError(
            f'{path} does not hold the settings of a command; write "digits:" and below it, indented, "ranks: [1, 2]".'
        )
    for name in sorted(settings.keys() - set(COMMANDS), key=str):
        raise ConfigError(
            f'{path} has settings of "{name}"; there are commands {", ".join(COMMANDS)}.{suggest(str(name), COMMANDS)}'
        )
    return Dict(settings, source=str(path))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Returns:
        The exit code: 0; 2 a user's mistake, said in one line; 3 finished, with runs that diverged; 130 interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        resume = _path_of("--resume", arguments)
        path = _path_of("--config", arguments) if resume is None else _unfinished(resume)
        app.config = () if path is None else (_settings(path),)
        result = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        return result if isinstance(result, int) else EXIT_OK
    except RankwiseError as error:
        print(f"rankwise: {error}", file=sys.stderr)
    except CycloptsError as error:
        print(f"rankwise: {_one_line(error)}", file=sys.stderr)
    except KeyboardInterrupt:
        print("rankwise: interrupted.", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_MISTAKE


def _one_line(error: Exception) -> str:
    # A converter's own message is the clearest there is.
    cause = error.__cause__
    return " ".join(str(cause if isinstance(cause, RankwiseError) else error).split())
