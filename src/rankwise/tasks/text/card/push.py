"""`rankwise.push`: an adapter and its model card on the Hugging Face hub."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from rankwise.adapter_files.peft.config import CONFIG_FILE
from rankwise.adapter_files.tensor_file import TENSOR_FILE
from rankwise.errors import AdapterFileError, ConfigError, OutputError, arguments_named
from rankwise.report.adapter_run import run_of_adapter
from rankwise.surgery.inspecting import Inspection, inspect_adapter
from rankwise.sweeps.storage.owned import (
    ADAPTERS,
    BEST,
    holds_results,
    holds_unfinished,
    named_adapters,
    why_no_adapter,
)
from rankwise.tasks.text.card.metadata import Metadata, hub_name, metadata_yaml
from rankwise.tasks.text.card.model_card import render
from rankwise.tasks.text.data.labels import FILE as LABELS
from rankwise.tasks.text.extra import requires_extra
from rankwise.tasks.text.prompting import FILE as PROMPTING
from rankwise.tasks.text.trained import FILE as TRAINED

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CARD = "README.md"
FILES = (CONFIG_FILE, TENSOR_FILE, LABELS, PROMPTING, TRAINED)
"""Files that are uploaded with the card, if they exist; no others are."""


@dataclass(frozen=True)
class Pushed:
    """An upload.

    Args:
        url: Of the adapter's page.
        folder: The adapter's, on this machine.
        files: Their names on the hub.
        private: Whether nobody else sees it.
        notes: What others need to know to use it.
    """

    url: str
    folder: Path
    files: tuple[str, ...]
    private: bool
    notes: tuple[str, ...]


@arguments_named()
def push(
    adapter: str | Path,
    repo: str,
    *,
    private: bool = False,
    token: str | None = None,
    message: str | None = None,
) -> Pushed:
    """Upload an adapter with its model card to the Hugging Face hub.

    The folder's README.md is the card; where there is none, one is written from the adapter's settings and the run
    that it came from. The card's head holds the measured metrics as model-index, which the hub shows.

    Args:
        adapter: The folder of an adapter, or a run's directory, of which the recommended adapter (`best`) is taken, or
            the only one that there is.
        repo: Where: "owner/name", or a name among your own. It is made where there is none.
        private: Whether only you see it.
        token: With write access; None takes the environment variable HF_TOKEN, or what `hf auth login` has stored.
        message: Of the commit.

    Returns:
        The page's address, and what was uploaded.

    Raises:
        AdapterFileError: There is no adapter, or it is damaged.
        ConfigError: There is no token, the name can't be used, or huggingface_hub is not installed.
        OutputError: The hub refuses, or can't be reached.

    Examples:
        ```python
        pushed = rankwise.push("runs/last", "my-name/banking-r8", private=True)
        print(pushed.url)
        ```
    """
    with requires_extra("uploads"):
        from huggingface_hub import CommitOperationAdd, HfApi, get_token

    folder = adapter_in(Path(adapter))
    found = inspect_adapter(folder)
    card = card_of(found)
    token = token or get_token()
    if not token:
        raise ConfigError(
            "There is no token for the hub; log in with `hf auth login`, or set HF_TOKEN to a token with write access "
            "(https://huggingface.co/settings/tokens)."
        )
    operations = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name)
        for name in FILES
        if (folder / name).is_file()
    ]
    operations.append(CommitOperationAdd(path_in_repo=CARD, path_or_fileobj=card.encode()))
    api = HfApi(token=token)
    with _refusals(repo):
        place = api.create_repo(repo, private=private or None, exist_ok=True)
        is_private = _is_private(api, place.repo_id)
        if private and not is_private:
            raise OutputError(
                f"{place} is there already, and public; make it private in its settings, give another name, or leave "
                "--private out."
            )
        api.create_commit(place.repo_id, operations, commit_message=message or f"Upload adapter {folder.name}")
    return Pushed(
        url=str(place),
        folder=folder,
        files=tuple(operation.path_in_repo for operation in operations),
        private=is_private,
        notes=_notes(found),
    )


def adapter_in(place: Path) -> Path:
    """The adapter's folder where the folder of an adapter, or of a run, is given.

    Raises:
        AdapterFileError: There is none; the message says why, and what to give instead.
    """
    folder = place
    if holds_results(place) or holds_unfinished(place):
        named = named_adapters(place)
        only = place / ADAPTERS / next(iter(named)) if len(named) == 1 else None
        folder = only if only and not (place / BEST).exists() else place / BEST
    if (folder / CONFIG_FILE).is_file():
        return folder.resolve()
    if why := why_no_adapter(folder):
        raise AdapterFileError(why)
    if not place.exists():
        raise AdapterFileError(f"{place} is not there; give the folder of an adapter, or of a run.")
    whole = (
        f" It looks like a whole model, which `hf upload OWNER/NAME {place}` uploads."
        if (place / "config.json").is_file()
        else ""
    )
    raise AdapterFileError(
        f"{place} holds no adapter ({CONFIG_FILE}) and no run; give the folder of an adapter, or of a run.{whole}"
    )


def card_of(found: Inspection) -> str:
    """The adapter's README.md, or a short card where it has none."""
    path = found.folder / CARD
    if path.is_file():
        return path.read_text(encoding="utf-8")
    run = run_of_adapter(found.folder)
    named = found.settings.get("base_model_name_or_path") or ""
    head = Metadata(
        name=found.folder.name,
        base=hub_name(named),
        task=run.task if run else "",
        metrics={run.metric_name: run.metric} if run else {},
    )
    ranks = sorted({module.r for module in found.modules})
    return render(
        "short.md.jinja",
        head=metadata_yaml(head),
        name=found.folder.name,
        rank=str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}",
        parameters=found.parameters,
        base=named,
        run=run,
        version=metadata.version("rankwise"),
    )


def _notes(found: Inspection) -> tuple[str, ...]:
    named = found.settings.get("base_model_name_or_path")
    if not named or hub_name(named):
        return ()
    return (f'Its base is "{named}" of this machine; say in {CARD} where others get it.',)


def _is_private(api: "HfApi", repo: str) -> bool:
    return bool(api.repo_info(repo).private)


@contextmanager
def _refusals(repo: str) -> Generator[None]:
    """The hub's refusals, in one line each.

    Raises:
        ConfigError: The name can't be used.
        OutputError: All else.
    """
    from huggingface_hub.errors import (
        BadRequestError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    from rankwise.tasks.text.model.hub_names import transport_errors

    try:
        yield
    except HFValidationError as error:
        raise ConfigError(f'"{repo}" is no name on the hub; give owner/name, such as my-name/banking-r8.') from error
    except OfflineModeIsEnabled as error:
        raise OutputError("Nothing can be uploaded offline (HF_HUB_OFFLINE is set); unset it.") from error
    except (HfHubHTTPError, ValueError) as error:
        response = getattr(error, "response", None)
        code = None if response is None else response.status_code
        said = " ".join((getattr(error, "server_message", None) or str(error)).split())
        if code == 401:
            raise OutputError(
                "The hub refuses the token (401): it is wrong or has ended; make a new one with write access "
                "(https://huggingface.co/settings/tokens)."
            ) from error
        if code == 403 or isinstance(error, RepositoryNotFoundError):
            raise OutputError(
                f"The token may not write to {repo} ({code}); give a name among your own, or a token with write access "
                "to that owner."
            ) from error
        if code is None or isinstance(error, BadRequestError):
            raise OutputError(f"The hub refuses {repo}: {said}") from error
        raise OutputError(f"The hub could not take {repo} ({code}): {said}; try again later.") from error
    except RuntimeError as error:  # of a single file
        raise OutputError(f"The hub could not take {repo}: {error.__cause__ or error}; try again later.") from error
    except (OSError, *transport_errors()) as error:
        raise OutputError(f"The hub can't be reached ({error}); try again later.") from error
