// Asks with npm's `openai` and prints what it shows: lines of [kind, value].
import OpenAI from "openai";

const { url, call, request, options, rounds } = JSON.parse(process.argv[2]);
const print = (kind, value) => console.log(JSON.stringify([kind, value]));
const client = new OpenAI({ baseURL: url, apiKey: "none", maxRetries: 0 });

const calls = {
  async create() {
    const { data, response, request_id } = await client.chat.completions.create(request, options).withResponse();
    print("response", { id: response.headers.get("replay-generation-id"), request_id });
    if (request.stream) for await (const chunk of data) print("chunk", chunk);
    else print("completion", data);
  },
  async again() {
    for (let round = 0; round < rounds; round++) {
      let text = "";
      for await (const chunk of await client.chat.completions.create(request)) text += chunk.choices[0].delta.content ?? "";
      print("text", text);
    }
  },
  async helper() {
    const stream = client.chat.completions.stream(request, options);
    stream.on("content", (text) => print("content", text));
    stream.on("tool_calls.function.arguments.done", (event) => print("arguments", event.arguments));
    print("completion", await stream.finalChatCompletion());
  },
  async respond() {
    for await (const event of await client.responses.create({ ...request, stream: true }, options)) print("event", event);
  },
  async resume() {
    const query = { stream: true, starting_after: request.starting_after };
    for await (const event of await client.responses.retrieve(request.id, query)) print("event", event);
  },
  async list() {
    for await (const completion of client.chat.completions.list(request)) print("completion", completion);
  },
};

try {
  await calls[call]();
  print("end", null);
} catch (error) {
  const { status = null, code = null, type = null, message, headers } = error;
  print("error", { name: error.constructor.name, status, code, type, message, retry_after: headers?.get("retry-after") });
}
