"""Planted junk scores low, good text scores high, short good answers are left in peace, and every rule says what it measured."""

from __future__ import annotations

import pytest

from largeforge.data.rows import Row
from largeforge.data.step.quality import Quality
from tests.data.step.made import chat, dropped, kept, make, preference, recall_and_precision, text

PARAGRAPH = (
    "Bread rises because yeast eats the sugar in the flour and gives off gas. The gas is caught in the dough, which is why kneading matters: it makes "
    "the dough strong enough to hold what the yeast makes. Leave it in a warm place for an hour, and it will have twice the size that it had before. "
    "Then shape it, let it rest once more, and bake it until the crust is dark and the loaf sounds hollow."
)
STORY = (
    "The old lighthouse keeper had not spoken to anybody for nine days. On the tenth, a boat came round the point with a torn sail and two children, "
    "who had been told to stay on the beach. He gave them soup, dried their clothes by the stove, and rowed them home before their mother "
    "could have missed them. Nobody ever learnt of it, apart from the gulls."
)
GERMAN = (
    "Der Teig geht auf, weil die Hefe den Zucker im Mehl frisst und dabei Gas abgibt. Das Gas bleibt im Teig gefangen, und deshalb ist das Kneten so "
    "wichtig: Erst dadurch wird der Teig so fest, dass er das Gas hält. Man lässt ihn eine Stunde an einem warmen Ort stehen, bis er doppelt so groß ist "
    "wie vorher, formt ihn, lässt ihn noch einmal ruhen und backt ihn, bis die Kruste dunkel ist."
)
GOOD = {
    "one word": "Paris.",
    "a number": "42",
    "yes": "Yes, it is.",
    "a letter": "B",
    "an emoji": "👍",
    "an equation": "2 + 2 = 4",
    "a paragraph": PARAGRAPH,
    "a story": STORY,
    "german": GERMAN,
    "chinese": "面包会发起来,是因为酵母吃掉面粉里的糖并放出气体。所以揉面很重要。把它放在温暖的地方一个小时,然后整形、再醒一次,最后烤到表皮变深。",
    "a list": "Three fruits that are red:\n- apples\n- cherries\n- strawberries\n- currants\n- raspberries",
    "a sum": "Natalia sold 48 / 2 = 24 clips in May. Natalia sold 48 + 24 = 72 clips altogether in April and May. #### 72",
    "code": "```python\ndef add(a, b):\n    return a + b\n\n\nprint(add(1, 2), add(3, 4), add(5, 6))\n```",
    "code of symbols": "```apl\n{+/x} [[]] (()) ;;;; ==== !!!! <<<< >>>> ++++ ---- {{}} @@@@\n{{}} [[]] (()) ;;;; ==== !!!! <<<< >>>> ++++ {{}}\n```",
    "code and words": "Use a comprehension:\n\n```python\n[[x * y for x in range(10)] for y in range(10)]\n```\n\nIt is shorter, and quicker than the loop.",
    "json": '{"name": "Ada", "born": 1815, "fields": ["mathematics", "computing"]}',
    "a poem": "Nothing is so beautiful as spring,\nWhen weeds in wheels shoot long and lovely and lush.\nNothing is so quiet as the snow\nThat falls on snow.",
    "steps": "1. Open the lid.\n2. Take the filter out.\n3. Rinse it under cold water.\n4. Put it back and close the lid.",
    "a quotation": '"Well," she said, "that was not what I had expected at all..."',
    "about a refusal": PARAGRAPH + " " + STORY + " Some assistants would have begun with: I'm sorry, but I can't help with lighthouses.",
    "javascript": "JavaScript runs in the browser; to let it read a cookie, use document.cookie and split what you get at the semicolons.",
    "a table": "| city | people |\n| --- | --- |\n| Oslo | 700000 |\n| Bergen | 290000 |",
    "very": "It was a very, very, very long way home, and they were very tired.",
}
JUNK = {
    "empty": ("   \n ", "empty"),
    "symbols": ("@@@## $$%% ^^&& **(( ))__ ++== {{}} [[]] ;;:: <<>> ~~``", "symbols"),
    "one word again": ("buy " * 30, "repeated_word"),
    "a slogan again": ("the best deal is here and now, " * 12, "repeated_passages"),
    "a phrase again": (" ".join(f"{word} wonderful discounts" for word in PARAGRAPH.split()[:20]), "repeated_phrase"),
    "a passage again": (" ".join([PARAGRAPH] * 3), "repeated_passages"),
    "a loop of a model": ("I think that the answer is that I think that the answer is that " * 6, "repeated_passages"),
    "lines again": ("Home\nAbout us\nContact\nHome\nAbout us\nContact\nHome\nAbout us\nContact", "repeated_lines"),
    "refusal": ("As an AI language model, I cannot tell you where bread comes from.", "refusal"),
    "sorry": ("I’m sorry, but I can't help you with that request.", "refusal"),
    "lorem": ("Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor.", "boilerplate"),
    "cookies": ("This website uses cookies. Please enable JavaScript to go on reading.", "boilerplate"),
    "markup": ('<div class="a"><span class="b">Menu</span><br/><a href="/x">More</a></div><div class="c"></div>', "markup"),
    "mojibake": ("Der BÃ¤cker trÃ¤gt sÃ¼ÃŸe BrÃ¶tchen Ã¼ber die StraÃŸe.", "mojibake"),
    "lost characters": ("The caf\ufffd was closed, na\ufffdve as we were.", "mojibake"),
    "a run": ("Noooooooooooooooooooooooooo", "character_run"),
    "marks": ("What?!!!!!!!!!!!!!!!!!!!!", "character_run"),
    "keys": ("asdkfjhaslkdjfhalskdjfhlaskjdhflaksjdhflkasjdhflkajshdflkjahsdlfkjhasldkfjh", "one_long_word"),
    "cut lines": ("Bread rises because...\nThe gas is caught in...\nLeave it in a warm...\nThen shape it, let...", "lines_cut_off"),
    "hashes": ("#bread #baking #yeast #flour #oven #warm #crust #loaf #dough #rise #sugar #gas #home #cook #love #food #yum #best #now", "hashes_and_dots"),
    "glued": ("Breadrisesbecauseyeasteats thesugarintheflourandgives offgasthegasiscaught inthedoughwhichiswhy kneadingmattersitmakes "
              "thedoughstrongenough toholdwhattheyeast makesleaveitinawarm placeforanhour", "word_length"),
    "numbers": (" ".join(str(number * 7919) for number in range(40)), "few_words"),
    "few words": ("yes no maybe yes no maybe yes no maybe yes no maybe", "repeated_words"),
}  # fmt: skip


@pytest.fixture
def quality() -> Quality:
    step = make("quality")
    assert isinstance(step, Quality)
    return step


def test_recall_and_precision_on_planted_junk(quality: Quality) -> None:
    """23 junk answers and 23 good ones, of which each is of another kind: recall and precision are 1."""
    rows = [chat("Tell me about it, please.", said, name) for name, said in GOOD.items()]
    rows += [chat("Tell me about it, please.", said, name) for name, (said, _) in JUNK.items()]
    out = {item.row.origin for item in dropped(quality(rows))}
    recall, precision = recall_and_precision([row.origin in JUNK for row in rows], [row.origin in out for row in rows])
    assert (recall, precision) == (1, 1), out ^ set(JUNK)


@pytest.mark.parametrize("name", list(JUNK))
def test_each_rule_finds_its_junk(quality: Quality, name: str) -> None:
    said, rule = JUNK[name]
    score, broken = quality.judged(text(said))
    assert rule in [one.rule for one in broken]
    assert score < 0.5


@pytest.mark.parametrize("name", list(GOOD))
def test_good_text_is_given_on_with_its_score(quality: Quality, name: str) -> None:
    [row] = kept(quality([chat("Tell me about it, please.", GOOD[name])]))
    assert row.content == chat("Tell me about it, please.", GOOD[name]).content
    assert row.lineage["quality"] >= 0.7


def test_a_drop_names_score_and_rules(quality: Quality) -> None:
    [left] = dropped(quality([chat("Who are you?", JUNK["refusal"][0])]))
    assert left.reason == "low_quality"
    assert left.detail == "0.20 (at least 0.5): refusal"


def test_the_threshold_decides() -> None:
    """Proves SYS-F-003: the threshold is the setting, and a generator's row is judged like any other."""
    rows = [text(PARAGRAPH), text(PARAGRAPH.removesuffix(".")), text(JUNK["cookies"][0]), text(JUNK["refusal"][0])]
    scores = [row.lineage["quality"] for row in kept(make("quality", threshold=0.0)(rows))]
    assert scores == [1.0, 0.8, 0.4, 0.2]
    for threshold, count in ((0.0, 4), (0.2, 4), (0.3, 3), (0.5, 2), (0.9, 1)):
        assert len(kept(make("quality", threshold=threshold)(rows))) == count, threshold


def test_the_worst_answer_counts_and_questions_only_where_asked() -> None:
    turns = [*chat("Who are you?", "A baker.").content["messages"], *chat("And?", JUNK["refusal"][0]).content["messages"]]
    asked = chat("buy " * 30, "That is no question.")
    assert [len(kept(make("quality", judge=judge)([Row({"messages": turns}, "f:1"), asked]))) for judge in ("answers", "all")] == [1, 0]


def test_of_a_preference_the_chosen_answer_is_judged(quality: Quality) -> None:
    refusal = JUNK["refusal"][0]
    rows = [preference("Where does bread come from?", PARAGRAPH, refusal), preference("Where does bread come from?", refusal, PARAGRAPH)]
    assert kept(quality(rows))[0].content == rows[0].content
    assert [item.row for item in dropped(quality(rows))] == [rows[1]]


def test_an_answer_that_says_its_question_again(quality: Quality) -> None:
    question = "Could you tell me where bread comes from?"
    assert "echo" in dropped(quality([chat(question, question + " ")]))[0].detail
    assert len(kept(quality([chat("Hello!", "Hello!")]))) == 1


def test_phrases_are_the_users() -> None:
    refusal = chat("Who are you?", JUNK["refusal"][0])
    assert len(kept(make("quality", refusals=[])([refusal]))) == 1
    assert len(kept(make("quality", refusals=["a baker never"])([chat("Who?", "A Baker never says.")]))) == 0


def test_stop_words_are_a_weak_sign(quality: Quality) -> None:
    """Another language than that of the stop words costs something and drops nothing."""
    score, broken = quality.judged(text(GERMAN))
    assert ([one.rule for one in broken], score) == (["no_stop_words"], 0.7)
    assert make("quality", stop_words=["der", "die", "und"]).judged(text(GERMAN)) == (1.0, [])  # type: ignore[attr-defined]
