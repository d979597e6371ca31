"""MDRL as a stage of the head: its equations, its memory in training, checkpoint and evaluation."""

import copy

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import SemanticSegmentor, build_model
from detectron2.utils.events import EventStorage

from regseg_d2.common.errors import ConfigError
from regseg_d2.modeling.norms import resolve_auto_norm
from regseg_d2.segmentor.export import inference_model
from tests.helpers import IGNORE, NUM_CLASSES, small_batch, small_cfg
from tests.references.mdrl import attention, voted_maps

CONTEXTS = ("FCN", "PPM", "ASPP")
MEMORY = "sem_seg_head.augment.memory.distributions"


def make_cfg(context="FCN", regularizers=("MDRL",), **overrides):
    keys = {
        "SEM_SEG_HEAD__CONTEXT": context,
        "SEM_SEG_HEAD__AUGMENT": "MDRL",
        "REGULARIZERS__MDRL__NUM_DISTRIBUTIONS": 3,
        **overrides,
    }
    # ASPP comes with a low-level skip behind the stage.
    return small_cfg("ASPP" if context == "ASPP" else "FCN", regularizers, **keys)


def make_model(context="FCN", **overrides):
    torch.manual_seed(1)
    return build_model(make_cfg(context, **overrides))


def train(model, steps=2):
    for seed in range(steps):
        losses = model(small_batch(seed=seed))
        sum(losses.values()).backward()
    return losses


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("autocast", [False, True])
def test_training_has_all_losses_and_gradients(context, autocast):
    model = make_model(context)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        losses = train(model)
    assert set(losses) == {"loss_sem_seg", "loss_sem_seg_mdrl_base", "loss_mdrl_local", "loss_mdrl_global"}
    assert all(torch.isfinite(value) and value > 0 for value in losses.values())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    for name in ("fusion", "query", "key", "value", "expand", "base_predictor"):
        assert model.sem_seg_head.augment.get_submodule(name).weight.grad.abs().sum() > 0, name


@pytest.mark.parametrize("reads", ["R", "backbone"])
@pytest.mark.parametrize("context", CONTEXTS)
def test_stage_by_hand(context, reads):
    model = make_model(context, REGULARIZERS__MDRL__CONTEXT_READS=reads)
    train(model)
    model.double().eval()
    stage = model.sem_seg_head.augment
    assert stage.memory.seen.sum() >= 2
    stage.memory.distributions[4] = 0.0  # a class without
    stage.memory.counts[4] = 0
    generator = torch.Generator().manual_seed(0)
    deep = torch.randn(2, 256, 3, 4, generator=generator, dtype=torch.float64)
    # Eq. 3: R_il = SSA(R).
    read = stage.base(deep) if context != "FCN" and reads == "R" else deep
    assert _channels_read(model) == read.shape[1]
    x, _ = model.sem_seg_head.context(read)
    base = stage.base(deep) if context != "FCN" else x
    result, side_logits = stage(x, stage.before_context(deep))
    assert side_logits == {}
    seen = []
    handle = model.sem_seg_head.context.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    features = {"res2": torch.randn(2, 64, 12, 16, dtype=torch.float64), "res4": deep}
    model.sem_seg_head.layers(features)
    handle.remove()
    torch.testing.assert_close(seen[0], read)

    weights = F.conv2d(base, stage.base_predictor.weight, stage.base_predictor.bias).softmax(dim=1)
    memory = [
        list(d) if seen else None
        for d, seen in zip(stage.memory.distributions, stage.memory.seen, strict=True)
    ]
    fused = torch.zeros_like(base)
    for b in range(2):
        for i in range(3):
            for j in range(4):
                maps = torch.cat(voted_maps(weights[b, :, i, j], memory))
                fused[b, :, i, j] = stage.fusion.weight[:, :, 0, 0] @ maps
    fused = stage.fusion_norm(fused).relu()
    query, key, value = (
        torch.relu(conv.norm(F.conv2d(y, conv.weight)))
        for conv, y in ((stage.query, base), (stage.key, fused), (stage.value, fused))
    )
    assert query.shape[1] == base.shape[1] // 2
    attended = torch.stack(
        [
            torch.stack(attention(*(list(y[b].flatten(1).t()) for y in (query, key, value))), dim=1)
            for b in range(2)
        ]
    ).view_as(query)
    attended = torch.relu(stage.expand.norm(F.conv2d(attended, stage.expand.weight)))
    parts = [base, attended] if context == "FCN" else [base, x, attended]
    torch.testing.assert_close(result, torch.cat(parts, dim=1))
    assert result.shape[1] == stage.out_channels


def _channels_read(model):
    context = model.sem_seg_head.context
    first = next(m for m in context.modules() if isinstance(m, torch.nn.Conv2d))
    return first.in_channels


def test_base_prediction_has_the_weight_eta():
    overrides = {
        "SEM_SEG_HEAD__DROPOUT": 0.0,
        "REGULARIZERS__MDRL__BASE_LOSS_WEIGHT": 0.3,
    }
    model = make_model(**overrides)
    batch = small_batch()
    targets = torch.stack([sample["sem_seg"] for sample in batch])
    kept = {}
    stage = model.sem_seg_head.augment
    handle = stage.base_predictor.register_forward_hook(lambda _, args, out: kept.update(base=out))
    losses = model(batch)
    handle.remove()
    full = F.interpolate(kept["base"], size=targets.shape[1:], mode="bilinear", align_corners=False)
    expected = 0.3 * F.cross_entropy(full, targets, ignore_index=IGNORE)
    torch.testing.assert_close(losses["loss_sem_seg_mdrl_base"], expected)


@pytest.mark.parametrize("context", CONTEXTS)
def test_eval_is_bit_equal_to_the_plain_segmentor_with_its_memory(context):
    model = make_model(context)
    train(model)
    assert model.state_dict()[MEMORY].abs().sum() > 0
    stripped = {key: v for key, v in model.state_dict().items() if not key.startswith("regularizers.")}
    torch.manual_seed(2)
    # For evaluation alone no regularizer has to be named.
    plain = SemanticSegmentor(resolve_auto_norm(make_cfg(context, regularizers=())))
    plain.load_state_dict(stripped, strict=True)
    for size in [(64, 64), (70, 50)]:
        batch = small_batch(1, size=size)
        ours, theirs = model.eval()(batch), plain.eval()(batch)
        assert torch.equal(ours[0]["sem_seg"], theirs[0]["sem_seg"])
    exported = inference_model(model)
    assert torch.equal(exported(batch)[0]["sem_seg"], ours[0]["sem_seg"])
    # The memory is not decoration: without it the answer is another one.
    plain.sem_seg_head.augment.memory.distributions.zero_()
    assert not torch.equal(plain(batch)[0]["sem_seg"], ours[0]["sem_seg"])


def test_memory_is_registered_once_and_moved_by_the_regularizer():
    model = make_model()
    keys = [key for key in model.state_dict() if "memory" in key]
    assert keys == [MEMORY, "sem_seg_head.augment.memory.counts"]
    regularizer = model.regularizers["MDRL"]
    assert regularizer.memory is model.sem_seg_head.augment.memory
    assert regularizer.feature_tap == "sem_seg_head.augment.base_predictor:in"
    assert not list(regularizer.parameters())
    train(model, steps=1)
    first = model.state_dict()[MEMORY].clone()
    assert first.abs().sum() > 0
    train(model, steps=1)
    assert not torch.equal(model.state_dict()[MEMORY], first)


def test_a_copied_model_moves_its_own_memory():
    model = make_model()
    copied = copy.deepcopy(model)
    train(copied, steps=1)
    assert copied.sem_seg_head.augment.memory.seen.any()
    assert not model.sem_seg_head.augment.memory.seen.any()


def test_state_is_frozen_in_eval_and_without_gradient():
    model = make_model()
    train(model, steps=1)
    before = copy.deepcopy(model.sem_seg_head.augment.memory.state_dict())
    model.eval()(small_batch())
    with torch.no_grad():
        model.train()(small_batch())
    after = model.sem_seg_head.augment.memory.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("context", CONTEXTS)
def test_an_empty_memory_adds_the_same_everywhere(context):
    model = make_model(context).eval()
    stage = model.sem_seg_head.augment
    read = stage.before_context(torch.randn(1, 256, 4, 5))
    result, _ = stage(model.sem_seg_head.context(read)[0], read)
    attended = result[:, -stage.base_predictor.in_channels :]
    assert torch.isfinite(result).all()
    torch.testing.assert_close(attended, attended[:, :, :1, :1].expand_as(attended))
    assert not torch.allclose(result, result[:, :, :1, :1].expand_as(result))


@pytest.mark.parametrize("labels", ["void", "one_class", "class_zero"])
def test_degenerate_batches(labels):
    model = make_model()
    losses = model(small_batch(labels=labels))
    sum(losses.values()).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    expected = {"void": [], "one_class": [2], "class_zero": [0]}[labels]
    assert model.sem_seg_head.augment.memory.seen.nonzero().flatten().tolist() == expected


def test_channels_of_r_can_be_chosen():
    model = make_model(REGULARIZERS__MDRL__CHANNELS=6)
    assert model.state_dict()[MEMORY].shape == (NUM_CLASSES, 3, 6)
    train(model)
    stage = make_model("PPM", REGULARIZERS__MDRL__CHANNELS=6).sem_seg_head.augment
    assert stage.out_channels == 6 + 16 + 6


def test_without_losses_the_memory_is_still_filled():
    model = make_model(REGULARIZERS__MDRL__LOCAL_WEIGHT=0.0, REGULARIZERS__MDRL__GLOBAL_WEIGHT=0.0)
    with EventStorage(19):
        losses = train(model)
    assert set(losses) == {"loss_sem_seg", "loss_sem_seg_mdrl_base"}
    assert model.sem_seg_head.augment.memory.seen.any()


def test_without_a_norm():
    model = make_model(SEM_SEG_HEAD__NORM="")
    train(model)
    assert model.sem_seg_head.augment.fusion.bias.grad is not None


def test_alone_it_has_its_own_memory_at_the_classifier():
    model = build_model(small_cfg("FCN", ["MDRL"]))
    regularizer = model.regularizers["MDRL"]
    assert regularizer.feature_tap == "sem_seg_head.dropout:in"
    assert "regularizers.MDRL.own_memory.distributions" in model.state_dict()


def test_a_second_one_at_the_auxiliary_head_has_its_own_memory():
    model = make_model(regularizers=["MDRL", "MDRL@aux"], SEM_SEG_HEAD__AUX__IN_FEATURE="res3")
    assert model.regularizers["MDRL@aux"].memory is not model.regularizers["MDRL"].memory
    losses = train(model)
    assert {"loss_mdrl@aux_local", "loss_mdrl_local"} <= set(losses)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"regularizers": []}, "add 'MDRL'"),
        ({"regularizers": ["CAR"]}, "add 'MDRL'"),
        ({"REGULARIZERS__MDRL__FEATURES": "sem_seg_head.predictor:in"}, "add 'MDRL'"),
        ({"REGULARIZERS__MDRL__CHANNELS": 7}, "CHANNELS"),
        ({"REGULARIZERS__MDRL__NUM_DISTRIBUTIONS": 0}, "NUM_DISTRIBUTIONS"),
        ({"REGULARIZERS__MDRL__MOMENTUM": 2.0}, "MOMENTUM"),
        ({"REGULARIZERS__MDRL__BASE_LOSS_WEIGHT": -1.0}, "BASE_LOSS_WEIGHT"),
    ],
)
def test_wrong_settings_are_errors_when_the_model_is_built(overrides, message):
    with pytest.raises(ConfigError, match=message):
        make_model(**overrides)
