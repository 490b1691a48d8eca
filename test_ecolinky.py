"""The tests of ecolinky and its benchmarks: standard library, loopback, no fixed port.

    python3 -m unittest                              the tests
    python3 test_ecolinky.py bench                   speed, size, latency
    python3 test_ecolinky.py bench damage [--seed N] false indexes: none

The encoder here is the tests' own, so that the program does not check itself.
"""

import argparse
import bisect
import collections
import contextlib
import http.client
import http.server
import math
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import ecolinky

TELEINFO_TAGS = (
    "ADCO OPTARIF ISOUSC BASE HCHC HCHP EJPHN EJPHPM BBRHCJB BBRHPJB BBRHCJW BBRHPJW"
    " BBRHCJR BBRHPJR PEJP PTEC DEMAIN IINST IINST1 IINST2 IINST3 ADPS IMAX IMAX1"
    " IMAX2 IMAX3 PPAP PAPP HHPHC MOTDETAT PPOT"
).split()


########################################################################################
# Truth: simulated meters, written apart from the program so that it does not check
# itself
########################################################################################


def group(label, data, stamp=None, separator=" "):
    """Return the bytes of one group, LF to CR."""
    words = [label, data] if stamp is None else [label, stamp, data]
    body = separator.join(words) + (separator if separator == "\t" else "")
    total = sum(body.encode("ascii")) & 0x3F
    end = "" if separator == "\t" else separator
    return ("\n" + body + end + chr(total + 0x20) + "\r").encode("ascii")


def frame(groups, separator=" "):
    """Return the bytes of one frame, STX to ETX, of (label, data[, stamp]) tuples."""
    return b"\x02" + b"".join(group(*g, separator=separator) for g in groups) + b"\x03"


class House:
    """A simulated meter that knows what it sent; kinds are those of KINDS."""

    KINDS = ("hc", "tempo", "three-phase", "standard", "standard three-phase tempo")
    TEMPO = ("BBRHCJB", "BBRHPJB", "BBRHCJW", "BBRHPJW", "BBRHCJR", "BBRHPJR")
    TEMPO_PTEC = ("HCJB", "HPJB", "HCJW", "HPJW", "HCJR", "HPJR")

    def __init__(self, kind, rng):
        self.kind, self.rng, self.now = kind, rng, 1000.0
        self.standard = kind.startswith("standard")
        self.identity = "%012d" % rng.randrange(10 ** 12)
        size = {"hc": 2, "three-phase": 1, "standard": 2}.get(kind, 6)
        self.energy = [float(rng.randrange(10 ** 5, 5 * 10 ** 7)) for _ in range(size)]
        self.running, self.power, self.target = 0, 600.0, 600.0

    def step(self):
        """Return the next frame as (label, data[, stamp]) tuples, and its seconds."""
        rng = self.rng
        if rng.random() < 0.03:
            self.target = rng.choice((120, 450, 900, 2500, 4000, 7500, 12000))
        if rng.random() < 0.001:
            self.running = rng.randrange(len(self.energy))
        self.power += (self.target - self.power) * 0.5 + rng.uniform(-60, 60)
        self.power = max(60.0, self.power)
        groups = getattr(self, "_" + self.kind.split()[0].replace("-", "_"))()
        size = 2 + sum(len(group(*g)) for g in groups)
        seconds = size * 10 / (9600 if self.standard else 1200) + 0.05
        if self.standard:
            seconds = max(1.0, seconds)
        self.now += seconds
        self.energy[self.running] += self.power * seconds / 3600
        return groups, seconds

    def _digits(self):
        return ["%09d" % energy for energy in self.energy]

    def _hc(self):
        low, high = self._digits()
        return [
            ("ADCO", self.identity), ("OPTARIF", "HC.."), ("ISOUSC", "45"),
            ("HCHC", low), ("HCHP", high),
            ("PTEC", ("HC..", "HP..")[self.running]),
            ("IINST", "%03d" % (self.power / 230 + 0.5)), ("IMAX", "090"),
            ("PAPP", "%05d" % (self.power // 10 * 10)), ("HHPHC", "A"),
            ("MOTDETAT", "000000"),
        ]

    def _tempo(self):
        groups = self._hc_of_six()
        groups[3:5] = list(zip(self.TEMPO, self._digits()))
        return groups

    def _hc_of_six(self):
        return [
            ("ADCO", self.identity), ("OPTARIF", "BBR("), ("ISOUSC", "45"), (), (),
            ("PTEC", self.TEMPO_PTEC[self.running]), ("DEMAIN", "----"),
            ("IINST", "%03d" % (self.power / 230 + 0.5)), ("IMAX", "090"),
            ("PAPP", "%05d" % (self.power // 10 * 10)), ("HHPHC", "Y"),
            ("MOTDETAT", "000000"),
        ]

    def _three_phase(self):
        amperes = [self.power / 230 * share + 0.5 for share in (0.5, 0.3, 0.2)]
        return [
            ("ADCO", self.identity), ("OPTARIF", "BASE"), ("ISOUSC", "20"),
            ("BASE", self._digits()[0]), ("PTEC", "TH.."),
            ("IINST1", "%03d" % amperes[0]), ("IINST2", "%03d" % amperes[1]),
            ("IINST3", "%03d" % amperes[2]), ("IMAX1", "060"), ("IMAX2", "060"),
            ("IMAX3", "060"), ("PMAX", "06030"),
            ("PAPP", "%05d" % (self.power // 10 * 10)), ("HHPHC", "A"),
            ("MOTDETAT", "000000"), ("PPOT", "00"),
        ]

    def _standard(self):
        three = "three" in self.kind
        tempo = "tempo" in self.kind
        stamp = "H%012d" % (260101000000 + int(self.now) % 86400)
        easf = self._digits() + ["000000000"] * 10
        total = sum(int(energy) for energy in self.energy)
        words = ("HC  BLEU", "HP  BLEU", "HC  BLANC", "HP  BLANC", "HC  ROUGE",
                 "HP  ROUGE") if tempo else ("HEURE  CREUSE", "HEURE  PLEINE")
        groups = [
            ("ADSC", self.identity), ("VTIC", "02"), ("DATE", "", stamp),
            ("NGTF", "     TEMPO      " if tempo else "H PLEINE/CREUSE "),
            ("LTARF", words[self.running].center(16)), ("EAST", "%09d" % total),
        ]
        groups += [("EASF%02d" % n, easf[n - 1]) for n in range(1, 11)]
        phases = (1, 2, 3) if three else (1,)
        for phase in phases:
            amperes = self.power / 230 / len(phases) + 0.5
            groups.append(("IRMS%d" % phase, "%03d" % amperes))
            groups.append(("URMS%d" % phase, "23%d" % self.rng.randrange(10)))
        groups += [("PREF", "09"), ("PCOUP", "09"), ("SINSTS", "%05d" % self.power)]
        for phase in ("1", "2", "3") if three else ("",):
            groups.append(("SMAXSN" + phase, "05706", stamp))
        stge = self.running << 10 | (0x01000000 if tempo else 0) | 0x003A0001
        groups += [
            ("CCASN", "00521", stamp), ("UMOY1", "232", stamp),
            ("STGE", "%08X" % stge), ("MSG1", "PAS DE          MESSAGE         "),
            ("PRM", "01408288243642"), ("RELAIS", "000"),
            ("NTARF", "%02d" % (self.running + 1)), ("NJOURF", "00"),
            ("NJOURF+1", "00"), ("PJOURF+1", "00008002 0256C001" + " NONUTILE" * 9),
        ]
        return groups

    def served_indexes(self, groups):
        """Return the indexes that a true answer of this frame shows, by tag."""
        values = {each[0]: each[1] for each in groups}
        if not self.standard:
            tags = ("BASE", "HCHC", "HCHP") + self.TEMPO
            return {tag: int(values[tag]) for tag in tags if tag in values}
        easf = [int(values["EASF%02d" % n]) for n in range(1, 11)]
        if "tempo" in self.kind:
            return dict(zip(self.TEMPO, easf))
        return {"HCHC": sum(easf[0::2]), "HCHP": sum(easf[1::2])}


########################################################################################
# Damage: what lines, ESPs and networks do to the bytes
########################################################################################

CUT = object()  # a connection cut: what comes next is a new one


def no_damage(rng, data):
    """Leave the bytes as they are."""
    return [], [data]


def _edited(data, edits):
    """Return the bytes with edits applied: position -> the bytes that stand there."""
    pieces, last = [], 0
    for place in sorted(edits):
        pieces += [data[last:place], edits[place]]
        last = place + 1
    return list(edits), [b"".join(pieces) + data[last:]]


def flips(rate):
    """Return a damage that flips each of the seven bits of a byte at this rate."""

    def damage(rng, data):
        edits, place = {}, -1
        while True:
            place += 1 + int(math.log(1.0 - rng.random()) / math.log(1.0 - rate))
            if place >= 7 * len(data):
                return _edited(data, edits)
            byte = place // 7
            old = edits.get(byte, data[byte : byte + 1])[0]
            edits[byte] = bytes([old ^ 1 << place % 7])

    damage.__name__ = "bit flips %.0e" % rate
    return damage


def dropped_bytes(rng, data):
    """Drop one to three bytes."""
    places = {rng.randrange(len(data)): b"" for _ in range(rng.randint(1, 3))}
    return _edited(data, places)


def doubled_bytes(rng, data):
    """Double one to three bytes."""
    places = [rng.randrange(len(data)) for _ in range(rng.randint(1, 3))]
    return _edited(data, {place: data[place : place + 1] * 2 for place in places})


def truncated_frames(rng, data):
    """Lose the end of every second frame."""
    if rng.random() < 0.5:
        return [], [data]
    end = rng.randrange(len(data))
    return range(end, len(data)), [data[:end]]


def swallowed_line_ends(rng, data):
    """Lose one LF or CR in ten."""
    ends = [place for place, byte in enumerate(data) if byte in b"\r\n"]
    return _edited(data, {place: b"" for place in ends if rng.random() < 0.1})


class LostRuns:
    """Lose runs of up to 400 bytes, into the next frame."""

    __name__ = "lost runs"

    def __init__(self):
        self._left = 0

    def __call__(self, rng, data):
        lost = list(range(min(self._left, len(data))))
        self._left -= len(lost)
        if not self._left and rng.random() < 0.4:
            start = rng.randrange(len(data))
            run = rng.randint(1, 400)
            lost += range(start, min(start + run, len(data)))
            self._left = max(0, start + run - len(data))
        return _edited(data, {place: b"" for place in lost})


def cut_connections(rng, data):
    """Cut the connection in mid-frame and resume it a little later."""
    if rng.random() < 0.6:
        return [], [data]
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.randrange(60))
    # The group that the cut falls into is lost, even where no byte is.
    return range(start, end + 1), [data[:start], CUT, data[end:]]


def damages():
    """Return the ten classes of damage."""
    rates = [flips(10.0 ** -power) for power in (5, 4, 3, 2)]
    return rates + [
        dropped_bytes, doubled_bytes, truncated_frames, swallowed_line_ends,
        LostRuns(), cut_connections,
    ]


class Tally:
    """What became of the groups of one class of damage."""

    COLUMNS = ("frames", "intact", "used", "refused", "false index", "false other",
               "false PAPP", "falls", "largest error")

    def __init__(self, name):
        self.name = name
        self.counts = collections.Counter()

    def row(self):
        """Return one line of the table."""
        count = self.counts
        share = 100.0 * count["used"] / max(1, count["intact"])
        cells = ["%-22s" % self.name, "%7d" % count["frames"], "%8d" % count["intact"]]
        cells += ["%6.2f%%" % share]
        for reason in ("checksum", "form", "implausible"):
            cells.append("%8d" % count[reason])
        for key in self.COLUMNS[4:]:
            cells.append("%6d" % count[key])
        return " ".join(cells)

    HEAD = "%-22s %7s %8s %7s %8s %8s %8s %6s %6s %6s %6s %6s" % (
        "damage", "frames", "intact", "used", "checksum", "form", "implaus.", "index",
        "other", "PAPP", "falls", "error")


OTHER_FORMS = {
    "PTEC": r"TH\.\.|HC\.\.|HP\.\.|HN\.\.|PM\.\.|H[CP]J[BWR]",
    "OPTARIF": r"BASE|HC\.\.|EJP\.|BBR.",
    "DEMAIN": "----|BLEU|BLAN|ROUG",
    "MOTDETAT": "[0-9]{6}",
    "HHPHC": ".",
    "ADCO": "[0-9A-Z ]{11,14}",
}


def run_damage(kind, damage, frames, rng, tally):
    """Feed frames of a house through a damage into a Meter and count what is served."""
    house, meter = House(kind, rng), ecolinky.Meter()
    separator = "\t" if house.standard else " "
    sent, last, recent = {}, {}, collections.deque(maxlen=60)
    awaiting = {}
    before = None
    for _ in range(frames):
        groups, seconds = house.step()
        data = frame(groups, separator)
        now = house.now
        for tag, value in house.served_indexes(groups).items():
            sent.setdefault(tag, set()).add(value)
        values = {each[0]: each[1] for each in groups}
        recent.append(int(values.get("PAPP") or values["SINSTS"]))
        touched, pieces = damage(rng, data)
        if before:
            # The frame before is over for certain once this one's first byte is there.
            first, pieces = pieces[0][:1], [pieces[0][1:]] + pieces[1:]
            meter.feed(first, now)
            check_used(meter, before, awaiting, tally)
        for piece in pieces:
            if piece is CUT:
                meter.disconnected()
            else:
                meter.feed(piece, now)
        check_served(meter.fields(now), sent, last, recent, tally)
        before = intact_groups(groups, data, touched)
        tally.counts["frames"] += 1
        tally.counts["intact"] += len(before)
    for reason, count in meter.refused.items():
        tally.counts[reason] += count


def intact_groups(groups, data, touched):
    """Return the groups none of whose bytes, LF to CR, has been touched."""
    spans, place = [], 1
    for piece in data[1:-1].split(b"\r")[:-1]:
        spans.append((place, place + len(piece)))
        place += len(piece) + 1
    touched = sorted(touched)
    intact = []
    for each, (start, end) in zip(groups, spans):
        at = bisect.bisect_left(touched, start)
        if at == len(touched) or touched[at] > end:
            intact.append(each)
    return intact


def check_used(meter, intact, awaiting, tally):
    """Count the intact groups that were used.

    A reading of an index is used when the served index has reached it by the time that
    two more readings have arrived intact (one confirms it); all else, when the label
    has that data.
    """
    for each in intact:
        label, data = each[0], each[1] or each[-1]
        if re.match("BASE|HC|BBR|EA(ST|SF)", label):
            index = meter._indexes.get(label)
            value = index.value if index and index.value is not None else -1
            waiting = awaiting.setdefault(label, [])
            waiting.append(int(data))
            tally.counts["used"] += 1
            if len(waiting) > 2:
                tally.counts["used"] -= waiting.pop(0) > value
        else:
            tally.counts["used"] += meter.labels.get(label) == data


def check_served(fields, sent, last, recent, tally):
    """Count what is served and was not sent."""
    if not fields:
        return
    count = tally.counts
    for tag, values in sent.items():
        value = fields[tag]
        if value not in values:
            count["false index"] += 1
            error = min(abs(value - true) for true in values)
            count["largest error"] = max(error, count["largest error"])
        count["falls"] += value < last.get(tag, 0)
        last[tag] = value
    count["false PAPP"] += fields["PAPP"] not in recent
    for tag, form in OTHER_FORMS.items():
        count["false other"] += not re.match("(?:%s)$" % form, fields[tag])
    for tag, value in fields.items():
        if tag not in OTHER_FORMS:
            count["false other"] += type(value) is not int or value < 0


def bench_damage(seed, historic=200000, standard=50000):
    """Print the table of issue 3 for one seed; return the number of false indexes."""
    rng = random.Random(seed)
    print("seed %d: %d historic and %d standard frames" % (seed, historic, standard))
    false, total = 0, Tally("all")
    for name, kinds, frames in (
        ("historic", House.KINDS[:3], historic),
        ("standard", House.KINDS[3:], standard),
    ):
        print("%s\n%s" % (name, Tally.HEAD))
        for damage in damages():
            tally = Tally(damage.__name__.replace("_", " "))
            for kind in kinds:
                run_damage(kind, damage, frames // 10 // len(kinds), rng, tally)
            print(tally.row(), flush=True)
            error = max(tally.counts["largest error"], total.counts["largest error"])
            total.counts.update(tally.counts)
            total.counts["largest error"] = error
            false += tally.counts["false index"]
    print(total.row())
    return false


class Captures(unittest.TestCase):
    """Real meters' bytes, where they are beside the project."""

    FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../shared/captures")

    @classmethod
    def setUpClass(cls):
        if not os.path.isdir(cls.FOLDER):
            raise unittest.SkipTest("no captures beside the project")

    def capture(self, name):
        with open(os.path.join(self.FOLDER, name), "rb") as file:
            return file.read()

    def index(self):
        lines = self.capture("INDEX.tsv").decode("utf-8").splitlines()
        return [dict(zip(lines[0].split("\t"), line.split("\t"))) for line in lines[1:]]

    def test_every_group_of_every_capture_decodes(self):
        for row in self.index():
            with self.subTest(row["file"]):
                meter = ecolinky.Meter()
                meter.feed(self.capture(row["file"]), 0.0)
                self.assertEqual(int(row["groups"]), meter.groups)
                self.assertEqual(int(row["frames"]), meter.frames)
                self.assertFalse(any(meter.refused.values()), meter.refused)

    def test_a_capture_is_served_as_its_index_says(self):
        options = {"BASE": "BASE", "EJP": "EJP.", "HC": "HC..", "TEMPO": "BBR",
                   "HPHC": "HC..", "PROD": "BASE", "TEMPO+PROD": "BBR"}
        for row in self.index():
            fields = served_three_times(self.capture(row["file"]))
            if row["file"] in ("historic-1ph-hc-10.tic", "standard-1ph-hphc-2.tic"):
                self.assertIsNone(fields, "half a frame is not enough to serve")
                continue
            with self.subTest(row["file"]):
                option = options.get(row["tariff"], "HC..")
                self.assertTrue(fields["OPTARIF"].startswith(option))
                three = row["phases"] == "3"
                self.assertEqual(three, fields["IMAX1"] > 0)
                self.assertEqual(three, fields["IMAX"] == 0)

    def test_the_indexes_served_in_standard_mode_add_up_to_east(self):
        for row in self.index():
            data = self.capture(row["file"])
            east = re.findall(rb"\nEAST\t(\d{9})\t", data)
            fields = served_three_times(data)
            if not east or not fields:
                continue
            with self.subTest(row["file"]):
                self.assertEqual(int(east[-1]), sum(fields[tag] for tag in INDEX_TAGS))

    def test_frames_read_as_8N1_are_served(self):
        fields = served_three_times(self.capture("damaged/historic-read-as-8N1.tic") + b"\n\x83")
        self.assertEqual(18328856, fields["BBRHCJB"])
        self.assertEqual("ROUG", fields["DEMAIN"])

    def test_frames_without_etx_and_with_cr_turned_into_lf_are_served(self):
        fields = served_three_times(self.capture("damaged/historic-cooked-tty-no-ETX.tic"))
        self.assertEqual("056234673197", fields["ADCO"])
        self.assertIn(fields["BASE"], (16871494, 16871495))

    def test_damaged_captures_give_what_is_intact_in_them_and_no_more(self):
        expected = {
            "historic-bytes-swallowed.tic": ("PAPP BBRHPJB PTEC", "ISOUSC BBRHCJB MOTDETAT"),
            "standard-bad-lines.tic": ("", "EASD01 SMAXSN-1"),
            "standard-groups-spliced.tic": ("", "NGTF PJOURF+1"),
            "standard-starts-mid-group.tic": ("", "PREF EP*PREF"),
        }
        counts = {"historic-bytes-swallowed.tic": 13, "standard-bad-lines.tic": 2,
                  "standard-groups-spliced.tic": 13, "standard-starts-mid-group.tic": 3}
        for name, (there, absent) in expected.items():
            with self.subTest(name):
                meter = ecolinky.Meter()
                meter.feed(self.capture("damaged/" + name), 0.0)
                meter.feed(b"\x02", 0.0)
                self.assertEqual(counts[name], meter.groups)
                for label in there.split():
                    self.assertIn(label, meter.labels)
                for label in absent.split():
                    self.assertNotIn(label, meter.labels)
                self.assertIsNone(meter.fields(0.0))


INDEX_TAGS = ("BASE", "HCHC", "HCHP", "EJPHN", "EJPHPM") + House.TEMPO


def served_three_times(data):
    """Return what a Meter serves that was fed the data three times."""
    meter = ecolinky.Meter()
    for now in (0.0, 2.0, 4.0):
        meter.feed(data, now)
    return meter.fields(4.0)


def historic(papp="00790", base="000063207", **others):
    """Return the groups of a single-phase historic frame; a label set to None is out."""
    groups = collections.OrderedDict([
        ("ADCO", "027811420827"), ("OPTARIF", "BASE"), ("ISOUSC", "30"),
        ("BASE", base), ("PTEC", "TH.."), ("IINST", "003"), ("IMAX", "060"),
        ("PAPP", papp), ("HHPHC", "A"), ("MOTDETAT", "000000"),
    ])
    groups.update(others)
    return [(label, data) for label, data in groups.items() if data is not None]


def standard(**others):
    """Return the groups of a single-phase standard frame of a day-and-night tariff."""
    groups = collections.OrderedDict([
        ("ADSC", "041761123456"), ("VTIC", "02"), ("DATE", ("", "H260101120000")),
        ("NGTF", "H PLEINE/CREUSE "), ("LTARF", " HEURE  PLEINE  "),
        ("EAST", "000003000"), ("EASF01", "000001000"), ("EASF02", "000002000"),
    ])
    groups.update(("EASF%02d" % number, "000000000") for number in range(3, 11))
    groups.update([
        ("IRMS1", "004"), ("URMS1", "230"), ("PREF", "06"), ("PCOUP", "06"),
        ("SINSTS", "00920"), ("SMAXSN", ("04600", "H260101080000")),
        ("STGE", "003A0401"), ("MSG1", "PAS DE          MESSAGE         "),
        ("PRM", "01408288243642"), ("RELAIS", "000"), ("NTARF", "02"),
    ])
    groups.update((label.replace("_", "-"), data) for label, data in others.items())
    return [
        (label,) + (data if isinstance(data, tuple) else (data,))
        for label, data in groups.items()
        if data is not None
    ]


class MeterCase(unittest.TestCase):
    """A Meter and its clock: each frame comes two seconds after the last."""

    def setUp(self):
        self.meter, self.now = ecolinky.Meter(), 100.0

    def feed(self, *frames, step=2.0):
        for data in frames:
            if isinstance(data, list):
                data = frame(data, "\t" if data[0][0] == "ADSC" else " ")
            self.now += step
            self.meter.feed(data, self.now)

    def served(self, tag):
        fields = self.meter.fields(self.now)
        return fields and fields[tag]

    def assertServes(self, **expected):
        fields = self.meter.fields(self.now)
        self.assertIsNotNone(fields, "nothing is served")
        self.assertEqual(expected, {tag: fields[tag] for tag in expected})

    def assertServesNothing(self):
        self.assertIsNone(self.meter.fields(self.now))


class Decoding(MeterCase):
    def test_a_group_is_decoded_in_both_modes(self):
        for data, expected in (
            (b"PAPP 00790 1", ("PAPP", "00790")),
            (b"BASE 010151175  ", ("BASE", "010151175")),  # the checksum is a space
            (b"OPTARIF EJP  T", ("OPTARIF", "EJP ")),  # a space in the data
            (b"EAST\t011887649\t;", ("EAST", "011887649")),
            (b"EASD01\t000000000\t ", ("EASD01", "000000000")),
            (b"NGTF\t      BASE      \t<", ("NGTF", "      BASE      ")),
            (b"DATE\tH230301091834\t\tC", ("DATE", "H230301091834")),
            (b"SMAXSN\tH230301065253\t01024\t2", ("SMAXSN", "01024")),
        ):
            self.assertEqual(expected, ecolinky.decode_group(data))

    def test_a_group_with_one_wrong_character_is_not_decoded(self):
        for data in (b"PAPP 00790 1", b"EAST\t011887649\t;"):
            for place in range(len(data)):
                for bit in range(7):
                    wrong = bytearray(data)
                    wrong[place] ^= 1 << bit
                    label, told = ecolinky.decode_group(bytes(wrong))
                    self.assertFalse(label, "%r gave %r" % (bytes(wrong), told))

    def test_data_of_another_form_is_refused_though_its_checksum_is_right(self):
        for label, data in (
            ("PAPP", "0079"), ("PAPP", "007p0"), ("BASE", "06476 712"), ("PTEC", "HX.."),
            ("OPTARIF", "BASF"), ("DEMAIN", "NOIR"), ("IINST", "0003"), ("HCHC", ""),
        ):
            verdict = ecolinky.decode_group(group(label, data)[1:-1])
            self.assertEqual((None, "form"), verdict)

    def test_a_label_outside_the_specification_is_skipped(self):
        self.feed(historic(TENSION="230"), historic(TENSION="230"))
        self.assertServes(BASE=63207)
        self.assertEqual({"TENSION"}, self.meter.unknown)
        self.assertNotIn("TENSION", self.meter.labels)
        self.assertFalse(any(self.meter.refused.values()))

    def test_any_chunk_boundary_gives_the_same_values(self):
        for groups, separator in ((historic(), " "), (standard(), "\t")):
            data = frame(groups, separator) * 3
            whole = ecolinky.Meter()
            whole.feed(data, 1.0)
            for place in range(1, len(data)):
                meter = ecolinky.Meter()
                meter.feed(data[:place], 1.0)
                meter.feed(data[place:], 1.0)
                self.assertEqual(whole.fields(1.0), meter.fields(1.0), place)
            meter = ecolinky.Meter()
            for byte in data:
                meter.feed(bytes([byte]), 1.0)
            self.assertEqual(whole.fields(1.0), meter.fields(1.0))
            self.assertIsNotNone(whole.fields(1.0))

    def test_a_start_at_any_byte_of_a_frame_serves_only_what_was_sent(self):
        for groups, separator in ((historic(), " "), (standard(), "\t")):
            data = frame(groups, separator)
            expected = ecolinky.Meter()
            expected.feed(data * 4, 1.0)
            for place in range(len(data)):
                meter = ecolinky.Meter()
                for rest in (data[place:], data, data):
                    meter.feed(rest, 1.0)
                    fields = meter.fields(1.0)
                    self.assertIn(fields, (None, expected.fields(1.0)))
                self.assertIsNotNone(fields, "two whole frames are enough")

    def test_line_ends_around_stx_and_etx_are_no_matter(self):
        data = frame(historic())
        self.feed(*[b"\r\n" + data[:1] + b"\r" + data[1:-1] + b"\n" + data[-1:]] * 2)
        self.assertServes(BASE=63207, PAPP=790)
        self.assertFalse(any(self.meter.refused.values()))

    def test_the_next_stx_ends_a_frame_without_etx(self):
        data = frame(historic())[:-1]
        self.feed(data, data, data)
        self.assertServes(BASE=63207)

    def test_eot_discards_the_frame(self):
        self.feed(historic(), historic())
        self.feed(frame(historic(papp="05000"))[:-1] + b"\x04")
        self.assertServes(PAPP=790)

    def test_a_damaged_line_feed_costs_no_group(self):
        for wrong in (b"\x0b", b"\x0e", b"\x0f", b""):
            data = frame(historic()).replace(b"\nPAPP", wrong + b"PAPP")
            meter = ecolinky.Meter()
            meter.feed(data * 2, 1.0)
            self.assertEqual(790, meter.fields(1.0)["PAPP"])
            self.assertEqual(20, meter.groups)

    def test_a_trailing_control_character_costs_no_group(self):
        for debris in (b"\x0c", b"\x08"):
            data = frame(historic()).replace(b"\r\nHHPHC", debris + b"\r\nHHPHC")
            meter = ecolinky.Meter()
            meter.feed(data * 2, 1.0)
            self.assertEqual(20, meter.groups)

    def test_a_damaged_group_costs_that_group_and_keeps_its_last_good_value(self):
        self.feed(historic(), historic())
        self.feed(frame(historic(papp="00850", IINST="004")).replace(b"00850", b"00950"))
        self.assertServes(PAPP=790, IINST=4)
        self.assertEqual(1, self.meter.refused["checksum"])

    def test_a_label_that_an_undamaged_frame_has_no_more_is_gone(self):
        self.feed(historic(), historic(ADPS="031"))
        self.assertServes(ADPS=31)
        self.feed(frame(historic()).replace(b"00790", b"00791"))
        self.assertServes(ADPS=31)  # a damaged frame proves nothing
        self.feed(historic())
        self.assertServes(ADPS=0)

    def test_frames_read_as_8N1_are_decoded_and_their_parity_checked(self):
        def eight(data):
            return bytes(b | (bin(b).count("1") % 2) << 7 for b in data)

        data = frame(historic())
        self.feed(eight(data), eight(data))
        self.assertServes(BASE=63207)
        # Two changes that cancel in the sum, in PAPP: parity finds them.
        wrong = data.replace(b"00790", b"00781")
        wrong = wrong.replace(b"00781", b"00880")
        spoilt = bytearray(eight(data))
        for place, (right, now) in enumerate(zip(data, wrong)):
            spoilt[place] ^= right ^ now
        self.feed(bytes(spoilt))
        self.assertServes(PAPP=790)

    def test_short_three_phase_frames_update_and_do_not_replace(self):
        groups = [
            ("ADCO", "041520607177"), ("OPTARIF", "BASE"), ("ISOUSC", "20"),
            ("BASE", "008784338"), ("PTEC", "TH.."), ("IINST1", "001"),
            ("IINST2", "003"), ("IINST3", "004"), ("IMAX1", "021"), ("IMAX2", "031"),
            ("IMAX3", "030"), ("PMAX", "12780"), ("PAPP", "01880"), ("HHPHC", "A"),
            ("MOTDETAT", "000000"), ("PPOT", "00"),
        ]
        short = [("ADIR1", "024"), ("ADIR2", "000"), ("ADIR3", "000"),
                 ("ADCO", "041520607177"), ("IINST1", "024"), ("IINST2", "003"),
                 ("IINST3", "005")]
        self.feed(frame(groups), frame(groups), frame(short))
        self.assertServes(IINST1=24, IINST3=5, BASE=8784338, PAPP=1880, ADPS=24)
        self.feed(frame(groups))
        self.assertServes(IINST1=1, ADPS=0)

    def test_the_checksum_of_older_meters_is_learnt(self):
        def old(label, data):
            body = (label + " " + data + " ").encode()
            return b"\n" + body + bytes([(sum(body) & 0x3F) + 0x20]) + b"\r"

        data = b"\x02" + b"".join(old(*each) for each in historic()) + b"\x03"
        self.feed(data, data, data)
        self.assertServes(BASE=63207, PAPP=790)

    def test_a_half_frame_never_survives_a_reconnection(self):
        data = frame(historic())
        for place in range(len(data)):
            meter = ecolinky.Meter()
            meter.feed(data[:place], 1.0)
            meter.disconnected()
            meter.feed(frame(historic(ADCO="111111111111", base="000099999"))[place:], 2.0)
            self.assertIsNone(meter.fields(2.0))

    def test_two_half_groups_never_make_one(self):
        self.feed(historic(), historic(), frame(historic(base="024678449"))[:50])
        self.meter.disconnected()
        self.feed(b"450 X\r", historic(), historic())
        self.assertServes(BASE=63207)

    def test_a_stream_that_is_not_tic_is_held_in_bounded_memory(self):
        rng = random.Random(5)
        junk = bytes(rng.randrange(256) for _ in range(100000))
        for data in (junk, b"x" * 100000, b"\0" * 100000, b"\xff\xf1" * 50000,
                     b"\x02" + b"A" * 100000, b"\n" * 100000):
            self.meter.feed(data, 1.0)
            self.assertLessEqual(len(self.meter._buffer), self.meter.LONGEST)
            self.assertLess(len(self.meter.labels) + len(self.meter.unknown), 40)
        self.assertServesNothing()
        self.feed(historic(), historic(), historic())
        self.assertServes(BASE=63207)


class Translation(MeterCase):
    def test_the_fields_are_the_devices_in_its_order_and_complete(self):
        self.feed(historic(), historic())
        fields = self.meter.fields(self.now)
        self.assertEqual(TELEINFO_TAGS, list(fields))
        texts = {"ADCO", "OPTARIF", "PTEC", "DEMAIN", "HHPHC", "MOTDETAT"}
        for tag, value in fields.items():
            self.assertIs(str if tag in texts else int, type(value), tag)

    def test_the_spelling_of_ejp_is_the_one_that_domoticz_compares(self):
        groups = historic(OPTARIF="EJP ", BASE=None, EJPHN="000123456",
                          EJPHPM="000023456", PEJP="30", PTEC="HN..")
        self.feed(groups, groups)
        self.assertServes(OPTARIF="EJP.", EJPHN=123456, EJPHPM=23456, PEJP=30, BASE=0)

    def test_a_live_meter_never_has_an_imax_of_zero(self):
        self.feed(*[historic(IMAX="000")] * 2)
        self.assertServes(IMAX=1, IMAX1=0)
        self.meter = ecolinky.Meter()
        self.feed(*[historic(IMAX=None)] * 2)
        self.assertServes(IMAX=1)
        self.meter = ecolinky.Meter()
        self.feed(*[standard(SMAXSN=("00000", "H260101080000"))] * 2)
        self.assertServes(IMAX=1)

    def test_the_power_is_that_of_the_current_when_the_meter_sends_none(self):
        self.feed(*[historic(PAPP=None)] * 2)
        self.assertServes(PAPP=690, PPAP=690)

    def test_standard_mode_in_the_words_of_the_device(self):
        self.feed(standard(), standard())
        self.assertServes(ADCO="041761123456", OPTARIF="HC..", PTEC="HP..", ISOUSC=30,
                          HCHC=1000, HCHP=2000, BASE=0, PAPP=920, IINST=4, IMAX=20,
                          DEMAIN="----", PEJP=0, ADPS=0)

    def test_three_phases_in_standard_mode(self):
        smax = {"SMAXSN": None, "SMAXSN1": ("02300", "H260101080000"),
                "SMAXSN2": ("00000", "H260101080000"), "PREF": "12"}
        groups = standard(IRMS2="002", IRMS3="000", **smax)
        self.feed(groups, groups)
        self.assertServes(ISOUSC=20, IINST=0, IINST1=4, IINST2=2, IINST3=0, IMAX=0,
                          IMAX1=10, IMAX2=1, IMAX3=1)

    def test_every_tariff_of_standard_mode(self):
        tempo = "HC  BLEU|HP  BLEU|HC  BLANC|HP  BLANC|HC  ROUGE|HP  ROUGE".split("|")
        periods = ("HCJB", "HPJB", "HCJW", "HPJW", "HCJR", "HPJR")
        cases = [
            ("BASE", "BASE", 1, "BASE", "TH.."),
            ("base", "base", 1, "BASE", "TH.."),
            ("H PLEINE/CREUSE", "HEURE  CREUSE", 1, "HC..", "HC.."),
            ("H PLEINE/CREUSE", "INDEX INACTIF 2", 2, "HC..", "HP.."),
            ("HC", "BASE", 2, "HC..", "HP.."),
            ("EJP", "HEURE NORMALE", 1, "EJP.", "HN.."),
            ("EJP", "HEURE POINTE", 2, "EJP.", "PM.."),
            ("PRODUCTEUR", "INDEX NON CONSO", 1, "BASE", "TH.."),
            ("HC et Week-End", "HEURE WEEK-END", 3, "HC..", "HC.."),
            ("HC SEM WE MERCR", "HP MERCREDI", 6, "HC..", "HP.."),
            ("HC SEM WE LUNDI", "HC LUNDI", 5, "HC..", "HC.."),
            ("H SUPER CREUSES", "SUPER CREUSE", 3, "HC..", "HC.."),
            ("ZEN Flex", "HP SOBRIETE", 4, "HC..", "HP.."),
            ("ZEN Flex", "HC ECO", 1, "HC..", "HC.."),
            ("NOUVELLE OFFRE", "PERIODE 4", 4, "BASE", "TH.."),
            ("NOUVELLE OFFRE", "HEURE PLEINE", 2, "HC..", "HP.."),
        ]
        cases += [("TEMPO", word, number + 1, "BBR(", periods[number])
                  for number, word in enumerate(tempo)]
        cases += [("TEMPO", "BLEU HC", 1, "BBR(", "HCJB")]
        for ngtf, ltarf, ntarf, option, period in cases:
            with self.subTest(ngtf=ngtf, ltarf=ltarf):
                self.meter = ecolinky.Meter()
                easf = {"EASF%02d" % n: "%09d" % (n * 111) for n in range(1, 11)}
                groups = standard(
                    NGTF=ngtf.center(16), LTARF=ltarf.center(16), NTARF="%02d" % ntarf,
                    STGE="%08X" % (0x003A0001 | ntarf - 1 << 10), EAST="000006105", **easf
                )
                self.feed(groups, groups)
                self.assertServes(OPTARIF=option, PTEC=period)
                fields = self.meter.fields(self.now)
                self.assertEqual(6105, sum(fields[tag] for tag in INDEX_TAGS))

    def test_the_colour_of_tomorrow_and_the_notice_come_from_stge(self):
        for stge, demain, pejp in (("013A0000", "----", 0), ("463A0800", "BLEU", 0),
                                   ("9B3A9000", "BLAN", 30), ("0F3A0000", "ROUG", 0)):
            self.meter = ecolinky.Meter()
            self.feed(*[standard(STGE=stge)] * 2)
            self.assertServes(DEMAIN=demain, PEJP=pejp)

    def test_an_exceeded_subscription_shows_the_present_current(self):
        self.feed(*[standard(STGE="003A0481", IRMS1="032")] * 2)
        self.assertServes(ADPS=32)

    def test_the_oldest_firmwares_labels_are_known(self):
        groups = standard(SINSTS=None, SINST1="00920", SMAXSN=None,
                          SMAXN=("04600", " 260101080000"))
        self.feed(groups, groups)
        self.assertServes(PAPP=920, IMAX=20)

    def test_injection_is_an_input_of_its_own(self):
        groups = standard(EAIT="000032781", SINSTI="01253", SINSTS="00000")
        self.feed(groups)
        self.assertIsNone(self.meter.injection(self.now))
        self.feed(groups)
        fields = self.meter.injection(self.now)
        self.assertEqual(TELEINFO_TAGS, list(fields))
        expected = {"ADCO": "041761123456", "OPTARIF": "BASE", "PTEC": "TH..",
                    "BASE": 32781, "PAPP": 1253, "PPAP": 1253, "ISOUSC": 30, "IMAX": 20}
        self.assertEqual(expected, {tag: fields[tag] for tag in expected})
        self.assertIsNone(self.meter.injection(self.now + 31))


class Freshness(MeterCase):
    def test_a_cold_start_serves_within_two_clean_frames_and_not_before(self):
        self.assertServesNothing()
        self.feed(historic())
        self.assertServesNothing()
        self.feed(historic())
        self.assertServes(BASE=63207)

    def test_nothing_is_served_while_a_label_that_matters_is_missing(self):
        for label in ("ADCO", "OPTARIF", "BASE", "PTEC"):
            self.meter = ecolinky.Meter()
            self.feed(*[frame(historic(**{label: None}))] * 5)
            self.assertServesNothing()
        self.meter = ecolinky.Meter()
        self.feed(*[historic(OPTARIF="HC..", HCHC="000000012", PTEC="HC..")] * 5)
        self.assertServesNothing()  # HCHP is an index of that tariff too

    def test_a_silent_meter_is_stale_after_the_timeout_and_fresh_again(self):
        self.meter = ecolinky.Meter(timeout=30)
        self.feed(historic(), historic())
        self.now += 30
        self.assertServes(BASE=63207)
        self.now += 0.1
        self.assertServesNothing()
        self.feed(historic())
        self.assertServes(BASE=63207)

    def test_after_a_silence_a_grown_index_is_confirmed_before_anything_is_served(self):
        self.feed(historic(), historic())
        self.now += 3 * 86400
        self.feed(historic(base="000163207"))
        self.assertServesNothing()
        self.feed(historic(base="000163209"))
        self.assertServes(BASE=163207)

    def test_a_power_not_seen_for_a_while_is_not_served(self):
        self.feed(historic(), historic())
        spoilt = frame(historic()).replace(b"PAPP 00790 1", b"PAPP 00790 2")
        self.feed(*[spoilt] * 10)
        self.assertServes(PAPP=790)
        self.feed(*[spoilt] * 10)
        self.assertServesNothing()


class Guard(MeterCase):
    def test_an_index_that_moves_is_served_when_the_next_frame_confirms_it(self):
        self.feed(historic(), historic(), historic(base="000063210"))
        self.assertServes(BASE=63207)
        self.feed(historic(base="000063213"))
        self.assertServes(BASE=63210)

    def test_a_false_index_with_a_right_checksum_is_never_served(self):
        self.feed(historic(), historic())
        for base in ("900063207", "000063204", "000093207", "000063237", "000063208"):
            self.feed(historic(base=base))
            self.assertServes(BASE=63207)
            self.feed(historic())
            self.assertServes(BASE=63207)

    def test_a_false_index_that_repeats_a_few_times_is_not_served(self):
        self.feed(historic(), historic())
        self.feed(*[historic(base="900063207")] * 5)
        self.assertServes(BASE=63207)
        self.feed(historic(base="000063215"), historic(base="000063216"))
        self.assertServes(BASE=63215)

    def test_a_wrong_value_that_was_served_is_replaced_within_ten_clean_frames(self):
        self.feed(*[historic(base="900063207")] * 3)
        self.assertServes(BASE=900063207)
        for count in range(10):
            self.feed(historic(base="%09d" % (63207 + 2 * count)))
        self.assertIn(self.served("BASE"), range(63207, 63207 + 20))

    def test_a_start_on_a_damaged_frame_serves_the_truth_within_four_clean_frames(self):
        for wrong in ({"ADCO": "027811420828"}, {"base": "900063207"}, {"papp": "09999"}):
            self.meter = ecolinky.Meter()
            self.feed(historic(**wrong))
            for count in range(4):
                self.assertIn(self.served("BASE"), [None] + list(range(63207, 63220)))
                self.feed(historic(base="%09d" % (63207 + 3 * count)))
            self.assertServes(ADCO="027811420827", PAPP=790)
            self.assertLessEqual(63210, self.served("BASE"))

    def test_a_replaced_meter_is_served_within_ten_frames_and_nothing_mixed_before(self):
        self.feed(*[historic()] * 5)
        answers = []
        for count in range(10):
            base = "%09d" % (12 + 3 * count)
            self.feed(historic(ADCO="091600000001", base=base, papp="01234"))
            fields = self.meter.fields(self.now)
            answers.append(fields and (fields["ADCO"], fields["BASE"], fields["PAPP"]))
        old = ("027811420827", 63207, 790)
        for answer in answers:
            if answer not in (None, old):
                self.assertEqual(("091600000001", 1234), (answer[0], answer[2]))
                self.assertIn(answer[1], range(12, 42))
        self.assertEqual("091600000001", answers[-1][0])

    def test_one_frame_with_another_identity_is_held_back(self):
        self.feed(*[historic()] * 3)
        self.feed(historic(ADCO="027811420828", papp="05555"))
        self.assertServes(ADCO="027811420827", PAPP=790)

    def test_a_contract_that_changes_to_tempo_is_served_within_ten_frames(self):
        before = historic(OPTARIF="HC..", BASE=None, HCHC="000001000", HCHP="000002000",
                          PTEC="HC..")
        tempo = dict(zip(House.TEMPO, ("000001000", "000002000") + ("000000000",) * 4))
        after = historic(OPTARIF="BBR(", BASE=None, PTEC="HCJB", DEMAIN="BLEU", **tempo)
        self.feed(before, before)
        self.assertServes(HCHC=1000, HCHP=2000)
        self.feed(after)
        self.assertServesNothing()
        self.feed(after)
        self.assertServes(OPTARIF="BBR(", BBRHCJB=1000, BBRHPJB=2000, HCHC=0, HCHP=0)
        self.feed(*[historic()] * 2)
        self.assertServes(OPTARIF="BASE", DEMAIN="----")

    def test_a_mode_that_changes_is_served_within_ten_frames(self):
        self.feed(*[historic(ADCO="041761123456")] * 3)
        self.feed(*[standard()] * 5)
        self.assertServes(OPTARIF="HC..", HCHC=1000, HHPHC="0")

    def test_in_standard_mode_easf_that_do_not_add_up_to_east_are_refused(self):
        self.feed(standard(), standard())
        self.feed(*[standard(EASF02="000002016")] * 5)
        self.assertServes(HCHP=2000)
        self.assertLess(0, self.meter.refused["implausible"])
        self.feed(*[standard(EASF02="000002016", EAST="000003016")] * 2)
        self.assertServes(HCHP=2016)

    def test_an_index_under_load_advances_though_one_group_is_always_damaged(self):
        for label in ("ISOUSC", "HHPHC", "IINST"):
            self.meter = ecolinky.Meter()
            for count in range(40):
                data = frame(historic(base="%09d" % (63207 + 7 * count)))
                place = data.index(label.encode()) + 1 if count > 3 else -1
                data = data[:place] + b"~" + data[place + 1 :] if place > 0 else data
                self.feed(data)
            self.assertLessEqual(63207 + 7 * 38, self.served("BASE"))

    def test_a_burst_after_a_stalled_network_is_plausible(self):
        self.feed(historic(), historic())
        for count in range(1, 6):  # 9 kW, all at once after eight seconds
            self.feed(historic(base="%09d" % (63207 + 5 * count)), step=0.01)
        self.assertServes(BASE=63207 + 20)

    def test_no_false_index_in_a_small_version_of_the_benchmark(self):
        total = Tally("all")
        for seed in (1, 2):
            rng = random.Random(seed)
            for damage in damages():
                for kind in House.KINDS:
                    run_damage(kind, damage, 60, rng, total)
        self.assertEqual(2 * 10 * 5 * 60, total.counts["frames"])
        for key in ("false index", "falls", "false other"):
            self.assertEqual(0, total.counts[key], key)
        self.assertLess(total.counts["false PAPP"], 3)
        self.assertLess(0.95 * total.counts["intact"], total.counts["used"])

    def test_thirty_days_of_frames_are_served_without_growing(self):
        base, meter = 63207.0, ecolinky.Meter()
        for minute in range(30 * 24 * 60):
            base += 1200 / 60
            data = frame(historic(base="%09d" % base, papp="01200"))
            meter.feed(data + data, 60.0 * minute)
            if minute % 1440 == 0 and minute:
                self.assertEqual(int(base), meter.fields(60.0 * minute)["BASE"])
        self.assertLess(len(meter.labels), 12)


class PowerHistory(unittest.TestCase):
    def test_the_history_is_one_mean_a_minute_with_gaps_and_bounded(self):
        history = ecolinky.History()
        for now in range(0, 120, 10):
            history.add(100 if now < 60 else 200, float(now))
        self.assertEqual([100], history.means(119.0))
        self.assertEqual([100, 200, None], history.means(180.0))
        for now in range(0, 3600 * 24, 30):
            history.add(500, 1000.0 + now)
        self.assertEqual(history.LENGTH, len(history.means(1000.0 + 3600 * 24)))


########################################################################################
# Benchmarks: numbers that anyone can measure again
########################################################################################


def plain_decoder(stream):
    """Decode a stream with the checksum alone: the yardstick for Meter.feed."""
    values, buffer = {}, b""
    for data in stream:
        buffer += data
        while True:
            end = buffer.find(b"\x03")
            if end < 0:
                break
            body, buffer = buffer[buffer.find(b"\x02") + 1 : end], buffer[end + 1 :]
            for line in body.split(b"\r"):
                line = line.lstrip(b"\n")
                if len(line) < 4:
                    continue
                separator = line[-2:-1]
                covered = line[:-1] if separator == b"\t" else line[:-2]
                if (sum(covered) & 0x3F) + 0x20 != line[-1]:
                    continue
                words = line[:-2].decode("ascii").split(separator.decode("ascii"))
                values[words[0]] = words[-1]
    return values


def median_rate(work, count, times=5):
    """Return how many of `count` things `work` does a second, the median of runs."""
    rates = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        rates.append(count / (time.perf_counter() - start))
    return statistics.median(rates)


def bench_feed():
    """Print frames a second of Meter.feed, beside a checksum-only decoder."""
    for kind, count in (("hc", 20000), ("standard", 6000)):
        house = House(kind, random.Random(1))
        separator = "\t" if house.standard else " "
        stream = [frame(house.step()[0], separator) for _ in range(count)]

        def feed():
            meter = ecolinky.Meter()
            for number, data in enumerate(stream):
                meter.feed(data, 2.0 * number)
            assert meter.frames == count

        plain = median_rate(lambda: plain_decoder(stream), count)
        guarded = median_rate(feed, count)
        name = "standard" if house.standard else "historic"
        print("feed, %-24s %8.0f frames/s, %.2f of checksum only (%.0f)"
              % (name, guarded, guarded / plain, plain))


class BareHandler(http.server.BaseHTTPRequestHandler):
    """A bare http.server with a ready-made body: the yardstick for HTTP."""

    protocol_version = "HTTP/1.1"
    body = b"x" * 900

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self._headers_buffer.append(b"\r\n" + self.body)
        self.flush_headers()

    def log_message(self, *arguments):
        pass


def ask_kept_alive(port, paths, count):
    """Ask for paths in turn on one connection."""
    asked = [("GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path).encode() for path in paths]
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for number in range(count):
            connection.sendall(asked[number % len(asked)])
            answer = connection.recv(65536)
            length = int(re.search(rb"Content-Length: (\d+)", answer).group(1))
            body = answer.split(b"\r\n\r\n", 1)[1]
            while len(body) < length:
                body += connection.recv(65536)


def ask_anew(port, paths, count):
    """Ask for paths in turn, each on a connection of its own."""
    for number in range(count):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            path = paths[number % len(paths)]
            connection.sendall(("GET %s HTTP/1.0\r\n\r\n" % path).encode())
            while connection.recv(65536):
                pass


@contextlib.contextmanager
def program(*arguments):
    """Run the real program on a free port; yield its port and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        ini = os.path.join(folder, "ecolinky.ini")
        with open(ini, "w") as file:
            file.write("[teleinfo1]\nhost = 127.0.0.1\nport = %s\n" % (
                arguments[0] if arguments and arguments[0].isdigit() else 9))
            file.write("[http]\nport = %d\naddress = 127.0.0.1\n" % port)
        options = [each for each in arguments if not each.isdigit()]
        command = [sys.executable, os.path.abspath(ecolinky.__file__), "--config", ini]
        process = subprocess.Popen(command + options, stderr=subprocess.PIPE)
        try:
            yield port, process
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=10)


def wait_for(port, ready, seconds=20.0):
    """Poll cmd=10 until `ready(text)`; return the seconds it took."""
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        try:
            answer = get_text(port, "/api/xdevices.json?cmd=10")
            if ready(answer):
                return time.perf_counter() - start
        except OSError:
            pass
        time.sleep(0.002)
    raise RuntimeError("no answer in %d s" % seconds)


def get_text(port, path):
    """Return the body of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", path)
    try:
        return connection.getresponse().read().decode("latin-1")
    finally:
        connection.close()


def resident_kib(process):
    """Return the resident memory of a process in KiB, from /proc."""
    with open("/proc/%d/status" % process.pid) as file:
        return int(re.search(r"VmRSS:\s+(\d+)", file.read()).group(1))


def bench_http():
    """Print requests a second, beside a bare http.server."""
    bare = http.server.ThreadingHTTPServer(("127.0.0.1", 0), BareHandler)
    bare.daemon_threads = True
    threading.Thread(target=bare.serve_forever, daemon=True).start()
    paths = ["/status.xml", "/protect/settings/teleinfo1.xml"]
    with program("--demo", "standard") as (port, process):
        wait_for(port, lambda text: '"T1_PAPP":' in text)
        for name, ask, count in (
            ("one connection", ask_kept_alive, 4000),
            ("a connection each", ask_anew, 1500),
        ):
            ours = median_rate(lambda: ask(port, paths, count), count)
            theirs = median_rate(lambda: ask(bare.server_port, ["/"], count), count)
            print("http, %-24s %8.0f requests/s, %.2f of bare (%.0f)"
                  % (name, ours, ours / theirs, theirs))
    bare.shutdown()
    bare.server_close()


class PacedEsp:
    """A socket that one reader connects to and that sends when told."""

    def __init__(self):
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(1)
        self.port = self._listener.getsockname()[1]
        self.client = None

    def accept(self):
        self.client = self._listener.accept()[0]
        self.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self):
        for each in (self.client, self._listener):
            if each:
                each.close()


def bench_latency(count=100):
    """Print the time from a frame's last byte to the first answer that shows it."""
    esp, times = PacedEsp(), []
    with program(str(esp.port)) as (port, process):
        esp.accept()
        esp.client.sendall(frame(historic()) * 2)
        wait_for(port, lambda text: '"T1_PAPP":790' in text)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        for number in range(count):
            esp.client.sendall(frame(historic(papp="%05d" % (1000 + number))))
            start = time.perf_counter()
            while True:
                connection.request("GET", "/api/xdevices.json?cmd=10")
                text = connection.getresponse().read()
                if b'"T1_PAPP":%d,' % (1000 + number) in text:
                    break
            times.append(1000 * (time.perf_counter() - start))
            time.sleep(0.01)
        connection.close()
    esp.close()
    times.sort()
    print("latency, frame to answer       median %.1f ms, 99th percentile %.1f ms"
          % (statistics.median(times), times[int(count * 0.99) - 1]))


def bench_start():
    """Print how long the first answer takes from the start, and the first values."""
    start = time.perf_counter()
    with program("--demo") as (port, process):
        wait_for(port, lambda text: True)
        answered = time.perf_counter() - start
        wait_for(port, lambda text: '"T1_PAPP":' in text)
        print("start, first answer            %8.2f s; first values %.1f s"
              % (answered, time.perf_counter() - start))


class LineRateEsp(threading.Thread):
    """Sends a standard-mode meter's frames at line rate, in an ESP's chunks."""

    def __init__(self):
        super().__init__(daemon=True)
        self._esp = PacedEsp()
        self.port = self._esp.port
        self.ended = threading.Event()

    def run(self):
        house = House("standard", random.Random(1))
        self._esp.accept()
        while not self.ended.is_set():
            groups, seconds = house.step()
            data, start = frame(groups, "\t"), time.monotonic()
            for place in range(0, len(data), 48):
                self._esp.client.sendall(data[place : place + 48])
                self.ended.wait(0.05)
            self.ended.wait(max(0.0, start + seconds - time.monotonic()))
        self._esp.close()


def bench_size(seconds=60):
    """Print memory after a load of 50 pollers and 200 idle ones, and the CPU used."""
    esp = LineRateEsp()
    esp.start()
    with program(str(esp.port)) as (port, process):
        wait_for(port, lambda text: '"T1_PAPP":' in text)
        before = resident_kib(process)
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(200)]
        threads = [
            threading.Thread(target=ask_anew, args=(port, ["/status.xml"], 100))
            for _ in range(50)
        ]
        slowest = 0.0
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            start = time.perf_counter()
            get_text(port, "/status.xml")
            slowest = max(slowest, time.perf_counter() - start)
        for connection in idle:
            connection.close()
        after = resident_kib(process)
        print("memory, resident               %8.1f MiB, after 50 pollers and 200 idle"
              " connections %.1f MiB" % (before / 1024, after / 1024))
        print("load, slowest poll beside it   %8.3f s" % slowest)
        used = cpu_seconds(process)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            get_text(port, "/status.xml")
            get_text(port, "/protect/settings/teleinfo1.xml")
            time.sleep(2)
        used = (cpu_seconds(process) - used) / seconds * 600
        print("cpu, standard mode, polled each 2 s %.2f s per 10 minutes" % used)
        esp.ended.set()


def cpu_seconds(process):
    """Return the processor time of a process, from /proc."""
    with open("/proc/%d/stat" % process.pid) as file:
        words = file.read().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def main():
    """Run the tests, or a benchmark."""
    if sys.argv[1:2] != ["bench"]:
        unittest.main()
    parser = argparse.ArgumentParser(prog="test_ecolinky.py bench")
    parser.add_argument("what", nargs="?", choices=["speed", "damage"], default="speed")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(sys.argv[2:])
    if options.what == "damage":
        sys.exit(1 if bench_damage(options.seed) else 0)
    for bench in (bench_feed, bench_http, bench_latency, bench_start, bench_size):
        bench()


if __name__ == "__main__":
    main()
