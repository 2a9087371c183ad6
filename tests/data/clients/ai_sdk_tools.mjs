import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";

const baseURL = `${process.argv[2]}/v1`;
const openai = createOpenAI({ baseURL, apiKey: "none" });
const models = [
  createOpenAICompatible({ name: "local", baseURL })("any"),
  openai.chat("any"),
  openai.responses("any"),
  createAnthropic({ baseURL, apiKey: "none" })("any"),
];
const getWeather = tool({
  description: "The weather in a city.",
  inputSchema: jsonSchema({
    type: "object",
    properties: { city: { type: "string" } },
    required: ["city"],
  }),
  execute: async ({ city }) => {
    console.log("CALLED get_weather", city);
    return "sunny, 20 degrees";
  },
});
const asked = {
  tools: { get_weather: getWeather },
  temperature: 0,
  maxOutputTokens: 200,
  prompt: "What is the weather in Paris?",
  stopWhen: stepCountIs(1),
};
await generateText({ ...asked, model: models[0] });
for (const model of models) await streamText({ ...asked, model }).consumeStream();
