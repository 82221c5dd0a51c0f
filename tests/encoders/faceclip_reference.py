"""A FaceCLIP branch spelled out a second time, straight from the published keys and PyTorch's own modules.

Slow and plain on purpose: it shares no code with limner.encoders, gathers points with grid_sample, computes both
softmaxes from two affinity matrices, and updates every stream to the end.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

State = dict[str, Tensor]


def run_branch(
    s: State, ids: Tensor, images: Tensor, has_face: Tensor, *, text_heads: int, face_heads: int, quick: bool
) -> dict[str, Tensor]:
    """fused, pooled, text_feature and face_feature of B pairs; rows without a face must have an all-zero image."""
    patches, identity = face_vit(s, images, face_heads)
    x = F.embedding(ids, s["token_embedding.weight"])
    stand_in = F.linear(identity, s["proj1.weight"], s["proj1.bias"])
    for row in range(len(ids)):
        if has_face[row]:
            x[row, 4] = stand_in[row]
    x = x + s["positional_embedding"][: ids.shape[1]]
    tokens = text_transformer(s, x, text_heads, quick)
    pooled = torch.stack([tokens[row, ids[row].argmax()] for row in range(len(ids))])
    return {
        "fused": fuse(s, tokens, patches),
        "pooled": pooled,
        "text_feature": F.normalize(pooled @ s["text_projection"], dim=-1),
        "face_feature": identity,
    }


def face_vit(s: State, images: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    p = "face_encoder."
    images = F.interpolate(images, (112, 112), mode="bilinear", align_corners=False)
    kernel = s[p + "patch_embed.proj.weight"]
    x = F.conv2d(images, kernel, s[p + "patch_embed.proj.bias"], stride=kernel.shape[-1])
    x = x.flatten(2).transpose(1, 2) + s[p + "pos_embed"]
    depth = len([k for k in s if k.startswith(p + "blocks.") and k.endswith("norm1.weight")])
    for i in range(depth):
        b = f"{p}blocks.{i}."
        width = x.shape[-1]
        attention = nn.MultiheadAttention(width, heads, batch_first=True, dtype=x.dtype)
        weights = {"in_proj_weight": s[b + "attn.qkv.weight"], "in_proj_bias": x.new_zeros(3 * width)}
        weights |= {"out_proj.weight": s[b + "attn.proj.weight"], "out_proj.bias": s[b + "attn.proj.bias"]}
        attention.load_state_dict(weights)
        y = norm(s, b + "norm1", x)
        x = x + attention(y, y, y, need_weights=True)[0]
        y = linear(s, b + "mlp.fc1", norm(s, b + "norm2", x)).clamp(0, 6)
        x = x + linear(s, b + "mlp.fc2", y)
    x = norm(s, p + "norm", x)
    y = x.flatten(1) @ s[p + "feature.0.weight"].T
    y = batch_norm(s, p + "feature.1", y) @ s[p + "feature.2.weight"].T
    return x, F.normalize(batch_norm(s, p + "feature.3", y), dim=-1)


def text_transformer(s: State, x: Tensor, heads: int, quick: bool) -> Tensor:
    length = x.shape[1]
    mask = torch.full((length, length), float("-inf"), dtype=x.dtype).triu(1)
    depth = len([k for k in s if k.startswith("transformer.resblocks.") and k.endswith("ln_1.weight")])
    for i in range(depth):
        b = f"transformer.resblocks.{i}."
        y = norm(s, b + "ln_1", x)
        x = x + multihead(s, b + "attn", heads, y, y, y, mask)
        y = linear(s, b + "mlp.c_fc", norm(s, b + "ln_2", x))
        y = y * torch.sigmoid(1.702 * y) if quick else F.gelu(y)
        x = x + linear(s, b + "mlp.c_proj", y)
    return norm(s, "ln_final", x)


def fuse(s: State, text: Tensor, patches: Tensor) -> Tensor:
    face = linear(s, "face_patch_proj", patches)
    face_pos = linear(s, "face_pos_proj", s["face_encoder.pos_embed"])
    text_pos = linear(s, "text_pos_proj", s["positional_embedding"][: text.shape[1]])[None]
    text = linear(s, "text_embed_proj", text)
    for i in range(6):
        e = "fuser.encoder."
        face, text = cross(s, f"{e}fusion_layers.{i}.", face, text)
        q = text + text_pos
        text = norm(s, f"{e}text_layers.{i}.norm1", text + multihead(s, f"{e}text_layers.{i}.self_attn", 4, q, q, text))
        text = norm(s, f"{e}text_layers.{i}.norm2", text + feed(s, f"{e}text_layers.{i}.", text))
        face = norm(s, f"{e}layers.{i}.norm1", face + deform(s, f"{e}layers.{i}.self_attn.", face + face_pos, face))
        face = norm(s, f"{e}layers.{i}.norm2", face + feed(s, f"{e}layers.{i}.", face))
    return text


def cross(s: State, p: str, face: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    face, text = norm(s, p + "layer_norm_v", face), norm(s, p + "layer_norm_l", text)
    a = p + "attn."
    dim = s[a + "v_proj.weight"].shape[0] // 4
    out_face, out_text = [], []
    for head in range(4):
        part = slice(head * dim, (head + 1) * dim)
        query, key = linear(s, a + "v_proj", face)[..., part], linear(s, a + "l_proj", text)[..., part]
        from_face = linear(s, a + "values_v_proj", face)[..., part]
        from_text = linear(s, a + "values_l_proj", text)[..., part]
        out_face.append(torch.softmax(query @ key.transpose(1, 2) / dim**0.5, -1) @ from_text)
        out_text.append(torch.softmax(key @ query.transpose(1, 2) / dim**0.5, -1) @ from_face)
    face = face + s[p + "gamma_v"] * linear(s, a + "out_v_proj", torch.cat(out_face, -1))
    return face, text + s[p + "gamma_l"] * linear(s, a + "out_l_proj", torch.cat(out_text, -1))


def deform(s: State, p: str, query: Tensor, values: Tensor, heads: int = 8, points: int = 4) -> Tensor:
    """Deformable attention on one square level by grid_sample (bilinear, zeros outside, align_corners=False)."""
    batch, count, width = values.shape
    side = int(count**0.5)
    maps = linear(s, p + "value_proj", values).view(batch, side, side, heads, width // heads).permute(0, 3, 4, 1, 2)
    offsets = linear(s, p + "sampling_offsets", query).view(batch, count, heads, points, 2)
    weights = linear(s, p + "attention_weights", query).view(batch, count, heads, points).softmax(-1)
    middle = (torch.arange(side, dtype=values.dtype) + 0.5) / side
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    own = torch.stack([x.flatten(), y.flatten()], -1)[None, :, None, None]
    grid = 2 * (own + offsets / side) - 1
    out = values.new_zeros(batch, count, width).view(batch, count, heads, width // heads)
    for b in range(batch):
        for h in range(heads):
            read = F.grid_sample(maps[b, h][None], grid[b, :, h][None], "bilinear", "zeros", align_corners=False)
            out[b, :, h] = (read[0] * weights[b, :, h]).sum(-1).T
    return linear(s, p + "output_proj", out.flatten(2))


def multihead(s: State, p: str, heads: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    attention = nn.MultiheadAttention(q.shape[-1], heads, batch_first=True, dtype=q.dtype)
    attention.load_state_dict({k[len(p) + 1 :]: v for k, v in s.items() if k.startswith(p + ".")})
    return attention(q, k, v, attn_mask=mask, need_weights=True)[0]


def feed(s: State, p: str, x: Tensor) -> Tensor:
    return linear(s, p + "linear2", linear(s, p + "linear1", x).relu())


def linear(s: State, p: str, x: Tensor) -> Tensor:
    return F.linear(x, s[p + ".weight"], s[p + ".bias"])


def norm(s: State, p: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], s[p + ".weight"], s[p + ".bias"])


def batch_norm(s: State, p: str, x: Tensor) -> Tensor:
    return F.batch_norm(x, s[p + ".running_mean"], s[p + ".running_var"], s[p + ".weight"], s[p + ".bias"], eps=2e-5)
