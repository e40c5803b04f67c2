"""Planted personal data and secrets are found, what only looks like them is left, and every mode does what it says. All values are made up."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest

from largeforge.data.rows import Row
from largeforge.data.step.pii import Pii
from largeforge.data.step.pii_forms import base58check, bech32, luhn
from largeforge.errors import InputError
from tests.data.step.made import chat, dropped, kept, make, recall_and_precision, text

# Put together here, so that no scanner of repositories takes a test for a leak.
STRIPE, GITHUB, HUGGING, AMAZON = (
    "sk_" + "live_" + "4eC39HqLyjWDarjtT1zdp7dc",
    "ghp" + "_" + "a1B2c3D4" * 5,
    "hf" + "_" + "AbCdEfGhIj" * 3 + "KlMn",
    "AKIA" + "Q3EXAMPLE7ABCD2Z",
)
OPENAI, SLACK = "sk-" + "proj-" + "a1B2c3D4e5F6g7H8i9J0k1L2", "xoxb" + "-123456789012-" + "AbCdEfGhIjKl"
JWT = "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0NTY3ODkwIn0." + "dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P"
KEY = "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEowIBAAKCAQEA7fakefakefake\nfakefakefake==\n-----END RSA " + "PRIVATE KEY-----"
PLANTED = [
    ("email", "Write to ada.lovelace@engine.org today.", "ada.lovelace@engine.org"),
    ("email", "My address is j_doe+news@mail.example.co.uk.", "j_doe+news@mail.example.co.uk"),
    ("email", "<müller@bücher.de> wrote:", "müller@bücher.de"),
    ("email", "Contact:o'neil? No: oneil99@x-y.io!", "oneil99@x-y.io"),
    ("phone", "Call me at +1 415 555 2671 after six.", "+1 415 555 2671"),
    ("phone", "My number is (212) 555-0187.", None),
    ("phone", "Ring +49 30 901820 for the office.", "+49 30 901820"),
    ("phone", "Sie erreichen uns unter 030 901820.", "030 901820"),
    ("phone", "Phone: 4155552671", "4155552671"),
    ("phone", "It is +44 20 7946 0958, in London.", "+44 20 7946 0958"),
    ("phone", "Tel. 01 42 68 53 00", "01 42 68 53 00"),
    ("phone", "text 415-555-2671 please", "415-555-2671"),
    ("credit_card", "The card is 4111 1111 1111 1111, valid to May.", "4111 1111 1111 1111"),
    ("credit_card", "Pay with 5555555555554444.", "5555555555554444"),
    ("credit_card", "Amex 378282246310005 was refused.", "378282246310005"),
    ("iban", "Send it to DE89 3704 0044 0532 0130 00 by Friday.", "DE89 3704 0044 0532 0130 00"),
    ("iban", "IBAN: GB82WEST12345698765432.", "GB82WEST12345698765432"),
    ("iban", "FR1420041010050500013M02606 is mine", "FR1420041010050500013M02606"),
    ("ip", "The request came from 81.2.69.142 at noon.", "81.2.69.142"),
    ("ip", "ping 8.8.4.4", "8.8.4.4"),
    ("ip", "It has 2a02:8108:8ac0:38d4::7b as its address.", "2a02:8108:8ac0:38d4::7b"),
    ("us_ssn", "His SSN is 536-90-4399.", "536-90-4399"),
    ("us_ssn", "social security number: 536904399", "536904399"),
    ("crypto", "Send coins to 1BoatSLRHtKNngkdXEeobR76b53LETtpyT now.", "1BoatSLRHtKNngkdXEeobR76b53LETtpyT"),
    ("crypto", "bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq takes it", "bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq"),
    ("crypto", "ETH: 0x52908400098527886E0F7030069857D2E4169EE7", "0x52908400098527886E0F7030069857D2E4169EE7"),
    ("url_credentials", "git clone https://ada:s3cret@git.example.org/engine.git", "ada:s3cret"),
    ("url_credentials", "DATABASE=postgresql://admin:hunter2@db:5432/prod", "admin:hunter2"),
    ("secret", f"stripe.api = '{STRIPE}'", STRIPE),
    ("secret", f"The token is {GITHUB}.", GITHUB),
    ("secret", f"login with {HUGGING}", HUGGING),
    ("secret", f"export AWS_ACCESS_KEY_ID={AMAZON}", AMAZON),
    ("secret", f"client = OpenAI({OPENAI!r})", OPENAI),
    ("secret", f"SLACK={SLACK}", SLACK),
    ("secret", f"Authorization: Bearer {JWT}", JWT),
    ("secret", f"Here is my key:\n{KEY}\nKeep it.", KEY),
    ("secret", 'password = "tr0ub4dor&3"', "tr0ub4dor&3"),
    ("secret", "My API key is: 9f8e7d6c5b4a3210ffee", "9f8e7d6c5b4a3210ffee"),
]
LOOKALIKES = [
    "Upgrade to version 1.2.3.4 first.",
    "pip install torch==2.11.0.1",
    "Chapter 3.2.1.4 tells more.",
    "The part is called 1.2.3.4 in the catalogue.",
    "Listen on 127.0.0.1:8000 or 0.0.0.0.",
    "The mask is 255.255.255.0.",
    "It costs $1,299.99, down from $1,499.00.",
    "ISBN 978-3-16-148410-0 is a book.",
    "Order 4155552671 has shipped.",
    "Invoice no. 2024-000123-77 is open.",
    "Between 2019-05-12 and 2020-11-30 it rained.",
    "It ran from 10:15:30 to 12:30:45.",
    "std::vector<int> and Foo::bar differ; ab::cd is a path.",
    "Natalia sold 48+24 = 72 clips; 4000/2000 = 2 and 960-480-120 = 360.",
    "Pi is 3.14159265358979 and e is 2.718281828459045.",
    "The population is 331449281 people.",
    "A distance of 149 597 870 700 metres.",
    "Use @property and @dataclass in the class.",
    "icon@2x.png stands beside icon.png",
    "git@github.com:org/engine.git is the remote",
    "commit 52908400098527886e0f7030069857d2e4169ee7",
    "The number 4111111111111112 fails the checksum.",
    "DE89 3704 0044 0532 0130 01 has a wrong checksum.",
    "1BoatSLRHtKNngkdXEeobR76b53LETtpyU has a wrong checksum.",
    "A password should be long, and a token is a piece of a word.",
    "password: ********",
    'api_key = os.environ["KEY_1"]',
    "See https://example.org:8080/a@b/c for more.",
    "The sequence 1, 1, 2, 3, 5, 8, 13, 21, 34, 55.",
    "Serial 123-45-6789-0 is printed below.",
    "000-12-3456 cannot be given out.",
    "At 52.5200, 13.4050 there is a square.",
    "RGB 255 128 000, or 12 34 56 78 as a lottery ticket",
    "It scored 1000000 points in 20 20 matches.",
]


@pytest.fixture
def pii() -> Pii:
    step = make("pii")
    assert isinstance(step, Pii)
    return step


def test_recall_and_precision(pii: Pii) -> None:
    """38 planted entities and 34 texts that look like some: recall at least 0.97 and precision 1 of the right kind at the right place."""
    found = [[(hit.kind, said[hit.start : hit.end]) for hit in pii.find(said)] for _, said, _ in PLANTED]
    right = [any(kind == k and (value is None or value == v) for k, v in hits) for (kind, _, value), hits in zip(PLANTED, found, strict=True)]
    wrong = [hits for hits in found if len(hits) > 1]
    noise = {said: [hit.kind for hit in pii.find(said)] for said in LOOKALIKES}
    recall, _ = recall_and_precision([True] * len(PLANTED), right)
    assert recall >= 0.97, [(plant, hits) for plant, hits, fine in zip(PLANTED, found, right, strict=True) if not fine]
    assert not wrong
    assert not {said: kinds for said, kinds in noise.items() if kinds}


def test_rows_without_any_come_through_as_they_are(pii: Pii) -> None:
    rows = [text(said) for said in LOOKALIKES]
    assert all(item is row for item, row in zip(pii(rows), rows, strict=True))


def test_replace_takes_it_out_of_every_turn_and_says_so(pii: Pii) -> None:
    [row] = kept(pii([chat("I am ada@engine.org, my phone is +49 30 901820.", "Hello ada@engine.org!", label="greeting")]))
    assert list(row.texts()) == ["I am <EMAIL>, my phone is <PHONE>.", "Hello <EMAIL>!"]
    assert row.content["label"] == "greeting"
    assert row.lineage == {"changed": ["pii"], "pii": {"email": 2, "phone": 1}}


def test_the_other_modes() -> None:
    row = text("From ada@engine.org and ada@engine.org, not bob@engine.org.")
    [masked] = kept(make("pii", mode="mask")([row]))
    assert masked.text() == "From ***@******.*** and ***@******.***, not ***@******.***."
    [hashed] = kept(make("pii", mode="hash", salt="pepper")([row]))
    first, second, third = (word.rstrip(".,") for word in hashed.text().split() if word.startswith("<EMAIL:"))
    assert first == second != third
    assert kept(make("pii", mode="hash", salt="salt")([row]))[0].text() != hashed.text()
    [left] = dropped(make("pii", mode="drop")([row]))
    assert (left.row, left.reason, left.detail) == (row, "pii", "email 3")
    assert "ada" not in left.detail


def test_only_what_is_asked_for() -> None:
    [row] = kept(make("pii", entities=["phone"])([text("ada@engine.org, +49 30 901820")]))
    assert row.text() == "ada@engine.org, <PHONE>"


def test_twice_is_once(pii: Pii) -> None:
    """What was replaced is not found again, and the same text gives the same bytes."""
    rows = [text(said, f"f:{place}") for place, (_, said, _) in enumerate(PLANTED)]
    once = [row.content for row in kept(pii(rows))]
    assert [row.content for row in kept(pii(Row(content, "f:1") for content in once))] == once
    assert [row.content for row in kept(make("pii")(rows))] == once


def test_checksums() -> None:
    assert luhn("4111111111111111")
    assert not luhn("4111111111111121")
    assert base58check("1BoatSLRHtKNngkdXEeobR76b53LETtpyT")
    assert not base58check("1BoatSLRHtKNngkdXEeobR76b53LETtpyV")
    assert bech32("BC1QAR0SRRR7XFKVY5L643LYDNW9RE59GTZZWF5MDQ")
    assert not bech32("bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdp")


def test_names_of_people_are_not_found(pii: Pii) -> None:
    """What the page says that it cannot do."""
    assert pii.find("Ada Lovelace lives at 12 St James's Square, London.") == []


@pytest.mark.parametrize(("changes", "said"), [({"entities": []}, "is empty"), ({"phone_regions": ["USA"]}, "'USA'")])
def test_settings_that_find_nothing_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        make("pii", **changes)


def test_it_is_ready_quickly_and_without_torch() -> None:
    made = "import sys; from tests.data.step.made import make, text; list(make('pii')([text('call +49 30 901820')]))"
    code = f"{made}; print('torch' in sys.modules, 'spacy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == ["False", "False"]


def test_a_long_text_takes_no_longer_than_its_length(pii: Pii) -> None:
    """No pattern goes back and forth: ten times the text, about ten times the time."""
    hard = ("a." * 50 + "1 " * 50 + "(555) " * 20 + "::::" * 20 + "x@" * 50) * 3
    seconds = []
    for times in (1, 10):
        began = time.process_time()
        pii.find(hard * times)
        seconds.append(time.process_time() - began)
    assert seconds[1] < 40 * max(seconds[0], 0.005)
