// The OpenAI SDK for Node on slurmgate: npm install openai
// export OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=...
import OpenAI from "openai";

const client = new OpenAI(); // reads both variables; or new OpenAI({ baseURL, apiKey })

for await (const model of client.models.list()) console.log("model:", model.id);

const stream = await client.chat.completions.create({
  model: "slurmgate-guide",
  messages: [{ role: "user", content: "What happens at the wall time?" }],
  stream: true,
});
for await (const chunk of stream) process.stdout.write(chunk.choices[0]?.delta?.content ?? "");

const vectors = await client.embeddings.create({ model: "slurmgate-embed", input: ["a wall time", "a time limit"] });
console.log("\nan embedding has", vectors.data[0].embedding.length, "numbers");

try {
  await client.chat.completions.create({ model: "no-such-model", messages: [{ role: "user", content: "Hello" }] });
} catch (error) {
  console.log(error.code, error.requestID);
}
