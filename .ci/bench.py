#!/usr/bin/env python3
"""Benchmarks: numbers that anyone can measure again, with the tests' simulated meters.

    python3 .ci/bench.py speed
    python3 .ci/bench.py damage [--seed N --frames N]
    python3 .ci/bench.py soak [--minutes N]

On a terminal a long run shows on standard error how far it is.
"""

import argparse
import collections
import contextlib
import json
import os
import random
import re
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from houses import House, all_damages, run_damage  # noqa: E402

import ecolinky  # noqa: E402
from test_ecolinky import (  # noqa: E402
    CMD10,
    T1,
    T2,
    DomoticzClient,
    FakeEsp,
    Program,
    ask,
    edited,
    encoded,
    esp_ini,
    flips,
    frame,
    free_port,
    historic,
    talk,
    wait_for,
)


class Progress:
    """One line on a terminal's standard error: how far a run of so many steps is."""

    def __init__(self, steps):
        self.steps, self.done, self.started = steps, 0, time.monotonic()

    def step(self, count=1):
        """Count steps, and show the share of them that is done."""
        self.done += count
        if not sys.stderr.isatty():
            return
        seconds = time.monotonic() - self.started
        left = seconds * (self.steps - self.done) / self.done
        text = "%3d %%, %d s left" % (100 * self.done / self.steps, left)
        sys.stderr.write("\r%-30s\r" % (text if self.done < self.steps else ""))
        sys.stderr.flush()


######## Damage: what becomes of the groups, and what is served that is false ##########


INDEX = rb"BASE|HCH[CP]|BBRH[CP]J[BWR]|EASF0[12]"


IDENTITY = rb"ADCO|ADSC"


POWER = rb"PAPP|SINSTS"


def compensating(rng, data, start, end):
    """Return two flips between two places that leave the checksum right, as masks."""
    for _ in range(100):
        one, other = rng.randrange(start, end), rng.randrange(start, end)
        mask = 1 << rng.randrange(4)  # the upper bits of all digits are the same
        if (data[one] ^ data[other]) & mask:
            return {one: mask, other: mask}
    return {}


def flipped(data, masks):
    """Return what a damage returns, of masks: place -> bits that flip."""
    return edited(
        data, {place: bytes([data[place] ^ mask]) for place, mask in masks.items()}
    )


def data_of(data, labels):
    """Return where the data of each group with one of the labels starts and ends."""
    pattern = rb"\n(?:%s)[ \t]([^ \t]+)[ \t]" % labels
    return [match.span(1) for match in re.finditer(pattern, data)]


def always_hit(labels):
    """Return a damage of one group in each frame, another way each time."""
    chosen = []

    def damage(rng, data):
        spans = data_of(data, labels)
        chosen[:] = chosen or [rng.randrange(len(spans))]
        return flipped(data, compensating(rng, data, *spans[chosen[0]]))

    return damage


def flipped_twice(labels):
    """Return a damage that flips any two bits of one group in each frame."""
    chosen = []

    def damage(rng, data):
        spans = data_of(data, labels)
        chosen[:] = chosen or [rng.randrange(len(spans))]
        end = spans[chosen[0]][1] + 2  # the checksum, too
        start = data.rindex(b"\n", 0, end) + 1
        one, other = rng.sample(range(7 * (end - start)), 2)
        masks = {start + one // 7: 1 << one % 7}
        place = start + other // 7
        masks[place] = masks.get(place, 0) | 1 << other % 7
        return flipped(data, masks)

    return damage


def repeated():
    """Return a damage that is the same in two to six frames in a row."""
    left, masks = [0], {}

    def damage(rng, data):
        if not left[0]:
            masks.clear()
            if rng.random() < 0.2:
                left[0] = rng.randint(2, 6)
                masks.update(
                    compensating(rng, data, *rng.choice(data_of(data, rb"[^ \t]+")))
                )
        left[0] = max(0, left[0] - 1)
        return flipped(data, masks)

    return damage


def lost_groups():
    """Return a damage that loses the length of groups, the same in 2 to 50 frames.

    A buffer that is full loses the same bytes of each frame.  Where the groups have one
    length, the head of one group and the tail of a later one make a group together.
    """
    left, lost = [0], []

    def damage(rng, data):
        if not left[0] and rng.random() < 0.5:
            groups = [match.span() for match in re.finditer(rb"\n[^\r]*\r", data)]
            count = rng.randint(1, 3)
            first = rng.randrange(len(groups) - count)
            start = rng.randrange(*groups[first])
            run = groups[first + count][0] - groups[first][0]
            lost[:] = range(start, start + run)
            left[0] = rng.randint(2, 50)
        left[0] = max(0, left[0] - 1)
        return edited(data, dict.fromkeys(lost, b"") if left[0] else {})

    return damage


def damaged_groups(share):
    """Return a damage that spoils each group with this probability."""

    def damage(rng, data):
        spans = data_of(data, rb"[^ \t]+")
        hit = [start for start, _ in spans if rng.random() < share]
        return edited(data, dict.fromkeys(hit, b"~"))

    return damage


def constant_lie():
    """Return a damage that changes an index the same way from the first frame on."""
    masks = {}

    def damage(rng, data):
        if not masks:
            start, _ = rng.choice(data_of(data, INDEX))
            masks.update(compensating(rng, data, start, start + 6))
        return flipped(data, masks)

    return damage


def worse_damages():
    """Return more classes of damage: name, what makes one, and options of a House."""
    classes = [
        ("index always hit", lambda: always_hit(INDEX), {}),
        ("identity always hit", lambda: always_hit(IDENTITY), {}),
        ("power always hit", lambda: always_hit(POWER), {}),
        ("2 to 6 times the same", repeated, {}),
        ("whole groups lost", lost_groups, {}),
        ("a lie from the start", constant_lie, {}),  # nobody can notice it
        ("13 % of the groups", lambda: damaged_groups(0.13), {}),
        ("35 % of the groups", lambda: damaged_groups(0.35), {}),
    ]
    for volts in (230, 250):
        for name, cut_off in (("rounded", False), ("cut off", True)):
            options = {"volts": volts, "cut_off": cut_off}
            name = "1e-03, %d V, %s" % (volts, name)
            classes.append((name, lambda: flips(1e-3), options))
    return classes


class Tally:
    """What became of the groups of one class of damage."""

    REFUSED = ("checksum", "form", "implausible")
    SHOWN = (
        "false index",
        "falls",
        "never sent",
        "false PAPP",
        "PAPP frames",
        "of currents",
    )
    HEAD = "%-22s %8s %9s %7s %7s %7s %8s %8s %8s" % (
        "damage",
        "frames",
        "intact",
        "used",
        "in time",
        "served",
        "checksum",
        "form",
        "implaus.",
    ) + "".join(" %11s" % name for name in SHOWN)

    def __init__(self, name):
        self.name, self.counts = name, collections.Counter()

    def row(self):
        """Return one line of the table."""
        count = self.counts
        return (
            "%-22s %8d %9d %6.2f%% %6.2f%% %6.2f%%"
            % (
                self.name,
                count["frames"],
                count["intact"],
                100.0 * count["used"] / max(1, count["intact"]),
                100.0 * count["in time"] / max(1, count["powers"]),
                100.0 * count["served"] / max(1, count["frames"]),
            )
            + "".join(" %8d" % count[name] for name in self.REFUSED)
            + "".join(" %11d" % count[name] for name in self.SHOWN)
        )


def is_false_trial(kind, clean, make, rng, seconds=2400):
    """Hit one index in each frame after the clean ones; return if it was trusted."""
    house, meter, damage = House(kind, rng), ecolinky.Meter(), make(INDEX)
    separator = "\t" if house.standard else " "
    last, end = {}, house.now + seconds
    while house.now < end:
        groups, _ = house.step()
        pieces = [frame(groups, separator)]
        if clean > 0:
            clean -= 1
        else:
            _, pieces = damage(rng, pieces[0])
        meter.feed(pieces[0], house.now)
        fields = meter.fields(house.now)
        if fields:
            for tag, truth in house.served_indexes(groups).items():
                if not last.get(tag, 0) <= fields[tag] <= truth:
                    return True
                last[tag] = fields[tag]
    return False


def bench_damage(seed, count):
    """Print what became of each class of damage; return the number of false indexes."""
    rng, total = random.Random(seed), Tally("all")
    modes = (
        ("historic", House.KINDS[:3], count * 4 // 5),
        ("standard", House.KINDS[3:], count // 5),
    )
    progress = Progress(2 * count + TRIAL_STEPS * trials_of(count))

    def run(tally, kinds, make_damage, frames, options):
        for kind in kinds:
            each = frames // 10 // len(kinds)
            run_damage(kind, make_damage(), each, rng, tally.counts, **options)
            progress.step(each)
        print(tally.row(), flush=True)

    for name, kinds, frames in modes:
        print("seed %d, %d %s frames\n%s" % (seed, frames, name, Tally.HEAD))
        for damage in all_damages():
            tally = Tally(damage.__name__.replace("_", " "))
            run(tally, kinds, lambda: damage, frames, {})
            total.counts.update(tally.counts)
    print(total.row())
    for mode, kinds, frames in modes:
        print("worse, %s, seed %d\n%s" % (mode, seed, Tally.HEAD))
        for name, make, options in worse_damages():
            run(Tally(name), kinds, make, frames, options)
            if mode == "historic" and "of the groups" in name:
                run(Tally(name + ", Tempo"), ["tempo"], make, frames, options)
    bench_trials(rng, count, progress)
    return total.counts["false index"]


TRIAL_STEPS = 1300  # the frames of a trial of 40 minutes


def trials_of(count):
    """Return how many trials go with so many frames."""
    return 2 * (count // 1000 + count // 1000 // 5)


def bench_trials(rng, count, progress):
    """Print in how many trials of 40 minutes an index that is always hit came through.

    In historic mode: in standard mode, where a balance has to be right, there is none.
    """
    for hit, make, trials in (
        ("by any two flips", flipped_twice, count // 1000),
        ("by two that keep the sum", always_hit, count // 1000 // 5),
    ):
        for name, clean in (("after ten clean frames", 10), ("from the start", 0)):
            false = 0
            for number in range(trials):
                false += is_false_trial(House.KINDS[number % 3], clean, make, rng)
                progress.step(TRIAL_STEPS)
            print(
                "one index always hit %-24s %-23s %6d trials of 40 minutes, %d false"
                % (hit, name, trials, false),
                flush=True,
            )


######## Speed: beside what the standard library alone would take ######################


def plain_decoder(stream):
    """Decode a stream with the checksum alone: the yardstick for Meter.feed."""
    values, buffer = {}, b""
    for data in stream:
        buffer += data
        while b"\x03" in buffer:
            body, _, buffer = buffer.partition(b"\x03")
            for line in body[body.find(b"\x02") + 1 :].split(b"\r"):
                line = line.lstrip(b"\n")
                if len(line) < 4:
                    continue
                separator = line[-2:-1]
                covered = line[:-1] if separator == b"\t" else line[:-2]
                if (sum(covered) & 0x3F) + 0x20 == line[-1]:
                    words = line[:-2].decode("ascii").split(separator.decode("ascii"))
                    values[words[0]] = words[-1]
    return values


def compare(name, unit, count, ours, yardstick, times=7):
    """Print what both do a second, medians of turns, and the ratio."""
    rates = []
    for _ in range(times):
        pair = []
        for work in (ours, yardstick):
            start = time.perf_counter()
            work()
            pair.append(count / (time.perf_counter() - start))
        rates.append((pair[0], pair[1], pair[0] / pair[1]))
    middle = tuple(statistics.median(column) for column in zip(*rates))
    print(
        "%-28s %8.0f %s, yardstick %.0f, ratio %.2f"
        % (name, middle[0], unit, middle[1], middle[2]),
        flush=True,
    )


def bench_feed():
    """Compare two parts of a frame's way with a checksum-only decoder.

    "guarded": decoder and guard; "published": all that the Reader does, to a snapshot.
    """
    for kind, count in (("hc", 20000), ("standard", 6000)):
        house = House(kind, random.Random(1))
        stream = [encoded(house.step()[0]) for _ in range(count)]

        def guard():
            decoder, guard = ecolinky.Decoder(), ecolinky.Guard(30.0)
            for number, data in enumerate(stream):
                for each in decoder.feed(data):
                    guard.take(each, 2.0 * number)

        def publish():
            meter = ecolinky.Meter()
            say = lambda *_: None  # noqa: E731
            source = ecolinky.Input("x", meter, ecolinky.NO_INPUT, say, 20.0, 0.0)
            for number, data in enumerate(stream):
                source.feed(data, 2.0 * number, 1.8e9 + 2.0 * number)
                source.snapshot(2.0 * number)

        mode = "standard" if house.standard else "historic"
        yardstick = lambda: plain_decoder(stream)  # noqa: E731
        compare("guarded, " + mode, "frames/s", count, guard, yardstick)
        compare("published, " + mode, "frames/s", count, publish, yardstick)


BARE = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version, wbufsize = "HTTP/1.1", -1
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "900")
        self.end_headers()
        self.wfile.write(b"x" * 900)
    def log_message(self, *arguments):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", %d), Handler).serve_forever()
"""


@contextlib.contextmanager
def bare_server():
    """Run a bare http.server with a ready-made body; yield its port and process."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", BARE % port])
    try:
        wait_for(lambda: ask(port, "/").status == 200)
        yield port, process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def running(*arguments):
    """Run the real program, ended afterwards."""
    program = Program(*arguments)
    try:
        wait_for(program.answers)
        yield program
    finally:
        program.end()


def ask_for(port, paths, count):
    """Ask for paths in turn, each on a connection of its own."""
    for number in range(count):
        path = paths[number % len(paths)]
        talk(port, ("GET %s HTTP/1.0\r\n\r\n" % path).encode())


def resident(process):
    """Return the resident memory of a process in MiB, from /proc."""
    with open("/proc/%d/status" % process.pid) as file:
        return int(re.search(r"VmRSS:\s+(\d+)", file.read()).group(1)) / 1024


def bench_http():
    """Compare requests a second with a bare http.server, and memory after the first."""
    paths = ["/status.xml", T1]
    with bare_server() as (bare, other), running("", "--demo", "standard") as program:
        wait_for(DomoticzClient(program.port).poll)
        print(
            "memory after the first polls %8.1f MiB, bare http.server %.1f"
            % (resident(program.process), resident(other))
        )
        compare(
            "http",
            "requests/s",
            1000,
            lambda: ask_for(program.port, paths, 1000),
            lambda: ask_for(bare, ["/"], 1000),
        )


def bench_latency(count=200):
    """Print the time from a frame's last byte to the first answer that shows it."""
    sent = []  # when each frame's last byte was
    go = threading.Semaphore(1)

    def power_of(number):
        return 1000 + 10 * number  # in tens, as a meter has it

    def script(esp, connection):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while go.acquire(timeout=5):
            power = power_of(len(sent))
            amperes = "%03d" % round(power / 230)  # the power agrees with them
            groups = historic(papp="%05d" % power, IINST=amperes)
            sent.append(time.perf_counter())
            connection.sendall(encoded(groups))

    esp, times = FakeEsp(script), []
    with running(esp_ini(esp.port)) as program:
        for number in range(count):
            text = b'"T1_PAPP":%d,' % power_of(number)
            wait_for(lambda: len(sent) > number)
            if number >= 3:  # before that nothing is served yet
                wait_for(lambda: text in ask(program.port, CMD10).body)
                times.append(1000 * (time.perf_counter() - sent[number]))
            time.sleep(0.01)
            go.release()
    esp.close()
    times.sort()
    print(
        "latency, frame to answer     %8.1f ms median, %.1f ms 99th percentile"
        % (statistics.median(times), times[int(len(times) * 0.99) - 1]),
        flush=True,
    )


def bench_relay(count=3000):
    """Print the time that the relay takes of a frame: two readers, and a stuck one."""
    house = House("standard", random.Random(1))
    stream = [encoded(house.step()[0]) for _ in range(count)]
    port, costs = free_port(), []
    relay = ecolinky.Relay("127.0.0.1", port, 1e9, 0.0)
    plain, relayed = ecolinky.Meter(), ecolinky.Meter(is_relayed=True)
    with contextlib.ExitStack() as stack:
        stack.callback(relay.close)
        clients = []
        for buffer in (0, 0, 4096):  # the last one never reads
            client = stack.enter_context(socket.socket())
            if buffer:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            client.connect(("127.0.0.1", port))
            client.setblocking(False)
            clients.append(client)
        relay.poll(0.0)
        for number, data in enumerate(stream):
            now = 9.0 * number / count  # the stuck one is there to the end
            start = time.perf_counter()
            plain.feed(data, now)
            middle = time.perf_counter()
            relay.poll(now)
            views = relayed.feed(data, now)
            relay.send([view.relayed for view in views if view.relayed], now)
            costs.append(1000 * (time.perf_counter() - middle - (middle - start)))
            for client in clients[:2]:
                with contextlib.suppress(BlockingIOError):
                    client.recv(65536)
    costs.sort()
    print(
        "relay, added to a frame      %8.3f ms median, %.3f ms 99th percentile"
        % (statistics.median(costs), costs[int(count * 0.99)]),
        flush=True,
    )


def at_line_rate(house, sent=None, faults=None):
    """Send a house's frames at line rate, in an ESP's chunks; fail as it is said.

    `sent` takes the values that a true answer can show, by tag.
    """
    pace = 0.05 if house.standard else 0.4

    def script(esp, connection):
        while not esp.over.is_set():
            if faults and time.monotonic() < faults.off_until:
                return
            groups, seconds = house.step()
            if sent is not None:
                values = {each[0]: each[1] for each in groups}
                power = int(values.get("PAPP") or values["SINSTS"])
                sent.setdefault("PAPP", set()).add(power)
                for tag, value in house.served_indexes(groups).items():
                    sent.setdefault(tag, set()).add(value)
            data, start = encoded(groups), time.monotonic()
            for place in range(0, len(data), 48):
                connection.sendall(data[place : place + 48])
                esp.over.wait(pace)
                if faults and faults.happen(esp, connection, pace):
                    return
            esp.over.wait(max(0.0, start + seconds - time.monotonic()))

    return script


def bench_cpu(seconds=120):
    """Print the processor time that a meter polled each two seconds takes."""
    esp = FakeEsp(at_line_rate(House("standard", random.Random(1))))
    with running(esp_ini(esp.port)) as program:
        wait_for(DomoticzClient(program.port).poll)

        def used():
            with open("/proc/%d/stat" % program.process.pid) as file:
                words = file.read().rpartition(")")[2].split()
            return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

        before, end = used(), time.monotonic() + seconds
        domoticz = DomoticzClient(program.port)
        while time.monotonic() < end:
            domoticz.poll()
            time.sleep(2)
        print(
            "cpu, polled each 2 s         %8.2f s in 10 minutes"
            % ((used() - before) / seconds * 600)
        )
    esp.close()


######## Soak: two ESPs that fail in turn, and all clients at once #####################


FAULTS = ("closed", "reset", "silent", "noise", "off")


class Faults:
    """Which fault of an ESP is due when; the first comes after `every` seconds."""

    def __init__(self, every, first):
        self.every, self.due = every, time.monotonic() + every
        self.ways = list(FAULTS[first:] + FAULTS[:first])
        self.off_until, self.seen = 0.0, collections.Counter()

    def happen(self, esp, connection, pace):
        """Do the fault that is due, if one is; return whether the connection ends."""
        if time.monotonic() < self.due:
            return False
        way = self.ways.pop(0)
        self.ways.append(way)
        self.seen[way] += 1
        if way == "silent":
            esp.over.wait(12)
        elif way == "reset":
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        elif way == "noise":
            end = time.monotonic() + 20
            self.due = end + self.every
            while time.monotonic() < end and not esp.over.wait(pace):
                connection.sendall(os.urandom(48))
        elif way == "off":
            self.off_until = time.monotonic() + 40
        self.due = max(time.monotonic(), self.off_until) + self.every
        return way != "noise"


class Records:
    """What one client recorded, and what of that is false."""

    def __init__(self, name, sent):
        self.name, self.sent = name, sent  # by number of the meter, by tag
        self.counts, self.last, self.example = collections.Counter(), {}, ""

    def take(self, meter, tag, value):
        """Record a value of a meter: a power (PAPP), or an index."""
        count, last = self.counts, self.last
        count["values"] += 1
        wrong = [
            name
            for name, is_so in (
                ("zeros", tag == "PAPP" and value == 0),
                ("falls", tag != "PAPP" and value < last.get((meter, tag), 0)),
                ("false", value not in self.sent[meter][tag]),
            )
            if is_so
        ]
        count.update(wrong)
        if wrong:
            self.example = "%s: meter %d, %s %d" % (wrong[0], meter, tag, value)
        last[meter, tag] = value

    def row(self):
        """Return what there is to say of it."""
        shown = ("polls", "failed", "values", "zeros", "falls", "false")
        words = ["%d %s" % (self.counts[name], name) for name in shown]
        return "%-14s %s %s" % (self.name, ", ".join(words), self.example)


def recording_domoticz(ports, records):
    """Return a poll that records as Domoticz does, of both boxes."""
    boxes = [(meter, DomoticzClient(port)) for meter, port in enumerate(ports, 1)]

    def poll():
        for meter, box in boxes:
            box.last.clear()  # falls are counted by what records them
            for stored in box.poll().values():
                records.take(meter, "PAPP", stored["power"])
                for tag, value in stored["indexes"].items():
                    records.take(meter, tag, value)

    return poll


def tags_in(body):
    """Return the tags of an XML document."""
    return {each.tag: each.text or "" for each in ElementTree.fromstring(body)}


def recording_jeedom(ports, records):
    """Return a poll that records as Jeedom's daemon does: whatever PPAP there is."""

    def poll():
        tags = tags_in(ask(ports[0], "/status.xml").body)
        for meter in (1, 2):
            if "T%d_PPAP" % meter in tags:
                records.take(meter, "PAPP", int(tags["T%d_PPAP" % meter] or 0))

    return poll


def recording_home_assistant(ports, records):
    """Return a poll that records as Home Assistant does, whatever the status."""

    def poll():
        tags = {}
        for path in ("/status.xml", T1, T2):
            answer = ask(ports[0], path)
            if answer.status == 401:
                raise OSError("login")
            found = tags_in(answer.body)
            if not found:
                raise OSError("empty")
            tags.update(found)
        for meter in (1, 2):
            if tags["T%d_PAPP" % meter] == "":
                continue  # unknown
            for tag in records.sent[meter]:
                records.take(meter, tag, int(tags["T%d_%s" % (meter, tag)]))

    return poll


def recording_script(ports, records):
    """Return a poll that records as a script does: cmd=10 of both boxes."""

    def poll():
        for port, inputs in ((ports[0], {1: 1, 2: 2}), (ports[1], {1: 2})):
            answer = ask(port, CMD10)
            if answer.status != 200:
                continue
            found = json.loads(answer.body.decode())
            for number, meter in inputs.items():
                if "T%d_PAPP" % number not in found:
                    continue
                for tag in records.sent[meter]:
                    records.take(meter, tag, found["T%d_%s" % (number, tag)])

    return poll


def bench_soak(minutes, every=60):
    """Poll as all clients while two ESPs fail in turn; print what was recorded."""
    houses = [House(kind, random.Random(1)) for kind in ("standard", "three-phase")]
    sent = {1: {}, 2: {}}
    faults = [Faults(every, 0), Faults(every * 1.3, 4)]
    esps = [
        FakeEsp(at_line_rate(house, sent[number], fault))
        for number, (house, fault) in enumerate(zip(houses, faults), 1)
    ]
    over, clients = threading.Event(), []

    def keep_polling(poll, records):
        while not over.wait(0.7):
            records.counts["polls"] += 1
            try:
                poll()
            except Exception as error:  # noqa: BLE001  counted and shown
                records.counts["failed"] += 1
                records.example = repr(error)

    ini = esp_ini(*[esp.port for esp in esps])
    with running(ini.replace("timeout = 5", "timeout = 30")) as program:
        ports = (program.port, program.second)
        for port in ports:
            wait_for(DomoticzClient(port).poll)
        threads = []
        for name, record in (
            ("Domoticz", recording_domoticz),
            ("Jeedom", recording_jeedom),
            ("Home Assistant", recording_home_assistant),
            ("script", recording_script),
        ):
            records = Records(name, sent)
            clients.append(records)
            poll = record(ports, records)
            threads.append(threading.Thread(target=keep_polling, args=(poll, records)))
            threads[-1].start()
        first = None
        progress = Progress(60 * minutes)
        for minute in range(minutes):
            for _ in range(60):
                time.sleep(1)
                progress.step()
            tasks, files = (
                len(os.listdir("/proc/%d/%s" % (program.process.pid, each)))
                for each in ("task", "fd")
            )
            memory = resident(program.process)
            first = first or memory
            print(
                "minute %d: %.2f MiB, %d threads, %d descriptors; faults %s"
                % (
                    minute + 1,
                    memory,
                    tasks,
                    files,
                    " / ".join(
                        " ".join("%s %d" % each for each in sorted(fault.seen.items()))
                        for fault in faults
                    ),
                )
            )
            for records in clients:
                print("  " + records.row(), flush=True)
        memory = resident(program.process) - first
        over.set()
        for thread in threads:
            thread.join()
        for esp in esps:
            esp.close()
    total = sum((records.counts for records in clients), collections.Counter())
    print(
        "soak: memory %+.2f MiB after the first minute; %d values recorded, %d zeros,"
        " %d falls, %d false; %d of %d polls failed"
        % (
            memory,
            *(total[each] for each in "values zeros falls false failed polls".split()),
        )
    )


######## The command line ##############################################################


def main():
    """Run the benchmark that the command line names; 1 if it served a false index."""
    parser = argparse.ArgumentParser(prog=".ci/bench.py", description="Benchmarks.")
    kinds = parser.add_subparsers(dest="kind", metavar="speed | damage | soak")
    kinds.required = True
    kinds.add_parser("speed", help="rates, latency, memory and processor time")
    damage = kinds.add_parser("damage", help="what damaged frames do")
    damage.add_argument("--seed", type=int, default=1, help="of the damage")
    damage.add_argument("--frames", type=int, default=250000, help="how many")
    soak = kinds.add_parser("soak", help="all clients while two ESPs fail in turn")
    soak.add_argument("--minutes", type=int, default=20, help="how long")
    soak.add_argument("--every", type=int, default=60, help="seconds between faults")
    options = parser.parse_args()
    if options.kind == "damage":
        return 1 if bench_damage(options.seed, options.frames) else 0
    if options.kind == "soak":
        bench_soak(options.minutes, options.every)
    else:
        for bench in (bench_feed, bench_http, bench_latency, bench_relay, bench_cpu):
            bench()
    return 0


if __name__ == "__main__":
    sys.exit(main())
