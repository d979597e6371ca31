"""One optimizer step."""

import copy

import pytest
import torch

from regseg_d2.common.errors import ConfigError, UserError
from regseg_d2.engine.optim import build_gradient_clipper, build_optimizer
from regseg_d2.engine.step import NonFiniteLossError, TrainingStep, amp_dtype
from tests.engine.toys import BankedSegmentor, ToySegmentor, toy_cfg, toy_sample


def make_step(tmp_path, **overrides):
    cfg = toy_cfg(tmp_path, **overrides)
    torch.manual_seed(0)
    model = ToySegmentor(cfg).train()
    step = TrainingStep(
        model,
        build_optimizer(cfg, model),
        accum_steps=cfg.SOLVER.ACCUM_STEPS,
        autocast_dtype=amp_dtype(cfg),
        clipper=build_gradient_clipper(cfg),
        max_nan_steps=cfg.SOLVER.MAX_NAN_STEPS,
    )
    return step, model


def batch_of(*numbers, poison=False):
    samples = [toy_sample(n) for n in numbers]
    samples[0]["poison"] = poison
    return samples


def test_four_passes_of_one_are_one_pass_of_four(tmp_path):
    plain = {"MODEL__NORM": "", "MODEL__SEM_SEG_HEAD__DROPOUT": 0.0}
    whole, model_whole = make_step(tmp_path, **plain)
    parts, model_parts = make_step(tmp_path, **plain, SOLVER__ACCUM_STEPS=4)
    calls = []
    for _ in range(3):
        result_whole = whole.run(iter([batch_of(1, 2, 3, 4)]))
        result_parts = parts.run(iter([batch_of(n) for n in (1, 2, 3, 4)]), before_pass=calls.append)
        assert result_parts.losses == pytest.approx(result_whole.losses, rel=1e-5)
    assert calls == [0, 1, 2, 3] * 3
    for a, b in zip(model_whole.parameters(), model_parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_one_step_is_what_torch_does_by_hand(tmp_path):
    step, model = make_step(tmp_path, MODEL__SEM_SEG_HEAD__DROPOUT=0.0)
    other = copy.deepcopy(model)
    optimizer = build_optimizer(toy_cfg(tmp_path), other)
    loss = sum(other(batch_of(1, 2)).values())
    loss.backward()
    optimizer.step()
    result = step.run(iter([batch_of(1, 2)]))
    assert not result.skipped
    assert result.total_loss == pytest.approx(loss.item())
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_step_that_is_not_finite_leaves_no_trace(tmp_path):
    step, model = make_step(tmp_path, MODEL__REGULARIZERS__NAMES=["toy"], SOLVER__OPTIMIZER="Adam")
    step.run(iter([batch_of(1, 2)]))
    before = copy.deepcopy([model.state_dict(), step.optimizer.state_dict()])
    result = step.run(iter([batch_of(3, 4, poison=True)]))
    assert result.skipped
    assert result.losses["loss_sem_seg"] != result.losses["loss_sem_seg"]
    after = [model.state_dict(), step.optimizer.state_dict()]
    # Weights, Adam's moments, running statistics and the memory's buffer.
    assert model.regularizers["memory"].steps == 1
    for (_, a), (_, b) in zip(before[0].items(), after[0].items(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(before[1]["state"].values(), after[1]["state"].values(), strict=True):
        assert all(torch.equal(a[k], b[k]) for k in a)
    assert (step.skipped_steps, step.skipped_in_a_row) == (1, 1)
    assert not step.run(iter([batch_of(3, 4)])).skipped
    assert (step.skipped_steps, step.skipped_in_a_row) == (1, 0)
    assert model.regularizers["memory"].steps == 2


@pytest.mark.parametrize("accum_steps", [1, 3])
def test_a_bank_is_taken_back_without_a_copy_of_it(tmp_path, accum_steps):
    cfg = toy_cfg(tmp_path)
    torch.manual_seed(0)
    model = BankedSegmentor(cfg).train()
    step = TrainingStep(model, build_optimizer(cfg, model), accum_steps=accum_steps)
    copied = [saved for _, group in step._buffers for saved in group]
    assert len(copied) == len(list(model.buffers())) - 1
    assert not any(saved.shape == model.bank.rows.shape for saved in copied)

    def batches(first, poison_at=None):
        return iter([batch_of(first + i, first + i + 9, poison=i == poison_at) for i in range(accum_steps)])

    for first in (1, 20, 40, 60):
        step.run(batches(first))
    assert model.bank.filled.all()
    before = copy.deepcopy(model.bank.state_dict())
    for poison_at in range(accum_steps):
        # The passes before and after the poisoned one wrote to the bank too.
        assert step.run(batches(80, poison_at)).skipped
        assert all(torch.equal(model.bank.state_dict()[name], value) for name, value in before.items())
    assert not step.run(batches(80)).skipped
    assert not torch.equal(model.bank.rows, before["rows"])
    assert model.bank.written.sum() == 2 * 5 * accum_steps

    # As if the poisoned steps had never been.
    torch.manual_seed(0)
    straight = BankedSegmentor(cfg).train()
    step = TrainingStep(straight, build_optimizer(cfg, straight), accum_steps=accum_steps)
    for first in (1, 20, 40, 60, 80):
        step.run(batches(first))
    assert torch.equal(straight.bank.rows, model.bank.rows)


def test_gradients_that_are_not_finite_are_enough(tmp_path):
    step, model = make_step(tmp_path)
    before = model.sem_seg_head[1].weight.detach().clone()
    model.sem_seg_head[1].weight.register_hook(lambda gradient: gradient * float("inf"))
    result = step.run(iter([batch_of(1, 2)]))
    assert result.skipped
    assert result.total_loss < 10
    assert torch.equal(model.sem_seg_head[1].weight, before)


def test_too_many_in_a_row_stop_the_run_and_name_the_losses(tmp_path, caplog):
    step, _ = make_step(tmp_path, SOLVER__MAX_NAN_STEPS=2)
    for count in (1, 2):
        step.run(iter([batch_of(1, 2, poison=True)]))
        assert step.skipped_in_a_row == count
    assert caplog.text.count("Skipped this step") == 2
    with pytest.raises(
        NonFiniteLossError, match=r"3 steps in a row .*MAX_NAN_STEPS is 2.*loss_sem_seg = nan"
    ) as info:
        step.run(iter([batch_of(1, 2, poison=True)]))
    assert isinstance(info.value, UserError)
    assert isinstance(info.value, FloatingPointError)


def test_counters_are_state(tmp_path):
    step, _ = make_step(tmp_path)
    step.run(iter([batch_of(1, 2, poison=True)]))
    other, _ = make_step(tmp_path)
    other.load_state_dict(step.state_dict())
    assert (other.skipped_steps, other.skipped_in_a_row) == (1, 1)


def test_bf16_on_the_cpu_learns_and_computes_in_bf16(tmp_path):
    amp = {"SOLVER__AMP__ENABLED": True, "MODEL__SEM_SEG_HEAD__DROPOUT": 0.0}
    step, model = make_step(tmp_path, **amp)
    seen = []
    model.backbone[0].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    losses = [step.run(iter([batch_of(1, 2)])).total_loss for _ in range(8)]
    assert set(seen) == {torch.bfloat16}
    assert losses[-1] < 0.95 * losses[0]
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    exact, _ = make_step(tmp_path, MODEL__SEM_SEG_HEAD__DROPOUT=0.0)
    assert losses[0] == pytest.approx(exact.run(iter([batch_of(1, 2)])).total_loss, rel=0.02)


def test_fp16_needs_a_gpu_and_says_what_to_do(tmp_path):
    amp = {"SOLVER__AMP__ENABLED": True, "SOLVER__AMP__DTYPE": "fp16"}
    with pytest.raises(ConfigError, match="fp16 needs a GPU. Set SOLVER.AMP.DTYPE bf16"):
        amp_dtype(toy_cfg(tmp_path, **amp))
    with pytest.raises(ConfigError, match="'fp8'; expected fp16 or bf16"):
        amp_dtype(toy_cfg(tmp_path, SOLVER__AMP__ENABLED=True, SOLVER__AMP__DTYPE="fp8"))
    assert amp_dtype(toy_cfg(tmp_path, SOLVER__AMP__DTYPE="fp16")) is None


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_fp16_searches_its_scale_without_counting(tmp_path, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    # The config refuses fp16 on a CPU because it is slow there; the step itself is the same.
    cfg = toy_cfg(tmp_path, MODEL__DEVICE=device, MODEL__SEM_SEG_HEAD__DROPOUT=0.0)
    torch.manual_seed(0)
    model = ToySegmentor(cfg).train()
    optimizer = build_optimizer(cfg, model)
    step = TrainingStep(model, optimizer, autocast_dtype=torch.float16, max_nan_steps=1)
    step.scaler._init_scale = 2.0**60  # overflows for sure
    before = model.sem_seg_head[1].weight.detach().clone()
    result = step.run(iter([batch_of(1, 2)]))
    assert result.skipped
    assert step.skipped_in_a_row == 0
    assert step.scaler.get_scale() == 2.0**59
    assert torch.equal(model.sem_seg_head[1].weight, before)
    while step.run(iter([batch_of(1, 2)])).skipped:
        assert step.skipped_in_a_row == 0
    assert step.skipped_steps > 20
    moved = before - model.sem_seg_head[1].weight
    # The update is that of float32: the scale is gone from the gradients.
    torch.manual_seed(0)
    exact = ToySegmentor(cfg).train()
    TrainingStep(exact, build_optimizer(cfg, exact)).run(iter([batch_of(1, 2)]))
    torch.testing.assert_close(moved, before - exact.sem_seg_head[1].weight, rtol=0.05, atol=1e-4)
    # A loss that is not finite counts, whatever the scale is.
    step.run(iter([batch_of(1, 2, poison=True)]))
    assert step.skipped_in_a_row == 1
    other = TrainingStep(model, optimizer, autocast_dtype=torch.float16)
    other.load_state_dict(step.state_dict())
    assert other.scaler.get_scale() == step.scaler.get_scale()


def test_clipping_bounds_the_update(tmp_path):
    clip = {"SOLVER__CLIP_GRADIENTS__ENABLED": True, "SOLVER__CLIP_GRADIENTS__CLIP_TYPE": "full_model"}
    step, model = make_step(
        tmp_path, **clip, SOLVER__CLIP_GRADIENTS__CLIP_VALUE=1e-3, SOLVER__WEIGHT_DECAY=0.0
    )
    before = [parameter.detach().clone() for parameter in model.parameters()]
    step.run(iter([batch_of(1, 2)]))
    moved = sum(((a - b) ** 2).sum() for a, b in zip(before, model.parameters(), strict=True)) ** 0.5
    assert moved.item() == pytest.approx(0.1 * 1e-3, rel=1e-3)  # BASE_LR x bound


def test_accum_steps_must_be_positive(tmp_path):
    with pytest.raises(ConfigError, match="ACCUM_STEPS is 0"):
        make_step(tmp_path, SOLVER__ACCUM_STEPS=0)
