// Pictures of the page in its states, to look at:  node shots.mjs DIRECTORY [STATE ...]
// The names of the files say nothing of the states, which are listed in KEY.md: who
// looks at them must find out what is wrong.

import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { createServer } from "node:http";

import puppeteer from "puppeteer-core";

import { readPage } from "./extract.mjs";
import * as samples from "./samples.mjs";

process.env.TZ = "Europe/Paris";

const PAGE = readPage();
const { answer, fault, input, reader, stale } = samples;
const HERE = "2026-11-24T20:31:00+01:00";  // the clock of all pictures

const GONE = reader({ age: 3720 });
const HOME_ASSISTANT = reader({ address: "192.168.1.12", age: 12,
  agent: "HomeAssistant/2026.11.0 aiohttp/3.13 Python/3.14" });
const NOISE = fault("linky", "du bruit arrive au lieu de la TIC",
  "changer la vitesse (1200 en historique, 9600 en standard), puis vérifier"
  + " l’optocoupleur");
const STUCK = fault("linky",
  "la ligne est inversée ou bloquée (toujours le même octet)",
  "échanger les broches 3 et 4 de l’optocoupleur, vérifier G, 3V3 et la broche");
const OFFLINE = fault("ecolinky", "la machine d’ecolinky n’est pas sur le réseau",
  "vérifier son Wi-Fi");
const INCOMPLETE = fault("esp",
  "des groupes manquent (PAPP, HCHC), aucun n’est abîmé",
  "l’ESP les perd (mettre RX buffer size à 2048) ou le compteur ne les envoie pas");
const DAMAGED = "beaucoup de groupes sont abîmés, vérifier l’optocoupleur et ses"
  + " résistances";
const CHANGED = "le compteur ou son contrat a changé (avant 021728123456, tarif Base ;"
  + " maintenant 021728123456, tarif Heures creuses), dans Domoticz ajouter un nouveau"
  + " matériel ou supprimer ce jour";
const ejp = input();
Object.assign(ejp.fields, { OPTARIF: "EJP.", PEJP: 30 });

// What it is, the answer (null: the program is stopped; text: sent as it stands).
const STATES = [
  ["all is well", answer()],
  ["all is well, a night without data", answer([input({ history:
    samples.history(true) })])],
  ["the ESP is away since an hour", answer([stale(4500, input(), samples.AWAY)])],
  ["two programs take the ESP from each other, values still come",
    answer([input({ ...samples.EVICTED, remarks: [], age: 2.1, byte_age: 1.9 })])],
  ["another program keeps the ESP, nothing comes", answer([stale(300)])],
  ["the ESP has just died: 12 s without a byte, values are still served",
    answer([input({ ...samples.SILENT, age: 12.4, byte_age: 12.2 })])],
  ["the opto-coupler damages groups", answer([input({ remarks: [DAMAGED],
    history: samples.damagedHistory() })])],
  ["installed, never read by Domoticz", answer(undefined, { clients: [] })],
  ["just restarted, not yet read by Domoticz",
    answer(undefined, { clients: [], uptime: 25 })],
  ["Domoticz does not read any more", answer(undefined, { clients: [GONE] })],
  ["Domoticz does not read any more, Home Assistant does",
    answer(undefined, { clients: [HOME_ASSISTANT, GONE] })],
  ["a person has tried curl, Domoticz is not set up", answer(undefined,
    { clients: [reader({ agent: "curl/8.5.0", reads: 1 })] })],
  ["overload, historic", answer([samples.overloaded()])],
  ["overload, standard, 6 kVA", answer([samples.overloaded("standard")])],
  ["the house injects", answer([samples.injecting()], { ports: [4000, 4001],
    clients: [reader(), reader({ port: 4001, age: 5 })] })],
  ["Tempo, tomorrow white", answer([samples.tempo("blanc")])],
  ["Tempo, tomorrow not known yet", answer([samples.tempo(null)])],
  ["three phases", answer([samples.threePhase()])],
  ["two meters, the second box is not read", { ...samples.twoInputs(),
    clients: [reader()] }],
  ["two meters, the second ESP refuses the connection", answer([input(), { ...stale(900,
    samples.tempo(), samples.NOTHING_LISTENS), input: 2,
  source: "192.168.1.51:8888" }], { ports: [4000, 4001],
    clients: [reader(), reader({ port: 4001 })] })],
  ["waits for a meter since the start: nothing listens at the ESP's port",
    answer([samples.waiting()], { clients: [], uptime: 200 })],
  ["the line is inverted", answer([stale(400, input(), STUCK, 0.3)])],
  ["ecolinky is stopped", null],
  ["an answer that cannot be read", { inputs: [{}] }],
  ["groups are missing", answer([stale(200, input(), INCOMPLETE, 0.3)])],
  ["noise, wrong speed", answer([stale(200, input(), NOISE, 0.3)])],
  ["the machine is off the network", answer([stale(200, input(), OFFLINE)])],
  ["the contract has changed", answer([input({ remarks: [CHANGED] })])],
  ["EJP's peak is near", answer([ejp])],
];

const [directory = ".", ...wanted] = process.argv.slice(2);
let bodies = {};
const server = createServer((request, response) => {
  if (request.url === "/") {
    response.writeHead(200, { "Content-Type": "text/html; charset=utf-8" });
    response.end(PAGE);
  } else if (bodies[request.url]) {
    response.end(bodies[request.url]);
  } else {
    response.destroy();
  }
});
await new Promise((done) => {
  server.listen(0, "127.0.0.1", done);
});

function setClock(now) {
  Date.now = () => now;
}

async function take(browser, state, file, width, scheme) {
  const tab = await browser.newPage();
  await tab.setViewport({ width, height: 800 });
  await tab.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
  await tab.evaluateOnNewDocument(setClock, Date.parse(HERE));
  const isAnswer = state && state.version;
  bodies = samples.documentsOf(isAnswer ? state : answer());  // seen before it stopped
  await tab.goto(`http://127.0.0.1:${server.address().port}/`);
  await tab.waitForSelector("body[data-ready='1']");
  if (!isAnswer) {
    bodies = state ? { ...bodies, "/ecolinky.json": JSON.stringify(state) } : {};
    await tab.evaluate("poll()");
  }
  await tab.screenshot({ path: file, fullPage: true });
  await tab.close();
}

const path = execFileSync("which", [process.env.CHROMIUM || "chromium"],
  { encoding: "utf8" }).trim();
const options = { executablePath: path, args: ["--no-sandbox"] };
const browser = await puppeteer.launch(options);
const key = [];
for (const [i, [name, state]] of STATES.entries()) {
  const id = "s" + String(i + 1).padStart(2, "0");
  key.push(`- ${id}: ${name}`);
  if (wanted.length && !wanted.includes(id)) continue;
  for (const width of [390, 1280]) {
    for (const scheme of ["light", "dark"]) {
      const file = `${directory}/${id}-${width}-${scheme}.png`;
      await take(browser, state, file, width, scheme);
    }
  }
}
writeFileSync(`${directory}/KEY.md`, key.join("\n") + "\n");
await browser.close();
server.close();
