"""The text that every machine has."""

import keyword

import pytest
import torch

from moe_lab.corpus import draw_batch, standard_library


def test_it_is_python_source():
    corpus = standard_library()
    text = bytes(corpus.train[:500_000].tolist()).decode(errors="replace")
    assert all(word in text for word in keyword.kwlist if word not in ("nonlocal", "async", "await"))
    assert len(corpus.validation) == pytest.approx(len(corpus.train) / 9, rel=0.5)
    assert corpus.fingerprint in repr(corpus)


def test_installed_packages_are_no_part_of_it(tmp_path):
    for number in range(20):
        (tmp_path / f"m{number:02d}.py").write_text(f"x = {number}\n")
    plain = standard_library(str(tmp_path))
    assert plain.files == 20
    for folder in ("site-packages", "test", "__pycache__"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "other.py").write_text("y = 1\n")
    standard_library.cache_clear()
    assert standard_library(str(tmp_path)).fingerprint == plain.fingerprint
    (tmp_path / "m00.py").write_text("x = 99\n")
    standard_library.cache_clear()
    assert standard_library(str(tmp_path)).fingerprint != plain.fingerprint


def test_no_file_is_in_both_parts(tmp_path):
    for number in range(30):
        (tmp_path / f"m{number:02d}.py").write_bytes(bytes([65 + number]) * 5)
    corpus = standard_library(str(tmp_path))
    assert len(corpus.validation.unique()) == 3 + 1  # three files and the newline between them
    both = set(corpus.train.tolist()) & set(corpus.validation.tolist())
    assert both == {10}


def test_a_folder_without_source_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds 0 Python files"):
        standard_library(str(tmp_path))


def test_batches_are_windows_and_what_follows():
    text = torch.arange(200, dtype=torch.uint8)
    now, after = draw_batch(text, 500, 5, torch.Generator().manual_seed(0))
    assert torch.equal(after, now + 1)
    assert torch.equal(now, now[:, :1] + torch.arange(5))
    assert int(now.min()) == 0 and int(after.max()) == 199  # first and last byte can be drawn
    again, _ = draw_batch(text, 500, 5, torch.Generator().manual_seed(0))
    assert torch.equal(now, again)
    with pytest.raises(ValueError, match="longer than length=200, it has 200 bytes"):
        draw_batch(text, 1, 200, torch.Generator())
