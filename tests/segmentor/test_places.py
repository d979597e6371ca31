"""A method once more at another place: names, keys, taps, losses, state."""

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from regseg_d2.common.errors import ConfigError
from regseg_d2.config.files import format_config, load_config, load_config_with_origins
from regseg_d2.config.keys import flatten_config
from regseg_d2.regularizers.recorder import TapRecorder
from regseg_d2.segmentor.places import classified_feature_tap, find_place
from regseg_d2.segmentor.regularizers import split_name, with_place_keys
from tests.helpers import small_batch, small_cfg

PREFIX = "MODEL.REGULARIZERS."
BOTH = """
MODEL:
  REGULARIZERS:
    NAMES: [CAR, CAR@aux]
    CAR: {EPS_C2C: 0.3}
    CAR@aux: {WEIGHT: 0.5}
"""


def write(folder, text, name="x.yaml"):
    path = folder / name
    path.write_text(text)
    return str(path)


def placed_cfg(place="CAR@aux", **keys):
    """CAR at both classifiers of a head with an auxiliary one; with keys of one place's section."""
    cfg = small_cfg("FCN-linear", ["CAR", "CAR@aux"])
    cfg.MODEL.REGULARIZERS[place] = CfgNode(keys)
    return cfg


def parts_of(model):
    return nn.ModuleDict({"backbone": model.backbone, "sem_seg_head": model.sem_seg_head})


# ----------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("name", "parts"),
    [("PNE", ("PNE", "")), ("PNE@aux", ("PNE", "aux")), ("CAR@low-level_2", ("CAR", "low-level_2"))],
)
def test_names_are_split(name, parts):
    assert split_name(name) == parts


@pytest.mark.parametrize("name", ["CAR@", "@aux", "CAR@aux@aux", "CAR@a.b", "CAR @aux", ""])
def test_names_that_are_none(name):
    with pytest.raises(ConfigError, match=r"NAMES has .*such as 'PNE@aux'"):
        build_model(small_cfg("FCN-linear", [name]))


def test_a_place_section_from_yaml_and_from_the_command_line(tmp_path):
    path = write(tmp_path, BOTH)
    cfg, origins = load_config_with_origins(path)
    assert cfg.MODEL.REGULARIZERS["CAR@aux"] == {"WEIGHT": 0.5}
    assert cfg.MODEL.REGULARIZERS.CAR.WEIGHT == 1.0
    assert origins[f"{PREFIX}CAR@aux.WEIGHT"] == path
    opts = [
        f"{PREFIX}CAR@aux.WEIGHT",
        "0.25",
        f"{PREFIX}CAR@aux.CENTERS",
        "ema",
        f"{PREFIX}CAR@aux.POOL",
        "2",
    ]
    cfg, origins = load_config_with_origins(path, opts)
    assert cfg.MODEL.REGULARIZERS["CAR@aux"] == {"WEIGHT": 0.25, "CENTERS": "ema", "POOL": 2}
    assert origins[f"{PREFIX}CAR@aux.WEIGHT"] == "command line"
    # The whole number becomes the number that the key wants.
    weight = load_config("", [f"{PREFIX}CAR@aux.WEIGHT", "2"]).MODEL.REGULARIZERS["CAR@aux"].WEIGHT
    assert (weight, type(weight)) == (2.0, float)
    # A text stays a text.
    assert load_config("", [f"{PREFIX}CAR@aux.FEATURES", "7"]).MODEL.REGULARIZERS["CAR@aux"].FEATURES == "7"
    assert not any("@" in key for key in flatten_config(load_config("")))


def test_a_leaf_changes_keys_of_the_section_in_its_base(tmp_path):
    write(tmp_path, "MODEL: {REGULARIZERS: {CAR@aux: {WEIGHT: 0.5, POOL: 2}}}", "base.yaml")
    leaf = write(tmp_path, "_BASE_: base.yaml\nMODEL: {REGULARIZERS: {CAR@aux: {WEIGHT: 0.1}}}")
    assert load_config(leaf).MODEL.REGULARIZERS["CAR@aux"] == {"WEIGHT": 0.1, "POOL": 2}


def test_keys_fall_through_to_the_section_of_the_method(tmp_path):
    cfg = load_config(write(tmp_path, BOTH))
    section = with_place_keys(cfg, "CAR@aux").MODEL.REGULARIZERS.CAR
    assert (section.WEIGHT, section.EPS_C2C) == (0.5, 0.3)
    assert with_place_keys(cfg, "CAR") is cfg
    # The config itself is left alone.
    assert cfg.MODEL.REGULARIZERS.CAR.WEIGHT == 1.0
    cfg.freeze()
    assert with_place_keys(cfg, "CAR@aux").MODEL.REGULARIZERS.CAR.WEIGHT == 0.5


def test_where_the_method_listens_is_not_taken_over():
    cfg = load_config("", [f"{PREFIX}CAR.FEATURES", "backbone:out[res5]", f"{PREFIX}CAR@aux.WEIGHT", "0.5"])
    section = with_place_keys(cfg, "CAR@aux").MODEL.REGULARIZERS.CAR
    assert (section.FEATURES, section.CLASSIFIER) == ("auto", "sem_seg_head.auxiliary.predictor")
    # A place that is a tap alone keeps the classifier.
    cfg = load_config(
        "", [f"{PREFIX}CAR.CLASSIFIER", "head.predictor", f"{PREFIX}CAR@low.FEATURES", "backbone:out[res2]"]
    )
    section = with_place_keys(cfg, "CAR@low").MODEL.REGULARIZERS.CAR
    assert (section.FEATURES, section.CLASSIFIER) == ("backbone:out[res2]", "head.predictor")


WRONG = {
    "misspelt key": (
        "CAR@aux: {WEIGTH: 1.0}",
        r"x.yaml: unknown key '{p}CAR@aux.WEIGTH'.*'{p}CAR@aux.WEIGHT'",
    ),
    "misspelt method": ("CARR@aux: {WEIGHT: 1.0}", r"unknown key '{p}CARR@aux.WEIGHT'.*'{p}CAR@aux.WEIGHT'"),
    "key of another method": ("CAR@aux: {IMS_PER_BATCH: 1}", r"unknown key '{p}CAR@aux.IMS_PER_BATCH'"),
    "wrong type": (
        "CAR@aux: {WEIGHT: much}",
        r"x.yaml: '{p}CAR@aux.WEIGHT' is 'much' \(str\); expected a number",
    ),
    "value for section": ("CAR@aux: 3", r"unknown key '{p}CAR@aux'"),
    "twice": ("CAR@aux: {WEIGHT: 1.0, WEIGHT: 2.0}", "'WEIGHT' is written twice"),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors_in_a_place_section(tmp_path, case):
    text, message = WRONG[case]
    with pytest.raises(ConfigError, match="(?s)" + message.replace("{p}", PREFIX.replace(".", r"\."))):
        load_config(write(tmp_path, f"MODEL: {{REGULARIZERS: {{{text}}}}}"))


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (
            ["CAR@aux.WEIGTH", "1"],
            "command line: unknown key .*CAR@aux.WEIGTH.*did you mean .*CAR@aux.WEIGHT",
        ),
        (["CAR@aux.WEIGHT", "much"], "command line: .*CAR@aux.WEIGHT' is 'much'"),
    ],
)
def test_override_errors_in_a_place_section(opts, message):
    with pytest.raises(ConfigError, match=message):
        load_config("", [PREFIX + opts[0], opts[1]])


def test_printed_config_loads_again(tmp_path):
    path = write(tmp_path, BOTH)
    cfg, origins = load_config_with_origins(path, [f"{PREFIX}CAR@aux.POOL", "2"])
    text = format_config(cfg, origins)
    assert f"WEIGHT: 0.5  # {path}" in text
    assert "POOL: 2  # command line" in text
    again = load_config(write(tmp_path, text, "printed.yaml"))
    assert format_config(again) == format_config(cfg)
    assert again.MODEL.REGULARIZERS == cfg.MODEL.REGULARIZERS


# --------------------------------------------------------------------------------------------- places


def test_both_places_are_regularized_with_their_own_keys():
    torch.manual_seed(0)
    cfg = placed_cfg(WEIGHT=0.5, INTER_C2C_WEIGHT=0.0)
    model = build_model(cfg)
    main, aux = model.regularizers["CAR"], model.regularizers["CAR@aux"]
    assert (main.name, aux.name) == ("car", "car@aux")
    assert main.feature_tap == "sem_seg_head.projection.linear:out"
    assert aux.feature_tap == "sem_seg_head.auxiliary.dropout:in"
    assert aux.loss_keys == ("loss_car@aux_intra_c2p", "loss_car@aux_inter_c2p")
    assert set(main.weights.values()) == {1.0}
    assert set(aux.weights.values()) == {0.5}
    losses = model(small_batch())
    assert {key for key in losses if "car" in key} == {*main.loss_keys, *aux.loss_keys}
    gradient = torch.autograd.grad(
        losses["loss_car@aux_intra_c2p"], list(model.parameters()), allow_unused=True
    )
    reached = {
        name.split(".")[1]
        for (name, _), g in zip(model.named_parameters(), gradient, strict=True)
        if g is not None and g.abs().sum() > 0 and name.startswith("sem_seg_head.")
    }
    assert reached == {"auxiliary"}


def test_the_value_at_a_place_is_that_of_the_method_with_this_classifier():
    losses = []
    for names, classifier in (["CAR@aux"], "auto"), (["CAR"], "sem_seg_head.auxiliary.predictor"):
        torch.manual_seed(0)
        cfg = small_cfg("FCN-linear", names, SEM_SEG_HEAD__AUX__DROPOUT=0.0)
        cfg.MODEL.REGULARIZERS.CAR.CLASSIFIER = classifier
        losses.append(build_model(cfg)(small_batch()))
    assert losses[0]["loss_car@aux_intra_c2p"] == losses[1]["loss_car_intra_c2p"]
    assert losses[0]["loss_car@aux_intra_c2p"] > 0


@pytest.mark.parametrize("written", [{}, {"CLASSIFIER": "auto"}])
def test_auto_at_aux_is_the_auxiliary_classifier(written):
    cfg = placed_cfg(**written)
    assert build_model(cfg).regularizers["CAR@aux"].feature_tap == "sem_seg_head.auxiliary.dropout:in"


def test_another_place_is_told_by_a_tap_or_a_classifier():
    cfg = small_cfg("FCN-linear", ["CAR@low", "CAR@again"])
    cfg.MODEL.REGULARIZERS["CAR@low"] = CfgNode({"FEATURES": "backbone:out[res2]"})
    cfg.MODEL.REGULARIZERS["CAR@again"] = CfgNode({"CLASSIFIER": "sem_seg_head.predictor"})
    torch.manual_seed(0)
    model = build_model(cfg)
    assert model.regularizers["CAR@low"].feature_tap == "backbone:out[res2]"
    assert model.regularizers["CAR@again"].feature_tap == "sem_seg_head.dropout:in"
    losses = model(small_batch())
    assert losses["loss_car@low_intra_c2p"] > 0
    assert losses["loss_car@again_intra_c2p"] > 0
    assert find_place(with_place_keys(cfg, "CAR@low"), parts_of(model), "CAR").channels == 64


def test_a_module_that_does_not_tell_its_channels_is_asked_in_a_forward():
    cfg = small_cfg("FCN", ["PNE"], REGULARIZERS__PNE__FEATURES="backbone.network.layer2:out")
    model = build_model(cfg)
    assert model.regularizers["PNE"].projection.hidden.in_channels == 128
    assert torch.isfinite(model(small_batch())["loss_pne_contrast"])


OPTIONS = {
    "PNE": {"SCOPE": "world", "CHANNELS": 0, "UNTIL_ITER": 3},
    "MDRL": {"SINKHORN_LAMBDA": 0.001, "LOCAL_WEIGHT": -1.0},
    "RCH": {"CHANNELS": 0, "WARMUP_METHOD": "cosine"},
}


@pytest.mark.parametrize(
    ("method", "key"), [(method, key) for method, keys in OPTIONS.items() for key in keys]
)
def test_errors_of_a_constructor_name_the_key(method, key):
    cfg = small_cfg("FCN", [method])
    cfg.MODEL.REGULARIZERS[method].WARMUP_ITERS = 3
    cfg.MODEL.REGULARIZERS[method][key] = OPTIONS[method][key]
    named = "WEIGHT" if "WEIGHT" in key else key
    with pytest.raises(ConfigError, match=rf"^MODEL.REGULARIZERS.{method}.{named} is .*; expected "):
        build_model(cfg)


PLACE_ERRORS = {
    "unknown place": (
        "FCN-linear",
        "CAR@middle",
        {},
        r"CAR@middle.*nothing says where 'middle' is.*CLASSIFIER",
    ),
    "unknown place, auto": (
        "FCN-linear",
        "CAR@middle",
        {"FEATURES": "auto"},
        "nothing says where 'middle' is",
    ),
    "no auxiliary head": ("FCN", "CAR@aux", {}, r"no auxiliary head: set MODEL.SEM_SEG_HEAD.AUX.IN_FEATURE"),
    "Detectron2's head": ("DeepLabV3", "CAR@aux", {}, "no auxiliary head"),
    "misspelt tap": ("FCN", "CAR@low", {"FEATURES": "bakbone:out[res2]"}, r"CAR\.FEATURES.*'backbone'"),
    "misspelt entry": ("FCN", "CAR@low", {"FEATURES": "backbone:out[res9]"}, r"res9.*it has \['res2'"),
    "misspelt classifier": (
        "FCN",
        "CAR@x",
        {"CLASSIFIER": "sem_seg_head.predicter"},
        r"CAR@x: .*CAR\.CLASSIFIER.*sem_seg_head\.predictor",
    ),
}


@pytest.mark.parametrize("case", PLACE_ERRORS)
def test_errors_of_places(case):
    head, name, keys, message = PLACE_ERRORS[case]
    cfg = small_cfg(head, [name])
    if keys:
        cfg.MODEL.REGULARIZERS[name] = CfgNode(keys)
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        build_model(cfg)


def test_the_same_name_twice_and_an_unknown_method():
    with pytest.raises(ConfigError, match=r"names a regularizer twice.*'PNE@aux'"):
        build_model(small_cfg("FCN-linear", ["CAR@aux", "CAR@aux"]))
    with pytest.raises(ConfigError, match=r"unknown name 'CARR' \(did you mean 'CAR'"):
        build_model(small_cfg("FCN-linear", ["CARR@aux"]))


def test_a_section_whose_name_is_not_used_is_said(caplog):
    cfg = placed_cfg("CAR@axu", WEIGHT=0.5)
    build_model(cfg)
    assert "CAR@axu has keys, and is not in MODEL.REGULARIZERS.NAMES" in caplog.text
    assert "did you mean 'CAR@aux'" in caplog.text
    caplog.clear()
    cfg.MODEL.REGULARIZERS.NAMES = []  # a baseline with the keys of its base
    build_model(cfg)
    assert caplog.text == ""


def test_state_of_places_is_their_own_and_in_the_state_dict():
    cfg = placed_cfg(CENTERS="ema")
    torch.manual_seed(0)
    model = build_model(cfg)
    model(small_batch())
    state = {key: value for key, value in model.state_dict().items() if key.startswith("regularizers.")}
    own = {key for key in state if key.startswith("regularizers.CAR@aux.")}
    assert own == {
        f"regularizers.CAR@aux.{name}"
        for name in ("num_forwards", "zero_streaks", "ema.centers", "ema.counts")
    }
    assert "regularizers.CAR.ema.centers" not in state
    other = build_model(cfg)
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(other.regularizers["CAR@aux"].ema.centers, model.regularizers["CAR@aux"].ema.centers)
    assert other.regularizers["CAR@aux"].ema.counts.sum() > 0


@pytest.mark.parametrize("method", ["PNE", "RCH", "RegionContrast", "ContrastSeg"])
def test_a_classifier_with_other_outputs_than_classes_is_refused_where_logits_are_read(method):
    cfg = small_cfg("FCN", [method])
    cfg.MODEL.REGULARIZERS[method].CLASSIFIER = "net.hidden"
    network = nn.ModuleDict({"net": nn.Sequential()})
    classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    network.net.add_module("hidden", nn.Conv2d(4, classes + 3, 1))
    network.net.add_module("last", nn.Conv2d(classes + 3, classes, 1))
    with pytest.raises(
        ConfigError, match=rf"has {classes + 3} outputs, and there are {classes} classes.*'net.last'"
    ):
        find_place(cfg, network, method)
    assert find_place(cfg, network, method, reads_logits=False).channels == 4


# ---------------------------------------------------------------------------------------------- masks


class QueryDecoder(nn.Module):
    """A decoder that classifies masks, or, as MaskFormer's baseline, has a query a class."""

    def __init__(self, mask_classification):
        super().__init__()
        self.mask_classification = mask_classification

    def forward(self, features):
        return {"pred_logits": features.mean((2, 3))[:, None], "pred_masks": features[:, :5]}


class MaskHead(nn.Module):
    def __init__(self, mask_classification):
        super().__init__()
        self.pixel_decoder = nn.Sequential()
        self.pixel_decoder.mask_features = nn.Conv2d(3, 6, 1)
        self.predictor = QueryDecoder(mask_classification)


class MaskNetwork(nn.Module):
    def __init__(self, mask_classification=True):
        super().__init__()
        self.sem_seg_head = MaskHead(mask_classification)

    def forward(self, images):
        return self.sem_seg_head.predictor(self.sem_seg_head.pixel_decoder.mask_features(images))


def test_networks_that_classify_masks_are_regularized_on_what_their_masks_are_made_of():
    cfg = small_cfg("FCN", ["ContrastSeg"])
    place = find_place(cfg, MaskNetwork(), "ContrastSeg")
    assert place.feature_tap == "sem_seg_head.pixel_decoder.mask_features:in"
    assert place.logits_tap == "sem_seg_head.predictor:masks"
    assert place.channels == 3
    section = cfg.MODEL.REGULARIZERS.ContrastSeg
    section.CLASSIFIER = "sem_seg_head.predictor:masks[2]"
    section.FEATURES = "sem_seg_head.pixel_decoder.mask_features:out"
    place = find_place(cfg, MaskNetwork(), "ContrastSeg")
    assert (place.feature_tap, place.channels) == (section.FEATURES, 6)
    assert place.logits_tap == section.CLASSIFIER


def test_a_query_a_class_gives_logits_of_pixels_by_itself():
    place = find_place(small_cfg("FCN", ["ContrastSeg"]), MaskNetwork(False), "ContrastSeg")
    assert place.logits_tap == "sem_seg_head.predictor:out[pred_masks]"
    assert place.feature_tap == "sem_seg_head.pixel_decoder.mask_features:in"


def test_masks_of_an_unknown_network_need_their_features():
    cfg, network = small_cfg("FCN", ["ContrastSeg"]), MaskNetwork()
    del network.sem_seg_head.pixel_decoder
    cfg.MODEL.REGULARIZERS.ContrastSeg.CLASSIFIER = "sem_seg_head.predictor:masks"
    with pytest.raises(ConfigError, match=r"FEATURES is 'auto', and nothing tells what the masks of"):
        find_place(cfg, network, "ContrastSeg")


def test_the_feature_of_a_built_model_is_what_its_classifier_reads():
    model = build_model(small_cfg("FCN"))
    tap = classified_feature_tap(model)
    model.eval()
    recorder = TapRecorder(model, [tap, "sem_seg_head.predictor:in"])
    with torch.no_grad(), recorder.record(model) as taps:
        model(small_batch(1))
    # In evaluation a dropout in between changes nothing.
    assert torch.equal(taps[tap], taps["sem_seg_head.predictor:in"])
    assert classified_feature_tap(MaskNetwork()) == "sem_seg_head.pixel_decoder.mask_features:in"
    del model.sem_seg_head.predictor
    with pytest.raises(ConfigError, match="has no classifier 'sem_seg_head.predictor'"):
        classified_feature_tap(model)
    with pytest.raises(ConfigError, match="Linear has no classifier"):
        classified_feature_tap(nn.Linear(1, 1))


def test_car_without_its_linear_convolution_is_said_to_be_not_its_papers(caplog):
    build_model(small_cfg("FCN", ["CAR"]))
    assert "CAR reads sem_seg_head.dropout:in: the paper's CAR has a linear convolution there" in caplog.text
    assert "MODEL.SEM_SEG_HEAD.PROJECTION LinearConvBlock and PROJECTION_KERNEL_SIZE 1" in caplog.text
    caplog.clear()
    build_model(small_cfg("FCN-linear", ["CAR"]))  # as the warning says
    cfg = small_cfg("FCN", ["CAR"])
    cfg.MODEL.REGULARIZERS.CAR.FEATURES = "sem_seg_head.dropout:in"  # somebody means it
    build_model(cfg)
    build_model(small_cfg("FCN", ["RCH", "MDRL", "ContrastSeg"]))
    assert caplog.text == ""
