import type { Refused } from "./protocol.js";

/** A request that the server does not do, or that was given up; `status` as in HTTP. */
export class RequestError extends Error {
  override readonly name = "RequestError";

  constructor(
    message: string,
    readonly status?: number,
    readonly remedy?: string,
  ) {
    super(message);
  }
}

/** A refusal as an error. */
export function refusal({ error, status, remedy }: Refused): RequestError {
  return new RequestError(error, status, remedy);
}

/** How long to wait before the same request is made again; `undefined` if it would be in vain. */
export function again({ status, retry_after_ms }: Refused): number | undefined {
  if (status === 503) return retry_after_ms ?? 1000 * Math.random();
  // A limit that time does not lift names none.
  return status === 429 ? retry_after_ms : undefined;
}
