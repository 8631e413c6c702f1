"""Expert iteration: draw candidates, keep the best, fine-tune an adapter on them, look at held-out prompts, repeat.

Reward-ranked self-training (after ReST-EM: Singh et al., arXiv 2312.06585), in which an expert is learned as what is
preferred to the worst of its prompt, or token by token as the reward's gradient says (`lesson_losses`), with a guard
that stops it and returns the best round within the budgets. Nothing is remembered but files: run again, every phase
finds what it had done, so a run that was killed ends with the experts and the adapter of one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from alignment.candidates import Judges
from alignment.errors import InputError
from alignment.expert_results import summarize, write_expert_report
from alignment.expert_rounds import Rounds
from alignment.experts import SelectionConfig, counterexamples_of, select_experts
from alignment.finetuning import Log
from alignment.interfaces import Embed, LoadAudio, Prompt, Reward, SaveAudio
from alignment.judging import Driver
from alignment.learners import TrainableBackbone
from alignment.lessons import FineTuningConfig, check_objective, resolved
from alignment.lora import LoraConfig, adapter_state, attach_adapter, check_trainable, read_adapter, set_adapter_state
from alignment.overoptimization import BudgetConfig, Distance, Guard
from alignment.processes import agree
from alignment.runs import RECORDS, RESULTS, RunDirectory, versions
from alignment.work import Progress

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ExpertIterationConfig:
    """How the loop runs."""

    num_rounds: int = 3
    num_candidates: int | None = None
    """Clips drawn for every training prompt in a round, with seeds that no other prompt and no other round has; None
    for the family's own default."""
    num_evaluation_seeds: int | None = None
    """Clips of every held-out prompt, with the same seeds for the base and after each round; no candidate has them.
    None for the family's own default."""
    learning_rates: tuple[float, ...] | None = None
    """Tried one after the other on the same experts; the best that breaks no budget goes on. None for the family's own,
    one."""
    start_from: Literal["previous", "base"] = "previous"
    """What a round's training starts from: the adapter that drew its candidates, or the base as in ReST-EM."""
    seed: int = 0
    batch_size: int | None = None
    """Clips generated and judged at once, None for the family's own default; halved for a batch that does not fit the
    memory."""
    keep: Literal["first", "all"] = "first"
    """Clips of held-out prompts whose audio stays: those of the first seed, or all."""
    duration: float | None = None
    """Seconds; None for the backbone's own default, as for the two below."""
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    training: FineTuningConfig = field(default_factory=FineTuningConfig)
    budgets: BudgetConfig = field(default_factory=BudgetConfig)

    def __post_init__(self) -> None:
        for name in ("num_rounds", "num_candidates", "num_evaluation_seeds", "batch_size"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1")
        rates = self.learning_rates
        if rates is not None and (
            not rates or len(set(rates)) != len(rates) or not all(0 < rate < math.inf for rate in rates)
        ):
            raise InputError(f"learning_rates are {list(rates)}; expected one or more different positive numbers")
        if self.start_from not in ("previous", "base"):
            raise InputError(f"start_from is {self.start_from!r}; expected 'previous' or 'base'")
        if self.keep not in ("first", "all"):
            raise InputError(f"keep is {self.keep!r}; expected 'first' or 'all'")
        if not 0 <= self.seed < 2**53:
            raise InputError(f"seed is {self.seed}; expected a whole number from 0 to 2**53")


def check_prompts(prompts: Sequence[Prompt], held_out: Sequence[Prompt]) -> None:
    """
    Raises:
        InputError: no prompts, or a prompt that is trained on is among the held-out ones.
    """
    if not prompts or not held_out:
        raise InputError("expected at least one training prompt and one held-out prompt")
    both = {each.prompt for each in prompts} & {each.prompt for each in held_out}
    if both:
        raise InputError(f"{len(both)} held-out prompts are trained on too, first {sorted(both)[0]!r}")


def expert_iteration(
    backbone: TrainableBackbone,
    reward: Reward,
    prompts: Sequence[Prompt],
    held_out_prompts: Sequence[Prompt],
    config: ExpertIterationConfig,
    run: RunDirectory,
    *,
    save_audio: SaveAudio,
    load_audio: LoadAudio,
    embed: Embed,
    distance: Distance,
    side_rewards: Mapping[str, Reward] | None = None,
    reference: Tensor | None = None,
    info: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    log: Log = lambda values, step: None,
) -> dict[str, Any]:
    """Run the loop, and write everything into `run`. Where it is shared by several processes, all of them call this.

    The adapter of the selected round is on the backbone at the end (a new one, which changes nothing, where the base is
    selected).

    Args:
        backbone: makes the clips and learns; its weights stay as they are, byte for byte.
        reward: chooses the experts.
        prompts: trained on, with unique ids.
        held_out_prompts: rounds are compared on these alone.
        config: how much and how.
        run: an entered output directory; what is already in it is not done again.
        save_audio, load_audio: write wav [C, T], and read it as the judges are to hear it.
        embed: embeddings for diversity and drift.
        distance: of two sets of embeddings, such as the Frechet distance.
        side_rewards: other judges by name; "held_out_reward" and the rest have budgets of their own.
        reference: embeddings [M, E] of real music, by `embed`; None without.
        info: JSON values recorded in config.json and results.json.
        progress: a progress bar; counts clips.
        log: told losses by step, and the measures of each round, for trackers.

    Returns:
        the contents of results.json.

    Raises:
        InputError: impossible settings, too few candidates, out of memory in training; what was done is kept, and
            running again continues.
    """
    check_trainable(backbone)
    check_prompts(prompts, held_out_prompts)
    num_candidates = config.num_candidates or backbone.learning.num_candidates
    num_evaluation_seeds = config.num_evaluation_seeds or backbone.learning.num_evaluation_seeds
    batch_size = config.batch_size or backbone.learning.batch_size
    rates = config.learning_rates or (backbone.learning.learning_rate,)
    config.selection.check(len(prompts), num_candidates)
    check_objective(backbone, config.training, num_candidates)
    settings = backbone.resolve(config.duration, config.num_inference_steps, config.guidance_scale)
    described = {
        "backbone": {
            "name": backbone.name,
            "license": backbone.license,
            "sample_rate": backbone.sample_rate,
            "channels": backbone.channels,
        },
        **(info or {}),
        "versions": versions(("peft", "accelerate")),
    }
    learning = {
        "num_prompts": len(prompts),
        "num_candidates": num_candidates,
        "num_evaluation_seeds": num_evaluation_seeds,
        "batch_size": batch_size,
        "learning_rates": list(rates),
    }
    # the weights of other objectives have no say
    objective = resolved("objective", config.training, backbone.learning)
    weights = {"gradient": ("kl_weight",), "preference": ("preference_beta",)}.get(objective, ())
    names = ("objective", "num_steps", *weights)
    learning |= {name: resolved(name, config.training, backbone.learning) for name in names}
    run.start(described, {"generation": settings.to_dict(), "learning": learning})
    judges = Judges(reward, side=side_rewards or {}, embed=embed)
    driver = Driver(run, judges, load_audio, batch_size, "all", progress)
    attach_adapter(backbone, config.lora, config.seed)
    counts = num_candidates, num_evaluation_seeds
    rounds = Rounds(backbone, settings, *counts, config, run, driver, reward, save_audio, log)
    outcome = _iterate(rounds, rates, prompts, held_out_prompts, distance, reference, log)

    def write() -> None:
        run.write_records(outcome["records"], RECORDS)
        summary = summarize(outcome, run.config, driver.seconds())
        write_expert_report(run, summary)
        run.write_json(RESULTS, summary)

    agree(run.processes, write)
    return run.read_json(RESULTS) or {}


def _iterate(
    rounds: Rounds,
    rates: Sequence[float],
    prompts: Sequence[Prompt],
    held_out_prompts: Sequence[Prompt],
    distance: Distance,
    reference: Tensor | None,
    log: Log,
) -> dict[str, Any]:
    """All rounds, until the guard stops them; what there is to say of them."""
    backbone, config = rounds.backbone, rounds.config
    untrained = policy = adapter_state(backbone)
    heard = {"0": rounds.evaluate("0", held_out_prompts)}
    guard = Guard(heard["0"], config.budgets, distance, reference)
    chosen: list[dict[str, Any]] = []
    trials: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    stopped = f"all {config.num_rounds} rounds are done"
    for number in range(1, config.num_rounds + 1):
        set_adapter_state(backbone, policy)
        # after the seeds of evaluation, which are nobody's to learn, and those of earlier rounds
        taken = len(held_out_prompts) * rounds.num_evaluation_seeds
        taken += (number - 1) * len(prompts) * rounds.num_candidates
        pools = rounds.candidates(number, prompts, config.seed + taken)
        experts = select_experts(pools, config.selection)
        others = counterexamples_of(pools, experts) if rounds.objective == "preference" else None
        drawn = [candidate for pool in pools for candidate in pool]
        roles = {"expert": {id(c) for c in experts}, "counterexample": {id(c) for c in others or ()}}
        for c in drawn:
            records.append({"round": number, **{role: id(c) in ids for role, ids in roles.items()}, **c.to_dict()})
        lesson = rounds.lesson(number, experts, others)
        scored = [candidate.reward for candidate in drawn if candidate.reward is not None]
        about = {
            "num_experts": len(experts),
            "num_expert_prompts": len({expert.prompt_id for expert in experts}),
            "candidate_reward_mean": sum(scored) / len(scored),
            "expert_reward_mean": sum(expert.reward or 0.0 for expert in experts) / len(experts),
        }
        own: list[dict[str, Any]] = []
        for k, rate in enumerate(rates):
            set_adapter_state(backbone, policy if config.start_from == "previous" else untrained)
            name = f"{number}-{k}"
            trial: dict[str, Any] = {"round": number, "trial": name, "learning_rate": rate, **about}
            trial |= rounds.train(number, k, rate, lesson, experts)
            if not trial["broken"]:
                heard[name] = rounds.evaluate(name, held_out_prompts)
                trial |= guard.measure(heard[name])
                values: dict[str, Any] = {
                    key: trial.get(key) for key in ("reward_mean", "reward_delta", "held_out_mean", "diversity")
                }
                values |= {"drift": trial.get("drift")}
                log({f"round/{key}": value for key, value in values.items() if value is not None}, rounds.steps_done)
            own.append(trial)
        trials += own
        allowed = [trial for trial in own if not trial["broken"]]
        ranked = sorted(allowed or own, key=lambda trial: -_value(trial))
        chosen.append(ranked[0])
        if not allowed:
            stopped = f"round {number} went beyond what is allowed: {'; '.join(ranked[0]['broken'])}"
            break
        read_adapter(backbone, rounds.run.path / ranked[0]["adapter"])
        policy = adapter_state(backbone)
    base = guard.of_base
    sound = [trial for trial in chosen if not trial["broken"]]
    selected = max(sound, key=_value, default=None)
    if selected is None or _value(selected) < base["reward_mean"]:
        selected = None
        set_adapter_state(backbone, untrained)
    else:
        read_adapter(backbone, rounds.run.path / selected["adapter"])
    return {
        "base": base,
        "rounds": chosen,
        "trials": trials,
        "selected": selected,
        "stopped_because": stopped,
        "records": records,
        "heard": heard,
    }


def _value(trial: Mapping[str, Any]) -> float:
    reward = trial.get("reward_mean")
    return -math.inf if reward is None else float(reward)
