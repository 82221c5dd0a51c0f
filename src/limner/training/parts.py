"""The trained and published parts that a training starts from, by folder; or, for counting, their sizes alone.

Inside `sizes_only` no folder has to exist. A part that is not there has the size of
- the training whose `weights` folder it would be, if the recipe of that name lies beside the one at hand or above it;
- the published model that its folder is named after: `clip-l`, `clip-bigg`, `sdxl-vae`, `sdxl-unet`, `face` (FaceCLIP's
  face encoder), `clip-vit-large-patch14`; whole bases `sd21-base`, `sdxl-base`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch

from limner.diffusion.schedule import NoiseSchedule
from limner.encoders import parts
from limner.encoders.config import BIGG, FaceViTConfig, L, TextTowerConfig
from limner.encoders.face_vit import FaceViT
from limner.encoders.faceclip import FaceCLIPEncoder
from limner.encoders.m2id import M2IDEncoder
from limner.encoders.scales import Backbone, ClipVisionConfig, build_backbone, load_backbone
from limner.encoders.text_tower import TextTower
from limner.encoders.tokenizer import PromptTokenizer, build_word_tokenizer
from limner.encoders.word_towers import WordTowers
from limner.errors import ConfigError, WeightsUnavailable

CLIPS: dict[str, TextTowerConfig] = {"clip-l": L.text, "clip-bigg": BIGG.text}
"""Text towers by the folder that their published weights are expected in."""

FACES: dict[str, FaceViTConfig | ClipVisionConfig] = {
    "face": FaceViTConfig(),
    "clip-vit-large-patch14": ClipVisionConfig(),
}
"""Recognisers, likewise."""
UNETS = {"sd21-base": "sd21-base-unet", "sdxl-base": "sdxl-unet"}
"""The UNets of whole bases, likewise, as `limner.pipelines.bases` names them."""

_RECIPES: ContextVar[Path | None] = ContextVar("recipes", default=None)


@contextmanager
def sizes_only(recipes: Path) -> Iterator[None]:
    """Inside, parts have no true values; use the meta device, where they take no memory.

    Args:
        recipes: folder of the recipe at hand.
    """
    token = _RECIPES.set(recipes)
    try:
        yield
    finally:
        _RECIPES.reset(token)


def counting_sizes() -> bool:
    """Whether the caller is inside `sizes_only`."""
    return _RECIPES.get() is not None


def face_of(folder: Path) -> FaceViT:
    """The face encoder in a folder that the recogniser or alignment task wrote, see `encoders.parts.load_face`."""
    if not counting_sizes() or (folder / parts.FACE).is_file() or (folder / parts.FILE).is_file():
        return parts.load_face(folder)
    return FaceViT(FaceViTConfig.from_dict(_settings(folder, "recogniser")["face"])).eval()


def text_of(folder: Path) -> tuple[TextTower, PromptTokenizer]:
    """Text tower and tokenizer in a folder that the clip task wrote; see `limner.encoders.parts.load_text`."""
    if not counting_sizes() or (folder / parts.TEXT).is_file():
        return parts.load_text(folder)
    if folder.name in CLIPS:
        config = CLIPS[folder.name]
        return TextTower(config).eval(), build_word_tokenizer((), context=config.context)
    from limner.training.words import make_tokenizer

    settings = _settings(folder, "clip")
    tokenizer = make_tokenizer(settings["tokenizer"], settings["text"]["context"])
    text = TextTowerConfig.from_dict({**settings["text"], "vocabulary": len(tokenizer)})
    return TextTower(text).eval(), tokenizer


def encoder_of(folder: Path) -> FaceCLIPEncoder:
    """The FaceCLIP encoder in a folder that the alignment task wrote; see `FaceCLIPEncoder.from_pretrained`."""
    from limner.encoders.faceclip import FILE

    if not counting_sizes() or (folder / FILE).is_file():
        return FaceCLIPEncoder.from_pretrained(folder)
    from limner.encoders.config import FuserConfig
    from limner.training.towers import assemble

    if folder.name == "encoder":  # of a trained FaceCLIP pipeline
        return encoder_of(Path(_settings(folder.parent, "diffusion")["encoder"]))
    settings = _settings(folder, "alignment")
    clips = tuple(map(Path, settings["clips"]))
    return assemble(Path(settings["face"]), clips, FuserConfig.from_dict(settings["fuser"])).eval()


def autoencoder_of(folder: Path) -> Any:
    """The autoencoder in a folder: Limner's own or diffusers' AutoencoderKL.

    Raises:
        WeightsUnavailable: none there.
    """
    from diffusers import AutoencoderKL

    from limner.encoders.autoencoder import PatchAutoencoder

    if (folder / "config.json").is_file():
        name = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_class_name")
        kind = PatchAutoencoder if name == PatchAutoencoder.__name__ else AutoencoderKL
        return kind.from_pretrained(folder, local_files_only=True).eval()
    if not counting_sizes():
        raise WeightsUnavailable(f"{folder} holds no autoencoder.", "Train one: recipes/mini-autoencoder.yaml.")
    if folder.name == "sdxl-vae":
        from limner.pipelines.bases import build

        return build("sdxl-vae")
    from limner.training.tasks import task_class

    kind = task_class("autoencoder")
    task: Any = kind(kind.settings_class.from_dict(_settings(folder, "autoencoder")))
    return task.autoencoder.eval()


def unet_of(folder: Path) -> Any:
    """The UNet in a folder in diffusers' form.

    Raises:
        WeightsUnavailable: none there.
    """
    from diffusers import UNet2DConditionModel

    if (folder / "config.json").is_file():
        return UNet2DConditionModel.from_pretrained(folder, local_files_only=True)
    if not counting_sizes():
        raise WeightsUnavailable(f"{folder} holds no UNet.", "Give a folder in diffusers' form.")
    if folder.name == "sdxl-unet":
        from limner.pipelines.bases import build

        return build("sdxl-unet")
    from limner.training.tasks import task_class

    settings = _settings(folder.parent, "diffusion", "naming")
    if "teacher" in settings:
        return unet_of(Path(settings["teacher"]) / folder.name)
    kind = task_class("diffusion")
    task: Any = kind(kind.settings_class.from_dict(settings))
    return task.unet


def backbone_of(folder: Path) -> Backbone:
    """The recogniser in a folder; see `limner.encoders.scales.load_backbone`."""
    if not counting_sizes() or folder.is_dir():
        return load_backbone(folder)
    if folder.name in FACES:
        return build_backbone(FACES[folder.name])
    settings = _settings(folder, "recogniser", "clip")
    if "face" in settings:
        return build_backbone(FaceViTConfig.from_dict(settings["face"]))
    image, width = settings["image"], settings["image"]["width"]
    return build_backbone(
        ClipVisionConfig(
            image_size=settings["data"]["size"],
            patch_size=image["patch_size"],
            width=width,
            depth=image["depth"],
            heads=image["heads"],
            feedforward=4 * width,
            activation="gelu",
            output=settings["text"]["projection"],
        )
    )


def words_of(folder: Path) -> M2IDEncoder:
    """The M² ID encoder in the folder encoder/ of a finished training."""
    if not counting_sizes() or folder.is_dir():
        return M2IDEncoder.from_pretrained(folder)
    from limner.training.dreamidentity import WordsConfig

    settings = _settings(folder.parent, "dreamidentity")
    towers = towers_of(Path(settings["base"]), torch.float32)
    backbone = backbone_of(Path(settings["recogniser"]))
    return WordsConfig.from_dict(settings["encoder"]).build(backbone, towers.widths)


def towers_of(base: Path, dtype: torch.dtype) -> WordTowers:
    """The text towers of a base; see `limner.pipelines.slim.base_towers`."""
    if not counting_sizes() or base.is_dir():
        from limner.pipelines.slim import base_towers

        return base_towers(base, dtype)
    if base.name in UNETS:
        from limner.pipelines.bases import build_towers

        return build_towers(base.name).to(dtype)
    towers, tokenizers = zip(
        *(text_of(Path(clip)) for clip in _settings(base, "diffusion", "naming")["clips"]), strict=True
    )
    return WordTowers(towers, tokenizers).to(dtype).eval()


def base_of(folder: Path) -> tuple[Any, Any, Any]:
    """Autoencoder, UNet and scheduler of a base; see `limner.pipelines.dreamidentity.base_parts`."""
    from limner.pipelines.bases import build
    from limner.pipelines.dreamidentity import base_parts

    if not counting_sizes() or folder.is_dir():
        return base_parts(folder)
    scheduler: Any = NoiseSchedule().scheduler()
    if folder.name in UNETS:
        return build("sdxl-vae"), build(UNETS[folder.name]), scheduler
    settings = _settings(folder, "diffusion", "naming")
    if "teacher" in settings:
        return base_of(Path(settings["teacher"]))
    return autoencoder_of(Path(settings["autoencoder"])), unet_of(folder / "unet"), scheduler


def _settings(weights: Path, *tasks: str) -> dict[str, Any]:
    """The complete settings of the training whose result would lie in `weights` (a folder `…/NAME/weights`)."""
    from limner.training.tasks import load_training

    recipes = _RECIPES.get()
    assert recipes is not None
    name = f"{weights.parent.name}.yaml"
    path = next((p for p in (recipes / name, recipes.parent / name) if p.is_file()), recipes / name)
    if weights.name != "weights" or not path.is_file():
        raise ConfigError(
            f"{weights} is not there, and nothing says how large it would be.",
            f"Its size is known if {path} is the recipe of its training, or for the names "
            f"{', '.join((*CLIPS, *FACES, *UNETS, 'sdxl-vae', 'sdxl-unet'))}.",
        )
    recipe, _ = load_training(path)
    if recipe.task not in tasks:
        wanted = " or ".join(map(repr, tasks))
        raise ConfigError(f"{weights} should come from a training of the task {wanted}; {path} trains {recipe.task!r}.")
    return recipe.settings
