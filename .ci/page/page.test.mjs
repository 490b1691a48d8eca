// The home page: its model in node, then the whole page in a browser, against a little
// server whose answer each test chooses.  Run by `node --test`; see extract.mjs for
// where the page is read.  CHROMIUM names the browser.

import assert from "node:assert/strict";
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
const SEEN = { now: NOW, receivedAt: NOW, connected: true };
const UNSEEN = { ...SEEN, connected: false };

//////// The model, in node ///////////////////////////////////////////////////////////

// The page's script where nothing happens by itself: what it defines is returned.
function loadScript() {
  const nothing = () => undefined;
  const context = vm.createContext({
    addEventListener: nothing,
    clearTimeout: nothing,
    document: { addEventListener: nothing, hidden: true },
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

function model(input, seen = SEEN) {
  return script.model(input, seen);
}

describe("the model of an input", () => {
  test("says what could be better while values come, and not later", () => {
    const remarks = ["contrat inconnu"];
    same(model(samples.input({ remarks })).remarks, remarks);
    same(model(samples.input({ remarks }), UNSEEN).remarks, []);
    assert.equal(model(samples.input({ remarks })).stateText, "en direct, à améliorer");
    assert.equal(model(samples.input({ remarks })).stateMark, "to-better");
    assert.equal(model(samples.input()).stateText, "en direct");
    assert.equal(model(samples.input()).stateMark, "");
  });

  test("says the power and the share of the subscription", () => {
    const card = model(samples.input());
    assert.equal(card.state, "live");
    assert.equal(card.stateText, "en direct");
    assert.equal(card.power, `1${THIN}840`);
    assert.equal(card.shareText, `27${NBSP}%`);
    assert.equal(card.limitText, `de l’abonnement, 30${NBSP}A (6${NBSP}kVA)`);
    assert.equal(card.load, "load-good");
  });

  test("counts the subscription of each of three phases", () => {
    const card = model(samples.threePhase());
    assert.equal(card.shareText, `86${NBSP}%`);
    assert.equal(card.limitText,
      `de l’abonnement, 3${NBSP}×${NBSP}20${NBSP}A (12${NBSP}kVA)`);
    assert.equal(card.load, "load-warn");
  });

  test("turns orange above 80 % and red above 90 %", () => {
    const loads = [5520, 5521, 6210, 6211].map((power) => {
      const input = samples.input();
      input.fields.PAPP = power;
      return model(input).load;
    });
    assert.deepEqual(loads, ["load-good", "load-warn", "load-warn", "load-bad"]);
  });

  test("keeps the currents of the phases in order", () => {
    same(model(samples.threePhase()).currents.map(({ phase, name, value, load }) =>
      [phase, name, value, load]), [
      [1, "Phase 1", `11${NBSP}A`, "load-good"],
      [2, "Phase 2", `17${NBSP}A`, "load-warn"],
      [3, "Phase 3", `24${NBSP}A`, "load-bad"],
    ]);
  });

  test("shows one current of a meter with one phase", () => {
    same(model(samples.input()).currents.map(({ phase, name, value }) =>
      [phase, name, value]), [[1, "Intensité", `8${NBSP}A`]]);
  });

  test("names periods and indexes as the program does", () => {
    const card = model(samples.tempo());
    assert.equal(card.tariff, "Tempo");
    assert.equal(card.period, "Heures pleines, jour bleu");
    same(card.indexes[1], {
      tag: "BBRHPJB",
      name: "Heures pleines, jour bleu",
      value: `13${THIN}456,797${NBSP}kWh`,
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
    const card = model({ ...known, state: "stale", age: 95, reason: "l’ESP dort" });
    assert.equal(card.power, "–");
    assert.equal(card.shareText, "");
    assert.equal(card.share, 0);
    assert.equal(card.alert, "");
    assert.equal(card.stateText, "données périmées depuis 14:45");
    assert.equal(card.reason, "l’ESP dort");
    assert.equal(card.indexes[0].value, `45${THIN}678,901${NBSP}kWh`);
    assert.equal(card.indexes[0].running, false);
    same(card.currents.map((current) => current.value), Array(3).fill(`–${NBSP}A`));
    assert.ok(card.chart.points.every((point) => point.time < NOW - 20000));
  });

  test("says nothing live when the program does not answer", () => {
    const card = model(samples.input({ reason: "x" }), UNSEEN);
    assert.equal(card.state, "stale");
    assert.equal(card.power, "–");
    assert.equal(card.reason, "");
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
    assert.equal(card.period, "–");
    assert.equal(card.limitText, "");
    assert.equal(card.chart.notice, "Pas de puissance à tracer.");
    same(card.link[0], ["Dernière trame", "–"]);
    same(card.link[8], ["Mode", "–"]);
  });

  test("marks an injection only while there is one", () => {
    const injected = model(samples.injecting(1230)).injection;
    same(injected, { power: `1${THIN}230${NBSP}VA`, index: `1${THIN}234,567${NBSP}kWh`,
      running: true });
    assert.equal(model(samples.injecting(0)).injection.running, false);
    const stale = model(samples.injecting(), UNSEEN).injection;
    assert.equal(stale.running, false);
    assert.equal(stale.power, `–${NBSP}VA`);
    assert.equal(model(samples.input()).injection, null);
  });

  test("announces an excess, and the dear hours that are near", () => {
    assert.equal(model(samples.threePhase()).alert,
      `Dépassement${NBSP}: 24${NBSP}A pour 20${NBSP}A`);
    assert.equal(model(samples.threePhase()).stateMark, "overload");
    const ejp = samples.input();
    ejp.fields.PEJP = 30;
    assert.equal(model(ejp).alert, `Pointe mobile dans 30${NBSP}min`);
    assert.equal(model(samples.input()).alert, "");
  });

  test("groups the digits of every counter, and tells the share of good groups", () => {
    const link = Object.fromEntries(model(samples.input()).link);
    assert.equal(link["Trames"], `123${THIN}456`);
    assert.equal(link["Somme fausse"], `4${THIN}321`);
    assert.equal(link["Forme fausse"], "12");
    assert.equal(link["Invraisemblables"], "3");
    assert.equal(link["Groupes bons"], `1${THIN}234${THIN}564 (99,65${NBSP}%)`);
    assert.equal(link["Dernière trame"], `il y a 1${NBSP}s`);
    assert.equal(link["Mode"], "historique");
  });

  test("groups the digits of the subscription too", () => {
    const big = samples.input();
    big.fields.ISOUSC = 1200;
    assert.equal(model(big).limitText,
      `de l’abonnement, 1${THIN}200${NBSP}A (240${NBSP}kVA)`);
  });

  test("tells a duration in the unit that is easy to read", () => {
    const told = [7, 99, 120, 5400, 7200, 93784, 864000].map(script.duration);
    assert.deepEqual(told, ["7 s", "99 s", "2 min", "90 min", "2 h", "26 h", "10 j"]
      .map((words) => words.replace(" ", NBSP)));
  });

  test("says that the curve is filling until it has two minutes", () => {
    const filling = `La courbe se remplit${NBSP}: un point par minute.`;
    const notice = (power) =>
      model(samples.input({ history: { step: 60, age: 0, power } })).chart.notice;
    assert.equal(notice([]), filling);
    assert.equal(notice([null, 500, null]), filling);
    assert.equal(notice([null, 500, 510]), "");
  });
});

describe("the chart", () => {
  const axesOf = (power, width = 304) => {
    const input = samples.input({ history: { step: 60, age: 0, power } });
    return script.scale(model(input).chart, width);
  };

  test("begins at the first minute that is known and ends now", () => {
    const { chart } = model(samples.input({ history: { step: 60, age: 0,
      power: [null, null, 500, null, 600] } }));
    same(chart.points.map((point) => [(point.time - NOW) / 1000, point.power]),
      [[-150, 500], [-90, null], [-30, 600], [0, 1840]]);
  });

  test("puts the highest power under the top, and now at the right", () => {
    const axes = axesOf([500, 600, 9600]);
    assert.equal(axes.topPower, 10000);
    assert.equal(axes.powerStep, 5000);
    assert.equal(axes.x(NOW), 298);
    assert.equal(axes.y(0), 186);
    assert.equal(axes.y(10000), 14);
  });

  test("marks round times with room between them at every span and width", () => {
    for (const minutes of [2, 3, 7, 20, 61, 150, 300, 480]) {
      for (const width of [280, 304, 334, 480, 716]) {
        const axes = axesOf(Array(minutes).fill(500), width);
        const times = [...script.roundTimes(axes)];
        const places = times.map(axes.x);
        assert.ok(times.every((time) => time % 60000 === 0), "not a whole minute");
        assert.ok(places.every((x) => x >= 56 && x <= width - 29), "no room");
        const apart = places.length > 1 ? places[1] - places[0] : width;
        const last = places[places.length - 1];
        assert.ok(last > width - 30 - apart, "the end has no time");
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
    const power = [500, 600];
    const { chart } = model(samples.input({ history: { step: 60, age: 47.5, power } }));
    same(chart.points.map((point) => (point.time - NOW) / 1000), [-137.5, -77.5, 0]);
  });

  test("stands a clock that was set back", () => {
    const axes = axesOf([500, 600, 700]);
    same([...script.roundTimes({ ...axes, now: axes.first - 3600000 })], []);
  });

  test("leaves a gap where nothing is known", () => {
    const axes = axesOf([500, 600, null, 700]);
    const { chart } = model(samples.input({ state: "stale", age: 40,
      history: { step: 60, age: 0, power: [500, 600, null, 700] } }));
    const paths = script.curve(axes, chart.points).map(script.markup).join("");
    assert.equal(paths.match(/class="curve"/g).length, 2);
    const areas = [...paths.matchAll(/class="area" d="M(\S+) 186L(.*)L(\S+) 186z"/g)];
    assert.equal(areas.length, 2);
    for (const [, begin, line, end] of areas) {
      assert.ok(line.startsWith(begin + " "), "the area leans at its left");
      assert.ok(line.split("L").pop().startsWith(end + " "), "it leans at its right");
    }
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
    assert.deepEqual(PAGE.match(/(src|href)="(?!data:|ecolinky\.json)[^"]*"/g), null);
    assert.deepEqual(PAGE.match(/@import|url\(/g), null);
  });

  test("has one kind of apostrophe in what is shown", () => {
    const shown = PAGE.replace(/<style>[^]*<\/style>/, "").replace(/\/\/ .*$/gm, "");
    assert.deepEqual(shown.match(/[a-zé]'[a-zé]+/gi), null);
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
  let failures;  // requests that failed, errors of the script

  function reply(request, response) {
    if (request.url === "/") {
      response.writeHead(200, { "Content-Type": "text/html; charset=utf-8" });
      response.end(PAGE);
    } else if (request.url === "/ecolinky.json") {
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
    assert.equal(await text("current-1-1"), `8${NBSP}A`);
    assert.equal(await text("period-1"), "Heures pleines");
    assert.equal(await text("index-1-HCHC"), `12${THIN}345,686${NBSP}kWh`);
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
    assert.equal(await text("power-1"), "–");
    assert.equal(await text("share-1"), "");
    assert.match(await text("state-1"), /^données périmées depuis \d\d:\d\d$/);
    assert.equal(await text("reason-1"),
      "l’ESP ferme chaque connexion, un autre programme le lit, l’arrêter");
    assert.equal(await text("index-1-BBRHCJB"), `12${THIN}345,686${NBSP}kWh`);
    assert.equal(await text("tomorrow-1"), "rouge");
    assert.equal(await tab.title(), "– VA · ecolinky");
    const opacity = await tab.$eval(".columns", (node) =>
      getComputedStyle(node).opacity);
    assert.equal(opacity, "1");
  });

  test("shows what was known last in a new tab too", async () => {
    answer = samples.answer([samples.stale(7200, samples.tempo())]);
    await open();
    assert.equal(await text("index-1-BBRHCJB"), `12${THIN}345,686${NBSP}kWh`);
    assert.equal(await text("power-1"), "–");
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
      window.place = document.getElementById("reason-1");
    });
    answer = samples.answer([samples.stale()]);
    await refresh();
    await becomes("reason-1", "l’ESP");
    assert.ok(await tab.evaluate(() =>
      window.place.isConnected && window.place.getAttribute("role") === "status"));
  });

  test("does not exchange phases", async () => {
    answer = samples.answer([samples.threePhase()]);
    await open();
    const shown = await Promise.all([1, 2, 3].map((phase) =>
      text("current-1-" + phase)));
    assert.deepEqual(shown, [11, 17, 24].map((amperes) => `${amperes}${NBSP}A`));
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

  test("shows an injection in green only while there is one", async () => {
    const green = () => tab.$eval("#injection-1", (node) =>
      getComputedStyle(node).color === getComputedStyle(
        document.getElementById("state-1")).color);
    answer = samples.answer([samples.injecting(0)], { ports: [4000, 4001] });
    await open();
    assert.equal(await text("injection-1"), `0${NBSP}VA`);
    assert.equal(await green(), false);
    answer.inputs = [samples.injecting(900)];
    await refresh();
    await becomes("injection-1", "900");
    assert.equal(await green(), true);
    assert.equal(await text("index-1-injection"), `1${THIN}234,567${NBSP}kWh`);
    assert.match(await text("domoticz"), /second pour l’injection/);
  });

  test("shows two inputs, each with its own box and relay", async () => {
    answer = samples.twoInputs();
    await open();
    assert.equal(await text("power-2"), `9${THIN}600`);
    assert.equal(await text("title-2"), "Compteur 2");
    const footer = (await text("domoticz")).replace(/\s+/g, " ");
    assert.match(footer, /matériel de type « Eco Devices », modèle « EcoDevices » : /);
    assert.match(footer, / : 127.0.0.1 port 4000, et un second pour le compteur 2 : /);
    assert.match(footer, / : 127.0.0.1 port 4001 TIC vérifiée du compteur 2, pour /);
    assert.match(footer, /pour d’autres lecteurs : 127.0.0.1 port 8890/);
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
      tariff: { ...evil(tariff), indexes: tags }, reason: bad };
    answer = { ...samples.answer([wrong]), version: bad };
    await open();
    await becomes("reason-1", "<img");
    assert.match(await text("period-1"), /<img src=x/);
    assert.match(await text("tomorrow-1"), /<img src=x/);
    assert.match(await text("domoticz"), /<img src=x.*&amp;/);
    assert.match(await text("input-1"), /192.168.1.50:8888<img/);
    assert.match(await text("input-1"), /Index, tarif Tempo<img/);
    assert.match(await text("input-1"), /jour rouge<img/);
    assert.equal(await tab.$("img"), null);
    assert.equal(await tab.evaluate(() => window.stolen), undefined);
  });

  test("keeps what is selected while new values come", async () => {
    await open();
    await tab.evaluate(() => {
      getSelection().selectAllChildren(document.querySelector("#domoticz p"));
    });
    const selected = await tab.evaluate(() => String(getSelection()));
    assert.match(selected, /127\.0\.0\.1 port.4000/);
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
      assert.equal(await text("index-1-HCHC"), `12${THIN}345,686${NBSP}kWh`);
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
        const broken = await tab.$$eval(".row b", (cells) => cells.filter((cell) =>
          /\d/.test(cell.textContent) && cell.getClientRects().length !== 1
          || cell.offsetHeight > 30).map((cell) => cell.id));
        assert.deepEqual(broken, [], name);
      }
    });

    test(`keeps the time labels apart at ${width} px`, async () => {
      for (const minutes of [3, 40, 480]) {
        const power = samples.history().power.slice(0, minutes);
        const history = { step: 60, age: 0, power };
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
    assert.match(await name(".chart svg"), /^Courbe de la puissance depuis \d\d:\d\d/);
    assert.ok(await tab.$$eval(".chart text", (labels) =>
      labels.length && labels.every((label) => label.closest("[aria-hidden=true]"))));
  });

  test("says that the curve is filling instead of an empty axis", async () => {
    const nothing = { step: 60, age: 0, power: [] };
    answer = samples.answer([samples.input({ history: nothing })]);
    await open();
    assert.equal(await text("chart-1"),
      `La courbe se remplit${NBSP}: un point par minute.`);
    assert.equal(await tab.$(".chart svg"), null);
  });
});
