// What the Node.js peers share: the three fields, and the figures of a run.

export function read(type, { total, currency }) {
  if (type === undefined || total === undefined || currency === undefined) {
    throw new Error("a field is missing");
  }
}

/** Measures from the first event to the last one. */
export class Run {
  handled = 0;

  /** Called when events have come in; only the first call counts. */
  begin() {
    this.start ??= { at: process.hrtime.bigint(), cpu: process.cpuUsage() };
  }

  /** Called when the position of the last event has been committed. */
  print() {
    const seconds = Number(process.hrtime.bigint() - this.start.at) / 1e9;
    const { user, system } = process.cpuUsage(this.start.cpu);
    console.log(JSON.stringify({
      events: this.handled,
      seconds,
      cpu_us: (user + system) / this.handled,
      peak_mib: process.resourceUsage().maxRSS / 1024,
    }));
  }
}
