"""What a service can answer besides the work: typed as everything else, each with its HTTP status."""

from __future__ import annotations

from limner.errors import (
    ConfigError,
    CorruptData,
    FaceError,
    ImageError,
    ImageTooLarge,
    LicenseNotAccepted,
    LimnerError,
    PromptError,
    UnreadableImage,
    WeightsMismatch,
)


class ServiceError(LimnerError):
    """Base of what a service refuses or cannot do.

    Args:
        retry_after: seconds after which asking again makes sense; None if it never will.
    """

    code = "service"
    status = 500

    def __init__(self, message: str, hint: str = "", retry_after: float | None = None) -> None:
        super().__init__(message, hint)
        self.retry_after = retry_after


class NotFound(ServiceError):
    """No such identity, job or picture, or it belongs to somebody else: both look the same."""

    code = "not_found"
    status = 404


class NotFinished(ServiceError):
    """The job is still waiting or being painted."""

    code = "not_finished"
    status = 409


class Refused(ServiceError):
    """The safety checker of this service did not let the picture out."""

    code = "refused"
    status = 403


class IdempotencyMismatch(ServiceError):
    """The same idempotency key came with another request."""

    code = "idempotency_mismatch"
    status = 422


class TooManyJobs(ServiceError):
    """One caller has as many jobs, identities or enrolments as one caller may have."""

    code = "too_many_jobs"
    status = 429


class RateLimited(ServiceError):
    """One client asks too often."""

    code = "rate_limited"
    status = 429


class QueueFull(ServiceError):
    """As many jobs are waiting as may wait."""

    code = "queue_full"
    status = 503


class UnknownModel(ServiceError):
    """No model of that name or method is offered here."""

    code = "unknown_model"
    status = 422


class Unsupported(ServiceError):
    """The model that was asked for cannot do this here; the message says why."""

    code = "unsupported"
    status = 422


class StorageFull(ServiceError):
    """The memory set aside for identities and finished pictures is used up."""

    code = "storage_full"
    status = 503


class Unavailable(ServiceError):
    """The model is not loaded (yet, or no longer)."""

    code = "unavailable"
    status = 503


class Draining(ServiceError):
    """The service is shutting down; it finishes what it accepted, and accepts nothing new."""

    code = "draining"
    status = 503


class WorkerCrashed(ServiceError):
    """The worker died on this job again and again."""

    code = "worker_crashed"
    status = 500


class OutOfMemory(ServiceError):
    """There was not enough memory to paint this, not even alone."""

    code = "out_of_memory"
    status = 500


class Unauthorized(ServiceError):
    """No bearer token, or one that is not known; or no caller key where there are no tokens."""

    code = "unauthorized"
    status = 401


class BodyTooLarge(ServiceError):
    """More bytes than a request may have."""

    code = "body_too_large"
    status = 413


class UnsupportedMedia(ServiceError):
    """A body of another content type than the one that is expected here."""

    code = "unsupported_media_type"
    status = 415


class SlowUpload(ServiceError):
    """The body did not arrive in time."""

    code = "slow_upload"
    status = 408


class InvalidRequest(ServiceError):
    """A field is missing, unknown, or of the wrong type or range."""

    code = "invalid_request"
    status = 422


_STATUS: tuple[tuple[type[LimnerError], int], ...] = (
    (ImageTooLarge, 413),
    (UnreadableImage, 415),
    (FaceError, 422),
    (ImageError, 422),
    (ConfigError, 422),
    (PromptError, 422),
    (WeightsMismatch, 422),
    (CorruptData, 422),
    (LicenseNotAccepted, 422),
)


def http_status(error: LimnerError) -> int:
    """The HTTP status that stands for an error; 500 for those that are not the caller's doing."""
    if isinstance(error, ServiceError):
        return error.status
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
