#!/usr/bin/env python3
"""ecolinky: lets Domoticz read a Linky meter, by acting as a GCE Eco-Devices box.

One file, Python 3.7 or later, no dependencies.  A byte passes through the sections of
this file in their order; the threads come after the sections that they use:

    Labels      what is known of each label of the TIC
    Decode      bytes to frames of groups with a right checksum
    Guard       frames to trusted groups, by six rules
    Rebuild     trusted groups to frames, for the relay
    Translate   trusted labels to the 31 fields of an Eco-Devices
    Meter       the parts above together: all that is known of one meter
    Diagnosis   what is wrong with a link, in the user's words
    Link        one ESP8266, and how its connections end
    Journal     the log of an input: which line is due
    Input       one meter with its link, history and day, made into a snapshot
    Store       the last snapshot of each input, behind the only lock
    Documents   snapshots to the XML and JSON of an Eco-Devices
    Settings    the user's ini file, checked
    Relay       trusted frames, over TCP, for other programs that read TIC
    Reader      a thread: ESP8266 --TCP--> Input --> Store and Relay
    Server      threads: Store --> Documents --HTTP--> Domoticz
    Check       --check: what is wrong with the link
    Demo        --demo: a simulated meter
    Main        the command line, and the start of the threads
    Home page   HTML, CSS and JavaScript, which read /ecolinky.json

Decode to Documents are pure, except for the Store's lock: no socket, no thread, no
clock, no log.  Time is an argument: `now`, in seconds of the monotonic clock, or
`wall`, in seconds since the epoch.

Glossary:

    Linky          the French electricity meter; PREF (kVA) or ISOUSC (A): the
                   power that the household has subscribed to
    TIC            what a meter sends all the time: frames, one each second or two
    mode           historic, of older meters too, or standard, of the Linky alone; each
                   has its own labels, and the supplier switches the mode
    frame          the groups between STX and ETX; the first group is the identity
    group          a label, its data and a checksum: "PAPP 00790 1"
    identity       the meter's number, in ADCO (historic mode) or ADSC (standard mode)
    index          a counter of energy, Wh; in standard mode EAST is the total, and
                   EASF01 to EASF10 are its parts
    register       indexes that belong together, as HCHC and HCHP
    reading        what one frame says about a label or about a register
    power          apparent, VA: PAPP or SINSTS; ADPS and ADIR: overload alerts, A
    injection      energy and power that the house gives to the grid: EAIT, SINSTI
    tariff         OPTARIF: Base, HC (off-peak), EJP (22 expensive days a year), Tempo
                   (three colours of days)
    period         PTEC: which index runs; in standard mode NTARF has its number
    announcement   DEMAIN: tomorrow's colour; PEJP: an expensive EJP period begins soon
    STGE           the status register of standard mode: overload, colours, EJP's notice
    ESP8266        a Wi-Fi chip; ESPEasy: its program, which serves the TIC over TCP
    Eco-Devices    a network box with two TIC inputs, 1 and 2, polled over HTTP
    Domoticz       home automation that polls the box, as Jeedom and Home Assistant do
    NGTF, LTARF    the contract's and the period's name, in the supplier's words
    fields, tags   the values of an input in the box's documents, as T1_PAPP

Sources: Enedis-NOI-CPT_54E (Linky), ERDF-NOI-CPT_02E (older meters), captures of real
meters, and the Eco-Devices' firmware 1.05.25.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import configparser
import contextlib
import errno
import functools
import hashlib
import hmac
import io
import json
import logging
import math
import os
import re
import select
import shutil
import signal
import socket
import socketserver
import sys
import textwrap
import threading
import time
import traceback
from collections import Counter, deque
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler
from typing import (
    Any,
    Callable,
    Container,
    Dict,
    Iterable,
    Iterator,
    NamedTuple,
    NoReturn,
    Optional,
    Pattern,
    TextIO,
)
from xml.sax.saxutils import escape

__version__ = "1.3.0"

# A copy that was cut off can still be valid Python, and would end without a word.
LAST_LINE = b"# The last line: a copy without it was cut off (see LAST_LINE)."
if __name__ == "__main__":
    with open(__file__, "rb") as program:
        if not program.read().rstrip().endswith(LAST_LINE):
            sys.exit(f"ecolinky : {__file__} est incomplet, le recopier")

log = logging.getLogger("ecolinky")

Labels = Dict[str, str]  # label of the TIC -> data
Fields = Dict[str, Any]  # tag of the Eco-Devices -> int or str; None: not known yet
Json = Dict[str, Any]  # an object of JSON

MAINS_VOLTS = 230
CONTRACT_VOLTS = 200  # a contract counts 200 V: 6 kVA are called 30 A


######## Labels: what is known of each label of the TIC ################################


class Kind(NamedTuple):
    """What labels of one kind have in common; the Guard's rules are above IN_A_ROW."""

    name: str  # tells kinds apart that are alike otherwise
    keep: float  # seconds for which a reading is served (rule 6)
    is_at_once: bool = False  # a reading is trusted at once (rule 5)
    is_lasting: bool = False  # a contradiction is a dispute (rule 3)


KEEP_ALERT = 10
KEEP_FAST = 30
KEEP = 300  # or the user's time-out, if this is longer
IDENTITY = Kind("identity", math.inf, is_lasting=True)
CONTRACT = Kind("contract", KEEP, is_lasting=True)
INDEX = Kind("index", KEEP, is_lasting=True)
POWER = Kind("power", KEEP_FAST)
PERIOD = Kind("period", KEEP_FAST)  # an old period would be shown as running
CURRENT = Kind("current", KEEP_FAST, is_at_once=True)
MOVING = Kind("moving", KEEP_FAST, is_at_once=True)  # it changes all the time
OVERLOAD = Kind("overload", KEEP_ALERT, is_at_once=True)  # a current, while too high
NOTICE = Kind("notice", KEEP_ALERT, is_at_once=True)  # sent while it lasts, too
PLAIN = Kind("plain", KEEP)


class Label(NamedTuple):
    """What is known of a label."""

    # The checksum keeps the low six bits of a sum: it misses a flip of a byte's top bit
    # (40 hex), and two flips that cancel.  So the data must also match this form.
    form: Pattern[str]
    kind: Kind


# H or E: winter or summer (hiver, été); some meters send a small letter or a space.
TIMESTAMP = "[HhEe ][0-9]{12}\t"  # the digits: YYMMDDhhmmss
STAMPED = TIMESTAMP + "[0-9]{2,5}"
AMPERES = "[0-9]{3}"
VA = "[0-4][0-9]{4}"  # at most 36 kVA, and some overload
WH = "[0-9]{9}"
NUMBER = "[0-9A-Z ]{11,14}"  # 12 digits; captures have others
# In each row: the labels, their form, their kind.  The page and the relay also show the
# labels that no field needs.
HISTORIC_LABELS = (
    ("ADCO", NUMBER, IDENTITY),
    # BBR: Tempo, and its programme.
    ("OPTARIF", r"BASE|HC\.\.|EJP[. ]|BBR[!-?]", CONTRACT),
    ("ISOUSC", "[0-9]{2}", PLAIN),
    ("BASE HCHC HCHP EJPHN EJPHPM", WH, INDEX),
    ("BBRHCJB BBRHPJB BBRHCJW BBRHPJW BBRHCJR BBRHPJR", WH, INDEX),
    ("PEJP", "[0-9]{2}", NOTICE),
    ("PTEC", r"TH\.\.|HC\.\.|HP\.\.|HN\.\.|PM\.\.|H[CP]J[BWR]", PERIOD),
    ("DEMAIN", "----|BLEU|BLAN|ROUG", PLAIN),
    ("IINST IINST1 IINST2 IINST3", AMPERES, CURRENT),
    ("ADPS ADIR1 ADIR2 ADIR3", AMPERES, OVERLOAD),
    ("IMAX IMAX1 IMAX2 IMAX3", AMPERES, PLAIN),
    ("PMAX", VA, PLAIN),
    ("PAPP", VA, POWER),
    ("HHPHC", "[!-~]", PLAIN),
    ("MOTDETAT", "[0-9A-F]{6}", PLAIN),
    ("PPOT", "[0-9A-F]{2}", PLAIN),
)
STANDARD_LABELS = (
    ("ADSC", NUMBER, IDENTITY),
    ("VTIC PREF PCOUP NJOURF NJOURF+1", "[0-9]{2}", PLAIN),
    ("DATE", TIMESTAMP, MOVING),  # nothing stands behind the timestamp
    # No grave accent (60 hex): it is a space (20 hex) with a flipped bit.
    ("NGTF", "[ -_a-~]{16}", CONTRACT),
    ("LTARF", "[ -_a-~]{16}", PERIOD),
    ("NTARF", "[0-9]{2}", PERIOD),
    ("STGE", "[0-9A-F]{8}", PERIOD),  # it has more than the period, none of it lasting
    ("EAST EASF01 EASF02 EASF03 EASF04 EASF05", WH, INDEX),
    ("EASF06 EASF07 EASF08 EASF09 EASF10", WH, INDEX),
    ("EASD01 EASD02 EASD03 EASD04", WH, INDEX),
    ("EAIT ERQ1 ERQ2 ERQ3 ERQ4", WH, INDEX),
    ("IRMS1 IRMS2 IRMS3", AMPERES, CURRENT),
    ("URMS1 URMS2 URMS3", "[0-9]{3}", MOVING),
    ("UMOY1 UMOY2 UMOY3", STAMPED, MOVING),
    ("SINSTS SINSTI", VA, POWER),
    # The drawn power in the first version of standard mode; in later versions the power
    # of phase 1.
    ("SINST1", VA, POWER),
    ("SINST2 SINST3", VA, MOVING),
    # Early meters send impossible powers here.  That is no damage, and no field needs
    # them.
    ("SINSTS1 SINSTS2 SINSTS3", "[0-9]{5}", MOVING),
    ("SMAXSN SMAXSN1 SMAXSN2 SMAXSN3", STAMPED, PLAIN),
    ("SMAXSN-1 SMAXSN1-1 SMAXSN2-1 SMAXSN3-1", STAMPED, PLAIN),
    ("SMAXN SMAXN1 SMAXN2 SMAXN3", STAMPED, PLAIN),
    ("SMAXN-1 SMAXN1-1 SMAXN2-1 SMAXN3-1", STAMPED, PLAIN),
    ("SMAXIN SMAXIN-1 CCASN CCASN-1 CCAIN CCAIN-1", STAMPED, PLAIN),
    ("DPM1 DPM2 DPM3 FPM1 FPM2 FPM3", STAMPED, PLAIN),
    ("RELAIS", "[0-9]{3}", PLAIN),
    ("PRM", "[0-9]{14}", PLAIN),
    ("MSG1 MSG2 PJOURF+1 PPOINTE", "[ -~]{0,98}", PLAIN),
)
# Two of these prove a three-phase meter.  One alone may come from damage.  A single
# phase may send the others with a 1, as IRMS1.
THREE_PHASE_LABELS = set(
    "IINST1 IINST2 IINST3 IMAX1 IMAX2 IMAX3 PMAX PPOT IRMS2 IRMS3 URMS2 URMS3 UMOY2"
    " UMOY3 SINST2 SINST3 SINSTS1 SINSTS2 SINSTS3 SMAXSN2 SMAXSN3 SMAXN2"
    " SMAXN3".split()
)


def compile_labels(table: Iterable[tuple[str, str, Kind]]) -> dict[str, Label]:
    """Return what is known of each label of a table."""
    return {
        label: Label(re.compile(form), kind)
        for labels, form, kind in table
        for label in labels.split()
    }


# The separator tells the modes apart: SP in historic, HT in standard.
LABELS = {
    b" ": compile_labels(HISTORIC_LABELS),
    b"\t": compile_labels(STANDARD_LABELS),
}
KNOWN_LABELS = {**LABELS[b" "], **LABELS[b"\t"]}  # no label is in both modes


def labels_of(*kinds: Kind) -> tuple[str, ...]:
    """Return the labels of these kinds."""
    return tuple(name for name, label in KNOWN_LABELS.items() if label.kind in kinds)


# Registers: indexes that belong together, and the label that each meter sends behind
# them.  If that came too, no index is lost.
EASF = tuple(f"EASF{number:02}" for number in range(1, 11))
EAST_AND_EASF = ("EAST", *EASF)  # EAST is the sum of the EASF
REGISTERS = {
    ("BASE",): "PTEC",
    ("HCHC", "HCHP"): "PTEC",
    ("EJPHN", "EJPHPM"): "PTEC",
    tuple(f"BBRH{hours}J{day}" for day in "BWR" for hours in "CP"): "PTEC",
    EAST_AND_EASF: "EASD01",
    ("EASD01", "EASD02", "EASD03", "EASD04"): "IRMS1",
    ("EAIT",): "ERQ1",
    ("ERQ1", "ERQ2", "ERQ3", "ERQ4"): "IRMS1",
}
REGISTER_OF = {label: register for register in REGISTERS for label in register}
IDENTITIES = labels_of(IDENTITY)
CURRENTS = frozenset(labels_of(CURRENT))
OVERLOADS = labels_of(OVERLOAD)
ALERTS = labels_of(OVERLOAD, NOTICE)


######## Decode: bytes in, frames of intact groups out #################################

# STX begins a frame, ETX ends it; EOT means that the meter abandons the frame.
STX = b"\x02"
ETX = b"\x03"
EOT = b"\x04"
MARK = re.compile(b"([\x02\x03\x04])")
# The line end before an identity: a frame begins there if its STX is lost.
BEFORE_IDENTITY = re.compile(b"[\r\n](?=ADCO |ADSC\t)")
# A frame that begins with an identity.  Some ESPs make another byte of the STX and of
# the LF before it: skip a few bytes.
IDENTITY_FIRST = re.compile(b"(?s).{0,4}?(?=ADCO |ADSC\t)")
# A byte has 7 bits and a parity bit.  An ESP set to 8 bits passes the parity bit on.
DROP_PARITY_BIT = bytes(byte & 0x7F for byte in range(256))
# CR is 0D hex, to which even parity adds 80.  Each frame has a CR, so 8D proves that
# the ESP is set to 8 bits.
CR_WITH_PARITY_BIT = b"\x8d"
# Control characters that damage leaves around a group: captures have 0B, 0E or 0F in
# place of LF, and 0C or 08 after CR.
DEBRIS = bytes(range(0x20)) + b"\x7f"
DEBRIS_OR_SPACE = DEBRIS + b" "
# An ESP can be set to replace spaces.  In standard mode most groups have none, and stay
# intact; but NGTF is padded with spaces to 16 characters, so it must have a space.
SPACES_REPLACED = re.compile(b"NGTF\t[!-~]{16}\t")
# The ESP8266's log among the groups, as in "3612 : Info  : WD   : Uptime 1": two
# letters, spaces, a colon, a space, text.  (?=...) leaves the text unread: another such
# part may begin in it.
ESP_LOG = re.compile(b"[A-Za-z]{2} {0,8}: (?=[ -~])")

ANY_LABEL = re.compile("[A-Z][A-Z0-9+-]{1,9}")


class Group(NamedTuple):
    """An intact group: its checksum is right, and its data has the label's form."""

    label: str
    data: str  # without the timestamp, except for DATE, where the timestamp is the data
    raw: bytes  # as the meter sent it, from the label to the checksum
    sum_has_separator: bool  # its checksum covers the last separator


Groups = Dict[str, Group]  # by label


class Frame(NamedTuple):
    """The groups of one frame that could be read."""

    groups: Groups  # in the meter's order
    damaged: int  # number of damaged groups
    whole: bool  # its beginning and its end were seen


def checksum(body: bytes) -> int:
    """Return the TIC checksum, from 20 to 5F hex (Enedis-NOI-CPT_54E 5.3.6)."""
    return (sum(body) & 0x3F) + 0x20


def encode_group(parts: list[str], separator: str) -> bytes:
    """Return the bytes of a group; parts: label, timestamp if any, data."""
    body = separator.join(parts).encode("ascii")
    if separator == " ":
        return b"%s %c" % (body, checksum(body))
    return b"%s\t%c" % (body, checksum(body + b"\t"))  # the sum covers the last HT


def encode_frame(groups: Iterable[bytes]) -> bytes:
    """Return the bytes of a frame."""
    return STX + b"".join(b"\n%s\r" % group for group in groups) + ETX


@functools.lru_cache(maxsize=1024)  # most groups repeat: twice as fast
def decode_group(piece: bytes) -> Group | str | None:
    """Return what stands between two line ends.

    A Group: it is intact.
    "checksum" or "form": it is damaged; this is the reason, a field of Counts.
    None: there is no group, or an intact group whose label the program does not know.
    """
    # The checksum comes last and can be a space: do not strip spaces at that end, and
    # do not split at spaces.
    raw = piece.lstrip(DEBRIS_OR_SPACE).rstrip(DEBRIS)
    if not raw:
        return None
    separator = raw[-2:-1]
    if separator not in LABELS:
        return "form"
    sum_has_separator = covers_separator(raw)
    label, _, data = raw[:-2].decode("ascii").partition(separator.decode("ascii"))
    known = LABELS[separator].get(label)
    if known is None:
        is_intact = sum_has_separator is not None and may_be_a_label(label)
        return None if is_intact else "form"
    if not known.form.fullmatch(data):
        return "form"
    if sum_has_separator is None:
        return "checksum"
    # The timestamp, if any, stands before a HT: "H260115102030 HT 04500".  DATE has no
    # data behind its timestamp.
    stamp, _, value = data.rpartition("\t")
    return Group(label, value or stamp, raw, sum_has_separator)


def covers_separator(raw: bytes) -> bool | None:
    """Return whether a checksum covers the last separator; None: it is wrong.

    It does in standard mode, and in historic mode of some older meters.
    """
    if checksum(raw[:-1]) == raw[-1]:
        return True
    is_historic = raw[-2:-1] == b" "
    if is_historic and checksum(raw[:-2]) == raw[-1]:
        return False
    return None


def may_be_a_label(text: str) -> bool:
    """Return whether a text may be a label that the program does not know."""
    # A label of the other mode is known: its separator is damaged.
    return text not in KNOWN_LABELS and ANY_LABEL.fullmatch(text) is not None


class Counts(NamedTuple):
    """What a meter's decoder and guard have counted since the start."""

    frames: int = 0  # frames with at least one intact group
    groups: int = 0  # intact groups
    checksum: int = 0  # damaged groups, by reason
    form: int = 0
    implausible: int = 0  # groups that the guard has refused; the decoder counts none
    eight_bits: int = 0  # chunks with parity bits, which are harmless
    esp_log: int = 0  # frames with the ESP's log in them
    spaces_replaced: int = 0  # frames with replaced spaces; most groups still come

    @property
    def damaged(self) -> int:
        """The damaged groups."""
        return self.checksum + self.form

    def since(self, before: Counts) -> Counts:
        """Return the counts since an earlier moment."""
        return Counts(*[after - earlier for after, earlier in zip(self, before)])

    def lost_percent(self) -> int:
        """Return the damaged groups in percent, rounded up."""
        return math.ceil(100 * self.damaged / max(1, self.groups + self.damaged))


class Decoder:
    """Cuts a stream of bytes into frames; knows no meter and no time.

    It cuts at marks; without marks, at identities; without either, at line ends once
    the buffer is full.
    """

    LONGEST_BUFFER = 2048  # bytes; the longest known frame has 1,442

    def __init__(self) -> None:
        self.counted = dict.fromkeys(Counts._fields, 0)
        self._buffer = b""  # the unfinished frame: what follows the last cut
        self._mark = b""  # the mark before it; empty: none was seen

    def feed(self, data: bytes) -> list[Frame]:
        """Take bytes, in chunks of any size; return the frames that end in them."""
        if not data.isascii():
            if CR_WITH_PARITY_BIT in data:
                self.counted["eight_bits"] += 1
            data = data.translate(DROP_PARITY_BIT)
        frames = self._marked_frames(data)
        # The rest has no mark.  It is an unfinished frame, or all marks are lost.
        if self._buffer:
            frames += self._unmarked_frames()
        if len(self._buffer) > self.LONGEST_BUFFER:  # no mark, one identity at most
            frames += self._complete_lines()
        return frames

    def _marked_frames(self, data: bytes) -> list[Frame]:
        """Return the frames that end at a mark in the data."""
        frames = []
        # split() returns text, mark, text, mark, ..., and last the unfinished text.
        # Without a mark that is all, and returns to the buffer.
        parts = MARK.split(data)
        parts[0] = self._buffer + parts[0]
        self._buffer = parts.pop()
        for text, mark in zip(parts[0::2], parts[1::2]):
            # STX also ends a frame, because some servers drop ETX.  A text before EOT
            # is abandoned; a text behind EOT is in no frame.
            if text and EOT not in (self._mark, mark):
                # The identity also begins a frame, because some servers drop STX.
                identity = IDENTITY_FIRST.match(text)
                start = identity.end() if identity else 0
                begins = self._mark == STX or identity is not None
                frames += self._frame(text[start:], whole=begins)  # it ends at the mark
            self._mark = mark
        return frames

    def _unmarked_frames(self) -> list[Frame]:
        """Return the frames between identities: some servers drop all marks.

        While marks come, the buffer has one identity at most, and no frame ends here.
        """
        before, *texts = BEFORE_IDENTITY.split(self._buffer)
        if len(texts) < 2:  # a single identity begins the unfinished frame
            return []
        self._buffer = b"\n" + texts.pop()  # split() has taken the line end
        frames = self._frame(before, whole=False)  # it has no identity
        for text in texts:
            frames += self._frame(text, whole=True)
        return frames

    def _complete_lines(self) -> list[Frame]:
        """Return the complete groups of the unfinished frame; keep the last line."""
        end = max(self._buffer.rfind(b"\r"), self._buffer.rfind(b"\n")) + 1
        lines = self._buffer[:end]
        self._buffer = self._buffer[end:][-self.LONGEST_BUFFER :]  # it may be endless
        is_in_frame = self._mark != EOT
        self._mark = b""
        return self._frame(lines, whole=False) if is_in_frame else []

    def disconnected(self) -> list[Frame]:
        """Return the complete groups of the unfinished frame; begin a new frame."""
        frames = self._complete_lines()
        self._buffer = b""
        return frames

    def _frame(self, text: bytes, whole: bool) -> list[Frame]:
        """Return a list of the frame in a text, empty if there is none; count it."""
        groups, reasons = decode_groups(text)
        if reasons:
            if ESP_LOG.search(text):
                self.counted["esp_log"] += 1
            if SPACES_REPLACED.search(text):
                self.counted["spaces_replaced"] += 1
            # Half a frame has cut ends, which are no damage of the line.
            if whole:
                for reason in reasons:
                    self.counted[reason] += 1
        if not groups:
            return []
        self.counted["frames"] += 1
        self.counted["groups"] += len(groups)
        return [Frame(groups, len(reasons), whole)]


def decode_groups(text: bytes) -> tuple[Groups, list[str]]:
    """Return the groups in a text by label, and a reason for each damaged group."""
    groups: Groups = {}
    reasons = []
    # A group ends at CR or LF: a damaged line may have kept only one of them.
    for piece in text.splitlines():
        found = decode_group(piece)
        if isinstance(found, Group):
            groups[found.label] = found
        elif found:
            reasons.append(found)
    for label in groups_with_other_sum(groups):
        del groups[label]
        reasons.append("checksum")
    return groups, reasons


def groups_with_other_sum(groups: Groups) -> list[str]:
    """Return the labels whose checksum is the rarer kind in this frame.

    It covers the last separator, or not.  A meter always sums the same bytes.  To
    accept both kinds would let twice as much damage through: the rarer is damaged.
    """
    without_it = [label for label in groups if not groups[label].sum_has_separator]
    if len(without_it) < len(groups) / 2:
        return without_it
    # If both are as many, these are damaged: most historic meters sum without it.
    with_it = groups.keys() - set(without_it)
    return list(with_it)


######## Guard: frames in, trusted groups out; no false index ##########################

# Damage can leave a group with a right checksum and a right form.  Six rules keep it
# out; each names its code.  A reading is what one frame says about a label, or about a
# register, a set of indexes.  Only trusted readings are served.
#
# 1. Three        Series.take(), Row
#    A row is a run of readings, each of which agrees with the one before, and comes
#    within 90 s of it.  From the third on, its last reading is trusted; of a register
#    the oldest of the last three, because a false index that is too high agrees, too:
#        read         100    100    100    101    103    103    103    120    103
#        trusted        -      -    100    100    100    101    103    103    103
#    A reading equal to the trusted one, byte for byte, renews it, and ends the row.
#    Readings of a label agree if their data is equal; a POWER's, if is_near() says so.
#    Readings of a register agree if no index fell, and none grew by more than 36 kVA
#    allow: 10 Wh each second, and 10 more because a stalled network delivers old frames
#    at once.  A false index passes only if the next two repeat it, or rise from it.
#    90 s, because if a third of the groups is damaged, Tempo's six indexes and PTEC are
#    all intact in one frame of 17, which comes every 34 s.
# 2. Register     reading_in(), balanced_reading()
#    The indexes of a register are read together or not at all.  When the ESP's buffer
#    overflows, bytes vanish without damage: the start of an index is joined to the end
#    of a later group, and the groups in between are gone.
#        sent         HCHC 014945678 2    HCHP 001089012 (    PTEC HC.. S
#        received     HCHC 0149                    89012 (    PTEC HC.. S
#    So a register is read if the frame has all its labels, and the label behind them,
#    see REGISTERS; behind EASD04 this is EAIT if the frame has SINSTI.  One loss is not
#    seen: EJPHPM joined to the end of PEJP, which comes and goes.
#    EAST and the ten EASF have a better proof: they are read if they add up exactly.
#    The frame must have EAST.  A missing EASF is as it last came, however long ago, if
#    the frame has at least as many damaged groups as missing EASF: none was lost.  If
#    all eleven and EASD01 came, 1 Wh may be wrong: an index advances between groups.
# 3. Dispute      Series.take(), _continues(), _agrees_with_trusted(), is_disputed
#    Once a reading of the identity, the contract (OPTARIF, NGTF) or a register is
#    trusted, a row is trusted only if it follows: its first reading agrees with the
#    trusted one, however old that is.
#    After three readings in succession in rows that do not follow, neither side is
#    served: a dispute.  It ends in one of two ways:
#    - A reading agrees with the trusted one (with time, more growth is allowed).  It is
#      equal, or begins a row that follows; the trusted one is served again.
#    - A row lasts two minutes from its third reading: it has won, and is trusted.
#        read         100     90     90     90     ...     90        (two minutes)
#        served       100    100    100      -      -      90
#    While no identity is trusted, or it is disputed, nothing is served.  A new identity
#    begins with nothing known.
# 4. Owner        Guard._take_identity()
#    Ours is a frame with the trusted identity, byte for byte (ADSC is no ADCO), or
#    without identity, if the last identity was the trusted one, in the last 20 s.  All
#    others are refused.  Until one is trusted, any is ours; another begins anew.
# 5. At once      Guard._take_label(), Guard._is_sure()
#    Currents, voltages, the powers of phases but SINST1, and DATE are trusted at once,
#    as they change all the time, and no client adds them up.  So are the brief ADPS,
#    ADIR and PEJP, and a power of 0 or near 230 V times all currents of the last 6 s (a
#    meter sends currents before powers).  A reading trusted at once ends its row.
# 6. Silence      Guard.known(), Kind.keep, Guard._new_series()
#    After it last came, a trusted reading is served for 10 s (an alert), 30 s (POWER,
#    PERIOD, and what rule 5 names), or 300 s or the user's time-out if this is more
#    (the rest, a register from the oldest of three on); the identity for ever.  A meter
#    without a frame of ours for the time-out is silent: nothing is served.

IN_A_ROW = 3  # readings (rules 1 and 3)
AGREE_WITHIN = 90  # seconds (rule 1)
WH_PER_SECOND = 10  # growth of an index at 36 kVA (rule 1)
SLACK_WH = 10
DISPUTE_LASTS = 120  # seconds (rule 3)
IDENTITY_LASTS = 20  # seconds (rule 4)
CURRENT_LASTS = 6  # seconds (rule 5)
ALONE = KNOWN_LABELS.keys() - REGISTER_OF.keys() - set(IDENTITIES)  # in no register


def reading_in(groups: Groups, labels: tuple[str, ...]) -> Groups | None:
    """Return the reading of a register in a frame; None: there is none (rule 2)."""
    behind = REGISTERS[labels]
    if labels[-1] == "EASD04" and "SINSTI" in groups:
        behind = "EAIT"  # a meter that injects sends it behind EASD04
    is_whole = groups.keys() >= {*labels, behind}
    return {label: groups[label] for label in labels} if is_whole else None


def balanced_reading(frame: Frame, latest: Groups) -> Groups | None:
    """Return the reading of EAST and the EASF; None: there is none (rule 2).

    frame: has EAST; latest: the last group of each label, this frame's included.
    """
    missing = set(EASF).difference(frame.groups)
    reading = {label: latest[label] for label in EAST_AND_EASF if label in latest}
    if len(missing) > frame.damaged or len(reading) < len(EAST_AND_EASF):
        return None
    total = sum([int(reading[label].data) for label in EASF])
    error = abs(int(reading["EAST"].data) - total)
    allowed = 1 if reading_in(frame.groups, EAST_AND_EASF) else 0  # Wh
    return reading if error <= allowed else None


class Row:
    """Readings that agree, each with the reading before it (rule 1)."""

    def __init__(self, follows: bool) -> None:
        self.follows = follows  # its first reading agrees with the trusted one (rule 3)
        self.last_three: deque[tuple[Any, float]] = deque(maxlen=IN_A_ROW)  # and times
        self.count = 0
        self.third_time = 0.0  # when its third reading came

    def add(self, reading: Any, now: float) -> None:
        """Add a reading that agrees with the last one."""
        self.last_three.append((reading, now))
        self.count += 1
        if self.count == IN_A_ROW:
            self.third_time = now

    def has_won(self, now: float) -> bool:
        """Return whether it has lasted two minutes from its third reading (rule 3)."""
        return self.count >= IN_A_ROW and now - self.third_time >= DISPUTE_LASTS


class Series:
    """The readings of a label or register, and which is trusted (rules 1 and 3)."""

    TRUSTED_OF_THREE = -1  # which of Row.last_three: the latest

    def __init__(self, is_lasting: bool, keep: float) -> None:
        self.is_lasting = is_lasting  # rule 3 applies
        self.keep = keep  # seconds for which a reading is served (rule 6)
        self.trusted: Any = None  # a Group, or the Groups of a register
        self.read_time = -math.inf  # when the trusted reading last came
        self._row: Row | None = None  # None: the last reading equals the trusted one
        self._against = 0  # readings in succession in rows that do not follow

    @property
    def is_disputed(self) -> bool:
        """Whether the trusted reading is not served (rule 3)."""
        return self._against >= IN_A_ROW

    def trust(self, reading: Any, now: float) -> None:
        """Trust a reading, whatever was read before."""
        self.trusted = reading
        self.read_time = now
        self._row = None
        self._against = 0

    def take(self, reading: Any, now: float) -> bool:
        """Take a reading; return False if its row cannot be trusted (rule 3)."""
        if reading == self.trusted:  # byte for byte
            self.trust(reading, now)
            return True
        row = self._row
        if row is None or not self._continues(row, reading, now):
            row = Row(follows=self._agrees_with_trusted(reading, now))
        self._row = row
        row.add(reading, now)
        if not (row.follows or row.has_won(now)):
            self._against += 1  # perhaps in several rows, which contradict each other
            return False
        self._against = 0
        if row.count >= IN_A_ROW:
            self.trusted, self.read_time = row.last_three[self.TRUSTED_OF_THREE]
        return True

    def _continues(self, row: Row, reading: Any, now: float) -> bool:
        """Return whether a reading continues a row."""
        # Trusted 100, read 90, 101: 101 agrees with 100, and begins another row.
        if not row.follows and self._agrees_with_trusted(reading, now):
            return False
        last, time = row.last_three[-1]
        return now - time <= AGREE_WITHIN and self._agree(reading, last, now - time)

    def _agrees_with_trusted(self, reading: Any, now: float) -> bool:
        """Return whether a reading agrees with the trusted one, if rule 3 asks."""
        if self.trusted is None or not self.is_lasting:
            return True
        return self._agree(reading, self.trusted, now - self.read_time)

    def _agree(self, new: Any, old: Any, _seconds: float) -> bool:
        """Return whether the meter can have sent `new` so many seconds after `old`."""
        return bool(new.label == old.label and new.data == old.data)


class PowerSeries(Series):
    """The readings of a power."""

    def _agree(self, new: Group, old: Group, _seconds: float) -> bool:
        return is_near(int(new.data), int(old.data), 1)


class RegisterSeries(Series):
    """The readings of a register."""

    TRUSTED_OF_THREE = 0  # the oldest: two more have confirmed it

    def _agree(self, new: Groups, old: Groups, seconds: float) -> bool:
        most = WH_PER_SECOND * seconds + SLACK_WH
        for label, group in new.items():
            if group is not old[label]:  # the same object: no growth; a tenth faster
                growth = int(group.data) - int(old[label].data)
                if not 0 <= growth <= most:
                    return False
        return True


def is_near(power: int, expected: int, phases: int) -> bool:
    """Return whether a power is near another, or near 230 V times the currents; VA."""
    # A current in whole amperes is up to 230 VA too low, in each phase.  At 250 V the
    # power is higher by 20 / 250, less than 1/12.  Two powers may differ as much.
    return abs(power - expected) <= MAINS_VOLTS * phases + power / 12


class Guard:
    """Applies the rules to the frames of one meter."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout  # seconds without a frame: the meter is silent
        self.identity = Series(IDENTITY.is_lasting, IDENTITY.keep)
        self._last_identity: Group | None = None  # of this meter or of another
        self.last_frame = -math.inf  # when the last frame of this meter ended
        self.began = -math.inf  # when the first did, or the first after a silence
        self.implausible = 0  # groups and registers that the rules refused
        self._begin_meter(None)

    def _begin_meter(self, owner: Group | None) -> None:
        """Begin with a meter of which only the identity is known."""
        self._owner = owner  # the trusted identity; until there is one, the last
        self.frames = 0  # of this meter
        self.series: dict[str, Series] = {}  # by label; those of a register share one
        self.seen: dict[str, float] = {}  # when each label last came, trusted or not
        self.latest: Groups = {}  # what each label last was, trusted or not
        self.unbalanced_time = -math.inf  # when the sum of rule 2 was last wrong

    def is_silent(self, now: float) -> bool:
        """Return whether the meter has sent no frame for longer than the time-out."""
        return now - self.last_frame > self.timeout

    def is_disputed(self, now: float) -> bool:
        """Return whether readings are disputed (rule 3), of labels that still come."""
        labels = [label for label, each in self.series.items() if each.is_disputed]
        is_any = any(self.comes(label, now) for label in labels)
        return is_any or self.identity.is_disputed

    def comes(self, label: str, now: float) -> bool:
        """Return whether a label has come lately, trusted or not."""
        within = AGREE_WITHIN if label in REGISTER_OF else KEEP_FAST
        return now - self.seen.get(label, -math.inf) <= within

    def known(self, now: float) -> Groups:
        """Return the trusted groups that were read lately (rule 6), by label."""
        identity = self.identity.trusted
        if identity is None or self.identity.is_disputed or self.is_silent(now):
            return {}
        groups = {identity.label: identity}
        for label, series in self.series.items():
            trusted = series.trusted
            is_late = now - series.read_time > series.keep  # or none is trusted
            if not is_late and not series.is_disputed:
                groups[label] = trusted[label] if label in REGISTER_OF else trusted
        return groups

    def take(self, frame: Frame, now: float) -> bool:
        """Apply the rules to a frame that ended at `now`; return whether it is ours."""
        groups = frame.groups
        if not self._take_identity(groups, now):
            self.implausible += len(groups)
            return False
        self._note_frame(groups, now)
        for label, group in groups.items():
            series = self.series.get(label)
            # The fast way, for a label that stands still: decode_group()'s cache
            # returns the same object.  It saves a tenth of the guard's time.
            if series is not None and series.trusted is group:
                series.trust(group, now)
            elif label in ALONE:
                self._take_label(series or self._new_series(label), group, now)
        for labels in REGISTERS:
            if labels[0] in groups:
                self._take_register(labels, frame, now)
        return True

    def _note_frame(self, groups: Groups, now: float) -> None:
        if self.is_silent(now) or self.frames == 0:
            self.began = now
        self.last_frame = now
        self.frames += 1
        self.seen.update(dict.fromkeys(groups, now))
        self.latest.update(groups)

    def _take_identity(self, groups: Groups, now: float) -> bool:
        """Take the identity of a frame; return whether the frame is ours (rule 4)."""
        identity = self.identity
        group = groups.get("ADCO") or groups.get("ADSC")
        if group is None:
            is_lately = now - identity.read_time <= IDENTITY_LASTS
            return is_lately and self._last_identity == identity.trusted
        self._last_identity = group
        identity.take(group, now)
        # Until an identity is trusted, the owner is the last one.
        owner = identity.trusted or group
        if owner != self._owner:
            self._begin_meter(owner)
        return group == owner

    def _take_label(self, series: Series, group: Group, now: float) -> None:
        kind = KNOWN_LABELS[group.label].kind
        if kind.is_at_once or (kind is POWER and self._is_sure(group, now)):
            series.trust(group, now)
        elif not series.take(group, now):
            self.implausible += 1

    def _is_sure(self, group: Group, now: float) -> bool:
        """Return whether a power is 0, or matches the last currents (rule 5)."""
        power = int(group.data)
        currents = [self.series[label] for label in CURRENTS & self.series.keys()]
        fresh = [each for each in currents if now - each.read_time <= CURRENT_LASTS]
        expected = MAINS_VOLTS * sum(int(each.trusted.data) for each in fresh)
        return power == 0 or (bool(fresh) and is_near(power, expected, len(fresh)))

    def _take_register(self, labels: tuple[str, ...], frame: Frame, now: float) -> None:
        series = self.series.get(labels[0]) or self._new_series(labels[0])
        if labels is EAST_AND_EASF:
            reading = balanced_reading(frame, self.latest)
            if reading is None and frame.groups.keys() >= set(EAST_AND_EASF):
                self.implausible += 1
                self.unbalanced_time = now
        else:
            reading = reading_in(frame.groups, labels)
        if reading is not None and not series.take(reading, now):
            self.implausible += 1

    def _new_series(self, label: str) -> Series:
        """Add a series for a label, the same for each label of a register."""
        kind = KNOWN_LABELS[label].kind
        keep = max(KEEP, self.timeout) if kind.keep == KEEP else kind.keep  # rule 6
        classes = {POWER: PowerSeries, INDEX: RegisterSeries}
        series = classes.get(kind, Series)(kind.is_lasting, keep)
        labels = REGISTER_OF.get(label, [label])
        self.series.update(dict.fromkeys(labels, series))
        return series


######## Rebuild: trusted groups in, frames out, for the relay #########################


class Rebuilder:
    """Rebuilds the frames of one meter, and of no other, out of trusted groups.

    Each frame of the meter, even a short frame with an alert, gives a frame of all that
    is known.  But while a label is awaited there is none, nor while no values are
    served, see relay_view(): Domoticz stores 0 for an index that its first frame lacks.
    """

    ALL_COME_WITHIN = 60  # seconds, unless an undamaged frame has shown all labels
    AWAITED_WITHIN = 120  # seconds; later only the injected energy is awaited
    ESSENTIAL = frozenset(labels_of(IDENTITY, CONTRACT))  # two labels of each mode

    def __init__(self) -> None:
        self._order: list[str] = []  # the meter's labels, in the order of its frames
        self._all_have_come = False  # an undamaged frame has shown the meter's labels

    def take(self, frame: Frame, guard: Guard, now: float) -> list[Group]:
        """Return the trusted groups for a frame of ours; empty: none is to be sent."""
        self._learn(frame)
        known = guard.known(now)
        if self._is_awaiting(known, guard, now):
            return []
        return [known[label] for label in self._order if label in known]

    def _is_awaiting(self, known: Groups, guard: Guard, now: float) -> bool:
        """Return whether to wait for labels: they may come, or are not trusted yet."""
        # A meter that injects sends both: wait for EAIT for ever.
        if guard.comes("SINSTI", now) and "EAIT" not in known:
            return True
        seconds = now - guard.began
        if seconds < self.ALL_COME_WITHIN and not self._all_have_come:
            return True
        awaited = set(self._order).difference(known, ALERTS)  # alerts: they ended
        is_early = seconds < self.AWAITED_WITHIN
        return is_early and any(guard.comes(label, now) for label in awaited)

    def _learn(self, frame: Frame) -> None:
        """Learn the labels of a frame; a frame that lacks none gives the order."""
        labels = list(frame.groups)
        if set(self._order).difference(labels, ALERTS):  # it lacks some
            self._order = merged(self._order, labels)  # the known order wins
            return
        self._order = merged(labels, self._order)  # its order wins
        # A frame without contract is short; a frame without identity has lost groups.
        has_both = len(frame.groups.keys() & self.ESSENTIAL) == 2
        if has_both and frame.whole and not frame.damaged:
            self._all_have_come = True


def merged(order: list[str], labels: list[str]) -> list[str]:
    """Return an order with other labels added, each behind the label it follows."""
    result = list(order)
    place = 0
    for label in labels:
        if label not in result:
            result.insert(place, label)
        place = result.index(label) + 1
    result.sort(key=lambda label: label not in IDENTITIES)  # the identity first
    return result


######## Translate: trusted labels in, the 31 fields of the Eco-Devices out ############

# The tags of teleinfoN.xml without their prefix T1_ or T2_, in the device's order.
# PPAP is the firmware's misspelling of PAPP, and a copy of it.
FIELDS = (
    "ADCO OPTARIF ISOUSC BASE HCHC HCHP EJPHN EJPHPM BBRHCJB BBRHPJB BBRHCJW BBRHPJW"
    " BBRHCJR BBRHPJR PEJP PTEC DEMAIN IINST IINST1 IINST2 IINST3 ADPS IMAX IMAX1"
    " IMAX2 IMAX3 PPAP PAPP HHPHC MOTDETAT PPOT"
).split()
# The tags that are also labels of historic mode, with the same data.
SAME_TAGS = "ADCO OPTARIF ISOUSC PEJP PTEC DEMAIN PAPP HHPHC MOTDETAT".split()
NEEDED = ["ADCO", "OPTARIF", "ISOUSC", "PTEC", "PAPP"]  # and the tariff's indexes
NOTHING = "----"
# An input without a meter, as the device shows it.  It also gives each tag's type.
EMPTY: Fields = {
    **dict.fromkeys(FIELDS, 0),
    "ADCO": "0",
    "OPTARIF": NOTHING,
    "PTEC": NOTHING,
    "DEMAIN": NOTHING,
    "HHPHC": "0",
    "MOTDETAT": "000000",
}
LOWEST_IMAX = 1  # A: Jeedom takes an IMAX of 0 for an input without a meter
MOST_AMPERES = {1: 90, 3: 60}  # by number of phases: the limit of every Linky
# The value of PEJP while a moving peak (EJP's expensive hours) is announced.
NOTICE_MINUTES = 30


class Period(NamedTuple):
    """A period of a tariff."""

    tag: str  # the tag of its index
    name: str  # for the user


PERIODS = {  # by PTEC
    "TH..": Period("BASE", "Toutes heures"),
    "HC..": Period("HCHC", "Heures creuses"),
    "HP..": Period("HCHP", "Heures pleines"),
    "HN..": Period("EJPHN", "Heures normales"),
    "PM..": Period("EJPHPM", "Pointe mobile"),
    "HCJB": Period("BBRHCJB", "Heures creuses, jour bleu"),
    "HPJB": Period("BBRHPJB", "Heures pleines, jour bleu"),
    "HCJW": Period("BBRHCJW", "Heures creuses, jour blanc"),
    "HPJW": Period("BBRHPJW", "Heures pleines, jour blanc"),
    "HCJR": Period("BBRHCJR", "Heures creuses, jour rouge"),
    "HPJR": Period("BBRHPJR", "Heures pleines, jour rouge"),
}


class Tariff(NamedTuple):
    """A tariff that the device knows."""

    option: str  # OPTARIF
    name: str  # for the user
    # The PTEC of each of the ten indexes of standard mode.  An index that the tariff
    # does not use may hold the energy of a former contract.  Its energy is added to an
    # index of this tariff, so that all add up to EAST: HC adds EASF03 to HCHC.
    numbered: tuple[str, ...]
    periods: tuple[str, ...]  # the PTEC of each period
    indexes: tuple[str, ...]  # the tag of the index of each period


def tariff_with(option: str, name: str, *numbered: str) -> Tariff:
    """Return a tariff, by its ten numbered indexes."""
    periods = tuple(dict.fromkeys(numbered))
    indexes = tuple(PERIODS[ptec].tag for ptec in periods)
    return Tariff(option, name, numbered, periods, indexes)


# Of HC, odd indexes are assumed to be cheap, as in all known calendars.
COLOURED = ("HCJB", "HPJB", "HCJW", "HPJW", "HCJR", "HPJR")
BASE = tariff_with("BASE", "Base", *["TH.."] * 10)
HC = tariff_with("HC..", "Heures creuses", *["HC..", "HP.."] * 5)
EJP = tariff_with("EJP.", "EJP", "HN..", "PM..", *["HN.."] * 8)
TEMPO = tariff_with("BBR(", "Tempo", *COLOURED, *["HCJB", "HPJB"] * 2)
# By the first three characters of OPTARIF, because the last may vary.
TARIFFS = {
    "BAS": BASE,
    "HC.": HC,
    "EJP": EJP,
    "BBR": TEMPO,
    "---": BASE,  # OPTARIF of EMPTY: an input without a meter is shown as Base
}
NO_TARIFF = tariff_with("", "")


def tariff_of(option: str) -> Tariff:
    """Return the tariff of an OPTARIF; NO_TARIFF if it is empty."""
    return TARIFFS.get(option[:3], NO_TARIFF)


def indexes_of(fields: Fields) -> Fields:
    """Return the indexes of the tariff, Wh, by tag, from fields that are all known."""
    return {tag: fields[tag] for tag in tariff_of(fields["OPTARIF"]).indexes}


def name_of_tariff(fields: Fields) -> str:
    """Return the tariff's name for the user, as "Tempo (BBR()".

    It stays the same if OPTARIF's last character, the Tempo programme, changes.
    """
    tariff = tariff_of(fields["OPTARIF"])
    return f"{tariff.name} ({tariff.option})"


def number_of(labels: Labels, *names: str) -> int | None:
    """Return the value of the first of these labels that is known, as a number."""
    for name in names:
        if name in labels:
            return int(labels[name])
    return None


def phases_of(labels: Labels) -> tuple[str, ...]:
    """Return the suffix of each phase: 1, 2, 3; an empty suffix for a single phase."""
    found = THREE_PHASE_LABELS & labels.keys()
    if len(found) > 1:
        return ("1", "2", "3")
    return ("",)


def fill(known: Fields, indexes: tuple[str, ...]) -> Fields:
    """Return the 31 fields, from the known fields; indexes: tags of the tariff.

    A field that is not known is None if it is needed, otherwise it is as in EMPTY.
    While one field is None, nothing is served.
    """
    needed = dict.fromkeys((*NEEDED, *indexes))  # None
    return {**EMPTY, **needed, **known}


def labels_of_current(labels: Labels) -> list[str]:
    """Return the label of the current of each phase."""
    phases = phases_of(labels)
    if "ADSC" in labels:  # in standard mode a single phase has a number, too
        return ["IRMS" + (phase or "1") for phase in phases]
    return ["IINST" + phase for phase in phases]


def numbers_of(labels: Labels, names: Iterable[str]) -> list[int]:
    """Return the value of each of these labels as a number, 0 if it is not known."""
    return [number_of(labels, name) or 0 for name in names]


def phase_fields(
    phases: tuple[str, ...], currents: list[int], maxima: list[int]
) -> Fields:
    """Return IINST and IMAX, with and without suffix, for the values of each phase.

    A single phase has its values in IINST1 and IMAX1 as well as in IINST and IMAX.  The
    other fields stay 0, as in EMPTY: IMAX2 or IINST2 would mean three phases.
    """
    fields: Fields = {}
    for phase, current, maximum in zip(phases, currents, maxima):
        fields["IINST" + phase] = current
        fields["IMAX" + phase] = maximum or LOWEST_IMAX
    if "" in phases:
        fields["IINST1"] = fields["IINST"]
        fields["IMAX1"] = fields["IMAX"]
    return fields


def translate_historic(labels: Labels) -> Fields:
    """Return the 31 fields of a historic-mode meter; a field not known yet is None.

    Most are taken unchanged from the labels.  The exceptions: IINST and IMAX (by
    phase), ADPS (the highest alert), PPOT (hexadecimal), OPTARIF (some meters send EJP
    and a space), PEJP (0 while the peak runs), PTEC (not known while it is of another
    tariff).
    """
    tariff = tariff_of(labels.get("OPTARIF", ""))
    # Leave out other indexes: the guard knows those of a former contract for a while.
    indexes = tariff.indexes
    tags = [tag for tag in (*SAME_TAGS, *indexes) if tag in labels]
    fields = {tag: type(EMPTY[tag])(labels[tag]) for tag in tags}  # as in EMPTY
    phases = phases_of(labels)
    currents = numbers_of(labels, labels_of_current(labels))
    maxima = numbers_of(labels, ["IMAX" + phase for phase in phases])
    fields.update(phase_fields(phases, currents, maxima))
    fields["ADPS"] = max(numbers_of(labels, OVERLOADS))
    if "PPOT" in labels:
        fields["PPOT"] = int(labels["PPOT"], 16)
    if tariff is EJP:
        fields["OPTARIF"] = EJP.option
    if fields.get("PTEC") == "PM..":
        fields["PEJP"] = 0  # what was announced runs
    if fields.get("PTEC") not in tariff.periods:
        # Either is not known, or the contract has just changed: PTEC is new, OPTARIF is
        # still to be confirmed.
        fields["PTEC"] = None
    return fill(fields, indexes)


# The values of DEMAIN, as STGE numbers the colours.
TOMORROW = (NOTHING, "BLEU", "BLAN", "ROUG")


class StatusRegister(NamedTuple):
    """STGE, the status register of standard mode (Enedis-NOI-CPT_54E 6.2.3.14)."""

    overload: bool  # bit 7: the power is above the subscribed power
    running_index: int  # bits 10 to 13, plus one: a number as NTARF, 1 to 16
    tomorrow: int  # bits 26 and 27: the number of a colour in TOMORROW
    moving_peak: bool  # bits 28 and 29: a moving peak is announced, or runs

    @classmethod
    def of(cls, stge: str) -> StatusRegister:
        """Return the register of eight hexadecimal digits."""
        bits = int(stge, 16)
        return cls(
            overload=bool((bits >> 7) & 1),
            running_index=((bits >> 10) & 15) + 1,
            tomorrow=(bits >> 26) & 3,
            moving_peak=bool((bits >> 28) & 3),
        )


def text_of(labels: Labels, label: str) -> str:
    """Return a text of standard mode in capitals, with single spaces, not padded."""
    return " ".join(labels.get(label, "").upper().split())


class Contract(NamedTuple):
    """A contract of standard mode, or a family of contracts."""

    pattern: str  # of NGTF, as text_of() returns it
    tariff: Tariff
    period_label: str  # the label that gives the period: NTARF or LTARF
    used: int  # number of indexes in use, for --check; ten if it is not known


# A name with a word of cheap or dear hours.  The part in (?!...) leaves out each name
# that merely contains TEMPO, EJP or POINTE: such a contract has other indexes.
DAY_AND_NIGHT = r"(?!.*(TEMPO|EJP|POINTE)).*(\bH[CP]\b|CREUSE|PLEINE|WEEK.?END).*"
# Four labels decide which index is served as which, and the period:
#     NGTF           gives the contract: the first pattern that matches
#     NTARF, STGE    give the number of the running index, hence the period
#     LTARF          gives the period in words: only for contracts whose numbers are not
#                    known (period_label is LTARF)
UNKNOWN = Contract(".*", BASE, "NTARF", 10)
# Behind each row: the capture of .ci/captures, or the project, that has the name.
CONTRACTS = (
    Contract("BASE", BASE, "NTARF", 1),  # standard-1ph-base-1
    Contract("PRODUCTEUR", BASE, "NTARF", 10),  # standard-1ph-prod-1
    Contract("TEMPO", TEMPO, "NTARF", 6),  # standard-3ph-tempo-1
    Contract("EJP", EJP, "NTARF", 2),  # NicolasBernaerts/tasmota
    Contract("HC|H PLEINE/CREUSE", HC, "NTARF", 2),  # standard-1ph-hphc-1 and 2
    Contract("HC ET WEEK.?END", HC, "NTARF", 3),  # standard-1ph-hc-et-week-end-1
    Contract("HC SEM WE.*", HC, "NTARF", 6),  # standard-1ph-hc-sem-we-mercr-1
    Contract("SEM WE.*", HC, "NTARF", 10),  # Koenkk/zigbee-herdsman-converters, lixee
    Contract("ZEN (FLEX|ESTIVAL)", HC, "LTARF", 10),  # lixee; EDF's offers
    # HC-12H30 (tasmota), H SUPER CREUSES (lixee), and others by their words.
    Contract(DAY_AND_NIGHT, HC, "LTARF", 10),
    UNKNOWN,
)


def contract_of(labels: Labels) -> Contract | None:
    """Return the contract of a standard-mode meter; None: NGTF is not known yet."""
    if "NGTF" not in labels:
        return None
    name = text_of(labels, "NGTF")
    # UNKNOWN, the last row, matches every name.
    return next(row for row in CONTRACTS if re.fullmatch(row.pattern, name))


# A period consists of hours, in the first two characters of its PTEC, and perhaps of a
# colour, in the last; a dot is no colour.  These are the words for them, anywhere in
# LTARF.  An empty pattern is in any text.
HOURS = {
    "TH": "",  # Base has no other period
    "HC": r"\bHS?C\b|CREUSE|WEEK.?END",  # HSC: heures super creuses
    "HP": r"\bHP\b|PLEINE|POINTE",
    "HN": "^(?!.*POINTE).",  # some text without this word
    "PM": "POINTE",
}
COLOURS = {".": "", "B": "BLEU", "W": "BLAN", "R": "ROUG"}


def can_mean(ltarf: str, ptec: str) -> bool:
    """Return whether the words of LTARF, as of text_of(), are those of a period."""
    patterns = (HOURS[ptec[:2]], COLOURS[ptec[-1]])
    return all(re.search(pattern, ltarf) for pattern in patterns)


@functools.lru_cache(maxsize=64)  # most frames repeat
def period_in_words(tariff: Tariff, ltarf: str) -> str | None:
    """Return the PTEC that the words of LTARF name; None: they name none, or two."""
    named = [ptec for ptec in tariff.periods if can_mean(ltarf, ptec)]
    return named[0] if len(named) == 1 else None


def standard_period(contract: Contract, labels: Labels) -> str | None:
    """Return the PTEC of a standard-mode meter; None: it is not known.

    Prefer the period of the running index: some meters send an old LTARF.  Prefer
    LTARF's words if the contract is read by its words.
    """
    tariff = contract.tariff
    by_number = running_period(tariff, labels)
    by_words = period_in_words(tariff, text_of(labels, "LTARF"))
    if contract.period_label == "LTARF":
        return by_words or by_number
    return by_number or by_words


def running_period(tariff: Tariff, labels: Labels) -> str | None:
    """Return the PTEC of the index that grows, by NTARF or STGE; None: not known."""
    periods = dict(enumerate(tariff.numbered, 1))
    ptec = periods.get(number_of(labels, "NTARF") or 0)  # no index is number 0
    if ptec is None and "STGE" in labels:
        ptec = periods.get(StatusRegister.of(labels["STGE"]).running_index)
    return ptec


def standard_indexes(tariff: Tariff, labels: Labels) -> Fields:
    """Return the tariff's indexes; the guard knows EAST and the EASF together."""
    if "EAST" not in labels:
        return {}
    if tariff is BASE:  # the sum of the EASF may be another by 1 Wh
        return {"BASE": int(labels["EAST"])}
    sums: Fields = dict.fromkeys(tariff.indexes, 0)
    for label, ptec in zip(EASF, tariff.numbered):
        sums[PERIODS[ptec].tag] += int(labels[label])
    return sums


def label_of_standard_power(labels: Labels) -> str:
    """Return the label of the drawn power in standard mode."""
    is_first_version = labels.get("VTIC") == "01"
    return "SINST1" if is_first_version and "SINSTS" not in labels else "SINSTS"


def translate_standard(labels: Labels) -> Fields:
    """Return the 31 fields of a standard-mode meter; a field not known yet is None."""
    register = StatusRegister.of(labels.get("STGE", "0"))
    phases = phases_of(labels)
    currents = numbers_of(labels, labels_of_current(labels))
    maxima = []
    for phase in phases:
        power = number_of(labels, "SMAXSN" + phase, "SMAXN" + phase) or 0
        maxima.append(round(power / MAINS_VOLTS))
    fields: Fields = {
        "ADCO": labels.get("ADSC"),
        "DEMAIN": TOMORROW[register.tomorrow],
        "PAPP": number_of(labels, label_of_standard_power(labels)),
        **phase_fields(phases, currents, maxima),
    }
    if "PREF" in labels:  # kVA
        va_per_phase = 1000 * int(labels["PREF"]) / len(phases)
        fields["ISOUSC"] = round(va_per_phase / CONTRACT_VOLTS)
    if register.overload:
        fields["ADPS"] = max(currents)  # the current, as in historic mode
    tariff = NO_TARIFF
    contract = contract_of(labels)
    if contract is not None:
        tariff = contract.tariff
        fields["OPTARIF"] = tariff.option
        fields["PTEC"] = standard_period(contract, labels)
        fields.update(standard_indexes(tariff, labels))
    if register.moving_peak and fields.get("PTEC") != "PM..":  # it does not run yet
        fields["PEJP"] = NOTICE_MINUTES
    return fill(fields, tariff.indexes)


INJECTION_LABELS = ("EAIT", "SINSTI")


def lacking_for_injection(labels: Labels) -> list[str]:
    """Return the labels without which no injection can be shown."""
    return [label for label in INJECTION_LABELS if label not in labels]


def translate_injection(drawn: Fields, labels: Labels) -> Fields | None:
    """Return the fields of an input that shows injected energy; None: there is none.

    EAIT is the injected energy, SINSTI its power.  `drawn` are the fields of the input
    that shows the drawn energy of the same meter.
    """
    if lacking_for_injection(labels):
        return None
    power = int(labels["SINSTI"])
    phases = phases_of(labels)
    current = round(power / MAINS_VOLTS / len(phases))
    # The maxima, as the subscription, are the same for both directions.
    maxima = [drawn["IMAX" + phase] for phase in phases]
    return {
        **EMPTY,
        "ADCO": drawn["ADCO"],
        "OPTARIF": BASE.option,
        "ISOUSC": drawn["ISOUSC"],
        "BASE": int(labels["EAIT"]),
        "PTEC": "TH..",
        "PPAP": power,
        "PAPP": power,
        **phase_fields(phases, [current] * len(phases), maxima),
    }


def phase_count(fields: Fields) -> int:
    """Return the number of phases, 1 or 3."""
    return 3 if fields["IMAX2"] else 1  # never 0 on three phases: at least LOWEST_IMAX


######## Meter: the parts above together ###############################################

HISTORIC = "historic"
STANDARD = "standard"
MODES = {"ADCO": HISTORIC, "ADSC": STANDARD}  # by the label of the identity
# The labels of standard mode that give a tag.  Not here: the tags of indexes.
LABELS_OF_TAG = {
    "ADCO": ("ADSC",),
    "OPTARIF": ("NGTF",),
    "ISOUSC": ("PREF",),
    "PTEC": ("NTARF",),  # other labels may give it, too
}
# Not SINST1: of three phases, it is the power of the first alone.
DRAWN_POWERS = ("PAPP", "SINSTS")
WAIT_FOR_SUBSCRIPTION = 15  # frames; it comes in each frame, unless always damaged


def labels_needed(tag: str, mode: str | None, labels: Labels) -> tuple[str, ...]:
    """Return the labels that give a tag in this mode."""
    if mode != STANDARD:
        return (tag,)  # the tags of historic mode are its labels
    if tag == "PAPP":
        return (label_of_standard_power(labels),)
    # An index of standard mode is a sum, and needs all of them.
    return LABELS_OF_TAG.get(tag, EAST_AND_EASF)


class View(NamedTuple):
    """What a Meter serves, or lacks, at one moment."""

    time: float  # when its last frame came; -inf: there was no frame yet
    mode: str | None  # HISTORIC or STANDARD; None: not known yet
    labels: Labels  # the trusted labels; empty while the meter is silent
    fields: Fields | None  # the 31 fields to serve; None: some are not known
    missing: list[str]  # the labels without which `fields` is None
    injection: Fields | None  # the 31 fields of the injected energy, if there is any
    is_disputed: bool  # the meter, its contract or an index seems to be another
    unbalanced_time: float  # when EASF01 to EASF10 last did not add up to EAST
    relayed: bytes = b""  # the frame for the relay; empty: none yet


class Meter:
    """One TIC input: decoder, guard and translation; stale after `timeout` seconds."""

    def __init__(self, timeout: float = 30.0, is_relayed: bool = False) -> None:
        self.timeout = timeout
        self.decoder = Decoder()
        self.guard = Guard(timeout)
        self._is_relayed = is_relayed
        self._rebuilder = Rebuilder()
        self._last_byte = -math.inf  # when the last bytes came
        self._can_inject = False  # this meter has shown that currents may flow out

    def feed(self, data: bytes, now: float) -> list[View]:
        """Take bytes that came at `now` seconds.

        Return a view for each frame of this meter that ends in them.
        """
        self._last_byte = now
        return self._take(self.decoder.feed(data), now)

    def disconnected(self) -> list[View]:
        """Note that the link ended; use the complete groups of the unfinished frame."""
        return self._take(self.decoder.disconnected(), self._last_byte)

    def _take(self, frames: list[Frame], now: float) -> list[View]:
        views = []
        for frame in frames:
            if self.guard.take(frame, now):
                if self.guard.frames == 1:  # of a new meter
                    self._can_inject = False
                    self._rebuilder = Rebuilder()
                self._can_inject = self._can_inject or can_inject(frame.groups)
                view = self.view(now)
                if self._is_relayed:
                    groups = self._rebuilder.take(frame, self.guard, now)
                    view = relay_view(view, groups)
                views.append(view)
        return views

    def fields(self, now: float) -> Fields | None:
        """Return the 31 fields to serve, tag -> int or str; None: some are not known.

        For programs that use a Meter alone; ecolinky takes the views of feed().
        """
        return self.view(now).fields

    def counts(self) -> Counts:
        """Return what has been counted since the start."""
        return Counts(**self.decoder.counted)._replace(
            implausible=self.guard.implausible
        )

    def labels(self, now: float) -> Labels:
        """Return the trusted labels; empty while the meter is silent."""
        return {label: group.data for label, group in self.guard.known(now).items()}

    def view(self, now: float) -> View:
        """Return the values to serve now, or the labels that they need."""
        labels = self.labels(now)
        mode = next((MODES[label] for label in MODES if label in self.guard.seen), None)
        translate = translate_standard if mode == STANDARD else translate_historic
        fields = translate(labels)
        self._amend(fields, mode, labels, now)
        needed = [tag for tag in FIELDS if tag != "PPAP"]  # PPAP is a copy
        unknown = [tag for tag in needed if fields[tag] is None]
        return View(
            time=self.guard.last_frame,
            mode=mode,
            labels=labels,
            fields=None if unknown else fields,
            missing=self._missing(unknown, mode, labels, now),
            injection=None if unknown else translate_injection(fields, labels),
            is_disputed=self.guard.is_disputed(now),
            unbalanced_time=self.guard.unbalanced_time,
        )

    def _missing(
        self, tags: list[str], mode: str | None, labels: Labels, now: float
    ) -> list[str]:
        """Return the labels that are missing for these tags.

        The list is empty if the period's label is known, but names no period of the
        tariff: see why_incomplete().
        """
        needed = [label for tag in tags for label in labels_needed(tag, mode, labels)]
        missing = [label for label in dict.fromkeys(needed) if label not in labels]
        # If some do not come at all, name these alone.  Without PTEC, for example,
        # indexes come, but are not trusted (rule 2).
        do_not_come = [label for label in missing if not self.guard.comes(label, now)]
        return do_not_come or missing

    def _amend(
        self, fields: Fields, mode: str | None, labels: Labels, now: float
    ) -> None:
        """Replace the fields that the labels do not give, or would give wrongly.

        Each step uses the fields of the steps before it.
        """
        is_late = self.guard.frames > WAIT_FOR_SUBSCRIPTION
        # 0 A: the meter is not programmed yet.  Domoticz divides by ISOUSC, and would
        # keep "inf" percent for ever.
        if fields["ISOUSC"] == 0 or (fields["ISOUSC"] is None and is_late):
            fields["ISOUSC"] = MOST_AMPERES[phase_count(fields)]
        (power_label,) = labels_needed("PAPP", mode, labels)
        if fields["PAPP"] is None and self._is_lost(power_label, now):
            fields["PAPP"] = self._power_of_currents(fields, labels)
        if fields["PAPP"] == 0:
            # A current without power: the house injects.  Domoticz would take the
            # current for a drawn power.
            fields.update(IINST=0, IINST1=0, IINST2=0, IINST3=0)
        fields["PPAP"] = fields["PAPP"]

    def _is_lost(self, label: str, now: float) -> bool:
        """Return whether a label has had time to come, and does not."""
        has_had_time = now - self.guard.began > KEEP_FAST
        return has_had_time and not self.guard.comes(label, now)

    def _power_of_currents(self, fields: Fields, labels: Labels) -> int | None:
        """Return the drawn power, VA, of the currents; None: they do not give it.

        Old meters send no power, and damage can hit the same power in each frame.
        """
        needed = set(labels_of_current(labels))
        if "ADSC" in labels:
            needed.add("URMS1")  # it comes right behind the last current
        if not labels.keys() >= needed:
            return None
        injected = number_of(labels, "SINSTI")
        if injected:
            return 0
        if self._can_inject and injected is None:
            return None  # the currents may flow out
        amperes = [fields["IINST" + phase] for phase in ("1", "2", "3")]
        return int(MAINS_VOLTS * sum(amperes))


def can_inject(groups: Groups) -> bool:
    """Return whether a frame shows that the house can inject.

    It has a label of injection, or a drawn power of 0 beside a current.
    """
    if not groups.keys().isdisjoint(INJECTION_LABELS):
        return True
    powers = [int(groups[label].data) for label in groups if label in DRAWN_POWERS]
    currents = [int(groups[label].data) for label in groups if label in CURRENTS]
    return 0 in powers and any(currents)


def relay_view(view: View, groups: list[Group]) -> View:
    """Return a view with the frame for the relay; only while values are served."""
    if view.fields is None or not groups:
        return view
    # Domoticz as a TIC reader crashes on Tempo without NTARF (TeleinfoBase.cpp).
    is_tempo = view.fields["OPTARIF"] == TEMPO.option
    if is_tempo and view.mode == STANDARD and "NTARF" not in view.labels:
        return view
    return view._replace(relayed=encode_frame(group.raw for group in groups))


######## Diagnosis: the causes of a bad link, in the user's words ######################

# The stations on the way of a value.  A reason names the station to look at.
LINKY = "linky"
ESP = "esp"
ECOLINKY = "ecolinky"
NO_STATION = ""  # nothing is to be repaired: wait


class Reason(NamedTuple):
    """Why no values are served, or how the link could be better."""

    station: str
    template: str  # of the cause: a sentence without capital letter and full stop
    remedy: str = ""  # the page begins a line at ", puis "
    words: tuple[str, ...] = ()  # in place of each %s of the template

    @property
    def kind(self) -> str:
        """What stays the same whatever the words."""
        return self.template + self.remedy

    @property
    def cause(self) -> str:
        """The sentence with its words."""
        return self.template % self.words

    def with_words(self, *words: str) -> Reason:
        """Return this reason with other words."""
        return self._replace(words=words)

    def __str__(self) -> str:
        """Return cause and remedy as one text, for the log."""
        return self.cause + (", " + self.remedy if self.remedy else "")


ALL_WELL = Reason(NO_STATION, "")
NO_FRAME_YET = Reason(NO_STATION, "ecolinky attend une première trame")
TO_BE_CONFIRMED = Reason(
    NO_STATION, "des trames arrivent, leurs valeurs attendent confirmation"
)

DISPUTED = Reason(
    NO_STATION,
    "le compteur ou son contrat a changé",
    "vérification pendant deux minutes",
)

# The connection.
AWAY = Reason(
    ESP,
    "l'ESP ne répond pas (éteint, hors Wi-Fi ou à une autre adresse)",
    "vérifier l'ESP, et la ligne host d'ecolinky.ini",
)
NOTHING_LISTENS = Reason(
    ESP,
    "l'ESP répond, mais rien n'écoute sur ce port",
    "vérifier le Serial Server d'ESPEasy, puis host et port dans ecolinky.ini",
)
UNKNOWN_NAME = Reason(
    ESP, "le nom de l'ESP est inconnu sur ce réseau", "mettre son adresse IP"
)
CUT_BY_ESP = Reason(
    ESP,
    "l'ESP a coupé la connexion",
    "un autre programme le lit peut-être, sinon vérifier son alimentation",
)
EVICTED = Reason(
    ESP,
    "un autre programme lit sans doute l'ESP, qui ne sert qu'un lecteur",
    "arrêter cet autre programme (nc, second ecolinky, autre domotique), sinon vérifier"
    " l'alimentation de l'ESP",
)
# ESPEasy's page answers on port 80, the Serial Server usually on 8888.
CHECK_HOST_AND_PORT = "vérifier host et port (8888, pas 80)"
NO_BYTE = Reason(
    ESP,
    "l'ESP est connecté, mais aucun octet n'en vient",
    CHECK_HOST_AND_PORT + ", mettre RX Receive Timeout à 0 dans ESPEasy, puis vérifier"
    " la broche et les fils",
)
CLOSED_AT_ONCE = Reason(
    ESP,
    "la connexion se ferme sans un octet de TIC, ce n'est pas le Serial Server, ou un"
    " autre programme le lit",
    CHECK_HOST_AND_PORT + ", arrêter cet autre programme",
)
SILENT = Reason(
    ESP, "plus aucun octet ne vient de l'ESP", "vérifier son alimentation et son Wi-Fi"
)
OFFLINE = Reason(
    ECOLINKY,
    "la machine d'ecolinky n'est pas sur le réseau",
    "vérifier son câble ou son Wi-Fi",
)

# Bytes that are not TIC.
NO_INTACT_GROUP = Reason(
    LINKY, "aucun groupe n'arrive intact", "vérifier la vitesse, 7E1, puis le montage"
)
ABANDONED = Reason(
    LINKY,
    "le compteur interrompt chacune de ses trames (EOT)",
    "si cela dure appeler Enedis",
)
REPLACED = Reason(
    ESP,
    "l'ESP remplace des espaces ou des fins de ligne",
    "dans ESPEasy vider Replace spaces et Replace newlines",
)
TELNET = Reason(
    ESP, "l'ESP semble parler telnet", "régler le serveur série en TCP brut (raw)"
)
SET_THE_SPEED = (
    "dans ESPEasy mettre 1200 en historique ou 9600 en standard (115200 est sa valeur"
    " d'usine), et 7E1"
)
# A speed that is much too high reads the same byte again and again.
STUCK = Reason(
    ESP,
    "toujours le même octet arrive, la vitesse est fausse ou la ligne bloquée",
    SET_THE_SPEED + ", puis échanger les broches 3 et 4 de l'optocoupleur, vérifier G"
    " et 3V3",
)
NOISE = Reason(
    ESP,
    "du bruit arrive au lieu de la TIC",
    SET_THE_SPEED + ", puis vérifier l'optocoupleur, puis échanger ses broches 3 et 4",
)
ABOVE_36_KVA = Reason(
    LINKY,
    "c'est un compteur de plus de 36 kVA (PME-PMI, Jaune)",
    "ecolinky ne le lit pas",
)
NOT_TIC = Reason(
    ESP,
    "du texte arrive, mais pas de TIC, ce n'est pas le Serial Server",
    CHECK_HOST_AND_PORT,
)

# Groups that are missing or damaged, or say nothing.
TO_BE_REPORTED = "à signaler sur la page GitHub d'ecolinky (Issues)"
NOT_ACTIVATED = Reason(
    LINKY,
    "le compteur n'envoie que son numéro, sa TIC n'est pas activée",
    "appeler Enedis ou le fournisseur",
)
OFTEN_DAMAGED = Reason(
    LINKY,
    "beaucoup de groupes sont abîmés",
    "vérifier l'optocoupleur et ses résistances",
)
# The template of a reason that names the missing labels, and the cause of their loss.
INCOMPLETE = "des groupes manquent (%s), %s"
NEVER_SENT = Reason(  # a cause within INCOMPLETE
    ESP,
    "aucun ou presque n'est abîmé",
    "dans ESPEasy mettre RX buffer size à 2048 ; si rien ne change, le compteur ne les"
    " envoie pas",
)
CUT_SHORT = Reason(
    ESP,
    "la fin des trames manque",
    "dans ESPEasy mettre RX Receive Timeout à 0, RX buffer size à 2048",
)
PERIOD_UNKNOWN = Reason(
    LINKY, "ce tarif a une période inconnue d'ecolinky (%s)", TO_BE_REPORTED
)
UNBALANCED = Reason(
    LINKY,
    "la somme des index (EASF) n'est pas le total (EAST), un groupe est faux",
    "vérifier l'optocoupleur et, dans ESPEasy, RX buffer size à 2048",
)
READ_AS_8N1 = Reason(ESP, "l'ESP lit en 8N1", "le mettre en 7E1 (rien n'est perdu)")
ESP_LOGS = Reason(
    ESP,
    "le journal de l'ESP se mêle à la TIC",
    "dans ESPEasy mettre Serial Log Level à None",
)

# Remarks: defects of a link that works, and changes of the meter.
UNKNOWN_CONTRACT = Reason(
    LINKY,
    "contrat « %s » inconnu d'ecolinky (LTARF « %s », NTARF « %s »), seul le total est"
    " transmis",
    TO_BE_REPORTED,
)
PHASE_UNKNOWN = Reason(
    LINKY, "le courant d'une phase n'arrive pas intact (%s), 0 est transmis"
)
SUBSCRIPTION_UNKNOWN = Reason(
    LINKY, "l'abonnement n'arrive pas intact (%s), le maximum du compteur est transmis"
)
DOES_NOT_INJECT = Reason(
    LINKY,
    "injection = yes, mais ce compteur n'envoie pas %s, rien n'est transmis sur"
    " second_port",
)
ADD_OR_DELETE = "dans Domoticz ajouter un nouveau matériel ou, demain, effacer ce jour"
CHANGED = Reason(LINKY, "%s a changé (avant %s, maintenant %s)", ADD_OR_DELETE)
JUMPED = Reason(
    LINKY,
    "l'index %s est passé de %s à %s Wh, compteur ou index remplacé",
    ADD_OR_DELETE,
)

# Errors of this machine, its ports and its files.
BUG = Reason(ECOLINKY, "erreur imprévue (%s)", TO_BE_REPORTED)
FAILED_CONNECTION = Reason(ESP, "la connexion échoue (%s)")
LINK_ERRORS = {
    errno.ECONNREFUSED: NOTHING_LISTENS,
    errno.EHOSTUNREACH: AWAY,
    errno.ENETUNREACH: OFFLINE,
}
SYSTEM_ERRORS = {
    errno.EADDRINUSE: "déjà pris",
    errno.EACCES: "interdit",
    errno.EADDRNOTAVAIL: "cette adresse n'est pas celle de cette machine",
    errno.ENOENT: "introuvable",
    errno.EISDIR: "est un dossier",
}

# A stream without an intact group may still hold labels, of either mode.  A label with
# its separator behind it proves that the ESP does not replace separators.
IN_STREAM = (b"ADCO|OPTARIF|ISOUSC|PTEC|PAPP", b"ADSC|NGTF|LTARF|EAST|SINSTS")
LABEL_IN_STREAM = re.compile(b"|".join(IN_STREAM))
GROUP_IN_STREAM = re.compile(b"(%b) |(%b)\t" % IN_STREAM)
# A single sign of these is enough.  Look for HTTP before the ESP8266's log: the header
# lines of HTTP have the same form.
SIGNS = (
    (re.compile(b"HTTP/[0-9]|SSH-[0-9]"), NOT_TIC),
    # Labels of meters above 36 kVA (PME-PMI, Jaune, ...); ADS is their identity.
    (re.compile(b"(CONTRAT|JAUNE|ADS|EA_s|PREAVIS)[ \t]"), ABOVE_36_KVA),
)
# IAC, then WILL, WONT, DO or DONT, then an option.
TELNET_COMMAND = re.compile(b"\xff[\xfb-\xfe][\x00-\x27]")
MUCH_TELNET = 0.05  # commands per byte
ESP_LOG_EVERY = 60  # bytes; if the log's form comes so often, it is no accident
MOSTLY_TEXT = 0.95  # share of the bytes
ALL_THE_SAME = 0.99  # share of the bytes
TOO_FEW = 4  # bytes: they say nothing; another client has taken the ESP8266
MUCH_DAMAGE = 0.05  # damaged groups per intact group
HOUR = 3600  # seconds
DAY = 24.0 * HOUR

MODE_NAMES = {HISTORIC: "historique", STANDARD: "standard", None: "inconnu"}


class LinkError(Exception):
    """The end of a connection, with its reason."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(str(reason))
        self.reason = reason


def diagnose(sample: bytes) -> Reason:
    """Diagnose a sample that is not empty, and holds no intact group."""
    text = sample.translate(DROP_PARITY_BIT)  # an ESP set to 8N1 keeps the bit
    for sign, reason in SIGNS:
        if sign.search(text):
            return reason
    if len(ESP_LOG.findall(text)) * ESP_LOG_EVERY >= len(text):
        return ESP_LOGS
    if not LABEL_IN_STREAM.search(text):
        return diagnose_without_label(sample, text)
    if not (GROUP_IN_STREAM.search(text) and re.search(b"[\r\n]", text)):
        return REPLACED
    is_abandoned = EOT in text and ETX not in text
    return ABANDONED if is_abandoned else NO_INTACT_GROUP


def diagnose_without_label(sample: bytes, text: bytes) -> Reason:
    """Diagnose a sample that holds no label; text: without the parity bits."""
    if len(TELNET_COMMAND.findall(sample)) > MUCH_TELNET * len(sample):
        return TELNET
    if max(Counter(sample).values()) > ALL_THE_SAME * len(sample):
        return STUCK
    characters = len(re.findall(rb"[ -~\t\r\n]", text))
    has_space = re.search(rb"\s", text) is not None
    if characters < MOSTLY_TEXT * len(sample) or not has_space:
        return NOISE
    return NOT_TIC


def reason_without_tic(reason: Reason, sample: bytes) -> Reason:
    """Return why a connection ended, if no TIC has ever come; sample: what came."""
    if not sample and reason == CUT_BY_ESP:
        return CLOSED_AT_ONCE
    if len(sample) < TOO_FEW:
        return reason
    diagnosis = diagnose(sample)
    # If the other side has closed it, or has fallen silent after a text, the bytes say
    # more than the reason.  Otherwise the reason says more.
    is_text = diagnosis in (NOT_TIC, ESP_LOGS)
    if reason == CUT_BY_ESP or (reason == SILENT and is_text):
        return diagnosis
    return reason


def reason_of(error: Exception) -> Reason:
    """Return why a connection ended, or could not be opened."""
    if isinstance(error, LinkError):
        return error.reason
    if isinstance(error, socket.gaierror):
        return UNKNOWN_NAME
    # From connecting: the Reader turns a time-out of reading into a LinkError.
    if isinstance(error, (socket.timeout, TimeoutError)):
        return AWAY
    if isinstance(error, ConnectionResetError):
        return CUT_BY_ESP
    if isinstance(error, OSError):
        unlisted = FAILED_CONNECTION.with_words(words_of(error))
        return LINK_ERRORS.get(error.errno or 0, unlisted)
    return BUG.with_words(repr(error))


def words_of(error: OSError) -> str:
    """Return the French words for an error of this machine's ports or files."""
    if isinstance(error, socket.gaierror):
        return "ce nom est inconnu"
    return SYSTEM_ERRORS.get(error.errno or 0, f"erreur {error.errno} du système")


def cause_of_loss(counts: Counts, labels: Labels) -> Reason:
    """Return why many groups are lost, and the remedy; ALL_WELL if few are lost.

    counts: of the last hour or minutes; labels: trusted now.
    Test the causes in this order: a cause also shows the symptoms of later causes.
    """
    if counts.spaces_replaced:
        return REPLACED
    is_often_damaged = counts.damaged > MUCH_DAMAGE * counts.groups
    if is_often_damaged and counts.esp_log > MUCH_DAMAGE * counts.frames:
        return ESP_LOGS
    # A frame that is cut off has at most one damaged group, the last.
    if lacks_end(labels) and counts.damaged <= counts.frames:
        return CUT_SHORT
    return OFTEN_DAMAGED if is_often_damaged else ALL_WELL


def lacks_end(labels: Labels) -> bool:
    """Return whether no label is known that comes at the end of a frame or near it."""
    last = ["MOTDETAT", "PRM"]
    if labels.get("VTIC") == "01":  # the first version ends with STGE
        last.append("STGE")
    return has_values(labels) and not any(label in labels for label in last)


def remarks_on(counts: Counts, view: View) -> list[Reason]:
    """Return the defects of a link that works, the most urgent first.

    counts: of the last hour.
    """
    labels = view.labels
    if not labels:
        return []
    remarks = []
    cause = cause_of_loss(counts, labels)
    if cause != ALL_WELL:
        remarks.append(cause)
    if counts.eight_bits:
        remarks.append(READ_AS_8N1)
    if counts.esp_log and cause != ESP_LOGS:
        remarks.append(ESP_LOGS)
    if contract_of(labels) is UNKNOWN:
        names = [labels.get(label, "").strip() for label in ("NGTF", "LTARF", "NTARF")]
        remarks.append(UNKNOWN_CONTRACT.with_words(*names))
    if view.fields is None:  # nothing is served, so nothing is replaced
        return remarks
    return remarks + remarks_on_replaced(labels)


def remarks_on_replaced(labels: Labels) -> list[Reason]:
    """Return the labels that are not known, and the values that replace them."""
    remarks = []
    unknown = [label for label in labels_of_current(labels) if label not in labels]
    if unknown:
        remarks.append(PHASE_UNKNOWN.with_words(", ".join(unknown)))
    subscription = "PREF" if "ADSC" in labels else "ISOUSC"
    if subscription not in labels:
        remarks.append(SUBSCRIPTION_UNKNOWN.with_words(subscription))
    return remarks


def why_incomplete(view: View, counts: Counts, is_unbalanced: bool) -> Reason:
    """Return why a meter's groups are not enough to serve values.

    counts: of the last minutes.
    is_unbalanced: in a recent frame the sum of the EASF was not EAST.
    """
    labels = view.labels
    if labels and not has_values(labels) and not counts.damaged:
        return NOT_ACTIVATED
    if is_unbalanced and "EAST" not in labels:
        return UNBALANCED
    if not view.missing:  # LTARF's words name no period, or PTEC is not of the tariff
        periods = [label for label in ("PTEC", "LTARF", "NTARF") if label in labels]
        words = [f"{label} « {labels[label].strip()} »" for label in periods]
        return PERIOD_UNKNOWN.with_words(", ".join(words))
    return why_missing(", ".join(view.missing), counts, labels)


def why_missing(missing: str, counts: Counts, labels: Labels) -> Reason:
    """Return why some groups do not come; counts: of the last minutes."""
    cause = cause_of_loss(counts, labels)
    if cause == ALL_WELL:
        # One damaged group in every other frame is few of all groups, but enough if it
        # is always the missing one.
        is_damaged = counts.damaged > counts.frames / 2
        cause = OFTEN_DAMAGED if is_damaged else NEVER_SENT
    # Reason.kind still differs, by the remedy: the Journal limits each alone.
    return cause._replace(template=INCOMPLETE, words=(missing, cause.cause))


def has_values(labels: Labels) -> bool:
    """Return whether the meter sends more than its identity."""
    return not labels.keys() <= set(IDENTITIES)


######## Link: one ESP8266, and how its connections end ################################


class Link:
    """The connections to one ESP8266: how they end, and bytes that are not TIC."""

    BRIEF = 60.0  # seconds; if the ESP closes earlier, another client may have come
    EVICTED_AFTER = 3  # brief connections in a row: another client takes them
    FLOOD = 65536  # bytes without a frame; no meter sends so many
    PAUSE = 3.0  # seconds; a meter makes none so long
    SAMPLE = 1024  # bytes, at most, that are kept for the diagnosis

    def __init__(self) -> None:
        self.connections = 0
        self.brief_connections = 0  # so many of the last connections were brief
        # Since the last frame, its first pause, or the beginning of the connection:
        self.sample = b""  # the end of the bytes
        self._byte_count = 0  # how many they are
        self._has_paused = False
        self._wait_began = -math.inf  # for a frame; claim_report() begins another wait
        self._connected_at = -math.inf
        self.last_byte = -math.inf  # when it came

    def hear(self, now: float) -> None:
        """Note that bytes come.

        What came before a pause is a cut frame: forget it.  Do so only once, or a link
        that stutters would never be reported.
        """
        if now - self.last_byte > self.PAUSE and not self._has_paused:
            self.restart_wait(now)
            self._has_paused = True
        self.last_byte = now

    def begin(self, now: float) -> None:
        """Note a new connection."""
        self.connections += 1
        self._connected_at = now
        self.restart_wait(now)

    def restart_wait(self, now: float) -> None:
        """Wait for the next frame, from now on."""
        self._wait_began = now
        self._has_paused = False
        self.sample = b""
        self._byte_count = 0

    def note_bytes(self, data: bytes) -> None:
        """Note bytes that ended no frame.

        Raises LinkError if they are too many: a new connection empties the buffers.
        """
        self.sample = (self.sample + data)[-self.SAMPLE :]
        self._byte_count += len(data)
        if self._byte_count > self.FLOOD:
            raise LinkError(diagnose(self.sample))

    def claim_report(self, patience: float, now: float) -> bool:
        """Return whether to report that no frame came for `patience` seconds.

        If so, the wait begins again.
        """
        if now - self._wait_began <= patience:
            return False
        self._wait_began = now
        return True

    def is_contested(self, now: float) -> bool:
        """Return whether another client takes the connections, perhaps this one too.

        After BRIEF seconds this connection has proved that nobody takes it.
        """
        is_young = now - self._connected_at < self.BRIEF
        return is_young and self.brief_connections >= self.EVICTED_AFTER

    def end(self, reason: Reason, now: float) -> None:
        """Note why the connection ended.

        An ESP8266 serves only its latest client: two clients close each other's
        connections.
        """
        if reason == CUT_BY_ESP and now - self._connected_at < self.BRIEF:
            self.brief_connections += 1
        else:
            self.brief_connections = 0


######## Journal: the log of an input ##################################################

# Faults that are logged even while values are served: two programs that evict each
# other go on for ever, and a bug should be reported.
URGENT = (EVICTED.kind, BUG.kind)
NOTHING_SERVED = " ; aucune valeur n'est transmise"
SERVED = "compteur %s, mode %s, tarif %s, ses valeurs sont transmises"
INJECTS = (
    " ; il injecte aussi (EAIT), pour le montrer mettre injection = yes dans"
    " [teleinfo2]"
)


class Limiter:
    """Lets a line of each kind pass once in so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._passed_at: dict[str, float] = {}  # by kind

    def claim(self, kind: str, now: float) -> bool:
        """Return whether a line of this kind is due; if so, record it as passed."""
        if now - self._passed_at.get(kind, -math.inf) < self._seconds:
            return False
        self._passed_at[kind] = now
        return True


Say = Callable[[int, str], None]  # logs a line; takes its level and its text


class Journal:
    """Logs a fault once an hour, a remark once a day, a change always.

    After values were served again, a fault is news: it is logged at once.
    """

    def __init__(self, say: Say) -> None:
        self._say = say
        self._faults = Limiter(HOUR)
        self._remarks = Limiter(DAY)
        self._served = ""  # the line that says what is served; empty: nothing is

    def fault(self, reason: Reason, now: float, is_serving: bool) -> None:
        """Log a fault as a warning once an hour, in between at level DEBUG.

        While values are served, log an urgent fault only.
        """
        if is_serving and reason.kind not in URGENT:
            return
        is_due = self._faults.claim(reason.kind, now)
        line = str(reason)
        if not is_serving:
            line += NOTHING_SERVED
            self._served = ""  # log the return of values
        self._say(logging.WARNING if is_due else logging.DEBUG, line)

    def remark(self, remarks: list[Reason], now: float) -> None:
        """Log remarks."""
        for remark in remarks:
            if self._remarks.claim(remark.kind, now):
                self._say(logging.WARNING, str(remark))

    def change(self, reason: Reason) -> None:
        """Log a change of the meter, its contract or an index."""
        self._say(logging.WARNING, str(reason))

    def serve(self, line: str) -> None:
        """Log what is served, unless the log already says it."""
        if line != self._served:
            self._served = line
            self._say(logging.INFO, line)
            self._faults = Limiter(HOUR)


######## Input: one meter, its link, its history and its day ###########################

# What input 2 shows: another meter, the injection of meter 1, or nothing.
METER = "meter"
INJECTION = "injection"
NO_INPUT = "none"

FRAME_LASTS = 2  # seconds, about
A_FEW_MINUTES = 3  # of the history: to find out why groups are missing now
JUMP_WH = 1000  # tolerance: a smaller jump is not worth a warning
METER_PARTS = ("le compteur", "le contrat")  # identity and tariff


class Minute(NamedTuple):
    """A complete minute."""

    power: int | None  # mean VA, below 0 if the house injected; None: not known
    is_cheap: bool  # it ended in cheap hours; False if no power came
    lost: int  # percent of its groups
    counts: Counts  # of the decoder, at the end of the minute


class History:
    """The last 24 hours, minute by minute.

    Minute number n begins at now = 60 n.
    """

    STEP = 60  # seconds
    STEPS = 1440  # in 24 hours

    def __init__(self, now: float) -> None:
        self._running = int(now // self.STEP)  # the number of the running minute
        self._minutes: deque[Minute] = deque(maxlen=self.STEPS)
        self._powers: list[int] = []  # VA, of the running minute
        self._is_cheap = False
        self._counts = Counts()  # of the decoder, latest
        self._counts_before = Counts()  # of the decoder, before the running minute

    def note_counts(self, counts: Counts, now: float) -> None:
        """Note the decoder's counts at `now`."""
        self._close_minutes(now)
        self._counts = counts

    def note_power(self, power: int, is_cheap: bool, now: float) -> None:
        """Add the power at `now` in VA, below 0 if the house injects."""
        self._close_minutes(now)
        self._powers.append(power)
        self._is_cheap = is_cheap

    def minutes(self, now: float) -> tuple[tuple[Minute, ...], float]:
        """Return the complete minutes, the oldest first, and when the last ended."""
        self._close_minutes(now)
        return tuple(self._minutes), self._running * self.STEP

    def last_hour(self, now: float) -> Counts:
        """Return the counts of the last hour: an older fault may have been repaired."""
        return self.recent(HOUR // self.STEP, now)

    def recent(self, steps: int, now: float) -> Counts:
        """Return the counts of so many minutes, the running minute included."""
        self._close_minutes(now)
        if len(self._minutes) < steps:
            return self._counts
        # One of the steps is the running minute: minute -steps is the last before them.
        return self._counts.since(self._minutes[-steps].counts)

    def _close_minutes(self, now: float) -> None:
        while self._running < now // self.STEP:
            mean = None
            if self._powers:
                mean = round(sum(self._powers) / len(self._powers))
            lost = self._counts.since(self._counts_before).lost_percent()
            self._minutes.append(Minute(mean, self._is_cheap, lost, self._counts))
            self._powers = []
            self._is_cheap = False
            self._counts_before = self._counts
            self._running += 1


class DayEnergy(NamedTuple):
    """The energy that a meter has counted today."""

    since: str  # "14:20"; empty: since midnight
    energy: Fields  # Wh by tag of the index


class Day:
    """Counts the energy of a day, and notices changes, from the indexes alone."""

    # Seconds.  If midnight falls between two readings that are closer than this, the
    # earlier reading serves as the reading at midnight.
    LONGEST_GAP = 60.0
    # Seconds since the epoch: an earlier time comes of a clock that is not set yet.
    CLOCK_IS_SET = 1.7e9

    def __init__(self) -> None:
        self.today: DayEnergy | None = None  # None: not known
        self._meter = ("", "")  # identity and name of the tariff
        self._date = ""
        self._since = ""  # as in DayEnergy
        self._first: Fields = {}  # the indexes at midnight, or at `_since`
        self._last: Fields = {}
        self._last_time = -math.inf

    def take(
        self, meter: tuple[str, str], indexes: Fields, wall: float
    ) -> list[Reason]:
        """Take a meter's indexes; return the changes since the last ones.

        meter: identity and tariff; indexes: Wh by tag; wall: seconds since the epoch.
        """
        gap = wall - self._last_time
        changes = self._changes(meter, indexes, gap)
        if wall < self.CLOCK_IS_SET:
            self._date = ""
            self.today = None
        else:
            self._begin_day(indexes, wall, bool(changes))
            self.today = DayEnergy(self._since, self._energy(indexes))
        self._meter = meter
        self._last = indexes
        self._last_time = wall
        return changes

    def _changes(
        self, meter: tuple[str, str], indexes: Fields, gap: float
    ) -> list[Reason]:
        """Return what has changed since the last indexes, `gap` seconds ago."""
        before = self._last
        changes = [
            CHANGED.with_words(name, old, new)
            for name, old, new in zip(METER_PARTS, self._meter, meter)
            if old not in ("", new)
        ]
        if changes:
            return changes
        # The meter was replaced and kept its number, or the supplier has set an index.
        most = WH_PER_SECOND * max(0.0, gap) + JUMP_WH
        return [
            JUMPED.with_words(tag, str(before[tag]), str(indexes[tag]))
            for tag in indexes
            if tag in before and not 0 <= indexes[tag] - before[tag] <= most
        ]

    def _begin_day(self, indexes: Fields, wall: float, has_changed: bool) -> None:
        """Begin another day if there is one, or if the indexes do not go on."""
        local = time.localtime(wall)
        date = time.strftime("%Y-%m-%d", local)
        if date == self._date and not has_changed:
            return  # the day goes on
        is_close = 0 <= wall - self._last_time <= self.LONGEST_GAP
        if is_close and self._date and not has_changed:  # it is midnight
            self._since = ""
            self._first = dict(self._last)
        else:
            self._since = time.strftime("%H:%M", local)
            self._first = dict(indexes)
        self._date = date

    def _energy(self, indexes: Fields) -> Fields:
        """Return the energy since the day began, Wh by tag."""
        energy: Fields = {}
        for tag, index in indexes.items():
            # An index may come later than the others, as EAIT does on a bad line.
            first = self._first.setdefault(tag, index)
            energy[tag] = index - first
        return energy


class Snapshot(NamedTuple):
    """All that one input shows.  Threads can share it because no thread changes it."""

    source: str  # host:port
    timeout: float  # seconds after the last frame for which the view may be served
    last_byte: float  # when the last byte came; -inf: there was none yet
    view: View
    shows_injection: bool  # input 2 shows the injection of this meter
    last_view: View  # the last view that was served; until then, an empty view
    reason: Reason  # the last fault, even while values are still served; or ALL_WELL
    brief_connections: int  # in a row, as in Link
    remarks: list[Reason]  # defects of a link that works, and changes of the meter
    counts: Counts  # since the start
    connections: int  # since the start
    minutes: tuple[Minute, ...]  # of the last 24 hours, the oldest first
    minutes_end: float  # when the last of them ended
    today: DayEnergy | None  # None until values are served

    def view_at(self, now: float) -> View:
        """Return the view while it is fresh, afterwards an empty view."""
        if now - self.view.time <= self.timeout:
            return self.view
        return self.view._replace(labels={}, fields=None, missing=[], injection=None)


class Input:
    """All that is known of one input, and the lines to log about it.

    The page shows `reason` in each situation; the log has fewer lines:

        connected  no frame came yet; the reason is NO_FRAME_YET
        served     all fields are known; the reason is ALL_WELL
        awaited    frames come, but fields are missing; the reason is TO_BE_CONFIRMED,
                   or DISPUTED
        overdue    awaited for longer than `patience`; the reason is logged
        no link    the last view is served until it is stale; then the reason is logged
    """

    def __init__(
        self,
        source: str,
        meter: Meter,
        input_2: str,
        say: Say,
        patience: float,
        now: float,
    ) -> None:
        self.patience = patience  # seconds until missing values are a fault
        self.source = source  # host:port
        self._input_2 = input_2  # METER, INJECTION or NO_INPUT
        self.meter = meter
        self.link = Link()
        self.history = History(now)
        self._day = Day()
        self.journal = Journal(say)
        # As of the last frame, or of the end of the connection.
        self.view = meter.view(now)
        self._remarks: list[Reason] = []  # as in Snapshot, without changes
        self._counts = Counts()  # latest
        self.reason = NO_FRAME_YET  # as in Snapshot
        self._last_view = self.view  # as in Snapshot
        # Since when fields are awaited: the last frame with all of them, the beginning
        # of the connection, or the end of a dispute.
        self._awaiting_since = now
        self._changes: list[Reason] = []  # the last changes of the meter
        self._change_time = -math.inf

    def connected(self, now: float) -> None:
        """Note that a connection to the ESP8266 begins."""
        self.link.begin(now)
        self._awaiting_since = now
        self.reason = NO_FRAME_YET

    def feed(self, data: bytes, now: float, wall: float) -> list[View]:
        """Take bytes; return the views of the frames that end in them.

        wall: seconds since the epoch.
        Raises LinkError if the connection should be closed.
        """
        self.link.hear(now)
        views = self.meter.feed(data, now)
        if not self._take_frames(views, now, wall):
            self.link.note_bytes(data)
            # From the time-out on nothing is served, and the page must say why.
            if self.link.claim_report(min(self.patience, self.meter.timeout), now):
                self._report(diagnose(self.link.sample), now)
        return views

    def failed(self, error: Exception, now: float, wall: float) -> None:
        """Note that the connection ended, or could not be opened."""
        self._take_frames(self.meter.disconnected(), now, wall)
        self._set_view(self.view, now)  # remarks are about the last hour: count again
        reason = reason_of(error)
        self.link.end(reason, now)
        if not self._has_had_tic():
            self._report(reason_without_tic(reason, self.link.sample), now)
        elif self.link.is_contested(now):
            self._report(EVICTED, now)
        else:
            self._report(reason, now)

    def _take_frames(self, views: list[View], now: float, wall: float) -> bool:
        """Take what the meter has counted, and its views.

        Return whether frames ended.  Frames of another meter, or without an intact
        identity, are counted, but have no view.
        """
        before = self._counts
        self._counts = self.meter.counts()
        self.history.note_counts(self._counts, now)
        if self._counts.frames == before.frames:
            return False
        self.link.restart_wait(now)
        self._take_view(views[-1] if views else self.meter.view(now), now, wall)
        return True

    def _has_had_tic(self) -> bool:
        """Return whether a group has come, or the beginning of a first group."""
        sample = self.link.sample.translate(DROP_PARITY_BIT)
        is_begun = LABEL_IN_STREAM.search(sample) is not None
        return self._counts.groups > 0 or is_begun

    def _take_view(self, view: View, now: float, wall: float) -> None:
        """Take the view after a frame.

        The frame may be of another meter: then the view has the last values again.
        """
        if self.view.is_disputed and not view.is_disputed:
            self._awaiting_since = now  # decided: what is missing is awaited anew
        self._set_view(view, now)
        if view.fields is not None:
            self._take_fields(view, view.fields, now, wall)
        elif now - self._awaiting_since > self.patience:
            self._report(self._why_incomplete(now), now)
        else:
            self.reason = DISPUTED if view.is_disputed else TO_BE_CONFIRMED

    def _take_fields(self, view: View, fields: Fields, now: float, wall: float) -> None:
        """Take the fields of a view that serves values."""
        self.reason = EVICTED if self.link.is_contested(now) else ALL_WELL
        self._awaiting_since = view.time
        # After a frame of another meter, the view repeats the last values.
        is_new = view.time > self._last_view.time
        self._last_view = view
        power = fields["PAPP"]
        indexes = indexes_of(fields)
        if view.injection is not None:
            power -= view.injection["PAPP"]
            indexes["EAIT"] = view.injection["BASE"]
        if is_new:
            self.history.note_power(power, fields["PTEC"].startswith("HC"), now)
        meter = (fields["ADCO"], name_of_tariff(fields))
        changes = self._day.take(meter, indexes, wall)
        if changes:
            self._changes = changes
            self._change_time = now
        for change in changes:
            self.journal.change(change)
        if self._is_serving(now):  # not if the frame waited for the connection's end
            self._log(meter, now)

    def _log(self, meter: tuple[str, str], now: float) -> None:
        """Log what is served, and the remarks."""
        identity, tariff = meter
        line = SERVED % (identity, MODE_NAMES[self.view.mode], tariff)
        if self.view.injection is not None and self._input_2 == NO_INPUT:
            line += INJECTS
        self.journal.serve(line)
        self.journal.remark(self._remarks, now)

    def _why_incomplete(self, now: float) -> Reason:
        if self.view.is_disputed:
            return DISPUTED
        counts = self.history.recent(A_FEW_MINUTES, now)
        if now - self.view.time > self.patience:
            # Frames come, but none of this meter.  If they were of another meter, its
            # identity would be disputed.
            return why_missing("le numéro du compteur", counts, {})
        is_unbalanced = now - self.view.unbalanced_time <= self.patience
        return why_incomplete(self.view, counts, is_unbalanced)

    def _report(self, reason: Reason, now: float) -> None:
        """Note a fault, and log it."""
        self.reason = reason
        self.journal.fault(reason, now, self._is_serving(now))

    def _is_serving(self, now: float) -> bool:
        """Return whether the last view is served: it has fields, and is fresh."""
        is_fresh = now - self.view.time <= self.meter.timeout
        return self.view.fields is not None and is_fresh

    def _set_view(self, view: View, now: float) -> None:
        """Set the view, and the defects of a link that works."""
        self.view = view
        self._remarks = []
        heard = self._counts.frames * FRAME_LASTS  # seconds, without pauses
        if heard < self.patience:
            return  # a label may just be late
        self._remarks = remarks_on(self.history.last_hour(now), view)
        lacking = lacking_for_injection(view.labels)
        if lacking and view.fields and self._input_2 == INJECTION:
            self._remarks.append(DOES_NOT_INJECT.with_words(", ".join(lacking)))

    def snapshot(self, now: float) -> Snapshot:
        """Return all that the input shows at `now`."""
        remarks = list(self._remarks)
        if now - self._change_time < DAY:
            remarks += self._changes
        minutes, minutes_end = self.history.minutes(now)
        return Snapshot(
            source=self.source,
            timeout=self.meter.timeout,
            last_byte=self.link.last_byte,
            view=self.view,
            shows_injection=self._input_2 == INJECTION,
            last_view=self._last_view,
            reason=self.reason,
            brief_connections=self.link.brief_connections,
            remarks=remarks,
            counts=self._counts,
            connections=self.link.connections,
            minutes=minutes,
            minutes_end=minutes_end,
            today=self._day.today,
        )


######## Store: the one place that threads share #######################################


class Client(NamedTuple):
    """A program that reads values.

    Two programs on one machine differ in their User-Agent, and one program may read two
    boxes.
    """

    address: str
    agent: str  # its User-Agent, or RELAY_AGENT; may be empty
    port: int  # of the box or the relay that it reads


RELAY_AGENT = "TIC"  # stands for a program that reads a relay: it does not say its name
LONGEST_AGENT = 80  # characters


def agent_of(header: str) -> str:
    """Return the text of a User-Agent as the page may show it."""
    return "".join(filter(str.isprintable, header))[:LONGEST_AGENT]


class Store:
    """The last snapshot of each input, 1 or 2, behind a lock.

    The lock also protects the clients, which the page shows.
    """

    MOST_CLIENTS = 8  # older clients are forgotten

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._snapshots: dict[int, Snapshot] = {}
        # How often each client has read values, and when it did last, on the clock of
        # `now`; the latest client at the end.
        self._clients: dict[Client, tuple[int, float]] = {}

    def publish(self, number: int, snapshot: Snapshot) -> None:
        """Replace an input's snapshot."""
        with self._lock:
            self._snapshots[number] = snapshot

    def read(self) -> dict[int, Snapshot]:
        """Return the current snapshots."""
        with self._lock:
            return dict(self._snapshots)

    def note_client(self, client: Client, now: float) -> None:
        """Note that a client has read values."""
        with self._lock:
            reads, _ = self._clients.pop(client, (0, now))
            self._clients[client] = (reads + 1, now)
            for oldest in list(self._clients)[: -self.MOST_CLIENTS]:
                del self._clients[oldest]

    def clients(self) -> dict[Client, tuple[int, float]]:
        """Return how often each client has read values, and when it did last."""
        with self._lock:
            return dict(self._clients)


######## Documents: the Eco-Devices' answers ###########################################

# The fields of a stale input in teleinfoN.xml.  Home Assistant ignores the HTTP status
# 503.  If these three fields are empty, Home Assistant takes the input as unknown: it
# records nothing, not even the indexes of 0, and leaves the other input alone.
STALE_FIELDS: Fields = {**EMPTY, "PAPP": "", "PPAP": "", "PTEC": ""}
FIRMWARE = "1.05.25"  # Domoticz refuses versions below 1.05.12
XML_START = '<?xml version="1.0" encoding="ISO-8859-1"?>\r\n<response>'
# The tags of status.xml in the device's order.  ecolinky has no pulse inputs.
STATUS_TAGS = (
    "date time0 config_hostname config_mac http_port T1_PPAP T2_PPAP T1_PAPP T2_PAPP"
    " T1_PTEC T2_PTEC T1_ISOUSC T2_ISOUSC T1_IMAX T1_IMAX1 T1_IMAX2 T1_IMAX3 T2_IMAX"
    " T2_IMAX1 T2_IMAX2 T2_IMAX3 meter0 meter1 meter2 meter3 count0 count1 c0day c1day"
    " c0_fuel c1_fuel dnsstatus version salr"
).split()

# Inputs 1 and 2.  None: the input is stale; EMPTY: there is no such input.
Inputs = Dict[int, Optional[Fields]]
BOTH = (1, 2)


def served(snapshots: dict[int, Snapshot], now: float) -> Inputs:
    """Return the fields to serve at `now` for inputs 1 and 2."""
    inputs: Inputs = {1: None, 2: EMPTY}
    for number, snapshot in snapshots.items():
        view = snapshot.view_at(now)
        inputs[number] = view.fields
        if snapshot.shows_injection:  # then there is no meter 2
            inputs[2] = view.injection
    return inputs


class Device(NamedTuple):
    """An Eco-Devices, as it presents itself to clients."""

    hostname: str
    mac: str
    port: int  # of its HTTP server
    is_second: bool  # shows input 2 as its input 1


class Request(NamedTuple):
    """The material of a document."""

    device: Device
    inputs: Inputs
    needed: tuple[int, ...]  # the inputs that must be fresh
    local: time.struct_time


class Answer(NamedTuple):
    """An answer over HTTP."""

    status: int
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()  # besides those of every answer


def second_device(first: Device, port: int) -> Device:
    """Return the device for input 2, with its own name and MAC address."""
    last_byte = int(first.mac[-2:], 16) ^ 1  # flip a bit: adding could overflow
    mac = f"{first.mac[:-2]}{last_byte:02x}"
    hostname = first.hostname[:30] + "-2"  # 32 characters at most, like the first
    return Device(hostname, mac, port, True)


def prefixed(number: int, fields: Fields, tags: Iterable[str] = FIELDS) -> Fields:
    """Return the fields with the input's prefix, such as T1_PAPP."""
    return {f"T{number}_{tag}": fields[tag] for tag in tags}


def needle(fields: Fields) -> int:
    """Return the needle's position, 0 to 9, on the power gauge of the device's page."""
    limit = fields["ISOUSC"] * MAINS_VOLTS * phase_count(fields)
    if not limit:
        return 0
    tenths = 10 * fields["PAPP"] // limit
    return int(min(9, tenths))


def status_tags(request: Request) -> Fields:
    """Return the tags of status.xml: identity, summary of both inputs, counters."""
    device = request.device
    local = request.local
    # All counters are 0: Home Assistant's library fails on an empty counter.
    tags: Fields = dict.fromkeys(STATUS_TAGS, 0)
    tags.update(
        c0_fuel="",  # not a counter, but the fuel that it counts
        c1_fuel="",
        config_hostname=device.hostname,
        config_mac=device.mac,
        http_port=device.port,
        version=FIRMWARE,
        # Weekday (0: Monday), day and month, as on the device.
        date=f"{local.tm_wday}{local.tm_mday:02}{local.tm_mon:02}",
        time0=f"{local.tm_hour:02}:{local.tm_min:02}",
    )
    for number in BOTH:
        fields = request.inputs[number] or EMPTY
        tags[f"meter{number - 1}"] = needle(fields)
        for tag, value in prefixed(number, fields).items():
            if tag in tags:  # a few of the fields are in the summary
                tags[tag] = value
        if request.inputs[number] is None:
            # Every minute Jeedom reads PPAP here; scripts and early versions of Home
            # Assistant's library read PAPP.  All of these would record 0 VA.
            del tags[f"T{number}_PPAP"]
            tags[f"T{number}_PAPP"] = ""
    # If Domoticz finds a period here, it also reads input 2, and mixes up the totals of
    # both inputs (EcoDevices.cpp).  Domoticz reads input 2 from the second device.
    tags["T2_PTEC"] = NOTHING
    return tags


def teleinfo_tags(request: Request) -> Fields:
    """Return the tags of a teleinfo document: all fields of the inputs it needs."""
    tags: Fields = {}
    for number in request.needed:
        tags.update(prefixed(number, request.inputs[number] or STALE_FIELDS))
    return tags


def globalstatus_tags(request: Request) -> Fields:
    """Return the tags of globalstatus.xml: status.xml plus both inputs' fields."""
    tags = status_tags(request)
    # This replaces T2_PTEC, which status_tags() has hidden from Domoticz: Domoticz does
    # not read this document.
    tags.update(teleinfo_tags(request))
    tags.update(c0_name="C1", c1_name="C2", c0_unit="Wh", c1_unit="Wh")
    return tags


def power_and_indexes(request: Request) -> Fields:
    """Return the answer to cmd=10: each input's period, power and indexes."""
    tags: Fields = {"product": "Eco-devices"}
    for number in BOTH:
        fields = request.inputs[number]
        if fields is None:
            # Leave the power out: it is not 0 VA.  A script that reads only T1 goes on.
            tags[f"T{number}_PTEC"] = NOTHING
            continue
        tariff = tariff_of(fields["OPTARIF"])
        names = ["PTEC", "PAPP", *tariff.indexes]
        if tariff is TEMPO:
            names.append("DEMAIN")
        tags.update(prefixed(number, fields, names))
    tags.update(INDEX_C1=0, INDEX_C2=0)
    return tags


def pulses_of_today(_request: Request) -> Fields:
    """Return the answer to cmd=20: today's pulses, always 0."""
    return {"product": "Eco-devices", "Day_C1": 0, "Day_C2": 0}


def as_xml(tags: Fields) -> bytes:
    """Return the tags as an XML document of the device, in Latin-1."""
    lines = [XML_START]
    for tag, value in tags.items():
        text = str(value)
        if tag.endswith("_PTEC"):  # the device keeps the dots ("HC..") in JSON only
            text = text.rstrip(".")
        lines.append(f"<{tag}>{escape(text)}</{tag}>")
    lines += ["</response>", ""]
    return "\r\n".join(lines).encode("latin-1", "xmlcharrefreplace")


def as_json(content: Json, status: int = 200) -> Answer:
    """Return an answer in JSON."""
    text = json.dumps(content, separators=(",", ":"))
    return Answer(status, "application/json", text.encode("ascii"))


# Each document: the function that makes its tags, and the inputs that it needs fresh.
DOCUMENTS: dict[str, tuple[Callable[[Request], Fields], tuple[int, ...]]] = {
    "/status.xml": (status_tags, ()),  # marks stale inputs itself
    "/protect/settings/teleinfo1.xml": (teleinfo_tags, (1,)),
    "/protect/settings/teleinfo2.xml": (teleinfo_tags, (2,)),
    "/teleinfo.xml": (teleinfo_tags, BOTH),
    "/globalstatus.xml": (globalstatus_tags, BOTH),
    "/api/xdevices.json?cmd=10": (power_and_indexes, (1,)),
    "/api/xdevices.json?cmd=20": (pulses_of_today, ()),
}
# The device redirects "/" to "/index1.htm".
HOME_PAGES = ("/", "/index.htm", "/index1.htm")


def name_of_document(target: str) -> str:
    """Return the path of a request's target, as in DOCUMENTS with cmd of its query.

    Some clients send the address too: http://host/status.xml (RFC 9112, 3.2.2).
    """
    local = re.sub("^http://[^/?]*", "", target, flags=re.IGNORECASE)
    path, _, query = local.partition("?")
    if path in ("/api/xdevices.json", "/api/xdevices.htm"):
        for word in query.split("&"):
            if word.startswith("cmd="):
                return "/api/xdevices.json?" + word
    return path or "/"


def answer_document(
    name: str, device: Device, inputs: Inputs, local: time.struct_time
) -> Answer:
    """Return a document, with status 503 if an input that must be fresh is stale.

    Jeedom and Domoticz record nothing from an answer with status 503.  An XML document
    about both inputs gets a 503 if either is stale.
    """
    if device.is_second:
        inputs = {1: inputs[2], 2: EMPTY}
    make_tags, needed = DOCUMENTS[name]
    request = Request(device, inputs, needed, local)
    is_stale = any(inputs[number] is None for number in needed)
    status = 503 if is_stale else 200
    tags = make_tags(request)
    if name.endswith(".xml"):
        return Answer(status, "text/xml", as_xml(tags))
    if is_stale:
        tags = {}  # a script that ignores the status would record 0
    return as_json(tags, status)


def describe(
    settings: Settings, hostname: str, store: Store, started: float, now: float
) -> Json:
    """Return /ecolinky.json; the README describes its contents."""
    inputs = []
    for number, snapshot in sorted(store.read().items()):
        ports = {
            "ports": settings.ports_of(number),
            "relay_port": settings.inputs[number].relay_port,
        }
        inputs.append({"input": number, **describe_input(snapshot, now), **ports})
    clients = [
        {**client._asdict(), "reads": reads, "age": age_of(last, now)}
        for client, (reads, last) in store.clients().items()
    ]
    return {
        "version": __version__,
        "uptime": round(now - started),
        "hostname": hostname,
        "ports": settings.ports,
        "clients": clients[::-1],  # the latest first
        "inputs": inputs,
    }


def describe_histories(store: Store, now: float) -> Json:
    """Return /history.json: the last 24 hours of each input, minute by minute."""
    inputs = []
    for number, snapshot in sorted(store.read().items()):
        minutes = [
            (minute.power, minute.lost, int(minute.is_cheap))
            for minute in snapshot.minutes
        ]
        age = age_of(snapshot.minutes_end, now)
        inputs.append(
            {"input": number, "step": History.STEP, "age": age, "minutes": minutes}
        )
    return {"inputs": inputs}


def age_of(time: float, now: float) -> float | None:
    """Return the seconds since a time, or None if it is -inf."""
    return round(now - time, 1) if time > -math.inf else None


def french(text: str) -> str:
    """Return a text for the page, with French no-break signs and apostrophes."""
    text = text.replace("'", "’").replace("Wi-Fi", "Wi\u2011Fi")
    return re.sub(" (?=[:;?!»])|(?<=«) ", "\u00a0", text)


def describe_reason(reason: Reason) -> Json:
    """Return the parts of a reason, for the page."""
    return {
        "station": reason.station,
        "cause": french(reason.cause),
        "remedy": french(reason.remedy),
    }


def describe_input(snapshot: Snapshot, now: float) -> Json:
    """Return the description of one input in /ecolinky.json."""
    view = snapshot.view_at(now)
    reason = snapshot.reason
    if reason == ALL_WELL and view.fields is None:
        reason = SILENT  # stale before the Reader takes the silence for a failure
    state = "waiting"
    today = None
    last = None  # the values that were served last
    if view.fields is not None:
        state = "live"
        if snapshot.today is not None:
            today = snapshot.today._asdict()
    elif snapshot.last_view.fields is not None:
        state = "stale"
        last = describe_values(snapshot.last_view, now)
    return {
        "source": snapshot.source,
        "state": state,
        "reason": french(str(reason)),
        "fault": describe_reason(reason),
        "remarks": [describe_reason(remark) for remark in snapshot.remarks],
        "byte_age": age_of(snapshot.last_byte, now),
        "mode": view.mode,
        "labels": view.labels,
        **describe_values(view, now),
        "today": today,
        "counters": describe_counts(snapshot),
        "last": last,
    }


def describe_counts(snapshot: Snapshot) -> Json:
    """Return what an input has counted since the start."""
    counts = snapshot.counts
    return {
        "frames": counts.frames,
        "groups": counts.groups,
        "refused": {
            "checksum": counts.checksum,
            "form": counts.form,
            "implausible": counts.implausible,
        },
        "connections": snapshot.connections,
    }


def describe_values(view: View, now: float) -> Json:
    """Return the values of a view, and their age; they are None if it has no fields."""
    values: Json = {
        "age": age_of(view.time, now),
        "phases": None,
        "fields": view.fields,
        "injection": view.injection,
        "tariff": None,
    }
    if view.fields is not None:
        values["phases"] = phase_count(view.fields)
        values["tariff"] = describe_tariff(view.fields)
    return values


# A colour of Tempo, as DEMAIN names it -> for the page.
COLOUR_NAMES = {"BLEU": "bleu", "BLAN": "blanc", "ROUG": "rouge"}


def describe_tariff(fields: Fields) -> Json:
    """Return the page's names for a tariff and its periods."""
    tariff = tariff_of(fields["OPTARIF"])
    running = fields["PTEC"]
    days = None
    if tariff is TEMPO:
        days = {
            "today": COLOUR_NAMES[COLOURS[running[-1]]],
            "tomorrow": COLOUR_NAMES.get(fields["DEMAIN"]),
        }
    return {
        "option": fields["OPTARIF"],
        "name": tariff.name,
        "period": {"code": running, **PERIODS[running]._asdict()},
        "indexes": [PERIODS[ptec]._asdict() for ptec in tariff.periods],
        "days": days,
    }


######## Settings: from an ini file to typed values ####################################


class ConfigError(Exception):
    """A defect of the configuration and its remedy, in one line."""


class InputSettings(NamedTuple):
    """[teleinfo1] or [teleinfo2]."""

    host: str = ""  # empty: no such input
    port: int = 8888
    timeout: float = 30.0  # seconds
    relay_port: int | None = None
    injection: bool = False  # of [teleinfo2] alone: show the injection of meter 1


class HttpSettings(NamedTuple):
    """[http]."""

    address: str = "0.0.0.0"  # all addresses of this machine
    port: int = 4000
    second_port: int = 4001
    username: str = ""
    password: str = ""

    @property
    def token(self) -> str:
        """Return user name and password as HTTP sends them, in base 64."""
        return base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


class DeviceSettings(NamedTuple):
    """[ecodevice]."""

    hostname: str = "ecolinky"
    mac: str = ""  # empty: use lasting_mac()
    discovery: bool = False


class LogSettings(NamedTuple):
    """[log]."""

    level: str = "info"


# The names of the HTTP ports' keys, and for each a port that needs no root.
HTTP_PORTS = {"[http] port": 4000, "[http] second_port": 4001}
# Ports above 1023 with which no browser shows a page (Fetch standard, "bad port").
PORTS_REFUSED = frozenset(
    (1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566)
    + (6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080)
)


class Settings(NamedTuple):
    """All settings of an ini file: sections, and their keys with type and default."""

    teleinfo1: InputSettings = InputSettings()
    teleinfo2: InputSettings = InputSettings()
    http: HttpSettings = HttpSettings()
    ecodevice: DeviceSettings = DeviceSettings()
    log: LogSettings = LogSettings()

    @property
    def inputs(self) -> dict[int, InputSettings]:
        """Return the settings of the inputs that read an ESP8266, by number."""
        inputs = {1: self.teleinfo1, 2: self.teleinfo2}
        return {number: source for number, source in inputs.items() if source.host}

    @property
    def second(self) -> str:
        """Return the kind of input 2: METER, INJECTION or NO_INPUT."""
        if self.teleinfo2.host:
            return METER
        return INJECTION if self.teleinfo2.injection else NO_INPUT

    @property
    def ports(self) -> list[int]:
        """Return the HTTP ports; the second port is for input 2, if there is any."""
        if self.second == NO_INPUT:
            return [self.http.port]
        return [self.http.port, self.http.second_port]

    def ports_of(self, number: int) -> list[int]:
        """Return the HTTP ports of an input that reads an ESP8266."""
        if self.second == METER:
            return [self.ports[number - 1]]
        return self.ports  # the second port is for the injection of the same meter

    @property
    def named_ports(self) -> dict[str, int]:
        """Return all ports to listen on, the HTTP ports first, by their keys' names."""
        ports = dict(zip(HTTP_PORTS, self.ports))
        for number, source in self.inputs.items():
            if source.relay_port:
                ports[f"[teleinfo{number}] relay_port"] = source.relay_port
        return ports


class Form(NamedTuple):
    """The form of a value."""

    pattern: str
    expected: str  # the form in the user's words
    read: Callable[[str], object] = str


UP_TO_255 = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
UP_TO_65535 = (
    "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]"
    "|6553[0-5])"
)
A_LETTER = "(?=.*[A-Za-z])"  # a name has a letter: 192.168.1 is not a name
WORD = "[A-Za-z0-9_-]{1,63}"
ADDRESS_PATTERN = (
    UP_TO_255 + "([.]" + UP_TO_255 + "){3}|" + A_LETTER + WORD + "([.]" + WORD + ")*"
)
ADDRESS_OR_NAME = "une adresse comme 192.168.1.50, ou un nom, rien d'autre"
# What users write before an address, as http://, and behind it, as :8888 or a path.
# (Three characters at least: the 02:00 of a MAC address is no address with a port.)
BEFORE_ADDRESS = re.compile("(?i)([a-z]+://)")
BEHIND_ADDRESS = re.compile(r"[\w.-]{3,}(:[0-9]+/?$|/.*)")
QUOTES = re.compile("[\"'«»“”‘’]")
PORT = Form(UP_TO_65535, "un nombre de 1 à 65535", int)
FROM_5 = "(?![1-4]([.]|$))"  # what follows is no number below 5
YES_NO = Form("(?i)yes|no", "yes ou no", lambda written: written.lower() == "yes")
LOGIN = Form("[A-Za-z0-9._~-]*", "A-Z a-z 0-9 . _ ~ -, Domoticz transmet mal le reste")
FORM_OF_KEY = {
    "host": Form("(" + ADDRESS_PATTERN + ")?", ADDRESS_OR_NAME),
    "port": PORT,
    "timeout": Form(
        FROM_5 + UP_TO_65535 + "([.][0-9]+)?",
        "un nombre de 5 à 65535, comme 7.5, une trame dure jusqu'à 3 secondes",
        float,
    ),
    "relay_port": Form(
        UP_TO_65535 + "?",
        "rien, ou un nombre de 1 à 65535",
        lambda written: int(written) if written else None,
    ),
    "injection": YES_NO,
    "address": Form(ADDRESS_PATTERN, f"0.0.0.0 pour toutes, ou {ADDRESS_OR_NAME}"),
    "second_port": PORT,
    "username": LOGIN,
    "password": LOGIN,
    "hostname": Form(
        "[A-Za-z0-9-]{1,32}", "1 à 32 lettres sans accent, chiffres ou tirets"
    ),
    "mac": Form(
        "(([0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2})?", "six paires comme 02:00:5e:10:00:01"
    ),
    "discovery": YES_NO,
    "level": Form("(?i)debug|info|warning|error", "debug, info, warning ou error"),
}


def parse_settings(text: str) -> Settings:
    """Return the settings in the text of an ini file; raises ConfigError."""
    # configparser copies the keys of [DEFAULT] into every section.  Call that section
    # "\0" instead: read_settings() refuses a text that contains this character.
    parser = configparser.ConfigParser(interpolation=None, default_section="\0")
    try:
        parser.read_string(text)
    except configparser.Error as error:
        raise ConfigError(_syntax_complaint(error)) from None
    sections = Settings()._asdict()
    for section in parser.sections():
        if section not in sections:
            names = f"il y a {', '.join(sections)}"
            if section.lower() in sections:
                names = f"écrire [{section.lower()}]"
            raise ConfigError(f"section inconnue [{section}], {names}")
        items = parser.items(section)
        sections[section] = _with_values(section, sections[section], items)
    settings = Settings(**sections)
    complaint = next(_contradictions(settings), None)
    if complaint is not None:
        raise ConfigError(complaint)
    if "teleinfo2" in parser and not {"host", "injection"} & set(parser["teleinfo2"]):
        raise ConfigError("[teleinfo2] host manque, le donner, ou ôter la section")
    return settings


def _with_values(section: str, defaults: Any, items: list[tuple[str, str]]) -> Any:
    """Return a section's settings with the values of its keys; raises ConfigError."""
    values = {}
    for key, written in items:
        name = f"[{section}] {key}"
        if key not in defaults._fields:
            there = f"il y a {', '.join(defaults._fields)}"
            advice = _missing_section(key, section) or there
            raise ConfigError(f"clé inconnue {name}, {advice}")
        form = FORM_OF_KEY[key]
        if not re.fullmatch(form.pattern, written):
            raise ConfigError(_complaint(name, written, form))
        values[key] = form.read(written)
    return defaults._replace(**values)


def _complaint(name: str, written: str, form: Form) -> str:
    """Return the complaint about a value that does not fit its form."""
    if "\n" in written:  # configparser adds indented lines to the value before
        return f"{name}, la ligne d'après commence par un espace, l'ôter"
    if re.search(r"(^|\s)[#;]", written):
        return f"{name}, mettre le commentaire seul sur sa ligne"
    if form is not LOGIN:  # log no password
        name = f"{name} = {written}".rstrip()
        if QUOTES.search(written):
            return f"{name}, ôter les guillemets"
        needless = BEFORE_ADDRESS.match(written) or BEHIND_ADDRESS.match(written)
        if needless:
            return f"{name}, ôter {needless[1]}"
    return f"{name} n'est pas valable, attendu : {form.expected}"


def _contradictions(settings: Settings) -> Iterator[str]:
    """Yield the complaints about values that contradict each other."""
    first = settings.teleinfo1
    second = settings.teleinfo2
    if first.injection:
        yield "[teleinfo1] injection, l'écrire sous [teleinfo2]"
    if second.host and second.injection:
        yield "[teleinfo2] host et injection = yes, ôter l'un des deux"
    if second.host and second[:2] == first[:2]:  # host and port
        yield "[teleinfo1] et [teleinfo2] lisent le même ESP, en ôter un"
    if second.relay_port and not second.host:
        yield "[teleinfo2] relay_port sans host, ôter l'un ou donner l'autre"
    yield from _contradictions_of_ports(settings)
    if bool(settings.http.username) != bool(settings.http.password):
        yield "[http] username et password, donner les deux, ou aucun"


def _contradictions_of_ports(settings: Settings) -> Iterator[str]:
    names: dict[int, str] = {}
    for name, port in settings.named_ports.items():
        if port in names:
            yield f"{names[port]} et {name} ont le même port, changer l'un des deux"
        names[port] = name
        if name in HTTP_PORTS and port in PORTS_REFUSED:
            yield f"{name} = {port}, les navigateurs refusent ce port"


def _missing_section(key: str, section: str) -> str:
    """Return the advice on a key that belongs below another section; empty: none."""
    sections = Settings()._asdict()
    sections.pop(section, None)
    owners = [f"[{name}]" for name in sections if key in sections[name]._fields]
    if not owners:
        return ""
    return f"la ligne {' ou '.join(owners)} manque au-dessus, ou a gardé son #"


# A defect of the syntax -> advice, with words from configparser's error.
SYNTAX_ADVICE = {
    configparser.DuplicateOptionError: (
        "{option} est déjà dans [{section}], ôter l'un des deux"
    ),
    configparser.DuplicateSectionError: (
        "la section [{section}] existe déjà plus haut, n'en garder qu'une"
    ),
    configparser.MissingSectionHeaderError: (
        "une [section] manque au-dessus, comme [teleinfo1] avec ses crochets"
    ),
}
OTHER_SYNTAX = "à corriger, attendu : clé = valeur, ou [section]"


def _syntax_complaint(error: configparser.Error) -> str:
    """Return the line of a syntax error, with advice on its likely cause."""
    words = vars(error)
    advice = SYNTAX_ADVICE.get(type(error), OTHER_SYNTAX).format(**words)
    if isinstance(error, configparser.DuplicateOptionError):
        missing = _missing_section(error.option, error.section)
        if missing:
            twice = f"{error.option} est deux fois dans [{error.section}]"
            advice = f"{missing}, sinon {twice}"
    # A ParsingError has a list of errors instead, each a line number and the line.
    line = words.get("lineno") or words["errors"][0][0]
    return f"ligne {line}, {advice}"


def remedy_of_file(error: OSError, path: str) -> str:
    """Return what to do about an ini file that cannot be read."""
    folder, name = os.path.split(os.path.abspath(path))
    if error.errno == errno.EACCES:
        closed = path if os.access(folder, os.X_OK) else folder
        return f'en permettre la lecture par sudo chmod a+rX "{closed}"'
    # Windows hides endings, and browsers number their downloads.
    alike = re.compile(r"(?i).*ecolink[^.]*([.]ini.*|[.]txt)?")
    with contextlib.suppress(OSError):
        for found in sorted(os.listdir(folder)):
            if alike.fullmatch(found) and os.path.isfile(os.path.join(folder, found)):
                return f"mais « {found} » est là, le renommer en {name}"
    return "mettre ecolinky.ini à côté d'ecolinky.py, ou corriger --config"


def read_settings(path: str, demo: bool = False) -> Settings:
    """Return the settings in a file; raises ConfigError, which names the file.

    A demo needs neither the file nor the address of an ESP8266.
    """
    if demo and not os.path.exists(path):
        return Settings()
    try:
        # The accents of an old Notepad may be lost: only comments have accents.
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            text = file.read()
    except OSError as error:
        remedy = remedy_of_file(error, path)
        raise ConfigError(f"{path} {words_of(error)}, {remedy}") from None
    try:
        if "\0" in text or text.startswith("{\\rtf"):
            raise ConfigError(
                "le fichier n'est pas en UTF-8, le réenregistrer (texte brut, UTF-8)"
            )
        if text.lstrip().startswith(("<", "404")):
            raise ConfigError(
                "c'est une page web, pas le fichier, le télécharger par « Download raw"
                " file »"
            )
        settings = parse_settings(text)
        if not demo and not settings.teleinfo1.host:
            raise ConfigError("[teleinfo1] host manque, donner l'adresse de l'ESP8266")
    except ConfigError as error:
        raise ConfigError(f"{path}, {error}") from None
    return settings


def lasting_mac(port: int) -> str:
    """Return a locally administered MAC address: on this machine, one for each port.

    port: the first HTTP port, by which two programs on one machine differ.
    """
    seed = socket.gethostname().encode()
    with contextlib.suppress(OSError), open("/etc/machine-id", "rb") as file:
        seed = file.read().strip() or seed
    # Never change this: Home Assistant would see another device.  Version 1.2 had the
    # same address on all ports; the address on port 4000 is still that one.
    high = binascii.crc32(b"ecolinky" + seed) ^ port ^ 4000  # the same on port 4000
    low = binascii.crc32(seed) & 0xFF  # second_device() changes this byte alone
    digits = f"02{high:08x}{low:02x}"
    return ":".join(re.findall("..", digits))


######## Relay: the trusted TIC for other programs #####################################


# A receiver gets:
#     first, its opening    STX LF
#     with each frame       groups CR ETX STX LF
# linkytic and serial-teleinfo take a frame only when they see the start of the next,
# and give up after a second.  So that start is sent at once.
START = STX + b"\n"


class Receiver:
    """A program that reads the relay."""

    SEND_BUFFER = 32768  # bytes in the kernel: more than half a minute of frames

    def __init__(self, connection: socket.socket, address: str) -> None:
        self.connection = connection
        self.address = address
        self.connection.setblocking(False)
        self.connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDBUF, self.SEND_BUFFER
        )
        self._opening = START  # of the first frame; empty once it is sent

    def send(self, piece: bytes) -> bool:
        """Send a piece, as drawn above, for one frame or more, without waiting.

        Return whether the kernel took all of it; if not, the receiver is stuck or gone.
        """
        data = self._opening + piece
        self._opening = b""
        try:
            return self.connection.send(data) == len(data)
        except OSError:
            return False


PORT_IS_TAKEN = "relay_port, port %d %s, nouvel essai à chaque trame"


def listen(address: str, port: int, backlog: int = 1) -> socket.socket:
    """Return a socket that listens on a port; raises OSError."""
    listener = socket.socket()
    try:
        # The port of a program that has just ended is free (TIME_WAIT).
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener


class Relay:
    """The receivers of one input's trusted TIC; only the input's thread calls it.

    The port is open from the start, and closed while no values are served.  To end the
    connections would not be enough: linkytic connects again at once, and shows its last
    values as live for as long as it is connected.
    """

    MOST_RECEIVERS = 16

    def __init__(self, address: str, port: int, timeout: float, now: float) -> None:
        self.port = port
        self.timeout = timeout  # seconds without values; then close the port
        self._address = address
        self._receivers: list[Receiver] = []
        self._last_served = now
        self._hourly = Limiter(HOUR)
        self._listener: socket.socket | None = None  # None: closed
        self._open()

    def _open(self) -> None:
        """Open the port; raises OSError."""
        self._listener = listen(self._address, self.port, self.MOST_RECEIVERS)
        self._listener.setblocking(False)

    def send(self, frames: list[bytes], now: float) -> list[str]:
        """Send trusted frames to all receivers; return the receivers' IP addresses.

        A new receiver gets whole frames only.
        frames: empty while the values are served, but a label is still awaited.
        """
        self._last_served = now
        if self._listener is None:
            self._reopen(now)
        if not frames:
            return []
        piece = b"".join(frame[len(START) :] + START for frame in frames)
        for receiver in list(self._receivers):
            if not receiver.send(piece):
                self._receivers.remove(receiver)
                receiver.connection.close()
        return [receiver.address for receiver in self._receivers]

    def _reopen(self, now: float) -> None:
        """Open the port again; if another program has it, the next frame tries."""
        try:
            self._open()
        except OSError as error:
            if self._hourly.claim(PORT_IS_TAKEN, now):
                log.warning(PORT_IS_TAKEN, self.port, words_of(error))

    def poll(self, now: float) -> None:
        """Accept new receivers; close the port if no values are served any more."""
        if self.seconds_left(now) < 0:
            self.close()
        # accept() raises BlockingIOError when no receiver waits.  Other errors of a new
        # receiver must not disturb the meter either.
        with contextlib.suppress(OSError):
            while self._listener and len(self._receivers) < self.MOST_RECEIVERS:
                connection, address = self._listener.accept()
                self._receivers.append(Receiver(connection, address[0]))

    def seconds_left(self, now: float) -> float:
        """Return after how many seconds without values the port must be closed."""
        if self._listener is None:
            return math.inf
        return self._last_served + self.timeout - now

    def close(self) -> None:
        """Close the port and end all connections."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for receiver in self._receivers:
            receiver.connection.close()
        self._receivers.clear()


######## Reader: the thread that reads one ESP8266 #####################################


def log_bug(name: str) -> None:
    """Log the last calls of the bug that is handled now, at level DEBUG."""
    # A line of the log has no room for all calls, see LogHandler.
    log.debug("%s : %s", name, traceback.format_exc(limit=-4))


class Reader(threading.Thread):
    """Reads one input and publishes it; starts again after any failure."""

    SILENCE = 10.0  # seconds to connect, or without a byte: the TIC never pauses
    PAUSE = 3.0  # seconds between two connections
    TICK = 1.0  # seconds without a byte after which the thread polls the relay
    CHUNK = 4096  # bytes, at most, per read

    def __init__(
        self,
        number: int,
        settings: InputSettings,
        store: Store,
        input_2: str = METER,
        relay: Relay | None = None,
        patience: float = 20.0,
    ) -> None:
        super().__init__(name=f"teleinfo{number}", daemon=True)
        self.stopped = threading.Event()
        self._number = number
        self._address = (settings.host, settings.port)
        self._store = store
        self._relay = relay
        source = f"{settings.host}:{settings.port}"
        meter = Meter(settings.timeout, is_relayed=relay is not None)
        now = time.monotonic()
        self._input = Input(source, meter, input_2, self._say, patience, now)
        self._published_at = now
        self._publish()

    def _say(self, level: int, text: str) -> None:
        name = self.name
        if level == logging.WARNING:
            name += f" ({self._input.source})"  # the user has to look there
        log.log(level, "%s : %s", name, text)

    def run(self) -> None:
        """Read until `stopped` is set: nothing else ends the thread."""
        while not self.stopped.is_set():
            try:
                self._read()
            except Exception as error:  # noqa: BLE001
                self._report_failure(error)
            self.stopped.wait(self.PAUSE)

    def _report_failure(self, error: Exception) -> None:
        now = time.monotonic()
        if not isinstance(error, (OSError, LinkError)):
            log_bug(self.name)
        try:
            self._input.failed(error, now, time.time())
            self._publish()
            # The thread sleeps for PAUSE: close the relay now if its time ends in it.
            self._poll_relay(now + self.PAUSE)
        except Exception as bug:  # noqa: BLE001  reporting a bug can raise it again
            log_bug(self.name)
            self._input.journal.fault(BUG.with_words(repr(bug)), now, is_serving=True)

    def _poll_relay(self, now: float) -> None:
        if self._relay is not None:
            self._relay.poll(now)

    def _connect(self) -> socket.socket:
        """Connect to the ESP8266, but not for longer than the relay may stay open."""
        patience = self.SILENCE
        if self._relay is not None:
            left = self._relay.seconds_left(time.monotonic())
            patience = min(patience, max(left, self.TICK))
        # If this times out, reason_of() says that the ESP is away.
        return socket.create_connection(self._address, patience)

    def _read(self) -> None:
        """Connect, and read until the connection fails."""
        with self._connect() as connection:
            connection.settimeout(self.TICK)
            last_byte = time.monotonic()
            reason = NO_BYTE
            self._input.connected(last_byte)
            while not self.stopped.is_set():
                self._poll_relay(time.monotonic())
                try:
                    data = connection.recv(self.CHUNK)
                except socket.timeout:
                    if time.monotonic() - last_byte > self.SILENCE:
                        raise LinkError(reason) from None
                    continue
                if not data:
                    raise LinkError(CUT_BY_ESP)
                last_byte = time.monotonic()
                reason = SILENT
                self._take(data, last_byte)

    def _take(self, data: bytes, now: float) -> None:
        views = self._input.feed(data, now, time.time())
        # The page also sees that bytes come, though no frame ends.
        if views or now - self._published_at >= self.TICK:
            self._publish()
        if self._relay is None or not any(view.fields for view in views):
            return
        frames = [view.relayed for view in views if view.relayed]
        for address in self._relay.send(frames, now):
            client = Client(address, RELAY_AGENT, self._relay.port)
            self._store.note_client(client, now)

    def _publish(self) -> None:
        self._published_at = time.monotonic()
        snapshot = self._input.snapshot(self._published_at)
        self._store.publish(self._number, snapshot)
        log.debug("%s : %s", self.name, snapshot.view.fields or snapshot.reason)


######## Server: the threads that answer HTTP ##########################################

TEXT = "text/plain; charset=utf-8"
NOT_FOUND = Answer(404, TEXT, "rien à cette adresse\r\n".encode())
UNAUTHORISED = Answer(
    401,
    TEXT,
    "mot de passe demandé\r\n".encode(),
    (("WWW-Authenticate", 'Basic realm="ecolinky"'),),
)
# The requests that http.server itself refuses: HTTP status -> text.
REFUSALS = {
    400: "demande illisible",
    431: "demande trop longue",
    501: "seuls GET et HEAD ont une réponse",
    505: "version de HTTP inconnue",
}

# The head of a request is its first line and its headers; an empty line ends it.
END_OF_HEAD = re.compile(b"\n\r?\n")
LONGEST_HEAD = 16384  # bytes
PATIENCE = 30.0  # seconds, for the head


def read_head(connection: socket.socket) -> bytes | None:
    """Return the head of a request, or None if it is too long.

    Bytes of a body can follow the head.  If the client ends the connection, return what
    it has sent.  Raises socket.timeout.
    """
    head = b""
    deadline = time.monotonic() + PATIENCE
    while not END_OF_HEAD.search(head):
        if len(head) >= LONGEST_HEAD:
            return None
        left = deadline - time.monotonic()
        connection.settimeout(max(0.001, left))  # 0 would mean: do not wait
        received = connection.recv(LONGEST_HEAD - len(head))
        if not received:
            break
        head += received
    connection.settimeout(PATIENCE)  # for the answer
    return head


class Server(socketserver.ThreadingTCPServer):
    """The HTTP server of one Eco-Devices: a thread for each connection.

    A connection has one request, as with the device.  (http.server's own servers look
    up the name of this machine, which can hang.)
    """

    MOST_CONNECTIONS = 32  # each takes a thread and a file descriptor
    REFUSAL_WAITS = 1.0  # seconds, so that guessing a password is slow
    request_queue_size = 128  # connections that wait in the kernel
    allow_reuse_address = True  # the port of a server that has just ended is free
    daemon_threads = True  # they end with the program

    def __init__(self, device: Device, settings: Settings, store: Store) -> None:
        self.device = device
        self._hourly = Limiter(HOUR)  # of all threads: at worst a line comes twice
        self._settings = settings
        self._started = time.monotonic()
        self._connections: list[socket.socket] = []  # the oldest first
        self._store = store
        super().__init__((settings.http.address, device.port), Handler)

    def answer(self, name: str, client: Client) -> Answer:
        """Return the document of this name; status 500 after a bug.

        Note the client, unless it is the page, which reads none of DOCUMENTS.
        """
        now = time.monotonic()
        try:
            if name not in DOCUMENTS:
                return self._answer_page(name, now)
            self._store.note_client(client, now)
            inputs = served(self._store.read(), now)
            return answer_document(name, self.device, inputs, time.localtime())
        except Exception as bug:  # noqa: BLE001
            text = str(BUG.with_words(repr(bug)))
            log_bug(name)
            if self._hourly.claim("bug", now):
                log.warning("%s : %s", name, text)
            return Answer(500, TEXT, f"{text}\r\n".encode())

    def _answer_page(self, path: str, now: float) -> Answer:
        if path in HOME_PAGES:
            html = "text/html; charset=utf-8"
            return Answer(200, html, HOME_PAGE, HOME_PAGE_HEADERS)
        if path == "/ecolinky.json":
            name = self.device.hostname
            content = describe(self._settings, name, self._store, self._started, now)
            return as_json(content)
        if path == "/history.json":
            return as_json(describe_histories(self._store, now))
        return NOT_FOUND

    def accepts(self, header: str) -> bool:
        """Return whether a client with this Authorization header may read."""
        http = self._settings.http
        if not http.username:
            return True
        scheme, _, token = header.encode("utf-8", "replace").partition(b" ")
        is_right = hmac.compare_digest(token.strip(), http.token.encode())
        return is_right and scheme.lower() == b"basic"

    def wait_to_refuse(self, address: str) -> None:
        """Log a wrong password, and wait."""
        if self._hourly.claim("login", time.monotonic()):
            log.warning(
                "mot de passe refusé à %s, le corriger là-bas, ou dans [http]", address
            )
        time.sleep(self.REFUSAL_WAITS)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin a connection; if there are too many, end the oldest.

        Only the accepting thread uses the list of connections.
        """
        # A negative file descriptor: the connection's own thread has closed it.
        still_open = [known for known in self._connections if known.fileno() >= 0]
        if len(still_open) >= self.MOST_CONNECTIONS:
            oldest = still_open.pop(0)
            with contextlib.suppress(OSError):  # it has just been closed
                oldest.shutdown(socket.SHUT_RDWR)  # this ends its thread
        self._connections = [*still_open, request]
        super().process_request(request, client_address)

    def handle_error(self, _request: object, client_address: object) -> None:
        """Log a client that went away, or a bug, without a traceback."""
        log.debug("%s : %r", client_address, sys.exc_info()[1])


class Handler(BaseHTTPRequestHandler):
    """Answers the request of one connection.

    http.server only parses the head.  It would read a hundred lines of 64 KiB from
    anybody before it asks for a password, and start its time-out again with each byte.
    """

    server: Server
    server_version = "ecolinky/" + __version__
    sys_version = ""
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body leave together
    # For the answer to a request that is too long to be parsed:
    requestline = ""
    command = ""

    def handle(self) -> None:
        """Read a request and answer it."""
        head = read_head(self.connection)
        if head is None:
            self.send_error(431)
            return
        self.rfile = io.BytesIO(head)
        self.handle_one_request()  # this calls do_GET, do_HEAD or send_error

    def do_GET(self) -> None:
        """Answer with a document, or refuse a wrong password."""
        address = self.client_address[0]
        header = self.headers.get("Authorization", "")
        if self.server.accepts(header):
            agent = agent_of(self.headers.get("User-Agent", ""))
            client = Client(address, agent, self.server.device.port)
            self._send(self.server.answer(name_of_document(self.path), client))
            return
        if header:  # browsers first send none
            self.server.wait_to_refuse(address)
        self._send(UNAUTHORISED)

    do_HEAD = do_GET  # the same answer, without its body

    def send_error(
        self, code: int, _message: str | None = None, _explain: str | None = None
    ) -> None:
        """Answer a request that http.server itself refuses, in one line."""
        self.request_version = self.protocol_version  # HTTP/0.9 would have no headers
        self._send(Answer(code, TEXT, f"{REFUSALS[code]}\r\n".encode()))

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        for name, value in answer.headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Log a request, at level DEBUG."""
        log.debug("%s : %s", self.client_address[0], ascii(format % arguments))


DISCOVERY_PORT = 30303  # of UDP


def answer_discovery(device: Device) -> None:
    """Answer searches for Eco-Devices for ever, as the device does, in three lines."""
    lines = f"{device.hostname}\r\n{device.mac}\r\n{device.port}\r\n"
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        # A listener bound to a single address would hear no broadcast.
        listener.bind(("0.0.0.0", DISCOVERY_PORT))
    except OSError as error:
        words = words_of(error)
        log.warning(
            "discovery, port UDP %d %s, tout le reste marche", DISCOVERY_PORT, words
        )
        return
    while True:
        with contextlib.suppress(OSError):  # the client is gone
            request, sender = listener.recvfrom(64)
            if request == b"Discover GCE Devices":
                listener.sendto(lines.encode("ascii"), sender)


######## Check: what is wrong with the link ############################################

BEGUN = ""
OK = "ok"
WARNING = "ATTENTION"
FAILED = "ÉCHEC"


def tell(text: str, stream: TextIO, end: str = "\n") -> None:
    """Print a line for the user; ignore a stream that is closed."""
    with contextlib.suppress(OSError):
        print(text, file=stream, end=end, flush=True)


def terminal_width() -> int:
    """Return the width for a line, 0 if standard output is no terminal."""
    if not sys.stdout.isatty():
        return 0
    return shutil.get_terminal_size().columns - 1  # a full line would scroll


def tell_for_now(text: str) -> None:
    """Show a line until the next line, on a terminal only; an empty text wipes it."""
    width = terminal_width()
    if width:
        tell("\r" + text[:width].ljust(width), sys.stdout, end="\r")


class Finding(NamedTuple):
    """A line that --check prints."""

    verdict: str  # OK, WARNING or FAILED; BEGUN: not known yet
    about: str
    text: str

    @property
    def line(self) -> str:
        """The finding as it is printed."""
        return f"{self.verdict:9} {self.about} : {self.text}"


def show(finding: Finding) -> None:
    """Print a finding; on a terminal, broken at words to fit its width."""
    line = finding.line
    width = terminal_width()
    if width:
        line = textwrap.fill(line, width, subsequent_indent=" " * 10)  # the verdict's
    tell(line, sys.stdout)


READING = "je lis %s:%d, %.0f secondes au plus..."
ENOUGH_FRAMES = 5  # to see the quality of a line
ENOUGH_EVICTIONS = 2  # after the first, the ESP may just have started
OTHER_READER = "un autre programme lit cet ESP, l'arrêter et recommencer"
OWN_READER = "ecolinky tourne déjà et lit cet ESP : l'arrêter, puis recommencer"


def look_at(
    number: int, settings: InputSettings, input_2: str, seconds: float
) -> Snapshot:
    """Read an input for at most so many seconds; return its last snapshot."""
    store = Store()
    # A fault must be known before the time ends.
    reader = Reader(number, settings, store, input_2, patience=seconds / 2)
    end = time.monotonic() + seconds
    snapshot = store.read()[number]
    reader.start()
    try:
        while time.monotonic() < end and not is_decided(snapshot):
            time.sleep(0.05)
            before = snapshot
            snapshot = store.read()[number]
            if snapshot is not before:
                tell_for_now(news(snapshot, before))
    finally:
        reader.stopped.set()
        tell_for_now("")  # also after Ctrl-C
    return snapshot


def news(snapshot: Snapshot, before: Snapshot) -> str:
    """Return the counters, and the groups that differ from an earlier snapshot."""
    known = before.view.labels.items()
    labels = snapshot.view.labels.items()
    groups = [" ".join(group) for group in labels if group not in known]
    return ", ".join([counted(snapshot), *groups])


def counted(snapshot: Snapshot) -> str:
    """Return the number of intact and of damaged groups, in words."""
    groups = snapshot.counts.groups
    damaged = snapshot.counts.damaged
    intact = "groupes intacts" if groups > 1 else "groupe intact"
    return f"{groups} {intact}, {damaged} " + ("abîmés" if damaged > 1 else "abîmé")


def is_decided(snapshot: Snapshot) -> bool:
    """Return whether reading an input for longer would change nothing."""
    # After a single brief connection, the ESP may just have started: wait.
    if snapshot.brief_connections:
        return snapshot.brief_connections >= ENOUGH_EVICTIONS
    if snapshot.counts.frames == 0:
        # Any other failure is enough.
        return snapshot.reason != NO_FRAME_YET
    is_served = snapshot.view.fields is not None
    return is_served and snapshot.counts.frames >= ENOUGH_FRAMES


def other_reader(snapshot: Snapshot, used: Container[str]) -> str:
    """Return that another program reads the ESP, and what to do; empty: none does."""
    is_brief = snapshot.brief_connections >= ENOUGH_EVICTIONS
    is_evicted = is_brief and snapshot.counts.groups > 0
    if snapshot.source in used and (is_evicted or snapshot.view.fields is None):
        return OWN_READER
    return OTHER_READER if is_evicted else ""


def judge(
    name: str, snapshot: Snapshot, used: Container[str] = ()
) -> Iterator[Finding]:
    """Yield the findings about an input; the last one is the verdict.

    used: as of used_by_ecolinky().
    """
    view = snapshot.view
    other = other_reader(snapshot, used)
    if other:
        yield Finding(FAILED, name, other)
        return
    if snapshot.counts.groups:
        yield Finding(OK, name, counted(snapshot))
    reason = str(snapshot.reason)
    for remark in map(str, snapshot.remarks):
        if remark not in reason:  # the failure says it
            yield Finding(WARNING, name, remark)
    if view.fields is not None:
        for text in summary(view, view.fields):
            yield Finding(OK, name, text)
        yield Finding(OK, name, "ses valeurs seront transmises")
        return
    if snapshot.reason == TO_BE_CONFIRMED:
        reason = f"il manque {', '.join(view.missing) or 'une troisième trame'}"
    yield Finding(FAILED, name, f"rien ne sera transmis, {reason}")


def summary(view: View, fields: Fields) -> Iterator[str]:
    """Yield a meter's values, for the user to compare with the meter's screen."""
    phases = "triphasé" if phase_count(fields) == 3 else "monophasé"
    contract = f"tarif {name_of_tariff(fields)}, {fields['ISOUSC']} A"
    now = f"en cours {PERIODS[fields['PTEC']].name}, {fields['PAPP']} VA"
    line = f"mode {MODE_NAMES[view.mode]}, {phases}"
    yield f"compteur {fields['ADCO']}, {contract}, {now}, {line}"
    for tag, index in indexes_of(fields).items():
        yield f"index {tag} = {index} Wh"
    kwh = old_contracts(view.labels) // 1000
    if kwh:
        yield f"dont {kwh} kWh d'anciens contrats, que l'écran ne montre pas"


def old_contracts(labels: Labels) -> int:
    """Return the energy, Wh, in indexes of former contracts; 0 if it is not known."""
    contract = contract_of(labels) or UNKNOWN
    return sum(number_of(labels, label) or 0 for label in EASF[contract.used :])


TAKEN_BY_ECOLINKY = (
    "pris par ecolinky, pour l'arrêter Ctrl-C dans sa fenêtre, sudo systemctl stop"
    ' ecolinky, ou pkill -f "^python3.*ecolinky[.]py"'
)


def used_by_ecolinky(http: HttpSettings) -> set[str]:
    """Return what the ecolinky that answers on [http] port uses; empty: none answers.

    That is its ports, as "port 4000", and host:port of each ESP8266.
    Another program may answer, or another version of ecolinky: expect anything.
    """
    used = set()
    address = http.address
    if address == "0.0.0.0":
        address = "127.0.0.1"
    headers = {"Authorization": "Basic " + http.token}
    with contextlib.suppress(Exception):
        # It waits a second before it refuses a wrong password.
        connection = HTTPConnection(address, http.port, timeout=3)
        with contextlib.closing(connection):
            connection.request("GET", "/ecolinky.json", headers=headers)
            answer = connection.getresponse()
            if answer.getheader("Server", "").startswith("ecolinky"):
                used.add(f"port {http.port}")
                content = json.loads(answer.read().decode())
                used.update(f"port {port}" for port in content["ports"])
                for source in content["inputs"]:
                    used.add(source["source"])
                    # Version 1.1.0 has none; "port None" is harmless.
                    used.add(f"port {source['relay_port']}")
    return used


def fault_of_port(error: OSError, name: str) -> str:
    """Return why a port cannot be opened, and the remedy; name: of the port's key."""
    remedy = f"changer {name}"
    if error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
        remedy = "mettre 0.0.0.0 à [http] address"
    elif error.errno == errno.EACCES:
        free = HTTP_PORTS.get(name, 8889)
        remedy = f"au-dessous de 1024 ils sont réservés à root, mettre {free} à {name}"
    elif error.errno == errno.EADDRINUSE:
        remedy = f"ecolinky tourne-t-il déjà ? Sinon changer {name}"
    return f"{words_of(error)}, {remedy}"


def check_port(key: str, address: str, port: int, used: Container[str] = ()) -> Finding:
    """Try to listen on the port of a key; used: as of used_by_ecolinky()."""
    about = f"port {port}"
    if about in used:  # a relay's port may be closed just now
        return Finding(WARNING, about, TAKEN_BY_ECOLINKY)
    try:
        listen(address, port).close()
    except OSError as error:
        return Finding(FAILED, about, fault_of_port(error, key))
    return Finding(OK, about, "libre")


def own_address(settings: Settings) -> str:
    """Return the address to give to Domoticz."""
    if settings.http.address != "0.0.0.0":
        return settings.http.address
    # If the first host is this machine itself, try a host far away (RFC 5737).
    for host in (settings.teleinfo1.host, "192.0.2.1"):
        probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with probe, contextlib.suppress(OSError):
            probe.connect((host, 9))  # UDP: nothing is sent
            address = str(probe.getsockname()[0])
            if not address.startswith("127."):
                return address
    return "de cette machine"


def check_all(settings: Settings, seconds: float) -> Iterator[Finding]:
    """Yield each finding as soon as it is known."""
    used = used_by_ecolinky(settings.http)
    for number, source in settings.inputs.items():
        name = f"teleinfo{number}"
        yield Finding(BEGUN, name, READING % (source.host, source.port, seconds))
        snapshot = look_at(number, source, settings.second, seconds)
        yield from judge(name, snapshot, used)
    yield from check_ports(settings, used)


def check_ports(settings: Settings, used: Container[str]) -> Iterator[Finding]:
    """Yield whether each port is free, then what to enter in Domoticz."""
    usable = []
    for key, port in settings.named_ports.items():
        finding = check_port(key, settings.http.address, port, used)
        yield finding
        if finding.verdict != FAILED:
            usable.append(port)
    address = own_address(settings)
    for port in usable:
        about = "Domoticz"
        hardware = "Eco Devices"
        if port not in settings.ports:
            about = "TIC vérifiée"
            hardware = "Teleinfo EDF with LAN interface"
        place = f"matériel {hardware}, adresse {address}, port {port}"
        yield Finding(OK, about, place)


def check(settings: Settings, seconds: float = 20.0) -> int:
    """Print each finding when it is known, failures at the end.

    Return 1 if a check failed, otherwise 0.
    """
    failed = []
    for finding in check_all(settings, seconds):
        if finding.verdict == FAILED:
            failed.append(finding)  # where the user reads first
        else:
            show(finding)
    for finding in failed:
        show(finding)
    return 1 if failed else 0


######## Demo: a simulated meter behind a TCP socket ###################################

# The groups of each mode, one per line: label, timestamp if the group has it, data
# (empty for DATE); ~ is a space.
DEMO_FRAMES = {
    "historic": """
ADCO|021728123456
OPTARIF|HC..
ISOUSC|30
HCHC|{cheap}
HCHP|{dear}
PTEC|{period}..
IINST|{amperes}
IMAX|090
PAPP|{power}
HHPHC|A
MOTDETAT|000000""",
    "tempo": """
ADCO|021728654321
OPTARIF|BBR(
ISOUSC|45
BBRHCJB|{cheap}
BBRHPJB|{dear}
BBRHCJW|001000000
BBRHPJW|001111111
BBRHCJR|001222222
BBRHPJR|001333333
PTEC|{period}JB
DEMAIN|BLAN
IINST|{amperes}
IMAX|090
PAPP|{power}
HHPHC|A
MOTDETAT|000000""",
    "three-phase": """
ADCO|041620123456
OPTARIF|BASE
ISOUSC|20
BASE|{total}
PTEC|TH..
IINST1|{phase1}
IINST2|{phase2}
IINST3|{phase3}
IMAX1|060
IMAX2|060
IMAX3|060
PMAX|06030
PAPP|{power}
HHPHC|A
MOTDETAT|000000
PPOT|00""",
    "standard": """
ADSC|041761123456
VTIC|02
DATE|{stamp}|
NGTF|H~PLEINE/CREUSE~
LTARF|~HEURE~~{hours}~~
EAST|{total}
EASF01|{cheap}
EASF02|{dear}
EASF03|000000000
EASF04|000000000
EASF05|000000000
EASF06|000000000
EASF07|000000000
EASF08|000000000
EASF09|000000000
EASF10|000000000
EAIT|{injected}
ERQ1|000000123
ERQ2|000000456
ERQ3|000000789
ERQ4|000000012
IRMS1|{amperes}
URMS1|231
PREF|06
SINSTS|{power}
SMAXSN|{stamp}|04730
SINSTI|{returned}
STGE|003A0{bits}01
PRM|09123456789012
NTARF|{number}""",
}
# The differences between cheap and dear hours; `bits` is the STGE digit with NTARF.
DEMO_HOURS = {
    "cheap": {"period": "HC", "hours": "CREUSE", "bits": "0", "number": "01"},
    "dear": {"period": "HP", "hours": "PLEINE", "bits": "4", "number": "02"},
}


class DemoMeter:
    """A simulated meter; its indexes grow with its power."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self._wh = {"cheap": 12345678.0, "dear": 23456789.0, "injected": 4567890.0}
        self._time: float | None = None  # of the last frame

    def power(self, now: float) -> int:
        """Return the VA at `now` seconds: a kettle, an oven, solar panels."""
        power = int(420 + 180 * math.sin(now / 97) + 40 * math.sin(now / 7))
        kettle_is_on = now % 300 < 45
        oven_heats = now % 1700 > 1250 and now % 40 < 25
        # Only standard mode has a label for injection.
        sun_shines = now % 300 >= 180 and self.mode == "standard"
        if kettle_is_on:
            power += 2100
        if oven_heats:
            power += 1800
        if sun_shines:
            power -= 1500  # below 0 the house injects, unless the oven heats
        return power

    def frame(self, now: float) -> bytes:
        """Return the frame that the meter sends at `now` seconds."""
        running = "cheap" if now % 1800 < 600 else "dear"
        power = self.power(now)
        self._count(power, running, now)
        values = {**self._values(power), **DEMO_HOURS[running]}
        separator = "\t" if self.mode == "standard" else " "
        groups = []
        for line in DEMO_FRAMES[self.mode].split():
            words = line.format(**values).replace("~", " ").split("|")
            groups.append(encode_group(words, separator))
        return encode_frame(groups)

    def _count(self, power: int, running: str, now: float) -> None:
        """Add the energy since the last frame to the running index."""
        if power < 0:
            running = "injected"
        if self._time is not None:
            self._wh[running] += abs(power) * (now - self._time) / HOUR
        self._time = now

    def _values(self, power: int) -> dict[str, str]:
        """Return the values for the placeholders of DEMO_FRAMES."""
        amperes = abs(power) / MAINS_VOLTS
        total = int(self._wh["cheap"]) + int(self._wh["dear"])
        values = {name: f"{int(wh):09}" for name, wh in self._wh.items()}
        values.update(
            total=f"{total:09}",
            power=f"{max(0, power):05}",
            returned=f"{max(0, -power):05}",
            amperes=f"{round(amperes):03}",
            # At least 1 A per phase: Domoticz recognises three-phase meters by it.
            phase1=f"{int(1 + 0.5 * amperes):03}",
            phase2=f"{int(1 + 0.3 * amperes):03}",
            phase3=f"{int(1 + 0.2 * amperes):03}",
            stamp=time.strftime("H%y%m%d%H%M%S"),
        )
        return values


def send_demo(meter: DemoMeter, listener: socket.socket) -> None:
    """Send a meter's frames at line speed, to one client at a time, for ever."""
    baud = 9600 if meter.mode == "standard" else 1200  # bits per second
    while True:
        client, _ = listener.accept()
        with client, contextlib.suppress(OSError):  # the client is gone
            while True:
                data = meter.frame(time.monotonic())
                client.sendall(data)
                time.sleep(len(data) * 10 / baud)  # 10 bits per byte


def in_background(call: Callable[..., None], *arguments: object) -> None:
    """Call a function in a thread that ends with the program."""
    threading.Thread(target=call, args=arguments, daemon=True).start()


def start_demo(mode: str, settings: Settings) -> Settings:
    """Start a simulated meter; return the settings that read only this meter."""
    listener = listen("127.0.0.1", 0)
    in_background(send_demo, DemoMeter(mode), listener)
    host, port = listener.getsockname()
    return settings._replace(
        teleinfo1=settings.teleinfo1._replace(host=host, port=port),
        teleinfo2=settings.teleinfo2._replace(host=""),
    )


######## Main ##########################################################################

VERSION = "ecolinky " + __version__
HELP = """\
usage : python3 ecolinky.py [--config FICHIER] [--check] [--demo [MODE]] [--verbose]
                            [--version]
Montre un compteur Linky à Domoticz comme un boîtier GCE Eco-Devices.

  --config FICHIER  les réglages (sinon : ecolinky.ini à côté d'ecolinky.py)
  --check           examiner la liaison et dire ce qui ne va pas
  --demo [MODE]     un compteur simulé : historic, standard, tempo ou three-phase
  --verbose         montrer les valeurs de chaque trame, et chaque requête
  --version         dire la version"""
LEVEL_NAMES = {
    logging.DEBUG: "détail",
    logging.INFO: "info",
    logging.WARNING: "ATTENTION",
}


class Parser(argparse.ArgumentParser):
    """A command-line parser that speaks French."""

    def error(self, _message: str) -> NoReturn:
        """Print one line that quotes the arguments, and exit with code 2."""
        written = " ".join(sys.argv[1:])
        complaint = f"ecolinky : {written}, option inconnue ou incomplète, voir --help"
        tell(complaint, sys.stderr)
        sys.exit(2)

    def print_help(self, _file: object = None) -> None:
        """Print the text of --help."""
        tell(HELP, sys.stdout)


class LogHandler(logging.Handler):
    """Writes the log, but drops a line rather than wait for a stuck reader."""

    # Characters of up to 4 bytes: a ready pipe takes 4,096 bytes (PIPE_BUF).
    LONGEST = 1000

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line if standard error takes it at once."""
        ready = [sys.stderr]
        # On Windows select() takes no file.
        with contextlib.suppress(OSError, ValueError):
            _, ready, _ = select.select([], [sys.stderr], [], 0)
        if ready:
            tell(self.format(record)[: self.LONGEST], sys.stderr)


def start_log(level: str) -> None:
    """Send the log to standard error, from this level on."""
    for number, name in LEVEL_NAMES.items():
        logging.addLevelName(number, name)
    logging.basicConfig(
        level=level.upper(),
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
        handlers=[LogHandler()],
    )


def main() -> int:
    """Run the program; return its exit code: 0 stopped, 1 cannot run, 2 usage."""
    parser = Parser(allow_abbrev=False)
    folder = os.path.dirname(os.path.abspath(__file__))
    parser.add_argument("--config", default=os.path.join(folder, "ecolinky.ini"))
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--demo", nargs="?", const="historic", choices=DEMO_FRAMES)
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--version", action="version", version=VERSION)
    options = parser.parse_args()
    try:
        settings = read_settings(options.config, bool(options.demo))
    except ConfigError as error:
        tell(f"ecolinky : {error}", sys.stderr)
        return 2
    level = settings.log.level
    if options.check:
        level = "critical"  # --check itself prints the faults
    if options.verbose:
        level = "debug"
    start_log(level)
    if options.demo:
        settings = start_demo(options.demo, settings)
    if options.check:
        return check(settings)
    return serve(settings, bool(options.demo))


def devices_of(settings: Settings) -> list[Device]:
    """Return the Eco-Devices to show; the second device is for input 2."""
    port = settings.http.port
    mac = settings.ecodevice.mac.lower().replace("-", ":") or lasting_mac(port)
    first = Device(settings.ecodevice.hostname, mac, port, False)
    return [first] + [second_device(first, port) for port in settings.ports[1:]]


NOT_OUR_ADDRESS_YET = (
    "[http] address %s n'est pas celle de cette machine, mettre 0.0.0.0 si cela dure,"
    " nouvel essai chaque seconde"
)


def wait_for_address(address: str) -> None:
    """Wait until an address, or a host name, belongs to this machine.

    Wi-Fi may come after `@reboot`; if the program ended, cron would not start it again.
    """
    hourly = Limiter(HOUR)
    while True:
        with contextlib.suppress(OSError):
            listen(address, 0).close()
            return
        if hourly.claim(NOT_OUR_ADDRESS_YET, time.monotonic()):
            log.warning(NOT_OUR_ADDRESS_YET, address)
        time.sleep(1)


@contextlib.contextmanager
def opening(name: str, port: int) -> Iterator[None]:
    """End the program, with one line, if a port cannot be opened."""
    try:
        yield
    except OSError as error:
        about = f"port {port},"
        if error.errno in (errno.EADDRINUSE, errno.EACCES):  # "déjà pris", "interdit"
            about = f"le port {port} est"
        sys.exit(f"ecolinky : {about} {fault_of_port(error, name)}")


def open_readers(settings: Settings, store: Store) -> list[Reader]:
    """Return the readers of the inputs, not yet started."""
    address = settings.http.address
    readers = []
    for number, source in settings.inputs.items():
        relay = None
        if source.relay_port:
            with opening(f"[teleinfo{number}] relay_port", source.relay_port):
                now = time.monotonic()
                relay = Relay(address, source.relay_port, source.timeout, now)
        readers.append(Reader(number, source, store, settings.second, relay))
    return readers


def open_servers(settings: Settings, store: Store) -> list[Server]:
    """Return the HTTP servers of the devices."""
    servers = []
    # named_ports begins with the HTTP ports, in the order of the devices.
    for name, device in zip(settings.named_ports, devices_of(settings)):
        with opening(name, device.port):
            servers.append(Server(device, settings, store))
    return servers


def serve(settings: Settings, demo: bool) -> NoReturn:
    """Read the meters and answer until SIGINT or SIGTERM."""
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    wait_for_address(settings.http.address)
    store = Store()
    readers = open_readers(settings, store)
    servers = open_servers(settings, store)
    ports = " et ".join(f"le port {port}" for port in settings.ports)
    if demo:
        ports += " (compteur simulé)"
    try:
        log.info("%s répond sur %s", VERSION, ports)
        for reader in readers:
            reader.start()
        for server in servers:
            in_background(server.serve_forever)
        if settings.ecodevice.discovery:
            in_background(answer_discovery, servers[0].device)
        # Python calls stop() in this thread.  If the thread ran a destructor just then,
        # Python would ignore the exit: so this thread only sleeps.
        while True:
            time.sleep(1)
    finally:
        log.info("ecolinky s'arrête")


def stop(*_: object) -> NoReturn:
    """End the program on a signal; its threads end with it.

    Write nothing here: the signal may have interrupted a line that is being written.
    """
    # A second signal ends the program at once: not by a handler of ours, because Python
    # 3.7 runs none while this handler runs.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.exit(0)


def run() -> int:
    """Run main with any standard output and error; return the exit code."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell, as with >&-
            stream = open(os.devnull, "w")  # noqa: SIM115
        if isinstance(stream, io.TextIOWrapper):  # not in an editor's window
            stream.reconfigure(errors="replace")  # some locales have no accents
        setattr(sys, name, stream)
    # A shell starts a background job with SIGINT ignored: Ctrl-C works there, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return main()
    except KeyboardInterrupt:
        return 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:  # the reader has left (--check | head), or the disk is full
                # The interpreter would complain when it closes the stream.
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


######## Home page: a page for people; it reads /ecolinky.json #########################

HOME_PAGE = r"""<!DOCTYPE html>
<html lang="fr">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>ecolinky</title>
<link rel="icon" id="icon"
  href="data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg'
  viewBox='0 0 32 32'%3E%3Crect width='32' height='32' rx='9' fill='%23128a63'/%3E
  %3Cpath d='M18 5 8 18h7l-1 9 10-13h-7z' fill='white'/%3E%3C/svg%3E">
<style>
/* Colours: every text has a contrast of 4.5 or more with its background. */
body {
  --page: #f1f4f1; --card: #fff; --ink: #15211b; --soft: #5d6b63; --line: #e3e8e4;
  --good: #0d7d58; --warn: #a15c00; --bad: #c92d28; --blue: #2a66d9; --on: #fff;
}
@media screen and (prefers-color-scheme: dark) {
  body {
    --page: #0d1210; --card: #161d1a; --ink: #e9f0ec; --soft: #95a49b; --line: #27312c;
    --good: #35c892; --warn: #f5ad3c; --bad: #ff6a61; --blue: #5b92ff; --on: #0b0f0d;
  }
}
@media print { body { --page: #fff; print-color-adjust: exact; } }

/* A state is a class of a pill, a problem, a station, a gauge or a phase: --mark is its
   colour.  The values of a card that is not live are grey, but easy to read. */
.good { --mark: var(--good); }
.warn { --mark: var(--warn); }
.bad { --mark: var(--bad); }
.soft { --mark: var(--soft); }
.notice { --mark: var(--ink); }
.pill, .problem b, .limit b, .row b, .bad span, .warn span { color: var(--mark); }
.old .values { --good: var(--soft); color: var(--soft); }

/* The page. */
* { box-sizing: border-box; margin: 0; }
body {
  background: var(--page); color: var(--ink); max-width: 1160px; margin: 0 auto;
  padding: min(20px, 3vw); font: .9375rem/1.45 system-ui, sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere;
}
header { display: flex; flex-wrap: wrap; align-items: center; gap: 12px; }
h1, h2 { flex: auto; margin: 8px 0; font-size: 1.25rem; }
a { color: inherit; }
code, .pill { font-size: .875em; }
small, .way, .limit, .sum, thead, .report, summary, .caption {
  color: var(--soft); font-size: .8125rem; font-weight: 400;
}
summary { cursor: pointer; padding: 6px 0; }
#down:not(:empty), noscript p, .to-do {
  border-radius: 14px; padding: 12px 18px; margin-bottom: 16px; font-size: 1.125rem;
}
#down, noscript p { background: var(--bad); color: var(--on); }
.to-do { border: 2px solid var(--good); order: -1; }
.to-do summary { color: inherit; font-size: 1.25rem; font-weight: 600; }
main { display: flex; flex-direction: column; }
#cards { display: grid; align-items: start; gap: 20px; margin-bottom: 12px; }

/* A card: head, way of the values, one or two columns, details. */
.card {
  background: var(--card); border-radius: 22px; padding: min(22px, 4vw);
  box-shadow: 0 1px 2px #1b33250f, 0 10px 30px #1b332512;
}
.pill { border: 1px solid; border-radius: 20px; padding: 3px 12px; font-weight: 600; }
.problem { padding: 12px 0; font-size: 1.0625rem; }
.problem b, #down b { display: block; font-size: 1.25rem; line-height: 1.3; }
.report { white-space: pre-line; user-select: all; }

/* The way of the values: the stations, each with its sign. */
.way { display: grid; gap: 6px 18px; list-style: none; }
.way, .row, tr { border-top: 1px solid var(--line); padding: 7px 0; }
.way li { display: flex; flex-wrap: wrap; align-content: start; gap: 0 8px; }
.way b { min-width: 6.6rem; color: var(--ink); }
.way span { flex: 1 1 7rem; }
.way i {
  width: 1.25rem; height: 1.25rem; border-radius: 50%; background: var(--mark);
  color: var(--card); font: 700 .8rem/1.25rem system-ui, sans-serif; text-align: center;
}

/* The gauge, with the power in the middle, and today's energy beside it. */
.gauge { display: flex; flex-wrap: wrap; align-items: center; justify-content: center; }
.gauge p { flex: 0 1 6rem; text-align: center; }
.gauge div { position: relative; flex: 1 1 13rem; max-width: 19rem; }
svg { display: block; width: 100%; }
path { fill: none; stroke: var(--line); }
.gauge path { stroke-width: 13; stroke-linecap: round; }
.gauge .value { stroke: var(--mark); }
.gauge b { display: block; font-size: 1.5rem; line-height: 1.2; }
.gauge .power { position: absolute; width: 100%; top: 34%; }
.gauge .power b { font-size: min(3.3rem, 10.5vw); }
.gauge .limit { margin-top: -6.5%; min-height: 2.9rem; }
.gauge .limit b { font-size: .9375rem; }

/* Rows: a name on the left, values on the right. */
.row, tr { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 8px; }
table, thead, tbody { display: block; }
tr > * { flex: 0 0 6rem; margin-left: auto; font-weight: inherit; text-align: right; }
tr > :first-child { flex: 1 0 5rem; text-align: left; }
tr > :nth-child(2) { flex-basis: 5.2rem; }
.running { color: var(--good); font-weight: 600; }

/* The days of the Tempo tariff, in their colours; dashed: not known. */
.days { display: grid; grid-template-columns: 1fr 1fr; gap: 10px; padding: 6px 0; }
.day { border: 2px dashed var(--soft); border-radius: 14px; padding: 9px 14px; }
.day small { display: block; color: inherit; }
.bleu, .blanc, .rouge { border-style: solid; }
.bleu { background: var(--blue); color: var(--on); }
.blanc { background: #fff; color: #15211b; }
.rouge { background: var(--bad); color: var(--on); }
.old .day { background: none; color: inherit; }

/* The power curve: its picture is stretched, the texts around it are not. */
.chart { position: relative; height: 168px; margin: 20px 17px 30px 52px; }
.chart { font-size: min(.75rem, 3.6vw); color: var(--soft); white-space: nowrap; }
.chart svg, .chart input { position: absolute; height: 100%; overflow: visible; }
.chart input { left: -8px; width: calc(100% + 16px); z-index: 1; }
.chart input { opacity: 0; touch-action: pan-y; }
.chart input:focus-visible + svg { outline: 2px solid var(--ink); }
.chart svg * { vector-effect: non-scaling-stroke; }
.chart .limit-line { stroke: var(--bad); stroke-dasharray: 5 5; }
.chart .curve { stroke: var(--good); stroke-width: 1.5; stroke-linecap: round; }
.chart .area { fill: var(--good); stroke: none; opacity: .14; }
.chart .now { stroke-width: 8; }
.chart .pointed { stroke: var(--ink); }
.cheap, .swatch { fill: var(--blue); background: var(--blue); opacity: .28; }
.gap { fill: none; stroke: var(--soft); stroke-dasharray: 4 3; }
.swatch { display: inline-block; width: 14px; height: 10px; margin-left: 10px; }
.chart span { position: absolute; }
.va { top: var(--at); right: calc(100% + 8px); transform: translateY(-50%); }
.at { left: var(--at); top: 104%; transform: translateX(-50%); }
.limit-name { left: 6px; top: var(--at); margin-top: -1.6em; background: var(--card); }
/* At 0 % a name begins at its place, at 100 % it ends there: it stays in the chart. */
.name { left: var(--at); bottom: 100%; transform: translateX(calc(-1 * var(--at))); }

@media (min-width: 56em) {
  .one-input .columns { display: grid; grid: auto / 310px minmax(0, 1fr); gap: 36px; }
  .one-input .way { grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); }
  .one-input .way span { flex-basis: 100%; }
  .one-input .sum { display: none; }
  .two-inputs #cards { grid-template-columns: repeat(2, minmax(0, 1fr)); }
}
</style>
</head>
<body>
<header><img id="logo" alt="" width="30">
<h1>ecolinky</h1><span id="clock"></span></header>
<noscript><p>Cette page a besoin de JavaScript. Les mêmes valeurs sont dans
<a href="ecolinky.json">ecolinky.json</a>.</p></noscript>
<div id="down" role="alert"></div>
<main><div id="cards"></div>
<details id="domoticz"><summary id="places-title">À mettre dans Domoticz</summary>
<div id="places"></div></details>
</main>
<script>
"use strict";
// Every two seconds poll() asks for /ecolinky.json, every minute for /history.json too.
// cardHtml() makes HTML of an input, and show() puts it into the page.

const POLL_MS = 2000;
const TIMEOUT_MS = 5000;
const PATIENCE_MS = 10000;  // an older answer is not live: the computer was asleep
const LATE_MS = 8000;  // a frame lasts 3 s at most, and an answer is 2 s old at most
const MINUTE_MS = 60000;
const READ_LATELY_MS = 10 * MINUTE_MS;  // Domoticz reads at least once a minute
const MINUTES = 1440;  // of the chart: a day
const DAY_MS = MINUTES * MINUTE_MS;

// The meter compares the power with PREF, which is ISOUSC times 200 V, in standard mode
// (Enedis-NOI-CPT_54E), and the current with ISOUSC, at 230 V, in historic mode.
const LIMIT_VOLTS = { historic: 230, standard: 200 };

// Who reads, by User-Agent (TIC: the relay); with fewer reads it may be a person.
const SOMEBODY = "Un programme";
const PROGRAMS = [
  { name: "Domoticz", agent: /domoticz/i, least: 2 },
  { name: "Home Assistant", agent: /home.?assistant/i, least: 2 },
  { name: "Lecteur TIC", agent: /^TIC$/, least: 100 },
  { name: SOMEBODY, agent: /^/, least: 4 },
];

const DASH = "–";
const NBSP = "\u00a0";  // the space before : ; ? ! and a unit in French
const MODES = { historic: "historique", standard: "standard" };
const SIGNS = { good: ["✓", "en ordre"], warn: ["!", "à vérifier"],
  bad: ["!", "en défaut"], soft: ["?", "pas connu"] };
const REVIVE = "vérifier qu’il tourne et que son matériel est activé. Si ce"
  + " programme a été remplacé, redémarrer ecolinky";
const IF_HERE = " (si Domoticz est sur cette machine, sinon l’adresse de celle-ci)";
const UNREADABLE = "donne une réponse illisible, recharger la page";

const page = {
  seen: null,  // the last answer that could be shown; see meterOf()
  problem: "",  // why no answer could be shown since: what ecolinky does
  asking: false,  // a request is running
  chosen: {},  // the slider that is used (id), and its minute
};

//////// Words and numbers ////////////////////////////////////////////////////////////

function number(value, digits = 0) {
  if (!Number.isFinite(value)) return DASH;
  const options = { minimumFractionDigits: digits, maximumFractionDigits: digits };
  return value.toLocaleString("fr-FR", options).replace("-", "−");
}

function quantity(value, unit, digits = 0) {
  return number(value, digits) + NBSP + unit;
}

// With the date if `now` is more than a day later.
function clockTime(time, now = time) {
  const isOld = now - time >= DAY_MS;
  const date = isOld ? { day: "numeric", month: "long" } : {};
  const options = { hour: "2-digit", minute: "2-digit", ...date };
  return (isOld ? "le " : "") + new Date(time).toLocaleString("fr-FR", options);
}

function sentence(text) {
  return text && text[0].toUpperCase() + text.slice(1) + ".";
}

const UNITS = [["s", 1], ["min", 60], ["h", 3600]];  // up to 99 of each, then days
function duration(seconds) {
  const [unit, size] = UNITS.find((each) => seconds < 99.5 * each[1]) || ["j", 86400];
  return quantity(Math.max(0, seconds) / size, unit);
}

function ago(time, now) {
  return "il y a " + duration((now - time) / 1000);
}

// The result of html`...`: text that is already HTML.
class Markup extends String {}

// Everything except Markup is text, and is escaped.
function markup(value) {
  if (value instanceof Markup) return String(value);
  if (Array.isArray(value)) return value.map(markup).join("");
  return String(value).replace(/[&<>"]/g, (sign) => `&#${sign.charCodeAt(0)};`);
}

// Each part of the template is followed by its value, except the last part.
function html(parts, ...values) {
  const texts = [...values.map(markup), ""];
  return new Markup(parts.map((part, i) => part + texts[i]).join(""));
}

//////// A meter: an input, and what several parts of its card need ///////////////////

// `seen`: the answer and the histories, when they came (at, historyAt), the time (now),
// and whether the program answers (connected; if not, nothing is live).
function meterOf(input, index, seen) {
  const served = input.last || input;  // what was served last, or is served now
  const { fields, injection, tariff, phases } = served;
  const known = { ...input, fields, injection, tariff, phases };
  const live = seen.connected && input.state === "live";
  const { since, energy } = (live && input.today) || { energy: {} };
  const indexes = tariff ? tariff.indexes : [];
  const total = indexes.reduce((sum, { tag }) => sum + energy[tag], 0);
  const timeOf = (age) => age === null ? 0 : seen.at - age * 1000;
  return {
    ...known,
    ...powerOf(known),
    live,
    isRead: live && seen.now - timeOf(input.age) < LATE_MS,
    defects: [input.fault, ...(live ? input.remarks : [])],
    faultMark: live ? "warn" : "bad",
    day: since ? "depuis " + since : "aujourd’hui",
    energy: { ...energy, total },  // of today, Wh; empty if it may be yesterday's
    frameAt: timeOf(input.age),
    byteAt: timeOf(input.byte_age),
    servedAt: timeOf(served.age),
    history: seen.history.inputs[index],
  };
}

// In VA: the power, below 0 if the house injects, and the limit, 0 if not known.  Share
// of the limit: by the power (standard mode, one phase), else by the highest current.
function powerOf({ state, fields, injection, mode, phases }) {
  if (!fields && state !== "live") return { power: null, limit: 0, digits: DASH };
  const power = fields.PAPP - (injection ? injection.PAPP : 0);
  if (!Number.isFinite(power)) throw new Error("no power");  // poll(): UNREADABLE
  const limit = fields.ISOUSC * LIMIT_VOLTS[mode || "historic"] * phases;
  const currents = [fields.IINST1, fields.IINST2, fields.IINST3];
  const amperes = Math.max(fields.IINST, ...currents);
  const isByPower = mode === "standard" && phases === 1;
  const share = isByPower ? power / limit : amperes / fields.ISOUSC;
  const phase = phases === 3 ? `phase ${currents.indexOf(amperes) + 1}` : "";
  const digits = "…" + String(fields.ADCO).slice(-4);
  return { power, limit, share, phase, digits };
}

function loadOf(share) {
  if (share > 1) return "bad";
  return share > 0.8 ? "warn" : "good";
}

//////// The way of the values, and what is wrong with it /////////////////////////////

function readerStation(name, { address, age }, live, seen) {
  const time = seen.at - age * 1000;
  if (!seen.connected || seen.now - time <= READ_LATELY_MS) {
    const fact = `lu par ${address} ${ago(time, seen.now)}`;
    return { name, mark: live ? "good" : "soft", fact };
  }
  const fact = `ne lit plus depuis ${clockTime(time, seen.now)} (${address})`;
  return { name, mark: "warn", fact };
}

// The programs that read a port: of each name the client that read last.
function readersOf(port, live, seen) {
  const clients = {};  // by name; seen has the latest first
  for (const client of seen.answer.clients.filter((each) => each.port === port)) {
    const { name, least } = PROGRAMS.find(({ agent }) => agent.test(client.agent));
    if (client.reads >= least && !clients[name]) clients[name] = client;
  }
  const readers = Object.entries(clients)
    .map(([name, client]) => readerStation(name, client, live, seen));
  // A program without a name that has stopped is listed only if it is the only reader.
  const isListed = ({ name, mark }) => name !== SOMEBODY || mark !== "warn";
  return readers.length === 1 ? readers : readers.filter(isListed);
}

// The readers of each port of a meter, and of its relay, or that it has no reader.
function readerStations(meter, seen) {
  const { ports, clients } = seen.answer;
  const where = (port) => ports[1] || port !== ports[0] ? ` (port${NBSP}${port})` : "";
  return [...meter.ports, meter.relay_port].filter(Boolean).flatMap((port) => {
    const readers = readersOf(port, meter.live, seen);
    const tried = clients.find((client) => client.port === port);
    const fact = tried ? `seulement essayé par ${tried.address}` : "pas encore lu";
    const name = port === meter.relay_port ? "Lecteur TIC" : "Domotique";
    if (!readers.length) readers.push({ name, mark: "soft", fact });
    return readers.map((each) => ({ ...each, name: each.name + where(port) }));
  });
}

// The stations, each good, warn, bad or not known (soft), with one fact.
function stationsOf(meter, seen) {
  const { now, connected, problem, answer: { version, uptime } } = seen;
  const station = (id, name, isWell, fact) => {
    const isFault = connected && meter.defects.some((defect) => defect.station === id);
    const mark = connected && isWell ? "good" : "soft";
    return { name, mark: isFault ? meter.faultMark : mark, fact };
  };
  const isHeard = now - meter.byteAt < LATE_MS;
  const frame = "trame " + ago(meter.frameAt, now);
  const byte = ", dernier octet " + ago(meter.byteAt, now);
  const [address] = meter.source.split(":");
  const esp = html`<a href="http://${address}/">${meter.source}</a>${
    isHeard || meter.byte_age === null ? "" : byte}`;
  const running = meter.fault.station === "ecolinky" ? "en défaut"
    : "en marche depuis " + duration(uptime);
  const ports = meter.ports.map((port) => `port ${port}, `).join("");
  return [
    station("linky", "Linky", meter.isRead, meter.age === null ? "pas entendu" : frame),
    station("esp", "ESP8266", isHeard, esp),
    connected ? station("ecolinky", "ecolinky " + version, true, ports + running)
      : { name: "ecolinky", mark: "bad", fact: problem || "pas encore de réponse" },
    ...readerStations(meter, seen),
  ];
}

// ADPS: the subscription is exceeded.  PEJP: dear hours (EJP) are near.
function alertsOf({ fields }) {
  return [
    { is: fields.ADPS > 0, mark: "bad", cause: "dépassement de l’abonnement",
      remedy: "éteindre un appareil, sinon le compteur coupe" },
    { is: fields.PEJP > 0, mark: "notice",
      cause: "pointe mobile dans " + quantity(fields.PEJP, "min"),
      remedy: "les heures chères commencent, reporter les gros appareils" },
  ].filter(({ is }) => is);
}

// Why nothing is live, or what is near and what could be better; in grey a short wait.
function problemsOf(meter, seen) {
  const { live, faultMark, defects } = meter;
  if (!seen.connected) return [];
  const problems = defects.filter(({ station }) => station || !live)
    .map((each) => ({ ...each, mark: each.station ? faultMark : "soft" }));
  if (!live) return problems;
  const gone = readerStations(meter, seen).filter(({ mark }) => mark === "warn")
    .map((each) => ({ ...each, cause: `${each.name} ${each.fact}`, remedy: REVIVE }));
  return [...alertsOf(meter), ...gone, ...problems];
}

function problemHtml({ mark, station, cause, remedy }, { live, isRead }) {
  // While the last values are still served, a fault of a station may end by itself.
  const mayEnd = station && remedy && live && !isRead;
  const wait = mayEnd ? "attendre une minute, si cela dure " : "";
  const steps = (wait + remedy).split(/, (?=puis )/).map(sentence);
  // A cause without a remedy itself says what is served.
  if (station && isRead && remedy) steps.push("Les valeurs transmises restent justes.");
  return html`<div class="problem ${mark}"><b>${sentence(cause)}</b>
    ${steps.map((step) => html`<p>${step}</p>`)}</div>`;
}

function stationHtml({ name, mark, fact }) {
  return html`<li class="${mark}">
    <i role="img" aria-label="${SIGNS[mark][1]}">${SIGNS[mark][0]}</i> <b>${name}</b>
    <span>${fact}</span></li>`;
}

//////// The power, the currents, the days and the energy /////////////////////////////

function limitText({ fields, live, power, limit, share, phase, mode }) {
  if (!live || !limit) return "";
  if (power < 0) return "injectés sur le réseau";
  const near = loadOf(share) === "warn" ? ", ne rien ajouter" : "";
  if (phase) return `sur la ${phase}${near}`;
  if (mode === "standard") return `de ${quantity(limit / 1000, "kVA")}${near}`;
  return `${quantity(fields.IINST, "A")} sur ${quantity(fields.ISOUSC, "A")}${near}`;
}

// Two thirds of a circle, of length 1: a dash as long as the share, then a gap.
function gaugeHtml(meter) {
  const { input: n, power, limit, live } = meter;
  const share = live && limit && power >= 0 ? meter.share : 0;
  const percent = share ? quantity(100 * share, "%") : "";
  const arc = "M33.4 160A100 100 0 1 1 206.6 160";
  const value = html`<path class="value" d="${arc}"
    pathLength="1" stroke-dasharray="${Math.min(1, share)} 1"/>`;
  return html`<div class="gauge ${loadOf(share)}"><div>
    <svg viewBox="0 0 240 184" role="img"
      aria-label="Jauge${NBSP}: ${percent || "part inconnue"}">
      <path d="${arc}"/>${share ? value : ""}</svg>
    <p class="power"><b id="power-${n}">${number(live ? power : null)}</b>VA</p>
    <p class="limit"><b id="share-${n}">${percent}</b>
      <span id="limit-${n}">${limitText(meter)}</span></p></div>
    <p class="sum"><b>${number(meter.energy.total / 1000, 2)}</b>kWh consommés
    ${meter.day}</p></div>`;
}

function currentsHtml({ input: n, fields, live, phases }) {
  if (phases !== 3 || !live) return "";
  return [1, 2, 3].map((phase) => {
    const amperes = fields["IINST" + phase];
    const text = `${quantity(amperes, "A")} sur ${quantity(fields.ISOUSC, "A")}`;
    return html`<div class="row ${loadOf(amperes / fields.ISOUSC)}">
      <span>Phase ${phase}</span> <b id="current-${n}-${phase}">${text}</b></div>`;
  });
}

function daysHtml({ tariff }) {
  if (!tariff || !tariff.days) return "";
  const { today, tomorrow } = tariff.days;
  const days = [["Aujourd’hui", today || "inconnu"],
    ["Demain", tomorrow || "pas encore annoncé"]];
  return html`<div class="days values">${days.map(([title, colour]) => html`<div
    class="day ${colour}"><small>${title}</small><b>${colour}</b></div>`)}</div>`;
}

function rowHtml({ input: n, live, tariff, energy }, { tag, name, reading }) {
  const isRunning = live && tag === tariff.period.tag;
  const mark = isRunning ? html`<small>en${NBSP}cours</small>` : "";
  const kWh = number(reading / 1000, 3);
  return html`<tr class="${isRunning ? "running" : ""}">
    <th scope="row">${name} ${mark}</th>
    <td id="today-${n}-${tag}">${number(energy[tag] / 1000, 2)}</td>
    <td id="index-${n}-${tag}">${reading === undefined ? "" : kWh}</td></tr>`;
}

function energyHtml(meter) {
  const { tariff, fields, injection, live, day } = meter;
  if (!tariff) return "";
  const rows = tariff.indexes.map((each) => ({ ...each, reading: fields[each.tag] }));
  if (live && rows.length > 1) rows.push({ tag: "total", name: "Total" });
  if (injection) rows.push({ tag: "EAIT", name: "Injecté", reading: injection.BASE });
  return html`<table><thead><tr><th scope="col">Tarif ${tariff.name}</th>
    <th scope="col">kWh ${day}</th><th scope="col">Index (kWh)</th></tr></thead>
    <tbody>${rows.map((row) => rowHtml(meter, row))}</tbody></table>`;
}

//////// Chart: 24 hours, in percent from the left and from the top ///////////////////

const LEAST_POWER = 400;  // VA at the top, at least: a quiet night is no mountain
const MOST_STEPS = 4;  // beside the chart: the texts of more would be too close
const STEPS = [100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000];  // VA

// The minutes, then now; a power is null if unknown, and below 0 if the house injects.
function pointsOf(meter, seen) {
  const { minutes, age } = meter.history;
  const end = seen.historyAt - age * 1000;
  const points = minutes.map(([power, , cheap], i) =>
    ({ time: end - (minutes.length - i - 0.5) * MINUTE_MS, power, cheap }));
  points.push({ time: seen.now, power: meter.live ? meter.power : null, cheap: 0 });
  return points.filter(({ time }) => time > seen.now - DAY_MS);
}

// The limit has its place if a power was above the half of it.
function axesOf(points, now, limit) {
  const powers = points.map((point) => point.power || 0);
  const isNear = limit > 0 && Math.max(...powers) > limit / 2;
  const highest = Math.max(LEAST_POWER, ...powers, isNear ? 1.1 * limit : 0);
  const lowest = Math.min(0, ...powers);
  const step = STEPS.find((each) => each * MOST_STEPS >= highest - lowest);
  const top = Math.ceil(highest / step);
  const bottom = Math.floor(lowest / step);
  const percent = (part, whole) => Math.round(10000 * part / whole) / 100;
  return {
    now,
    isNear,
    powers: Array.from({ length: top - bottom + 1 }, (_, i) => (top - i) * step),
    x: (time) => percent(time - now + DAY_MS, DAY_MS),
    y: (power) => percent(top - power / step, top - bottom),
  };
}

function runsOf(points, test) {
  const runs = [[]];
  for (const point of points) {
    if (test(point)) runs[runs.length - 1].push(point);
    else runs.push([]);
  }
  return runs.filter((run) => run.length);
}

function shadeHtml(run, name, { x }) {
  const begin = x(run[0].time);
  const width = x(run[run.length - 1].time) - begin;
  return html`<rect class="${name}" x="${begin}" width="${width}" height="100"/>`;
}

// A line (or a dot: h0) and the area under it for each run: neither crosses a gap.
function curveHtml(points, { x, y }) {
  return runsOf(points, ({ power }) => power !== null).map((run) => {
    const line = run.map(({ time, power }) => `${x(time)} ${y(power)}`).join("L");
    return html`<path class="area" d="M${x(run[0].time)} ${y(0)}L${line}V${y(0)}z"/>
      <path class="curve" d="M${line}h0"/>`;
  });
}

function nearest(points, time) {
  const gap = (point) => Math.abs(point.time - time);
  return points.reduce((best, point) => gap(point) < gap(best) ? point : best);
}

function describePoint({ time, power }) {
  const value = power === null ? "pas de données" : quantity(power, "VA");
  return `${clockTime(time)}${NBSP}: ${value}`;
}

function labelHtml(kind, percent, text) {
  return html`<span class="${kind}" style="--at: ${percent}%">${text}</span>`;
}

// Name the gap that goes on, else the longest: there may be no room for two names.
function gapName(gaps, { live, servedAt }, { x }) {
  const [gap] = live ? [...gaps].sort((a, b) => b.length - a.length) : gaps.slice(-1);
  if (!gap) return "";
  const [from, to] = [gap[0].time, gap[gap.length - 1].time];
  const text = live ? `pas de données ${clockTime(from)}–${clockTime(to)}`
    : `plus de données depuis ${clockTime(servedAt)}`;
  return labelHtml("name", (x(from) + x(to)) / 2, text);
}

// The powers, and times that are round where the reader lives.
function textsHtml({ now, x, y, powers }) {
  const date = new Date(now);
  const last = date.setHours(date.getHours() - date.getHours() % 4, 0, 0, 0);
  const times = [5, 4, 3, 2, 1, 0].map((steps) => last - steps * 240 * MINUTE_MS);
  return [...powers.map((power) => labelHtml("va", y(power), number(power))),
    ...times.map((time) => labelHtml("at", x(time), clockTime(time)))];
}

function chartHtml(meter, points, now) {
  const { input: n, limit, live, power: powerNow } = meter;
  if (points.filter(({ power }) => power !== null).length < 3) {
    return html`<p class="caption">Pas encore de courbe, un point par minute.</p>`;
  }
  const axes = axesOf(points, now, limit);
  const { x, y, powers, isNear } = axes;
  const isChosen = page.chosen.id === "chart-" + n;
  const time = isChosen ? now - DAY_MS + page.chosen.minute * MINUTE_MS : now;
  const point = nearest(points, time);
  const gaps = runsOf(points, ({ power }) => power === null)
    .filter((gap) => gap.length >= 10 || gap.includes(points[points.length - 1]));
  const line = (power, kind) => html`<path class="${kind}" d="M0 ${y(power)}h100"/>`;
  const pointed = html`<path class="pointed" d="M${x(point.time)} 0v100"/>`;
  const dot = html`<path class="curve now" d="M100 ${y(powerNow)}h0"/>`;
  return html`<div class="chart">
    <input type="range" max="${MINUTES}" value="${MINUTES}" id="chart-${n}"
      aria-label="Courbe de 24 heures" aria-valuetext="${describePoint(point)}">
    <svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">
    ${runsOf(points, ({ cheap }) => cheap).map((run) => shadeHtml(run, "cheap", axes))}
    ${gaps.map((gap) => shadeHtml(gap, "gap", axes))}
    ${powers.map((power) => line(power, ""))}${isNear ? line(limit, "limit-line") : ""}
    ${curveHtml(points, axes)}${live ? dot : ""}${isChosen ? pointed : ""}</svg>
    <div>${isNear ? labelHtml("limit-name", y(limit), "limite de l’abonnement") : ""}
    ${isChosen ? labelHtml("name", x(point.time), describePoint(point))
    : gapName(gaps, meter, axes)}${textsHtml(axes)}</div></div>`;
}

// What a forum asks for, without addresses; of a long number, the last four digits.
function reportOf(meter, problems, { answer }) {
  const { frames, groups, refused, connections } = meter.counters;
  const { option, name } = meter.tariff || { option: DASH, name: DASH };
  const damaged = refused.checksum + refused.form;
  const percent = quantity(100 * damaged / (groups + damaged), "%", 2);
  const lost = Math.max(0, ...meter.history.minutes.map((minute) => minute[1]));
  const lines = [
    `ecolinky ${answer.version}, en marche depuis ${duration(answer.uptime)}`,
    `Compteur ${meter.digits}, mode ${MODES[meter.mode] || DASH}`,
    `Contrat ${option} (${name}) ${meter.labels.NGTF || ""}`,
    `Connexions ${number(connections)}, trames ${number(frames)}`,
    `Groupes intacts ${number(groups)}, abîmés ${number(damaged)} (${percent}),`
      + ` invraisemblables ${number(refused.implausible)}`,
    `Liaison${NBSP}: ${quantity(lost, "%")} perdus au plus en une minute`,
    ...problems.map(({ cause, remedy }) => `${sentence(cause)} ${sentence(remedy)}`),
    ...answer.clients.map(({ agent, port, reads, age }) =>
      `Lecteur ${agent}, port ${port}, ${reads} fois, il y a ${duration(age)}`),
  ];
  return lines.join("\n").replace(/\d+(\.\d+){3}|\d{7,}(?=\d{4})/g, "…");
}

function stateOf({ live, isRead, state, servedAt, frameAt, fault }, problems, now) {
  if (state === "waiting") return [fault.station ? "bad" : "warn", "aucune donnée"];
  if (!live) return ["bad", "données périmées depuis " + clockTime(servedAt, now)];
  const has = (mark) => problems.some((problem) => problem.mark === mark);
  if (has("bad")) return ["bad", "dépassement"];  // faults are "warn" while live
  if (!isRead) return ["warn", "dernière trame " + ago(frameAt, now)];
  return has("warn") ? ["warn", "en direct, à vérifier"] : ["good", "en direct"];
}

function cardHtml(meter, seen) {
  const { input: n, live } = meter;
  const problems = problemsOf(meter, seen);
  const [mark, state] = stateOf(meter, problems, seen.now);
  const points = pointsOf(meter, seen);
  const several = seen.answer.inputs.length > 1 ? ` ${n} ${meter.digits}` : "";
  const legend = html`<span class="swatch"></span> heures creuses`;
  return html`<section class="card ${live ? "" : "old"}" aria-labelledby="title-${n}">
    <header><h2 id="title-${n}">Compteur${several}</h2>
    <p class="pill ${mark}" id="state-${n}">${state}</p></header>
    <ol class="way">${stationsOf(meter, seen).map(stationHtml)}</ol>
    <div class="columns"><div><div id="reason-${n}"
      role="status">${problems.map((problem) => problemHtml(problem, meter))}</div>
    <div>${meter.state === "live" ? gaugeHtml(meter) : ""}${currentsHtml(meter)}
    ${daysHtml(meter)}</div></div>
    <div class="values"><p class="caption">Puissance (VA)
    ${points.some((point) => point.cheap) ? legend : ""}</p>
    ${chartHtml(meter, points, seen.now)}${energyHtml(meter)}</div></div>
    <details><summary>Détails, à copier pour demander de l’aide</summary>
    <p class="report" id="report-${n}">${reportOf(meter, problems, seen)}</p></details>
    </section>`;
}

// The ports of a live meter that nothing reads yet.  If a program other than Domoticz
// reads the first port or the relay, the user has chosen it: Domoticz needs no port.
function unreadPorts(meter, seen) {
  const namesAt = (port) => readersOf(port, meter.live, seen).map(({ name }) => name);
  const isOtherChosen = [seen.answer.ports[0], meter.relay_port].flatMap(namesAt)
    .some((name) => name !== "Domoticz");
  if (!meter.live || isOtherChosen) return [];
  return meter.ports.filter((port) => namesAt(port).length === 0);
}

// What is to be entered in Domoticz: open and first until it is done, then folded.
function showPlaces(meters, seen) {
  const { inputs, ports, uptime } = seen.answer;
  const unread = meters.flatMap((meter) => unreadPorts(meter, seen));
  const isToDo = unread.length > 0;
  const wait = "Attendre une minute si Domoticz est déjà réglé. Sinon, dans";
  const begin = isToDo && uptime * 1000 < MINUTE_MS ? wait : "Dans";
  const second = inputs.length > 1 ? "le compteur 2" : "l’injection";
  const where = /^(127\.|localhost$)/.test(location.hostname) ? IF_HERE : "";
  const places = (isToDo ? unread : ports).map((port) => html`<p>
    ${port === ports[0] ? "" : `Pour ${second} un second matériel${NBSP}: `}adresse
    <code>${location.hostname}</code>${where}, port <code>${port}</code>${
    port === ports[0] ? ", de même pour Home Assistant et Jeedom" : ""}</p>`);
  show("places-title", isToDo ? "Il reste à faire" : "À mettre dans Domoticz");
  show("places", html`<p>${begin} Domoticz, Configuration, Matériel, ajouter un matériel
    de type «&nbsp;Eco Devices&nbsp;», modèle «&nbsp;EcoDevices&nbsp;»&nbsp;:</p>
    ${places}`);
  const folding = document.getElementById("domoticz");
  if (folding.classList.contains("to-do") !== isToDo) folding.open = isToDo;
  folding.classList.toggle("to-do", isToDo);
}

//////// Page: ask, remember, show ////////////////////////////////////////////////////

// Change only the differences: a selection stays, a screen reader reads only the news.
function show(id, content) {
  const template = document.createElement("template");
  template.innerHTML = markup(content);
  patchChildren(document.getElementById(id), template.content);
}

function patchChildren(old, fresh) {
  const nodes = [...fresh.childNodes];
  if (old.childNodes.length !== nodes.length) old.replaceChildren(...nodes);
  else [...old.childNodes].forEach((node, i) => patch(node, nodes[i]));
}

function patch(old, fresh) {
  const isCopied = old.className === "report" && getSelection().containsNode(old, true);
  if (old.isEqualNode(fresh) || isCopied) return;
  if (old.nodeName !== fresh.nodeName || old.id !== fresh.id) {
    old.replaceWith(fresh);
  } else if (old.nodeType === Node.TEXT_NODE) {
    old.data = fresh.data;
  } else {
    for (const { name, value } of fresh.attributes) {  // the user's "open" stays
      if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
    patchChildren(old, fresh);
  }
}

// Choose a minute in the chart of a slider; without a slider, choose nothing.
function choose(slider) {
  page.chosen = slider ? { id: slider.id, minute: Number(slider.value) } : {};
  paint();
}

function onPointer({ target, clientX }) {
  if (target.type === "range") {
    const { left, width } = target.getBoundingClientRect();
    target.value = MINUTES * (clientX - left - 8) / (width - 16);  // as in the style
    choose(target);
  } else if (page.chosen.id) {
    choose(null);
  }
}

function paint() {
  const now = Date.now();
  show("clock", clockTime(now));
  show("down", page.problem && html`<b>Ecolinky ${page.problem}.</b>
    <p>Si cela dure, sur la machine d’ecolinky&nbsp;:</p>
    <code>sudo systemctl restart ecolinky</code>`);
  if (!page.seen) return;
  const connected = !page.problem && now - page.seen.at < PATIENCE_MS;
  const seen = { ...page.seen, now, connected, problem: page.problem };
  const meters = seen.answer.inputs.map((input, i) => meterOf(input, i, seen));
  show("cards", meters.map((meter) => cardHtml(meter, seen)));
  showPlaces(meters, seen);
  document.body.className = meters.length > 1 ? "two-inputs" : "one-input";
  const powers = meters.map(({ live, power }) => number(live ? power : null));
  const sign = document.querySelector(".pill:not(.good)") ? "⚠ " : "";
  document.title = `${sign}${powers.join(" · ")} VA · ecolinky`;
}

// Fetch a document of the program; throws what the program does, in French.
async function load(name, signal) {
  // The base has no name and password: fetch() would refuse them.
  const url = new URL(name, location.origin + location.pathname);
  const response = await fetch(url, { signal }).catch(() => null);
  if (!response) throw "ne répond pas, il est arrêté ou le réseau est coupé";
  if (response.ok) return response.json();
  if (response.status === 401) throw "demande nom et mot de passe, recharger la page";
  throw `répond par une erreur (${response.status})`;
}

// Ask what the program says now, and once a minute for the histories.
async function ask(signal) {
  const before = page.seen;
  const at = Date.now();  // the answer is not older, even if the computer falls asleep
  const answer = await load("ecolinky.json", signal);
  const isSameStart = before && before.answer.uptime <= answer.uptime;
  const isRecent = isSameStart && at - before.historyAt < MINUTE_MS;
  if (isRecent) return { ...before, answer, at };
  return { answer, at, history: await load("history.json", signal), historyAt: at };
}

// Ask and show; nobody looks at a hidden tab.
async function poll() {
  if (document.hidden) return;
  const before = page.seen;
  if (before && Date.now() - before.at > PATIENCE_MS) paint();  // it was asleep
  if (page.asking) return;
  page.asking = true;
  const stop = new AbortController();
  const timeout = setTimeout(() => stop.abort(), TIMEOUT_MS);
  try {
    page.seen = await ask(stop.signal);
    page.problem = "";
    paint();
    if (before && before.answer.version !== page.seen.answer.version) location.reload();
  } catch (error) {  // whatever it is: show the answer before, and that it is old
    page.seen = before;
    page.problem = typeof error === "string" ? error : UNREADABLE;
    paint();
  } finally {
    clearTimeout(timeout);
    page.asking = false;
  }
}

document.getElementById("logo").src = document.getElementById("icon").href;
document.addEventListener("visibilitychange", poll);
addEventListener("pointermove", onPointer);
addEventListener("input", ({ target }) => choose(target));
addEventListener("keydown", ({ key }) => key === "Escape" && choose(null));
setInterval(poll, POLL_MS);
poll();
</script>
</body>
</html>
""".encode()


# Only the page's own script runs, and it may ask only this server.  The page may be
# framed: people embed it in Domoticz.
HOME_PAGE_SCRIPT = HOME_PAGE.partition(b"<script>")[2].partition(b"</script>")[0]
SCRIPT_HASH = base64.b64encode(hashlib.sha256(HOME_PAGE_SCRIPT).digest()).decode()
HOME_PAGE_HEADERS = (
    (
        "Content-Security-Policy",
        "default-src 'none'; connect-src 'self'; img-src data:; style-src"
        f" 'unsafe-inline'; script-src 'sha256-{SCRIPT_HASH}'; base-uri 'none';"
        " form-action 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
)


if __name__ == "__main__":
    sys.exit(run())

# The last line: a copy without it was cut off (see LAST_LINE).
