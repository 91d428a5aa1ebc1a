// Collects what the microphone gives, 128 samples at a time, into chunks of s16le; runs in the audio thread.

class Recorder extends AudioWorkletProcessor {
  constructor({ processorOptions }) {
    super();
    this.size = processorOptions.size; // samples in a chunk
    this.chunk = new Int16Array(this.size); // little-endian on all machines that have browsers
    this.filled = 0;
    this.peak = 0; // of the chunk, from 0 to 1
    this.over = false;
    this.port.onmessage = () => {
      this.over = true;
      this.flush();
      this.port.postMessage({ last: true });
    };
  }

  process([input]) {
    const samples = this.over ? [] : (input[0] ?? []); // mono, mixed by the node
    for (const sample of samples) {
      this.peak = Math.max(this.peak, Math.abs(sample));
      this.chunk[this.filled++] = Math.max(-32768, Math.min(32767, Math.round(sample * 32768)));
      if (this.filled === this.size) this.flush();
    }
    return !this.over;
  }

  flush() {
    if (this.filled === 0) return;
    const audio = this.chunk.slice(0, this.filled).buffer;
    this.port.postMessage({ audio, peak: this.peak }, [audio]);
    this.filled = this.peak = 0;
  }
}

registerProcessor("recorder", Recorder);
