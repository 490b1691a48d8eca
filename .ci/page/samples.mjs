// Answers as ecolinky gives them at /ecolinky.json, one function a kind of meter.

const TAGS = ("ADCO OPTARIF ISOUSC BASE HCHC HCHP EJPHN EJPHPM BBRHCJB BBRHPJB BBRHCJW"
  + " BBRHPJW BBRHCJR BBRHPJR PEJP PTEC DEMAIN IINST IINST1 IINST2 IINST3 ADPS IMAX"
  + " IMAX1 IMAX2 IMAX3 PPAP PAPP HHPHC MOTDETAT PPOT").split(" ");

function fieldsOf(values) {
  return { ...Object.fromEntries(TAGS.map((tag) => [tag, 0])), ...values };
}

// A day's powers: 480 minutes, with a gap where the meter was away if one is wanted.
export function history(gap = false) {
  const power = [];
  for (let minute = 0; minute < 480; minute += 1) {
    const heater = minute % 90 < 25 ? 2100 : 0;
    const away = gap && minute > 200 && minute < 260;
    power.push(away ? null : Math.round(420 + heater + 90 * Math.sin(minute / 7)));
  }
  return { step: 60, age: 0, power };
}

// One phase, off-peak tariff; 1840 VA of 6900, which is 27 %.
export function input(changes = {}) {
  return {
    input: 1,
    source: "192.168.1.50:8888",
    state: "live",
    reason: "",
    remarks: [],
    age: 0.8,
    mode: "historic",
    phases: 1,
    labels: {},
    fields: fieldsOf({ OPTARIF: "HC..", PTEC: "HP..", ISOUSC: 30, IINST: 8, IMAX: 90,
      PAPP: 1840, HCHC: 12345686, HCHP: 9876543 }),
    tariff: {
      option: "HC..",
      name: "Heures creuses",
      period: { code: "HP..", name: "Heures pleines" },
      indexes: [
        { tag: "HCHC", name: "Heures creuses", running: false },
        { tag: "HCHP", name: "Heures pleines", running: true },
      ],
      days: null,
    },
    injection: null,
    last: null,
    counters: {
      frames: 123456,
      groups: 1234567,
      refused: { checksum: 4321, form: 12, implausible: 3 },
      connections: 7,
    },
    relay_port: null,
    history: history(),
    ...changes,
  };
}

export function answer(inputs = [input()], changes = {}) {
  return { version: "1.2.0", uptime: 93784, hostname: "ecolinky", ports: [4000], inputs,
    ...changes };
}

// Silent: no fields, no tariff, no power now, but what `known` had last.
export function stale(age = 95, known = input()) {
  const { fields, tariff, phases, injection } = known;
  return input({ state: "stale", age, fields: null, tariff: null, phases: null,
    last: { age, fields, tariff, phases, injection },
    reason: "l’ESP ferme chaque connexion, un autre programme le lit, l’arrêter" });
}

export function waiting() {
  return input({ state: "waiting", age: null, mode: null, phases: null, fields: null,
    tariff: null, history: { step: 60, age: 0, power: [] },
    reason: "allumé, mais rien n’écoute sur ce port, vérifier port et le Serial Server"
      + " d’ESPEasy" });
}

const TEMPO = [
  ["BBRHCJB", "Heures creuses, jour bleu"], ["BBRHPJB", "Heures pleines, jour bleu"],
  ["BBRHCJW", "Heures creuses, jour blanc"], ["BBRHPJW", "Heures pleines, jour blanc"],
  ["BBRHCJR", "Heures creuses, jour rouge"], ["BBRHPJR", "Heures pleines, jour rouge"],
];

export function tempo(tomorrow = "rouge") {
  const counted = TEMPO.map(([tag], i) => [tag, 12345686 + 1111111 * i]);
  return input({
    fields: fieldsOf({ OPTARIF: "BBR(", PTEC: "HPJB", ISOUSC: 45, IINST: 40, PAPP: 9600,
      IMAX: 90, DEMAIN: "ROUG", ...Object.fromEntries(counted) }),
    tariff: {
      option: "BBR(",
      name: "Tempo",
      period: { code: "HPJB", name: "Heures pleines, jour bleu" },
      indexes: TEMPO.map(([tag, name]) => ({ tag, name, running: tag === "BBRHPJB" })),
      days: { today: "bleu", tomorrow },
    },
  });
}

const BASE_TARIFF = {
  option: "BASE",
  name: "Base",
  period: { code: "TH..", name: "Toutes heures" },
  indexes: [{ tag: "BASE", name: "Toutes heures", running: true }],
  days: null,
};

export function threePhase() {
  return input({
    mode: "standard",
    phases: 3,
    tariff: BASE_TARIFF,
    fields: fieldsOf({ OPTARIF: "BASE", PTEC: "TH..", ISOUSC: 20, PAPP: 11900,
      IINST1: 11, IINST2: 17, IINST3: 24, IMAX1: 60, IMAX2: 60, IMAX3: 60, ADPS: 24,
      BASE: 45678901 }),
  });
}

export function injecting(power = 1230) {
  return input({
    mode: "standard",
    tariff: BASE_TARIFF,
    fields: fieldsOf({ OPTARIF: "BASE", PTEC: "TH..", ISOUSC: 30, IMAX: 30, PAPP: 0,
      BASE: 45678901 }),
    injection: fieldsOf({ OPTARIF: "BASE", PTEC: "TH..", ISOUSC: 30, PAPP: power,
      BASE: 1234567, IINST: 5 }),
  });
}

export function twoInputs() {
  const source = "192.168.1.51:8888";
  const second = { ...tempo(), input: 2, source, relay_port: 8890 };
  return answer([input(), second], { ports: [4000, 4001] });
}
