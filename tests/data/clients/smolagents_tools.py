import sys

from smolagents import OpenAIServerModel, ToolCallingAgent, tool


@tool
def get_weather(city: str) -> str:
    """The weather in a city.

    Args:
        city: The name of the city.
    """
    print("CALLED get_weather", city, flush=True)
    return "sunny, 20 degrees"


model = OpenAIServerModel("any", api_base=f"{sys.argv[1]}/v1", api_key="none", temperature=0)
ToolCallingAgent([get_weather], model, max_steps=2).run("What is the weather in Paris?")
