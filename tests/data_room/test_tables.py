"""Pictures from folders, shards and the world; caches that survive being killed."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from limner.data.buckets import bucket_of
from limner.data.cache import Column, Table
from limner.data.crops import align_faces
from limner.data.pictures import FolderPictures, Pictures, ShardPictures, fit
from limner.data.tables import DataConfig, captions_of, demand, open_pictures, picture_table
from limner.errors import ConfigError, CorruptData, StorageError, UnreadableImage
from limner.faces.align import similarity, template
from limner.training.progress import silent

FACTS = {"text": "a person", "identity": "ann", "landmarks": [[4, 5], [8, 5], [6, 7], [4, 9], [8, 9]]}


def png(width: int = 16, height: int = 12, value: int = 90) -> bytes:
    image = np.full((height, width, 3), value, np.uint8)
    image[:, : width // 2, 0] = 200
    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    rows = []
    for i in range(4):
        (tmp_path / "in" / f"{i}.png").write_bytes(png(value=20 * i))
        rows.append({**FACTS, "file_name": f"{i}.png", "identity": i // 2, "prompt": f"S* {i}"})
    (tmp_path / "in" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "in"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    (tmp_path / "shards").mkdir()
    for s in range(2):
        with tarfile.open(tmp_path / "shards" / f"{s}.tar", "w") as tar:
            for i in (2 * s, 2 * s + 1):
                facts = {**FACTS, "identity": i // 2, "prompt": f"S* {i}"}
                files = {"png": png(value=20 * i), "mask.png": png(), "json": json.dumps(facts).encode()}
                for suffix, data in files.items():
                    info = tarfile.TarInfo(f"part.{s}/{i:03d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return tmp_path / "shards"


def test_folders_and_shards_say_the_same(folder: Path, shards: Path) -> None:
    a, b = FolderPictures(folder), ShardPictures(shards)
    assert len(a) == len(b) == 4
    assert a.persons == b.persons == 2
    assert np.array_equal(a.sizes, b.sizes)
    for i in (3, 0, 2):
        x, y = a.sample(i), b.sample(i)
        assert np.array_equal(x.image, y.image)
        assert (x.caption, x.prompt, x.identity) == (y.caption, y.prompt, y.identity) == ("a person", f"S* {i}", i // 2)
        assert np.array_equal(x.landmarks, y.landmarks)


def test_pictures_are_upright_and_on_white(tmp_path: Path) -> None:
    """In folders and in shards, whose suffixes may be capitals."""
    exif, data = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6  # turned by a quarter
    picture = Image.new("RGBA", (16, 12), (200, 0, 0, 255))
    picture.paste((0, 0, 200, 0), (0, 0, 8, 12))
    picture.save(data, "PNG", exif=exif)
    (tmp_path / "a.PNG").write_bytes(data.getvalue())
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        tar.add(tmp_path / "a.PNG", "a.PNG")
    for pictures in (FolderPictures(tmp_path), ShardPictures(tmp_path)):
        assert pictures.sizes.tolist() == [[16, 12]]
        image = pictures.sample(0).image
        assert image.shape == (16, 12, 3)
        assert image[0, 0].tolist() == [255, 255, 255]
        assert image[15, 0].tolist() == [200, 0, 0]


def test_sub_folders_are_persons_without_metadata(tmp_path: Path) -> None:
    for person in ("ann", "bob"):
        (tmp_path / person).mkdir()
        (tmp_path / person / "a.png").write_bytes(png())
    pictures = FolderPictures(tmp_path)
    assert [pictures.sample(i).identity for i in (0, 1)] == [0, 1]
    assert np.isnan(pictures.sample(0).landmarks).all()


def test_bad_folders_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no folder"):
        FolderPictures(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no pictures"):
        FolderPictures(tmp_path / "empty")
    with pytest.raises(ConfigError, match="holds no shards"):
        ShardPictures(tmp_path / "empty")
    with tarfile.open(tmp_path / "empty" / "0.tar", "w") as tar:
        tar.add(folder / "0.png", "a.mask.png")
    with pytest.raises(ConfigError, match="hold no pictures"):
        ShardPictures(tmp_path / "empty")
    (folder / "2.png").write_bytes(png()[:60])
    with pytest.raises(UnreadableImage, match=r"2\.png"):
        FolderPictures(folder).sample(2)
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    (folder / "metadata.jsonl").write_text("\n".join([lines[0], '{"text": 1}']))
    with pytest.raises(CorruptData, match="line 2"):
        FolderPictures(folder)
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "landmarks": [[1, 2]]}))
    with pytest.raises(CorruptData, match="five"):
        FolderPictures(folder)


def test_a_damaged_shard_is_named(shards: Path) -> None:
    path = shards / "1.tar"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(CorruptData, match=r"1\.tar"):
        ShardPictures(shards)


def test_tables_hold_pictures_captions_and_moved_landmarks(folder: Path, cache: Path) -> None:
    table = picture_table(FolderPictures(folder), 8, 8, silent)
    assert table["image"].shape == (4, 8, 8, 3)
    assert captions_of(table) == ["a person"] * 4
    assert captions_of(table, "prompt") == [f"S* {i}" for i in range(4)]
    # 16×12 becomes 11×8, of which one column on the left goes
    assert np.allclose(table["landmarks"][0, 0], [4 * 8 / 12 - 1, 5 * 8 / 12])
    assert table["time"][0].tolist() == [12, 16, 0, 1, 8, 8]
    again = picture_table(FolderPictures(folder), 8, 8, silent)
    assert again.folder == table.folder
    (folder / "0.png").write_bytes(png(value=9))
    assert picture_table(FolderPictures(folder), 8, 8, silent).folder != table.folder


def test_needs_are_checked(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    table = picture_table(FolderPictures(tmp_path), 8, 8, silent)
    for need, word in (("captions", "caption"), ("landmarks", "five landmarks"), ("persons", "several")):
        with pytest.raises(ConfigError, match=word):
            demand(table, **{need: True})


def test_fit_keeps_the_middle() -> None:
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, 10:20] = 255
    cut, corner, scale = fit(image, 10, 10)
    assert (cut == 255).all()
    assert (corner, scale) == ((0, 10), 1.0)
    same, corner, scale = fit(image, 10, 30)
    assert same is image


def test_pictures_go_to_the_size_nearest_in_shape() -> None:
    shapes = np.array([[100, 100], [300, 200], [200, 310], [110, 100]])
    assert bucket_of(shapes, ((64, 64), (96, 64), (64, 96))).tolist() == [0, 1, 2, 0]


def test_crops_are_those_of_the_face_room() -> None:
    import cv2

    y, x = np.mgrid[:64, :64]
    image = np.stack([np.sin(x / 5), np.cos(y / 7), np.sin((x + y) / 9)], -1).astype(np.float32) / 2 + 0.5
    landmarks = np.array([[24, 27], [41, 25], [33, 35], [27, 45], [40, 44]], np.float64)
    ours = align_faces(torch.from_numpy(image).permute(2, 0, 1)[None], torch.from_numpy(landmarks)[None].float(), 112)
    matrix = similarity(landmarks, template(112))
    matrix[:, 2] += matrix[:, :2].sum(1) * 0.5 - 0.5  # OpenCV counts from pixel centres
    theirs = cv2.warpAffine(image, matrix, (112, 112), flags=cv2.INTER_LINEAR)
    inside = slice(20, 92)
    assert np.abs(ours[0].permute(1, 2, 0).numpy() - theirs)[inside, inside].max() < 0.02
    moved = align_faces(
        torch.from_numpy(image).permute(2, 0, 1)[None],
        torch.from_numpy(landmarks)[None].float(),
        112,
        torch.tensor([[10 / 112, 0.0, 0.0, 0.0]]),
    )
    assert torch.allclose(moved[..., 30:], ours[..., 20:-10], atol=1e-4)


def test_world_pictures_know_who_they_show() -> None:
    sets = [
        {"split": "train", "identities": 2, "views": 2, "size": 64},
        {"split": "named", "identities": 1, "views": 1},
    ]
    with pytest.raises(ConfigError, match="data sets of size 64"):
        DataConfig.from_dict({"sitters": sets, "size": 64})
    sets[1]["size"] = 64
    pictures: Pictures = open_pictures(DataConfig.from_dict({"sitters": sets, "size": 64}))
    assert pictures.persons == 3
    assert [pictures.sample(i).identity for i in range(5)] == [0, 0, 1, 1, 2]
    sample = pictures.sample(4)
    assert sample.image.shape == (64, 64, 3)
    assert "S*" in sample.prompt
    assert "S*" not in sample.caption


SLOW = """
import sys, time
from pathlib import Path
import numpy as np
from limner.data.cache import Column, Table
table = Table(Path(sys.argv[1]), "slow", {}, 40, {"x": Column("i4")}, block=2)
def compute(block):
    time.sleep(0.05)
    return {"x": np.array(block) * 3}
table.fill(compute, lambda n: None)
"""


def test_a_killed_filling_goes_on(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", SLOW, str(tmp_path)])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        done = [path for path in tmp_path.glob("slow-*/done.npy") if path.parent.suffix != ".part"]  # it may be renamed
        if done and 2 <= np.load(done[0], mmap_mode="r").sum() < 18:
            break
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    table = Table(tmp_path, "slow", {}, 40, {"x": Column("i4")}, block=2)
    left = table.missing()
    assert 0 < len(left) < 19
    calls = []
    table.fill(lambda b: calls.append(b) or {"x": np.array(b) * 3}, lambda n: None)
    assert calls == left
    assert table["x"].tolist() == [3 * i for i in range(40)]
    assert table.complete


def test_a_cache_that_does_not_fit_is_refused_whole(tmp_path: Path) -> None:
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
    try:
        with pytest.raises(StorageError, match=r"0\.00 GB"):
            Table(tmp_path, "big", {}, 1000, {"x": Column("f4", (1000,))})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_cache_is_named(tmp_path: Path) -> None:
    table = Table(tmp_path, "t", {}, 4, {"x": Column("i4")})
    (table.folder / "x.npy").write_bytes(b"no array")
    with pytest.raises(CorruptData, match="cache"):
        Table(tmp_path, "t", {}, 4, {"x": Column("i4")})
