"""From a name or a folder to a model that is ready to paint: found, checked, hashed, on its device."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner.errors import ConfigError, CorruptData, WeightsMismatch, WeightsUnavailable
from limner.pipelines.catalogue import DEFAULT
from limner.pipelines.few_step import FewStep, apply_lora, few_step
from limner.pipelines.fitting import choose_mode, free_memory, sizes_of
from limner.pipelines.folders import model_folder, resolve_files
from limner.pipelines.memory import PACKAGES, MemoryMode, demand_device, memory_mode, place, quantization
from limner.pipelines.schedulers import make_scheduler, scheduler_name
from limner.registry import ModelSpec, file_sha256, get_model

if TYPE_CHECKING:
    import torch

    from limner.pipelines.enrolling import EnrollingPipeline

PIPELINES = {
    "FaceCLIPPipeline": "limner.pipelines.faceclip",
    "FaceT5FluxPipeline": "limner.pipelines.facet5",
    "DreamIdentityPipeline": "limner.pipelines.dreamidentity",
    "IPAdapterPipeline": "limner.pipelines.rivals",
    "ElitePipeline": "limner.pipelines.rivals",
    "E4TPipeline": "limner.pipelines.tuned",
    "InstructPix2PixPipeline": "limner.pipelines.instruct",
}
"""Pipeline classes that a folder's `model_index.json` may name → their modules."""

TUNED = ("textual-inversion", "dreambooth", "dreambooth-lora")
"""Methods that learn a person by tuning: they paint over any base (`limner.pipelines.tuned`)."""

INDEX = "model_index.json"
BASE = "limner_base"
"""Entry of an index that names the model whose base a rival stands on."""
DTYPES = ("auto", "float32", "bfloat16", "float16")
_BLOB = re.compile(r"^[0-9a-f]{64}$")


@dataclass
class Model:
    """A pipeline and what is known about it.

    Attributes:
        name: as registered, or the name of its folder.
        pipe: ready to paint.
        weights: sha256 by component; what provenance records.
        license: of the weights; empty when unknown.
        world: `sitters` for models that only know Limner's synthetic people, else empty.
        memory: the mode it was loaded in, a name of `limner.pipelines.memory.MODES`.
        fast: the few-step LoRA in its UNet, or None; its dials are then the model's.
    """

    name: str
    pipe: EnrollingPipeline
    weights: dict[str, str]
    license: str = ""
    world: str = ""
    memory: str = "plain"
    fast: FewStep | None = None
    _own_scheduler: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._own_scheduler = self.pipe.scheduler

    def set_scheduler(self, name: str) -> None:
        """Samples with the scheduler called `name` from now on (see `limner.pipelines.schedulers`)."""
        own = self._own_scheduler
        self.pipe.scheduler = own if scheduler_name(own) == name else make_scheduler(name, own)

    def circumstances(self) -> dict[str, Any]:
        """What besides the dials a picture comes from: method and world, and what can change its last bits."""
        import torch

        return {
            "method": self.pipe.method.name,
            "world": self.world,
            "device": self.pipe.device.type,
            "dtype": str(self.pipe.denoiser.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "memory": self.memory,
            "fast": self.fast.name if self.fast else "",
        }


def load_model(
    model: str = DEFAULT,
    *,
    device: str = "auto",
    dtype: str = "auto",
    accept_license: bool = False,
    memory: str = "plain",
    keep_encoder: bool = False,
    fast: str = "",
    method: str = "",
    batch: int = 1,
    size: tuple[int, int] | None = None,
) -> Model:
    """Loads a registered model, or one from a folder that `save_pretrained` (or training) wrote.

    Args:
        model: a name of `limner models`, or a folder.
        device: `auto` (an accelerator if there is one), `cpu`, `cuda`, `cuda:1`, `mps`, ….
        dtype: one of `DTYPES`; `auto` is bfloat16 on CUDA, float16 on MPS, float32 on a CPU.
        accept_license: the user accepts weights that forbid commercial use.
        memory: a name of `limner.pipelines.memory.MODES`, or `auto`: what suits model and device
            (`limner.pipelines.fitting.choose_mode`).
        keep_encoder: with `auto`, no mode that frees the encoder.
        fast: a name of `limner.pipelines.few_step.FEW_STEP`: its LoRA is fetched and put into the UNet.
        method: one of `TUNED`, to paint by it over the base that the model or folder holds; else the model's own.
        batch, size: with `auto`, how many pictures are to be painted at once, and their width and height (None: the
            model's own).

    Raises:
        ConfigError: unknown model, device, dtype, memory mode or LoRA, a mode that needs another device, or a LoRA for
            another base.
        MissingDependency: the mode needs a package that is not installed.
        WeightsUnavailable: the weights are not here and cannot be had; says how to provide them.
        LicenseNotAccepted: the weights' licence was not accepted.
        CorruptData: the folder is damaged, or is no model of Limner's.
    """
    where, number_type = choose_device(device), choose_dtype(dtype, device)
    if memory != "auto":
        demand_device(memory_mode(memory), where)
    quick = few_step(fast) if fast else None
    spec, folder = locate(model, accept_license=accept_license, method=method)
    lora = _few_step_file(quick, spec, folder) if quick else None
    if memory == "auto":
        free = free_memory(where.type, where.index or 0)
        sizes = sizes_of(folder).for_pictures(batch, size)
        memory = choose_mode(where.type, free, sizes, number_type.itemsize, keep_encoder=keep_encoder)
    mode = memory_mode(memory)
    pipe = (
        _tuned_pipeline(method, folder, number_type, mode)
        if method in TUNED
        else load_pipeline(folder, number_type, mode)
    )
    pipe.set_progress_bar_config(disable=True)
    weights = weight_digests(folder)
    if lora is not None:
        apply_lora(pipe, fast, lora, fuse=mode.weights not in PACKAGES)
        weights["unet_lora"] = file_sha256(lora)
    place(pipe, mode, where)
    if where.type == "cpu":
        pipe.denoiser.to(memory_format=_channels_last())
    return Model(
        name=spec.name if spec else folder.resolve().name,
        pipe=pipe,
        weights=weights,
        license=spec.license if spec else "",
        world=str(pipe.config.world),
        memory=memory,
        fast=quick,
    )


def _few_step_file(quick: FewStep, spec: ModelSpec | None, folder: Path) -> Path:
    """The LoRA's file; ConfigError where it cannot suit the model. Of somebody's own model it will show when loaded."""
    if spec is not None and spec.base != quick.base:
        raise ConfigError(
            f"The LoRA of --fast {quick.name} was made for {quick.base}; {spec.name} stands on {spec.base}.",
            "Paint without it, or with a model on that base (see `limner models`).",
        )
    if not (folder / "unet").is_dir() and (folder / "transformer").is_dir():
        raise ConfigError(
            f"The LoRA of --fast {quick.name} was made for a UNet ({quick.base}); {folder} has a transformer.",
            "Paint without it.",
        )
    return quick.file.resolve()


def _tuned_pipeline(method: str, folder: Path, dtype: torch.dtype, mode: MemoryMode) -> EnrollingPipeline:
    from limner.pipelines.tuned import over_base

    if mode.weights in PACKAGES:
        raise ConfigError(f"{method} cannot tune weights that are rounded.", "Load the model with --memory plain.")
    return over_base(method, folder, dtype)


def locate(model: str, *, accept_license: bool = False, method: str = "") -> tuple[ModelSpec | None, Path]:
    """The registered model of that name (None for somebody's own) and its folder, complete; heavy libraries are loaded
    only if something must be converted. For a `method` of `TUNED` the folder may be a bare base.

    Raises:
        ConfigError, WeightsUnavailable, LicenseNotAccepted: as `load_model`.
    """
    if "/" in model or "\\" in model or Path(model).is_dir():
        folder = Path(model)
        if not (folder / INDEX).is_file() and not (method in TUNED and (folder / "unet").is_dir()):
            raise WeightsUnavailable(
                f"{folder} is no folder with a model (it has no {INDEX}).",
                "Give a folder written by training or by save_pretrained, or a name that `limner models` lists.",
            )
        return None, folder
    spec = get_model(model)
    return spec, spec_folder(spec, accept_license=accept_license)


def locate_base(base: str) -> Path:
    """The folder of a base or a model, by path (whether it is whole, `limner.pipelines.dreamidentity.base_parts` says),
    or by name as `locate` has it, with its errors."""
    folder = Path(base)
    return folder if folder.is_dir() else locate(base)[1]


def spec_folder(spec: ModelSpec, *, accept_license: bool = False) -> Path:
    """The folder of a registered model's weights; fetches and converts where that is needed and possible.

    Raises:
        WeightsUnavailable, WeightsMismatch, LicenseNotAccepted, StorageError: see `WeightFile.resolve`.
    """
    folder = model_folder(spec)
    if (folder / INDEX).is_file():
        return folder
    if spec.packaged:
        raise WeightsUnavailable(
            f"The weights of {spec.name} ship with the package, but {folder} has none.",
            "Install Limner again, or give a trained model's folder with --model.",
        )
    if spec.cloned:
        raise WeightsUnavailable(
            f"The weights of {spec.name} are not in the package, but in benchmarks/weights/{spec.cloned} of a clone.",
            "Run Limner from a clone (make install), or give a trained model's folder with --model.",
        )
    if spec.recipe:
        raise WeightsUnavailable(
            f"{spec.name} is trained by its users; {folder} holds no model yet.",
            f"Train it (limner train {spec.recipe}; its header says what it needs), or set {spec.variable} to the "
            "folder of one that was trained.",
        )
    files = resolve_files(spec, accept_license=accept_license)
    from limner.pipelines.convert import convert

    convert(spec.name, files, folder)
    return folder


def load_pipeline(folder: Path, dtype: torch.dtype, mode: MemoryMode | None = None) -> EnrollingPipeline:
    """The pipeline that a folder holds, on the CPU (a UNet with 4-bit weights is on the GPU); weights as the mode says.

    Raises:
        CorruptData: no Limner model in it, or a damaged one.
        WeightsMismatch: weights are missing, or do not fit.
    """
    import importlib

    from safetensors import SafetensorError

    index = folder / INDEX
    try:
        kind = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise CorruptData(f"{index} is damaged ({type(e).__name__}: {e}).") from e
    if kind not in PIPELINES:
        raise CorruptData(
            f"{folder} holds a {kind}, which cannot take a face; Limner paints with {', '.join(PIPELINES)}."
        )
    pipeline = getattr(importlib.import_module(PIPELINES[kind]), kind)
    base = named_base(folder)
    if base is not None:
        from limner.pipelines.slim import over_its_base

        return over_its_base(pipeline, folder, base, dtype)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # diffusers is renaming torch_dtype
            pipe = pipeline.from_pretrained(
                str(folder),
                torch_dtype=dtype,
                local_files_only=True,
                quantization_config=quantization(mode, dtype, pipeline.denoiser_name) if mode else None,
            )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError) as e:
        raise CorruptData(f"The model in {folder} cannot be loaded ({type(e).__name__}: {e}).") from e
    for name in (pipeline.denoiser_name, "vae"):
        _demand_all_weights(folder / name, getattr(pipe, name))
    return pipe


def named_base(folder: Path) -> Path | None:
    """The folder of the base that a model's folder names instead of holding it (`limner.pipelines.slim`), or None."""
    index = folder / INDEX
    try:
        values = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
    except (OSError, ValueError) as e:
        raise CorruptData(f"{index} is damaged ({type(e).__name__}: {e}).") from e
    name = values.get(BASE) if isinstance(values, dict) else None
    return None if name is None else locate(str(name))[1]


def _demand_all_weights(folder: Path, model: Any) -> None:
    """diffusers only warns of weights that a file lacks, and fills them with noise; here that is an error."""
    from safetensors import safe_open

    stored: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(str(file), framework="pt") as f:
            stored |= set(f.keys())
    held = {name for named in (model.named_parameters(), model.named_buffers()) for name, _ in named}
    held = {n for n in held if ".processor." not in n and not n.startswith("encoder_hid_proj.")}  # adapters' own files
    missing = sorted(held & set(model.state_dict()) - stored)  # rounded weights have more in their state than a file
    if missing:
        raise WeightsMismatch(
            f"{folder} lacks {len(missing)} weights of its {type(model).__name__}: {', '.join(missing[:3])}, …",
            "Copy the model's folder again.",
        )


def weight_digests(folder: Path) -> dict[str, str]:
    """sha256 by component: of its safetensors file, or over the digests of several; see `file_digests`."""
    return {component: joined_digest(files) for component, files in file_digests(folder).items()}


def file_digests(folder: Path) -> dict[str, list[str]]:
    """sha256 of every safetensors file, in order of name, by component, with those of the base that a folder names.

    A file in the Hugging Face cache is a link to a blob named by its sha256; that name is believed, not recomputed.

    Raises:
        WeightsUnavailable: no such folder.
        CorruptData: a damaged index.
    """
    if not folder.is_dir():
        raise WeightsUnavailable(f"{folder} is no folder with weights.", "Check the path.")
    base = named_base(folder)
    digests = {} if base is None else file_digests(base)
    for component in sorted(p for p in folder.iterdir() if p.is_dir()):
        files = sorted(component.rglob("*.safetensors"))
        if files:
            digests[component.name] = [_digest(file) for file in files]
    return digests


def joined_digest(files: Sequence[str]) -> str:
    """One digest for a component's files, given those of each."""
    if len(files) == 1:
        return files[0]
    import hashlib

    return hashlib.sha256("".join(files).encode()).hexdigest()


def choose_device(device: str) -> torch.device:
    """The device of that name; `auto` is an accelerator if there is one.

    Raises:
        ConfigError: no such device, or it is not here.
    """
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if _mps() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        reason = str(e).splitlines()[0]
        raise ConfigError(f"device is {device!r}, which this machine does not have ({reason}).") from e
    return chosen


def choose_dtype(dtype: str, device: str = "auto") -> torch.dtype:
    """The torch dtype of that name; `auto` is what suits the device.

    Raises:
        ConfigError: not one of `DTYPES`.
    """
    import torch

    if dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}; allowed: {', '.join(DTYPES)}.")
    if dtype != "auto":
        return getattr(torch, dtype)
    return {"cuda": torch.bfloat16, "mps": torch.float16}.get(choose_device(device).type, torch.float32)


def _digest(path: Path) -> str:
    blob = path.resolve().name
    return blob if path.is_symlink() and _BLOB.match(blob) else file_sha256(path)


def _mps() -> bool:
    import torch

    return torch.backends.mps.is_available()


def _channels_last() -> torch.memory_format:
    import torch

    return torch.channels_last
