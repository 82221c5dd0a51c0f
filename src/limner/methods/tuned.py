"""What the methods that learn a person by tuning share: what they need, and how a base is recognised."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from limner.encoders.pseudo_words import PLACEHOLDER, demand_named
from limner.encoders.rivals import RivalEncoder
from limner.methods.base import demand_faces, face_images
from limner.methods.rival import Rival, probe_unet
from limner.methods.tuning import Lesson, Studio, TuningSettings, checkpoint_path, demand_plain, shoot
from limner.types import Face, Identity


class Tuned(Rival):
    """A method that does its work in `enroll`: minutes at full size, and the base stays as it was.

    Args:
        encoder, zero_empty, model: see `Rival`.
        studio: UNet, autoencoder and what else tuning needs.
        settings: None takes the method's own.
        unet: paints what was learnt; None is the studio's. Another one reads the same tokens and was distilled from it.
    """

    defaults: ClassVar[TuningSettings] = TuningSettings()

    def __init__(
        self,
        encoder: RivalEncoder,
        studio: Studio,
        settings: TuningSettings | None = None,
        *,
        unet: Any = None,
        zero_empty: bool = False,
        model: str = "",
    ) -> None:
        super().__init__(encoder, zero_empty=zero_empty, model=model)
        self.studio, self.settings = studio, settings or self.defaults
        self.unet = studio.unet if unet is None else unet

    def enroll(self, faces: Sequence[Face]) -> Identity:
        """Learns the person; shows progress. The same faces and settings always give the same identity on the same
        machine, and a learning that was killed goes on.

        Raises:
            FaceError: no face given.
            ConfigError: the model's weights cannot be tuned as they were loaded.
            TrainingDiverged: the loss is no longer a finite number.
        """
        images = face_images(demand_faces(faces))
        demand_plain(self.studio.unet)
        for part in (self.studio.unet, self.studio.vae):
            part.requires_grad_(False)
        shots = shoot(self.studio, images, self.settings)
        lesson = Lesson(self.studio, self.encoder.towers, shots, self.settings)
        cache = self.studio.cache and self.studio.cache / "tuning"
        learner = [] if self.studio.unet is self.unet else [probe_unet(self.studio.unet, self.encoder.towers)]
        checkpoint = checkpoint_path(cache, self.name, self.version, self.settings, self.probe(), *learner, images)
        tensors = self.learn(lesson, images, checkpoint)
        return self.made(tensors, faces, tuning=self.settings.to_dict())

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """See `Method.check_prompts`."""
        for prompt in prompts:
            demand_named(prompt, [PLACEHOLDER])

    @abstractmethod
    def learn(self, lesson: Lesson, images: Tensor, checkpoint: Path | None) -> dict[str, Tensor]:
        """What is kept of the person in aligned faces (R, 3, 448, 448)."""

    def probe(self) -> Tensor:
        return probe_unet(self.unet, self.encoder.towers)

    def neutral(self, count: int) -> list[Tensor]:
        """(count, width) float32 for each tower: "person", `count` times."""
        return [w.float().clone() for w in self.encoder.towers.neutral_words(count)]
