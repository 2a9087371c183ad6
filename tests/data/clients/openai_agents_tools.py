import sys

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

set_tracing_disabled(True)


@function_tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    print("CALLED get_weather", {"city": city})
    return "sunny"


client = AsyncOpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none")
for kind in (OpenAIChatCompletionsModel, OpenAIResponsesModel):
    agent = Agent(
        "weather",
        model=kind(model="any", openai_client=client),
        tools=[get_weather],
        tool_use_behavior="stop_on_first_tool",
        model_settings=ModelSettings(temperature=0),
    )
    print(Runner.run_sync(agent, "What is the weather in Paris?", max_turns=3).final_output)
