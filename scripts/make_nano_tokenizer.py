"""Make largeforge/model/nano_tokenizer.json: a byte-level BPE of 4096 tokens, trained on text written here.

Run it as `python scripts/make_nano_tokenizer.py [FILE]`; the same versions give the same bytes. The text is made of plain words,
numbers, paths, settings and commands by a seeded generator: it reads no file and no data set, and it knows nothing about models.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY_SIZE = 4096
SPECIAL_TOKENS = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
NUM_PIECES = 30_000
SEED = 2

NOUNS = """
model weight token adapter layer batch row step loss gradient rank task run recipe config key value number list table page word letter line
file folder path name answer question prompt reply message turn system user assistant conversation chat story book chapter sentence text
paper house room door window kitchen garden street city town village river lake sea mountain forest tree leaf flower fruit apple bread
water coffee tea milk sugar salt rice fish bird dog cat horse cow sheep child parent mother father sister brother friend neighbour
teacher student doctor nurse farmer driver baker artist writer singer player worker engineer scientist lawyer judge king queen soldier
day night morning evening hour minute second week month year season spring summer autumn winter weather rain snow wind sun moon star
sky cloud fire stone sand gold silver iron wood glass machine engine wheel car train plane ship boat bicycle road bridge station ticket
school university library museum market shop hospital office factory farm company bank money price cost tax law rule right duty order
government country nation state border language history science music art game sport team ball race prize picture film camera phone
screen keyboard computer program code function class method test error warning message memory disk network server client request response
database cache index query result report measure metric score accuracy benchmark trainer optimizer schedule checkpoint artifact manifest
revision hash seed sample example dataset tokenizer template vocabulary context length width depth head attention embedding bias norm
precision device processor thread process queue job plan budget time speed size shape type kind part piece group set pair choice option
default range limit minimum maximum average total sum difference product share percent ratio scale temperature probability distribution
idea thought reason cause effect problem solution way method help hope fear love life death body hand foot head eye ear mouth heart mind
""".split()
VERBS = """
train tune teach learn show tell ask answer write read load save keep drop add remove start stop open close find search look see hear
feel think know mean say speak talk call name count measure compare choose take give bring send get make build break mend fix check
test run walk drive fly swim climb fall grow change turn move carry hold push pull cut draw paint sing play work rest sleep wake eat
drink cook wash clean buy sell pay spend earn lend borrow share join leave arrive visit stay wait watch follow lead help need want
like love hate hope fear try use waste gain lose win fail pass reach touch cover hide seek explain describe report print parse merge
split pack sort filter sample mask pad truncate quantize prune evaluate generate serve route deploy resume repeat restart install
download upload convert compress export import update upgrade configure compose override validate verify schedule
""".split()
ADJECTIVES = """
small large big little short long high low wide narrow deep shallow old new young early late fast slow quick easy hard simple plain
clear dark bright light heavy warm cold hot cool dry wet clean dirty full empty open closed free busy quiet loud soft rough smooth
sharp round flat straight strong weak rich poor cheap dear happy sad angry calm brave kind honest fair right wrong true false good bad
better best worse worst same other different similar common rare special general local remote public private safe careful ready whole
half first second third last next previous final middle central equal exact random constant linear cosine possible necessary important
useful helpful friendly curious clever careless beautiful wonderful terrible strange ordinary natural human modern ancient daily
""".split()
LITTLE = """
the a an and or but if then else when while because so that this these those it its he she they we you I my your his her our their
of to in on at by for from with without into onto over under above below between among through during before after until since about
against as is are was were be been being has have had do does did will would can could may might shall should must not no yes all any
some each every both few many much more most less least one two three four five six seven eight nine ten what which who whose where why how
there here now again also only just even still already always never often sometimes together apart up down out off back away please
""".split()
PLACES = "Berlin Paris London Madrid Rome Vienna Oslo Lima Cairo Delhi Tokyo Sydney Boston Geneva Prague Lisbon Dublin Athens".split()
NAMES = "Anna Ben Clara David Emma Felix Grace Hugo Ida Jonas Karin Leo Maria Noah Olga Paul Rosa Simon Tara Victor".split()
CHOICES = {
    "task": "sft pretrain dpo orpo kto simpo distill generate prepare merge quantize prune evaluate chat serve route pipeline".split(),
    "model": "nano smollm2 mistral7b qwen3_8b qwen3_0_6b llama3_2_1b llama3_1_8b llama3_3_70b smollm2_360m".split(),
    "adapter": "lora none".split(),
    "data": "demo chat preference text".split(),
    "quant": "none nf4 int8 gptq awq".split(),
    "trainer": "auto cpu gpu ray".split(),
    "tracker": "tensorboard csv none wandb".split(),
    "engine": "hf vllm remote echo".split(),
    "recipe": "team mail notes support summaries".split(),
}
NUMBERS: dict[str, list[Any]] = {
    "adapter.r": [4, 8, 16, 32, 64],
    "adapter.alpha": [8, 16, 32, 64],
    "adapter.dropout": [0.0, 0.05, 0.1],
    "method.learning_rate": ["1e-3", "2e-4", "5e-5", "3e-6", "0.0002"],
    "trainer.max_steps": [10, 100, 250, 500, 1000],
    "trainer.epochs": [1, 2, 3, 5],
    "trainer.batch_size": [8, 16, 32, 64, 128],
    "trainer.precision": ["fp32", "bf16", "fp16"],
    "data.max_length": [128, 256, 512, 1024, 2048],
    "data.packing": ["true", "false", "auto"],
    "seed": [0, 1, 7, 42],
}


def text(count: int = NUM_PIECES, seed: int = SEED) -> Iterator[str]:
    """Yield `count` short pieces of text: sentences, headings with lists, settings, commands, turns of a chat."""
    draw = random.Random(seed)
    makers = [sentence, sentence, sentence, paragraph, command, settings, page, turns]
    for _ in range(count):
        yield draw.choice(makers)(draw)


def inflected(draw: random.Random, verb: str) -> str:
    stem = verb[:-1] if verb.endswith("e") else verb
    return draw.choice([verb, verb, verb + "s", stem + "ing", stem + "ed", stem + "er"])


def noun(draw: random.Random) -> str:
    word = draw.choice(NOUNS)
    return draw.choice([word, word, word + "s"])


def adjective(draw: random.Random) -> str:
    word = draw.choice(ADJECTIVES)
    return draw.choice([word, word, word, word + "ly", "un" + word, word + "ness"])


def sentence(draw: random.Random) -> str:
    words = []
    for _ in range(draw.randint(2, 4)):
        words += [draw.choice(LITTLE), adjective(draw), noun(draw), inflected(draw, draw.choice(VERBS)), draw.choice(LITTLE), noun(draw)]
        if draw.random() < 0.2:
            words.append(draw.choice([draw.choice(NAMES), draw.choice(PLACES), str(draw.randint(0, 2100)), f"{draw.random():.2f}"]))
        if draw.random() < 0.2:
            words[-1] += draw.choice([",", ";", ":", " -"])
    whole = " ".join(words)
    return whole[0].upper() + whole[1:] + draw.choice([".", ".", ".", "!", "?"])


def paragraph(draw: random.Random) -> str:
    return " ".join(sentence(draw) for _ in range(draw.randint(2, 4)))


def path(draw: random.Random) -> str:
    ending = draw.choice(["jsonl", "json", "csv", "parquet", "yaml", "md", "txt", "py"])
    return "/".join([*(draw.choice(NOUNS) for _ in range(draw.randint(0, 2))), f"{draw.choice(NOUNS)}.{ending}"])


def command(draw: random.Random) -> str:
    words = ["python -m largeforge", f"task={draw.choice(CHOICES['task'])}"]
    for group in draw.sample(sorted(CHOICES), draw.randint(1, 3)):
        if group != "task":
            words.append(f"{group}={draw.choice(CHOICES[group])}")
    words += [f"{key}={draw.choice(NUMBERS[key])}" for key in draw.sample(sorted(NUMBERS), draw.randint(0, 3))]
    if draw.random() < 0.3:
        words.append(f"data.path={path(draw)}")
    return " ".join(words)


def settings(draw: random.Random) -> str:
    lines = [f"# {sentence(draw)}"]
    for group in draw.sample(sorted(CHOICES), 3):
        lines += [f"{group}: {draw.choice(CHOICES[group])}", f"  {draw.choice(NOUNS)}_{draw.choice(NOUNS)}: {draw.randint(0, 4096)}   # {noun(draw)}"]
    return "\n".join(lines) + "\n"


def page(draw: random.Random) -> str:
    lines = [f"# {adjective(draw).title()} {noun(draw)}", "", paragraph(draw), "", f"## {noun(draw).title()}", ""]
    lines += [f"- `{command(draw)}`: {sentence(draw)}" for _ in range(draw.randint(1, 3))]
    return "\n".join(lines) + "\n"


def turns(draw: random.Random) -> str:
    rank, sources = draw.choice([4, 8, 16, 32]), ["my chats", "these rows", path(draw)]
    wish = f"{draw.choice(VERBS)} {draw.choice(CHOICES['model'])} on {draw.choice(sources)} with rank {rank}"
    return draw.choice([f"Please {wish}.", f"{wish}, and {draw.choice(VERBS)} it.", f"How do I {wish}?", f"user\n{wish}\nassistant\n{command(draw)}\n"])


def make() -> Tokenizer:
    """Train the tokenizer: digits one by one, spaces with the word that follows, special tokens first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text(), trainer)
    return tokenizer


if __name__ == "__main__":
    goal = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "largeforge" / "model" / "nano_tokenizer.json"
    goal.write_text(make().to_str(), encoding="utf-8")
    print(f"wrote {goal}")
