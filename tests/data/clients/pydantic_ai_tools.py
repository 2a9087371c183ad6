import sys

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(base_url=f"{sys.argv[1]}/v1", api_key="none")
agent = Agent(OpenAIChatModel("any", provider=provider), model_settings={"temperature": 0})


@agent.tool_plain
def get_weather(city: str) -> str:
    """The weather in a city."""
    print("CALLED get_weather", {"city": city})
    return "sunny"


print(agent.run_sync("What is the weather in Paris?").output)
