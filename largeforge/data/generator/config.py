"""Typed configs of the group data/generator; imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from largeforge.config.typed import Fraction, NonNegativeFloat, NonNegativeInt, PartConfig, PositiveInt, real_number


class GeneratorConfig(PartConfig):
    """What makes rows."""

    num_rows: PositiveInt = Field(description="Rows to keep; making stops there.")
    quality: Fraction = Field(description="Rows whose quality score (0 to 1) is below this are left out; 0 leaves none out.")
    similarity: Fraction = Field(description="Rows whose question is this similar to an earlier one are left out; 1 leaves out exact repeats only.")
    similarity_words: PositiveInt = Field(description="Words in a row that similarity is counted by.")


class TemplateConfig(GeneratorConfig):
    """Rows from Jinja2 templates with typed slots."""

    templates: str = Field(description="A template set that ships with LargeForge, or the path of your own (.yaml).")


class TaughtConfig(GeneratorConfig):
    """What every generator that asks a teacher has."""

    domain: str = Field(description="A prompt set that ships with LargeForge, or the path of your own (.yaml).")
    shots: NonNegativeInt = Field(description="Examples shown to the teacher with every request.")
    temperature: NonNegativeFloat = Field(description="How freely the teacher invents, 0 is the likeliest token always; how it answers is engine.temperature.")
    min_words: NonNegativeInt = Field(description="Answers of fewer words are left out.")
    attempts: Annotated[float, BeforeValidator(real_number), Field(ge=1)] = Field(
        description="Tries for every row wanted, at most; after num_rows times as many the run ends with what there is."
    )
    round: PositiveInt = Field(description="Tries that are worked on together; what is made depends on it, not on how many are asked at once.")


class InstructConfig(TaughtConfig):
    """Instruction-response pairs from the seeds and topics of a domain."""


class SelfInstructConfig(TaughtConfig):
    """A pool of instructions that grows out of its own (Wang et al. 2022)."""

    own_shots: NonNegativeInt = Field(description="Of the examples shown, at most so many that the teacher wrote itself.")
    per_request: PositiveInt = Field(description="New instructions asked for at a time.")


class PreferenceConfig(TaughtConfig):
    """Pairs of a better and a worse answer of the same teacher."""

    prompts: str = Field(description="What is asked: domain (its seeds), instruct (the teacher invents questions), a template set, or a file of rows.")
    samples: Annotated[int, Field(ge=2)] = Field(description="Answers asked for each prompt.")
    score_by: Literal["judge", "exact_answer", "regex", "json", "length"] = Field(
        description="Who scores answers from 0 to 1: the teacher as a judge, or one of the verifiers."
    )
    pattern: str | None = Field(description="For score_by=regex: what a good answer holds.")
    json_keys: list[str] = Field(description="For score_by=json: keys that a good answer has; [] is any JSON.")
    words: PositiveInt = Field(description="For score_by=length: words of a perfect answer.")
    margin: Fraction = Field(description="Least difference of the scores of chosen and rejected; less is a tie, which is left out.")
    good: Fraction = Field(description="Least score of a chosen answer; where no answer reaches it the prompt is left out.")
