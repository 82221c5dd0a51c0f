"""Every error a user can meet. Each says what was expected, what came, and (in `hint`) what to do next.

The CLI prints message and hint and exits with `exit_code`; the HTTP service returns `code` as its machine-readable
reason. Nothing else in Limner raises bare `ValueError`s at users.
"""

from __future__ import annotations


class LimnerError(Exception):
    """Base of all typed errors.

    Args:
        message: one sentence: what was expected and what came.
        hint: what the user can do next; may be empty.
    """

    code = "error"
    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()

    def as_dict(self) -> dict[str, str]:
        """Machine-readable form: `type`, `code`, `message`, `hint`."""
        return {"type": type(self).__name__, "code": self.code, "message": self.message, "hint": self.hint}


class ConfigError(LimnerError):
    """A setting is out of range, unknown or of the wrong type; names the field, the value and what is allowed."""

    code = "config"


class MissingDependency(LimnerError):
    """An optional package is needed; the hint names the extra that installs it."""

    code = "missing_dependency"


class ImageError(LimnerError):
    """Base of everything that can be wrong with a picture the user gives."""

    code = "image"


class UnreadableImage(ImageError):
    """Not an image, truncated, empty, or in a format that cannot be decoded."""

    code = "unreadable_image"


class ImageTooLarge(ImageError):
    """More pixels than the limit (also guards against decompression bombs); nothing was decoded."""

    code = "image_too_large"


class NoProvenance(ImageError):
    """A readable picture without Limner's record of how it was painted."""

    code = "no_provenance"


class FaceError(ImageError):
    """Base of everything that can go wrong between a readable picture and a `Face`."""

    code = "face"


class NoFaceFound(FaceError):
    """The picture was read, and no face was found in it at any scale."""

    code = "no_face"


class SeveralFaces(FaceError):
    """More than one face where exactly one was demanded, or a choice that fits none or several of them."""

    code = "several_faces"


class FaceTooSmall(FaceError):
    """The chosen face has fewer pixels than the caller demands."""

    code = "face_too_small"


class WeightsUnavailable(LimnerError):
    """Weights are neither cached nor reachable; says what was wanted, from where, and how to provide it by hand."""

    code = "weights_unavailable"


class WeightsMismatch(LimnerError):
    """A checkpoint does not fit: wrong keys, shapes, width, checksum or preprocessing. Nothing was loaded."""

    code = "weights_mismatch"


class UnsafeCheckpoint(WeightsMismatch):
    """A pickle that carries code. It was not executed."""

    code = "unsafe_checkpoint"


class LicenseNotAccepted(LimnerError):
    """Weights whose licence the user must accept first."""

    code = "license"


class PromptError(LimnerError):
    """A prompt that cannot be used: empty, a missing or unknown placeholder, too many words."""

    code = "prompt"


class OutputConflict(LimnerError):
    """The output path already holds something else; nothing was overwritten."""

    code = "output_conflict"


class StorageError(LimnerError):
    """Writing failed (disk full, no permission). What was complete before is intact."""

    code = "storage"


class OutOfMemory(LimnerError):
    """The device has less memory than the work needs."""

    code = "out_of_memory"


class TrainingDiverged(LimnerError):
    """The loss or its gradient is no longer a finite number; the last good checkpoint is kept."""

    code = "diverged"


class ProcessLost(LimnerError):
    """Another of the processes that train together was killed or cannot be reached; the last checkpoint is complete."""

    code = "process_lost"


class CorruptData(LimnerError):
    """A file that Limner wrote (shard, manifest, checkpoint, identity) is damaged or was changed by hand."""

    code = "corrupt_data"
