"""Simulated meters that know what they sent, and a judge of what is served of them.

The benchmarks use them; what happens to the bytes comes from the tests.
"""

import bisect
import collections
import re

import ecolinky
from test_ecolinky import BBR, CUT, damaged_of, damages, edited, frame, group


class House:
    """A simulated meter that knows what it sent; kinds are those of KINDS."""

    KINDS = ("hc", "tempo", "three-phase", "standard", "standard three-phase tempo")

    def __init__(self, kind, rng, volts=230, cut_off=False):
        self.kind, self.rng, self.now = kind, rng, 1000.0
        self.volts, self.half = volts, 0.0 if cut_off else 0.5  # of its currents
        self.standard = kind.startswith("standard")
        self.identity = "%012d" % rng.randrange(10**12)
        size = {"hc": 2, "three-phase": 1, "standard": 2}.get(kind, 6)
        self.energy = [float(rng.randrange(10**5, 5 * 10**7)) for _ in range(size)]
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

    def _historic(self, option, labels, ptec, more=()):
        return [
            ("ADCO", self.identity),
            ("OPTARIF", option),
            ("ISOUSC", "45"),
            *zip(labels, self._digits()),
            ("PTEC", ptec),
            *more,
            ("IINST", "%03d" % (self.power / self.volts + self.half)),
            ("IMAX", "090"),
            ("PAPP", "%05d" % (self.power // 10 * 10)),
            ("HHPHC", "A"),
            ("MOTDETAT", "000000"),
        ]

    def _hc(self):
        ptec = ("HC..", "HP..")[self.running]
        return self._historic("HC..", ("HCHC", "HCHP"), ptec)

    def _tempo(self):
        ptec = BBR[self.running][3:]
        return self._historic("BBR(", BBR, ptec, [("DEMAIN", "----")])

    def _three_phase(self):
        groups = self._historic("BASE", ("BASE",), "TH..")
        total = self.power / self.volts
        amperes = [total * share + self.half for share in (0.5, 0.3, 0.2)]
        groups[5:7] = [("IINST%d" % n, "%03d" % amperes[n - 1]) for n in (1, 2, 3)]
        groups[8:8] = [("IMAX%d" % n, "060") for n in (1, 2, 3)] + [("PMAX", "06030")]
        return groups + [("PPOT", "00")]

    def _standard(self):
        three = "three" in self.kind
        tempo = "tempo" in self.kind
        stamp = "H%012d" % (260101000000 + int(self.now) % 86400)
        easf = self._digits() + ["000000000"] * 10
        total = sum(int(energy) for energy in self.energy)
        words = (
            ("HC  BLEU", "HP  BLEU", "HC  BLANC", "HP  BLANC", "HC  ROUGE", "HP  ROUGE")
            if tempo
            else ("HEURE  CREUSE", "HEURE  PLEINE")
        )
        groups = [
            ("ADSC", self.identity),
            ("VTIC", "02"),
            ("DATE", "", stamp),
            ("NGTF", "     TEMPO      " if tempo else "H PLEINE/CREUSE "),
            ("LTARF", words[self.running].center(16)),
            ("EAST", "%09d" % total),
        ]
        groups += [("EASF%02d" % n, easf[n - 1]) for n in range(1, 11)]
        phases = (1, 2, 3) if three else (1,)
        for phase in phases:
            amperes = self.power / self.volts / len(phases) + self.half
            groups.append(("IRMS%d" % phase, "%03d" % amperes))
            groups.append(
                ("URMS%d" % phase, "%d" % (self.volts + self.rng.randrange(10)))
            )
        groups += [("PREF", "09"), ("PCOUP", "09"), ("SINSTS", "%05d" % self.power)]
        for phase in ("1", "2", "3") if three else ("",):
            groups.append(("SMAXSN" + phase, "05706", stamp))
        stge = self.running << 10 | (0x01000000 if tempo else 0) | 0x003A0001
        groups += [
            ("CCASN", "00521", stamp),
            ("UMOY1", "232", stamp),
            ("STGE", "%08X" % stge),
            ("MSG1", "PAS DE          MESSAGE         "),
            ("PRM", "24634288280410"),
            ("RELAIS", "000"),
            ("NTARF", "%02d" % (self.running + 1)),
            ("NJOURF", "00"),
            ("NJOURF+1", "00"),
            ("PJOURF+1", "00008002 0256C001" + " NONUTILE" * 9),
        ]
        return groups

    def served_indexes(self, groups):
        """Return the indexes that a true answer of this frame shows, by tag."""
        values = {each[0]: each[1] for each in groups}
        if not self.standard:
            tags = ["BASE", "HCHC", "HCHP"] + BBR
            return {tag: int(values[tag]) for tag in tags if tag in values}
        easf = [int(values["EASF%02d" % n]) for n in range(1, 11)]
        if "tempo" in self.kind:
            return dict(zip(BBR, easf))
        return {"HCHC": sum(easf[0::2]), "HCHP": sum(easf[1::2])}


def doubled_bytes(rng, data):
    """Double one to three bytes."""
    places = [rng.randrange(len(data)) for _ in range(rng.randint(1, 3))]
    return edited(data, {place: data[place : place + 1] * 2 for place in places})


def truncated_frames(rng, data):
    """Lose the end of every second frame."""
    if rng.random() < 0.5:
        return [], [data]
    end = rng.randrange(len(data))
    return range(end, len(data)), [data[:end]]


def swallowed_line_ends(rng, data):
    """Lose one LF or CR in ten."""
    ends = [place for place, byte in enumerate(data) if byte in b"\r\n"]
    return edited(data, {place: b"" for place in ends if rng.random() < 0.1})


def all_damages():
    """Return the ten classes of damage, in the order of the README's figures."""
    *first, runs, cuts = damages()
    return [*first, doubled_bytes, truncated_frames, swallowed_line_ends, runs, cuts]


def run_damage(kind, damage, frames, rng, counts, **options):
    """Feed damaged frames of a house to a Meter, and count what is served."""
    house, meter = House(kind, rng, **options), ecolinky.Meter()
    separator = "\t" if house.standard else " "
    sent, last, recent = {}, {}, collections.deque(maxlen=60)
    awaiting = {}
    before = None
    for _ in range(frames):
        groups, _ = house.step()
        data = frame(groups, separator)
        now = house.now
        for tag, value in house.served_indexes(groups).items():
            sent.setdefault(tag, set()).add(value)
        values = {each[0]: each[1] for each in groups}
        recent.append(int(values.get("PAPP") or values["SINSTS"]))
        touched, pieces = damage(rng, data)
        if before:
            # The first byte of this frame certainly ends the frame before.
            first, pieces = pieces[0][:1], [pieces[0][1:]] + pieces[1:]
            meter.feed(first, now)
            check_used(meter.view(now), before, awaiting, counts)
        for piece in pieces:
            if piece is CUT:
                meter.disconnected()
            else:
                meter.feed(piece, now)
        truth = house.served_indexes(groups)
        check_served(meter.fields(now), truth, sent, last, recent, counts)
        before = intact_groups(groups, data, touched)
        counts["frames"] += 1
        counts["intact"] += len(before)
    counts.update(damaged_of(meter))
    counts["implausible"] += meter.guard.implausible


def intact_groups(groups, data, touched):
    """Return the groups whose bytes, LF to CR, are all untouched."""
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


def check_used(view, intact, awaiting, count):
    """Count the intact groups that were used, once their frame has ended.

    A reading of an index is used when the served index has reached it by the time that
    two more readings have arrived intact (one confirms it); all else, when the label
    has that data.  A power is in time when it is served by the end of the next frame.
    """
    trusted = view.labels
    served = view.fields and view.fields["PAPP"]
    count["in time"] += served == awaiting.pop("power", "none")
    for each in intact:
        label, data = each[0], each[1] or each[-1]
        if re.match("BASE|HC|BBR|EA(ST|SF)", label):
            value = int(trusted.get(label, -1))
            waiting = awaiting.setdefault(label, [])
            waiting.append(int(data))
            count["used"] += 1
            if len(waiting) > 2:
                count["used"] -= waiting.pop(0) > value
        else:
            count["used"] += trusted.get(label) == data
        if label in ("PAPP", "SINSTS"):
            count["powers"] += 1
            if served == int(data):
                count["in time"] += 1
            else:
                awaiting["power"] = int(data)  # the next frame is its last chance


def check_served(fields, truth, sent, last, recent, count):
    """Count the false values that are served.

    A false index is above what the counter held at that moment, or below what was
    served before; values between two true readings, never sent, are counted apart.
    So is a power computed from the served currents, for want of an intact one.
    """
    count["served"] += bool(fields)
    if not fields:
        return
    for tag, values in sent.items():
        value = fields[tag]
        count["falls"] += value < last.get(tag, 0)
        count["false index"] += value > truth[tag] or value < last.get(tag, 0)
        count["never sent"] += value not in values
        last[tag] = value
    # A false power is counted once, however many frames it is served for.
    power = fields["PAPP"]
    if power not in recent:
        amperes = sum(fields["IINST" + phase] for phase in "123")
        if power == 230 * amperes:
            count["of currents"] += last.get("PAPP") != power
        else:
            count["false PAPP"] += last.get("PAPP") != power
            count["PAPP frames"] += 1
    last["PAPP"] = power
