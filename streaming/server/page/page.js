// The page: its button, its fields, and what it says in plain words.

import { Microphone, MicrophoneError, obstacle } from "./microphone.js";
import { Refusal, address, admit, reason } from "./server.js";
import { Stream, StreamError } from "./stream.js";
import { clock, transcript } from "./transcript.js";

const BEHIND_S = 4; // of audio that waits, from which on we say so
const SILENT_S = 3; // without a single sample but 0: the microphone is muted
const DONE_MS = 30_000; // that the last words may take
const BARS_DB = 60; // range of the level meter

const part = Object.fromEntries([...document.querySelectorAll("[id]")].map((element) => [element.id, element]));
let context = null;
let microphone = null;
let stream = null;
let latencies = [];
let silent = 0; // seconds without a sound
let behind = 0; // seconds that the server is
let leaving = null; // timer
let undo = null; // brings back what was cleared
let lock = null;

async function explain(error) {
  if (error instanceof Refusal || error instanceof MicrophoneError) return error.message;
  if (!(error instanceof StreamError)) return `Something went wrong in this page: ${error.message}.`;
  switch (error.code) {
    case "unopened":
      return reason();
    case "unknown_session":
    case "lost_events":
      return "The server does not have this stream any more. The last words may be missing. Press Start to go on.";
    case "lost":
      return "The connection was broken for too long. The last words may be missing. Press Start to go on.";
    case "slow":
      return "The connection is too slow for the audio. The last words may be missing. Press Start to try again.";
    default:
      return `The server ended the stream: ${error.message}.`;
  }
}

// From start to stop.

async function start() {
  tell("");
  show("starting", "Connecting");
  context = new AudioContext(); // within the click, as some browsers want it
  try {
    const token = part.token.value.trim();
    named(await admit(token));
    const early = []; // audio from before there is a stream
    const rate = context.sampleRate;
    const take = (audio, peak) => {
      level(audio.byteLength / 2 / rate, peak);
      if (stream) stream.push(audio);
      else early.push(audio);
    };
    const lost = () => stop("The microphone is gone. What was said until then is kept.");
    microphone = await Microphone.open(context, take, lost);
    stream = new Stream({ url: address("v1/stream", true), token, config: config(rate), hear, broken, over });
    early.forEach((audio) => stream.push(audio));
    transcript.divide();
    forgive();
    wake();
  } catch (error) {
    await rest();
    tell(await explain(error));
    if (error.token) ask(true);
  }
}

/** The server let us in: it has this model. */
function named(model) {
  part.model.textContent = model;
  part.entry.hidden = true;
  part.token.removeAttribute("aria-invalid");
}

/** Shows the field for a token. */
function ask(wrong) {
  part.entry.hidden = false;
  if (wrong && part.token.value) part.token.setAttribute("aria-invalid", "true");
  part.token.focus();
}

function config(rate) {
  const latency = part.latency.value;
  const hotwords = phrases();
  return {
    type: "config",
    rate: Math.round(rate),
    encoding: "s16le",
    words: false,
    ...(latency ? { latency_ms: Number(latency) } : {}),
    ...(hotwords ? { hotwords } : {}),
  };
}

function phrases() {
  const found = part.hotwords.value.split(",").map((phrase) => phrase.trim()).filter(Boolean);
  return found.length ? found : null;
}

async function stop(problem = "") {
  if (!stream || stopping()) return;
  show("stopping", "Finishing");
  tell(problem);
  await microphone.close();
  if (!stream) return; // it ended meanwhile
  stream.say({ type: "close" });
  patience();
}

/** Waits for the last words, as long as audio is on its way or the stream speaks. */
function patience() {
  clearTimeout(leaving);
  leaving = setTimeout(() => {
    if (!stream.open || stream.waitingS > 0) patience();
    else stream.end(new StreamError("lost", "the last words did not come"));
  }, DONE_MS);
}

function hear(event) {
  if (leaving) patience();
  switch (event.type) {
    case "ready":
      offer(event);
      if (stopping()) say("Finishing");
      else show("running", "Listening");
      break;
    case "partial":
      behind = stream.seconds - event.end_s;
      transcript.partial(event);
      break;
    case "final":
      behind = 0;
      transcript.final(event);
      keep();
      break;
    case "error":
      tell(`The server says: ${event.message}.`);
      break;
    case "done":
      if (!stopping()) {
        tell("The server ended the stream, as it is about to stop. Everything said until then is here.");
      }
  }
}

function broken(left) {
  const kept = stopping() ? "" : " Go on speaking: what you say is kept.";
  say(`The connection broke. Trying again for ${Math.ceil(left)} s.${kept}`);
}

async function over(error) {
  const words = error && (await explain(error));
  await rest();
  if (words) tell(words);
}

/** Lets everything go. */
async function rest() {
  clearTimeout(leaving);
  const left = { microphone, context };
  leaving = microphone = stream = context = null;
  await left.microphone?.close();
  if (left.context.state !== "closed") await left.context.close();
  lock?.release();
  lock = null;
  silent = behind = 0;
  meter(0);
  transcript.settle();
  show("idle", "");
}

// What is to be seen.

function show(state, words) {
  part.toggle.dataset.state = state;
  part.toggle.setAttribute("aria-disabled", String(state === "starting" || state === "stopping")); // it keeps the focus
  part.word.textContent = state === "running" || state === "stopping" ? "Stop" : "Start";
  part.token.disabled = state !== "idle";
  say(words);
  keep();
}

function stopping() {
  return part.toggle.dataset.state === "stopping";
}

/** What is going on. */
function say(words) {
  if (part.state.textContent !== words) part.state.textContent = words;
}

/** What went wrong. */
function tell(words) {
  part.problem.textContent = words;
}

/** Takes note of a chunk of the microphone's. */
function level(seconds, peak) {
  silent = peak === 0 ? silent + seconds : 0;
  meter(peak);
  if (!stream?.open || part.toggle.dataset.state !== "running") return;
  part.clock.textContent = clock(stream.seconds);
  const waiting = Math.round(stream.waitingS);
  if (waiting > BEHIND_S) say(`The connection is slow: ${waiting} s of audio wait to be sent.`);
  else if (behind > BEHIND_S) say(`The server is ${Math.round(behind)} s behind.`);
  else if (silent > SILENT_S) say("No sound comes from the microphone. Is it muted?");
  else say("Listening");
}

function meter(peak) {
  const share = peak > 0 ? Math.max(0, 1 + (20 * Math.log10(peak)) / BARS_DB) : 0;
  part.level.firstElementChild.style.transform = `scaleX(${share.toFixed(3)})`;
  part.level.setAttribute("aria-valuenow", String(Math.round(100 * share)));
  part.level.classList.toggle("clipped", peak > 0.99);
}

/** The latencies that the server has. */
function offer({ latencies_ms, latency_ms }) {
  const sorted = [...latencies_ms].sort((a, b) => a - b);
  if (sorted.join() === latencies.join()) return;
  latencies = sorted;
  const note = (index) => (index === 0 ? ", fastest" : index === sorted.length - 1 ? ", most accurate" : "");
  part.latency.replaceChildren(
    ...sorted.map((ms, index) => new Option(`${ms} ms${sorted.length > 1 ? note(index) : ""}`, String(ms))),
  );
  part.latency.value = String(latency_ms);
}

// What becomes of the transcript.

function keep() {
  const text = transcript.text;
  const idle = part.toggle.dataset.state === "idle";
  part.copy.disabled = part.save.disabled = !text;
  part.clear.disabled = !idle || (!text && !undo);
}

/** There is nothing to bring back any more. */
function forgive() {
  undo = null;
  part.clear.textContent = "Clear";
}

async function copy() {
  try {
    await navigator.clipboard.writeText(transcript.text);
    part.copy.textContent = "Copied";
  } catch {
    part.copy.textContent = "Not allowed";
  }
  setTimeout(() => (part.copy.textContent = "Copy"), 1500);
}

function save() {
  const now = new Date();
  const stamp = new Date(now - now.getTimezoneOffset() * 60_000).toISOString().slice(0, 16).replace(/[T:]/g, "-");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([transcript.text, "\n"], { type: "text/plain" }));
  link.download = `transcript-${stamp}.txt`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function clear() {
  if (undo) {
    undo();
    forgive();
  } else {
    undo = transcript.clear();
    part.clear.textContent = "Undo";
    part.clock.textContent = clock(0);
  }
  keep();
}

/** Phones switch off, and the microphone with them, unless they are asked not to. */
async function wake() {
  if (part.toggle.dataset.state === "idle" || document.visibilityState !== "visible") return;
  lock = await navigator.wakeLock?.request("screen").catch(() => null);
}

part.toggle.addEventListener("click", () => {
  if (part.toggle.dataset.state === "running") stop();
  if (part.toggle.dataset.state === "idle") start();
});
part.token.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && part.toggle.dataset.state === "idle") start();
});
part.latency.addEventListener("change", () => {
  if (part.latency.value) stream?.say({ type: "set_latency", latency_ms: Number(part.latency.value) });
});
part.hotwords.addEventListener("change", () => stream?.say({ type: "hotwords", phrases: phrases() }));
part.copy.addEventListener("click", copy);
part.save.addEventListener("click", save);
part.clear.addEventListener("click", clear);
document.addEventListener("visibilitychange", wake);

show("idle", "");
if (obstacle()) {
  part.toggle.disabled = true;
  part.hint.hidden = true;
  tell(obstacle());
} else {
  admit("").then(named, (error) => {
    if (!error.token) return tell(error.message);
    part.hint.textContent = "This server asks for a token. Enter it, press Start and speak.";
    ask(false);
  });
}
