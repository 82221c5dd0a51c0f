"""The custom pipeline file, loaded the way diffusers loads such files, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FILE = Path(__file__).resolve().parents[2] / "community" / "limner_faceclip.py"
CODE = """
import sys
import numpy as np
import torch
from diffusers import DiffusionPipeline
from skimage.data import astronaut

folder, file = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=file, trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
photo = astronaut()[:300, 100:400]
once = pipe("a chef", photo, generator=torch.Generator().manual_seed(1)).images[0]

from limner.pipelines.faceclip import FaceCLIPPipeline
own = FaceCLIPPipeline.from_pretrained(folder)
own.set_progress_bar_config(disable=True)
twice = own("a chef", photo, generator=torch.Generator().manual_seed(1)).images[0]
print(type(pipe) is FaceCLIPPipeline, once.size, np.array_equal(np.asarray(once), np.asarray(twice)))
"""


def test_diffusers_loads_the_file_and_paints_the_same_picture(tiny_folder: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tiny_folder), str(FILE)],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "(64,", "64)", "True"]
