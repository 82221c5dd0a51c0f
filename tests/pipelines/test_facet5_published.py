"""FaceT5-FLUX's published files become a model that paints, or are refused; and without them it is said what lacks."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_model import FLUX_TRANSFORMER, FLUX_VAE, WORDS, noise_face, tiny_flux
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel

from limner.cli.main import main
from limner.encoders.facet5 import FACET5_PRESETS, FaceT5Encoder, from_published
from limner.encoders.tokenizer import t5_tokenizer
from limner.errors import CorruptData
from limner.pipelines import flux
from limner.pipelines.loading import load_model

PROMPT = "a wizard in the snow"


def published(where: Path, merges: Path) -> dict[str, Path]:
    """Files of the published layout at a small size: by their variable's name."""
    config = FACET5_PRESETS["tiny"]
    clip = dataclasses.replace(config.clip, vocabulary=49408, context=77)
    torch.manual_seed(0)
    encoder = FaceT5Encoder(dataclasses.replace(config, clip=clip))
    torch.save({k: v.bfloat16() for k, v in encoder.to_published().items()}, where / "face_t5_encoder.pt")
    pipe = tiny_flux()
    torch.save(pipe.transformer.state_dict(), where / "dit.pt")
    save_file(pipe.vae.state_dict(), where / "vae.safetensors", {"format": "pt"})
    words = {token: i for i, token in enumerate(["<pad>", "</s>", "<unk>", *dict.fromkeys(WORDS.split())])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    (where / "tokenizer").mkdir()
    backend.save(str(where / "tokenizer" / "tokenizer.json"))
    return {
        "encoder": where / "face_t5_encoder.pt", "transformer": where / "dit.pt", "vae": where / "vae.safetensors",
        "tokenizer": where / "tokenizer", "merges": merges,
    }  # fmt: skip


def run(*arguments: str | Path) -> int:
    try:
        return main([str(a) for a in arguments])
    except SystemExit as e:
        return int(e.code or 0)


def test_published_files_become_a_model_that_generate_paints_with(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(flux, "TRANSFORMER", FLUX_TRANSFORMER)
    monkeypatch.setattr(flux, "VAE", FLUX_VAE)
    files = published(tmp_path, shared / "parity" / "clip_bpe_merges.txt.gz")
    out = tmp_path / "model"
    order = [part for name, path in files.items() for part in (f"--{name}", path)]
    assert run("import", "facet5", *order, "--out", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["bytes"]["transformer"] > 0
    assert run("import", "facet5", *order, "--out", out) == 2
    assert "already there" in capsys.readouterr().err
    made = load_model(str(out), device="cpu", dtype="bfloat16")
    assert made.pipe.default_size == (1152, 864)
    assert made.pipe.config.default_guidance == 3.5
    assert type(made.pipe.scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
    given = torch.load(files["encoder"], weights_only=True)
    assert all(torch.equal(v, given[k]) for k, v in made.pipe.encoder.to_published().items())

    made.pipe.enroll(noise_face(0)).save(tmp_path / "me.safetensors")
    generate = ["generate", "--model", out, "--identity", tmp_path / "me.safetensors", "-p", PROMPT, "--steps", "2",
                "--dtype", "bfloat16", "--out", tmp_path / "pictures"]  # fmt: skip
    assert run(*generate, "--size", "32x48", "-n", "2", "--seed", "7", "--json") == 0
    first, second = json.loads(capsys.readouterr().out)["pictures"]
    assert Image.open(first["path"]).size == (32, 48)
    assert first["settings"]["method"] == "facet5"
    assert run("generate", "--from", second["path"], "--model", out, "--out", tmp_path / "again", "--json") == 0
    assert json.loads(capsys.readouterr().out)["pictures"][0]["seed"] == 8
    for wrong in (["--pag", "1"], ["--face-detail", "0.5"], ["--rescue", "auto"], ["--gaze", "0.5,0.4"],
                  ["--scheduler", "ddim"], ["--size", "40x36"], ["--fast", "lcm"],
                  ["--method", "faceclip"]):  # fmt: skip
        assert run(*generate, *wrong, "--json") == 2, wrong
        assert json.loads(capsys.readouterr().err)["error"]["code"] == "config", wrong


def test_files_that_do_not_fit_are_refused_and_nothing_is_written(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(flux, "TRANSFORMER", FLUX_TRANSFORMER)
    monkeypatch.setattr(flux, "VAE", FLUX_VAE)
    files = published(tmp_path, shared / "parity" / "clip_bpe_merges.txt.gz")
    state = torch.load(files["encoder"], weights_only=True)
    cases: dict[str, tuple[str, Any]] = {
        "encoder_2.fuser": ("encoder", {k: v for k, v in state.items() if "encoder_2.fuser.enc_output.w" not in k}),
        "transformer of FLUX.1-dev": ("transformer", {"x": torch.zeros(1)}),
        "keys such as x": ("encoder", {"x": torch.zeros(1)}),
    }
    for said, (part, wrong) in cases.items():
        torch.save(wrong, tmp_path / "wrong.pt")
        given = {**files, part: tmp_path / "wrong.pt"}
        order = [piece for name, path in given.items() for piece in (f"--{name}", path)]
        assert run("import", "facet5", *order, "--out", tmp_path / "model") == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "model").exists()
    tokenizer = tmp_path / "tokenizer" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("<pad>", "<nothing>"))
    with pytest.raises(CorruptData, match="no tokenizer of T5"):
        t5_tokenizer(tmp_path / "tokenizer")


def test_the_clip_within_is_transformers_clip() -> None:
    sizes = FACET5_PRESETS["tiny"].clip
    torch.manual_seed(0)
    theirs = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=sizes.vocabulary, hidden_size=sizes.width, intermediate_size=4 * sizes.width,
            num_hidden_layers=sizes.depth, num_attention_heads=sizes.heads, max_position_embeddings=sizes.context,
            hidden_act="quick_gelu", bos_token_id=0, eos_token_id=sizes.vocabulary - 1, pad_token_id=1,
        )
    ).eval()  # fmt: skip
    state = FaceT5Encoder(FACET5_PRESETS["tiny"]).to_published()
    own = getattr(theirs, "text_model", theirs).state_dict()
    renamed = {f"encoder_1.text_model.{k}": v for k, v in own.items() if "position_ids" not in k}
    assert renamed.keys() == {k for k in state if k.startswith("encoder_1.")}
    stale = {"encoder_1.text_model.embeddings.position_ids": torch.arange(sizes.context)[None]}
    encoder = from_published({**state, **renamed, **stale}, None, None)
    ids = torch.randint(2, sizes.vocabulary - 1, (2, sizes.context))
    ids[0, 9], ids[1, 20] = sizes.vocabulary - 1, sizes.vocabulary - 1
    with torch.no_grad():
        torch.testing.assert_close(encoder.clip(ids).pooled, theirs(ids).pooler_output, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(v, renamed[k]) for k, v in encoder.to_published().items() if k in renamed)


# --- the registry -----------------------------------------------------------------------------------------------------


@pytest.fixture
def empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path))
    for name in ("ACCEPT_LICENSE", "FACET5_ENCODER", "FACET5_TRANSFORMER", "FLUX_VAE", "T5_TOKENIZER", "CLIP_MERGES"):
        monkeypatch.delenv(f"LIMNER_{name}", raising=False)


@pytest.mark.usefixtures("empty_machine")
def test_the_registry_knows_it(capsys: Any) -> None:
    assert run("models", "--json") == 0
    (row,) = (r for r in json.loads(capsys.readouterr().out) if r["name"] == "facet5-flux")
    assert row["base"] == "flux"
    assert row["license"] == "CC-BY-NC-4.0 (base: FLUX.1-dev Non-Commercial License)"
    assert 3.6e10 < row["size"] < 3.7e10
    assert {f["repo"] for f in row["files"]} >= {"ByteDance/FaceCLIP", "black-forest-labs/FLUX.1-dev"}
    assert run("models", "download", "facet5-flux", "--json") == 2
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "license"


@pytest.mark.usefixtures("empty_machine")
def test_offline_the_answer_comes_in_seconds_without_heavy_libraries(tmp_path: Path) -> None:
    code = (
        "import sys; from limner.cli.main import main\n"
        "first = ['generate', '--face', sys.executable, '-p', 'x', '--model', 'facet5-flux', '--accept-license']\n"
        f"second = ['import', 'facet5', '--accept-license', '--out', {str(tmp_path / 'new')!r}]\n"
        "assert [main([*order, '--json']) for order in (first, second)] == [2, 2]\n"
        "print([m for m in ('torch', 'diffusers', 'transformers', 'cv2') if m in sys.modules])"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    seconds = time.perf_counter() - start
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    for text in done.stderr.strip().splitlines():
        error = json.loads(text)["error"]
        assert error["code"] == "weights_unavailable"
        for word in ("face_t5_encoder.pt", "dit.pt", "ByteDance/FaceCLIP", "FLUX.1-dev", "36.5 GB"):
            assert word in error["message"]
        for variable in (
            "LIMNER_FACET5_ENCODER",
            "LIMNER_FACET5_TRANSFORMER",
            "LIMNER_FLUX_VAE",
            "LIMNER_T5_TOKENIZER",
        ):
            assert variable in error["hint"]
    assert seconds < 15  # below 3 on an idle machine; the bound leaves room for a busy one
