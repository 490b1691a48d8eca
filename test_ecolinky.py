"""The tests of ecolinky: standard library, loopback only, no fixed port.

    python3 -m unittest

The tests follow the order of the program's rooms; their tools and the simulated meters
come after them.  The encoder is the tests' own, so that the program does not check
itself.  The tests that need a real client or a browser are in .ci/test_clients.py, the
benchmarks in .ci/bench.py.
"""

import ast
import base64
import collections
import contextlib
import ctypes
import errno
import functools
import glob
import hashlib
import http.client
import io
import itertools
import json
import logging
import math
import os
import pickle
import random
import re
import runpy
import shutil
import signal
import socket
import socketserver
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import xml.etree.ElementTree as ElementTree
from collections import namedtuple
from unittest import mock

import ecolinky

try:
    PRCTL = ctypes.CDLL(None).prctl
except (AttributeError, TypeError):
    PRCTL = None  # not Linux

HERE = os.path.dirname(os.path.abspath(ecolinky.__file__))
PROGRAM = os.path.join(HERE, "ecolinky.py")
CAPTURES = os.path.join(HERE, ".ci", "captures")
# Whoever copies the five files alone has no captures; whoever clones has them all.
IS_CLONE = os.path.isdir(os.path.join(HERE, ".ci"))
MAC = "02:00:5e:10:00:01"

logging.getLogger("ecolinky").addHandler(logging.NullHandler())

# The tags, as the device has them.
FIELDS = (
    "ADCO OPTARIF ISOUSC BASE HCHC HCHP EJPHN EJPHPM BBRHCJB BBRHPJB BBRHCJW BBRHPJW"
    " BBRHCJR BBRHPJR PEJP PTEC DEMAIN IINST IINST1 IINST2 IINST3 ADPS IMAX IMAX1 IMAX2"
    " IMAX3 PPAP PAPP HHPHC MOTDETAT PPOT"
).split()
STATUS_TAGS = (
    "date time0 config_hostname config_mac http_port T1_PPAP T2_PPAP T1_PAPP T2_PAPP"
    " T1_PTEC T2_PTEC T1_ISOUSC T2_ISOUSC T1_IMAX T1_IMAX1 T1_IMAX2 T1_IMAX3 T2_IMAX"
    " T2_IMAX1 T2_IMAX2 T2_IMAX3 meter0 meter1 meter2 meter3 count0 count1 c0day c1day"
    " c0_fuel c1_fuel dnsstatus version salr"
).split()
TEXTS = ("ADCO", "OPTARIF", "PTEC", "DEMAIN", "HHPHC", "MOTDETAT")
BBR = ["BBRHCJB", "BBRHPJB", "BBRHCJW", "BBRHPJW", "BBRHCJR", "BBRHPJR"]
INDEX_TAGS = ["BASE", "HCHC", "HCHP", "EJPHN", "EJPHPM"] + BBR
T1 = "/protect/settings/teleinfo1.xml"
T2 = "/protect/settings/teleinfo2.xml"
CMD10, CMD20 = "/api/xdevices.json?cmd=10", "/api/xdevices.json?cmd=20"
XML_PATHS = ("/status.xml", T1, T2, "/teleinfo.xml", "/globalstatus.xml")
PATHS = XML_PATHS + (CMD10, CMD20)


######## Decode ########################################################################


class MeterCase(unittest.TestCase):
    """A Meter and its clock; frames are two seconds apart."""

    def setUp(self):
        self.meter, self.now = ecolinky.Meter(), 100.0

    def feed(self, *frames, step=2.0):
        for data in frames:
            self.now += step
            self.meter.feed(encoded(data) if isinstance(data, list) else data, self.now)

    def served(self, tag):
        fields = self.meter.fields(self.now)
        return fields and fields[tag]

    def assertServes(self, **expected):
        fields = self.meter.fields(self.now)
        self.assertIsNotNone(fields, "nothing is served")
        self.assertEqual(expected, {tag: fields[tag] for tag in expected})

    def assertServesNothing(self):
        self.assertIsNone(self.meter.fields(self.now))

    def afresh(self, *frames):
        self.setUp()
        self.feed(*frames)

    @contextlib.contextmanager
    def fed(self, *frames, **case):
        """Begin anew with these frames, in a subTest of the case."""
        with self.subTest(**case):
            self.afresh(*frames)
            yield


class DecodeTests(MeterCase):
    def test_a_stuck_bit_in_the_padding_of_a_contract_is_damage(self):
        for label, name in (
            ("NGTF", "     TEMPO      "),
            ("LTARF", "    HC  BLEU    "),
        ):
            for place, sign in enumerate(name):
                if sign == " ":
                    with self.subTest(label, place=place):
                        spoilt = name[:place] + "`" + name[place + 1 :]
                        body = group(label, name, separator="\t")
                        piece = body.replace(name.encode(), spoilt.encode()).strip()
                        self.assertEqual((None, "form"), verdict(piece))

    def test_a_group_is_decoded_in_both_modes(self):
        for data, expected in (
            (b"PAPP 00790 1", ("PAPP", "00790")),
            (b"BASE 010151175  ", ("BASE", "010151175")),  # the checksum is a space
            (b"\x0bBASE 010151175  \x0c", ("BASE", "010151175")),
            (b"OPTARIF EJP  T", ("OPTARIF", "EJP ")),  # a space in the data
            (b"EAST\t011887649\t;", ("EAST", "011887649")),
            (b"EASD01\t000000000\t ", ("EASD01", "000000000")),
            (b"NGTF\t      BASE      \t<", ("NGTF", "      BASE      ")),
            (b"DATE\tH230301091834\t\tC", ("DATE", "H230301091834")),
            (b"SMAXSN\tH230301065253\t01024\t2", ("SMAXSN", "01024")),
        ):
            with self.subTest(data=data):
                self.assertEqual(expected, verdict(data))

    def test_a_group_with_one_flipped_bit_is_refused(self):
        for data in (b"PAPP 00790 1", b"EAST\t011887649\t;"):
            for place in range(len(data)):
                for bit in range(7):
                    with self.subTest(data=data, place=place, bit=bit):
                        wrong = bytearray(data)
                        wrong[place] ^= 1 << bit
                        label, told = verdict(bytes(wrong))
                        # Bit 5 of the checksum gives the older meters' checksum.
                        if label:
                            self.assertEqual((place, bit), (len(data) - 1, 5))
                            self.assertEqual(told, "00790")

    def test_a_checksum_of_another_kind_than_the_frames_counts_as_damage(self):
        def other_way(piece):
            return piece[:-2] + bytes([(piece[-2] - 32 ^ 32) + 32]) + piece[-1:]

        adco, base = group("ADCO", "012345678901"), group("BASE", "010151175")
        papp = group("PAPP", "00790")
        for text, labels, damaged in (
            (adco + base + other_way(papp), "ADCO BASE", 1),
            (other_way(adco) + other_way(base) + papp, "ADCO BASE", 1),
            # Frames run together when STX and ETX are lost.
            (other_way(papp) + adco + base + other_way(papp), "ADCO BASE", 1),
            (other_way(papp) + adco + papp, "PAPP ADCO", 0),
            # Of as many groups of either kind the older kind is refused.
            (papp + other_way(base), "PAPP", 1),
            (other_way(base) + papp, "PAPP", 1),
        ):
            with self.subTest(labels=labels, damaged=damaged):
                groups, reasons = ecolinky.decode_groups(text)
                self.assertEqual(labels.split(), list(groups))
                self.assertEqual(["checksum"] * damaged, reasons)

    def test_a_line_that_lost_its_marks_or_line_ends_is_still_served(self):
        losses = (b"\2\3", b"\2\3\r", b"\2\3\n", b"\r", b"\n", b"\2", b"\3")
        lines = [(lost, b"\r") for lost in losses] + [(b"\2\3", b"\n")]  # CR as LF
        meters = (HC, EJP, TEMPO_3, THREE_PHASES, standard(), SUN)
        for line, groups, size in itertools.product(lines, meters, (7, 100, 10000)):
            with self.subTest(line, meter=groups[0][1], size=size):
                self.setUp()
                lost, as_cr = line
                stream = encoded(groups).translate(None, lost).replace(b"\r", as_cr) * 5
                for chunk in cut(stream, size):
                    self.feed(chunk, step=2.0 * len(chunk) * 5 / len(stream))
                self.assertServes(ADCO=groups[0][1])
                self.assertEqual({"checksum": 0, "form": 0}, damaged_of(self.meter))
                self.assertIn(self.meter.counts().frames, (4, 5))

    def test_malformed_data_is_refused_even_with_a_right_checksum(self):
        for separator, groups in (
            (" ", "PAPP 0079|PAPP 007p0|BASE 06476 712|HCHC |PTEC HX..|OPTARIF BASF"),
            (" ", "DEMAIN NOIR|IINST 0003|PPOT 0G"),
            ("\t", "SINSTS 0092|SINSTS 50000|EASF01 12345678|STGE 003A040G|NGTF BASE"),
        ):
            for label, data in pairs(groups):
                with self.subTest(label, data=data):
                    piece = group(label, data, separator=separator)[1:-1]
                    self.assertEqual((None, "form"), verdict(piece), piece)

    def test_an_unknown_label_counts_as_damage_only_if_its_checksum_is_wrong(self):
        for piece, expected in (
            (group("TENSION", "230")[1:-1], (None, None)),
            (group("TENSION", "230", separator="\t")[1:-1], (None, None)),
            (b"TENSION 230 !", (None, "form")),
            (group("SINSTS", "00920")[1:-1], (None, "form")),  # of another mode
            (group("PAPP", "00790", separator="\t")[1:-1], (None, "form")),
        ):
            with self.subTest(piece=piece):
                self.assertEqual(expected, verdict(piece), piece)

    def test_the_values_do_not_depend_on_where_chunks_end(self):
        for groups in (historic(), standard()):
            with self.subTest(groups[0][0]):
                data, answers = encoded(groups) * 3, []
                for size in [len(data), *range(1, 20), *range(20, len(data), 7)]:
                    meter = ecolinky.Meter()
                    for chunk in cut(data, size):
                        meter.feed(chunk, 1.0)
                    answers.append(meter.fields(1.0))
                self.assertIsNotNone(answers[0])
                self.assertEqual([answers[0]] * len(answers), answers)

    def test_the_longest_frame_in_small_chunks_is_one_frame(self):
        groups = list(SUN)
        groups += [("PJOURF+1", "00008002 0256C001" + " NONUTILE" * 9)]
        groups.insert(1, ("AUTRE", "0" * (1442 - len(encoded(groups)) - 10)))
        data, decoder, found = encoded(groups), ecolinky.Decoder(), []
        self.assertEqual(1442, len(data))  # the longest of a three-phase meter
        for chunk in cut(data, 48):
            found += decoder.feed(chunk)
        self.assertEqual([len(groups) - 1], [len(each.groups) for each in found])

    def test_bytes_around_frames_and_groups_cost_no_group(self):
        data = encoded(historic())
        for case, changed in {
            "line ends": b"\r\n" + data[:1] + b"\r" + data[1:-1] + b"\n" + data[-1:],
            "no ETX": data[:-1],
            "0B": data.replace(b"\nPAPP", b"\x0bPAPP"),
            "0E": data.replace(b"\nPAPP", b"\x0ePAPP"),
            "no LF": data.replace(b"\nPAPP", b"PAPP"),
            "0C": data.replace(b"\r\nHHPHC", b"\x0c\r\nHHPHC"),
            "08": data.replace(b"\r\nHHPHC", b"\x08\r\nHHPHC"),
            "7F": b"\x7f" + data.replace(b"\nPAPP", b"\x7fPAPP"),
            "FF": b"\xff" + data.replace(b"\nPAPP", b"\xff\nPAPP"),
            "CR as LF, no ETX": data[:-1].replace(b"\r", b"\n"),
            "unknown label": data.replace(
                b"\nPAPP", group("TENSION", "230") + b"\nPAPP"
            ),
            "8N1": bytes(b | (bin(b).count("1") % 2) << 7 for b in data),
        }.items():
            with self.fed(changed, changed, changed, b"\x02", case=case):
                self.assertServes(BASE=63207, PAPP=790)
                self.assertEqual(30, self.meter.counts().groups)
                self.assertFalse(any(damaged_of(self.meter).values()))
                self.assertEqual(case == "8N1", self.meter.counts().eight_bits > 0)

    def test_an_eot_discards_its_frame(self):
        data = encoded(historic(papp="00800"))
        for place, end in itertools.product(range(1, len(data)), (len(data), -1)):
            with self.fed(*[historic()] * 3, place=place):
                self.feed(data[:place] + b"\x04" + data[place:end])
                self.meter.disconnected()
                self.assertServes(PAPP=790)

    def test_a_frame_with_another_byte_as_stx_counts_and_is_relayed_as_any_frame(self):
        strays = [byte for byte in range(128) if byte not in b"\x02\x03\x04"]
        lines = (HC_FRAME, encoded(standard()))
        for data, stray, feed in itertools.product(lines, strays, (b"\n", b"\x0f")):
            with self.subTest(data[2:6], stray=stray, feed=feed):
                bad = bytes([stray]) + feed + data[2:].replace(b"\r\n", b"\r\x0f", 3)
                meter, relayed = ecolinky.Meter(is_relayed=True), b""
                for number in range(4):
                    relayed += relayed_by(meter.feed(bad, 2.0 * number))
                self.assertEqual(data * 2, relayed)
                counts = meter.counts()
                groups = 4 * data.count(b"\r")
                self.assertEqual((4, groups), (counts.frames, counts.groups))
                self.assertEqual(0, counts.damaged)

    def test_the_checksum_of_older_meters_covers_the_space_before_it(self):
        def old(label, data):
            body = (label + " " + data + " ").encode()
            return b"\n" + body + bytes([(sum(body) & 0x3F) + 0x20]) + b"\r"

        data = b"\x02" + b"".join(old(*each) for each in historic()) + b"\x03"
        self.feed(data, data, data)
        self.assertServes(BASE=63207, PAPP=790)

    def test_a_half_frame_never_survives_a_reconnection(self):
        data = encoded(historic())
        other = historic(ADCO="111111111111", base="000099999")
        for place in range(len(data)):
            with self.subTest(place=place):
                meter = ecolinky.Meter()
                meter.feed(data[:place], 1.0)
                meter.disconnected()
                meter.feed(encoded(other)[place:], 2.0)
                self.assertIsNone(meter.fields(2.0))

    def test_whole_groups_received_before_a_lost_connection_are_used(self):
        data = encoded(historic(papp="00850", IINST="004"))
        for last, power in ((b"\nIMAX", 790), (b"\nMOTDETAT", 850)):
            with self.fed(*[historic()] * 3, data[: data.index(last)], before=last):
                self.meter.disconnected()
                self.assertServes(IINST=4, PAPP=power)

    def test_a_stream_without_stx_and_etx_loses_no_label(self):
        for groups in (historic(), standard()):
            with self.subTest(groups[0][0]):
                self.setUp()
                self.feed(*cut(encoded(groups)[1:-1] * 40, 100), step=0.1)
                self.assertIsNotNone(self.meter.fields(self.now))
                labels = {each[0] for each in groups}
                self.assertEqual(labels, set(self.meter.labels(self.now)))

    def test_a_stream_other_than_tic_takes_bounded_memory(self):
        rng = random.Random(5)
        junk = bytes(rng.randrange(256) for _ in range(100000))
        repeated = (b"x", b"\0", b"\xff\xf1", b"\n", b"ABC 1 2\r")
        streams = [(each * 100000)[:100000] for each in repeated]
        for data in [junk, b"\x02" + b"A" * 100000, *streams]:
            with self.subTest(data[:20]):
                self.meter.feed(data, 1.0)
                self.assertLess(len(pickle.dumps(self.meter)), 8192, data[:20])
        self.assertServesNothing()
        self.feed(historic(), historic(), historic())
        self.assertServes(BASE=63207)

    def test_cutting_a_stream_without_frames_splits_no_group(self):
        decoder = ecolinky.Decoder()
        data = b"".join(group("BASE", "%09d" % number) for number in range(400))
        found = [one for chunk in cut(data, 7) for one in decoder.feed(chunk)]
        self.assertEqual(0, sum(one.damaged for one in found))

    def test_the_half_frame_before_the_first_identity_does_not_count_as_damage(self):
        data = encoded(historic()).strip(b"\x02\x03") * 3
        self.feed(data[30:])
        self.assertEqual({"checksum": 0, "form": 0}, damaged_of(self.meter))


######## Guard #########################################################################


class GuardTests(MeterCase):
    """The six rules, and what is asked of every index of every contract."""

    def known(self):
        return self.meter.labels(self.now)

    def assertKeeps(self, groups):
        """Fail if a label is known with other data than these groups have."""
        self.assertLessEqual(self.known().items(), data_by_label(groups).items())

    # Rule 1.

    def test_another_index_is_served_only_after_two_minutes_without_any(self):
        for gap in (2.0, 20.0, 59.0, 89.0):
            with self.fed(*[historic(base="001000000")] * 4, gap=gap):
                nothing = 0.0
                for _ in range(200):
                    self.feed(historic(base="000900000"), step=gap)
                    fields = self.meter.fields(self.now)
                    if fields is None:
                        nothing += gap
                    elif fields["BASE"] == 900000:
                        break
                self.assertEqual(900000, fields["BASE"])
                self.assertGreaterEqual(nothing, 110)

    def test_a_single_reading_that_is_too_low_is_not_served_however_late_the_next(self):
        for gap in (2.0, 30.0, 59.0, 60.0, 75.0, 90.0):
            for low in (1, 10, 500, 900):
                with self.fed(*[historic(base="000010000")] * 4, gap=gap, low=low):
                    self.feed(historic(base="%09d" % (10000 - low)))
                    for _ in range(6):
                        self.feed(historic(base="000010000"), step=gap)
                        fields = self.meter.fields(self.now)
                        if fields is not None:
                            self.assertEqual(10000, fields["BASE"])

    def test_a_reading_is_trusted_when_the_next_two_agree_with_it(self):
        for read, trusted in (
            ("100 100 100 101 103 103 103", "- - 100 100 100 101 103"),
            ("100 101 102 103 104 104", "- - 100 101 102 103"),
            ("105 105 100 100 100 100", "- - - - 100 100"),
            ("100 100 100 105 105 100 100", "- - 100 100 100 100 100"),
        ):
            with self.fed(read=read):
                seen = []
                for number in read.split():
                    self.feed(historic(base="%09d" % int(number)))
                    seen.append(str(self.served("BASE") or "-"))
                self.assertEqual(trusted.split(), seen)

    def test_one_damaged_reading_or_two_alike_change_nothing(self):
        rng = random.Random(31)
        for groups in EVERY_METER:
            self.afresh(*[groups] * 3)
            before = self.known()
            self.assertEqual(data_by_label(groups), before)
            for place, (label, *_) in enumerate(groups):
                if ecolinky.KNOWN_LABELS[label].kind.is_at_once:
                    continue
                for _ in range(4):
                    wrong = list(groups)
                    wrong[place] = misread(groups[place], rng)
                    if ecolinky.KNOWN_LABELS[label].kind is ecolinky.POWER:
                        wrong[place] = (label, "49999")  # it matches no current
                    with self.subTest(groups[0][1], wrong=wrong[place]):
                        for frames_sent in ([wrong, groups], [wrong, wrong, groups]):
                            for each in frames_sent:
                                self.feed(each)
                                self.assertEqual(before, self.known())

    def test_an_index_is_never_above_the_meters_nor_below_the_one_before(self):
        rng = random.Random(32)
        for groups in EVERY_METER:
            with self.fed(*[groups] * 3, case=groups[0][1], groups=len(groups)):
                truth = data_by_label(groups)
                last = self.known()
                for _ in range(100):
                    groups = grown(groups, rng)
                    truth = data_by_label(groups)
                    stream = [groups]
                    if rng.random() < 0.3:
                        stream = [with_wrong_index(groups, rng)] * rng.randint(1, 2)
                    for each in [*stream, groups]:
                        self.feed(each)
                        known = self.known()
                        for label in ecolinky.REGISTER_OF.keys() & known.keys():
                            self.assertLessEqual(int(known[label]), int(truth[label]))
                            self.assertLessEqual(int(last[label]), int(known[label]))
                        last = known
                self.feed(*[groups] * 3)
                self.assertEqual(truth, self.known())

    def test_an_index_grows_by_no_more_than_36_kva_allow(self):
        # Frames are two seconds apart: 20 Wh, and 10 for a network that stalls.
        for base, shown in (("000063237", 63237), ("000063238", 63207)):
            with self.fed(*[historic()] * 4, *[historic(base=base)] * 3, base=base):
                self.assertServes(BASE=shown)
                self.feed(historic(base=base))  # four seconds after the last 63207
                self.assertServes(BASE=int(base))
                self.afresh(historic(), historic(base=base), historic(base=base))
                self.assertEqual(base == "000063237", self.served("BASE") is not None)

    def test_a_burst_after_a_stalled_network_is_accepted(self):
        self.feed(*[historic()] * 3)
        for count in range(1, 11):  # 18 kW, all at once after 20 seconds
            self.feed(historic(base="%09d" % (63207 + 10 * count)), step=0.01)
            self.assertServes(BASE=63207 + 10 * max(0, count - 2))

    def test_readings_more_than_ninety_seconds_apart_do_not_agree(self):
        for gap, shown in ((89.0, 45), (91.0, 30)):
            with self.fed(*[historic()] * 3, gap=gap):
                lossy = without("ISOUSC", encoded(historic()))
                for _ in range(3):
                    self.feed(historic(ISOUSC="45"))
                    self.feed(*[lossy] * 4, step=(gap - 2.0) / 4)
                self.assertServes(ISOUSC=shown)

    def test_every_label_but_measurements_needs_three_readings(self):
        base = dict(MSG2="CHUT")
        for label, data, needed in (
            ("URMS1", "231", 1),
            ("IRMS1", "009", 1),
            ("DATE", ("", "H260101120002"), 1),
            ("EASD01", "003456782", 3),
            ("MSG2", "", 3),
            ("RELAIS", "001", 3),
            ("SMAXSN", ("05000", "H260101090000"), 3),
        ):
            with self.fed(*[standard(**base)] * 3, label=label):
                before = self.known()
                for count in range(1, 4):
                    if label == "SMAXSN":  # the data must agree, but not the stamps
                        data = (data[0], data[1][:-1] + str(count))
                    self.feed(standard(**{**base, label: data}))
                    is_changed = self.known()[label] != before[label]
                    self.assertEqual(count >= needed, is_changed, count)

    def test_the_order_of_the_labels_does_not_matter(self):
        rng = random.Random(33)
        powers = ecolinky.labels_of(ecolinky.POWER)
        for groups in EVERY_METER:
            with self.subTest(groups[0][1]):
                in_order, shuffled = ecolinky.Meter(), ecolinky.Meter()
                for number in range(40):
                    groups = grown(groups, rng)
                    mixed = rng.sample(groups, len(groups))
                    # Currents come before powers.
                    mixed.sort(key=lambda each: each[0] in powers)
                    separator = "\t" if groups[0][0] == "ADSC" else " "
                    in_order.feed(encoded(groups), 2.0 * number)
                    shuffled.feed(frame(mixed, separator), 2.0 * number)
                    expected = in_order.labels(2.0 * number)
                    self.assertEqual(expected, shuffled.labels(2.0 * number))

    def test_a_damaged_line_serves_and_relays_no_false_value(self):
        rng = random.Random(1)
        for damage in [*damages(), lost_groups()]:
            counts = collections.Counter()
            for groups in EVERY_METER:
                with self.subTest(groups[0][1], damage=damage.__name__):
                    counts += self.counts_of_damaged(groups, damage, rng)
            with self.subTest(damage=damage.__name__):
                self.assertEqual(0, counts["false power"])
                if damage.__name__ != "bit flips 1e-02":  # of which nothing is left
                    self.assertGreater(counts["served"], 350)  # of 400
                    self.assertGreater(counts["relayed"], 200)

    def counts_of_damaged(self, groups, damage, rng):
        """Check the indexes of 50 damaged frames; return what was served of them."""
        meter, now = ecolinky.Meter(is_relayed=True), 0.0
        last, counts = {}, collections.Counter()
        for _ in range(50):
            groups, relayed = with_power(grown(groups, rng), rng), b""
            for piece in damage(rng, encoded(groups))[1]:
                if piece is CUT:
                    meter.disconnected()
                else:
                    now += 1.0
                    relayed += relayed_by(meter.feed(piece, now))
            known, frames_relayed = meter.labels(now), relayed_frames(relayed)
            truth = data_by_label(groups)
            views = [(True, dict(each)) for each in frames_relayed]
            for is_relayed, said in [*views, (False, known)]:
                for label in ecolinky.REGISTER_OF.keys() & said.keys():
                    index = int(said[label])
                    before = last.get((is_relayed, label), 0)
                    self.assertLessEqual(before, index, label)
                    self.assertLessEqual(index, int(truth[label]), label)
                    last[is_relayed, label] = index
            if "EAST" in known:
                total = sum(int(known[label]) for label in ecolinky.EASF)
                self.assertIn(int(known["EAST"]) - total, (-1, 0, 1))
            fields = meter.fields(now)
            counts["relayed"] += len(frames_relayed)
            counts["served"] += fields is not None
            counts["false power"] += fields is not None and fields["PAPP"] % 230 != 0
        return counts

    # Rule 2.

    def test_groups_that_are_lost_behind_an_index_leave_no_false_index(self):
        rng = random.Random(34)
        for groups in EVERY_METER:
            losses = list(joined_losses(groups))
            for label in filter(is_index, data_by_label(groups)):
                of_label = [each for name, each in losses if name == label]
                for lossy in rng.sample(of_label, min(len(of_label), 2)):
                    with self.fed(*[groups] * 3, case=groups[0][1], lossy=lossy):
                        for data in [lossy] * 4 + [groups]:
                            self.feed(data)
                            self.assertKeeps(groups)
                        self.afresh()  # a loss in every frame
                        for data in [lossy] * 16 + [groups] * 3 + [lossy] * 16:
                            self.feed(data, step=9.0)  # longer than a dispute
                            self.assertKeeps(groups)

    def test_a_last_easf_that_swallowed_groups_may_not_be_1_wh_off(self):
        for groups in EVERY_METER:
            for label, lossy in joined_losses(groups):
                if ("EASF10", "000000001") in lossy:
                    with self.fed(*[groups] * 3, *[lossy] * 4, lossy=lossy):
                        self.assertKeeps(groups)

    def test_a_notice_alone_that_is_swallowed_shows_in_nothing(self):
        """The one exception that rule 2 names."""
        lossy = changed(EJP_QUIET, EJPHPM="000123430")  # joined to "30" of PEJP
        self.afresh(*[changed(EJP, EJPHPM="000123426")] * 3, *[lossy] * 3)
        self.assertServes(EJPHPM=123430)

    def test_whole_groups_that_are_lost_leave_no_false_index(self):
        rng = random.Random(36)
        for groups in EVERY_METER:
            for _ in range(60):
                first = rng.randrange(1, len(groups))
                last = rng.randint(first + 1, len(groups))
                lossy = groups[:first] + groups[last:]
                separator = "\t" if groups[0][0] == "ADSC" else " "
                with self.subTest(groups[0][1], first=first, last=last):
                    self.afresh(*[frame(lossy, separator)] * 4, groups)
                    self.assertKeeps(groups)

    def test_easf_that_do_not_add_up_to_east_are_no_reading(self):
        self.feed(*[standard()] * 3, *[standard(EASF02="000002016")] * 5)
        self.assertServes(HCHP=2000)
        self.assertEqual(5, self.meter.guard.implausible)
        self.feed(*[standard(EASF02="000002016", EAST="000003014")] * 3)
        self.assertServes(HCHP=2000)
        self.feed(*[standard(EASF02="000002016", EAST="000003015")] * 3)
        self.assertServes(HCHP=2016)  # the index grew in between

    def test_nothing_is_served_unless_the_easf_add_up_to_east(self):
        for label in ("EASF01", "EASF02", "EAST"):
            true = int(data_by_label(standard())[label])
            for error, is_served in ((-2, False), (-1, True), (1, True), (2, False)):
                with self.subTest(label, error=error):
                    lie = standard(**{label: "%09d" % (true + error)})
                    self.afresh(*[lie] * 5)
                    self.assertEqual(is_served, self.meter.fields(self.now) is not None)

    def test_a_damaged_easf_is_replaced_only_if_the_sum_is_exact(self):
        for total, growth in (("000003002", 2), ("000003003", 0), ("000003001", 0)):
            with self.fed(*[standard()] * 3, total=total):
                grown = standard(EAST=total, EASF02="000002002")
                self.feed(*[without("EASF07", encoded(grown))] * 3)
                self.assertServes(HCHP=2000 + growth)

    def test_damaged_easf_are_replaced_as_soon_as_one_frame_has_all(self):
        whole = encoded(standard())
        self.feed(without("EASF01", whole), whole, without("EASF09", whole))
        self.assertServesNothing()
        self.feed(without("EASF05", whole))
        self.assertServes(HCHC=1000, HCHP=2000)

    def test_an_easf_that_has_vanished_is_not_replaced(self):
        """The energy of EASF02 must not be counted by EASF01, joined to its end."""
        easf = dict(EASF01="000002000", EASF02="000001000")  # their ends are the same
        self.feed(*[standard(**easf)] * 3)
        for growth in range(1, 30):
            whole = standard(
                EASF01="000002%03d" % growth, EAST="%09d" % (3000 + growth), EASF02=None
            )
            self.feed(whole)
            self.assertEqual("000002000", self.known()["EASF01"])

    def test_an_easd_changes_even_if_the_easf_and_east_disagree(self):
        self.feed(*[standard()] * 3)
        more = dict(EASF02="000002016", EASD01="003456782")
        self.feed(*[standard(**more)] * 3)
        self.assertEqual("003456782", self.known()["EASD01"])

    def test_a_permanently_damaged_group_costs_its_label_and_its_register(self):
        for label, _ in historic():
            with self.fed(*[historic()] * 3, label=label):
                for count in range(60):
                    data = encoded(historic(base="%09d" % (63207 + 3 * count)))
                    self.feed(without(label, data))
                # PTEC stands behind the index, and proves that it is not joined.  The
                # identity shows whose frame it is.
                shown = {"PTEC": None, "ADCO": None, "BASE": 63207}
                self.assertEqual(shown.get(label, 63207 + 3 * 57), self.served("BASE"))

    # Rule 3.

    def test_readings_that_cannot_follow_are_served_after_two_minutes(self):
        six = dict(zip(BBR, ("000001000", "000002000") + ("000000000",) * 4))
        hc = historic(
            OPTARIF="HC..", BASE=None, HCHC="000001000", HCHP="000002000", PTEC="HC.."
        )
        tempo = historic(OPTARIF="BBR(", BASE=None, PTEC="HCJB", DEMAIN="BLEU", **six)
        easf = dict(EASF01="000000900", EASF02="000002100")
        for before, after, expected in (
            (historic(), historic(base="000063206"), dict(BASE=63206)),
            (historic(), historic(base="000093207"), dict(BASE=93207)),
            (historic(), historic(ADCO="027811420828"), dict(ADCO="027811420828")),
            (hc, tempo, dict(OPTARIF="BBR(", BBRHCJB=1000, BBRHPJB=2000, HCHC=0)),
            (historic(), hc, dict(OPTARIF="HC..", HCHC=1000, BASE=0)),
            (hc, historic(), dict(OPTARIF="BASE", HCHC=0, BASE=63207)),
            (historic(), standard(), dict(OPTARIF="HC..", HCHC=1000, HHPHC="0")),
            (standard(), historic(), dict(OPTARIF="BASE", BASE=63207, HCHC=0)),
            (standard(), standard(**easf), dict(HCHC=900, HCHP=2100)),
            (standard(), standard(NGTF="BASE".ljust(16)), dict(BASE=3000)),
        ):
            with self.fed(*[before] * 3, **expected):
                was_served = self.meter.fields(self.now)
                start, seen = self.now + 2.0, []
                for _ in range(70):
                    self.feed(after)
                    fields = self.meter.fields(self.now)
                    if fields is not None:
                        tariff = ecolinky.tariff_of(fields["OPTARIF"])
                        self.assertIn(fields["PTEC"], tariff.periods)
                    if fields is not None and fields != was_served:
                        seen.append(self.now - start)
                        self.assertServes(**expected)
                    # Two readings change nothing, the third begins the dispute.
                    is_early = self.now - start < 3.0
                    self.assertTrue(fields is None or is_early or seen)
                self.assertLessEqual(120.0, seen[0])
                self.assertLess(seen[0], 130.0)

    def test_a_dispute_ends_with_a_reading_that_follows_the_trusted_one(self):
        wrong_labels = "BASE 000063206|BASE 900063207|OPTARIF HC..|ADCO 027811420828"
        for label, data in pairs(wrong_labels):
            wrong = changed(historic(), **{label: data})
            for count, is_served in ((2, True), (3, False), (59, False)):
                with self.subTest(label, data=data, count=count):
                    self.afresh(*[historic()] * 3, *[wrong] * count)
                    self.assertEqual(is_served, self.meter.fields(self.now) is not None)
                    is_disputed = self.meter.view(self.now).is_disputed
                    self.assertEqual(not is_served, is_disputed)
                    self.feed(historic())
                    self.assertServes(ADCO="027811420827", BASE=63207)
                    self.assertFalse(self.meter.view(self.now).is_disputed)

    def test_a_false_index_is_not_served_until_the_meter_has_reached_it(self):
        # Wh too high, power drawn in W, least and most seconds until it is served.
        for excess, watts, least, most in (
            (30, 3600, 24, 40),
            (30, 1200, 84, 100),
            (30, 0, 120, 126),  # the dispute has lasted
            (500, 3600, 120, 126),
        ):
            with self.subTest(excess=excess, watts=watts):
                energy = 63207
                self.afresh(*[historic(base="%09d" % (energy + excess))] * 3)
                start, served = self.now, []
                while self.now - start < 200:
                    energy = 63207 + int(watts * (self.now + 2 - start) / 3600)
                    self.feed(historic(base="%09d" % energy))
                    if self.now - start > 4 and self.served("BASE"):
                        served.append(self.now - start)
                        self.assertLessEqual(self.served("BASE"), energy)
                self.assertTrue(least <= served[0] <= most, served[0])

    def test_the_contract_name_alone_determines_the_tariff(self):
        unknown = dict(NGTF="NOUVELLE OFFRE  ", STGE="003A0001")
        self.feed(*[standard(LTARF="  HEURE PLEINE  ", **unknown)] * 3)
        self.assertServes(OPTARIF="BASE", PTEC="TH..", BASE=3000)
        without = [g for g in standard(**unknown) if g[0] not in ("LTARF", "NTARF")]
        self.feed(*[without] * 20)
        self.assertServes(OPTARIF="BASE", PTEC="TH..", BASE=3000)
        self.afresh(*[standard(NGTF=None)] * 5)
        self.assertServesNothing()
        self.assertEqual(["NGTF"], self.meter.view(self.now).missing)

    # Rule 4.

    def test_two_meters_never_mix(self):
        rng = random.Random(38)
        first, other = historic(papp="01150", IINST="005"), standard(**OTHER_STANDARD)
        both_historic = (first, historic(**OTHER_HISTORIC))
        pairs_of_meters = (both_historic, (standard(), other), (first, other))
        for meters, longest in itertools.product(pairs_of_meters, (1, 2, 4, 9, 80)):
            with self.fed(case=meters[1][0], longest=longest):
                said = {each[0][1]: data_by_label(each) for each in meters}
                for groups in meters * 12:
                    for _ in range(rng.randint(1, longest)):
                        self.feed(groups)
                        known = self.known()
                        owner = known.get("ADCO") or known.get("ADSC")
                        expected = said[owner] if known else {}
                        self.assertLessEqual(known.items(), expected.items())

    def test_a_frame_without_identity_is_ours_for_twenty_seconds(self):
        nameless = frame(historic(ADCO=None, papp="00000"))
        for gap, power in ((20.0, 0), (20.1, 790)):
            with self.fed(*[historic()] * 3, gap=gap):
                self.feed(nameless, step=gap)
                self.assertServes(PAPP=power)

    def test_a_false_identity_blocks_frames_without_identity(self):
        self.feed(*[historic()] * 3, historic(ADCO="027811420828"))
        nameless = frame(historic(ADCO=None, papp="00000"))
        self.feed(*[nameless] * 5)
        self.assertServes(PAPP=790)
        self.feed(historic(), nameless)
        self.assertServes(PAPP=0)

    def test_a_false_first_identity_leaves_no_trace(self):
        other = historic(ADCO="027811420828", **THREE)
        self.feed(other, *[historic()] * 3)
        self.assertServes(ADCO="027811420827", IINST=3, IMAX=60, IMAX2=0)

    # Rule 5.

    def test_a_power_that_matches_the_currents_is_served_at_once(self):
        # 250 V and 0.9 A cut off are possible, slightly more than both is not; a house
        # that injects has a current and no power.
        matching = pairs("02300 010|02750 010|01950 010|00000 001|00000 004")
        other = pairs("04900 010|01500 010|49999 002|02790 010")
        for power, amperes in matching + other:
            with self.subTest(power=power, amperes=amperes):
                data = historic(papp=power, IINST=amperes)
                self.afresh(*[historic()] * 3, data)
                is_taken = (power, amperes) in matching
                self.assertServes(PAPP=int(power) if is_taken else 790)
                self.feed(data, data)
                self.assertServes(PAPP=int(power))  # said three times
        for count, power in ((2, 1000), (3, 460)):  # an older current
            with self.subTest(frames=count):
                lossy = [historic(IINST=None, papp="00460")] * count
                self.afresh(*[historic(papp="00460")] * 3, *lossy)
                self.feed(historic(papp="01000", IINST=None))
                self.assertServes(PAPP=power)
        three = historic(papp="02500", **THREE)  # each phase may have lost 230 VA
        self.afresh(*[historic(**THREE)] * 3, three)
        self.assertServes(PAPP=2500)

    def test_the_last_of_three_near_powers_is_served(self):
        self.feed(*[historic()] * 3)
        for power, shown in ((5000, 790), (5100, 790), (5200, 5200)):
            self.feed(historic(papp="%05d" % power))
            self.assertServes(PAPP=shown)
        self.afresh()
        for power in range(1000, 1100, 10):
            self.feed(historic(papp="%05d" % power, IINST=None))
            self.assertEqual(power if power > 1010 else None, self.served("PAPP"))

    def test_a_zero_power_is_served_at_once(self):
        self.feed(*[historic()] * 3)
        for _ in range(10):
            self.feed(historic(papp="00000", IINST="005"), step=30.0)
            self.assertServes(PAPP=0)
            self.feed(historic())
            self.assertServes(PAPP=790)

    def test_the_mean_power_of_a_pulsing_house_is_served_without_bias(self):
        rng = random.Random(3)
        for pulses in ((1, 1), (2, 1), (1, 2), (3, 1), (3, 3)):
            with self.subTest(pulses=pulses):
                served, sent = [], []
                self.afresh(*[historic(papp="00790")] * 3)
                for _ in range(120):
                    drawing = ["%05d" % (1150 + 10 * rng.randrange(10))] * pulses[0]
                    for power in drawing + ["00000"] * pulses[1]:
                        self.feed(historic(papp=power, IINST="005"))
                        served.append(self.served("PAPP"))
                        sent.append(int(power))
                error = statistics.mean(served) / statistics.mean(sent) - 1
                self.assertLess(abs(error), 0.02, pulses)

    # Rule 6.

    def test_an_alert_begins_at_once_and_ends_after_ten_seconds_without_it(self):
        alerts = (("ADPS", "031", 31), ("PEJP", "30", 30))
        # The STX, or the byte that a damaged one becomes.
        for alert, place, stx in itertools.product(alerts, range(4, 9), b"\x02\x43"):
            label, data, value = alert
            with self.subTest(label, place=place, stx=stx):
                groups = historic()
                with_alert = groups[:place] + [(label, data)] + groups[place:]
                clean = bytes([stx]) + encoded(groups)[1:]
                with_it = bytes([stx]) + encoded(with_alert)[1:]
                self.afresh(*[clean] * 3, with_it)
                self.assertServes(**{label: value})
                self.feed(*[clean] * 5)
                self.assertServes(**{label: value})
                self.feed(clean)
                self.assertServes(**{label: 0})

    def test_a_line_feed_damaged_into_an_stx_does_not_end_an_alert(self):
        for label, data, value in (("ADPS", "031", 31), ("PEJP", "30", 30)):
            for groups in (historic(**{label: data}), historic(**THREE, ADPS="031")):
                whole = encoded(groups)
                for place in range(whole.count(b"\r\n")):
                    with self.subTest(label, place=place, groups=len(groups)):
                        halves = split_at(place + 1, whole)
                        self.afresh(whole, whole, halves, whole, halves)
                        expected = {label: value} if label in dict(groups) else {}
                        self.assertServes(**expected)

    def test_an_index_still_changes_after_the_notice_behind_it_ends(self):
        quiet = changed(EJP_QUIET, PTEC="PM..", EJPHPM="000123458")
        self.feed(*[EJP] * 4, *[quiet] * 4)
        self.assertServes(EJPHPM=123458)


######## Rebuild #######################################################################


class RebuildTests(unittest.TestCase):
    def test_a_clean_line_is_relayed_byte_for_byte(self):
        for groups in (HC, EJP, TEMPO_3, standard(), SUN):
            with self.subTest(groups[0][1]):
                data = encoded(groups)
                other = encoded(historic(ADCO="021728999999"))  # of another meter
                self.assertEqual(data * 2, relay_of([data] * 4 + [other]), groups[0])
                without_marks = relay_of([data.strip(b"\x02\x03")] * 6)
                self.assertEqual([data] * 3, frames_in(without_marks)[:3])

    def test_a_part_of_a_frame_is_relayed_complete(self):
        for cut in range(30, len(HC_FRAME)):
            for part in (HC_FRAME[:cut] + b"\x03", HC_FRAME[cut:]):
                found = frames_in(relay_of([HC_FRAME] * 4 + [part]))
                self.assertEqual({HC_FRAME}, set(found))
        whole = historic(**THREE)
        sent = relay_of([encoded(whole)] * 3 + [frame(SHORT)])
        before, during = relayed_frames(sent)
        self.assertEqual(whole, before)
        self.assertEqual({**dict(whole), **dict(SHORT)}, dict(during))

    def relayed_labels(self, stream):
        """Return the labels of each frame that is relayed of a stream."""
        return [[each[0] for each in one] for one in relayed_frames(relay_of(stream))]

    def test_a_lost_group_is_relayed_until_its_label_expires(self):
        data = encoded(historic())
        for label, seconds in (("ISOUSC", 300), ("MOTDETAT", 300), ("IINST", 30)):
            with self.subTest(label):
                labels = self.relayed_labels([data] * 3 + [without(label, data)] * 170)
                complete = [each[0] for each in historic()]
                less = [each for each in complete if each != label]
                last = labels.index(less)
                self.assertEqual(seconds // 2 + 1, last, label)
                self.assertEqual([complete] * last + [less] * (171 - last), labels)

    def test_a_relayed_frame_begins_with_its_identity(self):
        data = encoded(historic())
        groups = data.split(b"\n")
        half = b"\n".join(groups[:2] + groups[6:])
        for seed in range(40):  # the identity and the first groups are often lost
            rng = random.Random(seed)
            lossy = []
            for _ in range(60):
                kept = [group for group in groups[1:] if rng.random() < 0.67]
                lossy.append(b"\n".join([b"\x02", *kept]) + b"\x03")
            for labels in self.relayed_labels([half, *lossy, *[data] * 4]):
                self.assertEqual("ADCO", labels[0])

    def test_a_relayed_index_is_the_trusted_one_of_two_frames_earlier(self):
        stream = [encoded(historic(base="%09d" % (63207 + n))) for n in range(6)]
        sent = [dict(one)["BASE"] for one in relayed_frames(relay_of(stream))]
        self.assertEqual(["%09d" % (63207 + n) for n in range(4)], sent)

    def test_an_alert_or_notice_is_relayed_in_its_place_until_it_ends(self):
        overload = HC[:7] + [("ADPS", "033")] + HC[7:]
        for label, groups in (("ADPS", overload), ("PEJP", EJP)):
            with self.subTest(label):
                clean = [each for each in groups if each[0] != label]
                stream = [clean] * 4 + [groups] * 2 + [clean] * 6
                labels = self.relayed_labels([encoded(each) for each in stream])
                before, during = [[each[0] for each in one] for one in (clean, groups)]
                # The alert lasts for ten seconds after its last frame.
                self.assertEqual([before] * 2 + [during] * 7 + [before], labels)

    def test_the_indexes_of_a_former_contract_leave_the_relayed_frames(self):
        new = encoded(historic(ADCO=dict(HC)["ADCO"]))
        found = frames_in(relay_of([HC_FRAME] * 5 + [new] * 160))  # 300 s at most
        self.assertEqual([HC_FRAME, new], [found[0], found[-1]])

    def test_relaying_begins_once_every_label_of_a_whole_frame_is_trusted(self):
        for groups in (HC, EJP, TEMPO_3, SUN, historic(**THREE)):
            data, labels = encoded(groups), [each[0] for each in groups]
            for label in labels:
                with self.subTest(label, of=len(labels)):
                    stream = [frame(SHORT)] + [without(label, data)] * 10 + [data] * 3
                    found = self.relayed_labels(stream)
                    self.assertEqual([labels] * len(found), found)
                    self.assertLessEqual(1, len(found))

    def test_a_minute_of_labels_substitutes_for_a_whole_frame(self):
        always = without("SMAXSN", encoded(SUN))
        lossy = without("EAIT", always)
        labels = [each[0] for each in SUN if each[0] != "SMAXSN"]
        stream = [lossy] * 10 + [always] * 20 + [lossy] * 5
        # After 30 frames, which is a minute.
        self.assertEqual([labels] * 5, self.relayed_labels(stream))

    def test_a_label_that_changes_in_each_frame_does_not_delay_the_relay(self):
        for label, size, latest in (
            ("SINSTS2", 5, 2),
            ("SINSTI", 5, 62),
            ("MSG1", 32, 62),
        ):
            with self.subTest(label):
                # Two readings in a row never agree.
                texts = [str(number % 5 * 4000).zfill(size) for number in range(90)]
                frames_sent = [standard(**{"EAIT": "0" * 9, label: t}) for t in texts]
                stream = [encoded(groups) for groups in frames_sent]
                relayed = relayed_frames(relay_of(stream))
                self.assertLessEqual(len(stream) - len(relayed), latest, label)

    def test_each_frame_within_a_chunk_is_verified_separately(self):
        whole, short = encoded(historic(**THREE)), frame(SHORT)
        lossy = without("EAIT", encoded(SUN))
        sun, mixed = [encoded(SUN)] * 4, [lossy] * 4 + [encoded(SUN)] * 3
        for first, second in (([], sun), ([], mixed), ([whole] * 3, [short, whole])):
            in_one = relay_of([*first, b"".join(second)])
            self.assertEqual(relay_of(first + second), in_one)

    def test_after_a_silence_no_frame_lacks_an_index(self):
        for groups, silence in itertools.product((HC, TEMPO_3, SUN), (20, 40, 400)):
            data = encoded(groups)
            for label in ecolinky.REGISTER_OF.keys() & data_by_label(groups):
                with self.subTest(label, silence=silence):
                    meter, now, sent = ecolinky.Meter(is_relayed=True), 0.0, b""
                    for chunk in [data] * 3 + [holed(groups, label)] * 2 + [data] * 3:
                        now += silence if now == 6.0 else 2.0
                        sent += relayed_by(meter.feed(chunk, now))
                    self.assertEqual({data}, set(frames_in(sent)))

    def test_no_frame_is_relayed_without_the_injected_energy(self):
        data, lost = encoded(SUN), holed(SUN, "EAIT")
        for stream, is_relayed in (
            ([without("ERQ1", data)] * 90, False),
            ([without("ERQ2", data)] * 90, True),
            ([without("IRMS1", data)] * 90, True),
            ([lost] * 90, False),
            ([data] * 3 + [lost] * 200, True),
        ):
            found = relayed_frames(relay_of(stream))
            self.assertEqual(is_relayed, bool(found))
            for one in found:
                self.assertIn("EAIT", dict(one))

    def test_a_split_frame_is_relayed_whole_or_not_at_all(self):
        for groups in (HC, EJP, TEMPO_3, SUN, historic(**THREE, ADPS="031")):
            data = encoded(groups)
            for number in range(1, len(groups)):
                with self.subTest(groups[0][1], number=number):
                    halves = split_at(number, data)
                    stream = [halves, data, halves, data, data, halves, data]
                    sent = set(frames_in(relay_of(stream)))
                    self.assertEqual({data}, sent, (groups[0], number))

    def test_a_group_lost_without_a_trace_leaves_no_gap(self):
        for groups in (HC, EJP, TEMPO_3, SUN):
            data = encoded(groups)
            for number in range(1, len(groups) - 1):
                with self.subTest(groups[0][1], number=number):
                    lost = holed(groups, groups[number][0])
                    stream = [data, data, data, lost, data, lost, data]
                    self.assertEqual([data] * 5, [*frames_in(relay_of(stream))])
                    # Not even if only the very first frame had the group.
                    sent = relay_of([data, lost, data, data, data])
                    self.assertEqual({data}, set(frames_in(sent)))

    def test_a_group_seen_only_in_a_damaged_first_frame_leaves_no_gap(self):
        for groups in (HC, EJP, TEMPO_3, SUN):
            data, labels = encoded(groups), [each[0] for each in groups]
            for label, following in zip(labels[1:-2], labels[2:]):
                if label in ecolinky.ALERTS:
                    continue  # an alert is read at once
                with self.subTest(groups[0][1], label=label):
                    lost = holed(groups, label)
                    stream = [without(following, data), lost, lost, data, data, data]
                    for found in self.relayed_labels(stream):
                        self.assertEqual(sorted(labels), sorted(found))

    def test_a_tempo_frame_without_its_period_is_not_relayed(self):
        data = encoded(standard(NGTF="TEMPO", LTARF="HP  BLEU"))
        lossy = without("NTARF", data)
        self.assertEqual(b"", relay_of([lossy] * 60))
        self.assertEqual(data * 16, relay_of([data] * 3 + [lossy] * 30))  # 30 seconds

    def test_another_meter_is_relayed_once_all_its_labels_were_heard(self):
        other = encoded(standard(ADSC="041761999999", EAIT="000671631", SINSTI="01840"))
        lossy = without("SMAXSN", without("EAIT", other))
        # Two minutes of dispute, then a minute without an undamaged frame.
        stream = [encoded(SUN)] * 3 + [lossy] * 85
        self.assertEqual([encoded(SUN)], [*frames_in(relay_of(stream))])
        sent = [*frames_in(relay_of([*stream, *[other] * 4]))]
        self.assertEqual([encoded(SUN), other, other], sent)

    def test_nothing_is_relayed_while_an_index_is_rarely_read(self):
        always = without("SMAXSN", encoded(SUN))
        lossy = without("EAIT", always)
        # Its readings agree within 90 s: the third comes in frame 2 * gap + 3.
        for gap, count in ((41, 10 * 42 - 84), (20, 210 - 42), (7, 50)):
            with self.subTest(gap=gap):
                stream = ([always] + [lossy] * gap) * 10
                self.assertEqual(count, len([*frames_in(relay_of(stream))]))


######## Translate #####################################################################


class TranslateTests(MeterCase):
    # Contracts of standard mode: the indexes, and what LTARF may say.
    INDEXES = [12000123, 23000456, 5000789, 6000012, 700, 800, 90, 1, 2, 3]
    WORDS = (
        "BASE|HEURE  CREUSE|HEURE  PLEINE|HC  BLEU|HP  BLANC|BLEU HC|HP  ROUGE|"
        "HEURE NORMALE|HEURE POINTE|HEURE WEEK-END|HP MERCREDI|HSC|HC|HEURE SOLEIL|"
        "HEURE SEMAINE|INDEX INACTIF 2|INDEX NON CONSO|HP HIVER|"
    ).split("|")
    # NGTF, OPTARIF, PTEC by running index; None: LTARF names the period.
    ODD = ("HC..", "HP..") * 5
    KNOWN = [
        ("BASE", "BASE", ("TH..",) * 10),
        ("PRODUCTEUR", "BASE", ("TH..",) * 10),
        ("HC", "HC..", ODD),
        ("H PLEINE/CREUSE", "HC..", ODD),
        ("HC et Week-End", "HC..", ODD),
        ("HC SEM WE MERCR", "HC..", ODD),
        ("HC SEM WE LUNDI", "HC..", ODD),
        ("SEM WE LUNDI", "HC..", ODD),
        ("SEM WE MERCREDI", "HC..", ODD),
        ("SEM WE VENDREDI", "HC..", ODD),
        ("HC-12H30", "HC..", None),
        ("H SUPER CREUSES", "HC..", None),
        ("ZEN Flex", "HC..", None),
        ("ZEN ESTIVAL", "HC..", None),
        ("OPTION WEEK-END", "HC..", None),
        ("EJP", "EJP.", ("HN..", "PM..") + ("HN..",) * 8),
        ("TEMPO", "BBR(", tuple(tag[3:] for tag in BBR) + ("HCJB", "HPJB") * 2),
    ]
    UNKNOWN = (
        "OCTOFLEX 4|OCTOTEMPO|OFFRE INCONNUE|NOUVELLE OFFRE|SUPER OFF PEAK|"
        "2 SAISONS POINTE|HC POINTE|EJP HIVER HC|TEMPO2|TEMPO HC|BASES||POINTE|"
        "OCTO HPHI"
    ).split("|")
    TAGS = {"BASE": ["BASE"], "HC..": ["HCHC", "HCHP"], "EJP.": ["EJPHN", "EJPHPM"]}
    TAGS["BBR("] = BBR

    def test_the_fields_are_complete_and_in_the_devices_order(self):
        self.feed(*[historic()] * 3)
        fields = self.meter.fields(self.now)
        self.assertEqual(FIELDS, list(fields))
        for tag, value in fields.items():
            with self.subTest(tag):
                self.assertIs(str if tag in TEXTS else int, type(value), tag)

    def test_labels_are_translated_into_the_devices_fields(self):
        ejp = changes_of("OPTARIF EJP |BASE -|EJPHN 000123456|EJPHPM 000023456|PEJP 30")
        meters = {
            "historic": historic,
            "ejp": lambda **more: historic(**dict(ejp, PTEC="HN..", **more)),
            "peak": lambda **more: historic(**dict(ejp, PTEC="PM..", **more)),
            "three": lambda **more: historic(**dict(THREE, **more)),
            "standard": standard,
            "nameless": lambda **more: standard(NTARF=None, STGE=None, **more),
            "oldest": lambda **more: standard(VTIC="01", SMAXSN=None, **more),
        }
        for meter, changes, expected in rows(
            """
            historic > > IINST 3|IINST1 3|IINST2 0|IMAX 60|IMAX1 60|IMAX2 0
            historic > IMAX 000 > IMAX 1|IMAX1 1  # to Jeedom, 0 is no meter
            historic > IMAX - > IMAX 1
            historic > PAPP - > PAPP 690|PPAP 690
            ejp > > OPTARIF EJP.|EJPHN 123456|PEJP 30|BASE 0
            peak > > PTEC PM..|PEJP 0
            three > > IINST 0|IINST2 3|IMAX 0|IMAX3 30
            three > PAPP - > PAPP 1840
            three > PPOT 0A > PPOT 10
            standard > > ADCO 041761123456|OPTARIF HC..|PTEC HP..|BASE 0|ISOUSC 30
            standard > > HCHC 1000|HCHP 2000|PAPP 920|IINST 4|IMAX 20
            standard > > DEMAIN ----|PEJP 0|ADPS 0
            standard > SMAXSN 00000 > IMAX 1
            standard > PREF 10|IRMS2 002|IRMS3 000|URMS2 231 > ISOUSC 17  # rounded
            standard > NGTF BASE|LTARF BASE|EAST 000003001 > BASE 3001  # not the EASF
            standard > IRMS2 002|IRMS3 000|PREF 12 > ISOUSC 20|IINST 0|IINST1 4|IINST2 2
            standard > IRMS2 002|IRMS3 000|SMAXSN1 02300|SMAXSN2 00000 > IMAX 0|IMAX1 10
            standard > IRMS2 002|IRMS3 000|SMAXSN2 00000 > IMAX1 1|IMAX2 1|IMAX3 1
            standard > IRMS2 002|IRMS3 000|URMS1 - > IINST 0|IINST1 4|IINST2 2|IINST3 0
            standard > STGE 463A0800 > DEMAIN BLEU|PEJP 0
            standard > STGE 9B3A9000 > DEMAIN BLAN|PEJP 30
            standard > STGE 0F3A0000 > DEMAIN ROUG
            standard > STGE 013A0000 > DEMAIN ----
            standard > STGE 083A0401 > DEMAIN BLAN|PEJP 0
            standard > STGE 203A0401 > DEMAIN ----|PEJP 30
            standard > STGE 003A0481 > ADPS 4
            oldest > SINSTS -|SINST1 00777|SMAXN 02300 > PAPP 777|IMAX 10
            oldest > SINSTS 00777 > PAPP 777
            standard > SINSTS - > PAPP 920
            standard > NTARF -|LTARF INCONNU > PTEC HP..
            nameless > NGTF BASE > OPTARIF BASE|PTEC TH..|BASE 3000
            nameless > NGTF EJP > OPTARIF EJP.|PTEC HN..|EJPHN 1000|EJPHPM 2000
            nameless > NGTF EJP|LTARF POINTE > OPTARIF EJP.|PTEC PM..
            nameless > NGTF TEMPO|LTARF HP  ROUGE > OPTARIF BBR(|PTEC HPJR
            """
        ):
            with self.subTest(meter, changes=changes):
                # After half a minute a power that never comes is computed.
                self.afresh(*[meters[meter](**changes_of(changes))] * 17)
                fields = self.meter.fields(self.now)
                for tag, text in pairs(expected):
                    self.assertEqual(text, str(fields[tag]), tag)

    def test_every_standard_mode_tariff_is_translated(self):
        easf = {"EASF%02d" % n: "%09d" % (n * 111) for n in range(1, 11)}
        for ngtf, ltarf, ntarf, option, period in rows(
            """
            base             > base            > 01 > BASE > TH..
            H PLEINE/CREUSE  > INDEX INACTIF 1 > 01 > HC.. > HC..
            H PLEINE/CREUSE  > INDEX INACTIF X > 10 > HC.. > HP..
            HC               > BASE            > 02 > HC.. > HP..
            HC et Week-End   > HEURE WEEK-END  > 03 > HC.. > HC..
            OPTION WEEK-END  > HEURE SEMAINE   > 02 > HC.. > HP..
            H SUPER CREUSES  > SUPER CREUSE    > 03 > HC.. > HC..
            H SUPER CREUSES  > HSC             > 02 > HC.. > HC..
            ZEN Flex         > HP SOBRIETE     > 04 > HC.. > HP..
            ZEN Flex         > HC ECO          > 01 > HC.. > HC..
            ZEN  estival     > HC HIVER        > 02 > HC.. > HC..
            OFFRE HC SPECIAL > HP ETE          > 03 > HC.. > HP..
            OFFRE HC SPECIAL > HC ETE          > 02 > HC.. > HC..
            HC PERSO         > HP ETE          > 03 > HC.. > HP..
            NOUVELLE OFFRE   > HEURE PLEINE    > 02 > BASE > TH..
            OCTOTEMPO        > HP ROUGE        > 01 > BASE > TH..
            2 SAISONS POINTE > HC HIVER        > 03 > BASE > TH..
            EJP              > HEURE POINTE    > 02 > EJP. > PM..
            TEMPO            > BLEU HC         > 01 > BBR( > HCJB
            TEMPO            > HP  ROUGE       > 06 > BBR( > HPJR
            """
        ):
            with self.subTest(ngtf=ngtf, ltarf=ltarf):
                stge = "%08X" % (0x003A0001 | int(ntarf) - 1 << 10)
                more = dict(NTARF=ntarf, STGE=stge, EAST="000006105", **easf)
                self.afresh(*[standard(NGTF=ngtf, LTARF=ltarf, **more)] * 3)
                self.assertServes(OPTARIF=option, PTEC=period)
                fields = self.meter.fields(self.now)
                self.assertEqual(6105, sum(fields[tag] for tag in INDEX_TAGS))

    def test_injected_energy_has_fields_of_its_own(self):
        self.feed(*[standard()] * 3)
        self.assertIsNone(self.meter.view(self.now).injection)
        always = "ADCO 041761123456|OPTARIF BASE|PTEC TH..|BASE 671631|PAPP 1840"
        three = "IRMS2 002|IRMS3 000|SMAXSN2 02300"
        on_one = "IINST 8|IINST1 8|IINST2 0|ISOUSC 30|IMAX 20"
        on_three = "IINST 0|IINST1 3|IINST2 3|IINST3 3|ISOUSC 10|IMAX 0"
        for more, expected in (("", on_one), (three, on_three)):
            with self.subTest(more):
                sun = dict(changes_of(more), EAIT="000671631", SINSTI="01840")
                self.afresh(*[standard(**sun)] * 3)
                fields = self.meter.view(self.now).injection
                self.assertEqual(FIELDS, list(fields))
                for tag, text in pairs("%s|PPAP 1840|HCHC 0|%s" % (always, expected)):
                    self.assertEqual(text, str(fields[tag]), tag)
                self.assertIsNone(self.meter.view(self.now + 31).injection)
        self.afresh(*[standard(EAIT="000671631")] * 3)
        self.assertIsNone(self.meter.view(self.now).injection)

    def test_a_view_holds_the_mode_and_the_verified_labels(self):
        for groups, mode in ((historic(), "historic"), (standard(), "standard")):
            with self.subTest(mode):
                self.setUp()
                self.assertEqual(None, self.meter.view(self.now).mode)
                self.feed(groups, groups, groups)
                view, stale = [self.meter.view(self.now + age) for age in (0, 31)]
                said = data_by_label(groups)
                known = (view.mode, view.labels, view.missing)
                self.assertEqual((mode, said, []), known)
                known = (stale.mode, stale.labels, stale.fields)
                self.assertEqual((mode, {}, None), known)

    def made_up(self, rng):
        """Return an invented contract name, of real words and random letters."""
        letters = "ABCDEFGILMNOPRSTUVYZ0123456789/-."
        words = "TEMPO EJP POINTE OCTO FLEX SOLEIL WEEK END HIVER ETE ECO MAX".split()
        word = "".join(rng.choice(letters) for _ in range(rng.randint(1, 7)))
        return " ".join([rng.choice(words), word])[:16].strip()

    def spelled(self, name, rng):
        """Return the name as some meter may spell it, in 16 characters."""
        name = rng.choice((name, name.lower(), name.title()))
        if len(name) < 15:
            name = name.replace(" ", rng.choice((" ", "  ")), 1)
        return rng.choice((name.ljust, name.rjust, name.center))(16)

    def labels(self, name, ltarf, ntarf, stge, indexes):
        labels = dict(ADSC="041761123456", NGTF=name, LTARF=ltarf.center(16))
        labels.update(
            EAST="%09d" % sum(indexes), IRMS1="004", PREF="06", SINSTS="00920"
        )
        labels.update(STGE="%08X" % stge, NTARF="%02d" % ntarf)
        labels.update(("EASF%02d" % n, "%09d" % e) for n, e in enumerate(indexes, 1))
        return labels

    def contracts(self, rng):
        """Yield a name, its OPTARIF and its numbering: known, then made up."""
        yield from self.KNOWN
        unknown = list(self.UNKNOWN) + [self.made_up(rng) for _ in range(100)]
        for name in unknown:
            yield name, "BASE", ("TH..",) * 10

    def test_a_contract_is_translated_the_same_way_in_every_period(self):
        rng = random.Random(20)
        for name, option, numbering in self.contracts(rng):
            is_made_up = name not in [each[0] for each in self.KNOWN]
            texts = self.WORDS + [self.made_up(rng) for _ in range(3)]
            for ltarf in rng.sample(texts, 3) if is_made_up else texts:
                with self.subTest(name, ltarf=ltarf):
                    for ntarf in rng.sample(range(16), 4 if is_made_up else 8):
                        # Colours of today and tomorrow, notices, and any running index.
                        colours, running = rng.randrange(64), rng.randrange(16)
                        stge = colours << 24 | running << 10 | 0x3A0001
                        said = (self.spelled(name, rng), ltarf, ntarf, stge)
                        self.check(option, numbering, *said)

    def check(self, option, numbering, name, ltarf, ntarf, stge):
        labels = self.labels(name, ltarf, ntarf, stge, self.INDEXES)
        fields = ecolinky.translate_standard(labels)
        case = (name, ltarf, ntarf, stge)
        self.assertEqual(option, fields["OPTARIF"], case)
        tags = self.TAGS[option]
        self.assertEqual(sum(self.INDEXES), sum(fields[tag] for tag in tags), case)
        self.assertEqual(0, sum(fields[tag] for tag in set(INDEX_TAGS) - set(tags)))
        if not 1 <= ntarf <= 10:
            return
        self.assertIsNotNone(fields["PTEC"], case)
        grown = list(self.INDEXES)
        grown[ntarf - 1] += 7
        labels = self.labels(name, ltarf, ntarf, stge, grown)
        after = ecolinky.translate_standard(labels)
        growth = {tag: after[tag] - fields[tag] for tag in tags}
        self.assertEqual([0] * (len(tags) - 1) + [7], sorted(growth.values()), case)
        growing = max(growth, key=growth.get)
        if numbering is not None:
            self.assertEqual(numbering[ntarf - 1], fields["PTEC"], case)
            period = {"BASE": "TH..", "EJPHN": "HN..", "EJPHPM": "PM.."}.get(
                growing, growing[-2:] + ".." if option == "HC.." else growing[3:]
            )
            self.assertEqual(period, fields["PTEC"], case)

    def test_ltarf_names_the_period_of_a_contract_without_known_numbering(self):
        for name in [each[0] for each in self.KNOWN if each[2] is None]:
            for ltarf, ptec in (("HEURE CREUSE", "HC.."), ("HP HIVER", "HP..")):
                with self.subTest(name, ltarf=ltarf):
                    for ntarf in range(1, 11):
                        labels = self.labels(name, ltarf, ntarf, 0, self.INDEXES)
                        fields = ecolinky.translate_standard(labels)
                        self.assertEqual(ptec, fields["PTEC"], (name, ntarf))

    def test_stge_gives_the_running_index_when_ntarf_does_not(self):
        for name, _, numbering in self.KNOWN:
            for ntarf in (0, 11, 15, 99):
                with self.subTest(name, ntarf=ntarf):
                    for running in range(1, 11) if numbering else ():
                        stge = (running - 1) << 10
                        labels = self.labels(name, "X", ntarf, stge, self.INDEXES)
                        fields = ecolinky.translate_standard(labels)
                        self.assertEqual(numbering[running - 1], fields["PTEC"], name)

    def test_every_row_of_the_contracts_is_met_by_a_known_name(self):
        names = [each[0] for each in self.KNOWN] + ["INCONNU"]
        for contract in ecolinky.CONTRACTS:
            with self.subTest(contract.pattern):
                periods = contract.tariff.numbered
                self.assertLessEqual(set(periods), set(ecolinky.PERIODS))
                self.assertEqual(10, len(periods))
                found = [ecolinky.contract_of({"NGTF": name}) for name in names]
                self.assertIn(contract, found)

    def test_the_energy_of_former_contracts_is_known_where_unused_indexes_are(self):
        used = {"BASE": 1, "HC": 2, "H PLEINE/CREUSE": 2, "EJP": 2, "TEMPO": 6}
        used.update({"HC et Week-End": 3, "HC SEM WE MERCR": 6, "HC SEM WE LUNDI": 6})
        for name, _, _ in self.contracts(random.Random(7)):
            with self.subTest(name):
                labels = self.labels(name.center(16), "", 1, 0, self.INDEXES)
                frozen = sum(self.INDEXES[used.get(name, 10) :])
                self.assertEqual(frozen, ecolinky.old_contracts(labels), name)
        del labels["EASF05"]
        labels["NGTF"] = "HC".center(16)
        expected = sum(self.INDEXES[2:]) - self.INDEXES[4]
        self.assertEqual(expected, ecolinky.old_contracts(labels))

    def test_each_counter_grows_exactly_by_the_energy_counted(self):
        rng = random.Random(366)
        for name, option, _ in list(self.contracts(rng))[:22]:
            for seconds in (2, 1800, 86400):
                with self.subTest(name, seconds=seconds):
                    self.live_through(name, option, seconds, rng)

    def live_through(self, name, option, seconds, rng):
        """Feed a meter for some steps; the running index changes at each."""
        meter, now, last = ecolinky.Meter(), 100.0, None
        indexes = [index % 1000000 for index in self.INDEXES]
        for _ in range(15):
            running = rng.randrange(10)
            stge = rng.randrange(64) << 24 | running << 10
            ltarf = rng.choice(self.WORDS)
            for _ in range(3):  # two more frames confirm what the first says
                now += 1.5
                labels = self.labels(name.center(16), ltarf, running + 1, stge, indexes)
                meter.feed(encoded(list(labels.items())), now)
            fields = meter.fields(now)
            self.assertEqual(option, fields["OPTARIF"], name)
            served = [fields[tag] for tag in INDEX_TAGS]
            self.assertEqual(sum(indexes), sum(served), name)
            if last is not None:
                grown = [new - old for new, old in zip(served, last)]
                self.assertLessEqual(0, min(grown), name)
            last = served
            indexes[running] += rng.randrange(1, 2 + int(0.5 * seconds))
            now += seconds


######## Meter #########################################################################


class MeterTests(MeterCase):
    def test_a_cold_start_serves_with_the_third_clean_frame(self):
        for groups in (historic(), historic(**THREE), standard()):
            with self.subTest(groups[0][0], labels=len(groups)):
                self.setUp()
                self.assertServesNothing()
                self.feed(groups, groups)
                self.assertServesNothing()
                self.feed(groups)
                self.assertIsNotNone(self.meter.fields(self.now))

    def test_nothing_is_served_while_an_essential_label_is_missing(self):
        for label in ("ADCO", "OPTARIF", "BASE", "PTEC"):
            with self.fed(*[frame(historic(**{label: None}))] * 5, label=label):
                self.assertServesNothing()
                if label != "ADCO":
                    self.assertEqual(label, self.meter.view(self.now).missing[0])
        self.afresh(*[historic(OPTARIF="HC..", HCHC="000000012", PTEC="HC..")] * 5)
        self.assertServesNothing()  # HCHP also belongs to that tariff
        self.assertEqual(["HCHP"], self.meter.view(self.now).missing)
        self.afresh(historic(), *[frame(historic(ADCO=None))] * 3)
        self.assertServesNothing()  # only one frame had an identity

    def test_missing_labels_are_named_as_a_standard_meter_names_them(self):
        for changes, missing in rows(
            """
            NGTF - > NGTF
            NTARF -|STGE -|LTARF INCONNU > NTARF
            NGTF BASE|EAST - > EAST
            EASF05 - > EASF05
            EASF01 -|EASF10 - > EASF01 EASF10
            SINSTS -|IRMS1 - > SINSTS
            SINSTS -|SINST1 00100 > SINSTS
            VTIC 01|SINSTS - > SINST1
            """
        ):
            with self.fed(*[standard(**changes_of(changes))] * 5, missing=missing):
                self.assertServesNothing()
                self.assertEqual(missing.split(), self.meter.view(self.now).missing)
        self.afresh(standard(), *[frame(standard(ADSC=None), "\t")] * 3)
        # Only one frame had an identity: the others are not read.
        self.assertLess({"ADSC", "NGTF"}, set(self.meter.view(self.now).missing))

    def test_a_silent_meter_goes_stale_after_the_timeout_and_recovers(self):
        self.feed(*[historic()] * 3)
        self.now += 30
        self.assertServes(BASE=63207)
        self.now += 0.1
        self.assertServesNothing()
        self.feed(frame(historic(ADCO=None)))
        self.assertServesNothing()  # the identity is needed first
        self.feed(historic())
        self.assertServes(BASE=63207)
        self.now += 3 * 86400
        self.feed(*[historic(base="000163207")] * 2)
        self.assertServesNothing()  # a grown index is confirmed first
        self.feed(historic(base="000163209"))
        self.assertServes(BASE=163207)

    def test_a_lost_power_is_replaced_by_that_of_the_current_after_30_seconds(self):
        data = encoded(historic())
        cut_short = data[: data.index(b"\nPAPP")]  # nor has the frame an end
        lossy_frames = (cut_short, without("PAPP", data))
        for lossy, timeout in itertools.product(lossy_frames, (5, 30, 900)):
            with self.subTest(is_cut=lossy is cut_short, timeout=timeout):
                self.setUp()
                self.meter = ecolinky.Meter(timeout=timeout)
                self.feed(*[lossy] * 16)
                self.assertServesNothing()  # the meter's own power may still arrive
                self.feed(lossy, b"\x02")
                self.assertServes(PAPP=690)  # 3 A
                self.feed(*[data] * 3, *[lossy] * 14, b"\x02")
                self.assertServes(PAPP=790)
                self.feed(*[lossy] * 2, b"\x02")
                self.assertServes(PAPP=690, BASE=63207)

    def test_a_lost_period_or_current_expires_but_a_subscription_does_not(self):
        for label, kept in (("PTEC", None), ("IINST", 0), ("ISOUSC", 30)):
            with self.subTest(label):
                lossy = without(label, encoded(historic()))
                self.afresh(*[historic()] * 3, *[lossy] * 14)
                self.assertIsNotNone(self.served("PAPP"), label)
                self.feed(lossy, lossy)
                self.assertEqual(kept, self.served(label))  # nothing, with no period
                self.feed(*[historic()] * 3)
                self.assertIsNotNone(self.served("PAPP"))

    def test_a_lost_period_number_expires_with_the_timeout(self):
        groups = standard(LTARF="HEURE  CREUSE")
        data = without("NTARF", without("STGE", encoded(groups)))
        self.feed(*[groups] * 3, *[data] * 14)
        self.assertServes(PTEC="HP..")
        self.feed(*[data] * 5)
        self.assertServes(PTEC="HC..")

    def test_a_power_that_never_comes_is_computed_after_half_a_minute(self):
        drawn = standard(SINSTI="00000", EAIT="000000001", SINSTS="00700")
        for groups, power in (
            (historic(PAPP=None), 690),
            (historic(**dict(THREE, PAPP=None)), 230 * 8),
            (standard(SINSTS=None), 920),
            (without("SINSTS", encoded(drawn)), 920),
        ):
            with self.fed(power=power):
                for _ in range(2):  # after a silence, too: the power may come again
                    self.feed(*[groups] * 16)
                    self.assertServesNothing()
                    self.feed(groups)
                    self.assertServes(PAPP=power)
                    self.now += 60.0

    def test_a_lost_alert_and_a_lost_injection_expire_with_the_timeout(self):
        self.feed(*[standard(STGE="003A0481", EAIT="000671631", SINSTI="01840")] * 3)
        self.feed(*[standard(STGE=None, EAIT="000671631")] * 15)
        self.assertServes(ADPS=4)
        self.assertIsNotNone(self.meter.view(self.now).injection)
        self.feed(standard(STGE=None, EAIT="000671631"))
        self.assertServes(ADPS=0)
        self.assertIsNone(self.meter.view(self.now).injection)

    def test_no_power_is_computed_from_a_lost_current(self):
        data = encoded(historic()).replace(b"PAPP 00790 1", b"PAPP 00790 2")
        data = data.replace(b"IINST 003 Z", b"IINST 003 Y")
        self.assertIn(b"IINST 003 Y", data)
        self.feed(*[historic()] * 3, *[data] * 17)
        self.assertServesNothing()

    def test_no_power_is_computed_of_phases_that_are_cut_off(self):
        modern = standard(IRMS1="004", SINSTS="02070")
        place = modern.index(("IRMS1", "004")) + 1
        modern[place:place] = pairs("IRMS2 003|IRMS3 002")
        for groups, power in ((historic(papp="01840", **THREE), 1840), (modern, 2070)):
            for number in range(1, len(groups)):
                with self.subTest(groups[number][0]):
                    self.afresh(*[groups[:number]] * 25)
                    self.assertIn(self.served("PAPP"), (None, power))

    def test_currents_are_zero_while_no_power_is_drawn(self):
        for groups in (historic(papp="00000", IINST="009"), standard(SINSTS="00000")):
            with self.fed(groups, groups, groups, case=groups[0][0]):
                self.assertServes(PAPP=0, IINST=0, IINST1=0)
        self.afresh(*[historic(papp="00000", **THREE)] * 3)
        self.assertServes(PAPP=0, IINST1=0, IINST2=0, IINST3=0, IMAX1=21)

    def test_a_missing_subscription_is_awaited_then_replaced_by_the_maximum(self):
        for groups, most in (
            (historic(), 90),
            (historic(**THREE), 60),
            (standard(), 90),
            (standard(**THREE_LINKY), 60),
        ):
            label = "ISOUSC" if groups[0][0] == "ADCO" else "PREF"
            with self.subTest(label, most=most):
                self.afresh(*[changed(groups, **{label: "00"})] * 3)
                self.assertServes(ISOUSC=most)  # 0 is no subscription
                lossy = without(label, encoded(groups))
                self.afresh(*[lossy] * 15)
                self.assertServesNothing()
                self.assertEqual([label], self.meter.view(self.now).missing)
                self.feed(lossy)
                self.assertServes(ISOUSC=most)
                self.feed(groups, groups, groups)
                self.assertIn(self.served("ISOUSC"), (30, 10))

    def test_no_other_label_replaces_a_lost_power(self):
        groups = standard(SINST1="02087")
        self.afresh(*[groups] * 3)
        self.assertServes(PAPP=920)
        self.feed(*[without("SINSTS", encoded(groups))] * 20)
        self.assertServes(PAPP=230 * 4)
        oldest = standard(VTIC="01", SINSTS=None, SINST1="00931")
        self.afresh(oldest, oldest, oldest)
        self.assertServes(PAPP=931)

    def test_currents_that_may_flow_out_give_no_drawn_power(self):
        sun = changes_of("EAIT 000012345|SINSTI 02087|IRMS1 009|SINSTS 00000")
        whole = encoded(standard(**sun))
        lost = without("SINSTS", whole)
        still = encoded(historic(papp="00000", IINST="009"))
        drew = encoded(historic(papp="00690", IINST="003"))
        for good, bad, power in (
            ([whole] * 3, lost, 0),
            ([], lost, 0),  # since the start
            ([whole] * 3, without("SINSTI", lost), None),  # it may inject
            ([], without("SINSTI", lost), None),  # EAIT alone says so
            ([still] * 3, without("PAPP", still), None),  # a 0 beside a current
            ([still, drew, drew, drew], without("PAPP", drew), None),
        ):
            with self.fed(*good, power=power, bad=bad[:20]):
                for _ in range(160):
                    self.feed(bad)
                    self.assertIn(self.served("PAPP"), (None, 0, 690))
                self.assertEqual(power, self.served("PAPP"))

    def test_an_implausible_phase_power_does_not_count_as_damage(self):
        groups = standard(SINSTS1="73569", SINSTS2="00012", SINSTS3="99999")
        self.feed(*[groups] * 3)
        self.assertServes(PAPP=920)
        self.assertEqual({"checksum": 0, "form": 0}, damaged_of(self.meter))

    def test_the_notice_of_a_peak_ends_when_the_peak_begins(self):
        for ltarf, ntarf, pejp in (("NORMALE", "01", 30), ("POINTE", "02", 0)):
            with self.subTest(ltarf):
                more = dict(NGTF="EJP", STGE="103A0401", LTARF="HEURE " + ltarf)
                self.afresh(*[standard(NTARF=ntarf, **more)] * 3)
                self.assertServes(PEJP=pejp)
        self.afresh(*[EJP] * 3)
        self.assertServes(PTEC="HN..", PEJP=30)
        self.feed(*[changed(EJP_QUIET, PTEC="PM..")] * 3)  # PEJP ended 6 seconds ago
        self.assertServes(PTEC="PM..", PEJP=0)

    def test_a_long_timeout_keeps_lost_labels_that_long(self):
        self.meter = ecolinky.Meter(timeout=900)
        self.feed(*[historic()] * 3)
        self.feed(*[without("BASE", encoded(historic()))] * 440)
        self.assertServes(BASE=63207)

    def test_a_three_phase_meter_is_never_shown_as_single_phase(self):
        groups = standard(IRMS2="002", IRMS3="000", URMS2="231", URMS3="232")
        data = encoded(groups).replace(b"IRMS2", b"IRMS7")
        self.feed(data, data, data)
        self.assertServes(IINST=0, IINST1=4, IMAX=0, IMAX1=1)
        self.afresh(*[standard()] * 3, standard(URMS3="210"))
        self.assertServes(IINST=4, IMAX2=0, ISOUSC=30)  # a single label proves nothing

    def test_an_overload_of_any_phase_raises_an_alert_while_it_lasts(self):
        for label in ("ADIR1", "ADIR2", "ADIR3"):
            with self.subTest(label):
                short = pairs("%s 031|ADCO 027811420827|IINST2 031" % label)
                self.afresh(*[historic(**THREE)] * 3, frame(short))
                # The short frame changes only what it has.
                self.assertServes(ADPS=31, IINST1=1, IINST2=31, BASE=63207, PAPP=790)
                self.feed(historic(**THREE))  # whole frames still come once in a while
                self.assertServes(ADPS=31, IINST2=3)
                self.feed(*[historic(**THREE)] * 5)  # ten seconds without the alert
                self.assertServes(ADPS=0, IINST2=3)

    def test_a_long_overload_is_served_correctly_throughout(self):
        # 20 short frames of 0.65 s, then a whole one of 1.85 s (ERDF-NOI-CPT_02E).
        short = frame(changed(SHORT, ADCO="021728123450"))
        for damage in (False, True):
            with self.fed(*[frame(THREE_PHASES)] * 3, damage=damage):
                energy = 63207.0
                for cycle in range(32):
                    for _ in range(20):
                        self.feed(short, step=0.65)
                        self.assertServes(ADPS=24, IINST1=24, PAPP=18400)
                    energy += 18400 * 14.85 / 3600
                    data = frame(changed(THREE_PHASES, BASE="%09d" % energy))
                    is_damaged = damage and cycle % 4 == 1
                    self.feed(without("BASE", data) if is_damaged else data, step=1.85)
                    self.assertServes(ADPS=24, IINST1=27, PAPP=18400)
                    late = 6 if damage else 2  # cycles, of 76 Wh each
                    self.assertLess(energy - 77 * late, self.served("BASE"), cycle)
                    self.assertLessEqual(self.served("BASE"), int(energy))

    def test_a_short_timeout_loses_no_power_during_an_overload(self):
        self.meter = ecolinky.Meter(timeout=5)
        self.feed(*[historic(papp="05000", **THREE)] * 3)
        self.feed(*[frame(SHORT)] * 20, step=0.65)
        self.feed(without("PAPP", encoded(historic(**THREE))), step=1.85)
        self.assertServes(PAPP=5000)

    def test_the_subscription_of_another_meter_is_awaited_anew(self):
        self.feed(*[historic()] * 20)
        self.now += 60
        other = historic(ADCO="021728999999", ISOUSC="45")
        self.feed(*[without("ISOUSC", encoded(other))] * 12)
        self.assertServesNothing()

    def test_a_power_that_keeps_being_refused_is_not_computed_from_currents(self):
        self.feed(*[historic()] * 3)
        for number in range(40):
            self.feed(historic(papp="%05d" % (10000 + 9000 * (number % 2))))
        self.assertServesNothing()


######## Diagnosis #####################################################################


WALL = 1_767_225_600.0  # 1 January 2026, 0:00 UTC
CLOSED = ecolinky.LinkError(ecolinky.CUT_BY_ESP)
ESP_LINE = b"3612 : Info  : WD   : Uptime 1 ConnectFailures 0\r\n"


Shown = namedtuple("Shown", "state fields")


class InputCase(unittest.TestCase):
    """An Input, its clock, and the lines that it logs."""

    def setUp(self):
        super().setUp()
        self.begin()

    def begin(self, input_2=ecolinky.NO_INPUT, timeout=30.0):
        self.now = 6000.0
        self.boot = WALL  # the wall clock at now = 0
        self.lines = []
        meter = ecolinky.Meter(timeout)
        say = lambda level, text: self.lines.append((level, text))  # noqa: E731
        self.input = ecolinky.Input("esp:8888", meter, input_2, say, 20.0, self.now)

    def connect(self, *chunks, step=2.0):
        self.input.connected(self.now)
        self.feed(*chunks, step=step)

    def hear(self, data, count=20):
        """Begin anew with a line that sends the same data again and again."""
        self.begin()
        self.connect(*[data] * count)

    @contextlib.contextmanager
    def heard(self, line, count=20, **case):
        """Begin anew with this line, in a subTest of the case."""
        with self.subTest(**case):
            self.hear(line, count)
            yield

    def feed(self, *chunks, step=2.0):
        for chunk in chunks:
            self.now += step
            self.input.feed(chunk, self.now, self.boot + self.now)

    def lose(self, error):
        self.input.failed(error, self.now, self.boot + self.now)

    def said(self, least=logging.INFO):
        """Return the texts logged since the last call, from a level on."""
        texts = [text for level, text in self.lines if level >= least]
        self.lines.clear()
        return texts

    def set_clock(self, wall):
        """Let the next chunk come two seconds after this time."""
        self.boot = wall - self.now

    def snapshot(self):
        return self.input.snapshot(self.now)

    def remarks(self):
        return [str(remark) for remark in self.snapshot().remarks]

    def shown(self, number=1):
        """Return the state of an input by name, and the fields it shows."""
        inputs = ecolinky.served({1: self.snapshot()}, self.now)
        fields = inputs[number]
        if fields is ecolinky.EMPTY:
            return Shown("absent", None)
        return Shown("stale" if fields is None else "live", fields)

    def described(self):
        """Return the input as /ecolinky.json has it."""
        return ecolinky.describe_input(self.snapshot(), self.now)


class DiagnosisTests(InputCase):
    def test_a_reset_connection_has_its_reason_with_and_without_a_number(self):
        for error in (ConnectionResetError(), ConnectionResetError(104, "reset")):
            self.assertEqual(ecolinky.CUT_BY_ESP, ecolinky.reason_of(error))

    def test_a_line_without_usable_tic_gets_a_diagnosis_and_a_remedy(self):
        noise = random.Random(1)
        soup = bytes(noise.randrange(256) for _ in range(997))
        no_period = standard(NTARF="11", STGE="003A3C01", LTARF="INCONNU")
        jaune = group("CONTRAT", "BT 4 SUP36") + group("EA_s", "00012345 Wh")
        replaced = "manquent (NGTF), l'ESP remplace des espaces ou des fins"
        for data, hint in (
            (soup, "du bruit"),
            (b"\x02" + b"ABCDEFG 123 " * 20, "mais pas de TIC"),
            (b"\0" * 50, "toujours le même octet arrive, la vitesse"),
            (b"\xff\xfd\x18\xff\xfb\x01" * 50, "telnet"),
            (HC_FRAME.replace(b" ", b""), "Replace spaces"),
            (HC_FRAME.replace(b" ", b"_"), "Replace spaces"),
            (re.sub(b"[\r\n]+", b"#", HC_FRAME), "Replace newlines"),
            (all_damaged(HC_FRAME), "aucun groupe n'arrive intact"),
            (jaune, "plus de 36 kVA"),
            (frame(HC[:5]), "manquent (PTEC, PAPP), la fin des trames"),
            (encoded(standard()).replace(b" ", b"_"), replaced),
            (encoded(no_period), "période inconnue d'ecolinky (LTARF « INCONNU »"),
            (frame(changed(HC, PTEC="TH..")), "inconnue d'ecolinky (PTEC « TH.. »)"),
        ):
            with self.heard(data, 14, hint=hint, data=data[:40]):
                (said,) = self.said(logging.WARNING)
                self.assertIn(hint, said)
                self.assertIn(" ; aucune valeur n'est transmise", said)
                self.assertIn(hint, str(self.snapshot().reason))
                self.assertEqual("stale", self.shown().state)

    def test_connection_errors_are_explained_in_french(self):
        for error, words in (
            (socket.gaierror(-2, "Name or service not known"), "inconnu sur ce réseau"),
            (socket.timeout("timed out"), "éteint, hors Wi-Fi"),
            (OSError(113, "No route to host"), "éteint, hors Wi-Fi"),
            (OSError(101, "Network is unreachable"), "n'est pas sur le réseau"),
            (OSError(111, "Connection refused"), "rien n'écoute sur ce port"),
            (OSError(5, "Input/output error"), "erreur 5 du système"),
            (ZeroDivisionError("100 % of it"), "à signaler sur la page GitHub"),
        ):
            with self.subTest(words):
                self.begin()
                self.lose(error)
                (said,) = self.said()
                self.assertIn(words, said)
                if isinstance(error, OSError):
                    self.assertNotIn(str(error.args[-1]), said)
                self.assertIn(words, str(self.snapshot().reason))

    def test_a_missing_end_of_frames_is_reported_while_values_are_served(self):
        cut_short = frame(HC[:-2])
        self.hear(cut_short, 9)
        self.assertEqual([], self.said(logging.WARNING))  # too early to say
        self.feed(*[cut_short] * 10)
        (said,) = self.said(logging.WARNING)
        self.assertIn("la fin des trames manque", said)
        self.assertIn("RX Receive Timeout à 0", said)
        self.assertEqual("live", self.shown().state)
        self.hear(without("MOTDETAT", HC_FRAME), 2)
        self.feed(*[HC_FRAME] * 20)
        self.assertEqual([], self.said(logging.WARNING))

    def test_bytes_before_the_last_good_frame_do_not_affect_the_diagnosis(self):
        noise = random.Random(1)
        self.connect(bytes(noise.randrange(256) for _ in range(900)), *[HC_FRAME] * 3)
        self.feed(*[b"\0" * 20] * 15)
        self.assertEqual(ecolinky.STUCK, self.snapshot().reason)

    def test_indexes_that_do_not_add_up_are_reported(self):
        for good, bad in ((0, 30), (5, 200)):
            with self.heard(encoded(standard()), good, good=good):
                self.feed(*[encoded(standard(EASF02="000002777"))] * bad)
                self.assertEqual(ecolinky.UNBALANCED, self.snapshot().reason)
        self.hear(without("EASF03", encoded(standard())))
        self.assertIn("manquent (EASF03)", str(self.snapshot().reason))

    def test_an_index_that_disappears_without_damage_is_reported(self):
        for label in ("EAST", "EASF02"):
            with self.heard(encoded(standard()), 5, label=label):
                for growth in range(1, 170):  # after five minutes nothing is known
                    total = dict(EAST=3000 + 9 * growth, EASF02=2000 + 9 * growth)
                    grown = {each: "%09d" % value for each, value in total.items()}
                    self.feed(encoded(standard(**{**grown, label: None})))
                self.assertIsNone(self.input.view.fields)
                expected = (
                    "des groupes manquent (%s), aucun ou presque n'est abîmé" % label
                )
                self.assertIn(expected, str(self.snapshot().reason))
                self.assertIn(expected, "".join(self.said(logging.WARNING)))

    def test_few_damaged_groups_are_not_blamed_for_a_label_that_never_comes(self):
        groups = [each for each in HC if each[0] != "PTEC"]
        once = without("ADCO", encoded(groups))
        for few in ([], [once]):
            with self.heard(encoded(groups), 30, damaged=len(few)):
                self.feed(*few, *[encoded(groups)] * 30)
                expected = (
                    "des groupes manquent (PTEC), aucun ou presque n'est abîmé, d"
                )
                self.assertIn(expected, str(self.snapshot().reason))
        self.feed(*[without("PTEC", HC_FRAME)] * 200)
        expected = "des groupes manquent (PTEC), beaucoup de groupes sont abîmés"
        self.assertIn(expected, str(self.snapshot().reason))

    def test_a_lost_identity_is_no_damage(self):
        for groups, separator in ((HC, " "), (standard(), "\t")):
            with self.heard(frame(groups[8:], separator), 30, case=groups[0][0]):
                reason = self.snapshot().reason
                expected = "(le numéro du compteur), aucun ou presque n'est abîmé"
                self.assertIn(expected, str(reason))
                self.assertIn("RX buffer size à 2048", reason.remedy)
                self.assertIn(str(reason), "".join(self.said(logging.WARNING)))

    def test_no_complaint_about_frames_that_end_as_the_meter_ends_them(self):
        labels = [each[0] for each in standard()]
        first = standard(VTIC="01")[: labels.index("STGE") + 1]
        three = frame(THREE_PHASES)
        for data in (
            encoded(first),
            three + without("PPOT", three),  # PPOT in every second frame
            frame(changed(HC, MOTDETAT="40CC00")),
        ):
            with self.heard(data, 30, case=data[:40]):
                self.assertEqual("live", self.shown().state)
                self.assertEqual([], self.remarks())
                self.assertEqual([], self.said(logging.WARNING))
                self.assertLess(2, len(frames_in(relay_of([data] * 8))))

    def test_a_single_damaged_identity_does_not_replace_the_reason(self):
        self.connect(*[frame(HC[:8])] * 30)
        reason = self.snapshot().reason
        self.feed(frame(changed(HC[:8], ADCO="021728999999")))
        self.assertEqual(reason, self.snapshot().reason)
        self.assertNotIn("le numéro du compteur", "".join(self.said()))

    def test_a_missing_identity_is_reported(self):
        for groups, separator in ((HC, " "), (standard(), "\t")):
            with self.subTest(groups[0][0]):
                self.hear(without(groups[0][0], encoded(groups)), 30)
                self.feed(*[frame(groups[1:], separator)] * 29)
                reason = str(self.snapshot().reason)
                expected = "manquent (le numéro du compteur), beaucoup de groupes sont"
                self.assertIn(expected, reason)
                self.assertIn(reason, "".join(self.said(logging.WARNING)))

    def test_a_missing_identity_has_the_cause_of_its_loss(self):
        log = b"AD3612 : Info  : WD   : Uptime 1\r\nCO"
        self.hear(HC_FRAME.replace(b"ADCO", log), 30)
        expected = "(le numéro du compteur), le journal de l'ESP se mêle à la TIC, dans"
        self.assertIn(expected, str(self.snapshot().reason))

    def test_the_few_bytes_of_a_connection_that_ends_prove_nothing(self):
        for data in (b"\n", b"\0", b"1\r\n"):
            for ending in (ecolinky.CUT_BY_ESP, ecolinky.SILENT):
                with self.heard(data, 1, data=data, ending=ending):
                    self.lose(ecolinky.LinkError(ending))
                    self.assertEqual(ending, self.snapshot().reason)

    def test_a_label_that_no_longer_comes_is_not_said_to_come_never(self):
        self.connect(*[HC_FRAME] * 25, *[without("IINST", HC_FRAME)] * 17)
        self.assertIn("n'arrive pas intact (IINST)", "".join(self.remarks()))

    def test_a_missing_phase_current_is_reported(self):
        three_phases = encoded(standard(**THREE_LINKY))
        for label, data in (("IRMS2", three_phases), ("IINST", HC_FRAME)):
            with self.heard(data, 10, label=label):
                self.assertEqual([], self.remarks())
                self.hear(without(label, data), 25)
                self.assertIn("(%s)" % label, "".join(self.remarks()))
                self.assertEqual(1, "".join(self.said()).count("(%s)" % label))

    def test_a_missing_subscription_is_reported(self):
        for label, data in (("ISOUSC", HC_FRAME), ("PREF", encoded(standard()))):
            with self.heard(without(label, data), label=label):
                self.assertIsNotNone(self.input.view.fields)
                (remark,) = [r for r in self.remarks() if label in r]
                self.assertIn("le maximum du compteur est transmis", remark)

    def test_the_log_of_an_esp_alone_or_with_tic_is_named_as_such(self):
        line = b"36 : Info  : WD   : Uptime 1 ConnectFailures 0 FreeMem 20000 Wifi"
        line += b"Status WL_CONNECTED 3 ESPeasy internal wifi status: Conn. IP 7\r\n"
        among_groups = (line[:52] + all_damaged(HC_FRAME)[:10]) * 9
        for sample in (b"Info: a\r\n" * 100, line * 10, among_groups):
            with self.subTest(sample[:40]):
                self.assertEqual(ecolinky.ESP_LOGS, ecolinky.diagnose(sample))

    def test_the_log_of_an_esp_among_the_groups_is_named_before_the_damage(self):
        spoilt = HC_FRAME[:40] + ESP_LINE + HC_FRAME[40:-60] + ESP_LINE + HC_FRAME[-60:]
        self.connect(*[HC_FRAME] * 3, *[spoilt] * 60)
        first = self.remarks()[0]
        self.assertEqual(str(ecolinky.ESP_LOGS), first)
        self.assertIn(first, self.said(logging.WARNING))
        self.assertNotIn("optocoupleur", "".join(self.remarks()))
        self.hear(HC_FRAME.replace(b"PTEC", b"PT" + ESP_LINE + b"EC"), 60)
        reason = str(self.snapshot().reason)
        self.assertIn("des groupes manquent (PTEC)", reason)
        self.assertIn("le journal de l'ESP se mêle à la TIC, dans ESPEasy", reason)
        self.assertNotIn("optocoupleur", reason)

    def test_every_wrong_speed_names_the_speed_first(self):
        speed = "dans ESPEasy mettre 1200 en historique ou 9600 en standard"
        lines = ((HC_FRAME * 4, 1200), (encoded(standard()) * 2, 9600))
        for line, wrong, bits, parity in itertools.product(
            lines, BAUDS, (7, 8), (0, 1)
        ):
            data, baud = line
            heard = as_heard(data, baud, wrong, bits, parity)
            with self.subTest(baud=baud, esp=wrong, bits=bits, parity=parity):
                if (wrong, bits + parity) == (baud, 8):  # 7E1, 8N1
                    as_seven_bits = bytes(byte & 0x7F for byte in heard)
                    self.assertIn(data[50:80], as_seven_bits)
                elif wrong != baud:
                    reason = ecolinky.diagnose(heard)
                    self.assertTrue(reason.remedy.startswith(speed), reason)

    def test_the_greeting_of_any_other_server_names_host_and_port(self):
        endings = (CLOSED, ecolinky.LinkError(ecolinky.SILENT), None)
        for greeting, ending in itertools.product(GREETINGS, endings):
            with self.heard(greeting, 1, case=greeting[:20], ending=ending):
                if ending:
                    self.lose(ending)
                else:
                    self.feed(*[b"\r\n" + greeting] * 12, step=5.0)
                reason = str(self.snapshot().reason)
                self.assertIn("ce n'est pas le Serial Server", reason)
                self.assertIn("vérifier host et port (8888, pas 80)", reason)

    def test_a_server_that_closes_each_connection_is_no_second_client(self):
        for _ in range(5):
            self.connect()
            self.now += 5.0
            self.lose(CLOSED)
        self.assertEqual(ecolinky.CLOSED_AT_ONCE, self.snapshot().reason)
        self.connect(as_8n1(HC_FRAME[:9]))
        self.lose(CLOSED)
        self.assertEqual(ecolinky.EVICTED, self.snapshot().reason)
        self.connect(HC_FRAME)
        self.lose(CLOSED)
        self.assertEqual(ecolinky.EVICTED, self.snapshot().reason)

    def test_bugs_with_many_texts_are_one_warning_an_hour(self):
        for number in range(1200):
            self.now += 3.0
            self.lose(KeyError(number))
        self.assertEqual(1, len(self.said(logging.WARNING)))
        self.assertIn("KeyError(1199)", str(self.snapshot().reason))

    def test_pure_noise_is_not_called_8n1(self):
        noise = random.Random(4)
        for _ in range(40):
            self.feed(bytes(noise.randrange(256) for _ in range(400)))
        self.assertGreater(self.input.meter.counts().eight_bits, 0)
        self.assertNotIn("8N1", "".join(self.remarks()))

    def test_a_mark_outside_or_missing_does_not_count_as_an_interruption(self):
        damaged = all_damaged(HC_FRAME)
        for data in (b"\x04" + damaged, damaged.strip(b"\x03")):
            self.assertEqual(ecolinky.NO_INTACT_GROUP, ecolinky.diagnose(data))

    def test_an_input_that_receives_nothing_has_no_remarks(self):
        self.assertEqual([], self.remarks())
        self.lose(OSError(errno.EHOSTUNREACH, ""))
        self.assertEqual([], self.remarks())
        self.connect(*[HC_FRAME] * 20)
        self.now += 60.0
        self.lose(ecolinky.LinkError(ecolinky.SILENT))
        self.assertEqual([], self.remarks())

    def test_a_harmless_fault_is_not_blamed_for_a_missing_group(self):
        less = [pair for pair in HC if pair[0] != "PAPP" and pair[0] != "HCHC"]
        self.hear(as_8n1(frame(less)))
        self.assertIn("HCHC", str(self.snapshot().reason))
        self.assertIn(ecolinky.NEVER_SENT.remedy, str(self.snapshot().reason))


######## Link ##########################################################################


class LinkTests(InputCase):
    def test_a_flood_of_senseless_bytes_ends_the_connection(self):
        self.input.connected(self.now)
        with self.assertRaises(ecolinky.LinkError) as caught:
            self.feed(*[b"ABC 12 " * 1000] * 10, step=0.01)
        self.assertIn("vérifier host et port", str(caught.exception))

    def test_a_second_client_of_the_esp_is_reported_while_values_are_served(self):
        for times in range(1, 9):
            self.connect(*[HC_FRAME] * 3)
            self.lose(CLOSED)
            self.assertNotRegex(str(self.snapshot().reason), "^[^,]*alimentation")
            self.assertEqual(times > 2, self.snapshot().reason == ecolinky.EVICTED)
        (said,) = self.said(logging.WARNING)
        words = "un autre programme lit sans doute l'ESP, qui ne sert qu'un"
        self.assertIn(words, said)
        self.assertEqual("live", self.shown().state)

    def test_an_eviction_is_shown_while_values_are_still_served(self):
        for _ in range(5):
            self.connect(*[HC_FRAME] * 3)
            self.lose(CLOSED)
        self.said()
        self.connect(*[HC_FRAME] * 3)
        content = self.described()
        shown = (content["state"], content["fault"]["station"])
        self.assertEqual(("live", "esp"), shown)
        self.assertIn("un autre programme lit", content["reason"])
        self.feed(*[HC_FRAME] * 30)  # a minute: the other program has gone
        self.assertEqual(ecolinky.ALL_WELL, self.snapshot().reason)
        self.assertEqual([], self.said())

    def test_a_refused_connection_is_no_reason_once_bytes_come(self):
        self.lose(OSError(111, "refused"))
        self.assertEqual(ecolinky.NOTHING_LISTENS, self.snapshot().reason)
        for data, reason in (
            (encoded(HC[1:]), ecolinky.TO_BE_CONFIRMED),
            (b"\x02\nHCHC 01", ecolinky.NO_FRAME_YET),
        ):
            with self.subTest(data[:12]):
                self.connect(data)
                self.assertEqual(reason, self.snapshot().reason)

    def test_a_stale_input_has_a_reason_before_the_silence_ends_the_connection(self):
        self.begin(timeout=5.0)
        self.connect(*[HC_FRAME] * 3)
        self.now += 6.0
        content = self.described()
        self.assertEqual("stale", content["state"])
        self.assertIn("plus aucun octet", content["reason"])
        self.assertEqual("esp", content["fault"]["station"])

    def test_the_last_byte_is_shown_though_no_frame_ends(self):
        self.connect(HC_FRAME, *[b"\0" * 9] * 6)
        self.now += 1.0
        content = self.described()
        self.assertEqual((13.0, 1.0), (content["age"], content["byte_age"]))

    def test_the_last_values_are_served_for_the_timeout_whether_the_link_fails(self):
        for fails in (False, True):
            self.begin(timeout=600.0)
            self.connect(*[HC_FRAME] * 3)
            if fails:
                self.now += 60
                self.lose(socket.timeout())
            self.now += 540 if fails else 600
            self.assertEqual("live", self.shown().state, fails)
            self.now += 0.1
            self.assertEqual("stale", self.shown().state, fails)

    def test_the_age_of_values_is_that_of_their_frame_even_if_it_was_unfinished(self):
        self.begin(timeout=5.0)
        self.connect(HC_FRAME, HC_FRAME, HC_FRAME[:-1])
        self.said()
        self.now += 10
        self.lose(socket.timeout())
        self.assertEqual(self.now - 10, self.snapshot().last_view.time)
        self.assertNotIn("sont transmises", "".join(self.said()))

    def test_values_that_an_unfinished_frame_confirms_are_served_and_logged(self):
        self.connect(HC_FRAME, HC_FRAME, HC_FRAME[:-1])
        self.said()
        self.lose(CLOSED)
        snapshot = self.snapshot()
        self.assertEqual(live(), snapshot.last_view.fields)
        self.assertEqual(self.now, snapshot.last_view.time)
        self.assertIsNotNone(snapshot.today)
        self.assertIn("ses valeurs sont transmises", self.said()[0])

    def test_a_bug_is_logged_even_while_values_are_served(self):
        self.connect(*[HC_FRAME] * 3)
        self.said()
        self.lose(ZeroDivisionError("x"))
        (said,) = self.said(logging.WARNING)
        self.assertIn("ZeroDivisionError", said)
        self.assertNotIn("aucune valeur", said)

    def test_with_a_short_timeout_noise_is_named_as_soon_as_nothing_is_served(self):
        self.begin(timeout=5.0)
        self.connect(*[HC_FRAME] * 3, *[b"\xa5\x13zz" * 10] * 3)
        self.assertEqual("stale", self.shown().state)
        self.assertIn("du bruit", str(self.snapshot().reason))
        for half in range(1, len(HC_FRAME) - 1):
            self.begin(timeout=5.0)
            self.connect(*[HC_FRAME] * 3)
            self.feed(HC_FRAME[:half], step=9.5)  # after a pause
            self.assertEqual(ecolinky.ALL_WELL, self.snapshot().reason)

    def test_the_end_of_a_connection_counts_its_unfinished_frame_at_once(self):
        self.connect(*[HC_FRAME] * 3, HC_FRAME[:-9])
        self.lose(CLOSED)
        self.assertEqual(4, self.snapshot().counts.frames)
        self.connect(HC_FRAME[:9])  # no frame ends in it
        self.assertEqual(HC_FRAME[:9], self.input.link.sample)

    def test_long_connections_that_end_do_not_count_as_evictions(self):
        for count in (31, 31, 31, 3, 3, 31, 3, 3):
            self.connect(*[HC_FRAME] * count)
            self.lose(CLOSED)
        self.assertEqual([], self.said(logging.WARNING))


######## Journal #######################################################################


class JournalTests(InputCase):
    def test_an_unreachable_esp_is_logged_hourly_and_its_return_once(self):
        self.connect(HC_FRAME, HC_FRAME)
        self.said()
        for _ in range(2):
            self.now += 31
            for _ in range(700):
                self.now += 5
                self.lose(OSError(111, "refused"))
            self.assertEqual(1, len(self.said()))
            self.now += 150
            self.lose(OSError(111, "refused"))
            self.assertEqual(1, len(self.said()))
            self.connect(HC_FRAME, HC_FRAME, HC_FRAME)
            (said,) = self.said()
            self.assertIn("sont transmises", said)

    def test_two_texts_of_the_same_kind_share_one_line_an_hour(self):
        self.connect(*[frame(HC[:5])] * 15)
        self.feed(*[frame(HC[:6])] * 15)
        self.assertEqual(1, len(self.said(logging.WARNING)))
        self.assertIn("(PAPP)", str(self.snapshot().reason))

    def test_a_new_meter_or_contract_is_a_warning_that_names_old_and_new(self):
        base = encoded(historic(ADCO="021728123456"))
        other = frame(changed(HC, ADCO="021728999999", HCHC="000000001"))
        contract = ("avant Heures creuses (HC..)", "maintenant Base (BASE)")
        meter = ("avant 021728123456", "maintenant 021728999999")
        for after, (old, new) in ((base, contract), (other, meter)):
            with self.heard(HC_FRAME, 3, new=new):
                self.said()
                self.lose(OSError(111, "refused"))
                self.connect(*[after] * 70)
                disputed, warning = self.said(logging.WARNING)  # no index leaps
                self.assertIn("a changé, vérification pendant deux minutes", disputed)
                for words in ("a changé", old, new, "un nouveau matériel"):
                    self.assertIn(words, warning)

    def test_an_index_that_leaps_or_falls_for_good_causes_a_warning(self):
        leaps = (-12345578, -500, 22, 50000, 654321)  # Wh
        for leap, is_said in zip(leaps, (1, 1, 0, 1, 1)):
            with self.heard(HC_FRAME, 3, leap=leap):
                self.said()
                new = 12345678 + leap
                self.feed(*[frame(changed(HC, HCHC="%09d" % new))] * 70)
                self.assertEqual(new, self.input.view.fields["HCHC"])
                said = self.said(logging.WARNING)
                words = "HCHC est passé de 12345678 à %d Wh" % new
                self.assertEqual(is_said, len([text for text in said if words in text]))
                self.assertEqual(is_said, "".join(said).count("est passé de"))

    def test_a_leap_after_a_silence_of_days_causes_a_warning(self):
        self.connect(*[HC_FRAME] * 3)
        self.now += 5 * 86400.0
        self.feed(*[HC_FRAME] * 3)
        self.feed(*[frame(changed(HC, HCHC="012999999"))] * 70)
        self.assertIn("est passé de", "".join(self.said(logging.WARNING)))

    def test_growth_during_a_silence_does_not_count_as_a_leap(self):
        self.connect(*[HC_FRAME] * 3)
        self.now += 3600.0
        self.feed(*[frame(changed(HC, HCHC="012380000"))] * 20)
        self.assertEqual(12380000, self.input.view.fields["HCHC"])
        self.assertNotIn("est passé de", "".join(self.said()))

    def test_a_good_line_is_logged_once_and_causes_no_remark(self):
        for data in (encoded(standard()), HC_FRAME, frame(THREE_PHASES)):
            with self.heard(data, 1, case=data[:20]):
                for _ in range(30):
                    self.feed(data)
                    self.assertEqual([], self.remarks())
                self.assertEqual(1, len(self.said()))

    def test_a_good_line_in_small_chunks_is_logged_once(self):
        for expected in (1, 0):
            self.connect(*cut(HC_FRAME * 4, 40), step=0.3)
            self.assertEqual(expected, len(self.said()))
            self.now += 1000

    def test_a_remark_is_logged_once_a_day(self):
        whole = encoded(standard(**THREE_LINKY))
        two = without("IRMS2", whole)
        self.connect(*[whole] * 3, *[two] * 30, *[without("IRMS1", two)] * 30)
        self.assertEqual(1, "".join(self.said(logging.WARNING)).count("IRMS2"))
        self.feed(*[two] * 90, step=1000.0)
        self.assertEqual(1, "".join(self.said(logging.WARNING)).count("IRMS2"))

    def test_a_remark_comes_after_ten_frames(self):
        unknown = encoded(standard(NGTF="SUPER OFFRE"))
        for data, words in ((as_8n1(HC_FRAME), "8N1"), (unknown, "SUPER OFFRE")):
            with self.heard(data, 9, words=words):
                self.assertEqual([], self.remarks())
                self.assertNotIn(words, "".join(self.said()))
                self.feed(data)
                self.assertIn(words, "".join(self.remarks()))
                self.assertEqual(1, "".join(self.said()).count(words))

    def test_an_unknown_contract_is_logged_once_and_shown_on_the_page(self):
        first = encoded(standard(NGTF="OctoFlex 4", LTARF="HP HIVER"))
        other = encoded(standard(NGTF="OctoFlex 4", LTARF="HP ETE"))
        self.connect(*[first] * 16, *[other] * 8)
        (said,) = [line for line in self.said() if "inconnu d'ecolinky" in line]
        for part in ("« OctoFlex 4 »", "« HP HIVER »", "« 02 »", "seul le total"):
            with self.subTest(part):
                self.assertIn(part, said)
        content = self.described()
        self.assertEqual("live", content["state"])
        (remark,) = content["remarks"]
        self.assertIn("HP ETE", remark["cause"])
        findings = list(ecolinky.judge("teleinfo1", self.snapshot()))
        (warning,) = [each for each in findings if each.verdict == ecolinky.WARNING]
        self.assertIn("OctoFlex 4", warning.text)
        self.assertEqual(ecolinky.OK, findings[-1].verdict)


######## Input #########################################################################


class InputTests(InputCase):
    def test_a_clean_line_is_served_and_logged_in_one_line(self):
        self.connect(HC_FRAME)
        self.assertIn("attendent confirmation", str(self.snapshot().reason))
        self.feed(*[HC_FRAME] * 30)
        self.assertEqual(self.shown(), ("live", live()))
        served = "compteur 021728123456, mode historique, tarif Heures creuses (HC..), "
        self.assertEqual([served + "ses valeurs sont transmises"], self.said())
        self.assertEqual(self.snapshot().reason, ecolinky.ALL_WELL)

    def test_a_dispute_is_shown_at_once_and_logged_after_twenty_seconds(self):
        words = "le compteur ou son contrat a changé, vérification pendant deux minutes"
        new_meter = frame(changed(HC, ADCO="021728999999"))
        new_contract = encoded(historic(ADCO=HC[0][1]))
        for wrong in (new_meter, frame(changed(HC, HCHC="000000100")), new_contract):
            with self.heard(HC_FRAME, 3, case=wrong[:40]):
                self.said()
                self.feed(wrong, wrong)
                self.assertEqual("live", self.shown().state)
                self.feed(wrong)
                self.assertEqual("stale", self.shown().state)
                self.assertEqual(words, str(self.snapshot().reason))
                self.feed(*[wrong] * 7)
                self.assertEqual([], self.said())
                self.feed(*[wrong] * 10)
                expected = [words + " ; aucune valeur n'est transmise"]
                self.assertEqual(expected, self.said())
                self.feed(*[wrong] * 50)
                self.assertEqual("live", self.shown().state)
                self.assertEqual(ecolinky.ALL_WELL, self.snapshot().reason)
                # Neither the frames after it nor the line is blamed.
                self.assertNotIn("manquent", "".join(self.said()))

    def test_injection_becomes_input_2_when_the_settings_ask_for_it(self):
        sun, advice = encoded(SUN), "mettre injection = yes dans [teleinfo2]"
        power_less = "n'envoie pas SINSTI, rien n'est transmis"
        for second, data, words, state in (
            (ecolinky.NO_INPUT, sun, advice, "absent"),
            (ecolinky.INJECTION, HC_FRAME, "n'envoie pas EAIT, SINSTI", "stale"),
            (ecolinky.INJECTION, without("SINSTI", sun), power_less, "stale"),
            (ecolinky.INJECTION, sun, None, "live"),
            (ecolinky.METER, sun, None, "absent"),
        ):
            with self.subTest(second=second, words=words):
                self.begin(second)
                self.connect(*[data] * 20)
                said = [text for text in self.said() if "injection" in text]
                self.assertEqual(1 if words else 0, len(said), said)
                self.assertIn(words or "", "".join(said))
                self.assertEqual(state, self.shown(2).state)
                if state == "live":
                    fields = self.shown(2).fields
                    self.assertEqual((671631, 1840), (fields["BASE"], fields["PAPP"]))

    def test_injection_that_comes_late_was_never_zero(self):
        self.begin(ecolinky.INJECTION)
        late = without("EAIT", encoded(SUN))
        self.connect()
        for data in [late] * 40 + [encoded(SUN)] * 4:
            self.feed(data)
            self.assertNotEqual("absent", self.shown(2).state)
        self.assertEqual(671631, self.shown(2).fields["BASE"])

    def test_the_injection_of_a_silent_meter_is_stale_rather_than_absent(self):
        self.begin(ecolinky.INJECTION)
        self.assertEqual("stale", self.shown(2).state)  # it may still arrive
        self.connect(*[encoded(SUN)] * 3)
        self.now += 31
        self.assertEqual("stale", self.shown(2).state)
        self.lose(OSError(111, "refused"))
        self.assertEqual("stale", self.shown(2).state)
        self.feed(*[encoded(standard())] * 160)  # five minutes without EAIT
        self.assertEqual(("live", "stale"), (self.shown(1).state, self.shown(2).state))

    def powers(self):
        return tuple(minute.power for minute in self.snapshot().minutes)

    def test_the_history_holds_minute_means_with_gaps_for_24_hours(self):
        for power, amperes in (("00690", "003"), ("00690", "003"), ("00920", "004")):
            self.connect(frame(changed(HC, PAPP=power, IINST=amperes)), step=1.0)
        self.now = 6060.0
        self.assertEqual((920,), self.powers())  # only the third frame was served
        self.now = 6180.0  # a minute without data
        self.feed(HC_FRAME, step=1.0)  # this power counts in its own minute
        self.assertEqual((920, None, None), self.powers())
        self.now += 60
        self.assertEqual((920, None, None, 690), self.powers())
        self.now += 60 * 2000
        self.assertEqual(1440, len(self.powers()))

    def test_frames_of_another_meter_leave_no_trace_in_the_history(self):
        self.connect(*[HC_FRAME] * 3)
        self.now = 6050.0
        self.feed(HC_FRAME)
        self.now = 6060.0
        self.feed(*[frame(changed(HC, ADCO="021728999999"))] * 5)
        self.now = 6121.0
        self.assertEqual((690, None), self.powers())

    def test_injected_power_is_negative_in_the_history(self):
        for sinsts, sinsti in (("00000", "01230"), ("00920", "00000")):
            groups = standard(SINSTS=sinsts, SINSTI=sinsti, EAIT="000000500")
            self.connect(*[encoded(groups)] * 5)
            self.now += 60.0
        self.assertEqual((-1230, 920), self.powers())

    @unittest.skipUnless(IS_CLONE, "five files alone have no captures")
    def test_the_json_of_an_input_of_each_capture_is_below_3_kb(self):
        for name, content in captures().items():
            with self.subTest(name):
                self.begin(ecolinky.INJECTION)
                self.connect(*[content] * 12)
                content = {**self.described(), "input": 1, "relay_port": 8889}
                self.assertLess(len(ecolinky.as_json(content).body), 3000)

    def test_the_history_holds_each_minutes_share_of_lost_groups_and_cheap_hours(self):
        damaged = without("MOTDETAT", frame(changed(HC, PTEC="HC..")))
        self.connect(*[HC_FRAME] * 5)
        self.now = 6060.0
        self.feed(*[HC_FRAME] * 4, damaged)  # 1 of 55
        self.now = 6120.0
        self.feed(*[damaged] * 4)
        self.now = 6250.0
        minutes = self.snapshot().minutes
        lost = [0, math.ceil(100 / 55), math.ceil(100 / 11), 0]
        self.assertEqual(lost, [minute.lost for minute in minutes])
        is_cheap = [minute.is_cheap for minute in minutes]
        self.assertEqual([False, False, True, False], is_cheap)  # the last: no power

    def test_the_history_tells_the_age_of_its_last_minute(self):
        self.now = 6000.0
        self.connect(*[HC_FRAME] * 3)
        for second in (6.0, 59.0, 61.5, 119.0):
            with self.subTest(second=second):
                self.now = 6000.0 + second
                store = ecolinky.Store()
                store.publish(1, self.snapshot())
                (history,) = ecolinky.describe_histories(store, self.now)["inputs"]
                self.assertEqual(second % 60, history["age"])

    def test_another_programme_of_tempo_is_no_change_of_contract(self):
        self.set_clock(paris(2026, 1, 15, 10))
        self.connect(*[frame(TEMPO_3)] * 4)
        since = self.snapshot().today.since
        self.said()
        self.feed(*[frame(changed(TEMPO_3, OPTARIF="BBR0"))] * 70)
        self.assertEqual("BBR0", self.input.view.fields["OPTARIF"])
        self.assertNotIn("nouveau matériel", "".join(self.said()))
        self.assertEqual(since, self.snapshot().today.since)

    def test_a_silent_meter_does_not_make_a_midnight(self):
        midnight = paris(2026, 1, 16)
        self.set_clock(midnight - 30)
        self.connect(*[HC_FRAME] * 4)
        self.feed(*[b"#"] * 20)  # bytes come, but no frame
        self.set_clock(midnight + 100)
        self.feed(*[HC_FRAME] * 2)
        local = time.strftime("%H:%M", time.localtime(midnight + 102))
        self.assertEqual(local, self.snapshot().today.since)

    def test_todays_energy_is_shown_while_values_are_served_and_the_clock_is_set(self):
        self.set_clock(1000.0)
        self.connect(*[HC_FRAME] * 3)
        self.assertIsNone(self.snapshot().today)
        self.set_clock(paris(2026, 1, 15, 14, 20))
        self.feed(*[HC_FRAME] * 3, *[frame(changed(HC, HCHC="012345690"))] * 3)
        expected = {"since": "14:20", "energy": {"HCHC": 12, "HCHP": 0}}
        self.assertEqual(expected, self.described()["today"])
        self.now += 31
        self.assertIsNone(self.described()["today"])  # it may be yesterday's
        self.set_clock(1000.0)
        self.feed(*[HC_FRAME] * 2)
        self.assertIsNone(self.snapshot().today)

    def test_todays_energy_includes_the_injected_energy(self):
        self.connect(*[encoded(standard(EAIT="000000500", SINSTI="00000"))] * 3)
        self.feed(*[encoded(standard(EAIT="000000520", SINSTI="00000"))] * 3)
        energy = self.snapshot().today.energy
        self.assertEqual({"HCHC": 0, "HCHP": 0, "EAIT": 20}, energy)

    def test_a_change_remains_a_remark_for_a_day(self):
        reset, other = frame(changed(HC, HCHC="000000100")), frame(historic())
        for data, words in ((reset, ["est passé de"]), (other, ["a changé"] * 2)):
            with self.heard(HC_FRAME, 3, case=data[:20]):
                self.feed(*[data] * 70)
                for word, remark in itertools.zip_longest(words, self.remarks()):
                    self.assertIn(word, remark)
                self.feed(*[data] * 2, step=44000.0)
                self.assertEqual([], self.remarks())

    def test_the_last_known_values_are_described_with_their_age(self):
        self.connect(HC_FRAME)
        self.assertIsNone(self.described()["last"])
        self.feed(HC_FRAME, HC_FRAME)
        self.assertIsNone(self.described()["last"])  # the input is live
        self.now += 100.0
        for _ in range(2):
            last = self.described()["last"]
            self.assertEqual(live(), last["fields"])
            self.assertEqual((1, "HC.."), (last["phases"], last["tariff"]["option"]))
            self.assertAlmostEqual(100.0, last["age"], delta=10)
            self.lose(CLOSED)
        self.assertIsNone(self.described()["fields"])

    def test_groups_received_before_a_lost_connection_are_shown(self):
        data = frame(changed(HC, IINST="009"))
        self.connect(*[HC_FRAME] * 3, data[: data.index(b"IMAX")])
        self.assertEqual(3, self.shown().fields["IINST"])
        self.lose(CLOSED)
        self.assertEqual(9, self.shown().fields["IINST"])

    def test_the_counters_count_frames_groups_refusals_and_connections(self):
        spoilt = HC_FRAME.replace(b"PAPP 00690", b"PAPP 00691")
        formless = HC_FRAME.replace(b"IMAX 090", b"IMAX 0~0")
        wrong = frame(changed(HC, HCHC="912345678"))
        self.connect(HC_FRAME, HC_FRAME, spoilt, spoilt, formless, wrong, HC_FRAME)
        self.lose(CLOSED)
        self.connect(HC_FRAME)
        refused = {"checksum": 2, "form": 1, "implausible": 1}
        groups = 8 * len(HC) - 3
        expected = dict(frames=8, groups=groups, refused=refused, connections=2)
        self.assertDescribes(counters=expected)

    def assertDescribes(self, **expected):
        content = self.described()
        self.assertEqual(expected, {name: content[name] for name in expected})

    def test_the_json_of_an_input_has_the_keys_the_readme_lists(self):
        keys = (
            "source state reason fault remarks byte_age mode labels age phases fields"
            " injection tariff today counters last"
        )
        self.assertEqual(keys.split(), list(self.described()))
        self.assertDescribes(state="waiting", age=None, mode=None, phases=None)
        self.assertDescribes(labels={}, fields=None)
        text = json.dumps(self.described(), allow_nan=False)
        self.assertIn("ecolinky attend", text)
        self.connect(*[HC_FRAME] * 3)
        self.now += 1.26
        self.assertDescribes(state="live", age=1.3, byte_age=1.3, fields=live())
        self.assertDescribes(mode="historic", phases=1, labels=dict(HC))
        refused = {"checksum": 0, "form": 0, "implausible": 0}
        counters = dict(frames=3, groups=33, connections=1, refused=refused)
        self.assertDescribes(counters=counters)
        self.assertEqual({"HCHC": 0, "HCHP": 0}, self.described()["today"]["energy"])
        indexes = [("HCHC", "Heures creuses"), ("HCHP", "Heures pleines")]
        expected = {
            "option": "HC..",
            "name": "Heures creuses",
            "period": {"code": "HP..", "tag": "HCHP", "name": "Heures pleines"},
            "indexes": [{"tag": tag, "name": name} for tag, name in indexes],
            "days": None,
        }
        self.assertDescribes(tariff=expected)
        self.now += 31
        self.assertDescribes(state="stale", labels={}, tariff=None)
        self.hear(frame(TEMPO_3), 3)
        self.assertDescribes(phases=3)
        days = {"today": "blanc", "tomorrow": "rouge"}
        self.assertEqual(days, self.described()["tariff"]["days"])

    def test_a_remark_on_a_fault_ends_after_an_hour_even_if_the_esp_is_away(self):
        self.hear(as_8n1(HC_FRAME), 10)
        self.assertIn("8N1", "".join(self.remarks()))
        self.now += 3720
        self.lose(socket.timeout())
        self.assertEqual([], self.remarks())

    def test_the_last_hour_has_sixty_minutes(self):
        history = ecolinky.History(0.0)
        for minute in range(120):
            counts = ecolinky.Counts()._replace(frames=minute + 1)
            history.note_counts(counts, 60.0 * minute + 30)
        self.assertEqual(60, history.last_hour(3660.0).frames)


class DayTests(unittest.TestCase):
    """Today's energy, by the indexes."""

    def setUp(self):
        patch = mock.patch.dict(os.environ, TZ="Europe/Paris")
        patch.start()
        time.tzset()
        self.addCleanup(time.tzset)
        self.addCleanup(patch.stop)
        self.day = ecolinky.Day()
        self.index = 1000000

    def take(self, indexes, wall, meter=("021728123456", "HC")):
        """Take indexes; return today's energy and when its count began."""
        self.changes = self.day.take(meter, indexes, wall)
        return self.day.today

    def run_until(self, start, end, step=2, **options):
        """Let an index grow by 1 Wh a step; return the last step's start and energy."""
        wall = start
        while wall <= end:
            self.index += 1
            today = self.take({"HCHC": 7, "HCHP": self.index}, wall, **options)
            wall += step
        return today.since, today.energy["HCHP"]

    def test_an_index_that_comes_later_or_goes_and_returns_is_counted(self):
        start = paris(2026, 1, 15, 10)
        take = lambda wall, **indexes: self.take(indexes, wall).energy  # noqa: E731
        self.assertEqual({"BASE": 0}, take(start, BASE=100))
        self.assertEqual({"BASE": 5, "EAIT": 0}, take(start + 2, BASE=105, EAIT=7))
        self.assertEqual({"BASE": 6, "EAIT": 2}, take(start + 4, BASE=106, EAIT=9))
        self.assertEqual({"BASE": 8}, take(start + 6, BASE=108))
        self.assertEqual({"BASE": 9, "EAIT": 5}, take(start + 8, BASE=109, EAIT=12))
        midnight = paris(2026, 1, 16)
        take(midnight - 1, BASE=110)
        self.assertEqual({"BASE": 1, "EAIT": 0}, take(midnight + 1, BASE=111, EAIT=20))

    def test_a_day_begins_at_midnight(self):
        midnight = paris(2026, 1, 16)
        # A day begun at the program's start tells since when.
        before = self.run_until(midnight - 100, midnight - 1)
        self.assertEqual(("23:58", 49), before)
        # The last index before midnight is that of midnight.
        self.assertEqual(("", 1), self.run_until(midnight, midnight))
        self.assertEqual(("", 51), self.run_until(midnight + 2, midnight + 100))

    def test_a_day_of_23_or_25_hours_counts_as_one_day(self):
        for date, hours in (((2026, 3, 29), 23), ((2026, 10, 25), 25)):
            with self.subTest(hours=hours):
                self.setUp()
                start = paris(*date)
                end = start + 3600 * hours
                self.run_until(start - 60, start - 1, step=30)
                last = self.run_until(start, end - 1, step=30)
                self.assertEqual(("", 120 * hours), last)
                self.assertEqual(("", 1), self.run_until(end, end))

    def test_a_silence_during_the_day_loses_no_energy(self):
        midnight = paris(2026, 1, 16)
        self.run_until(midnight - 10, midnight + 100)
        self.index += 5000
        last = self.run_until(midnight + 36000, midnight + 36000)
        self.assertEqual(("", 51 + 5001), last)

    def test_a_minute_of_silence_over_midnight_restarts_the_count(self):
        midnight = paris(2026, 1, 16)
        cases = {60: ("", 1), 61: ("00:01", 0), 30000: ("08:19", 0)}
        for silence, expected in cases.items():
            with self.subTest(silence=silence):
                self.setUp()
                self.run_until(midnight - 20, midnight - 1, step=1)
                wall = midnight - 1 + silence
                self.assertEqual(expected, self.run_until(wall, wall))

    def test_another_meter_contract_or_index_restarts_the_count(self):
        start = paris(2026, 1, 15, 10)
        same = ("021728123456", "HC")
        for meter, index in (
            (("021728123456", "BASE"), None),
            (("021728999999", "HC"), None),
            (same, 0),
            (same, 5000000),
        ):
            with self.subTest(meter=meter, index=index):
                self.setUp()
                self.run_until(start, start + 100)
                self.index = self.index if index is None else index
                last = self.run_until(start + 720, start + 722, meter=meter)
                self.assertEqual(("10:12", 1), last)

    def test_setting_the_clock_does_not_count_as_midnight(self):
        start = paris(2026, 1, 14, 17)  # the last time the machine knew
        self.run_until(start, start + 100)
        true = paris(2026, 1, 15, 14, 20)
        self.assertEqual(("14:20", 0), self.run_until(true, true))
        back = paris(2026, 1, 14, 8)
        self.assertEqual(("08:00", 0), self.run_until(back, back))

    def test_a_day_never_shows_more_energy_than_was_counted_in_it(self):
        rng = random.Random(5)
        wall = start = paris(2026, 3, 20)
        counted, index, date = {}, 10**6, None
        for _ in range(20000):
            wall += rng.choice((2, 2, 2, 20, 300, 40000)) if rng.random() < 0.1 else 2
            index += rng.randrange(3)
            today = self.take({"BASE": index}, wall)
            if time.localtime(wall)[:3] != date:
                date = time.localtime(wall)[:3]
                counted[date] = index - 2 * 60
            most = index - counted[date]
            self.assertTrue(0 <= today.energy["BASE"] <= most, (wall - start, today))


######## Store #########################################################################


class StoreTests(unittest.TestCase):
    def setUp(self):
        self.store = ecolinky.Store()

    def client(self, number=7, agent="domoticz/1.0", port=4000):
        return ecolinky.Client("10.0.0.%d" % number, agent, port)

    def test_the_last_eight_clients_are_remembered(self):
        for number in range(20):
            self.store.note_client(self.client(number % 13), 100.0 + number)
        latest = range(12, 20)
        expected = {self.client(n % 13): (1, 100.0 + n) for n in latest}
        self.assertEqual(expected, self.store.clients())

    def test_a_client_that_reads_again_is_the_latest(self):
        for number in [*range(8), 0, 8]:
            self.store.note_client(self.client(number), 100.0)
        expected = [self.client(number) for number in (2, 3, 4, 5, 6, 7, 0, 8)]
        self.assertEqual(expected, list(self.store.clients()))

    def test_a_client_is_an_address_an_agent_and_a_port(self):
        others = [{}, {"number": 8}, {"agent": "curl/8.5.0"}, {"port": 4001}]
        for time_of_read in (100.0, 101.0):
            for other in others:
                self.store.note_client(self.client(**other), time_of_read)
        expected = {self.client(**other): (2, 101.0) for other in others}
        self.assertEqual(expected, self.store.clients())

    def test_publishing_does_not_change_a_dictionary_already_read(self):
        publish(self.store, 1, live())
        snapshots = self.store.read()
        publish(self.store, 2, live())
        self.assertEqual([1], list(snapshots))


######## Documents #####################################################################


class DocumentsTests(unittest.TestCase):
    """The documents of the published snapshots, without a server."""

    DEVICE = ecolinky.Device("ecolinky", MAC, 4000, False)

    def setUp(self):
        self.store = ecolinky.Store()
        self.device = self.DEVICE

    def answer(self, path):
        inputs = ecolinky.served(self.store.read(), time.monotonic())
        return ecolinky.answer_document(path, self.device, inputs, time.localtime())

    def tags(self, path, status=200):
        """Return the tags of an XML document, in order, as (tag, text)."""
        answer = self.answer(path)
        self.assertEqual((status, "text/xml"), answer[:2], path)
        head = b'<?xml version="1.0" encoding="ISO-8859-1"?>\r\n<response>\r\n'
        self.assertEqual(head, answer.body[: len(head)])
        root = ElementTree.fromstring(answer.body)
        return [(child.tag, child.text or "") for child in root]

    def values(self, path, status=200):
        return dict(self.tags(path, status))

    def json(self, path, status=200):
        answer = self.answer(path)
        self.assertEqual((status, "application/json"), answer[:2])
        return json.loads(answer.body.decode("ascii"))

    def test_each_document_has_the_devices_tags_in_the_devices_order(self):
        publish(self.store, 1, live())
        both = tags_of(1) + tags_of(2)
        documents = {"/status.xml": STATUS_TAGS, "/teleinfo.xml": both}
        documents.update({T1: tags_of(1), T2: tags_of(2)})
        for path, tags in documents.items():
            with self.subTest(path):
                self.assertEqual([tag for tag, _ in self.tags(path)], tags)
        everything = self.tags("/globalstatus.xml")
        names = [tag for tag, _ in everything]
        self.assertEqual(STATUS_TAGS, names[: len(STATUS_TAGS)])
        more = {"c0_name": "C1", "c1_name": "C2", "c0_unit": "Wh", "c1_unit": "Wh"}
        self.assertEqual(sorted({*STATUS_TAGS, *both, *more}), sorted(names))
        self.assertEqual(more, {tag: dict(everything)[tag] for tag in more})

    def test_documents_show_the_values_as_plain_numbers(self):
        publish(self.store, 1, live())
        expected = {tag: str(value) for tag, value in live(PTEC="HP").items()}
        numbers = "meter|count|c[01]day|salr|dns|T2_(I|P[AP]|B|HC)"
        for path in XML_PATHS:
            with self.subTest(path):
                for tag, text in self.tags(path):
                    if tag[:3] == "T1_":
                        self.assertEqual(text, expected[tag[3:]])
                    elif re.match(numbers, tag):
                        self.assertRegex(text, "^(0|[1-9][0-9]*)$", tag)
        values, local = self.values("/status.xml"), time.localtime()
        self.assertEqual((values["version"], values["config_mac"]), ("1.05.25", MAC))
        date = "%d%02d%02d" % (local.tm_wday, local.tm_mday, local.tm_mon)
        self.assertEqual((values["http_port"], values["date"]), ("4000", date))
        self.assertRegex(values["time0"], "^[0-2][0-9]:[0-5][0-9]$")

    def test_a_period_keeps_its_dots_only_in_json(self):
        for period, in_xml in (("TH..", "TH"), ("HCJB", "HCJB"), ("PM..", "PM")):
            with self.subTest(period):
                publish(self.store, 1, live(PTEC=period))
                for path in (T1, "/status.xml", "/teleinfo.xml", "/globalstatus.xml"):
                    self.assertEqual(in_xml, self.values(path)["T1_PTEC"], path)
                self.assertEqual(period, self.json(CMD10)["T1_PTEC"])

    def test_the_gauge_shows_power_relative_to_the_subscription(self):
        for power, subscribed, phases, needle in rows(
            """
            0     > 30 > 1 > 0
            690   > 30 > 1 > 1
            6899  > 30 > 1 > 9
            99999 > 30 > 1 > 9
            690   > 0  > 1 > 0
            13799 > 30 > 3 > 6
            """
        ):
            with self.subTest(power=power, subscribed=subscribed, phases=phases):
                fields = live(PAPP=int(power), ISOUSC=int(subscribed))
                publish(self.store, 1, {**fields, "IMAX2": 60 * (phases == "3")})
                self.assertEqual(self.values("/status.xml")["meter0"], needle)

    def test_texts_from_the_meter_are_escaped(self):
        publish(self.store, 1, live(HHPHC="<", ADCO="&\xe9\u20ac"))
        values = self.values(T1)
        self.assertEqual((values["T1_HHPHC"], values["T1_ADCO"]), ("<", "&\xe9\u20ac"))

    def test_json_has_the_indexes_of_the_tariff_as_integers(self):
        for option, tags in (
            ("BASE", ["BASE"]),
            ("HC..", ["HCHC", "HCHP"]),
            ("EJP.", ["EJPHN", "EJPHPM"]),
            ("BBR(", BBR + ["DEMAIN"]),
            ("BBR2", BBR + ["DEMAIN"]),
        ):
            with self.subTest(option):
                indexes = {tag: n for n, tag in enumerate(tags) if tag != "DEMAIN"}
                publish(self.store, 1, live(OPTARIF=option, **indexes))
                content = self.json(CMD10)
                names = ["T1_" + tag for tag in ["PTEC", "PAPP", *tags]]
                names += ["T2_PTEC", "T2_PAPP", "T2_BASE", "INDEX_C1", "INDEX_C2"]
                self.assertEqual(["product", *names], list(content))
                found = {tag: content["T1_" + tag] for tag in indexes}
                self.assertEqual(indexes, found)
                for name in names[1:]:
                    is_text = name in ("T2_PTEC", "T1_DEMAIN")
                    self.assertIs(str if is_text else int, type(content[name]))
        day = {"product": "Eco-devices", "Day_C1": 0, "Day_C2": 0}
        self.assertEqual(day, self.json(CMD20))

    def test_live_stale_and_absent_inputs_have_their_statuses(self):
        # input 1 and 2 > the status of T1, T2 and the XML documents of both
        for inputs, expected in rows(
            """
            live absent   > 200 200 200
            stale absent  > 503 200 503
            live stale    > 200 503 503
            stale live    > 503 200 503
            stale stale   > 503 503 503
            never absent  > 503 200 503
            live live     > 200 200 200
            """
        ):
            with self.subTest(inputs):
                self.store = ecolinky.Store()
                first, second = inputs.split()
                for number, state in ((1, first), (2, second)):
                    if state != "absent":
                        fields = None if state == "never" else live()
                        publish(self.store, number, fields, 31 * (state == "stale"))
                paths = (T1, T2, "/teleinfo.xml", "/globalstatus.xml", CMD10)
                found = [str(self.answer(path).status) for path in paths]
                one, two, both = expected.split()
                self.assertEqual([one, two, both, both, one], found)
                values = self.values("/status.xml")
                self.assertEqual("HP" if first == "live" else "----", values["T1_PTEC"])
                self.assertEqual("----", values["T2_PTEC"])
                power = {"live": "690", "stale": "", "absent": "0"}[second]
                self.assertEqual(power, values["T2_PAPP"])

    def test_cmd_10_omits_the_keys_of_a_stale_second_input(self):
        publish(self.store, 1, live())
        publish(self.store, 2, live(), 31)
        content = self.json(CMD10)
        names = "product T1_PTEC T1_PAPP T1_HCHC T1_HCHP T2_PTEC INDEX_C1 INDEX_C2"
        self.assertEqual(names.split(), list(content))
        self.assertEqual((690, "----"), (content["T1_PAPP"], content["T2_PTEC"]))

    def test_a_stale_input_never_reads_as_zero(self):
        publish(self.store, 1, live(), 31)
        publish(self.store, 2, live())
        status = self.values("/status.xml")
        tags = [tag for tag in STATUS_TAGS if tag != "T1_PPAP"]
        self.assertEqual(tags, list(status))  # what Jeedom would record as 0 VA
        self.assertEqual(("", "----"), (status["T1_PAPP"], status["T1_PTEC"]))
        empty = dict.fromkeys(FIELDS, "0")
        empty.update(dict.fromkeys(("PAPP", "PPAP", "PTEC"), ""))
        empty.update(OPTARIF="----", DEMAIN="----", MOTDETAT="000000")
        expected = [("T1_" + tag, empty[tag]) for tag in FIELDS]
        self.assertEqual(expected, self.tags(T1, 503))
        self.assertEqual("690", self.values("/teleinfo.xml", 503)["T2_PAPP"])
        self.assertEqual("", self.values("/globalstatus.xml", 503)["T1_PPAP"])
        self.assertEqual({}, self.json(CMD10, 503))

    def test_a_snapshot_goes_stale_by_itself(self):
        with mock.patch("time.monotonic", return_value=1000.0) as clock:
            publish(self.store, 1, live())
            clock.return_value = 1030.0
            self.assertEqual(200, self.answer(T1).status)
            clock.return_value = 1030.5
            self.assertEqual(503, self.answer(T1).status)

    def test_tempo_colours_are_described_for_today_and_tomorrow(self):
        days = (("HCJB", "bleu"), ("HPJW", "blanc"), ("HCJR", "rouge"))
        after = (("BLEU", "bleu"), ("BLAN", "blanc"), ("ROUG", "rouge"), ("----", None))
        for (ptec, today), (demain, tomorrow) in itertools.product(days, after):
            with self.subTest(today=ptec, tomorrow=demain):
                fields = live(OPTARIF="BBR(", PTEC=ptec, DEMAIN=demain)
                found = ecolinky.describe_tariff(fields)["days"]
                self.assertEqual({"today": today, "tomorrow": tomorrow}, found)

    def test_the_second_device_shows_only_input_2_as_its_input_1(self):
        publish(self.store, 1, live())
        publish(self.store, 2, live(HCHP=5))
        self.device = ecolinky.second_device(self.DEVICE, 4001)
        values = self.values("/globalstatus.xml")
        self.assertEqual((values["T1_HCHP"], values["T1_PTEC"]), ("5", "HP"))
        self.assertEqual((values["T2_HCHP"], values["T2_PTEC"]), ("0", "----"))
        self.assertEqual(values["config_hostname"], "ecolinky-2")
        self.assertEqual(values["http_port"], "4001")
        self.assertNotEqual(values["config_mac"], MAC)
        self.assertRegex(values["config_mac"], "^([0-9a-f]{2}:){5}[0-9a-f]{2}$")
        publish(self.store, 2, None)
        self.assertEqual("", self.values(T1, 503)["T1_PAPP"])
        self.assertNotIn("T1_PPAP", self.values("/status.xml"))
        long_name = self.DEVICE._replace(hostname="x" * 32)
        self.assertEqual("x" * 30 + "-2", ecolinky.second_device(long_name, 1).hostname)

    def test_injection_is_input_2_only_when_asked_for(self):
        sun = live(BASE=671631, OPTARIF="BASE", PTEC="TH..")
        publish(self.store, 1, live(), injection=sun, shows_injection=True)
        self.assertEqual("671631", self.values(T2)["T2_BASE"])
        publish(self.store, 1, live(), injection=sun)  # not enabled in the settings
        self.assertEqual("0", self.values(T2)["T2_BASE"])
        publish(self.store, 1, live(), shows_injection=True)
        self.assertEqual(503, self.answer(T2).status)


######## Settings ######################################################################


AN_INPUT = dict(host="", port=8888, timeout=30.0, relay_port=None, injection=False)
DEFAULTS = dict(
    teleinfo1=AN_INPUT,
    teleinfo2=AN_INPUT,
    http=dict(address="0.0.0.0", port=4000, second_port=4001, username="", password=""),
    ecodevice=dict(hostname="ecolinky", mac="", discovery=False),
    log=dict(level="info"),
)
HOST = "[teleinfo1]\nhost = 192.168.1.50\n"
HTTP = HOST + "[http]\n"
TWO = HOST + "[teleinfo2]\nhost = x\n"
HAS_A_NUMBER_SIGN = (
    "la ligne [teleinfo2] manque au-dessus, ou a gardé son #, sinon host est deux fois"
    " dans [teleinfo1]"
)
BROKEN = (  # the content of the ini, and part of the error's only line
    ("", "[teleinfo1] host manque"),
    ("host = 192.168.1.50\n", "ligne 1, une [section] manque au-dessus"),
    ("[teleinfo1\nhost = 192.168.1.50\n", "ligne 1, une [section] manque"),
    (HOST + "[http\nport = 80\n", "ligne 3, "),
    (HOST + "port 8888\n", "ligne 3, "),
    (HOST + "#[teleinfo2]\nhost = 192.168.1.51\n", "ligne 4, " + HAS_A_NUMBER_SIGN),
    (HTTP + HOST, "ligne 4, la section [teleinfo1] existe déjà"),
    (HOST + "= 5\n", "ligne 3, "),
    (
        "[teleinfo1]\nhots = 192.168.1.50\n",
        "clé inconnue [teleinfo1] hots, il y a host",
    ),
    (HOST + "[mqtt]\n", "section inconnue [mqtt], il y a teleinfo1"),
    ("[Teleinfo1]\nhost = x\n", "section inconnue [Teleinfo1], écrire [teleinfo1]"),
    (HOST + "[DEFAULT]\nport = 1\n", "section inconnue [DEFAULT]"),
    ("[teleinfo1]\nhost = 192.168.1\n", "attendu : une adresse comme 192.168.1.50"),
    ("[teleinfo1]\nhost = 192.168.1.500\n", "ou un nom, rien d'autre"),
    ("[teleinfo1]\nhost = 192.168.001.050\n", "ou un nom, rien d'autre"),
    ("[teleinfo1]\nhost = 192.168.1.50:8888\n", "50:8888, ôter :8888"),
    ("[teleinfo1]\nhost = http://192.168.1.50/\n", "50/, ôter http://"),
    ("[teleinfo1]\nhost = esp.lan/json\n", "lan/json, ôter /json"),
    ('[teleinfo1]\nhost = "192.168.1.50"\n', '50", ôter les guillemets'),
    ("[teleinfo1]\nhost = « 192.168.1.50 »\n", "50 », ôter les guillemets"),
    ("[teleinfo1]\nhost = 192.168.1.50'\n", "50', ôter les guillemets"),
    ("[teleinfo1]\nhost = Http://192.168.1.50\n", "50, ôter Http://"),
    ("[teleinfo1]\nhost = fe80::1\n", "attendu : une adresse comme 192.168.1.50"),
    (HOST + "[teleinfo2]\n", "[teleinfo2] host manque, le donner"),
    ("404: Not Found", "c'est une page web"),
    ("{\\rtf1", "le fichier n'est pas en UTF-8"),
    (HTTP + "address = 0.0.0.0:4000\n", "0.0.0.0:4000, ôter :4000"),
    (HOST + "[teleinfo1]\n", "la section [teleinfo1] existe déjà plus haut"),
    (HOST + "port = 1\naddress = x\n", "address, la ligne [http] manque au-dessus"),
    (
        HOST + "port = 1\nport = 4000\n",
        "ligne 4, la ligne [teleinfo2] ou [http] manque",
    ),
    ("\n<!DOCTYPE html>\n<html>", "c'est une page web, pas le fichier, le télécharger"),
    (HOST + "  port = 23\n", "host, la ligne d'après commence par un espace, l'ôter"),
    ("[teleinfo1]\nhost = x ; y\n", "mettre le commentaire seul sur sa ligne"),
    (HOST + "port = 23 # y\n", "mettre le commentaire seul sur sa ligne"),
    (HOST + "port = # y\n", "mettre le commentaire seul sur sa ligne"),
    (HOST + "port = 70000\n", "70000 n'est pas valable, attendu : un nombre de 1"),
    (HOST + "port = 0\n", "port = 0 n'est pas valable"),
    (HOST + "port = 88.5\n", "port = 88.5 n'est pas valable"),
    (HOST + "timeout = 0\n", "timeout = 0 n'est pas valable"),
    (HOST + "timeout = 7,5\n", "un nombre de 5 à 65535, comme 7.5"),
    (HOST + 'port = "8888"\n', 'port = "8888", ôter les guillemets'),
    (HOST + "relay_port = x\n", "attendu : rien, ou un nombre de 1 à 65535"),
    (HTTP + "address =\n", "attendu : 0.0.0.0 pour toutes"),
    (HTTP + "username = moi\n", "username et password, donner les deux"),
    (HTTP + "username = a b\npassword = x\n", "A-Z a-z 0-9 . _ ~ -, Domoticz"),
    (HTTP + "username = a\npassword = s3cr\u00e9t\n", "A-Z a-z 0-9 . _ ~ -"),
    (HTTP + "username = a\npassword = p@ss:/?#\n", "A-Z a-z 0-9 . _ ~ -"),
    (HTTP + "username = a\npassword = %(a)s%\n", "A-Z a-z 0-9 . _ ~ -"),
    (HOST + "[ecodevice]\nhostname = maison \u00e9t\u00e9\n", "lettres sans accent"),
    (HOST + "[ecodevice]\nmac = 12:34\n", "six paires"),
    (HOST + "[ecodevice]\ndiscovery = oui\n", "attendu : yes ou no"),
    (HOST + "[log]\nlevel = tout\n", "attendu : debug, info, warning ou error"),
    (HTTP + "port = 5060\n", "[http] port = 5060, les navigateurs refusent"),
    (TWO + "[http]\nsecond_port = 6000\n", "[http] second_port = 6000, les naviga"),
    (TWO + "injection = yes\n", "host et injection = yes"),
    (TWO + "[http]\nport = 4001\n", "[http] port et [http] second_port ont"),
    (HTTP + "second_port = 4000\n[teleinfo2]\ninjection = yes\n", "ont le même port"),
    (HOST + "relay_port = 4000\n", "[http] port et [teleinfo1] relay_port ont le même"),
    (TWO.replace("x", "192.168.1.50"), "lisent le même ESP"),
    (HOST + "[teleinfo2]\nrelay_port = 5\n", "relay_port sans host"),
    (HOST + "[teleinfo2]\nport = 8889\n", "[teleinfo2] host manque, le donner"),
    (HOST + "injection = yes\n", "[teleinfo1] injection, l'écrire sous [teleinfo2]"),
    ("\0\0", "le fichier n'est pas en UTF-8, le réenregistrer"),
)


class SettingsTests(unittest.TestCase):
    def read(self, content, **options):
        """Return the settings of a file with the content, bytes or text."""
        with tempfile.TemporaryDirectory() as folder:
            self.path = written(content, folder, "ecolinky.ini")
            return ecolinky.read_settings(self.path, **options)

    def shipped(self):
        return content_of("ecolinky.ini").decode("utf-8")

    def error_of(self, content):
        with self.assertRaises(ecolinky.ConfigError) as caught:
            self.read(content)
        return str(caught.exception)

    def error_at(self, path):
        with self.assertRaises(ecolinky.ConfigError) as caught:
            ecolinky.read_settings(path)
        return str(caught.exception)

    def test_every_mistake_in_the_ini_gets_one_french_line(self):
        for text, words in BROKEN:
            with self.subTest(words):
                line = self.error_of(text)
                self.assertTrue(line.startswith(self.path + ", "), line)
                self.assertIn(words, line)
                self.assertNotRegex(line, "\n|File contains|While|Error|invalid")
                self.assertLessEqual(line.count(" : "), 1, line)

    def test_a_password_never_appears_in_an_error(self):
        wrong = "username = s3cr\u00e9t\n"
        for text in (wrong, "username = a\n" + wrong.replace("username", "password")):
            with self.subTest(text):
                self.assertNotIn("s3cr", self.error_of(HTTP + text))

    def test_a_missing_ini_is_one_line_and_a_demo_needs_none(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "ecolinky.ini")
            words = "introuvable, mettre ecolinky.ini à côté"
            self.assertIn(words, self.error_at(path))
            words = 'interdit, en permettre la lecture par sudo chmod a+rX "%s"' % path
            with mock.patch("builtins.open", side_effect=PermissionError(13, "no")):
                self.assertIn(words, self.error_at(path))
            demo = ecolinky.read_settings(path, demo=True)
            self.assertEqual(DEFAULTS, self.as_dict(demo))

    def test_an_ini_with_a_wrong_name_is_found_and_named(self):
        names = (
            "ecolinky.ini.txt|ecolinky.txt|Ecolinky.ini|ECOLINKY.INI|ecolinky.ini.1|"
        )
        names += "ecolinky (1).ini|ecolinky(2).ini|Copie de ecolinky.ini|ecolinky"
        for name in names.split("|"):
            with self.subTest(name), tempfile.TemporaryDirectory() as folder:
                others = "ecolinky.py ecolinky.old ecolinky.log ecolinky.service"
                for beside in (name, "notes.ini", *others.split()):
                    written("", folder, beside)
                words = "mais « %s » est là, le renommer en ecolinky.ini" % name
                path = os.path.join(folder, "ecolinky.ini")
                self.assertIn(words, self.error_at(path))

    def test_a_section_line_that_is_missing_is_named(self):
        for section in ("http", "ecodevice", "log"):
            with self.subTest(section):
                error = self.error_of(self.shipped().replace("[%s]\n" % section, ""))
                words = r"la ligne (\[teleinfo2\] ou )?\[%s\] manque" % section
                self.assertRegex(error, words)

    def as_dict(self, settings):
        return {name: each._asdict() for name, each in settings._asdict().items()}

    def test_the_shipped_ini_shows_every_key_with_its_default(self):
        expected = dict(DEFAULTS, teleinfo1=dict(DEFAULTS["teleinfo1"]))
        expected["teleinfo1"]["host"] = "192.168.1.50"
        self.assertEqual(expected, self.as_dict(self.read(self.shipped())))
        bare = re.sub(r"(?m)^#(?=\[|\w+ =)", "", self.shipped())
        readme = content_of("README.md").decode("utf-8")
        for section, keys in DEFAULTS.items():
            with self.subTest(section):
                self.assertIn("[%s]\n" % section, bare)
                part = bare.partition("[%s]\n" % section)[2].partition("\n[")[0] + "\n"
                for key in keys:
                    if (section, key) == ("teleinfo1", "injection"):
                        continue  # of teleinfo2 alone
                    self.assertRegex("\n" + part, "\n%s =" % key)
                    self.assertIn("`%s`" % key, readme)
        one = re.sub("(?m)^host = 192.168.1.51\n", "", bare)
        self.assertTrue(self.read(one).teleinfo2.injection)
        self.assertEqual([4000, 4001], self.read(one).ports_of(1))
        other = re.sub("(?m)^injection = yes\n", "", bare)
        self.assertEqual(self.read(other).teleinfo2.host, "192.168.1.51")
        self.assertEqual([4001], self.read(other).ports_of(2))

    def test_every_value_is_read_in_any_encoding_notepad_saves(self):
        text = (
            "# r\u00e9glages\n[teleinfo1]\nHOST = linky.lan\nport = 23\n"
            "timeout = 12.5\nrelay_port = 8889\n[teleinfo2]\nhost = 10.0.0.9\n"
            "[http]\naddress = 127.0.0.1\nport = 1\nsecond_port = 2\n"
            "username = moi\npassword = a.B_c~d-9\n[ecodevice]\n"
            "hostname = Maison-2\nmac = 02-AB-cd-10-00-01\ndiscovery = Yes\n"
        )
        utf_8, as_in_windows = text.encode("utf-8"), text.replace("\n", "\r\n")
        for content in (b"\xef\xbb\xbf" + utf_8, utf_8, as_in_windows.encode("cp1252")):
            with self.subTest(content[:20]):
                settings = self.read(content)
                self.assertEqual(("linky.lan", 23, 12.5, 8889), settings.teleinfo1[:4])
                http = ("127.0.0.1", 1, 2, "moi", "a.B_c~d-9")
                self.assertEqual(http, settings.http)
                self.assertIs(settings.ecodevice.discovery, True)
                self.assertEqual(settings.ports, [1, 2])
                relay = settings.named_ports["[teleinfo1] relay_port"]
                self.assertEqual(8889, relay)
                self.assertEqual(ecolinky.METER, settings.second)

    def machine_id(self):
        content = mock.mock_open(read_data=b"0123456789abcdef0123456789abcdef\n")
        return mock.patch("builtins.open", content)

    def test_the_mac_address_is_stable_and_unique_to_the_machine(self):
        self.assertRegex(ecolinky.lasting_mac(4000), "^02(:[0-9a-f]{2}){5}$")
        with mock.patch("builtins.open", side_effect=FileNotFoundError):
            made = []
            for name in ("pi", "nas", "pi"):
                with mock.patch("socket.gethostname", return_value=name):
                    made.append(ecolinky.lasting_mac(4000))
        self.assertTrue(made[0] == made[2] != made[1])
        with self.machine_id():
            for name in ("pi", "nas"):  # a machine may change its host name
                with self.subTest(name):
                    with mock.patch("socket.gethostname", return_value=name):
                        made = [ecolinky.lasting_mac(port) for port in (4000, 4002)]
                        self.assertEqual("02:9d:71:b8:31:0e", made[0])
                        self.assertEqual("02:9d:71:b8:33:0e", made[1])

    def test_programs_on_all_ports_of_a_machine_have_different_mac_addresses(self):
        ini = "[teleinfo2]\ninjection = yes\n[http]\nport = %d\n"
        settings = ecolinky.parse_settings(ini % 4000)
        made = set()
        with self.machine_id():
            for port in (1, 80, 3999, 4000, 4002, 4003, 8080, 40960, 65535):
                http = settings.http._replace(port=port)
                for device in ecolinky.devices_of(settings._replace(http=http)):
                    self.assertRegex(device.mac, "^02(:[0-9a-f]{2}){5}$")
                    made.add(device.mac)
        self.assertEqual(18, len(made))

    def test_a_timeout_must_be_at_least_five_seconds(self):
        text = "[teleinfo1]\nhost = x\ntimeout = %s\n"
        for seconds in ("1", "4.9"):
            with self.subTest(seconds=seconds):
                self.error_of(text % seconds)
        self.assertEqual(5.0, self.read(text % "5").teleinfo1.timeout)


######## Relay #########################################################################


class EspCase(unittest.TestCase):
    """Fake ESP8266s, and readers of them that publish into one store."""

    def setUp(self):
        super().setUp()
        self.store = ecolinky.Store()

    def esp(self, *scripts, **options):
        esp = FakeEsp(*scripts, **options)
        self.addCleanup(esp.close)
        return esp

    def read(self, port, number=1, timeout=5.0, host="127.0.0.1", **options):
        settings = ecolinky.InputSettings(host, port, timeout)
        options.setdefault("input_2", ecolinky.NO_INPUT)
        reader = QuickReader(number, settings, self.store, patience=0.1, **options)
        self.addCleanup(reader.join, LONG)
        self.addCleanup(reader.stopped.set)
        reader.start()
        return reader

    def live(self, number=1):
        """Return the fields of a live input, otherwise None."""
        return ecolinky.served(self.store.read(), time.monotonic()).get(number)

    def reason(self):
        return str(self.store.read()[1].reason)


class RelayTests(EspCase):
    def setUp(self):
        super().setUp()
        self.relay_port = free_port()

    def relay(self, timeout=30.0, now=0.0):
        relay = ecolinky.Relay("127.0.0.1", self.relay_port, timeout, now)
        self.addCleanup(relay.close)
        return relay

    def client(self, buffer=None):
        client = socket.socket()
        self.addCleanup(client.close)
        if buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        client.settimeout(LONG)
        client.connect(("127.0.0.1", self.relay_port))
        return client

    def is_refused(self):
        with socket.socket() as client:
            client.settimeout(0.2)  # if too many wait, the kernel does not answer
            address = ("127.0.0.1", self.relay_port)
            return client.connect_ex(address) == errno.ECONNREFUSED

    def test_each_piece_ends_with_the_start_of_the_next_frame(self):
        one, two = b"\x02\nONE\r\x03", b"\x02\nTWO\r\x03"
        rest, both = b"TWO\r\x03\x02\n", b"ONE\r\x03\x02\nTWO\r\x03\x02\n"
        start, relay, clients, now = b"\x02\n", self.relay(30.0), [], 0.0
        for relayed, pieces in (  # each time a reader more
            ([one], [one + start]),
            ([one, two], [both, start + both]),
            ([], [b"", b"", b""]),  # served, but a label is awaited: they wait
            ([two], [rest, rest, start + rest, start + rest]),
        ):
            now += 20.0
            clients.append(self.client())
            relay.poll(now)
            relay.send(relayed, now)
            for client, piece in zip(clients, pieces):
                self.assertEqual(piece, client.recv(65536) if piece else b"")

    def test_clients_of_the_relay_are_remembered(self):
        relay = self.relay(5.0, time.monotonic())
        self.read(self.esp(frames(HC_FRAME)).port, relay=relay)
        wait_for(self.live)
        self.assertEqual({}, self.store.clients())
        self.client()
        client = ecolinky.Client("127.0.0.1", "TIC", self.relay_port)
        wait_for(lambda: client in self.store.clients())

    def test_a_stuck_reader_does_not_harm_the_others(self):
        relay, now = self.relay(), 0.0
        stuck, first, second = self.client(4096), self.client(), self.client()
        relay.poll(now)
        received = {first: b"", second: b""}
        second.sendall(b"GET / HTTP/1.0\r\n\r\n")  # the relay reads nothing
        for count in range(1, 4001):
            now += 0.01
            relay.send([HC_FRAME], now)
            for client in received:
                while len(received[client]) < count * len(HC_FRAME) + 2:
                    received[client] += client.recv(65536)
        for data in received.values():
            self.assertEqual(HC_FRAME * 4000 + b"\x02\n", data)
        taken = b"".join(iter(lambda: stuck.recv(65536), b""))  # it was disconnected
        whole, rest = divmod(len(taken), len(HC_FRAME))
        self.assertEqual(HC_FRAME * whole + HC_FRAME[:rest], taken)

    def test_a_reader_that_does_not_take_a_piece_at_once_is_disconnected(self):
        piece = HC_FRAME[2:] + b"\x02\n"
        for taken, is_kept in (
            ([len(piece) + 2, len(piece)], [True, True]),
            ([len(piece) + 2, len(piece) - 1], [True, False]),
            ([BlockingIOError], [False]),
            ([ConnectionResetError], [False]),
        ):
            with self.subTest(taken=taken):
                connection = mock.Mock()
                connection.send.side_effect = taken
                reader = ecolinky.Receiver(connection, "10.0.0.9")
                self.assertEqual(is_kept, [reader.send(piece) for _ in taken])

    def test_sixteen_readers_are_served_at_most(self):
        relay = self.relay()
        clients = [self.client() for _ in range(17)]
        relay.poll(1.0)
        relay.send([HC_FRAME], 1.0)
        for client in clients[:16]:
            self.assertEqual(HC_FRAME + b"\x02\n", client.recv(65536))
        clients[16].settimeout(0.02)
        with self.assertRaises(socket.timeout):
            clients[16].recv(1)
        clients[0].close()

        def next_bytes():
            relay.send([HC_FRAME], 2.0)  # notices that a reader has left
            relay.poll(2.0)
            return clients[16].recv(65536)

        self.assertEqual(b"\x02", wait_for(next_bytes)[:1])

    def test_the_port_is_closed_while_no_values_are_served(self):
        relay = self.relay(30.0)
        relay.poll(29.0)
        relay.send([HC_FRAME], 29.0)
        accepted = self.client()
        relay.poll(59.0)
        waiting = self.client()
        relay.poll(59.1)
        self.assertEqual(b"", accepted.recv(1))
        with self.assertRaises(ConnectionResetError):
            waiting.recv(1)
        self.assertTrue(self.is_refused())
        relay.send([], 80.0)  # served again, but a label is still awaited
        client = self.client()
        relay.poll(110.0)
        relay.send([HC_FRAME], 110.0)
        self.assertEqual(HC_FRAME + b"\x02\n", client.recv(65536))

    def test_a_port_that_another_program_took_is_logged_once_and_tried_again(self):
        relay = self.relay(30.0)
        relay.poll(31.0)
        with socket.socket() as other, self.assertLogs("ecolinky", "INFO") as logs:
            other.bind(("127.0.0.1", self.relay_port))
            other.listen(1)
            for now in range(40, 60):
                relay.send([HC_FRAME], now)
                relay.poll(now)
        line = "WARNING:ecolinky:relay_port, port %d déjà pris, nouvel essai à chaque"
        (logged,) = logs.output
        self.assertTrue(logged.startswith(line % self.relay_port), logged)
        relay.send([HC_FRAME], 60.0)
        self.assertFalse(self.is_refused())

    def test_a_reader_that_reconnects_at_once_finds_no_connection_in_an_outage(self):
        esp = self.esp(frames(HC_FRAME, 0.02))
        self.read(esp.port, relay=self.relay(0.2, time.monotonic()), timeout=0.2)
        wait_for(lambda: self.client().recv(1) == b"\x02")
        esp.close()
        wait_for(self.is_refused)
        wait_for(lambda: not self.live())
        self.assertEqual([True] * 20, [self.is_refused() for _ in range(20)])
        self.esp(frames(HC_FRAME, 0.02), port=esp.port)
        wait_for(lambda: self.client().recv(1) == b"\x02")

    def unreachable(self):
        """Return the reader of an ESP8266 that is away, and which has a relay."""
        settings = ecolinky.InputSettings("10.0.0.9", 8888)
        return ecolinky.Reader(1, settings, self.store, relay=self.relay(30.0))

    def test_an_esp_that_is_away_does_not_keep_the_port_open(self):
        reader = self.unreachable()
        # As long as ever, once nobody can be connected any more.
        for now, patience in ((1.0, 10.0), (25.0, 5.0), (29.9, 1.0), (30.1, 10.0)):
            with self.subTest(now=now), mock.patch("time.monotonic", lambda: now):
                with mock.patch("socket.create_connection") as connect:
                    reader._poll_relay(now)
                    reader._connect()
                connect.assert_called_once_with(("10.0.0.9", 8888), patience)
        self.assertTrue(self.is_refused())

    def test_a_pause_between_connections_does_not_keep_the_port_open(self):
        reader = self.unreachable()
        for now, is_refused in ((26.9, False), (27.1, True)):  # it pauses for 3 s
            with mock.patch("time.monotonic", lambda: now):
                reader._report_failure(OSError(errno.EHOSTUNREACH, "?"))
            self.assertEqual(is_refused, self.is_refused())

    def test_a_reader_waits_connected_only_while_values_are_served(self):
        for data, is_served in (
            (frame(HC[:5]), False),
            (without("IMAX", HC_FRAME), True),
        ):
            with self.subTest(is_served=is_served):
                self.relay_port = free_port()
                reader, client = self.unreachable(), self.client()
                reader._input.connected(0.0)
                for now in range(2, 60, 2):
                    with mock.patch("time.monotonic", lambda: float(now)):
                        reader._poll_relay(now)
                        reader._take(data, float(now))
                self.assertEqual(not is_served, self.is_refused())
                if is_served:
                    client.setblocking(False)
                    with self.assertRaises(BlockingIOError):
                        client.recv(1)
                else:
                    self.assertEqual(b"", client.recv(1))
                self.assertFalse(self.store.clients())  # it has read nothing


######## Reader ########################################################################


class ReaderTests(EspCase):
    def test_the_reader_survives_every_way_a_connection_ends(self):
        half = HC_FRAME[:80]
        for kind, script in {
            "closed": once(HC_FRAME * 2, half),
            "reset": once(HC_FRAME, half, reset=True),
            "silent": once(half, silent=True),
            "flood": frames(b"A" * 65536, 0.0),
        }.items():
            with self.subTest(kind):
                self.store = ecolinky.Store()
                esp = self.esp(script, script, frames(HC_FRAME))
                self.read(esp.port)
                self.assertEqual(wait_for(self.live), live())
                wait_for(lambda: esp.connections >= 3)

    def test_log_lines_name_the_input_and_its_address(self):
        port = free_port()
        with self.assertLogs("ecolinky", "INFO") as logs:
            self.read(port)
            wait_for(lambda: "rien n'écoute" in self.reason())
            self.esp(frames(HC_FRAME), port=port)
            served = "INFO:ecolinky:teleinfo1 : compteur 021728123456, mode"
            wait_for(lambda: any(served in line for line in logs.output))
        first = "WARNING:ecolinky:teleinfo1 (127.0.0.1:%d) : l'ESP répond, mais" % port
        self.assertEqual(first, logs.output[0][: len(first)])

    def test_a_silent_esp_and_one_that_fell_silent_have_different_reasons(self):
        cases = (
            (once(silent=True), "aucun octet n'en vient, vérifier host et port (8888"),
            (once(b"\0x", silent=True), "plus aucun octet"),
            (once(HC_FRAME, silent=True), "plus aucun octet"),
            (once(GREETINGS[0], silent=True), "ce n'est pas le Serial Server"),
            (once(), "la connexion se ferme sans un octet de TIC, ce n'est pas le"),
        )
        for number, (script, _) in enumerate(cases):  # all at once
            self.read(self.esp(script).port, number)
        for number, (_, words) in enumerate(cases):
            with self.subTest(words):
                wait_for(lambda: words in str(self.store.read()[number].reason))

    def test_the_reader_keeps_trying_to_resolve_an_unknown_name(self):
        connect = socket.create_connection
        unknown = socket.gaierror(-2, "Name or service not known")
        port = self.esp(frames(HC_FRAME)).port
        answers = [unknown, unknown, connect(("127.0.0.1", port))]
        with mock.patch("socket.create_connection", side_effect=answers):
            self.read(port, host="linky.lan")
            self.assertEqual(wait_for(self.live), live())

    def test_a_refusing_port_is_retried_only_after_a_pause(self):
        settings = ecolinky.InputSettings("127.0.0.1", 1)
        reader = ecolinky.Reader(1, settings, self.store)
        reader.stopped = mock.Mock()
        reader.stopped.is_set.side_effect = [False, False, True]
        with mock.patch(
            "socket.create_connection", side_effect=ConnectionError
        ) as connect:
            reader.run()
        self.assertEqual(2, connect.call_count)
        self.assertEqual([mock.call(3.0)] * 2, reader.stopped.wait.call_args_list)

    @unittest.skipUnless(os.path.isdir("/proc/self/fd"), "no /proc here")
    def test_ended_connections_leave_no_descriptor_open(self):
        esp = self.esp(once())
        self.read(esp.port)
        wait_for(lambda: esp.connections > 3)
        before = len(os.listdir("/proc/self/fd"))
        wait_for(lambda: esp.connections > 16)
        self.assertLess(len(os.listdir("/proc/self/fd")), before + 8)

    def test_bytes_without_a_frame_are_published_once_a_tick(self):
        esp = self.esp(frames(b"\0" * 9, 0.001))
        with mock.patch.multiple(QuickReader, TICK=0.1, SILENCE=10.0):
            self.read(esp.port)
            times = set()

            def have_come():
                times.add(self.store.read()[1].last_byte)
                return len(times) == 4  # the first: none came yet

            wait_for(have_come)
        first, *_, last = sorted(times)[1:]
        self.assertGreater(last - first, 0.19)

    def test_a_bug_is_logged_and_does_not_stop_the_reader(self):
        faults = []
        translate = ecolinky.translate_historic

        def faulty(labels):
            if len(faults) < 10:
                faults.append("one more")
                raise ZeroDivisionError("?")
            return translate(labels)

        with self.assertLogs("ecolinky", "DEBUG") as logs:
            reader = self.read(self.esp(frames(HC_FRAME)).port)
            with mock.patch("ecolinky.translate_historic", faulty):
                wait_for(lambda: len(faults) == 10)
                self.assertEqual(wait_for(self.live), live())
        self.assertTrue(reader.is_alive())
        warnings = [each for each in logs.output if each.startswith("WARNING")]
        self.assertIn("erreur imprévue", warnings[0])
        self.assertRegex("".join(logs.output), r"in faulty\n +raise ZeroDivisionError")

    def test_the_reader_is_indifferent_to_leaps_of_the_wall_clock(self):
        self.read(self.esp(frames(HC_FRAME)).port)
        wait_for(self.live)
        with mock.patch("time.time", return_value=0.0):
            published = self.store.read()[1]
            self.assertLess(abs(published.view.time - time.monotonic()), 2)
            self.assertEqual(wait_for(self.live), live())

    def test_the_reader_waits_20_seconds_before_it_reports_bad_data(self):
        settings = ecolinky.InputSettings("127.0.0.1", 1, 30.0)
        source = ecolinky.Reader(1, settings, ecolinky.Store())._input
        source.connected(100.0)
        for now in range(101, 123):  # each second: noise makes no pauses
            source.feed(b"\0" * 20, float(now), WALL)
            self.assertEqual(now <= 121, source.reason == ecolinky.NO_FRAME_YET, now)


######## Server ########################################################################


class HttpCase(unittest.TestCase):
    LOGIN = ""

    def setUp(self):
        terminal = io.StringIO()
        patch = mock.patch("sys.stderr", terminal)
        patch.start()
        self.addCleanup(lambda: self.assertEqual(terminal.getvalue(), ""))
        self.addCleanup(patch.stop)
        self.store = ecolinky.Store()
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        self.port = stack.enter_context(running_server(self.store, self.LOGIN))


class ServerTests(HttpCase):
    def setUp(self):
        super().setUp()
        publish(self.store, 1, live())

    def json(self, path="/ecolinky.json"):
        return json.loads(ask(self.port, path).body.decode())

    def test_known_paths_are_answered_and_other_paths_are_not_found(self):
        for path in ("/", "/index.htm", "/index1.htm"):
            with self.subTest(path):
                answer = ask(self.port, path)
                kind = answer.headers["Content-Type"]
                self.assertEqual("text/html; charset=utf-8", kind)
                self.assertIn(b'<html lang="fr">', answer.body)
        unknown = "/nope /status.xml/ /api/xdevices.json /api/xdevices.json?cmd=30"
        unknown += " /../ecolinky.ini /ecolinky.ini /cmd=10 /%73tatus.xml"
        for path in unknown.split():
            with self.subTest(path):
                self.assertEqual(ask(self.port, path).status, 404, path)
        self.assertEqual(ask(self.port, "/status.xml?t=123").status, 200)
        self.assertEqual(ask(self.port, CMD10 + "&x=1").status, 200)
        for path in (CMD10, CMD20):
            with self.subTest(path):
                as_htm = ask(self.port, path.replace(".json", ".htm"))
                self.assertEqual(ask(self.port, path).body, as_htm.body)
                self.assertEqual("application/json", as_htm.headers["Content-Type"])
        self.assertEqual(ask(self.port, "/status.xml", "POST").status, 501)

    def test_a_target_with_an_address_is_answered_like_its_path(self):
        for address in ("http://x", "http://127.0.0.1:4000", "HTTP://[::1]:80"):
            for path in ("/teleinfo.xml", T1, CMD10, T1 + "?t=1", "/", "/nope"):
                with self.subTest(address + path):
                    expected = ask(self.port, path)
                    answer = ask(self.port, address + path)
                    self.assertEqual(expected.status, answer.status)
                    self.assertEqual(expected.body, answer.body)
            self.assertIn(b"<html", ask(self.port, address).body)
            self.assertEqual("/", ecolinky.name_of_document(address + "?since=3"))
        for target in ("ftp://x/status.xml", "x/status.xml", "/status.xmlhttp://x"):
            self.assertEqual(404, ask(self.port, target).status)

    def test_a_connection_has_one_request_whatever_follows_it(self):
        inner = b"GET /nope HTTP/1.1\r\nHost: x\r\n\r\n"
        size = len(inner)
        headers = [b"Content-Length: %d" % size, b"Content-Length : %d" % size]
        headers += [b"Connection: keep-alive", b"Transfer-Encoding: chunked"]
        for header, method in itertools.product(headers, (b"GET", b"POST", b"HEAD")):
            with self.subTest(header, method=method):
                request = b"%s /status.xml HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n"
                received = talk(self.port, request % (method, header) + inner)
                self.assertEqual(1, received.count(b"HTTP/1.1 "))
                self.assertNotIn(b" 404 ", received)
                self.assertNotIn(b"Python", received)
                self.assertIn(b"\r\nConnection: close\r\n", received)

    def test_each_answer_states_its_length_and_forbids_caching(self):
        for path in ("/", "/status.xml", "/nope", CMD10, "/ecolinky.json"):
            with self.subTest(path):
                headers, body = ask(self.port, path)[1:]
                self.assertEqual(str(len(body)), headers["Content-Length"])
                self.assertEqual("no-store", headers["Cache-Control"])
        self.assertTrue(ask(self.port, "/").body.endswith(b"</html>\n"))
        kind = ask(self.port, "/nope").headers["Content-Type"]
        self.assertEqual("text/plain; charset=utf-8", kind)

    def test_head_is_answered_like_get_without_the_body(self):
        for path in PATHS + ("/", "/nope", "/index1.htm", "/history.json"):
            with self.subTest(path):
                full, head = ask(self.port, path), ask(self.port, path, "HEAD")
                self.assertEqual((full.status, b""), (head.status, head.body), path)
                for name in ("Content-Type", "Content-Length", "Cache-Control"):
                    self.assertEqual(full.headers[name], head.headers[name])
        received = talk(self.port, b"HEAD /status.xml HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertTrue(received.endswith(b"\r\n\r\n"), received)

    def test_a_request_that_http_server_refuses_has_one_french_line(self):
        too_long, unreadable = "demande trop longue", "demande illisible"
        for request, status, words in (
            (b"GET\r\n\r\n", 400, unreadable),
            (b"GET / HT", 400, unreadable),  # and the end of the connection
            (b"GET / HTTP/x\r\n\r\n", 400, unreadable),
            (b"\xff\xfe\0\r\n\r\n", 400, unreadable),
            (b"GET / HTTP/9.9\r\n\r\n", 505, "version de HTTP inconnue"),
            (b"PUT / HTTP/1.1\r\n\r\n", 501, "seuls GET et HEAD ont une réponse"),
            (b"GET /" + b"x" * 70000 + b" HTTP/1.1\r\n\r\n", 431, too_long),
            (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431, too_long),
        ):
            with self.subTest(request[:30]):
                received = talk(self.port, request)
                head, _, body = received.partition(b"\r\n\r\n")
                self.assertEqual(words + "\r\n", body.decode())
                self.assertIn(b" %d " % status, head.partition(b"\r\n")[0])
                self.assertIn(b"Content-Type: text/plain; charset=utf-8", head)
                self.assertIn(b"Connection: close", head)
                self.assertNotIn(b"Python", head)
        self.assertEqual(b"", talk(self.port, b"\r\n\r\n"))

    def test_a_bug_is_answered_with_500_and_logged_once_an_hour(self):
        broken = mock.patch("ecolinky.answer_document", side_effect=KeyError("x"))
        with broken, self.assertLogs("ecolinky", "WARNING") as logs:
            for _ in range(3):
                answer = ask(self.port, "/status.xml")
                self.assertEqual(500, answer.status)
                self.assertIn("erreur imprévue (KeyError('x'))", answer.body.decode())
        self.assertEqual(1, len(logs.records), logs.output)
        self.assertEqual(200, ask(self.port, "/status.xml").status)

    def test_a_stale_input_is_answered_with_503_without_a_new_snapshot(self):
        clock = time.monotonic
        self.assertEqual(200, ask(self.port, T1).status)
        with mock.patch("time.monotonic", lambda: clock() + 31):
            self.assertEqual(503, ask(self.port, T1).status)

    def test_the_second_port_shows_nothing_of_input_1(self):
        publish(self.store, 2, live(HCHP=5))
        with running_server(self.store, second=True) as port:
            body = ask(port, "/teleinfo.xml").body
        self.assertIn(b"<T1_HCHP>5<", body)
        self.assertIn(b"<T2_HCHP>0<", body)

    def test_the_page_may_run_only_its_own_script_and_query_only_its_server(self):
        answer = ask(self.port, "/")
        script = answer.body.split(b"<script>")[1].split(b"</script>")[0]
        digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
        policy = answer.headers["Content-Security-Policy"]
        self.assertIn("script-src 'sha256-%s';" % digest, policy)
        self.assertIn("default-src 'none'; connect-src 'self'", policy)
        self.assertNotIn("frame", policy)  # users embed the page in Domoticz
        self.assertEqual("nosniff", answer.headers["X-Content-Type-Options"])
        self.assertEqual("no-referrer", answer.headers["Referrer-Policy"])
        self.assertNotIn("Content-Security-Policy", ask(self.port, T1).headers)

    def test_the_json_describes_each_input_separately(self):
        reason = ecolinky.Reason(ecolinky.ESP, "l'ESP : rien", "mettre l'IP")
        publish(self.store, 2, live(HCHP=5), 31, reason=reason)
        content = self.json()
        self.assertEqual([1, 2], [each["input"] for each in content["inputs"]])
        first, second = content["inputs"]
        self.assertEqual(("live", live()), (first["state"], first["fields"]))
        self.assertEqual(("stale", None), (second["state"], second["fields"]))
        self.assertEqual((8889, None), (first["relay_port"], second["relay_port"]))
        self.assertEqual(([self.port], [4001]), (first["ports"], second["ports"]))
        cause, remedy = "l\u2019ESP\u00a0: rien", "mettre l\u2019IP"
        self.assertEqual("%s, %s" % (cause, remedy), second["reason"])
        fault = {"station": "esp", "cause": cause, "remedy": remedy}
        self.assertEqual(fault, second["fault"])
        self.assertEqual([self.port, 4001], content["ports"])
        keys = ["version", "uptime", "hostname", "ports", "clients", "inputs"]
        self.assertEqual(keys, list(content))

    def test_clients_of_documents_are_listed_and_the_page_is_not_a_client(self):
        for path in "/ /index.htm /ecolinky.json /nothing /history.json".split():
            ask(self.port, path)
        self.assertEqual([], self.json()["clients"])
        for path in PATHS + ("/api/xdevices.htm?cmd=20",):
            with self.subTest(path=path):
                other = ecolinky.Client("10.0.0.7", "", self.port)
                self.store.note_client(other, time.monotonic() - 100)
                ask(self.port, path)
                first, second = self.json()["clients"]
                self.assertEqual("127.0.0.1", first["address"])
                self.assertLess(first["age"], 10)
                self.assertEqual("10.0.0.7", second["address"])
                self.assertAlmostEqual(100, second["age"], delta=10)

    def test_clients_are_told_apart_by_their_user_agent(self):
        agents = ("", "domoticz/1.0", "Home\tAssistant\xe9" + "x" * 100)
        for number, agent in enumerate(agents):
            for _ in range(number + 1):
                ask(self.port, T1, headers={"User-Agent": agent} if agent else {})
        clients = self.json()["clients"]
        shown = ("HomeAssistant\xe9" + "x" * 66, "domoticz/1.0", "")
        for reads, agent, client in zip((3, 2, 1), shown, clients):
            expected = ["127.0.0.1", agent, self.port, reads]
            self.assertEqual(expected, list(client.values())[:-1])
        self.assertEqual(3, len(clients))
        self.assertEqual("address agent port reads age".split(), list(clients[0]))

    def test_the_history_is_a_document_of_its_own(self):
        none = ecolinky.Counts()
        minutes = [ecolinky.Minute(100 * number, True, 7, none) for number in range(5)]
        publish(self.store, 1, live(), minutes=tuple(minutes))
        publish(self.store, 2, live())
        first, second = self.json("/history.json")["inputs"]
        self.assertEqual([1, 2], [first["input"], second["input"]])
        expected = [[100 * number, 7, 1] for number in range(5)]
        self.assertEqual((60, expected), (first["step"], first["minutes"]))
        self.assertTrue(0 <= first["age"] <= 60)
        self.assertEqual([], second["minutes"])
        self.assertNotIn("history", self.json()["inputs"][0])

    def test_a_head_has_16384_bytes_at_most(self):
        for size, is_read in ((16384, True), (16385, False)):
            for piece in (1000, 10000, 16384):
                with self.subTest(size=size, piece=piece):
                    head = b"x" * (size - 4) + b"\r\n\r\n"
                    stream = io.BytesIO(head + b"a body")
                    connection = mock.Mock()
                    connection.recv = lambda most: stream.read(min(most, piece))
                    read = ecolinky.read_head(connection)
                    self.assertEqual(head if is_read else None, read and read[:size])

    def test_a_head_that_is_too_long_is_refused_while_it_arrives(self):
        with socket.create_connection(("127.0.0.1", self.port), LONG) as client:
            client.sendall(b"GET /status.xml HTTP/1.1\r\nX: " + b"x" * 16384)
            self.assertIn(b" 431 ", client.recv(1000))

    def test_a_head_that_comes_in_pieces_is_answered(self):
        for line_end in (b"\r\n", b"\n"):
            with self.subTest(line_end):
                head = line_end.join([b"GET /nope HTTP/1.1", b"Host: x", b"", b""])
                with socket.create_connection(("127.0.0.1", self.port), LONG) as client:
                    for place in range(len(head)):
                        client.sendall(head[place : place + 1])
                        time.sleep(0.001)
                    self.assertIn(b" 404 ", client.recv(1000))

    def test_the_oldest_of_too_many_connections_is_closed(self):
        clients = []
        for number in range(110):  # fewer than the listen backlog
            clients.append(socket.create_connection(("127.0.0.1", self.port), LONG))
            clients[-1].sendall((b"", b"GET /sta", b"GET / HTTP/1.1\r\nHo")[number % 3])
            self.addCleanup(clients[-1].close)
        for _ in range(5):
            self.assertEqual(ask(self.port, "/status.xml").status, 200)
        for client in clients[:70]:  # each of the two ports keeps 32
            client.settimeout(LONG)
            with contextlib.suppress(ConnectionError):  # what it sent was not read
                self.assertEqual(b"", client.recv(1000))
        clients[90].settimeout(0.05)
        with self.assertRaises(socket.timeout):  # open
            clients[90].recv(1000)
        wait_for(lambda: threading.active_count() < 80)

    def test_a_slow_request_is_answered_after_70_short_ones(self):
        with socket.create_connection(("127.0.0.1", self.port), LONG) as slow:
            slow.sendall(b"GET /nope HTTP/1.1\r\n")
            for _ in range(70):
                self.assertEqual(404, ask(self.port, "/nope").status)
            slow.sendall(b"\r\n")
            self.assertIn(b" 404 ", slow.recv(1000))

    def test_a_head_has_30_seconds_in_all(self):
        now, patiences = [100.0], []
        connection = mock.Mock(settimeout=patiences.append)

        def receive(_):
            if now[0] > 130.0:
                raise socket.timeout
            now[0] += 9.0
            return b"x"

        connection.recv.side_effect = receive
        with mock.patch("time.monotonic", lambda: now[0]):
            with self.assertRaises(socket.timeout):
                ecolinky.read_head(connection)
        self.assertEqual([30.0, 21.0, 12.0, 3.0, 0.001], patiences)

    def test_a_dripping_request_is_abandoned(self):
        address = ("127.0.0.1", self.port)

        def is_ended():
            dripping.settimeout(0.05)  # a byte every 50 ms is no silence of 200 ms
            try:
                dripping.send(b"G")
                return dripping.recv(100) == b""
            except ConnectionError:
                return True

        with mock.patch("ecolinky.PATIENCE", 0.2), contextlib.ExitStack() as stack:
            silent, dripping = [
                stack.enter_context(socket.create_connection(address, LONG))
                for _ in range(2)
            ]
            wait_for(is_ended)
            self.assertEqual(b"", silent.recv(100))

    def test_discovery_reports_a_taken_port_and_gives_up(self):
        listener = mock.Mock()
        listener.bind.side_effect = OSError(errno.EADDRINUSE, "in use")
        with mock.patch("socket.socket", return_value=listener):
            with self.assertLogs("ecolinky", "WARNING") as logs:
                ecolinky.answer_discovery(ecolinky.Device("a", MAC, 4000, False))
        (line,) = logs.output
        self.assertIn("discovery, port UDP 30303 déjà pris, tout le reste marche", line)

    def test_discovery_answers_the_exact_request_like_the_device(self):
        device = ecolinky.Device("m" * 32, MAC, 65535, False)
        first, second = ("127.0.0.1", 4), ("127.0.0.1", 6)
        request, listener = b"Discover GCE Devices", mock.Mock()
        listener.recvfrom.side_effect = [
            (request, first),
            (b"Hello", ("x", 5)),
            OSError("unreachable"),
            (request, second),
            SystemExit,
        ]
        with mock.patch("socket.socket", return_value=listener):
            with self.assertRaises(SystemExit):
                ecolinky.answer_discovery(device)
        listener.bind.assert_called_once_with(("0.0.0.0", 30303))
        expected = ("m" * 32 + "\r\n" + MAC + "\r\n65535\r\n").encode()
        self.assertLessEqual(len(expected), 64)
        calls = [mock.call(expected, asker) for asker in (first, second)]
        self.assertEqual(calls, listener.sendto.call_args_list)


class LoginTests(HttpCase):
    """A server that requires a password."""

    LOGIN = "domoticz:s3cret"

    def setUp(self):
        super().setUp()
        publish(self.store, 1, live())

    def silence(self):
        """Log no warning of wrong passwords."""
        logging.getLogger("ecolinky").setLevel(logging.ERROR)
        self.addCleanup(logging.getLogger("ecolinky").setLevel, logging.NOTSET)

    @staticmethod
    def request(value):
        """Return a request with this value of the Authorization header."""
        head = b"GET /status.xml HTTP/1.1\r\nHost: x\r\nAuthorization: "
        return head + value + b"\r\n\r\n"

    def test_the_right_password_opens_every_document(self):
        token = basic(self.LOGIN)["Authorization"].split()[1]
        for path in PATHS + ("/", "/ecolinky.json"):
            with self.subTest(path):
                for scheme in ("Basic ", "basic ", "Basic  "):
                    headers = {"Authorization": scheme + token}
                    self.assertEqual(ask(self.port, path, headers=headers).status, 200)
                answer = ask(self.port, path)
                self.assertEqual(answer.status, 401, path)
                self.assertRegex(answer.headers["WWW-Authenticate"], "^Basic realm=")
                self.assertNotIn(b"response", answer.body)

    def test_wrong_passwords_are_refused_and_logged_once_an_hour(self):
        logins = ("domoticz:wrong", ":", "DOMOTICZ:s3cret", "domoticz:s3cretx")
        values = [basic(login)["Authorization"].encode("ascii") for login in logins]
        token = basic(self.LOGIN)["Authorization"].split()[1].encode("ascii")
        values += [b"Basic", b"Basic ", b"", token, b"Bearer " + token, b"Basic !!!"]
        values += [b"Basic " + bad for bad in (token[:-1], token * 2, b"\xff\xfe\xe9")]
        no_wait = mock.patch.object(ecolinky.Server, "REFUSAL_WAITS", 0.0)
        with self.assertLogs("ecolinky", "WARNING") as logs, no_wait:
            for value in values * 2:  # all are answered
                with self.subTest(value):
                    received = talk(self.port, self.request(value))
                    self.assertIn(b" 401 ", received.partition(b"\r\n")[0], value)
                    self.assertNotIn(b"T1_", received)
        self.assertEqual(1, len(logs.records))
        self.assertIn("mot de passe refusé à 127.0.0.1", logs.output[0])

    def test_only_a_wrong_password_waits_a_second(self):
        waits, wrong = [], basic("domoticz:wrong")
        self.silence()
        with mock.patch("ecolinky.time.sleep", waits.append):
            for headers, status in ((basic(self.LOGIN), 200), ({}, 401), (wrong, 401)):
                with self.subTest(status=status, headers=headers):
                    self.assertEqual(status, ask(self.port, T1, headers=headers).status)
        self.assertEqual([1.0], waits)

    def test_64_guessing_clients_do_not_keep_domoticz_out(self):
        self.silence()
        done, answers, wait = threading.Event(), [], 0.25
        waits = mock.patch.object(ecolinky.Server, "REFUSAL_WAITS", wait)
        waits.start()
        self.addCleanup(waits.stop)
        request = self.request(basic("domoticz:wrong")["Authorization"].encode())

        def guess():
            while not done.is_set():
                with contextlib.suppress(OSError):
                    answers.append(talk(self.port, request))
                done.wait(0.05)

        threads = [threading.Thread(target=guess) for _ in range(64)]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        box, polls = DomoticzClient(self.port, self.LOGIN), 0
        while polls < 6 or time.monotonic() - started < 2 * wait:
            self.assertEqual(690, box.poll()[1]["power"])
            polls += 1
        done.set()
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - started
        answered = sum(b" 401 " in answer for answer in answers)
        self.assertLessEqual(answered, 16 * (seconds / wait + 2))

    def test_a_missing_password_does_not_count_as_a_wrong_one(self):
        with self.assertLogs("ecolinky", "WARNING") as logs:
            self.assertEqual(401, ask(self.port, "/").status)
            logging.getLogger("ecolinky").warning("the only line")
        self.assertEqual(1, len(logs.records))


######## Check #########################################################################


class ProgramCase(EspCase):
    def start(self, ini, *arguments, **options):
        program = Program(ini, *arguments, **options)
        self.addCleanup(lambda: program._output.closed or program.end(signal.SIGKILL))
        return program


class CheckTests(InputCase, ProgramCase):
    def judged(self):
        findings = list(ecolinky.judge("teleinfo1", self.snapshot()))
        return ["%s %s" % (each.verdict, each.text) for each in findings]

    def test_each_fault_of_a_link_is_judged_with_its_remedy(self):
        base = dict(NGTF="BASE", LTARF="BASE", NTARF="01")
        easf = dict(EASF01="018625000", EASF02="019843000", EAST="038468000")
        spaces = encoded(standard()).replace(b"H PLEINE/CREUSE ", b"H_PLEINE/CREUSE_")
        end = "ATTENTION la fin des trames manque, dans ESPEasy mettre"
        log = "ATTENTION le journal de l'ESP se mêle à la TIC, dans ESPEasy mettre"
        replaced = "ATTENTION l'ESP remplace des espaces ou des fins de ligne"
        opto = "ATTENTION beaucoup de groupes sont abîmés, vérifier l'opto"
        never = "ÉCHEC rien ne sera transmis, il manque PAPP"
        for data, verdict in (
            (HC_FRAME, "ok ses valeurs seront transmises"),
            (as_8n1(HC_FRAME), "ATTENTION l'ESP lit en 8N1, le mettre en 7E1"),
            (HC_FRAME + ESP_LINE, log),
            (frame(HC[:-1]), end),
            (HC_FRAME[:-9], end),  # in a group
            (HC_FRAME + all_damaged(HC_FRAME), opto),
            (frame(HC[:8]), never),
            (encoded(standard(**base, **easf)), "ok dont 19843 kWh d'anciens contrats"),
            (spaces, replaced),
        ):
            with self.subTest(verdict):
                self.begin()
                self.connect(*[data] * 12, step=1.5)
                judged = self.judged()
                found = [text for text in judged if text.startswith(verdict)]
                self.assertEqual(1, len(found), judged)
                is_served = verdict not in (never, replaced)
                last = "ok ses valeurs" if is_served else "ÉCHEC"
                self.assertTrue(judged[-1].startswith(last), judged)

    def test_only_one_of_several_causes_of_loss_is_named(self):
        spoilt = all_damaged(frame(HC[4:]))
        replaced = encoded(standard()).replace(b" ", b"_")
        for data, cause in (
            (spoilt + frame(HC[:-1]), "optocoupleur"),
            (replaced, "Replace spaces"),
            (replaced[: replaced.index(b"STGE")] + b"\x03", "Replace spaces"),
        ):
            with self.heard(data, 10, cause=cause, size=len(data)):
                (warning,) = [each for each in self.judged() if each[:4] == "ATTE"]
                self.assertIn(cause, warning)

    def test_two_closed_connections_reveal_a_second_client(self):
        for count in range(2):
            self.connect(*[HC_FRAME] * 10)
            self.assertNotIn("un autre programme", "".join(self.judged()))
            self.lose(CLOSED)
            self.assertEqual(count + 1, self.snapshot().brief_connections)
            self.assertEqual(count == 1, ecolinky.is_decided(self.snapshot()))
        (only,) = self.judged()
        self.assertIn("ÉCHEC un autre programme lit cet ESP, l'arrêter", only)

    def test_a_line_that_serves_nothing_is_judged_with_its_cause(self):
        less = frame([each for each in HC if each[0] != "HCHP"])
        inactive = "sa TIC n'est pas activée, appeler Enedis ou le fournisseur"
        interrupted = "interrompt chacune de ses trames"
        damaged = "(HCHP), beaucoup de groupes sont abîmés"
        for data, intact, words in (
            (frame(HC[:1]), "ok 20 groupes intacts, 0 abîmé", inactive),
            (encoded(standard()[:1]), "ok 20 groupes intacts, 0 abîmé", inactive),
            (
                less,
                "ok 200 groupes",
                "des groupes manquent (HCHP), aucun ou presque n'est abîmé",
            ),
            (without("HCHP", HC_FRAME), "ok 200 groupes intacts, 20 abîmés", damaged),
            (HC_FRAME.replace(b"\x03", b"\x04"), "", interrupted),
            (encoded(standard()).replace(b"\x03", b"\x04"), "", interrupted),
        ):
            with self.heard(data, words=words, data=data[:30]):
                judged = self.judged()
                self.assertIn(intact, judged[0])
                self.assertIn(words, judged[-1])
                self.assertIn(words, "".join(self.said(logging.WARNING)))

    def test_a_mended_fault_is_forgotten_after_an_hour(self):
        for bad in (as_8n1(HC_FRAME), HC_FRAME + ESP_LINE, without("HCHP", HC_FRAME)):
            with self.heard(bad, case=bad[:80]):
                self.assertEqual(1, len(self.remarks()))
                self.feed(*[HC_FRAME] * 59, step=60.0)
                is_damage = bad == without("HCHP", HC_FRAME)
                self.assertEqual(not is_damage, bool(self.remarks()))
                self.feed(*[HC_FRAME] * 4, step=60.0)
                self.assertEqual([], self.remarks())
                self.feed(*[bad] * 80)
                self.assertEqual(1, len(self.remarks()))

    def test_the_check_shows_what_to_compare_with_the_meters_screen(self):
        self.connect(*[HC_FRAME] * 5)
        expected = [
            "ok 55 groupes intacts, 0 abîmé",
            "ok compteur 021728123456, tarif Heures creuses (HC..), 30 A, en cours"
            " Heures pleines, 690 VA, mode historique, monophasé",
            "ok index HCHC = 12345678 Wh",
            "ok index HCHP = 23456789 Wh",
            "ok ses valeurs seront transmises",
        ]
        self.assertEqual(expected, self.judged())

    def test_the_check_tells_that_a_dispute_takes_two_minutes(self):
        self.connect(*[HC_FRAME] * 3)
        self.feed(*[frame(changed(HC, ADCO="021728999999"))] * 20)
        words = "le compteur ou son contrat a changé, vérification pendant deux minutes"
        failure = "ÉCHEC rien ne sera transmis, " + words
        self.assertEqual(failure, self.judged()[-1])

    def test_the_check_asks_for_a_third_frame_when_no_label_is_missing(self):
        self.connect(encoded(standard()))
        snapshot = self.snapshot()
        snapshot = snapshot._replace(view=snapshot.view._replace(missing=[]))
        *_, last = ecolinky.judge("t", snapshot)
        self.assertIn("il manque une troisième trame", last.text)

    def settings(self, ini, ports=None):
        """Return the settings of an ini, with free ports if these are not given."""
        http = "\n[http]\naddress = 127.0.0.1\nport = %d\nsecond_port = %d\n"
        ports = ports or (free_port(), free_port())
        return ecolinky.parse_settings(ini + http % ports)

    def check(self, ini, ports=None, **times):
        """Return exit code and lines of --check, with these times of the reader."""
        out, settings = io.StringIO(), self.settings(ini, ports)
        quick = mock.patch.multiple(ecolinky.Reader, PAUSE=0.01, **times)
        with quick, mock.patch("sys.stdout", out):
            code = ecolinky.check(settings)
        return code, as_typed(out.getvalue())

    def test_a_good_link_is_judged_long_before_the_time_limit(self):
        started = time.monotonic()
        code, text = self.check(esp_ini(self.esp(frames(HC_FRAME)).port))
        self.assertEqual(0, code, text)
        self.assertLess(time.monotonic() - started, 15)
        self.assertIn("ok        teleinfo1 : ses valeurs seront transmises", text)

    def test_check_prints_each_line_as_soon_as_it_is_known(self):
        out, before_the_first, before_the_second = io.StringIO(), [], []

        def after(text, seen):
            def script(esp, connection):
                wait_for(lambda: text in as_typed(out.getvalue()))
                seen.extend(as_typed(out.getvalue()).splitlines())
                frames(HC_FRAME)(esp, connection)

            return script

        first = self.esp(after("je lis", before_the_first))
        second = self.esp(after("seront transmises", before_the_second))
        settings = self.settings(esp_ini(first.port, second.port))
        with mock.patch("sys.stdout", out):
            self.assertEqual(0, ecolinky.check(settings, LONG), out.getvalue())
        begun = " " * 10 + "teleinfo%d : je lis 127.0.0.1:%d, 60 secondes au plus..."
        self.assertEqual([begun % (1, first.port)], before_the_first)
        self.assertEqual(begun % (2, second.port), before_the_second[-1])
        self.assertNotIn("port ", "".join(before_the_second))
        self.assertNotIn("\r", out.getvalue())

    def test_check_shows_arriving_groups_on_a_terminal(self):
        settings = self.settings(esp_ini(self.esp(frames(HC_FRAME, every=0.02)).port))
        size = os.terminal_size((50, 24))
        with mock.patch("sys.stdout", io.StringIO()) as out:
            with mock.patch("shutil.get_terminal_size", return_value=size):
                with mock.patch.object(out, "isatty", return_value=True):
                    self.assertEqual(0, ecolinky.check(settings, LONG))
        text = as_typed(out.getvalue())
        shown = [part for part in text.split("\r") if part and "\n" not in part]
        self.assertEqual({49}, set(map(len, shown)))
        self.assertIn("groupes intacts, 0 abîmé, ADCO 0217281", "".join(shown))
        self.assertEqual("", shown[-1].strip())  # it is erased
        self.assertNotIn("ADCO", text[text.index("\n", text.rindex("\r")) :])

    def test_ctrl_c_erases_the_progress_of_check(self):
        settings = ecolinky.parse_settings(esp_ini(self.esp(once(silent=True)).port))
        with mock.patch("sys.stdout", io.StringIO()) as out:
            with mock.patch.object(out, "isatty", return_value=True):
                with mock.patch("time.sleep", side_effect=KeyboardInterrupt):
                    with self.assertRaises(KeyboardInterrupt):
                        ecolinky.check(settings, 10)
        self.assertRegex(out.getvalue(), r"\A.*au plus\.\.\.\n\r +\r\Z")

    def test_a_silent_noisy_or_contested_link_is_judged_in_time(self):
        noise = random.Random(2)
        garbage = bytes(noise.randrange(256) for _ in range(400))
        quick = dict(SILENCE=0.15, TICK=0.05)
        for script, times, words in (
            (once(silent=True), quick, "RX Receive Timeout à 0 dans ESPEasy, puis"),
            (frames(garbage), {}, "dans ESPEasy mettre 1200 en historique ou 9600"),
            (once(HC_FRAME[:60]), {}, "un autre programme lit cet ESP"),
        ):
            now, port = [0.0], self.esp(script).port

            def clock():
                """Advance by what the reader does: no machine is too slow for it."""
                is_reader = threading.current_thread() is not threading.main_thread()
                # Of 20 s at most 15, and then slowly, until the program has looked.
                now[0] += 0.1 if is_reader and now[0] < 15 else 0.01
                return now[0]

            with self.subTest(words), mock.patch("time.monotonic", clock):
                code, text = self.check(esp_ini(port), **times)
                self.assertEqual(1, code, text)
                self.assertIn(words, text.splitlines()[-1])
                self.assertNotIn("seront transmises", text)

    def test_both_inputs_are_judged(self):
        good = self.esp(frames(HC_FRAME)).port
        code, text = self.check(esp_ini(good, free_port()))
        self.assertEqual(1, code)
        self.assertIn("ok        teleinfo1 : ses valeurs seront transmises", text)
        failure = "ÉCHEC     teleinfo2 : rien ne sera transmis, l'ESP répond, mais"
        self.assertIn(failure, text)
        self.assertIn("puis host et port dans ecolinky.ini", text)  # another machine
        self.assertEqual(2, text.count("matériel Eco Devices"))
        self.assertEqual(2, text.count(" : libre"))

    def test_missing_injection_is_a_warning(self):
        for data, count in ((HC_FRAME, 1), (encoded(SUN), 0)):
            with self.subTest(warnings=count):
                port = self.esp(frames(data)).port
                more = "[teleinfo2]\ninjection = yes"
                code, text = self.check(esp_ini(port, more=more))
                self.assertEqual(0, code)
                warning = "ATTENTION teleinfo1 : injection = yes"
                self.assertEqual(count, text.count(warning))

    def test_a_taken_port_is_a_failure_unless_ecolinky_holds_it(self):
        ini = esp_ini(self.esp(frames(HC_FRAME)).port, more="relay_port = %d")
        taken = self.esp(once()).port  # another program's
        with running_server(self.store) as port:
            code, text = self.check(ini % free_port(), ports=(port, free_port()))
            self.assertEqual(0, code)
            stop = "pris par ecolinky, pour l'arrêter Ctrl-C dans sa fenêtre, sudo"
            self.assertEqual(1, text.count(stop), text)
            relay = free_port()  # the running ecolinky has closed it for now
            with mock.patch.object(
                ecolinky, "used_by_ecolinky", return_value={"port %d" % relay}
            ):
                _, text = self.check(ini % relay)
            self.assertIn("port %d : %s" % (relay, stop), text)
            code, text = self.check(ini % taken, ports=(port, free_port()))
            self.assertEqual(1, code)
            words = "port %d : déjà pris, ecolinky tourne-t-il déjà ? Sinon changer"
            self.assertIn(words % taken + " [teleinfo1] relay", text)
            code, text = self.check(ini % free_port(), ports=(taken, free_port()))
            self.assertEqual(1, code)
            self.assertIn("Sinon changer [http] port", text)
            self.assertEqual(1, text.count("Teleinfo EDF with LAN interface"))
            self.assertEqual(0, text.count("matériel Eco Devices"))

    def test_a_port_in_time_wait_counts_as_free(self):
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", 0))
            listener.listen(1)
            port = listener.getsockname()[1]
            with socket.create_connection(("127.0.0.1", port), LONG) as client:
                accepted, _ = listener.accept()
                accepted.close()  # the side that closes first stays in TIME_WAIT
                client.recv(1)
        with socket.socket() as probe, self.assertRaises(OSError):
            probe.bind(("127.0.0.1", port))
        found = ecolinky.check_port("[http] port", "127.0.0.1", port)
        self.assertEqual(("ok", "libre"), (found.verdict, found.text))

    def test_the_address_of_another_machine_is_a_failure(self):
        ini = esp_ini(self.esp(frames(HC_FRAME)).port)
        settings = ecolinky.parse_settings(ini + "[http]\naddress = 192.0.2.1\n")
        with mock.patch("sys.stdout", io.StringIO()) as out:
            self.assertEqual(1, ecolinky.check(settings, LONG))
        words = "ÉCHEC     port 4000.*de cette machine, mettre 0.0.0.0"
        self.assertRegex(out.getvalue(), words)
        self.assertNotIn("?", out.getvalue())

    def used(self, port, address="127.0.0.1", login=("", "")):
        settings = ecolinky.HttpSettings(address, port, 4001, *login)
        return ecolinky.used_by_ecolinky(settings)

    def test_the_running_ecolinky_is_asked_at_the_configured_address(self):
        refused = mock.patch.object(ecolinky, "HTTPConnection", side_effect=OSError)
        with refused as asked:
            for address, host in (("0.0.0.0", "127.0.0.1"), ("127.0.0.2", "127.0.0.2")):
                with self.subTest(address=address):
                    self.used(4000, address)
                    self.assertEqual(host, asked.call_args[0][0])

    def test_another_program_on_the_port_is_not_taken_for_ecolinky(self):
        nginx = b"HTTP/1.0 %s\r\nServer: nginx\r\n\r\n"
        ssh = b"SSH-2.0-OpenSSH_9.2\r\n"
        for answer in (ssh, nginx % b"404 Not Found", nginx % b"200 OK"):
            with self.subTest(answer):
                self.assertEqual(set(), self.used(self.esp(once(answer)).port), answer)

    def test_any_answer_of_another_ecolinky_is_survived(self):
        connection = mock.Mock()
        answer = connection.getresponse.return_value
        answer.getheader.return_value = "ecolinky/1.1.0"

        def used(content):
            answer.read.return_value = json.dumps(content).encode()
            with mock.patch.object(ecolinky, "HTTPConnection", return_value=connection):
                return self.used(4002)

        # Version 1.1.0 had no relay_port.
        old = {"ports": [4000], "inputs": [{"source": "192.168.1.50:8888"}]}
        all_used = {"port 4000", "port 4002", "192.168.1.50:8888"}
        self.assertEqual(all_used, used(old))
        leaves = [None, 1, 1.5, "x", True, [], {}]
        contents = list(leaves)
        for first, second in itertools.product(leaves, repeat=2):
            one = {"source": first, "relay_port": second}
            contents.append({"ports": first, "inputs": second})
            contents.append({"ports": [first], "inputs": [second]})
            contents.append({"ports": [4000], "inputs": [one]})
        for content in contents:
            with self.subTest(content):
                self.assertIn("port 4002", used(content))
        head = b"HTTP/1.0 200 OK\r\nServer: ecolinky/1.1.0\r\n\r\n"
        for content in (b"no JSON", b"[" * 100000, b"\xff", json.dumps(old).encode()):
            with self.subTest(content[:20]):
                port = self.esp(once(head + content)).port
                self.assertIn("port %d" % port, self.used(port))

    def test_an_ecolinky_that_reads_the_esp_is_named(self):
        for first in (HC_FRAME[:60], b"Port already in use\r\n", b""):
            esp = self.esp(once(first))
            publish(self.store, source="127.0.0.1:%d" % esp.port)
            with running_server(self.store) as port:
                code, text = self.check(esp_ini(esp.port), ports=(port, free_port()))
            self.assertEqual(1, code)
            self.assertIn("pris par ecolinky", text)
            self.assertIn("tourne déjà et lit cet ESP", text.splitlines()[-1])

    def test_domoticz_gets_an_address_that_other_machines_can_use(self):
        for host in ("127.0.0.1", "localhost", "127.1.2.3"):
            with self.subTest(host):
                settings = ecolinky.parse_settings("[teleinfo1]\nhost = " + host)
                self.assertNotRegex(ecolinky.own_address(settings), "^127")

    def test_each_error_of_a_port_has_its_remedy(self):
        taken = "déjà pris, ecolinky tourne-t-il déjà ? Sinon changer K"
        other = "cette adresse n'est pas celle de cette machine"
        root = "interdit, au-dessous de 1024 ils sont réservés à root, mettre 8889 à K"
        address = ", mettre 0.0.0.0 à [http] address"
        for error, words in (
            (OSError(errno.EADDRINUSE, ""), taken),
            (OSError(errno.EADDRNOTAVAIL, ""), other + address),
            (socket.gaierror(-3, ""), "ce nom est inconnu" + address),
            (PermissionError(errno.EACCES, ""), root),
            (OSError(errno.EIO, ""), f"erreur {errno.EIO} du système, changer K"),
        ):
            with self.subTest(words):
                with mock.patch("socket.socket.bind", side_effect=error):
                    found = ecolinky.check_port("K", "h", 80)
                    with self.assertRaises(SystemExit) as caught:
                        with ecolinky.opening("K", 80):
                            socket.socket.bind()
                self.assertEqual((ecolinky.FAILED, words), (found.verdict, found.text))
                is_sentence = words.startswith(("cette", "ce nom", "erreur"))
                about = "port 80, " if is_sentence else "le port 80 est "
                self.assertEqual("ecolinky : " + about + words, str(caught.exception))

    def test_a_long_line_is_broken_at_words_on_a_terminal(self):
        size = os.terminal_size((60, 24))
        line = ecolinky.Finding(ecolinky.FAILED, "teleinfo1", "x" * 20 + " mot" * 40)
        with mock.patch("sys.stdout", io.StringIO()) as out:
            ecolinky.show(line)
        self.assertEqual(line.line + "\n", out.getvalue())
        with mock.patch("sys.stdout", io.StringIO()) as out:
            with mock.patch("shutil.get_terminal_size", return_value=size):
                with mock.patch.object(out, "isatty", return_value=True):
                    ecolinky.show(line)
        text = out.getvalue().rstrip("\n")
        self.assertEqual(line.line.split(), text.split())
        self.assertLess(max(map(len, text.splitlines())), 60)
        self.assertEqual(line.line, re.sub(r"\n +", " ", text))
        self.assertGreater(len(text.splitlines()), 3)

    def test_the_ports_of_a_running_ecolinky_are_recognised(self):
        publish(self.store, 1, live())
        with running_server(self.store) as port:
            ports = {"port %d" % each for each in (port, 4001, 8889)}
            self.assertLessEqual(ports, self.used(port))
        with running_server(self.store, "a:b") as port:  # another password
            with mock.patch.object(ecolinky.Server, "REFUSAL_WAITS", 0.0):
                self.assertEqual({"port %d" % port}, self.used(port, login=("a", "c")))


######## Demo ##########################################################################


class DemoTests(unittest.TestCase):
    def test_indexes_grow_in_an_hour_by_the_energy_of_the_power(self):
        for mode in MODES:
            with self.subTest(mode):
                meter = ecolinky.DemoMeter(mode)
                (first,) = labels_of(meter.frame(0.0))
                drawn = injected = 0.0
                for now in range(2, 3601, 2):
                    data, power = meter.frame(float(now)), meter.power(float(now))
                    drawn += 2 * max(0, power) / 3600
                    injected += 2 * max(0, -power) / 3600
                (last,) = labels_of(data)
                indexes = [
                    each for each in first if re.match("BASE|HC|BBR|EA[SI]T", each)
                ]
                growth = {each: int(last[each]) - int(first[each]) for each in indexes}
                self.assertAlmostEqual(injected, growth.pop("EAIT", 0), delta=2)
                self.assertAlmostEqual(drawn, sum(growth.values()), delta=2)
                self.assertEqual(mode == "standard", injected > 100)

    def test_each_demonstration_passes_the_guard_for_an_hour(self):
        for mode in MODES:
            with self.subTest(mode):
                demo, meter, powers = ecolinky.DemoMeter(mode), ecolinky.Meter(), set()
                for now in range(5000, 8600, 20):
                    data = demo.frame(now)
                    for second in range(3):
                        meter.feed(data, now + second)
                    labels = meter.labels(now + 2)
                    drawn = int(labels.get("PAPP") or labels.get("SINSTS"))
                    power = drawn - int(labels.get("SINSTI", 0))
                    self.assertEqual(demo.power(now), power)
                    powers.add(power)
                self.assertFalse(any(damaged_of(meter).values()))
                self.assertEqual(0, meter.guard.implausible)
                self.assertEqual(540, meter.counts().frames)
                self.assertEqual(mode == "standard", min(powers) < 0)
                self.assertIsNotNone(meter.fields(now))

    def test_the_first_index_does_not_depend_on_the_uptime(self):
        for mode, label in (("three-phase", "BASE"), ("standard", "EAST")):
            with self.subTest(mode):
                begun = []
                for start in (1.0, 900001.0):
                    demo, decoder = ecolinky.DemoMeter(mode), ecolinky.Decoder()
                    for step in range(3):
                        sent = decoder.feed(demo.frame(start + 2 * step))
                        begun.append(int(sent[0].groups[label].data))
                self.assertEqual(begun[0], begun[3])
                self.assertIn(max(begun) - begun[0], range(10))

    def test_a_demonstration_is_reachable_from_this_machine_only(self):
        settings = ecolinky.start_demo("tempo", ecolinky.Settings())
        self.assertEqual("127.0.0.1", settings.teleinfo1.host)
        with self.assertRaises(OSError):
            socket.create_connection(
                ("127.0.0.2", settings.teleinfo1.port), LONG
            ).close()

    def test_each_demonstration_serves_its_values_and_its_injection(self):
        options = {"tempo": "TEMPO", "three-phase": "BASE"}
        for mode in MODES:
            with self.subTest(mode):
                program = DEMOS[mode]
                box = DomoticzClient(program.port)
                wait_for(program.answers)
                seen = wait_for(lambda: box.poll().get(1))
                self.assertEqual(seen["option"], options.get(mode, "HC"))
                self.assertEqual(seen["phases"], 3 if mode == "three-phase" else 1)
                second = DomoticzClient(program.second)
                if mode == "standard":
                    injected = wait_for(lambda: second.poll().get(1))
                    self.assertLess(4567889, injected["indexes"]["BASE"])
                else:
                    self.assertEqual({}, second.poll())


######## Main ##########################################################################


class MainTests(ProgramCase):
    def popen(self, command, **options):
        """Start a command with its output piped; it ends with the test."""
        process = subprocess.Popen(command, stdout=subprocess.PIPE, **options)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    def run_here(self, *arguments, encoding="utf-8"):
        """Run the program in this process; return its exit code and output."""
        out, errors = [io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2)]
        with mock.patch("sys.argv", [PROGRAM, *arguments]):
            with mock.patch("sys.stdout", out), mock.patch("sys.stderr", errors):
                try:
                    code = ecolinky.run()
                except SystemExit as end:
                    code = end.code
        text = out.buffer.getvalue() + errors.buffer.getvalue()
        return code, as_typed(text.decode(encoding))

    def test_version_and_help_are_printed_in_french(self):
        expected = "ecolinky %s\n" % ecolinky.__version__
        self.assertEqual(self.run_here("--version"), (0, expected))
        code, out = self.run_here("--help")
        self.assertEqual(code, 0)
        for option in ("--config", "--demo", "--check", "--version", "--verbose"):
            with self.subTest(option):
                self.assertIn(option, out)
        self.assertNotRegex(out, "show|options:|optional")

    def test_a_wrong_command_line_is_one_line_and_exit_code_2(self):
        unknown = ["--nope", "--demo nuclear", "--vers", "ecolinky.ini"]
        for line in [*unknown, "--config", "--config nowhere.ini"]:
            with self.subTest(line):
                code, out = self.run_here(*line.split())
                self.assertEqual(code, 2, line)
                self.assertRegex(out, r"^ecolinky : [^\n]+\n$")
                self.assertNotRegex(out, "argument|error|No such")
                self.assertLessEqual(out.count(" : "), 1)

    def test_the_exit_code_of_a_failed_check_is_1(self):
        ports = (free_port(), free_port())
        ini = esp_ini(free_port(), more="[http]\nport = %d\nsecond_port = %d\n" % ports)
        with tempfile.TemporaryDirectory() as folder, mock.patch("ecolinky.start_log"):
            path = written(ini, folder, "ecolinky.ini")
            code, text = self.run_here("--check", "--config", path)
        failure = "ÉCHEC     teleinfo1 : rien ne sera transmis, l'ESP répond"
        self.assertIn(failure, text)
        self.assertEqual(1, code)

    def test_help_and_errors_are_printed_under_any_encoding(self):
        for encoding in ("latin9", "ascii"):
            for line, expected in (("--help", 0), ("--config é.ini", 2)):
                with self.subTest(line, encoding=encoding):
                    code, out = self.run_here(*line.split(), encoding=encoding)
                    self.assertEqual((expected, True), (code, "ecolinky" in out))

    def test_the_log_is_printed_under_any_encoding(self):
        ascii_only = dict(LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")
        environments = (dict(PYTHONIOENCODING="latin9"), ascii_only)
        ini = esp_ini(free_port())
        # All are started before any is awaited, so that they run in parallel.
        programs = [self.start(ini, "--verbose", **each) for each in environments]
        words = ("transmise", " info ecolinky", " ATTENTION teleinfo1", "tail ")
        for program, environment in zip(programs, environments):
            with self.subTest(**environment):
                wait_for(program.answers)
                wait_for(lambda: all(each in program.output() for each in words))
                self.assertNotRegex(program.output(), "[?]: |n[?]est")
                code, _, out = program.end()
                self.assertEqual((code, "Traceback" in out), (0, False), out)

    def test_a_taken_port_is_one_line_and_exit_code_1(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen(1)
            port, programs = taken.getsockname()[1], {}
            second = "[teleinfo2]\ninjection = yes\n"
            relay = "[teleinfo1]\nrelay_port = %d\n" % port
            for key, ini, ports in (
                ("[http] port", second, [port, free_port()]),
                ("[http] second_port", second, [free_port(), port]),
                ("[teleinfo1] relay_port", relay, [free_port(), free_port()]),
            ):
                with mock.patch(__name__ + ".free_port", side_effect=ports):
                    programs[key] = self.start(ini, "--demo")
            line = "ecolinky : le port %d est déjà pris, ecolinky tourne-t-il déjà ?"
            for key, program in programs.items():
                with self.subTest(key):
                    self.assertEqual(program.process.wait(LONG), 1)
                    expected = line % port + " Sinon changer %s\n" % key
                    self.assertEqual(expected, program.output())

    def is_discovered(self, program, name):
        """Return whether it answers discovery, or another program has the port."""
        if "discovery, port UDP 30303 déjà pris" in program.output():
            return True
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            asker.settimeout(0.5)
            try:
                asker.sendto(b"Discover GCE Devices", ("127.0.0.1", 30303))
                return name in asker.recv(100)
            except OSError:
                return False

    def test_sigint_and_sigterm_end_the_program_with_exit_code_0(self):
        discovery = "[ecodevice]\ndiscovery = yes\n"
        silent = esp_ini(self.esp(once(silent=True)).port, more=discovery)
        relay = "[teleinfo1]\nrelay_port = %d\n" % free_port()
        reader, demo = self.start(silent), self.start(relay, "--demo")
        for number, program in ((signal.SIGINT, reader), (signal.SIGTERM, demo)):
            with self.subTest(number=number):
                wait_for(program.answers)
                with socket.create_connection(("127.0.0.1", program.port), LONG):
                    code, _, text = program.end(number)
                self.assertEqual(program is demo, "(compteur simulé)" in text)
                self.assertEqual(code, 0, text)
                self.assertNotIn("Traceback", text)
                self.assertIn("ecolinky s'arrête", text)

    def test_a_second_signal_kills_the_program_at_once(self):
        # os.write(): a signal must not find a half-written line of print().
        code = (
            "import ecolinky, os, signal, time\n"
            "def hold_up(text):\n"
            "    os.write(1, text)\n"
            "    while True: time.sleep(0.01)\n"
            "signal.signal(signal.SIGTERM, ecolinky.stop)\n"
            "try: hold_up(b'ready\\n')\n"
            "finally: hold_up(b'stopping\\n')\n"
        )
        numbers, command = (signal.SIGTERM, signal.SIGINT), [sys.executable, "-c", code]
        processes = [self.popen(command, cwd=HERE) for _ in numbers]
        for number, process in zip(numbers, processes):
            with self.subTest(number):
                self.assertEqual(b"ready\n", process.stdout.readline())
                process.terminate()
                self.assertEqual(b"stopping\n", process.stdout.readline())
                process.send_signal(number)
                self.assertEqual(-number, process.wait(LONG))

    def test_a_signal_stops_the_program_whatever_its_threads_do(self):
        code = (
            "import ecolinky, os, signal, sys, weakref\n"
            "class Thing: pass\n"
            "def hit(_):\n"
            "    os.kill(os.getpid(), signal.SIGTERM)\n"
            "    for _ in range(10000): pass\n"
            "def process_request(self, request, client):\n"
            "    thing = Thing()\n"
            "    reference = weakref.ref(thing, hit)\n"
            "    del thing\n"
            "ecolinky.Server.process_request = process_request\n"
            "sys.exit(ecolinky.run())\n"
        )
        program = self.start("", "--demo", code=code)
        wait_for(lambda: "répond sur" in program.output())
        with socket.create_connection(("127.0.0.1", program.port)):
            self.assertEqual(0, program.process.wait(LONG), program.output())

    @unittest.skipUnless(PRCTL, "Linux only")
    def test_interrupted_tests_leave_no_program_behind(self):
        code = (
            "import test_ecolinky, time\n"
            "program = test_ecolinky.Program('', '--demo')\n"
            "test_ecolinky.wait_for(program.answers)\n"
            "print(program.port, flush=True)\n"
            "time.sleep(60)\n"
        )
        process = self.popen([sys.executable, "-c", code], cwd=HERE)
        port = int(process.stdout.readline())
        self.assertEqual(200, ask(port, "/status.xml").status)
        process.kill()

        def is_gone():
            try:
                return not ask(port, "/status.xml")
            except ConnectionRefusedError:
                return True

        wait_for(is_gone)

    def test_the_settings_take_effect(self):
        esps = [self.esp(frames(data, 0.02)) for data in (HC_FRAME, EJP_FRAME)]
        relay = free_port()
        with_relay = "timeout = 600\nrelay_port = %d" % relay
        ini = esp_ini(*[esp.port for esp in esps]).replace("timeout = 5", with_relay, 1)
        ini += "[ecodevice]\nhostname = maison\nmac = 02-AB-cd-10-00-01\n"
        ini += "discovery = yes\n[log]\nlevel = warning\n"
        login = "username = moi\npassword = s3cret\n"
        program = self.start(ini, http=login, code=HASTY_PROGRAM)
        wait_for(program.answers)
        wait_for(lambda: self.is_discovered(program, b"maison"))

        def get(port, path):
            return ask(port, path, headers=basic("moi:s3cret"))

        for port, mac, name in (
            (program.port, "02:ab:cd:10:00:01", "maison"),
            (program.second, "02:ab:cd:10:00:00", "maison-2"),
        ):
            with self.subTest(name):
                self.assertEqual(401, ask(port, "/status.xml").status)
                text = get(port, "/status.xml").body.decode()
                self.assertIn("<config_mac>%s<" % mac, text)
                self.assertIn("<config_hostname>%s<" % name, text)
                self.assertIn("<http_port>%d<" % port, text)
        wait_for(DomoticzClient(program.second, "moi:s3cret").poll)
        content = json.loads(get(program.port, "/ecolinky.json").body.decode())
        self.assertEqual([program.port, program.second], content["ports"])
        relays = [each["relay_port"] for each in content["inputs"]]
        self.assertEqual([relay, None], relays)
        with socket.create_connection(("127.0.0.1", relay), LONG) as reader:
            self.assertEqual(b"\x02", reader.recv(1))
        for port in (program.port, program.second, relay):
            with self.subTest(port=port):
                with self.assertRaises(OSError):  # [http] address is 127.0.0.1 alone
                    socket.create_connection(("127.0.0.2", port), LONG).close()
        for esp in esps:
            esp.close()
        wait_for(lambda: get(program.port, T2).status == 503)  # after 5 s, not 600
        self.assertEqual(200, get(program.port, T1).status)
        code, _, text = program.end()
        self.assertEqual(0, code)
        self.assertNotIn(" info ", text)

    def test_programs_on_one_machine_show_different_boxes(self):
        programs, macs = [DEMOS[mode] for mode in MODES], set()
        for program in programs:
            wait_for(program.answers)
            for port in (program.port, program.second):
                text = ask(port, "/status.xml").body.decode()
                macs.add(re.search("<config_mac>(.*)</config_mac>", text).group(1))
            self.assertIn(ecolinky.lasting_mac(program.port), macs)
        self.assertEqual(2 * len(programs), len(macs))

    def test_the_ini_is_found_beside_the_program(self):
        with tempfile.TemporaryDirectory() as folder:
            copy = shutil.copy(PROGRAM, folder)
            written("[teleinfo1]\nhots = x\n", folder, "ecolinky.ini")
            with mock.patch("sys.stderr", io.StringIO()) as out:
                self.assertEqual(2, self.run_copy(copy, "--check"))
        self.assertIn("clé inconnue", out.getvalue())

    def run_copy(self, path, *arguments):
        """Run a copy of the program in this process; return what it exits with."""
        with mock.patch("sys.argv", [path, *arguments]):
            with self.assertRaises(SystemExit) as end:
                runpy.run_path(path, run_name="__main__")
        return end.exception.code

    def test_a_truncated_copy_of_the_program_refuses_to_run(self):
        content = content_of("ecolinky.py")
        begin = content.index(b"######## Decode")
        lines = [each.start() for each in re.finditer(b"\n\n\nde", content[begin:])]
        with tempfile.TemporaryDirectory() as folder:
            # With valid syntax: between two functions, and after all but three bytes.
            for size in [begin + place for place in lines[::60]] + [len(content) - 3]:
                with self.subTest(size=size):
                    copy = written(content[: size + 1], folder, "ecolinky.py")
                    expected = r"\Aecolinky : .* est incomplet, [^\n]*\Z"
                    self.assertRegex(self.run_copy(copy, "--version"), expected)

    def test_closed_or_full_outputs_do_not_stop_the_program(self):
        esp, runs = self.esp(frames(HC_FRAME)), []
        usual = {**os.environ, "PYTHONUNBUFFERED": ""}  # else nothing is left at exit
        with tempfile.TemporaryDirectory() as folder:
            for redirection, argument, code in (
                (">&- 2>&-", "--check", 0),
                ("2>&- | head -1", "--check", 0),
                (">/dev/full", "--check", 0),
                (">/dev/full 2>/dev/full", "--help", 0),
                ("2>/dev/full", "--nope", 2),
            ):
                ini = esp_ini(esp.port, more="[http]\nport = %d" % free_port())
                path = written(ini, folder, "%d.ini" % len(runs))
                shell = ["bash", "-c", '"$0" "$@" ' + redirection]
                command = [*shell, sys.executable, PROGRAM, "--config", path, argument]
                process = self.popen(command, stderr=subprocess.PIPE, env=usual)
                runs.append((redirection, process, code))
            for redirection, process, code in runs:
                with self.subTest(redirection):
                    _, text = process.communicate(timeout=LONG)
                    self.assertEqual(code, process.returncode)
                    self.assertNotRegex(text, b"Traceback|Exception")

    def test_the_program_runs_in_an_editor_with_streams_of_its_own(self):
        out = io.StringIO()
        with mock.patch("sys.argv", [PROGRAM, "--version"]):
            with mock.patch("sys.stdout", out), mock.patch("sys.stderr", out):
                with self.assertRaises(SystemExit) as end:
                    ecolinky.run()
        self.assertEqual(0, end.exception.code)
        self.assertEqual("ecolinky %s\n" % ecolinky.__version__, out.getvalue())

    def test_an_unread_log_blocks_neither_the_answers_nor_the_exit(self):
        with tempfile.TemporaryDirectory() as folder:
            port = free_port()
            ini = "[http]\naddress = 127.0.0.1\nport = %d\n" % port
            path = written(ini, folder, "ecolinky.ini")
            command = [sys.executable, PROGRAM, "--config", path, "--demo", "--verbose"]
            process = self.popen(command, stderr=subprocess.PIPE)
            wait_for(lambda: ask(port, "/status.xml").status == 200)
            long_path = "/" + "x" * 15000
            # More than the 64 KiB of a pipe, in long lines and then in short ones.
            for path in [long_path] * 80 + ["/status.xml"] * 100:
                self.assertIn(ask(port, path).status, (200, 404))
            process.terminate()
            self.assertEqual(0, process.wait(LONG))
            text = process.stderr.read().decode()
        self.assertIn("détail", text)  # written before the pipe was full
        self.assertNotIn("Traceback", text)

    def test_ctrl_c_ends_check_without_a_message(self):
        ini = esp_ini(self.esp(once(silent=True)).port)
        inherited = (signal.SIG_DFL, signal.SIG_IGN)  # SIG_IGN: as after nohup
        programs = [self.start(ini, "--check", on_sigint=each) for each in inherited]
        for program in programs:
            wait_for(lambda: "je lis" in program.output())
            code, seconds, text = program.end(signal.SIGINT)
            self.assertEqual((1, 1), (code, len(text.splitlines())), text)
            self.assertLess(seconds, 5)

    def test_a_signal_that_interrupts_a_line_of_the_log_ends_the_program(self):
        code = (
            "import ecolinky, os, signal\n"
            "signal.signal(signal.SIGTERM, ecolinky.stop)\n"
            "ecolinky.start_log('info')\n"
            "real = ecolinky.tell\n"
            "def tell(text, stream):\n"
            "    for _ in range(20000): real(text, stream)\n"
            "ecolinky.tell = tell\n"
            "os.write(1, b'ready\\n')\n"
            "ecolinky.log.info('x')\n"
        )
        command = [sys.executable, "-c", code]
        process = self.popen(command, stderr=subprocess.PIPE, cwd=HERE)
        self.assertEqual(b"ready\n", process.stdout.readline())
        process.stderr.readline()  # it writes now, and fills the pipe
        process.terminate()
        text = process.stderr.read()
        self.assertNotIn(b"Traceback", text)
        self.assertEqual(0, process.wait(LONG))

    def test_check_listens_long_enough_for_a_1200_baud_meter(self):
        program = DEMOS["check"]
        self.assertEqual(0, program.process.wait(LONG), program.output())
        self.assertIn("ses valeurs seront transmises", program.output())

    def test_the_program_waits_for_an_address_it_does_not_have_yet(self):
        errors = [OSError(errno.EADDRNOTAVAIL, "?"), socket.gaierror(-2, "Unknown")]
        real = socket.socket.bind

        def bind(probe, _):
            if errors:
                raise errors.pop()
            return real(probe, ("127.0.0.1", 0))

        with mock.patch("socket.socket.bind", bind), mock.patch("time.sleep") as sleep:
            with self.assertLogs("ecolinky", "WARNING") as logs:
                ecolinky.wait_for_address("192.168.1.10")
        self.assertEqual((2, 1), (sleep.call_count, len(logs.records)))
        words = "192.168.1.10 n'est pas celle de cette machine, mettre 0.0.0.0"
        self.assertIn(words, logs.output[0])

    def test_two_meters_lost_and_found_again_never_mix_in_domoticz(self):
        lines = [frames(HC_FRAME, 0.02), frames(EJP_FRAME, 0.02)]
        first, second = [self.esp(line) for line in lines]
        ini = esp_ini(first.port, second.port, more="[ecodevice]\nhostname = maison\n")
        program = self.start(ini, code=HASTY_PROGRAM)  # it would wait for 5 s and 3 s
        wait_for(program.answers)
        boxes = [DomoticzClient(program.port), DomoticzClient(program.second)]
        for box in boxes:
            wait_for(box.poll)
        first.close()
        wait_for(lambda: not boxes[0].poll() and boxes[1].poll())
        self.esp(lines[0], port=first.port)
        second.close()
        wait_for(lambda: not boxes[1].poll() and boxes[0].poll())
        self.esp(lines[1], port=second.port)
        wait_for(lambda: boxes[1].poll() and boxes[0].poll())
        self.assertEqual([box.hostname for box in boxes], ["maison", "maison-2"])
        self.assertEqual([box.meters for box in boxes], [{HC[0][1]}, {EJP[0][1]}])
        code, _, text = program.end()
        self.assertEqual((code, "Traceback" in text), (0, False), text)

    def test_a_line_of_the_log_has_a_thousand_characters_at_most(self):
        with tempfile.TemporaryFile("w+") as file, mock.patch("sys.stderr", file):
            record = logging.LogRecord("x", logging.INFO, "", 0, "x" * 5000, None, None)
            with mock.patch("ecolinky.select.select", return_value=([], [file], [])):
                ecolinky.LogHandler().emit(record)
            file.seek(0)
            self.assertEqual(1001, len(file.read()))


######## README ########################################################################


class ReadmeTests(unittest.TestCase):
    def setUp(self):
        self.text = content_of("README.md").decode("utf-8")

    def test_the_readme_begins_with_the_two_commands(self):
        for command in ("python3 ecolinky.py --demo", "python3 -m unittest"):
            with self.subTest(command):
                self.assertIn(command, self.text.splitlines()[:25])

    def quoted(self):
        """Return the words of the program that the troubleshooting table quotes."""
        table = self.text.partition("## Ça ne marche pas")[2].partition("\n## ")[0]
        rows = re.findall(r"(?m)^\| (`.*?`) \|", table)
        return re.findall("`(.+?)`", " ".join(rows))

    def test_the_troubleshooting_table_quotes_the_program(self):
        tree = ast.parse(content_of("ecolinky.py"))
        said = " ".join(
            node.value if hasattr(node, "value") else node.s  # 3.7: ast.Str
            for node in ast.walk(tree)
            if type(node).__name__ in ("Str", "Constant")
            and isinstance(node.value if hasattr(node, "value") else node.s, str)
        )
        self.assertGreater(len(self.quoted()), 20)
        for words in self.quoted():
            with self.subTest(words):
                self.assertTrue(words in said)

    def test_each_cause_that_the_program_names_is_in_the_table_by_its_words(self):
        names = vars(ecolinky).values()
        reasons = [each for each in names if isinstance(each, ecolinky.Reason)]
        causes = [each.template for each in reasons if each.station]
        causes.append(ecolinky.OTHER_READER)
        causes.append(ecolinky.words_of(socket.gaierror(-2, "")))
        for number in (errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL):
            causes.append(ecolinky.SYSTEM_ERRORS[number])
        self.assertGreater(len(causes), 30)
        for cause in causes:
            with self.subTest(cause):
                self.assertTrue(any(words in cause for words in self.quoted()))

    def test_the_readme_shows_the_real_output_of_check(self):
        shown = self.text.partition("ecolinky.py --check\n```")[2].split("```")[1]
        meter = ecolinky.Meter()
        for now in range(5):
            meter.feed(HC_FRAME, float(now))
        printed = list(ecolinky.summary(meter.view(5.0), meter.fields(5.0)))
        printed += ["55 groupes intacts, 0 abîmé", "ses valeurs seront transmises"]
        printed += [ecolinky.READING % ("192.168.1.50", 8888, 20), "libre"]
        printed += ["matériel Eco Devices, adresse 192.168.1.10, port 4000"]
        for line in shown.strip("\n").splitlines():
            words = as_typed(line).partition(" : ")[2]
            with self.subTest(words):
                if not words.startswith("compteur"):  # power and period change
                    self.assertIn(words, printed)
        self.assertEqual(len(printed), len(shown.strip("\n").splitlines()))

    @unittest.skipUnless(IS_CLONE, "five files alone have no form")
    def test_the_issue_form_blanks_the_number_of_the_meter(self):
        form = content_of(".github", "ISSUE_TEMPLATE", "compteur.yml").decode("utf-8")
        (command,) = re.findall("(?m)^ +(LC_ALL=C sed .*)$", form)
        for mode in MODES:
            with self.subTest(mode):
                data = ecolinky.DemoMeter(mode).frame(5.0) * 2
                with tempfile.TemporaryDirectory() as folder:
                    name = written(data, folder, "compteur.txt")
                    subprocess.run(command, shell=True, cwd=folder, check=True)
                    blanked = content_of(name)
                numbers = re.findall(rb"(?:ADCO|ADSC|PRM)[ \t](\d+)", data)
                for number in numbers:
                    data = data.replace(number, b"0" * len(number))
                self.assertEqual((data, True), (blanked, len(numbers) >= 2), mode)

    def test_the_readme_links_to_no_invented_address(self):
        for found in re.findall(r"https?://([\w.:-]+)", self.text):
            with self.subTest(found):
                self.assertRegex(found, r"^(192\.168\.1\.10|127\.0\.0\.1|localhost)")

    def test_each_link_of_the_readme_leads_somewhere(self):
        headings = re.findall("(?m)^#+ (.*)$", self.text)
        words = [re.sub(r"[^\w -]", "", heading.lower()) for heading in headings]
        anchors = {each.replace(" ", "-") for each in words}
        links = re.findall(r"\]\(([^)]+)\)", self.text)
        self.assertGreater(len(links), 8)
        for link in links:
            with self.subTest(link):
                if link.startswith("#"):
                    self.assertIn(link[1:], anchors)
                elif IS_CLONE or not link.startswith("."):
                    self.assertTrue(os.path.exists(os.path.join(HERE, link)))


@unittest.skipUnless(os.path.exists("/bin/sh"), "no shell to paste into")
class PastedTests(unittest.TestCase):
    """The README's blocks, as a terminal runs them, in a home and a PATH of their own.

    No block reaches this machine: its `sudo` and `pkill` only fail.
    """

    STAND_INS = {
        "sudo": "echo Unit file ecolinky.service does not exist. >&2; exit 1",
        "pkill": "exit 1",
        "python3": 'exec %s "$@"' % sys.executable,
        **{name: 'exec %s "$@"' % shutil.which(name) for name in ("grep", "mv", "rm")},
    }

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.home = folder.name
        self.tools = os.path.join(self.home, "tools")
        os.mkdir(self.tools)
        for name, command in self.STAND_INS.items():
            path = written("#!/bin/sh\n%s\n" % command, self.tools, name)
            os.chmod(path, 0o700)

    def paste(self, words):
        """Return what the one block that has these words prints, errors included."""
        readme = content_of("README.md").decode("utf-8")
        blocks = re.findall("(?ms)^```\n(.*?)^```$", readme)
        (block,) = [block for block in blocks if words in block]
        home = dict(cwd=self.home, env={"HOME": self.home, "PATH": self.tools})
        piped = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        command = ["/bin/sh", "-c", block]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, **home, **piped)
        return done.stdout.decode()

    def install(self, name, size=None):
        """Put the program's first bytes, or all of them, into ~/ecolinky."""
        folder = os.path.join(self.home, "ecolinky")
        os.makedirs(folder, exist_ok=True)
        written(content_of("ecolinky.py")[:size], folder, name)

    def installed(self):
        return sorted(os.listdir(os.path.join(self.home, "ecolinky")))

    def test_an_update_pasted_twice_prints_its_version_once(self):
        self.install("ecolinky.py")
        self.install("ecolinky.new")
        self.assertEqual(ecolinky.VERSION + "\n", self.paste("ecolinky.new --version"))
        self.assertEqual("", self.paste("ecolinky.new --version"))
        self.assertEqual(["ecolinky.old", "ecolinky.py"], self.installed())

    def test_an_update_cut_short_leaves_the_old_program_in_place(self):
        whole = os.path.getsize(PROGRAM)
        self.install("ecolinky.py")
        for size in (1000, whole // 2, whole - 100):
            with self.subTest(size=size):
                self.install("ecolinky.new", size)
                said = self.paste("ecolinky.new --version")
                self.assertNotIn(ecolinky.VERSION, said)
                self.assertNotEqual("", said)
                self.assertEqual(["ecolinky.new", "ecolinky.py"], self.installed())

    def test_uninstalling_what_is_not_installed_prints_nothing(self):
        self.install("ecolinky.py")
        for _ in range(2):
            self.assertEqual("", self.paste("rm -rf ~/ecolinky"))
        self.assertFalse(os.path.exists(os.path.join(self.home, "ecolinky")))


######## Clients of the Eco-Devices: as tests imitate them, and the real ones ##########


class DomoticzCase(HttpCase):
    def after(self, *sent):
        """Return what Domoticz stores after these frames, sent two seconds apart."""
        meter = ecolinky.Meter()
        for number, data in enumerate(sent):
            meter.feed(data, 2.0 * number)
        publish(self.store, 1, meter.fields(2.0 * len(sent)))
        return DomoticzClient(self.port).poll().get(1)


class DomoticzTests(DomoticzCase):
    def test_domoticz_stores_the_values_of_each_tariff(self):
        indexes = {"HCHC": 12345678, "HCHP": 23456789}
        hc = dict(indexes=indexes, power=690, load=[10], period="HP", phases=1)
        tempo = dict(option="TEMPO", today="W", tomorrow="ROUG", phases=3, power=8050)
        tempo.update(indexes=dict(zip(BBR, (11, 22, 33, 44, 55, 66))))
        tempo.update(overload=True, load=[50, 20, 105])
        peak = changed(EJP, OPTARIF="EJP ", PTEC="PM..")
        for groups, expected in (
            (HC, dict(hc, overload=False)),
            (HC[:7] + [("ADPS", "033")] + HC[7:], dict(hc, overload=True)),
            (EJP, dict(option="EJP", period="HN", announced=True)),
            (peak, dict(option="EJP", period="PM")),
            (TEMPO_3, tempo),
            (OLD_BASE, dict(indexes={"BASE": 777888}, power=920, load=[26])),
        ):
            with self.subTest(expected):
                # Half a minute: OLD_BASE sends no power.
                stored = self.after(*[frame(groups)] * 17)
                self.assertEqual(expected, {key: stored[key] for key in expected})


@unittest.skipUnless(IS_CLONE, "five files alone have no captures")
class CapturesTests(DomoticzCase):
    """Real meters' frames, as Domoticz stores them."""

    OPTIONS = dict(
        base="BASE", prod="BASE", hc="HC", hphc="HC", ejp="EJP", tempo="TEMPO"
    )
    PARTIAL = ("historic-1ph-hc-10.tic", "standard-1ph-hphc-2.tic")  # half frames

    def test_domoticz_stores_every_capture_as_its_labels_say(self):
        self.assertGreater(len(captures()), 40)
        for name, content in captures().items():
            one, said = self.after(*[content] * 3), labels_of(content)
            if one:
                phases = jeedom_phases(self.port, 1)
                self.assertEqual(int(name.split("-")[1][0]), phases)
            if name in self.PARTIAL:
                self.assertIsNone(one)
                continue
            last, (mode, phases, option) = said[-1], name.split("-")[:3]
            self.assertEqual(one["option"], self.OPTIONS[option], name)
            self.assertEqual(one["meter"], last.get("ADCO", last.get("ADSC")))
            tags = [tag for tag in last if re.match("(IINST|IRMS)[123]?$", tag)]
            currents = [int(last[tag]) for tag in tags]
            power = int(last.get("PAPP") or last.get("SINSTS") or 230 * sum(currents))
            self.assertEqual(one["power"], power)
            if sum(currents) and power:
                self.assertEqual(one["phases"], int(phases[0]))
            if mode == "historic":
                self.assertEqual(one["period"], last["PTEC"][:2])
                for tag, value in one["indexes"].items():
                    self.assertIn(value, {int(each[tag]) for each in said})
            else:
                total = sum(one["indexes"].values())
                self.assertIn(total, {int(each["EAST"]) for each in said})

    def test_a_line_with_31_percent_damage_serves_no_false_index(self):
        content = captures("damaged")["historic-3ph-base-31-percent.tic"]
        for times in (1, 4):  # the index falls where copies meet
            for size in (100, 247, 6668):
                with self.subTest(times=times, size=size):
                    served = []
                    for fields, _ in self.served_of(content * times, size):
                        served += [fields["BASE"]] if fields else []
                    self.assertEqual(served, sorted(served))
                    self.assertLessEqual(16878530, served[0])
                    self.assertIn(served[-1], (16878541, 16878542))

    def served_of(self, content, size):
        """Yield the fields and labels that are known after each chunk of this size."""
        meter, now = ecolinky.Meter(), 100.0
        for chunk in cut(content, size):
            now += size / 120  # at 1200 baud
            meter.feed(chunk, now)
            yield meter.fields(now), meter.labels(now)

    def test_damaged_captures_serve_only_data_of_intact_groups(self):
        served = 0
        self.assertEqual(15, len(captures("damaged")))
        for name, content in captures("damaged").items():
            said = {}
            seven_bits = bytes(byte & 127 for byte in content)
            for line in re.split(b"[\x00-\x08\x0a-\x1f]+", seven_bits):
                words = re.split(b"[ \t]", line[:-1].rstrip(b" \t"))
                for covered in (line[:-1], line[:-2]):
                    if line and (sum(covered) & 63) + 32 == line[-1]:
                        said.setdefault(words[0].decode(), set()).add(words[-1])
            for size in (30, 100, 10000):
                with self.subTest(name, size=size):
                    for _, labels in self.served_of(content * 4, size):
                        for label in filter(is_index, labels):
                            served += 1
                            self.assertIn(labels[label].encode(), said[label], label)
        self.assertLess(1000, served)

    def test_every_capture_is_relayed_as_whole_frames_of_its_own_groups(self):
        for name, content in captures().items():
            if name in self.PARTIAL:
                continue  # they hold too little to be served
            with self.subTest(name):
                said, counts = labels_of(content), []
                all_frames = frames_in(content)
                # 80 s, as a capture may lack a whole frame.
                looped = (all_frames * 40)[:40]
                twos = [b"".join(looped[n : n + 2]) for n in range(0, 40, 2)]
                for chunks, step in ((looped, 2.0), (twos, 4.0)):
                    sent = relay_of(chunks, step)
                    counts.append(len(frames_in(sent)))
                    self.assertRegex(sent, rb"\A(\x02\n[^\x02\x03]+\r\x03){4,}\Z")
                    for label, data in labels_of(frames_in(sent)[-1])[0].items():
                        self.assertIn(data, [each[label] for each in said])
                self.assertLess(abs(counts[0] - counts[1]), 3)


class OtherClientsTests(HttpCase):
    """Imitations of clients, which decide as the real clients do."""

    def view_after(self, groups):
        """Publish the view of a meter that keeps sending these groups."""
        meter = ecolinky.Meter()
        for number in range(17):
            meter.feed(encoded(groups), 2.0 * number)
        view = meter.view(34.0)
        publish(self.store, 1, view.fields)
        publish(self.store, 2, view.injection or live())
        return view

    def test_every_client_sees_the_right_number_of_phases(self):
        three = dict(IRMS2="002", IRMS3="000", SMAXSN2="02300")
        single = (HC, EJP, OLD_BASE, historic(IMAX=None), standard(), SUN)
        of_three = (TEMPO_3, historic(**THREE), standard(**three))
        of_three += (standard(EAIT="000671631", SINSTI="01840", **three),)
        cases = [(each, 1) for each in single] + [(each, 3) for each in of_three]
        # And when nothing is drawn, so that the currents are 0.
        cases += [(changed(g, PAPP="00000", SINSTS="00000"), n) for g, n in cases]
        for groups, expected in cases:
            with self.subTest(phases=expected, groups=groups):
                view = self.view_after(groups)
                content = json.loads(ask(self.port, "/ecolinky.json").body.decode())
                seen = [content["inputs"][0]["phases"], jeedom_phases(self.port, 1)]
                if view.injection:
                    seen.append(jeedom_phases(self.port, 2))
                stored = DomoticzClient(self.port).poll()[1]
                if sum(view.fields["IINST" + phase] for phase in "123"):
                    seen.append(stored["phases"])  # it goes by the currents
                self.assertEqual({expected}, set(seen), (groups, seen))
                self.assertEqual(view.fields["PAPP"], stored["power"])


######## What the tests are made of: frames ############################################


@functools.lru_cache(maxsize=10000)  # meters repeat most groups
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


def pairs(text):
    """Return the (label, data) pairs of "label data|label data ..."."""
    return [tuple(each.split(" ", 1)) for each in text.split("|")]


def changes_of(text):
    """Return labels and data of "label data|label data ...", None for "label -"."""
    found = dict(pairs(text)) if text else {}
    return {label: None if data == "-" else data for label, data in found.items()}


def rows(text):
    """Return the rows of a table: a row is a line, its cells stand between ">"."""
    lines = [line.partition("#")[0] for line in text.strip().splitlines()]
    return [[cell.strip() for cell in line.split(">")] for line in lines]


def cut(data, size):
    """Return the data in chunks of this size."""
    return [data[place : place + size] for place in range(0, len(data), size)]


def historic(papp="00790", base="000063207", **others):
    """Return the groups of a single-phase historic frame, less labels set to None."""
    text = "ADCO 027811420827|OPTARIF BASE|ISOUSC 30|BASE %s|PTEC TH..|IINST 003|"
    text += "IMAX 060|PAPP %s|HHPHC A|MOTDETAT 000000"
    groups = dict(pairs(text % (base, papp)), **others)
    return [(label, data) for label, data in groups.items() if data is not None]


def standard(**others):
    """Return the groups of a single-phase standard frame of a day-and-night tariff."""
    text = "ADSC 041761123456|VTIC 02|DATE |NGTF H PLEINE/CREUSE|LTARF HEURE  PLEINE|"
    text += "EAST 000003000|EASF01 000001000|EASF02 000002000|"
    text += "".join("EASF%02d 000000000|" % number for number in range(3, 11))
    text += "".join("EASD0%d 00345678%d|" % (number, number) for number in range(1, 5))
    if "EAIT" in others:  # the meter injects
        text += "EAIT |ERQ1 000000121|ERQ2 000000122|ERQ3 000000123|ERQ4 000000124|"
    text += "IRMS1 004|URMS1 230|PREF 06|PCOUP 06|SINSTS 00920|SMAXSN 04600|"
    text += "STGE 003A0401|MSG1 PAS DE          MESSAGE         |PRM 24634288280410|"
    groups = dict(pairs(text + "RELAIS 000|NTARF 02"), **others)
    return [in_full(*each) for each in groups.items() if each[1] is not None]


def in_full(label, data):
    """Return a group of standard mode: some have a stamp, two are centred texts."""
    if label in ("NGTF", "LTARF"):
        return label, data.center(16)
    if isinstance(data, str) and re.match("SMAXS?N|DATE", label):
        stamp = "H260101120000" if label == "DATE" else "H260101080000"
        return label, data, stamp
    return (label, *data) if isinstance(data, tuple) else (label, data)


def encoded(groups):
    """Return the groups as a frame of their own mode."""
    return frame(groups, "\t" if groups[0][0] == "ADSC" else " ")


THREE = changes_of(
    "IINST -|IMAX -|IINST1 001|IINST2 003|IINST3 004|IMAX1 021|IMAX2 031|IMAX3 030|"
    "PPOT 00"
)
THREE_LINKY = dict(IRMS2="002", IRMS3="000", URMS2="231", URMS3="232")

SHORT = pairs(
    "ADIR1 024|ADIR2 000|ADIR3 000|ADCO 027811420827|IINST1 024|IINST2 003|IINST3 005"
)
HC = pairs(
    "ADCO 021728123456|OPTARIF HC..|ISOUSC 30|HCHC 012345678|HCHP 023456789|"
    "PTEC HP..|IINST 003|IMAX 090|PAPP 00690|HHPHC A|MOTDETAT 000000"
)
EJP = pairs(
    "ADCO 021728123457|OPTARIF EJP.|ISOUSC 60|EJPHN 001234567|EJPHPM 000123456|"
    "PEJP 30|PTEC HN..|IINST 009|IMAX 039|PAPP 02070|MOTDETAT 000000"
)
TEMPO_3 = pairs(
    "ADCO 021728123458|OPTARIF BBR(|ISOUSC 20|BBRHCJB 000000011|"
    "BBRHPJB 000000022|BBRHCJW 000000033|BBRHPJW 000000044|"
    "BBRHCJR 000000055|BBRHPJR 000000066|PTEC HPJW|DEMAIN ROUG|IINST1 010|"
    "IINST2 004|IINST3 021|IMAX1 060|IMAX2 060|IMAX3 060|ADIR3 021|"
    "PMAX 06000|PAPP 08050|MOTDETAT 000000|PPOT 00"
)
OLD_BASE = pairs(
    "ADCO 021728123459|OPTARIF BASE|ISOUSC 15|BASE 000777888|PTEC TH..|"
    "IINST 004|IMAX 016|MOTDETAT 000000"
)  # without power, like the oldest meters
THREE_PHASES = pairs(
    "ADCO 021728123450|OPTARIF BASE|ISOUSC 20|BASE 000063207|PTEC TH..|IINST1 027|"
    "IINST2 027|IINST3 027|IMAX1 060|IMAX2 060|IMAX3 060|PMAX 18500|PAPP 18400|HHPHC A|"
    "MOTDETAT 000000|PPOT 00"
)
HC_FRAME, EJP_FRAME = frame(HC), frame(EJP)
SUN = standard(EAIT="000671631", SINSTI="01840")
EJP_QUIET = [each for each in EJP if each[0] != "PEJP"]
SIX = {"EASF%02d" % number: "00000%d000" % number for number in range(1, 7)}
STANDARD_TEMPO = standard(NGTF="TEMPO", LTARF="HP  BLEU", EAST="000021000", **SIX)

# A meter of each contract, with all indexes that a meter can have.
EVERY_METER = [historic(), HC, EJP, EJP_QUIET, TEMPO_3]
EVERY_METER += [standard(), STANDARD_TEMPO, SUN]
# Other meters, whose every value is another.
OTHER_HISTORIC = changes_of(
    "ADCO 027811420828|OPTARIF HC..|ISOUSC 45|BASE -|HCHC 000001000|HCHP 000002000|"
    "PTEC HC..|IINST 009|IMAX 090|PAPP 02070|HHPHC Y|MOTDETAT 000001"
)
OTHER_STANDARD = dict(
    pairs(
        "ADSC 041761999999|VTIC 03|NGTF BASE|LTARF BASE|EAST 000007000|"
        "EASF01 000004000|EASF02 000003000|IRMS1 011|URMS1 240|PREF 09|PCOUP 09|"
        "SINSTS 02640|STGE 003A0001|PRM 24634288289999|RELAIS 001|NTARF 01"
    ),
    DATE=("", "E260701120000"),
    SMAXSN=("08000", "E260701080000"),
    MSG1="".ljust(32),
)


def data_by_label(groups):
    """Return the data of a frame by label, as the meter knows it."""
    stamp = lambda each: each[2] if each[0] == "DATE" else each[1]  # noqa: E731
    return {each[0]: stamp(each) for each in groups}


def misread(group, rng):
    """Return a group with other data, of the right form."""
    label, data, *stamp = group
    forms = {name: each.form for name, each in ecolinky.KNOWN_LABELS.items()}
    texts = ("BASE", "HC..", "EJP.", "BBR(", "TH..", "HP..", "HCJW", "BLEU", "ROUG")
    while True:
        characters = list(data)
        for _ in range(rng.randint(1, 3)):
            characters[rng.randrange(len(data))] = rng.choice("0123456789ABCDEF")
        wrong = "".join(characters)
        if rng.random() < 0.5 and len(data) == 4:
            wrong = rng.choice(texts)
        text = "".join(each + "\t" for each in stamp) + wrong
        if wrong != data and forms[label].fullmatch(text):
            return (label, wrong, *stamp)


@functools.lru_cache(maxsize=None)
def is_index(label):
    """Return whether the label is that of an index."""
    return bool(re.match("BASE|HCH|EJP|BBR|EA|ERQ", label))


def grown(groups, rng):
    """Return the next frame of a meter: each register's first or second index grows."""
    growth = rng.choice((0, 0, 1, 3, 15))
    running = {rng.choice(("EASF01", "EASF02")), "EAST", "BASE", "EAIT", "EASD01"}
    running |= {rng.choice(pair) for pair in (("HCHC", "HCHP"), ("EJPHN", "EJPHPM"))}
    running |= {rng.choice(BBR), "ERQ3"}
    return [
        (each[0], "%09d" % (int(each[1]) + growth)) if each[0] in running else each
        for each in groups
    ]


def with_power(groups, rng):
    """Return the frame with another power, all of it drawn from the first phase."""
    amperes = rng.randrange(1, 50)
    first, *others = [each[0] for each in groups if re.match("IINST|IRMS", each[0])]
    power = "%05d" % (230 * amperes)
    currents = {first: "%03d" % amperes, **dict.fromkeys(others, "000")}
    return changed(groups, PAPP=power, SINSTS=power, **currents)


def with_wrong_index(groups, rng):
    """Return a frame with one index that is false, by little or by any number."""
    place = rng.choice([n for n, each in enumerate(groups) if is_index(each[0])])
    value = int(groups[place][1])
    wrong = rng.choice((value + rng.randint(1, 40), rng.randrange(10**9)))
    wrong = rng.choice((wrong, max(0, value - rng.randint(1, 40))))
    return [*groups[:place], (groups[place][0], "%09d" % wrong), *groups[place + 1 :]]


def joined_losses(groups):
    """Yield an index that is joined of two groups, and the frame that lost bytes there.

    The index has the first digits of its own and the last ones of a later group; the
    groups in between are gone.  Its checksum is right, by chance.  Not here: what no
    one can see, that the notice PEJP alone is swallowed.
    """
    for first, (label, data, *_) in enumerate(groups):
        if not is_index(label):
            continue
        for last in range(first + 1, len(groups)):
            for kept in range(9):
                tail = groups[last][1][kept - 9 :]
                joined = data[:kept] + tail
                is_seen = last > first + 1 or groups[last][0] != "PEJP"
                if is_seen and re.fullmatch("[0-9]{9}", joined) and joined != data:
                    yield label, [*groups[:first], (label, joined), *groups[last + 1 :]]


def lost_groups():
    """Return a damage that loses one to three whole groups."""

    def damage(rng, data):
        groups = [match.span() for match in re.finditer(rb"\n[^\r]*\r", data)]
        first = rng.randrange(1, len(groups))
        end = groups[min(len(groups) - 1, first + rng.randrange(3))][1]
        if rng.random() < 0.5:
            return [], [data]
        lost = range(groups[first][0], end)
        return edited(data, dict.fromkeys(lost, b""))

    damage.__name__ = "lost groups"
    return damage


def changed(groups, **changes):
    """Return the groups with the data of some labels changed."""
    return [(each[0], changes.get(each[0], each[1]), *each[2:]) for each in groups]


def without(label, data):
    """Return a frame in which the group of that label is damaged."""
    place = data.index(b"\n%s" % label.encode()) + len(label) + 2
    return data[:place] + b"~" + data[place + 1 :]


def holed(groups, label):
    """Return a frame in which the group of that label is lost without a trace."""
    return encoded([each for each in groups if each[0] != label])


BAUDS = (300, 600, 1200, 2400, 4800, 9600, 14400, 19200, 38400, 57600, 74880, 115200)
# What other servers say first, or to a client that is silent.
GREETINGS = (
    b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u5\r\n",
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\nServer: x\r\n\r\n<html>",
    b"HTTP/1.0 408 Request Timeout\r\nConnection: close\r\nDate: Mon, 30 Nov\r\n\r\n",
    b"220 ftp.lan FTP server ready\r\n",
    b"220 mail.lan ESMTP Postfix (Debian)\r\n",
    b"+OK Dovecot ready.\r\n",
    b"* OK [CAPABILITY IMAP4rev1] ready.\r\n",
    b"RFB 003.008\n",
    b"-ERR unknown command\r\n",
    b"raspberrypi login: ",
    b"OK MPD 0.23.5\n",
)


def as_heard(data, baud, esp_baud, bits, parity):
    """Return the first KiB that an ESP8266 makes of a line of 7E1 at a speed."""
    levels = []
    for byte in data:
        word = [(byte >> bit) & 1 for bit in range(7)]
        levels += [0, *word, sum(word) % 2, 1]
    step = baud / esp_baud  # of the meter's bits, in one bit of the ESP8266
    end = len(levels) - step * (bits + parity + 2)
    heard = bytearray()
    place = 0.0
    while place < end and len(heard) < 1024:
        begin = math.ceil(place)
        if levels[begin] or not levels[begin - 1]:  # wait for a falling edge
            place = begin + 1
            continue
        samples = [levels[int(begin + step * (n + 1.5))] for n in range(bits)]
        heard.append(sum(level << n for n, level in enumerate(samples)))
        place = begin + step * (bits + parity + 1.5)  # in the middle of the stop bit
    return bytes(heard)


def as_8n1(data):
    """Return what an ESP8266 makes of 7E1 that it reads as 8N1."""
    return bytes(byte | (bin(byte).count("1") % 2) << 7 for byte in data)


def all_damaged(data):
    """Return a frame whose every group is damaged."""
    return re.sub(b".\r", b"~\r", data)


def content_of(*path):
    """Return the bytes of a file of the project."""
    with open(os.path.join(HERE, *path), "rb") as file:
        return file.read()


def written(content, *path):
    """Write bytes or text to a file, and return its path."""
    name = os.path.join(*path)
    with open(name, "wb") as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
    return name


@functools.lru_cache(maxsize=None)
def captures(*folder):
    """Return the captures of a folder: name -> content."""
    names = sorted(glob.glob(os.path.join(CAPTURES, *folder, "*.tic")))
    return {os.path.basename(name): content_of(name) for name in names}


def split_at(number, data):
    """Return a frame with the LF before a group turned into an STX by a flipped bit."""
    parts = data.split(b"\r\n")
    return b"\r\n".join(parts[:number]) + b"\r\x02" + b"\r\n".join(parts[number:])


def verdict(piece):
    """Return label and data of a group, or None and why it is none."""
    found = ecolinky.decode_group(piece)
    if isinstance(found, ecolinky.Group):
        return found.label, found.data
    return None, found


def damaged_of(meter):
    """Return the number of damaged groups, by reason."""
    counts = meter.counts()
    return {"checksum": counts.checksum, "form": counts.form}


def labels_of(capture):
    """Decode a capture by simple means: a dict of labels for each frame."""
    found = []
    for part in re.split(b"[\x02\x03]", capture):
        groups = {}
        for line in re.split(b"[\r\n]+", part):
            if line.strip():
                separator = b"\t" if b"\t" in line else b" "
                words = line[:-2].split(separator)
                data = b"".join(words[2:]) or words[1]
                if separator == b" ":
                    data = separator.join(words[1:])
                groups[words[0].decode("ascii")] = data.decode("ascii")
        found += [groups] if groups else []
    return found


######## Waiting, ports and requests ###################################################


LONG = 60  # seconds: only a test that fails waits so long, even on a slow machine

AT_ONCE = 20  # seconds to end in: a connection may last for 30 s


def wait_for(condition):
    """Return the first true value of the condition; fail when there is none in time."""
    end = time.monotonic() + LONG
    while True:
        try:
            value = condition()
        except OSError:  # a passing failure: the caller polls again
            value = None
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError("did not happen within %s s" % LONG)
        time.sleep(0.003)


RESERVED = []  # UDP sockets: holding one reserves the TCP port of the same number


def free_port():
    """Return a port that is free, and that no other run of these tests takes."""
    while True:
        port = random.SystemRandom().randrange(10081, 32000)  # browsers refuse 10080
        token = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with socket.socket() as probe, contextlib.suppress(OSError):
            token.bind(("127.0.0.1", port))
            probe.bind(("127.0.0.1", port))
            RESERVED.append(token)
            return port
        token.close()


Answer = namedtuple("Answer", "status headers body")


def ask(port, path, method="GET", headers=None):
    """Return the answer to one request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LONG)
    try:
        connection.request(method, path, None, headers or {})
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read())
    finally:
        connection.close()


def tags_in(body):
    """Return the tags of an XML document, and their texts."""
    return {each.tag: each.text or "" for each in ElementTree.fromstring(body)}


def tags_at(port, path):
    return tags_in(ask(port, path).body)


def talk(port, request):
    """Send raw bytes and return all raw bytes that come back."""
    received = []
    with socket.create_connection(("127.0.0.1", port), LONG) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            received += iter(lambda: connection.recv(65536), b"")
    return b"".join(received)


def basic(login):
    token = base64.b64encode(login.encode()).decode("ascii")
    return {"Authorization": "Basic " + token}


######## What is published, and a server of it #########################################


def tags_of(number):
    return ["T%d_%s" % (number, field) for field in FIELDS]


def live(**changes):
    """Return the 31 fields of a live single-phase HC input, that of HC_FRAME."""
    fields = dict.fromkeys(FIELDS, 0)
    fields.update(ADCO="021728123456", OPTARIF="HC..", PTEC="HP..", DEMAIN="----")
    fields.update(ISOUSC=30, HCHC=12345678, HCHP=23456789, PAPP=690)
    fields.update(IINST=3, IINST1=3, IMAX=90, IMAX1=90)
    fields.update(HHPHC="A", MOTDETAT="000000")
    fields.update(changes)
    fields["PPAP"] = fields["PAPP"]
    return fields


def publish(store, number=1, fields=None, age=0.0, injection=None, **changes):
    """Publish an input; without fields, an input that was never live."""
    now = time.monotonic()
    last, meter = now - age, ecolinky.Meter()
    changed_view = {"mode": "historic", "fields": fields, "injection": injection}
    view = meter.view(now)._replace(time=last, **changed_view)
    source = ecolinky.Input("esp:8888", meter, ecolinky.NO_INPUT, print, 20.0, now)
    snapshot = source.snapshot(now)._replace(reason=ecolinky.ALL_WELL, last_byte=last)
    store.publish(number, snapshot._replace(view=view, last_view=view, **changes))


def paris(*when):
    """Return the time since the epoch of a local time in Paris."""
    return time.mktime(when + (0,) * (6 - len(when)) + (0, 0, -1))


@contextlib.contextmanager
def running_server(store, login="", second=False):
    """Serve the store on a free port and yield the port."""
    device = ecolinky.Device("ecolinky", MAC, free_port(), False)
    if second:
        device = ecolinky.second_device(device, free_port())
    http = ecolinky.HttpSettings("127.0.0.1", device.port, 4001, *login.split(":"))
    first = ecolinky.InputSettings("x", relay_port=8889)
    settings = ecolinky.Settings(first, ecolinky.InputSettings("y"), http)
    server = ecolinky.Server(device, settings, store)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield device.port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


######## An ESP8266 that misbehaves, and the reader with its times shortened ###########


class FakeEsp(socketserver.ThreadingTCPServer):
    """An ESP8266's serial server; what it does to each client in turn is a script.

    A script is called as script(esp, connection); when it returns the connection is
    closed.  The last script serves all later clients too.
    """

    allow_reuse_address = daemon_threads = True

    def __init__(self, *scripts, port=0):
        self.scripts, self.connections = list(scripts), 0
        self.over = threading.Event()
        # A port that no other program takes while it is closed for a while.
        self.port = port or free_port()
        super().__init__(("127.0.0.1", self.port), None)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def finish_request(self, request, client_address):
        script = self.scripts[min(self.connections, len(self.scripts) - 1)]
        self.connections += 1
        request.settimeout(LONG)
        with contextlib.suppress(OSError):
            script(self, request)

    def close(self):
        self.over.set()
        self.shutdown()
        self.server_close()


def frames(data, every=0.004):
    """Send the data again and again, as a meter does."""

    def script(esp, connection):
        while not esp.over.wait(every):
            connection.sendall(data)

    return script


def once(*chunks, reset=False, silent=False):
    """Send the chunks and close, reset the connection, or say nothing more."""

    def script(esp, connection):
        for chunk in chunks:
            connection.sendall(chunk)
            esp.over.wait(0.01)
        if silent:
            esp.over.wait()
        if reset:
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    return script


class QuickReader(ecolinky.Reader):
    """A reader with shortened times."""

    SILENCE, TICK, PAUSE = 0.15, 0.05, 0.01


######## What a relay sends ############################################################


def relayed_frames(data):
    """Decode what a relay sends, by means of its own: the frames, each a list of pairs.

    Fails on anything that is not whole frames of groups whose checksum is right.
    """
    found = []
    for text in data.split(b"\x03")[:-1]:
        assert text[:1] == b"\x02", text[:20]
        pairs_of_frame = []
        for line in text[1:].split(b"\r")[:-1]:
            assert line[:1] == b"\n", line
            separator = b"\t" if b"\t" in line else b" "
            body = line[1:-1] if separator == b"\t" else line[1:-2]
            assert (sum(body) & 0x3F) + 0x20 == line[-1], line
            label, _, rest = body.strip(b"\t").partition(separator)
            pairs_of_frame.append((label.decode(), rest.decode()))
        found.append(pairs_of_frame)
    return found


def frames_in(data):
    """Return the frames that end in the data."""
    return [each + b"\x03" for each in data.split(b"\x03")[:-1]]


def relayed_by(views):
    """Return what a relay sends of these views."""
    return b"".join(view.relayed for view in views)


def relay_of(stream, step=2.0):
    """Return what the relay sends of a stream of chunks."""
    meter, now, sent = ecolinky.Meter(is_relayed=True), 0.0, b""
    for chunk in stream:
        now += step
        sent += relayed_by(meter.feed(chunk, now))
    return sent


######## The program itself ############################################################


MODES = ("historic", "standard", "tempo", "three-phase")


def esp_ini(*ports, more=""):
    """Return an ini that reads ESPs at these local ports."""
    text = "[teleinfo%d]\nhost = 127.0.0.1\nport = %d\ntimeout = 5\n"
    return "".join(text % each for each in enumerate(ports, 1)) + more


def as_typed(text):
    """Return the program's text with a keyboard's spaces and apostrophes."""
    return text.replace("\u00a0", " ").replace("’", "'")


def begin_program(on_sigint):
    """Prepare a new process: its SIGINT, and that it ends with the tests (Linux)."""
    signal.signal(signal.SIGINT, on_sigint)
    if PRCTL:
        PRCTL(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


# The program with a clock that runs 20 times as fast, and a shorter pause between two
# connections.
HASTY_PROGRAM = """
import ecolinky, sys, time
real = time.monotonic
time.monotonic = lambda: 20 * real()
ecolinky.Reader.PAUSE = 0.3
sys.exit(ecolinky.run())
"""


class Program:
    """The real program as a subprocess, started as the README says."""

    def __init__(
        self, ini, *arguments, http="", code="", on_sigint=signal.SIG_DFL, **environment
    ):
        self.port, self.second = free_port(), free_port()
        self._folder = tempfile.TemporaryDirectory()
        path = os.path.join(self._folder.name, "ecolinky.ini")
        with open(path, "w", encoding="utf-8") as file:
            ports = "port = %d\nsecond_port = %d\n" % (self.port, self.second)
            file.write(ini + "\n[http]\naddress = 127.0.0.1\n" + ports + http)
        # The program shares this file's offset, which output() moves: it must append.
        self._output = open(os.path.join(self._folder.name, "output"), "a+b")
        program = ["-c", code] if code else [PROGRAM]
        self.process = subprocess.Popen(
            [sys.executable, *program, "--config", path, *arguments],
            stdout=self._output,
            stderr=self._output,
            cwd=HERE,
            env=dict(os.environ, **environment),
            preexec_fn=functools.partial(begin_program, on_sigint),
        )

    def output(self):
        self._output.seek(0)
        return as_typed(self._output.read().decode("utf-8", "replace"))

    def answers(self):
        """Return whether it answers HTTP; fail if it has ended."""
        if self.process.poll() is not None:
            raise AssertionError("it ended: " + self.output())
        return ask(self.port, "/status.xml").status in (200, 401)

    def end(self, number=signal.SIGTERM):
        """Ask it to stop; return exit code, seconds and what it wrote."""
        started = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(AT_ONCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        taken, text = time.monotonic() - started, self.output()
        self._output.close()
        self._folder.cleanup()
        return code, taken, text


DEMOS = {}


def setUpModule():
    for mode in MODES:  # all in parallel, as they send at line rate
        DEMOS[mode] = Program("[teleinfo2]\ninjection = yes\n", "--demo", mode)
    DEMOS["check"] = Program("", "--demo", "tempo", "--check")


def end_demo(program):
    """End a demo, and fail if it has ended, or ends badly."""
    try:
        wait_for(program.answers)
    finally:
        code, _, text = program.end()
    if code or "Traceback" in text:
        raise AssertionError("a demo ended badly: %s %s" % (code, text))


def tearDownModule():
    while RESERVED:
        RESERVED.pop().close()
    with contextlib.ExitStack() as stack:  # which ends them all, whatever fails
        stack.callback(DEMOS.pop("check").end)
        for program in DEMOS.values():
            stack.callback(end_demo, program)


######## Domoticz and others, as a test sees them ######################################


class DomoticzClient:
    """Polls as Domoticz does; a poll returns what it would store, by input.

    Written from its source, EcoDevices.cpp: the version rule, the ---- rule, the
    tariffs that it compares OPTARIF and PTEC with, the phases, the load, the alerts and
    the power.  Of all polls it keeps the meters seen, and fails where an index falls.
    """

    # What OPTARIF begins with: the tariff, its indexes and its periods.
    TARIFFS = {
        "BASE": ("BASE", ["BASE"], ["TH"]),
        "HC..": ("HC", ["HCHC", "HCHP"], ["HC", "HP"]),
        "EJP.": ("EJP", ["EJPHN", "EJPHPM"], ["HN", "PM"]),
        "BBR": ("TEMPO", BBR, ["HC", "HP"]),
    }

    def __init__(self, port, login=""):
        self.port, self.headers = port, basic(login) if login else {}
        self.hostname, self.meters, self.last = None, set(), {}
        self._power_seen = set()

    def _get(self, path):
        answer = ask(self.port, path, headers=self.headers)
        if answer.status != 200:
            raise OSError("status %d of %s" % (answer.status, path))
        return tags_in(answer.body)

    def poll(self):
        status = self._get("/status.xml")
        if [int(part) for part in status["version"].split(".")] < [1, 5, 12]:
            raise AssertionError("firmware too old")
        self.hostname = status["config_hostname"]
        stored = {}
        for number in (1, 2):
            if status["T%d_PTEC" % number] == "----":
                continue
            try:
                tags = self._get("/protect/settings/teleinfo%d.xml" % number)
            except OSError:
                continue  # it became stale just now: nothing is stored
            fields = {tag[3:]: text for tag, text in tags.items()}
            stored[number] = self._store(number, fields)
        return stored

    def _store(self, number, fields):
        amount = {tag: int(text) for tag, text in fields.items() if tag not in TEXTS}
        option, period = fields["OPTARIF"], fields["PTEC"][:2]
        tempo = "BBR" if option.startswith("BBR") else option
        tariff, tags, periods = self.TARIFFS[tempo]
        if period not in periods:
            raise AssertionError("%s %s is no tariff" % (option, period))
        currents = [amount["IINST%d" % phase] for phase in (1, 2, 3)]
        three = currents[1] > 0 or currents[2] > 0
        three = three or (amount["IINST"] == 0 and currents[0] > 0)
        currents = currents if three else [amount["IINST"]]
        if amount["PAPP"] > 0:
            self._power_seen.add(number)
        power = amount["PAPP"] if number in self._power_seen else 230 * sum(currents)
        indexes = {tag: amount[tag] for tag in tags}
        self.meters.add(fields["ADCO"])
        for tag, value in indexes.items():
            if value < self.last.get((number, tag), 0):
                raise AssertionError("%s fell" % tag)
            self.last[number, tag] = value
        limit = amount["ISOUSC"]
        return {
            "meter": fields["ADCO"],
            "option": tariff,
            "period": period,
            "today": fields["PTEC"][3:],
            "tomorrow": fields["DEMAIN"],
            "indexes": indexes,
            "power": power,
            "phases": 3 if three else 1,
            "load": [100 * each // limit for each in currents] if limit else None,
            "overload": amount["ADPS"] > 0,
            "announced": amount["PEJP"] == 30,
        }


def jeedom_phases(port, number):
    """Return the phases that Jeedom's plugin sees, None where the input is not live."""
    answer = ask(port, "/protect/settings/teleinfo%d.xml" % number)
    if answer.status != 200:
        return None
    tags = tags_in(answer.body)
    if tags["T%d_IMAX2" % number] != "0":
        return 3
    return 1 if tags["T%d_IMAX" % number] != "0" else 0


######## What happens to the bytes of a line ##########################################


CUT = object()  # the connection is cut, and a new one follows


def edited(data, edits):
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
                return edited(data, edits)
            byte = place // 7
            old = edits.get(byte, data[byte : byte + 1])[0]
            edits[byte] = bytes([old ^ 1 << place % 7])

    damage.__name__ = "bit flips %.0e" % rate
    return damage


def dropped_bytes(rng, data):
    """Drop one to three bytes."""
    places = [rng.randrange(len(data)) for _ in range(rng.randint(1, 3))]
    return edited(data, dict.fromkeys(places, b""))


def lost_runs():
    """Return a damage that loses runs of up to 400 bytes, into the next frame."""
    left = [0]

    def damage(rng, data):
        lost = list(range(min(left[0], len(data))))
        left[0] -= len(lost)
        if not left[0] and rng.random() < 0.4:
            start, run = rng.randrange(len(data)), rng.randint(1, 400)
            lost += range(start, min(start + run, len(data)))
            left[0] = max(0, start + run - len(data))
        return edited(data, dict.fromkeys(lost, b""))

    damage.__name__ = "lost runs"
    return damage


def cut_connections(rng, data):
    """Cut the connection in mid-frame and resume it a little later."""
    if rng.random() < 0.6:
        return [], [data]
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.randrange(60))
    # The group at the cut is lost even if no byte is.
    return range(start, end + 1), [data[:start], CUT, data[end:]]


def damages():
    """Return seven classes of damage."""
    rates = [flips(10.0**-power) for power in (5, 4, 3, 2)]
    return rates + [dropped_bytes, lost_runs(), cut_connections]


if __name__ == "__main__":
    unittest.main()
