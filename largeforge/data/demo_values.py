"""What fills the slots of a wish: numbers, names, paths and questions, from ranges that training and held-out rows never share.

Only values; knows nothing about phrases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

Maker = Callable[[Random], str]
Range = tuple[int, int]


@dataclass(frozen=True)
class Values:
    """How one slot is filled. Both makers together never make the same value.

    Args:
        training: makes a value of a training row.
        heldout: makes a value of a held-out row.
    """

    training: Maker
    heldout: Maker


def whole(*ranges: Range) -> Maker:
    """Draw a range, ends included, then a number of it; every third one is round."""

    def draw(rng: Random) -> str:
        low, high = rng.choice(ranges)
        number = rng.randint(low, high)
        if high >= 100 and rng.random() < 0.35:
            number = max(low, number // 50 * 50 if high >= 500 else number // 10 * 10)
        return str(number)

    return draw


def one_of(values: Sequence[str]) -> Maker:
    return lambda rng: rng.choice(values)


def learning_rate(digits: str) -> Maker:
    """A rate whose first digit is one of `digits`: 2e-4, 2.5e-5 or 0.0002."""

    def draw(rng: Random) -> str:
        first, exponent = rng.choice(digits), rng.randint(3, 6)
        style = rng.random()
        if style < 0.2:
            return f"{first}.{rng.choice('1257')}e-{exponent}"
        if style < 0.65 or exponent > 5:
            return f"{first}e-{exponent}"
        return "0." + "0" * (exponent - 1) + first + rng.choice(("", "", "5"))

    return draw


def slug(first: Sequence[str], second: Sequence[str], numbers: Range) -> Maker:
    """A run's name: night-owl, night_owl_7, owl-v3, owl12."""

    def draw(rng: Random) -> str:
        number = rng.randint(*numbers)
        left, right, joint = rng.choice(first), rng.choice(second), rng.choice("-_")
        shapes = (
            f"{left}{joint}{right}",
            f"{left}{joint}{right}{joint}{number}",
            f"{right}{joint}v{number}",
            f"{left}{number}",
            f"{right}{joint}{left}",
            right,
        )
        return rng.choice(shapes)

    return draw


def file_path(folders: Sequence[str], stems: Sequence[str], numbers: Range) -> Maker:
    """A file of rows: chats.jsonl, data/support/chats_12.csv, /srv/a/b.parquet."""

    def draw(rng: Random) -> str:
        head = rng.choice(("", "", "", "", "", "./", "/", "../"))
        depth = rng.choice((0, 0, 1, 1, 1, 2)) if head != "/" else rng.choice((1, 2))
        parts = [rng.choice(folders) for _ in range(depth)]
        stem = rng.choice(stems)
        if rng.random() < 0.25:
            stem += rng.choice("-_") + rng.choice((rng.choice(stems), str(rng.randint(*numbers)), f"v{rng.randint(*numbers)}"))
        ending = rng.choice(("jsonl", "jsonl", "jsonl", "json", "csv", "parquet", "arrow"))
        return head + "/".join([*parts, f"{stem}.{ending}"])

    return draw


def run_path(names: Sequence[str], years: Range, hours: Range) -> Maker:
    """An artifact: outputs/sft/2026-11-21/21-05-00/artifact, runs/night-owl/artifact, models/owl."""

    def draw(rng: Random) -> str:
        name = rng.choice(names)
        day = f"{rng.randint(*years)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
        clock = f"{rng.randint(*hours):02d}-{rng.randint(0, 59):02d}-{rng.randint(0, 59):02d}"
        shapes = (
            f"outputs/sft/{day}/{clock}/artifact",
            f"runs/{name}/artifact",
            f"models/{name}",
            f"./{name}/artifact",
            f"outputs/{name}/artifact",
            f"/srv/{name}/{rng.choice(names)}",
        )
        return rng.choice(shapes)

    return draw


def question(templates: Sequence[str], topics: Sequence[str]) -> Maker:
    """Something to ask a model."""
    return lambda rng: rng.choice(templates).replace("{}", rng.choice(topics))


FOLDERS_TRAINING = tuple(
    """
    data chats logs rows exports support mnt home shared corpus train sets work raw clean team 2024 2025-03 archive projects bot files input
    my_data new-rows q1 docs sales legal users v2 final office clients school lab kitchen moon-base desk media tmp drive bucket warehouse
    library Data Desktop north_team hr crawl scrape 2023_old inbox history sorted week3 batch2 cases vault cellar workshop
    """.split()
)
FOLDERS_HELDOUT = tuple(
    """
    datasets tickets var collected nightly customers storage 2026-07 staging memos q4 depot
    """.split()
)
STEMS_TRAINING = tuple(
    """
    chats rows train support dialogs qa talk messages faq orders mails notes helpdesk sample all export forum history questions pairs turns
    sft instructions alpaca sharegpt english german clean dump users agent billing recipes travel medical part data mixed curated gold
    weather songs novels poems insurance tenants patients chemistry biology spanish italian japanese morning evening harbour kitchen balcony
    railways stories riddles quizzes speeches debates contracts invoices warranties bookings hotels flights parcels meetings minutes
    transcripts comments posts threads phone radio podcast sermons maths geometry football cycling market bakery museum zoo castle robots
    drones phones laptops tools wood steelworks visitors members voters drivers nurses teachers pupils lawyers farmers sailors Chats FAQ
    """.split()
)
STEMS_HELDOUT = tuple(
    """
    tickets answers complaints interviews calls lessons reviews letters returns physics french merged night garden permits claims
    """.split()
)
FIRST_TRAINING = tuple(
    """
    night red first quick baby north deep small wild gold early cold lucky silent big old try test exp my lora mistral chat summer green
    dark shiny nine noisy rapid bitter sweet lonely busy clever crisp dusty fancy hollow icy jolly kind lazy mighty nimble odd purple rusty
    salty tiny urban vivid young zen autumn evening
    """.split()
)
FIRST_HELDOUT = tuple(
    """
    blue second brave south gentle late warm winter proud tall trial plain
    """.split()
)
SECOND_TRAINING = tuple(
    """
    owl run forge bot fox model tune baseline river star helper draft anvil stone wolf demo agent lark ship monday pilot attempt oak hammer
    apple badger canyon dragon eagle feather glacier harbor island jaguar kettle lantern meadow needle orchid panda quartz rocket spider
    tiger umbrella valley walrus yacht zebra tuesday check sweep sunday piano violet candle
    """.split()
)
SECOND_HELDOUT = tuple(
    """
    bear falcon garden assistant ember cloud bridge otter friday probe maple steel
    """.split()
)
RUNS_TRAINING = tuple(
    """
    owl night-owl fox3 my_bot support-bot forge helper exp12 star demo2 lark_v2 draft anvil mistral-sft first panda red-fox tiger_8
    school-bot qwen_faq rocket5 desk-helper zebra v1 last-week lantern_3 travel-agent piano spider9 llama-notes
    """.split()
)
RUNS_HELDOUT = tuple(
    """
    bear blue-bear falcon9 ember ticket_bot otter-v3 probe trial20 maple bridge
    """.split()
)

VALUES: dict[str, Values] = {
    "rank": Values(whole((2, 15), (2, 15), (32, 64), (100, 200)), whole((16, 31), (65, 99))),
    "alpha": Values(whole((1, 30), (64, 128), (300, 512)), whole((31, 63), (129, 256))),
    "dropout": Values(one_of(("0.01", "0.02", "0.03", "0.04", "0.05", "0.06", "0.08", "0.025", "0.2", "0.25",
    "0.3", "0.35", "0.4")), one_of(("0.1", "0.11", "0.12", "0.13", "0.15", "0.16", "0.18"))),
    "learning_rate": Values(learning_rate("1235"), learning_rate("4678")),
    "steps": Values(whole((5, 99), (100, 399), (1000, 1999), (10000, 12000)), whole((400, 999), (2000, 6000))),
    "epochs": Values(one_of(("1", "2", "2", "3", "3", "4", "5", "6", "10", "12", "15", "20", "1.5", "0.5")), one_of(("7", "8", "9", "11", "13", "14"))),
    "batch": Values(whole((1, 16), (1, 16), (64, 128), (200, 300)), whole((17, 63), (129, 199))),
    "length": Values(whole((64, 299), (300, 999)), whole((1000, 2048))),
    "precision": Values(one_of(("bf16", "fp32", "fp16")), one_of(("bf16", "fp32", "fp16"))),
    "seed": Values(whole((0, 99), (0, 99), (1000, 1999), (10000, 99999)), whole((100, 999), (2000, 9999))),
    "name": Values(slug(FIRST_TRAINING, SECOND_TRAINING, (1, 12)), slug(FIRST_HELDOUT, SECOND_HELDOUT, (13, 40))),
    "file": Values(file_path(FOLDERS_TRAINING, STEMS_TRAINING, (1, 12)), file_path(FOLDERS_HELDOUT, STEMS_HELDOUT, (13, 40))),
    "run": Values(
        run_path(RUNS_TRAINING, (2024, 2025), (0, 11)),
        run_path(RUNS_HELDOUT, (2026, 2027), (12, 23)),
    ),
    "prompt": Values(
        question(
            (
                "What is {}?", "Tell me about {}", "Who invented {}?", "How do I explain {} to a child?",
                "Give me three facts about {}", "Write a poem about {}", "Why do people like {}?",
                "Translate {} into French", "Is {} hard to learn?", "How old is {}?", "hello",
                "What is 2+2?", "Name a book about {}", "Where can I find {}?", "Hi, who are you?",
                "What does {} cost?", "Make a list of {}", "I do not understand {}",
                "summarise {} in one line", "how are you today?", "Tune mistral 7b on my chats with rank 32",
                "Can you help me with {}?", "When did {} begin?", "Say something nice about {}", "train nano for 30 steps",
                "{}, yes or no?", "Explain what {} means", "Explain to me shortly why {} matters", "Say hello to {} politely",
                "Describe {} briefly", "Rhyme on {} please", "Draw me {} in words", "Put {} and water together", "Count to ten slowly",
                "What went wrong with {}?", "Which {} is the cheapest?", "Is there a better way than {}?", "Spell {} backwards",
                "Two reasons for {}", "Answer quickly: what is {}", "Should {} be free?", "Do robots like {}?", "Tell a joke about {}, quickly",
                "Pick {} or nothing", "Where does {} come from originally?", "Argue against {} clearly", "describe {}", "Good morning! What about {}?",
            ),
            (
                "coffee", "the moon", "a vacuum cleaner", "my neighbour", "spiders", "opera", "the Alps",
                "a mortgage", "rice", "sharks", "lightning",
                "chewing gum", "the Vikings", "yoga", "magnets", "the alphabet", "LoRA", "a good night's sleep", "black holes", "chess", "my tax form", "bread",
                "the Roman empire", "bicycles", "tea", "Python", "a rainbow", "gold", "music",
                "trains", "the sea", "football", "a cat", "cheese", "the telephone", "Paris", "solar power", "history", "my garden", "wooden boats",
            ),
        ),
        question(
            (
                "How does {} work?", "Which is the best {}?", "Explain {} simply", "What happened to {}?",
                "Compare {} and stone", "Write a haiku on {}", "Do you know {}?", "What makes {} special?",
                "List two uses of {}", "Should I buy {}?",
            ),
            ("glass", "a violin", "the Nile", "winter", "volcanoes", "a compass", "Saturn", "paper", "silk", "honey", "the steam engine", "dinosaurs"),
        ),
    ),
}  # fmt: skip
