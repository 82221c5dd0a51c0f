"""What `limner generate` was asked to paint, and everything that can be wrong with that before a model is loaded."""

from __future__ import annotations

import dataclasses
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limner.cli import painting
from limner.cli.painting import Place
from limner.errors import ConfigError, PromptError

SAVED = ".safetensors"
"""Ending of a file that `limner enroll` saved, where photos can be given too."""


@dataclass(frozen=True)
class Order:
    """What is to be painted: the options as they were given, None where they were not."""

    photos: list[Path]
    identity: Path | None
    person: list[str]
    prompt: list[str]
    prompts_file: Path | None
    scenes: Path | None
    negative: str | None
    number: int | None
    best_of: int | None
    ranker: str | None
    seed: int | None
    choose: str | None
    detector: str | None
    gaze_weights: Path | None
    dials: dict[str, Any]

    def check(self, place: Place) -> None:
        """Raises what can be raised before a model is loaded: ConfigError, PromptError, UnreadableImage."""
        self._check_options(place)
        self.prompts()
        people = [path for path, _ in self.people()]
        painting.demand_files([*self.photos, *([self.identity] if self.identity else []), *people])
        photos = self.learns
        if self.choose is not None and not photos:
            raise ConfigError("--choose says which face of a photo is taken, but no photo was given.")
        painting.demand_detector(self.detector)
        if self.detector is not None and not photos and self.dials["rescue"] in (None, "never"):
            raise ConfigError("--detector finds faces in photos and for --rescue; neither was given.")

    def check_again(self, place: Place, method: str | None) -> None:
        """Raises ConfigError for what cannot be given with --from."""
        kept = ("identity", "gaze_weights", "dials")
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in kept}
        also = {"fast": place.fast or None, "method": method, **fields, **self.dials}
        given = [name.replace("_", "-") for name, value in also.items() if value not in (None, [])]
        if given:
            raise ConfigError(f"--from paints a picture exactly as it was; another {given[0]} cannot be given with it.")

    def _check_options(self, place: Place) -> None:
        from limner.pipelines.few_step import few_step
        from limner.pipelines.gaze import parse_gaze
        from limner.pipelines.memory import memory_mode

        if place.fast:
            few_step(place.fast)
        if place.memory != "auto":
            memory_mode(place.memory)
        ways = {"--face": self.photos, "--identity": self.identity, "--person": self.person}
        given = [name for name, value in ways.items() if value]
        if len(given) != 1:
            said = " and ".join(given) or "none of them"
            raise ConfigError(f"--face, --identity or --person says who is painted; got {said}.", "--face me.jpg …")
        number = self.number or 1
        if not 1 <= number <= 1000 or self.number == 0:
            raise ConfigError(f"-n is {self.number}; allowed: 1 to 1000.")
        if self.best_of is not None and not number <= self.best_of <= 1000:
            raise ConfigError(f"--best-of is {self.best_of}; allowed: {number} (as many as -n) to 1000.")
        if self.seed is not None and not 0 <= self.seed < 2**62:
            raise ConfigError(f"--seed is {self.seed}; allowed: 0 to 2^62.")
        if self.ranker is not None and self.best_of is None:
            raise ConfigError("--ranker says who chooses, but nothing is chosen without --best-of.")
        if self.ranker not in (None, "own") and not self.photos:
            raise ConfigError(f"--ranker {self.ranker} needs photos; give them with --face.")
        if place.memory != "auto" and self.ranks_with_encoder and memory_mode(place.memory).free_encoders:
            raise ConfigError(
                f"--memory {place.memory} frees the encoder, by whose face encoder --best-of chooses.",
                "Give another judge with --ranker, or another mode.",
            )
        if self.dials["gaze"]:
            parse_gaze(self.dials["gaze"])
            if self.person:
                raise ConfigError("--gaze places one pair of eyes; --person places people. Both were given.")
        elif self.gaze_weights is not None:
            raise ConfigError("--gaze-weights says with what eyes are placed, but not where: --gaze is missing.")
        if self.dials["rescue_strength"] is not None and self.dials["rescue"] in (None, "never"):
            raise ConfigError("--rescue-strength says how much of a small face is painted anew: --rescue is missing.")

    @property
    def ranks_with_encoder(self) -> bool:
        """Whether the model's own face encoder is still needed when the pictures are painted."""
        return self.best_of is not None and self.ranker in (None, "own")

    @property
    def learns(self) -> bool:
        """Whether somebody is enrolled from photos."""
        return bool(self.photos) or any(path.suffix != SAVED for path, _ in self.people())

    @property
    def together(self) -> int:
        """How many pictures are painted at once."""
        from limner.pipelines.paint import Dials

        return min(self.dials["batch"] or Dials.batch, self.best_of or self.number or 1)

    def people(self) -> list[tuple[Path, Any]]:
        """File and box of every --person; ConfigError for what cannot be read so."""
        from limner.pipelines.regions import parse_box

        found = []
        for text in self.person:
            path, at, region = text.rpartition("@")
            if not at or not path:
                raise ConfigError(f"--person is {text!r}; FILE@REGION is expected, as in me.jpg@left.")
            found.append((Path(path), parse_box(region)))
        return found

    def prompts(self) -> list[str]:
        """All prompts, those of the file last.

        Raises:
            PromptError: none at all.
            ConfigError: a file that cannot be read.
        """
        prompts = [p.strip() for p in self.prompt if p.strip()] + painting.read_lines(self.prompts_file)
        if not prompts:
            raise PromptError(
                "There is nothing to paint: no prompt was given.", 'Say it: --prompt "a wizard in the snow".'
            )
        if self.scenes is None:
            return prompts
        scenes = painting.read_lines(self.scenes)
        if not scenes:
            raise PromptError(f"{self.scenes} holds no scene.", "Write one a line, as in: on a beach.")
        return [f"{prompt}, {scene}" for prompt in prompts for scene in scenes]

    def seeds(self) -> list[int]:
        """Of every picture painted for a prompt, kept or not."""
        first = secrets.randbelow(2**31) if self.seed is None else self.seed
        return list(range(first, first + (self.best_of or self.number or 1)))
