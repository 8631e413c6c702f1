"""Fine-tuning an adapter on clips that a backbone made itself; what is minimised is in `lesson_losses`.

A step's gradient is that of the mean loss over its batch, whatever number of parts or processes the batch is cut into:
everything random in a clip's loss comes from a generator of its own, and the parts' gradients are summed. Between two
sessions the state is in one file, so that a run that was killed ends with the adapter of one that was not.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.candidates import is_out_of_memory
from alignment.errors import InputError
from alignment.interfaces import Processes
from alignment.learners import TrainableBackbone
from alignment.lesson_losses import LessonLosses, mixed_seed
from alignment.lessons import DivergedError, FineTuningConfig, Lesson, resolved
from alignment.lora import adapter_parameters, set_adapter_state
from alignment.processes import agree, is_main, share
from alignment.tensors import read_tensors, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

Log = Callable[[Mapping[str, float], int], object]
"""Takes values by name, and the step they belong to."""


def fine_tune(
    backbone: TrainableBackbone,
    lesson: Lesson,
    learning_rate: float,
    config: FineTuningConfig,
    seed: int,
    checkpoint: Path,
    processes: Processes,
    log: Log = lambda values, step: None,
) -> list[float]:
    """Train the adapter that is on the backbone, and leave the average over steps in its place.

    Args:
        backbone: with an adapter whose parameters require a gradient.
        learning_rate: after the warm-up.
        seed: of the order of the clips, their noise and times.
        checkpoint: the file that a killed run goes on from; shared by all processes.
        processes: all of them call this with the same arguments.
        log: told the loss and rate of each step.

    Returns:
        the loss of each step.

    Raises:
        DivergedError: the loss or its gradient became NaN or infinite.
        InputError: out of memory for a single clip; the state of the last checkpoint is kept.
    """
    trainer = _Trainer(backbone, lesson, learning_rate, config, seed, processes)
    if agree(processes, checkpoint.is_file):
        trainer.restore(checkpoint)
    agree(processes, lambda: None)  # nobody writes before everyone has read
    with _gradient_checkpointing(backbone, config.gradient_checkpointing):
        while len(trainer.losses) < trainer.num_steps:
            rate = trainer.step()
            log({"train/loss": trainer.losses[-1], "train/learning_rate": rate}, len(trainer.losses))
            due = len(trainer.losses) % config.checkpoint_every == 0 or len(trainer.losses) == trainer.num_steps
            if due and is_main(processes):
                trainer.save(checkpoint)
    set_adapter_state(backbone, trainer.average)
    return trainer.losses


class _Trainer:
    def __init__(
        self,
        backbone: TrainableBackbone,
        lesson: Lesson,
        learning_rate: float,
        config: FineTuningConfig,
        seed: int,
        processes: Processes,
    ) -> None:
        import torch

        self.backbone, self.lesson, self.config = backbone, lesson, config
        self.learning_rate, self.seed, self.processes = learning_rate, seed, processes
        self.parameters = adapter_parameters(backbone)
        self.average = {name: each.detach().clone() for name, each in self.parameters.items()}
        values = list(self.parameters.values())
        self.optimizer = torch.optim.AdamW(values, lr=learning_rate, weight_decay=config.weight_decay)
        self.loss = LessonLosses(backbone, lesson, config, seed)
        self.num_steps = resolved("num_steps", config, backbone.learning)
        self.losses: list[float] = []
        self.parts = config.gradient_accumulation_steps

    def step(self) -> float:
        """One step; returns its learning rate."""
        import torch

        step, size = len(self.losses), self.config.train_batch_size
        mine = share(range(size), self.processes)
        loss = self._gradient(step, mine)
        for each in self.parameters.values():
            if each.grad is None:
                each.grad = torch.zeros_like(each)
        if self.processes.num_processes > 1:
            loss = self._summed(loss)
        norm = torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), self.config.max_grad_norm)
        if not (math.isfinite(loss) and bool(norm.isfinite())):
            raise DivergedError(
                f"the loss is not finite in step {step + 1} of {self.num_steps} at learning rate "
                f"{self.learning_rate:g}; a smaller one may do"
            )
        rate = self.learning_rate * min(1.0, (step + 1) / (self.config.warmup_steps + 1))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.losses.append(loss)
        decay = min(self.config.ema_decay, (1 + step) / (10 + step))
        for name, each in self.parameters.items():
            self.average[name].lerp_(each.detach(), 1 - decay)
        return rate

    def _gradient(self, step: int, mine: Sequence[int]) -> float:
        """Leave this process's part of the batch's gradient in the parameters; returns its part of the loss."""
        import torch

        while True:
            self.optimizer.zero_grad()
            parts = min(self.parts, len(mine))
            total, problem = 0.0, ""
            try:
                for k in range(parts):
                    places = mine[len(mine) * k // parts : len(mine) * (k + 1) // parts]
                    rows = [self._row(step * self.config.train_batch_size + place) for place in places]
                    loss = self.loss(step, rows, places) * (len(places) / self.config.train_batch_size)
                    loss.backward()
                    total += float(loss.detach())
                return total
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                problem = " ".join(str(error).split())[:200]
            # outside the handler, whose traceback keeps the tensors of the failed attempt alive
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if parts >= len(mine):
                raise InputError(
                    f"out of memory training on a single clip ({problem}); what was done is kept: free some memory, or "
                    "take shorter clips"
                )
            self.parts = 2 * parts
            logger.warning("out of memory for %d clips at once; cutting a batch into %d", len(mine), self.parts)

    def _row(self, place: int) -> int:
        """Which clip is the n-th to be learned: all of them in a new order, again and again."""
        import torch

        epoch, place = divmod(place, len(self.lesson.prompts))
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, "order", epoch))
        return int(torch.randperm(len(self.lesson.prompts), generator=generator)[place])

    def _summed(self, loss: float) -> float:
        """Sum gradients and losses over processes, in one message."""
        import torch
        from accelerate.utils import reduce

        parameters = list(self.parameters.values())
        gradients = [each.grad.reshape(-1).float() for each in parameters if each.grad is not None]
        flat = reduce(torch.cat([*gradients, gradients[0].new_tensor([loss])]), reduction="sum")
        start = 0
        for each in parameters:
            each.grad = flat[start : start + each.numel()].view_as(each).to(each.dtype)
            start += each.numel()
        return float(flat[-1])

    def save(self, path: Path) -> None:
        """Parameters, averages and the optimizer's moments."""
        tensors: dict[str, Tensor] = {}
        for name, each in self.parameters.items():
            state = self.optimizer.state[each]
            values = {"value": each.detach(), "average": self.average[name]}
            values |= {"first": state["exp_avg"], "second": state["exp_avg_sq"]}
            tensors |= {f"{kind}/{name}": value.cpu() for kind, value in values.items()}
        write_tensors(path, tensors, {"losses": self.losses, "parts": self.parts})

    def restore(self, path: Path) -> None:
        """
        Raises:
            InputError: the file is damaged or of another adapter.
        """
        import torch

        tensors, about = read_tensors(path)
        try:
            state = {}
            for place, (name, each) in enumerate(self.parameters.items()):
                each.data.copy_(tensors[f"value/{name}"])
                self.average[name].copy_(tensors[f"average/{name}"])
                moments = {"exp_avg": tensors[f"first/{name}"], "exp_avg_sq": tensors[f"second/{name}"]}
                state[place] = {"step": torch.tensor(float(len(about["losses"]))), **moments}
        except (KeyError, RuntimeError) as error:
            raise InputError(f"{path} is no state of this adapter: {error}; --overwrite starts anew") from None
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.losses, self.parts = list(about["losses"]), int(about["parts"])


class _gradient_checkpointing:  # noqa: N801 - used as a function
    """Switch it on for the time of a block.

    Raises:
        InputError: the model has none that is exact: transformers' goes with dropout.
    """

    def __init__(self, backbone: TrainableBackbone, wanted: bool) -> None:
        module: Any = backbone.trainable_module
        self.module, self.wanted = module, wanted
        if wanted and not hasattr(module, "enable_gradient_checkpointing"):
            raise InputError(f"{backbone.name} has no gradient checkpointing; leave --gradient-checkpointing out")

    def __enter__(self) -> None:
        if self.wanted:
            self.module.enable_gradient_checkpointing()

    def __exit__(self, *error: object) -> None:
        if self.wanted:
            self.module.disable_gradient_checkpointing()
