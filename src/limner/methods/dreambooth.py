"""DreamBooth with prior preservation, by all of the UNet's weights or by a LoRA of its attention (arXiv 2208.12242)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from limner.encoders.word_towers import Said
from limner.errors import WeightsMismatch
from limner.methods.steering import Steering
from limner.methods.tuned import Tuned
from limner.methods.tuning import Lesson, TuningSettings, class_latents, tune

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""Layers of every attention that get a LoRA."""
ADAPTER = "person"


class DreamBooth(Tuned):
    """The UNet learns that "[V] person" is this person (section 3.2) and, from pictures that it painted itself, that
    other people stay as they were (section 3.3, Equation 2).

    Identity: `words.i` (2, width) for tower i: [V], a word that the base has never read, and "person"; and for every
    weight of the UNet `delta.<name>`, what is added to it.
    """

    name: ClassVar[str] = "dreambooth"
    version: ClassVar[int] = 1
    defaults: ClassVar[TuningSettings] = TuningSettings(steps=300, batch_size=4, lr=1e-4)

    def learn(self, lesson: Lesson, images: Tensor, checkpoint: Path | None) -> dict[str, Tensor]:
        words = self.named()
        prior = self._prior()
        tuned = self.tune_unet(
            lambda denoise: lambda step: lesson.loss(step, words, denoise, *prior), checkpoint
        )  # fmt: skip
        return {**{f"words.{i}": w for i, w in enumerate(words)}, **tuned}

    def tune_unet(self, lesson: Any, checkpoint: Path | None) -> dict[str, Tensor]:
        """The tensors that say what became of the UNet; `lesson` makes a loss of a denoiser."""
        unet = self.studio.unet
        before = {name: p.detach().float() for name, p in unet.named_parameters()}
        own = {name: p.clone().requires_grad_() for name, p in before.items()}

        def denoise(*given: Any, **named: Any) -> Any:
            return torch.func.functional_call(unet, own, given, named)

        tune(own, lesson(denoise), self.settings, self.studio.report, checkpoint)
        return {f"delta.{name}": value.detach() - before[name] for name, value in own.items()}

    def steer(self, person: Mapping[str, Tensor] | None, strength: float) -> Steering:
        if person is None:
            return Steering()
        return Steering(change={k: strength * v.float() for k, v in self.changes(person).items()})

    def changes(self, person: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is added to the UNet's weights for a person at full strength."""
        return {k.removeprefix("delta."): v for k, v in person.items() if k.startswith("delta.")}

    def named(self) -> list[Tensor]:
        """(2, width) for each tower: [V] and "person". [V] is drawn like the other words of the tower, and is the same
        for everybody."""
        found = []
        for table, person in zip(self.encoder.towers.embeddings, self.neutral(1), strict=True):
            weight = table.weight.detach().float()
            draw = torch.randn(1, weight.shape[1], generator=torch.Generator().manual_seed(self.settings.seed))
            found.append(torch.cat([weight.mean(0) + draw.to(weight) * weight.std(0), person]))
        return found

    def _prior(self) -> tuple[Tensor, Said] | tuple[()]:
        if self.settings.prior_weight == 0:
            return ()
        latents = class_latents(self.studio, self.settings, self.probe())
        return latents, self.encoder.say([self.settings.class_prompt], None)


class DreamBoothLora(DreamBooth):
    """DreamBooth whose UNet learns low-rank matrices beside its attention layers (LoRA, arXiv 2106.09685, Equation 3).

    Identity: `words.i` as DreamBooth's, and `unet.<layer>.lora_A.weight` (rank, in), `.lora_B.weight` (out, rank) as
    diffusers names them: `load_lora_weights` of any diffusers pipeline reads them.
    """

    name: ClassVar[str] = "dreambooth-lora"
    version: ClassVar[int] = 1
    defaults: ClassVar[TuningSettings] = TuningSettings(steps=400, batch_size=4, lr=1e-3, rank=8)

    def tune_unet(self, lesson: Any, checkpoint: Path | None) -> dict[str, Tensor]:
        from peft import LoraConfig
        from peft.utils import get_peft_model_state_dict

        unet, rank = self.studio.unet, self.settings.rank
        with torch.random.fork_rng():
            torch.manual_seed(self.settings.seed)
            unet.add_adapter(
                LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(TARGETS)), ADAPTER
            )
        try:
            own = {name: p for name, p in unet.named_parameters() if ".lora_" in name}
            for p in own.values():
                p.data = p.data.float()
            tune(own, lesson(unet), self.settings, self.studio.report, checkpoint)
            state = get_peft_model_state_dict(unet, adapter_name=ADAPTER)
            return {f"unet.{k}": v.detach().clone() for k, v in state.items()}
        finally:
            unet.unload_lora()

    def changes(self, person: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """B·A for every layer."""
        found = {}
        for name, down in person.items():
            if not name.endswith(".lora_A.weight"):
                continue
            layer = name.removeprefix("unet.").removesuffix(".lora_A.weight")
            up = person.get(f"unet.{layer}.lora_B.weight")
            if up is None:
                raise WeightsMismatch(f"The identity lacks unet.{layer}.lora_B.weight.", "Enrol the face again.")
            found[f"{layer}.weight"] = up.float() @ down.float()
        return found
