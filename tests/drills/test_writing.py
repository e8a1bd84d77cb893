"""A file that is written is the old one or the new one, whatever happens; and an error says what to do."""

import errno
import multiprocessing
import os
import stat
import sys
import time
from pathlib import Path

import pytest
from safetensors import SafetensorError

from moe_lab import writing
from moe_lab.checkpoint import system_errors
from moe_lab.writing import CannotWrite, alone, check_writable, put_in_place, write_whole


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_text_bytes_and_functions_are_written(tmp_path):
    for content in ("né\n", "né\n".encode(), lambda path: path.write_bytes("né\n".encode())):
        path = write_whole(tmp_path / "a" / "b.txt", content)
        assert path.read_bytes() == b"n\xc3\xa9\n" and names(path.parent) == ["b.txt"]
        path.unlink()


@pytest.mark.parametrize("moment", range(7))
def test_an_error_at_any_call_leaves_the_old_file_and_nothing_else(moment, tmp_path, monkeypatch):
    """Each call that touches the disk fails once, as on a full disk."""
    path, calls = tmp_path / "note.txt", []
    path.write_text("old")

    def fail(function):
        def call(*args, **options):
            calls.append(function)
            if len(calls) == moment + 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*args, **options)

        return call

    with monkeypatch.context() as patch:
        for owner, name in (
            (writing.Path, "mkdir"),
            (writing.Path, "resolve"),
            (writing.Path, "write_bytes"),
            (writing.shutil, "copymode"),
            (writing.os, "open"),
            (writing.os, "fsync"),
            (writing.Path, "replace"),
        ):
            patch.setattr(owner, name, fail(getattr(owner, name)))
        with pytest.raises(CannotWrite) as error:
            write_whole(path, "new")
    says = f"cannot write {path}: No space left on device; make room, and start again. What was there"
    assert str(error.value).startswith(says)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["note.txt"]


def test_a_function_that_fails_in_the_middle_leaves_nothing(tmp_path):
    def write(path):
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "note.txt", write)
    assert names(tmp_path) == []


def test_a_link_stays_a_link_and_a_mode_a_mode(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    write_whole(link, "new")
    assert link.is_symlink() and real.read_text() == "new" and stat.S_IMODE(real.stat().st_mode) == 0o640


@pytest.mark.parametrize("place", ["/dev/null", "/dev/full", "a folder", "a file/below"])
def test_what_is_no_file_is_refused_and_stays(place, tmp_path):
    (tmp_path / "a folder").mkdir()
    (tmp_path / "a file").touch()
    before = [Path(device).stat().st_rdev for device in ("/dev/null", "/dev/full")]
    for function in (check_writable, lambda path: write_whole(path, "new")):
        with pytest.raises(CannotWrite, match=f"cannot write .*{place}: .*; give another place, and start again"):
            function(tmp_path / place)  # an absolute place stays itself
    assert [Path(device).stat().st_rdev for device in ("/dev/null", "/dev/full")] == before


def test_what_a_killed_process_left_is_swept_up_an_hour_later(tmp_path):
    old, young, others = (
        tmp_path / f".unfinished-{name}" for name in ("note.txt-99999999", "note.txt-99999998", "x-99999999")
    )
    for left in (old, young, others):
        left.write_text("half")
        os.utime(left, (time.time() - 7200,) * 2)
    os.utime(young)
    write_whole(tmp_path / "note.txt", "new")
    assert names(tmp_path) == sorted(["note.txt", young.name, others.name])


def test_checking_leaves_nothing(tmp_path):
    (tmp_path / "note.txt").write_text("old")
    check_writable(tmp_path / "note.txt")
    check_writable(tmp_path / "new" / "note.txt")
    assert names(tmp_path) == ["note.txt"]
    assert (tmp_path / "note.txt").read_text() == "old"


@pytest.mark.parametrize("swap", [True, False], ids=["swapped in one step", "where no system call swaps"])
def test_a_folder_takes_the_place_of_another(swap, tmp_path, monkeypatch):
    if not swap:
        monkeypatch.setattr(writing, "_swap", lambda one, other: False)
    elif sys.platform == "linux":
        monkeypatch.setattr(writing.Path, "rename", None)
    for name in ("fresh", "final"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "is").write_text(name)
    put_in_place(tmp_path / "fresh", tmp_path / "final")
    assert (tmp_path / "final" / "is").read_text() == "fresh" and (tmp_path / "fresh" / "is").read_text() == "final"
    assert names(tmp_path) == ["final", "fresh"]


def test_where_nothing_swaps_and_the_second_rename_fails_the_old_folder_is_back(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "_swap", lambda one, other: False)
    (tmp_path / "final").mkdir()
    with pytest.raises(OSError, match="No such file"):
        put_in_place(tmp_path / "not there", tmp_path / "final")
    assert names(tmp_path) == ["final"]


def hold(lock, ready, done):
    with alone(lock, lock.parent, "in use"):
        ready.set()
        done.wait(30)


def test_one_process_at_a_time_and_a_second_one_hears_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path / "run" / ".lock", ready, done))
    process.start()
    assert ready.wait(30)
    started = time.monotonic()
    with pytest.raises(ValueError, match="in use"), alone(tmp_path / "run" / ".lock", tmp_path, "in use"):
        pass
    assert time.monotonic() - started < 5
    process.kill()
    process.join()
    with alone(tmp_path / "run" / ".lock", tmp_path, "in use"):  # the dead hold nothing
        pass


@pytest.mark.parametrize("kind", [SafetensorError, Exception])
def test_what_libraries_in_rust_say_of_a_full_disk_is_an_error_of_the_system(kind):
    """tokenizers raises Exception itself; what else it may say stays what it is."""
    with pytest.raises(OSError, match="No space left on device") as caught, system_errors():
        raise kind("Error while serializing: I/O error: No space left on device (os error 28)")
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(kind, match="of another kind") as other, system_errors():
        raise kind("of another kind")
    assert not isinstance(other.value, OSError)
