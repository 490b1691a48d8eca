// Pictures of the page in its states, to look at:  node shots.mjs DIRECTORY

import { execFileSync } from "node:child_process";
import { createServer } from "node:http";

import puppeteer from "puppeteer-core";

import { readPage } from "./extract.mjs";
import * as samples from "./samples.mjs";

process.env.TZ = "Europe/Paris";

const PAGE = readPage();
const overloaded = samples.input();
Object.assign(overloaded.fields, { PAPP: 7820, IINST: 34, ADPS: 34 });
const DAMAGED = "beaucoup de groupes sont abîmés, vérifier l’optocoupleur et ses"
  + " résistances";
const anHourAgo = [{ address: "192.168.1.10", age: 3720 }];

const STATES = {
  well: samples.answer(),
  off: samples.answer([samples.stale(4500, samples.input(), samples.AWAY)]),
  evicted: samples.answer([samples.stale(300)]),
  damaged: samples.answer([samples.input({ remarks: [DAMAGED],
    history: samples.damagedHistory() })]),
  "never-read": samples.answer(undefined, { clients: [] }),
  "stopped-reading": samples.answer(undefined, { clients: anHourAgo }),
  injecting: samples.answer([samples.injecting()], { ports: [4000, 4001] }),
  overload: samples.answer([overloaded]),
  tempo: samples.answer([samples.tempo()]),
  "three-phase": samples.answer([samples.threePhase()]),
  "two-inputs": samples.twoInputs(),
  waiting: samples.answer([samples.waiting()], { clients: [], uptime: 20 }),
};

const directory = process.argv[2] || ".";
let answer;
const server = createServer((request, response) => {
  if (request.url === "/") {
    response.writeHead(200, { "Content-Type": "text/html; charset=utf-8" });
  }
  response.end(request.url === "/" ? PAGE : JSON.stringify(answer));
});
await new Promise((done) => {
  server.listen(0, "127.0.0.1", done);
});
const path = execFileSync("which", [process.env.CHROMIUM || "chromium"],
  { encoding: "utf8" }).trim();
const options = { executablePath: path, args: ["--no-sandbox"] };
const browser = await puppeteer.launch(options);
for (const [name, state] of Object.entries(STATES)) {
  answer = state;
  for (const width of [390, 1280]) {
    const tab = await browser.newPage();
    await tab.setViewport({ width, height: 800 });
    await tab.goto(`http://127.0.0.1:${server.address().port}/`);
    await tab.waitForSelector("body[data-ready='1']");
    const file = `${directory}/${name}-${width}.png`;
    await tab.screenshot({ path: file, fullPage: true });
    await tab.close();
  }
}
await browser.close();
server.close();
