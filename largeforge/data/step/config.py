"""Typed configs of the group data/step; imports nothing heavy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from largeforge.config.typed import Bool, Fraction, NonNegativeFloat, NonNegativeInt, PartConfig, PositiveFloat, PositiveInt, Typed


class StepConfig(PartConfig):
    """One step of a pipeline."""


class NormaliseConfig(StepConfig):
    """Unicode and whitespace in one form."""

    unicode: Literal["none", "nfc", "nfkc"] = Field(description="Unicode form: nfc joins accents, nfkc also flattens ligatures and full width; none leaves it.")
    strip: Bool = Field(description="Take white space off both ends of every text, and off the ends of lines.")
    newlines: Bool = Field(description="Windows and old Mac line ends become \\n; three or more empty lines become two.")
    control: Bool = Field(description="Take out control characters and zero-width marks that nobody sees, tab and newline excepted.")


class ExactDuplicatesConfig(StepConfig):
    """One row of each set of rows that say the same."""

    by: Literal["row", "text", "prompt"] = Field(description="Equal in everything, in all text, or in every turn before the last answer.")
    ignore_case: Bool = Field(description="Texts that differ in case only are the same.")


class SplitConfig(StepConfig):
    """Train, validation and test, by a stable hash of what a row says."""

    validation: Fraction = Field(description="Share of the rows for validation.")
    test: Fraction = Field(description="Share of the rows for the test.")
    salt: str = Field(description="Changes which rows go where; the same salt gives the same split on every machine, whatever the order of rows.")
    keep_together: Literal["near", "prompt", "row"] = Field(
        description="What goes to the same split: rows that are nearly the same or have the same question (near), the same question only, or nothing."
    )
    similarity: PositiveFloat = Field(le=1, description="Where keep_together=near: rows are near from this Jaccard similarity of their word 5-grams on.")


class LengthConfig(StepConfig):
    """Rows that are too short or too long."""

    min_chars: NonNegativeInt = Field(description="Characters of all text together, at least.")
    max_chars: PositiveInt | None = Field(description="Characters at most; null is no limit.")
    min_words: NonNegativeInt = Field(description="Words (what white space parts) at least; Chinese, Japanese and Thai have few.")
    max_words: PositiveInt | None = Field(description="Words at most; null is no limit.")
    min_turns: NonNegativeInt = Field(description="Turns of a chat at least, the system's left out; rows of text have none and are not asked.")
    max_turns: PositiveInt | None = Field(description="Turns of a chat at most; null is no limit.")
    min_answer_chars: NonNegativeInt = Field(description="Characters of the shortest answer of a chat, at least.")
    max_tokens: PositiveInt | None = Field(description="Tokens of all text at most, chat template left out; null counts none. Needs tokenizer.")
    tokenizer: str | None = Field(description="A tokenizer.json, or a folder that holds one; for max_tokens.")


class LanguageConfig(StepConfig):
    """Rows in the languages that are wanted."""

    keep: list[str] = Field(description="Languages to keep, as ISO 639 codes (en, de, zh ...); an empty list keeps all.")
    threshold: Fraction = Field(description="How sure the library must be; rows it is less sure of are dropped.")
    min_letters: NonNegativeInt = Field(description="Rows with fewer letters are too short to tell; a Chinese, Japanese or Korean character counts as three.")
    short: Literal["keep", "drop"] = Field(description="What becomes of rows that are too short to tell.")
    label: Bool = Field(description="Write the language into the row, as its field language.")


class QualityConfig(StepConfig):
    """Rows whose text looks worth learning from, by rules."""

    threshold: Fraction = Field(description="Rows that score less are dropped; 0 drops none and only writes the score into lineage.")
    judge: Literal["answers", "all"] = Field(
        description="What is judged: the answers (of a preference, the chosen one), or all turns; the worst of them counts."
    )
    stop_words: list[str] = Field(description="At least two of these stand in any good text of 50 words; an empty list asks for none.")
    refusals: list[str] = Field(description="Phrases of an answer that refuses; an empty list lets refusals stay.")
    boilerplate: list[str] = Field(description="Phrases of web pages that are not their content.")


class PiiConfig(StepConfig):
    """Personal data and secrets, taken out."""

    entities: list[Literal["email", "phone", "credit_card", "iban", "ip", "us_ssn", "crypto", "url_credentials", "secret"]] = Field(
        description="What is looked for."
    )
    mode: Literal["replace", "mask", "hash", "drop"] = Field(
        description="replace writes <EMAIL>, mask writes *, hash writes <EMAIL:1f0c2a9b> (equal values stay equal), drop leaves the row out."
    )
    salt: str = Field(description="Goes into the hashes of mode=hash; without a salt of your own they can be guessed.")
    phone_regions: list[str] = Field(description="Countries whose national way of writing telephone numbers is known (US, DE ...); +49 ... is found without.")


class DecontaminateConfig(StepConfig):
    """Rows that repeat a test set."""

    against: list[str] = Field(description="Files, folders or globs of test sets, in any format that rows are read in.")
    n: PositiveInt = Field(description="Words in a row that must be the same.")
    threshold: Fraction = Field(description="Share of a test row's runs of n words that a row may hold; 0 allows none.")
    common: PositiveInt = Field(description="Runs of words in more test rows than this are boilerplate of the test set, and no sign.")


class BalanceConfig(StepConfig):
    """As many rows of one kind as of another."""

    by: Literal["field", "length", "source"] = Field(description="What makes a kind: a field's value, the length in characters, or the file it came from.")
    field: str = Field(description="The field, where by=field: label, category, language ...")
    edges: list[PositiveInt] = Field(description="Where by=length: buckets end before so many characters; the last has no end.")
    mode: Literal["undersample", "oversample", "cap"] = Field(
        description="All kinds as rare as the rarest, as frequent as the most frequent (rows are repeated), or max_rows at most."
    )
    max_rows: PositiveInt | None = Field(description="Rows of each kind at most; mode=cap needs it, the other modes obey it; null is no limit.")
    missing: Literal["keep", "drop", "error"] = Field(description="Rows without the field: kept outside the balance, dropped, or an error.")


class AugmentConfig(StepConfig):
    """More rows: a teacher says some of them in other words."""

    template: str = Field(description="What lineage calls the way of rewriting.")
    prompt: str = Field(description="What the teacher is asked, in Jinja2: text is what is to be rewritten, row the row's fields.")
    rewrite: Literal["prompt", "answer"] = Field(description="What is rewritten: the last user turn, or the last answer; a row of text is rewritten whole.")
    copies: PositiveInt = Field(description="New rows asked for each row; the row itself stays.")
    share: Fraction = Field(description="Share of the rows that are augmented, chosen by seed and row.")
    temperature: NonNegativeFloat = Field(description="How freely the teacher answers; 0 gives every copy the same answer.")
    top_p: Fraction = Field(gt=0, description="The teacher draws from the likeliest tokens that sum up to this.")
    max_tokens: PositiveInt = Field(description="Tokens of an answer at most; answers that are cut off are not used.")


class OrderConfig(StepConfig):
    """Rows in an order, for a curriculum."""

    by: Literal["length", "loss", "random"] = Field(description="By characters, by the teacher's mean loss per answer token, or by chance.")
    direction: Literal["ascending", "descending"] = Field(description="Short or easy rows first, or last.")
    max_length: PositiveInt = Field(description="Where by=loss: tokens of a row that are measured; the rest is cut off.")


class NearDuplicatesConfig(StepConfig):
    """One row of each set of rows that say nearly the same, word for word."""

    threshold: PositiveFloat = Field(le=1, description="A row goes if this share of its and a kept row's word n-grams, taken together, is in both (Jaccard).")
    ngram: PositiveInt = Field(description="Words of an n-gram; a shorter text is one n-gram of all its words.")
    num_perm: PositiveInt = Field(description="Values of a MinHash signature; more find more of what is near, and cost time.")
    verify: Bool = Field(description="Compare candidates n-gram by n-gram; false goes by the signatures alone, which err by a few hundredths.")
    keep: Literal["first", "longest"] = Field(description="Which of near rows stays.")


class SemanticDuplicatesConfig(StepConfig):
    """One row of each set of rows that mean the same, whatever the words' order."""

    threshold: PositiveFloat = Field(le=1, description="A row goes if the cosine of its and a kept row's embedding is at least this.")
    max_rows: PositiveInt = Field(description="More rows than this are refused: each is compared with each, so that twice the rows take four times as long.")


class StepsConfig(Typed):
    """Every step that there is; `steps` says which of them run, and in which order."""

    normalise: NormaliseConfig = Field(description="Unicode and white space in one form.")
    exact_duplicates: ExactDuplicatesConfig = Field(description="Rows that say the same, once.")
    split: SplitConfig = Field(description="Train, validation, test.")
    length: LengthConfig = Field(description="Too short, too long.")
    language: LanguageConfig = Field(description="The languages that are wanted.")
    quality: QualityConfig = Field(description="Worth learning from, by rules.")
    pii: PiiConfig = Field(description="Personal data and secrets, taken out.")
    decontaminate: DecontaminateConfig = Field(description="Nothing of the test sets.")
    balance: BalanceConfig = Field(description="As many rows of one kind as of another.")
    augment: AugmentConfig = Field(description="More rows, in a teacher's words.")
    order: OrderConfig = Field(description="In an order, for a curriculum.")
    near_duplicates: NearDuplicatesConfig = Field(description="Rows that say nearly the same, once.")
    semantic_duplicates: SemanticDuplicatesConfig = Field(description="Rows that mean the same, once.")
