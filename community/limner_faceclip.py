"""FaceCLIP as a custom pipeline of diffusers: a face and a sentence in, a portrait out.

    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(
        "folder-of-a-limner-model", custom_pipeline="community/limner_faceclip.py", trust_remote_code=True
    )
    picture = pipe("a wizard in the snow", "me.jpg").images[0]

Needs `pip install limner`. The folder is one that training, `limner models download` or `save_pretrained` wrote.
diffusers takes the one pipeline class that it finds in this file; it is Limner's own, nothing is repeated here.
"""

from limner.pipelines.faceclip import FaceCLIPPipeline

__all__ = ["FaceCLIPPipeline"]
