"""Every writer killed at every step, and on a disk without room: the old version stays, or the new one is there."""

import contextlib
import resource
import shutil

import pytest

from .children import allow_bytes, count_steps, in_a_child, kill_at, small_disk
from .conftest import WHOLE
from .writers import WRITERS


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.name)
def test_killed_at_any_step_a_reader_finds_the_old_or_the_new(writer, whole, tmp_path):
    elsewhere, folder = tmp_path / "elsewhere" / "place", tmp_path / "killed" / "place"
    for one in (elsewhere, folder):
        one.mkdir(parents=True)
        writer.write(one / writer.file, 1)
    place, found = folder / writer.file, []
    assert writer.read(place) == 1
    last = count_steps(lambda: writer.write(elsewhere / writer.file, 2), elsewhere)
    assert writer.read(elsewhere / writer.file) == 2
    steps = range(1, last + 1) if whole else sorted({max(1, last - before) for before in (last // 2, 4, 3, 2, 1)})
    for step in steps:
        for left in folder.glob(".unfinished-*/"):  # deleting it takes steps, too: the counted ones would end early
            shutil.rmtree(left)
        kill_at(step, lambda: writer.write(place, 2), folder)
        found.append(writer.read(place))
        if found[-1] == 2:
            break  # the next try would not be the same any more
    assert found[0] == 1, "the kills came too late to mean anything"
    writer.write(place, 2)
    assert writer.read(place) == 2
    kept = {path.name for path in folder.iterdir() if path.is_dir() or not path.name.startswith(".unfinished-")}
    assert kept == {writer.file}, "a folder that a kill left is gone after the next try, a file after an hour"


def all_below(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.name != ".lock")


def fill(folder, leave=0):
    """Take all room of a disk, but for so many bytes."""
    with (folder / "ballast").open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 4096)
        file.truncate(file.tell() - leave)


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.name)
def test_a_file_that_grows_too_long_is_told_of(writer, tmp_path):
    """The system takes no byte more of any file: this works for every user, on every disk."""
    folder = tmp_path / "place"
    folder.mkdir()
    place = folder / writer.file
    writer.write(place, 1)
    before = all_below(folder)
    ended = in_a_child(lambda: allow_bytes_and(lambda: writer.write(place, 2)))
    assert f"cannot write {place}" in ended.said or f"cannot write {folder}" in ended.said, ended.said
    assert "File too large" in ended.said and "make room, and start again" in ended.said
    assert writer.read(place) == 1 and all_below(folder) == before
    writer.write(place, 2)
    assert writer.read(place) == 2


def allow_bytes_and(write):
    """The limit is for all files, and what a child says goes into one: so it is said once there is room again."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    allow_bytes(0)
    try:
        write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("leave", [0, 8192] if WHOLE else [0])
@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.name)
def test_a_full_disk_is_told_of(writer, leave):
    """A real one, where this user may make one: full to the last page, or with two pages left."""
    with small_disk("1m") as disk:
        if disk is None:
            return  # the test above fills a file instead
        folder = disk / "place"
        folder.mkdir()
        place = folder / writer.file
        writer.write(place, 1)
        before = all_below(folder)
        fill(disk, leave)
        try:
            with pytest.raises(OSError) as error:
                writer.write(place, 2)
        except BaseException:
            assert leave and writer.read(place) == 2, "small enough for two pages"
        else:
            assert "No space left on device" in str(error.value) and "make room, and start again" in str(error.value)
            assert writer.read(place) == 1 and all_below(folder) == before
        (disk / "ballast").unlink()
        writer.write(place, 2)
        assert writer.read(place) == 2
