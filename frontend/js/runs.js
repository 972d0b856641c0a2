/** Sends requests, follows their jobs until they end, cancels them. */

/** @import { Job } from "../types/api" */
/** @import { Run, RunPart, ServiceName } from "../types/state" */
/** @import { Order } from "./graph/request.js" */
/** @import { Connection } from "./connection.js" */
/** @import { StreamEvent } from "./event_stream.js" */
/** @import { Connections } from "./services.js" */
/** @import { Store } from "./store.js" */

import { Problem, Unreachable } from "./api.js";
import { dataUrl, isAsset, readAsset } from "./assets.js";
import { isReachable } from "./connection.js";
import { wiresInto } from "./graph/graph.js";
import { orderOf } from "./graph/request.js";
import { planOf, samplersBefore, samplersOf } from "./graph/plan.js";
import { newKey } from "./random.js";
import { connectionTo } from "./services.js";

/** Places in line move when another job begins; asked for at most this often. */
const POSITIONS_MS = 400;
const FIRST_IN_LINE = 4;
/** What the events did not tell, and what the service did not take, is asked and sent again. */
const AGAIN_MS = 3000;

export class Runs {
  #connections;
  #store;
  #onPicture;
  /** Runs that are being sent now. @type {Set<string>} */
  #sending = new Set();
  /** @type {Map<ServiceName, ReturnType<typeof setTimeout>>} */
  #positionTimers = new Map();

  /** @param {Connections} connections @param {Store} store @param {(service: ServiceName) => void} onPicture */
  constructor(connections, store, onPicture) {
    this.#connections = connections;
    this.#store = store;
    this.#onPicture = onPicture;
  }

  /** Runs every sampler, or these, and the ones they start from. False when something is missing; then it is said where. @param {readonly string[]} [wanted] */
  start(wanted) {
    const graph = this.#store.state.document.graph;
    const ids = wanted ?? samplersOf(graph).map(({ id }) => id);
    /** @type {Set<string>} */
    const needed = new Set();
    /** @param {string} id */
    const need = (id) => {
      samplersBefore(graph, id).filter((before) => !needed.has(before)).forEach(need);
      needed.add(id);
    };
    ids.forEach(need);
    const orders = [...needed].flatMap((id) => orderOf(graph, id) ?? []);
    const faults = orders.flatMap((order) => [...order.faults, ...this.#missingService(order)]);
    if (faults.length || !orders.length) {
      this.#store.set({ faults: byNode(faults) });
      this.#store.say(faults[0]?.message ?? "There is no Sampler node that could draw. Add one, or open an example.");
      return false;
    }
    /** @type {Map<string, string>} */
    const keys = new Map(orders.map(({ sampler }) => [sampler, newKey()]));
    const runs = orders.map((order) => newRun(order, keys));
    const going = this.#store.state.runs.filter(({ phase, sampler }) => isOpen(phase) || !needed.has(sampler));
    this.#store.set({ runs: [...going, ...runs], faults: {} });
    this.#sendAll();
    return true;
  }

  /** @param {string} key */
  async cancel(key) {
    const run = this.#find(key);
    if (run?.id) {
      const { id } = run;
      this.#patch(key, { isCancelling: true });
      try {
        await connectionTo(this.#connections, run.service).ask((client) => client.cancel(id));
        await this.#look(run, id);
      } catch (error) {
        this.#patch(key, { isCancelling: false });
        this.#store.say(`Not cancelled: ${messageOf(error)}.`);
      }
    } else if (run && this.#sending.has(key)) {
      this.#patch(key, { isCancelling: true }); // on its way: cancelled once it has an id
    } else if (run) {
      this.#patch(key, { phase: "cancelled" });
    }
  }

  cancelAll() {
    for (const { key } of this.#open()) {
      void this.cancel(key);
    }
  }

  /** The same request once more. @param {string} key */
  retry(key) {
    const run = this.#find(key);
    if (run) {
      this.dismiss(key);
      this.#store.set({ runs: [...this.#store.state.runs, { ...run, ...FRESH, key: newKey(), parts: run.parts.map((part) => ({ ...part })) }] });
      this.#sendAll();
    }
  }

  /** @param {string} key */
  dismiss(key) {
    this.#store.set({ runs: this.#store.state.runs.filter((run) => run.key !== key) });
  }

  /** Follows the open runs for as long as the page lives. */
  follow() {
    setInterval(() => void this.#again(), AGAIN_MS);
    for (const connection of Object.values(this.#connections)) {
      connection.listen((event) => this.#onEvent(connection, event));
      this.#store.watch(
        ({ services }) => [isReachable(services[connection.name])],
        (isUp) => {
          if (isUp) {
            this.#sendAll();
            void this.#lookAtAll(connection.name);
            void this.#showAgain(connection);
          }
        },
      );
    }
  }

  /** @param {Connection} connection @param {StreamEvent} event */
  #onEvent({ name: service }, { name, data }) {
    if (name === "reset") {
      void this.#lookAtAll(service);
      return;
    }
    if (name === "started" || name === "cancelled" || name === "queue") {
      this.#askPositions(service);
    }
    const id = data?.job_id ?? data?.id;
    const run = this.#open().find((open) => open.service === service && open.id === id);
    if (!run) {
      if (name === "succeeded") {
        this.#onPicture(service); // somebody else's
      }
      return;
    }
    if (name === "queued") {
      this.#patch(run.key, { phase: "queued", position: data.position, progress: null });
    } else if (name === "loading") {
      this.#patch(run.key, { phase: "running", loading: { what: data.what ?? "", fraction: data.fraction ?? null } });
    } else if (name === "started") {
      this.#patch(run.key, { phase: "running", position: null, loading: null });
    } else if (name === "progress") {
      const preview = data.preview ? { preview: data.preview } : {};
      this.#patch(run.key, { phase: "running", position: null, loading: null, progress: data, ...preview });
    } else if (name === "succeeded" || name === "failed" || name === "cancelled") {
      this.#update(run.key, data);
    }
  }

  #open() {
    return this.#store.state.runs.filter(({ phase }) => isOpen(phase));
  }

  #sendAll() {
    for (const run of this.#open()) {
      if (run.id === null && !this.#sending.has(run.key) && isReachable(this.#store.state.services[run.service])) {
        void this.#send(run);
      }
    }
  }

  /** @param {Run} run */
  async #send(run) {
    const waitsFor = run.parts.some(({ run: other }) => other !== null && this.#open().some(({ key }) => key === other));
    if (waitsFor) {
      return;
    }
    this.#sending.add(run.key);
    try {
      const body = await this.#withParts(run);
      const { id, position } = await connectionTo(this.#connections, run.service).ask((client) => client.submit(body, run.key));
      this.#patch(run.key, { id, position, phase: "queued" });
      await this.#look(run, id); // it may have begun before its id was known here
      if (this.#find(run.key)?.isCancelling) {
        await this.cancel(run.key);
      }
    } catch (error) {
      if (!isPassing(error)) {
        this.#refuse(run, error); // else it stays in line and is sent again under the same key
      }
    } finally {
      this.#sending.delete(run.key);
    }
  }

  /** The body with its pictures. @param {Run} run */
  async #withParts(run) {
    const body = { ...run.body };
    const references = [];
    for (const part of run.parts) {
      const picture = await this.#pictureOf(run, part);
      if (part.field === "reference_images") {
        references.push(picture);
      } else {
        body[part.field] = picture;
      }
    }
    return references.length ? { ...body, reference_images: references } : body;
  }

  /** @param {Run} run @param {RunPart} part @returns {Promise<string>} */
  async #pictureOf(run, { source, run: other }) {
    if (other !== null) {
      const [from] = Object.entries(this.#store.state.shown).flatMap(([sampler, shown]) => (sampler === source ? [shown] : []));
      const image = from?.job.result?.images[0];
      if (!from || !image) {
        throw new Error("The picture it starts from was not drawn.");
      }
      if (from.service === run.service) {
        return image.id;
      }
      return dataUrl(await connectionTo(this.#connections, from.service).ask((client) => client.blob(image.image_url)));
    }
    if (!isAsset(source)) {
      return source;
    }
    const blob = await readAsset(source);
    if (!blob) {
      throw new Error("A picture that was dropped here is not in this browser any more. Drop it again.");
    }
    return dataUrl(blob);
  }

  async #again() {
    this.#sendAll();
    const sent = this.#open().filter(({ id, service }) => id !== null && isReachable(this.#store.state.services[service]));
    for (const run of sent.slice(0, FIRST_IN_LINE)) {
      await this.#look(run, run.id ?? "");
    }
  }

  /** @param {ServiceName} service */
  async #lookAtAll(service) {
    for (const run of this.#open()) {
      if (run.service === service && run.id !== null) {
        await this.#look(run, run.id);
      }
    }
  }

  /** @param {Run} run @param {string} id */
  async #look(run, id) {
    try {
      this.#update(run.key, await connectionTo(this.#connections, run.service).ask((client) => client.job(id)));
    } catch (error) {
      if (error instanceof Problem && error.status === 404) {
        this.#fail(run.key, "The service does not know this run any more.");
      }
    }
  }

  /** @param {ServiceName} service */
  #askPositions(service) {
    if (this.#positionTimers.has(service)) {
      return;
    }
    const ask = async () => {
      this.#positionTimers.delete(service);
      const waiting = this.#open().filter((run) => run.service === service && run.phase === "queued" && run.id !== null);
      for (const run of waiting.slice(0, FIRST_IN_LINE)) {
        await this.#look(run, run.id ?? "");
      }
    };
    this.#positionTimers.set(service, setTimeout(() => void ask(), POSITIONS_MS));
  }

  /** @param {string} key @param {Job} job */
  #update(key, job) {
    const run = this.#find(key);
    if (!run || !isOpen(run.phase)) {
      return;
    }
    if (job.status === "queued" || job.status === "running") {
      this.#patch(key, { phase: job.status, position: job.position, progress: job.progress ?? run.progress });
    } else if (job.status === "failed") {
      this.#fail(key, job.error?.message ?? "The service gave no reason.");
    } else if (job.status === "cancelled") {
      this.#patch(key, { phase: "cancelled", preview: "" });
      this.#store.say("Cancelled.");
      this.#failThoseAfter(key, "The picture it starts from was cancelled.");
    } else {
      const shown = { ...this.#store.state.shown, [run.sampler]: { service: run.service, job, index: 0 } };
      this.#store.set({ shown, announcement: "The picture is finished." });
      this.dismiss(key);
      this.#notify(job);
      this.#onPicture(run.service);
      this.#sendAll();
    }
  }

  /** A browser's notification, where it was allowed and nobody looks. @param {Job} job */
  #notify(job) {
    if (document.hidden && "Notification" in window && Notification.permission === "granted") {
      new Notification("The picture is finished", { body: job.request.prompt, tag: job.id });
    }
  }

  /** Puts the jobs of before a reload back on their nodes. @param {Connection} connection */
  async #showAgain(connection) {
    for (const [sampler, { service, id }] of Object.entries(this.#store.state.toShow)) {
      if (service !== connection.name) {
        continue;
      }
      try {
        const job = await connection.ask((client) => client.job(id));
        if (job.result && !this.#store.state.shown[sampler]) {
          this.#store.set({ shown: { ...this.#store.state.shown, [sampler]: { service, job, index: 0 } } });
        }
      } catch (error) {
        if (isPassing(error)) {
          return;
        }
      }
      const { [sampler]: _, ...rest } = this.#store.state.toShow;
      this.#store.set({ toShow: rest });
    }
  }

  /** The service's words, each at the node that its field comes from. @param {Run} run @param {unknown} error */
  #refuse(run, error) {
    const fields = error instanceof Problem ? error.fields : [];
    const faults = fields.map(({ field, message }) => ({ ...this.#placeOf(run.sampler, field), message }));
    this.#fail(run.key, messageOf(error));
    this.#store.set({ faults: { ...this.#store.state.faults, ...byNode(faults) } });
    this.#store.say(messageOf(error));
  }

  /** @param {string} sampler @param {string} field of a request: `width`, `loras.1.name` … */
  #placeOf(sampler, field) {
    const plan = planOf(this.#store.state.document.graph, sampler);
    const [, name = field, place] = /^([a-z_]+)(?:[.[](\d+))?/.exec(field) ?? [];
    const lora = plan?.loras.filter(({ values }) => values.name !== null)[Number(place ?? 0)];
    const nodes = {
      prompt: plan?.prompt,
      negative_prompt: plan?.negative,
      true_cfg_scale: plan?.negative,
      model: plan?.model,
      backend: plan?.model,
      loras: lora ?? plan?.model,
      image: plan?.image,
      strength: plan?.image,
      mask: plan?.mask,
      reference_images: plan?.references,
    };
    const node = Object.entries(nodes).find(([known]) => known === name)?.[1];
    return { node: node?.id ?? sampler, field: name };
  }

  /** @param {Order} order */
  #missingService({ sampler, service }) {
    const model = wiresInto(this.#store.state.document.graph, sampler, "model")[0]?.from.node;
    return model && !Object.hasOwn(this.#connections, service)
      ? [{ node: model, field: "service", message: `This page knows no ${service.toUpperCase()} service. Choose the other one.` }]
      : [];
  }

  /** @param {string} key @param {string} error */
  #fail(key, error) {
    this.#patch(key, { phase: "failed", error, progress: null, position: null, preview: "" });
    this.#failThoseAfter(key, "The picture it starts from was not drawn.");
  }

  /** @param {string} key @param {string} error */
  #failThoseAfter(key, error) {
    for (const run of this.#open()) {
      if (run.id === null && run.parts.some((part) => part.run === key)) {
        this.#fail(run.key, error);
      }
    }
  }

  /** @param {string} key */
  #find(key) {
    return this.#store.state.runs.find((run) => run.key === key);
  }

  /** @param {string} key @param {Partial<Run>} patch */
  #patch(key, patch) {
    const runs = this.#store.state.runs.map((run) => (run.key === key ? { ...run, ...patch } : run));
    this.#store.set({ runs });
  }
}

/** @type {Omit<Run, "key" | "service" | "sampler" | "body" | "parts">} */
export const FRESH = {
  id: null,
  phase: "unsent",
  position: null,
  progress: null,
  preview: "",
  loading: null,
  error: "",
  isCancelling: false,
};

/** Whether a picture may still come. @param {Run["phase"]} phase */
export function isOpen(phase) {
  return phase === "unsent" || phase === "queued" || phase === "running";
}

/** The run to show for a sampler: what draws, else what is next, else how the last one ended. @param {readonly Run[]} runs @param {string} sampler */
export function runOf(runs, sampler) {
  const mine = runs.filter((run) => run.sampler === sampler);
  return mine.find(({ phase }) => phase === "running") ?? mine.find(({ phase }) => isOpen(phase)) ?? mine.at(-1);
}

/** @param {Order} order @param {Map<string, string>} keys of the runs of all samplers @returns {Run} */
function newRun({ sampler, service, body, parts }, keys) {
  return {
    ...FRESH,
    key: keys.get(sampler) ?? "",
    service: /** @type {ServiceName} */ (service),
    sampler,
    body,
    parts: parts.map(({ field, source, sampler: other }) => ({
      field,
      source: other ?? source,
      run: other === null ? null : (keys.get(other) ?? ""),
    })),
  };
}

/** @param {readonly {node: string, field: string, message: string}[]} faults */
function byNode(faults) {
  /** @type {Record<string, Record<string, string>>} */
  const nodes = {};
  for (const { node, field, message } of faults) {
    nodes[node] = { ...nodes[node], [field]: message };
  }
  return nodes;
}

/** Whether the same request may succeed later. @param {unknown} error */
function isPassing(error) {
  return error instanceof Unreachable || (error instanceof Problem && (error.status === 401 || error.code === "unavailable"));
}

/** @param {unknown} error */
function messageOf(error) {
  return error instanceof Error ? error.message : String(error);
}
