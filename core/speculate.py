"""Speculative decoding (Leviathan et al., 2023; Chen et al., 2023): a drafter guesses k tokens, one pass of the model checks all.

At temperature 0 a guess is accepted when it is the model's most likely token, and the output is that of plain decoding. Else, of
the model's distribution p and the drafter's q, a guess x is accepted with probability `min(1, p(x) / q(x))`; in place of the
first one refused a token is drawn from `max(p - q, 0)`, normalised. Tokens then have exactly the distribution p.

Rows of a batch advance together, by what the least successful of them allows. Each position is decided before it is known
whether later ones are used, so that this changes no distribution, only the speed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .contracts import Drafter, Hidden
from .errors import BestiaryError, suggest
from .plugins import plugins
from .sampling import Sampling, draw, probabilities

if TYPE_CHECKING:
    from .backbone import CausalLM


@dataclass
class Acceptance:
    """What became of drafts; adds up over all calls that it is given to."""

    passes: int = 0
    """Passes of the model that checked a draft."""
    tokens: int = 0
    """Tokens that these passes gave, for a row of the batch."""
    drafted: list[int] = field(default_factory=list)
    """By place in the draft: guesses, counted in rows that had not ended."""
    accepted: list[int] = field(default_factory=list)
    """By place in the draft: guesses that were accepted, and with them all before."""

    @property
    def rates(self) -> list[float]:
        """Share of guesses accepted, by place in the draft."""
        return [accepted / drafted for accepted, drafted in zip(self.accepted, self.drafted, strict=True) if drafted]

    @property
    def tokens_per_pass(self) -> float:
        """Mean number of tokens from one pass: 1 without any luck, k + 1 at best."""
        return self.tokens / self.passes if self.passes else 0.0

    def add(self, tokens: int, drafted: list[int], accepted: list[int]) -> None:
        """Counts one pass."""
        self.passes += 1
        self.tokens += tokens
        for total, new in ((self.drafted, drafted), (self.accepted, accepted)):
            total += [0] * (len(new) - len(total))
            total[: len(new)] = [a + b for a, b in zip(total, new, strict=False)]

    def __str__(self) -> str:
        rates = ", ".join(f"{rate:.1%}" for rate in self.rates)
        text = f"{self.tokens_per_pass:.2f} tokens per pass of the model in {self.passes} passes"
        return f"{text}; drafted tokens accepted: {rates or 'none'}"


@dataclass(frozen=True)
class Speculation:
    """Who drafts, and how much."""

    use: str
    """Key or component name of one of the model's objectives."""
    draft_tokens: int = 1
    """Guesses for each pass of the model."""
    acceptance: Acceptance | None = None
    """Counts what became of the drafts."""

    def __post_init__(self) -> None:
        if self.draft_tokens < 1:
            raise BestiaryError(f"draft_tokens {self.draft_tokens} is less than 1. Draft one at least, or decode without.")

    def drafter(self, model: CausalLM, batch: int, length: int) -> Drafter:
        """The named objective's drafter.

        Raises:
            BestiaryError: the model has no such objective, or it does not draft.
        """
        uses = {key: part.use for key, part in model.manifest.objectives.items()}
        able = [key for key, goal in model.goals.items() if hasattr(goal, "drafter")]
        for key in able:
            if self.use in (key, uses[key]):
                return getattr(model.goals[key], "drafter")(model, batch, length, self.draft_tokens)  # noqa: B009
        if self.use in {*uses, *uses.values()}:
            raise BestiaryError(f"The objective '{self.use}' does not draft tokens. Those here that do: {', '.join(able) or 'none'}.")
        installed = plugins().slots["objective"]
        if self.use not in installed:
            raise BestiaryError(f"There is no objective '{self.use}' to draft with. {suggest(self.use, {*installed, *uses})}")
        raise BestiaryError(
            f"This model has no objective '{self.use}' to draft with; it has {', '.join(uses) or 'none'}. "
            f'Load a checkpoint that holds one, or train a model with objective.{self.use}.use = "{self.use}".'
        )


class Speculative:
    """Decodes a batch by blocks of tokens, as many as were accepted and one more."""

    def __init__(
        self,
        model: CausalLM,
        input_ids: Tensor,
        length: int,
        sampling: Sampling,
        generator: torch.Generator | None,
        *,
        speculation: Speculation,
        ends: frozenset[int],
    ) -> None:
        """`length` is that of the longest sequence, prompt included; `ends` are the tokens that end a row."""
        self.model, self.sampling, self.generator = model, sampling, generator
        self.drafter = speculation.drafter(model, len(input_ids), length)
        self.acceptance, self.ends = speculation.acceptance, ends
        self.cache, self.prompt = model.new_cache(len(input_ids), length), input_ids
        self.certain: tuple[Hidden, Tensor] | None = None

    def block(self, room: int, done: list[bool]) -> Tensor:
        """The next 1 to `room` tokens of every row, `[B, N]`; what `done` rows get means nothing."""
        if self.certain is None:
            return self._prefill()
        drafts, q = self._draft(room - 1)
        step = torch.cat((self.certain[1][:, -1:], drafts), dim=1)
        hidden, before = self.model.hidden(step, cache=self.cache), self.cache.length - step.shape[1]
        fits, outcome = self._judge(drafts, q, self.model.logits(hidden.normed))
        count = self._count(drafts, fits, done)
        self.cache.crop(before + count)
        kept = Hidden(hidden.raw[:, :count], hidden.normed[:, :count], hidden.context)
        self.certain = kept, outcome[:, :count]
        return outcome[:, :count]

    def _prefill(self) -> Tensor:
        hidden = self.model.hidden(self.prompt, cache=self.cache)
        token = draw(self.model.logits(hidden.normed[:, -1]), self.sampling, self.generator)[:, None]
        self.certain = hidden, torch.cat((self.prompt[:, 1:], token), dim=1)
        return token

    def _draft(self, most: int) -> tuple[Tensor, list[Tensor]]:
        """Guesses `[B, k]`, k at most `most`, and the distribution `[B, V]` that each was drawn from."""
        q: list[Tensor] = []

        def choose(logits: Tensor) -> Tensor:
            if self.sampling.temperature == 0:
                return logits.argmax(dim=-1)
            q.append(probabilities(logits, self.sampling))
            return torch.multinomial(q[-1], 1, generator=self.generator)[:, 0]

        assert self.certain is not None
        if most == 0:
            return self.prompt[:, :0], q
        return self.drafter.draft(*self.certain, choose)[:, :most], q[:most]

    def _judge(self, drafts: Tensor, q: list[Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
        """See `judge`; at temperature 0 the outcome is the most likely token."""
        if self.sampling.temperature == 0:
            outcome = logits.argmax(dim=-1)
            return drafts == outcome[:, :-1], outcome
        p = probabilities(logits.flatten(0, 1), self.sampling).view_as(logits)
        nothing = torch.zeros_like(p[:, 0])
        return judge(drafts, p, torch.stack((*q, nothing), dim=1), self.generator)

    def _count(self, drafts: Tensor, fits: Tensor, done: list[bool]) -> int:
        """How many tokens the block gives: every row must have accepted what comes before the last, or have ended."""
        places = drafts.shape[1]
        drafted, accepted, limits, lengths = [0] * places, [0] * places, [], []
        for guesses, right, over in zip(drafts.tolist(), fits.tolist(), done, strict=True):
            if over:
                continue
            run = right.index(False) if False in right else places
            end = next((place + 1 for place in range(run) if guesses[place] in self.ends), None)
            (limits if end is None else lengths).append(run + 1 if end is None else end)
            for place in range(end or places):
                drafted[place] += 1
                accepted[place] += place < run
        count = min(limits) if limits else max(lengths)
        if self.acceptance is not None and places:
            self.acceptance.add(count, drafted, accepted)
        return count


def judge(drafts: Tensor, p: Tensor, q: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Rejection sampling (Leviathan et al., 2023, algorithm 1), each position by itself.

    Args:
        drafts: `[B, k]`, drawn from `q`.
        p: `[B, k + 1, V]`, the model's distributions.
        q: `[B, k + 1, V]`, the drafter's; zero at the last position, for which there is no guess.
        generator: makes the draw repeatable.

    Returns:
        `[B, k]` bool, which guesses are accepted; `[B, k + 1]`, the accepted guess or the token drawn instead.
    """
    chosen = drafts[..., None]
    p_chosen, q_chosen = (t[:, :-1].gather(-1, chosen)[..., 0] for t in (p, q))
    uniform = torch.rand(drafts.shape, generator=generator, device=p.device, dtype=p.dtype)
    fits = uniform * q_chosen < p_chosen
    rest = (p - q).clamp_(min=0)
    rest = torch.where(rest.sum(dim=-1, keepdim=True) > 0, rest, p)  # where p equals q, a guess is refused by rounding only
    outcome = torch.multinomial(rest.flatten(0, 1), 1, generator=generator).view(p.shape[:2])
    outcome[:, :-1] = torch.where(fits, drafts, outcome[:, :-1])
    return fits, outcome
