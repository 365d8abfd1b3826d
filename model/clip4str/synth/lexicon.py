"""Draws the labels of synthetic word images: words, numbers, codes and random strings of 1-25 characters."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeVar

import numpy as np
import wordfreq

from clip4str.charset import CHARACTERS
from clip4str.synth.kinds import Kind

_T = TypeVar("_T")

_LONGEST = 25
_DIGITS = "0123456789"
_UPPER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LOWER = _UPPER.lower()
_SYMBOLS = "".join(c for c in CHARACTERS if not c.isalnum())

# Words per language; the share of each language among the words drawn.
_LANGUAGES = {"en": (60_000, 0.85), "de": (15_000, 0.05), "fr": (15_000, 0.05), "es": (15_000, 0.05)}
# Frequencies are flattened by this power: rare words must be seen too, common ones still come more often.
_FLATTEN = 0.8
# How often each kind of label comes on forms, receipts and signs.
_MIXTURE = {
    "word": (0.51, 0.17, 0.65),
    "coined_word": (0.05, 0.03, 0.09),
    "punctuated_word": (0.11, 0.05, 0.035),
    "compound": (0.015, 0.01, 0.01),
    "number": (0.05, 0.13, 0.04),
    "price": (0.02, 0.22, 0.012),
    "date_or_time": (0.025, 0.05, 0.006),
    "telephone": (0.012, 0.03, 0.01),
    "code": (0.03, 0.07, 0.015),
    "measure": (0.01, 0.025, 0.01),
    "address": (0.01, 0.012, 0.012),
    "form_word": (0.04, 0.08, 0.002),
    "initials": (0.025, 0.01, 0.01),
    "single": (0.03, 0.07, 0.025),
    "random": (0.065, 0.05, 0.08),
}
# Shares of upper case, lower case and title case; the rest is mixed.
_CASES = {Kind.FORM: (0.36, 0.31, 0.31), Kind.RECEIPT: (0.55, 0.13, 0.30), Kind.SIGN: (0.53, 0.18, 0.265)}

_UNITS = (
    "kg", "g", "mg", "ml", "l", "cm", "mm", "m", "km", "KM", "W", "V", "Hz", "GB", "MB", "pcs", "PCS",
    "lbs", "oz", "ft", "in", "hrs", "am", "pm", "AM", "PM", "st", "nd", "rd", "th", "x", "X", "K", "M",
    "C", "F",
)  # fmt: skip
_CURRENCIES = (
    "$",
    "$",
    "$",
    "US$",
    "C$",
    "S$",
    "HK$",
    "EUR",
    "USD",
    "GBP",
    "CHF",
    "Rs.",
    "RM",
    "R$",
    "Kc",
    "kr",
)
_FORM_WORDS = (
    "No.", "NO.", "No:", "TEL:", "Tel:", "Tel.", "FAX:", "Fax:", "Date:", "DATE:", "Time:", "Total:",
    "TOTAL", "Total", "Amount", "AMOUNT", "Qty", "QTY", "Price", "Tax", "TAX", "GST", "VAT", "Cash",
    "CASH", "Change", "CHANGE", "Invoice", "INVOICE", "Receipt", "RECEIPT", "Subtotal", "Sub-total",
    "SUBTOTAL", "Item", "ITEM", "Desc", "Description", "Disc", "Balance", "Due", "Visa", "VISA", "Bill",
    "Table", "Cashier", "CASHIER", "Dr.", "Mr.", "Mrs.", "Ms.", "Inc.", "INC.", "Co.", "Ltd.", "LTD",
    "St.", "Ave.", "P.O.", "Box", "Re:", "RE:", "cc:", "TO:", "To:", "FROM:", "From:", "By:", "by",
    "Name:", "NAME", "Address:", "Phone:", "ID:", "Ref:", "etc.", "i.e.", "e.g.", "vs.", "a.m.", "p.m.",
    "N/A", "n/a", "R&D", "A/C", "c/o", "w/o", "#", "%", "&", "@", "-", "--", "*", "/", ":", "(", ")",
    "+", "=", "$", "?", "!", "...", "x", "X",
)  # fmt: skip
# {...} as in str.format; every date is drawn by its own parts.
_DATES = (
    "{day:02d}/{month:02d}/{year}", "{day:02d}-{month:02d}-{year}", "{day}/{month}/{short:02d}",
    "{month}-{day}-{short:02d}", "{year}-{month:02d}-{day:02d}", "{day:02d}.{month:02d}.{year}",
    "{day}-{name}-{short:02d}", "{name}.{day}", "{year}", "'{short:02d}", "{year}-{next:02d}", "{day},",
    "{NAME}{day:02d}", "{hour:02d}:{minute:02d}", "{hour}:{minute:02d}",
    "{hour:02d}:{minute:02d}:{second:02d}", "{twelve}:{minute:02d}{half}", "{twelve}{half}",
)  # fmt: skip
# Here 9 stands for any digit, A for any letter, X for either.
_TELEPHONES = (
    "999-9999", "(999)", "999-999-9999", "9999-9999", "(999)999-9999", "09-99999999", "+99-999999999",
    "1-899-999-9999", "999.999.9999", "TEL:09-9999999", "+9(999)999", "0999/999999", "999-9999,",
)  # fmt: skip
_CODES = (
    "(999999A)",
    "(999-A)",
    "9AA",
    "99A",
    "999AA",
    "9A",
    "#99-99",
    "#99-999",
    "A-99",
    "AA/99",
    "99/99",
    "XX-XX-XX",
)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DOMAINS = ("com", "org", "net", "co.uk", "de", "fr", "edu", "gov", "io", "com.au", "es", "info")


@cache
def _vocabulary(language: str, count: int) -> tuple[tuple[str, ...], np.ndarray]:
    """Words in lower case of a language, ASCII only, and their cumulative flattened probabilities."""
    allowed = set(_LOWER + "'-")
    words = [w for w in wordfreq.top_n_list(language, count) if set(w) <= allowed and len(w) <= _LONGEST]
    frequencies = wordfreq.get_frequency_dict(language)
    weights = np.array([frequencies[w] for w in words]) ** _FLATTEN
    return tuple(words), np.cumsum(weights / weights.sum())


class Lexicon:
    """Labels for word images, reproducible from the generator passed in.

    `draw(kind, max_length)` returns one label of 1..max_length printable ASCII characters (no space).
    Mostly natural words in several case patterns, some with punctuation attached; the rest are numbers, prices,
    dates, codes, addresses, form words, single characters, and strings that no language explains.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._kind = Kind.SIGN
        self._languages = tuple(_LANGUAGES)
        self._vocabularies = {name: _vocabulary(name, count) for name, (count, _) in _LANGUAGES.items()}
        self._language_edges = np.cumsum([share for _, share in _LANGUAGES.values()])
        self._makers: tuple[Callable[[], str], ...] = tuple(getattr(self, f"_{name}") for name in _MIXTURE)
        shares = np.array(list(_MIXTURE.values()))
        self._edges = np.cumsum(shares / shares.sum(0), axis=0)

    def draw(self, kind: Kind, max_length: int = _LONGEST) -> str:
        """One label of 1..max_length characters. Raises ValueError if max_length is not within 1..25."""
        if not 1 <= max_length <= _LONGEST:
            raise ValueError(f"max_length must be within 1..{_LONGEST}, got {max_length}")
        self._kind = kind
        edges = self._edges[:, kind]
        # A label that is too long is drawn again; after some tries a short random one stands in for it.
        for _ in range(8):
            maker = min(int(np.searchsorted(edges, self._rng.random(), side="right")), len(edges) - 1)
            label = self._makers[maker]()
            if 1 <= len(label) <= max_length:
                return label
        return self._letters(_LOWER + _UPPER + _DIGITS, 1, max_length)

    # -- pieces --------------------------------------------------------------------------------------------

    def _pick(self, items: Sequence[_T]) -> _T:
        return items[int(self._rng.random() * len(items))]

    def _int(self, low: int, high: int) -> int:
        """An integer within low..high, both included."""
        return low + int(self._rng.random() * (high - low + 1))

    def _chance(self, share: float) -> bool:
        return self._rng.random() < share

    def _letters(self, alphabet: str, low: int, high: int) -> str:
        return "".join(self._pick(alphabet) for _ in range(self._int(low, high)))

    def _lower_word(self) -> str:
        language = self._languages[min(int(np.searchsorted(self._language_edges, self._rng.random())), 3)]
        words, edges = self._vocabularies[language]
        return words[min(int(np.searchsorted(edges, self._rng.random())), len(words) - 1)]

    def _cased(self, word: str) -> str:
        upper, lower, title = _CASES[self._kind]
        u = self._rng.random()
        if u < upper:
            return word.upper()
        if u < upper + lower:
            return word
        if u < upper + lower + title:
            return word[0].upper() + word[1:]
        return "".join(c.upper() if self._chance(0.5) else c for c in word)

    # -- kinds ---------------------------------------------------------------------------------------------

    def _word(self) -> str:
        return self._cased(self._lower_word())

    def _coined_word(self) -> str:
        """The start of one word and the end of another: names and brands are in no word list."""
        first, second = self._lower_word(), self._lower_word()
        joined = (
            first[: self._int(1, max(1, len(first) - 1))] + second[self._int(0, max(0, len(second) - 2)) :]
        )
        return self._cased(joined.replace("'", ""))

    def _punctuated_word(self) -> str:
        word = self._word()
        u = self._rng.random()
        if u < 0.50:
            return word + self._pick((",", ".", ".", ",", ":", ":", ";", "!", "?", "...", "!!", "*"))
        if u < 0.62:
            marks = self._pick(("()", "()", '""', "''", "[]", "<>", "{}"))
            return marks[0] + word + marks[1]
        if u < 0.74:
            return self._pick(("(", '"', "'", "#", "*", "-", "@", "/", "&", "+", "~", "_")) + word
        if u < 0.82:
            return word + self._pick((")", '"', "'", "),", ").", '."', ":", "/", "-", "%"))
        suffix = self._pick(("'s", "'s", "'ll", "n't", "'re", "'d", "s'"))
        return word + (suffix.upper() if word.isupper() else suffix)

    def _compound(self) -> str:
        first, second = self._lower_word(), self._lower_word()
        joined = first + self._pick(("-", "-", "-", "/", "/", "&", "_", ".", "+", "")) + second
        return self._cased(joined) if self._chance(0.7) else first.capitalize() + second.capitalize()

    def _number(self) -> str:
        digits = self._letters(_DIGITS, 1, self._pick((1, 2, 2, 3, 4, 4, 6, 8, 13)))
        u = self._rng.random()
        if u < 0.65:
            return digits
        if u < 0.75:
            return f"{int(digits):,}"
        if u < 0.90:
            return digits[:3] + self._pick((".", ".", "%", ",", "/", "-", "+", ":", ")", "th", "X", "x"))
        return self._pick(("#", "-", "+", "(", "No.", "0", "x", "*", "$")) + digits[:5]

    def _price(self) -> str:
        amount = self._rng.random() ** 3 * self._pick((10, 100, 100, 1000, 10_000))
        text = f"{amount:,.2f}" if self._chance(0.8) else f"{amount:.{self._int(0, 3)}f}"
        if self._chance(0.08):
            text = text.replace(".", ",") if "," not in text else text
        u = self._rng.random()
        if u < 0.60:
            return text
        if u < 0.85:
            return self._pick(_CURRENCIES) + text
        return text + self._pick(("%", "S", "T", "-", "*", "/-", "A", ",", ".", "EUR", "USD", "$"))

    def _date_or_time(self) -> str:
        year, month, hour = self._int(1950, 2035), self._int(1, 12), self._int(0, 23)
        return self._pick(_DATES).format(
            day=self._int(1, 31),
            month=month,
            name=_MONTHS[month - 1],
            NAME=_MONTHS[month - 1].upper(),
            year=year,
            short=year % 100,
            next=(year + 1) % 100,
            hour=hour,
            twelve=hour % 12 or 12,
            minute=self._int(0, 59),
            second=self._int(0, 59),
            half=self._pick(("AM", "PM", "am", "pm")),
        )

    def _filled(self, pattern: str) -> str:
        """The pattern with each 9 replaced by a digit, each A by a letter, each X by either."""
        alphabets = {"9": _DIGITS, "A": _UPPER, "X": _UPPER + _DIGITS}
        return "".join(self._pick(alphabets[c]) if c in alphabets else c for c in pattern)

    def _telephone(self) -> str:
        return self._filled(self._pick(_TELEPHONES))

    def _code(self) -> str:
        u = self._rng.random()
        if u < 0.35:
            return self._letters(_UPPER, 1, 3) + self._letters(_DIGITS, 1, 9)
        if u < 0.55:
            return self._letters(_UPPER + _DIGITS, 3, 12)
        if u < 0.70:
            return "-".join(self._letters(_UPPER + _DIGITS, 1, 5) for _ in range(self._int(2, 3)))
        return self._filled(self._pick(_CODES))

    def _measure(self) -> str:
        value = str(self._int(1, 999)) if self._chance(0.7) else f"{self._rng.random() * 100:.1f}"
        return value + self._pick(_UNITS)

    def _address(self) -> str:
        name, domain = self._lower_word(), self._pick(_DOMAINS)
        forms = (f"www.{name}.{domain}", f"{name}.{domain}", f"{self._lower_word()}@{name}.{domain}", f"http://{name}.{domain}",
                 f"@{name}", f"#{name}", "https://", f"{name}.html", f"/{name}")  # fmt: skip
        text = self._pick(forms)
        return text.upper() if self._chance(0.2) else text

    def _form_word(self) -> str:
        return self._pick(_FORM_WORDS)

    def _initials(self) -> str:
        letters = self._letters(_UPPER, 1, 4)
        return "".join(f"{c}." for c in letters) if self._chance(0.6) else letters

    def _single(self) -> str:
        u = self._rng.random()
        digits = 0.6 if self._kind is Kind.RECEIPT else 0.3
        if u < digits:
            return self._pick(_DIGITS)
        return self._pick(_SYMBOLS if u > 0.92 else _LOWER if u > 0.75 else _UPPER)

    def _random(self) -> str:
        # Mostly short, as codes are; every length up to the longest still occurs.
        length = self._int(1, _LONGEST) if self._chance(0.06) else self._int(2, 9)
        u = self._rng.random()
        if u < 0.35:
            return self._letters(CHARACTERS, length, length)
        if u < 0.6:
            return self._letters(_UPPER + _LOWER + _DIGITS, length, length)
        return self._letters(_UPPER if u < 0.85 else _LOWER, length, length)
