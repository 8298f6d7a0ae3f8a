import { onSleep } from "./timers.js";

/**
 * Call `wake` when the network may have come, gone or changed unnoticed.
 *
 * Returns what ends that. Outside browsers, only sleep is noticed.
 */
export function onWake(wake: () => void): () => void {
  const ends = [onSleep(wake)];
  const listen = (target: EventTarget | undefined, name: string) => {
    if (!target?.addEventListener) return;
    const heard = () => {
      if (name !== "visibilitychange" || document.visibilityState === "visible") wake();
    };
    target.addEventListener(name, heard);
    ends.push(() => target.removeEventListener(name, heard));
  };
  const page = typeof document === "object" ? document : undefined;
  for (const name of ["online", "offline", "pageshow"]) listen(globalThis as never, name);
  for (const name of ["visibilitychange", "resume"]) listen(page, name);
  return () => {
    for (const end of ends) end();
  };
}
