"""The trainer in this process: equalities between its ways to compute a step, evaluation, best checkpoint, resume."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from segzoo.engine import trainer as trainer_module
from segzoo.engine.checkpoint import read_checkpoint
from segzoo.engine.trainer import Trainer
from segzoo.errors import CheckpointError, ConfigError, TrainingError
from tests.engine.tiny_run import read_losses, tiny_config, tiny_options, write_tiny_coco


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*write_tiny_coco(tmp_path_factory.mktemp("tiny")), "--skip-audit"]


@pytest.fixture(scope="module")
def data_with_val(data: list[str]) -> list[str]:
    return [*data, "--val-json", data[1], "--val-images", data[3]]


def make_trainer(data: list[str], output_dir: Path, *flags: str, **changes: object) -> Trainer:
    cfg = tiny_config([*data, *flags, *tiny_options(output_dir, **changes)])
    return Trainer(cfg, resume="--resume" in flags, force="--force" in flags)


def train(data: list[str], output_dir: Path, *flags: str, **changes: object) -> Trainer:
    trainer = make_trainer(data, output_dir, *flags, **changes)
    trainer.train()
    return trainer


def as_list(losses: dict[int, tuple[float, float, float]]) -> list[float]:
    return [losses[iteration][0] for iteration in sorted(losses)]


def test_two_runs_of_one_seed_are_equal_and_of_two_seeds_differ(data: list[str], tmp_path: Path) -> None:
    for name, seed in (("first", 3), ("second", 3), ("other", 4)):
        train(data, tmp_path / name, SEED=seed, SOLVER__MAX_ITER=20)
    first, second, other = (read_losses(tmp_path / name) for name in ("first", "second", "other"))
    assert len(first) == 20
    assert first == second
    assert all(first[iteration] != other[iteration] for iteration in first)


def without_batch_effects(trainer: Trainer) -> Trainer:
    # Batch statistics, dropout and the running normaliser see micro-batches, not steps.
    trainer.model.backbone[1].eval()
    trainer.model.backbone[3].eval()
    trainer.model.is_stateful = False
    return trainer


def test_accumulation_equals_one_large_batch_over_50_iterations(data: list[str], tmp_path: Path) -> None:
    # 12 images a step in one or three micro-batches of 4: the loader gives the same images, so only rounding differs.
    for name, accumulate in (("whole", 1), ("parts", 3)):
        trainer = make_trainer(
            data, tmp_path / name, SOLVER__IMS_PER_BATCH=12, SOLVER__ACCUMULATE=accumulate, SOLVER__MAX_ITER=50
        )
        without_batch_effects(trainer).train()
        assert trainer.num_micro_batches == 50 * accumulate
    whole, parts = (as_list(read_losses(tmp_path / name)) for name in ("whole", "parts"))
    assert whole == pytest.approx(parts, rel=1e-4)
    assert whole[-1] < 0.5 * whole[0]


def test_bfloat16_stays_near_fp32_over_50_iterations(data: list[str], tmp_path: Path) -> None:
    for name, enabled in (("fp32", False), ("bf16", True)):
        amp = {"SOLVER__AMP__ENABLED": enabled, "SOLVER__AMP__DTYPE": "bfloat16"}
        trainer = make_trainer(data, tmp_path / name, SOLVER__MAX_ITER=50, **amp)
        without_batch_effects(trainer).train()
        assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())
    fp32, bf16 = (as_list(read_losses(tmp_path / name)) for name in ("fp32", "bf16"))
    assert fp32 != bf16, "autocast was not on"
    # bfloat16 has 8 bits of mantissa: about 1 % a step, in the mean over the run well below.
    assert sum(abs(a - b) for a, b in zip(fp32, bf16)) / sum(fp32) < 0.01


def test_ema_changes_no_loss_and_ends_between_start_and_present(data: list[str], tmp_path: Path) -> None:
    train(data, tmp_path / "plain", SOLVER__MAX_ITER=50)
    averaged = train(data, tmp_path / "ema", SOLVER__MAX_ITER=50, SOLVER__EMA__ENABLED=True, SOLVER__EMA__DECAY=0.9)
    assert read_losses(tmp_path / "plain") == read_losses(tmp_path / "ema")
    assert averaged.ema is not None
    assert averaged.ema.updates == 50
    # With decay 0.9 the average lags about 10 steps behind: much nearer to the end than to the start.
    weight = averaged.model.head.weight
    start = make_trainer(data, tmp_path / "start").model.head.weight
    lag = (averaged.ema.shadow["head.weight"] - weight).norm()
    assert 0 < lag < 0.5 * (weight - start).norm()


def test_channels_last_gives_the_same_losses_up_to_rounding(data: list[str], tmp_path: Path) -> None:
    without_batch_effects(make_trainer(data, tmp_path / "plain")).train()
    trainer = without_batch_effects(make_trainer(data, tmp_path / "last", SOLVER__CHANNELS_LAST=True))
    trainer.train()
    assert trainer.model.backbone[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert as_list(read_losses(tmp_path / "last")) == pytest.approx(as_list(read_losses(tmp_path / "plain")), rel=1e-4)


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_images(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(data, tmp_path / "out", SOLVER__MAX_ITER=4, SOLVER__ACCUMULATE=2)
    before = {}

    def strike(loss: torch.Tensor) -> torch.Tensor:
        # The fourth forward pass is the second micro-batch of iteration 1.
        if trainer.model.num_calls.item() == 3:
            before.update({name: p.detach().clone() for name, p in trainer.model.named_parameters()})
        return loss * (math.inf if trainer.model.num_calls.item() == 4 else 1.0)

    monkeypatch.setattr(trainer.model, "_strike", strike)
    with pytest.raises(TrainingError) as caught:
        trainer.train()
    dump = json.loads((tmp_path / "out" / "nonfinite_iteration1_rank0.json").read_text())
    assert len(dump["micro_batches"]) == 2
    culprits = dump["micro_batches"][1]["images"]
    assert "iteration 1:" in str(caught.value)
    assert "loss_box = inf" in str(caught.value)
    for image in culprits:
        assert f"image id {image['image_id']} ({image['file_name']})" in str(caught.value)
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]), name
    assert not (tmp_path / "out" / "last_checkpoint").exists()


def test_a_gradient_that_is_not_finite_stops_though_the_losses_are(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(data, tmp_path / "out")
    # sqrt at 0 has an infinite gradient, and 0 x inf is NaN.
    monkeypatch.setattr(trainer.model, "_strike", lambda loss: (loss * 0.0).sqrt())
    with pytest.raises(TrainingError, match=r"gradient norm = nan: image id \d+"):
        trainer.train()


class FakeEvaluation:
    """Stands for evaluate_datasets: AP values in turn, and what the model's head was at each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, values: list[float], task: str = "segm") -> None:
        self.values, self.task, self.heads, self.crash_at = values, task, [], -1
        monkeypatch.setattr(trainer_module, "evaluate_datasets", self)

    def __call__(self, cfg, model):  # type: ignore[no-untyped-def]
        torch.rand(7)  # an evaluation may draw from the global generator
        if len(self.heads) == self.crash_at:
            raise OSError("the evaluation fails")
        self.heads.append(model.head.weight.detach().clone())
        return {"tiny": {self.task: {"AP": self.values[len(self.heads) - 1]}}}


def test_best_checkpoint_holds_the_averaged_weights_of_the_best_evaluation(
    data: list[str], data_with_val: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = FakeEvaluation(monkeypatch, [10.0, 30.0, float("nan"), 20.0])
    trainer = train(data_with_val, tmp_path / "out", TEST__EVAL_PERIOD=2, SOLVER__EMA__ENABLED=True)
    best = read_checkpoint(str(tmp_path / "out" / "model_best.pth"))
    assert best["iteration"] == 4
    assert best["segm/AP"] == 30.0
    assert torch.equal(best["model"]["head.weight"], evaluation.heads[1])
    assert trainer.ema is not None
    assert torch.equal(trainer.ema.shadow["head.weight"], evaluation.heads[3])
    assert not torch.equal(trainer.model.head.weight, evaluation.heads[3]), "the present weights came back"
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.json").read_text().splitlines()]
    assert {line["iteration"]: line["segm/AP"] for line in lines if "segm/AP" in line} == {2: 10.0, 4: 30.0, 8: 20.0}
    # The evaluations drew random numbers; the losses must not know.
    train(data, tmp_path / "plain", SOLVER__EMA__ENABLED=True)
    assert read_losses(tmp_path / "plain") == read_losses(tmp_path / "out")


def test_best_checkpoint_of_a_method_without_masks_goes_by_boxes(
    data_with_val: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeEvaluation(monkeypatch, [5.0], task="bbox")
    train(data_with_val, tmp_path / "out", SOLVER__MAX_ITER=2)
    assert read_checkpoint(str(tmp_path / "out" / "model_best.pth"))["bbox/AP"] == 5.0


def test_a_final_evaluation_that_failed_is_made_up_for_on_resume(
    data_with_val: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = FakeEvaluation(monkeypatch, [10.0, 20.0])
    evaluation.crash_at = 1
    options = {"SOLVER__MAX_ITER": 4, "TEST__EVAL_PERIOD": 2}
    with pytest.raises(OSError, match="the evaluation fails"):
        train(data_with_val, tmp_path / "out", **options)
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_final.pth"
    evaluation.crash_at = -1
    train(data_with_val, tmp_path / "out", "--resume", **options)
    assert read_checkpoint(str(tmp_path / "out" / "model_best.pth"))["iteration"] == 4
    assert len(evaluation.heads) == 2
    # Once more: everything is done.
    train(data_with_val, tmp_path / "out", "--resume", **options)
    assert len(evaluation.heads) == 2
    assert sorted(read_losses(tmp_path / "out")) == [0, 1, 2, 3]


def test_resume_with_another_schedule_is_refused_unless_forced(data: list[str], tmp_path: Path) -> None:
    train(data, tmp_path / "out", SOLVER__MAX_ITER=2)
    with pytest.raises(CheckpointError, match=r"(?s)SOLVER.MAX_ITER: 2 -> 4.*--force"):
        make_trainer(data, tmp_path / "out", "--resume", SOLVER__MAX_ITER=4)
    trainer = train(data, tmp_path / "out", "--resume", "--force", SOLVER__MAX_ITER=4)
    assert trainer.start_iter == 2
    assert sorted(read_losses(tmp_path / "out")) == [0, 1, 2, 3]


def test_an_existing_run_without_resume_is_refused_and_left_alone(data: list[str], tmp_path: Path) -> None:
    train(data, tmp_path / "out", SOLVER__MAX_ITER=2)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("m*")}
    with pytest.raises(ConfigError, match=r"holds a run already.*\n.*--resume"):
        make_trainer(data, tmp_path / "out", SOLVER__MAX_ITER=2)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").glob("m*")}


def test_resume_from_weights_alone_is_refused(data: list[str], tmp_path: Path) -> None:
    trainer = train(data, tmp_path / "out", SOLVER__MAX_ITER=2)
    torch.save({"model": trainer.model.state_dict()}, tmp_path / "out" / "model_final.pth")
    with pytest.raises(CheckpointError, match="no training state"):
        make_trainer(data, tmp_path / "out", "--resume", SOLVER__MAX_ITER=2)


def test_loss_scaler_changes_no_loss_and_skips_a_step_that_overflows(data: list[str], tmp_path: Path) -> None:
    # The scaler of float16 on CUDA, here on a CPU in fp32: its power-of-two scale is exact.
    clip = {"SOLVER__CLIP_GRADIENTS__ENABLED": True, "SOLVER__ACCUMULATE": 2}
    train(data, tmp_path / "plain", **clip)
    trainer = make_trainer(data, tmp_path / "scaled", **clip)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    trainer.train()
    assert read_losses(tmp_path / "scaled") == read_losses(tmp_path / "plain")
    assert read_checkpoint(str(tmp_path / "scaled" / "model_final.pth"))["scaler"]["scale"] == 2.0**10

    trainer = make_trainer(data, tmp_path / "overflow", SOLVER__MAX_ITER=1)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    # The loss itself stays finite; only its scaled gradient does not.
    trainer.model._strike = lambda loss: loss * 1e6
    before = trainer.model.head.weight.detach().clone()
    trainer.train()
    assert torch.equal(trainer.model.head.weight, before)
    assert trainer.scaler.get_scale() == 2.0**126


@pytest.mark.gpu
def test_float16_stays_near_fp32_over_50_iterations_on_cuda(data: list[str], tmp_path: Path) -> None:
    for name, enabled in (("fp32", False), ("fp16", True)):
        changes = {"MODEL__DEVICE": "cuda", "SOLVER__AMP__ENABLED": enabled, "SOLVER__MAX_ITER": 50}
        trainer = without_batch_effects(make_trainer(data, tmp_path / name, **changes))
        assert trainer.scaler.is_enabled() == enabled
        trainer.train()
    fp32, fp16 = (as_list(read_losses(tmp_path / name)) for name in ("fp32", "fp16"))
    assert sum(abs(a - b) for a, b in zip(fp32, fp16)) / sum(fp32) < 0.01


def test_what_the_samples_lost_is_said_once_at_the_end(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Detectron2's loggers do not propagate, so that caplog would see nothing.
    said: list[str] = []
    monkeypatch.setattr(trainer_module.logger, "warning", lambda text, *values: said.append(text % values))
    train(data, tmp_path, INPUT__MAX_INSTANCES=1, SOLVER__MAX_ITER=3)
    summaries = [text for text in said if "Left out of the samples" in text]
    assert len(summaries) == 1
    assert "INPUT.MAX_INSTANCES" in summaries[0]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "log.txt"}


def test_a_refused_resume_leaves_the_run_as_it_was(data: list[str], tmp_path: Path) -> None:
    first = train(data, tmp_path / "out", SEED=-1, SOLVER__MAX_ITER=2)
    part = tmp_path / "out" / ".model_final.pth.abcd_123.part"  # of a write that was killed
    part.touch()
    before = files_of(tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"(?s)SEED: \d+ -> 5.*SOLVER.BASE_LR: 0.01 -> 0.5"):
        make_trainer(data, tmp_path / "out", "--resume", SEED=5, SOLVER__BASE_LR=0.5, SOLVER__MAX_ITER=2)
    assert files_of(tmp_path / "out") == before
    again = make_trainer(data, tmp_path / "out", "--resume", SEED=-1, SOLVER__MAX_ITER=2)
    assert again.start_iter == 2
    assert not part.exists()
    assert again.cfg.SEED == first.cfg.SEED


def test_the_seed_of_a_resume_is_the_checkpoints_not_the_yamls(data: list[str], tmp_path: Path) -> None:
    train(data, tmp_path / "out", SEED=11, SOLVER__MAX_ITER=2)
    yaml_file = tmp_path / "out" / "config.yaml"
    yaml_file.write_text(yaml_file.read_text().replace("SEED: 11", "SEED: 12"))
    assert make_trainer(data, tmp_path / "out", "--resume", SEED=-1, SOLVER__MAX_ITER=2).cfg.SEED == 11


def momenta(trainer: Trainer) -> dict[str, torch.Tensor]:
    state = trainer.optimizer.state
    return {name: state[p]["momentum_buffer"].clone() for name, p in trainer.model.named_parameters() if p in state}


def test_a_forced_resume_uses_the_new_hyper_parameters_and_the_old_moments(data: list[str], tmp_path: Path) -> None:
    first = train(data, tmp_path / "out", SOLVER__MAX_ITER=4, SOLVER__WARMUP_ITERS=0)
    changes = {"SOLVER__BASE_LR": 0.002, "SOLVER__MOMENTUM": 0.5, "SOLVER__BIAS_LR_FACTOR": 2.0}
    forced = make_trainer(
        data, tmp_path / "out", "--resume", "--force", SOLVER__MAX_ITER=6, SOLVER__WARMUP_ITERS=0, **changes
    )
    # The biases have become a group of their own; every parameter keeps its own moments.
    assert len(forced.optimizer.param_groups) == len(first.optimizer.param_groups) + 1
    before, after = momenta(first), momenta(forced)
    assert before.keys() == after.keys() != set()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert sorted({group["lr"] for group in forced.optimizer.param_groups}) == [0.002, 0.004]
    assert {group["momentum"] for group in forced.optimizer.param_groups} == {0.5}
    forced.train()
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.json").read_text().splitlines()]
    assert [line["lr"] for line in lines if "lr" in line] == [0.01] * 4 + [0.002] * 2


def test_a_forced_resume_with_another_optimizer_starts_its_moments_anew(data: list[str], tmp_path: Path) -> None:
    train(data, tmp_path / "out", SOLVER__MAX_ITER=2)
    changes = {"SOLVER__OPTIMIZER": "ADAMW", "SOLVER__EMA__ENABLED": True, "SOLVER__MAX_ITER": 4}
    forced = make_trainer(data, tmp_path / "out", "--resume", "--force", **changes)
    assert forced.ema is not None
    assert torch.equal(forced.ema.shadow["head.weight"], forced.model.head.weight), "averaging starts at the resume"
    forced.train()
    assert sorted(read_losses(tmp_path / "out")) == [0, 1, 2, 3]


def test_the_logged_rate_is_that_of_parameters_without_a_factor(data: list[str], tmp_path: Path) -> None:
    factors = {"SOLVER__BACKBONE_LR_FACTOR": 0.3, "SOLVER__BIAS_LR_FACTOR": 2.0, "SOLVER__WARMUP_ITERS": 0}
    train(data, tmp_path / "out", SOLVER__MAX_ITER=2, **factors)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.json").read_text().splitlines()]
    assert [line["lr"] for line in lines] == [0.01, 0.01]


def test_a_forced_resume_keeps_what_the_new_config_says_of_unsaved_buffers(data: list[str], tmp_path: Path) -> None:
    first = train(data, tmp_path / "out", SOLVER__MAX_ITER=2)
    path = tmp_path / "out" / "model_final.pth"
    saved = read_checkpoint(str(path))
    assert saved["ranks"][0]["buffers"].keys() == {name for name, _ in first.model.named_buffers()} - {"pixel_mean"}
    # Checkpoints written before held all buffers, perhaps of a shape that the new config no longer has.
    saved["ranks"][0]["buffers"]["pixel_mean"] = torch.zeros(2)
    torch.save(saved, path)
    changes = {"MODEL__PIXEL_MEAN": "[1.0, 2.0, 3.0]", "SOLVER__MAX_ITER": 4}
    forced = make_trainer(data, tmp_path / "out", "--resume", "--force", **changes)
    assert forced.model.pixel_mean.tolist() == [1.0, 2.0, 3.0]
    assert torch.equal(forced.model.normalizer, first.model.normalizer)


def test_a_ranks_buffers_that_do_not_fit_are_refused(data: list[str], tmp_path: Path) -> None:
    train(data, tmp_path / "out", SOLVER__MAX_ITER=2)
    path = tmp_path / "out" / "model_final.pth"
    saved = read_checkpoint(str(path))
    saved["ranks"][0]["buffers"]["normalizer"] = torch.zeros(2)
    torch.save(saved, path)
    with pytest.raises(CheckpointError, match="does not fit"):
        make_trainer(data, tmp_path / "out", "--resume", SOLVER__MAX_ITER=2)
