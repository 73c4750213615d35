"""`[tribunal]`: the models that deliberate. The section itself is the profile behind the name `tribunal`;
`profiles.NAME` are those behind `tribunal/NAME`, each over what the section says.

Pydantic knows the shape; `Profile` and `tribunal.profile.mistakes` know what is possible; here are the defaults between
them, and what takes the other models to know: who is a member, and that none is a tribunal again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from tribunal.profile import BelowQuorum, Critic, Judge, Kind, Member, Profile, Shares, Tally, Verdict, mistakes
from tribunal.templates import Templates

from .mistakes import path_of
from .models import Model
from .notation import Seconds, Section

NAME = "tribunal"

Weight = Annotated[float, Field(gt=0, le=1000)]
Temperature = Annotated[float, Field(ge=0, le=2)]
Tokens = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


def parse_voice(given: Any) -> Any:
    """The name of a model alone is a member, a critic or a judge like any other."""
    return {"model": given} if isinstance(given, str) else given


class MemberSection(Section):
    model: Text
    """A model of this configuration, or an alias of one."""
    name: Name | None = None
    """Within the profile; by default the model's."""
    weight: Weight = 1.0
    """Of its vote. The logarithm of p / (1 - p) is the best one for a member that is right with probability p."""
    samples: int = Field(1, ge=1, le=16)
    """Drafts that it gives, each with a vote of its own."""
    temperature: Temperature | None = None
    top_p: float | None = Field(None, gt=0, le=1)
    system: Text | None = None
    """A system prompt of its own, before the conversation's."""
    max_tokens: Tokens | None = None


class CriticSection(Section):
    model: Text
    name: Name | None = None
    weight: Weight = 1.0
    temperature: Temperature | None = 0.0
    system: Text | None = None
    max_tokens: Tokens | None = None


class JudgeSection(Section):
    model: Text
    temperature: Temperature | None = 0.0
    system: Text | None = None


class SharesSection(Section):
    """Of the time until the deadline, together 1."""

    draft: float = Field(0.45, gt=0, lt=1)
    critique: float = Field(0.20, ge=0, lt=1)
    refine: float = Field(0.15, ge=0, lt=1)
    verdict: float = Field(0.20, gt=0, lt=1)


class PromptsSection(Section):
    """Texts in place of ours; tribunal/templates.py says which fields each must have."""

    critique: Text | None = None
    repair: Text | None = None
    refine: Text | None = None
    judge: Text | None = None
    synthesise: Text | None = None


AMember = Annotated[MemberSection, BeforeValidator(parse_voice)]
ACritic = Annotated[CriticSection, BeforeValidator(parse_voice)]
AJudge = Annotated[JudgeSection, BeforeValidator(parse_voice)]


class ProfileSection(Section):
    members: tuple[AMember, ...] = Field((), strict=False)
    """Who drafts."""
    critics: tuple[ACritic, ...] = Field((), strict=False)
    """Who criticises; without any the members criticise one another."""
    judge: AJudge | None = None
    """Decides where the tally is close, and writes the synthesis; without one the tally decides alone."""
    alternate: AJudge | None = None
    """In the judge's place when it fails."""
    quorum: int | None = Field(None, ge=1)
    """Usable drafts that are wanted; by default 2, or 1 where there is one draft."""
    below_quorum: Literal["answer", "fail"] = "answer"
    """With fewer: answer with what there is, or fail with 503."""
    rounds: int = Field(1, ge=0)
    """Of critique and refinement; 0 for a vote alone."""
    early_exit: bool = True
    """Answer at once when `agree` drafts say the same and have more than `agree_share` of all weights."""
    agree: int | None = Field(None, ge=2)
    """By default 2."""
    agree_share: float = Field(0.5, ge=0, lt=1)
    first_wave: int = Field(0, ge=0)
    """Ask so many first, and the others only if those do not agree; 0: all at once."""
    answer: Literal["choice", "number", "json", "code", "text", "auto"] = "auto"
    """What kind of answer it is."""
    verdict: Literal["select", "synthesise", "auto"] = "auto"
    """`select` gives the best candidate word for word, `synthesise` writes a new answer."""
    tally: Literal["borda", "median"] = "borda"
    close: float = Field(0.1, ge=0, le=1)
    """The judge is asked when the two best are not farther apart than this."""
    error_votes: int = Field(2, ge=1)
    """So many critics must name an error before a candidate is refined."""
    deadline_s: Seconds = 120.0
    grace_s: float = Field(5.0, ge=0)
    """How long others are waited for once there is a quorum."""
    shares: SharesSection = SharesSection()
    hedge: bool = True
    """Ask again elsewhere when a reply takes longer than 95 % of its model's do."""
    max_calls: int = Field(32, ge=1, le=256)
    max_tokens: Tokens | None = None
    """Of all calls together, prompts too; no limit by default."""
    draft_max_tokens: Tokens = 2048
    critique_max_tokens: Tokens = 1024
    verdict_max_tokens: Tokens = 4096
    candidate_max_chars: int = Field(16_000, ge=100)
    answer_max_chars: int = Field(200_000, ge=100)
    progress: bool = False
    """Tell what happens in `reasoning_content`, unless the request says otherwise."""
    keep_s: float = Field(3600.0, ge=0)
    """How long a deliberation can be read afterwards; 0: not at all."""
    redact: bool = False
    """Keep it without what was said."""
    prompts: PromptsSection = PromptsSection()


class TribunalSection(ProfileSection):
    profiles: dict[Name, ProfileSection] = Field(default_factory=dict)
    """Further ones, `tribunal/NAME`. What one leaves out is as above."""

    @model_validator(mode="after")
    def _somebody_is_a_member(self) -> Self:
        if self.model_fields_set and not self.members and not self.profiles:
            raise ValueError("expected `members`, or `profiles` that have them")
        return self

    def profiles_by_model(self, models: Mapping[str, Model]) -> dict[str, Profile]:
        """Public name -> profile, aliases made names."""
        names = _names(models)
        return {profile.model_name: profile for _, profile in _profiles(self, names)}


def wrong_tribunals(section: TribunalSection, models: Mapping[str, Model]) -> Iterator[str]:
    """What is impossible about the tribunals beside these models, a sentence each."""
    served = list(_profiles(section, _names(models)))
    if served:
        for name, model in models.items():
            for taken in (name, *model.aliases):
                if _is_tribunal(taken):
                    path = path_of("models", name) if taken == name else path_of("models", name, "aliases")
                    yield f"{path}: found {taken!r}, which is the name of a tribunal"
    names = _names(models)
    for path, profile in served:
        yield from _wrong_models(path, profile, names)
        for field, expected in mistakes(profile):
            yield f"{path}.{field}: {expected}"


def _wrong_models(path: str, profile: Profile, names: Mapping[str, str]) -> Iterator[str]:
    voices = [
        *((f"{path}.members.{number}", member.model) for number, member in enumerate(profile.members)),
        *((f"{path}.critics.{number}", critic.model) for number, critic in enumerate(profile.critics)),
        *((f"{path}.{word}", judge.model) for word, judge in _judges(profile)),
    ]
    for where, model in voices:
        if _is_tribunal(model):
            yield f"{where}: found {model!r}, expected no tribunal inside a tribunal"
        elif model not in names.values():
            yield f"{where}: found {model!r}, expected one of the models: {', '.join(dict.fromkeys(names.values()))}"


def _judges(profile: Profile) -> Iterator[tuple[str, Judge]]:
    for word, judge in (("judge", profile.judge), ("alternate", profile.alternate)):
        if judge is not None:
            yield word, judge


def _is_tribunal(model: str) -> bool:
    return model == NAME or model.startswith(f"{NAME}/")


def _names(models: Mapping[str, Model]) -> dict[str, str]:
    """Every name of a model -> the one that it is served by."""
    return {also: name for name, model in models.items() for also in (name, *model.aliases)}


# -- a section -> its profile ----------------------------------------------------------------------------------------


def _profiles(section: TribunalSection, names: Mapping[str, str]) -> Iterator[tuple[str, Profile]]:
    """(where it stands, profile). A named one has its own fields over the section's."""
    if section.members:
        yield NAME, profile_of("", section, names)
    given = {name: getattr(section, name) for name in section.model_fields_set - {"profiles"}}
    for name, own in section.profiles.items():
        merged = own.model_copy(update={key: value for key, value in given.items() if key not in own.model_fields_set})
        yield path_of(NAME, "profiles", name), profile_of(name, merged, names)


def profile_of(name: str, section: ProfileSection, names: Mapping[str, str]) -> Profile:
    """`names`: every name of a model -> the one that it is served by. A model that is not there keeps its name."""
    members = tuple(_members(section.members, names))
    seats = sum(member.samples for member in members)
    texts = {key: value for key, value in section.prompts.model_dump().items() if value is not None}
    return Profile(
        name=name,
        members=members,
        critics=tuple(_critics(section.critics, names)),
        judge=_judge(section.judge, names),
        alternate=_judge(section.alternate, names),
        quorum=section.quorum if section.quorum is not None else max(1, min(2, seats)),
        below_quorum=BelowQuorum(section.below_quorum),
        rounds=section.rounds,
        early_exit=section.early_exit,
        agree=section.agree if section.agree is not None else 2,
        agree_share=section.agree_share,
        first_wave=section.first_wave,
        kind=Kind(section.answer),
        verdict=Verdict(section.verdict),
        tally=Tally(section.tally),
        close=section.close,
        error_votes=section.error_votes,
        deadline_s=section.deadline_s,
        grace_s=section.grace_s,
        shares=Shares(**section.shares.model_dump()),
        hedge=section.hedge,
        max_calls=section.max_calls,
        max_tokens=section.max_tokens,
        draft_max_tokens=section.draft_max_tokens,
        critique_max_tokens=section.critique_max_tokens,
        verdict_max_tokens=section.verdict_max_tokens,
        candidate_max_chars=section.candidate_max_chars,
        answer_max_chars=section.answer_max_chars,
        progress=section.progress,
        keep_s=section.keep_s,
        redact=section.redact,
        templates=Templates(**texts),
    )


def _members(sections: tuple[MemberSection, ...], names: Mapping[str, str]) -> Iterator[Member]:
    for section, name in zip(sections, _named(sections), strict=True):
        yield Member(
            name=name,
            model=names.get(section.model, section.model),
            weight=section.weight,
            samples=section.samples,
            temperature=section.temperature,
            top_p=section.top_p,
            system=section.system,
            max_tokens=section.max_tokens,
        )


def _critics(sections: tuple[CriticSection, ...], names: Mapping[str, str]) -> Iterator[Critic]:
    for section, name in zip(sections, _named(sections), strict=True):
        yield Critic(
            name=name,
            model=names.get(section.model, section.model),
            weight=section.weight,
            temperature=section.temperature,
            system=section.system,
            max_tokens=section.max_tokens,
        )


def _named(sections: tuple[MemberSection, ...] | tuple[CriticSection, ...]) -> list[str]:
    """The name of each; those that have none of their own are told apart by a number where a model stands twice."""
    names: list[str] = []
    for section in sections:
        name = section.name
        if name is None:
            wanted = name = section.model
            number = 2
            while name in names:
                name = f"{wanted}-{number}"
                number += 1
        names.append(name)
    return names


def _judge(section: JudgeSection | None, names: Mapping[str, str]) -> Judge | None:
    if section is None:
        return None
    return Judge(names.get(section.model, section.model), section.temperature, section.system)
