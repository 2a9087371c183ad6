// An answer: the request for it, and what its stream adds to a message.
import { stream } from "./api.js";
import { options, requestFields } from "./options.js";

const ALTERNATIVES = 5;

/** The messages of a request, in OpenAI's form, of those of a branch. */
export function toMessages(branch) {
  const messages = branch.map(toMessage);
  if (options.system.trim()) messages.unshift({ role: "system", content: options.system });
  return messages;
}

function toMessage(node) {
  if (node.role === "tool") return { role: "tool", tool_call_id: node.callId, content: node.content };
  if (node.role === "assistant") {
    const calls = (node.calls ?? []).map(({ id, name, arguments: given }) => (
      { id, type: "function", function: { name, arguments: given } }));
    return {
      role: "assistant", content: node.content,
      ...(node.reasoning ? { reasoning_content: node.reasoning } : {}),
      ...(calls.length ? { tool_calls: calls } : {}),
    };
  }
  if (!node.files?.length) return { role: node.role, content: node.content };
  const parts = node.files.map(({ name, kind, data, format }) => {
    if (kind === "image") return { type: "image_url", image_url: { url: data } };
    if (kind === "audio") return { type: "input_audio", input_audio: { data, format } };
    return { type: "text", text: `File ${name}:\n\n${data}` };
  });
  if (node.content) parts.push({ type: "text", text: node.content });
  return { role: node.role, content: parts };
}

/** The body of the request for an answer to a branch, as any client would send it. */
export const requestBody = (branch) => ({ messages: toMessages(branch), ...requestFields() });

/**
 * Let the model write `node`, which follows `branch` (or goes on, if it has content already). `onUpdate` is
 * called after each event. Resolves when it has ended; an error is in `node.error`.
 */
export async function write(node, branch, signal, onUpdate) {
  const goesOn = node.content !== "" && !node.calls?.length;
  const body = {
    ...requestBody(goesOn ? [...branch, node] : branch),
    stream_options: { include_usage: true }, timings_per_token: true, return_progress: true,
  };
  // With tools a stream's log-probabilities could not be told from those of the calls.
  if (options.tokens && !body.tools) Object.assign(body, { logprobs: true, top_logprobs: ALTERNATIVES });
  const decoders = { content: new TextDecoder(), reasoning: new TextDecoder() };
  const began = performance.now();
  Object.assign(node, { error: null, finish: null, progress: null, stats: {} });
  node.tokens ??= [];
  try {
    for await (const event of stream("v1/chat/completions", body, signal)) {
      takeEvent(node, event, began, decoders);
      onUpdate();
    }
  } catch (error) {
    if (error.name === "AbortError") node.finish = "stopped";
    else node.error = error.message;
  }
  node.progress = null;
  onUpdate();
}

function takeEvent(node, event, began, decoders) {
  const choice = event.choices?.[0];
  if (event.prompt_progress) node.progress = event.prompt_progress;
  if (event.timings) takeTimings(node, event.timings);
  if (event.usage) {
    node.stats.prompt = event.usage.prompt_tokens;
    node.stats.cached = event.usage.prompt_tokens_details?.cached_tokens ?? 0;
    node.stats.tokens = event.usage.completion_tokens;
  }
  if (!choice) return;
  if (choice.finish_reason) node.finish = choice.finish_reason;
  const { content, reasoning_content: reasoning, tool_calls: calls } = choice.delta;
  if (content || reasoning || calls) {
    node.progress = null;
    node.stats.first ??= performance.now() - began;
  }
  const part = reasoning ? "reasoning" : "content";
  if (choice.logprobs?.content) takeTokens(node, choice.logprobs.content, part, decoders[part]);
  if (reasoning) node.reasoning = (node.reasoning ?? "") + reasoning;
  if (content) node.content += content;
  for (const call of calls ?? []) takeCall(node, call);
}

function takeTimings(node, timings) {
  Object.assign(node.stats, {
    perSecond: timings.predicted_per_second, promptPerSecond: timings.prompt_per_second,
    prompt: timings.prompt_n + timings.cache_n, cached: timings.cache_n, tokens: timings.predicted_n,
  });
}

/** Tokens of an event, with the place in the text where each begins. */
function takeTokens(node, tokens, part, decoder) {
  let at = (node[part] ?? "").length;
  for (const { bytes, logprob, top_logprobs: others } of tokens) {
    const text = decoder.decode(new Uint8Array(bytes), { stream: true });
    node.tokens.push({
      part, at, text, p: Math.exp(logprob),
      others: others.map((other) => ({
        text: new TextDecoder().decode(new Uint8Array(other.bytes)), p: Math.exp(other.logprob) })),
    });
    at += text.length;
  }
}

function takeCall(node, { index, id, function: called }) {
  node.calls ??= [];
  const call = (node.calls[index] ??= { id: "", name: "", arguments: "" });
  call.id ||= id ?? "";
  call.name ||= called?.name ?? "";
  call.arguments += called?.arguments ?? "";
}
