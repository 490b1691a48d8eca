// Pictures of the page in its states, to look at:  node shots.mjs DIRECTORY [STATE ...]
// The names of the files say nothing of the states: who looks at those of LOOK.md must
// find out what is wrong and what to do; KEY.md says it.

import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { createServer } from "node:http";

import puppeteer from "puppeteer-core";

import { readPage } from "./extract.mjs";
import * as samples from "./samples.mjs";

process.env.TZ = "Europe/Paris";

const PAGE = readPage();
const { answer, fault, input, reader, reason, stale } = samples;
const HERE = "2026-11-24T14:47:00+01:00";  // the clock of all pictures

const GONE = reader({ age: 3720 });
const HOME_ASSISTANT = reader({ address: "192.168.1.12", age: 12,
  agent: "HomeAssistant/2026.11.0 aiohttp/3.13 Python/3.14" });
const because = (name, ...words) => ({ fault: reason(name, ...words) });
const lack = reason("NEVER_SENT");
const { cause: missing } = reason("INCOMPLETE", "PAPP, HCHC", lack.cause);
const INCOMPLETE = fault(lack.station, missing, lack.remedy);
const CHANGED = reason("CHANGED", "le contrat", "Base", "Heures creuses");
const ejp = input({ tariff: { option: "EJP.", name: "EJP", days: null,
  period: { code: "HN..", tag: "EJPHN", name: "Heures normales" },
  indexes: [{ tag: "EJPHN", name: "Heures normales" },
    { tag: "EJPHPM", name: "Pointe mobile" }] },
today: { since: "", energy: { EJPHN: 11220, EJPHPM: 0 } },
history: samples.historyOf(samples.powersOfADay()) });
Object.assign(ejp.fields, { OPTARIF: "EJP.", PEJP: 30, PTEC: "HN..", EJPHN: 12345686,
  EJPHPM: 2345678 });
const LOCAL = { address: "127.0.0.1" };

// What it is, what the user should do, the answer (null: the program is stopped), and
// where the page is opened.
const STATES = [
  ["all is well", "nothing", answer()],
  ["all is well; last night there were no data for three hours", "nothing now",
    answer([input({ history: samples.history(true) })])],
  ["the ESP does not answer since an hour and a quarter",
    "look after the ESP (power, Wi-Fi), then its address in ecolinky.ini",
    answer([stale(4500, input(), samples.AWAY)])],
  ["two programs take the ESP from each other; values still come",
    "stop the other program", answer([input({ ...samples.EVICTED, age: 2.1,
      byte_age: 1.9 })])],
  ["another program keeps the ESP, nothing comes since 5 minutes",
    "stop the other program", answer([stale(300)])],
  ["the ESP has just died: 12 s without a byte, the last values are still served",
    "wait a minute, then look after its power and its Wi-Fi",
    answer([input({ ...samples.SILENT, age: 12.4, byte_age: 12.2 })])],
  ["the opto-coupler damages groups; values are right",
    "look after the opto-coupler and its resistors",
    answer([input({ remarks: [reason("OFTEN_DAMAGED")],
      history: samples.damagedHistory() })])],
  ["installed, never read by Domoticz", "set up Domoticz: 192.168.1.20, port 4000",
    answer(undefined, { clients: [] })],
  ["just restarted, not yet read by Domoticz; the page is open on ecolinky's machine",
    "wait a minute; if Domoticz was never set up, set it up",
    answer(undefined, { clients: [], uptime: 25 }), "127.0.0.1"],
  ["Domoticz does not read any more, nobody else does",
    "look whether Domoticz runs and its hardware is enabled",
    answer(undefined, { clients: [GONE] })],
  ["Domoticz does not read any more, Home Assistant does",
    "look after Domoticz, or, if it was removed, restart ecolinky",
    answer(undefined, { clients: [HOME_ASSISTANT, GONE] })],
  ["a person has tried once (curl), Domoticz is not set up",
    "set up Domoticz: 192.168.1.20, port 4000", answer(undefined,
      { clients: [reader({ agent: "curl/8.5.0", reads: 1 })] })],
  ["overload, one phase, historic: 34 A of 30 A", "switch an appliance off",
    answer([samples.overloaded()])],
  ["overload, one phase, standard: 6300 VA of 6 kVA", "switch an appliance off",
    answer([samples.overloaded("standard")])],
  ["the house injects 1230 VA; all is well, both boxes are read", "nothing",
    answer([samples.injecting()], { ports: [4000, 4001],
      clients: [reader(), reader({ port: 4001, age: 5 })] })],
  ["all is well; Tempo, tomorrow white; 40 A of 45 A", "nothing, or no more appliances",
    answer([samples.tempo("blanc")])],
  ["all is well; Tempo, tomorrow not announced yet; 40 A of 45 A",
    "nothing, or no more appliances", answer([samples.tempo(null)])],
  ["three phases, phase 3 is overloaded", "switch an appliance (of phase 3) off",
    answer([samples.threePhase()])],
  ["two meters, both well; the second box is not read",
    "add a second hardware in Domoticz: 192.168.1.20, port 4001",
    { ...samples.twoInputs(), clients: [reader()] }],
  ["two meters; the second ESP answers, but nothing listens at port 8888",
    "look after the Serial Server in ESPEasy and the port in ecolinky.ini",
    answer([input(), { ...stale(900, samples.tempo(), samples.NOTHING_LISTENS),
      input: 2, source: "192.168.1.51:8888", ports: [4001] }], { ports: [4000, 4001],
      clients: [reader(), reader({ port: 4001 })] })],
  ["first start: no value yet, nothing listens at the ESP's port 8888",
    "look after the Serial Server in ESPEasy and the port in ecolinky.ini",
    answer([samples.waiting()], { clients: [], uptime: 200 })],
  ["always the same byte comes: the speed is wrong or the line is stuck",
    "set the speed in ESPEasy, then exchange pins 3 and 4",
    answer([stale(400, input(), because("STUCK"), 0.3)])],
  ["ecolinky is stopped, or the network is cut", "restart it", null],
  ["ecolinky gives an answer that the page cannot read",
    "load the page anew, then restart it", { inputs: [{}] }],
  ["groups are missing since three minutes", "set RX buffer size to 2048 in ESPEasy",
    answer([stale(200, input(), INCOMPLETE, 0.3)])],
  ["noise instead of TIC: wrong speed", "set the speed in ESPEasy",
    answer([stale(200, input(), because("NOISE"), 0.3)])],
  ["ecolinky's machine has no network; the page is open on this machine",
    "look after its cable or Wi-Fi",
    answer([stale(200, input(), because("OFFLINE"))], { clients: [reader(LOCAL)] }),
    "127.0.0.1"],
  ["all comes, but the contract has changed",
    "in Domoticz add a new hardware, or tomorrow delete this day",
    answer([input({ remarks: [CHANGED] })])],
  ["all is well; the dear hours of EJP begin in half an hour",
    "postpone large appliances", answer([ejp])],
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

const LOOKS = [[390, "light"], [1280, "dark"], [390, "dark"], [1280, "light"]];

function setClock(now) {
  Date.now = () => now;
}

async function take(browser, state, file, { width, scheme, host }) {
  const tab = await browser.newPage();
  await tab.setViewport({ width, height: 800 });
  await tab.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
  await tab.evaluateOnNewDocument(setClock, Date.parse(HERE));
  const isAnswer = state && state.version;
  bodies = samples.documentsOf(isAnswer ? state : answer());  // seen before it stopped
  await tab.goto(`http://${host}:${server.address().port}/`);
  await tab.waitForSelector("#clock:not(:empty)");
  if (!isAnswer) {
    bodies = state ? { ...bodies, "/ecolinky.json": JSON.stringify(state) } : {};
    await tab.evaluate("poll()");
  }
  await tab.screenshot({ path: file, fullPage: true });
  await tab.close();
}

const path = execFileSync("which", [process.env.CHROMIUM || "chromium"],
  { encoding: "utf8" }).trim();
const options = { executablePath: path, args: ["--no-sandbox",
  "--host-resolver-rules=MAP 192.168.1.20 127.0.0.1"] };
const browser = await puppeteer.launch(options);
const key = [];
const look = [];
for (const [i, [name, toDo, state, host = "192.168.1.20"]] of STATES.entries()) {
  const id = "s" + String(i + 1).padStart(2, "0");
  const pictures = LOOKS.map(([width, scheme]) =>
    [`${id}-${width}-${scheme}.png`, { width, scheme, host }]);
  key.push(`- ${id}: ${name}. To do: ${toDo}.`);
  look[i * 12 % STATES.length] = pictures[(i + 2 + (i >> 2)) % 4][0];
  if (wanted.length && !wanted.includes(id)) continue;
  for (const [file, how] of pictures) {
    await take(browser, state, `${directory}/${file}`, how);
  }
}
writeFileSync(`${directory}/KEY.md`, key.join("\n") + "\n");
writeFileSync(`${directory}/LOOK.md`, "Five seconds for each of these pictures, in this"
  + " order.\n\n" + look.map((file) => `- ${file}`).join("\n") + "\n");
await browser.close();
server.close();
