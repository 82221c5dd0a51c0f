"""FaceCLIP on an SDXL-shaped base: the published FaceCLIP-SDXL and FaceCLIP-mini are two sizes of this one class.

Source: "Learning Joint ID-Textual Representation for ID-Preserving Image Synthesis" (arXiv 2504.14202). Identity and
text are one conditioning: the FaceCLIP encoder takes the place of SDXL's text encoders, and nothing is bolted on to the
UNet, which was fine-tuned whole under that conditioning.
"""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from limner.diffusion.lora import FaceDetailer
from limner.encoders.autoencoder import PatchAutoencoder
from limner.encoders.face_vit import FaceViT
from limner.encoders.faceclip import FaceCLIPEncoder
from limner.faces import FaceEmbedder
from limner.methods.faceclip import FaceCLIP
from limner.pipelines.portrait import PortraitPipeline
from limner.pipelines.recogniser import OwnRecogniser


class FaceCLIPPipeline(PortraitPipeline):
    """Face + prompt → portrait, by FaceCLIP.

    Args:
        vae: the autoencoder: SDXL's, or the mini base's.
        unet: denoiser with text_time conditioning, fine-tuned under FaceCLIP.
        scheduler: any of diffusers' schedulers.
        encoder: turns faces and prompts into what the UNet attends to; brings its own tokenizer.
        default_steps, default_guidance, default_pag, default_face_guidance: what the model is recommended to be sampled
            with.
        same_person: cosine of the face encoder's class tokens from which two pictures are taken to show one person;
            None where that was not measured: no reference is then left out.
        world: `sitters` if the model only knows Limner's synthetic people; empty otherwise.
        controlnet: steers the eyes to a place (`limner.pipelines.gaze`); None where nobody asks for one.
        detailer: what the UNet knows besides of heads that fill the picture; its faces are then painted once more so
            (`limner.pipelines.face_detail`).
    """

    encoder: FaceCLIPEncoder
    model_cpu_offload_seq: Any = "encoder->unet->vae"
    _offloaded_whole = ("encoder",)
    _optional_components = ["controlnet", "detailer"]  # noqa: RUF012 (diffusers' way)

    def __init__(
        self,
        vae: AutoencoderKL | PatchAutoencoder,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        encoder: FaceCLIPEncoder,
        default_steps: int = 50,
        default_guidance: float = 5.0,
        default_pag: float = 0.0,
        default_face_guidance: float = 0.0,
        same_person: float | None = None,
        world: str = "",
        controlnet: ControlNetModel | None = None,
        detailer: FaceDetailer | None = None,
    ) -> None:
        super().__init__(
            components={
                "vae": vae, "unet": unet, "scheduler": scheduler, "encoder": encoder, "controlnet": controlnet,
                "detailer": detailer,
            },
            facts={
                "default_steps": default_steps, "default_guidance": default_guidance,
                "default_pag": default_pag, "default_face_guidance": default_face_guidance,
                "same_person": same_person, "world": world,
            },
        )  # fmt: skip

    @property
    def tokenizer(self) -> Any:
        """Of the prompts; it belongs to the encoder."""
        return self.encoder.tokenizer

    @property
    def method(self) -> FaceCLIP:
        """FaceCLIP over this pipeline's encoder."""
        return FaceCLIP(self.encoder)

    @property
    def face_network(self) -> FaceViT:
        """The first of the encoder's face ViTs."""
        return self.encoder.faces[0]

    @property
    def embedder(self) -> FaceEmbedder:
        """The encoder's face ViT as a recogniser."""
        return OwnRecogniser(self.method, self.encoder.config.branches[0].face.output, self.config.same_person)
