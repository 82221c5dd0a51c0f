"""The fusion module: text and face streams read each other, layer by layer, until the text carries the face."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.encoders.attention import PackedAttention, merge_heads, split_heads
from limner.encoders.config import FuserConfig


class Fuser(nn.Module):
    """Layers of dual cross attention, text self-attention and (deformable, in FaceCLIP) face self-attention.

    Args:
        width: channels of both streams.
        config: the other sizes.
    """

    def __init__(self, width: int, config: FuserConfig) -> None:
        super().__init__()
        self.encoder = _Layers(width, config)
        # The published layout carries an output head that nothing reads. It is kept so that files round-trip.
        self.enc_output = nn.Linear(width, width).requires_grad_(False)
        self.enc_output_norm = nn.LayerNorm(width).requires_grad_(False)

    def forward(self, face: Tensor, text: Tensor, face_positions: Tensor, text_positions: Tensor) -> Tensor:
        """The fused text stream (B, T, C).

        Args:
            face: (B, N, C), with N a square number where the face attention is deformable; text: (B, T, C).
            face_positions, text_positions: (N, C) and (T, C), added to queries (and keys) of the self-attentions.
        """
        return self.encoder(face, text, face_positions, text_positions)


class _Layers(nn.Module):
    def __init__(self, width: int, config: FuserConfig) -> None:
        super().__init__()
        depth, heads, feedforward = range(config.depth), config.heads, config.feedforward
        half = feedforward // 2
        self.layers = nn.ModuleList(FaceLayer(width, heads, config.points, feedforward) for _ in depth)
        self.text_layers = nn.ModuleList(TextLayer(width, heads // 2, half) for _ in depth)
        self.fusion_layers = nn.ModuleList(DualCrossAttention(width, half, heads // 2, config.gain) for _ in depth)

    def forward(self, face: Tensor, text: Tensor, face_positions: Tensor, text_positions: Tensor) -> Tensor:
        last = len(self.layers) - 1
        layers = zip(self.fusion_layers, self.text_layers, self.layers, strict=True)
        for i, (fuse, read_text, read_face) in enumerate(layers):
            # Nobody reads the face stream after the last exchange, so its last update is not computed.
            face, text = fuse(face, text, face_too=i < last)
            text = read_text(text, text_positions)
            if i < last:
                face = read_face(face, face_positions)
        return text


class DualCrossAttention(nn.Module):
    """Both directions of cross attention from one affinity matrix, as in GLIP (Li et al. 2022, section 3.2).

    Each stream is normalised, and what it reads from the other, scaled by a learned gain per channel, is added to the
    *normalised* stream.

    Args:
        width: channels of both streams.
        inner: channels of all heads together.
        heads: of equal size.
        gain: initial value of the gains.
    """

    def __init__(self, width: int, inner: int, heads: int, gain: float) -> None:
        super().__init__()
        self.heads = heads
        self.gamma_v = nn.Parameter(torch.full((width,), gain))
        self.gamma_l = nn.Parameter(torch.full((width,), gain))
        self.layer_norm_v = nn.LayerNorm(width)
        self.layer_norm_l = nn.LayerNorm(width)
        into = {name: nn.Linear(width, inner) for name in ("v_proj", "l_proj", "values_v_proj", "values_l_proj")}
        out = {name: nn.Linear(inner, width) for name in ("out_v_proj", "out_l_proj")}
        self.attn = nn.ModuleDict(into | out)
        _xavier(self.attn)

    def forward(self, face: Tensor, text: Tensor, *, face_too: bool = True) -> tuple[Tensor, Tensor]:
        """Updates both streams, (B, N, C) and (B, T, C); without `face_too` the face stream is left undone."""
        face, text = self.layer_norm_v(face), self.layer_norm_l(text)

        def project(name: str, x: Tensor) -> Tensor:
            return split_heads(self.attn[name](x), self.heads)

        query, key = project("v_proj", face), project("l_proj", text)
        affinity = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        to_text = affinity.transpose(-1, -2).softmax(dim=-1) @ project("values_v_proj", face)
        fused_text = text + self.gamma_l * self.attn["out_l_proj"](merge_heads(to_text))
        if not face_too:
            return face, fused_text
        to_face = affinity.softmax(dim=-1) @ project("values_l_proj", text)
        return face + self.gamma_v * self.attn["out_v_proj"](merge_heads(to_face)), fused_text


class TextLayer(nn.Module):
    """Post-norm self-attention and feed-forward part of the text stream (Carion et al. 2020, DETR)."""

    def __init__(self, width: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.self_attn = PackedAttention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, feedforward)
        self.linear2 = nn.Linear(feedforward, width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        x = self.norm1(x + self.self_attn(x, positions))
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))


class FaceLayer(nn.Module):
    """Post-norm self-attention and feed-forward part of the face stream: deformable (Zhu et al. 2021), or with
    `points` 0 (FaceT5) an ordinary one."""

    def __init__(self, width: int, heads: int, points: int, feedforward: int) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(width, heads, points) if points else PackedAttention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, feedforward)
        self.linear2 = nn.Linear(feedforward, width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        x = self.norm1(x + self.self_attn(x, positions))
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))


class DeformableAttention(nn.Module):
    """Each query looks at a few points around its own place, at offsets that it predicts (Zhu et al. 2021, eq. 2).

    One square level. A point at (x, y) reads the map bilinearly, with zeros beyond its border. Bilinear reading is
    linear in the map with weights hat(x − column)·hat(y − row), hat(d) = max(0, 1 − |d|), so the points of a query add
    up to one row of a dense N×N matrix per head. On a map this small that is quicker than gathering, and its backward
    pass is deterministic on every device.
    """

    def __init__(self, width: int, heads: int, points: int) -> None:
        super().__init__()
        self.heads, self.points = heads, points
        self.sampling_offsets = nn.Linear(width, heads * points * 2)
        self.attention_weights = nn.Linear(width, heads * points)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)
        self._initialise()

    def _initialise(self) -> None:
        """Zhu et al. 2021, appendix A.4: head h looks in direction 2πh/heads, point p at distance p + 1."""
        _xavier(self)
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
        direction = direction / direction.abs().amax(dim=-1, keepdim=True)
        offsets = direction[:, None] * torch.arange(1, self.points + 1)[None, :, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """(B, N, C) → (B, N, C); N = side², tokens row by row; `positions` (N, C) are added to queries only."""
        side = math.isqrt(x.shape[1])
        query = x + positions
        weight = self._reading(query, side).to(x.dtype)
        return self.output_proj(merge_heads(weight @ split_heads(self.value_proj(x), self.heads)))

    def _reading(self, query: Tensor, side: int) -> Tensor:
        """(B, heads, N, N): how much each query reads of each token. In float32: places need the precision."""
        shape = (self.heads, self.points)
        offsets = self.sampling_offsets(query).float().unflatten(-1, (*shape, 2))
        attention = self.attention_weights(query).float().unflatten(-1, shape).softmax(dim=-1)
        line = torch.arange(side, device=query.device, dtype=torch.float32)
        column, row = line.repeat(side), line.repeat_interleave(side)
        x = offsets[..., 0] + column[:, None, None]
        y = offsets[..., 1] + row[:, None, None]
        along_x = (1 - (x[..., None] - line).abs()).clamp(min=0)
        along_y = (1 - (y[..., None] - line).abs()).clamp(min=0) * attention[..., None]
        return torch.einsum("bnhpy,bnhpx->bhnyx", along_y, along_x).flatten(-2)


def _xavier(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
