"""IP-Adapters of diffusers in a UNet: made new, put in, read out again, taken out for saving (arXiv 2308.06721).

Picture tokens have keys and values of their own in every cross-attention (section 3.2.2). All modules are
diffusers' own. Adapters are named as the published files name them (`image_proj.…`, `ip_adapter.…`), so that
`load_ip_adapter` of any diffusers pipeline reads what Limner writes, and Limner reads what others have published.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from limner.errors import ConfigError, WeightsMismatch

KINDS = ("identity", "patches")
"""Projections: of one identity vector to several tokens (IP-Adapter-FaceID), of a sequence of patches to as many."""

_TO_PUBLISHED = {
    "identity": {"ff.net.0.proj": "proj.0", "ff.net.2": "proj.2", "norm": "norm"},
    "patches": {"ff.net.0.proj": "proj.0", "ff.net.2": "proj.2", "norm": "proj.3"},
}


def new_adapter(unet: Any, kind: str, width: int, tokens: int = 4) -> dict[str, Tensor]:
    """An untrained adapter: a projection, and keys and values that begin as those of the text.

    Args:
        unet: the base; its cross-attentions decide the shapes.
        kind: one of `KINDS`.
        width: channels of what is projected.
        tokens: that an identity vector becomes; patches keep their number.

    Raises:
        ConfigError: another kind, or a UNet without cross-attention.
    """
    from diffusers.models.embeddings import IPAdapterFaceIDImageProjection, IPAdapterFullImageProjection

    if kind not in KINDS:
        raise ConfigError(f"The adapter's kind is {kind!r}; allowed: {', '.join(KINDS)}.")
    reads = unet.config.cross_attention_dim
    projection: nn.Module
    if kind == "identity":
        projection = IPAdapterFaceIDImageProjection(width, reads, mult=2, num_tokens=tokens)
    else:
        projection = IPAdapterFullImageProjection(width, reads)
    made = {f"image_proj.{_published(kind, k)}": v for k, v in projection.state_dict().items()}
    for number, layer in enumerate(_cross_attentions(unet)):
        made |= {f"ip_adapter.{2 * number + 1}.to_{x}_ip.weight": getattr(layer, f"to_{x}").weight for x in "kv"}
    if not any(k.startswith("ip_adapter") for k in made):
        raise ConfigError("The UNet has no cross-attention for an adapter to stand beside.")
    return {k: v.detach().float().clone() for k, v in made.items()}


def install(unet: Any, adapter: Mapping[str, Tensor]) -> None:
    """Puts an adapter into a UNet, as diffusers' `load_ip_adapter` does; its scale is 1.

    Raises:
        WeightsMismatch: the adapter was made for another UNet, or is none.
    """
    parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, value in adapter.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = value
    expected = {f"{2 * i + 1}.to_{x}_ip.weight" for i in range(len(_cross_attentions(unet))) for x in "kv"}
    if set(parts) != {"image_proj", "ip_adapter"} or set(parts["ip_adapter"]) != expected:
        raise WeightsMismatch(
            f"The adapter is not one for this UNet: it has {len(parts['ip_adapter'])} keys and values beside "
            f"cross-attentions; the UNet needs {len(expected)}.",
            "Take the adapter of the same base.",
        )
    try:
        unet._load_ip_adapter_weights([parts], low_cpu_mem_usage=False)
    except (RuntimeError, KeyError) as e:
        raise WeightsMismatch(f"The adapter does not fit the UNet ({e}).", "Take one for the same base.") from e


def has_adapter(unet: Any) -> bool:
    """Whether an adapter is in the UNet."""
    return unet.config.encoder_hid_dim_type == "ip_image_proj"


def adapter_modules(unet: Any) -> nn.ModuleDict:
    """What belongs to the adapter in a UNet: `projection`, and for cross-attention i `attention_i`."""
    found = {f"attention_{i}": p for i, p in enumerate(_processors(unet).values())}
    return nn.ModuleDict({"projection": unet.encoder_hid_proj.image_projection_layers[0], **found})


def read_adapter(unet: Any) -> dict[str, Tensor]:
    """The adapter in a UNet, named as published; the inverse of `install`."""
    projection = unet.encoder_hid_proj.image_projection_layers[0]
    kind = "identity" if hasattr(projection, "num_tokens") else "patches"
    found = {f"image_proj.{_published(kind, k)}": v for k, v in projection.state_dict().items()}
    for i, processor in enumerate(_processors(unet).values()):
        found |= {f"ip_adapter.{2 * i + 1}.to_{x}_ip.weight": getattr(processor, f"to_{x}_ip")[0].weight for x in "kv"}
    return {k: v.detach() for k, v in found.items()}


def set_scale(unet: Any, scale: float) -> None:
    """How much the picture tokens say beside the text: 0 (nothing at all) to 1 (as trained)."""
    for processor in _processors(unet).values():
        processor.scale = [scale]


@contextmanager
def taken_out(unet: Any) -> Iterator[None]:
    """While it is open, the UNet is the base's own; afterwards the adapter is in it as before."""
    if not has_adapter(unet):
        yield
        return
    before, projection = dict(unet.attn_processors), unet.encoder_hid_proj
    from diffusers.models.attention_processor import AttnProcessor2_0

    adapted = _processors(unet)
    unet.set_attn_processor({n: AttnProcessor2_0() if n in adapted else p for n, p in before.items()})
    unet.encoder_hid_proj, unet.config.encoder_hid_dim_type = None, None
    try:
        yield
    finally:
        unet.set_attn_processor(before)
        unet.encoder_hid_proj, unet.config.encoder_hid_dim_type = projection, "ip_image_proj"


def _cross_attentions(unet: Any) -> list[Any]:
    """In the order in which diffusers counts processors."""
    return [unet.get_submodule(n.removesuffix(".processor")) for n in unet.attn_processors if ".attn2." in n]


def _processors(unet: Any) -> dict[str, Any]:
    return {n: p for n, p in unet.attn_processors.items() if hasattr(p, "to_k_ip")}


def _published(kind: str, name: str) -> str:
    start = next(s for s in _TO_PUBLISHED[kind] if name.startswith(s))
    return _TO_PUBLISHED[kind][start] + name.removeprefix(start)
