"""The tests that need a real client or a browser: .ci/run installs them.

cd .ci && venv/bin/python -m unittest
"""

import asyncio
import html
import importlib.util
import os
import random
import subprocess
import sys
import tempfile
import time
import tty
import unittest

import enedis_tic.link_layer as enedis_link
import gce.gce as gce_client
import pyecodevices
import serial_teleinfo

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from houses import House  # noqa: E402

import ecolinky  # noqa: E402
from test_ecolinky import (  # noqa: E402
    EJP,
    HC,
    MAC,
    RESERVED,
    STATUS_TAGS,
    DomoticzClient,
    ProgramCase,
    esp_ini,
    frame,
    frames_in,
    free_port,
    labels_of,
    live,
    publish,
    relay_of,
    running_server,
    tags_of,
    wait_for,
)

CHROMIUM = os.environ.get("CHROMIUM", "chromium")
# pyecodevices 1.2.1 reads another document than 1.7.0.
OLD_CLIENT = os.path.join(ROOT, ".ci", "old-client")


def tearDownModule():
    while RESERVED:
        RESERVED.pop().close()


######## Home page #####################################################################


class PageTests(ProgramCase):
    def dom(self, port):
        """Return the page's document in Chromium once it shows the values."""
        options = (
            "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run"
            " --disable-background-networking --disable-component-update"
            " --disable-sync --virtual-time-budget=6000 --dump-dom"
        ).split()
        with tempfile.TemporaryDirectory() as profile:
            options += ["--user-data-dir=" + profile, "http://127.0.0.1:%d/" % port]
            run = subprocess.run(
                [CHROMIUM] + options,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=90,
            )
        return html.unescape(run.stdout.decode("utf-8"))

    def test_a_browser_shows_the_served_values(self):
        program = self.start("[teleinfo2]\ninjection = yes\n", "--demo", "tempo")
        wait_for(DomoticzClient(program.port).poll)
        dom = self.dom(program.port)
        for words in (
            "en direct",
            "Heures creuses, jour bleu",
            "blanc",
            "1\u202f333,333",
            "Dans Domoticz",
            "l’injection",
            str(program.second),
        ):
            with self.subTest(words):
                self.assertTrue(words in dom, words)
        self.assertRegex(dom, 'id="power-1">[0-9\u202f]+<')

    def test_a_browser_shows_why_nothing_is_live(self):
        program = self.start(esp_ini(free_port()))
        wait_for(program.answers)
        wait_for(lambda: "transmise" in program.output())
        dom = self.dom(program.port)
        self.assertTrue("L’ESP répond, mais rien n’écoute sur ce port" in dom)
        self.assertTrue("aucune donnée" in dom)
        self.assertNotIn('id="power-1"', dom)


class RealClientsTests(unittest.TestCase):
    """The libraries of Home Assistant, and the gce library of Python scripts."""

    LOGINS = ("", "domoticz:s3cret")
    CALLS = "get_info global_get get_t1 get_t2 get_c1 get_c2"

    def home_assistant(self, port, login, library=pyecodevices):
        """Return the result of each call of pyecodevices, or the error it raises."""

        async def call():
            user, _, password = login.partition(":")
            device = library.EcoDevices(
                "127.0.0.1", port, user or None, password or None
            )
            async with device:
                results = {}
                for name in self.CALLS.split():
                    try:
                        results[name] = await getattr(device, name)()
                    except library.EcoDevicesCannotConnectError:
                        results[name] = "unavailable"
                    except library.EcoDevicesInvalidAuthError:
                        results[name] = "login"
                return results, device

        loop = asyncio.new_event_loop()
        try:
            return loop.run_until_complete(call())
        finally:
            loop.close()

    def gce(self, port, login):
        """Return a device as find_gce does; the client has no other way for a login."""
        return [
            login + "@127.0.0.1" if login else "127.0.0.1",
            "ecolinky",
            MAC,
            str(port),
        ]

    def test_the_clients_follow_two_inputs_from_live_to_stale_and_back(self):
        for login in self.LOGINS:
            with self.subTest(login=login):
                store = ecolinky.Store()
                with running_server(store, login) as port:
                    for age, hchp in ((31, 1), (0, 23456789), (31, 1), (0, 23456790)):
                        publish(store, 1, live(HCHP=hchp), age)
                        publish(store, 2, live(ADCO="021728999999"), age)
                        got, device = self.home_assistant(port, login)
                        self.assertRegex(
                            device.mac_address, "^([0-9a-f]{2}:){5}[0-9a-f]{2}$"
                        )
                        self.assertEqual(int(got["get_c1"]["daily"]), 0)
                        box = self.gce(port, login)
                        status = gce_client.status(box)
                        self.assertEqual(status["T1_PTEC"], "----" if age else "HP")
                        if age:
                            for name in ("get_t1", "get_t2"):  # unknown, not zero
                                for key in ("puissance_apparente", "periode_en_cours"):
                                    self.assertFalse(got[name].get(key), (name, key))
                            self.assertIsNone(gce_client.donnees(box))
                            continue
                        for tag in STATUS_TAGS + tags_of(1) + tags_of(2):
                            self.assertIn(tag, got["global_get"])
                        self.assertEqual(
                            got["get_t1"]["index_heures_pleines"], str(hchp)
                        )
                        self.assertEqual(
                            got["get_t2"]["numero_compteur"], "021728999999"
                        )
                        self.assertEqual(list(gce_client.teleinfo(2, box)), tags_of(2))
                        self.assertEqual(gce_client.donnees(box)["T1_HCHP"], hchp)
                        self.assertEqual(gce_client.compteurs(box)["Day_C1"], 0)

    def test_an_early_home_assistant_never_records_zero_for_a_stale_input(self):
        path = os.path.join(OLD_CLIENT, "pyecodevices", "__init__.py")
        spec = importlib.util.spec_from_file_location("pyecodevices_1_2_1", path)
        library = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(library)
        for login in self.LOGINS:
            store = ecolinky.Store()
            with running_server(store, login) as port:
                for first, second in ((0, 0), (31, 0), (0, 31), (31, 31)):
                    with self.subTest(login=login, first=first, second=second):
                        publish(store, 1, live(), first)
                        publish(store, 2, live(PAPP=920), second)
                        got, device = self.home_assistant(port, login, library)
                        self.assertEqual(MAC, device.mac_address)
                        for name, age, power in (
                            ("get_t1", first, "690"),
                            ("get_t2", second, "920"),
                        ):
                            self.assertEqual(
                                None if age else power, got[name]["current"]
                            )


class SerialReadersTests(unittest.TestCase):
    """Readers' own code on what the relay sends."""

    def test_serial_teleinfo_becomes_ready_with_all_values(self):
        tempo, _ = House("tempo", random.Random(1)).step()
        three_phase, _ = House("three-phase", random.Random(1)).step()
        meters = [HC, EJP, tempo, three_phase]
        lines = [self.serial_line() for _ in meters]
        streams = [frames_in(relay_of([frame(each)] * 6)) for each in meters]
        for line, _ in lines:
            os.write(line, b"\x02\n")
        for relayed in zip(*streams):
            for (line, _), each in zip(lines, relayed):
                os.write(line, each[2:] + b"\x02\n")  # a piece, as Relay sends it
            time.sleep(1.1)  # readline() gives up after a second: a frame has no rest
        for groups, (_, updater) in zip(meters, lines):
            with self.subTest(groups[1][1]):
                self.assertTrue(updater.ready)
                found = {key: each.value for key, each in updater.values.items()}
                self.assertEqual({each[0]: self.read(*each) for each in groups}, found)

    @staticmethod
    def read(label, data):
        """Return a value as serial-teleinfo has it."""
        if label in ("OPTARIF", "PTEC", "DEMAIN"):
            return data.rstrip(".")
        return data if label in ("ADCO", "HHPHC", "MOTDETAT", "PPOT") else int(data)

    def serial_line(self):
        """Return the writing end of a pseudo-terminal, and an updater that reads it."""
        master, slave = os.openpty()
        tty.setraw(slave)  # bytes that arrive before it is opened must stay unchanged
        updater = serial_teleinfo.ValueUpdater(os.ttyname(slave))
        self.addCleanup(os.close, master)
        self.addCleanup(os.close, slave)
        self.addCleanup(updater.stop)
        updater.start()
        return master, updater

    def relayed(self, mode):
        """Return the relayed frames of an hour of the demonstration."""
        demo = ecolinky.DemoMeter(mode)
        stream = (demo.frame(now) for now in range(0, 3600, 2))
        frames_read = frames_in(relay_of(stream))
        self.assertGreater(len(frames_read), 1700)
        return frames_read

    def test_serial_teleinfo_reads_historic_frames(self):
        for mode in ("historic", "tempo", "three-phase"):
            with self.subTest(mode):
                for raw in self.relayed(mode):
                    for line in raw[2:-2].split(b"\r\n"):
                        serial_teleinfo.parse_line(line + b"\r\n")  # or an error

    def test_enedis_tic_reads_standard_frames(self):
        for raw in self.relayed("standard"):
            groups = enedis_link.FrameFactory(raw.decode("ascii")).to_dict()
            self.assertEqual(len(labels_of(raw)[0]), len(groups))


if __name__ == "__main__":
    unittest.main()
