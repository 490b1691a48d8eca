// Answers as ecolinky gives them at /ecolinky.json, one function a kind of meter.  Each
// input has its history with it; documentsOf() parts them as the program does.  What is
// wrong has the words of the program.

import { execFileSync } from "node:child_process";

import { PROGRAM } from "./extract.mjs";

const TAGS = ("ADCO OPTARIF ISOUSC BASE HCHC HCHP EJPHN EJPHPM BBRHCJB BBRHPJB BBRHCJW"
  + " BBRHPJW BBRHCJR BBRHPJR PEJP PTEC DEMAIN IINST IINST1 IINST2 IINST3 ADPS IMAX"
  + " IMAX1 IMAX2 IMAX3 PPAP PAPP HHPHC MOTDETAT PPOT").split(" ");

function fieldsOf(values) {
  return { ...Object.fromEntries(TAGS.map((tag) => [tag, 0])), ...values };
}

// What the program tells of minutes: of each the power, the share that was lost in
// percent, and whether its hours were cheap.
export function historyOf(powers, lost = () => 0, isCheap = () => 0) {
  const minutes = powers.map((power, i) => [power, lost(i), isCheap(i)]);
  return { step: 60, age: 0, minutes };
}

// The powers of a day, with a gap where the meter was away if one is wanted; its cheap
// hours are those of a night, with a water heater.
const isCheap = (minute) => Number(minute > 470 && minute < 950);

export function powersOfADay(gap = false) {
  return Array.from({ length: 1440 }, (_, minute) => {
    const heater = isCheap(minute) && minute < 620 ? 2200 : 0;
    const oven = minute % 480 < 25 ? 2100 : 0;
    const away = gap && minute > 600 && minute < 780;
    const base = 420 + 90 * Math.sin(minute / 7) + 40 * Math.sin(minute * minute);
    return away ? null : Math.round(base + heater + oven);
  });
}

export function history(gap = false) {
  return historyOf(powersOfADay(gap), undefined, isCheap);
}

// The hours of a tariff without cheap hours.
const PLAIN_DAY = historyOf(powersOfADay());

// A line that loses a fifth of its groups for some hours.
export function damagedHistory() {
  const lost = (minute) => minute > 900 ? 15 + minute % 10 : 1;
  return historyOf(powersOfADay(), lost, isCheap);
}

const TELL_REASONS = `
import json, runpy, sys
names = runpy.run_path(sys.argv[1])
reasons = {}
for name, reason in names.items():
    if isinstance(reason, names["Reason"]):
        words = ["%s"] * reason.template.count("%s")
        reasons[name] = names["describe_reason"](reason.with_words(*words))
print(json.dumps(reasons))`;
const REASONS = JSON.parse(execFileSync("python3", ["-B", "-c", TELL_REASONS, PROGRAM],
  { encoding: "utf8" }));

// A Reason of the program, as it tells it; words: in place of each %s.
export function reason(name, ...words) {
  const known = REASONS[name];
  if (!known) throw new Error("ecolinky.py has no Reason " + name);
  const cause = words.reduce((text, word) => text.replace("%s", word), known.cause);
  return { ...known, cause };
}

// What stops a reader, or disturbs it.
export function fault(station, cause, remedy) {
  return { fault: { station, cause, remedy } };
}

export const WELL = { fault: reason("ALL_WELL") };
export const EVICTED = { fault: reason("EVICTED") };
export const AWAY = { fault: reason("AWAY") };
export const SILENT = { fault: reason("SILENT") };
export const NOTHING_LISTENS = { fault: reason("NOTHING_LISTENS") };

// One phase, off-peak tariff; 1840 VA of 6900, which is 27 %.
export function input(changes = {}) {
  return {
    input: 1,
    source: "192.168.1.50:8888",
    state: "live",
    ...WELL,
    remarks: [],
    age: 0.8,
    byte_age: 0.1,
    mode: "historic",
    phases: 1,
    labels: {},
    fields: fieldsOf({ ADCO: "021728123456", OPTARIF: "HC..", PTEC: "HP..", ISOUSC: 30,
      IINST: 8, IMAX: 90, PAPP: 1840, HCHC: 12345686, HCHP: 9876543 }),
    tariff: {
      option: "HC..",
      name: "Heures creuses",
      period: { code: "HP..", tag: "HCHP", name: "Heures pleines" },
      indexes: [
        { tag: "HCHC", name: "Heures creuses" },
        { tag: "HCHP", name: "Heures pleines" },
      ],
      days: null,
    },
    injection: null,
    today: { since: "", energy: { HCHC: 4120, HCHP: 8219 } },
    last: null,
    counters: {
      frames: 123456,
      groups: 1234567,
      refused: { checksum: 4321, form: 12, implausible: 3 },
      connections: 7,
    },
    ports: [4000],
    relay_port: null,
    history: history(),
    ...changes,
  };
}

// A program that reads, as the program tells it.
export function reader(changes = {}) {
  return { address: "192.168.1.10", agent: "domoticz/1.0", port: 4000, reads: 500,
    age: 4.2, ...changes };
}

export function answer(inputs = [input()], changes = {}) {
  return { version: "1.2.0", uptime: 93784, hostname: "ecolinky", ports: [4000],
    clients: [reader()], inputs, ...changes };
}

// The bodies of /ecolinky.json and of /history.json.
export function documentsOf({ inputs, ...rest }) {
  const parted = inputs.map(({ history: day, ...known }) => [known, day]);
  const histories = parted.map(([known, day]) => ({ input: known.input, ...day }));
  const now = { ...rest, inputs: parted.map(([known]) => known) };
  return {
    "/ecolinky.json": JSON.stringify(now),
    "/history.json": JSON.stringify({ inputs: histories }),
  };
}

// Silent: no fields, no tariff, no power now, but what `known` had last.
export function stale(age = 95, known = input(), why = EVICTED, byteAge = age) {
  const { fields, tariff, phases, injection } = known;
  const last = { age, fields, tariff, phases, injection };
  const silent = (minute) => 60 * (1440 - minute) < age;
  const minutes = known.history.minutes.map(([power, lost, cheap], minute) =>
    [silent(minute) ? null : power, lost, cheap]);
  return input({ state: "stale", age, byte_age: byteAge, mode: known.mode,
    fields: null, tariff: null, phases: null,
    today: null, last, history: { ...known.history, minutes }, ...why });
}

export function waiting() {
  return input({ state: "waiting", age: null, byte_age: null, mode: null,
    phases: null, fields: null,
    tariff: null, today: null, history: historyOf([]), ...NOTHING_LISTENS });
}

const TEMPO = [
  ["BBRHCJB", "Heures creuses, jour bleu"], ["BBRHPJB", "Heures pleines, jour bleu"],
  ["BBRHCJW", "Heures creuses, jour blanc"], ["BBRHPJW", "Heures pleines, jour blanc"],
  ["BBRHCJR", "Heures creuses, jour rouge"], ["BBRHPJR", "Heures pleines, jour rouge"],
];

export function tempo(tomorrow = "rouge") {
  const counted = TEMPO.map(([tag], i) => [tag, 12345686 + 1111111 * i]);
  const energy = TEMPO.map(([tag], i) => [tag, i < 2 ? 5210 + 9000 * i : 0]);
  return input({
    today: { since: "", energy: Object.fromEntries(energy) },
    fields: fieldsOf({ ADCO: "021728777888", OPTARIF: "BBR(", PTEC: "HPJB", ISOUSC: 45,
      IINST: 40, PAPP: 9600,
      IMAX: 90, DEMAIN: "ROUG", ...Object.fromEntries(counted) }),
    tariff: {
      option: "BBR(",
      name: "Tempo",
      period: { code: "HPJB", tag: "BBRHPJB", name: "Heures pleines, jour bleu" },
      indexes: TEMPO.map(([tag, name]) => ({ tag, name })),
      days: { today: "bleu", tomorrow },
    },
  });
}

const BASE_TARIFF = {
  option: "BASE",
  name: "Base",
  period: { code: "TH..", tag: "BASE", name: "Toutes heures" },
  indexes: [{ tag: "BASE", name: "Toutes heures" }],
  days: null,
};

export function threePhase() {
  return input({
    mode: "standard",
    phases: 3,
    tariff: BASE_TARIFF,
    history: PLAIN_DAY,
    today: { since: "09:20", energy: { BASE: 23450 } },
    fields: fieldsOf({ ADCO: "041876123456", OPTARIF: "BASE", PTEC: "TH..",
      ISOUSC: 20, PAPP: 11900,
      IINST1: 11, IINST2: 17, IINST3: 24, IMAX1: 60, IMAX2: 60, IMAX3: 60, ADPS: 24,
      BASE: 45678901 }),
  });
}

export function injecting(power = 1230) {
  const sun = (minute) => minute > 1000 ? Math.sin((minute - 1000) / 180) : 0;
  const sunny = powersOfADay().map((each, minute) =>
    Math.round(each - 2600 * sun(minute)));
  return input({
    mode: "standard",
    tariff: BASE_TARIFF,
    history: historyOf(sunny),
    today: { since: "", energy: { BASE: 3210, EAIT: 7654 } },
    fields: fieldsOf({ ADCO: "041876123456", OPTARIF: "BASE", PTEC: "TH..",
      ISOUSC: 30, IMAX: 30, PAPP: 0,
      BASE: 45678901 }),
    ports: [4000, 4001],
    injection: fieldsOf({ ADCO: "041876123456", OPTARIF: "BASE", PTEC: "TH..",
      ISOUSC: 30, PAPP: power,
      BASE: 1234567, IINST: 5 }),
  });
}

export function twoInputs() {
  const source = "192.168.1.51:8888";
  const second = { ...tempo(), input: 2, source, ports: [4001], relay_port: 8890 };
  return answer([input(), second], { ports: [4000, 4001],
    clients: [reader(), reader({ port: 4001 })] });
}

// One phase in standard mode, 6 kVA.
export function standard(power = 1840, changes = {}) {
  return input({
    mode: "standard",
    labels: { NGTF: "BASE" },
    tariff: BASE_TARIFF,
    history: PLAIN_DAY,
    today: { since: "", energy: { BASE: 13210 } },
    fields: fieldsOf({ ADCO: "041876123456", OPTARIF: "BASE", PTEC: "TH..",
      ISOUSC: 30,
      IINST: Math.round(power / 233), IMAX: 90, PAPP: power, BASE: 45678901 }),
    ...changes,
  });
}

// More than the subscription.
export function overloaded(mode = "historic") {
  const meter = mode === "standard" ? standard(6300) : input();
  const [power, amperes] = mode === "standard" ? [6300, 27] : [7820, 34];
  Object.assign(meter.fields, { PAPP: power, IINST: amperes, ADPS: amperes });
  return meter;
}
