"""Photo → Face: read, find, choose, align, judge, embed. `FaceFinder` is the way in for everybody."""

from limner.faces.align import head_crop, put_back
from limner.faces.choose import Choice, choose, parse_choice
from limner.faces.detect import DETECTORS, DetectedFace, FaceDetector, make_detector
from limner.faces.embed import EMBEDDERS, EmbedderSpec, FaceEmbedder, OnnxEmbedder, Preprocessing
from limner.faces.finder import FaceFinder, Found, align_face
from limner.faces.fuse import Fused, Rejected, fuse
from limner.faces.images import ImageSource, load_image

__all__ = [
    "DETECTORS",
    "EMBEDDERS",
    "Choice",
    "DetectedFace",
    "EmbedderSpec",
    "FaceDetector",
    "FaceEmbedder",
    "FaceFinder",
    "Found",
    "Fused",
    "ImageSource",
    "OnnxEmbedder",
    "Preprocessing",
    "Rejected",
    "align_face",
    "choose",
    "fuse",
    "head_crop",
    "load_image",
    "make_detector",
    "parse_choice",
    "put_back",
]
