"""Checkpoints by path, by folder, or on the Hugging Face hub: ``hf://org/repo[@revision][/file]``.

Downloads stay in the cache of the hub's library, and are found there without a network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from util.checkpoint import BESIDE
from util.errors import UserError
from util.options import check_name_lengths

HUB = "hf://"
USUAL_NAMES = ("checkpoint.pth", "weights.safetensors")
SUFFIXES = (".pth", ".safetensors")
SECONDS = 10  # timeout of the first request to the hub


def checkpoint_path(source: str, flag: str) -> Path:
    """Find the file of a checkpoint, and download it from the hub if necessary.

    Args:
        source: a file, a folder that holds one checkpoint, or ``hf://org/repo[@revision][/file]``.
        flag: the option that names it, for messages.

    Raises:
        UserError: there is no such file, there are several, or the hub cannot be reached.
    """
    check_name_lengths(source, flag)
    if source.startswith(HUB):
        return _from_hub(source, flag)
    path = Path(source)
    if source == "auto" and not path.exists():
        raise UserError(f"{flag} auto works for training only; name a checkpoint: a file, or a folder that holds one")
    if path.is_dir():
        try:
            names = [file.name for file in path.iterdir() if file.is_file()]
        except OSError as error:
            raise UserError(f"cannot read {source}, which {flag} names: {error.strerror or error}") from error
        return path / _choose(names, source, flag)
    if not path.is_file():
        raise UserError(
            f"the checkpoint {source} does not exist; give a file, a folder that holds one, or hf://org/repo "
            f"with {flag}"
        )
    return path


def cached_revision(repo: str, file: str) -> str | None:
    """The commit of ``file`` in the cache, from the main branch of a repository; None if it is not cached."""
    try:
        path = try_to_load_from_cache(repo, file)
    except HFValidationError:
        return None
    if not isinstance(path, str):
        return None
    parts = Path(path).parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else None


def _choose(names: Sequence[str], where: str, flag: str) -> str:
    """Choose the checkpoint among file names: one with a usual name, else the only one."""
    found = sorted(name for name in names if name.endswith(SUFFIXES) and not Path(name).name.startswith((".", BESIDE)))
    for usual in USUAL_NAMES:
        if usual in found:
            return usual
    if not found:
        raise UserError(f"{where} holds no checkpoint (*.pth, *.safetensors); give another with {flag}")
    if len(found) > 1:
        shown = ", ".join(found[:5]) + (", …" if len(found) > 5 else "")
        raise UserError(f"{where} holds several checkpoints ({shown}); name one: {flag} {where.rstrip('/')}/{found[0]}")
    return found[0]


def _from_hub(source: str, flag: str) -> Path:
    org, _, rest = source.removeprefix(HUB).partition("/")
    name, _, file = rest.strip("/").partition("/")
    name, _, revision = name.partition("@")
    if not org or not name:
        raise UserError(f"{source} does not name a repository; write hf://org/repo or hf://org/repo/file with {flag}")
    repo = f"{org}/{name}"
    with _explained(source, repo, file, flag):
        file = file or _choose(_list_files(repo, revision or None), source, flag)
        return Path(hf_hub_download(repo, file, revision=revision or None))


def only_cached(repo: str, file: str, flag: str) -> bool:
    """Whether the files of a repository must come from the cache, because the hub cannot be reached.

    One request decides: the libraries would retry for half a minute, file by file.

    Args:
        repo: its id.
        file: a file of it; the others are assumed to be in the same place.
        flag: the option that names it, for messages.

    Raises:
        UserError: there is no such repository, or neither the hub nor the cache has it.
    """
    with _explained(repo, repo, file, flag):
        try:
            HfApi().model_info(repo, timeout=SECONDS)
        except (RepositoryNotFoundError, HFValidationError):
            raise
        except Exception as error:  # no network, for which the libraries and the system raise different kinds
            if cached_revision(repo, file) is None:
                raise _unreachable(repo, flag) from error
            return True
    return False


@contextmanager
def _explained(source: str, repo: str, file: str, flag: str) -> Iterator[None]:
    """Report any failure of the hub in the block in one sentence."""
    try:
        yield
    except LocalEntryNotFoundError as error:  # before its base class below
        raise _unreachable(source, flag) from error
    except GatedRepoError as error:
        raise UserError(
            f"{source} requires consent; give it on the page of the repository, and log in with `hf auth login`"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        here = "" if source.startswith(HUB) else "there is no such folder here, and "
        raise UserError(
            f"{here}the hub has no repository {source}, or it is private; give another with {flag}"
        ) from error
    except EntryNotFoundError as error:
        raise UserError(f"the hub's repository {repo} has no file {file}; give another with {flag}") from error
    except (HfHubHTTPError, OSError) as error:
        raise _unreachable(source, flag) from error


def _list_files(repo: str, revision: str | None) -> list[str]:
    """The names of the files of a repository; without a network, of those in the cache."""
    try:
        return [file.rfilename for file in HfApi().model_info(repo, revision=revision).siblings or ()]
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise
    except Exception:  # no network
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _unreachable(source: str, flag: str) -> UserError:
    here = "" if source.startswith(HUB) else f"there is no folder {source} here, and on the hub: "
    return UserError(
        f"{here}{source} is not in the cache, and the hub cannot be reached; connect to the network once, or give the "
        f"path of a copy with {flag}"
    )
