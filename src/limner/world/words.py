"""The words of the world: which phrases say which label. Captions are made from them, prompts are read by them.

A phrase with `{c}` takes a colour word there, or nothing. The first phrase of a value is the commonest.
"""

from __future__ import annotations

from limner.world.colors import COLORS

Phrases = dict[str, tuple[str, ...]]

SEX: Phrases = {"woman": ("woman", "lady", "girl"), "man": ("man", "guy", "boy")}
AGE: Phrases = {"young": ("young",), "middle-aged": ("middle-aged",), "old": ("old", "elderly", "senior")}
HAIR_COLOR: Phrases = {
    "black": ("black",),
    "dark brown": ("dark brown",),
    "brown": ("brown", "brunette"),
    "light brown": ("light brown",),
    "auburn": ("auburn",),
    "red": ("red", "ginger"),
    "blond": ("blond", "blonde", "fair"),
    "platinum": ("platinum", "platinum blond"),
    "grey": ("grey", "gray"),
    "white": ("white",),
    "pink": ("pink",),
    "blue": ("blue",),
    "green": ("green",),
    "purple": ("purple",),
}
HAIR: Phrases = {
    "shaved": ("a shaved head", "a bald head"),
    "short": ("short {c} hair", "{c} short hair"),
    "side": ("side-parted {c} hair", "{c} hair with a side parting"),
    "quiff": ("a {c} quiff", "{c} hair in a quiff"),
    "fringe": ("short {c} hair with a fringe", "a short {c} fringe"),
    "curly": ("curly {c} hair", "{c} curls", "{c} curly hair"),
    "afro": ("a {c} afro", "{c} afro hair"),
    "bob": ("a {c} bob", "{c} bobbed hair", "{c} hair in a bob"),
    "bob_fringe": ("a {c} bob with a fringe", "a {c} bob with bangs", "{c} bobbed hair with bangs"),
    "long": ("long {c} hair", "long straight {c} hair", "{c} long hair"),
    "wavy": ("wavy {c} hair", "long wavy {c} hair", "{c} waves"),
    "bun": ("{c} hair in a bun", "a {c} bun"),
    "ponytail": ("a {c} ponytail", "{c} hair in a ponytail"),
    "receding": ("receding {c} hair", "thinning {c} hair"),
}
HAIR_PLAIN = "{c} hair"
"""Says the colour alone."""
FACIAL_HAIR: Phrases = {
    "none": ("a clean-shaven face", "a shaved face"),
    "stubble": ("stubble", "a stubble beard"),
    "moustache": ("a moustache", "a mustache"),
    "goatee": ("a goatee",),
    "beard": ("a beard", "a short beard"),
    "full_beard": ("a full beard", "a bushy beard", "a thick beard", "a long beard"),
}
EYEWEAR: Phrases = {
    "glasses": ("glasses", "eyeglasses", "spectacles"),
    "sunglasses": ("sunglasses", "dark glasses", "shades"),
}
HEADWEAR: Phrases = {
    "chef": ("a white chef hat", "a chef hat", "a toque"),
    "wizard": ("a {c} wizard hat", "a {c} pointed hat"),
    "nurse": ("a nurse cap", "a white nurse cap", "a nurse hat"),
    "police": ("a police cap", "a police hat"),
    "firefighter": ("a {c} firefighter helmet", "a {c} fire helmet"),
    "crown": ("a crown", "a golden crown", "a gold crown"),
    "cap": ("a {c} cap", "a {c} baseball cap"),
    "headphones": ("{c} headphones",),
    "beanie": ("a {c} beanie", "a {c} woolly hat", "a {c} wool hat", "a {c} knit hat"),
    "hat": ("a {c} hat", "a {c} fedora"),
}
ROLE: Phrases = {
    "chef": ("chef", "cook"),
    "wizard": ("wizard", "sorcerer"),
    "nurse": ("nurse",),
    "police": ("police", "police officer", "police"),
    "firefighter": ("firefighter",),
    "king": ("king",),
    "queen": ("queen",),
}
ROLE_HEADWEAR = {"king": "crown", "queen": "crown"}
"""Headwear of a role where it has another name."""
ROLE_CLOTHING = {
    "chef": "chef", "wizard": "robe", "nurse": "scrubs", "police": "police", "firefighter": "firefighter",
    "king": "robe", "queen": "robe",
}  # fmt: skip
CLOTHING: Phrases = {
    "tshirt": ("a {c} t-shirt", "a {c} tee"),
    "striped": ("a {c} striped shirt", "a striped {c} shirt", "{c} stripes"),
    "turtleneck": ("a {c} turtleneck", "a {c} sweater"),
    "shirt": ("a {c} shirt", "a {c} button-up shirt"),
    "suit": ("a {c} suit", "a {c} jacket"),
    "scoop": ("a {c} top", "a {c} scoop-neck top", "a {c} blouse"),
    "hoodie": ("a {c} hoodie",),
    "chef": ("a chef jacket", "a white chef jacket", "chef whites"),
    "robe": ("a {c} robe", "a {c} cloak"),
    "scrubs": ("{c} scrubs", "{c} nurse scrubs"),
    "police": ("a police uniform", "a police jacket"),
    "firefighter": ("a firefighter coat", "a firefighter jacket"),
}
EXPRESSION: Phrases = {
    "neutral": ("with a neutral expression", "with a calm face", "serious"),
    "smiling": ("smiling", "with a smile", "with a friendly smile"),
    "laughing": ("laughing", "with a big open smile", "with a happy laugh"),
    "surprised": ("surprised", "with a surprised look", "looking surprised"),
    "open mouth": ("with an open mouth", "with the mouth open"),
    "angry": ("frowning", "angry", "with an angry look"),
}
GAZE: Phrases = {
    "camera": ("looking at the camera", "looking at the viewer", "looking into the camera"),
    "left": ("looking left", "looking to the left"),
    "right": ("looking right", "looking to the right"),
    "up": ("looking up",),
    "down": ("looking down",),
    "closed": ("with closed eyes", "with eyes closed"),
}
POSE: Phrases = {
    "front": ("facing the camera", "front view", "seen from the front"),
    "left": ("turned to the left", "facing left", "head turned left"),
    "right": ("turned to the right", "facing right", "head turned right"),
}
LIGHT_SIDE: Phrases = {
    "left": ("lit from the left", "light from the left"),
    "right": ("lit from the right", "light from the right"),
    "front": ("lit from the front",),
}
LIGHT_QUALITY: Phrases = {
    "soft": ("in soft light", "soft light"),
    "hard": ("in hard light", "hard light", "dramatic light"),
}
LIGHT_TONE: Phrases = {
    "warm": ("in warm light", "warm light"),
    "cool": ("in cool light", "cool light", "in cold light"),
}
LIGHT_LEVEL: Phrases = {"dim": ("in dim light", "dim light", "in low light")}
SCENE: Phrases = {
    "studio": ("in a studio", "in a photo studio", "before a plain background", "studio"),
    "beach": ("on a beach", "at the beach", "by the sea", "beach"),
    "forest": ("in a forest", "in the woods", "among trees", "forest"),
    "street": ("on a street", "in a city street", "in the city", "in a town", "street"),
    "snow": ("in the snow", "in a snowy landscape", "in winter", "on a snowy hill", "snow"),
    "kitchen": ("in a kitchen", "kitchen"),
    "library": ("in a library", "before bookshelves", "among books", "library"),
    "space": ("in space", "in outer space", "among the stars", "space"),
    "stage": ("on a stage", "on stage", "on a theater stage", "stage"),
    "desert": ("in a desert", "in the desert", "among sand dunes", "desert"),
    "garden": ("in a garden", "in a flower garden", "among flowers", "garden"),
    "mountains": ("in the mountains", "by a mountain lake", "before snowy mountains", "mountains"),
}
TIME: Phrases = {
    "sunset": ("at sunset",),
    "night": ("at night",),
    "evening": ("in the evening",),
    "dusk": ("at dusk",),
    "autumn": ("in autumn", "in fall"),
    "dawn": ("at dawn",),
}
STYLE: Phrases = {
    "photo": ("photo", "photograph", "portrait photo", "picture"),
    "oil": ("oil painting", "oil portrait"),
    "watercolor": ("watercolor", "watercolor painting", "watercolour painting"),
    "pencil": ("pencil drawing", "pencil sketch"),
    "fauvism": ("fauvism painting", "fauvist painting", "fauvist portrait"),
    "comic": ("comic drawing", "comic book drawing", "cartoon"),
    "pointillism": ("pointillism painting", "pointillist painting"),
    "charcoal": ("charcoal drawing", "charcoal sketch"),
    "sepia": ("sepia photo", "old sepia photograph", "vintage photo"),
}
STYLE_PREFIX = {
    "oil": "Oil painting style",
    "watercolor": "Watercolor style",
    "pencil": "Pencil art style",
    "fauvism": "Fauvism painting",
    "comic": "Comic style",
    "pointillism": "Pointillism style",
    "charcoal": "Charcoal style",
    "sepia": "Sepia style",
}
"""How a prompt begins in the manner of DreamIdentity's; the first four are the paper's own words."""
FRAMING: Phrases = {"close-up": ("close-up", "close-up portrait"), "far": ("wide shot",)}
MAKEUP: Phrases = {"yes": ("makeup", "red lipstick")}
FRECKLES: Phrases = {"yes": ("freckles", "a freckled face")}

EDIT_PROMPTS = (
    "Oil painting style, S* face",
    "Watercolor style, S* face",
    "Pencil art style, S* face",
    "Fauvism painting, S* face",
    "S* as a wizard, looking at the camera",
    "S* wearing a hat, looking at the camera",
    "S* as a chef, looking at the camera",
    "S* as a nurse, looking at the camera",
    "S* as a police, looking at the camera",
)
"""DreamIdentity's published edit prompts (arXiv 2307.00300, appendix; the last from its figures)."""
NAME_PROMPT = "{name} face, looking at the camera"
"""Its prompt for the faces of named people (section on self-augmented data)."""


def fill(phrase: str, color: str = "") -> str:
    """`phrase` with a colour word, or none, in its slot; the article follows what comes after it."""
    words = phrase.replace("{c}", color).split()
    for k, w in enumerate(words[:-1]):
        if w in ("a", "an"):
            words[k] = "an" if words[k + 1][0] in "aeiou" and words[k + 1] != "uniform" else "a"
    return " ".join(words)


def tokens(text: str) -> list[str]:
    """Lower-case words of a text without punctuation; hyphens and the star of "S*" stay."""
    clean = "".join(c if c.isalnum() or c in "-* " else " " for c in text.lower())
    return [t for t in clean.split() if t.strip("-")]


def phrases() -> dict[tuple[str, ...], dict[str, str]]:
    """Every phrase of the world as words without articles → the labels that it claims."""
    table: dict[tuple[str, ...], dict[str, str]] = {}

    def add(text: str, **claims: str) -> None:
        table.setdefault(bare(tokens(text)), claims)

    for key, values in _PLAIN.items():
        for value, texts in values.items():
            for text in texts:
                add(text, **{key: value})
    for value, texts in HAIR.items():
        for text in texts:
            add(fill(text), hair=value)
            for color, names in HAIR_COLOR.items() if "{c}" in text else ():
                for name in names:
                    add(fill(text, name), hair=value, hair_color=color)
    for color, names in HAIR_COLOR.items():
        for name in names:
            add(fill(HAIR_PLAIN, name), hair_color=color)
    for key, color_key, values in (("clothing", "cloth_color", CLOTHING), ("headwear", "headwear_color", HEADWEAR)):
        for value, texts in values.items():
            for text in texts:
                add(fill(text), **{key: value})
                for color in COLORS if "{c}" in text else ():
                    add(fill(text, color), **{key: value, color_key: color})
    for role, texts in ROLE.items():
        for text in texts:
            add(text, headwear=ROLE_HEADWEAR.get(role, role))
    for style, text in STYLE_PREFIX.items():
        add(text, style=style)
        add(text.removesuffix(" style"), style=style)
    return table


def tables() -> tuple[Phrases, ...]:
    """Every table of phrases."""
    return (*_PLAIN.values(), HAIR_COLOR, HAIR, CLOTHING, HEADWEAR, ROLE)


def bare(words: list[str]) -> tuple[str, ...]:
    """Words without articles."""
    return tuple(w for w in words if w not in ("a", "an", "the"))


_PLAIN: dict[str, Phrases] = {
    "style": STYLE, "sex": SEX, "age": AGE, "facial_hair": FACIAL_HAIR, "eyewear": EYEWEAR, "expression": EXPRESSION,
    "gaze": GAZE, "pose": POSE, "light_side": LIGHT_SIDE, "light_quality": LIGHT_QUALITY, "light_tone": LIGHT_TONE,
    "light_level": LIGHT_LEVEL, "scene": SCENE, "time": TIME, "framing": FRAMING, "makeup": MAKEUP,
    "freckles": FRECKLES,
}  # fmt: skip
