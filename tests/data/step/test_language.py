"""Languages are told apart offline by the library's bundled model; what is too short to tell is kept or dropped as asked."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import Any

import pytest

from largeforge.errors import InputError
from tests.data.step.made import chat, dropped, kept, make, recall_and_precision, text

SENTENCES = {
    "en": (
        "The train to the coast leaves every morning at half past seven.",
        "Could you please explain how photosynthesis works?",
        "She bought three apples and a loaf of bread.",
        "My computer does not start after the update.",
        "We walked along the river until it was dark.",
    ),
    "de": (
        "Der Zug an die Küste fährt jeden Morgen um halb acht.",
        "Kannst du mir bitte erklären, wie Photosynthese funktioniert?",
        "Sie kaufte drei Äpfel und ein Brot.",
        "Mein Rechner startet nach der Aktualisierung nicht mehr.",
        "Wir gingen am Fluss entlang, bis es dunkel war.",
    ),
    "fr": (
        "Le train pour la côte part chaque matin à sept heures et demie.",
        "Peux-tu m'expliquer comment fonctionne la photosynthèse ?",
        "Elle a acheté trois pommes et une miche de pain.",
        "Mon ordinateur ne démarre plus après la mise à jour.",
        "Nous avons marché le long de la rivière jusqu'à la nuit.",
    ),
    "es": (
        "El tren a la costa sale cada mañana a las siete y media.",
        "¿Puedes explicarme cómo funciona la fotosíntesis?",
        "Ella compró tres manzanas y una barra de pan.",
        "Mi ordenador no arranca después de la actualización.",
        "Caminamos junto al río hasta que se hizo de noche.",
    ),
    "it": (
        "Il treno per la costa parte ogni mattina alle sette e mezza.",
        "Puoi spiegarmi come funziona la fotosintesi?",
        "Ha comprato tre mele e una pagnotta di pane.",
        "Il mio computer non si avvia dopo l'aggiornamento.",
        "Abbiamo camminato lungo il fiume finché non è stato buio.",
    ),
    "pt": (
        "O comboio para a costa parte todas as manhãs às sete e meia.",
        "Você pode me explicar como funciona a fotossíntese?",
        "Ela comprou três maçãs e um pão.",
        "O meu computador não liga depois da atualização.",
        "Caminhamos ao longo do rio até escurecer.",
    ),
    "ru": (
        "Поезд на побережье отправляется каждое утро в половине восьмого.",
        "Объясните, пожалуйста, как работает фотосинтез?",
        "Она купила три яблока и буханку хлеба.",
        "Мой компьютер не запускается после обновления.",
        "Мы шли вдоль реки, пока не стемнело.",
    ),
    "zh": (
        "去海边的火车每天早上七点半出发。",
        "请解释一下光合作用是如何进行的?",
        "她买了三个苹果和一个面包。",
        "更新之后我的电脑无法启动。",
        "我们沿着河走,直到天黑。",
    ),
}
ROWS = [text(sentence, f"{code}:{place}") for code, sentences in SENTENCES.items() for place, sentence in enumerate(sentences)]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be downloaded: any connection is an error."""

    def refused(*_: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refused)


def test_forty_sentences_of_eight_languages() -> None:
    """Recall and precision of the languages are 0.95 or more over 40 sentences (measured: 39 of 40 told right)."""
    found = {row.origin: row.lineage["language"] for row in kept(make("language", keep=[], threshold=0.0, min_letters=0)(ROWS))}
    right = sum(found[row.origin] == row.origin[:2] for row in ROWS)
    assert len(found) == 40
    assert right >= 38, found


@pytest.mark.parametrize("code", list(SENTENCES))
def test_one_language_is_kept(code: str) -> None:
    """Of 40 rows, those of one language stay: recall 0.8 or more (one of five may be unsure), precision 1."""
    origins = {row.origin for row in kept(make("language", keep=[code])(ROWS))}
    recall, precision = recall_and_precision([row.origin.startswith(code) for row in ROWS], [row.origin in origins for row in ROWS])
    assert recall >= 0.8
    assert precision == 1


def test_what_is_dropped_says_which_language_it_is() -> None:
    [left] = dropped(make("language")([text(SENTENCES["de"][0])]))
    assert left.reason == "other_language"
    assert left.detail.startswith("de (0.9")


def test_clean_rows_come_through_as_they_are() -> None:
    rows = [chat("How does photosynthesis work, in short?", sentence) for sentence in SENTENCES["en"]]
    items = list(make("language")(rows))
    assert [item.content for item in kept(items)] == [row.content for row in rows]
    assert all(row.lineage == {"language": "en"} for row in kept(items))


@pytest.mark.parametrize("short", ["Paris.", "42", "x = 1", "😀😀😀", "", "Guten Tag"])
def test_what_is_too_short_to_tell(short: str) -> None:
    assert kept(make("language")([text(short)])) == [text(short)]
    [left] = dropped(make("language", short="drop")([text(short)]))
    assert left.reason == "too_short_to_tell"


def test_code_and_links_are_not_read() -> None:
    code = "\n".join(f"for line in open(path):  # count every line of the file, part {part} of the whole story" for part in range(9))
    said = f"Der folgende Ausdruck zählt alle Zeilen der Datei:\n```python\n{code}\n```"
    [row] = kept(make("language", keep=["de"])([text(f"{said} https://example.org/how-to-count-all-the-lines-of-a-file")]))
    assert row.lineage["language"] == "de"


def test_capitals_are_a_language_too() -> None:
    assert len(kept(make("language")([text("THE TRAIN TO THE COAST LEAVES AT SEVEN.")]))) == 1


def test_a_label_is_written_into_the_row_where_that_is_asked() -> None:
    [row] = kept(make("language", keep=[], label=True)([text(SENTENCES["fr"][0])]))
    assert row.content["language"] == "fr"
    assert row.lineage["changed"] == ["language"]
    assert kept(make("language", keep=[], label=True)([row])) == [row], "a second time changes nothing"


def test_unsure_rows_are_dropped_by_the_threshold() -> None:
    mixed = text("Internet Computer Software Hotel Taxi Restaurant Radio")
    assert [item.reason for item in dropped(make("language", keep=[], threshold=0.99)([mixed]))] == ["unsure_language"]
    assert len(kept(make("language", keep=[], threshold=0.0)([mixed]))) == 1


def test_a_code_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="English"):
        make("language", keep=["English"])


def test_no_torch_for_a_language() -> None:
    said = "text('The train to the coast leaves at seven.')"
    code = f"import sys; from tests.data.step.made import make, text; list(make('language')([{said}])); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
