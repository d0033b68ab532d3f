from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image
from tiny import TINY, train_tiny

from wsi_meta.cli import main
from wsi_meta.datasets.checks import check_patches
from wsi_meta.datasets.layouts import Patches, open_patches
from wsi_meta.errors import DataError
from wsi_meta.training.recipe import Recipe


def draw(number: int) -> NDArray[np.uint8]:
    """One of many patches that are all different."""
    return np.random.default_rng(number).integers(0, 256, (96, 96, 3), dtype=np.uint8)


def write(folder: Path, numbers: Sequence[int], *, suffix: str = "png", first_label: int = 0) -> Patches:
    """Class folders of the patches of these numbers, labels 0 and 1 in turn; in the order of the numbers."""
    files = []
    labels = [(place + first_label) % 2 for place in range(len(numbers))]
    for place, (number, label) in enumerate(zip(numbers, labels, strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        files.append(folder / str(label) / f"{place}.{suffix}")
        Image.fromarray(draw(number)).save(files[-1])
    return Patches(tuple(files), np.full(len(files), -1), np.array(labels, np.uint8))


def write_hdf5(folder: Path, split: str, numbers: Sequence[int], slides: Sequence[str] = ()) -> None:
    folder.mkdir(exist_ok=True)
    stem = folder / f"camelyonpatch_level_2_split_{split}"
    labels = np.arange(len(numbers), dtype=np.uint8) % 2
    with h5py.File(f"{stem}_x.h5", "w") as file:
        file.create_dataset("x", data=np.stack([draw(number) for number in numbers]), compression="gzip")
    with h5py.File(f"{stem}_y.h5", "w") as file:
        file["y"] = labels.reshape(-1, 1, 1, 1)
    if slides:
        rows = [f"{bool(label)},{slide}\n" for label, slide in zip(labels, slides, strict=True)]
        Path(f"{stem}_meta.csv").write_text("center_tumor_patch,wsi\n" + "".join(rows))


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def refusal(train_set: Patches, valid_set: Patches) -> str:
    with pytest.raises(DataError) as caught:
        check_patches(train_set, valid_set)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what stands in both


def test_clean_patches_pass_as_they_are(tmp_path: Path) -> None:
    train_set, valid_set = write(tmp_path / "t", range(5)), write(tmp_path / "v", range(10, 14))

    checked = check_patches(train_set, valid_set)

    assert checked.train.files == train_set.files
    assert checked.valid.files == valid_set.files
    assert checked.summary == ("5 training patches (2 tumor, 40 %), 4 validation patches (2 tumor, 50 %); no patch in both")


def test_the_same_pixels_in_both_are_refused_whatever_the_file(tmp_path: Path) -> None:
    train_set = write(tmp_path / "t", [0, 1, 2, 3, 4])
    valid_set = write(tmp_path / "v", [10, 3, 11, 1], suffix="tif", first_label=1)

    text = refusal(train_set, valid_set)

    assert text.startswith(f"{train_set.files[1]}: the same pixels as validation's 3.tif")
    assert "2 such in all" in text
    assert "--drop-duplicates" in text


def test_duplicates_are_dropped_from_training_alone(tmp_path: Path) -> None:
    train_set = write(tmp_path / "t", [0, 1, 2, 3, 1, 5])
    valid_set = write(tmp_path / "v", [10, 3, 11, 1], suffix="tif", first_label=1)

    checked = check_patches(train_set, valid_set, duplicates="drop")

    assert checked.train.files == tuple(train_set.files[i] for i in (0, 2, 5))
    assert checked.train.labels.tolist() == [0, 0, 1]
    assert checked.valid.files == valid_set.files
    assert "3 training patches (1 tumor, 33 %)" in checked.summary
    assert "3 that are also in validation dropped from training" in checked.summary
    assert "repeated" not in checked.summary


def test_one_pixel_apart_is_not_the_same(tmp_path: Path) -> None:
    train_set, valid_set = write(tmp_path / "t", [0, 1]), write(tmp_path / "v", [1, 0])
    for path in valid_set.files:
        pixels = np.array(Image.open(path))
        pixels[95, 95, 2] ^= 1
        Image.fromarray(pixels).save(path)

    assert "no patch in both" in check_patches(train_set, valid_set).summary


def test_dropping_a_whole_class_is_refused(tmp_path: Path) -> None:
    train_set, valid_set = write(tmp_path / "t", [0, 1, 2, 3]), write(tmp_path / "v", [1, 3])

    with pytest.raises(DataError, match=r"all 2 patches are normal \(0\)"):
        check_patches(train_set, valid_set, duplicates="drop")


def test_dropping_everything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected both classes"):
        check_patches(write(tmp_path / "t", [0, 1]), write(tmp_path / "v", [1, 0]), duplicates="drop")


def test_hdf5_rows_are_compared_with_files(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "t", "train", [20, 21, 22, 23])
    write(tmp_path / "v" / "valid", [30, 22])
    data = open_patches([tmp_path / "t", tmp_path / "v"])

    assert "camelyonpatch_level_2_split_train_x.h5[2]: the same pixels as validation's 1.png" in refusal(
        data["train"], data["valid"]
    )


def test_another_way_with_duplicates_is_refused(tmp_path: Path) -> None:
    patches = write(tmp_path, [0, 1])
    with pytest.raises(ValueError, match="duplicates 'keep'; expected 'refuse' or 'drop'"):
        check_patches(patches, patches, duplicates="keep")


# --- what stands twice in training


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ([0, 1, 2, 3], ""),
        ([0, 1, 0, 3], "; 1 repeated within training, none with both labels"),
        ([0, 0, 2, 3], "; 1 repeated within training, 1 with both labels"),
        ([0, 0, 0, 3, 4, 3, 0], "; 4 repeated within training, 1 with both labels"),
        ([7, 7, 8, 8, 9, 1], "; 2 repeated within training, 2 with both labels"),
    ],
    ids=str,
)
def test_repeats_within_training_are_counted(tmp_path: Path, numbers: list[int], told: str) -> None:
    checked = check_patches(write(tmp_path / "t", numbers), write(tmp_path / "v", [100, 101, 102]))

    assert len(checked.train) == len(numbers)
    assert checked.summary.partition("no patch in both")[2] == told


def test_pixels_with_both_labels_and_those_of_the_test_split_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train_set, test_set = write(tmp_path / "t", [0, 1, 2, 3]), write(tmp_path / "u", [2, 9, 10])

    checked = check_patches(train_set, write(tmp_path / "v", [100, 101, 101]), test_set)

    assert checked.summary.endswith("; 1 repeated within validation, 1 with both labels")
    wrong, leaked = (record.getMessage() for record in caplog.records)
    assert wrong.endswith(f"and the other label: 1, first {tmp_path}/v/0/2.png, of {tmp_path}/v/1/1.png")
    assert leaked.startswith("patches of the test split with the pixels of one in training or validation")
    assert leaked.endswith(f": 1, first {tmp_path}/u/0/0.png, of {tmp_path}/t/0/2.png")


# --- slides


@pytest.mark.parametrize(
    ("valid_slides", "told"),
    [
        (["d", "e"], "no slide in both"),
        (["d", "b"], "1 slide in both"),
        (["c", "a"], "2 slides in both"),
        (["d", "c_node_1"], "no slide and 1 patient in both"),
    ],
    ids=str,
)
def test_slides_are_counted_where_they_are_known(
    tmp_path: Path, valid_slides: list[str], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_hdf5(tmp_path, "train", [0, 1, 2, 3], ["a", "b", "c", "a"])
    write_hdf5(tmp_path, "valid", [4, 5], valid_slides)
    data = open_patches(tmp_path)

    summary = check_patches(data["train"], data["valid"]).summary

    assert "4 training patches of 3 slides (2 tumor, 50 %), 2 validation patches of 2 slides" in summary
    assert summary.endswith(told)
    assert ("whose figures then flatter" in caplog.text) is (told != "no slide in both")
    partly = replace(data["train"], slides=np.array(["a", "", "c", ""]))
    summary = check_patches(partly, data["valid"]).summary
    assert "4 training patches of 2 slides and unknown ones (2 tumor, 50 %)" in summary
    assert " known slide" in summary


# --- what cannot be read


def test_all_damaged_files_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    train_set, valid_set = write(tmp_path / "t", range(300)), write(tmp_path / "v", range(300, 304))
    for path in (train_set.files[270], train_set.files[3], valid_set.files[0]):
        damage(path)

    text = refusal(train_set, valid_set)

    assert text.startswith(f"{train_set.files[3]}: does not decode")
    assert text.endswith("(3 such patches in all)")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    train_set, valid_set = write(tmp_path / "t", range(4)), write(tmp_path / "v", range(10, 14))
    valid_set.files[2].unlink()

    assert refusal(train_set, valid_set) == f"{valid_set.files[2]}: no such file; expected an image"


def test_a_damaged_file_comes_before_duplicates(tmp_path: Path) -> None:
    train_set, valid_set = write(tmp_path / "t", range(4)), write(tmp_path / "v", range(4))
    damage(train_set.files[3])

    assert str(train_set.files[3]) in refusal(train_set, valid_set)


def test_damaged_rows_are_counted(tmp_path: Path) -> None:
    write_hdf5(tmp_path, "train", range(6))
    write_hdf5(tmp_path, "valid", range(10, 14))
    path = tmp_path / "camelyonpatch_level_2_split_train_x.h5"
    with h5py.File(path, "w") as file:
        pixels = np.stack([draw(number) for number in range(6)])
        file.create_dataset("x", data=pixels, chunks=(1, 96, 96, 3), compression="gzip")
        starts = [file["x"].id.get_chunk_info(row).byte_offset for row in (2, 4)]
    content = bytearray(path.read_bytes())
    for start in starts:
        content[start : start + 5000] = b"\x55" * 5000
    path.write_bytes(content)
    data = open_patches(tmp_path)

    text = refusal(data["train"], data["valid"])

    assert text.startswith(f"{path}: row 2 cannot be read")
    assert text.endswith("(2 such patches in all)")


def test_a_re_encoded_kaggle_patch_is_named(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    names = [hashlib.sha1(draw(number).tobytes()).hexdigest() for number in range(6)]
    for number, name in enumerate(names):
        Image.fromarray(draw(number)).save(tmp_path / "train" / f"{name}.tif")
    (tmp_path / "train_labels.csv").write_text("id,label\n" + "".join(f"{name},{i % 2}\n" for i, name in enumerate(names)))
    valid_set = write(tmp_path / "v", [10, 11])
    assert "6 training patches" in check_patches(open_patches(tmp_path)["train"], valid_set).summary

    path = tmp_path / "train" / f"{names[1]}.tif"
    Image.fromarray(draw(1)).save(path, compression="jpeg")

    text = refusal(open_patches(tmp_path)["train"], valid_set)
    assert text.startswith(f"{path}: damaged or re-encoded")


@pytest.mark.parametrize("which", [0, 1], ids=["training", "validation"])
def test_a_single_class_is_refused_before_anything_is_read(tmp_path: Path, which: int) -> None:
    files = tuple(tmp_path / f"{number}.png" for number in range(3))
    both = Patches(files, np.full(3, -1), np.array([0, 1, 1], np.uint8))
    one = Patches(files, np.full(3, -1), np.array([1, 1, 1], np.uint8))

    assert "all 3 patches are tumor (1)" in refusal(*((one, both), (both, one))[which])


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12: fork beside torch's threads
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # where fewer cores are to be had
def test_other_processes_find_the_same(tmp_path: Path) -> None:
    write_hdf5(tmp_path, "train", list(range(300)))
    write_hdf5(tmp_path, "valid", [400, 17, 401, 290])
    data = open_patches(tmp_path)

    alone = check_patches(data["train"], data["valid"], duplicates="drop")
    shared = check_patches(data["train"], data["valid"], duplicates="drop", workers=2)

    assert shared.summary == alone.summary
    assert shared.train.rows.tolist() == alone.train.rows.tolist() == [row for row in range(300) if row not in (17, 290)]


# --- before the first step


def test_training_refuses_or_drops_duplicates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reached: list[Patches] = []

    def stop(_out: Path, patches: Patches, _recipe: Recipe) -> None:
        reached.append(patches)
        raise DataError("far enough")

    write(tmp_path / "data" / "train", range(8))
    write(tmp_path / "data" / "valid", [20, 4, 21, 22])
    options: dict[str, Any] = {"recipe": Recipe(batch_size=4), "device": "cpu", "workers": 0, "progress": True}
    options["parts"] = replace(TINY, draw_contact_sheet=stop)  # drawn before the first step

    with pytest.raises(DataError, match=r"train/0/4\.png: the same pixels"):
        train_tiny(tmp_path / "data", tmp_path / "m.safetensors", **options)
    assert reached == []

    with pytest.raises(DataError, match="far enough"):
        train_tiny(tmp_path / "data", tmp_path / "m.safetensors", drop_duplicates=True, **options)
    assert len(reached[0]) == 7
    shown = capsys.readouterr()
    assert "7 training patches (4 tumor, 57 %), 4 validation patches (2 tumor, 50 %); 1 that are also" in shown.err
    assert shown.out == ""


def test_the_command_says_how_to_go_on(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train", range(8))
    write(tmp_path / "data" / "valid", [20, 4])
    words = ["train", str(tmp_path / "data"), "--out", str(tmp_path / "m.safetensors"), "--init", "none", "--workers", "0"]

    result = CliRunner().invoke(main, words)

    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert "--drop-duplicates" in result.stderr.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


# --- real patches


@pytest.mark.shared_data
def test_the_kaggle_folder_beside_the_official_validation_split(shared_data: Path) -> None:
    data = open_patches(shared_data / "pcam" / "kaggle")["train"]
    valid_set = open_patches(shared_data / "pcam" / "patches")["valid"].select(np.arange(0, 2906, 29))

    summary = check_patches(data, valid_set).summary

    assert summary.startswith("111 training patches (")
    assert summary.endswith("no patch in both")
