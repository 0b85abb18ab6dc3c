"""A trainer and the folder that it reports to."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import torch

from ...core.backbone import CausalLM
from ...core.contracts import Batch
from ...core.distributed import world
from ...core.errors import BestiaryError
from ...core.manifest import Manifest
from ...registry.save import save
from ..amount import due
from ..checked import table
from ..data.dataset import Data
from ..options import Recipe
from .checkpoint import FOLDER as CHECKPOINTS
from .checkpoint import Checkpoint, Checkpoints
from .display import Display
from .finite import keep_batch
from .interrupt import Interrupt
from .memory import peak_memory
from .metrics import Line, Log, NoLog, read_log
from .result import AVERAGE, METRICS, MODEL, RECIPE, SUMMARY, RunResult, Status, Summary, read_run, write_json, write_summary
from .trackers import Tracker, open_trackers
from .trainer import Diverged, Trainer
from .whole import tensors_of, whole_model

NON_FINITE = "non-finite"
"""Folder of the batches whose steps were not taken."""


class Run:
    """One training run on disk, from a fresh or an unfinished folder to its summary."""

    def __init__(self, recipe: Recipe, manifest: Manifest, data: Data, device: torch.device, folder: Path, *, digest: str) -> None:
        self.recipe, self.manifest, self.data, self.device = recipe, manifest, data, device
        self.folder, self.digest = folder, digest
        self.checkpoints = Checkpoints(folder, recipe.checkpoint)
        self.last: Line
        """The last evaluation."""

    def prepare(self, *, resume: bool, overwrite: bool) -> int:
        """Clears the folder, or reads the checkpoint from which the run goes on.

        Returns:
            Steps that were taken before.

        Raises:
            BestiaryError: the folder holds something else.
        """
        found = self._unfinished() if resume else None
        if found is None:
            self._check_free(overwrite)
        world.meet()
        self.trainer = Trainer(self.recipe, self.manifest, self.data, self.device)
        if found is None:
            self._begin(self.trainer.evaluate())
        else:
            self._go_on(found)
        config = table(self.recipe)
        step = self.trainer.state.step
        self.trackers: list[Tracker] = open_trackers(self.recipe.log, self.folder, config, step=step) if world.lead() else []
        return self.trainer.state.step

    def go(self, interrupt: Interrupt, display: Display) -> None:
        """Steps, evaluations and checkpoints until the budget is used up, someone interrupts, or the run diverges."""
        steps, evaluated, saved = self.recipe.steps, self.recipe.log.eval_every, self.recipe.checkpoint.every
        display.show(self.last)
        while self.trainer.state.step < steps and not world.anyone(interrupt.requested):
            line = self._step()
            if line.kind == "skip" or line.step % self.recipe.log.every == 0 or line.step == steps:
                self._write(line, display)
            ended = world.anyone(interrupt.requested) or line.step == steps
            if ended or due(evaluated, line.step, steps):
                self._evaluate(display)
            if saved and (ended or due(saved, line.step, steps)):
                self._checkpoint()
            self.checkpoints.poll()

    def finish(self) -> RunResult:
        """Saves the model, then the summary: a folder with a summary is complete."""
        self.checkpoints.finish()
        model, average = self.trainer.state.model, self.trainer.state.average
        if world.active():
            self._save_joined()
        else:
            self._save(model, MODEL)
            if average is not None:
                with average.in_place():
                    self._save(model, AVERAGE)
        model.train()
        step, steps = self.trainer.state.step, self.recipe.steps
        return self._summarise("finished", "") if step == steps else self._summarise("interrupted", f"after step {step} of {steps}")

    def _step(self) -> Line:
        try:
            line = self.trainer.step()
        except Diverged as error:
            step = self.trainer.state.step + 1
            where = self._keep(step, str(error), error.batch)
            self.checkpoints.finish()
            self._summarise("diverged", str(error))
            raise Diverged(f"{error} Its batch is kept in {where}, and what was logged until then.", error.batch) from error
        if line.kind == "skip":
            self._keep(line.step, line.message, self.trainer.batch(line.step - 1))
        return line

    def _keep(self, step: int, message: str, batch: Batch) -> Path:
        where = self.folder / NON_FINITE / f"step-{step:08d}"
        if not world.lead():
            return where
        keep_batch(where, batch, {"step": step, "message": message, "recipe": table(self.recipe)})
        return where

    def _evaluate(self, display: Display) -> None:
        self.last = self.trainer.evaluate()
        self._write(self.last, display)

    def _write(self, line: Line, display: Display) -> None:
        self.log.write(line)
        for tracker in self.trackers:
            tracker.write(line)
        display.show(line)

    def _checkpoint(self) -> None:
        state, last = self.trainer.state, self.last
        record = {
            "digest": self.digest,
            "step": state.step,
            "seconds": state.seconds,
            "skipped": list(state.skipped),
            "loads": {layer: list(load.shape) for layer, load in state.loads.items()},
            "bits_per_byte": last.bits_per_byte if last.step == state.step else None,
        }
        self.checkpoints.save(state.tensors(), record)

    def _unfinished(self) -> Checkpoint | None:
        """The last checkpoint of this very run, when it was cut off."""
        done = read_run(self.folder)
        if done is not None and done.summary.status != "interrupted":
            return None
        mine = [one for one in self.checkpoints.complete() if one.record["digest"] == self.digest]
        return mine[-1] if mine else None

    def _begin(self, first: Line) -> None:
        """Makes the folder, without the results of a run that was there."""
        self.log, self.last = NoLog(), first
        if not world.lead():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in (SUMMARY, METRICS):
            (self.folder / name).unlink(missing_ok=True)
        for name in (MODEL, AVERAGE, NON_FINITE, CHECKPOINTS, "tensorboard"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        write_json(self.folder / RECIPE, table(self.recipe))
        write_json(self.folder / "manifest.json", self.manifest.table())
        self.log = Log(self.folder)
        self.log.write(first)

    def _go_on(self, found: Checkpoint) -> None:
        state = self.trainer.state
        state.optimizers.allocate()
        state.loads = {layer: torch.zeros(shape, dtype=torch.int64) for layer, shape in found.record["loads"].items()}
        tensors = state.tensors()
        found.read(tensors)
        torch.set_rng_state(tensors["random"]["torch"])
        state.step, state.seconds, state.skipped = found.step, found.record["seconds"], found.record["skipped"]
        self.last = [line for line in read_log(self.folder / METRICS) if line.kind == "eval" and line.step <= state.step][-1]
        world.meet()
        self.log = Log(self.folder, after=state.step) if world.lead() else NoLog()
        if world.lead():
            (self.folder / SUMMARY).unlink(missing_ok=True)

    def _check_free(self, overwrite: bool) -> None:
        folder = self.folder
        if folder.exists() and not folder.is_dir():
            raise BestiaryError(f"{folder} is a file, and the run needs a folder. Give another output folder.")
        if folder.is_dir() and any(folder.iterdir()) and not (folder / RECIPE).exists():
            raise BestiaryError(f"{folder} holds files that are no run. Give another output folder, or an empty one.")
        if overwrite:
            return
        if (folder / SUMMARY).exists():
            raise BestiaryError(f"{folder} holds a run already. Give another output folder, or --overwrite (overwrite=True).")
        if self.checkpoints.complete():
            raise BestiaryError(
                f"{folder} holds an unfinished run of another recipe, model or data. Give another output folder, or --overwrite "
                "(overwrite=True)."
            )

    def _save_joined(self) -> None:
        """Has the first rank put the model together from a checkpoint, whatever it was spread over."""
        state = self.trainer.state
        tensors = {kind: found for kind, found in state.tensors().items() if kind in ("model", "average")}
        parts = Checkpoint(self.folder / ".parts", {})
        parts.write(tensors)
        if world.lead():
            whole = whole_model(self.manifest)
            parts.read({"model": tensors_of(whole)}, alone=True)
            self._save(whole, MODEL)
            if state.average is not None:
                average = {name: tensor for name, tensor in tensors_of(whole).items() if tensor.is_floating_point()}
                parts.read({"average": average}, alone=True)
                self._save(whole, AVERAGE)
            shutil.rmtree(parts.folder)
        world.meet()

    def _save(self, model: CausalLM, name: str) -> None:
        save(model, self.folder / name)
        self.data.tokenizer.save(self.folder / name, self.data.end)

    def _summarise(self, status: Status, message: str) -> RunResult:
        self.log.close()
        for tracker in self.trackers:
            tracker.close()
        trainer, account, state, last = self.trainer, self.trainer.account, self.trainer.state, self.last
        speed = trainer.tokens / state.seconds if state.seconds else 0.0
        summary = Summary(
            status=status,
            message=message,
            model=self.manifest.name,
            digest=self.digest,
            manifest_digest=self.manifest.digest,
            data_digest=self.data.digest,
            steps=state.step,
            tokens=trainer.tokens,
            flops=trainer.flops,
            seconds=state.seconds,
            tokens_per_second=speed,
            bits_per_byte=None if status == "diverged" else last.bits_per_byte,
            bits_per_byte_average=None if status == "diverged" else last.bits_per_byte_average,
            skipped=state.skipped,
            mfu=speed * account.flops_training / trainer.peak,
            mfu_noncausal=speed * account.flops_training_noncausal / trainer.peak,
            peak_flops=trainer.peak,
            max_vio=sum(last.max_vio.values()) / len(last.max_vio) if last.max_vio else None,
            max_vio_sequence=last.max_vio_sequence,
            agreement=last.agreement,
            parameters=account.parameters,
            active_parameters=account.active_parameters,
            objective_parameters=account.objective_parameters,
            flops_per_token=account.flops_training,
            cache_bytes_per_token=account.cache_bytes_per_token,
            peak_memory=peak_memory(self.device),
            left_out=len(self.data.left_out),
            device=str(self.device),
            versions=_versions(),
        )
        if world.lead():
            write_summary(self.folder, summary)
        world.meet()
        return RunResult(self.folder, summary)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"bestiary": version("bestiary"), "torch": torch.__version__, "python": platform.python_version()}
