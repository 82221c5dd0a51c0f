"""`limner import faceclip` from end to end, on small files of the published layout."""

from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path

import pytest
import torch

from limner.cli.main import main
from limner.encoders.faceclip import FaceCLIPConfig, FaceCLIPEncoder, preset
from limner.encoders.tokenizer import build_word_tokenizer

KEYS = Path(__file__).resolve().parents[1] / "data" / "parity" / "faceclip_published_keys.json.gz"


def run(*arguments: str | Path) -> int:
    """The exit status, wherever it comes from."""
    try:
        return main([str(a) for a in arguments])
    except SystemExit as e:
        return int(e.code or 0)


@pytest.fixture(scope="module")
def encoder() -> FaceCLIPEncoder:
    """Mini, but with a face encoder for each branch, as published."""
    torch.manual_seed(0)
    config = dataclasses.replace(preset("mini"), shared_face=False)
    return FaceCLIPEncoder(config, build_word_tokenizer(["chef"], context=40)).to(torch.float16).eval()


@pytest.fixture
def file(encoder: FaceCLIPEncoder, tmp_path: Path) -> Path:
    torch.save({f"model.{k}": v for k, v in encoder.to_published().items()}, tmp_path / "encoder.pt")
    return tmp_path / "encoder.pt"


def test_a_checkpoint_becomes_a_folder_that_loads(encoder, file: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("LIMNER_CLIP_MERGES", str(tmp_path / "absent"))
    out = tmp_path / "new" / "model"
    assert run("import", "faceclip", "--encoder", file, "--out", out, "--json") == 0
    summary = json.loads(capsys.readouterr().out)["encoder"]
    assert summary["keys"] == len(encoder.to_published())
    assert summary["types"] == ["float16"]
    assert summary["tokenizer"] is False
    assert summary["shared_face"] is False
    assert sorted(p.name for p in out.iterdir()) == ["model.safetensors"]
    again = FaceCLIPEncoder.from_pretrained(out, tokenizer=encoder.tokenizer, torch_dtype=torch.float16)
    assert again.config == encoder.config
    published = encoder.to_published()
    assert all(torch.equal(v, published[k]) for k, v in again.to_published().items())


def test_with_merges_the_tokenizer_is_saved_too(file: Path, shared: Path, tmp_path: Path, capsys) -> None:
    wide = FaceCLIPEncoder(FaceCLIPConfig((preset("tiny").branches[0],), ("",)))
    torch.save(wide.state_dict() and wide.to_published(), tmp_path / "tiny.pt")
    merges = shared / "parity" / "clip_bpe_merges.txt.gz"
    assert (
        run("import", "faceclip", "--encoder", tmp_path / "tiny.pt", "--out", tmp_path / "m", "--merges", merges) == 0
    )
    assert "384 keys" in capsys.readouterr().out
    again = FaceCLIPEncoder.from_pretrained(tmp_path / "m")
    assert again.encode(None, ["a chef"]).tokens.shape == (1, 77, 64)


def test_nothing_is_overwritten(file: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "model.safetensors").write_text("mine")
    assert run("import", "faceclip", "--encoder", file, "--out", tmp_path) == 2
    assert "already there" in capsys.readouterr().err
    assert (tmp_path / "model.safetensors").read_text() == "mine"


def test_bad_files_fail_with_a_reason_and_write_nothing(file: Path, tmp_path: Path, capsys) -> None:
    state = torch.load(file, weights_only=True)
    cases = {
        "truncated": file.read_bytes()[:100_000],
        "missing: face_clip_l.proj1.bias": {k: v for k, v in state.items() if "l.proj1.bias" not in k},
        "unexpected: face_clip_g.fuser.extra": {**state, "model.face_clip_g.fuser.extra": torch.ones(1)},
        "wrong shape: face_clip_g.ln_final.bias": {**state, "model.face_clip_g.ln_final.bias": torch.ones(7)},
        "pathlib": {**state, "model.code": tmp_path},
    }
    for words, content in cases.items():
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            torch.save(content, file)
        assert run("import", "faceclip", "--encoder", file, "--out", tmp_path / "out", "--json") == 2
        error = json.loads(capsys.readouterr().err)["error"]
        assert words in error["message"]
        assert error["type"] == ("UnsafeCheckpoint" if words == "pathlib" else "WeightsMismatch")
        assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_unet_is_refused(file: Path, tmp_path: Path, capsys) -> None:
    assert run("import", "faceclip", "--encoder", file, "--unet", file, "--out", tmp_path / "out") == 2
    assert "SDXL UNet" in capsys.readouterr().err


def test_key_lists_are_compared(tmp_path: Path, capsys) -> None:
    keys = json.loads(gzip.decompress(KEYS.read_bytes()))
    listed = tmp_path / "keys.json"
    listed.write_text(json.dumps(keys))
    assert run("import", "faceclip", "--check-keys", listed) == 0
    assert "1686 keys, 1,573,352,072 values" in capsys.readouterr().out
    del keys["face_clip_l.logit_scale"]
    keys["face_clip_g.proj1.weight"] = [1280, 511]
    listed.write_text(json.dumps({f"model.{k}": v for k, v in keys.items()}))
    assert run("import", "faceclip", "--check-keys", listed) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "2 differences" in error
    assert "missing: face_clip_l.logit_scale" in error
    assert "wrong shape: face_clip_g.proj1.weight: expected [1280, 512], got [1280, 511]" in error


def test_out_is_asked_for(capsys) -> None:
    assert run("import", "faceclip") == 2
    assert "--out" in capsys.readouterr().err
