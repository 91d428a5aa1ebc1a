// The server besides its streams: where it is, whether it lets us in, and why it did not.

const TOKEN = /^[\w!#$%&'*+.^`|~-]*$/; // what browsers can send as a subprotocol

/** What keeps a stream from beginning; `token` where another token would help. */
export class Refusal extends Error {
  constructor(message, token = false) {
    super(message);
    this.token = token;
  }
}

/** The address of a path; the page may lie under a prefix. */
export function address(path, socket = false) {
  const url = new URL(path, document.baseURI);
  url.hash = url.search = "";
  if (socket) url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  return url;
}

/** The name of the model, where the token is good; a websocket that is refused does not say why. */
export async function admit(token) {
  if (!TOKEN.test(token)) {
    throw new Refusal("Browsers cannot send this token: it may have letters, digits and !#$%&'*+-.^_`|~ only.", true);
  }
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch(address("v1/models"), { headers, cache: "no-store" }).catch(() => null);
  if (answer === null) throw new Refusal("The server cannot be reached. Is it running?");
  if (answer.status === 401) {
    throw new Refusal(token ? "The server does not know this token." : "This server asks for a token.", true);
  }
  if (!answer.ok) throw new Refusal(`The server answers ${answer.status} where a model was asked for.`);
  return (await answer.json()).data[0].id;
}

/** Why a websocket was not accepted. */
export async function reason() {
  const answer = await fetch(address("ready"), { cache: "no-store" }).catch(() => null);
  const found = await answer?.json().catch(() => null);
  if (!found) return "The server cannot be reached. Is it running?";
  if (found.ready === false) return "The server is about to stop, or has no model now. Try again in a moment.";
  if (found.streams >= found.limit) return "The server is full. Try again later.";
  return "The server did not accept the stream. A proxy on the way may not let websockets pass.";
}
