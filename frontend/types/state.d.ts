/** What the store holds. Every value is replaced, never changed in place. */

import type { GenerateBody, Info, Job, Model, Progress, StoredImage } from "./api";

/** What is typed into the form. Numbers are kept as they were typed; null: the model's default. */
export interface Draft {
  prompt: string;
  negative_prompt: string;
  model: string | null;
  width: string | null;
  height: string | null;
  num_inference_steps: string | null;
  guidance_scale: string | null;
  true_cfg_scale: string | null;
  seed_mode: "random" | "fixed";
  seed: string;
  num_images: string | null;
  output_format: string;
}

export type DraftNumber =
  | "width"
  | "height"
  | "num_inference_steps"
  | "guidance_scale"
  | "true_cfg_scale"
  | "num_images";

/**
 * connecting: no answer yet · ready: it draws · waiting: it answers and cannot draw now ·
 * down: it does not answer · locked: it wants a key
 */
export type ServicePhase = "connecting" | "ready" | "waiting" | "down" | "locked";

export interface ServiceState {
  phase: ServicePhase;
  reason: string;
  info: Info | null;
  models: readonly Model[];
}

/** A request of this tab that has no picture yet. `unsent` runs wait for the service. */
export interface Run {
  /** Idempotency key: a request that is sent twice is one job. */
  key: string;
  id: string | null;
  body: GenerateBody;
  phase: "unsent" | "queued" | "running" | "failed";
  position: number | null;
  progress: Progress | null;
  error: string;
  isCancelling: boolean;
}

/** The finished job on the stage, and which of its pictures. */
export interface Shown {
  job: Job;
  index: number;
}

export interface Gallery {
  images: readonly StoredImage[];
  isComplete: boolean;
  isLoading: boolean;
  error: string;
  /** Whether the first page has come. */
  isKnown: boolean;
}

export interface State {
  service: ServiceState;
  key: string;
  isKeyAsked: boolean;
  keyError: string;
  draft: Draft;
  fieldErrors: Readonly<Record<string, string>>;
  formError: string;
  runs: readonly Run[];
  shown: Shown | null;
  /** A job of before a reload, to be shown when the service answers. */
  shownId: string | null;
  gallery: Gallery;
  viewed: string | null;
  /** A short message for eyes and screen readers; a new object each time. */
  message: { text: string } | null;
  /** What only screen readers are told: eyes see it already. */
  announcement: string;
}
