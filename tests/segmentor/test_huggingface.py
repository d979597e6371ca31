"""Networks of transformers in this engine: training, regularizers, evaluation, weights, errors."""

import sys

import pytest
import torch
import torch.nn.functional as F
from detectron2.utils.events import EventStorage

from regseg_d2.common.errors import CheckpointError, ConfigError, UserError
from regseg_d2.engine.checkpoint import SafeCheckpointer
from regseg_d2.engine.optim import parameter_groups
from regseg_d2.evaluation.inference import InferenceProtocol, Predictor
from regseg_d2.modeling.huggingface import mask_targets, occurring_classes
from regseg_d2.segmentor.build import build_model
from regseg_d2.segmentor.huggingface import HuggingFaceNetwork
from tests.helpers import IGNORE, NUM_CLASSES, small_batch
from tests.huggingface_networks import CLASSIFY_MASKS, SWIN, TINY, huggingface_cfg

METHODS = ["CAR", "ContrastSeg", "MDRL", "PNE", "RCH", "RegionContrast"]
FAST = ("segformer", "mask2former")
FAMILIES = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in TINY]
MASK_PROJECTION = "network.model.pixel_level_module.decoder.mask_projection:in"
TAPS = {
    "segformer": ("network.decode_head.dropout:in", "network.decode_head.classifier:out"),
    "upernet": ("network.decode_head.classifier:in", "network.decode_head.classifier:out"),
    "beit": ("network.decode_head.classifier:in", "network.decode_head.classifier:out"),
    "dpt": ("network.head.head.3:in", "network.head.head.4:out"),
    "maskformer": (MASK_PROJECTION, "network:masks"),
    "mask2former": (MASK_PROJECTION, "network:masks"),
    "oneformer": (MASK_PROJECTION, "network:masks"),
    "eomt": ("network.upscale_block.block.1.layernorm2d:out#-1", "network:masks"),
}


def make(model_type, regularizers=(), **changes):
    torch.manual_seed(0)
    return build_model(huggingface_cfg(model_type, regularizers, **changes))


def train(model, steps=10):
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    history = []
    with EventStorage():
        for _ in range(steps):
            losses = model(small_batch())
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            history.append({name: loss.item() for name, loss in losses.items()})
    return history


def check_battery(model_type, names):
    model = make(model_type, names)
    history = train(model)
    assert all(torch.isfinite(torch.tensor(list(losses.values()))).all() for losses in history)
    own = {key for r in model.regularizers.values() for key in r.loss_keys}
    assert set(history[0]) == {"loss_sem_seg"} | own
    assert sum(history[-1].values()) < sum(history[0].values())
    plain = make(model_type)
    plain.load_state_dict(model.plain_state_dict(), strict=True)
    assert not [key for key in plain.state_dict() if not key.startswith("network.")]
    model.eval()
    plain.eval()
    batch = small_batch(size=(61, 53))
    with torch.no_grad():
        for ours, theirs in zip(model(batch), plain(batch), strict=True):
            assert ours["sem_seg"].shape == (NUM_CLASSES, 61, 53)
            assert torch.equal(ours["sem_seg"], theirs["sem_seg"])
    return model


@pytest.mark.parametrize("model_type", FAMILIES)
def test_it_trains_with_car_and_evaluates_as_without(model_type):
    model = check_battery(model_type, ["CAR"])
    car = model.regularizers["CAR"]
    assert (car.feature_tap, make(model_type, ["PNE"]).regularizers["PNE"].logits_tap) == TAPS[model_type]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", FAST)
def test_it_trains_with_all_methods(model_type):
    check_battery(model_type, METHODS)


@pytest.mark.parametrize("model_type", ["segformer", "mask2former"])
def test_evaluation_is_that_of_the_network_without_regularizers(model_type):
    cfg = huggingface_cfg(model_type)
    torch.manual_seed(0)
    plain = HuggingFaceNetwork(cfg).eval()
    model = make(model_type, ["CAR"]).eval()
    batch = small_batch(size=(61, 53))
    with torch.no_grad():
        assert torch.equal(plain(batch)[1]["sem_seg"], model(batch)[1]["sem_seg"])


# ------------------------------------------------------------------------------------------- evaluation


def post_processed(model, pixels, size):
    """What transformers itself makes of the network's output, before its argmax."""
    import transformers

    names = {
        "segformer": "Segformer",
        "upernet": "Segformer",  # it has none of its own
        "beit": "Beit",
        "dpt": "DPT",
        "maskformer": "MaskFormer",
        "mask2former": "Mask2Former",
        "oneformer": "OneFormer",
        "eomt": "Eomt",
    }
    model_type = model.network.config.model_type
    kind = getattr(transformers, f"{names[model_type]}ImageProcessor")
    processor = kind.__new__(kind)  # its constructor reads files for OneFormer; the method uses no state
    further = {}
    if model_type == "eomt":
        further["size"] = {"shortest_edge": model.network.config.image_size, "longest_edge": None}
    arguments = {}
    if model_type == "oneformer":
        tokens = torch.zeros(len(pixels), 77)
        tokens[:, :7] = torch.tensor([49406.0, 518, 10549, 533, 29119, 1550, 49407])
        arguments["task_inputs"] = tokens
    with torch.no_grad():
        output = model.network(pixels, **arguments)
    results = processor.post_process_semantic_segmentation(
        output, target_sizes=[size], return_segmentation_scores=True, **further
    )
    return results[0].segmentation_scores


@pytest.mark.parametrize("model_type", FAMILIES)
def test_scores_are_those_of_transformers_post_processing(model_type):
    # Mask2Former's post-processing takes every input to have been 384 x 384.
    side = 384 if model_type == "mask2former" else 64
    # DPT's logits are near zero with small random weights.
    changes = {"initializer_range": 0.5} if model_type == "dpt" else {}
    model = make(model_type, **changes).eval()
    image = small_batch(1, size=(side - 3, side - 11))[0]["image"]
    pixels = (image - model.pixel_mean) / model.pixel_std
    padded = F.pad(pixels, (0, 11, 0, 3)).unsqueeze(0)
    expected = post_processed(model, padded, (side, side))[:, : side - 3, : side - 11]
    with torch.no_grad():
        ours = model([{"image": image}])[0]["sem_seg"]
    assert expected.std() > 1e-4
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    # At another size of the prediction, and through the predictor, which never holds all scores.
    resized = F.interpolate(expected[None], size=(77, 45), mode="bilinear", align_corners=False)[0]
    sample = {"image": image, "height": 77, "width": 45}
    with torch.no_grad():
        torch.testing.assert_close(model([sample])[0]["sem_seg"], resized, rtol=1e-5, atol=1e-5)
    for mode in ("whole", "slide"):
        predictor = Predictor(model, InferenceProtocol(mode=mode, crop_size=(384, 384), stride=(256, 256)))
        scores = predictor.scores([sample])[0]["sem_seg"]
        torch.testing.assert_close(scores, resized, rtol=1e-5, atol=1e-5)
        assert torch.equal(predictor([sample])[0]["sem_seg_labels"], scores.argmax(0).to(torch.uint8))


@pytest.mark.parametrize("model_type", ["segformer", "maskformer"])
def test_without_padding_it_is_the_whole_input_at_an_odd_size(model_type):
    model = make(model_type).eval()
    image = small_batch(1, size=(61, 77))[0]["image"]
    pixels = ((image - model.pixel_mean) / model.pixel_std).unsqueeze(0)
    expected = post_processed(model, pixels, (61, 77))
    scores = Predictor(model, InferenceProtocol(padding="none")).scores([{"image": image}])[0]["sem_seg"]
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", ["segformer", "mask2former"])
def test_views_are_averaged_as_probabilities(model_type):
    model = make(model_type).eval()
    image = small_batch(1, size=(64, 96))[0]["image"]
    single = Predictor(model, InferenceProtocol())
    views = [single.scores([{"image": x}])[0]["sem_seg"] for x in (image, image.flip(-1))]
    # A network that classifies masks gives probabilities already.
    if model_type == "segformer":
        views = [view.softmax(0) for view in views]
    averaged = Predictor(model, InferenceProtocol(flip=True)).scores([{"image": image}])[0]["sem_seg"]
    torch.testing.assert_close(averaged, (views[0] + views[1].flip(-1)) / 2)
    assert Predictor(model, InferenceProtocol(scales=(0.5, 1.0), flip=True))([{"image": image}])


def test_images_of_different_sizes_are_a_batch():
    model = make("segformer").eval()
    images = [small_batch(1, size=size)[0]["image"] for size in ((40, 64), (64, 50))]
    with torch.no_grad():
        results = model([{"image": image} for image in images])
    assert [tuple(r["sem_seg"].shape) for r in results] == [(NUM_CLASSES, 40, 64), (NUM_CLASSES, 64, 50)]
    model.train()
    batch = [{"image": image, "sem_seg": torch.zeros(image.shape[-2:], dtype=torch.long)} for image in images]
    assert torch.isfinite(model(batch)["loss_sem_seg"])


def test_a_network_of_one_size_says_so():
    model = make("eomt").eval()
    image = small_batch(1, size=(80, 64))[0]["image"]
    with pytest.raises(UserError, match=r"eomt takes images of 64 x 64.*got 80 x 64.*TEST.MODE slide"):
        model([{"image": image}])
    slide = InferenceProtocol(mode="slide", crop_size=(64, 64), stride=(48, 48))
    assert Predictor(model, slide)([{"image": image}])[0]["sem_seg_labels"].shape == (80, 64)
    dpt = make("dpt").eval()
    with torch.no_grad():  # the network takes the root of the number of patches for both sides
        assert dpt([{"image": image}])[0]["sem_seg"].shape == (NUM_CLASSES, 80, 64)
    with pytest.raises(UserError, match="TEST.PADDING is 'none', and dpt takes square images"):
        Predictor(dpt, InferenceProtocol(padding="none"))([{"image": image}])


# ---------------------------------------------------------------------------------------------- targets


def test_masks_are_those_of_the_classes_that_occur():
    labels = torch.tensor([[[0, 3, 3], [255, 0, 4]], [[255, 255, 255], [255, 255, 255]]])
    classes = [occurring_classes(image, NUM_CLASSES) for image in labels]
    masks, ids = mask_targets(labels, classes, torch.float32)
    assert [x.tolist() for x in ids] == [[0, 3, 4], []]
    for image, image_masks, image_ids in zip(labels, masks, ids, strict=True):
        assert image_masks.shape == (len(image_ids), 2, 3) and image_masks.dtype == torch.float32
        for mask, k in zip(image_masks, image_ids, strict=True):
            assert mask.tolist() == [[float(pixel == k) for pixel in row] for row in image.tolist()]
    assert occurring_classes(torch.tensor([[7, -1]]), NUM_CLASSES).tolist() == []


@pytest.mark.parametrize("model_type", CLASSIFY_MASKS)
@pytest.mark.parametrize("labels", ["void", "class_zero"])
def test_losses_are_finite_without_a_valid_pixel(model_type, labels):
    model = make(model_type, ["CAR"])
    losses = model(small_batch(labels=labels))
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(g).all() for g in gradients)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", TINY)
def test_a_step_in_bf16(model_type):
    model = make(model_type, ["CAR"])
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(small_batch())
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_void_is_what_the_networks_own_loss_leaves_out():
    model = make("segformer", classifier_dropout_prob=0.0)
    batch = small_batch()
    changed = [{**sample, "image": sample["image"].clone()} for sample in batch]
    loss = model(batch)["loss_sem_seg"]
    pixels = torch.stack([(x["image"] - model.pixel_mean) / model.pixel_std for x in changed])
    logits = model.network(pixels).logits
    logits = F.interpolate(logits, size=(64, 64), mode="bilinear", align_corners=False)
    target = torch.stack([x["sem_seg"] for x in batch])
    assert (target == IGNORE).any()
    torch.testing.assert_close(loss, F.cross_entropy(logits, target, ignore_index=IGNORE))


# ------------------------------------------------------------------------------------ families, configs


def test_an_unknown_family_trains_where_it_is_told_the_classifier():
    changes = {"depth_multiplier": 0.25, "image_size": 64}
    with pytest.raises(ConfigError, match=r"CLASSIFIER is 'auto'.*With 5 outputs there are \['network\.seg"):
        make("mobilenet_v2", ["CAR"], **changes)
    cfg = huggingface_cfg("mobilenet_v2", ["CAR"], **changes)
    cfg.MODEL.REGULARIZERS.CAR.CLASSIFIER = "network.segmentation_head.classifier.convolution"
    losses = build_model(cfg)(small_batch())
    assert len(losses) == 4 and all(torch.isfinite(loss) for loss in losses.values())


def test_the_backbone_has_its_own_rate():
    cfg = huggingface_cfg("mask2former")
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1
    cfg.SOLVER.BASE_LR = 1.0
    model = build_model(cfg)
    slow = {p for group in parameter_groups(cfg, model) if group["lr"] < 0.5 for p in group["params"]}
    assert slow == set(model.network.model.pixel_level_module.encoder.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MODEL.HUGGINGFACE.CONFIG.num_querys": 5}, "CONFIG.num_querys: .*no such value.*num_queries"),
        ({"MODEL.HUGGINGFACE.CONFIG.backbone_config.dephts": 5}, "backbone_config.dephts: .*depths"),
        ({"MODEL.HUGGINGFACE.CONFIG.num_queries": "many"}, "CONFIG: .*num_queries.*many"),
        ({"MODEL.HUGGINGFACE.MODEL_TYPE": "mask2fromer"}, "MODEL_TYPE is 'mask2fromer'.*mask2former"),
        ({"MODEL.HUGGINGFACE.MODEL_TYPE": ""}, "NAME is '' and MODEL.HUGGINGFACE.MODEL_TYPE ''"),
        ({"MODEL.SEM_SEG_HEAD.CLASS_WEIGHTS": [1.0] * 5}, "losses of their own"),
    ],
)
def test_a_key_that_cannot_be_used_is_named(changes, message):
    cfg = huggingface_cfg("mask2former")
    for key, value in changes.items():
        *path, last = key.split(".")
        node = cfg
        for name in path:
            node = node[name]
        node[last] = value
    with pytest.raises(ConfigError, match=message):
        build_model(cfg)


@pytest.mark.parametrize("model_type", ["bert", "detr"])
def test_other_networks_of_transformers_are_refused(model_type):
    with pytest.raises(ConfigError, match=f"type '{model_type}' gives no semantic segmentation"):
        make(model_type)


def test_oneformer_with_texts_is_refused():
    with pytest.raises(ConfigError, match="is_training of OneFormer's config is True.*tokenizer"):
        make("oneformer", is_training=True)


def test_without_transformers_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match="transformers cannot be imported .*pip install 'transformers>=5'"):
        make("segformer")


# ---------------------------------------------------------------------------------------------- weights


def named_cfg(name, **keys):
    cfg = huggingface_cfg("")
    cfg.MODEL.HUGGINGFACE.NAME = str(name)
    for key, value in keys.items():
        cfg.MODEL.HUGGINGFACE[key] = value
    return cfg


def load(cfg, folder, *, evaluate=False):
    torch.manual_seed(1)
    model = build_model(cfg)
    checkpointer = SafeCheckpointer(model, str(folder), cfg=cfg)
    if evaluate:
        checkpointer.load_for_evaluation("")
    else:
        checkpointer.resume_or_load("", resume=False)
    return model, checkpointer


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model = make("segformer")
    folder = tmp_path_factory.mktemp("saved")
    model.network.save_pretrained(folder)
    return folder, model.state_dict()


@pytest.mark.parametrize("evaluate", [False, True])
def test_a_folder_gives_network_and_weights(saved, tmp_path, evaluate):
    folder, state = saved
    model, checkpointer = load(named_cfg(folder), tmp_path, evaluate=evaluate)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert checkpointer.backbone_is_loaded
    random, _ = load(named_cfg(folder, PRETRAINED=False), tmp_path)
    assert not torch.equal(
        random.network.decode_head.classifier.weight, state["network.decode_head.classifier.weight"]
    )


def test_other_classes_have_a_new_classifier_in_training_and_are_an_error_in_evaluation(saved, tmp_path):
    folder, state = saved
    cfg = named_cfg(folder)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 7
    model, _ = load(cfg, tmp_path)
    assert model.network.decode_head.classifier.weight.shape[0] == 7
    key = "network.decode_head.linear_fuse.weight"
    assert torch.equal(model.state_dict()[key], state[key])
    with pytest.raises(CheckpointError, match=r"does not fit the model(.|\n)*classifier"):
        load(cfg, tmp_path, evaluate=True)


def test_values_of_a_named_config_can_be_changed(tmp_path):
    make("mask2former").network.save_pretrained(tmp_path)
    cfg = named_cfg(tmp_path)
    cfg.MODEL.HUGGINGFACE.CONFIG["backbone_config"] = type(cfg)({"drop_path_rate": 0.25})
    config = build_model(cfg).network.config
    assert config.backbone_config.drop_path_rate == 0.25
    assert config.backbone_config.embed_dim == SWIN["embed_dim"]


def test_a_pickle_that_runs_code_is_refused(saved, tmp_path):
    folder, _ = saved
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())

    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"x": Harmful()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="is the folder .* which cannot be read"):
        load(named_cfg(tmp_path), tmp_path / "run")
    assert not (tmp_path / "ran").exists()


def test_a_name_that_cannot_be_had_says_which_files_to_fetch(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = (
        r"NAME is 'nobody/nothing': there is no such folder.*fetch config.json and model.safetensors from "
        r"https://huggingface.co/nobody/nothing/tree/main"
    )
    with pytest.raises(ConfigError, match=message):
        build_model(named_cfg("nobody/nothing"))
    with pytest.raises(ConfigError, match=r"is the folder .*Expected config.json and model.safetensors"):
        build_model(named_cfg(tmp_path))
