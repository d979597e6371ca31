"""Compiled parts of a network: the same losses, names and taps; one clear error where it cannot be done."""

import copy
import shutil

import pytest
import torch
from torch import nn

from regseg_d2.common.errors import ConfigError
from regseg_d2.engine.compilation import CompiledForward, compile_parts
from regseg_d2.engine.failures import CompileError
from regseg_d2.segmentor.build import build_model
from regseg_d2.state import memories_of
from regseg_d2.weights.reading import load_file
from tests.distributed.launching import run_processes
from tests.engine.toys import ToyTrainer, same_state, toy_cfg, train_or_die
from tests.helpers import small_batch, small_cfg

STEPS = 50


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def build(backend, head="FCN", regularizers=("CAR", "ContrastSeg"), **keys):
    cfg = small_cfg(head, regularizers, SEM_SEG_HEAD__DROPOUT=0.3, **keys)
    torch.manual_seed(0)
    model = build_model(cfg).train()
    if backend:
        cfg.SOLVER.COMPILE.BACKEND = backend
        compile_parts(cfg, model)
    return model


def train_steps(model, steps=STEPS, lr=1e-3):
    """Losses of each step on four batches, and the final weights."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    batches, history = [small_batch(4) for _ in range(4)], []
    for step in range(steps):
        torch.manual_seed(100 + step)
        losses = model(batches[step % 4])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: float(loss.detach()) for name, loss in losses.items()})
    return history


def largest_difference(first, second):
    assert [row.keys() for row in first] == [row.keys() for row in second]
    return max(abs(a[name] - b[name]) for a, b in zip(first, second, strict=True) for name in a)


@pytest.mark.parametrize("steps", [3, pytest.param(STEPS, marks=pytest.mark.slow)])
def test_losses_are_those_of_eager_mode(steps):
    eager, compiled = build(""), build("aot_eager")
    difference = largest_difference(train_steps(eager, steps), train_steps(compiled, steps))
    print(f"largest difference of a loss in {steps} steps: {difference:.1e}")
    assert difference <= 1e-4
    assert eager.state_dict().keys() == compiled.state_dict().keys()
    for name, value in eager.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value, rtol=1e-3, atol=1e-4)
    assert [name for name, _ in compiled.named_modules()] == [name for name, _ in eager.named_modules()]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs g++")
def test_losses_of_fifty_steps_are_those_of_eager_mode_with_inductor():
    names = {"regularizers": ("CAR",)}
    difference = largest_difference(train_steps(build("", **names)), train_steps(build("inductor", **names)))
    print(f"largest difference of a loss in {STEPS} steps: {difference:.1e}")
    assert difference <= 1e-4


@pytest.mark.parametrize("head", ["DeepLabV3Plus", "ASPP", "FCN-linear"])
def test_taps_see_the_features_exactly_and_step_after_step(head):
    # RCH listens at the backbone, too; the hooks are new in each step.
    names = ("CAR", "RCH")
    models = build("", head, names), build("aot_eager", head, names)
    seen = []
    for model in models:
        recorded, read = [], model.regularizers.forward

        def forward(inputs, recorded=recorded, read=read):
            recorded.append({name: tap.detach().clone() for name, tap in inputs.taps.items()})
            return read(inputs)

        model.regularizers.forward = forward
        seen.append(recorded)
    with torch.no_grad():
        for step in range(3):
            for model in models:
                torch.manual_seed(step)
                batch = small_batch(2)
                for sample in batch:
                    sample["image"] = sample["image"].roll(step, -1)
                model(batch)
    assert len(seen[0]) == len(seen[1]) == 3
    assert len(seen[0][0]) >= 2
    for eager, compiled in zip(*seen, strict=True):
        assert eager.keys() == compiled.keys()
        for name, tap in eager.items():
            torch.testing.assert_close(compiled[name], tap, rtol=1e-5, atol=1e-6)
    assert not torch.equal(*(next(iter(taps.values())) for taps in seen[1][:2]))


def test_parts_are_the_largest_that_no_tap_looks_into():
    cfg = small_cfg("ASPP", ("CAR",))
    cfg.SOLVER.COMPILE.BACKEND = "aot_eager"
    paths = compile_parts(cfg, build_model(cfg))
    assert paths == [
        "backbone",
        "sem_seg_head.context",
        "sem_seg_head.skips.0",
        "sem_seg_head.projection",
        "sem_seg_head.predictor",
    ]
    cfg.MODEL.REGULARIZERS.CAR.FEATURES = "backbone.network.layer3.0.conv1:out"
    model = build_model(cfg)
    paths = compile_parts(cfg, model)
    assert {"backbone.network.layer1", "backbone.network.layer3.0.conv1"} <= set(paths)
    assert not {"backbone", "backbone.network", "backbone.network.layer3", "backbone.network.layer3.0"} & set(
        paths
    )
    # All that has parameters is in one of them.
    parts = [model.get_submodule(path) for path in paths]
    inside = {id(parameter) for part in parts for parameter in part.parameters()}
    outside = [
        name
        for name, parameter in model.named_parameters()
        if id(parameter) not in inside and not name.startswith("regularizers.")
    ]
    assert outside == []


def test_memories_of_the_head_stay_outside():
    cfg = small_cfg("FCN", ("MDRL",), SEM_SEG_HEAD__AUGMENT="MDRL")
    cfg.SOLVER.COMPILE.BACKEND = "aot_eager"
    model = build_model(cfg)
    assert memories_of(model.sem_seg_head)
    compiled = [model.get_submodule(path) for path in compile_parts(cfg, model)]
    assert compiled and not any(memories_of(part) for part in compiled)


def test_evaluation_and_copies_are_not_compiled():
    eager, compiled = build("", "ASPP", ()), build("aot_eager", "ASPP", ())
    images = [{"image": sample["image"], "height": 48, "width": 56} for sample in small_batch(2)]
    for model in (eager, compiled):
        model.eval()
    with torch.no_grad():
        first, second = eager(images), compiled(images)
    assert all(torch.equal(a["sem_seg"], b["sem_seg"]) for a, b in zip(first, second, strict=True))
    twin = copy.deepcopy(compiled)
    assert isinstance(twin.backbone.forward, CompiledForward)
    assert twin.backbone.forward._module is twin.backbone
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
        assert not torch.equal(twin(images)[0]["sem_seg"], second[0]["sem_seg"])
        assert torch.equal(compiled(images)[0]["sem_seg"], second[0]["sem_seg"])


def compile_cfg(folder, **keys):
    return toy_cfg(folder, SOLVER__COMPILE__ENABLED=True, SOLVER__COMPILE__BACKEND="aot_eager", **keys)


def train(cfg, *, resume=False, kill_at=None):
    trainer = ToyTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    return train_or_die(trainer, kill_at)


def test_a_run_resumes_compiled_and_eager_from_the_same_file(tmp_path):
    keys = {"SOLVER__EMA__ENABLED": True, "MODEL__REGULARIZERS__NAMES": ["toy"]}
    straight = train(compile_cfg(tmp_path / "a", **keys))
    train(compile_cfg(tmp_path / "b", **keys), kill_at=4)
    train(compile_cfg(tmp_path / "b", **keys), resume=True)
    a, b = (load_file(str(tmp_path / name / "model_final.pth")) for name in "ab")
    assert same_state(a, b)
    assert not any("_orig_mod" in name for name in a["model"])
    train(compile_cfg(tmp_path / "c", **keys), kill_at=4)
    eager = train(toy_cfg(tmp_path / "c", **keys), resume=True)
    for name, value in eager.model.state_dict().items():
        torch.testing.assert_close(value, straight.model.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_a_part_that_cannot_be_compiled_is_one_error(tmp_path):
    trainer = ToyTrainer(compile_cfg(tmp_path))

    def broken(graph, example_inputs):
        raise RuntimeError("no such kernel")

    for path in ("backbone", "sem_seg_head.1"):
        part = trainer.model.get_submodule(path)
        part.forward = CompiledForward(part, {"backend": broken})
    with pytest.raises(CompileError, match=r"could not be compiled.*ENABLED False.*no such kernel"):
        trainer.train()


def test_what_cannot_compile_here_is_refused(monkeypatch, tmp_path):
    on = {"SOLVER__COMPILE__ENABLED": True}
    with pytest.raises(ConfigError, match="BACKEND: unknown name 'inducto'.*did you mean 'inductor'"):
        ToyTrainer(toy_cfg(tmp_path, **on, SOLVER__COMPILE__BACKEND="inducto"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        ConfigError, match=r"C\+\+ compiler, and 'no-such-compiler' is not there. Install g\+\+"
    ):
        ToyTrainer(toy_cfg(tmp_path, **on, SOLVER__COMPILE__BACKEND="inductor"))

    class Headless(nn.Module):
        pass

    with pytest.raises(ConfigError, match="Headless has no 'backbone'"):
        compile_parts(compile_cfg(tmp_path), Headless())


def compiled_and_eager_of_a_process(folder):
    from detectron2.utils import comm

    from regseg_d2.engine.devices import wrap_model

    results = []
    for backend in ("", "aot_eager"):
        cfg = small_cfg("FCN", ("CAR",), SEM_SEG_HEAD__DROPOUT=0.0, NORM="auto", SEM_SEG_HEAD__NORM="auto")
        torch.manual_seed(0)
        model = build_model(cfg).train()
        if backend:
            cfg.SOLVER.COMPILE.BACKEND = backend
            compile_parts(cfg, model)
        wrapped = wrap_model(model)
        torch.manual_seed(7 + comm.get_rank())
        batch = small_batch(2)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            sum(wrapped(batch).values()).backward()
            optimizer.step()
        results.append({name: value.clone() for name, value in model.state_dict().items()})
    return results


@pytest.mark.slow
def test_two_processes_train_as_without(tmp_path):
    (eager, compiled), (_, other) = run_processes(compiled_and_eager_of_a_process, 2, tmp_path, str(tmp_path))
    assert same_state(compiled, other)
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-5, atol=1e-6)
