"""The time that an inference engine takes: continuous batching as a model. Pure: events in, tokens out, no clock.

    submit(job) ------> waiting (first come, first served) --> running --> its last token
                             ^                                    |
                             `------- preempted: no room ---------'

A step processes, at once, one token of every sequence that decodes and up to `batch_tokens` tokens of prompts. It takes

    overhead + per_sequence * sequences + max(weights + per_context_token * tokens in the cache that are read,
                                              per_token * tokens that are processed)

the first of the two being what memory has to move, the second what the arithmetic takes (the roofline). The step in
which the last part of a prompt is processed gives the first token.

**Chunked prefill** (the default of vLLM and SGLang): parts of prompts ride along with decoding, which slows it down.
Without it (TGI's and older vLLM's way) whole prompts have a step of their own, and decoding waits meanwhile.

**Cache**: a sequence holds a place for each token of its prompt from its admission on, and one more with every token.
Who is next in line waits until its whole prompt fits; nobody overtakes. When decoding finds no room, the sequence that
was admitted last is preempted: it loses its places and goes to the head of the line, and later all that it had is
processed again (vLLM's recompute).

The rest is left out on purpose: prefix caches, blocks of places, speculative decoding, attention's own arithmetic (a
few percent at the lengths used here), and the tokenizer.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


class QueueIsFull(Exception):
    """As many requests are there as the engine takes: TGI answers 429."""


class TooLong(Exception):
    """The prompt and its answer can never fit into the cache."""


@dataclass(frozen=True, slots=True)
class Speeds:
    """An engine on its hardware. Times are seconds.

    weights_s            to read all weights once
    overhead_s           of a step, whatever is in it: launching kernels, scheduling, joining GPUs
    per_sequence_s       of a step for each of its sequences: sampling, text
    per_context_token_s  to read one token's keys and values
    per_token_s          arithmetic of one token
    cache_tokens         places for keys and values
    sequences            that run at once, at most
    batch_tokens         of a step, at most
    chunked              prompts may be processed in parts, beside decoding
    takes                requests, running and waiting; None for no limit
    """

    weights_s: float
    overhead_s: float
    per_sequence_s: float
    per_context_token_s: float
    per_token_s: float
    cache_tokens: int
    sequences: int = 256
    batch_tokens: int = 2048
    chunked: bool = True
    takes: int | None = None

    def step_s(self, sequences: int, tokens: int, context_tokens: int) -> float:
        """How long a step of so much takes."""
        moving = self.weights_s + self.per_context_token_s * context_tokens
        return self.overhead_s + self.per_sequence_s * sequences + max(moving, self.per_token_s * tokens)


@dataclass(frozen=True, slots=True)
class Job:
    """A request: it ends after exactly `output_tokens`, as with `ignore_eos`."""

    id: int
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a job, at the end of a step."""

    job_id: int
    index: int
    last: bool


@dataclass(slots=True)
class Counts:
    """Since the start; the peaks, of what is there while a step runs, since `peaks_again`."""

    steps: int = 0
    preemptions: int = 0
    refused: int = 0
    busy_s: float = 0.0
    peak_waiting: int = 0
    peak_running: int = 0
    peak_cache_tokens: int = 0

    def peaks_again(self) -> None:
        self.peak_waiting = self.peak_running = self.peak_cache_tokens = 0


@dataclass(slots=True, eq=False)
class _Sequence:
    """processed   tokens of the context whose keys and values are there
    given          tokens that its client has
    places         that it holds
    """

    job: Job
    processed: int = 0
    given: int = 0
    places: int = 0

    @property
    def context(self) -> int:
        """What must be processed before its next token: the prompt, and what it has said."""
        return self.job.prompt_tokens + self.given


@dataclass(slots=True)
class EngineModel:
    """`begin` a step, and `finish` it when its time has come; between the two, jobs may be submitted and cancelled."""

    speeds: Speeds
    counts: Counts = field(default_factory=Counts)
    _waiting: deque[_Sequence] = field(default_factory=deque)
    _running: list[_Sequence] = field(default_factory=list)
    _step: list[tuple[_Sequence, int]] = field(default_factory=list)
    _places: int = 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def cache_tokens(self) -> int:
        """Places that are held."""
        return self._places

    def submit(self, job: Job) -> None:
        """Into the line. Raises `QueueIsFull`, `TooLong`."""
        if job.prompt_tokens + job.output_tokens > self.speeds.cache_tokens:
            raise TooLong(f"{job.prompt_tokens} + {job.output_tokens} tokens, {self.speeds.cache_tokens} places")
        takes = self.speeds.takes
        if takes is not None and self.waiting + self.running >= takes:
            self.counts.refused += 1
            raise QueueIsFull
        self._waiting.append(_Sequence(job))

    def cancel(self, job_id: int) -> None:
        """Its client has gone. Unknown ids are none of ours any more."""
        for sequence in [one for one in self._running if one.job.id == job_id]:
            self._leave(sequence)
        self._waiting = deque(one for one in self._waiting if one.job.id != job_id)

    def begin(self) -> float | None:
        """Put a step together. How long it takes, in seconds; None if there is nothing to do."""
        whole_prompts = not self.speeds.chunked and self._prompts_alone()
        if not whole_prompts:
            self._step = []
            if self._decode():
                self._admit()
        if not self._step:
            return None
        tokens = sum(count for _, count in self._step)
        context = sum(sequence.processed for sequence, _ in self._step)
        took = self.speeds.step_s(len(self._step), tokens, context)
        counts = self.counts
        counts.steps += 1
        counts.busy_s += took
        counts.peak_waiting = max(counts.peak_waiting, self.waiting)
        counts.peak_running = max(counts.peak_running, self.running)
        counts.peak_cache_tokens = max(counts.peak_cache_tokens, self._places)
        return took

    def finish(self) -> list[Token]:
        """The step's end: the tokens that it gave."""
        tokens = []
        for sequence, count in self._step:
            if sequence not in self._running:
                continue  # cancelled meanwhile
            sequence.processed += count
            if sequence.processed < sequence.context:
                continue  # its prompt goes on
            last = sequence.given + 1 >= sequence.job.output_tokens
            tokens.append(Token(sequence.job.id, sequence.given, last))
            sequence.given += 1
            if last:
                self._leave(sequence)
        self._step = []
        return tokens

    # -- putting a step together --------------------------------------------------------------------------------------

    def _decode(self) -> bool:
        """Everybody who runs: one token, or the next part of the prompt. Preempts the newest where there is no room.

        Whether others may come: not in a step that had to preempt.
        """
        preempted = self.counts.preemptions
        left = self.speeds.batch_tokens
        index = 0
        while index < len(self._running) and left > 0:
            sequence = self._running[index]
            count = min(left, sequence.context - sequence.processed)
            missing = sequence.processed + count - sequence.places
            while missing > self.speeds.cache_tokens - self._places and self._running[-1] is not sequence:
                self._preempt(self._running[-1])
            if missing > self.speeds.cache_tokens - self._places:
                self._preempt(sequence)
                break
            self._take(sequence, missing)
            self._step.append((sequence, count))
            left -= count
            index += 1
        return self.counts.preemptions == preempted

    def _admit(self) -> None:
        """From the head of the line, while there is room for whole prompts."""
        left = self.speeds.batch_tokens - sum(count for _, count in self._step)
        while self._waiting and left > 0 and self._fits(self._waiting[0]):
            sequence = self._enter()
            count = min(left, sequence.context)
            self._step.append((sequence, count))
            left -= count

    def _prompts_alone(self) -> bool:
        """A step of whole prompts only, one at least; whether there is any."""
        self._step = []
        left = self.speeds.batch_tokens
        while self._waiting and self._fits(self._waiting[0]):
            if self._step and self._waiting[0].context > left:
                break
            sequence = self._enter()
            self._step.append((sequence, sequence.context))
            left -= sequence.context
        return bool(self._step)

    def _fits(self, sequence: _Sequence) -> bool:
        return (
            len(self._running) < self.speeds.sequences and sequence.context <= self.speeds.cache_tokens - self._places
        )

    def _enter(self) -> _Sequence:
        sequence = self._waiting.popleft()
        self._running.append(sequence)
        self._take(sequence, sequence.context)
        return sequence

    def _take(self, sequence: _Sequence, places: int) -> None:
        if places > 0:
            sequence.places += places
            self._places += places

    def _leave(self, sequence: _Sequence) -> None:
        self._running.remove(sequence)
        self._places -= sequence.places
        sequence.places = 0

    def _preempt(self, sequence: _Sequence) -> None:
        self.counts.preemptions += 1
        self._leave(sequence)
        self._step = [part for part in self._step if part[0] is not sequence]
        sequence.processed = 0
        self._waiting.appendleft(sequence)
