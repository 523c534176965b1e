// The service as a child process of a Node program, on Node's own modules. Try it from the repository: node examples/node/voice.mjs --embedded
//
// A service that crashes is started again, after 1 s, 2 s, ... 30 s, and a mute is said again; after the exit codes 2 (settings) and
// 3 (model) it is not. What a crash cut off is an event of type "abandoned".
// @ts-check
import { spawn } from "node:child_process";
import { EventEmitter } from "node:events";
import { existsSync } from "node:fs";
import path from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

/** @typedef {import("./events.d.ts").AnyEvent} AnyEvent */

const REPOSITORY = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../..");
const PYTHON = path.join(REPOSITORY, ".venv", process.platform === "win32" ? "Scripts/python.exe" : "bin/python");
const NEVER_AGAIN = [2, 3];

/** Emits "event" (AnyEvent) for each line, its type ("voice.asr_text.final", ...) with the same, "abandoned", "log" and "end" (exit code). */
export class VoiceService extends EventEmitter {
  #muted = false;
  #stopping = false;
  #pauseSec = 1;
  /** @type {Map<string, string>} text shown last of utterances that have no final yet */
  #open = new Map();
  /** @type {import("node:child_process").ChildProcess | undefined} */
  #child;

  /** @param {string[]} flags of the service @param {string[]} [command] what starts it */
  constructor(flags, command) {
    super();
    const python = existsSync(PYTHON) ? PYTHON : "python3";
    const [program, ...rest] = command ?? [python, path.join(REPOSITORY, "asr_service_streaming.py")];
    this.program = program;
    this.arguments = [...rest, "--control", "stdin", "--status-events", ...flags];
  }

  start() {
    const startedAt = Date.now();
    const child = spawn(this.program, this.arguments, { stdio: ["pipe", "pipe", "pipe"], windowsHide: true });
    this.#child = child;
    child.stdin.on("error", () => {}); // it ended before it read a command
    child.on("error", (error) => this.emit("log", String(error)));
    createInterface({ input: child.stderr }).on("line", (line) => this.emit("log", line));
    createInterface({ input: child.stdout }).on("line", (line) => this.#take(JSON.parse(line)));
    if (this.#muted) this.#send("mute");
    child.on("close", (code) => {
      for (const [trace_id, text] of this.#open) this.emit("abandoned", { trace_id, text });
      this.#open.clear();
      if (this.#stopping || code === 0 || NEVER_AGAIN.includes(code ?? -1)) return this.emit("end", code);
      if (Date.now() - startedAt > 60_000) this.#pauseSec = 1;
      setTimeout(() => (this.#stopping ? this.emit("end", code) : this.start()), 1000 * this.#pauseSec);
      this.#pauseSec = Math.min(2 * this.#pauseSec, 30);
    });
    return this;
  }

  mute() { this.#muted = true; this.#send("mute"); }
  unmute() { this.#muted = false; this.#send("unmute"); }
  endpoint() { this.#send("endpoint"); }
  /** The utterance in flight gets its final, then comes "end". */
  stop() { this.#stopping = true; this.#send("stop"); }

  /** @param {string} command */
  #send(command) { this.#child?.stdin?.write(JSON.stringify({ command }) + "\n"); }

  /** @param {AnyEvent} event */
  #take(event) {
    if (event.type === "voice.asr_text.partial") this.#open.set(event.trace_id, event.text);
    if (event.type === "voice.asr_text.final") this.#open.delete(event.trace_id);
    this.emit("event", event);
    this.emit(event.type, event);
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const service = new VoiceService(process.argv.slice(2));
  service.on("voice.asr_text.final", (final) => console.log(final.start_ms, final.text));
  service.on("core.error_event", (error) => console.error(error.message));
  service.on("end", (code) => { process.exitCode = code ?? 1; });
  process.on("SIGINT", () => service.stop());
  service.start();
}
