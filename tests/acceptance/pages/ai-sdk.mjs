// Asks with Vercel's `ai` through `@ai-sdk/openai-compatible` and prints what it shows: lines of [kind, value].
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText, tool } from "ai";
import { z } from "zod";

globalThis.AI_SDK_LOG_WARNINGS = false; // it would write them to stdout

const { url, call, headers } = JSON.parse(process.argv[2]);
const print = (kind, value) => console.log(JSON.stringify([kind, value]));
const replay = createOpenAICompatible({ name: "replay", baseURL: url, apiKey: "none", includeUsage: true });
const get_weather = tool({ description: "The weather", inputSchema: z.object({ city: z.string() }) });
const request = { model: replay("test-model"), prompt: "Hi", tools: { get_weather }, maxRetries: 0, headers };

const told = (error) => ({
  name: error.name ?? null,
  message: error.message ?? String(error),
  status: error.statusCode ?? null,
  body: error.responseBody ?? null,
});
const called = ({ toolName, input }) => ({ toolName, input });

const calls = {
  async textStream() {
    const { textStream } = streamText({ ...request, onError: ({ error }) => print("onError", told(error)) });
    for await (const text of textStream) print("text", text);
  },
  async fullStream() {
    const { fullStream } = streamText({ ...request, onError() {} });
    for await (const part of fullStream) {
      if (part.type === "text-delta") print("text", part.text);
      if (part.type === "reasoning-delta") print("reasoning", part.text);
      if (part.type === "tool-call") print("tool", called(part));
      if (part.type === "error") print("error", told(part.error));
      if (part.type === "finish") print("finish", { reason: part.finishReason, tokens: part.totalUsage.totalTokens });
    }
  },
  async generateText() {
    const { text, toolCalls, finishReason, usage, response } = await generateText(request);
    print("result", { text, tools: toolCalls.map(called), reason: finishReason, tokens: usage.totalTokens, id: response.id });
  },
};

try {
  await calls[call]();
  print("end", null);
} catch (error) {
  print("error", told(error));
}
