#!/usr/bin/env python3
"""ecolinky: shows a Linky meter to Domoticz as the GCE Eco-Devices it knows.

One file, Python 3.7 or later, no dependencies.  The way of a byte, and its order:

    ESP8266 --TCP--> Reader -> decode -> guard -> translate -> Store -> documents
                                                        -> http.server -> Domoticz

A *meter* sends its TIC in *frames* (STX ... ETX) of *groups* (LF ... CR): a *label*,
its *data* and a checksum.  An *index* is a counter of energy in Wh that never falls.
Everything above the banner "Reader", but the Store, is pure: no socket, no thread, no
clock; time is an argument, in seconds of the monotonic clock.

Sources: Enedis-NOI-CPT_54E (Linky), ERDF-NOI-CPT_02E (older meters), captures of real
meters, and the Eco-Devices' firmware 1.05.25.
"""

import argparse
import base64
import binascii
import configparser
import contextlib
import errno
import functools
import hmac
import json
import logging
import math
import os
import re
import signal
import socket
import socketserver
import sys
import threading
import time
from collections import deque, namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Dict, List, Optional, Tuple
from xml.sax.saxutils import escape

__version__ = "1.1.0"

log = logging.getLogger("ecolinky")
Labels = Dict[str, str]  # label -> data
Fields = Dict[str, Any]  # tag of the Eco-Devices -> int or str, None if not known


######## Decode: bytes in, frames of verified groups out ###############################

MARK = re.compile(b"([\x02\x03\x04])")  # STX, ETX, EOT
SEVEN_BITS = bytes(byte & 0x7F for byte in range(256))
LINE_ENDS = re.compile(b"[\r\n]+")
# Met around a group: LF that arrived as 0B, 0E or 0F, a trailing 0C or 08.
DEBRIS = bytes(range(0x20)) + b"\x7f"
ESP_LOG = re.compile(b"[A-Za-z]{2} {0,8}: [ -~]")  # "3612 : Info  : WD   : Uptime 1"

# The form of each label's data: a group whose data has another is not the meter's.
# The sum does not see a change of bit 6 (40 hex), nor two changes that cancel.
HISTORIC_INDEX = "BASE|HCHC|HCHP|EJPHN|EJPHPM|BBRH[CP]J[BWR]"
HISTORIC_FORMS = {
    "ADCO": "[0-9A-Z ]{11,14}",
    "OPTARIF": r"BASE|HC\.\.|EJP[. ]|BBR[!-?]",
    "ISOUSC|PEJP": "[0-9]{2}",
    HISTORIC_INDEX: "[0-9]{9}",
    "PTEC": r"TH\.\.|HC\.\.|HP\.\.|HN\.\.|PM\.\.|H[CP]J[BWR]",
    "DEMAIN": "----|BLEU|BLAN|ROUG",
    "IINST[123]?|ADPS|ADIR[123]|IMAX[123]?": "[0-9]{3}",
    "PAPP|PMAX": "[0-4][0-9]{4}",
    "HHPHC": "[!-~]",
    "MOTDETAT": "[0-9]{6}",
    "PPOT": "[0-9A-F]{2}",
}
STANDARD_INDEX = "EAST|EASF(0[1-9]|10)|EASD0[1-4]|EAIT|ERQ[1-4]"
STAMP = "[HhEe ][0-9]{12}\t"
STAMPED = "SMAXS?N[123]?(-1)?|SMAXIN(-1)?|CCAS?[IN]N?(-1)?|UMOY[123]|DPM[123]|FPM[123]"
STANDARD_FORMS = {
    "ADSC": "[0-9A-Z ]{11,14}",
    "VTIC|PREF|PCOUP|NTARF|NJOURF|NJOURF[+]1": "[0-9]{2}",
    "DATE": STAMP,
    STAMPED: STAMP + "[0-9]{2,5}",
    "NGTF|LTARF": "[ -~]{16}",
    STANDARD_INDEX: "[0-9]{9}",
    "IRMS[123]|URMS[123]|RELAIS": "[0-9]{3}",
    "SINSTS[123]?|SINST[123]|SINSTI": "[0-4][0-9]{4}",
    "STGE": "[0-9A-F]{8}",
    "PRM": "[0-9]{14}",
    "MSG1|MSG2|PJOURF[+]1|PPOINTE": "[ -~]{0,98}",
}

# By the separator, which is what tells the modes apart: SP in historic, HT in standard.
FORMS = {
    separator: re.compile("|".join("(?:%s)\t(?:%s)" % form for form in table.items()))
    for separator, table in ((b" ", HISTORIC_FORMS), (b"\t", STANDARD_FORMS))
}
LABEL = re.compile("[A-Z][A-Z0-9+-]{1,9}")
KNOWN_LABEL = re.compile("|".join(list(HISTORIC_FORMS) + list(STANDARD_FORMS)))

# groups: Labels; damaged: how many groups were not intact; whole: from mark to mark.
Frame = namedtuple("Frame", "groups damaged whole")


def checksum(body: bytes) -> int:
    """Return the TIC checksum of the bytes, 20 to 5F hex (Enedis-NOI-CPT_54E 5.3.6)."""
    return (sum(body) & 0x3F) + 0x20


@functools.lru_cache(maxsize=1024)  # most groups are as they were: half the speed
def decode_group(group: bytes) -> Tuple[Optional[str], str]:
    """Return (label, data) of one group without its LF and CR, if all of it is right.

    A timestamp is left out, but of DATE, which is one.  Else: ("", label) when only the
    label is unknown; (None, "checksum") or (None, "form") by what is wrong.
    """
    group = group.lstrip(DEBRIS + b" ").rstrip(DEBRIS)  # not SP: it can be the checksum
    separator = group[-2:-1]
    if separator not in FORMS:
        return None, "form"
    # Never split or strip on the way: the checksum itself can be a space.  Some older
    # meters' covers the SP before it: that is a difference of 20 hex.
    intact = checksum(group[:-1]) == group[-1]
    if separator == b" ":
        intact = intact or checksum(group[:-2]) == group[-1]
    label, _, data = group[:-2].decode("ascii").partition(separator.decode("ascii"))
    if FORMS[separator].fullmatch(label + "\t" + data):
        if intact:
            return label, data.rpartition("\t")[2] or data.rstrip("\t")
        return None, "checksum"
    if intact and LABEL.fullmatch(label) and not KNOWN_LABEL.fullmatch(label):
        return "", label
    return None, "form"


class Decoder:
    """Cuts a stream of bytes into Frames; knows no meter and no time."""

    LONGEST = 2048  # bytes without a mark that are taken for the longest frame

    def __init__(self) -> None:
        self.frames = 0  # frames with at least one intact group
        self.groups = 0  # intact groups
        self.refused = {"checksum": 0, "form": 0}
        self.eight_bits = False  # 7E1 has been read as 8N1: harmless
        self.esp_log = False  # the ESP's own log stood between frames
        self._buffer = b""
        self._opened = False  # an STX has been seen, its ETX not yet

    def feed(self, data: bytes) -> List[Frame]:
        """Take bytes, in any chunks; return the frames that are over."""
        if not data.isascii():
            self.eight_bits = self.eight_bits or b"\x8d" in data
            data = data.translate(SEVEN_BITS)
        frames = []
        if MARK.search(data):
            parts = MARK.split(self._buffer + data)
            self._buffer = parts.pop()
            for text, mark in zip(parts[0::2], parts[1::2]):
                if mark != b"\x04":  # EOT: the meter gave that frame up
                    # STX also ends a frame: some serial servers eat ETX.
                    frames += self._frame(text, self._opened)
                self._opened = mark == b"\x02"
        else:
            self._buffer += data
        if len(self._buffer) > self.LONGEST:
            head, _, tail = self._buffer.rpartition(b"\r")
            frames += self._frame(head, False)
            self._buffer = tail[-self.LONGEST :]
        return frames

    def disconnected(self) -> List[Frame]:
        """Return what was whole of the last frame: what comes next is another."""
        head = self._buffer.rpartition(b"\r")[0]
        self._buffer, self._opened = b"", False
        return self._frame(head, False)

    def _frame(self, text: bytes, whole: bool) -> List[Frame]:
        """Return the frame that the text between two marks makes, none if empty."""
        pieces = text.strip(b"\r\n").split(b"\r\n")
        groups, reasons = dict(map(decode_group, pieces)), []
        if None in groups or "" in groups or len(groups) != len(pieces):
            # Damage: a group ends at CR or LF, whichever of the two has survived.
            pieces = [piece for piece in LINE_ENDS.split(text) if piece.strip(DEBRIS)]
            verdicts = [decode_group(piece) for piece in pieces]
            groups = {label: data for label, data in verdicts if label}
            reasons = [reason for label, reason in verdicts if label is None]
            self.esp_log = self.esp_log or bool(ESP_LOG.search(text))
        for reason in reasons if whole else ():  # else: the end of one half seen
            self.refused[reason] += 1
        self.frames += bool(groups)
        self.groups += len(groups)
        return [Frame(groups, len(reasons), whole)] if groups else []


######## Guard: frames in, trusted labels out; no false index ##########################

WH_PER_SECOND = 10  # a Linky is cut off at 36 kVA
SLACK_WH = 10  # what a stalled network or a slow line may make of a second
TAKEOVER = 8  # readings in a row that agree against the served one replace it
KEPT = 300  # seconds: what has not been read for so long is not known any more
MAINS_VOLTS = 230

OWN_POWER = frozenset(("PAPP", "SINSTS", "SINST1"))
POWER = OWN_POWER | {"SINSTI"}
CURRENTS = frozenset("IINST IINST1 IINST2 IINST3 IRMS1 IRMS2 IRMS3".split())
INDEX = re.compile(HISTORIC_INDEX + "|" + STANDARD_INDEX)
ALERTS = ("ADPS", "ADIR1", "ADIR2", "ADIR3")  # currents, too, while they last
# Taken at once: the currents, and what changes all the time and is not served.
MOVING = CURRENTS.union(ALERTS, "URMS1 URMS2 URMS3 UMOY1 UMOY2 UMOY3 DATE".split())
EASF = tuple("EASF%02d" % number for number in range(1, 11))
# Sent only while they last: gone with the first undamaged frame that has them no more.
EPHEMERAL = ALERTS + ("PEJP",)


def _follows(old: str, then: float, new: str, now: float) -> bool:
    """Say whether an index can be `new` Wh now when it was `old` Wh then."""
    return 0 <= int(new) - int(old) <= WH_PER_SECOND * (now - then) + SLACK_WH


class Reading:
    """One label: its trusted data, and the last reading that says otherwise."""

    __slots__ = ("index", "data", "time", "other")

    def __init__(self, label: str) -> None:
        self.index = bool(INDEX.fullmatch(label))
        self.data = None  # type: Optional[str]
        self.time = -math.inf  # when the trusted data was last read
        # data, time, is it possible, how many in a row agree; None: none waits
        self.other = None  # type: Optional[Tuple[str, float, bool, int]]

    def take(self, data: str, now: float) -> None:
        """Trust the data at once."""
        self.data, self.time, self.other = data, now, None

    def confirm(self, data: str, now: float) -> bool:
        """Trust the first of two readings in a row that agree; False: impossible one.

        They agree when they are equal, those of an index also when the second is higher
        by what 36 kVA allows.  A first one that the trusted one rules out (below it, or
        too far above) waits until eight in a row agree.
        """
        possible = not self.index or self.data is None
        possible = possible or _follows(str(self.data), self.time, data, now)
        first, then, was_possible, times = self.other or ("", now, True, 0)
        if data == first or self.index and first and _follows(first, then, data, now):
            times += 1
            if was_possible or times >= TAKEOVER:
                self.data, self.time = first, now if data == first else then
        else:
            times = 1
        self.other = None if data == self.data else (data, now, possible, times)
        return possible


class Guard:
    """What can be trusted of one meter's labels; knows no bytes and no Eco-Devices.

    Two rules: all but power and currents changes only when two readings in a row agree;
    power and currents change at once, but in a frame with damage a power that the
    currents do not bear out waits for a second reading too.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout  # seconds of silence after which nothing is known
        self.identity = None  # type: Optional[Tuple[str, str]]  # label and data
        self.sure = False  # two frames have said that identity
        self.fresh = -math.inf  # time of the meter's last valid frame
        self.implausible = 0  # readings refused by physics, balance or identity
        self.readings = {}  # type: Dict[str, Reading]
        self._stranger = (None, 0)  # type: Tuple[Any, int]  # another one, how often
        self._powerless = 0  # undamaged whole frames in a row without a power

    def take(self, frame: Frame, now: float) -> None:
        """Take a frame that was complete at `now` seconds."""
        groups = frame.groups
        if not self._same_meter(groups, now):
            self.implausible += len(groups) if self._stranger[1] else 0
            return
        self.fresh = now
        clean = frame.whole and not frame.damaged
        balanced = self._balanced(groups)
        for label, data in groups.items():
            reading = self.readings.get(label)
            if reading is None:
                reading = self.readings[label] = Reading(label)
            if data == reading.data:
                reading.time, reading.other = now, None
            elif label in MOVING:
                reading.take(data, now)
            elif label in POWER and (clean or self._borne_out(data, now)):
                reading.take(data, now)
            elif label.startswith("EAS") and not balanced:
                self.implausible += 1
            elif not reading.confirm(data, now):
                self.implausible += 1
        if OWN_POWER & groups.keys():
            self._powerless = 0
        elif clean and ("MOTDETAT" in groups or "PRM" in groups):  # its end is there
            self._powerless += 1
        if clean and ("OPTARIF" in groups or "NGTF" in groups):  # not a short frame
            for label in EPHEMERAL:
                if label not in groups:
                    self.readings.pop(label, None)

    def _same_meter(self, groups: Labels, now: float) -> bool:
        """Say whether the frame is of the meter that is being read.

        One without identity is, unless after a silence; another identity is held back
        until three in a row say that the meter was replaced, or its mode changed.
        """
        said = next((it for it in groups.items() if it[0] in ("ADCO", "ADSC")), None)
        if said is None:
            return not self._stranger[1] and now - self.fresh <= self.timeout
        if said == self.identity:
            self.sure, self._stranger = True, (None, 0)
            return True
        times = self._stranger[1] + 1 if said == self._stranger[0] else 1
        self._stranger = (said, times)
        if times < (3 if self.sure else 1):
            return False
        self.identity, self.sure, self._stranger = said, False, (None, 0)
        self.readings, self._powerless = {}, 0
        return True

    @staticmethod
    def _balanced(groups: Labels) -> bool:
        """Say whether EASF01 + ... + EASF10 is EAST, as in every captured meter."""
        if "EAST" not in groups or not all(label in groups for label in EASF):
            return True
        easf = sum(int(groups[label]) for label in EASF)
        return abs(int(groups["EAST"]) - easf) <= 1  # it may tick in between

    def _borne_out(self, power: str, now: float) -> bool:
        """Say whether a power is that of the currents, rounded, of the last moments."""
        amperes = [
            int(reading.data or 0)
            for label, reading in self.readings.items()
            if label in CURRENTS and now - reading.time <= 6
        ]
        gap = abs(int(power) - MAINS_VOLTS * sum(amperes))
        return gap <= MAINS_VOLTS / 2 * len(amperes) + int(power) // 25

    def known(self, now: float) -> Labels:
        """Return the trusted labels that have been read within the last minutes."""
        return {
            label: reading.data
            for label, reading in self.readings.items()
            if reading.data is not None and now - reading.time <= KEPT
        }

    def powerless(self) -> bool:
        """Say whether the meter sends no power, or one that never comes intact."""
        return self._powerless > 1 or bool(OWN_POWER & self.readings.keys())


######## Translate: trusted labels in, the 31 fields of the Eco-Devices out ############

# The tags of teleinfoN.xml without prefix, in the device's order.
FIELDS = (
    "ADCO OPTARIF ISOUSC BASE HCHC HCHP EJPHN EJPHPM BBRHCJB BBRHPJB BBRHCJW BBRHPJW"
    " BBRHCJR BBRHPJR PEJP PTEC DEMAIN IINST IINST1 IINST2 IINST3 ADPS IMAX IMAX1"
    " IMAX2 IMAX3 PPAP PAPP HHPHC MOTDETAT PPOT"
).split()
NO_PERIOD = "----"
# What the device shows of an input with nothing on it.
EMPTY = dict.fromkeys(FIELDS, 0)  # type: Fields
EMPTY.update(ADCO="0", OPTARIF=NO_PERIOD, PTEC=NO_PERIOD, DEMAIN=NO_PERIOD)
EMPTY.update(HHPHC="0", MOTDETAT="000000")

# The indexes of each tariff, by the first three characters of OPTARIF.
TARIFFS = {
    "BAS": ("BASE",),
    "HC.": ("HCHC", "HCHP"),
    "EJP": ("EJPHN", "EJPHPM"),
    "BBR": ("BBRHCJB", "BBRHPJB", "BBRHCJW", "BBRHPJW", "BBRHCJR", "BBRHPJR"),
}
TEMPO = ("HCJB", "HPJB", "HCJW", "HPJW", "HCJR", "HPJR")
# The period of each running index (NTARF) of standard mode, and so the tag of each
# EASF: nothing is left out, the sum is EAST.  In every supplier's calendar met so far
# odd numbers are cheap and even ones dear.
PERIODS = {
    "BASE": ("TH..",) * 10,
    "HC..": ("HC..", "HP..") * 5,
    "EJP.": ("HN..", "PM..") + ("HN..",) * 8,
    "BBR(": TEMPO + TEMPO[:2] * 2,
}
INDEX_OF = dict(zip(TEMPO, TARIFFS["BBR"]))
INDEX_OF.update({"HC..": "HCHC", "HP..": "HCHP", "HN..": "EJPHN", "PM..": "EJPHPM"})

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
COLOURS = (NO_PERIOD, "BLEU", "BLAN", "ROUG")

# Sent by three-phase meters only; one alone may be another, damaged.
THREE_PHASE = re.compile(
    "(IINST|IMAX|SINSTS)[123]|(IRMS|URMS|UMOY|SINST|SMAXS?N)[23]|PMAX|PPOT"
)


def standard_period(option: str, ngtf: str, ltarf: str, number: int) -> Optional[str]:
    """Return the PTEC of a standard-mode meter; number is NTARF, 0 if not known."""
    told = bool(CHEAP.search(ltarf)) - bool(DEAR.search(ltarf))  # 1 cheap, -1 dear, 0
    numbered = option != "HC.." or not told or NUMBERED.fullmatch(ngtf)
    if 1 <= number <= 10 and numbered:
        return PERIODS[option][number - 1]
    if option in ("BASE", "EJP."):
        return "PM.." if "POINTE" in ltarf else PERIODS[option][0]
    colour = 0
    if option == "BBR(":
        colour = next((n for n in (1, 2, 3) if COLOURS[n] in ltarf), 0) * 2 - 2
    known = told and colour >= 0
    return PERIODS[option][colour + (told < 0)] if known else None


def _number(labels: Labels, *names: str) -> Optional[int]:
    """Return the number of the first of the labels that is there."""
    return next((int(labels[name]) for name in names if name in labels), None)


def phases_of(labels: Labels) -> Tuple[str, ...]:
    """Return what a tag's name ends with for each phase that the labels tell of."""
    three = sum(1 for label in labels if THREE_PHASE.fullmatch(label)) > 1
    return ("1", "2", "3") if three else ("",)


def _phased(name: str, values: List[Optional[int]], least: int = 0) -> Fields:
    """Return name (one phase: one value) or name1-3 (three), each at least `least`.

    The other ones stay 0: that is how the clients tell the number of phases.
    """
    tags = [name] if len(values) == 1 else [name + phase for phase in "123"]
    return {tag: max(least, value or 0) for tag, value in zip(tags, values)}


def translate_historic(labels: Labels) -> Fields:
    """Return the 31 fields of a historic-mode meter; None where one is not known."""
    option, phases = labels.get("OPTARIF", ""), phases_of(labels)
    alerts = [_number(labels, label) or 0 for label in ALERTS]
    fields = dict(
        EMPTY,
        ADCO=labels.get("ADCO"),
        OPTARIF="EJP." if option.startswith("EJP") else option or None,
        ISOUSC=_number(labels, "ISOUSC") or 0,
        PTEC=labels.get("PTEC"),
        PEJP=_number(labels, "PEJP") or 0,
        DEMAIN=labels.get("DEMAIN", NO_PERIOD),
        ADPS=max(alerts),
        PAPP=_number(labels, "PAPP"),
        HHPHC=labels.get("HHPHC", EMPTY["HHPHC"]),
        MOTDETAT=labels.get("MOTDETAT", EMPTY["MOTDETAT"]),
        PPOT=int(labels.get("PPOT", "0"), 16),
    )
    fields.update(_phased("IINST", [_number(labels, "IINST" + n) for n in phases]))
    fields.update(_phased("IMAX", [_number(labels, "IMAX" + n) for n in phases], 1))
    fields.update({tag: _number(labels, tag) for tag in TARIFFS.get(option[:3], ())})
    return fields


def translate_standard(labels: Labels) -> Fields:
    """Return the 31 fields of a standard-mode meter; None where one is not known."""
    ngtf, ltarf = (
        " ".join(labels.get(label, "").upper().split()) for label in ("NGTF", "LTARF")
    )
    stge = int(labels.get("STGE", "0"), 16)
    number = _number(labels, "NTARF") or ("STGE" in labels and (stge >> 10 & 15) + 1)
    phases = phases_of(labels)
    currents = [_number(labels, "IRMS" + (phase or "1")) for phase in phases]
    maxima = [_number(labels, "SMAXSN" + phase, "SMAXN" + phase) for phase in phases]
    option = None
    if "NGTF" in labels:
        told = (o for text in (ngtf, ltarf) for p, o in OPTION_WORDS if p.search(text))
        option = next(told, "BBR(" if stge >> 24 & 3 else "BASE")
    fields = dict(
        EMPTY,
        ADCO=labels.get("ADSC"),
        OPTARIF=option,
        # As Linky itself shows it in historic mode: 6 kVA 30 A, 12 kVA on three 20 A.
        ISOUSC=int((_number(labels, "PREF") or 0) * 5 / len(phases) + 0.5),
        PTEC=option and standard_period(option, ngtf, ltarf, number or 0),
        PEJP=30 if stge >> 28 & 3 else 0,
        DEMAIN=COLOURS[stge >> 26 & 3],
        ADPS=max(current or 0 for current in currents) if stge & 0x80 else 0,
        PAPP=_number(labels, "SINSTS", "SINST1"),
    )
    fields.update(_phased("IINST", currents))
    amperes = [power and int(power / MAINS_VOLTS + 0.5) for power in maxima]
    fields.update(_phased("IMAX", amperes, 1))
    if option == "BASE":
        fields["BASE"] = _number(labels, "EAST")
    elif option:
        known = all(label in labels for label in EASF)
        fields.update({tag: 0 if known else None for tag in TARIFFS[option[:3]]})
        for label, period in zip(EASF, PERIODS[option]) if known else ():
            fields[INDEX_OF[period]] += int(labels[label])
    return fields


def translate_injection(drawn: Fields, labels: Labels) -> Optional[Fields]:
    """Return the fields of an input that shows EAIT and SINSTI; the rest is `drawn`."""
    if "EAIT" not in labels or "SINSTI" not in labels:
        return None
    power, phases = int(labels["SINSTI"]), 3 if drawn["IMAX1"] else 1
    kept = {tag: drawn[tag] for tag in "ADCO ISOUSC IMAX IMAX1 IMAX2 IMAX3".split()}
    fields = dict(EMPTY, OPTARIF="BASE", PTEC="TH..", BASE=int(labels["EAIT"]), **kept)
    fields.update(_phased("IINST", [int(power / MAINS_VOLTS / phases + 0.5)] * phases))
    fields.update(PAPP=power, PPAP=power)
    return fields


######## Meter: the three parts together ###############################################


class Meter:
    """All that is known of one TIC input; stale after `timeout` s without a frame."""

    def __init__(self, timeout: float = 30.0) -> None:
        self.decoder, self.guard = Decoder(), Guard(timeout)
        self._now = -math.inf  # when the last bytes came

    def feed(self, data: bytes, now: float) -> None:
        """Take bytes as they arrived, in any chunks, at `now` seconds."""
        self._now = now
        for frame in self.decoder.feed(data):
            self.guard.take(frame, now)

    def disconnected(self) -> None:
        """Note that the link ended: what comes next does not continue what came."""
        for frame in self.decoder.disconnected():
            self.guard.take(frame, self._now)

    def labels(self, now: float) -> Labels:
        """Return the trusted labels of a meter that is live, else none."""
        silent = now - self.guard.fresh > self.guard.timeout
        return {} if silent else self.guard.known(now)

    def fields(self, now: float) -> Optional[Fields]:
        """Return the 31 fields to serve, tag -> int or str; None unless all is known:

        identity (said twice), tariff, period, power, all indexes of the tariff.
        """
        fields = self._translate(self.labels(now))
        return None if None in fields.values() else fields

    def missing(self, now: float) -> List[str]:
        """Return the tags that are still unknown."""
        fields = self._translate(self.labels(now))
        return [tag for tag in FIELDS if fields[tag] is None and tag != "PPAP"]

    def injection(self, now: float) -> Optional[Fields]:
        """Return the 31 fields of what the meter injects, None where it does not."""
        drawn = self.fields(now)
        return drawn and translate_injection(drawn, self.labels(now))

    def _translate(self, labels: Labels) -> Fields:
        translate = translate_standard if "ADSC" in labels else translate_historic
        fields, told = translate(labels), CURRENTS & labels.keys()
        if fields["PAPP"] is None and told and self.guard.powerless():
            currents = (fields["IINST" + phase] for phase in ("", "1", "2", "3"))
            fields["PAPP"] = MAINS_VOLTS * sum(currents)
        fields["PPAP"] = fields["PAPP"]  # the firmware's own misspelling
        return fields


######## Store: the one place that threads share #######################################

# What a reader publishes of an input, never changed afterwards: fields as Meter returns
# them and time when they were true; status for /ecolinky.json, None of the injection
# that is shown as input 2, which has no meter of its own.
Snapshot = namedtuple("Snapshot", "source timeout fields time status")


class Store:
    """The last snapshot of each input, 1 or 2, in a dictionary that a lock protects."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._snapshots = {}  # type: Dict[int, Snapshot]

    def publish(self, number: int, snapshot: Snapshot) -> None:
        """Replace an input's snapshot."""
        with self._lock:
            self._snapshots = {**self._snapshots, number: snapshot}

    def read(self) -> Dict[int, Snapshot]:
        """Return the snapshots, which are not to be changed."""
        with self._lock:
            return self._snapshots


def served(snapshots: Dict[int, Snapshot], now: float) -> Dict[int, Optional[Fields]]:
    """Return what each input shows now: fields, None if stale, EMPTY if not there."""
    inputs = {1: None, 2: EMPTY}  # type: Dict[int, Optional[Fields]]
    for number, snapshot in snapshots.items():
        fresh = now - snapshot.time <= snapshot.timeout
        inputs[number] = snapshot.fields if fresh else None
    return inputs


######## Documents: the Eco-Devices' answers ###########################################

XML, JSON, HTML = "text/xml", "application/json", "text/html; charset=utf-8"
TEXT = "text/plain; charset=utf-8"
XML_START = '<?xml version="1.0" encoding="ISO-8859-1"?>\r\n<response>'
XML_END = "</response>\r\n"
# The tags of status.xml in the device's order; there are no pulse inputs.
STATUS_TAGS = (
    "date time0 config_hostname config_mac http_port T1_PPAP T2_PPAP T1_PAPP T2_PAPP"
    " T1_PTEC T2_PTEC T1_ISOUSC T2_ISOUSC T1_IMAX T1_IMAX1 T1_IMAX2 T1_IMAX3 T2_IMAX"
    " T2_IMAX1 T2_IMAX2 T2_IMAX3 meter0 meter1 meter2 meter3 count0 count1 c0day c1day"
    " c0_fuel c1_fuel dnsstatus version salr"
).split()
# Path (and command) -> the inputs of which one must be live for an answer.
DOCUMENTS = {
    "/status.xml": (),
    "/protect/settings/teleinfo1.xml": (1,),
    "/protect/settings/teleinfo2.xml": (2,),
    "/teleinfo.xml": (1, 2),
    "/globalstatus.xml": (1, 2),
    "/api/xdevices.json?cmd=10": (1, 2),
    "/api/xdevices.json?cmd=20": (),
}  # type: Dict[str, Tuple[int, ...]]

Answer = Tuple[int, str, bytes]  # HTTP status, content type, body


def prefixed(number: int, fields: Fields, tags: Any = FIELDS) -> Fields:
    """Return the fields as the tags of an input, as in T1_PAPP."""
    return {"T%d_%s" % (number, tag): fields[tag] for tag in tags}


def document(
    name: str, inputs: Dict[int, Optional[Fields]], box: Fields, local: time.struct_time
) -> Answer:
    """Return the answer to a name of DOCUMENTS; `inputs` as from `served`.

    A stale input's own document is unavailable (503: Home Assistant and Jeedom record
    nothing), as is one of both when neither is live; elsewhere it looks empty.
    """
    numbers = DOCUMENTS[name]
    wanted = [inputs[number] for number in numbers]
    gone = None in wanted and all(each is None or each is EMPTY for each in wanted)
    status, shown = 503 if gone else 200, {n: inputs[n] or EMPTY for n in inputs}
    tags = {}  # type: Fields
    if "xdevices" in name:
        tags["product"] = "Eco-devices"
        for number in numbers:
            indexes = TARIFFS.get(shown[number]["OPTARIF"][:3], TARIFFS["BAS"])
            tags.update(prefixed(number, shown[number], ("PTEC", "PAPP") + indexes))
        names = ("INDEX_C1", "INDEX_C2") if numbers else ("Day_C1", "Day_C2")
        tags = {} if gone else dict(tags, **dict.fromkeys(names, 0))
        return status, JSON, json.dumps(tags, separators=(",", ":")).encode("ascii")
    if name in ("/status.xml", "/globalstatus.xml"):
        # The clients want a number of every counter, never nothing.
        tags = dict(dict.fromkeys(STATUS_TAGS, 0), c0_fuel="", c1_fuel="", **box)
        tags["version"] = "1.05.25"  # Domoticz refuses anything below 1.05.12
        tags["date"] = "%d%02d%02d" % (local.tm_wday, local.tm_mday, local.tm_mon)
        tags["time0"] = "%02d:%02d" % (local.tm_hour, local.tm_min)
        for number, fields in shown.items():
            tags.update(prefixed(number, fields))
            limit = fields["ISOUSC"] * MAINS_VOLTS * (3 if fields["IMAX1"] else 1)
            needle = min(9, 10 * fields["PAPP"] // limit) if limit else 0
            tags["meter%d" % (number - 1)] = needle  # of the page's power gauge, 0-9
        tags = {tag: tags[tag] for tag in STATUS_TAGS}
    if name == "/status.xml":
        # Domoticz gives the total of both inputs one and the same device, and decides
        # by this tag alone whether to read input 2 (EcoDevices.cpp): it never may.
        # Input 2 is input 1 of a box of its own, on the second port.
        tags["T2_PTEC"] = NO_PERIOD
    for number in numbers:
        tags.update(prefixed(number, shown[number]))
    if name == "/globalstatus.xml":
        tags.update(c0_name="C1", c1_name="C2", c0_unit="Wh", c1_unit="Wh")
    lines = ["<%s>%s</%s>" % (tag, escape(str(tags[tag])), tag) for tag in tags]
    text = XML_START + ("" if gone else "\r\n".join([""] + lines + [""])) + XML_END
    return status, XML, text.encode("latin-1", "xmlcharrefreplace")


class Box:
    """An Eco-Devices that is shown; `ports` are those of all boxes.

    The first shows both inputs, the second shows input 2 as its input 1, under a name
    and a MAC address of its own.
    """

    def __init__(
        self, store: Store, hostname: str, mac: str, ports: List[int], second: bool
    ) -> None:
        self.store, self.ports, self.second = store, ports, second
        if second:
            hostname = hostname[:30] + "-2"
            mac = "%s%02x" % (mac[:-2], int(mac[-2:], 16) ^ 1)
        self.tags = {"config_hostname": hostname, "config_mac": mac}  # type: Fields
        self.tags["http_port"] = ports[second]
        self.started = time.monotonic()

    def answer(self, path: str, query: str) -> Optional[Answer]:
        """Return the answer to a path and its query, None if there is no document."""
        now, snapshots = time.monotonic(), self.store.read()
        if path == "/ecolinky.json":
            return 200, JSON, json.dumps(self.status(snapshots, now)).encode("ascii")
        if path in ("/", "/index.htm"):
            return 200, HTML, HOME_PAGE
        if path == "/api/xdevices.json":
            path += next(("?" + w for w in query.split("&") if w[:4] == "cmd="), "")
        if path not in DOCUMENTS:
            return None
        inputs = served(snapshots, now)
        if self.second:
            inputs = {1: inputs[2], 2: EMPTY}
        return document(path, inputs, self.tags, time.localtime())

    def status(self, snapshots: Dict[int, Snapshot], now: float) -> Fields:
        """Return what /ecolinky.json says; the README documents it."""
        live, inputs = served(snapshots, now), []
        for number, snapshot in sorted(snapshots.items()):
            if snapshot.status:
                age, fields = now - snapshot.time, live[number]
                status = dict(snapshot.status, input=number, fields=fields)
                status["age"] = round(age, 1) if age < math.inf else None
                status.update({"state": "live"} if fields else {"injection": None})
                inputs.append(dict(status, source=snapshot.source))
        return {
            "version": __version__,
            "uptime": round(now - self.started),
            "hostname": self.tags["config_hostname"],
            "ports": self.ports,
            "inputs": inputs,
        }


######## Reader: the thread that reads one ESP8266, and what it says to the user #######

LABELS_SEEN = re.compile(b"ADCO|OPTARIF|ISOUSC|PTEC|PAPP|ADSC|NGTF|LTARF|EAST|SINSTS")
NORMAL_GROUP = re.compile(b"(ADCO|OPTARIF|ISOUSC|PTEC|PAPP)[ ]|(ADSC|NGTF|EAST)\t")
TELNET = re.compile(b"\xff[\xfb-\xfe][\0-\x27]")  # IAC, WILL to DONT, an option

AWAY = "éteint, hors Wi-Fi, ou à une autre adresse : vérifier l'ESP et host"
EVICTED = "l'ESP ferme chaque connexion : un autre programme le lit, l'arrêter"
NO_BYTE = (
    "connecté, mais aucun octet : mettre RX Receive Timeout à 0 dans ESPEasy, puis"
    " vérifier la broche et les fils"
)
CUT_SHORT = (
    "la fin des trames manque : dans ESPEasy, mettre RX Receive Timeout à 0, RX buffer"
    " size à 1024"
)
SYSTEM_ERRORS = {
    errno.ECONNREFUSED: "allumé, mais rien n'écoute sur ce port : vérifier port et le"
    " Serial Server d'ESPEasy",
    errno.ECONNRESET: "l'ESP a coupé la connexion : vérifier son alimentation",
    errno.EHOSTUNREACH: AWAY,
    errno.ENETUNREACH: "cette machine n'est pas sur le réseau : vérifier son Wi-Fi",
    errno.EADDRINUSE: "déjà pris",
    errno.EACCES: "interdit",
    errno.EADDRNOTAVAIL: "cette adresse n'est pas celle de cette machine",
    errno.ENOENT: "introuvable",
    errno.EISDIR: "c'est un dossier",
}


def plain_reason(error: OSError) -> str:
    """Return in the user's words what an error means; one without a number is ours."""
    if isinstance(error, socket.gaierror):
        return "nom inconnu sur ce réseau : mettre l'adresse IP"
    if isinstance(error, (socket.timeout, TimeoutError)):
        return AWAY
    told = "erreur %s du système" % error.errno if error.errno else str(error)
    return SYSTEM_ERRORS.get(error.errno or 0, told)


def diagnose(sample: bytes) -> str:
    """Return what bytes without a valid group look like, and what to do."""
    text = sample.translate(SEVEN_BITS)
    if LABELS_SEEN.search(text):
        if LINE_ENDS.search(text) and NORMAL_GROUP.search(text):
            return "aucun groupe intact : vérifier la vitesse, 7E1, puis le montage"
        return "espaces ou fins de ligne remplacés : ESPEasy, Event processing sur None"
    if len(TELNET.findall(sample)) * 20 > len(sample):
        return "cela ressemble à telnet : régler le serveur série en TCP brut (raw)"
    plain = sum(32 <= byte < 127 or byte in b"\t\r\n" for byte in sample)
    if plain < 0.95 * len(sample):
        return "du bruit : changer la vitesse (1200 en historique, 9600 en standard)"
    return "du texte, mais pas de TIC : couper le journal série de l'ESP, vérifier port"


def cut_short(labels: Labels) -> bool:
    """Say whether the end of the frames never comes, as when a buffer is too small."""
    if "ADSC" in labels:
        return not {"STGE", "NTARF"} <= labels.keys()
    return not {"MOTDETAT", "PPOT"} & labels.keys()


# By the label of the identity: in JSON, and for the user.
MODES = {"ADCO": ("historic", "historique"), "ADSC": ("standard", "standard")}


def due(said: Dict[str, float], kind: str, now: float) -> bool:
    """Say whether a kind of log line is to be said now: at most once an hour."""
    if now - said.get(kind, -math.inf) < 3600:
        return False
    said[kind] = now
    return True


class Reader(threading.Thread):
    """Reads and publishes one input; `injection`: is what it injects shown as input 2?

    None: another meter is input 2.  On any failure it starts again after a pause.
    """

    SILENCE = 10.0  # seconds to connect, or without a byte: the TIC never pauses
    PAUSE = 3.0  # seconds between two connections
    BRIEF = 60.0  # a connection that the ESP ends sooner may be another client's doing
    PATIENCE = 20.0  # seconds without a valid group, or without all, before it is said
    FLOOD = 65536  # bytes without a valid group: no meter sends that

    clock = staticmethod(time.monotonic)

    def __init__(
        self, number: int, settings: Fields, store: Store, injection: Any = None
    ) -> None:
        super().__init__(name="teleinfo%d" % number, daemon=True)
        self.number, self.address = number, (settings["host"], settings["port"])
        self.source = "%s:%d" % self.address
        self.meter, self.connections = Meter(settings["timeout"]), 0
        self.reason = "pas encore de connexion"  # why nothing is served
        self.stopped = threading.Event()
        self._store, self._injection = store, injection
        self._said = {}  # type: Dict[str, float]  # when a log line was last said
        # The power of eight hours, a mean a minute; None: a minute without power.
        self._means, self._powers = deque(maxlen=480), []  # type: deque, List[int]
        self._minute = self.clock() // 60
        self.brief = 0  # connections in a row that the ESP ended soon
        self._shown = ()  # type: Tuple  # what was last said to be received
        self._advised = injection is None  # of what the meter injects, or does not
        self._complete = 0.0  # time of the last frame that could be served
        self._publish(self.clock())

    def run(self) -> None:
        """Read until `stopped` is set."""
        while not self.stopped.is_set():
            started = self.clock()
            try:
                self._read()
            except OSError as error:
                self._failed(error, started)
            except Exception as error:  # a bug must not empty the graphs for ever
                self._trouble("erreur imprévue, à signaler : %r" % error, self.clock())
            self.stopped.wait(self.PAUSE)

    def _read(self) -> None:
        """Connect, and read until that fails."""
        with socket.create_connection(self.address, self.SILENCE) as connection:
            self.connections += 1
            since = self._complete = self.clock()
            sample, unread = b"", 0  # since the last valid group
            try:
                while not self.stopped.is_set():
                    data = connection.recv(4096)
                    if not data:
                        raise ConnectionResetError(errno.ECONNRESET, "closed")
                    now, frames = self.clock(), self.meter.decoder.frames
                    self.meter.feed(data, now)
                    if self.meter.decoder.frames > frames:
                        since, sample, unread = now, b"", 0
                        self._take(now)
                        continue
                    sample, unread = (sample + data)[-1024:], unread + len(data)
                    if unread > self.FLOOD:  # what waits behind it is old by now
                        told = "64 Kio sans un groupe valable, connexion fermée : "
                        raise OSError(told + diagnose(sample))
                    if now - since > self.PATIENCE:
                        since = now
                        self._trouble(diagnose(sample), now)
            except socket.timeout:
                raise OSError(NO_BYTE) from None
            finally:
                self.meter.disconnected()

    def _failed(self, error: OSError, started: float) -> None:
        now = self.clock()
        brief = isinstance(error, ConnectionResetError) and now - started < self.BRIEF
        self.brief = self.brief + 1 if brief else 0
        if self.brief > 2:
            self._say(EVICTED, now)
        self._trouble(EVICTED if self.brief > 2 else plain_reason(error), now)

    def _take(self, now: float) -> None:
        """Publish what new frames brought, and say what changed by them."""
        fields = self.meter.fields(now)
        if fields:
            self.reason, self._complete = "", now
            self._powers.append(fields["PAPP"])
            self._say_received(fields, now)
        elif now - self._complete > self.PATIENCE:
            missing = ", ".join(self.meter.missing(now)) or "identité"
            self._trouble("des groupes manquent (%s) : %s" % (missing, CUT_SHORT), now)
        elif self.reason:
            self.reason = "des trames arrivent, leurs valeurs attendent confirmation"
        self._publish(now)

    def _publish(self, now: float) -> Optional[Fields]:
        """Publish what the meter says; return the fields that are served, if any."""
        meter, decoder, fields = self.meter, self.meter.decoder, self.meter.fields(now)
        while self._minute < now // 60:
            count = len(self._powers)
            self._means.append(round(sum(self._powers) / count) if count else None)
            self._minute, self._powers = self._minute + 1, []
        counters = {"frames": decoder.frames, "groups": decoder.groups}  # type: Fields
        counters["refused"] = dict(decoder.refused, implausible=meter.guard.implausible)
        counters["connections"], identity = self.connections, meter.guard.identity
        status = {
            "state": "stale" if self._shown else "waiting",  # unless it is served
            "reason": self.reason,
            "mode": identity and MODES[identity[0]][0],
            "phases": (3 if fields["IMAX1"] else 1) if fields else None,
            "labels": meter.labels(now),
            "counters": counters,
            "history": {"step": 60, "power": list(self._means)},
            "injection": meter.injection(now),
        }
        told = (self.source, meter.guard.timeout, fields, meter.guard.fresh, status)
        self._store.publish(self.number, Snapshot(*told))
        if self._injection:
            shown = Snapshot(*told)._replace(fields=status["injection"], status=None)
            self._store.publish(2, shown)
        log.debug("%s : %s", self.name, fields)
        return fields

    def _say(self, told: str, now: float) -> None:
        """Log a warning, each kind (by how it begins) at most once an hour."""
        level = logging.WARNING if due(self._said, told[:20], now) else logging.DEBUG
        log.log(level, "%s (%s) : %s", self.name, self.source, told)

    def _trouble(self, reason: str, now: float) -> None:
        """Note what is wrong, and say it once nothing is served any more."""
        self.reason = reason
        if not self._publish(now):
            self._shown = self._shown and (None,)
            self._say(reason + " ; aucune valeur n'est transmise", now)

    def _say_received(self, fields: Fields, now: float) -> None:
        """Say which meter is served, when that changes, and what it does not send."""
        meter, injects = self.meter, "EAIT" in self.meter.guard.readings
        shown = (fields["ADCO"], MODES[meter.guard.identity[0]][1], fields["OPTARIF"])
        if shown != self._shown:
            self._shown = shown
            self._said.clear()
            told = "%s : compteur %s, mode %s, tarif %s : ses valeurs sont transmises"
            log.info(told, self.name, *shown)
        if cut_short(meter.labels(now)) and meter.decoder.frames > 10:
            self._say(CUT_SHORT, now)
        if not self._advised and (injects or meter.decoder.frames > 10):
            self._advised = True
            if injects and not self._injection:
                told = "%s : ce compteur injecte (EAIT) : pour le montrer aussi,"
                log.info(told + " injection = yes dans [teleinfo2]", self.name)
            elif self._injection and not injects:
                told = "%s : injection = yes, mais ce compteur n'envoie pas EAIT : rien"
                log.warning(told + " n'est transmis sur second_port", self.name)


######## Demo: a simulated meter behind a TCP socket ###################################

# The groups of each mode, "label|data" or "label|timestamp|data"; ~ is a space.
DEMO_FRAMES = {
    "historic": "ADCO|021728123456 OPTARIF|HC.. ISOUSC|30 HCHC|{low} HCHP|{high}"
    " PTEC|{period}.. IINST|{amperes} IMAX|090 PAPP|{power} HHPHC|A MOTDETAT|000000",
    "tempo": "ADCO|021728654321 OPTARIF|BBR( ISOUSC|45 BBRHCJB|{low} BBRHPJB|{high}"
    " BBRHCJW|001000000 BBRHPJW|001111111 BBRHCJR|001222222 BBRHPJR|001333333"
    " PTEC|{period}JB DEMAIN|BLAN IINST|{amperes} IMAX|090 PAPP|{power} HHPHC|A"
    " MOTDETAT|000000",
    "three-phase": "ADCO|041620123456 OPTARIF|BASE ISOUSC|20 BASE|{total} PTEC|TH.."
    " IINST1|{phase1} IINST2|{phase2} IINST3|{phase3} IMAX1|060 IMAX2|060 IMAX3|060"
    " PMAX|06030 PAPP|{power} HHPHC|A MOTDETAT|000000 PPOT|00",
    "standard": "ADSC|041761123456 VTIC|02 DATE|{stamp}| NGTF|H~PLEINE/CREUSE~"
    " LTARF|~HEURE~~{text}~~ EAST|{total} EASF01|{low} EASF02|{high}"
    " EASF03|000000000 EASF04|000000000 EASF05|000000000 EASF06|000000000"
    " EASF07|000000000 EASF08|000000000 EASF09|000000000 EASF10|000000000 EAIT|{out}"
    " IRMS1|{amperes} URMS1|231 PREF|06 SINSTS|{power} SMAXSN|{stamp}|04730"
    " SINSTI|{sent} STGE|003A0{bits}01 PRM|09123456789012 NTARF|{number}",
}


class DemoMeter:
    """A meter whose indexes grow as its power says; the encoder of what it sends."""

    def __init__(self, mode: str) -> None:
        self.mode, self.baud = mode, 9600 if mode == "standard" else 1200
        self._energy = {"low": 12345678.0, "high": 23456789.0, "out": 4567890.0}  # Wh
        self._time = 0.0

    def power(self, now: float) -> int:
        """Return the VA at `now` seconds: a house with a kettle, an oven, a roof."""
        power = 420 + 180 * math.sin(now / 97) + 40 * math.sin(now / 7)
        power += 2100 * (now % 300 < 45) + 1800 * (now % 1700 > 1250 and now % 40 < 25)
        return int(power) - 1500 * (self.mode == "standard" and now % 300 >= 180)

    def frame(self, now: float) -> bytes:
        """Return the frame that the meter sends at `now` seconds."""
        power, low = self.power(now), now % 1800 < 600  # ten minutes cheap, twenty dear
        energy, amperes = self._energy, abs(power) / MAINS_VOLTS
        running = "out" if power < 0 else "low" if low else "high"
        energy[running] += abs(power) * (now - (self._time or now)) / 3600
        self._time = now
        values = {name: "%09d" % wh for name, wh in energy.items()}
        values.update(
            total="%09d" % (int(energy["low"]) + int(energy["high"])),
            power="%05d" % max(0, power),
            sent="%05d" % max(0, -power),
            amperes="%03d" % (amperes + 0.5),
            # At least 1 A on a phase: it is how Domoticz knows three-phase meters.
            phase1="%03d" % (amperes * 0.5 + 1),
            phase2="%03d" % (amperes * 0.3 + 1),
            phase3="%03d" % (amperes * 0.2 + 1),
            stamp=time.strftime("H%y%m%d%H%M%S"),
        )
        names = ("period", "text", "bits", "number")
        told = ("HC", "CREUSE", "0", "01") if low else ("HP", "PLEINE", "4", "02")
        text = DEMO_FRAMES[self.mode].format(**dict(zip(names, told)), **values)
        separator, body = " " if "ADCO" in text else "\t", b""
        for group in text.split(" "):
            group = group.replace("|", separator).replace("~", " ")
            covered = (group + separator.strip(" ")).encode("ascii")
            end = b"" if separator == "\t" else b" "
            body += b"\n" + covered + end + bytes([checksum(covered)]) + b"\r"
        return b"\x02" + body + b"\x03"


def send_demo(meter: DemoMeter, listener: socket.socket) -> None:
    """Send a meter's frames at the speed of its line, to a client at a time."""
    while True:
        with listener.accept()[0] as client:
            try:
                while True:
                    data = meter.frame(time.monotonic())
                    client.sendall(data)
                    time.sleep(len(data) * 10 / meter.baud)
            except OSError:
                pass


######## HTTP: the threads that answer #################################################


class Server(ThreadingHTTPServer):
    """The HTTP server: a thread a connection, for as long as that is used."""

    request_queue_size = 128

    def __init__(self, address: Tuple[str, int], box: Box, login: str) -> None:
        # What a client must send: user:password in base 64; nothing if there is none.
        self.box, self.token = box, base64.b64encode(login.encode("ascii"))
        self.said = {}  # type: Dict[str, float]  # when a log line was last said
        super().__init__(address, Handler)

    def server_bind(self) -> None:
        """Bind without HTTPServer's look-up of the host's name, which can hang."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Note that a client went away, or a bug, without a traceback."""
        log.debug("%s : %r", client_address[0], sys.exc_info()[1])


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    server: Server
    server_version, sys_version = "ecolinky/" + __version__, ""
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body leave together
    timeout = 30  # seconds; without one, a client that says nothing keeps its thread

    def do_GET(self) -> None:
        """Answer with a document, or say why not."""
        path, _, query = self.path.partition("?")
        if self._may_ask():
            nothing = (404, TEXT, "rien à cette adresse\r\n".encode())
            status, kind, body = self.server.box.answer(path, query) or nothing
        else:
            status, kind, body = 401, TEXT, "mot de passe demandé\r\n".encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        if status == 401:
            self.send_header("WWW-Authenticate", 'Basic realm="ecolinky"')
        self.end_headers()
        self.wfile.write(body)

    def _may_ask(self) -> bool:
        given = self.headers.get("Authorization", "").encode("utf-8", "replace")
        scheme, _, token = given.partition(b" ")
        right = hmac.compare_digest(token.strip(), self.server.token)
        if not self.server.token or right and scheme.lower() == b"basic":
            return True
        if given and due(self.server.said, "login", time.monotonic()):
            told = "mot de passe refusé à %s : le corriger là-bas, ou dans [http]"
            log.warning(told, self.client_address[0])
        return False

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log for the curious only."""
        log.debug("%s : %s", self.client_address[0], ascii(format % arguments))


def answer_discovery(box: Box) -> None:
    """Answer those who look for Eco-Devices, as the device does: at most 64 bytes."""
    tags = [box.tags[tag] for tag in ("config_hostname", "config_mac", "http_port")]
    answer = "".join("%s\r\n" % tag for tag in tags).encode("ascii")
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        listener.bind(("0.0.0.0", 30303))  # a broadcast is heard there only
    except OSError as error:
        told = "discovery : port UDP 30303 %s ; tout le reste marche"
        log.warning(told, plain_reason(error))
        return
    while True:
        with contextlib.suppress(OSError):  # the asker is gone
            request, sender = listener.recvfrom(64)
            if request == b"Discover GCE Devices":
                listener.sendto(answer, sender)


######## Configuration #################################################################


class ConfigError(Exception):
    """What is wrong with the configuration and what to do, in one line."""


# What a value looks like, and how that is said to the user.
NUMBER = ("[0-9]{1,5}([.][0-9]+)?", "un nombre de 1 à 65535")
WORD = "[A-Za-z0-9_-]{1,63}"
HOST = ("(%s([.]%s){0,9})?" % (WORD, WORD), "une adresse ou un nom, seul, sans port")
YES_NO = ("(?i)yes|no", "yes ou no")
LOGIN = ("[A-Za-z0-9._~-]*", "A-Z a-z 0-9 . _ ~ - : Domoticz transmet mal le reste")
NAME = ("[A-Za-z0-9-]{1,32}", "1 à 32 lettres sans accent, chiffres ou tirets")
MAC = ("(([0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2})?", "six paires : 02:00:5e:10:00:01")
LEVEL = ("(?i)debug|info|warning|error", "debug, info, warning ou error")

# Section and key: the default, which tells the type, and the form.
INPUT = {"host": ("", HOST), "port": (8888, NUMBER), "timeout": (30.0, NUMBER)}
OPTIONS = {
    "teleinfo1": INPUT,
    "teleinfo2": dict(INPUT, injection=(False, YES_NO)),
    "http": {
        "address": ("0.0.0.0", HOST),
        "port": (4000, NUMBER),
        "second_port": (4001, NUMBER),
        "username": ("", LOGIN),
        "password": ("", LOGIN),
    },
    "ecodevice": {
        "hostname": ("ecolinky", NAME),
        "mac": ("", MAC),
        "discovery": (False, YES_NO),
    },
    "log": {"level": ("info", LEVEL)},
}  # type: Dict[str, Dict[str, Tuple[Any, Tuple[str, str]]]]

Settings = Dict[str, Dict[str, Any]]


def _value(text: str, default: Any, form: str) -> Any:
    """Return the value that a text is; raises ValueError."""
    if not re.fullmatch(form, text):
        raise ValueError
    if isinstance(default, bool):
        return text.lower() == "yes"
    value = type(default)(text)
    if not isinstance(value, str) and not 1 <= value <= 65535:
        raise ValueError
    return value


def parse_settings(text: str) -> Settings:
    """Return what the text of an ini sets, by section and key; raises ConfigError."""
    parser = configparser.ConfigParser(interpolation=None, default_section="\0")
    try:
        parser.read_string(text)
    except configparser.Error as error:
        raise ConfigError(_broken(error)) from None
    settings = {
        section: {key: default for key, (default, _) in keys.items()}
        for section, keys in OPTIONS.items()
    }
    for section in parser.sections():
        keys = OPTIONS.get(section, {})
        if not keys:
            told = "[%s] est inconnu : il y a %s"
            raise ConfigError(told % (section, ", ".join(OPTIONS)))
        for key, text in parser.items(section):
            if key not in keys:
                told = "[%s] %s est inconnu : il y a %s"
                raise ConfigError(told % (section, key, ", ".join(keys)))
            default, (form, meant) = keys[key]
            try:
                settings[section][key] = _value(text, default, form)
            except ValueError:
                text = " ".join(text.split())  # an indented line goes on with it
                told = "[%s] %s = %s ne va pas : donner %s"
                raise ConfigError(told % (section, key, text, meant)) from None
    http, second = settings["http"], settings["teleinfo2"]
    if second["host"] and second["injection"]:
        raise ConfigError("[teleinfo2] host et injection = yes : ôter l'un des deux")
    if ports_of(settings) == [http["port"]] * 2:
        raise ConfigError("[http] port et second_port sont égaux : en changer un")
    if bool(http["username"]) != bool(http["password"]):
        raise ConfigError("[http] username et password : donner les deux, ou aucun")
    return settings


def _broken(error: Any) -> str:
    """Say where a text is no ini, and what its writer may have forgotten."""
    line, told = getattr(error, "lineno", 0), "à corriger : clé = valeur, ou [section]"
    if isinstance(error, configparser.DuplicateOptionError):
        told = "%s est déjà dans [%s] : ôter l'un des deux, ou le # resté devant une"
        told = told % (error.option, error.section) + " [section]"
    elif isinstance(error, configparser.DuplicateSectionError):
        told = "[%s] est déjà plus haut : n'en garder qu'un" % error.section
    elif isinstance(error, configparser.MissingSectionHeaderError):
        told = "une [section] manque au-dessus, comme [teleinfo1]"
    elif isinstance(error, configparser.ParsingError):
        line = error.errors[0][0]
    return "ligne %d : %s" % (line, told)


def read_settings(path: str, demo: bool = False) -> Settings:
    """Return the settings of the file (a demo needs none); ConfigError names it."""
    try:
        if demo and not os.path.exists(path):
            return parse_settings("")
        # An old Notepad's accents may be lost: they stand in comments only.
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            text = file.read()
        if "\0" in text:
            raise ConfigError("ce n'est pas du texte simple : l'enregistrer en UTF-8")
        settings = parse_settings(text)
        if not demo and not settings["teleinfo1"]["host"]:
            raise ConfigError("[teleinfo1] host manque : donner l'adresse de l'ESP8266")
        return settings
    except OSError as error:
        told = "%s : %s : mettre ecolinky.ini à côté d'ecolinky.py, ou donner --config"
        raise ConfigError(told % (path, plain_reason(error))) from None
    except ConfigError as error:
        raise ConfigError("%s : %s" % (path, error)) from None


def ports_of(settings: Settings) -> List[int]:
    """Return the HTTP ports: the second box is there when input 2 is."""
    http, second = settings["http"], settings["teleinfo2"]
    both = [http["port"], http["second_port"]]
    return both if second["host"] or second["injection"] else both[:1]


def lasting_mac() -> str:
    """Return a locally administered MAC address that this machine always makes."""
    seed = socket.gethostname().encode()
    with contextlib.suppress(OSError), open("/etc/machine-id", "rb") as file:
        seed = file.read().strip() or seed
    number = binascii.crc32(b"ecolinky" + seed) << 8 | binascii.crc32(seed) & 0xFF
    return ":".join(re.findall("..", "02%010x" % number))


######## Check: what is wrong with the link ############################################

OK, WARNING, FAILED = "ok       ", "ATTENTION", "ÉCHEC    "


def look_at(name: str, settings: Fields, seconds: float) -> List[Tuple[str, str]]:
    """Return what a reader finds at an input within some seconds; last, the verdict."""
    reader = Reader(int(name[-1]), settings, Store())
    reader.PATIENCE = seconds / 2
    meter, first = reader.meter, reader.reason
    reader.start()
    end = time.monotonic() + seconds
    while time.monotonic() < end and not reader.brief:
        time.sleep(0.05)
        fields = meter.fields(time.monotonic()) if meter.decoder.frames > 4 else None
        if fields or not meter.decoder.frames and reader.reason != first:
            break
    reader.stopped.set()
    fields, decoder = meter.fields(time.monotonic()), meter.decoder
    if reader.brief:
        told = "un autre programme lit cet ESP : arrêter l'autre, recommencer"
        return [(FAILED, told)]
    if not decoder.groups:
        return [(FAILED, "rien ne sera transmis : " + reader.reason)]
    damaged, labels = sum(decoder.refused.values()), meter.labels(time.monotonic())
    told = "%d groupes intacts, %d abîmés" % (decoder.groups, damaged)
    found = [(OK, told)]
    for seen, told in (
        (damaged * 20 > decoder.groups, "vérifier l'optocoupleur et ses résistances"),
        (decoder.eight_bits, "l'ESP lit en 8N1 : le mettre en 7E1 (rien n'est perdu)"),
        (decoder.esp_log, "le journal de l'ESP s'y mêle : Serial log Level sur None"),
        (labels and cut_short(labels), CUT_SHORT),
    ):
        if seen:
            found.append((WARNING, told))
    if not fields:
        missing = ", ".join(meter.missing(time.monotonic())) or "une seconde trame"
        return found + [(FAILED, "rien ne sera transmis, il manque : " + missing)]
    phases = "triphasé" if fields["IMAX1"] else "monophasé"
    told = "compteur %(ADCO)s, tarif %(OPTARIF)s, %(ISOUSC)d A, en cours %(PTEC)s,"
    told = (told + " %(PAPP)d VA ; mode ") % fields
    mode = MODES["ADSC" if "ADSC" in labels else "ADCO"][1]
    found.append((OK, told + "%s, %s" % (mode, phases)))
    for tag in TARIFFS[fields["OPTARIF"][:3]]:
        found.append((OK, "index %s = %d Wh" % (tag, fields[tag])))
    return found + [(OK, "ses valeurs seront transmises")]


def check(settings: Settings, seconds: float = 20.0) -> int:
    """Print what is found, a line each; return 0 if all would be served, else 1."""
    found, ports = [], ports_of(settings)  # type: List[Tuple[str, str, str]], List[int]
    for name in ("teleinfo1", "teleinfo2"):
        if settings[name]["host"]:
            for kind, told in look_at(name, settings[name], seconds):
                found.append((kind, name, told))
    for port in ports:
        try:
            address = (settings["http"]["address"], port)
            Server(address, Box(Store(), "", "0", [port], False), "").server_close()
            found.append((OK, "port %d" % port, "libre"))
        except OSError as error:
            told = "%s : si ce n'est pas par ecolinky, en changer" % plain_reason(error)
            kind = WARNING if error.errno == errno.EADDRINUSE else FAILED
            found.append((kind, "port %d" % port, told))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        ours = settings["http"]["address"].replace("0.0.0.0", "de cette machine")
        with contextlib.suppress(OSError):
            probe.connect((settings["teleinfo1"]["host"], 9))  # UDP: nothing is sent
            ours = probe.getsockname()[0] if " " in ours else ours
    for port in ports:
        told = "matériel EcoDevices : adresse %s, port %d" % (ours, port)
        found.append((OK, "Domoticz", told))
    found.sort(key=lambda line: line[0] == FAILED)  # what is wrong comes last
    for line in found:
        print("%s %s : %s" % line)
    return 1 if any(line[0] == FAILED for line in found) else 0


######## Home page: what a person looks at; it reads /ecolinky.json ####################

HOME_PAGE = r"""<!DOCTYPE html>
<html lang="fr">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>ecolinky</title>
<style>
body { --page: #f1f4f1; --card: #fff; --ink: #15211b; --soft: #5d6b63; --line: #e3e8e4;
  --good: #128a63; --warn: #d98200; --bad: #d3342f; --blue: #2a66d9; --on: #fff }
@media (prefers-color-scheme: dark) { body { --page: #0d1210; --card: #161d1a;
  --ink: #e9f0ec; --soft: #95a49b; --line: #27312c; --good: #35c892; --warn: #f5ad3c;
  --bad: #ff6a61; --blue: #5b92ff; --on: #0b0f0d } }
* { box-sizing: border-box; margin: 0 }
body { background: var(--page); color: var(--ink); padding: 20px; max-width: 1160px;
  margin: 0 auto; font: 15px/1.45 system-ui, "Segoe UI", Roboto, Arial, sans-serif;
  font-variant-numeric: tabular-nums }
small, .limit, footer { color: var(--soft); font-size: 13px }
body > header, .card > header, .row { display: flex; align-items: center;
  justify-content: space-between }
body > header { padding: 0 4px 16px; font-size: 20px }
body > header svg { width: 30px; margin-right: 10px }
h1 { font-size: 20px; flex: 1 } h2 { font-size: 16px }
#down:not(:empty) { background: var(--bad); color: var(--on); border-radius: 14px;
  padding: 12px 18px; margin-bottom: 16px }
#cards { display: grid; gap: 20px; grid-template-columns: minmax(0, 1fr) }
.card { background: var(--card); border-radius: 22px; padding: 20px 24px;
  box-shadow: 0 1px 2px #1b33250f, 0 10px 30px #1b332512 }
.pill { border-radius: 99px; padding: 3px 12px; font-size: 13px; font-weight: 600;
  color: var(--bad); border: 1px solid }
.live .pill { color: var(--good) } .waiting .pill { color: var(--warn) }
.reason, .alert { color: var(--bad); padding-top: 4px }
.stale .cols, .waiting .cols { opacity: .45; filter: grayscale(1) }
.gauge { position: relative; max-width: 310px; margin: 10px auto 0; text-align: center }
.gauge path { fill: none; stroke-linecap: round; stroke: var(--line); stroke-width: 13 }
.gauge .value { stroke: var(--level) }
.level0 { --level: var(--good) } .level1 { --level: var(--warn) }
.level2 { --level: var(--bad) }
.big { position: absolute; left: 0; right: 0; top: 34% }
.big b { font-size: 54px; line-height: 60px; display: block }
.limit { margin-top: -6.5%; min-height: 40px }
.limit b { color: var(--level); font-size: 15px; display: block }
.row { padding: 8px 0; border-top: 1px solid var(--line) }
.on > * { color: var(--good); font-weight: 600 }
.bar { flex: 1; height: 6px; margin: 0 14px; border-radius: 3px; overflow: hidden;
  background: var(--line) }
.bar i { display: block; height: 100%; background: var(--level) }
.days { display: grid; grid-template-columns: 1fr 1fr; gap: 10px; padding: 6px 0 }
.day { border-radius: 14px; padding: 9px 14px; border: 1px solid var(--line) }
.day small, .day b { display: block; color: inherit }
.B { background: var(--blue) } .R { background: var(--bad) } .B, .R { color: var(--on) }
.W { background: #fff; color: #15211b }
.chart { height: 210px; margin: 6px 0 12px }
.chart svg { display: block; width: 100%; height: 100% }
.chart text { font-size: 12px; fill: var(--soft) } .chart line { stroke: var(--line) }
.chart .sub { stroke: var(--bad); stroke-dasharray: 5 5 }
.chart .curve { fill: none; stroke: var(--good); stroke-width: 1.8 }
.chart .area { fill: var(--good); opacity: .14 }
.link { border-top: 1px solid var(--line); padding-top: 12px; display: grid;
  gap: 8px 18px; grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)) }
.link b { display: block; font-weight: 400; overflow-wrap: anywhere }
footer { margin: 20px 4px 0 } footer code { color: var(--ink); font-size: 15px }
@media (min-width: 720px) {
  .one .cols { display: grid; grid-template-columns: 320px minmax(0, 1fr); gap: 36px }
  .two #cards { grid-template-columns: 1fr 1fr } }
</style>
</head>
<body>
<header>
  <svg viewBox="0 0 32 32" aria-hidden="true"><rect width="32" height="32" rx="9"
    fill="#128a63"/><path d="M18 5 8 18h7l-1 9 10-13h-7z" fill="#fff"/></svg>
  <h1>ecolinky</h1><span id="clock"></span>
</header>
<p id="down" role="alert"></p>
<main id="cards"></main>
<footer id="domoticz"></footer>
<script>
"use strict";
const DASH = "–", $ = (id) => document.getElementById(id);
const PERIODS = { TH: "Toutes heures", HN: "Heures normales", PM: "Pointe mobile",
  HC: "Heures creuses", HP: "Heures pleines" };
const COLOURS = { B: "bleu", W: "blanc", R: "rouge" };
const TOMORROW = { BLEU: "B", BLAN: "W", ROUG: "R" };
const INDEXES = { BASE: "TH", HCHC: "HC", HCHP: "HP", EJPHN: "HN", EJPHPM: "PM",
  BBRHCJB: "HCJB", BBRHPJB: "HPJB", BBRHCJW: "HCJW", BBRHPJW: "HPJW", BBRHCJR: "HCJR",
  BBRHPJR: "HPJR" };
const safe = (text) => String(text).replace(/[&<>"]/g, (c) => `&#${c.charCodeAt()};`);
const number = (value, digits = 0) => typeof value !== "number" ? DASH
  : value.toLocaleString("fr-FR", { minimumFractionDigits: digits,
    maximumFractionDigits: digits });
const time = (ms, second) => new Date(ms).toLocaleTimeString("fr-FR",
  { hour: "2-digit", minute: "2-digit", second });
const last = (s) => s < 100 ? Math.round(s) + " s" : s < 6000
  ? Math.round(s / 60) + " min" : Math.round(s / 3600) + " h";
const colour = (ptec) => /^H[CP]J[BWR]/.test(ptec) ? ptec[3] : "";
const period = (ptec) => (PERIODS[ptec.slice(0, 2)] || ptec)
  + (colour(ptec) ? ", jour " + COLOURS[colour(ptec)] : "");
const level = (ratio) => "level" + (ratio > 0.9 ? 2 : ratio > 0.8 ? 1 : 0);
const row = (name, id, value, mark = "", bar = "") =>
  `<div class="row ${mark}"><span>${name}</span>${bar}<b id="${id}">${value}</b></div>`;
const known = {};  // the last fields of each input
let data = null, at = 0, down = "";  // the last answer, when it came, what is wrong

// A Tempo day, its colour and its name.
function day(title, id, c) {
  return `<div class="day ${c}"><small>${title}</small><b id="${id}">${COLOURS[c]
    || "inconnu"}</b></div>`;
}
// Two thirds of a circle, the part of it that the ratio says in colour.
function gauge(ratio) {
  const arc = "M33.4 160A100 100 0 1 1 206.6 160";
  return `<svg viewBox="0 0 240 184"><path d="${arc}"/>` + (ratio > 0
    ? `<path class="value" d="${arc}" stroke-dasharray="${419 * ratio} 999"/>` : "")
    + "</svg>";
}
// The power since the first minute that is known; now is at the right.
function chart(history, power, limit) {
  const w = innerWidth < 720 ? innerWidth - 88 : data.inputs.length > 1 ? 480 : 716;
  const h = 210, left = 56, bottom = h - 24, now = Date.now(), means = history.power;
  const step = history.step * 1000, points = means.map((va, i) =>
    [at - (means.length - i - 0.5) * step, va]);
  if (power !== null) points.push([now, power]);
  const span = Math.max(2 * step, points.length ? now - points[0][0] : 0);
  const most = Math.max(400, ...points.map((point) => point[1] || 0));
  const unit = [100, 200, 500, 1e3, 2e3, 5e3, 1e4].find((u) => most / u <= 4.2) || 2e4;
  const top = Math.ceil(most / unit) * unit;
  const x = (ms) => (left + (w - left - 6) * (1 - (now - ms) / span)).toFixed(1);
  const y = (va) => (bottom - (bottom - 14) * va / top).toFixed(1);
  const line = (va, mark) => `<line x1="${left}" x2="${w}" y1="${y(va)}" y2="${y(va)}"
    class="${mark}"/>`;
  const text = (px, py, anchor, words) =>
    `<text x="${px}" y="${py}" text-anchor="${anchor}">${words}</text>`;
  let svg = limit && limit <= top ? line(limit, "sub") : "";
  for (let va = 0; va <= top; va += unit)
    svg += line(va, "") + text(left - 8, +y(va) + 4, "end", number(va));
  [now - span * 0.3, now - span * 0.6, now - span * 0.9].forEach((ms) => {
    svg += text(x(ms), h - 5, "middle", time(ms, span < 6e5 ? "2-digit" : undefined)); });
  svg += text(w - 2, h - 5, "end", "maintenant");
  const place = ([ms, va]) => x(ms) + " " + y(va || 0), d = points.map((point, i) =>
    point[1] === null ? "" : (i && points[i - 1][1] !== null ? "L" : "M")
      + place(point));
  if (points.length)
    svg += `<path class="area" d="M${x(points[0][0])} ${bottom}L${points.map(place)
      .join("L")}L${x(now)} ${bottom}z"/><path class="curve" d="${d.join("")}"/>`;
  return `<svg viewBox="0 0 ${w} ${h}">${svg}</svg>`;
}
function card(input, several) {
  const n = input.input, state = down ? "stale" : input.state, live = state === "live";
  const fields = known[n] = input.fields || known[n] || {};
  const phases = fields.IMAX1 > 0 ? 3 : 1, limit = fields.ISOUSC * 230 * phases || 0;
  const power = live ? fields.PAPP : null, ratio = limit ? power / limit : 0;
  const ptec = String(fields.PTEC || DASH), tempo = /^BBR/.test(fields.OPTARIF);
  const from = at - (input.age || 0) * 1000, injected = live && input.injection;
  const counters = input.counters, refused = counters.refused, good = counters.groups;
  const bad = refused.checksum + refused.form + refused.implausible;
  const alert = !live ? "" : fields.ADPS > 0 ? `Dépassement : ${fields.ADPS} A`
    : fields.PEJP > 0 ? `Pointe mobile dans ${fields.PEJP} min` : "";
  const amperes = (phases === 3 ? ["1", "2", "3"] : [""]).map((phase) => {
    const share = live && fields.ISOUSC ? fields["IINST" + phase] / fields.ISOUSC : 0;
    return row(phase ? "Phase " + phase : "Intensité", `current-${n}-${phase || 1}`,
      (live ? number(fields["IINST" + phase]) : DASH) + " A", level(share),
      `<span class="bar"><i style="width:${100 * Math.min(1, share)}%"></i></span>`);
  });
  const option = String(fields.OPTARIF || "?").slice(0, 3).replace(".", "");
  const indexes = Object.keys(INDEXES).filter((tag) => tag.indexOf(option) === 0)
    .map((tag) => row(period(INDEXES[tag]), `index-${n}-${tag}`,
      number(fields[tag] / 1000, 3) + " kWh",
      live && ptec.indexOf(INDEXES[tag]) === 0 ? "on" : ""));
  if (injected) {
    amperes.unshift(row("Injecté sur le réseau", "injection-" + n,
      number(injected.PAPP) + " VA", "on"));
    indexes.push(row("Injecté", `index-${n}-injection`,
      number(injected.BASE / 1000, 3) + " kWh"));
  }
  const link = { "Dernière trame": input.age === null ? DASH
    : "il y a " + last((Date.now() - from) / 1000), "Trames": number(counters.frames),
    "Groupes bons": number(good)
      + (good ? ` (${number(100 * good / (good + bad), 2)} %)` : ""), "Somme fausse": refused.checksum, "Forme fausse": refused.form,
    "Invraisemblables": refused.implausible, "Connexions": counters.connections,
    "Source": safe(input.source), "Mode": { historic: "historique" }[input.mode]
      || input.mode || DASH };
  return `<section class="card ${state} ${level(ratio)}" id="input-${n}">
    <header><h2>Compteur ${several ? n : ""}</h2><span class="pill" id="state-${n}">${
      live ? "en direct" : state === "waiting" ? "en attente du compteur"
      : "données périmées depuis " + time(from, "2-digit")}</span></header>
    <p class="reason" id="reason-${n}">${down ? "" : safe(input.reason)}</p>
    <div class="cols"><div>
      <div class="gauge">${gauge(ratio)}<div class="big"><b id="power-${n}">${
        number(power)}</b>VA</div>
        <p class="limit"><b id="share-${n}">${live && limit ? number(100 * ratio) + " %"
        : ""}</b>${limit ? "de l’abonnement, " + (phases === 3 ? "3 × " : "")
        + fields.ISOUSC + " A" : ""}</p></div>
      <p class="alert" id="alert-${n}">${alert}</p>${amperes.join("")}
      ${row("Période", "period-" + n, period(safe(ptec)))}
      ${tempo ? `<div class="days">${day("Aujourd’hui", "today-" + n, colour(ptec))}
        ${day("Demain", "tomorrow-" + n, TOMORROW[fields.DEMAIN] || "")}</div>` : ""}
    </div><div><small>Puissance (VA)</small>
      <div class="chart">${chart(input.history, power, limit)}</div>
      ${indexes.join("")}</div></div>
    <div class="link">${Object.keys(link).map((name) =>
      `<small>${name}<b>${link[name]}</b></small>`).join("")}</div></section>`;
}
function paint() {
  $("clock").textContent = time(Date.now());
  $("down").textContent = down && down + (at ? " depuis " + time(at, "2-digit") : "");
  if (!data) return;
  const several = data.inputs.length > 1;
  document.body.className = several ? "two" : "one";
  $("cards").innerHTML = data.inputs.map((input) => card(input, several)).join("");
  document.title = $("power-1").textContent + " VA · ecolinky";
  const places = data.ports.map((port, i) => (i ? ", et un second pour "
    + (several ? "le compteur 2" : "l’injection") + " : " : "")
    + `<code>${safe(location.hostname)}</code> port <code>${port}</code>`);
  $("domoticz").innerHTML = "<p>Dans Domoticz, ajouter un matériel EcoDevices : "
    + places.join("") + `</p><p>ecolinky ${data.version}, en marche depuis ${
    last(data.uptime)}</p>`;
}
function poll() {
  const request = new XMLHttpRequest();
  request.open("GET", "ecolinky.json");
  request.timeout = 5000;
  request.onloadend = () => {
    setTimeout(poll, 2000);
    down = "ecolinky ne répond pas";
    if (request.status === 200)
      [data, at, down] = [JSON.parse(request.responseText), Date.now(), ""];
    paint();
    document.body.dataset.ready = "1";
  };
  request.send();
}
poll();
</script>
</body>
</html>
""".encode("utf-8")


######## Main ##########################################################################

VERSION = "ecolinky " + __version__
HELP = """\
usage : python3 ecolinky.py [--config FICHIER] [--check] [--demo [MODE]] [--verbose]
Montre un compteur Linky à Domoticz comme un boîtier GCE Eco-Devices.

  --config FICHIER  les réglages (sinon : ecolinky.ini à côté d'ecolinky.py)
  --check           examiner la liaison et dire ce qui ne va pas
  --demo [MODE]     un compteur simulé : historic, standard, tempo ou three-phase
  --verbose         montrer chaque trame et chaque requête
  --version         dire la version
"""


def main() -> int:
    """Run the program; return its exit code: 0 stopped, 1 cannot run, 2 usage."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--config")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--demo", nargs="?", const="historic", choices=DEMO_FRAMES)
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--version", action="version", version=VERSION)
    wrong = "ecolinky : %s : option inconnue ou incomplète, voir --help\n"
    parser.error = lambda _: parser.exit(2, wrong % " ".join(sys.argv[1:]))  # type: ignore
    parser.format_help = lambda: HELP  # type: ignore
    options = parser.parse_args()
    beside = os.path.join(os.path.dirname(os.path.abspath(__file__)), "ecolinky.ini")
    try:
        settings = read_settings(options.config or beside, bool(options.demo))
    except ConfigError as error:
        print("ecolinky : %s" % error, file=sys.stderr)
        return 2
    level = "CRITICAL" if options.check else settings["log"]["level"].upper()
    logging.addLevelName(logging.DEBUG, "détail")
    logging.addLevelName(logging.INFO, "info")
    logging.addLevelName(logging.WARNING, WARNING)
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else getattr(logging, level),
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
    )
    logging.raiseExceptions = False  # a closed terminal is no reason for a traceback
    if options.demo:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        demo = (DemoMeter(options.demo), listener)
        threading.Thread(target=send_demo, args=demo, daemon=True).start()
        settings["teleinfo1"].update(host="127.0.0.1", port=listener.getsockname()[1])
        settings["teleinfo2"]["host"] = ""
    return check(settings) if options.check else serve(settings, options.demo or "")


def serve(settings: Settings, demo: str) -> int:
    """Read the meters and answer until SIGINT or SIGTERM; return the exit code."""
    first, second, http, device, _ = settings.values()
    store, ports, servers = Store(), ports_of(settings), []  # type: Any, List[int], Any
    login = http["username"] and "%(username)s:%(password)s" % http
    for port in ports:
        mac = device["mac"].lower().replace("-", ":") or lasting_mac()
        box = Box(store, device["hostname"], mac, ports, port != ports[0])
        try:
            servers.append(Server((http["address"], port), box, login))
        except (OSError, UnicodeError) as error:
            told = "ecolinky : port %d de %s : %s : ecolinky tourne-t-il déjà ? sinon,"
            told = told % (port, http["address"], plain_reason(error))
            print(told, "corriger [http] address ou port", file=sys.stderr)
            return 1
    injection = None if second["host"] else second["injection"]
    threads = [Reader(1, first, store, injection)]  # type: List[Any]
    if second["host"]:
        threads.append(Reader(2, second, store))
    for server in servers[1:]:
        threads.append(threading.Thread(target=server.serve_forever, daemon=True))
    if device["discovery"]:
        box = (servers[0].box,)
        discovery = threading.Thread(target=answer_discovery, args=box, daemon=True)
        threads.append(discovery)
    told = "ecolinky %s répond sur le port %s" + (demo and " (compteur simulé)")
    log.info(told, __version__, " et ".join(map(str, ports)))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        for thread in threads:
            thread.start()
        servers[0].serve_forever()
    except (KeyboardInterrupt, SystemExit):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        log.info("ecolinky s'arrête")
    return 0


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore  # it prints everywhere
    try:
        code = main()
        sys.stdout.flush()
    except (BrokenPipeError, KeyboardInterrupt):  # as in --check | head
        code = 1
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(code)
