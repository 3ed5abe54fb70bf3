"""Repositories of the Hugging Face hub: ``[hf://]org/repo[@revision]``, and checkpoints in them, in folders and files.

Downloads stay in the cache of the hub's library, and are found there without a network. Conversions of the authors'
checkpoints stay in the cache that the library provides for other programs.
"""

from __future__ import annotations

import errno
import glob
import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from util.checkpoint import BESIDE
from util.config import CLIP, MODELSCOPE, ROBERTA, WEIGHTS, Weights
from util.distributed import print_notes
from util.errors import UserError, first_line
from util.options import check_name_lengths

HUB = "hf://"
USUAL_NAMES = ("checkpoint.pth", "weights.safetensors")
SUFFIXES = ((".pth", ".safetensors"), (".pt", ".ckpt", ".pth.tar", ".bin"))
"""Suffixes of checkpoints. Files with one of the second group count where there is none of the first."""
SAME = ((MODELSCOPE, "damo-vilab/text-to-video-ms-1.7b"), (ROBERTA, "FacebookAI/roberta-base"))
"""Names of the same repository."""
UNREAD = {
    MODELSCOPE: '--exclude "*.fp16.*"',
    CLIP: '--exclude "open_clip*"',
    "anuragba/refereverything": '--exclude "*[Ww]an*"',  # REM on Wan 2.1 14B
}
"""Repository → its large files that are never read, for the command in a message."""
ASSETS = "t2v-rvos"  # folder of conversions in the library's cache for other programs
SECONDS = 10  # timeout of the first request to the hub
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS}  # errors of a disk, not of the network


class Unreachable(UserError):
    """Neither the hub nor its cache has a file."""


@dataclass(frozen=True)
class Repository:
    """The files of a repository on the hub, or of those in its cache if the hub cannot be reached."""

    source: str
    """As the user names it."""
    flag: str
    """The option that names it, for messages."""
    name: str
    """``org/name``, or ``name`` without an organisation."""
    revision: str
    """A branch, a tag or a commit."""
    commit: str
    keys: dict[str, str]
    """File → the name of its content in the cache."""
    sizes: dict[str, int] = field(default_factory=dict)
    """File → bytes; empty for those in the cache."""
    licence: str = "not stated"

    @property
    def online(self) -> bool:
        """Whether the hub has listed the files."""
        return bool(self.sizes)

    @property
    def folder(self) -> Path:
        """The folder of the downloaded files."""
        return _cache(self.name) / "snapshots" / self.commit

    def lacks(self, file: str) -> bool:
        """Whether a file must be downloaded."""
        return not ((self.folder / file).is_file() or (_cache(self.name) / "blobs" / self.keys[file]).is_file())

    def download(self, file: str) -> Path:
        """Download a file, unless the cache has it, without a note.

        Raises:
            UserError: the hub cannot be reached, or the file cannot be written.
        """
        if not (self.folder / file).is_file():
            with _explained(self.source, self.name, file, self.flag), _quiet_attempts():
                hf_hub_download(self.name, file, revision=self.revision)
        return self.folder / file


Wanted = Sequence[tuple[Repository, Sequence[str]]]
"""Repositories, and the files of each."""


@dataclass(frozen=True)
class HubFile:
    """A checkpoint on the hub, perhaps not downloaded yet."""

    repository: Repository
    file: str

    def download(self, others: Wanted = ()) -> Path:
        """Download the file, unless the cache has it.

        Args:
            others: what else will be needed, as for ``fetch``.

        Raises:
            UserError: the hub cannot be reached, or the disk is too full.
        """
        return fetch([(self.repository, [self.file]), *others])[0] / self.file

    @property
    def converted(self) -> Path:
        """Where the conversion of this very content is stored."""
        folder = _conversions(self.repository.name, self.repository.revision) / self.repository.keys[self.file]
        return folder / f"{_stem(self.file)}.safetensors"


def find_checkpoint(source: str, flag: str, converted: bool = False) -> Path | HubFile:
    """Find the file of a checkpoint, without downloading it.

    Args:
        source: a file, a folder that holds one checkpoint, or ``[hf://]org/repo[@revision]``; with ``hf://`` also
            ``/file``.
        flag: the option that names it, for messages.
        converted: without a network, the conversion of a file will do.

    Raises:
        UserError: there is no such file, there are several, or the hub cannot be reached.
    """
    check_name_lengths(source, flag)
    if source.startswith(HUB):
        return _on_hub(source, flag, converted)
    path = Path(source)
    if source == "auto" and not path.exists():
        raise UserError(f"{flag} auto works for training only; name a checkpoint: a file, or a folder that holds one")
    if path.is_dir():
        try:
            names = [file.name for file in path.iterdir() if file.is_file()]
        except OSError as error:
            raise UserError(f"cannot read {source}, which {flag} names: {error.strerror or error}") from error
        return path / _choose(names, source, flag)
    if path.is_file():
        return path
    # ``org/repo`` is on the hub, unless its first folder is here: then it is a mistyped path.
    if source.count("/") == 1 and not path.parent.is_dir() and not source.endswith(sum(SUFFIXES, ())):
        try:
            return _on_hub(HUB + source, flag, converted)
        except UserError as error:
            raise UserError(f"there is no file or folder {source} here, and on the hub: {error}") from error
    raise UserError(
        f"the checkpoint {source} does not exist; give a file, a folder that holds one, or hf://org/repo with {flag}"
    )


def open_repository(source: str, flag: str) -> Repository:
    """List the files of a repository, with one request: the libraries would retry for half a minute, file by file.

    Args:
        source: ``[hf://]org/repo[@revision]``.
        flag: the option that names it, for messages.

    Raises:
        UserError: there is no such repository.
        Unreachable: neither the hub nor the cache has it.
    """
    given, revision = _parsed(source)
    # A name under which the cache has it saves a download.
    cached = next(filter(None, (_cached(source, flag, name, revision) for name in _names(given))), None)
    name = cached.name if cached else given
    with _explained(source, name, "", flag):
        try:
            info = HfApi().model_info(name, revision=revision, timeout=SECONDS, files_metadata=True)
        except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):
            raise
        except Exception as error:  # no network, for which the libraries and the system raise different kinds
            if cached is None:
                raise _unreachable(source, flag) from error
            return cached
    paths = ((PurePosixPath(file.rfilename), file) for file in info.siblings or ())
    files = {str(path): file for path, file in paths if not path.is_absolute() and ".." not in path.parts}
    licence = next((tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")), "")
    return Repository(
        *(source, flag, name, revision, _key(info.sha)),
        {name: _key(file.lfs.sha256 if file.lfs else file.blob_id) for name, file in files.items()},
        {name: file.size or 0 for name, file in files.items()},
        licence or Repository.licence,
    )


def fetch(wanted: Wanted) -> list[Path]:
    """Download the files that the cache lacks. A note says what is downloaded, from where, and under which licence.

    Args:
        wanted: what is needed; nothing is downloaded of what the cache has.

    Returns:
        the folder of each repository.

    Raises:
        UserError: the hub cannot be reached, or the disk is too full.
    """
    new = [(r, sum(r.sizes[file] for file in files if r.lacks(file))) for r, files in wanted]
    parts = [f"{r.name} ({shown_size(size)}, licence: {r.licence})" for r, size in new if size]
    if parts:
        total, cache = sum(size for _, size in new), Path(constants.HF_HUB_CACHE)
        disk = next(folder for folder in (cache, *cache.absolute().parents) if folder.is_dir())
        if (free := shutil.disk_usage(disk).free) < total:
            raise UserError(
                f"{', '.join(parts)} must be downloaded, but {cache} has only {shown_size(free)} left; make room, or "
                "set HF_HOME to a folder on a larger disk"
            )
        print_notes([f"downloading {shown_size(total)} into {cache}, once: {', '.join(parts)}"])
    for repository, files in wanted:
        for file in files:
            repository.download(file)
    return [repository.folder for repository, _ in wanted]


def main_name(source: str) -> str:
    """The source itself, or the first name of a repository that has several."""
    name, at, revision = source.removeprefix(HUB).partition("@")
    names = next((names for names in SAME if name in names), (name,))
    return names[0] + at + revision


def published_weights(source: str) -> Weights | None:
    """The published weights that a source names, or None."""
    return next((found for found in WEIGHTS.values() if found.source == HUB + source.removeprefix(HUB)), None)


def hub_id(path: Path) -> str:
    """The name of the repository whose cache a path leads into; empty for other paths."""
    found = next((part for part in path.parts if part.startswith("models--")), "")
    return found.removeprefix("models--").replace("--", "/", 1)


def cached_revision(source: str) -> str | None:
    """The commit of a repository in the cache; None if it is not there."""
    name, revision = _parsed(source)
    found = (_cached(source, "", name, revision) for name in _names(name))
    return next((repository.commit for repository in found if repository), None)


def shown_size(size: int) -> str:
    """A number of bytes, for messages."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _parsed(source: str) -> tuple[str, str]:
    """The name and the revision of ``[hf://]org/repo[@revision]``."""
    name, _, revision = source.removeprefix(HUB).partition("@")
    return name, revision or constants.DEFAULT_REVISION


def _names(name: str) -> list[str]:
    """The names of a repository, the given one first."""
    return [name, *(other for names in SAME if name in names for other in names if other != name)]


def _cache(name: str) -> Path:
    """The cache of a repository."""
    return Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"


def _key(value: str | None) -> str:
    """A hash that the hub states, which becomes a part of a path."""
    return value if value and value.isalnum() else "unknown"


def _conversions(name: str, revision: str) -> Path:
    """The folder of the conversions of a repository's files."""
    return Path(constants.HF_ASSETS_CACHE, ASSETS, name.replace("/", "--"), revision.replace("/", "--"))


def _cached(source: str, flag: str, name: str, revision: str) -> Repository | None:
    """The files of a repository in the cache; None if it is not there."""
    ref = _cache(name) / "refs" / revision
    commit = ref.read_text().strip() if ref.is_file() else revision
    folder = _cache(name) / "snapshots" / commit
    if not folder.is_dir():
        return None
    files = {path.relative_to(folder).as_posix(): path.resolve() for path in folder.rglob("*") if path.is_file()}
    keys = {file: path.name if path.parent.name == "blobs" else commit for file, path in files.items()}
    return Repository(source, flag, name, revision, commit, keys)


def _on_hub(source: str, flag: str, converted: bool) -> Path | HubFile:
    org, _, rest = source.removeprefix(HUB).partition("/")
    name, _, file = rest.strip("/").partition("/")
    if not org or not name.partition("@")[0]:
        raise UserError(f"{source} does not name a repository; write hf://org/repo or hf://org/repo/file with {flag}")
    published = published_weights(source)
    preferred = published.preferred if published else ()
    repository, unreachable = None, _unreachable(source, flag)
    with suppress(Unreachable):
        repository = open_repository(f"{HUB}{org}/{name}", flag)
    if repository is None or not repository.online:
        folder = _conversions(*_parsed(f"{org}/{name}"))
        found = folder.glob(f"*/{glob.escape(_stem(file)) if file else '*'}.safetensors") if converted else ()
        newest = {path.name: path for path in sorted(found, key=lambda path: path.stat().st_mtime)}
        if newest:
            return newest[_choose(newest, source, flag, preferred)]
        if repository is None or not (file in repository.keys if file else _checkpoints(repository.keys)):
            raise unreachable
    file = file or _choose(repository.keys, source, flag, preferred)
    if file not in repository.keys:
        raise UserError(f"the hub's repository {repository.name} has no file {file}; give another with {flag}")
    return HubFile(replace(repository, licence=published.licence) if published else repository, file)


def _stem(file: str) -> str:
    """The name of a file without folders and suffixes."""
    return PurePosixPath(file).name.removesuffix(".tar").rpartition(".")[0]


def _checkpoints(names: Iterable[str]) -> list[str]:
    """The checkpoints among file names."""
    shown = sorted(name for name in names if not PurePosixPath(name).name.startswith((".", BESIDE)))
    groups = ([name for name in shown if name.endswith(suffixes)] for suffixes in SUFFIXES)
    return next(filter(None, groups), [])


def _choose(names: Iterable[str], where: str, flag: str, preferred: Sequence[str] = ()) -> str:
    """Choose the checkpoint among file names: one with a usual name, else the only one.

    Args:
        names: with folders, separated by slashes.
        where: what holds the files, for messages.
        flag: the option that names it, for messages.
        preferred: if given, the first of several files is chosen, with a note; those with such a part in their names
            come before the others.
    """
    found = _checkpoints(names)
    for usual in USUAL_NAMES:
        if usual in found:
            return usual
    if not found:
        kinds = ", ".join(f"*{suffix}" for suffixes in SUFFIXES for suffix in suffixes)
        raise UserError(f"{where} holds no checkpoint ({kinds}); give another with {flag}")
    if len(found) > 1:
        listed = ", ".join(found[:5]) + (", …" if len(found) > 5 else "")
        if not preferred:
            raise UserError(
                f"{where} holds several checkpoints ({listed}); name one: {flag} {where.rstrip('/')}/{found[0]}"
            )
        found.sort(key=lambda name: not any(part in name.lower() for part in preferred))
        print_notes([f"{where} holds {listed}; using {found[0]} ({flag} {where}/FILE uses another)"])
    return found[0]


@contextmanager
def _quiet_attempts() -> Iterator[None]:
    """Silence the warnings of the library in the block.

    It warns at each attempt to continue a download; nothing needs to be done. If the last attempt fails, ``_explained``
    reports it.
    """
    log = logging.getLogger("huggingface_hub.file_download")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


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
    except UserError:
        raise
    except Exception as error:  # the libraries and the system raise many kinds
        if isinstance(error, OSError) and error.errno in FULL:
            raise UserError(
                f"cannot write {file} to {constants.HF_HUB_CACHE}: {error.strerror}; make room, or set HF_HOME to "
                "another folder"
            ) from error
        raise UserError(
            f"the download of {file} from {repo} broke off ({first_line(error)}); run the command again, or give "
            f"another with {flag}"
        ) from error


def _unreachable(source: str, flag: str) -> Unreachable:
    here = "" if source.startswith(HUB) else f"there is no folder {source} here, and on the hub: "
    name, _, file = source.removeprefix(HUB).partition("@")[0].partition("/")
    repo, _, file = file.partition("/")
    if (weights := published_weights(source)) and not file:
        repositories = (f"{name}/{repo}", *weights.frozen)
        unread = " ".join(UNREAD[repository] for repository in repositories if repository in UNREAD)
        way = (
            f"`for repo in {' '.join(repositories)}; do hf download $repo --cache-dir weights {unread}; done` "
            "elsewhere, copy the folder weights here, and run `export HF_HUB_CACHE=weights` before this command"
        )
    else:
        whole = "/".join(filter(None, (name, repo)))
        unread = "" if file else UNREAD.get(main_name(whole), "")
        command = " ".join(filter(None, ("hf download", whole, file, unread)))
        way = f"`{command} --local-dir {repo or name}` elsewhere, copy that folder, and give its path with {flag}"
    return Unreachable(
        f"{here}{source} is not in the cache, and the hub cannot be reached; connect to the network once, or run {way}"
    )
