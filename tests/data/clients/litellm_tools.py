import sys

import litellm

FUNCTION = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
asked = {
    "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
    "tools": [{"type": "function", "function": FUNCTION}],
    "temperature": 0,
}
for model, url in (("openai/any", f"{sys.argv[1]}/v1"), ("ollama_chat/any", sys.argv[1])):
    answer = litellm.completion(model, api_base=url, api_key="none", **asked)
    call = answer.choices[0].message.tool_calls[0]
    print("CALLED", call.function.name, call.function.arguments)
