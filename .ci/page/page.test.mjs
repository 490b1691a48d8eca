// The home page: the HTML of its cards in node, the whole page in a browser against a
// little server whose answer each test chooses, and the page of the program itself.
// Run by `node --test`; see extract.mjs for where the page is read.  CHROMIUM names the
// browser.

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { execFileSync, spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { connect, createServer as createTcpServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, beforeEach, describe, test } from "node:test";
import vm from "node:vm";

import puppeteer from "puppeteer-core";

import { PROGRAM, readPage, scriptOf } from "./extract.mjs";
import * as samples from "./samples.mjs";

process.env.TZ = "Europe/Paris";  // the browser's too

const PAGE = readPage();
const NBSP = "\u00a0";
const THIN = "\u202f";
const NOW = Date.parse("2026-01-15T14:47:31+01:00");

//////// The cards, in node ///////////////////////////////////////////////////////////

// The page's script where nothing happens by itself: what it defines is returned.
function loadScript() {
  const nothing = () => undefined;
  const context = vm.createContext({
    addEventListener: nothing,
    clearTimeout: nothing,
    document: { addEventListener: nothing, getElementById: () => ({}), hidden: true },
    setInterval: nothing,
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

// As paint() makes it of an answer; `changes` are of the program or of the page.
function seenOf(inputs, changes = {}) {
  const answer = { ...samples.answer(inputs), ...changes };
  return { now: NOW, at: NOW, historyAt: NOW, connected: true, ...changes, answer,
    history: { inputs: inputs.map((input) => input.history) } };
}

const UNSEEN = { connected: false };
const meterOf = (input, changes) =>
  script.meterOf(input, 0, seenOf([input], changes));

// The card of an input: what is in the element with an id, or with a class, as text.
function cardOf(input, changes = {}) {
  const seen = seenOf([input], changes);
  const html = script.markup(script.cardHtml(script.meterOf(input, 0, seen), seen));
  const words = (text) => text.replace(/<.p>/g, " ").replace(/<[^>]*>/g, "");
  const plain = (text) => words(text).replace(/\s+/g, (space) =>
    /[\u00a0\u202f]/.test(space) ? space : " ").trim();
  const at = (id) => {
    const found = html.match(new RegExp(`id="${id}"[^>]*>([^]*?)</(b|p|td|span|h2)>`));
    return found ? plain(found[1]) : null;
  };
  const all = (pattern) => [...html.matchAll(pattern)].map((found) => plain(found[1]));
  return {
    html,
    at,
    text: plain(html),
    state: at("state-1"),
    mark: html.match(/class="pill (\w+)"/)[1],
    problems: all(/<div class="problem [^]*?>([^]*?)<\/div>/g),
    rows: all(/<tr class="[^]*?>([^]*?)<\/tr>/g),
    stations: [...html.matchAll(
      /<li class="(\w+)">[^]*?<b>(.*?)<\/b>\s*<span>([^]*?)<\/span>/g)]
      .map(([, mark, name, fact]) => ({ mark, name, fact: plain(fact) })),
  };
}

const marks = (card) => card.stations.map(({ mark }) => mark);
const facts = (card) => card.stations.map(({ fact }) => fact);

const EXCESS = "Dépassement de l’abonnement. Éteindre un appareil, sinon le compteur"
  + " coupe.";

describe("the card of an input", () => {
  test("says what could be better while values come, and not later", () => {
    const remarks = [samples.reason("OFTEN_DAMAGED")];
    const card = cardOf(samples.input({ remarks }));
    same(card.problems, ["Beaucoup de groupes sont abîmés. Vérifier l’optocoupleur et"
      + " ses résistances. Les valeurs transmises restent justes."]);
    same([card.state, card.mark], ["en direct, à vérifier", "warn"]);
    same(marks(card), ["warn", "good", "good", "good"]);
    same(cardOf(samples.input({ remarks }), UNSEEN).problems, []);
    const well = cardOf(samples.input());
    same([well.state, well.mark, well.problems], ["en direct", "good", []]);
  });

  test("does not call a value right that is replaced", () => {
    const remarks = [samples.reason("PHASE_UNKNOWN", "IINST2")];
    same(cardOf(samples.input({ remarks })).problems,
      ["Le courant d’une phase n’arrive pas intact (IINST2), 0 est transmis."]);
  });

  test("gives each step of a remedy a line", () => {
    const { html: page } = cardOf(samples.stale(95, samples.input(),
      { fault: samples.reason("NOISE") }));
    same(page.match(/<p>Puis [^<]+<\/p>/g), ["<p>Puis vérifier l’optocoupleur.</p>",
      "<p>Puis échanger ses broches 3 et 4.</p>"]);
  });

  test("says the power and the share of the subscription", () => {
    const card = cardOf(samples.input());
    assert.equal(card.at("power-1"), `1${THIN}840`);
    assert.equal(card.at("share-1"), `27${NBSP}%`);
    assert.equal(card.at("limit-1"), `8${NBSP}A sur 30${NBSP}A`);
    assert.match(card.html, /class="gauge good"/);
  });

  test("names the fullest of three phases", () => {
    for (const mode of ["historic", "standard"]) {
      const card = cardOf({ ...samples.threePhase(), mode });
      assert.equal(card.at("share-1"), `120${NBSP}%`);
      assert.equal(card.at("limit-1"), "sur la phase 3");
      assert.match(card.html, /class="gauge bad"/);
      same(card.problems, [EXCESS]);
    }
  });

  test("has no share of a subscription that is not known", () => {
    const input = samples.input();
    input.fields.ISOUSC = 0;
    const card = cardOf(input);
    same([card.at("share-1"), card.at("limit-1")], ["", ""]);
    assert.doesNotMatch(card.html, /class="value"/);
  });

  test("turns orange above 80 %, and red only above the subscription", () => {
    const loads = [24, 25, 30, 31].map((amperes) => {
      const input = samples.input();
      input.fields.IINST = amperes;
      return cardOf(input).html.match(/class="gauge (\w+)"/)[1];
    });
    assert.deepEqual(loads, ["good", "warn", "warn", "bad"]);
    assert.equal(cardOf(samples.tempo()).at("limit-1"),
      `40${NBSP}A sur 45${NBSP}A, ne rien ajouter`);
  });

  test("limits a standard meter at its kVA, and does not contradict itself", () => {
    const card = cardOf(samples.overloaded("standard"));  // 6 kVA, 6300 VA, 27 A
    assert.equal(card.at("share-1"), `105${NBSP}%`);
    assert.equal(card.at("limit-1"), `de 6${NBSP}kVA`);
    same(card.problems, [EXCESS]);
    assert.equal(meterOf(samples.standard()).limit, 6000);
    assert.equal(meterOf(samples.input()).limit, 6900);
    const stale = { ...samples.stale(60, samples.standard()) };
    assert.equal(meterOf(stale).limit, 6000);
  });

  test("announces an excess, and the dear hours that are near", () => {
    const card = cardOf(samples.overloaded());
    same(card.problems, [EXCESS]);
    assert.equal(card.at("limit-1"), `34${NBSP}A sur 30${NBSP}A`);
    same([card.state, card.mark], ["dépassement", "bad"]);
    const ejp = samples.input();
    ejp.fields.PEJP = 30;
    const near = cardOf(ejp);
    const dear = " Les heures chères commencent, reporter les gros appareils.";
    same([near.problems, near.mark],
      [[`Pointe mobile dans 30${NBSP}min.${dear}`], "good"]);
    assert.match(near.html, /class="problem notice"/);  // not the grey of a short wait
  });

  test("keeps the currents of the phases in order", () => {
    const card = cardOf(samples.threePhase());
    same([1, 2, 3].map((phase) => card.at("current-1-" + phase)),
      [11, 17, 24].map((amperes) => `${amperes}${NBSP}A sur 20${NBSP}A`));
    same([...card.html.matchAll(/class="row (\w+)"/g)].map(([, load]) => load),
      ["good", "warn", "bad"]);
    assert.equal(cardOf(samples.input()).at("current-1-1"), null);
  });

  test("tells what each period has counted today, and their sum", () => {
    const card = cardOf(samples.input());
    same(card.rows, [`Heures creuses 4,12 12${THIN}345,686`,
      `Heures pleines en${NBSP}cours 8,22 9${THIN}876,543`, "Total 12,34"]);
    assert.match(card.text, /12,34kWh consommés aujourd’hui/);  // beside the gauge
    const base = cardOf(samples.threePhase());
    same(base.rows, [`Toutes heures en${NBSP}cours 23,45 45${THIN}678,901`]);
    assert.match(base.text, /23,45kWh consommés depuis 09:20/);
    assert.match(base.text, /Tarif Base kWh depuis 09:20/);
  });

  test("does not tell today's energy of an input that is not live", () => {
    for (const card of [cardOf(samples.stale()), cardOf(samples.input(), UNSEEN)]) {
      same(card.rows, [`Heures creuses – 12${THIN}345,686`,
        `Heures pleines – 9${THIN}876,543`]);
      assert.match(card.state, /^données périmées depuis \d\d:\d\d$/);
    }
    const unknown = cardOf(samples.input({ today: null }));
    assert.match(unknown.rows[0], /^Heures creuses – /);
  });

  test("names each Tempo day, and tells white from unknown", () => {
    const days = (tomorrow) => [...cardOf(samples.tempo(tomorrow)).html.matchAll(
      /class="day (.*?)"><small>(.*?)<\/small><b>(.*?)</g)].map((day) => day.slice(1));
    same(days("rouge"),
      [["bleu", "Aujourd’hui", "bleu"], ["rouge", "Demain", "rouge"]]);
    same(days("blanc")[1], ["blanc", "Demain", "blanc"]);
    assert.equal(days(null)[1][2], "pas encore annoncé");
    assert.doesNotMatch(cardOf(samples.input()).html, /class="day/);
  });

  test("says nothing live of an input that is stale", () => {
    const why = samples.fault("esp", "l’ESP dort", "le réveiller");
    const card = cardOf(samples.stale(95, samples.threePhase(), why));
    same(card.problems, ["L’ESP dort. Le réveiller."]);
    same([card.state, card.mark], ["données périmées depuis 14:45", "bad"]);
    assert.equal(card.at("power-1"), null);
    assert.equal(card.at("current-1-1"), null);
    same(card.rows, [`Toutes heures – 45${THIN}678,901`]);
  });

  test("says since when nothing is served though frames come", () => {
    const input = { ...samples.stale(3600), age: 1.2, byte_age: 0.1 };
    assert.equal(cardOf(input).state, "données périmées depuis 13:47");
  });

  test("says nothing live when the program does not answer", () => {
    const card = cardOf(samples.input(samples.AWAY), UNSEEN);
    assert.equal(card.at("power-1"), "–");
    same(card.problems, []);
    same(marks(card), ["soft", "soft", "bad", "soft"]);
    assert.equal(facts(card)[2], "pas encore de réponse");
    const problem = "ne répond pas";
    assert.equal(facts(cardOf(samples.input(), { ...UNSEEN, problem }))[2], problem);
    const waiting = cardOf(samples.waiting(), UNSEEN);
    assert.equal(waiting.state, "aucune donnée");
    assert.doesNotMatch(waiting.text, /kWh/, "it tells the energy of no meter");
  });

  test("tells the date of data that are older than a day", () => {
    assert.equal(cardOf(samples.stale(2 * 86400)).state,
      "données périmées depuis le 13 janvier à 14:47");
  });

  test("waits for a meter of which nothing is known", () => {
    const card = cardOf(samples.waiting());
    same([card.state, card.mark], ["aucune donnée", "bad"]);
    const begun = cardOf({ ...samples.waiting(),
      fault: samples.reason("NO_FRAME_YET") });
    same([begun.state, begun.mark], ["aucune donnée", "warn"]);
    assert.match(card.text, /Pas encore de courbe/);
    assert.match(card.at("report-1"), /mode –/);
    same(facts(card).slice(0, 2), ["pas entendu", "192.168.1.50:8888"]);
  });

  test("shows the way of a value: four stations, each with its one fact", () => {
    const card = cardOf(samples.input());
    same(card.stations.map(({ name }) => name),
      ["Linky", "ESP8266", "ecolinky 1.2.0", "Domoticz"]);
    same(marks(card), ["good", "good", "good", "good"]);
    same(facts(card), [`trame il y a 1${NBSP}s`, "192.168.1.50:8888",
      `port 4000, en marche depuis 26${NBSP}h`,
      `lu par 192.168.1.10 il y a 4${NBSP}s`]);
  });

  test("marks the station at fault, and says the fault once", () => {
    for (const [station, expected] of [
      ["linky", ["bad", "good", "good", "soft"]],
      ["esp", ["soft", "bad", "good", "soft"]],
      ["ecolinky", ["soft", "soft", "bad", "soft"]],
      ["", ["soft", "soft", "good", "soft"]],
    ]) {
      const why = samples.fault(station, "c’est cassé", "réparer");
      const heard = station === "linky" ? 0.2 : 95;
      const card = cardOf(samples.stale(95, samples.input(), why, heard));
      same(marks(card), expected);
      assert.equal(facts(card).includes("c’est cassé"), false);
      assert.equal(card.problems.length, 1);
      assert.equal(card.html.includes(station ? "problem bad" : "problem soft"), true);
    }
  });

  test("says in grey what only takes some seconds", () => {
    const why = samples.fault("", "ecolinky attend une première trame", "");
    const card = cardOf({ ...samples.waiting(), ...why });
    same(card.problems, ["Ecolinky attend une première trame."]);
  });

  test("does not say that all is well while another program takes the ESP", () => {
    const card = cardOf(samples.input({ ...samples.EVICTED, remarks: [] }));
    same([card.state, card.mark], ["en direct, à vérifier", "warn"]);
    same(marks(card), ["good", "warn", "good", "good"]);
    assert.match(card.problems[0], /^Un autre programme lit .*\. Arrêter cet/);
    assert.equal(card.at("power-1"), `1${THIN}840`);
  });

  test("does not call a dead ESP well until its values are stale", () => {
    const card = cardOf(samples.input({ age: 9.5, byte_age: 9.2 }));
    same(marks(card).slice(0, 2), ["soft", "soft"]);
    const silence = `dernier octet il y a 9${NBSP}s`;
    assert.equal(facts(card)[1], `192.168.1.50:8888, ${silence}`);
    same([card.state, card.mark], [`dernière trame il y a 10${NBSP}s`, "warn"]);
    const noisy = cardOf(samples.input({ age: 9.5, byte_age: 0.1 }));
    same(marks(noisy).slice(0, 2), ["soft", "good"]);
    const later = cardOf(samples.input(), { now: NOW + 8000 });
    same(marks(later).slice(0, 2), ["soft", "soft"]);
  });

  test("says to wait while the values before are still served", () => {
    const changes = { ...samples.SILENT, age: 12.4, byte_age: 12.2 };
    same(cardOf(samples.input(changes)).problems, ["Plus aucun octet ne vient de l’ESP."
      + " Attendre une minute, si cela dure vérifier son alimentation et son"
      + " Wi\u2011Fi."]);
    const wordless = { ...changes, fault: samples.reason("FAILED_CONNECTION", "?") };
    same(cardOf(samples.input(wordless)).problems, ["La connexion échoue (?)."]);
  });

  test("links to the page of the ESP", () => {
    for (const [source, page] of [["192.168.1.50:8888", "http://192.168.1.50/"],
      ["linky.local:23", "http://linky.local/"]]) {
      const { html: markup } = cardOf({ ...samples.input(), source });
      assert.equal(markup.match(/<a href="(.*?)"/)[1], page);
    }
  });

  test("names the port at which nothing listens", () => {
    const card = cardOf({ ...samples.waiting(), source: "linky.local:2323" });
    same(card.stations[1], { name: "ESP8266", mark: "bad", fact: "linky.local:2323" });
  });

  test("does not say that ecolinky runs well while it is at fault", () => {
    const why = { fault: samples.reason("OFFLINE") };
    const card = cardOf(samples.stale(95, samples.input(), why));
    same([marks(card)[2], facts(card)[2]], ["bad", "port 4000, en défaut"]);
  });

  test("shows what is injected as a power below zero, with a minus", () => {
    const card = cardOf(samples.injecting(1230));
    assert.equal(card.at("power-1"), `−1${THIN}230`);
    assert.equal(card.at("limit-1"), "injectés sur le réseau");
    assert.equal(card.at("share-1"), "");
    assert.equal(card.rows.pop(), `Injecté 7,65 1${THIN}234,567`);
    assert.doesNotMatch(card.text, /-\d/);
    assert.equal(cardOf(samples.injecting(0)).at("power-1"), "0");
    assert.equal(cardOf(samples.injecting(0)).at("limit-1"), `de 6${NBSP}kVA`);
    assert.equal(cardOf(samples.injecting(), UNSEEN).at("power-1"), "–");
  });

  test("groups the digits of the subscription too", () => {
    const big = samples.input();
    big.fields.ISOUSC = 1200;
    assert.equal(cardOf(big).at("limit-1"),
      `8${NBSP}A sur 1${THIN}200${NBSP}A`);
  });

  test("tells a duration in the unit that is easy to read", () => {
    const told = [7, 99, 120, 5400, 7200, 93784, 864000].map(script.duration);
    assert.deepEqual(told, ["7 s", "99 s", "2 min", "90 min", "2 h", "26 h", "10 j"]
      .map((words) => words.replace(" ", NBSP)));
  });

  test("has a report to copy, without the meter's number and without addresses", () => {
    const remarks = [samples.reason("CHANGED", "le compteur", "021728999999",
      "021728123456")];
    const clients = [samples.reader(), samples.reader({ address: "10.0.0.8",
      agent: "script (10.0.0.8)", port: 8889, reads: 3, age: 120 })];
    const report = cardOf(samples.input({ remarks, labels: { NGTF: "BASE" } }),
      { clients }).at("report-1");
    for (const part of ["ecolinky 1.2.0", "Compteur …3456", "historique", "HC..",
      "Heures creuses", "BASE", `trames 123${THIN}456`, "Connexions 7",
      `intacts 1${THIN}234${THIN}567`, `abîmés 4${THIN}333 (0,35${NBSP}%)`,
      "invraisemblables 3", "avant …9999, maintenant …3456",
      "domoticz/1.0, port 4000", "500 fois", "script (…), port 8889"]) {
      assert.ok(report.includes(part), part + " is not in: " + report);
    }
    assert.doesNotMatch(report, /\d{12}|\d+\.\d+\.\d+\.\d+/);
  });

  test("tells in the report how much of the line was lost", () => {
    const history = samples.damagedHistory();
    const report = cardOf(samples.input({ history })).at("report-1");
    assert.match(report, /Liaison\u00a0: 24\u00a0% perdus au plus en une minute/);
  });

  test("cannot show a live input without a power", () => {
    assert.throws(() => meterOf(samples.input({ fields: {} })));
    assert.throws(() => meterOf(samples.input({ fields: null })));
    assert.throws(() => cardOf({}));
  });
});

describe("the readers", () => {
  const { reader } = samples;
  const HOME_ASSISTANT = reader({ agent: "HomeAssistant/2026.11.0 aiohttp/3.13" });
  const last = (clients, changes = {}) =>
    cardOf(samples.input(), { clients, ...changes }).stations.slice(3)
      .map(({ name, mark, fact }) => [name, mark, fact]);
  const names = (clients, changes) =>
    last(clients, changes).map(([name, mark]) => [name, mark]);

  test("are called by their names", () => {
    same(names([reader()]), [["Domoticz", "good"]]);
    same(names([HOME_ASSISTANT]), [["Home Assistant", "good"]]);
    same(names([reader({ agent: "" })]), [["Un programme", "good"]]);
    same(names([reader({ agent: "curl/8.5.0" })]), [["Un programme", "good"]]);
    same(last([]), [["Domotique", "soft", "pas encore lu"]]);
  });

  test("that have tried once are told from nobody", () => {
    const fact = (clients) => last(clients)[0][2];
    assert.equal(fact([]), "pas encore lu");
    assert.equal(fact([reader({ agent: "curl/8.5.0", reads: 1 })]),
      "seulement essayé par 192.168.1.10");
  });

  test("have read more than once", () => {
    for (const client of [reader({ reads: 1 }),
      reader({ agent: "curl/8.5.0", reads: 1 }),
      reader({ agent: "curl/8.5.0", reads: 2, age: 86400 })]) {
      same(names([client]), [["Domotique", "soft"]]);
    }
  });

  test("that are gone are named with their time, whoever else reads", () => {
    const gone = reader({ age: 3600 });
    same(last([gone]), [["Domoticz", "warn",
      "ne lit plus depuis 13:47 (192.168.1.10)"]]);
    same(names([HOME_ASSISTANT, gone]),
      [["Home Assistant", "good"], ["Domoticz", "warn"]]);
    const card = cardOf(samples.input(), { clients: [HOME_ASSISTANT, gone] });
    const [problem] = card.problems;
    assert.match(problem, /^Domoticz ne lit plus depuis 13:47 \(192.* activé\. Si ce/);
    assert.match(problem, /Si ce programme a été remplacé, redémarrer ecolinky\.$/);
    assert.equal(card.mark, "warn");
    same(names([gone], UNSEEN), [["Domoticz", "soft"]]);
    same(cardOf(samples.stale(), { clients: [gone] }).problems.length, 1);
  });

  test("are one by their name: an update changes the agent", () => {
    const old = reader({ agent: "HomeAssistant/2026.10", age: 90000 });
    same(names([HOME_ASSISTANT, old]), [["Home Assistant", "good"]]);
  });

  test("without a name are not missed while somebody else reads", () => {
    const somebody = reader({ agent: "curl/8.5.0", reads: 9, age: 3600 });
    same(names([reader(), somebody]), [["Domoticz", "good"]]);
    same(names([somebody]), [["Un programme", "warn"]]);
  });

  test("of the relay are not readers of a box", () => {
    const tic = reader({ agent: "TIC", port: 8889, reads: 40, age: 1 });
    const relayed = samples.input({ relay_port: 8889 });
    const stations = (...clients) => cardOf(relayed, { clients }).stations.slice(3)
      .map(({ name, mark }) => [name, mark]);
    const relay = `Lecteur TIC (port${NBSP}8889)`;
    same(stations(tic), [["Domotique", "soft"], [relay, "soft"]]);  // it may be nc
    same(stations({ ...tic, reads: 400 }), [["Domotique", "soft"], [relay, "good"]]);
  });

  test("have each a box of its own", () => {
    const { inputs, ports } = samples.twoInputs();
    const stations = (...clients) => {
      const seen = seenOf(inputs, { ports, clients });
      return inputs.map((input, i) => {
        const meter = script.meterOf(input, i, seen);
        return script.readerStations(meter, seen).map(({ name, mark }) =>
          name + " " + mark);
      });
    };
    const at = (port) => `(port${NBSP}${port})`;
    const relay = `Lecteur TIC ${at(8890)} soft`;
    same(stations(reader()),
      [[`Domoticz ${at(4000)} good`], [`Domotique ${at(4001)} soft`, relay]]);
    same(stations(reader({ port: 4001 })),
      [[`Domotique ${at(4000)} soft`], [`Domoticz ${at(4001)} good`, relay]]);
    const both = { ports: [4000, 4001] };
    const injects = (clients) => cardOf(samples.input(both), { clients, ...both });
    same(injects([reader()]).stations.slice(3), [
      { name: `Domoticz ${at(4000)}`, mark: "good",
        fact: `lu par 192.168.1.10 il y a 4${NBSP}s` },
      { name: `Domotique ${at(4001)}`, mark: "soft", fact: "pas encore lu" }]);
    assert.match(facts(injects([]))[2], /^port 4000, port 4001, en marche/);
  });

  test("are missing until each box is read", () => {
    const unread = (inputs, clients, changes) => {
      const seen = seenOf(inputs, { clients, ...changes });
      return inputs.flatMap((input, i) =>
        [...script.unreadPorts(script.meterOf(input, i, seen), seen)]);
    };
    const one = [samples.input()];
    same(unread(one, []), [4000]);
    same(unread(one, [reader({ agent: "curl/8.5.0", reads: 1 })]), [4000]);
    same(unread(one, [reader()]), []);
    same(unread(one, [reader({ age: 86400 })]), []);  // it was set
    same(unread([samples.waiting()], []), []);  // something else is first
    const { inputs, ports } = samples.twoInputs();
    same(unread(inputs, [], { ports }), [4000, 4001]);
    same(unread(inputs, [reader()], { ports }), [4001]);
    same(unread(inputs, [HOME_ASSISTANT], { ports }), []);
    const tic = reader({ agent: "TIC", port: 8889, reads: 400 });
    same(unread([samples.input({ relay_port: 8889 })], [tic]), []);
  });
});

describe("the chart", () => {
  const inputOf = (powers, lost, cheap) =>
    samples.input({ history: samples.historyOf(powers, lost, cheap) });
  const pointsOf = (input, changes) => {
    const seen = seenOf([input], changes);
    return [...script.pointsOf(script.meterOf(input, 0, seen), seen)];
  };
  const chartOf = (input, changes) => cardOf(input, changes).html
    .match(/<div class="chart">[^]*?<\/svg>\s*<div>[^]*?<\/div>/)[0];
  const axesOf = (powers) => script.axesOf(pointsOf(inputOf(powers)), NOW);

  test("has the minutes of the program, and now", () => {
    same(pointsOf(inputOf([null, 500, null, 600])).map(({ time, power }) =>
      [(time - NOW) / 1000, power]),
    [[-210, null], [-150, 500], [-90, null], [-30, 600], [0, 1840]]);
    const older = { ...samples.historyOf([500, 600]), age: 47.5 };
    same(pointsOf(samples.input({ history: older })).map(({ time }) =>
      (time - NOW) / 1000), [-137.5, -77.5, 0]);
    same(pointsOf(inputOf([500]), { historyAt: NOW - 40000 }).map(({ time }) =>
      (time - NOW) / 1000), [-70, 0]);
  });

  test("is always 24 hours wide, now at its right", () => {
    for (const minutes of [3, 1440, 2000]) {
      const axes = axesOf(Array(minutes).fill(500));
      same([axes.x(NOW), axes.x(NOW - 86400000)], [100, 0]);
      const points = pointsOf(inputOf(Array(minutes).fill(500)));
      assert.ok(points.every(({ time }) => axes.x(time) >= 0), "left of the chart");
    }
  });

  test("puts the highest power under the top", () => {
    const axes = axesOf([500, 600, 9600]);
    same(axes.powers, [10000, 5000, 0]);
    same([axes.y(10000), axes.y(5000), axes.y(0)], [0, 50, 100]);
    same(axesOf([100, 110, 120]).powers, [2000, 1500, 1000, 500, 0]);  // 1840 now
    same(axesOf([36000, 0, 0]).powers, [40000, 30000, 20000, 10000, 0]
      .filter((power) => power % 10000 === 0));
  });

  test("draws what is injected below zero", () => {
    const axes = axesOf([500, -2600, -300]);
    same(axes.powers, [2000, 0, -2000, -4000]);
    assert.ok(axes.y(-2600) > axes.y(0));
    assert.ok(chartOf(samples.injecting()).includes(`>−5${THIN}000<`));
    assert.equal(pointsOf(samples.injecting(1230)).pop().power, -1230);
  });

  test("marks hours that are round where the reader lives", () => {
    const chart = chartOf(samples.input());
    const times = [...chart.matchAll(/class="at" style="--at: (.*?)%">(.*?)</g)];
    same(times.map(([, , time]) => time),
      ["16:00", "20:00", "00:00", "04:00", "08:00", "12:00"]);
    const places = times.map(([, at]) => Number(at));
    assert.ok(places.every((at) => at >= 0 && at <= 100));
    assert.ok(Math.abs(places[5] - 100 * (1 - 2.79 / 24)) < 0.1, String(places[5]));
  });

  test("says that there is no curve until it has two minutes", () => {
    for (const powers of [[], [null, 500, null]]) {
      assert.match(cardOf(inputOf(powers)).text, /Pas encore de courbe, un point par/);
    }
    assert.ok(chartOf(inputOf([null, 500, 510])));
  });

  test("leaves a gap where nothing is known", () => {
    const chart = chartOf(inputOf([500, 600, null, 700]));
    assert.equal(chart.match(/class="curve"/g).length, 2);
    const areas = [...chart.matchAll(/class="area" d="M(\S+) 100L(\S+) .*V100z"/g)];
    assert.equal(areas.length, 2);
    for (const [, begin, line] of areas) assert.equal(line, begin, "the area leans");
  });

  test("names the longest time without data", () => {
    const night = chartOf(samples.input({ history: samples.history(true) }));
    const name = (chart) => chart.match(/class="name"[^>]*>(.*?)</)?.[1];
    assert.equal(name(night), "pas de données 00:49–03:47");
    assert.equal(night.match(/class="gap"/g).length, 1);
    const short = Array.from({ length: 60 }, (_, i) => i % 6 ? null : 500);
    assert.equal(name(chartOf(inputOf(short))), undefined);
    assert.equal(chartOf(inputOf(short)).includes("gap"), false);
    const both = Array(600).fill(500).fill(null, 100, 120).fill(null, 300, 400);
    assert.equal(chartOf(inputOf(both)).match(/class="gap"/g).length, 2);
    assert.equal(name(chartOf(inputOf(both))), "pas de données 09:48–11:27");
  });

  test("shows the time without data that goes on, however short", () => {
    const stale = chartOf(samples.stale(95));
    assert.equal(stale.match(/class="gap"/g).length, 1);
    assert.match(stale, />plus de données depuis 14:45</);
    const known = samples.input({ history: samples.history(true) });
    assert.match(chartOf(known), />pas de données 00:49–03:47</);
    assert.match(chartOf(samples.stale(95, known)), />plus de données depuis 14:45</);
    assert.match(chartOf(samples.input(), UNSEEN), />plus de données depuis 14:47</);
  });

  test("ends at the power of now", () => {
    const now = (chart) => chart.match(/class="curve now" d="M100 (.*?)h0"/)?.[1];
    assert.equal(now(chartOf(inputOf([500, 500, 500]))), "8");  // 1840 of 2000
    assert.equal(now(chartOf(samples.stale())), undefined);
  });

  test("shades each run of cheap hours", () => {
    const cheap = (minute) => Number(minute === 1 || minute === 2 || minute > 3);
    const card = cardOf(inputOf(Array(6).fill(500), () => 0, cheap));
    assert.equal(card.html.match(/class="cheap"/g).length, 2);
    assert.match(card.text, /heures creuses/);
    assert.doesNotMatch(cardOf(inputOf([500, 500])).text, /\(VA\) heures creuses/);
  });

  test("has the limit of the meter if powers come near", () => {
    const limitOf = (input) =>
      chartOf(input).match(/class="limit-line" d="M0 (.*?)h/)?.[1];
    const calm = { history: samples.historyOf(Array(60).fill(3400)) };
    const busy = { history: samples.historyOf(Array(60).fill(3500)) };
    assert.equal(limitOf(samples.input(calm)), undefined);  // of 6900
    assert.equal(limitOf(samples.input(busy)), "13.75");  // of 8000
    assert.match(chartOf(samples.input(busy)),
      /class="limit-name" style="--at: 13.75%">limite de l’abonnement</);
    for (const input of [samples.tempo(), samples.overloaded("standard")]) {
      assert.ok(limitOf(input) > 5, "no room for the name");
    }
  });

  test("tells the point that is next to a time", () => {
    const points = pointsOf(inputOf([500, null, 700]));
    const near = (seconds) => script.nearest(points, NOW + 1000 * seconds).power;
    assert.deepEqual([-1000, -150, -119, -59, -14, 0, 99].map(near),
      [500, 500, null, 700, 1840, 1840, 1840]);
    same(points.slice(0, 2).map(script.describePoint),
      [`14:45${NBSP}: 500${NBSP}VA`, `14:46${NBSP}: pas de données`]);
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
      /(src|href)="(?!data:|ecolinky\.json|http:..\${address}.")[^"]*"/g), null);
    assert.deepEqual(PAGE.match(/@import|url\(/g), null);
  });

  test("has one kind of apostrophe in what is shown", () => {
    const shown = PAGE.replace(/<style>[^]*<\/style>/, "").replace(/\/\/ .*$/gm, "");
    assert.deepEqual(shown.match(/[a-zé]'[a-zé]+/gi), null);
  });

  test("keeps to its limits: 40 kB and 800 lines", () => {
    const size = Buffer.byteLength(PAGE);
    assert.ok(size <= 40000, `${size} bytes`);
    assert.ok(PAGE.split("\n").length <= 801);
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

function launch() {
  const named = process.env.CHROMIUM || "chromium";
  const path = execFileSync("which", [named], { encoding: "utf8" }).trim();
  return puppeteer.launch({ executablePath: path, args: ["--no-sandbox"] });
}

describe("the page in a browser", { concurrency: false }, () => {
  let browser;
  let server;
  let origin;
  let tab;
  let answer;  // what the program says: an object, or a function of the response
  let polls;
  let histories;  // how often /history.json was asked for
  let failures;  // requests that failed, errors of the script

  function reply(request, response) {
    if (request.url === "/") {
      response.writeHead(200, { "Content-Type": "text/html; charset=utf-8" });
      response.end(PAGE);
    } else if (request.url === "/ecolinky.json") {
      polls += 1;
      if (typeof answer === "function") answer(response);
      else response.end(samples.documentsOf(answer)[request.url]);
    } else if (request.url === "/history.json") {
      histories += 1;
      const known = typeof answer === "function" ? samples.answer() : answer;
      response.end(samples.documentsOf(known)[request.url]);
    } else {
      response.writeHead(404).end();
    }
  }

  async function open(width = 1280, scheme = "light") {
    await tab.setViewport({ width, height: 800 });
    await tab.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
    await tab.goto(origin, { waitUntil: "load" });
    await tab.waitForSelector("#clock:not(:empty)", { timeout: 5000 });
  }

  const text = (id) => tab.$eval("#" + id, (node) => node.textContent);
  const has = (selector) => tab.waitForSelector(selector, { timeout: 4000 });
  const becomes = (id, wanted) => tab.waitForFunction(
    (name, words) => document.getElementById(name)?.textContent.includes(words),
    { timeout: 4000, polling: 50 }, id, wanted);

  // Ask now, not in two seconds, and for the history too: most tests need not wait.
  const refresh = () =>
    tab.evaluate("if (page.seen) page.seen.historyAt = 0; poll()");

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
    browser = await launch();
  });

  after(async () => {
    await browser?.close();
    server?.closeAllConnections();
    server?.close();
  });

  beforeEach(async () => {
    answer = samples.answer();
    polls = 0;
    histories = 0;
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
    assert.equal(await text("limit-1"), `8${NBSP}A sur 30${NBSP}A`);
    assert.equal(await text("index-1-HCHC"), `12${THIN}345,686`);
    assert.equal(await text("today-1-HCHP"), "8,22");
    const running = await tab.$$eval("tr.running th", (cells) =>
      cells.map((cell) => cell.textContent));
    assert.deepEqual(running, [`Heures pleines en${NBSP}cours`]);
    assert.equal(await tab.title(), `1${THIN}840 VA · ecolinky`);
    answer.inputs[0].fields.PAPP = 2050;
    await becomes("power-1", `2${THIN}050`);
    assert.equal(await tab.title(), `2${THIN}050 VA · ecolinky`);
  });

  test("asks for the history once a minute, and of a new start", async () => {
    await open();
    await tab.evaluate("poll()");
    assert.deepEqual([polls, histories], [2, 1]);
    await tab.evaluate("page.seen.historyAt -= 60000; poll()");
    assert.deepEqual([polls, histories], [3, 2]);
    answer = samples.twoInputs();  // it was set up for a second meter
    answer.uptime = 3;
    await tab.evaluate("poll()");
    assert.deepEqual([polls, histories], [4, 3]);
    assert.equal(await text("down"), "");
    assert.equal(await text("title-2"), "Compteur 2 …7888");
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
    await has(".card.old");
    assert.equal(await tab.$("#power-1"), null);
    assert.match(await text("state-1"), /^données périmées depuis \d\d:\d\d$/);
    const { cause, remedy } = samples.EVICTED.fault;
    const words = (await text("reason-1")).toLowerCase();
    assert.ok(words.includes(cause.toLowerCase()), words);
    assert.ok(words.includes(remedy.toLowerCase()), words);
    const [large, normal] = await tab.evaluate(() => ["#reason-1 b", "body"].map((at) =>
      parseFloat(getComputedStyle(document.querySelector(at)).fontSize)));
    assert.ok(large >= 1.3 * normal, `${large} px`);
    assert.equal(await tab.$eval(".way a", (link) => link.href),
      "http://192.168.1.50/");
    assert.equal(await text("index-1-BBRHCJB"), `12${THIN}345,686`);
    assert.match(await text("cards"), /Demainrouge/);
    assert.equal(await tab.title(), "⚠ – VA · ecolinky");
  });

  test("shows what was known last in a new tab too", async () => {
    answer = samples.answer([samples.stale(7200, samples.tempo())]);
    await open();
    assert.equal(await text("index-1-BBRHCJB"), `12${THIN}345,686`);
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
    const [pill, card] = await tab.$$eval("#state-1, .card", (nodes) =>
      nodes.map((node) => node.getBoundingClientRect().toJSON()).reverse());
    assert.ok(pill.height > 40, "it is short");
    assert.ok(pill.right <= card.right - 10, `${pill.right} of ${card.right}`);
    const scroll = await tab.evaluate(() => document.documentElement.scrollWidth);
    assert.ok(scroll <= 320, String(scroll));
  });

  test("names every meter in the title", async () => {
    answer = samples.twoInputs();
    await open();
    assert.equal(await tab.title(), `1${THIN}840 · 9${THIN}600 VA · ecolinky`);
    answer.inputs[1].remarks = [samples.reason("READ_AS_8N1")];
    await refresh();
    assert.equal(await tab.title(), `⚠ 1${THIN}840 · 9${THIN}600 VA · ecolinky`);
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
    const words = await tab.$$eval(".day b", (days) =>
      days.map((day) => day.textContent));
    assert.deepEqual(words, ["bleu", "rouge"]);
    const colours = await tab.$$eval(".day", (days) =>
      days.map((day) => getComputedStyle(day).backgroundColor));
    assert.deepEqual(colours, ["rgb(42, 102, 217)", "rgb(201, 45, 40)"]);
    const border = () => tab.$$eval(".day", (days) =>
      getComputedStyle(days[1]).borderStyle);
    answer = samples.answer([samples.tempo("blanc")]);
    await refresh();
    assert.equal(await border(), "solid");
    answer = samples.answer([samples.tempo(null)]);
    await refresh();
    assert.equal(await border(), "dashed");
  });

  test("shows an injection", async () => {
    answer = samples.answer([samples.injecting(900)], { ports: [4000, 4001] });
    await open();
    assert.equal(await text("power-1"), "−900");
    assert.equal(await text("index-1-EAIT"), `1${THIN}234,567`);
    assert.match(await text("places"),
      /Pour l’injection un second matériel\u00a0: adresse\s+127/);
  });

  test("shows two inputs, each with its own box and relay", async () => {
    answer = samples.twoInputs();
    await open();
    assert.equal(await text("power-2"), `9${THIN}600`);
    assert.equal(await text("title-2"), "Compteur 2 …7888");
    const footer = (await text("domoticz")).replace(/\s+/g, " ");
    assert.match(footer, /matériel de type « Eco Devices », modèle « EcoDevices »/);
    const place = "adresse 127.0.0.1 (si Domoticz est sur cette machine, sinon"
      + " l’adresse de celle-ci), port ";
    assert.ok(footer.includes(` : ${place}4000, de même pour Home Assistant`), footer);
    assert.ok(footer.includes(`Pour le compteur 2 un second matériel : ${place}4001`));
    assert.match(await text("cards"), /Lecteur TIC \(port\u00a08890\)/);
    answer.clients.pop();
    await refresh();
    const toDo = (await text("places")).replace(/\s+/g, " ");
    assert.match(toDo, / : Pour le compteur 2 un second matériel : adresse 127/);
    assert.doesNotMatch(toDo, /4000|Jeedom/, "it is about the second box");
  });

  test("says nothing of a relay that there is not", async () => {
    await open();
    assert.doesNotMatch(await text("cards"), /Lecteur TIC/);
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
    const { state, fields, mode, tariff, ...rest } = input;
    const tags = tariff.indexes.map((index) => ({ ...evil(index), tag: index.tag }));
    const wrong = { ...evil(rest), state, mode, fields: evil(fields),
      tariff: { ...evil(tariff), indexes: tags }, today: input.today,
      history: input.history, remarks: [{ station: "linky", cause: bad, remedy: bad }],
      fault: { station: "esp", cause: bad, remedy: bad } };
    answer = { ...samples.answer([wrong]), version: bad,
      clients: [samples.reader({ agent: bad, address: bad })] };
    await open();
    await becomes("cards", "<img");
    for (const words of [/Demainrouge<img/, /192.168.1.50:8888<img/, /Tarif Tempo<img/,
      /jour rouge<img/, /Lecteur <img/, /lu par <img/, /ecolinky <img src=x.*&amp;/]) {
      assert.match(await text("cards"), words);
    }
    assert.equal(await tab.$("img:not(#logo)"), null);
    assert.equal(await tab.evaluate(() => window.stolen), undefined);
  });

  test("keeps what is selected while new values come", async () => {
    await open();
    await tab.evaluate(() => {
      document.getElementById("domoticz").open = true;
      getSelection().selectAllChildren(document.querySelector("#places p"));
    });
    const selected = await tab.evaluate(() => String(getSelection()));
    assert.match(selected, /«\u00a0Eco Devices\u00a0»/);
    answer.inputs[0].fields.PAPP = 3333;
    answer.uptime += 3600;
    await becomes("power-1", `3${THIN}333`);
    assert.equal(await tab.evaluate(() => String(getSelection())), selected);
  });

  test("has a report that a click selects, and that stays selected", async () => {
    await open();
    await tab.click(".card summary");
    await tab.click("#report-1");
    const selected = await tab.evaluate(() => String(getSelection()));
    assert.match(selected, /^ecolinky 1\.2\.0.*il y a 4\ss$/s);
    answer.inputs[0].fields.PAPP = 3333;
    answer.clients[0].age = 9;
    await refresh();
    await becomes("power-1", `3${THIN}333`);
    assert.equal(await tab.evaluate(() => String(getSelection())), selected);
    await tab.evaluate(() => getSelection().removeAllRanges());
    await refresh();
    assert.match(await text("report-1"), /il y a 9\ss$/);
  });

  test("touches only what changed", async () => {
    await open();
    await tab.evaluate(() => {
      window.touched = [];
      window.outside = 0;
      const note = ({ target }) => {
        const node = target.nodeType === 1 ? target : target.parentNode;
        const { id } = node.closest("[id]");
        window.touched.push(id);
        if (id === "cards" && !node.closest(".chart")) window.outside += 1;
      };
      const observer = new MutationObserver((changes) => changes.forEach(note));
      const kinds = { attributes: true, childList: true, characterData: true };
      observer.observe(document.getElementById("cards"), { subtree: true, ...kinds });
    });
    answer.inputs[0].fields.HCHP += 1;
    await becomes("index-1-HCHP", "544");
    const touched = await tab.evaluate(() => window.touched);
    // Time goes on in the chart.
    const values = touched.filter((id) => !["cards", "chart-1"].includes(id));
    assert.deepEqual(values, ["index-1-HCHP"]);
    assert.equal(await tab.evaluate(() => window.outside), 0);
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
    assert.ok(polls <= pollsThen + 3, "it polls twice as often");
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
    await has(".card.old");
    assert.equal(await text("power-1"), "–");
  });

  test("does not say live after a sleep, before the first answer", async () => {
    await open();
    answer = () => undefined;  // no answer for now
    await tab.evaluate(() => {
      const real = Date.now;
      Date.now = () => real() + 3600000;
    });
    const wokenAt = Date.now();
    await has(".card.old");
    assert.ok(Date.now() - wokenAt < 2500, "it waits for the answer");
    assert.match(await text("state-1"), /^données périmées/);
    assert.match(await tab.title(), /^⚠ – VA/);
  });

  test("does not take an answer from before the sleep as new", async () => {
    await open();
    let send;
    const known = samples.documentsOf(samples.answer())["/ecolinky.json"];
    answer = (response) => {
      send = () => response.end(known);
    };
    await tab.evaluate("void poll()");
    await pause(200);
    await tab.evaluate(() => {
      const real = Date.now;
      Date.now = () => real() + 3600000;
    });
    send();
    await has(".card.old");
    assert.equal(await text("power-1"), "–");
  });

  const PROBLEMS = {
    "a program that is unreachable": [
      (response) => response.destroy(), /ne répond pas.*systemctl restart ecolinky/s],
    "an answer whose JSON is cut": [
      (response) => response.end('{"version": "1.2'), /réponse illisible, recharger/],
    "a connection that ends in the middle": [
      (response) => {
        response.writeHead(200, { "Content-Length": "9999" });
        response.write('{"version":');
        setTimeout(() => response.destroy(), 50);
      }, /réponse illisible, recharger/],
    "an answer without what it should have": [
      (response) => response.end('{"inputs":[{}]}'), /réponse illisible, recharger/],
    "an answer without its indexes": [(response) => {
      const broken = samples.answer();
      broken.inputs[0].tariff.indexes = null;
      response.end(samples.documentsOf(broken)["/ecolinky.json"]);
    }, /réponse illisible, recharger/],
    "an answer without a meter": [
      (response) => response.end('{"version":"1.2.0"}'), /réponse illisible/],
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
      assert.equal(await tab.$eval("#down code", (code) => code.textContent),
        "sudo systemctl restart ecolinky");
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

  test("asks again though an answer could not be shown at all", async () => {
    await open();
    await tab.evaluate(`window.working = paint;
      paint = () => { throw new Error("no place"); };
      poll().catch(() => 0)`);
    answer.inputs[0].fields.PAPP = 2222;
    await tab.evaluate("paint = window.working");
    await becomes("power-1", `2${THIN}222`);
  });

  test("gives up a question after five seconds", async () => {
    answer = () => undefined;
    await tab.setViewport({ width: 800, height: 600 });
    await tab.goto(origin);
    await tab.waitForSelector("#clock:not(:empty)", { timeout: 6500 });
    assert.match(await text("down"), /ne répond pas/);
  });

  const STATES = {
    live: () => samples.answer([samples.input({ relay_port: 8889 })]),
    stale: () => samples.answer([samples.stale()]),
    waiting: () => samples.answer([samples.waiting()]),
    damaged: () => samples.answer([samples.input({
      remarks: [samples.reason("READ_AS_8N1"), samples.reason("OFTEN_DAMAGED")],
      history: samples.damagedHistory() })]),
    evicted: () => samples.answer([samples.input(samples.EVICTED)]),
    "never read": () => samples.answer(undefined, { clients: [] }),
    "just started": () => samples.answer(undefined, { clients: [], uptime: 9 }),
    "read no more": () => samples.answer(undefined,
      { clients: [samples.reader({ age: 3600 })] }),
    overload: () => samples.answer([samples.overloaded("standard")]),
    "a night without data": () => samples.answer([samples.input({ history:
      samples.history(true) })]),
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
        const isBroken = `(cell) => {
          const range = document.createRange();
          range.selectNodeContents(cell);
          const lines = range.getClientRects().length;
          return lines > 1 || cell.clientWidth < cell.scrollWidth;
        }`;
        const broken = await tab.evaluate(`[...document.querySelectorAll(".row b, td")]
          .filter(${isBroken}).map((cell) => cell.id)`);
        assert.deepEqual(broken, [], name);
      }
    });

    test(`keeps the time labels apart, and in the card, at ${width} px`, async () => {
      const hour = Date.parse("2026-01-15T16:00:01+01:00");  // at the right edge
      await tab.evaluateOnNewDocument(`Date.now = () => ${hour}`);
      await open(width);
      const boxes = await tab.$$eval(".chart .at", (labels) => labels.map((label) =>
        [label.getBoundingClientRect().left, label.getBoundingClientRect().right]));
      assert.equal(boxes.length, 6);
      const rightMost = await tab.$eval(".card", (card) =>
        card.getBoundingClientRect().right
        - parseFloat(getComputedStyle(card).paddingRight));
      assert.ok(boxes[5][1] <= rightMost + 1, `${boxes[5][1]} of ${rightMost}`);
      boxes.slice(1).forEach(([left], i) => {
        assert.ok(left - boxes[i][1] >= 4, `${left} touches ${boxes[i][1]}`);
      });
    });
  }

  for (const width of [360, 390, 720, 800, 1280]) {
    test(`holds text of twice the size at ${width} px`, async () => {
      await open(width);
      await tab.evaluate(() => {
        document.documentElement.style.fontSize = "200%";
      });
      for (const [name, state] of Object.entries(STATES)) {
        answer = state();
        await refresh();
        const [wide, large] = await tab.evaluate(() => [
          document.documentElement.scrollWidth,
          parseFloat(getComputedStyle(document.querySelector(".way span")).fontSize),
        ]);
        assert.ok(wide <= width, `${name}: ${wide} px`);
        assert.equal(large, 26);
        const cut = await tab.$$eval("main *", (nodes) => nodes.filter((node) =>
          !node.childElementCount && node.clientWidth
          && node.scrollWidth > node.clientWidth + 1).map((node) => node.outerHTML));
        assert.deepEqual(cut, [], name);
      }
    });
  }

  test("has a pill on one line that does not touch the title", async () => {
    await open(360);
    answer = samples.answer([samples.stale()]);
    await refresh();
    await has(".card.old");
    const [title, pill] = await tab.$$eval(".card > header > *", (nodes) =>
      nodes.map((node) => node.getBoundingClientRect().toJSON()));
    assert.ok(pill.height < 32, "the pill wraps");
    assert.ok(pill.left >= title.right + 8 || pill.top >= title.bottom, "they touch");
  });

  test("draws the chart as wide as its column, and wider than on a phone", async () => {
    const widths = [];
    for (const width of [390, 720, 800, 896, 1000, 1280]) {
      await open(width);
      const { left, right, card } = await tab.$eval(".chart svg", (svg) => ({
        ...svg.getBoundingClientRect().toJSON(),
        card: svg.closest(".card").getBoundingClientRect().toJSON(),
      }));
      assert.ok(left > card.left + 50 && right < card.right, `at ${width}`);
      widths.push(right - left);
    }
    assert.ok(widths.every((wide) => wide >= widths[0]), widths.join());
    assert.ok(widths[1] > 500, widths.join());
  });

  test("stands a chart without any width", async () => {
    await open();
    await tab.evaluate(() => {
      document.getElementById("cards").style.width = "0";
    });
    await refresh();
    await tab.evaluate(() => {
      document.getElementById("cards").style.display = "none";
    });
    await refresh();
    assert.equal(await text("down"), "");
    assert.deepEqual(failures, []);
  });

  test("is printed dark on white from dark mode too", async () => {
    await open(800, "dark");
    await tab.emulateMediaType("print");
    const [ink, page, sign] = await tab.evaluate(() => ["color", "backgroundColor",
      "printColorAdjust"].map((name) => getComputedStyle(document.body)[name]));
    assert.deepEqual([ink, page, sign],
      ["rgb(21, 33, 27)", "rgb(255, 255, 255)", "exact"]);
    await tab.emulateMediaType(null);
  });

  test("has today's energy beside the gauge on a phone", async () => {
    for (const width of [360, 390]) {
      await open(width);
      const [gauge, sum] = await tab.$$eval(".gauge > *", (nodes) =>
        nodes.map((node) => node.getBoundingClientRect().toJSON()));
      assert.ok(sum.left >= gauge.right && sum.top < gauge.bottom, `at ${width}`);
    }
    await open(1280);
    assert.equal(await tab.$eval(".sum", (sum) => sum.checkVisibility()), false);
  });

  test("gives gauge and chart a text alternative", async () => {
    await open();
    const name = (selector) => tab.$eval(selector, (svg) =>
      svg.getAttribute("role") === "img" && svg.getAttribute("aria-label"));
    assert.equal(await name(".gauge svg"), `Jauge${NBSP}: 27${NBSP}%`);
    const [chart, value] = await tab.$eval(".chart input", (slider) =>
      [slider.getAttribute("aria-label"), slider.getAttribute("aria-valuetext")]);
    assert.equal(chart, "Courbe de 24 heures");
    assert.match(value, /^\d\d:\d\d\u00a0: 1\u202f840\u00a0VA$/);
    assert.equal(await tab.$eval(".chart svg", (svg) =>
      svg.getAttribute("aria-hidden")), "true");
  });

  test("shows the value under the pointer, and by the keys", async () => {
    await open();
    const svg = await tab.$(".chart svg");
    const { x, y, width } = await svg.boundingBox();
    const value = () => tab.$eval(".chart input", (node) =>
      node.getAttribute("aria-valuetext"));
    const shown = () => tab.$$eval(".chart .name", (nodes) =>
      nodes.map((node) => node.textContent));
    assert.deepEqual(await shown(), []);
    await tab.mouse.move(x + width / 2, y + 60);
    const middle = await value();
    assert.match(middle, /^\d\d:\d\d\u00a0: [\d\u202f]+\u00a0VA$/);
    assert.deepEqual(await shown(), [middle]);
    const noon = await tab.evaluate("clockTime(Date.now() - 43200000)");
    const [minutes, expected] = [middle, noon].map((time) =>
      60 * Number(time.slice(0, 2)) + Number(time.slice(3, 5)));
    assert.ok(Math.abs(minutes - expected) <= 2, `${middle}, not ${noon}`);
    await refresh();
    assert.deepEqual(await shown(), [middle], "the next answer takes it away");
    await tab.mouse.move(5, 5);
    assert.deepEqual(await shown(), []);
    const slider = await tab.$(".chart input");
    await slider.focus();
    await tab.keyboard.press("End");
    assert.match(await value(), /1\u202f840\u00a0VA$/);
    await tab.keyboard.press("ArrowLeft");
    const earlier = await value();
    await tab.keyboard.press("PageDown");
    assert.notEqual(await value(), earlier);
    await tab.keyboard.press("Home");
    const first = await value();
    assert.deepEqual(await shown(), [first]);
    assert.match(first, /^\d\d:\d\d\u00a0: 2\u202f5\d\d/);  // the first minute
    await refresh();
    assert.equal(await tab.evaluate(() => document.activeElement.id), "chart-1");
    await tab.keyboard.press("Escape");
    assert.deepEqual(await shown(), []);
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

  test("says large what to enter in Domoticz until it reads", async () => {
    answer = samples.answer(undefined, { clients: [] });
    await open();
    const place = () => tab.$eval("#domoticz", (details) => [details.open,
      details.innerText.split("\n")[0],
      details.getBoundingClientRect().top < document.getElementById("cards")
        .getBoundingClientRect().top]);
    assert.deepEqual(await place(), [true, "Il reste à faire", true]);
    assert.match(await text("places"), /^Dans Domoticz.*«\u00a0Eco Devices\u00a0»/s);
    await tab.click("#domoticz summary");
    await refresh();
    assert.equal((await place())[0], false, "the next answer opens it");
    answer = samples.answer();
    await refresh();
    assert.deepEqual(await place(), [false, "À mettre dans Domoticz", false]);
    await tab.click("#domoticz summary");
    answer.uptime += 10000;
    await refresh();
    assert.equal((await place())[0], true, "the next answer folds it");
    answer = samples.answer([samples.waiting()], { clients: [] });
    await refresh();
    assert.equal((await place())[1], "À mettre dans Domoticz", "too early");
  });

  test("says to wait a minute before it says how to add it", async () => {
    answer = samples.answer(undefined, { clients: [], uptime: 59 });
    await open();
    assert.match(await text("places"),
      /^Attendre une minute si Domoticz est déjà réglé\. Sinon, dans Domoticz, C/);
    answer.uptime = 60;
    await refresh();
    assert.match(await text("places"), /^Dans Domoticz, Configuration/);
  });

  test("folds the counters away", async () => {
    await open();
    const visible = () => tab.$eval(".report", (report) => report.checkVisibility());
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
    assert.deepEqual(signs, [["?", "pas connu"], ["!", "en défaut"],
      ["✓", "en ordre"], ["?", "pas connu"]]);
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
    assert.match(await text("cards"), /Pas encore de courbe, un point par minute\./);
    assert.equal(await tab.$(".chart svg"), null);
  });
});

//////// The page of the program itself ///////////////////////////////////////////////

const TIC = readFileSync(new URL("../captures/historic-1ph-hc-1.tic", import.meta.url));

// A free port of this machine.
async function freePort() {
  const server = createTcpServer();
  await new Promise((done) => {
    server.listen(0, "127.0.0.1", done);
  });
  const { port } = server.address();
  await new Promise((done) => {
    server.close(done);
  });
  return port;
}

// An ESP8266, which serves only its latest client.
class Esp {
  constructor(port) {
    this.client = null;
    this.isDead = false;
    this.server = createTcpServer((client) => {
      this.client?.end();
      this.client = client;
      client.on("error", () => undefined);
    });
    this.server.listen(port, "127.0.0.1");
    this.clock = setInterval(() => this.isDead || this.client?.write(TIC), 300);
  }

  stop() {
    clearInterval(this.clock);
    this.client?.destroy();
    this.server.close();
  }
}

// Another program that reads the ESP, and comes again whenever it is cut off.
class Rival {
  constructor(port) {
    this.port = port;
    this.connect();
  }

  connect() {
    this.socket = connect(this.port, "127.0.0.1");
    this.socket.on("error", () => undefined);
    this.socket.resume();
    this.socket.on("close", () => {
      this.timer = setTimeout(() => this.connect(), 1500);
    });
  }

  stop() {
    this.socket.removeAllListeners("close");
    this.socket.destroy();
    clearTimeout(this.timer);
  }
}

describe("the page of the program", { concurrency: false }, () => {
  let browser;
  let tab;
  let folder;
  let program;
  let esp;
  let ports;

  before(async () => {
    browser = await launch();
  });

  after(() => browser?.close());

  beforeEach(async () => {
    ports = { esp: await freePort(), http: await freePort(), relay: await freePort() };
    folder = mkdtempSync(join(tmpdir(), "ecolinky-"));
    const ini = join(folder, "ecolinky.ini");
    writeFileSync(ini, `[teleinfo1]\nhost = 127.0.0.1\nport = ${ports.esp}\n`
      + `relay_port = ${ports.relay}\n[http]\naddress = 127.0.0.1\n`
      + `port = ${ports.http}\n`);
    esp = new Esp(ports.esp);
    program = spawn("python3", ["-B", PROGRAM, "--config", ini], { stdio: "ignore" });
    const deadline = Date.now() + 20000;
    while (await read("a test") !== 200 && Date.now() < deadline) await pause(200);
    tab = await browser.newPage();
    await tab.goto(`http://127.0.0.1:${ports.http}/`);
    await tab.waitForSelector(".pill");
  });

  afterEach(async () => {
    await tab?.close();
    program.kill();
    esp.stop();
    rmSync(folder, { recursive: true });
  });

  // Read a box as a program with this User-Agent.
  async function read(agent, times = 1) {
    let status = 0;
    for (let turn = 0; turn < times; turn += 1) {
      const url = `http://127.0.0.1:${ports.http}/status.xml`;
      const headers = { "User-Agent": agent };
      const response = await fetch(url, { headers }).catch(() => ({ status: 0 }));
      ({ status } = response);
    }
    return status;
  }

  // What the page says now: the state, and the stations with their marks.
  async function look() {
    await tab.evaluate("poll()");
    return tab.evaluate(() => ({
      state: document.querySelector(".pill").textContent,
      words: document.querySelector("#cards").textContent,
      toDo: /Il reste à faire/.test(document.querySelector("main").innerText),
      stations: [...document.querySelectorAll(".way li")].map((station) =>
        station.querySelector("b").textContent + " " + station.className),
    }));
  }

  async function waitFor(isWanted) {
    const deadline = Date.now() + 20000;
    let seen = await look();
    while (!isWanted(seen) && Date.now() < deadline) {
      await pause(250);
      seen = await look();
    }
    assert.ok(isWanted(seen), JSON.stringify({ ...seen, words: "" }));
    return seen;
  }

  const isLive = ({ state }) => /^en direct|dépassement/.test(state);

  test("never says that all is well while two programs share the ESP", async () => {
    await waitFor(isLive);
    const rival = new Rival(ports.esp);
    try {
      await pause(25000);
      for (let turn = 0; turn < 25; turn += 1) {
        const { state, words, stations } = await look();
        assert.notEqual(state, "en direct", `look ${turn}`);
        assert.equal(stations.includes("ESP8266 good"), false, `look ${turn}`);
        assert.match(words, /Un autre programme lit/);
        await pause(400);
      }
    } finally {
      rival.stop();
    }
  });

  test("does not call an ESP well that is silent", async () => {
    await waitFor(isLive);
    esp.isDead = true;
    await pause(9000);
    const { words, stations } = await look();
    assert.equal(stations.includes("ESP8266 good"), false, stations.join());
    assert.equal(stations.includes("Linky good"), false, stations.join());
    assert.match(words, /dernier octet il y a \d+\ss/);
  });

  test("knows who reads", async () => {
    await waitFor((seen) => isLive(seen) && seen.toDo);
    await read("curl/8.5.0");
    assert.equal((await look()).toDo, true, "a curl has hidden what is to do");
    await read("domoticz/1.0", 2);
    const seen = await look();
    assert.equal(seen.toDo, false);
    assert.equal(seen.stations[3], "Domoticz good");
    await read("HomeAssistant/2026.11.0 aiohttp/3.13 Python/3.14", 2);
    assert.deepEqual((await look()).stations.slice(3).sort(),
      ["Domoticz good", "Home Assistant good",
        `Lecteur TIC (port${NBSP}${ports.relay}) soft`]);
  });

  test("does not take a connection to the relay for Domoticz", async () => {
    await waitFor((seen) => isLive(seen) && seen.toDo);
    const nc = connect(ports.relay, "127.0.0.1");
    nc.resume();
    await pause(3000);
    const { toDo, words, stations } = await look();
    nc.destroy();
    assert.match(words, /Lecteur TIC, port \d+, \d+ fois/);
    assert.equal(toDo, true);
    assert.deepEqual(stations.slice(3),
      ["Domotique soft", `Lecteur TIC (port${NBSP}${ports.relay}) soft`]);
  });
});
