"""The inference model computes what the trained one does, with less."""

import pytest
import torch
from detectron2.modeling import build_model

from regseg_d2.modeling.heads import LinearConvBlock
from regseg_d2.segmentor.export import inference_model
from tests.helpers import small_batch, small_cfg


def trained(**overrides):
    torch.manual_seed(1)
    model = build_model(small_cfg("FCN-linear", ["CAR"], **overrides))
    torch.nn.init.normal_(model.sem_seg_head.projection.linear.bias)
    for _ in range(3):
        model(small_batch())  # moves the batch norm statistics
    return model


def test_folded_model_is_the_same_function_without_the_training_parts():
    model = trained()
    batch = small_batch(1, size=(70, 50))
    small = inference_model(model)
    expected = model.eval()(batch)[0]["sem_seg"]
    torch.testing.assert_close(small(batch)[0]["sem_seg"], expected, rtol=1e-5, atol=1e-5)
    names = [name for name, _ in small.named_parameters()]
    assert not any("regularizers" in name or "auxiliary" in name or "linear" in name for name in names)
    assert not any(isinstance(module, LinearConvBlock) for module in small.modules())


def test_the_trained_model_is_left_as_it_was():
    model = trained()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    inference_model(model)
    assert model.training
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_larger_convolution_behind_is_refused():
    with pytest.raises(ValueError, match="PROJECTION_KERNEL_SIZE"):
        inference_model(trained(SEM_SEG_HEAD__PROJECTION_KERNEL_SIZE=3))
