// One stream over /v1/stream: sends audio, gets events, and comes back where its connection breaks.

const UNSENT_S = 2; // of audio that the browser's socket may hold; the rest waits here
const KEPT_S = 60; // of audio that is kept, to be sent again
const CONNECT_MS = 10_000; // that a connection may take to come about
const PUMP_MS = 100;
const AGAIN_MS = [250, 4000]; // the pause before a new attempt: the first, and the longest

/** The end of a stream that did not end well; `code` is a word of the protocol's, or "unopened". */
export class StreamError extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

export class Stream {
  /** hear(event) gets what the server says, broken(seconds) is told of breaks, over(error | null) of the end. */
  constructor({ url, token, config, hear, broken, over }) {
    Object.assign(this, { url, token, config, hear, broken, over });
    this.second = config.rate * 2; // bytes
    this.items = []; // {end, data}: messages, and the bytes of audio with them and before them
    this.next = 0; // of `items` to send
    this.offset = this.sent = this.forgotten = 0; // bytes: handed over, sent, not kept any more
    this.seq = 0;
    this.ready = null;
    this.open = this.ended = false;
    this.since = null; // when the connection broke
    this.left = []; // sockets that are taken for broken
    this.pump = setInterval(() => this.flow(), PUMP_MS);
    this.offline = () => this.lose();
    addEventListener("offline", this.offline);
    this.connect();
  }

  /** Seconds of audio that are not on their way yet. */
  get waitingS() {
    return this.open ? (this.offset - this.sent + this.socket.bufferedAmount) / this.second : 0;
  }

  /** Seconds of audio that were handed over. */
  get seconds() {
    return this.offset / this.second;
  }

  push(audio) {
    this.offset += audio.byteLength;
    this.items.push({ end: this.offset, data: audio });
    while (this.items[0].end < this.offset - KEPT_S * this.second) {
      if (this.open && this.next === 0) {
        this.end(new StreamError("slow", "the connection is too slow for the audio"));
        return;
      }
      this.forgotten = this.items.shift().end;
      this.next = Math.max(0, this.next - 1);
    }
    this.flow();
  }

  say(message) {
    this.items.push({ end: this.offset, data: JSON.stringify(message) });
    this.flow();
  }

  flow() {
    if (this.ended || !this.open) return;
    while (this.next < this.items.length && this.socket.bufferedAmount < UNSENT_S * this.second) {
      const { end, data } = this.items[this.next++];
      if (typeof data === "string") {
        this.socket.send(data);
        continue;
      }
      const known = Math.max(0, this.sent - (end - data.byteLength)); // bytes that the server has already
      this.socket.send(known ? data.slice(known) : data);
      this.sent = end;
    }
  }

  connect() {
    if (this.ended) return;
    const socket = new WebSocket(this.url, this.token ? ["bearer", this.token] : []);
    this.socket = socket;
    const late = setTimeout(() => this.lose(), CONNECT_MS);
    socket.onopen = () => {
      const resume = this.ready ? { resume: this.ready.session, after: this.seq } : {};
      socket.send(JSON.stringify({ ...this.config, ...resume }));
    };
    socket.onmessage = ({ data }) => {
      clearTimeout(late);
      if (this.socket === socket) this.take(JSON.parse(data));
    };
    socket.onclose = () => {
      clearTimeout(late);
      if (this.socket === socket) this.lose();
    };
  }

  take(event) {
    if (event.type === "error" && event.fatal) {
      this.end(new StreamError(event.code, event.message));
      return;
    }
    if (event.type === "ready") {
      this.begin(event);
      return;
    }
    this.seq = Math.max(this.seq, event.seq ?? 0);
    this.hear(event);
    if (event.type === "done") this.end(null);
  }

  begin(ready) {
    if (ready.received < this.forgotten) {
      this.end(new StreamError("lost", "the server lacks audio that is not kept here any more"));
      return;
    }
    const received = ({ end, data }) => end < ready.received || (typeof data !== "string" && end === ready.received);
    while (this.items.length && received(this.items[0])) this.forgotten = this.items.shift().end;
    this.next = 0;
    this.sent = ready.received;
    this.ready = ready;
    this.open = true;
    this.since = null;
    this.leave();
    this.hear(ready);
    this.flow();
  }

  /** The connection is gone, or is taken for gone. */
  lose() {
    if (this.ended || !this.socket) return;
    this.open = false;
    this.left.push(this.socket); // not closed yet: the server would take it for a farewell, and end the stream
    this.socket = null;
    if (!this.ready) {
      this.end(new StreamError("unopened", "the server did not accept the stream"));
      return;
    }
    const now = performance.now();
    if (this.since === null) [this.since, this.pause] = [now, AGAIN_MS[0]];
    const left = this.ready.resume_s - (now - this.since) / 1000;
    if (left < 0) {
      this.end(new StreamError("lost", "the connection broke and could not be made again"));
      return;
    }
    this.broken(left);
    setTimeout(() => this.connect(), this.pause);
    this.pause = Math.min(2 * this.pause, AGAIN_MS[1]);
  }

  leave() {
    for (const socket of this.left.splice(0)) socket.close();
  }

  end(error) {
    if (this.ended) return;
    this.ended = true;
    this.open = false;
    clearInterval(this.pump);
    removeEventListener("offline", this.offline);
    if (this.socket) this.left.push(this.socket);
    this.socket = null;
    this.leave();
    this.over(error);
  }
}
