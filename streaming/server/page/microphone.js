// The microphone as chunks of s16le, mono, at the rate of the audio context.

const CHUNK_S = 0.06;
const CLOSE_MS = 500; // that the audio thread may take to hand over its last chunk

const REASONS = {
  NotAllowedError:
    "The microphone is not allowed. Allow it for this page in the browser's settings, then press Start.",
  NotFoundError: "There is no microphone. Connect one, then press Start.",
  OverconstrainedError: "There is no microphone that fits. Connect another one, then press Start.",
  NotReadableError: "The microphone cannot be used. Another program may have it.",
  AbortError: "The microphone cannot be used. Another program may have it.",
};

export class MicrophoneError extends Error {}

/** Why this page cannot have a microphone at all; null where it can. */
export function obstacle() {
  if (!window.isSecureContext) {
    const port = location.port ? `:${location.port}` : "";
    return (
      "Browsers give the microphone only to pages that come over https or from the same computer. " +
      `Open this page with https, or as http://localhost${port} on the computer where the server runs.`
    );
  }
  if (!navigator.mediaDevices?.getUserMedia || !window.AudioWorkletNode) {
    return "This browser has no way to the microphone. Use a current one.";
  }
  return null;
}

export class Microphone {
  /** Asks for the microphone; hear(audio, peak) gets chunks, lost() is called when it goes away. */
  static async open(context, hear, lost) {
    let media;
    try {
      const wanted = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: true };
      media = await navigator.mediaDevices.getUserMedia({ audio: wanted });
    } catch (error) {
      throw new MicrophoneError(REASONS[error.name] ?? `The microphone cannot be used: ${error.message}.`);
    }
    try {
      await context.audioWorklet.addModule(new URL("worklet.js", import.meta.url));
      await context.resume();
      return new Microphone(context, media, hear, lost);
    } catch (error) {
      media.getTracks().forEach((track) => track.stop());
      throw error;
    }
  }

  constructor(context, media, hear, lost) {
    this.context = context;
    this.tracks = media.getTracks();
    this.node = new AudioWorkletNode(context, "recorder", {
      channelCount: 1,
      channelCountMode: "explicit",
      processorOptions: { size: Math.round(CHUNK_S * context.sampleRate) },
    });
    this.last = new Promise((resolve) => {
      this.node.port.onmessage = ({ data }) => (data.last ? resolve() : hear(data.audio, data.peak));
    });
    context.createMediaStreamSource(media).connect(this.node);
    this.node.connect(context.destination); // silent; some browsers run only what leads there
    this.tracks.forEach((track) => track.addEventListener("ended", lost));
    context.addEventListener("statechange", () => {
      if (context.state === "interrupted") context.resume().catch(lost); // a call came, on a phone
    });
  }

  /** Hands over what is left, and lets the microphone go. */
  async close() {
    this.node.port.postMessage("close");
    await Promise.race([this.last, new Promise((resolve) => setTimeout(resolve, CLOSE_MS))]);
    this.tracks.forEach((track) => track.stop());
    this.node.disconnect();
  }
}
