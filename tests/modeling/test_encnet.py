"""EncNet's encoding by hand, pixel by pixel, its loss, and both in the head."""

import pytest
import torch
from detectron2.modeling import build_model

from regseg_d2.common.errors import ConfigError
from regseg_d2.modeling.heads import Encoding
from regseg_d2.modeling.heads.contexts.encnet import EncodingLayer, PresenceLoss
from tests.helpers import IGNORE, NUM_CLASSES, small_batch, small_cfg


def make_encoding(**options):
    torch.manual_seed(0)
    defaults = {
        "in_channels": 6,
        "out_channels": 8,
        "num_codes": 3,
        "num_classes": NUM_CLASSES,
        "ignore_value": IGNORE,
        "se_loss_weight": 0.2,
        "norm": "BN",
    }
    return Encoding(**{**defaults, **options}).double()


def make_cfg(**overrides):
    return small_cfg(
        "FCN",
        SEM_SEG_HEAD__CONTEXT="Encoding",
        SEM_SEG_HEAD__ENCNET_NUM_CODES=3,
        SEM_SEG_HEAD__PROJECTION="",
        **overrides,
    )


def encode_by_hand(layer, x):
    result = torch.zeros(len(x), *layer.codewords.shape, dtype=x.dtype)
    for n in range(len(x)):
        for pixel in x[n].flatten(1).T:
            residuals = [pixel - codeword for codeword in layer.codewords]
            distances = torch.stack([residual @ residual for residual in residuals])
            for k, share in enumerate((layer.scale * distances).softmax(0)):
                result[n, k] += share * residuals[k]
    return result


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_encoding_by_hand(memory_format):
    torch.manual_seed(0)
    layer = EncodingLayer(4, 3).double()
    x = torch.randn(2, 4, 3, 5, dtype=torch.float64).contiguous(memory_format=memory_format)
    torch.testing.assert_close(layer(x), encode_by_hand(layer, x))


def test_encoding_gradients():
    torch.manual_seed(0)
    layer = EncodingLayer(3, 2).double()
    x = torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)

    def encode(x, codewords, scale):
        return torch.func.functional_call(layer, {"codewords": codewords, "scale": scale}, (x,))

    assert torch.autograd.gradcheck(encode, (x, layer.codewords, layer.scale))


@pytest.mark.parametrize("norm", ["BN", ""])
def test_module_by_hand(norm):
    module = make_encoding(norm=norm).eval()
    x = torch.randn(2, 6, 3, 5, dtype=torch.float64)
    feature = module.bottleneck(x)
    parts = encode_by_hand(module.encoding, module.encoding_project(feature))
    if norm:
        # The batch norm's channels are the codewords; untrained statistics are 0 and 1.
        parts = parts / (1 + module.encoding_norm.eps) ** 0.5
    code = parts.relu().mean(1)
    factors = (code @ module.factors.weight.T + module.factors.bias).sigmoid()
    expected = (feature + feature * factors[:, :, None, None]).relu()
    result, side_outputs = module(x)
    assert side_outputs == {}
    assert result.shape == (2, module.out_channels, 3, 5)
    torch.testing.assert_close(result, expected)
    assert not torch.equal(factors[0], factors[1])


def test_the_code_is_taken_in_float32():
    module = make_encoding().float()
    with torch.autocast("cpu", torch.bfloat16):
        features = module.encoding_project(module.bottleneck(torch.randn(2, 6, 3, 5)))
        assert features.dtype == torch.bfloat16
        assert module._code(features).dtype == torch.float32


def test_presence_loss_by_hand():
    torch.manual_seed(0)
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[[0, 2], [2, 9]], [[9, 9], [9, 9]], [[3, 3], [3, 3]]])
    present = {0: {0, 2}, 2: {3}}  # Image 1 is void.
    total = 0.0
    for n, classes in present.items():
        for k in range(4):
            probability = logits[n, k].sigmoid()
            total = total - (probability if k in classes else 1 - probability).log()
    loss = PresenceLoss(4, 9)(logits, labels)
    torch.testing.assert_close(loss, total / 8)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, torch.autograd.grad(total / 8, logits)[0])
    assert (gradient[1] == 0).all()


def test_presence_loss_knows_void_by_its_value():
    logits = torch.zeros(1, 3)
    labels = torch.tensor([[[0, 1], [1, 255]]])
    expected = PresenceLoss(3, 255)(logits + 1, labels)
    # The void label may be a class's number, or none; other labels that are no class are void too.
    assert PresenceLoss(3, 0)(logits + 1, labels) > expected
    assert torch.equal(PresenceLoss(3, 255)(logits + 1, labels.where(labels < 3, -1)), expected)


def test_presence_loss_of_a_void_batch_is_a_zero_with_a_gradient():
    logits = torch.randn(2, 4, requires_grad=True)
    loss = PresenceLoss(4, 9)(logits.bfloat16(), torch.full((2, 3, 3), 9))
    assert loss == 0
    assert loss.dtype == torch.float32
    loss.backward()
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("labels", ["blocks", "void"])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_training(batch_size, labels):
    torch.manual_seed(0)
    model = build_model(make_cfg())
    batch = small_batch(batch_size, labels=labels)
    losses = model(batch)
    assert set(losses) == {"loss_sem_seg", "loss_sem_seg_se"}
    assert all((loss > 0) == (labels == "blocks") for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    assert model.eval()(small_batch(1, size=(37, 61)))[0]["sem_seg"].shape == (NUM_CLASSES, 37, 61)


def test_the_weight_of_the_side_loss():
    losses = {}
    for weight in (0.2, 1.0):
        torch.manual_seed(0)
        model = build_model(make_cfg(SEM_SEG_HEAD__ENCNET_SE_LOSS_WEIGHT=weight))
        losses[weight] = model(small_batch())["loss_sem_seg_se"].item()
    assert losses[0.2] == pytest.approx(0.2 * losses[1.0])
    assert losses[1.0] == pytest.approx(0.69, abs=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_codes": 0}, "ENCNET_NUM_CODES is 0; expected 1 or more"),
        ({"num_codes": 48, "norm": "GN"}, "ENCNET_NUM_CODES is 48; expected a multiple of the 32"),
        ({"se_loss_weight": -0.1}, "ENCNET_SE_LOSS_WEIGHT is -0.1"),
        ({"se_loss_weight": float("nan")}, "ENCNET_SE_LOSS_WEIGHT is nan"),
    ],
)
def test_wrong_values_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        make_encoding(**options)
