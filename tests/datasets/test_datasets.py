from __future__ import annotations

import fcntl
import gc
import hashlib
import multiprocessing
import os
import pickle
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from wsi_meta.datasets.batches import check_workers, read_batches
from wsi_meta.datasets.checks import split_for_training
from wsi_meta.datasets.layouts import Patches, choose_split, open_patches
from wsi_meta.datasets.patches import join
from wsi_meta.errors import DataError, OptionsError


def draw(n: int, seed: int = 0, side: int = 96) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def hdf5_path(folder: Path, part: str, split: str = "train") -> Path:
    return folder / f"camelyonpatch_level_2_split_{split}_{part}.h5"


def write_hdf5(folder: Path, split: str, patches: Any, labels: Sequence[int]) -> None:
    with h5py.File(hdf5_path(folder, "x", split), "w") as file:
        file["x"] = patches
    with h5py.File(hdf5_path(folder, "y", split), "w") as file:
        file["y"] = np.array(labels, np.uint8).reshape(-1, 1, 1, 1)


def write_kaggle(folder: Path, patches: Any, table: str) -> None:
    (folder / "train").mkdir()
    for name, pixels in zip("abcdefgh", patches, strict=False):
        Image.fromarray(pixels).save(folder / "train" / f"{name}.tif")
    (folder / "train_labels.csv").write_text(table)


def write_classes(folder: Path, n: tuple[int, int] = (2, 2), suffix: str = "png", seed: int = 0) -> NDArray[np.uint8]:
    patches = draw(sum(n), seed)
    for number, pixels in enumerate(patches):
        place = folder / ("0" if number < n[0] else "1")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number}.{suffix}")
    return patches


def open_and_check(paths: Path | list[Path]) -> None:
    for patches in open_patches(paths).values():
        patches.check()


def refusal(paths: Path | list[Path], named: Path) -> str:
    """The one line that says why data are not opened; it names `named`."""
    with pytest.raises(DataError) as caught:
        open_and_check(paths)
    text = str(caught.value)
    assert str(named) in text
    assert "\n" not in text
    return text


def in_memory(labels: Sequence[int]) -> Patches:
    """Patches that are never read."""
    files = tuple(Path(f"{number}.png") for number in range(len(labels)))
    return Patches(files, np.full(len(labels), -1), np.array(labels, np.uint8))


# --- PCam's HDF5 pairs


def test_hdf5_pairs_give_pixels_and_labels_of_each_split(tmp_path: Path) -> None:
    patches = {"train": draw(5), "valid": draw(3, seed=1), "test": draw(2, seed=2)}
    labels = {"train": [0, 1, 1, 0, 1], "valid": [1, 0, 0], "test": [0, 1]}
    for split in patches:
        write_hdf5(tmp_path, split, patches[split], labels[split])

    data = open_patches(tmp_path)

    assert list(data) == ["train", "valid", "test"]
    for split, opened in data.items():
        opened.check()
        assert opened.labels.tolist() == labels[split]
        assert opened.labels.dtype == np.uint8
        for number in range(len(opened)):
            assert np.array_equal(opened.read(number), patches[split][number])


def test_an_item_is_a_uint8_tensor_and_a_label(tmp_path: Path) -> None:
    patches = draw(2)
    write_hdf5(tmp_path, "train", patches, [0, 1])

    image, label = open_patches(str(tmp_path))["train"][1]

    assert image.dtype == torch.uint8
    assert image.shape == (96, 96, 3)
    assert torch.equal(image, torch.from_numpy(patches[1]))
    assert label == 1


@pytest.mark.parametrize("part", ["x", "y"])
def test_half_a_pair_is_refused(tmp_path: Path, part: str) -> None:
    write_hdf5(tmp_path, "valid", draw(2), [0, 1])
    hdf5_path(tmp_path, part, "valid").unlink()

    assert "missing" in refusal(tmp_path, hdf5_path(tmp_path, part, "valid"))


def test_a_pair_of_different_lengths_is_refused(tmp_path: Path) -> None:
    write_hdf5(tmp_path, "train", draw(3), [0, 1])

    assert "2 labels for 3 patches" in refusal(tmp_path, hdf5_path(tmp_path, "y"))


@pytest.mark.parametrize("shape", [(2, 64, 64, 3), (2, 96, 96), (2, 96, 96, 4), (2, 3, 96, 96)], ids=str)
def test_hdf5_patches_of_another_shape_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    write_hdf5(tmp_path, "train", np.zeros(shape, np.uint8), [0, 1])

    text = refusal(tmp_path, hdf5_path(tmp_path, "x"))

    assert str(shape[1:]) in text
    assert "(96, 96, 3)" in text


@pytest.mark.parametrize("content", [b"", b"not HDF5", b"\x89HDF\r\n\x1a\n"])
def test_a_file_that_is_no_hdf5_is_refused(tmp_path: Path, content: bytes) -> None:
    write_hdf5(tmp_path, "train", draw(2), [0, 1])
    hdf5_path(tmp_path, "x").write_bytes(content)

    refusal(tmp_path, hdf5_path(tmp_path, "x"))


def test_a_truncated_hdf5_file_is_refused(tmp_path: Path) -> None:
    write_hdf5(tmp_path, "train", draw(2), [0, 1])
    path = hdf5_path(tmp_path, "x")
    path.write_bytes(path.read_bytes()[:20_000])

    refusal(tmp_path, path)


def test_hdf5_without_the_patches_is_refused(tmp_path: Path) -> None:
    write_hdf5(tmp_path, "train", draw(2), [0, 1])
    with h5py.File(hdf5_path(tmp_path, "x"), "w") as file:
        file["images"] = draw(2)

    refusal(tmp_path, hdf5_path(tmp_path, "x"))


UNWRITTEN = {
    "chunks": ({"chunks": (1, 96, 96, 3)}, 2, "2 of 4 chunks were written"),
    "larger chunks": ({"chunks": (3, 96, 96, 2), "maxshape": (None, 96, 96, 3)}, 2, "2 of 4 chunks were written"),
    "whole": ({}, 0, "its values were never written"),
    "external": ({"external": [("raw", 0, h5py.h5f.UNLIMITED)]}, 2, "its values are in other files"),
}


@pytest.mark.parametrize(("layout", "rows", "told"), UNWRITTEN.values(), ids=UNWRITTEN)
def test_hdf5_of_which_parts_were_never_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Any, rows: int, told: str
) -> None:
    """HDF5 reads them as 0: black patches."""
    monkeypatch.chdir(tmp_path)  # where the external file is written
    write_hdf5(tmp_path, "train", draw(4), [0, 1, 0, 1])
    path = hdf5_path(tmp_path, "x")
    with h5py.File(path, "w") as file:
        data = file.create_dataset("x", (4, 96, 96, 3), np.uint8, **layout)
        if rows:
            data[:rows] = 1
    assert f"cannot be read as PCam's 'x' ({told}" in refusal(tmp_path, path)


def test_hdf5_with_data_sets_of_other_names_is_told_so(tmp_path: Path) -> None:
    write_hdf5(tmp_path, "train", draw(4), [0, 1, 0, 1])
    path = hdf5_path(tmp_path, "y")
    with h5py.File(path, "r+") as file:
        file.move("y", "Y")
    assert "holds Y; expected a data set 'y', as PCam's files have; name it so" in refusal(tmp_path, path)


def test_hdf5_labels_that_were_never_written_are_refused(tmp_path: Path) -> None:
    """HDF5 reads them as 0: normal."""
    write_hdf5(tmp_path, "train", draw(4), [0, 1, 0, 1])
    path = hdf5_path(tmp_path, "y")
    with h5py.File(path, "w") as file:
        file.create_dataset("y", (4, 1, 1, 1), np.uint8, chunks=(2, 1, 1, 1))[:2] = 1
    assert "cannot be read as PCam's 'y' (1 of 2 chunks were written)" in refusal(tmp_path, path)


def test_virtual_and_empty_hdf5_is_refused(tmp_path: Path) -> None:
    """A missing source of a virtual data set reads as 0, too."""
    write_hdf5(tmp_path, "train", draw(2), [0, 1])
    path = hdf5_path(tmp_path, "x")
    layout = h5py.VirtualLayout((2, 96, 96, 3), np.uint8)
    layout[:] = h5py.VirtualSource("nowhere.h5", "x", (2, 96, 96, 3))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("x", layout)
    assert "its values are in other files; expected them in this one" in refusal(tmp_path, path)
    with h5py.File(path, "w") as file:
        file["x"] = h5py.Empty("u1")
    assert "it holds nothing" in refusal(tmp_path, path)


def test_hdf5_labels_other_than_0_and_1_are_refused(tmp_path: Path) -> None:
    write_hdf5(tmp_path, "train", draw(3), [0, 1, 2])

    assert "label '2' in row 2" in refusal(tmp_path, hdf5_path(tmp_path, "y"))


def test_a_damaged_hdf5_row_is_named_when_it_is_read(tmp_path: Path) -> None:
    write_hdf5(tmp_path, "train", draw(2), [0, 1])
    path = hdf5_path(tmp_path, "x")
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=draw(2), chunks=(1, 96, 96, 3), compression="gzip")
        start = file["x"].id.get_chunk_info(1).byte_offset
    content = bytearray(path.read_bytes())
    content[start : start + 5000] = b"\x55" * 5000
    path.write_bytes(content)
    patches = open_patches(tmp_path)["train"]

    assert np.array_equal(patches.read(0), draw(2)[0])
    with pytest.raises(DataError, match=r"_train_x\.h5: row 1 cannot be read"):
        patches.read(1)


LAYOUTS: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "a chunk each": {"chunks": (1, 96, 96, 3), "compression": "gzip"},
    "chunks of 16": {"chunks": (16, 96, 96, 3), "compression": "gzip"},
    "h5py's own": {"chunks": True, "compression": "gzip"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_has_the_rows_in_the_order_asked_for(tmp_path: Path, layout: str) -> None:
    pixels = draw(40)
    labels = np.random.default_rng(1).integers(0, 2, 40).tolist()
    write_hdf5(tmp_path, "train", pixels, labels)
    with h5py.File(hdf5_path(tmp_path, "x"), "w") as file:
        file.create_dataset("x", data=pixels, **LAYOUTS[layout])
    patches = open_patches(tmp_path)["train"]

    for wanted in ([3], [39, 0, 7, 8, 9, 31], [5, 5, 4, 5], list(range(40)), list(range(39, -1, -1))):
        batch = patches.__getitems__(wanted)
        assert [label for _, label in batch] == [labels[row] for row in wanted]
        assert all(torch.equal(image, torch.from_numpy(pixels[row])) for (image, _), row in zip(batch, wanted, strict=True))


def test_a_batch_of_files_and_rows_keeps_its_order(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    first, second = draw(3, seed=1), draw(3, seed=2)
    write_hdf5(tmp_path / "one", "train", first, [0, 1, 1])
    write_hdf5(tmp_path / "two", "train", second, [1, 0, 1])
    images = write_classes(tmp_path / "three", (1, 1))
    patches = open_patches([tmp_path / name for name in ("one", "three", "two")])["train"]
    expected = [*first, *images, *second]

    wanted = [7, 0, 3, 5, 4, 2, 6, 1]

    assert all(np.array_equal(found, expected[i]) for found, i in zip(patches.read_many(wanted), wanted, strict=True))
    assert [patches.name(i) for i in (1, 3, 7)] == [
        f"{hdf5_path(tmp_path, 'x').name}[1]",
        "0.png",
        f"{hdf5_path(tmp_path, 'x').name}[2]",
    ]


def test_each_hdf5_file_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_hdf5(tmp_path, "train", draw(8), [0, 1] * 4)
    patches = open_patches(tmp_path)["train"]
    opened = []

    class Counted(h5py.File):  # type: ignore[misc]
        def __init__(self, path: Path) -> None:
            opened.append(path)
            super().__init__(path)

    monkeypatch.setattr(h5py, "File", Counted)

    for wanted in ([0, 5], [7], [1, 2, 3]):
        patches.read_many(wanted)
        patches.select(np.array([6, 4])).read(0)

    assert opened == [hdf5_path(tmp_path, "x")]


def test_a_copy_for_another_process_reads_with_its_own_handle(tmp_path: Path) -> None:
    pixels = draw(2)
    write_hdf5(tmp_path, "train", pixels, [0, 1])
    patches = open_patches(tmp_path)["train"]
    patches.read(0)

    copy = pickle.loads(pickle.dumps(patches))

    assert copy.hdf5 is not patches.hdf5
    assert np.array_equal(copy.read(1), pixels[1])


def test_files_are_closed_when_the_patches_go(tmp_path: Path) -> None:
    write_hdf5(tmp_path, "train", draw(2), [0, 1])
    patches = open_patches(tmp_path)["train"]
    patches.read(0)
    with pytest.raises(OSError, match="already open"):
        h5py.File(hdf5_path(tmp_path, "x"), "w")

    del patches
    gc.collect()

    h5py.File(hdf5_path(tmp_path, "x"), "w").close()


@pytest.mark.parametrize("workers", [-1, 1.0, "2", None])
def test_what_is_no_number_of_workers_is_refused(workers: Any) -> None:
    with pytest.raises(OptionsError, match=r"workers .*; expected .*0 or more"):
        read_batches(in_memory([0, 1]), 4, workers)


def test_a_process_that_may_have_none_of_its_own_decodes_by_itself() -> None:
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        assert pool.map(check_workers, [2]) == [0]
    assert check_workers(2) == 2


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12: fork beside torch's threads
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # where fewer cores are to be had
def test_other_processes_read_the_same_and_name_a_damaged_row(tmp_path: Path) -> None:
    pixels = draw(12)
    write_hdf5(tmp_path, "train", pixels, [0, 1] * 6)
    path = hdf5_path(tmp_path, "x")
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=pixels, chunks=(1, 96, 96, 3), compression="gzip")
        start = file["x"].id.get_chunk_info(9).byte_offset
    patches = open_patches(tmp_path)["train"]
    patches.read(0)  # this process's handle is no other's
    assert np.array_equal(torch.cat([images for images, _ in read_batches(patches, 4, 2)]).numpy(), pixels)

    content = bytearray(path.read_bytes())
    content[start : start + 5000] = b"\x55" * 5000
    path.write_bytes(content)
    others = multiprocessing.active_children()

    with pytest.raises(DataError, match=rf"^{re.escape(str(path))}: row 9 cannot be read") as caught:
        list(read_batches(open_patches(tmp_path)["train"], 4, 2))
    assert "\n" not in str(caught.value)
    assert set(multiprocessing.active_children()) <= set(others), "they end at once, not at some garbage collection"


@pytest.mark.parametrize("ending", ["h5", "HDF5"])
@pytest.mark.parametrize("name", ["val", "validation", "Valid"])
def test_splits_have_the_names_that_folders_may_have(
    tmp_path: Path, name: str, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_hdf5(tmp_path, "train", draw(2), [0, 1])
    write_hdf5(tmp_path, "other", draw(3), [0, 1, 0])
    for part in "xy":
        hdf5_path(tmp_path, part, "other").rename(tmp_path / f"Camelyonpatch_level_2_split_{name}_{part}.{ending}")
    (tmp_path / "camelyonpatch_level_2_split_train_mask.h5").touch()
    assert {split: len(patches) for split, patches in open_patches(tmp_path).items()} == {"train": 2, "valid": 3}
    assert not caplog.messages
    write_hdf5(tmp_path, "valid", draw(1), [0])
    with pytest.raises(DataError, match=r"split_valid_x\.h5: is the same half of valid as Camelyon.*; expected one"):
        open_patches(tmp_path)


def test_hdf5_files_of_other_names_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_hdf5(tmp_path, "train", draw(2), [0, 1])
    names = ["camelyonpatch_level_2_split_holdout_x.h5", "camelyonpatch_level_2_split_valid_x (1).h5"]
    for name in names:
        (tmp_path / name).touch()
    open_patches(tmp_path)
    told = ", ".join(str(tmp_path / name) for name in names)
    assert caplog.messages == [f"{tmp_path}: not read: {told}; expected one of the layouts of labelled patches"]


def test_packed_files_are_named(tmp_path: Path) -> None:
    hdf5_path(tmp_path, "x").with_suffix(".h5.gz").touch()

    assert "gunzip" in refusal(tmp_path, hdf5_path(tmp_path, "x").with_suffix(".h5.gz"))


# --- PCam's meta table

META = ",coord_y,coord_x,tumor_patch,center_tumor_patch,wsi\n"


def write_meta(folder: Path, rows: Sequence[tuple[bool, str]], header: str = META) -> Path:
    path = folder / "camelyonpatch_level_2_split_train_meta.csv"
    lines = [f"{row},{96 * row},{32 * row},True,{label},{slide}\n" for row, (label, slide) in enumerate(rows)]
    path.write_text(header + "".join(line if header.startswith(",") else line.split(",", 1)[1] for line in lines))
    return path


@pytest.mark.parametrize("header", [META, META[1:]], ids=["with an index", "without"])
def test_slides_come_from_the_meta_table(tmp_path: Path, header: str) -> None:
    write_hdf5(tmp_path, "train", draw(3), [1, 0, 1])
    write_meta(tmp_path, [(True, "tumor_001"), (False, "normal_010"), (True, "tumor_001")], header)

    patches = open_patches(tmp_path)["train"]

    assert patches.slides is not None
    assert patches.slides.tolist() == ["tumor_001", "normal_010", "tumor_001"]
    chosen = patches.select(np.array([1, 0])).slides
    assert chosen is not None
    assert chosen.tolist() == ["normal_010", "tumor_001"]


def test_slides_are_known_of_each_part_that_knows_them(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        write_hdf5(tmp_path / name, "train", draw(2), [0, 1])
    for name in ("one", "two"):
        write_meta(tmp_path / name, [(False, f"{name}_a"), (True, f"a_longer_name_of_{name}")])

    known = open_patches([tmp_path / "one", tmp_path / "two"])["train"].slides
    assert known is not None
    assert known.tolist() == ["one_a", "a_longer_name_of_one", "two_a", "a_longer_name_of_two"]
    mixed = open_patches([tmp_path / "one", tmp_path / "three"])["train"]
    assert mixed.slides is not None
    assert mixed.slides.tolist() == ["one_a", "a_longer_name_of_one", "", ""]
    assert mixed.groups is None
    assert open_patches(tmp_path / "three")["train"].slides is None


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([(True, "a"), (False, "a")], "2 rows for 3 patches"),
        ([(True, "a")] * 4, "4 rows for 3 patches"),
        ([(True, "a"), (True, "a"), (False, "a")], "center_tumor_patch of 2 rows contradicts y, first row 1 ('True', y has 0)"),
        ([(True, "a"), (False, ""), (True, "a")], "no wsi in row 1"),
    ],
    ids=["fewer", "more", "labels", "slide"],
)
def test_a_meta_table_that_contradicts_the_patches_is_refused(tmp_path: Path, rows: list[tuple[bool, str]], told: str) -> None:
    write_hdf5(tmp_path, "train", draw(3), [1, 0, 1])
    assert told in refusal(tmp_path, write_meta(tmp_path, rows))


def test_a_meta_table_without_its_columns_is_refused(tmp_path: Path) -> None:
    write_hdf5(tmp_path, "train", draw(2), [1, 0])
    path = write_meta(tmp_path, [(True, "a"), (False, "b")], ",coord_y,coord_x,tumor_patch,label,slide\n")
    assert "expected 'center_tumor_patch' and 'wsi'" in refusal(tmp_path, path)


# --- Kaggle's folder


def write_kaggle_by_sha1(folder: Path, n: int = 4) -> list[Path]:
    """A folder whose ids are what Kaggle's are; labels 0 and 1 in turn, by name."""
    patches = {hashlib.sha1(pixels.tobytes()).hexdigest(): pixels for pixels in draw(n)}
    (folder / "train").mkdir(parents=True)
    for name, pixels in patches.items():
        Image.fromarray(pixels).save(folder / "train" / f"{name}.tif")
    rows = [f"{name},{number % 2}\n" for number, name in enumerate(sorted(patches))]
    (folder / "train_labels.csv").write_text("id,label\n" + "".join(rows))
    return [folder / "train" / f"{name}.tif" for name in sorted(patches)]


def test_a_patch_that_does_not_give_its_id_is_named_when_it_is_read(tmp_path: Path) -> None:
    paths = write_kaggle_by_sha1(tmp_path)
    pixels = np.array(Image.open(paths[2]))
    pixels[50, 50, 1] ^= 1
    Image.fromarray(pixels).save(paths[2])
    patches = open_patches(tmp_path)["train"]

    assert all(patches.read(i).shape == (96, 96, 3) for i in (0, 1, 3))
    for chosen, index in ((patches, 2), (patches.select(np.array([3, 2])), 1)):
        with pytest.raises(DataError, match=f"^{re.escape(str(paths[2]))}: damaged or re-encoded"):
            chosen.read(index)


def test_names_in_class_folders_promise_nothing(tmp_path: Path) -> None:
    write_classes(tmp_path / "classes")
    (tmp_path / "classes" / "0" / "0.png").rename(tmp_path / "classes" / "0" / f"{'ab' * 20}.png")
    write_kaggle_by_sha1(tmp_path / "kaggle")

    patches = open_patches([tmp_path / "classes", tmp_path / "kaggle"])["train"]

    assert len(patches.read_many(range(8))) == 8
    assert patches.named_by_sha1 is not None
    assert patches.named_by_sha1.tolist() == [False] * 4 + [True] * 4


@pytest.mark.shared_data
def test_real_ids_are_what_their_pixels_give(shared_data: Path) -> None:
    patches = open_patches(shared_data / "pcam" / "kaggle")["train"]

    assert len(patches.read_many(range(len(patches)))) == 111
    assert patches.named_by_sha1 is not None
    assert patches.named_by_sha1.all()


def test_kaggle_labels_go_to_their_images(tmp_path: Path) -> None:
    patches = draw(3)
    write_kaggle(tmp_path, patches, "id,label\nc,1\na,0\nb,1\n")

    data = open_patches(tmp_path)

    assert list(data) == ["train"]
    data["train"].check()
    found = {data["train"].files[i].stem: (data["train"].read(i), int(data["train"].labels[i])) for i in range(3)}
    assert {name: label for name, (_, label) in found.items()} == {"a": 0, "b": 1, "c": 1}
    assert all(np.array_equal(found[name][0], pixels) for name, pixels in zip("abc", patches, strict=True))


@pytest.mark.parametrize("kind", ["S5", h5py.string_dtype()], ids=["fixed", "variable"])
def test_labels_in_hdf5_may_be_texts(kind: Any, tmp_path: Path) -> None:
    write_hdf5(tmp_path, "train", draw(2), [0, 1])
    for labels, told in ((["0", "Tumor"], None), (["0", "2"], "label '2' in row 1")):
        with h5py.File(hdf5_path(tmp_path, "y"), "w") as file:
            file["y"] = np.array(labels, kind)
        if told is None:
            assert open_patches(tmp_path)["train"].labels.tolist() == [0, 1]
        else:
            assert told in refusal(tmp_path, tmp_path)


def test_labels_that_a_spreadsheet_saved(tmp_path: Path) -> None:
    write_kaggle(tmp_path, draw(3), "id,label\na,FALSE\nb,TRUE\nc,True\n")

    assert open_patches(tmp_path)["train"].labels.tolist() == [0, 1, 1]


def test_labels_of_missing_images_are_refused(tmp_path: Path) -> None:
    write_kaggle(tmp_path, draw(2), "id,label\na,0\nb,1\nlost,1\ngone,0\n")

    told = refusal(tmp_path, tmp_path / "train_labels.csv")
    assert "2 ids without an image in train/, first 'gone'; train/ holds 2 .tif; expected one image" in told


def test_images_that_lie_otherwise_are_named(tmp_path: Path) -> None:
    """Converted to PNG, or a folder deeper: what is there helps more than that nothing is."""
    write_kaggle(tmp_path, draw(3), "id,label\na,0\nb,1\nc,1\n")
    for path in (tmp_path / "train").iterdir():
        path.rename(path.with_suffix(".png" if path.stem != "c" else ".jpg"))
    assert "3 ids without an image in train/, first 'a'; train/ holds 1 .jpg, 2 .png; ex" in refusal(tmp_path, tmp_path)
    (tmp_path / "train").rename(tmp_path / "images")
    (tmp_path / "train").mkdir()
    assert "train/ holds nothing; expected" in refusal(tmp_path, tmp_path)
    (tmp_path / "images").rename(tmp_path / "train" / "train")
    assert "train/ holds 1 folder; expected" in refusal(tmp_path, tmp_path)


def test_labels_without_the_image_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train_labels.csv").write_text("id,label\na,0\nb,1\n")

    assert "2 ids without an image" in refusal(tmp_path, tmp_path / "train_labels.csv")


def test_images_without_labels_are_refused(tmp_path: Path) -> None:
    write_kaggle(tmp_path, draw(3), "id,label\na,0\nc,1\n")

    assert "1 images in train/ without a label, first 'b'" in refusal(tmp_path, tmp_path / "train_labels.csv")


@pytest.mark.parametrize("header", ["name,label", "id,class", "0,1", ""], ids=str)
def test_other_columns_are_refused(tmp_path: Path, header: str) -> None:
    write_kaggle(tmp_path, draw(2), f"{header}\na,0\nb,1\n" if header else "")

    assert "expected 'id' and 'label'" in refusal(tmp_path, tmp_path / "train_labels.csv")


@pytest.mark.parametrize("row", ["b,2", "b,-1", "b,stroma", "b,0.5", "b,", "b"])
def test_labels_other_than_0_and_1_are_refused(tmp_path: Path, row: str) -> None:
    write_kaggle(tmp_path, draw(2), f"id,label\na,0\n{row}\n")

    assert "expected 0 or 1" in refusal(tmp_path, tmp_path / "train_labels.csv")


def test_a_file_that_another_program_writes_is_no_damage(tmp_path: Path) -> None:
    write_hdf5(tmp_path, "train", draw(2), [1, 0])
    with hdf5_path(tmp_path, "x", "train").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # as HDF5 does while it writes
        with pytest.raises(DataError, match=r"_x\.h5: .*; another program has it open for writing: close that, or wait"):
            open_patches(tmp_path)
    assert len(open_patches(tmp_path)["train"]) == 2


# --- pixel size


def test_the_pixel_size_that_a_file_states_goes_before_the_record(tmp_path: Path) -> None:
    write_hdf5(tmp_path, "train", draw(2), [1, 0])
    (tmp_path / "sampling.json").write_text('{"mpp": 1}')
    assert open_patches(tmp_path)["train"].mpp == 1
    for value in (0.5, "fine", float("nan"), [0.5]):
        with h5py.File(hdf5_path(tmp_path, "x", "train"), "r+") as file:
            file["x"].attrs["mpp"] = value
        if value == 0.5:
            assert open_patches(tmp_path)["train"].mpp == 0.5
        else:
            with pytest.raises(DataError, match=r"_x\.h5: attribute 'mpp' of its patches is .*; expected micrometres"):
                open_patches(tmp_path)


@pytest.mark.parametrize(("shown", "told"), [(0.972, False), (0.5, True)])
def test_a_pixel_size_that_nothing_tells(tmp_path: Path, shown: float, told: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Patches that tell none are mostly PCam's; a model that is shown others is believed."""
    write_classes(tmp_path)
    open_patches(tmp_path)["train"].check_mpp(shown)
    assert ("do not tell their pixel size; taken to be 0.5 um, which the model is shown" in caplog.text) == told


# --- class folders


@pytest.mark.parametrize("suffix", ["png", "tif", "tiff", "PNG"])
def test_class_folders_without_splits_are_for_training(tmp_path: Path, suffix: str) -> None:
    patches = write_classes(tmp_path, (2, 3), suffix)

    data = open_patches(tmp_path)

    assert list(data) == ["train"]
    data["train"].check()
    assert data["train"].labels.tolist() == [0, 0, 1, 1, 1]
    assert all(np.array_equal(data["train"].read(i), patches[i]) for i in range(5))


@pytest.mark.parametrize("suffix", ["jpg", "jpeg"])
def test_jpeg_patches_are_read(tmp_path: Path, suffix: str) -> None:
    for label, colour in enumerate([(220, 180, 200), (90, 40, 120)]):
        (tmp_path / str(label)).mkdir()
        Image.new("RGB", (96, 96), colour).save(tmp_path / str(label) / f"a.{suffix}", quality=95)

    patches = open_patches(tmp_path)["train"]

    assert np.abs(patches.read(0).astype(int) - (220, 180, 200)).max() <= 3
    assert np.abs(patches.read(1).astype(int) - (90, 40, 120)).max() <= 3


def test_class_folders_with_splits_are_kept_apart(tmp_path: Path) -> None:
    patches = {
        split: write_classes(tmp_path / split, (1, 1), seed=seed) for seed, split in enumerate(["test", "valid", "train"])
    }

    data = open_patches(tmp_path)

    assert list(data) == ["train", "valid", "test"]
    for split, opened in data.items():
        assert np.array_equal(opened.read(1), patches[split][1])


def test_files_that_are_no_images_by_name_are_left_out(tmp_path: Path) -> None:
    write_classes(tmp_path, (1, 1))
    (tmp_path / "0" / "notes.txt").write_text("by hand")

    assert len(open_patches(tmp_path)["train"]) == 2


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_other_colour_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    write_classes(tmp_path, (1, 1))
    Image.new("RGB", (96, 96), (51, 51, 51)).convert(mode).save(tmp_path / "0" / "0.png")

    pixels = open_patches(tmp_path)["train"].read(0)

    assert pixels.shape == (96, 96, 3)
    assert pixels.dtype == np.uint8
    assert np.unique(pixels).tolist() == [51]


@pytest.mark.parametrize("size", [(95, 96), (96, 97), (32, 32), (192, 192)], ids=str)
def test_an_image_of_another_size_is_named(tmp_path: Path, size: tuple[int, int]) -> None:
    write_classes(tmp_path)
    path = tmp_path / "1" / "2.png"
    Image.new("RGB", size).save(path)

    text = refusal(tmp_path, path)

    assert f"{size[0]}x{size[1]} px" in text
    assert "expected 96x96" in text
    told = r"expected 96x96; cut it anew at 0.972 um per pixel \(wsi-meta sample\), or resize it only if it shows 93 x 93 um"
    with pytest.raises(DataError, match=told):
        open_patches(tmp_path)["train"].read(2)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"II*\0", b"\xff\xd8\xff"])
def test_a_file_that_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    write_classes(tmp_path)
    path = tmp_path / "1" / "2.png"
    path.write_bytes(content)

    assert "does not decode" in refusal(tmp_path, path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_an_image_whose_pixels_do_not_decode_is_named_when_it_is_read(tmp_path: Path, suffix: str) -> None:
    write_classes(tmp_path, suffix=suffix)
    path = tmp_path / "1" / f"2.{suffix}"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    patches = open_patches(tmp_path)["train"]

    with pytest.raises(DataError, match=f"2.{suffix}: does not decode") as caught:
        patches.read(2)

    assert str(path) in str(caught.value)
    assert patches.read(3).shape == (96, 96, 3)


# --- folders, joined


def test_folders_of_different_layouts_are_joined(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("hdf5", "kaggle", "classes")]
    for folder in folders:
        folder.mkdir()
    write_hdf5(folders[0], "train", draw(2), [1, 0])
    write_kaggle(folders[1], draw(3, seed=1), "id,label\na,0\nb,1\nc,1\n")
    write_classes(folders[2] / "train", (1, 1))
    write_classes(folders[2] / "valid", (1, 2))

    data = open_patches(folders)

    assert {split: len(patches) for split, patches in data.items()} == {"train": 7, "valid": 3}
    assert data["train"].labels.tolist() == [1, 0, 0, 1, 1, 0, 1]
    assert np.array_equal(data["train"].read(1), draw(2)[1])
    assert np.array_equal(data["train"].read(4), draw(3, seed=1)[2])


def test_a_folder_among_others_is_the_split_that_it_is_named_as(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patches to validate on would be trained on."""
    for folder in ("a/train", "a/Valid", "more"):
        write_classes(tmp_path / folder, (1, 2))
    (tmp_path / "b" / "test").mkdir(parents=True)
    write_kaggle(tmp_path / "b" / "test", draw(3), "id,label\na,0\nb,1\nc,1\n")
    monkeypatch.chdir(tmp_path / "a" / "Valid")

    data = open_patches(["../train", ".", "../../more", "../../b/test"])

    assert {split: len(patches) for split, patches in data.items()} == {"train": 6, "valid": 3, "test": 3}
    assert list(open_patches(tmp_path / "a" / "Valid")) == ["train"], "nothing beside it to keep it apart from"


def test_layouts_within_one_folder_are_joined_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_hdf5(tmp_path, "train", draw(2), [1, 0])
    write_classes(tmp_path, (1, 1))

    assert open_patches(tmp_path)["train"].labels.tolist() == [1, 0, 0, 1]
    assert "for train in several layouts are joined: 2 of HDF5 files, 2 of folders 0/ and 1/; remove one" in caplog.text


def test_no_folder_is_refused() -> None:
    """As of a pattern that no folder matches."""
    with pytest.raises(OptionsError, match="patches: no folder in the list; expected a folder of labelled patches"):
        open_patches([])


@pytest.mark.parametrize("split", [["valid"], "val", ""], ids=str)
def test_a_split_of_another_name_is_refused(tmp_path: Path, split: Any) -> None:
    write_classes(tmp_path / "valid")
    with pytest.raises(OptionsError, match=r"split .*; expected one of train, valid, test"):
        choose_split(tmp_path, split=split)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    write_classes(tmp_path / "here")

    assert "no such folder" in refusal([tmp_path / "here", tmp_path / "gone"], tmp_path / "gone")


def test_a_file_instead_of_a_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "patches.zip"
    path.touch()

    assert "no such folder" in refusal(path, path)


def test_a_folder_without_patches_is_refused_by_what_is_there(tmp_path: Path) -> None:
    assert "no labelled patches found, but nothing that may be patches; expected PCam's files" in refusal(tmp_path, tmp_path)
    (tmp_path / "Labels").mkdir()
    for name in ("training_split.h5", "test_split.h5"):  # a mirror's names
        (tmp_path / name).touch()
    names = ", ".join(f"{tmp_path}/{name}" for name in ("Labels/", "test_split.h5", "training_split.h5"))
    assert f"found, but {names}; expected PCam's files by their names, camelyonpatch_" in refusal(tmp_path, tmp_path)


def test_class_folders_without_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "1").mkdir()

    assert "hold no images" in refusal(tmp_path, tmp_path)


@pytest.mark.parametrize(("n", "only"), [((3, 0), "all 3 patches are normal"), ((0, 2), "all 2 patches are tumor")])
def test_a_single_class_is_refused(tmp_path: Path, n: tuple[int, int], only: str) -> None:
    write_classes(tmp_path, n)

    assert only in refusal(tmp_path, tmp_path)


# --- validation


def test_the_datas_own_validation_split_is_kept() -> None:
    train, valid, test = in_memory([0, 1] * 5), in_memory([0, 1]), in_memory([1, 0])

    parts = split_for_training({"train": train, "valid": valid, "test": test}, fraction=0.5, seed=3)

    assert parts[0] is train
    assert parts[1] is valid


LABELS = st.tuples(st.integers(3, 30), st.integers(3, 30), st.randoms(use_true_random=False)).map(
    lambda drawn: drawn[2].sample([0] * drawn[0] + [1] * drawn[1], drawn[0] + drawn[1])
)


@given(labels=LABELS, fraction=st.floats(0.01, 0.5), seed=st.integers(0, 2**32 - 1))
def test_a_seeded_split_is_disjoint_complete_and_stratified(labels: list[int], fraction: float, seed: int) -> None:
    data = in_memory(labels)

    train, valid = split_for_training({"train": data}, fraction=fraction, seed=seed)
    again = split_for_training({"train": data}, fraction=fraction, seed=seed)

    assert set(train.files).isdisjoint(valid.files)
    assert sorted([*train.files, *valid.files]) == sorted(data.files)
    truth = dict(zip(data.files, labels, strict=True))
    for part in (train, valid):
        assert set(part.labels.tolist()) == {0, 1}
        assert [truth[path] for path in part.files] == part.labels.tolist()
    for label in (0, 1):
        held = int((valid.labels == label).sum())
        assert held == 2 or abs(held - fraction * labels.count(label)) <= 1
    assert (again[0].files, again[1].files) == (train.files, valid.files)


@example([(1, 1), (2, 2)], 0)  # too few slides: patches are held out one by one, here just those of one slide
@example([(40, 1), (40, 40)], 0)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12), st.integers(0, 99))
def test_a_seeded_split_is_of_whole_slides_where_they_are_known(counts: list[tuple[int, int]], seed: int) -> None:
    labels = [label for normal, tumor in counts for label in [0] * normal + [1] * tumor]
    assume(3 <= sum(labels) <= len(labels) - 3)
    slides = np.array([f"s{number}" for number, (normal, tumor) in enumerate(counts) for _ in range(normal + tumor)])
    data = replace(in_memory(labels), slides=slides)

    train, valid = split_for_training({"train": data}, fraction=0.2, seed=seed)

    assert train.slides is not None
    assert valid.slides is not None
    shared = set(train.slides.tolist()) & set(valid.slides.tolist())
    for label in (0, 1):
        of_class = int((data.labels == label).sum())
        held = int((valid.labels == label).sum())
        assert held >= 2
        assert 2 * (train.labels == label).sum() >= of_class or shared or held == 2
    if len(counts) > 2 and all(pair == (5, 5) for pair in counts):
        assert not shared


def test_slides_of_both_classes_are_held_out_whole() -> None:
    slides = np.repeat([f"s{number}" for number in range(10)], 4)
    data = replace(in_memory([0, 1] * 20), slides=slides)

    train, valid = split_for_training({"train": data}, fraction=0.2, seed=1)

    assert (len(train), len(valid)) == (32, 8)
    assert set(train.slides.tolist()).isdisjoint(valid.slides.tolist())  # type: ignore[union-attr]


def test_slides_that_are_known_are_held_out_whole_beside_others_and_this_is_told(caplog: pytest.LogCaptureFixture) -> None:
    slides = np.concatenate([np.repeat([f"s{number}" for number in range(10)], 4), np.zeros(20, np.str_)])
    data = {"train": replace(in_memory([0, 1] * 30), slides=slides)}

    train, valid = split_for_training(data, fraction=0.2, seed=1)

    in_train, in_valid = set(train.slides.tolist()), set(valid.slides.tolist())  # type: ignore[union-attr]
    assert in_train & in_valid == {""}
    assert (len(valid), len(in_valid)) == (12, 3)
    assert caplog.messages == [
        "the slides of 4 of the 12 patches held out for validation are not known; its figures then flatter"
    ]
    split_for_training({"train": in_memory([0, 1] * 30)}, tell=False)
    split_for_training({"train": data["train"].select(np.arange(40))})
    assert len(caplog.messages) == 1
    split_for_training({"train": in_memory([0, 1] * 30)})
    assert "of 6 of the 6" in caplog.messages[1]


def test_nodes_of_one_patient_are_held_out_together() -> None:
    slides = np.repeat([f"patient_{number:03}_node_{node}" for number in range(10) for node in range(5)], 4)

    train, valid = split_for_training({"train": replace(in_memory([0, 1] * 100), slides=slides)}, fraction=0.2, seed=1)

    assert len(set(valid.patients.tolist())) == 2  # type: ignore[union-attr]
    assert set(train.patients.tolist()).isdisjoint(valid.patients.tolist())  # type: ignore[union-attr]


def test_another_seed_splits_otherwise() -> None:
    data = in_memory([0, 1] * 100)

    held_out = [set(split_for_training({"train": data}, fraction=0.2, seed=seed)[1].files) for seed in range(5)]

    assert all(held_out[i] != held_out[j] for i in range(5) for j in range(i))


def test_a_tenth_is_held_out_unless_told_otherwise() -> None:
    train, valid = split_for_training({"train": in_memory([0] * 60 + [1] * 40)})

    assert np.bincount(valid.labels).tolist() == [6, 4]
    assert np.bincount(train.labels).tolist() == [54, 36]


def test_too_few_patches_to_hold_some_out_are_counted() -> None:
    told = r"1 tumor and 10 normal patches, and no validation split; expected at least 3 of each, 2 of them to validate on"
    with pytest.raises(DataError, match=told):
        split_for_training({"train": in_memory([0] * 10 + [1])})
    train, valid = split_for_training({"train": in_memory([0] * 10 + [1] * 3)})
    assert (np.bincount(train.labels).tolist(), np.bincount(valid.labels).tolist()) == ([8, 1], [2, 2])


def test_data_without_training_patches_are_refused(tmp_path: Path) -> None:
    write_classes(tmp_path / "valid")

    with pytest.raises(DataError, match="only valid patches; expected a train split") as caught:
        split_for_training(open_patches(tmp_path))

    assert str(tmp_path) in str(caught.value)


# --- fingerprints


def test_a_fingerprint_does_not_depend_on_where_the_folder_lies(tmp_path: Path) -> None:
    write_classes(tmp_path / "one")
    write_classes(tmp_path / "other")

    prints = [open_patches(tmp_path / name)["train"].fingerprint() for name in ("one", "other")]

    assert prints[0] == prints[1]
    assert len(bytes.fromhex(prints[0])) == 32


def test_a_fingerprint_of_names_that_are_no_text(tmp_path: Path) -> None:
    """Latin-1 from an old archive: the bytes count as they are, as those of any other name do."""
    names = [b"caf\xe9.png", "é.png".encode(), b"plain.png"]
    patches = Patches(tuple(map(Path, map(os.fsdecode, names))), np.full(3, -1), np.array([0, 1, 1], np.uint8))

    expected = hashlib.sha256(b"caf\xe9.png -1 0\n" + "é.png -1 1\n".encode() + b"plain.png -1 1\n").hexdigest()
    assert patches.fingerprint() == expected


def test_a_fingerprint_depends_on_names_rows_labels_and_order() -> None:
    files, rows, labels = (Path("a.png"), Path("b.png")), np.array([-1, -1]), np.array([0, 1], np.uint8)
    variants = [
        Patches(files, rows, labels),
        Patches(files, rows, labels[::-1].copy()),
        Patches((Path("a.png"), Path("c.png")), rows, labels),
        Patches(files, np.array([-1, 0]), labels),
        Patches(files, rows, labels).select(np.array([1, 0])),
        Patches(files, rows, labels).select(np.array([0])),
    ]

    assert len({patches.fingerprint() for patches in variants}) == len(variants)


@given(labels=LABELS, data=st.data())
def test_selecting_keeps_files_rows_and_labels_together(labels: list[int], data: st.DataObject) -> None:
    patches = Patches(in_memory(labels).files, np.arange(len(labels)), np.array(labels, np.uint8))
    wanted = data.draw(st.lists(st.integers(0, len(labels) - 1), min_size=1))

    chosen = patches.select(np.array(wanted))

    assert len(chosen) == len(wanted)
    assert chosen.rows.tolist() == wanted
    assert chosen.labels.tolist() == [labels[i] for i in wanted]
    assert chosen.files == tuple(patches.files[i] for i in wanted)


def test_hdf5_patches_of_another_type_are_refused(tmp_path: Path) -> None:
    write_hdf5(tmp_path, "train", draw(2) / 255, [0, 1])
    refusal(tmp_path, hdf5_path(tmp_path, "x"))


def test_a_damaged_label_file_is_named(tmp_path: Path) -> None:
    write_hdf5(tmp_path, "train", draw(2), [0, 1])
    hdf5_path(tmp_path, "y").write_text("no")
    refusal(tmp_path, hdf5_path(tmp_path, "y"))


def test_labels_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    write_kaggle(tmp_path, draw(2), "id,label\na,0\nb,1\na,1\n")
    refusal(tmp_path, tmp_path / "train_labels.csv")


def test_a_label_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    write_kaggle(tmp_path, draw(2), "")
    (tmp_path / "train_labels.csv").write_bytes(b"id,label\n\xff\xfe\x80,0\n")
    refusal(tmp_path, tmp_path / "train_labels.csv")


def test_an_empty_label_file_is_named(tmp_path: Path) -> None:
    write_kaggle(tmp_path, [], "id,label\n")
    refusal(tmp_path, tmp_path)


def test_a_label_file_saved_by_a_spreadsheet_is_read(tmp_path: Path) -> None:
    write_kaggle(tmp_path, draw(2), "\ufeffid,label\na,0\nb,1\n")
    assert open_patches(tmp_path)["train"].labels.tolist() == [0, 1]


def test_a_folder_given_twice_does_not_leak_into_validation(tmp_path: Path) -> None:
    write_classes(tmp_path, (4, 4))
    with pytest.raises(DataError, match="given twice"):
        open_patches([tmp_path, tmp_path])


def test_a_file_without_patches_is_named(tmp_path: Path) -> None:
    write_hdf5(tmp_path, "valid", np.zeros((0, 96, 96, 3), np.uint8), [])
    with pytest.raises(DataError, match=r"split_valid_x\.h5: holds no patches; download it again"):
        open_patches(tmp_path)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A pipe gives nothing until somebody writes to it; a link to a file that is gone is a damaged patch."""
    write_classes(tmp_path)
    os.mkfifo(tmp_path / "0" / "pipe.png")
    (tmp_path / "1" / "folder.png").mkdir()
    assert len(open_patches(tmp_path)["train"]) == 4
    assert "folder.png" in caplog.text
    assert "pipe.png" in caplog.text
    (tmp_path / "1" / "gone.png").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"gone\.png"):
        open_and_check(tmp_path)


@pytest.mark.parametrize("layout", ["hdf5", "kaggle", "classes"])
def test_patches_stay_those_of_the_folder_they_were_opened_in(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = {}
    for seed, place in enumerate(("here", "elsewhere")):
        (folder := tmp_path / place / "data").mkdir(parents=True)
        written[place] = draw(2, seed)
        if layout == "hdf5":
            write_hdf5(folder, "train", written[place], [0, 1])
        elif layout == "kaggle":
            write_kaggle(folder, written[place], "id,label\na,0\nb,1\n")
        else:
            written[place] = write_classes(folder, (1, 1), seed=seed)
    monkeypatch.chdir(tmp_path / "here")
    patches = open_patches("data")["train"]
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert np.array_equal(patches.read_many([0, 1]), written["here"])
    patches.check()
    joined = join([patches, open_patches("data")["train"]])
    assert np.array_equal(joined.read_many([1, 2]), [written["here"][1], written["elsewhere"][0]])
    assert not patches.files[0].is_absolute(), "errors name what was given"
