// The OpenAI SDK for Node: what openai_python.py does, with the same line of JSON at the end.
import { readFileSync } from "node:fs";
import OpenAI from "openai";

const CHAT = "slurmgate-guide", EMBED = "slurmgate-embed";
const QUESTION = [{ role: "user", content: "What is slurmgate?" }];
const TEXTS = ["What is slurmgate?", "Tell me what slurmgate is", "How do I cancel a job?"];
const city = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const CITY = {
  type: "object",
  properties: { name: { type: "string" }, districts: { type: "integer" } },
  required: ["name", "districts"],
  additionalProperties: false,
};

const client = new OpenAI(); // OPENAI_BASE_URL, OPENAI_API_KEY
const toolClient = new OpenAI({ baseURL: process.env.TOOLS_BASE_URL, apiKey: process.env.TOOLS_API_KEY });

async function chat() {
  const { data, request_id } = await client.chat.completions.create({ model: CHAT, messages: QUESTION }).withResponse();
  const [choice] = data.choices;
  return {
    text: choice.message.content,
    finish: choice.finish_reason,
    model: data.model,
    usage: data.usage,
    request_id,
    same_request_id: data._request_id === request_id,
  };
}

async function chatStream(options = {}) {
  const seen = { text: "", finish: null, usages: [], without_choices: 0 };
  for await (const chunk of await client.chat.completions.create({
    model: CHAT, messages: QUESTION, stream: true, ...options,
  })) {
    seen.usages.push(chunk.usage ?? null);
    if (chunk.choices.length === 0) seen.without_choices += 1;
    for (const choice of chunk.choices) {
      seen.text += choice.delta.content ?? "";
      seen.finish = choice.finish_reason ?? seen.finish;
    }
  }
  return seen;
}

async function completion() {
  const ask = { model: CHAT, prompt: "slurmgate is", max_tokens: 8 };
  const answer = await client.completions.create(ask);
  let streamed = "";
  for await (const chunk of await client.completions.create({ ...ask, stream: true })) {
    streamed += chunk.choices[0]?.text ?? "";
  }
  return { text: answer.choices[0].text, streamed, usage: answer.usage };
}

async function embeddings() {
  const standard = await client.embeddings.create({ model: EMBED, input: TEXTS }); // base64, decoded by the SDK
  const floats = await client.embeddings.create({ model: EMBED, input: TEXTS, encoding_format: "float" });
  const same = standard.data.every((one, i) =>
    one.embedding.every((value, j) => Math.abs(value - floats.data[i].embedding[j]) < 1e-6));
  return {
    widths: standard.data.map((one) => one.embedding.length),
    indices: standard.data.map((one) => one.index),
    same,
    usage: standard.usage,
  };
}

async function error(call) {
  try {
    await call();
  } catch (raised) {
    if (!(raised instanceof OpenAI.APIError)) throw raised;
    return [raised.constructor.name, raised.status, raised.type, raised.param, raised.code];
  }
  throw new Error("no error");
}

async function errors() {
  const stranger = client.withOptions({ apiKey: "sk-wrong" });
  const ask = { model: CHAT, messages: QUESTION };
  return {
    model: await error(() => client.chat.completions.create({ ...ask, model: "nobody/knows-it" })),
    retrieve: await error(() => client.models.retrieve("nobody/knows-it")),
    key: await error(() => stranger.chat.completions.create(ask)),
    field: await error(() => client.chat.completions.create({ model: CHAT })),
    stream: await error(() => client.chat.completions.create({ ...ask, model: "gone", stream: true })),
  };
}

async function cancelled() {
  const { data: stream, request_id } = await toolClient.chat.completions.create({
    model: "talks-on", messages: QUESTION, stream: true,
  }).withResponse();
  let chunks = 0;
  for await (const _ of stream) {
    chunks += 1;
    if (chunks === 3) break; // leaving the loop aborts the request
  }
  return { chunks, request_id };
}

async function concurrent() {
  return Promise.all(Array.from({ length: 4 }, async () => (await chatStream()).text));
}

async function tools() {
  const ask = {
    model: "calls-tools",
    messages: [{ role: "user", content: "What is it like in Oslo?" }],
    tools: [
      { type: "function", function: { name: "weather", parameters: city } },
      { type: "function", function: { name: "time_in", parameters: city } },
    ],
  };
  const named = (calls) => calls.map((call) => [call.id, call.function.name, JSON.parse(call.function.arguments)]);
  const { message } = (await toolClient.chat.completions.create(ask)).choices[0];
  const stream = toolClient.chat.completions.stream(ask);
  let fragments = 0;
  stream.on("tool_calls.function.arguments.delta", () => (fragments += 1));
  const streamed = (await stream.finalChatCompletion()).choices[0];
  const forced = await toolClient.chat.completions.create({
    ...ask, tool_choice: { type: "function", function: { name: "time_in" } },
  });
  // the SDK's own loop: it calls the functions and sends their results
  const runner = toolClient.chat.completions.runTools({
    ...ask,
    tools: ask.tools.map((tool) => ({ ...tool, function: { ...tool.function, parse: JSON.parse, function: () => "fine" } })),
  });
  return {
    plain: named(message.tool_calls),
    streamed: named(streamed.message.tool_calls),
    fragments,
    finish: streamed.finish_reason,
    forced: named(forced.choices[0].message.tool_calls),
    after: await runner.finalContent(),
  };
}

async function structured() {
  const ask = {
    model: "answers-in-json",
    messages: [{ role: "user", content: "Describe Oslo" }],
    response_format: { type: "json_schema", json_schema: { name: "City", strict: true, schema: CITY } },
  };
  const parsed = (await toolClient.chat.completions.parse(ask)).choices[0].message.parsed;
  const streamed = (await toolClient.chat.completions.stream(ask).finalChatCompletion()).choices[0].message.parsed;
  const plain = await toolClient.chat.completions.create({ ...ask, response_format: { type: "json_object" } });
  return { parsed, streamed, json_object: JSON.parse(plain.choices[0].message.content) };
}

const manifest = new URL("./node_modules/openai/package.json", import.meta.url);
const seen = { version: JSON.parse(readFileSync(manifest)).version };
const looks = {
  chat,
  stream: chatStream,
  stream_usage: () => chatStream({ stream_options: { include_usage: true } }),
  completion,
  embeddings,
  empty_text: async () => (await client.embeddings.create({ model: EMBED, input: "" })).data[0].embedding.length,
  models: async () => (await client.models.list()).data.map((model) => model.id),
  model: async () => (await client.models.retrieve(CHAT)).id,
  errors,
  cancelled,
  concurrent,
  tools,
  structured,
};
for (const [name, look] of Object.entries(looks)) {
  try {
    seen[name] = await look();
  } catch (raised) { // the other looks are worth having, and the test shows this one
    seen[name] = { raised: String(raised) };
  }
}
console.log(JSON.stringify(seen));
