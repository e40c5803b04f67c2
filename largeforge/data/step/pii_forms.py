"""The forms of personal data and secrets: where each kind stands in a text, by its pattern and, where it has one, its checksum. Changes nothing."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address


@dataclass(frozen=True)
class Found:
    """One entity in a text: its kind and its span of characters."""

    kind: str
    start: int
    end: int


_DIGIT = re.compile(r"\d")


def _has_digit(text: str) -> bool:
    return _DIGIT.search(text) is not None


# ---- e-mail addresses ----

# The form of RFC 5321 that is in use: no quoted parts, a top-level domain of letters. git@host:path is an address of code.
_EMAIL = re.compile(r"(?<![\w.+-])[\w+-]+(?:\.[\w+-]+)*@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.)+[^\W\d_]{2,24}(?![\w@]|-\w|:[\w~/]|\.\w)")
_FILES = (".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".js", ".css", ".ts", ".py", ".json")


def emails(text: str) -> Iterator[Found]:
    """E-mail addresses."""
    if "@" in text:
        for match in _EMAIL.finditer(text):
            if not match[0].lower().endswith(_FILES):  # icon@2x.png
                yield Found("email", *match.span())


# ---- telephone numbers ----

_PHONE_LIKE = re.compile(r"(?<![\w.,/=<>*+$€£#-])(?:\+|\(|00|\d)[\d\s().\u2010-\u2015/-]{5,24}\d(?![\w-]|[.,]\d|\s*[=<>*/+%])")
_PHONE_WORD = re.compile(
    r"(?:phone|tel|telephone|telefon|call|cell|mobile|fax|ring|whatsapp|sms|text|dial|handy|reach (?:me|us))\W{0,3}(?:\w+\W{1,3}){0,4}$", re.IGNORECASE
)
_NOT_PHONE = re.compile(
    r"(?:isbn|issn|doi|order|invoice|ref|reference|no|nr|number|id|sku|serial|part|ticket|case|tracking|version|#)\W{0,4}(?:\w+\W{1,2}){0,2}$", re.IGNORECASE
)
_DATE = re.compile(r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}")


def phones(text: str, regions: Sequence[str]) -> Iterator[Found]:
    """Telephone numbers: international ones, and those written as their country writes them.

    A number in the way of a country needs something that parts its digits, or a word before it that says what it is: ten digits alone may be anything.
    """
    if not _has_digit(text):
        return
    for match in _PHONE_LIKE.finditer(text):
        said = match[0]
        digits = sum(map(str.isdigit, said))
        before = text[max(0, match.start() - 40) : match.start()]
        called = bool(_PHONE_WORD.search(before))
        if digits < 7 or digits > 15 or _DATE.match(said) or (_NOT_PHONE.search(before) and not called):
            continue
        international = said.startswith("+")
        # Ten digits alone may be anything, and 4000/2000 is a division.
        if not international and not called and (said.isdigit() or ("/" in said and not said.startswith(("0", "(")))):
            continue
        if span := _phone_span(said, [None] if international else regions, strict=not (called or international)):
            yield Found("phone", match.start() + span[0], match.start() + span[1])


def _phone_span(said: str, regions: Sequence[str | None], *, strict: bool) -> tuple[int, int] | None:
    """Where the number stands in what looks like one; None where no country has such a number."""
    import phonenumbers

    leniency = phonenumbers.Leniency.STRICT_GROUPING if strict else phonenumbers.Leniency.VALID
    for region in regions:
        for match in phonenumbers.PhoneNumberMatcher(said, region, leniency=leniency):
            return match.start, match.end
    return None


# ---- money ----

_CARD = re.compile(r"(?<![\w.,-])\d(?:[ -]?\d){12,18}(?![\w-]|[.,]\d)")
_CARD_ISSUED = re.compile(
    r"4\d{12}(?:\d{3}){0,2}"  # Visa
    r"|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}"  # Mastercard
    r"|3[47]\d{13}|3(?:0[0-5]|[689]\d)\d{11}"  # American Express, Diners Club
    r"|(?:6011|65\d\d|64[4-9]\d|35(?:2[89]|[3-8]\d))\d{12,15}"  # Discover, JCB
)
_IBAN = re.compile(r"(?<!\w)([A-Z]{2})\d{2}(?: ?[A-Z0-9]){11,30}", re.IGNORECASE)
# Characters of each country's IBAN (SWIFT's registry).
_IBAN_LENGTHS = {
    length: codes.split()
    for length, codes in {
        15: "NO", 16: "BE", 18: "DK FI FO GL NL SD FK", 19: "MK SI", 20: "AT BA EE KZ LT LU XK MN", 21: "CH CR HR LI LV", 22: "BG BH DE GB GE IE ME RS VA",
        23: "AE GI IL IQ OM TL SO", 24: "AD CZ ES MD PK RO SA SE SK TN VG", 25: "LY PT ST", 26: "IS TR", 27: "FR GR IT MC MR SM BI DJ",
        28: "AL AZ BY CY DO GT HU LB NI PL SV", 29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU",
    }.items()
}  # fmt: skip
_IBAN_LENGTH = {code: length for length, codes in _IBAN_LENGTHS.items() for code in codes}
_ETHEREUM = re.compile(r"(?<!\w)0x[0-9a-fA-F]{40}(?!\w)")
_BASE58 = re.compile(r"(?<!\w)[13][1-9A-HJ-NP-Za-km-z]{25,34}(?!\w)")
_BECH32 = re.compile(r"(?<!\w)bc1[02-9ac-hj-np-z]{11,71}(?!\w)", re.IGNORECASE)
_BASE58_DIGITS = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BECH32_DIGITS = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"


def credit_cards(text: str) -> Iterator[Found]:
    """Card numbers of 13 to 19 digits: an issuer's first digits and length, and Luhn's checksum. One in ten other numbers of that form passes too."""
    if not _has_digit(text):
        return
    for match in _CARD.finditer(text):
        digits = re.sub(r"[ -]", "", match[0])
        if _CARD_ISSUED.fullmatch(digits) and luhn(digits) and len(set(digits)) > 1:
            yield Found("credit_card", *match.span())


def luhn(digits: str) -> bool:
    """Whether the last digit is Luhn's checksum of the others (ISO/IEC 7812-1)."""
    doubled = [int(digit) * (1 + at % 2) for at, digit in enumerate(reversed(digits))]
    return sum(value - 9 * (value > 9) for value in doubled) % 10 == 0


def ibans(text: str) -> Iterator[Found]:
    """Account numbers: as long as their country has them, and with the right checksum (ISO 13616)."""
    if not _has_digit(text):
        return
    for match in _IBAN.finditer(text):
        length = _IBAN_LENGTH.get(match[1].upper())
        taken, end = "", match.start()
        while length and end < match.end() and len(taken) < length:
            taken += text[end].upper() if text[end] != " " else ""
            end += 1
        whole = length and len(taken) == length and not text[end : end + 1].isalnum()
        if whole and int("".join(str(int(char, 36)) for char in taken[4:] + taken[:4])) % 97 == 1:
            yield Found("iban", match.start(), end)


def wallets(text: str) -> Iterator[Found]:
    """Addresses of Bitcoin (by checksum: base58check, bech32, bech32m) and Ethereum (by form)."""
    if not _has_digit(text):
        return
    for match in _ETHEREUM.finditer(text):
        yield Found("crypto", *match.span())
    for match in _BASE58.finditer(text):
        if base58check(match[0]):
            yield Found("crypto", *match.span())
    for match in _BECH32.finditer(text):
        if bech32(match[0]):
            yield Found("crypto", *match.span())


def base58check(address: str) -> bool:
    """Whether the last four bytes are the checksum of the others."""
    number = 0
    for char in address:
        number = number * 58 + _BASE58_DIGITS.index(char)
    if number >= 1 << 200:
        return False
    raw = number.to_bytes(25, "big")
    return hashlib.sha256(hashlib.sha256(raw[:-4]).digest()).digest()[:4] == raw[-4:]


def bech32(address: str) -> bool:
    """Whether the last six characters are the checksum of the others (BIP 173, BIP 350)."""
    if address.lower() != address and address.upper() != address:
        return False
    prefix, _, data = address.lower().rpartition("1")
    values = [ord(c) >> 5 for c in prefix] + [0] + [ord(c) & 31 for c in prefix] + [_BECH32_DIGITS.index(c) for c in data]
    check = 1
    for value in values:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for at, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            check ^= generator if (top >> at) & 1 else 0
    return check in (1, 0x2BC830A3)


# ---- networks and papers ----

_IPV4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9a-fA-F]{0,4}:){2,7}[0-9a-fA-F]{0,4}(?![\w:])")
_VERSION_WORD = re.compile(r"(?:\bv|version|release|build|firmware|driver|==|>=|<=|~=|section|chapter|§)\W{0,3}$", re.IGNORECASE)
_IP_WORD = re.compile(r"(?:\bip\b|ipv4|address|host|server|ping|from|client|connect\w*|log\w*)\W{0,3}(?:\w+\W{1,2}){0,2}$", re.IGNORECASE)
_SSN = re.compile(r"(?<![\w-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")
_SSN_BARE = re.compile(
    r"(?:ssn|social security (?:number|no\.?))\W{0,4}(?:is\W{1,2})?((?!000|666|9\d\d)\d{3} ?(?!00)\d{2} ?(?!0000)\d{4})(?!\w)", re.IGNORECASE
)


def ips(text: str) -> Iterator[Found]:
    """IPv4 and IPv6 addresses, this machine's own (127.0.0.1, ::1, 0.0.0.0) and net masks left out. 1.2.3.4 is a version unless a word says otherwise."""
    if not _has_digit(text):
        return
    for match in _IPV4.finditer(text):
        before = text[max(0, match.start() - 30) : match.start()]
        small = all(len(part) == 1 for part in match[0].split("."))
        if _VERSION_WORD.search(before) or (small and not _IP_WORD.search(before)):
            continue
        if _is_somebodys(match[0]) and not match[0].startswith("255."):
            yield Found("ip", *match.span())
    for match in _IPV6.finditer(text):
        groups = [group for group in match[0].split(":") if group]
        # Foo::bar and 12:30:45 are none; ab::cd may be either, and code is likelier.
        if len(groups) >= 3 and any(map(str.isdigit, match[0])) and _is_somebodys(match[0]):
            yield Found("ip", *match.span())


def _is_somebodys(address: str) -> bool:
    try:
        known = ip_address(address)
    except ValueError:
        return False
    return not (known.is_loopback or known.is_unspecified)


def ssns(text: str) -> Iterator[Found]:
    """US social security numbers: with hyphens, or after a word that says so."""
    if not _has_digit(text):
        return
    for match in _SSN.finditer(text):
        yield Found("us_ssn", *match.span())
    for match in _SSN_BARE.finditer(text):
        yield Found("us_ssn", *match.span(1))


# ---- secrets ----

_URL_CREDENTIALS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://([^\s:/@<>\"']{1,100}:[^\s/@<>\"']{1,100})@[\w.\[-]")
_SECRETS = (
    re.compile(r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----.*?(?:-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----|\Z)", re.DOTALL),
    re.compile(r"(?<!\w)(?:AKIA|ASIA|AGPA|AROA)[A-Z0-9]{16}(?!\w)"),  # Amazon
    re.compile(r"(?<!\w)gh[pousr]_[A-Za-z0-9]{36,255}(?!\w)|(?<!\w)github_pat_[A-Za-z0-9_]{60,255}(?!\w)"),
    re.compile(r"(?<!\w)glpat-[A-Za-z0-9_-]{20,64}(?![\w-])"),  # GitLab
    re.compile(r"(?<!\w)xox[abeoprs]-[A-Za-z0-9-]{10,250}(?!\w)"),  # Slack
    re.compile(r"(?<!\w)sk-(?:[a-z]+-)*[A-Za-z0-9_-]{20,250}(?![\w-])"),  # OpenAI, Anthropic
    re.compile(r"(?<!\w)[sr]k_(?:live|test)_[A-Za-z0-9]{16,250}(?!\w)"),  # Stripe
    re.compile(r"(?<!\w)AIza[A-Za-z0-9_-]{35}(?![\w-])"),  # Google
    re.compile(r"(?<!\w)hf_[A-Za-z0-9]{30,64}(?!\w)"),  # Hugging Face
    re.compile(r"(?<!\w)npm_[A-Za-z0-9]{36}(?!\w)"),
    re.compile(r"(?<!\w)SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{32,64}(?![\w-])"),  # SendGrid
    re.compile(r"(?<!\w)eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?![\w-])"),  # JSON web tokens
)
# One of these stands in each of them: looking for it first makes most texts cheap.
_SIGNS = ("-----BEGIN", "AKIA", "ASIA", "AGPA", "AROA", "gh", "glpat-", "xox", "sk-", "sk_", "rk_", "AIza", "hf_", "npm_", "SG.", "eyJ")
_ASSIGNED = re.compile(
    r"(?:(?:api[_ -]?key|secret(?:[_ -]?(?:access[_ -]?)?key)?|access[_ -]?token|auth[_ -]?token|passw(?:or)?d|pwd)[\"']?(?:\s*[:=]\s*|\s+is:?\s+)|bearer\s+)"
    r"[\"']?([^\s\"'<>,;]{8,200})",
    re.IGNORECASE,
)


def url_credentials(text: str) -> Iterator[Found]:
    """User and password inside a URL."""
    if "://" in text:
        for match in _URL_CREDENTIALS.finditer(text):
            yield Found("url_credentials", *match.span(1))


def secrets(text: str) -> Iterator[Found]:
    """Keys and tokens of services that have a form of their own, private keys, and what is assigned to a password: letters and digits, 8 or more."""
    for pattern in _SECRETS if any(sign in text for sign in _SIGNS) else ():
        for match in pattern.finditer(text):
            yield Found("secret", *match.span())
    for match in _ASSIGNED.finditer(text) if _has_digit(text) else ():
        value = match[1].rstrip(".)")
        if any(map(str.isdigit, value)) and any(map(str.isalpha, value)) and not value.startswith(("$", "{", "os.", "http")):
            yield Found("secret", match.start(1), match.start(1) + len(value))


FINDERS: dict[str, Callable[[str], Iterator[Found]]] = {
    "email": emails,
    "credit_card": credit_cards,
    "iban": ibans,
    "ip": ips,
    "us_ssn": ssns,
    "crypto": wallets,
    "url_credentials": url_credentials,
    "secret": secrets,
}
