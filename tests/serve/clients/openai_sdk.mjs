// OpenAI's Node SDK, as it is: `node openai_sdk.mjs FOLDER_OF_MODULES URL KEY MODEL` prints what it got as one JSON object.
import { createRequire } from "node:module";

const [modules, url, key, model] = process.argv.slice(2);
const { OpenAI } = createRequire(`${modules}/`)("openai");
const client = new OpenAI({ baseURL: url, apiKey: key, maxRetries: 0 });
const asked = { model, messages: [{ role: "user", content: "Hello" }], temperature: 1.5, seed: 1, max_tokens: 24 };

async function fault(ask) {
  try {
    await ask();
  } catch (error) {
    return [error.constructor.name, error.status, error.code, error.param];
  }
  return "answered";
}

const whole = await client.chat.completions.create(asked);
let stream = "";
let usage = null;
for await (const piece of await client.chat.completions.create({ ...asked, stream: true, stream_options: { include_usage: true } })) {
  stream += piece.choices[0]?.delta?.content ?? "";
  usage = piece.usage ?? usage;
}
const left = await client.chat.completions.create({ ...asked, max_tokens: 500, stream: true });
for await (const piece of left) break; // leaves the stream, and with it the generation
const models = [];
for await (const one of client.models.list()) models.push(one.id);
const completion = await client.completions.create({ model, prompt: "Hello", temperature: 0, max_tokens: 6 });

console.log(
  JSON.stringify({
    models,
    whole: whole.choices[0].message.content,
    finish_reason: whole.choices[0].finish_reason,
    usage: whole.usage,
    stream,
    stream_usage: usage,
    together: (await Promise.all(Array.from({ length: 8 }, () => client.chat.completions.create(asked)))).map((one) => one.choices[0].message.content),
    text: completion.choices[0].text,
    "no model": await fault(() => client.chat.completions.create({ ...asked, model: "gpt-4" })),
    bad: await fault(() => client.chat.completions.create({ ...asked, temperature: 9 })),
    "no key": await fault(() => new OpenAI({ baseURL: url, apiKey: "sk-wrong", maxRetries: 0 }).models.list()),
  }),
);
