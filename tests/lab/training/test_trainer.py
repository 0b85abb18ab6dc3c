"""What a recipe may change about a step: batch sizes, options over time, recomputation, compilation, a start, steps that fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import bestiary
from bestiary import BestiaryError
from bestiary.core.adjust import adjust
from bestiary.lab.recipe import load_recipe
from bestiary.lab.training.finite import first_non_finite, read_batch
from bestiary.lab.training.plot import plot_run
from bestiary.lab.training.result import read_run
from bestiary.lab.training.trackers import scalars
from bestiary.lab.training.train import train
from bestiary.lab.training.trainer import Diverged, Trainer


def run(lab: Path, *changes: str, out: str = "out", **options):
    return train(load_recipe(lab / "recipe.toml", set=changes), out=lab / out, progress=False, **options)


def losses(result) -> list[float]:
    return [line.loss for line in result.lines() if line.kind == "train"]


# Budget


def test_a_batch_schedule_reads_every_row_once_in_the_same_order(lab: Path):
    tokens = "train.tokens=1536"
    recipe = load_recipe(lab / "recipe.toml", set=["train.steps=0", tokens, "train.batch_schedule=[[0, 2], [0.25, 4], [0.5, 8]]"])
    assert recipe.budget.rows.tolist() == [2] * 6 + [4] * 3 + [8] * 3
    assert recipe.budget.before.tolist() == [0, 2, 4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48]
    result = train(recipe, out=lab / "out", progress=False)
    taken = [line.tokens for line in result.lines() if line.kind == "train"]
    assert taken == [32 * rows for rows in recipe.budget.before[1:]]
    assert result.summary.tokens == 48 * 32 == 1536


def test_accumulated_gradients_are_those_of_the_whole_batch(lab: Path):
    whole = run(lab, "train.steps=3")
    parts = run(lab, "train.steps=3", "set.parallelism.micro_batches=4", out="parts")
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)
    with pytest.raises(
        BestiaryError, match=r"a step of 4 rows does not split into the 3 parts that \[parallelism\] makes of it. Use multiples of 3"
    ):
        run(lab, "set.parallelism.micro_batches=3", out="bad")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.batch_schedule=[[0, 2]]", "a batch_schedule counts in tokens"),
        ('timeline."objective.mtp.weight"=[[0.5, 0.1]]', "starts at 0.5, and the run at 0"),
        ('timeline."objective.mtp.weight"=[[0, 0.3], [0.5, 0.2], [0.2, 0.1]]', "must rise"),
        ('timeline."objective.mtp.weight"=[[0, 0.3], [0.5, 0.2], [9000, 0.1]]', "mixes tokens"),
        ("schedule.cooldown=0.9", "cooldown take"),
    ],
)
def test_schedules_that_cannot_be_are_refused_with_the_recipe(lab: Path, change: str, message: str):
    with pytest.raises(BestiaryError, match=message):
        load_recipe(lab / "recipe.toml", set=[change])


# Options over time


def test_options_change_when_the_timeline_says(lab: Path):
    timeline = ["timeline.objective.mtp.weight=[[0, 0.3], [0.5, 0.0]]", "timeline.block.ffn.router.bias_update_speed=[[0, 0.01], [0.5, 0]]"]
    recipe = load_recipe(lab / "recipe.toml", set=[*timeline, "train.steps=6"])
    trainer = trainer_of(recipe)
    for step in range(6):
        before = trainer.state.model.model.layers[1].mlp.gate.e_score_correction_bias.clone()
        line = trainer.step()
        weight = 0.3 if step < 3 else 0.0
        assert line.loss == pytest.approx(line.parts["next-token"] + weight * line.parts["mtp-1"] + line.parts["balance"], rel=1e-5)
        moved = (trainer.state.model.model.layers[1].mlp.gate.e_score_correction_bias - before).abs().max()
        assert moved == pytest.approx(0.01 if step < 3 else 0.0, abs=1e-7)


def test_the_blocks_of_objectives_are_adjusted_too(lab: Path):
    model = bestiary.create_model(load_recipe(lab / "recipe.toml").manifest())
    adjust(model, "block.ffn.aux_loss_alpha", 0.5)
    found = {name: module.aux_loss_alpha for name, module in model.named_modules() if hasattr(module, "aux_loss_alpha")}
    assert found == {"model.layers.1.mlp": 0.5, "objectives.mtp.layers.0.block.mlp": 0.5}


def test_what_cannot_change_is_refused_with_what_can(lab: Path):
    with pytest.raises(BestiaryError, match=r"timeline.*|no option that can change while training") as found:
        run(lab, 'timeline."block.ffn.router.bias_update_sped"=[[0, 0.1]]')
    assert "Did you mean 'block.ffn.router.bias_update_speed'?" in str(found.value)
    assert not (lab / "out").exists()


# The same step another way


def trainer_of(recipe) -> Trainer:
    from bestiary.lab.data.dataset import open_data

    manifest = recipe.manifest()
    return Trainer(recipe, manifest, open_data(recipe, manifest), torch.device("cpu"))


def test_recomputed_blocks_give_the_same_losses_loads_and_biases_to_the_bit(lab: Path):
    plain, again = (run(lab, f"train.recompute={kind}", out=kind) for kind in ("none", "block"))
    assert losses(plain) == losses(again)
    figures = [[(line.max_vio, line.expert_load, line.parts) for line in result.lines()] for result in (plain, again)]
    assert figures[0] == figures[1]


def test_recomputation_keeps_less(lab: Path):
    """Tensors that autograd saves, counted by its own hook."""
    recipe = load_recipe(lab / "recipe.toml")
    kept = {}
    for kind in ("none", "block"):
        trainer = trainer_of(recipe.model_copy(update={"train": recipe.train.model_copy(update={"recompute": kind})}))
        sizes: list[int] = []

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.nbytes)
            return tensor

        batch = trainer.batch(0)
        model = trainer.state.model
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.loss(batch, model.counts(batch))
        kept[kind] = sum(sizes)
    assert kept["block"] < 0.5 * kept["none"]


@pytest.mark.slow
def test_compiled_blocks_give_the_same_losses_within_rounding(lab: Path):
    plain = run(lab, "train.steps=4", "set.block.ffn.use=dense", "set.block.ffn.intermediate_size=32")
    fast = run(lab, "train.steps=4", "set.block.ffn.use=dense", "set.block.ffn.intermediate_size=32", "train.compile=true", out="fast")
    assert losses(fast) == pytest.approx(losses(plain), rel=1e-4)


# A start


def test_a_run_starts_from_the_weights_of_another_and_keeps_what_training_needs(lab: Path):
    first = run(lab, "train.steps=12", "set.precision.use=bf16")
    second = load_recipe(lab / "recipe.toml", set=["set.precision.use=bf16", "train.seed=5", f"train.start={first.model}"])
    trainer = trainer_of(second)
    assert {p.dtype for p in trainer.state.model.parameters()} == {torch.float32}
    assert trainer.state.model.model.compute_dtype == torch.bfloat16
    assert trainer.evaluate().bits_per_byte == first.summary.bits_per_byte
    with pytest.raises(BestiaryError, match="self_attn"):
        trainer_of(load_recipe(lab / "recipe.toml", set=[f"train.start={first.model}", "set.block.attention.use=gqa"]))
    swapped = ["set.block.attention.use=gqa", "train.init=block.attention", f"train.start={first.model}"]
    assert trainer_of(load_recipe(lab / "recipe.toml", set=swapped)).step().loss


# Steps that fail


def spoil(monkeypatch, at: int, module: str):
    """Makes one module's output NaN in one step."""
    true = Trainer.step

    def step(self):
        handle = None
        if self.state.step == at:
            layer = self.state.model.get_submodule(module)
            handle = layer.register_forward_hook(lambda m, i, out: out * float("nan"))
        try:
            return true(self)
        finally:
            if handle:
                handle.remove()

    monkeypatch.setattr(Trainer, "step", step)


def test_a_step_that_is_not_finite_names_its_module_and_keeps_its_batch(lab: Path, monkeypatch):
    spoil(monkeypatch, 5, "model.layers.1.self_attn.o_proj")
    with pytest.raises(Diverged, match=r"Step 6 of 12: the loss is nan; the first output .* is that of model.layers.1.self_attn.o_proj"):
        run(lab)
    kept = lab / "out" / "non-finite" / "step-00000006"
    assert json.loads((kept / "why.json").read_text())["step"] == 6
    expected = trainer_of(load_recipe(lab / "recipe.toml")).batch(5)
    assert torch.equal(read_batch(kept).input_ids, expected.input_ids) and torch.equal(read_batch(kept).targets, expected.targets)
    result = read_run(lab / "out")
    assert result is not None and result.summary.status == "diverged"


def test_a_skipped_step_changes_nothing_but_the_position(lab: Path, monkeypatch):
    spoil(monkeypatch, 5, "model.layers.1.mlp")
    result = run(lab, "train.non_finite=skip")
    assert result.summary.skipped == [6] and result.summary.status == "finished"
    (skipped,) = [line for line in result.lines() if line.kind == "skip"]
    assert skipped.step == 6 and "model.layers.1.mlp" in skipped.message and skipped.loss is None
    assert (lab / "out" / "non-finite" / "step-00000006" / "batch.safetensors").is_file()
    monkeypatch.undo()
    trainer = trainer_of(load_recipe(lab / "recipe.toml"))
    for _ in range(5):
        trainer.step()
    trainer.state.step = 6
    assert trainer.step().loss == next(line.loss for line in result.lines() if line.step == 7)


def test_skipping_ends(lab: Path, monkeypatch):
    monkeypatch.setattr("bestiary.plugins.baseline.local.clip_grad_norm_", lambda *a, **k: float("inf"))
    with pytest.raises(Diverged, match=r"Step 3 of 12: the norm .* is inf; it did not happen a second time. 2 steps were skipped"):
        run(lab, "train.non_finite=skip", "train.max_skipped=2")


def test_a_gradient_and_a_parameter_that_are_not_finite_are_found(lab: Path):
    trainer = trainer_of(load_recipe(lab / "recipe.toml"))
    model = trainer.state.model

    class Explode(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, *grads):
            return grads[0] * float("inf")

    model.model.layers[1].mlp.register_forward_pre_hook(lambda m, args: (Explode.apply(args[0]), *args[1:]))
    found = first_non_finite(model, lambda: trainer.parallelism.step(model, trainer.batch(0)))
    assert (
        found == "every output is finite; the first gradient that is not is that of the output of model.layers.1.post_attention_layernorm"
    )
    with torch.no_grad():
        model.lm_head.weight[3, 3] = float("nan")
    assert first_non_finite(model, lambda: None) == "the parameter lm_head.weight is not finite itself"


# What is told


def test_an_evaluation_tells_loads_specialisation_and_agreement(lab: Path):
    lines = run(lab, "train.steps=8").lines()
    last = lines[-1]
    assert last.kind == "eval" and set(last.expert_load) == {"1", "2"}
    assert all(sum(load) == pytest.approx(1) and len(load) == 4 for load in last.expert_load.values())
    assert set(last.max_vio) == {"1", "2"} and last.max_vio_sequence is not None and last.max_vio_sequence > 0
    assert 0 <= last.agreement["mtp-1"] <= 1
    assert lines[0].max_vio == {}, "nothing was trained before the first"


def test_metrics_reach_tensorboard(lab: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = run(lab, "log.to=tensorboard")
    events = EventAccumulator(str(result.folder / "tensorboard"))
    events.Reload()
    lines = [line for line in result.lines() if line.kind == "train"]
    assert [event.step for event in events.Scalars("train/loss")] == [line.step for line in lines]
    assert [event.value for event in events.Scalars("train/parts/mtp-1")] == pytest.approx([line.parts["mtp-1"] for line in lines])


def test_services_get_the_same_figures(lab: Path, monkeypatch):
    """trackio and wandb share this interface; neither is asked to reach a network here."""
    calls: list[tuple] = []

    class Service:
        init = staticmethod(lambda **k: calls.append(("init", k["project"], k["name"], k["config"]["model"])))
        log = staticmethod(lambda figures, step: calls.append(("log", step, figures)))
        finish = staticmethod(lambda: calls.append(("finish",)))

    monkeypatch.setitem(__import__("sys").modules, "trackio", Service)
    result = run(lab, "log.to=trackio", "log.project=zoo")
    assert calls[0][:3] == ("init", "zoo", "out") and calls[-1] == ("finish",)
    logged = [line for line in result.lines() if line.step]
    assert [(call[1], call[2]) for call in calls if call[0] == "log"] == [(line.step, scalars(line)) for line in logged]


def test_a_missing_tracker_is_said_before_anything_else(lab: Path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(BestiaryError, match=r"'wandb' is not installed. Run pip install bestiary\[wandb\]"):
        run(lab, "log.to=wandb")
    assert not (lab / "out").exists()


def test_a_run_draws_itself(lab: Path):
    path = plot_run(run(lab, "train.ema=0.5"))
    assert path.name == "curves.png" and path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
