// The home page: its model in node, then the whole page in a browser, against a little
// server whose answer each test chooses.  Run by `node --test`; see extract.mjs for
// where the page is read.  CHROMIUM names the browser.

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { after, afterEach, before, beforeEach, describe, test } from "node:test";
import vm from "node:vm";

import puppeteer from "puppeteer-core";

import { readPage, scriptOf } from "./extract.mjs";
import * as samples from "./samples.mjs";

process.env.TZ = "Europe/Paris";  // the browser's too

const PAGE = readPage();
const NBSP = "\u00a0";
const THIN = "\u202f";
const NOW = Date.parse("2026-01-15T14:47:31+01:00");
const CLIENTS = [{ address: "192.168.1.10", age: 4.2 }];
const SEEN = { now: NOW, receivedAt: NOW, connected: true, clients: CLIENTS,
  uptime: 93784 };
const UNSEEN = { ...SEEN, connected: false };

//////// The model, in node ///////////////////////////////////////////////////////////

// The page's script where nothing happens by itself: what it defines is returned.
function loadScript() {
  const nothing = () => undefined;
  const context = vm.createContext({
    addEventListener: nothing,
    clearTimeout: nothing,
    document: { addEventListener: nothing, getElementById: () => ({}), hidden: true },
    setTimeout: nothing,
  });
  vm.runInContext(scriptOf(PAGE), context);
  return context;
}

const script = loadScript();

// Values of another realm have other prototypes: compare them as JSON.
function same(actual, expected) {
  assert.deepEqual(JSON.parse(JSON.stringify(actual)), expected);
}

// As paintCards() calls it.
function model(input, seen = SEEN) {
  return script.model({ ...input, ...input.last, age: input.age }, seen);
}

describe("the model of an input", () => {
  test("says what could be better while values come, and not later", () => {
    const remarks = ["contrat inconnu"];
    same(model(samples.input({ remarks })).remarks, 
      ["Contrat inconnu.", "Les valeurs transmises restent justes."]);
    same(model(samples.input({ remarks }), UNSEEN).remarks, []);
    assert.equal(model(samples.input({ remarks })).stateText, "en direct, à améliorer");
    assert.equal(model(samples.input({ remarks })).stateMark, "warn");
    assert.equal(model(samples.input()).stateText, "en direct");
    assert.equal(model(samples.input()).stateMark, "good");
  });

  test("says the power and the share of the subscription", () => {
    const card = model(samples.input());
    assert.equal(card.state, "live");
    assert.equal(card.stateText, "en direct");
    assert.equal(card.power, `1${THIN}840`);
    assert.equal(card.shareText, `27${NBSP}%`);
    assert.equal(card.limitText, `8${NBSP}A sur 30${NBSP}A (6${NBSP}kVA)`);
    assert.equal(card.load, "good");
  });

  test("counts the subscription of each of three phases", () => {
    const card = model(samples.threePhase());
    assert.equal(card.shareText, `86${NBSP}%`);
    assert.equal(card.limitText,
      `de 3${NBSP}×${NBSP}20${NBSP}A (12${NBSP}kVA)`);
    assert.equal(card.load, "warn");
  });

  test("has no share of a subscription that is not known", () => {
    const input = samples.input();
    input.fields.ISOUSC = 0;
    const card = model(input);
    same([card.share, card.shareText, card.limitText, card.load], [0, "", "", "good"]);
  });

  test("turns orange above 80 % and red above 90 %", () => {
    const loads = [5520, 5521, 6210, 6211].map((power) => {
      const input = samples.input();
      input.fields.PAPP = power;
      return model(input).load;
    });
    assert.deepEqual(loads, ["good", "warn", "warn", "bad"]);
  });

  test("keeps the currents of the phases in order", () => {
    same(model(samples.threePhase()).currents.map(({ phase, name, value, load }) =>
      [phase, name, value, load]), [
      [1, "Phase 1", `11${NBSP}A sur 20${NBSP}A`, "good"],
      [2, "Phase 2", `17${NBSP}A sur 20${NBSP}A`, "warn"],
      [3, "Phase 3", `24${NBSP}A sur 20${NBSP}A`, "bad"],
    ]);
    same(model(samples.input()).currents, []);  // the gauge tells it
  });

  test("tells what each period has counted today, and their sum", () => {
    const card = model(samples.input());
    same(card.indexes.map(({ tag, today, value }) => [tag, today, value]), [
      ["HCHC", "4,12", `12${THIN}345,686`],
      ["HCHP", "8,22", `9${THIN}876,543`],
      ["total", "12,34", ""],
    ]);
    assert.equal(card.since, "");
    const base = model(samples.threePhase());
    same(base.indexes.map(({ tag, today }) => [tag, today]), [["BASE", "23,45"]]);
    assert.equal(base.since, "depuis 14:20");
  });

  test("does not tell today's energy of an input that is not live", () => {
    for (const card of [model(samples.stale()), model(samples.input(), UNSEEN)]) {
      same(card.indexes.map(({ tag, today }) => [tag, today]),
        [["HCHC", "–"], ["HCHP", "–"]]);
      assert.match(card.asOf, /^figé depuis \d\d:\d\d$/);
    }
    const unknown = model(samples.input({ today: null }));
    same(unknown.indexes.map(({ today }) => today), ["–", "–", "–"]);
  });

  test("names periods and indexes as the program does", () => {
    const card = model(samples.tempo());
    assert.equal(card.tariff, "Tempo");
    same(card.indexes[1], {
      tag: "BBRHPJB",
      name: "Heures pleines, jour bleu",
      today: "14,21",
      value: `13${THIN}456,797`,
      running: true,
    });
    assert.deepEqual([...card.indexes].filter((index) => index.running).length, 1);
  });

  test("gives each Tempo day its own colour", () => {
    same(model(samples.tempo("rouge")).days, [
      { id: "today", title: "Aujourd’hui", colour: "bleu", mark: "day-blue" },
      { id: "tomorrow", title: "Demain", colour: "rouge", mark: "day-red" },
    ]);
    same(model(samples.tempo("blanc")).days[1],
      { id: "tomorrow", title: "Demain", colour: "blanc", mark: "day-white" });
    same(model(samples.tempo(null)).days[1],
      { id: "tomorrow", title: "Demain", colour: "pas encore annoncé", mark: "" });
    same(model(samples.input()).days, []);
  });

  test("says nothing live of an input that is stale", () => {
    const known = samples.threePhase();
    const why = samples.fault("esp", "l’ESP dort", "le réveiller");
    const card = model({ ...known, state: "stale", age: 95, ...why });
    assert.equal(card.power, "–");
    assert.equal(card.shareText, "");
    assert.equal(card.share, 0);
    assert.equal(card.alert, "");
    assert.equal(card.stateText, "données périmées depuis 14:45");
    same(card.trouble, { mark: "bad", cause: "L’ESP dort.", remedy: "Le réveiller.",
      page: "http://192.168.1.50/" });
    assert.equal(card.indexes[0].value, `45${THIN}678,901`);
    assert.equal(card.indexes[0].running, false);
    same(card.currents.map((current) => current.value), Array(3).fill(`–${NBSP}A`));
    assert.ok(card.chart.points.every((point) => point.time < NOW - 20000));
  });

  test("says nothing live when the program does not answer", () => {
    const card = model(samples.input(samples.AWAY), UNSEEN);
    assert.equal(card.state, "stale");
    assert.equal(card.power, "–");
    assert.equal(card.trouble, null);
    same(card.way.map(({ mark }) => mark), ["soft", "soft", "bad", "soft"]);
    assert.equal(card.way[2].fact, "ne répond pas");
    assert.equal(model(samples.waiting(), UNSEEN).stateText, "en attente du compteur");
  });

  test("tells the date of data that are older than a day", () => {
    const card = model(samples.stale(2 * 86400));
    assert.equal(card.stateText, "données périmées depuis le 13 janvier à 14:47");
  });

  test("waits for a meter of which nothing is known", () => {
    const card = model(samples.waiting());
    assert.equal(card.stateText, "en attente du compteur");
    assert.equal(card.power, "–");
    assert.equal(card.limitText, "");
    assert.match(card.chart.notice, /^Pas encore de courbe/);
    same(card.link[5], ["Mode", "–"]);
  });

  const marks = (card) => [...card.way].map(({ mark }) => mark);
  const facts = (card) => [...card.way].map(({ fact }) => fact);

  test("shows the way of a value: four stations, each with its one fact", () => {
    const card = model(samples.input());
    same(marks(card), ["good", "good", "good", "good"]);
    same(facts(card), [`trame il y a 1${NBSP}s`, "192.168.1.50:8888",
      `en marche depuis 26${NBSP}h`, `lu par 192.168.1.10 il y a 4${NBSP}s`]);
  });

  test("marks the station at fault, which carries the reason", () => {
    for (const [station, expected] of [
      ["linky", ["bad", "good", "good", "soft"]],
      ["esp", ["soft", "bad", "good", "soft"]],
      ["ecolinky", ["soft", "soft", "bad", "soft"]],
      ["", ["soft", "soft", "good", "soft"]],
    ]) {
      const why = samples.fault(station, "c’est cassé", "réparer");
      const card = model(samples.stale(95, samples.input(), why));
      same(marks(card), expected);
      assert.equal(facts(card).includes("c’est cassé"), station !== "");
    }
  });

  test("says in grey what only takes some seconds", () => {
    const why = samples.fault("", "ecolinky se connecte à l’ESP", "");
    same(model({ ...samples.waiting(), ...why }).trouble, { mark: "soft",
      cause: "Ecolinky se connecte à l’ESP.", remedy: "", page: "" });
  });

  test("says who read last, and that nobody does any more", () => {
    const seen = (clients, changes) => ({ ...SEEN, clients, ...changes });
    const last = (...options) => model(samples.input(), seen(...options)).way[3];
    same(last([]), { name: "Domoticz", mark: "soft", fact: "n’a pas encore lu" });
    const two = [{ address: "10.0.0.2", age: 599 }, { address: "10.0.0.1", age: 900 }];
    same(last(two), { name: "Domoticz", mark: "good",
      fact: `lu par 10.0.0.2 il y a 10${NBSP}min` });
    const late = [{ address: "10.0.0.2", age: 3600 }];
    same(last(late), { name: "Domoticz", mark: "bad",
      fact: "10.0.0.2 ne lit plus depuis 13:47" });
    assert.equal(last(late, { connected: false }).mark, "soft");
    const card = model(samples.input(), seen(late));
    assert.match(card.remarks[0], /^Les valeurs arrivent, mais rien ne les lit plus/);
    assert.equal(card.stateMark, "warn");
    same(model(samples.stale(), seen(late)).remarks, []);
    same(model(samples.input(), seen(two)).remarks, []);
    assert.equal(model(samples.stale(), seen(two)).way[3].fact,
      `lu par 10.0.0.2 il y a 10${NBSP}min, sans valeur`);
    same([...model(samples.input(), seen(two)).link].slice(-2), [
      ["10.0.0.2", `a lu il y a 10${NBSP}min`],
      ["10.0.0.1", `a lu il y a 15${NBSP}min`],
    ]);
  });

  test("links to the page of the ESP where that may help", () => {
    for (const [source, page] of [["192.168.1.50:8888", "http://192.168.1.50/"],
      ["linky.local:23", "http://linky.local/"]]) {
      const card = model({ ...samples.stale(), source });
      assert.equal(card.trouble.page, page);
    }
    const offline = samples.fault("ecolinky", "pas de réseau", "vérifier le Wi-Fi");
    assert.equal(model({ ...samples.stale(), ...offline }).trouble.page, "");
  });

  test("shows what is injected as a power below zero", () => {
    const card = model(samples.injecting(1230));
    assert.equal(card.power, `-1${THIN}230`);
    assert.equal(card.limitText, "injectés sur le réseau");
    assert.equal(card.shareText, "");
    assert.equal(card.share, 0);
    same([...card.indexes].pop(), { tag: "EAIT", name: "Injecté", today: "7,65",
      value: `1${THIN}234,567` });
    assert.equal(model(samples.injecting(0)).power, "0");
    assert.equal(model(samples.injecting(0)).limitText,
      `0${NBSP}A sur 30${NBSP}A (6${NBSP}kVA)`);
    assert.equal(model(samples.injecting(), UNSEEN).power, "–");
  });

  test("announces an excess, and the dear hours that are near", () => {
    assert.equal(model(samples.threePhase()).alert,
      `Dépassement${NBSP}: 24${NBSP}A pour 20${NBSP}A. Éteindre un appareil, sinon`
      + " le compteur coupe.");
    assert.equal(model(samples.threePhase()).stateMark, "bad");
    const ejp = samples.input();
    ejp.fields.PEJP = 30;
    assert.equal(model(ejp).alert, `Pointe mobile dans 30${NBSP}min`);
    assert.equal(model(samples.input()).alert, "");
  });

  test("groups the digits of every counter, and tells the share of good groups", () => {
    const link = Object.fromEntries(model(samples.input()).link);
    assert.equal(link["Trames"], `123${THIN}456`);
    assert.equal(link["Groupes abîmés"], `4${THIN}333`);
    assert.equal(link["Invraisemblables"], "3");
    assert.equal(link["Groupes intacts"], `1${THIN}234${THIN}567 (99,65${NBSP}%)`);
    assert.equal(link["Mode"], "historique");
  });

  test("groups the digits of the subscription too", () => {
    const big = samples.input();
    big.fields.ISOUSC = 1200;
    assert.equal(model(big).limitText,
      `8${NBSP}A sur 1${THIN}200${NBSP}A (240${NBSP}kVA)`);
  });

  test("tells a duration in the unit that is easy to read", () => {
    const told = [7, 99, 120, 5400, 7200, 93784, 864000].map(script.duration);
    assert.deepEqual(told, ["7 s", "99 s", "2 min", "90 min", "2 h", "26 h", "10 j"]
      .map((words) => words.replace(" ", NBSP)));
  });

  test("says that there is no curve until it has two minutes", () => {
    const notice = (powers) =>
      model(samples.input({ history: samples.historyOf(powers) })).chart.notice;
    const none = `Pas encore de courbe${NBSP}: un point par minute.`;
    assert.equal(notice([]), none);
    assert.equal(notice([null, 500, null]), none);
    assert.equal(notice([null, 500, 510]), "");
  });
});

describe("the chart", () => {
  const axesOf = (power, width = 304) => {
    const input = samples.input({ history: samples.historyOf(power) });
    return script.scale(model(input).chart, width);
  };

  test("begins at the first minute that is known and ends now", () => {
    const history = samples.historyOf([null, null, 500, null, 600]);
    const { chart } = model(samples.input({ history }));
    same(chart.points.map((point) => [(point.time - NOW) / 1000, point.power]),
      [[-150, 500], [-90, null], [-30, 600], [0, 1840]]);
  });

  test("puts the highest power under the top, and now at the right", () => {
    const axes = axesOf([500, 600, 9600]);
    assert.equal(axes.topPower, 10000);
    assert.equal(axes.powerStep, 5000);
    assert.equal(axes.x(NOW), 298);
    assert.equal(axes.y(0), 186);
    assert.equal(axes.y(10000), 18);
  });

  test("marks round times with room between them at every span and width", () => {
    for (const minutes of [2, 3, 7, 20, 61, 150, 300, 480, 960, 1440]) {
      for (const width of [280, 304, 334, 480, 716]) {
        const axes = axesOf(Array(minutes).fill(500), width);
        const times = [...script.roundTimes(axes)];
        const places = times.map(axes.x);
        assert.ok(times.every((time) => time % 60000 === 0), "not a whole minute");
        assert.ok(places.every((x) => x >= 56 && x <= width - 6), "no room");
        const apart = places.length > 1 ? places[1] - places[0] : width;
        const last = places[places.length - 1];
        assert.ok(last >= width - 6.1 - apart, "the end has no time");
        places.slice(1).forEach((x, i) => assert.ok(x - places[i] >= 50, "too near"));
      }
    }
  });

  test("marks eight hours by hours that are round where the reader lives", () => {
    const times = [...script.roundTimes(axesOf(Array(480).fill(500), 716))];
    assert.deepEqual(times.map((time) => script.clockTime(time)),
      ["07:00", "08:00", "09:00", "10:00", "11:00", "12:00", "13:00",
        "14:00"]);
  });

  test("ends its minutes where the program's last minute ended", () => {
    const history = { ...samples.historyOf([500, 600]), age: 47.5 };
    const { chart } = model(samples.input({ history }));
    same(chart.points.map((point) => (point.time - NOW) / 1000), [-137.5, -77.5, 0]);
  });

  test("stands a clock that was set back", () => {
    const axes = axesOf([500, 600, 700]);
    same([...script.roundTimes({ ...axes, now: axes.first - 3600000 })], []);
  });

  test("leaves a gap where nothing is known", () => {
    const axes = axesOf([500, 600, null, 700]);
    const { chart } = model(samples.input({ state: "stale", age: 40,
      history: samples.historyOf([500, 600, null, 700]) }));
    const paths = script.curve(axes, chart.points).map(script.markup).join("");
    assert.equal(paths.match(/class="curve"/g).length, 2);
    const areas = [...paths.matchAll(/class="area" d="M(\S+) 186L(.*)V186z"/g)];
    assert.equal(areas.length, 2);
    for (const [, begin, line] of areas) {
      assert.ok(line.startsWith(begin + " "), "the area leans at its left");
    }
  });

  test("draws what is injected below zero", () => {
    const axes = axesOf([500, -2600, -300]);
    assert.ok(axes.bottomPower <= -2600 && axes.topPower >= 1840);
    assert.ok(axes.y(0) > 18 && axes.y(0) < 186);
    assert.ok(axes.y(-2600) > axes.y(0));
    const { chart } = model(samples.injecting(1230));
    assert.equal([...chart.points].pop().power, -1230);
  });

  test("shades each run of cheap hours", () => {
    const cheap = (minute) => Number(minute === 1 || minute === 2 || minute > 3);
    const history = samples.historyOf(Array(6).fill(500), () => 0, cheap);
    const { chart } = model(samples.input({ history }));
    const axes = script.scale(chart, 304);
    const shades = script.cheapHours(axes, chart.points).map(script.markup);
    assert.equal(shades.length, 2);
    const x = axes.x(chart.points[1].time);
    assert.match(shades[0], new RegExp(`x="${x}"`));
    assert.equal(chart.cheap, true);
    assert.equal(model(samples.threePhase()).chart.cheap, true);
    const none = samples.historyOf([500, 500]);
    assert.equal(model(samples.input({ history: none })).chart.cheap, false);
  });

  test("has a bar as high as the share that was lost", () => {
    const bars = (lost) => {
      const history = samples.historyOf(Array(4).fill(500), (minute) => lost[minute]);
      const { chart } = model(samples.input({ history }));
      const strip = script.markup(script.lostGroups(script.scale(chart, 304),
        chart.points));
      return [...strip.matchAll(/v-([\d.]+)/g)].map(([, height]) => Number(height));
    };
    assert.deepEqual(bars([0, 0, 0, 0]), []);
    assert.deepEqual(bars([1, 10, 0, 0]), [1, 3.6]);
    assert.deepEqual(bars([25, 100, 0, 0]), [9, 9]);
  });

  test("puts the minutes of an answer behind those of the last one", () => {
    const history = (first, ...powers) => ({ ...samples.historyOf(powers), first });
    const joined = (old, fresh) => {
      const { first, minutes } = script.joined(old, fresh);
      return [first, ...[...minutes].map(([power]) => power)];
    };
    same(joined(undefined, history(7, 1, 2)), [7, 1, 2]);
    same(joined(history(7, 1, 2), history(9)), [7, 1, 2]);
    same(joined(history(7, 1, 2), history(9, 3)), [7, 1, 2, 3]);
    same(joined(history(7, 1, 2), history(8, 4, 5)), [7, 1, 4, 5]);
    same(joined(history(7, 1, 2), history(10, 3)), [10, 3]);  // a minute is missing
    same(joined(history(7, 1, 2), history(3, 6)), [3, 6]);  // another start
    const day = history(0, ...Array(1440).fill(5));
    const next = joined(day, history(1440, 6, 7));
    same([next[0], next.length, ...next.slice(-2)], [2, 1441, 6, 7]);
  });

  test("tells the point that is next to a time", () => {
    const { chart } = model(samples.input({ history:
      samples.historyOf([500, 600, 700], (minute) => 3 * minute) }));
    const near = (seconds) => script.nearest(chart.points, NOW + 1000 * seconds).power;
    assert.deepEqual([-1000, -150, -119, -59, -14, 0, 99].map(near),
      [500, 500, 600, 700, 1840, 1840, 1840]);
    const points = [...chart.points].map(script.describePoint);
    assert.equal(points[0], `14:45${NBSP}: 500${NBSP}VA`);
    assert.equal(points[1], `14:46${NBSP}: 600${NBSP}VA, 3${NBSP}% perdus`);
    assert.equal(script.describePoint({ time: NOW, power: null, lost: 0 }),
      `14:47${NBSP}: –${NBSP}VA`);
  });
});

describe("the source of the page", () => {
  test("can stand in a raw Python string and is at most 88 columns wide", () => {
    assert.ok(!PAGE.includes('"'.repeat(3)));
    assert.ok(PAGE.endsWith("</html>\n"));
    const wide = PAGE.split("\n").filter((line) => [...line].length > 88);
    assert.deepEqual(wide, []);
  });

  test("asks nothing of anybody else", () => {
    assert.deepEqual(PAGE.match(
      /(src|href)="(?!data:|ecolinky\.json|\${page}")[^"]*"/g), null);
    assert.deepEqual(PAGE.match(/@import|url\(/g), null);
  });

  test("has one kind of apostrophe in what is shown", () => {
    const shown = PAGE.replace(/<style>[^]*<\/style>/, "").replace(/\/\/ .*$/gm, "");
    assert.deepEqual(shown.match(/[a-zé]'[a-zé]+/gi), null);
  });

  test("keeps to its limits: 40 kB and 1,000 lines", () => {
    const size = Buffer.byteLength(PAGE);
    assert.ok(size <= 40000, `${size} bytes`);
    assert.ok(PAGE.split("\n").length <= 1001);
  });

  test("says a sentence to a browser without JavaScript", () => {
    assert.match(PAGE, /<noscript>\s*<p>[^<]+JavaScript\./);
  });
});

//////// The page, in a browser ///////////////////////////////////////////////////////

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core"), "utf8");
const PHONES = [360, 390];
const pause = (ms) => new Promise((done) => {
  setTimeout(done, ms);
});

describe("the page in a browser", { concurrency: false }, () => {
  let browser;
  let server;
  let origin;
  let tab;
  let answer;  // what /ecolinky.json says: an object, or a function of the response
  let polls;
  let asked;  // from which minute on
  let failures;  // requests that failed, errors of the script

  function reply(request, response) {
    if (request.url === "/") {
      response.writeHead(200, { "Content-Type": "text/html; charset=utf-8" });
      response.end(PAGE);
    } else if (/^\/ecolinky\.json\?since=\d+$/.test(request.url)) {
      asked.push(Number(request.url.split("=")[1]));
      polls += 1;
      if (typeof answer === "function") answer(response);
      else response.end(JSON.stringify(answer));
    } else {
      response.writeHead(404).end();
    }
  }

  async function open(width = 1280, scheme = "light") {
    await tab.setViewport({ width, height: 800 });
    await tab.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
    await tab.goto(origin, { waitUntil: "load" });
    await tab.waitForSelector("body[data-ready='1']", { timeout: 5000 });
  }

  const text = (id) => tab.$eval("#" + id, (node) => node.textContent);
  const has = (selector) => tab.waitForSelector(selector, { timeout: 4000 });
  const becomes = (id, wanted) => tab.waitForFunction(
    (name, words) => document.getElementById(name)?.textContent.includes(words),
    { timeout: 4000, polling: 50 }, id, wanted);

  // Ask now, not in two seconds: most tests need not wait.
  const refresh = () => tab.evaluate("poll()");

  function hide(hidden) {
    return tab.evaluate((value) => {
      Object.defineProperty(document, "hidden", { configurable: true, value });
      document.dispatchEvent(new Event("visibilitychange"));
    }, hidden);
  }

  before(async () => {
    server = createServer(reply);
    await new Promise((done) => {
      server.listen(0, "127.0.0.1", done);
    });
    origin = `http://127.0.0.1:${server.address().port}/`;
    const named = process.env.CHROMIUM || "chromium";
    const path = execFileSync("which", [named], { encoding: "utf8" }).trim();
    browser = await puppeteer.launch({ executablePath: path, args: ["--no-sandbox"] });
  });

  after(async () => {
    await browser?.close();
    server?.closeAllConnections();
    server?.close();
  });

  beforeEach(async () => {
    answer = samples.answer();
    polls = 0;
    asked = [];
    failures = [];
    tab = await browser.newPage();
    tab.on("requestfailed", (request) => failures.push(request.url()));
    tab.on("response", (response) => {
      if (response.status() !== 200) failures.push(response.url());
    });
    tab.on("pageerror", (error) => failures.push(String(error)));
  });

  afterEach(() => tab.close());

  test("shows the values, and new ones two seconds later", async () => {
    await open();
    assert.equal(await text("power-1"), `1${THIN}840`);
    assert.equal(await text("share-1"), `27${NBSP}%`);
    assert.equal(await text("limit-1"), `8${NBSP}A sur 30${NBSP}A (6${NBSP}kVA)`);
    assert.equal(await text("index-1-HCHC"), `12${THIN}345,686`);
    assert.equal(await text("today-1-HCHP"), "8,22");
    const running = await tab.$$eval("tr.running th", (cells) =>
      cells.map((cell) => cell.textContent));
    assert.deepEqual(running, ["Heures pleines en cours"]);
    assert.equal(await tab.title(), `1${THIN}840 VA · ecolinky`);
    answer.inputs[0].fields.PAPP = 2050;
    await becomes("power-1", `2${THIN}050`);
    assert.equal(await tab.title(), `2${THIN}050 VA · ecolinky`);
  });

  test("makes no request that fails and has no error", async () => {
    await open();
    await pause(300);
    assert.deepEqual(failures, []);
  });

  test("shows a stale input in grey, without its power", async () => {
    answer = samples.answer([samples.tempo()]);
    await open();
    answer = samples.answer([samples.stale(95, samples.tempo())]);
    await refresh();
    await has(".card.stale");
    assert.equal(await tab.$("#power-1"), null);
    assert.match(await text("state-1"), /^données périmées depuis \d\d:\d\d$/);
    assert.equal((await text("reason-1")).replace(/\s+/g, " "),
      "Un autre programme lit l’ESP, qui ne sert qu’un lecteur.Arrêter cet autre"
      + " programme (nc, second ecolinky, autre domotique).La page de l’ESP8266");
    const [large, normal] = await tab.evaluate(() => ["#reason-1 b", "body"].map((at) =>
      parseFloat(getComputedStyle(document.querySelector(at)).fontSize)));
    assert.ok(large >= 1.5 * normal, `${large} px`);
    assert.equal(await tab.$eval("#reason-1 a", (link) => link.href),
      "http://192.168.1.50/");
    assert.equal(await text("index-1-BBRHCJB"), `12${THIN}345,686`);
    assert.equal(await text("tomorrow-1"), "rouge");
    assert.equal(await tab.title(), "– VA · ecolinky");
  });

  test("shows what was known last in a new tab too", async () => {
    answer = samples.answer([samples.stale(7200, samples.tempo())]);
    await open();
    assert.equal(await text("index-1-BBRHCJB"), `12${THIN}345,686`);
    assert.match(await text("as-of-1"), /^figé depuis \d\d:\d\d$/);
    assert.match(await text("state-1"), /^données périmées depuis \d\d:\d\d$/);
  });

  test("asks though a name and a password stand in its address", async () => {
    origin = origin.replace("http://", "http://nom:secret@");
    await open();
    origin = origin.replace("nom:secret@", "");
    assert.equal(await text("power-1"), `1${THIN}840`);
    assert.equal(await text("down"), "");
  });

  test("loads itself anew when the program was updated", async () => {
    await open();
    await tab.evaluate(() => {
      window.isOld = true;
    });
    answer = { ...samples.answer(), version: "9.9.9" };
    const loaded = tab.waitForNavigation({ timeout: 5000 });
    await tab.evaluate("void poll()");  // which ends with the page
    await loaded;
    assert.equal(await tab.evaluate(() => window.isOld), undefined);
  });

  test("breaks a long state on a narrow phone", async () => {
    answer = samples.answer([samples.stale(40 * 86400)]);
    await open(320);
    const [width, room] = await tab.evaluate(() => [
      document.getElementById("state-1").getBoundingClientRect().width,
      document.documentElement.clientWidth,
    ]);
    assert.ok(width < room - 50, `${width} of ${room}`);
    const scroll = await tab.evaluate(() => document.documentElement.scrollWidth);
    assert.ok(scroll <= 320, String(scroll));
  });

  test("names every meter in the title", async () => {
    answer = samples.twoInputs();
    await open();
    assert.equal(await tab.title(), `1${THIN}840 · 9${THIN}600 VA · ecolinky`);
  });

  test("announces a reason in a place that stays", async () => {
    await open();
    await tab.evaluate(() => {
      window.oldPlace = document.getElementById("reason-1");
    });
    answer = samples.answer([samples.stale()]);
    await refresh();
    await becomes("reason-1", "l’ESP");
    const role = await tab.evaluate(() =>
      window.oldPlace.isConnected && window.oldPlace.getAttribute("role"));
    assert.equal(role, "status");
  });

  test("does not exchange phases", async () => {
    answer = samples.answer([samples.threePhase()]);
    await open();
    const shown = await Promise.all([1, 2, 3].map((phase) =>
      text("current-1-" + phase)));
    assert.deepEqual(shown, [11, 17, 24].map((amperes) =>
      `${amperes}${NBSP}A sur 20${NBSP}A`));
  });

  test("shows the colours of today and of tomorrow", async () => {
    answer = samples.answer([samples.tempo()]);
    await open();
    assert.equal(await text("today-1"), "bleu");
    assert.equal(await text("tomorrow-1"), "rouge");
    const colours = await tab.$$eval(".day", (days) =>
      days.map((day) => getComputedStyle(day).backgroundColor));
    assert.deepEqual(colours, ["rgb(42, 102, 217)", "rgb(201, 45, 40)"]);
  });

  test("shows an injection", async () => {
    answer = samples.answer([samples.injecting(900)], { ports: [4000, 4001] });
    await open();
    assert.equal(await text("power-1"), "-900");
    assert.equal(await text("index-1-EAIT"), `1${THIN}234,567`);
    assert.match(await text("domoticz"), /second pour l’injection/);
  });

  test("shows two inputs, each with its own box and relay", async () => {
    answer = samples.twoInputs();
    await open();
    assert.equal(await text("power-2"), `9${THIN}600`);
    assert.equal(await text("title-2"), "Compteur 2");
    const footer = (await text("domoticz")).replace(/\s+/g, " ");
    assert.match(footer, /matériel de type « Eco Devices », modèle « EcoDevices » : /);
    assert.match(footer, / : adresse 127.0.0.1, port 4000, et un second pour le c/);
    assert.match(footer, /le compteur 2 : adresse 127.0.0.1, port 4001\./);
    assert.match(footer, /lecteurs : adresse 127.0.0.1, port 8890/);
  });

  test("says nothing of a relay that there is not", async () => {
    await open();
    assert.doesNotMatch(await text("domoticz"), /TIC/);
  });

  test("escapes every text that it is given", async () => {
    const bad = '<img src=x onerror="window.stolen=1">&amp;';
    const evil = (value) => {
      if (typeof value === "string") return value + bad;
      if (Array.isArray(value)) return value.map(evil);
      if (value === null || typeof value !== "object") return value;
      return Object.fromEntries(Object.entries(value).map(([key, part]) =>
        [key, evil(part)]));
    };
    const input = samples.tempo();
    const { state, fields, tariff, ...rest } = input;
    const tags = tariff.indexes.map((index) => ({ ...evil(index), tag: index.tag }));
    const wrong = { ...evil(rest), state, fields: evil(fields),
      tariff: { ...evil(tariff), indexes: tags }, today: input.today, history:
      input.history, fault: { station: "", cause: bad, remedy: bad }, remarks: [bad] };
    answer = { ...samples.answer([wrong]), version: bad };
    await open();
    await becomes("input-1", "<img");
    assert.match(await text("tomorrow-1"), /<img src=x/);
    assert.match(await text("domoticz"), /<img src=x.*&amp;/);
    assert.match(await text("input-1"), /192.168.1.50:8888<img/);
    assert.match(await text("input-1"), /Tarif Tempo<img/);
    assert.match(await text("input-1"), /jour rouge<img/);
    assert.equal(await tab.$("img:not(#logo)"), null);
    assert.equal(await tab.evaluate(() => window.stolen), undefined);
  });

  test("keeps what is selected while new values come", async () => {
    await open();
    await tab.evaluate(() => {
      document.querySelector("#domoticz details").open = true;
      getSelection().selectAllChildren(document.querySelector("#domoticz p"));
    });
    const selected = await tab.evaluate(() => String(getSelection()));
    assert.match(selected, /127\.0\.0\.1, port.4000/);
    answer.inputs[0].fields.PAPP = 3333;
    answer.uptime += 3600;
    await becomes("power-1", `3${THIN}333`);
    assert.equal(await tab.evaluate(() => String(getSelection())), selected);
  });

  test("touches only what changed", async () => {
    await open();
    await tab.evaluate(() => {
      window.touched = [];
      const note = ({ target }) => {
        const node = target.nodeType === 1 ? target : target.parentNode;
        window.touched.push(node.closest("[id]").id);
      };
      const observer = new MutationObserver((changes) => changes.forEach(note));
      const kinds = { attributes: true, childList: true, characterData: true };
      observer.observe(document.getElementById("cards"), { subtree: true, ...kinds });
    });
    answer.inputs[0].fields.HCHP += 1;
    await becomes("index-1-HCHP", "544");
    const touched = await tab.evaluate(() => window.touched);
    const values = touched.filter((id) => id !== "chart-1");  // where time goes on
    assert.deepEqual(values, ["index-1-HCHP"]);
  });

  test("does not poll while it is hidden, and does at once when shown", async () => {
    await open();
    await hide(true);
    await pause(200);
    const pollsThen = polls;
    await pause(2300);
    assert.equal(polls, pollsThen);
    answer.inputs[0].fields.PAPP = 4444;
    const shownAt = Date.now();
    await hide(false);
    await becomes("power-1", `4${THIN}444`);
    assert.ok(Date.now() - shownAt < 1000, "it was slow");
    await pause(2300);
    assert.ok(polls <= pollsThen + 2, "it polls twice as often");
  });

  test("shows no power of an hour ago as live when it is shown again", async () => {
    await open();
    await hide(true);
    answer = () => undefined;  // no answer for now
    await tab.evaluate(() => {
      const real = Date.now;
      Date.now = () => real() + 3600000;
    });
    await hide(false);
    await has(".card.stale");
    assert.equal(await text("power-1"), "–");
  });

  const PROBLEMS = {
    "a program that is unreachable": [
      (response) => response.destroy(), /ne répond pas/],
    "an answer whose JSON is cut": [
      (response) => response.end('{"version": "1.2'), /coupée ou illisible/],
    "a connection that ends in the middle": [
      (response) => {
        response.writeHead(200, { "Content-Length": "9999" });
        response.write('{"version":');
        setTimeout(() => response.destroy(), 50);
      }, /coupée ou illisible/],
    "a password that is asked for": [
      (response) => response.writeHead(401).end("mot de passe"), /mot de passe/],
    "an error of the server": [
      (response) => response.writeHead(500).end("{}"), /erreur \(500\)/],
  };
  for (const [name, [trouble, sentence]] of Object.entries(PROBLEMS)) {
    test(`has a sentence for ${name}, and then recovers`, async () => {
      await open();
      const good = answer;
      answer = trouble;
      await refresh();
      await has("#down:not(:empty)");
      assert.match(await text("down"), sentence);
      assert.doesNotMatch(await text("down"), / [:;?!]|'/);
      assert.equal(await text("power-1"), "–");
      assert.match(await text("state-1"), /^données périmées depuis/);
      assert.equal(await text("index-1-HCHC"), `12${THIN}345,686`);
      answer = good;
      await refresh();
      await becomes("power-1", `1${THIN}840`);
      assert.equal(await text("down"), "");
    });
  }

  test("asks again by itself after an answer that failed", async () => {
    answer = (response) => response.destroy();
    await open();
    assert.match(await text("down"), /ne répond pas/);
    assert.equal(await text("cards"), "");
    answer = samples.answer();
    await becomes("power-1", `1${THIN}840`);
    assert.equal(await text("down"), "");
  });

  test("gives up a question after five seconds", async () => {
    answer = () => undefined;
    await tab.setViewport({ width: 800, height: 600 });
    await tab.goto(origin);
    await tab.waitForSelector("body[data-ready='1']", { timeout: 6500 });
    assert.match(await text("down"), /ne répond pas/);
  });

  const STATES = {
    live: () => samples.answer([samples.input({ relay_port: 8889 })]),
    stale: () => samples.answer([samples.stale()]),
    waiting: () => samples.answer([samples.waiting()]),
    damaged: () => samples.answer([samples.input({ remarks: ["l’ESP lit en 8N1"],
      history: samples.damagedHistory() })]),
    "never read": () => samples.answer(undefined, { clients: [] }),
    "read no more": () => samples.answer(undefined,
      { clients: [{ address: "192.168.1.10", age: 3600 }] }),
    tempo: () => samples.answer([samples.tempo("blanc")]),
    "three-phase": () => samples.answer([samples.threePhase()]),
    injection: () => samples.answer([samples.injecting()], { ports: [4000, 4001] }),
    "two inputs": samples.twoInputs,
  };

  for (const scheme of ["light", "dark"]) {
    test(`has nothing that axe finds, ${scheme}`, async () => {
      await open(390, scheme);
      await tab.evaluate(AXE);
      for (const [name, state] of Object.entries(STATES)) {
        if (name === "stale") {  // of a meter that was seen, as it would be
          answer = samples.answer([samples.tempo()]);
          await refresh();
        }
        answer = state();
        await refresh();
        const result = await tab.evaluate(() => window.axe.run());
        const found = result.violations.map((violation) =>
          `${name}: ${violation.id}: ${violation.nodes[0].html}`);
        assert.deepEqual(found, []);
      }
      answer = (response) => response.end("{");
      await refresh();
      await has("#down:not(:empty)");
      const { violations } = await tab.evaluate(() => window.axe.run());
      assert.deepEqual(violations.map((violation) => violation.id), []);
    });
  }

  test("prints French as French is printed, in every state", async () => {
    await open();
    for (const [name, state] of Object.entries(STATES)) {
      answer = state();
      await refresh();
      const words = await tab.evaluate(() => document.body.innerText);
      assert.doesNotMatch(words, /'/, name);
      assert.doesNotMatch(words, / [:;?!»%]|« |\d VA|\d kWh|\d A\b/, name);
      assert.doesNotMatch(words, /undefined|null|NaN|\[object/, name);
    }
  });

  for (const width of PHONES) {
    test(`fits a phone of ${width} px in every state`, async () => {
      await open(width);
      for (const [name, state] of Object.entries(STATES)) {
        answer = state();
        await refresh();
        const wide = await tab.evaluate(() => document.documentElement.scrollWidth);
        assert.ok(wide <= width, `${name} scrolls`);
        const broken = await tab.$$eval(".row b, td", (cells) => cells.filter((cell) =>
          /\d/.test(cell.textContent) && cell.getClientRects().length !== 1
          || cell.clientWidth < cell.scrollWidth).map((cell) => cell.id));
        assert.deepEqual(broken, [], name);
      }
    });

    test(`keeps the time labels apart at ${width} px`, async () => {
      for (const minutes of [3, 40, 480, 1440]) {
        const history = samples.historyOf(samples.powersOfADay().slice(0, minutes));
        answer = samples.answer([samples.input({ history })]);
        await open(width);
        const boxes = await tab.$$eval(".chart text", (labels) => labels
          .map((label) => [label.textContent, label.getBoundingClientRect()])
          .filter(([words]) => /:/.test(words))
          .map(([words, box]) => [words, box.left, box.right]));
        assert.ok(boxes.length >= 2, "no label");
        boxes.slice(1).forEach(([words, left], i) => {
          const [neighbour, , right] = boxes[i];
          assert.ok(left - right >= 6, `${neighbour} touches ${words}`);
        });
        const times = boxes.slice(0, -1).map(([words]) => words);
        assert.ok(times.every((words) => /^\d\d:\d\d$/.test(words)), times.join());
      }
    });
  }

  test("has a pill on one line that does not touch the title", async () => {
    await open(360);
    answer = samples.answer([samples.stale()]);
    await refresh();
    await has(".card.stale");
    const [title, pill] = await tab.$$eval(".card > header > *", (nodes) =>
      nodes.map((node) => node.getBoundingClientRect().toJSON()));
    assert.ok(pill.height < 32, "the pill wraps");
    assert.ok(pill.left >= title.right + 8 || pill.top >= title.bottom, "they touch");
  });

  test("draws the chart as wide as its column", async () => {
    for (const width of [360, 768, 1000, 1280]) {
      await open(width);
      const { ratio, overflow } = await tab.$eval(".chart svg", (svg) => ({
        ratio: svg.getBoundingClientRect().width / svg.viewBox.baseVal.width,
        overflow: svg.getBoundingClientRect().right - svg.closest(".card")
          .getBoundingClientRect().right,
      }));
      assert.ok(Math.abs(ratio - 1) < 0.06, `letters of ${12 * ratio} px at ${width}`);
      assert.ok(overflow < 0);
    }
    await tab.setViewport({ width: 360, height: 800 });
    await tab.waitForFunction(() =>
      document.querySelector(".chart svg").viewBox.baseVal.width < 340);
  });

  test("gives gauge and chart a text alternative", async () => {
    await open();
    const name = (selector) => tab.$eval(selector, (svg) =>
      svg.getAttribute("role") === "img" && svg.getAttribute("aria-label"));
    assert.equal(await name(".gauge svg"), `Jauge${NBSP}: 27${NBSP}%`);
    const chart = await tab.$eval(".chart svg", (svg) =>
      svg.getAttribute("aria-label"));
    assert.match(chart, /^Courbe de la puissance depuis \d\d:\d\d/);
    assert.ok(await tab.$$eval(".chart text", (labels) =>
      labels.length && labels.every((label) => label.closest("[aria-hidden=true]"))));
  });

  test("shows the value under the pointer, and by the arrow keys", async () => {
    await open();
    const svg = await tab.$(".chart svg");
    const { x, y, width } = await svg.boundingBox();
    const value = () => tab.$eval(".chart svg", (node) =>
      node.getAttribute("aria-valuetext"));
    const shown = () => tab.$$eval(".chart .pointed + text", (nodes) =>
      nodes.map((node) => node.textContent));
    assert.deepEqual(await shown(), []);
    await tab.mouse.move(x + 56 + (width - 62) / 2, y + 60);
    const middle = await value();
    assert.match(middle, /^\d\d:\d\d\u00a0: [\d\u202f]+\u00a0VA$/);
    assert.deepEqual(await shown(), [middle]);
    await refresh();
    assert.deepEqual(await shown(), [middle], "the next answer takes it away");
    await tab.mouse.move(5, 5);
    assert.deepEqual(await shown(), []);
    await svg.evaluate((node) => node.focus());
    await tab.keyboard.press("ArrowLeft");
    const earlier = await value();
    await tab.keyboard.press("PageDown");
    assert.notEqual(await value(), earlier);
    await tab.keyboard.press("PageUp");
    assert.equal(await value(), earlier);
    await tab.keyboard.press("ArrowRight");
    assert.match(await value(), /1\u202f840\u00a0VA$/);
    assert.deepEqual(await shown(), [await value()]);
  });

  test("shows the value under a finger, which stays", async () => {
    await tab.setViewport({ width: 390, height: 800, hasTouch: true });
    await tab.goto(origin, { waitUntil: "load" });
    await has(".chart svg");
    await tab.$eval(".chart", (chart) => chart.scrollIntoView());
    const { x, y, width } = await (await tab.$(".chart svg")).boundingBox();
    await tab.touchscreen.tap(x + width / 2, y + 60);
    await has(".chart .pointed");
    await refresh();
    assert.ok(await tab.$(".chart .pointed"));
  });

  test("asks only for the minutes that it lacks", async () => {
    await open();
    assert.deepEqual(asked, [0]);
    answer.inputs[0].history = { ...samples.historyOf([333]), first: 2440 };
    await refresh();
    assert.deepEqual(asked, [0, 2440]);
    await refresh();
    assert.equal(asked[2], 2441);
    assert.equal(await tab.evaluate("page.answer.inputs[0].history.first"), 1001);
    const last = await tab.evaluate("page.charts[0].points.slice(-2)[0].power");
    assert.equal(last, 333);
  });

  test("keeps no minute of an earlier start of the machine", async () => {
    await open();
    // The numbers begin again with the machine; these come within the known minutes.
    answer.inputs[0].history = { ...samples.historyOf([333]), first: 1005 };
    await tab.evaluate("page.receivedAt -= 61000");
    await refresh();
    assert.equal(asked[1], 0);
    assert.equal(await tab.evaluate("page.answer.inputs[0].history.first"), 1005);
    assert.equal(await tab.evaluate("page.answer.inputs[0].history.minutes.length"), 1);
  });

  test("says large what to enter in Domoticz until it reads", async () => {
    answer = samples.answer(undefined, { clients: [] });
    await open();
    assert.match(await text("todo"), /type\s+«\u00a0Eco Devices\u00a0», modèle/);
    answer = samples.answer();
    await refresh();
    assert.equal(await text("todo"), "");
    const folded = () => tab.$eval("#domoticz details", (details) => !details.open);
    assert.equal(await folded(), true);
    await tab.click("#domoticz summary");
    answer.uptime += 10000;
    await refresh();
    assert.equal(await folded(), false, "the next answer folds it");
    answer = samples.answer([samples.waiting()], { clients: [] });
    await refresh();
    assert.equal(await text("todo"), "", "there is something else to do first");
  });

  test("folds the counters away", async () => {
    await open();
    const visible = () => tab.$eval(".link", (list) => list.checkVisibility());
    assert.equal(await visible(), false);
    await tab.click(".card summary");
    assert.equal(await visible(), true);
    await refresh();
    assert.equal(await visible(), true);
  });

  test("gives each station a sign with a name", async () => {
    answer = samples.answer([samples.stale()], { clients: [] });
    await open();
    const signs = await tab.$$eval(".way i", (nodes) => nodes.map((node) =>
      [node.textContent, node.getAttribute("aria-label")]));
    assert.deepEqual(signs, [["?", "pas connu"], ["!", "en défaut"], ["✓", "en ordre"],
      ["?", "pas connu"]]);
  });

  test("takes little time of the processor in an open tab", async () => {
    await open();
    const spent = async () => (await tab.metrics()).TaskDuration;
    const start = await spent();
    for (let turn = 0; turn < 30; turn += 1) {  // those of a minute
      answer.inputs[0].fields.PAPP += 1;
      await refresh();
    }
    const seconds = await spent() - start;
    assert.ok(seconds < 1, `${seconds} s`);
  });

  test("says that there is no curve yet instead of an empty axis", async () => {
    answer = samples.answer([samples.input({ history: samples.historyOf([]) })]);
    await open();
    assert.equal(await text("chart-1"),
      `Pas encore de courbe${NBSP}: un point par minute.`);
    assert.equal(await tab.$(".chart svg"), null);
  });
});
