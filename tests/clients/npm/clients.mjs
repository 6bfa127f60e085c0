// Reads a generation with one of npm's libraries: `node clients.mjs LIBRARY URL`. See ../libraries.py.
//
// Each function is the lines that the library's users write.

const [library, url] = process.argv.slice(2);
const NAMES = ["start", "token", "delta", "live", "reset", "end"];

/** Print an event; whether it was the last. */
function show(id, event, data) {
  console.log(JSON.stringify([id ?? "", event, data]));
  return event === "end";
}

/** What looks like the browser's EventSource: to be closed at `end`, which spares it one more request or many. */
function listen(source) {
  for (const name of NAMES) {
    source.addEventListener(name, (event) => {
      if (show(event.lastEventId, name, event.data)) source.close();
    });
  }
}

/** For two that let the process end while they wait to come back. */
function listenAndStayAlive(source) {
  const alive = setInterval(() => {}, 1 << 30);
  source.addEventListener("end", () => clearInterval(alive));
  listen(source);
}

const libraries = {
  async "eventsource 2"() {
    const { default: EventSource } = await import("eventsource-2");
    const headers = {}; // the cursor of what it showed: its own goes on with an event that was cut behind its id
    const source = new EventSource(url, { headers });
    for (const name of NAMES) {
      source.addEventListener(name, ({ lastEventId, data }) => {
        headers["Last-Event-ID"] = lastEventId;
        const line = data.slice(data.lastIndexOf("\n") + 1); // in front of it may be what a cut left
        if (show(lastEventId, name, line)) source.close();
      });
    }
  },

  async "eventsource 3"() {
    const { EventSource } = await import("eventsource-3");
    listen(new EventSource(url));
  },

  async "eventsource 4"() {
    const { EventSource } = await import("eventsource-4");
    listen(new EventSource(url));
  },

  async "eventsource 5"() {
    const { EventSource } = await import("eventsource-5");
    listenAndStayAlive(new EventSource(url));
  },

  async undici() {
    const { EventSource } = await import("undici");
    listenAndStayAlive(new EventSource(url));
  },

  async "extended-eventsource"() {
    const { EventSource } = await import("extended-eventsource");
    let cursor = "-1"; // of what it showed: its own goes on with an event that was cut behind its id
    const source = new EventSource(url, {
      fetch(request) {
        request.headers.set("Last-Event-ID", cursor);
        return fetch(request);
      },
    });
    for (const name of NAMES) {
      source.addEventListener(name, ({ lastEventId }) => (cursor = lastEventId || cursor));
    }
    listen(source);
  },

  async "reconnecting-eventsource"() {
    const { EventSource } = await import("eventsource-3");
    globalThis.EventSource = EventSource;
    const { default: ReconnectingEventSource } = await import("reconnecting-eventsource");
    listen(new ReconnectingEventSource(url)); // not closed, it asks for everything again, for ever
  },

  async "event-source-polyfill"() {
    const { EventSourcePolyfill } = await import("event-source-polyfill");
    listen(new EventSourcePolyfill(url)); // not closed, it asks for ever
  },

  async "launchdarkly-eventsource"() {
    const { EventSource } = (await import("launchdarkly-eventsource")).default;
    const source = new EventSource(url, { readTimeoutMillis: 60000 });
    source.addEventListener("error", () => {}); // or Node ends the process at a cut
    for (const name of NAMES) {
      source.addEventListener(name, (event) => {
        if (!event.data) return; // an `end` of its own, of a connection
        if (show(event.lastEventId, name, event.data)) source.close();
      });
    }
  },

  async "eventsource-client"() {
    const { createEventSource } = await import("eventsource-client");
    const source = createEventSource(url);
    for await (const { id, event, data } of source) {
      if (show(id, event, data)) source.close();
    }
  },

  async "event-source-plus"() {
    const { EventSourcePlus } = await import("event-source-plus");
    const controller = new EventSourcePlus(url).listen({
      onMessage({ id, event, data }) {
        if (show(id, event, data)) controller.abort(); // or it asks for ever
      },
    });
  },

  async "@microsoft/fetch-event-source"() {
    const nothing = () => {}; // Node has no page that is hidden or shown
    globalThis.document = { hidden: false, addEventListener: nothing, removeEventListener: nothing };
    globalThis.window = globalThis;
    const { fetchEventSource } = await import("@microsoft/fetch-event-source");
    let cursor = "-1"; // of what it showed: its own goes on with an event that was cut behind its id
    await fetchEventSource(url, {
      openWhenHidden: true,
      fetch: (url, init) => fetch(url, { ...init, headers: { ...init.headers, "last-event-id": cursor } }),
      onmessage({ id, event, data }) {
        cursor = id || cursor;
        if (data) show(id, event, data);
      },
    });
  },
};

await libraries[library]();
