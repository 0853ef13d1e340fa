// Sends the samples of a microphone to the page, a tenth of a second at a time, as 16 bits.
class Microphone extends AudioWorkletProcessor {
  constructor() {
    super();
    this.begin();
  }

  begin() {
    this.samples = new Int16Array(Math.round(sampleRate / 10));
    this.filled = 0;
  }

  process([channels]) {
    if (!channels.length) return true;
    for (let index = 0; index < channels[0].length; index += 1) {
      const sample = channels.reduce((sum, channel) => sum + channel[index], 0) / channels.length;
      this.samples[this.filled] = Math.max(-32768, Math.min(32767, Math.round(32768 * sample)));
      this.filled += 1;
      if (this.filled === this.samples.length) {
        this.port.postMessage(this.samples.buffer, [this.samples.buffer]);
        this.begin();
      }
    }
    return true;
  }
}

registerProcessor("microphone", Microphone);
