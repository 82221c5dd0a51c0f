"""Multi-modal alignment: FaceCLIP's fused tokens are made to say who the face is, what the text says, and both together
what the picture shows (arXiv 2504.14202, section 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from limner.config import Config
from limner.data.cache import Table
from limner.data.loader import Batch, Source
from limner.data.partners import Partners
from limner.data.tables import DataConfig, demand, open_pictures, picture_table
from limner.encoders.config import FuserConfig
from limner.encoders.face_vit import FaceTokens
from limner.encoders.faceclip import FaceCLIPEncoder
from limner.encoders.fuser import DualCrossAttention, Fuser
from limner.training.contrast import pairwise_sigmoid
from limner.training.dice import Dice
from limner.training.distributed import gather_labels, gather_rows
from limner.training.metrics import recall, verification
from limner.training.task import Losses, Report, Task
from limner.training.towers import assemble, both_ids, branches_of, clip_features, face_features

LARGEST_SCALE = math.log(100)


@dataclass(frozen=True)
class AlignmentSettings(Config):
    """Settings of the task.

    Attributes:
        data, held_out: pictures with captions, landmarks and persons; the reference face of a picture is another
            picture of the same person.
        face: folder of the trained face encoder.
        clips: folders of the trained CLIPs, one per branch.
        fuser: sizes of the fusion module.
        face_weight, text_weight, image_weight: of the three losses; 0 leaves one out.
        prompts: share of rows that read the sentence with S* instead of the caption.
        validation: held-out triples of different persons among which retrieval is measured.
    """

    data: DataConfig
    held_out: DataConfig
    face: str
    clips: tuple[str, ...]
    fuser: FuserConfig = field(default_factory=FuserConfig)
    face_weight: float = 1.0
    text_weight: float = 1.0
    image_weight: float = 1.0
    prompts: float = 0.5
    validation: int = 256

    def validate(self) -> None:
        self.check(1 <= len(self.clips) <= 2, "clips", "one or two folders")
        for name in ("face_weight", "text_weight", "image_weight"):
            self.check(getattr(self, name) >= 0, name, "0 or more")
        self.check(self.face_weight + self.text_weight + self.image_weight > 0, "face_weight", "not all three 0")
        self.check(0 <= self.prompts <= 1, "prompts", "0 to 1")
        self.check(self.validation >= 2, "validation", "2 or more")


class Joint(NamedTuple):
    """What one branch's heads say of B pairs of face and text, of unit length, with scale and bias of comparison."""

    face: torch.Tensor
    text: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor


class AlignmentTask(Task[AlignmentSettings]):
    """See `AlignmentSettings`.

    Metrics, averaged over the branches: recall of the joint feature's own picture, text and face among held-out
    triples; of the text feature's own picture, for comparison; verification by the joint face feature. The sentences
    are the captions, which tell what the person looks like; where a metric begins with `prompt`, the sentences with S*,
    which do not.
    """

    name = "alignment"
    settings_class: ClassVar = AlignmentSettings
    contrasts_rows: ClassVar = True

    def __init__(self, settings: AlignmentSettings) -> None:
        super().__init__(settings)
        self.encoder = assemble(Path(settings.face), tuple(map(Path, settings.clips)), settings.fuser)
        self.model = Alignment(self.encoder)

    def prepare(self, report: Report) -> None:
        settings = self.settings
        self.sources = []
        for config in (settings.data, settings.held_out):
            table = picture_table(open_pictures(config), config.size, config.size, report, config.workers)
            demand(table, captions=True, landmarks=True, persons=True)
            faces = face_features(self.encoder.faces[0], table, self.device, report)
            clips = [clip_features(Path(c), table, self.device, report) for c in settings.clips]
            self.sources.append(_Triples(self.encoder, table, faces, clips))

    def source(self) -> Source:
        return self.sources[0]

    def example(self, rows: int) -> Batch:
        face, ids = self.encoder.faces[0].config, torch.zeros(rows, self.encoder.config.context, dtype=torch.long)
        batch = {"caption_ids": ids, "prompt_ids": ids, "person": torch.arange(rows)}
        batch["class_token"] = torch.ones(rows, face.output)
        batch["patch_tokens"] = torch.ones(rows, face.grid**2, face.width, dtype=torch.float16)
        for i, branch in enumerate(branches_of(self.encoder)):
            feature = torch.ones(rows, branch.config.text.projection)
            batch |= {f"{k}_{i}": feature for k in ("image", "caption", "prompt")}
        return batch

    def tokens(self) -> int:
        """Words and patches of the face, in every branch."""
        configs = [b.config for b in branches_of(self.encoder)]
        return sum(c.text.context + c.face.grid**2 for c in configs)

    def loss(self, model: nn.Module, batch: Batch, dice: Dice) -> Losses:
        prompt = dice.uniform() < self.settings.prompts
        ids = torch.where(prompt[:, None], batch["prompt_ids"], batch["caption_ids"])
        persons = gather_labels(batch["person"])
        same = persons[:, None] == persons[None]
        total = torch.zeros((), device=ids.device)
        parts = {name: total.clone() for name in ("face", "text", "image")}
        for i, joint in enumerate(model(ids, batch["class_token"], batch["patch_tokens"])):
            said = torch.where(prompt[:, None], batch[f"prompt_{i}"], batch[f"caption_{i}"])
            face, text = gather_rows(joint.face), gather_rows(joint.text)
            pairs = {
                "face": (face, batch["class_token"], same),
                "text": (text, said, None),
                "image": (text, batch[f"image_{i}"], None),
            }
            for name, (ours, theirs, match) in pairs.items():
                value = pairwise_sigmoid(ours, gather_labels(theirs), joint.scale, joint.bias, match)
                total = total + getattr(self.settings, f"{name}_weight") * value
                parts[name] = parts[name] + value.detach()
        return Losses(total, {**parts, "scale": joint.scale.detach().exp()})

    def validate(self) -> dict[str, float]:
        source = self.sources[1]
        rows = source.different_persons(self.settings.validation)
        found: dict[str, list[float]] = {}
        for i in range(len(self.encoder.branches)):
            for kind in ("prompt", "caption"):
                joint, batch = self._joint(source, rows, i, kind, step=0)
                for key, value in self._retrieval(joint, batch, i, kind).items():
                    found.setdefault(key if kind == "caption" else f"{kind}_{key}", []).append(value)
            again, _ = self._joint(source, rows, i, "caption", step=1)
            features = np.concatenate([joint.face.numpy(), again.face.numpy()])
            same = verification(features, np.tile(batch["person"].numpy(), 2))
            found.setdefault("verification_accuracy", []).append(same["accuracy"])
        return {**{k: float(np.mean(v)) for k, v in found.items()}, "n": len(rows)}

    def export(self, folder: Path) -> None:
        """The encoder, in its own form; the heads served only the training."""
        self.encoder.save_pretrained(folder)

    def _retrieval(self, joint: Joint, batch: Batch, branch: int, kind: str) -> dict[str, float]:
        image, text = batch[f"image_{branch}"].numpy(), batch[f"{kind}_{branch}"].numpy()
        comparisons = {
            "joint_to_image": joint.text.numpy() @ image.T,
            "joint_to_text": joint.text.numpy() @ text.T,
            "joint_to_face": joint.face.numpy() @ batch["class_token"].numpy().T,
            "text_to_image": text @ image.T,
        }
        return {f"{name}_{k}": v for name, s in comparisons.items() for k, v in recall(s).items()}

    def _joint(self, source: _Triples, rows: np.ndarray, branch: int, kind: str, step: int) -> tuple[Joint, Batch]:
        batch = source.batch(rows, step)
        parts = []
        for place in np.array_split(np.arange(len(rows)), max(1, len(rows) // 64)):
            some = [batch[k][place].to(self.device) for k in (f"{kind}_ids", "class_token", "patch_tokens")]
            parts.append(self.model(*some)[branch])
        face, text = (torch.cat([getattr(p, k).float().cpu() for p in parts]) for k in ("face", "text"))
        return Joint(face, text, parts[0].scale, parts[0].bias), batch


class Alignment(nn.Module):
    """The encoder with its towers frozen, and two heads per branch that only this training needs."""

    def __init__(self, encoder: FaceCLIPEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        context = encoder.config.context
        faces, texts = nn.ModuleList(), nn.ModuleList()
        for branch in branches_of(encoder):
            branch.freeze_towers()
            _freeze_unread(branch.fuser)
            text = branch.config.text
            faces.append(nn.Linear(context * text.width, branch.config.face.output))
            texts.append(nn.Linear(context * text.width, text.projection))
        self.face_projection, self.text_projection = faces, texts

    def forward(self, ids: torch.Tensor, class_token: torch.Tensor, patch_tokens: torch.Tensor) -> list[Joint]:
        """Prefixed token ids (B,T) and face features → one `Joint` per branch."""
        faces = FaceTokens(class_token, patch_tokens.to(class_token.dtype))
        amount = torch.ones(len(ids), device=ids.device)
        found = []
        for branch, face, text in zip(
            branches_of(self.encoder), self.face_projection, self.text_projection, strict=True
        ):
            tokens = branch(ids, faces, amount, self.encoder.identity_position).tokens.flatten(1)
            scale = branch.logit_scale.clamp(max=LARGEST_SCALE)
            found.append(
                Joint(F.normalize(face(tokens), dim=-1), F.normalize(text(tokens), dim=-1), scale, branch.logit_bias)
            )
        return found


def _freeze_unread(fuser: Fuser) -> None:
    """Freezes what would update the face stream after the last exchange: nobody reads it, so it gets no gradient."""
    fuser.encoder.layers[-1].requires_grad_(False)
    last = cast(DualCrossAttention, fuser.encoder.fusion_layers[-1])
    last.gamma_v.requires_grad_(False)
    for name in ("values_l_proj", "out_v_proj"):
        last.attn[name].requires_grad_(False)


class _Triples(Source):
    """Rows of (reference face, sentence, picture) of one person, as frozen features."""

    def __init__(self, encoder: FaceCLIPEncoder, pictures: Table, faces: Table, clips: list[Table]) -> None:
        self.pictures, self.faces, self.clips = pictures, faces, clips
        self.ids = {k: both_ids(encoder, pictures, k)[1] for k in ("caption", "prompt")}
        self.partners = Partners(pictures["identity"], pictures["reference"])

    def __len__(self) -> int:
        return len(self.pictures)

    def batch(self, rows: np.ndarray, step: int) -> Batch:
        reference = self.partners.of(rows, step)
        found: dict[str, Any] = {f"{k}_ids": ids[rows] for k, ids in self.ids.items()}
        found |= {k: self.faces[k][reference] for k in ("class_token", "patch_tokens")}
        found["person"] = self.pictures["identity"][rows]
        for i, clip in enumerate(self.clips):
            found |= {f"{k}_{i}": clip[k][rows] for k in ("image", "caption", "prompt")}
        return {k: torch.from_numpy(v) for k, v in found.items()}

    def different_persons(self, count: int) -> np.ndarray:
        """One row of each person, `count` of them at most."""
        _, first = np.unique(self.pictures["identity"], return_index=True)
        return first[:count]
