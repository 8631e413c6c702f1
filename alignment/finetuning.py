"""Fine-tuning an adapter on clips that a backbone made itself.

Learning the best of one's own clips by their likelihood moves a model by all they happen to have in common, of which
the reward is little. So by default each is set against the worst of its prompt: with l a family's own loss of a clip,
now and as training began (ref), both for the same noise and times, a pair's loss is
-log sigmoid(beta * ((l_ref - l)(expert) - (l_ref - l)(counterexample))). It is Diffusion-DPO (Wallace et al., arXiv
2311.12908, equation 14) for diffusion and flows, and DPO (Rafailov et al., arXiv 2305.18290, equation 7), by the mean
over tokens, for language models.

A step's gradient is that of the mean loss over its batch, whatever number of parts or processes the batch is cut into:
everything random in a clip's loss comes from a generator of its own, and the parts' gradients are summed. Between two
sessions the state is in one file, so that a run that was killed ends with the adapter of one that was not.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.candidates import is_out_of_memory
from alignment.errors import InputError
from alignment.interfaces import LatentBackbone, Processes, TrainableBackbone
from alignment.lessons import DivergedError, FineTuningConfig, Lesson, num_steps, preference_beta
from alignment.lora import adapter_parameters, set_adapter_state
from alignment.processes import agree, is_main, share
from alignment.tensors import read_tensors, write_tensors

if TYPE_CHECKING:
    import torch
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
        self.reference = {name: each.detach().clone() for name, each in self.parameters.items()}
        values = list(self.parameters.values())
        self.optimizer = torch.optim.AdamW(values, lr=learning_rate, weight_decay=config.weight_decay)
        self.preference_beta = preference_beta(config, backbone.learning)
        self.num_steps = num_steps(config, backbone.learning)
        self.losses: list[float] = []
        self.parts = config.gradient_accumulation_steps
        self.autocast = _autocast(values[0].device, config.mixed_precision)
        # encoded once, not in every step
        self.conditioning = (
            backbone.encode_prompts(lesson.prompts, lesson.duration) if isinstance(backbone, LatentBackbone) else None
        )

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
                    loss = self._loss(step, places) * (len(places) / self.config.train_batch_size)
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

    def _loss(self, step: int, places: Sequence[int]) -> Tensor:
        import torch
        from torch.nn.functional import logsigmoid

        rows = [self._row(step * self.config.train_batch_size + place) for place in places]
        lesson = self.lesson
        if lesson.counterexamples is None:
            own = self.backbone.clip_losses
            return self._losses(own, lesson.targets[torch.tensor(rows)], rows, step, places).mean()
        drawn_with = partial(self.backbone.preference_losses, guidance_scale=lesson.guidance_scale)
        both = torch.cat([each[torch.tensor(rows)] for each in (lesson.targets, lesson.counterexamples)])
        with torch.no_grad(), self._as_at_the_start():
            reference = self._losses(drawn_with, both, rows, step, places)
        expert, other = (reference - self._losses(drawn_with, both, rows, step, places)).chunk(2)
        return -logsigmoid(self.preference_beta * (expert - other)).mean()

    def _losses(
        self, losses: Callable[..., Tensor], targets: Tensor, rows: Sequence[int], step: int, places: Sequence[int]
    ) -> Tensor:
        """Losses of clips [B or 2 B, ...]; the counterexamples share the noise, times and dropped prompts of theirs."""
        import torch

        times = len(targets) // len(rows)
        rows, places = list(rows) * times, list(places) * times
        heard = [self.lesson.prompts[row] for row in rows] if self.conditioning is None else None
        with self.autocast:
            return losses(
                targets,
                heard if self.conditioning is None else self.conditioning.select(rows),
                [torch.Generator().manual_seed(mixed_seed(self.seed, step, place)) for place in places],
                self.lesson.duration,
                condition_dropout=self.config.condition_dropout,
            )

    @contextmanager
    def _as_at_the_start(self) -> Iterator[None]:
        now = {name: each.data for name, each in self.parameters.items()}
        try:
            for name, each in self.parameters.items():
                each.data = self.reference[name]
            yield
        finally:
            for name, each in self.parameters.items():
                each.data = now[name]

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


def mixed_seed(*parts: object) -> int:
    """A seed that is a hash of some numbers or words."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")


def _autocast(device: torch.device, precision: str) -> Any:
    import torch

    able = device.type == "cuda" and torch.cuda.is_bf16_supported()
    if precision == "no" or (precision == "auto" and not able):
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


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
