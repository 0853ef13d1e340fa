"use strict";

const element = (id) => document.getElementById(id);
const WAITING_BYTES = 2_000_000; // not sent yet, some 20 s; more means that the server falls behind
let session = null; // what is open while the microphone is on

function say(text, problem = false) {
  element("status").textContent = text;
  element("status").classList.toggle("problem", problem);
}

function showPartial(stable, rest) {
  element("stable").textContent = stable;
  element("rest").textContent = rest;
}

function clock(seconds) {
  const whole = Math.floor(seconds);
  const minutes = String(Math.floor(whole / 60) % 60);
  const rest = String(whole % 60).padStart(2, "0");
  return whole < 3600 ? `${minutes}:${rest}` : `${Math.floor(whole / 3600)}:${minutes.padStart(2, "0")}:${rest}`;
}

function addLine({start, text}) {
  const atEnd = innerHeight + scrollY >= document.body.scrollHeight - 80;
  const item = document.createElement("li");
  const time = document.createElement("time");
  time.textContent = clock(start);
  const words = document.createElement("span");
  words.textContent = text;
  item.append(time, words);
  element("lines").append(item);
  showPartial("", "");
  element("copy").disabled = element("clear").disabled = false;
  if (atEnd) scrollTo(0, document.body.scrollHeight);
}

function closeMicrophone({stream, context}) {
  stream?.getTracks().forEach((track) => track.stop());
  if (context && context.state !== "closed") context.close();
}

// Back to the beginning, with the reason if there is one. Each session ends once.
function end(ended, text, problem = false) {
  if (session !== ended) return;
  session = null;
  closeMicrophone(ended);
  ended.socket?.close();
  element("record").textContent = "Start";
  element("record").setAttribute("aria-pressed", "false");
  element("record").disabled = false;
  showPartial("", "");
  say(text, problem);
}

function receive(current, message) {
  if (session !== current) return;
  if (message.type === "partial") showPartial(message.stable, message.rest);
  else if (message.type === "line") addLine(message);
  else if (message.type === "error") end(current, `The server says: ${message.message}.`, true);
  else if (message.type === "end") end(current, "The microphone is off.");
  else if (message.type === "ready" && !current.stopping) {
    say("Listening.");
    current.source.connect(current.node);
  }
}

async function start() {
  const current = {};
  session = current;
  element("record").textContent = "Stop";
  element("record").setAttribute("aria-pressed", "true");
  say("Opening the microphone.");
  if (!navigator.mediaDevices) {
    end(current, "A browser gives its microphone only to pages at localhost or over HTTPS.", true);
    return;
  }
  try {
    const audio = {channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false};
    current.stream = await navigator.mediaDevices.getUserMedia({audio});
    current.context = new AudioContext();
    await current.context.audioWorklet.addModule("microphone.js");
    await current.context.resume();
  } catch (error) {
    end(current, `The microphone cannot be used: ${error.message}.`, true);
    closeMicrophone(current);
    return;
  }
  if (session !== current) { // stopped while the browser asked
    closeMicrophone(current);
    return;
  }
  current.source = current.context.createMediaStreamSource(current.stream);
  current.node = new AudioWorkletNode(current.context, "microphone", {numberOfOutputs: 0});
  current.stream.getTracks()[0].onended = () => stop(current, "The microphone is gone.");
  const url = new URL(`listen?rate=${current.context.sampleRate}`, location.href);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  current.socket = new WebSocket(url);
  current.node.port.onmessage = ({data}) => {
    if (current.stopping || current.socket.readyState !== WebSocket.OPEN) return;
    current.socket.send(data);
    if (current.socket.bufferedAmount > WAITING_BYTES) end(current, "The server or the network is too slow.", true);
  };
  current.socket.onmessage = ({data}) => receive(current, JSON.parse(data));
  current.socket.onclose = () => end(current, "The server has closed the connection.", true);
}

function stop(current, text = "Waiting for the last words.") {
  if (session !== current || current.stopping) return;
  if (current.socket?.readyState !== WebSocket.OPEN) {
    end(current, "The microphone is off.");
    return;
  }
  current.stopping = true;
  element("record").disabled = true;
  closeMicrophone(current);
  current.socket.send("end");
  say(text);
}

function setTheme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  element("theme").textContent = dark ? "Light" : "Dark";
}

element("record").onclick = () => (session ? stop(session) : start());
element("clear").onclick = () => {
  element("lines").replaceChildren();
  element("copy").disabled = element("clear").disabled = true;
  element("record").focus();
};
element("copy").onclick = async () => {
  const text = [...document.querySelectorAll("#lines li span")].map((line) => line.textContent).join("\n");
  try {
    await navigator.clipboard.writeText(text);
    say("Copied.");
  } catch {
    say("The browser does not let this page copy; select the text instead.", true);
  }
};
element("theme").onclick = () => {
  const dark = document.documentElement.dataset.theme !== "dark";
  localStorage.setItem("theme", dark ? "dark" : "light");
  setTheme(dark);
};
setTheme((localStorage.getItem("theme") ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark");
