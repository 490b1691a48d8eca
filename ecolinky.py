#!/usr/bin/env python3
"""ecolinky: shows a Linky meter to Domoticz as the GCE Eco-Devices it knows.

A Linky sends its TIC (téléinformation client) on a serial line; an ESP8266 puts
those bytes on a TCP port; ecolinky reads them there and answers HTTP exactly as an
Eco-Devices would.  One file, Python 3.7 or later, no dependencies.

The way of a byte, and the order of this file:

    ESP8266 --TCP--> Reader -> decode -> guard -> translate -> Store -> documents
                                                        -> http.server -> Domoticz

Words: a *meter* sends *frames* (STX ... ETX); a frame holds *groups* (LF ... CR); a
group is a *label*, its *data* and a checksum.  An *index* is a counter of energy in
Wh that never falls.  Everything above the banner "Store" is pure: no socket, no
thread, no clock; time is an argument, in seconds of the monotonic clock.

Sources of the protocol facts: Enedis-NOI-CPT_54E (Linky, both modes),
ERDF-NOI-CPT_02E (older meters), captures of real meters, and the Eco-Devices'
firmware 1.05.25.
"""

import os
import sys

START = """
import runpy, sys
del sys.argv[0]
try:
    runpy.run_path(sys.argv[0], {"LEAN": True}, "__main__")
except KeyboardInterrupt:
    pass
"""
if __name__ == "__main__":
    # Two things would take 9 MiB of a Pi's memory for nothing.  Python keeps the syntax
    # tree of the script it was given for as long as that runs: so the script is given
    # to runpy, by the same process started again.  And http.client and hashlib load
    # OpenSSL, where no TLS is spoken: so they do not find it (unless hashlib has
    # nothing else, as on some distributions).
    if "LEAN" not in globals() and os.name == "posix" and sys.executable:
        os.execv(sys.executable, [sys.executable, "-I", "-c", START] + sys.argv)
    from importlib.util import find_spec

    if find_spec("_md5") and find_spec("_sha1"):
        sys.modules.update(dict.fromkeys(("ssl", "_hashlib")))  # type: ignore

import argparse
import base64
import binascii
import configparser
import errno
import functools
import hmac
import json
import logging
import math
import re
import signal
import socket
import socketserver
import threading
import time
from collections import deque, namedtuple
from html import escape  # as xml.sax.saxutils has it, without its 1 MiB
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, Callable, Dict, List, Optional, Tuple

__version__ = "1.0.0"

log = logging.getLogger("ecolinky")


########################################################################################
# Decode: bytes in, verified groups out
########################################################################################

STX, ETX, EOT = b"\x02", b"\x03", b"\x04"

# STX and EOT have an odd number of bits: read as 8N1 they carry the parity bit.
MARK = re.compile(b"([\x02\x03\x04\x82\x84])")
LINE_ENDS = re.compile(b"[\r\n]+")
# Met around a group: LF that arrived as 0B, 0E or 0F, a trailing 0C or 08.
DEBRIS = bytes(range(0x20)) + b" \x7f"

# The form of each label's data: a group whose data has another is not the meter's.
# The sum does not see a change of bit 6 (40 hex), nor two changes that cancel.
HISTORIC_FORMS = {
    "ADCO": "[0-9A-Z ]{11,14}",
    "OPTARIF": r"BASE|HC\.\.|EJP[. ]|BBR[!-?]",
    "ISOUSC": "[0-9]{2}",
    "BASE|HCHC|HCHP|EJPHN|EJPHPM|BBRH[CP]J[BWR]": "[0-9]{9}",
    "PEJP": "[0-9]{2}",
    "PTEC": r"TH\.\.|HC\.\.|HP\.\.|HN\.\.|PM\.\.|H[CP]J[BWR]",
    "DEMAIN": "----|BLEU|BLAN|ROUG",
    "IINST[123]?|ADPS|ADIR[123]|IMAX[123]?": "[0-9]{3}",
    "PMAX": "[0-9]{5}",
    "PAPP": "[0-4][0-9]{4}",
    "HHPHC": "[!-~]",
    "MOTDETAT": "[0-9]{6}",
    "PPOT": "[0-9A-F]{2}",
}
STAMP = "[HhEe ][0-9]{12}"
STANDARD_FORMS = {
    "ADSC": "[0-9A-Z ]{11,14}",
    "VTIC|PREF|PCOUP|NTARF|NJOURF|NJOURF[+]1": "[0-9]{2}",
    "DATE": STAMP + "\t",
    "NGTF|LTARF": "[ -~]{16}",
    "EAST|EASF(0[1-9]|10)|EASD0[1-4]|EAIT|ERQ[1-4]": "[0-9]{9}",
    "IRMS[123]|URMS[123]|RELAIS": "[0-9]{3}",
    "SINSTS[123]?|SINST[123]|SINSTI": "[0-4][0-9]{4}",
    "SMAXS?N[123]?(-1)?|SMAXIN(-1)?|CCAS?[IN]N?(-1)?": STAMP + "\t[0-9]{5}",
    "UMOY[123]": STAMP + "\t[0-9]{3}",
    "DPM[123]|FPM[123]": STAMP + "\t[0-9]{2}",
    "STGE": "[0-9A-F]{8}",
    "MSG1": "[ -~]{0,32}",
    "MSG2": "[ -~]{0,16}",
    "PRM": "[0-9]{14}",
    "PJOURF[+]1|PPOINTE": "[ -~]{0,98}",
}


def _form(table: Dict[str, str]) -> "re.Pattern[str]":
    """Compile a table of forms into one pattern that a whole label HT data matches."""
    return re.compile(
        "|".join("(?:%s)\t(?:%s)" % (label, data) for label, data in table.items())
    )


# By the separator, which is what tells the modes apart: SP in historic, HT in standard.
FORMS = {b" ": _form(HISTORIC_FORMS), b"\t": _form(STANDARD_FORMS)}
LABEL = re.compile("[A-Z][A-Z0-9+-]{1,9}")
KNOWN_LABEL = re.compile("|".join(list(HISTORIC_FORMS) + list(STANDARD_FORMS)))


def checksum(body: bytes) -> int:
    """Return the TIC checksum of the bytes, 20 to 5F hex (Enedis-NOI-CPT_54E 5.3.6)."""
    return (sum(body) & 0x3F) + 0x20


Verdict = Tuple[Optional[str], str]


@functools.lru_cache(maxsize=1024)
def decode_group(group: bytes, old: bool = False) -> Verdict:
    """Return (label, data) of one group without its LF and CR, if all of it is right.

    Of a group with a timestamp the data alone is returned; of DATE, which has no
    data, the timestamp.  Else: ("", label) when the checksum is right and the label
    unknown; (None, "checksum") when characters have changed in a group of the right
    form; (None, "form") when it has no form of ours.  `old`: the checksum covers the
    SP before it, as on some meters before Linky.

    A meter repeats most groups from frame to frame: remembering the last thousand
    verdicts is most of the decoder's speed.
    """
    verdict = _decode_exact(group, old)
    if verdict[0] is None:
        # Not a space at the end: that can be the checksum.
        stripped = group.lstrip(DEBRIS).rstrip(DEBRIS.replace(b" ", b""))
        if stripped != group:
            again = _decode_exact(stripped, old)
            if again[0]:
                return again
    return verdict


def decode_old_group(group: bytes) -> Verdict:
    """Do as decode_group does, for the old checksum."""
    return decode_group(group, True)


def _decode_exact(group: bytes, old: bool) -> Verdict:
    separator = group[-2:-1]
    if separator not in FORMS or not group.isascii():
        return None, "form"
    # Never split or strip on the way: the checksum itself can be a space.
    covered = group[:-1] if old or separator == b"\t" else group[:-2]
    intact = checksum(covered) == group[-1]
    label, _, data = group[:-2].decode("ascii").partition(separator.decode("ascii"))
    if FORMS[separator].fullmatch(label + "\t" + data):
        if not intact:
            return None, "checksum"
        return label, data.rpartition("\t")[2] or data.rstrip("\t")
    if intact and LABEL.fullmatch(label) and not KNOWN_LABEL.fullmatch(label):
        return "", label
    return None, "form"


def _parity_table() -> bytes:
    """Map a byte of 7E1 read as 8N1 to its seven bits, to DEL where parity is wrong."""
    return bytes(
        byte & 0x7F if bin(byte).count("1") % 2 == 0 else 0x7F for byte in range(256)
    )


PARITY = _parity_table()
HIGH_IS_DAMAGE = bytes(min(byte, 0x7F) for byte in range(256))
ASCII = bytes(range(128))


def seven_bits(raw: bytes) -> bytes:
    """Return the 7-bit characters of the bytes; a byte that cannot be one is DEL.

    Of text read as 8N1 about half the bytes carry the parity bit: then each byte's
    parity is checked, which finds damage that the checksum does not.
    """
    if raw.isascii():
        return raw
    eight_bits = len(raw.translate(None, ASCII)) * 8 >= len(raw)
    return raw.translate(PARITY if eight_bits else HIGH_IS_DAMAGE)


########################################################################################
# Guard: no false index
########################################################################################

WH_PER_SECOND = 10  # a Linky is cut off at 36 kVA
SLACK_WH = 10  # what a stalled network or a slow line may make of a second
BRACKET_WH = 230  # two readings farther apart than this do not confirm each other
TAKEOVER = 8  # readings in a row that agree against the served one replace it
FEW = 3  # damaged groups are few when there is at most one for so many intact ones


class Index:
    """One index: the value to serve, and the readings that wait for confirmation.

    The checksum passes one corruption in 64, so a reading is served only when another
    one confirms it: either one with the same value, or, since an index under load
    never shows the same value twice, a later one a little above it.  The second way
    is a weaker proof (the last digit may be wrong), so both readings must then be
    trusted by the caller, who knows how damaged the line is at that moment.
    """

    __slots__ = ("data", "value", "time", "_pending", "_rivals", "_rival")

    def __init__(self) -> None:
        self.data = ""  # the digits as sent, to compare the usual unchanged reading
        self.value = None  # type: Optional[int]
        self.time = -math.inf  # when the served value was last read
        self._forget()

    def _forget(self) -> None:
        self._pending = []  # type: List[Tuple[int, float, bool]]
        self._rivals = 0
        self._rival = (0, 0.0)

    def read(self, data: str, now: float, trusted: bool) -> bool:
        """Take a reading (nine digits); return False if it is implausible."""
        if data == self.data:
            self.time = now
            if self._pending or self._rivals:
                self._forget()
            return True
        value = int(data)
        if self.value is not None and not _follows(self.value, self.time, value, now):
            return self._contest(value, now, trusted)
        self._rivals = 0
        return self._await_confirmation(value, now, trusted)

    def _await_confirmation(self, value: int, now: float, trusted: bool) -> bool:
        confirmed = None
        if any(old > value for old, _, _ in self._pending):
            # One of the two is false, nobody knows which: neither is trusted.
            self._pending = [each for each in self._pending if each[0] <= value]
            trusted = False
        for old, when, was_trusted in self._pending:
            if old == value or (
                trusted
                and was_trusted
                and value - old <= BRACKET_WH
                and _follows(old, when, value, now)
            ):
                confirmed = (old, now if old == value else when)
        if confirmed is None:
            self._pending = self._pending[-3:] + [(value, now, trusted)]
            return True
        self.value, self.time = confirmed
        self.data = "%09d" % self.value
        self._pending = [] if self.value == value else [(value, now, trusted)]
        return True

    def _contest(self, value: int, now: float, trusted: bool) -> bool:
        """Count an implausible reading; enough of them in a row begin anew."""
        agrees = self._rivals and _follows(self._rival[0], self._rival[1], value, now)
        self._rivals = self._rivals + 1 if agrees else 1
        previous, self._rival = self._rival, (value, now)
        if self._rivals < TAKEOVER:
            return False
        self.value, self.data = None, ""
        self._forget()
        self._pending = [(previous[0], previous[1], trusted)]
        return self._await_confirmation(value, now, trusted)


def _follows(old: int, then: float, new: int, now: float) -> bool:
    """Say whether an index can be `new` Wh now when it was `old` Wh then."""
    return 0 <= new - old <= WH_PER_SECOND * (now - then) + SLACK_WH


########################################################################################
# Translate: what the meter says, in the words of the Eco-Devices
########################################################################################

# The tags of teleinfoN.xml without prefix, in the device's order.
FIELDS = (
    "ADCO OPTARIF ISOUSC BASE HCHC HCHP EJPHN EJPHPM BBRHCJB BBRHPJB BBRHCJW BBRHPJW"
    " BBRHCJR BBRHPJR PEJP PTEC DEMAIN IINST IINST1 IINST2 IINST3 ADPS IMAX IMAX1"
    " IMAX2 IMAX3 PPAP PAPP HHPHC MOTDETAT PPOT"
).split()
NO_PERIOD = "----"
# What the device shows of an input with nothing on it.
EMPTY = dict.fromkeys(FIELDS, 0)  # type: Dict[str, Any]
EMPTY.update(ADCO="0", OPTARIF=NO_PERIOD, PTEC=NO_PERIOD, DEMAIN=NO_PERIOD)
EMPTY.update(HHPHC="0", MOTDETAT="000000")

# The indexes of each tariff, by the first three characters of OPTARIF.
TARIFFS = {
    "BAS": ("BASE",),
    "HC.": ("HCHC", "HCHP"),
    "EJP": ("EJPHN", "EJPHPM"),
    "BBR": ("BBRHCJB", "BBRHPJB", "BBRHCJW", "BBRHPJW", "BBRHCJR", "BBRHPJR"),
}
HISTORIC_INDEXES = tuple(label for labels in TARIFFS.values() for label in labels)
EASF = tuple("EASF%02d" % number for number in range(1, 11))
STANDARD_INDEXES = ("EAST", "EAIT") + EASF
INDEXES = {"ADCO": HISTORIC_INDEXES, "ADSC": STANDARD_INDEXES}

# Which EASF goes where.  In every supplier's calendar met so far odd numbers are cheap
# and even ones dear, so that is used for calendars not met yet, and for the frozen
# indexes of a former contract: nothing is left out, the sum is EAST, and the share of
# an index never depends on what was seen since the start, which would make it jump.
HC_SHARES = {"HCHC": EASF[0::2], "HCHP": EASF[1::2]}
SHARES = {
    "BASE": {"BASE": ("EAST",)},
    "HC..": HC_SHARES,
    "EJP.": {"EJPHN": EASF[0:1] + EASF[2:], "EJPHPM": EASF[1:2]},
    "BBR(": dict(
        {tag: EASF[place : place + 1] for place, tag in enumerate(TARIFFS["BBR"])},
        BBRHCJB=("EASF01", "EASF07", "EASF09"),
        BBRHPJB=("EASF02", "EASF08", "EASF10"),
    ),
}  # type: Dict[str, Dict[str, Tuple[str, ...]]]

# How to tell the option from NGTF, or from LTARF when NGTF does not say: first match.
OPTION_WORDS = (
    (re.compile("TEMPO|BLEU|BLANC|ROUGE"), "BBR("),
    (re.compile("EJP|NORMALE|POINTE"), "EJP."),
    (re.compile(r"\bH[CP]\b|CREUSE|PLEINE|WEEK.?END"), "HC.."),
    (re.compile("BASE|PRODUCTEUR|NON CONSO"), "BASE"),
)
# Calendars whose periods are known by their number: LTARF has been seen stale.
NUMBERED = re.compile(r"HC|HP ?/ ?HC|H PLEINE/CREUSE|.*(WEEK.?END|\bSEM WE\b).*")
CHEAP = re.compile(r"\bHC\b|CREUSE|WEEK.?END")
DEAR = re.compile(r"\bHP\b|PLEINE|POINTE")
TEMPO_PERIODS = ("HCJB", "HPJB", "HCJW", "HPJW", "HCJR", "HPJR")
COLOURS = (NO_PERIOD, "BLEU", "BLAN", "ROUG")
COLOUR_WORDS = ("BLEU", "BLANC", "ROUGE")

# True now and only now: for how many seconds they are served without being seen again.
INSTANT = dict.fromkeys("PAPP SINSTS SINST1 SINSTI".split(), 300)
INSTANT_IF_ROUGH = dict.fromkeys(INSTANT, 20)
INSTANT.update(dict.fromkeys("ADPS ADIR1 ADIR2 ADIR3 PEJP".split(), 30))
# The current of one phase, or of each of three, in both modes; the power.
CURRENTS = (("IINST", "IRMS1"),) + tuple(
    ("IINST%d" % phase, "IRMS%d" % phase) for phase in (1, 2, 3)
)
OWN_POWER = frozenset(("PAPP", "SINSTS", "SINST1"))
POWER = OWN_POWER.union(*CURRENTS)
# Sent by three-phase meters only; one alone may be another, damaged.
THREE_PHASE = frozenset(
    "IINST1 IINST2 IINST3 IMAX1 IMAX2 IMAX3 PMAX PPOT IRMS2 IRMS3 URMS2 URMS3 UMOY2"
    " UMOY3 SINSTS1 SINSTS2 SINSTS3 SINST2 SINST3 SMAXSN2 SMAXSN3 SMAXN2 SMAXN3".split()
)
# Sent only while they last: gone with the first undamaged frame that has them no more.
EPHEMERAL = ("ADPS", "PEJP", "ADIR1", "ADIR2", "ADIR3")
MAINS_VOLTS = 230


def _words(text: str) -> str:
    return " ".join(text.upper().split())


def standard_option(ngtf: str, ltarf: str, stge: int) -> str:
    """Return the OPTARIF of a standard-mode meter."""
    for text in (ngtf, ltarf):
        for pattern, option in OPTION_WORDS:
            if pattern.search(_words(text)):
                return option
    return "BBR(" if stge >> 24 & 3 else "BASE"


def standard_period(option: str, ngtf: str, ltarf: str, number: int) -> Optional[str]:
    """Return the PTEC of a standard-mode meter; number is NTARF, 0 if not known."""
    text = _words(ltarf)
    told = bool(CHEAP.search(text)) - bool(DEAR.search(text))  # 1 cheap, -1 dear, 0
    cheap = number % 2 == 1 if number else told > 0
    known = bool(number or told)
    if option == "BASE":
        return "TH.."
    if option == "EJP.":
        dear = number == 2 if number else "POINTE" in text
        return "PM.." if dear else "HN.."
    if option == "HC..":
        if told and not NUMBERED.fullmatch(_words(ngtf)):
            return "HC.." if told > 0 else "HP.."
        return ("HC.." if cheap else "HP..") if known else None
    if 1 <= number <= 6:
        return TEMPO_PERIODS[number - 1]
    for place, colour in enumerate(COLOUR_WORDS):
        if colour in text and told:
            return TEMPO_PERIODS[2 * place + (told < 0)]
    return None


def _number(labels: Dict[str, str], *names: str) -> Optional[int]:
    """Return the number of the first of the labels that is there."""
    for name in names:
        if name in labels:
            return int(labels[name])
    return None


def phases_of(labels: Dict[str, str]) -> Tuple[str, ...]:
    """Return what a tag's name ends with for each phase that the labels tell of."""
    return ("1", "2", "3") if len(THREE_PHASE & labels.keys()) > 1 else ("",)


def _phased(
    fields: Dict[str, Any], name: str, values: List[Optional[int]], least: int
) -> None:
    """Set name (one phase: the first value) or name1-3 (three), each at least `least`.

    The other ones stay 0: that is how the clients tell the number of phases.
    """
    tags = [name] if len(values) == 1 else [name + str(phase) for phase in (1, 2, 3)]
    for tag, value in zip(tags, values):
        fields[tag] = max(least, value or 0)


def translate_historic(
    labels: Dict[str, str], indexes: Dict[str, int]
) -> Dict[str, Any]:
    """Return the 31 fields of a historic-mode meter; None where one is not known."""
    fields = dict(EMPTY)
    option = labels.get("OPTARIF", "")
    phases = phases_of(labels)
    currents = [_number(labels, "IINST" + phase) for phase in phases]
    alerts = ("ADPS", "ADIR1", "ADIR2", "ADIR3")
    fields.update(
        ADCO=labels.get("ADCO"),
        OPTARIF="EJP." if option.startswith("EJP") else option or None,
        ISOUSC=_number(labels, "ISOUSC") or 0,
        PTEC=labels.get("PTEC"),
        PEJP=_number(labels, "PEJP") or 0,
        DEMAIN=labels.get("DEMAIN", NO_PERIOD),
        ADPS=max(_number(labels, alert) or 0 for alert in alerts),
        PAPP=_number(labels, "PAPP"),
        HHPHC=labels.get("HHPHC", EMPTY["HHPHC"]),
        MOTDETAT=labels.get("MOTDETAT", EMPTY["MOTDETAT"]),
        PPOT=int(labels.get("PPOT", "0"), 16),
    )
    _phased(fields, "IINST", currents, 0)
    _phased(fields, "IMAX", [_number(labels, "IMAX" + phase) for phase in phases], 1)
    for tag in TARIFFS.get(option[:3], ()):
        fields[tag] = indexes.get(tag)
    return fields


def translate_standard(
    labels: Dict[str, str], indexes: Dict[str, int]
) -> Dict[str, Any]:
    """Return the 31 fields of a standard-mode meter; None where one is not known."""
    fields = dict(EMPTY)
    ngtf, ltarf = labels.get("NGTF", ""), labels.get("LTARF", "")
    stge = int(labels.get("STGE", "0"), 16)
    number = _number(labels, "NTARF") or ("STGE" in labels and (stge >> 10 & 15) + 1)
    phases = phases_of(labels)
    currents = [_number(labels, "IRMS" + (phase or "1")) for phase in phases]
    maxima = [_number(labels, "SMAXSN" + phase, "SMAXN" + phase) for phase in phases]
    kva = _number(labels, "PREF") or 0
    option = None
    if "NGTF" in labels:
        option = standard_option(ngtf, ltarf, stge)
        fields["PTEC"] = standard_period(option, ngtf, ltarf, number or 0)
        for tag, parts in SHARES[option].items():
            known = all(part in indexes for part in parts)
            fields[tag] = sum(indexes[part] for part in parts) if known else None
    fields.update(
        ADCO=labels.get("ADSC"),
        OPTARIF=option,
        # As Linky itself shows it in historic mode: 6 kVA 30 A, 12 kVA on three 20 A.
        ISOUSC=int(kva * 5 / len(phases) + 0.5),
        PEJP=30 if stge >> 28 & 3 else 0,
        DEMAIN=COLOURS[stge >> 26 & 3],
        ADPS=max(current or 0 for current in currents) if stge & 0x80 else 0,
        PAPP=_number(labels, "SINSTS", "SINST1"),
    )
    _phased(fields, "IINST", currents, 0)
    amperes = [power and int(power / MAINS_VOLTS + 0.5) for power in maxima]
    _phased(fields, "IMAX", amperes, 1)
    return fields


########################################################################################
# Meter: everything known about one TIC input
########################################################################################


class Meter:
    """All that the program knows about one TIC input; no I/O, no thread, no clock.

    `feed` the bytes as they come, say `disconnected` when the link ends, and ask
    `fields` for what may be served.  Times are seconds of a monotonic clock.
    `timeout` is how many seconds without a valid frame make the input stale.
    """

    LONGEST = 2048  # bytes without a mark that are taken for the longest frame

    def __init__(self, timeout: float = 30.0) -> None:
        self.timeout = timeout
        self.frames = 0  # frames with at least one intact group
        self.groups = 0  # intact groups
        self.refused = {"checksum": 0, "form": 0, "implausible": 0}
        self.unknown = set()  # type: set  # labels outside the specification, as met
        self.eight_bits = False  # the last frame came as 8N1
        self._buffer = b""
        self._opened = False  # an STX has been seen, its ETX not yet
        self._now = -math.inf
        self._decode = decode_group  # type: Callable[[bytes], Verdict]
        # Of the last frames: damaged groups, and those of the right form among them.
        self._damaged = deque(maxlen=8)  # type: deque
        self._altered = deque(maxlen=8)  # type: deque
        self._few = True  # the last frame had few damaged groups
        self.fresh = -math.inf  # time of the last valid frame of the meter
        self._reset(None)

    def _reset(self, identity: Optional[Tuple[str, str]]) -> None:
        """Begin anew with a meter: its mode's identity label and its identity."""
        self.identity = identity
        self._vouched = 0  # frames that said this identity
        self._stranger = (None, 0)  # type: Tuple[Optional[Tuple[str, str]], int]
        self._woke = -math.inf  # time of the first frame after the last silence
        self._powerless = 0  # complete frames in a row without a power
        self.labels = {}  # type: Dict[str, str]
        self._seen = {}  # type: Dict[str, float]
        self._rumours = {}  # type: Dict[str, str]
        self._indexes = {}  # type: Dict[str, Index]

    # ---- bytes ----

    def feed(self, data: bytes, now: float) -> None:
        """Take bytes as they arrived, in any chunks, at `now` seconds."""
        self._now = now
        if not MARK.search(data):
            self._buffer += data
        else:
            parts = MARK.split(self._buffer + data)
            self._buffer = parts.pop()
            for place in range(0, len(parts), 2):
                self._mark(parts[place], parts[place + 1], now)
        taken = 0
        while len(self._buffer) - taken > self.LONGEST:
            # No mark in sight: take what there is, up to the last whole group.
            head = self._buffer[taken : taken + self.LONGEST]
            end = max(head.rfind(b"\r"), head.rfind(b"\n"), head.rfind(b"\x8d")) + 1
            taken += end or self.LONGEST
            self._frame(head[: end or self.LONGEST], False, now)
        if taken:
            self._buffer = self._buffer[taken:]

    def disconnected(self) -> None:
        """Note that the link ended: what comes next does not continue what came."""
        head, end, _ = self._buffer.rpartition(b"\x8d" if self.eight_bits else b"\r")
        self._buffer = b""
        if end:
            self._frame(head, False, self._now)
        self._opened = False

    def _mark(self, text: bytes, mark: bytes, now: float) -> None:
        mark = bytes([mark[0] & 0x7F])
        if text and mark != EOT:
            # STX also ends a frame: some serial servers eat ETX.
            self._frame(text, self._opened, now)
        self._opened = mark == STX

    # ---- frames ----

    def _frame(self, raw: bytes, whole: bool, now: float) -> None:
        """Take the groups of one frame; `whole` if it came from mark to mark."""
        text = seven_bits(raw)
        pieces = text.strip(b"\r\n").split(b"\r\n")
        groups = dict(map(self._decode, pieces))
        damaged = altered = 0
        if None in groups or "" in groups or len(groups) != len(pieces):
            groups, damaged, altered = self._sort_out(text, whole)
        if not groups:
            return
        self.eight_bits = b"\x8d" in raw and b"\r" not in raw
        self.frames += 1
        self.groups += len(groups)
        self._few = damaged * FEW <= len(groups)
        trusted = not damaged or self._few and damaged <= min(self._damaged, default=0)
        if not trusted and (self._few or not altered):
            usual = min(self._altered, default=0)
            trusted = altered <= usual == max(self._altered, default=0)
        if whole:
            self._damaged.append(damaged)
            self._altered.append(altered)
        if not self._same_meter(groups):
            self.refused["implausible"] += self._stranger[1] and len(groups)
            return
        self._take_indexes(groups, trusted, now)
        self._take_labels(groups, not self._few, now)
        if whole and not damaged and ("OPTARIF" in groups or "NGTF" in groups):
            if OWN_POWER & groups.keys():
                self._powerless = 0
            elif "MOTDETAT" in groups or "PRM" in groups:  # the end was there too
                self._powerless += 1
            for label in EPHEMERAL:
                if label not in groups:
                    self.labels.pop(label, None)

    def _sort_out(self, text: bytes, whole: bool) -> Tuple[Dict[str, str], int, int]:
        """Return the intact groups of a damaged frame, and how many are not.

        That is, the number of damaged groups, and of those among them that have the
        right form: in these, characters have been changed, which the checksum does not
        always see; a lost or doubled byte changes the form.

        A group ends at CR or LF, whichever of the two has survived.  What stands
        before the first STX or between two frames is not counted as refused: it is
        the end of a frame that was not seen whole, or the ESP's own log.
        """
        pieces = [piece for piece in LINE_ENDS.split(text) if piece.strip(DEBRIS)]
        verdicts = [self._decode(piece) for piece in pieces]
        if len(pieces) > 3 and not any(label for label, _ in verdicts):
            old = self._decode is decode_group
            other = decode_old_group if old else decode_group
            again = [other(piece) for piece in pieces]
            if sum(1 for label, _ in again if label) > 3:
                self._decode, verdicts = other, again
        groups, damaged, altered = {}, 0, 0
        for label, data in verdicts:
            if label:
                groups[label] = data
            elif label is None:
                damaged += 1
                altered += data == "checksum"
                if whole:
                    self.refused[data] += 1
            elif len(self.unknown) < 32:
                self.unknown.add(data)
        return groups, damaged, altered

    def _same_meter(self, groups: Dict[str, str]) -> bool:
        """Say whether the frame is of the meter that is being read.

        A frame without its identity is taken for the meter's; one with another
        identity is held back, until three in a row say that the meter was replaced
        (or its mode changed, which is the same thing here: other labels, anew).
        """
        said = None
        for label in INDEXES:
            if label in groups:
                said = (label, groups[label])
        if said is None:
            return self.identity is not None and not self._stranger[1]
        if said != self.identity:
            stranger, times = self._stranger
            self._stranger = (said, times + 1 if said == stranger else 1)
            if self._stranger[1] < (3 if self._vouched > 1 else 1):
                return False
            self._reset(said)
            self.fresh = -math.inf
        self._vouched += 1
        self._stranger = (None, 0)
        return True

    def _take_indexes(
        self, groups: Dict[str, str], trusted: bool, now: float
    ) -> None:
        balanced = trusted
        if self.identity[0] == "ADSC":
            balanced = self._balance(groups, trusted)
        for label in INDEXES[self.identity[0]]:
            data = groups.get(label)
            if data is None:
                continue
            index = self._indexes.get(label)
            if index is None:
                index = self._indexes[label] = Index()
            trust = trusted if label == "EAIT" else balanced
            if trust is None and data != index.data:
                self.refused["implausible"] += 1
            elif not index.read(data, now, bool(trust)):
                self.refused["implausible"] += 1

    def _balance(self, groups: Dict[str, str], trusted: bool) -> Optional[bool]:
        """Return the trust in a frame's indexes: EASF01 + ... + EASF10 is EAST.

        True when that is so in a frame that has them all: damage would have had to hit
        two indexes alike.  None (refuse what changed) when it is not.  A difference of
        1 Wh is a frame built while the indexes ticked.
        """
        if "EAST" not in groups or not all(label in groups for label in EASF):
            return trusted
        gap = int(groups["EAST"]) - sum(int(groups[label]) for label in EASF)
        return True if gap == 0 else trusted if abs(gap) == 1 else None

    def _take_labels(self, groups: Dict[str, str], rough: bool, now: float) -> None:
        """Keep the last good data of each label.

        Where a frame is so damaged that an intact-looking group may not be, what it
        changes is believed when the next such frame says the same.
        """
        if now - self.fresh > self.timeout:
            # After a silence the identity comes first, then everything anew.
            if self.identity[0] not in groups:
                return
            self._woke = now
        self.fresh = now
        if rough:
            agreed = POWER if self._power_agrees(groups, now) else ()
            rumours, self._rumours = self._rumours, groups
            groups = {
                label: data
                for label, data in groups.items()
                if data in (self.labels.get(label), rumours.get(label))
                or label in agreed
            }
        option = groups.get("OPTARIF") or groups.get("NGTF")
        if option:
            before = self.labels.get("OPTARIF") or self.labels.get("NGTF") or option
            if before[:3] != option[:3]:
                self.labels, self._seen = {}, {}  # another contract: other labels
        self.labels.update(groups)
        self._seen.update(dict.fromkeys(groups, now))

    def _power_agrees(self, groups: Dict[str, str], now: float) -> bool:
        """Say whether a rough frame's power is to be believed.

        It is when it is near that of the rough frame before, or that of the currents,
        which come rounded: those of the same frame, or else ones of a moment ago.
        """
        lately = now - 6
        latest = {
            label: self.labels[label]
            for label in POWER & self.labels.keys()
            if self._seen[label] >= lately
        }
        latest.update(groups)
        power = _number(groups, "PAPP", "SINSTS", "SINST1")
        three = len(phases_of({**self.labels, **groups})) == 3
        names = CURRENTS[1:] if three else CURRENTS[:1]
        amperes = [_number(latest, *each) for each in names]
        before = _number(self._rumours, "PAPP", "SINSTS", "SINST1")
        if power is not None and before is not None:
            if abs(power - before) <= power // 10 + 50:
                return True
        if power is None or None in amperes:
            return False
        gap = abs(power - MAINS_VOLTS * sum(amperes))  # type: ignore
        return gap <= MAINS_VOLTS / 2 * len(names) + power // 25

    # ---- values ----

    def _known(self, now: float) -> Tuple[Dict[str, str], Dict[str, int]]:
        """Return the labels and the indexes that are good enough to be served."""
        seen, lasts = self._seen, INSTANT if self._few else INSTANT_IF_ROUGH
        labels = {
            label: data
            for label, data in self.labels.items()
            if now - seen[label] <= lasts.get(label, math.inf)
        }
        indexes = {
            label: index.value
            for label, index in self._indexes.items()
            if index.value is not None and index.time >= self._woke
        }
        return labels, indexes

    def missing(self, now: float) -> Optional[List[str]]:
        """Return the tags still unknown of a live input, None of one that is silent."""
        if now - self.fresh > self.timeout:
            return None
        values = self._translate(now)
        missing = [tag for tag in FIELDS if values[tag] is None and tag != "PPAP"]
        return missing or ([] if self._vouched > 1 else ["ADCO"])

    def fields(self, now: float) -> Optional[Dict[str, Any]]:
        """Return the 31 fields to serve, tag -> int or str, or None.

        None when no valid frame has come for `timeout` seconds, and until two frames
        have said the identity, and tariff, period, power and every index of the tariff
        are known.
        """
        if now - self.fresh > self.timeout or self._vouched < 2:
            return None
        values = self._translate(now)
        return None if None in values.values() else values

    def injection(self, now: float) -> Optional[Dict[str, Any]]:
        """Return the 31 fields of an input that shows what the meter injects, or None.

        EAIT (Wh) as BASE and SINSTI (VA) as the power, with the identity, phases and
        limits of the meter.  A pure producer (NGTF PRODUCTEUR) is no exception: input
        1 says what it draws (EAST, a few Wh for the inverter), input 2 what it
        injects, so that production is at the same place in every house and no client
        ever sees a production index counted as consumption.
        """
        drawn = self.fields(now) if "EAIT" in self.labels else None
        labels, indexes = self._known(now) if drawn else ({}, {})
        if not drawn or "EAIT" not in indexes or "SINSTI" not in labels:
            return None
        power = int(labels["SINSTI"])
        limits = "ADCO ISOUSC IMAX IMAX1 IMAX2 IMAX3".split()
        fields = dict(EMPTY, OPTARIF="BASE", PTEC="TH..", BASE=indexes["EAIT"])
        fields.update({tag: drawn[tag] for tag in limits}, PAPP=power, PPAP=power)
        phases = 3 if drawn["IMAX1"] else 1
        _phased(fields, "IINST", [int(power / MAINS_VOLTS / phases + 0.5)] * phases, 0)
        return fields

    def _translate(self, now: float) -> Dict[str, Any]:
        standard = self.identity is not None and self.identity[0] == "ADSC"
        translate = translate_standard if standard else translate_historic
        labels, indexes = self._known(now)
        fields = translate(labels, indexes)
        if fields["PAPP"] is None:
            # The meter sends none, or it is always damaged on an otherwise good line.
            lost = self._few and OWN_POWER & self.labels.keys()
            seen = [self._seen[label] for label in POWER & labels.keys()]
            if (lost or self._powerless > 1) and seen:
                if now - min(seen) <= self.timeout:
                    amperes = (fields["IINST" + phase] for phase in ("", "1", "2", "3"))
                    fields["PAPP"] = MAINS_VOLTS * sum(amperes)
        fields["PPAP"] = fields["PAPP"]  # the firmware's own misspelling
        return fields


class History:
    """The power of the last hours: one mean a minute, in bounded memory."""

    STEP = 60  # seconds
    LENGTH = 480  # steps: eight hours

    def __init__(self) -> None:
        self._steps = deque(maxlen=self.LENGTH)  # type: deque
        self._step = None  # type: Optional[int]
        self._sum = self._count = 0

    def add(self, power: int, now: float) -> None:
        """Take a power in VA at `now` seconds."""
        self._advance(now)
        self._sum += power
        self._count += 1

    def _advance(self, now: float) -> None:
        step = int(now // self.STEP)
        if self._step is None:
            self._step = step
        for _ in range(min(step - self._step, self.LENGTH)):
            self._steps.append(round(self._sum / self._count) if self._count else None)
            self._sum = self._count = 0
        self._step = step

    def means(self, now: float) -> List[Optional[int]]:
        """Return the means in VA, the oldest first; None is a minute without power."""
        if self._step is not None:
            self._advance(now)
        return list(self._steps)


########################################################################################
# Diagnosis: what bytes without a valid group look like
########################################################################################

LABELS_SEEN = re.compile(b"ADCO|OPTARIF|ISOUSC|PTEC|PAPP|ADSC|NGTF|LTARF|EAST|SINSTS")
NORMAL_GROUP = re.compile(b"(ADCO|OPTARIF|ISOUSC|PTEC|PAPP)[ ]|(ADSC|NGTF|EAST)\t")

TELNET = re.compile(b"\xff[\xfb-\xfe][\0-\x27]")  # IAC, WILL to DONT, an option

HINTS = {
    "separators": "spaces or line ends are missing or replaced: in ESPEasy's Serial"
    " Server set 'Event processing' to None and leave its replacements empty",
    "damaged": "groups arrive, none is intact: check the baud rate, 7E1, the"
    " opto-coupler and its resistors",
    "text": "it is text, but no TIC: set the ESP's own serial log off, and check that"
    " the port is the serial server's",
    "telnet": "it looks like telnet: set the serial server to raw TCP",
    "noise": "it is no text: a wrong baud rate (1200 in historic, 9600 in standard"
    " mode) or a wrong wire",
}


def diagnose(sample: bytes) -> str:
    """Return the key in HINTS of what bytes without a valid group look like."""
    sample = sample[-1024:]
    text = seven_bits(sample)
    if LABELS_SEEN.search(text):
        broken = not LINE_ENDS.search(text) or not NORMAL_GROUP.search(text)
        return "separators" if broken else "damaged"
    printable = sum(1 for byte in text if 32 <= byte < 127 or byte in b"\t\r\n")
    if sample and printable >= 0.95 * len(sample):
        return "text"
    if len(TELNET.findall(sample)) * 20 > len(sample):
        return "telnet"
    return "noise"


########################################################################################
# Store: the one place that threads share
########################################################################################

# What a reader publishes of an input, never changed afterwards: fields as Meter returns
# them and time when they were true; status for /ecolinky.json, None of the injection
# that is shown as input 2, which has no meter of its own.
Snapshot = namedtuple("Snapshot", "source timeout fields time status")


class Store:
    """The latest snapshot of each input, by its number, 1 or 2.

    The lock protects the dictionary and the number of its version, nothing else, and
    is held for as long as it takes to replace or to copy them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._snapshots = {}  # type: Dict[int, Snapshot]
        self._version = 0

    def publish(self, number: int, snapshot: Snapshot) -> None:
        """Replace an input's snapshot."""
        with self._lock:
            self._snapshots = {**self._snapshots, number: snapshot}
            self._version += 1

    def read(self) -> Tuple[int, Dict[int, Snapshot]]:
        """Return the version and the snapshots, which are not to be changed."""
        with self._lock:
            return self._version, self._snapshots


def served(
    snapshots: Dict[int, Snapshot], now: float
) -> Dict[int, Optional[Dict[str, Any]]]:
    """Return what each input shows now: fields, None if stale, EMPTY if not there."""
    inputs = {1: None, 2: EMPTY}  # type: Dict[int, Optional[Dict[str, Any]]]
    for number, snapshot in snapshots.items():
        fresh = snapshot.fields and now - snapshot.time <= snapshot.timeout
        inputs[number] = snapshot.fields if fresh else None
    return inputs


########################################################################################
# Documents: the Eco-Devices' answers
########################################################################################

FIRMWARE = "1.05.25"  # Domoticz refuses anything below 1.05.12
XML, JSON, HTML = "text/xml", "application/json", "text/html; charset=utf-8"
# The tags of status.xml in the device's order; {n} is one input, then the other.
STATUS = (
    "date time0 config_hostname config_mac http_port T{n}_PPAP T{n}_PAPP T{n}_PTEC"
    " T{n}_ISOUSC T{n}_IMAX,T{n}_IMAX1,T{n}_IMAX2,T{n}_IMAX3 meter0 meter1 meter2"
    " meter3 count0 count1 c0day c1day c0_fuel c1_fuel dnsstatus version salr"
)
STATUS_TAGS = tuple(
    tag
    for word in STATUS.split()
    for number in ((1, 2) if "{n}" in word else (0,))
    for tag in word.format(n=number).split(",")
)
# There are no pulse inputs: the clients want numbers all the same, never empty.
PULSES = dict.fromkeys("meter2 meter3 count0 count1 c0day c1day".split(), 0)
PULSE_NAMES = {"c0_name": "C1", "c1_name": "C2", "c0_unit": "Wh", "c1_unit": "Wh"}

Tags = List[Tuple[str, Any]]
Answer = Tuple[int, str, bytes]  # HTTP status, content type, body


def xml_document(tags: Tags) -> bytes:
    """Return a document as the device writes it: one root, one line a tag."""
    lines = ["<%s>%s</%s>" % (k, escape(str(value), False), k) for k, value in tags]
    text = '<?xml version="1.0" encoding="ISO-8859-1"?>\r\n<response>%s</response>\r\n'
    body = "".join("\r\n" + line for line in lines) + ("\r\n" if lines else "")
    return (text % body).encode("latin-1", "xmlcharrefreplace")


def json_document(content: Any) -> bytes:
    """Return JSON as compact as the device's."""
    return json.dumps(content, separators=(",", ":")).encode("ascii")


def gauge(fields: Dict[str, Any]) -> int:
    """Return the needle of the device's power gauge, 0-9 against the subscription."""
    limit = fields["ISOUSC"] * MAINS_VOLTS * (3 if fields["IMAX1"] else 1)
    return min(9, 10 * fields["PAPP"] // limit) if limit else 0


def teleinfo_tags(number: int, fields: Dict[str, Any]) -> Tags:
    """Return the tags of teleinfoN.xml."""
    return [("T%d_%s" % (number, tag), fields[tag]) for tag in FIELDS]


def status_tags(
    inputs: Dict[int, Dict[str, Any]], box: Dict[str, Any], local: time.struct_time
) -> Tags:
    """Return the tags of status.xml; `local` is the local time to show."""
    values = dict(PULSES, c0_fuel="", c1_fuel="", dnsstatus=0, salr=0, version=FIRMWARE)
    values.update(box)
    values["date"] = "%d%02d%02d" % (local.tm_wday, local.tm_mday, local.tm_mon)
    values["time0"] = "%02d:%02d" % (local.tm_hour, local.tm_min)
    for number, fields in inputs.items():
        values["meter%d" % (number - 1)] = gauge(fields)
        values.update(teleinfo_tags(number, fields))
    return [(tag, values[tag]) for tag in STATUS_TAGS]


def power_and_indexes(number: int, fields: Dict[str, Any]) -> Tags:
    """Return the tags of one input in cmd=10: the indexes follow the tariff."""
    indexes = TARIFFS.get(fields["OPTARIF"][:3], TARIFFS["BAS"])
    tags = ("PTEC", "PAPP") + indexes
    return [("T%d_%s" % (number, tag), fields[tag]) for tag in tags]


def document(
    name: str,
    inputs: Dict[int, Optional[Dict[str, Any]]],
    box: Dict[str, Any],
    local: time.struct_time,
) -> Answer:
    """Return the answer to a path of DOCUMENTS.

    `inputs` as from `served`.  A stale input has a document of its own that says
    unavailable (503: Home Assistant and Jeedom then record nothing) and looks like an
    empty one elsewhere; a document of both is unavailable when neither is live.
    """
    shown = {number: fields or EMPTY for number, fields in inputs.items()}
    live = any(fields and fields is not EMPTY for fields in inputs.values())
    t1, t2 = teleinfo_tags(1, shown[1]), teleinfo_tags(2, shown[2])
    if name == "/status.xml":
        # Domoticz gives the total of both inputs one and the same device, and decides
        # by this tag alone whether to read input 2 (EcoDevices.cpp): it never may.
        # Input 2 is input 1 of a box of its own, on the second port.
        tags = dict(status_tags(shown, box, local), T2_PTEC=NO_PERIOD)
        return 200, XML, xml_document(list(tags.items()))
    if name == "cmd=20":
        day = {"product": "Eco-devices", "Day_C1": 0, "Day_C2": 0}
        return 200, JSON, json_document(day)
    if name == "cmd=10":
        if not live:
            return 503, JSON, json_document({})
        both = power_and_indexes(1, shown[1]) + power_and_indexes(2, shown[2])
        tags = [("product", "Eco-devices")] + both + [("INDEX_C1", 0), ("INDEX_C2", 0)]
        return 200, JSON, json_document(dict(tags))
    if name == "/globalstatus.xml":
        tags = status_tags(shown, box, local)
        twice = set(STATUS_TAGS)
        tags += [(tag, value) for tag, value in t1 + t2 if tag not in twice]
        tags += list(PULSE_NAMES.items())
    elif name == "/teleinfo.xml":
        tags = t1 + t2
    else:
        number = 1 if name == "/protect/settings/teleinfo1.xml" else 2
        tags, live = (t1, t2)[number - 1], inputs[number] is not None
    return (200, XML, xml_document(tags)) if live else (503, XML, xml_document([]))


DOCUMENTS = (
    "/status.xml",
    "/protect/settings/teleinfo1.xml",
    "/protect/settings/teleinfo2.xml",
    "/teleinfo.xml",
    "/globalstatus.xml",
    "cmd=10",
    "cmd=20",
)


class Box:
    """An Eco-Devices that is shown: its name, its inputs, its answers to paths.

    `ports` are those of all boxes: the first shows both inputs.  The second, there when
    input 2 is, shows that as its input 1, under a name and a MAC address of its own.
    """

    def __init__(
        self, store: Store, hostname: str, mac: str, ports: List[int], second: bool
    ) -> None:
        self.store, self.ports, self.second = store, ports, second
        if second:
            hostname = hostname[:30] + "-2"
            mac = "%s%02x" % (mac[:-2], int(mac[-2:], 16) ^ 1)
        self.tags = dict(config_hostname=hostname, config_mac=mac)  # type: Dict
        self.tags["http_port"] = ports[second]
        self.started = time.monotonic()
        # What the answers were made of, and the answers made so far, by path.
        self._answers = ((), {})  # type: Tuple[tuple, Dict[str, Answer]]

    def answer(self, path: str, query: str) -> Optional[Answer]:
        """Return the answer to a path and its query, None if there is no such document.

        The same snapshots, freshness and minute give the same answer, made once.
        """
        now = time.monotonic()
        version, snapshots = self.store.read()
        if path == "/ecolinky.json":
            return 200, JSON, json_document(self.status(snapshots, now))
        if path in ("/", "/index.htm"):
            return 200, HTML, HOME_PAGE
        name = path if path.startswith("/") else ""
        if path == "/api/xdevices.json":
            name = next((w for w in query.split("&") if w.startswith("cmd=")), "")
        if name not in DOCUMENTS:
            return None
        inputs = served(snapshots, now)
        if self.second:
            inputs = {1: inputs[2], 2: EMPTY}
        minute = int(time.time() // 60)
        made_of = (version, minute, inputs[1] is None, inputs[2] is None)
        before, answers = self._answers
        if made_of != before:
            # Replaced, never emptied: a thread that still has the old ones keeps them.
            answers = {}
            self._answers = (made_of, answers)
        if name not in answers:
            answers[name] = document(name, inputs, self.tags, time.localtime())
        return answers[name]

    def status(self, snapshots: Dict[int, Snapshot], now: float) -> Dict[str, Any]:
        """Return what /ecolinky.json says; the README documents it."""
        live = served(snapshots, now)
        inputs = []
        for number, snapshot in sorted(snapshots.items()):
            if snapshot.status is None:
                continue
            fields = live[number]
            status = dict(snapshot.status)
            age = now - snapshot.time
            status.update(
                input=number,
                source=snapshot.source,
                state="live" if fields else status["state"],
                age=round(age, 1) if age < math.inf else None,
                fields=fields,
                injection=status["injection"] if fields else None,
            )
            inputs.append(status)
        return {
            "version": __version__,
            "uptime": round(now - self.started),
            "hostname": self.tags["config_hostname"],
            "ports": self.ports,
            "inputs": inputs,
        }


########################################################################################
# Reader: the thread that reads one ESP8266
########################################################################################


class Lines:
    """Says each kind of log line at once, then at most once an hour."""

    HOUR = 3600.0

    def __init__(self) -> None:
        self._said = {}  # type: Dict[str, float]

    def say(self, level: int, kind: str, now: float, line: str, *args: Any) -> None:
        """Log the line, unless one of its kind has been logged within the hour."""
        if now - self._said.get(kind, -math.inf) >= self.HOUR:
            self._said[kind] = now
            log.log(level, line, *args)
        else:
            log.debug(line, *args)

    def forget(self, *kinds: str) -> None:
        """Let lines of these kinds be said at once again."""
        for kind in kinds:
            self._said.pop(kind, None)


def plain_reason(error: OSError) -> str:
    """Return in plain words why a connection could not be made or ended."""
    if isinstance(error, socket.gaierror):
        return "its name is not known on this network"
    if isinstance(error, ConnectionRefusedError):
        return "refused: it is on, but no serial server listens on that port"
    if isinstance(error, ConnectionResetError):
        return "the connection was reset"
    if isinstance(error, socket.timeout):
        return "no answer within 10 s: is it on, is the address right?"
    return error.strerror or str(error) or type(error).__name__


class Silence(OSError):
    """Ten seconds without a byte: the TIC never pauses for long."""

    def __str__(self) -> str:
        return "connected, but no byte for 10 s: is the meter wired, the ESP alive?"


class Closed(OSError):
    """The ESP closed the connection."""

    def __str__(self) -> str:
        return "the ESP closed the connection"


class Flood(OSError):
    """Many bytes without one valid group: closed, so that what waits in the kernel
    does not keep the true meter's values away.
    """

    def __init__(self, sample: bytes) -> None:
        super().__init__()
        self.sample = sample

    def __str__(self) -> str:
        hint = HINTS[diagnose(self.sample)]
        return "64 KiB without a valid group, connection closed: " + hint


class Reader(threading.Thread):
    """Reads one input for as long as the program lives, and publishes it.

    On any failure it starts again, after a pause that grows from 1 s to 10 s: about a
    fifth of the time that the ESP has been away.
    """

    CONNECT_TIMEOUT = 10.0
    SILENCE = 10.0
    PAUSES = (1.0, 10.0)
    PAUSE_GROWTH = 1.25
    CHUNK = 4096
    BRIEF = 60.0  # a connection that the ESP ends sooner may be another client's doing
    PATIENCE = 20.0  # seconds of bytes without a valid group before it is said
    FLOOD = 65536  # bytes without a valid group: no meter sends that

    def __init__(
        self,
        number: int,
        host: str,
        port: int,
        timeout: float,
        store: Store,
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
        injection: Optional[bool] = None,
    ) -> None:
        name = "teleinfo%d" % number
        super().__init__(name=name, daemon=True)
        self.number, self.address = number, (host, port)
        self.source = "%s:%d" % self.address
        self.meter = Meter(timeout)
        self.connections = 0
        self._store, self._stop_event, self._clock = store, stop, clock
        # Is what this meter injects shown as input 2; None: that is another meter's.
        self._injection, self._injection_said = injection, injection is None
        self._lines = Lines()
        self._history = History()
        self._socket = None  # type: Optional[socket.socket]
        self._pause = self.PAUSES[0]
        self._brief = 0  # connections in a row that the ESP ended soon
        self._shown = None  # type: Optional[Tuple]  # what was last said to be received
        self._served = False  # has anything been served since the start
        self._complete = 0.0  # time of the last frame that could be served
        self._reason = "no connection yet"
        self._checked = (0.0, 0, 0)  # time, frames and refused groups at that time
        self._publish(self._clock())

    def run(self) -> None:
        """Read until the program stops."""
        while not self._stop_event.is_set():
            started = self._clock()
            try:
                self._read_once(started)
            except OSError as error:
                self._failed(error, started)
            except Exception as error:  # a bug must not empty the graphs for ever
                now, told = self._clock(), "%s: unexpected error, going on: %r"
                self._lines.say(logging.ERROR, "bug", now, told, self.name, error)
                log.debug("%s: where it was", self.name, exc_info=True)
            self._stop_event.wait(self._pause)
            self._pause = min(self.PAUSES[1], self._pause * self.PAUSE_GROWTH)

    def close(self) -> None:
        """End the connection, from another thread."""
        connection = self._socket
        if connection is not None:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    # ---- one connection ----

    def _read_once(self, started: float) -> None:
        with socket.create_connection(
            self.address, self.CONNECT_TIMEOUT
        ) as connection:
            self._socket = connection
            self._complete = self._clock()
            self.connections += 1
            connection.settimeout(self.SILENCE)
            log.debug("%s: connected to %s", self.name, self.source)
            try:
                self._read_all(connection, started)
            finally:
                self._socket = None
                frames = self.meter.frames
                self.meter.disconnected()
                if self.meter.frames != frames:
                    self._take_frames(self._clock())

    def _read_all(self, connection: socket.socket, started: float) -> None:
        sample, since, unread = b"", self._clock(), 0
        frames = self.meter.frames
        while not self._stop_event.is_set():
            try:
                data = connection.recv(self.CHUNK)
            except socket.timeout:
                raise Silence() from None
            now = self._clock()
            if not data:
                raise Closed()
            self.meter.feed(data, now)
            if self.meter.frames != frames:
                frames, sample, since, unread = self.meter.frames, b"", now, 0
                if now - started > self.BRIEF:
                    self._brief = 0
                self._take_frames(now)
            else:
                unread += len(data)
                if unread > self.FLOOD:
                    raise Flood(sample)
                sample = (sample + data)[-1024:]
                if now - since > self.PATIENCE:
                    self._unreadable(sample, now)
                    since = now

    def _take_frames(self, now: float) -> None:
        """Publish what new frames brought, and say what changed by them."""
        if self._stop_event.is_set():
            return
        fields = self._publish(now)
        if fields:
            self._history.add(fields["PAPP"], now)
            self._reason = ""
            if self._brief < 3:
                self._pause = self.PAUSES[0]
            self._say_received(fields)
            self._say_injection()
            self._complete = now
        elif now - self._complete > self.PATIENCE:
            self._incomplete(now)
        self._say_damage(now)

    def _publish(self, now: float) -> Optional[Dict[str, Any]]:
        """Publish what the meter says; return the fields that are served, if any."""
        meter, identity = self.meter, self.meter.identity
        fields = meter.fields(now)
        if fields:
            self._served = True
            log.debug("%s: frame %d: %s", self.name, meter.frames, fields)
        status = {
            "state": "stale" if self._served else "waiting",  # unless it is live
            "reason": self._reason,
            "mode": identity and ("historic" if identity[0] == "ADCO" else "standard"),
            "phases": (3 if fields["IMAX1"] else 1) if fields else None,
            "labels": dict(meter.labels),
            "counters": {
                "frames": meter.frames,
                "groups": meter.groups,
                "refused": dict(meter.refused),
                "connections": self.connections,
            },
            "history": {"step": History.STEP, "power": self._history.means(now)},
            "injection": meter.injection(now),
        }
        snapshot = Snapshot(self.source, meter.timeout, fields, meter.fresh, status)
        self._store.publish(self.number, snapshot)
        if self._injection:
            snapshot = snapshot._replace(fields=status["injection"], status=None)
            self._store.publish(2, snapshot)
        return fields

    # ---- what is said ----

    def _say_received(self, fields: Dict[str, Any]) -> None:
        mode = "historic" if self.meter.identity[0] == "ADCO" else "standard"
        shown = (fields["ADCO"], mode, fields["OPTARIF"])
        if shown != self._shown:
            self._shown = shown
            log.info(
                "%s: receiving meter %s, %s mode, tariff %s; its values are served",
                self.name,
                *shown
            )
            self._lines.forget("away", "unreadable", "incomplete")

    def _say_injection(self) -> None:
        """Say once where the setting and what the meter sends do not go together."""
        injects = "EAIT" in self.meter.labels
        if self._injection_said or (not injects and self.meter.frames < 20):
            return
        self._injection_said = injects or bool(self._injection)
        if injects and not self._injection:
            log.info(
                "%s: this meter also says what it injects (EAIT): to show that as a"
                " second box, set injection = yes in [teleinfo2]",
                self.name,
            )
        elif self._injection and not injects:
            log.warning(
                "%s: injection = yes, but the meter sends no EAIT: nothing is served as"
                " input 2; a Linky sends it in standard mode, to who has a contract",
                self.name,
            )

    def _warn(self, kind: str, now: float, line: str, *args: Any) -> None:
        self._lines.say(logging.WARNING, kind, now, line, self.name, self.source, *args)

    def _failed(self, error: OSError, started: float) -> None:
        now = self._clock()
        if self._stop_event.is_set():
            return
        ended_by_esp = isinstance(error, (Closed, ConnectionResetError))
        brief = ended_by_esp and now - started < self.BRIEF
        self._brief = self._brief + 1 if brief else 0
        self._reason = plain_reason(error)
        if self._brief >= 3:
            self._reason = "the ESP ends each connection: another program reads it"
            self._warn(
                "evicted",
                now,
                "%s: %s closed %d connections in a row soon after they were made:"
                " another program seems to be reading the same ESP, which has room for"
                " one; stop it; trying again",
                self._brief,
            )
        elif now - self.meter.fresh > self.meter.timeout:
            self._shown = None
            self._warn(
                "away",
                now,
                "%s: nothing from %s: %s; no value is served; trying again",
                self._reason,
            )
        else:
            log.debug("%s: %s; trying again", self.name, self._reason)
        self._publish(now)

    def _unreadable(self, sample: bytes, now: float) -> None:
        self._reason = HINTS[diagnose(sample)]
        if now - self.meter.fresh > self.meter.timeout:
            self._shown = None
        self._warn(
            "unreadable",
            now,
            "%s: bytes arrive from %s but no valid group: %s; no value is served",
            self._reason,
        )
        self._publish(now)

    def _incomplete(self, now: float) -> None:
        missing = ", ".join(self.meter.missing(now) or ["the meter's identity"])
        self._reason = "groups arrive, but some are missing: " + missing
        self._warn(
            "incomplete",
            now,
            "%s: groups arrive from %s, but some are missing: %s; no value is served;"
            " raise ESPEasy's buffer",
            missing,
        )

    def _say_damage(self, now: float) -> None:
        """Once an hour, say that much is refused, when it is."""
        then, groups, refused = self._checked
        if now - then < 60:
            return
        meter = self.meter
        self._checked = (now, meter.groups, sum(meter.refused.values()))
        damaged, intact = self._checked[2] - refused, meter.groups - groups
        if then and damaged * 20 > damaged + intact:
            self._warn(
                "damage",
                now,
                "%s: from %s, %d of %d groups of the last minute were damaged (checksum"
                " %d, form %d, implausible %d since the start) and left out: check the"
                " opto-coupler and its resistors, raise ESPEasy's buffer",
                damaged,
                damaged + intact,
                *meter.refused.values()
            )


########################################################################################
# Demo: a simulated meter behind a TCP socket
########################################################################################


class DemoMeter:
    """A meter whose indexes grow as its power says; the encoder of what it sends."""

    MODES = ("historic", "standard", "tempo", "three-phase")

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.baud = 9600 if mode == "standard" else 1200
        # Wh; the third one is injected.
        self._energy = {"low": 12345678.0, "high": 23456789.0, "injected": 4567890.0}
        self._time = 0.0

    @staticmethod
    def power(now: float) -> int:
        """Return the power in VA at `now` seconds: a house with a kettle, an oven."""
        power = 420 + 180 * math.sin(now / 97) + 40 * math.sin(now / 7)
        power += 2100 if now % 300 < 45 else 0
        power += 1800 if now % 1700 > 1250 and now % 40 < 25 else 0
        return int(power)

    @staticmethod
    def sun(now: float) -> int:
        """Return what the roof gives at `now` seconds, in VA: two minutes in five."""
        return 1500 if now % 300 >= 180 else 0

    def frame(self, now: float) -> bytes:
        """Return the frame that the meter sends at `now` seconds."""
        power = self.power(now)
        low = now % 1800 < 600  # ten minutes cheap, twenty dear
        running = "low" if low else "high"
        if self.mode == "standard":
            power -= self.sun(now)
            running = running if power >= 0 else "injected"
        if self._time:
            self._energy[running] += abs(power) * (now - self._time) / 3600
        self._time = now
        index = {name: "%09d" % energy for name, energy in self._energy.items()}
        groups = getattr(self, "_" + self.mode.replace("-", "_"))(power, low, index)
        separator = "\t" if self.mode == "standard" else " "
        return STX + b"".join(self._group(separator, group) for group in groups) + ETX

    @staticmethod
    def _group(separator: str, words: Tuple[str, ...]) -> bytes:
        body = separator.join(words).encode("ascii")
        end = separator.encode("ascii")
        sum_of = body + end if separator == "\t" else body
        return b"\n" + body + end + bytes([checksum(sum_of)]) + b"\r"

    def _historic(self, power: int, low: bool, index: Dict[str, str]) -> List[tuple]:
        return [
            ("ADCO", "021728123456"),
            ("OPTARIF", "HC.."),
            ("ISOUSC", "30"),
            ("HCHC", index["low"]),
            ("HCHP", index["high"]),
            ("PTEC", "HC.." if low else "HP.."),
            ("IINST", "%03d" % (power / MAINS_VOLTS + 0.5)),
            ("IMAX", "090"),
            ("PAPP", "%05d" % power),
            ("HHPHC", "A"),
            ("MOTDETAT", "000000"),
        ]

    def _tempo(self, power: int, low: bool, index: Dict[str, str]) -> List[tuple]:
        others = ["%09d" % (1000000 + 111111 * place) for place in range(4)]
        values = [index["low"], index["high"]] + others
        groups = self._historic(power, low, index)
        groups[0:3] = [("ADCO", "021728654321"), ("OPTARIF", "BBR("), ("ISOUSC", "45")]
        groups[3:6] = list(zip(TARIFFS["BBR"], values))
        groups[9:9] = [("PTEC", "HCJB" if low else "HPJB"), ("DEMAIN", "BLAN")]
        return groups

    def _three_phase(self, power: int, low: bool, index: Dict[str, str]) -> List[tuple]:
        # At least 1 A on a phase: Domoticz knows three-phase meters by their currents.
        amperes = [power / MAINS_VOLTS * share + 1 for share in (0.5, 0.3, 0.2)]
        return (
            [("ADCO", "041620123456"), ("OPTARIF", "BASE"), ("ISOUSC", "20")]
            + [("BASE", "%09d" % (self._energy["low"] + self._energy["high"])), ("PTEC", "TH..")]
            + [("IINST%d" % phase, "%03d" % amperes[phase - 1]) for phase in (1, 2, 3)]
            + [("IMAX%d" % phase, "060") for phase in (1, 2, 3)]
            + [("PMAX", "06030"), ("PAPP", "%05d" % power), ("HHPHC", "A")]
            + [("MOTDETAT", "000000"), ("PPOT", "00")]
        )

    def _standard(self, power: int, low: bool, index: Dict[str, str]) -> List[tuple]:
        stamp = time.strftime("H%y%m%d%H%M%S")
        running = 1 if low else 2
        easf = [int(index["low"]), int(index["high"])] + [0] * 8
        period = " HEURE  CREUSE  " if low else " HEURE  PLEINE  "
        return (
            [("ADSC", "041761123456"), ("VTIC", "02"), ("DATE", stamp, "")]
            + [("NGTF", "H PLEINE/CREUSE "), ("LTARF", period)]
            + [("EAST", "%09d" % sum(easf))]
            + [(label, "%09d" % value) for label, value in zip(EASF, easf)]
            + [("EASD01", index["low"]), ("EASD02", index["high"])]
            + [("EASD03", "000000000"), ("EASD04", "000000000")]
            + [("EAIT", index["injected"])]
            + [("IRMS1", "%03d" % (abs(power) / MAINS_VOLTS + 0.5)), ("URMS1", "231")]
            + [("PREF", "06"), ("PCOUP", "06"), ("SINSTS", "%05d" % max(0, power))]
            + [("SMAXSN", stamp, "04730"), ("SMAXSN-1", stamp, "05120")]
            + [("SINSTI", "%05d" % max(0, -power))]
            + [("CCASN", stamp, "00452"), ("CCASN-1", stamp, "00487")]
            + [("UMOY1", stamp, "231"), ("STGE", "003A%X001" % (running - 1 << 2 & 15))]
            + [("MSG1", "PAS DE          MESSAGE         ")]
            + [("PRM", "09123456789012"), ("RELAIS", "000")]
            + [("NTARF", "%02d" % running)]
            + [("NJOURF", "00"), ("NJOURF+1", "00")]
            + [("PJOURF+1", "00008001" + " NONUTILE" * 10)]
        )


class DemoServer(threading.Thread):
    """Sends a DemoMeter's frames as an ESP8266 does: one client, line rate, chunks."""

    CHUNK_SECONDS = 0.05  # as with an RX receive timeout of 50 ms

    def __init__(self, mode: str, stop: threading.Event) -> None:
        super().__init__(name="demo", daemon=True)
        self._meter = DemoMeter(mode)
        self._stop_event = stop
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(1)
        self._listener.settimeout(0)
        self.port = self._listener.getsockname()[1]

    def run(self) -> None:
        """Send to the client that came last, until the program stops."""
        size = int(self._meter.baud / 10 * self.CHUNK_SECONDS)
        pending, client = b"", None  # type: bytes, Optional[socket.socket]
        due = time.monotonic()
        while not self._stop_event.wait(max(0.0, due - time.monotonic())):
            due = max(due + self.CHUNK_SECONDS, time.monotonic() - 1)
            if len(pending) < size:
                pending += self._meter.frame(time.monotonic())
            chunk, pending = pending[:size], pending[size:]
            try:
                newcomer = self._listener.accept()[0]
                if client:
                    client.close()
                client = newcomer
            except OSError:
                pass
            if client:
                try:
                    client.sendall(chunk)
                except OSError:
                    client.close()
                    client = None
        for opened in (client, self._listener):
            if opened:
                opened.close()


########################################################################################
# HTTP: the threads that answer
########################################################################################

Login = Optional[bytes]  # what must stand in the Authorization header, None: nothing


def login_of(username: str, password: str) -> Login:
    """Return the Authorization header that the user name and password make."""
    if not username:
        return None
    return b"Basic " + base64.b64encode(("%s:%s" % (username, password)).encode())


class Server(socketserver.ThreadingMixIn, HTTPServer):
    """The HTTP server: a thread a connection, and not too many of them.

    When all are taken, the connection that has been waiting longest for its client is
    closed for the new one: clients that say nothing cost the others nothing.
    """

    daemon_threads = True
    request_queue_size = 128
    MOST = 64  # connections, and so threads

    def __init__(self, address: Tuple[str, int], box: Box, login: Login) -> None:
        self.box, self.login = box, login
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        self._slots = threading.Semaphore(self.MOST)
        self.waiting = {}  # type: Dict[socket.socket, bool]  # the longest first
        super().__init__(address, Handler)

    def server_bind(self) -> None:
        """Bind without HTTPServer's look-up of the host's name, which can hang.

        Connections get room for a few answers only: a client that asks and never reads
        then waits, instead of keeping us at work.
        """
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection a thread, another one's if need be."""
        patience = 0.0
        while not self._slots.acquire(timeout=patience):
            for longest in list(self.waiting)[:1]:
                self.waiting.pop(longest, None)
                try:
                    longest.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
            patience = 0.1
        self.waiting[request] = True
        try:
            super().process_request(request, client_address)
        except Exception:
            self.waiting.pop(request, None)
            self._slots.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer the connection's requests."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.waiting.pop(request, None)
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Note that a client went away, or a bug, without a traceback."""
        log.debug("%s: %r", client_address[0], sys.exc_info()[1])


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 30  # seconds; without one, a client that says nothing keeps its thread

    def handle_one_request(self) -> None:
        """Answer one request; what then waits for the next one is the newest."""
        super().handle_one_request()
        if self.server.waiting.pop(self.connection, False):
            self.server.waiting[self.connection] = True

    def do_GET(self) -> None:
        """Answer with a document, or say why not."""
        # A proxy's way to ask has the host in front.
        path, _, query = re.sub("^http://[^/]*", "", self.path).partition("?")
        if not self._may_ask():
            self._send(401, "text/plain", b"login needed\r\n")
            return
        answer = self.server.box.answer(path, query)
        self._send(*(answer or (404, "text/plain", b"no such document\r\n")))

    do_HEAD = do_GET

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._refuse_method
        raise AttributeError(name)

    def _refuse_method(self) -> None:
        if self._may_ask():
            self._send(405, "text/plain", b"GET and HEAD only\r\n")
        else:
            self._send(401, "text/plain", b"login needed\r\n")

    def _may_ask(self) -> bool:
        given = self.headers.get("Authorization", "").encode("utf-8", "replace")
        login = self.server.login
        if login is None:
            return True
        scheme, _, token = given.partition(b" ")
        given = scheme.capitalize() + b" " + token.strip()
        return hmac.compare_digest(given, login)

    def send_error(
        self, code: int, message: Optional[str] = None, explain: Optional[str] = None
    ) -> None:
        """Answer a request that http.server could not read."""
        self.close_connection = True
        reason = (message or "").splitlines()[:1]
        log.debug("%s: refused: %d %r", self.client_address[0], code, reason)
        self._send(int(code), "text/plain", b"bad request\r\n")

    def _send(self, status: int, content_type: str, body: bytes) -> None:
        """Send headers and body at once: in two they cost 44 ms (Nagle's algorithm)."""
        self._drop_body()
        head = [
            "HTTP/1.1 %d %s" % (status, self.responses[status][0]),
            "Server: ecolinky/" + __version__,
            "Date: " + self.date_time_string(),
            "Content-Type: " + content_type,
            "Content-Length: %d" % len(body),
            "Cache-Control: no-store",
            "Connection: " + ("close" if self.close_connection else "keep-alive"),
        ]
        if status == 401:
            head.append('WWW-Authenticate: Basic realm="ecolinky"')
        if status == 405:
            head.append("Allow: GET, HEAD")
        if self.command == "HEAD":
            body = b""
        text = "\r\n".join(head) + "\r\n\r\n"
        log.debug("%s %r %d", self.client_address[0], self.requestline, status)
        if self.request_version == "HTTP/0.9":
            text = ""
        self.wfile.write(text.encode("latin-1") + body)

    def _drop_body(self) -> None:
        """Read the little that a request may bring along, or end the connection."""
        headers = getattr(self, "headers", None)
        if headers is None or "Transfer-Encoding" in headers:
            self.close_connection = True
            return
        length = headers.get("Content-Length", "0")
        if length != "0":
            self.close_connection = True
            if re.fullmatch("[0-9]{1,5}", length):
                self.rfile.read(int(length))

    def version_string(self) -> str:
        """Return a server name that does not tell the version of Python."""
        return "ecolinky/" + __version__


class Discovery(threading.Thread):
    """Answers programs that look for Eco-Devices on the network, as the device does.

    Only the exact request has an answer, of less than 64 bytes, to where it came from.
    """

    PORT = 30303
    REQUEST = b"Discover GCE Devices"

    def __init__(
        self,
        box: Box,
        stop: threading.Event,
        address: Tuple[str, int] = ("0.0.0.0", PORT),  # a broadcast is heard there only
    ) -> None:
        super().__init__(name="discovery", daemon=True)
        tags = box.tags
        answer = (tags["config_hostname"], tags["config_mac"], tags["http_port"])
        self._answer = ("%s\r\n%s\r\n%d\r\n" % answer).encode("ascii")
        self._stop_event = stop
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            self._socket.bind(address)
        except OSError:
            self._socket.close()
            raise
        self._socket.settimeout(0.2)
        self.port = self._socket.getsockname()[1]

    def run(self) -> None:
        """Answer until the program stops."""
        with self._socket:
            while not self._stop_event.is_set():
                try:
                    request, sender = self._socket.recvfrom(64)
                    if request == self.REQUEST:
                        self._socket.sendto(self._answer, sender)
                except OSError:
                    continue  # nothing came, or the asker is gone


########################################################################################
# Configuration
########################################################################################

class ConfigError(Exception):
    """What is wrong with the configuration and what to do, in one line."""


def _port(text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        raise ValueError("is no port: give a number from 1 to 65535")
    return int(text)


def _seconds(text: str) -> float:
    if not re.fullmatch("[0-9]{1,5}([.][0-9]+)?", text) or not 1 <= float(text):
        raise ValueError("is no time: give seconds, from 1 to 99999")
    return float(text)


# Names and IPv4 addresses (what is between dots is 1 to 63 long), IPv6 addresses.
HOST = re.compile("[A-Za-z0-9_-]{1,63}([.][A-Za-z0-9_-]{1,63}){0,9}|[0-9A-Fa-f:]*::?[0-9A-Fa-f:.]*")


def _host(text: str) -> str:
    if re.fullmatch("[^:/]*:[0-9]+", text):
        raise ValueError("has a port in it: give that in 'port'")
    if text and not HOST.fullmatch(text):
        raise ValueError("is no address: give a name or an IP address and nothing else")
    return text


def _box_name(text: str) -> str:
    if not re.fullmatch("[A-Za-z0-9-]{1,32}", text):
        raise ValueError("is no host name: give 1 to 32 of A-Z a-z 0-9 and -")
    return text


def _mac(text: str) -> str:
    if text and not re.fullmatch("([0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}", text):
        raise ValueError("is no MAC address: give six pairs as in 02:00:5e:10:00:01")
    return text.lower().replace("-", ":")


def _login(text: str) -> str:
    if not re.fullmatch("[A-Za-z0-9._~-]*", text):
        raise ValueError(
            "has other characters than A-Z a-z 0-9 . _ ~ -: choose another, Domoticz"
            " writes it into an address as it is"
        )
    return text


def _yes_no(text: str) -> bool:
    if text.lower() not in ("yes", "no"):
        raise ValueError("is neither: give yes or no")
    return text.lower() == "yes"


def _level(text: str) -> str:
    if text.lower() not in ("debug", "info", "warning", "error"):
        raise ValueError("is no level: give debug, info, warning or error")
    return text.lower()


# Section and key: how to read it, its default as it stands in the ini.
_INPUT = {"host": (_host, ""), "port": (_port, "8888"), "timeout": (_seconds, "30")}
OPTIONS = {
    "teleinfo1": _INPUT,
    "teleinfo2": dict(_INPUT, injection=(_yes_no, "no")),
    "http": {
        "address": (_host, "0.0.0.0"),
        "port": (_port, "4000"),
        "second_port": (_port, "4001"),
        "username": (_login, ""),
        "password": (_login, ""),
    },
    "ecodevice": {
        "hostname": (_box_name, "ecolinky"),
        "mac": (_mac, ""),
        "discovery": (_yes_no, "no"),
    },
    "log": {"level": (_level, "info")},
}  # type: Dict[str, Dict[str, Tuple[Callable[[str], Any], str]]]

Settings = Dict[str, Dict[str, Any]]


def default_settings() -> Settings:
    """Return the settings of an empty configuration."""
    return parse_settings("", "", needs_host=False)


def parse_settings(text: str, name: str, needs_host: bool = True) -> Settings:
    """Return the settings that the text of an ini makes, by section and key.

    Raises ConfigError, with `name` as the file's. Without `needs_host` a configuration
    without teleinfo1.host will do.
    """
    parser = configparser.ConfigParser(
        interpolation=None, default_section="\0", strict=True
    )
    try:
        parser.read_string(text, name)
    except configparser.MissingSectionHeaderError as error:
        raise ConfigError(
            "%s: line %d: %r stands before any section: put [teleinfo1] above it"
            % (name, error.lineno, error.line.strip())
        ) from None
    except configparser.Error as error:
        told = " ".join(str(error).split())
        raise ConfigError("%s: %s: mend that line" % (name, told)) from None
    settings = {
        section: {key: read(default) for key, (read, default) in keys.items()}
        for section, keys in OPTIONS.items()
    }
    for section in parser.sections():
        if section not in OPTIONS:
            raise ConfigError(
                "%s: [%s] is no section%s" % (name, section, _meant(section, OPTIONS))
            )
        keys = OPTIONS[section]
        for key, value in parser.items(section):
            if key not in keys:
                homes = [other for other in OPTIONS if key in OPTIONS[other]]
                hint = ": it belongs in [%s]" % homes[0] if homes else _meant(key, keys)
                raise ConfigError(
                    "%s: [%s] %s is no key there%s" % (name, section, key, hint)
                )
            try:
                settings[section][key] = keys[key][0](value)
            except ValueError as error:
                value = " ".join(value.split())  # an indented line goes on with it
                raise ConfigError(
                    "%s: [%s] %s = %s %s" % (name, section, key, value, error)
                ) from None
    if needs_host and not settings["teleinfo1"]["host"]:
        raise ConfigError(
            "%s: [teleinfo1] host is missing: give the ESP8266's address,"
            " as in host = 192.168.1.50" % name
        )
    http, second = settings["http"], settings["teleinfo2"]
    if second["host"] and second["injection"]:
        raise ConfigError(
            "%s: [teleinfo2] has both host and injection = yes: keep one of them" % name
        )
    if (second["host"] or second["injection"]) and http["port"] == http["second_port"]:
        raise ConfigError(
            "%s: [http] port and second_port are both %d: give two different ones"
            % (name, http["port"])
        )
    if bool(http["username"]) != bool(http["password"]):
        there, missing = "username", "password"
        if http["password"]:
            there, missing = missing, there
        raise ConfigError(
            "%s: [http] %s has no %s: give both, or neither" % (name, there, missing)
        )
    return settings


def _meant(word: str, known: Any) -> str:
    import difflib  # only wanted when there is something to suggest

    close = [name for name in known if name.startswith(word.lower())]
    close += difflib.get_close_matches(word.lower(), list(known), 1)
    if close:
        return ": did you mean %s?" % close[0]
    return ": there are %s" % ", ".join(known)


def read_settings(path: str, needs_host: bool = True) -> Settings:
    """Return the settings of the file; raises ConfigError."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise ConfigError(
            "%s: cannot be read (%s): put ecolinky.ini beside ecolinky.py, or name it"
            " with --config" % (path, error.strerror)
        ) from None
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in content:
        raise ConfigError("%s: is not plain text: save it as UTF-8" % path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")  # an old Notepad's é in a comment
    return parse_settings(text, path, needs_host)


def ports_of(settings: Settings) -> List[int]:
    """Return the HTTP ports: the second box is there when input 2 is."""
    http, second = settings["http"], settings["teleinfo2"]
    both = [http["port"], http["second_port"]]
    return both if second["host"] or second["injection"] else both[:1]


def lasting_mac() -> str:
    """Return a locally administered MAC address that this machine always makes."""
    seed = socket.gethostname().encode()
    try:
        with open("/etc/machine-id", "rb") as file:
            seed = file.read().strip() or seed
    except OSError:
        pass
    number = binascii.crc32(b"ecolinky" + seed) << 8 | binascii.crc32(seed) & 0xFF
    digits = "02%010x" % number
    return ":".join(digits[place : place + 2] for place in range(0, 12, 2))


########################################################################################
# Check: what is wrong with the link
########################################################################################

OK, WARNING, FAILED = "ok     ", "WARNING", "FAILED "
Finding = Tuple[str, str]  # one of the three, and what was found and what to do
# A line of ESPEasy's own log: "3612 : Info  : WD   : Uptime 1 ..."
LOG_TEXT = re.compile(b"[A-Za-z]{2} {0,8}: [ -~]")


def link_findings(meter: Meter, raw: bytes, now: float) -> List[Finding]:
    """Return what the bytes of a link and the Meter that was fed them tell."""
    if not raw:
        silent = "no byte came: check the wires from the meter's I1 and I2, the ESP's"
        return [(FAILED, silent + " RX pin, then the TCP port's serial settings")]
    findings = [(OK, "%d bytes came" % len(raw))]
    good = meter.groups
    damaged = meter.refused["checksum"] + meter.refused["form"]
    if not good:
        return findings + [(FAILED, "no valid group: " + HINTS[diagnose(raw)])]
    if meter.eight_bits:
        told = "the ESP reads 8N1: set it to 7 bits, even parity (7E1); ecolinky copes"
        findings.append((WARNING, told))
    if LOG_TEXT.search(seven_bits(raw)):
        told = "the ESP's own log is in the stream: set its serial log level to None"
        findings.append((WARNING, told))
    told = "%d of %d groups verified" % (good, good + damaged)
    if damaged * 20 > damaged + good:
        told += ": check the opto-coupler and its resistors, raise ESPEasy's buffer"
        findings.append((WARNING, told))
    else:
        findings.append((OK, told))
    fields = meter.fields(now)
    if not fields:
        missing = ", ".join(meter.missing(now) or ["whole frames"])
        told = "not enough to serve, missing: %s: raise ESPEasy's buffer, or try again"
        return findings + [(FAILED, told % missing)]
    mode = "historic" if meter.identity[0] == "ADCO" else "standard"
    phases = "three phases" if fields["IMAX1"] else "one phase"
    told = "meter %s, %s mode, %s" % (fields["ADCO"], mode, phases)
    findings.append((OK, told))
    told = "tariff %s, now %s; subscription %d A; power %d VA"
    values = tuple(fields[tag] for tag in ("OPTARIF", "PTEC", "ISOUSC", "PAPP"))
    findings.append((OK, told % values))
    for tag in TARIFFS[fields["OPTARIF"][:3]]:
        findings.append((OK, "index %s = %d Wh" % (tag, fields[tag])))
    return findings


def look_at_link(host: str, port: int, seconds: float) -> Tuple[List[Finding], str]:
    """Return what is found at a serial server's port, and our address on the way.

    Reads until values could be served, `seconds` at most.
    """
    meter, raw, ours, closed = Meter(), b"", "", 0
    place = "%s port %d" % (host, port)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and closed < 3:
        left = max(0.1, deadline - time.monotonic())
        try:
            connection = socket.create_connection((host, port), min(10.0, left))
        except OSError as error:
            if not closed:
                told = "%s cannot be reached: %s" % (place, plain_reason(error))
                return [(FAILED, told)], ours
            time.sleep(0.2)
            continue
        with connection:
            ours = connection.getsockname()[0]
            while time.monotonic() < deadline:
                connection.settimeout(max(0.1, deadline - time.monotonic()))
                try:
                    data = connection.recv(4096)
                except socket.timeout:
                    break
                except OSError:
                    data = b""
                if not data:
                    closed += 1
                    meter.disconnected()
                    time.sleep(0.2)
                    break
                raw = (raw + data)[-65536:]
                meter.feed(data, time.monotonic())
                if meter.frames > 3 and meter.fields(time.monotonic()) and not closed:
                    deadline = 0.0  # seen enough
    findings = [(OK, "%s answers" % place)]
    if closed:
        times = "once" if closed == 1 else "%d times" % closed
        told = "the ESP ended the connection %s: another program reads it (an ecolinky"
        told += " that is running, a browser, nc): stop it, one fits at a time"
        findings.append((WARNING, told % times))
        if not raw:
            return findings + [(FAILED, "no byte came before it ended")], ours
    return findings + link_findings(meter, raw, time.monotonic()), ours


def check(settings: Settings, seconds: float = 20.0) -> int:
    """Print what is found, a line each; return 0 if values would be served, else 1."""
    http, works = settings["http"], True
    ours = ""
    for name in ("teleinfo1", "teleinfo2"):
        each = settings[name]
        if each["host"]:
            findings, way = look_at_link(each["host"], each["port"], seconds)
            ours = ours or way
            works = works and all(kind != FAILED for kind, _ in findings)
            for kind, told in findings:
                print("%s %s: %s" % (kind, name, told))
    ports = ports_of(settings)
    for port in ports:
        try:
            address = (http["address"], port)
            Server(address, Box(Store(), "", "", [port], False), None).server_close()
            print("%s port %d is free" % (OK, port))
        except OSError as error:
            told = "port %d cannot be had (%s): if that is not ecolinky itself, change"
            told = told % (port, plain_reason(error))
            if error.errno == errno.EADDRINUSE:
                print("%s %s [http] port" % (WARNING, told))
            else:
                works = False
                print("%s %s [http] address or port" % (FAILED, told))
    if http["address"] not in ("0.0.0.0", "::"):
        ours = http["address"]
    for port, which in zip(ports, ("", ", for input 2")):
        told = 'in Domoticz, hardware "Eco Devices": address %s, port %d%s'
        print(OK, told % (ours or "of this machine", port, which))
    print("Values would be served." if works else "No value would be served.")
    return 0 if works else 1


########################################################################################
# Home page: what a person looks at; it reads /ecolinky.json
########################################################################################

HOME_PAGE = r"""<!DOCTYPE html>
<html lang="fr">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>ecolinky</title>
<link rel="icon" href="data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg'
 viewBox='0 0 32 32'%3E%3Crect width='32' height='32' rx='9' fill='%23128a63'/%3E%3Cpath
 d='M18 5 8 18h7l-1 9 10-13h-7z' fill='%23fff'/%3E%3C/svg%3E">
<style>
:root { --page: #f1f4f1; --card: #fff; --ink: #15211b; --soft: #5d6b63; --line: #e3e8e4;
  --good: #128a63; --warn: #d98200; --bad: #d3342f; --blue: #2a66d9; --white: #fff;
  --red: #d3342f; --shadow: 0 1px 2px #1b33250f, 0 10px 30px #1b332512 }
@media (prefers-color-scheme: dark) {
  :root { --page: #0d1210; --card: #161d1a; --ink: #e9f0ec; --soft: #95a49b;
    --line: #27312c; --good: #35c892; --warn: #f5ad3c; --bad: #ff6a61; --blue: #5b92ff;
    --white: #f4f6f5; --red: #ff5d55; --shadow: 0 0 0 1px #212a26 } }
* { box-sizing: border-box; margin: 0 }
[hidden] { display: none !important }
body { background: var(--page); color: var(--ink); padding: 20px; max-width: 1160px;
  margin: 0 auto; font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; font-variant-numeric: tabular-nums;
  -webkit-text-size-adjust: 100% }
small, dt, h3, .soft { color: var(--soft); font-size: 13px; font-weight: 400 }
.row, .card > header, #top { display: flex; align-items: center;
  justify-content: space-between }
#top { padding: 0 4px 16px }
#top svg { width: 30px; height: 30px; margin-right: 10px }
#top h1 { font-size: 20px; font-weight: 650; letter-spacing: -.02em; flex: 1 }
#clock { font-size: 20px; color: var(--soft) }
#down { background: var(--bad); color: #fff; border-radius: 14px; padding: 12px 18px;
  margin-bottom: 16px; font-weight: 600 }
@media (prefers-color-scheme: dark) { #down { color: #200 } }
#cards { display: grid; grid-gap: 20px; grid-template-columns: minmax(0, 1fr); }
.card { display: flex; flex-direction: column; background: var(--card);
  border-radius: 22px; padding: 20px 24px;
  box-shadow: var(--shadow) }
h2 { font-size: 16px; font-weight: 600 }
.pill { border-radius: 99px; padding: 3px 12px; font-size: 13px; font-weight: 600;
  color: var(--bad); border: 1px solid }
.pill::before { content: ""; display: inline-block; width: 8px; height: 8px;
  margin-right: 7px; border-radius: 50%; background: currentColor }
[data-state=live] .pill { color: var(--good) }
[data-state=waiting] .pill { color: var(--warn) }
.reason { color: var(--bad); padding-top: 8px; overflow-wrap: anywhere }
[data-state=waiting] .reason { color: var(--soft) }
.cols { transition: opacity .3s; padding-bottom: 14px }
.card:not([data-state=live]) .cols { opacity: .45; filter: grayscale(1) }
.gauge { position: relative; max-width: 310px; margin: 10px auto 0; text-align: center }
.gauge svg { display: block; width: 100% }
.gauge path { fill: none; stroke-linecap: round; stroke: var(--line); stroke-width: 13 }
.gauge .mark { stroke-width: 3; stroke-linecap: butt; opacity: .75 }
.gauge .value { stroke: var(--level); transition: stroke-dasharray .8s, stroke .4s }
.level0 { --level: var(--good) } .level1 { --level: var(--warn) }
.level2 { --level: var(--bad) }
.big { position: absolute; left: 0; right: 0; top: 32% }
.big b { font-size: 58px; line-height: 60px; font-weight: 600; white-space: nowrap;
  letter-spacing: -.035em; display: block }
.big .long { font-size: 48px }
.big span { color: var(--soft); font-size: 17px }
.bare .big { position: static; padding: 26px 0 14px }
.limit { font-size: 13px; color: var(--soft); margin-top: -6.5%; min-height: 40px }
.limit b { color: var(--level); font-size: 15px; display: block }
.bare .limit, .bare svg { display: none }
.alert { color: var(--bad); font-weight: 600; text-align: center; padding-top: 8px }
.row { padding: 9px 0; border-top: 1px solid var(--line) }
.row b { font-weight: 600; text-align: right }
.bar { flex: 1; height: 6px; margin: 0 14px; border-radius: 3px; overflow: hidden;
  background: var(--line) }
.bar i { display: block; height: 100%; border-radius: 3px; background: var(--level) }
.amps, .sun { margin-top: 10px }
.sun b { color: var(--good); font-size: 20px }
.days { display: grid; grid-template-columns: 1fr 1fr; grid-gap: 10px }
.day { border-radius: 14px; padding: 9px 14px; border: 1px solid var(--line) }
.day small, .day b { display: block; color: inherit }
.day b { font-weight: 600; font-size: 17px }
.day b::first-letter { text-transform: uppercase }
.B { background: var(--blue); color: #fff } .R { background: var(--red); color: #fff }
.W { background: var(--white); color: #15211b; border-color: #cfd6d1 }
@media (prefers-color-scheme: dark) { .B, .R { color: #0b0f0d } }
.lamp { display: inline-block; width: 10px; height: 10px; border-radius: 50%;
  margin-right: 8px; border: 1px solid transparent }
.lamp:not(.B):not(.W):not(.R) { display: none }
h3 { margin: 16px 0 6px }
.chart { height: 210px; position: relative; touch-action: pan-y; overflow: hidden }
.chart svg { position: absolute; left: 0; top: 0 }
.chart text { font-size: 12px; fill: var(--soft) }
.chart line { stroke: var(--line) }
.chart .sub { stroke: var(--bad); stroke-dasharray: 5 5; opacity: .7 }
.chart .curve { fill: none; stroke: var(--good); stroke-width: 1.8;
  stroke-linejoin: round; stroke-linecap: round }
.chart .area { fill: var(--good); opacity: .14 }
.chart .cursor { stroke: var(--soft) }
.chart .tip { fill: var(--ink); font-weight: 600 }
.indexes { margin-top: 12px }
.indexes .on > * { color: var(--good); font-weight: 600 }
.indexes .row { font-size: 16px; padding: 7px 0 } .indexes dt { font-size: 15px }
.link { border-top: 1px solid var(--line); margin-top: auto; padding-top: 12px;
  display: grid; grid-template-columns: repeat(2, minmax(0, 1fr));
  grid-gap: 8px 18px }
.link dd { font-size: 14px; overflow-wrap: anywhere }
.link .level1, .link .level2 { color: var(--level) }
#domoticz { margin: 20px 4px 0; display: flex; flex-wrap: wrap; align-items: center }
#domoticz p { flex: 1 1 280px; margin: 4px 0 }
#address { color: transparent; font-size: 0; white-space: nowrap; margin: 4px 0 }
#address button { font: 600 15px ui-monospace, Menlo, Consolas, monospace;
  color: var(--ink); background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; padding: 9px 14px; margin-left: 8px; cursor: pointer }
#address button:first-child { margin-left: 0 }
#address button::after { content: attr(title); color: var(--good); font-size: 13px;
  padding-left: 10px; font-weight: 400 }
#tail { margin: 14px 4px 0 } #tail a { color: inherit }
@media (min-width: 720px) {
  .one .cols { display: grid; grid-template-columns: 320px minmax(0, 1fr);
    grid-gap: 36px }
  .one .more h3:first-child { margin-top: 10px }
  .one .link { grid-template-columns: repeat(5, minmax(0, 1fr)) }
  .two .link { grid-template-columns: repeat(3, minmax(0, 1fr)) }
  .two #cards { grid-template-columns: 1fr 1fr } }
@media (max-width: 480px) { body { padding: 14px 10px } .card { padding: 16px 18px } }
@media (prefers-reduced-motion: reduce) { * { transition: none !important } }
</style>
</head>
<body>
<div id="top">
  <svg viewBox="0 0 32 32" aria-hidden="true"><rect width="32" height="32" rx="9"
    fill="#128a63"/><path d="M18 5 8 18h7l-1 9 10-13h-7z" fill="#fff"/></svg>
  <h1>ecolinky</h1><span id="clock"></span>
</div>
<p id="down" role="alert" hidden></p>
<main id="cards"></main>
<div id="domoticz" hidden>
  <p><b data-en="In Domoticz">Dans Domoticz</b><br><span class="soft"
    data-en="Add a device &quot;Eco Devices&quot; with this address and this port:"
    >Ajouter un mat&eacute;riel &laquo;&nbsp;Eco Devices&nbsp;&raquo; avec cette adresse
    et ce port&nbsp;:</span></p>
  <span id="address"><button id="host"></button>:<button id="port"></button></span>
</div>
<p id="tail" class="soft"></p>
<noscript>Cette page a besoin de JavaScript. This page needs JavaScript.</noscript>
<template id="card"><section class="card">
  <header><h2 data-id="title"></h2><span class="pill" data-id="state"></span></header>
  <p class="reason" data-id="reason"></p>
  <div class="cols">
    <div class="now">
      <div class="gauge" data-id="gauge">
        <svg viewBox="0 0 240 184" aria-hidden="true"></svg>
        <div class="big"><b data-id="power"></b><span>VA</span></div>
        <p class="limit"><b data-id="share"></b><span data-id="limit"></span></p>
      </div>
      <p class="alert" data-id="alert"></p>
      <div class="row sun" data-id="sun"><span data-en="Injected into the grid"
        >Inject&eacute; sur le r&eacute;seau</span><b data-id="injection"></b></div>
      <div class="amps" data-id="amps"></div>
      <div class="row"><span class="soft" data-en="Period">P&eacute;riode</span>
        <b><i class="lamp" data-id="lamp"></i><span data-id="period"></span></b></div>
      <div class="days" data-id="days">
        <div class="day"><small data-en="Today">Aujourd&rsquo;hui</small
          ><b data-id="today"></b></div>
        <div class="day"><small data-en="Tomorrow">Demain</small
          ><b data-id="tomorrow"></b></div></div>
    </div>
    <div class="more">
      <h3 data-en="Power">Puissance</h3><div class="chart" data-id="chart"></div>
      <div class="indexes" data-id="indexes"></div>
    </div>
  </div>
  <div class="link" data-id="link"></div>
</section></template>
<script>
"use strict";
const language = navigator.language || "en", french = /^fr/i.test(language);
const locale = /^(fr|en)/i.test(language) ? language : "en";
const say = (fr, en) => french ? fr : en, DASH = "\u2013", HOUR = 3600e3;
const PERIODS = { TH: say("Toutes heures", "All hours"), HN: say("Heures normales",
  "Normal hours"), HC: say("Heures creuses", "Off-peak hours"), PM: say("Pointe mobile",
  "Mobile peak"), HP: say("Heures pleines", "Peak hours") };
const COLOURS = { B: say("bleu", "blue"), W: say("blanc", "white"),
  R: say("rouge", "red") };
const OF_COLOUR = { B: say(" bleues", ", blue"), W: say(" blanches", ", white"),
  R: say(" rouges", ", red") };
const DEMAIN = { BLEU: "B", BLAN: "W", ROUG: "R" };
const TARIFFS = { BAS: { BASE: "TH" }, "HC.": { HCHC: "HC", HCHP: "HP" },
  EJP: { EJPHN: "HN", EJPHPM: "PM" }, BBR: { BBRHCJB: "HCJB", BBRHPJB: "HPJB",
    BBRHCJW: "HCJW", BBRHPJW: "HPJW", BBRHCJR: "HCJR", BBRHPJR: "HPJR" } };
// What the program says, by how it begins; anything else is shown as it is.
const REASONS = french ? {
  "no connection yet": "pas encore de connexion",
  "its name is not": "son nom n\u2019est pas connu sur ce r\xe9seau",
  "refused": "refus\xe9e\xa0: il est allum\xe9, mais rien n\u2019\xe9coute sur ce port",
  "the connection was reset": "la connexion a \xe9t\xe9 coup\xe9e",
  "no answer within":
    "pas de r\xe9ponse en 10\xa0s\xa0: allum\xe9\xa0? bonne adresse\xa0?",
  "connected, but": "connect\xe9, mais aucun octet depuis 10\xa0s\xa0: "
    + "compteur raccord\xe9\xa0? ESP vivant\xa0?",
  "the ESP closed": "l\u2019ESP a ferm\xe9 la connexion",
  "the ESP ends": "l\u2019ESP ferme chaque connexion\xa0: un autre programme le lit",
  "spaces or line": "espaces ou fins de ligne perdus\xa0: dans ESPEasy, Serial Server,"
    + " Event processing = None et remplacements vides",
  "groups arrive": "aucun groupe intact\xa0: v\xe9rifier la vitesse, 7E1, l\u2019"
    + "optocoupleur et ses r\xe9sistances",
  "it is text":
    "du texte, mais pas de TIC\xa0: couper le journal s\xe9rie de l\u2019ESP,"
    + " v\xe9rifier le port",
  "it looks like telnet": "on dirait du telnet\xa0: r\xe9gler l\u2019ESP en TCP brut",
  "it is no text": "du bruit\xa0: mauvaise vitesse (1200 en historique, 9600 en "
    + "standard) ou mauvais fil" } : {};
const $ = (id) => document.getElementById(id);
const number = (v, digits = 0) => typeof v !== "number" ? DASH
  : v.toLocaleString(locale,
    { minimumFractionDigits: digits, maximumFractionDigits: digits })
  .replace(/\u202f/g, "\xa0");
const write = (node, text) => {
  if (node.textContent !== text) node.textContent = text; };
const translate = (root) => root.querySelectorAll("[data-en]").forEach((node) => {
  if (!french) node.textContent = node.dataset.en; });
const time = (ms, seconds) => new Date(ms).toLocaleTimeString(locale,
  { hour: french ? "2-digit" : "numeric", minute: "2-digit", second: seconds });
const since = (ms) => (Date.now() - ms < 12 * HOUR ? "" : new Date(ms)
  .toLocaleDateString(locale, { day: "numeric", month: "short" }) + " ")
  + time(ms, "2-digit");
const last = (s) => s < 100 ? Math.round(s) + "\xa0s" : s < 6000 ? Math.round(s / 60)
  + "\xa0min" : s < 172800 ? Math.round(s / 3600) + "\xa0h"
  : Math.round(s / 86400) + say("\xa0j", "\xa0d");
const level = (ratio) => "level" + (ratio > 0.9 ? 2 : ratio > 0.8 ? 1 : 0);
const kilo = (va) =>
  va < 1000 ? va + " VA" : number(va / 1000, va % 1000 ? 1 : 0) + " kVA";
const period = (ptec) => (PERIODS[ptec.slice(0, 2)] || ptec)
  + (/^H[CP]J[BWR]/.test(ptec) ? OF_COLOUR[ptec[3]] : "");
let data = null, at = 0, down = "";  // the last answer, when it came, what is wrong
const known = {};  // the last fields of each input

function draw(parent, tag, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const name in attributes) node.setAttribute(name, attributes[name]);
  if (text !== undefined) node.textContent = text;
  return parent.appendChild(node);
}
// Rows of a name and a value, made anew only when there are other ones.
function rows(box, list, className) {
  const key = list.map((row) => row.id + row.name + !!row.bar).join();
  if (box.dataset.key !== key) {
    box.dataset.key = key;
    box.textContent = "";
    list.forEach((row) => {
      const line = box.appendChild(document.createElement("div"));
      line.appendChild(document.createElement("dt")).textContent = row.name;
      if (row.bar) line.appendChild(document.createElement("span")).className = "bar";
      if (row.bar) line.lastChild.appendChild(document.createElement("i"));
      const value = line.appendChild(document.createElement(className ? "b" : "dd"));
      const part = value.appendChild(document.createElement("span"));
      if (row.id) part.id = row.id;
      value.appendChild(document.createTextNode(row.unit || ""));
    });
  }
  list.forEach((row, place) => {
    const line = box.children[place];
    line.className = (className || "") + " " + (row.mark || "");
    write(line.lastChild.firstChild, row.value);
    if (row.bar) line.children[1].firstChild.style.width = 100 * row.bar() + "%";
  });
}
function arc(from, to, radius) {
  const point = (share) => [Math.cos, Math.sin].map((f) =>
    (120 + radius * f((150 + 240 * share) * Math.PI / 180)).toFixed(2)).join(" ");
  return "M" + point(from) + "A" + [radius, radius, 0, +(to - from > 0.75), 1] + " "
    + point(to);
}
function newCard(n) {
  const card = document.importNode($("card").content, true).firstElementChild;
  translate(card);
  card.querySelectorAll("[data-id]").forEach((node) => {
    node.id = node.dataset.id + "-" + n; });
  const svg = card.querySelector(".gauge svg"), length = 100 * Math.PI * 4 / 3;
  draw(svg, "path", { d: arc(0, 1, 100) });
  draw(svg, "path", { d: arc(0.8, 0.9, 112), class: "mark",
    style: "stroke:var(--warn)" });
  draw(svg, "path", { d: arc(0.9, 1, 112), class: "mark", style: "stroke:var(--bad)" });
  draw(svg, "path", { d: arc(0, 1, 100), class: "value",
    "stroke-dasharray": "0 " + length });
  $("cards").appendChild(card).id = "input-" + n;
  const box = $("chart-" + n), point = (event) => {
    box.hover = event.clientX - box.getBoundingClientRect().left; paint(); };
  ["pointermove", "pointerdown"].forEach((name) => box.addEventListener(name, point));
  box.addEventListener("pointerleave", () => { box.hover = null; paint(); });
}
function chart(box, history, power, limit) {
  const w = box.clientWidth, h = box.clientHeight, now = Date.now();
  const means = history && history.power || [], step = history && history.step * 1000;
  const points = means.map((va, i) => [at - (means.length - i - 0.5) * step, va]);
  if (power !== null) points.push([now, power]);
  const span = Math.max(HOUR, points.length ? now - points[0][0] : 0);
  const most = Math.max(400, ...points.map((point) => point[1] || 0));
  const unit = [100, 200, 500, 1000, 2000, 5000, 1e4]
    .find((u) => most / u <= 4.2) || 2e4;
  const top = Math.ceil(most / unit) * unit, left = 52, bottom = h - 24;
  const x = (ms) => left + (w - left - 6) * (1 - (now - ms) / span);
  const y = (va) => bottom - (bottom - 14) * va / top;
  box.textContent = "";
  const svg = draw(box, "svg", { width: w, height: h, role: "img" });
  for (let va = 0; va <= top; va += unit) {
    draw(svg, "line", { x1: left, x2: w, y1: y(va), y2: y(va) });
    draw(svg, "text", { x: left - 8, y: y(va) + 4, "text-anchor": "end" },
      va ? kilo(va) : "0");
  }
  if (limit && limit <= top)
    draw(svg, "line", { x1: left, x2: w, y1: y(limit), y2: y(limit), class: "sub" });
  const offset = new Date().getTimezoneOffset() * 60e3;
  const tick = [1 / 4, 1 / 2, 1, 2, 3, 6].map((hours) => hours * HOUR)
    .find((ms) => span / ms * 64 < w - left) || 12 * HOUR;
  for (let ms = Math.ceil((now - span - offset) / tick) * tick + offset; ms < now;
    ms += tick)
    if (x(ms) < w - 78 && x(ms) > left + 16)
      draw(svg, "text", { x: x(ms), y: h - 5, "text-anchor": "middle" }, time(ms));
  draw(svg, "text", { x: w - 2, y: h - 5, "text-anchor": "end" },
    say("maintenant", "now"));
  let part = [];
  points.concat([[now, null]]).forEach(([ms, va]) => {
    if (typeof va === "number") 
      return part.push(x(ms).toFixed(1) + " " + y(va).toFixed(1));
    if (part.length) {
      const path = "M" + part.join("L"), ends = [part[0], part[part.length - 1]];
      const [a, b] = ends.map((end) => end.split(" ")[0] + " " + bottom);
      draw(svg, "path", { class: "area", d: path + "L" + b + "L" + a + "z" });
      draw(svg, "path", { class: "curve", d: path + "h.01" });
    }
    part = [];
  });
  const near = box.hover && points.filter((point) => point[1] !== null).sort((p, q) =>
    Math.abs(x(p[0]) - box.hover) - Math.abs(x(q[0]) - box.hover))[0];
  if (near) {
    const at = x(near[0]), end = at > w / 2;
    draw(svg, "line", { x1: at, x2: at, y1: 0, y2: bottom, class: "cursor" });
    draw(svg, "text", { x: at + (end ? -8 : 8), y: 12, class: "tip",
      "text-anchor": end ? "end" : "start" },
      number(near[1]) + " VA, " + time(near[0]));
  }
}
function show(input, n, several) {
  const get = (name) => $(name + "-" + n);
  const put = (name, text) => { write(get(name), text); get(name).hidden = !text; };
  const live = !down && input.state === "live" && !!input.fields;
  const state = live ? "live"
    : !down && input.state === "waiting" ? "waiting" : "stale";
  const fields = known[n] = input.fields || known[n] || {};
  const counters = input.counters || {};
  const from = input.age === null ? at : at - input.age * 1000;
  const phases = fields.IMAX1 > 0 ? 3 : 1, limit = fields.ISOUSC * 230 * phases || 0;
  const power = live && typeof fields.PAPP === "number" ? fields.PAPP : null;
  const ratio = power / limit, ptec = String(fields.PTEC || DASH);
  const option = String(fields.OPTARIF || "").slice(0, 3);
  $("input-" + n).dataset.state = state;
  $("input-" + n).className = "card " + level(limit ? ratio : 0);
  put("title", say("Compteur", "Meter") + (several ? " " + n : ""));
  put("state", live ? say("en direct", "live") : state === "stale"
    ? say("donn\xe9es p\xe9rim\xe9es depuis ", "stale since ") + since(from)
    : say("en attente du compteur", "waiting for the meter"));
  const reason = live || down ? "" : String(input.reason || "");
  const begin = Object.keys(REASONS).find((start) => reason.indexOf(start) === 0);
  put("reason", begin ? REASONS[begin] : reason);
  put("power", power === null ? DASH : number(power));
  get("power").className = power < 1e4 ? "" : "long";
  get("gauge").className = "gauge" + (limit || !fields.PTEC ? "" : " bare");
  const value = get("gauge").querySelector(".value");
  value.style.display = limit && power ? "" : "none";
  value.setAttribute("stroke-dasharray", (Math.min(1, ratio) || 0) * 418.88 + " 999");
  put("share", power === null || !limit ? "" : number(100 * ratio) + say("\xa0%", "%"));
  put("limit", limit ? say("de l\u2019abonnement, ", "of the subscription, ")
    + (phases === 3 ? "3 \xd7 " : "") + fields.ISOUSC + "\xa0A" : "");
  put("alert", !live ? "" : fields.ADPS > 0 ? say("D\xe9passement\xa0: ", "Overload: ")
    + number(fields.ADPS) + "\xa0A" : fields.PEJP > 0 ? say("Pointe mobile dans ",
    "Mobile peak in ") + number(fields.PEJP) + "\xa0min" : "");
  const injected = live && input.injection;
  get("sun").hidden = !injected;
  put("injection", injected ? number(injected.PAPP) + " VA" : "");
  rows(get("amps"), (phases === 3 ? ["1", "2", "3"] : [""]).map((phase) => {
    const amperes = fields["IINST" + phase], share = live ? amperes / fields.ISOUSC : 0;
    return { id: "current-" + n + "-" + (phase || 1), unit: "\xa0A",
      name: phase ? "Phase " + phase : say("Intensit\xe9", "Current"),
      value: live ? number(amperes) : DASH, mark: level(share),
      bar: limit && (() => Math.min(1, share || 0)) };
  }), "row");
  put("period", period(ptec));
  const day = /^H[CP]J[BWR]/.test(ptec) ? ptec[3] : "";
  const next = DEMAIN[fields.DEMAIN] || "";
  get("lamp").className = "lamp " + day;
  get("days").hidden = option !== "BBR";
  [["today", day], ["tomorrow", next]].forEach(([name, colour]) => {
    put(name, COLOURS[colour] || say("inconnu", "not known yet"));
    get(name).parentNode.className = "day " + colour;
  });
  const tariff = TARIFFS[option] || {}, list = Object.keys(tariff).map((label) => ({
    id: "index-" + n + "-" + label, name: period(tariff[label]), unit: "\xa0kWh",
    value: number(fields[label] / 1000, 3),
    mark: live && ptec.indexOf(tariff[label]) === 0 ? "on" : "" }));
  if (injected) list.push({ id: "index-" + n + "-injection", unit: "\xa0kWh", value:
    number(injected.BASE / 1000, 3), name: say("Inject\xe9", "Injected") });
  rows(get("indexes"), list, "row");
  chart(get("chart"), input.history, power, limit);
  const refused = counters.refused || {}, good = counters.groups || 0;
  const bad = ["checksum", "form", "implausible"].map((why) => refused[why] || 0);
  const quality = good / (good + bad[0] + bad[1] + bad[2]);
  rows(get("link"), [
    [say("Derni\xe8re trame", "Last frame"), input.age === null ? DASH
      : say("il y a ", "") + last(from &&
        (Date.now() - from) / 1000) + say("", " ago")],
    [say("Trames", "Frames"), number(counters.frames)],
    [say("Groupes bons", "Good groups"), number(good) + (good ? " (" + number(
      Math.floor(1e4 * quality) / 100, 2) + say("\xa0%)", "%)") : ""),
    quality < 0.95 ? "level2" : quality < 0.99 ? "level1" : ""],
    [say("Somme fausse", "Bad checksum"), number(bad[0])],
    [say("Forme fausse", "Bad form"), number(bad[1])],
    [say("Invraisemblables", "Implausible"), number(bad[2])],
    [say("Connexions", "Connections"), number(counters.connections)],
    ["Source", String(input.source)],
    ["Mode", ({ historic: say("historique", "historic"), standard: "standard" })
      [input.mode] || DASH],
  ].map(([name, value, mark]) => ({ name, value, mark })));
}
function paint() {
  write($("clock"), time(Date.now()));
  $("down").hidden = !down;
  write($("down"), down && down + (at ? say(" depuis ", " since ") + since(at) : ""));
  if (!data) return;
  const many = data.inputs.length;
  while ($("cards").children.length > many) $("cards").lastChild.remove();
  document.body.className = many > 1 ? "two" : "one";
  data.inputs.forEach((input) => $("input-" + input.input) || newCard(input.input));
  data.inputs.forEach((input) => show(input, input.input, many > 1));
  const power = $("power-" + data.inputs[0].input).textContent;
  document.title = power + " VA \xb7 ecolinky";
  $("domoticz").hidden = false;
  write($("host"), location.hostname);
  write($("port"), data.ports.join(", "));
  write($("tail"), "ecolinky " + data.version + say(", en marche depuis ", ", up for ")
    + last(data.uptime));
}
function poll() {
  const request = new XMLHttpRequest();
  request.open("GET", "ecolinky.json");
  request.timeout = 5000;
  request.onloadend = () => {
    setTimeout(poll, 2000);
    try {
      if (request.status !== 200) throw request.status;
      const answer = JSON.parse(request.responseText);
      if (data && answer.version !== data.version) location.reload();
      [data, at, down] = [answer, Date.now(), ""];
      paint();
      document.body.dataset.ready = "1";
    } catch (error) {
      down = say("ecolinky ne r\xe9pond pas", "ecolinky does not answer")
        + (request.status > 200 ? " (" + request.status + ")" : "");
      paint();
    }
  };
  request.send();
}
function copy(event) {
  const button = event.currentTarget, area = document.createElement("textarea");
  area.value = button.textContent;
  area.style.cssText = "position:fixed;opacity:0";
  document.body.appendChild(area).select();
  const done = document.execCommand("copy");
  area.remove();
  button.title = done ? say("copi\xe9", "copied") : say("refus\xe9", "refused");
  setTimeout(() => { button.title = say("copier", "copy"); }, 1500);
}
document.documentElement.lang = french ? "fr" : "en";
translate(document);
["host", "port"].forEach((id) => { $(id).onclick = copy;
  $(id).title = say("copier", "copy"); });
window.addEventListener("resize", paint);
document.addEventListener("visibilitychange", () => {  // a tablet that wakes up
  if (data && !down && Date.now() - at > 9000) down = say("mise \xe0 jour\u2026",
    "updating\u2026");
  paint();
});
poll();
</script>
</body>
</html>
""".encode("ascii")


########################################################################################
# Main
########################################################################################


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        """Exit with 2 and one line."""
        self.exit(2, "ecolinky: %s; see --help\n" % message)


def parse_arguments(arguments: Optional[List[str]] = None) -> argparse.Namespace:
    """Return the command line's options; exits with 2 and one line on a wrong one."""
    parser = _OneLineParser(
        prog="ecolinky.py",
        allow_abbrev=False,
        description="Shows a Linky meter to Domoticz as a GCE Eco-Devices.",
    )
    beside = os.path.join(os.path.dirname(os.path.abspath(__file__)), "ecolinky.ini")
    add = parser.add_argument
    add("--config", metavar="FILE", help="settings (default: ecolinky.ini beside it)")
    add("--check", action="store_true", help="look at the link and say what is wrong")
    add(
        "--demo",
        nargs="?",
        const="historic",
        choices=DemoMeter.MODES,
        metavar="MODE",
        help="serve a simulated meter: %s (default: historic)"
        % ", ".join(DemoMeter.MODES),
    )
    add("--verbose", action="store_true", help="log frames and requests")
    add("--version", action="version", version="ecolinky " + __version__)
    options = parser.parse_args(arguments)
    options.given = options.config is not None
    options.config = options.config or beside
    return options


def main(arguments: Optional[List[str]] = None) -> int:
    """Run the program; return its exit code: 0 stopped, 1 cannot run, 2 usage."""
    options = parse_arguments(arguments)
    try:
        if options.demo and not options.given and not os.path.exists(options.config):
            settings = default_settings()
        else:
            settings = read_settings(options.config, needs_host=not options.demo)
    except ConfigError as error:
        print("ecolinky: %s" % error, file=sys.stderr)
        return 2
    level = "debug" if options.verbose else settings["log"]["level"]
    logging.basicConfig(
        stream=sys.stderr,
        level=level.upper(),
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
    )
    logging.raiseExceptions = False  # a closed terminal is no reason for a traceback
    stop = threading.Event()
    demo = []  # type: List[threading.Thread]
    if options.demo:
        simulated = DemoServer(options.demo, stop)
        demo.append(simulated)
        inputs = default_settings()
        inputs["teleinfo1"].update(host="127.0.0.1", port=simulated.port)
        inputs["teleinfo2"]["injection"] = settings["teleinfo2"]["injection"]
        settings.update(teleinfo1=inputs["teleinfo1"], teleinfo2=inputs["teleinfo2"])
    if options.check:
        for thread in demo:
            thread.start()
        return check(settings)
    what = "the simulated %s meter" % options.demo if demo else "the meter"
    return serve(settings, what, demo, stop)


def save_memory() -> None:
    """Return to the system what compiling this file took, 3 MiB, where glibc is.

    And have its threads share one heap: one each is meant for faster programs.
    """
    try:
        import ctypes

        glibc = ctypes.CDLL(None)
        glibc.mallopt(-8, 1)  # M_ARENA_MAX
        glibc.malloc_trim(0)
    except (ImportError, OSError, AttributeError, TypeError):
        pass  # another C library: it does as it likes


class Signals:
    """SIGINT and SIGTERM, for one to wait for; from then on they interrupt nothing.

    The C handler itself writes to a socket: a wait for a lock can miss a signal that
    comes just before it, and an exception may come in the midst of anything.
    """

    def __enter__(self) -> "Signals":
        self._waiting, self._told = socket.socketpair()
        self._told.setblocking(False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)
        signal.set_wakeup_fd(self._told.fileno())
        return self

    @staticmethod
    def _note(number: int, frame: Any) -> None:
        pass

    def wait(self) -> None:
        """Return when one has come."""
        self._waiting.recv(1)

    def __exit__(self, *exception: Any) -> None:
        # Not the defaults: another signal on the way out is one too many.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        self._waiting.close()
        self._told.close()


def serve(
    settings: Settings,
    what: str,
    threads: List[threading.Thread],
    stop: threading.Event,
) -> int:
    """Read the meters and answer until SIGINT or SIGTERM; return the exit code.

    Starts `threads` too, which end with `stop`; `what` is served, for the log.
    """
    http, device = settings["http"], settings["ecodevice"]
    store = Store()
    mac = device["mac"] or lasting_mac()
    login = login_of(http["username"], http["password"])
    ports, servers = ports_of(settings), []  # type: List[int], List[Server]
    for second, port in enumerate(ports):
        box = Box(store, device["hostname"], mac, ports, bool(second))
        try:
            servers.append(Server((http["address"], port), box, login))
        except (OSError, UnicodeError) as error:
            print(
                "ecolinky: cannot serve on %s port %d (%s): is ecolinky already running?"
                " is [http] address this machine's?"
                % (http["address"], port, plain_reason(error)),
                file=sys.stderr,
            )
            return 1
    threads = threads + [
        threading.Thread(target=server.serve_forever, name="http", daemon=True)
        for server in servers
    ]
    if device["discovery"]:
        try:
            threads.append(Discovery(servers[0].box, stop))
        except OSError as error:
            log.warning(
                "discovery: UDP port %d cannot be had (%s): clients must be told the"
                " address; all else works",
                Discovery.PORT,
                plain_reason(error),
            )
    first, second = settings["teleinfo1"], settings["teleinfo2"]
    shown = None if second["host"] else second["injection"]
    readers = [
        Reader(
            number, each["host"], each["port"], each["timeout"], store, stop,
            injection=shown if number == 1 else None,
        )
        for number, each in ((1, first), (2, second))
        if each["host"]
    ]
    save_memory()
    with Signals() as signals:
        log.info(
            "ecolinky %s serves %s on port %s of %s",
            __version__,
            what,
            " and ".join(str(port) for port in ports),
            "all addresses" if http["address"] == "0.0.0.0" else http["address"],
        )
        for thread in threads + readers:
            thread.start()
        signals.wait()
        log.info("ecolinky stops")
        stop.set()
        for server in servers:
            server.shutdown()
            server.server_close()
        for reader in readers:
            reader.close()
        for thread in threads + readers:
            thread.join(0.3)
    return 0


if __name__ == "__main__":
    try:
        code = main()
        sys.stdout.flush()
        sys.exit(code)
    except KeyboardInterrupt:
        sys.exit(0)
    except BrokenPipeError:  # as in --check | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
