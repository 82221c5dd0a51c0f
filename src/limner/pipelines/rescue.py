"""Small-face rescue: a face that came out small is painted once more, larger, and laid back where it was.

What `limner.pipelines.face_detail` does to every face as a part of painting is done here to the small ones of large
pictures, when it is asked for: with any detector, and with a record of what was done, so that it can be done again.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from limner.errors import ConfigError, CorruptData, NoFaceFound
from limner.faces import DetectedFace, FaceFinder, put_back
from limner.faces.align import head_matrix, invert, scale_of, transform, warp

if TYPE_CHECKING:
    from limner.pipelines.portrait import PortraitPipeline
    from limner.types import Conditioning

MODES = ("auto", "always", "never")
AUTO_ENLARGES = 2.0
"""In the mode `auto`, faces that would be enlarged less than this are left alone; in `always`, less than once."""
_MOST_ENLARGED = 64.0


@dataclass(frozen=True)
class SmallFace:
    """A face to be painted again.

    Attributes:
        person: whose face it is: the number of the person in a group, from 1; 0 where there is only one.
        face: (x0, y0, x1, y1) of the face in pixels.
        box: (x0, y0, x1, y1) in pixels of what may change.
        enlarged: how many times larger it is painted.
        matrix: 2 × 3, the similarity from the picture's pixels to the crop's.
    """

    person: int
    face: tuple[float, float, float, float]
    box: tuple[int, int, int, int]
    enlarged: float
    matrix: tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class Plan:
    """What is to be done to one picture.

    Attributes:
        faces: those to paint again; perhaps none.
        said: sentences that say what is done, or why nothing is.
    """

    faces: tuple[SmallFace, ...] = ()
    said: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """As provenance keeps it: JSON types."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_facts(cls, facts: Any) -> Plan:
        """The inverse of `facts`; CorruptData where they are damaged."""
        try:
            faces = tuple(
                SmallFace(
                    person=int(f["person"]),
                    face=_numbers(f["face"], 4),
                    box=tuple(int(v) for v in _numbers(f["box"], 4)),  # type: ignore[arg-type]
                    enlarged=float(f["enlarged"]),
                    matrix=(_numbers(f["matrix"][0], 3), _numbers(f["matrix"][1], 3)),
                )
                for f in facts["faces"]
            )
            if not all(f.person >= 0 and 1 <= scale_of(np.array(f.matrix)) <= _MOST_ENLARGED for f in faces):
                raise ValueError("a face of nobody, or enlarged beyond all bounds")
            return cls(faces, tuple(str(text) for text in facts["said"]))
        except (KeyError, TypeError, ValueError, IndexError) as e:
            raise CorruptData(f"The picture's record of its rescued faces is damaged ({type(e).__name__}: {e}).") from e


@dataclass(frozen=True)
class Rescued:
    """A picture (PIL) after the rescue, and what was done to it."""

    image: Any
    plan: Plan


def rescue(
    pipe: PortraitPipeline,
    image: Any,
    conditioning: Conditioning,
    *,
    mode: str = "auto",
    strength: float = 0.5,
    steps: int | None = None,
    guidance_scale: float | None = None,
    guidance_rescale: float = 0.0,
    seed: int = 0,
    finder: FaceFinder | None = None,
    plan: Plan | None = None,
) -> Rescued:
    """Paints the small face of a picture again, larger. Of several faces the largest is taken; of a group, the largest
    in each person's region.

    Args:
        pipe: what painted the picture.
        image: PIL picture.
        conditioning: what it was painted under, of one prompt; for a group with its regions.
        mode: `auto` takes faces that can be enlarged `AUTO_ENLARGES` times, `always` all that can be enlarged, `never`
            none.
        strength: how much of the face is painted anew, over 0 to 1; at 1 nothing is kept but its place.
        steps, guidance_scale: default: what the model recommends. Of the steps the share `strength` is taken.
        guidance_rescale: as in `PortraitPipeline`.
        seed: of the noise.
        finder: finds the faces; None makes one with default settings.
        plan: what to do, known before; nothing is searched then.

    Raises:
        ConfigError: an unknown mode, a strength outside (0, 1], a conditioning of several prompts, or one that
            `demand_plain` refuses.
        WeightsUnavailable: the face detector that was asked for is not there.
    """
    import torch
    from PIL import Image

    from limner.pipelines.face_detail import FEATHER, demand_plain, head_zoom, paint_heads, rows_of

    demand_mode(mode, strength)
    if conditioning.prompt_embeds.shape[0] != 1:
        raise ConfigError(f"A picture has one prompt; got a conditioning of {conditioning.prompt_embeds.shape[0]}.")
    if mode != "never":
        demand_plain(pipe, conditioning)
    pixels = np.asarray(image.convert("RGB"))
    side = min(pipe.default_size)
    if plan is None:
        plan = (
            Plan()
            if mode == "never"
            else make_plan(pixels, conditioning, mode, side, finder or FaceFinder(), head_zoom(pipe))
        )
    if not plan.faces:
        return Rescued(image, plan)
    for face in plan.faces:
        if face.person > len(conditioning.regions):
            raise CorruptData(f"The record speaks of person {face.person}; there are {len(conditioning.regions)}.")
        told = conditioning.regions[face.person - 1][1] if face.person else conditioning
        matrix = np.array(face.matrix)
        noise = int(np.random.SeedSequence([seed, face.person]).generate_state(1, np.uint64)[0])
        (head,) = paint_heads(
            pipe,
            [warp(pixels, matrix, side, extend=True)],
            rows_of(told, [0]),
            strength=strength,
            steps=pipe.config.default_steps if steps is None else steps,
            guidance_scale=pipe.config.default_guidance if guidance_scale is None else guidance_scale,
            guidance_rescale=guidance_rescale,
            generator=torch.Generator("cpu").manual_seed(noise),
        )
        pixels = put_back(pixels, head, matrix, feather=FEATHER)
    return Rescued(Image.fromarray(pixels), plan)


def demand_mode(mode: str, strength: float) -> None:
    """Raises ConfigError unless `mode` is one of `MODES` and `strength` lies over 0 and up to 1."""
    if mode not in MODES:
        raise ConfigError(f"rescue is {mode!r}; allowed: {', '.join(MODES)}.")
    if not 0 < strength <= 1:
        raise ConfigError(f"The strength of a rescue is {strength!r}; allowed: over 0 (hardly changed) to 1 (anew).")


def make_plan(
    pixels: np.ndarray, conditioning: Conditioning, mode: str, side: int, finder: FaceFinder, zoom: float = 1.0
) -> Plan:
    """Looks for small faces.

    Args:
        pixels: (H, W, 3) uint8.
        conditioning: tells how many people there are, and where.
        mode: `auto` or `always`.
        side: of the square that a head is enlarged to, in pixels.
        zoom: how much more of that square a face fills than half of its width (`head_zoom`).
    """
    try:
        detected = finder.find(pixels).detected
    except NoFaceFound:
        return Plan((), ("No face was found; nothing was painted again.",))
    boxes = [box for box, _ in conditioning.regions]
    size = (pixels.shape[1], pixels.shape[0])
    faces, said = [], []
    for person in range(1, len(boxes) + 1) if boxes else (0,):
        theirs = [f for f in detected if not boxes or _owner(f, boxes, size) == person]
        whose = f"Person {person}: the" if person else "The"
        if not theirs:
            said.append(f"Person {person}: no face was found; nothing was painted again.")
            continue
        chosen = max(theirs, key=lambda f: f.area)
        face = _small_face(chosen, person, size, side, zoom)
        width = chosen.size[0]
        if face.enlarged <= 1 or (mode == "auto" and face.enlarged < AUTO_ENLARGES):
            said.append(f"{whose} face ({width:.0f} px wide) is large already; nothing was painted again.")
        elif face.enlarged > _MOST_ENLARGED:
            said.append(f"{whose} face ({width:.0f} px wide) is too small to begin with; nothing was painted again.")
        else:
            said.append(f"{whose} face ({width:.0f} px wide) was painted again, {face.enlarged:.1f} times larger.")
            faces.append(face)
    return Plan(tuple(faces), tuple(said))


def _owner(face: DetectedFace, boxes: list[tuple[float, float, float, float]], size: tuple[int, int]) -> int:
    """The number of the person, from 1, in whose region the middle of a face lies; 0 for nobody's."""
    x, y = face.center[0] / size[0], face.center[1] / size[1]
    holding = [i for i, (x0, y0, x1, y1) in enumerate(boxes, 1) if x0 <= x < x1 and y0 <= y < y1]
    return holding[-1] if holding else 0


def _small_face(face: DetectedFace, person: int, size: tuple[int, int], side: int, zoom: float) -> SmallFace:
    matrix = head_matrix(face.box, face.landmarks, side, zoom)
    corners = transform(np.array([[0, 0], [side, 0], [0, side], [side, side]], float), invert(matrix))
    low = np.clip(np.floor(corners.min(0)) - 1, 0, size).astype(int).tolist()
    high = np.clip(np.ceil(corners.max(0)) + 1, 0, size).astype(int).tolist()
    x0, y0, x1, y1 = (round(float(v), 2) for v in face.box)
    top, bottom = (tuple(float(v) for v in row) for row in matrix)
    return SmallFace(
        person=person,
        face=(x0, y0, x1, y1),
        box=(low[0], low[1], high[0], high[1]),
        enlarged=round(scale_of(matrix), 3),
        matrix=(top, bottom),  # type: ignore[arg-type]
    )


def _numbers(values: Any, count: int) -> Any:
    """`count` finite floats as a tuple; ValueError for anything else."""
    found = tuple(float(v) for v in values)
    if len(found) != count or not np.isfinite(found).all():
        raise ValueError(f"{count} numbers are expected")
    return found
