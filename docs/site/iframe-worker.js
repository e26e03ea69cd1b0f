// Search runs in a worker. A browser starts none for a site that is opened from a folder, so there a
// hidden frame does its work: it has its own globals, gets messages and posts them, as a worker does.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.srcdoc = `<script src="${url}"><\/script>`;
      const loaded = new Promise((done) => frame.addEventListener("load", done, { once: true }));
      document.body.append(frame);
      const inside = frame.contentWindow;
      // What the worker posts, it posts to itself: this page passes it on to who listens here.
      inside.importScripts = (...urls) => urls.reduce((before, from) => before.then(() => load(inside, from)), Promise.resolve());
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      this.postMessage = (data) => loaded.then(() => inside.dispatchEvent(new MessageEvent("message", { data })));
      this.terminate = () => frame.remove();
    }
  };
  window.Worker = window.IFrameWorker;
}

function load(inside, url) {
  return new Promise((done, failed) => {
    const script = inside.document.createElement("script");
    script.src = url;
    script.addEventListener("load", done, { once: true });
    script.addEventListener("error", failed, { once: true });
    inside.document.body.append(script);
  });
}
